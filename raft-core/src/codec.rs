//! The bytes of entries, the same on disk and on the wire.
//!
//! Little-endian, fixed widths, no padding. Versions are carried by what holds the bytes: the
//! journal's segment header and the handshake.
//!
//! ```text
//! entry       term u64 | index u64 | kind u8 | length u32 | body
//! kind        1 no-op (empty body)   2 command (opaque)   3 membership
//! membership  highest id u64 | form u8 (1 uniform, 2 joint) | set (twice if joint) |
//!             learners set | demote-on-leave set | count u32 | node…
//! set         count u32 | id u64…            rising
//! node        id u64 | peer address | client address | has storage id u8 | [storage id u128]
//! address     length u32 | UTF-8
//! ```
//!
//! Decoding never allocates from a length before the bytes are there, and shares the body's bytes
//! with the input.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    sync::Arc,
    vec::Vec,
};

use bytes::{Buf as _, BufMut as _, Bytes};

use crate::{
    Body, Entry, LogIndex, LogPos, Membership, MembershipError, NodeId, NodeInfo, Term, Voters,
};

/// Bytes of an entry before its body.
pub const ENTRY_HEADER_BYTES: usize = 8 + 8 + 1 + 4;

const KIND_NOOP: u8 = 1;
const KIND_COMMAND: u8 = 2;
const KIND_CONFIG: u8 = 3;
const FORM_UNIFORM: u8 = 1;
const FORM_JOINT: u8 = 2;

/// Bytes that are no entry, or no membership.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The input ends inside a field.
    #[error("the input ends inside {field}")]
    Truncated {
        /// Which.
        field: &'static str,
    },
    /// A number stands where it has no meaning.
    #[error("{field} is {value}, which means nothing here")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// The number.
        value: u64,
    },
    /// Bytes are left after the last field.
    #[error("{count} bytes are left after the last field")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// An address is not UTF-8.
    #[error("an address is not UTF-8")]
    NotUtf8,
    /// The membership is none.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// Appends the bytes of `entries` to `out`.
pub fn encode_entries_into(entries: &[Entry], out: &mut Vec<u8>) {
    for entry in entries {
        out.put_u64_le(entry.pos.term.0);
        out.put_u64_le(entry.pos.index.0);
        match &entry.body {
            Body::Noop => {
                out.put_u8(KIND_NOOP);
                out.put_u32_le(0);
            }
            Body::Command(command) => {
                out.put_u8(KIND_COMMAND);
                out.put_u32_le(length(command.len()));
                out.put_slice(command);
            }
            Body::Config(membership) => {
                out.put_u8(KIND_CONFIG);
                let at = out.len();
                out.put_u32_le(0);
                encode_membership_into(membership, out);
                let body_length = length(out.len() - at - 4);
                out[at..at + 4].copy_from_slice(&body_length.to_le_bytes());
            }
        }
    }
}

/// The bytes of `entries`.
#[must_use]
pub fn encode_entries(entries: &[Entry]) -> Vec<u8> {
    let size = entries.iter().map(encoded_len).sum();
    let mut out = Vec::with_capacity(size);
    encode_entries_into(entries, &mut out);
    out
}

/// The bytes `entry` takes; for a membership, a lower bound.
#[must_use]
pub fn encoded_len(entry: &Entry) -> usize {
    ENTRY_HEADER_BYTES
        + match &entry.body {
            Body::Noop | Body::Config(_) => 0,
            Body::Command(command) => command.len(),
        }
}

/// Reads entries until the end of `input`. Bodies share `input`'s memory.
///
/// # Errors
/// The first thing that is wrong; nothing is returned of what came before it.
pub fn decode_entries(mut input: Bytes) -> Result<Vec<Entry>, DecodeError> {
    let mut entries = Vec::new();
    while !input.is_empty() {
        let term = Term(get_u64(&mut input, "a term")?);
        let index = LogIndex(get_u64(&mut input, "an index")?);
        let kind = get_u8(&mut input, "an entry's kind")?;
        let body = take(&mut input, "an entry's body")?;
        let body = match kind {
            KIND_NOOP if body.is_empty() => Body::Noop,
            KIND_NOOP => return Err(DecodeError::Trailing { count: body.len() }),
            KIND_COMMAND => Body::Command(body),
            KIND_CONFIG => Body::Config(Arc::new(decode_membership(body)?)),
            other => {
                return Err(DecodeError::Unknown { field: "an entry's kind", value: other.into() });
            }
        };
        entries.push(Entry { pos: LogPos { term, index }, body });
    }
    Ok(entries)
}

