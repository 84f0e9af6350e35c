//! Client sessions: a retry after a lost answer is applied once and gets the first answer (DESIGN 10.5).
//!
//! A session's id is the log index of the command that opened it. Each write carries (session, sequence,
//! lowest unacknowledged). The table keeps, per session, what became of every write from the lowest
//! unacknowledged one on: kind, revision and count; previous values are read again from history.
//!
//! Invariants:
//! 1. The table is a pure function of the log: time is cluster time, order is by id, and nothing is
//!    looked up in a randomly ordered map.
//! 2. At most [`OUTSTANDING_MAX`] writes per session, at most [`SESSIONS_MAX`] sessions; at that number
//!    the [`EVICTED`] ones that were idle longest end, so that registering stays cheap. A session idle for
//!    more than [`IDLE_MAX_MS`] of cluster time ends at the next tick.
//! 3. An unknown session is an error, never created silently (RAFT B44).
//!
//! On disk (partition `meta`, sequence number = log index) only what changed since the last time is
//! written, in the last run before a memtable freezes: everything after is replayed from the log.
//!
//! ```text
//! "s" | session u64 big-endian    format u8 = 1 | last active ms varint | lowest varint | count varint |
//!                                 (sequence − lowest varint | kind u8 | revision varint | count varint)…
//! "m"                             format u8 = 1 | session changes u64
//! ```
//!
//! The number under "m" has to equal the one in the engine's position: rows that are older than the
//! position would apply retries twice, so a store where they differ does not start.
//!
//! Memory: 24 bytes per remembered write; the worst case (all sessions with all writes outstanding) is
//! 2.4 GB, a busy client with 256 writes under way takes 6 KiB.

use std::collections::{BTreeMap, VecDeque};

use lsm_store::coding::{DecodeError, Reader, put_varint};
use raft_rpc::SessionTag;

/// Most writes a session may have outstanding.
pub const OUTSTANDING_MAX: u64 = 1024;

/// Most sessions.
pub const SESSIONS_MAX: usize = 100_000;

/// How many of the longest idle sessions end when there are too many.
pub const EVICTED: usize = 1_000;

/// A session idle for longer than this ends, in milliseconds of cluster time.
pub const IDLE_MAX_MS: u64 = 60 * 60 * 1000;

const FORMAT: u8 = 1;

/// The key of the row that counts the changes.
pub(crate) const CHANGES_KEY: &[u8] = b"m";

const ROW_PREFIX: u8 = b's';

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    /// A value was stored.
    Written { revision: u64 },
    /// Keys were removed.
    Deleted { revision: u64, count: u64 },
    /// The condition did not hold at this revision.
    Refused { revision: u64 },
}

/// What to do with a tagged write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Apply it, then [`SessionTable::remember`].
    New,
    /// It was applied: answer this.
    Repeat(Reply),
    /// The session is unknown.
    Unknown,
    /// Its number is none that may come now.
    OutOfOrder(&'static str),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Session {
    last_active_ms: u64,
    /// Every lower sequence is acknowledged; the first place of `replies` is this one's.
    lowest: u64,
    replies: VecDeque<Option<Reply>>,
    dirty: bool,
}

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct SessionTable {
    sessions: BTreeMap<u64, Session>,
    /// Sessions whose row is older than they are.
    dirty: Vec<u64>,
    /// Sessions that ended since rows were last written.
    ended: Vec<u64>,
    /// No session was idle before this: most ticks need not look.
    oldest_active_ms: u64,
    /// How often something changed since the store is there.
    changes: u64,
}

impl SessionTable {
    /// Open sessions.
    pub(crate) fn len(&self) -> u64 {
        self.sessions.len() as u64
    }

