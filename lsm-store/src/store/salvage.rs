//! What can be read of a damaged store, as a new store: the last resort, when no other copy is left.
//!
//! Tables that are whole are taken as they are; of others, the blocks that can be read. What is lost is
//! reported by range: there, deletes and newer versions may be missing, so older values may come back. The
//! damaged store is not touched. Without a manifest, see `rebuild`.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::cache::BlockCache;
use crate::checksum;
use crate::error::{Error, IoContext, Result};
use crate::manifest::current::{Listing, manifest_path, parse_table, table_dir, table_path};
use crate::manifest::edit::{Item, PlacedTable};
use crate::manifest::file;
use crate::manifest::state::ManifestState;
use crate::options::Options;
use crate::sstable::TableMeta;
use crate::sstable::builder::TableBuilder;
use crate::sstable::damage::DamageReports;
use crate::sstable::pieces::readable;
use crate::sstable::reader::{Graveyard, Table};
use crate::sstable::verify::verify_table;
use crate::store::Store;
use crate::store::catalog::Catalog;
use crate::store::checkpoint::{complete, link_or_copy, new_dir, read_whole, write_whole};
use crate::store::damage::{Damage, open_tables};
use crate::store::jobs::layout;
use crate::store::rebuild::rebuild;
use crate::store::recovery::lock;
use crate::store::snapshot::Description;
use crate::types::PartitionId;
use crate::vfs::{FilePool, Vfs, create_dir_durable};
use crate::wal;

/// What [`Store::salvage`] kept and lost.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Salvaged {
    /// Tables taken as they are.
    pub tables_whole: usize,
    /// Tables of which something could be read.
    pub tables_in_part: usize,
    /// Tables of which nothing could be read.
    pub tables_lost: usize,
    /// Entries kept.
    pub entries: u64,
    /// Ranges of which entries are lost.
    pub lost: Vec<Damage>,
    /// Why the manifest could not be used, if so: what the store was was then taken from its tables. Keys that
    /// were deleted may be back, if a table that a merge had replaced was still there.
    pub manifest: Option<String>,
    /// Without a manifest, entries that were in more than one table, and are now in one: some of those tables
    /// had been replaced, or were being made.
    pub repeated: u64,
}

impl Store {
    /// Makes a new store in `to`, which must not be there or be empty, of what can be read of the damaged one in
    /// `dir`, which is not changed and must not be open. In the ranges reported as lost, versions and deletes
    /// are missing: reads there may find older values, or nothing. Better than this, if there is another
    /// copy of the store, is [`excise_and_ingest`](Store::excise_and_ingest).
    ///
    /// If the manifest or its marker is damaged or missing, the tables tell what the store was: the newest
    /// version of every key that is in any of them. Retention floors then rise to the newest sequence number. With
    /// [`Mode::Wal`](crate::Mode::Wal) the log brings the position; otherwise that is 0, for it is not known which
    /// part of the caller's log the tables hold: nothing should be replayed on it.
    ///
    /// # Errors
    /// `Locked`, `WrongStore`, `InvalidArgument`, `UnknownVersion`; `Io`.
    pub fn salvage(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        options: &Options,
        to: &Path,
    ) -> Result<Salvaged> {
        let _lock = lock(&*vfs, dir)?;
        let mut salvaged = Salvaged::default();
        let listed = match in_manifest(&vfs, dir, options) {
            Ok(listed) => Some(listed),
            Err(error) if is_lost(&error) => {
                salvaged.manifest = Some(error.to_string());
                None
            }
            Err(error) => return Err(error),
        };
        new_dir(&*vfs, to)?;
        let id = checksum::digest(format!("salvage of {}", dir.display()).as_bytes());
        let state = match listed {
            Some((state, tables)) => {
                let mut kept = Vec::new();
                for table in &tables {
                    let Some(placed) = state.tables.get(&table.meta().number) else { continue };
                    kept.extend(salvaged.table(&*vfs, options, table, placed, to)?);
                }
                with_tables(&state, kept)?
            }
            None => rebuild(&vfs, options, (dir, to), &mut salvaged)?,
        };
        let state = as_copy(state, id)?;
        copy_log(&*vfs, dir, to)?;
        let (store_id, snapshot_id) = (options.store_id, id);
        complete(&vfs, to, Description { store_id, snapshot_id, state, exported: None })?;
        Ok(salvaged)
    }
}

/// Whether an error says that the manifest is not what it was.
fn is_lost(error: &Error) -> bool {
    let missing = matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound);
    missing || matches!(error, Error::Corruption { .. })
}

