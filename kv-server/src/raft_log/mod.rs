//! The replicated log on the journal: the one durable stream of a replica, and its write-ahead log.
//!
//! * `record`: the bytes of records · `log_state`: what they amount to · `entry_index`: where entries are
//! * [`LogWriter`]: append and sync · [`LogReader`]: old entries · `recovery`: from the records to a start
//!
//! Invariants:
//! 1. Units are appended in the order the core gave them, and reported durable as a prefix, after a sync.
//!    Many units share one sync. The first failure is final (RAFT B18).
//! 2. A unit is one record, so ballot, truncation and entries take effect together or not at all (RAFT B2,
//!    B3, B6); its commit hint never runs ahead of the entries in the same or an earlier record.
//! 3. Every segment begins with a head record that says what all earlier records amount to.
//! 4. Entries are never changed in place; a truncation is a record like any other.
//! 5. A torn tail is cut by the journal; damage below what was synced, and records that do not continue
//!    one another, refuse the start by file and offset (RAFT B19).

mod entry_index;
mod log_state;
mod reader;
mod record;
mod recovery;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use log_state::LogState;
pub use reader::LogReader;
pub use record::RECORD_FORMAT;
pub(crate) use recovery::{LogOptions, OpenedLog, open};
pub use writer::LogWriter;

/// The kind of journal record that holds one durable unit.
const KIND_WRITES: u8 = lsm_store::journal::record::kind::APPLICATION;
