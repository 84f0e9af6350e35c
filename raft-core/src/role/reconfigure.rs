//! The leader's part in a change of the membership (Raft §6, thesis §4).
//!
//! A change is admitted, appended, and in force from then on. The leader itself leaves the joint
//! membership, once that is committed by both sets of voters, and reports the change as done when
//! the last step is committed.
//!
//! Invariants
//! 1. No change begins before an entry of the leader's own term is committed and every earlier
//!    membership in the log is. Without the first, two leaders could each commit a change of their
//!    own under majorities that do not meet (Ongaro, raft-dev, 10 July 2015).
//! 2. A joint membership is left only after it is committed, by both sets, also if it was inherited.
//! 3. Who is removed receives the log until that is committed: the change may still be taken back
//!    with the leader, and the node be needed.
//! 4. A leader without a vote leads on until that is committed, without counting itself; then it
//!    hands over and gives up its place.

use alloc::{collections::BTreeSet, sync::Arc};

use super::leader::Leader;
use crate::{
    Body, ChangeError, LogIndex, Membership, MembershipChange, Message, NodeId, Outcome, Reject,
    Ticket, common::Common, progress::Progress,
};

/// Whom the leader sends the log: everyone of the committed membership and of all later ones.
pub(super) fn replicated_to(common: &Common) -> BTreeSet<NodeId> {
    let memberships = common.log.memberships_from(common.commit);
    let ids = memberships.iter().flat_map(|(_, membership)| membership.nodes().keys());
    ids.copied().filter(|id| *id != common.id).collect()
}

impl Leader {
    /// Begins a change, or refuses it with the reason.
    pub(crate) fn on_change(
        &mut self,
        common: &mut Common,
        ticket: Ticket,
        change: &MembershipChange,
    ) {
        if let Some(to) = self.transferring_to() {
            common.reject(ticket, Reject::Transferring { to });
            return;
        }
        match self.admit(common, change) {
            Ok(next) => {
                self.append_membership(common, next);
                self.change = Some(ticket);
            }
            Err(why) => common.reject(ticket, Reject::Change(why)),
        }
    }

    /// The membership that begins `change`, if nothing speaks against it now.
    fn admit(&self, common: &Common, change: &MembershipChange) -> Result<Membership, ChangeError> {
        let (at, membership) = common.log.membership();
        if common.commit < self.first_own {
            return Err(ChangeError::TooEarly);
        }
        if at > common.commit || membership.is_joint() {
            return Err(ChangeError::Pending { at });
        }
        let next = membership.changed_by(change)?;
        let (now, span) = (common.now, common.config.election_min);
        for id in change.promoted() {
            let peer = self.peer(id).filter(|peer| peer.is_heard(now, span));
            let Some(peer) = peer else { return Err(ChangeError::LearnerSilent(id)) };
            if !peer.is_caught_up(now, span) {
                let (matched, last) = (peer.matched, common.log.last().index);
                return Err(ChangeError::LearnerBehind { id, matched, last });
            }
        }
        // Both sets have to answer once: who leaves too, if the old majority needs it.
        let can_finish = next.quorum_value(|voter| {
            let heard = self.peer(voter).is_some_and(|peer| peer.is_heard(now, span));
            Some(voter == common.id || heard)
        });
        if next.is_joint() && !can_finish {
            return Err(ChangeError::NoQuorum);
        }
        Ok(next)
    }

    fn append_membership(&mut self, common: &mut Common, next: Membership) {
        common.append_own(Body::Config(Arc::new(next)));
        self.match_peers(common);
    }

    /// Goes on with a change as far as it is committed. `true` if another membership is in force.
    pub(super) fn follow_membership(&mut self, common: &mut Common) -> bool {
        if common.commit < self.first_own {
            return false;
        }
        self.note_commit(common);
        let (at, membership) = common.log.membership();
        let membership = Arc::clone(membership);
        if at > common.commit {
            return false;
        }
        match membership.leave_joint() {
            // The log must not grow beyond what the next leader is known to have.
            Ok(next) if self.transfer.is_none() => {
                self.append_membership(common, next);
                true
            }
            Ok(_) => false,
            Err(_uniform) => {
                if let Some(ticket) = self.change.take() {
                    common.reply(ticket, Outcome::Done);
                }
                if !membership.is_voter(common.id) {
                    self.begin_to_leave(common);
                }
                false
            }
        }
    }

    /// Looks at the peers anew if a later membership is committed than the last time.
    fn note_commit(&mut self, common: &mut Common) {
        let settled = common.log.membership_at(common.commit).map_or(LogIndex(0), |(at, _)| at);
        if settled > self.settled {
            self.settled = settled;
            self.match_peers(common);
        }
    }

    /// Makes the peers those that the memberships in the log name. Who is removed by a committed
    /// one is told so, once; should that be lost, it learns when it asks for a vote.
    fn match_peers(&mut self, common: &mut Common) {
        let wanted = replicated_to(common);
        let (settled, term) = (self.settled, common.term());
        self.peers.retain(|peer| {
            let stays = wanted.contains(&peer.id);
            if !stays {
                common.outbox.send(peer.id, term, Message::Removed { at: settled });
            }
            stays
        });
        let (next, now) = (common.log.last().index.next(), common.now);
        for id in wanted {
            if let Err(slot) = self.peers.binary_search_by_key(&id, |peer| peer.id) {
                self.peers.insert(slot, Progress::new(id, next, now));
            }
        }
    }
}