    /// How often something changed since the store is there.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Opens the session of this log index. Returns the sessions that ended for it, by id.
    pub(crate) fn register(&mut self, id: u64, now_ms: u64) -> Vec<u64> {
        let evicted = if self.sessions.len() >= SESSIONS_MAX {
            let mut by_idleness: Vec<(u64, u64)> =
                self.sessions.iter().map(|(id, session)| (session.last_active_ms, *id)).collect();
            by_idleness.sort_unstable();
            by_idleness.truncate(EVICTED);
            let mut ids: Vec<u64> = by_idleness.into_iter().map(|(_active, id)| id).collect();
            ids.sort_unstable();
            self.end(&ids);
            ids
        } else {
            Vec::new()
        };
        let session =
            Session { last_active_ms: now_ms, lowest: 1, replies: VecDeque::new(), dirty: true };
        let before = self.sessions.insert(id, session);
        assert!(before.is_none(), "session {id} was opened twice: a log index was applied twice");
        self.dirty.push(id);
        self.changes += 1;
        if self.sessions.len() == 1 {
            self.oldest_active_ms = now_ms;
        }
        evicted
    }

    /// What to do with a write. Anything but [`Verdict::New`] and [`Verdict::Repeat`] changes nothing.
    pub(crate) fn check(&mut self, tag: SessionTag, now_ms: u64) -> Verdict {
        let Some(session) = self.sessions.get_mut(&tag.session) else {
            return Verdict::Unknown;
        };
        if tag.lowest_unacknowledged > tag.sequence {
            return Verdict::OutOfOrder("it is below its own lowest unacknowledged write");
        }
        if tag.sequence < session.lowest {
            return Verdict::OutOfOrder("its answer was acknowledged before");
        }
        let lowest = session.lowest.max(tag.lowest_unacknowledged);
        if tag.sequence - lowest >= OUTSTANDING_MAX {
            return Verdict::OutOfOrder("more than 1,024 writes are outstanding");
        }
        let forgotten = usize::try_from(lowest - session.lowest)
            .map_or(session.replies.len(), |count| count.min(session.replies.len()));
        session.replies.drain(..forgotten);
        session.lowest = lowest;
        session.last_active_ms = now_ms;
        self.changes += 1;
        if !session.dirty {
            session.dirty = true;
            self.dirty.push(tag.session);
        }
        match place(session, tag.sequence).and_then(|at| session.replies.get(at)).copied() {
            Some(Some(reply)) => Verdict::Repeat(reply),
            Some(None) | None => Verdict::New,
        }
    }

    /// Remembers what became of a write that was [`Verdict::New`].
    pub(crate) fn remember(&mut self, tag: SessionTag, reply: Reply) {
        let Some(session) = self.sessions.get_mut(&tag.session) else { return };
        let Some(at) = place(session, tag.sequence) else { return };
        if session.replies.len() <= at {
            session.replies.resize(at + 1, None);
        }
        if let Some(slot) = session.replies.get_mut(at) {
            assert!(
                slot.is_none(),
                "write {} of session {} was applied twice",
                tag.sequence,
                tag.session
            );
            *slot = Some(reply);
        }
    }

    /// Ends the sessions that were idle for too long. Returns their ids, rising.
    pub(crate) fn expire(&mut self, now_ms: u64) -> Vec<u64> {
        if now_ms.saturating_sub(self.oldest_active_ms) <= IDLE_MAX_MS {
            return Vec::new();
        }
        let mut expired = Vec::new();
        let mut oldest = now_ms;
        for (id, session) in &self.sessions {
            if now_ms.saturating_sub(session.last_active_ms) > IDLE_MAX_MS {
                expired.push(*id);
            } else {
                oldest = oldest.min(session.last_active_ms);
            }
        }
        self.oldest_active_ms = oldest;
        self.end(&expired);
        expired
    }

    fn end(&mut self, ids: &[u64]) {
        for id in ids {
            self.sessions.remove(id);
        }
        self.ended.extend_from_slice(ids);
        self.changes += ids.len() as u64;
    }

