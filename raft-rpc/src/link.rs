//! The link to one peer: a connection that is either connected, or broken and being redialled.
//!
//! Consensus hands over batches with [`Link::send`], which never waits: while the link is broken, or its
//! queue is full, the batch is dropped and the caller is told, so that consensus can treat the peer as
//! unreachable. That is safe, because the protocol repeats what matters.
//!
//! ```text
//! broken ── dialled, handshake done, admitted ──► connected
//!   ▲                                                │
//!   └── socket ended · no answer in time · error ────┘      redialled with backoff and jitter
//! ```
//!
//! Invariants
//! 1. Batches reach the peer's queue in the order they were sent; within one connection none is missing.
//! 2. Nothing that was queued while an earlier connection stood is sent on a later one.
//! 3. Each change is counted, and logged once with its reason; a refusal is logged once as long as it
//!    stays the same.
//!
//! Everything of one link runs in one task: dispatch, calls and queue, so that a batch costs one wake-up.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use raft_core::{Envelope, Message, NodeId};
use tokio::sync::{Notify, mpsc, watch};

use crate::{
    ConnectError, ConnectOptions, Connection, Connector, HandshakeError, Hello, PeerClient,
    Refusal, connect_raft, context_for,
};

/// How a link behaves. Times and sizes have defaults for a local network.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// Batches that wait in front of the connection.
    pub queue_batches: usize,
    /// `deliver` calls without an answer; more batches stay in the queue.
    pub in_flight_max: usize,
    /// A call carries at most this many bytes of messages, but at least one message.
    pub batch_bytes_max: usize,
    /// A call without an answer for this long breaks the connection: the peer only has to queue.
    pub answer_timeout: Duration,
    /// The first wait between dials.
    pub backoff_min: Duration,
    /// The longest wait between dials.
    pub backoff_max: Duration,
    /// Limits of the connection itself.
    pub connect: ConnectOptions,
}

impl LinkOptions {
    /// Defaults for peers whose frames hold `max_frame_bytes`.
    #[must_use]
    pub fn new(max_frame_bytes: usize) -> Self {
        Self {
            queue_batches: 64,
            in_flight_max: 32,
            batch_bytes_max: max_frame_bytes / 2,
            answer_timeout: Duration::from_secs(2),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_millis(500),
            connect: ConnectOptions { max_frame_bytes, ..ConnectOptions::default() },
        }
    }
}

/// What the owner of a link decides and learns.
pub trait LinkOwner: Send + Sync + 'static {
    /// Whether the node that answered is the one it should be, by its storage. Asked after cluster and
    /// node id were found right, before the link counts as connected.
    fn admit<'a>(&'a self, answer: &'a Hello) -> BoxFuture<'a, Result<(), Refusal>>;

    /// The connection broke; what was under way may be lost.
    fn broken(&self, peer: NodeId);
}

/// What is known of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkStatus {
    /// The peer.
    pub peer: NodeId,
    /// Its address.
    pub address: String,
    /// Whether the connection stands.
    pub connected: bool,
    /// How often that changed.
    pub changes: u64,
    /// Why the link is, or last was, broken.
    pub last_error: Option<String>,
}

/// A batch was not taken: the link is broken or its queue is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the batch was dropped: the link is broken or its queue is full")]
pub struct Dropped;

/// The sending end of a link. Clones share it; once all are gone, the link's task ends.
#[derive(Clone, Debug)]
pub struct Link {
    queue: mpsc::Sender<Vec<Envelope>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connected: AtomicBool,
    status: watch::Sender<LinkStatus>,
    nudge: Notify,
}

