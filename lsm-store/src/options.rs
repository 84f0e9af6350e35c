//! The options of a store. Few, all in one struct; only what affects the format is in the manifest.

use std::time::Duration;

use crate::events::EventSink;

/// Levels below the memtables; level 0 holds flushed runs, the last one the bulk of the data.
pub const LEVELS: usize = 7;

/// Which versions of a key a partition keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Every version above the retention floor, and the newest one at or below it.
    All,
    /// The newest version only; views in use still see what they were taken at.
    NewestOnly,
}

/// One partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionOptions {
    /// Name, at most 255 bytes; recorded at creation and checked at every later open.
    pub name: String,
    /// Which versions are kept; recorded at creation and checked at every later open.
    pub keep: Keep,
}

/// Where durability comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The caller's replicated log is the write-ahead log: the engine has none. What is above
    /// [`Store::durable_position`](crate::Store::durable_position) after a crash is applied again by the caller.
    External,
    /// The store writes its own log: [`Store::write`](crate::Store::write) instead of runs.
    Wal,
}

/// Who does the background work (flushes and compactions).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Executor {
    /// One thread for flushes, [`Options::compaction_threads`] for compactions.
    Threads,
    /// The caller's thread: at run boundaries a little of it, and all of it in [`Store::flush`](crate::Store::flush): no threads, no clock, and table
    /// uids from [`Options::uid_seed`], so that the same calls give the same files.
    Inline,
}

/// How the blocks of tables are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4 from level 2 down; levels 0 and 1 are short-lived and stay as they are.
    Lz4,
}

/// The options of a store. [`Options::new`] has the defaults for a machine with 2 cores and 1–4 GiB.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The partitions, in the order of their ids. A store keeps the partitions it was created with.
    pub partitions: Vec<PartitionOptions>,
    /// Where durability comes from.
    pub mode: Mode,
    /// With [`Mode::Wal`]: size of the log's segments in bytes, at least 4096.
    pub wal_segment_bytes: u64,
    /// With [`Mode::Wal`]: size of the log in bytes above which memtables are frozen even if they are not
    /// full, so that the log can be cut. It may grow beyond this while a flush is under way.
    pub wal_max_bytes: u64,
    /// Names the store; recorded at creation and checked at every later open. Random is best.
    pub store_id: u128,
    /// Seed of table uids, mixed with store id and file number. All there is with [`Executor::Inline`], so
    /// that the same calls give the same files; with [`Executor::Threads`] entropy is added.
    pub uid_seed: u64,
    /// The active memtables of all partitions are frozen at the next run boundary above this size.
    pub memtable_bytes: usize,
    /// Frozen memtable sets that may wait for their flush before [`Store::begin_run`](crate::Store::begin_run) waits.
    pub frozen_max: usize,
    /// Raw size at which a data block is cut.
    pub block_bytes: usize,
    /// Entries between two restart points of a block.
    pub restart_interval: usize,
    /// Raw size at which an index partition is cut (at the next change of the user key).
    pub index_partition_bytes: usize,
    /// Bits of filter per key.
    pub filter_bits_per_key: usize,
    /// How tables are compressed.
    pub compression: Compression,
    /// Bytes of blocks, index and filter partitions kept in memory; 0 keeps none. Up to half of it goes to
    /// index and filter partitions that open tables hold for themselves.
    pub cache_bytes: usize,
    /// Size at which a table is cut (at the next change of the user key).
    pub table_bytes: u64,
    /// How many files of tables are kept open at most, at least 1; further ones are opened when they are read. Each
    /// reader may have one more, each job that writes tables, and the logs have a few.
    pub max_open_files: usize,
    /// With [`Executor::Threads`]: compactions that run beside each other, at least 1.
    pub compaction_threads: usize,
    /// How many runs of level 0 (one per flush) that overlap at one key start a compaction.
    pub l0_trigger: usize,
    /// How many at which [`Store::begin_run`](crate::Store::begin_run) waits for compaction.
    pub l0_stop: usize,
    /// How much larger each level is than the one above.
    pub level_ratio: u64,
    /// Smallest target size of the first level below level 0.
    pub base_level_bytes: u64,
    /// Free space that is kept: below it merges that need more than what is above half of it are refused, below
    /// half of it writes fail with [`Error::NoSpace`](crate::Error::NoSpace) before anything is touched. Writes
    /// go on by themselves when there is room again. `None`: twice `memtable_bytes` and 64 MiB; 0: no reserve.
    pub space_reserve_bytes: Option<u64>,
    /// Whether a damaged or missing table refuses the open, with the error that says which. Otherwise reads of
    /// what it holds are errors, everything else is served, and [`Store::damage`](crate::Store::damage) tells.
    pub refuse_damaged: bool,
    /// Index of the position that the store has reached for certain, as far as the caller can tell: where its log
    /// begins, say. A store that is behind refuses to open: its manifest is cut off or an old copy, or it is
    /// another store. Nothing in the store itself could tell.
    pub expect_position_at_least: u64,
    /// With [`Executor::Threads`], bytes of tables read per second in search of damage; 0: none.
    pub scrub_bytes_per_second: u64,
    /// With [`Executor::Threads`], bytes per second that all compactions together read and write, so that they leave
    /// some of the disk to others; 0: as fast as it goes. It gives way as writers would have to wait for compactions.
    /// [`Store::set_compaction_rate`](crate::Store::set_compaction_rate) changes it while the store is open.
    pub compaction_rate: u64,
    /// With [`Executor::Threads`], bytes per second of replaced files that are removed; 0: as fast as it goes, and so
    /// while space is short. What is left is removed when the store is closed.
    pub deletion_rate: u64,
    /// With [`Mode::Wal`] and [`Executor::Threads`]: memtables are flushed when nothing was written for this long, or
    /// up to twice as long, so that a restart has little to replay. Zero: never.
    pub idle_flush: Duration,
    /// Longest wait of [`Store::begin_run`](crate::Store::begin_run) for background work before it gives up with
    /// [`Error::Stalled`](crate::Error::Stalled).
    pub stall_max: Duration,
    /// Who is told what happens.
    pub events: EventSink,
}

