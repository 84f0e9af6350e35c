//! The one table of settings. Flags, environment variables, keys of the file, help and defaults are
//! all derived from it, so they cannot drift apart.
//!
//! A setting is named `section.key`. Its variable is `KV_SECTION_KEY`, its flag `--section-key`; the
//! settings of `[node]` and a setting called like its section (`log.log`) drop the section.

use std::{net::SocketAddr, path::PathBuf};

use super::{
    Limits, LogFormat, RaftSettings, StorageSettings, cluster,
    units::{parse_duration, parse_size, show_duration, show_size},
};

/// A configuration under construction: every setting with the text that was given for it, read.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) node_id: Option<raft_core::NodeId>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) listen_client: Option<SocketAddr>,
    pub(super) listen_peer: Option<SocketAddr>,
    pub(super) cluster: Option<std::collections::BTreeMap<raft_core::NodeId, raft_core::NodeInfo>>,
    pub(super) network_threads: usize,
    pub(super) raft: RaftSettings,
    pub(super) limits: Limits,
    pub(super) storage: StorageSettings,
    pub(super) log_filter: String,
    pub(super) log_format: LogFormat,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            node_id: None,
            data_dir: None,
            listen_client: None,
            listen_peer: None,
            cluster: None,
            network_threads: super::server::NETWORK_THREADS,
            raft: RaftSettings::default(),
            limits: Limits::default(),
            storage: StorageSettings::default(),
            log_filter: super::DEFAULT_LOG_FILTER.to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// `section.key`: the section and the key in the file.
    pub name: &'static str,
    /// The flag, without its dashes.
    pub flag: &'static str,
    /// The environment variable.
    pub variable: &'static str,
    /// What the value looks like, for help.
    pub value_name: &'static str,
    /// What it is for, one line.
    pub help: &'static str,
    pub(super) set: fn(&mut Draft, &str) -> Result<(), String>,
    show: fn(&Draft) -> Option<String>,
}

impl Setting {
    /// The section of the file it stands in.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(section, _)| section)
    }

    /// Its key in that section.
    #[must_use]
    pub fn key(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, key)| key)
    }

    /// What holds if nobody sets it; `None` if it must be given.
    #[must_use]
    pub fn default(&self) -> Option<String> {
        (self.show)(&Draft::default())
    }
}

/// The setting called `name` (`section.key`).
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// The sections of the file, in the order of the table.
pub fn sections() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().enumerate().filter_map(|(at, setting)| {
        let first = at == 0 || SETTINGS[at - 1].section() != setting.section();
        first.then(|| setting.section())
    })
}

/// The name in `known` that `unknown` is most likely a slip of; `None` if none is near.
pub fn nearest<'k>(unknown: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(unknown, name), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

fn count(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|error| format!("`{text}` is no whole number ({error})"))
}

fn size(text: &str) -> Result<usize, String> {
    usize::try_from(parse_size(text)?)
        .map_err(|error| format!("`{text}` is more than this machine can address ({error})"))
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    text.trim().parse().map_err(|error| {
        format!("`{text}` is no address to listen on, expected IP:PORT as 0.0.0.0:3331 ({error})")
    })
}

fn show_usize(bytes: usize) -> String {
    u64::try_from(bytes).map_or_else(|_| bytes.to_string(), show_size)
}

/// A row whose value is a duration.
macro_rules! duration {
    ($name:literal, $flag:literal, $variable:literal, $($field:ident).+, $help:literal) => {
        Setting { name: $name, flag: $flag, variable: $variable, value_name: "DURATION", help: $help,
            set: |draft, text| { draft.$($field).+ = parse_duration(text)?; Ok(()) },
            show: |draft| Some(show_duration(draft.$($field).+)) }
    };
}

/// A row whose value is a size in memory.
macro_rules! size {
    ($name:literal, $flag:literal, $variable:literal, $($field:ident).+, $help:literal) => {
        Setting { name: $name, flag: $flag, variable: $variable, value_name: "SIZE", help: $help,
            set: |draft, text| { draft.$($field).+ = size(text)?; Ok(()) },
            show: |draft| Some(show_usize(draft.$($field).+)) }
    };
}

/// A row whose value is a size on disk.
macro_rules! file_size {
    ($name:literal, $flag:literal, $variable:literal, $($field:ident).+, $help:literal) => {
        Setting { name: $name, flag: $flag, variable: $variable, value_name: "SIZE", help: $help,
            set: |draft, text| { draft.$($field).+ = parse_size(text)?; Ok(()) },
            show: |draft| Some(show_size(draft.$($field).+)) }
    };
}

