//! What a replica has to be told before it can open its directory.

use std::time::Duration;

use raft_core::{Membership, NodeId};

use crate::limits::Limits;

/// Everything [`open`](crate::replica::open()) needs to know.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// This node.
    pub node_id: NodeId,
    /// The cluster; see [`cluster_id`](crate::identity::cluster_id). A directory of another cluster is refused.
    pub cluster_id: u128,
    /// The members a new cluster begins with. Written at the first start; later the log has the last word.
    pub initial_membership: Membership,
    /// Timing and limits of consensus.
    pub raft: raft_core::Config,
    /// Limits on requests and on what may wait.
    pub limits: Limits,
    /// The storage below.
    pub storage: StorageConfig,
}

/// Sizes of the log and of the engine, and when to flush.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StorageConfig {
    /// Size of a segment of the log, in bytes; also the most that is lost to preallocation.
    pub log_segment_bytes: u64,
    /// The engine's memtable is frozen and flushed above this, in bytes.
    pub memtable_bytes: usize,
    /// The engine's block cache, in bytes.
    pub block_cache_bytes: usize,
    /// Entries and bodies replayed at a start before they are published, in bytes.
    pub replay_chunk_bytes: usize,
    /// The engine is flushed when the log above its durable position exceeds this, in bytes.
    pub flush_log_bytes: u64,
    /// The engine is flushed when nothing was applied for this long and something is not in tables.
    pub flush_idle: Duration,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            log_segment_bytes: 64 << 20,
            memtable_bytes: 64 << 20,
            block_cache_bytes: 128 << 20,
            replay_chunk_bytes: 1 << 20,
            flush_log_bytes: 256 << 20,
            flush_idle: Duration::from_secs(30),
        }
    }
}
