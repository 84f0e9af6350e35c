//! The state in numbers: revision, cluster time, state hash. Kept with every published run in the
//! engine's position, so that a restart finds them together with what they describe.
//!
//! ```text
//! extra   format u8 = 1 | cluster time in ms u64 | state hash u64 | session changes u64 | sessions u64
//! ```

use lsm_store::{
    Position,
    coding::{DecodeError, Reader},
};
use raft_core::{LogIndex, LogPos, Term};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const FORMAT: u8 = 1;

/// The revision of a store nobody has written to; the first write makes the next one.
pub const FIRST_REVISION: u64 = 1;

/// The state in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State {
    /// The last entry applied.
    pub(crate) pos: LogPos,
    /// The store's revision.
    pub(crate) revision: u64,
    /// Milliseconds of cluster time (DESIGN 10.4); never falls.
    pub(crate) cluster_time_ms: u64,
    /// Chained over every command and what it changed. Equal on all nodes at equal positions.
    pub(crate) hash: u64,
    /// How often the session table changed. Rows of sessions carry it too: see `session`.
    pub(crate) session_changes: u64,
    /// Open sessions.
    pub(crate) sessions: u64,
}

/// What a command changed, as it enters the state hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Change {
    /// Which outcome; never renumbered.
    pub(crate) outcome: u64,
    pub(crate) revision: u64,
    pub(crate) count: u64,
    pub(crate) create_revision: u64,
    pub(crate) version: u64,
    /// A hash over keys or sessions that the command's own bytes do not name.
    pub(crate) others: u64,
}

impl State {
    /// The state a store was opened with.
    pub(crate) fn load(position: &Position, data_sequence: u64) -> Result<Self, DecodeError> {
        let mut state = Self {
            pos: LogPos { term: Term(position.term), index: LogIndex(position.index) },
            revision: data_sequence.max(FIRST_REVISION),
            cluster_time_ms: 0,
            hash: 0,
            session_changes: 0,
            sessions: 0,
        };
        if position.index == 0 && position.extra.is_empty() {
            return Ok(state);
        }
        let mut reader = Reader::new(&position.extra);
        if reader.u8()? != FORMAT {
            return Err(reader.error("a position of another format"));
        }
        state.cluster_time_ms = reader.u64()?;
        state.hash = reader.u64()?;
        state.session_changes = reader.u64()?;
        state.sessions = reader.u64()?;
        reader.finish()?;
        Ok(state)
    }

    /// What a position carries beside index and term.
    pub(crate) fn extra(&self) -> Vec<u8> {
        let mut extra = Vec::with_capacity(33);
        extra.push(FORMAT);
        for number in [self.cluster_time_ms, self.hash, self.session_changes, self.sessions] {
            extra.extend_from_slice(&number.to_le_bytes());
        }
        extra
    }

    /// Chains one command and what it changed into the hash.
    pub(crate) fn fold(&mut self, index: LogIndex, body: &[u8], change: &Change) {
        let Change { outcome, revision, count, create_revision, version, others } = *change;
        let body_hash = xxh3_64_with_seed(body, self.hash);
        let mut bytes = [0; 64];
        for (slot, number) in bytes.chunks_exact_mut(8).zip([
            body_hash,
            index.0,
            outcome,
            revision,
            count,
            create_revision,
            version,
            others,
        ]) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        self.hash = xxh3_64(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_survive_the_position() {
        let state = State {
            pos: LogPos { term: Term(3), index: LogIndex(9) },
            revision: 7,
            cluster_time_ms: 11,
            hash: 13,
            session_changes: 17,
            sessions: 19,
        };
        let position = Position { index: 9, term: 3, extra: state.extra() };
        assert_eq!(State::load(&position, 7).unwrap(), state, "nothing is lost");
        let newer = Position { extra: vec![2; 33], ..position };
        assert!(State::load(&newer, 7).is_err(), "another format is refused");
    }

    #[test]
    fn every_part_of_a_change_enters_the_hash() {
        let fresh = State::load(&Position::default(), 0).unwrap();
        let hash = |index: u64, body: &[u8], change: Change| {
            let mut state = fresh;
            state.fold(LogIndex(index), body, &change);
            state.hash
        };
        let base = Change::default();
        let mut seen = vec![hash(1, b"a", base), hash(2, b"a", base), hash(1, b"b", base)];
        for change in [
            Change { outcome: 1, ..base },
            Change { revision: 1, ..base },
            Change { count: 1, ..base },
            Change { create_revision: 1, ..base },
            Change { version: 1, ..base },
            Change { others: 1, ..base },
        ] {
            seen.push(hash(1, b"a", change));
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 9, "two different changes have the same hash");
    }
}
