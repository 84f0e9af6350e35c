//! A version: the open tables of every partition, level by level. Immutable; a new one replaces it.
//!
//! Invariants, checked when a version is built:
//! 1. Below level 0 the tables of a level are in order and no two share a user key.
//! 2. The runs of level 0 are ordered by their epoch, newest first, and within a run as in 1.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::iter::level::{LevelIter, Tables};
use crate::iter::merge::Source;
use crate::iter::reading::Reading;
use crate::manifest::state::ManifestState;
use crate::options::LEVELS;
use crate::sstable::key_index::KeyIndex;
use crate::sstable::reader::{FoundEntry, LastBlock, Table};
use crate::types::FileNumber;

/// A sorted run of level 0: the tables of one flush. (Not to be confused with the run of batches that a
/// writer publishes.)
#[derive(Clone, Debug)]
pub(crate) struct SortedRun {
    pub(crate) epoch: u64,
    pub(crate) tables: Tables,
    bounds: Bounds,
}

impl SortedRun {
    pub(crate) fn new(epoch: u64, tables: Tables) -> Self {
        Self { epoch, tables, bounds: Bounds::default() }
    }
}

/// The user keys that the tables of a run or level begin and end with, for searches that touch no table
/// but the one they find.
#[derive(Clone, Debug, Default)]
struct Bounds(OnceLock<Arc<(KeyIndex, KeyIndex)>>);

impl Bounds {
    /// The table of an ordered, disjoint list that may hold a user key. The list is always the same: its
    /// bounds are collected by the first search, not by every edit that makes another list.
    fn covering<'t>(&self, tables: &'t [Arc<Table>], key: &[u8]) -> Option<&'t Arc<Table>> {
        if tables.is_empty() {
            return None;
        }
        let (smallest, largest) = &**self.0.get_or_init(|| {
            let smallest = tables.iter().map(|t| t.meta().smallest.user_key.as_slice());
            let largest = tables.iter().map(|t| t.meta().largest.user_key.as_slice());
            Arc::new((KeyIndex::new(smallest), KeyIndex::new(largest)))
        });
        let at = largest.first_at_or_after(key, |_| false);
        tables.get(at).filter(|_| smallest.compare(at, key).is_le())
    }
}

/// The tables of one partition.
#[derive(Clone, Debug)]
pub(crate) struct Levels {
    /// Level 0, newest first.
    pub(crate) runs: Vec<SortedRun>,
    /// The levels; the first is always empty, since level 0 is in `runs`.
    pub(crate) levels: Vec<Tables>,
    /// Of `levels`.
    bounds: Vec<Bounds>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) partitions: Vec<Levels>,
}

impl Version {
    /// The version that the manifest describes, of tables that are open.
    ///
    /// # Errors
    /// `Corruption` of the manifest if a level overlaps or a table is not there.
    pub(crate) fn build(
        state: &ManifestState,
        open: &BTreeMap<FileNumber, Arc<Table>>,
        manifest: &Path,
    ) -> Result<Self> {
        let corrupt = |detail: String| Error::corruption(manifest, 0, detail);
        let mut partitions = Vec::new();
        for partition in 0..state.partitions.len() {
            let mut runs: BTreeMap<u64, Vec<Arc<Table>>> = BTreeMap::new();
            let mut levels: Vec<Vec<Arc<Table>>> = vec![Vec::new(); LEVELS];
            for placed in
                state.tables.values().filter(|t| usize::from(t.meta.partition) == partition)
            {
                let number = placed.meta.number;
                let table = open
                    .get(&number)
                    .ok_or_else(|| corrupt(format!("table {number} is not open")))?;
                if placed.level == 0 {
                    runs.entry(placed.l0_epoch).or_default().push(Arc::clone(table));
                } else if let Some(level) = levels.get_mut(placed.level) {
                    level.push(Arc::clone(table));
                }
            }
            let runs = runs.into_iter().rev().map(|(epoch, tables)| {
                let tables =
                    in_order(tables).map_err(|d| corrupt(format!("level 0 run {epoch}: {d}")))?;
                Ok(SortedRun::new(epoch, tables))
            });
            let levels = levels.into_iter().enumerate().map(|(level, tables)| {
                in_order(tables)
                    .map_err(|d| corrupt(format!("partition {partition} level {level}: {d}")))
            });
            let runs = runs.collect::<Result<_>>()?;
            let levels = levels.collect::<Result<Vec<Tables>>>()?;
            let bounds = levels.iter().map(|_| Bounds::default()).collect();
            partitions.push(Levels { runs, levels, bounds });
        }
        Ok(Self { partitions })
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.partitions.iter().flat_map(Levels::tables)
    }
}

