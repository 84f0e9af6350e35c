//! What a store was whose manifest is gone, from its tables: the last part of the last resort (see `salvage`).
//!
//! A table says which partition, keys and sequence numbers it has, but not whether it was still in force: one
//! that a merge had replaced may not have been removed yet, one that was being made may never have been put in
//! force. So no table is believed to be newer than another: those that share keys are merged by sequence
//! number, which is exact for all that is in any of them. Newer versions are never hidden by older ones. But
//! a delete that a merge had already dropped, together with what it deleted, is not there to say so if a table
//! that the merge replaced still is.
//!
//! A store with its own log is at the position where that begins: what tables have from there on the log
//! brings back. Without one the position is not known. Nothing vouches for history: reads before the newest
//! number are refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cache::BlockCache;
use crate::checksum;
use crate::error::{Error, IoContext, Result};
use crate::iter::InternalIter;
use crate::iter::level::{LevelIter, Tables};
use crate::iter::merge::{MergeIter, Source};
use crate::iter::reading::Reading;
use crate::journal::scan::{Scanner, Step};
use crate::journal::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, parse_file_name};
use crate::manifest::current::{parse_table, table_dir, table_path};
use crate::manifest::edit::{Item, PlacedTable};
use crate::manifest::state::ManifestState;
use crate::options::{Keep, LEVELS, Options};
use crate::sstable::TableMeta;
use crate::sstable::builder::TableBuilder;
use crate::sstable::reader::{Graveyard, Table, read_meta};
use crate::store::checkpoint::read_through;
use crate::store::damage::Damage;
use crate::store::jobs::layout;
use crate::store::salvage::Salvaged;
use crate::types::{FileNumber, MAX_KEY_BYTES, PartitionId, Position};
use crate::vfs::{FilePool, Vfs};
use crate::wal;

const LAST_LEVEL: usize = LEVELS - 1;

/// Makes tables in `to` of what those in `dir` have, and returns the state of the store that they are.
pub(super) fn rebuild(
    vfs: &Arc<dyn Vfs>,
    options: &Options,
    (dir, to): (&Path, &Path),
    salvaged: &mut Salvaged,
) -> Result<ManifestState> {
    let files = FilePool::new(Arc::clone(vfs), options.max_open_files);
    let log = LogStart::read(&**vfs, dir, options.store_id)?;
    let mut state = ManifestState::create(&options.partitions);
    let mut next = FileNumber(1);
    let mut kept: Vec<Vec<TableMeta>> = vec![Vec::new(); options.partitions.len()];
    let mut uids = BTreeMap::new();
    for (number, path) in listed(&**vfs, dir)? {
        next = FileNumber(number.0 + 1);
        let table = match open(vfs, &files, &path, number) {
            Ok(table) => table,
            Err(error @ Error::Corruption { .. }) => {
                salvaged.unknown_table(&path, &error, options.partitions.len());
                continue;
            }
            Err(error) => return Err(error),
        };
        let meta = table.meta();
        // The same table under another name.
        if uids.insert(meta.uid, number).is_some() {
            continue;
        }
        let slot = usize::from(meta.partition);
        let (Some(of), Some(last)) = (kept.get_mut(slot), state.sequences.get_mut(slot)) else {
            let known = options.partitions.len();
            let (table, partition) = (path.display(), meta.partition);
            let detail = format!("{table} is of partition {partition}, but {known} were given");
            return Err(Error::InvalidArgument(detail));
        };
        *last = (*last).max(meta.max_sequence);
        let placed = PlacedTable { level: LAST_LEVEL, l0_epoch: 0, meta: meta.clone() };
        of.extend(salvaged.table(&**vfs, options, &table, &placed, to)?.map(|placed| placed.meta));
    }
    let mut merging = Merging { vfs, files: &files, options, to, next, repeated: 0 };
    let mut items = Vec::new();
    for (slot, metas) in kept.into_iter().enumerate() {
        let below = log.sequences.get(&slot).copied().unwrap_or(u64::MAX);
        for metas in together(metas) {
            let alone = metas.len() == 1 && metas.iter().all(|meta| meta.max_sequence < below);
            let metas = if alone { metas } else { merging.merge(&metas, below)? };
            let place = |meta| PlacedTable { level: LAST_LEVEL, l0_epoch: 0, meta };
            items.extend(metas.into_iter().map(|meta| Item::AddTable(Box::new(place(meta)))));
        }
    }
    salvaged.repeated = merging.repeated;
    state.next_file = merging.next;
    state.position = Position { index: log.position, ..Position::default() };
    let history = state.sequences.clone();
    for (slot, (last, floor)) in state.sequences.iter_mut().zip(&mut state.floors).enumerate() {
        if options.partitions.get(slot).is_some_and(|p| p.keep == Keep::All) {
            *floor = history.get(slot).copied().unwrap_or(0);
        }
        *last = log.sequences.get(&slot).map_or(*last, |from| (*last).min(from - 1));
    }
    state.apply(&items).map_err(Error::InvalidArgument)?;
    Ok(state)
}

