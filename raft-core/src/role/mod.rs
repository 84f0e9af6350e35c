//! The roles, each with the state that makes sense only in it, and the changes between them.
//!
//! ```text
//!              timeout                 quorum would vote           quorum voted
//!  ┌──────────┐ ──────► ┌──────────────┐ ──────► ┌───────────┐ ──────► ┌────────┐
//!  │ Follower │         │ PreCandidate │         │ Candidate │         │ Leader │
//!  └──────────┘ ◄────── └──────────────┘ ◄────── └───────────┘         └────────┘
//!        ▲   a leader of the term, or a higher term        retry              │
//!        └────────────────────────────────────────────────────────────────────┘
//!             a higher term, no quorum answered for `election_min`, or a committed membership
//!             has no vote for it
//!
//!  Follower ──► Candidate as well, without a trial, when the leader hands over (`transfer.rs`).
//! ```
//!
//! A node always starts as a follower, and only becomes leader by counting votes in memory. The
//! role is replaced whole, so nothing of it survives: a leader that steps down cannot send another
//! heartbeat, a pre-candidate knows no leader.
//!
//! Who may say what raises the term: an append, a real vote that passed the stickiness rule or that the
//! leader asked for, and a rejection by a member. A granted pre-vote never does.

mod candidate;
mod follower;
pub(crate) mod leader;
mod reconfigure;
mod transfer;

use core::time::Duration;

pub(crate) use candidate::{Candidacy, PreCandidacy};
pub(crate) use follower::{Append, Follower, Leading};
pub(crate) use leader::Leader;

use alloc::boxed::Box;

use crate::mutants::{Mutant, is_active};
use crate::{
    Ballot, FatalError, LogIndex, Message, Micros, NodeId, Reject, RoleKind, Term, VoteKind,
    raft::Raft,
};

/// A role with its state.
#[derive(Debug)]
pub(crate) enum Role {
    Follower(Follower),
    PreCandidate(PreCandidacy),
    Candidate(Candidacy),
    Leader(Box<Leader>),
    Halted,
}

impl Role {
    pub(crate) const fn kind(&self) -> RoleKind {
        match self {
            Self::Follower(_) => RoleKind::Follower,
            Self::PreCandidate(_) => RoleKind::PreCandidate,
            Self::Candidate(_) => RoleKind::Candidate,
            Self::Leader(_) => RoleKind::Leader,
            Self::Halted => RoleKind::Halted,
        }
    }
}

/// How long a new follower waits before it stands for election.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Patience {
    /// A full election timeout: someone leads, or was just voted for.
    Full,
    /// As before: what happened gives no reason to wait longer. Who was no follower waits as
    /// before another try.
    Unchanged,
}

impl Raft {
    /// Becomes a follower in `term`, which is this one or a later one.
    pub(crate) fn become_follower(
        &mut self,
        term: Term,
        leader: Option<NodeId>,
        patience: Patience,
    ) {
        let now = self.common.now;
        // The vote is kept unless the term grows: forgetting it would allow a second one.
        if term > self.common.term() {
            self.common.set_ballot(Ballot { term, voted_for: None });
        }
        let timeout = self.common.draw_election_timeout();
        let election_at = match (patience, &self.role) {
            (Patience::Full, _) => now.after(timeout),
            (Patience::Unchanged, Role::Follower(follower)) => follower.election_at,
            (
                Patience::Unchanged,
                Role::PreCandidate(_) | Role::Candidate(_) | Role::Leader(_) | Role::Halted,
            ) => now.after(self.common.draw_retry()),
        };
        let leader = leader.map(|id| Leading { id, last_contact: now, is_connected: true });
        self.change_role(Role::Follower(Follower::new(leader, timeout, election_at)));
    }

    /// Stops for good.
    pub(crate) fn halt(&mut self, error: FatalError) {
        if !matches!(self.role, Role::Halted) {
            self.change_role(Role::Halted);
            self.common.forget_all_tickets();
            self.common.outbox.clear();
            self.fatal = Some(error);
        }
    }

