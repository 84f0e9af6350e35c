//! A device that fills up: writes are refused in time and before anything is touched, reads and flushes go
//! on, and so do writes once there is room, without opening the store again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsm_store::events::{Event, EventSink, Listener};
use lsm_store::vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, MemVfs, OpSet, Vfs};
use lsm_store::{
    Durability, Error, Executor, Keep, Mode, Op, Options, PartitionId, PartitionOptions, Position,
    SequenceNumber, Store, WriteBatch,
};

const DATA: PartitionId = PartitionId(0);
const RESERVE: u64 = 64 * 1024;

fn open(vfs: &MemVfs, mode: Mode, executor: Executor) -> Store {
    open_with(vfs, mode, executor, EventSink::default())
}

fn open_with(vfs: &MemVfs, mode: Mode, executor: Executor, events: EventSink) -> Store {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
    let options = Options {
        mode,
        memtable_bytes: 8 * 1024,
        wal_segment_bytes: 4096,
        block_bytes: 256,
        table_bytes: 4096,
        base_level_bytes: 8192,
        space_reserve_bytes: Some(RESERVE),
        events,
        ..Options::new(5, partitions)
    };
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    Store::open(vfs, Path::new("/db"), options, executor).expect("opens")
}

fn put(store: &Store, mode: Mode, n: u64) -> lsm_store::Result<()> {
    let (key, value) = (format!("key-{:04}", n % 300).into_bytes(), [n.to_le_bytes(); 20].concat());
    match mode {
        Mode::External => {
            let mut run = store.begin_run(Position { index: n, term: 1, extra: vec![] })?;
            run.apply(DATA, SequenceNumber(n), &[Op::Put { key: &key, value: &value }])?;
            run.publish()
        }
        Mode::Wal => {
            let mut batch = WriteBatch::new();
            batch.put(DATA, &key, &value)?;
            store.write(batch, Durability::Sync).map(|_| ())
        }
    }
}

type Files = Vec<(PathBuf, Vec<u8>)>;

fn files(vfs: &MemVfs) -> Files {
    vfs.files().into_iter().map(|f| (f.clone(), vfs.content(&f).expect("there"))).collect()
}

fn used(vfs: &MemVfs) -> u64 {
    files(vfs).iter().map(|(_, content)| content.len() as u64).sum()
}

/// Writes until it is refused; returns the number of the refused write.
fn fill(store: &Store, vfs: &MemVfs, mode: Mode) -> u64 {
    for n in store.visible_position().index + 1..20_000 {
        let near = vfs.free_space(Path::new("/db")).expect("measures") < RESERVE;
        let before = near.then(|| files(vfs));
        match put(store, mode, n) {
            Ok(()) => {}
            Err(Error::NoSpace { free, needed }) => {
                assert!(free < RESERVE && needed == RESERVE / 2, "{free} of {needed}");
                assert!(
                    before == Some(files(vfs)),
                    "{mode:?}: a refused write touches nothing, and comes after the reserve is touched"
                );
                return n;
            }
            Err(e) => unreachable!("{mode:?}: write {n}: {e}"),
        }
    }
    unreachable!("{mode:?}: the device never filled up")
}

fn check(store: &Store, last: u64) {
    assert_eq!(store.last_sequence(DATA).0, last, "the last write that was accepted");
    for n in last.saturating_sub(299).max(1)..=last {
        let found = store.get(DATA, format!("key-{:04}", n % 300).as_bytes()).expect("reads");
        assert_eq!(found.map(|f| f.sequence.0), Some(n), "write {n} of {last}");
    }
}

#[test]
fn writes_are_refused_before_anything_is_touched_and_go_on_when_there_is_room() {
    for mode in [Mode::External, Mode::Wal] {
        let vfs = MemVfs::new(1);
        let store = open(&vfs, mode, Executor::Inline);
        let mut capacity = 256 * 1024;
        for round in 0..3 {
            vfs.set_capacity(Some(capacity));
            let refused = fill(&store, &vfs, mode);
            check(&store, refused - 1);
            assert!(matches!(put(&store, mode, refused), Err(Error::NoSpace { .. })), "still");
            let metrics = store.metrics();
            assert_eq!(metrics.poisoned, None, "{mode:?}, round {round}: nothing is broken");
            assert!(
                metrics.free_space_bytes.is_some_and(|free| free < RESERVE),
                "{mode:?}: free space is shown: {:?}",
                metrics.free_space_bytes
            );
            capacity += 256 * 1024;
            vfs.set_capacity(Some(capacity));
            put(&store, mode, refused).expect("there is room again");
        }
        store.flush().expect("flushes");
        let last = store.last_sequence(DATA).0;
        store.close().expect("closes");
        let store = open(&vfs, mode, Executor::Inline);
        check(&store, last);
        store.verify().expect("sound");
    }
}

