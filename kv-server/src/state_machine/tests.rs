//! The state machine against a model, and across crashes at every point of apply (scenario 33).

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::{Bytes, BytesMut};
use lsm_store::{
    Executor, Options, Store,
    rng::SplitMix64,
    vfs::{CrashPolicy, MemVfs, Vfs},
};
use raft_core::{Body, Entry, LogIndex, LogPos, Term};
use raft_rpc::{
    Condition, Consistency, GetRequest, KeyRange, KeyValue, Projection, RangeRequest, Response,
    SessionTag, WireError, WriteOperation, WriteRequest,
};

use super::{Applier, IDLE_MAX_MS, StateReader, command, partitions};
use crate::{
    limits::Limits,
    replica::{Answer, ApplyDone, ApplyJob, ApplyWaiter},
};

const NODE: u64 = 7;

fn open(vfs: &MemVfs, boot: u64, memtable_bytes: usize) -> Applier {
    let options = Options {
        uid_seed: boot,
        memtable_bytes,
        cache_bytes: 1 << 20,
        ..Options::new(11, partitions())
    };
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    let store = Store::open(vfs, Path::new("/store"), options, Executor::Inline).unwrap();
    let limits = Limits { page_bytes_max: 400, ..Limits::default() };
    Applier::open(NODE, store, &limits).unwrap()
}

/// A logged command, and what its caller wants to know.
#[derive(Clone, Debug)]
struct Logged {
    stamp_ms: u64,
    request: Option<WriteRequest>,
}

impl Logged {
    fn entry(&self, index: u64) -> Entry {
        let command = self.request.as_ref().map_or_else(command::tick, command::encode);
        let mut body = BytesMut::new();
        command::stamp_into(self.stamp_ms, &command, &mut body);
        let pos = LogPos { term: Term(1 + index / 50), index: LogIndex(index) };
        Entry { pos, body: Body::Command(body.freeze()) }
    }

    fn wants_previous(&self) -> bool {
        self.request.as_ref().is_some_and(command::returns_previous)
    }
}

/// Applies entries `first..`, and returns the answers by index.
fn apply(
    applier: &mut Applier,
    log: &[Logged],
    first: u64,
    count: u64,
) -> Result<Vec<(u64, Answer)>, String> {
    let indexes = first..first + count;
    let logged = |index: u64| &log[usize::try_from(index - 1).unwrap()];
    let entries: Vec<Entry> = indexes.clone().map(|index| logged(index).entry(index)).collect();
    let waiters = indexes.map(|index| ApplyWaiter {
        index: LogIndex(index),
        return_previous: logged(index).wants_previous(),
        waiter: index,
    });
    let job = ApplyJob::Entries { entries: entries.into(), waiters: waiters.collect() };
    let (done, answers) = applier.handle(job);
    match done {
        ApplyDone::Applied(applied) => {
            assert_eq!(applied.index, LogIndex(first + count - 1), "everything is applied");
            assert_eq!(answers.len() as u64, count, "everybody is answered");
            Ok(answers)
        }
        ApplyDone::Failed { reason } => {
            let told = answers.iter().all(|(_, a)| matches!(a, Err(WireError::Storage { .. })));
            assert!(told && answers.len() as u64 == count, "everybody is told of the failure");
            Err(reason)
        }
    }
}

#[derive(Clone, Default)]
struct ModelSession {
    last_active_ms: u64,
    lowest: u64,
    answers: BTreeMap<u64, Answer>,
}

/// What the documentation says, written down in the simplest way.
#[derive(Clone)]
struct Model {
    /// The whole store at each revision, from 1.
    history: Vec<BTreeMap<Bytes, KeyValue>>,
    sessions: BTreeMap<u64, ModelSession>,
    time_ms: u64,
}

impl Model {
    fn new() -> Self {
        Self { history: vec![BTreeMap::new()], sessions: BTreeMap::new(), time_ms: 0 }
    }

    fn revision(&self) -> u64 {
        self.history.len() as u64
    }

    fn now(&self) -> &BTreeMap<Bytes, KeyValue> {
        self.history.last().unwrap()
    }

    fn at(&self, revision: u64) -> &BTreeMap<Bytes, KeyValue> {
        &self.history[usize::try_from(revision - 1).unwrap()]
    }

