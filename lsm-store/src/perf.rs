//! What one call did: counters of the calling thread, to find out why a call was slow.
//!
//! ```
//! # use std::sync::Arc;
//! # use lsm_store::{Executor, Keep, Options, PartitionId, PartitionOptions, Store, vfs::MemVfs};
//! # let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
//! # let store = Store::open(Arc::new(MemVfs::new(1)), "/db".as_ref(), Options::new(7, partitions), Executor::Inline)?;
//! let (found, counts) = lsm_store::perf::measure(|| store.get(PartitionId(0), b"key"));
//! assert!(found?.is_none());
//! assert_eq!(counts.blocks_read, 0, "nothing is in tables yet");
//! # Ok::<(), lsm_store::Error>(())
//! ```
//!
//! Outside of [`measure`] a counter costs a test of a thread-local flag, so they are always compiled in. Work of
//! other threads (flushes, compactions, the leader of a group commit) is not in them:
//! [`Metrics`](crate::Metrics) counts that.

use std::cell::Cell;
use std::time::Instant;

/// What the calls inside [`measure`] did on this thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct OpCounters {
    /// Memtables searched.
    pub memtables: u64,
    /// Tables whose key range covered what was searched.
    pub tables: u64,
    /// Filters asked.
    pub filters: u64,
    /// Filters that excluded the key, so that no block was looked at.
    pub filters_excluded: u64,
    /// Blocks found in memory.
    pub cache_hits: u64,
    /// Blocks read from files.
    pub blocks_read: u64,
    /// Bytes read from files.
    pub bytes_read: u64,
    /// Positions searched by iterators, of all their sources together.
    pub seeks: u64,
    /// Versions that iterators passed because they are too new or shadowed.
    pub versions_skipped: u64,
    /// Deletes that iterators passed.
    pub deletes_skipped: u64,
    /// Nanoseconds in which blocks were read from files.
    pub read_nanos: u64,
    /// Nanoseconds in which files and directories were synced. A write whose batch another writer syncs has none.
    pub sync_nanos: u64,
    /// Nanoseconds in which a write waited for background work, delayed or standing still.
    pub wait_nanos: u64,
}

/// A counter of [`OpCounters`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    Memtables,
    Tables,
    Filters,
    FiltersExcluded,
    CacheHits,
    BlocksRead,
    BytesRead,
    Seeks,
    VersionsSkipped,
    DeletesSkipped,
    ReadNanos,
    SyncNanos,
    WaitNanos,
}

thread_local! {
    static MEASURING: Cell<bool> = const { Cell::new(false) };
    static COUNTERS: Cell<OpCounters> = const { Cell::new(OpCounters::ZERO) };
}

impl OpCounters {
    const ZERO: Self = Self {
        memtables: 0,
        tables: 0,
        filters: 0,
        filters_excluded: 0,
        cache_hits: 0,
        blocks_read: 0,
        bytes_read: 0,
        seeks: 0,
        versions_skipped: 0,
        deletes_skipped: 0,
        read_nanos: 0,
        sync_nanos: 0,
        wait_nanos: 0,
    };

    const fn field(&mut self, which: Count) -> &mut u64 {
        match which {
            Count::Memtables => &mut self.memtables,
            Count::Tables => &mut self.tables,
            Count::Filters => &mut self.filters,
            Count::FiltersExcluded => &mut self.filters_excluded,
            Count::CacheHits => &mut self.cache_hits,
            Count::BlocksRead => &mut self.blocks_read,
            Count::BytesRead => &mut self.bytes_read,
            Count::Seeks => &mut self.seeks,
            Count::VersionsSkipped => &mut self.versions_skipped,
            Count::DeletesSkipped => &mut self.deletes_skipped,
            Count::ReadNanos => &mut self.read_nanos,
            Count::SyncNanos => &mut self.sync_nanos,
            Count::WaitNanos => &mut self.wait_nanos,
        }
    }
}

/// Puts the flag and the counters back as they were, also if the measured call panics.
struct Restore {
    measuring: bool,
    counters: OpCounters,
}

impl Drop for Restore {
    fn drop(&mut self) {
        MEASURING.set(self.measuring);
        COUNTERS.set(self.counters);
    }
}

/// Runs `calls` and returns what they did on this thread. A measurement inside another is not part of
/// the outer one.
pub fn measure<T>(calls: impl FnOnce() -> T) -> (T, OpCounters) {
    let restore = Restore {
        measuring: MEASURING.replace(true),
        counters: COUNTERS.replace(OpCounters::default()),
    };
    let result = calls();
    let counters = COUNTERS.get();
    drop(restore);
    (result, counters)
}

/// Counts, if anybody measures on this thread.
#[inline]
pub(crate) fn count(which: Count, by: u64) {
    if MEASURING.get() {
        add(which, by);
    }
}

/// Does `work`; if anybody measures on this thread, its time is counted. Nobody asks the clock otherwise, so
/// [`Executor::Inline`](crate::Executor::Inline) has none but for whoever wants to know.
#[inline]
pub(crate) fn time<T>(which: Count, work: impl FnOnce() -> T) -> T {
    if !MEASURING.get() {
        return work();
    }
    let since = Instant::now();
    let result = work();
    add(which, u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
    result
}

#[cold]
fn add(which: Count, by: u64) {
    let mut counters = COUNTERS.get();
    *counters.field(which) += by;
    COUNTERS.set(counters);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_measured_is_counted_and_an_inner_measurement_is_its_own() {
        count(Count::Seeks, 1);
        let ((), outer) = measure(|| {
            count(Count::Seeks, 2);
            let ((), inner) = measure(|| count(Count::BytesRead, 4096));
            assert_eq!((inner.seeks, inner.bytes_read), (0, 4096), "the inner call");
            count(Count::Seeks, 1);
        });
        assert_eq!((outer.seeks, outer.bytes_read), (3, 0), "the outer call");
        let since = Instant::now();
        let (result, timed) = measure(|| time(Count::SyncNanos, || time(Count::ReadNanos, || 7)));
        let longest = u64::try_from(since.elapsed().as_nanos()).expect("short");
        assert_eq!((time(Count::WaitNanos, || 5), result), (5, 7), "what the work returned");
        assert!(timed.read_nanos > 0 && timed.read_nanos <= timed.sync_nanos, "{timed:?}");
        assert!(timed.sync_nanos <= longest && timed.wait_nanos == 0, "{timed:?} of {longest}");
        let ((), nothing) = measure(|| ());
        assert_eq!(nothing, OpCounters::default(), "nothing is left over");
    }
}
