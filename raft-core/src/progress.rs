//! What a leader knows of one peer, and how it sends entries to it.
//!
//! ```text
//!             any success up to the probed position
//!   ┌───────┐ ─────────────────────────────────────► ┌───────────┐
//!   │ Probe │    one message, then wait              │ Replicate │  a window of messages and bytes
//!   └───────┘ ◄───────────────────────────────────── └───────────┘
//!             rejection of a message in the window, or the peer is unreachable
//!
//!   ┌──────────┐  what it needs next was cut off: from either, until its answers show that it has
//!   │ Snapshot │  what is needed before the log begins, whichever way it got that
//!   └──────────┘
//! ```
//!
//! Every message has a [`ProbeId`]. A rejection counts only if it answers the probe that is awaited
//! or a message still in the window; any other is late and shows no more than that the peer lives.
//! Successes are cumulative and always true, whatever they answer.
//!
//! Messages may be lost. Heartbeats are what finds out: an answer to a message sent after the
//! oldest unanswered one shows that the latter is lost or not yet durable over there, and brings
//! one empty message, at most one per heartbeat, whose answer tells which.
//!
//! Invariant: `matched < next`, and everything in the window lies between them.

use alloc::{collections::VecDeque, sync::Arc};
use core::time::Duration;

use crate::mutants::{Mutant, is_active};
use crate::{
    Entry, FetchId, FlowKind, LogIndex, Micros, NodeId, PeerStatus, ProbeId, ReadSeq,
    snapshot::Offer,
};

/// A peer in the eyes of its leader.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) id: NodeId,
    /// Up to here the peer's log is equal to the leader's and on its disk.
    pub(crate) matched: LogIndex,
    /// The commit index it was told last.
    pub(crate) sent_commit: LogIndex,
    /// When the newest message that it answered was sent.
    pub(crate) answered_at: Micros,
    /// The highest read round it gave back.
    pub(crate) acked_read: ReadSeq,
    pub(crate) flow: Flow,
    pub(crate) fetch: Fetch,
    /// It has answered in this term.
    heard: bool,
    /// It lost something that it had acknowledged: what it has to have again, and the number up to which
    /// questions were asked before that was known.
    loss: Option<(LogIndex, ProbeId)>,
    catch_up: CatchUp,
}

/// How well the peer keeps up (thesis §4.2.1). A round ends when the peer has everything that was
/// in the log when the round began. A learner that ends one round after the other within an
/// election timeout would not hold up commits for longer than that as a voter; the measure is a
/// time and not a number of entries, so it means the same at any load.
#[derive(Clone, Copy, Debug)]
struct CatchUp {
    /// The round ends when the peer has this.
    upto: LogIndex,
    began: Micros,
    /// So many rounds in a row were short.
    short_rounds: u8,
}

/// Short rounds in a row after which a peer has caught up.
const CAUGHT_UP_ROUNDS: u8 = 3;

/// How entries are sent.
#[derive(Debug)]
pub(crate) enum Flow {
    /// Where the logs part is not known: one message at a time.
    Probe(Probe),
    /// Optimistically, within a window.
    Replicate(Replicate),
    /// Not at all, since what it needs is no longer in the log.
    Snapshot(Offer),
}

/// The search for the last common entry.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) next: LogIndex,
    /// The message whose answer is awaited, and when it was sent. Without a name, nothing was sent,
    /// but a sign of life is awaited first.
    pub(crate) awaited: Option<(Option<ProbeId>, Micros)>,
    /// The next probe carries no entries, since the last one was perhaps lost with them.
    pub(crate) bare: bool,
}

/// The window.
#[derive(Debug)]
pub(crate) struct Replicate {
    pub(crate) next: LogIndex,
    pub(crate) inflight: VecDeque<Inflight>,
    pub(crate) inflight_bytes: usize,
    /// An empty message that asks whether what was sent has arrived.
    pub(crate) check: Option<ProbeId>,
    pub(crate) check_due: bool,
    /// No further check before this.
    pub(crate) check_after: Micros,
}

/// An unanswered message with entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inflight {
    pub(crate) last: LogIndex,
    pub(crate) bytes: usize,
    pub(crate) probe: ProbeId,
    pub(crate) sent_at: Micros,
}

/// Old entries on their way from the disk.
#[derive(Debug)]
pub(crate) enum Fetch {
    /// None wanted.
    Idle,
    /// Asked for.
    Loading {
        /// The request.
        id: FetchId,
        /// From this index.
        lo: LogIndex,
    },
    /// Here, to be used at the next flush.
    Loaded(Arc<[Entry]>),
    /// Could not be loaded; ask again after this.
    RetryAfter(Micros),
}

impl Progress {
    /// A peer of which nothing is known but that the leader's log ends before `next`.
    pub(crate) const fn new(id: NodeId, next: LogIndex, now: Micros) -> Self {
        Self {
            id,
            matched: LogIndex(0),
            sent_commit: LogIndex(0),
            answered_at: now,
            acked_read: ReadSeq(0),
            flow: Flow::Probe(Probe { next, awaited: None, bare: false }),
            fetch: Fetch::Idle,
            heard: false,
            loss: None,
            catch_up: CatchUp { upto: next.prev(), began: now, short_rounds: 0 },
        }
    }

