//! The client service: checks, routes, hands over, waits once per call.
//!
//! ```text
//! write  limits ─► encoded once ─┬─ this node leads: consensus inbox ──────────────┐
//!                                ├─ another leads: forwarded, one hop ─────────────┼─► slots ─► one wake-up
//!                                └─ nobody known: wait for a part of the time left │
//! read   by its consistency: consensus (read index) · gate (revision) · at once ───┘
//! ```
//!
//! A request that had no effect because this node was wrong about the leader is routed anew, for at most half
//! of its time. Dropping the handler cancels nothing: what was handed over goes on.
//!
//! Everything up to the first wait happens in the order in which a connection's requests came.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use raft_core::{NodeId, RoleChange};
use raft_rpc::{
    Consistency, GetRequest, Kv, KvRequest, KvResponse, NodeStatus, RangeRequest, Request,
    TimedRequest, WireError,
};
use tarpc::context::Context;

use crate::{
    replica::{Answer, Proposal},
    server::{
        forward::{ForwardJob, Forwarder},
        inbox::{Class, Load},
        reads::check_age,
        shared::{Shared, Work},
        status::StatusSource,
        waiter::{Batch, ReadJob, ReadRequest, Waiter},
    },
    state_machine::command,
};

/// How often in a row a request follows the leader that an answer named before it waits for news.
const HOPS_MAX: u32 = 2;
/// How long a request waits for news of a leader before it is routed anew all the same: the leader this
/// node knows may just have been out of reach.
const ROUTE_AGAIN: Duration = Duration::from_millis(100);
/// What an overloaded caller is told to wait, in milliseconds.
const RETRY_AFTER_MS: u32 = 20;

/// The service of one node; one clone per request.
#[derive(Clone)]
pub(crate) struct KvService {
    router: Arc<Router>,
    status: Arc<StatusSource>,
}

impl KvService {
    /// A service over `router`.
    pub(crate) const fn new(router: Arc<Router>, status: Arc<StatusSource>) -> Self {
        Self { router, status }
    }
}

impl Kv for KvService {
    async fn execute(self, _: Context, batch: Vec<TimedRequest>) -> Vec<Answer> {
        let (call, round) = Call::begin(self.router, batch);
        call.finish(round).await
    }

    async fn status(self, _: Context) -> NodeStatus {
        self.status.collect().await
    }

    async fn ping(self, _: Context) {}
}

/// The answer to a request beyond the limit of one connection.
pub(crate) fn overloaded(node: u64, request: &KvRequest) -> Option<KvResponse> {
    match request {
        KvRequest::Execute { batch } => {
            let error = WireError::Overloaded { node, retry_after_ms: RETRY_AFTER_MS };
            Some(KvResponse::Execute(batch.iter().map(|_request| Err(error.clone())).collect()))
        }
        KvRequest::Status {} | KvRequest::Ping {} => None,
    }
}

/// Where requests go.
#[derive(Debug)]
pub(crate) struct Router {
    shared: Arc<Shared>,
    forwarders: Vec<(NodeId, Forwarder)>,
}

impl Router {
    /// Over the node and its forwarders.
    pub(crate) const fn new(shared: Arc<Shared>, forwarders: Vec<(NodeId, Forwarder)>) -> Self {
        Self { shared, forwarders }
    }

    /// Hands the requests of one round over; every slot of the returned batch will be filled.
    fn hand_over(&self, open: &[Open], deadline: Instant, hint: Option<NodeId>) -> Arc<Batch> {
        let node = self.shared.node();
        let batch = Batch::new(node, open.len());
        let mut writes = Writes::default();
        let (mut linearizable, mut stale) = (Vec::new(), Vec::new());
        for (slot, open) in open.iter().enumerate() {
            match &open.what {
                What::Write { command, return_previous } => {
                    writes.bytes += command.len();
                    writes.list.push((slot, command.clone(), *return_previous));
                }
                What::Read(request) => match consistency(request) {
                    Consistency::Linearizable => linearizable.push((slot, request.clone())),
                    Consistency::AtLeast(revision) => {
                        let job = ReadJob::new(
                            Arc::clone(&batch),
                            vec![(slot, request.clone())],
                            deadline,
                        );
                        self.shared.gate.when_at_revision(revision, job);
                    }
                    Consistency::Stale { max_age_ms } => {
                        match check_age(node, self.shared.leader_age(), max_age_ms) {
                            Ok(()) => stale.push((slot, request.clone())),
                            Err(error) => batch.slot(slot).fill(Err(error)),
                        }
                    }
                },
            }
        }
        if !stale.is_empty() {
            self.shared.gate.serve(ReadJob::new(Arc::clone(&batch), stale, deadline));
        }
        if !linearizable.is_empty() {
            let load = Load { items: linearizable.len(), bytes: 0 };
            let job = ReadJob::new(Arc::clone(&batch), linearizable, deadline);
            if let Err(Work::Read(job)) =
                self.shared.inbox.offer(Class::Client, load, Work::Read(job))
            {
                job.refuse(&WireError::Overloaded { node, retry_after_ms: RETRY_AFTER_MS });
            }
        }
        if !writes.list.is_empty() {
            self.write(&batch, writes, deadline, hint);
        }
        batch
    }

