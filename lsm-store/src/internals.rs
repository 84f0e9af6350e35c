//! Parts of the engine for its own benchmarks. Not part of the interface: it may change at any time.

use bytes::Bytes;

use crate::memtable::{FreezePoint, MemSet, Start, Stretch};
use crate::types::{Op, Position};

/// The memtable of one partition.
#[derive(Debug)]
pub struct Memtable(MemSet);

/// Entries copied out of a [`Memtable`] in ascending order.
#[derive(Debug, Default)]
pub struct Scan(Stretch);

impl Memtable {
    /// An empty one.
    pub fn new() -> Self {
        Self(MemSet::new(1))
    }

    /// Applies a batch.
    pub fn apply(&self, sequence: u64, ops: &[Op<'_>]) {
        self.0.apply(0, sequence, ops);
    }

    /// The value of the newest version of `key` at or below `sequence`.
    pub fn get(&self, key: &[u8], sequence: u64) -> Option<Bytes> {
        self.0.table(0)?.get(key, sequence).map(|found| found.value)
    }

    /// Copies up to `max` entries from `from` on; from where the last copy ended without it. Returns how many.
    pub fn scan(&self, from: Option<&[u8]>, max: usize, out: &mut Scan) -> usize {
        let start = from.map_or(Start::AfterLast, |key| Start::Including(key, u64::MAX));
        if let Some(table) = self.0.table(0) {
            table.copy_forward(start, max, &mut out.0);
        }
        out.0.len()
    }

    /// Ends writing.
    pub fn freeze(&self) {
        self.0.freeze(FreezePoint { position: Position::default(), sequences: vec![0] });
    }

    /// Memory in use, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

impl Default for Memtable {
    fn default() -> Self {
        Self::new()
    }
}

impl Scan {
    /// Key and value of an entry.
    pub fn entry(&self, at: usize) -> (&[u8], &[u8]) {
        (self.0.key(at), self.0.value(at))
    }
}
