//! What a copy of a store consists of: the file `SNAPSHOT` of a checkpoint, and what is sent ahead of its
//! tables.
//!
//! ```text
//!  0  8 "LSMSNP\0\1"     8  4 format version     12  4 reserved
//! 16 16 store id        32 16 snapshot id
//! 48  8 length of the items                      56  8 length of the range, 0: the whole store
//! 64    items, as in a manifest's snapshot; range; 16 XXH3-128 of everything before
//! ```

#![deny(clippy::indexing_slicing)]

use std::path::Path;

use crate::checksum;
use crate::coding::{DecodeError, Reader, put_length_prefixed, put_varint};
use crate::error::{Error, Result};
use crate::manifest::edit;
use crate::manifest::state::ManifestState;
use crate::types::{KeyRange, PartitionId, SequenceNumber};

/// The newest format this build reads, and the one it writes.
const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"LSMSNP\0\x01";
const DIGEST_BYTES: usize = 16;

/// One table of a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SnapshotTable {
    /// Names the table: the same uid is the same bytes, in every store.
    pub uid: u128,
    /// Length of the file in bytes.
    pub len: u64,
    /// XXH3-128 of the file.
    pub digest: u128,
    /// Whose entries.
    pub partition: PartitionId,
    /// Level it is in.
    pub level: usize,
    /// Smallest user key.
    pub smallest: Vec<u8>,
    /// Largest user key.
    pub largest: Vec<u8>,
    /// Smallest sequence number.
    pub min_sequence: SequenceNumber,
    /// Largest sequence number.
    pub max_sequence: SequenceNumber,
    /// Entries: versions, deletes included.
    pub entries: u64,
}

/// The part of a store that a copy holds, if it is not all of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ExportedRange {
    pub(crate) range: KeyRange,
    /// The copy has everything of the range up to here.
    pub(crate) sequence: u64,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Description {
    pub(crate) store_id: u128,
    pub(crate) snapshot_id: u128,
    pub(crate) state: ManifestState,
    pub(crate) exported: Option<ExportedRange>,
}

