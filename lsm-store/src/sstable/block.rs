//! Data and index blocks in memory: parsing with every bound checked, decoding of entries, lookups.
//!
//! ```text
//! header 16: base sequence u64 | entries u32 | restarts u16 | prefix length u8 | flags u8
//! common prefix | entries… | zero padding to 8 | heads u64 × restarts | offsets u16/u32 × restarts
//! tail 8: heads offset u32 | hash length u16 (0) | reserved u16 (0)
//! entry: shared varint | unshared varint | sequence − base varint | length<<3 | kind varint | suffix | value
//! ```
//!
//! The cache holds a block as its bytes and nothing else: a lookup works out the layout again from
//! header and tail, which lie beside what it reads anyway, and so misses the processor's caches once
//! less than through a parsed form elsewhere. Walks over the entries are in
//! [`block_iter`](super::block_iter).
//!
//! Bytes of a block come in a buffer of [`read_block`](super::format::read_block), which has a trailer or
//! room for one behind them.

#![deny(clippy::indexing_slicing)]

use std::cmp::Ordering;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::block_builder::{FLAG_PAD_SHIFT, FLAG_WIDE, FLAGS_KNOWN, HEADER_BYTES, TAIL_BYTES};
use super::format::{BlockKind, without_trailer};
use super::key_index::strip;
use crate::coding::{DecodeError, Reader};
use crate::error::{Error, Result};
use crate::internal_key::{Kind, compare, head};
use crate::types::SequenceNumber;

/// A value at least this long is handed out as a share of its block's memory; a shorter one is copied,
/// which costs less than the bookkeeping and holds no block in memory.
const SHARED_VALUE_BYTES: usize = 4096;

/// What does not decode, in words.
type Unsound<T> = std::result::Result<T, &'static str>;

/// Where the parts of a block are.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    base_sequence: u64,
    entry_count: u32,
    pub(super) restart_count: usize,
    pub(super) prefix: Range<usize>,
    pub(super) entries: Range<usize>,
    heads: Range<usize>,
    offsets: Range<usize>,
    wide: bool,
}

/// An entry as it is encoded; ranges are of the block.
#[derive(Clone, Debug)]
pub(super) struct RawEntry {
    pub(super) shared: usize,
    pub(super) sequence: u64,
    pub(super) kind: Kind,
    pub(super) suffix: Range<usize>,
    pub(super) value: Range<usize>,
}

/// What a lookup in a block found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FoundInBlock {
    pub(crate) sequence: u64,
    pub(crate) kind: Kind,
    /// Where in the block the value is.
    pub(crate) value: Range<usize>,
}

