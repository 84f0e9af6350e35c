//! The memtable's index: a B+tree over records of an [`Arena`].
//!
//! ```text
//!                  [ separators ]                    inner nodes: heads, references, children
//!              ┌────────┼────────┐
//!           [leaf] ⇄ [leaf] ⇄ [leaf]                 heads, references to records, both neighbours
//!               └────────┼────────┘
//!            [ chunk ][ chunk ][ open chunk ]        records: key, sequence number, kind, value
//! ```
//!
//! Entries are never removed, so nodes never merge, a separator stays the first entry of the leaf to its
//! right, and a node keeps its number.
//!
//! Two things keep heads telling when keys share their beginnings. The tree knows the longest prefix common
//! to all its keys; a search for a key without it needs no search. And every node leaves out what its fences
//! (the separators it lies between) have in common, which all keys that come to it share; at the edges of
//! the tree, where a fence is missing, the common prefix takes its place. Both are learned as keys arrive.
//! A separator's record is compared where heads are equal, so a bad prefix costs time, never order.
//!
//! Invariants:
//! 1. Entries rise in internal-key order within a leaf and along `next`.
//! 2. `skip` of a node is at most what all keys a search may bring there have in common: of the fences if
//!    there are two, else of `prefix`. When `prefix` shrinks, the nodes at both edges are made to follow.

use std::cmp::Ordering;

use super::arena::{Arena, NewValue, RecordRef, Target};
use super::node::{Inner, Leaf, NONE, Pool, SLOTS, Slots};
use super::stretch::{Cursor, Stretch};
use super::{MemFound, MemIndex, Start};
use crate::internal_key::Kind;

/// Most of the common prefix that is kept.
const PREFIX_BYTES_MAX: usize = 255;

/// A place in a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    leaf: u32,
    at: usize,
}

/// The separators a node lies between, where there are any.
#[derive(Clone, Copy, Debug)]
struct Fences {
    low: Option<RecordRef>,
    high: Option<RecordRef>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tree {
    arena: Arena,
    leaves: Pool<Leaf>,
    inners: Pool<Inner>,
    /// An inner node, or the only leaf while `height` is 0.
    root: u32,
    /// Levels of inner nodes.
    height: usize,
    first_leaf: u32,
    last_leaf: u32,
    /// What all keys begin with, as far as [`PREFIX_BYTES_MAX`].
    prefix: Vec<u8>,
    len: usize,
    digest: u64,
    /// Where the last insert went.
    last_insert: Place,
    /// Whether that was right after the insert before it, so that the next may be right after it.
    rising: bool,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            arena: Arena::default(),
            leaves: Pool::default(),
            inners: Pool::default(),
            root: NONE,
            height: 0,
            first_leaf: NONE,
            last_leaf: NONE,
            prefix: Vec::new(),
            len: 0,
            digest: 0,
            last_insert: Place { leaf: NONE, at: 0 },
            rising: false,
        }
    }
}

impl MemIndex for Tree {
    fn insert(&mut self, key: &[u8], sequence: u64, kind: Kind, value: NewValue<'_>) {
        let target = Target { key, sequence };
        let (place, is_there) = self.place_for(target);
        let record = self.arena.push(target, kind, value);
        self.digest = self.digest.wrapping_add(self.arena.digest(record));
        if is_there {
            let before = self.leaves[place.leaf].slots.replace(place.at, record);
            self.digest = self.digest.wrapping_sub(self.arena.digest(before));
            return;
        }
        let place = if self.leaf_slots(place.leaf).is_full() {
            self.split_for(target, record, place)
        } else {
            place
        };
        self.leaves[place.leaf].slots.insert(place.at, key, record);
        self.len += 1;
        let last = self.last_insert;
        self.rising = if place.leaf == last.leaf { place.at == last.at + 1 } else { place.at == 0 };
        self.last_insert = place;
    }

