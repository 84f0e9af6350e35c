#![doc = include_str!("../README.md")]

#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod identity;
pub mod limits;
pub mod raft_log;
pub mod replica;
pub mod server;
mod small_file;
pub mod state_machine;

pub use server::{Listeners, Server, ServerFailure, StartError, StopHandle};
pub use small_file::SmallFileError;
