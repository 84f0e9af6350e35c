//! [`StateReader`]: reads of the applied state, from any thread, without waiting for the applier.
//!
//! A read takes a view of the engine (which shares no lock with the applier's work) and is answered from
//! that one view: revision and data belong together. How fresh it has to be is the caller's concern: wait
//! until the applied index is what the read needs, *then* call (RAFT B45).

use std::ops::Bound;

use bytes::Bytes;
use lsm_store::{Error, Iter, SequenceNumber, Store, View};
use raft_core::LogIndex;
use raft_rpc::{GetRequest, KeyRange, KeyValue, Projection, RangeRequest, Response, WireError};

use crate::{
    limits::Limits,
    replica::{Answer, Applied},
    state_machine::{DATA, FIRST_REVISION, retention, row::Row, state::State},
};

/// What an item of a page costs beside its key and value, in bytes.
const ITEM_OVERHEAD_BYTES: usize = 48;

/// Reads the applied state. Cheap to clone; any number of threads may read at once, without waiting for the applier.
#[derive(Clone, Debug)]
pub struct StateReader {
    node: u64,
    store: Store,
    page_bytes_max: usize,
    page_items_max: usize,
}

/// A view and the revision it shows.
struct At {
    view: View,
    revision: u64,
}

impl StateReader {
    pub(crate) const fn new(node: u64, store: Store, limits: &Limits) -> Self {
        Self {
            node,
            store,
            page_bytes_max: limits.page_bytes_max,
            page_items_max: limits.page_items_max,
        }
    }

    /// The state in numbers, as readers see it now: index, revision and hash belong together.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the proof stands with the expectation")]
    pub fn applied(&self) -> Applied {
        let view = self.store.view();
        let state = State::load(view.position(), view.sequence(DATA).0)
            .expect("the position was read at the start, and this process wrote every later one");
        Applied {
            index: state.pos.index,
            durable: LogIndex(self.store.durable_position().index),
            revision: state.revision,
            state_hash: state.hash,
            cluster_time_ms: state.cluster_time_ms,
            sessions: state.sessions,
        }
    }

    /// Reads one key, as of now or of a revision. Says nothing about consistency: the caller has waited
    /// until [`Applied::index`] or [`Applied::revision`] is what it needs. May read from disk.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`, `Storage`.
    pub fn get(&self, request: &GetRequest) -> Answer {
        let at = self.at(request.revision)?;
        let found = self.row_in(&at.view, &request.key)?;
        Ok(Response::Value {
            revision: at.revision,
            found: found.map(|row| row.key_value(request.key.clone())),
        })
    }

    /// Reads a page of a range, or counts it; otherwise as [`StateReader::get`].
    ///
    /// A page ends at its limit, or when its keys and values exceed the page's byte limit; it holds at
    /// least one item if there is any and the limit is not 0.
    ///
    /// # Errors
    /// As [`StateReader::get`].
    pub fn range(&self, request: &RangeRequest) -> Answer {
        let at = self.at(request.revision)?;
        let limit = request.limit.unwrap_or(u64::MAX);
        let mut iter = self.iter(&at.view, &request.range)?;
        let advance = |iter: &mut Iter, first: bool| {
            let moved = match (request.reverse, first) {
                (false, true) => iter.seek_to_first(),
                (false, false) => iter.next(),
                (true, true) => iter.seek_to_last(),
                (true, false) => iter.prev(),
            };
            moved.map_err(|error| self.storage(&error))
        };
        if request.projection == Projection::Count {
            let mut count = 0;
            while count < limit && advance(&mut iter, count == 0)? {
                count += 1;
            }
            return Ok(Response::Count { revision: at.revision, count });
        }
        let mut items: Vec<KeyValue> = Vec::new();
        let mut bytes = 0;
        let mut more = false;
        while advance(&mut iter, items.is_empty())? {
            let full = bytes > 0 && bytes >= self.page_bytes_max;
            if full || items.len() >= self.page_items_max || items.len() as u64 >= limit {
                more = true;
                break;
            }
            let mut row = Row::decode(&iter.value_bytes(), iter.sequence().0)
                .map_err(|error| self.storage(&error))?;
            if request.projection == Projection::KeysOnly {
                row.value = Bytes::new();
            }
            let key = Bytes::copy_from_slice(iter.key());
            bytes += key.len() + row.value.len() + ITEM_OVERHEAD_BYTES;
            items.push(row.key_value(key));
        }
        Ok(Response::Page { revision: at.revision, items, more })
    }

    /// The key as of `revision`, which has been applied.
    pub(crate) fn get_at(&self, key: &Bytes, revision: u64) -> Result<Option<KeyValue>, WireError> {
        let at = self.at(Some(revision))?;
        Ok(self.row_in(&at.view, key)?.map(|row| row.key_value(key.clone())))
    }

    fn row_in(&self, view: &View, key: &[u8]) -> Result<Option<Row>, WireError> {
        let found = view.get(DATA, key).map_err(|error| self.storage(&error))?;
        found
            .map(|found| Row::decode(&found.value, found.sequence.0))
            .transpose()
            .map_err(|error| self.storage(&error))
    }

    fn at(&self, requested: Option<u64>) -> Result<At, WireError> {
        let newest = self.store.view();
        let current = newest.sequence(DATA).0.max(FIRST_REVISION);
        let Some(requested) = requested else {
            return Ok(At { view: newest, revision: current });
        };
        if requested > current {
            return Err(WireError::FutureRevision { node: self.node, requested, current });
        }
        let oldest = retention::floor(current);
        if requested < oldest {
            return Err(WireError::Compacted { requested, oldest });
        }
        if requested == current || newest.sequence(DATA) < SequenceNumber(requested) {
            return Ok(At { view: newest, revision: requested });
        }
        match self.store.view_at(DATA, SequenceNumber(requested)) {
            Ok(view) => Ok(At { view, revision: requested }),
            // The floor rose in between.
            Err(Error::Compacted { floor, .. }) => {
                Err(WireError::Compacted { requested, oldest: floor })
            }
            Err(error) => Err(self.storage(&error)),
        }
    }

    fn iter(&self, view: &View, range: &KeyRange) -> Result<Iter, WireError> {
        let (lower, upper) = bounds(range);
        view.iter(DATA, lower, upper).map_err(|error| self.storage(&error))
    }

    fn storage(&self, error: &dyn std::fmt::Display) -> WireError {
        WireError::Storage { node: self.node, reason: error.to_string() }
    }
}

/// The engine's bounds of a range; an empty or inverted one holds nothing.
pub(crate) fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let lower = match range.start.is_empty() {
        true => Bound::Unbounded,
        false => Bound::Included(&*range.start),
    };
    let upper = range.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    (lower, upper)
}
