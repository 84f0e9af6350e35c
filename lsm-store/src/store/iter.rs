//! Iterates the newest visible versions of a partition, both ways, within bounds.

use std::ops::Bound;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::internal_key::{Kind, SEQUENCE_ABOVE_ALL, SEQUENCE_BELOW_ALL};
use crate::iter::InternalIter;
use crate::iter::merge::MergeIter;
use crate::types::SequenceNumber;

/// After passing this many versions that do not count, a search is cheaper than more steps.
const STEPS_BEFORE_SEARCH: usize = 8;

/// Keys with their values at a fixed sequence number, in order, within bounds.
///
/// Moves return whether there is an entry. After an error the iterator stands nowhere, and only a seek
/// brings it back: an error never looks like the end. It keeps the memtables and tables it reads alive,
/// so do not keep it for long.
#[derive(Debug)]
pub struct Iter {
    merge: MergeIter,
    sequence: u64,
    lower: Bound<Vec<u8>>,
    upper: Bound<Vec<u8>>,
    place: Place,
    key: Vec<u8>,
    entry_sequence: u64,
    /// Going backward, the merge stands before the entry already, so the value is held here.
    value: Bytes,
}

/// Where an iterator stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Never moved, or bounds changed since.
    Fresh,
    /// On an entry; so is the merge.
    Forward,
    /// On an entry; the merge is before all versions of its key.
    Backward,
    /// Past either end.
    End,
    /// A move failed.
    Failed,
}

impl Iter {
    pub(crate) fn new(
        merge: MergeIter,
        sequence: u64,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
    ) -> Self {
        Self {
            merge,
            sequence,
            lower: lower.map(<[u8]>::to_vec),
            upper: upper.map(<[u8]>::to_vec),
            place: Place::Fresh,
            key: Vec::new(),
            entry_sequence: 0,
            value: Bytes::new(),
        }
    }

    /// Changes the bounds. The iterator then stands nowhere, as if new.
    pub fn set_bounds(&mut self, lower: Bound<&[u8]>, upper: Bound<&[u8]>) {
        self.lower = lower.map(<[u8]>::to_vec);
        self.upper = upper.map(<[u8]>::to_vec);
        self.place = Place::Fresh;
    }

    /// To the first key in bounds.
    ///
    /// # Errors
    /// `Io` or `Corruption` of a table.
    pub fn seek_to_first(&mut self) -> Result<bool> {
        self.moving(|this| {
            match &this.lower {
                Bound::Unbounded => this.merge.seek_to_first()?,
                Bound::Included(key) => this.merge.seek(key, this.sequence)?,
                Bound::Excluded(key) => this.merge.seek(key, SEQUENCE_BELOW_ALL)?,
            }
            this.find_forward(false)
        })
    }

    /// To the last key in bounds.
    ///
    /// # Errors
    /// As [`Iter::seek_to_first`].
    pub fn seek_to_last(&mut self) -> Result<bool> {
        self.moving(|this| {
            match &this.upper {
                Bound::Unbounded => this.merge.seek_to_last()?,
                Bound::Included(key) => this.merge.seek_for_prev(key, SEQUENCE_BELOW_ALL)?,
                Bound::Excluded(key) => this.merge.seek_for_prev(key, SEQUENCE_ABOVE_ALL)?,
            }
            this.find_backward()
        })
    }

    /// To the first key in bounds at or after `key`.
    ///
    /// # Errors
    /// As [`Iter::seek_to_first`].
    pub fn seek(&mut self, key: &[u8]) -> Result<bool> {
        if !self.above_lower(key) {
            return self.seek_to_first();
        }
        self.moving(|this| {
            this.merge.seek(key, this.sequence)?;
            this.find_forward(false)
        })
    }

    /// To the last key in bounds at or before `key`.
    ///
    /// # Errors
    /// As [`Iter::seek_to_first`].
    pub fn seek_for_prev(&mut self, key: &[u8]) -> Result<bool> {
        if !self.below_upper(key) {
            return self.seek_to_last();
        }
        self.moving(|this| {
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
            Place::Forward => self.moving(|this| this.find_forward(true)),
            Place::Backward => self.moving(|this| {
                this.merge.seek(&this.key, SEQUENCE_BELOW_ALL)?;
                this.find_forward(false)
            }),
        }
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
            Place::Backward => self.moving(Self::find_backward),
            Place::Forward => self.moving(|this| {
                this.merge.seek_for_prev(&this.key, SEQUENCE_ABOVE_ALL)?;
                this.find_backward()
            }),
        }
    }

