//! The write-ahead log of a stand-alone store: group commit, replay, removal of what is in tables.
//!
//! ```text
//! write ─► queue ─► the writer in front leads: room in memory ─► append, write ─► sync ─► apply ─► publish ─► tell
//! ```
//!
//! * One batch is one record; its number is the position's index, counted by the log without gaps. Order
//!   in the log, order of numbers and order of visibility are the same.
//! * Nothing becomes visible before it is in the log, and synced if its writer or one before it asked for it. A
//!   buffered batch waits for a sync only if a batch before it in the log wants one that is not done.
//! * The first failure of the log poisons the store, before anybody is woken. What is refused before the log
//!   was touched (no room in memory, no space for a new segment) can be tried again.
//! * A segment ends where memtables are frozen, if it is not too small, and is removed when everything in it is
//!   in tables; closing the store then, too, leaves only an empty one. The head of a segment says how many batches
//!   came before, so a missing piece of the log is noticed. All partitions are frozen together, so a cold
//!   one pins nothing; a log above [`Options::wal_max_bytes`](crate::Options::wal_max_bytes) freezes them.
//!
//! `queue` has the order of things and the waiting, `batch` the bytes. Locks: `log` is taken by the leader, by
//! who begins a sync and by the end of the store. It comes before those of the store (see `store/inner.rs`).

pub(crate) mod batch;
mod queue;
#[cfg(test)]
mod queue_tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

pub use batch::{MAX_BATCH_BYTES, SequenceNumbers, WriteBatch};

use crate::coding::DecodeError;
use crate::error::{Error, IoContext, Result};
use crate::events::Event;
use crate::histogram::{Distribution, Recorder};
use crate::journal::record::{RecordHeader, kind, record_bytes};
use crate::journal::segment::file_name;
use crate::journal::{BorrowedRecord, Journal, JournalOptions, SegmentRemover};
use crate::options::Executor;
use crate::store::{Freeze, Run, Store};
use crate::types::{Position, SequenceNumber};
use crate::vfs::Vfs;
use queue::{Answers, CommitQueue, Items, Stages};

/// What must have happened to a batch before its write returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is on disk: it survives the end of the machine.
    Sync,
    /// It was handed to the operating system: it survives the end of the process. After a loss of power a
    /// prefix of the buffered batches is there, never one without those before it.
    Buffered,
}

impl Store {
    /// Writes a batch into the store's own log and makes it visible. Many threads may write at once: what
    /// waits while one of them syncs is written and synced together next.
    ///
    /// An empty batch with [`Durability::Sync`] syncs everything buffered before it. There is no limit to a batch but
    /// those that [`WriteBatch`] keeps, where it also says what becomes of several operations on one key.
    ///
    /// # Errors
    /// `InvalidArgument` for a store without a log of its own or an unknown partition; `Stalled` if
    /// background work does not keep up; `NoSpace`, or `Io` in creating it, if there is no file for what
    /// comes next of the log: in these cases nothing was written, and the write can be tried again. After
    /// any other `Io` the store is poisoned, and whether the batch is in the log is known when it is opened
    /// again. `Poisoned`, `Closed`.
    pub fn write(&self, batch: WriteBatch, durability: Durability) -> Result<SequenceNumbers> {
        let Some(wal) = self.wal() else {
            let detail = "the caller's log is the log of this store: use runs, not `write`";
            return Err(Error::InvalidArgument(detail.to_owned()));
        };
        for partition in batch.partitions() {
            self.check_partition(partition)?;
        }
        let stages = Commit { wal, store: self };
        wal.queue.commit(&stages, Work::Write { batch, durability })
    }
}

/// The directory of the log in a store's directory.
pub(crate) fn directory(dir: &Path) -> PathBuf {
    dir.join("wal")
}

/// The log of an open store.
#[derive(Debug)]
pub(crate) struct Wal {
    queue: CommitQueue<Work, Result<SequenceNumbers>>,
    log: Mutex<Log>,
    cutter: Cutter,
    sync_micros: Recorder,
    batches_synced: Recorder,
}

/// What the log of a store did since it was opened.
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct WalMetrics {
    /// Bytes of records in all segments.
    pub bytes: u64,
    /// Segments begun.
    pub segments: u64,
    /// Segments that were not prepared, or whose predecessor's predecessor was not synced, when they were
    /// needed: a write waited for it.
    pub segments_late: u64,
    /// Times that space was not reserved when it was needed: a write waited for it.
    pub reserved_late: u64,
    /// How long syncs took, in microseconds; nothing with [`Executor::Inline`](crate::Executor::Inline),
    /// which has no clock.
    pub sync_micros: Distribution,
    /// How many batches were made durable by a sync.
    pub batches_synced: Distribution,
}

