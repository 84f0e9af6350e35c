//! What goes into the core and what comes out of it: [`Input`]s and [`Effect`]s, plain data.
//!
//! The driver's contract is in the crate's documentation.

use alloc::{sync::Arc, vec::Vec};

use bytes::Bytes;

use crate::{
    Ballot, ChangeError, Entry, Envelope, FetchId, LogIndex, LogPos, Membership, MembershipChange,
    NodeId, PersistSeq, Quarantine, SnapshotMeta, Term, Ticket,
};

/// Everything the core learns. Each is given to [`Raft::step`](crate::Raft::step) with the time.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message from a peer, already checked to come from who it says.
    Message(Envelope),
    /// Commands to append, in order; all are taken or none is.
    Propose {
        /// The caller's name for them.
        ticket: Ticket,
        /// The commands.
        commands: Vec<Bytes>,
    },
    /// From which index on may a linearizable read be served?
    Read {
        /// The caller's name for the question.
        ticket: Ticket,
    },
    /// Change the membership: at once into the log, if this node leads and nothing speaks against it.
    /// A joint membership is left by the core itself.
    ChangeMembership {
        /// The caller's name for it.
        ticket: Ticket,
        /// What shall become of which nodes.
        change: MembershipChange,
    },
    /// Hand leadership to another voter. Until that has happened or was given up, after one
    /// shortest election timeout, proposals and changes are refused.
    TransferLeader {
        /// The caller's name for it.
        ticket: Ticket,
        /// To whom; `None` lets the core choose whoever has most of the log.
        to: Option<NodeId>,
    },
    /// Time has moved; the core compares it with its own deadlines.
    Timer,
    /// Every [`WriteOp`] up to and including `upto` is durable.
    Persisted {
        /// The last of them.
        upto: PersistSeq,
    },
    /// A write or a sync failed. Never retried: the core halts.
    PersistFailed,
    /// The state machine holds everything up to `upto`.
    Applied {
        /// The last applied index.
        upto: LogIndex,
    },
    /// The state machine keeps everything up to `upto` over any crash, without the log. Applied already.
    StateDurable {
        /// The last index kept.
        upto: LogIndex,
    },
    /// The answer to [`Effect::FetchLog`].
    Fetched {
        /// From the request.
        id: FetchId,
        /// Consecutive entries from the index asked for: at least one, and perhaps fewer than asked.
        result: Result<Arc<[Entry]>, FetchFailed>,
    },
    /// Of the snapshot asked for by [`Effect::FetchSnapshot`] it is known where it stands. May be left out;
    /// it lets the leader cut its log up to there meanwhile.
    SnapshotProgress {
        /// From the request.
        id: FetchId,
        /// The last index it covers.
        at: LogIndex,
    },
    /// That snapshot is here as a whole: verified, synced, beside the live state and not yet part of it.
    /// [`Effect::InstallSnapshot`] or [`Effect::DiscardSnapshot`] says what becomes of it.
    SnapshotStaged {
        /// From the request.
        id: FetchId,
        /// What the one who made it says of it: [`Raft::snapshot_meta`](crate::Raft::snapshot_meta).
        meta: SnapshotMeta,
    },
    /// That snapshot cannot be had now: the connection broke, nothing came for too long, it was damaged. What
    /// came of it may be kept, to go on from there at the next request.
    SnapshotFailed {
        /// From the request.
        id: FetchId,
    },
    /// The connection to a peer broke, or its queue was full and messages to it were dropped.
    PeerUnreachable(NodeId),
    /// The connection that a peer's messages come over broke; to be given after all that came over it.
    /// A process that ends is seen so at once, long before its silence is. If it was the leader, a
    /// follower asks for votes in trial at once and refuses none until it hears of the leader again.
    /// Who still hears the leader refuses, so a single broken link changes nothing.
    PeerDisconnected(NodeId),
}

/// Entries asked for could not be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchFailed {
    /// They are no longer in the log, or not yet on disk, or the disk is busy; asking again later may succeed.
    Unavailable,
}

/// One durable unit. The order inside it is ballot, truncation, entries, commit hint; units are FIFO.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteOp {
    /// Its number in the stream.
    pub seq: PersistSeq,
    /// The new ballot, if it changed.
    pub ballot: Option<Ballot>,
    /// Remove this index and everything after it, first.
    pub truncate_from: Option<LogIndex>,
    /// Append these entries.
    pub append: Arc<[Entry]>,
    /// A hint for recovery: everything up to here is committed. Never above the last entry of the stream so far.
    pub commit_hint: LogIndex,
}

