//! Configuration: what a node is told from outside, and how it is read, merged and checked.
//!
//! ```text
//!   flags ─┐
//!   KV_… ──┼─► layers (text by setting, with its origin) ─► resolve ─► ServerConfig + LogConfig
//!   TOML ──┘                                                or every error at once
//! ```
//!
//! * `server`: the plain structs that a node starts from, with the defaults.
//! * [`units`]: durations and sizes as text; a duration always has a unit.
//! * [`cluster`]: the list of members, `1=PEER/CLIENT,2=…`.
//! * [`setting`]: the one table of settings; flags, environment and file are all derived from it.
//! * [`file`]: TOML to (setting, text, line); unknown keys are errors that name the nearest known one.
//! * `resolve`: precedence and validation.
//!
//! Invariants
//! 1. A setting exists once, in [`setting::SETTINGS`]; nothing else knows a flag, a variable or a key.
//! 2. Reading a configuration never stops at the first error.
//! 3. Nothing here reads the process's environment or the clock; the binary passes them in.

pub mod cluster;
pub mod file;
mod resolve;
mod server;
pub mod setting;
pub mod units;

pub use resolve::{
    ConfigError, Given, LogConfig, LogFormat, Missing, Origin, Resolved, from_variables, resolve,
};
pub use server::{Limits, RaftSettings, ServerConfig, StorageSettings};

/// What is logged if nobody says: everything of interest to an operator. `tarpc` opens a span for
/// every call at info level, which costs more than the call.
pub const DEFAULT_LOG_FILTER: &str = "info,tarpc=warn";