    fn apply(&mut self, index: u64, logged: &Logged) -> Answer {
        self.time_ms = self.time_ms.max(logged.stamp_ms);
        let Some(request) = &logged.request else {
            let time_ms = self.time_ms;
            self.sessions.retain(|_, s| time_ms - s.last_active_ms <= IDLE_MAX_MS);
            return Ok(Response::Session { id: index });
        };
        let Some(tag) = request.tag else { return Ok(self.change(index, &request.operation)) };
        let Some(session) = self.sessions.get_mut(&tag.session) else {
            return Err(WireError::SessionExpired { session: tag.session });
        };
        let lowest = session.lowest.max(tag.lowest_unacknowledged);
        if tag.sequence < session.lowest || tag.sequence >= lowest + 1024 {
            let (session, sequence) = (tag.session, tag.sequence);
            return Err(WireError::BadSequence { session, sequence, reason: String::new() });
        }
        session.lowest = lowest;
        session.last_active_ms = self.time_ms;
        session.answers.retain(|sequence, _| *sequence >= lowest);
        if let Some(answer) = session.answers.get(&tag.sequence) {
            return answer.clone();
        }
        let answer = Ok(self.change(index, &request.operation));
        if let Some(session) = self.sessions.get_mut(&tag.session) {
            session.answers.insert(tag.sequence, answer.clone());
        }
        answer
    }

    fn change(&mut self, index: u64, operation: &WriteOperation) -> Response {
        let mut next = self.now().clone();
        let revision = self.revision() + 1;
        match operation {
            WriteOperation::RegisterSession => {
                let session =
                    ModelSession { last_active_ms: self.time_ms, lowest: 1, ..Default::default() };
                self.sessions.insert(index, session);
                Response::Session { id: index }
            }
            WriteOperation::Put { key, value, condition, return_previous } => {
                let old = next.get(key).cloned();
                if !self.holds(condition, old.as_ref()) {
                    return Response::Refused { revision: self.revision(), current: old };
                }
                let new = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: old.as_ref().map_or(revision, |old| old.create_revision),
                    mod_revision: revision,
                    version: old.as_ref().map_or(0, |old| old.version) + 1,
                    lease: 0,
                };
                next.insert(key.clone(), new);
                self.history.push(next);
                Response::Written { revision, previous: old.filter(|_| *return_previous) }
            }
            WriteOperation::Delete { key, condition, return_previous } => {
                let old = next.remove(key);
                if !self.holds(condition, old.as_ref()) {
                    return Response::Refused { revision: self.revision(), current: old };
                }
                let count = u64::from(old.is_some());
                if count > 0 {
                    self.history.push(next);
                }
                let previous = old.filter(|_| *return_previous);
                Response::Deleted { revision: self.revision(), count, previous }
            }
            WriteOperation::DeleteRange { range } => {
                let before = next.len();
                next.retain(|key, _| !contains(range, key));
                let count = (before - next.len()) as u64;
                if count > 0 {
                    self.history.push(next);
                }
                Response::Deleted { revision: self.revision(), count, previous: None }
            }
        }
    }

    fn holds(&self, condition: &Condition, old: Option<&KeyValue>) -> bool {
        match condition {
            Condition::Always => true,
            Condition::Absent => old.is_none(),
            Condition::Value(value) => old.is_some_and(|old| old.value == *value),
            Condition::Revision(revision) => old.is_some_and(|old| old.mod_revision == *revision),
        }
    }

    fn page(&self, request: &RangeRequest) -> Response {
        let revision = request.revision.unwrap_or(self.revision());
        let mut items: Vec<KeyValue> = self
            .at(revision)
            .values()
            .filter(|item| contains(&request.range, &item.key))
            .cloned()
            .collect();
        if request.reverse {
            items.reverse();
        }
        let limit = usize::try_from(request.limit.unwrap_or(u64::MAX)).unwrap();
        if request.projection == Projection::Count {
            return Response::Count { revision, count: items.len().min(limit) as u64 };
        }
        if request.projection == Projection::KeysOnly {
            items.iter_mut().for_each(|item| item.value = Bytes::new());
        }
        let mut bytes = 0;
        let fits = items.iter().take_while(|item| {
            let fits = bytes == 0 || bytes < 400;
            bytes += item.key.len() + item.value.len() + 48;
            fits
        });
        let count = fits.count().min(limit);
        let more = count < items.len();
        items.truncate(count);
        Response::Page { revision, items, more }
    }
}

