//! What the engine holds under a key of the `data` partition: a small header, then the value.
//!
//! ```text
//! row   format u8 = 1 | create revision varint | version varint | lease varint | ordinal varint | value
//! ```
//!
//! The `mod_revision` is not in it: it is the engine's own sequence number. A removed key is a tombstone
//! of the engine. The ordinal is the place of the operation among those of its revision, from 0.

use bytes::Bytes;
use lsm_store::coding::{DecodeError, Reader, put_varint};
use raft_rpc::KeyValue;

/// The only format so far; another number is damage or a newer program's work.
const FORMAT: u8 = 1;

/// The header of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RowHeader {
    pub(crate) create_revision: u64,
    pub(crate) version: u64,
    pub(crate) lease: u64,
    pub(crate) ordinal: u64,
}

/// A live key's row with the revision that wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(crate) header: RowHeader,
    pub(crate) mod_revision: u64,
    pub(crate) value: Bytes,
}

impl RowHeader {
    /// Replaces the content of `out` by the row of this header and `value`.
    pub(crate) fn encode_with(&self, value: &[u8], out: &mut Vec<u8>) {
        out.clear();
        out.push(FORMAT);
        for number in [self.create_revision, self.version, self.lease, self.ordinal] {
            put_varint(out, number);
        }
        out.extend_from_slice(value);
    }

    /// Reads a header; the value begins at the returned offset.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, usize), DecodeError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != FORMAT {
            return Err(reader.error("a row of another format"));
        }
        let header = Self {
            create_revision: reader.varint()?,
            version: reader.varint()?,
            lease: reader.varint()?,
            ordinal: reader.varint()?,
        };
        Ok((header, reader.position()))
    }
}

impl Row {
    /// Reads a row; the value shares the memory of `bytes`.
    pub(crate) fn decode(bytes: &Bytes, mod_revision: u64) -> Result<Self, DecodeError> {
        let (header, at) = RowHeader::decode(bytes)?;
        Ok(Self { header, mod_revision, value: bytes.slice(at..) })
    }

    /// The row as clients see it.
    pub(crate) fn key_value(&self, key: Bytes) -> KeyValue {
        KeyValue {
            key,
            value: self.value.clone(),
            create_revision: self.header.create_revision,
            mod_revision: self.mod_revision,
            version: self.header.version,
            lease: self.header.lease,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_these_bytes_and_reads_back() {
        let header = RowHeader { create_revision: 300, version: 2, lease: 0, ordinal: 1 };
        let mut bytes = Vec::new();
        header.encode_with(b"v", &mut bytes);
        assert_eq!(bytes, [1, 0xac, 2, 2, 0, 1, b'v'], "format, 300, 2, 0, 1, value");
        let row = Row::decode(&Bytes::from(bytes), 301).unwrap();
        assert_eq!(row, Row { header, mod_revision: 301, value: Bytes::from_static(b"v") });
    }

    #[test]
    fn a_row_of_another_format_or_a_cut_one_is_refused() {
        for bytes in [&[2_u8, 1, 1, 0, 0][..], &[1, 1, 1], &[]] {
            assert!(RowHeader::decode(bytes).is_err(), "{bytes:?} was taken for a row");
        }
    }
}
