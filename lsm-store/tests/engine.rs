//! Behaviour of the store in External mode: runs, views, flushes, reopening, floors, failures.

use std::ops::Bound::Unbounded;
use std::path::Path;
use std::sync::Arc;

use lsm_store::vfs::{Fault, FaultKind, FaultWhen, MemVfs, OpSet, RealVfs, Vfs};
use lsm_store::{
    Error, Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position, SequenceNumber,
    Store,
};

const DATA: PartitionId = PartitionId(0);
const META: PartitionId = PartitionId(1);

fn partitions() -> Vec<PartitionOptions> {
    vec![
        PartitionOptions { name: "data".to_owned(), keep: Keep::All },
        PartitionOptions { name: "meta".to_owned(), keep: Keep::NewestOnly },
    ]
}

fn options() -> Options {
    Options::new(7, partitions())
}

fn tiny() -> Options {
    let mut options = options();
    options.memtable_bytes = 1024;
    options.block_bytes = 64;
    options.index_partition_bytes = 64;
    options.restart_interval = 2;
    options.table_bytes = 256;
    options.base_level_bytes = 512;
    options.level_ratio = 3;
    options.cache_bytes = 4096;
    options
}

fn open(vfs: &Arc<MemVfs>, options: Options) -> Store {
    try_open(vfs, options).expect("opens")
}

fn try_open(vfs: &Arc<MemVfs>, options: Options) -> lsm_store::Result<Store> {
    let vfs: Arc<dyn Vfs> = Arc::<MemVfs>::clone(vfs);
    Store::open(vfs, Path::new("/store"), options, Executor::Inline)
}

fn position(index: u64) -> Position {
    Position { index, term: 1, extra: index.to_le_bytes().to_vec() }
}

/// One run with one batch of one put.
fn put(store: &Store, index: u64, sequence: u64, key: &[u8], value: &[u8]) {
    let mut run = store.begin_run(position(index)).expect("begins");
    run.apply(DATA, SequenceNumber(sequence), &[Op::Put { key, value }]).expect("applies");
    run.publish().expect("publishes");
}

fn get(store: &Store, key: &[u8]) -> Option<(Vec<u8>, u64)> {
    store.get(DATA, key).expect("reads").map(|f| (f.value.to_vec(), f.sequence.0))
}

#[test]
fn an_addendum_is_in_tables_together_with_the_position_it_belongs_to() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs, options());
    put(&store, 5, 10, b"a", b"1");
    let mut run = store.begin_addendum().expect("begins");
    assert_eq!(*run.position(), position(5), "the position stays");
    let again = run.apply(DATA, SequenceNumber(10), &[Op::Delete { key: b"a" }]);
    assert!(matches!(again, Err(Error::AlreadyApplied { .. })), "{again:?}");
    run.apply(META, SequenceNumber(5), &[Op::Put { key: b"m", value: b"x" }]).expect("applies");
    assert!(matches!(store.begin_addendum(), Err(Error::InvalidArgument(_))), "one run at a time");
    run.publish().expect("publishes");
    assert_eq!(store.flush().expect("flushes"), position(5));
    store.close().expect("closes");
    let store = open(&vfs, options());
    assert_eq!(store.durable_position(), position(5));
    let row = store.get(META, b"m").expect("reads").expect("is there");
    assert_eq!((&*row.value, row.sequence), (&b"x"[..], SequenceNumber(5)));
    put(&store, 6, 11, b"a", b"2");
}

