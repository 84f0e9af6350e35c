//! An open table: footer checked, top block in memory, blocks through the cache.

#![deny(clippy::indexing_slicing)]

mod partitions;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::cache::{BlockCache, BlockId, CacheKind, Cached};
use crate::checksum::fold64;
use crate::error::{Error, IoContext, Result};
use crate::internal_key::Kind;
use crate::perf::{self, Count};
use crate::reads::ReadCount;
use crate::sstable::TableMeta;
use crate::sstable::block::{self, Block};
use crate::sstable::damage::DamageReports;
use crate::sstable::filter::Filter;
use crate::sstable::format::{
    BlockKind, FOOTER_BYTES, Footer, Handle, Source, read_block, read_block_by, without_trailer,
};
use crate::sstable::index::IndexPartition;
use crate::sstable::key_index::KeyIndex;
use crate::sstable::properties::Properties;
use crate::sstable::read_ahead::ReadAhead;
use crate::sstable::reader::partitions::{Held, Hold};
use crate::sstable::slot::SlotName;
use crate::sstable::top::{self, TopEntry};
use crate::types::FileNumber;
use crate::vfs::{Vfs, VfsFile};

/// What a lookup found in one source.
#[derive(Clone, Debug)]
pub(crate) struct FoundEntry {
    pub(crate) sequence: u64,
    pub(crate) kind: Kind,
    pub(crate) value: Bytes,
}

/// Files to unlink and their sizes: those of tables that left the version and lost their last reader. Bounded by the
/// number of tables; emptied by the background work.
pub(crate) type Graveyard = Arc<Mutex<Vec<(PathBuf, u64)>>>;

/// The data block that a lookup ended in, for the next one.
#[derive(Debug, Default)]
pub(crate) struct LastBlock {
    /// Folded uid of the table, and offset.
    place: (u64, u64),
    raw: Option<Arc<[u8]>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    meta: TableMeta,
    path: Arc<Path>,
    file: Arc<dyn VfsFile>,
    uid_fold: u64,
    blocks_end: u64,
    data_end: u64,
    top: Vec<TopEntry>,
    /// The last keys of `top`.
    top_keys: KeyIndex,
    /// Per entry of `top`, what the table holds for itself of it.
    held: Box<[Held]>,
    /// What `held` weighs, as granted by the cache.
    held_bytes: AtomicU64,
    properties: Properties,
    cache: Arc<BlockCache>,
    obsolete: AtomicBool,
    graveyard: Graveyard,
    reports: Arc<DamageReports>,
    /// Why nothing of the table can be read, if so.
    broken: Option<String>,
}

impl Table {
    /// The table in a file at a path; checks that footer and properties say what the manifest says.
    ///
    /// # Errors
    /// `Io`; `Corruption` if anything differs; `UnknownVersion`.
    pub(crate) fn open(
        file: Arc<dyn VfsFile>,
        path: &Path,
        meta: TableMeta,
        cache: Arc<BlockCache>,
        graveyard: Graveyard,
    ) -> Result<Self> {
        let len = file.len().context("measure", path)?;
        if len != meta.len {
            return Err(Error::corruption(
                path,
                len.min(meta.len),
                format!("table of {len} bytes where the manifest says {}", meta.len),
            ));
        }
        let footer = Footer::read(&*file, path, len)?;
        let blocks_end = len - FOOTER_BYTES as u64;
        if footer.uid != meta.uid {
            return Err(Error::corruption(
                path,
                blocks_end,
                format!(
                    "another table: uid {:032x} where the manifest says {:032x}",
                    footer.uid, meta.uid
                ),
            ));
        }
        let source = Source { file: &*file, path, uid: meta.uid, blocks_end };
        let properties = read_properties(source, &footer)?;
        if properties.meta(meta.number, meta.len, meta.digest) != meta {
            let detail = "properties differ from what the manifest says";
            return Err(Error::corruption(path, footer.properties.offset, detail));
        }
        let top_raw = read_block(source, footer.top, BlockKind::Top)?;
        let top = top::decode(without_trailer(&top_raw), path, footer.top.offset)?;
        let entries = top.iter().fold(0_u64, |sum, t| sum.saturating_add(t.entries));
        if entries != meta.entries || top.last().is_none_or(|t| t.last_key != meta.largest.user_key)
        {
            return Err(Error::corruption(
                path,
                footer.top.offset,
                format!(
                    "top block of {entries} entries does not match the {} of the manifest",
                    meta.entries
                ),
            ));
        }
        Ok(Self {
            uid_fold: fold64(meta.uid),
            meta,
            path: Arc::from(path),
            file,
            blocks_end,
            data_end: footer.data_end,
            top_keys: KeyIndex::new(top.iter().map(|t| t.last_key.as_slice())),
            held: top.iter().map(|_| Held::default()).collect(),
            held_bytes: AtomicU64::new(0),
            top,
            properties,
            cache,
            obsolete: AtomicBool::new(false),
            graveyard,
            reports: Arc::default(),
            broken: None,
        })
    }

