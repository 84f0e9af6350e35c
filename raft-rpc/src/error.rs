//! Errors that cross the wire. Each says what happened and whether the request took effect.

use serde::{Deserialize, Serialize};

/// Why a request was not answered with a [`Response`](crate::Response).
///
/// The order of the variants is the wire format and never changes. `node` is who says so.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum WireError {
    /// The node does not lead and could not hand the request on; ask `hint`. No effect.
    #[error("node {node} is not the leader")]
    NotLeader {
        /// Who says so.
        node: u64,
        /// The leader it knows of.
        hint: Option<u64>,
        /// Where clients reach that leader.
        hint_addr: Option<String>,
    },
    /// No leader is known. No effect.
    #[error("no leader is known to node {node}")]
    NoLeader {
        /// Who says so.
        node: u64,
    },
    /// Too much is waiting; try again later. No effect.
    #[error("node {node} is overloaded")]
    Overloaded {
        /// Who says so.
        node: u64,
        /// When to try again, in milliseconds.
        retry_after_ms: u32,
    },
    /// The time ran out before the request was begun. No effect.
    #[error("node {node} did not get to the request in time")]
    Timeout {
        /// Who says so.
        node: u64,
    },
    /// The write was handed on, and its answer was lost: it may or may not take effect. A retry with the same tag is safe.
    #[error("outcome unknown: {reason} (node {node})")]
    OutcomeUnknown {
        /// Who says so.
        node: u64,
        /// What happened.
        reason: String,
    },
    /// Something exceeds a limit. No effect.
    #[error("{what} is {size} bytes, limit is {limit} ({setting} on node {node})")]
    TooLarge {
        /// Who says so.
        node: u64,
        /// What is too large: `key`, `value`, `request`.
        what: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
        /// The setting that holds the limit.
        setting: String,
    },
    /// The request makes no sense. No effect.
    #[error("{reason}")]
    BadInput {
        /// What is wrong with it.
        reason: String,
    },
    /// The revision asked for was compacted. No effect.
    #[error("revision {requested} was compacted; oldest readable is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: u64,
        /// What can be had.
        oldest: u64,
    },
    /// The revision asked for is not there yet. No effect.
    #[error("revision {requested} is in the future; node {node} is at {current}")]
    FutureRevision {
        /// Who says so.
        node: u64,
        /// What was asked for.
        requested: u64,
        /// What can be had.
        current: u64,
    },
    /// The session is unknown or expired. For a first try no effect; for a retry unknown.
    #[error("session {session} is unknown or expired")]
    SessionExpired {
        /// Which.
        session: u64,
    },
    /// The tag's sequence was acknowledged by the client before, or runs too far ahead. No effect.
    #[error("write {sequence} of session {session} is out of order: {reason}")]
    BadSequence {
        /// Which session.
        session: u64,
        /// Which write.
        sequence: u64,
        /// What is wrong.
        reason: String,
    },
    /// A stale read was refused: the node has not heard from a leader for too long. No effect.
    #[error(
        "node {node} has not heard from a leader for {age_ms} ms, more than the {max_age_ms} ms allowed"
    )]
    TooStale {
        /// Who says so.
        node: u64,
        /// How long, in milliseconds.
        age_ms: u64,
        /// How long was allowed.
        max_age_ms: u64,
    },
    /// The node is stopping. No effect.
    #[error("node {node} is shutting down")]
    ShuttingDown {
        /// Who says so.
        node: u64,
    },
    /// The node's storage failed. A read: no effect; a write: unknown.
    #[error("storage of node {node}: {reason}")]
    Storage {
        /// Who says so.
        node: u64,
        /// What failed.
        reason: String,
    },
}
