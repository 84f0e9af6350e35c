//! Which prefix of the log is on this node's disk, while writes overlap.
//!
//! Writes are asynchronous and may overwrite each other: the completion of a write says nothing
//! about an index that a later, unfinished write changes again, even if index and term look the
//! same. So writes are known by number, and each unfinished one remembers the last index it still
//! vouches for; an overwrite lowers that.
//!
//! Invariants
//! 1. Everything up to `durable_index` is on disk, equal to memory, and no unfinished write touches it.
//! 2. `vouches_for` never falls along the queue, and is never below `durable_index`.
//! 3. When no write is unfinished, `durable_index` is the end of what was written.

use alloc::collections::VecDeque;

use crate::mutants::{Mutant, is_active};
use crate::{LogIndex, Micros, PersistSeq};

/// An unfinished write.
#[derive(Clone, Copy, Debug)]
struct Pending {
    seq: PersistSeq,
    /// The last index that is durable once this write is, unless a later one overwrites it.
    vouches_for: LogIndex,
    issued_at: Micros,
}

/// The durable-index bookkeeping of one boot.
#[derive(Debug)]
pub(crate) struct Writer {
    issued: PersistSeq,
    durable: PersistSeq,
    durable_index: LogIndex,
    /// The write that holds the current ballot.
    ballot: PersistSeq,
    pending: VecDeque<Pending>,
}

impl Writer {
    /// Everything up to `last` is on disk.
    pub(crate) const fn new(last: LogIndex) -> Self {
        Self {
            issued: PersistSeq(0),
            durable: PersistSeq(0),
            durable_index: last,
            ballot: PersistSeq(0),
            pending: VecDeque::new(),
        }
    }

    /// The log is about to change from index `from` on: no earlier write vouches for it any more.
    pub(crate) fn overwrite(&mut self, from: LogIndex) {
        let kept = from.prev();
        self.durable_index = self.durable_index.min(kept);
        for write in self.pending.iter_mut().filter(|_| !is_active(Mutant::OverwrittenWriteVouches))
        {
            write.vouches_for = write.vouches_for.min(kept);
        }
    }

    /// Numbers a write after which the log ends at `last`.
    pub(crate) fn issue(&mut self, last: LogIndex, has_ballot: bool, now: Micros) -> PersistSeq {
        self.issued = PersistSeq(self.issued.0 + 1);
        if has_ballot {
            self.ballot = self.issued;
        }
        let previous = self.pending.back().map_or(self.durable_index, |write| write.vouches_for);
        assert!(
            last >= previous,
            "write {} ends at {last}, but earlier ones vouch for {previous}",
            self.issued
        );
        self.pending.push_back(Pending { seq: self.issued, vouches_for: last, issued_at: now });
        self.issued
    }

    /// Every write up to `upto` is on disk.
    pub(crate) fn persisted(&mut self, upto: PersistSeq) {
        assert!(
            upto <= self.issued,
            "write {upto} is reported durable but only {} were given out",
            self.issued
        );
        while let Some(write) = self.pending.front()
            && write.seq <= upto
        {
            self.durable_index = write.vouches_for;
            self.durable = write.seq;
            self.pending.pop_front();
        }
    }

    /// Up to here the log is on disk.
    pub(crate) const fn durable_index(&self) -> LogIndex {
        self.durable_index
    }

    /// Writes up to here are on disk.
    pub(crate) const fn durable(&self) -> PersistSeq {
        self.durable
    }

    /// The newest write given out.
    pub(crate) const fn issued(&self) -> PersistSeq {
        self.issued
    }

    /// The write to wait for until the current ballot is on disk; `None` if it is.
    pub(crate) fn ballot_gate(&self) -> Option<PersistSeq> {
        (self.ballot > self.durable).then_some(self.ballot)
    }

    /// The earliest write to wait for until the log up to `index` is on disk; `None` if it is.
    pub(crate) fn log_gate(&self, index: LogIndex) -> Option<PersistSeq> {
        if index <= self.durable_index {
            return None;
        }
        let at = self.pending.partition_point(|write| write.vouches_for < index);
        let Some(write) = self.pending.get(at) else {
            // The log ends before `index`: only a write that is still to come can vouch for it.
            return Some(PersistSeq(self.issued.0 + 1));
        };
        Some(write.seq)
    }

    /// When the oldest unfinished write was given out.
    pub(crate) fn oldest_issued_at(&self) -> Option<Micros> {
        self.pending.front().map(|write| write.issued_at)
    }

