//! Stands on the entries of a data or index block: search, steps both ways.
//!
//! A search compares one integer per restart point (the head: the first 8 bytes after the common
//! prefix) and decodes keys only on ties and in the one interval it ends in. Which bytes make up a
//! block is [`block`](super::block)'s business; an entry is checked when it is stepped on.
//!
//! Keys are rebuilt in one buffer, values are ranges of the block: a step allocates nothing. One iterator
//! serves block after block and keeps its buffers.
//!
//! ```text
//! forward            keys:  | key |                            passed: empty
//! backward, in the   keys:  | key 0 | key 1 | … | key |        passed: entries 0, 1, … of the interval
//! interval of key
//! ```

#![deny(clippy::indexing_slicing)]

use std::cmp::Ordering;
use std::ops::Range;

use bytes::Bytes;

use super::block::{Block, RawEntry};
use super::format::Handle;
use crate::coding::Reader;
use crate::error::Result;
use crate::internal_key::{Kind, compare, head};

/// Short suffixes are copied as so many bytes at once, whatever lies behind them.
const COPY_BYTES: usize = 16;

/// What is known of the entry before, in key order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Before {
    #[default]
    Unknown,
    /// It is a newer version of the same user key.
    SameKey,
    OtherKey,
}

/// Where an entry is and what it says.
#[derive(Clone, Debug)]
struct Entry {
    /// Offset of the entry, and of the one after it.
    start: usize,
    next: usize,
    /// The range of the key buffer.
    key: Range<usize>,
    before: Before,
    sequence: u64,
    kind: Kind,
    value: Range<usize>,
    /// Index blocks only.
    handle: Handle,
}

impl Entry {
    const NONE: Self = Self {
        start: 0,
        next: 0,
        key: 0..0,
        before: Before::Unknown,
        sequence: 0,
        kind: Kind::Value,
        value: 0..0,
        handle: Handle { offset: 0, len: 0 },
    };
}

/// Stands on an entry of a block, or on none.
#[derive(Debug)]
pub(crate) struct BlockIter {
    block: Option<Block>,
    valid: bool,
    here: Entry,
    /// The restart point that comes next, and its offset; the end of the entries after the last one.
    restart: usize,
    boundary: usize,
    keys: Vec<u8>,
    /// Entries of the interval before this one, if it was reached by a step backward.
    passed: Vec<Entry>,
}

impl BlockIter {
    pub(crate) fn new(block: Block) -> Self {
        Self { block: Some(block), ..Self::empty() }
    }

    /// Without a block, hence on no entry.
    pub(crate) const fn empty() -> Self {
        Self {
            block: None,
            valid: false,
            here: Entry::NONE,
            restart: 0,
            boundary: 0,
            keys: Vec::new(),
            passed: Vec::new(),
        }
    }

    /// Leaves the block; stands on no entry.
    pub(crate) fn clear(&mut self) {
        self.block = None;
        self.valid = false;
    }

    /// Changes to another block; stands on no entry.
    pub(crate) fn set_block(&mut self, block: Block) {
        self.block = Some(block);
        self.valid = false;
    }

    /// Changes to the block that follows the present one, and stands on its first entry.
    /// [`repeats_key`](Self::repeats_key) then compares to the entry it stood on last.
    pub(crate) fn continue_in(&mut self, block: Block) -> Result<()> {
        let (first, _) = block.entry_at(block.entries.start)?;
        let suffix = block.raw.get(first.suffix).unwrap_or_default();
        let same = self.key().strip_prefix(block.prefix()) == Some(suffix);
        self.set_block(block);
        self.seek_to_first()?;
        self.here.before = if same { Before::SameKey } else { Before::OtherKey };
        Ok(())
    }

    pub(crate) const fn valid(&self) -> bool {
        self.valid
    }

