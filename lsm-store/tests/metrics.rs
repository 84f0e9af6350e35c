//! That every figure of `Metrics` counts what it says.

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