/// Appends the bytes of `membership` to `out`.
pub fn encode_membership_into(membership: &Membership, out: &mut Vec<u8>) {
    out.put_u64_le(membership.highest_id().get());
    match membership.voters() {
        Voters::Uniform(voters) => {
            out.put_u8(FORM_UNIFORM);
            put_set(voters, out);
        }
        Voters::Joint { old, new } => {
            out.put_u8(FORM_JOINT);
            put_set(old, out);
            put_set(new, out);
        }
    }
    put_set(membership.learners(), out);
    put_set(membership.demote_on_leave(), out);
    out.put_u32_le(length(membership.nodes().len()));
    for (id, node) in membership.nodes() {
        out.put_u64_le(id.get());
        for address in [&node.peer_addr, &node.client_addr] {
            out.put_u32_le(length(address.len()));
            out.put_slice(address.as_bytes());
        }
        match node.storage_id {
            Some(storage_id) => {
                out.put_u8(1);
                out.put_u128_le(storage_id);
            }
            None => out.put_u8(0),
        }
    }
}

/// Reads a membership that fills all of `input`, through the checked constructor.
///
/// # Errors
/// What is wrong with the bytes, or with the membership they describe.
pub fn decode_membership(mut input: Bytes) -> Result<Membership, DecodeError> {
    let input = &mut input;
    let highest_id = get_id(input, "the highest id")?;
    let voters = match get_u8(input, "the form of the voters")? {
        FORM_UNIFORM => Voters::Uniform(get_set(input)?),
        FORM_JOINT => Voters::Joint { old: get_set(input)?, new: get_set(input)? },
        other => {
            return Err(DecodeError::Unknown {
                field: "the form of the voters",
                value: other.into(),
            });
        }
    };
    let learners = get_set(input)?;
    let demote_on_leave = get_set(input)?;
    let mut nodes = BTreeMap::new();
    for _ in 0..get_u32(input, "the number of nodes")? {
        let id = get_id(input, "a node's id")?;
        let peer_addr = get_address(input)?;
        let client_addr = get_address(input)?;
        let storage_id = match get_u8(input, "the mark of a storage id")? {
            0 => None,
            1 => Some(
                input
                    .try_get_u128_le()
                    .map_err(|_short| DecodeError::Truncated { field: "a storage id" })?,
            ),
            other => {
                return Err(DecodeError::Unknown {
                    field: "the mark of a storage id",
                    value: other.into(),
                });
            }
        };
        nodes.insert(id, NodeInfo { peer_addr, client_addr, storage_id });
    }
    if !input.is_empty() {
        return Err(DecodeError::Trailing { count: input.len() });
    }
    Ok(Membership::from_parts(voters, learners, demote_on_leave, nodes, highest_id)?)
}

/// Lengths fit: a body is at most the largest request, far below 4 GiB, and a membership is small.
#[expect(clippy::cast_possible_truncation, reason = "checked by the assert")]
fn length(len: usize) -> u32 {
    assert!(len <= u32::MAX as usize, "a field of {len} bytes does not fit its length");
    len as u32
}

fn put_set(set: &BTreeSet<NodeId>, out: &mut Vec<u8>) {
    out.put_u32_le(length(set.len()));
    for id in set {
        out.put_u64_le(id.get());
    }
}

fn get_set(input: &mut Bytes) -> Result<BTreeSet<NodeId>, DecodeError> {
    let count = get_u32(input, "the size of a set")?;
    (0..count).map(|_| get_id(input, "an id in a set")).collect()
}

fn get_u8(input: &mut Bytes, field: &'static str) -> Result<u8, DecodeError> {
    input.try_get_u8().map_err(|_short| DecodeError::Truncated { field })
}

fn get_u32(input: &mut Bytes, field: &'static str) -> Result<u32, DecodeError> {
    input.try_get_u32_le().map_err(|_short| DecodeError::Truncated { field })
}

fn get_u64(input: &mut Bytes, field: &'static str) -> Result<u64, DecodeError> {
    input.try_get_u64_le().map_err(|_short| DecodeError::Truncated { field })
}

fn get_id(input: &mut Bytes, field: &'static str) -> Result<NodeId, DecodeError> {
    NodeId::new(get_u64(input, field)?).ok_or(DecodeError::Unknown { field, value: 0 })
}

/// A length and that many bytes, shared with the input.
fn take(input: &mut Bytes, field: &'static str) -> Result<Bytes, DecodeError> {
    let len = get_u32(input, field)? as usize;
    if len > input.len() {
        return Err(DecodeError::Truncated { field });
    }
    Ok(input.split_to(len))
}

fn get_address(input: &mut Bytes) -> Result<String, DecodeError> {
    let bytes = take(input, "an address")?;
    core::str::from_utf8(&bytes).map(String::from).map_err(|_not| DecodeError::NotUtf8)
}

/// How serde-based formats carry entries: as one byte string, in this module's encoding.
pub(crate) mod serde_entries {
    use alloc::{sync::Arc, vec::Vec};
    use core::fmt;

    use bytes::Bytes;
    use serde::{Deserializer, Serializer, de};

    use crate::Entry;

    pub(crate) fn serialize<S: Serializer>(
        entries: &Arc<[Entry]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&super::encode_entries(entries))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<[Entry]>, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Arc<[Entry]>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("encoded log entries")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                self.visit_byte_buf(bytes.to_vec())
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Self::Value, E> {
                super::decode_entries(Bytes::from(bytes)).map(Into::into).map_err(E::custom)
            }
        }

        deserializer.deserialize_byte_buf(Visitor)
    }
}
