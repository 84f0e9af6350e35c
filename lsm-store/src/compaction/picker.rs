//! Chooses what to compact: pure functions from the shape of a partition and the jobs under way to a
//! [`Pick`] that conflicts with none of them.
//!
//! Leveled with dynamic targets: the last level's target is its own size, each level above a tenth of the
//! one below, down to the base level, which level 0 is compacted into. So about a ninth of the data is
//! above the last level, and space amplification stays near 1.1. Level 0's size never enters a target, so
//! neither targets nor debt swing when it drains.
//!
//! Order of choice: the level with the highest score (level 0 by the depth of its overlaps, others by size
//! over target; tables that a job has already do not count; level 0 before all others once it is twice as deep as its
//! trigger, because writers stop at its depth and at no other level's size), then tables whose garbage is worth a
//! rewrite, then tables dense with deletes, which make scans slow, then stale rests at the bottom.
//!
//! A job restricts itself to a column of level 0: the tables that are deepest at one key, with all that is older
//! below them. Where the deepest column is held by another job or by damage, the next one is taken; what piles up
//! over damage merges within level 0, so that its depth grows with the logarithm of what is written there.
//!
//! Invariants of every pick:
//! 1. For each table it takes, it takes everything older that overlaps it above or in the output level:
//!    newer versions of a key never end up below older ones.
//! 2. What it takes of a level is contiguous there, so outputs fit between what stays.
//! 3. It progresses: entries go down, or runs become fewer, or garbage goes. So picking ends.

use crate::compaction::claims::{Claim, Claims};
use crate::compaction::cut::GRANDPARENTS_MAX;
use crate::compaction::shape::{Shape, TableInfo, columns, overlapping};
use crate::options::LEVELS;
use crate::types::FileNumber;

/// Scores are in thousandths: at this one a level is due.
const SCORE_DUE: u64 = 1000;
/// From this one on level 0 is due before all others, and not to be held up by damage.
const SCORE_URGENT: u64 = 2 * SCORE_DUE;

/// Runs count half: many that do not overlap slow down scans, but not lookups.
const RUNS_PER_DEPTH: usize = 2;

/// A table is rewritten in its place when at least one entry in so many is garbage …
const GARBAGE_DIVISOR: u64 = 4;
/// … or, with nothing else to do, one in so many at the bottom.
const LEFTOVER_DIVISOR: u64 = 16;

/// A merge within level 0 takes the next older run if it is at most so many times what it has.
const INTRA_GROWTH: u64 = 2;
/// … and stops at so many tables' worth of bytes.
const INTRA_TABLES_MAX: u64 = 8;

/// What decides besides the shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PickOptions {
    pub(crate) l0_trigger: usize,
    pub(crate) level_ratio: u64,
    pub(crate) base_level_bytes: u64,
    pub(crate) table_bytes: u64,
    /// First level whose tables are compressed; `LEVELS` if none is.
    pub(crate) compressed_from: usize,
}

/// How the outputs come about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Method {
    /// The inputs move as they are.
    Move,
    /// The inputs are merged into a level below level 0.
    Merge,
    /// Neighbouring runs of level 0 become one of this epoch.
    Level0 { epoch: u64 },
}

/// A job: tables per level, and the level they go to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pick {
    /// From the newest level to the oldest; none is empty.
    pub(crate) inputs: Vec<(usize, Vec<FileNumber>)>,
    pub(crate) output_level: usize,
    pub(crate) method: Method,
    /// Size of the inputs.
    pub(crate) bytes: u64,
    /// First and last user key of the inputs.
    pub(crate) smallest: Vec<u8>,
    pub(crate) largest: Vec<u8>,
}

impl Pick {
    pub(crate) fn tables(&self) -> impl Iterator<Item = FileNumber> {
        self.inputs.iter().flat_map(|(_, tables)| tables.iter().copied())
    }

    pub(crate) fn claim(&self, partition: u8) -> Claim {
        Claim {
            partition,
            tables: self.tables().collect(),
            output_level: self.output_level,
            smallest: self.smallest.clone(),
            largest: self.largest.clone(),
        }
    }
}

/// Target sizes per level and the level that level 0 goes to. Levels above it that still have tables (the
/// store shrank) have the target 0 and drain.
pub(crate) fn targets(sizes: &[u64; LEVELS], options: &PickOptions) -> (usize, [u64; LEVELS]) {
    let last = LEVELS - 1;
    let mut targets = [0; LEVELS];
    let mut base = last;
    let mut target = sizes[last].max(options.base_level_bytes);
    targets[last] = target;
    while base > 1 && target / options.level_ratio >= options.base_level_bytes {
        base -= 1;
        target /= options.level_ratio;
        targets[base] = target;
    }
    let first_used = sizes
        .iter()
        .enumerate()
        .skip(1)
        .find(|(_, size)| **size > 0)
        .map_or(last, |(level, _)| level);
    (base.min(first_used), targets)
}