    /// Whether the rows on disk are older than the table.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.ended.is_empty()
    }

    /// The rows that changed since the last call, as (key, row); no row means the session ended. The
    /// caller writes all of them in one run.
    pub(crate) fn take_dirty_rows(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        if !self.is_dirty() {
            return Vec::new();
        }
        let mut rows: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        for id in self.dirty.drain(..) {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.dirty = false;
                rows.push((row_key(id), Some(encode(session))));
            }
        }
        for id in self.ended.drain(..) {
            rows.push((row_key(id), None));
        }
        let mut changes = vec![FORMAT];
        changes.extend_from_slice(&self.changes.to_le_bytes());
        rows.push((CHANGES_KEY.to_vec(), Some(changes)));
        rows
    }

    /// Takes over a row found in the store at a start.
    pub(crate) fn load_row(&mut self, key: &[u8], row: &[u8]) -> Result<(), DecodeError> {
        let mut reader = Reader::new(row);
        if reader.u8()? != FORMAT {
            return Err(reader.error("a session row of another format"));
        }
        if key == CHANGES_KEY {
            self.changes = reader.u64()?;
            return reader.finish();
        }
        let mut key = Reader::new(key);
        if key.u8()? != ROW_PREFIX {
            return Err(key.error("a key of the meta partition that nobody writes"));
        }
        let id = u64::from_be_bytes(key.array()?);
        key.finish()?;
        let mut session = Session {
            last_active_ms: reader.varint()?,
            lowest: reader.varint()?,
            replies: VecDeque::new(),
            dirty: false,
        };
        for _ in 0..reader.varint()? {
            let offset = reader.varint()?;
            let kind = reader.u8()?;
            let (revision, count) = (reader.varint()?, reader.varint()?);
            let reply = match kind {
                1 => Reply::Written { revision },
                2 => Reply::Deleted { revision, count },
                3 => Reply::Refused { revision },
                _ => return Err(reader.error("an unknown kind of reply")),
            };
            let at = usize::try_from(offset)
                .ok()
                .filter(|at| (*at as u64) < OUTSTANDING_MAX && *at >= session.replies.len())
                .ok_or_else(|| reader.error("a reply out of place"))?;
            session.replies.resize(at, None);
            session.replies.push_back(Some(reply));
        }
        reader.finish()?;
        self.oldest_active_ms = match self.sessions.is_empty() {
            true => session.last_active_ms,
            false => self.oldest_active_ms.min(session.last_active_ms),
        };
        self.sessions.insert(id, session);
        Ok(())
    }
}

/// The place of a sequence among a session's replies.
fn place(session: &Session, sequence: u64) -> Option<usize> {
    usize::try_from(sequence.checked_sub(session.lowest)?).ok()
}

fn row_key(id: u64) -> Vec<u8> {
    let mut key = vec![ROW_PREFIX];
    key.extend_from_slice(&id.to_be_bytes());
    key
}