/// Keeps what is told of space.
#[derive(Debug, Default)]
struct Told(parking_lot::Mutex<Vec<&'static str>>);

impl Listener for Told {
    fn on_event(&self, event: &Event) {
        if let Event::SpaceLow { free, needed } = event {
            assert!(free < needed, "{free} of {needed}");
            self.0.lock().push("low");
        } else if let Event::SpaceBack { free } = event {
            assert!(*free >= RESERVE / 2, "{free}");
            self.0.lock().push("back");
        }
    }
}

#[test]
fn the_listener_is_told_once_when_writes_are_refused_and_once_when_they_go_on() {
    let vfs = MemVfs::new(1);
    let told = Arc::new(Told::default());
    let listener: Arc<dyn Listener> = Arc::<Told>::clone(&told);
    let store = open_with(&vfs, Mode::External, Executor::Inline, EventSink::new(listener));
    for _round in 0..2 {
        vfs.set_capacity(Some(used(&vfs) + 2 * RESERVE));
        let refused = fill(&store, &vfs, Mode::External);
        assert!(put(&store, Mode::External, refused).is_err(), "still");
        vfs.set_capacity(None);
        put(&store, Mode::External, refused).expect("there is room");
    }
    assert_eq!(*told.0.lock(), ["low", "back", "low", "back"], "once each time");
}

#[test]
fn a_flush_goes_on_while_writes_are_refused() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, Mode::External, Executor::Inline);
    put(&store, Mode::External, 1).expect("room");
    vfs.set_capacity(Some(used(&vfs) + RESERVE / 4));
    store.flush().expect("flushes into the reserve");
    assert_eq!(store.durable_position().index, 1, "flushed");
    assert!(matches!(put(&store, Mode::External, 2), Err(Error::NoSpace { .. })), "refused");
}

#[test]
fn a_merge_that_would_take_the_reserve_waits_until_there_is_room() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, Mode::External, Executor::Inline);
    for n in 1..=900 {
        put(&store, Mode::External, n).expect("room");
    }
    let merged = store.metrics().compactions;
    assert!(merged > 0, "there was room to merge");
    // More than half of the reserve, but not that and the outputs.
    let tight = |vfs: &MemVfs| vfs.set_capacity(Some(used(vfs) + RESERVE / 2 + 1000));
    tight(&vfs);
    for n in 901..=1200 {
        match put(&store, Mode::External, n) {
            Ok(()) => {}
            Err(Error::NoSpace { .. }) => break,
            Err(e) => unreachable!("write {n}: {e}"),
        }
        store.flush().expect("flushes");
        tight(&vfs);
    }
    let metrics = store.metrics();
    assert!(metrics.merges_refused > 0, "some merge did not fit: {metrics:?}");
    assert_eq!(metrics.job_failures, 0, "refused, not failed");
    vfs.set_capacity(None);
    let last = store.last_sequence(DATA).0;
    put(&store, Mode::External, last + 1).expect("room");
    store.flush().expect("flushes and merges");
    assert!(store.metrics().compactions > merged, "what was put off is done");
    check(&store, last + 1);
}

#[test]
fn a_measurement_that_fails_refuses_nothing() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, Mode::External, Executor::Inline);
    let fault = Fault {
        ops: OpSet::OPENS,
        when: FaultWhen::Always,
        kind: FaultKind::Io,
        path_contains: String::new(),
    };
    vfs.add_fault(fault);
    put(&store, Mode::External, 1).expect("unknown is not full");
    assert_eq!(store.metrics().free_space_bytes, None, "unknown");
}

