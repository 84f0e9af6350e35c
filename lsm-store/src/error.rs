//! Everything that can go wrong in this crate, as one enum.
//!
//! Rules: an error says what was wrong, where (file and offset) and what to do; a failed read never
//! looks like absence; a torn tail is not an error and therefore not here.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::coding::DecodeError;

/// The result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "write", "sync", "create", …
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Bytes on disk are not what was written there. The data is not used; nothing was changed.
    #[error("{} is damaged at byte {offset}: {detail}", file.display())]
    Corruption {
        /// The damaged file.
        file: PathBuf,
        /// Where in the file the damage was noticed.
        offset: u64,
        /// What was expected and what was found.
        detail: String,
    },
    /// An earlier write or sync failed, so what is on disk is unknown until the store is opened again.
    #[error(
        "the store stopped accepting writes after a failure ({reason}); close it and open it again"
    )]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// The file was written by another version of this crate.
    #[error("{} has format version {found}; this build reads version {supported}", file.display())]
    UnknownVersion {
        /// The file.
        file: PathBuf,
        /// The version in its header.
        found: u32,
        /// The newest version understood here.
        supported: u32,
    },
    /// Another store has this directory open.
    #[error("{} is locked: another process has this directory open", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The directory belongs to another store than the one asked for.
    #[error("{} belongs to store {found:032x}, not to {expected:032x}", file.display())]
    WrongStore {
        /// The file that says so.
        file: PathBuf,
        /// The store asked for.
        expected: u128,
        /// The store in the file.
        found: u128,
    },
    /// The history asked for has been given up.
    #[error(
        "sequence number {asked} is below the retention floor {floor}: its history was compacted"
    )]
    Compacted {
        /// The sequence number asked for.
        asked: u64,
        /// The oldest one that can be read.
        floor: u64,
    },
    /// The sequence number asked for does not exist yet.
    #[error("sequence number {asked} is above the newest visible one, {visible}")]
    FutureSequence {
        /// The sequence number asked for.
        asked: u64,
        /// The newest one that can be read.
        visible: u64,
    },
    /// Something is larger than its limit.
    #[error("{what} of {size} bytes is larger than the limit of {limit} bytes")]
    TooLarge {
        /// What is too large: "key", "value", "batch", "record", …
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The write or run was applied before: its number is not above the last one. Nothing was changed;
    /// a caller that replays its log skips it.
    #[error("{what} {asked} was applied before: the last one is {last}")]
    AlreadyApplied {
        /// What carries the number: "position", "sequence number".
        what: &'static str,
        /// The number given.
        asked: u64,
        /// The last number applied.
        last: u64,
    },
    /// Background work did not catch up in time; nothing was changed, so the call may be repeated.
    #[error(
        "waited {waited_ms} ms for background work: {frozen} memtables wait for their flush, level 0 is {l0_runs} deep{last}"
    )]
    Stalled {
        /// How long the call waited, in milliseconds.
        waited_ms: u64,
        /// Frozen memtable sets that wait for their flush.
        frozen: usize,
        /// How many tables of level 0 overlap at one key, at the most.
        l0_runs: usize,
        /// The last failure of a background job, as "; last failure: …", or nothing.
        last: String,
    },
    /// The device is nearly full. Nothing was changed; the call may be repeated, and succeeds once there is
    /// room again.
    #[error(
        "no room for writes: {free} bytes are free, {needed} must be; free some space and repeat"
    )]
    NoSpace {
        /// Free space, in bytes.
        free: u64,
        /// How much must be free for writes to be accepted, in bytes.
        needed: u64,
    },
    /// The caller asked for something that makes no sense; nothing was changed.
    #[error("{0}")]
    InvalidArgument(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// Whether a call that takes room was refused because the disk, or what may be used of it, is full. A sync
    /// that fails is never only that.
    pub(crate) fn is_full_disk(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let Self::Io { op, source, .. } = self else { return false };
        matches!(*op, "create" | "write") && matches!(source.kind(), StorageFull | QuotaExceeded)
    }

    /// An I/O error with its operation and path.
    pub fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { op, path: path.to_path_buf(), source }
    }

    /// Damage in a file.
    pub fn corruption(file: &Path, offset: u64, detail: impl Into<String>) -> Self {
        Self::Corruption { file: file.to_path_buf(), offset, detail: detail.into() }
    }

    /// Damage found while decoding bytes that begin at `base` in `file`.
    pub fn decode(file: &Path, base: u64, source: DecodeError) -> Self {
        Self::corruption(file, base.saturating_add(source.offset), source.what)
    }

    /// The refusal that follows `first` for as long as the store stays open.
    pub fn poisoned(first: &Self) -> Self {
        Self::Poisoned { reason: first.to_string() }
    }
}

/// Adds operation and path to an [`io::Result`].
pub(crate) trait IoContext<T> {
    /// Names the operation and the path.
    fn context(self, op: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, op: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::io(op, path, source))
    }
}
