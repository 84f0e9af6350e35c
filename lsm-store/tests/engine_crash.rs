//! Crashes and failing calls at every place: the store comes back with what it promised, or says why not.
//!
//! One script of runs, flushes, floors and compactions over tiny tables is played with a crash in the
//! middle of each call that changes the disk, under every policy of what a crash takes, then with each
//! single call failing. After a crash: the store opens; it holds exactly the runs up to a position that
//! is not below the last acknowledged flush; the rest can be applied again.

#![expect(clippy::panic, reason = "helpers of tests fail by panicking")]

use std::ops::Bound::Unbounded;
use std::path::Path;
use std::sync::Arc;

use lsm_store::rng::SplitMix64;
use lsm_store::vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, MemVfs, OpSet, Vfs};
use lsm_store::{
    Error, Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position, SequenceNumber,
    Store,
};

const DATA: PartitionId = PartitionId(0);
const META: PartitionId = PartitionId(1);
const RUNS: u64 = 48;
const KEYS: u64 = 11;

fn options() -> Options {
    let partition = |name: &str, keep| PartitionOptions { name: name.to_owned(), keep };
    let mut options =
        Options::new(3, vec![partition("data", Keep::All), partition("meta", Keep::NewestOnly)]);
    options.memtable_bytes = 900;
    options.block_bytes = 64;
    options.index_partition_bytes = 64;
    options.restart_interval = 2;
    options.table_bytes = 400;
    options.base_level_bytes = 600;
    options.level_ratio = 2;
    options.l0_trigger = 2;
    options.cache_bytes = 0;
    options
}

fn open(vfs: &Arc<MemVfs>) -> lsm_store::Result<Store> {
    let vfs: Arc<dyn Vfs> = Arc::<MemVfs>::clone(vfs);
    Store::open(vfs, Path::new("/db"), options(), Executor::Inline)
}

fn key(n: u64) -> Vec<u8> {
    format!("key/{}", n % KEYS).into_bytes()
}

/// Run `n`: key `n % KEYS` is put, or deleted in every fifth run; the meta row says `n`.
fn write(store: &Store, n: u64) -> lsm_store::Result<()> {
    let mut run = store.begin_run(Position { index: n, term: 1, extra: vec![1, 2, 3] })?;
    let (key, value) = (key(n), n.to_le_bytes());
    let op = if n.is_multiple_of(5) {
        Op::Delete { key: &key }
    } else {
        Op::Put { key: &key, value: &value }
    };
    run.apply(DATA, SequenceNumber(n), &[op])?;
    run.apply(META, SequenceNumber(n), &[Op::Put { key: b"applied", value: &value }])?;
    run.publish()
}

fn expected(at: u64, k: u64) -> Option<u64> {
    let newest = (1..=at).rev().find(|n| n % KEYS == k)?;
    (!newest.is_multiple_of(5)).then_some(newest)
}

/// What has been promised so far.
#[derive(Clone, Copy, Default, Debug)]
struct Promised {
    flushed: u64,
    floor: u64,
}

/// Plays the script from where the store stands; stops at the first error.
fn play(store: &Store, promised: &mut Promised) -> lsm_store::Result<()> {
    for n in store.visible_position().index + 1..=RUNS {
        write(store, n)?;
        if n % 13 == 0 {
            promised.flushed = store.flush()?.index;
        }
        if n % 16 == 0 {
            let floor = n - 6;
            store.set_floor(DATA, SequenceNumber(floor))?;
            promised.floor = promised.floor.max(floor);
        }
    }
    promised.flushed = store.flush()?.index;
    Ok(())
}