    /// Hands writes to consensus here, or to the node that leads.
    fn write(&self, batch: &Arc<Batch>, writes: Writes, deadline: Instant, hint: Option<NodeId>) {
        let node = self.shared.node();
        let leadership = *self.shared.leadership.borrow();
        let target = hint.or(leadership.leader);
        let refused: Vec<Waiter> = match target {
            None => {
                for (slot, _command, _previous) in writes.list {
                    batch.slot(slot).fill(Err(WireError::NoLeader { node }));
                }
                return;
            }
            Some(leader) if leader == self.shared.id => {
                let load = Load { items: writes.list.len(), bytes: writes.bytes };
                let proposals = writes
                    .list
                    .into_iter()
                    .map(|(slot, command, return_previous)| Proposal {
                        command,
                        return_previous,
                        waiter: Waiter::Write(batch.slot(slot)),
                    })
                    .collect();
                let work = Work::Propose { proposals, deadline };
                match self.shared.inbox.offer(Class::Client, load, work) {
                    Err(Work::Propose { proposals, .. }) => {
                        proposals.into_iter().map(|proposal| proposal.waiter).collect()
                    }
                    Ok(()) | Err(_) => Vec::new(),
                }
            }
            Some(leader) => {
                let jobs: Vec<ForwardJob> = writes
                    .list
                    .into_iter()
                    .map(|(slot, command, return_previous)| ForwardJob {
                        command,
                        return_previous,
                        deadline,
                        slot: batch.slot(slot),
                    })
                    .collect();
                let forwarder = self.forwarders.iter().find(|(peer, _forwarder)| *peer == leader);
                let Some((_peer, forwarder)) = forwarder else {
                    for job in jobs {
                        job.slot.fill(Err(WireError::NoLeader { node }));
                    }
                    return;
                };
                let refused = forwarder.send(jobs).err().unwrap_or_default();
                refused.into_iter().map(|job| Waiter::Write(job.slot)).collect()
            }
        };
        for waiter in refused {
            waiter.answer(Err(WireError::Overloaded { node, retry_after_ms: RETRY_AFTER_MS }));
        }
    }

    /// Proposes writes that another node handed over; never forwarded again. Consensus refuses what is no
    /// command.
    pub(crate) fn propose_here(
        &self,
        commands: Vec<(Bytes, bool)>,
        deadline: Instant,
    ) -> Arc<Batch> {
        let batch = Batch::new(self.shared.node(), commands.len());
        let mut writes = Writes::default();
        for (slot, (command, return_previous)) in commands.into_iter().enumerate() {
            writes.bytes += command.len();
            writes.list.push((slot, command, return_previous));
        }
        if !writes.list.is_empty() {
            self.write(&batch, writes, deadline, Some(self.shared.id));
        }
        batch
    }
}

#[derive(Default)]
struct Writes {
    list: Vec<(usize, Bytes, bool)>,
    bytes: usize,
}

/// A request that has no final answer yet.
struct Open {
    /// Its place in the call.
    place: usize,
    what: What,
}

enum What {
    Write { command: Bytes, return_previous: bool },
    Read(ReadRequest),
}

const fn consistency(request: &ReadRequest) -> Consistency {
    match request {
        ReadRequest::Get(GetRequest { consistency, .. })
        | ReadRequest::Range(RangeRequest { consistency, .. }) => *consistency,
    }
}

/// One call of a client.
struct Call {
    router: Arc<Router>,
    answers: Vec<Option<Answer>>,
    open: Vec<Open>,
    /// Until when a request without effect is routed anew.
    patience: Instant,
    deadline: Instant,
    /// Who led, as far as this node knew, when the requests were routed last.
    tried: RoleChange,
}

