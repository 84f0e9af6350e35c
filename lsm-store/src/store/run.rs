//! A run: batches applied one after the other that become visible together.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::MutexGuard;

use crate::error::{Error, Result};
use crate::internal_key::SEQUENCE_ABOVE_ALL;
use crate::memtable::MemSet;
use crate::options::Executor;
use crate::store::Store;
use crate::store::inner::{Inner, State};
use crate::store::iter::{Iter, IterOptions};
use crate::types::{
    Found, MAX_EXTRA_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, Op, PartitionId, Position,
    SequenceNumber,
};

/// Batches that become visible together by [`publish`](Run::publish). One run is open at a time.
///
/// Reads of a run see the newest versions, its own batches included. A run that is dropped without
/// having been published poisons the store: what it applied cannot be taken back.
pub struct Run {
    inner: Arc<Inner>,
    active: Arc<MemSet>,
    position: Position,
    /// Per partition the last number applied, this run included.
    sequences: Vec<u64>,
    /// Bytes of keys and values applied.
    bytes: u64,
    published: bool,
}

/// Shows how far it goes, and not what it holds.
impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("position", &self.position)
            .field("sequences", &self.sequences)
            .finish_non_exhaustive()
    }
}

impl Run {
    /// Opens a run; the caller has made sure that none is open.
    pub(super) fn begin(
        inner: &Arc<Inner>,
        state: &mut MutexGuard<'_, State>,
        position: Position,
    ) -> Self {
        state.run_open = true;
        Self {
            inner: Arc::clone(inner),
            active: Arc::clone(&state.active),
            position,
            sequences: std::mem::take(&mut state.sequences),
            bytes: 0,
            published: false,
        }
    }

    /// The position the run moves the store to.
    #[must_use]
    pub const fn position(&self) -> &Position {
        &self.position
    }

    /// Replaces [`Position::extra`]: often it is known only when the run was applied.
    ///
    /// # Errors
    /// `TooLarge` above [`MAX_EXTRA_BYTES`].
    pub fn set_extra(&mut self, extra: Vec<u8>) -> Result<()> {
        check_extra(&extra)?;
        self.position.extra = extra;
        Ok(())
    }