/// What the manifest says, and the tables that it lists. If only the marker is lost, it is the newest manifest
/// that counts: either it was in force, or it says the same as the one that was and an edit that was about to be.
fn in_manifest(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    options: &Options,
) -> Result<(ManifestState, Vec<Arc<Table>>)> {
    let mut strangers = Vec::new();
    let (state, manifest) = match Catalog::read(&**vfs, dir, options) {
        Ok((contents, listing)) => {
            let number = listing.current().map(|(_, number)| number);
            (contents.state, number.map_or_else(|| dir.to_path_buf(), |n| manifest_path(dir, n)))
        }
        Err(error) if is_lost(&error) => {
            let listing = Listing::read(&**vfs, dir)?;
            let marked = listing.current().map(|(_, number)| number);
            let newest = listing.manifests.last().copied();
            let Some(number) = newest.filter(|newest| marked.is_none_or(|m| m < *newest)) else {
                return Err(error);
            };
            let manifest = manifest_path(dir, number);
            let state = file::read(&**vfs, &manifest, options.store_id, number)?;
            if let Some(mismatch) = state.partition_mismatch(&options.partitions) {
                let detail = format!("{}: {mismatch}", manifest.display());
                return Err(Error::InvalidArgument(detail));
            }
            let tables = table_dir(dir);
            strangers = vfs.list(&tables).context("list", &tables)?;
            strangers.retain(|p| parse_table(p).is_some_and(|n| !state.tables.contains_key(&n)));
            (state, manifest)
        }
        Err(error) => return Err(error),
    };
    let (cache, graveyard) = (Arc::new(BlockCache::new(0)), Graveyard::default());
    let reports = Arc::<DamageReports>::default();
    let lenient = Options { refuse_damaged: false, ..options.clone() };
    let shared = (&cache, &graveyard, &reports);
    let files = FilePool::new(Arc::clone(vfs), options.max_open_files);
    let tables = open_tables(&files, dir, &lenient, &manifest, &state, &strangers, shared)?;
    Ok((state, tables))
}

impl Salvaged {
    pub(super) fn table(
        &mut self,
        vfs: &dyn Vfs,
        options: &Options,
        table: &Table,
        placed: &PlacedTable,
        to: &Path,
    ) -> Result<Option<PlacedTable>> {
        let meta = &placed.meta;
        let path = table_path(to, meta.number);
        if verify_table(table).is_ok() {
            link_or_copy(vfs, table.path(), &path, meta)?;
            self.tables_whole += 1;
            self.entries += meta.entries;
            return Ok(Some(placed.clone()));
        }
        let mut builder: Option<TableBuilder> = None;
        // Other content under the same uid would not be told apart.
        let uid = checksum::digest(&[&meta.uid.to_le_bytes()[..], b"salvaged"].concat());
        let lost = &mut self.lost;
        readable(
            table,
            &mut |key, sequence, kind, value| {
                let builder = match &mut builder {
                    Some(builder) => builder,
                    none => {
                        let file = vfs.create_new(&path).context("create", &path)?;
                        let (number, partition) = (meta.number, meta.partition);
                        let layout = layout(options, placed.level);
                        let path = path.clone();
                        none.insert(TableBuilder::new(file, path, number, uid, partition, layout))
                    }
                };
                builder.add(key, sequence, kind, value)
            },
            &mut |smallest, largest, error| {
                lost.push(Damage {
                    partition: PartitionId(meta.partition),
                    smallest: smallest.to_vec(),
                    largest: largest.to_vec(),
                    file: table.path().to_path_buf(),
                    detail: error.to_string(),
                });
                Ok(())
            },
        )?;
        let Some(builder) = builder else {
            self.tables_lost += 1;
            return Ok(None);
        };
        let meta: TableMeta = builder.finish()?;
        self.tables_in_part += 1;
        self.entries += meta.entries;
        Ok(Some(PlacedTable { meta, ..placed.clone() }))
    }
}

/// The state with other tables.
fn with_tables(state: &ManifestState, tables: Vec<PlacedTable>) -> Result<ManifestState> {
    let gone = state.tables.values().map(|placed| Item::DeleteTable {
        partition: placed.meta.partition,
        level: placed.level,
        number: placed.meta.number,
    });
    let added = tables.into_iter().map(|placed| Item::AddTable(Box::new(placed)));
    let items: Vec<_> = gone.chain(added).collect();
    let mut state = state.clone();
    state.apply(&items).map_err(Error::InvalidArgument)?;
    Ok(state)
}

/// The state as that of a copy that is to be opened.
fn as_copy(mut state: ManifestState, id: u128) -> Result<ManifestState> {
    state.apply(&[Item::Adopted { id, fresh: true }]).map_err(Error::InvalidArgument)?;
    Ok(state)
}

/// The log, if the store has one, as it is: opening the new store reads it.
fn copy_log(vfs: &dyn Vfs, dir: &Path, to: &Path) -> Result<()> {
    if !wal::is_there(vfs, dir)? {
        return Ok(());
    }
    let (from, to) = (wal::directory(dir), wal::directory(to));
    create_dir_durable(vfs, &to).context("create", &to)?;
    for path in vfs.list(&from).context("list", &from)? {
        let segment = path.extension().is_some_and(|e| e == "wal");
        if let (true, Some(name)) = (segment, path.file_name()) {
            write_whole(vfs, &to.join(name), &read_whole(vfs, &path)?)?;
        }
    }
    vfs.sync_dir(&to).context("sync", &to)
}
