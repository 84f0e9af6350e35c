//! The entry to the state machine: [`Raft`] takes inputs, routes them by kind and role, and emits
//! effects. What a role does is in `role/`; what all roles share is in `common`.
//!
//! Invariants
//! 1. `step` emits nothing and `flush` learns nothing: however inputs are grouped between flushes,
//!    every effect is legal.
//! 2. The same inputs at the same times with the same seed give the same effects, bit for bit.

use core::time::Duration;

use alloc::sync::Arc;

use crate::{
    Config, Effect, Effects, Entry, Envelope, FatalError, FetchFailed, FetchId, Input, Membership,
    Message, Micros, NodeId, Recovered, Reject, RoleChange, RoleKind, StartError, Status, Ticket,
    common::Common,
    read_index::Asker,
    role::{Follower, Role, half, leader::Answer},
};

/// One node's consensus state machine. See the [crate's documentation](crate) for the contract of
/// whoever drives it.
#[derive(Debug)]
pub struct Raft {
    pub(crate) common: Common,
    pub(crate) role: Role,
    pub(crate) fatal: Option<FatalError>,
    /// The deadline as of the last flush: a timer far behind it shows that the process stood still.
    promised: Micros,
    /// A late timer was forgiven, and none came in time since.
    forgiven: bool,
    shown: RoleChange,
    shown_membership: Arc<Membership>,
    removal_shown: bool,
}

impl Raft {
    /// A follower, from what was found on disk. `seed` decides the random timeouts: give every node
    /// and every boot another, else elections tie again and again.
    ///
    /// # Errors
    /// What does not fit together. The node must not start then.
    pub fn new(
        id: NodeId,
        config: Config,
        recovered: Recovered,
        seed: u64,
        now: Micros,
    ) -> Result<Self, StartError> {
        config.validate()?;
        recovered.validate()?;
        let mut common = Common::new(id, config, &recovered, seed, now);
        let timeout = common.draw_election_timeout();
        let follower = Follower::new(None, timeout, now.after(timeout));
        let shown = RoleChange { role: RoleKind::Follower, term: common.term(), leader: None };
        let shown_membership = Arc::clone(common.membership());
        let mut raft = Self {
            common,
            role: Role::Follower(follower),
            fatal: None,
            promised: now,
            forgiven: false,
            shown,
            shown_membership,
            removal_shown: false,
        };
        raft.promised = raft.deadline();
        Ok(raft)
    }

