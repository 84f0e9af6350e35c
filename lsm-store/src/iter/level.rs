//! Iterates a sorted run or a level below level 0: tables one after the other, of which one is open at a time.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::internal_key::Kind;
use crate::iter::InternalIter;
use crate::iter::bounds::SharedBounds;
use crate::iter::reading::Reading;
use crate::sstable::iter::TableIter;
use crate::sstable::reader::Table;

/// Tables in key order whose ranges do not overlap.
pub(crate) type Tables = Arc<[Arc<Table>]>;

/// See the module.
#[derive(Debug)]
pub(crate) struct LevelIter {
    tables: Tables,
    reading: Reading,
    bounds: SharedBounds,
    /// Reads the table at this place.
    at: usize,
    table: Option<TableIter>,
}

impl LevelIter {
    pub(crate) const fn new(tables: Tables, reading: Reading) -> Self {
        Self { tables, reading, bounds: None, at: 0, table: None }
    }

    /// Changes the bounds; stands on no entry.
    pub(crate) fn set_bounds(&mut self, bounds: SharedBounds) {
        if let Some(table) = &mut self.table {
            table.set_bounds(bounds.clone());
        }
        self.bounds = bounds;
    }

    /// See [`BlockIter::repeats_key`](crate::sstable::block_iter::BlockIter::repeats_key).
    #[inline]
    pub(crate) fn repeats_key(&self) -> bool {
        self.table.as_ref().is_some_and(TableIter::repeats_key)
    }

    /// See [`BlockIter::is_newest`](crate::sstable::block_iter::BlockIter::is_newest).
    #[inline]
    pub(crate) fn is_newest(&self) -> bool {
        self.table.as_ref().is_some_and(TableIter::is_newest)
    }

    /// The table at a place; none if there is no such place, or all of the table is beyond the bound that
    /// lies in the direction. Stands on no entry.
    fn open(&mut self, at: Option<usize>, backward: bool) -> Option<&mut TableIter> {
        if let Some(open) = &mut self.table {
            open.invalidate();
        }
        let at = at?;
        let next = self.tables.get(at)?;
        if let Some(bounds) = &self.bounds {
            let meta = next.meta();
            let inside = if backward {
                bounds.above_lower(&meta.largest.user_key)
            } else {
                bounds.below_upper(&meta.smallest.user_key)
            };
            if !inside {
                return None;
            }
        }
        match &mut self.table {
            Some(_) if self.at == at => {}
            Some(open) => open.set_table(Arc::clone(next)),
            none => {
                let mut opened = TableIter::new(Arc::clone(next), self.reading);
                opened.set_bounds(self.bounds.clone());
                *none = Some(opened);
            }
        }
        self.at = at;
        self.table.as_mut()
    }

    /// The place of the first table that does not end before a key.
    fn place(&self, key: &[u8]) -> usize {
        self.tables.partition_point(|t| t.meta().largest.user_key.as_slice() < key)
    }

    /// If the current table is exhausted, to the beginning of the next one.
    fn skip_forward(&mut self) -> Result<()> {
        while !self.valid() {
            match self.open(Some(self.at + 1), false) {
                Some(table) => table.seek_to_first()?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// If the current table is exhausted, to the end of the one before.
    fn skip_backward(&mut self) -> Result<()> {
        while !self.valid() {
            match self.open(self.at.checked_sub(1), true) {
                Some(table) => table.seek_to_last()?,
                None => return Ok(()),
            }
        }
        Ok(())
    }
}

impl InternalIter for LevelIter {
    #[inline]
    fn valid(&self) -> bool {
        self.table.as_ref().is_some_and(TableIter::valid)
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.table.as_ref().map_or(&[], TableIter::key)
    }

    #[inline]
    fn sequence(&self) -> u64 {
        self.table.as_ref().map_or(0, TableIter::sequence)
    }

    #[inline]
    fn kind(&self) -> Kind {
        self.table.as_ref().map_or(Kind::Value, TableIter::kind)
    }

    #[inline]
    fn value(&self) -> &[u8] {
        self.table.as_ref().map_or(&[], TableIter::value)
    }

    fn value_bytes(&self) -> Bytes {
        self.table.as_ref().map_or_else(Bytes::new, TableIter::value_bytes)
    }

    fn seek_to_first(&mut self) -> Result<()> {
        match self.open(Some(0), false) {
            Some(table) => table.seek_to_first()?,
            None => return Ok(()),
        }
        self.skip_forward()
    }

    fn seek_to_last(&mut self) -> Result<()> {
        match self.open(self.tables.len().checked_sub(1), true) {
            Some(table) => table.seek_to_last()?,
            None => return Ok(()),
        }
        self.skip_backward()
    }

    fn seek(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        match self.open(Some(self.place(key)), false) {
            Some(table) => table.seek(key, sequence)?,
            None => return Ok(()),
        }
        self.skip_forward()
    }

    fn seek_for_prev(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        let place = self.place(key);
        if self.tables.get(place).is_none_or(|t| t.meta().smallest.user_key.as_slice() > key) {
            // All that is before the key is in the tables before this place.
            return match self.open(place.checked_sub(1), true) {
                Some(table) => table.seek_to_last(),
                None => Ok(()),
            };
        }
        match self.open(Some(place), true) {
            Some(table) => table.seek_for_prev(key, sequence)?,
            None => return Ok(()),
        }
        self.skip_backward()
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        let Some(table) = &mut self.table else { return Ok(()) };
        table.next()?;
        if table.valid() { Ok(()) } else { self.skip_forward() }
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        let Some(table) = &mut self.table else { return Ok(()) };
        table.prev()?;
        if table.valid() { Ok(()) } else { self.skip_backward() }
    }
}