impl Call {
    /// Checks every request, encodes the writes, and hands everything over. Does not wait.
    fn begin(router: Arc<Router>, batch: Vec<TimedRequest>) -> (Self, Arc<Batch>) {
        let node = router.shared.node();
        let begun = Instant::now();
        let mut longest = Duration::ZERO;
        let mut answers: Vec<Option<Answer>> = Vec::with_capacity(batch.len());
        let mut open = Vec::with_capacity(batch.len());
        for (place, timed) in batch.into_iter().enumerate() {
            let left = Duration::from_millis(timed.timeout_ms.into());
            let refused = if left.is_zero() {
                Err(WireError::Timeout { node })
            } else {
                router.shared.limits.check(node, &timed.request)
            };
            if let Err(error) = refused {
                answers.push(Some(Err(error)));
                continue;
            }
            answers.push(None);
            longest = longest.max(left);
            let what = match timed.request {
                Request::Write(write) => What::Write {
                    command: command::encode(&write),
                    return_previous: command::returns_previous(&write),
                },
                Request::Get(get) => What::Read(ReadRequest::Get(get)),
                Request::Range(range) => What::Read(ReadRequest::Range(range)),
            };
            open.push(Open { place, what });
        }
        let deadline = begun + longest;
        let tried = *router.shared.leadership.borrow();
        let round = router.hand_over(&open, deadline, None);
        let patience = begun + longest / 2;
        (Self { router, answers, open, patience, deadline, tried }, round)
    }

    /// Waits for the answers, routing anew what had no effect.
    async fn finish(mut self, mut round: Arc<Batch>) -> Vec<Answer> {
        let mut hops = 0;
        loop {
            let answers = round.wait_until(self.deadline).await;
            let hint = self.settle(answers);
            if self.open.is_empty() {
                break;
            }
            let hint = hint.filter(|_named| hops < HOPS_MAX);
            if hint.is_some() {
                hops += 1;
            } else {
                self.news_of_a_leader().await;
                hops = 0;
            }
            self.tried = *self.router.shared.leadership.borrow();
            round = self.router.hand_over(&self.open, self.deadline, hint);
        }
        let node = self.router.shared.node();
        let unanswered = || Err(WireError::Timeout { node });
        self.answers.into_iter().map(|answer| answer.unwrap_or_else(unanswered)).collect()
    }

    /// Takes the answers of a round over. What stays open is to be routed again, toward the node that
    /// an answer named.
    fn settle(&mut self, answers: Vec<Option<Answer>>) -> Option<NodeId> {
        let node = self.router.shared.node();
        let last = Instant::now() >= self.patience;
        let mut hint = None;
        let mut again = Vec::new();
        for (open, answer) in std::mem::take(&mut self.open).into_iter().zip(answers) {
            let answer = answer.unwrap_or_else(|| {
                Err(match open.what {
                    What::Write { .. } => WireError::OutcomeUnknown {
                        node,
                        reason: "no answer within the deadline".to_owned(),
                    },
                    What::Read(_) => WireError::Timeout { node },
                })
            });
            let misrouted = match &answer {
                // What this node itself names, the router knows anyway.
                Err(WireError::NotLeader { node: who, hint: named, .. }) => {
                    if *who != node {
                        hint = named.and_then(NodeId::new).filter(|named| named.get() != *who);
                    }
                    true
                }
                Err(WireError::NoLeader { .. }) => true,
                Err(_) | Ok(_) => false,
            };
            if misrouted && !last {
                again.push(open);
            } else if let Some(place) = self.answers.get_mut(open.place) {
                *place = Some(answer);
            }
        }
        self.open = again;
        hint
    }

    /// Waits until this node knows of another leader than it did, or for a while.
    async fn news_of_a_leader(&self) {
        let tried = (self.tried.term, self.tried.leader);
        let mut leadership = self.router.shared.leadership.subscribe();
        let news = leadership
            .wait_for(|known| known.leader.is_some() && (known.term, known.leader) != tried);
        let until = match tried.1 {
            Some(_leader) => self.patience.min(Instant::now() + ROUTE_AGAIN),
            None => self.patience,
        };
        // Late or not: the next answer tells.
        drop(tokio::time::timeout_at(tokio::time::Instant::from_std(until), news).await);
    }
}
