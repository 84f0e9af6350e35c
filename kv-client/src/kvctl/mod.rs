//! `kvctl`, the command-line tool, as a library: the binary is nothing but a call of [`main`].
//!
//! It is here, behind the feature `cli`, and not in the binary, so that the integration tests run the
//! same code from a binary of their own and never a stale one.

use std::process::ExitCode;

/// Runs the program with the process's own arguments and environment.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::from(2)
}
