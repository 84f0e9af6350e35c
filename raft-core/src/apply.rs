//! Handing committed entries to the state machine: in order, once, never before they are durable here.
//!
//! Invariants
//! 1. `applied <= sent`, and entries are handed over consecutively after `sent`.
//! 2. `sent` never passes `min(commit, durable)`: a state machine ahead of its log could not be
//!    explained after a crash.
//! 3. At most [`MAX_BATCHES`] batches are unanswered.
//! 4. A snapshot is taken over in the order of the batches, after the log on disk begins after it, so the
//!    applied index never falls.

use alloc::{collections::VecDeque, sync::Arc};

use crate::{
    Effect, Effects, Entry, FetchFor, FetchId, LogIndex, LogPos, Micros, PersistSeq, log::Log,
    progress::Fetch,
};

/// Batches handed over and not reported as applied: enough that the state machine never idles,
/// few enough that a slow one holds little.
const MAX_BATCHES: usize = 4;

/// Where the state machine stands.
#[derive(Debug)]
pub(crate) struct Apply {
    pub(crate) applied: LogIndex,
    /// Up to here entries were handed over.
    pub(crate) sent: LogIndex,
    /// The last index of each batch that is not yet reported.
    batches: VecDeque<LogIndex>,
    fetch: Fetch,
    /// The snapshot that comes next instead of entries, once this write is durable.
    adopt: Option<(PersistSeq, LogPos)>,
}

impl Apply {
    pub(crate) const fn new(applied: LogIndex) -> Self {
        let batches = VecDeque::new();
        Self { applied, sent: applied, batches, fetch: Fetch::Idle, adopt: None }
    }

    /// The state machine holds everything up to `upto`.
    pub(crate) fn on_applied(&mut self, upto: LogIndex) {
        assert!(
            upto <= self.sent,
            "{upto} is reported as applied, but only {} was handed over",
            self.sent
        );
        self.applied = self.applied.max(upto);
        while self.batches.front().is_some_and(|last| *last <= upto) {
            self.batches.pop_front();
        }
    }

    /// The log was replaced: what was asked for is not in it.
    pub(crate) fn forget_fetch(&mut self) {
        self.fetch = Fetch::Idle;
    }

    /// The log begins after `at` once the write `seq` is durable, and the state machine has to as well.
    pub(crate) fn adopt_after(&mut self, seq: PersistSeq, at: LogPos) {
        self.adopt = Some((seq, at));
    }

    /// The entries of request `id` came, or not.
    pub(crate) fn on_fetched(&mut self, id: FetchId, entries: Option<Arc<[Entry]>>, retry: Micros) {
        if let Fetch::Loading { id: awaited, .. } = self.fetch
            && awaited == id
        {
            self.fetch = entries.map_or(Fetch::RetryAfter(retry), Fetch::Loaded);
        }
    }

    /// Whether `id` is awaited, and from which index on.
    pub(crate) fn awaits(&self, id: FetchId) -> Option<LogIndex> {
        match self.fetch {
            Fetch::Loading { id: awaited, lo } if awaited == id => Some(lo),
            Fetch::Idle | Fetch::Loading { .. } | Fetch::Loaded(_) | Fetch::RetryAfter(_) => None,
        }
    }

    /// When to ask again for what could not be loaded.
    pub(crate) const fn retry_at(&self) -> Option<Micros> {
        match self.fetch {
            Fetch::RetryAfter(at) => Some(at),
            Fetch::Idle | Fetch::Loading { .. } | Fetch::Loaded(_) => None,
        }
    }

    /// Hands over the next batch up to `upto`, or asks for it to be loaded; or the snapshot that comes first.
    #[expect(clippy::too_many_arguments, reason = "what it reads, named at the only call")]
    pub(crate) fn flush(
        &mut self,
        log: &Log,
        upto: LogIndex,
        durable: PersistSeq,
        max_bytes: usize,
        now: Micros,
        next_fetch: &mut FetchId,
        out: &mut Effects,
    ) {
        if let Some((seq, at)) = self.adopt {
            if seq <= durable && self.batches.len() < MAX_BATCHES {
                self.adopt = None;
                self.sent = at.index;
                self.batches.push_back(at.index);
                out.push(Effect::AdoptSnapshot { at });
            }
            return;
        }
        if self.sent >= upto || self.batches.len() >= MAX_BATCHES {
            return;
        }
        let lo = self.sent.next();
        match &self.fetch {
            Fetch::Loading { .. } => return,
            Fetch::RetryAfter(at) if *at > now => return,
            Fetch::Loaded(entries) => {
                let entries = Arc::clone(entries);
                self.fetch = Fetch::Idle;
                self.hand_over(entries, upto, out);
                return;
            }
            Fetch::Idle | Fetch::RetryAfter(_) => self.fetch = Fetch::Idle,
        }
        if let Some(slice) = log.slice(lo, upto, max_bytes) {
            self.hand_over(slice.entries, upto, out);
        } else {
            let hi = upto.min(log.first_in_memory().prev());
            *next_fetch = FetchId(next_fetch.0 + 1);
            self.fetch = Fetch::Loading { id: *next_fetch, lo };
            out.push(Effect::FetchLog {
                id: *next_fetch,
                purpose: FetchFor::Apply,
                lo,
                hi,
                max_bytes,
            });
        }
    }

    fn hand_over(&mut self, entries: Arc<[Entry]>, upto: LogIndex, out: &mut Effects) {
        let first = entries.first().map(|entry| entry.pos.index);
        let last = entries.last().map_or(self.sent, |entry| entry.pos.index);
        assert!(
            first == Some(self.sent.next()) && last <= upto,
            "entries {first:?} to {last} are to be applied after {}, at most to {upto}",
            self.sent
        );
        self.sent = last;
        self.batches.push_back(last);
        out.push(Effect::Apply(entries));
    }

    pub(crate) fn check_invariants(&self, limit: LogIndex) {
        assert!(
            self.applied <= self.sent && self.sent <= limit,
            "applied {}, handed over {}, committed and durable {limit}",
            self.applied,
            self.sent
        );
        assert!(self.batches.len() <= MAX_BATCHES, "{} batches wait", self.batches.len());
    }
}