/// Removes segments whose batches are all in tables. Told by every flush.
#[derive(Debug, Clone)]
pub(crate) struct Cutter {
    /// For each segment the number of its last batch.
    segments: Arc<Mutex<BTreeMap<u64, u64>>>,
    remover: SegmentRemover,
}

impl Cutter {
    /// Removes what is needed no more once tables hold the batches up to `durable`.
    ///
    /// # Errors
    /// `Io`, which ends the log; `Poisoned`.
    pub(crate) fn cut(&self, durable: u64) -> Result<()> {
        let mut segments = self.segments.lock();
        // A segment that has a successor is in the map with its last batch.
        let first_kept = first_needed(&segments, durable).unwrap_or(u64::MAX);
        self.remover.remove_below(first_kept)?;
        let oldest = self.remover.oldest_segment();
        segments.retain(|segment, _| *segment >= oldest);
        Ok(())
    }
}

#[derive(Debug)]
enum Work {
    Write {
        batch: WriteBatch,
        durability: Durability,
    },
    /// Sync the log and end it.
    Close,
}

impl Work {
    /// The batch, if there is anything to log.
    fn batch(&self) -> Option<&WriteBatch> {
        match self {
            Self::Write { batch, .. } => Some(batch).filter(|batch| !batch.is_empty()),
            Self::Close => None,
        }
    }
}

#[derive(Debug)]
struct Log {
    /// None once the store is closed.
    journal: Option<Journal>,
    /// The number of the last batch in the log.
    last: u64,
    /// Per partition the last sequence number in the log.
    sequences: Vec<u64>,
    /// The front of the payload that is being encoded; kept for its capacity.
    prefix: Vec<u8>,
}

/// A group on its way from the log into the memtables.
#[derive(Debug)]
struct Logged {
    own: SequenceNumbers,
    others: Vec<SequenceNumbers>,
    /// The number of its last batch; of the last one before if there is none.
    last: u64,
    batches: u64,
    /// What is to be done to the memtables before.
    freeze: Freeze,
    /// A segment that was begun for it.
    segment: Option<u64>,
    failure: Option<Error>,
}

impl Wal {
    /// Opens the log of `store`, which holds what is in tables, and replays the rest into it.
    pub(crate) fn open(store: &Store) -> Result<Self> {
        let inner = store.inner();
        let dir = directory(&inner.dir);
        let options = JournalOptions {
            segment_bytes: inner.options.wal_segment_bytes,
            helper: inner.executor == Executor::Threads,
            ..JournalOptions::new(inner.options.store_id, inner.catalog.lock().epoch_seed())
        };
        let durable = store.durable_position().index;
        let (journal, mut recovery) = Journal::open(Arc::clone(&inner.vfs), &dir, options)?;
        if recovery.segments() == 0 && durable > 0 && !inner.is_fresh_copy() {
            let detail =
                format!("the write-ahead log is missing: the tables hold batches up to {durable}");
            return Err(Error::corruption(&dir, 0, detail));
        }
        let mut replay = Replay {
            store,
            dir: &dir,
            durable,
            last: durable,
            run: None,
            segments: BTreeMap::new(),
        };
        while let Some(record) = recovery.next_borrowed()? {
            replay.record(&record)?;
        }
        let segments = Arc::new(Mutex::new(std::mem::take(&mut replay.segments)));
        let cutter = Cutter { segments, remover: journal.remover() };
        let log = replay.finish(journal)?;
        inner.log_cutter.get_or_init(|| cutter.clone());
        Ok(Self {
            queue: CommitQueue::default(),
            log: Mutex::new(log),
            cutter,
            sync_micros: Recorder::default(),
            batches_synced: Recorder::default(),
        })
    }

    /// What it did.
    pub(crate) fn metrics(&self) -> WalMetrics {
        let log = self.log.lock();
        let journal = log.journal.as_ref().map(Journal::metrics).unwrap_or_default();
        drop(log);
        WalMetrics {
            bytes: journal.bytes,
            segments: journal.segments,
            segments_late: journal.segments_late,
            reserved_late: journal.reserved_late,
            sync_micros: self.sync_micros.distribution(),
            batches_synced: self.batches_synced.distribution(),
        }
    }

