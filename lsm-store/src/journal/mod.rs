//! A log of records in segments: append, sync, replay after a crash, read by address.
//!
//! It serves as the write-ahead log of a stand-alone store and as the replicated log of a server.
//!
//! ```text
//! append ─► buffer ─► one write, one sync ─► durable          segment 1 ◄─seal─ segment 2 ◄─seal─ segment 3
//!                                                                whole            whole           may be torn
//! ```
//!
//! Rules that hold everywhere in here:
//! 1. A segment gets its name only when its header is durable: it is written in `tmp/`, synced, renamed. Both
//!    directories are synced before anything in it is said to be durable.
//! 2. A segment seals its predecessor: number, end and last checksum. In its header, or, if it was prepared
//!    before the other ended, in its first record, the joint.
//! 3. Every record carries how far its segment was synced when it was encoded, together with all older
//!    ones. Damage below such a promise is an error that names file and offset; above it is a torn tail.
//! 4. Nothing is ever appended to a recovered segment, and nothing on disk is changed in place.
//! 5. The first failed append or sync ends the writer for good: what is on disk is unknown until the
//!    journal is opened again.
//! 6. An I/O error while reading is an error, never the end of the log.
//!
//! `recovery.rs` says what happens at open, `end.rs` and `scan.rs` how a torn tail is told from damage, `upkeep.rs`
//! what is done beside the appends.

mod counters;
mod draft;
pub(crate) mod end;
mod reader;
pub mod record;
mod recovery;
mod remover;
#[cfg(test)]
mod roll_tests;
pub(crate) mod scan;
pub mod segment;
#[cfg(test)]
mod space_tests;
mod syncer;
#[cfg(test)]
mod tests;
mod upkeep;
mod writer;

use bytes::Bytes;

pub use counters::JournalMetrics;
pub use reader::JournalReader;
pub(crate) use recovery::BorrowedRecord;
pub use recovery::{Recovery, TornTail};
pub(crate) use remover::SegmentRemover;
pub use syncer::PendingSync;
pub use writer::Journal;

/// Where a record is. Orders like the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordAddress {
    /// The segment's number, from 1.
    pub segment: u64,
    /// The record's first byte in the segment's file.
    pub offset: u64,
}

/// A record as it was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// [`record::kind::HEAD`] for a segment's head record, else what the caller gave.
    pub kind: u8,
    /// The caller's sequence number.
    pub sequence: u64,
    /// The payload; owns exactly its own bytes.
    pub payload: Bytes,
}

/// How a journal is kept.
#[derive(Debug, Clone)]
pub struct JournalOptions {
    /// Whose journal it is: segments of another store are refused.
    pub store_id: u128,
    /// A new segment is begun before a record that would make the present one larger than this many
    /// bytes. At least 4096; a single larger record still fits.
    pub segment_bytes: u64,
    /// Whether space is reserved, in steps, before it is written: a full disk is then noticed before anything
    /// of the log is touched.
    pub preallocate: bool,
    /// The largest payload accepted, at most [`record::MAX_PAYLOAD_BYTES`].
    pub max_record_bytes: u32,
    /// Where epochs come from, together with the number of the newest segment found: entropy in production, a
    /// seed in a simulation.
    pub epoch_seed: u64,
    /// Whether a thread of the journal prepares segments, syncs those that were ended and removes those that
    /// are not needed, so that no append waits for it. Without, the caller's thread does it all.
    pub helper: bool,
    /// The oldest segment that must be there; older ones are removed at open. 0: not known, the oldest
    /// one found is the first.
    pub oldest_needed: u64,
}

impl JournalOptions {
    /// Segments of 64 MiB, preallocated, records up to 64 MiB.
    pub fn new(store_id: u128, epoch_seed: u64) -> Self {
        Self {
            store_id,
            segment_bytes: 64 << 20,
            preallocate: true,
            max_record_bytes: record::MAX_PAYLOAD_BYTES,
            epoch_seed,
            helper: false,
            oldest_needed: 0,
        }
    }
}
