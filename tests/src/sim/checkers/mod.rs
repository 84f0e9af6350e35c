//! What must hold at every step: the invariants of the protocol, over all nodes at once.
//!
//! The checkers see what no node sees: every log as its node holds it, every log as its disk holds it,
//! every message as it leaves. Logs are kept as marks (`view.rs`), so that each check costs a comparison.
//! `tests.rs` breaks each of them by hand.
//!
//! | invariant | where |
//! |---|---|
//! | I1 at most one leader per term | [`Checkers::role`] |
//! | I2 one vote per term, durable before it leaves | [`Checkers::send`] |
//! | I3 a leader never rewrites its log | [`Checkers::write`] |
//! | I4 same index and term, same log up to there | [`Checkers::write`], [`Checkers::recovered`] |
//! | I5 a leader has everything that was committed | [`Checkers::role`] |
//! | I6, I20 one entry and one state hash per applied index | [`Checkers::apply`], [`Checkers::applied`] |
//! | I7 what is committed never changes | [`Checkers::status`], [`Checkers::write`] |
//! | I8 what is committed is on the disks of a quorum | [`Checkers::status`], [`Checkers::recovered`] |
//! | I9 a leader commits by an entry of its own term | [`Checkers::status`] |
//! | I10 terms, commit and applied index never fall | [`Checkers::status`], [`Checkers::recovered`] |
//! | I11 applied ≤ min(commit, durable) ≤ last | [`Checkers::status`], [`Checkers::apply`] |
//! | I12 nothing leaves that needs what is not on disk | [`Checkers::send`] |
//! | I14 the membership is the one of the log | [`Checkers::status`] |
//! | I16 a read index covers what was acknowledged before, and is committed | [`Checkers::read_ready`] |
//! | I18 a session's write takes effect once | [`Checkers::answered`] by the model |
//! | I22 what a leader takes on is bounded | [`Checkers::write`] |
//! | I21 entries are consecutive, terms never fall | [`Checkers::write`], [`Checkers::send`], [`Checkers::apply`] |
//! | I23 a match index is what is on the follower's disk | [`Checkers::send`] |
//!
//! Further bounds of I22, I25 (determinism) and I26 (every caller is answered once) are the world's.
//! I13, I15, I17, I19 and I24 speak of changes of the membership, leases, snapshots and quarantine.

#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;

use kv_server::replica::{Answer, Applied, ReplicaStatus};
use kv_server::state_machine::command;
use raft_core::{Ballot, Body, Entry, Envelope, Message, RoleKind, VoteKind, WriteOp};
use raft_rpc::{Response, WireError};

use self::view::{Marks, View, Write};
use crate::model::{Model, Told};

/// What a check finds: nothing, or what does not hold.
pub type Checked = Result<(), String>;

macro_rules! require {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err(format!($($message)+));
        }
    };
}

/// The checkers of a run.
#[derive(Debug)]
pub struct Checkers {
    enabled: bool,
    views: Vec<View>,
    leaders: BTreeMap<u64, usize>,
    grants: BTreeMap<(usize, u64), u64>,
    marks: BTreeMap<(u64, u64), u64>,
    committed: Marks,
    /// In which term it was committed, up to which index.
    commits: Vec<(u64, u64)>,
    state_hashes: BTreeMap<u64, u64>,
    /// The store as it should be, up to the last entry any node applied.
    pub model: Model,
    /// By index: what the answer must be.
    told: Vec<Option<Told>>,
    /// How often a node cut entries off its log for a leader's.
    pub truncations: u64,
    /// The highest index of a write that was acknowledged to a client.
    acknowledged: u64,
    /// Bytes of entries above the applied index beyond which a leader takes no further command.
    unapplied_bytes_max: u64,
}

impl Checkers {
    /// Checkers of a new cluster. Without `enabled` only what later checks need is kept: to see what
    /// the history of clients alone can show.
    #[must_use]
    pub fn new(nodes: usize, enabled: bool, unapplied_bytes_max: usize) -> Self {
        Self {
            enabled,
            views: vec![View { next_seq: 1, ..View::default() }; nodes],
            leaders: BTreeMap::new(),
            grants: BTreeMap::new(),
            marks: BTreeMap::new(),
            committed: Marks::default(),
            commits: Vec::new(),
            state_hashes: BTreeMap::new(),
            model: Model::new(),
            told: Vec::new(),
            truncations: 0,
            acknowledged: 0,
            unapplied_bytes_max: unapplied_bytes_max as u64,
        }
    }

    /// Whether anything but the clients' histories is checked.
    #[must_use]
    pub const fn enabled(&self) -> bool {
        self.enabled
    }

