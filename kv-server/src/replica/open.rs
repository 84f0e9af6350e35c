//! [`open`]: from a directory to running machines.
//!
//! ```text
//! DIR/LOCK        held while the process lives
//! DIR/IDENTITY    whose directory it is; fsynced before anything else is written
//! DIR/PEERS       the peers' pinned storage ids
//! DIR/raft-log/   the replicated log; `log` is free for what a process writes about itself
//! DIR/store/      the engine
//! ```
//!
//! 1. Lock, then claim the identity.
//! 2. Open log and engine, each bound to the storage id, and compare: log base ≤ engine position ≤ last
//!    log index, commit hint ≤ last log index (DESIGN 10.7). Each mismatch refuses by name.
//! 3. Replay (engine position, commit hint] into the state machine.
//! 4. Start consensus with commit = applied = max(commit hint, engine position).
//!
//! A crash anywhere in here, and a second start, finds the same state: recovery writes only what is not
//! there yet.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use lsm_store::{
    Executor, Options, Store,
    vfs::{Vfs, VfsLock, create_dir_durable},
};
use raft_core::{LogIndex, LogPos, Micros, Raft, Recovered, StartError, codec};

use crate::{
    identity::{DirectoryState, Identity, IdentityError, boot_seed},
    raft_log::{self, LogOptions, LogState, OpenedLog},
    replica::{
        Applier, Consensus, FetchError, LogReader, LogWriter, PeerPins, ReplicaConfig, StateReader,
        consensus::ConsensusParts,
    },
    small_file::SmallFileError,
    state_machine::{self, ApplyError},
};

