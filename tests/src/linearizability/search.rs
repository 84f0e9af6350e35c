//! The search on one key: places for writes with unknown outcomes between operations whose order is
//! known.
//!
//! A configuration is: how many of the known operations are placed, how many unknown writes of each
//! class, and what the key holds then. From it, either the next known operation is placed, or the
//! next unknown write of some class. Depth first, remembering every configuration that was visited
//! (Lowe 2017); how many writes of each class are placed is remembered as a 128-bit hash, so that a
//! configuration stays small however many unknown writes there are.
//!
//! What keeps it small, each without changing the answer:
//! 1. The order of the known operations is fixed by their revisions.
//! 2. Unknown writes with the same condition and the same effect are one class, and so are puts of
//!    values that nobody saw or asked for: any order that uses a later one can use the earliest.
//! 3. A read that agrees with what the key holds is placed at once: an unknown write before it that
//!    leaves the key as it is could as well never take effect.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use raft_rpc::Condition;

use super::observe::{Effect, KeyOperations, Known, Seen, Unknown, What};
use super::{Violation, describe};
use crate::history::{History, Moment, OperationId, Text};

/// Past this many configurations the search gives up and says so.
const CONFIGURATIONS_MAX: usize = 2_000_000;

/// How many operations an explanation shows on each side.
const SHOWN_MAX: usize = 5;

/// A revision, or what is known of it: the least and the most it can be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Revision {
    least: u64,
    most: u64,
}

impl Revision {
    const fn exactly(revision: u64) -> Self {
        Self { least: revision, most: revision }
    }

    const fn above(bound: u64) -> Self {
        Self { least: bound + 1, most: u64::MAX }
    }

    /// What is known after it was seen to be `seen`, or `None` if it cannot be.
    fn refine(self, seen: u64) -> Option<Self> {
        (self.least..=self.most).contains(&seen).then_some(Self::exactly(seen))
    }

    /// What is known after something later has revision `bound` or, being unknown, at most that.
    fn below(self, bound: u64) -> Self {
        Self { most: self.most.min(bound.saturating_sub(1)), ..self }
    }
}

/// What a key holds.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Holds {
    value: Bytes,
    modified: Revision,
    created: Revision,
    version: u64,
}

/// A configuration of the search.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Configuration {
    placed: usize,
    /// Exclusive or of [`mark`] over all placed unknown writes.
    used: u128,
    /// The least the store's revision can be: each unknown write needs one of its own.
    revision: u64,
    holds: Option<Holds>,
}

/// What may follow a configuration.
struct Choice {
    operation: OperationId,
    /// The class of the unknown write; `None` for a known operation.
    class: Option<usize>,
    next: Configuration,
}

/// One step of the path to a configuration.
struct Frame {
    configuration: Configuration,
    /// What may follow, last first.
    choices: Vec<Choice>,
    /// The operation that led here, and its class if it is an unknown write.
    by: Option<(OperationId, Option<usize>)>,
}

struct Search<'a> {
    known: Vec<&'a Known>,
    /// Per known operation: when the first of it and all that follow it ends.
    first_end: Vec<Moment>,
    /// Unknown writes by class, each class by invocation.
    classes: Vec<Vec<&'a Unknown>>,
}

/// Checks one key; returns the number of configurations visited.
pub(super) fn check(
    history: &History,
    key: &Bytes,
    operations: &KeyOperations,
) -> Result<usize, Violation> {
    let search = Search::new(operations);
    let start = Configuration { placed: 0, used: 0, revision: 0, holds: None };
    let mut deepest = (start.clone(), Vec::new());
    let mut visited = HashSet::from([start.clone()]);
    let mut used = vec![0; search.classes.len()];
    let choices = search.choices(&start, &used);
    let mut path = vec![Frame { configuration: start, choices, by: None }];
    while let Some(top) = path.last_mut() {
        if top.configuration.placed == search.known.len() {
            return Ok(visited.len());
        }
        let Some(Choice { operation, class, next }) = top.choices.pop() else {
            if let Some(Frame { by: Some((_, Some(class))), .. }) = path.pop() {
                used[class] -= 1;
            }
            continue;
        };
        if !visited.insert(next.clone()) {
            continue;
        }
        if visited.len() > CONFIGURATIONS_MAX {
            return Err(Violation::Undecided {
                key: Text(key).to_string(),
                configurations: visited.len(),
            });
        }
        if let Some(class) = class {
            used[class] += 1;
        }
        let choices = search.choices(&next, &used);
        if next.placed > deepest.0.placed {
            let from = path.len().saturating_sub(SHOWN_MAX - 1);
            let last = path[from..].iter().filter_map(|frame| frame.by);
            let last = last.map(|(operation, _)| operation).chain([operation]);
            deepest = (next.clone(), last.collect());
        }
        path.push(Frame { configuration: next, choices, by: Some((operation, class)) });
    }
    Err(search.explain(history, key, &deepest.0, &deepest.1))
}

