//! The writer: appends into a buffer, writes and syncs it in one go, begins new segments.
//!
//! * A sync may go on beside the writer ([`PendingSync`]); a segment is synced by one thread at a time, because
//!   the kernel tells of a failure only once.
//! * A new segment that cannot be made is refused before anything of the log was touched. A failure to
//!   write to a segment, to sync it or to name a new one ends the journal.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::reader::{JournalReader, Shared};
use super::record::{self, MAX_PAYLOAD_BYTES, Meta, Place, kind, record_bytes};
use super::recovery::{self, Recovery};
use super::segment::{SEGMENT_HEADER_BYTES, Seal, SegmentHeader, file_name};
use super::{JournalOptions, RecordAddress};
use crate::error::{Error, IoContext, Result};
use crate::rng::SplitMix64;
use crate::vfs::{Vfs, VfsFile};

/// The buffer is written, though not synced, when it holds this much.
const BUFFER_BYTES: usize = 1 << 20;

/// What a device or a file system may lose at once.
const PAGE_BYTES: u64 = 4096;

/// So much is filled with zeros ahead of what is synced.
const FILL_BYTES: u64 = 256 << 10;

/// A smaller segment would hold little but its header.
const MIN_SEGMENT_BYTES: u64 = 4096;

/// The one writer of a journal. Whoever opens it makes sure that there is only one (a lock file).
#[derive(Debug)]
pub struct Journal {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    options: JournalOptions,
    shared: Arc<Shared>,
    epochs: SplitMix64,
    /// The segment being written; none right after opening.
    tail: Option<Tail>,
    /// How the newest segment ended, while there is no tail.
    sealed: Seal,
    buffer: Vec<u8>,
    /// Shared with syncs under way.
    poison: Arc<OnceLock<String>>,
}

#[derive(Debug)]
struct Tail {
    number: u64,
    epoch: u64,
    syncer: Arc<Syncer>,
    /// The end of the last record, written or not.
    end: u64,
    /// What was handed to the file.
    written: u64,
    /// Bytes below were written at some time, zeros included.
    filled: u64,
    /// The length reserved.
    len: u64,
    /// Whether there are records that no later one has promised to be synced.
    unpromised: bool,
    last_checksum: u64,
    last_sequence: u64,
    /// The end of the head record.
    head_end: u64,
}

/// Syncs one segment's file.
#[derive(Debug)]
struct Syncer {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    /// What is durable: bytes below.
    synced: AtomicU64,
    one_at_a_time: Mutex<()>,
    poison: Arc<OnceLock<String>>,
}

impl Syncer {
    fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Makes the bytes below `upto` durable, which were handed to the file before.
    fn sync(&self, upto: u64) -> Result<()> {
        let alone = self.one_at_a_time.lock();
        check_alive(&self.poison)?;
        if self.synced() < upto {
            let synced = self.file.sync_data().context("sync", &self.path);
            if let Err(error) = &synced {
                // Before anybody else may try: a second sync would find nothing to do, and succeed.
                self.poison.get_or_init(|| error.to_string());
            }
            synced?;
            self.synced.store(upto, Ordering::Release);
        }
        drop(alone);
        Ok(())
    }
}

fn check_alive(poison: &OnceLock<String>) -> Result<()> {
    match poison.get() {
        None => Ok(()),
        Some(reason) => Err(Error::Poisoned { reason: reason.clone() }),
    }
}

/// A sync that is to be done: from any thread, beside the writer.
#[derive(Debug)]
pub struct PendingSync {
    syncer: Arc<Syncer>,
    upto: u64,
}

impl PendingSync {
    /// Syncs. What the journal appends from then on says that it did.
    ///
    /// # Errors
    /// `Io` ends the journal; `Poisoned`.
    pub fn run(&self) -> Result<()> {
        self.syncer.sync(self.upto)
    }
}

/// A new segment's file, before it has its name.
pub(super) struct Draft<'a> {
    vfs: &'a dyn Vfs,
    dir: &'a Path,
    number: u64,
    pub(super) file: Arc<dyn VfsFile>,
    pub(super) tmp: PathBuf,
}

impl<'a> Draft<'a> {
    pub(super) fn create(vfs: &'a dyn Vfs, dir: &'a Path, number: u64) -> Result<Self> {
        let tmp = dir.join(recovery::TMP_DIR).join(file_name(number));
        let file = vfs.create_new(&tmp).context("create", &tmp)?;
        Ok(Self { vfs, dir, number, file, tmp })
    }