    /// Syncs the log and ends it.
    pub(crate) fn close(&self, store: &Store) -> Result<()> {
        let closed = self.queue.commit(&Commit { wal: self, store }, Work::Close);
        closed.map(|_no_numbers| ())
    }
}

/// The stages of a commit for one writer.
struct Commit<'a> {
    wal: &'a Wal,
    store: &'a Store,
}

type Batches<'a> = Items<'a, Work, Result<SequenceNumbers>>;
type Results = Answers<Result<SequenceNumbers>>;

impl Stages for Commit<'_> {
    type Item = Work;
    type Outcome = Result<SequenceNumbers>;
    type Logged = Logged;

    fn bytes(&self, item: &Work) -> usize {
        item.batch().map_or(0, WriteBatch::bytes)
    }

    fn wants_sync(&self, item: &Work) -> bool {
        match item {
            Work::Write { durability, .. } => *durability == Durability::Sync,
            Work::Close => true,
        }
    }

    fn log(&self, items: Batches<'_>) -> std::result::Result<Logged, Results> {
        let mut logged = Logged {
            own: SequenceNumbers::default(),
            others: Vec::new(),
            last: 0,
            batches: 0,
            freeze: Freeze::default(),
            segment: None,
            failure: None,
        };
        let mut own = true;
        let done = self.append(&items, &mut logged, |logged, numbers| {
            if std::mem::replace(&mut own, false) {
                logged.own = numbers;
            } else {
                logged.others.push(numbers);
            }
        });
        match done {
            Ok(()) => Ok(logged),
            Err(error) => Err(failed(error, &items)),
        }
    }

    fn log_more(
        &self,
        logged: &mut Logged,
        items: Batches<'_>,
    ) -> std::result::Result<(), Results> {
        let done = self.append(&items, logged, |logged, numbers| logged.others.push(numbers));
        done.map_err(|error| failed(error, &items))
    }

    fn sync(&self, logged: &mut Logged) {
        // The lock is not held while the disk works.
        let mut log = self.wal.log.lock();
        let pending = log.journal.as_mut().ok_or(Error::Closed).and_then(Journal::start_sync);
        drop(log);
        let since = self.store.inner().stopwatch();
        let synced = pending.and_then(|pending| pending.map_or(Ok(()), |pending| pending.run()));
        self.wal.sync_micros.record_time(since.map(|since| since.elapsed()));
        self.wal.batches_synced.record(logged.batches);
        if let Err(error) = synced {
            self.fail(logged, error);
        }
    }

    fn apply(&self, mut logged: Logged, items: Batches<'_>) -> Results {
        if items.iter().any(|item| matches!(item, Work::Close)) {
            let mut log = self.wal.log.lock();
            let (last, journal) = (log.last, log.journal.take());
            drop(log);
            let closed = journal.map_or(Ok(()), |journal| self.close(journal, last));
            if let Err(error) = closed {
                self.fail(&mut logged, error);
            }
        }
        let applied = match logged.failure.take() {
            Some(failure) => Err(failure),
            None if logged.batches == 0 => Ok(()),
            None => self.apply_logged(&logged, &items),
        };
        if let Some(segment) = logged.segment.filter(|_| applied.is_ok()) {
            self.store.inner().options.events.emit(|| Event::LogRolled { segment });
        }
        match applied {
            Ok(()) => Answers {
                own: Some(Ok(logged.own)),
                others: logged.others.into_iter().map(Ok).collect(),
            },
            Err(error) => failed(error, &items),
        }
    }

    fn broken(&self) -> Result<SequenceNumbers> {
        let reason = "a writer panicked while it led a group".to_owned();
        let error = Error::Poisoned { reason };
        self.store.inner().poison(&error);
        Err(error)
    }
}

