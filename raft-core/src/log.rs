//! The replicated log as the core sees it: all terms, the newest entries, the memberships in it.
//!
//! The log begins after `base`: at first before index 1, later wherever it was cut off or a snapshot was
//! installed. Terms are kept for all of it as runs, so that matching, conflict hints and the comparison of
//! votes never read storage. Entries are kept in blocks that are shared, never copied, with the
//! writes, messages and applies made from them; old blocks leave memory and are loaded again with
//! [`FetchLog`](crate::Effect::FetchLog).
//!
//! ```text
//!  base          first in memory                             last
//!   | 1 1 1 1 2 2 | 2 2 2 2 4 4 4 | 4 | 4 4 4 4 4 | 4 4 4 4 4 |
//!     on disk only       block      block   block     fresh
//!   terms: (1, index 1) (2, index 5) (4, index 11)
//! ```
//!
//! Invariants
//! 1. Indexes are consecutive from `base + 1` to `last`; terms never fall.
//! 2. The entries in memory are a suffix of the log, without gaps.
//! 3. `memberships` holds the one in force at `base`, unless this node joined with an empty log, and
//!    every one in the log after it, in order; the last is in force, committed or not (Raft §6).

use alloc::{collections::VecDeque, sync::Arc, vec::Vec};

use crate::{
    Body, Entry, LogIndex, LogPos, Membership, Recovered, SnapshotMeta, Term, codec::encoded_len,
};

/// What a block costs besides its entries; keeps many small blocks from hiding behind few bytes.
const BLOCK_OVERHEAD_BYTES: usize = 64;

/// Consecutive entries, shared.
#[derive(Debug)]
struct Block {
    first: LogIndex,
    bytes: usize,
    entries: Arc<[Entry]>,
}

impl Block {
    fn last(&self) -> LogIndex {
        LogIndex(self.first.0 + self.entries.len() as u64 - 1)
    }
}

/// Entries taken from memory, with their encoded size.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) entries: Arc<[Entry]>,
    pub(crate) bytes: usize,
}

/// The log.
#[derive(Debug)]
pub(crate) struct Log {
    base: LogPos,
    runs: Vec<LogPos>,
    last: LogPos,
    blocks: VecDeque<Block>,
    fresh: Vec<Entry>,
    fresh_bytes: usize,
    /// Of `blocks` and `fresh`, with overhead.
    tail_bytes: usize,
    memberships: Vec<(LogIndex, Arc<Membership>)>,
    /// What is in force while `memberships` is empty.
    unknown: Arc<Membership>,
}

impl Log {
    pub(crate) fn new(recovered: &Recovered) -> Self {
        Self {
            base: recovered.base,
            runs: recovered.terms.clone(),
            last: recovered.last,
            blocks: VecDeque::new(),
            fresh: Vec::new(),
            fresh_bytes: 0,
            tail_bytes: 0,
            memberships: recovered.memberships.clone(),
            unknown: Arc::new(Membership::unknown()),
        }
    }

    /// The position before the first entry.
    pub(crate) const fn base(&self) -> LogPos {
        self.base
    }

    pub(crate) const fn last(&self) -> LogPos {
        self.last
    }

