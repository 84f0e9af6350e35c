//! Slots: where a data block that the cache keeps is, beside the block's handle in its index partition. A
//! lookup gets from the index entry to the bytes without a search in the cache.
//!
//! A block is in its slot from when the cache takes it until the cache gives it up, so slots keep no memory
//! that the cache does not count. Lookups by way of a slot are not seen by the cache, but the slot remembers
//! that there were any: the cache asks for it before it gives the block up, and the first lookup
//! after that goes through the cache, which so learns of use as often as it needs to.
//!
//! A block is searched under its slot's lock, shared with other readers: counting references would be a
//! write to the block's memory, which is the slowest part of a lookup to reach. Nothing else is locked
//! under it, and nobody waits for it holding a lock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use crate::sstable::index::IndexPartition;

/// Of one data block; within one line of the processor's caches.
#[derive(Debug, Default)]
#[repr(align(32))]
pub(crate) struct Slot {
    raw: RwLock<Option<Arc<[u8]>>>,
    used: AtomicBool,
}

impl Slot {
    /// Uses the block, if it is here and the cache knows that it is in use.
    #[inline]
    pub(crate) fn with<T>(&self, apply: impl FnOnce(&Arc<[u8]>) -> T) -> Option<T> {
        if !self.used.load(Ordering::Relaxed) {
            return None;
        }
        self.raw.read().as_ref().map(apply)
    }

    /// The cache was told that the block is in use.
    pub(crate) fn set_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    fn put(&self, raw: &Arc<[u8]>) {
        *self.raw.write() = Some(Arc::clone(raw));
    }

    /// Takes out this block, unless another load of it is here by now.
    fn take(&self, raw: &Arc<[u8]>) {
        let mut place = self.raw.write();
        if place.as_ref().is_some_and(|own| Arc::ptr_eq(own, raw)) {
            let block = place.take();
            self.used.store(false, Ordering::Relaxed);
            drop(place);
            drop(block);
        }
    }
}

/// Names a slot; its index partition may be gone.
#[derive(Clone, Debug)]
pub(crate) struct SlotName {
    index: Weak<IndexPartition>,
    at: usize,
}

impl SlotName {
    pub(crate) fn new(index: &Arc<IndexPartition>, at: usize) -> Self {
        Self { index: Arc::downgrade(index), at }
    }

    fn apply<T>(&self, apply: impl FnOnce(&Slot) -> T) -> Option<T> {
        self.index.upgrade()?.slot(self.at).map(apply)
    }

    /// The cache is about to keep the block.
    pub(crate) fn put(&self, raw: &Arc<[u8]>) {
        self.apply(|slot| slot.put(raw));
    }

    /// The cache gave the block up.
    pub(crate) fn take(&self, raw: &Arc<[u8]>) {
        self.apply(|slot| slot.take(raw));
    }

