//! [`Applier`]: the one owner of the state. A committed chunk becomes one run of the engine.
//!
//! ```text
//! decode all ─► begin run ─► resolve the distinct keys (one multi_get)
//!     per command: session check → condition → next revision → batch → reply → state hash
//! session rows, if a memtable is about to freeze ─► publish once ─► raise the floor ─► answers
//! ```
//!
//! Why session rows wait for the freeze: everything above a flush is replayed from the log, so a row is
//! needed on disk only once the flush would cut its past off (DESIGN 10.5).
//!
//! A failure of the engine, or a command this program does not know, stops the state machine for good:
//! its callers are told `Storage` (effect unknown), and so is everyone after them.

use bytes::Bytes;
use lsm_store::{Error, Op, Position, Run, SequenceNumber, Store, coding::DecodeError};
use raft_core::{Body, Entry, LogIndex};
use raft_rpc::{Condition, KeyRange, KeyValue, Response, WireError};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    limits::Limits,
    replica::{Answer, Applied, ApplyDone, ApplyJob, ApplyWaiter},
    state_machine::{
        DATA, META, StateReader,
        command::{self, Command, CommandError, Operation},
        reader::bounds,
        retention,
        row::{Row, RowHeader},
        session::{Reply, SessionTable, Verdict},
        state::{Change, State},
    },
};

/// How often a run is tried while the engine says it is stalled; each try waits for a while itself.
const STALLS_MAX: u32 = 10;

/// Outcomes as they enter the state hash; never renumbered.
mod outcome {
    pub(super) const REGISTERED: u64 = 1;
    pub(super) const WRITTEN: u64 = 2;
    pub(super) const DELETED: u64 = 3;
    pub(super) const REFUSED: u64 = 4;
    pub(super) const TICKED: u64 = 5;
    pub(super) const REPEATED: u64 = 6;
    pub(super) const SESSION_UNKNOWN: u64 = 7;
    pub(super) const OUT_OF_ORDER: u64 = 8;
}

/// Why the state machine cannot go on, or cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] Error),
    /// An entry is not a command this program applies.
    #[error("entry {index} of the log: {source}")]
    Command {
        /// Where.
        index: LogIndex,
        /// What is wrong with it.
        source: CommandError,
    },
    /// Bytes in the engine are not this program's.
    #[error("{what} in the engine cannot be read: {source}")]
    Row {
        /// Which bytes.
        what: &'static str,
        /// What is wrong with them.
        source: DecodeError,
    },
    /// The rows of sessions do not belong to the engine's position.
    #[error(
        "the engine's position saw {position} changes of sessions, the rows of sessions {rows}: retries could apply twice"
    )]
    SessionsBehind {
        /// Changes according to the position.
        position: u64,
        /// Changes according to the rows.
        rows: u64,
    },
}

/// Applies committed entries to the engine. Owned by one thread.
#[derive(Debug)]
pub struct Applier {
    node: u64,
    store: Store,
    reader: StateReader,
    state: State,
    sessions: SessionTable,
    /// The floor that is in force in the engine.
    floor: u64,
    /// Why nothing is applied any more.
    failed: Option<String>,
    /// The bytes of the row being written; kept for its capacity.
    row: Vec<u8>,
}

/// A command with the place it came from.
struct Placed {
    index: LogIndex,
    body: Bytes,
    stamp_ms: u64,
    command: Command,
}

/// The newest rows of the keys a chunk is about, kept up to date while it is applied.
struct Slots {
    /// Distinct, rising.
    keys: Vec<Bytes>,
    rows: Vec<Option<Row>>,
    /// The slot of each command, by its place in the chunk.
    of_command: Vec<Option<usize>>,
}

/// What a command did.
struct Effect {
    change: Change,
    /// What the session remembers.
    reply: Option<Reply>,
    /// The key before, for answers.
    before: Option<Row>,
}

