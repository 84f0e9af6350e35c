//! The vocabulary: terms, indexes, positions, entries. Plain data; no rule of the protocol lives here.
//!
//! Every quantity has a type of its own, so that a term cannot be passed where an index is meant.

use alloc::sync::Arc;
use core::num::NonZeroU64;
use core::{fmt, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Membership;

macro_rules! number {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => { $(
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
        )]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    )* };
}

number! {
    /// A term (Raft §5.1): a period with at most one leader. 0 is before the first election.
    Term,
    /// A position in the replicated log. 0 is before the first entry; the first entry is 1.
    LogIndex,
    /// The number of a [`WriteOp`](crate::WriteOp) in the durable stream of one boot, from 1, without gaps.
    PersistSeq,
    /// The number of a round of read confirmation, issued by a leader within its term.
    ReadSeq,
    /// Names one append message, so that a late answer can be told from the awaited one.
    ProbeId,
    /// The caller's name for a proposal or a read. The core gives it back and never looks inside.
    Ticket,
    /// Names one request of the core to load old entries.
    FetchId,
    /// Monotonic time in microseconds since an arbitrary start; always given by the caller.
    Micros,
}

impl LogIndex {
    /// The index after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The index before this one; the index before the first entry is 0, and so is its own predecessor.
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Micros {
    /// This instant plus `duration`, saturating.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this instant; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// A member's identity: never 0, never given to a second machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub NonZeroU64);

impl NodeId {
    /// The node numbered `id`, or `None` for 0.
    #[must_use]
    pub const fn new(id: u64) -> Option<Self> {
        match NonZeroU64::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// Where an entry is and in which term it was made.
///
/// The order of the fields is the up-to-date rule of Raft §5.4.1 (term first, then index), which
/// the derived `Ord` gives.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct LogPos {
    /// The term of the leader that made the entry.
    pub term: Term,
    /// The entry's index.
    pub index: LogIndex,
}

/// What a node promised in an election. The vote means nothing without its term, so they only exist together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Ballot {
    /// The highest term this node has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub voted_for: Option<NodeId>,
}

/// What an entry holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// The empty entry by which a new leader commits what came before (Raft §8).
    Noop,
    /// A command, opaque to consensus.
    Command(Bytes),
    /// A membership, in force from the moment it is in the log.
    Config(Arc<Membership>),
}

/// One entry of the replicated log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its index and term.
    pub pos: LogPos,
    /// Its content.
    pub body: Body,
}
