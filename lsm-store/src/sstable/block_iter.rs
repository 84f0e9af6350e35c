//! Stands on the entries of a data or index block: search, steps both ways.
//!
//! A search compares one integer per restart point (the head: the first 8 bytes after the common
//! prefix) and decodes keys only on ties and in the one interval it ends in. Which bytes make up a
//! block is [`block`](super::block)'s business; an entry is checked when it is stepped on.

#![deny(clippy::indexing_slicing)]

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::block::Block;
use super::format::Handle;
use crate::coding::Reader;
use crate::error::Result;
use crate::internal_key::{Kind, compare, head};

/// An entry passed on the way to a later one of the same interval, for steps backward.
#[derive(Debug)]
struct Passed {
    start: usize,
    next: usize,
    sequence: u64,
    kind: Kind,
    value: Range<usize>,
    handle: Handle,
    key: Range<usize>,
}

/// Stands on an entry of a block, or on none.
#[derive(Debug)]
pub(crate) struct BlockIter {
    block: Arc<Block>,
    valid: bool,
    /// Offset of the entry, and of the one after it.
    start: usize,
    next: usize,
    /// The restart interval of the entry.
    restart: usize,
    key: Vec<u8>,
    sequence: u64,
    kind: Kind,
    value: Range<usize>,
    /// Index blocks only.
    handle: Handle,
    /// Entries of the interval before this one, if it was reached by a step backward.
    passed: Vec<Passed>,
    passed_keys: Vec<u8>,
}

impl BlockIter {
    pub(crate) fn new(block: Arc<Block>) -> Self {
        Self {
            block,
            valid: false,
            start: 0,
            next: 0,
            restart: 0,
            key: Vec::new(),
            sequence: 0,
            kind: Kind::Value,
            value: 0..0,
            handle: Handle::default(),
            passed: Vec::new(),
            passed_keys: Vec::new(),
        }
    }

