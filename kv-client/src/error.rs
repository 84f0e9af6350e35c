//! What can go wrong with a call, and what its caller may conclude from it.
//!
//! An [`Error`] answers four questions: what kind of failure ([`Error::kind`]), did the call take
//! effect ([`Error::effect`]), may the same call be made again ([`Error::is_retryable`],
//! [`Error::retry_after`]), and what to do now ([`Error::hint`]).
//!
//! Invariants
//! 1. [`Effect::None`] is said only if no attempt of the call can have changed the store.
//! 2. The names of [`ErrorKind`] are those that `kvctl` prints and never change.

use std::fmt;
use std::time::Duration;

use raft_rpc::WireError;

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// Made for three readers: a program looks at [`kind`](Self::kind) and [`effect`](Self::effect), a
/// person reads the text and the [`hint`](Self::hint), a retry loop asks
/// [`is_retryable`](Self::is_retryable).
#[non_exhaustive]
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    kind: ErrorKind,
    effect: Effect,
    message: String,
    hint: String,
    retry_after: Option<Duration>,
}

/// The kinds of failure.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// No node knew of a leader until the deadline.
    NoLeader,
    /// No endpoint could be reached until the deadline.
    Unavailable,
    /// The deadline passed before an answer came, and the call changed nothing.
    Timeout,
    /// The nodes had too much to do until the deadline.
    Overloaded,
    /// The write was sent and its outcome could not be learned until the deadline.
    OutcomeUnknown,
    /// A key, a value or a request exceeds a limit.
    TooLarge,
    /// The request makes no sense.
    BadInput,
    /// The revision asked for was compacted.
    Compacted,
    /// The revision asked for does not exist yet.
    FutureRevision,
    /// A condition did not hold where the caller demanded that it does
    /// ([`Conditional::applied`](crate::Conditional::applied)).
    ConditionFailed,
    /// A stale read was refused: the node has not heard from a leader for longer than allowed.
    TooStale,
    /// The storage of a node failed.
    Storage,
    /// A node answered something that does not belong to the question.
    Protocol,
}

impl ErrorKind {
    /// The name, as `kvctl` prints it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoLeader => "no_leader",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::TooLarge => "too_large",
            Self::BadInput => "bad_input",
            Self::Compacted => "compacted",
            Self::FutureRevision => "future_revision",
            Self::ConditionFailed => "condition_failed",
            Self::TooStale => "too_stale",
            Self::Storage => "storage",
            Self::Protocol => "protocol",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a failed call changed the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// It changed nothing and never will.
    None,
    /// It may have taken effect, once, or may still.
    Unknown,
}

impl Effect {
    /// The name, as `kvctl` prints it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Error {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Whether the call changed the store.
    #[must_use]
    pub fn effect(&self) -> Effect {
        self.inner.effect
    }