/// Why the core wants old entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchFor {
    /// To send them to this peer.
    Peer(NodeId),
    /// To apply them.
    Apply,
}

/// What the driver has to do. Effects come out of [`Raft::flush`](crate::Raft::flush) in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Make this durable, in order, then report [`Input::Persisted`].
    Persist(WriteOp),
    /// Send this; it is legal to send at once. It may be dropped.
    Send(Envelope),
    /// Apply these: committed, durable here, consecutive, in order. Then report [`Input::Applied`].
    Apply(Arc<[Entry]>),
    /// Load the entries `lo..=hi`, at most `max_bytes` of them but at least one.
    FetchLog {
        /// Names the request in [`Input::Fetched`].
        id: FetchId,
        /// Whom they are for.
        purpose: FetchFor,
        /// First index.
        lo: LogIndex,
        /// Last index.
        hi: LogIndex,
        /// Limit on the sum of the bodies' lengths, in bytes.
        max_bytes: usize,
    },
    /// Entries up to `upto` are needed no more, here and as far as is known by peers: the log may begin
    /// after any position up to there. In order with [`Effect::Persist`]; nothing is to be reported.
    CompactLog {
        /// The last position that may go.
        upto: LogPos,
    },
    /// Fetch a snapshot that covers at least `at_least` from the driver of node `from`, while everything else
    /// goes on: the most recent that it can make is best. A newer request replaces an older one. Report
    /// [`Input::SnapshotStaged`] or [`Input::SnapshotFailed`].
    FetchSnapshot {
        /// Names the request.
        id: FetchId,
        /// The leader who offers it.
        from: NodeId,
        /// It has to cover this.
        at_least: LogIndex,
    },
    /// The snapshot of request `id` is not wanted, or not any more. What has come of it may be removed.
    DiscardSnapshot {
        /// From the request.
        id: FetchId,
    },
    /// Make it durable that the log is empty and begins after `meta.pos`, with the membership of `meta`:
    /// one unit, in order with [`Effect::Persist`] and numbered with it, reported by [`Input::Persisted`].
    /// The staged snapshot stays where it is until [`Effect::AdoptSnapshot`]. Who finds at the start that
    /// the log begins after what the state machine holds adopts it then, before the core is started.
    InstallSnapshot {
        /// Its number in the stream.
        seq: PersistSeq,
        /// From the request.
        id: FetchId,
        /// The new ballot, if it changed; before the rest.
        ballot: Option<Ballot>,
        /// What the log begins with.
        meta: SnapshotMeta,
    },
    /// The state machine has to become that of the staged snapshot, in order with [`Effect::Apply`]. The
    /// log on disk begins after it already. Then report [`Input::Applied`].
    AdoptSnapshot {
        /// Where it stands.
        at: LogPos,
    },
    /// Make it durable that the node is in quarantine, or no longer is, in order with [`Effect::Persist`] and
    /// numbered with it, reported by [`Input::Persisted`]: the next start needs it as
    /// [`Recovered::quarantine`](crate::Recovered::quarantine).
    Quarantine {
        /// Its number in the stream.
        seq: PersistSeq,
        /// What is to be found at the next start.
        quarantine: Option<Quarantine>,
    },
    /// The read named by `ticket` may be served once `index` is applied.
    ReadReady {
        /// From [`Input::Read`].
        ticket: Ticket,
        /// The read index.
        index: LogIndex,
    },
    /// What became of a proposal, a read, a change or a transfer.
    Reply {
        /// From the input.
        ticket: Ticket,
        /// What became of it.
        outcome: Outcome,
    },
    /// The role, the term or the known leader changed.
    Role(RoleChange),
    /// This membership is in force now.
    MembershipEffective(Arc<Membership>),
    /// This node was removed from the cluster by the committed membership at `at`, for good: it
    /// votes for others if asked, but never stands for election. It may be stopped: everything it
    /// knows to be committed is applied, and nothing of this flush has to leave. Told once a boot.
    Removed {
        /// Where that membership stands in the log.
        at: LogIndex,
    },
    /// The node has to stop: a peer or the disk showed something that cannot be.
    Fatal(FatalError),
}

/// The effects of one or several calls of [`Raft::flush`](crate::Raft::flush), owned by the driver
/// and used again: draining keeps the memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Effects(Vec<Effect>);

impl Effects {
    /// No effects.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes them out in order.
    pub fn drain(&mut self) -> alloc::vec::Drain<'_, Effect> {
        self.0.drain(..)
    }

    /// Looks at them in order.
    pub fn iter(&self) -> core::slice::Iter<'_, Effect> {
        self.0.iter()
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        self.0.push(effect);
    }
}

