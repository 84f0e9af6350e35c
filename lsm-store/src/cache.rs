//! The block cache: blocks, index and filter partitions by table uid and offset, weighted by bytes.
//!
//! A uid is never used twice, so items of deleted tables are never wrong; they age out. A missing
//! item is read once even if many readers ask for it at the same time.
//!
//! Index and filter partitions are needed by every lookup, so an open table holds those it has used for
//! itself, without a lookup here, as long as all tables together hold at most half of the cache's bytes.
//! What they hold is taken from what the cache may keep: both together are within the bytes it was given,
//! however large the store is.
//!
//! Data blocks that are in use are reached through [slots](crate::sstable::slot), past the cache, which then
//! gives them a second chance before it gives them up. Should every block of a part of the cache have been
//! used since it looked last, that part keeps one more than it may until the next insertion.

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};

use crate::error::Result;
use crate::perf::{self, Count};
use crate::reads::{ReadCount, ReadCounts};
use crate::sstable::filter::Filter;
use crate::sstable::index::IndexPartition;
use crate::sstable::slot::SlotName;

/// Guess of a cached item's size, for the cache's first allocation.
const ITEM_BYTES_GUESS: usize = 4 * 1024;

/// With so many bytes left the cache counts as having room: it is divided into parts that fill unevenly.
const ROOM_BYTES: u64 = 1024 * 1024;

/// What an item costs beside its own bytes: the cache's entry, reference counts, the allocator's share.
const ITEM_OVERHEAD_BYTES: usize = 128;

/// What tables hold for themselves. Each has its share of the cache: no more of it is granted once everything held
/// takes that much.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Share {
    /// Index and filter partitions: half.
    Partitions,
    /// [Slots](crate::sstable::slot): an eighth. With indexes of that size few lookups find their block in memory,
    /// and what slots would take is better spent on partitions.
    Slots,
}

impl Share {
    const fn divisor(self) -> u64 {
        match self {
            Self::Partitions => 2,
            Self::Slots => 8,
        }
    }
}

/// Names an item: folded table uid, offset, and what is made of the bytes there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockId {
    pub(crate) table: u64,
    pub(crate) offset: u64,
    pub(crate) kind: CacheKind,
}

impl Hash for BlockId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.table);
        state.write_u64(self.offset << 2 | self.kind as u64);
    }
}

/// What a cached item is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CacheKind {
    /// A data block.
    Data,
    /// An index partition.
    Index,
    Filter,
}

impl CacheKind {
    /// What a lookup counts as.
    const fn count(self, hit: bool) -> ReadCount {
        match (self, hit) {
            (Self::Data, true) => ReadCount::DataHit,
            (Self::Data, false) => ReadCount::DataMiss,
            (Self::Index, true) => ReadCount::IndexHit,
            (Self::Index, false) => ReadCount::IndexMiss,
            (Self::Filter, true) => ReadCount::FilterHit,
            (Self::Filter, false) => ReadCount::FilterMiss,
        }
    }
}

/// A cached item.
#[derive(Clone, Debug)]
pub(crate) enum Cached {
    /// A data block that was parsed once, as its bytes, and its slot.
    Block(Arc<[u8]>, SlotName),
    Index(Arc<IndexPartition>),
    Filter(Arc<Filter>),
}

