//! The Raft consensus state machine: pure, deterministic, without any I/O.
#![no_std]

extern crate alloc;

pub mod codec;
mod io;
mod membership;
mod message;
mod types;

pub use io::*;
pub use membership::*;
pub use message::*;
pub use types::*;
