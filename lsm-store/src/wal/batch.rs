//! A write batch, and its bytes in the log, which are also what is applied: a batch that was just
//! written and one that is replayed go the same way. It is encoded once, while it is built.
//!
//! ```text
//! partitions varint, then for each: partition varint, sequence varint      (partitions ascending)
//! operations varint, then for each: kind u8 (0 put, 1 delete), partition varint,
//!                                    key length varint, key, [value length varint, value]
//! ```

#![deny(clippy::indexing_slicing)]

use crate::coding::{DecodeError, MAX_VARINT_BYTES, Reader, put_length_prefixed, put_varint};
use crate::error::{Error, Result};
use crate::types::{
    MAX_KEY_BYTES, MAX_PARTITIONS, MAX_VALUE_BYTES, Op, PartitionId, SequenceNumber,
};

/// The most bytes a batch takes in the log: keys, values and up to 32 bytes for each operation. It is more than any
/// segment or memtable has to hold: what is larger than those is written all the same.
pub const MAX_BATCH_BYTES: usize = (64 << 20) - (64 << 10);

/// What an operation takes at most beside its key and value: kind, partition and two lengths.
const OVERHEAD_MAX: usize = 32;

const PUT: u8 = 0;
const DELETE: u8 = 1;

/// Operations that are written together: all of them or none.
///
/// * Each partition touched gets one new sequence number, which all operations on it share. So a key has one version
///   of a batch: of several operations on one key the last one wins, and of the others nothing is ever seen. All of
///   them stand in the log.
/// * An operation that would make the batch larger than [`MAX_BATCH_BYTES`] is refused with
///   [`TooLarge`](Error::TooLarge) when it is added, as are a key above [`MAX_KEY_BYTES`] and a value above
///   [`MAX_VALUE_BYTES`]; the batch stays as it was. What was accepted can be written.
/// * A batch may be larger than a segment of the log, which then is as large as the batch, and than a memtable, which
///   takes all of it: memory grows by the batch and what it takes in the memtable, once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteBatch {
    /// The operations as they stand in the log.
    bytes: Vec<u8>,
    operations: u64,
    /// Bit `p` stands for partition `p`.
    partitions: u64,
}

impl WriteBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key to a value.
    ///
    /// # Errors
    /// `TooLarge` if key, value or batch are above their limits, `InvalidArgument` for a partition
    /// that no store has; the batch is as it was.
    pub fn put(&mut self, partition: PartitionId, key: &[u8], value: &[u8]) -> Result<()> {
        check("key", key.len(), MAX_KEY_BYTES)?;
        check("value", value.len(), MAX_VALUE_BYTES)?;
        self.begin(PUT, partition, key.len() + value.len())?;
        put_length_prefixed(&mut self.bytes, key);
        put_length_prefixed(&mut self.bytes, value);
        Ok(())
    }

    /// Removes a key, whether or not it is there.
    ///
    /// # Errors
    /// As [`WriteBatch::put`].
    pub fn delete(&mut self, partition: PartitionId, key: &[u8]) -> Result<()> {
        check("key", key.len(), MAX_KEY_BYTES)?;
        self.begin(DELETE, partition, key.len())?;
        put_length_prefixed(&mut self.bytes, key);
        Ok(())
    }

    fn begin(&mut self, kind: u8, partition: PartitionId, bytes: usize) -> Result<()> {
        if partition.slot() >= MAX_PARTITIONS {
            return Err(Error::InvalidArgument(format!(
                "there is no {partition}: ids are below {MAX_PARTITIONS}"
            )));
        }
        check("batch", self.bytes.len() + bytes + OVERHEAD_MAX, MAX_BATCH_BYTES)?;
        // Once for all parts: a batch of one operation, the most frequent one, is one allocation.
        self.bytes.reserve(bytes + OVERHEAD_MAX);
        self.partitions |= 1 << partition.0;
        self.operations += 1;
        self.bytes.push(kind);
        put_varint(&mut self.bytes, u64::from(partition.0));
        Ok(())
    }

    /// How many operations there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.operations
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations == 0
    }

    /// The bytes it takes in the log, but for a small prefix.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The partitions it touches, ascending.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = PartitionId> {
        bits(self.partitions)
    }

    /// The operations' part of the payload.
    pub(crate) fn encoded(&self) -> &[u8] {
        &self.bytes
    }

    /// The operations.
    pub(crate) fn operations(&self) -> Operations<'_> {
        Operations { reader: Reader::new(&self.bytes), left: self.operations }
    }

    /// Replaces `prefix` with the payload's first part: the numbers given to the partitions, and how many
    /// operations follow.
    pub(crate) fn encode_prefix(&self, numbers: &SequenceNumbers, prefix: &mut Vec<u8>) {
        prefix.clear();
        put_varint(prefix, u64::from(numbers.partitions.count_ones()));
        for (partition, sequence) in numbers.iter() {
            put_varint(prefix, u64::from(partition.0));
            put_varint(prefix, sequence.0);
        }
        put_varint(prefix, self.operations);
    }

    /// The payload's size at most, whatever the numbers are.
    pub(crate) fn payload_bytes_max(&self) -> u64 {
        let partitions = self.partitions.count_ones() as usize;
        (self.bytes.len() + (2 + 2 * partitions) * MAX_VARINT_BYTES) as u64
    }
}