#[test]
fn a_run_becomes_visible_as_a_whole_and_reads_itself() {
    let store = open(&Arc::new(MemVfs::new(1)), options());
    let mut run = store.begin_run(position(5)).expect("begins");
    run.apply(DATA, SequenceNumber(10), &[Op::Put { key: b"a", value: b"1" }]).expect("applies");
    run.apply(META, SequenceNumber(5), &[Op::Put { key: b"m", value: b"x" }]).expect("applies");
    run.apply(
        DATA,
        SequenceNumber(11),
        &[Op::Put { key: b"a", value: b"2" }, Op::Delete { key: b"b" }],
    )
    .expect("applies");
    let own = run.multi_get(DATA, &[b"b", b"a"]).expect("reads");
    assert_eq!(own[0], None, "never put");
    assert_eq!(own[1].as_ref().expect("own write").value, "2", "its own newest");
    assert_eq!(get(&store, b"a"), None, "nobody else sees it");
    let before = store.view();
    run.publish().expect("publishes");
    assert_eq!(get(&store, b"a"), Some((b"2".to_vec(), 11)), "visible now");
    assert!(before.get(DATA, b"a").expect("reads").is_none(), "not in a view of before");
    assert_eq!(store.visible_position(), position(5), "position moved");
    assert_eq!(store.last_sequence(DATA), SequenceNumber(11), "last of data");
    assert_eq!(store.last_sequence(META), SequenceNumber(5), "last of meta");
    let at_10 = store.view_at(DATA, SequenceNumber(10)).expect("in history");
    assert_eq!(
        at_10.get(DATA, b"a").expect("reads").expect("there").value,
        "1",
        "the version before"
    );
}

#[test]
fn flushed_runs_survive_a_reopening_and_others_are_applied_again() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs, options());
    put(&store, 1, 1, b"a", b"1");
    assert_eq!(store.durable_position().index, 0, "nothing flushed");
    assert_eq!(store.flush().expect("flushes"), position(1), "reached");
    put(&store, 2, 2, b"b", b"2");
    store.close().expect("closes");
    let store = open(&vfs, options());
    assert_eq!(store.durable_position(), position(1), "from the manifest, extra included");
    assert_eq!(store.visible_position(), position(1), "replay starts here");
    assert_eq!(get(&store, b"a"), Some((b"1".to_vec(), 1)), "flushed");
    assert_eq!(get(&store, b"b"), None, "not flushed");
    put(&store, 2, 2, b"b", b"2");
    assert_eq!(get(&store, b"b"), Some((b"2".to_vec(), 2)), "applied again");
    store.verify().expect("sound");
}

#[test]
fn an_empty_flush_moves_the_position() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs, options());
    store.begin_run(position(9)).expect("begins").publish().expect("publishes");
    assert_eq!(store.flush().expect("flushes"), position(9), "moved without a write");
    assert_eq!(store.flush().expect("flushes"), position(9), "and stays");
    drop(store);
    assert_eq!(open(&vfs, options()).durable_position(), position(9), "recorded");
}

#[test]
fn what_was_applied_is_not_applied_twice() {
    let store = open(&Arc::new(MemVfs::new(1)), options());
    put(&store, 3, 7, b"a", b"1");
    assert!(
        matches!(
            store.begin_run(position(3)),
            Err(Error::AlreadyApplied { asked: 3, last: 3, .. })
        ),
        "position"
    );
    let mut run = store.begin_run(position(4)).expect("begins");
    let again = run.apply(DATA, SequenceNumber(7), &[Op::Delete { key: b"a" }]);
    assert!(
        matches!(again, Err(Error::AlreadyApplied { asked: 7, last: 7, .. })),
        "sequence number"
    );
    let zero = run.apply(META, SequenceNumber(0), &[Op::Delete { key: b"a" }]);
    assert!(matches!(zero, Err(Error::AlreadyApplied { asked: 0, .. })), "zero is reserved");
    run.publish().expect("publishes");
    assert_eq!(get(&store, b"a"), Some((b"1".to_vec(), 7)), "unchanged");
}

#[test]
fn limits_are_errors_of_the_caller() {
    let store = open(&Arc::new(MemVfs::new(1)), options());
    let mut run = store.begin_run(position(1)).expect("begins");
    let long = vec![0; lsm_store::MAX_KEY_BYTES + 1];
    let refused = run.apply(DATA, SequenceNumber(1), &[Op::Delete { key: &long }]);
    assert!(matches!(refused, Err(Error::TooLarge { what: "key", .. })), "key");
    let refused = run.apply(PartitionId(9), SequenceNumber(1), &[]);
    assert!(matches!(refused, Err(Error::InvalidArgument(_))), "partition");
    assert!(matches!(run.set_extra(vec![0; 257]), Err(Error::TooLarge { .. })), "extra");
    run.apply(DATA, SequenceNumber(1), &[Op::Put { key: &long[1..], value: b"" }])
        .expect("at the limit");
    run.publish().expect("publishes");
    store.flush().expect("flushes");
    assert_eq!(get(&store, &long[1..]), Some((vec![], 1)), "longest key, empty value");
}

