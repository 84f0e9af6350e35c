//! Writes a table: entries in, file and [`TableMeta`] out.
//!
//! Data blocks go to the file as they fill; filter partitions, index partitions and what follows are
//! kept until the end (about a hundredth of the data). The file is complete and synced only when
//! [`TableBuilder::finish`] returned; a builder dropped before leaves a file nothing refers to.

use std::cmp::Ordering;
use std::path::PathBuf;
use std::sync::Arc;

use crate::checksum::Digester;
use crate::error::{Error, IoContext, Result};
use crate::internal_key::{InternalKey, Kind, SEQUENCE_BELOW_ALL, shortest_separator};
use crate::perf::{self, Count};
use crate::sstable::block_builder::BlockBuilder;
use crate::sstable::filter;
use crate::sstable::format::{
    BLOCK_RAW_BYTES_MAX, BlockKind, Codec, FOOTER_BYTES, Footer, Handle, TRAILER_BYTES, trailer,
};
use crate::sstable::properties::Properties;
use crate::sstable::top::{self, TopEntry};
use crate::sstable::{QUANTILES, TableMeta, entry_digest};
use crate::types::FileNumber;
use crate::vfs::VfsFile;

/// Names the writer in the properties; raised when it lays tables out differently within one format.
const CREATOR: &[u8] = b"lsm-store 1";

/// Bytes collected before they are written.
const WRITE_BYTES: usize = 256 * 1024;

/// A block is tombstone-dense with this many deletes…
const DENSE_DELETES: u64 = 100;
/// … or if at least half of its entries are deletes.
const DENSE_DIVISOR: u64 = 2;

/// How tables are laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableLayout {
    pub(crate) block_bytes: usize,
    pub(crate) restart_interval: usize,
    pub(crate) index_partition_bytes: usize,
    pub(crate) filter_bits_per_key: usize,
    pub(crate) codec: Codec,
}

/// An index partition that is complete but not written yet.
#[derive(Debug)]
struct Partition {
    index: Vec<u8>,
    filter: Vec<u8>,
    last_key: Vec<u8>,
    entries: u64,
    min_sequence: u64,
    max_sequence: u64,
}

/// What is counted per index partition.
#[derive(Debug)]
struct PartitionCounts {
    entries: u64,
    min_sequence: u64,
    max_sequence: u64,
}

impl PartitionCounts {
    const EMPTY: Self = Self { entries: 0, min_sequence: u64::MAX, max_sequence: 0 };
}

/// See the module.
#[derive(Debug)]
pub(crate) struct TableBuilder {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    layout: TableLayout,
    // What was written, and what waits to be.
    written: u64,
    buffer: Vec<u8>,
    digester: Digester,
    // The open data block and index partition.
    data: BlockBuilder,
    data_deletes: u64,
    index: BlockBuilder,
    /// Handle of the last data block: its separator needs the next key.
    pending: Option<Handle>,
    hashes: Vec<u64>,
    counts: PartitionCounts,
    partitions: Vec<Partition>,
    // The last entry.
    last_key: Vec<u8>,
    last_sequence: u64,
    meta: TableMeta,
    properties: Properties,
    superseded_at: Vec<u64>,
    scratch: Vec<u8>,
}

