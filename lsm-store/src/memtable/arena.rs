//! The bytes of a memtable: append-only chunks of records.
//!
//! ```text
//! record: [value length: 4][key length: 8][key][sequence number: 8][kind: 1][value]     padded to 8
//!                          └──────────── what `entry_digest` hashes ─────────────┘
//! ```
//!
//! A record is laid out like the input of [`entry_digest`](crate::sstable::entry_digest), so its digest is
//! one hash of memory that is already in the cache. A value of [`LARGE_BYTES`] or more stands outside, in an
//! allocation of its own, and the record holds its number: chunks are then of one size, and a large value
//! is never copied again.
//!
//! Invariants:
//! 1. Records are never changed or removed; a [`RecordRef`] stays valid as long as the arena.
//! 2. Only the last chunk is written to. A full one becomes [`Bytes`], and reads of it share its memory.

use std::cmp::Ordering;
use std::hint::black_box;

use bytes::Bytes;

use crate::checksum::{hash, hash_pair};
use crate::internal_key::Kind;

/// Size of a chunk. Large enough to make allocations rare, small enough that a held value pins little.
const CHUNK_BYTES: usize = 256 * 1024;

/// The first chunk starts this small and doubles: most memtables of a small partition stay there.
const FIRST_CHUNK_BYTES: usize = 512;

/// Values from this length have an allocation of their own.
pub(crate) const LARGE_BYTES: usize = 4096;

/// Records start at multiples of this, so that a reference fits 32 bits.
const ALIGN: usize = 8;

/// Bits of a [`RecordRef`] that hold the place within a chunk.
const PLACE_BITS: u32 = (CHUNK_BYTES / ALIGN).trailing_zeros();

/// Set in the stored value length: the value is the large one with the number that follows.
const LARGE_FLAG: u32 = 1 << 31;

/// A cache line.
const LINE_BYTES: usize = 64;

const LENGTH_BYTES: usize = 4;
const KEY_AT: usize = LENGTH_BYTES + 8;
/// What a record takes beside key and value.
const RECORD_OVERHEAD: usize = KEY_AT + 8 + 1;

const _: () = assert!(
    crate::types::MAX_KEY_BYTES + LARGE_BYTES + RECORD_OVERHEAD + ALIGN <= CHUNK_BYTES,
    "every record fits a chunk"
);
const _: () = assert!(
    crate::types::MAX_VALUE_BYTES < LARGE_FLAG as usize,
    "the flag is above every value length"
);

/// Where a record is: chunk number and place in it, in units of [`ALIGN`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct RecordRef(u32);

impl RecordRef {
    /// What a slot that is not in use holds.
    pub(super) const NOWHERE: Self = Self(0);

    pub(super) const fn bits(self) -> u32 {
        self.0
    }
}

/// A value to be added.
#[derive(Debug)]
pub(crate) enum NewValue<'a> {
    /// Shorter than [`LARGE_BYTES`]; copied.
    Small(&'a [u8]),
    /// [`LARGE_BYTES`] or longer; kept.
    Large(Bytes),
}

/// What a search looks for: an internal key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) key: &'a [u8],
    pub(super) sequence: u64,
}

/// A record as it is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) key: &'a [u8],
    pub(super) sequence: u64,
    pub(super) kind: Kind,
    /// The value, or the number of a large one.
    value: &'a [u8],
    /// Where `value` starts in its chunk.
    value_at: usize,
    large: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Arena {
    full: Vec<Bytes>,
    open: Vec<u8>,
    large: Vec<Bytes>,
    /// Memory of full chunks and large values.
    closed_bytes: usize,
}

impl Arena {
    /// Adds a record.
    ///
    /// # Panics
    /// At 32 GiB of records, which a memtable is frozen long before.
    pub(super) fn push(
        &mut self,
        target: Target<'_>,
        kind: Kind,
        value: NewValue<'_>,
    ) -> RecordRef {
        match value {
            NewValue::Small(value) => {
                let length = u32::try_from(value.len()).unwrap_or(LARGE_FLAG);
                self.push_record(target, kind, length, value)
            }
            NewValue::Large(value) => {
                let length = u32::try_from(value.len()).unwrap_or(LARGE_FLAG) | LARGE_FLAG;
                let number = u32::try_from(self.large.len()).unwrap_or(u32::MAX).to_le_bytes();
                self.closed_bytes += value.len();
                self.large.push(value);
                self.push_record(target, kind, length, &number)
            }
        }
    }

