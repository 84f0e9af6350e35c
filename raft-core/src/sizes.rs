//! How many bytes of the log stand above an index: what decides how much of it may be cut off.
//!
//! The running total is noted every so many bytes, so that the answer needs a few hundred numbers and not
//! one for each entry. Between two notes it is rounded up, by no more than the distance of the notes.

use alloc::collections::VecDeque;

use crate::LogIndex;

/// So many notes are made of what a node finds on its disk, of whose entries it knows only the sum.
const RECOVERED_MARKS: u64 = 64;

/// The running total of bytes in the log, noted at some indexes.
#[derive(Debug)]
pub(crate) struct Sizes {
    /// An index and the total before it; rising in both.
    marks: VecDeque<(LogIndex, u64)>,
    total: u64,
    /// Bytes between two marks.
    granule: u64,
}

impl Sizes {
    /// The entries after `base` up to `last` have `bytes` in sum, taken to be spread evenly.
    pub(crate) fn new(base: LogIndex, last: LogIndex, bytes: u64, granule: u64) -> Self {
        let entries = last.0 - base.0;
        let marks = RECOVERED_MARKS.min(entries);
        let part = |of: u64, mark: u64| {
            let part = u128::from(of) * u128::from(mark) / u128::from(marks);
            u64::try_from(part).unwrap_or(of)
        };
        let at = |mark| (LogIndex(base.0 + 1 + part(entries, mark)), part(bytes, mark));
        Self { marks: (0..marks).map(at).collect(), total: bytes, granule: granule.max(1) }
    }

    /// Entries of `bytes` were appended, the first at `first`.
    pub(crate) fn appended(&mut self, first: LogIndex, bytes: usize) {
        if self.marks.back().is_none_or(|&(_, before)| self.total - before >= self.granule) {
            self.marks.push_back((first, self.total));
        }
        self.total += bytes as u64;
    }

    /// The log now ends before `from`.
    pub(crate) fn truncated(&mut self, from: LogIndex) {
        while let Some(&(first, before)) = self.marks.back()
            && first >= from
        {
            self.total = before;
            self.marks.pop_back();
        }
    }

    /// The log now begins after `base`.
    pub(crate) fn cut(&mut self, base: LogIndex) {
        while self.marks.get(1).is_some_and(|&(next, _)| next <= base.next()) {
            self.marks.pop_front();
        }
    }

    /// The log is empty.
    pub(crate) fn clear(&mut self) {
        self.marks.clear();
        self.total = 0;
    }

    /// Bytes of the entries after `index`, rounded up.
    pub(crate) fn above(&self, index: LogIndex) -> u64 {
        let later = self.marks.partition_point(|&(first, _)| first <= index.next());
        let mark = self.marks.get(later.saturating_sub(1));
        mark.map_or(0, |&(_, before)| self.total - before)
    }

    /// The largest index noted that has at least `bytes` above it; 0 if the log has less.
    pub(crate) fn index_below(&self, bytes: u64) -> LogIndex {
        let enough = self.marks.partition_point(|&(_, before)| self.total - before >= bytes);
        let mark = enough.checked_sub(1).and_then(|at| self.marks.get(at));
        mark.map_or(LogIndex(0), |&(first, _)| first.prev())
    }
}

#[cfg(test)]
mod tests {
    use super::Sizes;
    use crate::LogIndex;

    #[test]
    fn bytes_above_an_index_are_never_too_few_and_too_many_by_a_granule_at_most() {
        let mut sizes = Sizes::new(LogIndex(0), LogIndex(0), 0, 100);
        for index in 1..=500 {
            sizes.appended(LogIndex(index), 30);
        }
        sizes.truncated(LogIndex(401));
        sizes.cut(LogIndex(50));
        for index in 50..400 {
            let (exact, above) = ((400 - index) * 30, sizes.above(LogIndex(index)));
            assert!((exact..=exact + 130).contains(&above), "{above} above {index}, not {exact}");
        }
        let at = sizes.index_below(3_000);
        assert!((296..=300).contains(&at.0), "{at} has 3,000 bytes above it");
        assert_eq!(sizes.index_below(1_000_000), LogIndex(0), "the log has less");
    }

    #[test]
    fn bytes_found_at_the_start_are_spread_over_the_entries() {
        let sizes = Sizes::new(LogIndex(1_000), LogIndex(2_000), 64_000, 100);
        assert_eq!(sizes.above(LogIndex(1_000)), 64_000);
        assert!((30_000..=34_000).contains(&sizes.above(LogIndex(1_500))));
        assert_eq!(Sizes::new(LogIndex(7), LogIndex(7), 0, 100).above(LogIndex(7)), 0);
    }
}
