//! The callers of a benchmark: what they ask, and what they remember of it.

use std::sync::Arc;
use std::time::Instant;

use crate::{Client, Effect, Error, starting_at};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use hdrhistogram::Histogram;

use crate::kvctl::args::{Bench, Workload};

/// Keys in a listing of the range workload.
const RANGE_KEYS: u64 = 100;

/// The keys of a run. Each belongs to one caller, who alone writes it.
#[derive(Debug)]
pub(super) struct Keys {
    prefix: String,
    callers: u64,
    per_caller: u64,
}

impl Keys {
    pub(super) fn new(run: String, callers: u64, per_caller: u64) -> Self {
        Self { prefix: format!("__bench/{run}/"), callers, per_caller }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn count(&self) -> u64 {
        self.callers * self.per_caller
    }

    /// The key with this number among those of `caller`.
    pub(super) fn key(&self, caller: u64, number: u64) -> Bytes {
        Bytes::from(format!("{}{:010}", self.prefix, number * self.callers + caller))
    }
}

/// What a caller last wrote to one of its keys.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct LastWrite {
    /// The write's number, 0 for none; acknowledged.
    pub(super) acknowledged: u64,
    /// A later write may have taken effect: the key can't be checked.
    pub(super) uncertain: bool,
}

/// What callers did.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) ops: u64,
    pub(super) errors: u64,
    pub(super) first_error: Option<Error>,
    /// Of successes, in microseconds.
    pub(super) latencies: Histogram<u64>,
    /// Of each caller: its number and what its keys hold.
    pub(super) written: Vec<(u64, Vec<LastWrite>)>,
}

impl Tally {
    pub(super) fn new(latency_max_us: u64) -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self {
            ops: 0,
            errors: 0,
            first_error: None,
            latencies: Histogram::new_with_bounds(1, latency_max_us, 3)?,
            written: Vec::new(),
        })
    }

    pub(super) fn add(&mut self, part: Part) {
        self.ops += part.latencies_us.len() as u64;
        self.errors += part.errors;
        self.first_error = self.first_error.take().or(part.first_error);
        for latency in part.latencies_us {
            self.latencies.saturating_record(u64::from(latency));
        }
        self.written.push((part.caller, part.written));
    }
}

/// What one caller did. Latencies are kept one by one, 4 bytes each, and counted afterwards: that
/// costs the loop nothing, and a histogram for each of thousands of callers would be larger.
#[derive(Debug)]
pub(super) struct Part {
    caller: u64,
    latencies_us: Vec<u32>,
    errors: u64,
    first_error: Option<Error>,
    written: Vec<LastWrite>,
}

/// A caller.
#[derive(Debug)]
pub(super) struct Worker {
    client: Client,
    keys: Arc<Keys>,
    workload: Workload,
    value_bytes: usize,
    read_percent: u64,
    random: Random,
    writes: u64,
    part: Part,
}

impl Worker {
    pub(super) fn new(caller: u64, client: Client, keys: Arc<Keys>, asked: &Bench) -> Self {
        let per_caller = usize::try_from(keys.per_caller).unwrap_or(usize::MAX);
        Self {
            client,
            workload: asked.workload,
            value_bytes: asked.value_bytes as usize,
            read_percent: u64::from(asked.read_percent),
            random: Random::new(caller + 1),
            writes: 0,
            part: Part {
                caller,
                latencies_us: Vec::new(),
                errors: 0,
                first_error: None,
                written: vec![LastWrite::default(); per_caller],
            },
            keys,
        }
    }

    pub(super) async fn run(mut self, until: Instant) -> Part {
        while Instant::now() < until {
            let start = Instant::now();
            let result = match self.workload {
                Workload::Put => self.put().await,
                Workload::Get => self.get().await,
                Workload::Range => self.range().await,
                Workload::Mixed if self.random.below(100) < self.read_percent => self.get().await,
                Workload::Mixed => self.put().await,
            };
            match result {
                Ok(()) => {
                    let latency = start.elapsed().as_micros();
                    self.part.latencies_us.push(u32::try_from(latency).unwrap_or(u32::MAX));
                }
                Err(error) => {
                    self.part.errors += 1;
                    self.part.first_error.get_or_insert(error);
                }
            }
        }
        self.part
    }

    async fn put(&mut self) -> Result<(), Error> {
        let number = self.random.below(self.keys.per_caller);
        self.writes += 1;
        let key = self.keys.key(self.part.caller, number);
        let value = value(self.part.caller, self.writes, self.value_bytes);
        let result = self.client.put(key, value).await;
        let place = usize::try_from(number).unwrap_or(usize::MAX);
        if let Some(last) = self.part.written.get_mut(place) {
            match &result {
                Ok(_) => *last = LastWrite { acknowledged: self.writes, uncertain: false },
                Err(error) => last.uncertain |= error.effect() == Effect::Unknown,
            }
        }
        result.map(drop)
    }

    async fn get(&mut self) -> Result<(), Error> {
        let number = self.random.below(self.keys.per_caller);
        self.client.get(self.keys.key(self.part.caller, number)).await.map(drop)
    }

    async fn range(&mut self) -> Result<(), Error> {
        let number = self.random.below(self.keys.per_caller);
        let start = self.keys.key(self.part.caller, number);
        self.client.range(starting_at(start)).limit(RANGE_KEYS).await.map(drop)
    }
}

/// Writes every key once, so that reads find something.
pub(super) async fn preload(
    keys: &Keys,
    clients: &[Client],
    value_bytes: usize,
    concurrency: usize,
) -> Result<(), Error> {
    let all = (0..keys.callers)
        .flat_map(|caller| (0..keys.per_caller).map(move |number| (caller, number)));
    futures::stream::iter(all.zip(clients.iter().cycle()))
        .map(|((caller, number), client)| {
            client.put(keys.key(caller, number), value(caller, 0, value_bytes)).into_future()
        })
        .buffer_unordered(concurrency)
        .try_for_each(|_| std::future::ready(Ok(())))
        .await
}

/// The value of a write: which it is, in 16 bytes, then bytes that do not compress.
pub(super) fn value(caller: u64, write: u64, bytes: usize) -> Bytes {
    let mut value = BytesMut::with_capacity(bytes);
    value.put_u64(caller);
    value.put_u64(write);
    let mut random = Random::new(caller ^ (write << 20));
    while value.len() < bytes {
        let chunk = random.next().to_be_bytes();
        let left = (bytes - value.len()).min(chunk.len());
        value.put_slice(&chunk[..left]);
    }
    value.freeze()
}

/// The write that a value is of.
pub(super) fn write_of(value: &[u8]) -> Option<(u64, u64)> {
    let (caller, rest) = value.split_first_chunk::<8>()?;
    let (write, _) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*caller), u64::from_be_bytes(*write)))
}

/// Xorshift: quick, the same at every run, and random enough for a choice of keys.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // The constant spreads small seeds over all bits; zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_names_its_write_and_has_its_length() {
        for bytes in [16, 17, 256, 1001] {
            let value = value(3, 77, bytes);
            assert_eq!(value.len(), bytes);
            assert_eq!(write_of(&value), Some((3, 77)));
        }
        assert_eq!(write_of(b"short"), None);
    }

    #[test]
    fn no_two_callers_share_a_key() {
        let keys = Keys::new("run".into(), 3, 4);
        let mut all: Vec<Bytes> = (0..3)
            .flat_map(|caller| (0..4).map(move |number| (caller, number)))
            .map(|(caller, number)| keys.key(caller, number))
            .collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 12);
        assert!(all.iter().all(|key| key.starts_with(b"__bench/run/")), "{all:?}");
    }
}
