//! How the blocks of tables are read by an iterator.

/// Whether blocks that were not in the cache are kept there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum FillCache {
    /// Those of searches and short walks are; a walk of more than 256 KiB keeps blocks only while the cache
    /// has room, so that it pushes nothing out.
    #[default]
    WhileRoom,
    /// All are: for walks that are soon repeated.
    Always,
    /// None are.
    Never,
}

/// What kind of reading it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reading {
    pub(crate) fill: FillCache,
    /// Entries below this sequence number are not wanted: tables and index partitions without any others
    /// are passed over. Others of them are still met.
    pub(crate) since: u64,
    pub(crate) purpose: Purpose,
}

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Somebody who waits, and perhaps stops soon.
    Reader,
    /// A job that reads all of it.
    Compaction,
}

impl Reading {
    pub(crate) const COMPACTION: Self =
        Self { fill: FillCache::Never, since: 0, purpose: Purpose::Compaction };

    pub(crate) const fn by_reader(fill: FillCache) -> Self {
        Self { fill, since: 0, purpose: Purpose::Reader }
    }

    pub(crate) const fn since(self, since: u64) -> Self {
        Self { since, ..self }
    }
}
