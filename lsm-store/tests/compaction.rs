//! Background work as a whole: what it leaves, what stops it, what it costs whoever writes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use lsm_store::events::{Event, EventSink, Listener, StallCause};
use lsm_store::perf::measure;
use lsm_store::rng::SplitMix64;
use lsm_store::vfs::{Fault, FaultKind, FaultWhen, MemVfs, OpSet, Vfs};
use lsm_store::{
    Durability, Error, Executor, Keep, KeyRange, Mode, Op, Options, PartitionId, PartitionOptions,
    Position, SequenceNumber, Store, WriteBatch,
};

const DATA: PartitionId = PartitionId(0);
const KEYS: u64 = 500;
/// However slow the machine: what is waited for happens long before.
const PATIENCE: Duration = Duration::from_secs(60);
/// More flushes than a test has.
const FLUSHES_MAX: usize = 1000;

fn options() -> Options {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly }];
    Options {
        memtable_bytes: 16 << 10,
        block_bytes: 512,
        table_bytes: 4 << 10,
        base_level_bytes: 8 << 10,
        level_ratio: 3,
        cache_bytes: 0,
        ..Options::new(5, partitions)
    }
}

fn open(vfs: &MemVfs, options: Options, executor: Executor) -> Store {
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    Store::open(vfs, Path::new("/db"), options, executor).expect("opens")
}

fn key(n: u64) -> Vec<u8> {
    format!("key/{n:05}").into_bytes()
}

/// Write `n`: a random key gets a value, or is deleted in every seventh.
fn write(store: &Store, n: u64) -> lsm_store::Result<()> {
    let key = key(SplitMix64::new(n).below(KEYS));
    let value = n.to_le_bytes().repeat(8);
    let op = if n.is_multiple_of(7) {
        Op::Delete { key: &key }
    } else {
        Op::Put { key: &key, value: &value }
    };
    let mut run = store.begin_run(Position { index: n, term: 1, extra: Vec::new() })?;
    run.apply(DATA, SequenceNumber(n), &[op])?;
    run.publish()
}

fn fill(store: &Store, from: u64, to: u64) {
    (from..=to).for_each(|n| write(store, n).expect("writes"));
}

/// Every key reads as the last of `last` writes left it.
fn check(store: &Store, last: u64) {
    let mut newest = vec![None; usize::try_from(KEYS).expect("small")];
    for n in 1..=last {
        let at = usize::try_from(SplitMix64::new(n).below(KEYS)).expect("small");
        newest[at] = (!n.is_multiple_of(7)).then_some(n);
    }
    for (k, expected) in (0_u64..).zip(&newest) {
        let found = store.get(DATA, &key(k)).expect("reads").map(|f| f.sequence.0);
        assert_eq!(found, *expected, "key {k} after {last} writes");
    }
    store.verify().expect("sound");
}

/// Waits until `done`, for as long as it takes within reason.
fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not after {PATIENCE:?}");
        std::thread::yield_now();
    }
}

fn no_table_can_be_written() -> Fault {
    Fault {
        ops: OpSet::WRITES,
        when: FaultWhen::Always,
        kind: FaultKind::Io,
        path_contains: ".sst".to_owned(),
    }
}

#[test]
fn pressure_is_none_in_an_idle_store_and_rises_all_the_way_to_the_stop() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, options(), Executor::Inline);
    assert_eq!(store.pressure().cause(), None, "empty: {:?}", store.pressure());
    vfs.add_fault(no_table_can_be_written());
    let (mut last, mut n) = (0.0, 0);
    let stopped = loop {
        n += 1;
        if let Err(e) = write(&store, n) {
            break e;
        }
        let now = store.pressure();
        assert!(now.level() >= last && now.level() <= 1.0, "write {n}: from {last} to {now:?}");
        last = now.level();
    };
    assert!(matches!(stopped, Error::Stalled { .. }), "{stopped}");
    assert!(last > 0.95, "the last before the stop: {last}");
    assert_eq!(store.pressure().cause(), Some(StallCause::Memtables), "{:?}", store.pressure());
    vfs.clear_faults();
    fill(&store, n, n + 500);
    assert!(store.pressure().memtables < 0.5, "{:?}", store.pressure());
    check(&store, n + 500);
}

#[test]
fn a_writer_that_stood_still_goes_on_by_itself_and_the_wait_is_counted_by_its_cause() {
    let vfs = MemVfs::new(1);
    let store = open(
        &vfs,
        Options { stall_max: Duration::from_millis(20), ..options() },
        Executor::Threads,
    );
    vfs.add_fault(no_table_can_be_written());
    let mut last = 0;
    let stalled = loop {
        match measure(|| write(&store, last + 1)) {
            (Ok(()), _) => last += 1,
            (Err(e), counts) => {
                assert!(counts.wait_nanos >= 20_000_000, "part of that call: {counts:?}");
                break e;
            }
        }
    };
    assert!(matches!(stalled, Error::Stalled { .. }), "{stalled}");
    let stalls = store.metrics().stall_micros;
    assert!(stalls.memtables.count == 1 && stalls.memtables.max >= 20_000, "{stalls:?}");
    assert_eq!(stalls.level0.count, 0, "{stalls:?}");
    vfs.clear_faults();
    // Nobody but the background can end it.
    until("room again", || store.metrics().frozen_memtables == 0);
    fill(&store, last + 1, last + 500);
    check(&store, last + 500);
}