/// How deep level 0 is: the most of its tables that overlap at one key; many runs side by side count, too.
pub(crate) fn depth<'a>(tables: impl Iterator<Item = (&'a [u8], &'a [u8])>, runs: usize) -> usize {
    columns(tables).first().map_or(0, |(depth, _)| *depth).max(runs / RUNS_PER_DEPTH)
}

/// Bytes that jobs would have to write until nothing is due: of level 0 once, and of the excess of each
/// level with what it overlaps below.
pub(crate) fn debt(sizes: &[u64; LEVELS], options: &PickOptions) -> u64 {
    let (base, targets) = targets(sizes, options);
    let mut debt = sizes[0];
    for level in base..LEVELS - 1 {
        let excess = sizes[level].saturating_sub(targets[level]);
        let fan_out = (sizes[level + 1] / sizes[level].max(1)).min(options.level_ratio);
        debt = debt.saturating_add(excess.saturating_mul(1 + fan_out));
    }
    debt
}

/// The next job of a partition that is due and conflicts with none under way.
pub(crate) fn pick(
    shape: &Shape<'_>,
    options: &PickOptions,
    partition: u8,
    claims: &Claims,
) -> Option<Pick> {
    let picker = Picker { shape, options, partition, claims };
    let (base, targets) = targets(&shape.sizes(|_| true), options);
    let free = shape.sizes(|t| !claims.holds(t.number));
    let mut due: Vec<(u64, usize)> = (base..LEVELS - 1)
        .map(|level| (score(free[level], targets[level]), level))
        .filter(|(score, _)| *score > SCORE_DUE)
        .collect();
    let (level0, columns) = picker.level0_score();
    if level0 >= SCORE_DUE {
        due.push((if level0 >= SCORE_URGENT { u64::MAX } else { level0 }, 0));
    }
    due.sort_unstable_by_key(|(score, level)| (std::cmp::Reverse(*score), *level));
    due.into_iter()
        .find_map(|(_, level)| match level {
            0 => picker.level0_job(base, &columns),
            _ => picker.level_job(level),
        })
        .or_else(|| picker.garbage_job())
        .or_else(|| picker.dense_job(base))
        .or_else(|| picker.leftover_job())
}

fn score(size: u64, target: u64) -> u64 {
    if target == 0 {
        return if size == 0 { 0 } else { SCORE_DUE + 1 };
    }
    let thousandths = u128::from(size) * u128::from(SCORE_DUE) / u128::from(target);
    u64::try_from(thousandths).unwrap_or(u64::MAX)
}

/// Collects the inputs of a pick from newer levels to older ones.
#[derive(Debug)]
pub(crate) struct Inputs<'s, 'a> {
    pub(crate) levels: Vec<(usize, Vec<&'s TableInfo<'a>>)>,
    pub(crate) smallest: &'a [u8],
    pub(crate) largest: &'a [u8],
}

impl<'s, 'a> Inputs<'s, 'a> {
    pub(crate) const fn new(smallest: &'a [u8], largest: &'a [u8]) -> Self {
        Self { levels: Vec::new(), smallest, largest }
    }

    /// Takes tables of a level, which widen the range.
    pub(crate) fn take(
        &mut self,
        level: usize,
        tables: impl IntoIterator<Item = &'s TableInfo<'a>>,
    ) {
        for table in tables {
            self.smallest = self.smallest.min(table.smallest);
            self.largest = self.largest.max(table.largest);
            match self.levels.last_mut() {
                Some((last, taken)) if *last == level => taken.push(table),
                _ => self.levels.push((level, vec![table])),
            }
        }
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &'s TableInfo<'a>> {
        self.levels.iter().flat_map(|(_, tables)| tables.iter().copied())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.tables().map(|t| t.bytes).sum()
    }

    fn into_pick(self, output_level: usize, method: Method) -> Pick {
        Pick {
            bytes: self.bytes(),
            output_level,
            method,
            smallest: self.smallest.to_vec(),
            largest: self.largest.to_vec(),
            inputs: self
                .levels
                .into_iter()
                .map(|(level, tables)| (level, tables.iter().map(|t| t.number).collect()))
                .collect(),
        }
    }
}

/// What all choices look at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Picker<'s, 'a> {
    pub(crate) shape: &'s Shape<'a>,
    pub(crate) options: &'s PickOptions,
    pub(crate) partition: u8,
    pub(crate) claims: &'s Claims,
}

impl<'s, 'a> Picker<'s, 'a> {
    fn free(&self, table: &TableInfo<'_>) -> bool {
        !table.quarantined && !self.claims.holds(table.number)
    }

