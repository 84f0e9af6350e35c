//! Commands: what the log carries for the state machine, written by hand (DESIGN 10.6).
//!
//! A command is encoded once, by the server node that got the request from the client; forwarding, the
//! log of every node and apply see the same bytes. The leader stamps it with cluster time and logs both
//! as one entry; term, index and length are in the entry's own header (`raft_core::codec`).
//!
//! ```text
//! entry body    cluster time in ms u64 | command
//! command       version u8 = 1 | kind u8 | session u64 | sequence u64 | lowest unacknowledged u64 | body
//! kind          1 register session   2 put   3 delete   4 delete range   5 tick
//! put           condition | key | value
//! delete        condition | key
//! delete range  start | has end u8 (0, 1) | [end]
//! condition     form u8: 0 always   1 absent   2 value: bytes   3 revision: u64
//! key, value, start, end, bytes    length u32 | that many bytes
//! ```
//!
//! Little-endian; nothing may follow the last field. Without a session all three numbers are 0. The
//! numbers of versions, kinds and forms never change their meaning. A node that meets a version it does
//! not know while applying stops: going on would make it differ from the others.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use raft_rpc::{Condition, KeyRange, SessionTag, WriteOperation, WriteRequest};

use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// The version of commands this program writes, and the newest it applies.
pub const COMMAND_VERSION: u8 = 1;

/// Bytes of the stamp before a command in an entry's body.
pub const STAMP_BYTES: usize = 8;

const HEADER_BYTES: usize = 1 + 1 + 8 + 8 + 8;

const KIND_REGISTER: u8 = 1;
const KIND_PUT: u8 = 2;
const KIND_DELETE: u8 = 3;
const KIND_DELETE_RANGE: u8 = 4;
const KIND_TICK: u8 = 5;

const ALWAYS: u8 = 0;
const ABSENT: u8 = 1;
const VALUE: u8 = 2;
const REVISION: u8 = 3;

/// A command, its bytes shared with the entry it came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// Which write of which session it is.
    pub tag: Option<SessionTag>,
    /// What to do.
    pub operation: Operation,
}

/// What a command does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Opens a session; its id is the entry's log index.
    RegisterSession,
    /// Stores a value.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// Only if this holds.
        condition: Condition,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: Bytes,
        /// Only if this holds.
        condition: Condition,
    },
    /// Removes every key of a range.
    DeleteRange {
        /// Which keys.
        range: KeyRange,
    },
    /// Nothing but the passing of cluster time: sessions that were idle for too long end.
    Tick,
}

/// Bytes that are no command.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// Written by a newer program.
    #[error(
        "a command of version {found}, this program applies up to {supported}: start the newer program"
    )]
    UnknownVersion {
        /// Its version.
        found: u8,
        /// The newest this program applies.
        supported: u8,
    },
    /// The bytes end inside a field, or a number stands where it has no meaning.
    #[error("a command with a malformed {field}")]
    Malformed {
        /// Which field.
        field: &'static str,
    },
}

/// A request in the state machine's encoding, for a [`Proposal`](crate::replica::Proposal).
///
/// Limits are checked before ([`Limits::check_write`](crate::limits::Limits::check_write)); whether the
/// previous value is wanted is not part of it.
#[must_use]
pub fn encode(request: &WriteRequest) -> Bytes {
    match &request.operation {
        WriteOperation::RegisterSession => header(KIND_REGISTER, request.tag, 0).freeze(),
        WriteOperation::Put { key, value, condition, .. } => {
            let size = condition_len(condition) + 8 + key.len() + value.len();
            let mut out = header(KIND_PUT, request.tag, size);
            put_condition(&mut out, condition);
            put_bytes(&mut out, key);
            put_bytes(&mut out, value);
            out.freeze()
        }
        WriteOperation::Delete { key, condition, .. } => {
            let size = condition_len(condition) + 4 + key.len();
            let mut out = header(KIND_DELETE, request.tag, size);
            put_condition(&mut out, condition);
            put_bytes(&mut out, key);
            out.freeze()
        }
        WriteOperation::DeleteRange { range } => {
            let size = 9 + range.start.len() + range.end.as_ref().map_or(0, Bytes::len);
            let mut out = header(KIND_DELETE_RANGE, request.tag, size);
            put_bytes(&mut out, &range.start);
            match &range.end {
                Some(end) => {
                    out.put_u8(1);
                    put_bytes(&mut out, end);
                }
                None => out.put_u8(0),
            }
            out.freeze()
        }
    }
}

