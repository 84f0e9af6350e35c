//! Messages that must not leave before a write is durable, and the acknowledgement being formed.
//!
//! A crash forgets what is not on disk, so nothing may leave that promises it (Raft §3.8 of the
//! thesis). The core holds such messages back itself; what comes out of `flush` is legal to send.
//!
//! | message | waits for |
//! |---|---|
//! | `AppendOk(m)` | the log up to `m` and the ballot |
//! | `AppendReject`, `VoteReply` | the ballot |
//! | `Vote` of a real election | everything written so far: the ballot, and the log it boasts of |
//!
//! A message of an older term is dropped, not sent late: the node has promised otherwise since.
//! Nothing is unbounded: beyond a limit messages are dropped, as a network may do.

use alloc::vec::Vec;

use crate::mutants::{Mutant, is_active};
use crate::{
    Ballot, Effect, Effects, Envelope, LogIndex, Message, Micros, NodeId, PersistSeq, ProbeId,
    ReadSeq, Term, writer::Writer,
};

/// More messages are never held back. A leader's window keeps far below it.
const MAX_GATED: usize = 1_024;

/// The answer to all appends since the last flush.
#[derive(Clone, Copy, Debug)]
struct Ack {
    to: NodeId,
    term: Term,
    matched: LogIndex,
    probe: ProbeId,
    echo: Micros,
    read: ReadSeq,
    /// A message without entries is among those answered: the leader wants to know now that this
    /// node lives, however slow its disk is.
    at_once: bool,
}

impl Ack {
    fn envelope(&self, from: NodeId, matched: LogIndex) -> Envelope {
        let Self { to, term, probe, echo, read, .. } = *self;
        Envelope { from, to, term, msg: Message::AppendOk { matched, probe, echo, read } }
    }
}

/// What waits.
#[derive(Debug)]
pub(crate) struct Outbox {
    id: NodeId,
    ack: Option<Ack>,
    /// The highest read round answered in `answered_term`.
    answered_read: ReadSeq,
    answered_term: Term,
    free: Vec<Envelope>,
    after_ballot: Vec<Envelope>,
    after_stream: Vec<Envelope>,
    gated: Vec<(PersistSeq, Envelope)>,
    /// Messages dropped for want of space.
    pub(crate) overflowed: u64,
}

impl Outbox {
    pub(crate) const fn new(id: NodeId) -> Self {
        Self {
            id,
            ack: None,
            answered_read: ReadSeq(0),
            answered_term: Term(0),
            free: Vec::new(),
            after_ballot: Vec::new(),
            after_stream: Vec::new(),
            gated: Vec::new(),
            overflowed: 0,
        }
    }

    /// Sends `msg` with the next flush.
    pub(crate) fn send(&mut self, to: NodeId, term: Term, msg: Message) {
        let envelope = Envelope { from: self.id, to, term, msg };
        Self::put(&mut self.free, envelope, &mut self.overflowed);
    }

    /// Sends `msg` once the ballot is durable.
    pub(crate) fn send_after_ballot(&mut self, to: NodeId, term: Term, msg: Message) {
        let envelope = Envelope { from: self.id, to, term, msg };
        Self::put(&mut self.after_ballot, envelope, &mut self.overflowed);
    }

    /// Sends `msg` once everything written so far is durable.
    pub(crate) fn send_after_stream(&mut self, to: NodeId, term: Term, msg: Message) {
        let envelope = Envelope { from: self.id, to, term, msg };
        Self::put(&mut self.after_stream, envelope, &mut self.overflowed);
    }

