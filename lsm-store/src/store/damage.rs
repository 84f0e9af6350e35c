//! Damaged tables: found by whoever reads, recorded in the manifest, left out of compactions.
//!
//! ```text
//! read, scrub, compaction, verify ─report─► DamageReports ─settle─► read again ─► manifest edit, event
//! ```
//!
//! 1. A report leaves its table out of compactions at once; a compaction would only fail on it, or worse.
//! 2. Settling reads the place again: what is whole then was a fault of memory or of the transfer, and is
//!    forgotten. The rest is recorded, so that it is known after the next opening without being met again.
//! 3. Everything else of the table, and of the store, is read as before. Reads of a damaged range are
//!    errors; no option makes them skip it.
//!
//! A table that cannot even be opened stands in the version as one that is damaged as a whole. That is not
//! recorded: the next opening sees it again, or finds the file in its place.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cache::BlockCache;
use crate::error::{Error, IoContext, Result};
use crate::events::Event;
use crate::manifest::current::table_path;
use crate::manifest::edit::Item;
use crate::manifest::state::ManifestState;
use crate::options::Options;
use crate::sstable::damage::{DamageReports, extent};
use crate::sstable::reader::{Graveyard, Table};
use crate::sstable::verify::{locate_damage, verify_table};
use crate::store::inner::Inner;
use crate::types::{FileNumber, KeyRange, PartitionId};
use crate::vfs::FilePool;

/// What is known of damage that an earlier opening of the store found.
const FOUND_EARLIER: &str = "found by an earlier opening of the store";

/// A range of keys that cannot be read, because the bytes of a table are not what was written there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Whose keys.
    pub partition: PartitionId,
    /// First key that may be concerned.
    pub smallest: Vec<u8>,
    /// Last key that may be concerned.
    pub largest: Vec<u8>,
    /// The table.
    pub file: PathBuf,
    /// What was wrong with it.
    pub detail: String,
}

impl Damage {
    /// The range to ask another copy of the store for, see [`Store::export_range`](crate::Store::export_range).
    #[must_use]
    pub fn range(&self) -> KeyRange {
        let (partition, start) = (self.partition, self.smallest.clone());
        // The first key behind the last one of the range.
        let end = Some([self.largest.as_slice(), &[0]].concat());
        KeyRange { partition, start, end }
    }
}

impl Inner {
    /// Looks at what was reported since the last time, and records what is still so. Without room for the
    /// record it is due again.
    ///
    /// # Errors
    /// If the record cannot be made durable; the store is then poisoned.
    pub(crate) fn settle_damage(&self) -> Result<()> {
        if !self.reports.take_news() {
            return Ok(());
        }
        let version = Arc::clone(&self.superversion.load().version);
        let mut items = Vec::new();
        let mut found = Vec::new();
        for table in version.tables() {
            let number = table.meta().number;
            for (offset, detail) in self.reports.unsettled(number) {
                if table.check_open().is_ok() {
                    let extent = extent(table, offset);
                    if extent.block.is_some_and(|(handle, kind)| table.read(handle, kind).is_ok()) {
                        self.reports.withdraw((number, offset));
                        continue;
                    }
                    let (smallest, largest) = (extent.smallest, extent.largest);
                    items.push(Item::Damaged { number, smallest, largest });
                }
                let file = table.path().to_path_buf();
                found.push(((number, offset), Event::Damaged { file, offset, detail }));
            }
        }
        drop(version);
        let recorded = self.record_damage(items);
        if matches!(recorded, Err(Error::NoSpace { .. })) {
            self.reports.put_off();
            return Ok(());
        }
        for (place, event) in found {
            self.reports.settle(place);
            self.options.events.emit(|| event);
        }
        recorded
    }

    fn record_damage(&self, mut items: Vec<Item>) -> Result<()> {
        let mut catalog = self.catalog.lock();
        // A table may have gone meanwhile.
        items.retain(|item| {
            matches!(item, Item::Damaged { number, .. } if catalog.state().tables.contains_key(number))
        });
        if items.is_empty() || self.state.lock().check_writable().is_err() {
            return Ok(());
        }
        let committed = catalog.commit(&items);
        drop(catalog);
        self.tell_of_manifest();
        committed.inspect_err(|e| self.edit_failed(e))
    }

