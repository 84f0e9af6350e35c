//! fjall. A write hands its journal record to the operating system before it returns (the default,
//! `manual_journal_persist` off); a synced one is followed by `persist(SyncData)`, which is `fdatasync`.

use std::path::Path;

use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry,
};
use fjall::{
    CompressionType, Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode, Readable as _,
    Snapshot,
};
use lsm_store::bench::{Durability, Engine, Key, Outcome, Reader, Settings};

pub(crate) struct Fjall {
    db: Database,
    data: Keyspace,
}

impl std::fmt::Debug for Fjall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fjall").finish_non_exhaustive()
    }
}

impl Engine for Fjall {
    const NAME: &'static str = "fjall";

    type Reader<'a> = FjallReader<'a>;

    fn open(dir: &Path, settings: &Settings) -> Outcome<Self> {
        let db = Database::builder(dir)
            .cache_size(settings.cache_bytes as u64)
            .worker_threads(settings.background_threads)
            .open()?;
        let compression =
            if settings.compressed { CompressionType::Lz4 } else { CompressionType::None };
        let bits = BloomConstructionPolicy::BitsPerKey(settings.filter_bits_per_key as f32);
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(settings.memtable_bytes as u64)
                .data_block_size_policy(BlockSizePolicy::all(settings.block_bytes as u32))
                .data_block_compression_policy(CompressionPolicy::all(compression))
                .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(bits)))
        };
        let data = db.keyspace("data", options)?;
        Ok(Self { db, data })
    }

    #[inline]
    fn put(&self, key: &Key, value: &[u8], durability: Durability) -> Outcome<()> {
        self.data.insert(key, value)?;
        match durability {
            Durability::Buffered => Ok(()),
            Durability::Sync => Ok(self.db.persist(PersistMode::SyncData)?),
        }
    }

    #[inline]
    fn delete(&self, key: &Key) -> Outcome<()> {
        Ok(self.data.remove(key.as_slice())?)
    }

    fn put_batch(&self, keys: &[Key], values: &[u8]) -> Outcome<()> {
        let mut batch = self.db.batch();
        for (key, value) in keys.iter().zip(values.chunks_exact(values.len() / keys.len())) {
            batch.insert(&self.data, key.as_slice(), value);
        }
        Ok(batch.commit()?)
    }

    fn reader(&self, live: bool) -> Outcome<FjallReader<'_>> {
        Ok(FjallReader { data: &self.data, snapshot: (!live).then(|| self.db.snapshot()) })
    }

    fn flush(&self) -> Outcome<()> {
        Ok(self.data.rotate_memtable_and_wait()?)
    }

    fn compact(&mut self) -> Outcome<()> {
        self.data.rotate_memtable_and_wait()?;
        Ok(self.data.major_compact()?)
    }

    fn close(self) -> Outcome<()> {
        Ok(())
    }
}

pub(crate) struct FjallReader<'a> {
    data: &'a Keyspace,
    snapshot: Option<Snapshot>,
}

impl Reader for FjallReader<'_> {
    #[inline]
    fn get(&mut self, key: &Key, show: impl FnOnce(&[u8])) -> Outcome<bool> {
        let found = self.data.get(key)?;
        let there = found.is_some();
        if let Some(value) = found {
            show(&value);
        }
        Ok(there)
    }

    fn seek(&mut self, from: &Key, mut show: impl FnMut(&[u8], &[u8]) -> bool) -> Outcome<()> {
        let range = from.as_slice()..;
        let entries = match &self.snapshot {
            Some(snapshot) => snapshot.range(self.data, range),
            None => self.data.range(range),
        };
        for entry in entries {
            let (key, value) = entry.into_inner()?;
            if !show(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn scan(&mut self, backward: bool, show: impl FnMut(&[u8], &[u8])) -> Outcome<()> {
        let entries = match &self.snapshot {
            Some(snapshot) => snapshot.iter(self.data),
            None => self.data.iter(),
        };
        if backward { walk(entries.rev(), show) } else { walk(entries, show) }
    }
}

fn walk(entries: impl Iterator<Item = Guard>, mut show: impl FnMut(&[u8], &[u8])) -> Outcome<()> {
    for entry in entries {
        let (key, value) = entry.into_inner()?;
        show(&key, &value);
    }
    Ok(())
}