    fn get(&self, key: &[u8], sequence: u64) -> Option<MemFound> {
        if self.root == NONE || !key.starts_with(&self.prefix) {
            return None;
        }
        let target = Target { key, sequence };
        let leaf = &self.leaves[self.leaf_of(target)];
        leaf.slots.touch();
        let place = leaf.slots.lower(&self.arena, target).0;
        let at = if place < leaf.slots.len() {
            leaf.slots.get_if_alike(place, key)?
        } else if leaf.next != NONE {
            self.leaf_slots(leaf.next).get(0)?
        } else {
            return None;
        };
        let record = self.arena.record(at);
        (record.key == key).then(|| MemFound {
            sequence: record.sequence,
            kind: record.kind,
            value: self.arena.value(at, &record),
        })
    }

    fn copy_forward(&self, from: Start<'_>, max: usize, out: &mut Stretch) {
        let start = match from {
            Start::End => Some(Place { leaf: self.first_leaf, at: 0 }),
            Start::Including(key, sequence) => self.lower(Target { key, sequence }),
            Start::AfterLast => self.resume(out).map_or_else(
                || self.upper(out.last()),
                |place| Some(Place { at: place.at + 1, ..place }),
            ),
        };
        out.clear();
        let Some(mut place) = start else { return };
        while place.leaf != NONE && out.has_room(max) {
            let leaf = &self.leaves[place.leaf];
            let records = leaf.slots.records(place.at);
            let records = &records[..records.len().min(max - out.len())];
            self.arena.touch(records);
            for at in records {
                if !out.has_room(max) {
                    break;
                }
                self.copy(*at, place, out);
                place.at += 1;
            }
            if place.at == leaf.slots.len() {
                place = Place { leaf: leaf.next, at: 0 };
            }
        }
        out.finish();
    }

    fn copy_backward(&self, from: Start<'_>, max: usize, out: &mut Stretch) {
        // The entry before `place` is the next one to copy.
        let start = match from {
            Start::End => Some(Place { leaf: self.last_leaf, at: SLOTS }),
            Start::Including(key, sequence) => self.upper(Target { key, sequence }),
            Start::AfterLast => self.resume(out).map_or_else(|| self.lower(out.last()), Some),
        };
        out.clear();
        let Some(mut place) = start else { return };
        while place.leaf != NONE && out.has_room(max) {
            let leaf = &self.leaves[place.leaf];
            let records = leaf.slots.records_before(place.at);
            let records = &records[records.len().saturating_sub(max - out.len())..];
            self.arena.touch(records);
            place.at = place.at.min(leaf.slots.len());
            for at in records.iter().rev() {
                if !out.has_room(max) {
                    break;
                }
                place.at -= 1;
                self.copy(*at, place, out);
            }
            if place.at == 0 {
                place = Place { leaf: leaf.previous, at: SLOTS };
            }
        }
        out.finish();
    }

    fn len(&self) -> usize {
        self.len
    }

    fn bytes(&self) -> usize {
        // A single leaf counts by what is in it: small sets are many, and their limits small.
        let leaves = match self.leaves.len() {
            0 | 1 => self.len * size_of::<Leaf>() / SLOTS,
            leaves => leaves * size_of::<Leaf>(),
        };
        self.arena.bytes() + leaves + self.inners.len() * size_of::<Inner>()
    }

    fn digest(&self) -> u64 {
        self.digest
    }

    fn seal(&mut self) {
        self.arena.seal();
    }
}

impl Tree {
    /// How many leaves and inner nodes there are.
    #[cfg(test)]
    pub(super) fn nodes(&self) -> (usize, usize) {
        (self.leaves.len(), self.inners.len())
    }

    #[cfg(test)]
    pub(super) fn flip_a_bit(&mut self) {
        self.arena.flip_a_bit();
    }

    fn leaf_slots(&self, leaf: u32) -> &Slots {
        &self.leaves[leaf].slots
    }

    /// The record at a place or, past the end of a leaf, the first of the next.
    fn entry(&self, place: Place) -> Option<RecordRef> {
        let leaf = &self.leaves[place.leaf];
        if let Some(at) = leaf.slots.get(place.at) {
            return Some(at);
        }
        if leaf.next == NONE { None } else { self.leaf_slots(leaf.next).get(0) }
    }

