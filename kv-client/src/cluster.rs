//! What the nodes say of themselves, merged into one picture of the cluster.
//!
//! Each endpoint is asked by itself; nothing here needs a leader. Where nodes disagree, the leader
//! of the highest term counts, if it answers: a leader that can't be reached is no use to a caller
//! and is most likely dead, whatever its followers still believe.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use raft_rpc::{NodeStatus, Role};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use crate::backoff::Backoff;
use crate::client::Client;
use crate::directory::Endpoint;
use crate::error::{Effect, Error, ErrorKind, Result};
use crate::job::StatusJob;

/// Questions about the cluster itself. Made by [`Client::cluster`].
#[derive(Clone, Debug)]
pub struct Cluster {
    client: Client,
}

/// The cluster as its nodes describe it.
#[non_exhaustive]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterStatus {
    /// The leader of the highest term, if it answered and says so itself.
    pub leader: Option<u64>,
    /// The leader's term; the highest one seen if there is no leader; 0 if nobody answered.
    pub term: u64,
    /// The newest revision of any node that answered.
    pub revision: u64,
    /// The cluster's id, 32 hexadecimal digits; `None` if nobody answered.
    pub cluster_id: Option<String>,
    /// There is a leader, and a majority of the voters answered.
    pub healthy: bool,
    /// All members that any endpoint knows, by id, then endpoints that never answered.
    pub nodes: Vec<NodeReport>,
}

/// One node, or one endpoint that could not be matched to a node.
#[non_exhaustive]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeReport {
    /// Its id; `None` for an endpoint that never answered and that no node names.
    pub id: Option<u64>,
    /// Where clients reach it.
    pub client_addr: String,
    /// Where its peers reach it, if a node told.
    pub peer_addr: Option<String>,
    /// Whether it is a voter, if a node told.
    pub voter: Option<bool>,
    /// What it says of itself, or why it could not be asked.
    pub status: Result<NodeStatus, String>,
}

impl NodeReport {
    /// Whether the node answered.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.status.is_ok()
    }
}

impl ClusterStatus {
    /// Whether any node answered.
    #[must_use]
    pub fn anyone_answered(&self) -> bool {
        self.nodes.iter().any(NodeReport::is_reachable)
    }
}

/// A node that does not answer the question for its status within this is reported unreachable.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

impl Cluster {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Asks every endpoint for its status, and, with
    /// [`discover`](crate::ClientBuilder::discover), every member they name. Takes 2 s, or the
    /// client's timeout if that is shorter, when a node does not answer.
    ///
    /// # Errors
    /// Nobody answered ([`ErrorKind::Unavailable`]). [`report`](Self::report) gives a document in
    /// that case too.
    pub async fn status(&self) -> Result<ClusterStatus> {
        let status = self.report().await;
        if status.anyone_answered() {
            return Ok(status);
        }
        let reasons: BTreeSet<&str> = status
            .nodes
            .iter()
            .filter_map(|node| node.status.as_ref().err().map(String::as_str))
            .collect();
        Err(unavailable(&self.client, reasons.first().copied().unwrap_or("no answer")))
    }

    /// Like [`status`](Self::status), but also if nobody answered.
    pub async fn report(&self) -> ClusterStatus {
        let directory = self.client.directory();
        let deadline = Instant::now() + self.client.default_timeout().min(STATUS_TIMEOUT);
        let mut answers: Vec<(String, Result<NodeStatus, String>)> = Vec::new();
        loop {
            // With discovery, answers bring further endpoints; they are asked in the next round.
            let endpoints = directory.endpoints();
            let new = &endpoints[answers.len()..];
            if new.is_empty() {
                break;
            }
            let asked = new.iter().map(|endpoint| async {
                (endpoint.address.clone(), ask(endpoint, deadline).await)
            });
            answers.extend(join_all(asked).await);
        }
        merge(answers)
    }

