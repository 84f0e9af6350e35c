//! What a flush and a compaction cost: CPU time of the thread that does them, per row.
//!
//! `cargo bench -p lsm-store --bench rewrite`. 16-byte keys in random order, 100-byte values that compress to half;
//! `KEYS` rows (2,000,000) come as four runs of level 0, and are then merged into one level, once without
//! compression and once with.

#![expect(clippy::print_stdout, reason = "prints its results")]

mod common;

use std::error::Error;
use std::sync::Arc;

use common::{cpu_time, key};
use lsm_store::rng::SplitMix64;
use lsm_store::vfs::RealVfs;
use lsm_store::{
    Compression, Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position,
    SequenceNumber, Store,
};

const DATA: PartitionId = PartitionId(0);
const RUNS: u64 = 4;
const BATCH: u64 = 1000;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let keys = std::env::var("KEYS").ok().and_then(|k| k.parse().ok()).unwrap_or(2_000_000);
    for compression in [Compression::None, Compression::Lz4] {
        rewrite(keys, compression)?;
    }
    Ok(())
}

fn rewrite(keys: u64, compression: Compression) -> Outcome<()> {
    let dir = std::env::temp_dir().join(format!("lsm-store-rewrite-{}", std::process::id()));
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly }];
    let mut options = Options::new(1, partitions);
    options.compression = compression;
    options.memtable_bytes = 1 << 30;
    let per_run = keys / RUNS;
    let mut rng = SplitMix64::new(7);
    let store = Store::open(Arc::new(RealVfs::new()), &dir, options.clone(), Executor::Inline)?;
    let mut flushes = 0;
    for run in 1..=RUNS {
        if run == RUNS {
            // The last flush is not measured: the merge of level 0 follows it at once.
            report("flush", flushes, per_run * (RUNS - 1));
        }
        for _ in 0..per_run / BATCH {
            let index = store.visible_position().index + 1;
            let mut batch = store.begin_run(Position { index, term: 1, extra: vec![] })?;
            let rows: Vec<_> = (0..BATCH).map(|_| row(&mut rng)).collect();
            let ops: Vec<_> = rows.iter().map(|(key, value)| Op::Put { key, value }).collect();
            batch.apply(DATA, SequenceNumber(index), &ops)?;
            batch.publish()?;
        }
        let from = cpu_time();
        store.flush()?;
        let took = (cpu_time() - from).as_nanos();
        if run < RUNS {
            flushes += took;
        } else {
            let merged = took.saturating_sub(flushes / u128::from(RUNS - 1));
            assert_eq!(store.metrics().compactions, 1, "one merge of level 0");
            report(&format!("merge {compression:?}"), merged, keys);
        }
    }
    store.close()?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn report(name: &str, nanos: u128, rows: u64) {
    println!("{name:<12} {:>7} ns a row", nanos / u128::from(rows.max(1)));
}

/// 16 digits, and a value of which half is noise.
fn row(rng: &mut SplitMix64) -> ([u8; 16], [u8; 100]) {
    let key = key(rng.below(100_000_000));
    let mut value = [b'v'; 100];
    for chunk in value.chunks_exact_mut(16) {
        let (random, _) = chunk.split_at_mut(8);
        random.copy_from_slice(&rng.next_u64().to_le_bytes());
    }
    (key, value)
}
