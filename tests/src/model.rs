//! The store as it should be: the state machine in its plainest form, for comparison.
//!
//! [`Model::apply`] takes the committed entries in order and says what the answer to each must be;
//! [`Model::read`] says what a read at a revision must give. Everything is kept: all versions of all
//! keys, all replies of all sessions. Nothing here is shared with the real state machine but the
//! command's decoder.
//!
//! Rules (`kv-server`'s state machine states them too; this is the second, independent writing):
//! 1. The empty store is at revision 1. The revision rises by one with each command that changes
//!    something, however much.
//! 2. A delete of nothing and a write whose condition fails change nothing.
//! 3. A write of a session takes effect at most once; a repetition gets the first answer.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use kv_server::state_machine::command::{Command, Operation};
use raft_rpc::{
    Condition, GetRequest, KeyRange, KeyValue, Projection, RangeRequest, Response, SessionTag,
};

/// A session idle for longer than this ends with the next tick, in milliseconds of cluster time.
const SESSION_IDLE_MAX_MS: u64 = 60 * 60 * 1_000;

/// Writes of one session that may be unanswered at a time (DESIGN 10.5).
pub const SESSION_WINDOW: u64 = 1024;

/// What the answer to a write must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// This, with what was there before filled in whether it was asked for or not.
    Response(Response),
    /// The session does not exist.
    SessionExpired,
    /// The write's number is below what the client acknowledged, or too far ahead.
    BadSequence,
}

/// The writes of a session.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Session {
    /// Cluster time of its last write.
    last_active_ms: u64,
    lowest_unacknowledged: u64,
    replies: BTreeMap<u64, Response>,
}

/// The store.
#[derive(Clone, Debug)]
pub struct Model {
    applied: u64,
    revision: u64,
    /// Every version of every key, by rising revision; `None` where it was deleted.
    versions: BTreeMap<Bytes, Vec<(u64, Option<KeyValue>)>>,
    sessions: BTreeMap<u64, Session>,
    cluster_time_ms: u64,
    /// Every write of a session that took effect or was refused, with its answer.
    executed: BTreeMap<(u64, u64), Response>,
    /// How often each value was put.
    puts: BTreeMap<Bytes, u64>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            applied: 0,
            revision: 1,
            versions: BTreeMap::new(),
            sessions: BTreeMap::new(),
            cluster_time_ms: 0,
            executed: BTreeMap::new(),
            puts: BTreeMap::new(),
        }
    }
}

impl Model {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The index of the last entry applied.
    #[must_use]
    pub const fn applied(&self) -> u64 {
        self.applied
    }

    /// The store's revision.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The answer of the first execution of a session's write, if it was executed.
    #[must_use]
    pub fn executed(&self, tag: SessionTag) -> Option<&Response> {
        self.executed.get(&(tag.session, tag.sequence))
    }

    /// How often a value was put.
    #[must_use]
    pub fn times_put(&self, value: &[u8]) -> u64 {
        self.puts.get(value).copied().unwrap_or(0)
    }

    /// The next entry carries this cluster time. It never goes back.
    pub fn stamp(&mut self, cluster_time_ms: u64) {
        self.cluster_time_ms = self.cluster_time_ms.max(cluster_time_ms);
    }

    /// Applies the entry at `index`; `None` is one without a command (a no-op, a membership).
    /// Returns what the answer must be, if anyone waits.
    ///
    /// # Panics
    /// If an index is left out.
    pub fn apply(&mut self, index: u64, command: Option<&Command>) -> Option<Told> {
        assert!(index == self.applied + 1, "index {index} after {}", self.applied);
        self.applied = index;
        let command = command?;
        let Some(tag) = command.tag else {
            return match &command.operation {
                Operation::Tick => {
                    let now = self.cluster_time_ms;
                    self.sessions.retain(|_, session| {
                        now.saturating_sub(session.last_active_ms) <= SESSION_IDLE_MAX_MS
                    });
                    None
                }
                Operation::RegisterSession => {
                    let last_active_ms = self.cluster_time_ms;
                    let session = Session { last_active_ms, ..Session::default() };
                    self.sessions.insert(index, session);
                    Some(Told::Response(Response::Session { id: index }))
                }
                operation @ (Operation::Put { .. }
                | Operation::Delete { .. }
                | Operation::DeleteRange { .. }) => Some(Told::Response(self.execute(operation))),
            };
        };
        let Some(session) = self.sessions.get_mut(&tag.session) else {
            return Some(Told::SessionExpired);
        };
        session.last_active_ms = self.cluster_time_ms;
        session.lowest_unacknowledged =
            session.lowest_unacknowledged.max(tag.lowest_unacknowledged);
        let lowest = session.lowest_unacknowledged;
        session.replies.retain(|&sequence, _| sequence >= lowest);
        if let Some(reply) = session.replies.get(&tag.sequence) {
            return Some(Told::Response(reply.clone()));
        }
        if tag.sequence < lowest || tag.sequence >= lowest + SESSION_WINDOW {
            return Some(Told::BadSequence);
        }
        let response = self.execute(&command.operation);
        self.executed.insert((tag.session, tag.sequence), response.clone());
        if let Some(session) = self.sessions.get_mut(&tag.session) {
            session.replies.insert(tag.sequence, response.clone());
        }
        Some(Told::Response(response))
    }

