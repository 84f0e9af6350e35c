//! From a history to what it says about each key: reads at revisions, writes with revisions, and
//! writes of which nothing is known.
//!
//! Answers that make no sense by themselves are refused here, so that the later steps can take every
//! observation at its word.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft_rpc::{
    Condition, Consistency, KeyRange, KeyValue, Projection, RangeRequest, Request, Response,
    WriteOperation,
};

use super::{Violation, describe, earliest};
use crate::history::{History, Moment, Operation, OperationId, Outcome, Text};

/// What a history says about its keys.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// Per key, what is known, unordered.
    pub(super) keys: BTreeMap<Bytes, KeyOperations>,
    /// Writes with a revision, over all keys, each operation once.
    pub(super) writes: BTreeMap<u64, OperationId>,
    /// The revision of each operation that is placed by its revision, with the earliest moment it
    /// may be placed at.
    pub(super) placed: Vec<Placed>,
    pub(super) answered: usize,
    pub(super) unknown: usize,
}

/// An operation whose place in the order follows from its revision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Placed {
    pub(super) operation: OperationId,
    pub(super) revision: u64,
    pub(super) writes: bool,
    pub(super) invoked: Moment,
    pub(super) completed: Moment,
}

/// What is known of one key.
#[derive(Debug, Default)]
pub(super) struct KeyOperations {
    /// Operations with a revision.
    pub(super) known: Vec<Known>,
    /// Writes of which nobody saw an effect.
    pub(super) unknown: Vec<Unknown>,
}

/// An operation on one key with a revision.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) operation: OperationId,
    pub(super) revision: u64,
    pub(super) invoked: Moment,
    pub(super) completed: Moment,
    pub(super) what: What,
}

/// What it did or saw.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// It saw this.
    Read(Option<Seen>),
    /// It changed the key.
    Write {
        effect: Effect,
        /// What must have held.
        condition: Condition,
        /// What it saw there before, if it was told.
        previous: Option<Option<Seen>>,
        /// Whether the key must have existed; `None` if either is fine.
        existed: Option<bool>,
    },
}

/// A change of one key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Effect {
    /// It holds this afterwards.
    Put(Bytes),
    /// It is gone.
    Delete,
}

/// A key as it was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    /// The value, unless only the key was asked for.
    pub(super) value: Option<Bytes>,
    pub(super) create_revision: u64,
    pub(super) mod_revision: u64,
    pub(super) version: u64,
}

/// A write with an unknown outcome.
#[derive(Clone, Debug)]
pub(super) struct Unknown {
    pub(super) operation: OperationId,
    pub(super) invoked: Moment,
    pub(super) effect: Effect,
    pub(super) condition: Condition,
}

impl Seen {
    fn of(found: &KeyValue, with_value: bool) -> Self {
        Self {
            value: with_value.then(|| found.value.clone()),
            create_revision: found.create_revision,
            mod_revision: found.mod_revision,
            version: found.version,
        }
    }
}

/// Sorts a history by key.
pub(super) fn observe(history: &History) -> Result<Observed, Violation> {
    let mut observed = Observed::default();
    let universe = universe(history);
    for key in &universe {
        observed.keys.entry(key.clone()).or_default();
    }
    let mut observer = Observer { observed, universe };
    for operation in history.operations() {
        match &operation.outcome {
            Outcome::NoEffect => {}
            Outcome::Unknown => {
                observer.observed.unknown += 1;
                observer.unknown(operation);
            }
            Outcome::Answered(response) => {
                observer.observed.answered += 1;
                observer.answered(operation, response)?;
            }
        }
    }
    let mut observed = observer.observed;
    pin(history, &mut observed)?;
    for placed in &observed.placed {
        if !placed.writes {
            continue;
        }
        if placed.revision == 0 {
            let operation = history.operation(placed.operation);
            return Err(nonsense(operation, "a write at revision 0"));
        }
        if let Some(other) = observed.writes.insert(placed.revision, placed.operation)
            && other != placed.operation
        {
            return Err(Violation::SameRevision {
                revision: placed.revision,
                operations: [other, placed.operation].map(|id| describe(history.operation(id))),
            });
        }
    }
    Ok(observed)
}

/// Every key that is named anywhere.
fn universe(history: &History) -> BTreeSet<Bytes> {
    let mut keys = BTreeSet::new();
    for operation in history.operations() {
        match &operation.request {
            Request::Write(write) => match &write.operation {
                WriteOperation::Put { key, .. } | WriteOperation::Delete { key, .. } => {
                    keys.insert(key.clone());
                }
                WriteOperation::RegisterSession | WriteOperation::DeleteRange { .. } => {}
            },
            Request::Get(get) => {
                keys.insert(get.key.clone());
            }
            Request::Range(_) => {}
        }
        if let Outcome::Answered(Response::Page { items, .. }) = &operation.outcome {
            keys.extend(items.iter().map(|item| item.key.clone()));
        }
    }
    keys
}

