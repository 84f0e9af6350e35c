//! The vocabulary of the engine: sequence numbers, partitions, positions, what a read finds.
//!
//! Plain data; no rule of the engine lives here except the limits of the values themselves.

use std::fmt;

use bytes::Bytes;

/// Longest user key in bytes.
pub const MAX_KEY_BYTES: usize = 64 * 1024;

/// Longest value in bytes.
pub const MAX_VALUE_BYTES: usize = 32 * 1024 * 1024;

/// Longest [`Position::extra`] in bytes.
pub const MAX_EXTRA_BYTES: usize = 256;

/// Most partitions a store has.
pub const MAX_PARTITIONS: usize = 64;

/// The number of a write within its partition, given by the caller, strictly rising, at most
/// [`SequenceNumber::MAX`]. Zero is reserved: it is before every write.
///
/// The engine never invents, zeroes or rewrites one, so that the same number means the same write on
/// every replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SequenceNumber(pub u64);

impl SequenceNumber {
    /// Before every write.
    pub const ZERO: Self = Self(0);
    /// The largest number a write may carry: 56 bits.
    pub const MAX: Self = Self((1 << 56) - 1);
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A key space of its own with its own sequence numbers. The number is the place in
/// [`Options::partitions`](crate::Options::partitions), from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PartitionId(pub u8);

impl PartitionId {
    pub(crate) const fn slot(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "partition {}", self.0)
    }
}

/// How far the caller's log has been applied: opaque to the engine but for its order, which is that
/// of `index`. A flush records it in the same manifest edit as its tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Rises with every run; 0 is before the first.
    pub index: u64,
    /// The term of the log entry at `index`; the engine only keeps it.
    pub term: u64,
    /// Whatever the caller must find again together with `index`, at most [`MAX_EXTRA_BYTES`].
    pub extra: Vec<u8>,
}

/// The number of a file of the store; never used twice, not even after a crash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileNumber(pub u64);

impl fmt::Display for FileNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One operation of a batch. The engine copies the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op<'a> {
    /// Sets `key` to `value`.
    Put {
        /// At most [`MAX_KEY_BYTES`]; may be empty.
        key: &'a [u8],
        /// At most [`MAX_VALUE_BYTES`]; may be empty.
        value: &'a [u8],
    },
    /// Removes `key`, whether or not it is there.
    Delete {
        /// At most [`MAX_KEY_BYTES`]; may be empty.
        key: &'a [u8],
    },
}

impl<'a> Op<'a> {
    /// The key the operation is about.
    #[must_use]
    pub const fn key(&self) -> &'a [u8] {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    /// Bytes of key and value.
    pub(crate) const fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

/// What a read found: the newest version at or below the sequence number read at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The value, a slice of the engine's own memory: a block or a memtable's chunk stays in memory as
    /// long as it is held, so copy what is kept for long.
    pub value: Bytes,
    /// The number of the write that set it.
    pub sequence: SequenceNumber,
}

/// A range of user keys of one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRange {
    /// Whose keys.
    pub partition: PartitionId,
    /// The first key of the range.
    pub start: Vec<u8>,
    /// The first key behind the range; `None`: all keys from `start` on.
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// Whether the range has this key.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && !self.is_below(key)
    }

    /// Whether the range ends before this key.
    pub(crate) fn is_below(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_some_and(|end| end.as_slice() <= key)
    }

    /// Whether the range and keys between these two, both included, have anything in common.
    pub(crate) fn overlaps(&self, smallest: &[u8], largest: &[u8]) -> bool {
        self.start.as_slice() <= largest && !self.is_below(smallest)
    }

    /// Whether all keys between these two, both included, are in the range.
    pub(crate) fn covers(&self, smallest: &[u8], largest: &[u8]) -> bool {
        self.start.as_slice() <= smallest && !self.is_below(largest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_include_their_start_and_not_their_end() {
        let range =
            KeyRange { partition: PartitionId(1), start: b"k".to_vec(), end: Some(b"m".to_vec()) };
        assert!(range.contains(b"k") && range.contains(b"l\xff"), "inside");
        assert!(!range.contains(b"m") && !range.contains(b"j"), "outside");
        assert!(range.overlaps(b"a", b"k") && range.overlaps(b"l", b"z"), "in common");
        assert!(!range.overlaps(b"a", b"j") && !range.overlaps(b"m", b"z"), "nothing in common");
        assert!(range.covers(b"k", b"l") && !range.covers(b"k", b"m") && !range.covers(b"j", b"l"));
    }
}