/// Keeps what is told of waits. Holds the first flush at its end until a write is delayed.
#[derive(Debug)]
struct HoldFlush {
    told: parking_lot::Mutex<Vec<Event>>,
    go: Sender<()>,
    wait: Receiver<()>,
}

impl Listener for HoldFlush {
    fn on_event(&self, event: &Event) {
        if matches!(event, Event::Flushed { .. }) {
            let held = self.wait.recv_timeout(PATIENCE);
            held.expect("a write is delayed while the flush does not end");
        }
        if matches!(event, Event::DelaysBegan { .. }) {
            // For this flush and all after it.
            (0..FLUSHES_MAX).for_each(|_| self.go.try_send(()).unwrap_or_default());
        }
        if matches!(
            event,
            Event::DelaysBegan { .. } | Event::DelaysEnded { .. } | Event::Stalled { .. }
        ) {
            self.told.lock().push(event.clone());
        }
    }
}

#[test]
fn a_writer_is_delayed_before_it_would_have_to_stop_and_beginning_and_end_are_told() {
    for mode in [Mode::External, Mode::Wal] {
        let vfs = MemVfs::new(1);
        let (go, wait) = bounded(FLUSHES_MAX);
        let listener = Arc::new(HoldFlush { told: parking_lot::Mutex::default(), go, wait });
        let events = EventSink::new(Arc::<HoldFlush>::clone(&listener) as Arc<dyn Listener>);
        let large =
            Options { mode, memtable_bytes: 1 << 20, table_bytes: 1 << 20, events, ..options() };
        let store = open(&vfs, large, Executor::Threads);
        let put = |n: u64| match mode {
            Mode::External => write(&store, n),
            Mode::Wal => {
                let mut batch = WriteBatch::new();
                batch.put(DATA, &key(n), &n.to_le_bytes().repeat(8)).expect("small");
                store.write(batch, Durability::Buffered).map(|_| ())
            }
        };
        let (mut n, mut waited) = (0, 0);
        while listener.told.lock().is_empty() {
            n += 1;
            let (put, counts) = measure(|| put(n));
            put.expect("writes");
            waited = counts.wait_nanos;
        }
        assert!(waited > 0, "{mode:?}: part of the last call");
        let first = listener.told.lock().first().cloned();
        let expected = Event::DelaysBegan { cause: StallCause::Memtables };
        assert_eq!(first, Some(expected), "{mode:?}: delayed, before it stood still");
        until("the end of delays", || listener.told.lock().len() > 1);
        let last = listener.told.lock().last().cloned();
        assert!(
            matches!(last, Some(Event::DelaysEnded { delays: 1.., waited }) if waited > Duration::ZERO),
            "{mode:?}: {last:?}"
        );
        let metrics = store.metrics();
        assert!(metrics.delay_micros.memtables.count > 0, "{mode:?}: {metrics:?}");
        assert_eq!(metrics.stalls, 0, "{mode:?}: {metrics:?}");
    }
}

fn table_files(vfs: &MemVfs) -> usize {
    vfs.files().iter().filter(|path| path.extension().is_some_and(|e| e == "sst")).count()
}

#[test]
fn replaced_files_are_removed_at_a_pace_and_all_of_them_at_the_end() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, Options { deletion_rate: 1, ..options() }, Executor::Threads);
    fill(&store, 1, 3000);
    store.compact_all().expect("compacts");
    assert!(store.metrics().tables_removed + store.metrics().obsolete_files as u64 > 20, "many");
    until("more than a few are not kept waiting", || store.metrics().obsolete_files <= 8);
    // Each flush rings whoever removes them.
    for n in 3001..3003 {
        write(&store, n).expect("writes");
        store.flush().expect("flushes");
    }
    let metrics = store.metrics();
    assert!((7..=8).contains(&metrics.obsolete_files), "a byte per second: {metrics:?}");
    store.clone().close().expect("closes");
    let metrics = store.metrics();
    let tables: usize = metrics.partitions[0].levels.iter().map(|level| level.tables).sum();
    assert_eq!((metrics.obsolete_files, table_files(&vfs)), (0, tables), "all gone");
}

#[test]
fn what_nobody_adds_to_is_flushed_and_its_log_is_short() {
    let vfs = MemVfs::new(1);
    let idle_flush = Duration::from_millis(5);
    let store = open(&vfs, Options { mode: Mode::Wal, idle_flush, ..options() }, Executor::Threads);
    let mut batch = WriteBatch::new();
    batch.put(DATA, b"key", b"value").expect("small");
    store.write(batch, Durability::Sync).expect("writes");
    until("an idle flush", || store.durable_position().index == 1);
    assert!(store.metrics().idle_flushes > 0, "by itself");
}

