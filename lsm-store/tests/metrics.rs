//! That every figure of `Metrics` counts what it says.

use std::ops::Bound::Unbounded;
use std::path::Path;
use std::sync::Arc;

use lsm_store::vfs::{MemVfs, Vfs};
use lsm_store::{
    Distribution, Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position,
    SequenceNumber, Store,
};

const DATA: PartitionId = PartitionId(0);

fn options() -> Options {
    Options::new(7, vec![PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly }])
}

fn open(vfs: &Arc<MemVfs>, options: Options, executor: Executor) -> Store {
    let vfs: Arc<dyn Vfs> = Arc::<MemVfs>::clone(vfs);
    Store::open(vfs, Path::new("/store"), options, executor).expect("opens")
}

/// A run of one put.
fn put(store: &Store, index: u64, key: &[u8], value: &[u8]) {
    let mut run = store.begin_run(Position { index, ..Position::default() }).expect("begins");
    run.apply(DATA, SequenceNumber(index), &[Op::Put { key, value }]).expect("applies");
    run.publish().expect("publishes");
}

#[test]
fn durations_are_of_flushes_and_merges_that_were_installed_and_there_are_none_without_a_clock() {
    for executor in [Executor::Inline, Executor::Threads] {
        let store = open(&Arc::new(MemVfs::new(1)), options(), executor);
        for index in 1..4 {
            put(&store, index, b"key", b"value");
            store.flush().expect("flushes");
        }
        store.compact_all().expect("compacts");
        // A flush is counted after those who wait for it were told: the end of the threads is waited for.
        store.clone().close().expect("closes");
        let metrics = store.metrics();
        assert_eq!((metrics.flushes, metrics.compactions), (3, 1), "{executor:?}: {metrics:?}");
        if executor == Executor::Inline {
            assert_eq!(metrics.flush_micros, Distribution::default(), "no clock");
            assert_eq!(metrics.compaction_micros, Distribution::default(), "no clock");
        } else {
            assert_eq!(metrics.flush_micros.count, 3, "{metrics:?}");
            assert_eq!(metrics.compaction_micros.count, 1, "{metrics:?}");
        }
    }
}

fn delete(store: &Store, index: u64, key: &[u8]) {
    let mut run = store.begin_run(Position { index, ..Position::default() }).expect("begins");
    run.apply(DATA, SequenceNumber(index), &[Op::Delete { key }]).expect("applies");
    run.publish().expect("publishes");
}

#[test]
fn lookups_count_the_tables_that_filters_excluded_that_were_searched_in_vain_and_that_answered() {
    let vfs = Arc::new(MemVfs::new(1));
    // Few bits per key: filters are wrong often.
    let store = open(&vfs, Options { filter_bits_per_key: 4, ..options() }, Executor::Inline);
    let key = |n: u64| format!("key-{n:04}").into_bytes();
    for index in 1..=200 {
        put(&store, index, &key(2 * index), b"value");
    }
    let view = store.view();
    delete(&store, 201, &key(2));
    let get = |n: u64| store.get(DATA, &key(n)).expect("reads").is_some();
    assert!(get(4), "in memory");
    let reads = store.metrics().reads;
    assert_eq!((reads.gets, reads.filter_checks()), (1, 0), "memory has no filter: {reads:?}");
    store.flush().expect("flushes");
    drop(view);
    assert!((2..=200).all(|n| get(2 * n)), "in the table");
    assert!(!get(2) && !get(2), "deleted");
    let reads = store.metrics().reads;
    assert_eq!((reads.gets, reads.tables_answered), (202, 201), "a delete answers: {reads:?}");
    assert_eq!((reads.filter_excluded, reads.filter_false_positives), (0, 0), "{reads:?}");
    assert!((1..200).all(|n| !get(2 * n + 1)), "absent");
    let reads = store.metrics().reads;
    assert_eq!((reads.gets, reads.tables_answered), (401, 201), "{reads:?}");
    let (no, wrong) = (reads.filter_excluded, reads.filter_false_positives);
    assert!(no > 100 && wrong > 5 && no + wrong == 199, "a poor filter does both: {reads:?}");
    assert_eq!((reads.filter_checks(), reads.tables_searched()), (400, 201 + wrong), "{reads:?}");
    let amplification = reads.read_amplification();
    assert!(amplification > 0.5 && amplification < 1.0, "{amplification}");
    let keys: Vec<Vec<u8>> = (2..=200).map(|n| key(2 * n)).collect();
    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    assert!(store.view().multi_get(DATA, &keys).expect("reads").iter().all(Option::is_some));
    let together = store.metrics().reads;
    assert_eq!((together.gets, together.tables_answered), (600, 400), "each of many: {together:?}");
    assert_eq!(together.seeks, 0, "{together:?}");
}

