//! The world of a run: nodes, network, clients, faults and checkers, driven by one queue of events.
//!
//! Time is a number of microseconds that jumps from event to event. An event acts on one node or one
//! client and schedules others; ties are broken by the order of scheduling. The world stops at the first
//! thing that does not hold and keeps it as [`World::failure`].
//!
//! What a scenario may do with a world is its public methods: start and crash nodes, cut links, run until
//! something holds. `driver` moves the nodes, `clients` the clients, `faults` draws what goes wrong.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;
use kv_server::replica::{Answer, ConsensusInput, FetchJob, ReplicaStatus};
use lsm_store::vfs::{CrashPolicy, MemVfs};
use raft_core::{Envelope, Micros, RoleKind};
use raft_rpc::{Consistency, KeyRange, Projection, RangeRequest, Request, Response};

use super::checkers::{Checked, Checkers};
use super::clients::Client;
use super::coverage::Counts;
use super::decisions::Withheld;
use super::disk;
use super::network::Network;
use super::node::{Clock, Fate, Node, Token};
use super::plan::{Plan, PlannedFault};
use super::random::Random;
use super::trace::Trace;
use super::{Options, Sabotage};
use crate::history::History;

/// Events per run at most: a run that goes on longer is stuck in a loop.
const EVENTS_MAX: u64 = 20_000_000;

/// A client's request on its way.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) client: usize,
    pub(super) lane: usize,
    /// The attempt, numbered over the whole run.
    pub(super) attempt: u64,
    pub(super) request: Request,
    /// The highest index acknowledged to any client before the operation began.
    pub(super) floor: u64,
}

/// What a client's attempt ends with.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// The node's answer; for a write that took effect with the index of its entry.
    Answered(Answer, Option<u64>),
    /// Nobody listens there: nothing happened.
    ConnectionRefused,
    /// The connection broke after the request was sent.
    ConnectionLost,
}

/// What may happen.
#[derive(Debug)]
pub(super) enum Event {
    /// Consensus looks at its inbox and its clock.
    Wake { node: usize, boot: u64 },
    /// A message arrives.
    Message { node: usize, envelope: Envelope },
    /// The log writer's time is over: it appends and syncs now.
    LogWritten { node: usize, boot: u64 },
    /// The applier's time is over: it applies now.
    Applied { node: usize, boot: u64 },
    /// The log reader's time is over.
    Fetched { node: usize, boot: u64, job: FetchJob },
    /// Consensus learns of a job's end.
    Input { node: usize, boot: u64, input: Box<ConsensusInput<Token>> },
    /// A read is served.
    Serve { node: usize, boot: u64, token: Token },
    /// A client's request arrives.
    Request { node: usize, call: Box<Call> },
    /// A request handed on by a follower arrives.
    Forwarded { node: usize, via: usize, call: Box<Call> },
    /// The answer to a request that was handed on arrives at the follower.
    Returned { node: usize, call: Box<Call>, reply: Box<Reply> },
    /// An answer arrives at the client.
    Reply { call: Box<Call>, reply: Box<Reply> },
    /// A lane of a client begins an operation or the next attempt.
    Lane { client: usize, lane: usize, serial: u64 },
    /// A client has waited for long enough.
    Timeout { client: usize, lane: usize, attempt: u64 },
    /// A fault of the plan.
    Fault { planned: PlannedFault },
    /// A node starts.
    Start { node: usize, boot: u64 },
    /// A stopped node goes on.
    Resume { node: usize },
    /// All links are whole again, and of the ordinary quality.
    HealNetwork,
    /// A disk is as fast as ever.
    HealDisk { node: usize },
}

impl Event {
    /// The node whose process it needs, if any.
    pub(super) const fn process(&self) -> Option<usize> {
        match self {
            Self::Wake { node, .. }
            | Self::Message { node, .. }
            | Self::LogWritten { node, .. }
            | Self::Applied { node, .. }
            | Self::Fetched { node, .. }
            | Self::Input { node, .. }
            | Self::Serve { node, .. }
            | Self::Request { node, .. }
            | Self::Forwarded { node, .. }
            | Self::Returned { node, .. } => Some(*node),
            Self::Reply { .. }
            | Self::Lane { .. }
            | Self::Timeout { .. }
            | Self::Fault { .. }
            | Self::Start { .. }
            | Self::Resume { .. }
            | Self::HealNetwork
            | Self::HealDisk { .. } => None,
        }
    }

