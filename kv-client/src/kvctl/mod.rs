//! `kvctl`: the store from a terminal or a script.
//!
//! `args` says what may be asked, `commands` do it through the `kv-client` library, `output` and
//! `json` print it, `failure` has the exit codes. Here: the runtime, signals, and how it ends.
//!
//! One thread runs everything: callers wake the connection's task only after all of them have
//! queued what they want, so that batches form without a wake-up between threads. What blocks
//! (standard input, files, a slow reader of standard output) has threads of its own.
//!
//! It is a module of the library, behind the feature `cli`, and the binary a call of [`main`]: the
//! integration tests run the same code from a binary of their own, and so never a stale one.

mod args;
mod commands;
mod failure;
mod json;
mod output;

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind as UsageKind;

use crate::kvctl::args::{Cli, Format};
use crate::kvctl::failure::{Failure, Report};
use crate::kvctl::output::{narrate, print_error};

/// Runs the program with the process's own arguments and environment.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let json = cli.global.output == Some(Format::Json);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            narrate(&format!("error: cannot start: {error}"));
            return ExitCode::from(7);
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            // A command that has something to say about an interruption goes first.
            biased;
            ended = commands::run(cli) => ended,
            interrupted = tokio::signal::ctrl_c() => match interrupted {
                Ok(()) => Err(Failure::Interrupted),
                Err(error) => Err(Failure::io("cannot wait for signals", error)),
            },
        }
    });
    // A thread may be waiting for standard input for ever.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(report) = failure.report() {
                print_error(&report, json);
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Help and version are answers; everything else the parser refuses is wrong usage.
fn usage(error: &clap::Error) -> ExitCode {
    let is_answer = matches!(error.kind(), UsageKind::DisplayHelp | UsageKind::DisplayVersion);
    if !is_answer && asks_for_json() {
        let text = error.to_string();
        let mut lines = text.lines().filter(|line| !line.trim().is_empty());
        let first = lines.next().unwrap_or("wrong usage");
        let report = Report {
            error: first.trim_start_matches("error: ").to_owned(),
            kind: "bad_input",
            effect: "none",
            retryable: false,
            hint: "kvctl --help".to_owned(),
        };
        print_error(&report, true);
    } else if error.print().is_err() {
        // Nobody reads it any more.
        return ExitCode::from(if is_answer { 0 } else { 2 });
    }
    ExitCode::from(if is_answer { 0 } else { 2 })
}

/// Whether the arguments, which could not be parsed, ask for JSON.
fn asks_for_json() -> bool {
    let arguments: Vec<_> = std::env::args_os().collect();
    arguments.iter().any(|argument| argument == "-ojson" || argument == "--output=json")
        || arguments
            .windows(2)
            .any(|pair| (pair[0] == "-o" || pair[0] == "--output") && pair[1] == "json")
}
