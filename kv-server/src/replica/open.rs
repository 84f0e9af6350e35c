//! [`open`]: from a directory to running machines.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use lsm_store::{Executor, vfs::Vfs};
use raft_core::{LogIndex, LogPos, Micros};

use crate::{
    identity::{Identity, IdentityError},
    replica::{Applier, Consensus, LogReader, LogWriter, PeerPins, ReplicaConfig, StateReader},
    small_file::SmallFileError,
};

/// The machines of one replica, and what the shell needs beside them.
#[derive(Debug)]
pub struct Parts<W> {
    /// Consensus and the waiting callers.
    pub consensus: Consensus<W>,
    /// Appends to the log and syncs it.
    pub log_writer: LogWriter,
    /// Applies committed entries.
    pub applier: Applier,
    /// Loads old entries; clone it for more than one reader.
    pub log_reader: LogReader,
    /// Reads the state; clone it freely.
    pub state_reader: StateReader,
    /// The peers' pinned storage ids.
    pub peer_pins: PeerPins,
    /// Who this directory belongs to.
    pub identity: Identity,
    /// What the start found.
    pub report: StartReport,
}

/// What a start found on disk; one line in the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StartReport {
    /// Whether the directory was formatted by this start.
    pub formatted: bool,
    /// The last position in the log.
    pub last: LogPos,
    /// What the engine held in tables.
    pub durable: LogIndex,
    /// Entries applied from the log before the start was complete.
    pub replayed: u64,
    /// Where the last record of the log was incomplete and cut off, if it was: file, offset and bytes.
    pub torn_tail: Option<String>,
}

/// Why a replica does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made or locked.
    #[error("cannot {operation} data directory {dir}: {source}")]
    Directory {
        /// What was tried.
        operation: &'static str,
        /// The directory.
        dir: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Another process uses the directory.
    #[error("data directory {dir} is in use by another process: stop it first")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory is not this node's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The pinned peers cannot be read.
    #[error(transparent)]
    Peers(#[from] SmallFileError),
    /// The engine or the journal does not open, or what they hold does not fit together.
    #[error(transparent)]
    Storage(#[from] lsm_store::Error),
    /// Log and settings do not fit together.
    #[error(transparent)]
    Consensus(#[from] raft_core::StartError),
}

/// Opens the replica in `data_dir`, formatting an empty directory.
///
/// Blocks on the disk: it reads the whole log once and applies what is committed but not in tables.
/// `seed` decides election timeouts and new storage ids: draw it from the operating system, anew at each
/// start. `now` is the clock of all later calls.
///
/// # Errors
/// [`OpenError`]: every reason not to start, by name.
pub fn open<W>(
    vfs: Arc<dyn Vfs>,
    data_dir: &Path,
    config: &ReplicaConfig,
    executor: Executor,
    seed: u64,
    now: Micros,
) -> Result<Parts<W>, OpenError> {
    todo!("{vfs:?} {data_dir:?} {config:?} {executor:?} {seed} {now:?}")
}