    /// A number for its kind, and whom it concerns: for the trace.
    const fn parts(&self) -> [u64; 2] {
        match self {
            Self::Wake { node, .. } => [1, *node as u64],
            Self::Message { node, .. } => [2, *node as u64],
            Self::LogWritten { node, .. } => [3, *node as u64],
            Self::Applied { node, .. } => [4, *node as u64],
            Self::Fetched { node, .. } => [5, *node as u64],
            Self::Input { node, .. } => [6, *node as u64],
            Self::Serve { node, .. } => [7, *node as u64],
            Self::Request { node, .. } => [8, *node as u64],
            Self::Forwarded { node, .. } => [9, *node as u64],
            Self::Returned { node, .. } => [10, *node as u64],
            Self::Reply { call, .. } => [11, call.attempt],
            Self::Lane { client, .. } => [12, *client as u64],
            Self::Timeout { attempt, .. } => [13, *attempt],
            Self::Fault { planned } => [14, planned.seed],
            Self::Start { node, .. } => [15, *node as u64],
            Self::Resume { node } => [16, *node as u64],
            Self::HealNetwork => [17, 0],
            Self::HealDisk { node } => [18, *node as u64],
        }
    }
}

/// An event with its time.
#[derive(Debug)]
struct Scheduled {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// A caller who waits for a node.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) node: usize,
    pub(super) call: Call,
    /// The follower that handed the request on.
    pub(super) via: Option<usize>,
    /// For a write at the applier: its index, and whether the previous value is wanted.
    pub(super) applying: Option<(u64, bool)>,
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    pub(super) plan: Plan,
    pub(super) sabotage: Sabotage,
    pub(super) withheld: Withheld,
    pub(super) random: Random,
    pub(super) now: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) network: Network,
    pub(super) clients: Vec<Client>,
    pub(super) waiting: BTreeMap<Token, Waiting>,
    pub(super) tokens: u64,
    pub(super) attempts: u64,
    /// What clients asked and were told.
    pub history: History,
    /// What must hold.
    pub checkers: Checkers,
    /// What happened.
    pub trace: Trace,
    pub(super) counts: Counts,
    /// The first thing that did not hold.
    pub failure: Option<String>,
    pub(super) faults_on: bool,
    /// What [`World::post`] was told.
    pub(super) probe: Option<Reply>,
    pub(super) probe_attempt: u64,
    /// The most writes that waited at one node at a time.
    pub waiting_writes_max: usize,
}

impl World {
    /// A world in which nothing has happened: nodes are formatted but not started.
    #[must_use]
    pub fn new(plan: Plan, mut random: Random, options: &Options) -> Self {
        let nodes = (0..plan.nodes).map(|node| Node::new(node, random.any())).collect();
        let mut network = Network::new(plan.nodes, plan.network);
        for &(from, to, quality) in &plan.odd_links {
            network.set_usual(from, to, quality);
        }
        let checkers = Checkers::new(plan.nodes, options.invariants, plan.raft.max_unapplied_bytes);
        let trace = Trace::new(options.lines, options.print);
        Self {
            plan,
            sabotage: options.sabotage,
            withheld: options.withheld.clone(),
            random,
            now: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            nodes,
            network,
            clients: Vec::new(),
            waiting: BTreeMap::new(),
            tokens: 0,
            attempts: 0,
            history: History::new(),
            checkers,
            trace,
            counts: Counts::default(),
            failure: None,
            faults_on: false,
            probe: None,
            probe_attempt: 0,
            waiting_writes_max: 0,
        }
    }

    /// Microseconds since the beginning.
    #[must_use]
    pub const fn now(&self) -> u64 {
        self.now
    }