impl Layout {
    /// Every range is checked to be within the block; restart points and entries are not looked at.
    fn of(raw: &[u8]) -> Unsound<Self> {
        let (Some(header), Some((body, tail))) =
            (raw.first_chunk::<HEADER_BYTES>(), raw.split_last_chunk::<TAIL_BYTES>())
        else {
            return Err("block shorter than its header and tail");
        };
        let [b0, b1, b2, b3, b4, b5, b6, b7, e0, e1, e2, e3, r0, r1, prefix_len, flags] = *header;
        let [h0, h1, h2, h3, hash_and_reserved @ ..] = *tail;
        if flags & !FLAGS_KNOWN != 0 || hash_and_reserved != [0; 4] {
            return Err("reserved parts of a block are not zero");
        }
        let entry_count = u32::from_le_bytes([e0, e1, e2, e3]);
        let restart_count = usize::from(u16::from_le_bytes([r0, r1]));
        if entry_count == 0 || restart_count == 0 {
            return Err("block without entries");
        }
        let wide = flags & FLAG_WIDE != 0;
        let pad = usize::from(flags >> FLAG_PAD_SHIFT);
        let heads = usize::try_from(u32::from_le_bytes([h0, h1, h2, h3])).unwrap_or(usize::MAX);
        let entries_start = HEADER_BYTES + usize::from(prefix_len);
        let entries_end = heads.checked_sub(pad).filter(|end| *end > entries_start);
        let offsets = heads.checked_add(restart_count * 8);
        let end = offsets.and_then(|o| o.checked_add(restart_count * if wide { 4 } else { 2 }));
        let (Some(entries_end), Some(offsets), true) =
            (entries_end, offsets, end == Some(body.len()))
        else {
            return Err("parts of a block do not add up to its length");
        };
        Ok(Self {
            base_sequence: u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]),
            entry_count,
            restart_count,
            prefix: HEADER_BYTES..entries_start,
            entries: entries_start..entries_end,
            heads: heads..offsets,
            offsets: offsets..body.len(),
            wide,
        })
    }

    /// What [`Layout::of`] does not look at, but for the entries themselves: they are checked when read.
    fn check(&self, raw: &[u8]) -> Unsound<()> {
        let pad = raw.get(self.entries.end..self.heads.start);
        if pad.is_none_or(|pad| pad.iter().any(|b| *b != 0)) {
            return Err("padding of a block is not zero");
        }
        let mut previous = None;
        for restart in 0..self.restart_count {
            let at = self.restart_offset_in(raw, restart);
            let in_order = previous.map_or(at == self.entries.start, |p| at > p);
            if !in_order || at >= self.entries.end {
                return Err("restart points out of order");
            }
            previous = Some(at);
        }
        Ok(())
    }

    fn prefix_of<'b>(&self, raw: &'b [u8]) -> &'b [u8] {
        raw.get(self.prefix.clone()).unwrap_or_default()
    }

    fn heads_of<'b>(&self, raw: &'b [u8]) -> &'b [[u8; 8]] {
        raw.get(self.heads.clone()).unwrap_or_default().as_chunks().0
    }

    /// Within the block by [`Layout::check`]; 0 (refused by every user) otherwise.
    fn restart_offset_in(&self, raw: &[u8], restart: usize) -> usize {
        let offsets = raw.get(self.offsets.clone()).unwrap_or_default();
        if self.wide {
            let offset = offsets.as_chunks().0.get(restart).copied().unwrap_or_default();
            usize::try_from(u32::from_le_bytes(offset)).unwrap_or(0)
        } else {
            let offset = offsets.as_chunks().0.get(restart).copied().unwrap_or_default();
            usize::from(u16::from_le_bytes(offset))
        }
    }

    /// The entry at `at`: its parts, and the offset of the next one.
    #[inline]
    fn entry_in(&self, raw: &[u8], at: usize) -> Unsound<(RawEntry, usize)> {
        let bytes = raw.get(at..self.entries.end).unwrap_or_default();
        let mut reader = Reader::new(bytes);
        let what = |e: DecodeError| e.what;
        let shared = reader.varint().map_err(what)?;
        let unshared = reader.length().map_err(what)?;
        let delta = reader.varint().map_err(what)?;
        let length_kind = reader.varint().map_err(what)?;
        let suffix = at + reader.position();
        reader.bytes(unshared).map_err(what)?;
        let value = at + reader.position();
        reader.bytes(usize::try_from(length_kind >> 3).unwrap_or(usize::MAX)).map_err(what)?;
        let next = at + reader.position();
        let sequence =
            self.base_sequence.checked_add(delta).filter(|s| *s <= SequenceNumber::MAX.0);
        let (Some(kind), Some(sequence)) = (Kind::from_number(length_kind & 7), sequence) else {
            return Err("unknown kind, or a sequence number above 56 bits");
        };
        let shared = usize::try_from(shared).unwrap_or(usize::MAX);
        let entry = RawEntry { shared, sequence, kind, suffix: suffix..value, value: value..next };
        Ok((entry, next))
    }

    /// How many restart points have a head below `target`.
    fn restarts_below_in(&self, raw: &[u8], target: u64) -> usize {
        self.heads_of(raw).partition_point(|head| u64::from_le_bytes(*head) < target)
    }

    /// The last restart point whose internal key (after the common prefix) is at or before the target;
    /// the first one if all are after it.
    fn last_restart_at_or_before(&self, raw: &[u8], rest: &[u8], sequence: u64) -> Unsound<usize> {
        let heads = self.heads_of(raw);
        let target = head(rest);
        let below = self.restarts_below_in(raw, target);
        let tied = heads.get(below..).unwrap_or_default();
        let (mut low, mut high) = (below, below);
        if tied.first().is_some_and(|head| u64::from_le_bytes(*head) == target) {
            high += tied.partition_point(|head| u64::from_le_bytes(*head) == target);
        }
        while low < high {
            let middle = low + (high - low) / 2;
            let (entry, _) = self.entry_in(raw, self.restart_offset_in(raw, middle))?;
            let key = raw.get(entry.suffix).unwrap_or_default();
            if compare((key, entry.sequence), (rest, sequence)) == Ordering::Greater {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low.saturating_sub(1))
    }

    /// The newest entry of `key` at or below `sequence`.
    ///
    /// Keys are not put together: while the walk is before the target, `agreed` is how many bytes the
    /// key it stands on has in common with it. An entry that shares more than that with its predecessor
    /// differs from the target where the predecessor does, and is before it too.
    fn find(&self, raw: &[u8], key: &[u8], sequence: u64) -> Unsound<Option<FoundInBlock>> {
        let Some(rest) = strip(key, self.prefix_of(raw)) else { return Ok(None) };
        let restart = self.last_restart_at_or_before(raw, rest, sequence)?;
        let mut at = self.restart_offset_in(raw, restart);
        let (mut agreed, mut len) = (0, 0);
        while at < self.entries.end {
            let (entry, next) = self.entry_in(raw, at)?;
            if entry.shared > len {
                return Err("shares more with its predecessor than there is");
            }
            let suffix = raw.get(entry.suffix).unwrap_or_default();
            len = entry.shared + suffix.len();
            if entry.shared <= agreed {
                let wanted = rest.get(entry.shared..).unwrap_or_default();
                let common = suffix.iter().zip(wanted).take_while(|(a, b)| a == b).count();
                agreed = entry.shared + common;
                match (suffix.get(common), wanted.get(common)) {
                    (None, None) if entry.sequence <= sequence => {
                        let RawEntry { sequence, kind, value, .. } = entry;
                        return Ok(Some(FoundInBlock { sequence, kind, value }));
                    }
                    // A newer version than wanted, or a key before the target.
                    (None, _) => {}
                    (Some(_), None) => return Ok(None),
                    (Some(own), Some(target)) if own > target => return Ok(None),
                    (Some(_), Some(_)) => {}
                }
            }
            at = next;
        }
        Ok(None)
    }
}

