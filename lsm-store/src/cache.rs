//! The block cache: decoded blocks and filters by table uid and offset, weighted by bytes.
//!
//! A uid is never used twice, so entries of deleted tables are never wrong; they age out. A missing
//! block is read once even if many readers ask for it at the same time.

use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::error::Result;
use crate::sstable::block::Block;
use crate::sstable::filter::Filter;

/// Guess of a cached item's size, for the cache's first allocation.
const ITEM_BYTES_GUESS: usize = 16 * 1024;

/// With so many bytes left the cache counts as having room: it is divided into parts that fill unevenly.
const ROOM_BYTES: u64 = 1024 * 1024;

/// What a cache entry costs beside the block, in bytes.
const ITEM_OVERHEAD_BYTES: usize = 64;

/// Names a block: folded table uid and offset.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct BlockId {
    pub(crate) table: u64,
    pub(crate) offset: u64,
}

/// A cached block.
#[derive(Clone, Debug)]
pub(crate) enum Cached {
    /// Data or index.
    Block(Arc<Block>),
    Filter(Arc<Filter>),
}

impl Cached {
    fn weight(&self) -> usize {
        ITEM_OVERHEAD_BYTES
            + match self {
                Self::Block(block) => block.weight(),
                Self::Filter(filter) => filter.weight(),
            }
    }
}

#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<BlockId, Cached> for Bytes {
    fn weight(&self, _id: &BlockId, cached: &Cached) -> u64 {
        cached.weight() as u64
    }
}

/// Mixes the two words of a [`BlockId`]; uids are random already. Unseeded, so that runs repeat.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct MixHasher(u64);

impl Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

type Shards = Cache<BlockId, Cached, Bytes, BuildHasherDefault<MixHasher>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct BlockCache {
    /// `None` keeps nothing.
    shards: Option<Shards>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl BlockCache {
    pub(crate) fn new(bytes: usize) -> Self {
        let items = (bytes / ITEM_BYTES_GUESS).max(16);
        let shards = OptionsBuilder::new()
            .estimated_items_capacity(items)
            .weight_capacity(bytes as u64)
            .build()
            .ok()
            .filter(|_| bytes > 0)
            .map(|options| {
                Cache::with_options(
                    options,
                    Bytes,
                    BuildHasherDefault::default(),
                    DefaultLifecycle::default(),
                )
            });
        Self { shards, hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// The block, loaded by `load` if it is not here. With `fill` false a loaded block is not kept.
    pub(crate) fn get(
        &self,
        id: BlockId,
        fill: bool,
        load: impl FnOnce() -> Result<Cached>,
    ) -> Result<Cached> {
        let Some(shards) = &self.shards else { return load() };
        if let Some(cached) = shards.get(&id) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(cached);
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        if fill { shards.get_or_insert_with(&id, load) } else { load() }
    }

    /// Whether one more block can be kept without pushing anything out.
    pub(crate) fn has_room(&self) -> bool {
        let room = |s: &Shards| s.weight() + ROOM_BYTES <= s.capacity();
        self.shards.as_ref().is_some_and(room)
    }

    /// Hits, misses, and bytes held.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let bytes = self.shards.as_ref().map_or(0, Cache::weight);
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed), bytes)
    }
}

const _: () = {
    const fn builds<T: BuildHasher>() {}
    builds::<BuildHasherDefault<MixHasher>>();
};