    /// Replaces the role. What waits for it gets its answer.
    pub(crate) fn change_role(&mut self, role: Role) {
        let why = match role {
            Role::Halted => Reject::Halted,
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) | Role::Leader(_) => {
                Reject::NoQuorum
            }
        };
        match core::mem::replace(&mut self.role, role) {
            Role::Follower(follower) => follower.close(&mut self.common, why),
            Role::Leader(leader) => leader.close(&mut self.common, why),
            Role::Candidate(_) => self.common.outbox.withdraw_votes(),
            Role::PreCandidate(_) | Role::Halted => {}
        }
    }

    /// The leader of this term, if known.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Follower(follower) => follower.leader.map(|leading| leading.id),
            Role::Leader(_) => Some(self.common.id),
            Role::PreCandidate(_) | Role::Candidate(_) | Role::Halted => None,
        }
    }

    /// Whether this node refuses to take part in an election that `asker` wants: it leads, or has
    /// heard from the leader within the shortest election timeout (Raft §6, thesis §4.2.3) and the
    /// connection to it has not broken since.
    fn is_sticky(&self, asker: NodeId) -> bool {
        match &self.role {
            Role::Leader(_) => true,
            Role::Follower(Follower { leader: Some(leading), .. }) => {
                // The known leader itself has given up its place if it asks.
                leading.id != asker
                    && leading.is_connected
                    && leading.last_contact.after(self.common.config.election_min) > self.common.now
            }
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) | Role::Halted => false,
        }
    }

    /// Answers a request for a vote in term `asked` (Raft §5.2, §5.4.1).
    ///
    /// Members and strangers, voters and learners are answered alike: whoever asks may know a
    /// newer membership than this node. Only who is known to be removed for good is told so.
    pub(crate) fn on_vote(
        &mut self,
        from: NodeId,
        asked: Term,
        kind: VoteKind,
        last: crate::LogPos,
    ) {
        if let Some(at) = self.common.removed_at(from) {
            // It missed its removal, and would ask for ever.
            let term = self.common.term();
            self.common.outbox.send(from, term, Message::Removed { at });
            return;
        }
        let mine = self.common.term();
        if asked < mine {
            // The asker learns the term, else a group with the higher term and one with the longer
            // log would refuse each other for ever.
            self.answer_vote(from, kind, asked, false);
            return;
        }
        if kind != VoteKind::Transfer && self.is_sticky(from) {
            return;
        }
        // In quarantine it does not know what it would have to compare with.
        let up_to_date = last >= self.common.log.last() && self.common.quarantine.is_none();
        match kind {
            VoteKind::Pre => {
                let free = asked > mine || self.may_vote_for(from);
                self.answer_vote(from, kind, asked, free && up_to_date);
            }
            VoteKind::Real | VoteKind::Transfer => {
                if asked > mine {
                    self.become_follower(asked, None, Patience::Unchanged);
                }
                let granted = up_to_date && self.may_vote_for(from);
                if granted {
                    self.common.set_ballot(Ballot { term: asked, voted_for: Some(from) });
                    let now = self.common.now;
                    if let Role::Follower(follower) = &mut self.role {
                        follower.restart_timeout(now);
                    } else {
                        // It asked in trial only, and now helps another.
                        self.become_follower(asked, None, Patience::Full);
                    }
                }
                self.answer_vote(from, kind, asked, granted);
            }
        }
    }

    /// Whether the vote of this term is free, or already given to `id`.
    fn may_vote_for(&self, id: NodeId) -> bool {
        self.common.ballot.voted_for.is_none_or(|voted| voted == id)
    }

    fn answer_vote(&mut self, to: NodeId, kind: VoteKind, asked: Term, granted: bool) {
        let mut term = self.common.term();
        if is_active(Mutant::PreVoteHidesTerm) && kind == VoteKind::Pre {
            term = term.min(Term(asked.0.saturating_sub(1)));
        }
        let msg = Message::VoteReply { kind, granted, asked };
        self.common.outbox.send_after_ballot(to, term, msg);
    }

    /// A member refused, and its term is higher than this node's.
    pub(crate) fn adopt_higher_term(&mut self, from: NodeId, term: Term) {
        if self.common.membership().contains(from) {
            self.become_follower(term, None, Patience::Unchanged);
        }
    }
}

impl Raft {
    /// Whether this node may stand for election: it votes in the committed membership or in a later
    /// one, in any of its sets, was not removed, and lacks nothing that it had acknowledged.
    ///
    /// Also one that has no vote in the latest membership must stand until that is committed, though
    /// its own vote does not count then (thesis §4.2.2): perhaps nobody else has the entry, while the
    /// others still need its vote and cannot get it with their shorter logs.
    pub(crate) fn may_stand(&self) -> bool {
        let memberships = self.common.log.memberships_from(self.common.commit);
        let id = self.common.id;
        self.common.removed.is_none()
            && self.common.quarantine.is_none()
            && memberships.iter().any(|(_, it)| it.is_voter(id))
    }

    /// This node was removed from the cluster for good, says one who knows it to be committed.
    pub(crate) fn on_removed(&mut self, at: LogIndex) {
        match &self.role {
            // It knows better, or will soon: its membership is the newest that can be committed.
            Role::Leader(_) | Role::Halted => {}
            Role::Follower(_) => self.common.note_removal(at),
            Role::PreCandidate(_) | Role::Candidate(_) => {
                self.common.note_removal(at);
                self.become_follower(self.common.term(), None, Patience::Full);
            }
        }
    }
}

/// The earliest of some deadlines.
pub(crate) fn earliest<const N: usize>(deadlines: [Option<Micros>; N]) -> Micros {
    deadlines.into_iter().flatten().min().unwrap_or(Micros(u64::MAX))
}

/// Half of `duration`.
pub(crate) fn half(duration: Duration) -> Duration {
    duration / 2
}
