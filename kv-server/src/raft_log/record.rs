//! The payloads of the log's records. The journal frames and checksums them.
//!
//! ```text
//! writes      format u8 = 1 | flags u8 (1 ballot, 2 truncation) | [ballot] | [truncate from u64] |
//!             commit hint u64 | entries (raft_core::codec) to the end
//! head        format u8 = 1 | ballot | base position | last position | commit hint u64 |
//!             count u32 | (position of the first entry of a term)… |
//!             count u32 | (index u64 | length u32 | membership (raft_core::codec))…
//! ballot      term u64 | voted for u64 (0: nobody)
//! position    term u64 | index u64
//! ```
//!
//! Little-endian. A writes record is one durable unit of the core: it takes effect whole, in the order of
//! its fields. A unit above [`RECORD_BYTES_MAX`] is split into several records, each of them a legal
//! shorter unit. A head record begins every segment and says what all earlier records amount to.

use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes};
use raft_core::{Ballot, Entry, LogIndex, LogPos, NodeId, Term, codec};

use crate::raft_log::LogState;

/// The newest format this program knows, of both records.
pub const RECORD_FORMAT: u8 = 1;

/// Units are split so that a record's entries stay below this, except for a single larger entry.
pub(super) const RECORD_BYTES_MAX: usize = 8 << 20;

const HAS_BALLOT: u8 = 1;
const HAS_TRUNCATION: u8 = 2;

/// One durable unit, as it is read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Write {
    pub(super) ballot: Option<Ballot>,
    pub(super) truncate_from: Option<LogIndex>,
    pub(super) entries: Vec<Entry>,
    pub(super) commit_hint: LogIndex,
}

/// Why a payload cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum RecordError {
    /// A newer program wrote it.
    #[error(
        "a log record of format {found}, this program reads up to {RECORD_FORMAT}: start the newer program"
    )]
    UnknownVersion {
        /// Its format.
        found: u8,
    },
    /// The bytes make no sense.
    #[error("a malformed {field} in a log record")]
    Malformed {
        /// Where.
        field: &'static str,
    },
    /// The entries make no sense.
    #[error("malformed entries in a log record: {0}")]
    Entries(#[from] codec::DecodeError),
}

/// Replaces the content of `out` by a writes record.
pub(super) fn encode_write_into(
    ballot: Option<Ballot>,
    truncate_from: Option<LogIndex>,
    commit_hint: LogIndex,
    entries: &[Entry],
    out: &mut Vec<u8>,
) {
    out.clear();
    out.put_u8(RECORD_FORMAT);
    let mut flags = 0;
    flags |= if ballot.is_some() { HAS_BALLOT } else { 0 };
    flags |= if truncate_from.is_some() { HAS_TRUNCATION } else { 0 };
    out.put_u8(flags);
    if let Some(ballot) = ballot {
        put_ballot(ballot, out);
    }
    if let Some(from) = truncate_from {
        out.put_u64_le(from.0);
    }
    out.put_u64_le(commit_hint.0);
    codec::encode_entries_into(entries, out);
}

/// Reads a writes record; the entries' bodies share its memory.
pub(super) fn decode_write(mut input: Bytes) -> Result<Write, RecordError> {
    let input = &mut input;
    check_format(input)?;
    let flags = get_u8(input, "flags")?;
    if flags & !(HAS_BALLOT | HAS_TRUNCATION) != 0 {
        return Err(RecordError::Malformed { field: "flags" });
    }
    let ballot = match flags & HAS_BALLOT {
        0 => None,
        _ => Some(get_ballot(input)?),
    };
    let truncate_from = match flags & HAS_TRUNCATION {
        0 => None,
        _ => Some(LogIndex(get_u64(input, "truncation")?)),
    };
    let commit_hint = LogIndex(get_u64(input, "commit hint")?);
    let entries = codec::decode_entries(input.split_off(0))?;
    Ok(Write { ballot, truncate_from, entries, commit_hint })
}

/// Appends a head record to `out`.
pub(super) fn encode_head_into(state: &LogState, out: &mut Vec<u8>) {
    out.put_u8(RECORD_FORMAT);
    put_ballot(state.ballot, out);
    put_pos(state.base, out);
    put_pos(state.last, out);
    out.put_u64_le(state.commit_hint.0);
    put_len(state.terms.len(), out);
    for run in &state.terms {
        put_pos(*run, out);
    }
    put_len(state.memberships.len(), out);
    for (index, membership) in &state.memberships {
        out.put_u64_le(index.0);
        let mut bytes = Vec::new();
        codec::encode_membership_into(membership, &mut bytes);
        put_len(bytes.len(), out);
        out.put_slice(&bytes);
    }
}

/// Reads a head record.
pub(super) fn decode_head(mut input: Bytes) -> Result<LogState, RecordError> {
    let input = &mut input;
    check_format(input)?;
    let ballot = get_ballot(input)?;
    let base = get_pos(input, "base")?;
    let last = get_pos(input, "last position")?;
    let commit_hint = LogIndex(get_u64(input, "commit hint")?);
    let mut terms = Vec::new();
    for _ in 0..get_u32(input, "number of terms")? {
        terms.push(get_pos(input, "first position of a term")?);
    }
    let mut memberships = Vec::new();
    for _ in 0..get_u32(input, "number of memberships")? {
        let index = LogIndex(get_u64(input, "index of a membership")?);
        let len = get_u32(input, "length of a membership")? as usize;
        if len > input.len() {
            return Err(RecordError::Malformed { field: "membership" });
        }
        memberships.push((index, Arc::new(codec::decode_membership(input.split_to(len))?)));
    }
    if !input.is_empty() {
        return Err(RecordError::Malformed { field: "end of a head: bytes are left" });
    }
    Ok(LogState { ballot, base, terms, last, commit_hint, memberships })
}