/// A row whose value is a number.
macro_rules! count {
    ($name:literal, $flag:literal, $variable:literal, $($field:ident).+, $help:literal) => {
        Setting { name: $name, flag: $flag, variable: $variable, value_name: "N", help: $help,
            set: |draft, text| { draft.$($field).+ = count(text)?; Ok(()) },
            show: |draft| Some(draft.$($field).+.to_string()) }
    };
}

/// Every setting there is, by section.
#[rustfmt::skip]
pub static SETTINGS: &[Setting] = &[
    Setting { name: "node.id", flag: "id", variable: "KV_ID", value_name: "N",
        help: "The node's id, unique in the cluster",
        set: |draft, text| { draft.node_id = Some(cluster::parse_node_id(text.trim())?); Ok(()) },
        show: |draft| draft.node_id.map(|id| id.to_string()) },
    Setting { name: "node.data-dir", flag: "data-dir", variable: "KV_DATA_DIR", value_name: "DIR",
        help: "The directory that holds everything the node keeps; made if missing",
        set: |draft, text| {
            if text.is_empty() {
                return Err("the directory's name is empty".to_owned());
            }
            draft.data_dir = Some(PathBuf::from(text));
            Ok(())
        },
        show: |draft| draft.data_dir.as_ref().map(|dir| dir.display().to_string()) },
    Setting { name: "node.listen-client", flag: "listen-client", variable: "KV_LISTEN_CLIENT", value_name: "ADDR",
        help: "Where clients connect, IP:PORT",
        set: |draft, text| { draft.listen_client = Some(listen(text)?); Ok(()) },
        show: |draft| draft.listen_client.map(|address| address.to_string()) },
    Setting { name: "node.listen-peer", flag: "listen-peer", variable: "KV_LISTEN_PEER", value_name: "ADDR",
        help: "Where the other nodes connect, IP:PORT",
        set: |draft, text| { draft.listen_peer = Some(listen(text)?); Ok(()) },
        show: |draft| draft.listen_peer.map(|address| address.to_string()) },
    Setting { name: "node.cluster", flag: "cluster", variable: "KV_CLUSTER", value_name: "LIST",
        help: "The members the cluster is founded with, the same list on each: `1=PEER_ADDR/CLIENT_ADDR,2=…`",
        set: |draft, text| { draft.cluster = Some(cluster::parse(text)?); Ok(()) },
        show: |draft| draft.cluster.as_ref().map(cluster::show) },
    count!("node.network-threads", "network-threads", "KV_NETWORK_THREADS", network_threads,
        "Threads that serve the network"),

    duration!("raft.heartbeat", "raft-heartbeat", "KV_RAFT_HEARTBEAT", raft.heartbeat,
        "How often a leader shows itself to idle followers"),
    duration!("raft.election", "raft-election", "KV_RAFT_ELECTION", raft.election,
        "The least time without a leader before a node tries to elect one"),
    duration!("raft.election-jitter", "raft-election-jitter", "KV_RAFT_ELECTION_JITTER", raft.election_jitter,
        "The most that is added to it at random"),
    duration!("raft.disk-stall", "raft-disk-stall", "KV_RAFT_DISK_STALL", raft.disk_stall,
        "A leader whose log write takes longer lets another node take over"),
    size!("raft.append", "raft-append", "KV_RAFT_APPEND", raft.append_bytes_max,
        "Most bytes of entries in one message"),
    count!("raft.inflight-messages", "raft-inflight-messages", "KV_RAFT_INFLIGHT_MESSAGES", raft.inflight_messages_max,
        "Most messages under way to one peer"),
    size!("raft.inflight", "raft-inflight", "KV_RAFT_INFLIGHT", raft.inflight_bytes_max,
        "Most bytes under way to one peer"),
    size!("raft.uncommitted", "raft-uncommitted", "KV_RAFT_UNCOMMITTED", raft.uncommitted_bytes_max,
        "Most bytes of writes that are not applied yet; beyond it writes are answered \"overloaded\""),
    size!("raft.apply", "raft-apply", "KV_RAFT_APPLY", raft.apply_bytes_max,
        "Most bytes of entries applied at once"),
    count!("raft.waiting-reads", "raft-waiting-reads", "KV_RAFT_WAITING_READS", raft.waiting_reads_max,
        "Most reads that wait for a confirmation of leadership"),

    size!("limits.value", "limits-value", "KV_LIMITS_VALUE", limits.value_bytes,
        "Largest value, at most 16MiB"),
    size!("limits.page", "limits-page", "KV_LIMITS_PAGE", limits.page_bytes,
        "Where a page of a range ends"),
    count!("limits.queue", "limits-queue", "KV_LIMITS_QUEUE", limits.queue,
        "Requests that wait in the node; beyond it a request is answered \"overloaded\""),
    count!("limits.connections", "limits-connections", "KV_LIMITS_CONNECTIONS", limits.connections,
        "Client connections open at once"),
    count!("limits.requests", "limits-requests", "KV_LIMITS_REQUESTS", limits.requests_per_connection,
        "Requests under way on one connection"),

    size!("storage.memtable", "storage-memtable", "KV_STORAGE_MEMTABLE", storage.memtable_bytes,
        "Size at which what is in memory is written to a table"),
    size!("storage.block-cache", "storage-block-cache", "KV_STORAGE_BLOCK_CACHE", storage.block_cache_bytes,
        "Memory for blocks of tables read lately"),
    file_size!("storage.log-segment", "storage-log-segment", "KV_STORAGE_LOG_SEGMENT", storage.log_segment_bytes,
        "Size of a segment of the replicated log"),
    file_size!("storage.flush-log", "storage-flush-log", "KV_STORAGE_FLUSH_LOG", storage.flush_log_bytes,
        "Bytes of log above what tables hold at which they are written; bounds the replay at start"),
    duration!("storage.flush-idle", "storage-flush-idle", "KV_STORAGE_FLUSH_IDLE", storage.flush_idle,
        "Idle time after which what is in memory is written to a table"),
    count!("storage.reader-threads", "storage-reader-threads", "KV_STORAGE_READER_THREADS", storage.reader_threads,
        "Threads that serve reads of what is not in memory"),

    Setting { name: "log.filter", flag: "log", variable: "KV_LOG", value_name: "FILTER",
        help: "What is logged, as in `RUST_LOG`: `info`, `kv_server=debug,tarpc=warn`",
        set: |draft, text| { text.clone_into(&mut draft.log_filter); Ok(()) },
        show: |draft| Some(draft.log_filter.clone()) },
    Setting { name: "log.format", flag: "log-format", variable: "KV_LOG_FORMAT", value_name: "text|json",
        help: "How it is logged",
        set: |draft, text| { draft.log_format = LogFormat::parse(text)?; Ok(()) },
        show: |draft| Some(draft.log_format.to_string()) },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_flags_and_variables_are_unique_and_follow_the_rule() {
        let mut seen = BTreeSet::new();
        for setting in SETTINGS {
            let (section, key) = setting.name.split_once('.').unwrap();
            if section != "log" {
                let long =
                    if section == "node" { key.to_owned() } else { format!("{section}-{key}") };
                assert_eq!(setting.flag, long);
            }
            assert_eq!(
                setting.variable,
                format!("KV_{}", setting.flag.replace('-', "_").to_uppercase())
            );
            for name in [setting.name, setting.flag, setting.variable] {
                assert!(seen.insert(name), "{name} occurs twice");
            }
        }
    }

    #[test]
    fn every_default_reads_back_as_itself() {
        for setting in SETTINGS {
            let Some(text) = setting.default() else { continue };
            let mut draft = Draft::default();
            (setting.set)(&mut draft, &text).unwrap();
            assert_eq!((setting.show)(&draft), Some(text), "{}", setting.name);
        }
    }

    #[test]
    fn a_slip_of_the_pen_finds_the_nearest_name_and_a_stranger_none() {
        let known = || SETTINGS.iter().map(|setting| setting.key());
        assert_eq!(nearest("electoin", known()), Some("election"));
        assert_eq!(nearest("listen_client", known()), Some("listen-client"));
        assert_eq!(nearest("colour", known()), None);
    }

    const README: &str = include_str!("../../README.md");

    #[test]
    fn the_readme_lists_every_setting_with_its_flag_and_default() {
        let rows: Vec<String> = SETTINGS
            .iter()
            .map(|setting| {
                let default = setting
                    .default()
                    .map_or_else(|| "required".to_owned(), |default| format!("`{default}`"));
                format!(
                    "| `{}` | `--{}` | {default} | {} |",
                    setting.name, setting.flag, setting.help
                )
            })
            .collect();
        let missing: Vec<&String> =
            rows.iter().filter(|row| !README.lines().any(|line| line == row.as_str())).collect();
        assert!(missing.is_empty(), "the README should hold these rows:\n{}", rows.join("\n"));
        let listed = README.lines().filter(|line| line.contains("` | `--")).count();
        assert_eq!(listed, SETTINGS.len(), "the README lists a setting that is none");
    }

    #[test]
    fn the_readmes_file_is_a_configuration_without_mistakes() {
        let (_, after) = README.split_once("```toml\n").unwrap();
        let (text, _) = after.split_once("```").unwrap();
        let file = super::super::file::parse(std::path::Path::new("README.md"), text);
        assert_eq!(file.errors, []);
        let resolved = super::super::resolve(file.given, super::super::Missing::Refused).unwrap();
        assert!(resolved.server.is_some());
    }
}
