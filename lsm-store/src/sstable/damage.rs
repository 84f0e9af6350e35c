//! Damage met while tables are read: where it is, and which keys it takes.
//!
//! A table reports every block that is not what was written there, whoever reads it. What becomes of the
//! reports is the store's business; here they are only kept, once each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::error::Result;
use crate::sstable::block_iter::BlockIter;
use crate::sstable::format::{BlockKind, Handle};
use crate::sstable::reader::Table;
use crate::types::FileNumber;

/// Where in which table.
pub(crate) type Place = (FileNumber, u64);

/// Reports of damage. Bounded by the number of blocks; a leaf among the locks.
#[derive(Debug, Default)]
pub(crate) struct DamageReports {
    known: Mutex<BTreeMap<Place, Report>>,
    /// Whether there may be something in `known` that is not settled.
    news: AtomicBool,
    bell: OnceLock<Sender<()>>,
}

#[derive(Debug)]
struct Report {
    /// What was wrong.
    detail: String,
    /// Whether it was read again and recorded.
    settled: bool,
}

impl DamageReports {
    /// Rings `bell` from now on when there is news.
    pub(crate) fn ring(&self, bell: Sender<()>) {
        let _only_once = self.bell.set(bell).is_err();
    }

    pub(crate) fn report(&self, place: Place, detail: &str) {
        let mut known = self.known.lock();
        if known.contains_key(&place) {
            return;
        }
        known.insert(place, Report { detail: detail.to_owned(), settled: false });
        drop(known);
        self.news.store(true, Ordering::Release);
        if let Some(bell) = self.bell.get() {
            // A bell that rings already is enough.
            let _rung = bell.try_send(()).is_ok();
        }
    }

    /// Takes over what is recorded of a table, wherever in it that was.
    pub(crate) fn settled_earlier(&self, table: FileNumber, detail: &str) {
        let report = Report { detail: detail.to_owned(), settled: true };
        self.known.lock().insert((table, u64::MAX), report);
    }

    /// Whether anything was reported since the last time; asks only once.
    pub(crate) fn take_news(&self) -> bool {
        self.news.swap(false, Ordering::AcqRel)
    }

    /// What was asked for could not be recorded: the next who asks has it again.
    pub(crate) fn put_off(&self) {
        self.news.store(true, Ordering::Release);
    }

    /// What was wrong with a table, if anything.
    pub(crate) fn of(&self, table: FileNumber) -> Option<String> {
        let known = self.known.lock();
        let mut places = known.range((table, 0)..=(table, u64::MAX));
        places.next().map(|(_, report)| report.detail.clone())
    }

    /// What was reported of a table and is not settled: offset and detail.
    pub(crate) fn unsettled(&self, table: FileNumber) -> Vec<(u64, String)> {
        let known = self.known.lock();
        let places = known.range((table, 0)..=(table, u64::MAX)).filter(|(_, r)| !r.settled);
        places.map(|((_, offset), report)| (*offset, report.detail.clone())).collect()
    }

    pub(crate) fn is_damaged(&self, table: FileNumber) -> bool {
        self.known.lock().range((table, 0)..=(table, u64::MAX)).next().is_some()
    }

    /// All tables that something was reported of.
    pub(crate) fn tables(&self) -> BTreeSet<FileNumber> {
        self.known.lock().keys().map(|(table, _)| *table).collect()
    }

    /// The place was read again, and is recorded as damaged.
    pub(crate) fn settle(&self, place: Place) {
        if let Some(report) = self.known.lock().get_mut(&place) {
            report.settled = true;
        }
    }

    /// Takes a report back: the place was read again, and was whole.
    pub(crate) fn withdraw(&self, place: Place) {
        self.known.lock().remove(&place);
    }
}

/// A block of a table and the user keys that depend on it, both bounds included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    /// None: not a block, but what the whole table depends on.
    pub(crate) block: Option<(Handle, BlockKind)>,
    pub(crate) smallest: Vec<u8>,
    pub(crate) largest: Vec<u8>,
}

/// What depends on the block at `offset`. Never too little: what cannot be told is the whole table.
pub(crate) fn extent(table: &Table, offset: u64) -> Extent {
    let meta = table.meta();
    let mut smallest = &meta.smallest.user_key;
    for top in table.top() {
        let part = |block| Extent {
            block: Some(block),
            smallest: smallest.clone(),
            largest: top.last_key.clone(),
        };
        if offset == top.index.offset {
            return part((top.index, BlockKind::Index));
        }
        if offset == top.filter.offset {
            return part((top.filter, BlockKind::Filter));
        }
        if let Ok(Some(found)) = data_extent(table, top.index, smallest, offset) {
            let largest = found.largest.min(top.last_key.clone());
            return Extent { largest, ..found };
        }
        smallest = &top.last_key;
    }
    Extent {
        block: None,
        smallest: meta.smallest.user_key.clone(),
        largest: meta.largest.user_key.clone(),
    }
}

/// The data block at `offset`, if it is one of this index partition.
fn data_extent(table: &Table, index: Handle, first: &[u8], offset: u64) -> Result<Option<Extent>> {
    let mut index = BlockIter::new(table.block(index, BlockKind::Index)?);
    let mut smallest = first.to_vec();
    index.seek_to_first()?;
    while index.valid() {
        if index.handle().offset == offset {
            let block = Some((index.handle(), BlockKind::Data));
            return Ok(Some(Extent { block, smallest, largest: index.key().to_vec() }));
        }
        smallest = index.key().to_vec();
        index.next()?;
    }
    Ok(None)
}
