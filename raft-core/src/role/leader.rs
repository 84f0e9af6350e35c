//! The leader: appends, replicates, commits, confirms reads, and gives up when no quorum answers.
//!
//! Invariants
//! 1. A leader never removes or rewrites an entry of its own log (Raft §5.3).
//! 2. The commit index moves only to an entry of the leader's own term (Raft §5.4.2).
//! 3. A leader counts itself only up to its durable index, also when it is alone; its messages
//!    need not wait for its disk (thesis §10.2.1).
//! 4. When its disk stalls a leader falls silent altogether, so that the others replace it.
//!
//! Changes of the membership are in `reconfigure.rs`, the handing over of leadership in `transfer.rs`.

use alloc::{sync::Arc, vec::Vec};

use super::{Patience, earliest, transfer::Transfer};
use crate::mutants::{Mutant, is_active};
use crate::{
    Body, Effect, Effects, Entry, Envelope, FetchFor, FetchId, LogIndex, LogPos, Message, Micros,
    NodeId, Outcome, ProbeId, ReadSeq, Reject, Term, Ticket,
    codec::ENTRY_HEADER_BYTES,
    common::Common,
    progress::{Fetch, Flow, Inflight, Progress},
    raft::Raft,
    read_index::{Asker, ReadQueue},
    role::Role,
};

/// What only a leader has.
#[derive(Debug)]
pub(crate) struct Leader {
    pub(super) term: Term,
    /// The first entry of its term. Reads are served from there on at the earliest: only then is
    /// everything that earlier terms committed known to be committed (Raft §8).
    pub(super) first_own: LogIndex,
    /// Everyone of the committed membership and of later ones but this node, by id.
    pub(crate) peers: Vec<Progress>,
    heartbeat_at: Micros,
    heartbeat_due: bool,
    /// Followers that miss nothing but a higher commit index are told then.
    commit_notice_at: Option<Micros>,
    quorum_check_at: Micros,
    reads: ReadQueue,
    last_probe: ProbeId,
    /// Who asked for the change under way.
    pub(super) change: Option<Ticket>,
    /// The committed membership when the peers were last looked at.
    pub(super) settled: LogIndex,
    pub(super) transfer: Option<Transfer>,
    /// A committed membership has no vote for this node: its place is given up then, at the latest.
    pub(super) leave_by: Option<Micros>,
}

/// An answer of a peer, as far as all answers are alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) from: NodeId,
    pub(crate) probe: ProbeId,
    pub(crate) echo: Micros,
    pub(crate) read: ReadSeq,
}

impl Leader {
    /// Begins to lead, with an empty entry (Raft §8).
    pub(crate) fn new(common: &mut Common) -> Self {
        assert!(
            common.ballot.voted_for == Some(common.id),
            "{} leads with the ballot {:?}",
            common.id,
            common.ballot
        );
        let now = common.now;
        let next = common.log.last().index.next();
        let ids = super::reconfigure::replicated_to(common);
        let peers = ids.into_iter().map(|node| Progress::new(node, next, now)).collect();
        if is_active(Mutant::UnappliedForgottenAtElection) {
            let limit = common.config.max_unapplied_bytes;
            common.unapplied = crate::unapplied::Unapplied::new(next, 0, limit);
        }
        let first_own = common.append_own(Body::Noop).index;
        Self {
            term: common.term(),
            first_own,
            peers,
            heartbeat_at: now.after(common.config.heartbeat),
            heartbeat_due: false,
            commit_notice_at: None,
            quorum_check_at: now.after(common.config.election_min),
            reads: ReadQueue::default(),
            last_probe: ProbeId(0),
            change: None,
            settled: common.commit,
            transfer: None,
            leave_by: None,
        }
    }

    pub(crate) fn deadline(&self) -> Micros {
        earliest([
            Some(self.heartbeat_at),
            Some(self.quorum_check_at),
            self.commit_notice_at,
            self.transfer.as_ref().map(|transfer| transfer.give_up_at),
            self.leave_by,
        ])
    }

    pub(crate) fn waiting_reads(&self) -> usize {
        self.reads.len()
    }

