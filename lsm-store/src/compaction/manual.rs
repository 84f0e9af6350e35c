//! Jobs that somebody asked for: everything of a key range into the last level, and its garbage out.

use crate::compaction::claims::Claims;
use crate::compaction::picker::{Inputs, Method, Pick, PickOptions, Picker, targets};
use crate::compaction::shape::{Shape, TableInfo};
use crate::options::LEVELS;

/// A job takes about so many tables' worth of bytes, so that it needs no more space than that beside
/// what it replaces.
const TABLES_MAX: u64 = 16;

/// What is to be done next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Manual {
    Job(Pick),
    /// A job under way is in the way.
    Blocked,
    /// Nothing: all of the range is in the last level, without anything that may go.
    Done,
}

/// A key range with both its ends; `None` is without an end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyRange<'r> {
    pub(crate) smallest: Option<&'r [u8]>,
    pub(crate) largest: Option<&'r [u8]>,
}

impl KeyRange<'_> {
    fn touches(&self, table: &TableInfo<'_>) -> bool {
        self.smallest.is_none_or(|s| s <= table.largest)
            && self.largest.is_none_or(|l| table.smallest <= l)
    }
}

/// The next job of a partition that brings `range` further down.
pub(crate) fn next(
    shape: &Shape<'_>,
    options: &PickOptions,
    partition: u8,
    claims: &Claims,
    range: KeyRange<'_>,
) -> Manual {
    let picker = Picker { shape, options, partition, claims };
    let picked = level0(&picker, range)
        .or_else(|| (1..LEVELS - 1).find_map(|level| downward(&picker, level, range)))
        .or_else(|| in_place(&picker, range));
    match picked {
        None => Manual::Done,
        Some(None) => Manual::Blocked,
        Some(Some(pick)) => Manual::Job(pick),
    }
}

/// Of level 0 what touches the range, with everything older below it.
fn level0(picker: &Picker<'_, '_>, range: KeyRange<'_>) -> Option<Option<Pick>> {
    let touched = || {
        let tables = picker.shape.runs.iter().flat_map(|r| &r.tables);
        tables.filter(|t| range.touches(t))
    };
    let smallest = touched().map(|t| t.smallest).min()?;
    let largest = touched().map(|t| t.largest).max()?;
    let mut inputs = picker.level0_closure(smallest, largest);
    take_below(picker, &mut inputs, 1);
    if inputs.bytes() <= most(picker) {
        return Some(picker.settle(inputs, LEVELS - 1, Method::Merge));
    }
    // Too much at once: one level at first.
    let (base, _) = targets(&picker.shape.sizes(|_| true), picker.options);
    let mut inputs = picker.level0_closure(smallest, largest);
    let (smallest, largest) = (inputs.smallest, inputs.largest);
    inputs.take(base, picker.shape.overlapping(base, smallest, largest));
    Some(picker.settle(inputs, base, Method::Merge))
}

/// The first tables of a level that touch the range, with everything below them.
fn downward(picker: &Picker<'_, '_>, level: usize, range: KeyRange<'_>) -> Option<Option<Pick>> {
    let tables = picker.shape.level(level);
    let from = tables.iter().position(|t| range.touches(t))?;
    let touching = tables.iter().skip(from).take_while(|t| range.touches(t)).count();
    let closure = |count: usize| {
        let taken = tables.get(from..from + count).unwrap_or_default();
        let first = taken.first()?;
        let mut inputs = Inputs::new(first.smallest, first.largest);
        inputs.take(level, taken);
        take_below(picker, &mut inputs, level + 1);
        Some(inputs)
    };
    let count = (2..=touching)
        .take_while(|count| closure(*count).is_some_and(|i| i.bytes() <= most(picker)))
        .last()
        .unwrap_or(1);
    let inputs = closure(count)?;
    let moves = picker.may_move(&inputs, level, LEVELS - 1);
    let method = if moves { Method::Move } else { Method::Merge };
    Some(picker.settle(inputs, LEVELS - 1, method))
}

/// The first tables of the last level that have something to drop.
fn in_place(picker: &Picker<'_, '_>, range: KeyRange<'_>) -> Option<Option<Pick>> {
    let last = LEVELS - 1;
    let worth = |t: &&TableInfo<'_>| range.touches(t) && t.garbage > 0;
    let tables = picker.shape.level(last);
    let from = tables.iter().position(|t| worth(&t))?;
    let mut bytes = 0;
    let few = |t: &&TableInfo<'_>| {
        let first = bytes == 0;
        bytes += t.bytes;
        first || bytes <= most(picker)
    };
    let first = tables.get(from)?;
    let mut inputs = Inputs::new(first.smallest, first.largest);
    inputs.take(last, tables.iter().skip(from).take_while(worth).take_while(few));
    Some(picker.settle(inputs, last, Method::Merge))
}

