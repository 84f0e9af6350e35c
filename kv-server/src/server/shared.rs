//! What the tasks and threads of one node share.
//!
//! Consensus itself is owned by its thread; here is only what it publishes, the queue in front of it, and
//! counters. Nothing here waits.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use raft_core::{Envelope, Micros, NodeId, RoleChange, RoleKind, Term};
use raft_rpc::{Hello, Purpose};
use tokio::sync::{oneshot, watch};

use crate::{
    limits::Limits,
    replica::{ApplyDone, FetchDone, LogDone, Proposal, ReplicaStatus},
    server::{
        failure::Lifecycle,
        inbox::Inbox,
        reads::ReadGate,
        waiter::{ReadJob, Waiter},
    },
};

/// Everything that can wake the consensus thread.
#[derive(Debug)]
pub(crate) enum Work {
    /// A batch of a peer, checked to come from it.
    Messages(Vec<Envelope>),
    /// Writes of one call; after `deadline` nobody waits for them.
    Propose {
        /// The writes.
        proposals: Vec<Proposal<Waiter>>,
        /// When their callers give up.
        deadline: Instant,
    },
    /// Linearizable reads of one call.
    Read(ReadJob),
    /// From the log thread.
    LogDone(LogDone),
    /// From the apply thread.
    ApplyDone(ApplyDone),
    /// From the fetch thread.
    Fetched(FetchDone),
    /// The link to a peer broke.
    Unreachable(NodeId),
    /// Somebody asks for the status.
    Status(oneshot::Sender<ReplicaStatus>),
    /// The thread shall end.
    Stop,
}

/// The state every part of the node sees.
#[derive(Debug)]
pub(crate) struct Shared {
    /// This node.
    pub id: NodeId,
    /// What it says in a handshake; the purpose is replaced.
    pub hello: Hello,
    /// Where its peers are.
    pub peers: BTreeSet<NodeId>,
    /// Limits on requests.
    pub limits: Limits,
    /// In front of the consensus thread.
    pub inbox: Inbox<Work>,
    /// In front of the readers.
    pub gate: ReadGate,
    /// Who leads, as far as this node knows.
    pub leadership: watch::Sender<RoleChange>,
    /// When a leader was heard of.
    pub contact: Contact,
    /// The node's clock.
    pub clock: Clock,
    /// Running, stopping, failed.
    pub lifecycle: Arc<Lifecycle>,
    /// Client requests handed to the leader since the start.
    pub forwarded: AtomicU64,
    /// Batches of peers that were dropped because the queue was full.
    pub dropped_batches: AtomicU64,
    /// Refused connections, each reason logged once.
    pub refused: RefusedLog,
}

impl Shared {
    /// The id as the wire has it.
    pub(crate) const fn node(&self) -> u64 {
        self.id.get()
    }

    /// This node's `Hello` for a connection of `purpose`.
    pub(crate) fn hello(&self, purpose: Purpose) -> Hello {
        Hello { purpose, ..self.hello.clone() }
    }

    /// How long ago this node heard from a leader; zero while it leads.
    pub(crate) fn leader_age(&self) -> Duration {
        if self.leadership.borrow().role == RoleKind::Leader {
            return Duration::ZERO;
        }
        self.clock.now().since(self.contact.last())
    }
}

/// Monotonic time since the node's start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that begins now.
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The time on it.
    pub(crate) fn now(self) -> Micros {
        Micros(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// When it will show `time`; `None` if that is beyond what a wait can express.
    pub(crate) fn instant(self, time: Micros) -> Option<Instant> {
        self.start.checked_add(Duration::from_micros(time.0))
    }
}

/// When a leader of the current term was last heard of. At the start: never, which counts from the start.
#[derive(Debug, Default)]
pub(crate) struct Contact(AtomicU64);

impl Contact {
    /// A leader's message was taken at `now`.
    pub(crate) fn heard(&self, now: Micros) {
        self.0.store(now.0, Ordering::Relaxed);
    }

    fn last(&self) -> Micros {
        Micros(self.0.load(Ordering::Relaxed))
    }
}

/// What is known before anything happened.
pub(crate) const NO_LEADER: RoleChange =
    RoleChange { role: RoleKind::Follower, term: Term(0), leader: None };

/// Remembers which refusals were logged, so that a stranger who keeps dialling is one line.
#[derive(Debug, Default)]
pub(crate) struct RefusedLog {
    seen: Mutex<BTreeSet<(String, String)>>,
    count: AtomicU64,
}

/// Refusals that are told apart; beyond it the memory starts anew and a line may appear again.
const REFUSALS_REMEMBERED: usize = 1_024;

impl RefusedLog {
    /// Whether this refusal is new and shall be logged. Counts it in any case.
    pub(crate) fn is_new(&self, who: &str, reason: &str) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut seen = self.seen.lock();
        if seen.len() >= REFUSALS_REMEMBERED {
            seen.clear();
        }
        seen.insert((who.to_owned(), reason.to_owned()))
    }

    /// Refusals since the start.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
