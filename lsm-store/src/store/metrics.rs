//! What the store counts, and how it is shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::cache::CacheMetrics;
use crate::events::StallCause;
use crate::histogram::{Distribution, Recorder};
use crate::manifest::version::Levels;
use crate::reads::ReadMetrics;
use crate::sstable::reader::Table;
use crate::store::inner::Inner;
use crate::wal::WalMetrics;

/// A number that only rises.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Waits of writers, by cause.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    memtables: Recorder,
    level0: Recorder,
    debt: Recorder,
}

impl Waits {
    pub(crate) const fn of(&self, cause: StallCause) -> &Recorder {
        match cause {
            StallCause::Memtables => &self.memtables,
            StallCause::Level0 => &self.level0,
            // Nothing waits for space.
            StallCause::Debt | StallCause::Space => &self.debt,
        }
    }

    fn metrics(&self) -> WaitMetrics {
        WaitMetrics {
            memtables: self.memtables.distribution(),
            level0: self.level0.distribution(),
            debt: self.debt.distribution(),
        }
    }
}

/// How long writers waited, by cause, in microseconds; nothing with [`Executor::Inline`](crate::Executor::Inline).
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WaitMetrics {
    /// For memtables that wait for their flush.
    pub memtables: Distribution,
    /// For level 0 to become less deep.
    pub level0: Distribution,
    /// For other work that compactions owe.
    pub debt: Distribution,
}

/// Counted since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) runs: Counter,
    pub(crate) flushes: Counter,
    pub(crate) flush_bytes: Counter,
    pub(crate) flush_micros: Recorder,
    pub(crate) compactions: Counter,
    pub(crate) trivial_moves: Counter,
    pub(crate) compaction_bytes_read: Counter,
    pub(crate) compaction_bytes_written: Counter,
    pub(crate) compaction_micros: Recorder,
    pub(crate) throttle_micros: Recorder,
    pub(crate) shadowed_dropped: Counter,
    pub(crate) deletes_dropped: Counter,
    pub(crate) stalls: Counter,
    pub(crate) stall_micros: Waits,
    pub(crate) delay_micros: Waits,
    pub(crate) merges_refused: Counter,
    pub(crate) scrub_bytes: Counter,
    pub(crate) scrub_passes: Counter,
    pub(crate) idle_flushes: Counter,
    pub(crate) tables_removed: Counter,
    pub(crate) files_left: Counter,
    pub(crate) user_bytes: Counter,
    /// By partition and level.
    pub(crate) levels: Mutex<BTreeMap<(u8, usize), LevelWork>>,
}

/// What flushes and compactions did for a level, in bytes of tables.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LevelWork {
    pub(crate) read: u64,
    pub(crate) written: u64,
    pub(crate) moved: u64,
}

impl Counters {
    /// Counts a job that is installed.
    pub(crate) fn worked(&self, partition: u8, level: usize, work: LevelWork) {
        let mut levels = self.levels.lock();
        let sum = levels.entry((partition, level)).or_default();
        sum.read += work.read;
        sum.written += work.written;
        sum.moved += work.moved;
    }
}

/// One level of one partition.
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LevelMetrics {
    /// Tables in the level.
    pub tables: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// Their entries: versions, deletes included.
    pub entries: u64,
    /// Those of them that no view and no read at or above the floor can see any more, by the tables' own
    /// estimate: what a compaction would drop.
    pub garbage: u64,
    /// Bytes that compactions into this level read, from here and above.
    pub bytes_read: u64,
    /// Bytes that they wrote into it; for level 0, flushes too.
    pub bytes_written: u64,
    /// Bytes of tables that they moved into it as they are.
    pub bytes_moved: u64,
}

/// One partition.
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PartitionMetrics {
    /// Sorted runs in level 0: flushes not compacted yet.
    pub l0_runs: usize,
    /// All levels, level 0 first.
    pub levels: Vec<LevelMetrics>,
    /// Retention floor.
    pub floor: u64,
    /// Newest published sequence number.
    pub last_sequence: u64,
    /// The oldest number that a view in use reads at: while it is far behind `last_sequence`, garbage stays.
    pub oldest_view: Option<u64>,
    /// For how long, in microseconds, it is known that there is a view at it: since the first flush, compaction or
    /// call for metrics after it was taken. Nothing with [`Executor::Inline`](crate::Executor::Inline).
    pub oldest_view_micros: Option<u64>,
}

