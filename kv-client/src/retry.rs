//! One call: its attempts under one deadline, and the truth about its effect.
//!
//! Called by every operation through [`Client`](crate::Client). Chooses a node with `directory`,
//! hands the request to its connection, and decides from what comes back whether to answer, to
//! give up, or to try again, where and when.
//!
//! Invariants
//! 1. A write keeps its tag over all attempts, so that it takes effect once.
//! 2. Once an attempt's outcome is unknown, only an answer of the store settles it: every error
//!    after that has the effect `Unknown`.
//! 3. No attempt begins and no pause is made beyond the deadline.
//!
//! | what came back            | effect of the attempt | then                                   |
//! |---------------------------|-----------------------|----------------------------------------|
//! | an answer                 | as it says            | done                                   |
//! | never sent                | none                  | the next node at once, then with pauses|
//! | connection lost after send| write: unknown        | the next node, same tag                |
//! | not the leader, with hint | none                  | the node named, at once                |
//! | no leader                 | none                  | pause, then the next node              |
//! | overloaded                | none                  | the pause it asks for                  |
//! | outcome unknown, storage  | write: unknown        | the next node, same tag                |
//! | session expired           | none, or unknown if a retry | a new session, or give up        |
//! | too large, bad input, …   | none                  | give up                                |

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use raft_rpc::{Request, Response, WireError, WriteOperation, WriteRequest};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::backoff::{Backoff, jittered};
use crate::connection::Link;
use crate::directory::{Directory, Endpoint};
use crate::error::{Effect, Error, ErrorKind, Result, UNKNOWN_HINT};
use crate::job::{Answer, Job, Lane, Stage, Ticket};
use crate::session::{Sessions, Tag};

/// Redirections followed without a pause; nodes that point at one another must not be asked in a
/// tight loop.
const REDIRECTIONS_AT_ONCE: u32 = 3;

/// A node that took a request and says nothing has this part of the call's time before another is
/// asked: it may wait for a leader that is frozen, while the others have a new one.
const ATTEMPTS_PER_CALL: u32 = 3;
/// But at least this: no node is slow for so long unless something is wrong.
const ATTEMPT_MIN: Duration = Duration::from_secs(1);
/// How often a write replaces a session that the store does not know. One that is new and unknown
/// again and again is no accident of time.
const SESSIONS_REPLACED_MAX: u32 = 3;

/// When a call must end, and what the caller was promised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    timeout: Duration,
    /// How long one attempt may take, if the caller has set it.
    attempt: Option<Duration>,
}

impl Deadline {
    pub(crate) fn after(timeout: Duration, attempt: Option<Duration>) -> Self {
        let now = Instant::now();
        // A day stands for "for ever"; the clock can't be asked to go further than it can count.
        let at = now + timeout.min(Duration::from_secs(24 * 60 * 60));
        Self { at, timeout, attempt }
    }
}

/// A write, exactly once, with a session that is registered when needed.
pub(crate) async fn write(
    directory: &Directory,
    sessions: &Arc<Sessions>,
    operation: WriteOperation,
    deadline: Deadline,
) -> Result<Response> {
    for _ in 0..=SESSIONS_REPLACED_MAX {
        let register = || register(directory, deadline);
        let tag = match timeout_at(deadline.at, sessions.tag(register)).await {
            Ok(Ok(tag)) => tag,
            // It came to register a session itself, but too late to be told anything.
            Ok(Err(error)) if error.kind() == ErrorKind::Timeout => {
                return Err(not_begun(directory, sessions, deadline));
            }
            Ok(Err(error)) => return Err(error),
            Err(_elapsed) => return Err(not_begun(directory, sessions, deadline)),
        };
        let mut call = Call::new(directory, Lane::Write, deadline);
        let ended = call.run(|| {
            let operation = operation.clone();
            Request::Write(WriteRequest { tag: Some(tag.wire()), operation })
        });
        match ended.await {
            // The session was unknown to the store before this write was ever sent to it: nothing
            // has happened, and a new session makes it possible.
            Err(CallError::SessionExpired) => forget(sessions, &tag),
            Err(CallError::Failed(error)) => return Err(error),
            Ok(response) => return Ok(response),
        }
    }
    Err(Error::new(
        ErrorKind::Protocol,
        Effect::None,
        "each new session was unknown to the cluster as soon as it was registered",
        "check that all endpoints belong to one cluster",
    ))
}

