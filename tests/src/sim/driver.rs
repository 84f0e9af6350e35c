//! What the server's shell does with its threads, as events: the three machines of each node.
//!
//! ```text
//!   message, request, report ──► inbox ──(consensus latency)──► Wake: handle*, flush ──► outputs
//!   log jobs ──► queue ──(log latency)──► LogWritten: LogWriter::handle ──(report latency)──► inbox
//!   apply jobs ──► queue ──(apply latency)──► Applied: Applier::handle ──(report latency)──► inbox
//! ```
//!
//! The work is done when its time is over, all at once; a crash before that finds it undone, and a crash
//! in the middle of the write itself is made by stopping the disk at one of its calls. Between the work
//! and consensus' hearing of it time passes as well.
//!
//! The driver's contract (RAFT.md C.3) is kept, and stretched where it allows: inboxes are handled in
//! parts, flushed in between, log jobs are taken in parts, fetches overtake each other.

use kv_server::limits::Limits;
use kv_server::replica::{
    Answer, ApplyDone, ApplyJob, ConsensusInput, FetchJob, LogDone, LogJob, Outputs, Proposal,
};
use kv_server::state_machine::command;
use lsm_store::vfs::CrashPolicy;
use raft_core::{Body, Entry, Envelope, RoleKind};
use raft_rpc::{Request, Response, WireError};

use super::Sabotage;
use super::node::{Fate, Node, Token, position};
use super::plan::Span;
use super::world::{Call, Event, Reply, Waiting, World};

/// Of how many answers lost with a broken connection the client hears, per thousand.
const REFUSAL_HEARD: u64 = 500;

/// A crash in the middle of a write to the log is at one of so many calls. Most writes take two, those
/// that begin a segment some more.
const WRITE_CALLS_MAX: u64 = 4;

/// How often the log notes on disk how far it is durable, per thousand writes.
const NOTED: u64 = 50;

impl World {
    /// Something is in a node's inbox: consensus will look at it soon.
    pub(super) fn wake_soon(&mut self, node: usize) {
        let latency = self.plan.consensus_latency.draw(&mut self.random);
        self.wake_within(node, latency);
    }

    fn wake_within(&mut self, node: usize, delay: u64) {
        let at = self.now.saturating_add(delay);
        let boot = self.nodes[node].boot;
        let Some(machine) = &mut self.nodes[node].machine else { return };
        if machine.wake_at.is_none_or(|wake_at| wake_at > at) {
            machine.wake_at = Some(at);
            self.schedule(delay, Event::Wake { node, boot });
        }
    }

    /// Consensus handles its inbox, or a part of it, and its timer.
    pub(super) fn wake(&mut self, node: usize, boot: u64) {
        let now = self.now;
        let local = self.local(node);
        let Some(machine) = self.machine(node, boot) else { return };
        // A later wake-up that was overtaken by an earlier one has nothing to do.
        if machine.wake_at.is_none_or(|wake_at| wake_at > now) {
            return;
        }
        machine.wake_at = None;
        let mut left = machine.inbox.len();
        if left > 1 && self.random.chance(self.plan.partial_inbox) {
            left = self.random.index(left) + 1;
        }
        for _ in 0..left {
            let Some(machine) = self.machine(node, boot) else { return };
            let Some(input) = machine.inbox.pop_front() else { break };
            machine.consensus.handle(local, input);
            if self.random.chance(self.plan.flush_between) {
                self.flush(node, boot);
            }
        }
        let Some(machine) = self.machine(node, boot) else { return };
        if machine.inbox.is_empty() && local >= machine.consensus.deadline() {
            machine.consensus.handle(local, ConsensusInput::Timer);
        }
        self.flush(node, boot);
        let Some(machine) = self.machine(node, boot) else { return };
        if machine.inbox.is_empty() {
            let deadline = machine.consensus.deadline();
            let due = self.nodes[node].clock.when(deadline);
            self.wake_within(node, due.saturating_sub(now));
        } else {
            self.wake_soon(node);
        }
    }

