//! The index as a `BTreeMap`: what the tree is compared with in tests.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::arena::{LARGE_BYTES, NewValue, Target};
use super::{MemFound, MemIndex, Start, Stretch};
use crate::internal_key::{Kind, SEQUENCE_BELOW_ALL};
use crate::sstable::entry_digest;

type Key = (Vec<u8>, Reverse<u64>);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Model {
    map: BTreeMap<Key, (Kind, Bytes)>,
    digest: u64,
}

impl Model {
    fn start(from: Start<'_>, out: &Stretch) -> Bound<Key> {
        match from {
            Start::End => Bound::Unbounded,
            Start::Including(key, sequence) => Bound::Included((key.to_vec(), Reverse(sequence))),
            Start::AfterLast => {
                let Target { key, sequence } = out.last();
                Bound::Excluded((key.to_vec(), Reverse(sequence)))
            }
        }
    }
}

fn copy<'a>(
    rows: impl Iterator<Item = (&'a Key, &'a (Kind, Bytes))>,
    max: usize,
    out: &mut Stretch,
) {
    out.clear();
    for ((key, sequence), (kind, value)) in rows.take(max) {
        if !out.has_room(max) {
            break;
        }
        let target = Target { key, sequence: sequence.0 };
        let value = if value.len() < LARGE_BYTES { Ok(&value[..]) } else { Err(value) };
        out.push(target, *kind, value, None);
    }
    out.finish();
}

impl MemIndex for Model {
    fn insert(&mut self, key: &[u8], sequence: u64, kind: Kind, value: NewValue<'_>) {
        let value = match value {
            NewValue::Small(small) => Bytes::copy_from_slice(small),
            NewValue::Large(large) => large,
        };
        let digest = |kind, value: &[u8]| entry_digest(&mut Vec::new(), key, sequence, kind, value);
        self.digest = self.digest.wrapping_add(digest(kind, &value));
        let before = self.map.insert((key.to_vec(), Reverse(sequence)), (kind, value));
        if let Some((kind, value)) = before {
            self.digest = self.digest.wrapping_sub(digest(kind, &value));
        }
    }

    fn get(&self, key: &[u8], sequence: u64) -> Option<MemFound> {
        let versions =
            (key.to_vec(), Reverse(sequence))..=(key.to_vec(), Reverse(SEQUENCE_BELOW_ALL));
        self.map.range(versions).next().map(|((_, sequence), (kind, value))| MemFound {
            sequence: sequence.0,
            kind: *kind,
            value: value.clone(),
        })
    }

    fn copy_forward(&self, from: Start<'_>, max: usize, out: &mut Stretch) {
        let rows = self.map.range((Self::start(from, out), Bound::Unbounded));
        copy(rows, max, out);
    }

    fn copy_backward(&self, from: Start<'_>, max: usize, out: &mut Stretch) {
        let rows = self.map.range((Bound::Unbounded, Self::start(from, out))).rev();
        copy(rows, max, out);
    }

    fn len(&self) -> usize {
        self.map.len()
    }

    fn bytes(&self) -> usize {
        self.map.iter().map(|((key, _), (_, value))| key.len() + value.len()).sum()
    }

    fn digest(&self) -> u64 {
        self.digest
    }

    fn seal(&mut self) {}
}
