//! Bounds on user keys, shared by all sources of one iterator.

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

/// Which user keys an iterator is about.
#[derive(Debug)]
pub(crate) struct Bounds {
    pub(crate) lower: Bound<Vec<u8>>,
    pub(crate) upper: Bound<Vec<u8>>,
}

/// `None`: all keys.
pub(crate) type SharedBounds = Option<Arc<Bounds>>;

impl Bounds {
    pub(crate) fn shared(lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> SharedBounds {
        if (lower, upper) == (Bound::Unbounded, Bound::Unbounded) {
            return None;
        }
        Some(Arc::new(Self { lower: lower.map(<[u8]>::to_vec), upper: upper.map(<[u8]>::to_vec) }))
    }

    pub(crate) fn below_upper(&self, key: &[u8]) -> bool {
        self.is_below_upper(|upper| key.cmp(upper))
    }

    /// As [`Bounds::below_upper`], of what compares to a key like this.
    pub(crate) fn is_below_upper(&self, compare: impl FnOnce(&[u8]) -> Ordering) -> bool {
        match &self.upper {
            Bound::Unbounded => true,
            Bound::Included(upper) => compare(upper).is_le(),
            Bound::Excluded(upper) => compare(upper).is_lt(),
        }
    }

    pub(crate) fn above_lower(&self, key: &[u8]) -> bool {
        self.is_above_lower(|lower| key.cmp(lower))
    }

    /// As [`Bounds::above_lower`], of what compares to a key like this.
    pub(crate) fn is_above_lower(&self, compare: impl FnOnce(&[u8]) -> Ordering) -> bool {
        match &self.lower {
            Bound::Unbounded => true,
            Bound::Included(lower) => compare(lower).is_ge(),
            Bound::Excluded(lower) => compare(lower).is_gt(),
        }
    }
}