    /// Appends `commands`, all or none.
    pub(crate) fn on_propose(
        &mut self,
        common: &mut Common,
        ticket: Ticket,
        commands: Vec<bytes::Bytes>,
    ) {
        let Ok(count) = u32::try_from(commands.len()) else {
            common.reject(ticket, Reject::Overloaded);
            return;
        };
        if count == 0 {
            common.reject(ticket, Reject::Empty);
            return;
        }
        if let Some(to) = self.transferring_to() {
            common.reject(ticket, Reject::Transferring { to });
            return;
        }
        let bytes: usize = commands.iter().map(|command| ENTRY_HEADER_BYTES + command.len()).sum();
        let standing = common.unapplied.bytes();
        if standing > 0 && standing + bytes > common.config.max_unapplied_bytes {
            common.reject(ticket, Reject::Overloaded);
            return;
        }
        let mut first = None;
        let mut last = LogIndex(0);
        for command in commands {
            let pos = common.append_own(Body::Command(command));
            first.get_or_insert(pos);
            last = pos.index;
        }
        if let Some(first) = first {
            common.remember_ticket(last, ticket);
            common.reply(ticket, Outcome::Appended { first, count });
        }
    }

    /// Takes a read to be confirmed.
    pub(crate) fn on_read(&mut self, common: &mut Common, asker: Asker) {
        if self.reads.len() < common.config.max_waiting_reads {
            self.reads.add(asker, common.commit.max(self.first_own));
            return;
        }
        match asker {
            Asker::Here(ticket) => common.reject(ticket, Reject::Overloaded),
            // The follower's question runs out of time.
            Asker::Peer(_, _) => common.counters.overflowed_messages += 1,
        }
    }

    /// Takes a success: the peer's log is equal up to `matched`, durably.
    pub(crate) fn on_ok(&mut self, common: &mut Common, answer: Answer, matched: LogIndex) {
        let possible = matched <= common.log.last().index;
        if let Some(peer) = self.answered(common, answer, possible) {
            let (base, last, now) = (common.log.base().index, common.log.last().index, common.now);
            peer.on_ok(matched, answer.echo, base, now);
            peer.measure(last, now, common.config.election_min);
        }
    }

    /// Takes a rejection: the peer's log may be equal up to `hint` at most.
    pub(crate) fn on_reject(&mut self, common: &mut Common, answer: Answer, hint: LogPos) {
        // By term, on both sides: one round trip for each term that differs, not for each entry.
        // If they part before the log begins, no question about the log will tell where.
        let begins_later = hint.index < common.log.base().index;
        let same = if begins_later { hint } else { common.log.hint(hint) };
        let next = same.index.next();
        let (last, enabled) = (common.log.last().index, common.config.quarantine);
        let asked = self.last_probe;
        if let Some(peer) = self.answered(common, answer, true) {
            if enabled && peer.shows_loss(answer.probe) {
                peer.on_loss(last, next, asked);
                common.counters.losses += 1;
            } else {
                peer.on_reject(answer.probe, next, answer.echo);
            }
        }
    }

    /// Takes it that a peer is fetching the snapshot it was offered, which covers `at`.
    pub(crate) fn on_under_way(&mut self, common: &mut Common, from: NodeId, at: LogIndex) {
        if at > common.commit {
            common.counters.invalid_messages += 1;
        } else if let Some(peer) = self.peers.iter_mut().find(|peer| peer.id == from)
            && let Flow::Snapshot(offer) = &mut peer.flow
        {
            offer.under_way = at;
        }
    }

    /// Lets go of the beginning of the log, as far as no peer needs it that lacks little.
    pub(crate) fn flush_compaction(&mut self, common: &mut Common, out: &mut Effects) {
        let Some(limits) = common.config.compaction else { return };
        if common.commit < self.first_own {
            // Hardly anybody has said yet what it has.
            return;
        }
        let base = common.log.base().index;
        let held = self.peers.iter().map(|peer| peer.holds(base));
        let needed = held.filter(|at| common.sizes.above(*at) <= limits.lag_bytes_max).min();
        common.flush_compaction(needed, out);
        let base = common.log.base().index;
        for peer in &mut self.peers {
            peer.offer_if_behind(base);
        }
    }

    /// Notes that a peer lives. `None` if it is none, or says what cannot be.
    fn answered(
        &mut self,
        common: &mut Common,
        answer: Answer,
        possible: bool,
    ) -> Option<&mut Progress> {
        let Answer { from, probe, echo, mut read } = answer;
        if is_active(Mutant::StaleEchoConfirmsReads) {
            read = self.reads.issued();
        }
        let sane = possible
            && echo <= common.now
            && read <= self.reads.issued()
            && probe <= self.last_probe;
        if !sane {
            common.counters.invalid_messages += 1;
            return None;
        }
        let peer = self.peers.iter_mut().find(|peer| peer.id == from)?;
        peer.on_answer(echo, read);
        Some(peer)
    }