    /// Stands for a table that cannot be opened: every read of its range is an error.
    pub(crate) fn broken(
        path: &Path,
        meta: TableMeta,
        reason: &Error,
        cache: Arc<BlockCache>,
        graveyard: Graveyard,
    ) -> Self {
        let nowhere = Handle { offset: 0, len: 0 };
        let top = TopEntry {
            last_key: meta.largest.user_key.clone(),
            index: nowhere,
            filter: nowhere,
            entries: meta.entries,
            min_sequence: meta.min_sequence,
            max_sequence: meta.max_sequence,
        };
        Self {
            uid_fold: fold64(meta.uid),
            properties: Properties::unknown(meta.uid, meta.partition),
            meta,
            path: Arc::from(path),
            file: Arc::new(NoFile),
            // No block is below this, so none can be read.
            blocks_end: 0,
            data_end: 0,
            top_keys: KeyIndex::new(std::iter::once(top.last_key.as_slice())),
            held: Box::default(),
            held_bytes: AtomicU64::new(0),
            top: vec![top],
            cache,
            obsolete: AtomicBool::new(false),
            graveyard,
            reports: Arc::default(),
            broken: Some(reason.to_string()),
        }
    }

    /// Memory of what is kept of the table as long as it is open, beside what it holds of the cache's bytes.
    pub(crate) fn memory(&self) -> u64 {
        let bounds = self.meta.smallest.user_key.len() + self.meta.largest.user_key.len();
        let top: usize =
            self.top.iter().map(|entry| size_of_val(entry) + entry.last_key.len()).sum();
        let held = size_of_val(&*self.held);
        (size_of::<Self>() + bounds + top + self.top_keys.weight() + held) as u64
    }

    /// Says from now on to `reports` which blocks are damaged.
    pub(crate) fn reporting_to(mut self, reports: Arc<DamageReports>) -> Self {
        if let Some(reason) = &self.broken {
            reports.report((self.meta.number, 0), reason);
        }
        self.reports = reports;
        self
    }

    /// Opens the file anew and checks its length and its footer.
    pub(crate) fn check_ends(&self, vfs: &dyn Vfs) -> Result<()> {
        self.check_open()?;
        let file = vfs.open_read(&self.path).context("open", &self.path)?;
        let len = file.len().context("measure", &self.path)?;
        if len == self.meta.len && Footer::read(&*file, &self.path, len)?.uid == self.meta.uid {
            return Ok(());
        }
        let detail = format!(
            "file of {len} bytes where there was table {:032x} of {}",
            self.meta.uid, self.meta.len
        );
        Err(Error::corruption(&self.path, 0, detail))
    }

    /// The error of every read of a table that cannot be opened.
    pub(crate) fn check_open(&self) -> Result<()> {
        match &self.broken {
            None => Ok(()),
            Some(reason) => Err(Error::corruption(&self.path, 0, reason.clone())),
        }
    }

