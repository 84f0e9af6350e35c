//! LevelDB, the version that the crate `leveldb-rs-binding` brings along, by its C interface.
//!
//! It maps its tables into memory and uses uncompressed blocks where they lie, beside the cache, without a look at
//! their checksums (`verify_checksums` is off by default); it has one background thread. Where others compress with
//! LZ4 it uses Snappy. Its C interface copies every value that is looked up.

use std::path::Path;

use leveldb::compaction::Compaction as _;
use leveldb::database::Database;
use leveldb::database::batch::{Batch as _, Writebatch};
use leveldb::database::cache::Cache;
use leveldb::database::slice::Slice;
use leveldb::iterator::{
    Context, EntryIterator, EntryIteratorRev, Iterable as _, LevelDBIterator as _, Policy,
};
use leveldb::kv::KV as _;
use leveldb::options::{Compression, Options, ReadOptions, WriteOptions};
use lsm_store::bench::{Durability, Engine, Key, Outcome, Reader, Settings};

pub(crate) struct Level(Database);

impl std::fmt::Debug for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Level").finish_non_exhaustive()
    }
}

const BUFFERED: WriteOptions = WriteOptions { sync: false };
const SYNCED: WriteOptions = WriteOptions { sync: true };

impl Engine for Level {
    const NAME: &'static str = "leveldb";

    type Reader<'a> = LevelReader<'a>;

    fn open(dir: &Path, settings: &Settings) -> Outcome<Self> {
        let mut options = Options::new();
        options.create_if_missing = true;
        options.write_buffer_size = Some(settings.memtable_bytes);
        options.block_size = Some(settings.block_bytes);
        options.compression =
            if settings.compressed { Compression::Snappy } else { Compression::No };
        options.cache = Some(Cache::new(settings.cache_bytes));
        options.set_bloom_filter(i32::try_from(settings.filter_bits_per_key)?);
        Ok(Self(Database::open(dir, options)?))
    }

    #[inline]
    fn put(&self, key: &Key, value: &[u8], durability: Durability) -> Outcome<()> {
        let how = match durability {
            Durability::Buffered => BUFFERED,
            Durability::Sync => SYNCED,
        };
        Ok(self.0.put(how, Slice::from(key.as_slice()), Slice::from(value))?)
    }

    #[inline]
    fn delete(&self, key: &Key) -> Outcome<()> {
        Ok(self.0.delete(BUFFERED, Slice::from(key.as_slice()))?)
    }

    fn put_batch(&self, keys: &[Key], values: &[u8]) -> Outcome<()> {
        let mut batch = Writebatch::new();
        for (key, value) in keys.iter().zip(values.chunks_exact(values.len() / keys.len())) {
            batch.put(Slice::from(key.as_slice()), Slice::from(value));
        }
        Ok(self.0.write(BUFFERED, &batch)?)
    }

    fn reader(&self, _live: bool) -> Outcome<LevelReader<'_>> {
        Ok(LevelReader(&self.0))
    }

    /// A compaction of any range begins with a flush; there are no keys in this one.
    fn flush(&self) -> Outcome<()> {
        self.0.compact(Slice::from(b"~".as_slice()), Slice::from(b"~".as_slice()));
        Ok(())
    }

    fn compact(&mut self) -> Outcome<()> {
        self.0.compact_all();
        Ok(())
    }

    fn close(self) -> Outcome<()> {
        Ok(())
    }
}

pub(crate) struct LevelReader<'a>(&'a Database);

/// From where the iterator was put, to the end.
struct FromHere;

impl Policy for FromHere {
    fn should_continue(&self, _context: &dyn Context<'_>) -> bool {
        true
    }

    fn should_seek_begin(&self) -> bool {
        false
    }
}

impl Reader for LevelReader<'_> {
    #[inline]
    fn get(&mut self, key: &Key, show: impl FnOnce(&[u8])) -> Outcome<bool> {
        let found = self.0.get(ReadOptions::new(), Slice::from(key.as_slice()))?;
        let there = found.is_some();
        if let Some(value) = found {
            show(value.as_bytes());
        }
        Ok(there)
    }

    fn seek(&mut self, from: &Key, mut show: impl FnMut(&[u8], &[u8]) -> bool) -> Outcome<()> {
        let mut iter: EntryIterator<'_, FromHere> =
            self.0.iter_with_policy(ReadOptions::new(), FromHere);
        iter.seek(&Slice::from(from.as_slice()));
        for (key, value) in iter.by_ref() {
            if !show(key.as_bytes(), value.as_bytes()) {
                break;
            }
        }
        iter.get_error().map_or(Ok(()), |error| Err(error.into()))
    }

    fn scan(&mut self, backward: bool, mut show: impl FnMut(&[u8], &[u8])) -> Outcome<()> {
        let error = if backward {
            let mut iter: EntryIteratorRev<'_> = self.0.iter(ReadOptions::new());
            iter.by_ref().for_each(|(key, value)| show(key.as_bytes(), value.as_bytes()));
            iter.get_error()
        } else {
            let mut iter: EntryIterator<'_> = self.0.iter(ReadOptions::new());
            iter.by_ref().for_each(|(key, value)| show(key.as_bytes(), value.as_bytes()));
            iter.get_error()
        };
        error.map_or(Ok(()), |error| Err(error.into()))
    }
}