fn take_below<'s, 'a>(picker: &Picker<'s, 'a>, inputs: &mut Inputs<'s, 'a>, from: usize) {
    for level in from..LEVELS {
        let (smallest, largest) = (inputs.smallest, inputs.largest);
        inputs.take(level, picker.shape.overlapping(level, smallest, largest));
    }
}

fn most(picker: &Picker<'_, '_>) -> u64 {
    picker.options.table_bytes.saturating_mul(TABLES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compaction::shape::RunInfo;
    use crate::types::FileNumber;

    const TABLE_BYTES: u64 = 100;
    const OPTIONS: PickOptions = PickOptions {
        l0_trigger: 4,
        level_ratio: 10,
        base_level_bytes: 100,
        table_bytes: TABLE_BYTES,
        compressed_from: 2,
    };
    const LAST: usize = LEVELS - 1;

    /// Tables of full size beside each other, numbered from `first` on.
    fn tables(first: u64, count: u64, garbage: u64) -> Vec<TableInfo<'static>> {
        let key = |n: u64| -> &'static [u8] { n.to_be_bytes().to_vec().leak() };
        let table = |n: u64| TableInfo {
            number: FileNumber(first + n),
            bytes: TABLE_BYTES,
            smallest: key(2 * n),
            largest: key(2 * n + 1),
            entries: 10,
            deletes: 0,
            garbage,
            dense: false,
            quarantined: false,
        };
        (0..count).map(table).collect()
    }

    fn level(at: usize, tables: Vec<TableInfo<'static>>) -> Shape<'static> {
        let mut levels = vec![Vec::new(); LEVELS];
        levels[at] = tables;
        Shape { runs: Vec::new(), levels }
    }

    /// The first job for all keys.
    fn job(shape: &Shape<'_>) -> Pick {
        job_of(shape, KeyRange { smallest: None, largest: None })
    }

    fn job_of(shape: &Shape<'_>, range: KeyRange<'_>) -> Pick {
        match next(shape, &OPTIONS, 0, &Claims::default(), range) {
            Manual::Job(pick) => pick,
            none @ (Manual::Blocked | Manual::Done) => unreachable!("{none:?}"),
        }
    }

    #[test]
    fn a_job_takes_as_many_tables_as_its_size_allows_and_no_more() {
        let (down, in_place) = (level(4, tables(1, 40, 0)), level(LAST, tables(1, 40, 1)));
        for (shape, what) in [(down, "downward"), (in_place, "in place")] {
            let pick = job(&shape);
            assert_eq!(pick.tables().count() as u64, TABLES_MAX, "{what}");
            assert_eq!(pick.output_level, LAST, "{what}");
        }
    }

    #[test]
    fn level_0_goes_to_the_last_level_at_once_if_that_is_little_and_to_the_next_one_if_not() {
        for (count, output_level) in [(2, LAST), (40, LAST - 1)] {
            let run = RunInfo { epoch: 1, tables: tables(100, count, 0) };
            let shape = Shape { runs: vec![run], ..level(LAST, tables(1, count, 0)) };
            let pick = job(&shape);
            assert_eq!(pick.output_level, output_level, "{count} tables above {count}");
            let takes_last = pick.inputs.iter().any(|(level, _)| *level == LAST);
            assert_eq!(takes_last, output_level == LAST, "{count} tables: {:?}", pick.inputs);
        }
    }

    #[test]
    fn a_table_alone_moves_and_is_rewritten_only_to_drop_something() {
        assert_eq!(job(&level(4, tables(1, 1, 0))).method, Method::Move, "nothing to drop");
        assert_eq!(job(&level(4, tables(1, 1, 1))).method, Method::Merge, "garbage");
    }
    #[test]
    fn in_place_only_neighbours_in_the_range_with_something_to_drop_are_rewritten() {
        let mut four = tables(1, 4, 1);
        four[2].garbage = 0;
        let second = four[1].smallest;
        let shape = level(LAST, four);
        let numbers = |pick: &Pick| pick.tables().map(|number| number.0).collect::<Vec<_>>();
        assert_eq!(numbers(&job(&shape)), [1, 2], "up to the one without garbage");
        let range = KeyRange { smallest: Some(second), largest: Some(second) };
        assert_eq!(numbers(&job_of(&shape, range)), [2], "of the range");
    }
}
