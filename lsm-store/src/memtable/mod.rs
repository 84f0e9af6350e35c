//! Memtables: where writes live until a flush puts them into tables.
//!
//! A [`MemSet`] holds one [`Memtable`] per partition; all are frozen together, at a run boundary, so that
//! one flush can record one position for all of them. The index inside is behind [`MemIndex`], so that
//! another structure can take its place.
//!
//! Invariants:
//! 1. One writer (the open run). Readers take the read lock for one lookup or one short copy, never across I/O.
//! 2. Entries are only added. An entry of an unpublished run has a sequence number above every
//!    published one, so no reader sees it; only such an entry may be overwritten (a later operation of
//!    the same batch on the same key).
//! 3. After [`MemSet::freeze`] nothing is added.

mod map;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};

use crate::internal_key::Kind;
use crate::types::{Op, Position};

/// Writers give the lock up after this many inserts, so that a reader waits a few microseconds at most.
const INSERTS_PER_LOCK: usize = 8;

/// Size of the chunks that keys and values are copied into; larger entries get a chunk of their own.
/// Large enough to make allocations rare, small enough that a held value pins little.
const CHUNK_BYTES: usize = 64 * 1024;

/// What an entry costs beside its bytes, for [`MemSet::bytes`]: tree node, two slices, counters.
const ENTRY_OVERHEAD_BYTES: usize = 120;

/// One entry, its bytes shared with the memtable.
#[derive(Clone, Debug)]
pub(crate) struct MemEntry {
    pub(crate) key: Bytes,
    pub(crate) sequence: u64,
    pub(crate) kind: Kind,
    pub(crate) value: Bytes,
}