struct Observer {
    observed: Observed,
    universe: BTreeSet<Bytes>,
}

impl Observer {
    fn unknown(&mut self, operation: &Operation) {
        let Request::Write(write) = &operation.request else { return };
        let mut add = |key: &Bytes, effect: Effect, condition: &Condition| {
            let unknown = Unknown {
                operation: operation.id,
                invoked: operation.invoked,
                effect,
                condition: condition.clone(),
            };
            self.observed.keys.entry(key.clone()).or_default().unknown.push(unknown);
        };
        match &write.operation {
            WriteOperation::RegisterSession => {}
            WriteOperation::Put { key, value, condition, .. } => {
                add(key, Effect::Put(value.clone()), condition);
            }
            WriteOperation::Delete { key, condition, .. } => add(key, Effect::Delete, condition),
            WriteOperation::DeleteRange { range } => {
                for key in self.universe.iter().filter(|key| contains(range, key)) {
                    add(key, Effect::Delete, &Condition::Always);
                }
            }
        }
    }

    fn answered(&mut self, operation: &Operation, response: &Response) -> Result<(), Violation> {
        match (&operation.request, response) {
            (Request::Write(write), response) => {
                self.written(operation, &write.operation, response)
            }
            (Request::Get(get), Response::Value { revision, found }) => {
                if found.as_ref().is_some_and(|found| found.key != get.key) {
                    return Err(nonsense(operation, "another key than the one asked for"));
                }
                let seen = found.as_ref().map(|found| Seen::of(found, true));
                let fresh = fresh(operation, get.revision, get.consistency, *revision)?;
                let at = get.revision.unwrap_or(*revision);
                self.place(operation, at, false, fresh);
                self.read(operation, &get.key, at, seen, fresh)
            }
            (Request::Range(_), Response::Count { .. }) => Ok(()),
            (Request::Range(range), Response::Page { revision, items, more }) => {
                self.page(operation, range, *revision, items, *more)
            }
            (
                Request::Get(_) | Request::Range(_),
                Response::Session { .. }
                | Response::Written { .. }
                | Response::Deleted { .. }
                | Response::Refused { .. }
                | Response::Value { .. }
                | Response::Page { .. }
                | Response::Count { .. },
            ) => Err(nonsense(operation, "not an answer to what was asked")),
        }
    }

    fn written(
        &mut self,
        operation: &Operation,
        asked: &WriteOperation,
        response: &Response,
    ) -> Result<(), Violation> {
        match (asked, response) {
            (WriteOperation::RegisterSession, Response::Session { .. }) => Ok(()),
            (
                WriteOperation::Put { key, value, condition, return_previous },
                Response::Written { revision, previous },
            ) => {
                let previous = return_previous.then_some(previous.as_ref());
                self.place(operation, *revision, true, true);
                self.write(
                    operation,
                    key,
                    *revision,
                    What::Write {
                        effect: Effect::Put(value.clone()),
                        condition: condition.clone(),
                        previous: previous.map(|found| found.map(|found| Seen::of(found, true))),
                        existed: None,
                    },
                );
                Ok(())
            }
            (
                WriteOperation::Put { key, condition, .. }
                | WriteOperation::Delete { key, condition, .. },
                Response::Refused { revision, current },
            ) => {
                if holds(condition, current.as_ref()) {
                    return Err(nonsense(operation, "refused although the condition holds"));
                }
                let seen = current.as_ref().map(|found| Seen::of(found, true));
                self.place(operation, *revision, false, true);
                self.read(operation, key, *revision, seen, true)
            }
            (
                WriteOperation::Delete { key, .. },
                Response::Deleted { revision, count: 0, previous: None },
            ) => {
                self.place(operation, *revision, false, true);
                self.read(operation, key, *revision, None, true)
            }
            (
                WriteOperation::Delete { key, condition, return_previous },
                Response::Deleted { revision, count: 1, previous },
            ) => {
                let previous = return_previous.then_some(previous.as_ref());
                self.place(operation, *revision, true, true);
                self.write(
                    operation,
                    key,
                    *revision,
                    What::Write {
                        effect: Effect::Delete,
                        condition: condition.clone(),
                        previous: previous.map(|found| found.map(|found| Seen::of(found, true))),
                        existed: Some(true),
                    },
                );
                Ok(())
            }
            (
                WriteOperation::DeleteRange { range },
                Response::Deleted { revision, count, previous: None },
            ) => {
                self.place(operation, *revision, *count > 0, true);
                let keys: Vec<_> =
                    self.universe.iter().filter(|key| contains(range, key)).cloned().collect();
                for key in keys {
                    if *count == 0 {
                        self.read(operation, &key, *revision, None, true)?;
                    } else {
                        self.write(
                            operation,
                            &key,
                            *revision,
                            What::Write {
                                effect: Effect::Delete,
                                condition: Condition::Always,
                                previous: None,
                                existed: None,
                            },
                        );
                    }
                }
                Ok(())
            }
            (
                WriteOperation::RegisterSession
                | WriteOperation::Put { .. }
                | WriteOperation::Delete { .. }
                | WriteOperation::DeleteRange { .. },
                Response::Session { .. }
                | Response::Written { .. }
                | Response::Deleted { .. }
                | Response::Refused { .. }
                | Response::Value { .. }
                | Response::Page { .. }
                | Response::Count { .. },
            ) => Err(nonsense(operation, "not an answer to what was asked")),
        }
    }

