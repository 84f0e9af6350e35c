//! The memtable's index as a `BTreeMap`, searched with borrowed keys.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::{MemEntry, MemIndex, Start};
use crate::internal_key::{Kind, SEQUENCE_BELOW_ALL, compare};

/// The key as the map owns it.
#[derive(Debug)]
struct Key {
    user_key: Bytes,
    sequence: u64,
}

/// What both the owned key and a borrowed search key look like, so that a search allocates nothing.
trait AsInternal {
    fn as_internal(&self) -> (&[u8], u64);
}

impl AsInternal for Key {
    fn as_internal(&self) -> (&[u8], u64) {
        (&self.user_key, self.sequence)
    }
}

impl AsInternal for (&[u8], u64) {
    fn as_internal(&self) -> (&[u8], u64) {
        (self.0, self.1)
    }
}

impl PartialEq for dyn AsInternal + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for dyn AsInternal + '_ {}
impl PartialOrd for dyn AsInternal + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for dyn AsInternal + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.as_internal(), other.as_internal())
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Key {}
impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.as_internal(), other.as_internal())
    }
}

impl<'a> Borrow<dyn AsInternal + 'a> for Key {
    fn borrow(&self) -> &(dyn AsInternal + 'a) {
        self
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct MapIndex(BTreeMap<Key, (Kind, Bytes)>);

fn entry((key, (kind, value)): (&Key, &(Kind, Bytes))) -> MemEntry {
    MemEntry {
        key: key.user_key.clone(),
        sequence: key.sequence,
        kind: *kind,
        value: value.clone(),
    }
}

const fn bound(from: Start<'_>) -> Bound<(&[u8], u64)> {
    match from {
        Start::End => Bound::Unbounded,
        Start::Including(key, sequence) => Bound::Included((key, sequence)),
        Start::Excluding(key, sequence) => Bound::Excluded((key, sequence)),
    }
}

impl MemIndex for MapIndex {
    fn insert(&mut self, e: MemEntry) -> bool {
        self.0.insert(Key { user_key: e.key, sequence: e.sequence }, (e.kind, e.value)).is_none()
    }

    fn get(&self, key: &[u8], sequence: u64) -> Option<MemEntry> {
        let newest: &dyn AsInternal = &(key, sequence);
        let oldest: &dyn AsInternal = &(key, SEQUENCE_BELOW_ALL);
        let bounds = (Bound::Included(newest), Bound::Included(oldest));
        self.0.range::<dyn AsInternal, _>(bounds).next().map(entry)
    }

    fn copy_forward(&self, from: Start<'_>, max: usize, out: &mut Vec<MemEntry>) {
        let at = bound(from);
        let low = at.as_ref().map(|at| -> &dyn AsInternal { at });
        let range = self.0.range::<dyn AsInternal, _>((low, Bound::Unbounded));
        out.extend(range.take(max).map(entry));
    }

    fn copy_backward(&self, from: Start<'_>, max: usize, out: &mut Vec<MemEntry>) {
        let at = bound(from);
        let high = at.as_ref().map(|at| -> &dyn AsInternal { at });
        let range = self.0.range::<dyn AsInternal, _>((Bound::Unbounded, high));
        out.extend(range.rev().take(max).map(entry));
    }
}
