//! What iterating costs: CPU time of the calling thread, everything in the cache.
//!
//! `cargo bench -p lsm-store --bench scan [-- ROW]`. 16-byte keys, 100-byte values, rows as `KEYS` in the environment
//! says (200,000 by default). CPU time, unlike wall time, means something on a machine that does other things
//! too. Three shapes of the store: *sequential* (written in key order: sources follow each other), *random* (written in
//! random order: sources interleave) and *memtable* (nothing flushed).

#![expect(clippy::print_stdout, reason = "prints its results")]

mod common;

use std::error::Error;
use std::hint::black_box;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

use common::cpu_time;
use lsm_store::rng::SplitMix64;
use lsm_store::vfs::RealVfs;
use lsm_store::{
    Compression, Executor, Iter, Keep, Op, Options, PartitionId, PartitionOptions, Position,
    SequenceNumber, Store,
};

const DATA: PartitionId = PartitionId(0);
const VALUE_BYTES: usize = 100;
const RUN_BATCHES: u64 = 1000;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Sequential,
    Random,
    Memtable,
}

fn main() -> Outcome<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let keys = std::env::var("KEYS").ok().and_then(|k| k.parse().ok()).unwrap_or(200_000);
    for (name, shape) in [
        ("sequential", Shape::Sequential),
        ("random", Shape::Random),
        ("memtable", Shape::Memtable),
    ] {
        let bench = Bench::fill(name, shape, keys, &wanted)?;
        bench.run()?;
        bench.end()?;
    }
    Ok(())
}

struct Bench<'a> {
    name: &'static str,
    wanted: &'a [String],
    dir: PathBuf,
    store: Store,
    keys: u64,
}

/// 16 digits, even numbers only: odd ones are absent.
fn key(n: u64) -> [u8; 16] {
    common::key(n * 2)
}

/// Ten rows from a key on.
fn seek_and_read(iter: &mut Iter, key: &[u8], buffer: &mut Vec<u8>) -> Outcome<()> {
    let mut more = iter.seek(key)?;
    for _ in 0..10 {
        if !more {
            break;
        }
        buffer.clear();
        buffer.extend_from_slice(black_box(iter.value()));
        more = iter.next()?;
    }
    Ok(())
}

impl<'a> Bench<'a> {
    fn fill(name: &'static str, shape: Shape, keys: u64, wanted: &'a [String]) -> Outcome<Self> {
        let dir = std::env::temp_dir().join(format!("lsm-store-scan-{}", std::process::id()));
        let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly }];
        let mut options = Options::new(1, partitions);
        options.cache_bytes = 1 << 30;
        options.compression = Compression::None;
        if shape == Shape::Memtable {
            options.memtable_bytes = 2 << 30;
        }
        let store = Store::open(Arc::new(RealVfs::new()), &dir, options, Executor::Inline)?;
        let mut rng = SplitMix64::new(7);
        let mut order: Vec<u64> = (0..keys).collect();
        if shape != Shape::Sequential {
            for i in (1..keys).rev() {
                order.swap(usize::try_from(i)?, usize::try_from(rng.below(i + 1))?);
            }
        }
        let mut sequence = 0;
        let chunk = usize::try_from(RUN_BATCHES)?;
        for (index, some) in (1..).zip(order.chunks(chunk)) {
            let mut run = store.begin_run(Position { index, term: 1, extra: vec![] })?;
            for n in some {
                sequence += 1;
                let mut value = [b'v'; VALUE_BYTES];
                let (random, _) = value.split_at_mut(8);
                random.copy_from_slice(&rng.next_u64().to_le_bytes());
                run.apply(
                    DATA,
                    SequenceNumber(sequence),
                    &[Op::Put { key: &key(*n), value: &value }],
                )?;
            }
            run.publish()?;
        }
        if shape != Shape::Memtable {
            store.flush()?;
        }
        Ok(Self { name, wanted, dir, store, keys })
    }

    /// Runs a workload once, so that all it needs is cached, then some more times, and reports the best.
    fn row(&self, row: &str, mut work: impl FnMut() -> Outcome<u64>) -> Outcome<()> {
        let name = format!("{}/{row}", self.name);
        if !self.wanted.is_empty() && !self.wanted.iter().any(|w| name.contains(w.as_str())) {
            return Ok(());
        }
        work()?;
        let rounds: u32 = std::env::var("ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(3);
        let mut best = u128::MAX;
        let mut operations = 0;
        for _ in 0..rounds {
            let started = cpu_time();
            operations = work()?;
            best = best.min((cpu_time() - started).as_nanos() * 10 / u128::from(operations.max(1)));
        }
        println!(
            "{name:<28} {operations:>9} operations  {:>7}.{} ns of CPU each",
            best / 10,
            best % 10
        );
        Ok(())
    }

    fn run(&self) -> Outcome<()> {
        let view = self.store.view();
        let all = || view.iter(DATA, Bound::Unbounded, Bound::Unbounded);
        let mut buffer = Vec::new();
        self.row("readseq", || {
            let mut iter = all()?;
            let mut rows = 0;
            while iter.next()? {
                buffer.clear();
                buffer.extend_from_slice(black_box(iter.value()));
                black_box((iter.key(), &buffer));
                rows += 1;
            }
            Ok(rows)
        })?;
        self.row("readreverse", || {
            let mut iter = all()?;
            let mut rows = 0;
            while iter.prev()? {
                buffer.clear();
                buffer.extend_from_slice(black_box(iter.value()));
                black_box((iter.key(), &buffer));
                rows += 1;
            }
            Ok(rows)
        })?;
        let seeks = self.keys / 10;
        self.row("seek+10", || {
            let mut rng = SplitMix64::new(9);
            let mut iter = all()?;
            for _ in 0..seeks {
                seek_and_read(&mut iter, &key(rng.below(self.keys)), &mut buffer)?;
            }
            Ok(seeks)
        })?;
        self.row("seek", || {
            let mut rng = SplitMix64::new(9);
            let mut iter = all()?;
            for _ in 0..seeks {
                black_box(iter.seek(&key(rng.below(self.keys)))?);
            }
            Ok(seeks)
        })?;
        self.row("new+seek+10", || {
            let mut rng = SplitMix64::new(9);
            for _ in 0..seeks {
                let mut iter = all()?;
                seek_and_read(&mut iter, &key(rng.below(self.keys)), &mut buffer)?;
            }
            Ok(seeks)
        })?;
        self.row("range of 100", || {
            let mut rng = SplitMix64::new(9);
            let mut rows = 0;
            for _ in 0..seeks / 4 {
                let from = rng.below(self.keys);
                let (lower, upper) = (key(from), key(from + 100));
                let mut iter = view.iter(DATA, Bound::Included(&lower), Bound::Excluded(&upper))?;
                while iter.next()? {
                    black_box(iter.value());
                    rows += 1;
                }
            }
            Ok(rows)
        })
    }

    fn end(self) -> Outcome<()> {
        self.store.close()?;
        std::fs::remove_dir_all(&self.dir)?;
        Ok(())
    }
}
