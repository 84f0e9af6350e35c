//! Repair from another copy: a damaged range is replaced as a whole by what a sound copy exports, and then
//! both hold the same, whatever call the machine stops or fails at.

#![expect(clippy::panic, reason = "helpers of tests fail by panicking")]

use std::collections::BTreeMap;
use std::ops::Bound::Unbounded;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lsm_store::events::{Event, EventSink, Listener};
use lsm_store::rng::SplitMix64;
use lsm_store::vfs::{CrashPolicy, Fault, FaultKind, MemVfs, Vfs};
use lsm_store::{
    Checkpoint, Error, Executor, Keep, KeyRange, Op, Options, PartitionId, PartitionOptions,
    Position, Result, SequenceNumber, StagedSnapshot, Store,
};

const DATA: PartitionId = PartitionId(0);
const META: PartitionId = PartitionId(1);
const KEYS: u64 = 60;
const LAST: u64 = 420;

fn options(store_id: u128, table_bytes: u64) -> Options {
    let partition = |name: &str, keep| PartitionOptions { name: name.to_owned(), keep };
    Options {
        memtable_bytes: 3000,
        block_bytes: 150,
        index_partition_bytes: 64,
        restart_interval: 3,
        table_bytes,
        base_level_bytes: 4000,
        level_ratio: 3,
        l0_trigger: 3,
        cache_bytes: 0,
        ..Options::new(
            store_id,
            vec![partition("data", Keep::All), partition("meta", Keep::NewestOnly)],
        )
    }
}

fn open(vfs: &MemVfs, dir: &str, store_id: u128) -> Result<Store> {
    let shared: Arc<dyn Vfs> = Arc::new(vfs.clone());
    // The copies lay their tables out differently.
    let table_bytes = if store_id == 1 { 1500 } else { 2200 };
    Store::open(shared, Path::new(dir), options(store_id, table_bytes), Executor::Inline)
}

fn key(n: u64) -> Vec<u8> {
    format!("key/{:03}", n % KEYS).into_bytes()
}

/// The same writes to every copy.
fn write(store: &Store, n: u64) {
    let mut rng = SplitMix64::new(n);
    let mut run = store.begin_run(Position { index: n, term: 1, extra: vec![] }).expect("begins");
    let (key, value) = (key(rng.next_u64()), [n.to_le_bytes(); 3].concat());
    let op = if rng.chance(1, 4) {
        Op::Delete { key: &key }
    } else {
        Op::Put { key: &key, value: &value }
    };
    run.apply(DATA, SequenceNumber(n), &[op]).expect("applies");
    let meta = Op::Put { key: &key, value: b"m" };
    run.apply(META, SequenceNumber(n), &[meta]).expect("applies");
    run.publish().expect("publishes");
}

fn fill(store: &Store, to: u64) {
    for n in store.visible_position().index + 1..=to {
        write(store, n);
        if n == LAST / 2 {
            store.set_floor(DATA, SequenceNumber(n - 40)).expect("raises");
        }
    }
}

/// Two copies of one history.
fn pair(vfs: &MemVfs) -> (Store, Store) {
    let (good, bad) = (open(vfs, "/good", 1).expect("opens"), open(vfs, "/bad", 2).expect("opens"));
    for store in [&good, &bad] {
        fill(store, LAST);
    }
    bad.flush().expect("flushes");
    (good, bad)
}

fn all(partition: PartitionId) -> KeyRange {
    KeyRange { partition, start: Vec::new(), end: None }
}

type Rows = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

fn rows_at(store: &Store, partition: PartitionId, at: u64) -> Result<Rows> {
    let view = store.view_at(partition, SequenceNumber(at))?;
    let mut iter = view.iter(partition, Unbounded, Unbounded)?;
    let mut rows = Rows::new();
    while iter.next()? {
        rows.insert(iter.key().to_vec(), (iter.sequence().0, iter.value().to_vec()));
    }
    Ok(rows)
}