fn contains(range: &KeyRange, key: &Bytes) -> bool {
    *key >= range.start && range.end.as_ref().is_none_or(|end| key < end)
}

struct Generator {
    rng: SplitMix64,
    model: Model,
    tags: BTreeMap<u64, (u64, u64)>,
    sent: Vec<WriteRequest>,
    time_ms: u64,
}

impl Generator {
    fn new(seed: u64) -> Self {
        let (model, tags, sent) = (Model::new(), BTreeMap::new(), Vec::new());
        Self { rng: SplitMix64::new(seed), model, tags, sent, time_ms: 0 }
    }

    fn key(&mut self) -> Bytes {
        const KEYS: [&[u8]; 9] =
            [b"a", b"a\0", b"aa", b"ab", b"b", b"ba", b"\xff", b"\xff\xff", b"c"];
        Bytes::from_static(KEYS[usize::try_from(self.rng.below(9)).unwrap()])
    }

    fn value(&mut self) -> Bytes {
        let len = usize::try_from(self.rng.below(60)).unwrap();
        Bytes::from(vec![b'0' + u8::try_from(self.rng.below(4)).unwrap(); len])
    }

    fn range(&mut self) -> KeyRange {
        let start = if self.rng.chance(1, 4) { Bytes::new() } else { self.key() };
        let end = (!self.rng.chance(1, 4)).then(|| self.key());
        KeyRange { start, end }
    }

    fn condition(&mut self, key: &Bytes) -> Condition {
        let current = self.model.now().get(key).cloned();
        match (self.rng.below(6), current) {
            (0, _) => Condition::Absent,
            (1, Some(current)) => Condition::Value(current.value),
            (2, Some(current)) => Condition::Revision(current.mod_revision),
            (1 | 3, None) => Condition::Revision(1 + self.rng.below(9)),
            (3, Some(_)) => Condition::Value(self.value()),
            _ => Condition::Always,
        }
    }

    fn operation(&mut self) -> WriteOperation {
        let key = self.key();
        let condition = self.condition(&key);
        let return_previous = self.rng.chance(1, 2);
        match self.rng.below(10) {
            0 => WriteOperation::DeleteRange { range: self.range() },
            1..=3 => WriteOperation::Delete { key, condition, return_previous },
            _ => WriteOperation::Put { key, value: self.value(), condition, return_previous },
        }
    }

    fn tag(&mut self) -> Option<SessionTag> {
        let sessions: Vec<u64> = self.tags.keys().copied().collect();
        if sessions.is_empty() || self.rng.chance(1, 3) {
            return None;
        }
        let at = usize::try_from(self.rng.below(sessions.len() as u64)).unwrap();
        let (next, lowest) = self.tags.get_mut(&sessions[at]).unwrap();
        *next += 1;
        if self.rng.chance(1, 4) {
            *lowest += self.rng.below(*next - *lowest + 1);
        }
        let lowest_unacknowledged = *lowest;
        Some(SessionTag { session: sessions[at], sequence: *next, lowest_unacknowledged })
    }

    /// The next command and the answer the model gives.
    fn next(&mut self, index: u64) -> (Logged, Answer) {
        self.time_ms += self.rng.below(20);
        if self.rng.chance(1, 60) {
            self.time_ms += IDLE_MAX_MS / 2;
        }
        let request = match self.rng.below(20) {
            0 => None,
            1 => {
                self.tags.insert(index, (0, 1));
                Some(WriteRequest { tag: None, operation: WriteOperation::RegisterSession })
            }
            2..=5 if !self.sent.is_empty() => {
                let back = self.rng.below(self.sent.len().min(30) as u64) + 1;
                let at = self.sent.len() - usize::try_from(back).unwrap();
                Some(self.sent[at].clone())
            }
            _ => {
                let request = WriteRequest { tag: self.tag(), operation: self.operation() };
                if request.tag.is_some() {
                    self.sent.push(request.clone());
                }
                Some(request)
            }
        };
        let logged = Logged { stamp_ms: self.time_ms, request };
        let answer = self.model.apply(index, &logged);
        (logged, answer)
    }

    fn log(&mut self, count: u64) -> (Vec<Logged>, Vec<Answer>) {
        (1..=count).map(|index| self.next(index)).unzip()
    }
}