    /// Whether a table is to be left out of compactions.
    pub(crate) fn is_quarantined(&self, table: FileNumber) -> bool {
        self.reports.is_damaged(table)
    }

    /// Reports what a check of a whole table found.
    pub(crate) fn report_table(&self, table: &Table, error: &Error) {
        let Error::Corruption { detail, .. } = error else { return };
        // If all blocks are whole and it is so again, it is what the whole table depends on.
        if locate_damage(table) == 0 && verify_table(table).is_err() {
            self.reports.report((table.meta().number, table.meta().len), detail);
        }
    }

    /// All damage that is known.
    pub(crate) fn damage(&self) -> Result<Vec<Damage>> {
        self.settle_damage()?;
        let version = Arc::clone(&self.superversion.load().version);
        let recorded = self.catalog.lock().state().damaged.clone();
        let mut all = Vec::new();
        for table in version.tables() {
            let meta = table.meta();
            let detail = self.reports.of(meta.number).unwrap_or_else(|| FOUND_EARLIER.to_owned());
            let damage = |(smallest, largest): (Vec<u8>, Vec<u8>)| Damage {
                partition: PartitionId(meta.partition),
                smallest,
                largest,
                file: table.path().to_path_buf(),
                detail: detail.clone(),
            };
            if table.check_open().is_err() {
                all.push(damage((meta.smallest.user_key.clone(), meta.largest.user_key.clone())));
                continue;
            }
            let ranges = recorded.get(&meta.number).into_iter().flatten();
            all.extend(ranges.cloned().map(&damage));
            // There was no room to record these.
            let put_off = self.reports.unsettled(meta.number).into_iter();
            let extents = put_off.map(|(offset, _)| extent(table, offset));
            all.extend(extents.map(|found| damage((found.smallest, found.largest))));
        }
        Ok(all)
    }
}

/// Opens the tables of a store, damaged ones as what they are.
///
/// # Errors
/// `Io` of a file that is there; `UnknownVersion`; with `refuse_damaged` any damage. `Corruption` of the
/// manifest if a table is missing and there are others that it does not list: then it is the manifest that
/// is wrong, cut off or an old copy, and its tables are not the store's.
pub(crate) fn open_tables(
    files: &Arc<FilePool>,
    dir: &Path,
    options: &Options,
    manifest: &Path,
    state: &ManifestState,
    strangers: &[PathBuf],
    shared: (&Arc<BlockCache>, &Graveyard, &Arc<DamageReports>),
) -> Result<Vec<Arc<Table>>> {
    let (cache, graveyard, reports) = shared;
    let mut tables = Vec::new();
    for (number, placed) in &state.tables {
        let path = table_path(dir, *number);
        let (cache, graveyard) = (Arc::clone(cache), Arc::clone(graveyard));
        let meta = placed.meta.clone();
        let opened = files.open_read(&path).context("open", &path).and_then(|file| {
            Table::open(file, &path, meta, Arc::clone(&cache), Arc::clone(&graveyard))
        });
        let table = match opened {
            Ok(table) => table,
            Err(reason) => {
                let missing = is_missing(&reason);
                if let (true, Some(stranger)) = (missing, strangers.first()) {
                    let detail = format!(
                        "table {number} is missing, but there is {}, which the manifest does not list: \
                         the manifest is cut off or an old copy",
                        stranger.display()
                    );
                    return Err(Error::corruption(manifest, 0, detail));
                }
                let damaged = missing || matches!(reason, Error::Corruption { .. });
                if options.refuse_damaged || !damaged {
                    return Err(reason);
                }
                Table::broken(&path, placed.meta.clone(), &reason, cache, graveyard)
            }
        };
        tables.push(Arc::new(table.reporting_to(Arc::clone(reports))));
    }
    for number in state.damaged.keys() {
        if options.refuse_damaged {
            return Err(Error::corruption(&table_path(dir, *number), 0, FOUND_EARLIER));
        }
        reports.settled_earlier(*number, FOUND_EARLIER);
    }
    Ok(tables)
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
}
