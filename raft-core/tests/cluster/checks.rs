//! The invariants of the protocol, over all nodes, all disks and all time.
//!
//! Numbered as in the specification: I1 election safety, I2 one vote a term, I3 leaders append only,
//! I4 log matching, I5 leader completeness, I6 state machine safety, I7 commits never change, I8
//! what is committed is on the disks of a quorum, I9 commits end in the leader's own term, I10
//! nothing falls, I11 applied ≤ committed and durable ≤ last, I12 no promise before the disk, I13
//! changes of the membership one at a time and each step after the one before is committed, I14
//! memberships follow the log, I16 reads are not older than what was committed when they began, I21
//! entries are consecutive, I22 limits hold, I23 progress is true, I26 every ticket ends once.

use std::collections::BTreeMap;

use raft_core::{
    Body, Effect, Entry, Envelope, LogIndex, LogPos, Membership, Message, NodeId, Outcome,
    RoleKind, SnapshotMeta, Term, Ticket, VoteKind,
};

use super::{Node, at, slot};

/// A ticket on its way.
#[derive(Debug)]
struct Pending {
    node: NodeId,
    is_proposal: bool,
    /// For a proposal: its last entry, once appended.
    last: Option<LogPos>,
    /// For a read: what was committed anywhere when it began.
    committed: LogIndex,
}

/// What a node has shown since it started.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    term: Term,
    commit: LogIndex,
    applied: LogIndex,
}

/// The memory of the checks.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    leaders: BTreeMap<Term, NodeId>,
    grants: BTreeMap<(NodeId, Term), NodeId>,
    /// Every entry ever made, with the term before it: equal place means equal past.
    entries: BTreeMap<LogPos, (Entry, Term)>,
    pub(crate) committed: Vec<Entry>,
    seen: BTreeMap<NodeId, Seen>,
    pending: BTreeMap<Ticket, Pending>,
    /// How tickets ended.
    pub(crate) outcomes: BTreeMap<Ticket, End>,
    pub(crate) tally: Tally,
}

/// How much of what can go wrong has been met.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) terms_led: usize,
    pub(crate) committed: usize,
    pub(crate) cuts: usize,
    pub(crate) loads: usize,
    pub(crate) applied: usize,
    pub(crate) unknown: usize,
    pub(crate) reads: usize,
    pub(crate) refused: usize,
    pub(crate) crashed: usize,
    /// Changes and transfers that ended well.
    pub(crate) done: usize,
    /// Joint memberships that were committed.
    pub(crate) joint: usize,
    /// Logs whose beginning was let go.
    pub(crate) compactions: usize,
    pub(crate) installed: usize,
    pub(crate) discarded: usize,
    pub(crate) quarantined: usize,
    pub(crate) released: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.terms_led += other.terms_led;
        self.committed += other.committed;
        self.cuts += other.cuts;
        self.loads += other.loads;
        self.applied += other.applied;
        self.unknown += other.unknown;
        self.reads += other.reads;
        self.refused += other.refused;
        self.crashed += other.crashed;
        self.done += other.done;
        self.joint += other.joint;
        self.compactions += other.compactions;
        self.installed += other.installed;
        self.discarded += other.discarded;
        self.quarantined += other.quarantined;
        self.released += other.released;
    }
}

/// How a ticket ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Applied,
    Ready(LogIndex),
    Reply(Outcome),
    Crashed,
}

impl Checks {
    /// Entries that were there before the test began.
    pub(crate) fn adopt_disk(&mut self, log: &[Entry]) {
        let mut before = Term(0);
        for entry in log {
            self.entries.entry(entry.pos).or_insert_with(|| (entry.clone(), before));
            before = entry.pos.term;
        }
    }

    /// A snapshot is made: what is in it is committed, and its membership is the last one in that (I19).
    pub(crate) fn on_snapshot(&self, meta: &SnapshotMeta, content: &[Entry]) {
        let upto = at(meta.pos.index);
        assert!(
            content.len() == upto && self.committed.get(..upto) == Some(content),
            "I19: the snapshot at {:?} is not what is committed",
            meta.pos
        );
        let brought = content.iter().rev().find_map(|entry| match &entry.body {
            Body::Config(membership) => Some((entry.pos.index, membership)),
            Body::Noop | Body::Command(_) => None,
        });
        let says = (meta.membership_at, &meta.membership);
        assert!(
            brought.map_or(says.0 == LogIndex(0), |brought| brought == says),
            "I14: the snapshot at {:?} says {says:?}, its entries {brought:?}",
            meta.pos
        );
    }

