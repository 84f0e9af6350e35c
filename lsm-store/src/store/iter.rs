//! Iterates the newest visible versions of a partition, both ways, within bounds.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::cache::BlockCache;
use crate::error::{Error, Result};
use crate::internal_key::{Kind, SEQUENCE_ABOVE_ALL, SEQUENCE_BELOW_ALL};
use crate::iter::InternalIter;
use crate::iter::bounds::{Bounds, SharedBounds};
use crate::iter::merge::MergeIter;
use crate::iter::reading::{FillCache, Reading};
use crate::perf::{self, Count};
use crate::reads::ReadCount;
use crate::store::superversion::SuperVersion;
use crate::store::view::View;
use crate::types::SequenceNumber;

/// After passing this many versions that do not count, a search is cheaper than more steps.
const STEPS_BEFORE_SEARCH: usize = 8;

/// Keys with their values at a fixed sequence number, in order, within bounds.
///
/// Moves return whether there is an entry. After an error the iterator stands nowhere, and only a seek
/// brings it back: an error never looks like the end. It keeps the memtables and tables it reads alive,
/// so do not keep it for long.
pub struct Iter {
    merge: MergeIter,
    partition: usize,
    options: IterOptions,
    /// Of the superversion it reads.
    generation: u64,
    sequence: u64,
    bounds: SharedBounds,
    place: Place,
    /// The key of the entry, where the merge does not stand on it; otherwise scratch.
    key: Vec<u8>,
    entry_sequence: u64,
    value: Bytes,
    /// Where reads are counted.
    cache: Arc<BlockCache>,
}

/// How an iterator reads. [`IterOptions::default`] is right for most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct IterOptions {
    /// Whether blocks that were not in the cache are kept there.
    pub fill_cache: FillCache,
}

impl IterOptions {
    /// These options with another [`fill_cache`](IterOptions::fill_cache).
    #[must_use]
    pub const fn fill_cache(self, fill_cache: FillCache) -> Self {
        Self { fill_cache }
    }
}

/// Where an iterator stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Never moved, or bounds changed since.
    Fresh,
    /// On an entry, the newest visible of its key; so is the merge, which goes forward.
    Forward,
    /// On an entry, the newest of its key; so is the merge, which goes backward.
    Backward,
    /// On an entry; the merge, which goes backward, is before all versions of its key.
    BeforeKey,
    /// Past either end.
    End,
    /// A move failed.
    Failed,
}

/// Shows how it stands, and not where: keys and values are the user's.
impl fmt::Debug for Iter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter")
            .field("sequence", &self.sequence)
            .field("valid", &self.valid())
            .finish_non_exhaustive()
    }
}