impl IntoIterator for Effects {
    type Item = Effect;
    type IntoIter = alloc::vec::IntoIter<Effect>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Effects {
    type Item = &'a Effect;
    type IntoIter = core::slice::Iter<'a, Effect>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// What became of a proposal, a read, a change of the membership or a transfer.
///
/// Every ticket gets exactly one final outcome. Of a change or a transfer it is one of `Done`,
/// `Rejected` and `Unknown`. Of a read that is [`Effect::ReadReady`] or
/// `Rejected`. Of a proposal it is `Rejected`, or, after `Appended`, either `Unknown` or the
/// [`Effect::Apply`] that holds its last entry with the same term: a leader that loses its place
/// reports `Unknown` just for the tickets whose last entry it does not know to be committed, and
/// the committed ones are applied here whoever leads. An entry whose ticket got `Unknown` may still
/// come out of `Apply` later. A node that halts reports `Unknown` for every ticket not yet in an
/// `Apply`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// In the leader's log from `first` on, `count` entries; not yet committed.
    Appended {
        /// Position of the first entry.
        first: LogPos,
        /// How many.
        count: u32,
    },
    /// Not taken; nothing happened.
    Rejected(Reject),
    /// It was appended, then leadership was lost: it may still commit.
    Unknown,
    /// Of a change: the membership asked for is committed and in force, and no longer joint. Of a
    /// transfer: the other node was told to stand for election, and this one has given up its place
    /// since, mostly to that node's later term.
    Done,
}

/// Why a proposal, a read, a change or a transfer was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reject {
    /// This node does not lead.
    NotLeader {
        /// The leader it knows of.
        hint: Option<NodeId>,
    },
    /// Too much is waiting already.
    Overloaded,
    /// A proposal without a command.
    Empty,
    /// Leadership was lost, or no quorum answered in time, before a read could be confirmed.
    NoQuorum,
    /// The node has halted.
    Halted,
    /// Leadership is being handed over: ask again in a moment, perhaps there.
    Transferring {
        /// To whom.
        to: NodeId,
    },
    /// The membership cannot be changed so, or not now.
    Change(ChangeError),
    /// Leadership was not handed over.
    Transfer(TransferError),
}

/// Why leadership was not handed over. This node led before and after, unless its place was lost otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransferError {
    /// The node does not vote, so it cannot lead.
    #[error("node {0} is no voter")]
    NotVoter(NodeId),
    /// The node has not answered within the shortest election timeout.
    #[error("node {0} does not answer")]
    Silent(NodeId),
    /// No other voter has answered within the shortest election timeout.
    #[error("no other voter answers")]
    NoTarget,
    /// The node did not get the log, or did not win its election, within one shortest election timeout.
    #[error("node {0} did not take over in time")]
    TimedOut(NodeId),
    /// Leadership was lost before the node was told to take over.
    #[error("leadership was lost before it could be handed to node {0}")]
    Interrupted(NodeId),
}

/// A node's part in the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoleKind {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether an election would succeed.
    PreCandidate,
    /// Runs in an election.
    Candidate,
    /// Leads.
    Leader,
    /// Has stopped for good after a failed write.
    Halted,
}

/// The role, the term or the known leader after a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoleChange {
    /// The role now.
    pub role: RoleKind,
    /// The term now.
    pub term: Term,
    /// The leader of that term, if known.
    pub leader: Option<NodeId>,
}

/// Something that cannot be happened; continuing could lose data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FatalError {
    /// A write to the log failed.
    #[error("the log could not be written")]
    PersistFailed,
    /// A leader asked to overwrite an entry that is committed here.
    #[error(
        "leader {leader} of term {term} asks to overwrite index {index}, committed up to {commit}"
    )]
    CommittedConflict {
        /// Who asked.
        leader: NodeId,
        /// In which term.
        term: Term,
        /// The first index that differs.
        index: LogIndex,
        /// The commit index here.
        commit: LogIndex,
    },
    /// Two nodes lead in one term.
    #[error("nodes {one} and {other} both lead in term {term}")]
    TwoLeaders {
        /// The leader known.
        one: NodeId,
        /// The one who spoke as leader too.
        other: NodeId,
        /// The term.
        term: Term,
    },
    /// Entries loaded from the log are not those that were written.
    #[error("loading index {index} of the log gave the entry at index {} of term {}", found.index, found.term)]
    WrongEntryFetched {
        /// The index asked for.
        index: LogIndex,
        /// The position of the entry that came.
        found: LogPos,
    },
}
