//! Quarantine: a node that has lost entries it had acknowledged follows, and does not vote.
//!
//! Others count on what a node has acknowledged: an entry is committed when a quorum has it. If one of them
//! loses it and then votes as if it had never had it, a candidate without the entry can be elected, and
//! the entry is gone. That election is all that a shortened log endangers, as long as the ballot is
//! intact. So such a node takes the log and acknowledges truthfully what it has, which may count, but
//! gives no vote and does not stand for election until it has again what it had.
//!
//! What it had is known if the log still tells where it ended, or if the leader saw the loss: the end
//! of the leader's own log covers everything committed, since the leader has all of that (Raft §5.4.3).
//! Otherwise an entry of a later term than any before the loss has to be committed: its leader was elected
//! without this node's vote, so it had everything.
//!
//! The leader sees a loss by a rejection of a message about an entry that the follower had acknowledged
//! *before* the message was sent (`progress.rs`); its heartbeats ask about the last such entry. A follower
//! that was told keeps being told with every heartbeat until it has caught up, in case the word is lost.

use crate::{LogIndex, NodeId, Term, common::Common, raft::Raft, role::Role};

/// How long a node that has lost a part of its log does not vote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quarantine {
    /// Until its log is durable up to this index, the last it may have acknowledged.
    Until(LogIndex),
    /// Until it has an entry of a later term than this that is durable here and known to be committed: it is
    /// not known how long the log was. This is the term of the ballot at the first start after the loss.
    After(Term),
}

impl Common {
    /// Leaves quarantine if everything is here again.
    pub(super) fn end_quarantine(&mut self) {
        let durable = self.writer.durable_index();
        let over = match self.quarantine {
            None => return,
            Some(Quarantine::Until(had)) => durable >= had,
            Some(Quarantine::After(term)) => {
                self.log.term_at(self.commit.min(durable)).is_some_and(|here| here > term)
            }
        };
        if over {
            self.set_quarantine(None);
        }
    }
}

impl Raft {
    /// The leader says that this node has lost something up to `had`.
    pub(crate) fn on_regressed(&mut self, from: NodeId, term: Term, had: LogIndex) {
        let is_led = match &self.role {
            Role::Follower(follower) => follower.leader.is_some_and(|leading| leading.id == from),
            Role::PreCandidate(_) | Role::Candidate(_) | Role::Leader(_) | Role::Halted => false,
        };
        let common = &mut self.common;
        if !is_led || term != common.term() || !common.config.quarantine {
            return;
        }
        if had > common.writer.durable_index() {
            common.set_quarantine(match common.quarantine {
                None => Some(Quarantine::Until(had)),
                Some(Quarantine::Until(before)) => Some(Quarantine::Until(before.max(had))),
                // It ends later than this would.
                Some(Quarantine::After(term)) => Some(Quarantine::After(term)),
            });
        }
    }
}
