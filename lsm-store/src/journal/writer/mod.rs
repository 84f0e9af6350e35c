//! The writer: appends into a buffer, writes and syncs it in one go, begins new segments.
//!
//! * A sync may go on beside the writer ([`PendingSync`]), as does everything in `upkeep.rs`.
//! * A new segment that cannot be made, or space that cannot be reserved, is refused before anything of the log
//!   was touched. A failure to write to a segment, to sync it or to name a new one ends the journal.
//! * At most two segments are not synced: the newest, and the one before.

mod closing;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use super::counters::{Counters, JournalMetrics};
use super::draft::no_space;
use super::reader::{JournalReader, Shared};
use super::record::{self, MAX_PAYLOAD_BYTES, Meta, Place, kind, record_bytes};
use super::recovery::{self, Recovery};
use super::remover::SegmentRemover;
use super::segment::{SEGMENT_HEADER_BYTES, Seal, SegmentHeader, file_name};
use super::syncer::{Handover, PendingSync, Syncer, check_alive};
use super::upkeep::{Plan, Prepared, Upkeep};
use super::{JournalOptions, RecordAddress};
use crate::error::{Error, IoContext, Result};
use crate::rng::SplitMix64;
use crate::vfs::Vfs;

/// The buffer is written, though not synced, when it holds this much.
const BUFFER_BYTES: usize = 1 << 20;

/// What a device or a file system may lose at once.
const PAGE_BYTES: u64 = 4096;

/// So much is filled with zeros ahead of what is synced.
const FILL_BYTES: u64 = 256 << 10;

/// Space is reserved in steps of this size, so that a small log takes little of the disk.
const RESERVE_BYTES: u64 = 4 << 20;

/// The next segment is prepared when the present one has reached this part of its size.
const PREPARE_AT: u64 = 4;

