//! The memtable beside a `BTreeMap` under a lock and a lock-free skip list.
//!
//! `cargo bench -p lsm-store --features internals --bench memtable [-- INDEX WORKLOAD]`. 16-digit keys, as
//! hard as keys get that differ late; 100-byte values. Times are CPU time of the thread per operation, except
//! those with readers beside a writer, which are quantiles of what one read takes. `KEYS` (400,000) and
//! `ROUNDS` (3) are read from the environment; the best round is printed.

#![expect(clippy::print_stdout, reason = "prints its results")]

mod common;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{cpu_time, key};
use crossbeam_skiplist::SkipMap;
use lsm_store::Op;
use lsm_store::internals::{Memtable, Scan};
use lsm_store::rng::SplitMix64;
use parking_lot::RwLock;

const VALUE: [u8; 100] = [b'v'; 100];

/// What all indexes do here.
trait Index: Default + Sync {
    const NAME: &'static str;
    fn insert(&self, key: &[u8], sequence: u64, value: &[u8]);
    fn get(&self, key: &[u8]) -> Option<Bytes>;
    /// Passes all entries; returns how many.
    fn scan(&self) -> usize;
    fn bytes(&self) -> Option<usize> {
        None
    }
}

impl Index for Memtable {
    const NAME: &'static str = "memtable";

    fn insert(&self, key: &[u8], sequence: u64, value: &[u8]) {
        self.apply(sequence, &[Op::Put { key, value }]);
    }

    fn get(&self, key: &[u8]) -> Option<Bytes> {
        Self::get(self, key, u64::MAX)
    }

    fn scan(&self) -> usize {
        let mut scan = Scan::default();
        let mut from = Some(&b""[..]);
        let mut all = 0;
        loop {
            let copied = Self::scan(self, from.take(), 64, &mut scan);
            if copied == 0 {
                return all;
            }
            for i in 0..copied {
                let (key, value) = scan.entry(i);
                black_box((key[0], value[99]));
            }
            all += copied;
        }
    }

    fn bytes(&self) -> Option<usize> {
        Some(Self::bytes(self))
    }
}

type Key = (Bytes, Reverse<u64>);

impl Index for RwLock<BTreeMap<Key, Bytes>> {
    const NAME: &'static str = "btreemap";

    fn insert(&self, key: &[u8], sequence: u64, value: &[u8]) {
        let key = (Bytes::copy_from_slice(key), Reverse(sequence));
        let value = Bytes::copy_from_slice(value);
        self.write().insert(key, value);
    }

    fn get(&self, key: &[u8]) -> Option<Bytes> {
        let key = Bytes::copy_from_slice(key);
        let versions = (key.clone(), Reverse(u64::MAX))..=(key, Reverse(0));
        self.read().range(versions).next().map(|(_, value)| value.clone())
    }

    fn scan(&self) -> usize {
        let map = self.read();
        map.iter()
            .fold(0, |n, ((key, _), value)| n + usize::from(black_box(key[0] ^ value[99]) < 255))
    }
}

impl Index for SkipMap<Key, Bytes> {
    const NAME: &'static str = "skiplist";

    fn insert(&self, key: &[u8], sequence: u64, value: &[u8]) {
        let key = (Bytes::copy_from_slice(key), Reverse(sequence));
        Self::insert(self, key, Bytes::copy_from_slice(value));
    }

    fn get(&self, key: &[u8]) -> Option<Bytes> {
        let key = Bytes::copy_from_slice(key);
        let versions = (key.clone(), Reverse(u64::MAX))..=(key, Reverse(0));
        self.range(versions).next().map(|entry| entry.value().clone())
    }

    fn scan(&self) -> usize {
        self.iter().fold(0, |n, e| n + usize::from(black_box(e.key().0[0] ^ e.value()[99]) < 255))
    }
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let bench = Bench { keys: number("KEYS", 400_000), rounds: number("ROUNDS", 3), wanted };
    bench.all::<Memtable>();
    bench.all::<RwLock<BTreeMap<Key, Bytes>>>();
    bench.all::<SkipMap<Key, Bytes>>();
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

struct Bench {
    keys: u64,
    rounds: u64,
    wanted: Vec<String>,
}

impl Bench {
    fn wants(&self, index: &str, workload: &str) -> bool {
        self.wanted.iter().all(|w| w == index || w == workload)
    }