/// The error of a write that found no session or no room in it until its deadline.
fn not_begun(directory: &Directory, sessions: &Sessions, deadline: Deadline) -> Error {
    if sessions.is_registered() {
        return Error::new(
            ErrorKind::Timeout,
            Effect::None,
            format!(
                "write was not begun within {:?}: {} others are outstanding",
                deadline.timeout,
                crate::session::WINDOW
            ),
            "give the call more time, or write with fewer callers at once",
        );
    }
    // Another call was registering the session all the time, and failed as this one does.
    let mut call = Call::new(directory, Lane::Write, deadline);
    if directory.reach().connected == 0 {
        let (_, endpoint) = directory.route(Lane::Write, None);
        call.last = Failure::Connection(endpoint.link().failure());
        return call.final_error();
    }
    call.no_leader_error()
}

fn forget(sessions: &Sessions, tag: &Tag) {
    tracing::debug!(session = tag.session(), "session expired, registering another");
    sessions.forget(tag.session());
}

async fn register(directory: &Directory, deadline: Deadline) -> Result<u64> {
    let mut call = Call::new(directory, Lane::Write, deadline);
    // An attempt that is lost may leave a session that nobody uses; the store drops it when it has
    // been idle for long enough. So it is no write whose outcome matters.
    call.is_write = false;
    let registered = call.run(|| {
        Request::Write(WriteRequest { tag: None, operation: WriteOperation::RegisterSession })
    });
    match registered.await {
        Ok(Response::Session { id }) => Ok(id),
        Ok(_other) => Err(Error::new(
            ErrorKind::Protocol,
            Effect::None,
            "the registration of a session was answered with something else",
            "client and node do not fit together; check their versions",
        )),
        Err(CallError::Failed(error)) => Err(error),
        Err(CallError::SessionExpired) => Err(Error::new(
            ErrorKind::Protocol,
            Effect::None,
            "the registration of a session was answered with its expiry",
            "client and node do not fit together; check their versions",
        )),
    }
}

/// A read.
pub(crate) async fn read(
    directory: &Directory,
    request: Request,
    deadline: Deadline,
) -> Result<Response> {
    let mut call = Call::new(directory, Lane::of(&request), deadline);
    match call.run(|| request.clone()).await {
        Ok(response) => Ok(response),
        Err(CallError::Failed(error)) => Err(error),
        Err(CallError::SessionExpired) => Err(Error::new(
            ErrorKind::Protocol,
            Effect::None,
            "a read was answered with the expiry of a session",
            "client and node do not fit together; check their versions",
        )),
    }
}

enum CallError {
    /// Before any attempt could have taken effect.
    SessionExpired,
    Failed(Error),
}

/// The state of a call over its attempts.
struct Call<'a> {
    directory: &'a Directory,
    lane: Lane,
    deadline: Deadline,
    is_write: bool,
    backoff: Backoff,
    /// Endpoints tried since the last pause.
    tried: usize,
    redirections: u32,
    /// The endpoint that failed last.
    avoid: Option<usize>,
    /// How long a node has for its answer before another is asked; with one endpoint there is no
    /// other.
    attempt_limit: Option<Duration>,
    /// In a batch of its own from now on.
    alone: bool,
    /// Why the outcome of an attempt is unknown: the first reason.
    unknown: Option<String>,
    /// What the last attempt failed with.
    last: Failure,
}

/// Why an attempt failed without an effect, or with one that is noted in [`Call::unknown`].
enum Failure {
    NoneYet,
    /// No connection, or a lost one.
    Connection(String),
    /// The deadline passed while a node had the request.
    Waiting {
        endpoint: String,
    },
    Wire(WireError),
}

/// What to do after an attempt.
enum Next {
    /// Try again now.
    Now,
    /// Try again after a pause of the call's own.
    Pause,
    /// Try again after this time.
    After(Duration),
}

impl<'a> Call<'a> {
    fn new(directory: &'a Directory, lane: Lane, deadline: Deadline) -> Self {
        let share = (deadline.timeout / ATTEMPTS_PER_CALL).max(ATTEMPT_MIN);
        let by_default = (directory.len() > 1).then_some(share);
        Self {
            attempt_limit: deadline.attempt.or(by_default),
            directory,
            lane,
            deadline,
            is_write: lane == Lane::Write,
            backoff: Backoff::for_attempts(),
            tried: 0,
            redirections: 0,
            avoid: None,
            alone: false,
            unknown: None,
            last: Failure::NoneYet,
        }
    }

