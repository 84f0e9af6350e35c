//! Memtables: where writes live until a flush puts them into tables.
//!
//! A [`MemSet`] holds one [`Memtable`] per partition; all are frozen together, at a run boundary, so that
//! one flush can record one position for all of them. The index inside is behind [`MemIndex`]; the one in
//! use is the B+tree of `tree`, over records in the `arena`.
//!
//! Invariants:
//! 1. One writer (the open run). It gives the lock up every few inserts; readers take it for one lookup or
//!    one short copy, never across I/O.
//! 2. Entries are only added. An entry of an unpublished run has a sequence number above every
//!    published one, so no reader sees it; only such an entry may be overwritten (a later operation of
//!    the same batch on the same key).
//! 3. After [`MemSet::freeze`] nothing is added, and readers take no lock.
//! 4. The digests of all entries are summed as they are added; a flush finds the same sum or fails.

mod arena;
#[cfg(test)]
mod model;
mod node;
mod stretch;
#[cfg(test)]
mod tests;
mod tree;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;

use crate::internal_key::Kind;
use crate::types::{Op, Position};

use arena::{LARGE_BYTES, NewValue};
pub(crate) use stretch::Stretch;
use tree::Tree;

/// Writers give the lock up after this many inserts, so that a reader waits a few microseconds at most.
const INSERTS_PER_LOCK: usize = 8;

/// What a lookup found.
#[derive(Clone, Debug)]
pub(crate) struct MemFound {
    pub(crate) sequence: u64,
    pub(crate) kind: Kind,
    /// Shares the memtable's memory if that does not change any more, else a copy.
    pub(crate) value: Bytes,
}

/// Where a copy of entries begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start<'a> {
    /// At the first (or last) entry.
    End,
    /// At this internal key itself or, without it, its neighbour in the direction of the copy.
    Including(&'a [u8], u64),
    /// At the neighbour of the last entry of the stretch that is copied into.
    AfterLast,
}

