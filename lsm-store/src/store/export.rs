//! A range of keys out of a store: all that another copy of the store needs in place of what it has of it.
//!
//! An export holds, of every key of the range, the versions above the retention floor and up to a sequence
//! number, and the newest one at or below the floor unless that is a delete. It needs nothing below it, so
//! it may replace whatever a store has of the range (see `ingest`), and only the whole of it: a single
//! table must never be replaced, since deletes that another copy has dropped already may still be needed
//! above what lies deeper here.

use std::path::Path;

use crate::compaction::gc::{Fate, KeyFate};
use crate::error::{Error, IoContext, Result};
use crate::internal_key::{Kind, SEQUENCE_ABOVE_ALL};
use crate::iter::InternalIter;
use crate::iter::reading::Reading;
use crate::manifest::current::{table_dir, table_path};
use crate::manifest::edit::{Item, PlacedTable};
use crate::manifest::state::ManifestState;
use crate::options::LEVELS;
use crate::sstable::builder::TableBuilder;
use crate::sstable::{TableMeta, entry_digest};
use crate::store::Store;
use crate::store::checkpoint::{Checkpoint, complete, new_dir, remove_dir};
use crate::store::inner::Inner;
use crate::store::snapshot::{Description, ExportedRange};
use crate::types::{FileNumber, KeyRange, SequenceNumber};

/// Tells whether two copies of a store hold the same of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RangeDigest {
    /// Sum over the rows, independent of their order and of how tables are laid out.
    pub digest: u64,
    /// Rows: keys with a value.
    pub rows: u64,
}

impl Store {
    /// Writes everything of a range of keys up to `sequence` into `dir`, which must be empty or not be there,
    /// for another copy of this store to take in with
    /// [`excise_and_ingest`](Store::excise_and_ingest). The result is read and sent like a checkpoint.
    ///
    /// # Errors
    /// `FutureSequence` above the newest published number, `Compacted` below the retention floor (of a
    /// partition that keeps the newest versions only, the floor is the newest number); `Corruption` if
    /// something of the range is damaged here, too; `InvalidArgument`, `Io`, `Poisoned`, `Closed`.
    pub fn export_range(
        &self,
        range: &KeyRange,
        sequence: SequenceNumber,
        dir: &Path,
    ) -> Result<Checkpoint> {
        self.check_partition(range.partition)?;
        let inner = self.inner();
        // What is visible first, then what holds all of that, then the floor: jobs dropped nothing above it.
        let visible = self.last_sequence(range.partition).0;
        let superversion = inner.superversion.load_full();
        let floor = self.floor(range.partition).0;
        if sequence.0 > visible {
            return Err(Error::FutureSequence { asked: sequence.0, visible });
        }
        if sequence.0 < floor {
            return Err(Error::Compacted { asked: sequence.0, floor });
        }
        let mut catalog = inner.catalog.lock();
        inner.state.lock().check_writable()?;
        let allocated = catalog.allocate();
        drop(catalog);
        let (_number, snapshot_id) = allocated.inspect_err(|e| inner.edit_failed(e))?;
        new_dir(&*inner.vfs, dir)?;
        let mut output = Output { inner, dir, range, tables: Vec::new(), open: None };
        let mut merge = superversion.merge(range.partition.slot(), Reading::COMPACTION);
        let made = output.write(&mut merge, sequence.0, floor.min(sequence.0)).and_then(|()| {
            let state =
                inner.exported_state(&output.tables, range, sequence.0, floor, snapshot_id)?;
            let exported = Some(ExportedRange { range: range.clone(), sequence: sequence.0 });
            let store_id = inner.options.store_id;
            let description = Description { store_id, snapshot_id, state, exported };
            complete(&inner.vfs, dir, description)
        });
        made.inspect_err(|_| {
            let _as_far_as_possible = remove_dir(&*inner.vfs, &table_dir(dir)).is_ok();
            let _as_far_as_possible = remove_dir(&*inner.vfs, dir).is_ok();
        })
    }