    /// Whether making the same call again may succeed and can't apply anything twice.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        if self.inner.effect == Effect::Unknown {
            return false;
        }
        match self.inner.kind {
            ErrorKind::NoLeader
            | ErrorKind::Unavailable
            | ErrorKind::Timeout
            | ErrorKind::Overloaded
            | ErrorKind::TooStale
            | ErrorKind::FutureRevision
            | ErrorKind::Storage => true,
            ErrorKind::OutcomeUnknown
            | ErrorKind::TooLarge
            | ErrorKind::BadInput
            | ErrorKind::Compacted
            | ErrorKind::ConditionFailed
            | ErrorKind::Protocol => false,
        }
    }

    /// When to try again, if the cluster said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.inner.retry_after
    }

    /// What to do now, in a sentence for a person.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.inner.hint
    }

    pub(crate) fn new(
        kind: ErrorKind,
        effect: Effect,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                effect,
                message: message.into(),
                hint: hint.into(),
                retry_after: None,
            }),
        }
    }

    pub(crate) fn bad_input(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadInput, Effect::None, message, hint)
    }

    pub(crate) fn with_retry_after(mut self, after: Duration) -> Self {
        self.inner.retry_after = Some(after);
        self
    }

    /// The error for an answer that no further attempt can better. `effect` is what earlier
    /// attempts of the same call leave open.
    pub(crate) fn from_wire(error: &WireError, effect: Effect) -> Self {
        let (kind, hint, retry_after) = match error {
            WireError::NotLeader { .. } | WireError::NoLeader { .. } => (
                ErrorKind::NoLeader,
                "`kvctl status` shows which nodes are down; reads that may be stale still work",
                None,
            ),
            WireError::Overloaded { retry_after_ms, .. } => (
                ErrorKind::Overloaded,
                "try again later, or with fewer callers at once",
                Some(Duration::from_millis(u64::from(*retry_after_ms))),
            ),
            WireError::Timeout { .. } => {
                (ErrorKind::Timeout, "give the call more time, or the cluster less work", None)
            }
            WireError::OutcomeUnknown { .. } => (ErrorKind::OutcomeUnknown, UNKNOWN_HINT, None),
            WireError::TooLarge { .. } => (
                ErrorKind::TooLarge,
                "split it, or raise the limit on every node where it is a setting",
                None,
            ),
            WireError::BadInput { .. } => (ErrorKind::BadInput, "correct the request", None),
            WireError::Compacted { .. } => (
                ErrorKind::Compacted,
                "read at the oldest readable revision or above, or the newest state",
                None,
            ),
            WireError::FutureRevision { .. } => (
                ErrorKind::FutureRevision,
                "use a revision that an answer of this cluster named; a node that lags may not have it yet",
                None,
            ),
            WireError::SessionExpired { .. } => (ErrorKind::OutcomeUnknown, UNKNOWN_HINT, None),
            WireError::BadSequence { .. } => (
                ErrorKind::Protocol,
                "the node and this client disagree about the session; make a new client and report this",
                None,
            ),
            WireError::TooStale { .. } => {
                (ErrorKind::TooStale, "allow more age, or ask another node", None)
            }
            WireError::ShuttingDown { .. } => {
                (ErrorKind::Unavailable, "ask another node, or wait until this one is back", None)
            }
            WireError::Storage { .. } => (
                ErrorKind::Storage,
                "see the node's log; its data may need repair, other nodes have it too",
                None,
            ),
        };
        let message = match error {
            WireError::TooLarge { node, what, size, limit, setting } => {
                format!(
                    "{what} is {}, limit is {} ({setting} on node {node})",
                    bytes_text(*size),
                    bytes_text(*limit)
                )
            }
            WireError::NotLeader { .. }
            | WireError::NoLeader { .. }
            | WireError::Overloaded { .. }
            | WireError::Timeout { .. }
            | WireError::OutcomeUnknown { .. }
            | WireError::BadInput { .. }
            | WireError::Compacted { .. }
            | WireError::FutureRevision { .. }
            | WireError::SessionExpired { .. }
            | WireError::BadSequence { .. }
            | WireError::TooStale { .. }
            | WireError::ShuttingDown { .. }
            | WireError::Storage { .. } => error.to_string(),
        };
        let made = Self::new(kind, effect, message, hint);
        match retry_after {
            Some(after) => made.with_retry_after(after),
            None => made,
        }
    }
}

/// How to find out what became of a write, for hints.
pub(crate) const UNKNOWN_HINT: &str = "read the key to find out whether the write took effect; \
     a write with a condition can then be repeated safely";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.inner.kind)
            .field("effect", &self.inner.effect)
            .field("message", &self.inner.message)
            .field("hint", &self.inner.hint)
            .field("retry_after", &self.inner.retry_after)
            .finish()
    }
}

impl std::error::Error for Error {}

/// A size for people: exact below 1 KiB, one decimal where it says more.
pub(crate) fn bytes_text(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (name, unit) in UNITS {
        if bytes >= unit {
            let tenths = bytes / (unit / 10).max(1);
            // Whole units without a decimal; a size a little above a unit must not read as equal
            // to it, or "value is 1 MiB, limit is 1 MiB" would be said of a refused value.
            if bytes.is_multiple_of(unit) {
                return format!("{} {name}", bytes / unit);
            }
            if tenths.is_multiple_of(10) {
                return format!("{bytes} bytes");
            }
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_say_them() {
        assert_eq!(bytes_text(0), "0 bytes");
        assert_eq!(bytes_text(4097), "4097 bytes");
        assert_eq!(bytes_text(1 << 20), "1 MiB");
        assert_eq!(bytes_text((1 << 20) + 1), "1048577 bytes");
        assert_eq!(bytes_text(5 * (1 << 20) + 220_000), "5.2 MiB");
    }

    #[test]
    fn a_limit_is_told_with_node_and_setting() {
        let wire = WireError::TooLarge {
            node: 2,
            what: "value".into(),
            size: 5_452_595,
            limit: 1 << 20,
            setting: "limits.value".into(),
        };
        let error = Error::from_wire(&wire, Effect::None);
        assert_eq!(error.to_string(), "value is 5.2 MiB, limit is 1 MiB (limits.value on node 2)");
        assert_eq!(error.kind().as_str(), "too_large");
        assert_eq!(error.effect(), Effect::None);
        assert!(!error.is_retryable(), "the same value stays too large");
    }

    #[test]
    fn an_unknown_outcome_is_never_called_retryable() {
        let wire = WireError::Overloaded { node: 1, retry_after_ms: 20 };
        assert!(Error::from_wire(&wire, Effect::None).is_retryable());
        assert!(!Error::from_wire(&wire, Effect::Unknown).is_retryable());
        assert_eq!(
            Error::from_wire(&wire, Effect::None).retry_after(),
            Some(Duration::from_millis(20))
        );
    }
}
