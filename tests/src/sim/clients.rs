//! Simulated clients: they behave as `kv-client` does, and what they claim is checked.
//!
//! A client has several lanes, each with one operation at a time. An operation is tried again, with the
//! same tag, until it is answered or its time is over. What the client then says of its effect follows one
//! rule: *none* if no attempt can have reached a log, *unknown* otherwise. The end of a run compares every
//! claim with the log.

use std::collections::BTreeSet;

use kv_server::replica::Answer;
use raft_rpc::{
    Consistency, Request, Response, SessionTag, WireError, WriteOperation, WriteRequest,
};

use super::Sabotage;
use super::plan::Plan;
use super::random::Random;
use super::world::{Call, Event, Reply, World};
use crate::history::{ClientId, Operation, OperationId, Outcome};
use crate::workload::Workload;

/// In microseconds.
const SECOND: u64 = 1_000_000;

/// Stands for the caller of [`World::execute`].
const PROBE: usize = usize::MAX;

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    id: ClientId,
    workload: Workload,
    /// Draws what it asks for; a client's questions depend on no other's.
    random: Random,
    wants_session: bool,
    session: Option<Session>,
    lanes: Vec<Lane>,
    /// Operations it has yet to begin.
    left: u64,
    /// The node it believes to lead.
    leader: Option<usize>,
}

#[derive(Debug)]
struct Session {
    id: u64,
    next_sequence: u64,
    unanswered: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Lane {
    /// Rises with each step: what was meant for an earlier one is dropped.
    serial: u64,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    /// `None` while the session is registered.
    operation: Option<OperationId>,
    request: Request,
    attempt: u64,
    attempts: u64,
    /// Whether an attempt may have reached a log.
    uncertain: bool,
    gives_up_at: u64,
    floor: u64,
}

/// Whether an error leaves open what happened to a write.
///
/// `repeated`: whether an earlier attempt may have reached a log.
const fn is_uncertain(error: &WireError, repeated: bool) -> bool {
    match error {
        WireError::OutcomeUnknown { .. } | WireError::Storage { .. } => true,
        WireError::SessionExpired { .. } => repeated,
        WireError::NotLeader { .. }
        | WireError::NoLeader { .. }
        | WireError::Overloaded { .. }
        | WireError::Timeout { .. }
        | WireError::TooLarge { .. }
        | WireError::BadInput { .. }
        | WireError::Compacted { .. }
        | WireError::FutureRevision { .. }
        | WireError::BadSequence { .. }
        | WireError::TooStale { .. }
        | WireError::ShuttingDown { .. } => false,
    }
}

/// Whether trying again may help.
const fn is_worth_repeating(error: &WireError) -> bool {
    match error {
        WireError::NotLeader { .. }
        | WireError::NoLeader { .. }
        | WireError::Overloaded { .. }
        | WireError::Timeout { .. }
        | WireError::OutcomeUnknown { .. }
        | WireError::TooStale { .. }
        | WireError::FutureRevision { .. }
        | WireError::ShuttingDown { .. }
        | WireError::Storage { .. } => true,
        WireError::TooLarge { .. }
        | WireError::BadInput { .. }
        | WireError::Compacted { .. }
        | WireError::SessionExpired { .. }
        | WireError::BadSequence { .. } => false,
    }
}

impl World {
    /// Adds the clients of the plan; they begin at once.
    pub fn add_clients(&mut self) {
        for number in 0..self.plan.clients {
            let wants_session = !self.random.chance(self.plan.without_session);
            self.add_client(number, wants_session);
        }
    }

    fn add_client(&mut self, number: usize, wants_session: bool) {
        let Plan { keys, value_bytes_max, mix, operations, lanes, .. } = self.plan;
        let id = u32::try_from(number).unwrap_or(u32::MAX);
        self.clients.push(Client {
            id: ClientId(id),
            workload: Workload::new(id, keys, value_bytes_max, mix),
            random: self.random.branch(),
            wants_session,
            session: None,
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            left: operations,
            leader: None,
        });
        for lane in 0..lanes {
            let delay = self.plan.think.draw(&mut self.random);
            self.schedule(delay, Event::Lane { client: number, lane, serial: 0 });
        }
    }

    /// Clients finish what they have begun and begin nothing more.
    pub fn stop_clients(&mut self) {
        for client in &mut self.clients {
            client.left = 0;
        }
    }

    /// Whether no client has an operation under way.
    #[must_use]
    pub fn clients_are_idle(&self) -> bool {
        let mut lanes = self.clients.iter().flat_map(|client| &client.lanes);
        lanes.all(|lane| lane.running.is_none())
    }

