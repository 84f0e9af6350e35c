//! [`LogReader`]: loads old entries, for peers that lag and for applying, away from the log thread.

use lsm_store::{
    Error,
    journal::{JournalReader, RecordAddress, record::record_bytes},
};
use raft_core::{Body, Entry, LogIndex};

use crate::{
    raft_log::{KIND_WRITES, entry_index::EntryIndex, record::decode_write},
    replica::{FetchDone, FetchError, FetchJob},
};

/// Loads old entries. Shares nothing with the writer but the list of where entries are; clone it for as
/// many threads as wanted.
#[derive(Clone, Debug)]
pub struct LogReader {
    journal: JournalReader,
    index: EntryIndex,
}

impl LogReader {
    pub(super) const fn new(journal: JournalReader, index: EntryIndex) -> Self {
        Self { journal, index }
    }

    /// Loads entries. Blocks on the disk.
    #[must_use]
    pub fn handle(&self, job: FetchJob) -> FetchDone {
        let result = self.fetch(job.lo, job.hi, job.max_bytes).map(Into::into);
        FetchDone { id: job.id, purpose: job.purpose, result }
    }

    /// The entries from `lo` on, up to `hi` or until their bodies exceed `max_bytes`; at least one.
    ///
    /// # Errors
    /// [`FetchError::Unavailable`] if `lo` is not in the log; [`FetchError::Storage`] naming file and
    /// offset if the log cannot be read.
    pub(crate) fn fetch(
        &self,
        lo: LogIndex,
        hi: LogIndex,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, FetchError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut next = lo;
        'extents: while next <= hi {
            let Some(extent) = self.index.find(next) else { break };
            let mut address = extent.address;
            loop {
                let (read, behind) = self.read(address)?;
                let reaches_end = read.last().is_some_and(|last| last.pos.index >= extent.last);
                for entry in read {
                    let index = entry.pos.index;
                    if index < next || index > extent.last {
                        continue;
                    }
                    if index != next {
                        return Err(Self::broken(address, &format!("entry {next} is missing")));
                    }
                    bytes += body_len(&entry);
                    if index > hi || (bytes > max_bytes && !entries.is_empty()) {
                        break 'extents;
                    }
                    entries.push(entry);
                    next = next.next();
                }
                if reaches_end {
                    break;
                }
                address = behind;
            }
        }
        if entries.is_empty() { Err(FetchError::Unavailable) } else { Ok(entries) }
    }

    /// The entries of the record at `address`, and the address behind it.
    fn read(&self, address: RecordAddress) -> Result<(Vec<Entry>, RecordAddress), FetchError> {
        let record = self.journal.read(address).map_err(|error| {
            // A reader that was overtaken: the records it wanted are gone or not there yet.
            if matches!(error, Error::InvalidArgument(_)) {
                FetchError::Unavailable
            } else {
                FetchError::Storage { reason: error.to_string() }
            }
        })?;
        let offset = address.offset + record_bytes(record.payload.len() as u64);
        let behind = RecordAddress { offset, ..address };
        if record.kind != KIND_WRITES {
            return Ok((Vec::new(), behind));
        }
        let write = decode_write(record.payload)
            .map_err(|error| Self::broken(address, &error.to_string()))?;
        Ok((write.entries, behind))
    }

    fn broken(address: RecordAddress, detail: &str) -> FetchError {
        let RecordAddress { segment, offset } = address;
        FetchError::Storage { reason: format!("log segment {segment} at byte {offset}: {detail}") }
    }
}

fn body_len(entry: &Entry) -> usize {
    match &entry.body {
        Body::Command(command) => command.len(),
        Body::Noop | Body::Config(_) => 0,
    }
}