fn check_content(store: &Store, context: &str) {
    let at = store.last_sequence(DATA).0;
    assert_eq!(store.visible_position().index, at, "{context}: position and number go together");
    let applied = store.get(META, b"applied").expect("reads").map(|f| f.value.to_vec());
    let meta = (at > 0).then(|| at.to_le_bytes().to_vec());
    assert_eq!(applied, meta, "{context}: both partitions go together");
    for k in 0..KEYS {
        let found = store.get(DATA, &key(k)).expect("reads").map(|f| f.sequence.0);
        assert_eq!(found, expected(at, k), "{context}: key {k} at {at}");
    }
    let floor = store.floor(DATA).0;
    for past in floor..=at {
        let view = store.view_at(DATA, SequenceNumber(past)).expect("in history");
        let mut iter = view.iter(DATA, Unbounded, Unbounded).expect("opens");
        let mut rows = 0;
        while iter.next().expect("moves") {
            rows += 1;
        }
        let keys = (0..KEYS).filter(|k| expected(past, *k).is_some()).count();
        assert_eq!(rows, keys, "{context}: rows at {past}");
    }
}

fn check_after_crash(vfs: &Arc<MemVfs>, promised: Promised, context: &str) {
    let store = open(vfs).unwrap_or_else(|e| panic!("{context}: {e}"));
    let durable = store.durable_position();
    assert!(durable.index >= promised.flushed, "{context}: {} where {promised:?}", durable.index);
    assert!(store.floor(DATA).0 >= promised.floor, "{context}: floor where {promised:?}");
    store.verify().unwrap_or_else(|e| panic!("{context}: {e}"));
    check_content(&store, context);
    let mut again = promised;
    play(&store, &mut again).unwrap_or_else(|e| panic!("{context}: replay: {e}"));
    assert_eq!(again.flushed, RUNS, "{context}: replayed");
    check_content(&store, context);
    store.verify().unwrap_or_else(|e| panic!("{context}: after replay: {e}"));
    let tables: usize =
        store.metrics().partitions.iter().flat_map(|p| &p.levels).map(|l| l.tables).sum();
    let files = vfs.files().iter().filter(|p| p.extension().is_some_and(|e| e == "sst")).count();
    assert_eq!(files, tables, "{context}: no table file without a table");
}

/// Calls that change the disk, from opening an empty directory to the end of the script.
fn mutating_calls() -> u64 {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs).expect("opens");
    play(&store, &mut Promised::default()).expect("plays");
    store.verify().expect("sound");
    let used = store.metrics().partitions[0].levels.iter().filter(|l| l.tables > 0).count();
    assert!(
        used >= 2,
        "the script reaches several levels: {:?}",
        store.metrics().partitions[0].levels
    );
    drop(store);
    vfs.mutating_calls()
}

