//! What every role has: ballot, log, durability, commit index, apply, and what is to be emitted.
//!
//! Nothing here knows a role; a role changes this state through the methods below, which keep the
//! stream of writes, the log and the count of unapplied bytes together.

use alloc::{collections::VecDeque, sync::Arc, vec::Vec};
use core::time::Duration;

use rand_pcg::{Pcg32, rand_core::Rng as _};

use crate::mutants::{Mutant, is_active};
use crate::{
    Ballot, Body, Config, Counters, Effect, Effects, Entry, FatalError, FetchId, LogIndex, LogPos,
    Membership, Micros, NodeId, Outcome, PersistSeq, Quarantine, Recovered, Reject, SnapshotMeta,
    Term, Ticket, WriteOp,
    apply::Apply,
    codec::encoded_len,
    log::Log,
    outbox::Outbox,
    sizes::Sizes,
    snapshot::{Receiver, granule},
    unapplied::Unapplied,
    writer::Writer,
};

/// The stream of the random generator; the seed is the caller's.
const RNG_STREAM: u64 = 0x5241_4654;

/// Questions to a leader are numbered from a random multiple of 2^24: the answer to one of an
/// earlier boot, on its way when the node restarts, must not be taken for the answer to one of this.
const QUESTION_NONCE: u64 = 0x7FFF_FFFF_FF00_0000;

/// The state shared by all roles.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) id: NodeId,
    pub(crate) config: Config,
    pub(crate) now: Micros,
    pub(crate) ballot: Ballot,
    /// The ballot is not yet in a write.
    ballot_unwritten: bool,
    pub(crate) log: Log,
    pub(crate) writer: Writer,
    /// The log up to here is in writes given out.
    written: LogIndex,
    /// The next write has to cut the log here first.
    truncate_from: Option<LogIndex>,
    /// The next write has to replace the log by this first.
    install: Option<(FetchId, SnapshotMeta)>,
    pub(crate) quarantine: Option<Quarantine>,
    /// It is not yet in the stream.
    quarantine_unwritten: bool,
    pub(crate) receiver: Receiver,
    /// What all entries take, for cutting the log.
    pub(crate) sizes: Sizes,
    /// The state machine keeps everything up to here over a crash.
    pub(crate) state_durable: LogIndex,
    pub(crate) commit: LogIndex,
    /// Where the committed membership stands that removed this node, once it knows.
    pub(crate) removed: Option<LogIndex>,
    pub(crate) apply: Apply,
    pub(crate) unapplied: Unapplied,
    /// Proposals appended here and not yet handed to the state machine, by their last index.
    tickets: VecDeque<(LogIndex, Ticket)>,
    pub(crate) outbox: Outbox,
    replies: Vec<Effect>,
    pub(crate) counters: Counters,
    pub(crate) next_fetch: FetchId,
    /// Questions to a leader are numbered after this, and the last one asked.
    pub(crate) first_question: Ticket,
    pub(crate) last_question: Ticket,
    pub(crate) no_entries: Arc<[Entry]>,
    rng: Pcg32,
}

impl Common {
    pub(crate) fn new(
        id: NodeId,
        config: Config,
        recovered: &Recovered,
        seed: u64,
        now: Micros,
    ) -> Self {
        let last = recovered.last.index;
        let mut rng = Pcg32::new(seed, RNG_STREAM);
        let first_question = Ticket(rng.next_u64() & QUESTION_NONCE);
        Self {
            id,
            now,
            ballot: recovered.ballot,
            ballot_unwritten: false,
            log: Log::new(recovered),
            writer: Writer::new(last),
            written: last,
            truncate_from: None,
            install: None,
            quarantine: recovered.quarantine,
            quarantine_unwritten: false,
            receiver: Receiver::default(),
            sizes: Sizes::new(
                recovered.base.index,
                last,
                recovered.log_bytes,
                granule(config.compaction),
            ),
            state_durable: recovered.base.index,
            // What is applied was committed, whatever the hint remembers.
            commit: recovered.commit_hint.max(recovered.applied),
            removed: None,
            apply: Apply::new(recovered.applied),
            unapplied: Unapplied::new(
                recovered.applied.next(),
                recovered.unapplied_bytes,
                config.max_unapplied_bytes,
            ),
            tickets: VecDeque::new(),
            outbox: Outbox::new(id),
            replies: Vec::new(),
            counters: Counters::default(),
            next_fetch: FetchId(0),
            first_question,
            last_question: first_question,
            no_entries: Arc::new([]),
            rng,
            config,
        }
    }

    /// The term this node is in.
    pub(crate) const fn term(&self) -> Term {
        self.ballot.term
    }

    /// The membership in force.
    pub(crate) fn membership(&self) -> &Arc<Membership> {
        self.log.membership().1
    }

    /// Where the committed membership stands that removed `id`, if one did. Ids are never given
    /// twice, so no later one can bring it back.
    pub(crate) fn removed_at(&self, id: NodeId) -> Option<LogIndex> {
        let (at, membership) = self.log.membership_at(self.commit)?;
        membership.is_removed(id).then_some(at)
    }

