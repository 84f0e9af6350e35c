//! Iterates versions, not only the newest one of each key: history, and what changed since a number.

use std::fmt;
use std::ops::{Bound, RangeInclusive};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::internal_key::{Kind, SEQUENCE_ABOVE_ALL, SEQUENCE_BELOW_ALL};
use crate::iter::InternalIter;
use crate::iter::bounds::{Bounds, SharedBounds};
use crate::iter::merge::MergeIter;
use crate::iter::reading::{FillCache, Reading};
use crate::store::superversion::SuperVersion;
use crate::types::SequenceNumber;

/// After passing this many versions that are not wanted, a search is cheaper than more steps.
const STEPS_BEFORE_SEARCH: usize = 8;

/// Versions of keys, deletes among them: keys in order, of each the newest version first. Goes forward only.
///
/// Moves return whether there is a version. After an error the iterator stands nowhere, and only a seek
/// brings it back: an error never looks like the end. It keeps the memtables and tables it reads alive,
/// so do not keep it for long. Blocks it reads are not kept in the cache.
pub struct Versions {
    merge: MergeIter,
    wanted: RangeInclusive<u64>,
    bounds: SharedBounds,
    place: Place,
    /// A copy, for searches.
    key: Vec<u8>,
}

/// Shows how it stands, and not where: keys and values are the user's.
impl fmt::Debug for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Versions")
            .field("wanted", &self.wanted)
            .field("valid", &self.valid())
            .finish_non_exhaustive()
    }
}

/// Where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Never moved.
    Fresh,
    /// On a version; so is the merge.
    Here,
    End,
    /// A move failed.
    Failed,
}

impl Versions {
    /// `wanted` are sequence numbers.
    pub(crate) fn new(
        superversion: &SuperVersion,
        partition: usize,
        wanted: RangeInclusive<u64>,
        (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Self {
        let bounds = Bounds::shared(lower, upper);
        let reading = Reading::by_reader(FillCache::Never).since(*wanted.start());
        let mut merge = superversion.merge(partition, reading);
        merge.set_bounds(bounds.clone());
        Self { merge, wanted, bounds, place: Place::Fresh, key: Vec::new() }
    }

    /// To the first version in bounds.
    ///
    /// # Errors
    /// `Io` or `Corruption` of a table.
    pub fn seek_to_first(&mut self) -> Result<bool> {
        self.moving(|this| match this.bounds.as_ref().map(|b| &b.lower) {
            None | Some(Bound::Unbounded) => this.merge.seek_to_first(),
            Some(Bound::Included(key)) => this.merge.seek(key, SEQUENCE_ABOVE_ALL),
            Some(Bound::Excluded(key)) => this.merge.seek(key, SEQUENCE_BELOW_ALL),
        })
    }

    /// To the newest version of the first key in bounds at or after `key`.
    ///
    /// # Errors
    /// As [`Versions::seek_to_first`].
    pub fn seek(&mut self, key: &[u8]) -> Result<bool> {
        if self.bounds.as_ref().is_some_and(|b| !b.above_lower(key)) {
            return self.seek_to_first();
        }
        self.moving(|this| this.merge.seek(key, SEQUENCE_ABOVE_ALL))
    }

    /// To the next version: an older one of the same key, or the newest of the next key. On a new iterator
    /// to the first one; past the end it stays there.
    ///
    /// # Errors
    /// As [`Versions::seek_to_first`]; `InvalidArgument` after a failed move.
    #[expect(clippy::should_implement_trait, reason = "lends its entry, and can fail")]
    pub fn next(&mut self) -> Result<bool> {
        match self.place {
            Place::Fresh => self.seek_to_first(),
            Place::Here => self.moving(|this| this.merge.next()),
            Place::End => Ok(false),
            Place::Failed => Err(Error::InvalidArgument(
                "an earlier move of this iterator failed: seek before going on".to_owned(),
            )),
        }
    }

    /// To the newest version of the next key, past what is left of the present one.
    ///
    /// # Errors
    /// As [`Versions::next`].
    pub fn next_key(&mut self) -> Result<bool> {
        if self.place != Place::Here {
            return self.next();
        }
        self.moving(|this| {
            for _ in 0..STEPS_BEFORE_SEARCH {
                this.merge.next()?;
                if !this.merge.valid() || !this.merge.repeats_key() {
                    return Ok(());
                }
            }
            this.search(SEQUENCE_BELOW_ALL)
        })
    }

    /// Whether the iterator stands on a version.
    #[must_use]
    pub const fn valid(&self) -> bool {
        matches!(self.place, Place::Here)
    }

    /// The key; empty unless [`valid`](Versions::valid).
    #[must_use]
    pub fn key(&self) -> &[u8] {
        if self.valid() { self.merge.key() } else { &[] }
    }

    /// The number of the write; 0 unless [`valid`](Versions::valid).
    #[must_use]
    pub fn sequence(&self) -> SequenceNumber {
        SequenceNumber(if self.valid() { self.merge.sequence() } else { 0 })
    }

    /// What the write set the key to; `None` if it deleted it, or unless [`valid`](Versions::valid).
    #[must_use]
    pub fn value(&self) -> Option<&[u8]> {
        self.has_value().then(|| self.merge.value())
    }

    /// The value, perhaps sharing the engine's memory; otherwise as [`Versions::value`].
    #[must_use]
    pub fn value_bytes(&self) -> Option<Bytes> {
        self.has_value().then(|| self.merge.value_bytes())
    }

    fn has_value(&self) -> bool {
        self.valid() && self.merge.kind() == Kind::Value
    }

    /// Runs a move, and goes on to a version that is wanted.
    fn moving(&mut self, step: impl FnOnce(&mut Self) -> Result<()>) -> Result<bool> {
        self.place = Place::Failed;
        step(self)?;
        self.place = self.find()?;
        Ok(self.valid())
    }

    /// From where the merge stands.
    fn find(&mut self) -> Result<Place> {
        let mut steps = 0;
        while self.merge.valid() {
            let sequence = self.merge.sequence();
            if self.wanted.contains(&sequence) {
                return Ok(Place::Here);
            }
            // Many versions of one key are passed by a search, many keys are not.
            steps = if self.merge.repeats_key() { steps + 1 } else { 1 };
            if steps < STEPS_BEFORE_SEARCH {
                self.merge.next()?;
                continue;
            }
            // Too new: perhaps an older one is wanted. Too old: so are all that follow of this key.
            let too_new = sequence > *self.wanted.end();
            self.search(if too_new { *self.wanted.end() } else { SEQUENCE_BELOW_ALL })?;
        }
        Ok(Place::End)
    }

    /// To the present key's first version at or below a number, or to the next key.
    fn search(&mut self, sequence: u64) -> Result<()> {
        self.key.clear();
        self.key.extend_from_slice(self.merge.key());
        self.merge.seek(&self.key, sequence)
    }
}
