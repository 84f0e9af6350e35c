//! Where the outputs of a job end: in line with the tables they will be merged with next.
//!
//! An output that ends where a table of the level below ends spares the next compaction the rewrite of
//! a table it would only touch (RocksDB measured a tenth less write amplification from this). So an
//! output may end at such a boundary once it has half of its size, and waits for one up to double
//! its size. It never overlaps more than [`GRANDPARENTS_MAX`] tables of that level, which bounds what the
//! next compaction of it drags along.
//!
//! Only keys decide, and sizes that follow from the entries: the same entries give the same cuts.

use crate::iter::level::Tables;

/// An output or moved table overlaps at most so many tables of the level below it.
pub(crate) const GRANDPARENTS_MAX: usize = 10;

/// An output may end at a boundary from this share of its size on, in hundredths …
const ALIGN_PERCENT_MIN: u64 = 50;
/// … and from so much more for each boundary it has passed: among small tables, alignment gains little …
const ALIGN_PERCENT_STEP: u64 = 5;
/// … up to this.
const ALIGN_PERCENT_MAX: u64 = 90;
/// An output waits for a boundary up to this share of its size.
const SIZE_PERCENT_MAX: u64 = 200;
/// Outputs into level 0 end at a boundary from this share on: the smaller the pieces, the less of the
/// level below a later job has to take along. Not smaller, since each is a file.
const PIECE_PERCENT_MIN: u64 = 12;

/// Decides for the outputs of one job, key by key.
#[derive(Debug)]
pub(crate) struct Cutter {
    table_bytes: u64,
    /// Into level 0, where outputs only end early.
    pieces: bool,
    /// Tables of the level below, in order.
    boundaries: Tables,
    /// The first that was not passed yet.
    at: usize,
    /// Boundaries passed since the output began.
    passed: usize,
}

impl Cutter {
    /// For outputs into a level above `below`.
    pub(crate) const fn aligned(table_bytes: u64, below: Tables) -> Self {
        Self { table_bytes, pieces: false, boundaries: below, at: 0, passed: 0 }
    }

    /// For outputs into level 0, which is compacted into `base`.
    pub(crate) const fn pieces(table_bytes: u64, base: Tables) -> Self {
        Self { table_bytes, pieces: true, boundaries: base, at: 0, passed: 0 }
    }

    /// Whether the output, of `bytes` so far, ends before `key`. Keys rise from call to call; `bytes` is
    /// `None` without an output.
    pub(crate) fn ends_before(&mut self, key: &[u8], bytes: Option<u64>) -> bool {
        let before = self.at;
        while self
            .boundaries
            .get(self.at)
            .is_some_and(|below| below.meta().largest.user_key.as_slice() < key)
        {
            self.at += 1;
        }
        self.ends(self.at - before, self.at < self.boundaries.len(), bytes)
    }

    /// The rule: `crossed` boundaries were passed with the next key, and there are more `ahead` or not.
    fn ends(&mut self, crossed: usize, ahead: bool, bytes: Option<u64>) -> bool {
        let Some(bytes) = bytes else {
            self.passed = 0;
            return false;
        };
        let already = self.passed;
        self.passed += crossed;
        let percent = u128::from(bytes) * 100 / u128::from(self.table_bytes.max(1));
        let size_percent = if ahead && !self.pieces { SIZE_PERCENT_MAX } else { 100 };
        let ends = percent >= u128::from(size_percent)
            || (crossed > 0
                && (self.passed >= GRANDPARENTS_MAX
                    || percent >= u128::from(self.align_percent(already))));
        if ends {
            self.passed = 0;
        }
        ends
    }

    fn align_percent(&self, passed: usize) -> u64 {
        if self.pieces {
            return PIECE_PERCENT_MIN;
        }
        (ALIGN_PERCENT_MIN + ALIGN_PERCENT_STEP * passed as u64).min(ALIGN_PERCENT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [std::sync::Arc<crate::sstable::reader::Table>; 0] = [];

    fn aligned() -> Cutter {
        Cutter::aligned(1000, Tables::from(NONE))
    }

    #[test]
    fn an_output_ends_at_a_boundary_from_half_its_size_on_and_anywhere_at_double() {
        let mut cutter = aligned();
        assert!(!cutter.ends(1, true, Some(499)), "too small to end at a boundary");
        assert!(!cutter.ends(0, true, Some(1999)), "waits for a boundary");
        assert!(cutter.ends(0, true, Some(2000)), "but not for ever");
        assert!(cutter.ends(1, true, Some(500)), "at a boundary");
    }

    #[test]
    fn past_the_last_boundary_an_output_has_its_plain_size() {
        let mut cutter = aligned();
        assert!(!cutter.ends(0, false, Some(999)), "not full");
        assert!(cutter.ends(0, false, Some(1000)), "full");
    }

    #[test]
    fn the_more_boundaries_an_output_has_passed_the_fuller_it_must_be_to_end_at_one() {
        let mut cutter = aligned();
        assert!(!cutter.ends(4, true, Some(100)), "four small tables");
        assert!(!cutter.ends(1, true, Some(699)), "70 hundredths needed after four");
        assert!(cutter.ends(1, true, Some(750)), "75 after five");
    }

    #[test]
    fn an_output_never_overlaps_more_tables_below_than_allowed() {
        let mut cutter = aligned();
        assert!(!cutter.ends(GRANDPARENTS_MAX - 1, true, Some(1)), "one more may follow");
        assert!(cutter.ends(1, true, Some(1)), "however small");
        assert!(!cutter.ends(1, true, Some(1)), "the next one counts anew");
        assert!(!cutter.ends(GRANDPARENTS_MAX, true, None), "without an output nothing is counted");
        assert!(!cutter.ends(1, true, Some(1)), "its first");
    }

    #[test]
    fn pieces_of_level_0_end_at_boundaries_early_and_never_grow_beyond_their_size() {
        let mut cutter = Cutter::pieces(1000, Tables::from(NONE));
        assert!(!cutter.ends(1, true, Some(119)), "too small for a file of its own");
        assert!(cutter.ends(1, true, Some(120)), "a piece");
        assert!(cutter.ends(0, true, Some(1000)), "does not wait");
    }
}
