//! Where items that follow each other end, in as few bytes an item as the last end needs: an index in memory has
//! one for each data block of its table.

#![deny(clippy::indexing_slicing)]

use std::ops::Range;

/// See the module.
#[derive(Debug)]
pub(crate) enum Ends {
    Two(Box<[u16]>),
    Four(Box<[u32]>),
    Eight(Box<[u64]>),
}

impl Default for Ends {
    fn default() -> Self {
        Self::Two(Box::default())
    }
}

impl Ends {
    /// Of ends that do not fall.
    pub(crate) fn new(ends: &[u64]) -> Self {
        let last = ends.last().copied().unwrap_or(0);
        // Nothing is cut off: no end is above the last.
        #[expect(clippy::cast_possible_truncation, reason = "just compared")]
        if last <= u64::from(u16::MAX) {
            Self::Two(ends.iter().map(|end| *end as u16).collect())
        } else if last <= u64::from(u32::MAX) {
            Self::Four(ends.iter().map(|end| *end as u32).collect())
        } else {
            Self::Eight(ends.into())
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Two(ends) => ends.len(),
            Self::Four(ends) => ends.len(),
            Self::Eight(ends) => ends.len(),
        }
    }

    /// Bytes of memory behind this.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Two(ends) => size_of_val(&**ends),
            Self::Four(ends) => size_of_val(&**ends),
            Self::Eight(ends) => size_of_val(&**ends),
        }
    }

    #[inline]
    fn end(&self, at: usize) -> Option<u64> {
        match self {
            Self::Two(ends) => ends.get(at).copied().map(u64::from),
            Self::Four(ends) => ends.get(at).copied().map(u64::from),
            Self::Eight(ends) => ends.get(at).copied(),
        }
    }

    /// Where an item lies: from the end of the one before it, or 0, to its own. `None` if there are not so many.
    #[inline]
    pub(crate) fn range(&self, at: usize) -> Option<Range<u64>> {
        let start = at.checked_sub(1).and_then(|before| self.end(before)).unwrap_or(0);
        Some(start..self.end(at)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_same_in_every_width() {
        for (last, bytes) in [(65_535, 2), (65_536, 4), (0xFFFF_FFFF, 4), (0x1_0000_0000, 8)] {
            let ends = Ends::new(&[0, 7, 7, last]);
            assert_eq!(ends.weight(), 4 * bytes, "for an end of {last}");
            assert_eq!(ends.len(), 4);
            let ranges: Vec<_> = (0..5).map(|at| ends.range(at)).collect();
            assert_eq!(ranges, [Some(0..0), Some(0..7), Some(7..7), Some(7..last), None]);
        }
        assert_eq!(Ends::new(&[]).range(0), None, "of nothing");
    }
}
