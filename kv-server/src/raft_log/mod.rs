//! The replicated log on the journal.

use crate::replica::{FetchDone, FetchJob, LogDone, LogJob};

/// Appends to the log and syncs it. Owned by one thread.
#[derive(Debug)]
pub struct LogWriter(());

impl LogWriter {
    /// Makes `jobs` durable, in order: one append run, one sync. Blocks on the disk.
    ///
    /// After the first [`LogDone::Failed`] every later call fails too.
    pub fn handle(&mut self, jobs: Vec<LogJob>) -> LogDone {
        todo!("{}", jobs.len())
    }
}

/// Loads old entries. Shares nothing with the writer but the list of where entries are.
#[derive(Clone, Debug)]
pub struct LogReader(());

impl LogReader {
    /// Loads entries. Blocks on the disk.
    #[must_use]
    pub fn handle(&self, job: FetchJob) -> FetchDone {
        todo!("{job:?}")
    }
}