    fn machine(&mut self, node: usize, boot: u64) -> Option<&mut super::node::Machine> {
        let node = &mut self.nodes[node];
        if node.boot == boot { node.machine.as_mut() } else { None }
    }

    fn flush(&mut self, node: usize, boot: u64) {
        let local = self.local(node);
        let Some(machine) = self.machine(node, boot) else { return };
        let mut outputs = std::mem::take(&mut machine.outputs);
        machine.consensus.flush(local, &mut outputs);
        machine.consensus.check_invariants();
        let status = machine.consensus.status();
        self.trace.event(&[
            20,
            status.term.0,
            status.last_index.0,
            status.commit_index.0,
            status.applied.index.0,
        ]);
        for change in outputs.events.drain(..) {
            self.trace.line(self.now, || {
                format!("node {node} is {:?} in term {}", change.role, change.term)
            });
            self.counts.elections += u64::from(change.role == RoleKind::Candidate);
            let checked = self.checkers.role(node, change.role, change.term.0);
            self.check(checked);
        }
        for LogJob(op) in &outputs.log {
            let checked = self.checkers.write(node, op, status.applied.index.0);
            self.check(checked);
        }
        self.check_bounds(node, &status);
        let checked = self.checkers.status(node, &status);
        self.check(checked);
        self.outputs(node, boot, &mut outputs);
        if let Some(machine) = self.machine(node, boot) {
            machine.outputs = outputs;
        }
    }

    /// I22: what may wait is bounded.
    fn check_bounds(&mut self, node: usize, status: &kv_server::replica::ReplicaStatus) {
        self.waiting_writes_max = self.waiting_writes_max.max(status.waiting_proposals);
        let limits = Limits::default();
        let reads_max = limits.waiting_reads_max.max(self.plan.raft.max_waiting_reads);
        if status.waiting_proposals > limits.waiting_proposals_max
            || status.waiting_reads > reads_max
        {
            self.fail(format!(
                "I22: {} writes and {} reads wait at node {node}",
                status.waiting_proposals, status.waiting_reads
            ));
        }
    }

    fn outputs(&mut self, node: usize, boot: u64, outputs: &mut Outputs<Token>) {
        for mut job in outputs.apply.drain(..) {
            if let ApplyJob::Entries { entries, waiters } = &mut job {
                let checked = self.checkers.apply(node, entries);
                self.check(checked);
                // Not where someone waits: the applier itself would notice.
                let unwatched = node == 0 && waiters.is_empty();
                if self.sabotage == Sabotage::SkipOneApply && unwatched {
                    skip_commands(entries);
                }
                for waiter in waiters {
                    if let Some(waiting) = self.waiting.get_mut(&waiter.waiter) {
                        waiting.applying = Some((waiter.index.0, waiter.return_previous));
                    }
                }
            }
            if let Some(machine) = self.machine(node, boot) {
                machine.apply_queue.push_back(job);
            }
        }
        if let Some(machine) = self.machine(node, boot) {
            machine.log_queue.extend(outputs.log.drain(..));
        }
        for envelope in outputs.send.drain(..) {
            let checked = self.checkers.send(node, &envelope);
            self.check(checked);
            self.send(node, envelope);
        }
        for job in outputs.fetch.drain(..) {
            self.counts.fetches += 1;
            let delay = self.disk_time(node, self.plan.fetch_latency);
            self.schedule(delay, Event::Fetched { node, boot, job });
        }
        for ready in outputs.reads_ready.drain(..) {
            for token in ready.waiters {
                let Some(waiting) = self.waiting.get(&token) else {
                    self.fail(format!("I26: {token:?} at node {node} is ready to be read twice"));
                    continue;
                };
                let checked = self.checkers.read_ready(node, ready.index.0, waiting.call.floor);
                self.check(checked);
                if let Some(machine) = self.machine(node, boot) {
                    machine.reads.push((ready.index, token));
                }
            }
        }
        self.serve_reads(node, boot);
        for (token, answer) in outputs.answers.drain(..) {
            self.answer(node, token, answer);
        }
        self.start_log(node, boot);
        self.start_apply(node, boot);
        if let Some(failure) = outputs.fatal.take() {
            self.halted(node, &failure.to_string());
        }
    }

