//! [`Consensus`]: raft-core and the callers who wait for it.
//!
//! What it adds to the core: it names proposals and reads by tickets, stamps commands with cluster time,
//! keeps who waits for which entry, logs ticks, decides when the engine is flushed, and turns refusals
//! into what callers are told.
//!
//! Invariants:
//! 1. Every waiter that comes in goes out exactly once: in `answers`, in `reads_ready`, or with its entry
//!    in an [`ApplyJob`].
//! 2. What waits is bounded: callers by number ([`Limits`]), their bytes by the core, and nothing is kept
//!    of a message.
//! 3. Proposals and reads that came in since the last flush become one batch each: a thousand puts cost
//!    one allocation for their entries, one log write and one message per follower.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::BytesMut;
use raft_core::{
    Body, Effect, Effects, Entry, FetchFailed, Input, LogIndex, LogPos, Membership, Micros, NodeId,
    Outcome, Raft, Reject, RoleChange, RoleKind, Ticket, codec,
};
use raft_rpc::WireError;

use crate::{
    limits::Limits,
    replica::{
        Applied, ApplyDone, ApplyJob, ConsensusInput, FetchDone, FetchError, FetchJob, LogDone,
        LogJob, Outputs, Proposal, ReadsReady, ReplicaFailure, ReplicaStatus, StorageConfig,
        cluster_clock::ClusterClock, flush_policy::FlushPolicy, pending::Pending,
    },
    state_machine::command,
};

/// Commands are given to the core in batches of about this many bytes: a batch is taken or refused whole.
const BATCH_BYTES: usize = 256 << 10;

/// When an overloaded caller should try again.
const RETRY_AFTER_MS: u32 = 50;

/// The consensus core of one node with everyone who waits for it. Owned by one thread.
#[derive(Debug)]
pub struct Consensus<W> {
    node_id: NodeId,
    cluster_id: u128,
    raft: Raft,
    effects: Effects,
    limits: Limits,
    clock: ClusterClock,
    flush_policy: FlushPolicy,
    membership: Arc<Membership>,
    role: RoleChange,
    role_changes: u64,
    applied: Applied,
    next_ticket: u64,
    /// Came in since the last flush.
    queued: Vec<Proposal<W>>,
    queued_reads: Vec<W>,
    /// Given to the core; its answer comes with the next flush.
    proposed: VecDeque<(Ticket, Vec<(bool, W)>)>,
    /// In the log, not yet applied.
    pending: Pending<W>,
    reads: BTreeMap<Ticket, Vec<W>>,
    waiting_reads: usize,
    /// Callers who get no further, until the next flush.
    refused: Vec<(W, WireError)>,
    failure: Option<ReplicaFailure>,
    failure_told: bool,
}

/// What [`Consensus`] is made of.
pub(crate) struct ConsensusParts {
    pub(crate) node_id: NodeId,
    pub(crate) cluster_id: u128,
    pub(crate) raft: Raft,
    pub(crate) membership: Arc<Membership>,
    pub(crate) limits: Limits,
    pub(crate) storage: StorageConfig,
    pub(crate) applied: Applied,
    /// The highest stamp in the log.
    pub(crate) cluster_time_ms: u64,
    /// Bytes of the log between the engine's durable position and the applied index.
    pub(crate) replayed_bytes: u64,
}

impl<W> Consensus<W> {
    pub(crate) fn new(parts: ConsensusParts, now: Micros) -> Self {
        let ConsensusParts { node_id, cluster_id, raft, membership, limits, storage, .. } = parts;
        let applied = parts.applied;
        let mut flush_policy =
            FlushPolicy::new(storage.flush_log_bytes, storage.flush_idle, applied.durable);
        if parts.replayed_bytes > 0 {
            flush_policy.on_apply(now, applied.index, parts.replayed_bytes, true);
        }
        let status = raft.status();
        let role = RoleChange { role: status.role, term: status.ballot.term, leader: None };
        Self {
            node_id,
            cluster_id,
            raft,
            effects: Effects::new(),
            limits,
            clock: ClusterClock::new(parts.cluster_time_ms),
            flush_policy,
            membership,
            role,
            role_changes: 0,
            applied,
            next_ticket: 0,
            queued: Vec::new(),
            queued_reads: Vec::new(),
            proposed: VecDeque::new(),
            pending: Pending::new(),
            reads: BTreeMap::new(),
            waiting_reads: 0,
            refused: Vec::new(),
            failure: None,
            failure_told: false,
        }
    }

