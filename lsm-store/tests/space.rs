//! A device that fills up: writes are refused in time and before anything is touched, reads and flushes go
//! on, and so do writes once there is room, without opening the store again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsm_store::events::{Event, EventSink, Listener};
use lsm_store::vfs::{Fault, FaultKind, FaultWhen, MemVfs, OpSet, Vfs};
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
