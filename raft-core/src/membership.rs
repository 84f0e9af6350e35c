//! Who belongs to the cluster, and the one quorum function.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::NodeId;
use crate::mutants::{Mutant, is_active};

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

impl Voters {
    /// The set, or the old and the new one.
    fn halves(&self) -> (&BTreeSet<NodeId>, Option<&BTreeSet<NodeId>>) {
        match self {
            Self::Uniform(voters) => (voters, None),
            Self::Joint { old, new } => (old, Some(new)),
        }
    }
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
/// every member listed with its addresses. How it changes is in `change.rs`.
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

    /// What a node knows that joins a cluster and has not received its log: no members. No quorum
    /// of it exists, so nothing is ever decided by it. It is in no log, and cannot be decoded.
    #[must_use]
    pub const fn unknown() -> Self {
        Self {
            voters: Voters::Uniform(BTreeSet::new()),
            learners: BTreeSet::new(),
            demote_on_leave: BTreeSet::new(),
            nodes: BTreeMap::new(),
            highest_id: NodeId(NonZeroU64::MIN),
        }
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
        membership.check()?;
        Ok(membership)
    }

    fn check(&self) -> Result<(), MembershipError> {
        let (first, second) = self.voters.halves();
        if first.is_empty() || second.is_some_and(BTreeSet::is_empty) {
            return Err(MembershipError::NoVoters);
        }
        if let Some(&both) = self.learners.iter().find(|id| self.is_voter(**id)) {
            return Err(MembershipError::VoterAndLearner(both));
        }
        for &id in &self.demote_on_leave {
            // Only who votes in the old set and not in the new one can become a learner.
            let demotable = second.is_some_and(|new| first.contains(&id) && !new.contains(&id));
            if !demotable {
                return Err(MembershipError::NotDemotable(id));
            }
        }
        let members: BTreeSet<NodeId> = first
            .iter()
            .chain(second.into_iter().flatten())
            .chain(&self.learners)
            .copied()
            .collect();
        let listed: BTreeSet<NodeId> = self.nodes.keys().copied().collect();
        if let Some(&id) = members.symmetric_difference(&listed).next() {
            return Err(MembershipError::Unlisted(id));
        }
        match listed.last() {
            Some(&id) if id > self.highest_id => Err(MembershipError::AboveHighest(id)),
            Some(_) | None => Ok(()),
        }
    }

    /// The largest value that a quorum has reached: for every set of voters, a majority of its
    /// members has at least this value. Who has none counts as the default, the smallest.
    ///
    /// The only quorum arithmetic of the crate: commit (Raft §5.3), votes (§5.2), read
    /// confirmation (§8) and the quorum check all come here, so a joint membership (§6) holds for
    /// all of them alike.
    pub fn quorum_value<T: Ord + Copy + Default>(&self, value: impl Fn(NodeId) -> Option<T>) -> T {
        let of_majority = |voters: &BTreeSet<NodeId>| {
            // Sorted anew each time: a handful of values cost less than a structure that has to be
            // kept in order, and cannot fall out of it.
            let mut few = [T::default(); 7];
            let mut many = Vec::new();
            let values = match few.get_mut(..voters.len()) {
                Some(values) => values,
                None => {
                    many.resize(voters.len(), T::default());
                    many.as_mut_slice()
                }
            };
            for (slot, &voter) in values.iter_mut().zip(voters) {
                *slot = value(voter).unwrap_or_default();
            }
            values.sort_unstable();
            let mut majority = values.len() / 2 + 1;
            if is_active(Mutant::HalfIsAQuorum) && values.len() % 2 == 0 && majority > 1 {
                majority -= 1;
            }
            // Without voters there is no majority: the membership is unknown.
            values.len().checked_sub(majority).map_or(T::default(), |at| values[at])
        };
        match &self.voters {
            Voters::Uniform(voters) => of_majority(voters),
            Voters::Joint { old, new } => of_majority(old).min(of_majority(new)),
        }
    }

    /// Whether `id` votes, in either set of a joint membership.
    #[must_use]
    pub fn is_voter(&self, id: NodeId) -> bool {
        let (first, second) = self.voters.halves();
        first.contains(&id) || second.is_some_and(|set| set.contains(&id))
    }

    /// Whether a change is under way: there are two sets of voters.
    #[must_use]
    pub const fn is_joint(&self) -> bool {
        matches!(self.voters, Voters::Joint { .. })
    }

    /// Whether `id` was a member and is gone for good: it is below the highest id ever given, and
    /// ids are never given twice.
    #[must_use]
    pub fn is_removed(&self, id: NodeId) -> bool {
        !self.nodes.is_empty() && id <= self.highest_id && !self.contains(id)
    }

    /// Whether `id` is a member, voter or learner.
    #[must_use]
    pub fn contains(&self, id: NodeId) -> bool {
        self.nodes.contains_key(&id)
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
