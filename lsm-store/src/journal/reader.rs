//! Reading single records by address, from any thread, while the writer goes on.
//!
//! Readers share with the writer only the list of segments and how far each was written; they read
//! with their own file handles, of which a few are kept open.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::record::{HEADER_BYTES, Place, RecordHeader};
use super::syncer::Syncer;
use super::{Record, RecordAddress};
use crate::error::{Error, IoContext, Result};
use crate::vfs::{Vfs, VfsFile};

/// Read at once, in the hope that the record is no longer.
const FIRST_READ_BYTES: u64 = 4096;

/// Segment files kept open by all readers of a journal together.
const OPEN_FILES: usize = 16;

/// What readers and writer share.
#[derive(Debug)]
pub(super) struct Shared {
    vfs: Arc<dyn Vfs>,
    segments: RwLock<BTreeMap<u64, Segment>>,
    /// The segment that is written, if there is one.
    newest: Mutex<Option<(u64, Arc<Syncer>, u64)>>,
    /// The most recently used last.
    open: Mutex<Vec<(u64, Arc<dyn VfsFile>)>>,
}

/// A segment as readers see it.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) epoch: u64,
    pub(super) path: PathBuf,
    /// The end of the last whole record that was written.
    pub(super) limit: u64,
    /// Whether it holds copies made by recovery, and no head record.
    pub(super) copies: bool,
}

impl Shared {
    pub(super) fn new(vfs: Arc<dyn Vfs>, segments: BTreeMap<u64, Segment>) -> Self {
        Self {
            vfs,
            segments: RwLock::new(segments),
            newest: Mutex::default(),
            open: Mutex::default(),
        }
    }

    pub(super) fn add(&self, number: u64, epoch: u64, path: PathBuf, limit: u64, copies: bool) {
        self.segments.write().insert(number, Segment { epoch, path, limit, copies });
    }

    pub(super) fn set_limit(&self, number: u64, limit: u64) {
        if let Some(segment) = self.segments.write().get_mut(&number) {
            segment.limit = limit;
        }
    }

    pub(super) fn oldest(&self) -> u64 {
        self.segments.read().keys().next().copied().unwrap_or(0)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.read().values().map(|segment| segment.limit).sum()
    }

    /// Which segment is written now, and where its head record ends.
    pub(super) fn set_newest(&self, number: u64, syncer: &Arc<Syncer>, head_end: u64) {
        *self.newest.lock() = Some((number, Arc::clone(syncer), head_end));
    }

    /// The oldest segment that is kept if those below `number` go, 0 if none go: it has a head record, and is
    /// not newer than the newest. Also what of it must be durable before.
    pub(super) fn kept_from(&self, number: u64) -> (u64, Option<(Arc<Syncer>, u64)>) {
        let segments = self.segments.read();
        let found = segments.range(..=number).rev().find(|(_, segment)| !segment.copies);
        let kept = found.map_or(0, |(number, _)| *number);
        drop(segments);
        let newest = self.newest.lock();
        let newest = newest.as_ref().filter(|(newest, ..)| *newest == kept);
        (kept, newest.map(|(_, syncer, head_end)| (Arc::clone(syncer), *head_end)))
    }

    /// Takes the oldest segment off the list if it is older than `first_kept`; its file is the caller's
    /// to remove.
    pub(super) fn forget_oldest_below(&self, first_kept: u64) -> Option<PathBuf> {
        let (number, segment) = {
            let mut segments = self.segments.write();
            let oldest = *segments.keys().next()?;
            if oldest >= first_kept {
                return None;
            }
            (oldest, segments.remove(&oldest)?)
        };
        self.open.lock().retain(|(open, _)| *open != number);
        Some(segment.path)
    }

    fn file(&self, number: u64, segment: &Segment) -> Result<Arc<dyn VfsFile>> {
        let mut open = self.open.lock();
        if let Some(index) = open.iter().position(|(open, _)| *open == number) {
            let found = open.remove(index);
            let file = Arc::clone(&found.1);
            open.push(found);
            return Ok(file);
        }
        drop(open);
        let file = self.vfs.open_read(&segment.path).context("open", &segment.path)?;
        let mut open = self.open.lock();
        if open.len() >= OPEN_FILES {
            open.remove(0);
        }
        open.push((number, Arc::clone(&file)));
        Ok(file)
    }
}

/// Reads records by address. Cheap to clone; usable from any thread.
#[derive(Debug, Clone)]
pub struct JournalReader {
    shared: Arc<Shared>,
}

impl JournalReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The record at `address`, which must have come from [`Journal::append`](super::Journal::append)
    /// and a later sync, or from recovery.
    ///
    /// # Errors
    /// `InvalidArgument` if its segment was removed or its bytes were not written yet; `Corruption`
    /// naming file and offset; `Io`.
    pub fn read(&self, address: RecordAddress) -> Result<Record> {
        let segment = self.shared.segments.read().get(&address.segment).cloned();
        let Some(segment) = segment else {
            let detail = format!("there is no segment {}: it was removed", address.segment);
            return Err(Error::InvalidArgument(detail));
        };
        let RecordAddress { offset, .. } = address;
        let available = segment.limit.saturating_sub(offset);
        let first_bytes = usize::try_from(available.min(FIRST_READ_BYTES)).unwrap_or(0);
        if first_bytes < HEADER_BYTES {
            let detail = format!(
                "byte {offset} of segment {} is not written yet; it ends at {}",
                address.segment, segment.limit
            );
            return Err(Error::InvalidArgument(detail));
        }
        let file = self.shared.file(address.segment, &segment)?;
        let damaged = |detail: &str| Error::corruption(&segment.path, offset, detail);
        let mut bytes = vec![0; first_bytes];
        file.read_exact_at(&mut bytes, offset).context("read", &segment.path)?;
        let place = Place { epoch: segment.epoch, offset };
        let header_bytes =
            *bytes.first_chunk::<HEADER_BYTES>().ok_or_else(|| damaged("no header"))?;
        let header = RecordHeader::parse(&header_bytes, place).map_err(damaged)?;
        if header.record_bytes() > available {
            return Err(damaged("the record's length goes beyond what was written"));
        }
        let total = HEADER_BYTES + header.body_bytes();
        bytes.resize(total, 0);
        if let Some(rest) = bytes.get_mut(first_bytes..) {
            file.read_exact_at(rest, offset + first_bytes as u64).context("read", &segment.path)?;
        }
        let mut bytes = Bytes::from(bytes);
        let mut body = bytes.split_off(HEADER_BYTES);
        if !header.matches(&header_bytes, &body, place) {
            return Err(damaged("the record's checksum is wrong"));
        }
        body.truncate(header.payload_bytes as usize);
        Ok(Record { kind: header.kind, sequence: header.sequence, payload: body })
    }
}
