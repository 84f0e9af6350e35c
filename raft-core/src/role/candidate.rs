//! Standing for election: first in trial (thesis §9.6), then for real (Raft §5.2).
//!
//! The trial raises no term, so a node that is cut off cannot disturb the others when it returns.
//! It repeats its question every heartbeat, with jitter, until a quorum, a leader or a higher term
//! answers. A real election that fails starts over with a trial after a random time. Who is told by
//! the leader to take its place stands at once, without a trial (thesis §3.10).
//!
//! Invariants
//! 1. A real vote is asked for only once the own ballot and log are durable: after a crash the node
//!    might stand again in the same term with a shorter log, and be elected by the earlier answers.
//! 2. The own vote counts only once it is durable.

use alloc::{boxed::Box, collections::BTreeMap, vec::Vec};

use super::{Leader, Role};
use crate::{Ballot, Membership, Message, Micros, NodeId, Term, VoteKind, raft::Raft};

/// A trial election.
#[derive(Debug)]
pub(crate) struct PreCandidacy {
    votes: BTreeMap<NodeId, bool>,
    /// Asks again then.
    pub(crate) retry_at: Micros,
}

/// A real election.
#[derive(Debug)]
pub(crate) struct Candidacy {
    /// By its own decision, or because the leader wants it.
    kind: VoteKind,
    votes: BTreeMap<NodeId, bool>,
    /// Starts over then.
    pub(crate) retry_at: Micros,
}

/// Whether a quorum has granted, the candidate itself by `own`.
fn is_won(membership: &Membership, votes: &BTreeMap<NodeId, bool>, id: NodeId, own: bool) -> bool {
    membership
        .quorum_value(|voter| if voter == id { Some(own) } else { votes.get(&voter).copied() })
}

impl Raft {
    /// Asks whether an election would succeed.
    pub(crate) fn start_pre_election(&mut self) {
        let heartbeat = self.common.config.heartbeat;
        let pause = self.common.draw(heartbeat, heartbeat + super::half(heartbeat));
        let retry_at = self.common.now.after(pause);
        self.common.counters.pre_elections += 1;
        self.change_role(Role::PreCandidate(PreCandidacy { votes: BTreeMap::new(), retry_at }));
        self.ask_for_votes(VoteKind::Pre, Term(self.common.term().0 + 1));
        self.count_votes();
    }

    /// Enters the next term and stands for election in it, of `kind` real or transfer.
    pub(crate) fn start_election(&mut self, kind: VoteKind) {
        let term = Term(self.common.term().0 + 1);
        self.common.set_ballot(Ballot { term, voted_for: Some(self.common.id) });
        let pause = self.common.draw_retry();
        let retry_at = self.common.now.after(pause);
        self.common.counters.elections += 1;
        self.change_role(Role::Candidate(Candidacy { kind, votes: BTreeMap::new(), retry_at }));
        self.ask_for_votes(kind, term);
    }

    fn ask_for_votes(&mut self, kind: VoteKind, asked: Term) {
        let last = self.common.log.last();
        let id = self.common.id;
        let membership = self.common.membership();
        let voters: Vec<NodeId> = membership
            .nodes()
            .keys()
            .copied()
            .filter(|node| *node != id && membership.is_voter(*node))
            .collect();
        for voter in voters {
            let msg = Message::Vote { kind, last };
            match kind {
                VoteKind::Pre => self.common.outbox.send(voter, asked, msg),
                VoteKind::Real | VoteKind::Transfer => {
                    self.common.outbox.send_after_stream(voter, asked, msg)
                }
            }
        }
    }

    /// Takes the answer of a voter whose own term is `term`.
    pub(crate) fn on_vote_reply(
        &mut self,
        from: NodeId,
        term: Term,
        kind: VoteKind,
        granted: bool,
        asked: Term,
    ) {
        let mine = self.common.term();
        // A trial vote may come from a node that is in the term asked for already, and counts without
        // raising this node's: who has the longest log may be the only one that asks (Raft §5.4.1).
        let counts = granted && kind == VoteKind::Pre && term <= asked;
        if term > mine && !counts {
            if !granted {
                self.adopt_higher_term(from, term);
            }
            return;
        }
        let votes = match (&mut self.role, kind) {
            (Role::PreCandidate(trial), VoteKind::Pre) if asked.0 == mine.0 + 1 => &mut trial.votes,
            (Role::Candidate(real), VoteKind::Real | VoteKind::Transfer)
                if asked == mine && term == mine && kind == real.kind =>
            {
                &mut real.votes
            }
            (
                Role::Follower(_)
                | Role::PreCandidate(_)
                | Role::Candidate(_)
                | Role::Leader(_)
                | Role::Halted,
                VoteKind::Pre | VoteKind::Real | VoteKind::Transfer,
            ) => return,
        };
        votes.insert(from, granted);
        self.count_votes();
    }

    /// Goes on if a quorum has granted.
    pub(crate) fn count_votes(&mut self) {
        let id = self.common.id;
        let membership = self.common.membership();
        match &self.role {
            Role::PreCandidate(trial) if is_won(membership, &trial.votes, id, true) => {
                self.start_election(VoteKind::Real);
            }
            Role::Candidate(real)
                if is_won(membership, &real.votes, id, self.common.ballot_is_durable()) =>
            {
                self.common.counters.elections_won += 1;
                let leader = Leader::new(&mut self.common);
                self.change_role(Role::Leader(Box::new(leader)));
            }
            Role::Follower(_)
            | Role::PreCandidate(_)
            | Role::Candidate(_)
            | Role::Leader(_)
            | Role::Halted => {}
        }
    }
}