impl Link {
    /// A link to `peer` at `address`, and its task, which the caller spawns. `ours` is what this node
    /// says in the handshake; `seed` draws the jitter.
    pub fn new(
        peer: NodeId,
        address: String,
        ours: Hello,
        connector: Arc<dyn Connector>,
        owner: Arc<dyn LinkOwner>,
        options: LinkOptions,
        seed: u64,
    ) -> (Self, LinkTask) {
        let (sender, queue) = mpsc::channel(options.queue_batches);
        let (status, _receiver) = watch::channel(LinkStatus {
            peer,
            address: address.clone(),
            connected: false,
            changes: 0,
            last_error: None,
        });
        let shared =
            Arc::new(Shared { connected: AtomicBool::new(false), status, nudge: Notify::new() });
        let task = LinkTask {
            peer,
            address,
            ours,
            connector,
            owner,
            options,
            queue,
            shared: Arc::clone(&shared),
            jitter: Jitter(seed | 1),
        };
        (Self { queue: sender, shared }, task)
    }

    /// Hands a batch over; never waits.
    ///
    /// # Errors
    /// [`Dropped`] if the link is broken or its queue is full.
    pub fn send(&self, batch: Vec<Envelope>) -> Result<(), Dropped> {
        if !self.shared.connected.load(Ordering::Acquire) {
            return Err(Dropped);
        }
        self.queue.try_send(batch).map_err(|_full_or_closed| Dropped)
    }

    /// The peer was heard of: if the link waits to redial, it does so now.
    pub fn nudge(&self) {
        self.shared.nudge.notify_waiters();
    }

    /// What is known of the link.
    #[must_use]
    pub fn status(&self) -> LinkStatus {
        self.shared.status.borrow().clone()
    }

    /// Tells of every later change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<LinkStatus> {
        self.shared.status.subscribe()
    }
}

/// The task behind a [`Link`].
pub struct LinkTask {
    peer: NodeId,
    address: String,
    ours: Hello,
    connector: Arc<dyn Connector>,
    owner: Arc<dyn LinkOwner>,
    options: LinkOptions,
    queue: mpsc::Receiver<Vec<Envelope>>,
    shared: Arc<Shared>,
    jitter: Jitter,
}

impl fmt::Debug for LinkTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkTask")
            .field("peer", &self.peer)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl LinkTask {
    /// Runs the link until every [`Link`] to it is gone.
    pub async fn run(mut self) {
        let mut failures: u32 = 0;
        let mut logged: Option<String> = None;
        while !self.queue.is_closed() {
            match self.dial().await {
                Ok(connection) => {
                    (failures, logged) = (0, None);
                    let reason = self.session(connection).await;
                    self.change(false, reason.clone());
                    let Some(reason) = reason else { return };
                    let (peer, address) = (self.peer.get(), &self.address);
                    tracing::warn!(peer, %address, %reason, "connection to peer broken");
                    self.owner.broken(self.peer);
                }
                Err(error) => {
                    let reason = error.to_string();
                    if logged.as_ref() != Some(&reason) {
                        if error.refusal().is_some() {
                            tracing::error!(peer = self.peer.get(), address = %self.address, %reason, "peer refused, or answered as somebody else; redialling");
                        } else {
                            tracing::info!(peer = self.peer.get(), address = %self.address, %reason, "peer cannot be reached; redialling");
                        }
                    }
                    logged = Some(reason.clone());
                    self.shared.status.send_modify(|status| status.last_error = Some(reason));
                    failures = if error.refusal().is_some() {
                        u32::MAX
                    } else {
                        failures.saturating_add(1)
                    };
                }
            }
            let wait = self.jitter.backoff(&self.options, failures);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shared.nudge.notified() => {}
            }
        }
    }

    async fn dial(&self) -> Result<Connection<PeerClient>, ConnectError> {
        let connection = connect_raft(
            &*self.connector,
            &self.address,
            &self.ours,
            self.peer,
            &self.options.connect,
        )
        .await?;
        self.owner.admit(&connection.server).await.map_err(|refusal| ConnectError::Handshake {
            address: self.address.clone(),
            source: HandshakeError::Refused(refusal),
        })?;
        Ok(connection)
    }

    /// Serves one connection; returns why it ended, or `None` if nobody holds the link any more.
    async fn session(&mut self, connection: Connection<PeerClient>) -> Option<String> {
        let Connection { client, mut dispatch, .. } = connection;
        // Invariant 2: a sender may have seen "connected" just before the last connection broke.
        while self.queue.try_recv().is_ok() {}
        self.change(true, None);
        tracing::info!(peer = self.peer.get(), address = %self.address, changes = self.shared.status.borrow().changes, "connected to peer");

        let mut calls = FuturesUnordered::new();
        let mut batches = Vec::with_capacity(self.options.queue_batches);
        let mut messages = VecDeque::new();
        loop {
            // Calls first, then the dispatch that sends them: one poll of this task does both.
            tokio::select! {
                biased;
                Some(answer) = calls.next(), if !calls.is_empty() => {
                    if let Err(error) = answer {
                        return Some(reason_of(&error, self.options.answer_timeout));
                    }
                }
                ended = &mut dispatch => return Some(match ended {
                    Ok(()) => "closed by the peer".to_owned(),
                    Err(error) => chain(&error),
                }),
                count = self.queue.recv_many(&mut batches, self.options.queue_batches),
                    if calls.len() < self.options.in_flight_max =>
                {
                    if count == 0 {
                        return None;
                    }
                    messages.extend(batches.drain(..).flatten());
                    while let Some(batch) = next_batch(&mut messages, self.options.batch_bytes_max) {
                        let client = client.clone();
                        let context = context_for(self.options.answer_timeout);
                        calls.push(async move { client.deliver(context, batch).await });
                    }
                }
            }
        }
    }

    fn change(&self, connected: bool, reason: Option<String>) {
        self.shared.connected.store(connected, Ordering::Release);
        self.shared.status.send_modify(|status| {
            status.connected = connected;
            status.changes += 1;
            if reason.is_some() {
                status.last_error = reason;
            }
        });
    }
}

