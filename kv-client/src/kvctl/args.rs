//! The command line: what may be said, and what it means.
//!
//! Parsing only. Rules that need more than one argument are told to the parser as conflicts and
//! groups, so that `--help` and the error texts know them too.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// The client addresses of a cluster started with `kv-server dev`.
const DEFAULT_ENDPOINTS: &str = "127.0.0.1:3331,127.0.0.1:3332,127.0.0.1:3333,127.0.0.1:3334";

const PIPE_HELP: &str = r#"Work off JSON requests, one a line, from standard input; for programs.

{"id":1,"op":"put|get|delete|cas|range","key":…,"value":…,"expect":…|null,"timeout_ms":5000,
"consistency":"linearizable|session|stale"}; for range "prefix" or "from"/"to", and "limit".

Answers come one a line in the order of completion: {"id":1,"result":…,"revision":…}, or
{"id":1,"error":…,"kind":…,"effect":"none|unknown"}. At most 1,024 requests are under way; then
input is not read. Order two requests by waiting for the first one's answer."#;

/// Talks to a kv-server cluster: reads and writes keys, moves data in and out, shows the cluster,
/// measures it.
///
/// Exit codes: 0 done; 1 `get` found nothing, or a condition failed; 2 wrong usage or bad input;
/// 3 no leader, no answer or overloaded, and nothing applied, or a read failed; 4 refused (too
/// large, no space, not permitted); 5 outcome of a write unknown; 6 a check found a problem;
/// 7 local input or output; 130 interrupted.
#[derive(Parser, Debug)]
#[command(name = "kvctl", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Client addresses of the nodes, HOST:PORT, separated by commas. With exactly one, every
    /// request goes to that node.
    #[arg(
        long,
        global = true,
        env = "KVCTL_ENDPOINTS",
        value_name = "A,B,…",
        value_delimiter = ',',
        default_value = DEFAULT_ENDPOINTS,
        hide_env_values = true
    )]
    pub(crate) endpoints: Vec<String>,
    /// How long a request may take, over all its attempts; with a unit, as 5s or 500ms.
    #[arg(long, global = true, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// How to print results. Unset: `get` prints the value; everything else is a table on a
    /// terminal and plain elsewhere.
    #[arg(short, long, global = true, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
    /// Don't ask before destroying much.
    #[arg(long, global = true)]
    pub(crate) yes: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For line-oriented tools: fields separated by tabs; tab, newline, backslash and what is not
    /// UTF-8 escaped.
    Plain,
    /// One document, or one object a line. What is not UTF-8 appears as `…_base64`.
    Json,
    /// Exactly the bytes of the value; for `get` only.
    Raw,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Store a value.
    Put(Put),
    /// Print the value of a key; exit code 1 if there is none.
    Get(Get),
    /// Remove a key, or all keys with a prefix.
    Del(Del),
    /// List keys and values in key order, all at one revision.
    Range(Range),
    /// Store every line of a file of {"key":…,"value":…} lines.
    ///
    /// Lines with the same key take effect in file order. Leader changes are waited out; --timeout
    /// is the time for one request to one node. The import gives up with exit code 3 when a line
    /// can't be stored for --patience; running it again is safe.
    Import(Import),
    /// Print every key as a {"key":…,"value":…} line, in key order, at one revision.
    Export(Export),
    /// Work off JSON requests, one a line, from standard input; for programs.
    #[command(long_about = PIPE_HELP)]
    Pipe,
    /// Show the members, the leader and the health of the cluster: exit code 0 with a leader and a
    /// quorum, 6 without, 3 if nobody answered.
    Status(Status),
    /// Put load on the cluster and measure it, with keys of its own that are removed afterwards.
    Bench(Bench),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Put {
    /// The key, 1 to 4096 bytes.
    pub(crate) key: OsString,
    /// The value, which may begin with '-'; a lone '-' reads standard input exactly, trailing
    /// newline included.
    #[arg(allow_hyphen_values = true, required_unless_present = "file", conflicts_with = "file")]
    pub(crate) value: Option<OsString>,
    /// Take the value from a file, exactly.
    #[arg(long, value_name = "F")]
    pub(crate) file: Option<std::path::PathBuf>,
    /// Only if the key does not exist; otherwise exit code 1.
    #[arg(long, group = "condition")]
    pub(crate) if_absent: bool,
    /// Only if the key was last changed at revision R; otherwise exit code 1.
    #[arg(long, value_name = "R", group = "condition")]
    pub(crate) if_revision: Option<u64>,
    /// Only if the key holds exactly V; otherwise exit code 1.
    #[arg(long, value_name = "V", group = "condition", allow_hyphen_values = true)]
    pub(crate) if_value: Option<OsString>,
    /// Print also what the key held before.
    #[arg(long)]
    pub(crate) prev: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Get {
    /// The key.
    pub(crate) key: OsString,
    /// Read the store as it was at revision R.
    #[arg(long, value_name = "R")]
    pub(crate) revision: Option<u64>,
    #[command(flatten)]
    pub(crate) stale: Stale,
}

#[derive(Args, Debug)]
pub(crate) struct Del {
    /// The key.
    #[arg(required_unless_present = "prefix", conflicts_with = "prefix")]
    pub(crate) key: Option<OsString>,
    /// Remove all keys that begin with P, in one revision. Asks first, unless --yes.
    #[arg(long, value_name = "P")]
    pub(crate) prefix: Option<OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct Range {
    #[command(flatten)]
    pub(crate) bounds: Bounds,
    /// At most N items.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Leave the values out.
    #[arg(long)]
    pub(crate) keys_only: bool,
    /// Print only how many keys there are.
    #[arg(long, conflicts_with_all = ["limit", "keys_only", "reverse"])]
    pub(crate) count: bool,
    /// From the last key to the first.
    #[arg(long)]
    pub(crate) reverse: bool,
    /// Read the store as it was at revision R.
    #[arg(long, value_name = "R")]
    pub(crate) revision: Option<u64>,
    #[command(flatten)]
    pub(crate) stale: Stale,
}

#[derive(Args, Debug)]
pub(crate) struct Bounds {
    /// Only keys that begin with P.
    #[arg(long, value_name = "P", conflicts_with_all = ["from", "to"])]
    pub(crate) prefix: Option<OsString>,
    /// Only keys from K on.
    #[arg(long, value_name = "K")]
    pub(crate) from: Option<OsString>,
    /// Only keys below K.
    #[arg(long, value_name = "K")]
    pub(crate) to: Option<OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct Stale {
    /// Take what the node that is asked has applied, without asking the leader; with a time,
    /// refuse if it has not heard from a leader for longer.
    #[arg(
        long,
        value_name = "AGE",
        num_args = 0..=1,
        require_equals = true,
        value_parser = duration
    )]
    #[expect(clippy::option_option, reason = "absent, present without a value, present with one")]
    pub(crate) stale: Option<Option<Duration>>,
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    /// A .jsonl or .jsonl.zst file; '-' is standard input, compressed or not.
    pub(crate) file: std::path::PathBuf,
    /// How many lines are under way at once.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) concurrency: u32,
    /// Skip and count lines that can't be stored, instead of stopping.
    #[arg(long)]
    pub(crate) skip_bad: bool,
    /// How long to try to store a line, over elections and restarts, before giving up.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) patience: Duration,
}

#[derive(Args, Debug)]
pub(crate) struct Export {
    /// Only keys that begin with P.
    #[arg(long, value_name = "P")]
    pub(crate) prefix: Option<OsString>,
    /// The store as it was at revision R.
    #[arg(long, value_name = "R")]
    pub(crate) revision: Option<u64>,
    #[command(flatten)]
    pub(crate) stale: Stale,
}

#[derive(Args, Debug)]
pub(crate) struct Status {
    /// Wait up to this long for a leader and a quorum.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) wait: Option<Duration>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Workload {
    /// Writes only.
    Put,
    /// Linearizable reads of single keys.
    Get,
    /// Reads and writes of single keys.
    Mixed,
    /// Linearizable listings of 100 keys.
    Range,
}

#[derive(Args, Debug)]
pub(crate) struct Bench {
    /// What to do.
    pub(crate) workload: Workload,
    /// Callers, each with one request at a time.
    #[arg(long, value_name = "C", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) clients: u32,
    /// Connections, spread over the endpoints that answer; the smaller of C and 8 unless given.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) connections: Option<u32>,
    /// How long to measure.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,
    /// Bytes of a value, 16 at least.
    #[arg(long, value_name = "B", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    pub(crate) value_bytes: u32,
    /// Reads among a hundred requests of the mixed workload.
    #[arg(long, value_name = "P", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) read_percent: u32,
    /// Leave the keys where they are.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// A length of time; the unit is required, since 5 could be seconds or milliseconds.
fn duration(text: &str) -> Result<Duration, String> {
    if text.chars().all(|c| c.is_ascii_digit()) {
        return Err("a unit is missing: write 5s or 500ms".to_owned());
    }
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("it must be above zero".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it as 5s or 500ms")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"kvctl").chain(line))
    }

    fn put(line: &[&str]) -> Put {
        let Ok(Cli { command: Command::Put(put), .. }) = parse(line) else {
            panic!("{line:?} is a put")
        };
        put
    }

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["5", "0", "0s", "", "s", "-5s", "5 bananas"] {
            assert!(duration(bad).is_err(), "{bad:?} is no duration");
        }
        assert!(parse(&["--timeout", "5", "status"]).is_err(), "no unit");
        assert!(parse(&["status", "--timeout", "5s"]).is_ok(), "globals may follow the command");
    }

    #[test]
    fn values_may_begin_with_a_hyphen_and_options_still_count() {
        assert_eq!(put(&["put", "k", "-5"]).value, Some("-5".into()));
        assert_eq!(put(&["put", "k", "-"]).value, Some("-".into()));
        assert_eq!(put(&["put", "k", "--weird"]).value, Some("--weird".into()));
        let conditional = put(&["put", "k", "v", "--if-absent"]);
        assert!(conditional.if_absent, "the option is not a value");
        let first = put(&["put", "--if-absent", "k", "v"]);
        assert!(first.if_absent, "options may come first");
        assert_eq!(put(&["put", "k", "v", "--if-value", "-1"]).if_value, Some("-1".into()));
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            &["put", "k"][..],
            &["put", "k", "v", "--file", "f"],
            &["put", "k", "v", "--if-absent", "--if-revision", "3"],
            &["del"],
            &["del", "k", "--prefix", "p"],
            &["range", "--prefix", "p", "--from", "a"],
            &["range", "--count", "--limit", "3"],
            &["import"],
            &["bench", "fly"],
            &["import", "f", "--concurrency", "0"],
        ] {
            assert!(parse(line).is_err(), "{line:?} contradicts itself");
        }
    }

    #[test]
    fn stale_takes_its_age_only_with_an_equals_sign() {
        let stale = |line: &[&str]| match parse(line) {
            Ok(Cli { command: Command::Get(get), .. }) => get.stale.stale,
            other => panic!("{line:?} is a get: {other:?}"),
        };
        assert_eq!(stale(&["get", "k"]), None);
        assert_eq!(stale(&["get", "--stale", "k"]), Some(None));
        assert_eq!(stale(&["get", "--stale=10s", "k"]), Some(Some(Duration::from_secs(10))));
    }
}
