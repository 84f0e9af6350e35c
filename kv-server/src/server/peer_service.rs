//! The services between nodes, answering side: batches of messages into the inbox, and client writes that
//! followers hand to this node.
//!
//! `deliver` never waits: what does not fit the queue is dropped, and the protocol repeats what matters.
//! A message is only taken from the node it says it comes from.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use raft_core::{Envelope, Message, NodeId, codec};
use raft_rpc::{
    Forward, ForwardRequest, ForwardResponse, ForwardedCommand, Peer, PeerRequest, PeerResponse,
    WireError,
};
use tarpc::context::Context;

use crate::{
    replica::Answer,
    server::{
        inbox::{Class, Load},
        kv_service::Router,
        shared::{Shared, Work},
    },
};

/// What an overloaded follower is told to wait, in milliseconds.
const RETRY_AFTER_MS: u32 = 20;
/// Bytes a message weighs in the queue besides its entries.
const MESSAGE_BYTES: usize = 128;

/// Takes the messages of one peer.
#[derive(Clone)]
pub(crate) struct PeerService {
    shared: Arc<Shared>,
    from: NodeId,
}

impl PeerService {
    /// For a connection of `from`.
    pub(crate) const fn new(shared: Arc<Shared>, from: NodeId) -> Self {
        Self { shared, from }
    }
}

impl Peer for PeerService {
    async fn deliver(self, _: Context, mut batch: Vec<Envelope>) {
        let sent = batch.len();
        batch.retain(|message| message.from == self.from && message.to == self.shared.id);
        if batch.len() < sent
            && self.shared.refused.is_new(&self.from.to_string(), "wrong sender or receiver")
        {
            tracing::error!(
                peer = self.from.get(),
                dropped = sent - batch.len(),
                "messages that name another sender or receiver are dropped"
            );
        }
        let load = Load { items: batch.len(), bytes: batch.iter().map(weight).sum() };
        if self.shared.inbox.offer(Class::Peer, load, Work::Messages(batch)).is_err() {
            self.shared.dropped_batches.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The answer to a batch beyond the limit of one connection; it cannot be reached, since `deliver` never waits.
pub(crate) const fn overloaded_peer(_request: &PeerRequest) -> Option<PeerResponse> {
    Some(PeerResponse::Deliver(()))
}

fn weight(message: &Envelope) -> usize {
    match &message.msg {
        Message::Append { entries, .. } => {
            MESSAGE_BYTES + entries.iter().map(codec::encoded_len).sum::<usize>()
        }
        Message::AppendOk { .. }
        | Message::AppendReject { .. }
        | Message::Vote { .. }
        | Message::VoteReply { .. }
        | Message::ReadIndex { .. }
        | Message::ReadIndexReply { .. }
        | Message::TimeoutNow { .. }
        | Message::Removed { .. }
        | Message::Regressed { .. }
        | Message::SnapshotOffer { .. }
        | Message::SnapshotUnderWay { .. } => MESSAGE_BYTES,
    }
}

/// Proposes what followers hand over.
#[derive(Clone)]
pub(crate) struct ForwardService {
    router: Arc<Router>,
    node: u64,
}

impl ForwardService {
    /// Over the node's router.
    pub(crate) const fn new(router: Arc<Router>, node: u64) -> Self {
        Self { router, node }
    }
}

impl Forward for ForwardService {
    async fn forward(self, _: Context, batch: Vec<ForwardedCommand>) -> Vec<Answer> {
        let longest = batch.iter().map(|write| write.timeout_ms).max().unwrap_or(0);
        let deadline = Instant::now() + Duration::from_millis(longest.into());
        let commands =
            batch.into_iter().map(|write| (write.command, write.return_previous)).collect();
        let answers = self.router.propose_here(commands, deadline).wait_until(deadline).await;
        let node = self.node;
        let unknown = || {
            let reason = "no answer within the deadline".to_owned();
            Err(WireError::OutcomeUnknown { node, reason })
        };
        answers.into_iter().map(|answer| answer.unwrap_or_else(unknown)).collect()
    }
}

/// The answer to a hand-over beyond the limit of one connection.
#[expect(clippy::unnecessary_wraps, reason = "the shape the request loop asks for")]
pub(crate) fn overloaded_forward(node: u64, request: &ForwardRequest) -> Option<ForwardResponse> {
    let ForwardRequest::Forward { batch } = request;
    let error = WireError::Overloaded { node, retry_after_ms: RETRY_AFTER_MS };
    Some(ForwardResponse::Forward(batch.iter().map(|_write| Err(error.clone())).collect()))
}
