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
