//! Iterates a level below level 0: tables one after the other, of which one is open at a time.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::internal_key::Kind;
use crate::iter::InternalIter;
use crate::sstable::iter::TableIter;
use crate::sstable::reader::Table;

/// Tables in key order whose ranges do not overlap.
pub(crate) type Tables = Arc<[Arc<Table>]>;

/// See the module.
#[derive(Debug)]
pub(crate) struct LevelIter {
    tables: Tables,
    fill: bool,
    at: usize,
    table: Option<TableIter>,
}

impl LevelIter {
    pub(crate) const fn new(tables: Tables, fill: bool) -> Self {
        Self { tables, fill, at: 0, table: None }
    }

    /// Opens a table of the level; `false` if there is none at this place.
    fn open(&mut self, at: usize) -> Option<&mut TableIter> {
        self.table = self.tables.get(at).map(|t| TableIter::new(Arc::clone(t), self.fill));
        self.at = at;
        self.table.as_mut()
    }

    /// If the current table is exhausted, to the beginning of the next one.
    fn skip_forward(&mut self) -> Result<()> {
        while !self.valid() && self.table.is_some() {
            match self.open(self.at + 1) {
                Some(table) => table.seek_to_first()?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn skip_backward(&mut self) -> Result<()> {
        while !self.valid() && self.table.is_some() {
            let Some(before) = self.at.checked_sub(1) else {
                self.table = None;
                return Ok(());
            };
            if let Some(table) = self.open(before) {
                table.seek_to_last()?;
            }
        }
        Ok(())
    }
}

impl InternalIter for LevelIter {
    fn valid(&self) -> bool {
        self.table.as_ref().is_some_and(TableIter::valid)
    }

    fn key(&self) -> &[u8] {
        self.table.as_ref().map_or(&[], TableIter::key)
    }

    fn sequence(&self) -> u64 {
        self.table.as_ref().map_or(0, TableIter::sequence)
    }

    fn kind(&self) -> Kind {
        self.table.as_ref().map_or(Kind::Value, TableIter::kind)
    }

    fn value(&self) -> &[u8] {
        self.table.as_ref().map_or(&[], TableIter::value)
    }

    fn value_bytes(&self) -> Bytes {
        self.table.as_ref().map_or_else(Bytes::new, TableIter::value_bytes)
    }

    fn seek_to_first(&mut self) -> Result<()> {
        if let Some(table) = self.open(0) {
            table.seek_to_first()?;
        }
        self.skip_forward()
    }

    fn seek_to_last(&mut self) -> Result<()> {
        if let Some(table) = self.open(self.tables.len().saturating_sub(1)) {
            table.seek_to_last()?;
        }
        self.skip_backward()
    }

    fn seek(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        let at = self.tables.partition_point(|t| t.meta().largest.user_key.as_slice() < key);
        if let Some(table) = self.open(at) {
            table.seek(key, sequence)?;
        }
        self.skip_forward()
    }

    fn seek_for_prev(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        let at = self.tables.partition_point(|t| t.meta().largest.user_key.as_slice() < key);
        if at >= self.tables.len() {
            return self.seek_to_last();
        }
        if let Some(table) = self.open(at) {
            table.seek_for_prev(key, sequence)?;
        }
        self.skip_backward()
    }

    fn next(&mut self) -> Result<()> {
        if let Some(table) = &mut self.table {
            table.next()?;
        }
        self.skip_forward()
    }

    fn prev(&mut self) -> Result<()> {
        if let Some(table) = &mut self.table {
            table.prev()?;
        }
        self.skip_backward()
    }
}
