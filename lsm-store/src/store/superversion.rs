//! What a reader looks at: memtables and tables at one moment.

use std::sync::Arc;

use crate::cache::BlockCache;
use crate::error::Result;
use crate::internal_key::{Kind, head};
use crate::iter::mem::MemIter;
use crate::iter::merge::{MergeIter, Source};
use crate::iter::reading::Reading;
use crate::manifest::version::Version;
use crate::memtable::{MemFound, MemSet};
use crate::perf::{self, Count};
use crate::reads::ReadCount;
use crate::sstable::filter::key_hash;
use crate::types::{Found, SequenceNumber};

/// Memtables and tables. Immutable but for the active memtable, which only grows; replaced as a whole
/// when a memtable is frozen, a flush or a compaction installed.
///
/// Every superversion holds all that later ones hold at or below what was visible when it was made, so a
/// reader may use whichever it loads *after* it has fixed the sequence number it reads at.
#[derive(Debug)]
pub(crate) struct SuperVersion {
    /// Counts the superversions of this store since it was opened.
    pub(crate) generation: u64,
    pub(crate) active: Arc<MemSet>,
    /// Oldest first.
    pub(crate) frozen: Vec<Arc<MemSet>>,
    pub(crate) version: Arc<Version>,
    /// Where reads are counted.
    pub(crate) cache: Arc<BlockCache>,
}

impl SuperVersion {
    /// The value of `key` at `sequence`. Sources from newest to oldest; the first that knows the key
    /// decides, and an error of any before that is an error of the read.
    pub(crate) fn get(&self, partition: usize, key: &[u8], sequence: u64) -> Result<Option<Found>> {
        self.cache.counts().add(ReadCount::Gets, 1);
        if let Some(entry) = self.get_in_memory(partition, key, sequence) {
            return Ok(found(entry.kind, entry.value, entry.sequence));
        }
        let Some(levels) = self.version.partitions.get(partition) else { return Ok(None) };
        let version = levels.get(key, key_hash(key), sequence)?;
        Ok(version.and_then(|v| found(v.kind, v.value, v.sequence)))
    }

    /// [`get`](SuperVersion::get) for many keys; results in the order of the keys. The keys are looked up
    /// in ascending order, so that those in one block share it.
    pub(crate) fn multi_get(
        &self,
        partition: usize,
        keys: &[&[u8]],
        sequence: u64,
    ) -> Result<Vec<Option<Found>>> {
        self.cache.counts().add(ReadCount::Gets, keys.len() as u64);
        let mut results = vec![None; keys.len()];
        let Some(levels) = self.version.partitions.get(partition) else { return Ok(results) };
        let mut order: Vec<(u64, &[u8], &mut Option<Found>)> =
            keys.iter().zip(&mut results).map(|(key, result)| (head(key), *key, result)).collect();
        order.sort_unstable_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        let mut last = Vec::new();
        for (_, key, result) in order {
            *result = match self.get_in_memory(partition, key, sequence) {
                Some(entry) => found(entry.kind, entry.value, entry.sequence),
                None => levels
                    .get_next(key, key_hash(key), sequence, &mut last)?
                    .and_then(|v| found(v.kind, v.value, v.sequence)),
            };
        }
        Ok(results)
    }

    /// What the memtables know of a key, newest first; those without entries are passed over.
    fn get_in_memory(&self, partition: usize, key: &[u8], sequence: u64) -> Option<MemFound> {
        let sets = std::iter::once(&self.active).chain(self.frozen.iter().rev());
        sets.filter_map(|set| set.table(partition)).filter(|table| !table.is_empty()).find_map(
            |table| {
                perf::count(Count::Memtables, 1);
                table.get(key, sequence)
            },
        )
    }

    /// The entries of a partition in order; all that are wanted, and perhaps others.
    pub(crate) fn merge(&self, partition: usize, reading: Reading) -> MergeIter {
        let mut sources = Vec::new();
        for set in std::iter::once(&self.active).chain(self.frozen.iter().rev()) {
            if set.table(partition).is_some_and(|t| !t.is_empty()) {
                sources.push(Source::Mem(MemIter::new(Arc::clone(set), partition)));
            }
        }
        if let Some(levels) = self.version.partitions.get(partition) {
            levels.sources(reading, &mut sources);
        }
        MergeIter::new(sources)
    }
}

fn found(kind: Kind, value: bytes::Bytes, sequence: u64) -> Option<Found> {
    match kind {
        Kind::Value => Some(Found { value, sequence: SequenceNumber(sequence) }),
        Kind::Delete => None,
    }
}