/// The files that are named like tables, in the order in which they were made.
fn listed(vfs: &dyn Vfs, dir: &Path) -> Result<BTreeMap<FileNumber, PathBuf>> {
    let tables = table_dir(dir);
    let paths = vfs.list(&tables).context("list", &tables)?;
    Ok(paths.into_iter().filter_map(|path| Some((parse_table(&path)?, path))).collect())
}

/// Opens a table as what it says it is.
fn open(
    vfs: &Arc<dyn Vfs>,
    files: &Arc<FilePool>,
    path: &Path,
    number: FileNumber,
) -> Result<Arc<Table>> {
    let file = files.open_read(path).context("open", path)?;
    let len = file.len().context("measure", path)?;
    let digest = read_through(&**vfs, path, len, &mut |_, _| Ok(()))?;
    let meta = read_meta(&*file, path, number, digest)?;
    let (cache, graveyard) = (Arc::new(BlockCache::new(0)), Graveyard::default());
    Ok(Arc::new(Table::open(file, path, meta, cache, graveyard)?))
}

/// Groups tables so that those of different groups share no key, not even between their own.
fn together(mut metas: Vec<TableMeta>) -> Vec<Vec<TableMeta>> {
    metas.sort_by(|a, b| a.smallest.user_key.cmp(&b.smallest.user_key));
    let mut groups: Vec<Vec<TableMeta>> = Vec::new();
    let mut reach: Vec<u8> = Vec::new();
    for meta in metas {
        let largest = meta.largest.user_key.clone();
        match groups.last_mut() {
            Some(group) if meta.smallest.user_key <= reach => {
                reach = reach.max(largest);
                group.push(meta);
            }
            _ => {
                reach = largest;
                groups.push(vec![meta]);
            }
        }
    }
    groups
}

/// Makes one list of tables out of those that share keys.
struct Merging<'a> {
    vfs: &'a Arc<dyn Vfs>,
    files: &'a Arc<FilePool>,
    options: &'a Options,
    to: &'a Path,
    next: FileNumber,
    repeated: u64,
}