fn encode(session: &Session) -> Vec<u8> {
    let known = || session.replies.iter().enumerate().filter_map(|(at, r)| Some((at, (*r)?)));
    let mut row = vec![FORMAT];
    put_varint(&mut row, session.last_active_ms);
    put_varint(&mut row, session.lowest);
    put_varint(&mut row, known().count() as u64);
    for (at, reply) in known() {
        put_varint(&mut row, at as u64);
        let (kind, revision, count) = match reply {
            Reply::Written { revision } => (1, revision, 0),
            Reply::Deleted { revision, count } => (2, revision, count),
            Reply::Refused { revision } => (3, revision, 0),
        };
        row.push(kind);
        put_varint(&mut row, revision);
        put_varint(&mut row, count);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(sequence: u64, lowest_unacknowledged: u64) -> SessionTag {
        SessionTag { session: 5, sequence, lowest_unacknowledged }
    }

    const DONE: Reply = Reply::Written { revision: 9 };

    fn table() -> SessionTable {
        let mut table = SessionTable::default();
        assert_eq!(table.register(5, 1_000), [0; 0], "nobody has to go");
        table
    }

    fn reload(table: &mut SessionTable) -> SessionTable {
        let mut loaded = SessionTable::default();
        for (key, row) in table.take_dirty_rows() {
            loaded.load_row(&key, &row.unwrap()).unwrap();
        }
        loaded
    }

    #[test]
    fn a_retry_gets_the_first_reply_until_it_is_acknowledged() {
        let mut table = table();
        for sequence in [1, 3, 2] {
            assert_eq!(
                table.check(tag(sequence, 1), 2_000),
                Verdict::New,
                "{sequence}, in any order"
            );
            table.remember(tag(sequence, 1), Reply::Written { revision: sequence });
        }
        let second = Reply::Written { revision: 2 };
        assert_eq!(table.check(tag(2, 1), 2_000), Verdict::Repeat(second), "a retry");
        assert_eq!(table.check(tag(4, 3), 2_000), Verdict::New, "acknowledges 1 and 2");
        let retry = table.check(tag(2, 1), 2_000);
        assert!(matches!(retry, Verdict::OutOfOrder(_)), "an acknowledged one: {retry:?}");
        assert_eq!(
            table.check(tag(3, 1), 2_000),
            Verdict::Repeat(Reply::Written { revision: 3 }),
            "kept"
        );
    }

    #[test]
    fn at_most_1024_writes_are_outstanding() {
        let mut table = table();
        assert_eq!(table.check(tag(1024, 1), 0), Verdict::New, "the last that fits");
        let changes = table.changes();
        assert!(matches!(table.check(tag(1025, 1), 0), Verdict::OutOfOrder(_)), "one more");
        assert_eq!(table.changes(), changes, "a refusal changes nothing");
        assert_eq!(table.check(tag(1025, 2), 0), Verdict::New, "after an acknowledgement");
        assert_eq!(table.check(tag(1 << 40, 1 << 40), 0), Verdict::New, "a jump is fine");
    }

    #[test]
    fn an_hour_of_idleness_ends_a_session_at_the_next_tick_and_not_before() {
        let mut table = table();
        table.register(6, 1_000);
        assert_eq!(table.check(tag(1, 1), 2_000), Verdict::New, "5 is used");
        assert_eq!(table.expire(1_000 + IDLE_MAX_MS), [0; 0], "not yet");
        assert_eq!(table.expire(1_001 + IDLE_MAX_MS), [6], "6 was idle for longer");
        assert_eq!(table.expire(2_000 + IDLE_MAX_MS), [0; 0], "5 not yet");
        assert_eq!(table.expire(2_001 + IDLE_MAX_MS), [5], "now 5 too");
        assert_eq!(table.check(tag(1, 1), 0), Verdict::Unknown, "never created silently");
    }

    #[test]
    fn rows_bring_the_table_back_and_only_what_changed_is_written() {
        let mut table = table();
        table.register(6, 1_500);
        for (sequence, reply) in [
            (2, DONE),
            (4, Reply::Deleted { revision: 3, count: 7 }),
            (5, Reply::Refused { revision: 3 }),
        ] {
            assert_eq!(table.check(tag(sequence, 2), 2_000), Verdict::New, "{sequence}");
            table.remember(tag(sequence, 2), reply);
        }
        let mut loaded = reload(&mut table);
        assert_eq!(loaded.changes(), table.changes(), "the count of changes");
        assert_eq!(loaded.sessions, table.sessions, "the sessions");
        assert!(!table.is_dirty() && !loaded.is_dirty(), "rows and table agree");
        assert_eq!(loaded.check(tag(4, 2), 2_000), table.check(tag(4, 2), 2_000), "the replies");
        assert_eq!(table.take_dirty_rows().len(), 2, "one session and the count");
        assert_eq!(table.expire(1_501 + IDLE_MAX_MS), [6], "one ends");
        let rows = table.take_dirty_rows();
        assert!(rows.contains(&(row_key(6), None)), "its row goes: {rows:?}");
    }

    #[test]
    fn the_longest_idle_go_when_there_are_too_many() {
        let mut table = SessionTable::default();
        for id in 1..=SESSIONS_MAX as u64 {
            assert_eq!(table.register(id, 1_000_000 - id), [0; 0], "{id} fits");
        }
        let evicted = table.register(1_000_000, 1_000_000);
        assert_eq!(evicted.len(), EVICTED, "a share at once");
        assert_eq!(evicted[EVICTED - 1], SESSIONS_MAX as u64, "the longest idle");
        assert!(evicted.is_sorted(), "by id");
        assert_eq!(table.len(), (SESSIONS_MAX - EVICTED + 1) as u64, "room again");
    }

    #[test]
    fn rows_that_make_no_sense_are_refused() {
        let mut table = table();
        let (key, row) = table.take_dirty_rows().swap_remove(0);
        let row = row.unwrap();
        let mut loaded = SessionTable::default();
        for cut in 0..row.len() {
            assert!(loaded.load_row(&key, &row[..cut]).is_err(), "cut to {cut}");
        }
        assert!(loaded.load_row(b"x", &row).is_err(), "another key");
        let mut newer = row;
        newer[0] = FORMAT + 1;
        assert!(loaded.load_row(&key, &newer).is_err(), "another format");
    }
}