    /// Stands on no entry from here on.
    pub(crate) const fn invalidate(&mut self) {
        self.valid = false;
    }

    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        self.keys.get(self.here.key.clone()).unwrap_or_default()
    }

    pub(crate) const fn sequence(&self) -> u64 {
        self.here.sequence
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.here.kind
    }

    #[inline]
    pub(crate) fn value(&self) -> &[u8] {
        let block = self.block.as_ref();
        block.and_then(|b| b.raw.get(self.here.value.clone())).unwrap_or_default()
    }

    pub(crate) fn value_bytes(&self) -> Bytes {
        self.block.as_ref().map_or_else(Bytes::new, |b| b.value_bytes(self.here.value.clone()))
    }

    /// The handle an index entry holds.
    pub(crate) const fn handle(&self) -> Handle {
        self.here.handle
    }

    /// After a step forward: whether the entry stepped from has the same user key.
    pub(crate) const fn repeats_key(&self) -> bool {
        matches!(self.here.before, Before::SameKey)
    }

    /// Whether the entry is known to be the newest version of its key in the table; `false` says nothing.
    pub(crate) const fn is_newest(&self) -> bool {
        matches!(self.here.before, Before::OtherKey)
    }

    pub(crate) fn seek_to_first(&mut self) -> Result<()> {
        self.jump(0);
        self.step(true)
    }

    pub(crate) fn seek_to_last(&mut self) -> Result<()> {
        let Some(block) = &self.block else { return Ok(()) };
        let (end, last) = (block.entries.end, block.restart_count - 1);
        self.stack(last, end)
    }

    /// How the user key of the block's first entry compares to `key`.
    pub(crate) fn first_key_cmp(&self, key: &[u8]) -> Result<Ordering> {
        let Some(block) = &self.block else { return Ok(Ordering::Equal) };
        let (first, _) = block.entry_at(block.entries.start)?;
        Ok(compare_joined(block, &first, key))
    }

    /// Whether the block's first entry is at or before `(key, sequence)`.
    pub(crate) fn begins_at_or_before(&self, key: &[u8], sequence: u64) -> Result<bool> {
        let Some(block) = &self.block else { return Ok(false) };
        let (first, _) = block.entry_at(block.entries.start)?;
        Ok(compare_joined(block, &first, key).then(sequence.cmp(&first.sequence)).is_le())
    }

    /// To the first entry at or after `(key, sequence)`; not valid if there is none.
    pub(crate) fn seek(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        self.valid = false;
        let Some(block) = &self.block else { return Ok(()) };
        let prefix = block.prefix();
        let restart = match key.strip_prefix(prefix) {
            Some(rest) => last_restart_at_or_before(block, rest, sequence)?,
            None if key < prefix => 0,
            None => return Ok(()),
        };
        self.jump(restart);
        self.step(true)?;
        while self.valid
            && compare((self.key(), self.here.sequence), (key, sequence)) == Ordering::Less
        {
            self.next()?;
        }
        Ok(())
    }

    /// To the next entry; not valid after the last.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<()> {
        self.passed.clear();
        if self.block.as_ref().is_none_or(|b| self.here.next >= b.entries.end) {
            self.valid = false;
            return Ok(());
        }
        self.step(false)
    }

    /// To the entry before; not valid before the first.
    #[inline]
    pub(crate) fn prev(&mut self) -> Result<()> {
        if let Some(passed) = self.passed.pop() {
            self.here = passed;
            return Ok(());
        }
        self.valid = false;
        let Some(block) = &self.block else { return Ok(()) };
        let end = self.here.start;
        if end <= block.entries.start {
            return Ok(());
        }
        let current = self.restart.saturating_sub(1);
        let before = block.restart_offset(current) < end;
        let restart = if before { current } else { current.saturating_sub(1) };
        self.stack(restart, end)
    }

    /// Decodes an interval up to the entry that ends at `end`, where it stands then.
    fn stack(&mut self, restart: usize, end: usize) -> Result<()> {
        self.jump(restart);
        self.step(true)?;
        while self.here.next < end {
            self.passed.push(self.here.clone());
            // The next key goes behind this one.
            let (from, to) = (self.here.key.start, self.here.key.end);
            if self.keys.len() < 2 * to {
                self.keys.resize(2 * to, 0);
            }
            self.keys.copy_within(from..to, to);
            self.here.key = to..to + (to - from);
            self.step(false)?;
        }
        if self.here.next == end {
            return Ok(());
        }
        self.valid = false;
        match &self.block {
            Some(block) => Err(block.corrupt("entries do not meet the restart points")),
            None => Ok(()),
        }
    }

    /// Stands before the first entry of an interval; `step` follows.
    fn jump(&mut self, restart: usize) {
        self.valid = false;
        self.passed.clear();
        let Some(block) = &self.block else { return };
        let prefix = block.prefix();
        self.restart = restart;
        self.boundary = block.restart_offset(restart);
        self.here.next = self.boundary;
        if self.keys.len() < prefix.len() {
            self.keys.resize(prefix.len() + COPY_BYTES, 0);
        }
        if let Some(start) = self.keys.get_mut(..prefix.len()) {
            start.copy_from_slice(prefix);
        }
        self.here.key = 0..prefix.len();
    }

    /// Decodes the entry at `here.next`; `jumped` says that the entry before it was not looked at.
    #[inline]
    fn step(&mut self, jumped: bool) -> Result<()> {
        self.valid = false;
        let Some(block) = &self.block else { return Ok(()) };
        let at = self.here.next;
        let (entry, next) = block.entry_at(at)?;
        let before = self.here.key.clone();
        let kept = block.prefix.len().saturating_add(entry.shared);
        let at_restart = at >= self.boundary;
        if kept > before.len() || (at_restart && entry.shared != 0) {
            return Err(block.corrupt("entry shares more with its predecessor than there is"));
        }
        let same = if at_restart {
            if at > self.boundary {
                return Err(block.corrupt("entries do not meet the restart points"));
            }
            self.restart += 1;
            self.boundary = if self.restart < block.restart_count {
                block.restart_offset(self.restart)
            } else {
                block.entries.end
            };
            self.keys.get(before.start + kept..before.end) == block.raw.get(entry.suffix.clone())
        } else {
            kept == before.len() && entry.suffix.is_empty()
        };
        let key_end = before.start + kept + entry.suffix.len();
        put_suffix(&mut self.keys, before.start + kept, &block.raw, &entry.suffix);
        self.here = Entry {
            start: at,
            next,
            key: before.start..key_end,
            before: match (jumped, same) {
                (true, _) => Before::Unknown,
                (false, true) => Before::SameKey,
                (false, false) => Before::OtherKey,
            },
            sequence: entry.sequence,
            kind: entry.kind,
            value: entry.value,
            handle: self.here.handle,
        };
        if block.is_index {
            self.here.handle = read_handle(block, self.value(), self.here.handle, at_restart)?;
        }
        self.valid = true;
        Ok(())
    }
}

