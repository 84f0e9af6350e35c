//! redb, a B+tree. `Durability::Immediate` is a synced write. Its unsynced one, `Durability::None`, is weaker than the
//! others': it is only in memory until the next immediate commit, so the end of the process loses it. It has no
//! filters, no compression and no background threads. While nothing is written one read transaction serves all reads.

use std::path::Path;

use lsm_store::bench::{self, Engine, Key, Outcome, Reader, Settings};
use redb::{
    Builder, Database, Durability, ReadOnlyTable, ReadableDatabase as _, ReadableTable as _,
    TableDefinition,
};

const DATA: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("data");

pub(crate) struct Redb(Database);

impl std::fmt::Debug for Redb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redb").finish_non_exhaustive()
    }
}

impl Redb {
    fn write(
        &self,
        durability: Durability,
        change: impl FnOnce(&mut redb::Table<'_, &[u8], &[u8]>) -> Result<(), redb::StorageError>,
    ) -> Outcome<()> {
        let mut transaction = self.0.begin_write()?;
        transaction.set_durability(durability)?;
        change(&mut transaction.open_table(DATA)?)?;
        Ok(transaction.commit()?)
    }
}

impl Engine for Redb {
    const NAME: &'static str = "redb";

    type Reader<'a> = RedbReader<'a>;

    fn open(dir: &Path, settings: &Settings) -> Outcome<Self> {
        let file = dir.join("data.redb");
        let fresh = !file.exists();
        let db = Self(Builder::new().set_cache_size(settings.cache_bytes).create(file)?);
        if fresh {
            db.write(Durability::Immediate, |_| Ok(()))?;
        }
        Ok(db)
    }

    #[inline]
    fn put(&self, key: &Key, value: &[u8], durability: bench::Durability) -> Outcome<()> {
        let durability = match durability {
            bench::Durability::Buffered => Durability::None,
            bench::Durability::Sync => Durability::Immediate,
        };
        self.write(durability, |table| table.insert(key.as_slice(), value).map(drop))
    }

    #[inline]
    fn delete(&self, key: &Key) -> Outcome<()> {
        self.write(Durability::None, |table| table.remove(key.as_slice()).map(drop))
    }

    fn put_batch(&self, keys: &[Key], values: &[u8]) -> Outcome<()> {
        self.write(Durability::None, |table| {
            for (key, value) in keys.iter().zip(values.chunks_exact(values.len() / keys.len())) {
                table.insert(key.as_slice(), value)?;
            }
            Ok(())
        })
    }

    fn reader(&self, live: bool) -> Outcome<RedbReader<'_>> {
        let held = if live { None } else { Some(self.0.begin_read()?.open_table(DATA)?) };
        Ok(RedbReader { db: &self.0, held })
    }

    fn flush(&self) -> Outcome<()> {
        self.write(Durability::Immediate, |_| Ok(()))
    }

    fn compact(&mut self) -> Outcome<()> {
        self.0.compact()?;
        Ok(())
    }

    fn close(self) -> Outcome<()> {
        Ok(self.0.close()?)
    }
}

pub(crate) struct RedbReader<'a> {
    db: &'a Database,
    held: Option<ReadOnlyTable<&'static [u8], &'static [u8]>>,
}

impl RedbReader<'_> {
    fn fresh(&self) -> Outcome<ReadOnlyTable<&'static [u8], &'static [u8]>> {
        Ok(self.db.begin_read()?.open_table(DATA)?)
    }
}

impl Reader for RedbReader<'_> {
    #[inline]
    fn get(&mut self, key: &Key, show: impl FnOnce(&[u8])) -> Outcome<bool> {
        let found = match &self.held {
            Some(table) => table.get(key.as_slice())?,
            None => self.fresh()?.get(key.as_slice())?,
        };
        let there = found.is_some();
        if let Some(value) = found {
            show(value.value());
        }
        Ok(there)
    }

    fn seek(&mut self, from: &Key, mut show: impl FnMut(&[u8], &[u8]) -> bool) -> Outcome<()> {
        let fresh;
        let table = match &self.held {
            Some(table) => table,
            None => {
                fresh = self.fresh()?;
                &fresh
            }
        };
        for entry in table.range(from.as_slice()..)? {
            let (key, value) = entry?;
            if !show(key.value(), value.value()) {
                break;
            }
        }
        Ok(())
    }

    fn scan(&mut self, backward: bool, mut show: impl FnMut(&[u8], &[u8])) -> Outcome<()> {
        let fresh = self.fresh()?;
        let mut entries = fresh.iter()?;
        while let Some(entry) = if backward { entries.next_back() } else { entries.next() } {
            let (key, value) = entry?;
            show(key.value(), value.value());
        }
        Ok(())
    }
}