fn same(found: &Answer, expected: &Answer) -> bool {
    match (found, expected) {
        (
            Err(WireError::BadSequence { session, sequence, .. }),
            Err(WireError::BadSequence { session: s, sequence: q, .. }),
        ) => (session, sequence) == (s, q),
        _ => found == expected,
    }
}

fn check_reads(generator: &mut Generator, reader: &StateReader, context: &str) {
    let revision = generator.model.revision();
    for _ in 0..10 {
        let at = generator.rng.chance(2, 3).then(|| 1 + generator.rng.below(revision));
        let key = generator.key();
        let request =
            GetRequest { key, revision: at, consistency: Consistency::Stale { max_age_ms: None } };
        let read_at = at.unwrap_or(revision);
        let found = generator.model.at(read_at).get(&request.key).cloned();
        let expected = Ok(Response::Value { revision: read_at, found });
        assert_eq!(reader.get(&request), expected, "{request:?}, {context}");

        let projection = match generator.rng.below(3) {
            0 => Projection::Count,
            1 => Projection::KeysOnly,
            _ => Projection::KeyValues,
        };
        let request = RangeRequest {
            range: generator.range(),
            limit: generator.rng.chance(1, 2).then(|| generator.rng.below(6)),
            reverse: generator.rng.chance(1, 2),
            projection,
            revision: at,
            consistency: Consistency::Stale { max_age_ms: None },
        };
        let expected = Ok(generator.model.page(&request));
        assert_eq!(reader.range(&request), expected, "{request:?}, {context}");
    }
    let future = GetRequest {
        key: Bytes::from_static(b"a"),
        revision: Some(revision + 1),
        consistency: Consistency::Stale { max_age_ms: None },
    };
    let expected =
        Err(WireError::FutureRevision { node: NODE, requested: revision + 1, current: revision });
    assert_eq!(reader.get(&future), expected, "{context}");
}

#[test]
fn answers_revisions_and_reads_are_those_of_the_model() {
    for seed in 0..30 {
        let vfs = MemVfs::new(seed);
        let mut applier = open(&vfs, 1, 3000);
        let reader = applier.reader();
        let mut generator = Generator::new(seed);
        let mut log = Vec::new();
        let mut expected = Vec::new();
        let mut next = 1;
        while next <= 300 {
            let count = 1 + generator.rng.below(12);
            for index in next..next + count {
                let (logged, answer) = generator.next(index);
                log.push(logged);
                expected.push(answer);
            }
            let context = format!("seed {seed}, entries {next}.. {count}");
            for (index, answer) in apply(&mut applier, &log, next, count).unwrap() {
                let at = usize::try_from(index - 1).unwrap();
                assert!(
                    same(&answer, &expected[at]),
                    "entry {index} {:?}: answered {answer:?}, model {:?}, {context}",
                    log[at],
                    expected[at]
                );
            }
            next += count;
            check_reads(&mut generator, &reader, &context);
            let applied = reader.applied();
            assert_eq!(
                applied,
                applier.applied(),
                "what readers see is what was applied, {context}"
            );
            assert_eq!(applied.sessions, generator.model.sessions.len() as u64, "{context}");
        }
    }
}

#[test]
fn a_crash_at_any_point_of_apply_and_a_replay_give_the_same_state() {
    const COUNT: u64 = 120;
    for seed in 0..3 {
        let mut generator = Generator::new(seed);
        let (log, expected) = generator.log(COUNT);
        let vfs = MemVfs::new(seed);
        let mut whole = open(&vfs, 1, 700);
        let calls_at_open = vfs.mutating_calls();
        for index in 1..=COUNT {
            apply(&mut whole, &log, index, 1).unwrap();
        }
        let reference = whole.applied();
        let calls = vfs.mutating_calls() - calls_at_open;
        assert!(calls > 20, "seed {seed}: only {calls} places to crash at: nothing is flushed");

        for call in 0..calls {
            let context = format!("seed {seed}, crash at call {call} of {calls}");
            let mut rng = SplitMix64::new(seed ^ (call << 8));
            let vfs = MemVfs::new(call);
            let mut applier = open(&vfs, 2, 700);
            vfs.crash_at(vfs.mutating_calls() + call);
            let mut next = 1;
            let mut boots = 2;
            while next <= COUNT {
                let count = (1 + rng.below(7)).min(COUNT + 1 - next);
                match apply(&mut applier, &log, next, count) {
                    Ok(answers) => {
                        for (index, answer) in answers {
                            let model = &expected[usize::try_from(index - 1).unwrap()];
                            assert!(same(&answer, model), "entry {index}: {answer:?}, {context}");
                        }
                        next += count;
                    }
                    Err(reason) => {
                        assert!(vfs.has_stopped(), "{reason}, {context}");
                        let policy = CrashPolicy::ALL[usize::try_from(rng.below(8)).unwrap()];
                        drop(applier);
                        vfs.crash(policy, rng.next_u64());
                        boots += 1;
                        applier = open(&vfs, boots, 700);
                        let durable = applier.applied();
                        assert_eq!(durable.index, durable.durable, "starts from tables, {context}");
                        next = durable.index.0 + 1;
                    }
                }
            }
            let mut applied = applier.applied();
            applied.durable = reference.durable;
            assert_eq!(applied, reference, "{context}");
            check_reads(&mut generator, &applier.reader(), &context);
        }
    }
}

