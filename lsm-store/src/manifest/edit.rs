//! Edits: lists of items, as tag, length, value.
//!
//! Tags below 128 must be understood; others may be skipped. Numbers are varints. Tags are on disk and
//! never change; 5 and 8's drop form are reserved.

#![deny(clippy::indexing_slicing)]

use crate::coding::{DecodeError, Reader, put_length_prefixed, put_varint};
use crate::internal_key::InternalKey;
use crate::options::{Keep, LEVELS};
use crate::sstable::properties::{put_internal_key, read_internal_key};
use crate::sstable::{QUANTILES, TableMeta};
use crate::types::{FileNumber, MAX_EXTRA_BYTES, Position};

const TAG_ADD_TABLE: u64 = 1;
const TAG_DELETE_TABLE: u64 = 2;
const TAG_FLUSHED: u64 = 3;
const TAG_MIN_WAL_SEGMENT: u64 = 4;
const TAG_NEXT_FILE: u64 = 6;
const TAG_FLOOR: u64 = 7;
const TAG_PARTITION: u64 = 8;
const TAG_DAMAGED: u64 = 9;
const TAG_ADOPTED: u64 = 10;
const FIRST_SKIPPABLE_TAG: u64 = 128;

/// A table and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PlacedTable {
    pub(crate) level: usize,
    /// Age of the run within level 0, larger is newer; kept but without meaning below.
    pub(crate) l0_epoch: u64,
    pub(crate) meta: TableMeta,
}

/// One fact of an edit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Item {
    AddTable(Box<PlacedTable>),
    DeleteTable {
        partition: u8,
        level: usize,
        number: FileNumber,
    },
    /// Tables hold everything up to here: the caller's position, and per partition the last sequence number.
    Flushed {
        position: Position,
        sequences: Vec<(u8, u64)>,
    },
    /// Segments of the write-ahead log below this number are not needed.
    MinWalSegment(u64),
    /// Numbers below may be in use; those at or above are not.
    NextFile(FileNumber),
    Floor {
        partition: u8,
        sequence: u64,
    },
    Partition {
        id: u8,
        name: String,
        keep: Keep,
    },
    /// What the table holds of these user keys, bounds included, is not what was written.
    Damaged {
        number: FileNumber,
        smallest: Vec<u8>,
        largest: Vec<u8>,
    },
    /// The store is, or began as, the copy of another that this names.
    Adopted {
        id: u128,
        /// Whether the copy has never been opened as a store with a log: then there is none to miss.
        fresh: bool,
    },
}

const KEEP_ALL: u64 = 0;
const KEEP_NEWEST: u64 = 1;

impl Item {
    /// Appends the item to `buf`.
    pub(crate) fn encode(&self, buf: &mut Vec<u8>) {
        let mut body = Vec::new();
        let b = &mut body;
        let tag = match self {
            Self::AddTable(table) => {
                encode_table(table, b);
                TAG_ADD_TABLE
            }
            Self::DeleteTable { partition, level, number } => {
                put_varint(b, u64::from(*partition));
                put_varint(b, *level as u64);
                put_varint(b, number.0);
                TAG_DELETE_TABLE
            }
            Self::Flushed { position, sequences } => {
                put_varint(b, position.index);
                put_varint(b, position.term);
                put_length_prefixed(b, &position.extra);
                put_varint(b, sequences.len() as u64);
                for (partition, sequence) in sequences {
                    put_varint(b, u64::from(*partition));
                    put_varint(b, *sequence);
                }
                TAG_FLUSHED
            }
            Self::MinWalSegment(segment) => {
                put_varint(b, *segment);
                TAG_MIN_WAL_SEGMENT
            }
            Self::NextFile(number) => {
                put_varint(b, number.0);
                TAG_NEXT_FILE
            }
            Self::Floor { partition, sequence } => {
                put_varint(b, u64::from(*partition));
                put_varint(b, *sequence);
                TAG_FLOOR
            }
            Self::Partition { id, name, keep } => {
                put_varint(b, u64::from(*id));
                put_length_prefixed(b, name.as_bytes());
                put_varint(
                    b,
                    match keep {
                        Keep::All => KEEP_ALL,
                        Keep::NewestOnly => KEEP_NEWEST,
                    },
                );
                TAG_PARTITION
            }
            Self::Damaged { number, smallest, largest } => {
                put_varint(b, number.0);
                put_length_prefixed(b, smallest);
                put_length_prefixed(b, largest);
                TAG_DAMAGED
            }
            Self::Adopted { id, fresh } => {
                b.extend_from_slice(&id.to_le_bytes());
                put_varint(b, u64::from(*fresh));
                TAG_ADOPTED
            }
        };
        put_varint(buf, tag);
        put_length_prefixed(buf, &body);
    }
}

