//! The programs: `kv-server run`, `dev`, `dev --demo`, `check-config`.
//!
//! Everything that belongs to a process and not to a library is here and nowhere else: arguments, the
//! environment, signals, the logger, the panic hook, exit codes. [`main`] is the whole binary; the
//! integration tests call the same function from a binary of their own, so that they never start a
//! stale one.
//!
//! * `args`: the command line, derived from the table of settings
//! * `run`: one node, until it is told to stop
//! * `check_config`: reads a file, names every mistake
//! * `dev`: a whole cluster on this machine, as child processes
//! * [`scenario`]: the founding scenario in named steps, played by `dev --demo` and by the tests
//! * `logging`, `signals`, [`exit`]: what their names say
//!
//! Standard output is for what scripts read, standard error for people.

mod args;
mod check_config;
mod dev;
pub mod exit;
mod logging;
mod output;
pub mod probe;
mod run;
pub mod scenario;
mod signals;

use std::process::ExitCode;

/// Runs the program with the process's own arguments and environment.
///
/// Installs a logger and a panic hook and waits for signals, so it is called once per process.
#[must_use]
pub fn main() -> ExitCode {
    let matches = match args::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version are no errors; clap knows which of the two outputs each belongs to.
            let code = if error.use_stderr() { exit::USAGE } else { exit::DONE };
            return match error.print() {
                Ok(()) => code.into(),
                Err(_closed_output) => code.into(),
            };
        }
    };
    let code = match matches.subcommand() {
        Some(("run", matches)) => run::run(matches),
        Some(("dev", matches)) => dev::run(matches),
        Some(("check-config", matches)) => check_config::run(matches),
        Some(_) | None => exit::USAGE,
    };
    code.into()
}