/// Looks up a key in a block that was parsed before, without parsing it again: the newest entry at or
/// below `sequence`.
///
/// # Errors
/// What does not decode, in words.
pub(crate) fn find(
    buffer: &[u8],
    key: &[u8],
    sequence: u64,
) -> std::result::Result<Option<FoundInBlock>, &'static str> {
    let raw = without_trailer(buffer);
    Layout::of(raw)?.find(raw, key, sequence)
}

/// A value of a block: a copy, or a share of its memory if it is long.
pub(crate) fn value_bytes(buffer: &Arc<[u8]>, value: Range<usize>) -> Bytes {
    if value.len() >= SHARED_VALUE_BYTES {
        return Bytes::from_owner(Arc::clone(buffer)).slice(value);
    }
    Bytes::copy_from_slice(buffer.get(value).unwrap_or_default())
}

/// A parsed block; its bytes are immutable and shared.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// The block and room for a trailer behind it.
    pub(super) raw: Arc<[u8]>,
    path: Arc<Path>,
    /// Offset in the file, for errors.
    offset: u64,
    pub(super) is_index: bool,
    layout: Layout,
}

/// A block has the parts that its layout tells the places of.
impl Deref for Block {
    type Target = Layout;

    fn deref(&self) -> &Layout {
        &self.layout
    }
}

