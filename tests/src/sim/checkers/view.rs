//! What the checkers know of a node: its log and its disk's log, as marks.
//!
//! A mark is a term and a hash over an entry and everything before it, so that two equal marks mean two
//! equal logs, and each comparison costs as little as one of numbers.

use std::collections::VecDeque;

use raft_core::codec::encoded_len;
use raft_core::{Ballot, Body, Entry};

use crate::sim::trace::{hash_bytes, mix};

/// An entry's place in the history of the log: equal marks, equal logs up to there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Mark {
    pub(super) term: u64,
    pub(super) chain: u64,
    /// Encoded bytes of the log up to here.
    pub(super) bytes: u64,
}

impl Mark {
    pub(super) fn after(self, entry: &Entry) -> Self {
        let body = match &entry.body {
            Body::Noop => 1,
            Body::Command(command) => hash_bytes(command),
            Body::Config(membership) => hash_bytes(format!("{membership:?}").as_bytes()),
        };
        let term = entry.pos.term.0;
        let bytes = self.bytes + encoded_len(entry) as u64;
        Self { term, chain: mix(mix(self.chain, term), body), bytes }
    }
}

/// A log as marks; the first entry has index 1.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Marks(pub(super) Vec<Mark>);

impl Marks {
    pub(super) fn last(&self) -> u64 {
        self.0.len() as u64
    }

    /// The mark at an index; the one before the first entry is the default.
    pub(super) fn at(&self, index: u64) -> Option<Mark> {
        match index.checked_sub(1) {
            None => Some(Mark::default()),
            Some(place) => self.0.get(usize::try_from(place).ok()?).copied(),
        }
    }

    pub(super) fn tip(&self) -> Mark {
        self.0.last().copied().unwrap_or_default()
    }

    /// Encoded bytes of the entries after an index.
    pub(super) fn bytes_after(&self, index: u64) -> u64 {
        self.tip().bytes - self.at(index.min(self.last())).unwrap_or_default().bytes
    }

    pub(super) fn truncate_from(&mut self, index: u64) {
        self.0.truncate(usize::try_from(index.saturating_sub(1)).unwrap_or(usize::MAX));
    }
}

/// A durable unit that was given out and is not known to be on disk.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) seq: u64,
    pub(super) ballot: Option<Ballot>,
    pub(super) truncate_from: Option<u64>,
    pub(super) append: Vec<Mark>,
}

/// What is known of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// The log as the node holds it.
    pub(super) log: Marks,
    /// The log as its disk holds it, at least.
    pub(super) durable: Marks,
    pub(super) durable_ballot: Ballot,
    pub(super) writes: VecDeque<Write>,
    pub(super) next_seq: u64,
    pub(super) leads: bool,
    pub(super) term: u64,
    pub(super) commit: u64,
    /// Handed to the applier up to here.
    pub(super) applying: u64,
    pub(super) applied: u64,
}