    pub(crate) fn on_unreachable(&mut self, common: &Common, id: NodeId) {
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.id == id) {
            peer.on_unreachable(common.now);
        }
    }

    /// Whether a peer awaits request `id`, and from which index on.
    pub(crate) fn awaits(&self, id: FetchId) -> Option<LogIndex> {
        self.peers.iter().find_map(|peer| match peer.fetch {
            Fetch::Loading { id: awaited, lo } if awaited == id => Some(lo),
            Fetch::Idle | Fetch::Loading { .. } | Fetch::Loaded(_) | Fetch::RetryAfter(_) => None,
        })
    }

    pub(crate) fn on_fetched(
        &mut self,
        id: FetchId,
        entries: Option<&Arc<[Entry]>>,
        retry: Micros,
    ) {
        for peer in &mut self.peers {
            peer.on_fetched(id, entries.cloned(), retry);
        }
    }

    /// Does what is due by time. `true` if no quorum has answered for too long.
    #[must_use]
    pub(crate) fn on_timer(&mut self, common: &mut Common, forgive: bool) -> bool {
        let now = common.now;
        if self.heartbeat_at <= now {
            self.heartbeat_at = now.after(common.config.heartbeat);
            self.heartbeat_due = true;
            if let Some(transfer) = &mut self.transfer {
                // What told the other to stand for election was perhaps lost.
                transfer.due = true;
            }
        }
        self.expire_transfer(common);
        if self.quorum_check_at > now {
            return false;
        }
        self.quorum_check_at = now.after(common.config.election_min);
        let heard = common.membership().quorum_value(|voter| {
            let peer = self.peer(voter);
            if voter == common.id { Some(now) } else { peer.map(|peer| peer.answered_at) }
        });
        !forgive && heard.after(common.config.election_min) < now
    }

    /// Commits and confirms what a quorum has answered. `true` if this node has to give up its place.
    #[must_use]
    pub(crate) fn advance(&mut self, common: &mut Common) -> bool {
        self.advance_commit(common);
        if self.follow_membership(common) {
            // Another quorum counts from now on, and may already hold more.
            self.advance_commit(common);
        }
        self.confirm_reads(common);
        self.drive_transfer(common)
    }

    fn advance_commit(&self, common: &mut Common) {
        let (id, durable) = (common.id, common.writer.durable_index());
        let held = common.membership().quorum_value(|voter| {
            if voter == id { Some(durable) } else { self.peer(voter).map(|peer| peer.matched) }
        });
        let own_term = common.log.term_at(held) == Some(common.term());
        if held > common.commit && (own_term || is_active(Mutant::CommitOfOlderTerm)) {
            common.commit_to(held);
        }
    }

    pub(super) fn peer(&self, id: NodeId) -> Option<&Progress> {
        self.peers.iter().find(|peer| peer.id == id)
    }

    fn confirm_reads(&mut self, common: &mut Common) {
        let id = common.id;
        let issued = self.reads.issued();
        let confirmed = common.membership().quorum_value(|voter| {
            if voter == id { Some(issued) } else { self.peer(voter).map(|peer| peer.acked_read) }
        });
        self.reads.confirm(confirmed);
        // Until an entry of this term is committed, `first_own` may still be overwritten by another
        // leader, and a log that stays shorter would let the read wait for ever. Held back here, it
        // fails with this leader (Raft §8).
        if common.commit < self.first_own {
            return;
        }
        while let Some(read) = self.reads.pop_confirmed() {
            let index = read.index;
            match read.asker {
                Asker::Here(ticket) => common.read_ready(ticket, index),
                Asker::Peer(peer, question) => {
                    let msg = Message::ReadIndexReply { id: question, index };
                    common.outbox.send(peer, common.term(), msg);
                }
            }
        }
    }

    /// Sends every peer what it can use.
    pub(crate) fn flush(&mut self, common: &mut Common, out: &mut Effects) {
        let heartbeat = core::mem::take(&mut self.heartbeat_due);
        if common.is_stalled() {
            self.commit_notice_at = None;
            return;
        }
        let notice_at =
            self.commit_notice_at.unwrap_or(common.now.after(common.config.commit_delay));
        let mut notice_waits = false;
        let round = self.reads.round_due();
        if heartbeat || round {
            self.reads.announce();
        }
        let read = self.reads.issued();
        let mut sender = Sender { read, last_probe: self.last_probe, out };
        for peer in &mut self.peers {
            if let Flow::Snapshot(offer) = &mut peer.flow {
                offer.due |= heartbeat;
            }
            let mut spoken = sender.replicate(common, peer);
            let idle_commit = common.commit.min(peer.next().prev());
            if !spoken && wants_commit(peer, idle_commit) {
                if notice_at <= common.now {
                    // Nothing left for a while: tell what is committed, so that it is applied.
                    let prev = common.log.position(peer.next().prev());
                    sender.append(common, peer, prev, None);
                    peer.sent_commit = idle_commit;
                    spoken = true;
                } else {
                    notice_waits = true;
                }
            }
            let asked = round && common.membership().is_voter(peer.id);
            if heartbeat && let Some(had) = peer.lacks() {
                sender.send(common, peer.id, Message::Regressed { had });
            }
            if heartbeat || (asked && !spoken) {
                // What the peer has for certain: the answer is a success that waits for no disk.
                let prev = common.log.position(peer.matched);
                sender.append(common, peer, prev, None);
            }
        }
        self.last_probe = sender.last_probe;
        self.commit_notice_at = notice_waits.then_some(notice_at);
    }

    /// The role ends.
    pub(crate) fn close(mut self, common: &mut Common, why: Reject) {
        common.forget_uncommitted_tickets();
        self.close_transfer(common, why);
        if let Some(ticket) = self.change.take() {
            common.reply(ticket, Outcome::Unknown);
        }
        for read in self.reads.take_all() {
            match read.asker {
                Asker::Here(ticket) => common.reject(ticket, why),
                // The follower sees the leader change, or its question runs out of time.
                Asker::Peer(_, _) => {}
            }
        }
    }

    pub(crate) fn check_invariants(&self, common: &Common) {
        let last = common.log.last().index;
        assert!(
            self.first_own <= common.log.base().index
                || common.log.term_at(self.first_own) == Some(common.term()),
            "the first own entry {} has the term {:?}",
            self.first_own,
            common.log.term_at(self.first_own)
        );
        for peer in &self.peers {
            peer.check_invariants(last, common.config.max_inflight_messages);
        }
        let ids: Vec<NodeId> = self.peers.iter().map(|peer| peer.id).collect();
        let wanted = super::reconfigure::replicated_to(common);
        assert!(
            // Between `step` and `flush` the commit index does not move, and neither do the peers.
            wanted.iter().eq(&ids),
            "{ids:?} are replicated to instead of {wanted:?}"
        );
        assert!(
            self.reads.len() <= common.config.max_waiting_reads,
            "{} reads wait",
            self.reads.len()
        );
    }
}