    pub(crate) fn on_start(&mut self, id: NodeId) {
        self.seen.insert(id, Seen::default());
    }

    pub(crate) fn on_crash(&mut self, id: NodeId) {
        let lost: Vec<Ticket> = self
            .pending
            .iter()
            .filter(|(_, it)| it.node == id)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in lost {
            self.end(ticket, End::Crashed);
        }
    }

    pub(crate) fn on_ticket(&mut self, ticket: Ticket, node: NodeId, is_proposal: bool) {
        let committed = LogIndex(self.committed.len() as u64);
        self.pending.insert(ticket, Pending { node, is_proposal, last: None, committed });
    }

    /// Tickets without an end.
    pub(crate) fn unfinished(&self) -> usize {
        self.pending.len()
    }

    fn end(&mut self, ticket: Ticket, end: End) {
        let known = self.pending.remove(&ticket).is_some();
        assert!(known, "I26: {ticket:?} ends a second time, with {end:?}");
        match end {
            End::Applied => self.tally.applied += 1,
            End::Ready(_) => self.tally.reads += 1,
            End::Reply(Outcome::Unknown) => self.tally.unknown += 1,
            End::Reply(Outcome::Rejected(_)) => self.tally.refused += 1,
            End::Reply(Outcome::Done) => self.tally.done += 1,
            End::Reply(Outcome::Appended { .. }) => {}
            End::Crashed => self.tally.crashed += 1,
        }
        self.outcomes.insert(ticket, end);
    }

