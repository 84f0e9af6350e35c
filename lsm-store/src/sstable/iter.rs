//! Iterates a table: top entries → index partition → data block, both ways, within bounds.
//!
//! Blocks stay pinned until another one is needed, so a search near the last one costs no lookup in the
//! cache. A search never relies on where the iterator stands: the block at hand is used only if its first
//! entry and its separator say that the target is in it.

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::internal_key::{Kind, compare};
use crate::iter::bounds::SharedBounds;
use crate::iter::reading::{FillCache, Reading};
use crate::sstable::block::Block;
use crate::sstable::block_iter::BlockIter;
use crate::sstable::index::IndexPartition;
use crate::sstable::read_ahead::ReadAhead;
use crate::sstable::reader::Table;

/// A walk of more data is not short: whether it is cached depends on the room there, asked each time it has
/// gone so far.
const SHORT_WALK_BYTES: u64 = 256 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct TableIter {
    table: Arc<Table>,
    reading: Reading,
    bounds: SharedBounds,
    /// An index partition and its position in the top block.
    index: Option<(usize, Arc<IndexPartition>)>,
    /// Place of a block in the index partition; behind the last one if the walk is beyond it.
    at: usize,
    data: BlockIter,
    /// Whether `data` reads the block at `at`.
    loaded: bool,
    ahead: ReadAhead,
    /// Bytes of data blocks walked through since the last search, and whether the next is to be cached.
    walked: u64,
    fill: bool,
    /// The bound in the direction of the walk is within the data block: each key is compared.
    checked: bool,
}

impl TableIter {
    pub(crate) const fn new(table: Arc<Table>, reading: Reading) -> Self {
        Self {
            table,
            reading,
            bounds: None,
            index: None,
            at: 0,
            data: BlockIter::empty(),
            loaded: false,
            ahead: ReadAhead::new(reading.purpose),
            walked: 0,
            fill: !matches!(reading.fill, FillCache::Never),
            checked: false,
        }
    }

    /// Changes to another table; keeps the buffers.
    pub(crate) fn set_table(&mut self, table: Arc<Table>) {
        self.table = table;
        self.ahead.reset();
        self.index = None;
        self.loaded = false;
        self.data.clear();
    }

    /// Changes the bounds; stands on no entry.
    pub(crate) fn set_bounds(&mut self, bounds: SharedBounds) {
        self.bounds = bounds;
        self.data.invalidate();
    }

    pub(crate) const fn valid(&self) -> bool {
        self.data.valid()
    }