    /// Applies a batch to a partition, under a number above the partition's last. All operations share
    /// the number; of several on one key the last one wins.
    ///
    /// # Errors
    /// `AlreadyApplied` if the number is not above the last; `TooLarge` for a key or value above its
    /// limit; `InvalidArgument` for an unknown partition or a number above [`SequenceNumber::MAX`];
    /// `Poisoned`, `Closed`. With any of them nothing of the batch was applied, and the run goes on.
    pub fn apply(
        &mut self,
        partition: PartitionId,
        sequence: SequenceNumber,
        ops: &[Op<'_>],
    ) -> Result<()> {
        let last = self.sequences.get_mut(partition.slot()).ok_or_else(|| unknown(partition))?;
        if sequence.0 <= *last {
            return Err(Error::AlreadyApplied {
                what: "sequence number",
                asked: sequence.0,
                last: *last,
            });
        }
        if sequence > SequenceNumber::MAX {
            return Err(Error::InvalidArgument(format!(
                "sequence number {sequence} is above 56 bits"
            )));
        }
        for op in ops {
            check_size("key", op.key().len(), MAX_KEY_BYTES)?;
            match op {
                Op::Put { value, .. } => check_size("value", value.len(), MAX_VALUE_BYTES)?,
                Op::Delete { .. } => {}
            }
        }
        self.inner.check_writable()?;
        *last = sequence.0;
        self.bytes += ops.iter().map(|op| op.bytes() as u64).sum::<u64>();
        self.active.apply(partition.slot(), sequence.0, ops);
        Ok(())
    }

    /// Applies operations that the store's own log holds under this number: all of them, or some of them if
    /// more follow with the same number.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown partition.
    pub(crate) fn apply_logged(
        &mut self,
        partition: PartitionId,
        sequence: SequenceNumber,
        ops: &[Op<'_>],
    ) -> Result<()> {
        let last = self.sequences.get_mut(partition.slot()).ok_or_else(|| unknown(partition))?;
        assert!(*last <= sequence.0, "numbers of {partition} fall from {last} to {sequence}");
        *last = sequence.0;
        self.bytes += ops.iter().map(|op| op.bytes() as u64).sum::<u64>();
        self.active.apply(partition.slot(), sequence.0, ops);
        Ok(())
    }

    /// Moves the run to a later position than it was begun with.
    pub(crate) fn advance(&mut self, index: u64) {
        self.position.index = index;
    }

    /// The newest version of a key, the run's own batches included.
    ///
    /// # Errors
    /// `Io` or `Corruption` of a table; `InvalidArgument` for an unknown partition.
    pub fn get(&self, partition: PartitionId, key: &[u8]) -> Result<Option<Found>> {
        self.check_partition(partition)?;
        self.inner.superversion.load().get(partition.slot(), key, SEQUENCE_ABOVE_ALL)
    }

    /// [`get`](Run::get) for many keys; results in the order of the keys.
    ///
    /// # Errors
    /// As [`get`](Run::get): one failed key fails the call.
    pub fn multi_get(&self, partition: PartitionId, keys: &[&[u8]]) -> Result<Vec<Option<Found>>> {
        self.check_partition(partition)?;
        self.inner.superversion.load().multi_get(partition.slot(), keys, SEQUENCE_ABOVE_ALL)
    }

    /// Iterates the newest versions within bounds, with the run's own batches up to now.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown partition.
    pub fn iter(
        &self,
        partition: PartitionId,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
    ) -> Result<Iter> {
        self.check_partition(partition)?;
        let (slot, sequence) = (partition.slot(), self.last_sequence(partition).0);
        let superversion = self.inner.superversion.load();
        Ok(Iter::new(&superversion, slot, sequence, (lower, upper), IterOptions::default()))
    }

    /// The last number applied to a partition, this run included.
    #[must_use]
    pub fn last_sequence(&self, partition: PartitionId) -> SequenceNumber {
        SequenceNumber(self.sequences.get(partition.slot()).copied().unwrap_or(0))
    }

    /// Whether the memtables will be frozen when the next run begins: what must be in tables together
    /// with this run's position has to be applied now.
    #[must_use]
    pub fn freeze_is_due(&self) -> bool {
        self.inner.freeze_is_due(&self.active)
    }

    /// Makes all batches visible at once, together with the position. Nothing is durable by this.
    ///
    /// # Errors
    /// `Poisoned`, `Closed`: nothing became visible.
    ///
    /// # Panics
    /// If the visible position would fall, which the store excludes when it begins a run.
    pub fn publish(mut self) -> Result<()> {
        let mut state = self.inner.state.lock();
        state.check_writable()?;
        let (before, now) = (self.inner.visible.index(), self.position.index);
        assert!(before <= now, "published position falls from {before} to {now}");
        self.inner.visible.publish(&self.position, &self.sequences);
        state.sequences = std::mem::take(&mut self.sequences);
        self.published = true;
        self.end(state);
        self.inner.counters.runs.add(1);
        self.inner.counters.user_bytes.add(self.bytes);
        Ok(())
    }

    fn end(&self, mut state: MutexGuard<'_, State>) {
        state.run_open = false;
        let waited_for = state.run_waiters > 0;
        drop(state);
        if waited_for {
            self.inner.changed.notify_all();
        }
    }

    fn check_partition(&self, partition: PartitionId) -> Result<()> {
        if partition.slot() < self.sequences.len() { Ok(()) } else { Err(unknown(partition)) }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        let position = self.position.index;
        let reason =
            format!("the run at position {position} was dropped without having been published");
        self.inner.poison(&Error::Poisoned { reason });
        self.end(self.inner.state.lock());
    }
}

/// Which memtables are to be frozen before batches of the store's own log are applied: decided when they are
/// logged, so that a segment of the log can end where a memtable does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Freeze {
    /// Full ones.
    pub(crate) full: bool,
    /// Others, too: the log is too large.
    pub(crate) always: bool,
}

impl Store {
    /// Waits as far as the pressure asks for it, and, if the memtables are full and no more may be frozen, until
    /// they may: what is logged next must find room. Called before it is, by one thread at a time. Returns whether
    /// they are full.
    ///
    /// # Errors
    /// `Stalled`, `Poisoned`, `Closed`.
    pub(crate) fn make_room(&self) -> Result<bool> {
        let inner = self.inner();
        inner.check_writable()?;
        if let Some(delay) = inner.delay_due() {
            inner.wait_out(delay)?;
        }
        if !inner.freeze_is_due(&inner.superversion.load().active) {
            return Ok(false);
        }
        let state = inner.state.lock();
        state.check_writable()?;
        drop(self.wait_for_room(state)?);
        Ok(true)
    }

    /// Begins a run of batches that are in the store's own log, hence cannot be refused any more: full
    /// memtables are frozen if they may be, and else take these batches, too. One call at a time.
    ///
    /// # Errors
    /// `Poisoned`, `Closed`.
    pub(crate) fn begin_logged(&self, index: u64, freeze: Freeze) -> Result<Run> {
        let inner = self.inner();
        let mut state = inner.state.lock();
        // Only a range that is being replaced excludes runs here.
        inner.wait_for_run(&mut state);
        state.check_writable()?;
        let due = freeze.always || (freeze.full && inner.freeze_is_due(&state.active));
        if due && state.frozen.len() < inner.options.frozen_max {
            inner.freeze(&mut state);
            if inner.executor == Executor::Inline {
                drop(state);
                // A failed job is recorded, and tried again at the next freeze.
                let _recorded = inner.work_inline().is_err();
                state = inner.state.lock();
                state.check_writable()?;
            } else {
                inner.ring_flush();
            }
        }
        Ok(Run::begin(self.inner_arc(), &mut state, Position { index, ..Position::default() }))
    }
}

pub(crate) fn unknown(partition: PartitionId) -> Error {
    Error::InvalidArgument(format!("the store has no {partition}"))
}

pub(crate) fn check_extra(extra: &[u8]) -> Result<()> {
    check_size("extra of a position", extra.len(), MAX_EXTRA_BYTES)
}

fn check_size(what: &'static str, size: usize, limit: usize) -> Result<()> {
    if size <= limit {
        Ok(())
    } else {
        Err(Error::TooLarge { what, size: size as u64, limit: limit as u64 })
    }
}
