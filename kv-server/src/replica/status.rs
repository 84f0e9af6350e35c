//! What a replica knows of itself, for `status` and for metrics.

use std::sync::Arc;

use raft_core::{LogIndex, Membership, NodeId, RoleKind, Term};

use crate::replica::Applied;

/// The replica's part of [`NodeStatus`](raft_rpc::NodeStatus); the shell adds connections and counters of its own.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// This node.
    pub node_id: NodeId,
    /// The cluster.
    pub cluster_id: u128,
    /// Its role.
    pub role: RoleKind,
    /// Its term.
    pub term: Term,
    /// The leader it knows of; itself while it leads.
    pub leader: Option<NodeId>,
    /// The last index of its log.
    pub last_index: LogIndex,
    /// The last index that is on its disk.
    pub durable_index: LogIndex,
    /// Its commit index.
    pub commit_index: LogIndex,
    /// Its state machine, as last reported.
    pub applied: Applied,
    /// The membership in force.
    pub membership: Arc<Membership>,
    /// Elections begun since the start (real ones; a trial is none).
    pub elections: u64,
    /// Changes of role since the start.
    pub role_changes: u64,
    /// Writes that wait for their answer.
    pub waiting_proposals: usize,
    /// Reads that wait for a read index.
    pub waiting_reads: usize,
    /// Why the replica has stopped, if it has.
    pub failure: Option<String>,
}
