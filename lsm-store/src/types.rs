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