    /// The node has to stop: that is right after a failed sync, and wrong at any other time.
    fn halted(&mut self, node: usize, why: &str) {
        self.trace.line(self.now, || format!("node {node} halts: {why}"));
        if !self.nodes[node].disk_has_failed() {
            self.fail(format!("node {node} halts without a fault of its disk: {why}"));
            return;
        }
        self.counts.damage_found += u64::from(self.nodes[node].fate == Fate::Damaged);
        let policy = *self.random.pick(&CrashPolicy::ALL);
        self.crash(node, policy);
        self.start_later(node);
    }

    fn send(&mut self, from: usize, envelope: Envelope) {
        let to = position(envelope.to);
        if to >= self.nodes.len() {
            self.fail(format!("node {from} sends to a stranger: {envelope:?}"));
            return;
        }
        let delays = self.network.carry(self.now, from, to, &mut self.random);
        self.trace.line(self.now, || {
            let fate = if delays.is_empty() { ", lost" } else { "" };
            format!("{from} → {to} term {} {}{fate}", envelope.term, brief(&envelope))
        });
        if delays.is_empty() && self.network.is_cut(from, to) && self.random.chance(100) {
            let boot = self.nodes[from].boot;
            let input = Box::new(ConsensusInput::PeerUnreachable(envelope.to));
            self.schedule(1, Event::Input { node: from, boot, input });
        }
        for delay in delays {
            let envelope = envelope.clone();
            self.schedule(delay, Event::Message { node: to, envelope });
        }
    }

    pub(super) fn receive(&mut self, node: usize, envelope: Envelope) {
        if let Some(machine) = &mut self.nodes[node].machine {
            machine.inbox.push_back(ConsensusInput::Message(envelope));
            self.wake_soon(node);
        }
    }

    pub(super) fn input(&mut self, node: usize, boot: u64, input: ConsensusInput<Token>) {
        if let Some(machine) = self.machine(node, boot) {
            machine.inbox.push_back(input);
            self.wake_soon(node);
        }
    }

    /// What a thread has done reaches consensus a little later; what one thread reports stays in order.
    fn report(&mut self, node: usize, input: ConsensusInput<Token>) {
        let delay = self.plan.report_latency.draw(&mut self.random);
        let boot = self.nodes[node].boot;
        let now = self.now;
        let Some(machine) = self.machine(node, boot) else { return };
        let thread = match input {
            ConsensusInput::LogDone(_) => 0,
            ConsensusInput::ApplyDone(_) => 1,
            ConsensusInput::Message(_)
            | ConsensusInput::Propose(_)
            | ConsensusInput::Read(_)
            | ConsensusInput::Timer
            | ConsensusInput::Fetched(_)
            | ConsensusInput::PeerUnreachable(_) => 2,
        };
        let at = machine.reported_at[thread].max(now + delay);
        machine.reported_at[thread] = at;
        self.schedule(at - now, Event::Input { node, boot, input: Box::new(input) });
    }

    fn disk_time(&mut self, node: usize, latency: Span) -> u64 {
        let stalled = self.nodes[node].disk_stalled_until.saturating_sub(self.now);
        stalled + latency.draw(&mut self.random) * self.nodes[node].disk_slowness
    }

    /// The log writer takes what is queued, or a part of it.
    fn start_log(&mut self, node: usize, boot: u64) {
        let part = self.random.chance(self.plan.partial_log_batch);
        let drawn = self.random.any();
        let Some(machine) = self.machine(node, boot) else { return };
        if !machine.log_busy.is_empty() || machine.log_queue.is_empty() {
            return;
        }
        let queued = machine.log_queue.len();
        let taken = if part { usize::try_from(drawn).unwrap_or(0) % queued + 1 } else { queued };
        machine.log_busy = machine.log_queue.drain(..taken).collect();
        let delay = self.disk_time(node, self.plan.log_latency);
        self.schedule(delay, Event::LogWritten { node, boot });
    }

