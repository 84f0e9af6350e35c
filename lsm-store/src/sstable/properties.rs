//! The properties block: what a table says about itself, as tag, length, value.
//!
//! Tags below 128 must be understood; others may be skipped. Numbers are varints.

#![deny(clippy::indexing_slicing)]

use std::path::Path;

use crate::coding::{DecodeError, Reader, put_length_prefixed, put_varint};
use crate::error::{Error, Result};
use crate::internal_key::InternalKey;
use crate::sstable::{QUANTILES, TableMeta};
use crate::types::FileNumber;

/// Names the order of keys; another one is refused.
const COMPARATOR: &[u8] = b"bytewise-1";

const TAG_UID: u64 = 1;
const TAG_COMPARATOR: u64 = 2;
const TAG_PARTITION: u64 = 3;
const TAG_ENTRIES: u64 = 4;
const TAG_DELETES: u64 = 5;
const TAG_RAW_KEY_BYTES: u64 = 6;
const TAG_RAW_VALUE_BYTES: u64 = 7;
const TAG_SMALLEST: u64 = 8;
const TAG_LARGEST: u64 = 9;
const TAG_MIN_SEQUENCE: u64 = 10;
const TAG_MAX_SEQUENCE: u64 = 11;
const TAG_KV_DIGEST: u64 = 12;
const TAG_SUPERSEDED: u64 = 13;
const TAG_SUPERSEDED_AT: u64 = 14;
const TAG_TOMBSTONE_DENSE_BLOCKS: u64 = 15;
const TAG_CODEC: u64 = 16;
const TAG_DATA_BLOCKS: u64 = 17;
/// Who wrote the file; like all tags from here on it may be skipped.
const TAG_CREATOR: u64 = 128;
const FIRST_SKIPPABLE_TAG: u64 = 129;

/// See the module. Every field but `creator` is mandatory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Properties {
    pub(crate) uid: u128,
    pub(crate) partition: u8,
    pub(crate) entries: u64,
    pub(crate) deletes: u64,
    pub(crate) raw_key_bytes: u64,
    pub(crate) raw_value_bytes: u64,
    pub(crate) smallest: InternalKey,
    pub(crate) largest: InternalKey,
    pub(crate) min_sequence: u64,
    pub(crate) max_sequence: u64,
    pub(crate) kv_digest: u64,
    pub(crate) superseded: u64,
    pub(crate) superseded_at: [u64; QUANTILES],
    pub(crate) tombstone_dense_blocks: u64,
    pub(crate) codec: u64,
    pub(crate) data_blocks: u64,
    pub(crate) creator: Vec<u8>,
}

pub(crate) fn put_internal_key(buf: &mut Vec<u8>, key: &InternalKey) {
    put_varint(buf, key.sequence);
    put_length_prefixed(buf, &key.user_key);
}

pub(crate) fn read_internal_key(
    reader: &mut Reader<'_>,
) -> std::result::Result<InternalKey, DecodeError> {
    let sequence = reader.varint()?;
    Ok(InternalKey { user_key: reader.length_prefixed()?.to_vec(), sequence })
}

impl Properties {
    /// Those of a table of which nothing else is known.
    pub(crate) const fn unknown(uid: u128, partition: u8) -> Self {
        let none = InternalKey { user_key: Vec::new(), sequence: 0 };
        Self {
            uid,
            partition,
            entries: 0,
            deletes: 0,
            raw_key_bytes: 0,
            raw_value_bytes: 0,
            smallest: none,
            largest: InternalKey { user_key: Vec::new(), sequence: 0 },
            min_sequence: 0,
            max_sequence: 0,
            kv_digest: 0,
            superseded: 0,
            superseded_at: [0; QUANTILES],
            tombstone_dense_blocks: 0,
            codec: 0,
            data_blocks: 0,
            creator: Vec::new(),
        }
    }