/// Whether the peer waits for nothing but a higher commit index.
fn wants_commit(peer: &Progress, commit: LogIndex) -> bool {
    match &peer.flow {
        Flow::Replicate(window) => window.inflight.is_empty() && peer.sent_commit < commit,
        Flow::Probe(_) | Flow::Snapshot(_) => false,
    }
}

/// Emits append messages, each with a name of its own.
struct Sender<'a> {
    read: ReadSeq,
    last_probe: ProbeId,
    out: &'a mut Effects,
}

impl Sender<'_> {
    /// Sends what the flow to `peer` admits. Whether anything left.
    fn replicate(&mut self, common: &mut Common, peer: &mut Progress) -> bool {
        let last = common.log.last().index;
        let config = &common.config;
        let (max_bytes, max_messages) = (config.max_append_bytes, config.max_inflight_messages);
        let max_inflight_bytes = config.max_inflight_bytes;
        let mut spoken = false;
        peer.offer_if_behind(common.log.base().index);
        if let Flow::Snapshot(offer) = &mut peer.flow {
            if core::mem::take(&mut offer.due) {
                self.send(common, peer.id, Message::SnapshotOffer { at: common.log.base() });
            }
            // It is no append: heartbeats are still due.
            return false;
        }
        if let Flow::Probe(probe) = &peer.flow {
            if probe.awaited.is_some() {
                return false;
            }
            let (next, bare) = (probe.next, probe.bare);
            let slice = if bare { None } else { common.log.slice(next, last, max_bytes) };
            let entries = slice.map(|slice| slice.entries);
            common.counters.probes += 1;
            let prev = common.log.position(next.prev());
            let id = self.append(common, peer, prev, entries);
            if let Flow::Probe(probe) = &mut peer.flow {
                probe.awaited = Some((Some(id), common.now));
            }
            return true;
        }
        while let Flow::Replicate(window) = &peer.flow
            && window.next <= last
            && window.has_room(max_messages, max_inflight_bytes)
        {
            let next = window.next;
            let Some((entries, bytes)) = self.take_entries(common, peer, next, last) else { break };
            let sent_last = LogIndex(next.0 + entries.len() as u64 - 1);
            let prev = common.log.position(next.prev());
            let probe = self.append(common, peer, prev, Some(entries));
            peer.sent_commit = peer.sent_commit.max(common.commit.min(sent_last));
            if let Flow::Replicate(window) = &mut peer.flow {
                let sent_at = common.now;
                window.inflight.push_back(Inflight { last: sent_last, bytes, probe, sent_at });
                window.inflight_bytes += bytes;
                window.next = sent_last.next();
                window.check_due = false;
            }
            spoken = true;
        }
        if let Flow::Replicate(window) = &peer.flow
            && window.check_due
        {
            let prev = common.log.position(window.next.prev());
            let id = self.append(common, peer, prev, None);
            let heartbeat = common.config.heartbeat;
            if let Flow::Replicate(window) = &mut peer.flow {
                window.check = Some(id);
                window.check_due = false;
                window.check_after = common.now.after(heartbeat);
            }
            spoken = true;
        }
        spoken
    }

    /// Entries from `next` on: from memory, or loaded before; else asks for them.
    fn take_entries(
        &mut self,
        common: &mut Common,
        peer: &mut Progress,
        next: LogIndex,
        last: LogIndex,
    ) -> Option<(Arc<[Entry]>, usize)> {
        let max_bytes = common.config.max_append_bytes;
        match &peer.fetch {
            Fetch::Loaded(entries) => {
                let entries = Arc::clone(entries);
                peer.fetch = Fetch::Idle;
                if entries.first().is_some_and(|entry| entry.pos.index == next) {
                    let bytes = entries.iter().map(crate::codec::encoded_len).sum();
                    return Some((entries, bytes));
                }
            }
            Fetch::Loading { lo, .. } if *lo == next => return None,
            Fetch::RetryAfter(at) if *at > common.now => return None,
            Fetch::Idle | Fetch::Loading { .. } | Fetch::RetryAfter(_) => {}
        }
        if let Some(slice) = common.log.slice(next, last, max_bytes) {
            peer.fetch = Fetch::Idle;
            return Some((slice.entries, slice.bytes));
        }
        common.next_fetch = FetchId(common.next_fetch.0 + 1);
        let id = common.next_fetch;
        let hi = last.min(common.log.first_in_memory().prev());
        peer.fetch = Fetch::Loading { id, lo: next };
        let purpose = FetchFor::Peer(peer.id);
        self.out.push(Effect::FetchLog { id, purpose, lo: next, hi, max_bytes });
        None
    }

    /// Sends one append message and returns its name.
    fn append(
        &mut self,
        common: &Common,
        peer: &Progress,
        prev: Option<LogPos>,
        entries: Option<Arc<[Entry]>>,
    ) -> ProbeId {
        // An even number says that the peer must have what it is asked about.
        let sure = prev.is_some_and(|prev| prev.index <= peer.matched);
        self.last_probe = ProbeId((self.last_probe.0 / 2 + 1) * 2 + u64::from(!sure));
        let prev = prev.unwrap_or_default();
        let entries = entries.unwrap_or_else(|| Arc::clone(&common.no_entries));
        let shown = LogIndex(prev.index.0 + entries.len() as u64);
        let msg = Message::Append {
            prev,
            entries,
            commit: common.commit.min(shown),
            probe: self.last_probe,
            sent_at: common.now,
            read: self.read,
        };
        self.send(common, peer.id, msg);
        self.last_probe
    }

    fn send(&mut self, common: &Common, to: NodeId, msg: Message) {
        let (from, term) = (common.id, common.term());
        self.out.push(Effect::Send(Envelope { from, to, term, msg }));
    }
}

impl Raft {
    /// No quorum has answered: the leader gives up, and its heartbeats end with the role.
    pub(crate) fn step_down_without_quorum(&mut self) {
        self.common.counters.quorum_lost += 1;
        self.become_follower(self.common.term(), None, Patience::Full);
    }

    /// The leader's part of [`Raft::flush`](Raft::flush) before the write is given out.
    pub(crate) fn advance_leader(&mut self) {
        if let Role::Leader(leader) = &mut self.role
            && leader.advance(&mut self.common)
        {
            self.become_follower(self.common.term(), None, Patience::Full);
        }
    }
}