/// An answer, or what is still missing for it.
enum Told {
    Now(Answer),
    /// A repeated command: what the answer shows is read from history, once the run is published.
    FromHistory {
        reply: Reply,
        operation: Operation,
        return_previous: bool,
    },
}

impl Applier {
    pub(crate) fn open(node: u64, store: Store, limits: &Limits) -> Result<Self, ApplyError> {
        let position = store.visible_position();
        let mut state = State::load(&position, store.last_sequence(DATA).0)
            .map_err(|source| ApplyError::Row { what: "the position", source })?;
        let mut sessions = SessionTable::default();
        let view = store.view();
        let mut iter = view.iter(META, std::ops::Bound::Unbounded, std::ops::Bound::Unbounded)?;
        let mut there = iter.seek_to_first()?;
        while there {
            sessions
                .load_row(iter.key(), iter.value())
                .map_err(|source| ApplyError::Row { what: "a session", source })?;
            there = iter.next()?;
        }
        if sessions.changes() != state.session_changes {
            return Err(ApplyError::SessionsBehind {
                position: state.session_changes,
                rows: sessions.changes(),
            });
        }
        state.sessions = sessions.len();
        Ok(Self {
            node,
            reader: StateReader::new(node, store.clone(), limits),
            floor: store.floor(DATA).0,
            store,
            state,
            sessions,
            failed: None,
            row: Vec::new(),
        })
    }

    /// Reads of the state this applies to.
    pub(crate) fn reader(&self) -> StateReader {
        self.reader.clone()
    }

    /// The state in numbers.
    #[must_use]
    pub fn applied(&self) -> Applied {
        Applied {
            index: self.state.pos.index,
            durable: LogIndex(self.store.durable_position().index),
            revision: self.state.revision,
            state_hash: self.state.hash,
            cluster_time_ms: self.state.cluster_time_ms,
            sessions: self.state.sessions,
        }
    }

    /// Does one job and says who gets which answer. Reads the engine; syncs only when the retention
    /// floor rises (once in 10,000 revisions).
    ///
    /// After the first [`ApplyDone::Failed`] every later job fails too.
    pub fn handle<W>(&mut self, job: ApplyJob<W>) -> (ApplyDone, Vec<(W, Answer)>) {
        let (entries, waiters) = match job {
            ApplyJob::Entries { entries, waiters } => (entries, waiters),
            ApplyJob::Flush => return (self.flush(), Vec::new()),
        };
        let result = match &self.failed {
            Some(reason) => Err(reason.clone()),
            None => self.apply(&entries, &waiters).map_err(|error| error.to_string()),
        };
        match result {
            Ok(answers) => {
                let answers = waiters.into_iter().map(|waiting| waiting.waiter).zip(answers);
                (ApplyDone::Applied(self.applied()), answers.collect())
            }
            Err(reason) => {
                self.failed = Some(reason.clone());
                let answers = waiters.into_iter().map(|waiting| {
                    (
                        waiting.waiter,
                        Err(WireError::Storage { node: self.node, reason: reason.clone() }),
                    )
                });
                (ApplyDone::Failed { reason: reason.clone() }, answers.collect())
            }
        }
    }

    fn flush(&mut self) -> ApplyDone {
        if let Some(reason) = &self.failed {
            return ApplyDone::Failed { reason: reason.clone() };
        }
        let started = self.add_session_rows().and_then(|()| self.store.start_flush());
        match started {
            Ok(()) => ApplyDone::Applied(self.applied()),
            Err(error) => {
                let reason = error.to_string();
                self.failed = Some(reason.clone());
                ApplyDone::Failed { reason }
            }
        }
    }

    /// The end of a node that was asked to stop: brings everything applied into tables, waits for that,
    /// and releases the engine, so that the next start replays nothing.
    ///
    /// # Errors
    /// What failed; the log still holds everything.
    pub fn close(mut self) -> Result<(), ApplyError> {
        if self.failed.is_none() {
            self.add_session_rows()?;
            self.store.flush()?;
        }
        Ok(self.store.close()?)
    }