#[test]
fn a_command_of_the_next_version_stops_the_state_machine_by_name() {
    let vfs = MemVfs::new(1);
    let mut applier = open(&vfs, 1, 1 << 20);
    let mut body = BytesMut::new();
    let mut newer = command::tick().to_vec();
    newer[0] = command::COMMAND_VERSION + 1;
    command::stamp_into(0, &newer, &mut body);
    let pos = LogPos { term: Term(1), index: LogIndex(1) };
    let entry = Entry { pos, body: Body::Command(body.freeze()) };
    let job = || ApplyJob::Entries {
        entries: Arc::from([entry.clone()]),
        waiters: vec![ApplyWaiter { index: LogIndex(1), return_previous: false, waiter: () }],
    };
    let expected = "entry 1 of the log: a command of version 2, this program applies up to 1: start the newer program";
    for _ in 0..2 {
        let (done, answers) = applier.handle(job());
        assert_eq!(done, ApplyDone::Failed { reason: expected.to_owned() }, "and again");
        assert!(matches!(answers[..], [((), Err(WireError::Storage { .. }))]), "{answers:?}");
    }
    assert_eq!(applier.reader().applied().index, LogIndex(0), "nothing was applied");
}

#[test]
fn history_below_the_floor_is_refused_by_naming_the_floor() {
    let vfs = MemVfs::new(1);
    let mut applier = open(&vfs, 1, 4 << 20);
    let put = |tag| {
        let operation = WriteOperation::Put {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            condition: Condition::Always,
            return_previous: true,
        };
        Logged { stamp_ms: 0, request: Some(WriteRequest { tag, operation }) }
    };
    let register = WriteRequest { tag: None, operation: WriteOperation::RegisterSession };
    let first = SessionTag { session: 1, sequence: 1, lowest_unacknowledged: 1 };
    let mut log = vec![Logged { stamp_ms: 0, request: Some(register) }, put(Some(first))];
    log.resize(110_001, put(None));
    log[110_000] = put(Some(first));
    let get = |reader: &StateReader, revision| {
        reader.get(&GetRequest {
            key: Bytes::from_static(b"k"),
            revision: Some(revision),
            consistency: Consistency::Stale { max_age_ms: None },
        })
    };
    let mut next = 1;
    while next < 110_000 {
        let count = 2000.min(110_000 - next);
        apply(&mut applier, &log, next, count).unwrap();
        next += count;
    }
    let reader = applier.reader();
    assert_eq!(reader.applied().revision, 109_999, "one below the first step");
    assert!(get(&reader, 2).is_ok(), "everything can be read");
    apply(&mut applier, &log, next, 1).unwrap();
    let refused = Err(WireError::Compacted { requested: 9_999, oldest: 10_000 });
    assert_eq!(get(&reader, 9_999), refused, "below the floor");
    assert!(get(&reader, 10_000).is_ok(), "at the floor");

    // A retry of the first write: it was applied, but what was there before is gone.
    let (_, answer) = apply(&mut applier, &log, next + 1, 1).unwrap().remove(0);
    let Err(WireError::OutcomeUnknown { reason, .. }) = answer else { panic!("{answer:?}") };
    assert!(reason.starts_with("applied at revision 2"), "{reason}");
    assert_eq!(reader.applied().revision, 110_000, "and not applied again");
}
