//! Precedence and validation: from what was given, in layers, to a [`ServerConfig`] or every error.
//!
//! Rules that concern two settings name both with their values, and the place where one of them
//! was given, since that is where the operator has to look.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use super::{
    ServerConfig,
    server::VALUE_BYTES_MAX,
    setting::{self, Draft, SETTINGS, Setting},
    units::{show_duration, show_size},
};

/// Where a setting was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// On the command line, by this flag (without dashes).
    Flag(&'static str),
    /// In the environment, by this variable.
    Variable(String),
    /// In a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Variable(name) => f.write_str(name),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// One mistake in a configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// Where; `None` if it is about something that was given nowhere.
    pub origin: Option<Origin>,
    /// What is wrong, and what is expected.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{origin}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The text that was given for a setting, and where.
#[derive(Clone, Debug)]
pub struct Given {
    /// Which setting.
    pub setting: &'static Setting,
    /// Its text, not read yet.
    pub text: String,
    /// Where it was given.
    pub origin: Origin,
}

/// How logs are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

impl LogFormat {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("`{other}` is no log format, expected text or json")),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// What the binary logs. The library logs through `tracing` and knows none of this.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// Targets and levels, as in `RUST_LOG`.
    pub filter: String,
    /// Where the filter was given.
    pub filter_origin: Option<Origin>,
    /// How.
    pub format: LogFormat,
}

/// A configuration that passed every check.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The node; `None` if settings without a default are missing and that was allowed.
    pub server: Option<ServerConfig>,
    /// The logs.
    pub log: LogConfig,
    /// Settings without a default that nobody gave.
    pub missing: Vec<&'static Setting>,
}

/// Whether settings without a default may be missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// A file is checked by itself; flags may give the rest.
    Allowed,
    /// A node is about to start.
    Refused,
}

/// Merges `given`, ordered from the weakest layer to the strongest (file, environment, flags), checks
/// everything, also what a stronger layer overrides.
///
/// # Errors
/// Everything that is wrong.
pub fn resolve(given: Vec<Given>, missing: Missing) -> Result<Resolved, Vec<ConfigError>> {
    let mut draft = Draft::default();
    let mut errors = Vec::new();
    let mut origins: BTreeMap<&'static str, Origin> = BTreeMap::new();
    for Given { setting, text, origin } in given {
        match (setting.set)(&mut draft, &text) {
            Ok(()) => {
                origins.insert(setting.name, origin);
            }
            Err(message) => {
                // A flag and a variable carry the setting's name, a line of a file does not.
                let message = match &origin {
                    Origin::File { .. } => format!("{}: {message}", setting.key()),
                    Origin::Flag(_) | Origin::Variable(_) => message,
                };
                // A wrong value counts as given: "is missing" on top of it would mislead.
                origins.entry(setting.name).or_insert_with(|| origin.clone());
                errors.push(ConfigError { origin: Some(origin), message });
            }
        }
    }
    for (name, message) in problems(&draft) {
        errors.push(ConfigError { origin: origins.get(name).cloned(), message });
    }
    let absent: Vec<&'static Setting> = SETTINGS
        .iter()
        .filter(|setting| setting.default().is_none() && !origins.contains_key(setting.name))
        .collect();
    if missing == Missing::Refused {
        errors.extend(absent.iter().map(|setting| ConfigError {
            origin: None,
            message: format!(
                "{} is missing: give --{} {}, {}, or `{}` in section [{}] of the file",
                setting.name,
                setting.flag,
                setting.value_name,
                setting.variable,
                setting.key(),
                setting.section()
            ),
        }));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let log = LogConfig {
        filter: draft.log_filter.clone(),
        filter_origin: origins.remove("log.filter"),
        format: draft.log_format,
    };
    Ok(Resolved { server: finish(draft), log, missing: absent })
}

/// The settings given by environment variables named `KV_…`, and what is wrong or strange about them.
///
/// A variable that is nearly a setting is an error: somebody meant that setting and does not have
/// it. Any other is only reported back to be warned of, since orchestrators put variables of their
/// own making (`KV_SERVICE_HOST`) into the environment of a service called `kv`.
#[must_use]
pub fn from_variables(
    variables: impl IntoIterator<Item = (String, String)>,
) -> (Vec<Given>, Vec<ConfigError>, Vec<String>) {
    let (mut given, mut errors, mut strange) = (Vec::new(), Vec::new(), Vec::new());
    for (name, text) in variables {
        if !name.starts_with("KV_") || FOREIGN_VARIABLES.contains(&name.as_str()) {
            continue;
        }
        if let Some(setting) = SETTINGS.iter().find(|setting| setting.variable == name) {
            given.push(Given { setting, text, origin: Origin::Variable(name) });
        } else if let Some(near) = setting::nearest(&name, SETTINGS.iter().map(|s| s.variable)) {
            errors.push(ConfigError {
                message: format!("unknown setting, did you mean {near}?"),
                origin: Some(Origin::Variable(name)),
            });
        } else {
            strange.push(name);
        }
    }
    (given, errors, strange)
}

/// Variables of ours that are no settings of a node: the path of the file, and what
/// `kvctl lock` gives to the command it runs.
const FOREIGN_VARIABLES: [&str; 3] = ["KV_CONFIG", "KV_LOCK", "KV_FENCE"];

/// Everything that is wrong with values that could be read: the setting to look at, and the message.
fn problems(draft: &Draft) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    check_members(draft, &mut found);
    check_timing(draft, &mut found);
    check_sizes(draft, &mut found);
    found
}