    fn random(&self, seed: u64, number: impl Fn(u64) -> u64) -> Vec<[u8; 16]> {
        let mut rng = SplitMix64::new(seed);
        (0..self.keys).map(|_| key(number(rng.below(self.keys)))).collect()
    }

    fn all<I: Index>(&self) {
        let mut best: BTreeMap<&str, f64> = BTreeMap::new();
        let mut bytes = None;
        let mut note = |name, operations: u64, from: Duration| {
            let nanos = (cpu_time() - from).as_secs_f64() * 1e9 / operations.max(1) as f64;
            let before = best.entry(name).or_insert(nanos);
            *before = before.min(nanos);
        };
        for _ in 0..self.rounds {
            if self.wants(I::NAME, "sequential") {
                let index = I::default();
                let keys: Vec<_> = (0..self.keys).map(key).collect();
                let from = cpu_time();
                for (key, sequence) in keys.iter().zip(1..) {
                    index.insert(key, sequence, &VALUE);
                }
                note("1 insert sequential", self.keys, from);
                let keys = self.random(3, |n| n);
                let from = cpu_time();
                for key in &keys {
                    black_box(index.get(key));
                }
                note("2 get of sequential", self.keys, from);
            }
            if self.wants(I::NAME, "random") {
                let index = I::default();
                let keys = self.random(5, |n| 2 * n);
                let from = cpu_time();
                for (key, sequence) in keys.iter().zip(1..) {
                    index.insert(key, sequence, &VALUE);
                }
                note("3 insert random", self.keys, from);
                let keys = self.random(7, |n| 2 * n);
                let from = cpu_time();
                for key in &keys {
                    black_box(index.get(key));
                }
                note("4 get", self.keys, from);
                let keys = self.random(7, |n| 2 * n + 1);
                let from = cpu_time();
                for key in &keys {
                    black_box(index.get(key));
                }
                note("5 get missing", self.keys, from);
                let from = cpu_time();
                let rows = index.scan();
                note("6 scan", rows as u64, from);
                bytes = index.bytes().map(|b| b / usize::try_from(self.keys).unwrap_or(1));
            }
        }
        for (name, nanos) in best {
            println!("{:<10} {:<22} {nanos:>8.1} ns", I::NAME, &name[2..]);
        }
        if let Some(bytes) = bytes {
            println!("{:<10} {:<22} {bytes:>8} bytes an entry", I::NAME, "memory");
        }
        if self.wants(I::NAME, "readers") {
            self.readers::<I>();
        }
    }

    /// One writer inserts random keys while one reader gets keys and takes the time of each.
    fn readers<I: Index>(&self) {
        let index = I::default();
        let done = AtomicBool::new(false);
        let (writer, mut nanos) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut rng = SplitMix64::new(17);
                let mut nanos = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let key = key(rng.below(self.keys));
                    let from = Instant::now();
                    black_box(index.get(&key));
                    nanos.push(from.elapsed().as_nanos());
                }
                nanos
            });
            let mut rng = SplitMix64::new(19);
            let from = cpu_time();
            for n in 0..self.keys {
                index.insert(&key(rng.below(self.keys)), n + 1, &VALUE);
            }
            let took = cpu_time() - from;
            done.store(true, Ordering::Relaxed);
            (took, reader.join().unwrap_or_default())
        });
        nanos.sort_unstable();
        let at = |per_thousand: usize| {
            nanos.get(nanos.len() * per_thousand / 1000).copied().unwrap_or_default()
        };
        println!(
            "{:<10} {:<22} {:>8.1} ns; get p50 {} p99 {} p99.9 {} max {} ns of {}",
            I::NAME,
            "insert beside a reader",
            writer.as_secs_f64() * 1e9 / self.keys as f64,
            at(500),
            at(990),
            at(999),
            nanos.last().copied().unwrap_or_default(),
            nanos.len()
        );
    }
}