/// The state of the store now, and what it did since it was opened. All sizes in bytes.
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Metrics {
    /// Per partition.
    pub partitions: Vec<PartitionMetrics>,
    /// Memory of the active memtables.
    pub active_memtable_bytes: u64,
    /// Memory of frozen memtables that wait for their flush.
    pub frozen_memtable_bytes: u64,
    /// Frozen memtable sets.
    pub frozen_memtables: usize,
    /// Views in use.
    pub views: usize,
    /// Index of the last published position.
    pub visible_index: u64,
    /// Index of the position that tables hold everything up to.
    pub durable_index: u64,
    /// Runs published.
    pub runs: u64,
    /// Bytes of keys and values in them, deletes included; what was replayed, too.
    pub user_bytes: u64,
    /// Flushes done, those that only moved the position included.
    pub flushes: u64,
    /// Size of the tables that flushes wrote.
    pub flush_bytes: u64,
    /// How long flushes took, in microseconds; nothing with [`Executor::Inline`](crate::Executor::Inline),
    /// which has no clock.
    pub flush_micros: Distribution,
    /// Compactions under way.
    pub compactions_running: usize,
    /// Compactions done that merged tables.
    pub compactions: u64,
    /// Compactions done by moving tables as they are.
    pub trivial_moves: u64,
    /// Size of the tables that compactions read.
    pub compaction_bytes_read: u64,
    /// Size of the tables that compactions wrote.
    pub compaction_bytes_written: u64,
    /// How long merges took, in microseconds; nothing with [`Executor::Inline`](crate::Executor::Inline).
    pub compaction_micros: Distribution,
    /// Bytes a second that compactions may read and write while nothing waits for them; 0 for any number. See
    /// [`Options::compaction_rate`](crate::Options::compaction_rate).
    pub compaction_rate: u64,
    /// Compactions that wait now because of that.
    pub compactions_throttled: usize,
    /// How long they waited for that, each time.
    pub throttle_micros: Distribution,
    /// Versions dropped because a newer one hides them.
    pub shadowed_dropped: u64,
    /// Deletes dropped because nothing was left to hide.
    pub deletes_dropped: u64,
    /// Times a writer stood still at a limit until background work had caught up.
    pub stalls: u64,
    /// How long it stood.
    pub stall_micros: WaitMetrics,
    /// How long runs were delayed because of the pressure, those that were.
    pub delay_micros: WaitMetrics,
    /// Bytes that compactions would have to write until nothing is due, smoothed.
    pub compaction_debt: u64,
    /// Merges put off because they would have taken the reserve of free space.
    pub merges_refused: u64,
    /// Bytes free on the device when last measured; `None` before, or without a reserve.
    pub free_space_bytes: Option<u64>,
    /// Tables whose files are open now, at most [`Options::max_open_files`](crate::Options::max_open_files).
    pub open_tables: usize,
    /// Memory of all tables, whose files are open or not: bounds, top index, properties. Not what they hold of the
    /// cache's bytes, see [`CacheMetrics::held_bytes`].
    pub table_memory_bytes: u64,
    /// Tables of which something is damaged.
    pub damaged_tables: usize,
    /// Bytes read in search of damage.
    pub scrub_bytes: u64,
    /// Times all tables were read in search of damage.
    pub scrub_passes: u64,
    /// Flushes because nothing was written for a while.
    pub idle_flushes: u64,
    /// Files of replaced tables that are to be removed, see [`Options::deletion_rate`](crate::Options::deletion_rate).
    pub obsolete_files: usize,
    /// Files of replaced tables that were removed.
    pub tables_removed: u64,
    /// Files that could not be removed; the next open tries again.
    pub files_left: u64,
    /// Failed background jobs; they are tried again.
    pub job_failures: u64,
    /// What the last failed background job failed of; empty without one.
    pub last_job_failure: String,
    /// Why the store accepts no more writes, if so.
    pub poisoned: Option<String>,
    /// The store's own log, if it has one.
    pub log: Option<WalMetrics>,
    /// The block cache, and what tables hold of its bytes.
    pub cache: CacheMetrics,
    /// What lookups and iterators did.
    pub reads: ReadMetrics,
}

impl Metrics {
    /// Bytes written to tables per byte that flushes wrote: what compactions make of a write. `NaN` before
    /// the first flush. The log is not in it.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for eyes")]
    pub fn write_amplification(&self) -> f64 {
        (self.flush_bytes + self.compaction_bytes_written) as f64 / self.flush_bytes as f64
    }

    /// Bytes written to tables per byte of keys and values that users wrote; the log is not in it, which has each of
    /// them once more. `NaN` before they wrote. Below 1 while most is in memtables, or if it is overwritten there.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for eyes")]
    pub fn user_write_amplification(&self) -> f64 {
        (self.flush_bytes + self.compaction_bytes_written) as f64 / self.user_bytes as f64
    }
}

