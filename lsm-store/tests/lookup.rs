//! Point reads: what they may keep in memory, what they share, and what damage does to them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsm_store::vfs::{MemVfs, Vfs};
use lsm_store::{
    Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position, Result, SequenceNumber,
    Store,
};

const DATA: PartitionId = PartitionId(0);

fn options() -> Options {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly }];
    let defaults = Options::new(5, partitions);
    Options {
        block_bytes: 256,
        index_partition_bytes: 256,
        table_bytes: 64 * 1024,
        memtable_bytes: 1 << 30,
        ..defaults
    }
}

fn open(vfs: &MemVfs, options: Options) -> Result<Store> {
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    Store::open(vfs, Path::new("/db"), options, Executor::Inline)
}

fn key(n: u64) -> Vec<u8> {
    format!("key/{n:06}").into_bytes()
}

fn value(n: u64, round: u64) -> Vec<u8> {
    [n.to_le_bytes(), round.to_le_bytes()].concat()
}

/// Puts the keys `0..keys` as one run and flushes.
fn fill(store: &Store, keys: u64, round: u64) {
    let index = store.visible_position().index + 1;
    let mut run = store.begin_run(Position { index, term: 1, extra: vec![] }).expect("begins");
    let pairs: Vec<_> = (0..keys).map(|n| (key(n), value(n, round))).collect();
    let ops: Vec<_> = pairs.iter().map(|(key, value)| Op::Put { key, value }).collect();
    run.apply(DATA, SequenceNumber(round), &ops).expect("applies");
    run.publish().expect("publishes");
    store.flush().expect("flushes");
}

fn check(store: &Store, keys: u64, round: u64) {
    for n in 0..keys {
        let found = store.get(DATA, &key(n)).expect("reads").expect("there");
        assert_eq!(found.value, value(n, round), "key {n}");
    }
}

#[test]
fn memory_of_reads_stays_within_the_cache_however_much_the_store_holds() {
    const KEYS: u64 = 20_000;
    let cache_bytes = 48 * 1024;
    let vfs = MemVfs::new(1);
    let store = open(&vfs, Options { cache_bytes, ..options() }).expect("opens");
    fill(&store, KEYS, 1);
    let within = |when: &str| {
        let cache = store.metrics().cache;
        assert!(cache.held_bytes <= cache_bytes as u64 / 2, "{when}: {cache:?}");
        // Each part of the cache rounds its share up.
        assert!(cache.bytes() <= cache_bytes as u64 + 64, "{when}: {cache:?}");
        cache
    };
    check(&store, KEYS, 1);
    let cache = within("everything read once");
    // Of 20 000 keys filters alone are 25 000 bytes, and indexes more.
    assert!(cache.held_bytes > cache_bytes as u64 / 4, "tables hold what fits: {cache:?}");
    assert!(cache.index.misses + cache.filter.misses > 100, "the rest is cached: {cache:?}");
    check(&store, KEYS, 1);
    let again = within("and again");
    let missed =
        again.index.misses + again.filter.misses - cache.index.misses - cache.filter.misses;
    assert!(missed > 100, "what was not granted is not held: {missed} misses");
    // All tables are replaced: what they held is given back.
    for round in 2..=options().l0_trigger as u64 + 1 {
        fill(&store, KEYS, round);
    }
    store.compact_all().expect("compacts");
    assert!(store.metrics().compactions >= 1, "everything was compacted");
    assert_eq!(within("tables replaced").held_bytes, 0, "new tables hold nothing before a read");
    check(&store, KEYS, options().l0_trigger as u64 + 1);
    assert!(within("read").held_bytes > cache_bytes as u64 / 4, "new tables hold their own");
}

#[test]
fn a_table_looks_up_its_index_and_filter_in_the_cache_once() {
    let store = open(&MemVfs::new(1), options()).expect("opens");
    fill(&store, 1000, 1);
    check(&store, 1000, 1);
    let before = store.metrics().cache;
    check(&store, 1000, 1);
    let after = store.metrics().cache;
    assert_eq!((after.index, after.filter), (before.index, before.filter), "held by the table");
    assert_eq!(after.data.hits, before.data.hits + 1000, "every read counted");
    assert_eq!(after.data.misses, before.data.misses, "everything cached");
}

