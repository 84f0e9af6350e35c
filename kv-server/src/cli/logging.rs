//! The logger and the panic hook of the binary. The libraries log through `tracing` and install neither.

use std::{
    env,
    io::{self, IsTerminal as _},
    panic, process,
};

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Reads a filter.
///
/// # Errors
/// Says what is wrong with it.
pub(super) fn filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(text).map_err(|error| {
        format!("`{text}` is no log filter ({error}), expected one as `info` or `kv_server=debug,tarpc=warn`")
    })
}

/// Logs to standard error from now on: text (with colours on a terminal) or JSON.
///
/// # Errors
/// If the filter cannot be read, or a logger is there already.
pub(super) fn install(log: &LogConfig) -> Result<(), String> {
    let filter = filter(&log.filter)?;
    // Whoever reads the log may go away; complaining about that on the same closed pipe would panic, and
    // a node must not die of its log.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .log_internal_errors(false);
    let installed = match log.format {
        LogFormat::Text => {
            let colours = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colours).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    installed.map_err(|error| format!("cannot install the logger: {error}"))
}

/// Makes a panic of any thread log its message and end the process at once.
///
/// A node that goes on without one of its threads could answer for what nobody does any more. What it
/// acknowledged is on disk, so ending at once is safe; the supervisor sees an abort.
pub(super) fn abort_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            location = info.location().map(ToString::to_string),
            message = info.payload_as_str().unwrap_or("no message"),
            "panic: the node ends at once"
        );
        report(info);
        process::abort();
    }));
}