impl Iter {
    pub(crate) fn new(
        superversion: &SuperVersion,
        partition: usize,
        sequence: u64,
        (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
        options: IterOptions,
    ) -> Self {
        let bounds = Bounds::shared(lower, upper);
        let mut merge = superversion.merge(partition, Reading::by_reader(options.fill_cache));
        if bounds.is_some() {
            merge.set_bounds(bounds.clone());
        }
        Self {
            merge,
            partition,
            options,
            generation: superversion.generation,
            sequence,
            bounds,
            place: Place::Fresh,
            key: Vec::new(),
            entry_sequence: 0,
            value: Bytes::new(),
            cache: Arc::clone(&superversion.cache),
        }
    }

    /// Changes the bounds. The iterator then stands nowhere, as if new; it keeps what it has read, so this
    /// is cheaper than a new one.
    pub fn set_bounds(&mut self, lower: Bound<&[u8]>, upper: Bound<&[u8]>) {
        self.bounds = Bounds::shared(lower, upper);
        self.merge.set_bounds(self.bounds.clone());
        self.place = Place::Fresh;
    }

    /// How often memtables were frozen and tables replaced since the iterator began to read: 0 means that
    /// it holds nothing but what the store itself holds, more that it may keep memory and files alive
    /// that the store has given up. `view` is any view of the same store.
    ///
    /// There is no clock in it, so that it is the same in every run of the inline executor.
    #[must_use]
    pub fn age(&self, view: &View) -> u64 {
        view.superversion().generation.saturating_sub(self.generation)
    }

    /// Gives up the memtables and tables it holds, and goes on with those of now, as of `view`: the same one,
    /// for a walk that takes long, or a newer one of the same store. Bounds stay. An iterator on a key
    /// stands on it again, or, if the view does not see it, on the next one in the direction of its last move.
    ///
    /// Returns whether it stands on an entry.
    ///
    /// # Errors
    /// As [`Iter::seek_to_first`], and the iterator is as after any failed move.
    pub fn refresh(&mut self, view: &View) -> Result<bool> {
        let backward = matches!(self.place, Place::Backward | Place::BeforeKey);
        if matches!(self.place, Place::Forward | Place::Backward) {
            self.keep_key();
        }
        let stood = self.valid();
        self.value = Bytes::new();
        let superversion = view.superversion();
        self.merge =
            superversion.merge(self.partition, Reading::by_reader(self.options.fill_cache));
        self.merge.set_bounds(self.bounds.clone());
        self.generation = superversion.generation;
        self.sequence = view.number(self.partition);
        if !stood {
            return Ok(false);
        }
        let key = std::mem::take(&mut self.key);
        if backward { self.seek_for_prev(&key) } else { self.seek(&key) }
    }

    /// To the first key in bounds.
    ///
    /// # Errors
    /// `Io` or `Corruption` of a table.
    pub fn seek_to_first(&mut self) -> Result<bool> {
        self.searching(|this| {
            match this.bounds.as_ref().map(|b| &b.lower) {
                None | Some(Bound::Unbounded) => this.merge.seek_to_first()?,
                Some(Bound::Included(key)) => this.merge.seek(key, this.sequence)?,
                Some(Bound::Excluded(key)) => this.merge.seek(key, SEQUENCE_BELOW_ALL)?,
            }
            this.find_forward(false)
        })
    }

    /// To the last key in bounds.
    ///
    /// # Errors
    /// As [`Iter::seek_to_first`].
    pub fn seek_to_last(&mut self) -> Result<bool> {
        self.searching(|this| {
            match this.bounds.as_ref().map(|b| &b.upper) {
                None | Some(Bound::Unbounded) => this.merge.seek_to_last()?,
                Some(Bound::Included(key)) => this.merge.seek_for_prev(key, SEQUENCE_BELOW_ALL)?,
                Some(Bound::Excluded(key)) => this.merge.seek_for_prev(key, SEQUENCE_ABOVE_ALL)?,
            }
            this.find_backward()
        })
    }

    /// To the first key in bounds at or after `key`.
    ///
    /// # Errors
    /// As [`Iter::seek_to_first`].
    pub fn seek(&mut self, key: &[u8]) -> Result<bool> {
        if self.bounds.as_ref().is_some_and(|b| !b.above_lower(key)) {
            return self.seek_to_first();
        }
        self.searching(|this| {
            this.merge.seek(key, this.sequence)?;
            this.find_forward(false)
        })
    }

    /// To the last key in bounds at or before `key`.
    ///
    /// # Errors
    /// As [`Iter::seek_to_first`].
    pub fn seek_for_prev(&mut self, key: &[u8]) -> Result<bool> {
        if self.bounds.as_ref().is_some_and(|b| !b.below_upper(key)) {
            return self.seek_to_last();
        }
        self.searching(|this| {
            this.merge.seek_for_prev(key, SEQUENCE_BELOW_ALL)?;
            this.find_backward()
        })
    }

    /// To the next key; on a new iterator to the first. Past an end it stays there.
    ///
    /// # Errors
    /// As [`Iter::seek_to_first`]; `InvalidArgument` after a failed move.
    #[expect(
        clippy::should_implement_trait,
        reason = "moves both ways, lends its entry, and can fail"
    )]
    pub fn next(&mut self) -> Result<bool> {
        match self.place {
            Place::Fresh => self.seek_to_first(),
            Place::End => Ok(false),
            Place::Failed => Err(failed_before()),
            Place::Forward => self.moving(|this| {
                this.merge.next()?;
                this.find_forward(true)
            }),
            Place::Backward => {
                self.keep_key();
                self.next_after_key()
            }
            Place::BeforeKey => self.next_after_key(),
        }
    }

    /// To the first key after `self.key`, by a search.
    fn next_after_key(&mut self) -> Result<bool> {
        self.moving(|this| {
            this.merge.seek(&this.key, SEQUENCE_BELOW_ALL)?;
            this.find_forward(false)
        })
    }

    /// To the previous key; on a new iterator to the last. Past an end it stays there.
    ///
    /// # Errors
    /// As [`Iter::next`].
    pub fn prev(&mut self) -> Result<bool> {
        match self.place {
            Place::Fresh => self.seek_to_last(),
            Place::End => Ok(false),
            Place::Failed => Err(failed_before()),
            Place::Backward => self.moving(|this| {
                this.merge.prev()?;
                this.find_backward()
            }),
            Place::BeforeKey => self.moving(Self::find_backward),
            Place::Forward => self.moving(|this| {
                this.keep_key();
                this.merge.seek_for_prev(&this.key, SEQUENCE_ABOVE_ALL)?;
                this.find_backward()
            }),
        }
    }

    /// Whether the iterator stands on an entry.
    #[must_use]
    pub const fn valid(&self) -> bool {
        matches!(self.place, Place::Forward | Place::Backward | Place::BeforeKey)
    }

    /// The key; empty unless [`valid`](Iter::valid).
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self.place {
            Place::Forward | Place::Backward => self.merge.key(),
            Place::BeforeKey => &self.key,
            Place::Fresh | Place::End | Place::Failed => &[],
        }
    }

    /// The value; empty unless [`valid`](Iter::valid). Not touched before it is asked for: a walk over keys
    /// alone leaves values where they are.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        match self.place {
            Place::Forward | Place::Backward => self.merge.value(),
            Place::BeforeKey => &self.value,
            Place::Fresh | Place::End | Place::Failed => &[],
        }
    }

    /// The value, sharing the engine's memory; empty unless [`valid`](Iter::valid).
    #[must_use]
    pub fn value_bytes(&self) -> Bytes {
        match self.place {
            Place::Forward | Place::Backward => self.merge.value_bytes(),
            Place::BeforeKey => self.value.clone(),
            Place::Fresh | Place::End | Place::Failed => Bytes::new(),
        }
    }

    /// The number of the write that set the value; 0 unless [`valid`](Iter::valid).
    #[must_use]
    pub fn sequence(&self) -> SequenceNumber {
        SequenceNumber(match self.place {
            Place::Forward | Place::Backward => self.merge.sequence(),
            Place::BeforeKey => self.entry_sequence,
            Place::Fresh | Place::End | Place::Failed => 0,
        })
    }

    /// Runs a move; whatever it leaves behind when it fails is not an end.
    #[inline]
    fn moving(&mut self, step: impl FnOnce(&mut Self) -> Result<Place>) -> Result<bool> {
        self.place = Place::Failed;
        self.place = step(self)?;
        Ok(self.valid())
    }

    /// A move that begins with a search.
    fn searching(&mut self, search: impl FnOnce(&mut Self) -> Result<Place>) -> Result<bool> {
        self.cache.counts().add(ReadCount::Seeks, 1);
        self.moving(search)
    }

    /// Counts versions that were passed, among them one that decides for its key, if there is: a value of
    /// those is an entry, and not passed.
    fn skipped(&self, versions: u64, deciding: Option<Kind>) {
        let others = versions - u64::from(deciding.is_some());
        if others > 0 {
            perf::count(Count::VersionsSkipped, others);
            self.cache.counts().add(ReadCount::VersionsSkipped, others);
        }
        if deciding == Some(Kind::Delete) {
            perf::count(Count::DeletesSkipped, 1);
            self.cache.counts().add(ReadCount::DeletesSkipped, 1);
        }
    }

    /// Copies the key the iterator stands on, before the merge leaves it.
    fn keep_key(&mut self) {
        self.key.clear();
        self.key.extend_from_slice(self.merge.key());
    }

    /// From where the merge stands to the next key with a visible value. `decided` says that nothing more
    /// is wanted of the user key the merge was on before.
    fn find_forward(&mut self, decided: bool) -> Result<Place> {
        let mut decided = decided;
        let mut steps = 0;
        while self.merge.valid() {
            let passed = decided && self.merge.repeats_key();
            let too_new = self.merge.sequence() > self.sequence;
            if !passed && !too_new {
                // The newest version that is old enough decides for its key.
                if self.merge.kind() == Kind::Value {
                    return Ok(Place::Forward);
                }
                self.skipped(1, Some(Kind::Delete));
                decided = true;
                steps = 0;
                self.merge.next()?;
                continue;
            }
            self.skipped(1, None);
            decided = passed;
            // Many versions of one key are passed by a search, many keys are not.
            steps = if self.merge.repeats_key() { steps + 1 } else { 1 };
            if steps < STEPS_BEFORE_SEARCH {
                self.merge.next()?;
                continue;
            }
            self.keep_key();
            self.merge.seek(&self.key, if passed { SEQUENCE_BELOW_ALL } else { self.sequence })?;
            decided = false;
        }
        Ok(Place::End)
    }

    /// From where the merge stands, on the oldest version of a key that was not looked at, to the previous key
    /// with a visible value.
    fn find_backward(&mut self) -> Result<Place> {
        while self.merge.valid() {
            if self.merge.is_newest() {
                // Only now can the merge stay on the entry: no need to look at what is before.
                if self.merge.sequence() <= self.sequence && self.merge.kind() == Kind::Value {
                    return Ok(Place::Backward);
                }
                self.skipped(
                    1,
                    (self.merge.sequence() <= self.sequence).then(|| self.merge.kind()),
                );
                self.merge.prev()?;
                continue;
            }
            self.keep_key();
            if let Some((sequence, Kind::Value)) = self.newest_visible_backward()? {
                self.entry_sequence = sequence;
                return Ok(Place::BeforeKey);
            }
        }
        Ok(Place::End)
    }

    /// Passes all versions of `self.key`, oldest first, and returns the newest visible one.
    fn newest_visible_backward(&mut self) -> Result<Option<(u64, Kind)>> {
        let mut newest = None;
        let mut steps = 0;
        while self.merge.valid() && self.merge.key() == self.key {
            if self.merge.sequence() <= self.sequence {
                newest = Some((self.merge.sequence(), self.merge.kind()));
                self.value = self.merge.value_bytes();
            }
            steps += 1;
            if steps < STEPS_BEFORE_SEARCH {
                self.merge.prev()?;
                continue;
            }
            self.merge.seek(&self.key, self.sequence)?;
            if self.merge.valid() && self.merge.key() == self.key {
                newest = Some((self.merge.sequence(), self.merge.kind()));
                self.value = self.merge.value_bytes();
            }
            self.merge.seek_for_prev(&self.key, SEQUENCE_ABOVE_ALL)?;
            break;
        }
        self.skipped(steps as u64, newest.map(|(_, kind)| kind));
        Ok(newest)
    }
}