fn check_same(good: &Store, other: &Store, context: &str) {
    let last = good.last_sequence(DATA);
    assert_eq!(other.last_sequence(DATA), last, "{context}: the same number");
    for partition in [DATA, META] {
        assert_eq!(
            good.digest(&all(partition), last).expect("reads"),
            other.digest(&all(partition), last).unwrap_or_else(|e| panic!("{context}: {e}")),
            "{context}: digest of {partition}"
        );
    }
    for at in (good.floor(DATA).0..=last.0).step_by(13) {
        let theirs = rows_at(other, DATA, at).unwrap_or_else(|e| panic!("{context}: {e}"));
        assert_eq!(rows_at(good, DATA, at).expect("reads"), theirs, "{context}: history at {at}");
        for k in (0..KEYS).step_by(7).map(key) {
            let view = other.view_at(DATA, SequenceNumber(at)).expect("in history");
            let found = view.get(DATA, &k).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!(
                found.map(|f| (f.sequence.0, f.value.to_vec())),
                theirs.get(&k).cloned(),
                "{context}: {k:?} at {at}"
            );
        }
    }
    other.verify().unwrap_or_else(|e| panic!("{context}: {e}"));
}

/// Exports from one store, receives for the other.
fn fetch(from: &Store, to: &Store, range: &KeyRange, dir: &str) -> Result<StagedSnapshot> {
    let at = to.last_sequence(range.partition);
    let export = from.export_range(range, at, Path::new(dir))?;
    receive(&export, to)
}

fn receive(export: &Checkpoint, to: &Store) -> Result<StagedSnapshot> {
    export.verify()?;
    let mut incoming = to.receive(export.description())?;
    for wanted in incoming.wanted() {
        let mut bytes = vec![0; usize::try_from(wanted.len).expect("small")];
        let len = export.read(wanted.uid, 0, &mut bytes)?;
        incoming.write(wanted.uid, 0, &bytes[..len])?;
    }
    incoming.finish()
}

fn ranges() -> Vec<KeyRange> {
    let range = |start: &[u8], end: Option<&[u8]>| KeyRange {
        partition: DATA,
        start: start.to_vec(),
        end: end.map(<[u8]>::to_vec),
    };
    vec![
        range(b"", None),
        range(b"key/010", Some(b"key/020")),
        range(b"key/0105", Some(b"key/0106")),
        range(b"key/030", Some(b"key/030\0")),
        range(b"", Some(b"key/025")),
        range(b"key/055", None),
        range(b"zzz", None),
        KeyRange { partition: META, ..range(b"key/005", Some(b"key/044")) },
    ]
}

#[test]
fn an_export_for_a_copy_that_is_behind_has_nothing_that_was_written_after() {
    let vfs = MemVfs::new(1);
    let (good, behind) =
        (open(&vfs, "/good", 1).expect("opens"), open(&vfs, "/bad", 2).expect("opens"));
    fill(&behind, LAST - 100);
    fill(&good, LAST - 100);
    let before = rows_at(&behind, DATA, LAST - 100).expect("reads");
    // Every key is written again, some in memory only.
    fill(&good, LAST);
    let staged = fetch(&good, &behind, &all(DATA), "/export").expect("fetched");
    behind.excise_and_ingest(&staged).expect("replaced");
    assert_eq!(behind.last_sequence(DATA).0, LAST - 100, "as far as it was");
    assert_eq!(rows_at(&behind, DATA, LAST - 100).expect("reads"), before, "the same");
    for n in 0..KEYS {
        // Past any view: whatever is in tables shows.
        let found = behind.get(DATA, &key(n)).expect("reads");
        assert!(found.is_none_or(|f| f.sequence.0 <= LAST - 100), "a write of later: key {n}");
    }
    fill(&behind, LAST);
    check_same(&good, &behind, "after the same writes");
}