    fn push_record(
        &mut self,
        target: Target<'_>,
        kind: Kind,
        value_length: u32,
        stored_value: &[u8],
    ) -> RecordRef {
        let length = RECORD_OVERHEAD + target.key.len() + stored_value.len();
        let padded = length.next_multiple_of(ALIGN);
        self.make_room(padded);
        let at = self.open.len();
        let out = &mut self.open;
        out.extend_from_slice(&value_length.to_le_bytes());
        out.extend_from_slice(&(target.key.len() as u64).to_le_bytes());
        out.extend_from_slice(target.key);
        out.extend_from_slice(&target.sequence.to_le_bytes());
        out.push(kind as u8);
        out.extend_from_slice(stored_value);
        out.resize(at + padded, 0);
        let chunk = u32::try_from(self.full.len()).unwrap_or(u32::MAX);
        assert!(chunk < 1 << (32 - PLACE_BITS), "a memtable of {chunk} chunks is full");
        let place = u32::try_from(at / ALIGN).unwrap_or(0);
        RecordRef(chunk << PLACE_BITS | place)
    }

    fn make_room(&mut self, bytes: usize) {
        let need = self.open.len() + bytes;
        if need <= self.open.capacity() {
            return;
        }
        if need <= CHUNK_BYTES {
            let grown = (self.open.capacity() * 2).max(FIRST_CHUNK_BYTES).max(need);
            self.open.reserve_exact(grown.min(CHUNK_BYTES) - self.open.len());
        } else {
            self.seal();
            self.open.reserve_exact(CHUNK_BYTES);
        }
    }

    /// Makes all records shareable; called when nothing more is added.
    pub(super) fn seal(&mut self) {
        if !self.open.is_empty() {
            let chunk = std::mem::take(&mut self.open);
            self.closed_bytes += chunk.capacity();
            self.full.push(Bytes::from(chunk));
        }
    }

    /// Memory in use, in bytes; at most the rest of one chunk less than what is allocated.
    pub(super) const fn bytes(&self) -> usize {
        self.closed_bytes
            + self.open.len()
            + (self.full.len() + self.large.len()) * size_of::<Bytes>()
    }

    /// Damages the last byte that is not padding.
    #[cfg(test)]
    pub(super) fn flip_a_bit(&mut self) {
        if let Some(byte) = self.open.iter_mut().rfind(|byte| **byte != 0) {
            *byte ^= 4;
        }
    }

    fn chunk(&self, at: RecordRef) -> &[u8] {
        let chunk = (at.0 >> PLACE_BITS) as usize;
        self.full.get(chunk).map_or(&self.open, |full| full)
    }

    const fn place(at: RecordRef) -> usize {
        (at.0 & ((1 << PLACE_BITS) - 1)) as usize * ALIGN
    }

