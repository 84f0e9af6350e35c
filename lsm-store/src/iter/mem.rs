//! Iterates a memtable by copies of short stretches, so that its lock is held for microseconds.
//!
//! Legal because nothing is ever removed from a memtable: the next stretch begins at the neighbour of
//! the last entry copied, whatever was added in between. The buffers of a stretch are used again.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::internal_key::Kind;
use crate::iter::InternalIter;
use crate::memtable::{MemSet, Start, Stretch};

/// A first copy is short, for lookups of a few rows; each further one doubles up to the longest.
const STRETCH_MIN: usize = 8;
const STRETCH_MAX: usize = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct MemIter {
    set: Arc<MemSet>,
    partition: usize,
    /// In the order of `backward`.
    copied: Stretch,
    at: usize,
    backward: bool,
    max: usize,
}

impl MemIter {
    pub(crate) fn new(set: Arc<MemSet>, partition: usize) -> Self {
        let copied = Stretch::default();
        Self { set, partition, copied, at: 0, backward: false, max: STRETCH_MIN }
    }

    fn copy(&mut self, from: Start<'_>) {
        self.at = 0;
        let Some(table) = self.set.table(self.partition) else { return };
        if self.backward {
            table.copy_backward(from, self.max, &mut self.copied);
        } else {
            table.copy_forward(from, self.max, &mut self.copied);
        }
    }

    /// To the neighbour in the direction of the last search.
    fn go(&mut self, backward: bool) {
        assert_eq!(
            self.backward, backward,
            "a memtable iterator changes its direction only by a search"
        );
        self.at += 1;
        if self.at == self.copied.len() {
            self.max = (self.max * 2).min(STRETCH_MAX);
            self.copy(Start::AfterLast);
        }
    }

    fn search(&mut self, from: Start<'_>, backward: bool) {
        self.max = STRETCH_MIN;
        self.backward = backward;
        self.copy(from);
    }
}

impl InternalIter for MemIter {
    fn valid(&self) -> bool {
        self.at < self.copied.len()
    }

    fn key(&self) -> &[u8] {
        self.copied.key(self.at)
    }

    fn sequence(&self) -> u64 {
        self.copied.sequence(self.at)
    }

    fn kind(&self) -> Kind {
        self.copied.kind(self.at)
    }

    fn value(&self) -> &[u8] {
        self.copied.value(self.at)
    }

    fn value_bytes(&self) -> Bytes {
        self.copied.value_bytes(self.at)
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