    pub(crate) const fn meta(&self) -> &TableMeta {
        &self.meta
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &dyn VfsFile {
        &*self.file
    }

    pub(crate) fn top(&self) -> &[TopEntry] {
        &self.top
    }

    pub(crate) const fn properties(&self) -> &Properties {
        &self.properties
    }

    pub(crate) const fn data_end(&self) -> u64 {
        self.data_end
    }

    /// The file goes once the last user of the table is gone.
    pub(crate) fn retire(&self) {
        self.obsolete.store(true, Ordering::Release);
    }

    /// A data or index block from the medium.
    pub(crate) fn block(&self, handle: Handle, kind: BlockKind) -> Result<Block> {
        Block::parse(self.read(handle, kind)?, kind, &self.path, handle.offset)
    }

    /// A data block of an index partition for a walk, which reads what the cache does not have through `ahead`.
    pub(crate) fn block_ahead(
        &self,
        index: &Arc<IndexPartition>,
        at: usize,
        fill: bool,
        ahead: &mut ReadAhead,
    ) -> Result<Block> {
        let read = |buf: &mut [u8], offset| ahead.read(&*self.file, self.data_end, buf, offset);
        let (handle, raw) =
            self.with_data(index, at, fill, read, |handle, raw| (handle, Arc::clone(raw)))?;
        Block::parsed_before(raw, BlockKind::Data, &self.path, handle.offset)
    }

    /// Whether the cache has room for more without pushing anything out.
    pub(crate) fn cache_has_room(&self) -> bool {
        self.cache.has_room()
    }

    /// Uses the bytes of a data block of an index partition, which were parsed once.
    #[inline]
    fn with_data<T>(
        &self,
        index: &Arc<IndexPartition>,
        at: usize,
        fill: bool,
        read: impl FnOnce(&mut [u8], u64) -> io::Result<()>,
        apply: impl Fn(Handle, &Arc<[u8]>) -> T,
    ) -> Result<T> {
        let Some(handle) = index.handle(at) else {
            return Err(Error::corruption(&self.path, 0, "an index partition lost a block"));
        };
        if let Some(applied) = index.slot(at).and_then(|slot| slot.with(|raw| apply(handle, raw))) {
            self.cache.count_hit(CacheKind::Data, fill);
            return Ok(applied);
        }
        let raw = self.cached_data(index, at, handle, fill, read)?;
        Ok(apply(handle, &raw))
    }

    /// A data block through the cache.
    fn cached_data(
        &self,
        index: &Arc<IndexPartition>,
        at: usize,
        handle: Handle,
        fill: bool,
        read: impl FnOnce(&mut [u8], u64) -> io::Result<()>,
    ) -> Result<Arc<[u8]>> {
        let mut loaded = false;
        let cached = self.cache.get(self.id(handle, CacheKind::Data), fill, || {
            loaded = true;
            let raw = self.read_by(handle, BlockKind::Data, read)?;
            let raw = Block::parse(raw, BlockKind::Data, &self.path, handle.offset)?.into_raw();
            let slot = SlotName::new(index, at);
            // Before the cache has it: whatever it gives up later was in its slot before.
            if fill {
                slot.put(&raw);
            }
            Ok(Cached::Block(raw, slot))
        })?;
        if !loaded && let Some(slot) = index.slot(at) {
            slot.set_used();
        }
        match cached {
            Cached::Block(raw, _) => Ok(raw),
            Cached::Index(_) | Cached::Filter(_) => Err(self.mixed_up(handle)),
        }
    }

    /// A block from the medium.
    pub(crate) fn read(&self, handle: Handle, kind: BlockKind) -> Result<Arc<[u8]>> {
        self.read_by(handle, kind, |buf, offset| self.file.read_exact_at(buf, offset))
    }

    fn read_by(
        &self,
        handle: Handle,
        kind: BlockKind,
        read: impl FnOnce(&mut [u8], u64) -> io::Result<()>,
    ) -> Result<Arc<[u8]>> {
        self.check_open()?;
        read_block_by(self.source(), handle, kind, read).inspect_err(|e| {
            if let Error::Corruption { detail, .. } = e {
                self.reports.report((self.meta.number, handle.offset), detail);
            }
        })
    }

    const fn id(&self, handle: Handle, kind: CacheKind) -> BlockId {
        BlockId { table: self.uid_fold, offset: handle.offset, kind }
    }

    fn mixed_up(&self, handle: Handle) -> Error {
        self.corrupt(handle, "a block is cached as what it is not")
    }

    /// The first index partition that may hold a key; their number if there is none.
    pub(crate) fn partition_of(&self, key: &[u8]) -> usize {
        self.top_keys.first_at_or_after(key, |_| false)
    }

    /// An index partition for a walk; `None` if there are not so many.
    pub(crate) fn index_partition(
        &self,
        partition: usize,
        fill: bool,
    ) -> Result<Option<Arc<IndexPartition>>> {
        let Some(top) = self.top.get(partition) else { return Ok(None) };
        Ok(Some(Arc::clone(&*self.part(partition, top, fill)?)))
    }

    fn source(&self) -> Source<'_> {
        Source {
            file: &*self.file,
            path: &self.path,
            uid: self.meta.uid,
            blocks_end: self.blocks_end,
        }
    }