    /// Writes the sessions that changed since the last freeze beside the position they belong to: a flush
    /// cuts off the past from which they could be replayed.
    fn add_session_rows(&mut self) -> Result<(), Error> {
        if !self.sessions.is_dirty() {
            return Ok(());
        }
        let mut run = self.store.begin_addendum()?;
        self.write_session_rows(&mut run)?;
        run.publish()
    }

    /// Applies `entries` as one run. The answers are in the order of `waiters`.
    pub(crate) fn apply<W>(
        &mut self,
        entries: &[Entry],
        waiters: &[ApplyWaiter<W>],
    ) -> Result<Vec<Answer>, ApplyError> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return Ok(Vec::new());
        };
        assert!(
            first.pos.index == self.state.pos.index.next(),
            "entries from {} on were to be applied, {} is applied",
            first.pos.index,
            self.state.pos.index
        );
        let commands = decode(entries)?;
        let mut run = self.begin_run(Position {
            index: last.pos.index.0,
            term: last.pos.term.0,
            extra: Vec::new(),
        })?;
        let mut slots = Slots::resolve(&commands, &run)?;
        let mut told = Vec::with_capacity(waiters.len());
        let mut waiting = waiters.iter().peekable();
        for (at, placed) in commands.iter().enumerate() {
            let waiter = waiting.next_if(|waiter| waiter.index == placed.index);
            let answer = self.apply_command(
                &mut run,
                &mut slots,
                at,
                placed,
                waiter.map(|w| w.return_previous),
            )?;
            told.extend(answer);
        }
        assert!(
            told.len() == waiters.len(),
            "{} of {} callers wait for entries that are not commands of this chunk",
            waiters.len() - told.len(),
            waiters.len()
        );
        self.state.pos = last.pos;
        self.state.session_changes = self.sessions.changes();
        self.state.sessions = self.sessions.len();
        if self.store.freeze_is_due() {
            self.write_session_rows(&mut run)?;
        }
        run.set_extra(self.state.extra())?;
        run.publish()?;
        self.raise_floor()?;
        Ok(told.into_iter().map(|told| self.answer(told)).collect())
    }

    fn begin_run(&self, position: Position) -> Result<Run, Error> {
        let mut stalls = 0;
        loop {
            match self.store.begin_run(position.clone()) {
                Err(Error::Stalled { .. }) if stalls < STALLS_MAX => stalls += 1,
                result => return result,
            }
        }
    }

    /// Applies one command. Returns an answer if somebody waits for it (`wants_previous` is there).
    fn apply_command(
        &mut self,
        run: &mut Run,
        slots: &mut Slots,
        at: usize,
        placed: &Placed,
        wants_previous: Option<bool>,
    ) -> Result<Option<Told>, ApplyError> {
        let state = &mut self.state;
        state.cluster_time_ms = state.cluster_time_ms.max(placed.stamp_ms);
        let now_ms = state.cluster_time_ms;
        let Command { tag, operation } = &placed.command;
        if let Some(tag) = *tag {
            let (outcome, reply, refusal) = match self.sessions.check(tag, now_ms) {
                Verdict::New => (0, None, None),
                Verdict::Repeat(reply) => (outcome::REPEATED, Some(reply), None),
                Verdict::Unknown => {
                    let refusal = WireError::SessionExpired { session: tag.session };
                    (outcome::SESSION_UNKNOWN, None, Some(refusal))
                }
                Verdict::OutOfOrder(reason) => {
                    let refusal = WireError::BadSequence {
                        session: tag.session,
                        sequence: tag.sequence,
                        reason: reason.to_owned(),
                    };
                    (outcome::OUT_OF_ORDER, None, Some(refusal))
                }
            };
            if outcome != 0 {
                state.fold(placed.index, &placed.body, &Change { outcome, ..Change::default() });
                return Ok(wants_previous.map(|return_previous| match (reply, refusal) {
                    (Some(reply), _) if fits(reply, operation) => {
                        Told::FromHistory { reply, operation: operation.clone(), return_previous }
                    }
                    (_, Some(refusal)) => Told::Now(Err(refusal)),
                    (_, None) => Told::Now(Err(WireError::BadSequence {
                        session: tag.session,
                        sequence: tag.sequence,
                        reason: "it was another operation before".to_owned(),
                    })),
                }));
            }
        }
        let effect = match operation {
            Operation::RegisterSession => {
                let evicted = self.sessions.register(placed.index.0, now_ms);
                Effect::of_sessions(outcome::REGISTERED, &evicted)
            }
            Operation::Tick => {
                let expired = self.sessions.expire(now_ms);
                Effect::of_sessions(outcome::TICKED, &expired)
            }
            Operation::Put { value, condition, .. } => {
                self.put(run, slots, slots.slot(at), value, condition)?
            }
            Operation::Delete { condition, .. } => {
                self.delete(run, slots, slots.slot(at), condition)?
            }
            Operation::DeleteRange { range } => self.delete_range(run, slots, range)?,
        };
        if let (Some(tag), Some(reply)) = (*tag, effect.reply) {
            self.sessions.remember(tag, reply);
        }
        self.state.fold(placed.index, &placed.body, &effect.change);
        Ok(wants_previous.map(|return_previous| {
            let shown = effect.before.filter(|_row| {
                return_previous || matches!(effect.reply, Some(Reply::Refused { .. }))
            });
            let shown = shown.map(|row| row.key_value(key_of(operation)));
            Told::Now(Ok(match effect.reply {
                Some(reply) => response(reply, shown),
                None => Response::Session { id: placed.index.0 },
            }))
        }))
    }

    fn put(
        &mut self,
        run: &mut Run,
        slots: &mut Slots,
        slot: usize,
        value: &Bytes,
        condition: &Condition,
    ) -> Result<Effect, ApplyError> {
        let before = slots.rows[slot].clone();
        if !holds(condition, before.as_ref()) {
            return Ok(self.refused(before));
        }
        let revision = self.next_revision();
        let header = RowHeader {
            create_revision: before.as_ref().map_or(revision, |row| row.header.create_revision),
            version: before.as_ref().map_or(1, |row| row.header.version + 1),
            lease: 0,
            ordinal: 0,
        };
        header.encode_with(value, &mut self.row);
        let op = Op::Put { key: &slots.keys[slot], value: &self.row };
        run.apply(DATA, SequenceNumber(revision), &[op])?;
        slots.rows[slot] = Some(Row { header, mod_revision: revision, value: value.clone() });
        Ok(Effect {
            change: Change {
                outcome: outcome::WRITTEN,
                revision,
                create_revision: header.create_revision,
                version: header.version,
                ..Change::default()
            },
            reply: Some(Reply::Written { revision }),
            before,
        })
    }

    fn delete(
        &mut self,
        run: &mut Run,
        slots: &mut Slots,
        slot: usize,
        condition: &Condition,
    ) -> Result<Effect, ApplyError> {
        let before = slots.rows[slot].clone();
        if !holds(condition, before.as_ref()) {
            return Ok(self.refused(before));
        }
        let count = u64::from(before.is_some());
        if count == 1 {
            let revision = self.next_revision();
            run.apply(DATA, SequenceNumber(revision), &[Op::Delete { key: &slots.keys[slot] }])?;
            slots.rows[slot] = None;
        }
        Ok(self.deleted(count, 0, before))
    }

    fn delete_range(
        &mut self,
        run: &mut Run,
        slots: &mut Slots,
        range: &KeyRange,
    ) -> Result<Effect, ApplyError> {
        let mut keys: Vec<Bytes> = Vec::new();
        let inverted = range.end.as_ref().is_some_and(|end| *end <= range.start);
        if !inverted {
            let (lower, upper) = bounds(range);
            let mut iter = run.iter(DATA, lower, upper)?;
            let mut there = iter.seek_to_first()?;
            while there {
                keys.push(Bytes::copy_from_slice(iter.key()));
                there = iter.next()?;
            }
        }
        if keys.is_empty() {
            return Ok(self.deleted(0, 0, None));
        }
        let revision = self.next_revision();
        let ops: Vec<Op<'_>> = keys.iter().map(|key| Op::Delete { key }).collect();
        run.apply(DATA, SequenceNumber(revision), &ops)?;
        slots.remove_range(range);
        let others = keys.iter().fold(0, |hash, key| xxh3_64_with_seed(key, hash));
        Ok(self.deleted(keys.len() as u64, others, None))
    }

    fn next_revision(&mut self) -> u64 {
        self.state.revision += 1;
        assert!(
            self.state.revision <= SequenceNumber::MAX.0,
            "revision {} is above what the engine can number",
            self.state.revision
        );
        self.state.revision
    }

    fn refused(&self, before: Option<Row>) -> Effect {
        let revision = self.state.revision;
        Effect {
            change: Change { outcome: outcome::REFUSED, revision, ..Change::default() },
            reply: Some(Reply::Refused { revision }),
            before,
        }
    }

    fn deleted(&self, count: u64, others: u64, before: Option<Row>) -> Effect {
        let revision = self.state.revision;
        Effect {
            change: Change {
                outcome: outcome::DELETED,
                revision,
                count,
                others,
                ..Change::default()
            },
            reply: Some(Reply::Deleted { revision, count }),
            before,
        }
    }

    fn write_session_rows(&mut self, run: &mut Run) -> Result<(), Error> {
        let rows = self.sessions.take_dirty_rows();
        if rows.is_empty() {
            return Ok(());
        }
        let ops: Vec<Op<'_>> = rows
            .iter()
            .map(|(key, row)| match row {
                Some(row) => Op::Put { key, value: row },
                None => Op::Delete { key },
            })
            .collect();
        run.apply(META, SequenceNumber(self.state.pos.index.0), &ops)
    }

    /// The floor is a pure function of the state; the engine is told when it rises.
    fn raise_floor(&mut self) -> Result<(), Error> {
        let floor = retention::floor(self.state.revision);
        if floor > retention::floor(0) && floor > self.floor {
            self.store.set_floor(DATA, SequenceNumber(floor))?;
            self.floor = floor;
        }
        Ok(())
    }

    fn answer(&self, told: Told) -> Answer {
        match told {
            Told::Now(answer) => answer,
            Told::FromHistory { reply, operation, return_previous } => {
                self.answer_from_history(reply, &operation, return_previous)
            }
        }
    }

    /// The first answer of a command, again: what it shows of the key is read as of then.
    fn answer_from_history(
        &self,
        reply: Reply,
        operation: &Operation,
        return_previous: bool,
    ) -> Answer {
        let at = match reply {
            Reply::Refused { revision } => Some(revision),
            Reply::Written { revision } | Reply::Deleted { revision, count: 1 }
                if return_previous =>
            {
                Some(revision - 1)
            }
            Reply::Written { .. } | Reply::Deleted { .. } => None,
        };
        let shown = match at {
            Some(at) => self.reader.get_at(&key_of(operation), at),
            None => Ok(None),
        };
        match (shown, reply) {
            (Ok(shown), _) => Ok(response(reply, shown)),
            (
                Err(WireError::Compacted { oldest, .. }),
                Reply::Written { revision } | Reply::Deleted { revision, .. },
            ) => Err(WireError::OutcomeUnknown {
                node: self.node,
                reason: format!(
                    "applied at revision {revision}, but what was there before is compacted; oldest readable is {oldest}"
                ),
            }),
            (Err(error), _) => Err(error),
        }
    }
}

