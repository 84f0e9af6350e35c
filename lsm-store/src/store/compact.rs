//! One compaction from its choice to its installation. The same code runs in threads, step by step on the
//! caller's thread ([`Executor::Inline`](crate::Executor::Inline)) and for [`Store::compact`].
//!
//! ```text
//! begin: choose, claim, freeze the bound ─► step: merge 64 KiB ─► … ─► install ─► end: give back the claim
//!                                                 └─ any error, close ─► remove outputs ─► end
//! ```
//!
//! A job is chosen and its claim taken under one lock (`claims`), and given back only after it was
//! installed: whoever chooses sees either its inputs and the claim, or its outputs.
//!
//! A large job that somebody waits for is merged by several threads, each a part of its keys; it is still one job,
//! installed in one step.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use crate::compaction::claims::{ClaimId, Claims};
use crate::compaction::cut::Cutter;
use crate::compaction::manual::{self, KeyRange, Manual};
use crate::compaction::merge::{Merge, MergeSpec, Merged, Older, Tally};
use crate::compaction::picker::{Method, Pick, PickOptions, debt, depth, pick};
use crate::compaction::shape::{RunInfo, Shape, TableInfo};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::iter::bounds::Bounds;
use crate::iter::level::{LevelIter, Tables};
use crate::iter::merge::{MergeIter, Source};
use crate::iter::reading::Reading;
use crate::manifest::edit::{Item, PlacedTable};
use crate::manifest::version::{Levels, SortedRun, Version};
use crate::options::{Compression, Executor, LEVELS};
use crate::sstable::reader::Table;
use crate::store::Store;
use crate::store::inner::Inner;
use crate::store::jobs::{COMPRESSED_FROM, STEP_BYTES};
use crate::store::metrics::LevelWork;
use crate::store::parts::{Part, part_ends};
use crate::types::{FileNumber, PartitionId};

/// A wait for the end of a job looks again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A table is dense with deletes if one of so many of its blocks is.
const DENSE_DIVISOR: u64 = 20;

/// A compaction under way.
#[derive(Debug)]
pub(crate) struct Compaction {
    claim: ClaimId,
    partition: u8,
    pick: Pick,
    inputs: Vec<Arc<Table>>,
    /// In order of their keys; none if the inputs move as they are.
    parts: Vec<Part>,
    /// When it was begun; nothing without a clock.
    since: Option<Instant>,
    /// How long it waited for bytes it read or wrote to be paid for.
    throttled: Duration,
}

impl Compaction {
    #[cfg(test)]
    pub(crate) const fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Bytes of files read and written so far and not charged for yet; from now on they are.
    pub(crate) fn charge(&mut self) -> u64 {
        self.parts.iter_mut().map(|part| part.charge(&self.inputs)).sum()
    }
}

impl Inner {
    /// Does one compaction, if one is due. Returns whether one was.
    ///
    /// # Errors
    /// The job failed and left no trace; it is due again, with fresh files. `Closed` if the store closed
    /// meanwhile.
    pub(crate) fn compact_once(&self) -> Result<bool> {
        let Some(job) = self.begin_compaction() else {
            self.no_compaction_is_due();
            return Ok(false);
        };
        // There may be something for another thread, too.
        self.ring_compaction();
        self.drive(job).map(|()| true)
    }

    /// Chooses what is due and claims it.
    pub(crate) fn begin_compaction(&self) -> Option<Compaction> {
        let options = self.pick_options();
        let mut claims = self.claims.lock();
        let version = self.enter().ok().flatten()?;
        let begun = (0_u8..).zip(&version.partitions).find_map(|(id, levels)| {
            let shape = self.shape(id, levels);
            let pick = pick(&shape, &options, id, &claims)?;
            if pick.method != Method::Move && !self.has_room_for(pick.bytes) {
                return None;
            }
            let claim = claims.take(pick.claim(id));
            Some(self.compaction(claim, id, levels, pick, 1))
        });
        if begun.is_none() {
            self.leave();
        }
        begun
    }

    /// Counts a compaction as under way and gives the version to choose it from, unless none may begin.
    ///
    /// # Errors
    /// `Poisoned`, `Closed`.
    fn enter(&self) -> Result<Option<Arc<Version>>> {
        let mut state = self.state.lock();
        state.check_writable()?;
        if state.jobs_stopped {
            return Ok(None);
        }
        state.compactions += 1;
        Ok(Some(Arc::clone(&state.version)))
    }

    fn leave(&self) {
        self.state.lock().compactions -= 1;
        self.changed.notify_all();
    }