#[test]
fn a_block_in_use_stays_in_memory_whatever_else_is_read() {
    const KEYS: u64 = 20_000;
    let store = open(&MemVfs::new(1), Options { cache_bytes: 64 * 1024, ..options() });
    let store = store.expect("opens");
    fill(&store, KEYS, 1);
    let blocks_read = |n: u64| {
        let (found, counts) = lsm_store::perf::measure(|| store.get(DATA, &key(n)));
        assert_eq!(found.expect("reads").expect("there").value, value(n, 1), "key {n}");
        counts.blocks_read
    };
    let in_use = KEYS / 2;
    for _ in 0..3 {
        blocks_read(in_use);
    }
    let (mut again, mut others) = (0, 0);
    // Ten times everything, far more than fits.
    for n in (0..10).flat_map(|pass| (pass..KEYS).step_by(10)) {
        others += blocks_read(n);
        again += blocks_read(in_use);
    }
    assert!(others > 10_000, "the cache turned over: {others} blocks read");
    assert_eq!(again, 0, "blocks read again for a key that is looked up all the time");
}

#[test]
fn many_keys_at_once_give_what_each_gives_alone_and_share_their_blocks() {
    const KEYS: u64 = 500;
    let store = open(&MemVfs::new(1), options()).expect("opens");
    fill(&store, KEYS, 1);
    // Newer versions, some of them in memory, some deleted.
    let mut run = store.begin_run(Position { index: 2, term: 1, extra: vec![] }).expect("begins");
    for n in (0..KEYS).step_by(7) {
        let (key, value) = (key(n), value(n, 2));
        let op = if n % 2 == 0 {
            Op::Delete { key: &key }
        } else {
            Op::Put { key: &key, value: &value }
        };
        run.apply(DATA, SequenceNumber(n + 2), &[op]).expect("applies");
    }
    run.publish().expect("publishes");
    let view = store.view();
    // Out of order, with absent keys and repetitions.
    let keys: Vec<Vec<u8>> = (0..2 * KEYS).map(|n| key(n * 367 % (KEYS + 50))).collect();
    let slices: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let alone: Vec<_> = slices.iter().map(|key| view.get(DATA, key).expect("reads")).collect();
    let before = store.metrics().cache.data;
    let together = view.multi_get(DATA, &slices).expect("reads");
    assert_eq!(together, alone, "one by one, and together");
    assert!(together.iter().any(Option::is_none) && together.iter().any(Option::is_some), "both");
    let after = store.metrics().cache.data;
    let lookups = after.hits + after.misses - before.hits - before.misses;
    // A block of 256 bytes has more than four of these entries.
    assert!(lookups < KEYS / 4, "{lookups} blocks looked up for {} keys", slices.len());
}

#[test]
fn every_flipped_bit_of_a_table_gives_lookups_the_truth_or_an_error_whatever_is_held() {
    const KEYS: u64 = 30;
    let good = MemVfs::new(1);
    let small = Options { index_partition_bytes: 32, ..options() };
    let store = open(&good, small.clone()).expect("opens");
    fill(&store, KEYS, 1);
    store.close().expect("closes");
    let tables: Vec<PathBuf> = good.list(Path::new("/db/sst")).expect("lists");
    let [table] = tables.as_slice() else { panic!("one table: {tables:?}") };
    let len = good.content(table).expect("there").len() as u64;
    for cache_bytes in [0, 1 << 20] {
        for bit in 0..len * 8 {
            let vfs = good.fork();
            vfs.flip(table, bit / 8, 1 << (bit % 8)).expect("flips");
            let context = format!("bit {bit} of {len} bytes, cache of {cache_bytes} bytes");
            let options = Options { cache_bytes, ..small.clone() };
            let store = open(&vfs, options).expect("opens, if need be without the table");
            let mut errors = 0;
            // The second time from what is held or cached.
            for n in (0..KEYS).chain(0..KEYS) {
                match store.get(DATA, &key(n)) {
                    Ok(found) => {
                        let found = found.map(|f| f.value.to_vec());
                        assert_eq!(found, Some(value(n, 1)), "{context}: key {n}");
                    }
                    Err(_) => errors += 1,
                }
            }
            assert!(errors > 0, "{context}: every bit is read by some lookup");
        }
    }
}
