//! Copies of neighbouring entries, taken under the lock and read without it.
//!
//! Keys and small values lie in one buffer, which is used again by the next copy unless somebody still
//! holds a value of it; large values are shared.

use bytes::{Bytes, BytesMut};

use super::arena::{RecordRef, Target};
use crate::internal_key::Kind;

/// A copy ends once it has this many bytes: readers hold the lock for microseconds.
const STRETCH_BYTES: usize = 16 * 1024;

/// Where the value of a copied entry is.
#[derive(Clone, Copy, Debug)]
enum Value {
    /// In the buffer, behind the key, this long.
    Copied(usize),
    /// A large one, by its number in the stretch.
    Shared(usize),
}

/// A copied entry.
#[derive(Clone, Copy, Debug)]
struct Row {
    key_at: usize,
    key_len: usize,
    sequence: u64,
    kind: Kind,
    value: Value,
}

/// Where in a tree the last entry was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    pub(super) leaf: u32,
    pub(super) at: usize,
    pub(super) record: RecordRef,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Stretch {
    /// While entries are added.
    filling: BytesMut,
    /// When it is complete.
    buffer: Bytes,
    rows: Vec<Row>,
    large: Vec<Bytes>,
    cursor: Option<Cursor>,
}

impl Stretch {
    pub(crate) const fn len(&self) -> usize {
        self.rows.len()
    }

    #[cfg(test)]
    pub(crate) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The key of an entry; empty past the end.
    pub(crate) fn key(&self, at: usize) -> &[u8] {
        self.rows.get(at).map_or(&[], |row| &self.buffer[row.key_at..row.key_at + row.key_len])
    }

    /// The sequence number of an entry; 0 past the end.
    pub(crate) fn sequence(&self, at: usize) -> u64 {
        self.rows.get(at).map_or(0, |row| row.sequence)
    }

    pub(crate) fn kind(&self, at: usize) -> Kind {
        self.rows.get(at).map_or(Kind::Value, |row| row.kind)
    }

    /// The value of an entry; empty past the end.
    pub(crate) fn value(&self, at: usize) -> &[u8] {
        self.rows.get(at).map_or(&[], |row| match row.value {
            Value::Copied(len) => &self.buffer[row.key_at + row.key_len..][..len],
            Value::Shared(number) => &self.large[number],
        })
    }

    /// The value of an entry, sharing memory with the stretch; empty past the end.
    pub(crate) fn value_bytes(&self, at: usize) -> Bytes {
        self.rows.get(at).map_or_else(Bytes::new, |row| match row.value {
            Value::Copied(len) => {
                let start = row.key_at + row.key_len;
                self.buffer.slice(start..start + len)
            }
            Value::Shared(number) => self.large[number].clone(),
        })
    }

    /// Forgets all entries; entries may be added until [`finish`](Self::finish).
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.large.clear();
        self.cursor = None;
        self.filling = std::mem::take(&mut self.buffer).try_into_mut().unwrap_or_default();
        self.filling.clear();
    }

    /// Whether another entry may follow, of `max` at most.
    pub(super) fn has_room(&self, max: usize) -> bool {
        self.rows.len() < max && self.filling.len() < STRETCH_BYTES
    }

    /// Adds a copy of an entry; `Err` is a large value.
    pub(super) fn push(
        &mut self,
        target: Target<'_>,
        kind: Kind,
        value: Result<&[u8], &Bytes>,
        cursor: Option<Cursor>,
    ) {
        let key_at = self.filling.len();
        self.filling.extend_from_slice(target.key);
        let value = match value {
            Ok(small) => {
                self.filling.extend_from_slice(small);
                Value::Copied(small.len())
            }
            Err(large) => {
                self.large.push(large.clone());
                Value::Shared(self.large.len() - 1)
            }
        };
        let (key_len, sequence) = (target.key.len(), target.sequence);
        self.rows.push(Row { key_at, key_len, sequence, kind, value });
        self.cursor = cursor;
    }

    /// Ends the copy.
    pub(super) fn finish(&mut self) {
        self.buffer = std::mem::take(&mut self.filling).freeze();
    }

    /// Where the last entry was.
    pub(super) const fn cursor(&self) -> Option<Cursor> {
        self.cursor
    }

    /// The internal key of the last entry.
    pub(super) fn last(&self) -> Target<'_> {
        let last = self.len().saturating_sub(1);
        Target { key: self.key(last), sequence: self.sequence(last) }
    }
}