    /// The leaf that a search for `target` ends in.
    fn leaf_of(&self, target: Target<'_>) -> u32 {
        let mut node = self.root;
        for _ in 0..self.height {
            let inner = &self.inners[node];
            node = inner.child(inner.slots.upper(&self.arena, target));
        }
        node
    }

    /// The place of the first entry at or after `target`; it may be past the end of its leaf.
    fn lower(&self, target: Target<'_>) -> Option<Place> {
        self.search(target, |slots| slots.lower(&self.arena, target).0)
    }

    /// The place of the first entry after `target`; it may be past the end of its leaf.
    fn upper(&self, target: Target<'_>) -> Option<Place> {
        self.search(target, |slots| slots.upper(&self.arena, target))
    }

    fn search(&self, target: Target<'_>, rank: impl Fn(&Slots) -> usize) -> Option<Place> {
        if self.root == NONE {
            return None;
        }
        if !target.key.starts_with(&self.prefix) {
            // Before or after all keys: no node would know where.
            return Some(if target.key < self.prefix.as_slice() {
                Place { leaf: self.first_leaf, at: 0 }
            } else {
                Place { leaf: self.last_leaf, at: self.leaf_slots(self.last_leaf).len() }
            });
        }
        let leaf = self.leaf_of(target);
        Some(Place { leaf, at: rank(self.leaf_slots(leaf)) })
    }

    /// Where the last entry of `out` is, if it is where it was when it was copied.
    fn resume(&self, out: &Stretch) -> Option<Place> {
        let Cursor { leaf, at, record } = out.cursor()?;
        (self.leaf_slots(leaf).get(at) == Some(record)).then_some(Place { leaf, at })
    }

    #[inline]
    fn copy(&self, at: RecordRef, place: Place, out: &mut Stretch) {
        let record = self.arena.record(at);
        let target = Target { key: record.key, sequence: record.sequence };
        let cursor = Cursor { leaf: place.leaf, at: place.at, record: at };
        out.push(target, record.kind, self.arena.value_in_place(&record), Some(cursor));
    }

    /// Where `target` belongs and whether it is there, with `prefix` made to cover it.
    fn place_for(&mut self, target: Target<'_>) -> (Place, bool) {
        if self.root == NONE {
            let leaf = self.leaves.push(Leaf { slots: Slots::new(0), previous: NONE, next: NONE });
            (self.root, self.first_leaf, self.last_leaf) = (leaf, leaf, leaf);
            self.prefix.extend_from_slice(&target.key[..target.key.len().min(PREFIX_BYTES_MAX)]);
        }
        if !target.key.starts_with(&self.prefix) {
            self.prefix.truncate(common(&self.prefix, target.key));
            self.shorten_skips();
        }
        if self.rising
            && let Some(place) = self.after_last_insert(target)
        {
            return (place, false);
        }
        let leaf = self.leaf_of(target);
        self.leaf_slots(leaf).touch();
        let (at, is_there) = self.leaf_slots(leaf).lower(&self.arena, target);
        (Place { leaf, at }, is_there)
    }

    /// The place right after the last insert, if `target` belongs there.
    fn after_last_insert(&self, target: Target<'_>) -> Option<Place> {
        let Place { leaf, at } = self.last_insert;
        let before = self.leaf_slots(leaf).get(at)?;
        if self.arena.compare(before, target) != Ordering::Less {
            return None;
        }
        let place = Place { leaf, at: at + 1 };
        let fits = self
            .entry(place)
            .is_none_or(|after| self.arena.compare(after, target) == Ordering::Greater);
        fits.then_some(place)
    }

    /// Makes the nodes at the edges skip no more than the common prefix.
    fn shorten_skips(&mut self) {
        let skip = length(&self.prefix);
        for last in [false, true] {
            let mut node = self.root;
            for _ in 0..self.height {
                let inner = &mut self.inners[node];
                inner.slots.lower_skip(&self.arena, skip);
                node = inner.child(if last { inner.slots.len() } else { 0 });
            }
            self.leaves[node].slots.lower_skip(&self.arena, skip);
        }
    }