    async fn run(&mut self, request: impl Fn() -> Request) -> Result<Response, CallError> {
        loop {
            let (position, endpoint) = self.directory.route(self.lane, self.avoid);
            if self.directory.len() > 1 {
                self.directory.check_leader(&endpoint);
            }
            let link = endpoint.link();
            let next = match self.attempt(link, request()).await {
                Attempt::Answered(Ok(response)) => return Ok(response),
                Attempt::Answered(Err(error)) => self.judge(position, error)?,
                Attempt::Failed { sent } => self.connection_failed(position, &endpoint, link, sent),
                Attempt::LimitPassed { sent } => {
                    self.no_answer(&endpoint, sent);
                    self.elsewhere(position)
                }
                Attempt::DeadlinePassed { sent } => {
                    self.no_answer(&endpoint, sent);
                    return Err(CallError::Failed(self.final_error()));
                }
            };
            let pause = match next {
                Next::Now => continue,
                Next::Pause => self.backoff.next_delay(),
                Next::After(duration) => duration + jittered(duration / 2),
            };
            let until = Instant::now() + pause;
            if until >= self.deadline.at {
                return Err(CallError::Failed(self.final_error()));
            }
            self.tried = 0;
            sleep_until(until).await;
        }
    }

    async fn attempt(&self, link: &Link, request: Request) -> Attempt {
        let ticket = Arc::new(Ticket::default());
        let (reply, answer) = oneshot::channel();
        let job = Job {
            request,
            deadline: self.deadline.at,
            attempt: self.attempt_limit,
            alone: self.alone,
            ticket: Arc::clone(&ticket),
            reply,
        };
        let mut answered = pin!(async {
            link.submit(self.lane, job).await;
            answer.await
        });
        let mut was_queued = false;
        let mut batches_answered = link.batches_answered();
        loop {
            let limit = self.attempt_limit.map(|limit| Instant::now() + limit);
            let until = limit.map_or(self.deadline.at, |limit| limit.min(self.deadline.at));
            match timeout_at(until, &mut answered).await {
                Ok(Ok(answer)) => return Attempt::Answered(answer),
                Ok(Err(_dropped)) => {
                    return Attempt::Failed { sent: ticket.give_up() == Stage::Sent };
                }
                Err(_elapsed) if until < self.deadline.at => {
                    let answered_now = link.batches_answered();
                    match ticket.stage() {
                        // The node works; the backlog is this client's own, and another node would
                        // not be quicker.
                        Stage::Queued if answered_now != batches_answered => was_queued = true,
                        // It has left since the last look: the node has its time from now on.
                        Stage::Sent if was_queued => was_queued = false,
                        Stage::Queued | Stage::Sent => {
                            return Attempt::LimitPassed { sent: ticket.give_up() == Stage::Sent };
                        }
                    }
                    batches_answered = answered_now;
                }
                Err(_elapsed) => {
                    return Attempt::DeadlinePassed { sent: ticket.give_up() == Stage::Sent };
                }
            }
        }
    }

    /// The connection failed under the request, or was not there.
    fn connection_failed(
        &mut self,
        position: usize,
        endpoint: &Endpoint,
        link: &Link,
        sent: bool,
    ) -> Next {
        let failure = link.failure();
        if sent {
            let name = endpoint.name();
            self.note_unknown(|| format!("connection to {name} lost after send: {failure}"));
            // The batch may have failed because its answer did not fit a frame. Alone, the request
            // fails or succeeds by itself.
            self.alone = true;
        }
        self.last = Failure::Connection(failure);
        self.elsewhere(position)
    }

    /// Turns to another endpoint: at once while some are untried, then after a pause.
    fn elsewhere(&mut self, position: usize) -> Next {
        self.directory.failed(position);
        self.avoid = Some(position);
        self.tried += 1;
        if self.tried < self.directory.len() { Next::Now } else { Next::Pause }
    }

    /// Decides what an error that a node answered means for the call.
    fn judge(&mut self, position: usize, error: WireError) -> Result<Next, CallError> {
        let next = match &error {
            WireError::NotLeader { hint, hint_addr, .. } => {
                let elsewhere = self.directory.redirected(position, *hint, hint_addr.as_deref());
                self.avoid = None;
                self.redirections += 1;
                if elsewhere && self.redirections <= REDIRECTIONS_AT_ONCE {
                    Next::Now
                } else {
                    // Nobody to turn to yet, or the hint is old: the node may know better soon,
                    // another may know better now.
                    self.avoid = (!elsewhere).then_some(position);
                    Next::Pause
                }
            }
            WireError::NoLeader { .. } => {
                self.directory.no_leader(position);
                self.avoid = Some(position);
                Next::Pause
            }
            WireError::Overloaded { retry_after_ms, .. } => {
                self.avoid = None;
                Next::After(Duration::from_millis(u64::from((*retry_after_ms).max(1))))
            }
            WireError::ShuttingDown { .. } => self.elsewhere(position),
            WireError::Timeout { .. } => Next::Pause,
            WireError::OutcomeUnknown { reason, node } => {
                let text = format!("{reason} (node {node})");
                self.note_unknown(|| text);
                self.elsewhere(position)
            }
            WireError::Storage { .. } => {
                let text = error.to_string();
                self.note_unknown(|| text);
                self.elsewhere(position)
            }
            WireError::TooStale { .. } => {
                self.tried += 1;
                if self.tried >= self.directory.len() {
                    return Err(CallError::Failed(self.wire_error(&error)));
                }
                self.avoid = Some(position);
                Next::Now
            }
            WireError::SessionExpired { .. } => {
                return Err(match self.unknown {
                    None if self.is_write => CallError::SessionExpired,
                    None => CallError::Failed(self.wire_error(&error)),
                    Some(_) => {
                        self.note_unknown(String::new);
                        self.last = Failure::Wire(error);
                        CallError::Failed(self.final_error())
                    }
                });
            }
            WireError::TooLarge { .. }
            | WireError::BadInput { .. }
            | WireError::Compacted { .. }
            | WireError::FutureRevision { .. }
            | WireError::BadSequence { .. } => {
                return Err(CallError::Failed(self.wire_error(&error)));
            }
        };
        self.last = Failure::Wire(error);
        Ok(next)
    }

