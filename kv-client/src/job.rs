//! A request on its way from its caller to the connection's task, and how far it has come.
//!
//! Invariant: a job is marked as sent before its bytes can leave, and one that its caller has given
//! up is never sent; so what a caller concludes from [`Ticket::give_up`] is true.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use raft_rpc::{NodeStatus, Request, Response, WireError};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What keeps requests apart that must not wait for one another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    /// Writes.
    Write,
    /// Reads that wait for a leader or a revision.
    Read,
    /// Reads that are answered at once.
    Stale,
}

pub(crate) const LANES: [Lane; 3] = [Lane::Write, Lane::Read, Lane::Stale];

impl Lane {
    pub(crate) fn of(request: &Request) -> Self {
        let consistency = match request {
            Request::Write(_) => return Self::Write,
            Request::Get(get) => get.consistency,
            Request::Range(range) => range.consistency,
        };
        match consistency {
            raft_rpc::Consistency::Linearizable | raft_rpc::Consistency::AtLeast(_) => Self::Read,
            raft_rpc::Consistency::Stale { .. } => Self::Stale,
        }
    }

    pub(crate) fn number(self) -> usize {
        match self {
            Self::Write => 0,
            Self::Read => 1,
            Self::Stale => 2,
        }
    }
}

/// How far a job has come. Shared by its caller and the connection's task.
#[derive(Debug, Default)]
pub(crate) struct Ticket(AtomicU8);

/// The stages of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Waits; nothing was sent.
    Queued,
    /// Its bytes may have left.
    Sent,
}

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

impl Ticket {
    /// The task takes the job to send it; false if the caller has given up.
    pub(crate) fn take(&self) -> bool {
        self.0.compare_exchange(QUEUED, SENT, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(crate) fn stage(&self) -> Stage {
        match self.0.load(Ordering::Acquire) {
            SENT => Stage::Sent,
            _queued_or_given_up => Stage::Queued,
        }
    }

    /// The caller gives up. Says how far the job had come; if it was queued, it stays unsent.
    pub(crate) fn give_up(&self) -> Stage {
        match self.0.compare_exchange(QUEUED, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(GIVEN_UP) => Stage::Queued,
            Err(_) => Stage::Sent,
        }
    }
}

pub(crate) type Answer = Result<Response, WireError>;

/// A request on its way to a node.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) deadline: Instant,
    /// How long the node may take, if less than what is left until the deadline.
    pub(crate) attempt: Option<Duration>,
    /// In a batch of its own, because a batch with it has failed before.
    pub(crate) alone: bool,
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) reply: oneshot::Sender<Answer>,
}

/// A question for the node's status; with nobody to tell, only the directory learns of it.
#[derive(Debug)]
pub(crate) struct StatusJob {
    pub(crate) reply: Option<oneshot::Sender<NodeStatus>>,
}