    /// Whether all clients have done everything they were to do.
    #[must_use]
    pub fn clients_are_done(&self) -> bool {
        self.clients_are_idle() && self.clients.iter().all(|client| client.left == 0)
    }

    /// A lane goes on: it begins its next operation, or tries again.
    pub(super) fn lane(&mut self, client: usize, lane: usize, serial: u64) {
        if self.clients[client].lanes[lane].serial != serial {
            return;
        }
        if self.clients[client].lanes[lane].running.is_none() && !self.begin(client, lane) {
            return;
        }
        self.attempt(client, lane);
    }

    /// Begins the lane's next operation, if there is one.
    fn begin(&mut self, number: usize, lane: usize) -> bool {
        let client = &mut self.clients[number];
        if client.left == 0 {
            return false;
        }
        if client.wants_session && client.session.is_none() {
            if lane > 0 {
                let serial = client.lanes[lane].serial;
                self.schedule(10_000, Event::Lane { client: number, lane, serial });
                return false;
            }
            let operation = WriteOperation::RegisterSession;
            let request = Request::Write(WriteRequest { tag: None, operation });
            self.run(number, lane, None, request);
            return true;
        }
        let number_of_operation =
            u32::try_from(self.plan.operations - client.left).unwrap_or(u32::MAX);
        client.left -= 1;
        let mut request = client.workload.next(&mut client.random);
        if self.withheld.operation(client.id.0, number_of_operation) {
            self.next(number, lane);
            return false;
        }
        if let (Request::Write(write), Some(session)) = (&mut request, &mut client.session) {
            write.tag = Some(session.tag());
        }
        let operation = self.history.invoke(client.id, request.clone());
        self.run(number, lane, Some(operation), request);
        true
    }

    fn run(
        &mut self,
        client: usize,
        lane: usize,
        operation: Option<OperationId>,
        request: Request,
    ) {
        let gives_up_at = self.now + self.plan.operation_timeout.draw(&mut self.random);
        let floor = self.checkers.acknowledged();
        self.clients[client].lanes[lane].running = Some(Running {
            operation,
            request,
            attempt: 0,
            attempts: 0,
            uncertain: false,
            gives_up_at,
            floor,
        });
    }

    fn attempt(&mut self, number: usize, lane: usize) {
        self.attempts += 1;
        let attempt = self.attempts;
        let client = &mut self.clients[number];
        let Some(running) = &mut client.lanes[lane].running else { return };
        running.attempt = attempt;
        running.attempts += 1;
        if running.attempts > 1 {
            self.counts.retries += 1;
            if let Request::Write(write) = &mut running.request
                && let (Some(tag), Some(session)) = (&mut write.tag, &mut client.session)
            {
                if self.sabotage == Sabotage::RetryWithNewTag && running.uncertain {
                    *tag = session.tag();
                } else if tag.session == session.id && self.random.chance(500) {
                    let lowest = session.unanswered.first().copied();
                    tag.lowest_unacknowledged = lowest.unwrap_or(tag.sequence).min(tag.sequence);
                }
            }
        }
        let node = match (&running.request, client.leader) {
            (Request::Write(_), Some(leader)) if self.random.chance(700) => leader,
            _ => self.random.index(self.nodes.len()),
        };
        let (request, floor) = (running.request.clone(), running.floor);
        let call = Box::new(Call { client: number, lane, attempt, request, floor });
        if !self.network.loses_for_client(&mut self.random) {
            let delay = self.network.client_delay(&mut self.random);
            self.schedule(delay, Event::Request { node, call });
        }
        let wait = self.plan.attempt_timeout.draw(&mut self.random);
        self.schedule(wait, Event::Timeout { client: number, lane, attempt });
    }

    fn awaits(&self, client: usize, lane: usize, attempt: u64) -> bool {
        let lane = self.clients.get(client).and_then(|client| client.lanes.get(lane));
        lane.and_then(|lane| lane.running.as_ref()).is_some_and(|r| r.attempt == attempt)
    }

    pub(super) fn timeout(&mut self, client: usize, lane: usize, attempt: u64) {
        if self.awaits(client, lane, attempt) {
            self.clients[client].leader = None;
            let uncertain = self.sabotage != Sabotage::DenyUnknown;
            self.failed(client, lane, uncertain, true);
        }
    }

