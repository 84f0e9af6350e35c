//! A write batch, and its bytes in the log, which are also what is applied: a batch that was just
//! written and one that is replayed go the same way.
//!
//! ```text
//! partitions varint, then for each: partition varint, sequence varint      (partitions ascending)
//! operations varint, then for each: kind u8 (0 put, 1 delete), partition varint,
//!                                    key length varint, key, [value length varint, value]
//! ```

#![deny(clippy::indexing_slicing)]

use crate::coding::{DecodeError, Reader, put_length_prefixed, put_varint};
use crate::error::{Error, Result};
use crate::types::{
    MAX_KEY_BYTES, MAX_PARTITIONS, MAX_VALUE_BYTES, Op, PartitionId, SequenceNumber,
};

/// The most bytes a batch takes in the log.
pub const MAX_BATCH_BYTES: usize = (64 << 20) - (64 << 10);

const PUT: u8 = 0;
const DELETE: u8 = 1;

/// Operations that are written together: all of them or none. Each partition touched gets one new
/// sequence number for them; of several operations on one key the last one wins.
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
        // Kind, partition and two lengths take less than 32 bytes.
        check("batch", self.bytes.len() + bytes + 32, MAX_BATCH_BYTES)?;
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
        let bits = self.partitions;
        (0..64_u8).filter(move |bit| bits >> bit & 1 == 1).map(PartitionId)
    }

    /// The operations' part of the payload.
    pub(crate) fn operations(&self) -> &[u8] {
        &self.bytes
    }

    /// The payload's first part: the numbers given to the partitions, and how many operations follow.
    pub(crate) fn prefix(&self, sequences: &[(PartitionId, SequenceNumber)]) -> Vec<u8> {
        let mut prefix = Vec::with_capacity(16 + 12 * sequences.len());
        put_varint(&mut prefix, sequences.len() as u64);
        for (partition, sequence) in sequences {
            put_varint(&mut prefix, u64::from(partition.0));
            put_varint(&mut prefix, sequence.0);
        }
        put_varint(&mut prefix, self.operations);
        prefix
    }
}

fn check(what: &'static str, size: usize, limit: usize) -> Result<()> {
    if size <= limit {
        Ok(())
    } else {
        Err(Error::TooLarge { what, size: size as u64, limit: limit as u64 })
    }
}

/// One partition's share of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Share<'a> {
    pub(crate) partition: PartitionId,
    pub(crate) sequence: SequenceNumber,
    pub(crate) ops: Vec<Op<'a>>,
}

/// Takes the number of partitions and their sequence numbers off the front of a payload.
fn shares<'a>(reader: &mut Reader<'_>) -> std::result::Result<Vec<Share<'a>>, DecodeError> {
    let mut shares: Vec<Share<'a>> = Vec::new();
    for _ in 0..reader.varint()? {
        let at = reader.clone();
        let partition = PartitionId(u8::try_from(reader.varint()?).unwrap_or(u8::MAX));
        if partition.slot() >= MAX_PARTITIONS {
            return Err(at.error("a partition that no store has"));
        }
        if shares.last().is_some_and(|last| last.partition >= partition) {
            return Err(at.error("partitions that do not rise"));
        }
        let sequence = SequenceNumber(reader.varint()?);
        shares.push(Share { partition, sequence, ops: Vec::new() });
    }
    Ok(shares)
}

/// Takes a payload apart: what each partition gets, in the order of the operations.
pub(crate) fn decode(payload: &[u8]) -> std::result::Result<Vec<Share<'_>>, DecodeError> {
    let mut reader = Reader::new(payload);
    let mut shares = shares(&mut reader)?;
    for _ in 0..reader.varint()? {
        let at = reader.clone();
        let kind = reader.u8()?;
        let partition = reader.varint()?;
        let key = reader.length_prefixed()?;
        let op = match kind {
            PUT => Op::Put { key, value: reader.length_prefixed()? },
            DELETE => Op::Delete { key },
            _ => return Err(at.error("an unknown kind of operation")),
        };
        let share = shares.iter_mut().find(|share| u64::from(share.partition.0) == partition);
        share
            .ok_or_else(|| at.error("an operation of a partition without a sequence number"))?
            .ops
            .push(op);
    }
    reader.finish()?;
    Ok(shares)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: PartitionId = PartitionId(1);
    const SIX: PartitionId = PartitionId(6);

    fn payload(batch: &WriteBatch) -> Vec<u8> {
        let sequences: Vec<_> =
            batch.partitions().map(|p| (p, SequenceNumber(300 + u64::from(p.0)))).collect();
        [batch.prefix(&sequences), batch.operations().to_vec()].concat()
    }

    #[test]
    fn a_batch_comes_back_split_by_partition_in_order() {
        let mut batch = WriteBatch::new();
        batch.put(SIX, b"a", b"1").expect("small");
        batch.delete(ONE, b"").expect("small");
        batch.delete(SIX, b"a").expect("small");
        let bytes = payload(&batch);
        assert_eq!(batch.len(), 3);
        let shares = decode(&bytes).expect("whole");
        assert_eq!(
            shares,
            [
                Share {
                    partition: ONE,
                    sequence: SequenceNumber(301),
                    ops: vec![Op::Delete { key: b"" }]
                },
                Share {
                    partition: SIX,
                    sequence: SequenceNumber(306),
                    ops: vec![Op::Put { key: b"a", value: b"1" }, Op::Delete { key: b"a" }]
                },
            ]
        );
        assert_eq!(
            bytes,
            [
                2, 1, 0xad, 2, 6, 0xb2, 2, // two partitions with their numbers
                3, 0, 6, 1, b'a', 1, b'1', 1, 1, 0, 1, 6, 1, b'a' // three operations
            ]
        );
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
            assert!(decode(&good[..len]).is_err(), "cut to {len}");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // Wrong or other content: the record's checksum is what tells.
            let _either = decode(&bad).is_ok();
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_but_never_panic(bytes in proptest::collection::vec(0..12_u8, 0..80)) {
            let _either = decode(&bytes).is_ok();
        }
    }
}
