//! The Raft consensus state machine: pure, deterministic, without any I/O.
#![no_std]

extern crate alloc;

pub mod codec;
mod config;
mod io;
mod membership;
mod message;
mod raft;
mod recovered;
mod status;
mod types;

pub use config::*;
pub use io::*;
pub use membership::*;
pub use message::*;
pub use raft::*;
pub use recovered::*;
pub use status::*;
pub use types::*;