    pub(crate) fn corrupt(&self, handle: Handle, detail: &str) -> Error {
        Error::corruption(&self.path, handle.offset, detail)
    }

    /// Whether a user key is within the table's bounds.
    pub(crate) fn covers(&self, key: &[u8]) -> bool {
        self.meta.smallest.user_key.as_slice() <= key
            && key <= self.meta.largest.user_key.as_slice()
    }

    /// The newest version of `key` at or below `sequence`. `hash` is the key's
    /// [`key_hash`](crate::sstable::filter::key_hash).
    pub(crate) fn get(&self, key: &[u8], hash: u64, sequence: u64) -> Result<Option<FoundEntry>> {
        let Some((index, at)) = self.find(key, hash, sequence)? else { return Ok(None) };
        let read = |buf: &mut [u8], offset| self.file.read_exact_at(buf, offset);
        self.with_data(&index, at, true, read, |handle, raw| {
            self.find_in_block(handle, raw, key, sequence)
        })?
    }

    /// As [`Table::get`], for keys that come in order: the block of the key before is at hand.
    pub(crate) fn get_next(
        &self,
        key: &[u8],
        hash: u64,
        sequence: u64,
        last: &mut LastBlock,
    ) -> Result<Option<FoundEntry>> {
        let Some((index, at)) = self.find(key, hash, sequence)? else { return Ok(None) };
        let Some(handle) = index.handle(at) else { return Ok(None) };
        let place = (self.uid_fold, handle.offset);
        if let Some(raw) = last.raw.as_ref().filter(|_| last.place == place) {
            return self.find_in_block(handle, raw, key, sequence);
        }
        let read = |buf: &mut [u8], offset| self.file.read_exact_at(buf, offset);
        let raw = self.with_data(&index, at, true, read, |_, raw| Arc::clone(raw))?;
        let found = self.find_in_block(handle, &raw, key, sequence);
        *last = LastBlock { place, raw: Some(raw) };
        found
    }

    /// The only data block that may hold the newest version of `key` at or below `sequence`: its index
    /// partition and place there.
    #[inline]
    fn find(
        &self,
        key: &[u8],
        hash: u64,
        sequence: u64,
    ) -> Result<Option<(Hold<'_, IndexPartition>, usize)>> {
        if self.meta.min_sequence > sequence {
            return Ok(None);
        }
        let partition = self.partition_of(key);
        let Some(top) = self.top.get(partition) else { return Ok(None) };
        perf::count(Count::Tables, 1);
        if top.min_sequence > sequence {
            return Ok(None);
        }
        perf::count(Count::Filters, 1);
        if !self.part::<Filter>(partition, top, true)?.may_contain(hash) {
            perf::count(Count::FiltersExcluded, 1);
            self.cache.counts().add(ReadCount::Excluded, 1);
            return Ok(None);
        }
        // The separator is at or above everything in the block and below everything in the next one, so
        // a search that runs off this block's end would find another user key in the next.
        let index = self.part::<IndexPartition>(partition, top, true)?;
        let at = index.find(key, sequence);
        if at < index.len() {
            return Ok(Some((index, at)));
        }
        self.cache.counts().add(ReadCount::FalsePositive, 1);
        Ok(None)
    }

    #[inline]
    fn find_in_block(
        &self,
        handle: Handle,
        raw: &Arc<[u8]>,
        key: &[u8],
        sequence: u64,
    ) -> Result<Option<FoundEntry>> {
        let found = block::find(raw, key, sequence)
            .map_err(|detail| self.corrupt(handle, &format!("entry: {detail}")))?;
        let count = if found.is_some() { ReadCount::Answered } else { ReadCount::FalsePositive };
        self.cache.counts().add(count, 1);
        Ok(found.map(|found| FoundEntry {
            sequence: found.sequence,
            kind: found.kind,
            value: block::value_bytes(raw, found.value),
        }))
    }
}

/// The file of a table that has none.
#[derive(Debug)]
struct NoFile;

