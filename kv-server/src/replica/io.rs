//! What the machines of a replica say to each other and to their shell: owned values, plain data.
//!
//! ```text
//!            inputs                              outputs
//!  peers, clients, timer ──► ┌───────────┐ ──► envelopes, answers, reads that may be served
//!                  LogDone ──► │ Consensus │ ──► LogJob   ──► LogWriter ──► LogDone
//!                ApplyDone ──► │           │ ──► ApplyJob ──► Applier   ──► ApplyDone, answers
//!                FetchDone ──► └───────────┘ ──► FetchJob ──► LogReader ──► FetchDone
//! ```
//!
//! `W` names a caller who waits: a one-shot channel in the server, a token in the simulation. The
//! machines carry it and never look inside.
//!
//! Order: log jobs and apply jobs are each done in the order they came out, by one owner. Fetches and
//! messages may be done in any order, late, or (messages) not at all.

use std::sync::Arc;

use bytes::Bytes;
use raft_core::{
    Entry, Envelope, FatalError, FetchFor, FetchId, LogIndex, NodeId, PersistSeq, RoleChange,
    WriteOp,
};
use raft_rpc::{Response, WireError};

/// What a caller is told.
pub type Answer = Result<Response, WireError>;

/// A write on its way into the log.
#[derive(Debug)]
pub struct Proposal<W> {
    /// The command as [`command::encode`](crate::state_machine::command::encode) made it, on this
    /// node or on the one that handed it on.
    pub command: Bytes,
    /// Answer with what was there before. Not part of the command: it changes nothing.
    pub return_previous: bool,
    /// Who waits for the answer.
    pub waiter: W,
}

/// Everything [`Consensus`](crate::replica::Consensus) learns.
#[derive(Debug)]
pub enum ConsensusInput<W> {
    /// A message from a peer, already checked to come from who it says.
    Message(Envelope),
    /// Writes, in order.
    Propose(Vec<Proposal<W>>),
    /// Linearizable reads: from which index on may they be served?
    Read(Vec<W>),
    /// Time has moved. Drain the other inputs first (RAFT B84).
    Timer,
    /// From [`LogWriter`](crate::raft_log::LogWriter).
    LogDone(LogDone),
    /// From [`Applier`](crate::state_machine::Applier).
    ApplyDone(ApplyDone),
    /// From [`LogReader`](crate::raft_log::LogReader).
    Fetched(FetchDone),
    /// The connection to a peer broke, or its queue was full and messages to it were dropped.
    PeerUnreachable(NodeId),
}

/// Everything [`Consensus`](crate::replica::Consensus) wants done. Reused between calls: the shell drains it.
#[derive(Debug)]
pub struct Outputs<W> {
    /// Send these; legal at once, in any order; may be dropped.
    pub send: Vec<Envelope>,
    /// For the log writer, in order. Hand over all of them at once: they share one sync.
    pub log: Vec<LogJob>,
    /// For the applier, in order.
    pub apply: Vec<ApplyJob<W>>,
    /// For the log reader.
    pub fetch: Vec<FetchJob>,
    /// Reads whose index is known.
    pub reads_ready: Vec<ReadsReady<W>>,
    /// Callers who get no further: overload, no leader, lost leadership.
    pub answers: Vec<(W, Answer)>,
    /// Changes of role, term or known leader, in order.
    pub events: Vec<RoleChange>,
    /// The node has to stop. Nothing comes out after this.
    pub fatal: Option<ReplicaFailure>,
}

impl<W> Outputs<W> {
    /// Nothing to do.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            send: Vec::new(),
            log: Vec::new(),
            apply: Vec::new(),
            fetch: Vec::new(),
            reads_ready: Vec::new(),
            answers: Vec::new(),
            events: Vec::new(),
            fatal: None,
        }
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.send.is_empty()
            && self.log.is_empty()
            && self.apply.is_empty()
            && self.fetch.is_empty()
            && self.reads_ready.is_empty()
            && self.answers.is_empty()
            && self.events.is_empty()
            && self.fatal.is_none()
    }
}

