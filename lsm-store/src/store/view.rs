//! A view: reads at fixed sequence numbers, whatever is written, flushed or compacted meanwhile.

use std::ops::Bound;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::store::inner::Inner;
use crate::store::iter::{Iter, IterOptions};
use crate::store::run::unknown;
use crate::store::superversion::SuperVersion;
use crate::store::versions::Versions;
use crate::store::visible::Visible;
use crate::types::{Found, PartitionId, Position, SequenceNumber};

/// Reads at fixed sequence numbers of all partitions. Cheap to clone. While it lives, no version it sees
/// is dropped, so do not keep it for long; it keeps no files or memory alive by itself.
#[derive(Clone, Debug)]
pub struct View(Arc<Pinned>);

#[derive(Debug)]
struct Pinned {
    inner: Arc<Inner>,
    position: Position,
    /// Registered with the retention until dropped.
    sequences: Vec<u64>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.inner.retention.lock().unpin(&self.sequences);
    }
}

impl View {
    /// Fixes what is visible now.
    pub(crate) fn now(inner: Arc<Inner>) -> Self {
        let mut retention = inner.retention.lock();
        let Visible { position, sequences } = inner.visible.load();
        retention.pin(&sequences);
        drop(retention);
        Self(Arc::new(Pinned { inner, position, sequences }))
    }

    /// As [`View::now`], with another number of one partition.
    pub(crate) fn at(
        inner: Arc<Inner>,
        partition: PartitionId,
        sequence: SequenceNumber,
    ) -> Result<Self> {
        // What is visible is read and pinned under the lock that jobs take their bound under. A
        // superversion is loaded at each read, hence after this, and holds all that is visible now.
        let mut retention = inner.retention.lock();
        let Visible { position, mut sequences } = inner.visible.load();
        let slot = sequences.get_mut(partition.slot()).ok_or_else(|| unknown(partition))?;
        retention.check(partition.slot(), sequence.0, *slot)?;
        *slot = sequence.0;
        retention.pin(&sequences);
        drop(retention);
        Ok(Self(Arc::new(Pinned { inner, position, sequences })))
    }

    /// The number a partition is read at; 0 for an unknown one.
    #[must_use]
    pub fn sequence(&self, partition: PartitionId) -> SequenceNumber {
        SequenceNumber(self.number(partition.slot()))
    }

    /// The position that was visible when the view was made.
    #[must_use]
    pub fn position(&self) -> &Position {
        &self.0.position
    }

    /// The newest version of a key at the view's number.
    ///
    /// # Errors
    /// `Io` or `Corruption` of a table; `InvalidArgument` for an unknown partition.
    pub fn get(&self, partition: PartitionId, key: &[u8]) -> Result<Option<Found>> {
        let sequence = self.checked_sequence(partition)?;
        self.0.inner.superversion.load().get(partition.slot(), key, sequence)
    }

    /// [`get`](View::get) for many keys, in any order; results in the order of the keys. Keys in one block
    /// share it, so this costs less than one call per key.
    ///
    /// # Errors
    /// As [`get`](View::get): one failed key fails the call.
    pub fn multi_get(&self, partition: PartitionId, keys: &[&[u8]]) -> Result<Vec<Option<Found>>> {
        let sequence = self.checked_sequence(partition)?;
        self.0.inner.superversion.load().multi_get(partition.slot(), keys, sequence)
    }

    /// Iterates a partition within bounds.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown partition.
    pub fn iter(
        &self,
        partition: PartitionId,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
    ) -> Result<Iter> {
        self.iter_with(partition, lower, upper, IterOptions::default())
    }

    /// [`iter`](View::iter) with options.
    ///
    /// # Errors
    /// As [`iter`](View::iter).
    pub fn iter_with(
        &self,
        partition: PartitionId,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        options: IterOptions,
    ) -> Result<Iter> {
        let sequence = self.checked_sequence(partition)?;
        let superversion = self.0.inner.superversion.load();
        Ok(Iter::new(&superversion, partition.slot(), sequence, (lower, upper), options))
    }

    /// Every version that is left of the keys within bounds, at or below the view's number, deletes included.
    ///
    /// Above the retention floor ([`Store::floor`](crate::Store::floor)) that is the whole history; of what is at or below it, at
    /// least what any permitted read finds. With [`Keep::NewestOnly`](crate::Keep::NewestOnly) nothing but the newest is sure to be there.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown partition.
    pub fn versions(
        &self,
        partition: PartitionId,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
    ) -> Result<Versions> {
        let sequence = self.checked_sequence(partition)?;
        let superversion = self.0.inner.superversion.load();
        Ok(Versions::new(&superversion, partition.slot(), 0..=sequence, (lower, upper)))
    }

    /// Every version of the keys within bounds from `from` up to the view's number, deletes included: what
    /// to tell somebody who knows everything below `from`.
    ///
    /// The order is by key, and newest first within a key, not by sequence number: whoever needs the order of
    /// the writes sorts them. Tables and parts of tables whose entries are all older are not read.
    ///
    /// # Errors
    /// `Compacted` with the smallest number that can be asked for, if that is above `from`: what is at or below the
    /// retention floor is not complete, nor is anything with [`Keep::NewestOnly`](crate::Keep::NewestOnly). `InvalidArgument` for
    /// an unknown partition.
    pub fn changes(
        &self,
        partition: PartitionId,
        from: SequenceNumber,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
    ) -> Result<Versions> {
        let sequence = self.checked_sequence(partition)?;
        let inner = &self.0.inner;
        // First what is read, then the floor: jobs that dropped something of it took their bound, which is
        // at or below the floor, before what they made could be loaded.
        let superversion = inner.superversion.load_full();
        let visible = inner.visible.load();
        let floor =
            inner.retention.lock().floor(partition.slot(), visible.sequence(partition.slot()));
        if from.0 <= floor && floor > 0 {
            return Err(Error::Compacted { asked: from.0, floor: floor + 1 });
        }
        Ok(Versions::new(&superversion, partition.slot(), from.0..=sequence, (lower, upper)))
    }

    /// What the store holds now.
    pub(crate) fn superversion(&self) -> Arc<SuperVersion> {
        self.0.inner.superversion.load_full()
    }

    /// The number a partition (by slot) is read at; 0 for an unknown one.
    pub(crate) fn number(&self, slot: usize) -> u64 {
        self.0.sequences.get(slot).copied().unwrap_or(0)
    }

    fn checked_sequence(&self, partition: PartitionId) -> Result<u64> {
        self.0.sequences.get(partition.slot()).copied().ok_or_else(|| unknown(partition))
    }
}