#[test]
fn a_range_is_replaced_by_what_a_copy_exports_and_both_hold_the_same() {
    for (i, range) in ranges().into_iter().enumerate() {
        let vfs = MemVfs::new(1);
        let (good, bad) = pair(&vfs);
        check_same(&good, &bad, "before");
        let view = bad.view();
        let before = rows_at(&bad, DATA, LAST).expect("reads");
        let staged = fetch(&good, &bad, &range, "/export").expect("fetched");
        assert_eq!(staged.range(), Some((&range, SequenceNumber(LAST))), "what it is of");
        if range.partition == DATA {
            let replaced = bad.excise_and_ingest(&staged).expect("replaced");
            assert_eq!(replaced.tables_removed > 0, i != 6, "{range:?}: {replaced:?}");
        } else {
            drop(view);
            bad.excise_and_ingest(&staged).expect("replaced");
        }
        staged.remove().expect("removed");
        let context = format!("{range:?}");
        check_same(&good, &bad, &context);
        assert_eq!(rows_at(&bad, DATA, LAST).expect("reads"), before, "{context}");
        // Both go on alike.
        for store in [&good, &bad] {
            fill(store, LAST + 100);
            store.flush().expect("flushes");
        }
        check_same(&good, &bad, &context);
        bad.close().expect("closes");
        let again = open(&vfs, "/bad", 2).expect("opens");
        check_same(&good, &again, &context);
        let files = vfs.files().iter().filter(|p| p.starts_with("/bad/sst")).count();
        let tables = |s: &Store| -> usize {
            s.metrics().partitions.iter().flat_map(|p| &p.levels).map(|l| l.tables).sum()
        };
        assert_eq!(files, tables(&again), "{context}: no table file without a table");
    }
}

#[test]
fn a_damaged_block_or_table_is_repaired_from_a_copy() {
    let base = MemVfs::new(1);
    let (good, bad) = pair(&base);
    bad.close().expect("closes");
    good.close().expect("closes");
    let tables: Vec<PathBuf> =
        base.files().into_iter().filter(|p| p.starts_with("/bad/sst")).collect();
    for table in &tables {
        let len = base.content(table).expect("there").len() as u64;
        for harm in [10, len / 4, len / 2, len - 30] {
            let vfs = base.fork();
            let context = format!("{} byte {harm} of {len}", table.display());
            vfs.flip(table, harm, 2).expect("flips");
            let (good, bad) =
                (open(&vfs, "/good", 1).expect("opens"), open(&vfs, "/bad", 2).expect("opens"));
            fill(&good, LAST);
            fill(&bad, LAST);
            bad.scrub_step(u64::MAX).expect("reads");
            let damage = bad.damage().expect("known");
            assert_eq!(damage.len(), 1, "{context}: {damage:?}");
            let staged = fetch(&good, &bad, &damage[0].range(), "/export").expect("fetched");
            bad.excise_and_ingest(&staged).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!(bad.damage().expect("known"), [], "{context}: repaired");
            check_same(&good, &bad, &context);
            bad.close().expect("closes");
            check_same(&good, &open(&vfs, "/bad", 2).expect("opens"), &context);
        }
    }
}