    pub(super) fn record(&self, at: RecordRef) -> Record<'_> {
        let place = Self::place(at);
        let stored = &self.chunk(at)[place..];
        let (value_length, rest) = number4(stored);
        let (key, rest) = split_key(rest);
        let (sequence, rest) = number8(rest);
        let (kind, rest) = (rest[0], &rest[1..]);
        let large = value_length & LARGE_FLAG != 0;
        let stored_length = if large { LENGTH_BYTES } else { value_length as usize };
        Record {
            key,
            sequence,
            kind: if kind == Kind::Delete as u8 { Kind::Delete } else { Kind::Value },
            value: &rest[..stored_length],
            value_at: place + RECORD_OVERHEAD + key.len(),
            large,
        }
    }

    /// Loads the first lines of records that are read next: the loads do not wait for each other, where
    /// those of a copy would each wait for the copy before.
    pub(super) fn touch(&self, records: &[RecordRef]) {
        let touched = records.iter().fold(0, |all, at| {
            let stored = &self.chunk(*at)[Self::place(*at)..];
            all ^ stored[0] ^ stored.get(LINE_BYTES).copied().unwrap_or(0)
        });
        black_box(touched);
    }

    pub(super) fn key(&self, at: RecordRef) -> &[u8] {
        let stored = &self.chunk(at)[Self::place(at) + LENGTH_BYTES..];
        split_key(stored).0
    }

    /// How a record is ordered to an internal key.
    pub(super) fn compare(&self, at: RecordRef, target: Target<'_>) -> Ordering {
        let stored = &self.chunk(at)[Self::place(at) + LENGTH_BYTES..];
        let (key, rest) = split_key(stored);
        key.cmp(target.key).then_with(|| target.sequence.cmp(&number8(rest).0))
    }

    /// The value as the reader keeps it: shared if it is large or its chunk is full, else a copy.
    pub(super) fn value(&self, at: RecordRef, record: &Record<'_>) -> Bytes {
        if let Some(large) = self.large_value(record) {
            return large.clone();
        }
        match self.full.get((at.0 >> PLACE_BITS) as usize) {
            Some(chunk) if !record.value.is_empty() => {
                chunk.slice(record.value_at..record.value_at + record.value.len())
            }
            Some(_) | None => Bytes::copy_from_slice(record.value),
        }
    }

    /// The value in place; `Err` is a large one.
    pub(super) fn value_in_place<'a>(&'a self, record: &Record<'a>) -> Result<&'a [u8], &'a Bytes> {
        self.large_value(record).map_or(Ok(record.value), Err)
    }

    fn large_value(&self, record: &Record<'_>) -> Option<&Bytes> {
        record.large.then(|| &self.large[number4(record.value).0 as usize])
    }

    /// [`entry_digest`](crate::sstable::entry_digest) of a record.
    pub(super) fn digest(&self, at: RecordRef) -> u64 {
        let record = self.record(at);
        let start = Self::place(at) + LENGTH_BYTES;
        let chunk = self.chunk(at);
        match self.large_value(&record) {
            Some(large) => hash_pair(&chunk[start..record.value_at], large),
            None => hash(&chunk[start..record.value_at + record.value.len()]),
        }
    }
}

/// The key after its length, and what follows it.
fn split_key(stored: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = number8(stored);
    rest.split_at(usize::try_from(length).unwrap_or(usize::MAX))
}

fn number4(bytes: &[u8]) -> (u32, &[u8]) {
    let (number, rest) = bytes.split_first_chunk().unwrap_or((&[0; 4], &[]));
    (u32::from_le_bytes(*number), rest)
}

fn number8(bytes: &[u8]) -> (u64, &[u8]) {
    let (number, rest) = bytes.split_first_chunk().unwrap_or((&[0; 8], &[]));
    (u64::from_le_bytes(*number), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sstable::entry_digest;

    #[test]
    fn records_come_back_whole_whatever_their_size() {
        let mut arena = Arena::default();
        let mut added = Vec::new();
        for length in [0, 1, 7, 100, LARGE_BYTES - 1, LARGE_BYTES, 300_000] {
            for key_length in [0, 1, 16, crate::types::MAX_KEY_BYTES] {
                let (key, value) = (vec![b'k'; key_length], vec![b'v'; length]);
                let sequence = added.len() as u64 + 1;
                let new = if length < LARGE_BYTES {
                    NewValue::Small(&value)
                } else {
                    NewValue::Large(Bytes::from(value.clone()))
                };
                let kind = if length == 0 { Kind::Delete } else { Kind::Value };
                let at = arena.push(Target { key: &key, sequence }, kind, new);
                added.push((at, key, sequence, kind, value));
            }
        }
        let mut scratch = Vec::new();
        for sealed in [false, true] {
            for (at, key, sequence, kind, value) in &added {
                let record = arena.record(*at);
                assert_eq!(record.key, key, "key of {sequence}");
                assert_eq!((record.sequence, record.kind), (*sequence, *kind), "of {sequence}");
                assert_eq!(arena.value(*at, &record), value, "value of {sequence}");
                let digest = entry_digest(&mut scratch, key, *sequence, *kind, value);
                assert_eq!(arena.digest(*at), digest, "digest of {sequence}, sealed: {sealed}");
            }
            arena.seal();
        }
    }
}