    /// Whether the iterator stands on an entry.
    #[must_use]
    pub const fn valid(&self) -> bool {
        matches!(self.place, Place::Forward | Place::Backward)
    }

    /// The key; empty unless [`valid`](Iter::valid).
    #[must_use]
    pub fn key(&self) -> &[u8] {
        if self.valid() { &self.key } else { &[] }
    }

    /// The value; empty unless [`valid`](Iter::valid).
    #[must_use]
    pub fn value(&self) -> &[u8] {
        match self.place {
            Place::Forward => self.merge.value(),
            Place::Backward => &self.value,
            Place::Fresh | Place::End | Place::Failed => &[],
        }
    }

    /// The value, sharing the engine's memory; empty unless [`valid`](Iter::valid).
    #[must_use]
    pub fn value_bytes(&self) -> Bytes {
        match self.place {
            Place::Forward => self.merge.value_bytes(),
            Place::Backward => self.value.clone(),
            Place::Fresh | Place::End | Place::Failed => Bytes::new(),
        }
    }

    /// The number of the write that set the value; 0 unless [`valid`](Iter::valid).
    #[must_use]
    pub const fn sequence(&self) -> SequenceNumber {
        SequenceNumber(if self.valid() { self.entry_sequence } else { 0 })
    }

    /// Runs a move; whatever it leaves behind when it fails is not an end.
    fn moving(&mut self, step: impl FnOnce(&mut Self) -> Result<Place>) -> Result<bool> {
        self.place = Place::Failed;
        self.place = step(self)?;
        Ok(self.valid())
    }

    fn below_upper(&self, key: &[u8]) -> bool {
        match &self.upper {
            Bound::Unbounded => true,
            Bound::Included(upper) => key <= upper.as_slice(),
            Bound::Excluded(upper) => key < upper.as_slice(),
        }
    }

    fn above_lower(&self, key: &[u8]) -> bool {
        match &self.lower {
            Bound::Unbounded => true,
            Bound::Included(lower) => key >= lower.as_slice(),
            Bound::Excluded(lower) => key > lower.as_slice(),
        }
    }

    /// From where the merge stands to the next key with a visible value; `skip_key` passes what is left
    /// of the present key.
    fn find_forward(&mut self, skip_key: bool) -> Result<Place> {
        let mut skip_key = skip_key;
        let mut steps = 0;
        while self.merge.valid() && self.below_upper(self.merge.key()) {
            let passed_key = skip_key && self.merge.key() == self.key;
            let too_new = self.merge.sequence() > self.sequence;
            if passed_key || too_new {
                steps += 1;
                if steps < STEPS_BEFORE_SEARCH {
                    self.merge.next()?;
                    continue;
                }
                steps = 0;
                if passed_key {
                    self.merge.seek(&self.key, SEQUENCE_BELOW_ALL)?;
                } else {
                    let key = self.merge.key().to_vec();
                    self.merge.seek(&key, self.sequence)?;
                }
                continue;
            }
            // The newest version that is old enough decides for its key.
            self.key.clear();
            self.key.extend_from_slice(self.merge.key());
            if self.merge.kind() == Kind::Value {
                self.entry_sequence = self.merge.sequence();
                return Ok(Place::Forward);
            }
            skip_key = true;
            steps = 0;
            self.merge.next()?;
        }
        Ok(Place::End)
    }

    /// From where the merge stands, which is before all keys passed, to the previous key with a visible value.
    fn find_backward(&mut self) -> Result<Place> {
        while self.merge.valid() && self.above_lower(self.merge.key()) {
            self.key.clear();
            self.key.extend_from_slice(self.merge.key());
            if let Some((sequence, Kind::Value)) = self.newest_visible_backward()? {
                self.entry_sequence = sequence;
                return Ok(Place::Backward);
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
        Ok(newest)
    }
}

fn failed_before() -> Error {
    Error::InvalidArgument(
        "an earlier move of this iterator failed: seek before going on".to_owned(),
    )
}