    /// What a manifest says of a table with these properties.
    pub(crate) fn meta(&self, number: FileNumber, len: u64, digest: u128) -> TableMeta {
        TableMeta {
            partition: self.partition,
            number,
            uid: self.uid,
            len,
            digest,
            smallest: self.smallest.clone(),
            largest: self.largest.clone(),
            min_sequence: self.min_sequence,
            max_sequence: self.max_sequence,
            entries: self.entries,
            deletes: self.deletes,
            superseded: self.superseded,
            superseded_at: self.superseded_at,
            kv_digest: self.kv_digest,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut buf = Vec::new();
        let mut scratch = Vec::new();
        let mut put = |tag: u64, write: &dyn Fn(&mut Vec<u8>)| {
            scratch.clear();
            write(&mut scratch);
            put_varint(&mut buf, tag);
            put_length_prefixed(&mut buf, &scratch);
        };
        put(TAG_UID, &|b| b.extend_from_slice(&self.uid.to_le_bytes()));
        put(TAG_COMPARATOR, &|b| b.extend_from_slice(COMPARATOR));
        put(TAG_PARTITION, &|b| put_varint(b, u64::from(self.partition)));
        put(TAG_ENTRIES, &|b| put_varint(b, self.entries));
        put(TAG_DELETES, &|b| put_varint(b, self.deletes));
        put(TAG_RAW_KEY_BYTES, &|b| put_varint(b, self.raw_key_bytes));
        put(TAG_RAW_VALUE_BYTES, &|b| put_varint(b, self.raw_value_bytes));
        put(TAG_SMALLEST, &|b| put_internal_key(b, &self.smallest));
        put(TAG_LARGEST, &|b| put_internal_key(b, &self.largest));
        put(TAG_MIN_SEQUENCE, &|b| put_varint(b, self.min_sequence));
        put(TAG_MAX_SEQUENCE, &|b| put_varint(b, self.max_sequence));
        put(TAG_KV_DIGEST, &|b| b.extend_from_slice(&self.kv_digest.to_le_bytes()));
        put(TAG_SUPERSEDED, &|b| put_varint(b, self.superseded));
        put(TAG_SUPERSEDED_AT, &|b| self.superseded_at.iter().for_each(|at| put_varint(b, *at)));
        put(TAG_TOMBSTONE_DENSE_BLOCKS, &|b| put_varint(b, self.tombstone_dense_blocks));
        put(TAG_CODEC, &|b| put_varint(b, self.codec));
        put(TAG_DATA_BLOCKS, &|b| put_varint(b, self.data_blocks));
        put(TAG_CREATOR, &|b| b.extend_from_slice(&self.creator));
        buf
    }

    pub(crate) fn decode(raw: &[u8], path: &Path, offset: u64) -> Result<Self> {
        Self::decode_fields(raw)
            .map_err(|what| Error::corruption(path, offset, format!("properties: {what}")))
    }

    fn decode_fields(raw: &[u8]) -> std::result::Result<Self, String> {
        let text = |e: DecodeError| e.what.to_owned();
        let mut properties = Self::unknown(0, 0);
        let mut seen = 0_u64;
        let mut reader = Reader::new(raw);
        while !reader.is_empty() {
            let tag = reader.varint().map_err(text)?;
            let mut value = Reader::new(reader.length_prefixed().map_err(text)?);
            if tag < 64 {
                if seen & (1 << tag) != 0 {
                    return Err(format!("tag {tag} twice"));
                }
                seen |= 1 << tag;
            }
            let p = &mut properties;
            match tag {
                TAG_UID => p.uid = value.u128().map_err(text)?,
                TAG_COMPARATOR => {
                    let name = value.bytes(value.remaining()).map_err(text)?;
                    if name != COMPARATOR {
                        return Err(format!("keys ordered by {:?}", String::from_utf8_lossy(name)));
                    }
                }
                TAG_PARTITION => {
                    p.partition = u8::try_from(value.varint().map_err(text)?)
                        .map_err(|_overflow| "partition above 255".to_owned())?;
                }
                TAG_ENTRIES => p.entries = value.varint().map_err(text)?,
                TAG_DELETES => p.deletes = value.varint().map_err(text)?,
                TAG_RAW_KEY_BYTES => p.raw_key_bytes = value.varint().map_err(text)?,
                TAG_RAW_VALUE_BYTES => p.raw_value_bytes = value.varint().map_err(text)?,
                TAG_SMALLEST => p.smallest = read_internal_key(&mut value).map_err(text)?,
                TAG_LARGEST => p.largest = read_internal_key(&mut value).map_err(text)?,
                TAG_MIN_SEQUENCE => p.min_sequence = value.varint().map_err(text)?,
                TAG_MAX_SEQUENCE => p.max_sequence = value.varint().map_err(text)?,
                TAG_KV_DIGEST => p.kv_digest = value.u64().map_err(text)?,
                TAG_SUPERSEDED => p.superseded = value.varint().map_err(text)?,
                TAG_SUPERSEDED_AT => {
                    for at in &mut p.superseded_at {
                        *at = value.varint().map_err(text)?;
                    }
                }
                TAG_TOMBSTONE_DENSE_BLOCKS => {
                    p.tombstone_dense_blocks = value.varint().map_err(text)?
                }
                TAG_CODEC => p.codec = value.varint().map_err(text)?,
                TAG_DATA_BLOCKS => p.data_blocks = value.varint().map_err(text)?,
                TAG_CREATOR => p.creator = value.bytes(value.remaining()).map_err(text)?.to_vec(),
                FIRST_SKIPPABLE_TAG.. => {
                    value.bytes(value.remaining()).map_err(text)?;
                }
                _ => return Err(format!("unknown mandatory tag {tag}")),
            }
            value.finish().map_err(text)?;
        }
        let mandatory = (TAG_UID..=TAG_DATA_BLOCKS).fold(0_u64, |bits, tag| bits | (1 << tag));
        if seen & mandatory != mandatory {
            return Err(format!("mandatory tags missing: have {seen:#x}, need {mandatory:#x}"));
        }
        Ok(properties)
    }
}
