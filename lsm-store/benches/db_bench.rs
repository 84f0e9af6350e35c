//! The workloads known as `db_bench`, with their names: 16-byte keys, 100-byte values, a real directory.
//!
//! `cargo bench -p lsm-store [-- WORKLOAD]`. Time is per operation of the caller; background threads run
//! beside it. The number of keys is `KEYS` in the environment, 200,000 by default. Nothing is synced but
//! tables and manifest: in this mode the log is the caller's.

#![expect(clippy::print_stdout, reason = "prints its results")]

use std::error::Error;
use std::hint::black_box;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lsm_store::rng::SplitMix64;
use lsm_store::vfs::RealVfs;
use lsm_store::{
    Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position, SequenceNumber, Store,
};

const DATA: PartitionId = PartitionId(0);
const VALUE_BYTES: usize = 100;
/// Batches of a run, as a replicated log hands them over under load.
const RUN_BATCHES: u64 = 100;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let keys = std::env::var("KEYS").ok().and_then(|k| k.parse().ok()).unwrap_or(200_000);
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    let mut bench = Bench::new(keys)?;
    if wants("fillseq") {
        bench.fill("fillseq", |n, _| n)?;
    }
    // The read workloads need what this writes.
    bench.fill("fillrandom", |_, rng| rng.below(keys))?;
    if wants("overwrite") {
        bench.fill("overwrite", |_, rng| rng.below(keys))?;
    }
    bench.store.flush()?;
    if wants("readrandom") {
        bench.read("readrandom", |rng| key(rng.below(keys)))?;
    }
    if wants("readmissing") {
        bench.read("readmissing", |rng| {
            let mut absent = key(rng.below(keys));
            absent[15] = b'.';
            absent
        })?;
    }
    if wants("seekrandom") {
        bench.seek()?;
    }
    if wants("readseq") {
        bench.scan()?;
    }
    let metrics = bench.store.metrics();
    let written = metrics.flush_bytes + metrics.compaction_bytes_written;
    println!("flushed {} MB, written {} MB in all", metrics.flush_bytes >> 20, written >> 20);
    bench.end()
}

struct Bench {
    dir: PathBuf,
    store: Store,
    keys: u64,
    next: u64,
    rng: SplitMix64,
}

/// 16 digits.
fn key(n: u64) -> [u8; 16] {
    let mut key = [b'0'; 16];
    let mut rest = n;
    for digit in key.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    key
}

/// Half of it compresses.
fn value(rng: &mut SplitMix64) -> [u8; VALUE_BYTES] {
    let mut value = [b'v'; VALUE_BYTES];
    for chunk in value.chunks_exact_mut(16) {
        let (random, _) = chunk.split_at_mut(8);
        random.copy_from_slice(&rng.next_u64().to_le_bytes());
    }
    value
}

fn report(name: &str, operations: u64, took: Duration) {
    let nanos = took.as_nanos() / u128::from(operations.max(1));
    println!(
        "{name:<12} {operations:>9} operations  {:>9.3} s  {nanos:>7} ns each",
        took.as_secs_f64()
    );
}

impl Bench {
    fn new(keys: u64) -> Outcome<Self> {
        let dir = std::env::temp_dir().join(format!("lsm-store-bench-{}", std::process::id()));
        let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly }];
        let store = Store::open(
            Arc::new(RealVfs::new()),
            &dir,
            Options::new(1, partitions),
            Executor::Threads,
        )?;
        Ok(Self { dir, store, keys, next: 1, rng: SplitMix64::new(7) })
    }

    fn fill(
        &mut self,
        name: &str,
        mut pick: impl FnMut(u64, &mut SplitMix64) -> u64,
    ) -> Outcome<()> {
        let started = Instant::now();
        let mut done = 0;
        while done < self.keys {
            let index = self.store.visible_position().index + 1;
            let mut run = self.store.begin_run(Position { index, term: 1, extra: vec![] })?;
            for _ in 0..RUN_BATCHES.min(self.keys - done) {
                let (key, value) = (key(pick(done, &mut self.rng)), value(&mut self.rng));
                run.apply(
                    DATA,
                    SequenceNumber(self.next),
                    &[Op::Put { key: &key, value: &value }],
                )?;
                self.next += 1;
                done += 1;
            }
            run.publish()?;
        }
        report(name, done, started.elapsed());
        Ok(())
    }

    fn read(
        &mut self,
        name: &str,
        mut pick: impl FnMut(&mut SplitMix64) -> [u8; 16],
    ) -> Outcome<()> {
        let view = self.store.view();
        let started = Instant::now();
        let mut found = 0_u64;
        for _ in 0..self.keys {
            found += u64::from(black_box(view.get(DATA, &pick(&mut self.rng))?).is_some());
        }
        report(name, self.keys, started.elapsed());
        println!("{:<12} {found:>9} found", "");
        Ok(())
    }

    fn seek(&mut self) -> Outcome<()> {
        let view = self.store.view();
        let seeks = self.keys / 10;
        let started = Instant::now();
        for _ in 0..seeks {
            let mut iter = view.iter(DATA, Bound::Unbounded, Bound::Unbounded)?;
            let mut more = iter.seek(&key(self.rng.below(self.keys)))?;
            for _ in 0..10 {
                if !more {
                    break;
                }
                black_box(iter.value());
                more = iter.next()?;
            }
        }
        report("seekrandom", seeks, started.elapsed());
        Ok(())
    }

    fn scan(&mut self) -> Outcome<()> {
        let view = self.store.view();
        let started = Instant::now();
        let mut rows = 0;
        let mut iter = view.iter(DATA, Bound::Unbounded, Bound::Unbounded)?;
        while iter.next()? {
            black_box(iter.value());
            rows += 1;
        }
        report("readseq", rows, started.elapsed());
        Ok(())
    }

    fn end(self) -> Outcome<()> {
        self.store.close()?;
        std::fs::remove_dir_all(&self.dir)?;
        Ok(())
    }
}