impl Slots {
    /// The distinct keys of `commands` with their newest rows.
    fn resolve(commands: &[Placed], run: &Run) -> Result<Self, ApplyError> {
        let mut order: Vec<(&Bytes, usize)> = Vec::with_capacity(commands.len());
        for (at, placed) in commands.iter().enumerate() {
            match &placed.command.operation {
                Operation::Put { key, .. } | Operation::Delete { key, .. } => order.push((key, at)),
                Operation::RegisterSession | Operation::DeleteRange { .. } | Operation::Tick => {}
            }
        }
        order.sort_unstable();
        let mut keys: Vec<Bytes> = Vec::with_capacity(order.len());
        let mut of_command = vec![None; commands.len()];
        for (key, at) in order {
            if keys.last() != Some(key) {
                keys.push(key.clone());
            }
            of_command[at] = Some(keys.len() - 1);
        }
        let borrowed: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
        let rows = run
            .multi_get(DATA, &borrowed)?
            .into_iter()
            .map(|found| found.map(|found| Row::decode(&found.value, found.sequence.0)).transpose())
            .collect::<Result<_, _>>()
            .map_err(|source| ApplyError::Row { what: "a row", source })?;
        Ok(Self { keys, rows, of_command })
    }

    fn slot(&self, at: usize) -> usize {
        self.of_command[at].expect("every put and delete got a slot in `resolve`")
    }

