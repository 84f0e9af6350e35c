//! Data and index blocks in memory: parsing with every bound checked, restart points, decoding of entries.
//!
//! ```text
//! header 16: base sequence u64 | entries u32 | restarts u16 | prefix length u8 | flags u8
//! common prefix | entries… | zero padding to 8 | heads u64 × restarts | offsets u16/u32 × restarts
//! tail 8: heads offset u32 | hash length u16 (0) | reserved u16 (0)
//! entry: shared varint | unshared varint | sequence − base varint | length<<3 | kind varint | suffix | value
//! ```
//!
//! Walks over the entries are in [`block_iter`](super::block_iter).

#![deny(clippy::indexing_slicing)]

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::block_builder::{FLAG_PAD_SHIFT, FLAG_WIDE, FLAGS_KNOWN, HEADER_BYTES, TAIL_BYTES};
use super::format::BlockKind;
use crate::coding::{DecodeError, Reader};
use crate::error::{Error, Result};
use crate::internal_key::Kind;
use crate::types::SequenceNumber;

/// A parsed block; immutable and shared.
#[derive(Debug)]
pub(crate) struct Block {
    pub(super) raw: Bytes,
    path: Arc<Path>,
    /// Offset in the file, for errors.
    offset: u64,
    pub(super) is_index: bool,
    base_sequence: u64,
    entry_count: u32,
    pub(super) restart_count: usize,
    pub(super) prefix: Range<usize>,
    /// Entries are in this range of `raw`.
    pub(super) entries: Range<usize>,
    heads_offset: usize,
    offsets_offset: usize,
    wide: bool,
}

impl Block {
    /// Checks the frame of a block: everything but the entries themselves, which are checked when read.
    pub(crate) fn parse(
        raw: Bytes,
        kind: BlockKind,
        path: &Arc<Path>,
        offset: u64,
    ) -> Result<Self> {
        let corrupt = |detail: &str| Error::corruption(path, offset, detail);
        let decode = |e: DecodeError| corrupt(e.what);
        let Some((body, tail)) = raw.split_last_chunk::<TAIL_BYTES>() else {
            return Err(corrupt("block shorter than its tail"));
        };
        let mut header = Reader::new(body);
        let base_sequence = header.u64().map_err(decode)?;
        let entry_count = header.u32().map_err(decode)?;
        let restart_count = usize::from(header.u16().map_err(decode)?);
        let prefix_len = usize::from(header.u8().map_err(decode)?);
        let flags = header.u8().map_err(decode)?;
        let mut tail = Reader::new(tail);
        let heads_offset = tail.u32().map_err(decode)?;
        let hash_and_reserved = tail.u32().map_err(decode)?;
        if flags & !FLAGS_KNOWN != 0 || hash_and_reserved != 0 {
            return Err(corrupt("reserved parts of a block are not zero"));
        }
        if entry_count == 0 || restart_count == 0 {
            return Err(corrupt("block without entries"));
        }
        let wide = flags & FLAG_WIDE != 0;
        let pad = usize::from(flags >> FLAG_PAD_SHIFT);
        let heads_offset = usize::try_from(heads_offset).unwrap_or(usize::MAX);
        let entries_start = HEADER_BYTES + prefix_len;
        let entries_end = heads_offset.checked_sub(pad).filter(|end| *end > entries_start);
        let offsets_offset = heads_offset.checked_add(restart_count * 8);
        let end =
            offsets_offset.and_then(|o| o.checked_add(restart_count * if wide { 4 } else { 2 }));
        let (Some(entries_end), Some(offsets_offset), true) =
            (entries_end, offsets_offset, end == Some(body.len()))
        else {
            return Err(corrupt("parts of a block do not add up to its length"));
        };
        if body.get(entries_end..heads_offset).is_none_or(|pad| pad.iter().any(|b| *b != 0)) {
            return Err(corrupt("padding of a block is not zero"));
        }
        let block = Self {
            base_sequence,
            entry_count,
            restart_count,
            prefix: HEADER_BYTES..entries_start,
            entries: entries_start..entries_end,
            heads_offset,
            offsets_offset,
            wide,
            is_index: kind == BlockKind::Index,
            path: Arc::clone(path),
            offset,
            raw,
        };
        let mut previous = None;
        for restart in 0..restart_count {
            let at = block.restart_offset(restart);
            let in_order = previous.map_or(at == entries_start, |p| at > p);
            if !in_order || at >= entries_end {
                return Err(block.corrupt("restart points out of order"));
            }
            previous = Some(at);
        }
        Ok(block)
    }

