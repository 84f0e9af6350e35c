//! The follower: takes the leader's entries, answers truthfully, asks it for read indexes.
//!
//! Invariants
//! 1. What is committed is never removed: a leader that asks for it has forked the log, and the
//!    node halts.
//! 2. Entries that match stay as they are; only from the first real conflict on is the log cut. So
//!    an old message that arrives late removes nothing (Raft §5.3).
//! 3. The commit index moves only as far as this leader has shown the log to match.

use alloc::{collections::VecDeque, sync::Arc, vec::Vec};
use core::time::Duration;

use super::{Patience, Role, earliest};
use crate::mutants::{Mutant, is_active};
use crate::{
    Entry, FatalError, LogIndex, LogPos, Message, Micros, NodeId, ProbeId, ReadSeq, Reject, Term,
    Ticket, common::Common, raft::Raft,
};

/// What only a follower has.
#[derive(Debug)]
pub(crate) struct Follower {
    /// The leader of this term, if known.
    pub(crate) leader: Option<Leading>,
    /// This follower's election timeout, drawn anew with every role.
    timeout: Duration,
    /// Stands for election then.
    pub(crate) election_at: Micros,
    reads: ForwardedReads,
}

/// The leader and its last sign of life; refusing votes to others depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leading {
    pub(crate) id: NodeId,
    pub(crate) last_contact: Micros,
    /// Nothing says that its connection broke after that.
    pub(crate) is_connected: bool,
}

/// Reads of this node that the leader is asked about, one question for all of a flush.
#[derive(Debug, Default)]
struct ForwardedReads {
    fresh: Vec<Ticket>,
    asked: VecDeque<Question>,
    count: usize,
}

#[derive(Debug)]
struct Question {
    id: Ticket,
    tickets: Vec<Ticket>,
    give_up_at: Micros,
}

/// The parts of [`Message::Append`], with who sent it.
#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) from: NodeId,
    pub(crate) term: Term,
    pub(crate) prev: LogPos,
    pub(crate) entries: Arc<[Entry]>,
    pub(crate) commit: LogIndex,
    pub(crate) probe: ProbeId,
    pub(crate) sent_at: Micros,
    pub(crate) read: ReadSeq,
}

impl Append {
    /// Whether a node that follows the protocol can have sent this.
    fn is_well_formed(&self) -> bool {
        let mut previous = self.prev;
        let zero = (previous.index == LogIndex(0)) == (previous.term == Term(0));
        zero && previous.term <= self.term
            && self.entries.iter().all(|entry| {
                let follows = entry.pos.index == previous.index.next()
                    && entry.pos.term >= previous.term
                    && entry.pos.term > Term(0)
                    && entry.pos.term <= self.term;
                previous = entry.pos;
                follows
            })
    }
}

impl Follower {
    pub(crate) fn new(leader: Option<Leading>, timeout: Duration, election_at: Micros) -> Self {
        Self { leader, timeout, election_at, reads: ForwardedReads::default() }
    }

    /// Someone leads or may soon.
    pub(crate) fn restart_timeout(&mut self, now: Micros) {
        self.election_at = now.after(self.timeout);
    }

    /// The connection to a peer broke. If it leads, the next election is due within a heartbeat: not
    /// for all followers at the same moment, lest they share the votes.
    pub(crate) fn on_disconnected(&mut self, common: &mut Common, id: NodeId) {
        if !common.config.fast_failover {
            return;
        }
        if let Some(leading) = self.leader.as_mut().filter(|leading| leading.id == id) {
            leading.is_connected = false;
            let pause = common.draw(Duration::ZERO, common.config.heartbeat);
            self.election_at = self.election_at.min(common.now.after(pause));
        }
    }

    pub(crate) fn deadline(&self) -> Micros {
        let give_up_at = self.reads.asked.front().map(|question| question.give_up_at);
        earliest([Some(self.election_at), give_up_at])
    }

    pub(crate) const fn waiting_reads(&self) -> usize {
        self.reads.count
    }

    /// Takes a read to be asked about with the next flush.
    pub(crate) fn on_read(&mut self, common: &mut Common, ticket: Ticket) {
        if self.leader.is_none() {
            common.reject(ticket, Reject::NotLeader { hint: None });
        } else if self.reads.count >= common.config.max_waiting_reads {
            common.reject(ticket, Reject::Overloaded);
        } else {
            self.reads.count += 1;
            self.reads.fresh.push(ticket);
        }
    }

    /// The leader says that reads it was asked about up to question `id` may be served from `index`
    /// on. Earlier questions are answered too: the index is at least what theirs would have been.
    pub(crate) fn on_read_index(&mut self, common: &mut Common, id: Ticket, index: LogIndex) {
        if id <= common.first_question || id > common.last_question {
            common.counters.invalid_messages += 1;
            return;
        }
        while let Some(question) = self.reads.asked.pop_front_if(|question| question.id <= id) {
            self.reads.count -= question.tickets.len();
            for ticket in question.tickets {
                common.read_ready(ticket, index);
            }
        }
    }

    /// Gives up questions without an answer.
    pub(crate) fn expire_reads(&mut self, common: &mut Common) {
        let now = common.now;
        while let Some(question) = self.reads.asked.pop_front_if(|it| it.give_up_at <= now) {
            self.reads.count -= question.tickets.len();
            for ticket in question.tickets {
                common.reject(ticket, Reject::NoQuorum);
            }
        }
    }