    pub(super) fn reply(&mut self, call: &Call, reply: Reply) {
        if call.client == PROBE {
            if call.attempt == self.probe_attempt {
                self.probe = Some(reply);
            }
            return;
        }
        // An answer to an attempt that was given up is no longer heard.
        if !self.awaits(call.client, call.lane, call.attempt) {
            return;
        }
        match reply {
            Reply::Answered(Ok(response), index) => self.succeeded(call, response, index),
            Reply::Answered(Err(error), _) => {
                let client = &mut self.clients[call.client];
                let Some(running) = &client.lanes[call.lane].running else { return };
                if let WireError::NotLeader { hint, .. } = &error {
                    client.leader = hint.and_then(|id| usize::try_from(id - 1).ok());
                }
                if let WireError::SessionExpired { .. } = &error
                    && let Request::Write(write) = &running.request
                    && let Some(tag) = write.tag
                    && client.session.take_if(|session| session.id == tag.session).is_some()
                {
                    self.counts.sessions_expired += 1;
                }
                let uncertain = is_uncertain(&error, running.uncertain);
                self.failed(call.client, call.lane, uncertain, is_worth_repeating(&error));
            }
            Reply::ConnectionRefused => {
                self.clients[call.client].leader = None;
                self.failed(call.client, call.lane, false, true);
            }
            Reply::ConnectionLost => {
                self.clients[call.client].leader = None;
                self.failed(call.client, call.lane, true, true);
            }
        }
    }

    fn succeeded(&mut self, call: &Call, response: Response, index: Option<u64>) {
        let client = &mut self.clients[call.client];
        let Some(running) = client.lanes[call.lane].running.take() else { return };
        if let Some(index) = index {
            self.checkers.acknowledge(index);
        }
        match (running.operation, &response) {
            (None, Response::Session { id }) => {
                let session = Session { id: *id, next_sequence: 1, unanswered: BTreeSet::new() };
                client.session = Some(session);
            }
            (None, _) => {
                let what = format!("a session is registered with {response:?}");
                self.fail(what);
                return;
            }
            (Some(operation), _) => {
                client.acknowledge(&running.request);
                client.workload.learn(&response);
                self.counts.answered += 1;
                self.history.answer(operation, response);
            }
        }
        self.trace_operation(running.operation);
        self.next(call.client, call.lane);
    }

    /// An attempt failed.
    fn failed(&mut self, number: usize, lane: usize, uncertain: bool, worth_repeating: bool) {
        let client = &mut self.clients[number];
        let Some(running) = &mut client.lanes[lane].running else { return };
        let writes = matches!(running.request, Request::Write(_));
        running.uncertain |= uncertain && writes;
        let tagged = match &running.request {
            Request::Write(write) => write.tag.is_some() || running.operation.is_none(),
            Request::Get(_) | Request::Range(_) => true,
        };
        // Without a tag a repetition might take effect twice.
        let repeats =
            worth_repeating && self.now < running.gives_up_at && (tagged || !running.uncertain);
        if repeats {
            let delay = self.random.between(1_000, 60_000);
            let lane_state = &mut client.lanes[lane];
            lane_state.serial += 1;
            let serial = lane_state.serial;
            self.schedule(delay, Event::Lane { client: number, lane, serial });
            return;
        }
        let Some(running) = client.lanes[lane].running.take() else { return };
        if let Some(operation) = running.operation {
            client.acknowledge(&running.request);
            if running.uncertain {
                self.counts.unknown += 1;
                self.history.give_up(operation);
            } else {
                self.counts.no_effect += 1;
                self.history.no_effect(operation);
            }
        }
        self.trace_operation(running.operation);
        self.next(number, lane);
    }

    fn trace_operation(&mut self, operation: Option<OperationId>) {
        let Some(id) = operation else { return };
        self.counts.operations += 1;
        let operation = self.history.operation(id);
        self.trace.event(&[22, id.0 as u64, operation.completed.0]);
        let line = || operation.to_string();
        self.trace.line(self.now, line);
    }

    fn next(&mut self, number: usize, lane: usize) {
        let delay = self.plan.think.draw(&mut self.random);
        let lane_state = &mut self.clients[number].lanes[lane];
        lane_state.serial += 1;
        let serial = lane_state.serial;
        self.schedule(delay, Event::Lane { client: number, lane, serial });
    }

    /// Sends a request to a node, outside the clients' lanes and the history; the answer comes to
    /// [`World::take_answer`]. One at a time.
    pub fn post(&mut self, node: usize, request: &Request) {
        self.probe = None;
        self.attempts += 1;
        let floor = self.checkers.acknowledged();
        let attempt = self.attempts;
        self.probe_attempt = attempt;
        let call = Call { client: PROBE, lane: 0, attempt, request: request.clone(), floor };
        self.schedule(0, Event::Request { node, call: Box::new(call) });
    }

