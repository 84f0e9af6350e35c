//! What a listener is told.

use std::ops::Bound::Unbounded;
use std::path::Path;
use std::sync::Arc;

use lsm_store::events::{Event, EventSink, Listener};
use lsm_store::perf::measure;
use lsm_store::vfs::{Fault, FaultKind, FaultWhen, MemVfs, OpSet, Vfs};
use lsm_store::{
    Checkpoint, Durability, Executor, Keep, KeyRange, Mode, Op, Options, PartitionId,
    PartitionOptions, Position, SequenceNumber, Store, WriteBatch,
};
use parking_lot::Mutex;

/// Keeps every event.
#[derive(Debug, Default)]
struct Record(Mutex<Vec<Event>>);

impl Listener for Record {
    fn on_event(&self, event: &Event) {
        self.0.lock().push(event.clone());
    }
}

fn open(vfs: &Arc<MemVfs>, listener: &Arc<Record>) -> Store {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
    let listener: Arc<dyn Listener> = Arc::<Record>::clone(listener);
    let options = Options { events: EventSink::new(listener), ..Options::new(7, partitions) };
    let vfs: Arc<dyn Vfs> = Arc::<MemVfs>::clone(vfs);
    Store::open(vfs, Path::new("/store"), options, Executor::Inline).expect("opens")
}

fn put(store: &Store, index: u64) {
    let mut run = store.begin_run(Position { index, ..Position::default() }).expect("begins");
    let op = Op::Put { key: b"secret", value: b"secret" };
    run.apply(PartitionId(0), SequenceNumber(index), &[op]).expect("applies");
    run.publish().expect("publishes");
}

#[test]
fn a_failed_job_and_the_end_of_writing_are_told_once_each_and_without_keys() {
    let vfs = Arc::new(MemVfs::new(1));
    let listener = Arc::new(Record::default());
    let store = open(&vfs, &listener);
    put(&store, 1);
    let created = std::mem::take(&mut *listener.0.lock());
    assert!(matches!(&created[..], [Event::ManifestRolled { .. }]), "{created:?}");
    vfs.add_fault(Fault {
        ops: OpSet::WRITES,
        when: FaultWhen::Always,
        kind: FaultKind::NoSpace,
        path_contains: "sst".to_owned(),
    });
    assert!(store.flush().is_err(), "no space for the table");
    vfs.clear_faults();
    let told = std::mem::take(&mut *listener.0.lock());
    assert!(
        matches!(&told[..], [Event::JobFailed { job: "flush", error }] if error.contains(".sst")),
        "{told:?}"
    );
    store.flush().expect("space is back");
    let told = std::mem::take(&mut *listener.0.lock());
    let flushed = |e: &Event| matches!(e, Event::Flushed { position: 1, entries: 1, tables: 1, bytes, took: None } if *bytes > 0);
    assert!(told.iter().filter(|e| flushed(e)).count() == 1, "{told:?}");
    store.compact_all().expect("compacts");
    let told = std::mem::take(&mut *listener.0.lock());
    let rewritten = |e: &Event| {
        matches!(e, Event::Compacted { from: 0, to: 6, tables_in: 1, tables_out: 1, .. })
    };
    assert!(matches!(&told[..], [e] if rewritten(e)), "{told:?}");
    drop(store.begin_run(Position { index: 2, ..Position::default() }).expect("begins"));
    assert!(store.flush().is_err(), "refused, and no second event");
    let told = std::mem::take(&mut *listener.0.lock());
    let poisoned: Vec<_> = told.iter().filter(|e| matches!(e, Event::Poisoned { .. })).collect();
    assert!(
        matches!(&poisoned[..], [Event::Poisoned { reason }] if reason.contains("position 2")),
        "{told:?}"
    );
    assert!(!format!("{told:?}").contains("secret"), "no keys or values: {told:?}");
}

#[test]
fn the_counters_of_a_call_say_where_its_time_went() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs, &Arc::new(Record::default()));
    put(&store, 1);
    let get = || measure(|| store.get(PartitionId(0), b"secret").expect("reads").is_some());
    let (found, counts) = get();
    assert!(found, "in memory");
    assert_eq!((counts.memtables, counts.tables, counts.blocks_read), (1, 0, 0), "{counts:?}");
    let ((), flush) = measure(|| store.flush().map(drop).expect("flushes"));
    assert!(flush.sync_nanos > 0 && flush.wait_nanos == 0, "{flush:?}");
    let (found, cold) = get();
    assert!(found, "in a table");
    assert_eq!((cold.memtables, cold.tables, cold.filters), (0, 1, 1), "{cold:?}");
    assert_eq!((cold.blocks_read, cold.cache_hits), (3, 0), "filter, index and data: {cold:?}");
    assert!(cold.bytes_read > 0 && cold.read_nanos > 0, "{cold:?}");
    let (_, warm) = get();
    assert_eq!((warm.blocks_read, warm.cache_hits), (0, 3), "all in memory now: {warm:?}");
    assert_eq!((warm.read_nanos, warm.sync_nanos), (0, 0), "{warm:?}");
    let missing = || store.get(PartitionId(0), b"secrets").expect("reads").is_some();
    assert_eq!(measure(missing), (false, Default::default()), "outside of all key ranges");

    for index in 2..6 {
        put(&store, index);
    }
    let view = store.view_at(PartitionId(0), SequenceNumber(1)).expect("in history");
    let mut iter = view.iter(PartitionId(0), Unbounded, Unbounded).expect("iterates");
    let (found, counts) = measure(|| iter.seek_to_first().expect("seeks"));
    assert!(found, "the first version");
    assert_eq!((counts.seeks, counts.versions_skipped), (2, 4), "{counts:?}");
}