impl<'a> Search<'a> {
    fn new(operations: &'a KeyOperations) -> Self {
        let mut known: Vec<_> = operations.known.iter().collect();
        known.sort_by_key(|k| (k.revision, matches!(k.what, What::Read(_)), k.invoked));
        let mut first_end = vec![Moment::NEVER; known.len() + 1];
        for (place, operation) in known.iter().enumerate().rev() {
            first_end[place] = first_end[place + 1].min(operation.completed);
        }
        let telling = telling_values(operations);
        let mut classes: BTreeMap<_, Vec<&Unknown>> = BTreeMap::new();
        for unknown in &operations.unknown {
            let effect = match &unknown.effect {
                Effect::Put(value) if telling.contains(value) => Some(Some(value.clone())),
                Effect::Put(_) => Some(None),
                Effect::Delete => None,
            };
            let condition = match &unknown.condition {
                Condition::Always => (0, 0, Bytes::new()),
                Condition::Absent => (1, 0, Bytes::new()),
                Condition::Value(value) => (2, 0, value.clone()),
                Condition::Revision(revision) => (3, *revision, Bytes::new()),
            };
            classes.entry((effect, condition)).or_default().push(unknown);
        }
        let mut classes: Vec<_> = classes.into_values().collect();
        for class in &mut classes {
            class.sort_by_key(|unknown| unknown.invoked);
        }
        Self { known, first_end, classes }
    }

    /// What may follow a configuration, the likeliest last.
    fn choices(&self, from: &Configuration, used: &[usize]) -> Vec<Choice> {
        let Some(known) = self.known.get(from.placed) else { return Vec::new() };
        let placed = Self::place(known, from).map(|holds| Choice {
            operation: known.operation,
            class: None,
            next: Configuration {
                placed: from.placed + 1,
                used: from.used,
                revision: known.revision,
                holds,
            },
        });
        if let What::Read(_) = known.what
            && let Some(choice) = &placed
            && choice.next.holds == from.holds
        {
            return placed.into_iter().collect();
        }
        let mut choices = Vec::new();
        for (class, writes) in self.classes.iter().enumerate() {
            if let Some(write) = writes.get(used[class])
                && write.invoked < self.first_end[from.placed]
                && let Some((revision, holds)) = attempt(write, from)
            {
                let used = from.used ^ mark(class, used[class]);
                choices.push(Choice {
                    operation: write.operation,
                    class: Some(class),
                    next: Configuration { placed: from.placed, used, revision, holds },
                });
            }
        }
        choices.extend(placed);
        choices
    }

    /// What the key holds after a known operation, or `None` if it cannot come now.
    fn place(known: &Known, from: &Configuration) -> Option<Option<Holds>> {
        let holds = from.holds.as_ref();
        match &known.what {
            What::Read(_) if known.revision < from.revision => None,
            What::Read(seen) => refine(holds, seen.as_ref()),
            What::Write { .. } if known.revision <= from.revision => None,
            What::Write { effect, condition, previous, existed } => {
                let mut holds = meet(condition, holds)?;
                if let Some(previous) = previous {
                    holds = refine(holds.as_ref(), previous.as_ref())?;
                }
                if holds.as_ref().is_some_and(|holds| holds.modified.least >= known.revision) {
                    return None;
                }
                if existed.is_some_and(|existed| existed != holds.is_some()) {
                    return None;
                }
                Some(change(effect, holds, Revision::exactly(known.revision)))
            }
        }
    }