#[test]
fn background_threads_take_up_merges_when_there_is_room_again() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, Mode::Wal, Executor::Threads);
    vfs.set_capacity(Some(200 * 1024));
    let mut refused = 0;
    for n in 1..3000 {
        if let Err(e) = put(&store, Mode::Wal, n) {
            assert!(matches!(e, Error::NoSpace { .. }), "{e}");
            refused = n;
            break;
        }
    }
    assert!(refused > 0, "the device filled up");
    vfs.set_capacity(None);
    for n in refused..refused + 400 {
        put(&store, Mode::Wal, n).expect("there is room");
    }
    check(&store, refused + 399);
    store.close().expect("closes");
}

/// A store with all sizes small, and some writes that are not in tables yet.
fn unflushed(vfs: &MemVfs) -> Store {
    let store = open(vfs, Mode::External, Executor::Inline);
    for n in store.visible_position().index + 1..=20 {
        put(&store, Mode::External, n).expect("room");
    }
    store
}

#[test]
fn a_device_full_anywhere_in_a_flush_ends_nothing_and_the_flush_is_repeated_when_there_is_room() {
    let good = MemVfs::new(1);
    let store = open(&good, Mode::External, Executor::Inline);
    (1..=10).for_each(|n| put(&store, Mode::External, n).expect("room"));
    store.flush().expect("flushes");
    store.close().expect("closes");
    let (mut of_table, mut of_manifest) = (0, 0);
    for room in (0..).step_by(8) {
        let vfs = good.fork();
        let store = unflushed(&vfs);
        let before = tables(&vfs);
        vfs.set_capacity(Some(used(&vfs) + room));
        let enough = match store.flush() {
            Ok(_) => true,
            Err(Error::NoSpace { .. }) => {
                of_manifest += 1;
                assert_eq!(tables(&vfs), before, "room for {room}: no table is left of it");
                false
            }
            Err(e) => {
                of_table += 1;
                assert!(matches!(e, Error::Io { op: "write", .. }), "room for {room}: {e}");
                false
            }
        };
        let raised = store.set_floor(DATA, SequenceNumber(5));
        assert!(matches!(raised, Ok(()) | Err(Error::NoSpace { .. })), "{room}: {raised:?}");
        let floor = if raised.is_ok() { 5 } else { 0 };
        assert_eq!(store.floor(DATA).0, floor, "room for {room}: all or nothing");
        assert_eq!(store.metrics().poisoned, None, "room for {room}: nothing is broken");
        check_all(&store, 20, room);
        if room % 64 == 0 {
            // What is on disk now is what was said to be.
            let now = vfs.fork();
            now.kill();
            now.set_capacity(None);
            let again = open(&now, Mode::External, Executor::Inline);
            let durable = if enough { 20 } else { 10 };
            assert_eq!(again.durable_position().index, durable, "room for {room}");
            assert_eq!(again.floor(DATA).0, floor, "room for {room}: the floor");
        }
        vfs.set_capacity(None);
        store.set_floor(DATA, SequenceNumber(6)).expect("raises");
        assert_eq!(store.flush().expect("flushes").index, 20, "room for {room}, then for all");
        store.verify().expect("sound");
        drop(store);
        vfs.kill();
        let store = open(&vfs, Mode::External, Executor::Inline);
        check_all(&store, 20, room);
        assert_eq!(store.floor(DATA).0, 6, "room for {room}: the floor, later");
        if enough && raised.is_ok() {
            break;
        }
    }
    assert!(of_table > 50 && of_manifest > 5, "table {of_table}, manifest {of_manifest} times");
}

fn check_all(store: &Store, last: u64, room: u64) {
    assert_eq!(store.last_sequence(DATA).0, last, "room for {room}");
    check(store, last);
}

