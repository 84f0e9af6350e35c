//! What clients ask: drawn requests that meet on few keys and whose values occur once.
//!
//! Unique values are what lets the checker of histories attribute what was seen to who wrote it.
//! Conditions refer to what the client last saw, so that some hold and some do not.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft_rpc::{
    Condition, Consistency, GetRequest, KeyRange, KeyValue, Projection, RangeRequest, Request,
    Response, WriteOperation, WriteRequest,
};

use crate::sim::plan::Mix;
use crate::sim::random::Random;

/// Draws the requests of one client.
#[derive(Clone, Debug)]
pub struct Workload {
    client: u32,
    keys: u64,
    value_bytes_max: u64,
    mix: Mix,
    values: u64,
    seen: BTreeMap<Bytes, KeyValue>,
    revision: u64,
}

impl Workload {
    /// The requests of a client over `keys` keys, with values of at most `value_bytes_max` bytes (a
    /// little more if that is too short to be unique).
    #[must_use]
    pub const fn new(client: u32, keys: u64, value_bytes_max: u64, mix: Mix) -> Self {
        let (values, revision) = (0, 0);
        Self { client, keys, value_bytes_max, mix, values, seen: BTreeMap::new(), revision }
    }

    /// The client was told this; later conditions refer to it.
    pub fn learn(&mut self, response: &Response) {
        let (revision, seen): (u64, &[KeyValue]) = match response {
            Response::Value { revision, found } => (*revision, found.as_slice()),
            Response::Refused { revision, current } => (*revision, current.as_slice()),
            Response::Page { revision, items, .. } => (*revision, items),
            Response::Written { revision, .. }
            | Response::Deleted { revision, .. }
            | Response::Count { revision, .. } => (*revision, &[]),
            Response::Session { .. } => (0, &[]),
        };
        self.revision = self.revision.max(revision);
        for found in seen.iter().filter(|found| !found.value.is_empty()) {
            self.seen.insert(found.key.clone(), found.clone());
        }
    }

    /// The next request; writes without a tag.
    pub fn next(&mut self, random: &mut Random) -> Request {
        let Mix { put, put_if, delete, delete_range, get, get_stale, get_old, range } = self.mix;
        let key = self.key(random);
        let write = |operation| Request::Write(WriteRequest { tag: None, operation });
        let read =
            |key, revision, consistency| Request::Get(GetRequest { key, revision, consistency });
        match random.weighted(&[put, put_if, delete, delete_range, get, get_stale, get_old, range])
        {
            0 => {
                let (value, condition) = (self.value(random), Condition::Always);
                write(WriteOperation::Put { key, value, condition, return_previous: false })
            }
            1 => {
                let (value, condition) = (self.value(random), self.condition(&key, random));
                let return_previous = random.chance(300);
                write(WriteOperation::Put { key, value, condition, return_previous })
            }
            2 => {
                let condition = match random.chance(300) {
                    true => self.condition(&key, random),
                    false => Condition::Always,
                };
                let return_previous = random.chance(300);
                write(WriteOperation::Delete { key, condition, return_previous })
            }
            3 => write(WriteOperation::DeleteRange { range: self.key_range(random) }),
            5 => read(key, None, Consistency::Stale { max_age_ms: None }),
            6 if self.revision > 0 => {
                let revision = random.between(1, self.revision);
                read(key, Some(revision), Consistency::Linearizable)
            }
            7 => Request::Range(RangeRequest {
                range: self.key_range(random),
                limit: random.chance(300).then(|| random.between(1, 3)),
                reverse: random.chance(300),
                projection: *random.pick(&[
                    Projection::KeyValues,
                    Projection::KeyValues,
                    Projection::KeysOnly,
                    Projection::Count,
                ]),
                revision: None,
                consistency: Consistency::Linearizable,
            }),
            _ => read(key, None, Consistency::Linearizable),
        }
    }

    fn key(&self, random: &mut Random) -> Bytes {
        format!("k{}", random.below(self.keys)).into()
    }

    fn key_range(&self, random: &mut Random) -> KeyRange {
        let start = if random.chance(500) { Bytes::new() } else { self.key(random) };
        let end = random.chance(500).then(|| self.key(random));
        KeyRange { start, end }
    }

    fn value(&mut self, random: &mut Random) -> Bytes {
        self.values += 1;
        let mut value = format!("c{}-{}", self.client, self.values).into_bytes();
        let size = usize::try_from(random.below(self.value_bytes_max + 1)).unwrap_or(0);
        if value.len() < size {
            value.resize(size, b'.');
        }
        value.into()
    }

    fn condition(&self, key: &Bytes, random: &mut Random) -> Condition {
        let Some(seen) = self.seen.get(key) else { return Condition::Absent };
        match random.below(3) {
            0 => Condition::Absent,
            1 => Condition::Value(seen.value.clone()),
            _ => Condition::Revision(seen.mod_revision),
        }
    }
}