    /// The highest index of a write that was acknowledged to a client.
    #[must_use]
    pub const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The index everything up to which is committed.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.committed.last()
    }

    /// Terms that had a leader.
    #[must_use]
    pub fn terms_led(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// A client learnt that the write at `index` took effect.
    pub fn acknowledge(&mut self, index: u64) {
        self.acknowledged = self.acknowledged.max(index);
    }

    fn quorum(&self) -> usize {
        self.views.len() / 2 + 1
    }

    /// A node that has heard that `applied` is applied gives out a durable unit.
    ///
    /// # Errors
    /// What does not hold.
    pub fn write(&mut self, node: usize, op: &WriteOp, applied: u64) -> Checked {
        let view = &mut self.views[node];
        let standing = view.log.bytes_after(applied);
        require!(
            !self.enabled || op.seq.0 == view.next_seq,
            "node {node} writes unit {} after {}",
            op.seq,
            view.next_seq - 1
        );
        view.next_seq = op.seq.0 + 1;
        if let Some(from) = op.truncate_from {
            require!(
                !self.enabled || !view.leads,
                "I3: node {node} leads term {} and truncates its log from {from}",
                view.term
            );
            require!(
                !self.enabled || from.0 > view.commit,
                "I7: node {node} truncates its log from {from}, committed up to {}",
                view.commit
            );
            view.log.truncate_from(from.0);
            self.truncations += 1;
        }
        let mut append = Vec::new();
        for entry in op.append.iter() {
            let mark = view.log.tip().after(entry);
            let (index, term) = (entry.pos.index.0, entry.pos.term.0);
            require!(
                !self.enabled || index == view.log.last() + 1 && term >= view.log.tip().term,
                "I21: node {node} appends {:?} after index {} of term {}",
                entry.pos,
                view.log.last(),
                view.log.tip().term
            );
            let known = *self.marks.entry((index, term)).or_insert(mark.chain);
            require!(
                !self.enabled || known == mark.chain,
                "I4: node {node} appends another entry, or after another log, at {:?}",
                entry.pos
            );
            view.log.0.push(mark);
            append.push(mark);
        }
        let term = view.log.tip().term;
        let takes_on = op
            .append
            .iter()
            .any(|entry| entry.pos.term.0 == term && matches!(entry.body, Body::Command(_)));
        let bytes = view.log.bytes_after(applied);
        require!(
            !(self.enabled && view.leads && takes_on)
                || standing == 0
                || bytes <= self.unapplied_bytes_max,
            "I22: leader {node} takes on commands beyond its limit: {standing} bytes were not applied, now \
             {bytes}"
        );
        require!(
            !self.enabled || op.commit_hint.0 <= view.log.last(),
            "node {node} hints that {} is committed, its log ends at {}",
            op.commit_hint,
            view.log.last()
        );
        let truncate_from = op.truncate_from.map(|from| from.0);
        view.writes.push_back(Write { seq: op.seq.0, ballot: op.ballot, truncate_from, append });
        Ok(())
    }

    /// The disk of a node holds everything up to `seq`.
    pub fn persisted(&mut self, node: usize, seq: u64) {
        let view = &mut self.views[node];
        while let Some(write) = view.writes.pop_front_if(|write| write.seq <= seq) {
            if let Some(ballot) = write.ballot {
                view.durable_ballot = ballot;
            }
            if let Some(from) = write.truncate_from {
                view.durable.truncate_from(from);
            }
            view.durable.0.extend(write.append);
        }
    }

    /// A node started again and found this on its disk.
    ///
    /// # Errors
    /// What does not hold.
    pub fn recovered(
        &mut self,
        node: usize,
        entries: &[Entry],
        status: &ReplicaStatus,
        applied: Applied,
    ) -> Checked {
        let mut log = Marks::default();
        for entry in entries {
            let mark = log.tip().after(entry);
            require!(
                !self.enabled || entry.pos.index.0 == log.last() + 1,
                "I21: node {node} found {:?} on its disk after index {}",
                entry.pos,
                log.last()
            );
            log.0.push(mark);
        }
        let view = &mut self.views[node];
        let term = status.term.0;
        let explained = Self::explains(view, &log, term);
        require!(
            !self.enabled || explained,
            "I8: node {node} lost what was on its disk: it found {} entries ending in term {} and term \
             {term}; it had synced {} ending in term {} and term {}, with {} units under way",
            log.last(),
            log.tip().term,
            view.durable.last(),
            view.durable.tip().term,
            view.durable_ballot.term,
            view.writes.len()
        );
        if view.durable_ballot.term.0 < term {
            let mut later = view.writes.iter().filter_map(|write| write.ballot);
            view.durable_ballot =
                later.rfind(|ballot| ballot.term.0 <= term).unwrap_or(view.durable_ballot);
        }
        view.durable = log.clone();
        view.log = log;
        view.writes.clear();
        view.next_seq = 1;
        view.leads = false;
        view.term = term;
        view.commit = status.commit_index.0;
        view.applied = applied.index.0;
        view.applying = applied.index.0;
        let (commit, committed) = (view.commit, self.committed.last());
        require!(
            !self.enabled || applied.index.0 <= commit && commit <= committed,
            "I7: node {node} starts with {} applied and {commit} committed of {committed}",
            applied.index
        );
        // A start replays what is known to be committed: perhaps more than any node had applied.
        for entry in entries.iter().take_while(|entry| entry.pos.index <= applied.index) {
            self.learn(entry)?;
        }
        self.applied(node, applied)
    }

    /// Whether what was found is what was synced and a beginning of what was under way.
    fn explains(view: &View, found: &Marks, term: u64) -> bool {
        let same = |log: &Marks, ballot: Ballot| {
            log.last() == found.last() && log.tip() == found.tip() && ballot.term.0 == term
        };
        let (mut log, mut ballot) = (view.durable.clone(), view.durable_ballot);
        if same(&log, ballot) {
            return true;
        }
        for write in &view.writes {
            ballot = write.ballot.unwrap_or(ballot);
            if same(&log, ballot) {
                return true;
            }
            if let Some(from) = write.truncate_from {
                log.truncate_from(from);
            }
            for &mark in &write.append {
                if same(&log, ballot) {
                    return true;
                }
                log.0.push(mark);
            }
            if same(&log, ballot) {
                return true;
            }
        }
        false
    }

    /// A node's role changed.
    ///
    /// # Errors
    /// What does not hold.
    pub fn role(&mut self, node: usize, role: RoleKind, term: u64) -> Checked {
        self.views[node].leads = role == RoleKind::Leader;
        if role != RoleKind::Leader {
            return Ok(());
        }
        let leader = *self.leaders.entry(term).or_insert(node);
        require!(
            !self.enabled || leader == node,
            "I1: nodes {leader} and {node} both lead term {term}"
        );
        // Votes may arrive long after they were given: by then a later leader may have committed more.
        let before = self.commits.iter().filter(|(in_term, _)| *in_term < term);
        let upto = before.map(|(_, upto)| *upto).max().unwrap_or(0);
        require!(
            !self.enabled || self.views[node].log.at(upto) == self.committed.at(upto),
            "I5: node {node} leads term {term} without index {upto}, committed in an earlier term"
        );
        Ok(())
    }

    /// A message leaves a node.
    ///
    /// # Errors
    /// What does not hold.
    pub fn send(&mut self, node: usize, envelope: &Envelope) -> Checked {
        if !self.enabled {
            return Ok(());
        }
        let view = &self.views[node];
        let ballot = view.durable_ballot;
        let id = envelope.from;
        match &envelope.msg {
            Message::Vote { kind: VoteKind::Real | VoteKind::Transfer, .. } => {
                require!(
                    ballot.term > envelope.term
                        || ballot.term == envelope.term && ballot.voted_for == Some(id),
                    "I12: node {node} asks for votes in term {}, on its disk is {ballot:?}",
                    envelope.term
                );
            }
            Message::VoteReply {
                kind: VoteKind::Real | VoteKind::Transfer,
                granted: true,
                asked,
            } => {
                let to = envelope.to;
                let granted = *self.grants.entry((node, asked.0)).or_insert(to.get());
                require!(
                    granted == to.get(),
                    "I2: node {node} votes for {to} in term {asked} and voted for {granted} before"
                );
                require!(
                    ballot.term > *asked || ballot.term == *asked && ballot.voted_for == Some(to),
                    "I12: node {node} votes for {to} in term {asked}, on its disk is {ballot:?}"
                );
            }
            Message::AppendOk { matched, .. } => {
                let durable = view.durable.at(matched.0);
                require!(
                    durable.is_some() && durable == view.log.at(matched.0),
                    "I12: node {node} acknowledges up to {matched}, its log ends at {} and on its disk \
                     at {}",
                    view.log.last(),
                    view.durable.last()
                );
                require!(
                    ballot.term >= envelope.term,
                    "I12: node {node} acknowledges in term {}, on its disk is {ballot:?}",
                    envelope.term
                );
                let leader = usize::try_from(envelope.to.get() - 1).unwrap_or(usize::MAX);
                if let Some(leader_view) = self.views.get(leader)
                    && leader_view.leads
                    && leader_view.term == envelope.term.0
                {
                    require!(
                        leader_view.log.at(matched.0) == durable,
                        "I23: node {node} acknowledges up to {matched} to leader {leader}, whose log \
                         differs"
                    );
                }
            }
            Message::Append { prev, entries, .. } => {
                require!(
                    self.leaders.get(&envelope.term.0) == Some(&node),
                    "node {node} sends entries in term {}, which it does not lead",
                    envelope.term
                );
                let mut mark = view.log.at(prev.index.0);
                require!(
                    mark.is_some_and(|mark| mark.term == prev.term.0),
                    "node {node} sends entries after {prev:?}, which its log does not have"
                );
                for (entry, index) in entries.iter().zip(prev.index.0 + 1..) {
                    mark = mark.map(|mark| mark.after(entry));
                    require!(
                        entry.pos.index.0 == index && mark == view.log.at(index),
                        "I21: node {node} sends {:?} at {index}, not an entry of its log",
                        entry.pos
                    );
                }
            }
            Message::Vote { kind: VoteKind::Pre, .. }
            | Message::VoteReply { .. }
            | Message::AppendReject { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexReply { .. }
            | Message::TimeoutNow { .. }
            | Message::Removed { .. }
            | Message::Regressed { .. }
            | Message::SnapshotOffer { .. }
            | Message::SnapshotUnderWay { .. } => {}
        }
        Ok(())
    }

    /// Entries go to the applier of a node.
    ///
    /// # Errors
    /// What does not hold.
    pub fn apply(&mut self, node: usize, entries: &[Entry]) -> Checked {
        for entry in entries {
            let index = entry.pos.index.0;
            let view = &mut self.views[node];
            require!(
                !self.enabled || index == view.applying + 1,
                "I21: node {node} applies {index} after {}",
                view.applying
            );
            view.applying = index;
            require!(
                !self.enabled
                    || index <= self.committed.last()
                        && view.durable.at(index) == self.committed.at(index),
                "I11: node {node} applies {index}; committed up to {}, on its disk up to {}",
                self.committed.last(),
                view.durable.last()
            );
            let before = self.committed.at(index - 1);
            require!(
                !self.enabled || before.map(|mark| mark.after(entry)) == self.committed.at(index),
                "I6: node {node} applies another entry at {index} than the one committed"
            );
            self.learn(entry)?;
        }
        Ok(())
    }

    /// The model applies an entry, if it is its next.
    fn learn(&mut self, entry: &Entry) -> Checked {
        let index = entry.pos.index.0;
        if index != self.model.applied() + 1 {
            return Ok(());
        }
        let told = match &entry.body {
            Body::Noop | Body::Config(_) => self.model.apply(index, None),
            Body::Command(body) => {
                let (cluster_time_ms, command) = command::decode_stamped(body.clone())
                    .map_err(|error| format!("the entry at {index} is no command: {error}"))?;
                self.model.stamp(cluster_time_ms);
                self.model.apply(index, Some(&command))
            }
        };
        self.told.push(told);
        Ok(())
    }

    /// A node's state machine reports.
    ///
    /// # Errors
    /// What does not hold.
    pub fn applied(&mut self, node: usize, applied: Applied) -> Checked {
        let hash = *self.state_hashes.entry(applied.index.0).or_insert(applied.state_hash);
        require!(
            !self.enabled || hash == applied.state_hash,
            "I20: node {node} has state hash {:016x} at index {}, another had {hash:016x}",
            applied.state_hash,
            applied.index
        );
        let view = &mut self.views[node];
        require!(
            !self.enabled || applied.index.0 >= view.applied && applied.durable <= applied.index,
            "I10: the state of node {node} goes from {} to {}, {} in tables",
            view.applied,
            applied.index,
            applied.durable
        );
        view.applied = applied.index.0;
        require!(
            !self.enabled
                || applied.index.0 != self.model.applied()
                || applied.revision == self.model.revision(),
            "node {node} is at revision {} after index {}, the model at {}",
            applied.revision,
            applied.index,
            self.model.revision()
        );
        Ok(())
    }

    /// The applier answers whoever waits for the write at `index`.
    ///
    /// # Errors
    /// What does not hold.
    pub fn answered(&mut self, index: u64, return_previous: bool, answer: &Answer) -> Checked {
        if !self.enabled {
            return Ok(());
        }
        let place = usize::try_from(index - 1).unwrap_or(usize::MAX);
        let Some(Some(told)) = self.told.get(place) else {
            return Err(format!(
                "the write at {index} is answered before it is applied: {answer:?}"
            ));
        };
        let agrees = match (told, answer) {
            // The disk failed while the run was applied: the node stops, its callers know nothing.
            (_, Err(WireError::Storage { .. })) => true,
            (Told::Response(expected), Ok(response)) => {
                let mut expected = expected.clone();
                if let Response::Written { previous, .. } | Response::Deleted { previous, .. } =
                    &mut expected
                    && !return_previous
                {
                    *previous = None;
                }
                expected == *response
            }
            (Told::SessionExpired, Err(error)) => {
                matches!(error, WireError::SessionExpired { .. })
            }
            (Told::BadSequence, Err(error)) => matches!(error, WireError::BadSequence { .. }),
            (Told::Response(_), Err(_)) | (Told::SessionExpired | Told::BadSequence, Ok(_)) => {
                false
            }
        };
        require!(agrees, "I18: the write at {index} is answered {answer:?}, must be {told:?}");
        Ok(())
    }

    /// A read may be served from `index` on; `floor` was acknowledged before it began.
    ///
    /// # Errors
    /// What does not hold.
    pub fn read_ready(&self, node: usize, index: u64, floor: u64) -> Checked {
        require!(
            !self.enabled || index >= floor,
            "I16: node {node} may serve a read from {index} on, but {floor} was acknowledged before \
             it began"
        );
        require!(
            !self.enabled || index <= self.committed.last(),
            "I16: node {node} may serve a read from {index} on, which may never come: committed is {}",
            self.committed.last()
        );
        Ok(())
    }

    /// What a node says of itself, after a step.
    ///
    /// # Errors
    /// What does not hold.
    pub fn status(&mut self, node: usize, status: &ReplicaStatus) -> Checked {
        // A halted node has stopped in the middle of a step; it does and says nothing more.
        if status.role == RoleKind::Halted {
            return Ok(());
        }
        let quorum = self.quorum();
        let voters = status.membership.nodes().len();
        require!(
            !self.enabled || voters == self.views.len(),
            "I14: node {node} believes in {voters} members, there are {}",
            self.views.len()
        );
        let view = &mut self.views[node];
        let (term, commit) = (status.term.0, status.commit_index.0);
        require!(
            !self.enabled || term >= view.term && commit >= view.commit,
            "I10: node {node} goes back from term {} to {term}, or from commit index {} to {commit}",
            view.term,
            view.commit
        );
        view.term = term;
        view.commit = commit;
        let (last, durable, applied) =
            (status.last_index.0, status.durable_index.0, status.applied.index.0);
        require!(
            !self.enabled
                || applied <= commit.min(durable)
                    && commit.max(durable) <= last
                    && last == view.log.last(),
            "I11: node {node} has applied {applied}, committed {commit}, durable {durable}, last {last}; \
             its log ends at {}",
            view.log.last()
        );
        require!(
            !self.enabled || view.durable.at(durable) == view.log.at(durable),
            "I12: node {node} believes {durable} to be on its disk, where the log ends at {} or differs",
            view.durable.last()
        );
        let known = self.committed.last();
        let mark = view.log.at(commit);
        if commit <= known {
            require!(
                !self.enabled || mark == self.committed.at(commit),
                "I7: node {node} has another entry committed at {commit} than was committed there"
            );
            return Ok(());
        }
        // It may have stepped down in the same step, after it committed.
        let leads = view.leads;
        let entry_term = mark.unwrap_or_default().term;
        let own = self.leaders.get(&entry_term) == Some(&node);
        require!(
            !self.enabled || view.log.at(known) == Some(self.committed.tip()),
            "I7: node {node} commits {commit} after another entry at {known} than was committed there"
        );
        let from = usize::try_from(known).unwrap_or(usize::MAX);
        let upto = usize::try_from(commit).unwrap_or(usize::MAX);
        let fresh: Vec<_> = view.log.0.get(from..upto).unwrap_or_default().to_vec();
        self.committed.0.extend(fresh);
        self.commits.push((entry_term, commit));
        require!(
            !self.enabled || own && (!leads || entry_term == term),
            "I9: node {node} in term {term} (leader: {leads}) is the first to commit {commit}, an entry \
             of term {entry_term}"
        );
        let holders = self.views.iter().filter(|view| view.durable.at(commit) == mark).count();
        require!(
            !self.enabled || holders >= quorum,
            "I8: index {commit} is committed and on {holders} disks of {}",
            self.views.len()
        );
        Ok(())
    }
}
