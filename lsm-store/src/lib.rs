#![doc = include_str!("../README.md")]

#[cfg(feature = "bench")]
pub mod bench;
pub mod checksum;
pub mod coding;
pub mod error;
pub mod events;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
pub mod journal;
#[cfg(feature = "lsmctl")]
pub mod lsmctl;
pub mod perf;
pub mod rng;
pub mod vfs;

#[doc = include_str!("../PITFALLS.md")]
pub mod pitfalls {}

mod cache;
mod compaction;
mod histogram;
mod internal_key;
mod iter;
mod lanes;
mod manifest;
mod memtable;
mod options;
mod reads;
mod sstable;
mod store;
mod sync;
mod types;
mod wal;

pub use cache::{CacheLookups, CacheMetrics};
pub use error::{Error, Result};
pub use histogram::Distribution;
pub use iter::reading::FillCache;
pub use options::{Compression, Executor, Keep, LEVELS, Mode, Options, PartitionOptions};
pub use reads::ReadMetrics;
pub use store::{
    Checkpoint, Damage, IncomingSnapshot, Iter, IterOptions, LevelMetrics, Metrics,
    PartitionMetrics, Pressure, RangeDigest, Replaced, Run, Salvaged, ScrubProgress, SnapshotTable,
    StagedSnapshot, Store, VerifyReport, Versions, View, WaitMetrics, Wanted,
};
pub use types::{
    FileNumber, Found, KeyRange, MAX_EXTRA_BYTES, MAX_KEY_BYTES, MAX_PARTITIONS, MAX_VALUE_BYTES,
    Op, PartitionId, Position, SequenceNumber,
};
pub use wal::{Durability, MAX_BATCH_BYTES, SequenceNumbers, WalMetrics, WriteBatch};
