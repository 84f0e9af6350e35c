//! Opening the log: from the surviving records to what the core starts with.
//!
//! 1. The journal settles its last segment: torn tail or damage.
//! 2. Every record is read once, in order: heads are compared with what the records before them amount
//!    to, units are applied. What does not fit is refused by file and offset.
//! 3. A new journal gets its first segment, whose head holds the initial membership.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use lsm_store::{
    Error,
    journal::{
        Journal, JournalOptions, RecordAddress,
        record::{kind, record_bytes},
    },
    vfs::{Vfs, VfsLock},
};
use raft_core::{Body, Membership};

use crate::{
    raft_log::{
        KIND_WRITES, LogReader, LogState, LogWriter,
        entry_index::EntryIndex,
        record::{RecordError, decode_head, decode_write},
    },
    state_machine::command,
};

/// How the log is opened.
#[derive(Debug)]
pub(crate) struct LogOptions {
    /// Whose log it is.
    pub(crate) store_id: u128,
    /// Size of a segment.
    pub(crate) segment_bytes: u64,
    /// Where segment epochs come from.
    pub(crate) epoch_seed: u64,
    /// The membership of a new log. `None`: the log has to be there.
    pub(crate) bootstrap: Option<Membership>,
}

/// An open log.
#[derive(Debug)]
pub(crate) struct OpenedLog {
    pub(crate) writer: LogWriter,
    pub(crate) reader: LogReader,
    /// What the records amount to.
    pub(crate) state: LogState,
    /// The highest stamp of cluster time in it.
    pub(crate) cluster_time_ms: u64,
    /// Where its end was cut, in words.
    pub(crate) torn_tail: Option<String>,
}

/// Opens the log in `dir`. `Ok(None)`: it is not there and may not be made.
///
/// # Errors
/// What the journal says; `Corruption` naming file and offset for records that do not fit;
/// `UnknownVersion` for records of a newer program.
pub(crate) fn open(
    vfs: Arc<dyn Vfs>,
    dir: &Path,
    options: LogOptions,
    lock: Arc<dyn VfsLock>,
) -> Result<Option<OpenedLog>, Error> {
    let journal_options = JournalOptions {
        segment_bytes: options.segment_bytes,
        // The space that comes next is filled ahead of the syncs without a helper, too. One would take a new file
        // with one sync of five off the log thread, once in a segment, and a reservation of space every 4 MiB: in
        // measurements neither shows in what a sync takes, at the end of a segment or elsewhere. Nothing is removed
        // from this log. And a simulation needs every call of a node on one thread.
        helper: false,
        ..JournalOptions::new(options.store_id, options.epoch_seed)
    };
    let (journal, recovery) = Journal::open(vfs, dir, journal_options)?;
    let torn_tail = recovery.torn_tail().map(|torn| {
        let file = segment_path(dir, torn.segment);
        format!("{} cut at byte {}: {} bytes", file.display(), torn.offset, torn.bytes)
    });
    let index = EntryIndex::default();
    let mut state: Option<LogState> = None;
    let mut cluster_time_ms = 0;
    for item in recovery {
        let (address, record) = item?;
        let at = At { dir, address };
        match (record.kind, &mut state) {
            (kind::HEAD, state) => {
                let head = decode_head(record.payload).map_err(|error| at.unreadable(&error))?;
                match state {
                    None => *state = Some(head),
                    Some(state) if *state == head => {}
                    Some(state) => {
                        return Err(at.damaged(format!(
                            "the head says the log ends at {:?} under {:?}, the records before it at {:?} under {:?}",
                            head.last, head.ballot, state.last, state.ballot
                        )));
                    }
                }
            }
            (KIND_WRITES, Some(state)) => {
                let bytes = record_bytes(record.payload.len() as u64);
                let write = decode_write(record.payload).map_err(|error| at.unreadable(&error))?;
                let ends = write.entries.first().zip(write.entries.last());
                let ends = ends.map(|(first, last)| (first.pos.index, last.pos.index));
                state
                    .apply(write.ballot, write.truncate_from, &write.entries, write.commit_hint)
                    .map_err(|detail| at.damaged(detail))?;
                index.note(address, write.truncate_from, ends, bytes);
                for entry in &write.entries {
                    if let Body::Command(body) = &entry.body {
                        cluster_time_ms = cluster_time_ms.max(command::stamp_of(body).unwrap_or(0));
                    }
                }
            }
            (KIND_WRITES, None) => {
                return Err(at.damaged("the log begins without a head record".to_owned()));
            }
            (other, _) => return Err(at.damaged(format!("a record of unknown kind {other}"))),
        }
    }
    let (state, is_new) = match (state, options.bootstrap) {
        (Some(state), _) => (state, false),
        (None, Some(membership)) => (LogState::bootstrap(membership), true),
        (None, None) => return Ok(None),
    };
    let reader = LogReader::new(journal.reader(), index.clone());
    let mut writer = LogWriter::new(journal, state.clone(), index, lock);
    if is_new {
        writer.format()?;
    }
    Ok(Some(OpenedLog { writer, reader, state, cluster_time_ms, torn_tail }))
}

/// A record, for errors.
struct At<'a> {
    dir: &'a Path,
    address: RecordAddress,
}

impl At<'_> {
    fn damaged(&self, detail: String) -> Error {
        let file = segment_path(self.dir, self.address.segment);
        Error::corruption(&file, self.address.offset, detail)
    }

    fn unreadable(&self, error: &RecordError) -> Error {
        match error {
            RecordError::UnknownVersion { found } => Error::UnknownVersion {
                file: segment_path(self.dir, self.address.segment),
                found: u32::from(*found),
                supported: u32::from(crate::raft_log::RECORD_FORMAT),
            },
            RecordError::Malformed { .. } | RecordError::Entries(_) => {
                self.damaged(error.to_string())
            }
        }
    }
}

fn segment_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(lsm_store::journal::segment::file_name(segment))
}