    /// Goes on with a job to its end.
    pub(crate) fn drive(&self, mut job: Compaction) -> Result<()> {
        match self.merge_side_by_side(&mut job.parts, &job.inputs) {
            Ok(throttled) => job.throttled += throttled,
            Err(e) => return self.end_compaction(job, Err(e)),
        }
        let result = loop {
            match self.step(&mut job, STEP_BYTES) {
                Ok(false) => {
                    let bytes = job.charge();
                    job.throttled += self.throttle_compaction(bytes);
                }
                Ok(true) => break Ok(()),
                Err(e) => break Err(e),
            }
        };
        self.end_compaction(job, result)
    }

    /// Goes on with a job for at least `budget` bytes of entries. Returns whether it is installed.
    ///
    /// # Errors
    /// The job is over; [`end_compaction`](Self::end_compaction) removes its outputs. `Closed` if the
    /// store closes.
    pub(crate) fn step(&self, job: &mut Compaction, budget: u64) -> Result<bool> {
        self.state.lock().check_writable()?;
        if let Some(part) = job.parts.iter_mut().find(|part| part.merged.is_none()) {
            self.step_part(part, budget)?;
        }
        if job.parts.iter().any(|part| part.merged.is_none()) {
            return Ok(false);
        }
        let merged = job.parts.iter_mut().filter_map(|part| part.merged.take());
        match merged.reduce(|mut all, next| {
            all.append(next);
            all
        }) {
            None => self.install_move(job)?,
            Some(all) => self.install_merged(job, all)?,
        }
        Ok(true)
    }

    /// Gives back what a job held, removes its outputs if it failed, and says so.
    ///
    /// # Errors
    /// That of the job.
    pub(crate) fn end_compaction(&self, job: Compaction, result: Result<()>) -> Result<()> {
        // Both hold on to the inputs, whose files are to go.
        let created = job.parts.into_iter().flat_map(|part| part.created).collect::<Vec<_>>();
        drop(job.inputs);
        if result.is_err() {
            self.abandon(&created);
        }
        self.claims.lock().release(job.claim);
        self.leave();
        self.job_ended.notify_all();
        if let Err(e) = &result {
            self.record_failure(e, false);
        }
        self.bury();
        self.tell_end_of_delays();
        // What waited for this one may go now.
        self.ring_compaction();
        result
    }