    /// Takes one input and marks the work that follows. Emits nothing and never blocks.
    ///
    /// `now` never goes back. Feed everything that is queued, then [`ConsensusInput::Timer`] if
    /// [`Consensus::deadline`] has passed (RAFT B84), then call [`Consensus::flush`].
    pub fn handle(&mut self, now: Micros, input: ConsensusInput<W>) {
        match input {
            ConsensusInput::Message(envelope) => self.step(now, Input::Message(envelope)),
            ConsensusInput::Propose(proposals) => {
                for proposal in proposals {
                    self.queue(proposal);
                }
            }
            ConsensusInput::Read(waiters) => {
                for waiter in waiters {
                    if self.waiting_reads() >= self.limits.waiting_reads_max {
                        let overloaded = self.overloaded();
                        self.refused.push((waiter, overloaded));
                    } else {
                        self.queued_reads.push(waiter);
                    }
                }
            }
            ConsensusInput::Timer => self.step(now, Input::Timer),
            ConsensusInput::LogDone(LogDone::Persisted { upto }) => {
                self.step(now, Input::Persisted { upto });
            }
            ConsensusInput::LogDone(LogDone::Failed { reason }) => {
                self.step(now, Input::PersistFailed);
                self.fail(ReplicaFailure::Log { reason });
            }
            ConsensusInput::ApplyDone(ApplyDone::Applied(applied)) => {
                self.applied = applied;
                self.flush_policy.on_durable(applied.durable);
                self.step(now, Input::Applied { upto: applied.index });
            }
            ConsensusInput::ApplyDone(ApplyDone::Failed { reason }) => {
                self.fail(ReplicaFailure::Apply { reason });
            }
            ConsensusInput::Fetched(done) => self.on_fetched(now, done),
            ConsensusInput::PeerUnreachable(peer) => {
                self.step(now, Input::PeerUnreachable(peer));
            }
        }
    }

    /// Turns the marked work into the fewest outputs, appended to `out`.
    pub fn flush(&mut self, now: Micros, out: &mut Outputs<W>) {
        if self.failure.is_none() {
            self.propose_queued(now);
            self.read_queued(now);
            self.raft.flush(now, &mut self.effects);
            let mut effects = std::mem::take(&mut self.effects);
            for effect in effects.drain() {
                self.perform(now, effect, out);
            }
            self.effects = effects;
            self.answer_lost(out);
            if self.failure.is_none() && self.flush_policy.is_due(now) {
                out.apply.push(ApplyJob::Flush);
            }
        }
        if self.failure.is_some() {
            self.stop(out);
        }
        out.answers.extend(self.refused.drain(..).map(|(waiter, error)| (waiter, Err(error))));
    }

    /// When [`ConsensusInput::Timer`] is due.
    #[must_use]
    pub fn deadline(&self) -> Micros {
        if self.failure.is_some() {
            return Micros(u64::MAX);
        }
        let tick_at = self.clock.tick_at().filter(|_at| self.applied.sessions > 0);
        [tick_at, self.flush_policy.deadline()]
            .into_iter()
            .flatten()
            .fold(self.raft.deadline(), Ord::min)
    }

