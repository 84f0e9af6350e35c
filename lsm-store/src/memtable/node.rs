//! Nodes of the memtable's tree, and the pools they live in.
//!
//! A node holds up to [`SLOTS`] heads and as many record references, in two arrays: a search runs over the
//! heads, 8 cache lines of them, and looks at a record only where heads are equal.
//!
//! The head of a key in a node is its 8 bytes from `skip` on. All keys that a search may bring to the node
//! share their first `skip` bytes, so heads order like keys do, except for ties.

use std::cmp::Ordering;
use std::hint::black_box;
use std::ops::{Index, IndexMut};

use super::arena::{Arena, RecordRef, Target};

/// Entries of a leaf, separators of an inner node.
pub(super) const SLOTS: usize = 64;

/// Heads looked at together: a cache line.
const GROUP: usize = 8;

/// Heads are computed anew once they would gain this many bytes: at least half of a head then tells.
const SKIP_GAIN_MIN: u32 = 4;

/// A head in a slot that is not in use: no search counts it.
const UNUSED: u64 = u64::MAX;

/// No node.
pub(super) const NONE: u32 = u32::MAX;

/// Sorted heads and record references.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    heads: [u64; SLOTS],
    refs: [RecordRef; SLOTS],
    len: u16,
    /// Bytes that heads leave out.
    skip: u32,
}

impl Slots {
    pub(super) const fn new(skip: u32) -> Self {
        Self { heads: [UNUSED; SLOTS], refs: [RecordRef::NOWHERE; SLOTS], len: 0, skip }
    }

    pub(super) const fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) const fn is_full(&self) -> bool {
        self.len() == SLOTS
    }

    pub(super) fn get(&self, at: usize) -> Option<RecordRef> {
        self.refs[..self.len()].get(at).copied()
    }

    /// The records from `at` on.
    pub(super) fn records(&self, at: usize) -> &[RecordRef] {
        self.refs[..self.len()].get(at..).unwrap_or_default()
    }

    /// The records before `at`.
    pub(super) fn records_before(&self, at: usize) -> &[RecordRef] {
        &self.refs[..self.len().min(at)]
    }

    /// Loads the lines of the references, without waiting for them: what follows a search needs one.
    pub(super) fn touch(&self) {
        let lines = self.refs.as_chunks::<{ 2 * GROUP }>().0;
        black_box(lines.iter().fold(0, |all, line| all ^ line[0].bits()));
    }

    /// Slots before the first at or after `target`, and whether that is `target` itself.
    pub(super) fn lower(&self, arena: &Arena, target: Target<'_>) -> (usize, bool) {
        self.rank(arena, target, Ordering::Less)
    }

    /// Slots before the first after `target`.
    pub(super) fn upper(&self, arena: &Arena, target: Target<'_>) -> usize {
        self.rank(arena, target, Ordering::Equal).0
    }

    /// Slots whose order to `target` is at most `up_to`, and whether `target` was met.
    fn rank(&self, arena: &Arena, target: Target<'_>, up_to: Ordering) -> (usize, bool) {
        let head = head_at(target.key, self.skip);
        let mut low = self.below(head);
        let ties = self.heads[low..self.len()].iter().take_while(|h| **h == head).count();
        let (mut high, mut met) = (low + ties, false);
        while low < high {
            let middle = low.midpoint(high);
            let order = arena.compare(self.refs[middle], target);
            met |= order == Ordering::Equal;
            if order <= up_to {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (low, met)
    }

    /// The record at `at`, unless its head alone says that its key is not `key`.
    pub(super) fn get_if_alike(&self, at: usize, key: &[u8]) -> Option<RecordRef> {
        self.get(at).filter(|_| self.heads[at] == head_at(key, self.skip))
    }

    /// Slots with a head below `head`. Looks at the last head of every cache line first: those loads do not
    /// wait for each other, where a binary search would wait for one line after the other.
    fn below(&self, head: u64) -> usize {
        let (lines, _) = self.heads.as_chunks::<GROUP>();
        let line = lines.iter().filter(|line| line[GROUP - 1] < head).count();
        lines.get(line).map_or(SLOTS, |l| line * GROUP + l.iter().filter(|h| **h < head).count())
    }

    /// Puts a record into the slot `at`; those from there move up.
    pub(super) fn insert(&mut self, at: usize, key: &[u8], record: RecordRef) {
        let len = self.len();
        self.heads.copy_within(at..len, at + 1);
        self.refs.copy_within(at..len, at + 1);
        self.heads[at] = head_at(key, self.skip);
        self.refs[at] = record;
        self.len += 1;
    }

    /// Puts another record of the same internal key into a slot and returns the one that was there.
    pub(super) const fn replace(&mut self, at: usize, record: RecordRef) -> RecordRef {
        std::mem::replace(&mut self.refs[at], record)
    }

    /// Moves the slots from `at` on into a new node.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let mut right = Self::new(self.skip);
        let len = self.len();
        right.heads[..len - at].copy_from_slice(&self.heads[at..len]);
        right.refs[..len - at].copy_from_slice(&self.refs[at..len]);
        right.len = self.len - u16::try_from(at).unwrap_or(self.len);
        self.heads[at..len].fill(UNUSED);
        self.len -= right.len;
        right
    }

    /// Leaves out the `skip` bytes that all keys here share, if that gains enough.
    pub(super) fn raise_skip(&mut self, arena: &Arena, skip: u32) {
        if skip >= self.skip + SKIP_GAIN_MIN {
            self.set_skip(arena, skip);
        }
    }

    /// Leaves out `skip` bytes at most.
    pub(super) fn lower_skip(&mut self, arena: &Arena, skip: u32) {
        if skip < self.skip {
            self.set_skip(arena, skip);
        }
    }

    fn set_skip(&mut self, arena: &Arena, skip: u32) {
        self.skip = skip;
        for (head, at) in self.heads.iter_mut().zip(&self.refs).take(usize::from(self.len)) {
            *head = head_at(arena.key(*at), skip);
        }
    }
}