#[test]
fn a_run_that_is_dropped_poisons_the_store() {
    let store = open(&Arc::new(MemVfs::new(1)), options());
    put(&store, 1, 1, b"a", b"1");
    let mut run = store.begin_run(position(2)).expect("begins");
    run.apply(DATA, SequenceNumber(2), &[Op::Put { key: b"a", value: b"2" }]).expect("applies");
    drop(run);
    assert_eq!(get(&store, b"a"), Some((b"1".to_vec(), 1)), "reads go on, without the run");
    assert!(matches!(store.begin_run(position(3)), Err(Error::Poisoned { .. })), "writes do not");
    assert!(matches!(store.flush(), Err(Error::Poisoned { .. })), "nor do flushes");
    assert!(store.metrics().poisoned.is_some_and(|r| r.contains("position 2")), "says why");
}

#[test]
fn only_one_run_is_open_and_no_flush_cuts_it() {
    let store = open(&Arc::new(MemVfs::new(1)), options());
    let run = store.begin_run(position(1)).expect("begins");
    assert!(matches!(store.begin_run(position(2)), Err(Error::InvalidArgument(_))), "second run");
    assert!(matches!(store.flush(), Err(Error::InvalidArgument(_))), "flush");
    run.publish().expect("publishes");
    store.flush().expect("flushes");
}

#[test]
fn history_is_readable_down_to_the_floor_and_no_further() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs, options());
    for n in 1..=9 {
        put(&store, n, n, b"k", &[u8::try_from(n).expect("small")]);
    }
    store.set_floor(DATA, SequenceNumber(5)).expect("raises");
    store.set_floor(DATA, SequenceNumber(3)).expect("does nothing");
    assert_eq!(store.floor(DATA), SequenceNumber(5), "does not fall");
    assert!(
        matches!(store.set_floor(DATA, SequenceNumber(10)), Err(Error::FutureSequence { .. })),
        "future"
    );
    assert!(
        matches!(store.set_floor(META, SequenceNumber(0)), Err(Error::InvalidArgument(_))),
        "meta"
    );
    store.flush().expect("flushes");
    for n in 5..=9 {
        let view = store.view_at(DATA, SequenceNumber(n)).expect("at or above the floor");
        assert_eq!(
            view.get(DATA, b"k").expect("reads").expect("there").sequence.0,
            n,
            "version {n}"
        );
    }
    assert!(
        matches!(
            store.view_at(DATA, SequenceNumber(4)),
            Err(Error::Compacted { asked: 4, floor: 5 })
        ),
        "below the floor"
    );
    assert!(
        matches!(
            store.view_at(DATA, SequenceNumber(10)),
            Err(Error::FutureSequence { visible: 9, .. })
        ),
        "above what is visible"
    );
    assert_eq!(store.metrics().shadowed_dropped, 4, "versions 1 to 4 went with the flush");
    drop(store);
    let store = open(&vfs, options());
    assert_eq!(store.floor(DATA), SequenceNumber(5), "recorded");
}

#[test]
fn a_partition_of_newest_versions_keeps_what_a_view_still_sees() {
    let store = open(&Arc::new(MemVfs::new(1)), options());
    let write = |index: u64, value: &[u8]| {
        let mut run = store.begin_run(position(index)).expect("begins");
        run.apply(META, SequenceNumber(index), &[Op::Put { key: b"k", value }]).expect("applies");
        run.publish().expect("publishes");
    };
    write(1, b"one");
    let view = store.view();
    write(2, b"two");
    write(3, b"three");
    store.flush().expect("flushes");
    assert_eq!(view.get(META, b"k").expect("reads").expect("there").value, "one", "pinned");
    assert!(
        matches!(store.view_at(META, SequenceNumber(2)), Err(Error::Compacted { .. })),
        "no history"
    );
    let entries =
        |store: &Store| store.metrics().partitions[1].levels.iter().map(|l| l.entries).sum::<u64>();
    assert_eq!(entries(&store), 3, "all three, for the view");
    drop(view);
    write(4, b"four");
    store.flush().expect("flushes");
    assert_eq!(entries(&store), 4, "an older run is not rewritten by a flush");
}

