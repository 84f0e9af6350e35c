//! Who waits for which entry: answers go to the caller of exactly the entry that was committed.
//!
//! A caller waits under (index, term). When the entry at that index comes out for applying, either its
//! term is the same (the caller's own entry: the applier answers) or another (the caller's entry is gone
//! for good: proof that nothing happened, RAFT B33). When leadership is lost before the entry is known to
//! be committed, the outcome is unknown.

use std::collections::VecDeque;

use raft_core::{Entry, LogIndex, LogPos, Term};

use crate::replica::ApplyWaiter;

/// Callers by the position of their entry, rising.
#[derive(Debug)]
pub(crate) struct Pending<W> {
    waiting: VecDeque<Waiting<W>>,
}

#[derive(Debug)]
struct Waiting<W> {
    pos: LogPos,
    return_previous: bool,
    waiter: W,
}

impl<W> Pending<W> {
    pub(crate) const fn new() -> Self {
        Self { waiting: VecDeque::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Somebody waits for the entry at `pos`, which was just appended.
    pub(crate) fn push(&mut self, pos: LogPos, return_previous: bool, waiter: W) {
        if let Some(last) = self.waiting.back() {
            assert!(
                last.pos.index < pos.index,
                "an entry was appended at {}, but a caller already waits for {}",
                pos.index,
                last.pos.index
            );
        }
        self.waiting.push_back(Waiting { pos, return_previous, waiter });
    }

    /// Takes out who waits for these entries: first those whose entry is among them, then those whose
    /// entry was replaced by another.
    pub(crate) fn take(&mut self, entries: &[Entry]) -> (Vec<ApplyWaiter<W>>, Vec<W>) {
        let (mut own, mut superseded) = (Vec::new(), Vec::new());
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return (own, superseded);
        };
        while let Some(waiting) = self.waiting.pop_front_if(|w| w.pos.index <= last.pos.index) {
            assert!(
                waiting.pos.index >= first.pos.index,
                "a caller waits for entry {}, which was passed over: applying goes on at {}",
                waiting.pos.index,
                first.pos.index
            );
            let at = usize::try_from(waiting.pos.index.0 - first.pos.index.0);
            match at.ok().and_then(|at| entries.get(at)) {
                Some(entry) if entry.pos == waiting.pos => own.push(ApplyWaiter {
                    index: waiting.pos.index,
                    return_previous: waiting.return_previous,
                    waiter: waiting.waiter,
                }),
                Some(_) | None => superseded.push(waiting.waiter),
            }
        }
        (own, superseded)
    }

    /// Takes out who waits for an entry of a term before `term` that is not known to be committed.
    pub(crate) fn take_lost(&mut self, term: Term, commit: LogIndex) -> Vec<W> {
        let mut lost = Vec::new();
        let mut kept = VecDeque::new();
        for waiting in self.waiting.drain(..) {
            if waiting.pos.index > commit && waiting.pos.term < term {
                lost.push(waiting.waiter);
            } else {
                kept.push_back(waiting);
            }
        }
        self.waiting = kept;
        lost
    }

    /// Takes out who waits for the entry at `index` or a later one.
    pub(crate) fn take_from(&mut self, index: LogIndex) -> Vec<W> {
        let keep = self.waiting.partition_point(|waiting| waiting.pos.index < index);
        self.waiting.drain(keep..).map(|waiting| waiting.waiter).collect()
    }

    /// Takes out everybody.
    pub(crate) fn take_all(&mut self) -> Vec<W> {
        self.waiting.drain(..).map(|waiting| waiting.waiter).collect()
    }
}

#[cfg(test)]
mod tests {
    use raft_core::Body;

    use super::*;

    fn pos(term: u64, index: u64) -> LogPos {
        LogPos { term: Term(term), index: LogIndex(index) }
    }

    fn entries(positions: &[(u64, u64)]) -> Vec<Entry> {
        positions
            .iter()
            .map(|&(term, index)| Entry { pos: pos(term, index), body: Body::Noop })
            .collect()
    }

    #[test]
    fn a_caller_gets_the_answer_of_its_own_entry_or_the_proof_that_it_is_gone() {
        let mut pending = Pending::new();
        for index in [4, 5, 6] {
            pending.push(pos(2, index), false, index);
        }
        let (own, superseded) = pending.take(&entries(&[(1, 3), (2, 4), (3, 5)]));
        assert_eq!(own.iter().map(|w| w.waiter).collect::<Vec<_>>(), [4], "its own entry");
        assert_eq!(superseded, [5], "another entry was committed there");
        assert_eq!(pending.len(), 1, "6 still waits");
    }

    #[test]
    fn lost_leadership_leaves_only_what_is_committed_waiting() {
        let mut pending = Pending::new();
        for index in [4, 5, 6] {
            pending.push(pos(2, index), false, index);
        }
        assert_eq!(pending.take_lost(Term(2), LogIndex(4)), [0; 0], "still the same term");
        assert_eq!(pending.take_lost(Term(3), LogIndex(4)), [5, 6], "not known to be committed");
        let (own, _) = pending.take(&entries(&[(2, 4)]));
        assert_eq!(own.len(), 1, "the committed one is answered by the applier");
    }
}