/// Jobs of many steps, with a limit of so many bytes a second.
fn limited(compaction_rate: u64) -> Options {
    let (memtable_bytes, large) = (64 << 10, 1 << 20);
    Options {
        memtable_bytes,
        table_bytes: large,
        base_level_bytes: large,
        compaction_rate,
        ..options()
    }
}

/// Writes from `n` on until a compaction waits for the limit. Returns the last write.
fn fill_until_throttled(store: &Store, mut n: u64) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    while store.metrics().compactions_throttled == 0 {
        assert!(Instant::now() < deadline, "after {n} writes no compaction waits");
        fill(store, n, n + 99);
        n += 100;
    }
    n - 1
}

/// Returns whether `what` ends, by itself.
fn ends(what: impl FnOnce() + Send + 'static) -> bool {
    let (done, ended) = bounded(1);
    let thread = std::thread::spawn(move || {
        what();
        done.send(()).unwrap_or_default();
    });
    let in_time = ended.recv_timeout(PATIENCE).is_ok();
    if in_time {
        thread.join().expect("sound");
    }
    in_time
}

#[test]
fn a_compaction_that_keeps_to_its_limit_goes_on_with_another_one_and_is_given_up_at_the_end() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, limited(1), Executor::Threads);
    let n = fill_until_throttled(&store, 1);
    let metrics = store.metrics();
    assert_eq!((metrics.compactions, metrics.compaction_rate), (0, 1), "{metrics:?}");
    // Another limit, at which next to nothing is to be paid: what was owed at the old one is forgiven.
    store.set_compaction_rate(1 << 40);
    until("the compaction is done", || store.metrics().compactions > 0);
    until("nothing waits", || store.metrics().compactions_throttled == 0);
    let metrics = store.metrics();
    assert!(metrics.throttle_micros.count > 0, "{metrics:?}");
    assert_eq!(metrics.compaction_rate, 1 << 40, "{metrics:?}");
    check(&store, n);
    store.set_compaction_rate(1);
    let n = fill_until_throttled(&store, n + 1);
    assert!(store.metrics().throttle_micros.count > 0, "counted when the wait is over");
    let closing = store.clone();
    assert!(ends(move || closing.close().expect("closes")), "closing waits for the limit");
    drop(store);
    let store = open(&vfs, limited(0), Executor::Inline);
    let durable = store.durable_position().index;
    fill(&store, durable + 1, n);
    check(&store, n);
}

#[test]
fn a_limit_takes_the_time_it_says_and_none_without_a_clock() {
    const RATE: u64 = 1 << 20;
    for executor in [Executor::Threads, Executor::Inline] {
        let vfs = MemVfs::new(1);
        let store = open(&vfs, Options { l0_trigger: 35, ..limited(RATE) }, executor);
        for n in 1..=4000 {
            write(&store, n).expect("writes");
            if n % 1000 == 0 {
                store.flush().expect("flushes");
            }
        }
        store.compact_all().expect("compacts");
        let metrics = store.metrics();
        assert_eq!(metrics.compactions, 1, "{executor:?}: {metrics:?}");
        if executor == Executor::Inline {
            assert_eq!(metrics.throttle_micros, Default::default(), "{metrics:?}");
            continue;
        }
        let bytes = metrics.compaction_bytes_read + metrics.compaction_bytes_written;
        // All but the last step is paid for before the end.
        let least = bytes * 1_000_000 / RATE / 2;
        assert!(metrics.compaction_micros.max >= least, "{least} for {bytes}: {metrics:?}");
        assert!(metrics.throttle_micros.sum <= metrics.compaction_micros.sum, "{metrics:?}");
    }
}

#[test]
fn no_writer_stands_still_because_compactions_are_limited() {
    let vfs = MemVfs::new(1);
    let limits = Options { l0_stop: 12, stall_max: PATIENCE / 3, ..limited(1) };
    let store = open(&vfs, limits, Executor::Threads);
    fill(&store, 1, 40_000);
    let metrics = store.metrics();
    assert!(metrics.throttle_micros.count > 0, "the limit was felt: {metrics:?}");
    assert!(metrics.compactions > 2, "and given up: {metrics:?}");
    check(&store, 40_000);
}

#[test]
fn whoever_waits_until_no_compaction_is_under_way_does_not_wait_for_their_limit() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, limited(1), Executor::Threads);
    let n = fill_until_throttled(&store, 1);
    let other =
        Store::open(Arc::new(vfs.clone()), Path::new("/other"), limited(0), Executor::Inline)
            .expect("opens");
    fill(&other, 1, n);
    let range = KeyRange { partition: DATA, start: key(100), end: Some(key(200)) };
    let export = other.export_range(&range, SequenceNumber(n), Path::new("/export"));
    let export = export.expect("exports");
    let mut incoming = store.receive(export.description()).expect("begins");
    for wanted in incoming.wanted() {
        let mut bytes = vec![0; usize::try_from(wanted.len).expect("small")];
        export.read(wanted.uid, 0, &mut bytes).expect("reads");
        incoming.write(wanted.uid, 0, &bytes).expect("writes");
    }
    let staged = incoming.finish().expect("complete");
    store.excise_and_ingest(&staged).expect("replaced, and not Stalled");
    check(&store, n);
}
