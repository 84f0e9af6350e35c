//! Builds data and index blocks: prefix compression, restart points, heads.

use crate::coding::put_varint;
use crate::error::{Error, Result};
use crate::internal_key::{Kind, head};
use crate::sstable::format::Handle;

/// Offsets of restart points take four bytes instead of two.
pub(super) const FLAG_WIDE: u8 = 1;
/// Where the count of zero bytes between entries and heads stands in the flags.
pub(super) const FLAG_PAD_SHIFT: u32 = 5;
/// Flags with a meaning; the others (2: hash index) must be zero.
pub(super) const FLAGS_KNOWN: u8 = FLAG_WIDE | (7 << FLAG_PAD_SHIFT);
/// Length of a block's header.
pub(super) const HEADER_BYTES: usize = 16;
/// Length of a block's tail.
pub(super) const TAIL_BYTES: usize = 8;
/// The common prefix is at most this long: its length is one byte.
const PREFIX_MAX: usize = 255;

#[derive(Debug)]
struct Pending {
    key_start: usize,
    key_len: usize,
    value_start: usize,
    value_len: usize,
    sequence: u64,
    kind: Kind,
}

/// Collects entries in order and encodes them when the block is full: the common prefix and the
/// smallest sequence number are known only then.
#[derive(Debug, Default)]
pub(crate) struct BlockBuilder {
    restart_interval: usize,
    bytes: Vec<u8>,
    entries: Vec<Pending>,
}

impl BlockBuilder {
    pub(crate) fn new(restart_interval: usize) -> Self {
        Self { restart_interval, ..Self::default() }
    }

    /// Adds an entry; the caller keeps the order.
    pub(crate) fn add(&mut self, key: &[u8], sequence: u64, kind: Kind, value: &[u8]) {
        let key_start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        let value_start = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.entries.push(Pending {
            key_start,
            key_len: key.len(),
            value_start,
            value_len: value.len(),
            sequence,
            kind,
        });
    }

    /// Adds an index entry: the handle whole at a restart point, else its length only, since blocks
    /// follow each other.
    pub(crate) fn add_handle(&mut self, key: &[u8], sequence: u64, handle: Handle) {
        let mut value = Vec::with_capacity(16);
        if self.entries.len().is_multiple_of(self.restart_interval) {
            handle.put(&mut value);
        } else {
            put_varint(&mut value, handle.len);
        }
        self.add(key, sequence, Kind::Value, &value);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// About how large the raw block gets, from above.
    pub(crate) fn estimated_bytes(&self) -> usize {
        self.bytes.len() + 6 * self.entries.len() + HEADER_BYTES + TAIL_BYTES
    }

    fn key(&self, entry: &Pending) -> &[u8] {
        self.bytes.get(entry.key_start..entry.key_start + entry.key_len).unwrap_or_default()
    }

    fn value(&self, entry: &Pending) -> &[u8] {
        self.bytes.get(entry.value_start..entry.value_start + entry.value_len).unwrap_or_default()
    }

    /// Encodes the block and empties the builder.
    pub(crate) fn finish(&mut self) -> Result<Vec<u8>> {
        let raw = self.encode()?;
        self.bytes.clear();
        self.entries.clear();
        Ok(raw)
    }

    fn encode(&self) -> Result<Vec<u8>> {
        let prefix = match (self.entries.first(), self.entries.last()) {
            (Some(first), Some(last)) => {
                let (first, last) = (self.key(first), self.key(last));
                // Sorted, so what first and last share, all share.
                let common = shared_len(first, last).min(PREFIX_MAX);
                first.get(..common).unwrap_or_default()
            }
            _ => &[],
        };
        let base = self.entries.iter().map(|e| e.sequence).min().unwrap_or(0);
        // The estimate is from above but for long lengths, and for heads: 12 bytes a restart point.
        let restart_count = self.entries.len().div_ceil(self.restart_interval.max(1));
        let mut raw = Vec::with_capacity(self.estimated_bytes() + 12 * restart_count);
        raw.resize(HEADER_BYTES, 0);
        raw.extend_from_slice(prefix);
        let mut restarts: Vec<(u32, u64)> = Vec::with_capacity(restart_count);
        let mut previous: &[u8] = &[];
        for (i, entry) in self.entries.iter().enumerate() {
            let key = self.key(entry).get(prefix.len()..).unwrap_or_default();
            let shared = if i.is_multiple_of(self.restart_interval) {
                restarts.push((length32(raw.len())?, head(key)));
                0
            } else {
                shared_len(previous, key)
            };
            let suffix = key.get(shared..).unwrap_or_default();
            let value = self.value(entry);
            put_varint(&mut raw, shared as u64);
            put_varint(&mut raw, suffix.len() as u64);
            put_varint(&mut raw, entry.sequence - base);
            put_varint(&mut raw, ((value.len() as u64) << 3) | entry.kind as u64);
            raw.extend_from_slice(suffix);
            raw.extend_from_slice(value);
            previous = key;
        }
        let pad = raw.len().next_multiple_of(8) - raw.len();
        raw.resize(raw.len() + pad, 0);
        let heads_offset = length32(raw.len())?;
        for (_, head) in &restarts {
            raw.extend_from_slice(&head.to_le_bytes());
        }
        let wide = heads_offset > u32::from(u16::MAX);
        for (offset, _) in &restarts {
            match u16::try_from(*offset) {
                Ok(narrow) if !wide => raw.extend_from_slice(&narrow.to_le_bytes()),
                Ok(_) | Err(_) => raw.extend_from_slice(&offset.to_le_bytes()),
            }
        }
        raw.extend_from_slice(&heads_offset.to_le_bytes());
        raw.extend_from_slice(&[0; 4]);
        let restart_count = u16::try_from(restarts.len()).map_err(|_overflow| Error::TooLarge {
            what: "count of restart points of a block",
            size: restarts.len() as u64,
            limit: u64::from(u16::MAX),
        })?;
        let pad = u8::try_from(pad).unwrap_or_default();
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(&base.to_le_bytes());
        header.extend_from_slice(&length32(self.entries.len())?.to_le_bytes());
        header.extend_from_slice(&restart_count.to_le_bytes());
        header.push(u8::try_from(prefix.len()).unwrap_or(u8::MAX));
        header.push((pad << FLAG_PAD_SHIFT) | if wide { FLAG_WIDE } else { 0 });
        if let Some(place) = raw.first_chunk_mut::<HEADER_BYTES>() {
            place.copy_from_slice(&header);
        }
        Ok(raw)
    }
}

fn shared_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

fn length32(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_overflow| Error::TooLarge {
        what: "block",
        size: len as u64,
        limit: u64::from(u32::MAX),
    })
}