    /// Stands on no entry from here on.
    pub(crate) const fn invalidate(&mut self) {
        self.data.invalidate();
    }

    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        self.data.key()
    }

    pub(crate) const fn sequence(&self) -> u64 {
        self.data.sequence()
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.data.kind()
    }

    #[inline]
    pub(crate) fn value(&self) -> &[u8] {
        self.data.value()
    }

    pub(crate) fn value_bytes(&self) -> Bytes {
        self.data.value_bytes()
    }

    /// See [`BlockIter::repeats_key`].
    pub(crate) const fn repeats_key(&self) -> bool {
        self.data.repeats_key()
    }

    /// See [`BlockIter::is_newest`].
    pub(crate) const fn is_newest(&self) -> bool {
        self.data.is_newest()
    }

    pub(crate) fn seek_to_first(&mut self) -> Result<()> {
        self.data.invalidate();
        if !self.open_index(self.wanted_from(0))? {
            return Ok(());
        }
        self.go_to(0);
        self.open_data()?;
        self.data.seek_to_first()?;
        self.check_upper();
        Ok(())
    }

    pub(crate) fn seek_to_last(&mut self) -> Result<()> {
        self.data.invalidate();
        if !self.open_index(self.table.top().len().saturating_sub(1))? {
            return Ok(());
        }
        self.go_to_last_block();
        self.open_data()?;
        self.data.seek_to_last()?;
        self.check_lower()
    }

    /// To the first entry at or after `(key, sequence)`.
    pub(crate) fn seek(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        self.search(key, sequence)?;
        if !self.at_a_block() {
            return Ok(());
        }
        self.check_upper();
        // Beyond the last entry of this block, yet not above its separator.
        if self.data.valid() || self.checked { Ok(()) } else { self.next_block() }
    }

    /// To the last entry at or before `(key, sequence)`.
    pub(crate) fn seek_for_prev(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        self.search(key, sequence)?;
        if !self.at_a_block() {
            return self.seek_to_last();
        }
        if !self.data.valid() {
            self.data.seek_to_last()?;
        } else if compare((self.key(), self.sequence()), (key, sequence)).is_gt() {
            self.data.prev()?;
            if !self.data.valid() {
                return self.prev_block();
            }
        }
        self.check_lower()
    }

    /// To the next entry. Only after a search forward, while valid.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<()> {
        self.data.next()?;
        if self.checked {
            self.stop_above();
        } else if !self.data.valid() {
            return self.next_block();
        }
        Ok(())
    }

    /// To the entry before. Only after a search backward, while valid.
    #[inline]
    pub(crate) fn prev(&mut self) -> Result<()> {
        self.data.prev()?;
        if self.checked {
            self.stop_below();
        } else if !self.data.valid() {
            return self.prev_block();
        }
        Ok(())
    }

    /// Puts `data` into the block that holds the target if any does, at the first entry at or after it; not
    /// valid if the target is after all of the block's entries. At no block if the target is after all of them.
    fn search(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        self.data.invalidate();
        if !self.at_hand(key, sequence)? {
            self.walked = 0;
            self.fill = self.reading.fill != FillCache::Never;
            let partition = self.wanted_from(self.table.partition_of(key));
            if !self.open_index(partition)? {
                return Ok(());
            }
            let at = self.index.as_ref().map_or(0, |(_, index)| index.find(key, sequence));
            self.go_to(at);
            if !self.at_a_block() {
                // Between this partition's last version of the key and the next key.
                if !self.open_index(self.wanted_from(partition + 1))? {
                    return Ok(());
                }
                self.go_to(0);
            }
            self.open_data()?;
        }
        self.data.seek(key, sequence)
    }

    /// Whether the target is in the block at hand: at or after its first entry and not after its separator.
    fn at_hand(&self, key: &[u8], sequence: u64) -> Result<bool> {
        let Some((_, index)) = &self.index else { return Ok(false) };
        Ok(self.loaded
            && index.ends_at_or_after(self.at, key, sequence)
            && self.data.begins_at_or_before(key, sequence)?)
    }

    /// The first partition from `partition` on with entries that are wanted.
    fn wanted_from(&self, partition: usize) -> usize {
        if self.reading.since == 0 {
            return partition;
        }
        let rest = self.table.top().get(partition..).unwrap_or_default();
        let passed = rest.iter().take_while(|t| t.max_sequence < self.reading.since).count();
        partition + passed
    }

    /// Opens a partition; `false` and at no block if there is no such one. [`go_to`](Self::go_to) follows.
    fn open_index(&mut self, partition: usize) -> Result<bool> {
        if self.index.as_ref().is_some_and(|(open, _)| *open == partition) {
            return Ok(true);
        }
        self.index = None;
        self.loaded = false;
        let fill = self.reading.fill != FillCache::Never;
        let index = self.table.index_partition(partition, fill)?;
        self.index = index.map(|index| (partition, index));
        Ok(self.index.is_some())
    }

    fn at_a_block(&self) -> bool {
        self.at < self.blocks()
    }

    /// Blocks in the index partition.
    fn blocks(&self) -> usize {
        self.index.as_ref().map_or(0, |(_, index)| index.len())
    }

    /// To a block of the index partition, or behind all of them; `data` stays where it is.
    const fn go_to(&mut self, at: usize) {
        self.loaded &= self.at == at;
        self.at = at;
    }

    fn go_to_last_block(&mut self) {
        self.go_to(self.blocks().saturating_sub(1));
    }

    /// Puts `data` into the block at `at`.
    fn open_data(&mut self) -> Result<()> {
        if !self.loaded
            && let Some(block) = self.read_data()?
        {
            self.data.set_block(block);
            self.loaded = true;
        }
        Ok(())
    }

    /// The block at `at`; `data` counts as reading nothing until it has it.
    fn read_data(&mut self) -> Result<Option<Block>> {
        self.loaded = false;
        let Some((_, index)) = &self.index else { return Ok(None) };
        let Some(handle) = index.handle(self.at) else { return Ok(None) };
        let before = self.walked / SHORT_WALK_BYTES;
        self.walked = self.walked.saturating_add(handle.len);
        if self.reading.fill == FillCache::WhileRoom && self.walked / SHORT_WALK_BYTES > before {
            self.fill = self.table.cache_has_room();
        }
        self.table.block_ahead(index, self.at, self.fill, &mut self.ahead).map(Some)
    }

    /// To the first entry after the current data block.
    fn next_block(&mut self) -> Result<()> {
        self.go_to(self.at + 1);
        if !self.at_a_block() {
            let next = self.index.as_ref().map_or(0, |(partition, _)| partition + 1);
            if !self.open_index(self.wanted_from(next))? {
                return Ok(());
            }
            self.go_to(0);
        }
        if let Some(block) = self.read_data()? {
            self.data.continue_in(block)?;
            self.loaded = true;
        }
        self.check_upper();
        Ok(())
    }

    /// To the last entry before the current data block.
    fn prev_block(&mut self) -> Result<()> {
        if let Some(before) = self.at.checked_sub(1) {
            self.go_to(before);
        } else {
            let Some(before) = self.index.as_ref().and_then(|(p, _)| p.checked_sub(1)) else {
                return Ok(());
            };
            self.open_index(before)?;
            self.go_to_last_block();
        }
        if let (Some(bounds), Some((_, index))) = (&self.bounds, &self.index)
            && !bounds.is_above_lower(|lower| index.compare(self.at, lower))
        {
            return Ok(());
        }
        self.open_data()?;
        self.data.seek_to_last()?;
        self.check_lower()
    }

    /// After a move forward into a block: its keys are compared to the bound only if its separator is above.
    fn check_upper(&mut self) {
        self.checked = match (&self.bounds, &self.index) {
            (Some(bounds), Some((_, index))) => {
                !bounds.is_below_upper(|upper| index.compare(self.at, upper))
            }
            _ => false,
        };
        if self.checked {
            self.stop_above();
        }
    }

    /// After a move backward into a block: its keys are compared to the bound only if its first one is below.
    fn check_lower(&mut self) -> Result<()> {
        let below = |lower: &[u8]| self.data.first_key_cmp(lower);
        let first_is_outside = match self.bounds.as_ref().map(|b| &b.lower) {
            None | Some(Bound::Unbounded) => Ok(false),
            Some(Bound::Included(lower)) => below(lower).map(Ordering::is_lt),
            Some(Bound::Excluded(lower)) => below(lower).map(Ordering::is_le),
        };
        self.checked = first_is_outside.inspect_err(|_| self.data.invalidate())?;
        if self.checked {
            self.stop_below();
        }
        Ok(())
    }

    fn stop_above(&mut self) {
        if self.bounds.as_ref().is_some_and(|b| !b.below_upper(self.data.key())) {
            self.data.invalidate();
        }
    }

    fn stop_below(&mut self) {
        if self.bounds.as_ref().is_some_and(|b| !b.above_lower(self.data.key())) {
            self.data.invalidate();
        }
    }
}
