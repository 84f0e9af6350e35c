//! What can be seen of a node from outside: a snapshot of its state, for operators and tests.

use alloc::vec::Vec;

use crate::{Ballot, LogIndex, LogPos, Membership, Micros, NodeId, Quarantine, RoleKind};

/// The state of a node. Taken between two calls; costs an allocation on a leader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status<'a> {
    /// This node.
    pub id: NodeId,
    /// Its role.
    pub role: RoleKind,
    /// Its term and its vote in it.
    pub ballot: Ballot,
    /// The leader of that term, if known.
    pub leader: Option<NodeId>,
    /// The position before the first entry of its log.
    pub base: LogPos,
    /// The last position in its log.
    pub last: LogPos,
    /// Up to here its log is on its disk.
    pub durable: LogIndex,
    /// Up to here it knows the log to be committed.
    pub commit: LogIndex,
    /// Up to here its state machine has reported.
    pub applied: LogIndex,
    /// The membership in force.
    pub membership: &'a Membership,
    /// The index of the entry that brought it.
    pub membership_at: LogIndex,
    /// Where the committed membership stands that removed this node, if one did.
    pub removed_at: Option<LogIndex>,
    /// Why it does not vote, if it does not.
    pub quarantine: Option<Quarantine>,
    /// Whom a leader is handing its place to.
    pub transferring_to: Option<NodeId>,
    /// Encoded bytes of entries above `applied`; may be rounded up.
    pub unapplied_bytes: usize,
    /// Bytes of entries in memory.
    pub tail_bytes: usize,
    /// Reads waiting for their index.
    pub waiting_reads: usize,
    /// Messages held back until a write is durable.
    pub gated_messages: usize,
    /// When the oldest unfinished write was given out.
    pub oldest_write_at: Option<Micros>,
    /// What a leader knows of the others; empty otherwise.
    pub peers: Vec<PeerStatus>,
    /// What happened since the start.
    pub counters: Counters,
}

/// What a leader knows of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerStatus {
    /// The peer.
    pub id: NodeId,
    /// How entries are sent to it.
    pub flow: FlowKind,
    /// Up to here its log is equal to the leader's and on its disk.
    pub matched: LogIndex,
    /// The next index to send.
    pub next: LogIndex,
    /// Unanswered append messages with entries.
    pub inflight_messages: usize,
    /// Bytes in them.
    pub inflight_bytes: usize,
    /// When the last message it answered was sent.
    pub answered_at: Micros,
    /// Whether it has kept up with the log lately, so that it could be promoted.
    pub is_caught_up: bool,
}

/// How entries are sent to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowKind {
    /// One message at a time, until it is known where the logs part.
    Probe,
    /// As many as the window admits, without waiting for answers.
    Replicate,
    /// Not at all: what it needs next is no longer in the log, and it is offered a snapshot.
    Snapshot,
}

/// Events since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Trial elections begun.
    pub pre_elections: u64,
    /// Real elections begun.
    pub elections: u64,
    /// Elections won.
    pub elections_won: u64,
    /// Times a leader gave up for want of a quorum.
    pub quorum_lost: u64,
    /// Probes sent to find where a peer's log parts from the leader's.
    pub probes: u64,
    /// Losses of acknowledged entries that a leader noticed at its peers.
    pub losses: u64,
    /// Messages of peers that broke a rule of the protocol and were dropped.
    pub invalid_messages: u64,
    /// Own messages dropped since too many were held back already.
    pub overflowed_messages: u64,
}