/// Encodes the items of one edit.
pub(crate) fn encode(items: &[Item]) -> Vec<u8> {
    let mut buf = Vec::new();
    for item in items {
        item.encode(&mut buf);
    }
    buf
}

/// Decodes an edit, skipping what may be skipped.
pub(crate) fn decode(payload: &[u8]) -> Result<Vec<Item>, DecodeError> {
    let mut reader = Reader::new(payload);
    let mut items = Vec::new();
    while !reader.is_empty() {
        let at = reader.position() as u64;
        let tag = reader.varint()?;
        let mut body = Reader::new(reader.length_prefixed()?);
        if tag >= FIRST_SKIPPABLE_TAG {
            continue;
        }
        let item = decode_item(tag, &mut body).and_then(|item| body.finish().map(|()| item));
        items.push(item.map_err(|e| DecodeError { offset: at, what: e.what })?);
    }
    Ok(items)
}

fn decode_item(tag: u64, b: &mut Reader<'_>) -> Result<Item, DecodeError> {
    Ok(match tag {
        TAG_ADD_TABLE => Item::AddTable(Box::new(decode_table(b)?)),
        TAG_DELETE_TABLE => Item::DeleteTable {
            partition: read_u8(b)?,
            level: read_level(b)?,
            number: FileNumber(b.varint()?),
        },
        TAG_FLUSHED => {
            let index = b.varint()?;
            let term = b.varint()?;
            let extra = b.length_prefixed()?;
            if extra.len() > MAX_EXTRA_BYTES {
                return Err(b.error("position with more than 256 bytes of its own"));
            }
            let count = b.length()?;
            let mut sequences = Vec::new();
            for _ in 0..count {
                sequences.push((read_u8(b)?, b.varint()?));
            }
            Item::Flushed { position: Position { index, term, extra: extra.to_vec() }, sequences }
        }
        TAG_MIN_WAL_SEGMENT => Item::MinWalSegment(b.varint()?),
        TAG_NEXT_FILE => Item::NextFile(FileNumber(b.varint()?)),
        TAG_FLOOR => Item::Floor { partition: read_u8(b)?, sequence: b.varint()? },
        TAG_PARTITION => {
            let id = read_u8(b)?;
            let Ok(name) = std::str::from_utf8(b.length_prefixed()?) else {
                return Err(b.error("partition name is not UTF-8"));
            };
            let keep = match b.varint()? {
                KEEP_ALL => Keep::All,
                KEEP_NEWEST => Keep::NewestOnly,
                _ => return Err(b.error("unknown retention of a partition")),
            };
            Item::Partition { id, name: name.to_owned(), keep }
        }
        TAG_DAMAGED => Item::Damaged {
            number: FileNumber(b.varint()?),
            smallest: b.length_prefixed()?.to_vec(),
            largest: b.length_prefixed()?.to_vec(),
        },
        TAG_ADOPTED => {
            let id = b.u128()?;
            match b.varint()? {
                fresh @ (0 | 1) => Item::Adopted { id, fresh: fresh == 1 },
                _ => return Err(b.error("a copy that is neither fresh nor not")),
            }
        }
        _ => return Err(b.error("unknown mandatory item: written by a newer version")),
    })
}

fn read_u8(b: &mut Reader<'_>) -> Result<u8, DecodeError> {
    let value = b.varint()?;
    u8::try_from(value).map_err(|_overflow| b.error("partition above 255"))
}

fn read_level(b: &mut Reader<'_>) -> Result<usize, DecodeError> {
    match usize::try_from(b.varint()?) {
        Ok(level) if level < LEVELS => Ok(level),
        Ok(_) | Err(_) => Err(b.error("level above the last one")),
    }
}

fn encode_table(table: &PlacedTable, b: &mut Vec<u8>) {
    let meta = &table.meta;
    put_varint(b, u64::from(meta.partition));
    put_varint(b, table.level as u64);
    put_varint(b, table.l0_epoch);
    put_varint(b, meta.number.0);
    b.extend_from_slice(&meta.uid.to_le_bytes());
    put_varint(b, meta.len);
    b.extend_from_slice(&meta.digest.to_le_bytes());
    put_internal_key(b, &meta.smallest);
    put_internal_key(b, &meta.largest);
    put_varint(b, meta.min_sequence);
    put_varint(b, meta.max_sequence);
    put_varint(b, meta.entries);
    put_varint(b, meta.deletes);
    put_varint(b, meta.superseded);
    meta.superseded_at.iter().for_each(|at| put_varint(b, *at));
    b.extend_from_slice(&meta.kv_digest.to_le_bytes());
}