impl Block {
    /// Checks the frame of a block: everything but the entries themselves, which are checked when read.
    ///
    /// # Errors
    /// `Corruption` at the block's offset.
    pub(crate) fn parse(
        raw: Arc<[u8]>,
        kind: BlockKind,
        path: &Arc<Path>,
        offset: u64,
    ) -> Result<Self> {
        let block = without_trailer(&raw);
        let layout = Layout::of(block).and_then(|layout| layout.check(block).map(|()| layout));
        Self::with(raw, layout, kind, path, offset)
    }

    /// As [`Block::parse`], for bytes that went through it before.
    ///
    /// # Errors
    /// `Corruption` at the block's offset.
    pub(crate) fn parsed_before(
        raw: Arc<[u8]>,
        kind: BlockKind,
        path: &Arc<Path>,
        offset: u64,
    ) -> Result<Self> {
        let layout = Layout::of(without_trailer(&raw));
        Self::with(raw, layout, kind, path, offset)
    }

    fn with(
        raw: Arc<[u8]>,
        layout: Unsound<Layout>,
        kind: BlockKind,
        path: &Arc<Path>,
        offset: u64,
    ) -> Result<Self> {
        let layout = layout.map_err(|detail| Error::corruption(path, offset, detail))?;
        let is_index = kind == BlockKind::Index;
        Ok(Self { raw, path: Arc::clone(path), offset, is_index, layout })
    }

    /// The bytes, for the cache.
    pub(crate) fn into_raw(self) -> Arc<[u8]> {
        self.raw
    }

    pub(crate) const fn entry_count(&self) -> u32 {
        self.layout.entry_count
    }

    pub(crate) fn corrupt(&self, detail: impl Into<String>) -> Error {
        Error::corruption(&self.path, self.offset, detail)
    }

    #[inline]
    pub(super) fn prefix(&self) -> &[u8] {
        self.layout.prefix_of(&self.raw)
    }

    /// A value: a copy, or a share of the block's memory if it is long.
    pub(super) fn value_bytes(&self, value: Range<usize>) -> Bytes {
        value_bytes(&self.raw, value)
    }

    /// Within the block by the check in `parse`; 0 (refused by every user) otherwise.
    #[inline]
    pub(super) fn restart_offset(&self, restart: usize) -> usize {
        self.layout.restart_offset_in(&self.raw, restart)
    }

    /// How many restart points have a head below `target`.
    pub(super) fn restarts_below(&self, target: u64) -> usize {
        self.layout.restarts_below_in(&self.raw, target)
    }

    pub(super) fn restart_head(&self, restart: usize) -> u64 {
        self.layout.heads_of(&self.raw).get(restart).map_or(0, |head| u64::from_le_bytes(*head))
    }