/// Whether a request wants the previous value in its answer.
#[must_use]
pub const fn returns_previous(request: &WriteRequest) -> bool {
    match &request.operation {
        WriteOperation::Put { return_previous, .. }
        | WriteOperation::Delete { return_previous, .. } => *return_previous,
        WriteOperation::RegisterSession | WriteOperation::DeleteRange { .. } => false,
    }
}

/// The command that lets cluster time pass.
#[must_use]
pub fn tick() -> Bytes {
    header(KIND_TICK, None, 0).freeze()
}

/// Appends the body of an entry to `out`: the stamp and the command.
pub(crate) fn stamp_into(cluster_time_ms: u64, command: &[u8], out: &mut BytesMut) {
    out.put_u64_le(cluster_time_ms);
    out.put_slice(command);
}

/// The stamp of an entry's body, if it is long enough to have one.
#[must_use]
pub fn stamp_of(body: &[u8]) -> Option<u64> {
    body.first_chunk().map(|stamp| u64::from_le_bytes(*stamp))
}

/// Whether an entry's body is a [`tick`].
pub(crate) fn is_tick(body: &[u8]) -> bool {
    body.get(STAMP_BYTES + 1) == Some(&KIND_TICK)
}

/// Reads an entry's body: the stamp and the command.
///
/// # Errors
/// [`CommandError`]: what is wrong with the bytes.
pub fn decode_stamped(mut body: Bytes) -> Result<(u64, Command), CommandError> {
    let stamp = get_u64(&mut body, "cluster time")?;
    Ok((stamp, decode(body)?))
}

/// Checks that every node can apply a command: before it is logged, whoever encoded it. A command that
/// the state machine or the engine refuses would stop all nodes.
///
/// # Errors
/// [`CommandError`]: what is wrong with the bytes, or which field is beyond the limits of the data model
/// (not those of a node's settings).
pub fn validate(bytes: Bytes) -> Result<(), CommandError> {
    let check_key = |key: &Bytes| match key.len() {
        1..=KEY_BYTES_MAX => Ok(()),
        _ => Err(CommandError::Malformed { field: "key: 1 to 4,096 bytes" }),
    };
    let check_value = |value: &Bytes| match value.len() {
        0..=VALUE_BYTES_MAX => Ok(()),
        _ => Err(CommandError::Malformed { field: "value: at most 16 MiB" }),
    };
    match decode(bytes)?.operation {
        Operation::RegisterSession | Operation::Tick | Operation::DeleteRange { .. } => Ok(()),
        Operation::Put { key, value, condition: _ } => {
            check_key(&key)?;
            check_value(&value)
        }
        Operation::Delete { key, condition: _ } => check_key(&key),
    }
}

