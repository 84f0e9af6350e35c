//! The write-ahead log of a stand-alone store: group commit, replay, removal of what is in tables.
//!
//! ```text
//! write ─► queue ─► the first waiting writer leads: append all ─► one sync ─► apply all ─► publish ─► wake all
//! ```
//!
//! * One batch is one record; its number is the position's index, counted by the log without gaps. Order
//!   in the log, order of numbers and order of visibility are the same.
//! * Nothing becomes visible before it is in the log, and synced if any writer of its group asked for it.
//! * The first failure of the log poisons the store, before anybody is woken.
//! * A segment is removed when everything in it is in tables. The head of a segment says how many batches
//!   came before, so a missing piece of the log is noticed.

pub(crate) mod batch;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

pub use batch::{MAX_BATCH_BYTES, WriteBatch};

use crate::error::{Error, IoContext, Result};
use crate::journal::record::kind;
use crate::journal::segment::file_name;
use crate::journal::{Journal, JournalOptions, Record, RecordAddress};
use crate::store::Store;
use crate::types::{PartitionId, Position, SequenceNumber};
use crate::vfs::Vfs;

/// A group takes no more than this, but always one batch.
const GROUP_BYTES: usize = 1 << 20;

/// What must have happened to a batch before its write returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is on disk: it survives the end of the machine.
    Sync,
    /// It was handed to the operating system: it survives the end of the process. After a loss of power a
    /// prefix of the buffered batches is there, never one without those before it.
    Buffered,
}

/// The sequence numbers that a batch was given, one for each partition it touches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SequenceNumbers(Vec<(PartitionId, SequenceNumber)>);

impl SequenceNumbers {
    /// The number given in a partition, if the batch touched it.
    #[must_use]
    pub fn get(&self, partition: PartitionId) -> Option<SequenceNumber> {
        self.0.iter().find(|(other, _)| *other == partition).map(|(_, sequence)| *sequence)
    }
}

impl Store {
    /// Writes a batch into the store's own log and makes it visible. Many threads may write at once: what
    /// waits while one of them syncs is written and synced together next.
    ///
    /// An empty batch with [`Durability::Sync`] syncs everything buffered before it.
    ///
    /// # Errors
    /// `InvalidArgument` for a store without a log of its own or an unknown partition; `Stalled` if
    /// background work does not keep up: in both cases nothing was written. After `Io` the store is
    /// poisoned, and whether the batch is in the log is known when it is opened again. `Poisoned`, `Closed`.
    pub fn write(&self, batch: WriteBatch, durability: Durability) -> Result<SequenceNumbers> {
        let Some(wal) = self.wal() else {
            let detail = "the caller's log is the log of this store: use runs, not `write`";
            return Err(Error::InvalidArgument(detail.to_owned()));
        };
        for partition in batch.partitions() {
            self.check_partition(partition)?;
        }
        wal.write(self, batch, durability)
    }
}

/// The directory of the log in a store's directory.
pub(crate) fn directory(dir: &Path) -> PathBuf {
    dir.join("wal")
}

/// The log of an open store.
#[derive(Debug)]
pub(crate) struct Wal {
    queue: Mutex<Queue>,
    /// A group is done.
    done: Condvar,
    /// Locked by the leader only, and by the end of the store.
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Arc<Ticket>>,
    leading: bool,
}

/// A batch that waits for its group.
#[derive(Debug)]
struct Ticket {
    batch: WriteBatch,
    durability: Durability,
    outcome: Mutex<Option<Result<SequenceNumbers>>>,
}

#[derive(Debug)]
struct Log {
    /// None once the store is closed.
    journal: Option<Journal>,
    /// The number of the last batch in the log.
    last: u64,
    /// For each segment the number of its last batch.
    segments: BTreeMap<u64, u64>,
    /// Segments below this durable position were looked at for removal.
    removed_for: u64,
}

/// Leads a group; whatever happens, the others are told and somebody else can lead.
struct Lead<'a> {
    wal: &'a Wal,
    group: Vec<Arc<Ticket>>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        for ticket in &self.group {
            ticket.outcome.lock().get_or_insert_with(|| {
                Err(Error::Poisoned { reason: "the writer that led the group panicked".to_owned() })
            });
        }
        self.wal.queue.lock().leading = false;
        self.wal.done.notify_all();
    }
}

