//! How fresh a read must be, and what the client remembers for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How fresh a read must be. Every answer carries the revision it was made at.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Consistency {
    /// Sees every write that was acknowledged to anyone before the read began.
    #[default]
    Linearizable,
    /// Never older than what this client and its clones have seen or written.
    Session,
    /// Sees at least this revision; the node waits until it has it.
    AtLeast(u64),
    /// Whatever the node that is asked has applied, at once.
    Stale {
        /// Refuse with [`ErrorKind::TooStale`](crate::ErrorKind::TooStale) if the node has not
        /// heard from a leader for longer than this; `None` for however old.
        max_age: Option<Duration>,
    },
}

/// The newest revision this client has seen in any answer.
#[derive(Debug, Default)]
pub(crate) struct SeenRevision(AtomicU64);

impl SeenRevision {
    pub(crate) fn observe(&self, revision: u64) {
        // Most answers of a busy client are newer; but reads of the past are not, and a plain load
        // keeps those from taking the cache line for writing.
        if self.0.load(Ordering::Relaxed) < revision {
            self.0.fetch_max(revision, Ordering::Relaxed);
        }
    }

    /// The wire form of what the caller asked for.
    pub(crate) fn resolve(&self, consistency: Consistency) -> raft_rpc::Consistency {
        match consistency {
            Consistency::Linearizable => raft_rpc::Consistency::Linearizable,
            Consistency::Session => raft_rpc::Consistency::AtLeast(self.0.load(Ordering::Relaxed)),
            Consistency::AtLeast(revision) => raft_rpc::Consistency::AtLeast(revision),
            Consistency::Stale { max_age } => raft_rpc::Consistency::Stale {
                max_age_ms: max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            },
        }
    }
}