const LOCK_FILE: &str = "LOCK";
const LOG_DIR: &str = "raft-log";
const STORE_DIR: &str = "store";

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
    /// The engine or the log does not open: damage names file and offset.
    #[error(transparent)]
    Storage(#[from] lsm_store::Error),
    /// The log cannot be read back.
    #[error("the log cannot be replayed: {0}")]
    Replay(#[from] FetchError),
    /// The state machine cannot start with what the engine and the log hold.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Log, engine and settings do not fit together.
    #[error(transparent)]
    Consensus(#[from] StartError),
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
    let node_id = config.node_id;
    let lock = lock_directory(&*vfs, data_dir)?;
    refuse_unclaimed_data(&*vfs, data_dir)?;
    let mut identity = Identity::claim(&*vfs, data_dir, config.cluster_id, node_id, seed)?;
    let peer_pins = PeerPins::open(Arc::clone(&vfs), data_dir)?;
    let formatted = identity.state == DirectoryState::Formatting;

    let log_options = LogOptions {
        store_id: identity.store_id(LOG_DIR),
        segment_bytes: config.storage.log_segment_bytes,
        epoch_seed: boot_seed(seed, node_id, "segment epochs"),
        bootstrap: formatted.then(|| config.initial_membership.clone()),
    };
    let opened = raft_log::open(Arc::clone(&vfs), &data_dir.join(LOG_DIR), log_options, lock)?;
    let Some(log) = opened else {
        return Err(IdentityError::LogLost { dir: data_dir.to_owned() }.into());
    };
    let store_options = Options {
        uid_seed: boot_seed(seed, node_id, "table uids"),
        memtable_bytes: config.storage.memtable_bytes,
        cache_bytes: config.storage.block_cache_bytes,
        // A replica that cannot read all of its state cannot apply commands to it.
        refuse_damaged: true,
        ..Options::new(identity.store_id(STORE_DIR), state_machine::partitions())
    };
    let store = Store::open(Arc::clone(&vfs), &data_dir.join(STORE_DIR), store_options, executor)?;
    let durable = LogIndex(store.durable_position().index);
    check_fit(&log.state, durable)?;

    let mut applier = Applier::open(node_id.get(), store, &config.limits)?;
    let replayed_bytes = replay(&log, &mut applier, config.storage.replay_chunk_bytes)?;
    if formatted {
        identity.set_ready(&*vfs, data_dir)?;
    }

    let OpenedLog { writer, reader, state, cluster_time_ms, torn_tail } = log;
    let applied = applier.applied();
    let recovered = Recovered {
        ballot: state.ballot,
        base: state.base,
        terms: state.terms,
        last: state.last,
        commit_hint: state.commit_hint,
        applied: applied.index,
        unapplied_bytes: bytes_above(&reader, applied.index, state.last.index, config)?,
        // The log is not cut, so nobody asks.
        log_bytes: 0,
        // Damage to the log refuses the start.
        quarantine: None,
        memberships: state.memberships.clone(),
    };
    let raft_seed = boot_seed(seed, node_id, "election timeouts");
    let raft = Raft::new(node_id, config.raft.clone(), recovered, raft_seed, now)?;
    let membership = match state.memberships.last() {
        Some((_index, membership)) => Arc::clone(membership),
        None => return Err(StartError::NoMembership.into()),
    };
    let report = StartReport {
        formatted,
        last: state.last,
        durable,
        replayed: applied.index.0 - durable.0,
        torn_tail,
    };
    let consensus = Consensus::new(
        ConsensusParts {
            node_id,
            cluster_id: identity.cluster_id,
            raft,
            membership,
            limits: config.limits.clone(),
            storage: config.storage.clone(),
            applied,
            cluster_time_ms: cluster_time_ms.max(applied.cluster_time_ms),
            replayed_bytes,
        },
        now,
    );
    Ok(Parts {
        consensus,
        log_writer: writer,
        state_reader: applier.reader(),
        applier,
        log_reader: reader,
        peer_pins,
        identity,
        report,
    })
}

fn lock_directory(vfs: &dyn Vfs, dir: &Path) -> Result<Arc<dyn VfsLock>, OpenError> {
    let failed =
        |operation| move |source| OpenError::Directory { operation, dir: dir.to_owned(), source };
    create_dir_durable(vfs, dir).map_err(failed("create"))?;
    match vfs.lock(&dir.join(LOCK_FILE), b"kv-server\n") {
        Ok(lock) => Ok(lock.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(OpenError::InUse { dir: dir.to_owned() })
        }
        Err(error) => Err(failed("lock")(error)),
    }
}

/// A directory with data but without `IDENTITY` has lost it: the file is older than the data.
fn refuse_unclaimed_data(vfs: &dyn Vfs, dir: &Path) -> Result<(), OpenError> {
    let exists = |name: &str| {
        vfs.exists(&dir.join(name)).map_err(|source| OpenError::Directory {
            operation: "look into",
            dir: dir.to_owned(),
            source,
        })
    };
    if exists(crate::identity::IDENTITY_FILE)? {
        return Ok(());
    }
    for (name, held) in [(LOG_DIR, "a log"), (STORE_DIR, "tables")] {
        if exists(name)? {
            return Err(IdentityError::Missing { dir: dir.to_owned(), held }.into());
        }
    }
    Ok(())
}

/// Log and engine have to belong together before anything is replayed.
fn check_fit(log: &LogState, durable: LogIndex) -> Result<(), StartError> {
    if durable > log.last.index {
        return Err(StartError::AppliedBeyondLog { applied: durable, last: log.last });
    }
    if durable < log.base.index {
        return Err(StartError::AppliedBelowLog { applied: durable, base: log.base });
    }
    if log.commit_hint > log.last.index {
        return Err(StartError::CommitBeyondLog { hint: log.commit_hint, last: log.last });
    }
    Ok(())
}

/// Applies what is committed but not in the engine. Returns its bytes.
fn replay(log: &OpenedLog, applier: &mut Applier, chunk_bytes: usize) -> Result<u64, OpenError> {
    let mut bytes = 0;
    let mut next = applier.applied().index.next();
    while next <= log.state.commit_hint {
        let entries = log.reader.fetch(next, log.state.commit_hint, chunk_bytes)?;
        bytes += entries.iter().map(|entry| codec::encoded_len(entry) as u64).sum::<u64>();
        applier.apply::<()>(&entries, &[])?;
        next = applier.applied().index.next();
    }
    Ok(bytes)
}

/// The encoded bytes of the entries above `applied`.
fn bytes_above(
    reader: &LogReader,
    applied: LogIndex,
    last: LogIndex,
    config: &ReplicaConfig,
) -> Result<usize, OpenError> {
    let mut bytes = 0;
    let mut next = applied.next();
    while next <= last {
        let entries = reader.fetch(next, last, config.storage.replay_chunk_bytes)?;
        for entry in &entries {
            bytes += codec::encoded_len(entry);
            next = entry.pos.index.next();
        }
    }
    Ok(bytes)
}
