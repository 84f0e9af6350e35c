//! Replacing what a store has of a range of keys by what another copy has of it.
//!
//! One edit of the manifest removes the range from every level and adds the other copy's tables at the
//! deepest level, where nothing of the range is left to overlap them. Tables that reach over an end of the
//! range are rewritten, in two pieces if over both; blocks that are wholly in the range are not even read,
//! so damage in them does no harm. Before the edit the store has the old range, after it the new one.
//!
//! Sequence numbers are the caller's: both copies must be at the same one, or the range would hold writes
//! that the rest of the store does not have yet, or lack some that it has.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, IoContext, Result};
use crate::events::Event;
use crate::manifest::current::table_path;
use crate::manifest::edit::{Item, PlacedTable};
use crate::options::{Executor, LEVELS};
use crate::sstable::TableMeta;
use crate::sstable::builder::TableBuilder;
use crate::sstable::pieces::blocks_outside;
use crate::sstable::reader::Table;
use crate::store::Store;
use crate::store::adopt::StagedSnapshot;
use crate::store::checkpoint::link_or_copy;
use crate::store::inner::Inner;
use crate::store::snapshot::ExportedRange;
use crate::types::{FileNumber, KeyRange};

/// What [`Store::excise_and_ingest`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Replaced {
    /// Tables removed, those included of which pieces were kept.
    pub tables_removed: usize,
    /// Pieces of tables kept, as tables of their own.
    pub pieces: usize,
    /// Tables taken over.
    pub tables_added: usize,
}

/// Ends the exclusion of writers and jobs.
struct Excluded<'a>(&'a Inner);

impl Drop for Excluded<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.run_open = false;
        state.jobs_stopped = false;
        state.flushing = false;
        drop(state);
        self.0.wake_waiters();
        self.0.ring_flush();
        self.0.ring_compaction();
    }
}

impl Store {
    /// Replaces everything this store has of a range of keys by what another copy of it
    /// [exported](Store::export_range). What is damaged of the range is whole again. Nothing may be
    /// written meanwhile: a run or batch begun then is refused as if a run were open. Readers wait for nothing.
    ///
    /// # Errors
    /// `InvalidArgument`, with nothing changed: the copy is not of a range or of other partitions; this store
    /// is not at the sequence number of the export; the floor of the export is above this store's, or a view
    /// below it is in use; a run is open; damage that reaches beyond the range. `Stalled` if what is in
    /// memory could not be flushed; `Corruption`, `Io`; `Poisoned`, `Closed`.
    pub fn excise_and_ingest(&self, staged: &StagedSnapshot) -> Result<Replaced> {
        let inner = self.inner();
        let Some(exported) = &staged.description.exported else {
            let detail = "the copy is of a whole store: adopt it".to_owned();
            return Err(Error::InvalidArgument(detail));
        };
        if let Some(mismatch) =
            staged.description.state.partition_mismatch(&inner.options.partitions)
        {
            return Err(Error::InvalidArgument(format!("the copy does not fit: {mismatch}")));
        }
        self.check_partition(exported.range.partition)?;
        let since = inner.stopwatch();
        // No run from here on, so nothing is written; then everything in tables, then no job.
        let target = {
            let mut state = inner.state.lock();
            state.check_writable()?;
            if state.run_open {
                return Err(Error::InvalidArgument("a run is open: publish it first".to_owned()));
            }
            inner.freeze(&mut state);
            state.run_open = true;
            inner.visible.load().position.index
        };
        let flushed = self.flush_and_stop_jobs(target);
        if flushed.is_err() {
            let mut state = inner.state.lock();
            state.run_open = false;
            state.jobs_stopped = false;
            drop(state);
            inner.wake_waiters();
            inner.ring_compaction();
        }
        flushed?;
        let excluded = Excluded(inner);
        inner.check_ingest(staged, exported)?;
        let replaced = inner.replace_range(staged, &exported.range)?;
        drop(excluded);
        inner.options.events.emit(|| Event::RangeReplaced {
            partition: exported.range.partition,
            replaced,
            took: since.map(|since| since.elapsed()),
        });
        Ok(replaced)
    }

    fn flush_and_stop_jobs(&self, target: u64) -> Result<()> {
        let inner = self.inner();
        if inner.executor == Executor::Inline {
            inner.work_inline()?;
        }
        inner.ring_flush();
        let since = Instant::now();
        let deadline = since + inner.options.stall_max;
        let mut state = inner.state.lock();
        state.jobs_stopped = true;
        // Those that wait to keep to their limit need not.
        inner.changed.notify_all();
        while !state.frozen.is_empty() || state.flushing || state.compactions > 0 {
            state.check_writable()?;
            let in_vain = inner.executor == Executor::Inline;
            if in_vain || inner.changed.wait_until(&mut state, deadline).timed_out() {
                return Err(state.stalled(Some(since)));
            }
        }
        assert!(
            state.durable.index >= target,
            "flushed to {} where {target} was published",
            state.durable.index
        );
        state.flushing = true;
        Ok(())
    }
}