    /// Waits until any endpoint answers.
    pub(crate) async fn wait_for_any(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let endpoints = self.client.directory().endpoints();
        let mut backoff = Backoff::for_attempts();
        loop {
            let mut asked: FuturesUnordered<_> =
                endpoints.iter().map(|endpoint| ask(endpoint, deadline)).collect();
            let mut reason = "no answer".to_owned();
            while let Some(answer) = asked.next().await {
                match answer {
                    Ok(_status) => return Ok(()),
                    Err(failure) => reason = failure,
                }
            }
            let pause = backoff.next_delay();
            if Instant::now() + pause >= deadline {
                return Err(unavailable(&self.client, &reason));
            }
            sleep(pause).await;
        }
    }
}

fn unavailable(client: &Client, reason: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        Effect::None,
        format!("cannot reach {}: {reason}", client.directory().summary()),
        "check the addresses (--endpoints, KVCTL_ENDPOINTS) and that the nodes run",
    )
}

async fn ask(endpoint: &Endpoint, deadline: Instant) -> Result<NodeStatus, String> {
    let (reply, answer) = oneshot::channel();
    let link = endpoint.link();
    if !link.ask_status(StatusJob { reply: Some(reply) }) {
        return Err("too many questions for its status are waiting".to_owned());
    }
    match timeout_at(deadline, answer).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(_dropped)) => Err(link.failure()),
        Err(_elapsed) => Err("no answer in time".to_owned()),
    }
}

/// Puts the answers of the endpoints together.
fn merge(answers: Vec<(String, Result<NodeStatus, String>)>) -> ClusterStatus {
    let statuses: Vec<&NodeStatus> =
        answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).collect();
    let mut nodes: BTreeMap<u64, NodeReport> = BTreeMap::new();
    // Members by hearsay first: the node with the highest applied index knows the newest list.
    let mut by_progress = statuses.clone();
    by_progress.sort_by_key(|status| status.applied_index);
    for status in &by_progress {
        for member in &status.members {
            nodes.insert(
                member.id,
                NodeReport {
                    id: Some(member.id),
                    client_addr: member.client_addr.clone(),
                    peer_addr: Some(member.peer_addr.clone()),
                    voter: Some(member.voter),
                    status: Err("not among the endpoints, so it was not asked".to_owned()),
                },
            );
        }
    }
    let mut strangers = Vec::new();
    for (address, answer) in &answers {
        match answer {
            Ok(status) => {
                let report = nodes.entry(status.id).or_insert_with(|| NodeReport {
                    id: Some(status.id),
                    client_addr: address.clone(),
                    peer_addr: None,
                    voter: None,
                    status: Err(String::new()),
                });
                report.voter = Some(status.voter);
                report.status = Ok(status.clone());
            }
            Err(failure) => {
                let known = nodes.values_mut().find(|node| node.client_addr == *address);
                match known {
                    Some(known) if known.status.is_err() => known.status = Err(failure.clone()),
                    // The node answered under another of its addresses.
                    Some(_) => {}
                    None => strangers.push(NodeReport {
                        id: None,
                        client_addr: address.clone(),
                        peer_addr: None,
                        voter: None,
                        status: Err(failure.clone()),
                    }),
                }
            }
        }
    }
    let leading = statuses
        .iter()
        .filter(|status| status.role == Role::Leader)
        .max_by_key(|status| status.term)
        // One that has not noticed yet that it was deposed: the others follow at a higher term.
        .filter(|leader| {
            statuses.iter().all(|status| status.leader.is_none() || status.term <= leader.term)
        });
    let voters = nodes.values().filter(|node| node.voter == Some(true)).count();
    let voters_reached =
        nodes.values().filter(|node| node.voter == Some(true) && node.is_reachable()).count();
    ClusterStatus {
        leader: leading.map(|status| status.id),
        term: leading.map_or_else(
            || statuses.iter().map(|status| status.term).max().unwrap_or(0),
            |status| status.term,
        ),
        revision: statuses.iter().map(|status| status.revision).max().unwrap_or(0),
        cluster_id: by_progress.last().map(|status| status.cluster_id.clone()),
        healthy: leading.is_some() && voters_reached > voters / 2,
        nodes: nodes.into_values().chain(strangers).collect(),
    }
}

