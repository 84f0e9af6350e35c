//! How many bytes of entries stand above the applied index.
//!
//! Entries leave memory before they are applied, so their sizes cannot be summed on demand. Instead
//! the running total is noted every so many bytes. Between two notes the answer is rounded up,
//! never down, so a limit holds exactly and is exact again when everything is applied. The count
//! is of the log, not of a term: a new leader inherits it.

use alloc::collections::VecDeque;

use crate::LogIndex;

/// The running total of bytes appended, noted at some indexes.
#[derive(Debug)]
pub(crate) struct Unapplied {
    /// An index and the total before it; rising in both.
    marks: VecDeque<(LogIndex, u64)>,
    /// The total of everything.
    total: u64,
    /// The total of what is known to be applied.
    applied: u64,
    /// Bytes between two marks.
    granule: u64,
}

impl Unapplied {
    /// `bytes` stand from `first` on; a mark is set every 1/64 of `limit`.
    pub(crate) fn new(first: LogIndex, bytes: usize, limit: usize) -> Self {
        let mut unapplied = Self {
            marks: VecDeque::new(),
            total: 0,
            applied: 0,
            granule: (limit as u64 / 64).max(1),
        };
        if bytes > 0 {
            unapplied.appended(first, bytes);
        }
        unapplied
    }

    /// Entries of `bytes` were appended, the first at `first`.
    pub(crate) fn appended(&mut self, first: LogIndex, bytes: usize) {
        if self.marks.back().is_none_or(|&(_, before)| self.total - before >= self.granule) {
            self.marks.push_back((first, self.total));
        }
        self.total += bytes as u64;
    }

    /// The log now ends before `from`.
    pub(crate) fn truncated(&mut self, from: LogIndex, applied: LogIndex) {
        while let Some(&(first, before)) = self.marks.back()
            && first >= from
        {
            self.total = before;
            self.marks.pop_back();
        }
        self.forget_if_empty(applied, from.prev());
    }

    /// The log is empty.
    pub(crate) fn clear(&mut self) {
        self.marks.clear();
        self.applied = self.total;
    }

    /// Everything up to `upto` is applied; the log ends at `last`.
    pub(crate) fn applied(&mut self, upto: LogIndex, last: LogIndex) {
        while let Some(&(next, before)) = self.marks.get(1)
            && next <= upto.next()
        {
            self.applied = before;
            self.marks.pop_front();
        }
        self.forget_if_empty(upto, last);
    }

    /// Bytes above the applied index, rounded up.
    pub(crate) fn bytes(&self) -> usize {
        usize::try_from(self.total - self.applied).unwrap_or(usize::MAX)
    }

    fn forget_if_empty(&mut self, applied: LogIndex, last: LogIndex) {
        if applied >= last {
            self.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Unapplied;
    use crate::LogIndex;

    #[test]
    fn count_is_never_too_low_and_exact_when_all_is_applied() {
        let mut x = 0x1234_5678_9ABC_DEF1_u64;
        let mut draw = |n: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x % n
        };
        for _run in 0..500 {
            let mut sizes = alloc::vec::Vec::new();
            let mut applied = 0_usize;
            let mut count = Unapplied::new(LogIndex(1), 0, 6_400);
            for _step in 0..60 {
                match draw(4) {
                    0 | 1 => {
                        let size = usize::try_from(draw(90)).unwrap() + 1;
                        sizes.push(size);
                        count.appended(LogIndex(sizes.len() as u64), size);
                    }
                    2 if applied < sizes.len() => {
                        applied +=
                            usize::try_from(draw((sizes.len() - applied) as u64)).unwrap() + 1;
                        count.applied(LogIndex(applied as u64), LogIndex(sizes.len() as u64));
                    }
                    _ if applied < sizes.len() => {
                        let kept = applied
                            + usize::try_from(draw((sizes.len() - applied) as u64)).unwrap();
                        sizes.truncate(kept);
                        count.truncated(LogIndex(kept as u64 + 1), LogIndex(applied as u64));
                    }
                    _ => {}
                }
                let exact: usize = sizes[applied..].iter().sum();
                assert!(count.bytes() >= exact, "{} is below {exact}", count.bytes());
                if exact == 0 {
                    assert_eq!(count.bytes(), 0, "nothing is left but bytes are");
                }
            }
        }
    }
}