    /// A node did not answer in time, if it had the request at all.
    fn no_answer(&mut self, endpoint: &Endpoint, sent: bool) {
        if !sent {
            return;
        }
        let name = endpoint.name();
        self.note_unknown(|| format!("no answer from {name}"));
        self.last = Failure::Waiting { endpoint: name };
    }

    fn note_unknown(&mut self, reason: impl FnOnce() -> String) {
        if self.is_write {
            self.unknown.get_or_insert_with(reason);
        }
    }

    /// The error for an answer that settles the call, unless an earlier attempt left it open.
    fn wire_error(&self, error: &WireError) -> Error {
        match &self.unknown {
            None => Error::from_wire(error, Effect::None),
            Some(reason) => self.unknown_error(reason),
        }
    }

    fn unknown_error(&self, reason: &str) -> Error {
        Error::new(
            ErrorKind::OutcomeUnknown,
            Effect::Unknown,
            format!("write outcome unknown: {reason} (deadline {:?})", self.deadline.timeout),
            UNKNOWN_HINT,
        )
    }

    /// The error of a call that ran out of time.
    fn final_error(&self) -> Error {
        if let Some(reason) = &self.unknown {
            return self.unknown_error(reason);
        }
        let timeout = self.deadline.timeout;
        match &self.last {
            Failure::NoneYet => Error::new(
                ErrorKind::Timeout,
                Effect::None,
                format!("nothing could be sent to {} within {timeout:?}", self.directory.summary()),
                "give the call more time; `kvctl status` shows which nodes answer",
            ),
            Failure::Waiting { endpoint } => Error::new(
                ErrorKind::Timeout,
                Effect::None,
                format!("no answer from {endpoint} within {timeout:?}"),
                "give the call more time; `kvctl status` shows which nodes answer",
            ),
            Failure::Connection(reason) => Error::new(
                ErrorKind::Unavailable,
                Effect::None,
                format!("cannot reach {} within {timeout:?}: {reason}", self.directory.summary()),
                "check the addresses (--endpoints, KVCTL_ENDPOINTS) and that the nodes run",
            ),
            Failure::Wire(WireError::NoLeader { .. } | WireError::NotLeader { .. }) => {
                self.no_leader_error()
            }
            Failure::Wire(error) => Error::from_wire(error, Effect::None),
        }
    }

    fn no_leader_error(&self) -> Error {
        let reach = self.directory.reach();
        let summary = self.directory.summary();
        let found = match reach.voters {
            Some(voters) if voters > reach.endpoints => format!(
                "{} of {} endpoints reachable; of the cluster's {voters} voters {} are needed",
                reach.connected,
                reach.endpoints,
                voters / 2 + 1
            ),
            Some(_) | None if reach.endpoints > 1 => format!(
                "{} of {} nodes reachable, {} needed",
                reach.connected,
                reach.endpoints,
                reach.endpoints / 2 + 1
            ),
            Some(_) | None => {
                format!("the node answers, but knew of none for {:?}", self.deadline.timeout)
            }
        };
        Error::new(
            ErrorKind::NoLeader,
            Effect::None,
            format!("no leader among {summary}: {found}"),
            "`kvctl status` shows which are down; reads that may be stale still work: --stale",
        )
    }
}

/// What became of one attempt.
enum Attempt {
    Answered(Answer),
    /// The connection failed, or there is none.
    Failed {
        sent: bool,
    },
    /// There was no answer within the time of an attempt.
    LimitPassed {
        sent: bool,
    },
    DeadlinePassed {
        sent: bool,
    },
}