    /// Owes the leader `to` an answer: the logs are equal up to `matched`. Answers since the last
    /// flush become one.
    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of one message, named at the only call"
    )]
    pub(crate) fn acknowledge(
        &mut self,
        to: NodeId,
        term: Term,
        matched: LogIndex,
        probe: ProbeId,
        echo: Micros,
        read: ReadSeq,
        at_once: bool,
    ) {
        let mut ack = Ack { to, term, matched, probe, echo, read, at_once };
        if let Some(earlier) = self.ack.filter(|earlier| earlier.to == to && earlier.term == term) {
            ack.matched = ack.matched.max(earlier.matched);
            ack.echo = ack.echo.max(earlier.echo);
            ack.read = ack.read.max(earlier.read);
            ack.at_once |= earlier.at_once;
        }
        self.ack = Some(ack);
    }

    /// Emits what may leave now and gates the rest. To be called after the write of this flush was
    /// given out, so that every promise has a write to wait for.
    pub(crate) fn flush(&mut self, ballot: Ballot, writer: &Writer, out: &mut Effects) {
        if self.answered_term != ballot.term {
            self.answered_term = ballot.term;
            self.answered_read = ReadSeq(0);
        }
        let durable = writer.durable();
        self.gated.retain_mut(|(gate, envelope)| {
            if envelope.term < ballot.term {
                return false;
            }
            if *gate > durable {
                return true;
            }
            out.push(Effect::Send(envelope.clone()));
            false
        });
        for envelope in self.free.drain(..) {
            out.push(Effect::Send(envelope));
        }
        let mut ballot_gate = writer.ballot_gate();
        if is_active(Mutant::VoteBeforeDurable) {
            ballot_gate = None;
        }
        let stream_gate = (writer.issued() > durable).then(|| writer.issued());
        for (queue, gate) in
            [(&mut self.after_ballot, ballot_gate), (&mut self.after_stream, stream_gate)]
        {
            for envelope in queue.drain(..).filter(|envelope| envelope.term >= ballot.term) {
                match gate {
                    None => out.push(Effect::Send(envelope)),
                    Some(gate) if self.gated.len() < MAX_GATED => self.gated.push((gate, envelope)),
                    Some(_) => self.overflowed += 1,
                }
            }
        }
        self.flush_ack(ballot, writer, out);
    }

    fn flush_ack(&mut self, ballot: Ballot, writer: &Writer, out: &mut Effects) {
        let Some(ack) = self.ack.take().filter(|ack| ack.term == ballot.term) else { return };
        let ballot_gate = writer.ballot_gate();
        let gate = writer.log_gate(ack.matched).max(ballot_gate);
        let Some(gate) = gate.filter(|_| !is_active(Mutant::AckBeforeDurable)) else {
            self.answered_read = self.answered_read.max(ack.read);
            out.push(Effect::Send(ack.envelope(self.id, ack.matched)));
            return;
        };
        // The leader's reads and its quorum check need not wait for this node's disk.
        if ballot_gate.is_none() && (ack.at_once || ack.read > self.answered_read) {
            self.answered_read = self.answered_read.max(ack.read);
            let durable = ack.matched.min(writer.durable_index());
            out.push(Effect::Send(ack.envelope(self.id, durable)));
        }
        let envelope = ack.envelope(self.id, ack.matched);
        if let Some((last_gate, last)) = self.gated.last_mut()
            && *last_gate == gate
            && last.to == envelope.to
            && matches!(last.msg, Message::AppendOk { .. })
        {
            // Waiting for the same write: the later answer says all that the earlier one does.
            *last = envelope;
        } else if self.gated.len() < MAX_GATED {
            self.gated.push((gate, envelope));
        } else {
            self.overflowed += 1;
        }
    }

    /// The candidacy is over: nobody needs to hear of it any more.
    pub(crate) fn withdraw_votes(&mut self) {
        self.after_stream.clear();
        self.gated.retain(|(_, envelope)| !matches!(envelope.msg, Message::Vote { .. }));
    }

    /// Messages held back.
    pub(crate) fn gated(&self) -> usize {
        self.gated.len()
    }

    /// Drops everything: the node has halted.
    pub(crate) fn clear(&mut self) {
        self.ack = None;
        for queue in [&mut self.free, &mut self.after_ballot, &mut self.after_stream] {
            queue.clear();
        }
        self.gated.clear();
    }

    fn put(queue: &mut Vec<Envelope>, envelope: Envelope, overflowed: &mut u64) {
        if queue.len() < MAX_GATED {
            queue.push(envelope);
        } else {
            *overflowed += 1;
        }
    }

    pub(crate) fn check_invariants(&self, writer: &Writer) {
        assert!(self.gated.len() <= MAX_GATED, "{} messages are held back", self.gated.len());
        for (gate, envelope) in &self.gated {
            assert!(
                *gate <= writer.issued(),
                "{envelope:?} waits for write {gate}, only {} were given out",
                writer.issued()
            );
        }
    }
}