impl TableBuilder {
    /// Writes into `file`, which must be empty.
    pub(crate) fn new(
        file: Arc<dyn VfsFile>,
        path: PathBuf,
        number: FileNumber,
        uid: u128,
        partition: u8,
        layout: TableLayout,
    ) -> Self {
        let none = InternalKey { user_key: Vec::new(), sequence: 0 };
        let meta = TableMeta {
            partition,
            number,
            uid,
            len: 0,
            digest: 0,
            smallest: none.clone(),
            largest: none.clone(),
            min_sequence: u64::MAX,
            max_sequence: 0,
            entries: 0,
            deletes: 0,
            superseded: 0,
            superseded_at: [0; QUANTILES],
            kv_digest: 0,
        };
        let properties = Properties {
            uid,
            partition,
            entries: 0,
            deletes: 0,
            raw_key_bytes: 0,
            raw_value_bytes: 0,
            smallest: none.clone(),
            largest: none,
            min_sequence: 0,
            max_sequence: 0,
            kv_digest: 0,
            superseded: 0,
            superseded_at: [0; QUANTILES],
            tombstone_dense_blocks: 0,
            codec: layout.codec as u64,
            data_blocks: 0,
            creator: CREATOR.to_vec(),
        };
        Self {
            file,
            path,
            layout,
            written: 0,
            buffer: Vec::new(),
            digester: Digester::new(),
            data: BlockBuilder::new(layout.restart_interval),
            data_deletes: 0,
            index: BlockBuilder::new(layout.restart_interval),
            pending: None,
            hashes: Vec::new(),
            counts: PartitionCounts::EMPTY,
            partitions: Vec::new(),
            last_key: Vec::new(),
            last_sequence: 0,
            meta,
            properties,
            superseded_at: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// About how large the file gets, from what was added so far.
    pub(crate) fn estimated_bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64 + self.data.estimated_bytes() as u64
    }

    /// Adds the next entry.
    pub(crate) fn add(
        &mut self,
        key: &[u8],
        sequence: u64,
        kind: Kind,
        value: &[u8],
    ) -> Result<()> {
        let digest = entry_digest(&mut self.scratch, key, sequence, kind, value);
        self.add_digested(key, sequence, kind, value, digest)
    }

    /// Adds the next entry. `digest` is its [`entry_digest`] as computed when it was read: what the table
    /// records is then what came out of its source, not what arrived here.
    pub(crate) fn add_digested(
        &mut self,
        key: &[u8],
        sequence: u64,
        kind: Kind,
        value: &[u8],
        digest: u64,
    ) -> Result<()> {
        let first = self.meta.entries == 0;
        let order = self.last_key.as_slice().cmp(key);
        let new_key = first || order == Ordering::Less;
        let rises = new_key || order == Ordering::Equal && sequence < self.last_sequence;
        if !rises {
            let detail = format!(
                "it is not written: a table it is made from is damaged, its keys do not rise \
                 (sequence number {sequence} after {})",
                self.last_sequence
            );
            return Err(Error::corruption(&self.path, self.written, detail));
        }
        if let Some(handle) = self.pending.take() {
            self.add_index_entry(handle, Some((key, new_key)))?;
        }
        if new_key {
            self.hashes.push(filter::key_hash(key));
        }
        if kind == Kind::Delete {
            self.superseded_at.push(sequence);
            self.meta.deletes += 1;
            self.data_deletes += 1;
        } else if !new_key {
            self.superseded_at.push(self.last_sequence);
        }
        if first {
            self.meta.smallest = InternalKey { user_key: key.to_vec(), sequence };
        }
        self.meta.entries += 1;
        self.meta.min_sequence = self.meta.min_sequence.min(sequence);
        self.meta.max_sequence = self.meta.max_sequence.max(sequence);
        self.counts.entries += 1;
        self.counts.min_sequence = self.counts.min_sequence.min(sequence);
        self.counts.max_sequence = self.counts.max_sequence.max(sequence);
        self.properties.raw_key_bytes += key.len() as u64;
        self.properties.raw_value_bytes += value.len() as u64;
        self.meta.kv_digest = self.meta.kv_digest.wrapping_add(digest);
        self.data.add(key, sequence, kind, value);
        if new_key {
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
        }
        self.last_sequence = sequence;
        if self.data.estimated_bytes() >= self.layout.block_bytes
            || self.data.len() >= usize::from(u16::MAX)
        {
            self.finish_data_block()?;
        }
        Ok(())
    }

    fn finish_data_block(&mut self) -> Result<()> {
        if self.data.is_empty() {
            return Ok(());
        }
        let entries = self.data.len() as u64;
        if self.data_deletes >= DENSE_DELETES || self.data_deletes * DENSE_DIVISOR >= entries {
            self.properties.tombstone_dense_blocks += 1;
        }
        self.data_deletes = 0;
        self.properties.data_blocks += 1;
        let raw = self.data.finish()?;
        self.pending = Some(self.write_block(&raw, BlockKind::Data, self.layout.codec)?);
        Ok(())
    }

    /// Enters a data block into the index, and ends the index partition if it is full and the user key
    /// changes: a user key is in one partition only.
    fn add_index_entry(&mut self, handle: Handle, next: Option<(&[u8], bool)>) -> Result<()> {
        match next {
            Some((_, false)) => self.index.add_handle(&self.last_key, self.last_sequence, handle),
            Some((next, true)) => {
                let separator = shortest_separator(&self.last_key, next);
                self.index.add_handle(&separator, SEQUENCE_BELOW_ALL, handle);
            }
            None => self.index.add_handle(&self.last_key, SEQUENCE_BELOW_ALL, handle),
        }
        let full = self.index.estimated_bytes() >= self.layout.index_partition_bytes;
        if next.is_none_or(|(_, new_key)| new_key && full) {
            let counts = std::mem::replace(&mut self.counts, PartitionCounts::EMPTY);
            self.partitions.push(Partition {
                index: self.index.finish()?,
                filter: filter::build(&self.hashes, self.layout.filter_bits_per_key)?,
                last_key: self.last_key.clone(),
                entries: counts.entries,
                min_sequence: counts.min_sequence,
                max_sequence: counts.max_sequence,
            });
            self.hashes.clear();
        }
        Ok(())
    }

    fn write_block(&mut self, raw: &[u8], kind: BlockKind, codec: Codec) -> Result<Handle> {
        if raw.len() > BLOCK_RAW_BYTES_MAX {
            return Err(Error::TooLarge {
                what: "block",
                size: raw.len() as u64,
                limit: BLOCK_RAW_BYTES_MAX as u64,
            });
        }
        let raw_len = u32::try_from(raw.len()).unwrap_or(u32::MAX);
        let compressed = match codec {
            Codec::Lz4 => Some(lz4_flex::block::compress(raw)),
            Codec::None => None,
        };
        // What does not shrink by an eighth costs more to decompress than it saves.
        let (payload, codec) = match &compressed {
            Some(small) if small.len() < raw.len() - raw.len() / 8 => {
                (small.as_slice(), Codec::Lz4)
            }
            Some(_) | None => (raw, Codec::None),
        };
        let offset = self.written + self.buffer.len() as u64;
        self.buffer.extend_from_slice(payload);
        self.buffer.extend_from_slice(&trailer(
            payload,
            kind,
            codec,
            raw_len,
            self.meta.uid,
            offset,
        ));
        if self.buffer.len() >= WRITE_BYTES {
            self.write_buffer()?;
        }
        Ok(Handle { offset, len: payload.len() as u64 })
    }

    fn write_buffer(&mut self) -> Result<()> {
        self.file.write_all_at(&self.buffer, self.written).context("write", &self.path)?;
        // So that the sync at the end finds little left to write.
        self.file.hint_write_back(self.written, self.buffer.len() as u64);
        self.digester.update(&self.buffer);
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Completes and syncs the file. The directory is the caller's to sync.
    pub(crate) fn finish(mut self) -> Result<TableMeta> {
        assert!(self.meta.entries > 0, "{} would be a table without entries", self.path.display());
        self.finish_data_block()?;
        let data_end = self.written + self.buffer.len() as u64;
        if let Some(handle) = self.pending.take() {
            self.add_index_entry(handle, None)?;
        }
        let partitions = std::mem::take(&mut self.partitions);
        let mut filters = Vec::with_capacity(partitions.len());
        for partition in &partitions {
            filters.push(self.write_block(&partition.filter, BlockKind::Filter, Codec::None)?);
        }
        let mut top = Vec::with_capacity(partitions.len());
        for (partition, filter) in partitions.into_iter().zip(filters) {
            let index = self.write_block(&partition.index, BlockKind::Index, Codec::None)?;
            top.push(TopEntry {
                last_key: partition.last_key,
                index,
                filter,
                entries: partition.entries,
                min_sequence: partition.min_sequence,
                max_sequence: partition.max_sequence,
            });
        }
        let top = self.write_block(&top::encode(&top), BlockKind::Top, Codec::None)?;
        self.meta.largest = InternalKey {
            user_key: std::mem::take(&mut self.last_key),
            sequence: self.last_sequence,
        };
        self.meta.superseded = self.superseded_at.len() as u64;
        self.meta.superseded_at = quantiles(std::mem::take(&mut self.superseded_at));
        let properties = Properties {
            entries: self.meta.entries,
            deletes: self.meta.deletes,
            smallest: self.meta.smallest.clone(),
            largest: self.meta.largest.clone(),
            min_sequence: self.meta.min_sequence,
            max_sequence: self.meta.max_sequence,
            kv_digest: self.meta.kv_digest,
            superseded: self.meta.superseded,
            superseded_at: self.meta.superseded_at,
            ..self.properties.clone()
        };
        let properties =
            self.write_block(&properties.encode(), BlockKind::Properties, Codec::None)?;
        let offset = self.written + self.buffer.len() as u64;
        self.meta.len = offset + FOOTER_BYTES as u64;
        let footer =
            Footer { uid: self.meta.uid, file_len: self.meta.len, top, properties, data_end };
        self.buffer.extend_from_slice(&footer.encode()?);
        self.write_buffer()?;
        assert_eq!(self.written, self.meta.len, "length of {} as written", self.path.display());
        self.meta.digest = self.digester.finish();
        perf::time(Count::SyncNanos, || self.file.sync_all()).context("sync", &self.path)?;
        Ok(self.meta)
    }
}

/// Smallest values at or above each eighth of `values`; zeros if there are none.
fn quantiles(mut values: Vec<u64>) -> [u64; QUANTILES] {
    values.sort_unstable();
    std::array::from_fn(|i| {
        // The i-th quantile is reached once (i + 1) eighths of the values are at or below the floor.
        let rank = (values.len() * (i + 1)).div_ceil(QUANTILES).saturating_sub(1);
        values.get(rank).copied().unwrap_or(0)
    })
}

const _: () = assert!(TRAILER_BYTES == 16, "FORMAT.md says so");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_never_promise_more_garbage_than_there_is() {
        assert_eq!(quantiles(vec![]), [0; 8], "nothing superseded");
        assert_eq!(quantiles((1..=8).collect()), [1, 2, 3, 4, 5, 6, 7, 8], "one each");
        assert_eq!(quantiles(vec![5]), [5; 8], "one value");
        let of_three = quantiles(vec![10, 20, 30]);
        for floor in [0, 10, 20, 30, 40] {
            let really = [10, 20, 30].iter().filter(|v| **v <= floor).count();
            let passed = of_three.iter().filter(|q| **q <= floor).count();
            assert!(3 * passed / 8 <= really, "floor {floor}: {passed} eighths, really {really}");
        }
    }
}