    /// The number of nodes.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// What happened so far, in numbers.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            terms_led: self.checkers.terms_led(),
            committed: self.checkers.committed(),
            truncations: self.checkers.truncations,
            messages_lost: self.network.lost,
            messages_doubled: self.network.doubled,
            overtakings: self.network.overtakings,
            ..self.counts
        }
    }

    /// The links, to cut and to restore.
    pub const fn network_mut(&mut self) -> &mut Network {
        &mut self.network
    }

    /// A node's disk.
    #[must_use]
    pub fn disk(&self, node: usize) -> &MemVfs {
        &self.nodes[node].disk
    }

    /// What a node had synced was changed from outside: it may stop, or not start, and name the damage.
    pub fn note_damage(&mut self, node: usize) {
        self.nodes[node].fate = Fate::Damaged;
    }

    /// Why a node did not start, if it is out of service for that.
    #[must_use]
    pub fn refusal(&self, node: usize) -> Option<&str> {
        self.nodes[node].refusal.as_deref()
    }

    /// A disk takes so many times as long as usual.
    pub fn set_disk_slowness(&mut self, node: usize, times: u64) {
        self.nodes[node].disk_slowness = times;
    }

    /// What a node says of itself, if it is up.
    #[must_use]
    pub fn status(&self, node: usize) -> Option<ReplicaStatus> {
        self.nodes[node].machine.as_ref().map(|machine| machine.consensus.status())
    }

    /// The node that leads the highest term, among those that are up.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        (0..self.nodes.len())
            .filter_map(|node| Some((self.status(node)?, node)))
            .filter(|(status, _)| status.role == RoleKind::Leader)
            .max_by_key(|(status, _)| status.term)
            .map(|(_, node)| node)
    }

    /// The nodes that have everything they had synced: those that have to come back.
    #[must_use]
    pub fn core(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&node| self.nodes[node].fate != Fate::Gone).collect()
    }

    /// Starts every node that is down and can be started.
    pub fn start_all(&mut self) {
        for node in self.core() {
            if self.nodes[node].machine.is_none() {
                self.start(node);
            }
        }
    }

    /// Runs until `condition` holds or `micros` have passed; says whether it holds.
    pub fn run_until(&mut self, micros: u64, mut condition: impl FnMut(&Self) -> bool) -> bool {
        let deadline = self.now.saturating_add(micros);
        loop {
            if self.failure.is_some() {
                return false;
            }
            if condition(self) {
                return true;
            }
            if !self.step(deadline) {
                return condition(self);
            }
        }
    }

    /// Runs for `micros`.
    pub fn run_for(&mut self, micros: u64) {
        self.run_until(micros, |_| false);
    }

    /// Does the next event, if it is due by `deadline`; otherwise time moves there.
    fn step(&mut self, deadline: u64) -> bool {
        if self.queue.peek().is_none_or(|Reverse(next)| next.at > deadline) {
            self.now = self.now.max(deadline);
            return false;
        }
        let Some(Reverse(Scheduled { at, event, .. })) = self.queue.pop() else { return false };
        self.now = self.now.max(at);
        let [kind, whom] = event.parts();
        self.trace.event(&[self.now, kind, whom]);
        if self.trace.events() > EVENTS_MAX {
            self.fail(format!("the run does not end: {EVENTS_MAX} events"));
            return false;
        }
        self.dispatch(event);
        true
    }

    fn dispatch(&mut self, event: Event) {
        if let Some(node) = event.process()
            && let Some(deferred) = &mut self.nodes[node].paused
        {
            deferred.push(event);
            return;
        }
        match event {
            Event::Wake { node, boot } => self.wake(node, boot),
            Event::Message { node, envelope } => self.receive(node, envelope),
            Event::LogWritten { node, boot } => self.log_written(node, boot),
            Event::Applied { node, boot } => self.applied(node, boot),
            Event::Fetched { node, boot, job } => self.fetched(node, boot, job),
            Event::Input { node, boot, input } => self.input(node, boot, *input),
            Event::Serve { node, boot, token } => self.serve(node, boot, token),
            Event::Request { node, call } => self.request(node, None, *call),
            Event::Forwarded { node, via, call } => self.request(node, Some(via), *call),
            Event::Returned { node, call, reply } => self.returned(node, *call, *reply),
            Event::Reply { call, reply } => self.reply(&call, *reply),
            Event::Lane { client, lane, serial } => self.lane(client, lane, serial),
            Event::Timeout { client, lane, attempt } => self.timeout(client, lane, attempt),
            Event::Fault { planned } => self.fault(planned),
            Event::Start { node, boot } => {
                let Node { fate, machine, .. } = &self.nodes[node];
                let may_start = machine.is_none() && *fate != Fate::Gone;
                if self.nodes[node].boot == boot && may_start {
                    self.start(node);
                }
            }
            Event::Resume { node } => self.resume(node),
            Event::HealNetwork => self.network.heal(),
            Event::HealDisk { node } => self.nodes[node].disk_slowness = 1,
        }
    }

    /// An event after `delay` microseconds.
    pub(super) fn schedule(&mut self, delay: u64, event: Event) {
        self.scheduled += 1;
        let at = self.now.saturating_add(delay);
        self.queue.push(Reverse(Scheduled { at, number: self.scheduled, event }));
    }

    /// Keeps the first failure.
    pub fn fail(&mut self, what: String) {
        if self.failure.is_none() {
            self.trace.line(self.now, || format!("FAILED: {what}"));
            self.failure = Some(what);
        }
    }

    pub(super) fn check(&mut self, checked: Checked) {
        if let Err(what) = checked {
            self.fail(what);
        }
    }

    /// Starts a node that is down.
    pub fn start(&mut self, node: usize) {
        assert!(self.nodes[node].machine.is_none(), "node {node} is up");
        let (local, seed) = (self.random.between(1, 1 << 40), self.random.any());
        let rate = self.nodes[node].clock.rate_permille();
        self.nodes[node].clock = Clock::new(self.now, local, rate);
        self.nodes[node].boot += 1;
        self.nodes[node].faults_at_start = self.nodes[node].disk.faults_fired();
        self.counts.restarts += u64::from(self.nodes[node].boot > 1);
        match self.nodes[node].open(&self.plan, seed, self.now) {
            Ok((machine, entries)) => {
                let status = machine.consensus.status();
                let applied = machine.state_reader.applied();
                self.trace.event(&[19, node as u64, status.last_index.0, applied.state_hash]);
                self.trace.line(self.now, || {
                    format!(
                        "node {node} starts: term {} last {} commit {} applied {}",
                        status.term, status.last_index, status.commit_index, applied.index
                    )
                });
                let checked = self.checkers.recovered(node, &entries, &status, applied);
                self.check(checked);
                self.nodes[node].machine = Some(machine);
                self.wake_soon(node);
            }
            // The power went during the start, or the disk failed: it is tried again.
            Err(_) if self.nodes[node].disk.has_stopped() => self.lost_power_in_write(node),
            // It names the damage: until it can be repaired, the node is out of service.
            Err(error) if self.nodes[node].fate == Fate::Damaged => {
                self.trace.line(self.now, || format!("node {node} does not start: {error}"));
                self.counts.damage_found += 1;
                self.nodes[node].fate = Fate::Gone;
                self.nodes[node].refusal = Some(error.to_string());
            }
            Err(_) if self.nodes[node].disk_has_failed() => {
                let policy = *self.random.pick(&CrashPolicy::ALL);
                self.crash(node, policy);
                self.start_later(node);
            }
            Err(error) => self.fail(format!("node {node} does not start: {error}")),
        }
    }

    /// A node loses power.
    pub fn crash(&mut self, node: usize, policy: CrashPolicy) {
        let seed = self.random.any();
        self.trace.line(self.now, || format!("node {node} loses power: {policy:?}"));
        self.write_in_part(node);
        self.stop(node);
        let taken = disk::crash(&self.nodes[node].disk, policy, seed);
        self.nodes[node].disk.clear_faults();
        self.counts.crashes += 1;
        self.counts.crashes_losing += u64::from(taken.lost);
        self.counts.torn_writes += u64::from(taken.torn);
    }

    /// The process of a node ends without warning; what it wrote stays.
    pub fn kill(&mut self, node: usize) {
        self.trace.line(self.now, || format!("node {node} is killed"));
        self.write_in_part(node);
        self.stop(node);
        self.nodes[node].disk.kill();
        self.counts.kills += 1;
    }

    pub(super) fn stop(&mut self, node: usize) {
        self.nodes[node].machine = None;
        self.nodes[node].paused = None;
        self.nodes[node].boot += 1;
        let lost: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.node == node)
            .map(|(&token, _)| token)
            .collect();
        for token in lost {
            let Some(waiting) = self.waiting.remove(&token) else { continue };
            // Who hears of it hears that the connection broke; the others wait until they give up.
            if self.random.chance(500) {
                self.send_reply(node, waiting.via, waiting.call, Reply::ConnectionLost);
            }
        }
    }

    /// A node is stopped: its queues are kept, its clock goes on.
    pub fn pause(&mut self, node: usize) {
        if self.nodes[node].machine.is_some() && self.nodes[node].paused.is_none() {
            self.trace.line(self.now, || format!("node {node} is stopped"));
            self.nodes[node].paused = Some(Vec::new());
            self.counts.pauses += 1;
        }
    }

    /// A stopped node goes on with everything that came in meanwhile.
    pub fn resume(&mut self, node: usize) {
        let Some(deferred) = self.nodes[node].paused.take() else { return };
        self.trace.line(self.now, || format!("node {node} goes on"));
        // Connections are read in any order: what a client sent last may come before what a peer sent first.
        let mixed = self.random.chance(500);
        for (order, event) in deferred.into_iter().enumerate() {
            let delay = if mixed { self.random.below(200) } else { order as u64 / 8 };
            self.schedule(delay, event);
        }
    }

    /// The local time of a node.
    pub(super) fn local(&self, node: usize) -> Micros {
        self.nodes[node].clock.read(self.now)
    }

    /// I26: after the quiet phase nobody waits any more.
    pub(super) fn check_nobody_waits(&mut self) {
        if let Some((token, waiting)) = self.waiting.first_key_value() {
            let machine = self.nodes[waiting.node].machine.as_ref();
            let status = machine.map(|machine| machine.consensus.status());
            let reads = machine.map_or(0, |machine| machine.reads.len());
            let in_core = status.map_or(0, |status| status.waiting_reads);
            let what = format!(
                "I26: {token:?} was never answered ({in_core} reads wait for an index there, {reads} to \
                 be served): {waiting:?}"
            );
            self.fail(what);
        }
        // L6: nothing is kept for anyone, either.
        for node in 0..self.nodes.len() {
            let Some(machine) = &self.nodes[node].machine else { continue };
            let status = machine.consensus.status();
            let kept = [
                status.waiting_proposals,
                status.waiting_reads,
                machine.reads.len(),
                machine.log_queue.len(),
                machine.apply_queue.len(),
            ];
            if kept.iter().sum::<usize>() > 0 {
                self.fail(format!(
                    "L6: node {node} is idle and keeps [writes, reads, reads to serve, log jobs, \
                     apply jobs] {kept:?}"
                ));
            }
        }
    }

    /// L5: every node holds exactly what the model holds.
    pub(super) fn check_contents(&mut self) {
        if !self.checkers.enabled() {
            return;
        }
        for node in 0..self.nodes.len() {
            let Some(machine) = &self.nodes[node].machine else { continue };
            let request = RangeRequest {
                range: KeyRange { start: Bytes::new(), end: None },
                limit: None,
                reverse: false,
                projection: Projection::KeyValues,
                revision: None,
                consistency: Consistency::Stale { max_age_ms: None },
            };
            let held = machine.state_reader.range(&request);
            let model = &self.checkers.model;
            let expected = model.read_range(&request, model.revision());
            if held.as_ref() != Ok(&expected) {
                self.fail(format!("L5: node {node} holds {held:?}, must hold {expected:?}"));
            }
        }
    }

    /// What a linearizable or stale read must give, by the model; for reads made at a revision.
    pub(super) fn check_read(&mut self, request: &Request, response: &Response) {
        let model = &self.checkers.model;
        let (revision, expected) = match (request, response) {
            (Request::Get(get), Response::Value { revision, .. }) => {
                let found = model.read(get, *revision);
                (*revision, Response::Value { revision: *revision, found })
            }
            (
                Request::Range(range),
                Response::Page { revision, .. } | Response::Count { revision, .. },
            ) => (*revision, model.read_range(range, *revision)),
            (Request::Get(_) | Request::Range(_) | Request::Write(_), _) => return,
        };
        let wrong = revision > model.revision() || expected != *response;
        if wrong && self.checkers.enabled() {
            let known = model.revision();
            self.fail(format!(
                "a read gives {response:?}, must give {expected:?} (the store is at revision {known})"
            ));
        }
    }
}
