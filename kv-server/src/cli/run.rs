//! `kv-server run`: one node, until it is told to stop or cannot go on.
//!
//! Order: read the whole configuration (every mistake is named, exit 2); install the logger and the
//! panic hook; start the node (a refusal is one line, exit 1); wait for a signal, for the end of
//! standard input if asked to, or for a failure of the node itself (exit 3).

use std::{env, path::PathBuf, thread};

use clap::ArgMatches;
use tokio::{runtime, sync::oneshot};

use super::{
    args::settings_from_flags,
    check_config::{check_filter, read_file, report},
    exit, logging, output,
    signals::{StopSignals, stdin_closed},
};
use crate::{
    config::{self, ConfigError, Missing, Origin, Resolved, ServerConfig},
    server::Server,
};

/// Runs the node.
pub(super) fn run(matches: &ArgMatches) -> exit::Code {
    let (resolved, strange) = match configure(matches) {
        Ok(configured) => configured,
        Err(errors) => {
            report(&errors);
            return exit::USAGE;
        }
    };
    let Some(server) = resolved.server else { return exit::USAGE };
    if let Err(message) = logging::install(&resolved.log) {
        output::narrate(&format!("error: {message}"));
        return exit::USAGE;
    }
    logging::abort_on_panic();
    for name in strange {
        tracing::warn!(
            variable = name,
            "an environment variable begins like a setting but is none"
        );
    }
    warn_of_exposure(&server);
    serve(&server, matches.get_flag("exit-on-stdin-close"))
}

/// Everything that was given, merged and checked, and the variables that look like settings but are none.
fn configure(matches: &ArgMatches) -> Result<(Resolved, Vec<String>), Vec<ConfigError>> {
    let path = matches
        .get_one::<String>("config")
        .map(PathBuf::from)
        .or_else(|| env::var_os("KV_CONFIG").map(PathBuf::from));
    let (mut given, mut errors) = match path {
        Some(path) => read_file(&path),
        None => (Vec::new(), Vec::new()),
    };
    let mut variables = Vec::new();
    for (name, value) in env::vars_os() {
        // A name that is not UTF-8 is no setting's.
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => variables.push((name, value)),
            Err(_) if !name.starts_with("KV_") => {}
            Err(value) => errors.push(ConfigError {
                origin: Some(Origin::Variable(name)),
                message: format!("`{}` is not UTF-8", value.display()),
            }),
        }
    }
    let (from_variables, variable_errors, strange) = config::from_variables(variables);
    given.extend(from_variables);
    errors.extend(variable_errors);
    given.extend(settings_from_flags(matches));
    match config::resolve(given, Missing::Refused) {
        Ok(resolved) => {
            errors.extend(check_filter(&resolved.log));
            if errors.is_empty() { Ok((resolved, strange)) } else { Err(errors) }
        }
        Err(more) => {
            errors.extend(more);
            Err(errors)
        }
    }
}

/// Says once what anybody on the network can do.
fn warn_of_exposure(server: &ServerConfig) {
    let exposed: Vec<String> = [(server.listen_client, "clients"), (server.listen_peer, "peers")]
        .into_iter()
        .filter(|(address, _)| !address.ip().is_loopback())
        .map(|(address, of)| format!("{address} ({of})"))
        .collect();
    if !exposed.is_empty() {
        tracing::warn!(
            listening = exposed.join(", "),
            "connections are neither encrypted nor authenticated: whoever reaches these ports can read and write everything"
        );
    }
}

fn refuse(message: &str) -> exit::Code {
    // The logger writes to the same place; a person without a terminal still gets the line.
    output::narrate(&format!("error: {message}"));
    exit::REFUSED
}

fn serve(config: &ServerConfig, exit_on_stdin_close: bool) -> exit::Code {
    // A runtime of its own: the node's ends with the node, and signals have to be heard until then.
    let listening =
        runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
            let signals = runtime.block_on(async { StopSignals::listen() })?;
            let stdin = exit_on_stdin_close.then(stdin_closed).transpose()?;
            Ok((runtime, signals, stdin))
        });
    let (runtime, signals, stdin) = match listening {
        Ok(listening) => listening,
        Err(error) => return refuse(&format!("cannot listen for signals: {error}")),
    };
    let server = match Server::start(config) {
        Ok(server) => server,
        Err(error) => return refuse(&error.to_string()),
    };
    let stop = server.stop_handle();
    let wait_for_stop = move || {
        let reason = runtime.block_on(told_to_stop(signals, stdin));
        tracing::info!(reason, "stopping");
        stop.stop();
    };
    if let Err(error) = thread::Builder::new().name("kv-signals".to_owned()).spawn(wait_for_stop) {
        return refuse(&format!("cannot start a thread: {error}"));
    }
    match server.wait() {
        Ok(()) => exit::DONE,
        Err(failure) => {
            output::narrate(&format!("error: {failure}"));
            exit::FAILED
        }
    }
}

async fn told_to_stop(
    mut signals: StopSignals,
    stdin: Option<oneshot::Receiver<()>>,
) -> &'static str {
    tokio::select! {
        name = signals.next() => name,
        () = ended(stdin) => "standard input has ended",
    }
}

/// Completes when standard input has ended; never if nobody watches it.
async fn ended(stdin: Option<oneshot::Receiver<()>>) {
    match stdin {
        // An error means that the watching thread is gone, and so is standard input.
        Some(closed) => drop(closed.await),
        None => std::future::pending().await,
    }
}