    pub(crate) const fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// The term of the entry at `index`; `None` outside the log. At `base` it is known too.
    pub(crate) fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index > self.last.index || index < self.base.index {
            return None;
        }
        let run = self.runs.partition_point(|run| run.index <= index);
        Some(if run == 0 { self.base.term } else { self.runs[run - 1].term })
    }

    /// The position at `index`, if it is in the log.
    pub(crate) fn position(&self, index: LogIndex) -> Option<LogPos> {
        self.term_at(index).map(|term| LogPos { term, index })
    }

    /// The largest position here whose term is at most `asked`'s and whose index is at most
    /// `asked`'s: below it the logs may agree, above it they cannot (Raft §5.3, by term).
    pub(crate) fn hint(&self, asked: LogPos) -> LogPos {
        let mut index = asked.index.min(self.last.index).max(self.base.index);
        let later = self.runs.partition_point(|run| run.term <= asked.term);
        if let Some(run) = self.runs.get(later) {
            index = index.min(run.index.prev());
        }
        self.position(index).unwrap_or(self.base)
    }

    /// The membership in force and the index that brought it.
    pub(crate) fn membership(&self) -> (LogIndex, &Arc<Membership>) {
        match self.memberships.last() {
            Some((at, membership)) => (*at, membership),
            None => (LogIndex(0), &self.unknown),
        }
    }

    /// The membership that was in force at `index`, and every later one.
    pub(crate) fn memberships_from(&self, index: LogIndex) -> &[(LogIndex, Arc<Membership>)] {
        let later = self.memberships.partition_point(|(at, _)| *at <= index);
        &self.memberships[later.saturating_sub(1)..]
    }

    /// The membership that was in force at `index` and where it stands, if it is known.
    pub(crate) fn membership_at(&self, index: LogIndex) -> Option<(LogIndex, &Arc<Membership>)> {
        let (at, membership) = self.memberships_from(index).first()?;
        (*at <= index).then_some((*at, membership))
    }

    /// Appends one entry of this node's own term.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.note(&entry);
        let bytes = encoded_len(&entry);
        self.fresh_bytes += bytes;
        self.tail_bytes += bytes;
        self.fresh.push(entry);
    }

    /// Appends consecutive entries and shares their memory. Returns their encoded size.
    pub(crate) fn extend(&mut self, entries: Arc<[Entry]>) -> usize {
        self.seal();
        let Some(first) = entries.first().map(|entry| entry.pos.index) else { return 0 };
        let mut bytes = 0;
        for entry in entries.iter() {
            self.note(entry);
            bytes += encoded_len(entry);
        }
        self.push_block(Block { first, bytes, entries });
        bytes
    }

    /// Makes the entries appended one by one a block.
    pub(crate) fn seal(&mut self) {
        let Some(first) = self.fresh.first().map(|entry| entry.pos.index) else { return };
        let bytes = core::mem::take(&mut self.fresh_bytes);
        self.tail_bytes -= bytes;
        let entries: Arc<[Entry]> = self.fresh.drain(..).collect();
        self.push_block(Block { first, bytes, entries });
    }

    /// Removes `from` and everything after it.
    pub(crate) fn truncate(&mut self, from: LogIndex) {
        assert!(
            from > self.base.index && from <= self.last.index,
            "cannot cut at {from}: the log holds {} to {}",
            self.base.index.next(),
            self.last.index
        );
        self.seal();
        while let Some(block) = self.blocks.pop_back() {
            self.tail_bytes -= block.bytes + BLOCK_OVERHEAD_BYTES;
            if block.first < from {
                let kept = block.entries.iter().take_while(|entry| entry.pos.index < from);
                let entries: Arc<[Entry]> = kept.cloned().collect();
                let bytes = entries.iter().map(encoded_len).sum();
                self.push_block(Block { first: block.first, bytes, entries });
                break;
            }
        }
        while self.runs.last().is_some_and(|run| run.index >= from) {
            self.runs.pop();
        }
        // Any number of them (Raft §6): by then the one at `base` is the last that can stay.
        while self.memberships.last().is_some_and(|(at, _)| *at >= from) {
            self.memberships.pop();
        }
        let term = self.runs.last().map_or(self.base.term, |run| run.term);
        self.last = LogPos { term, index: from.prev() };
    }

    /// Forgets `base` and everything before it. It is in the log, or is where it ends.
    pub(crate) fn cut(&mut self, base: LogPos) {
        assert!(
            base.index >= self.base.index && self.position(base.index) == Some(base),
            "cannot begin after {base:?}: the log holds {} to {}",
            self.base.index.next(),
            self.last.index
        );
        let first = base.index.next();
        let gone = self.runs.partition_point(|run| run.index <= first);
        self.runs.drain(..gone.saturating_sub(1));
        if base == self.last {
            self.runs.clear();
        } else if let Some(run) = self.runs.first_mut() {
            run.index = run.index.max(first);
        }
        let known = self.memberships.partition_point(|(at, _)| *at <= base.index);
        self.memberships.drain(..known.saturating_sub(1));
        self.base = base;
        while self.blocks.front().is_some_and(|block| block.last() <= base.index)
            && let Some(block) = self.blocks.pop_front()
        {
            self.tail_bytes -= block.bytes + BLOCK_OVERHEAD_BYTES;
        }
    }

    /// Becomes the empty log after a snapshot.
    pub(crate) fn reset(&mut self, snapshot: &SnapshotMeta) {
        (self.base, self.last) = (snapshot.pos, snapshot.pos);
        self.runs.clear();
        self.blocks.clear();
        self.fresh.clear();
        (self.fresh_bytes, self.tail_bytes) = (0, 0);
        let membership = Arc::clone(&snapshot.membership);
        self.memberships = Vec::from([(snapshot.membership_at, membership)]);
    }

    /// The first index whose entry is in memory; one after the last if none is.
    pub(crate) fn first_in_memory(&self) -> LogIndex {
        let first = self.blocks.front().map(|block| block.first);
        first
            .or_else(|| self.fresh.first().map(|entry| entry.pos.index))
            .unwrap_or_else(|| self.last.index.next())
    }

    /// The entries from `lo` up to at most `hi` and at most `max_bytes`, but at least one. `None`
    /// if `lo` is not in memory. Everything must be sealed.
    pub(crate) fn slice(&self, lo: LogIndex, hi: LogIndex, max_bytes: usize) -> Option<Slice> {
        if lo > hi || hi > self.last.index {
            return None;
        }
        let at = self.blocks.partition_point(|block| block.first <= lo).checked_sub(1)?;
        let block = &self.blocks[at];
        // The usual case: just the block of one flush, shared as it is.
        let whole = block.first == lo && block.last() <= hi && block.bytes <= max_bytes;
        if whole {
            let next = self.blocks.get(at + 1);
            if block.last() == hi || next.is_none_or(|next| block.bytes + next.bytes > max_bytes) {
                return Some(Slice { entries: Arc::clone(&block.entries), bytes: block.bytes });
            }
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        for entry in self.blocks.range(at..).flat_map(|block| block.entries.iter()) {
            if entry.pos.index < lo {
                continue;
            }
            let size = encoded_len(entry);
            if entry.pos.index > hi || (!taken.is_empty() && bytes + size > max_bytes) {
                break;
            }
            bytes += size;
            taken.push(entry.clone());
        }
        (!taken.is_empty()).then(|| Slice { entries: taken.into(), bytes })
    }

    /// Drops the oldest blocks beyond `max_bytes` that lie wholly at or below `durable`.
    pub(crate) fn evict(&mut self, max_bytes: usize, durable: LogIndex) {
        while self.tail_bytes > max_bytes
            && let Some(block) = self.blocks.front()
            && block.last() <= durable
        {
            self.tail_bytes -= block.bytes + BLOCK_OVERHEAD_BYTES;
            self.blocks.pop_front();
        }
    }

    fn push_block(&mut self, block: Block) {
        self.tail_bytes += block.bytes + BLOCK_OVERHEAD_BYTES;
        self.blocks.push_back(block);
    }

    /// Extends everything that is known of the log but the entries themselves.
    fn note(&mut self, entry: &Entry) {
        let pos = entry.pos;
        assert!(
            pos.index == self.last.index.next() && pos.term >= self.last.term,
            "entry {pos:?} cannot follow {:?}",
            self.last
        );
        if self.runs.last().map_or(self.base.term, |run| run.term) != pos.term
            || self.runs.is_empty()
        {
            self.runs.push(pos);
        }
        if let Body::Config(membership) = &entry.body {
            self.memberships.push((pos.index, Arc::clone(membership)));
        }
        self.last = pos;
    }

    pub(crate) fn check_invariants(&self) {
        let mut previous = self.base;
        for &run in &self.runs {
            assert!(
                run.index > previous.index && run.term >= previous.term,
                "term runs are out of order: {run:?} after {previous:?}"
            );
            previous = run;
        }
        assert!(
            previous.term == self.last.term,
            "the last run is {previous:?}, the log ends at {:?}",
            self.last
        );
        let in_memory =
            self.blocks.iter().flat_map(|block| block.entries.iter()).chain(&self.fresh);
        let mut expected = self.first_in_memory();
        let mut bytes = self.blocks.len() * BLOCK_OVERHEAD_BYTES;
        let first = expected;
        let base = self.base.index;
        let mut memberships = self.memberships.iter().filter(|(at, _)| *at >= first && *at > base);
        for entry in in_memory {
            // A block may begin with entries that the log has let go.
            if entry.pos.index <= base {
                bytes += encoded_len(entry);
                expected = expected.next();
                continue;
            }
            assert!(
                Some(entry.pos) == self.position(expected),
                "entry {:?} stands at {expected}, of term {:?} by the runs",
                entry.pos,
                self.term_at(expected)
            );
            if let Body::Config(membership) = &entry.body {
                assert!(
                    memberships.next() == Some(&(expected, Arc::clone(membership))),
                    "the membership at {expected} is not the one derived from the log"
                );
            }
            bytes += encoded_len(entry);
            expected = expected.next();
        }
        assert!(memberships.next().is_none(), "a membership is derived from no entry");
        assert!(
            expected == self.last.index.next(),
            "memory ends before {expected}, the log at {}",
            self.last.index
        );
        assert!(
            bytes == self.tail_bytes,
            "{bytes} bytes are in memory, {} counted",
            self.tail_bytes
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeId, NodeInfo};
    use alloc::collections::BTreeMap;

    fn empty_log() -> Log {
        let nodes = BTreeMap::from([(NodeId::new(1).unwrap(), NodeInfo::default())]);
        Log::new(&Recovered::bootstrap(Arc::new(Membership::of_voters(nodes).unwrap())))
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { pos: LogPos { term: Term(term), index: LogIndex(index) }, body: Body::Noop }
    }

    /// The runs, the blocks and the hint against a plain vector of terms.
    #[test]
    fn log_answers_like_a_plain_vector_of_terms() {
        let mut x = 0xDEAD_BEEF_CAFE_F00D_u64;
        let mut draw = |n: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x % n
        };
        for _run in 0..400 {
            let mut log = empty_log();
            let mut terms: Vec<u64> = Vec::new();
            for _step in 0..40 {
                let last_term = terms.last().copied().unwrap_or(0);
                match draw(5) {
                    0 => {
                        let term = last_term.max(1) + draw(3);
                        terms.push(term);
                        log.push(entry(terms.len() as u64, term));
                    }
                    1 | 2 => {
                        let mut block = Vec::new();
                        let mut term = last_term.max(1) + draw(2);
                        for _ in 0..draw(4) {
                            term += draw(5) / 4;
                            terms.push(term);
                            block.push(entry(terms.len() as u64, term));
                        }
                        log.extend(block.into());
                    }
                    3 if !terms.is_empty() => {
                        let from = 1 + draw(terms.len() as u64);
                        terms.truncate(usize::try_from(from).unwrap() - 1);
                        log.truncate(LogIndex(from));
                    }
                    _ => {
                        log.seal();
                        log.evict(300, LogIndex(terms.len() as u64));
                    }
                }
                log.check_invariants();
                let len = terms.len() as u64;
                assert_eq!(log.last().index.0, len);
                for index in 0..=len + 2 {
                    let plain = match index {
                        0 => Some(Term(0)),
                        i if i <= len => Some(Term(terms[usize::try_from(i).unwrap() - 1])),
                        _ => None,
                    };
                    assert_eq!(log.term_at(LogIndex(index)), plain, "term at {index} of {terms:?}");
                }
                for _ in 0..5 {
                    let asked = LogPos { term: Term(draw(12)), index: LogIndex(draw(len + 3)) };
                    let plain = (1..=len.min(asked.index.0))
                        .rev()
                        .map(|i| (Term(terms[usize::try_from(i).unwrap() - 1]), LogIndex(i)))
                        .find(|(term, _)| *term <= asked.term)
                        .unwrap_or((Term(0), LogIndex(0)));
                    let hint = log.hint(asked);
                    assert_eq!((hint.term, hint.index), plain, "hint for {asked:?} in {terms:?}");
                }
                log.seal();
                let lo = log.first_in_memory().0.max(1) + draw(3);
                let (hi, max) = (len, usize::try_from(draw(200)).unwrap());
                if lo <= hi {
                    let slice = log.slice(LogIndex(lo), LogIndex(hi), max).unwrap();
                    let count = slice.entries.len();
                    assert!(count == 1 || slice.bytes <= max, "{} bytes of {max}", slice.bytes);
                    for (at, entry) in (lo..).zip(slice.entries.iter()) {
                        assert_eq!(Some(entry.pos), log.position(LogIndex(at)));
                    }
                }
            }
        }
    }

    #[test]
    fn block_of_one_flush_is_shared_and_not_copied() {
        let mut log = empty_log();
        log.push(entry(1, 1));
        log.push(entry(2, 1));
        log.seal();
        let whole = log.slice(LogIndex(1), LogIndex(2), 1_000).unwrap();
        let again = log.slice(LogIndex(1), LogIndex(2), 1_000).unwrap();
        assert!(Arc::ptr_eq(&whole.entries, &again.entries));
    }
}
