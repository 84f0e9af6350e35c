//! Writes at a follower: handed to the leader in one hop, batched, over a `Forward` connection.
//!
//! One task per peer with a bounded queue in front. It dials when there is something to hand over and keeps
//! the connection as long as it stands; everything that waits goes in as few calls as the frame limit allows.
//!
//! What a caller is told:
//! * nothing was sent (no connection, queue full): the write had no effect, and may be tried elsewhere;
//! * sent, and the connection broke, another node leads now, or nothing came in time: the outcome is
//!   unknown. A leader that was replaced may be frozen and never answer;
//! * else the leader's own answer.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use raft_core::NodeId;
use raft_rpc::{
    ConnectOptions, Connection, Connector, ForwardClient, ForwardedCommand, Purpose, WireError,
    connect_forward, context_for,
};
use tarpc::client::RpcError;
use tokio::sync::mpsc;

use crate::{
    replica::Answer,
    server::{shared::Shared, waiter::Slot},
};

/// Calls whose writes wait for one peer; beyond it they are answered "overloaded".
const QUEUE_CALLS: usize = 1_024;
/// Calls to one peer without an answer.
const IN_FLIGHT_MAX: usize = 64;
/// How long the leader's answer may take beyond the caller's own time.
const GRACE: Duration = Duration::from_millis(100);

/// A write on its way to the leader.
#[derive(Debug)]
pub(crate) struct ForwardJob {
    /// The command.
    pub command: Bytes,
    /// Answer with what was there before.
    pub return_previous: bool,
    /// When its caller gives up.
    pub deadline: Instant,
    /// Where the answer goes.
    pub slot: Slot,
}

/// Hands writes to one peer.
#[derive(Clone, Debug)]
pub(crate) struct Forwarder {
    queue: mpsc::Sender<Vec<ForwardJob>>,
}

impl Forwarder {
    /// Queues the writes of one call.
    ///
    /// # Errors
    /// The writes themselves if the queue is full or the node stops.
    pub(crate) fn send(&self, jobs: Vec<ForwardJob>) -> Result<(), Vec<ForwardJob>> {
        self.queue.try_send(jobs).map_err(mpsc::error::TrySendError::into_inner)
    }
}

/// The task behind a [`Forwarder`].
pub(crate) struct ForwardTask {
    shared: Arc<Shared>,
    peer: NodeId,
    address: String,
    connector: Arc<dyn Connector>,
    options: ConnectOptions,
    queue: mpsc::Receiver<Vec<ForwardJob>>,
}

impl ForwardTask {
    /// A forwarder to `peer` at `address`, and its task.
    pub(crate) fn new(
        shared: Arc<Shared>,
        peer: NodeId,
        address: String,
        connector: Arc<dyn Connector>,
        max_frame_bytes: usize,
    ) -> (Forwarder, Self) {
        let (sender, queue) = mpsc::channel(QUEUE_CALLS);
        let options = ConnectOptions { max_frame_bytes, ..ConnectOptions::default() };
        (Forwarder { queue: sender }, Self { shared, peer, address, connector, options, queue })
    }

