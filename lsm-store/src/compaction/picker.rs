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
mod tests {
    use super::*;
    use crate::compaction::shape::RunInfo;

    const OPTIONS: PickOptions = PickOptions {
        l0_trigger: 4,
        level_ratio: 10,
        base_level_bytes: 100,
        table_bytes: 100,
        compressed_from: 2,
    };

    type Table = TableInfo<'static>;

    fn table(number: u64, bytes: u64, smallest: &'static str, largest: &'static str) -> Table {
        TableInfo {
            number: FileNumber(number),
            bytes,
            smallest: smallest.as_bytes(),
            largest: largest.as_bytes(),
            entries: 100,
            deletes: 0,
            garbage: 0,
            dense: false,
            quarantined: false,
        }
    }

    /// Runs from the newest to the oldest, and levels by their number.
    fn shape<const N: usize>(
        runs: Vec<Vec<Table>>,
        levels: [(usize, Vec<Table>); N],
    ) -> Shape<'static> {
        let epochs = (1..=runs.len() as u64).rev();
        let runs =
            runs.into_iter().zip(epochs).map(|(tables, epoch)| RunInfo { epoch, tables }).collect();
        let mut all = vec![Vec::new(); LEVELS];
        for (level, tables) in levels {
            all[level] = tables;
        }
        Shape { runs, levels: all }
    }

    fn pick_of(shape: &Shape<'_>) -> Option<Pick> {
        pick(shape, &OPTIONS, 0, &Claims::default())
    }

    fn numbers(pick: &Pick) -> Vec<(usize, Vec<u64>)> {
        pick.inputs.iter().map(|(l, t)| (*l, t.iter().map(|n| n.0).collect())).collect()
    }

    #[test]
    fn a_small_store_goes_straight_to_the_last_level() {
        let (base, targets) = targets(&[0; LEVELS], &OPTIONS);
        assert_eq!((base, targets[6]), (6, 100), "empty");
    }

    #[test]
    fn targets_follow_the_size_of_the_last_level_and_never_that_of_level_0() {
        for level0 in [0, 1, 1 << 40] {
            let (base, targets) = targets(&[level0, 0, 0, 0, 0, 0, 123_456], &OPTIONS);
            assert_eq!(base, 3, "three levels above hold a tenth each, at least 100");
            assert_eq!(&targets[3..], [123, 1234, 12_345, 123_456], "a tenth each");
        }
    }

    #[test]
    fn debt_does_not_jump_when_level_0_drains() {
        let before = debt(&[400, 0, 0, 0, 0, 0, 10_000], &OPTIONS);
        let after = debt(&[0, 0, 0, 0, 0, 0, 10_400], &OPTIONS);
        assert_eq!((before, after), (400, 0), "what was in level 0, and nothing more");
        let excess = debt(&[0, 0, 0, 0, 0, 1500, 10_000], &OPTIONS);
        assert_eq!(excess, 500 * 7, "with six times as much below it");
    }

    #[test]
    fn a_level_above_the_base_drains() {
        let shape =
            shape(vec![], [(2, vec![table(1, 50, "a", "z")]), (6, vec![table(2, 80, "a", "z")])]);
        let (base, _) = targets(&shape.sizes(|_| true), &OPTIONS);
        assert_eq!(base, 2, "level 0 may not pass it by");
        let pick = pick_of(&shape).expect("drains");
        assert_eq!((numbers(&pick), pick.output_level), (vec![(2, vec![1])], 3), "one down");
    }

    #[test]
    fn level_0_is_due_by_overlaps_and_takes_a_column_with_all_that_is_older_below_it() {
        let three = |number| vec![table(number, 10, "d", "m"), table(number + 1, 10, "p", "q")];
        let oldest = vec![table(30, 10, "a", "e")];
        let base = vec![table(1, 50, "a", "c"), table(2, 50, "g", "p"), table(3, 50, "q", "z")];
        let mut shape = shape(vec![three(10), three(12), three(14)], [(6, base)]);
        assert_eq!(pick_of(&shape), None, "three deep is not due");
        shape.runs.push(RunInfo { epoch: 0, tables: oldest });
        let pick = pick_of(&shape).expect("four deep from d to e");
        let column = vec![(0, vec![10, 12, 14, 30]), (6, vec![1, 2])];
        assert_eq!((numbers(&pick), pick.output_level), (column, 6), "not what is at p and q");
        assert_eq!((&*pick.smallest, &*pick.largest), (&b"a"[..], &b"p"[..]), "its range");
    }

    #[test]
    fn a_job_under_way_sends_level_0_to_merge_within_itself() {
        let run = |number| vec![table(number, 10, "a", "z")];
        let old = [run(20), run(21), run(22), run(23)];
        let mut claims = Claims::default();
        let first = shape(old.to_vec(), [(6, vec![table(1, 50, "a", "z")])]);
        let taken = pick(&first, &OPTIONS, 0, &claims).expect("due");
        claims.take(taken.claim(0));
        assert_eq!(pick(&first, &OPTIONS, 0, &claims), None, "all of it is taken");
        let new = [run(30), run(31), run(32), run(33)];
        let both = shape([new, old].concat(), [(6, vec![table(1, 50, "a", "z")])]);
        let second = pick(&both, &OPTIONS, 0, &claims).expect("four new runs");
        assert_eq!(numbers(&second), [(0, vec![30, 31, 32, 33])], "the new ones");
        assert_eq!(
            (second.output_level, second.method),
            (0, Method::Level0 { epoch: 8 }),
            "newest"
        );
    }

    #[test]
    fn tiny_runs_merge_among_themselves_rather_than_rewrite_a_large_base() {
        let run = |number| vec![table(number, 10, "a", "z")];
        let runs = vec![run(20), run(21), run(22), run(23)];
        let large = shape(runs.clone(), [(6, vec![table(1, 401, "a", "z")])]);
        let pick = pick_of(&large).expect("due");
        assert_eq!(pick.method, Method::Level0 { epoch: 4 }, "40 bytes would rewrite 401");
        let fair = shape(runs, [(6, vec![table(1, 400, "a", "z")])]);
        assert_eq!(pick_of(&fair).expect("due").method, Method::Merge, "400 are worth it");
    }

    #[test]
    fn a_merge_within_level_0_ends_at_a_much_larger_run_and_at_the_size_of_eight_tables() {
        let taken = |sizes: &[u64]| {
            let runs = sizes.iter().zip(20..).map(|(bytes, n)| vec![table(n, *bytes, "a", "z")]);
            let (shape, claims) = (shape(runs.collect(), []), Claims::default());
            let picker = Picker { shape: &shape, options: &OPTIONS, partition: 0, claims: &claims };
            picker
                .intra_level0_job(8 * OPTIONS.table_bytes)
                .expect("four runs are enough")
                .tables()
                .count()
        };
        assert_eq!(taken(&[10, 10, 10, 10, 80]), 5, "twice as much as the newer ones together");
        assert_eq!(taken(&[10, 10, 10, 10, 81]), 4, "more than that");
        assert_eq!(taken(&[200, 200, 200, 200, 10]), 4, "eight tables' worth is enough");
        assert_eq!(taken(&[200, 200, 200, 190, 10]), 5, "not yet");
    }

    #[test]
    fn the_level_that_is_most_over_its_target_comes_first() {
        let level = |first, n: u64| -> Vec<Table> {
            let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
            keys.into_iter().zip(first..first + n).map(|(k, n)| table(n, 100, k, k)).collect()
        };
        let last = vec![table(1, 10_000, "a", "z")];
        // Targets are 100 and 1000.
        let shape_of =
            |upper| shape(vec![], [(4, level(10, upper)), (5, level(30, 8)), (6, last.clone())]);
        let mut both = shape_of(3);
        both.levels[5].extend((0..8).map(|n| table(40 + n, 100, "i", "i")));
        both.levels[5].sort_by_key(|t| t.number);
        let pick = pick_of(&both).expect("both are due");
        assert_eq!(pick.inputs[0].0, 4, "three times its target, not 1.6 times");
        both.levels[4].truncate(1);
        assert_eq!(pick_of(&both).expect("one is due").inputs[0].0, 5, "the other is not due");
    }

    #[test]
    fn a_full_level_gives_up_the_table_with_the_least_below_it() {
        let l5 = vec![table(11, 100, "a", "f"), table(12, 100, "g", "k"), table(13, 100, "l", "z")];
        let l6 = vec![table(1, 900, "a", "c"), table(2, 90, "g", "h"), table(3, 910, "m", "n")];
        let shape = shape(vec![], [(5, l5), (6, l6)]);
        let first = pick_of(&shape).expect("300 bytes where 190 are the target");
        assert_eq!(numbers(&first), [(5, vec![12]), (6, vec![2])], "90 bytes below it");
        let mut claims = Claims::default();
        claims.take(first.claim(0));
        let second = pick(&shape, &OPTIONS, 0, &claims).expect("200 are left, still too many");
        assert_eq!(numbers(&second), [(5, vec![11]), (6, vec![1])], "the next best");
        claims.take(second.claim(0));
        assert_eq!(pick(&shape, &OPTIONS, 0, &claims), None, "100 are not too many");
    }

    #[test]
    fn no_job_takes_a_damaged_table_and_others_go_on() {
        let damaged = TableInfo { quarantined: true, ..table(2, 90, "g", "h") };
        let l5 = vec![table(11, 100, "a", "f"), table(12, 100, "g", "k"), table(13, 100, "l", "z")];
        let l6 = vec![table(1, 900, "a", "c"), damaged, table(3, 910, "m", "n")];
        let pick = pick_of(&shape(vec![], [(5, l5), (6, l6)])).expect("due");
        assert_eq!(numbers(&pick), [(5, vec![11]), (6, vec![1])], "the next best");
    }

    #[test]
    fn level_0_goes_first_once_it_is_twice_as_deep_as_its_trigger() {
        let l5 = vec![table(11, 500, "a", "f")];
        let l6 = vec![table(1, 1000, "m", "n")];
        let deep = |runs: u64| {
            let runs = (20..20 + runs).map(|n| vec![table(n, 500, "a", "c")]).collect();
            pick_of(&shape(runs, [(5, l5.clone()), (6, l6.clone())])).expect("due").inputs[0].0
        };
        assert_eq!((deep(7), deep(8)), (5, 0), "500 bytes where 100 are the target, then level 0");
    }

    #[test]
    fn where_a_column_is_held_or_damaged_the_next_one_goes() {
        let mut runs: Vec<_> = (0..5).map(|n| vec![table(20 + n, 500, "a", "c")]).collect();
        for (n, run) in (0..4).zip(&mut runs) {
            run.push(table(30 + n, 500, "x", "z"));
        }
        let l6 = vec![table(1, 50, "a", "c"), table(2, 50, "x", "z")];
        let mut shape = shape(runs, [(6, l6)]);
        let first = pick_of(&shape).expect("five deep at a");
        assert_eq!(numbers(&first)[0], (0, vec![20, 21, 22, 23, 24]), "the deepest");
        let next = vec![(0, vec![30, 31, 32, 33]), (6, vec![2])];
        let mut claims = Claims::default();
        claims.take(first.claim(0));
        let second = pick(&shape, &OPTIONS, 0, &claims).expect("four deep at x");
        assert_eq!(numbers(&second), next, "beside the first");
        shape.runs[4].tables[0].quarantined = true;
        assert_eq!(numbers(&pick_of(&shape).expect("due")), next, "damage in level 0");
        shape.runs[4].tables[0].quarantined = false;
        shape.levels[6][0].quarantined = true;
        assert_eq!(numbers(&pick_of(&shape).expect("due")), next, "damage below it");
    }

    #[test]
    fn what_piles_up_over_damage_merges_within_level_0_however_large_it_is() {
        let mut runs: Vec<_> = (0..4).map(|n| vec![table(20 + n, 500, "a", "c")]).collect();
        runs.push(vec![TableInfo { quarantined: true, ..table(24, 500, "a", "c") }]);
        let pick = pick_of(&shape(runs, [(6, vec![table(1, 50, "a", "c")])])).expect("due");
        assert_eq!(numbers(&pick), [(0, vec![20, 21, 22, 23])], "2000 bytes: twenty tables");
    }

    #[test]
    fn a_table_with_nothing_below_it_moves_unless_its_compression_changes_or_it_has_deletes() {
        let moved = |t: Table, at| pick_of(&shape(vec![], [(at, vec![t])])).expect("due").method;
        assert_eq!(moved(table(1, 500, "a", "z"), 3), Method::Move, "level 3 to 4");
        assert_eq!(moved(table(1, 500, "a", "z"), 1), Method::Merge, "gets compressed");
        let deletes = TableInfo { deletes: 1, ..table(1, 500, "a", "z") };
        assert_eq!(moved(deletes, 3), Method::Merge, "deletes may be spent");
        let garbage = TableInfo { garbage: 1, ..table(1, 500, "a", "z") };
        assert_eq!(moved(garbage, 3), Method::Merge, "garbage goes by the way");
    }

    #[test]
    fn a_table_does_not_move_above_more_tables_than_a_later_merge_should_take_along() {
        const NAMES: [&str; 12] = ["b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"];
        let moves_above = |below: usize| {
            let l5 = NAMES.iter().take(below).zip(10..).map(|(k, n)| table(n, 60, k, k)).collect();
            let levels =
                [(3, vec![table(1, 500, "a", "z")]), (5, l5), (6, vec![table(2, 9000, "n", "y")])];
            let shape = shape(vec![], levels);
            let claims = Claims::default();
            let picker = Picker { shape: &shape, options: &OPTIONS, partition: 0, claims: &claims };
            let mut inputs = Inputs::new(b"a", b"z");
            inputs.take(3, shape.level(3));
            picker.may_move(&inputs, 3, 4)
        };
        assert!(moves_above(GRANDPARENTS_MAX), "so many are not too many");
        assert!(!moves_above(GRANDPARENTS_MAX + 1), "one more is");
    }

    #[test]
    fn garbage_is_rewritten_in_place_as_far_as_it_certainly_goes() {
        let garbage = TableInfo { garbage: 25, ..table(1, 50, "a", "c") };
        let bottom = shape(vec![], [(6, vec![garbage.clone(), table(2, 50, "d", "f")])]);
        let pick = pick_of(&bottom).expect("a quarter is garbage");
        assert_eq!((numbers(&pick), pick.output_level), (vec![(6, vec![1])], 6), "in place");
        let deletes = TableInfo { deletes: 25, ..garbage.clone() };
        let above = |t: Table| shape(vec![], [(5, vec![t]), (6, vec![table(2, 1000, "b", "f")])]);
        assert_eq!(pick_of(&above(deletes)), None, "deletes are still needed above something");
        assert_eq!(pick_of(&above(garbage)).expect("shadowed").output_level, 5, "in place");
    }

    #[test]
    fn tables_dense_with_deletes_go_down_and_stale_rests_at_the_bottom_go() {
        let dense = TableInfo { garbage: 10, deletes: 10, dense: true, ..table(1, 50, "a", "c") };
        // So large that level 5 has a target: it is not due by its size.
        let large = vec![table(2, 1000, "b", "f")];
        let pick = pick_of(&shape(vec![], [(5, vec![dense.clone()]), (6, large)]));
        let l6 = vec![table(2, 900, "b", "f")];
        assert_eq!(numbers(&pick.expect("dense")), [(5, vec![1]), (6, vec![2])], "down");
        let pick = pick_of(&shape(vec![vec![dense.clone()]], [(6, l6)])).expect("dense");
        assert_eq!(numbers(&pick), [(0, vec![1]), (6, vec![2])], "from level 0, too");
        let pinned = TableInfo { garbage: 0, ..dense };
        assert_eq!(pick_of(&shape(vec![], [(6, vec![pinned])])), None, "nothing may go yet");
        let rest = |garbage| TableInfo { garbage, ..table(1, 50, "a", "c") };
        assert_eq!(pick_of(&shape(vec![], [(6, vec![rest(6)])])), None, "not worth it");
        assert!(pick_of(&shape(vec![], [(6, vec![rest(7)])])).is_some(), "a sixteenth is");
    }
}