    pub(super) fn log_written(&mut self, node: usize, boot: u64) {
        let sabotage = self.sabotage;
        let Some(machine) = self.machine(node, boot) else { return };
        let mut jobs = std::mem::take(&mut machine.log_busy);
        let claimed = jobs.last().map(|job| job.0.seq);
        if sabotage == Sabotage::AcknowledgeWithoutSync {
            std::mem::swap(&mut jobs, &mut machine.log_owed);
        }
        let last = jobs.last().map(|job| job.0.seq);
        let mut done = LogDone::Failed { reason: "nothing to write".to_owned() };
        if let Some(seq) = last {
            done = machine.log_writer.handle(jobs);
            if done == (LogDone::Persisted { upto: seq }) {
                self.checkers.persisted(node, seq.0);
            }
        }
        if self.nodes[node].disk.has_stopped() {
            self.lost_power_in_write(node);
            return;
        }
        if let LogDone::Persisted { upto } = done
            && Some(upto) != last
        {
            self.fail(format!("node {node} reports {upto} as durable, its jobs end at {last:?}"));
        }
        if let Some(upto) = claimed
            && sabotage == Sabotage::AcknowledgeWithoutSync
        {
            done = LogDone::Persisted { upto };
        }
        if matches!(done, LogDone::Persisted { .. }) && self.random.chance(NOTED) {
            self.note_durable(node, boot);
        }
        self.report(node, ConsensusInput::LogDone(done));
        self.start_log(node, boot);
    }

    /// The process ends while the log is written: some calls of the write are made, or all of them, and
    /// nobody hears of it.
    pub(super) fn write_in_part(&mut self, node: usize) {
        let calls = self.random.below(WRITE_CALLS_MAX);
        let Node { machine, disk, .. } = &mut self.nodes[node];
        let Some(machine) = machine else { return };
        // A sabotaged driver owes earlier writes: this one cannot be made without them.
        let writes = !machine.log_busy.is_empty() && machine.log_owed.is_empty();
        if !writes || disk.has_stopped() {
            return;
        }
        let jobs = std::mem::take(&mut machine.log_busy);
        disk.crash_at(disk.mutating_calls() + calls);
        machine.log_writer.handle(jobs);
        if disk.has_stopped() {
            self.counts.crashes_in_write += 1;
        }
    }

    /// As in an idle moment: the log notes on disk how far it is durable.
    fn note_durable(&mut self, node: usize, boot: u64) {
        let Some(machine) = self.machine(node, boot) else { return };
        let noted = machine.log_writer.note_durable();
        if self.nodes[node].disk.has_stopped() {
            self.lost_power_in_write(node);
        } else if let Err(error) = noted
            && !self.nodes[node].disk_has_failed()
        {
            self.fail(format!("node {node} cannot note what is durable: {error}"));
        }
    }

    fn start_apply(&mut self, node: usize, boot: u64) {
        let Some(machine) = self.machine(node, boot) else { return };
        if machine.apply_busy.is_some() {
            return;
        }
        let Some(job) = machine.apply_queue.pop_front() else { return };
        machine.apply_busy = Some(job);
        let delay = self.disk_time(node, self.plan.apply_latency);
        self.schedule(delay, Event::Applied { node, boot });
    }

    pub(super) fn applied(&mut self, node: usize, boot: u64) {
        let Some(machine) = self.machine(node, boot) else { return };
        let Some(job) = machine.apply_busy.take() else { return };
        let (done, answers) = machine.applier.handle(job);
        if self.nodes[node].disk.has_stopped() {
            self.lost_power_in_write(node);
            return;
        }
        if let ApplyDone::Applied(applied) = &done {
            self.trace.event(&[21, applied.index.0, applied.state_hash, applied.revision]);
            let checked = self.checkers.applied(node, *applied);
            self.check(checked);
        }
        for (token, answer) in answers {
            if let Some((index, return_previous)) =
                self.waiting.get(&token).and_then(|waiting| waiting.applying)
            {
                let checked = self.checkers.answered(index, return_previous, &answer);
                self.check(checked);
            }
            self.answer(node, token, answer);
        }
        self.report(node, ConsensusInput::ApplyDone(done));
        self.serve_reads(node, boot);
        self.start_apply(node, boot);
    }