impl Cached {
    fn weight(&self) -> usize {
        ITEM_OVERHEAD_BYTES
            + match self {
                Self::Block(block, _) => block.len(),
                Self::Index(index) => index.weight(),
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

/// Empties the slots of blocks that are given up, and asks them before.
#[derive(Clone, Debug)]
struct Slots;

impl Lifecycle<BlockId, Cached> for Slots {
    type RequestState = GivenUp;

    fn is_pinned(&self, _id: &BlockId, cached: &Cached) -> bool {
        matches!(cached, Cached::Block(_, slot) if slot.ask_used())
    }

    fn on_evict(&self, given_up: &mut GivenUp, _id: BlockId, cached: Cached) {
        if given_up.first.is_none() {
            given_up.first = Some(cached);
        } else {
            given_up.more.push(cached);
        }
    }
}

/// What one insertion pushed out: mostly one item. Slots are emptied when this is dropped, which is outside of the
/// cache's locks.
#[derive(Default)]
struct GivenUp {
    first: Option<Cached>,
    more: Vec<Cached>,
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        for cached in self.first.iter().chain(&self.more) {
            if let Cached::Block(raw, slot) = cached {
                slot.take(raw);
            }
        }
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

type Shards = Cache<BlockId, Cached, Bytes, BuildHasherDefault<MixHasher>, Slots>;

/// See the module.
#[derive(Debug)]
pub(crate) struct BlockCache {
    /// `None` keeps nothing.
    shards: Option<Shards>,
    /// Bytes for cached items and what tables hold for themselves together.
    bytes: u64,
    /// Bytes that tables hold for themselves; changed under the lock, so that the capacity of `shards`
    /// is always what this leaves.
    held: Mutex<u64>,
    /// A copy of `held` for those who only want to know whether there is room.
    held_seen: AtomicU64,
    counts: ReadCounts,
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
                Cache::with_options(options, Bytes, BuildHasherDefault::default(), Slots)
            });
        Self {
            shards,
            bytes: bytes as u64,
            held: Mutex::new(0),
            held_seen: AtomicU64::new(0),
            counts: ReadCounts::default(),
        }
    }

    /// What reads of the tables that use this cache did.
    pub(crate) const fn counts(&self) -> &ReadCounts {
        &self.counts
    }

    /// The item, loaded by `load` if it is not here. With `fill` false a loaded item is not kept, and the
    /// lookup is not counted: those who read everything once (compactions, verification, long walks) say
    /// nothing about what a larger cache would do.
    pub(crate) fn get(
        &self,
        id: BlockId,
        fill: bool,
        load: impl FnOnce() -> Result<Cached>,
    ) -> Result<Cached> {
        let cached = self.shards.as_ref().and_then(|shards| shards.get(&id));
        if fill {
            self.counts.add(id.kind.count(cached.is_some()), 1);
        }
        match (cached, &self.shards) {
            (Some(cached), _) => {
                perf::count(Count::CacheHits, 1);
                Ok(cached)
            }
            (None, Some(shards)) if fill => shards.get_or_insert_with(&id, load),
            (None, _) => load(),
        }
    }

    /// Counts a hit that was not looked up here, for those who would fill the cache.
    pub(crate) fn count_hit(&self, kind: CacheKind, fill: bool) {
        if fill {
            self.counts.add(kind.count(true), 1);
        }
        perf::count(Count::CacheHits, 1);
    }

    /// Counts an item that was read, but not into the cache.
    pub(crate) fn count_miss(&self, kind: CacheKind) {
        self.counts.add(kind.count(false), 1);
    }

    /// Whether one more block can be kept without pushing anything out.
    pub(crate) fn has_room(&self) -> bool {
        let room = |s: &Shards| s.weight() + ROOM_BYTES <= s.capacity();
        self.shards.as_ref().is_some_and(room)
    }

    /// Lets a table hold an item for itself, as far as the share for that goes; the item leaves the cache
    /// and its place there. What was granted is given back with [`BlockCache::release`].
    pub(crate) fn hold(&self, weight: usize, share: Share) -> bool {
        let weight = weight as u64;
        let room = |held: u64| self.has_share(share, held, weight);
        if !room(self.held_seen.load(Ordering::Relaxed)) {
            return false;
        }
        let mut held = self.held.lock();
        if !room(*held) {
            return false;
        }
        *held += weight;
        self.resize(*held);
        true
    }

    /// Whether [`BlockCache::hold`] would grant this for partitions, as it looks now.
    pub(crate) fn would_hold(&self, bytes: u64) -> bool {
        self.has_share(Share::Partitions, self.held_seen.load(Ordering::Relaxed), bytes)
    }

    /// Whether a share has room for `more` bytes when tables hold `held`.
    const fn has_share(&self, share: Share, held: u64, more: u64) -> bool {
        held.saturating_add(more) <= self.bytes / share.divisor()
    }

    /// Drops an item that a table holds for itself now.
    pub(crate) fn forget(&self, id: BlockId) {
        if let Some(shards) = &self.shards {
            shards.remove(&id);
        }
    }

    /// Ends what [`BlockCache::hold`] granted.
    pub(crate) fn release(&self, weight: u64) {
        if weight > 0 {
            let mut held = self.held.lock();
            *held = held.saturating_sub(weight);
            self.resize(*held);
        }
    }

    fn resize(&self, held: u64) {
        self.held_seen.store(held, Ordering::Relaxed);
        if let Some(shards) = &self.shards {
            shards.set_capacity(self.bytes.saturating_sub(held));
        }
    }

    fn lookups(&self, kind: CacheKind) -> CacheLookups {
        let of = |hit| self.counts.of(kind.count(hit));
        CacheLookups { hits: of(true), misses: of(false) }
    }

    pub(crate) fn metrics(&self) -> CacheMetrics {
        CacheMetrics {
            data: self.lookups(CacheKind::Data),
            index: self.lookups(CacheKind::Index),
            filter: self.lookups(CacheKind::Filter),
            cached_bytes: self.shards.as_ref().map_or(0, Cache::weight),
            held_bytes: *self.held.lock(),
        }
    }
}

/// Lookups of one kind of item, by those who keep what they read in the cache.
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheLookups {
    /// Found.
    pub hits: u64,
    /// Read from the file.
    pub misses: u64,
}

/// What the block cache holds and did. What tables hold for themselves is not looked up here.
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct CacheMetrics {
    /// Data blocks.
    pub data: CacheLookups,
    /// Index partitions.
    pub index: CacheLookups,
    /// Filter partitions.
    pub filter: CacheLookups,
    /// Bytes of cached items.
    pub cached_bytes: u64,
    /// Bytes of index and filter partitions that open tables hold for themselves, without a lookup. Both
    /// together stay within [`Options::cache_bytes`](crate::Options::cache_bytes).
    pub held_bytes: u64,
}

impl CacheMetrics {
    /// Everything that had to be read from a file.
    #[must_use]
    pub const fn misses(&self) -> u64 {
        self.data.misses + self.index.misses + self.filter.misses
    }

    /// All bytes, those that tables hold for themselves included.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.cached_bytes + self.held_bytes
    }
}
