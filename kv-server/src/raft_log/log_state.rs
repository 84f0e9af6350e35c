//! What the records of the log amount to: ballot, term runs, last position, memberships, commit hint.
//!
//! The writer keeps it up to date with what it appends, so that a new segment's head record can say it;
//! recovery builds it from the records and compares it with every head it meets.

use std::sync::Arc;

use raft_core::{Ballot, Body, Entry, LogIndex, LogPos, Membership, Term};

/// The state of a log after some record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LogState {
    /// The last ballot.
    pub(crate) ballot: Ballot,
    /// The position before the first entry.
    pub(crate) base: LogPos,
    /// The first position of each term in the log, rising.
    pub(crate) terms: Vec<LogPos>,
    /// The last position; `base` if the log is empty.
    pub(crate) last: LogPos,
    /// The highest commit hint.
    pub(crate) commit_hint: LogIndex,
    /// The memberships with the index of the entry that brought each; the first is the one at `base`.
    pub(crate) memberships: Vec<(LogIndex, Arc<Membership>)>,
}

impl LogState {
    /// An empty log of a new cluster.
    pub(crate) fn bootstrap(membership: Membership) -> Self {
        Self {
            ballot: Ballot::default(),
            base: LogPos::default(),
            terms: Vec::new(),
            last: LogPos::default(),
            commit_hint: LogIndex(0),
            memberships: vec![(LogIndex(0), Arc::new(membership))],
        }
    }

    /// Takes over one durable unit.
    ///
    /// # Errors
    /// In words, what does not fit; the state is then of no use.
    pub(super) fn apply(
        &mut self,
        ballot: Option<Ballot>,
        truncate_from: Option<LogIndex>,
        entries: &[Entry],
        commit_hint: LogIndex,
    ) -> Result<(), String> {
        if let Some(ballot) = ballot {
            if ballot.term < self.ballot.term {
                return Err(format!("the term falls from {} to {}", self.ballot.term, ballot.term));
            }
            self.ballot = ballot;
        }
        if let Some(from) = truncate_from {
            self.truncate(from)?;
        }
        for entry in entries {
            self.append(entry)?;
        }
        self.commit_hint = self.commit_hint.max(commit_hint);
        Ok(())
    }

    fn truncate(&mut self, from: LogIndex) -> Result<(), String> {
        if from <= self.base.index || from <= self.commit_hint {
            return Err(format!(
                "truncation from {from}, but the log begins after {} and is committed up to {}",
                self.base.index, self.commit_hint
            ));
        }
        if from > self.last.index {
            return Ok(());
        }
        while self.terms.last().is_some_and(|run| run.index >= from) {
            self.terms.pop();
        }
        while self.memberships.len() > 1
            && self.memberships.last().is_some_and(|(index, _)| *index >= from)
        {
            self.memberships.pop();
        }
        let term = match self.terms.last() {
            Some(run) if from.prev() > self.base.index => run.term,
            Some(_) | None => self.base.term,
        };
        self.last = LogPos { term, index: from.prev() };
        Ok(())
    }

    fn append(&mut self, entry: &Entry) -> Result<(), String> {
        let LogPos { term, index } = entry.pos;
        if index != self.last.index.next() || term < self.last.term || term > self.ballot.term {
            return Err(format!(
                "entry {index} of term {term} follows {} of term {} under a ballot of term {}",
                self.last.index, self.last.term, self.ballot.term
            ));
        }
        // An entry of term 0 cannot be: the first election makes term 1.
        if term == Term(0) {
            return Err(format!("entry {index} has term 0"));
        }
        if term > self.last.term || self.terms.is_empty() {
            self.terms.push(entry.pos);
        }
        if let Body::Config(membership) = &entry.body {
            self.memberships.push((index, Arc::clone(membership)));
        }
        self.last = entry.pos;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use raft_core::{NodeId, NodeInfo};

    use super::*;

    fn membership(addr: &str) -> Membership {
        let node = NodeId::new(1).unwrap();
        let info = NodeInfo { peer_addr: addr.to_owned(), ..NodeInfo::default() };
        Membership::of_voters(BTreeMap::from([(node, info)])).unwrap()
    }

    fn entry(term: u64, index: u64) -> Entry {
        let pos = LogPos { term: Term(term), index: LogIndex(index) };
        Entry { pos, body: Body::Noop }
    }

    fn config(term: u64, index: u64, addr: &str) -> Entry {
        Entry { body: Body::Config(Arc::new(membership(addr))), ..entry(term, index) }
    }

    fn state(entries: &[Entry]) -> LogState {
        let mut state = LogState::bootstrap(membership("first"));
        let ballot = Ballot { term: Term(9), voted_for: None };
        state.apply(Some(ballot), None, entries, LogIndex(0)).unwrap();
        state
    }

    #[test]
    fn truncation_takes_back_terms_and_any_number_of_memberships() {
        let all = [entry(1, 1), entry(1, 2), config(3, 3, "a"), config(3, 4, "b"), entry(5, 5)];
        for from in 1..=6 {
            let mut truncated = state(&all);
            truncated.apply(None, Some(LogIndex(from)), &[], LogIndex(0)).unwrap();
            let kept = usize::try_from(from - 1).unwrap();
            assert_eq!(truncated, state(&all[..kept]), "truncated from {from}");
        }
    }

    #[test]
    fn what_does_not_continue_the_log_is_named() {
        for (wrong, entries) in [
            ("a gap", vec![entry(1, 2)]),
            ("a falling term", vec![entry(2, 1), entry(1, 2)]),
            ("a term above the ballot", vec![entry(10, 1)]),
            ("term 0", vec![entry(0, 1)]),
        ] {
            let mut state = state(&[]);
            assert!(state.apply(None, None, &entries, LogIndex(0)).is_err(), "{wrong} was taken");
        }
        let mut committed = state(&[entry(1, 1), entry(1, 2)]);
        committed.apply(None, None, &[], LogIndex(2)).unwrap();
        let error = committed.apply(None, Some(LogIndex(2)), &[], LogIndex(2)).unwrap_err();
        assert!(error.contains("committed up to 2"), "{error}");
    }
}
