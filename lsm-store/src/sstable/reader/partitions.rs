//! A table's filter and index partitions: in its own hands as far as the cache grants their bytes, else through the
//! cache.
//!
//! A lookup needs one of each, and in a large store none of them is in memory at first: read one at a time, every
//! one would be a wait for the disk. They lie beside each other, so those around the one that is asked for are read
//! with it, as long as the cache has bytes for them.

use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use crate::cache::{CacheKind, Cached, Share};
use crate::error::Result;
use crate::perf::{self, Count};
use crate::sstable::filter::Filter;
use crate::sstable::format::{BlockKind, Handle, without_trailer};
use crate::sstable::index::IndexPartition;
use crate::sstable::reader::Table;
use crate::sstable::top::TopEntry;

/// Partitions that are read at once.
const READ_AT_ONCE: usize = 32;
/// But no more bytes than this, or their owner alone.
const READ_BYTES_MAX: u64 = 256 * 1024;
/// A decoded index takes about three times the bytes it has in the file. What the cache must grant before it is read
/// with others.
const MEMORY_PER_BYTE: u64 = 4;

/// What a table holds for itself of a partition.
#[derive(Debug, Default)]
pub(crate) struct Held {
    filter: OnceLock<Arc<Filter>>,
    index: OnceLock<Arc<IndexPartition>>,
}

/// Something a table holds or the cache handed out.
pub(crate) enum Hold<'t, T> {
    Held(&'t Arc<T>),
    Lent(Arc<T>),
}

impl<T> Deref for Hold<'_, T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        match self {
            Self::Held(item) => item,
            Self::Lent(item) => item,
        }
    }
}

/// What each partition has one of.
pub(crate) trait Part: Sized {
    const BLOCK: BlockKind;
    const CACHE: CacheKind;

    /// Where a partition's is.
    fn handle(top: &TopEntry) -> Handle;
    fn place(held: &Held) -> &OnceLock<Arc<Self>>;
    /// From a block's buffer, trailer and all.
    fn parse(raw: Arc<[u8]>, path: &Arc<Path>, offset: u64) -> Result<Self>;
    /// Bytes of memory it takes.
    fn weight(&self) -> usize;
    fn to_cached(this: &Arc<Self>) -> Cached;
    fn from_cached(cached: Cached) -> Option<Arc<Self>>;
    /// A table holds it from now on.
    fn held(_this: &Arc<Self>, _by: &Table) {}
}

impl Part for Filter {
    const BLOCK: BlockKind = BlockKind::Filter;
    const CACHE: CacheKind = CacheKind::Filter;

    fn handle(top: &TopEntry) -> Handle {
        top.filter
    }

    fn place(held: &Held) -> &OnceLock<Arc<Self>> {
        &held.filter
    }

    fn parse(raw: Arc<[u8]>, path: &Arc<Path>, offset: u64) -> Result<Self> {
        Self::parse(without_trailer(&raw), path, offset)
    }

    fn weight(&self) -> usize {
        Self::weight(self)
    }

    fn to_cached(this: &Arc<Self>) -> Cached {
        Cached::Filter(Arc::clone(this))
    }

    fn from_cached(cached: Cached) -> Option<Arc<Self>> {
        if let Cached::Filter(filter) = cached { Some(filter) } else { None }
    }
}

impl Part for IndexPartition {
    const BLOCK: BlockKind = BlockKind::Index;
    const CACHE: CacheKind = CacheKind::Index;

    fn handle(top: &TopEntry) -> Handle {
        top.index
    }

    fn place(held: &Held) -> &OnceLock<Arc<Self>> {
        &held.index
    }

    fn parse(raw: Arc<[u8]>, path: &Arc<Path>, offset: u64) -> Result<Self> {
        Self::parse(raw, path, offset)
    }

    fn weight(&self) -> usize {
        Self::weight(self)
    }

    fn to_cached(this: &Arc<Self>) -> Cached {
        Cached::Index(Arc::clone(this))
    }

    fn from_cached(cached: Cached) -> Option<Arc<Self>> {
        if let Cached::Index(index) = cached { Some(index) } else { None }
    }

    fn held(this: &Arc<Self>, by: &Table) {
        let weight = this.slots_weight();
        if by.cache.hold(weight, Share::Slots) {
            by.held_bytes.fetch_add(weight as u64, Ordering::Relaxed);
            this.make_slots();
        }
    }
}