impl Description {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let items = edit::encode(&self.state.snapshot());
        let range = self.exported.as_ref().map(encode_range).unwrap_or_default();
        let mut buf = MAGIC.to_vec();
        buf.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        buf.extend_from_slice(&[0; 4]);
        buf.extend_from_slice(&self.store_id.to_le_bytes());
        buf.extend_from_slice(&self.snapshot_id.to_le_bytes());
        buf.extend_from_slice(&(items.len() as u64).to_le_bytes());
        buf.extend_from_slice(&(range.len() as u64).to_le_bytes());
        buf.extend_from_slice(&items);
        buf.extend_from_slice(&range);
        let digest = checksum::digest(&buf);
        buf.extend_from_slice(&digest.to_le_bytes());
        buf
    }

    /// Reads a description; `path` is where it is said to be from.
    ///
    /// # Errors
    /// `Corruption`, `UnknownVersion`.
    pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<Self> {
        let decode = |e: DecodeError| Error::decode(path, 0, e);
        let corrupt =
            |offset: usize, detail: String| Error::corruption(path, offset as u64, detail);
        let Some((summed, digest)) = bytes.split_last_chunk::<DIGEST_BYTES>() else {
            return Err(corrupt(bytes.len(), "ends inside its digest".to_owned()));
        };
        let mut reader = Reader::new(summed);
        if reader.array().map_err(decode)? != MAGIC {
            return Err(corrupt(0, "no description of a snapshot: magic bytes missing".to_owned()));
        }
        let version = reader.u32().map_err(decode)?;
        if u128::from_le_bytes(*digest) != checksum::digest(summed) {
            return Err(corrupt(summed.len(), "digest mismatch".to_owned()));
        }
        if version != FORMAT_VERSION {
            return Err(Error::UnknownVersion {
                file: path.to_path_buf(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        let reserved = reader.u32().map_err(decode)?;
        let store_id = reader.u128().map_err(decode)?;
        let snapshot_id = reader.u128().map_err(decode)?;
        let items_len = reader.u64().map_err(decode)?;
        let range_len = reader.u64().map_err(decode)?;
        let rest = reader.remaining() as u64;
        if reserved != 0 || items_len.checked_add(range_len) != Some(rest) {
            return Err(corrupt(12, "fixed fields or lengths differ".to_owned()));
        }
        let at = reader.position();
        let body = summed.get(at..).unwrap_or_default();
        let items_len = usize::try_from(items_len).unwrap_or(body.len()).min(body.len());
        let (items, range) = body.split_at(items_len);
        let items = edit::decode(items).map_err(|e| Error::decode(path, at as u64, e))?;
        let mut state = ManifestState::empty();
        state.apply(&items).map_err(|detail| corrupt(at, detail))?;
        let exported = match range {
            [] => None,
            range => Some(
                decode_range(range).map_err(|e| Error::decode(path, (at + items_len) as u64, e))?,
            ),
        };
        Ok(Self { store_id, snapshot_id, state, exported })
    }

    pub(crate) fn tables(&self) -> Vec<SnapshotTable> {
        let table = |placed: &edit::PlacedTable| SnapshotTable {
            uid: placed.meta.uid,
            len: placed.meta.len,
            digest: placed.meta.digest,
            partition: PartitionId(placed.meta.partition),
            level: placed.level,
            smallest: placed.meta.smallest.user_key.clone(),
            largest: placed.meta.largest.user_key.clone(),
            min_sequence: SequenceNumber(placed.meta.min_sequence),
            max_sequence: SequenceNumber(placed.meta.max_sequence),
            entries: placed.meta.entries,
        };
        self.state.tables.values().map(table).collect()
    }
}

fn encode_range(exported: &ExportedRange) -> Vec<u8> {
    let mut buf = Vec::new();
    put_varint(&mut buf, u64::from(exported.range.partition.0));
    put_varint(&mut buf, exported.sequence);
    put_length_prefixed(&mut buf, &exported.range.start);
    put_varint(&mut buf, u64::from(exported.range.end.is_some()));
    put_length_prefixed(&mut buf, exported.range.end.as_deref().unwrap_or_default());
    buf
}

fn decode_range(bytes: &[u8]) -> std::result::Result<ExportedRange, DecodeError> {
    let mut reader = Reader::new(bytes);
    let partition = reader.varint()?;
    let Ok(partition) = u8::try_from(partition) else {
        return Err(reader.error("partition above 255"));
    };
    let sequence = reader.varint()?;
    let start = reader.length_prefixed()?.to_vec();
    let has_end = reader.varint()?;
    let end = reader.length_prefixed()?.to_vec();
    let end = match (has_end, end.is_empty()) {
        (0, true) => None,
        (1, _) => Some(end),
        _ => return Err(reader.error("range with and without an end")),
    };
    reader.finish()?;
    Ok(ExportedRange {
        range: KeyRange { partition: PartitionId(partition), start, end },
        sequence,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::edit::Item;
    use crate::manifest::edit::tests::sample_table;
    use crate::options::{Keep, PartitionOptions};
    use crate::types::{FileNumber, Position};

    fn sample(exported: Option<ExportedRange>) -> Description {
        let partition = |name: &str| PartitionOptions { name: name.to_owned(), keep: Keep::All };
        let mut state = ManifestState::create(&[partition("data"), partition("meta")]);
        let flushed = Item::Flushed {
            position: Position { index: 9, term: 2, extra: vec![1] },
            sequences: vec![(0, 4), (1, 9)],
        };
        let table = Item::AddTable(Box::new(sample_table(5)));
        let items = [
            Item::NextFile(FileNumber(64)),
            table,
            flushed,
            Item::Adopted { id: 0xabc, fresh: true },
        ];
        state.apply(&items).expect("applies");
        Description { store_id: 0x77, snapshot_id: 0xabc, state, exported }
    }

    fn range(end: Option<&[u8]>) -> ExportedRange {
        let (start, end) = (b"k".to_vec(), end.map(<[u8]>::to_vec));
        ExportedRange { range: KeyRange { partition: PartitionId(1), start, end }, sequence: 300 }
    }

    #[test]
    fn a_description_comes_back_and_every_flipped_bit_and_cut_is_noticed() {
        let path = Path::new("SNAPSHOT");
        for exported in [None, Some(range(None)), Some(range(Some(b""))), Some(range(Some(b"m")))] {
            let description = sample(exported);
            let good = description.encode();
            assert_eq!(Description::decode(&good, path).expect("decodes"), description);
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let error = Description::decode(&bad, path).expect_err("flipped bit");
                assert!(matches!(error, Error::Corruption { .. }), "bit {bit}: {error}");
            }
            for len in 0..good.len() {
                assert!(Description::decode(&good[..len], path).is_err(), "cut to {len}");
            }
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let bytes = sample(Some(range(Some(b"m")))).encode();
        assert_eq!(&bytes[..16], b"LSMSNP\0\x01\x01\0\0\0\0\0\0\0", "magic and version");
        assert_eq!(&bytes[16..48], [&[0x77; 1][..], &[0; 15], &[0xbc, 0x0a], &[0; 14]].concat());
        let items = usize::from(bytes[48]) + 256 * usize::from(bytes[49]);
        assert_eq!(bytes[56], 8, "length of the range");
        let range = &bytes[64 + items..bytes.len() - 16];
        assert_eq!(range, [1, 0xAC, 0x02, 1, b'k', 1, 1, b'm'], "partition, sequence, start, end");
        let digest = checksum::digest(&bytes[..bytes.len() - 16]).to_le_bytes();
        assert_eq!(&bytes[bytes.len() - 16..], digest, "digest of everything before");
    }

    #[test]
    fn the_next_version_is_refused_by_name() {
        let mut next = sample(None).encode();
        next[8] = 2;
        let summed = next.len() - 16;
        let digest = checksum::digest(&next[..summed]).to_le_bytes();
        next[summed..].copy_from_slice(&digest);
        let error = Description::decode(&next, Path::new("SNAPSHOT")).expect_err("next version");
        assert!(matches!(error, Error::UnknownVersion { found: 2, supported: 1, .. }), "{error}");
    }
}