#[test]
fn a_manifest_that_is_long_and_cannot_be_shortened_for_want_of_room_goes_on() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, Mode::External, Executor::Inline);
    vfs.add_fault(Fault {
        ops: OpSet::NAMES,
        when: FaultWhen::Always,
        kind: FaultKind::NoSpace,
        path_contains: "MANIFEST".to_owned(),
    });
    let manifests = || {
        let is_one = |f: &PathBuf| f.to_string_lossy().contains("MANIFEST");
        vfs.files().into_iter().filter(is_one).collect::<Vec<_>>()
    };
    let first = manifests();
    // Each edit names two of these keys.
    let (low, high) = (vec![b'a'; 60_000], vec![b'b'; 60_000]);
    let flush = |n: u64| {
        let mut run = store.begin_run(Position { index: n, term: 1, extra: vec![] })?;
        let (low, high) = (Op::Put { key: &low, value: b"" }, Op::Put { key: &high, value: b"" });
        run.apply(DATA, SequenceNumber(n), &[low, high])?;
        run.publish()?;
        store.flush()
    };
    for n in 1..=24 {
        assert_eq!(flush(n).expect("goes on").index, n, "in the manifest there is");
    }
    store.verify().expect("memory and manifest agree");
    assert_eq!((manifests(), store.metrics().poisoned), (first.clone(), None), "the same one");
    let long = vfs.content(&first[0]).expect("there").len();
    assert!(long > 2 << 20, "{long} bytes: it should have been shortened");
    vfs.clear_faults();
    flush(25).expect("flushes");
    let short = manifests();
    assert!(short.len() == 1 && short != first, "another one: {short:?}");
    let len = vfs.content(&short[0]).expect("there").len();
    assert!(len < long / 2, "{len} of {long} bytes");
    drop(store);
    vfs.kill();
    assert_eq!(open(&vfs, Mode::External, Executor::Inline).last_sequence(DATA).0, 25, "all");
}

/// What a store whose writes go to tables can be asked for that ends in an edit.
const ASKED: [fn(&Store) -> lsm_store::Result<()>; 3] = [
    |store| store.flush().map(drop),
    |store| store.set_floor(DATA, SequenceNumber(5)),
    |store| store.compact_all(),
];

fn tables(vfs: &MemVfs) -> Vec<PathBuf> {
    let is_table = |path: &PathBuf| path.extension().is_some_and(|e| e == "sst");
    vfs.files().into_iter().filter(is_table).collect()
}

#[test]
fn a_device_that_is_full_from_any_call_on_ends_nothing_in_a_store_without_a_log() {
    let good = MemVfs::new(1);
    let store = open(&good, Mode::External, Executor::Inline);
    (1..=10).for_each(|n| put(&store, Mode::External, n).expect("room"));
    store.flush().expect("flushes");
    store.close().expect("closes");
    let mut refused = [0; ASKED.len()];
    for (nth, ask) in ASKED.iter().enumerate() {
        // The first edit of an opening writes a manifest anew, later ones are appended to it.
        for edited in [false, true] {
            for call in 0.. {
                let context = format!("request {nth}, edited {edited}, full from call {call} on");
                let vfs = good.fork();
                let store = unflushed(&vfs);
                if nth == 2 {
                    // So that it is nothing but a merge.
                    store.flush().expect("room");
                }
                if edited {
                    store.set_floor(DATA, SequenceNumber(3)).expect("room");
                }
                let before = tables(&vfs);
                let fault = Fault {
                    ops: OpSet::TAKING_ROOM,
                    when: FaultWhen::From(vfs.calls() + call),
                    kind: FaultKind::NoSpace,
                    path_contains: String::new(),
                };
                vfs.add_fault(fault);
                let answer = ask(&store);
                if answer.is_err() {
                    refused[nth] += 1;
                    assert_eq!(tables(&vfs), before, "{context}: as if never begun");
                    let others = vfs.files().len() - before.len();
                    assert_eq!(
                        others,
                        3,
                        "{context}: LOCK, a marker, a manifest: {:?}",
                        vfs.files()
                    );
                }
                assert_eq!(store.metrics().poisoned, None, "{context}: {answer:?}");
                let sound = store.verify();
                assert!(sound.is_ok(), "{context}: memory and manifest agree: {sound:?}");
                let fired = vfs.faults_fired() > 0;
                check(&store, 20);
                vfs.clear_faults();
                // What is on disk now is what was said to be.
                let now = vfs.fork();
                now.crash(CrashPolicy::LOSE_UNSYNCED, call);
                let again = open(&now, Mode::External, Executor::Inline);
                assert_eq!(again.durable_position(), store.durable_position(), "{context}");
                assert_eq!(again.floor(DATA), store.floor(DATA), "{context}: the floor");
                drop(again);
                put(&store, Mode::External, 21).expect("goes on");
                ask(&store).expect("is done when there is room");
                store.flush().expect("flushes");
                drop(store);
                vfs.crash(CrashPolicy::LOSE_UNSYNCED, call);
                check(&open(&vfs, Mode::External, Executor::Inline), 21);
                if !fired {
                    break;
                }
            }
        }
    }
    assert!(refused.iter().all(|n| *n > 4), "each was refused at some calls: {refused:?}");
}