/// The ordered map inside a memtable.
pub(crate) trait MemIndex: Default + Send + Sync + std::fmt::Debug {
    /// Adds an entry; one with the same key and sequence number is replaced.
    fn insert(&mut self, key: &[u8], sequence: u64, kind: Kind, value: NewValue<'_>);
    /// The newest entry of `key` at or below `sequence`.
    fn get(&self, key: &[u8], sequence: u64) -> Option<MemFound>;
    /// Replaces `out` with up to `max` entries in ascending order.
    fn copy_forward(&self, from: Start<'_>, max: usize, out: &mut Stretch);
    /// Replaces `out` with up to `max` entries in descending order.
    fn copy_backward(&self, from: Start<'_>, max: usize, out: &mut Stretch);
    /// Entries.
    fn len(&self) -> usize;
    /// Memory in use, in bytes.
    fn bytes(&self) -> usize;
    /// Sum of the digests of all entries.
    fn digest(&self) -> u64;
    /// Called when nothing more is added.
    fn seal(&mut self);
}

/// The memtable of one partition.
#[derive(Debug, Default)]
pub(crate) struct Memtable {
    index: RwLock<Tree>,
    /// What `index` was, from the freeze on; it is then empty.
    frozen: OnceLock<Tree>,
    /// Of the index, for those who do not take the lock.
    entries: AtomicUsize,
    bytes: AtomicUsize,
}

impl Memtable {
    fn apply(&self, sequence: u64, ops: &[Op<'_>]) {
        let mut rest = ops;
        while !rest.is_empty() {
            let small = rest.iter().take(INSERTS_PER_LOCK).take_while(|op| !is_large(op)).count();
            let (now, later) = rest.split_at(small.max(1));
            rest = later;
            // Copied before the lock is taken; small ones are copied into the arena.
            let mut large = match now {
                [Op::Put { value, .. }] if small == 0 => Some(Bytes::copy_from_slice(value)),
                _ => None,
            };
            let mut index = self.index.write();
            for op in now {
                match (op, large.take()) {
                    (Op::Put { key, .. }, Some(value)) => {
                        index.insert(key, sequence, Kind::Value, NewValue::Large(value));
                    }
                    (Op::Put { key, value }, None) => {
                        index.insert(key, sequence, Kind::Value, NewValue::Small(value));
                    }
                    (Op::Delete { key }, _) => {
                        index.insert(key, sequence, Kind::Delete, NewValue::Small(&[]));
                    }
                }
            }
            self.entries.store(index.len(), Ordering::Release);
            self.bytes.store(index.bytes(), Ordering::Relaxed);
        }
    }

    fn freeze(&self) {
        let mut index = self.index.write();
        let mut tree = std::mem::take(&mut *index);
        tree.seal();
        // Set before the lock is released: who finds the index empty finds this.
        self.frozen.get_or_init(|| tree);
    }

    fn read<R>(&self, what: impl FnOnce(&Tree) -> R) -> R {
        if let Some(frozen) = self.frozen.get() {
            return what(frozen);
        }
        self.read_locked(what)
    }

    /// [`read`](Self::read) of one who found the index not frozen; it may have been since, while this waited for
    /// the lock.
    fn read_locked<R>(&self, what: impl FnOnce(&Tree) -> R) -> R {
        let index = self.index.read();
        what(self.frozen.get().unwrap_or(&*index))
    }

    /// Damages the last value.
    #[cfg(test)]
    pub(crate) fn flip_a_bit(&self) {
        self.index.write().flip_a_bit();
    }

    /// The newest entry of `key` at or below `sequence`.
    pub(crate) fn get(&self, key: &[u8], sequence: u64) -> Option<MemFound> {
        if self.is_empty() {
            return None;
        }
        self.read(|tree| tree.get(key, sequence))
    }

    /// Entries: versions, deletes included.
    pub(crate) fn len(&self) -> usize {
        self.entries.load(Ordering::Acquire)
    }

    /// Whether nothing was ever written.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sum of the digests of all entries, modulo 2^64.
    pub(crate) fn digest(&self) -> u64 {
        self.read(MemIndex::digest)
    }

    /// Replaces `out` with up to `max` entries in ascending order.
    pub(crate) fn copy_forward(&self, from: Start<'_>, max: usize, out: &mut Stretch) {
        self.read(|tree| tree.copy_forward(from, max, out));
    }

    /// Replaces `out` with up to `max` entries in descending order.
    pub(crate) fn copy_backward(&self, from: Start<'_>, max: usize, out: &mut Stretch) {
        self.read(|tree| tree.copy_backward(from, max, out));
    }
}

const fn is_large(op: &Op<'_>) -> bool {
    match op {
        Op::Put { value, .. } => value.len() >= LARGE_BYTES,
        Op::Delete { .. } => false,
    }
}

/// Up to where a frozen set holds everything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FreezePoint {
    pub(crate) position: Position,
    /// The last sequence number per partition.
    pub(crate) sequences: Vec<u64>,
}

/// The memtables of all partitions.
#[derive(Debug)]
pub(crate) struct MemSet {
    tables: Box<[Memtable]>,
    frozen: OnceLock<FreezePoint>,
}

impl MemSet {
    pub(crate) fn new(partitions: usize) -> Self {
        Self {
            tables: (0..partitions).map(|_| Memtable::default()).collect(),
            frozen: OnceLock::new(),
        }
    }

    /// The memtable of a partition (by slot).
    pub(crate) fn table(&self, partition: usize) -> Option<&Memtable> {
        self.tables.get(partition)
    }

    /// Applies a batch to one partition. Only the open run calls this.
    pub(crate) fn apply(&self, partition: usize, sequence: u64, ops: &[Op<'_>]) {
        assert!(self.frozen.get().is_none(), "write of sequence {sequence} to a frozen memtable");
        if let Some(table) = self.tables.get(partition) {
            table.apply(sequence, ops);
        }
    }

    /// Memory used by keys, values and their bookkeeping, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.tables.iter().map(|t| t.bytes.load(Ordering::Relaxed)).sum()
    }

    /// Entries in all partitions.
    pub(crate) fn entries(&self) -> usize {
        self.tables.iter().map(Memtable::len).sum()
    }

    /// Ends writing; the set holds everything up to `point`. Readers take no lock from here on.
    pub(crate) fn freeze(&self, point: FreezePoint) {
        let index = point.position.index;
        assert!(
            self.frozen.set(point).is_ok(),
            "memtables frozen twice, second time at position {index}"
        );
        self.tables.iter().for_each(Memtable::freeze);
    }

    /// The point of the freeze; `None` for the active set.
    pub(crate) fn freeze_point(&self) -> Option<&FreezePoint> {
        self.frozen.get()
    }
}
