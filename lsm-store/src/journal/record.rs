//! The frame of one record, shared by the journal's segments and by the manifest.
//!
//! ```text
//!  0  4  payload length (at most 64 MiB)
//!  4  1  kind; 0 is never a record, so reserved zeros are not one
//!  5  1  flags, zero
//!  6  2  fold16(epoch ^ offset): a cheap filter when looking for records behind damage
//!  8  8  sequence number, the caller's
//! 16  8  durable-to: this file's bytes below it were synced when the record was encoded
//! 24  8  H(bytes 0..24 and 32..end) + bind(epoch, offset)
//! 32     payload, then zeros up to a multiple of 8
//! ```
//!
//! Everything is inside the checksum, the padding too. The checksum is bound to the file's epoch and
//! the record's offset, so a record copied elsewhere or left over from a file's earlier life fails.

#![deny(clippy::indexing_slicing)]

use crate::checksum::{bind, fold16, hash, hash_pair};
use crate::coding::Reader;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 32;

/// The checksum at the end of the header.
const CHECKSUM_BYTES: usize = 8;

/// The largest payload: 64 MiB.
pub const MAX_PAYLOAD_BYTES: u32 = 64 << 20;

/// Every record begins at a multiple of this.
pub const ALIGNMENT_BYTES: u64 = 8;

/// The kinds of records that this crate gives a meaning; the caller's own begin at
/// [`kind::APPLICATION`].
pub mod kind {
    /// Not a record: what space that was reserved but never written looks like.
    pub const INVALID: u8 = 0;
    /// A write batch of a store with its own write-ahead log.
    pub const BATCH: u8 = 1;
    /// Behind the end of a segment that has a successor, written once the successor is durable: proof
    /// that it was there. No payload.
    pub const SEAL: u8 = 3;
    /// Only a durable-to promise; no payload.
    pub const SYNC_NOTE: u8 = 4;
    /// The first record of a segment: what the caller needs to know if all older segments are gone.
    pub const HEAD: u8 = 6;
    /// The first record of a segment that was prepared: how its predecessor ended. `end u64 | checksum of
    /// the last record u64`.
    pub const JOINT: u8 = 7;
    /// The first kind that is the caller's to use.
    pub const APPLICATION: u8 = 16;

    /// Whether records of this kind say something of the journal only, and are not the caller's.
    pub const fn is_own(kind: u8) -> bool {
        matches!(kind, SEAL | SYNC_NOTE | JOINT)
    }
}

/// Where a record stands: the incarnation of its file, and its offset there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The file's epoch: drawn afresh whenever a file is created.
    pub epoch: u64,
    /// The record's first byte, a multiple of eight.
    pub offset: u64,
}

/// What a record's header says, apart from its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Payload bytes.
    pub payload_bytes: u32,
    /// What the payload is.
    pub kind: u8,
    /// The caller's sequence number.
    pub sequence: u64,
    /// Bytes of this file below this offset were synced when the record was encoded.
    pub durable_to: u64,
    /// The checksum as stored.
    pub checksum: u64,
}

impl RecordHeader {
    /// Bytes of the whole record on disk.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(u64::from(self.payload_bytes))
    }

    /// Bytes of payload and padding.
    pub fn body_bytes(&self) -> usize {
        (self.payload_bytes as usize).next_multiple_of(8)
    }

    /// Takes a header apart; says why it cannot be the header of a record at `place`. A header that
    /// passes still needs [`RecordHeader::matches`].
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(bytes: &[u8; HEADER_BYTES], place: Place) -> Result<Self, &'static str> {
        let mut reader = Reader::new(bytes);
        let mut parse = || {
            let payload_bytes = reader.u32()?;
            let kind = reader.u8()?;
            let flags = reader.u8()?;
            let tag = reader.u16()?;
            let sequence = reader.u64()?;
            let durable_to = reader.u64()?;
            let checksum = reader.u64()?;
            Ok::<_, crate::coding::DecodeError>((
                flags,
                tag,
                Self { payload_bytes, kind, sequence, durable_to, checksum },
            ))
        };
        let (flags, tag, header) = parse().map_err(|error| error.what)?;
        if header.kind == kind::INVALID {
            return Err("no record");
        }
        if tag != fold16(place.epoch ^ place.offset) {
            return Err("the record's tag is not that of this place");
        }
        if flags != 0 {
            return Err("the record has unknown flags");
        }
        if header.payload_bytes > MAX_PAYLOAD_BYTES {
            return Err("the record's length is above 64 MiB");
        }
        Ok(header)
    }

    /// Whether the checksum is that of this header and `body` (payload and padding) at `place`.
    pub fn matches(&self, bytes: &[u8; HEADER_BYTES], body: &[u8], place: Place) -> bool {
        let (covered, _) = bytes.split_at(24);
        hash_pair(covered, body).wrapping_add(bind(place.epoch, place.offset)) == self.checksum
    }
}