impl Wal {
    /// Opens the log of `store`, which holds what is in tables, and replays the rest into it.
    pub(crate) fn open(store: &Store) -> Result<Self> {
        let inner = store.inner();
        let dir = directory(&inner.dir);
        let options = JournalOptions {
            segment_bytes: inner.options.wal_segment_bytes,
            ..JournalOptions::new(inner.options.store_id, inner.catalog.lock().epoch_seed())
        };
        let durable = store.durable_position().index;
        let (journal, recovery) = Journal::open(Arc::clone(&inner.vfs), &dir, options)?;
        if recovery.segments() == 0 && durable > 0 && !inner.is_fresh_copy() {
            let detail =
                format!("the write-ahead log is missing: the tables hold batches up to {durable}");
            return Err(Error::corruption(&dir, 0, detail));
        }
        let mut log =
            Log { journal: None, last: durable, segments: BTreeMap::new(), removed_for: 0 };
        for item in recovery {
            let (address, record) = item?;
            log.replay(store, &dir, durable, address, &record)?;
        }
        log.journal = Some(journal);
        Ok(Self { queue: Mutex::default(), done: Condvar::new(), log: Mutex::new(log) })
    }

    /// Writes a batch: in the log, then visible. Waits until both is done.
    pub(crate) fn write(
        &self,
        store: &Store,
        batch: WriteBatch,
        durability: Durability,
    ) -> Result<SequenceNumbers> {
        let ticket = Arc::new(Ticket { batch, durability, outcome: Mutex::new(None) });
        let mut queue = self.queue.lock();
        queue.waiting.push_back(Arc::clone(&ticket));
        loop {
            let outcome = ticket.outcome.lock().take();
            if let Some(outcome) = outcome {
                return outcome;
            }
            if queue.leading {
                self.done.wait(&mut queue);
                continue;
            }
            queue.leading = true;
            let group = take_group(&mut queue.waiting);
            drop(queue);
            let lead = Lead { wal: self, group };
            let outcome = self.log.lock().commit(store, &lead.group);
            deliver(&lead.group, outcome);
            drop(lead);
            queue = self.queue.lock();
        }
    }

    /// Syncs the log and ends it.
    pub(crate) fn close(&self) -> Result<()> {
        let journal = self.log.lock().journal.take();
        match journal {
            Some(journal) => journal.close(),
            None => Ok(()),
        }
    }
}

/// The front of the queue, as much as goes together.
fn take_group(waiting: &mut VecDeque<Arc<Ticket>>) -> Vec<Arc<Ticket>> {
    let mut bytes = 0;
    let mut group = Vec::new();
    while let Some(next) = waiting.front() {
        bytes += next.batch.bytes();
        if bytes > GROUP_BYTES && !group.is_empty() {
            break;
        }
        group.extend(waiting.pop_front());
    }
    group
}

fn deliver(group: &[Arc<Ticket>], outcome: Result<Vec<SequenceNumbers>>) {
    match outcome {
        Ok(numbers) => {
            for (ticket, numbers) in group.iter().zip(numbers) {
                *ticket.outcome.lock() = Some(Ok(numbers));
            }
        }
        Err(error) => {
            for ticket in group.iter().skip(1) {
                *ticket.outcome.lock() = Some(Err(for_followers(&error)));
            }
            if let Some(first) = group.first() {
                *first.outcome.lock() = Some(Err(error));
            }
        }
    }
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
        Error::Poisoned { reason } => Error::Poisoned { reason: reason.clone() },
        other => Error::Poisoned { reason: other.to_string() },
    }
}