#[test]
fn a_wrong_store_other_partitions_and_a_second_opening_are_refused() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs, options());
    assert!(matches!(try_open(&vfs, options()), Err(Error::Locked { .. })), "second opening");
    store.close().expect("closes");
    let mut other = options();
    other.store_id = 8;
    assert!(
        matches!(try_open(&vfs, other), Err(Error::WrongStore { found: 7, expected: 8, .. })),
        "store"
    );
    let mut other = options();
    other.partitions.pop();
    assert!(matches!(try_open(&vfs, other), Err(Error::InvalidArgument(_))), "partitions");
    let mut none = options();
    none.block_bytes = 0;
    assert!(matches!(try_open(&vfs, none), Err(Error::InvalidArgument(_))), "options");
}

#[test]
fn a_closed_store_refuses_writes_and_closing_again_is_nothing() {
    let store = open(&Arc::new(MemVfs::new(1)), options());
    put(&store, 1, 1, b"a", b"1");
    let other = store.clone();
    store.close().expect("closes");
    assert!(matches!(other.begin_run(position(2)), Err(Error::Closed)), "begin");
    assert!(matches!(other.flush(), Err(Error::Closed)), "flush");
    other.close().expect("nothing to do");
}

#[test]
fn verification_notices_a_file_that_was_removed() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs, options());
    put(&store, 1, 1, b"a", b"1");
    store.flush().expect("flushes");
    store.verify().expect("sound");
    let table =
        vfs.files().into_iter().find(|p| p.extension().is_some_and(|e| e == "sst")).expect("one");
    vfs.unlink(&table).expect("unlinks");
    let error = store.verify().expect_err("gone");
    assert!(matches!(&error, Error::Corruption { file, .. } if *file == table), "{error}");
}

#[test]
fn a_writer_that_background_work_cannot_follow_stalls_and_goes_on_when_it_can() {
    let vfs = Arc::new(MemVfs::new(1));
    let mut options = tiny();
    options.stall_max = std::time::Duration::from_millis(300);
    let shared: Arc<dyn Vfs> = Arc::<MemVfs>::clone(&vfs);
    let store =
        Store::open(shared, Path::new("/store"), options, Executor::Threads).expect("opens");
    vfs.add_fault(Fault {
        ops: OpSet::WRITES,
        when: FaultWhen::Always,
        kind: FaultKind::NoSpace,
        path_contains: "sst".to_owned(),
    });
    let mut n = 0;
    let stalled = loop {
        n += 1;
        assert!(n < 1000, "memory is bounded");
        match store.begin_run(position(n)) {
            Ok(mut run) => {
                run.apply(DATA, SequenceNumber(n), &[Op::Put { key: b"k", value: &[7; 100] }])
                    .expect("applies");
                run.publish().expect("publishes");
            }
            Err(e) => break e,
        }
    };
    assert!(
        matches!(&stalled, Error::Stalled { frozen: 2, waited_ms, .. } if *waited_ms >= 300),
        "{stalled}"
    );
    let failures = store.metrics().job_failures;
    assert!((1..100).contains(&failures), "tried a few times, not in a loop: {failures}");
    assert!(matches!(store.flush(), Err(Error::Stalled { .. })), "a flush says so, too");
    assert_eq!(get(&store, b"k").map(|found| found.1), Some(n - 1), "reads go on");
    vfs.clear_faults();
    // The flush thread tries again by itself; a flush waits for it.
    while store.flush().is_err() {}
    put(&store, n, n, b"k", b"v");
    assert_eq!(store.flush().expect("flushes").index, n, "goes on");
    assert!(store.metrics().stalls >= 1, "counted");
    store.close().expect("closes");
}