    fn remove_range(&mut self, range: &KeyRange) {
        let from = self.keys.partition_point(|key| *key < range.start);
        let to = match &range.end {
            Some(end) => self.keys.partition_point(|key| key < end),
            None => self.keys.len(),
        };
        for row in self.rows.get_mut(from..to).into_iter().flatten() {
            *row = None;
        }
    }
}

impl Effect {
    fn of_sessions(outcome: u64, ended: &[u64]) -> Self {
        let others = ended.iter().fold(0, |hash, id| xxh3_64_with_seed(&id.to_le_bytes(), hash));
        let count = ended.len() as u64;
        let change = Change { outcome, count, others, ..Change::default() };
        Self { change, reply: None, before: None }
    }
}

fn decode(entries: &[Entry]) -> Result<Vec<Placed>, ApplyError> {
    let mut commands = Vec::with_capacity(entries.len());
    for entry in entries {
        match &entry.body {
            Body::Command(body) => {
                let (stamp_ms, command) = command::decode_stamped(body.clone())
                    .map_err(|source| ApplyError::Command { index: entry.pos.index, source })?;
                commands.push(Placed {
                    index: entry.pos.index,
                    body: body.clone(),
                    stamp_ms,
                    command,
                });
            }
            Body::Noop | Body::Config(_) => {}
        }
    }
    Ok(commands)
}

