//! Handing leadership over (thesis §3.10), at the wish of the caller or because the leader has no
//! vote any more.
//!
//! From the start of a transfer the leader appends nothing, so its log has a fixed end. Once the
//! other node has all of it, durably, it is told to stand for election at once. It needs no trial,
//! and others vote although they hear a leader: that leader itself wants it. Until a later term is
//! heard of, this node still leads; if that takes longer than the shortest election timeout, it
//! goes on as before.
//!
//! A leader without a vote does the same, but waits until everything is committed and then gives up
//! its place for good, so no caller is left without an answer.

use super::{Role, leader::Leader};
use crate::{
    LogIndex, LogPos, Message, Micros, NodeId, Outcome, Reject, Ticket, TransferError, VoteKind,
    Voters, common::Common, raft::Raft,
};

/// A transfer under way.
#[derive(Debug)]
pub(super) struct Transfer {
    to: NodeId,
    /// Who asked for it; `None` if the leader has to go anyway.
    ticket: Option<Ticket>,
    /// The end of the log, beyond which nothing is appended.
    fence: LogIndex,
    pub(super) give_up_at: Micros,
    /// The other is to be told, or told again.
    pub(super) due: bool,
    /// The other was told at least once.
    told: bool,
}

impl Leader {
    /// Whom the place is being handed to.
    pub(crate) fn transferring_to(&self) -> Option<NodeId> {
        self.transfer.as_ref().map(|transfer| transfer.to)
    }

    /// Begins a transfer, or refuses it with the reason.
    pub(crate) fn on_transfer(&mut self, common: &mut Common, ticket: Ticket, to: Option<NodeId>) {
        if let Some(to) = self.transferring_to() {
            common.reject(ticket, Reject::Transferring { to });
            return;
        }
        if to == Some(common.id) {
            common.reply(ticket, Outcome::Done);
            return;
        }
        match self.successor(common, to) {
            Ok(to) => self.begin_transfer(common, to, Some(ticket)),
            Err(why) => common.reject(ticket, Reject::Transfer(why)),
        }
    }

    /// Who may take over: `wanted`, or who has most of the log.
    fn successor(&self, common: &Common, wanted: Option<NodeId>) -> Result<NodeId, TransferError> {
        let (now, span) = (common.now, common.config.election_min);
        let votes = |id| common.membership().is_voter(id);
        let stays = |id| match common.membership().voters() {
            Voters::Uniform(voters) | Voters::Joint { new: voters, .. } => voters.contains(&id),
        };
        let Some(id) = wanted else {
            let heard = self.peers.iter().filter(|peer| stays(peer.id) && peer.is_heard(now, span));
            // Of equals the first by id.
            let best = heard.rev().max_by_key(|peer| peer.matched);
            return best.map(|peer| peer.id).ok_or(TransferError::NoTarget);
        };
        if !votes(id) {
            return Err(TransferError::NotVoter(id));
        }
        let heard = self.peer(id).is_some_and(|peer| peer.is_heard(now, span));
        if heard { Ok(id) } else { Err(TransferError::Silent(id)) }
    }

    fn begin_transfer(&mut self, common: &Common, to: NodeId, ticket: Option<Ticket>) {
        let give_up_at = common.now.after(common.config.election_min);
        let fence = common.log.last().index;
        self.transfer = Some(Transfer { to, ticket, fence, give_up_at, due: true, told: false });
    }

    /// A committed membership has no vote for this node: it hands over to whoever has most.
    pub(super) fn begin_to_leave(&mut self, common: &Common) {
        if self.leave_by.is_none() {
            self.leave_by = Some(common.now.after(common.config.election_min));
        }
        if self.transfer.is_none()
            && let Ok(to) = self.successor(common, None)
        {
            self.begin_transfer(common, to, None);
        }
    }

    /// Tells the other once it has the whole log. `true` if this node has to give up its place now.
    #[must_use]
    pub(super) fn drive_transfer(&mut self, common: &mut Common) -> bool {
        let late = self.leave_by.is_some_and(|at| at <= common.now);
        let leaves = self.leave_by.is_some();
        let Some(transfer) = &mut self.transfer else { return late };
        let last = common.log.last();
        assert!(
            last.index == transfer.fence,
            "the log grew to {} during a transfer begun at {}",
            last.index,
            transfer.fence
        );
        let peer = self.peers.iter().find(|peer| peer.id == transfer.to);
        let ready = peer.is_some_and(|peer| peer.matched == transfer.fence)
            && (!leaves || common.commit == transfer.fence);
        if ready && transfer.due {
            transfer.due = false;
            transfer.told = true;
            common.outbox.send(transfer.to, common.term(), Message::TimeoutNow { at: last });
        }
        late || (leaves && transfer.told)
    }

    /// Gives up a transfer that takes too long.
    pub(super) fn expire_transfer(&mut self, common: &mut Common) {
        let now = common.now;
        if let Some(Transfer { to, ticket, .. }) =
            self.transfer.take_if(|transfer| transfer.give_up_at <= now)
            && let Some(ticket) = ticket
        {
            common.reject(ticket, Reject::Transfer(TransferError::TimedOut(to)));
        }
    }

    /// The role ends: with a later term after the other was told, that was the aim.
    pub(super) fn close_transfer(&mut self, common: &mut Common, why: Reject) {
        let later = self.term < common.term();
        let Some(Transfer { to, ticket: Some(ticket), told, .. }) = self.transfer.take() else {
            return;
        };
        if why == Reject::Halted {
            common.reject(ticket, why);
        } else if told && (later || self.leave_by.is_some()) {
            common.reply(ticket, Outcome::Done);
        } else {
            common.reject(ticket, Reject::Transfer(TransferError::Interrupted(to)));
        }
    }
}

impl Raft {
    /// The leader wants this node to take its place.
    pub(crate) fn on_timeout_now(&mut self, from: NodeId, at: LogPos) {
        let led_by_sender = match &self.role {
            Role::Follower(follower) => follower.leader.is_some_and(|leading| leading.id == from),
            Role::PreCandidate(_) | Role::Candidate(_) | Role::Leader(_) | Role::Halted => false,
        };
        // Only who has all that the leader had can win, and only a voter may.
        if led_by_sender && self.may_stand() && self.common.log.last() == at {
            self.start_election(VoteKind::Transfer);
        }
    }
}
