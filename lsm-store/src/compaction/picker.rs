//! Chooses what to compact: pure functions from the sizes and bounds of tables to a [`Pick`].
//!
//! Leveled with dynamic targets: the last level's target is its own size, each level above a tenth of the
//! one below, down to the base level, which level 0 is compacted into. So about a ninth of the data is
//! above the last level, and space amplification stays near 1.1. Level 0's size never enters a target.
//!
//! Order of choice: the level with the highest score (level 0 by its number of runs, others by size over
//! target), then tables whose dropped versions are worth a rewrite.

use crate::compaction::cut::GRANDPARENTS_MAX;
use crate::options::LEVELS;
use crate::types::FileNumber;

/// Scores are in thousandths: at this one a level is due.
const SCORE_DUE: u64 = 1000;

/// A table is rewritten when at least one entry in so many is garbage.
const GARBAGE_DIVISOR: u64 = 4;

/// What the picker knows of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TableInfo<'a> {
    pub(crate) number: FileNumber,
    pub(crate) bytes: u64,
    pub(crate) smallest: &'a [u8],
    pub(crate) largest: &'a [u8],
    pub(crate) entries: u64,
    pub(crate) deletes: u64,
    /// Entries that would be dropped by a rewrite now.
    pub(crate) garbage: u64,
}

impl TableInfo<'_> {
    fn overlaps(&self, smallest: &[u8], largest: &[u8]) -> bool {
        self.smallest <= largest && smallest <= self.largest
    }
}

/// The shape of one partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape<'a> {
    /// Runs of level 0.
    pub(crate) runs: usize,
    /// Tables per level; level 0 in no order, the others in key order.
    pub(crate) levels: Vec<Vec<TableInfo<'a>>>,
}

/// What decides besides the shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PickOptions {
    pub(crate) l0_trigger: usize,
    pub(crate) level_ratio: u64,
    pub(crate) base_level_bytes: u64,
    /// First level whose tables are compressed; `LEVELS` if none is.
    pub(crate) compressed_from: usize,
}

/// A job: tables of `level`, and of the output level those they overlap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pick {
    pub(crate) level: usize,
    pub(crate) inputs: Vec<FileNumber>,
    pub(crate) output_level: usize,
    pub(crate) overlapped: Vec<FileNumber>,
    /// The inputs move as they are.
    pub(crate) trivial: bool,
}

/// Target sizes per level and the level that level 0 goes to.
pub(crate) fn targets(sizes: &[u64; LEVELS], options: &PickOptions) -> (usize, [u64; LEVELS]) {
    let last = LEVELS - 1;
    let mut targets = [options.base_level_bytes; LEVELS];
    let mut base = last;
    let mut target = sizes[last].max(options.base_level_bytes);
    targets[last] = target;
    while base > 1 && target / options.level_ratio >= options.base_level_bytes {
        base -= 1;
        target /= options.level_ratio;
        targets[base] = target;
    }
    // Levels above that still have tables (the store shrank) drain downward like any other.
    let first_used = sizes
        .iter()
        .enumerate()
        .skip(1)
        .find(|(_, size)| **size > 0)
        .map_or(last, |(level, _)| level);
    (base.min(first_used), targets)
}

/// The next job of a partition, if any is due.
pub(crate) fn pick(shape: &Shape<'_>, options: &PickOptions) -> Option<Pick> {
    let level = |level: usize| shape.levels.get(level).map_or(&[][..], Vec::as_slice);
    let sizes: [u64; LEVELS] = std::array::from_fn(|l| level(l).iter().map(|t| t.bytes).sum());
    let (base, targets) = targets(&sizes, options);
    let mut scores: Vec<(u64, usize)> = (base..LEVELS - 1)
        .map(|l| (score(sizes[l], targets[l]), l))
        .filter(|(score, _)| *score > SCORE_DUE)
        .collect();
    let runs = score(shape.runs as u64, options.l0_trigger as u64);
    if runs >= SCORE_DUE {
        scores.push((runs, 0));
    }
    let most_due = scores.into_iter().max_by_key(|(score, level)| (*score, LEVELS - level));
    match most_due {
        Some((_, 0)) => Some(level0_job(shape, base, level(base), level(base + 1), options)),
        Some((_, from)) => level_job(from, level(from), level(from + 1), level(from + 2), options),
        None => garbage_job(shape),
    }
}