    /// The entry at `at`: its parts, and the offset of the next one.
    #[inline]
    pub(super) fn entry_at(&self, at: usize) -> Result<(RawEntry, usize)> {
        self.layout.entry_in(&self.raw, at).map_err(|e| self.corrupt(format!("entry: {e}")))
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::super::format::TRAILER_BYTES;
    use super::Arc;

    /// A block with room for a trailer behind it, as it is read from a file.
    pub(in super::super) fn with_room(block: &[u8]) -> Arc<[u8]> {
        Arc::from([block, &[0; TRAILER_BYTES]].concat())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::block_builder::BlockBuilder;
    use super::testing::with_room;
    use super::*;

    type Entry = (Vec<u8>, u64, Kind, Vec<u8>);

    fn build(entries: &[Entry], restart_interval: usize) -> Vec<u8> {
        let mut builder = BlockBuilder::new(restart_interval);
        for (key, sequence, kind, value) in entries {
            builder.add(key, *sequence, *kind, value);
        }
        builder.finish().expect("encodes").to_vec()
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        // Long runs of few bytes: keys that are prefixes of others, ties of heads, shared suffixes.
        let byte = prop_oneof![Just(b'a'), Just(b'b'), Just(0), Just(0xFF)];
        let run = (byte, 0..7_usize).prop_map(|(byte, len)| vec![byte; len]);
        proptest::collection::vec(run, 0..5).prop_map(|runs| runs.concat())
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let value = proptest::collection::vec(any::<u8>(), 0..20);
        let entry = (key(), 1..50_u64, any::<bool>(), value);
        (proptest::collection::vec(entry, 1..120), any::<bool>()).prop_map(|(mut all, prefixed)| {
            for (key, ..) in &mut all {
                key.splice(0..0, vec![b'p'; if prefixed { 300 } else { 0 }]);
            }
            all.sort_by(|a, b| compare((&a.0, a.1), (&b.0, b.1)));
            all.dedup_by(|a, b| a.0 == b.0 && a.1 == b.1);
            let kind = |delete| if delete { Kind::Delete } else { Kind::Value };
            all.into_iter()
                .map(|(key, seq, delete, value)| (key, seq, kind(delete), value))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_lookup_finds_the_newest_version_at_or_below_a_sequence_and_nothing_else(
            entries in entries(), interval in 1_usize..20, probes in proptest::collection::vec((key(), 0..60_u64), 30),
        ) {
            let raw = with_room(&build(&entries, interval));
            let own = entries.iter().flat_map(|e| {
                [0, 1, e.1 - 1, e.1, e.1 + 1, u64::MAX].map(|sequence| (e.0.clone(), sequence))
            });
            let near = entries.iter().flat_map(|e| {
                let (mut shorter, mut other) = (e.0.clone(), e.0.clone());
                shorter.pop();
                if let Some(last) = other.last_mut() { *last ^= 1; }
                [(shorter, 25), (other, 25), ([e.0.clone(), vec![0]].concat(), 25)]
            });
            for (key, sequence) in own.chain(near).chain(probes) {
                let expected = entries.iter().find(|e| e.0 == key && e.1 <= sequence);
                let found = find(&raw, &key, sequence).expect("decodes");
                let found = found.map(|f| (f.sequence, f.kind, raw[f.value].to_vec()));
                prop_assert_eq!(found, expected.map(|e| (e.1, e.2, e.3.clone())), "{:?} {}", key, sequence);
            }
        }

        #[test]
        fn lookups_in_damaged_blocks_give_errors_or_entries_but_never_panic(
            entries in entries(), flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in any::<prop::sample::Index>(),
        ) {
            let mut raw = build(&entries, 3);
            for (at, with) in &flips { let i = at.index(raw.len()); raw[i] ^= with; }
            if flips.len() == 3 { raw.truncate(cut.index(raw.len())); }
            let raw = with_room(&raw);
            for (key, sequence, ..) in &entries {
                if let Ok(Some(found)) = find(&raw, key, *sequence) {
                    prop_assert!(raw.get(found.value).is_some(), "a value within the block");
                }
            }
        }
    }

    #[test]
    fn a_long_value_shares_the_memory_of_its_block_and_a_short_one_does_not() {
        let long = vec![7; SHARED_VALUE_BYTES];
        let entries = [
            (b"long".to_vec(), 1, Kind::Value, long.clone()),
            (b"short".to_vec(), 1, Kind::Value, vec![8; SHARED_VALUE_BYTES - 1]),
        ];
        let raw = with_room(&build(&entries, 16));
        let value = |key: &[u8]| {
            let found = find(&raw, key, 1).expect("decodes").expect("is there");
            value_bytes(&raw, found.value)
        };
        let (shared, copied) = (value(b"long"), value(b"short"));
        assert_eq!(shared, long, "the value");
        assert_eq!(copied.len(), SHARED_VALUE_BYTES - 1, "the value");
        assert!(raw.as_ptr_range().contains(&shared.as_ptr()), "shared");
        assert!(!raw.as_ptr_range().contains(&copied.as_ptr()), "copied");
        assert_eq!(Arc::strong_count(&raw), 2, "one share");
    }
}