fn check(what: &'static str, size: usize, limit: usize) -> Result<()> {
    if size <= limit {
        Ok(())
    } else {
        Err(Error::TooLarge { what, size: size as u64, limit: limit as u64 })
    }
}

/// The sequence numbers that a batch was given, one for each partition it touches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SequenceNumbers {
    /// Bit `p` stands for partition `p`.
    partitions: u64,
    /// The number of the lowest partition; the others' follow. Most batches touch one, which costs no
    /// allocation.
    first: u64,
    rest: Vec<u64>,
}

impl SequenceNumbers {
    /// The number given in a partition, if the batch touched it.
    #[must_use]
    pub fn get(&self, partition: PartitionId) -> Option<SequenceNumber> {
        let bit = 1_u64.checked_shl(u32::from(partition.0))?;
        if self.partitions & bit == 0 {
            return None;
        }
        match (self.partitions & (bit - 1)).count_ones() as usize {
            0 => Some(SequenceNumber(self.first)),
            before => self.rest.get(before - 1).copied().map(SequenceNumber),
        }
    }

    /// Adds a partition above those that are there.
    pub(crate) fn push(&mut self, partition: PartitionId, sequence: u64) {
        if self.partitions == 0 {
            self.first = sequence;
        } else {
            self.rest.push(sequence);
        }
        self.partitions |= 1 << partition.0;
    }

    /// The partitions, ascending, with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PartitionId, SequenceNumber)> {
        let numbers = std::iter::once(&self.first).chain(&self.rest);
        bits(self.partitions).zip(numbers.map(|number| SequenceNumber(*number)))
    }
}

/// The partitions that `bits` stand for, ascending.
fn bits(bits: u64) -> impl Iterator<Item = PartitionId> {
    let mut left = bits;
    std::iter::from_fn(move || {
        let lowest = u8::try_from(left.trailing_zeros()).ok().filter(|_| left != 0)?;
        left &= left - 1;
        Some(PartitionId(lowest))
    })
}

/// Takes the number of partitions and their sequence numbers off the front of a payload.
fn decode_numbers(reader: &mut Reader<'_>) -> std::result::Result<SequenceNumbers, DecodeError> {
    let mut numbers = SequenceNumbers::default();
    for _ in 0..reader.varint()? {
        let at = reader.clone();
        let partition = PartitionId(u8::try_from(reader.varint()?).unwrap_or(u8::MAX));
        if partition.slot() >= MAX_PARTITIONS {
            return Err(at.error("a partition that no store has"));
        }
        if numbers.partitions >> partition.0 != 0 {
            return Err(at.error("partitions that do not rise"));
        }
        numbers.push(partition, reader.varint()?);
    }
    Ok(numbers)
}