#[test]
fn a_store_on_a_real_disk_with_threads_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || {
        Store::open(Arc::new(RealVfs::new()), dir.path(), tiny(), Executor::Threads).expect("opens")
    };
    let store = open();
    for n in 1..=500 {
        put(&store, n, n, &(n % 50).to_be_bytes(), &n.to_le_bytes());
    }
    assert_eq!(store.flush().expect("flushes"), position(500), "all");
    let again = Store::open(Arc::new(RealVfs::new()), dir.path(), tiny(), Executor::Threads);
    assert!(matches!(again, Err(Error::Locked { .. })), "one at a time");
    store.close().expect("closes");
    let store = open();
    for n in 451..=500_u64 {
        assert_eq!(
            get(&store, &(n % 50).to_be_bytes()),
            Some((n.to_le_bytes().to_vec(), n)),
            "key of {n}"
        );
    }
    store.verify().expect("sound");
    store.close().expect("closes");
}

#[test]
fn a_manifest_that_grows_is_replaced_by_a_short_one() {
    const FLOORS: u64 = 20_000;
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs, options());
    put(&store, 1, FLOORS, b"a", b"1");
    let manifests = || {
        let names = vfs.files().into_iter().filter(|p| p.to_string_lossy().contains("MANIFEST"));
        names.collect::<Vec<_>>()
    };
    let first = manifests();
    for floor in 1..=FLOORS {
        store.set_floor(DATA, SequenceNumber(floor)).expect("raises");
    }
    let last = manifests();
    assert_eq!((first.len(), last.len()), (1, 1), "one at a time: {first:?}, {last:?}");
    assert_ne!(first, last, "another one");
    let markers =
        vfs.files().into_iter().filter(|p| p.to_string_lossy().contains("CURRENT")).count();
    assert_eq!(markers, 1, "one marker");
    let len = vfs.content(&last[0]).expect("there").len();
    assert!(len < 2 << 20, "{len} bytes for {FLOORS} edits");
    store.flush().expect("flushes");
    store.verify().expect("sound");
    drop(store);
    let store = open(&vfs, options());
    assert_eq!(store.floor(DATA), SequenceNumber(FLOORS), "all edits are in it");
    assert_eq!(get(&store, b"a"), Some((b"1".to_vec(), FLOORS)), "and the table");
}

#[test]
fn many_runs_in_tiny_tables_reach_all_parts_of_the_tree_and_stay_readable() {
    let vfs = Arc::new(MemVfs::new(1));
    let mut store = open(&vfs, tiny());
    let key = |n: u64| format!("key-{:03}", n * 7919 % 200).into_bytes();
    for n in 1..=2000_u64 {
        put(&store, n, n, &key(n), &n.to_le_bytes());
        if n % 500 == 0 {
            store.flush().expect("flushes");
            store.verify().expect("sound");
            let flushed = store.durable_position();
            drop(store);
            store = open(&vfs, tiny());
            assert_eq!(store.visible_position(), flushed, "everything");
        }
    }
    let metrics = store.metrics();
    let used = metrics.partitions[0].levels.iter().skip(1).filter(|l| l.tables > 0).count();
    assert!(used >= 3, "levels used: {:?}", metrics.partitions[0].levels);
    for n in 1801..=2000 {
        assert_eq!(get(&store, &key(n)), Some((n.to_le_bytes().to_vec(), n)), "newest of {n}");
    }
    for at in [1, 200, 999, 1999] {
        let view = store.view_at(DATA, SequenceNumber(at)).expect("all history is there");
        let expected = (1..=at).rev().take(200).min().expect("some");
        for n in expected..=at {
            assert_eq!(
                view.get(DATA, &key(n)).expect("reads").map(|f| f.sequence.0),
                Some(n),
                "{n} at {at}"
            );
        }
        let mut iter = view.iter(DATA, Unbounded, Unbounded).expect("iterates");
        let mut count = 0;
        while iter.next().expect("moves") {
            count += 1;
        }
        assert_eq!(count, at.min(200), "keys at {at}");
    }
    store.set_floor(DATA, SequenceNumber(2000)).expect("raises");
    store.start_flush().expect("works");
    let entries: u64 = store.metrics().partitions[0].levels.iter().map(|l| l.entries).sum();
    assert!(entries < 700, "garbage goes once the floor is raised: {entries} entries of 200 keys");
    store.verify().expect("sound");
}
