//! An index partition in memory: which data block may hold a key.
//!
//! On disk it is a block like one of data (`FORMAT.md`). A lookup would have to decode its way to an
//! entry; here separators are a [`KeyIndex`] and handles an array, decoded once when the partition is
//! loaded, with everything checked that a search relies on: separators rise, blocks follow each other.
//!
//! A store may have a thousand times more data than memory, so what an entry takes matters: of a handle only
//! the end is kept, in four bytes mostly, and [slots](Slot), the largest part, are made by those who want them.

#![deny(clippy::indexing_slicing)]

use std::cmp::Ordering;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::error::Result;
use crate::internal_key::compare;
use crate::sstable::block::Block;
use crate::sstable::block_iter::BlockIter;
use crate::sstable::ends::Ends;
use crate::sstable::format::{BlockKind, Handle, TRAILER_BYTES};
use crate::sstable::key_index::KeyIndex;
use crate::sstable::slot::Slot;

/// See the module.
#[derive(Debug)]
pub(crate) struct IndexPartition {
    keys: KeyIndex,
    /// Of the separators; empty if all are 0, as they are unless a user key spans blocks.
    sequences: Box<[u64]>,
    /// Offset of the first block, and where each ends with its trailer, from there.
    first: u64,
    ends: Ends,
    /// Where the blocks are that the cache keeps, once somebody made them.
    slots: OnceLock<Box<[Slot]>>,
}

impl IndexPartition {
    /// Decodes a block's buffer, as [`Block::parse`] takes it.
    ///
    /// # Errors
    /// `Corruption` at the block's offset.
    pub(crate) fn parse(buffer: Arc<[u8]>, path: &Arc<Path>, offset: u64) -> Result<Self> {
        let block = Block::parse(buffer, BlockKind::Index, path, offset)?;
        let (mut bytes, mut ranges) = (Vec::new(), Vec::new());
        let (mut sequences, mut ends) = (Vec::<u64>::new(), Vec::new());
        let mut first = None;
        let mut iter = BlockIter::new(block.clone());
        iter.seek_to_first()?;
        while iter.valid() {
            let previous = ranges.last().cloned().and_then(|range| bytes.get(range));
            let rises = previous.zip(sequences.last()).is_none_or(|(key, sequence)| {
                compare((key, *sequence), (iter.key(), iter.sequence())) == Ordering::Less
            });
            if !rises {
                return Err(block.corrupt("separators of an index partition do not rise"));
            }
            let start = bytes.len();
            bytes.extend_from_slice(iter.key());
            ranges.push(start..bytes.len());
            sequences.push(iter.sequence());
            let handle = iter.handle();
            let first = *first.get_or_insert(handle.offset);
            let start = ends.last().copied().unwrap_or(0);
            match handle.end() {
                Some(end) if handle.offset == first + start => ends.push(end - first),
                Some(_) | None => {
                    return Err(
                        block.corrupt("blocks of an index partition do not follow each other")
                    );
                }
            }
            iter.next()?;
        }
        if u32::try_from(ends.len()) != Ok(block.entry_count()) {
            return Err(block.corrupt("index partition has another number of entries than it says"));
        }
        if sequences.iter().all(|sequence| *sequence == 0) {
            sequences.clear();
        }
        let keys = ranges.iter().map(|range| bytes.get(range.clone()).unwrap_or_default());
        Ok(Self {
            keys: KeyIndex::new(keys),
            sequences: sequences.into_boxed_slice(),
            first: first.unwrap_or(0),
            ends: Ends::new(&ends),
            slots: OnceLock::new(),
        })
    }

    /// Bytes of memory the partition takes without slots.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Self>() + self.keys.weight() + size_of_val(&*self.sequences) + self.ends.weight()
    }

    /// Bytes of memory that slots take.
    pub(crate) fn slots_weight(&self) -> usize {
        self.len() * size_of::<Slot>()
    }

    /// Gives every block a slot, if they have none.
    pub(crate) fn make_slots(&self) {
        self.slots.get_or_init(|| (0..self.len()).map(|_| Slot::default()).collect());
    }

    /// Number of data blocks.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Where a data block is; `None` if there are not so many.
    pub(crate) fn handle(&self, at: usize) -> Option<Handle> {
        let place = self.ends.range(at)?;
        let len = (place.end - place.start).saturating_sub(TRAILER_BYTES as u64);
        Some(Handle { offset: self.first + place.start, len })
    }

    /// See [`Slot`]; `None` without slots.
    pub(crate) fn slot(&self, at: usize) -> Option<&Slot> {
        self.slots.get()?.get(at)
    }

    /// Of all data blocks.
    #[cfg(test)]
    pub(crate) fn slots(&self) -> &[Slot] {
        self.slots.get().map_or(&[], |slots| slots)
    }

    /// How a block's separator, without its sequence number, compares to a user key.
    pub(crate) fn compare(&self, at: usize, key: &[u8]) -> Ordering {
        self.keys.compare(at, key)
    }

    /// Whether a block's separator is at or after `(key, sequence)`.
    pub(crate) fn ends_at_or_after(&self, at: usize, key: &[u8], sequence: u64) -> bool {
        let own = self.sequences.get(at).copied().unwrap_or(0);
        self.compare(at, key).then(sequence.cmp(&own)).is_ge()
    }

    /// The first data block whose separator is at or after `(key, sequence)`: the only one that may hold
    /// the newest version of `key` at or below `sequence`. Their number if there is none.
    pub(crate) fn find(&self, key: &[u8], sequence: u64) -> usize {
        let newer = |at: usize| self.sequences.get(at).is_some_and(|own| *own > sequence);
        self.keys.first_at_or_after(key, newer)
    }
}
