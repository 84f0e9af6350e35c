//! RocksDB, the version that the crate `rocksdb` brings along.
//!
//! Leveled compaction, whole filters and indexes held by the open tables, LRU block cache. `sync` is `fdatasync`;
//! without it a record is with the operating system before the write returns.

use std::path::Path;

use lsm_store::bench::{Durability, Engine, Key, Outcome, Reader, Settings};
use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, CompactOptions, DB, DBCompressionType,
    FlushOptions, Options, ReadOptions, WaitForCompactOptions, WriteBatch, WriteOptions,
};

pub(crate) struct Rocks {
    db: DB,
    buffered: WriteOptions,
    synced: WriteOptions,
}

impl std::fmt::Debug for Rocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rocks").finish_non_exhaustive()
    }
}

impl Engine for Rocks {
    const NAME: &'static str = "rocksdb";

    type Reader<'a> = RocksReader<'a>;

    fn open(dir: &Path, settings: &Settings) -> Outcome<Self> {
        let mut table = BlockBasedOptions::default();
        table.set_block_size(settings.block_bytes);
        table.set_block_cache(&Cache::new_lru_cache(settings.cache_bytes));
        table.set_bloom_filter(settings.filter_bits_per_key as f64, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size(settings.memtable_bytes);
        options.set_max_background_jobs(i32::try_from(settings.background_threads)?);
        options.set_max_open_files(-1);
        let compression =
            if settings.compressed { DBCompressionType::Lz4 } else { DBCompressionType::None };
        options.set_compression_type(compression);
        let db = DB::open(&options, dir)?;
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        Ok(Self { db, buffered: WriteOptions::default(), synced })
    }

    #[inline]
    fn put(&self, key: &Key, value: &[u8], durability: Durability) -> Outcome<()> {
        let how = match durability {
            Durability::Buffered => &self.buffered,
            Durability::Sync => &self.synced,
        };
        Ok(self.db.put_opt(key, value, how)?)
    }

    #[inline]
    fn delete(&self, key: &Key) -> Outcome<()> {
        Ok(self.db.delete_opt(key, &self.buffered)?)
    }

    fn put_batch(&self, keys: &[Key], values: &[u8]) -> Outcome<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in keys.iter().zip(values.chunks_exact(values.len() / keys.len())) {
            batch.put(key, value);
        }
        Ok(self.db.write_opt(batch, &self.buffered)?)
    }

    fn reader(&self, _live: bool) -> Outcome<RocksReader<'_>> {
        Ok(RocksReader { db: &self.db, options: ReadOptions::default() })
    }

    fn flush(&self) -> Outcome<()> {
        self.db.flush_opt(&FlushOptions::default())?;
        Ok(self.db.wait_for_compact(&WaitForCompactOptions::default())?)
    }

    fn compact(&mut self) -> Outcome<()> {
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        self.db.compact_range_opt(None::<&[u8]>, None::<&[u8]>, &options);
        Ok(())
    }

    fn close(self) -> Outcome<()> {
        Ok(())
    }
}

pub(crate) struct RocksReader<'a> {
    db: &'a DB,
    options: ReadOptions,
}

impl Reader for RocksReader<'_> {
    #[inline]
    fn get(&mut self, key: &Key, show: impl FnOnce(&[u8])) -> Outcome<bool> {
        let found = self.db.get_pinned_opt(key, &self.options)?;
        let there = found.is_some();
        if let Some(value) = found {
            show(&value);
        }
        Ok(there)
    }

    fn seek(&mut self, from: &Key, mut show: impl FnMut(&[u8], &[u8]) -> bool) -> Outcome<()> {
        let mut iter = self.db.raw_iterator();
        iter.seek(from);
        while let Some((key, value)) = iter.item() {
            if !show(key, value) {
                break;
            }
            iter.next();
        }
        Ok(iter.status()?)
    }

    fn scan(&mut self, backward: bool, mut show: impl FnMut(&[u8], &[u8])) -> Outcome<()> {
        let mut iter = self.db.raw_iterator();
        if backward {
            iter.seek_to_last()
        } else {
            iter.seek_to_first()
        }
        while let Some((key, value)) = iter.item() {
            show(key, value);
            if backward { iter.prev() } else { iter.next() }
        }
        Ok(iter.status()?)
    }
}