    /// The shape of a partition for the picker.
    fn shape<'l>(&self, id: u8, levels: &'l Levels) -> Shape<'l> {
        let bound = self.bound(usize::from(id));
        let damaged = self.reports.tables();
        let infos = |tables: &'l Tables| -> Vec<TableInfo<'l>> {
            tables.iter().map(|table| table_info(table, bound, &damaged)).collect()
        };
        let run = |run: &'l SortedRun| RunInfo { epoch: run.epoch, tables: infos(&run.tables) };
        Shape {
            runs: levels.runs.iter().map(run).collect(),
            levels: levels.levels.iter().map(infos).collect(),
        }
    }

    /// What compactions would have to write until nothing is due.
    pub(crate) fn debt(&self) -> u64 {
        let version = Arc::clone(&self.state.lock().version);
        total_debt(&version, &self.pick_options())
    }

    pub(crate) fn pick_options(&self) -> PickOptions {
        PickOptions {
            l0_trigger: self.options.l0_trigger,
            level_ratio: self.options.level_ratio,
            base_level_bytes: self.options.base_level_bytes,
            table_bytes: self.options.table_bytes,
            compressed_from: match self.options.compression {
                Compression::None => LEVELS,
                Compression::Lz4 => COMPRESSED_FROM,
            },
        }
    }

    /// How many threads merge a job that somebody waits for: the one that waits and as many as may compact besides;
    /// none has less than a table to write.
    fn parts_of(&self, pick: &Pick) -> usize {
        if self.executor == Executor::Inline {
            return 1;
        }
        let tables = pick.bytes / self.options.table_bytes.max(1);
        usize::try_from(tables).unwrap_or(usize::MAX).clamp(1, self.options.compaction_threads + 1)
    }

    /// A job that is claimed, in as many parts as its keys allow up to `parts`.
    fn compaction(
        &self,
        claim: ClaimId,
        id: u8,
        levels: &Levels,
        pick: Pick,
        parts: usize,
    ) -> Compaction {
        let selected: Vec<(usize, Vec<Tables>)> =
            pick.inputs.iter().map(|(level, n)| (*level, select(levels, *level, n))).collect();
        let inputs: Vec<Arc<Table>> = selected
            .iter()
            .flat_map(|(_, runs)| runs.iter().flat_map(|run| run.iter().cloned()))
            .collect();
        assert_eq!(
            inputs.len(),
            pick.tables().count(),
            "tables of a compaction into level {} found in the version it was picked from",
            pick.output_level
        );
        let part = |after: Option<Vec<u8>>, last: Option<Vec<u8>>| {
            let runs = selected.iter().flat_map(|(_, runs)| runs.iter().cloned());
            let sources =
                runs.map(|run| Source::Level(Box::new(LevelIter::new(run, Reading::COMPACTION))));
            let mut input = MergeIter::new(sources.collect());
            let lower = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let upper = last.as_deref().map_or(Bound::Unbounded, Bound::Included);
            input.set_bounds(Bounds::shared(lower, upper));
            let merge = Merge::new(input, self.compaction_spec(id, levels, &pick));
            Part::new(merge.beginning_after(after))
        };
        let mut all = Vec::new();
        if pick.method != Method::Move {
            let ends = part_ends(&inputs, parts).into_iter().map(Some);
            let mut after = None;
            for last in ends.chain([None]) {
                all.push(part(after, last.clone()));
                after = last;
            }
        }
        let since = self.stopwatch();
        Compaction {
            claim,
            partition: id,
            pick,
            inputs,
            parts: all,
            since,
            throttled: Duration::ZERO,
        }
    }

    fn compaction_spec(&self, id: u8, levels: &Levels, pick: &Pick) -> MergeSpec {
        let below = |level: usize| levels.levels.get(level).cloned().unwrap_or_default();
        let table_bytes = self.options.table_bytes;
        let (cutter, runs) = match pick.method {
            Method::Level0 { .. } => {
                (Cutter::pieces(table_bytes, base(levels)), older_runs(levels, pick))
            }
            Method::Merge | Method::Move => {
                (Cutter::aligned(table_bytes, below(pick.output_level + 1)), Vec::new())
            }
        };
        let lower = levels.levels.iter().skip(pick.output_level + 1).cloned();
        let older = Older(runs.into_iter().chain(lower).filter(|t| !t.is_empty()).collect());
        self.merge_spec(id, pick.output_level, cutter, older)
    }

    fn deletions(job: &Compaction) -> Vec<Item> {
        let delete = |(level, tables): &(usize, Vec<FileNumber>)| {
            let (partition, level) = (job.partition, *level);
            let item =
                move |number: &FileNumber| Item::DeleteTable { partition, level, number: *number };
            tables.iter().map(item).collect::<Vec<_>>()
        };
        job.pick.inputs.iter().flat_map(delete).collect()
    }

    fn install_move(&self, job: &Compaction) -> Result<()> {
        let mut items = Self::deletions(job);
        items.extend(job.inputs.iter().map(|t| {
            let (level, meta) = (job.pick.output_level, t.meta().clone());
            Item::AddTable(Box::new(PlacedTable { level, l0_epoch: 0, meta }))
        }));
        self.install(|_| items, &[], |_| {})?;
        self.counters.trivial_moves.add(1);
        let moved = job.inputs.iter().map(|t| t.meta().len).sum();
        let work = LevelWork { moved, ..LevelWork::default() };
        self.counters.worked(job.partition, job.pick.output_level, work);
        self.tell(job, 0, 0, job.since.map(|since| since.elapsed()));
        Ok(())
    }

    fn install_merged(&self, job: &Compaction, merged: Merged) -> Result<()> {
        let mut expected = Tally::default();
        job.inputs.iter().for_each(|t| expected.add(t.meta().entries, t.meta().kv_digest));
        if merged.read != expected {
            let reason = format!(
                "compaction into level {} read {:?} where its tables hold {expected:?}",
                job.pick.output_level, merged.read
            );
            let imbalance = Error::Poisoned { reason };
            self.poison(&imbalance);
            return Err(imbalance);
        }
        let opened = self.publish_files(&merged.outputs)?;
        let read: u64 = job.inputs.iter().map(|t| t.meta().len).sum();
        let (tables, written) =
            (merged.outputs.len(), merged.outputs.iter().map(|m| m.len).sum::<u64>());
        let l0_epoch = match job.pick.method {
            Method::Level0 { epoch } => epoch,
            Method::Merge | Method::Move => 0,
        };
        let level = job.pick.output_level;
        let mut items = Self::deletions(job);
        let place = |meta| Item::AddTable(Box::new(PlacedTable { level, l0_epoch, meta }));
        items.extend(merged.outputs.into_iter().map(place));
        self.install(|_| items, &opened, |_| {})?;
        self.counters.shadowed_dropped.add(merged.shadowed);
        self.counters.deletes_dropped.add(merged.spent_deletes);
        self.counters.compactions.add(1);
        self.counters.compaction_bytes_read.add(read);
        self.counters.compaction_bytes_written.add(written);
        let work = LevelWork { read, written, ..LevelWork::default() };
        self.counters.worked(job.partition, level, work);
        let charged: u64 = job.parts.iter().map(|part| part.charged).sum();
        self.charge_compaction((read + written).saturating_sub(charged));
        let took = job.since.map(|since| since.elapsed());
        self.counters.compaction_micros.record_time(took);
        // What level 0 is drained with is the speed of the work: its limit gives way.
        let worked = took.map(|took| took.saturating_sub(job.throttled));
        if let (Some(worked), Some((0, numbers))) = (worked, job.pick.inputs.first())
            && level > 0
        {
            let drained =
                job.inputs.iter().map(|t| t.meta()).filter(|m| numbers.contains(&m.number));
            self.backlog.level0_drained(drained.map(|m| m.len).sum(), worked);
        }
        self.tell(job, tables, written, took);
        Ok(())
    }

    /// Tells the listener of a job that is installed.
    fn tell(&self, job: &Compaction, tables_out: usize, bytes_out: u64, took: Option<Duration>) {
        let from = job.pick.inputs.iter().map(|(level, _)| *level).min();
        self.options.events.emit(|| Event::Compacted {
            partition: PartitionId(job.partition),
            from: from.unwrap_or(job.pick.output_level),
            to: job.pick.output_level,
            tables_in: job.inputs.len(),
            bytes_in: job.inputs.iter().map(|t| t.meta().len).sum(),
            tables_out,
            bytes_out,
            took,
        });
    }

    /// Chooses the next job of a manual compaction and claims it; waits for a job that is in the way.
    pub(crate) fn begin_manual(&self, id: u8, range: KeyRange<'_>) -> Result<Option<Compaction>> {
        let options = self.pick_options();
        let mut claims = self.claims.lock();
        loop {
            let Some(version) = self.enter()? else {
                self.wait_for_a_job(&mut claims);
                continue;
            };
            let next = version.partitions.get(usize::from(id)).map_or(Manual::Done, |levels| {
                manual::next(&self.shape(id, levels), &options, id, &claims, range)
            });
            let blocked = match (next, version.partitions.get(usize::from(id))) {
                (Manual::Job(pick), Some(levels)) => {
                    if pick.method == Method::Move || self.has_room_for(pick.bytes) {
                        let claim = claims.take(pick.claim(id));
                        let parts = self.parts_of(&pick);
                        return Ok(Some(self.compaction(claim, id, levels, pick, parts)));
                    }
                    let free = self.space.free().unwrap_or_default();
                    Err(Error::NoSpace { free, needed: pick.bytes })
                }
                // Not by a job, then.
                (Manual::Blocked, _) if claims.len() == 0 => {
                    let damaged = version.tables().find(|t| self.is_quarantined(t.meta().number));
                    let path = damaged.map_or(&*self.dir, |table| table.path());
                    let detail = "a damaged table is in the way of the compaction";
                    Err(Error::corruption(path, 0, detail))
                }
                (Manual::Blocked, _) => Ok(()),
                (Manual::Done | Manual::Job(_), _) => {
                    self.leave();
                    return Ok(None);
                }
            };
            self.leave();
            blocked?;
            if self.executor == Executor::Inline {
                drop(claims);
                self.work_inline()?;
                claims = self.claims.lock();
            } else {
                self.wait_for_a_job(&mut claims);
            }
        }
    }

    /// The end of every job is told; the time limit only bounds what a mistake could cost.
    fn wait_for_a_job(&self, claims: &mut MutexGuard<'_, Claims>) {
        let _woken = self.job_ended.wait_for(claims, LOOK_AGAIN).timed_out();
    }
}

