//! The threads of a node around its machines: consensus, log, apply, fetch.
//!
//! ```text
//!  network ──► inbox ──► consensus ──► log inbox   ──► log thread: append, sync ──┐
//!                ▲           ├───────► apply inbox ──► apply thread ──────────────┤
//!                │           ├───────► fetch inbox ──► fetch thread ──────────────┤
//!                │           └───────► links, answers, reads                      │
//!                └──────────────────── notices ◄──────────────────────────────────┘
//! ```
//!
//! Every thread takes everything that waits at each wake-up, so batches form by themselves under load and
//! nothing waits when idle. Consensus never waits for another thread: it pushes to inboxes that always
//! take, and what is under way there is bounded by its own windows (unapplied bytes, at most four apply
//! batches, messages and bytes in flight per peer).
//!
//! Invariants
//! 1. Messages leave before the log is written, so the leader's disk does not delay its followers (Raft §10.2.1
//!    of the thesis); consensus itself holds back what may not be said before it is durable.
//! 2. A run is visible to readers before its callers are answered.
//! 3. After a failure consensus takes nothing more; its callers learn that the outcome is unknown.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use raft_core::{Envelope, Message, NodeId};
use raft_rpc::{Link, WireError};

use crate::{
    replica::{
        Applier, ApplyDone, ApplyJob, Consensus, ConsensusInput, FetchJob, LogDone, LogJob,
        LogReader, LogWriter, Outputs,
    },
    server::{
        failure::ServerFailure,
        inbox::{Inbox, Taken},
        roles,
        shared::{Shared, Work},
        waiter::Waiter,
    },
};

/// What the consensus thread hands work to.
#[derive(Debug)]
pub(crate) struct Downstream {
    /// The log thread's.
    pub log: Arc<Inbox<LogJob>>,
    /// The apply thread's.
    pub apply: Arc<Inbox<ApplyJob<Waiter>>>,
    /// The fetch thread's.
    pub fetch: Arc<Inbox<FetchJob>>,
    /// One per peer.
    pub links: Vec<(NodeId, Link)>,
}

impl Drop for Downstream {
    /// The other threads end with consensus, once they have done what was handed to them.
    fn drop(&mut self) {
        self.log.close();
        self.apply.close();
        self.fetch.close();
    }
}

/// The consensus thread.
pub(crate) struct ConsensusThread {
    shared: Arc<Shared>,
    consensus: Consensus<Waiter>,
    downstream: Downstream,
    out: Outputs<Waiter>,
    /// Outgoing messages by link, reused.
    outgoing: Vec<Vec<Envelope>>,
    reads: Vec<Waiter>,
}

impl ConsensusThread {
    /// Around `consensus`.
    pub(crate) fn new(
        shared: Arc<Shared>,
        consensus: Consensus<Waiter>,
        downstream: Downstream,
    ) -> Self {
        let outgoing = downstream.links.iter().map(|_| Vec::new()).collect();
        Self { shared, consensus, downstream, out: Outputs::new(), outgoing, reads: Vec::new() }
    }