#[test]
fn new_manifests_segments_checkpoints_and_copies_are_told() {
    let vfs = Arc::new(MemVfs::new(1));
    let listener = Arc::new(Record::default());
    let taken = || std::mem::take(&mut *listener.0.lock());
    let manifests = |told: &[Event]| -> Vec<u64> {
        let file = |event: &Event| {
            if let Event::ManifestRolled { file } = event { Some(*file) } else { None }
        };
        told.iter().filter_map(file).collect()
    };
    let store = open(&vfs, &listener);
    put(&store, 1);
    store.flush().expect("flushes");
    taken();
    let copy = store.checkpoint(Path::new("/copy")).expect("copied");
    let bytes = copy.tables().iter().map(|table| table.len).sum();
    let dir = Path::new("/copy").to_path_buf();
    let made = Event::CheckpointMade { dir, position: 1, tables: 1, bytes, took: None };
    assert_eq!(taken(), [made]);
    assert!(store.checkpoint(Path::new("/copy")).is_err(), "it is there already");
    assert_eq!(taken(), [], "none was made");

    let range = KeyRange { partition: PartitionId(0), start: Vec::new(), end: None };
    let export = store.export_range(&range, SequenceNumber(1), Path::new("/export"));
    let receive = |from: Checkpoint| {
        let mut incoming = store.receive(from.description()).expect("begins");
        for wanted in incoming.wanted() {
            let mut bytes = vec![0; usize::try_from(wanted.len).expect("small")];
            from.read(wanted.uid, 0, &mut bytes).expect("reads");
            incoming.write(wanted.uid, 0, &bytes).expect("writes");
        }
        incoming.finish().expect("complete")
    };
    let staged = receive(export.expect("exports"));
    taken();
    let replaced = store.excise_and_ingest(&staged).expect("replaced");
    let partition = PartitionId(0);
    assert_eq!(taken(), [Event::RangeReplaced { partition, replaced, took: None }]);
    let staged = receive(copy);
    let store = store.adopt(staged).expect("adopted");
    let told = taken();
    assert!(told.contains(&Event::Adopted { position: 1, tables: 1 }), "{told:?}");

    put(&store, 2);
    let floor = || store.set_floor(PartitionId(0), SequenceNumber(2)).expect("raised");
    let ((), counts) = measure(floor);
    assert!(counts.sync_nanos > 0, "an edit is synced: {counts:?}");
    // Each floor is an edit: at last there are too many.
    let mut rolled = Vec::new();
    for index in 3..60_000 {
        put(&store, index);
        store.set_floor(PartitionId(0), SequenceNumber(index)).expect("raised");
        rolled = manifests(&taken());
        if !rolled.is_empty() {
            break;
        }
    }
    assert_eq!(rolled.len(), 1, "told at once, of one");
    store.close().expect("closes");
    let manifest = format!("MANIFEST-{:016x}", rolled[0]);
    let there = vfs.files().iter().any(|path| path.ends_with(&manifest));
    assert!(there, "{manifest} is not among {:?}", vfs.files());
}

#[test]
fn the_segments_of_the_log_are_told_as_they_begin() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new(1));
    let listener = Arc::new(Record::default());
    let told: Arc<dyn Listener> = Arc::<Record>::clone(&listener);
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
    let options = Options {
        mode: Mode::Wal,
        wal_segment_bytes: 4096,
        events: EventSink::new(told),
        ..Options::new(7, partitions)
    };
    let store = Store::open(vfs, Path::new("/store"), options, Executor::Inline).expect("opens");
    let before = store.metrics().log.expect("has a log").segments;
    for _ in 0..20 {
        let mut batch = WriteBatch::new();
        batch.put(PartitionId(0), b"secret", &[7; 1000]).expect("small");
        store.write(batch, Durability::Buffered).expect("writes");
    }
    let synced = || store.write(WriteBatch::new(), Durability::Sync).map(drop);
    let (written, counts) = measure(synced);
    written.expect("syncs");
    assert!(counts.sync_nanos > 0 && counts.wait_nanos == 0, "{counts:?}");
    let begun = store.metrics().log.expect("has a log").segments - before;
    let told = std::mem::take(&mut *listener.0.lock());
    let segment = |event: &Event| {
        if let Event::LogRolled { segment } = event { Some(*segment) } else { None }
    };
    let segments: Vec<u64> = told.iter().filter_map(segment).collect();
    assert!(begun > 3 && segments.len() as u64 == begun, "{begun} were begun: {told:?}");
    assert!(segments.windows(2).all(|two| two[0] + 1 == two[1]), "{segments:?}");
}