    /// Whether the block was in use since this was asked last.
    pub(crate) fn ask_used(&self) -> bool {
        self.apply(|slot| {
            slot.used.load(Ordering::Relaxed) && slot.used.swap(false, Ordering::Relaxed)
        }) == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::BlockCache;
    use crate::iter::reading::Purpose;
    use crate::rng::SplitMix64;
    use crate::sstable::filter::key_hash;
    use crate::sstable::read_ahead::ReadAhead;
    use crate::sstable::reader::Table;
    use crate::sstable::reader::tests::sample_with;
    use crate::types::FileNumber;

    const CACHE_BYTES: usize = 256 * 1024;

    #[test]
    fn a_block_that_is_given_up_leaves_its_slot_and_no_other_load_of_it_does() {
        let slot = Slot::default();
        let (old, new): (Arc<[u8]>, Arc<[u8]>) = (Arc::from([1]), Arc::from([2]));
        slot.put(&old);
        assert_eq!(slot.with(|raw| raw[0]), None, "the cache was not told of any use");
        slot.set_used();
        assert_eq!(slot.with(|raw| raw[0]), Some(1), "in use");
        slot.put(&new);
        slot.take(&old);
        assert_eq!(slot.with(|raw| raw[0]), Some(2), "another one was given up");
        slot.take(&new);
        assert_eq!(slot.with(|raw| raw[0]), None, "given up");
        slot.put(&old);
        assert_eq!(slot.with(|raw| raw[0]), None, "the use was of the load before");
    }

    fn keys() -> Vec<Vec<u8>> {
        (0..20_000_u32).map(|n| format!("{n:08}").into_bytes()).collect()
    }

    fn table(keys: &[Vec<u8>], cache: &Arc<BlockCache>) -> Arc<Table> {
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        sample_with(FileNumber(3), 0, &keys, cache)
    }

    /// Blocks in slots, and the bytes of those that are in use by nothing else than slot and cache.
    fn in_slots(table: &Table) -> (usize, usize) {
        let (mut blocks, mut bytes) = (0, 0);
        for partition in 0..table.top().len() {
            let index = table.index_partition(partition, false).expect("reads").expect("is there");
            for raw in index.slots().iter().filter_map(|slot| slot.raw.read().clone()) {
                assert_eq!(Arc::strong_count(&raw), 3, "of the cache, the slot and here");
                blocks += 1;
                bytes += raw.len();
            }
        }
        (blocks, bytes)
    }

    #[test]
    fn slots_hold_what_the_cache_keeps_and_nothing_else_after_readers_raced() {
        let (keys, cache) = (keys(), Arc::new(BlockCache::new(CACHE_BYTES)));
        let table = table(&keys, &cache);
        // A walk that leaves nothing in the cache leaves nothing in slots.
        let mut ahead = ReadAhead::new(Purpose::Reader);
        for partition in 0..table.top().len() {
            let index = table.index_partition(partition, true).expect("reads").expect("is there");
            for at in 0..index.len() {
                table.block_ahead(&index, at, false, &mut ahead).expect("reads");
            }
        }
        assert_eq!(in_slots(&table), (0, 0), "after a walk past the cache");
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (table, keys) = (&table, &keys);
                scope.spawn(move || {
                    let mut rng = SplitMix64::new(seed);
                    for _ in 0..20_000 {
                        // Half of the reads are of a few keys.
                        let among = if rng.below(2) == 0 { 200 } else { keys.len() as u64 };
                        let key = &keys[usize::try_from(rng.below(among)).expect("small")];
                        let found = table.get(key, key_hash(key), 9).expect("reads");
                        assert_eq!(found.expect("there").value, b"value"[..], "{key:?}");
                    }
                });
            }
        });
        assert!(cache.metrics().data.misses > 10_000, "the cache turned over: {cache:?}");
        let (blocks, bytes) = in_slots(&table);
        assert!(blocks > 100, "slots are used: {blocks}");
        assert!(bytes < CACHE_BYTES, "{bytes} bytes in slots");
    }

    #[test]
    fn a_lookup_by_way_of_a_slot_gives_a_block_a_second_chance_once() {
        let (keys, cache) = (keys(), Arc::new(BlockCache::new(CACHE_BYTES)));
        let table = table(&keys, &cache);
        let get = || table.get(&keys[0], key_hash(&keys[0]), 9).expect("reads").expect("there");
        let index = table.index_partition(0, false).expect("reads").expect("is there");
        let used = |index: &Arc<IndexPartition>| SlotName::new(index, 0).ask_used();
        get();
        let index_in_table = table.index_partition(0, false).expect("reads").expect("is there");
        assert!(!used(&index_in_table), "loaded, not used again");
        get();
        assert!(used(&index_in_table), "used");
        assert!(!used(&index_in_table), "only once");
        let before = cache.metrics().data;
        get();
        assert_eq!(cache.metrics().data.hits, before.hits + 1, "counted");
        assert!(used(&index_in_table), "told again");
        let gone = SlotName::new(&index, 0);
        drop(index);
        assert!(!gone.ask_used(), "a partition that is gone was not used");
    }
}
