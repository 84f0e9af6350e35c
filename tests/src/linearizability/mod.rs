//! Is there an order of all operations that explains every answer? The checker of histories.
//!
//! [`check`] takes a [`History`] and finds out whether it is strictly serialisable: whether some
//! total order of the operations (a) keeps `a` before `b` if `a` ended before `b` began, and (b)
//! gives a sequential store exactly the answers that were given.
//!
//! In general that is a search (Wing and Gong 1993; Lowe 2017 adds remembering what was tried).
//! Here every answer carries the store's revision, which leaves little to search:
//! 1. Each write has a revision of its own, and a read is made *at* a revision. So the answered
//!    operations can only be in one order: by revision, a write before the reads at its revision.
//!    `order` checks that this order respects real time, over all keys at once.
//! 2. A range read, or any compound operation, is a read of each key it covers at one revision.
//! 3. What remains are operations with unknown outcomes. One whose value somebody saw took effect at
//!    the revision that was seen with it. The others may be anywhere after their invocation, or
//!    nowhere: `search` looks for places for them, per key, remembering configurations it has tried,
//!    and treating alike those that nobody can tell apart.
//! 4. Reads that need not be fresh (stale, historical) are reads that may be placed anywhere before
//!    their end.
//!
//! The check is exact: a history passes exactly if an order exists (range deletes of unknown outcome
//! aside, which are taken key by key). Only a count of keys
//! (`Projection::Count`) is not looked at here; the simulation compares it with its model.

mod observe;
mod order;
mod search;

use std::fmt;

use crate::history::{History, Moment, Operation};

/// What was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Checked {
    /// Operations with an answer.
    pub answered: usize,
    /// Operations with an unknown outcome.
    pub unknown: usize,
    /// Keys.
    pub keys: usize,
    /// Configurations visited by the search; close to the number of operations times keys if nothing
    /// had to be tried twice.
    pub configurations: usize,
}

/// Why no order explains a history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// An answer that cannot be, whatever else happened.
    Nonsense {
        /// The operation.
        operation: String,
        /// What is wrong with its answer.
        why: String,
    },
    /// Two writes have the same revision.
    SameRevision {
        /// The revision.
        revision: u64,
        /// The two.
        operations: [String; 2],
    },
    /// The later of two operations saw an older store than the earlier one.
    RealTime {
        /// Ended first.
        earlier: String,
        /// Began after that, and must nevertheless come before it.
        later: String,
    },
    /// A value was seen that no operation can have written.
    NobodyWrote {
        /// The key.
        key: String,
        /// What was seen.
        seen: String,
        /// Who saw it.
        observer: String,
        /// Operations that would have written it but were answered as having no effect.
        denied: Vec<String>,
    },
    /// The value of one write was seen with another revision than the write was given.
    AppliedTwice {
        /// The write.
        operation: String,
        /// The revisions.
        revisions: Vec<u64>,
    },
    /// The operations on a key cannot be put in order.
    NotLinearizable {
        /// The key.
        key: String,
        /// What the key holds after the longest order that was found.
        holds: String,
        /// The last operations of that order.
        before: Vec<String>,
        /// What has to come next and cannot.
        stuck: String,
        /// Operations with unknown outcomes that could have come in between, and do not help.
        tried: Vec<String>,
    },
    /// The search grew past its limit; nothing is known.
    Undecided {
        /// The key.
        key: String,
        /// How many configurations were visited.
        configurations: usize,
    },
}

/// Checks a history.
///
/// # Errors
/// What no order can explain.
pub fn check(history: &History) -> Result<Checked, Violation> {
    let observed = observe::observe(history)?;
    order::check(history, &observed)?;
    let mut checked = Checked {
        answered: observed.answered,
        unknown: observed.unknown,
        keys: observed.keys.len(),
        configurations: 0,
    };
    for (key, operations) in &observed.keys {
        checked.configurations += search::check(history, key, operations)?;
    }
    Ok(checked)
}

/// An operation as it appears in messages.
fn describe(operation: &Operation) -> String {
    operation.to_string()
}

impl std::error::Error for Violation {}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nonsense { operation, why } => {
                write!(f, "an answer that cannot be: {why}\n  {operation}")
            }
            Self::SameRevision { revision, operations: [a, b] } => {
                write!(f, "two writes have revision {revision}:\n  {a}\n  {b}")
            }
            Self::RealTime { earlier, later } => write!(
                f,
                "the second operation began after the first had ended, but its revision comes \
                 before:\n  {earlier}\n  {later}"
            ),
            Self::NobodyWrote { key, seen, observer, denied } => {
                write!(
                    f,
                    "key {} was seen with {}, which no operation wrote:\n  {observer}",
                    key, seen
                )?;
                for operation in denied {
                    write!(f, "\n  promised to have no effect: {operation}")?;
                }
                Ok(())
            }
            Self::AppliedTwice { operation, revisions } => {
                write!(f, "one write, several revisions {revisions:?}:\n  {operation}")
            }
            Self::NotLinearizable { key, holds, before, stuck, tried } => {
                write!(f, "no order explains the answers about key {}; after", key)?;
                for operation in before {
                    write!(f, "\n  {operation}")?;
                }
                write!(f, "\nit holds {}, and this cannot follow:\n  {stuck}", holds)?;
                for operation in tried {
                    write!(f, "\n  nor with: {operation}")?;
                }
                Ok(())
            }
            Self::Undecided { key, configurations } => {
                write!(f, "undecided: {configurations} configurations visited for key {}", key)
            }
        }
    }
}

/// The earliest a read may be placed.
const fn earliest(fresh: bool, invoked: Moment) -> Moment {
    if fresh { invoked } else { Moment(0) }
}
