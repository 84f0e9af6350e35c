//! What a node finds on its disk when it starts, and why it may refuse to start with it.

use alloc::{sync::Arc, vec::Vec};

use crate::{Ballot, ConfigError, LogIndex, LogPos, Membership, Quarantine, Term};

/// What was found on disk. All of it is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// The last ballot written.
    pub ballot: Ballot,
    /// The position before the first entry kept; zero for a log that begins at index 1.
    pub base: LogPos,
    /// The first position of every term in the log after `base`, rising.
    pub terms: Vec<LogPos>,
    /// The last position in the log; `base` if it is empty.
    pub last: LogPos,
    /// The highest commit hint in the stream.
    pub commit_hint: LogIndex,
    /// What the state machine already holds.
    pub applied: LogIndex,
    /// The encoded bytes of the entries above `applied` ([`codec::encoded_len`](crate::codec::encoded_len)).
    pub unapplied_bytes: usize,
    /// About how many bytes all entries after `base` take. Only [`Config::compaction`](crate::Config::compaction)
    /// looks at it.
    pub log_bytes: u64,
    /// The node has lost a part of its log and not got it back: as the disk says
    /// ([`Effect::Quarantine`](crate::Effect::Quarantine)), or as the driver has found out now and made
    /// durable before this start. `commit_hint` then says no more than what is left of the log.
    pub quarantine: Option<Quarantine>,
    /// The memberships with the index of the entry that brought each, rising: the first is the one
    /// in force at `base`, the others stand in the log after it. May be empty in a log that begins at
    /// index 1: the node joins, and follows without ever standing for election until it received one.
    pub memberships: Vec<(LogIndex, Arc<Membership>)>,
}

impl Recovered {
    /// A new node of a new cluster: an empty log, and the membership everyone starts with.
    #[must_use]
    pub fn bootstrap(membership: Arc<Membership>) -> Self {
        Self {
            ballot: Ballot::default(),
            base: LogPos::default(),
            terms: Vec::new(),
            last: LogPos::default(),
            commit_hint: LogIndex(0),
            applied: LogIndex(0),
            unapplied_bytes: 0,
            log_bytes: 0,
            quarantine: None,
            memberships: Vec::from([(LogIndex(0), membership)]),
        }
    }

    /// A new node that joins a cluster: an empty log, and no membership until one is received.
    #[must_use]
    pub const fn joining() -> Self {
        Self {
            ballot: Ballot { term: Term(0), voted_for: None },
            base: LogPos { term: Term(0), index: LogIndex(0) },
            terms: Vec::new(),
            last: LogPos { term: Term(0), index: LogIndex(0) },
            commit_hint: LogIndex(0),
            applied: LogIndex(0),
            unapplied_bytes: 0,
            log_bytes: 0,
            quarantine: None,
            memberships: Vec::new(),
        }
    }

    /// Checks that the parts fit together.
    pub(crate) fn validate(&self) -> Result<(), StartError> {
        let Self { base, last, .. } = *self;
        if self.commit_hint > last.index {
            return Err(StartError::CommitBeyondLog { hint: self.commit_hint, last });
        }
        if self.applied > last.index {
            return Err(StartError::AppliedBeyondLog { applied: self.applied, last });
        }
        if self.applied < base.index {
            return Err(StartError::AppliedBelowLog { applied: self.applied, base });
        }
        if last.term > self.ballot.term {
            return Err(StartError::LogAheadOfBallot { last, ballot: self.ballot });
        }
        let mut previous = base;
        for &run in &self.terms {
            let follows = run.index > previous.index && run.term >= previous.term;
            if !follows || run.index > last.index {
                return Err(StartError::TermRuns { run });
            }
            previous = run;
        }
        let first_covered = match self.terms.first() {
            Some(first) => first.index == base.index.next(),
            None => last == base,
        };
        if !first_covered || previous.term != last.term {
            return Err(StartError::TermRuns { run: previous });
        }
        // Who joined has none at the base of its log, which is then the beginning of all.
        let at_base = self.memberships.partition_point(|(at, _)| *at <= base.index);
        if at_base == 0 && base.index > LogIndex(0) {
            return Err(StartError::NoMembership);
        }
        let rising = self.memberships.is_sorted_by(|(a, _), (b, _)| a < b);
        let in_log = self.memberships.iter().all(|(at, _)| *at <= last.index);
        if at_base > 1 || !rising || !in_log {
            return Err(StartError::Memberships);
        }
        Ok(())
    }
}

/// Why a node cannot start with what it was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartError {
    /// The settings do not work together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The commit hint lies beyond the log: committed entries are missing.
    #[error("the log ends at index {} but its commit hint is {hint}: committed entries are missing", last.index)]
    CommitBeyondLog {
        /// The hint.
        hint: LogIndex,
        /// The last position.
        last: LogPos,
    },
    /// The state machine is ahead of the log.
    #[error("the log ends at index {} but {applied} is applied: log and state do not belong together", last.index)]
    AppliedBeyondLog {
        /// The applied index.
        applied: LogIndex,
        /// The last position.
        last: LogPos,
    },
    /// The log begins after what the state machine needs next.
    #[error("the log begins after index {} but only {applied} is applied: entries between are missing", base.index)]
    AppliedBelowLog {
        /// The applied index.
        applied: LogIndex,
        /// The position before the first entry.
        base: LogPos,
    },
    /// An entry has a term this node never promised.
    #[error("the log ends in term {} but the ballot is of term {}: the ballot is missing", last.term, ballot.term)]
    LogAheadOfBallot {
        /// The last position.
        last: LogPos,
        /// The ballot.
        ballot: Ballot,
    },
    /// The terms do not rise, or do not cover the log.
    #[error("the run of term {} at index {} does not fit the log", run.term, run.index)]
    TermRuns {
        /// The run that does not fit.
        run: LogPos,
    },
    /// There is no membership, though the log begins after one.
    #[error("no membership was found at the base of the log")]
    NoMembership,
    /// The memberships do not rise or are not in the log.
    #[error("the memberships do not fit the log")]
    Memberships,
}
