//! What a write costs, by kind: one line per row, with the CPU time of the writing thread, of the whole
//! process, and the wall time, each in microseconds per operation.
//!
//! ```text
//! cargo bench -p lsm-store --bench write -- [ROW …] [--n N] [--dir DIR]
//! ```
//!
//! Rows: `fillseq`, `fillrandom`, `fillbatch` (1000 puts a batch), `fillsync`, `fillsync8` (8 threads), `replay`
//! (open of a log of N puts), `runs` (External mode, one put a run), `runs100`. Keys of 16 bytes, values of 100.

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]
#![expect(clippy::unwrap_used, reason = "a benchmark that fails has nothing to report")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lsm_store::rng::SplitMix64;
use lsm_store::vfs::RealVfs;
use lsm_store::{
    Compression, Durability, Executor, Keep, Mode, Op, Options, PartitionId, PartitionOptions,
    Position, SequenceNumber, Store, WriteBatch,
};
use rustix::time::{ClockId, clock_gettime};

const P: PartitionId = PartitionId(0);
const VALUE: [u8; 100] = [0x5a; 100];
const ROWS: [&str; 8] =
    ["fillseq", "fillrandom", "fillbatch", "fillsync", "fillsync8", "replay", "runs", "runs100"];

fn cpu(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
}

fn open(dir: &Path, mode: Mode) -> Store {
    let partition = PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly };
    let options =
        Options { mode, compression: Compression::None, ..Options::new(1, vec![partition]) };
    Store::open(Arc::new(RealVfs::new()), dir, options, Executor::Threads).unwrap()
}

/// The `i`th key, of 16 decimal digits; in a random order if asked, where keys may repeat.
fn key(i: u64, random: Option<&mut SplitMix64>, n: u64) -> [u8; 16] {
    let mut number = random.map_or(i, |rng| rng.below(n));
    let mut key = [b'0'; 16];
    for digit in key.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap();
        number /= 10;
    }
    key
}

fn put(store: &Store, key: &[u8], durability: Durability) {
    let mut batch = WriteBatch::new();
    batch.put(P, key, &VALUE).unwrap();
    store.write(batch, durability).unwrap();
}

/// Times `work`, which does `ops` operations on this thread.
fn row(name: &str, ops: u64, work: impl FnOnce()) {
    let (thread, process) = (cpu(ClockId::ThreadCPUTime), cpu(ClockId::ProcessCPUTime));
    let wall = Instant::now();
    work();
    let per_op = |spent: Duration| spent.as_secs_f64() * 1e6 / ops as f64;
    println!(
        "{name:<11} {ops:>9} ops  {:>8.3} µs CPU of the writer  {:>8.3} µs CPU of all  {:>8.3} µs wall",
        per_op(cpu(ClockId::ThreadCPUTime) - thread),
        per_op(cpu(ClockId::ProcessCPUTime) - process),
        per_op(wall.elapsed()),
    );
}

fn fill(name: &str, dir: &Path, n: u64, random: bool) {
    let store = open(dir, Mode::Wal);
    let mut rng = SplitMix64::new(7);
    row(name, n, || {
        for i in 0..n {
            put(&store, &key(i, random.then_some(&mut rng), n), Durability::Buffered);
        }
    });
    store.close().unwrap();
}

fn fillbatch(dir: &Path, n: u64) {
    let store = open(dir, Mode::Wal);
    let mut rng = SplitMix64::new(7);
    row("fillbatch", n, || {
        for _ in 0..n / 1000 {
            let mut batch = WriteBatch::new();
            for i in 0..1000 {
                batch.put(P, &key(i, Some(&mut rng), n), &VALUE).unwrap();
            }
            store.write(batch, Durability::Buffered).unwrap();
        }
    });
    store.close().unwrap();
}

fn fillsync(name: &str, dir: &Path, n: u64, threads: u64) {
    let store = open(dir, Mode::Wal);
    put(&store, b"first", Durability::Sync);
    row(name, n, || {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let store = &store;
                scope.spawn(move || {
                    for i in (thread..n).step_by(usize::try_from(threads).unwrap()) {
                        put(store, &key(i, None, n), Durability::Sync);
                    }
                });
            }
        });
    });
    store.close().unwrap();
}

fn replay(dir: &Path, n: u64) {
    let store = open(dir, Mode::Wal);
    let mut rng = SplitMix64::new(7);
    for i in 0..n {
        put(&store, &key(i, Some(&mut rng), n), Durability::Buffered);
    }
    drop(store);
    let mut store = None;
    row("replay", n, || store = Some(open(dir, Mode::Wal)));
    assert_eq!(store.unwrap().last_sequence(P).0, n, "everything is there");
}

fn runs(name: &str, dir: &Path, n: u64, in_a_run: u64) {
    let store = open(dir, Mode::External);
    row(name, n, || {
        for first in (1..=n).step_by(usize::try_from(in_a_run).unwrap()) {
            let position = Position { index: first, term: 1, extra: Vec::new() };
            let mut run = store.begin_run(position).unwrap();
            for i in first..first + in_a_run {
                let op = Op::Put { key: &key(i, None, n), value: &VALUE };
                run.apply(P, SequenceNumber(i), &[op]).unwrap();
            }
            run.publish().unwrap();
        }
    });
    store.close().unwrap();
}

fn main() {
    let mut args = std::env::args().skip(1);
    let mut rows = Vec::new();
    let mut n = None;
    let mut dir = std::env::temp_dir();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--n" => n = args.next().map(|n| n.parse().unwrap()),
            "--dir" => dir = args.next().unwrap().into(),
            "--bench" => {}
            _ => rows.push(arg),
        }
    }
    for name in ROWS {
        if !rows.is_empty() && !rows.iter().any(|row| row == name) {
            continue;
        }
        let dir = tempfile::tempdir_in(&dir).unwrap();
        let dir = dir.path();
        match name {
            "fillsync" => fillsync(name, dir, n.unwrap_or(5_000), 1),
            "fillsync8" => fillsync(name, dir, n.unwrap_or(20_000), 8),
            "fillbatch" => fillbatch(dir, n.unwrap_or(1_000_000)),
            "replay" => replay(dir, n.unwrap_or(258_000)),
            "runs" => runs(name, dir, n.unwrap_or(1_000_000), 1),
            "runs100" => runs(name, dir, n.unwrap_or(1_000_000), 100),
            _ => fill(name, dir, n.unwrap_or(1_000_000), name == "fillrandom"),
        }
    }
}
