//! Sorted tables: immutable files of entries in internal-key order.
//!
//! ```text
//! [data block]*  [filter partition]*  [index partition]*  [top block]  [properties]  [footer 96 B]
//! ```
//!
//! A lookup walks footer → top block (in memory while the table is open) → filter partition → index
//! partition → data block. `FORMAT.md` has every byte.
//!
//! Invariants:
//! 1. Every byte of the file is covered by a checksum bound to the table's uid and the block's offset.
//! 2. Keys rise strictly (user key ascending, sequence number descending): checked when written.
//! 3. A user key is in one table of a level only, and in one partition of a table only.
//! 4. Decoders check every length against what holds it; what does not decode is
//!    [`Error::Corruption`](crate::Error::Corruption) with file and offset, never absence.

pub(crate) mod block;
pub(crate) mod block_builder;
pub(crate) mod block_iter;
pub(crate) mod builder;
pub(crate) mod damage;
pub(crate) mod ends;
pub(crate) mod filter;
pub(crate) mod format;
pub(crate) mod index;
pub(crate) mod iter;
pub(crate) mod key_index;
pub(crate) mod pieces;
pub(crate) mod properties;
pub(crate) mod read_ahead;
pub(crate) mod reader;
pub(crate) mod slot;
pub(crate) mod top;
pub(crate) mod verify;

use crate::internal_key::{InternalKey, Kind};
use crate::types::FileNumber;

/// Quantiles kept of when a table's entries were superseded.
pub(crate) const QUANTILES: usize = 8;

/// What the manifest knows of a table; repeated in the table's own footer and properties.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TableMeta {
    pub(crate) partition: u8,
    pub(crate) number: FileNumber,
    /// Embedded in the file; its checksums are bound to it.
    pub(crate) uid: u128,
    /// Length of the file in bytes.
    pub(crate) len: u64,
    /// XXH3-128 of the whole file.
    pub(crate) digest: u128,
    pub(crate) smallest: InternalKey,
    pub(crate) largest: InternalKey,
    pub(crate) min_sequence: u64,
    pub(crate) max_sequence: u64,
    pub(crate) entries: u64,
    pub(crate) deletes: u64,
    /// Entries that a newer version in the same table shadows, and deletes.
    pub(crate) superseded: u64,
    /// 8-quantiles, ascending, of the sequence numbers that superseded them (a delete supersedes itself);
    /// zeros without any. Tells how much is garbage once a retention floor is reached.
    pub(crate) superseded_at: [u64; QUANTILES],
    /// Sum of [`entry_digest`] over the entries, modulo 2^64.
    pub(crate) kv_digest: u64,
}

impl TableMeta {
    /// Entries that certainly may go (or may go once nothing older is below) when the floor is `floor`.
    pub(crate) fn garbage_at(&self, floor: u64) -> u64 {
        let passed = self.superseded_at.iter().filter(|&&at| at != 0 && at <= floor).count() as u64;
        self.superseded * passed / QUANTILES as u64
    }
}

/// The digest of one entry. Sums of it do not depend on order, so what a job read must equal what it
/// wrote plus what it dropped.
pub(crate) fn entry_digest(
    scratch: &mut Vec<u8>,
    key: &[u8],
    sequence: u64,
    kind: Kind,
    value: &[u8],
) -> u64 {
    scratch.clear();
    scratch.extend_from_slice(&(key.len() as u64).to_le_bytes());
    scratch.extend_from_slice(key);
    scratch.extend_from_slice(&sequence.to_le_bytes());
    scratch.push(kind as u8);
    scratch.extend_from_slice(value);
    crate::checksum::hash(scratch)
}