#[test]
fn a_crash_at_any_call_loses_nothing_that_was_promised() {
    let calls = mutating_calls();
    assert!(calls > 300, "{calls} places to crash at");
    for (p, policy) in (0_u64..).zip(CrashPolicy::ALL) {
        for call in 0..calls {
            let seed = call * 8 + p;
            let context = format!("crash at call {call}, {policy:?}, seed {seed}");
            let vfs = Arc::new(MemVfs::new(seed));
            vfs.crash_at(call);
            let mut promised = Promised::default();
            if let Ok(store) = open(&vfs) {
                let played = play(&store, &mut promised);
                assert!(
                    played.is_err() || vfs.has_stopped() || call + 4 > calls,
                    "{context}: was reached"
                );
            }
            vfs.crash(policy, seed);
            // Every third time the recovery crashes, too, in the middle of one of its calls.
            if call % 3 == 0 {
                let mut rng = SplitMix64::new(seed);
                vfs.crash_at(vfs.mutating_calls() + rng.below(12));
                let _stopped = open(&vfs).is_err();
                vfs.crash(policy, seed + 1);
            }
            check_after_crash(&vfs, promised, &context);
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_promised() {
    let calls = mutating_calls();
    for call in (0..calls).step_by(3) {
        let vfs = Arc::new(MemVfs::new(call));
        vfs.crash_at(call);
        let mut promised = Promised::default();
        if let Ok(store) = open(&vfs) {
            let _stopped = play(&store, &mut promised).is_err();
        }
        vfs.kill();
        check_after_crash(&vfs, promised, &format!("kill at call {call}"));
    }
}

#[test]
fn any_single_failing_call_gives_an_error_or_the_right_result() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs).expect("opens");
    play(&store, &mut Promised::default()).expect("plays");
    drop(store);
    let calls = vfs.calls();
    for kind in [FaultKind::Io, FaultKind::NoSpace] {
        for call in 0..calls {
            let context = format!("call {call} of {calls} fails with {kind:?}");
            let vfs = Arc::new(MemVfs::new(call));
            vfs.add_fault(Fault::at_call(call, kind));
            let mut promised = Promised::default();
            let Ok(store) = open(&vfs) else {
                check_after_crash(&vfs, promised, &context);
                continue;
            };
            let first = play(&store, &mut promised);
            let poisoned = store.metrics().poisoned;
            if poisoned.is_none() {
                // A job that failed is done again; nothing is lost.
                vfs.clear_faults();
                let again = play(&store, &mut promised);
                again.unwrap_or_else(|e| panic!("{context}: goes on: {e} (first: {first:?})"));
                assert_eq!(promised.flushed, RUNS, "{context}: everything flushed");
                check_content(&store, &context);
                store.verify().unwrap_or_else(|e| panic!("{context}: {e}"));
            } else {
                assert!(
                    matches!(
                        store.begin_run(Position { index: 99, ..Position::default() }),
                        Err(Error::Poisoned { .. })
                    ),
                    "{context}: no more writes"
                );
            }
            drop(store);
            // Whatever a failed sync left in memory is not on disk.
            vfs.crash(CrashPolicy::LOSE_UNSYNCED, call);
            check_after_crash(&vfs, promised, &context);
        }
    }
}

#[test]
fn a_full_disk_stalls_writers_and_clears_by_itself() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs).expect("opens");
    let full = Fault {
        ops: OpSet::WRITES,
        when: FaultWhen::Always,
        kind: FaultKind::NoSpace,
        path_contains: "sst".to_owned(),
    };
    vfs.add_fault(full);
    let mut promised = Promised::default();
    let mut n = 0;
    let stalled = loop {
        n += 1;
        match write(&store, n) {
            Ok(()) => assert!(n < 1000, "memory is bounded"),
            Err(e) => break e,
        }
    };
    assert!(
        matches!(&stalled, Error::Stalled { frozen: 2, last, .. } if last.contains("write")),
        "{stalled}"
    );
    assert!(store.flush().is_err(), "flushes fail");
    for k in 0..KEYS {
        let found = store.get(DATA, &key(k)).expect("reads go on").map(|f| f.sequence.0);
        assert_eq!(found, expected(n - 1, k), "key {k}");
    }
    vfs.clear_faults();
    play(&store, &mut promised).expect("goes on");
    check_content(&store, "after the disk has room again");
    drop(store);
    check_after_crash(&vfs, promised, "after the disk has room again");
}

#[test]
fn a_read_error_is_an_error_and_never_absence() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs).expect("opens");
    play(&store, &mut Promised::default()).expect("plays");
    let failing = Fault {
        ops: OpSet::READS,
        when: FaultWhen::Chance(300_000),
        kind: FaultKind::Io,
        path_contains: "sst".to_owned(),
    };
    vfs.add_fault(failing);
    let view = store.view();
    let mut errors = 0;
    for turn in 0..200_u64 {
        let k = turn % KEYS;
        match view.get(DATA, &key(k)) {
            Ok(found) => assert_eq!(found.map(|f| f.sequence.0), expected(RUNS, k), "key {k}"),
            Err(Error::Io { op: "read", .. }) => errors += 1,
            Err(e) => panic!("{e}"),
        }
        let mut iter = view.iter(DATA, Unbounded, Unbounded).expect("opens");
        let mut rows = 0;
        loop {
            match if turn % 2 == 0 { iter.next() } else { iter.prev() } {
                Ok(true) => rows += 1,
                Ok(false) => {
                    let keys = (0..KEYS).filter(|k| expected(RUNS, *k).is_some()).count();
                    assert_eq!(rows, keys, "an end that is one");
                    break;
                }
                Err(_) => {
                    errors += 1;
                    assert!(!iter.valid(), "stands nowhere");
                    assert!(iter.next().is_err(), "goes nowhere without a seek");
                    break;
                }
            }
        }
    }
    assert!(errors > 20, "{errors} errors were met");
    vfs.clear_faults();
    check_content(&store, "after the errors");
}