impl VfsFile for NoFile {
    fn read_exact_at(&self, _buf: &mut [u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn write_all_at(&self, _buf: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn sync_all(&self) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn len(&self) -> io::Result<u64> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn allocate(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.cache.release(self.held_bytes.load(Ordering::Relaxed));
        if self.obsolete.load(Ordering::Acquire) {
            self.graveyard.lock().push((self.path.to_path_buf(), self.meta.len));
        }
    }
}

fn read_properties(source: Source<'_>, footer: &Footer) -> Result<Properties> {
    let raw = read_block(source, footer.properties, BlockKind::Properties)?;
    Properties::decode(without_trailer(&raw), source.path, footer.properties.offset)
}

/// What a manifest would say of the table in a file, by what the table says of itself.
///
/// # Errors
/// `Io`; `Corruption` if its end is damaged; `UnknownVersion`.
pub(crate) fn read_meta(
    file: &dyn VfsFile,
    path: &Path,
    number: FileNumber,
    digest: u128,
) -> Result<TableMeta> {
    let len = file.len().context("measure", path)?;
    let footer = Footer::read(file, path, len)?;
    let blocks_end = len - FOOTER_BYTES as u64;
    let source = Source { file, path, uid: footer.uid, blocks_end };
    let properties = read_properties(source, &footer)?;
    if properties.uid != footer.uid {
        let detail = "properties of another table";
        return Err(Error::corruption(path, footer.properties.offset, detail));
    }
    Ok(properties.meta(number, len, digest))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sstable::builder::{TableBuilder, TableLayout};
    use crate::sstable::filter::key_hash;
    use crate::sstable::format::Codec;
    use crate::types::FileNumber;
    use crate::vfs::MemVfs;

    /// An open table of its own file system, with one value of each key; its number is its uid.
    pub(crate) fn sample(number: FileNumber, partition: u8, keys: &[&[u8]]) -> Arc<Table> {
        sample_with(number, partition, keys, &Arc::new(BlockCache::new(0)))
    }

    /// As [`sample`], with a cache.
    pub(crate) fn sample_with(
        number: FileNumber,
        partition: u8,
        keys: &[&[u8]],
        cache: &Arc<BlockCache>,
    ) -> Arc<Table> {
        let vfs = MemVfs::new(1);
        let path = Path::new("/table");
        let layout = TableLayout {
            block_bytes: 256,
            restart_interval: 4,
            index_partition_bytes: 256,
            filter_bits_per_key: 10,
            codec: Codec::None,
        };
        let file = vfs.create_new(path).expect("creates");
        let uid = u128::from(number.0);
        let mut builder =
            TableBuilder::new(file, path.to_path_buf(), number, uid, partition, layout);
        let mut keys = keys.to_vec();
        keys.dedup();
        for key in keys {
            builder.add(key, 1, Kind::Value, b"value").expect("adds");
        }
        let meta = builder.finish().expect("finishes");
        let file = vfs.open_read(path).expect("is there");
        let table = Table::open(file, path, meta, Arc::clone(cache), Graveyard::default());
        Arc::new(table.expect("opens"))
    }

    #[test]
    fn what_a_table_holds_for_itself_is_not_in_the_cache_as_well_and_is_given_back() {
        let cache = Arc::new(BlockCache::new(64 * 1024));
        let table = sample_with(FileNumber(3), 0, &[b"a", b"b"], &cache);
        table.index_partition(0, false).expect("reads");
        assert_eq!(cache.metrics().bytes(), 0, "a walk that keeps nothing");
        let hash = key_hash(b"b");
        assert!(table.get(b"b", hash, 9).expect("reads").is_some(), "is there");
        let Some(top) = table.top().first() else { unreachable!("one partition") };
        let index = table.index_partition(0, true).expect("reads").expect("is there");
        let filter = table.load_part::<Filter>(top).expect("reads");
        let held = (index.weight() + index.slots_weight() + filter.weight()) as u64;
        let block = table.block(index.handle(0).expect("one block"), BlockKind::Data);
        let block = block.expect("reads").into_raw().len() as u64;
        let metrics = cache.metrics();
        assert_eq!(metrics.held_bytes, held, "index and filter");
        let more = metrics.cached_bytes - block;
        assert!(more < held, "the cache has the data block only, and {more} bytes with it");
        drop((table, index, filter));
        assert_eq!(cache.metrics().held_bytes, 0, "given back");
    }
}
