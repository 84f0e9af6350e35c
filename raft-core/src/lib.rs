//! The Raft consensus state machine: pure, deterministic, without any I/O.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod apply;
pub mod codec;
mod common;
mod config;
mod io;
mod log;
mod membership;
mod message;
mod outbox;
mod progress;
mod raft;
mod read_index;
mod recovered;
mod role;
mod status;
mod types;
mod unapplied;
mod writer;

pub use config::*;
pub use io::*;
pub use membership::*;
pub use message::*;
pub use raft::*;
pub use recovered::*;
pub use status::*;
pub use types::*;