impl<W> Default for Outputs<W> {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads that may be served by [`StateReader`](crate::state_machine::StateReader) as soon as `index` is applied here.
#[derive(Debug)]
pub struct ReadsReady<W> {
    /// The read index; compare with [`Applied::index`].
    pub index: LogIndex,
    /// Who waits.
    pub waiters: Vec<W>,
}

/// One durable unit of the log.
#[derive(Clone, Debug)]
pub struct LogJob(
    /// What to make durable.
    pub WriteOp,
);

/// What became of a run of [`LogJob`]s.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogDone {
    /// Everything up to here is durable.
    Persisted {
        /// The last of them.
        upto: PersistSeq,
    },
    /// A write or a sync failed; nothing is known of the bytes. Never retried: the node stops.
    Failed {
        /// What failed: operation, file and reason.
        reason: String,
    },
}

/// Work of the applier.
#[derive(Debug)]
pub enum ApplyJob<W> {
    /// Apply these and answer who waits for them.
    Entries {
        /// Committed, durable here, consecutive.
        entries: Arc<[Entry]>,
        /// Who waits for which, by rising index.
        waiters: Vec<ApplyWaiter<W>>,
    },
    /// Bring everything applied into tables, so that less of the log is replayed at the next start.
    Flush,
}

/// Who waits for an entry.
#[derive(Debug)]
pub struct ApplyWaiter<W> {
    /// The entry's index; its term was compared.
    pub index: LogIndex,
    /// Answer with what was there before.
    pub return_previous: bool,
    /// Who waits.
    pub waiter: W,
}

/// What became of an [`ApplyJob`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApplyDone {
    /// It is applied, and visible to readers.
    Applied(Applied),
    /// The state machine cannot go on; the node stops. Callers of the job got
    /// [`WireError::Storage`] (effect unknown).
    Failed {
        /// What failed.
        reason: String,
    },
}

/// The state machine in numbers, after a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// Everything up to here is applied and visible.
    pub index: LogIndex,
    /// Everything up to here is in tables: a restart replays the log from the next index on.
    pub durable: LogIndex,
    /// The store's revision.
    pub revision: u64,
    /// The hash over everything applied; equal on all nodes at equal `index`.
    pub state_hash: u64,
    /// Cluster time in milliseconds (DESIGN 10.4).
    pub cluster_time_ms: u64,
    /// Open sessions.
    pub sessions: u64,
}

/// Old entries to load, away from the log and consensus threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchJob {
    /// Names the request.
    pub id: FetchId,
    /// Whom they are for.
    pub purpose: FetchFor,
    /// First index.
    pub lo: LogIndex,
    /// Last index.
    pub hi: LogIndex,
    /// Limit on the sum of the bodies, in bytes; at least one entry is loaded.
    pub max_bytes: usize,
}

/// What became of a [`FetchJob`].
#[derive(Clone, Debug)]
pub struct FetchDone {
    /// From the job.
    pub id: FetchId,
    /// From the job.
    pub purpose: FetchFor,
    /// Consecutive entries from the index asked for, at least one.
    pub result: Result<Arc<[Entry]>, FetchError>,
}

/// Why entries could not be loaded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FetchError {
    /// They are not in the log now; asking again later may succeed.
    #[error("the entries are not in the log")]
    Unavailable,
    /// The log cannot be read: its file, the offset and the reason. The node stops.
    #[error("{reason}")]
    Storage {
        /// What failed.
        reason: String,
    },
}

/// Why the node has to stop.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplicaFailure {
    /// The log could not be written or synced (RAFT B18).
    #[error("the log could not be written: {reason}")]
    Log {
        /// What failed.
        reason: String,
    },
    /// The log could not be read.
    #[error("the log could not be read: {reason}")]
    Fetch {
        /// What failed.
        reason: String,
    },
    /// The state machine could not go on.
    #[error("the state machine cannot go on: {reason}")]
    Apply {
        /// What failed.
        reason: String,
    },
    /// The node was removed from the cluster, for good.
    #[error(
        "this node was removed from the cluster by the entry at log index {at}: start a new node with a new id and an empty directory instead"
    )]
    Removed {
        /// Where the membership without it stands in the log.
        at: LogIndex,
    },
    /// Consensus saw what cannot be.
    #[error("consensus cannot go on: {0}")]
    Consensus(#[from] FatalError),
}
