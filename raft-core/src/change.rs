//! Changes of the membership (Raft §6): what one asks for, why it is refused, and its two steps.
//!
//! ```text
//!              changed_by                          leave_joint
//!  Uniform ───────────────► Joint { old, new } ───────────────► Uniform (new)
//!     ▲ │                                                          by the leader itself, once the
//!     └─┘ changed_by, if the voters stay the same                  joint one is committed
//! ```
//!
//! Any number of nodes changes at once. Whenever the set of voters changes, the way leads through a
//! joint membership, in which a decision needs a majority of both sets; so no two majorities of
//! neighbouring memberships can decide differently. Who only joins or leaves as a learner changes
//! no majority and needs one step.
//!
//! This file is the algebra alone. What the log and the peers have to say to a change is in
//! `role/reconfigure.rs`.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use crate::{LogIndex, Membership, MembershipError, NodeId, NodeInfo, Voters};

/// What becomes of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeChange {
    /// A new node begins to receive the log. It votes once it is promoted.
    AddLearner {
        /// Its id, above every id ever given ([`Membership::highest_id`]).
        id: NodeId,
        /// Its addresses.
        info: NodeInfo,
    },
    /// A member is reached elsewhere, or its storage id became known.
    SetInfo {
        /// The member.
        id: NodeId,
        /// Its addresses from now on.
        info: NodeInfo,
    },
    /// A learner becomes a voter.
    Promote(NodeId),
    /// A voter becomes a learner.
    Demote(NodeId),
    /// A member leaves for good. Its id is never given again.
    Remove(NodeId),
    /// A learner becomes a voter in the place of another member, which leaves for good.
    Replace {
        /// Who leaves.
        remove: NodeId,
        /// Who votes instead.
        promote: NodeId,
    },
}

/// What shall become of some nodes, all at once. A node is named at most once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MembershipChange(pub Vec<NodeChange>);

impl From<NodeChange> for MembershipChange {
    fn from(change: NodeChange) -> Self {
        Self(Vec::from([change]))
    }
}

impl MembershipChange {
    /// The learners that shall vote.
    pub fn promoted(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter().filter_map(|change| match change {
            NodeChange::Promote(id) | NodeChange::Replace { promote: id, .. } => Some(*id),
            NodeChange::AddLearner { .. }
            | NodeChange::SetInfo { .. }
            | NodeChange::Demote(_)
            | NodeChange::Remove(_) => None,
        })
    }
}

/// Why a membership is not changed. Nothing happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeError {
    /// Nothing shall change.
    #[error("the change names no node")]
    Empty,
    /// A node is named twice.
    #[error("the change names node {0} twice")]
    Repeated(NodeId),
    /// A node is no member.
    #[error("node {0} is no member")]
    NotMember(NodeId),
    /// A node to be added is a member.
    #[error("node {0} is a member already")]
    AlreadyMember(NodeId),
    /// An id was given before. Its node may come back with what it once promised, so another must
    /// not have it.
    #[error("id {id} was given before: the next free id is {}", highest.get() + 1)]
    IdUsed {
        /// The id asked for.
        id: NodeId,
        /// The highest id ever given.
        highest: NodeId,
    },
    /// A voter cannot be promoted.
    #[error("node {0} votes already")]
    AlreadyVoter(NodeId),
    /// Only a voter can be demoted.
    #[error("node {0} is a learner already")]
    AlreadyLearner(NodeId),
    /// The storage of a member is known and is another.
    #[error("node {0} has another storage id: a new storage needs a new id")]
    OtherStorage(NodeId),
    /// Nobody would be left to vote.
    #[error("no voter would be left")]
    NoVoters,
    /// The entry with the last change, or its second step, is not committed.
    #[error("the change at index {at} is still under way")]
    Pending {
        /// Where the latest membership stands in the log.
        at: LogIndex,
    },
    /// The leader has committed nothing in its term yet. Until then it cannot know whether an
    /// earlier change is still under way elsewhere.
    #[error("the leader has not committed an entry of its own term yet: try again in a moment")]
    TooEarly,
    /// A learner has not answered within the shortest election timeout.
    #[error("learner {0} does not answer: as a voter it could only stop the others")]
    LearnerSilent(NodeId),
    /// A learner has not kept up with the log for long enough.
    #[error("learner {id} has the log up to index {matched} of {last} and is still catching up")]
    LearnerBehind {
        /// The learner.
        id: NodeId,
        /// Up to here it has the log.
        matched: LogIndex,
        /// The end of the log.
        last: LogIndex,
    },
    /// No majority of the old or of the new voters has answered within the shortest election
    /// timeout, so the change could not finish.
    #[error("no majority of the voters before and after the change answers: it could not finish")]
    NoQuorum,
    /// There is no joint membership to leave.
    #[error("no change is under way")]
    NotJoint,
    /// The result is no membership.
    #[error(transparent)]
    Invalid(#[from] MembershipError),
}