    /// An effect is about to be performed.
    pub(crate) fn on_effect(&mut self, nodes: &[Node], id: NodeId, effect: &Effect) {
        let node = &nodes[slot(id)];
        match effect {
            Effect::Persist(op) => {
                self.tally.cuts += usize::from(op.truncate_from.is_some());
                let kept = op.truncate_from.map_or(node.written.len(), |from| at(from) - 1);
                assert!(kept <= node.written.len(), "{id} cuts at {:?}", op.truncate_from);
                let leads =
                    node.raft.as_ref().map(|raft| raft.status().role) == Some(RoleKind::Leader);
                assert!(
                    !(leads && op.truncate_from.is_some()),
                    "I3: {id} leads and cuts its log at {:?}",
                    op.truncate_from
                );
                let before = kept.checked_sub(1).map_or(LogPos::default(), |i| node.written[i].pos);
                self.consecutive(before, &op.append);
                let last = kept + op.append.len();
                assert!(at(op.commit_hint) <= last, "the hint {} is beyond {last}", op.commit_hint);
            }
            Effect::Send(envelope) => self.on_send(nodes, id, envelope),
            Effect::Apply(entries) => {
                let before = node.handed_over();
                assert!(
                    entries.first().map(|entry| entry.pos.index) == Some(before.next()),
                    "I21: {id} applies {:?} after {before}",
                    entries.first()
                );
                for entry in entries.iter() {
                    assert!(
                        node.disk.log.get(at(entry.pos.index) - 1) == Some(entry),
                        "I11: {id} applies {:?} before it is durable",
                        entry.pos
                    );
                    // The commit index is checked after the flush; an entry applied is committed.
                    let done: Vec<Ticket> = self
                        .pending
                        .iter()
                        .filter(|(_, it)| it.node == id && it.last == Some(entry.pos))
                        .map(|(ticket, _)| *ticket)
                        .collect();
                    for ticket in done {
                        self.end(ticket, End::Applied);
                    }
                }
            }
            Effect::ReadReady { ticket, index } => {
                let read = self.pending.get(ticket).expect("I26: a read ends that was never begun");
                assert!(
                    !read.is_proposal && *index >= read.committed,
                    "I16: {id} serves {ticket:?} at {index}, but {} was committed before",
                    read.committed
                );
                self.end(*ticket, End::Ready(*index));
            }
            Effect::Reply { ticket, outcome } => {
                if let Outcome::Appended { first, count } = outcome {
                    let index = LogIndex(first.index.0 + u64::from(*count) - 1);
                    let pending = self.pending.get_mut(ticket).expect("I26: appended but unknown");
                    assert!(pending.last.is_none(), "I26: {ticket:?} is appended twice");
                    pending.last = Some(LogPos { term: first.term, index });
                } else {
                    self.end(*ticket, End::Reply(*outcome));
                }
            }
            Effect::FetchLog { lo, hi, .. } => {
                self.tally.loads += 1;
                assert!(
                    lo <= hi && at(*hi) <= node.disk.log.len() && *lo > node.disk.base.index,
                    "{id} fetches {lo} to {hi}, its disk ends at {}",
                    node.disk.log.len()
                );
            }
            Effect::CompactLog { upto } => {
                self.tally.compactions += 1;
                let kept = LogIndex(node.state_durable as u64);
                assert!(
                    upto.index <= kept
                        && self.committed.get(at(upto.index) - 1).is_some_and(|it| it.pos == *upto),
                    "I11: {id} cuts its log at {upto:?}, its state is kept up to {kept}"
                );
            }
            Effect::InstallSnapshot { meta, .. } => {
                self.tally.installed += 1;
                let staged = node.staged.as_deref().expect("what is installed is here");
                assert!(
                    staged.last().map(|entry| entry.pos) == Some(meta.pos)
                        && meta.pos.index > self.seen[&id].commit,
                    "{id} installs {meta:?} with {:?} at {:?}",
                    staged.last(),
                    self.seen[&id]
                );
            }
            Effect::AdoptSnapshot { at } => {
                assert!(
                    node.disk.base == *at
                        && *at >= LogPos::default()
                        && node.handed_over() < at.index,
                    "{id} adopts {at:?}, its log begins after {:?}",
                    node.disk.base
                );
            }
            Effect::DiscardSnapshot { .. } => self.tally.discarded += 1,
            Effect::Quarantine { quarantine, .. } => match quarantine {
                Some(_) => self.tally.quarantined += 1,
                None => self.tally.released += 1,
            },
            Effect::FetchSnapshot { .. }
            | Effect::Role(_)
            | Effect::MembershipEffective(_)
            | Effect::Fatal(_)
            | Effect::Removed { .. } => {}
        }
    }