fn decode_table(b: &mut Reader<'_>) -> Result<PlacedTable, DecodeError> {
    let partition = read_u8(b)?;
    let level = read_level(b)?;
    let l0_epoch = b.varint()?;
    let number = FileNumber(b.varint()?);
    let uid = b.u128()?;
    let len = b.varint()?;
    let digest = b.u128()?;
    let smallest: InternalKey = read_internal_key(b)?;
    let largest = read_internal_key(b)?;
    let min_sequence = b.varint()?;
    let max_sequence = b.varint()?;
    let entries = b.varint()?;
    let deletes = b.varint()?;
    let superseded = b.varint()?;
    let mut superseded_at = [0; QUANTILES];
    for at in &mut superseded_at {
        *at = b.varint()?;
    }
    let kv_digest = b.u64()?;
    let meta = TableMeta {
        partition,
        number,
        uid,
        len,
        digest,
        smallest,
        largest,
        min_sequence,
        max_sequence,
        entries,
        deletes,
        superseded,
        superseded_at,
        kv_digest,
    };
    Ok(PlacedTable { level, l0_epoch, meta })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample_table(number: u64) -> PlacedTable {
        PlacedTable {
            level: 3,
            l0_epoch: 9,
            meta: TableMeta {
                partition: 1,
                number: FileNumber(number),
                uid: 0xfeed,
                len: 4096,
                digest: 0xbeef,
                smallest: InternalKey { user_key: b"a".to_vec(), sequence: 7 },
                largest: InternalKey { user_key: b"z".to_vec(), sequence: 2 },
                min_sequence: 2,
                max_sequence: 7,
                entries: 3,
                deletes: 1,
                superseded: 1,
                superseded_at: [7; QUANTILES],
                kv_digest: 0xabcd,
            },
        }
    }

    fn all_items() -> Vec<Item> {
        vec![
            Item::AddTable(Box::new(sample_table(77))),
            Item::DeleteTable { partition: 1, level: 0, number: FileNumber(5) },
            Item::Flushed {
                position: Position { index: 100, term: 3, extra: b"x".to_vec() },
                sequences: vec![(0, 50), (1, 100)],
            },
            Item::MinWalSegment(4),
            Item::NextFile(FileNumber(128)),
            Item::Floor { partition: 0, sequence: 40 },
            Item::Partition { id: 1, name: "meta".to_owned(), keep: Keep::NewestOnly },
            Item::Damaged {
                number: FileNumber(77),
                smallest: Vec::new(),
                largest: b"\xff".to_vec(),
            },
            Item::Adopted { id: 1 << 100, fresh: true },
        ]
    }

    #[test]
    fn items_come_back() {
        assert_eq!(decode(&encode(&all_items())).expect("decodes"), all_items(), "round trip");
    }

    #[test]
    fn the_bytes_of_damage_and_adoption_are_those_of_the_format() {
        let item = Item::Damaged {
            number: FileNumber(300),
            smallest: b"a".to_vec(),
            largest: b"bc".to_vec(),
        };
        let expected = [9, 7, 0xAC, 0x02, 1, b'a', 2, b'b', b'c'];
        assert_eq!(encode(&[item]), expected, "tag, length, number, bounds");
        let bytes = [10, 17, 0xAB, 0xCD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let item = Item::Adopted { id: 0xCDAB, fresh: true };
        assert_eq!(encode(&[item]), bytes, "tag, length, id, fresh");
    }

    #[test]
    fn skippable_items_are_skipped_and_unknown_mandatory_ones_refused() {
        let mut bytes = encode(&all_items());
        put_varint(&mut bytes, 200);
        put_length_prefixed(&mut bytes, b"from the future");
        assert_eq!(decode(&bytes).expect("decodes"), all_items(), "tag 200 skipped");
        put_varint(&mut bytes, 99);
        put_length_prefixed(&mut bytes, b"");
        assert!(decode(&bytes).is_err(), "tag 99 is mandatory");
    }

    #[test]
    fn truncated_edits_are_errors() {
        let bytes = encode(&all_items());
        let whole = (0..bytes.len()).filter(|len| decode(&bytes[..*len]).is_ok()).count();
        // Cuts between items decode; the record's checksum tells those.
        assert_eq!(whole, all_items().len(), "only cuts between items decode");
    }
}