/// Bytes on disk of a record with a payload of this size.
pub fn record_bytes(payload_bytes: u64) -> u64 {
    (HEADER_BYTES as u64).saturating_add(payload_bytes).next_multiple_of(ALIGNMENT_BYTES)
}

/// What is written about a record besides its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// What the payload is.
    pub kind: u8,
    /// The caller's sequence number.
    pub sequence: u64,
    /// Bytes of the file below this offset are synced.
    pub durable_to: u64,
}

/// Appends a record to `buf` and returns its checksum. The payload is the concatenation of `parts`.
///
/// # Panics
/// If the payload is larger than [`MAX_PAYLOAD_BYTES`] or the kind is 0; callers check first.
pub fn encode(buf: &mut Vec<u8>, place: Place, meta: Meta, parts: &[&[u8]]) -> u64 {
    let payload_bytes: usize = parts.iter().map(|part| part.len()).sum();
    let length = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
    assert!(
        length <= MAX_PAYLOAD_BYTES,
        "a record of {payload_bytes} bytes is above {MAX_PAYLOAD_BYTES}"
    );
    assert!(meta.kind != kind::INVALID, "kind 0 is not a record");
    let body_bytes = payload_bytes.next_multiple_of(8);
    buf.reserve(HEADER_BYTES + body_bytes);
    let start = buf.len();
    // The checksum's place first: what it covers then stands in one piece, and is put in order afterwards.
    buf.extend_from_slice(&[0; CHECKSUM_BYTES]);
    buf.extend_from_slice(&length.to_le_bytes());
    buf.extend_from_slice(&[meta.kind, 0]);
    buf.extend_from_slice(&fold16(place.epoch ^ place.offset).to_le_bytes());
    buf.extend_from_slice(&meta.sequence.to_le_bytes());
    buf.extend_from_slice(&meta.durable_to.to_le_bytes());
    for part in parts {
        buf.extend_from_slice(part);
    }
    buf.resize(start + HEADER_BYTES + body_bytes, 0);
    let (_, record) = buf.split_at_mut(start);
    let (_, covered) = record.split_at_mut(CHECKSUM_BYTES);
    let checksum = hash(covered).wrapping_add(bind(place.epoch, place.offset));
    let (header, _) = record.split_at_mut(HEADER_BYTES);
    header.rotate_left(CHECKSUM_BYTES);
    let (_, sum) = header.split_at_mut(HEADER_BYTES - CHECKSUM_BYTES);
    sum.copy_from_slice(&checksum.to_le_bytes());
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { epoch: 0x1234_5678_9abc_def0, offset: 256 };

    fn check(bytes: &[u8], place: Place) -> Result<RecordHeader, &'static str> {
        let (header_bytes, body) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or("short")?;
        let header = RecordHeader::parse(header_bytes, place)?;
        let body = body.get(..header.body_bytes()).ok_or("short")?;
        if header.matches(header_bytes, body, place) { Ok(header) } else { Err("checksum") }
    }

    fn sample() -> Vec<u8> {
        let mut buf = Vec::new();
        encode(
            &mut buf,
            PLACE,
            Meta { kind: 17, sequence: 42, durable_to: 256 },
            &[b"hello, ", b"world"],
        );
        buf
    }

    #[test]
    fn the_bytes_of_a_record_are_these() {
        let mut golden = vec![12, 0, 0, 0, 17, 0, 0x00, 0x01];
        golden.extend_from_slice(&42_u64.to_le_bytes());
        golden.extend_from_slice(&256_u64.to_le_bytes());
        golden.extend_from_slice(&GOLDEN_SUM.to_le_bytes());
        golden.extend_from_slice(b"hello, world\0\0\0\0");
        assert_eq!(sample(), golden);
    }

    const GOLDEN_SUM: u64 = 0x5fc2_d448_1e43_147c;

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let good = sample();
        assert!(check(&good, PLACE).is_ok(), "unharmed");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&bad, PLACE).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_record_is_valid_at_its_own_place_only() {
        let good = sample();
        for place in [Place { offset: 264, ..PLACE }, Place { epoch: 1, ..PLACE }] {
            assert!(check(&good, place).is_err(), "at {place:?}");
        }
        // Another place with the same tag: only the checksum tells.
        let twin = Place { epoch: PLACE.epoch ^ 0x0001_0001_0000_0000, ..PLACE };
        assert_eq!(check(&good, twin), Err("checksum"));
    }

    #[test]
    fn zeros_are_never_a_record() {
        assert_eq!(check(&[0; 64], Place { epoch: 0, offset: 0 }), Err("no record"));
    }
}
