//! Iterates a table: top entries → index partition → data block, both ways.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::internal_key::{Kind, compare};
use crate::iter::InternalIter;
use crate::sstable::block_iter::BlockIter;
use crate::sstable::format::BlockKind;
use crate::sstable::reader::Table;

/// See the module.
#[derive(Debug)]
pub(crate) struct TableIter {
    table: Arc<Table>,
    /// Whether blocks read are kept in the cache; not for compactions.
    fill: bool,
    /// Position in the top block of `index`.
    partition: usize,
    index: Option<BlockIter>,
    data: Option<BlockIter>,
}

impl TableIter {
    pub(crate) const fn new(table: Arc<Table>, fill: bool) -> Self {
        Self { table, fill, partition: 0, index: None, data: None }
    }

    fn open_index(&mut self, partition: usize) -> Result<bool> {
        self.data = None;
        self.index = None;
        let Some(top) = self.table.top().get(partition) else { return Ok(false) };
        let block = self.table.block(top.index, BlockKind::Index, self.fill)?;
        self.partition = partition;
        self.index = Some(BlockIter::new(block));
        Ok(true)
    }

    /// The data block of the index entry the index stands on.
    fn open_data(&mut self) -> Result<Option<&mut BlockIter>> {
        self.data = None;
        if let Some(index) = self.index.as_ref().filter(|i| i.valid()) {
            let block = self.table.block(index.handle(), BlockKind::Data, self.fill)?;
            self.data = Some(BlockIter::new(block));
        }
        Ok(self.data.as_mut())
    }

    /// To the first entry after the current data block.
    fn next_block(&mut self) -> Result<()> {
        self.data = None;
        let Some(index) = &mut self.index else { return Ok(()) };
        index.next()?;
        if !index.valid() {
            if !self.open_index(self.partition + 1)? {
                return Ok(());
            }
            if let Some(index) = &mut self.index {
                index.seek_to_first()?;
            }
        }
        if let Some(data) = self.open_data()? {
            data.seek_to_first()?;
        }
        Ok(())
    }

    /// To the last entry before the current data block.
    fn prev_block(&mut self) -> Result<()> {
        self.data = None;
        let Some(index) = &mut self.index else { return Ok(()) };
        index.prev()?;
        if !index.valid() {
            let Some(before) = self.partition.checked_sub(1) else {
                self.index = None;
                return Ok(());
            };
            self.open_index(before)?;
            if let Some(index) = &mut self.index {
                index.seek_to_last()?;
            }
        }
        if let Some(data) = self.open_data()? {
            data.seek_to_last()?;
        }
        Ok(())
    }
}

impl InternalIter for TableIter {
    fn valid(&self) -> bool {
        self.data.as_ref().is_some_and(BlockIter::valid)
    }

    fn key(&self) -> &[u8] {
        self.data.as_ref().map_or(&[], BlockIter::key)
    }

    fn sequence(&self) -> u64 {
        self.data.as_ref().map_or(0, BlockIter::sequence)
    }

    fn kind(&self) -> Kind {
        self.data.as_ref().map_or(Kind::Value, BlockIter::kind)
    }

    fn value(&self) -> &[u8] {
        self.data.as_ref().map_or(&[], BlockIter::value)
    }

    fn value_bytes(&self) -> Bytes {
        self.data.as_ref().map_or_else(Bytes::new, BlockIter::value_bytes)
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.open_index(0)?;
        if let Some(index) = &mut self.index {
            index.seek_to_first()?;
        }
        if let Some(data) = self.open_data()? {
            data.seek_to_first()?;
        }
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.open_index(self.table.top().len().saturating_sub(1))?;
        if let Some(index) = &mut self.index {
            index.seek_to_last()?;
        }
        if let Some(data) = self.open_data()? {
            data.seek_to_last()?;
        }
        Ok(())
    }

    fn seek(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        let partition = self.table.top().partition_point(|t| t.last_key.as_slice() < key);
        if !self.open_index(partition)? {
            return Ok(());
        }
        if let Some(index) = &mut self.index {
            index.seek(key, sequence)?;
            if !index.valid() {
                // Between this partition's last version of the key and the next key.
                index.seek_to_last()?;
                return self.next_block();
            }
        }
        if let Some(data) = self.open_data()? {
            data.seek(key, sequence)?;
            if !data.valid() {
                return self.next_block();
            }
        }
        Ok(())
    }

    fn seek_for_prev(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        self.seek(key, sequence)?;
        if !self.valid() {
            return self.seek_to_last();
        }
        if compare((self.key(), self.sequence()), (key, sequence)).is_gt() {
            return self.prev();
        }
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        if let Some(data) = &mut self.data {
            data.next()?;
            if !data.valid() {
                return self.next_block();
            }
        }
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        if let Some(data) = &mut self.data {
            data.prev()?;
            if !data.valid() {
                return self.prev_block();
            }
        }
        Ok(())
    }
}