impl Store {
    /// Flushes, and moves everything that tables hold of a key range into the last level; what no view and
    /// no read at or above the floor can see any more is dropped and its space freed. Reads and writes
    /// go on beside it; what is written meanwhile may or may not be included. Works on the calling
    /// thread and, with [`Executor::Threads`], on [`Options::compaction_threads`](crate::Options::compaction_threads)
    /// of its own beside it, in jobs of a few tables each; takes the time it takes.
    ///
    /// # Errors
    /// As [`flush`](Store::flush); those of a job that failed: what was done before stays done.
    /// `Closed` soon after the store closes. `InvalidArgument` for an unknown partition.
    pub fn compact(
        &self,
        partition: PartitionId,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
    ) -> Result<()> {
        self.check_partition(partition)?;
        self.flush()?;
        let range = KeyRange { smallest: end(lower), largest: end(upper) };
        let inner = self.inner();
        while let Some(job) = inner.begin_manual(partition.0, range)? {
            inner.drive(job)?;
        }
        Ok(())
    }

    /// [`compact`](Store::compact) of everything.
    ///
    /// # Errors
    /// As [`compact`](Store::compact).
    pub fn compact_all(&self) -> Result<()> {
        let partitions = self.inner().options.partitions.len();
        for id in (0_u8..).take(partitions) {
            self.compact(PartitionId(id), Bound::Unbounded, Bound::Unbounded)?;
        }
        Ok(())
    }
}

