//! API signatures; bodies follow.
#![expect(missing_docs, clippy::todo, reason = "bodies follow in the next commits")]

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::options::{Executor, Options};
use crate::types::{Found, Op, PartitionId, Position, SequenceNumber};
use crate::vfs::Vfs;

#[derive(Clone, Debug)]
pub struct Store(());

/// A run of batches that become visible together. Dropped unpublished it poisons the store.
#[derive(Debug)]
pub struct Run(());

/// Reads at fixed sequence numbers of all partitions.
#[derive(Clone, Debug)]
pub struct View(());

#[derive(Debug)]
pub struct Iter(());

#[derive(Clone, Debug)]
pub struct Metrics(());

#[derive(Clone, Debug)]
pub struct VerifyReport(());

impl Store {
    pub fn open(
        _vfs: Arc<dyn Vfs>,
        _dir: &Path,
        _options: Options,
        _executor: Executor,
    ) -> Result<Self> {
        todo!()
    }
    /// `position.index` must be above the last run's. Waits (bounded) for background work if too much is pending.
    pub fn begin_run(&self, _position: Position) -> Result<Run> {
        todo!()
    }
    /// The position up to which everything is in tables: replay starts after it.
    pub fn durable_position(&self) -> Position {
        todo!()
    }
    /// The position of the last published run.
    pub fn visible_position(&self) -> Position {
        todo!()
    }
    /// The newest published sequence number of a partition.
    pub fn last_sequence(&self, _partition: PartitionId) -> SequenceNumber {
        todo!()
    }
    /// Newest published version (no view needed).
    pub fn get(&self, _partition: PartitionId, _key: &[u8]) -> Result<Option<Found>> {
        todo!()
    }
    /// Freezes and waits until everything published is in tables; an empty flush still moves the position.
    /// `InvalidArgument` while a run is open.
    pub fn flush(&self) -> Result<Position> {
        todo!()
    }
    /// Freezes and lets the executor flush, without waiting (Threads) or right now (Inline).
    pub fn start_flush(&self) -> Result<()> {
        todo!()
    }
    /// Whether the next `begin_run` will freeze the memtables (so: write dirty state in this run).
    pub fn freeze_is_due(&self) -> bool {
        todo!()
    }
    pub fn view(&self) -> View {
        todo!()
    }
    /// A view whose number of `partition` is `sequence`; other partitions as of now.
    /// `Compacted` below the floor, `FutureSequence` above the newest published one.
    pub fn view_at(&self, _partition: PartitionId, _sequence: SequenceNumber) -> Result<View> {
        todo!()
    }
    pub fn set_floor(&self, _partition: PartitionId, _sequence: SequenceNumber) -> Result<()> {
        todo!()
    }
    pub fn floor(&self, _partition: PartitionId) -> SequenceNumber {
        todo!()
    }
    pub fn metrics(&self) -> Metrics {
        todo!()
    }
    /// Reads and checks everything: manifest against files, every block, order, bounds, counts, filters, levels.
    pub fn verify(&self) -> Result<VerifyReport> {
        todo!()
    }
    /// Ends background work and releases the directory; what is not flushed is for the caller's log to replay.
    pub fn close(self) -> Result<()> {
        todo!()
    }
}

impl Run {
    pub fn position(&self) -> &Position {
        todo!()
    }
    /// `sequence` must be above the partition's last. All operations share it; of several on one key the last wins.
    pub fn apply(
        &mut self,
        _partition: PartitionId,
        _sequence: SequenceNumber,
        _ops: &[Op<'_>],
    ) -> Result<()> {
        todo!()
    }
    /// The newest version, this run's own included.
    pub fn get(&self, _partition: PartitionId, _key: &[u8]) -> Result<Option<Found>> {
        todo!()
    }
    /// Results in the order of `keys`.
    pub fn multi_get(
        &self,
        _partition: PartitionId,
        _keys: &[&[u8]],
    ) -> Result<Vec<Option<Found>>> {
        todo!()
    }
    /// Range over the newest versions, this run's own up to now included.
    pub fn iter(
        &self,
        _partition: PartitionId,
        _lower: Bound<&[u8]>,
        _upper: Bound<&[u8]>,
    ) -> Result<Iter> {
        todo!()
    }
    /// The last sequence number applied to a partition, this run included.
    pub fn last_sequence(&self, _partition: PartitionId) -> SequenceNumber {
        todo!()
    }
    /// Replaces the `extra` of the run's position; it is often known only after the run was applied.
    pub fn set_extra(&mut self, _extra: Vec<u8>) -> Result<()> {
        todo!()
    }
    pub fn publish(self) -> Result<()> {
        todo!()
    }
}

impl View {
    pub fn sequence(&self, _partition: PartitionId) -> SequenceNumber {
        todo!()
    }
    pub fn position(&self) -> &Position {
        todo!()
    }
    pub fn get(&self, _partition: PartitionId, _key: &[u8]) -> Result<Option<Found>> {
        todo!()
    }
    /// Results in the order of `keys`.
    pub fn multi_get(
        &self,
        _partition: PartitionId,
        _keys: &[&[u8]],
    ) -> Result<Vec<Option<Found>>> {
        todo!()
    }
    pub fn iter(
        &self,
        _partition: PartitionId,
        _lower: Bound<&[u8]>,
        _upper: Bound<&[u8]>,
    ) -> Result<Iter> {
        todo!()
    }
}

/// Moves return whether there is an entry; an error never looks like the end.
impl Iter {
    pub fn seek_to_first(&mut self) -> Result<bool> {
        todo!()
    }
    pub fn seek_to_last(&mut self) -> Result<bool> {
        todo!()
    }
    /// First key at or after `key`.
    pub fn seek(&mut self, _key: &[u8]) -> Result<bool> {
        todo!()
    }
    /// Last key at or before `key`.
    pub fn seek_for_prev(&mut self, _key: &[u8]) -> Result<bool> {
        todo!()
    }
    /// On a fresh iterator: the first key.
    #[expect(clippy::should_implement_trait, reason = "moves both ways and can fail")]
    pub fn next(&mut self) -> Result<bool> {
        todo!()
    }
    /// On a fresh iterator: the last key.
    pub fn prev(&mut self) -> Result<bool> {
        todo!()
    }
    pub fn set_bounds(&mut self, _lower: Bound<&[u8]>, _upper: Bound<&[u8]>) {
        todo!()
    }
    pub fn valid(&self) -> bool {
        todo!()
    }
    /// Empty when not valid; likewise the others.
    pub fn key(&self) -> &[u8] {
        todo!()
    }
    pub fn value(&self) -> &[u8] {
        todo!()
    }
    pub fn value_bytes(&self) -> Bytes {
        todo!()
    }
    pub fn sequence(&self) -> SequenceNumber {
        todo!()
    }
}