/// Reads a command.
///
/// # Errors
/// [`CommandError`]: what is wrong with the bytes.
pub fn decode(mut bytes: Bytes) -> Result<Command, CommandError> {
    let input = &mut bytes;
    let version = get_u8(input, "version")?;
    if version > COMMAND_VERSION {
        return Err(CommandError::UnknownVersion { found: version, supported: COMMAND_VERSION });
    }
    if version == 0 {
        return Err(CommandError::Malformed { field: "version" });
    }
    let kind = get_u8(input, "kind")?;
    let session = get_u64(input, "session")?;
    let sequence = get_u64(input, "sequence")?;
    let lowest_unacknowledged = get_u64(input, "lowest unacknowledged sequence")?;
    let tag = match (session, sequence, lowest_unacknowledged) {
        (0, 0, 0) => None,
        (0, _, _) | (_, 0, _) => return Err(CommandError::Malformed { field: "session tag" }),
        _ => Some(SessionTag { session, sequence, lowest_unacknowledged }),
    };
    let operation = match kind {
        KIND_REGISTER if tag.is_none() => Operation::RegisterSession,
        KIND_TICK if tag.is_none() => Operation::Tick,
        KIND_REGISTER | KIND_TICK => return Err(CommandError::Malformed { field: "session tag" }),
        KIND_PUT => {
            let condition = get_condition(input)?;
            let key = get_bytes(input, "key")?;
            let value = get_bytes(input, "value")?;
            Operation::Put { key, value, condition }
        }
        KIND_DELETE => {
            let condition = get_condition(input)?;
            Operation::Delete { key: get_bytes(input, "key")?, condition }
        }
        KIND_DELETE_RANGE => {
            let start = get_bytes(input, "start of a range")?;
            let end = match get_u8(input, "mark of a range's end")? {
                0 => None,
                1 => Some(get_bytes(input, "end of a range")?),
                _ => return Err(CommandError::Malformed { field: "mark of a range's end" }),
            };
            Operation::DeleteRange { range: KeyRange { start, end } }
        }
        _ => return Err(CommandError::Malformed { field: "kind" }),
    };
    if !input.is_empty() {
        return Err(CommandError::Malformed { field: "end: bytes are left" });
    }
    Ok(Command { tag, operation })
}

fn header(kind: u8, tag: Option<SessionTag>, body_len: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + body_len);
    out.put_u8(COMMAND_VERSION);
    out.put_u8(kind);
    match tag {
        Some(tag) => {
            out.put_u64_le(tag.session);
            out.put_u64_le(tag.sequence);
            out.put_u64_le(tag.lowest_unacknowledged);
        }
        None => out.put_bytes(0, 24),
    }
    out
}

fn condition_len(condition: &Condition) -> usize {
    1 + match condition {
        Condition::Always | Condition::Absent => 0,
        Condition::Value(value) => 4 + value.len(),
        Condition::Revision(_) => 8,
    }
}