#[test]
fn a_missing_table_is_repaired_from_a_copy() {
    let vfs = MemVfs::new(1);
    let (good, bad) = pair(&vfs);
    bad.close().expect("closes");
    let table = vfs.files().into_iter().find(|p| p.starts_with("/bad/sst")).expect("a table");
    vfs.unlink(&table).expect("unlinks");
    let bad = open(&vfs, "/bad", 2).expect("opens");
    let damage = bad.damage().expect("known").remove(0);
    let staged = fetch(&good, &bad, &damage.range(), "/export").expect("fetched");
    bad.excise_and_ingest(&staged).expect("replaced");
    assert_eq!(bad.damage().expect("known"), [], "repaired");
    check_same(&good, &bad, "repaired");
    assert_eq!(bad.metrics().files_left, 0, "the missing file is nobody's failure");
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let vfs = MemVfs::new(1);
    let (good, bad) = pair(&vfs);
    let range = ranges().remove(1);
    let staged = fetch(&good, &bad, &range, "/export").expect("fetched");
    let refused = |result: Result<lsm_store::Replaced>, why: &str| {
        assert!(matches!(result, Err(Error::InvalidArgument(_))), "{why}: {result:?}");
    };
    let run = bad.begin_run(Position { index: LAST + 1, ..Position::default() }).expect("begins");
    refused(bad.excise_and_ingest(&staged), "a run is open");
    run.publish().expect("publishes");
    write(&bad, LAST + 2);
    refused(bad.excise_and_ingest(&staged), "this store is further");
    fill(&good, LAST + 2);
    let bad_view = bad.view_at(DATA, SequenceNumber(bad.floor(DATA).0)).expect("in history");
    for store in [&good, &bad] {
        store.set_floor(DATA, SequenceNumber(LAST)).expect("raises");
    }
    let staged = fetch(&good, &bad, &range, "/export2").expect("fetched");
    refused(bad.excise_and_ingest(&staged), "a view is older than the history of the export");
    drop(bad_view);
    bad.excise_and_ingest(&staged).expect("replaced");
    let whole = good.checkpoint(Path::new("/whole")).expect("copies");
    refused(bad.excise_and_ingest(&receive(&whole, &bad).expect("received")), "a whole store");
    let below = good.export_range(&range, SequenceNumber(LAST - 1), Path::new("/x"));
    assert!(matches!(below, Err(Error::Compacted { .. })), "below the floor: {below:?}");
    let above = good.export_range(&range, SequenceNumber(LAST + 9), Path::new("/x"));
    assert!(matches!(above, Err(Error::FutureSequence { .. })), "in the future: {above:?}");
    assert!(vfs.files().iter().all(|p| !p.starts_with("/x")), "nothing is left");
}

#[test]
fn a_crash_leaves_the_old_range_or_the_new_one() {
    let vfs = MemVfs::new(1);
    let (good, bad) = pair(&vfs);
    let range = ranges().remove(1);
    let staged = fetch(&good, &bad, &range, "/export").expect("fetched");
    let expected = rows_at(&good, DATA, LAST).expect("reads");
    vfs.record();
    bad.excise_and_ingest(&staged).expect("replaced");
    let worlds = vfs.take_recorded();
    assert!(worlds.len() > 8, "{} places to crash at", worlds.len());
    for (at, world) in worlds.iter().enumerate() {
        for (seed, policy) in (0..).zip(CrashPolicy::ALL) {
            let context = format!("crash before call {at}, {policy:?}");
            let world = world.fork();
            world.crash(policy, seed);
            let store = open(&world, "/bad", 2).unwrap_or_else(|e| panic!("{context}: {e}"));
            store.verify().unwrap_or_else(|e| panic!("{context}: {e}"));
            fill(&store, LAST);
            let rows = rows_at(&store, DATA, LAST).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!(rows, expected, "{context}");
            let tables: usize =
                store.metrics().partitions.iter().flat_map(|p| &p.levels).map(|l| l.tables).sum();
            let files = world.files().iter().filter(|p| p.starts_with("/bad/sst")).count();
            assert_eq!(files, tables, "{context}: no table file without a table");
        }
    }
}