    /// The power went while something was written.
    pub(super) fn lost_power_in_write(&mut self, node: usize) {
        self.counts.crashes_in_write += 1;
        let policy = *self.random.pick(&CrashPolicy::ALL);
        self.crash(node, policy);
        self.start_later(node);
    }

    pub(super) fn fetched(&mut self, node: usize, boot: u64, job: FetchJob) {
        let Some(machine) = self.machine(node, boot) else { return };
        let done = machine.log_reader.handle(job);
        self.report(node, ConsensusInput::Fetched(done));
    }

    /// Reads whose index is applied are served a little later.
    fn serve_reads(&mut self, node: usize, boot: u64) {
        let Some(machine) = self.machine(node, boot) else { return };
        let applied = machine.state_reader.applied().index;
        let (ready, wait) = machine.reads.iter().partition(|(index, _)| *index <= applied);
        machine.reads = wait;
        let ready: Vec<_> = ready;
        for (_, token) in ready {
            let delay = self.plan.consensus_latency.draw(&mut self.random);
            self.schedule(delay, Event::Serve { node, boot, token });
        }
    }

    pub(super) fn serve(&mut self, node: usize, boot: u64, token: Token) {
        let Some(waiting) = self.waiting.get(&token) else { return };
        let request = waiting.call.request.clone();
        let Some(machine) = self.machine(node, boot) else { return };
        let answer = match &request {
            Request::Get(get) => machine.state_reader.get(get),
            Request::Range(range) => machine.state_reader.range(range),
            Request::Write(_) => return,
        };
        if let Ok(response) = &answer {
            self.check_never_back(node, &request, response);
            self.check_read(&request, response);
        }
        self.answer(node, token, answer);
    }

    /// What a node serves never goes back, however old it may be.
    fn check_never_back(&mut self, node: usize, request: &Request, response: &Response) {
        let revision = match (request, response) {
            (Request::Get(get), Response::Value { revision, .. }) if get.revision.is_none() => {
                *revision
            }
            (Request::Range(range), Response::Page { revision, .. })
                if range.revision.is_none() =>
            {
                *revision
            }
            _ => return,
        };
        let Some(machine) = &mut self.nodes[node].machine else { return };
        let before = machine.served;
        machine.served = before.max(revision);
        if revision < before {
            self.fail(format!("node {node} serves revision {revision} after {before}"));
        }
    }

    /// A request arrives at a node, from a client or from a follower.
    pub(super) fn request(&mut self, node: usize, via: Option<usize>, call: Call) {
        let (boot, id) = (self.nodes[node].boot, self.nodes[node].id);
        let Some(machine) = &self.nodes[node].machine else {
            if self.random.chance(REFUSAL_HEARD) {
                self.send_reply(node, via, call, Reply::ConnectionRefused);
            }
            return;
        };
        let leader = machine.consensus.status().leader;
        if let Err(error) = Limits::default().check(id.get(), &call.request) {
            self.send_reply(node, via, call, Reply::Answered(Err(error), None));
            return;
        }
        if let Request::Write(_) = &call.request
            && let Some(leader) = leader
            && leader != id
            && via.is_none()
        {
            self.counts.forwarded += 1;
            let to = position(leader);
            let delays = self.network.carry(self.now, node, to, &mut self.random);
            for delay in delays.into_iter().take(1) {
                let call = Box::new(call.clone());
                self.schedule(delay, Event::Forwarded { node: to, via: node, call });
            }
            return;
        }
        self.tokens += 1;
        let token = Token(self.tokens);
        self.trace.line(self.now, || {
            format!("node {node} takes {token:?}: client {} attempt {}", call.client, call.attempt)
        });
        let join = self.random.chance(500);
        let serve_at_once =
            Self::may_be_old(&call.request) || self.sabotage == Sabotage::UnconfirmedReads;
        let Some(machine) = &mut self.nodes[node].machine else { return };
        match &call.request {
            Request::Write(write) => {
                let proposal = Proposal {
                    command: command::encode(write),
                    return_previous: command::returns_previous(write),
                    waiter: token,
                };
                match machine.inbox.back_mut() {
                    Some(ConsensusInput::Propose(proposals)) if join => proposals.push(proposal),
                    _ => machine.inbox.push_back(ConsensusInput::Propose(vec![proposal])),
                }
            }
            Request::Get(_) | Request::Range(_) if serve_at_once => {
                self.waiting.insert(token, Waiting { node, call, via, applying: None });
                self.schedule(1, Event::Serve { node, boot, token });
                return;
            }
            Request::Get(_) | Request::Range(_) => match machine.inbox.back_mut() {
                Some(ConsensusInput::Read(tokens)) if join => tokens.push(token),
                _ => machine.inbox.push_back(ConsensusInput::Read(vec![token])),
            },
        }
        self.waiting.insert(token, Waiting { node, call, via, applying: None });
        self.wake_soon(node);
    }

