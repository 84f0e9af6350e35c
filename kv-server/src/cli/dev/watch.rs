//! What the nodes say of themselves, turned into the lines of the contract. Pure: no process, no time.

use std::collections::BTreeMap;

use raft_core::NodeId;
use raft_rpc::{NodeStatus, Role};

/// Follows the nodes by their answers.
#[derive(Debug)]
pub(super) struct Watch {
    nodes: BTreeMap<NodeId, Seen>,
    endpoints: String,
    announced: Option<(NodeId, u64)>,
    ready: bool,
}

/// What is known of a node.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Its last answer; `None` if the last question got none.
    status: Option<Brief>,
    /// Our child that runs it has died.
    down: bool,
}

#[derive(Clone, Copy, Debug)]
struct Brief {
    leads: bool,
    term: u64,
    leader: Option<u64>,
}

/// Something to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum News {
    /// A node leads a term that no earlier line named.
    Leader { node: NodeId, term: u64 },
    /// For the first time all nodes that live follow one leader.
    Ready { leader: NodeId, endpoints: String },
    /// A node whose process died answers again: somebody started it by hand.
    Back { node: NodeId },
    /// A node that was started by hand answers no more.
    Gone { node: NodeId },
}

impl News {
    /// The line for scripts, if it is one of the contract.
    pub(super) fn line(&self) -> Option<String> {
        match self {
            Self::Leader { node, term } => Some(format!("leader: node={node} term={term}")),
            Self::Ready { leader, endpoints } => {
                Some(format!("ready: leader={leader} endpoints={endpoints}"))
            }
            Self::Back { .. } | Self::Gone { .. } => None,
        }
    }
}

impl Watch {
    pub(super) fn new(nodes: impl IntoIterator<Item = NodeId>, endpoints: String) -> Self {
        let nodes = nodes.into_iter().map(|id| (id, Seen::default())).collect();
        Self { nodes, endpoints, announced: None, ready: false }
    }

    /// Whether the nodes are to be asked often: there is no leader, or not everything is up yet.
    pub(super) fn is_unsettled(&self) -> bool {
        let leader_answers = self.announced.is_some_and(|(id, term)| {
            self.nodes
                .get(&id)
                .and_then(|seen| seen.status)
                .is_some_and(|status| status.leads && status.term == term)
        });
        !self.ready || !leader_answers
    }

    /// Whether the line `ready` was said.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// The nodes that answer although our children that ran them have died: others run them now.
    pub(super) fn foreign(&self) -> impl Iterator<Item = NodeId> {
        let nodes = self.nodes.iter();
        nodes.filter(|(_, seen)| seen.down && seen.status.is_some()).map(|(id, _)| *id)
    }

    /// Our child that ran `node` has died.
    pub(super) fn died(&mut self, node: NodeId) {
        if let Some(seen) = self.nodes.get_mut(&node) {
            *seen = Seen { status: None, down: true };
        }
    }

    /// `node` answered, or did not.
    pub(super) fn observe(&mut self, node: NodeId, answer: Option<&NodeStatus>) -> Vec<News> {
        let mut news = Vec::new();
        let Some(seen) = self.nodes.get_mut(&node) else { return news };
        let before = seen.status;
        seen.status = answer.map(|status| Brief {
            leads: status.role == Role::Leader,
            term: status.term,
            leader: status.leader,
        });
        if seen.down && before.is_none() && seen.status.is_some() {
            news.push(News::Back { node });
        }
        if seen.down && before.is_some() && seen.status.is_none() {
            news.push(News::Gone { node });
        }
        self.announce_leader(&mut news);
        self.announce_ready(&mut news);
        news
    }

    /// Of several that claim to lead, the one of the highest term does; the others have not heard yet.
    fn announce_leader(&mut self, news: &mut Vec<News>) {
        let leader = self
            .nodes
            .iter()
            .filter_map(|(id, seen)| Some((*id, seen.status?)))
            .filter(|(_, status)| status.leads)
            .max_by_key(|(_, status)| status.term);
        let Some((node, status)) = leader else { return };
        if self.announced.is_none_or(|(_, term)| status.term > term) {
            self.announced = Some((node, status.term));
            news.push(News::Leader { node, term: status.term });
        }
    }