    fn page(
        &mut self,
        operation: &Operation,
        asked: &RangeRequest,
        revision: u64,
        items: &[KeyValue],
        more: bool,
    ) -> Result<(), Violation> {
        let ordered =
            items.is_sorted_by(|a, b| if asked.reverse { a.key > b.key } else { a.key < b.key });
        if !ordered || items.iter().any(|item| !contains(&asked.range, &item.key)) {
            return Err(nonsense(operation, "items out of order or outside the range"));
        }
        let count = u64::try_from(items.len()).unwrap_or(u64::MAX);
        if asked.limit.is_some_and(|limit| count > limit) || (more && items.is_empty()) {
            return Err(nonsense(operation, "more items than the limit, or none and yet more"));
        }
        let with_value = match asked.projection {
            Projection::KeyValues => true,
            Projection::KeysOnly => false,
            Projection::Count => {
                return Err(nonsense(operation, "a page though a count was asked for"));
            }
        };
        let fresh = fresh(operation, asked.revision, asked.consistency, revision)?;
        let at = asked.revision.unwrap_or(revision);
        self.place(operation, at, false, fresh);
        // A page that ends early says nothing about the keys past its last item.
        let end = if more { items.last().map(|item| item.key.clone()) } else { None };
        let covered = |key: &Bytes| {
            contains(&asked.range, key)
                && end.as_ref().is_none_or(
                    |end| {
                        if asked.reverse { key >= end } else { key <= end }
                    },
                )
        };
        let keys: Vec<_> = self.universe.iter().filter(|key| covered(key)).cloned().collect();
        for key in keys {
            let seen = items.iter().find(|item| item.key == key);
            let seen = seen.map(|item| Seen::of(item, with_value));
            self.read(operation, &key, at, seen, fresh)?;
        }
        Ok(())
    }

    fn place(&mut self, operation: &Operation, revision: u64, writes: bool, fresh: bool) {
        self.observed.placed.push(Placed {
            operation: operation.id,
            revision,
            writes,
            invoked: earliest(fresh, operation.invoked),
            completed: operation.completed,
        });
    }

    fn write(&mut self, operation: &Operation, key: &Bytes, revision: u64, what: What) {
        self.observed.keys.entry(key.clone()).or_default().known.push(Known {
            operation: operation.id,
            revision,
            invoked: operation.invoked,
            completed: operation.completed,
            what,
        });
    }

    fn read(
        &mut self,
        operation: &Operation,
        key: &Bytes,
        revision: u64,
        seen: Option<Seen>,
        fresh: bool,
    ) -> Result<(), Violation> {
        if let Some(seen) = &seen
            && !(1 <= seen.create_revision
                && seen.create_revision <= seen.mod_revision
                && seen.mod_revision <= revision
                && (seen.version == 1) == (seen.create_revision == seen.mod_revision))
        {
            return Err(nonsense(
                operation,
                &format!("revisions that contradict each other at revision {revision}: {seen:?}"),
            ));
        }
        self.observed.keys.entry(key.clone()).or_default().known.push(Known {
            operation: operation.id,
            revision,
            invoked: earliest(fresh, operation.invoked),
            completed: operation.completed,
            what: What::Read(seen),
        });
        Ok(())
    }
}