    fn on_send(&mut self, nodes: &[Node], id: NodeId, envelope: &Envelope) {
        let node = &nodes[slot(id)];
        assert!(envelope.from == id && envelope.to != id, "{id} sends {envelope:?}");
        match &envelope.msg {
            Message::Append { prev, entries, .. } => self.consecutive(*prev, entries),
            Message::AppendOk { matched, .. } => {
                let disk = &node.disk;
                assert!(
                    disk.ballot.term >= envelope.term && disk.log.len() >= at(*matched),
                    "I12: {id} acknowledges {matched} in term {} with {} entries and {:?} on disk",
                    envelope.term,
                    disk.log.len(),
                    disk.ballot
                );
                // The leader appends only: what it has now it had then.
                let leader = &nodes[slot(envelope.to)];
                let leads = leader.raft.as_ref().is_some_and(|raft| {
                    let status = raft.status();
                    status.role == RoleKind::Leader && status.ballot.term == envelope.term
                });
                if leads && let Some(last) = at(*matched).checked_sub(1) {
                    assert!(
                        leader.written.get(last) == disk.log.get(last),
                        "I12: {id} acknowledges {matched}, which is {:?} there and {:?} here",
                        leader.written.get(last),
                        disk.log.get(last)
                    );
                }
            }
            Message::Vote { kind: VoteKind::Real | VoteKind::Transfer, last } => {
                let disk = &node.disk;
                let durable = disk.log.last().map_or(LogPos::default(), |entry| entry.pos);
                assert!(
                    disk.ballot.term == envelope.term
                        && disk.ballot.voted_for == Some(id)
                        && durable == *last,
                    "I12: {id} asks for votes with {last:?}, on disk are {:?} and {durable:?}",
                    disk.ballot
                );
            }
            Message::VoteReply {
                kind: VoteKind::Real | VoteKind::Transfer,
                granted: true,
                asked,
            } => {
                let quarantine = node.raft.as_ref().and_then(|raft| raft.status().quarantine);
                assert!(quarantine.is_none(), "I24: {id} votes in quarantine: {quarantine:?}");
                let ballot = node.disk.ballot;
                assert!(
                    ballot.term == *asked && ballot.voted_for == Some(envelope.to),
                    "I12: {id} votes for {} in term {asked}, on disk is {ballot:?}",
                    envelope.to
                );
                let first = *self.grants.entry((id, *asked)).or_insert(envelope.to);
                assert!(
                    first == envelope.to,
                    "I2: {id} votes for {} and {first} in term {asked}",
                    envelope.to
                );
            }
            Message::SnapshotOffer { at: base } => {
                let known = self.committed.get(at(base.index) - 1).map(|entry| entry.pos);
                assert!(known == Some(*base), "{id} offers a snapshot at {base:?}: {known:?}");
            }
            Message::Regressed { had } => {
                let lost = nodes[slot(envelope.to)].has_lost;
                assert!(lost, "{id} tells {} that it lost something up to {had}", envelope.to);
            }
            Message::SnapshotUnderWay { .. }
            | Message::AppendReject { .. }
            | Message::Vote { kind: VoteKind::Pre, .. }
            | Message::VoteReply { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexReply { .. }
            | Message::Removed { .. } => {}
            Message::TimeoutNow { at: end } => {
                let target = &nodes[slot(envelope.to)].disk;
                assert!(
                    target.ballot.term > envelope.term
                        || target.log.last().map(|entry| entry.pos) == Some(*end),
                    "{id} hands over at {end:?}, {} has {:?}",
                    envelope.to,
                    target.log.last()
                );
            }
        }
    }

    /// I13: of the memberships in a leader's log at most one is uncommitted, and a joint one is left
    /// only after it is committed. (The commit index is that of the whole cluster as of before this
    /// flush, or a later one; both rules only get stricter with an earlier one for entries of now.)
    fn one_change_at_a_time(&self, node: &Node) {
        let uncommitted = node.written.iter().skip(self.committed.len());
        let open = uncommitted.filter(|entry| matches!(entry.body, Body::Config(_)));
        let open: Vec<&Entry> = open.collect();
        let commit = node.raft.as_ref().map_or(0, |raft| at(raft.status().commit));
        let unknown_here = node.written.get(self.committed.len()..commit).unwrap_or_default();
        let committed_now =
            unknown_here.iter().filter(|entry| matches!(entry.body, Body::Config(_))).count();
        assert!(open.len() <= 1 + committed_now, "I13: {} has {open:?} uncommitted", node.id);
    }

    /// I4 and I21: entries follow each other, and equal places have equal pasts.
    fn consecutive(&mut self, mut before: LogPos, entries: &[Entry]) {
        for entry in entries {
            assert!(
                entry.pos.index == before.index.next() && entry.pos.term >= before.term,
                "I21: {:?} follows {before:?}",
                entry.pos
            );
            let known =
                self.entries.entry(entry.pos).or_insert_with(|| (entry.clone(), before.term));
            assert!(
                known.0 == *entry && known.1 == before.term,
                "I4: {entry:?} after term {}, elsewhere {known:?}",
                before.term
            );
            before = entry.pos;
        }
    }

    /// A node was flushed and everything it emitted is known.
    pub(crate) fn after_flush(&mut self, nodes: &[Node], id: NodeId) {
        let node = &nodes[slot(id)];
        let Some(raft) = &node.raft else { return };
        raft.check_invariants();
        let status = raft.status();
        let (term, commit, applied) = (status.ballot.term, status.commit, status.applied);

        let seen = self.seen.entry(id).or_default();
        assert!(
            term >= seen.term && commit >= seen.commit && applied >= seen.applied,
            "I10: {id} was at {seen:?}, is at {term}, {commit}, {applied}"
        );
        let commit_before = seen.commit;
        *seen = Seen { term, commit, applied };

        assert!(
            applied <= commit.min(status.durable) && commit <= status.last.index,
            "I11: {id} applied {applied}, commit {commit}, durable {}, last {:?}",
            status.durable,
            status.last
        );
        assert!(
            at(status.durable) <= node.disk.log.len()
                && node.disk.log[..at(status.durable)] == node.written[..at(status.durable)],
            "I12: {id} believes {} durable, its disk has {}",
            status.durable,
            node.disk.log.len()
        );
        if status.role != RoleKind::Halted {
            assert!(
                status.last == node.written.last().map_or(LogPos::default(), |it| it.pos),
                "{id} has {:?} in memory, wrote {:?}",
                status.last,
                node.written.last()
            );
        }
        let from_log = node.written.iter().rev().find_map(|entry| match &entry.body {
            Body::Config(membership) => Some(membership),
            Body::Noop | Body::Command(_) => None,
        });
        let unknown = Membership::unknown();
        let expected = from_log.or(node.membership_before_log()).map_or(&unknown, AsRef::as_ref);
        assert!(
            status.membership == expected,
            "I14: {id} uses {:?}, its log says {from_log:?}",
            status.membership
        );
        let config = &node.config;
        assert!(
            status.waiting_reads <= config.max_waiting_reads && status.gated_messages <= 1_024,
            "I22: {id} holds {} reads and {} messages",
            status.waiting_reads,
            status.gated_messages
        );

        if status.role == RoleKind::Leader {
            let first = *self.leaders.entry(term).or_insert(id);
            self.tally.terms_led = self.leaders.len();
            assert!(first == id, "I1: {first} and {id} lead in term {term}");
            assert!(
                node.written.len() >= self.committed.len()
                    && node.written[..self.committed.len()] == self.committed[..]
                    || self.leaders.keys().next_back() > Some(&term),
                "I5: {id} leads in term {term} without what is committed"
            );
            self.one_change_at_a_time(node);
            for peer in &status.peers {
                let other = &nodes[slot(peer.id)];
                let matched = at(peer.matched);
                assert!(
                    other.has_lost
                        || other.disk.ballot.term > term
                        || (other.disk.log.len() >= matched
                            && other.disk.log[..matched] == node.written[..matched]),
                    "I23: {id} believes {} equal up to {matched}",
                    peer.id
                );
                assert!(
                    peer.inflight_messages <= config.max_inflight_messages,
                    "I22: {} messages are in flight to {}",
                    peer.inflight_messages,
                    peer.id
                );
            }
        }

        for index in commit_before.0 + 1..=commit.0 {
            let entry = &node.written[at(LogIndex(index)) - 1];
            if let Some(before) = self.committed.get(at(LogIndex(index)) - 1) {
                assert!(before == entry, "I7: {id} commits {entry:?}, {before:?} was committed");
            } else {
                self.committed.push(entry.clone());
                self.tally.committed += 1;
                if let Body::Config(membership) = &entry.body {
                    self.tally.joint += usize::from(membership.is_joint());
                }
                let holders = status.membership.quorum_value(|voter| {
                    let disk = &nodes[slot(voter)].disk.log;
                    Some(disk.get(at(LogIndex(index)) - 1) == Some(entry))
                });
                assert!(holders, "I8: {id} commits {index}, which no quorum has on disk");
            }
        }
        if status.role == RoleKind::Leader && commit > commit_before && commit_before > LogIndex(0)
        {
            let entry = &node.written[at(commit) - 1];
            assert!(
                entry.pos.term == term,
                "I9: {id} moves its commit index to {:?} in term {term}",
                entry.pos
            );
        }
        if let Some(index) = node.removed {
            let brought = self.committed.get(at(index) - 1).map(|entry| &entry.body);
            let removes =
                matches!(brought, Some(Body::Config(membership)) if membership.is_removed(id));
            assert!(removes, "{id} is told it is removed at {index}, which is {brought:?}");
        }
        for (own, committed) in node.state.iter().zip(&self.committed) {
            assert!(own == committed, "I6: {id} applied {own:?}, committed is {committed:?}");
        }
    }
}