impl Merging<'_> {
    /// Merges tables in `to` into new ones, which take their place: every entry below a sequence number, once.
    fn merge(&mut self, metas: &[TableMeta], below: u64) -> Result<Vec<TableMeta>> {
        let paths: Vec<_> = metas.iter().map(|meta| table_path(self.to, meta.number)).collect();
        let mut sources = Vec::new();
        for (meta, path) in metas.iter().zip(&paths) {
            let (cache, graveyard) = (Arc::new(BlockCache::new(0)), Graveyard::default());
            let file = self.files.open_read(path).context("open", path)?;
            let table = Arc::new(Table::open(file, path, meta.clone(), cache, graveyard)?);
            let iter = LevelIter::new(Tables::from(vec![table]), Reading::COMPACTION);
            sources.push(Source::Level(Box::new(iter)));
        }
        let mut merge = MergeIter::new(sources);
        let mut made = Vec::new();
        let mut output: Option<TableBuilder> = None;
        let mut last: Option<(Vec<u8>, u64)> = None;
        merge.seek_to_first()?;
        while merge.valid() {
            let (key, sequence) = (merge.key(), merge.sequence());
            let same_key = last.as_ref().is_some_and(|(last, _)| last == key);
            if same_key && last.as_ref().is_some_and(|(_, last)| *last == sequence) {
                self.repeated += 1;
            } else if sequence < below {
                // Versions of a key stay in one table.
                let full = |b: &mut TableBuilder| b.estimated_bytes() >= self.options.table_bytes;
                if !same_key && let Some(full) = output.take_if(full) {
                    made.push(full.finish()?);
                }
                let builder = match &mut output {
                    Some(builder) => builder,
                    none => none.insert(self.output(metas)?),
                };
                builder.add(key, sequence, merge.kind(), merge.value())?;
                last = Some((key.to_vec(), sequence));
            }
            merge.next()?;
        }
        if let Some(last) = output {
            made.push(last.finish()?);
        }
        for path in &paths {
            self.vfs.unlink(path).context("remove", path)?;
        }
        Ok(made)
    }

    fn output(&mut self, of: &[TableMeta]) -> Result<TableBuilder> {
        let number = self.next;
        self.next = FileNumber(number.0 + 1);
        let mut name = b"rebuilt".to_vec();
        name.extend_from_slice(&number.0.to_le_bytes());
        of.iter().for_each(|meta| name.extend_from_slice(&meta.uid.to_le_bytes()));
        let partition = of.first().map_or(0, |meta| meta.partition);
        let path = table_path(self.to, number);
        let file = self.vfs.create_new(&path).context("create", &path)?;
        let (uid, layout) = (checksum::digest(&name), layout(self.options, LAST_LEVEL));
        Ok(TableBuilder::new(file, path, number, uid, partition, layout))
    }
}

/// Where the store's own log begins.
#[derive(Debug, Default)]
struct LogStart {
    /// Of the last batch before it.
    position: u64,
    /// Per partition the first sequence number in it.
    sequences: BTreeMap<usize, u64>,
}

impl LogStart {
    /// Reads the log, if there is one, as far as that goes: opening the store judges it.
    fn read(vfs: &dyn Vfs, dir: &Path, store_id: u128) -> Result<Self> {
        let mut start = Self { position: u64::MAX, ..Self::default() };
        let mut segments = BTreeMap::new();
        if wal::is_there(vfs, dir)? {
            let log = wal::directory(dir);
            for path in vfs.list(&log).context("list", &log)? {
                let name = path.file_name().and_then(|name| name.to_str());
                if let Some(number) = name.and_then(parse_file_name) {
                    segments.insert(number, path);
                }
            }
        }
        for (number, path) in segments {
            match start.segment(vfs, &path, store_id, number) {
                Ok(()) | Err(Error::Corruption { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if start.position == u64::MAX {
            start.position = 0;
        }
        Ok(start)
    }

    fn segment(&mut self, vfs: &dyn Vfs, path: &Path, store_id: u128, number: u64) -> Result<()> {
        let file = vfs.open_read(path).context("open", path)?;
        let len = file.len().context("measure", path)?;
        let mut head = vec![0; usize::try_from(len.min(SEGMENT_HEADER_BYTES)).unwrap_or(0)];
        file.read_exact_at(&mut head, 0).context("read", path)?;
        let header = SegmentHeader::decode(path, &head, store_id, number)?;
        let mut scanner = Scanner::new(file, path, header.epoch, SEGMENT_HEADER_BYTES, len);
        while let Step::Record(found) = scanner.step()? {
            if let Some((before, sequences)) = wal::starts_at(found.header, found.payload) {
                self.position = self.position.min(before);
                for (partition, sequence) in sequences.iter() {
                    let first = self.sequences.entry(partition.slot()).or_insert(sequence.0);
                    *first = (*first).min(sequence.0);
                }
            }
        }
        Ok(())
    }
}

impl Salvaged {
    /// Notes a table that does not say what it is.
    fn unknown_table(&mut self, path: &Path, error: &Error, partitions: usize) {
        self.tables_lost += 1;
        let detail =
            format!("{error}; the file is damaged, or was never complete: any key may be lost");
        for id in (0_u8..).take(partitions) {
            self.lost.push(Damage {
                partition: PartitionId(id),
                smallest: Vec::new(),
                largest: vec![u8::MAX; MAX_KEY_BYTES],
                file: path.to_path_buf(),
                detail: detail.clone(),
            });
        }
    }
}
