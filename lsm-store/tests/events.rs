//! What a listener is told.

use std::path::Path;
use std::sync::Arc;

use lsm_store::events::{Event, EventSink, Listener};
use lsm_store::vfs::{Fault, FaultKind, FaultWhen, MemVfs, OpSet, Vfs};
use lsm_store::{
    Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position, SequenceNumber, Store,
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