    fn announce_ready(&mut self, news: &mut Vec<News>) {
        if self.ready {
            return;
        }
        let Some((leader, term)) = self.announced else { return };
        let all_follow = self.nodes.values().filter(|seen| !seen.down).all(|seen| {
            seen.status
                .is_some_and(|status| status.term == term && status.leader == Some(leader.get()))
        });
        if all_follow {
            self.ready = true;
            news.push(News::Ready { leader, endpoints: self.endpoints.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use raft_rpc::StorageState;

    use super::*;

    fn id(number: u64) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn status(node: u64, role: Role, term: u64, leader: Option<u64>) -> NodeStatus {
        NodeStatus {
            id: node,
            cluster_id: String::new(),
            version: String::new(),
            role,
            voter: true,
            term,
            leader,
            revision: 1,
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
            members: Vec::new(),
            peers: Vec::new(),
        }
    }

    fn lines(watch: &mut Watch, answers: &[(u64, Role, u64, Option<u64>)]) -> Vec<String> {
        answers
            .iter()
            .flat_map(|(node, role, term, leader)| {
                watch.observe(id(*node), Some(&status(*node, *role, *term, *leader)))
            })
            .filter_map(|news| news.line())
            .collect()
    }

    fn watch() -> Watch {
        Watch::new([id(1), id(2), id(3)], "a,b,c".to_owned())
    }

    #[test]
    fn ready_comes_once_when_all_follow_one_leader() {
        let mut watch = watch();
        let early = lines(
            &mut watch,
            &[
                (1, Role::Follower, 0, None),
                (2, Role::Leader, 1, Some(2)),
                (1, Role::Follower, 1, Some(2)),
            ],
        );
        assert_eq!(early, ["leader: node=2 term=1"], "node 3 has not answered");
        let then =
            lines(&mut watch, &[(3, Role::Follower, 1, Some(2)), (3, Role::Follower, 1, Some(2))]);
        assert_eq!(then, ["ready: leader=2 endpoints=a,b,c"]);
        assert!(!watch.is_unsettled(), "all is well");
    }

    #[test]
    fn an_old_leader_that_has_not_heard_yet_is_no_news() {
        let mut watch = watch();
        let found = lines(
            &mut watch,
            &[
                (2, Role::Leader, 1, Some(2)),
                (3, Role::Leader, 2, Some(3)),
                (2, Role::Leader, 1, Some(2)),
                (3, Role::Leader, 2, Some(3)),
                (2, Role::Follower, 2, Some(3)),
                (3, Role::Leader, 4, Some(3)),
            ],
        );
        assert_eq!(
            found,
            ["leader: node=2 term=1", "leader: node=3 term=2", "leader: node=3 term=4"]
        );
    }

    #[test]
    fn a_dead_node_is_not_waited_for_and_noticed_when_it_is_back() {
        let mut watch = watch();
        lines(&mut watch, &[(1, Role::Leader, 1, Some(1)), (2, Role::Follower, 1, Some(1))]);
        watch.died(id(3));
        let found = lines(&mut watch, &[(2, Role::Follower, 1, Some(1))]);
        assert_eq!(found, ["ready: leader=1 endpoints=a,b,c"]);
        let back = status(3, Role::Follower, 1, Some(1));
        assert_eq!(watch.observe(id(3), Some(&back)), [News::Back { node: id(3) }]);
        assert_eq!(watch.observe(id(3), Some(&back)), []);
        assert_eq!(watch.observe(id(3), None), [News::Gone { node: id(3) }]);
        assert_eq!(watch.observe(id(3), None), []);
    }

    #[test]
    fn a_leader_that_does_not_answer_unsettles() {
        let mut watch = watch();
        for node in [1, 2, 3] {
            let role = if node == 1 { Role::Leader } else { Role::Follower };
            watch.observe(id(node), Some(&status(node, role, 1, Some(1))));
        }
        assert!(!watch.is_unsettled(), "settled at first");
        watch.observe(id(1), None);
        assert!(watch.is_unsettled(), "nobody knows who leads");
    }
}