    /// This node was removed by the committed membership at `at`.
    pub(crate) fn note_removal(&mut self, at: LogIndex) {
        self.removed.get_or_insert(at);
    }

    /// A random time from `low` up to, not including, `high`.
    pub(crate) fn draw(&mut self, low: Duration, high: Duration) -> Duration {
        let span = u64::try_from(high.saturating_sub(low).as_micros()).unwrap_or(u64::MAX).max(1);
        // The bias of a remainder is below one in a million for a span of hours.
        low + Duration::from_micros(self.rng.next_u64() % span)
    }

    /// A random time without a leader before an election (Raft §5.2).
    pub(crate) fn draw_election_timeout(&mut self) -> Duration {
        let low = self.config.election_min;
        self.draw(low, low + self.config.election_jitter)
    }

    /// A random time before an election is tried again.
    pub(crate) fn draw_retry(&mut self) -> Duration {
        self.draw(self.config.heartbeat, self.config.election_jitter)
    }

    /// Enters a later term, or votes in this one.
    pub(crate) fn set_ballot(&mut self, ballot: Ballot) {
        let old = self.ballot;
        assert!(
            ballot.term > old.term
                || (ballot.term == old.term && (old.voted_for.is_none() || old == ballot)),
            "the ballot {old:?} cannot become {ballot:?}"
        );
        if ballot != old {
            self.ballot = ballot;
            self.ballot_unwritten = true;
        }
    }

    /// Whether the current ballot is on disk.
    pub(crate) fn ballot_is_durable(&self) -> bool {
        !self.ballot_unwritten && self.writer.ballot_gate().is_none()
    }

    /// Appends an entry of this node's own term.
    pub(crate) fn append_own(&mut self, body: Body) -> LogPos {
        let pos = LogPos { term: self.term(), index: self.log.last().index.next() };
        let entry = Entry { pos, body };
        let bytes = encoded_len(&entry);
        self.unapplied.appended(pos.index, bytes);
        self.sizes.appended(pos.index, bytes);
        self.log.push(entry);
        pos
    }

    /// Appends entries of a leader.
    pub(crate) fn append_received(&mut self, entries: Arc<[Entry]>) {
        let first = self.log.last().index.next();
        let bytes = self.log.extend(entries);
        self.unapplied.appended(first, bytes);
        self.sizes.appended(first, bytes);
    }

    /// Removes `from` and everything after it, in memory now and on disk with the next write.
    pub(crate) fn truncate(&mut self, from: LogIndex) {
        assert!(
            from > self.commit,
            "cannot remove entries from {from} on: {} is committed",
            self.commit
        );
        self.log.truncate(from);
        self.writer.overwrite(from);
        self.unapplied.truncated(from, self.apply.applied);
        self.sizes.truncated(from);
        if from <= self.written {
            self.written = from.prev();
            self.truncate_from = Some(self.truncate_from.map_or(from, |earlier| earlier.min(from)));
        }
    }

    /// The entries up to `to` are committed.
    pub(crate) fn commit_to(&mut self, to: LogIndex) {
        assert!(
            to <= self.log.last().index,
            "{to} cannot be committed: the log ends at {}",
            self.log.last().index
        );
        self.commit = self.commit.max(to);
    }

    /// Remembers that the proposal `ticket` ends at `last`.
    pub(crate) fn remember_ticket(&mut self, last: LogIndex, ticket: Ticket) {
        self.tickets.push_back((last, ticket));
    }

    /// Leadership is lost: what is not known to be committed may or may not become so.
    pub(crate) fn forget_uncommitted_tickets(&mut self) {
        while self.tickets.back().is_some_and(|(last, _)| *last > self.commit)
            && let Some((_, ticket)) = self.tickets.pop_back()
        {
            self.reply(ticket, Outcome::Unknown);
        }
    }

    /// The node halts: nothing more will be applied here.
    pub(crate) fn forget_all_tickets(&mut self) {
        while let Some((_, ticket)) = self.tickets.pop_front() {
            self.reply(ticket, Outcome::Unknown);
        }
    }

    pub(crate) fn reply(&mut self, ticket: Ticket, outcome: Outcome) {
        self.replies.push(Effect::Reply { ticket, outcome });
    }

    /// Emits `effect` with the next flush, after everything that must be on disk or leave in order.
    pub(crate) fn tell(&mut self, effect: Effect) {
        self.replies.push(effect);
    }

    pub(crate) fn reject(&mut self, ticket: Ticket, why: Reject) {
        self.reply(ticket, Outcome::Rejected(why));
    }

    pub(crate) fn read_ready(&mut self, ticket: Ticket, index: LogIndex) {
        self.replies.push(Effect::ReadReady { ticket, index });
    }

    /// Whether the disk has not finished its oldest write for too long.
    pub(crate) fn is_stalled(&self) -> bool {
        self.writer
            .oldest_issued_at()
            .is_some_and(|at| at.after(self.config.persist_stall) < self.now)
    }