impl Log {
    /// Brings a group into the log, then into the memtables, then in sight. With an error nothing of it
    /// is visible; whether it is in the log is then unknown, unless the store is still usable.
    fn commit(&mut self, store: &Store, group: &[Arc<Ticket>]) -> Result<Vec<SequenceNumbers>> {
        let batches = group.iter().filter(|ticket| !ticket.batch.is_empty()).count() as u64;
        let sync = group.iter().any(|ticket| ticket.durability == Durability::Sync);
        let Some(journal) = &mut self.journal else { return Err(Error::Closed) };
        if batches == 0 {
            // Nothing to write, but perhaps somebody waits for what was buffered before.
            store.inner().state.lock().check_writable()?;
            let synced = if sync { journal.sync() } else { Ok(()) };
            return match synced {
                Ok(()) => Ok(group.iter().map(|_| SequenceNumbers::default()).collect()),
                Err(error) => {
                    store.inner().poison(&error);
                    Err(error)
                }
            };
        }
        // The room on the device and in memory first: if there is none, nothing has happened.
        store.inner().check_space()?;
        let position = Position { index: self.last + batches, ..Position::default() };
        let mut run = store.begin(position)?;
        let mut numbers = Vec::with_capacity(group.len());
        let mut payloads = Vec::with_capacity(group.len());
        let mut next: BTreeMap<PartitionId, u64> = BTreeMap::new();
        let mut last = self.last;
        let logged = group.iter().try_for_each(|ticket| {
            let given: Vec<_> = ticket
                .batch
                .partitions()
                .map(|partition| {
                    let next =
                        next.entry(partition).or_insert_with(|| run.last_sequence(partition).0);
                    *next += 1;
                    (partition, SequenceNumber(*next))
                })
                .collect();
            if !ticket.batch.is_empty() {
                let prefix = ticket.batch.prefix(&given);
                let before = last;
                last += 1;
                let parts = [&prefix[..], ticket.batch.operations()];
                let address = journal.append(kind::BATCH, last, &parts, &mut |head| {
                    head.extend_from_slice(&before.to_le_bytes())
                })?;
                self.segments.insert(address.segment, last);
                payloads.push(parts.concat());
            }
            numbers.push(SequenceNumbers(given));
            Ok(())
        });
        let logged = logged.and_then(|()| if sync { journal.sync() } else { journal.write_out() });
        if let Err(error) = logged {
            // Before the run is dropped, whose own reason would hide this one; and before anybody is woken.
            store.inner().poison(&error);
            return Err(error);
        }
        for payload in &payloads {
            let shares = batch::decode(payload).map_err(|error| {
                Error::InvalidArgument(format!(
                    "a batch that was just encoded does not decode: {error}"
                ))
            })?;
            for share in shares {
                run.apply(share.partition, share.sequence, &share.ops)?;
            }
        }
        run.publish()?;
        self.last = last;
        // The batches are written; what goes wrong from here on is for the next ones.
        let _poisoned = self.remove_segments(store).is_err();
        Ok(numbers)
    }

    /// Removes the segments whose batches are all in tables.
    fn remove_segments(&mut self, store: &Store) -> Result<()> {
        let durable = store.durable_position().index;
        let Some(journal) = &mut self.journal else { return Err(Error::Closed) };
        if durable <= self.removed_for {
            return Ok(());
        }
        self.removed_for = durable;
        let first_kept =
            first_needed(&self.segments, durable).unwrap_or_else(|| journal.newest_segment());
        if let Err(error) = journal.remove_segments_below(first_kept) {
            store.inner().poison(&error);
            return Err(error);
        }
        let oldest = journal.oldest_segment();
        self.segments.retain(|segment, _| *segment >= oldest);
        Ok(())
    }

    fn replay(
        &mut self,
        store: &Store,
        dir: &Path,
        durable: u64,
        address: RecordAddress,
        record: &Record,
    ) -> Result<()> {
        let file = dir.join(file_name(address.segment));
        let damaged = |detail: String| Error::corruption(&file, address.offset, detail);
        let number = record.sequence;
        match record.kind {
            kind::HEAD => {
                let before = record.payload[..].try_into().map(u64::from_le_bytes);
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
                if number <= durable {
                    return Ok(());
                }
                if number != self.last + 1 {
                    return Err(damaged(format!(
                        "this is batch {number}, expected was {}",
                        self.last + 1
                    )));
                }
                let shares =
                    batch::decode(&record.payload).map_err(|error| damaged(error.to_string()))?;
                let mut run = store.begin(Position { index: number, ..Position::default() })?;
                for share in shares {
                    run.apply(share.partition, share.sequence, &share.ops)?;
                }
                run.publish()?;
                self.last = number;
                Ok(())
            }
            other => Err(damaged(format!("a record of unknown kind {other}"))),
        }
    }
}

/// The first segment with a batch above `durable`, given each segment's last batch.
fn first_needed(segments: &BTreeMap<u64, u64>, durable: u64) -> Option<u64> {
    segments.iter().find(|(_, last)| **last > durable).map(|(segment, _)| *segment)
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