#[test]
fn a_failing_call_leaves_the_old_range_or_the_new_one() {
    let base = MemVfs::new(1);
    let (good, bad) = pair(&base);
    let range = ranges().remove(1);
    let _staged = fetch(&good, &bad, &range, "/export").expect("fetched");
    let export = Checkpoint::open(Arc::new(base.clone()), Path::new("/export")).expect("complete");
    let description = export.description().to_vec();
    let expected = rows_at(&good, DATA, LAST).expect("reads");
    bad.close().expect("closes");
    let staged = |vfs: &MemVfs, store: &Store| {
        let incoming = store.receive(&description).unwrap_or_else(|e| panic!("{vfs:?}: {e}"));
        incoming.finish().expect("complete")
    };
    let calls = {
        let vfs = base.fork();
        let store = open(&vfs, "/bad", 2).expect("opens");
        let ready = staged(&vfs, &store);
        let before = vfs.calls();
        store.excise_and_ingest(&ready).expect("replaced");
        vfs.calls() - before
    };
    assert!(calls > 12, "{calls} calls");
    for kind in [FaultKind::Io, FaultKind::NoSpace] {
        for call in 0..calls {
            let context = format!("call {call} of {calls} fails with {kind:?}");
            let vfs = base.fork();
            let store = open(&vfs, "/bad", 2).expect("opens");
            let ready = staged(&vfs, &store);
            vfs.add_fault(Fault::at_call(vfs.calls() + call, kind));
            let done = store.excise_and_ingest(&ready);
            vfs.clear_faults();
            let rows = rows_at(&store, DATA, LAST).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!(rows, expected, "{context}: {done:?}");
            if done.is_err() && store.metrics().poisoned.is_none() {
                store.excise_and_ingest(&ready).unwrap_or_else(|e| panic!("{context}: {e}"));
            }
            drop(store);
            vfs.crash(CrashPolicy::LOSE_UNSYNCED, call);
            let store = open(&vfs, "/bad", 2).unwrap_or_else(|e| panic!("{context}: {e}"));
            store.verify().unwrap_or_else(|e| panic!("{context}: {e}"));
            let rows = rows_at(&store, DATA, LAST).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!(rows, expected, "{context}");
        }
    }
}

#[test]
fn background_jobs_and_a_replacement_do_not_meet() {
    let vfs = MemVfs::new(1);
    let shared: Arc<dyn Vfs> = Arc::new(vfs.clone());
    let threads = |dir: &str, id| {
        let made =
            Store::open(Arc::clone(&shared), Path::new(dir), options(id, 1500), Executor::Threads);
        made.expect("opens")
    };
    let (good, bad) = (threads("/good", 1), threads("/bad", 2));
    for round in 1..12 {
        for store in [&good, &bad] {
            fill(store, LAST + round * 60);
        }
        let range = ranges().remove(usize::try_from(round % 6).expect("small"));
        let staged = fetch(&good, &bad, &range, &format!("/export{round}")).expect("fetched");
        bad.excise_and_ingest(&staged).expect("replaced");
        staged.remove().expect("removed");
    }
    check_same(&good, &bad, "in the end");
    bad.close().expect("closes");
}

#[test]
fn an_export_is_of_its_number_even_if_the_copy_is_further() {
    let vfs = MemVfs::new(1);
    let (good, bad) = pair(&vfs);
    fill(&good, LAST + 80);
    good.flush().expect("flushes");
    let before = rows_at(&bad, DATA, LAST).expect("reads");
    let range = ranges().remove(4);
    let staged = fetch(&good, &bad, &range, "/export").expect("fetched");
    bad.excise_and_ingest(&staged).expect("replaced");
    assert_eq!(rows_at(&bad, DATA, LAST).expect("reads"), before, "nothing of later");
    let at = SequenceNumber(LAST);
    let digests = [&good, &bad].map(|store| store.digest(&range, at).expect("reads"));
    assert_eq!(digests[0], digests[1], "the same at that number");
    bad.verify().expect("sound");
    // What comes later is applied here, too, and is not there twice.
    fill(&bad, LAST + 80);
    check_same(&good, &bad, "afterwards");
}

/// Harms a table of the first flush, before any other job can know it, and hands on what happens.
#[derive(Debug)]
struct Saboteur {
    vfs: MemVfs,
    harmed: OnceLock<PathBuf>,
    tell: Sender<Event>,
}

impl Saboteur {
    fn harm(&self) -> PathBuf {
        let tables: Vec<_> =
            self.vfs.files().into_iter().filter(|p| p.starts_with("/bad/sst")).collect();
        assert!(tables.len() > 3, "a flush in several pieces: {tables:?}");
        self.vfs.flip(&tables[1], 40, 2).expect("flips");
        tables[1].clone()
    }
}

