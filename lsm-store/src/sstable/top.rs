//! The top block: one entry per index partition, kept in memory while the table is open.
//!
//! `count varint`, then per partition `last user key (length varint ‖ bytes) ‖ index handle ‖ filter
//! handle ‖ entries varint ‖ min sequence varint ‖ max sequence varint`.

#![deny(clippy::indexing_slicing)]

use std::path::Path;

use crate::coding::{DecodeError, Reader, put_length_prefixed, put_varint};
use crate::error::{Error, Result};
use crate::sstable::format::Handle;

/// One index partition and its filter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TopEntry {
    /// Largest user key of the partition; all its versions are in this partition.
    pub(crate) last_key: Vec<u8>,
    pub(crate) index: Handle,
    pub(crate) filter: Handle,
    pub(crate) entries: u64,
    pub(crate) min_sequence: u64,
    pub(crate) max_sequence: u64,
}

pub(crate) fn encode(entries: &[TopEntry]) -> Vec<u8> {
    let mut buf = Vec::new();
    put_varint(&mut buf, entries.len() as u64);
    for entry in entries {
        put_length_prefixed(&mut buf, &entry.last_key);
        entry.index.put(&mut buf);
        entry.filter.put(&mut buf);
        put_varint(&mut buf, entry.entries);
        put_varint(&mut buf, entry.min_sequence);
        put_varint(&mut buf, entry.max_sequence);
    }
    buf
}

pub(crate) fn decode(raw: &[u8], path: &Path, offset: u64) -> Result<Vec<TopEntry>> {
    let entries = decode_entries(raw)
        .map_err(|e| Error::corruption(path, offset, format!("top block: {}", e.what)))?;
    if entries.is_empty() {
        return Err(Error::corruption(path, offset, "top block without partitions"));
    }
    let rising = entries.iter().zip(entries.iter().skip(1)).all(|(a, b)| a.last_key < b.last_key);
    if !rising {
        return Err(Error::corruption(path, offset, "keys of the top block do not rise"));
    }
    Ok(entries)
}

fn decode_entries(raw: &[u8]) -> std::result::Result<Vec<TopEntry>, DecodeError> {
    let mut reader = Reader::new(raw);
    // Each entry takes more than a byte, so a count above what is left cannot be true.
    let count = reader.length()?;
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(TopEntry {
            last_key: reader.length_prefixed()?.to_vec(),
            index: Handle::read(&mut reader)?,
            filter: Handle::read(&mut reader)?,
            entries: reader.varint()?,
            min_sequence: reader.varint()?,
            max_sequence: reader.varint()?,
        });
    }
    reader.finish()?;
    Ok(entries)
}