fn score(size: u64, target: u64) -> u64 {
    let thousandths = u128::from(size) * u128::from(SCORE_DUE) / u128::from(target.max(1));
    u64::try_from(thousandths).unwrap_or(u64::MAX)
}

/// All of level 0 into the base level: nothing older of it is left behind.
fn level0_job(
    shape: &Shape<'_>,
    base: usize,
    output: &[TableInfo<'_>],
    grandparents: &[TableInfo<'_>],
    options: &PickOptions,
) -> Pick {
    let inputs = shape.levels.first().map_or(&[][..], Vec::as_slice);
    let smallest = inputs.iter().map(|t| t.smallest).min().unwrap_or_default();
    let largest = inputs.iter().map(|t| t.largest).max().unwrap_or_default();
    let overlapped: Vec<_> =
        output.iter().filter(|t| t.overlaps(smallest, largest)).map(|t| t.number).collect();
    let trivial = shape.runs == 1
        && overlapped.is_empty()
        && inputs.iter().all(|t| may_move(t, 0, base, grandparents, options));
    Pick { level: 0, inputs: numbers(inputs), output_level: base, overlapped, trivial }
}

/// The table of a level that drags the least of the next level along, by bytes; of equals the oldest.
fn level_job(
    from: usize,
    tables: &[TableInfo<'_>],
    output: &[TableInfo<'_>],
    grandparents: &[TableInfo<'_>],
    options: &PickOptions,
) -> Option<Pick> {
    let overlapping = |t: &TableInfo<'_>| {
        let (smallest, largest) = (t.smallest.to_vec(), t.largest.to_vec());
        output.iter().filter(move |o| o.overlaps(&smallest, &largest))
    };
    let cheapest = tables.iter().min_by_key(|t| {
        let bytes: u64 = overlapping(t).map(|o| o.bytes).sum();
        (score(bytes, t.bytes), t.number)
    })?;
    let overlapped: Vec<_> = overlapping(cheapest).map(|o| o.number).collect();
    let trivial =
        overlapped.is_empty() && may_move(cheapest, from, from + 1, grandparents, options);
    Some(Pick {
        level: from,
        inputs: vec![cheapest.number],
        output_level: from + 1,
        overlapped,
        trivial,
    })
}

/// Whether a table may change its level without a rewrite: same compression, nothing to drop, and not too
/// much below it to be merged with later.
fn may_move(
    table: &TableInfo<'_>,
    from: usize,
    to: usize,
    grandparents: &[TableInfo<'_>],
    options: &PickOptions,
) -> bool {
    let same_codec = (from >= options.compressed_from) == (to >= options.compressed_from);
    let below = grandparents.iter().filter(|g| g.overlaps(table.smallest, table.largest)).count();
    same_codec && table.deletes == 0 && table.garbage == 0 && below <= GRANDPARENTS_MAX
}

/// A table with much garbage and nothing below it, rewritten in its place.
fn garbage_job(shape: &Shape<'_>) -> Option<Pick> {
    for (level, tables) in shape.levels.iter().enumerate().skip(1).rev() {
        let deeper = || shape.levels.iter().skip(level + 1).flatten();
        let worth = tables
            .iter()
            .filter(|t| t.garbage > 0 && t.garbage.saturating_mul(GARBAGE_DIVISOR) >= t.entries)
            .find(|t| !deeper().any(|d| d.overlaps(t.smallest, t.largest)));
        if let Some(table) = worth {
            return Some(Pick {
                level,
                inputs: vec![table.number],
                output_level: level,
                overlapped: Vec::new(),
                trivial: false,
            });
        }
    }
    None
}

fn numbers(tables: &[TableInfo<'_>]) -> Vec<FileNumber> {
    tables.iter().map(|t| t.number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: PickOptions =
        PickOptions { l0_trigger: 4, level_ratio: 10, base_level_bytes: 100, compressed_from: 2 };

    fn table(
        number: u64,
        bytes: u64,
        smallest: &'static str,
        largest: &'static str,
    ) -> TableInfo<'static> {
        TableInfo {
            number: FileNumber(number),
            bytes,
            smallest: smallest.as_bytes(),
            largest: largest.as_bytes(),
            entries: 100,
            deletes: 0,
            garbage: 0,
        }
    }

    fn shape(runs: usize, levels: [Vec<TableInfo<'static>>; LEVELS]) -> Shape<'static> {
        Shape { runs, levels: levels.into() }
    }

    #[test]
    fn a_small_store_goes_straight_to_the_last_level() {
        let (base, targets) = targets(&[0; LEVELS], &OPTIONS);
        assert_eq!((base, targets[6]), (6, 100), "empty");
    }

    #[test]
    fn targets_follow_the_size_of_the_last_level() {
        let (base, targets) = targets(&[999, 0, 0, 0, 0, 0, 123_456], &OPTIONS);
        assert_eq!(base, 3, "three levels above hold a tenth each, at least 100");
        assert_eq!(&targets[3..], [123, 1234, 12_345, 123_456], "a tenth each");
    }

    #[test]
    fn a_level_above_the_base_drains() {
        let (base, _) = targets(&[0, 0, 50, 0, 0, 0, 80], &OPTIONS);
        assert_eq!(base, 2, "level 2 has tables, so level 0 may not pass it by");
    }

    #[test]
    fn level_0_is_compacted_as_a_whole_with_what_it_overlaps() {
        let l0 = vec![
            table(9, 10, "d", "m"),
            table(8, 10, "a", "c"),
            table(7, 10, "k", "p"),
            table(6, 10, "b", "b"),
        ];
        let l6 = vec![table(1, 50, "a", "e"), table(2, 50, "g", "p"), table(3, 50, "q", "z")];
        let mut shape = shape(3, [l0, vec![], vec![], vec![], vec![], vec![], l6]);
        assert_eq!(pick(&shape, &OPTIONS), None, "three runs are not due");
        shape.runs = 4;
        let pick = pick(&shape, &OPTIONS).expect("due");
        assert_eq!((pick.level, pick.output_level, pick.inputs.len()), (0, 6, 4), "all of level 0");
        assert_eq!(pick.overlapped, [FileNumber(1), FileNumber(2)], "what it overlaps");
        assert!(!pick.trivial, "merges");
    }

    #[test]
    fn a_full_level_gives_up_the_table_with_the_least_below_it() {
        let l5 = vec![table(11, 100, "a", "f"), table(12, 100, "g", "k"), table(13, 100, "l", "z")];
        let l6 = vec![table(1, 900, "a", "c"), table(2, 90, "g", "h"), table(3, 910, "m", "n")];
        let shape = shape(0, [vec![], vec![], vec![], vec![], vec![], l5, l6]);
        let pick = pick(&shape, &OPTIONS).expect("300 bytes where 190 are the target");
        assert_eq!(pick.inputs, [FileNumber(12)], "90 bytes below it");
        assert_eq!(
            (pick.overlapped.as_slice(), pick.trivial),
            (&[FileNumber(2)][..], false),
            "merges"
        );
    }

    #[test]
    fn a_table_with_nothing_below_it_moves_unless_its_compression_changes_or_it_has_deletes() {
        let levels = |t: TableInfo<'static>, at: usize| {
            let mut levels: [Vec<TableInfo<'static>>; LEVELS] = Default::default();
            levels[at] = vec![t];
            shape(0, levels)
        };
        let moved = |shape: &Shape<'static>| pick(shape, &OPTIONS).expect("due").trivial;
        assert!(moved(&levels(table(1, 500, "a", "z"), 3)), "level 3 to 4");
        assert!(!moved(&levels(table(1, 500, "a", "z"), 1)), "level 1 to 2 gets compressed");
        let deletes = TableInfo { deletes: 1, ..table(1, 500, "a", "z") };
        assert!(!moved(&levels(deletes, 3)), "deletes may be spent");
    }

    #[test]
    fn garbage_is_rewritten_in_place_only_where_nothing_is_below() {
        let garbage = |number| TableInfo { garbage: 25, ..table(number, 50, "a", "c") };
        let l6 = vec![garbage(1), table(2, 50, "d", "f")];
        let shape6 = shape(0, [vec![], vec![], vec![], vec![], vec![], vec![], l6]);
        let pick6 = pick(&shape6, &OPTIONS).expect("a quarter is garbage");
        assert_eq!(
            (pick6.level, pick6.output_level, pick6.inputs),
            (6, 6, vec![FileNumber(1)]),
            "in place"
        );
        let l5 = vec![garbage(3)];
        let shape5 =
            shape(0, [vec![], vec![], vec![], vec![], vec![], l5, vec![table(2, 50, "b", "f")]]);
        assert_eq!(pick(&shape5, &OPTIONS), None, "deletes are still needed above something");
    }
}
