//! Bounds on user keys, shared by all sources of one iterator.

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
        match &self.upper {
            Bound::Unbounded => true,
            Bound::Included(upper) => key <= upper.as_slice(),
            Bound::Excluded(upper) => key < upper.as_slice(),
        }
    }

    pub(crate) fn above_lower(&self, key: &[u8]) -> bool {
        match &self.lower {
            Bound::Unbounded => true,
            Bound::Included(lower) => key >= lower.as_slice(),
            Bound::Excluded(lower) => key > lower.as_slice(),
        }
    }
}