    pub(crate) const fn valid(&self) -> bool {
        self.valid
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(crate) const fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn value(&self) -> &[u8] {
        self.block.raw.get(self.value.clone()).unwrap_or_default()
    }

    pub(crate) fn value_bytes(&self) -> Bytes {
        self.block.raw.slice(self.value.clone())
    }

    /// The handle an index entry holds.
    pub(crate) const fn handle(&self) -> Handle {
        self.handle
    }

    pub(crate) fn seek_to_first(&mut self) -> Result<()> {
        self.jump(0);
        self.step()
    }

    pub(crate) fn seek_to_last(&mut self) -> Result<()> {
        self.jump(self.block.restart_count - 1);
        self.step()?;
        while self.next < self.block.entries.end {
            self.step()?;
        }
        Ok(())
    }

    /// To the first entry at or after `(key, sequence)`; not valid if there is none.
    pub(crate) fn seek(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        let prefix = self.block.prefix();
        let shorter = prefix.len().min(key.len());
        let (key_start, prefix_start) =
            (key.get(..shorter).unwrap_or_default(), prefix.get(..shorter).unwrap_or_default());
        match key_start.cmp(prefix_start) {
            Ordering::Less => return self.seek_to_first(),
            Ordering::Greater => {
                self.valid = false;
                return Ok(());
            }
            Ordering::Equal if key.len() < prefix.len() => return self.seek_to_first(),
            Ordering::Equal => {}
        }
        let rest = key.get(prefix.len()..).unwrap_or_default();
        let restart = self.last_restart_at_or_before(rest, sequence)?;
        self.jump(restart);
        self.step()?;
        while self.valid && compare((&self.key, self.sequence), (key, sequence)) == Ordering::Less {
            self.next()?;
        }
        Ok(())
    }

    /// The last restart point whose internal key (after the common prefix) is at or before the target;
    /// the first one if all are after it.
    fn last_restart_at_or_before(&self, rest: &[u8], sequence: u64) -> Result<usize> {
        let block = &self.block;
        let target = head(rest);
        let below = partition(0..block.restart_count, |r| Ok(block.restart_head(r) < target))?;
        let ties = partition(below..block.restart_count, |r| Ok(block.restart_head(r) == target))?;
        let end = partition(below..ties, |r| {
            let (entry, _) = block.entry_at(block.restart_offset(r))?;
            let key = block.raw.get(entry.suffix).unwrap_or_default();
            Ok(compare((key, entry.sequence), (rest, sequence)) != Ordering::Greater)
        })?;
        Ok(end.saturating_sub(1))
    }

    /// To the next entry; not valid after the last.
    pub(crate) fn next(&mut self) -> Result<()> {
        self.passed.clear();
        if self.next >= self.block.entries.end {
            self.valid = false;
            return Ok(());
        }
        self.step()
    }

    /// To the entry before; not valid before the first.
    pub(crate) fn prev(&mut self) -> Result<()> {
        if self.passed.is_empty() {
            let end = self.start;
            if end <= self.block.entries.start {
                self.valid = false;
                return Ok(());
            }
            let restart = if self.block.restart_offset(self.restart) < end {
                self.restart
            } else {
                self.restart.saturating_sub(1)
            };
            self.jump(restart);
            self.passed_keys.clear();
            self.step()?;
            while self.next < end {
                self.pass();
                self.step()?;
            }
            if self.next != end {
                self.valid = false;
                return Err(self.block.corrupt("entries do not meet the restart points"));
            }
            return Ok(());
        }
        if let Some(passed) = self.passed.pop() {
            self.start = passed.start;
            self.next = passed.next;
            self.sequence = passed.sequence;
            self.kind = passed.kind;
            self.value = passed.value;
            self.handle = passed.handle;
            self.key.clear();
            self.key
                .extend_from_slice(self.passed_keys.get(passed.key.clone()).unwrap_or_default());
            self.passed_keys.truncate(passed.key.start);
        }
        Ok(())
    }

    fn pass(&mut self) {
        let from = self.passed_keys.len();
        self.passed_keys.extend_from_slice(&self.key);
        self.passed.push(Passed {
            start: self.start,
            next: self.next,
            sequence: self.sequence,
            kind: self.kind,
            value: self.value.clone(),
            handle: self.handle,
            key: from..self.passed_keys.len(),
        });
    }

    /// Stands before the first entry of an interval; `step` follows.
    fn jump(&mut self, restart: usize) {
        self.passed.clear();
        self.restart = restart;
        self.next = self.block.restart_offset(restart);
        self.key.clear();
        self.key.extend_from_slice(self.block.prefix());
    }

    /// Decodes the entry at `next`.
    fn step(&mut self) -> Result<()> {
        self.valid = false;
        let at = self.next;
        let (entry, next) = self.block.entry_at(at)?;
        let after = self.restart + 1;
        if after < self.block.restart_count {
            match at.cmp(&self.block.restart_offset(after)) {
                Ordering::Less => {}
                Ordering::Equal => self.restart = after,
                Ordering::Greater => {
                    return Err(self.block.corrupt("entries do not meet the restart points"));
                }
            }
        }
        let at_restart = at == self.block.restart_offset(self.restart);
        let prefix_len = self.block.prefix.len();
        let kept = prefix_len.saturating_add(entry.shared);
        if kept > self.key.len() || (at_restart && entry.shared != 0) {
            return Err(self.block.corrupt("entry shares more with its predecessor than there is"));
        }
        self.key.truncate(kept);
        self.key.extend_from_slice(self.block.raw.get(entry.suffix).unwrap_or_default());
        self.sequence = entry.sequence;
        self.kind = entry.kind;
        self.value = entry.value;
        self.start = at;
        self.next = next;
        if self.block.is_index {
            self.handle = self.read_handle(at_restart)?;
        }
        self.valid = true;
        Ok(())
    }

    fn read_handle(&self, at_restart: bool) -> Result<Handle> {
        let mut reader = Reader::new(self.value());
        let handle = if at_restart {
            Handle::read(&mut reader)
        } else {
            let offset =
                self.handle.end().ok_or_else(|| self.block.corrupt("block handle overflows"))?;
            reader.varint().map(|len| Handle { offset, len })
        };
        match handle {
            Ok(handle) if reader.is_empty() => Ok(handle),
            Ok(_) => Err(self.block.corrupt("bytes after a block handle")),
            Err(e) => Err(self.block.corrupt(format!("block handle: {}", e.what))),
        }
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

    fn parse(raw: Bytes) -> Result<Arc<Block>> {
        Block::parse(raw, BlockKind::Data, &Arc::from(Path::new("b.sst")), 0).map(Arc::new)
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
            let mut iter = BlockIter::new(block);
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