    /// Asks the leader about all new reads at once.
    pub(crate) fn flush(&mut self, common: &mut Common) {
        let Some(leading) = self.leader else { return };
        if self.reads.fresh.is_empty() {
            return;
        }
        common.last_question = Ticket(common.last_question.0 + 1);
        let id = common.last_question;
        let tickets = core::mem::take(&mut self.reads.fresh);
        let give_up_at = common.now.after(common.config.election_min);
        self.reads.asked.push_back(Question { id, tickets, give_up_at });
        common.outbox.send(leading.id, common.term(), Message::ReadIndex { id });
    }

    /// The role ends: nobody will answer its reads.
    pub(crate) fn close(self, common: &mut Common, why: Reject) {
        let asked = self.reads.asked.into_iter().flat_map(|question| question.tickets);
        for ticket in asked.chain(self.reads.fresh) {
            common.reject(ticket, why);
        }
    }

    pub(crate) fn check_invariants(&self, common: &Common) {
        let asked: usize = self.reads.asked.iter().map(|question| question.tickets.len()).sum();
        let count = asked + self.reads.fresh.len();
        assert!(count == self.reads.count, "{count} reads wait, {} counted", self.reads.count);
        assert!(count <= common.config.max_waiting_reads, "{count} reads wait");
        assert!(count == 0 || self.leader.is_some(), "{count} reads wait for no leader");
    }
}

impl Raft {
    /// Takes what a leader sent: recognises it, then appends (Raft §5.3).
    pub(crate) fn on_append(&mut self, append: Append) {
        if !append.is_well_formed() {
            self.common.counters.invalid_messages += 1;
            return;
        }
        let Append { from, term, probe, sent_at, read, .. } = append;
        if term < self.common.term() {
            // The old leader learns the term and steps down.
            let hint = LogPos::default();
            let msg = Message::AppendReject { probe, hint, echo: sent_at, read };
            self.common.outbox.send_after_ballot(from, self.common.term(), msg);
            return;
        }
        if !self.recognise_leader(from, term) {
            return;
        }
        if let Err(error) = self.common.append_from_leader(append) {
            self.halt(error);
        }
    }

    /// A node says that it leads in `term`, which is this node's or a later one. `false` if that cannot be.
    pub(crate) fn recognise_leader(&mut self, from: NodeId, term: Term) -> bool {
        let now = self.common.now;
        let known = match &mut self.role {
            Role::Follower(follower) if term == self.common.ballot.term => {
                if let Some(leading) = &mut follower.leader {
                    leading.last_contact = now;
                    leading.is_connected = true;
                    let id = leading.id;
                    follower.restart_timeout(now);
                    Some(id)
                } else {
                    None
                }
            }
            Role::Leader(_) if term == self.common.ballot.term => Some(self.common.id),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) | Role::Leader(_) => {
                None
            }
            Role::Halted => return false,
        };
        match known {
            None => self.become_follower(term, Some(from), Patience::Full),
            Some(id) if id == from => {}
            Some(one) => {
                self.halt(FatalError::TwoLeaders { one, other: from, term });
                return false;
            }
        }
        true
    }
}

impl Common {
    /// Makes the log equal to the leader's as far as `append` tells, and owes it an answer.
    fn append_from_leader(&mut self, append: Append) -> Result<(), FatalError> {
        let Append { from, term, prev, entries, commit, probe, sent_at, read } = append;
        let conflict =
            |index, commit| FatalError::CommittedConflict { leader: from, term, index, commit };
        let prev_here = self.log.term_at(prev.index);
        if prev.index > self.commit {
            if prev_here != Some(prev.term) {
                let hint = self.log.hint(prev);
                let msg = Message::AppendReject { probe, hint, echo: sent_at, read };
                self.outbox.send_after_ballot(from, term, msg);
                return Ok(());
            }
        } else if prev_here.is_some_and(|here| here != prev.term) {
            // What is committed is in the log of every later leader (Raft §5.4.3).
            return Err(conflict(prev.index, self.commit));
        }
        let shown = LogIndex(prev.index.0 + entries.len() as u64);
        let at_once = entries.is_empty();
        // The first entry that is not here yet. Usually all are new.
        let mut new_from = entries.len();
        for (at, entry) in entries.iter().enumerate() {
            match self.log.term_at(entry.pos.index) {
                Some(here)
                    if here == entry.pos.term
                        && !(is_active(Mutant::TruncateAlways)
                            && entry.pos.index > self.commit) => {}
                Some(_) if entry.pos.index <= self.commit => {
                    return Err(conflict(entry.pos.index, self.commit));
                }
                Some(_) => {
                    self.truncate(entry.pos.index);
                    new_from = at;
                    break;
                }
                // Below the log: applied and gone, like everything committed.
                None if entry.pos.index <= self.commit => {}
                None => {
                    new_from = at;
                    break;
                }
            }
        }
        if new_from == 0 && !entries.is_empty() {
            self.append_received(entries);
        } else if new_from < entries.len() {
            self.append_received(entries[new_from..].into());
        }
        let verified =
            if is_active(Mutant::CommitUnverifiedTail) { self.log.last().index } else { shown };
        self.commit_to(commit.min(verified).min(self.log.last().index));
        // What is committed here matches too, and saves the leader from looking for it; but an
        // answer must not wait for a disk on its account.
        let matched = shown.max(self.commit.min(self.writer.durable_index()));
        self.outbox.acknowledge(from, term, matched, probe, sent_at, read, at_once);
        Ok(())
    }
}