#[cfg(test)]
mod tests {
    use raft_rpc::{MemberStatus, StorageState};

    use super::*;

    fn status(id: u64, role: Role, term: u64, leader: Option<u64>) -> NodeStatus {
        let members = (1..=4)
            .map(|id| MemberStatus {
                id,
                peer_addr: format!("h:433{id}"),
                client_addr: format!("h:333{id}"),
                voter: true,
            })
            .collect();
        NodeStatus {
            id,
            cluster_id: "c".into(),
            version: "0".into(),
            role,
            voter: true,
            term,
            leader,
            revision: 10 + id,
            last_index: 0,
            commit_index: 0,
            applied_index: 0,
            state_hash: String::new(),
            storage: StorageState::Ok,
            alarms: Vec::new(),
            elections: 0,
            role_changes: 0,
            connection_changes: 0,
            forwarded: 0,
            members,
            peers: Vec::new(),
        }
    }

    fn answer(status: NodeStatus) -> (String, Result<NodeStatus, String>) {
        (format!("h:333{}", status.id), Ok(status))
    }

    fn silence(id: u64) -> (String, Result<NodeStatus, String>) {
        (format!("h:333{id}"), Err("refused".into()))
    }

    #[test]
    fn three_of_four_with_a_leader_are_healthy_and_the_dead_one_is_named_by_id() {
        let merged = merge(vec![
            silence(1),
            answer(status(2, Role::Leader, 5, Some(2))),
            answer(status(3, Role::Follower, 5, Some(2))),
            answer(status(4, Role::Follower, 5, Some(2))),
        ]);
        assert_eq!((merged.leader, merged.term, merged.healthy), (Some(2), 5, true));
        assert_eq!(merged.revision, 14);
        let ids: Vec<Option<u64>> = merged.nodes.iter().map(|node| node.id).collect();
        assert_eq!(ids, [Some(1), Some(2), Some(3), Some(4)]);
        assert_eq!(merged.nodes[0].status, Err("refused".into()));
    }

    #[test]
    fn two_of_four_are_no_quorum_even_with_a_leader() {
        let merged = merge(vec![
            silence(1),
            silence(2),
            answer(status(3, Role::Leader, 5, Some(3))),
            answer(status(4, Role::Follower, 5, Some(3))),
        ]);
        assert_eq!((merged.leader, merged.healthy), (Some(3), false));
    }

    #[test]
    fn a_leader_that_does_not_answer_is_none_whatever_its_followers_believe() {
        let merged = merge(vec![
            silence(1),
            answer(status(2, Role::Follower, 5, Some(1))),
            answer(status(3, Role::Follower, 5, Some(1))),
            answer(status(4, Role::Follower, 5, Some(1))),
        ]);
        assert_eq!((merged.leader, merged.healthy), (None, false));
    }

    #[test]
    fn a_deposed_leader_that_has_not_noticed_does_not_count() {
        let merged = merge(vec![
            answer(status(1, Role::Leader, 4, Some(1))),
            answer(status(2, Role::Leader, 6, Some(2))),
            answer(status(3, Role::Follower, 6, Some(2))),
            silence(4),
        ]);
        assert_eq!((merged.leader, merged.term), (Some(2), 6));
        let old_only = merge(vec![
            answer(status(1, Role::Leader, 4, Some(1))),
            silence(2),
            answer(status(3, Role::Follower, 6, Some(2))),
            answer(status(4, Role::Follower, 6, Some(2))),
        ]);
        assert_eq!(old_only.leader, None, "its followers have gone over to a higher term");
    }

    #[test]
    fn an_endpoint_that_nobody_knows_has_no_id() {
        let merged = merge(vec![("h:9999".into(), Err("refused".into()))]);
        assert_eq!(merged.nodes[0].id, None);
        assert!(!merged.anyone_answered(), "nobody answered");
        assert_eq!(merged.cluster_id, None);
    }
}
