//! The header of a segment: who it belongs to and what its predecessor held when it was sealed.
//!
//! Two identical copies of 128 bytes stand at offsets 0 and 128; records begin at 256.
//!
//! ```text
//!  0  8  magic "LSMWAL\0\1"
//!  8  4  format version                       12  4  offset of the first record (256)
//! 16 16  store id
//! 32  8  segment number                       40  8  epoch, never 0
//! 48  8  predecessor's number, 0 if none
//! 56  8  predecessor's end: its records fill exactly the bytes up to here
//! 64  8  checksum of the predecessor's last record, 0 if it has none
//! 72  8  sequence number of the record for which the segment was begun
//! 80  8  published end: bytes up to here were synced before the segment got its name
//! 88  8  published length: the file was this long, durably, before it got its name
//! 96  4  flags: bit 0, the segment holds copies made by recovery and no head record; bit 1, it was prepared
//!        before its predecessor ended: 56, 64 and 72 are 0, and its first record says how that was
//! 100 20 zero
//! 120 8  H(bytes 0..120) + bind(fold64(store id), segment number)
//! ```

#![deny(clippy::indexing_slicing)]

use std::path::Path;

use crate::checksum::{bound_hash, fold64};
use crate::coding::{DecodeError, Reader};
use crate::error::{Error, Result};

/// Bytes of one copy.
pub const COPY_BYTES: usize = 128;

/// Bytes before the first record.
pub const SEGMENT_HEADER_BYTES: u64 = 256;

/// The version written and read here.
pub const FORMAT_VERSION: u32 = 1;

/// The first bytes of a segment.
pub const MAGIC: [u8; 8] = *b"LSMWAL\0\x01";

const FLAG_COPIES: u32 = 1;
const FLAG_PREPARED: u32 = 2;
const RESERVED_BYTES: usize = 20;

/// How a segment was ended: everything up to `end` is synced and whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seal {
    /// The segment's number; 0 if there is none.
    pub segment: u64,
    /// The end of its last record.
    pub end: u64,
    /// The checksum of its last record; 0 if it has none.
    pub last_checksum: u64,
}

/// What a segment's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose segment it is.
    pub store_id: u128,
    /// Its number: above its predecessor's.
    pub number: u64,
    /// Drawn afresh for every segment created; binds the records to it.
    pub epoch: u64,
    /// How the segment before it ended.
    pub predecessor: Seal,
    /// The sequence number of the record for which it was begun.
    pub first_sequence: u64,
    /// Bytes up to here were synced before it got its name.
    pub published_end: u64,
    /// The length of its file when it got its name: the file is never shorter.
    pub published_len: u64,
    /// Whether it holds copies made by recovery, and no head record.
    pub copies: bool,
    /// Whether it was made before its predecessor ended, and begins with a joint
    /// ([`kind::JOINT`](super::record::kind::JOINT)).
    pub prepared: bool,
}

impl SegmentHeader {
    /// Both copies.
    pub fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(2 * COPY_BYTES);
        copy.extend_from_slice(&MAGIC);
        copy.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        copy.extend_from_slice(&256_u32.to_le_bytes());
        copy.extend_from_slice(&self.store_id.to_le_bytes());
        for field in [
            self.number,
            self.epoch,
            self.predecessor.segment,
            self.predecessor.end,
            self.predecessor.last_checksum,
            self.first_sequence,
            self.published_end,
            self.published_len,
        ] {
            copy.extend_from_slice(&field.to_le_bytes());
        }
        let copies = if self.copies { FLAG_COPIES } else { 0 };
        let prepared = if self.prepared { FLAG_PREPARED } else { 0 };
        copy.extend_from_slice(&(copies | prepared).to_le_bytes());
        copy.extend_from_slice(&[0; RESERVED_BYTES]);
        let sum = bound_hash(&copy, fold64(self.store_id), self.number);
        copy.extend_from_slice(&sum.to_le_bytes());
        copy.extend_from_within(..);
        copy
    }

    /// Reads the header from the first bytes of `file`, from whichever copy is whole.
    ///
    /// # Errors
    /// `Corruption` if neither is, or if they differ; `UnknownVersion`; `WrongStore`.
    pub fn decode(file: &Path, bytes: &[u8], store_id: u128, number: u64) -> Result<Self> {
        let header = Self::read(file, bytes)?;
        if header.store_id != store_id {
            return Err(Error::WrongStore {
                file: file.to_path_buf(),
                expected: store_id,
                found: header.store_id,
            });
        }
        if header.number != number {
            let detail =
                format!("the file is named segment {number} but is segment {}", header.number);
            return Err(Error::corruption(file, 32, detail));
        }
        Ok(header)
    }

    /// Reads the header, whosever it is, from whichever copy is whole.
    pub(crate) fn read(file: &Path, bytes: &[u8]) -> Result<Self> {
        let copies =
            [(0, bytes.get(..COPY_BYTES)), (COPY_BYTES, bytes.get(COPY_BYTES..2 * COPY_BYTES))];
        let [first, second] = copies.map(|(offset, copy)| {
            let copy =
                copy.ok_or(DecodeError { offset: 0, what: "the file ends inside the header" });
            (offset as u64, copy.and_then(parse_copy))
        });
        let parsed = match (first, second) {
            ((_, Ok(first)), (offset, Ok(second))) if first != second => {
                return Err(Error::corruption(file, offset, "the two copies of the header differ"));
            }
            ((_, Ok(parsed)), _) | (_, (_, Ok(parsed))) => parsed,
            ((offset, Err(error)), _) => {
                return Err(Error::corruption(
                    file,
                    offset + error.offset,
                    format!("both copies of the segment header are damaged: {}", error.what),
                ));
            }
        };
        match parsed {
            Parsed::Header(header) => Ok(header),
            Parsed::OtherVersion(found) => Err(Error::UnknownVersion {
                file: file.to_path_buf(),
                found,
                supported: FORMAT_VERSION,
            }),
        }
    }
}