/// Takes a payload apart: the numbers given, and the operations, which may still turn out to be damaged.
pub(crate) fn decode(
    payload: &[u8],
) -> std::result::Result<(SequenceNumbers, Operations<'_>), DecodeError> {
    let mut reader = Reader::new(payload);
    let numbers = decode_numbers(&mut reader)?;
    let left = reader.varint()?;
    Ok((numbers, Operations { reader, left }))
}

/// How many operations of one partition are handed on at once.
const CHUNK: usize = 16;

/// The operations of a batch, from its bytes.
#[derive(Debug)]
pub(crate) struct Operations<'a> {
    reader: Reader<'a>,
    left: u64,
}

impl<'a> Operations<'a> {
    /// Hands on the operations in their order, several of one partition at a time, with the number that
    /// the partition was given.
    ///
    /// # Errors
    /// That of `each`, or what `damaged` makes of bytes that are no operation; those before are handed on.
    pub(crate) fn for_each_chunk(
        mut self,
        numbers: &SequenceNumbers,
        damaged: impl Fn(DecodeError) -> Error,
        mut each: impl FnMut(PartitionId, SequenceNumber, &[Op<'a>]) -> Result<()>,
    ) -> Result<()> {
        let mut chunk = [Op::Delete { key: &[][..] }; CHUNK];
        let mut held = 0;
        let mut of = None;
        while self.left > 0 {
            let at = self.reader.clone();
            let (partition, op) = self.take().map_err(&damaged)?;
            let given = numbers.get(partition).map(|sequence| (partition, sequence));
            if given.is_none() {
                let what = "an operation of a partition without a sequence number";
                return Err(damaged(at.error(what)));
            }
            if let Some((partition, sequence)) = of
                && held > 0
                && (given != of || held == CHUNK)
            {
                each(partition, sequence, chunk.get(..held).unwrap_or_default())?;
                held = 0;
            }
            of = given;
            if let Some(slot) = chunk.get_mut(held) {
                *slot = op;
                held += 1;
            }
        }
        if let Some((partition, sequence)) = of {
            each(partition, sequence, chunk.get(..held).unwrap_or_default())?;
        }
        self.reader.finish().map_err(damaged)
    }

    fn take(&mut self) -> std::result::Result<(PartitionId, Op<'a>), DecodeError> {
        self.left -= 1;
        let at = self.reader.clone();
        let kind = self.reader.u8()?;
        let partition = PartitionId(u8::try_from(self.reader.varint()?).unwrap_or(u8::MAX));
        let key = self.reader.length_prefixed()?;
        let value = match kind {
            PUT => self.reader.length_prefixed()?,
            DELETE => &[],
            _ => return Err(at.error("an unknown kind of operation")),
        };
        if key.len() > MAX_KEY_BYTES || value.len() > MAX_VALUE_BYTES {
            return Err(at.error("a key or value above its limit"));
        }
        let op = if kind == PUT { Op::Put { key, value } } else { Op::Delete { key } };
        Ok((partition, op))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: PartitionId = PartitionId(1);
    const SIX: PartitionId = PartitionId(6);

    fn numbers(batch: &WriteBatch) -> SequenceNumbers {
        let mut numbers = SequenceNumbers::default();
        batch.partitions().for_each(|p| numbers.push(p, 300 + u64::from(p.0)));
        numbers
    }

    fn payload(batch: &WriteBatch) -> Vec<u8> {
        let mut payload = Vec::new();
        batch.encode_prefix(&numbers(batch), &mut payload);
        payload.extend_from_slice(batch.encoded());
        payload
    }

    type Row = (PartitionId, u64, Vec<u8>, Option<Vec<u8>>);

    /// All operations with the numbers they are given; a value for a put, none for a delete.
    fn rows(payload: &[u8]) -> Result<Vec<Row>> {
        let damaged = |error: DecodeError| Error::InvalidArgument(error.to_string());
        let (numbers, operations) = decode(payload).map_err(damaged)?;
        let mut rows = Vec::new();
        operations.for_each_chunk(&numbers, damaged, |partition, sequence, ops| {
            assert!(!ops.is_empty() && ops.len() <= CHUNK, "{} operations", ops.len());
            rows.extend(ops.iter().map(|op| match op {
                Op::Put { key, value } => {
                    (partition, sequence.0, key.to_vec(), Some(value.to_vec()))
                }
                Op::Delete { key } => (partition, sequence.0, key.to_vec(), None),
            }));
            Ok(())
        })?;
        Ok(rows)
    }

    #[test]
    fn a_batch_comes_back_with_the_numbers_of_its_partitions_in_order() {
        let mut batch = WriteBatch::new();
        batch.put(SIX, b"a", b"1").expect("small");
        batch.delete(ONE, b"").expect("small");
        batch.delete(SIX, b"a").expect("small");
        let bytes = payload(&batch);
        assert_eq!(batch.len(), 3);
        assert_eq!(
            rows(&bytes).expect("whole"),
            [
                (SIX, 306, b"a".to_vec(), Some(b"1".to_vec())),
                (ONE, 301, Vec::new(), None),
                (SIX, 306, b"a".to_vec(), None),
            ]
        );
        assert_eq!(
            bytes,
            [
                2, 1, 0xad, 2, 6, 0xb2, 2, // two partitions with their numbers
                3, 0, 6, 1, b'a', 1, b'1', 1, 1, 0, 1, 6, 1, b'a' // three operations
            ]
        );
        let given = numbers(&batch);
        assert_eq!(given.get(ONE), Some(SequenceNumber(301)), "the first");
        assert_eq!(given.get(SIX), Some(SequenceNumber(306)), "the second");
        for other in [0, 2, 5, 7, 63, 64, 255] {
            assert_eq!(given.get(PartitionId(other)), None, "partition {other}");
        }
    }

    #[test]
    fn many_operations_are_handed_on_in_chunks_and_none_is_lost() {
        for count in [0, 1, CHUNK, CHUNK + 1, 5 * CHUNK - 1] {
            let mut batch = WriteBatch::new();
            let mut expected = Vec::new();
            for n in 0..count {
                let key = (n as u64).to_le_bytes();
                batch.put(ONE, &key, b"v").expect("small");
                expected.push((ONE, 301, key.to_vec(), Some(b"v".to_vec())));
                if n % 7 == 0 {
                    batch.delete(SIX, &key).expect("small");
                    expected.push((SIX, 306, key.to_vec(), None));
                }
            }
            assert_eq!(rows(&payload(&batch)).expect("whole"), expected, "{count} operations");
            let room = batch.payload_bytes_max();
            assert!(payload(&batch).len() as u64 <= room, "at most {room} bytes");
        }
    }

    #[test]
    fn what_is_too_large_is_refused_and_changes_nothing() {
        let mut batch = WriteBatch::new();
        batch.put(ONE, b"k", b"v").expect("small");
        let before = batch.clone();
        let long = vec![0; MAX_VALUE_BYTES + 1];
        assert!(matches!(
            batch.put(ONE, &long[..=MAX_KEY_BYTES], b""),
            Err(Error::TooLarge { what: "key", .. })
        ));
        assert!(matches!(batch.put(ONE, b"", &long), Err(Error::TooLarge { what: "value", .. })));
        assert!(matches!(batch.put(PartitionId(64), b"", b""), Err(Error::InvalidArgument(_))));
        assert_eq!(batch, before);
        batch.put(ONE, b"", &long[1..]).expect("at the limit");
        assert!(matches!(
            batch.put(ONE, b"", &long[1..]),
            Err(Error::TooLarge { what: "batch", .. })
        ));
    }

    #[test]
    fn a_payload_cut_or_flipped_anywhere_never_panics() {
        let mut batch = WriteBatch::new();
        batch.put(ONE, b"key", b"value").expect("small");
        batch.delete(SIX, b"another").expect("small");
        let good = payload(&batch);
        for len in 0..good.len() {
            assert!(rows(&good[..len]).is_err(), "cut to {len}");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // Wrong or other content: the record's checksum is what tells.
            let _either = rows(&bad).is_ok();
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_but_never_panic(bytes in proptest::collection::vec(0..12_u8, 0..80)) {
            let _either = rows(&bytes).is_ok();
        }
    }
}