/// The integer of the 8 bytes of `key` from `skip` on, big-endian, zero-padded.
fn head_at(key: &[u8], skip: u32) -> u64 {
    let rest = key.get(skip as usize..).unwrap_or_default();
    if let Some(first) = rest.first_chunk() {
        return u64::from_be_bytes(*first);
    }
    if let Some(last) = key.last_chunk() {
        // The rest is the end of the last 8 bytes.
        let bits = u32::try_from(8 * rest.len()).unwrap_or(0);
        return u64::from_be_bytes(*last).checked_shl(64 - bits).unwrap_or(0);
    }
    crate::internal_key::head(rest)
}

/// A node at the bottom: entries.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) slots: Slots,
    pub(super) previous: u32,
    pub(super) next: u32,
}

/// A node above leaves: separators and one child more than those. A separator is the first record that was
/// in the child to its right when that was split off.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) slots: Slots,
    pub(super) children: [u32; SLOTS + 1],
}

impl Inner {
    /// The child that a search goes on in.
    pub(super) const fn child(&self, at: usize) -> u32 {
        self.children[at]
    }

    /// Enters the separator `record` at `at`, and the child to its right.
    pub(super) fn insert(&mut self, at: usize, key: &[u8], record: RecordRef, right: u32) {
        let len = self.slots.len();
        self.children.copy_within(at + 1..len + 1, at + 2);
        self.children[at + 1] = right;
        self.slots.insert(at, key, record);
    }

    /// Moves what is right of separator `at` into a new node; the separator itself goes one level up.
    pub(super) fn split_off(&mut self, at: usize) -> (RecordRef, Self) {
        let len = self.slots.len();
        let mut children = [NONE; SLOTS + 1];
        children[..len - at].copy_from_slice(&self.children[at + 1..len + 1]);
        let slots = self.slots.split_off(at + 1);
        let separator = self.slots.split_off(at).refs[0];
        (separator, Self { slots, children })
    }
}

/// Bits of a node's number within a segment of its pool.
const SEGMENT_BITS: u32 = 5;
const SEGMENT_NODES: usize = 1 << SEGMENT_BITS;

/// Nodes by number. Grows by segments, so that no node is ever copied to make room.
#[derive(Debug)]
pub(super) struct Pool<T> {
    segments: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { segments: Vec::new(), len: 0 }
    }
}

impl<T> Pool<T> {
    /// Adds a node and returns its number.
    pub(super) fn push(&mut self, node: T) -> u32 {
        let number = u32::try_from(self.len).unwrap_or(NONE);
        assert!(number < NONE, "a memtable of {number} nodes is full");
        if self.len.is_multiple_of(SEGMENT_NODES) {
            // The first segment grows like any vector does: most trees of small partitions end there.
            let reserve = if self.len == 0 { 0 } else { SEGMENT_NODES };
            self.segments.push(Vec::with_capacity(reserve));
        }
        if let Some(segment) = self.segments.last_mut() {
            if segment.capacity() == segment.len() {
                segment.reserve_exact(segment.len().clamp(1, SEGMENT_NODES));
            }
            segment.push(node);
        }
        self.len += 1;
        number
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }
}

impl<T> Index<u32> for Pool<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        &self.segments[(number >> SEGMENT_BITS) as usize][number as usize % SEGMENT_NODES]
    }
}

impl<T> IndexMut<u32> for Pool<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        &mut self.segments[(number >> SEGMENT_BITS) as usize][number as usize % SEGMENT_NODES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_the_eight_bytes_after_those_skipped() {
        let key = b"abcdefghijkl";
        assert_eq!(head_at(key, 0), u64::from_be_bytes(*b"abcdefgh"), "from the start");
        assert_eq!(head_at(key, 4), u64::from_be_bytes(*b"efghijkl"), "up to the end");
        assert_eq!(head_at(key, 5), u64::from_be_bytes(*b"fghijkl\0"), "padded");
        assert_eq!(head_at(key, 11), u64::from_be_bytes(*b"l\0\0\0\0\0\0\0"), "one byte left");
        assert_eq!(head_at(key, 12), 0, "nothing left");
        assert_eq!(head_at(b"abc", 1), u64::from_be_bytes(*b"bc\0\0\0\0\0\0"), "a short key");
    }
}