    /// Runs until told to stop or until the replica cannot go on.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut work = Vec::new();
        loop {
            let due = shared.clock.instant(self.consensus.deadline());
            if shared.inbox.take(&mut work, due) == Taken::Closed {
                break;
            }
            let mut stop = false;
            for item in work.drain(..) {
                stop |= self.handle(item);
            }
            let now = shared.clock.now();
            if !self.reads.is_empty() {
                let reads = std::mem::take(&mut self.reads);
                self.consensus.handle(now, ConsensusInput::Read(reads));
            }
            if now >= self.consensus.deadline() {
                self.consensus.handle(now, ConsensusInput::Timer);
            }
            self.consensus.flush(now, &mut self.out);
            if self.dispatch() || stop {
                break;
            }
        }
        // Whoever still waits learns it by the drop.
        shared.inbox.close();
        while shared.inbox.take(&mut work, None) == Taken::Open {
            work.clear();
        }
    }

    /// Feeds one item; `true` if the thread shall end.
    fn handle(&mut self, item: Work) -> bool {
        let now = self.shared.clock.now();
        let input = match item {
            Work::Messages(messages) => {
                for message in messages {
                    self.note_contact(&message);
                    self.consensus.handle(now, ConsensusInput::Message(message));
                }
                return false;
            }
            Work::Propose { proposals, deadline } => {
                if Instant::now() >= deadline {
                    let node = self.shared.node();
                    for proposal in proposals {
                        proposal.waiter.answer(Err(WireError::Timeout { node }));
                    }
                    return false;
                }
                ConsensusInput::Propose(proposals)
            }
            // One question serves all reads that wait now.
            Work::Read(job) => {
                self.reads.push(Waiter::Read(job));
                return false;
            }
            Work::LogDone(done) => ConsensusInput::LogDone(done),
            Work::ApplyDone(done) => ConsensusInput::ApplyDone(done),
            Work::Fetched(done) => ConsensusInput::Fetched(done),
            Work::Unreachable(peer) => ConsensusInput::PeerUnreachable(peer),
            Work::Status(asked) => {
                // Whoever asked may have given up.
                drop(asked.send(self.consensus.status()));
                return false;
            }
            Work::Stop => return true,
        };
        self.consensus.handle(now, input);
        false
    }

    /// Hands the outputs on; `true` if the replica cannot go on.
    fn dispatch(&mut self) -> bool {
        self.send();
        let out = &mut self.out;
        if !out.log.is_empty() {
            self.downstream.log.push_all(out.log.drain(..));
        }
        if !out.apply.is_empty() {
            self.downstream.apply.push_all(out.apply.drain(..));
        }
        if !out.fetch.is_empty() {
            self.downstream.fetch.push_all(out.fetch.drain(..));
        }
        for event in out.events.drain(..) {
            roles::publish(&self.shared, event);
        }
        for (waiter, answer) in out.answers.drain(..) {
            waiter.answer(answer);
        }
        for ready in out.reads_ready.drain(..) {
            for waiter in ready.waiters {
                match waiter {
                    Waiter::Read(job) => self.shared.gate.when_applied(ready.index, job),
                    Waiter::Write(slot) => drop(slot),
                }
            }
        }
        if let Some(failure) = out.fatal.take() {
            self.shared.lifecycle.fail(ServerFailure::Replica(failure));
            return true;
        }
        false
    }

    /// One batch per peer. A batch that a link does not take is lost, and consensus is told.
    fn send(&mut self) {
        if self.out.send.is_empty() {
            return;
        }
        for envelope in self.out.send.drain(..) {
            let to = envelope.to;
            let links = self.downstream.links.iter().zip(&mut self.outgoing);
            match links.into_iter().find(|((peer, _link), _batch)| *peer == to) {
                Some((_link, batch)) => batch.push(envelope),
                None => tracing::debug!(peer = to.get(), "no link to this node: message dropped"),
            }
        }
        let now = self.shared.clock.now();
        for ((peer, link), batch) in self.downstream.links.iter().zip(&mut self.outgoing) {
            if !batch.is_empty() && link.send(std::mem::take(batch)).is_err() {
                self.consensus.handle(now, ConsensusInput::PeerUnreachable(*peer));
            }
        }
    }

    fn note_contact(&self, message: &Envelope) {
        if matches!(message.msg, Message::Append { .. })
            && message.term >= self.shared.leadership.borrow().term
        {
            self.shared.contact.heard(self.shared.clock.now());
        }
    }
}

/// How long the log has to be idle before it notes on disk how far it is durable.
const LOG_IDLE: Duration = Duration::from_millis(100);

/// The log thread: everything that waits is one append and one sync. When idle, and at the end, it notes
/// how far the log is durable, so that later damage to its last records is not taken for a torn tail.
pub(crate) fn run_log(shared: &Shared, jobs: &Inbox<LogJob>, mut log: LogWriter) {
    let mut taken = Vec::new();
    let mut idle_at = None;
    while jobs.take(&mut taken, idle_at) == Taken::Open {
        if taken.is_empty() {
            idle_at = None;
            if let Err(error) = log.note_durable() {
                shared.inbox.push(Work::LogDone(LogDone::Failed { reason: error.to_string() }));
                return;
            }
            continue;
        }
        let done = log.handle(std::mem::take(&mut taken));
        idle_at = Some(Instant::now() + LOG_IDLE);
        let failed = matches!(done, LogDone::Failed { .. });
        shared.inbox.push(Work::LogDone(done));
        if failed {
            return;
        }
    }
    if let Err(error) = log.close() {
        tracing::warn!(%error, "the last note of the log failed; what was acknowledged is on disk");
    }
}

/// The apply thread. At the end it brings everything applied into tables, so that the next start replays
/// little.
pub(crate) fn run_apply(shared: &Shared, jobs: &Inbox<ApplyJob<Waiter>>, mut applier: Applier) {
    let mut taken = Vec::new();
    let mut done = Vec::new();
    while jobs.take(&mut taken, None) == Taken::Open {
        for job in taken.drain(..) {
            let (result, answers) = applier.handle(job);
            let failed = match &result {
                ApplyDone::Applied(applied) => {
                    shared.gate.publish(*applied);
                    false
                }
                ApplyDone::Failed { .. } => true,
            };
            for (waiter, answer) in answers {
                waiter.answer(answer);
            }
            done.push(Work::ApplyDone(result));
            if failed {
                shared.inbox.push_all(done);
                return;
            }
        }
        // Consensus makes room by it, and finds it there when something comes that needs the room. It
        // hands out several batches at a time, so it never sleeps for want of the news of one.
        if done.len() == 1 {
            done.drain(..).for_each(|news| shared.inbox.push_lazily(news));
        } else {
            shared.inbox.push_all(done.drain(..));
        }
    }
    if shared.lifecycle.failure().is_none()
        && let Err(reason) = applier.close()
    {
        tracing::warn!(%reason, "the last flush failed; the log holds everything");
    }
}

/// The fetch thread: old entries for slow followers and for apply.
pub(crate) fn run_fetch(shared: &Shared, jobs: &Inbox<FetchJob>, reader: &LogReader) {
    let mut taken = Vec::new();
    while jobs.take(&mut taken, None) == Taken::Open {
        for job in taken.drain(..) {
            shared.inbox.push(Work::Fetched(reader.handle(job)));
        }
    }
}
