//! The workloads that other engines call `db_bench`, with their names, for any engine (feature `bench`).
//!
//! `benches/db_bench.rs` runs them on this store, the comparison with other engines on all of them: the loops,
//! the keys, the clock and the checks are the same. A row goes through these rooms:
//!
//! * `data` makes keys and values. Even numbers are written, odd ones are for misses. A value says which key
//!   it belongs to and carries a checksum, so that whatever is read is read in full and verified.
//! * `engine` is what an engine has to offer; `own` offers it for [`Store`](crate::Store).
//! * `run` has the loops, one for each kind of [`Workload`].
//! * `meter` measures: latencies, processor time of the whole process with its background threads, bytes
//!   written, peak memory, and how much of the machine others used meanwhile. `system` asks the system.
//!
//! What may not enter: knowledge of a particular engine outside `own`.

mod data;
mod engine;
mod meter;
mod own;
mod run;
mod system;

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

pub use data::{KEY_BYTES, Key, Values, key};
pub use engine::{Durability, Engine, Reader, Settings};
pub use meter::{Latencies, Row, pause, rest};
pub use own::{LsmStore, StoreReader};
pub use run::Bench;
pub use system::peak_memory;

/// What a benchmark gives back: any engine's error ends it.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What a [`Bench`] works with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the engine keeps its files. It is emptied whenever a workload starts from nothing.
    pub dir: PathBuf,
    /// How many keys there are, at least 1000.
    pub keys: u64,
    /// Length of every value, at least 16 bytes.
    pub value_bytes: usize,
    /// A row ends after this time, whether or not it came to its number of operations. What loads a store for
    /// other rows is not cut.
    pub row_time_max: Duration,
    /// Repeats the same choices of keys and values.
    pub seed: u64,
    /// The engine's own settings.
    pub settings: Settings,
}

/// One row of the table. In this order they find what they need: a store is filled, changed, loaded anew,
/// compacted, read, and read while it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    /// Every key once, ascending, into an empty store.
    FillSeq,
    /// Every key once, in random order, into an empty store.
    FillRandom,
    /// Random keys of a filled store.
    Overwrite,
    /// Deletes random keys of a filled store.
    DeleteRandom,
    /// Random keys into an empty store, one thread, each synced.
    FillSync,
    /// The same from eight threads.
    FillSync8,
    /// Every key once, in random order, into an empty store, in batches of 1000. Never cut: what follows reads it.
    FillBatch,
    /// The whole store into its last level.
    Compact,
    /// Close, open, first read.
    Reopen,
    /// Random keys that are there.
    ReadRandom,
    /// The same from two threads.
    ReadRandom2,
    /// Random keys between those that are there.
    ReadMissing,
    /// Keys that are there, skewed as YCSB does it: Zipf's law with exponent 0.99, popular keys scattered.
    ReadHot,
    /// To a random key, then ten more.
    SeekRandom,
    /// All keys ascending.
    ReadSeq,
    /// All keys descending.
    ReadReverse,
    /// Random keys that are there, while another thread writes 20,000 times a second.
    ReadWhileWriting,
    /// 95 % reads and 5 % writes of skewed keys.
    Mixed,
}

impl Workload {
    /// All of them, in an order in which each finds what it needs.
    pub const ALL: [Self; 18] = [
        Self::FillSeq,
        Self::FillSync,
        Self::FillSync8,
        Self::FillRandom,
        Self::Overwrite,
        Self::DeleteRandom,
        Self::FillBatch,
        Self::Compact,
        Self::Reopen,
        Self::ReadRandom,
        Self::ReadRandom2,
        Self::ReadMissing,
        Self::ReadHot,
        Self::SeekRandom,
        Self::ReadSeq,
        Self::ReadReverse,
        Self::ReadWhileWriting,
        Self::Mixed,
    ];

    /// Its name, as on the command line and in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FillSeq => "fillseq",
            Self::FillRandom => "fillrandom",
            Self::Overwrite => "overwrite",
            Self::DeleteRandom => "deleterandom",
            Self::FillSync => "fillsync",
            Self::FillSync8 => "fillsync8",
            Self::FillBatch => "fillbatch",
            Self::Compact => "compact",
            Self::Reopen => "reopen",
            Self::ReadRandom => "readrandom",
            Self::ReadRandom2 => "readrandom2",
            Self::ReadMissing => "readmissing",
            Self::ReadHot => "readhot",
            Self::SeekRandom => "seekrandom",
            Self::ReadSeq => "readseq",
            Self::ReadReverse => "readreverse",
            Self::ReadWhileWriting => "readwhilewriting",
            Self::Mixed => "mixed",
        }
    }

    /// The workload of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|workload| workload.name() == name)
    }
}

#[cfg(test)]
mod tests;