    /// What can be seen from outside. Costs a few allocations; not for every request.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        let raft = self.raft.status();
        ReplicaStatus {
            node_id: self.node_id,
            cluster_id: self.cluster_id,
            role: if self.failure.is_some() { RoleKind::Halted } else { raft.role },
            term: raft.ballot.term,
            leader: raft.leader,
            last_index: raft.last.index,
            durable_index: raft.durable,
            commit_index: raft.commit,
            applied: self.applied,
            membership: Arc::clone(&self.membership),
            elections: raft.counters.elections,
            role_changes: self.role_changes,
            waiting_proposals: self.waiting_proposals(),
            waiting_reads: self.waiting_reads(),
            failure: self.failure.as_ref().map(ToString::to_string),
        }
    }

    /// Checks what must hold between any two calls. For tests.
    ///
    /// # Panics
    /// If something does not hold.
    pub fn check_invariants(&self) {
        self.raft.check_invariants();
        let reads: usize = self.reads.values().map(Vec::len).sum();
        assert!(
            reads == self.waiting_reads,
            "{reads} reads wait, {} are counted",
            self.waiting_reads
        );
    }

    fn step(&mut self, now: Micros, input: Input) {
        if self.failure.is_none() {
            self.raft.step(now, input);
        }
    }

    fn queue(&mut self, proposal: Proposal<W>) {
        // A command that no node could apply must not enter the log: every node would stop at it.
        let refusal = if self.failure.is_some() {
            None
        } else if self.waiting_proposals() >= self.limits.waiting_proposals_max {
            Some(self.overloaded())
        } else {
            let valid = command::validate(proposal.command.clone());
            valid.err().map(|error| WireError::BadInput { reason: error.to_string() })
        };
        match refusal {
            Some(error) => self.refused.push((proposal.waiter, error)),
            None => self.queued.push(proposal),
        }
    }

    fn on_fetched(&mut self, now: Micros, done: FetchDone) {
        let result = match done.result {
            Ok(entries) => Ok(entries),
            Err(FetchError::Unavailable) => Err(FetchFailed::Unavailable),
            Err(FetchError::Storage { reason }) => {
                self.fail(ReplicaFailure::Fetch { reason });
                return;
            }
        };
        self.step(now, Input::Fetched { id: done.id, result });
    }

    /// Gives the core what came in since the last flush, stamped, in a few batches.
    fn propose_queued(&mut self, now: Micros) {
        let ticks = self.applied.sessions > 0 && self.clock.tick_at().is_some_and(|at| at <= now);
        if self.queued.is_empty() && !ticks {
            return;
        }
        let stamp_ms = self.clock.stamp(now);
        if ticks {
            self.clock.ticked(now);
            let mut body = BytesMut::new();
            command::stamp_into(stamp_ms, &command::tick(), &mut body);
            let ticket = self.ticket();
            self.proposed.push_back((ticket, Vec::new()));
            self.raft.step(now, Input::Propose { ticket, commands: vec![body.freeze()] });
        }
        let mut queued = std::mem::take(&mut self.queued);
        let mut rest = queued.drain(..).peekable();
        while rest.peek().is_some() {
            let mut sizes = Vec::new();
            let mut waiters = Vec::new();
            let mut block = BytesMut::new();
            while let Some(proposal) = rest.next_if(|_next| block.len() < BATCH_BYTES) {
                let before = block.len();
                command::stamp_into(stamp_ms, &proposal.command, &mut block);
                sizes.push(block.len() - before);
                waiters.push((proposal.return_previous, proposal.waiter));
            }
            let mut block = block.freeze();
            let commands = sizes.into_iter().map(|size| block.split_to(size)).collect();
            let ticket = self.ticket();
            self.proposed.push_back((ticket, waiters));
            self.raft.step(now, Input::Propose { ticket, commands });
        }
        drop(rest);
        self.queued = queued;
    }

    /// One ticket, and one round, for all reads that came in since the last flush.
    fn read_queued(&mut self, now: Micros) {
        if self.queued_reads.is_empty() {
            return;
        }
        let waiters = std::mem::take(&mut self.queued_reads);
        let ticket = self.ticket();
        self.waiting_reads += waiters.len();
        self.reads.insert(ticket, waiters);
        self.raft.step(now, Input::Read { ticket });
    }

    fn perform(&mut self, now: Micros, effect: Effect, out: &mut Outputs<W>) {
        match effect {
            Effect::Persist(write) => {
                self.observe_stamps(&write.append);
                out.log.push(LogJob(write));
            }
            Effect::Send(envelope) => out.send.push(envelope),
            Effect::Apply(entries) => self.apply(now, entries, out),
            Effect::FetchLog { id, purpose, lo, hi, max_bytes } => {
                out.fetch.push(FetchJob { id, purpose, lo, hi, max_bytes });
            }
            Effect::ReadReady { ticket, index } => {
                let waiters = self.take_read(ticket);
                if !waiters.is_empty() {
                    out.reads_ready.push(ReadsReady { index, waiters });
                }
            }
            Effect::Reply { ticket, outcome } => self.on_outcome(ticket, outcome),
            Effect::Role(change) => self.on_role(now, change, out),
            Effect::MembershipEffective(membership) => self.membership = membership,
            Effect::Removed { at } => self.fail(ReplicaFailure::Removed { at }),
            Effect::Fatal(error) => self.fail(ReplicaFailure::Consensus(error)),
            // Only a core that may cut its log, or looks for losses, says any of this; this one does neither.
            Effect::CompactLog { .. }
            | Effect::Quarantine { .. }
            | Effect::FetchSnapshot { .. }
            | Effect::DiscardSnapshot { .. }
            | Effect::InstallSnapshot { .. }
            | Effect::AdoptSnapshot { .. } => {}
        }
    }

    /// A later leader goes on from the newest stamp in its log, whoever wrote it.
    fn observe_stamps(&mut self, entries: &[Entry]) {
        let last = entries.iter().rev().find_map(|entry| match &entry.body {
            Body::Command(body) => command::stamp_of(body),
            Body::Noop | Body::Config(_) => None,
        });
        if let Some(stamp_ms) = last {
            self.clock.observe(stamp_ms);
        }
    }

    fn apply(&mut self, now: Micros, entries: Arc<[Entry]>, out: &mut Outputs<W>) {
        let Some(last) = entries.last() else { return };
        let bytes: usize = entries.iter().map(codec::encoded_len).sum();
        let has_writes = entries.iter().any(|entry| match &entry.body {
            Body::Command(body) => !command::is_tick(body),
            Body::Noop | Body::Config(_) => false,
        });
        self.flush_policy.on_apply(now, last.pos.index, bytes as u64, has_writes);
        let (waiters, superseded) = self.pending.take(&entries);
        for waiter in superseded {
            let error = self.not_leader(self.role.leader);
            self.refused.push((waiter, error));
        }
        out.apply.push(ApplyJob::Entries { entries, waiters });
    }

    fn on_outcome(&mut self, ticket: Ticket, outcome: Outcome) {
        match outcome {
            Outcome::Appended { first, count } => {
                let Some(waiters) = self.take_proposed(ticket) else { return };
                // A tick has no waiter.
                assert!(
                    waiters.is_empty() || waiters.len() == count as usize,
                    "{count} entries were appended for {} callers",
                    waiters.len()
                );
                // Entries this node appended in an earlier term and lost, all within one flush.
                let error = self.outcome_unknown();
                for waiter in self.pending.take_from(first.index) {
                    self.refused.push((waiter, error.clone()));
                }
                for (at, (return_previous, waiter)) in (0_u64..).zip(waiters) {
                    let index = LogIndex(first.index.0 + at);
                    let pos = LogPos { term: first.term, index };
                    self.pending.push(pos, return_previous, waiter);
                }
            }
            Outcome::Rejected(reject) => {
                let error = self.rejection(reject);
                for (_previous, waiter) in self.take_proposed(ticket).into_iter().flatten() {
                    self.refused.push((waiter, error.clone()));
                }
                for waiter in self.take_read(ticket) {
                    self.refused.push((waiter, error.clone()));
                }
            }
            // Who waits in the log is told by `answer_lost`, entry by entry.
            Outcome::Unknown => {
                let error = self.outcome_unknown();
                for (_previous, waiter) in self.take_proposed(ticket).into_iter().flatten() {
                    self.refused.push((waiter, error.clone()));
                }
            }
            // Only of changes and transfers, which no caller can ask for.
            Outcome::Done => {}
        }
    }

    fn on_role(&mut self, now: Micros, change: RoleChange, out: &mut Outputs<W>) {
        let newly_leads = change.role == RoleKind::Leader
            && (self.role.role != RoleKind::Leader || self.role.term != change.term);
        if newly_leads {
            self.clock.start_leading(now);
        } else if change.role != RoleKind::Leader {
            self.clock.stop_leading();
        }
        self.role_changes += u64::from(change.role != self.role.role);
        self.role = change;
        out.events.push(change);
    }

    /// After leadership is lost, callers whose entry is not known to be committed are told so at once.
    fn answer_lost(&mut self, out: &mut Outputs<W>) {
        if self.pending.len() == 0 || self.role.role == RoleKind::Leader && out.events.is_empty() {
            return;
        }
        let status = self.raft.status();
        let current = match status.role {
            RoleKind::Leader => status.ballot.term,
            RoleKind::Follower
            | RoleKind::PreCandidate
            | RoleKind::Candidate
            | RoleKind::Halted => raft_core::Term(u64::MAX),
        };
        let error = self.outcome_unknown();
        for waiter in self.pending.take_lost(current, status.commit) {
            self.refused.push((waiter, error.clone()));
        }
    }

    /// The node stops: everybody who still waits is told why, and nothing else comes out.
    fn stop(&mut self, out: &mut Outputs<W>) {
        let Some(failure) = self.failure.clone() else { return };
        out.send.clear();
        out.log.clear();
        out.fetch.clear();
        out.reads_ready.drain(..).for_each(|ready| self.queued_reads.extend(ready.waiters));
        for job in out.apply.drain(..) {
            if let ApplyJob::Entries { waiters, .. } = job {
                let unknown = self.outcome_unknown();
                self.refused.extend(waiters.into_iter().map(|w| (w.waiter, unknown.clone())));
            }
        }
        let unknown = WireError::Storage { node: self.node_id.get(), reason: failure.to_string() };
        let mut waiting = self.pending.take_all();
        waiting.extend(self.queued.drain(..).map(|proposal| proposal.waiter));
        for (_ticket, waiters) in self.proposed.drain(..) {
            waiting.extend(waiters.into_iter().map(|(_previous, waiter)| waiter));
        }
        waiting.append(&mut self.queued_reads);
        for (_ticket, waiters) in std::mem::take(&mut self.reads) {
            waiting.extend(waiters);
        }
        self.waiting_reads = 0;
        self.refused.extend(waiting.into_iter().map(|waiter| (waiter, unknown.clone())));
        if !self.failure_told {
            self.failure_told = true;
            out.fatal = Some(failure);
        }
    }

    /// The first failure is the one that counts.
    fn fail(&mut self, failure: ReplicaFailure) {
        self.failure.get_or_insert(failure);
    }

    const fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    fn take_proposed(&mut self, ticket: Ticket) -> Option<Vec<(bool, W)>> {
        let at = self.proposed.iter().position(|(proposed, _waiters)| *proposed == ticket)?;
        self.proposed.remove(at).map(|(_ticket, waiters)| waiters)
    }

    fn take_read(&mut self, ticket: Ticket) -> Vec<W> {
        let waiters = self.reads.remove(&ticket).unwrap_or_default();
        self.waiting_reads -= waiters.len();
        waiters
    }

    fn waiting_proposals(&self) -> usize {
        let proposed: usize = self.proposed.iter().map(|(_ticket, waiters)| waiters.len()).sum();
        self.queued.len() + proposed + self.pending.len()
    }

    const fn waiting_reads(&self) -> usize {
        self.queued_reads.len() + self.waiting_reads
    }

    fn overloaded(&self) -> WireError {
        WireError::Overloaded { node: self.node_id.get(), retry_after_ms: RETRY_AFTER_MS }
    }

    fn outcome_unknown(&self) -> WireError {
        WireError::OutcomeUnknown {
            node: self.node_id.get(),
            reason: "leadership was lost before the write was known to be committed".to_owned(),
        }
    }

    fn not_leader(&self, hint: Option<NodeId>) -> WireError {
        let node = self.node_id.get();
        let Some(hint) = hint.filter(|hint| *hint != self.node_id) else {
            return WireError::NoLeader { node };
        };
        let hint_addr = self.membership.nodes().get(&hint).map(|info| info.client_addr.clone());
        WireError::NotLeader { node, hint: Some(hint.get()), hint_addr }
    }

    fn rejection(&self, reject: Reject) -> WireError {
        let node = self.node_id.get();
        match reject {
            Reject::NotLeader { hint } => self.not_leader(hint),
            Reject::Overloaded => self.overloaded(),
            // Whoever takes over is not known to lead yet.
            Reject::NoQuorum | Reject::Transferring { .. } => WireError::NoLeader { node },
            Reject::Empty => WireError::BadInput { reason: "an empty batch".to_owned() },
            Reject::Halted => {
                WireError::Storage { node, reason: "the node has stopped".to_owned() }
            }
            Reject::Change(error) => WireError::BadInput { reason: error.to_string() },
            Reject::Transfer(error) => WireError::BadInput { reason: error.to_string() },
        }
    }
}