fn holds(condition: &Condition, row: Option<&Row>) -> bool {
    match condition {
        Condition::Always => true,
        Condition::Absent => row.is_none(),
        Condition::Value(value) => row.is_some_and(|row| row.value == *value),
        Condition::Revision(revision) => row.is_some_and(|row| row.mod_revision == *revision),
    }
}

/// Whether a remembered reply can be one of this operation.
const fn fits(reply: Reply, operation: &Operation) -> bool {
    match operation {
        Operation::Put { .. } => matches!(reply, Reply::Written { .. } | Reply::Refused { .. }),
        Operation::Delete { .. } => matches!(reply, Reply::Deleted { .. } | Reply::Refused { .. }),
        Operation::DeleteRange { .. } => matches!(reply, Reply::Deleted { .. }),
        Operation::RegisterSession | Operation::Tick => false,
    }
}

fn key_of(operation: &Operation) -> Bytes {
    match operation {
        Operation::Put { key, .. } | Operation::Delete { key, .. } => key.clone(),
        Operation::RegisterSession | Operation::DeleteRange { .. } | Operation::Tick => {
            Bytes::new()
        }
    }
}

fn response(reply: Reply, shown: Option<KeyValue>) -> Response {
    match reply {
        Reply::Written { revision } => Response::Written { revision, previous: shown },
        Reply::Deleted { revision, count } => {
            Response::Deleted { revision, count, previous: shown }
        }
        Reply::Refused { revision } => Response::Refused { revision, current: shown },
    }
}