/// Gives unknown writes whose value somebody saw the revision it was seen with, and refuses values
/// that nobody wrote and writes that have several revisions.
fn pin(history: &History, observed: &mut Observed) -> Result<(), Violation> {
    let Observed { keys, placed, .. } = observed;
    for (key, operations) in keys {
        let mut revisions_of: BTreeMap<&Bytes, BTreeSet<u64>> = BTreeMap::new();
        let mut observer_of: BTreeMap<&Bytes, (OperationId, &Seen)> = BTreeMap::new();
        for known in &operations.known {
            let seen = match &known.what {
                What::Read(seen) => seen.as_ref(),
                What::Write { previous, .. } => previous.as_ref().and_then(Option::as_ref),
            };
            if let Some(seen) = seen
                && let Some(value) = &seen.value
            {
                revisions_of.entry(value).or_default().insert(seen.mod_revision);
                observer_of.entry(value).or_insert((known.operation, seen));
            }
        }
        let mut writers: BTreeMap<&Bytes, Vec<(OperationId, Option<u64>)>> = BTreeMap::new();
        for known in &operations.known {
            if let What::Write { effect: Effect::Put(value), .. } = &known.what {
                writers.entry(value).or_default().push((known.operation, Some(known.revision)));
            }
        }
        for unknown in &operations.unknown {
            if let Effect::Put(value) = &unknown.effect {
                writers.entry(value).or_default().push((unknown.operation, None));
            }
        }
        let mut pinned: BTreeMap<OperationId, u64> = BTreeMap::new();
        for (&value, revisions) in &revisions_of {
            let (observer, seen) = observer_of[value];
            match writers.get(value).map(Vec::as_slice) {
                None => {
                    return Err(Violation::NobodyWrote {
                        key: Text(key).to_string(),
                        seen: format!("{} at revision {}", Text(value), seen.mod_revision),
                        observer: describe(history.operation(observer)),
                        denied: denied(history, key, value),
                    });
                }
                // Only one operation wrote this value, so it was seen with that one's revision.
                Some(&[(writer, revision)]) => {
                    let mut revisions = revisions.clone();
                    revisions.extend(revision);
                    if revisions.len() > 1 {
                        return Err(Violation::AppliedTwice {
                            operation: describe(history.operation(writer)),
                            revisions: revisions.into_iter().collect(),
                        });
                    }
                    if revision.is_none() {
                        pinned.extend(revisions.first().map(|&revision| (writer, revision)));
                    }
                }
                Some(_) => {}
            }
        }
        let unknown = std::mem::take(&mut operations.unknown);
        for write in unknown {
            let Some(&revision) = pinned.get(&write.operation) else {
                operations.unknown.push(write);
                continue;
            };
            placed.push(Placed {
                operation: write.operation,
                revision,
                writes: true,
                invoked: write.invoked,
                completed: Moment::NEVER,
            });
            operations.known.push(Known {
                operation: write.operation,
                revision,
                invoked: write.invoked,
                completed: Moment::NEVER,
                what: What::Write {
                    effect: write.effect,
                    condition: write.condition,
                    previous: None,
                    existed: None,
                },
            });
        }
    }
    Ok(())
}

/// Operations that would have written a value but were answered as having no effect.
fn denied(history: &History, key: &Bytes, value: &Bytes) -> Vec<String> {
    let wrote = |operation: &&Operation| match &operation.request {
        Request::Write(write) => match &write.operation {
            WriteOperation::Put { key: k, value: v, .. } => k == key && v == value,
            WriteOperation::RegisterSession
            | WriteOperation::Delete { .. }
            | WriteOperation::DeleteRange { .. } => false,
        },
        Request::Get(_) | Request::Range(_) => false,
    };
    history.operations().iter().filter(wrote).map(describe).collect()
}

/// Whether a read has to see everything that was acknowledged before it began.
fn fresh(
    operation: &Operation,
    asked: Option<u64>,
    consistency: Consistency,
    revision: u64,
) -> Result<bool, Violation> {
    match consistency {
        Consistency::Linearizable => Ok(asked.is_none()),
        Consistency::AtLeast(least) if revision < least => {
            Err(nonsense(operation, "an older revision than the one asked for"))
        }
        Consistency::AtLeast(_) | Consistency::Stale { .. } => Ok(false),
    }
}

/// Whether a condition holds for what a key holds.
fn holds(condition: &Condition, current: Option<&KeyValue>) -> bool {
    match condition {
        Condition::Always => true,
        Condition::Absent => current.is_none(),
        Condition::Value(value) => current.is_some_and(|found| found.value == *value),
        Condition::Revision(revision) => {
            current.is_some_and(|found| found.mod_revision == *revision)
        }
    }
}

/// Whether a range holds a key.
fn contains(range: &KeyRange, key: &Bytes) -> bool {
    range.start <= *key && range.end.as_ref().is_none_or(|end| key < end)
}

fn nonsense(operation: &Operation, why: &str) -> Violation {
    Violation::Nonsense { operation: describe(operation), why: why.to_owned() }
}
