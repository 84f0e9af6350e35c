//! An index partition in memory: which data block may hold a key.
//!
//! On disk it is a block like one of data (`FORMAT.md`). A lookup would have to decode its way to an
//! entry; here separators are a [`KeyIndex`] and handles an array, decoded once when the partition is
//! loaded, with everything checked that a search relies on: separators rise, handles are whole.

#![deny(clippy::indexing_slicing)]

use std::cmp::Ordering;
use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::internal_key::compare;
use crate::sstable::block::Block;
use crate::sstable::block_iter::BlockIter;
use crate::sstable::format::{BlockKind, Handle};
use crate::sstable::key_index::KeyIndex;

/// See the module.
#[derive(Debug)]
pub(crate) struct IndexPartition {
    keys: KeyIndex,
    /// Of the separators; empty if all are 0, as they are unless a user key spans blocks.
    sequences: Box<[u64]>,
    handles: Box<[Handle]>,
}

impl IndexPartition {
    /// Decodes a block's buffer, as [`Block::parse`] takes it.
    ///
    /// # Errors
    /// `Corruption` at the block's offset.
    pub(crate) fn parse(buffer: Arc<[u8]>, path: &Arc<Path>, offset: u64) -> Result<Self> {
        let block = Arc::new(Block::parse(buffer, BlockKind::Index, path, offset)?);
        let (mut bytes, mut ranges) = (Vec::new(), Vec::new());
        let (mut sequences, mut handles) = (Vec::<u64>::new(), Vec::new());
        let mut iter = BlockIter::new(Arc::clone(&block));
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
            handles.push(iter.handle());
            iter.next()?;
        }
        if u32::try_from(handles.len()) != Ok(block.entry_count()) {
            return Err(block.corrupt("index partition has another number of entries than it says"));
        }
        if sequences.iter().all(|sequence| *sequence == 0) {
            sequences.clear();
        }
        let keys = ranges.iter().map(|range| bytes.get(range.clone()).unwrap_or_default());
        Ok(Self {
            keys: KeyIndex::new(keys),
            sequences: sequences.into_boxed_slice(),
            handles: handles.into_boxed_slice(),
        })
    }

    /// Bytes of memory the partition takes.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Self>()
            + self.keys.weight()
            + size_of_val(&*self.sequences)
            + size_of_val(&*self.handles)
    }

    /// The first data block whose separator is at or after `(key, sequence)`: the only one that may hold
    /// the newest version of `key` at or below `sequence`.
    pub(crate) fn find(&self, key: &[u8], sequence: u64) -> Option<Handle> {
        let newer = |at: usize| self.sequences.get(at).is_some_and(|own| *own > sequence);
        self.handles.get(self.keys.first_at_or_after(key, newer)).copied()
    }
}
