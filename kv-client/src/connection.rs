//! One connection to one node, owned by one task: batches what callers queue, keeps a few batches
//! under way, reconnects.
//!
//! ```text
//! callers ──job──► lane of writes ─┐   at most BATCHES_IN_FLIGHT per lane    ┌──► answers, each to its
//! callers ──job──► lane of reads ──┼──► batch ──► execute() ──► node ────────┘    own caller
//! callers ──job──► lane of stale ──┘
//! ```
//!
//! Called by `retry`, which decides where a job goes and what its failure means. A batch is
//! whatever waits in a lane when the task looks: one request when idle, without any delay; under
//! load, what arrived while the batches before it were under way.
//!
//! Invariants
//! 1. A job is marked as sent before its bytes can leave, so "not sent" is always true.
//! 2. A job is answered, or dropped; a dropped job was [`Stage::Queued`](crate::job::Stage) (never sent) or
//!    [`Stage::Sent`](crate::job::Stage) (the connection or the node failed it; [`Link::failure`] says how).
//! 3. Reads, stale reads and writes never share a batch, since a batch's answer waits for its
//!    slowest request.
//! 4. Lanes are bounded. A full lane makes callers wait, within their deadlines.
//!
//! Not here: retries, the choice of a node, sessions.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use raft_rpc::{
    ClusterId, ConnectOptions, Connection, Connector, KvClient, NodeStatus, TimedRequest,
    connect_client, context_for,
};
use tarpc::client::RpcError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use crate::backoff::Backoff;
use crate::batch::{
    BATCH_REQUESTS_MAX, READ_ANSWER_BYTES, READ_BATCH_FIRST, answer_bytes, batch_length,
};
use crate::directory::Directory;
use crate::job::{Answer, Job, LANES, Lane, StatusJob};

/// Jobs that may wait in a lane. As many as a session may have writes outstanding.
const LANE_JOBS_MAX: usize = 1024;
/// Batches of one lane under way: while one is on the wire and one is being worked on, the next
/// forms. More would only make the batches smaller.
const BATCHES_IN_FLIGHT: usize = 4;
/// A call is given up this long after the last deadline in its batch; the server's own answer to
/// each deadline should come first.
const CALL_GRACE: Duration = Duration::from_secs(1);
/// How often the task looks whether it has heard anything. Silence is counted in these looks and
/// not in time, so that a process that was itself stopped for a while does not take its own sleep
/// for the node's silence.
const SILENCE_CHECK: Duration = Duration::from_millis(250);
/// With calls under way, this many silent looks make the task ask whether the node is there.
const SILENT_BEFORE_PING: u32 = 2;
/// This many silent looks, in spite of the ping, end the connection: the node is frozen or cut off.
const SILENT_MAX: u32 = 6;
/// How long the node may take over its status or a ping.
const CONTROL_TIMEOUT: Duration = Duration::from_millis(2500);

/// The callers' end of a connection.
#[derive(Debug)]
pub(crate) struct Link {
    lanes: [mpsc::Sender<Job>; 3],
    control: mpsc::Sender<StatusJob>,
    shared: Arc<LinkShared>,
}

/// What the task tells of itself.
#[derive(Debug, Default)]
struct LinkShared {
    state: AtomicU8,
    /// The node that answered the last handshake, 0 for none yet.
    node: AtomicU64,
    failure: Mutex<Option<String>>,
    /// Batches that were answered, over all connections of this link.
    batches_answered: AtomicU64,
}

const IDLE: u8 = 0;
const CONNECTED: u8 = 1;
const BROKEN: u8 = 2;

