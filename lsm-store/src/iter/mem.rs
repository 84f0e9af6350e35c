//! Iterates a memtable by copies of short stretches, so that its lock is held for microseconds.
//!
//! Legal because nothing is ever removed from a memtable: the next stretch begins at the neighbour of
//! the last entry copied, whatever was added in between.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::internal_key::Kind;
use crate::iter::InternalIter;
use crate::memtable::{MemEntry, MemSet, Memtable, Start};

/// A first copy is short, for lookups of a few rows; each further one doubles up to the longest.
const STRETCH_MIN: usize = 8;
const STRETCH_MAX: usize = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct MemIter {
    set: Arc<MemSet>,
    partition: usize,
    /// In the order of `backward`.
    copied: Vec<MemEntry>,
    at: usize,
    backward: bool,
    stretch: usize,
}

impl MemIter {
    pub(crate) const fn new(set: Arc<MemSet>, partition: usize) -> Self {
        Self { set, partition, copied: Vec::new(), at: 0, backward: false, stretch: STRETCH_MIN }
    }

    fn current(&self) -> Option<&MemEntry> {
        self.copied.get(self.at)
    }

    fn copy(&mut self, from: Start<'_>, backward: bool) {
        self.backward = backward;
        self.at = 0;
        let Some(table) = self.set.table(self.partition) else { return };
        fill(table, from, backward, self.stretch, &mut self.copied);
    }

    /// To the neighbour in the direction of the last search.
    fn go(&mut self, backward: bool) {
        assert_eq!(
            self.backward, backward,
            "a memtable iterator changes its direction only by a search"
        );
        let Some(here) = self.current() else { return };
        if self.at + 1 < self.copied.len() {
            self.at += 1;
            return;
        }
        let (key, sequence) = (here.key.clone(), here.sequence);
        self.stretch = (self.stretch * 2).min(STRETCH_MAX);
        self.copy(Start::Excluding(&key, sequence), backward);
    }

    fn search(&mut self, from: Start<'_>, backward: bool) {
        self.stretch = STRETCH_MIN;
        self.copy(from, backward);
    }
}

fn fill(table: &Memtable, from: Start<'_>, backward: bool, max: usize, out: &mut Vec<MemEntry>) {
    if backward {
        table.copy_backward(from, max, out);
    } else {
        table.copy_forward(from, max, out);
    }
}

impl InternalIter for MemIter {
    fn valid(&self) -> bool {
        self.current().is_some()
    }

    fn key(&self) -> &[u8] {
        self.current().map_or(&[], |e| &e.key)
    }

    fn sequence(&self) -> u64 {
        self.current().map_or(0, |e| e.sequence)
    }

    fn kind(&self) -> Kind {
        self.current().map_or(Kind::Value, |e| e.kind)
    }

    fn value(&self) -> &[u8] {
        self.current().map_or(&[], |e| &e.value)
    }

    fn value_bytes(&self) -> Bytes {
        self.current().map_or_else(Bytes::new, |e| e.value.clone())
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.search(Start::End, false);
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.search(Start::End, true);
        Ok(())
    }

    fn seek(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        self.search(Start::Including(key, sequence), false);
        Ok(())
    }

    fn seek_for_prev(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        self.search(Start::Including(key, sequence), true);
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.go(false);
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        self.go(true);
        Ok(())
    }
}