    /// The answer to [`World::post`], once it is there; a broken connection is an unknown outcome.
    pub fn take_answer(&mut self) -> Option<Answer> {
        let node = u64::MAX;
        match self.probe.take()? {
            Reply::Answered(answer, index) => {
                if let (Ok(_), Some(index)) = (&answer, index) {
                    self.checkers.acknowledge(index);
                }
                Some(answer)
            }
            Reply::ConnectionRefused => Some(Err(WireError::NoLeader { node })),
            Reply::ConnectionLost => {
                let reason = "the connection broke".to_owned();
                Some(Err(WireError::OutcomeUnknown { node, reason }))
            }
        }
    }

    /// Sends a request to a node and waits for at most `micros`; `None` if nothing came back.
    pub fn ask(&mut self, node: usize, request: &Request, micros: u64) -> Option<Answer> {
        self.post(node, request);
        self.run_until(micros, |world| world.probe.is_some());
        self.take_answer()
    }

    /// Executes one request at a node and records it in the history, trying again for `micros`. A write that
    /// may have reached a log is not tried again.
    pub fn execute(&mut self, node: usize, request: &Request, micros: u64) -> Option<Response> {
        let id = self.history.invoke(ClientId(u32::MAX), request.clone());
        let deadline = self.now + micros;
        while self.now < deadline && self.failure.is_none() {
            let writes = matches!(request, Request::Write(_));
            match self.ask(node, request, SECOND.min(deadline - self.now)) {
                Some(Ok(response)) => {
                    self.history.answer(id, response.clone());
                    return Some(response);
                }
                Some(Err(error)) => {
                    self.trace.line(self.now, || format!("probe at node {node}: {error}"));
                    if writes && is_uncertain(&error, false) {
                        return None;
                    }
                }
                None if writes => return None,
                None => {}
            }
            self.run_for(20_000);
        }
        None
    }

    /// Compares what clients claim with the log: an effect that was denied must not be there, one that was
    /// confirmed must be there once.
    pub fn check_claims(&mut self) {
        if !self.checkers.enabled() {
            return;
        }
        let mut wrong = None;
        for operation in self.history.operations() {
            let Request::Write(write) = &operation.request else { continue };
            if let Err(what) = self.check_claim(operation, write) {
                wrong = Some(format!("{what}\n  {operation}"));
                break;
            }
        }
        if let Some(what) = wrong {
            self.fail(what);
        }
    }

    fn check_claim(&self, operation: &Operation, write: &WriteRequest) -> Result<(), String> {
        let model = &self.checkers.model;
        if let WriteOperation::Put { value, .. } = &write.operation {
            let times = model.times_put(value);
            let applied = match &operation.outcome {
                Outcome::Answered(Response::Written { .. }) => times == 1,
                Outcome::Answered(_) | Outcome::NoEffect => times == 0,
                Outcome::Unknown => times <= 1,
            };
            if !applied {
                return Err(format!("the value is in the log {times} times"));
            }
        }
        let Some(tag) = write.tag else { return Ok(()) };
        match (&operation.outcome, model.executed(tag)) {
            (Outcome::NoEffect, Some(Response::Written { .. })) => {
                Err(format!("an effect was denied, but {tag:?} was executed"))
            }
            (Outcome::NoEffect, Some(Response::Deleted { count: 1.., .. })) => {
                Err(format!("an effect was denied, but {tag:?} was executed"))
            }
            (Outcome::Answered(_), None) => {
                Err(format!("answered, but {tag:?} was never executed"))
            }
            (Outcome::Answered(_) | Outcome::NoEffect | Outcome::Unknown, _) => Ok(()),
        }
    }

    /// Whether a read of the newest state says that it may be old.
    pub(super) const fn may_be_old(request: &Request) -> bool {
        match request {
            Request::Get(get) => !matches!(get.consistency, Consistency::Linearizable),
            Request::Range(range) => !matches!(range.consistency, Consistency::Linearizable),
            Request::Write(_) => false,
        }
    }
}

impl Client {
    /// The operation is over for the client, however it ended.
    fn acknowledge(&mut self, request: &Request) {
        if let (Request::Write(write), Some(session)) = (request, &mut self.session)
            && let Some(tag) = write.tag
        {
            // It may be of a session that has expired since.
            if tag.session == session.id {
                session.unanswered.remove(&tag.sequence);
            }
        }
    }
}

impl Session {
    /// The tag of the next write.
    fn tag(&mut self) -> SessionTag {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.unanswered.insert(sequence);
        let lowest_unacknowledged = self.unanswered.first().copied().unwrap_or(sequence);
        SessionTag { session: self.id, sequence, lowest_unacknowledged }
    }
}
