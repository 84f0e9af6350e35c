//! That every figure of `Metrics` counts what it says.

use std::collections::BTreeSet;
use std::ops::Bound::Unbounded;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lsm_store::vfs::{MemVfs, Vfs};
use lsm_store::{
    Distribution, Durability, Executor, Keep, LevelMetrics, Mode, Op, Options, PartitionId,
    PartitionOptions, Position, SequenceNumber, Store, WriteBatch,
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

/// Names of fields, those of structs with the path to them.
fn names(value: &serde_json::Value, path: &str, all: &mut BTreeSet<String>) {
    if let Some(fields) = value.as_object() {
        fields.iter().for_each(|(name, value)| names(value, &format!("{path}.{name}"), all));
    } else if let Some(values) = value.as_array() {
        values.iter().for_each(|value| names(value, &format!("{path}[]"), all));
    } else {
        all.insert(path.to_owned());
    }
}

#[test]
fn the_names_of_figures_are_those_that_scripts_know() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs, Options { mode: Mode::Wal, ..options() }, Executor::Inline);
    let value = serde_json::to_value(store.metrics()).expect("serializes");
    let mut found = BTreeSet::new();
    names(&value, "", &mut found);
    let known = include_str!("fixtures/metrics.txt");
    let found: Vec<String> = found.into_iter().collect();
    let known: Vec<&str> = known.lines().collect();
    assert_eq!(found, known, "a name that is gone breaks whoever reads it: {}", found.join("\n"));
}

#[test]
fn what_flushes_and_compactions_do_is_counted_by_level_and_what_users_write_in_bytes() {
    let store = open(&Arc::new(MemVfs::new(1)), options(), Executor::Inline);
    put(&store, 1, b"key", b"value");
    delete(&store, 2, b"other");
    put(&store, 3, b"far", b"away");
    assert_eq!(store.metrics().user_bytes, 3 + 5 + 5 + 3 + 4, "keys and values");
    store.flush().expect("flushes");
    put(&store, 4, b"key", b"values");
    store.flush().expect("flushes");
    let metrics = store.metrics();
    let top = metrics.partitions[0].levels[0];
    assert_eq!(top.bytes_written, metrics.flush_bytes, "by flushes: {metrics:?}");
    assert_eq!((top.bytes, top.bytes_read, top.bytes_moved), (top.bytes_written, 0, 0), "{top:?}");
    store.compact_all().expect("compacts");
    let metrics = store.metrics();
    let levels = &metrics.partitions[0].levels;
    let (read, written) = (metrics.compaction_bytes_read, metrics.compaction_bytes_written);
    let last = levels.last().expect("levels");
    assert_eq!(
        (last.bytes_read, last.bytes_written, last.bytes),
        (read, written, written),
        "{last:?}"
    );
    assert_eq!(levels[0].bytes_written, metrics.flush_bytes, "as before: {metrics:?}");
    let amplification = metrics.user_write_amplification();
    let all = (metrics.flush_bytes + written) as f64;
    assert_eq!(amplification, all / metrics.user_bytes as f64, "{metrics:?}");
}

#[test]
fn tables_that_move_as_they_are_count_for_the_level_they_move_to() {
    let small = Options {
        memtable_bytes: 16 << 10,
        table_bytes: 4 << 10,
        base_level_bytes: 8 << 10,
        level_ratio: 2,
        ..options()
    };
    let store = open(&Arc::new(MemVfs::new(1)), small, Executor::Inline);
    for index in 1..=4000 {
        put(&store, index, format!("key-{index:05}").as_bytes(), &[7; 50]);
    }
    store.flush().expect("flushes");
    let metrics = store.metrics();
    assert!(metrics.trivial_moves > 0, "rising keys move: {metrics:?}");
    let levels = &metrics.partitions[0].levels;
    let sum = |of: fn(&LevelMetrics) -> u64| levels.iter().map(of).sum::<u64>();
    assert!(sum(|l| l.bytes_moved) > 0 && levels[0].bytes_moved == 0, "{metrics:?}");
    assert_eq!(sum(|l| l.bytes_read), metrics.compaction_bytes_read, "{metrics:?}");
    let written = metrics.flush_bytes + metrics.compaction_bytes_written;
    assert_eq!(sum(|l| l.bytes_written), written, "{metrics:?}");
}

