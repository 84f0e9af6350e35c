//! What a node is told: the plain structs behind every flag, with their defaults.
//!
//! Taken by the server, the tests and whoever embeds a node; nothing here is text any more and
//! everything is checked by `resolve`.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use raft_core::{NodeId, NodeInfo};

const MIB: usize = 1 << 20;

/// Largest value a server may be set to accept, in bytes.
pub(super) const VALUE_BYTES_MAX: usize = 16 * MIB;
/// Threads that serve the network. No handler waits for a disk, so one serves 100,000 requests a second; a
/// second one costs each request a wake-up more and pays on machines with many cores and connections.
pub(super) const NETWORK_THREADS: usize = 1;
/// Most members a list may name. Consensus rounds grow with the number; seven is already much.
pub(super) const MEMBERS_MAX: usize = 32;

/// Everything a node needs to know to start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerConfig {
    /// The node's id: unique in the cluster, never 0, never given to a second machine.
    pub node_id: NodeId,
    /// The directory that holds everything the node keeps. Made if missing; locked while the node runs.
    pub data_dir: PathBuf,
    /// Where clients connect. Port 0 lets the system choose.
    pub listen_client: SocketAddr,
    /// Where peers connect. Port 0 lets the system choose.
    pub listen_peer: SocketAddr,
    /// The members the cluster was founded with, this node included; the same list on every one of them.
    /// The cluster id is a hash of it.
    pub initial_cluster: BTreeMap<NodeId, NodeInfo>,
    /// Timing and windows of consensus.
    pub raft: RaftSettings,
    /// What is refused for its size or number.
    pub limits: Limits,
    /// Memory and file sizes of the log and the store.
    pub storage: StorageSettings,
    /// Threads that serve the network, at least 1.
    pub network_threads: usize,
}

impl ServerConfig {
    /// A configuration with defaults for everything that has one.
    #[must_use]
    pub fn new(
        node_id: NodeId,
        data_dir: PathBuf,
        listen_client: SocketAddr,
        listen_peer: SocketAddr,
        initial_cluster: BTreeMap<NodeId, NodeInfo>,
    ) -> Self {
        Self {
            node_id,
            data_dir,
            listen_client,
            listen_peer,
            initial_cluster,
            raft: RaftSettings::default(),
            limits: Limits::default(),
            storage: StorageSettings::default(),
            network_threads: NETWORK_THREADS,
        }
    }
}

/// Timing and windows of consensus. The timing must be the same order of magnitude on all nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RaftSettings {
    /// How often a leader shows itself to idle followers.
    pub heartbeat: Duration,
    /// The least time without a leader before a node tries to elect one; also the interval of the
    /// leader's quorum check.
    pub election: Duration,
    /// The most that is added to `election` at random, so that two nodes rarely try at once.
    pub election_jitter: Duration,
    /// A leader whose log write takes longer stops its heartbeats, so that another node takes over.
    pub disk_stall: Duration,
    /// Most bytes of entries in one message; a single larger entry still travels, alone.
    pub append_bytes_max: usize,
    /// Most messages under way to one peer.
    pub inflight_messages_max: usize,
    /// Most bytes under way to one peer.
    pub inflight_bytes_max: usize,
    /// Most bytes of entries above the applied index; then proposals are answered "overloaded".
    pub uncommitted_bytes_max: usize,
    /// Most bytes of entries handed to the state machine at once.
    pub apply_bytes_max: usize,
    /// Most reads that wait for confirmation of leadership.
    pub waiting_reads_max: usize,
}

impl Default for RaftSettings {
    /// For a local network.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election: Duration::from_millis(300),
            election_jitter: Duration::from_millis(300),
            disk_stall: Duration::from_secs(1),
            append_bytes_max: MIB,
            inflight_messages_max: 64,
            inflight_bytes_max: 8 * MIB,
            uncommitted_bytes_max: 64 * MIB,
            apply_bytes_max: 4 * MIB,
            waiting_reads_max: 16_384,
        }
    }
}

/// What is refused for its size or number. An error names the setting, as `limits.value`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Largest value in bytes, at most 16 MiB.
    pub value_bytes: usize,
    /// Where a page of a range ends, in bytes of keys and values; a single larger item still fits.
    pub page_bytes: usize,
    /// Client requests that wait in the node; beyond it a request is answered "overloaded".
    pub queue: usize,
    /// Client connections open at once; beyond it a new one is closed.
    pub connections: usize,
    /// Requests under way on one connection.
    pub requests_per_connection: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            value_bytes: MIB,
            page_bytes: MIB,
            queue: 16_384,
            connections: 10_000,
            requests_per_connection: 1_024,
        }
    }
}

/// Memory and file sizes of the log and the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StorageSettings {
    /// Size at which a memtable is frozen and written to a table.
    pub memtable_bytes: usize,
    /// Memory for blocks of tables read lately.
    pub block_cache_bytes: usize,
    /// Size of a segment of the replicated log.
    pub log_segment_bytes: u64,
    /// Bytes of log above what the tables hold at which a flush is asked for; bounds the replay at start.
    pub flush_log_bytes: u64,
    /// Idle time after which what is in memory is flushed.
    pub flush_idle: Duration,
    /// Threads that serve reads which are not in memory.
    pub reader_threads: usize,
}

impl Default for StorageSettings {
    fn default() -> Self {
        Self {
            memtable_bytes: 64 * MIB,
            block_cache_bytes: 128 * MIB,
            log_segment_bytes: 64 * (1 << 20),
            flush_log_bytes: 256 * (1 << 20),
            flush_idle: Duration::from_secs(30),
            reader_threads: 2,
        }
    }
}
