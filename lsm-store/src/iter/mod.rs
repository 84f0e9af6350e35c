//! Iterators over entries in internal-key order, and what is built from them.
//!
//! ```text
//!   memtable ─┐
//!   L0 table ─┤                          visibility (store::Iter)
//!   L0 table ─┼── merging (MergeIter) ──► newest version at or below a sequence number
//!   L1 level ─┤                     └──► flush and compaction (every version)
//!   L2 level ─┘
//! ```
//!
//! Rules:
//! 1. A move that fails returns the error and leaves the iterator not valid; not valid without an error
//!    means the end. An error never looks like the end.
//! 2. Keys and values are borrowed from the block or the memtable copy the iterator stands on; a step
//!    allocates nothing, counts no references and calls nothing through a pointer.
//! 3. A change of direction is an absolute search of every source, never a guess from where it stands: `next`
//!    follows a search forward (`seek`, `seek_to_first`), `prev` one backward (`seek_for_prev`, `seek_to_last`).
//!    Both are for an iterator that is valid.
//! 4. Bounds are the sources' business: going forward a source ends at the upper bound, going backward at the
//!    lower one. They are compared once per block where that decides; tables outside are not touched.

pub(crate) mod bounds;
pub(crate) mod level;
pub(crate) mod mem;
pub(crate) mod merge;
pub(crate) mod reading;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::error::Result;
use crate::internal_key::Kind;

/// A source of entries in internal-key order. `key`, `sequence`, `kind` and `value` mean something only
/// while `valid`.
pub(crate) trait InternalIter {
    fn valid(&self) -> bool;
    fn key(&self) -> &[u8];
    fn sequence(&self) -> u64;
    fn kind(&self) -> Kind;
    fn value(&self) -> &[u8];
    /// The value, sharing memory with the source.
    fn value_bytes(&self) -> Bytes;
    fn seek_to_first(&mut self) -> Result<()>;
    fn seek_to_last(&mut self) -> Result<()>;
    /// To the first entry at or after `(key, sequence)`.
    fn seek(&mut self, key: &[u8], sequence: u64) -> Result<()>;
    /// To the last entry at or before `(key, sequence)`.
    fn seek_for_prev(&mut self, key: &[u8], sequence: u64) -> Result<()>;
    /// To the entry after the one it stands on; after a search forward.
    fn next(&mut self) -> Result<()>;
    /// To the entry before the one it stands on; after a search backward.
    fn prev(&mut self) -> Result<()>;
}
