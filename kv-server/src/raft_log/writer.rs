//! [`LogWriter`]: makes the core's units durable, many with one sync.

use std::sync::Arc;

use lsm_store::{
    Error,
    journal::{Journal, RecordAddress, record::record_bytes},
    vfs::VfsLock,
};
use raft_core::{Entry, LogIndex, PersistSeq, WriteOp, codec};

use crate::{
    raft_log::{
        KIND_WRITES, LogState,
        entry_index::EntryIndex,
        record::{RECORD_BYTES_MAX, encode_head_into, encode_write_into},
    },
    replica::{LogDone, LogJob},
};

/// Appends to the log and syncs it. Owned by one thread.
#[derive(Debug)]
pub struct LogWriter {
    journal: Journal,
    state: LogState,
    index: EntryIndex,
    /// The last unit that is durable.
    persisted: PersistSeq,
    /// What the index learns once the records are durable.
    unsynced: Vec<Noted>,
    /// The payload being encoded; kept for its capacity.
    payload: Vec<u8>,
    /// Why a write failed. Units may be under way to this writer when it does: they fail with it.
    failed: Option<String>,
    /// The directory is this process's as long as its log may be written.
    _lock: Arc<dyn VfsLock>,
}

/// A record that was appended.
#[derive(Debug)]
struct Noted {
    address: RecordAddress,
    truncate_from: Option<LogIndex>,
    entries: Option<(LogIndex, LogIndex)>,
    bytes: u64,
}

impl LogWriter {
    pub(super) fn new(
        journal: Journal,
        state: LogState,
        index: EntryIndex,
        lock: Arc<dyn VfsLock>,
    ) -> Self {
        Self {
            journal,
            state,
            index,
            persisted: PersistSeq(0),
            unsynced: Vec::new(),
            payload: Vec::new(),
            failed: None,
            _lock: lock,
        }
    }

    /// Makes `jobs` durable, in order: one append run, one sync. Blocks on the disk.
    ///
    /// After the first [`LogDone::Failed`] every later call fails too.
    ///
    /// # Panics
    /// If a unit does not continue the log: writing it would destroy the log.
    pub fn handle(&mut self, jobs: Vec<LogJob>) -> LogDone {
        if let Some(reason) = &self.failed {
            return LogDone::Failed { reason: reason.clone() };
        }
        match self.write(&jobs) {
            Ok(()) => LogDone::Persisted { upto: self.persisted },
            Err(error) => {
                let reason = error.to_string();
                self.failed = Some(reason.clone());
                LogDone::Failed { reason }
            }
        }
    }

    /// Notes on disk how far the log is durable, so that later damage to its last records can be told
    /// from a torn tail. For idle moments and an orderly stop; does not sync.
    ///
    /// # Errors
    /// What the journal says; final, as in [`LogWriter::handle`].
    pub fn note_durable(&mut self) -> Result<(), Error> {
        self.journal.note_durable()
    }

    /// Makes the log say, durably, that all of it is: for an orderly stop.
    ///
    /// # Errors
    /// As [`LogWriter::note_durable`].
    pub fn close(self) -> Result<(), Error> {
        self.journal.close()
    }

    /// Forces the first segment, with its head record, onto the disk.
    pub(super) fn format(&mut self) -> Result<(), Error> {
        self.append(&WriteOp {
            seq: PersistSeq(0),
            ballot: None,
            truncate_from: None,
            append: Arc::from([]),
            commit_hint: LogIndex(0),
        })?;
        self.sync()
    }

    fn write(&mut self, jobs: &[LogJob]) -> Result<(), Error> {
        let mut last = self.persisted;
        for LogJob(write) in jobs {
            assert!(
                write.seq.0 == last.0 + 1,
                "unit {} was given after unit {last}: the durable stream has a gap",
                write.seq
            );
            last = write.seq;
            self.append(write)?;
        }
        self.sync()?;
        self.persisted = last;
        Ok(())
    }

    /// Appends one unit; a very large one as several records, each a legal unit of its own: the ballot
    /// and the truncation with the first, the commit hint never beyond the entries so far.
    fn append(&mut self, write: &WriteOp) -> Result<(), Error> {
        let mut ballot = write.ballot;
        let mut truncate_from = write.truncate_from;
        let mut rest = &write.append[..];
        loop {
            let (part, later) = rest.split_at(part_len(rest));
            rest = later;
            let hint = match (part.last(), later.is_empty()) {
                (Some(last), false) => write.commit_hint.min(last.pos.index),
                (Some(_) | None, _) => write.commit_hint,
            };
            encode_write_into(ballot, truncate_from, hint, part, &mut self.payload);
            let last = part.last().map_or(self.state.last.index, |entry| entry.pos.index);
            let state = &self.state;
            let address =
                self.journal.append(KIND_WRITES, last.0, &[&self.payload], &mut |head| {
                    encode_head_into(state, head)
                })?;
            let fits = self.state.apply(ballot, truncate_from, part, hint);
            assert!(fits.is_ok(), "unit {} does not continue the log: {fits:?}", write.seq);
            assert!(
                hint <= self.state.last.index,
                "unit {} hints at commit {hint} in a log that ends at {}",
                write.seq,
                self.state.last.index
            );
            self.unsynced.push(Noted {
                address,
                truncate_from,
                entries: part.first().zip(part.last()).map(|(a, b)| (a.pos.index, b.pos.index)),
                bytes: record_bytes(self.payload.len() as u64),
            });
            (ballot, truncate_from) = (None, None);
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.journal.sync()?;
        for Noted { address, truncate_from, entries, bytes } in self.unsynced.drain(..) {
            self.index.note(address, truncate_from, entries, bytes);
        }
        Ok(())
    }
}

/// How many of `entries` go into one record: at least one, if there is any.
fn part_len(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let more = entries.iter().position(|entry| {
        bytes += codec::encoded_len(entry);
        bytes > RECORD_BYTES_MAX
    });
    more.map_or(entries.len(), |at| at.max(1))
}