/// Copies a suffix of `raw` to its place in the key buffer, which grows if need be.
#[inline]
fn put_suffix(keys: &mut Vec<u8>, at: usize, raw: &[u8], suffix: &Range<usize>) {
    let need = at + suffix.len().max(COPY_BYTES);
    if keys.len() < need {
        keys.resize(2 * need, 0);
    }
    let to = keys.get_mut(at..).unwrap_or_default();
    if suffix.len() <= COPY_BYTES
        && let Some(from) = raw.get(suffix.start..).and_then(<[u8]>::first_chunk::<COPY_BYTES>)
        && let Some(to) = to.first_chunk_mut::<COPY_BYTES>()
    {
        *to = *from;
    } else if let Some(from) = raw.get(suffix.clone())
        && let Some(to) = to.get_mut(..from.len())
    {
        to.copy_from_slice(from);
    }
}

/// How the user key of an entry at a restart point compares to `key`.
fn compare_joined(block: &Block, entry: &RawEntry, key: &[u8]) -> Ordering {
    let prefix = block.prefix();
    match key.strip_prefix(prefix) {
        Some(rest) => block.raw.get(entry.suffix.clone()).unwrap_or_default().cmp(rest),
        None => prefix.cmp(key),
    }
}

/// The last restart point whose internal key (after the common prefix) is at or before the target;
/// the first one if all are after it.
fn last_restart_at_or_before(block: &Block, rest: &[u8], sequence: u64) -> Result<usize> {
    let target = head(rest);
    let below = block.restarts_below(target);
    let ties = partition(below..block.restart_count, |r| Ok(block.restart_head(r) == target))?;
    let end = partition(below..ties, |r| {
        let (entry, _) = block.entry_at(block.restart_offset(r))?;
        let key = block.raw.get(entry.suffix).unwrap_or_default();
        Ok(compare((key, entry.sequence), (rest, sequence)) != Ordering::Greater)
    })?;
    Ok(end.saturating_sub(1))
}

fn read_handle(block: &Block, value: &[u8], before: Handle, at_restart: bool) -> Result<Handle> {
    let mut reader = Reader::new(value);
    let handle = if at_restart {
        Handle::read(&mut reader)
    } else {
        let offset = before.end().ok_or_else(|| block.corrupt("block handle overflows"))?;
        reader.varint().map(|len| Handle { offset, len })
    };
    match handle {
        Ok(handle) if reader.is_empty() => Ok(handle),
        Ok(_) => Err(block.corrupt("bytes after a block handle")),
        Err(e) => Err(block.corrupt(format!("block handle: {}", e.what))),
    }
}