    /// The peer answered a message sent at `echo`.
    pub(crate) fn on_answer(&mut self, echo: Micros, read: ReadSeq) {
        self.heard = true;
        self.answered_at = self.answered_at.max(echo);
        self.acked_read = self.acked_read.max(read);
    }

    /// Whether the peer has answered something sent in the last `span`.
    pub(crate) fn is_heard(&self, now: Micros, span: Duration) -> bool {
        self.heard && self.answered_at.after(span) >= now
    }

    /// Whether the peer has lately had everything within `span` of its being appended.
    pub(crate) fn is_caught_up(&self, now: Micros, span: Duration) -> bool {
        self.catch_up.short_rounds >= CAUGHT_UP_ROUNDS
            && self.catch_up.began.after(span) >= now
            && self.is_heard(now, span)
    }

    /// The peer has more of the log, which ends at `last`; a short round takes less than `span`.
    pub(crate) fn measure(&mut self, last: LogIndex, now: Micros, span: Duration) {
        let CatchUp { upto, began, short_rounds } = self.catch_up;
        if self.matched >= upto {
            let short = began.after(span) >= now;
            let short_rounds = if short { short_rounds.saturating_add(1) } else { 0 };
            self.catch_up = CatchUp { upto: last, began: now, short_rounds };
        }
    }

    /// The next index to send.
    pub(crate) const fn next(&self) -> LogIndex {
        match &self.flow {
            Flow::Probe(probe) => probe.next,
            Flow::Replicate(window) => window.next,
            Flow::Snapshot(_) => self.matched.next(),
        }
    }

    /// The peer's log is equal up to `matched`, durably; it answered a message sent at `echo`. The leader's
    /// log begins after `base`.
    pub(crate) fn on_ok(&mut self, matched: LogIndex, echo: Micros, base: LogIndex, now: Micros) {
        self.matched = self.matched.max(matched);
        let matched = self.matched;
        match &mut self.flow {
            Flow::Probe(probe) => {
                if matched.next() >= probe.next {
                    self.flow = Flow::Replicate(Replicate::after(matched, now));
                } else {
                    probe.repeat_if_lost(echo);
                }
            }
            Flow::Replicate(window) => {
                while let Some(oldest) = window.inflight.front()
                    && oldest.last <= matched
                {
                    window.inflight_bytes -= oldest.bytes;
                    window.inflight.pop_front();
                }
                window.next = window.next.max(matched.next());
                window.check_if_lost(echo, now);
            }
            // Whatever it was offered or fetched: the log will do again.
            Flow::Snapshot(_) if matched >= base => {
                self.flow = Flow::Replicate(Replicate::after(matched, now));
            }
            Flow::Snapshot(_) => {}
        }
    }

    /// What it needs next is gone if the log begins after `base`: it is offered a snapshot.
    pub(crate) fn offer_if_behind(&mut self, base: LogIndex) {
        if self.next() <= base && !matches!(self.flow, Flow::Snapshot(_)) {
            self.flow = Flow::Snapshot(Offer::new());
            self.fetch = Fetch::Idle;
            self.sent_commit = LogIndex(0);
        }
        // What was asked for before the log was cut comes from a place that is no longer in it.
        if matches!(self.fetch, Fetch::Loading { lo, .. } if lo <= base) {
            self.fetch = Fetch::Idle;
        }
    }

    /// Up to here the peer needs no entries of a log that begins after `base`.
    pub(crate) fn holds(&self, base: LogIndex) -> LogIndex {
        match &self.flow {
            Flow::Probe(_) | Flow::Replicate(_) => self.matched,
            Flow::Snapshot(offer) => offer.under_way.max(base),
        }
    }

    /// The peer has no entry at the position before those of message `probe`. By its hint and the
    /// leader's own log, `next` is the first index on which the logs may differ.
    pub(crate) fn on_reject(&mut self, id: ProbeId, next: LogIndex, echo: Micros) {
        let lowest = self.matched.next();
        match &mut self.flow {
            Flow::Probe(probe) => {
                let awaited = probe.awaited.is_some_and(|(awaited, _)| awaited == Some(id));
                if awaited && probe.next > lowest {
                    // Always further down, so the search ends whatever the peer says.
                    let next = next.clamp(lowest, probe.next.prev());
                    *probe = Probe { next, awaited: None, bare: false };
                } else {
                    probe.repeat_if_lost(echo);
                }
            }
            Flow::Replicate(window) => {
                let sent = window.inflight.iter().any(|message| message.probe == id);
                if sent || window.check == Some(id) {
                    let next = next.clamp(lowest, window.next);
                    self.flow = Flow::Probe(Probe { next, awaited: None, bare: false });
                    self.sent_commit = LogIndex(0);
                }
            }
            Flow::Snapshot(_) => {}
        }
    }