/// The parts of a membership, while a change is worked into them.
struct Draft {
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    nodes: BTreeMap<NodeId, NodeInfo>,
    highest_id: NodeId,
    named: BTreeSet<NodeId>,
}

impl Draft {
    /// A member, named for the first time.
    fn member(&mut self, id: NodeId) -> Result<NodeId, ChangeError> {
        if !self.nodes.contains_key(&id) {
            return Err(ChangeError::NotMember(id));
        }
        self.name(id)
    }

    fn name(&mut self, id: NodeId) -> Result<NodeId, ChangeError> {
        if self.named.insert(id) { Ok(id) } else { Err(ChangeError::Repeated(id)) }
    }

    fn work_in(&mut self, change: &NodeChange) -> Result<(), ChangeError> {
        match change {
            NodeChange::AddLearner { id, info } => {
                let id = self.name(*id)?;
                if self.nodes.contains_key(&id) {
                    return Err(ChangeError::AlreadyMember(id));
                }
                if id <= self.highest_id {
                    return Err(ChangeError::IdUsed { id, highest: self.highest_id });
                }
                self.nodes.insert(id, info.clone());
                self.learners.insert(id);
            }
            NodeChange::SetInfo { id, info } => {
                let id = self.member(*id)?;
                let known = self.nodes.get(&id).and_then(|node| node.storage_id);
                if known.is_some() && known != info.storage_id {
                    return Err(ChangeError::OtherStorage(id));
                }
                self.nodes.insert(id, info.clone());
            }
            NodeChange::Promote(id) => self.promote(*id)?,
            NodeChange::Demote(id) => {
                let id = self.member(*id)?;
                if !self.voters.remove(&id) {
                    return Err(ChangeError::AlreadyLearner(id));
                }
                self.learners.insert(id);
            }
            NodeChange::Remove(id) => self.remove(*id)?,
            NodeChange::Replace { remove, promote } => {
                self.remove(*remove)?;
                self.promote(*promote)?;
            }
        }
        Ok(())
    }

    fn promote(&mut self, id: NodeId) -> Result<(), ChangeError> {
        let id = self.member(id)?;
        if !self.learners.remove(&id) {
            return Err(ChangeError::AlreadyVoter(id));
        }
        self.voters.insert(id);
        Ok(())
    }

    fn remove(&mut self, id: NodeId) -> Result<(), ChangeError> {
        let id = self.member(id)?;
        self.voters.remove(&id);
        self.learners.remove(&id);
        Ok(())
    }
}

impl Membership {
    /// The membership that begins `change`: a joint one if the set of voters changes, in which who
    /// is to be demoted still votes in the old set alone.
    ///
    /// # Errors
    /// The first rule that `change` breaks; [`ChangeError::Pending`] at index 0 if this membership
    /// is joint itself.
    pub fn changed_by(&self, change: &MembershipChange) -> Result<Self, ChangeError> {
        let Voters::Uniform(old) = self.voters() else {
            return Err(ChangeError::Pending { at: LogIndex(0) });
        };
        let mut draft = Draft {
            voters: old.clone(),
            learners: self.learners().clone(),
            nodes: self.nodes().clone(),
            highest_id: self.highest_id(),
            named: BTreeSet::new(),
        };
        if change.0.is_empty() {
            return Err(ChangeError::Empty);
        }
        for node in &change.0 {
            draft.work_in(node)?;
        }
        let Draft { voters: new, mut learners, mut nodes, .. } = draft;
        if new.is_empty() {
            return Err(ChangeError::NoVoters);
        }
        // Who votes in the old set until the change is done is no learner before.
        let demoted: BTreeSet<NodeId> = learners.intersection(old).copied().collect();
        learners.retain(|id| !demoted.contains(id));
        nodes.retain(|id, _| old.contains(id) || new.contains(id) || learners.contains(id));
        let highest_id =
            nodes.keys().next_back().map_or(self.highest_id(), |id| self.highest_id().max(*id));
        let voters = if *old == new {
            Voters::Uniform(new)
        } else {
            Voters::Joint { old: old.clone(), new }
        };
        Ok(Self::from_parts(voters, learners, demoted, nodes, highest_id)?)
    }

    /// The membership that ends the change which this joint one began.
    ///
    /// # Errors
    /// [`ChangeError::NotJoint`] if no change is under way.
    pub fn leave_joint(&self) -> Result<Self, ChangeError> {
        let Voters::Joint { new, .. } = self.voters() else {
            return Err(ChangeError::NotJoint);
        };
        let learners: BTreeSet<NodeId> =
            self.learners().union(self.demote_on_leave()).copied().collect();
        let mut nodes = self.nodes().clone();
        nodes.retain(|id, _| new.contains(id) || learners.contains(id));
        let voters = Voters::Uniform(new.clone());
        Ok(Self::from_parts(voters, learners, BTreeSet::new(), nodes, self.highest_id())?)
    }
}