/// Sorts tables and checks that none share a user key.
fn in_order(mut tables: Vec<Arc<Table>>) -> std::result::Result<Tables, String> {
    tables.sort_by(|a, b| a.meta().smallest.user_key.cmp(&b.meta().smallest.user_key));
    for (a, b) in tables.iter().zip(tables.iter().skip(1)) {
        if a.meta().largest.user_key >= b.meta().smallest.user_key {
            return Err(format!("tables {} and {} overlap", a.meta().number, b.meta().number));
        }
    }
    Ok(Tables::from(tables))
}

/// The table of an ordered, disjoint list that may hold a user key.
pub(crate) fn covering<'a>(tables: &'a [Arc<Table>], key: &[u8]) -> Option<&'a Arc<Table>> {
    let at = tables.partition_point(|t| t.meta().largest.user_key.as_slice() < key);
    tables.get(at).filter(|t| t.covers(key))
}

impl Levels {
    /// Replaces the tables of a level, if there is such a level.
    pub(crate) fn replace(&mut self, level: usize, tables: Tables) {
        if let (Some(old), Some(bounds)) = (self.levels.get_mut(level), self.bounds.get_mut(level))
        {
            *old = tables;
            *bounds = Bounds::default();
        }
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        let runs = self.runs.iter().flat_map(|r| r.tables.iter());
        runs.chain(self.levels.iter().flat_map(|l| l.iter()))
    }

    /// The newest version of `key` at or below `sequence`: newer runs and upper levels first, since what
    /// they hold of a key is newer than what is below.
    pub(crate) fn get(&self, key: &[u8], hash: u64, sequence: u64) -> Result<Option<FoundEntry>> {
        for (tables, bounds) in self.lists() {
            if let Some(table) = bounds.covering(tables, key)
                && let Some(found) = table.get(key, hash, sequence)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// As [`Levels::get`], for keys that come in order. `last` is empty at first and remembers a block per
    /// run and level.
    pub(crate) fn get_next(
        &self,
        key: &[u8],
        hash: u64,
        sequence: u64,
        last: &mut Vec<LastBlock>,
    ) -> Result<Option<FoundEntry>> {
        last.resize_with(self.runs.len() + self.levels.len(), LastBlock::default);
        for ((tables, bounds), last) in self.lists().zip(last) {
            if let Some(table) = bounds.covering(tables, key)
                && let Some(found) = table.get_next(key, hash, sequence, last)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// All runs and levels, from the newest.
    fn lists(&self) -> impl Iterator<Item = (&Tables, &Bounds)> {
        let runs = self.runs.iter().map(|run| (&run.tables, &run.bounds));
        runs.chain(self.levels.iter().zip(&self.bounds))
    }

    /// One source per run and level that has tables that are wanted.
    pub(crate) fn sources(&self, reading: Reading, out: &mut Vec<Source>) {
        for tables in self.runs.iter().map(|r| &r.tables).chain(&self.levels) {
            let wanted = |table: &Arc<Table>| table.meta().max_sequence >= reading.since;
            let tables = match tables.iter().all(wanted) {
                true => Arc::clone(tables),
                false => tables.iter().filter(|t| wanted(t)).cloned().collect(),
            };
            if !tables.is_empty() {
                out.push(Source::Level(Box::new(LevelIter::new(tables, reading))));
            }
        }
    }
}