    /// The digest of what a reader at `sequence` finds in a range. Copies of a store that are at the same
    /// number have the same one, however their tables are laid out; the floors may differ.
    ///
    /// # Errors
    /// As [`view_at`](Store::view_at), and those of reading.
    pub fn digest(&self, range: &KeyRange, sequence: SequenceNumber) -> Result<RangeDigest> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let view = self.view_at(range.partition, sequence)?;
        let upper = range.end.as_deref().map_or(Unbounded, Excluded);
        let mut iter = view.iter(range.partition, Included(&range.start), upper)?;
        let mut digest = RangeDigest::default();
        let mut scratch = Vec::new();
        while iter.next()? {
            let (key, at, value) = (iter.key(), iter.sequence().0, iter.value());
            let row = entry_digest(&mut scratch, key, at, Kind::Value, value);
            digest.digest = digest.digest.wrapping_add(row);
            digest.rows += 1;
        }
        Ok(digest)
    }
}

impl Inner {
    fn exported_state(
        &self,
        tables: &[TableMeta],
        range: &KeyRange,
        sequence: u64,
        floor: u64,
        snapshot_id: u128,
    ) -> Result<ManifestState> {
        let partition = range.partition.0;
        let next = tables.iter().map(|t| t.number.0 + 1).max().unwrap_or(1);
        let mut items = vec![
            Item::NextFile(FileNumber(next)),
            Item::Flushed {
                position: self.visible.load().position.clone(),
                sequences: vec![(partition, sequence)],
            },
            Item::Floor { partition, sequence: floor },
            Item::Adopted { id: snapshot_id, fresh: true },
        ];
        items.extend(tables.iter().map(|meta| {
            let (level, meta) = (LEVELS - 1, meta.clone());
            Item::AddTable(Box::new(PlacedTable { level, l0_epoch: 0, meta }))
        }));
        let mut state = ManifestState::create(&self.options.partitions);
        let applied = state.apply(&items);
        applied.map_err(|detail| Error::InvalidArgument(format!("export: {detail}")))?;
        Ok(state)
    }
}

/// The tables of an export.
struct Output<'a> {
    inner: &'a Inner,
    dir: &'a Path,
    range: &'a KeyRange,
    tables: Vec<TableMeta>,
    open: Option<TableBuilder>,
}

impl Output<'_> {
    fn write(&mut self, merge: &mut dyn InternalIter, sequence: u64, bound: u64) -> Result<()> {
        let mut key: Option<Vec<u8>> = None;
        let mut fate = KeyFate::new(bound);
        merge.seek(&self.range.start, SEQUENCE_ABOVE_ALL)?;
        while merge.valid() && !self.range.is_below(merge.key()) {
            if merge.sequence() <= sequence {
                if key.as_deref() != Some(merge.key()) {
                    key = Some(merge.key().to_vec());
                    fate = KeyFate::new(bound);
                    let full = self.inner.options.table_bytes;
                    if let Some(full) = self.open.take_if(|open| open.estimated_bytes() >= full) {
                        self.tables.push(full.finish()?);
                    }
                }
                // Nothing older is outside: what is replaced goes as a whole.
                if fate.next(merge.sequence(), merge.kind(), || false) == Fate::Keep {
                    let (at, kind) = (merge.sequence(), merge.kind());
                    self.builder()?.add(merge.key(), at, kind, merge.value())?;
                }
            }
            merge.next()?;
        }
        if let Some(last) = self.open.take() {
            self.tables.push(last.finish()?);
        }
        Ok(())
    }

    fn builder(&mut self) -> Result<&mut TableBuilder> {
        if self.open.is_none() {
            let mut catalog = self.inner.catalog.lock();
            let allocated = catalog.allocate();
            drop(catalog);
            let (number, uid) = allocated.inspect_err(|e| self.inner.edit_failed(e))?;
            let path = table_path(self.dir, number);
            let file = self.inner.vfs.create_new(&path).context("create", &path)?;
            let layout = self.inner.layout(LEVELS - 1);
            let partition = self.range.partition.0;
            self.open = Some(TableBuilder::new(file, path, number, uid, partition, layout));
        }
        match &mut self.open {
            Some(builder) => Ok(builder),
            None => Err(Error::InvalidArgument("no output table".to_owned())),
        }
    }
}