    /// Writes and syncs what the segment begins with. Nothing refers to the file yet.
    fn fill(&self, content: &[u8], len: Option<u64>) -> Result<()> {
        if let Some(len) = len {
            self.file.allocate(len).context("reserve space in", &self.tmp)?;
        }
        self.file.write_all_at(content, 0).context("write", &self.tmp)?;
        self.file.sync_all().context("sync", &self.tmp)
    }

    /// Removes what could not be completed. What stays is removed by the next try or the next open.
    fn discard(self, error: Error, needed: u64) -> Error {
        let _left = self.vfs.unlink(&self.tmp).is_err();
        no_space(error, self.vfs, self.dir, needed)
    }

    /// Gives the synced file its name, durably. A rename never replaces a segment.
    pub(super) fn publish(self) -> Result<PathBuf> {
        let path = self.dir.join(file_name(self.number));
        if self.vfs.exists(&path).context("look for", &path)? {
            return Err(Error::corruption(&path, 0, "a segment of this number already exists"));
        }
        self.vfs.rename(&self.tmp, &path).context("rename", &self.tmp)?;
        // First the new name, then the removal of the old one: in between there may be both, never none.
        self.vfs.sync_dir(self.dir).context("sync", self.dir)?;
        let tmp_dir = self.dir.join(recovery::TMP_DIR);
        self.vfs.sync_dir(&tmp_dir).context("sync", &tmp_dir)?;
        Ok(path)
    }
}

/// An error that says that the disk is full as what it is.
fn no_space(error: Error, vfs: &dyn Vfs, dir: &Path, needed: u64) -> Error {
    if let Error::Io { source, .. } = &error
        && matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    {
        return Error::NoSpace { free: vfs.free_space(dir).unwrap_or(0), needed };
    }
    error
}

/// Draws an epoch: never 0, which reserved zeros would have.
pub(super) fn draw_epoch(epochs: &mut SplitMix64) -> u64 {
    epochs.next_u64() | 1
}

impl Journal {
    /// Opens the journal in `dir`, creating the directory if need be. The journal is ready for appends
    /// once `Recovery` was read to its end; until then not everything was checked.
    ///
    /// # Errors
    /// `Corruption` naming file and offset if synced bytes are damaged or a segment is missing;
    /// `UnknownVersion`, `WrongStore`, `Io`; `InvalidArgument` for senseless options.
    pub fn open(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        options: JournalOptions,
    ) -> Result<(Self, Recovery)> {
        if options.segment_bytes < MIN_SEGMENT_BYTES {
            let detail = format!(
                "segments of {} bytes are too small; at least {MIN_SEGMENT_BYTES} are needed",
                options.segment_bytes
            );
            return Err(Error::InvalidArgument(detail));
        }
        if options.max_record_bytes > MAX_PAYLOAD_BYTES {
            return Err(Error::TooLarge {
                what: "record limit",
                size: u64::from(options.max_record_bytes),
                limit: u64::from(MAX_PAYLOAD_BYTES),
            });
        }
        let mut epochs = SplitMix64::new(options.epoch_seed);
        let recovered = recovery::recover(&vfs, dir, &options, &mut epochs)?;
        let shared = Arc::new(Shared::new(Arc::clone(&vfs), recovered.segments));
        let journal = Self {
            vfs,
            dir: dir.to_path_buf(),
            options,
            shared,
            epochs,
            tail: None,
            sealed: recovered.sealed,
            buffer: Vec::new(),
            poison: Arc::default(),
        };
        Ok((journal, recovered.recovery))
    }

    /// Adds a record whose payload is the concatenation of `parts`. It is durable after the next
    /// [`Journal::sync`], and can be read by address from then on.
    ///
    /// `head` is called before the first record of a new segment and appends to its argument the
    /// payload of the segment's head record: what the caller must know about everything before this
    /// record if all older segments are removed.
    ///
    /// # Errors
    /// `TooLarge`, `InvalidArgument` (a kind below [`kind::APPLICATION`] that is not a batch) and `NoSpace`
    /// leave the journal as it was, as does `Io` if a new segment could not be created. Any other `Io` ends
    /// it: every later call returns `Poisoned`, and [`Journal::is_poisoned`] tells.
    pub fn append(
        &mut self,
        kind: u8,
        sequence: u64,
        parts: &[&[u8]],
        head: &mut dyn FnMut(&mut Vec<u8>),
    ) -> Result<RecordAddress> {
        self.check_alive()?;
        if kind < kind::APPLICATION && kind != kind::BATCH {
            return Err(Error::InvalidArgument(format!(
                "record kind {kind} is reserved for the journal"
            )));
        }
        let payload_bytes = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        self.check_size(payload_bytes)?;
        self.reserve(record_bytes(payload_bytes), sequence, head)?;
        let address = self.encode(kind, sequence, parts)?;
        if self.buffer.len() >= BUFFER_BYTES {
            let written = self.write();
            self.guard(written)?;
        }
        Ok(address)
    }

