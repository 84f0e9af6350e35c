//! A node without threads, sockets and clocks: consensus, log and state machine as synchronous machines.
//!
//! [`open()`] gives the [`Parts`]: [`Consensus`] (raft-core and the waiting callers), [`LogWriter`] (append
//! and sync), [`Applier`] (the state machine), [`LogReader`] (old entries) and [`StateReader`] (reads).
//! They share nothing that changes but the published state, and exchange owned values ([`io`]). The server
//! runs each on a thread of its own; the simulation runs those of many nodes in one thread.
//!
//! ```text
//! loop {
//!     for input in drained { consensus.handle(now, input) }      // messages and jobs first, then Timer
//!     consensus.flush(now, &mut outputs);
//!     hand over outputs; sleep until consensus.deadline() or the next input
//! }
//! ```
//!
//! Invariants:
//! 1. A job list is done in order by one owner; nothing here waits, sleeps or spawns.
//! 2. Every result depends on the inputs, the seed and the bytes on disk alone.
//! 3. After [`Outputs::fatal`] nothing more comes out; the process has to stop.

mod cluster_clock;
mod config;
mod consensus;
mod flush_policy;
pub mod io;
mod open;
mod peer_pins;
mod pending;
mod status;

pub use config::*;
pub use consensus::Consensus;
pub use io::*;
pub use lsm_store::Executor;
pub use open::{OpenError, Parts, StartReport, open};
pub use peer_pins::{PeerPins, PeerRefused};
pub use status::ReplicaStatus;

pub use crate::raft_log::{LogReader, LogWriter};
pub use crate::state_machine::{Applier, StateReader};
