//! A view: reads at fixed sequence numbers, whatever is written, flushed or compacted meanwhile.

use std::ops::Bound;
use std::sync::Arc;

use crate::error::Result;
use crate::store::inner::Inner;
use crate::store::iter::Iter;
use crate::store::run::unknown;
use crate::store::superversion::Visible;
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
        let visible = inner.visible.load_full();
        retention.pin(&visible.sequences);
        drop(retention);
        Self::pinned(inner, &visible, visible.sequences.clone())
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
        let visible = inner.visible.load_full();
        let mut sequences = visible.sequences.clone();
        let slot = sequences.get_mut(partition.slot()).ok_or_else(|| unknown(partition))?;
        retention.check(partition.slot(), sequence.0, *slot)?;
        *slot = sequence.0;
        retention.pin(&sequences);
        drop(retention);
        Ok(Self::pinned(inner, &visible, sequences))
    }

    fn pinned(inner: Arc<Inner>, visible: &Visible, sequences: Vec<u64>) -> Self {
        Self(Arc::new(Pinned { inner, position: visible.position.clone(), sequences }))
    }

    /// The number a partition is read at; 0 for an unknown one.
    #[must_use]
    pub fn sequence(&self, partition: PartitionId) -> SequenceNumber {
        SequenceNumber(self.0.sequences.get(partition.slot()).copied().unwrap_or(0))
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

    /// [`get`](View::get) for many keys; results in the order of the keys.
    ///
    /// # Errors
    /// As [`get`](View::get): one failed key fails the call.
    pub fn multi_get(&self, partition: PartitionId, keys: &[&[u8]]) -> Result<Vec<Option<Found>>> {
        let sequence = self.checked_sequence(partition)?;
        let superversion = self.0.inner.superversion.load();
        keys.iter().map(|key| superversion.get(partition.slot(), key, sequence)).collect()
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
        let sequence = self.checked_sequence(partition)?;
        let merge = self.0.inner.superversion.load().merge(partition.slot());
        Ok(Iter::new(merge, sequence, lower, upper))
    }

    fn checked_sequence(&self, partition: PartitionId) -> Result<u64> {
        self.0.sequences.get(partition.slot()).copied().ok_or_else(|| unknown(partition))
    }
}