impl Table {
    /// The filter or the index of a partition. With `fill` false it leaves nothing in memory that was not there.
    #[inline]
    pub(crate) fn part<P: Part>(
        &self,
        partition: usize,
        top: &TopEntry,
        fill: bool,
    ) -> Result<Hold<'_, P>> {
        let held = self.held.get(partition).map(P::place);
        if let Some(part) = held.and_then(OnceLock::get) {
            perf::count(Count::CacheHits, 1);
            return Ok(Hold::Held(part));
        }
        self.part_not_held(partition, top, fill)
    }

    fn part_not_held<P: Part>(
        &self,
        partition: usize,
        top: &TopEntry,
        fill: bool,
    ) -> Result<Hold<'_, P>> {
        let held = self.held.get(partition).map(P::place);
        if fill
            && self.hold_around::<P>(partition)
            && let Some(part) = held.and_then(OnceLock::get)
        {
            self.cache.count_miss(P::CACHE);
            return Ok(Hold::Held(part));
        }
        let id = self.id(P::handle(top), P::CACHE);
        let cached =
            self.cache.get(id, fill, || Ok(P::to_cached(&Arc::new(self.load_part(top)?))))?;
        let Some(part) = P::from_cached(cached) else {
            return Err(self.mixed_up(P::handle(top)));
        };
        if let Some(held) = held.filter(|_| fill)
            && self.hold(held, &part)
        {
            self.cache.forget(id);
        }
        Ok(Hold::Lent(part))
    }

    /// The filter or the index of a partition, from the medium.
    pub(crate) fn load_part<P: Part>(&self, top: &TopEntry) -> Result<P> {
        let handle = P::handle(top);
        P::parse(self.read(handle, P::BLOCK)?, &self.path, handle.offset)
    }

    /// Keeps an item in its place in the table, if the cache grants the bytes. Whether it is kept by this call.
    fn hold<P: Part>(&self, place: &OnceLock<Arc<P>>, item: &Arc<P>) -> bool {
        let weight = item.weight();
        if !self.cache.hold(weight, Share::Partitions) {
            return false;
        }
        let kept = place.set(Arc::clone(item)).is_ok();
        if kept {
            self.held_bytes.fetch_add(weight as u64, Ordering::Relaxed);
            P::held(item, self);
        } else {
            // Another reader was first.
            self.cache.release(weight as u64);
        }
        kept
    }

    /// Reads what partitions around one have, all at once, and holds it, if the cache has bytes for that. What is
    /// damaged is left to whoever needs it. Whether anything was read.
    fn hold_around<P: Part>(&self, partition: usize) -> bool {
        let start = partition - partition % READ_AT_ONCE;
        let group = self.top.iter().zip(&self.held).skip(start).take(READ_AT_ONCE);
        let handle = |(top, _): (&TopEntry, _)| P::handle(top);
        let (Some(first), Some(last)) =
            (group.clone().next().map(handle), group.clone().last().map(handle))
        else {
            return false;
        };
        let end = last.end().filter(|end| *end <= self.blocks_end);
        let bytes = end.and_then(|end| end.checked_sub(first.offset));
        let Some(bytes) = bytes.filter(|bytes| *bytes <= READ_BYTES_MAX) else { return false };
        if !self.cache.would_hold(bytes * MEMORY_PER_BYTE) {
            return false;
        }
        let mut span = vec![0; usize::try_from(bytes).unwrap_or(0)];
        if self.file.read_exact_at(&mut span, first.offset).is_err() {
            return false;
        }
        let copy = |buf: &mut [u8], offset: u64| {
            let at = offset.checked_sub(first.offset).and_then(|at| usize::try_from(at).ok());
            let from = at.and_then(|at| span.get(at..)?.get(..buf.len()));
            from.map(|from| buf.copy_from_slice(from))
                .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        for (top, held) in group.filter(|(_, held)| P::place(held).get().is_none()) {
            let handle = P::handle(top);
            let part = self
                .read_by(handle, P::BLOCK, copy)
                .and_then(|raw| P::parse(raw, &self.path, handle.offset));
            if let Ok(part) = part {
                self.hold(P::place(held), &Arc::new(part));
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::BlockCache;
    use crate::error::Error;
    use crate::sstable::filter::key_hash;
    use crate::sstable::reader::Graveyard;
    use crate::sstable::reader::tests::sample_with;
    use crate::types::FileNumber;
    use crate::vfs::{MemVfs, Vfs as _};

    const CACHE_BYTES: usize = 4 << 20;

    fn keys() -> Vec<Vec<u8>> {
        (0..20_000_u32).map(|n| format!("{n:08}").into_bytes()).collect()
    }

    fn table(cache: &Arc<BlockCache>) -> Arc<Table> {
        let keys = keys();
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        sample_with(FileNumber(3), 0, &keys, cache)
    }

    fn get(table: &Table, key: &[u8]) -> Result<bool> {
        table.get(key, key_hash(key), 9).map(|found| found.is_some())
    }

    fn read(cache: &BlockCache) -> (u64, u64) {
        let metrics = cache.metrics();
        (metrics.filter.misses, metrics.index.misses)
    }

    #[test]
    fn neighbours_are_read_together_and_held() {
        let cache = Arc::new(BlockCache::new(CACHE_BYTES));
        let table = table(&cache);
        assert!(table.top().len() > 3 * READ_AT_ONCE, "{} partitions", table.top().len());
        let last_keys: Vec<_> = table.top().iter().map(|top| top.last_key.clone()).collect();
        for key in &last_keys {
            assert!(get(&table, key).expect("reads"), "{key:?}");
        }
        let groups = last_keys.len().div_ceil(READ_AT_ONCE) as u64;
        assert_eq!(read(&cache), (groups, groups), "one read of each kind a group");
        assert_eq!(cache.metrics().index.hits, 0, "what is held is not looked up");
        assert!(cache.metrics().held_bytes > 0, "{cache:?}");
        drop(table);
        assert_eq!(cache.metrics().held_bytes, 0, "given back with the table");
    }

    #[test]
    fn a_cache_that_cannot_hold_them_is_not_flooded_with_neighbours() {
        // Half of this is less than a group takes.
        let cache = Arc::new(BlockCache::new(32 * 1024));
        let table = table(&cache);
        let last_keys: Vec<_> = table.top().iter().map(|top| top.last_key.clone()).collect();
        let mut before = 0;
        for key in &last_keys {
            let held = cache.metrics().held_bytes;
            assert!(get(&table, key).expect("reads"), "{key:?}");
            assert!(held >= before && held <= 16 * 1024, "{held} bytes held, before {before}");
            before = held;
        }
        let (filters, indexes) = read(&cache);
        assert_eq!(filters, last_keys.len() as u64, "each filter read on its own");
        assert_eq!(indexes, last_keys.len() as u64, "each index read on its own");
        let slotted = (0..last_keys.len()).filter(|partition| {
            let index = table.index_partition(*partition, false).expect("reads");
            index.is_some_and(|index| index.slot(0).is_some())
        });
        let slots = slotted.count();
        assert!(slots > 0, "slots as long as little is held");
        assert!(slots < last_keys.len() / 4, "no slots once an eighth is held: {slots}");
    }

    #[test]
    fn a_damaged_neighbour_costs_its_own_keys_only() {
        let cache = Arc::new(BlockCache::new(CACHE_BYTES));
        let whole = table(&cache);
        let (damaged, other) = (&whole.top()[5], &whole.top()[6]);
        let len = usize::try_from(whole.meta().len).expect("small");
        for handle in [damaged.filter, damaged.index] {
            let mut bytes = vec![0; len];
            whole.file().read_exact_at(&mut bytes, 0).expect("reads");
            bytes[usize::try_from(handle.offset).expect("small") + 3] ^= 4;
            let (vfs, path) = (MemVfs::new(1), Path::new("/table"));
            vfs.create_new(path).expect("creates").write_all_at(&bytes, 0).expect("writes");
            let file = vfs.open_read(path).expect("is there");
            let cache = Arc::new(BlockCache::new(CACHE_BYTES));
            let (meta, graveyard) = (whole.meta().clone(), Graveyard::default());
            let table =
                Table::open(file, path, meta, Arc::clone(&cache), graveyard).expect("opens");
            assert!(get(&table, &other.last_key).expect("whole"), "{handle:?}");
            let error = get(&table, &damaged.last_key).expect_err("damaged");
            assert!(
                matches!(&error, Error::Corruption { offset, .. } if *offset == handle.offset),
                "{error}"
            );
            assert!(get(&table, &other.last_key).expect("whole"), "and after");
        }
    }
}
