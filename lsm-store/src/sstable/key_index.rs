//! Sorted keys for searches that touch little memory: separators of an index partition, last keys of a
//! top block, bounds of a level's tables.
//!
//! The keys' common prefix is kept once; of the rest, the first eight bytes as an integer (the head) in
//! one array. A search compares heads, which lie beside each other, and looks at bytes only where heads
//! are equal. It counts the heads below the target, first in a sample of them, then between two of the
//! sample: comparisons that do not wait for each other, unlike those of a binary search.

#![deny(clippy::indexing_slicing)]

use std::cmp::Ordering;

use crate::internal_key::head;
use crate::sstable::ends::Ends;

/// Heads of a group: two lines of the processor's caches.
const GROUP: usize = 16;

/// With more groups than this the sample is searched by halves.
const GROUPS_COUNTED: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct KeyIndex {
    prefix: Box<[u8]>,
    heads: Box<[u64]>,
    /// The last head of each whole group of `heads`.
    sample: Box<[u64]>,
    /// What follows the prefix, key after key.
    rests: Box<[u8]>,
    /// Where each key ends in `rests`.
    ends: Ends,
}

impl KeyIndex {
    /// Of keys in ascending order; equal ones may follow each other.
    pub(crate) fn new<'k>(keys: impl DoubleEndedIterator<Item = &'k [u8]> + Clone) -> Self {
        let (Some(first), Some(last)) = (keys.clone().next(), keys.clone().next_back()) else {
            return Self::default();
        };
        // What the outermost keys share, all between them do.
        let shared = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let (mut heads, mut rests, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for key in keys {
            let rest = key.get(shared..).unwrap_or_default();
            heads.push(head(rest));
            rests.extend_from_slice(rest);
            ends.push(rests.len() as u64);
        }
        Self {
            prefix: Box::from(first.get(..shared).unwrap_or_default()),
            sample: heads.chunks_exact(GROUP).filter_map(|group| group.last()).copied().collect(),
            heads: heads.into_boxed_slice(),
            rests: rests.into_boxed_slice(),
            ends: Ends::new(&ends),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.heads.len()
    }

    /// Bytes of memory behind this.
    pub(crate) fn weight(&self) -> usize {
        let heads = size_of_val(&*self.heads) + size_of_val(&*self.sample);
        self.prefix.len() + self.rests.len() + heads + self.ends.weight()
    }

    fn rest(&self, at: usize) -> &[u8] {
        let Some(range) = self.ends.range(at) else { return &[] };
        // Offsets into a buffer in memory.
        #[expect(clippy::cast_possible_truncation, reason = "see above")]
        let range = range.start as usize..range.end as usize;
        self.rests.get(range).unwrap_or_default()
    }

    /// How the key at a place compares to `key`.
    pub(crate) fn compare(&self, at: usize, key: &[u8]) -> Ordering {
        let Some(rest) = strip(key, &self.prefix) else { return (*self.prefix).cmp(key) };
        match self.heads.get(at).map(|own| own.cmp(&head(rest))) {
            Some(Ordering::Equal) | None => self.rest(at).cmp(rest),
            Some(decided) => decided,
        }
    }

    /// How many heads are below `target`.
    #[inline]
    fn heads_below(&self, target: u64) -> usize {
        let groups = if self.sample.len() <= GROUPS_COUNTED {
            count_below(&self.sample, target)
        } else {
            self.sample.partition_point(|head| *head < target)
        };
        let group = self.heads.get(groups * GROUP..).unwrap_or_default();
        groups * GROUP + count_below(group.get(..GROUP).unwrap_or(group), target)
    }

    /// The first place whose key is at or after `key`; of those that equal it, the first for which
    /// `before` does not hold (it holds for the first few of equal keys, or none).
    pub(crate) fn first_at_or_after(&self, key: &[u8], before: impl Fn(usize) -> bool) -> usize {
        let Some(rest) = strip(key, &self.prefix) else {
            // Not among keys that all begin with the prefix: before or after all of them.
            return if key < &*self.prefix { 0 } else { self.len() };
        };
        let target = head(rest);
        let below = self.heads_below(target);
        let tied = self.heads.get(below..).unwrap_or_default();
        if tied.first() != Some(&target) {
            return below;
        }
        let (mut low, mut high) = (below, below + tied.partition_point(|head| *head == target));
        while low < high {
            let middle = low + (high - low) / 2;
            let is_before = match self.rest(middle).cmp(rest) {
                Ordering::Less => true,
                Ordering::Equal => before(middle),
                Ordering::Greater => false,
            };
            if is_before {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[inline]
fn count_below(heads: &[u64], target: u64) -> usize {
    heads.iter().map(|head| usize::from(*head < target)).sum()
}

/// The key without the prefix, if it begins with it. Prefixes are short, so words are compared here rather
/// than by a call.
#[inline]
pub(crate) fn strip<'k>(key: &'k [u8], prefix: &[u8]) -> Option<&'k [u8]> {
    let (start, rest) = key.split_at_checked(prefix.len())?;
    let (words, end) = start.as_chunks::<8>();
    let (prefix_words, prefix_end) = prefix.as_chunks::<8>();
    let differ = |a: &[u8; 8], b: &[u8; 8]| u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
    let in_words = words.iter().zip(prefix_words).fold(0, |all, (a, b)| all | differ(a, b));
    let at_end = end.iter().zip(prefix_end).fold(0, |all, (a, b)| all | (a ^ b));
    (in_words == 0 && at_end == 0).then_some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop_oneof![Just(b'a'), Just(b'b'), Just(0), Just(0xFF)];
        let key = proptest::collection::vec(byte, 0..12);
        // With some above the number of groups that are counted.
        let few = proptest::collection::vec(key.clone(), 0..60);
        let many = proptest::collection::vec(key, GROUP * GROUPS_COUNTED - 50..1200);
        (prop_oneof![9 => few, 1 => many], 0..3_usize).prop_map(|(mut keys, prefix)| {
            for key in &mut keys {
                key.splice(0..0, vec![b'p'; prefix * 9]);
            }
            keys.sort();
            keys
        })
    }

    proptest! {
        #[test]
        fn a_search_ends_where_one_over_the_keys_themselves_does(keys in keys(), probes in keys(), split in 0..60_usize) {
            let index = KeyIndex::new(keys.iter().map(Vec::as_slice));
            prop_assert_eq!(index.len(), keys.len());
            for probe in keys.iter().chain(&probes).take(200) {
                let expected = keys.partition_point(|k| k < probe);
                prop_assert_eq!(index.first_at_or_after(probe, |_| false), expected, "{:?}", probe);
                let equal = keys.iter().filter(|k| *k == probe).count();
                let passed = split.min(equal);
                let found = index.first_at_or_after(probe, |at| at < expected + passed);
                prop_assert_eq!(found, expected + passed, "of equal keys {:?}", probe);
                for (at, key) in keys.iter().enumerate().take(60) {
                    prop_assert_eq!(index.compare(at, probe), key.cmp(probe));
                }
            }
        }
    }
}