    /// Takes one input and marks the work that follows. Emits nothing; cheap.
    ///
    /// # Panics
    /// If the driver reports what cannot be: a write durable that was never given out, or an entry
    /// applied that was never handed over. No message of a peer makes it panic.
    pub fn step(&mut self, now: Micros, input: Input) {
        self.common.now = self.common.now.max(now);
        match input {
            Input::Message(envelope) => self.on_message(envelope),
            Input::Propose { ticket, commands } => match &mut self.role {
                Role::Leader(leader) => leader.on_propose(&mut self.common, ticket, commands),
                Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) | Role::Halted => {
                    self.refuse_unled(ticket);
                }
            },
            Input::Read { ticket } => self.on_read(ticket),
            Input::ChangeMembership { ticket, change } => match &mut self.role {
                Role::Leader(leader) => leader.on_change(&mut self.common, ticket, &change),
                Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) | Role::Halted => {
                    self.refuse_unled(ticket);
                }
            },
            Input::TransferLeader { ticket, to } => match &mut self.role {
                Role::Leader(leader) => leader.on_transfer(&mut self.common, ticket, to),
                Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) | Role::Halted => {
                    self.refuse_unled(ticket);
                }
            },
            Input::Timer => self.on_timer(),
            Input::Persisted { upto } => {
                self.common.writer.persisted(upto);
                self.count_votes();
            }
            Input::PersistFailed => self.halt(FatalError::PersistFailed),
            Input::Applied { upto } => {
                self.common.apply.on_applied(upto);
                let (applied, last) = (self.common.apply.applied, self.common.log.last().index);
                self.common.unapplied.applied(applied, last);
            }
            Input::StateDurable { upto } => {
                let applied = self.common.apply.applied;
                assert!(
                    upto <= applied,
                    "{upto} is reported as kept, but only {applied} is applied"
                );
                self.common.state_durable = self.common.state_durable.max(upto);
            }
            Input::Fetched { id, result } => self.on_fetched(id, result),
            Input::SnapshotProgress { id, at } => self.common.on_snapshot_progress(id, at),
            Input::SnapshotStaged { id, meta } => self.on_snapshot_staged(id, meta),
            Input::SnapshotFailed { id } => self.common.on_snapshot_failed(id),
            Input::PeerUnreachable(id) => {
                if let Role::Leader(leader) = &mut self.role {
                    leader.on_unreachable(&self.common, id);
                }
            }
            Input::PeerDisconnected(id) => match &mut self.role {
                Role::Leader(leader) => leader.on_unreachable(&self.common, id),
                Role::Follower(follower) => follower.on_disconnected(&mut self.common, id),
                Role::PreCandidate(_) | Role::Candidate(_) | Role::Halted => {}
            },
        }
    }

    /// Turns the marked work into the fewest effects: at most one write, one message for each free
    /// place in a peer's window, one batch to apply. A second call right after emits nothing.
    pub fn flush(&mut self, now: Micros, out: &mut Effects) {
        self.common.now = self.common.now.max(now);
        if !matches!(self.role, Role::Halted) {
            // A leader may append the second step of a change, so the log is sealed after it.
            self.advance_leader();
            self.common.log.seal();
            self.common.flush_write(out);
            self.common.flush_quarantine(out);
            self.flush_compaction(out);
            match &mut self.role {
                Role::Leader(leader) => leader.flush(&mut self.common, out),
                Role::Follower(follower) => follower.flush(&mut self.common),
                Role::PreCandidate(_) | Role::Candidate(_) | Role::Halted => {}
            }
            self.common.outbox.flush(self.common.ballot, &self.common.writer, out);
        }
        self.common.end_needless_reception();
        self.common.flush_replies(out);
        if !matches!(self.role, Role::Halted) {
            self.common.flush_apply(out);
            self.common.evict();
        }
        self.flush_changes(out);
        self.promised = self.deadline();
    }

    /// When [`Input::Timer`] is due. Never in the past for long: a due timer that was reported
    /// moves it.
    #[must_use]
    pub fn deadline(&self) -> Micros {
        let role = match &self.role {
            Role::Follower(follower) => follower.deadline(),
            Role::PreCandidate(trial) => trial.retry_at,
            Role::Candidate(real) => real.retry_at,
            Role::Leader(leader) => leader.deadline(),
            Role::Halted => return Micros(u64::MAX),
        };
        self.common.apply.retry_at().map_or(role, |retry| retry.min(role))
    }

    /// What can be seen from outside.
    #[must_use]
    pub fn status(&self) -> Status<'_> {
        let common = &self.common;
        let (membership_at, membership) = common.log.membership();
        let (now, span) = (common.now, common.config.election_min);
        let (peers, waiting_reads) = match &self.role {
            Role::Leader(leader) => {
                let peers = leader.peers.iter().map(|peer| peer.status(now, span));
                (peers.collect(), leader.waiting_reads())
            }
            Role::Follower(follower) => (alloc::vec::Vec::new(), follower.waiting_reads()),
            Role::PreCandidate(_) | Role::Candidate(_) | Role::Halted => {
                (alloc::vec::Vec::new(), 0)
            }
        };
        let mut counters = common.counters;
        counters.overflowed_messages += common.outbox.overflowed;
        Status {
            id: common.id,
            role: self.role.kind(),
            ballot: common.ballot,
            leader: self.leader(),
            base: common.log.base(),
            last: common.log.last(),
            durable: common.writer.durable_index(),
            commit: common.commit,
            applied: common.apply.applied,
            membership,
            membership_at,
            removed_at: common.removed,
            quarantine: common.quarantine,
            transferring_to: match &self.role {
                Role::Leader(leader) => leader.transferring_to(),
                Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) | Role::Halted => {
                    None
                }
            },
            unapplied_bytes: common.unapplied.bytes(),
            tail_bytes: common.log.tail_bytes(),
            waiting_reads,
            gated_messages: common.outbox.gated(),
            oldest_write_at: common.writer.oldest_issued_at(),
            peers,
            counters,
        }
    }

    /// Checks what must hold between any two calls. For tests: it walks over everything in memory.
    ///
    /// # Panics
    /// If something does not hold, with the numbers.
    pub fn check_invariants(&self) {
        self.common.check_invariants();
        match &self.role {
            Role::Leader(leader) => leader.check_invariants(&self.common),
            Role::Follower(follower) => follower.check_invariants(&self.common),
            Role::PreCandidate(_) | Role::Candidate(_) | Role::Halted => {}
        }
    }

    fn on_message(&mut self, envelope: Envelope) {
        let Envelope { from, to, term, msg } = envelope;
        if matches!(self.role, Role::Halted) {
            return;
        }
        if to != self.common.id || from == self.common.id {
            self.common.counters.invalid_messages += 1;
            return;
        }
        let current = term == self.common.term();
        match msg {
            Message::Append { prev, entries, commit, probe, sent_at, read } => {
                self.on_append(crate::role::Append {
                    from,
                    term,
                    prev,
                    entries,
                    commit,
                    probe,
                    sent_at,
                    read,
                });
            }
            Message::AppendOk { matched, probe, echo, read } => {
                if let Role::Leader(leader) = &mut self.role
                    && current
                {
                    leader.on_ok(&mut self.common, Answer { from, probe, echo, read }, matched);
                }
            }
            Message::AppendReject { probe, hint, echo, read } => {
                if term > self.common.term() {
                    self.adopt_higher_term(from, term);
                } else if let Role::Leader(leader) = &mut self.role
                    && current
                {
                    leader.on_reject(&mut self.common, Answer { from, probe, echo, read }, hint);
                }
            }
            Message::Vote { kind, last } => self.on_vote(from, term, kind, last),
            Message::VoteReply { kind, granted, asked } => {
                self.on_vote_reply(from, term, kind, granted, asked);
            }
            Message::ReadIndex { id } => {
                if let Role::Leader(leader) = &mut self.role
                    && current
                    && self.common.membership().contains(from)
                {
                    leader.on_read(&mut self.common, Asker::Peer(from, id));
                }
            }
            Message::ReadIndexReply { id, index } => {
                if let Role::Follower(follower) = &mut self.role
                    && current
                    && follower.leader.is_some_and(|leading| leading.id == from)
                {
                    follower.on_read_index(&mut self.common, id, index);
                }
            }
            Message::TimeoutNow { at } => {
                if current {
                    self.on_timeout_now(from, at);
                }
            }
            Message::Removed { at } => self.on_removed(at),
            Message::Regressed { had } => self.on_regressed(from, term, had),
            Message::SnapshotOffer { at } => self.on_snapshot_offer(from, term, at),
            Message::SnapshotUnderWay { at } => {
                if let Role::Leader(leader) = &mut self.role
                    && current
                {
                    leader.on_under_way(&mut self.common, from, at);
                }
            }
        }
    }

    /// Lets go of the beginning of the log; a leader only of what its peers do not need.
    fn flush_compaction(&mut self, out: &mut Effects) {
        match &mut self.role {
            Role::Leader(leader) => leader.flush_compaction(&mut self.common, out),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                self.common.flush_compaction(None, out);
            }
            Role::Halted => {}
        }
    }

    fn on_read(&mut self, ticket: Ticket) {
        match &mut self.role {
            Role::Leader(leader) => leader.on_read(&mut self.common, Asker::Here(ticket)),
            Role::Follower(follower) => follower.on_read(&mut self.common, ticket),
            Role::PreCandidate(_) | Role::Candidate(_) => {
                self.common.reject(ticket, Reject::NotLeader { hint: None });
            }
            Role::Halted => self.common.reject(ticket, Reject::Halted),
        }
    }

    fn on_timer(&mut self) {
        let now = self.common.now;
        // A pause of the whole process: what would have kept the timers from running out may be
        // waiting to be read. One more timeout is granted, once, so that a machine that is always
        // late still holds elections.
        let half_timeout: Duration = half(self.common.config.election_min);
        let late = now > self.promised.after(half_timeout);
        let forgive = late && !self.forgiven;
        self.forgiven = late;
        let may_stand = self.may_stand();
        match &mut self.role {
            Role::Follower(follower) => {
                follower.expire_reads(&mut self.common);
                if follower.election_at > now {
                    return;
                }
                if forgive || !may_stand {
                    follower.restart_timeout(now);
                } else {
                    self.start_pre_election();
                }
            }
            Role::PreCandidate(trial) if trial.retry_at <= now => self.start_pre_election(),
            Role::Candidate(real) if real.retry_at <= now => self.start_pre_election(),
            Role::PreCandidate(_) | Role::Candidate(_) | Role::Halted => {}
            Role::Leader(leader) => {
                if leader.on_timer(&mut self.common, forgive) {
                    self.step_down_without_quorum();
                }
            }
        }
    }

    fn on_fetched(&mut self, id: FetchId, result: Result<Arc<[Entry]>, FetchFailed>) {
        let awaited = match &self.role {
            Role::Leader(leader) => leader.awaits(id),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => None,
            Role::Halted => return,
        };
        let Some(lo) = awaited.or_else(|| self.common.apply.awaits(id)) else {
            // The role that asked is gone; its log may have changed since.
            return;
        };
        let entries = match result {
            Ok(entries) if !entries.is_empty() => Some(entries),
            Ok(_) | Err(FetchFailed::Unavailable) => None,
        };
        if let Some(entries) = &entries
            && let Err(error) = self.common.check_fetched(lo, entries)
        {
            self.halt(error);
            return;
        }
        let retry = self.common.now.after(self.common.config.heartbeat);
        if let Role::Leader(leader) = &mut self.role {
            leader.on_fetched(id, entries.as_ref(), retry);
        }
        self.common.apply.on_fetched(id, entries, retry);
    }

    /// Refuses what only a leader can do.
    fn refuse_unled(&mut self, ticket: Ticket) {
        let why = match &self.role {
            Role::Halted => Reject::Halted,
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) | Role::Leader(_) => {
                Reject::NotLeader { hint: self.leader() }
            }
        };
        self.common.reject(ticket, why);
    }

    /// Reports what changed for the whole node since the last flush.
    fn flush_changes(&mut self, out: &mut Effects) {
        let now =
            RoleChange { role: self.role.kind(), term: self.common.term(), leader: self.leader() };
        let role_changed = now != self.shown;
        if role_changed {
            self.shown = now;
            out.push(Effect::Role(now));
        }
        let membership = self.common.membership();
        if !Arc::ptr_eq(membership, &self.shown_membership) {
            self.shown_membership = Arc::clone(membership);
            out.push(Effect::MembershipEffective(Arc::clone(membership)));
        }
        if !membership.contains(self.common.id)
            && !matches!(self.role, Role::Leader(_))
            && let Some(at) = self.common.removed_at(self.common.id)
        {
            self.common.note_removal(at);
        }
        // Whoever stops at this word loses nothing by it: what a leader said last has left with an
        // earlier flush, and the callers of what is committed here have had their answers.
        let is_through =
            |at| self.common.commit < at || self.common.apply.applied >= self.common.commit;
        if let Some(at) = self.common.removed
            && !self.removal_shown
            && !role_changed
            && is_through(at)
        {
            self.removal_shown = true;
            out.push(Effect::Removed { at });
        }
        if let Some(error) = self.fatal.take() {
            out.push(Effect::Fatal(error));
        }
    }
}