    /// Bytes of memory the block takes.
    pub(crate) fn weight(&self) -> usize {
        self.raw.len() + size_of::<Self>()
    }

    pub(crate) const fn entry_count(&self) -> u32 {
        self.entry_count
    }

    pub(crate) fn corrupt(&self, detail: impl Into<String>) -> Error {
        Error::corruption(&self.path, self.offset, detail)
    }

    #[inline]
    pub(super) fn prefix(&self) -> &[u8] {
        self.raw.get(self.prefix.clone()).unwrap_or_default()
    }

    /// Within the block by the check in `parse`; 0 (refused by every user) otherwise.
    #[inline]
    pub(super) fn restart_offset(&self, restart: usize) -> usize {
        let width = if self.wide { 4 } else { 2 };
        let bytes = self.raw.get(self.offsets_offset + restart * width..).unwrap_or_default();
        if self.wide {
            bytes.first_chunk().map_or(0, |b| usize::try_from(u32::from_le_bytes(*b)).unwrap_or(0))
        } else {
            bytes.first_chunk().map_or(0, |b| usize::from(u16::from_le_bytes(*b)))
        }
    }

    /// How many restart points have a head below `target`.
    pub(super) fn restarts_below(&self, target: u64) -> usize {
        let heads = self.raw.get(self.heads_offset..self.offsets_offset).unwrap_or_default();
        let (heads, _) = heads.as_chunks::<8>();
        let below = |at: usize| heads.get(at).is_some_and(|h| u64::from_le_bytes(*h) < target);
        // Halves without a branch to mispredict: each step moves by a comparison's result.
        let (mut start, mut len) = (0, heads.len());
        while len > 1 {
            let half = len / 2;
            start += if below(start + half - 1) { half } else { 0 };
            len -= half;
        }
        start + usize::from(below(start))
    }

    pub(super) fn restart_head(&self, restart: usize) -> u64 {
        let bytes = self.raw.get(self.heads_offset + restart * 8..).unwrap_or_default();
        bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
    }

    /// The entry at `at`: its parts, and the offset of the next one.
    #[inline]
    pub(super) fn entry_at(&self, at: usize) -> Result<(RawEntry, usize)> {
        let bytes = self.raw.get(at..self.entries.end).unwrap_or_default();
        let mut reader = Reader::new(bytes);
        let fields = (|| -> std::result::Result<_, DecodeError> {
            let shared = reader.varint()?;
            let unshared = reader.length()?;
            let delta = reader.varint()?;
            let length_kind = reader.varint()?;
            let suffix_start = reader.position();
            reader.bytes(unshared)?;
            let value_len = usize::try_from(length_kind >> 3).unwrap_or(usize::MAX);
            let value_start = reader.position();
            reader.bytes(value_len)?;
            Ok((
                shared,
                delta,
                length_kind & 7,
                suffix_start..value_start,
                value_start..reader.position(),
            ))
        })();
        let (shared, delta, kind, suffix, value) =
            fields.map_err(|e| self.corrupt(format!("entry: {}", e.what)))?;
        let sequence =
            self.base_sequence.checked_add(delta).filter(|s| *s <= SequenceNumber::MAX.0);
        let (Some(kind), Some(sequence)) = (Kind::from_number(kind), sequence) else {
            return Err(
                self.corrupt("entry of unknown kind or with a sequence number above 56 bits")
            );
        };
        let shared = usize::try_from(shared).unwrap_or(usize::MAX);
        let next = at + value.end;
        let suffix = at + suffix.start..at + suffix.end;
        let value = at + value.start..at + value.end;
        Ok((RawEntry { shared, sequence, kind, suffix, value }, next))
    }
}

/// An entry as it is encoded; all ranges are of the block.
#[derive(Clone, Debug)]
pub(super) struct RawEntry {
    pub(super) shared: usize,
    pub(super) sequence: u64,
    pub(super) kind: Kind,
    pub(super) suffix: Range<usize>,
    pub(super) value: Range<usize>,
}