    /// Sees to it that the next records, of `bytes` bytes on disk together, go into one segment without
    /// another one being begun. `sequence` is the first one's number; `head` is as for [`Journal::append`].
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn reserve(
        &mut self,
        bytes: u64,
        sequence: u64,
        head: &mut dyn FnMut(&mut Vec<u8>),
    ) -> Result<()> {
        self.check_alive()?;
        let full = self.tail.as_ref().is_none_or(|tail| {
            tail.end > tail.head_end && tail.end.saturating_add(bytes) > self.options.segment_bytes
        });
        if full {
            let mut payload = Vec::new();
            head(&mut payload);
            self.check_size(payload.len() as u64)?;
            self.begin_segment(sequence, &payload, bytes)?;
        }
        Ok(())
    }

    /// Whether a failure ended the journal.
    pub fn is_poisoned(&self) -> bool {
        self.poison.get().is_some()
    }

    /// Makes every record appended so far durable: one write and one sync, or nothing if there is
    /// nothing new.
    ///
    /// # Errors
    /// `Io` ends the journal, and what was appended since the last sync may or may not be on disk;
    /// `Poisoned` after an earlier failure.
    pub fn sync(&mut self) -> Result<()> {
        self.check_alive()?;
        let synced = self.write_and_sync();
        self.guard(synced)
    }

