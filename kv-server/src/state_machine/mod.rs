//! The state machine over the engine.

pub mod command;

use raft_rpc::{GetRequest, RangeRequest};

use crate::replica::{Answer, Applied, ApplyDone, ApplyJob};

/// Applies committed entries to the engine. Owned by one thread.
#[derive(Debug)]
pub struct Applier(());

impl Applier {
    /// Does one job and says who gets which answer. Reads the engine; never waits for a sync.
    pub fn handle<W>(&mut self, job: ApplyJob<W>) -> (ApplyDone, Vec<(W, Answer)>) {
        todo!("{}", matches!(job, ApplyJob::Flush))
    }
}

/// Reads the applied state. Cheap to clone; any number of threads may read at once, without waiting for the applier.
#[derive(Clone, Debug)]
pub struct StateReader(());

impl StateReader {
    /// The state in numbers, as readers see it now.
    #[must_use]
    pub fn applied(&self) -> Applied {
        todo!()
    }

    /// Reads one key, as of now or of a revision. Says nothing about consistency: the caller has waited
    /// until [`Applied::index`] or [`Applied::revision`] is what it needs.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`, `Storage`.
    pub fn get(&self, request: &GetRequest) -> Answer {
        todo!("{request:?}")
    }

    /// Reads a page of a range, or counts it; otherwise as [`StateReader::get`].
    ///
    /// # Errors
    /// As [`StateReader::get`].
    pub fn range(&self, request: &RangeRequest) -> Answer {
        todo!("{request:?}")
    }
}
