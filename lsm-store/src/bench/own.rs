//! This store, as one of the engines.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use crate::bench::Outcome;
use crate::bench::data::Key;
use crate::bench::engine::{Durability, Engine, Reader, Settings};
use crate::vfs::RealVfs;
use crate::wal;
use crate::{
    Compression, Executor, Iter, Keep, Mode, Options, PartitionId, PartitionOptions, Store, View,
    WriteBatch,
};

const DATA: PartitionId = PartitionId(0);

/// A store with its own log and one partition that keeps the newest versions.
#[derive(Debug)]
pub struct LsmStore(Store);

impl LsmStore {
    /// The store itself.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.0
    }
}

impl Engine for LsmStore {
    const NAME: &'static str = "lsm-store";

    type Reader<'a> = StoreReader<'a>;

    fn open(dir: &Path, settings: &Settings) -> Outcome<Self> {
        let data = PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly };
        let mut options = Options::new(1, vec![data]);
        options.mode = Mode::Wal;
        options.cache_bytes = settings.cache_bytes;
        options.memtable_bytes = settings.memtable_bytes;
        options.block_bytes = settings.block_bytes;
        options.filter_bits_per_key = settings.filter_bits_per_key;
        options.compression =
            if settings.compressed { Compression::Lz4 } else { Compression::None };
        Ok(Self(Store::open(Arc::new(RealVfs::new()), dir, options, Executor::Threads)?))
    }

    #[inline]
    fn put(&self, key: &Key, value: &[u8], durability: Durability) -> Outcome<()> {
        let mut batch = WriteBatch::new();
        batch.put(DATA, key, value)?;
        let durability = match durability {
            Durability::Buffered => wal::Durability::Buffered,
            Durability::Sync => wal::Durability::Sync,
        };
        self.0.write(batch, durability)?;
        Ok(())
    }

    #[inline]
    fn delete(&self, key: &Key) -> Outcome<()> {
        let mut batch = WriteBatch::new();
        batch.delete(DATA, key)?;
        self.0.write(batch, wal::Durability::Buffered)?;
        Ok(())
    }

    fn put_batch(&self, keys: &[Key], values: &[u8]) -> Outcome<()> {
        let mut batch = WriteBatch::new();
        let value_bytes = values.len() / keys.len().max(1);
        for (key, value) in keys.iter().zip(values.chunks_exact(value_bytes.max(1))) {
            batch.put(DATA, key, value)?;
        }
        self.0.write(batch, wal::Durability::Buffered)?;
        Ok(())
    }

    fn reader(&self, live: bool) -> Outcome<StoreReader<'_>> {
        let view = (!live).then(|| self.0.view());
        Ok(StoreReader { store: &self.0, view })
    }

    fn flush(&self) -> Outcome<()> {
        self.0.flush()?;
        Ok(())
    }

    fn compact(&mut self) -> Outcome<()> {
        self.0.compact_all()?;
        Ok(())
    }

    fn close(self) -> Outcome<()> {
        Ok(self.0.close()?)
    }
}

/// Reads the newest, or of one view if nothing is written meanwhile.
#[derive(Debug)]
pub struct StoreReader<'a> {
    store: &'a Store,
    view: Option<View>,
}

impl Reader for StoreReader<'_> {
    #[inline]
    fn get(&mut self, key: &Key, show: impl FnOnce(&[u8])) -> Outcome<bool> {
        let found = self.store.get(DATA, key)?;
        let there = found.is_some();
        if let Some(found) = found {
            show(&found.value);
        }
        Ok(there)
    }

    #[inline]
    fn seek(&mut self, from: &Key, mut show: impl FnMut(&[u8], &[u8]) -> bool) -> Outcome<()> {
        let mut iter = self.iter(Bound::Included(from))?;
        while iter.next()? {
            if !show(iter.key(), iter.value()) {
                break;
            }
        }
        Ok(())
    }

    fn scan(&mut self, backward: bool, mut show: impl FnMut(&[u8], &[u8])) -> Outcome<()> {
        let mut iter = self.iter(Bound::Unbounded)?;
        if backward {
            while iter.prev()? {
                show(iter.key(), iter.value());
            }
        } else {
            while iter.next()? {
                show(iter.key(), iter.value());
            }
        }
        Ok(())
    }
}

impl StoreReader<'_> {
    #[inline]
    fn iter(&self, lower: Bound<&[u8]>) -> Outcome<Iter> {
        Ok(match &self.view {
            Some(view) => view.iter(DATA, lower, Bound::Unbounded)?,
            None => self.store.view().iter(DATA, lower, Bound::Unbounded)?,
        })
    }
}