#[test]
fn iterators_count_searches_and_what_they_pass_and_compactions_are_not_in_it() {
    let store = open(&Arc::new(MemVfs::new(1)), options(), Executor::Inline);
    let view = store.view();
    put(&store, 1, b"a", b"value");
    put(&store, 2, b"a", b"value");
    put(&store, 3, b"b", b"value");
    delete(&store, 4, b"c");
    put(&store, 5, b"d", b"value");
    store.flush().expect("flushes");
    let mut iter = store.view().iter(DATA, Unbounded, Unbounded).expect("iterates");
    let mut seen = Vec::new();
    while iter.next().expect("moves") {
        seen.push(iter.key().to_vec());
    }
    assert_eq!(seen, [b"a", b"b", b"d"]);
    let reads = store.metrics().reads;
    assert_eq!(
        (reads.seeks, reads.versions_skipped, reads.deletes_skipped),
        (1, 1, 1),
        "{reads:?}"
    );
    assert!(iter.seek_to_last().expect("seeks"), "d");
    while iter.prev().expect("moves") {}
    let reads = store.metrics().reads;
    assert_eq!((reads.versions_skipped, reads.deletes_skipped), (2, 2), "backward too: {reads:?}");
    assert!(iter.seek(b"b").expect("seeks") && iter.seek_for_prev(b"b").expect("seeks"), "b");
    assert!(iter.seek_to_last().expect("seeks"), "d");
    let before = store.metrics();
    assert_eq!(before.reads.seeks, 5, "{before:?}");
    drop((iter, view));
    store.compact_all().expect("compacts");
    let after = store.metrics();
    assert_eq!(after.compactions, before.compactions + 1, "rewritten");
    assert_eq!((after.reads, after.cache.data), (before.reads, before.cache.data), "by nobody");
}

#[test]
fn garbage_is_what_no_view_sees_and_the_oldest_view_says_why_it_stays() {
    let store = open(&Arc::new(MemVfs::new(1)), options(), Executor::Inline);
    let garbage = || store.metrics().partitions[0].levels.iter().map(|l| l.garbage).sum::<u64>();
    put(&store, 1, b"key", b"value");
    let oldest = store.view();
    (2..=64).for_each(|index| put(&store, index, b"key", b"value"));
    let newer = store.view();
    assert_eq!(store.metrics().partitions[0].oldest_view, Some(1), "of two");
    store.flush().expect("flushes");
    assert_eq!(garbage(), 0, "the oldest view keeps all of it");
    drop(oldest);
    assert_eq!(store.metrics().partitions[0].oldest_view, Some(64), "the other");
    drop(newer);
    assert_eq!(store.metrics().partitions[0].oldest_view, None, "none is left");
    assert!((32..64).contains(&garbage()), "{} of 63 older versions", garbage());
    store.compact_all().expect("compacts");
    assert_eq!(garbage(), 0, "dropped");
    let metrics = store.metrics();
    let (flushed, merged) = (metrics.flush_bytes as f64, metrics.compaction_bytes_written as f64);
    assert!(merged > 0.0, "{metrics:?}");
    assert_eq!(metrics.write_amplification(), (flushed + merged) / flushed, "{metrics:?}");
}