    /// Splits the full leaf that `target` belongs to at `place`, and what is full on the way there; returns
    /// where it belongs now. `record` is that of `target`.
    fn split_for(&mut self, target: Target<'_>, record: RecordRef, place: Place) -> Place {
        let mut fences = Fences { low: None, high: None };
        if self.height == 0 || self.inners[self.root].slots.is_full() {
            let slots = Slots::new(length(&self.prefix));
            let mut root = Inner { slots, children: [NONE; SLOTS + 1] };
            root.children[0] = self.root;
            self.root = self.inners.push(root);
            self.height += 1;
        }
        let mut node = self.root;
        for above_leaves in (0..self.height).rev() {
            let (at, child, inside) = self.step(node, target, fences);
            if above_leaves == 0 {
                self.split_leaf(node, at, record, place, inside);
            } else if self.inners[child].slots.is_full() {
                self.split_inner(node, at, inside);
            }
            (_, node, fences) = self.step(node, target, fences);
        }
        Place { leaf: node, at: self.leaf_slots(node).lower(&self.arena, target).0 }
    }

    /// The child of an inner node where `target` belongs, its number and its fences.
    fn step(&self, node: u32, target: Target<'_>, outside: Fences) -> (usize, u32, Fences) {
        let inner = &self.inners[node];
        let at = inner.slots.upper(&self.arena, target);
        let low = at.checked_sub(1).and_then(|at| inner.slots.get(at)).or(outside.low);
        let high = inner.slots.get(at).or(outside.high);
        (at, inner.child(at), Fences { low, high })
    }

    /// Splits a full leaf, the child `at` of `parent`, so that a new entry fits at `place`.
    fn split_leaf(
        &mut self,
        parent: u32,
        at: usize,
        record: RecordRef,
        place: Place,
        fences: Fences,
    ) {
        // Rising keys leave full leaves behind, all others half full ones.
        let middle = if place.at == SLOTS || self.rising && place.at >= SLOTS / 2 {
            place.at
        } else {
            SLOTS / 2
        };
        let left = place.leaf;
        let slots = self.leaves[left].slots.split_off(middle);
        let next = self.leaves[left].next;
        let separator = slots.get(0).unwrap_or(record);
        let right = self.leaves.push(Leaf { slots, previous: left, next });
        self.leaves[left].next = right;
        if next == NONE {
            self.last_leaf = right;
        } else {
            self.leaves[next].previous = right;
        }
        self.inners[parent].insert(at, self.arena.key(separator), separator, right);
        let (below, above) = fences.split(separator);
        let skips = (self.skip_between(below), self.skip_between(above));
        self.leaves[left].slots.raise_skip(&self.arena, skips.0);
        self.leaves[right].slots.raise_skip(&self.arena, skips.1);
    }

    /// Splits a full inner node, the child `at` of `parent`.
    fn split_inner(&mut self, parent: u32, at: usize, fences: Fences) {
        let left = self.inners[parent].child(at);
        // At the right edge keys rise, or the tree would grow elsewhere.
        let middle = if fences.high.is_none() && self.rising { SLOTS - 1 } else { SLOTS / 2 };
        let (separator, split) = self.inners[left].split_off(middle);
        let right = self.inners.push(split);
        self.inners[parent].insert(at, self.arena.key(separator), separator, right);
        let (below, above) = fences.split(separator);
        let skips = (self.skip_between(below), self.skip_between(above));
        self.inners[left].slots.raise_skip(&self.arena, skips.0);
        self.inners[right].slots.raise_skip(&self.arena, skips.1);
    }

    /// How many bytes all keys between two fences share.
    fn skip_between(&self, fences: Fences) -> u32 {
        match (fences.low, fences.high) {
            (Some(low), Some(high)) => {
                let (low, high) = (self.arena.key(low), self.arena.key(high));
                length(&low[..common(low, high)])
            }
            _ => length(&self.prefix),
        }
    }
}

impl Fences {
    /// Those of the two halves of a node.
    const fn split(self, separator: RecordRef) -> (Self, Self) {
        (Self { high: Some(separator), ..self }, Self { low: Some(separator), ..self })
    }
}

/// How many bytes two keys begin with in common.
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The length of a key or a part of one.
fn length(key: &[u8]) -> u32 {
    u32::try_from(key.len()).unwrap_or(u32::MAX)
}
