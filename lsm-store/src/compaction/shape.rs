//! What is known of a partition's tables when a job is chosen: sizes and bounds, nothing of their files.

use std::cmp::Reverse;

use crate::options::LEVELS;
use crate::types::FileNumber;

/// A table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TableInfo<'a> {
    pub(crate) number: FileNumber,
    pub(crate) bytes: u64,
    pub(crate) smallest: &'a [u8],
    pub(crate) largest: &'a [u8],
    pub(crate) entries: u64,
    pub(crate) deletes: u64,
    /// Entries that would be dropped by a rewrite now, if nothing older were below.
    pub(crate) garbage: u64,
    /// Many of its blocks are mostly deletes.
    pub(crate) dense: bool,
    /// Damaged: no job may take it.
    pub(crate) quarantined: bool,
}

/// A run of level 0; its tables in key order.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunInfo<'a> {
    pub(crate) epoch: u64,
    pub(crate) tables: Vec<TableInfo<'a>>,
}

/// The shape of one partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape<'a> {
    /// Level 0, newest first.
    pub(crate) runs: Vec<RunInfo<'a>>,
    /// Tables per level in key order; the first is empty, since level 0 is in `runs`.
    pub(crate) levels: Vec<Vec<TableInfo<'a>>>,
}

impl<'a> Shape<'a> {
    pub(crate) fn level(&self, level: usize) -> &[TableInfo<'a>] {
        self.levels.get(level).map_or(&[], Vec::as_slice)
    }

    /// The tables of a level below level 0 that overlap a range.
    pub(crate) fn overlapping(
        &self,
        level: usize,
        smallest: &[u8],
        largest: &[u8],
    ) -> &[TableInfo<'a>] {
        overlapping(self.level(level), smallest, largest)
    }

    /// Bytes per level, level 0 included, of the tables that `counts` is true for.
    pub(crate) fn sizes(&self, counts: impl Fn(&TableInfo<'_>) -> bool) -> [u64; LEVELS] {
        let sum = |tables: &mut dyn Iterator<Item = &TableInfo<'a>>| {
            tables.filter(|t| counts(t)).map(|t| t.bytes).sum()
        };
        std::array::from_fn(|level| match level {
            0 => sum(&mut self.runs.iter().flat_map(|r| &r.tables)),
            _ => sum(&mut self.level(level).iter()),
        })
    }
}

/// The tables of an ordered list without overlap that overlap a range.
pub(crate) fn overlapping<'s, 'a>(
    tables: &'s [TableInfo<'a>],
    smallest: &[u8],
    largest: &[u8],
) -> &'s [TableInfo<'a>] {
    let from = tables.partition_point(|t| t.largest < smallest);
    let to = tables.partition_point(|t| t.smallest <= largest);
    tables.get(from..to.max(from)).unwrap_or_default()
}

/// Points that more ranges share than any point nearby, and how many do: the deepest first, of equals the least
/// point. Ranges include both their ends.
pub(crate) fn columns<'a>(
    ranges: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Vec<(usize, &'a [u8])> {
    let mut ends: Vec<(&[u8], bool)> = Vec::new();
    for (smallest, largest) in ranges {
        ends.push((smallest, false));
        ends.push((largest, true));
    }
    // Of ends at one point, ranges begin there before others end there.
    ends.sort_unstable();
    let mut columns = Vec::new();
    let (mut open, mut last) = (0_usize, None);
    for (key, closes) in ends {
        if closes {
            columns.extend(last.take().map(|at| (open, at)));
            open = open.saturating_sub(1);
        } else {
            open += 1;
            last = Some(key);
        }
    }
    columns.sort_by_key(|(depth, _)| Reverse(*depth));
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_ranges_that_share_a_point_not_ranges() {
        let of = |ranges: &[(&'static [u8], &'static [u8])]| columns(ranges.iter().copied());
        assert_eq!(of(&[]), [], "none");
        let beside = of(&[(b"a", b"c"), (b"g", b"h"), (b"d", b"f")]);
        assert_eq!(beside, [(1, &b"a"[..]), (1, b"d"), (1, b"g")], "side by side");
        assert_eq!(of(&[(b"a", b"c"), (b"c", b"f")]), [(2, &b"c"[..])], "both have c");
        let nested = [(&b"a"[..], &b"z"[..]), (b"b", b"d"), (b"c", b"c"), (b"x", b"y")];
        assert_eq!(of(&nested), [(3, &b"c"[..]), (2, b"x")], "one in another");
    }
}