impl Inner {
    pub(crate) fn metrics(&self) -> Metrics {
        let superversion = self.superversion.load_full();
        let visible = self.visible.load();
        let mut retention = self.retention.lock();
        retention.look(self.stopwatch());
        let views = retention.pins();
        let work = self.counters.levels.lock().clone();
        let partition = |(i, levels): (usize, &Levels)| PartitionMetrics {
            l0_runs: levels.runs.len(),
            levels: level_metrics(levels, retention.bound(i, visible.sequence(i)), |level| {
                let slot = u8::try_from(i).unwrap_or(u8::MAX);
                work.get(&(slot, level)).copied().unwrap_or_default()
            }),
            floor: retention.floor(i, visible.sequence(i)),
            last_sequence: visible.sequence(i),
            oldest_view: retention.oldest_pin(i),
            oldest_view_micros: retention
                .oldest_pin_since(i)
                .map(|since| u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)),
        };
        let partitions =
            superversion.version.partitions.iter().enumerate().map(partition).collect();
        drop(retention);
        let damaged = |t: &&Arc<Table>| self.is_quarantined(t.meta().number);
        let damaged_tables = superversion.version.tables().filter(damaged).count();
        let state = self.state.lock();
        let (durable_index, job_failures, last_job_failure, poisoned) =
            (state.durable.index, state.failures, state.last_failure.clone(), state.poison.clone());
        drop(state);
        let c = &self.counters;
        Metrics {
            partitions,
            active_memtable_bytes: superversion.active.bytes() as u64,
            frozen_memtable_bytes: superversion.frozen.iter().map(|s| s.bytes() as u64).sum(),
            frozen_memtables: superversion.frozen.len(),
            views,
            visible_index: visible.position.index,
            durable_index,
            runs: c.runs.get(),
            user_bytes: c.user_bytes.get(),
            flushes: c.flushes.get(),
            flush_bytes: c.flush_bytes.get(),
            flush_micros: c.flush_micros.distribution(),
            compactions_running: self.claims.lock().len(),
            compactions: c.compactions.get(),
            trivial_moves: c.trivial_moves.get(),
            compaction_bytes_read: c.compaction_bytes_read.get(),
            compaction_bytes_written: c.compaction_bytes_written.get(),
            compaction_micros: c.compaction_micros.distribution(),
            compaction_rate: self.throttle.rate(),
            compactions_throttled: self.throttle.waiting(),
            throttle_micros: c.throttle_micros.distribution(),
            shadowed_dropped: c.shadowed_dropped.get(),
            deletes_dropped: c.deletes_dropped.get(),
            stalls: c.stalls.get(),
            stall_micros: c.stall_micros.metrics(),
            delay_micros: c.delay_micros.metrics(),
            compaction_debt: self.backlog.debt(),
            merges_refused: c.merges_refused.get(),
            open_tables: self.files.open_files(),
            table_memory_bytes: superversion.version.tables().map(|table| table.memory()).sum(),
            damaged_tables,
            scrub_bytes: c.scrub_bytes.get(),
            scrub_passes: c.scrub_passes.get(),
            free_space_bytes: self.space.free(),
            idle_flushes: c.idle_flushes.get(),
            obsolete_files: self.graveyard.lock().len(),
            tables_removed: c.tables_removed.get(),
            files_left: c.files_left.get(),
            job_failures,
            last_job_failure,
            poisoned,
            log: None,
            cache: self.cache.metrics(),
            reads: ReadMetrics::new(self.cache.counts()),
        }
    }
}

fn level_metrics(
    levels: &Levels,
    bound: u64,
    work: impl Fn(usize) -> LevelWork,
) -> Vec<LevelMetrics> {
    let sum = |level: usize, tables: &mut dyn Iterator<Item = &Arc<Table>>| {
        let LevelWork { read, written, moved } = work(level);
        let mut sum = LevelMetrics {
            bytes_read: read,
            bytes_written: written,
            bytes_moved: moved,
            ..LevelMetrics::default()
        };
        for table in tables {
            sum.tables += 1;
            sum.bytes += table.meta().len;
            sum.entries += table.meta().entries;
            sum.garbage += table.meta().garbage_at(bound);
        }
        sum
    };
    let first = sum(0, &mut levels.runs.iter().flat_map(|r| r.tables.iter()));
    let lower = (1..).zip(levels.levels.iter().skip(1));
    let lower = lower.map(|(level, tables)| sum(level, &mut tables.iter()));
    std::iter::once(first).chain(lower).collect()
}