fn check_format(input: &mut Bytes) -> Result<(), RecordError> {
    match get_u8(input, "format")? {
        RECORD_FORMAT => Ok(()),
        0 => Err(RecordError::Malformed { field: "format" }),
        found => Err(RecordError::UnknownVersion { found }),
    }
}

fn put_ballot(ballot: Ballot, out: &mut Vec<u8>) {
    out.put_u64_le(ballot.term.0);
    out.put_u64_le(ballot.voted_for.map_or(0, NodeId::get));
}

fn put_pos(pos: LogPos, out: &mut Vec<u8>) {
    out.put_u64_le(pos.term.0);
    out.put_u64_le(pos.index.0);
}

#[expect(clippy::cast_possible_truncation, reason = "checked by the assert")]
fn put_len(len: usize, out: &mut Vec<u8>) {
    assert!(len <= u32::MAX as usize, "{len} does not fit the length of a head record's list");
    out.put_u32_le(len as u32);
}

fn get_ballot(input: &mut Bytes) -> Result<Ballot, RecordError> {
    let term = Term(get_u64(input, "term of the ballot")?);
    let voted_for = NodeId::new(get_u64(input, "vote of the ballot")?);
    Ok(Ballot { term, voted_for })
}

fn get_pos(input: &mut Bytes, field: &'static str) -> Result<LogPos, RecordError> {
    let term = Term(get_u64(input, field)?);
    Ok(LogPos { term, index: LogIndex(get_u64(input, field)?) })
}

fn get_u8(input: &mut Bytes, field: &'static str) -> Result<u8, RecordError> {
    input.try_get_u8().map_err(|_short| RecordError::Malformed { field })
}

fn get_u32(input: &mut Bytes, field: &'static str) -> Result<u32, RecordError> {
    input.try_get_u32_le().map_err(|_short| RecordError::Malformed { field })
}

fn get_u64(input: &mut Bytes, field: &'static str) -> Result<u64, RecordError> {
    input.try_get_u64_le().map_err(|_short| RecordError::Malformed { field })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use raft_core::{Body, Membership, NodeInfo};

    use super::*;

    fn entry(term: u64, index: u64, body: &'static [u8]) -> Entry {
        let pos = LogPos { term: Term(term), index: LogIndex(index) };
        Entry { pos, body: Body::Command(Bytes::from_static(body)) }
    }

    fn head() -> LogState {
        let node = NodeId::new(1).unwrap();
        let membership =
            Membership::of_voters(BTreeMap::from([(node, NodeInfo::default())])).unwrap();
        LogState {
            ballot: Ballot { term: Term(3), voted_for: Some(node) },
            base: LogPos::default(),
            terms: vec![LogPos { term: Term(2), index: LogIndex(1) }],
            last: LogPos { term: Term(2), index: LogIndex(4) },
            commit_hint: LogIndex(3),
            memberships: vec![(LogIndex(0), Arc::new(membership))],
        }
    }

    #[test]
    fn the_bytes_of_a_writes_record_are_these() {
        let mut bytes = Vec::new();
        let ballot = Ballot { term: Term(3), voted_for: NodeId::new(2) };
        let entries = [entry(3, 9, b"ab")];
        encode_write_into(Some(ballot), Some(LogIndex(9)), LogIndex(8), &entries, &mut bytes);
        let mut golden = vec![1, 3];
        for number in [3_u64, 2, 9, 8, 3, 9] {
            golden.extend_from_slice(&number.to_le_bytes());
        }
        golden.extend_from_slice(&[2, 2, 0, 0, 0, b'a', b'b']);
        assert_eq!(bytes, golden, "the format changed");
        let read = decode_write(Bytes::from(bytes)).unwrap();
        let expected = Write {
            ballot: Some(ballot),
            truncate_from: Some(LogIndex(9)),
            entries: entries.to_vec(),
            commit_hint: LogIndex(8),
        };
        assert_eq!(read, expected, "nothing is lost");
    }

    #[test]
    fn a_head_record_reads_back_and_every_cut_of_it_is_refused() {
        let mut bytes = Vec::new();
        encode_head_into(&head(), &mut bytes);
        let bytes = Bytes::from(bytes);
        assert_eq!(decode_head(bytes.clone()).unwrap(), head(), "nothing is lost");
        for cut in 0..bytes.len() {
            assert!(decode_head(bytes.slice(..cut)).is_err(), "cut to {cut} bytes");
        }
    }

    #[test]
    fn the_next_format_is_refused_by_name() {
        let next = Bytes::from_static(&[RECORD_FORMAT + 1, 0, 0]);
        for error in [decode_write(next.clone()).unwrap_err(), decode_head(next).unwrap_err()] {
            assert_eq!(error, RecordError::UnknownVersion { found: 2 }, "named");
        }
    }
}