impl Options {
    /// The defaults, for a store of this id with these partitions.
    #[must_use]
    pub fn new(store_id: u128, partitions: Vec<PartitionOptions>) -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            partitions,
            mode: Mode::External,
            wal_segment_bytes: 64 * MIB as u64,
            wal_max_bytes: 512 * MIB as u64,
            store_id,
            uid_seed: 0,
            memtable_bytes: 64 * MIB,
            frozen_max: 2,
            block_bytes: 4 * 1024,
            restart_interval: 16,
            index_partition_bytes: 4 * 1024,
            filter_bits_per_key: 10,
            compression: Compression::Lz4,
            cache_bytes: 256 * MIB,
            table_bytes: 64 * MIB as u64,
            max_open_files: 512,
            compaction_threads: 1,
            l0_trigger: 4,
            l0_stop: 36,
            level_ratio: 10,
            base_level_bytes: 64 * MIB as u64,
            space_reserve_bytes: None,
            refuse_damaged: false,
            expect_position_at_least: 0,
            scrub_bytes_per_second: MIB as u64,
            compaction_rate: 0,
            deletion_rate: 256 * MIB as u64,
            idle_flush: Duration::from_secs(30),
            stall_max: Duration::from_secs(30),
            events: EventSink::default(),
        }
    }

    /// What is to be kept free if nothing else is asked for: room to flush what is in memory.
    pub(crate) const fn default_reserve(&self) -> u64 {
        (self.memtable_bytes as u64).saturating_mul(2).saturating_add(64 << 20)
    }

    /// Says what is wrong with the options, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.partitions.is_empty() || self.partitions.len() > crate::types::MAX_PARTITIONS {
            return Some(format!(
                "partitions: {} given, 1 to {} supported",
                self.partitions.len(),
                crate::types::MAX_PARTITIONS
            ));
        }
        if let Some(long) = self.partitions.iter().find(|p| p.name.len() > 255) {
            return Some(format!(
                "partition name of {} bytes, at most 255 allowed",
                long.name.len()
            ));
        }
        let at_least = [
            ("memtable_bytes", self.memtable_bytes, 1),
            ("frozen_max", self.frozen_max, 1),
            ("block_bytes", self.block_bytes, 1),
            ("restart_interval", self.restart_interval, 1),
            ("index_partition_bytes", self.index_partition_bytes, 1),
            ("filter_bits_per_key", self.filter_bits_per_key, 1),
            ("compaction_threads", self.compaction_threads, 1),
            ("max_open_files", self.max_open_files, 1),
            ("l0_trigger", self.l0_trigger, 1),
            ("l0_stop", self.l0_stop, self.l0_trigger + 1),
        ];
        for (name, value, min) in at_least {
            if value < min {
                return Some(format!("{name} is {value}, at least {min} needed"));
            }
        }
        let at_most = [
            ("block_bytes", self.block_bytes, 1 << 20),
            ("restart_interval", self.restart_interval, 1 << 10),
            ("index_partition_bytes", self.index_partition_bytes, 1 << 20),
            ("filter_bits_per_key", self.filter_bits_per_key, 64),
        ];
        for (name, value, max) in at_most {
            if value > max {
                return Some(format!("{name} is {value}, at most {max} supported"));
            }
        }
        if self.level_ratio < 2 {
            return Some(format!("level_ratio is {}, at least 2 needed", self.level_ratio));
        }
        if self.table_bytes == 0 || self.base_level_bytes == 0 {
            return Some("table_bytes and base_level_bytes must not be zero".to_owned());
        }
        None
    }
}