/// Where a copy of entries begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start<'a> {
    /// At the first (or last) entry.
    End,
    /// At this internal key itself or, without it, its neighbour in the direction of the copy.
    Including(&'a [u8], u64),
    /// At the neighbour of this internal key.
    Excluding(&'a [u8], u64),
}

/// The ordered map inside a memtable.
pub(crate) trait MemIndex: Default + Send + Sync + std::fmt::Debug {
    /// Adds an entry; one with the same key and sequence number is replaced. Returns whether there was none.
    fn insert(&mut self, entry: MemEntry) -> bool;
    /// The newest entry of `key` at or below `sequence`.
    fn get(&self, key: &[u8], sequence: u64) -> Option<MemEntry>;
    /// Appends up to `max` entries in ascending order.
    fn copy_forward(&self, from: Start<'_>, max: usize, out: &mut Vec<MemEntry>);
    /// Appends up to `max` entries in descending order.
    fn copy_backward(&self, from: Start<'_>, max: usize, out: &mut Vec<MemEntry>);
}

/// The memtable of one partition.
#[derive(Debug, Default)]
pub(crate) struct Memtable {
    index: RwLock<map::MapIndex>,
    /// Only the writer takes it; uncontended by invariant 1.
    chunk: Mutex<BytesMut>,
    entries: AtomicUsize,
    bytes: AtomicUsize,
}

impl Memtable {
    fn apply(&self, sequence: u64, ops: &[Op<'_>]) {
        let mut chunk = self.chunk.lock();
        for some in ops.chunks(INSERTS_PER_LOCK) {
            let mut bytes = 0;
            // Copied before the lock: readers wait for tree inserts only.
            let entries: [Option<MemEntry>; INSERTS_PER_LOCK] = std::array::from_fn(|i| {
                some.get(i).map(|op| {
                    let entry = copy_in(&mut chunk, sequence, op);
                    bytes += entry.key.len() + entry.value.len() + ENTRY_OVERHEAD_BYTES;
                    entry
                })
            });
            let mut index = self.index.write();
            let added =
                entries.into_iter().flatten().filter_map(|e| index.insert(e).then_some(())).count();
            drop(index);
            self.entries.fetch_add(added, Ordering::Release);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// The newest entry of `key` at or below `sequence`.
    pub(crate) fn get(&self, key: &[u8], sequence: u64) -> Option<MemEntry> {
        if self.is_empty() {
            return None;
        }
        self.index.read().get(key, sequence)
    }

    /// Entries: versions, deletes included.
    pub(crate) fn len(&self) -> usize {
        self.entries.load(Ordering::Acquire)
    }

    /// Whether nothing was ever written.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Replaces `out` with up to `max` entries in ascending order.
    pub(crate) fn copy_forward(&self, from: Start<'_>, max: usize, out: &mut Vec<MemEntry>) {
        out.clear();
        self.index.read().copy_forward(from, max, out);
    }

    /// Replaces `out` with up to `max` entries in descending order.
    pub(crate) fn copy_backward(&self, from: Start<'_>, max: usize, out: &mut Vec<MemEntry>) {
        out.clear();
        self.index.read().copy_backward(from, max, out);
    }
}

/// Copies key and value into the chunk, so that an entry costs no allocation of its own.
fn copy_in(chunk: &mut BytesMut, sequence: u64, op: &Op<'_>) -> MemEntry {
    let (key, value, kind) = match op {
        Op::Put { key, value } => (*key, *value, Kind::Value),
        Op::Delete { key } => (*key, &[][..], Kind::Delete),
    };
    let need = key.len() + value.len();
    if chunk.capacity() < need {
        *chunk = BytesMut::with_capacity(need.max(CHUNK_BYTES));
    }
    chunk.extend_from_slice(key);
    let key = chunk.split().freeze();
    chunk.extend_from_slice(value);
    let value = chunk.split().freeze();
    MemEntry { key, sequence, kind, value }
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

    /// Ends writing; the set holds everything up to `point`.
    pub(crate) fn freeze(&self, point: FreezePoint) {
        let index = point.position.index;
        assert!(
            self.frozen.set(point).is_ok(),
            "memtables frozen twice, second time at position {index}"
        );
    }

    /// The point of the freeze; `None` for the active set.
    pub(crate) fn freeze_point(&self) -> Option<&FreezePoint> {
        self.frozen.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Op<'a> {
        Op::Put { key, value }
    }

    #[test]
    fn get_finds_the_newest_version_at_or_below_a_sequence() {
        let set = MemSet::new(1);
        set.apply(0, 3, &[put(b"k", b"three"), put(b"k2", b"x")]);
        set.apply(0, 5, &[Op::Delete { key: b"k" }]);
        set.apply(0, 9, &[put(b"k", b"nine")]);
        let table = set.table(0).expect("one partition");
        assert!(table.get(b"k", 2).is_none(), "nothing at 2");
        assert_eq!(table.get(b"k", 4).expect("at 4").value, "three", "3 is newest at 4");
        assert_eq!(table.get(b"k", 8).expect("at 8").kind, Kind::Delete, "deleted at 5");
        assert_eq!(table.get(b"k", u64::MAX).expect("newest").sequence, 9, "newest is 9");
        assert!(table.get(b"k1", u64::MAX).is_none(), "a key between two others is absent");
        assert!(table.get(b"", u64::MAX).is_none(), "the empty key is a key like others");
    }

    #[test]
    fn the_last_operation_on_a_key_of_one_batch_wins() {
        let set = MemSet::new(1);
        set.apply(0, 7, &[put(b"k", b"1"), Op::Delete { key: b"k" }, put(b"k", b"2")]);
        let table = set.table(0).expect("one partition");
        assert_eq!(table.get(b"k", 7).expect("there").value, "2", "the last one");
        let mut all = Vec::new();
        table.copy_forward(Start::End, 10, &mut all);
        assert_eq!(all.len(), 1, "one entry per key and sequence number");
    }

    #[test]
    fn copies_go_both_ways_from_any_point() {
        let set = MemSet::new(1);
        for (key, sequence) in [(&b"a"[..], 1), (b"ab", 2), (b"b", 3), (b"ab", 4)] {
            set.apply(0, sequence, &[put(key, b"v")]);
        }
        let table = set.table(0).expect("one partition");
        let forward = |from| {
            let mut out = Vec::new();
            table.copy_forward(from, 10, &mut out);
            out.iter().map(|e| (e.key.to_vec(), e.sequence)).collect::<Vec<_>>()
        };
        let backward = |from| {
            let mut out = Vec::new();
            table.copy_backward(from, 10, &mut out);
            out.iter().map(|e| (e.key.to_vec(), e.sequence)).collect::<Vec<_>>()
        };
        let all =
            vec![(b"a".to_vec(), 1), (b"ab".to_vec(), 4), (b"ab".to_vec(), 2), (b"b".to_vec(), 3)];
        assert_eq!(forward(Start::End), all, "everything");
        assert_eq!(forward(Start::Including(b"ab", 3)), all[2..], "from between two versions");
        assert_eq!(forward(Start::Excluding(b"ab", 2)), all[3..], "after an entry");
        let mut reversed = all.clone();
        reversed.reverse();
        assert_eq!(backward(Start::End), reversed, "everything, backward");
        assert_eq!(
            backward(Start::Including(b"ab", 3)),
            reversed[2..],
            "from between two versions"
        );
        assert_eq!(backward(Start::Excluding(b"a", 1)), [], "before the first");
    }

    #[test]
    fn values_larger_than_a_chunk_are_kept_whole() {
        let set = MemSet::new(1);
        let large = vec![7_u8; CHUNK_BYTES * 3];
        set.apply(0, 1, &[put(b"large", &large), put(b"small", b"s")]);
        let table = set.table(0).expect("one partition");
        assert_eq!(table.get(b"large", 1).expect("there").value, large, "large");
        assert_eq!(table.get(b"small", 1).expect("there").value, "s", "small");
        assert!(set.bytes() > large.len(), "counted: {}", set.bytes());
    }
}