impl Inner {
    fn check_ingest(&self, staged: &StagedSnapshot, exported: &ExportedRange) -> Result<()> {
        let slot = exported.range.partition.slot();
        let here = self.visible.load().sequence(slot);
        let refuse = |detail: String| Err(Error::InvalidArgument(detail));
        if here != exported.sequence {
            return refuse(format!(
                "the export is of sequence number {}, this store is at {here}",
                exported.sequence
            ));
        }
        let floor = staged.description.state.floors.get(slot).copied().unwrap_or(0);
        let readable = self.retention.lock().bound(slot, here);
        if floor > readable {
            return refuse(format!(
                "the export has no history below {floor}, but {readable} can be read here"
            ));
        }
        Ok(())
    }

    fn replace_range(&self, staged: &StagedSnapshot, range: &KeyRange) -> Result<Replaced> {
        let version = Arc::clone(&self.state.lock().version);
        let Some(levels) = version.partitions.get(range.partition.slot()) else {
            return Ok(Replaced::default());
        };
        let mut made = Vec::new();
        let done = self.prepare(staged, range, levels, &mut made).and_then(|(items, opened)| {
            let removed = items.iter().filter(|i| matches!(i, Item::DeleteTable { .. })).count();
            let added = staged.description.state.tables.len();
            let pieces = opened.len() - added;
            self.install(|_| items, &opened, |_| {})?;
            Ok(Replaced { tables_removed: removed, pieces, tables_added: added })
        });
        if done.is_err() && self.state.lock().poison.is_none() {
            self.remove_outputs(&made);
        }
        self.bury();
        done
    }

    /// Writes and links all new tables; returns the edit and the tables it adds.
    fn prepare(
        &self,
        staged: &StagedSnapshot,
        range: &KeyRange,
        levels: &crate::manifest::version::Levels,
        made: &mut Vec<PathBuf>,
    ) -> Result<(Vec<Item>, Vec<Arc<Table>>)> {
        let partition = range.partition.0;
        let mut items = Vec::new();
        let mut added = Vec::new();
        let runs = levels.runs.iter().map(|run| (0, run.epoch, &run.tables));
        let lower = levels.levels.iter().enumerate().map(|(level, tables)| (level, 0, tables));
        for (level, l0_epoch, tables) in runs.chain(lower) {
            for table in tables.iter() {
                let meta = table.meta();
                let (smallest, largest) = (&meta.smallest.user_key, &meta.largest.user_key);
                if !range.overlaps(smallest, largest) {
                    continue;
                }
                items.push(Item::DeleteTable { partition, level, number: meta.number });
                if !range.covers(smallest, largest) {
                    let kept = self.keep_outside(table, range, level, made)?;
                    added.extend(kept.into_iter().map(|meta| PlacedTable {
                        level,
                        l0_epoch,
                        meta,
                    }));
                }
            }
        }
        for placed in staged.description.state.tables.values() {
            let (number, path) = self.new_number(made)?;
            link_or_copy(&*self.vfs, &staged.received(placed.meta.uid), &path, &placed.meta)?;
            let meta = TableMeta { number, ..placed.meta.clone() };
            added.push(PlacedTable { level: LEVELS - 1, l0_epoch: 0, meta });
        }
        self.sync_table_dir()?;
        let opened = added.iter().map(|placed| self.open_table(placed.meta.clone()));
        let opened = opened.collect::<Result<Vec<_>>>()?;
        items.extend(added.into_iter().map(|placed| Item::AddTable(Box::new(placed))));
        Ok((items, opened))
    }

    /// What a table has below and above a range, as tables of their own: between them there is room.
    fn keep_outside(
        &self,
        table: &Table,
        range: &KeyRange,
        level: usize,
        made: &mut Vec<PathBuf>,
    ) -> Result<Vec<TableMeta>> {
        let mut kept = Vec::new();
        let mut open: Option<(bool, TableBuilder)> = None;
        blocks_outside(table, range, &mut |key, sequence, kind, value| {
            let above = range.is_below(key);
            if let Some((_, below)) = open.take_if(|(side, _)| *side != above) {
                kept.push(below.finish()?);
            }
            let builder = match &mut open {
                Some((_, builder)) => builder,
                none => {
                    let (number, uid, path) = self.new_output(made)?;
                    let file = self.vfs.create_new(&path).context("create", &path)?;
                    let (partition, layout) = (table.meta().partition, self.layout(level));
                    let builder = TableBuilder::new(file, path, number, uid, partition, layout);
                    &mut none.insert((above, builder)).1
                }
            };
            builder.add(key, sequence, kind, value)
        })?;
        if let Some((_, last)) = open {
            kept.push(last.finish()?);
        }
        Ok(kept)
    }

    fn new_output(&self, made: &mut Vec<PathBuf>) -> Result<(FileNumber, u128, PathBuf)> {
        let mut catalog = self.catalog.lock();
        let allocated = catalog.allocate();
        drop(catalog);
        let (number, uid) = allocated.inspect_err(|e| self.edit_failed(e))?;
        let path = table_path(&self.dir, number);
        made.push(path.clone());
        Ok((number, uid, path))
    }

    fn new_number(&self, made: &mut Vec<PathBuf>) -> Result<(FileNumber, PathBuf)> {
        let (number, _uid, path) = self.new_output(made)?;
        Ok((number, path))
    }
}