    /// Whether the rejection of message `id` proves that the peer has lost what it had acknowledged: when the
    /// message was sent, the peer had said that it has the entry in question. Of other messages it proves
    /// nothing, since answers overtake each other.
    pub(crate) fn shows_loss(&self, id: ProbeId) -> bool {
        id.0.is_multiple_of(2) && self.loss.is_none_or(|(_, known)| id > known)
    }

    /// The peer lost a part of its log, and has everything up to `next` at most. `had` covers all that it may
    /// have acknowledged; questions up to `asked` were asked before.
    pub(crate) fn on_loss(&mut self, had: LogIndex, next: LogIndex, asked: ProbeId) {
        self.matched = LogIndex(0);
        self.sent_commit = LogIndex(0);
        self.catch_up.short_rounds = 0;
        self.loss = Some((had, asked));
        self.flow = Flow::Probe(Probe { next, awaited: None, bare: false });
        self.fetch = Fetch::Idle;
    }

    /// What the peer has to have again before it may vote.
    pub(crate) fn lacks(&self) -> Option<LogIndex> {
        self.loss.map(|(had, _)| had).filter(|had| *had > self.matched)
    }

    /// Messages to the peer are being dropped. Nothing is sent but heartbeats until it answers one.
    pub(crate) fn on_unreachable(&mut self, now: Micros) {
        let next = match &self.flow {
            Flow::Probe(probe) => Some(probe.next),
            Flow::Replicate(_) => Some(self.matched.next()),
            // Offers go on: the snapshot comes another way, and perhaps is not hindered.
            Flow::Snapshot(_) => None,
        };
        if let Some(next) = next {
            self.flow = Flow::Probe(Probe { next, awaited: Some((None, now)), bare: true });
        }
        self.sent_commit = LogIndex(0);
        self.catch_up.short_rounds = 0;
    }

    /// The entries of request `id` came, or not.
    pub(crate) fn on_fetched(&mut self, id: FetchId, entries: Option<Arc<[Entry]>>, retry: Micros) {
        if let Fetch::Loading { id: awaited, .. } = self.fetch
            && awaited == id
        {
            self.fetch = entries.map_or(Fetch::RetryAfter(retry), Fetch::Loaded);
        }
    }

    pub(crate) fn status(&self, now: Micros, span: Duration) -> PeerStatus {
        let (flow, inflight_messages, inflight_bytes) = match &self.flow {
            Flow::Probe(_) => (FlowKind::Probe, 0, 0),
            Flow::Replicate(window) => {
                (FlowKind::Replicate, window.inflight.len(), window.inflight_bytes)
            }
            Flow::Snapshot(_) => (FlowKind::Snapshot, 0, 0),
        };
        PeerStatus {
            id: self.id,
            flow,
            matched: self.matched,
            next: self.next(),
            inflight_messages,
            inflight_bytes,
            answered_at: self.answered_at,
            is_caught_up: self.is_caught_up(now, span),
        }
    }

    pub(crate) fn check_invariants(&self, last: LogIndex, max_messages: usize) {
        let Self { id, matched, .. } = *self;
        let next = self.next();
        assert!(
            matched < next && next <= last.next(),
            "{id}: matched {matched}, next {next}, last {last}"
        );
        if let Flow::Replicate(window) = &self.flow {
            let bytes: usize = window.inflight.iter().map(|message| message.bytes).sum();
            assert!(
                bytes == window.inflight_bytes,
                "{id}: {bytes} bytes in flight, {} counted",
                window.inflight_bytes
            );
            assert!(
                window.inflight.len() <= max_messages,
                "{id}: {} messages in flight",
                window.inflight.len()
            );
            let mut previous = matched;
            for message in &window.inflight {
                assert!(
                    message.last > previous && message.last < next,
                    "{id}: in flight up to {} after {previous}, next {next}",
                    message.last
                );
                previous = message.last;
            }
        }
    }
}

impl Probe {
    /// The peer answered what was sent after the probe, but not the probe: send another, without entries.
    fn repeat_if_lost(&mut self, echo: Micros) {
        if self.awaited.is_some_and(|(_, sent_at)| sent_at < echo) {
            self.awaited = None;
            self.bare = true;
        }
    }
}

impl Replicate {
    /// An empty window after `matched`.
    const fn after(matched: LogIndex, now: Micros) -> Self {
        Self {
            next: matched.next(),
            inflight: VecDeque::new(),
            inflight_bytes: 0,
            check: None,
            check_due: false,
            check_after: now,
        }
    }

    /// Whether one more message may leave.
    pub(crate) fn has_room(&self, max_messages: usize, max_bytes: usize) -> bool {
        self.inflight.len() < max_messages
            && (self.inflight_bytes < max_bytes || self.inflight.is_empty())
    }

    fn check_if_lost(&mut self, echo: Micros, now: Micros) {
        let overdue = self.inflight.front().is_some_and(|oldest| oldest.sent_at < echo);
        self.check_due = overdue && now >= self.check_after && !is_active(Mutant::WindowNotProbed);
    }
}