impl Commit<'_> {
    /// Brings batches into the log and hands it to the operating system. With an error nothing of them is
    /// to become visible; unless the store is poisoned by it, nothing of them is in the log either.
    fn append(
        &self,
        items: &Batches<'_>,
        logged: &mut Logged,
        mut keep: impl FnMut(&mut Logged, SequenceNumbers),
    ) -> Result<()> {
        // The room on the device and in memory first: what is logged cannot be refused any more.
        self.store.inner().check_space()?;
        let full = self.store.make_room()?;
        let mut log = self.wal.log.lock();
        let log = &mut *log;
        let Some(journal) = &mut log.journal else { return Err(Error::Closed) };
        let room =
            items.iter().filter_map(Work::batch).map(|b| record_bytes(b.payload_bytes_max())).sum();
        let before = log.last;
        if room > 0 {
            let newest = journal.newest_segment();
            if full {
                // The flush that follows then leaves nothing to keep of the segment.
                logged.freeze.full = true;
                journal.end_segment();
            }
            journal
                .reserve(room, before + 1, &mut |head| {
                    head.extend_from_slice(&before.to_le_bytes())
                })
                .inspect_err(|error| self.poison_with(journal, error))?;
            if journal.newest_segment() != newest {
                logged.segment = Some(journal.newest_segment());
                // Once for each segment: what a freeze gains is known only when it is in tables.
                logged.freeze.always = journal.bytes() > self.store.inner().options.wal_max_bytes;
                self.store.inner().cut_log()?;
            }
        }
        let Some(journal) = &mut log.journal else { return Err(Error::Closed) };
        for item in items.iter() {
            let mut numbers = SequenceNumbers::default();
            if let Some(batch) = item.batch() {
                for partition in batch.partitions() {
                    if let Some(last) = log.sequences.get_mut(partition.slot()) {
                        *last += 1;
                        numbers.push(partition, *last);
                    }
                }
                batch.encode_prefix(&numbers, &mut log.prefix);
                log.last += 1;
                let parts = [&log.prefix[..], batch.encoded()];
                let appended = journal.append(kind::BATCH, log.last, &parts, &mut |_| {});
                if let Err(error) = appended {
                    self.store.inner().poison(&error);
                    return Err(error);
                }
                logged.batches += 1;
            }
            keep(logged, numbers);
        }
        if log.last > before {
            self.wal.cutter.segments.lock().insert(journal.newest_segment(), log.last);
        }
        journal.write_out().inspect_err(|error| self.store.inner().poison(error))?;
        logged.last = log.last;
        Ok(())
    }

    /// Ends the log; of batches that are all in tables nothing stays.
    fn close(&self, journal: Journal, last: u64) -> Result<()> {
        if self.store.durable_position().index < last {
            return journal.close();
        }
        journal.close_spent(last + 1, &mut |head| head.extend_from_slice(&last.to_le_bytes()))
    }

    fn poison_with(&self, journal: &Journal, error: &Error) {
        if journal.is_poisoned() {
            self.store.inner().poison(error);
        }
    }

    fn fail(&self, logged: &mut Logged, error: Error) {
        if !matches!(error, Error::Closed) {
            self.store.inner().poison(&error);
        }
        logged.failure.get_or_insert(error);
    }

    fn apply_logged(&self, logged: &Logged, items: &Batches<'_>) -> Result<()> {
        let mut run = self.store.begin_logged(logged.last, logged.freeze)?;
        let numbers = std::iter::once(&logged.own).chain(&logged.others);
        for (item, numbers) in items.iter().zip(numbers) {
            if let Some(batch) = item.batch() {
                let damaged = |error: DecodeError| {
                    let detail = format!("a batch that was just encoded does not decode: {error}");
                    Error::InvalidArgument(detail)
                };
                batch.operations().for_each_chunk(
                    numbers,
                    damaged,
                    |partition, sequence, ops| run.apply_logged(partition, sequence, ops),
                )?;
            }
        }
        run.publish()
    }
}

/// One failure for all: as it is for the first, and for the others the same as far as it can be said twice.
fn failed(error: Error, items: &Batches<'_>) -> Results {
    let mut again = for_followers(&error);
    let mut first = Some(error);
    items.answer(|| {
        Err(first.take().unwrap_or_else(|| {
            let next = for_followers(&again);
            std::mem::replace(&mut again, next)
        }))
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "whatever else went wrong ended the store")]
/// The same failure for another writer of the group: what can be tried again stays that.
fn for_followers(error: &Error) -> Error {
    match error {
        Error::Closed => Error::Closed,
        Error::NoSpace { free, needed } => Error::NoSpace { free: *free, needed: *needed },
        Error::Stalled { waited_ms, frozen, l0_runs, last } => Error::Stalled {
            waited_ms: *waited_ms,
            frozen: *frozen,
            l0_runs: *l0_runs,
            last: last.clone(),
        },
        Error::Io { op, path, source } => {
            let source = std::io::Error::new(source.kind(), source.to_string());
            Error::io(op, path, source)
        }
        Error::Poisoned { reason } => Error::Poisoned { reason: reason.clone() },
        other => Error::Poisoned { reason: other.to_string() },
    }
}

/// Brings what the log holds and the tables do not into the memtables, many batches to a run.
struct Replay<'a> {
    store: &'a Store,
    dir: &'a Path,
    /// Tables hold the batches up to here.
    durable: u64,
    /// The last batch seen.
    last: u64,
    run: Option<Run>,
    segments: BTreeMap<u64, u64>,
}

