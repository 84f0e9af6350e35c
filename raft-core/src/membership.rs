//! Who belongs to the cluster, and the one quorum function.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
};

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// What is known of a member besides its id. Opaque to consensus.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Where its peers reach it.
    pub peer_addr: String,
    /// Where clients reach it.
    pub client_addr: String,
    /// The random id its storage got when it was formatted, once known.
    pub storage_id: Option<u128>,
}

/// The voters: one set, or two during a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Voters {
    /// One set.
    Uniform(BTreeSet<NodeId>),
    /// A decision needs a majority of both.
    Joint {
        /// The set before the change.
        old: BTreeSet<NodeId>,
        /// The set after it.
        new: BTreeSet<NodeId>,
    },
}

/// Why a membership cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MembershipError {
    /// A set of voters is empty.
    #[error("a membership needs at least one voter")]
    NoVoters,
    /// A member is not in the list of nodes, or the list holds one that is no member.
    #[error("node {0} is a member without an entry in the list of nodes, or the other way round")]
    Unlisted(NodeId),
    /// A voter is a learner too.
    #[error("node {0} is voter and learner")]
    VoterAndLearner(NodeId),
    /// A node to be demoted is no voter of the old set, or no change is under way.
    #[error("node {0} is to become a learner but is no voter of the old set")]
    NotDemotable(NodeId),
    /// An id is above the highest ever given.
    #[error("node {0} is above the highest id ever given")]
    AboveHighest(NodeId),
}

/// Who belongs to the cluster. Checked at construction: no empty half, voters and learners disjoint,
/// every member listed with its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    voters: Voters,
    learners: BTreeSet<NodeId>,
    demote_on_leave: BTreeSet<NodeId>,
    nodes: BTreeMap<NodeId, NodeInfo>,
    highest_id: NodeId,
}

impl Membership {
    /// The membership of a new cluster: all of `nodes` are voters.
    ///
    /// # Errors
    /// [`MembershipError::NoVoters`] if `nodes` is empty.
    pub fn of_voters(nodes: BTreeMap<NodeId, NodeInfo>) -> Result<Self, MembershipError> {
        let highest_id = *nodes.keys().next_back().ok_or(MembershipError::NoVoters)?;
        let voters = Voters::Uniform(nodes.keys().copied().collect());
        Self::from_parts(voters, BTreeSet::new(), BTreeSet::new(), nodes, highest_id)
    }

    /// A membership from its parts, checked.
    ///
    /// # Errors
    /// The rule that does not hold.
    pub fn from_parts(
        voters: Voters,
        learners: BTreeSet<NodeId>,
        demote_on_leave: BTreeSet<NodeId>,
        nodes: BTreeMap<NodeId, NodeInfo>,
        highest_id: NodeId,
    ) -> Result<Self, MembershipError> {
        let membership = Self { voters, learners, demote_on_leave, nodes, highest_id };
        Ok(membership)
    }

    /// The voters.
    #[must_use]
    pub const fn voters(&self) -> &Voters {
        &self.voters
    }

    /// The learners.
    #[must_use]
    pub const fn learners(&self) -> &BTreeSet<NodeId> {
        &self.learners
    }

    /// Voters of the old set that become learners when the change is done.
    #[must_use]
    pub const fn demote_on_leave(&self) -> &BTreeSet<NodeId> {
        &self.demote_on_leave
    }

    /// Every member with its addresses.
    #[must_use]
    pub const fn nodes(&self) -> &BTreeMap<NodeId, NodeInfo> {
        &self.nodes
    }

    /// The highest id ever given; an absent id at or below it is gone for good.
    #[must_use]
    pub const fn highest_id(&self) -> NodeId {
        self.highest_id
    }
}
