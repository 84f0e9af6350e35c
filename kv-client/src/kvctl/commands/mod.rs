//! The commands, one a file, and what they share: the client they use and how arguments become
//! keys, ranges and consistencies.

mod bench;
mod export;
mod import;
mod keys;
mod pipe;
mod range;
mod status;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use crate::{Client, ClientBuilder, Consistency, KeyRange};
use bytes::Bytes;
use clap::CommandFactory as _;

use crate::kvctl::args::{Bounds, Cli, Command, Global, Stale};
use crate::kvctl::failure::Failure;

/// Does what the command line asks.
pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    let global = cli.global;
    match cli.command {
        Command::Put(put) => keys::put(&global, put).await,
        Command::Get(get) => keys::get(&global, get).await,
        Command::Del(del) => keys::del(&global, del).await,
        Command::Range(range) => range::range(&global, range).await,
        Command::Import(import) => import::import(&global, import).await,
        Command::Export(export) => export::export(&global, export).await,
        Command::Pipe => pipe::pipe(&global).await,
        Command::Status(status) => status::status(&global, status).await,
        Command::Bench(bench) => bench::bench(&global, bench).await,
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kvctl", &mut script);
    let mut output = crate::kvctl::output::Output::with_format(crate::kvctl::args::Format::Plain);
    output.bytes(&script)?;
    output.flush()
}

fn builder(global: &Global) -> ClientBuilder {
    Client::builder()
        .endpoints(global.endpoints.iter().map(|endpoint| endpoint.trim()))
        .timeout(global.timeout)
}

/// A client that connects when first used, so that every error comes from the request itself.
fn client(global: &Global) -> Result<Client, Failure> {
    builder(global).connect_lazily().map_err(Failure::Read)
}

fn bytes(argument: OsString) -> Bytes {
    Bytes::from(argument.into_vec())
}

fn consistency(stale: &Stale) -> Consistency {
    match stale.stale {
        None => Consistency::Linearizable,
        Some(max_age) => Consistency::Stale { max_age },
    }
}

fn prefix_range(prefix: Option<&OsStr>) -> KeyRange {
    match prefix {
        Some(prefix) => crate::prefix(prefix.as_bytes()),
        None => crate::all(),
    }
}

fn bounds_range(bounds: Bounds) -> KeyRange {
    match bounds {
        Bounds { prefix: Some(prefix), .. } => prefix_range(Some(&prefix)),
        Bounds { prefix: None, from, to } => {
            KeyRange { start: from.map_or_else(Bytes::new, bytes), end: to.map(bytes) }
        }
    }
}

/// How long something took or may take, for people.
fn seconds_text(duration: std::time::Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