impl Replay<'_> {
    fn record(&mut self, record: &BorrowedRecord<'_>) -> Result<()> {
        let address = record.address;
        let damaged = |detail: String| {
            Error::corruption(&self.dir.join(file_name(address.segment)), address.offset, detail)
        };
        let number = record.sequence;
        match record.kind {
            kind::HEAD => {
                let before = record.payload.try_into().map(u64::from_le_bytes);
                let before = before.map_err(|_wrong_size| {
                    damaged("the head of the segment is not a number".into())
                })?;
                if before > self.last {
                    return Err(damaged(format!(
                        "batches {} to {before} are missing",
                        self.last + 1
                    )));
                }
                Ok(())
            }
            kind::BATCH => {
                self.segments.insert(address.segment, number);
                if number <= self.durable {
                    return Ok(());
                }
                if number != self.last + 1 {
                    return Err(damaged(format!(
                        "this is batch {number}, expected was {}",
                        self.last + 1
                    )));
                }
                let (numbers, operations) =
                    batch::decode(record.payload).map_err(|error| damaged(error.to_string()))?;
                if self.run.as_ref().is_some_and(Run::freeze_is_due)
                    && let Some(full) = self.run.take()
                {
                    full.publish()?;
                }
                let mut run = match self.run.take() {
                    Some(run) => run,
                    None => self.store.begin(Position { index: number, ..Position::default() })?,
                };
                for (partition, sequence) in numbers.iter() {
                    let last = run.last_sequence(partition);
                    if sequence <= last || sequence > SequenceNumber::MAX {
                        let detail = format!("number {sequence} in {partition} after {last}");
                        return Err(damaged(detail));
                    }
                }
                let broken = |error: DecodeError| damaged(error.to_string());
                operations.for_each_chunk(&numbers, broken, |partition, sequence, ops| {
                    run.apply_logged(partition, sequence, ops)
                })?;
                run.advance(number);
                self.run = Some(run);
                self.last = number;
                Ok(())
            }
            other => Err(damaged(format!("a record of unknown kind {other}"))),
        }
    }

    fn finish(self, journal: Journal) -> Result<Log> {
        if let Some(run) = self.run {
            run.publish()?;
        }
        let inner = self.store.inner();
        let partitions = 0..inner.options.partitions.len();
        Ok(Log {
            journal: Some(journal),
            last: self.last,
            sequences: partitions.map(|partition| inner.visible.sequence(partition)).collect(),
            prefix: Vec::new(),
        })
    }
}

/// The first segment with a batch above `durable`, given each segment's last batch.
fn first_needed(segments: &BTreeMap<u64, u64>, durable: u64) -> Option<u64> {
    segments.iter().find(|(_, last)| **last > durable).map(|(segment, _)| *segment)
}

/// The batch before a record, and the sequence numbers in it, if it is a batch or the head of a segment that
/// says what was before.
pub(crate) fn starts_at(header: RecordHeader, payload: &[u8]) -> Option<(u64, SequenceNumbers)> {
    match header.kind {
        kind::HEAD => {
            Some((u64::from_le_bytes(payload.try_into().ok()?), SequenceNumbers::default()))
        }
        kind::BATCH => Some((header.sequence.checked_sub(1)?, batch::decode(payload).ok()?.0)),
        _ => None,
    }
}

/// Whether there is a log in a store's directory: such a store must not be opened without it.
pub(crate) fn is_there(vfs: &dyn Vfs, dir: &Path) -> Result<bool> {
    let dir = directory(dir);
    vfs.exists(&dir).context("look for", &dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_needed_until_its_last_batch_is_in_tables() {
        let segments = BTreeMap::from([(3, 10), (4, 20), (6, 30)]);
        assert_eq!(first_needed(&segments, 9), Some(3), "batch 10 is not in tables");
        assert_eq!(first_needed(&segments, 10), Some(4), "all of segment 3 is");
        assert_eq!(first_needed(&segments, 29), Some(6), "batch 30 is not");
        assert_eq!(first_needed(&segments, 30), None, "everything is");
    }
}