/// What the picker knows of a table; what is at or below `bound` and hidden may be dropped.
fn table_info<'l>(table: &'l Table, bound: u64, damaged: &BTreeSet<FileNumber>) -> TableInfo<'l> {
    let (meta, properties) = (table.meta(), table.properties());
    let dense = properties.tombstone_dense_blocks.saturating_mul(DENSE_DIVISOR);
    TableInfo {
        number: meta.number,
        bytes: meta.len,
        smallest: &meta.smallest.user_key,
        largest: &meta.largest.user_key,
        entries: meta.entries,
        deletes: meta.deletes,
        garbage: meta.garbage_at(bound),
        dense: dense > 0 && dense >= properties.data_blocks,
        quarantined: damaged.contains(&meta.number),
    }
}

/// A key at the end of a range is taken for part of it.
const fn end(bound: Bound<&[u8]>) -> Option<&[u8]> {
    match bound {
        Bound::Included(key) | Bound::Excluded(key) => Some(key),
        Bound::Unbounded => None,
    }
}

/// What compactions would have to write in a version until nothing is due.
pub(crate) fn total_debt(version: &Version, options: &PickOptions) -> u64 {
    version.partitions.iter().map(|levels| debt(&sizes(levels), options)).sum()
}

fn sizes(levels: &Levels) -> [u64; LEVELS] {
    let bytes = |tables: &Tables| -> u64 { tables.iter().map(|t| t.meta().len).sum() };
    std::array::from_fn(|level| match level {
        0 => levels.runs.iter().map(|r| bytes(&r.tables)).sum(),
        _ => levels.levels.get(level).map_or(0, bytes),
    })
}

/// How deep level 0 of any partition is, by the measure that compactions are chosen by: so whoever waits for it
/// to shrink waits for something that is due.
pub(crate) fn l0_depth(version: &Version) -> usize {
    let of = |levels: &Levels| {
        let tables = levels.runs.iter().flat_map(|run| run.tables.iter()).map(|t| t.meta());
        depth(tables.map(|m| (&*m.smallest.user_key, &*m.largest.user_key)), levels.runs.len())
    };
    version.partitions.iter().map(of).max().unwrap_or(0)
}

/// The level that level 0 is compacted into, if it has tables.
pub(crate) fn base(levels: &Levels) -> Tables {
    levels.levels.iter().find(|l| !l.is_empty()).cloned().unwrap_or_default()
}

/// The runs that are older than those a merge within level 0 takes.
fn older_runs(levels: &Levels, pick: &Pick) -> Vec<Tables> {
    let taken = |run: &&SortedRun| {
        let first = run.tables.first().map(|t| t.meta().number);
        first.is_some_and(|first| pick.tables().any(|t| t == first))
    };
    let oldest = levels.runs.iter().filter(taken).map(|r| r.epoch).min();
    let older = levels.runs.iter().filter(|run| Some(run.epoch) < oldest);
    older.map(|run| Arc::clone(&run.tables)).collect()
}

/// The named tables of a level, as runs that are each in order.
fn select(levels: &Levels, level: usize, numbers: &[FileNumber]) -> Vec<Tables> {
    let wanted: BTreeSet<FileNumber> = numbers.iter().copied().collect();
    let pick = |tables: &Tables| -> Tables {
        tables.iter().filter(|t| wanted.contains(&t.meta().number)).cloned().collect()
    };
    let runs: Vec<Tables> = if level == 0 {
        levels.runs.iter().map(|r| pick(&r.tables)).collect()
    } else {
        levels.levels.get(level).map(pick).into_iter().collect()
    };
    runs.into_iter().filter(|r| !r.is_empty()).collect()
}
