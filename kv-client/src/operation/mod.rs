//! The operations: values that say what is to be done, and are done when awaited.
//!
//! An operation holds a clone of its client, so that its future is `'static` and `Send` and can be
//! spawned. Nothing is sent before the operation is awaited; each holds its own overrides of the
//! client's timeout and consistency.

mod delete;
mod get;
mod put;
mod range;

pub use delete::{ConditionalDelete, Delete, DeleteRange, DeleteTarget, Deleted};
pub use get::{Get, GetWithRevision, ReadAt};
pub use put::{ConditionalPut, Put, Written};
pub use range::{Count, Counted, Cursor, Page, Range, RangeStream};

use raft_rpc::{KeyValue, Response};

use crate::error::{Effect, Error, ErrorKind, Result};

/// What became of a conditional write. A condition that does not hold is an answer, not an error.
#[must_use = "the condition may not have held; look which it was"]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Conditional<T = Written> {
    /// The condition held and the write took effect.
    Applied(T),
    /// The condition did not hold; nothing happened.
    Refused {
        /// The store's revision when the condition was evaluated.
        revision: u64,
        /// What the key held; `None` if it did not exist.
        current: Option<KeyValue>,
    },
}

impl<T> Conditional<T> {
    /// Whether the condition held.
    #[must_use]
    pub fn is_applied(&self) -> bool {
        matches!(self, Self::Applied(_))
    }

    /// Turns a refusal into an error, for callers that take it for one.
    ///
    /// # Errors
    /// The condition did not hold ([`ErrorKind::ConditionFailed`]); nothing was changed.
    pub fn applied(self) -> Result<T> {
        match self {
            Self::Applied(done) => Ok(done),
            Self::Refused { revision, current } => {
                let found = match current {
                    Some(current) => {
                        format!("the key was last changed at {}", current.mod_revision)
                    }
                    None => "the key does not exist".to_owned(),
                };
                Err(Error::new(
                    ErrorKind::ConditionFailed,
                    Effect::None,
                    format!("condition did not hold at revision {revision}: {found}"),
                    "read the key again and decide anew",
                ))
            }
        }
    }
}

/// The error for an answer that does not belong to the question. The write, if it was one, may
/// have taken effect.
fn mismatch(asked: &str, answer: &Response, effect: Effect) -> Error {
    let got = match answer {
        Response::Session { .. } => "a session",
        Response::Written { .. } => "the answer of a put",
        Response::Deleted { .. } => "the answer of a delete",
        Response::Refused { .. } => "a refused condition",
        Response::Value { .. } => "a value",
        Response::Page { .. } => "a page",
        Response::Count { .. } => "a count",
    };
    Error::new(
        ErrorKind::Protocol,
        effect,
        format!("{asked} was answered with {got}"),
        "client and node do not fit together; check their versions",
    )
}
