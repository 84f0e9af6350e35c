//! What nodes say to each other. Data only; who may say what, and what follows, is in `role/`.
//!
//! Messages are not requests with responses: each is an envelope of its own, may be lost, repeated
//! or reordered, and the protocol stays right.

use alloc::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Entry, LogIndex, LogPos, Micros, NodeId, ProbeId, ReadSeq, Term, Ticket};

/// A message with its sender, its receiver and the sender's term.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// Who sent it.
    pub from: NodeId,
    /// Whom it is for.
    pub to: NodeId,
    /// The sender's term; for [`Message::Vote`] the term being asked for.
    pub term: Term,
    /// What it says.
    pub msg: Message,
}

/// The kinds of messages. The order of the variants is part of the wire format and never changes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// Leader to follower: entries after `prev`, possibly none (a heartbeat).
    Append {
        /// The position before the first entry.
        prev: LogPos,
        /// Consecutive entries from `prev.index + 1`.
        #[serde(with = "crate::codec::serde_entries")]
        entries: Arc<[Entry]>,
        /// The leader's commit index.
        commit: LogIndex,
        /// Names this message in the answer.
        probe: ProbeId,
        /// The leader's clock when it was made; echoed, never compared with another clock.
        sent_at: Micros,
        /// The highest read round issued so far.
        read: ReadSeq,
    },
    /// Follower to leader: the log matches the leader's up to `matched`, durably.
    AppendOk {
        /// The last index known to be equal to the leader's and on this node's disk.
        matched: LogIndex,
        /// From the answered message.
        probe: ProbeId,
        /// `sent_at` of the answered message.
        echo: Micros,
        /// `read` of the answered message.
        read: ReadSeq,
    },
    /// Follower to leader: no entry at `prev` with that term.
    AppendReject {
        /// From the answered message.
        probe: ProbeId,
        /// The largest position in this log whose term is at most the one asked for and whose
        /// index is at most the one asked for.
        hint: LogPos,
        /// `sent_at` of the answered message.
        echo: Micros,
        /// `read` of the answered message.
        read: ReadSeq,
    },
    /// A candidate asks for a vote.
    Vote {
        /// Trial or real.
        kind: VoteKind,
        /// The last position in the candidate's log.
        last: LogPos,
    },
    /// The answer to [`Message::Vote`]; the envelope carries the replier's own term.
    VoteReply {
        /// From the answered message.
        kind: VoteKind,
        /// Whether the vote was given.
        granted: bool,
        /// The term that was asked for.
        asked: Term,
    },
    /// Follower to leader: from which index on may a linearizable read be served?
    ReadIndex {
        /// The follower's name for the question.
        id: Ticket,
    },
    /// The answer to [`Message::ReadIndex`].
    ReadIndexReply {
        /// From the question.
        id: Ticket,
        /// Serve once this index is applied.
        index: LogIndex,
    },
    /// Leader to follower: stand for election at once (thesis §3.10). Its log is equal to the leader's.
    TimeoutNow {
        /// The last position in the leader's log.
        at: LogPos,
    },
    /// To a node that is no member any more: it was removed for good, and may stop.
    Removed {
        /// A committed membership without it stands here in the log.
        at: LogIndex,
    },
    /// Leader to follower: what you need next is not in my log any more; fetch a snapshot.
    SnapshotOffer {
        /// The position before the first entry of the leader's log: the snapshot has to cover it.
        at: LogPos,
    },
    /// Follower to leader: a snapshot is being fetched.
    SnapshotUnderWay {
        /// The last index it covers; 0 while that is not known.
        at: LogIndex,
    },
    /// Leader to follower: you have lost what you had acknowledged. Vote for nobody until you have it again.
    Regressed {
        /// Everything that the follower can have acknowledged is at most here.
        had: LogIndex,
    },
}

/// Why a vote is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum VoteKind {
    /// Would you vote for me? (thesis §9.6). Changes nothing at the one who is asked.
    Pre,
    /// A vote in a real election.
    Real,
    /// A vote in a real election that the leader itself asked for, so that it may be given although
    /// a leader is heard (thesis §4.2.3).
    Transfer,
}