    /// As [`Journal::sync`], but the sync itself is left to the caller; `None` if nothing is to be synced.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn start_sync(&mut self) -> Result<Option<PendingSync>> {
        self.check_alive()?;
        let written = self.write().and_then(|()| self.fill_ahead());
        self.guard(written)?;
        Ok(self.tail.as_ref().and_then(|tail| {
            let syncer = Arc::clone(&tail.syncer);
            (syncer.synced() < tail.written).then_some(PendingSync { syncer, upto: tail.written })
        }))
    }

    /// Hands every record appended so far to the operating system, without syncing: it survives the end
    /// of the process, not of the machine, and can be read by address.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn write_out(&mut self) -> Result<()> {
        self.check_alive()?;
        let written = self.write();
        self.guard(written)
    }

    /// Writes, without syncing, a note that says how far the journal is durable, unless the log already
    /// says so. Called when idle, it lets damage to the last synced records be told from a torn tail.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn note_durable(&mut self) -> Result<()> {
        self.check_alive()?;
        let sequence = match &self.tail {
            Some(tail) if tail.unpromised && tail.end == tail.syncer.synced() => tail.last_sequence,
            Some(_) | None => return Ok(()),
        };
        self.encode(kind::SYNC_NOTE, sequence, &[])?;
        let written = self.write();
        self.guard(written)
    }

    /// Syncs, notes that it did, and syncs the note, which stands in a page of its own: damage to the page
    /// of the last records must not take the proof that they were there.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn close(mut self) -> Result<()> {
        self.sync()?;
        if let Some(Tail { end, last_sequence, .. }) =
            self.tail.as_ref().filter(|tail| tail.unpromised)
        {
            let (sequence, after) = (*last_sequence, end.saturating_add(record_bytes(0)));
            let padding = after.next_multiple_of(PAGE_BYTES) - after;
            let padding = vec![0; usize::try_from(padding).unwrap_or(0)];
            self.encode(kind::SYNC_NOTE, sequence, &[&padding])?;
            self.encode(kind::SYNC_NOTE, sequence, &[])?;
        }
        self.sync()
    }

    /// As [`Journal::close`], of a journal whose records are all needed no more: what stays is one segment
    /// without records, its head as of `head`, so that there is next to nothing to read at the next opening.
    /// `sequence` is the number of the record that would come next. Without room for it on the disk, everything stays.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn close_spent(mut self, sequence: u64, head: &mut dyn FnMut(&mut Vec<u8>)) -> Result<()> {
        self.check_alive()?;
        let mut payload = Vec::new();
        head(&mut payload);
        self.check_size(payload.len() as u64)?;
        let (end, reserved) = self.tail.as_ref().map_or((self.sealed.end, 0), |t| (t.end, t.len));
        let spent = SEGMENT_HEADER_BYTES + record_bytes(payload.len() as u64);
        if end <= spent && reserved <= spent {
            return self.close();
        }
        self.options.preallocate = false;
        if let Err(error) = self.begin_segment(sequence, &payload, 0) {
            return if self.is_poisoned() { Err(error) } else { self.close() };
        }
        self.remove_segments_below(self.newest_segment()).map(|_removed| ())
    }

    /// A reader by address, for any thread.
    pub fn reader(&self) -> JournalReader {
        JournalReader::new(Arc::clone(&self.shared))
    }

    /// The newest segment's number; 0 if there is none.
    pub fn newest_segment(&self) -> u64 {
        self.tail.as_ref().map_or(self.sealed.segment, |tail| tail.number)
    }

    /// The oldest segment's number; 0 if there is none.
    pub fn oldest_segment(&self) -> u64 {
        self.shared.oldest()
    }

    /// Bytes of records and headers in all segments, reserved space not counted.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes()
    }

    /// Removes the segments below number `segment`, oldest first, each durably before the next; never
    /// the newest one. A segment of copies made by recovery has no head record and is kept together
    /// with its predecessor. Returns how many were removed.
    ///
    /// # Errors
    /// `Io`, which ends the journal; `Poisoned`.
    pub fn remove_segments_below(&mut self, segment: u64) -> Result<u64> {
        self.check_alive()?;
        let removed = self.remove_oldest(segment);
        self.guard(removed)
    }

    fn remove_oldest(&self, segment: u64) -> Result<u64> {
        let first_kept =
            self.shared.first_with_head_at_or_below(segment.min(self.newest_segment()));
        let mut removed = 0;
        while let Some(path) = self.shared.forget_oldest_below(first_kept) {
            recovery::remove_durably(&*self.vfs, &self.dir, &path)?;
            removed += 1;
        }
        Ok(removed)
    }

    fn check_alive(&self) -> Result<()> {
        check_alive(&self.poison)
    }

    fn check_size(&self, payload_bytes: u64) -> Result<()> {
        let limit = u64::from(self.options.max_record_bytes);
        if payload_bytes > limit {
            return Err(Error::TooLarge { what: "record", size: payload_bytes, limit });
        }
        Ok(())
    }

    /// Lets a result pass, and remembers the first failure for good.
    fn guard<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.poison.get_or_init(|| error.to_string());
        }
        result
    }

    fn encode(&mut self, kind: u8, sequence: u64, parts: &[&[u8]]) -> Result<RecordAddress> {
        let Some(tail) = &mut self.tail else {
            return Err(Error::InvalidArgument("no segment was begun".into()));
        };
        let address = RecordAddress { segment: tail.number, offset: tail.end };
        let before = self.buffer.len();
        let place = Place { epoch: tail.epoch, offset: tail.end };
        let meta = Meta { kind, sequence, durable_to: tail.syncer.synced() };
        tail.last_checksum = record::encode(&mut self.buffer, place, meta, parts);
        tail.end += (self.buffer.len() - before) as u64;
        tail.unpromised = kind != kind::SYNC_NOTE;
        tail.last_sequence = sequence;
        Ok(address)
    }

    fn write(&mut self) -> Result<()> {
        let Some(tail) = &mut self.tail else { return Ok(()) };
        if self.buffer.is_empty() {
            return Ok(());
        }
        let Syncer { file, path, .. } = &*tail.syncer;
        file.write_all_at(&self.buffer, tail.written).context("write", path)?;
        tail.written += self.buffer.len() as u64;
        tail.filled = tail.filled.max(tail.written);
        self.buffer.clear();
        self.buffer.shrink_to(2 * BUFFER_BYTES);
        self.shared.set_limit(tail.number, tail.written);
        Ok(())
    }

    fn write_and_sync(&mut self) -> Result<()> {
        if let Some(pending) = self.start_sync()? { pending.run() } else { Ok(()) }
    }

    /// Writes zeros into the space that is written next, for the sync that follows to make durable. Space
    /// that was reserved but never written costs each sync a change of the file's map; with this one sync
    /// in a thousand pays for the others. A log that is not synced does not pay.
    fn fill_ahead(&mut self) -> Result<()> {
        let Some(tail) = &mut self.tail else { return Ok(()) };
        let unsynced = tail.syncer.synced() < tail.written;
        if !unsynced || tail.filled > tail.written || tail.filled >= tail.len {
            return Ok(());
        }
        let to = tail.len.min(tail.written.saturating_add(FILL_BYTES));
        let zeros = vec![0; usize::try_from(to - tail.written).unwrap_or(0)];
        let Syncer { file, path, .. } = &*tail.syncer;
        file.write_all_at(&zeros, tail.written).context("write", path)?;
        tail.filled = to;
        Ok(())
    }

    /// Writes behind the end of a sealed segment that its successor was durable: should the newest segment
    /// ever be missing, its predecessor says so. Not synced; the log does not depend on it.
    fn note_successor(tail: &Tail) -> Result<()> {
        let mut record = Vec::new();
        let place = Place { epoch: tail.epoch, offset: tail.end };
        let meta = Meta { kind: kind::SEAL, sequence: tail.last_sequence, durable_to: tail.end };
        record::encode(&mut record, place, meta, &[]);
        let Syncer { file, path, .. } = &*tail.syncer;
        file.write_all_at(&record, tail.end).context("write", path)
    }

    /// Begins a segment. Until the file is complete nothing of the log has changed, and a failure does no harm.
    fn begin_segment(&mut self, sequence: u64, head: &[u8], first_record_bytes: u64) -> Result<()> {
        let synced = self.write_and_sync();
        self.guard(synced)?;
        let predecessor = self.tail.as_ref().map_or(self.sealed, |tail| Seal {
            segment: tail.number,
            end: tail.end,
            last_checksum: tail.last_checksum,
        });
        let number = predecessor.segment + 1;
        let epoch = draw_epoch(&mut self.epochs);
        let head_end = SEGMENT_HEADER_BYTES + record_bytes(head.len() as u64);
        let reserved = self.options.segment_bytes.max(head_end.saturating_add(first_record_bytes));
        let published_len = if self.options.preallocate { reserved } else { head_end };
        let header = SegmentHeader {
            store_id: self.options.store_id,
            number,
            epoch,
            predecessor,
            first_sequence: sequence,
            published_end: head_end,
            published_len,
            copies: false,
        };
        let mut content = header.encode();
        let place = Place { epoch, offset: SEGMENT_HEADER_BYTES };
        let meta = Meta { kind: kind::HEAD, sequence, durable_to: head_end };
        let last_checksum = record::encode(&mut content, place, meta, &[head]);
        let draft = self.draft(number, published_len)?;
        if let Err(error) = draft.fill(&content, self.options.preallocate.then_some(published_len))
        {
            return Err(draft.discard(error, published_len));
        }
        let file = Arc::clone(&draft.file);
        let published = draft.publish();
        let path = self.guard(published)?;
        let before = self.tail.take();
        self.sealed = predecessor;
        let noted = match &before {
            Some(before) => Self::note_successor(before),
            // The newest segment that recovery found.
            None if predecessor.segment > 0 => {
                let sealed = self.dir.join(file_name(predecessor.segment));
                recovery::trim(&*self.vfs, &sealed, predecessor.end)
            }
            None => Ok(()),
        };
        self.guard(noted)?;
        self.shared.add(number, epoch, path.clone(), head_end, false);
        let syncer = Arc::new(Syncer {
            file,
            path,
            synced: AtomicU64::new(head_end),
            one_at_a_time: Mutex::new(()),
            poison: Arc::clone(&self.poison),
        });
        self.tail = Some(Tail {
            number,
            epoch,
            syncer,
            end: head_end,
            written: head_end,
            filled: head_end,
            len: published_len,
            unpromised: false,
            last_checksum,
            last_sequence: sequence,
            head_end,
        });
        Ok(())
    }

    /// A new file for a segment; what an earlier try left is removed.
    fn draft(&self, number: u64, needed: u64) -> Result<Draft<'_>> {
        let tmp = self.dir.join(recovery::TMP_DIR).join(file_name(number));
        if self.vfs.exists(&tmp).context("look for", &tmp)? {
            self.vfs.unlink(&tmp).context("remove", &tmp)?;
        }
        Draft::create(&*self.vfs, &self.dir, number)
            .map_err(|error| no_space(error, &*self.vfs, &self.dir, needed))
    }
}