    /// Runs until every [`Forwarder`] is gone.
    pub(crate) async fn run(mut self) {
        let mut jobs = Vec::new();
        while self.take(&mut jobs).await {
            let ours = self.shared.hello(Purpose::Forward);
            let dialled =
                connect_forward(&*self.connector, &self.address, &ours, self.peer, &self.options);
            match dialled.await {
                Ok(connection) => {
                    self.session(connection, &mut jobs).await;
                }
                Err(error) => {
                    tracing::debug!(peer = self.peer.get(), %error, "writes cannot be handed over");
                    let error = WireError::NoLeader { node: self.shared.node() };
                    for job in jobs.drain(..) {
                        job.slot.fill(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// Waits for work and takes all of it.
    async fn take(&mut self, jobs: &mut Vec<ForwardJob>) -> bool {
        if !jobs.is_empty() {
            return true;
        }
        let mut calls = Vec::new();
        let count = self.queue.recv_many(&mut calls, QUEUE_CALLS).await;
        jobs.extend(calls.into_iter().flatten());
        count > 0
    }

    /// Hands over what comes until the connection ends, or the peer leads no more while writes wait for it.
    async fn session(&mut self, connection: Connection<ForwardClient>, jobs: &mut Vec<ForwardJob>) {
        let Connection { client, mut dispatch, .. } = connection;
        let mut under_way = FuturesUnordered::new();
        let mut calls = Vec::new();
        let mut leadership = self.shared.leadership.subscribe();
        let peer = self.peer;
        loop {
            while let Some(batch) = next_batch(jobs, self.options.max_frame_bytes / 2) {
                let shared = Arc::clone(&self.shared);
                under_way.push(hand_over(shared, self.peer, client.clone(), batch));
            }
            tokio::select! {
                biased;
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
                _ended = &mut dispatch => break,
                _replaced = leadership.wait_for(|known| known.leader.is_some_and(|leader| leader != peer)),
                    if !under_way.is_empty() => break,
                count = self.queue.recv_many(&mut calls, QUEUE_CALLS), if under_way.len() < IN_FLIGHT_MAX => {
                    if count == 0 {
                        break;
                    }
                    jobs.extend(calls.drain(..).flatten());
                }
            }
        }
        // The dispatch is gone: every call under way ends now, with the reason.
        drop(client);
        drop(dispatch);
        while under_way.next().await.is_some() {}
    }
}

/// Takes as many writes off the front as fit `bytes_max`, at least one.
fn next_batch(jobs: &mut Vec<ForwardJob>, bytes_max: usize) -> Option<Vec<ForwardJob>> {
    /// Length, time left and mark of one command.
    const FIXED_BYTES: usize = 16;
    let mut bytes = 0_usize;
    let fitting = jobs.iter().take_while(|job| {
        let first = bytes == 0;
        bytes = bytes.saturating_add(job.command.len() + FIXED_BYTES);
        first || bytes <= bytes_max
    });
    let count = fitting.count();
    (count > 0).then(|| jobs.drain(..count).collect())
}

async fn hand_over(
    shared: Arc<Shared>,
    peer: NodeId,
    client: ForwardClient,
    jobs: Vec<ForwardJob>,
) {
    let now = Instant::now();
    let mut longest = Duration::ZERO;
    let mut batch = Vec::with_capacity(jobs.len());
    let mut slots = Vec::with_capacity(jobs.len());
    for job in jobs {
        let left = job.deadline.saturating_duration_since(now);
        if left.is_zero() {
            job.slot.fill(Err(WireError::Timeout { node: shared.node() }));
            continue;
        }
        longest = longest.max(left);
        batch.push(ForwardedCommand {
            timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1),
            command: job.command,
            return_previous: job.return_previous,
        });
        slots.push(job.slot);
    }
    if batch.is_empty() {
        return;
    }
    shared.forwarded.fetch_add(batch.len() as u64, Ordering::Relaxed);
    let answer = client.forward(context_for(longest + GRACE), batch).await;
    fill(&shared, peer, slots, answer);
}

fn fill(shared: &Shared, peer: NodeId, slots: Vec<Slot>, answer: Result<Vec<Answer>, RpcError>) {
    let node = shared.node();
    let unknown = |reason: String| WireError::OutcomeUnknown { node, reason };
    let error = match answer {
        Ok(answers) if answers.len() == slots.len() => {
            for (slot, answer) in slots.into_iter().zip(answers) {
                slot.fill(answer);
            }
            return;
        }
        Ok(answers) => {
            unknown(format!("node {peer} gave {} answers to {} writes", answers.len(), slots.len()))
        }
        // Not sent: the message does not fit a frame.
        Err(RpcError::Send(error)) => WireError::BadInput {
            reason: format!("the write cannot be handed to node {peer}: {error}"),
        },
        Err(RpcError::Shutdown | RpcError::Channel(_)) => unknown(format!(
            "node {peer} leads no more, or the connection to it was lost, after send"
        )),
        Err(RpcError::DeadlineExceeded) => unknown(format!("no answer from node {peer} in time")),
        Err(RpcError::Server(error)) => unknown(format!("node {peer}: {error}")),
    };
    for slot in slots {
        slot.fill(Err(error.clone()));
    }
}
