//! What an engine has to offer to be measured. Generic throughout: no call goes through a table of functions.

use std::fmt::Debug;
use std::path::Path;

use crate::bench::Outcome;
use crate::bench::data::Key;

/// The settings that every engine is given alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes for blocks or pages in memory.
    pub cache_bytes: usize,
    /// Size at which a memtable is frozen.
    pub memtable_bytes: usize,
    /// Size of a data block.
    pub block_bytes: usize,
    /// Bits of Bloom filter per key.
    pub filter_bits_per_key: usize,
    /// Whether tables are compressed, with LZ4 where the engine has it.
    pub compressed: bool,
    /// Threads for flushes and compactions.
    pub background_threads: usize,
}

impl Default for Settings {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Self {
            cache_bytes: 512 * MIB,
            memtable_bytes: 64 * MIB,
            block_bytes: 4096,
            filter_bits_per_key: 10,
            compressed: false,
            background_threads: 2,
        }
    }
}

/// What a write waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The log record is with the operating system: it survives the end of the process.
    Buffered,
    /// The log record is on disk.
    Sync,
}

/// An engine that is open. One thread or many call it.
pub trait Engine: Sync + Sized + Debug {
    /// Its name in the table.
    const NAME: &'static str;

    /// What reads.
    type Reader<'a>: Reader
    where
        Self: 'a;

    /// Opens the store in a directory, or creates it.
    ///
    /// # Errors
    /// The engine's.
    fn open(dir: &Path, settings: &Settings) -> Outcome<Self>;

    /// Sets a key to a value.
    ///
    /// # Errors
    /// The engine's.
    fn put(&self, key: &Key, value: &[u8], durability: Durability) -> Outcome<()>;

    /// Removes a key; buffered.
    ///
    /// # Errors
    /// The engine's.
    fn delete(&self, key: &Key) -> Outcome<()>;

    /// Writes all of them at once, or none; buffered. `values` holds a value for each key, one after the other.
    ///
    /// # Errors
    /// The engine's.
    fn put_batch(&self, keys: &[Key], values: &[u8]) -> Outcome<()>;

    /// A reader for one thread. With `live` it sees what is written meanwhile; else it may keep a snapshot or
    /// transaction open for all its reads, where that is cheaper.
    ///
    /// # Errors
    /// The engine's.
    fn reader(&self, live: bool) -> Outcome<Self::Reader<'_>>;

    /// What is in memory goes into tables. Returns when that is done or well under way: the caller waits until the
    /// process comes to rest.
    ///
    /// # Errors
    /// The engine's.
    fn flush(&self) -> Outcome<()>;

    /// Everything into the last level.
    ///
    /// # Errors
    /// The engine's.
    fn compact(&mut self) -> Outcome<()>;

    /// Ends it in good order.
    ///
    /// # Errors
    /// The engine's.
    fn close(self) -> Outcome<()>;
}

/// Reads for one thread.
pub trait Reader {
    /// Shows the value of a key where the engine has it, without a copy of the benchmark's. Returns whether there
    /// is one.
    ///
    /// # Errors
    /// The engine's.
    fn get(&mut self, key: &Key, show: impl FnOnce(&[u8])) -> Outcome<bool>;

    /// Shows entries from `from` on, ascending, until `show` returns false or there are no more. Each call is a new
    /// iterator.
    ///
    /// # Errors
    /// The engine's.
    fn seek(&mut self, from: &Key, show: impl FnMut(&[u8], &[u8]) -> bool) -> Outcome<()>;

    /// Shows all entries, ascending or descending.
    ///
    /// # Errors
    /// The engine's.
    fn scan(&mut self, backward: bool, show: impl FnMut(&[u8], &[u8])) -> Outcome<()>;
}