fn check_members(draft: &Draft, found: &mut Vec<(&'static str, String)>) {
    if let (Some(id), Some(cluster)) = (draft.node_id, &draft.cluster)
        && !cluster.contains_key(&id)
    {
        let ids: Vec<String> = cluster.keys().map(ToString::to_string).collect();
        found.push((
            "node.cluster",
            format!("node.id is {id}, but the list of members names only {}", ids.join(", ")),
        ));
    }
    if let (Some(client), Some(peer)) = (draft.listen_client, draft.listen_peer)
        && client == peer
        && client.port() != 0
    {
        found.push((
            "node.listen-peer",
            format!(
                "node.listen-client and node.listen-peer are both {client}, expected two ports"
            ),
        ));
    }
}

fn check_timing(draft: &Draft, found: &mut Vec<(&'static str, String)>) {
    let raft = &draft.raft;
    if raft.heartbeat < Duration::from_millis(1) {
        found.push((
            "raft.heartbeat",
            format!(
                "raft.heartbeat is {}, at least 1ms is expected",
                show_duration(raft.heartbeat)
            ),
        ));
    }
    // A single late heartbeat must not look like a dead leader.
    if raft.election < raft.heartbeat.saturating_mul(3) {
        found.push((
            "raft.election",
            format!(
                "raft.election is {}, at least three times raft.heartbeat ({}) is expected",
                show_duration(raft.election),
                show_duration(raft.heartbeat)
            ),
        ));
    }
    // Without it two nodes would run against each other again and again.
    if raft.election_jitter < raft.heartbeat {
        found.push((
            "raft.election-jitter",
            format!(
                "raft.election-jitter is {}, at least raft.heartbeat ({}) is expected",
                show_duration(raft.election_jitter),
                show_duration(raft.heartbeat)
            ),
        ));
    }
    for (name, value) in [
        ("raft.election", raft.election),
        ("raft.election-jitter", raft.election_jitter),
        ("raft.disk-stall", raft.disk_stall),
    ] {
        if value > Duration::from_secs(3600) {
            found.push((
                name,
                format!("{name} is {}, at most 1h is expected", show_duration(value)),
            ));
        }
    }
    if raft.disk_stall < raft.heartbeat {
        found.push((
            "raft.disk-stall",
            format!(
                "raft.disk-stall is {}, at least raft.heartbeat ({}) is expected",
                show_duration(raft.disk_stall),
                show_duration(raft.heartbeat)
            ),
        ));
    }
}

fn check_sizes(draft: &Draft, found: &mut Vec<(&'static str, String)>) {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let (raft, limits, storage) = (&draft.raft, &draft.limits, &draft.storage);
    let bytes = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    let sizes = [
        ("raft.append", bytes(raft.append_bytes_max), 4 * KIB, 3 * MIB),
        ("raft.inflight", bytes(raft.inflight_bytes_max), bytes(raft.append_bytes_max), GIB),
        ("raft.uncommitted", bytes(raft.uncommitted_bytes_max), bytes(limits.value_bytes), 4 * GIB),
        ("raft.apply", bytes(raft.apply_bytes_max), 4 * KIB, GIB),
        ("limits.value", bytes(limits.value_bytes), 1, bytes(VALUE_BYTES_MAX)),
        ("limits.page", bytes(limits.page_bytes), KIB, 16 * MIB),
        ("storage.memtable", bytes(storage.memtable_bytes), 64 * KIB, 4 * GIB),
        ("storage.block-cache", bytes(storage.block_cache_bytes), 0, 1024 * GIB),
        ("storage.log-segment", storage.log_segment_bytes, MIB, 4 * GIB - 1),
        ("storage.flush-log", storage.flush_log_bytes, MIB, 1024 * GIB),
    ];
    for (name, value, least, most) in sizes {
        if value < least || value > most {
            found.push((
                name,
                format!(
                    "{name} is {}, expected between {} and {}",
                    show_size(value),
                    show_size(least),
                    show_size(most)
                ),
            ));
        }
    }
    let counts = [
        ("node.network-threads", draft.network_threads, 1, 1_024),
        ("raft.inflight-messages", raft.inflight_messages_max, 1, 65_536),
        ("raft.waiting-reads", raft.waiting_reads_max, 1, 10_000_000),
        ("limits.queue", limits.queue, 1, 10_000_000),
        ("limits.connections", limits.connections, 1, 1_000_000),
        ("limits.requests", limits.requests_per_connection, 1, 1_000_000),
        ("storage.reader-threads", storage.reader_threads, 1, 1_024),
    ];
    for (name, value, least, most) in counts {
        if value < least || value > most {
            found.push((name, format!("{name} is {value}, expected between {least} and {most}")));
        }
    }
    if storage.flush_idle < Duration::from_secs(1) {
        found.push((
            "storage.flush-idle",
            format!(
                "storage.flush-idle is {}, at least 1s is expected",
                show_duration(storage.flush_idle)
            ),
        ));
    }
}

fn finish(draft: Draft) -> Option<ServerConfig> {
    Some(ServerConfig {
        node_id: draft.node_id?,
        data_dir: draft.data_dir?,
        listen_client: draft.listen_client?,
        listen_peer: draft.listen_peer?,
        initial_cluster: draft.cluster?,
        raft: draft.raft,
        limits: draft.limits,
        storage: draft.storage,
        network_threads: draft.network_threads,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const CLUSTER: &str = "1=127.0.0.1:4331/127.0.0.1:3331,2=127.0.0.1:4332/127.0.0.1:3332";

    fn flag(name: &str, text: &str) -> Given {
        let setting = setting::by_name(name).unwrap();
        Given { setting, text: text.to_owned(), origin: Origin::Flag(setting.flag) }
    }

    fn node() -> Vec<Given> {
        vec![
            flag("node.id", "1"),
            flag("node.data-dir", "d"),
            flag("node.listen-client", "127.0.0.1:3331"),
            flag("node.listen-peer", "127.0.0.1:4331"),
            flag("node.cluster", CLUSTER),
        ]
    }

    fn errors(extra: Vec<Given>) -> Vec<String> {
        let mut given = node();
        given.extend(extra);
        match resolve(given, Missing::Refused) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn the_defaults_pass_every_check() {
        assert_eq!(errors(Vec::new()), Vec::<String>::new());
    }

    #[test]
    fn flags_win_over_variables_and_variables_over_the_file() {
        let file = super::super::file::parse(
            Path::new("kv.toml"),
            "[raft]\nheartbeat = \"10ms\"\nelection = \"1s\"\nelection-jitter = \"2s\"\n",
        );
        let (variables, errors, strange) = from_variables([
            ("KV_RAFT_HEARTBEAT".to_owned(), "20ms".to_owned()),
            ("KV_RAFT_ELECTION".to_owned(), "3s".to_owned()),
            ("PATH".to_owned(), "/bin".to_owned()),
        ]);
        assert_eq!((errors, strange), (Vec::new(), Vec::new()));
        let mut given = file.given;
        given.extend(variables);
        given.extend(node());
        given.push(flag("raft.heartbeat", "30ms"));
        let raft = resolve(given, Missing::Refused).unwrap().server.unwrap().raft;
        assert_eq!(raft.heartbeat, Duration::from_millis(30), "flag");
        assert_eq!(raft.election, Duration::from_secs(3), "variable");
        assert_eq!(raft.election_jitter, Duration::from_secs(2), "file");
    }

    #[test]
    fn a_misspelt_variable_is_an_error_and_a_foreign_one_is_not() {
        let (given, errors, strange) = from_variables([
            ("KV_RAFT_ELECTOIN".to_owned(), "3s".to_owned()),
            ("KV_SERVICE_HOST".to_owned(), "10.0.0.1".to_owned()),
            ("KV_LOCK".to_owned(), "nightly".to_owned()),
        ]);
        assert!(given.is_empty());
        assert_eq!(
            errors[0].to_string(),
            "KV_RAFT_ELECTOIN: unknown setting, did you mean KV_RAFT_ELECTION?"
        );
        assert_eq!(errors.len(), 1);
        assert_eq!(strange, ["KV_SERVICE_HOST"]);
    }

    #[test]
    fn rules_between_settings_name_both_and_where_to_look() {
        let found = errors(vec![flag("raft.heartbeat", "200ms")]);
        assert_eq!(
            found,
            ["raft.election is 300ms, at least three times raft.heartbeat (200ms) is expected"]
        );
        let found = errors(vec![flag("raft.election", "100ms")]);
        assert!(found[0].starts_with("--raft-election: raft.election is 100ms"), "{found:?}");
    }

    #[test]
    fn all_errors_are_found_at_once() {
        let found = errors(vec![
            flag("node.id", "3"),
            flag("limits.value", "17MiB"),
            flag("raft.disk-stall", "5"),
            flag("log.format", "xml"),
            flag("node.listen-peer", "127.0.0.1:3331"),
        ]);
        for part in [
            "node.id is 3, but the list of members names only 1, 2",
            "limits.value is 17MiB, expected between 1B and 16MiB",
            "--raft-disk-stall: `5` has no unit",
            "--log-format: `xml` is no log format",
            "are both 127.0.0.1:3331",
        ] {
            assert!(found.iter().any(|error| error.contains(part)), "{part} not in {found:#?}");
        }
        assert_eq!(found.len(), 5, "{found:#?}");
    }

    #[test]
    fn what_is_missing_is_named_with_all_ways_to_give_it_unless_allowed() {
        let found = resolve(Vec::new(), Missing::Refused).unwrap_err();
        assert_eq!(found.len(), 5, "{found:#?}");
        assert_eq!(
            found[0].to_string(),
            "node.id is missing: give --id N, KV_ID, or `id` in section [node] of the file"
        );
        let resolved = resolve(Vec::new(), Missing::Allowed).unwrap();
        assert!(resolved.server.is_none());
        assert_eq!(resolved.missing.len(), 5);
    }
}
