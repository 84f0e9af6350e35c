//! What reads did, counted per store: how many tables a lookup searched, what filters were worth, what was
//! found in memory, what iterators had to pass.
//!
//! A lookup raises one of these for itself, one for each table it searched and one for each block it asked
//! the cache for; see [`lanes`](crate::lanes) for what that costs. Work of compactions is not in them.

use crate::lanes::Lanes;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum ReadCount {
    /// A key looked up.
    Gets,
    /// A table of which the filter excluded the key.
    Excluded,
    /// A table that was searched and had no version of the key that could be read.
    FalsePositive,
    /// A table that had the answer.
    Answered,
    DataHit,
    DataMiss,
    IndexHit,
    IndexMiss,
    FilterHit,
    FilterMiss,
    /// A search of an iterator.
    Seeks,
    /// A version that an iterator passed because it is too new or shadowed.
    VersionsSkipped,
    /// A delete that an iterator passed.
    DeletesSkipped,
}

const COUNTS: usize = ReadCount::DeletesSkipped as usize + 1;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct ReadCounts(Lanes<COUNTS>);

impl ReadCounts {
    #[inline]
    pub(crate) fn add(&self, which: ReadCount, by: u64) {
        self.0.add(which as usize, by);
    }

    pub(crate) fn of(&self, which: ReadCount) -> u64 {
        self.0.sum(which as usize)
    }
}

/// What lookups and iterators did since the store was opened. Compactions are not in it.
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ReadMetrics {
    /// Keys looked up, those found in memtables included.
    pub gets: u64,
    /// Tables that a filter kept a lookup out of: no block of theirs was looked at.
    pub filter_excluded: u64,
    /// Tables that a lookup searched in vain: the filter let it pass, and no version of the key could be read.
    pub filter_false_positives: u64,
    /// Tables that had the version looked for, be it a value or a delete.
    pub tables_answered: u64,
    /// Searches of iterators, of any kind.
    pub seeks: u64,
    /// Versions that iterators passed because they are too new or shadowed.
    pub versions_skipped: u64,
    /// Deletes that iterators passed.
    pub deletes_skipped: u64,
}

impl ReadMetrics {
    /// Filters asked.
    #[must_use]
    pub const fn filter_checks(&self) -> u64 {
        self.filter_excluded + self.tables_searched()
    }

    /// Tables of which a lookup read index and data.
    #[must_use]
    pub const fn tables_searched(&self) -> u64 {
        self.filter_false_positives + self.tables_answered
    }

    /// Tables searched per key looked up: 1 is what an answer from a table costs at least. `NaN` without lookups.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for eyes")]
    pub fn read_amplification(&self) -> f64 {
        self.tables_searched() as f64 / self.gets as f64
    }

    pub(crate) fn new(counts: &ReadCounts) -> Self {
        Self {
            gets: counts.of(ReadCount::Gets),
            filter_excluded: counts.of(ReadCount::Excluded),
            filter_false_positives: counts.of(ReadCount::FalsePositive),
            tables_answered: counts.of(ReadCount::Answered),
            seeks: counts.of(ReadCount::Seeks),
            versions_skipped: counts.of(ReadCount::VersionsSkipped),
            deletes_skipped: counts.of(ReadCount::DeletesSkipped),
        }
    }
}