#[test]
fn a_view_that_somebody_forgot_grows_old_and_there_is_no_age_without_a_clock() {
    for executor in [Executor::Inline, Executor::Threads] {
        let store = open(&Arc::new(MemVfs::new(1)), options(), executor);
        let age = || store.metrics().partitions[0].oldest_view_micros;
        put(&store, 1, b"key", b"value");
        assert_eq!(age(), None, "no view");
        let since = Instant::now();
        let view = store.view();
        put(&store, 2, b"key", b"value");
        let newer = store.view();
        while executor == Executor::Threads && age() < Some(2000) {
            std::thread::yield_now();
        }
        let (seen, longest) = (age(), since.elapsed().as_micros());
        assert_eq!(seen.is_some(), executor == Executor::Threads, "{seen:?}");
        assert!(seen.is_none_or(|seen| u128::from(seen) <= longest), "{seen:?} of {longest}");
        drop(view);
        assert_eq!(age().is_some(), seen.is_some(), "the other");
        drop(newer);
        assert_eq!(age(), None, "none is left");
    }
}

#[test]
fn a_flush_notices_views_so_that_their_age_is_known_when_somebody_asks() {
    let store = open(&Arc::new(MemVfs::new(1)), options(), Executor::Threads);
    let _view = store.view();
    put(&store, 1, b"key", b"value");
    store.flush().expect("flushes");
    let flushed = Instant::now();
    while flushed.elapsed().as_micros() < 1000 {
        std::thread::yield_now();
    }
    let least = flushed.elapsed().as_micros();
    let age = store.metrics().partitions[0].oldest_view_micros.expect("a view");
    assert!(u128::from(age) >= least, "{age} since before the flush ended, {least} ago");
}

#[test]
fn memory_of_tables_grows_with_them_and_goes_with_them() {
    let small = Options { block_bytes: 64, index_partition_bytes: 64, ..options() };
    let store = open(&Arc::new(MemVfs::new(1)), small, Executor::Inline);
    assert_eq!(store.metrics().table_memory_bytes, 0, "no tables");
    let key = |index: u64| format!("{index:0100}").into_bytes();
    (1..=500).for_each(|index| put(&store, index, &key(index), b"value"));
    store.flush().expect("flushes");
    let memory = store.metrics().table_memory_bytes;
    // A key for each index partition, of which there is one for every few blocks.
    assert!((10_000..1_000_000).contains(&memory), "{memory}");
    (501..=1000).for_each(|index| delete(&store, index, &key(index - 500)));
    store.compact_all().expect("compacts");
    assert_eq!(store.metrics().table_memory_bytes, 0, "nothing is left");
}

#[test]
fn metrics_read_as_a_report_in_sections() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs, Options { mode: Mode::Wal, ..options() }, Executor::Inline);
    let mut batch = WriteBatch::new();
    batch.put(DATA, b"key", &[7; 2000]).expect("small");
    store.write(batch, Durability::Sync).expect("writes");
    store.flush().expect("flushes");
    let _view = store.view();
    let report = store.metrics().to_string();
    let head = |line: &&str| !line.starts_with(' ');
    let heads: Vec<&str> = report.lines().filter(head).collect();
    let sections = ["writes", "background work", "partition 0", "reads", "memory", "files"];
    assert_eq!(heads, sections, "{report}");
    for line in [
        "  runs          1, 2.0 KiB of keys and values",
        "  position      1, in tables up to 1",
        "  flushes       1 of 2.",
        "  numbers       1 to 1",
        "  oldest view   at 1",
        "  views         1",
    ] {
        assert!(report.lines().any(|l| l.starts_with(line)), "{line:?} is not in\n{report}");
    }
    let level = report.lines().find(|l| l.starts_with("      0           1 "));
    assert!(level.is_some(), "level 0 has a table:\n{report}");
}
