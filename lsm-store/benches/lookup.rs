//! What a point read costs: CPU time of the reading thread per key, for hits, misses and batches, with a
//! cache that holds everything and with one that holds a quarter.
//!
//! `cargo bench -p lsm-store --bench lookup [-- ROW]`. 16-byte keys (even numbers are there, odd ones are
//! not), 100-byte values. In the environment: `KEYS` (2,000,000), `READS` (500,000), `BLOCK` and `RESTART`
//! (the options `block_bytes` and `restart_interval`), `CODEC=lz4`, and `STORE`, a directory that is
//! filled once and kept for later runs with the same settings. A shared machine disturbs wall time; CPU
//! time of one thread it disturbs less, so that is what is shown, with the median of five rounds.

#![expect(clippy::print_stdout, reason = "prints its results")]

mod common;

use std::error::Error;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{cpu_time, key};
use lsm_store::rng::SplitMix64;
use lsm_store::vfs::RealVfs;
use lsm_store::{
    Compression, Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position,
    SequenceNumber, Store, View,
};

const DATA: PartitionId = PartitionId(0);
const VALUE_BYTES: usize = 100;
const RUN_BATCHES: u64 = 1000;
const ROUNDS: usize = 5;
const MIB: usize = 1024 * 1024;
/// Keys of one `multi_get`.
const BATCH: usize = 64;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    let keys = number("KEYS", 2_000_000);
    let reads = number("READS", 500_000);
    let kept = std::env::var_os("STORE").map(PathBuf::from);
    let dir = kept.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("lsm-store-lookup-{}", std::process::id()))
    });
    if !dir.exists() {
        fill(&dir, keys)?;
    }
    // Made beforehand: what is measured is the store, not the digits of its keys.
    let mut rng = SplitMix64::new(11);
    let mut prepare = |key_of: &dyn Fn(&mut SplitMix64) -> [u8; 16]| -> Vec<[u8; 16]> {
        (0..reads).map(|_| key_of(&mut rng)).collect()
    };
    let present = prepare(&|rng| key(2 * rng.below(keys)));
    let absent = prepare(&|rng| key(2 * rng.below(keys) + 1));
    // An eighth of the keys take all reads: what of them is in the processor's caches stays.
    let hot = prepare(&|rng| key(2 * rng.below(keys / 8)));
    for (cache, bytes) in [("cached", 512 * MIB), ("c64", 64 * MIB)] {
        let store = open(&dir, bytes)?;
        let view = store.view();
        if cache == "cached" {
            warm(&view, keys)?;
        }
        for (row, keys, found) in [
            ("readrandom", &present, true),
            ("readmissing", &absent, false),
            ("readhot", &hot, true),
        ] {
            if wants(row) {
                measure(&format!("{cache}/{row}"), reads, || {
                    for key in keys {
                        let got = view.get(DATA, key)?;
                        assert_eq!(got.is_some(), found, "{row}");
                        black_box(got);
                    }
                    Ok(())
                })?;
            }
        }
        if wants("multiget") {
            measure(&format!("{cache}/multiget"), reads, || {
                for batch in present.chunks(BATCH) {
                    let batch: Vec<&[u8]> = batch.iter().map(<[u8; 16]>::as_slice).collect();
                    let got = view.multi_get(DATA, &batch)?;
                    assert!(got.iter().all(Option::is_some), "all are there");
                    black_box(got);
                }
                Ok(())
            })?;
        }
        let of_cache = store.metrics().cache;
        println!("{cache:<24} {of_cache:?}");
        drop(view);
        store.close()?;
    }
    if kept.is_none() {
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn open(dir: &Path, cache_bytes: usize) -> Outcome<Store> {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly }];
    let defaults = Options::new(1, partitions);
    let usize_of =
        |name, default: usize| usize::try_from(number(name, default as u64)).unwrap_or(default);
    let lz4 = std::env::var("CODEC").is_ok_and(|codec| codec == "lz4");
    let options = Options {
        cache_bytes,
        compression: if lz4 { Compression::Lz4 } else { Compression::None },
        block_bytes: usize_of("BLOCK", defaults.block_bytes),
        restart_interval: usize_of("RESTART", defaults.restart_interval),
        ..defaults
    };
    Ok(Store::open(Arc::new(RealVfs::new()), dir, options, Executor::Inline)?)
}

fn fill(dir: &Path, keys: u64) -> Outcome<()> {
    let store = open(dir, 64 * MIB)?;
    let mut rng = SplitMix64::new(7);
    // A stride without a common divisor visits every key once, far from the one before.
    let stride = (keys / 3) | 1;
    let stride = (stride..).step_by(2).find(|s| coprime(*s, keys)).unwrap_or(1);
    let (mut at, mut done) = (0, 0);
    while done < keys {
        let index = store.visible_position().index + 1;
        let mut run = store.begin_run(Position { index, term: 1, extra: vec![] })?;
        for _ in 0..RUN_BATCHES.min(keys - done) {
            at = (at + stride) % keys;
            done += 1;
            let (key, value) = (key(2 * at), value(&mut rng));
            run.apply(DATA, SequenceNumber(done), &[Op::Put { key: &key, value: &value }])?;
        }
        run.publish()?;
    }
    store.flush()?;
    for (number, level) in store.metrics().partitions.iter().flat_map(|p| &p.levels).enumerate() {
        if level.tables > 0 {
            println!("level {number}: {} tables, {} MiB", level.tables, level.bytes >> 20);
        }
    }
    store.close()?;
    Ok(())
}

fn coprime(mut a: u64, mut b: u64) -> bool {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

/// Reads everything once, in order.
fn warm(view: &View, keys: u64) -> Outcome<()> {
    for n in 0..keys {
        black_box(view.get(DATA, &key(2 * n))?);
    }
    Ok(())
}

/// Shows the CPU time of one of the `reads` that `round` does.
fn measure(row: &str, reads: u64, mut round: impl FnMut() -> Outcome<()>) -> Outcome<()> {
    let mut nanos = Vec::new();
    for _ in 0..ROUNDS {
        let started = cpu_time();
        round()?;
        nanos.push((cpu_time() - started).as_nanos() / u128::from(reads.max(1)));
    }
    nanos.sort_unstable();
    let [least, .., most] = nanos.as_slice() else { return Ok(()) };
    let median = nanos.get(ROUNDS / 2).unwrap_or(most);
    println!("{row:<24} {median:>9} ns of CPU each (least {least}, most {most})");
    Ok(())
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