fn put_condition(out: &mut BytesMut, condition: &Condition) {
    match condition {
        Condition::Always => out.put_u8(ALWAYS),
        Condition::Absent => out.put_u8(ABSENT),
        Condition::Value(value) => {
            out.put_u8(VALUE);
            put_bytes(out, value);
        }
        Condition::Revision(revision) => {
            out.put_u8(REVISION);
            out.put_u64_le(*revision);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "checked by the assert")]
fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    assert!(bytes.len() <= u32::MAX as usize, "a field of {} bytes passed the limits", bytes.len());
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

fn get_condition(input: &mut Bytes) -> Result<Condition, CommandError> {
    match get_u8(input, "condition")? {
        ALWAYS => Ok(Condition::Always),
        ABSENT => Ok(Condition::Absent),
        VALUE => Ok(Condition::Value(get_bytes(input, "value of a condition")?)),
        REVISION => Ok(Condition::Revision(get_u64(input, "revision of a condition")?)),
        _ => Err(CommandError::Malformed { field: "condition" }),
    }
}

fn get_u8(input: &mut Bytes, field: &'static str) -> Result<u8, CommandError> {
    input.try_get_u8().map_err(|_short| CommandError::Malformed { field })
}

fn get_u64(input: &mut Bytes, field: &'static str) -> Result<u64, CommandError> {
    input.try_get_u64_le().map_err(|_short| CommandError::Malformed { field })
}

fn get_bytes(input: &mut Bytes, field: &'static str) -> Result<Bytes, CommandError> {
    let len = input.try_get_u32_le().map_err(|_short| CommandError::Malformed { field })? as usize;
    if len > input.len() {
        return Err(CommandError::Malformed { field });
    }
    Ok(input.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged(operation: WriteOperation) -> WriteRequest {
        let tag = SessionTag { session: 0x0102, sequence: 7, lowest_unacknowledged: 5 };
        WriteRequest { tag: Some(tag), operation }
    }

    fn put(condition: Condition) -> WriteRequest {
        tagged(WriteOperation::Put {
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(b"val"),
            condition,
            return_previous: true,
        })
    }

    const HEADER: [u8; 24] =
        [2, 1, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0];

    fn golden(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[1, kind], &HEADER[..], body].concat()
    }

    #[test]
    fn the_bytes_of_every_command_are_these() {
        let key = b"\x03\0\0\0key";
        let value = b"\x03\0\0\0val";
        let delete = |condition| {
            let key = Bytes::from_static(b"key");
            tagged(WriteOperation::Delete { key, condition, return_previous: false })
        };
        let range = |end: Option<&'static [u8]>| {
            let (start, end) = (Bytes::from_static(b"a"), end.map(Bytes::from_static));
            tagged(WriteOperation::DeleteRange { range: KeyRange { start, end } })
        };
        let register = WriteRequest { tag: None, operation: WriteOperation::RegisterSession };
        let no_tag = |kind: u8| [&[1, kind][..], &[0; 24]].concat();
        let revision = [&[3, 9, 0, 0, 0, 0, 0, 0, 0][..], key, value].concat();
        let cases = [
            (encode(&register), no_tag(1)),
            (encode(&put(Condition::Always)), golden(2, &[&[0], &key[..], value].concat())),
            (encode(&put(Condition::Absent)), golden(2, &[&[1], &key[..], value].concat())),
            (
                encode(&put(Condition::Value(Bytes::from_static(b"val")))),
                golden(2, &[&[2], &value[..], key, value].concat()),
            ),
            (encode(&put(Condition::Revision(9))), golden(2, &revision)),
            (encode(&delete(Condition::Absent)), golden(3, &[&[1], &key[..]].concat())),
            (encode(&range(None)), golden(4, b"\x01\0\0\0a\0")),
            (encode(&range(Some(b"b"))), golden(4, b"\x01\0\0\0a\x01\x01\0\0\0b")),
            (tick(), no_tag(5)),
        ];
        for (command, expected) in cases {
            assert_eq!(command, expected, "the bytes of a command changed");
            assert!(decode(command.clone()).is_ok(), "{command:?} does not read back");
            for cut in 0..command.len() {
                assert!(
                    decode(command.slice(..cut)).is_err(),
                    "{command:?} cut to {cut} bytes was taken for a command"
                );
            }
            let longer = [&command[..], &[0]].concat();
            assert!(decode(Bytes::from(longer)).is_err(), "a byte behind {command:?} was ignored");
        }
    }

    #[test]
    fn a_stamped_command_reads_back() {
        let command = encode(&put(Condition::Absent));
        let mut body = BytesMut::new();
        stamp_into(1234, &command, &mut body);
        let body = body.freeze();
        assert_eq!(body[..8], 1234_u64.to_le_bytes(), "the stamp stands first");
        assert_eq!(stamp_of(&body), Some(1234), "the stamp can be read alone");
        let (stamp, read) = decode_stamped(body).unwrap();
        assert_eq!((stamp, read), (1234, decode(command).unwrap()), "nothing is lost");
    }

    #[test]
    fn what_the_engine_would_refuse_is_refused_before_it_is_logged() {
        let put = |key: usize, value: usize| {
            let operation = WriteOperation::Put {
                key: Bytes::from(vec![0; key]),
                value: Bytes::from(vec![0; value]),
                condition: Condition::Always,
                return_previous: false,
            };
            validate(encode(&WriteRequest { tag: None, operation }))
        };
        assert_eq!(put(KEY_BYTES_MAX, VALUE_BYTES_MAX), Ok(()), "the largest");
        assert!(put(0, 0).is_err(), "an empty key");
        assert!(put(KEY_BYTES_MAX + 1, 0).is_err(), "a key too long");
        assert!(put(1, VALUE_BYTES_MAX + 1).is_err(), "a value too long");
    }

    #[test]
    fn the_next_version_is_refused_by_name() {
        let mut bytes = encode(&put(Condition::Always)).to_vec();
        bytes[0] = COMMAND_VERSION + 1;
        let error = decode(Bytes::from(bytes)).unwrap_err();
        assert_eq!(error, CommandError::UnknownVersion { found: 2, supported: 1 }, "named");
        assert!(error.to_string().contains("newer program"), "says what to do: {error}");
    }
}
