//! What a node has on its disk, what is on the way there, and what waits for its state machine.
//!
//! Logs and states are whole vectors from index 1, also after their beginning was cut off or came with a
//! snapshot: so everything can be compared with everything. What the core may see of them begins after
//! [`Disk::base`].

use std::sync::Arc;

use raft_core::{
    Ballot, Entry, FetchId, LogIndex, LogPos, NodeId, PersistSeq, Quarantine, SnapshotMeta, WriteOp,
};

use super::at;

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) ballot: Ballot,
    /// The log begins after this.
    pub(crate) base: LogPos,
    pub(crate) log: Vec<Entry>,
    pub(crate) commit_hint: LogIndex,
    pub(crate) quarantine: Option<Quarantine>,
}

impl Disk {
    pub(super) fn write(&mut self, op: &WriteOp) {
        if let Some(ballot) = op.ballot {
            self.ballot = ballot;
        }
        if let Some(from) = op.truncate_from {
            assert!(
                from > self.base.index,
                "{from} is cut off, the log begins after {:?}",
                self.base
            );
            self.log.truncate(at(from) - 1);
        }
        self.log.extend(op.append.iter().cloned());
        self.commit_hint = self.commit_hint.max(op.commit_hint);
    }

    pub(super) fn install(
        &mut self,
        ballot: Option<Ballot>,
        meta: &SnapshotMeta,
        staged: Vec<Entry>,
    ) {
        self.ballot = ballot.unwrap_or(self.ballot);
        assert!(meta.pos.term <= self.ballot.term, "{meta:?} is of a term after {:?}", self.ballot);
        self.base = meta.pos;
        self.log = staged;
        self.commit_hint = meta.pos.index;
    }
}

/// A unit of the durable stream.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    Unit(WriteOp),
    Install { seq: PersistSeq, ballot: Option<Ballot>, meta: SnapshotMeta },
    Cut(LogPos),
    Quarantine { seq: PersistSeq, quarantine: Option<Quarantine> },
}

impl Write {
    pub(crate) const fn seq(&self) -> Option<PersistSeq> {
        match self {
            Self::Unit(op) => Some(op.seq),
            Self::Install { seq, .. } | Self::Quarantine { seq, .. } => Some(*seq),
            Self::Cut(_) => None,
        }
    }
}

/// What the state machine has to do next.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    Batch(Arc<[Entry]>),
    Adopt(LogPos),
}

/// A snapshot on its way.
#[derive(Clone, Debug)]
pub(crate) struct Fetching {
    pub(crate) id: FetchId,
    pub(crate) from: NodeId,
    pub(crate) at_least: LogIndex,
    /// What the other side has, once it has said.
    pub(crate) meta: Option<(SnapshotMeta, Vec<Entry>)>,
}