    fn explain(
        &self,
        history: &History,
        key: &Bytes,
        deepest: &Configuration,
        before: &[OperationId],
    ) -> Violation {
        let describe = |id: OperationId| describe(history.operation(id));
        let holds = deepest.holds.as_ref().map_or("nothing".to_owned(), |holds| {
            let Holds { value, modified, created, version } = holds;
            format!(
                "{} (mod {} create {} version {version})",
                Text(value),
                modified.least,
                created.least
            )
        });
        let tried = self
            .classes
            .iter()
            .flatten()
            .filter(|unknown| unknown.invoked < self.first_end[deepest.placed])
            .map(|unknown| describe(unknown.operation));
        Violation::NotLinearizable {
            key: Text(key).to_string(),
            holds,
            before: before.iter().map(|&id| describe(id)).collect(),
            stuck: describe(self.known[deepest.placed].operation),
            tried: tried.take(SHOWN_MAX).collect(),
        }
    }
}

/// Values that somebody saw or made a condition: puts of others cannot be told apart.
fn telling_values(operations: &KeyOperations) -> HashSet<Bytes> {
    let mut telling = HashSet::new();
    let mut add_condition = |condition: &Condition| {
        if let Condition::Value(value) = condition {
            telling.insert(value.clone());
        }
    };
    for unknown in &operations.unknown {
        add_condition(&unknown.condition);
    }
    for known in &operations.known {
        if let What::Write { condition, .. } = &known.what {
            add_condition(condition);
        }
    }
    for known in &operations.known {
        let seen = match &known.what {
            What::Read(seen) => seen.as_ref(),
            What::Write { previous, .. } => previous.as_ref().and_then(Option::as_ref),
        };
        telling.extend(seen.and_then(|seen| seen.value.clone()));
    }
    telling
}

/// What the key holds, given that it was seen like this; `None` if it cannot be.
fn refine(holds: Option<&Holds>, seen: Option<&Seen>) -> Option<Option<Holds>> {
    match (holds, seen) {
        (None, None) => Some(None),
        (None, Some(_)) | (Some(_), None) => None,
        (Some(holds), Some(seen)) => {
            if seen.value.as_ref().is_some_and(|value| *value != holds.value)
                || seen.version != holds.version
            {
                return None;
            }
            Some(Some(Holds {
                modified: holds.modified.refine(seen.mod_revision)?,
                created: holds.created.refine(seen.create_revision)?,
                ..holds.clone()
            }))
        }
    }
}

/// What the key holds, given that a condition holds; `None` if it cannot.
fn meet(condition: &Condition, holds: Option<&Holds>) -> Option<Option<Holds>> {
    match condition {
        Condition::Always => Some(holds.cloned()),
        Condition::Absent => holds.is_none().then_some(None),
        Condition::Value(value) => {
            holds.filter(|holds| holds.value == *value).map(|holds| Some(holds.clone()))
        }
        Condition::Revision(revision) => {
            let holds = holds?;
            let modified = holds.modified.refine(*revision)?;
            let created = if holds.version == 1 { modified } else { holds.created };
            Some(Some(Holds { modified, created, ..holds.clone() }))
        }
    }
}

/// The least revision after an unknown write, and what the key holds then; `None` if it would change
/// nothing.
fn attempt(write: &Unknown, from: &Configuration) -> Option<(u64, Option<Holds>)> {
    let holds = meet(&write.condition, from.holds.as_ref())?;
    if holds.is_none() && write.effect == Effect::Delete {
        return None;
    }
    let before = holds.as_ref().map_or(0, |holds| holds.modified.least).max(from.revision);
    let after = change(&write.effect, holds, Revision::above(before));
    Some((before + 1, after))
}

/// The change itself.
fn change(effect: &Effect, holds: Option<Holds>, revision: Revision) -> Option<Holds> {
    match effect {
        Effect::Delete => None,
        Effect::Put(value) => {
            let (created, version) = holds.map_or((revision, 1), |holds| {
                (holds.created.below(revision.most), holds.version + 1)
            });
            Some(Holds { value: value.clone(), modified: revision, created, version })
        }
    }
}

/// A number for "the `count`th write of this class is placed", spread over 128 bits.
fn mark(class: usize, count: usize) -> u128 {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        (salt, class, count).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}
