//! The services between nodes: consensus messages one way, and client writes on their way to the leader.

use bytes::Bytes;
use raft_core::Envelope;
use serde::{Deserialize, Serialize};

use crate::{Response, WireError};

/// Consensus messages (handshake purpose `Raft`).
#[tarpc::service]
pub trait Peer {
    /// Takes a batch over. The answer means "queued", nothing more; answers to the messages are
    /// envelopes on the other node's own connection. A batch that does not fit the queue is dropped:
    /// the protocol repeats what matters.
    async fn deliver(batch: Vec<Envelope>);
}

/// Client writes handed from a follower to the leader (handshake purpose `Forward`).
#[tarpc::service]
pub trait Forward {
    /// Proposes encoded commands and answers when each is applied. Never forwarded again: a node that
    /// does not lead answers [`WireError::NotLeader`].
    async fn forward(batch: Vec<ForwardedCommand>) -> Vec<Result<Response, WireError>>;
}

/// A client's write, encoded by the node that got it, and how long its caller will still wait.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForwardedCommand {
    /// Remaining time in milliseconds.
    pub timeout_ms: u32,
    /// The command, in the state machine's encoding.
    pub command: Bytes,
    /// Answer with what was there before. Not part of the command: it changes nothing.
    pub return_previous: bool,
}