impl Listener for Saboteur {
    fn on_event(&self, event: &Event) {
        if matches!(event, Event::Flushed { .. }) {
            self.harmed.get_or_init(|| self.harm());
        }
        let _gone = self.tell.send(event.clone()).is_err();
    }
}

/// Tells a writer that it is enough, also when the test fails: nobody would ever end it then.
struct Enough<'a>(&'a AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Takes events until one of each of `wanted` came.
fn await_each(told: &Receiver<Event>, wanted: &[&dyn Fn(&Event) -> bool]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut missing: Vec<_> = wanted.iter().collect();
    while !missing.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = told.recv_timeout(left).expect("it happens in time");
        if let Some(at) = missing.iter().position(|wanted| wanted(&event)) {
            missing.swap_remove(at);
        }
    }
}

#[test]
fn a_table_of_level_0_that_is_damaged_under_load_is_left_alone_and_repaired_while_all_goes_on() {
    let vfs = MemVfs::new(1);
    let (tell, told) = channel();
    let saboteur = Arc::new(Saboteur { vfs: vfs.clone(), harmed: OnceLock::new(), tell });
    let listener: Arc<dyn Listener> = Arc::<Saboteur>::clone(&saboteur);
    let loaded =
        Options { memtable_bytes: 30_000, events: EventSink::new(listener), ..options(2, 1500) };
    let shared: Arc<dyn Vfs> = Arc::new(vfs.clone());
    let bad = Store::open(shared, Path::new("/bad"), loaded, Executor::Threads).expect("opens");
    let enough = AtomicBool::new(false);
    let last = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut last = 0;
            while !enough.load(Ordering::Relaxed) {
                last += 1;
                write(&bad, last);
            }
            last
        });
        let ends = Enough(&enough);
        // A merge meets it, whoever reads first.
        await_each(&told, &[&|event| matches!(event, Event::Damaged { .. })]);
        let flushed = |event: &Event| matches!(event, Event::Flushed { .. });
        let merged = |event: &Event| {
            matches!(event, Event::Compacted { partition: DATA, tables_out: 1.., .. })
        };
        await_each(&told, &[&flushed, &flushed, &flushed, &merged, &merged]);
        drop(ends);
        writer.join().expect("no write fails")
    });
    let harmed = saboteur.harmed.get().expect("there was a flush");
    let damage = bad.damage().expect("known");
    assert_eq!(damage.len(), 1, "one block: {damage:?}");
    assert_eq!(&damage[0].file, harmed, "where it was harmed");
    assert!(vfs.files().contains(harmed), "left alone");
    let metrics = bad.metrics();
    assert_eq!((metrics.poisoned, metrics.damaged_tables), (None, 1), "it goes on");
    assert!(
        metrics.job_failures <= 1,
        "at most the merge that met it: {}",
        metrics.last_job_failure
    );
    let good = open(&vfs, "/good", 1).expect("opens");
    (1..=last).for_each(|n| write(&good, n));
    for store in [&good, &bad] {
        store.set_floor(DATA, SequenceNumber(last - 100)).expect("raises");
    }
    for k in (0..KEYS).map(key) {
        match bad.get(DATA, &k) {
            Ok(found) => assert_eq!(found, good.get(DATA, &k).expect("reads"), "{k:?}"),
            Err(Error::Corruption { file, .. }) => assert_eq!(&file, harmed, "{k:?}"),
            Err(e) => panic!("{k:?}: {e}"),
        }
    }
    let staged = fetch(&good, &bad, &damage[0].range(), "/export").expect("fetched");
    bad.excise_and_ingest(&staged).expect("replaced");
    assert_eq!(bad.damage().expect("known"), [], "repaired");
    check_same(&good, &bad, "repaired");
    for store in [&good, &bad] {
        fill(store, last + 500);
        store.compact_all().expect("compacts");
    }
    check_same(&good, &bad, "and compacted");
    bad.close().expect("closes");
    assert!(!vfs.files().contains(harmed), "nothing of it is left");
    check_same(&good, &open(&vfs, "/bad", 2).expect("opens"), "opened again");
}