impl Link {
    /// Starts the task. It connects when there is something to send, and ends with the last link.
    pub(crate) fn spawn(
        address: String,
        connector: Arc<dyn Connector>,
        cluster: Arc<OnceLock<ClusterId>>,
        directory: Weak<Directory>,
    ) -> Self {
        let (writes, write_jobs) = mpsc::channel(LANE_JOBS_MAX);
        let (reads, read_jobs) = mpsc::channel(LANE_JOBS_MAX);
        let (stale, stale_jobs) = mpsc::channel(LANE_JOBS_MAX);
        let (control, control_jobs) = mpsc::channel(64);
        let shared = Arc::new(LinkShared::default());
        let task = Task {
            address,
            connector,
            cluster,
            directory,
            queues: [write_jobs, read_jobs, stale_jobs],
            held: [Vec::new(), Vec::new(), Vec::new()],
            last_batch: [0; 3],
            read_batch_max: READ_BATCH_FIRST,
            control: control_jobs,
            held_control: None,
            shared: Arc::clone(&shared),
        };
        drop(tokio::spawn(task.run()));
        Self { lanes: [writes, reads, stale], control, shared }
    }

    /// Queues a job; waits while the lane is full. Dropping the future takes the job back.
    pub(crate) async fn submit(&self, lane: Lane, job: Job) {
        let sender = &self.lanes[lane.number()];
        // The task lives as long as this link; should it not, the job is dropped here, which its
        // caller sees as a failure before anything was sent.
        match sender.try_send(job) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(job)) => {
                if let Err(closed) = sender.send(job).await {
                    drop(closed);
                }
            }
        }
    }

    /// Asks for the node's status; false if too many ask already.
    pub(crate) fn ask_status(&self, job: StatusJob) -> bool {
        self.control.try_send(job).is_ok()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.shared.state.load(Ordering::Acquire) == CONNECTED
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.shared.state.load(Ordering::Acquire) == BROKEN
    }

    /// The node that answered the last handshake.
    pub(crate) fn node(&self) -> Option<u64> {
        match self.shared.node.load(Ordering::Acquire) {
            0 => None,
            node => Some(node),
        }
    }

    /// How many batches were answered so far: whether the node gets anything done.
    pub(crate) fn batches_answered(&self) -> u64 {
        self.shared.batches_answered.load(Ordering::Relaxed)
    }

    /// What failed last.
    pub(crate) fn failure(&self) -> String {
        self.shared.failure.lock().clone().unwrap_or_else(|| "the connection ended".to_owned())
    }
}

/// The owner of one connection.
struct Task {
    address: String,
    connector: Arc<dyn Connector>,
    /// The cluster that the first node named; a session of one cluster must not reach another.
    cluster: Arc<OnceLock<ClusterId>>,
    directory: Weak<Directory>,
    queues: [mpsc::Receiver<Job>; 3],
    /// Taken from a queue, not yet in a batch: at most [`BATCH_REQUESTS_MAX`] per lane.
    held: [Vec<Job>; 3],
    last_batch: [usize; 3],
    /// How many reads may go in one batch now.
    read_batch_max: usize,
    control: mpsc::Receiver<StatusJob>,
    held_control: Option<StatusJob>,
    shared: Arc<LinkShared>,
}

/// Why [`Task::serve`] came back.
enum ServeEnd {
    /// All callers are gone.
    Closed,
    /// The connection failed; whether anything was answered on it before.
    Broken { answered: bool },
}

/// A finished call.
enum Done {
    Batch {
        lane: Lane,
        replies: Vec<oneshot::Sender<Answer>>,
        result: Result<Vec<Answer>, RpcError>,
    },
    Status {
        reply: Option<oneshot::Sender<NodeStatus>>,
        result: Result<Box<NodeStatus>, RpcError>,
    },
    Ping(Result<(), RpcError>),
}

/// What to call. One type, so that all calls of a connection fit into one set of futures.
enum Call {
    Batch {
        lane: Lane,
        timeout: Duration,
        requests: Vec<TimedRequest>,
        replies: Vec<oneshot::Sender<Answer>>,
    },
    Status {
        reply: Option<oneshot::Sender<NodeStatus>>,
    },
    Ping,
}

