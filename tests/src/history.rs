//! What clients asked, what they were told, and in which order: the input of every check.
//!
//! A history is recorded by whoever drives the clients (the simulation, a test with real processes).
//! It speaks in the wire's own types, so that nothing is lost or beautified on the way.
//!
//! Rules:
//! 1. One [`Operation`] is one logical call of a client. Retries with the same session tag belong to
//!    the operation they retry.
//! 2. Time is a counter of events ([`Moment`]), not a clock: `a` ended before `b` began exactly if
//!    `a.completed < b.invoked`.
//! 3. An operation that is never ended is the same as one with an unknown outcome: it may take effect
//!    at any time after it began, or never.
//! 4. `NoEffect` is a promise of the store: the operation never takes effect. The checker holds it to it.

use std::fmt;

use raft_rpc::{Condition, KeyRange, KeyValue, Request, Response, WriteOperation};

/// A point in the order of a history's events.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Moment(pub u64);

impl Moment {
    /// After everything.
    pub const NEVER: Self = Self(u64::MAX);
}

/// Names an operation within its history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OperationId(pub usize);

/// Names a client. A client has one operation under way at a time, or several; nothing depends on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u32);

/// What the client knows of its operation's end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was answered.
    Answered(Response),
    /// It failed, and the store promised that it has no effect.
    NoEffect,
    /// It may have taken effect, may yet do so, or may never.
    Unknown,
}

/// One call of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Its name.
    pub id: OperationId,
    /// Who called.
    pub client: ClientId,
    /// What was asked.
    pub request: Request,
    /// When it began.
    pub invoked: Moment,
    /// When its end was known; [`Moment::NEVER`] while it is not.
    pub completed: Moment,
    /// How it ended.
    pub outcome: Outcome,
}

/// All calls of all clients.
#[derive(Clone, Debug, Default)]
pub struct History {
    operations: Vec<Operation>,
    events: u64,
}

impl History {
    /// An empty history.
    #[must_use]
    pub const fn new() -> Self {
        Self { operations: Vec::new(), events: 0 }
    }

    /// A client begins an operation.
    pub fn invoke(&mut self, client: ClientId, request: Request) -> OperationId {
        let id = OperationId(self.operations.len());
        let invoked = self.next_moment();
        self.operations.push(Operation {
            id,
            client,
            request,
            invoked,
            completed: Moment::NEVER,
            outcome: Outcome::Unknown,
        });
        id
    }

    /// The operation is answered.
    pub fn answer(&mut self, id: OperationId, response: Response) {
        self.end(id, Outcome::Answered(response));
    }

    /// The operation failed and the store promises that it has no effect.
    pub fn no_effect(&mut self, id: OperationId) {
        self.end(id, Outcome::NoEffect);
    }

    /// The client gives up without knowing. The operation stays open: it may take effect later.
    pub fn give_up(&mut self, id: OperationId) {
        let operation = &self.operations[id.0];
        assert!(
            operation.completed == Moment::NEVER,
            "operation {id:?} has ended already: {operation}"
        );
    }

    /// Everything that was recorded, in the order in which it began.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// One operation.
    #[must_use]
    pub fn operation(&self, id: OperationId) -> &Operation {
        &self.operations[id.0]
    }

    fn end(&mut self, id: OperationId, outcome: Outcome) {
        let completed = self.next_moment();
        let operation = &mut self.operations[id.0];
        assert!(
            operation.completed == Moment::NEVER,
            "operation {id:?} is ended twice: {operation}, then {outcome:?}"
        );
        operation.completed = completed;
        operation.outcome = outcome;
    }

    fn next_moment(&mut self) -> Moment {
        self.events += 1;
        Moment(self.events)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} client {} [{}..", self.id.0, self.client.0, self.invoked.0)?;
        if self.completed != Moment::NEVER {
            write!(f, "{}", self.completed.0)?;
        }
        write!(f, "] {}: ", Asked(&self.request))?;
        match &self.outcome {
            Outcome::Answered(response) => write!(f, "{}", Told(response)),
            Outcome::NoEffect => f.write_str("failed without effect"),
            Outcome::Unknown => f.write_str("outcome unknown"),
        }
    }
}

/// Prints a request in a few words.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a>(pub &'a Request);

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Request::Write(write) => match &write.operation {
                WriteOperation::RegisterSession => f.write_str("register session"),
                WriteOperation::Put { key, value, condition, .. } => {
                    write!(f, "put {}={}", Text(key), Text(value))?;
                    display_condition(condition, f)
                }
                WriteOperation::Delete { key, condition, .. } => {
                    write!(f, "delete {}", Text(key))?;
                    display_condition(condition, f)
                }
                WriteOperation::DeleteRange { range } => {
                    f.write_str("delete range ")?;
                    display_range(range, f)
                }
            },
            Request::Get(get) => {
                write!(f, "get {} {:?}", Text(&get.key), get.consistency)?;
                get.revision.map_or(Ok(()), |revision| write!(f, " at revision {revision}"))
            }
            Request::Range(range) => {
                f.write_str("range ")?;
                display_range(&range.range, f)?;
                write!(f, " {:?} {:?}", range.projection, range.consistency)?;
                range.revision.map_or(Ok(()), |revision| write!(f, " at revision {revision}"))
            }
        }
    }
}

/// Prints a response in a few words.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a>(pub &'a Response);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Response::Session { id } => write!(f, "session {id}"),
            Response::Written { revision, .. } => write!(f, "written at revision {revision}"),
            Response::Deleted { revision, count, .. } => {
                write!(f, "{count} deleted, revision {revision}")
            }
            Response::Refused { revision, current } => {
                write!(f, "refused at revision {revision}, holds {}", Held(current.as_ref()))
            }
            Response::Value { revision, found } => {
                write!(f, "at revision {revision} holds {}", Held(found.as_ref()))
            }
            Response::Page { revision, items, more } => {
                write!(f, "at revision {revision} {} items", items.len())?;
                for item in items {
                    write!(f, " {}={}", Text(&item.key), Held(Some(item)))?;
                }
                if *more { f.write_str(" and more") } else { Ok(()) }
            }
            Response::Count { revision, count } => {
                write!(f, "at revision {revision} {count} keys")
            }
        }
    }
}

/// Prints what a key holds.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a>(pub Option<&'a KeyValue>);

impl fmt::Display for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("nothing"),
            Some(found) => write!(
                f,
                "{} (mod {} create {} version {})",
                Text(&found.value),
                found.mod_revision,
                found.create_revision,
                found.version
            ),
        }
    }
}

/// Prints bytes as text, escaped and cut at 40.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a>(pub &'a [u8]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_BYTES_MAX: usize = 40;
        let shown = &self.0[..self.0.len().min(SHOWN_BYTES_MAX)];
        write!(f, "{}", shown.escape_ascii())?;
        if shown.len() < self.0.len() { write!(f, "…({} bytes)", self.0.len()) } else { Ok(()) }
    }
}

fn display_condition(condition: &Condition, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match condition {
        Condition::Always => Ok(()),
        Condition::Absent => f.write_str(" if absent"),
        Condition::Value(value) => write!(f, " if value {}", Text(value)),
        Condition::Revision(revision) => write!(f, " if revision {revision}"),
    }
}

fn display_range(range: &KeyRange, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{}..", Text(&range.start))?;
    range.end.as_ref().map_or(Ok(()), |end| write!(f, "{}", Text(end)))
}