/// The first index of `range` for which `before` does not hold; it holds for a prefix of the range.
fn partition(range: Range<usize>, before: impl Fn(usize) -> Result<bool>) -> Result<usize> {
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle)? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::path::Path;
    use std::sync::Arc;

    use super::super::block::testing::with_room;
    use super::super::block_builder::BlockBuilder;
    use super::super::format::BlockKind;
    use super::*;
    use crate::internal_key::{SEQUENCE_ABOVE_ALL, SEQUENCE_BELOW_ALL};

    type Entry = (Vec<u8>, u64, Kind, Vec<u8>);

    fn build(entries: &[Entry], restart_interval: usize) -> Bytes {
        let mut builder = BlockBuilder::new(restart_interval);
        for (key, sequence, kind, value) in entries {
            builder.add(key, *sequence, *kind, value);
        }
        Bytes::from(builder.finish().expect("encodes"))
    }

    fn parse(raw: Bytes) -> Result<Block> {
        Block::parse(with_room(&raw), BlockKind::Data, &Arc::from(Path::new("b.sst")), 0)
    }

    fn current(iter: &BlockIter) -> Option<Entry> {
        iter.valid()
            .then(|| (iter.key().to_vec(), iter.sequence(), iter.kind(), iter.value().to_vec()))
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let key = proptest::collection::vec(
            prop_oneof![Just(b'a'), Just(b'b'), Just(0), Just(0xFF)],
            0..12,
        );
        let entry = (key, 1..50_u64, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..20));
        (proptest::collection::vec(entry, 1..80), any::<bool>()).prop_map(
            |(mut entries, long_prefix)| {
                entries.sort_by(|a, b| compare((&a.0, a.1), (&b.0, b.1)));
                entries.dedup_by(|a, b| a.0 == b.0 && a.1 == b.1);
                entries
                    .into_iter()
                    .map(|(key, sequence, delete, value)| {
                        let key = if long_prefix { [vec![b'p'; 300], key].concat() } else { key };
                        if delete {
                            (key, sequence, Kind::Delete, vec![])
                        } else {
                            (key, sequence, Kind::Value, value)
                        }
                    })
                    .collect()
            },
        )
    }

    proptest! {
        #[test]
        fn a_block_gives_back_its_entries_both_ways_and_finds_every_neighbour(
            entries in entries(), interval in 1_usize..20,
            probes in proptest::collection::vec((proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'p'), Just(0), Just(0xFF)], 0..12), 0..60_u64), 20),
        ) {
            let block = parse(build(&entries, interval)).expect("parses");
            prop_assert_eq!(block.entry_count() as usize, entries.len());
            let mut iter = BlockIter::new(block.clone());
            let mut seen = Vec::new();
            iter.seek_to_first().expect("reads");
            while let Some(entry) = current(&iter) { seen.push(entry); iter.next().expect("reads"); }
            prop_assert_eq!(&seen, &entries);
            let mut seen = Vec::new();
            iter.seek_to_last().expect("reads");
            while let Some(entry) = current(&iter) { seen.push(entry); iter.prev().expect("reads"); }
            seen.reverse();
            prop_assert_eq!(&seen, &entries);
            let own = entries.iter().flat_map(|e| [
                (e.0.clone(), e.1), (e.0.clone(), SEQUENCE_ABOVE_ALL), (e.0.clone(), SEQUENCE_BELOW_ALL), (e.0.clone(), e.1 + 1),
            ]);
            for (key, sequence) in own.chain(probes) {
                let expected = entries.partition_point(|e| compare((&e.0, e.1), (&key, sequence)) == Ordering::Less);
                iter.seek(&key, sequence).expect("reads");
                prop_assert_eq!(current(&iter), entries.get(expected).cloned(), "seek {:?} {}", key, sequence);
                if iter.valid() {
                    iter.prev().expect("reads");
                    let before = expected.checked_sub(1).and_then(|i| entries.get(i)).cloned();
                    prop_assert_eq!(current(&iter), before, "before {:?} {}", key, sequence);
                    if iter.valid() {
                        iter.next().expect("reads");
                        prop_assert_eq!(current(&iter), entries.get(expected).cloned(), "and back");
                    }
                }
            }
        }

        #[test]
        fn damaged_blocks_give_errors_or_entries_but_never_panic(
            entries in entries(), flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in any::<prop::sample::Index>(),
        ) {
            let mut raw = build(&entries, 3).to_vec();
            for (at, with) in &flips { let i = at.index(raw.len()); raw[i] ^= with; }
            if flips.len() == 3 { raw.truncate(cut.index(raw.len())); }
            if let Ok(block) = parse(Bytes::from(raw)) {
                let mut iter = BlockIter::new(block);
                let mut steps = 0;
                let mut ok = iter.seek_to_first().is_ok();
                while ok && iter.valid() && steps < 10_000 { ok = iter.next().is_ok(); steps += 1; }
                ok = iter.seek_to_last().is_ok();
                while ok && iter.valid() && steps < 20_000 { ok = iter.prev().is_ok(); steps += 1; }
                for e in &entries { let _found = iter.seek(&e.0, e.1).is_ok(); }
                prop_assert!(steps < 20_000, "steps end");
            }
        }
    }

    #[test]
    fn blocks_above_64_kib_use_wide_offsets() {
        let entries: Vec<Entry> = (0..40_u32)
            .map(|i| (i.to_be_bytes().to_vec(), 1, Kind::Value, vec![7; 4000]))
            .collect();
        let mut iter = BlockIter::new(parse(build(&entries, 4)).expect("parses"));
        iter.seek(&37_u32.to_be_bytes(), 1).expect("reads");
        assert_eq!(current(&iter), entries.get(37).cloned(), "found behind 64 KiB");
    }
}
