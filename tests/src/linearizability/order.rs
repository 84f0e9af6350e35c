//! Does the order of the revisions respect real time, over all keys at once?
//!
//! Operations with a revision can only be ordered by it: writes have revisions of their own, a read
//! at revision `r` comes after the write `r` and before the next. If in that order an operation comes
//! before one that had ended before it began, no order explains the history.

use std::cmp::Reverse;

use super::observe::{Observed, Placed};
use super::{Violation, describe};
use crate::history::{History, Moment};

/// Checks the order of everything that has a revision.
pub(super) fn check(history: &History, observed: &Observed) -> Result<(), Violation> {
    let mut placed = observed.placed.clone();
    placed.sort_by_key(|p| (p.revision, Reverse(p.writes), p.invoked));
    let mut first_end: Option<Placed> = None;
    for &operation in placed.iter().rev() {
        if let Some(later) = first_end
            && later.completed < operation.invoked
        {
            return Err(Violation::RealTime {
                earlier: describe(history.operation(later.operation)),
                later: describe(history.operation(operation.operation)),
            });
        }
        if operation.completed < first_end.map_or(Moment::NEVER, |p| p.completed) {
            first_end = Some(operation);
        }
    }
    Ok(())
}
