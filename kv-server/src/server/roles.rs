//! Role changes: told to everybody in the node, and logged once each with their numbers.
//!
//! A module of its own, so that the log can be filtered for just these: `kv_server::server::roles`.

use raft_core::{NodeId, RoleChange, RoleKind};

use crate::server::shared::Shared;

/// Publishes who leads and in which role this node is. Called by the consensus thread alone, in order.
pub(crate) fn publish(shared: &Shared, change: RoleChange) {
    let (node, term) = (shared.node(), change.term.0);
    match (change.role, change.leader.map(NodeId::get)) {
        (RoleKind::Leader, _) => tracing::info!(node, term, "leads"),
        (RoleKind::Follower, Some(leader)) => tracing::info!(node, term, leader, "follows"),
        (RoleKind::Follower, None) => tracing::info!(node, term, "follows no leader yet"),
        (RoleKind::PreCandidate, _) => {
            tracing::info!(node, term, "hears no leader: asks whether an election would succeed");
        }
        (RoleKind::Candidate, _) => tracing::info!(node, term, "begins an election"),
        (RoleKind::Halted, _) => tracing::error!(node, term, "has halted"),
    }
    shared.leadership.send_replace(change);
}