    /// The log was replaced in memory by the snapshot of request `id`; on disk it is with the next write.
    pub(crate) fn begin_install(&mut self, id: FetchId, meta: SnapshotMeta) {
        self.truncate_from = None;
        self.written = meta.pos.index;
        self.install = Some((id, meta));
    }

    /// Gives out one write for everything that changed, and one before it if the log was replaced.
    pub(crate) fn flush_write(&mut self, out: &mut Effects) {
        if let Some((id, meta)) = self.install.take() {
            let seq = self.writer.issue(meta.pos.index, self.ballot_unwritten, self.now);
            let ballot = core::mem::take(&mut self.ballot_unwritten).then_some(self.ballot);
            self.apply.adopt_after(seq, meta.pos);
            out.push(Effect::InstallSnapshot { seq, id, ballot, meta });
        }
        let last = self.log.last().index;
        let has_entries = last > self.written;
        if !has_entries && !self.ballot_unwritten && self.truncate_from.is_none() {
            return;
        }
        let append = if has_entries {
            let slice = self.log.slice(self.written.next(), last, usize::MAX);
            slice.expect("entries not yet written never leave memory: eviction stops at the durable index").entries
        } else {
            Arc::clone(&self.no_entries)
        };
        let seq: PersistSeq = self.writer.issue(last, self.ballot_unwritten, self.now);
        out.push(Effect::Persist(WriteOp {
            seq,
            ballot: core::mem::take(&mut self.ballot_unwritten).then_some(self.ballot),
            truncate_from: self.truncate_from.take(),
            append,
            commit_hint: self.commit.min(last),
        }));
        self.written = last;
    }

    /// The node enters quarantine, stays longer, or leaves it.
    pub(crate) fn set_quarantine(&mut self, quarantine: Option<Quarantine>) {
        if quarantine != self.quarantine {
            self.quarantine = quarantine;
            self.quarantine_unwritten = true;
        }
    }

    /// Ends the quarantine if it is time, and writes down what is new of it.
    pub(crate) fn flush_quarantine(&mut self, out: &mut Effects) {
        self.end_quarantine();
        if core::mem::take(&mut self.quarantine_unwritten) {
            let seq = self.writer.issue(self.written, false, self.now);
            out.push(Effect::Quarantine { seq, quarantine: self.quarantine });
        }
    }

    pub(crate) fn flush_replies(&mut self, out: &mut Effects) {
        for reply in self.replies.drain(..) {
            out.push(reply);
        }
    }

    pub(crate) fn flush_apply(&mut self, out: &mut Effects) {
        let mut upto = self.commit.min(self.writer.durable_index());
        if is_active(Mutant::ApplyBeforeDurable) {
            upto = self.commit;
        }
        self.apply.flush(
            &self.log,
            upto,
            self.writer.durable(),
            self.config.max_apply_bytes,
            self.now,
            &mut self.next_fetch,
            out,
        );
        while self.tickets.front().is_some_and(|(last, _)| *last <= self.apply.sent) {
            self.tickets.pop_front();
        }
    }

    /// Lets old entries leave memory.
    pub(crate) fn evict(&mut self) {
        let durable = self.writer.durable_index();
        self.log.evict(self.config.max_tail_bytes, durable.min(self.written));
    }

    /// Whether loaded `entries` are those the log holds from `lo` on.
    ///
    /// # Errors
    /// The first entry that is another.
    pub(crate) fn check_fetched(&self, lo: LogIndex, entries: &[Entry]) -> Result<(), FatalError> {
        let mut index = lo;
        for entry in entries {
            if self.log.position(index) != Some(entry.pos) {
                return Err(FatalError::WrongEntryFetched { index, found: entry.pos });
            }
            index = index.next();
        }
        Ok(())
    }

    pub(crate) fn check_invariants(&self) {
        let last = self.log.last();
        let durable = self.writer.durable_index();
        self.log.check_invariants();
        self.writer.check_invariants(last.index);
        self.apply.check_invariants(self.commit.min(durable));
        self.outbox.check_invariants(&self.writer);
        assert!(
            self.commit <= last.index,
            "committed {}, the log ends at {}",
            self.commit,
            last.index
        );
        assert!(durable <= last.index, "durable {durable}, the log ends at {}", last.index);
        assert!(
            last.term <= self.ballot.term,
            "the log ends in {}, the ballot is {:?}",
            last.term,
            self.ballot
        );
        assert!(
            self.written <= last.index,
            "written {}, the log ends at {}",
            self.written,
            last.index
        );
        assert!(
            self.log.first_in_memory() <= durable.max(self.log.base().index).next(),
            "memory begins at {}, but only {durable} is durable",
            self.log.first_in_memory()
        );
        let base = self.log.base().index;
        assert!(
            base <= self.commit && self.state_durable <= self.apply.applied.max(base),
            "the log begins after {base}, {} is committed, {} kept, {} applied",
            self.commit,
            self.state_durable,
            self.apply.applied
        );
        assert!(
            self.tickets.iter().is_sorted_by(|(a, _), (b, _)| a < b),
            "the tickets are out of order"
        );
    }
}
