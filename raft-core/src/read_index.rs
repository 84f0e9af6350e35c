//! Linearizable reads without a log entry (Raft §8, thesis §6.4): rounds of confirmation.
//!
//! A leader numbers the reads itself. Every append message carries the highest number given out,
//! every answer gives it back; a read is confirmed when a quorum has given back its number or a
//! higher one, in this term. A late answer to an older message carries an older number, so it
//! confirms nothing that was asked after it. Reads that arrive between two flushes share a number.

use alloc::collections::VecDeque;

use crate::{LogIndex, NodeId, ReadSeq, Ticket};

/// Rounds in flight beside each other. Further reads gather for the next round: their wait is at
/// most a quarter of a round trip, and messages stay few however many reads come.
const MAX_ROUNDS: u64 = 4;

/// Who wants to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asker {
    /// The caller on this node.
    Here(Ticket),
    /// A follower, with its name for the question.
    Peer(NodeId, Ticket),
}

/// A read that a leader has not confirmed yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitingRead {
    seq: ReadSeq,
    /// Serve it once this is applied.
    pub(crate) index: LogIndex,
    pub(crate) asker: Asker,
}

/// The reads of a leader, in the order of their numbers.
#[derive(Debug, Default)]
pub(crate) struct ReadQueue {
    issued: ReadSeq,
    announced: ReadSeq,
    confirmed: ReadSeq,
    waiting: VecDeque<WaitingRead>,
}

impl ReadQueue {
    /// Adds a read that may be served from `index` on.
    pub(crate) fn add(&mut self, asker: Asker, index: LogIndex) {
        if self.issued == self.announced {
            self.issued = ReadSeq(self.issued.0 + 1);
        }
        self.waiting.push_back(WaitingRead { seq: self.issued, index, asker });
    }

    /// The highest number given out: what every message carries.
    pub(crate) const fn issued(&self) -> ReadSeq {
        self.issued
    }

    /// Whether a round has to be sent now.
    pub(crate) const fn round_due(&self) -> bool {
        self.issued.0 > self.announced.0 && self.announced.0 - self.confirmed.0 < MAX_ROUNDS
    }

    /// Every voter was sent the highest number.
    pub(crate) const fn announce(&mut self) {
        self.announced = self.issued;
    }

    /// A quorum has given back `seq`.
    pub(crate) fn confirm(&mut self, seq: ReadSeq) {
        assert!(
            seq <= self.issued,
            "read {seq} is confirmed, but only {} were issued",
            self.issued
        );
        self.confirmed = self.confirmed.max(seq);
        // A single voter confirms without a message.
        self.announced = self.announced.max(self.confirmed);
    }

    /// The next read that is confirmed.
    pub(crate) fn pop_confirmed(&mut self) -> Option<WaitingRead> {
        let confirmed = self.confirmed;
        self.waiting.pop_front_if(|read| read.seq <= confirmed)
    }

    /// Gives up all that wait.
    pub(crate) fn take_all(&mut self) -> VecDeque<WaitingRead> {
        core::mem::take(&mut self.waiting)
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}