/// Takes as many messages off the front as fit `bytes_max`, at least one.
fn next_batch(messages: &mut VecDeque<Envelope>, bytes_max: usize) -> Option<Vec<Envelope>> {
    let mut bytes = 0_usize;
    let mut count = 0_usize;
    for message in messages.iter() {
        bytes = bytes.saturating_add(wire_bytes(message));
        if count > 0 && bytes > bytes_max {
            break;
        }
        count += 1;
    }
    (count > 0).then(|| messages.drain(..count).collect())
}

/// An upper bound of a message's bytes in a frame, but for memberships, which are small.
fn wire_bytes(envelope: &Envelope) -> usize {
    /// Every number of an append as the longest varint.
    const FIXED_BYTES: usize = 128;
    match &envelope.msg {
        Message::Append { entries, .. } => {
            FIXED_BYTES + entries.iter().map(raft_core::codec::encoded_len).sum::<usize>()
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
        | Message::SnapshotUnderWay { .. } => FIXED_BYTES,
    }
}

fn reason_of(error: &tarpc::client::RpcError, waited: Duration) -> String {
    if matches!(error, tarpc::client::RpcError::DeadlineExceeded) {
        format!("no answer within {} ms", waited.as_millis())
    } else {
        chain(error)
    }
}

/// An error with its causes: tarpc's own texts name only the step.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A small generator for waits; their quality does not matter, only that nodes differ.
struct Jitter(u64);

impl Jitter {
    /// Half of the exponential wait after `failures` failures, plus a random part of the other half.
    fn backoff(&mut self, options: &LinkOptions, failures: u32) -> Duration {
        // xorshift64 (Marsaglia 2003)
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let full = options.backoff_min.saturating_mul(factor.max(1)).min(options.backoff_max);
        let half = full / 2;
        let micros = u64::try_from(half.as_micros()).unwrap_or(u64::MAX);
        half + Duration::from_micros(self.0 % micros.max(1))
    }
}