#[derive(PartialEq, Eq)]
enum Parsed {
    Header(SegmentHeader),
    OtherVersion(u32),
}

fn parse_copy(bytes: &[u8]) -> std::result::Result<Parsed, DecodeError> {
    let mut reader = Reader::new(bytes);
    let fail = |offset, what| Err(DecodeError { offset, what });
    if reader.array()? != MAGIC {
        return fail(0, "these are not the first bytes of a segment");
    }
    let version = reader.u32()?;
    let first_record = reader.u32()?;
    let store_id = reader.u128()?;
    let number = reader.u64()?;
    let epoch = reader.u64()?;
    let predecessor =
        Seal { segment: reader.u64()?, end: reader.u64()?, last_checksum: reader.u64()? };
    let first_sequence = reader.u64()?;
    let published_end = reader.u64()?;
    let published_len = reader.u64()?;
    let flags = reader.u32()?;
    let reserved = reader.array::<RESERVED_BYTES>()?;
    let (covered, _) = bytes.split_at_checked(COPY_BYTES - 8).unwrap_or((bytes, &[]));
    if reader.u64()? != bound_hash(covered, fold64(store_id), number) {
        return fail(120, "the checksum of the header is wrong");
    }
    // Other versions keep magic, version and checksum where they are, so that they can be named.
    if version != FORMAT_VERSION {
        return Ok(Parsed::OtherVersion(version));
    }
    if u64::from(first_record) != SEGMENT_HEADER_BYTES {
        return fail(12, "the first record does not begin at 256");
    }
    if epoch == 0 {
        return fail(40, "the epoch is zero");
    }
    if flags & !(FLAG_COPIES | FLAG_PREPARED) != 0 {
        return fail(96, "the header has unknown flags");
    }
    if predecessor.segment >= number {
        return fail(48, "the predecessor is not older");
    }
    if reserved != [0; RESERVED_BYTES] {
        return fail(100, "reserved bytes are not zero");
    }
    let copies = flags & FLAG_COPIES != 0;
    let prepared = flags & FLAG_PREPARED != 0;
    if prepared && predecessor != (Seal { segment: predecessor.segment, ..Seal::default() }) {
        return fail(56, "a segment that was prepared cannot know how its predecessor ended");
    }
    Ok(Parsed::Header(SegmentHeader {
        store_id,
        number,
        epoch,
        predecessor,
        first_sequence,
        published_end,
        published_len,
        copies,
        prepared,
    }))
}

/// The file name of a segment.
pub fn file_name(number: u64) -> String {
    format!("{number:016x}.wal")
}

/// The segment number in a file name that [`file_name`] could have made.
pub(crate) fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (file_name(number) == name).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SegmentHeader {
        SegmentHeader {
            store_id: 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100,
            number: 3,
            epoch: 0x77,
            predecessor: Seal { segment: 2, end: 4096, last_checksum: 0xabcd },
            first_sequence: 900,
            published_end: 288,
            published_len: 4096,
            copies: false,
            prepared: false,
        }
    }

    fn decode(bytes: &[u8]) -> Result<SegmentHeader> {
        SegmentHeader::decode(Path::new("0000000000000003.wal"), bytes, sample().store_id, 3)
    }

    #[test]
    fn a_header_comes_back_from_either_copy() {
        let good = sample().encode();
        assert_eq!(good.len() as u64, SEGMENT_HEADER_BYTES, "two copies");
        assert_eq!(decode(&good).expect("whole"), sample());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad).expect("the other copy"), sample(), "bit {bit}");
            bad[bit / 8 % COPY_BYTES] ^= 1;
            bad[bit / 8 % COPY_BYTES + COPY_BYTES] ^= 1;
            if bit / 8 < COPY_BYTES && bit % 8 != 0 {
                assert!(decode(&bad).is_err(), "both copies are damaged, bit {bit}");
            }
        }
    }

    #[test]
    fn a_header_of_another_version_store_or_segment_is_refused_by_name() {
        let mut next = sample().encode();
        next.truncate(COPY_BYTES);
        next[8] = 2;
        let sum = bound_hash(&next[..120], fold64(sample().store_id), 3);
        next[120..].copy_from_slice(&sum.to_le_bytes());
        next.extend_from_within(..);
        assert!(
            matches!(decode(&next), Err(Error::UnknownVersion { found: 2, supported: 1, .. })),
            "the next version"
        );
        let other = SegmentHeader { store_id: 1, ..sample() };
        assert!(
            matches!(decode(&other.encode()), Err(Error::WrongStore { found: 1, .. })),
            "another store"
        );
        let other = SegmentHeader { number: 4, ..sample() };
        assert!(
            matches!(decode(&other.encode()), Err(Error::Corruption { .. })),
            "another segment"
        );
    }

    #[test]
    fn two_valid_copies_that_differ_are_refused() {
        let mut bytes = sample().encode();
        let other = SegmentHeader { epoch: 0x78, ..sample() };
        bytes.truncate(COPY_BYTES);
        bytes.extend_from_slice(&other.encode()[..COPY_BYTES]);
        assert!(matches!(decode(&bytes), Err(Error::Corruption { offset: 128, .. })));
    }

    #[test]
    fn only_names_that_we_write_are_parsed() {
        assert_eq!(parse_file_name(&file_name(0xab)), Some(0xab));
        for name in
            ["ab.wal", "00000000000000AB.wal", "+0000000000000ab.wal", "00000000000000ab", "x.wal"]
        {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }
}