async fn perform(client: KvClient, call: Call) -> Done {
    match call {
        Call::Batch { lane, timeout, requests, replies } => {
            let result = client.execute(context_for(timeout), requests).await;
            Done::Batch { lane, replies, result }
        }
        Call::Status { reply } => {
            let result = client.status(context_for(CONTROL_TIMEOUT)).await.map(Box::new);
            Done::Status { reply, result }
        }
        Call::Ping => Done::Ping(client.ping(context_for(CONTROL_TIMEOUT)).await),
    }
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::for_connections();
        while self.wait_for_work().await {
            let expected = self.cluster.get().copied();
            let options = ConnectOptions::default();
            let connected =
                connect_client(&*self.connector, &self.address, expected, &options).await;
            match connected {
                Ok(connection) => {
                    if let Some(cluster) = connection.server.cluster {
                        let first = *self.cluster.get_or_init(|| cluster);
                        if first != cluster {
                            self.fail(format!(
                                "{} belongs to cluster {cluster}, other endpoints to {first}",
                                self.address
                            ));
                            self.pause(backoff.next_delay()).await;
                            continue;
                        }
                    }
                    let node = connection.server.node.map_or(0, |node| node.get());
                    self.shared.node.store(node, Ordering::Release);
                    self.shared.state.store(CONNECTED, Ordering::Release);
                    tracing::debug!(address = %self.address, node, "connected");
                    match self.serve(connection).await {
                        ServeEnd::Closed => return,
                        ServeEnd::Broken { answered: true } => backoff.reset(),
                        // A node that accepts and breaks is not dialled in a tight loop.
                        ServeEnd::Broken { answered: false } => {
                            self.pause(backoff.next_delay()).await;
                        }
                    }
                }
                Err(error) => {
                    self.fail(error.to_string());
                    self.pause(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Waits for the first job, without taking more than it; false if all callers are gone.
    async fn wait_for_work(&mut self) -> bool {
        loop {
            if self.held_control.is_some() || self.held.iter().any(|held| !held.is_empty()) {
                return true;
            }
            let [writes, reads, stale] = &mut self.queues;
            tokio::select! {
                job = writes.recv() => match job {
                    Some(job) => self.held[0].push(job),
                    None => return false,
                },
                job = reads.recv() => match job {
                    Some(job) => self.held[1].push(job),
                    None => return false,
                },
                job = stale.recv() => match job {
                    Some(job) => self.held[2].push(job),
                    None => return false,
                },
                job = self.control.recv() => match job {
                    Some(job) => self.held_control = Some(job),
                    None => return false,
                },
            }
        }
    }

    /// Notes why there is no connection and drops everything that waits for one.
    fn fail(&mut self, failure: String) {
        tracing::debug!(address = %self.address, failure, "no connection");
        *self.shared.failure.lock() = Some(failure);
        self.shared.state.store(BROKEN, Ordering::Release);
        self.drop_waiting();
    }

    fn drop_waiting(&mut self) {
        for lane in LANES {
            self.held[lane.number()].clear();
            while let Ok(job) = self.queues[lane.number()].try_recv() {
                drop(job);
            }
        }
        self.held_control = None;
        while let Ok(job) = self.control.try_recv() {
            drop(job);
        }
    }

    /// Lets the backoff pass. What arrives meanwhile fails at once, so that its caller can turn to
    /// another node.
    async fn pause(&mut self, delay: Duration) {
        self.wait_refusing(Instant::now() + delay).await;
        // From now on it is worth a try again.
        self.shared.state.store(IDLE, Ordering::Release);
    }

    async fn wait_refusing(&mut self, until: Instant) {
        loop {
            self.drop_waiting();
            let [writes, reads, stale] = &mut self.queues;
            // A closed queue ends the pause; `wait_for_work` then ends the task.
            let job = tokio::select! {
                () = sleep_until(until) => return,
                job = writes.recv() => job.is_some(),
                job = reads.recv() => job.is_some(),
                job = stale.recv() => job.is_some(),
                job = self.control.recv() => job.is_some(),
            };
            if !job {
                return;
            }
        }
    }

    /// Works on an established connection until it ends.
    async fn serve(&mut self, connection: Connection<KvClient>) -> ServeEnd {
        let Connection { client, server: _, mut dispatch } = connection;
        let mut calls = FuturesUnordered::new();
        let mut in_flight = [0_usize; 3];
        let mut closed = false;
        let mut answered = false;
        let mut pinging = false;
        let mut silent = 0;
        let mut silence = tokio::time::interval(SILENCE_CHECK);
        silence.set_missed_tick_behavior(MissedTickBehavior::Delay);

        let failure = loop {
            if calls.is_empty() {
                if closed {
                    return ServeEnd::Closed;
                }
                silent = 0;
            }
            if let Some(StatusJob { reply }) = self.held_control.take() {
                calls.push(perform(client.clone(), Call::Status { reply }));
            }
            for lane in LANES {
                while in_flight[lane.number()] < BATCHES_IN_FLIGHT {
                    let Some(call) = self.next_batch(lane) else { break };
                    in_flight[lane.number()] += 1;
                    calls.push(perform(client.clone(), call));
                }
            }
            // Nothing is taken from a queue that could not be sent at once: the queue's bound holds.
            let take = LANES.map(|lane| {
                let lane = lane.number();
                !closed && self.held[lane].is_empty() && in_flight[lane] < BATCHES_IN_FLIGHT
            });
            let [writes, reads, stale] = &mut self.queues;
            let [held_writes, held_reads, held_stale] = &mut self.held;
            let received = tokio::select! {
                biased;
                Some(done) = calls.next(), if !calls.is_empty() => {
                    silent = 0;
                    match self.finish(done, &mut in_flight, &mut pinging) {
                        Ok(()) => { answered = true; None }
                        Err(failure) => break failure,
                    }
                }
                ended = &mut dispatch => break match ended {
                    Ok(()) => "the node closed the connection".to_owned(),
                    Err(error) => causes(&error),
                },
                count = writes.recv_many(held_writes, BATCH_REQUESTS_MAX), if take[0] => {
                    Some((Lane::Write, count))
                }
                count = reads.recv_many(held_reads, BATCH_REQUESTS_MAX), if take[1] => {
                    Some((Lane::Read, count))
                }
                count = stale.recv_many(held_stale, BATCH_REQUESTS_MAX), if take[2] => {
                    Some((Lane::Stale, count))
                }
                job = self.control.recv(), if !closed => {
                    match job {
                        Some(job) => self.held_control = Some(job),
                        None => closed = true,
                    }
                    None
                }
                _ = silence.tick(), if !calls.is_empty() => {
                    silent += 1;
                    if silent >= SILENT_MAX {
                        break format!("no sign of life for {:?}", SILENCE_CHECK * silent);
                    }
                    if silent >= SILENT_BEFORE_PING && !pinging {
                        pinging = true;
                        calls.push(perform(client.clone(), Call::Ping));
                    }
                    None
                }
            };
            if let Some((lane, count)) = received {
                if count == 0 {
                    closed = true;
                } else {
                    self.gather(lane, count).await;
                }
            }
        };
        // The calls under way hold their callers' reply channels: dropping them tells the callers.
        *self.shared.failure.lock() = Some(failure.clone());
        self.shared.state.store(if answered { IDLE } else { BROKEN }, Ordering::Release);
        tracing::info!(address = %self.address, failure, "connection lost");
        drop(calls);
        ServeEnd::Broken { answered }
    }
    /// After `count` jobs came: if the last batch was larger, its callers are about to come back
    /// and are only waiting for their turn on this thread. Letting them go first makes one batch
    /// of what would be two, and costs a lone caller nothing.
    async fn gather(&mut self, lane: Lane, count: usize) {
        let lane = lane.number();
        if count < self.last_batch[lane] {
            tokio::task::yield_now().await;
            while self.held[lane].len() < BATCH_REQUESTS_MAX {
                let Ok(job) = self.queues[lane].try_recv() else { break };
                self.held[lane].push(job);
            }
        }
        self.last_batch[lane] = self.held[lane].len();
    }

    /// The next batch of what is held of a lane, up to the limits of a batch. Jobs whose callers
    /// have given up are left out.
    fn next_batch(&mut self, lane: Lane) -> Option<Call> {
        let longest = match lane {
            Lane::Write => BATCH_REQUESTS_MAX,
            Lane::Read | Lane::Stale => self.read_batch_max,
        };
        let held = &mut self.held[lane.number()];
        let now = Instant::now();
        while !held.is_empty() {
            let mut requests = Vec::with_capacity(held.len());
            let mut replies = Vec::with_capacity(held.len());
            let mut timeout = Duration::ZERO;
            for job in held.drain(..batch_length(held, longest)) {
                if job.reply.is_closed() || !job.ticket.take() {
                    continue;
                }
                let left = job.deadline.saturating_duration_since(now);
                let left = job.attempt.map_or(left, |attempt| attempt.min(left));
                timeout = timeout.max(left);
                let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
                requests.push(TimedRequest { timeout_ms, request: job.request });
                replies.push(job.reply);
            }
            if !requests.is_empty() {
                return Some(Call::Batch {
                    lane,
                    timeout: timeout + CALL_GRACE,
                    requests,
                    replies,
                });
            }
        }
        None
    }

    /// Fits the size of the next batches of reads to what came back: at once to fewer, by and by to
    /// more.
    fn learn_sizes(&mut self, answers: &[Answer]) {
        let bytes: usize = answers.iter().map(answer_bytes).sum();
        let mean = bytes / answers.len().max(1);
        let fitting = (READ_ANSWER_BYTES / mean.max(1)).clamp(1, BATCH_REQUESTS_MAX);
        self.read_batch_max = fitting.min(self.read_batch_max * 2);
    }

    /// Hands the result of a call to those who wait for it.
    ///
    /// # Errors
    /// The connection can't go on, and why.
    fn finish(
        &mut self,
        done: Done,
        in_flight: &mut [usize; 3],
        pinging: &mut bool,
    ) -> Result<(), String> {
        let error = match done {
            Done::Batch { lane, replies, result } => {
                in_flight[lane.number()] -= 1;
                match result {
                    Ok(answers) if answers.len() == replies.len() => {
                        self.shared.batches_answered.fetch_add(1, Ordering::Relaxed);
                        if lane != Lane::Write {
                            self.learn_sizes(&answers);
                        }
                        for (reply, answer) in replies.into_iter().zip(answers) {
                            // A caller that is gone does not want its answer.
                            drop(reply.send(answer));
                        }
                        return Ok(());
                    }
                    Ok(answers) => {
                        let (got, asked) = (answers.len(), replies.len());
                        return Err(format!("the node gave {got} answers to {asked} requests"));
                    }
                    Err(error) => {
                        // Noted before the callers wake up and look for it.
                        *self.shared.failure.lock() = Some(causes(&error));
                        drop(replies);
                        error
                    }
                }
            }
            Done::Status { reply, result: Ok(status) } => {
                if let Some(directory) = self.directory.upgrade() {
                    directory.learn(&status);
                }
                if let Some(reply) = reply {
                    drop(reply.send(*status));
                }
                return Ok(());
            }
            Done::Ping(Ok(())) => {
                *pinging = false;
                return Ok(());
            }
            Done::Status { reply, result: Err(error) } => {
                *self.shared.failure.lock() = Some(causes(&error));
                drop(reply);
                error
            }
            Done::Ping(Err(error)) => {
                *pinging = false;
                error
            }
        };
        match error {
            // The node could not answer this call, or not in time; the connection is as it was.
            RpcError::Server(_) | RpcError::DeadlineExceeded | RpcError::Send(_) => Ok(()),
            RpcError::Shutdown | RpcError::Channel(_) => Err(causes(&error)),
        }
    }
}

/// An error with its causes, since the outer layers of an RPC error alone say little.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