    /// A node answers someone who waits there. I26: everyone is answered once.
    pub(super) fn answer(&mut self, node: usize, token: Token, answer: Answer) {
        self.trace.line(self.now, || format!("node {node} answers {token:?}"));
        let Some(waiting) = self.waiting.remove(&token) else {
            self.fail(format!("I26: {token:?} at node {node} is answered twice: {answer:?}"));
            return;
        };
        if let Err(WireError::Overloaded { .. }) = &answer {
            self.counts.overloaded += 1;
        }
        let index = waiting.applying.map(|(index, _)| index);
        self.send_reply(node, waiting.via, waiting.call, Reply::Answered(answer, index));
    }

    /// The answer travels to the client, over the follower that handed the request on.
    pub(super) fn send_reply(&mut self, node: usize, via: Option<usize>, call: Call, reply: Reply) {
        let (call, reply) = (Box::new(call), Box::new(reply));
        match via {
            Some(via) => {
                let delays = self.network.carry(self.now, node, via, &mut self.random);
                if let Some(&delay) = delays.first() {
                    self.schedule(delay, Event::Returned { node: via, call, reply });
                }
            }
            None => {
                let delay = self.network.client_delay(&mut self.random);
                if !self.network.loses_for_client(&mut self.random) {
                    self.schedule(delay, Event::Reply { call, reply });
                }
            }
        }
    }

    /// A follower passes the leader's answer on, if it is still there.
    pub(super) fn returned(&mut self, node: usize, call: Call, reply: Reply) {
        if self.nodes[node].machine.is_some() {
            self.send_reply(node, None, call, reply);
        }
    }
}

/// A sabotaged driver withholds every seventh command from the applier.
fn skip_commands(entries: &mut std::sync::Arc<[Entry]>) {
    let skipped = entries.iter().cloned().map(|mut entry| {
        if entry.pos.index.0 % 7 == 0 && matches!(entry.body, Body::Command(_)) {
            entry.body = Body::Noop;
        }
        entry
    });
    *entries = skipped.collect();
}

/// A message in a few words.
fn brief(envelope: &Envelope) -> String {
    use raft_core::Message;
    match &envelope.msg {
        Message::Append { prev, entries, commit, read, .. } => format!(
            "append after {}/{} {} entries, commit {commit}, read {read}",
            prev.index,
            prev.term,
            entries.len()
        ),
        Message::AppendOk { matched, read, .. } => format!("matched {matched}, read {read}"),
        Message::AppendReject { hint, .. } => format!("reject, hint {}/{}", hint.index, hint.term),
        Message::Vote { kind, last } => format!("{kind:?} vote? last {}/{}", last.index, last.term),
        Message::VoteReply { kind, granted, asked } => {
            format!("{kind:?} vote in {asked}: {granted}")
        }
        Message::ReadIndex { id } => format!("read index? {id}"),
        Message::ReadIndexReply { id, index } => format!("read index {id}: {index}"),
        Message::TimeoutNow { at } => format!("take over at {}/{}", at.index, at.term),
        Message::Removed { at } => format!("removed at {at}"),
        Message::Regressed { had } => format!("lost up to {had}"),
        Message::SnapshotOffer { at } => format!("snapshot from {}/{} on", at.index, at.term),
        Message::SnapshotUnderWay { at } => format!("snapshot at {at} under way"),
    }
}