    /// Checks the invariants that can be seen from memory.
    pub(crate) fn check_invariants(&self, last: LogIndex) {
        let mut previous = (self.durable, self.durable_index);
        for write in &self.pending {
            let this = (write.seq, write.vouches_for);
            assert!(
                this.0 > previous.0 && this.1 >= previous.1,
                "unfinished writes are out of order: {this:?} after {previous:?}"
            );
            previous = this;
        }
        assert!(previous.1 <= last, "a write vouches for {}, the log ends at {last}", previous.1);
    }
}

#[cfg(test)]
mod tests {
    use alloc::{collections::VecDeque, vec::Vec};

    use super::Writer;
    use crate::{LogIndex, Micros, PersistSeq};

    /// A random schedule of overlapping writes against a disk. Terms are drawn from {0, 1}, so that
    /// an overwritten entry often looks like its successor.
    #[test]
    fn durable_index_never_lies_and_never_sticks_under_overlapping_writes() {
        let mut x = 0x9E37_79B9_7F4A_7C15_u64;
        let mut draw = |n: usize| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            usize::try_from(x % n as u64).unwrap()
        };
        let index = |len: usize| LogIndex(len as u64);
        let mut fully_durable = 0_u32;
        let mut would_overclaim = 0_u32;
        for _run in 0..20_000 {
            let mut writer = Writer::new(LogIndex(0));
            let (mut memory, mut disk) = (Vec::<usize>::new(), Vec::<usize>::new());
            let mut writes: VecDeque<(PersistSeq, usize, Vec<usize>)> = VecDeque::new();
            for _step in 0..20 {
                if draw(2) == 0 {
                    let from = 1 + draw(memory.len() + 1);
                    let added: Vec<usize> = (0..draw(3)).map(|_| draw(2)).collect();
                    memory.truncate(from - 1);
                    memory.extend(&added);
                    writer.overwrite(index(from));
                    let seq = writer.issue(index(memory.len()), false, Micros(0));
                    writes.push_back((seq, from, added));
                } else if let Some((first, _, _)) = writes.front() {
                    let upto = PersistSeq(first.0 + draw(writes.len()) as u64);
                    while writes.front().is_some_and(|(seq, _, _)| *seq <= upto) {
                        let (_, from, added) = writes.pop_front().unwrap();
                        disk.truncate(from - 1);
                        disk.extend(&added);
                    }
                    writer.persisted(upto);
                }
                writer.check_invariants(index(memory.len()));
                let durable = usize::try_from(writer.durable_index().0).unwrap();
                assert!(durable <= disk.len() && durable <= memory.len(), "beyond the log");
                assert_eq!(disk[..durable], memory[..durable], "the durable index lies");
                let mut after_crash = disk.clone();
                for (_, from, added) in &writes {
                    after_crash.truncate(from - 1);
                    after_crash.extend(added);
                    assert!(durable <= after_crash.len(), "an unfinished write cuts it");
                    assert_eq!(after_crash[..durable], memory[..durable], "a crash changes it");
                }
                // The gate of every index is the first write after whose completion it is durable.
                for wanted in 1..=memory.len() {
                    match writer.log_gate(index(wanted)) {
                        None => assert!(wanted <= durable, "{wanted} has no gate"),
                        Some(gate) => {
                            assert!(wanted > durable, "{wanted} is durable but has a gate");
                            assert!(gate <= writer.issued(), "{wanted} waits for no write");
                        }
                    }
                }
                if writes.is_empty() {
                    assert_eq!(durable, memory.len(), "nothing is pending but the tail sticks");
                    fully_durable += 1;
                }
                let same = disk.iter().zip(&memory).take_while(|(a, b)| a == b).count();
                would_overclaim += u32::from(same > durable);
            }
        }
        assert!(fully_durable > 1_000, "the schedule hardly ever drained: {fully_durable}");
        assert!(would_overclaim > 1_000, "the schedule never tempted: {would_overclaim}");
    }

    #[test]
    fn gate_is_the_earliest_write_that_holds_the_index_and_the_ballot() {
        let mut writer = Writer::new(LogIndex(3));
        assert_eq!(writer.log_gate(LogIndex(3)), None);
        let first = writer.issue(LogIndex(5), false, Micros(0));
        let second = writer.issue(LogIndex(9), true, Micros(0));
        assert_eq!(writer.log_gate(LogIndex(4)), Some(first));
        assert_eq!(writer.log_gate(LogIndex(6)), Some(second));
        assert_eq!(writer.ballot_gate(), Some(second));
        writer.persisted(first);
        assert_eq!((writer.log_gate(LogIndex(5)), writer.ballot_gate()), (None, Some(second)));
        writer.persisted(second);
        assert_eq!((writer.log_gate(LogIndex(9)), writer.ballot_gate()), (None, None));
    }
}