/// The payload of a joint: end and checksum.
pub(super) const JOINT_BYTES: u64 = 16;

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
    /// The highest number that a segment has, or had before its records were copied.
    newest_number: u64,
    /// Files whose records are copied, to be removed once there is a newer segment.
    superseded: Vec<PathBuf>,
    /// The next record begins a segment.
    end_segment: bool,
    buffer: Vec<u8>,
    /// Shared with syncs under way.
    poison: Arc<OnceLock<String>>,
    upkeep: Arc<Upkeep>,
    helper: Option<JoinHandle<()>>,
    counters: Counters,
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
    /// The length when it got its name.
    published_len: u64,
    /// The length reserved soon, or tried to be.
    len_ordered: u64,
    /// Whether the next segment was ordered.
    next_ordered: bool,
    /// Whether there are records that no later one has promised to be synced.
    unpromised: bool,
    last_checksum: u64,
    last_sequence: u64,
    /// The end of the head record.
    head_end: u64,
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
        let poison = Arc::default();
        let upkeep = Upkeep::new(Arc::clone(&vfs), dir, Arc::clone(&poison), options.helper);
        let helper = if options.helper { Some(upkeep.help()?) } else { None };
        let journal = Self {
            vfs,
            dir: dir.to_path_buf(),
            options,
            shared,
            epochs,
            tail: None,
            sealed: recovered.sealed,
            newest_number: recovered.newest_number,
            superseded: recovered.superseded,
            end_segment: false,
            buffer: Vec::new(),
            poison,
            upkeep,
            helper,
            counters: Counters::default(),
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
            let limit = if self.end_segment { 0 } else { self.options.segment_bytes };
            tail.end > tail.head_end && tail.end.saturating_add(bytes) > limit
        });
        if full {
            let mut payload = Vec::new();
            head(&mut payload);
            self.check_size(payload.len() as u64)?;
            self.begin_segment(sequence, &payload, bytes)?;
            self.end_segment = false;
        }
        self.reserve_space(bytes)
    }

    /// The next record begins a new segment, if the present one holds enough to be worth it: a quarter of
    /// [`JournalOptions::segment_bytes`].
    pub fn end_segment(&mut self) {
        let enough = self.options.segment_bytes / PREPARE_AT;
        self.end_segment = self.tail.as_ref().is_some_and(|tail| tail.end >= enough);
    }

    /// Reserves space for `bytes` more, and orders what is needed later.
    fn reserve_space(&mut self, bytes: u64) -> Result<()> {
        let Some(tail) = &mut self.tail else { return Ok(()) };
        let (end, step) = (tail.end.saturating_add(bytes), RESERVE_BYTES);
        if self.options.preallocate {
            if tail.len < tail.len_ordered
                && let Some(grown) = self.upkeep.grown(&tail.syncer.path)
            {
                tail.len = tail.len.max(grown);
            }
            if end > tail.len {
                let needed = self.options.segment_bytes.min(end.saturating_add(step));
                let len = needed.max(end);
                let Syncer { file, path, .. } = &*tail.syncer;
                file.allocate(len)
                    .context("reserve space in", path)
                    .map_err(|error| no_space(error, &*self.vfs, &self.dir, len - tail.len))?;
                self.counters.reserved_late();
                (tail.len, tail.len_ordered) = (len, len);
            } else if self.upkeep.is_helped()
                && tail.len_ordered < self.options.segment_bytes
                && end.saturating_add(step / 2) > tail.len_ordered
            {
                tail.len_ordered = self.options.segment_bytes.min(tail.len_ordered + step);
                self.upkeep.order_growth(&tail.syncer, tail.len_ordered);
            }
        }
        let due = end >= self.options.segment_bytes / PREPARE_AT;
        if due && !tail.next_ordered && self.upkeep.is_helped() {
            tail.next_ordered = true;
            let number = tail.number;
            let plan = self.plan(number, 0);
            self.upkeep.order(plan);
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

    /// What the journal did since it was opened.
    pub fn metrics(&self) -> JournalMetrics {
        self.counters.metrics(self.bytes())
    }

    /// Removes the segments below number `segment`, oldest first, each durably before the next; never
    /// the newest one. A segment of copies made by recovery has no head record and is kept together
    /// with its predecessor. Returns how many were removed; with a helper they are soon.
    ///
    /// # Errors
    /// `Io`, which ends the journal; `Poisoned`.
    pub fn remove_segments_below(&mut self, segment: u64) -> Result<u64> {
        let removed = self.remover().remove_below(segment);
        self.guard(removed)
    }

    /// Removes segments, from any thread.
    pub(crate) fn remover(&self) -> SegmentRemover {
        SegmentRemover {
            shared: Arc::clone(&self.shared),
            upkeep: Arc::clone(&self.upkeep),
            poison: Arc::clone(&self.poison),
        }
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
        if self.upkeep.is_helped() { Ok(()) } else { self.upkeep.catch_up() }
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

    /// Begins a segment. Until the file is complete nothing of the log has changed, and a failure does no harm.
    fn begin_segment(&mut self, sequence: u64, head: &[u8], first_record_bytes: u64) -> Result<()> {
        if self.tail.is_some() {
            return self.continue_in_prepared(sequence, head, first_record_bytes);
        }
        let predecessor = self.sealed;
        let number = self.newest_number + 1;
        let epoch = draw_epoch(&mut self.epochs);
        let head_end = SEGMENT_HEADER_BYTES + record_bytes(head.len() as u64);
        let reserved = self.first_reserve().max(head_end.saturating_add(first_record_bytes));
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
            prepared: false,
        };
        let mut content = header.encode();
        let place = Place { epoch, offset: SEGMENT_HEADER_BYTES };
        let meta = Meta { kind: kind::HEAD, sequence, durable_to: head_end };
        let last_checksum = record::encode(&mut content, place, meta, &[head]);
        let len = self.options.preallocate.then_some(published_len);
        let plan = Plan { number, header: content, epoch, len, needed: published_len };
        let draft = self.upkeep.prepare(plan)?.draft;
        let file = Arc::clone(&draft.file);
        let published = draft.publish();
        let path = self.guard(published)?;
        let settled = self.settle_recovered();
        self.guard(settled)?;
        let syncer = Syncer::new(file, path, head_end, None, Arc::clone(&self.poison));
        let begun = Tail {
            number,
            epoch,
            syncer: Arc::new(syncer),
            end: head_end,
            written: head_end,
            filled: head_end,
            len: published_len,
            published_len,
            len_ordered: published_len,
            next_ordered: false,
            unpromised: false,
            last_checksum,
            last_sequence: sequence,
            head_end,
        };
        self.adopt(begun, false);
        Ok(())
    }

    /// There is a newer segment: cuts the newest one that recovery found, and removes those whose records
    /// are in newer ones.
    fn settle_recovered(&mut self) -> Result<()> {
        if self.sealed.segment > 0 {
            let sealed = self.dir.join(file_name(self.sealed.segment));
            if self.vfs.exists(&sealed).context("look for", &sealed)? {
                recovery::trim(&*self.vfs, &sealed, self.sealed.end)?;
            }
        }
        for path in self.superseded.drain(..) {
            recovery::remove_durably(&*self.vfs, &self.dir, &path)?;
        }
        Ok(())
    }

    /// Goes on in a segment that was prepared, or is now, before the present one is synced.
    fn continue_in_prepared(
        &mut self,
        sequence: u64,
        head: &[u8],
        first_record_bytes: u64,
    ) -> Result<()> {
        let written = self.write();
        self.guard(written)?;
        let Some(old) = &self.tail else { return Ok(()) };
        let late = !old.syncer.is_settled() || (self.upkeep.is_helped() && !self.upkeep.is_ready());
        old.syncer.settle_before()?;
        let joint_end = SEGMENT_HEADER_BYTES + record_bytes(JOINT_BYTES);
        let head_end = joint_end + record_bytes(head.len() as u64);
        let needed = head_end.saturating_add(first_record_bytes);
        let number = old.number;
        let prepared = match self.upkeep.claim() {
            Some(prepared) => prepared,
            None => {
                let plan = self.plan(number, needed);
                self.upkeep.prepare(plan)?
            }
        };
        let Some(old) = self.tail.take() else { return Ok(()) };
        let begun = self.hand_over(&old, prepared, sequence, head);
        match self.guard(begun) {
            Ok(begun) => {
                self.upkeep.order_settling(&begun.syncer);
                self.adopt(begun, late);
                Ok(())
            }
            Err(error) => {
                self.tail = Some(old);
                Err(error)
            }
        }
    }

    /// Gives a prepared file its name and writes what it begins with.
    fn hand_over(
        &self,
        old: &Tail,
        prepared: Prepared,
        sequence: u64,
        head: &[u8],
    ) -> Result<Tail> {
        let Prepared { plan: Plan { number, epoch, len, .. }, draft } = prepared;
        let path = draft.name()?;
        let file = Arc::clone(&draft.file);
        let seal = [old.end, old.last_checksum].map(u64::to_le_bytes).concat();
        let mut content = Vec::new();
        let meta = |kind| Meta { kind, sequence, durable_to: 0 };
        let place = |content: &Vec<u8>| Place {
            epoch,
            offset: SEGMENT_HEADER_BYTES + content.len() as u64,
        };
        let at = place(&content);
        record::encode(&mut content, at, meta(kind::JOINT), &[&seal]);
        let at = place(&content);
        let last_checksum = record::encode(&mut content, at, meta(kind::HEAD), &[head]);
        file.write_all_at(&content, SEGMENT_HEADER_BYTES).context("write", &path)?;
        let handover = Handover {
            vfs: Arc::clone(&self.vfs),
            dir: self.dir.clone(),
            old: Arc::clone(&old.syncer),
            epoch: old.epoch,
            end: old.end,
            last_sequence: old.last_sequence,
            published_end: SEGMENT_HEADER_BYTES,
            min_len: old.published_len,
        };
        let head_end = SEGMENT_HEADER_BYTES + content.len() as u64;
        let len = len.unwrap_or(SEGMENT_HEADER_BYTES);
        let poison = Arc::clone(&self.poison);
        Ok(Tail {
            number,
            epoch,
            syncer: Arc::new(Syncer::new(file, path, 0, Some(handover), poison)),
            end: head_end,
            written: head_end,
            filled: head_end,
            len,
            published_len: len,
            len_ordered: len,
            next_ordered: false,
            unpromised: true,
            last_checksum,
            last_sequence: sequence,
            head_end,
        })
    }

    /// Makes a segment the one that is written.
    fn adopt(&mut self, begun: Tail, late: bool) {
        let Tail { number, epoch, head_end, .. } = begun;
        let path = begun.syncer.path.clone();
        self.newest_number = number;
        self.shared.add(number, epoch, path, head_end, false);
        self.shared.set_newest(number, &begun.syncer, head_end);
        self.counters.segment_begun(late);
        self.tail = Some(begun);
    }

    /// What the segment after `number` is made of, with room for at least `needed` bytes.
    fn plan(&mut self, number: u64, needed: u64) -> Plan {
        let epoch = draw_epoch(&mut self.epochs);
        let reserved = self.options.preallocate.then_some(self.first_reserve().max(needed));
        Plan::after(number, epoch, self.options.store_id, reserved)
    }

    /// Space reserved for a new segment.
    fn first_reserve(&self) -> u64 {
        self.options.segment_bytes.min(RESERVE_BYTES)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop_helper();
    }
}
