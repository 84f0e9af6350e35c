//! What a node says of itself: the replica's numbers, the links, the counters.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use raft_core::{NodeId, RoleKind, Voters};
use raft_rpc::{Link, LinkStatus, MemberStatus, NodeStatus, PeerStatus, Role, StorageState};
use tokio::sync::oneshot;

use crate::{
    replica::ReplicaStatus,
    server::{
        inbox::{Class, Load},
        shared::{Shared, Work},
    },
};

/// How long the consensus thread is waited for before the last known numbers are given instead.
const PATIENCE: Duration = Duration::from_millis(500);

/// Collects the status.
#[derive(Debug)]
pub(crate) struct StatusSource {
    shared: Arc<Shared>,
    links: Vec<(NodeId, Link)>,
    /// What consensus said last.
    last: Mutex<ReplicaStatus>,
}

impl StatusSource {
    /// Over the node and its links, beginning with what was found at the start.
    pub(crate) const fn new(
        shared: Arc<Shared>,
        links: Vec<(NodeId, Link)>,
        first: ReplicaStatus,
    ) -> Self {
        Self { shared, links, last: Mutex::new(first) }
    }

    /// The status now. It works while there is no leader, and after the replica has stopped.
    pub(crate) async fn collect(&self) -> NodeStatus {
        // Read before consensus is asked, so that it is neither older than what a client was told before it
        // asked, nor newer than the commit index.
        let applied = self.shared.gate.applied();
        let (sender, answer) = oneshot::channel();
        let load = Load { items: 1, bytes: 0 };
        // Refused when the queue is full or the replica has stopped: then the channel ends at once.
        drop(self.shared.inbox.offer(Class::Client, load, Work::Status(sender)));
        let mut replica = match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(now)) => {
                self.last.lock().clone_from(&now);
                now
            }
            Ok(Err(_refused)) => self.last.lock().clone(),
            Err(_late) => self.last.lock().clone(),
        };
        if applied.index > replica.applied.index {
            replica.applied = applied;
        }
        self.describe(&replica)
    }

    fn describe(&self, replica: &ReplicaStatus) -> NodeStatus {
        let failure = self.shared.lifecycle.failure();
        let membership = &replica.membership;
        let is_voter = |id: NodeId| match membership.voters() {
            Voters::Uniform(voters) => voters.contains(&id),
            Voters::Joint { old, new } => old.contains(&id) || new.contains(&id),
        };
        let voter = is_voter(self.shared.id);
        let role = match replica.role {
            _ if failure.is_some() => Role::Halted,
            RoleKind::Halted => Role::Halted,
            RoleKind::Follower if !voter => Role::Learner,
            RoleKind::Follower => Role::Follower,
            RoleKind::PreCandidate => Role::PreCandidate,
            RoleKind::Candidate => Role::Candidate,
            RoleKind::Leader => Role::Leader,
        };
        let links: Vec<LinkStatus> = self.links.iter().map(|(_peer, link)| link.status()).collect();
        let peers: Vec<PeerStatus> = links
            .iter()
            .map(|link| PeerStatus {
                id: link.peer.get(),
                connected: link.connected,
                changes: link.changes,
            })
            .collect();
        let members = membership.nodes().iter().map(|(id, node)| MemberStatus {
            id: id.get(),
            peer_addr: node.peer_addr.clone(),
            client_addr: node.client_addr.clone(),
            voter: is_voter(*id),
        });
        let mut alarms: Vec<String> = failure.iter().map(ToString::to_string).collect();
        for link in links.iter().filter(|link| !link.connected) {
            if let Some(error) = &link.last_error {
                alarms.push(format!("no connection to node {}: {error}", link.peer));
            }
        }
        let dropped = self.shared.dropped_batches.load(Ordering::Relaxed);
        if dropped > 0 {
            alarms.push(format!("{dropped} batches of peers were dropped: the queue was full"));
        }
        NodeStatus {
            id: self.shared.node(),
            cluster_id: format!("{:032x}", replica.cluster_id),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role,
            voter,
            term: replica.term.0,
            leader: replica.leader.map(NodeId::get),
            revision: replica.applied.revision,
            last_index: replica.last_index.0,
            commit_index: replica.commit_index.0,
            applied_index: replica.applied.index.0,
            state_hash: format!("{:016x}", replica.applied.state_hash),
            storage: if failure.is_some() { StorageState::Damaged } else { StorageState::Ok },
            alarms,
            elections: replica.elections,
            role_changes: replica.role_changes,
            connection_changes: peers.iter().map(|peer| peer.changes).sum(),
            forwarded: self.shared.forwarded.load(Ordering::Relaxed),
            members: members.collect(),
            peers,
        }
    }
}