    /// How urgent level 0 is, and where: depths and keys, the deepest first.
    fn level0_score(&self) -> (u64, Vec<(usize, &'a [u8])>) {
        let free = |run: &'s crate::compaction::shape::RunInfo<'a>| {
            run.tables.iter().filter(|t| self.free(t))
        };
        let ranges = self.shape.runs.iter().flat_map(free).map(|t| (t.smallest, t.largest));
        let columns = columns(ranges);
        let depth = columns.first().map_or(0, |(depth, _)| *depth);
        let runs = self.shape.runs.iter().filter(|run| free(run).next().is_some()).count();
        let depth = depth.max(runs / RUNS_PER_DEPTH);
        (self.depth_score(depth), columns)
    }

    fn depth_score(&self, depth: usize) -> u64 {
        score(depth as u64, self.options.l0_trigger as u64)
    }

    /// The tables of level 0 that have to go together, if those over `smallest` to `largest` go: under each
    /// table, everything older it overlaps.
    pub(crate) fn level0_closure(&self, smallest: &'a [u8], largest: &'a [u8]) -> Inputs<'s, 'a> {
        let mut inputs = Inputs::new(smallest, largest);
        for run in &self.shape.runs {
            let (smallest, largest) = (inputs.smallest, inputs.largest);
            inputs.take(0, overlapping(&run.tables, smallest, largest));
        }
        inputs
    }

    /// Checks a job against those under way.
    pub(crate) fn settle(
        &self,
        inputs: Inputs<'s, 'a>,
        output_level: usize,
        method: Method,
    ) -> Option<Pick> {
        let (smallest, largest) = (inputs.smallest, inputs.largest);
        let conflicts = inputs.tables().any(|t| !self.free(t))
            || self.claims.writes(self.partition, output_level, smallest, largest);
        (!conflicts && inputs.tables().next().is_some())
            .then(|| inputs.into_pick(output_level, method))
    }

    /// A column of level 0 into the base level: the deepest that nothing is in the way of. Neighbouring runs into
    /// one if there is none, if it would rewrite far more of the base level than it brings, or if damage is in the
    /// way of a deeper one that has become urgent.
    fn level0_job(&self, base: usize, columns: &[(usize, &'a [u8])]) -> Option<Pick> {
        let within = self.options.table_bytes.saturating_mul(INTRA_TABLES_MAX);
        let mut most = within;
        for (nth, (depth, column)) in columns.iter().enumerate() {
            if nth > 0 && self.depth_score(*depth) < SCORE_DUE {
                break;
            }
            let mut inputs = self.level0_closure(column, column);
            let brought = inputs.bytes();
            let (smallest, largest) = (inputs.smallest, inputs.largest);
            inputs.take(base, self.shape.overlapping(base, smallest, largest));
            let dragged = inputs.bytes() - brought;
            if inputs.tables().any(|t| t.quarantined) {
                // Nothing above it goes down before it is repaired: however large it gets, it is one run then.
                most = u64::MAX;
                if self.depth_score(*depth) >= SCORE_URGENT
                    && let Some(intra) = self.intra_level0_job(most)
                {
                    return Some(intra);
                }
                continue;
            }
            if brought.saturating_mul(self.options.level_ratio) < dragged
                && let Some(intra) = self.intra_level0_job(within)
            {
                return Some(intra);
            }
            let method = if self.may_move(&inputs, 0, base) { Method::Move } else { Method::Merge };
            if let Some(pick) = self.settle(inputs, base, method) {
                return Some(pick);
            }
        }
        self.intra_level0_job(most)
    }

    /// The newest runs that no job has, of similar size, as many as are worth it, of `most` bytes at most.
    fn intra_level0_job(&self, most: u64) -> Option<Pick> {
        let mut inputs: Option<Inputs<'s, 'a>> = None;
        let (mut bytes, mut runs) = (0_u64, 0);
        let mut epoch = 0;
        for run in &self.shape.runs {
            let size: u64 = run.tables.iter().map(|t| t.bytes).sum();
            // Only neighbours: a run left out in between would become older than what is older than it.
            if run.tables.iter().any(|t| !self.free(t)) {
                if runs == 0 {
                    continue;
                }
                break;
            }
            if runs > 0 && (size > bytes.saturating_mul(INTRA_GROWTH) || bytes + size > most) {
                break;
            }
            let Some(first) = run.tables.first() else { continue };
            let inputs = inputs.get_or_insert_with(|| Inputs::new(first.smallest, first.largest));
            inputs.take(0, &run.tables);
            epoch = epoch.max(run.epoch);
            bytes += size;
            runs += 1;
        }
        if runs < self.options.l0_trigger.max(2) {
            return None;
        }
        self.settle(inputs?, 0, Method::Level0 { epoch })
    }

    /// The table of a level that drags the least of the next level along, by bytes; of equals the oldest.
    fn level_job(&self, from: usize) -> Option<Pick> {
        let (tables, output) = (self.shape.level(from), self.shape.level(from + 1));
        let mut candidates: Vec<(u64, FileNumber, &TableInfo<'a>)> = tables
            .iter()
            .filter(|t| self.free(t))
            .map(|t| {
                let dragged = overlapping(output, t.smallest, t.largest);
                let bytes: u64 = dragged.iter().map(|o| o.bytes).sum();
                (score(bytes, t.bytes.max(1)), t.number, t)
            })
            .collect();
        candidates.sort_unstable_by_key(|(dragged, number, _)| (*dragged, *number));
        candidates.into_iter().find_map(|(_, _, table)| self.down_job(from, table))
    }

    /// One table into the next level.
    fn down_job(&self, from: usize, table: &'s TableInfo<'a>) -> Option<Pick> {
        let mut inputs = Inputs::new(table.smallest, table.largest);
        inputs.take(from, [table]);
        inputs.take(from + 1, self.shape.overlapping(from + 1, table.smallest, table.largest));
        let moves = self.may_move(&inputs, from, from + 1);
        self.settle(inputs, from + 1, if moves { Method::Move } else { Method::Merge })
    }

    /// Whether a job may be done without a rewrite: one table that overlaps nothing in the output level, of
    /// the same compression, with nothing to drop, and not too much below it to be merged with later.
    pub(crate) fn may_move(&self, inputs: &Inputs<'_, '_>, from: usize, to: usize) -> bool {
        let mut tables = inputs.tables();
        let (Some(table), None) = (tables.next(), tables.next()) else { return false };
        let compressed = |level| level >= self.options.compressed_from;
        let below = self.shape.overlapping(to + 1, table.smallest, table.largest).len();
        compressed(from) == compressed(to)
            && table.deletes == 0
            && table.garbage == 0
            && below <= GRANDPARENTS_MAX
    }

    /// Entries of a table that a rewrite in its place certainly drops: with something below it, deletes
    /// may have to stay.
    fn droppable(&self, level: usize, table: &TableInfo<'_>) -> u64 {
        let kept = if self.is_bottom(level, table) { 0 } else { table.deletes };
        table.garbage.saturating_sub(kept)
    }

    fn is_bottom(&self, level: usize, table: &TableInfo<'_>) -> bool {
        (level + 1..LEVELS)
            .all(|l| self.shape.overlapping(l, table.smallest, table.largest).is_empty())
    }

    /// The first table, from the bottom up, that `is_due` and no job is in the way of.
    fn rewrite(&self, is_due: impl Fn(usize, &TableInfo<'a>) -> bool) -> Option<Pick> {
        (1..LEVELS).rev().find_map(|level| {
            self.shape.level(level).iter().filter(|t| t.garbage > 0 && is_due(level, t)).find_map(
                |table| {
                    let mut inputs = Inputs::new(table.smallest, table.largest);
                    inputs.take(level, [table]);
                    self.settle(inputs, level, Method::Merge)
                },
            )
        })
    }

    /// A table with much garbage, rewritten in its place.
    fn garbage_job(&self) -> Option<Pick> {
        self.rewrite(|level, table| {
            self.droppable(level, table).saturating_mul(GARBAGE_DIVISOR) >= table.entries
        })
    }

    /// A table with many deletes: rewritten where nothing is below, else merged with what is.
    fn dense_job(&self, base: usize) -> Option<Pick> {
        let due = |t: &&TableInfo<'a>| t.dense && t.garbage > 0;
        let rewritten =
            self.rewrite(|level, table| due(&table) && self.droppable(level, table) > 0);
        let lower = || {
            (1..LEVELS - 1).find_map(|level| {
                let tables = self.shape.level(level).iter().filter(due);
                tables
                    .filter(|t| !self.is_bottom(level, t))
                    .find_map(|table| self.down_job(level, table))
            })
        };
        let level0 = || {
            self.shape.runs.iter().flat_map(|r| &r.tables).filter(due).find_map(|table| {
                let mut inputs = self.level0_closure(table.smallest, table.largest);
                let (smallest, largest) = (inputs.smallest, inputs.largest);
                inputs.take(base, self.shape.overlapping(base, smallest, largest));
                self.settle(inputs, base, Method::Merge)
            })
        };
        rewritten.or_else(lower).or_else(level0)
    }

    /// Garbage that nothing else will take away: it is at the bottom.
    fn leftover_job(&self) -> Option<Pick> {
        self.rewrite(|level, table| {
            table.garbage.saturating_mul(LEFTOVER_DIVISOR) >= table.entries
                && self.is_bottom(level, table)
        })
    }
}

#[cfg(test)]
#[path = "picker_tests.rs"]
mod tests;