fn failed_before() -> Error {
    Error::InvalidArgument(
        "an earlier move of this iterator failed: seek before going on".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::options::{Executor, Keep, Options, PartitionOptions};
    use crate::store::Store;
    use crate::types::{Op, PartitionId, Position};
    use crate::vfs::MemVfs;

    #[test]
    fn a_refresh_keeps_nothing_of_the_memory_that_is_given_up() {
        let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
        let (vfs, options) = (Arc::new(MemVfs::new(1)), Options::new(7, partitions));
        let store = Store::open(vfs, Path::new("/db"), options, Executor::Inline).expect("opens");
        let mut run =
            store.begin_run(Position { index: 1, term: 1, extra: vec![] }).expect("begins");
        let data = PartitionId(0);
        // In a table, the key before tells that this version of the key is the newest.
        let puts = [b"a", b"k"].map(|key| Op::Put { key, value: b"in a memtable" });
        run.apply(data, SequenceNumber(1), &puts).expect("applies");
        run.publish().expect("publishes");
        let view = store.view();
        let mut iter = view.iter(data, Bound::Unbounded, Bound::Unbounded).expect("opens");
        assert!(iter.prev().expect("moves"), "on the key");
        assert!(!iter.value.is_empty(), "the value is kept: the memtable is passed");
        store.flush().expect("flushes");
        assert!(iter.refresh(&view).expect("moves"), "on the key");
        assert_eq!(iter.value(), b"in a memtable", "as before");
        assert!(iter.value.is_empty(), "of the table: nothing keeps the memtable");
    }
}
