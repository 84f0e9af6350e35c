//! The state machine: what committed commands do to the engine, and how the result is read.
//!
//! * [`command`]: the bytes of commands · `row`: the bytes under a key · `state`: the numbers kept with
//!   each position · `session`: exactly-once retries · [`retention`]: how much history is kept
//! * [`Applier`]: one owner, one committed chunk = one run of the engine, published once
//! * [`StateReader`]: any number of readers, over views of the engine
//!
//! Invariants:
//! 1. Apply is total and pure over (state, entry): no clock, no setting, no randomness, no hash order
//!    (RAFT B31). What depends on this machine alone (a failed read, a full disk) stops the node.
//! 2. A successful change takes the next revision of the store; refused conditions, empty deletes and
//!    repeated commands take none. The revision is the engine's sequence number in the partition `data`.
//! 3. Position, revision, state hash and cluster time become visible together with the data, in one
//!    publish, and are durable together with it in one edit of the manifest (RAFT B21).
//! 4. Everything above the engine's durable position is applied again from the log after a restart, with
//!    the same result; nothing here syncs on the way of a write.

mod applier;
pub mod command;
mod reader;
pub mod retention;
mod row;
mod session;
mod state;
#[cfg(test)]
mod tests;

use lsm_store::{Keep, PartitionId, PartitionOptions};

pub use applier::{Applier, ApplyError};
pub use reader::StateReader;
pub use session::{EVICTED, IDLE_MAX_MS, OUTSTANDING_MAX, SESSIONS_MAX};
pub use state::FIRST_REVISION;

/// Keys and values; the sequence number is the store's revision, and history is kept.
pub(crate) const DATA: PartitionId = PartitionId(0);

/// Sessions; the sequence number is the log index, and only the newest version is kept.
pub(crate) const META: PartitionId = PartitionId(1);

/// The partitions of the engine, in the order of their ids.
pub(crate) fn partitions() -> Vec<PartitionOptions> {
    vec![
        PartitionOptions { name: "data".to_owned(), keep: Keep::All },
        PartitionOptions { name: "meta".to_owned(), keep: Keep::NewestOnly },
    ]
}