    fn execute(&mut self, operation: &Operation) -> Response {
        match operation {
            Operation::RegisterSession | Operation::Tick => {
                // Neither carries a tag, so neither comes here.
                Response::Session { id: self.applied }
            }
            Operation::Put { key, value, condition } => {
                let previous = self.current(key);
                if !holds(condition, previous.as_ref()) {
                    return Response::Refused { revision: self.revision, current: previous };
                }
                self.revision += 1;
                let revision = self.revision;
                *self.puts.entry(value.clone()).or_default() += 1;
                let (create_revision, version) = previous
                    .as_ref()
                    .map_or((revision, 1), |found| (found.create_revision, found.version + 1));
                let now = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision,
                    mod_revision: revision,
                    version,
                    lease: 0,
                };
                self.versions.entry(key.clone()).or_default().push((revision, Some(now)));
                Response::Written { revision, previous }
            }
            Operation::Delete { key, condition } => {
                let previous = self.current(key);
                if !holds(condition, previous.as_ref()) {
                    return Response::Refused { revision: self.revision, current: previous };
                }
                if previous.is_some() {
                    self.revision += 1;
                    self.versions.entry(key.clone()).or_default().push((self.revision, None));
                }
                let count = u64::from(previous.is_some());
                Response::Deleted { revision: self.revision, count, previous }
            }
            Operation::DeleteRange { range } => {
                let keys: Vec<_> = self
                    .range_at(range, self.revision)
                    .into_iter()
                    .map(|found| found.key)
                    .collect();
                if !keys.is_empty() {
                    self.revision += 1;
                }
                let count = keys.len() as u64;
                for key in keys {
                    self.versions.entry(key).or_default().push((self.revision, None));
                }
                Response::Deleted { revision: self.revision, count, previous: None }
            }
        }
    }

    /// What a key holds.
    #[must_use]
    pub fn current(&self, key: &[u8]) -> Option<KeyValue> {
        self.at(key, self.revision)
    }

    /// What a key held at a revision.
    #[must_use]
    pub fn at(&self, key: &[u8], revision: u64) -> Option<KeyValue> {
        let versions = self.versions.get(key)?;
        let upto = versions.partition_point(|(at, _)| *at <= revision);
        versions[..upto].last().and_then(|(_, found)| found.clone())
    }

    /// What the keys of a range held at a revision, in order.
    #[must_use]
    pub fn range_at(&self, range: &KeyRange, revision: u64) -> Vec<KeyValue> {
        if range.end.as_ref().is_some_and(|end| *end <= range.start) {
            return Vec::new();
        }
        let end = range.end.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        self.versions
            .range::<Bytes, _>((Bound::Included(&range.start), end))
            .filter_map(|(key, _)| self.at(key, revision))
            .collect()
    }

    /// What a read of a key made at `revision` must find.
    #[must_use]
    pub fn read(&self, request: &GetRequest, revision: u64) -> Option<KeyValue> {
        self.at(&request.key, request.revision.unwrap_or(revision))
    }

    /// What a read of a range made at `revision` must give.
    #[must_use]
    pub fn read_range(&self, request: &RangeRequest, revision: u64) -> Response {
        let at = request.revision.unwrap_or(revision);
        let mut items = self.range_at(&request.range, at);
        if request.projection == Projection::Count {
            let count = (items.len() as u64).min(request.limit.unwrap_or(u64::MAX));
            return Response::Count { revision, count };
        }
        if request.reverse {
            items.reverse();
        }
        let limit = request.limit.and_then(|limit| usize::try_from(limit).ok());
        let more = limit.is_some_and(|limit| items.len() > limit);
        items.truncate(limit.unwrap_or(usize::MAX));
        if request.projection == Projection::KeysOnly {
            for item in &mut items {
                item.value = Bytes::new();
            }
        }
        Response::Page { revision, items, more }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn put(sequence: Option<(u64, u64)>, value: &str) -> Command {
        Command {
            tag: sequence.map(|(session, sequence)| SessionTag {
                session,
                sequence,
                lowest_unacknowledged: 1,
            }),
            operation: Operation::Put {
                key: "k".into(),
                value: value.to_owned().into(),
                condition: Condition::Always,
            },
        }
    }

    #[test]
    fn a_repeated_write_of_a_session_takes_effect_once_and_gets_the_first_answer() {
        let mut model = Model::new();
        let register = Command { tag: None, operation: Operation::RegisterSession };
        let session = Told::Response(Response::Session { id: 1 });
        assert_eq!(model.apply(1, Some(&register)), Some(session));
        let first = model.apply(2, Some(&put(Some((1, 1)), "a")));
        assert_eq!(model.apply(3, Some(&put(None, "b"))).is_some(), first.is_some());
        assert_eq!(model.apply(4, Some(&put(Some((1, 1)), "a"))), first);
        assert_eq!(model.revision(), 3);
        assert_eq!(model.current(b"k").map(|found| found.version), Some(2));
        assert_eq!(model.times_put(b"a"), 1);
    }

    #[test]
    fn old_revisions_stay_readable() {
        let mut model = Model::new();
        model.apply(1, Some(&put(None, "a")));
        model.apply(2, None);
        model.apply(3, Some(&put(None, "b")));
        assert_eq!(model.at(b"k", 2).map(|found| found.value), Some("a".into()));
        assert_eq!(model.at(b"k", 1), None);
    }

    #[test]
    fn an_unknown_session_executes_nothing() {
        let mut model = Model::new();
        assert_eq!(model.apply(1, Some(&put(Some((7, 1)), "a"))), Some(Told::SessionExpired));
        assert_eq!(model.revision(), 1);
    }
}
