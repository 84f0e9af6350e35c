//! A store with more tables than its process may have files open. Alone in its process, which it limits.

use std::ops::Bound::Unbounded;
use std::sync::Arc;

use lsm_store::vfs::RealVfs;
use lsm_store::{
    Compression, Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position,
    SequenceNumber, Store,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const DATA: PartitionId = PartitionId(0);
const DESCRIPTORS: u64 = 60;
const KEYS: u64 = 400;

fn options() -> Options {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly }];
    Options {
        table_bytes: 1024,
        block_bytes: 1024,
        compression: Compression::None,
        base_level_bytes: 64 << 20,
        max_open_files: 16,
        ..Options::new(7, partitions)
    }
}

fn key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// Of a size that makes a table.
fn value(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(128)
}

fn open(dir: &std::path::Path) -> Store {
    Store::open(Arc::new(RealVfs::new()), dir, options(), Executor::Threads).expect("opens")
}

#[test]
fn a_store_of_hundreds_of_tables_is_written_compacted_reopened_and_read_with_few_files_open() {
    let limits = getrlimit(Resource::Nofile);
    let limit = Rlimit { current: Some(DESCRIPTORS), maximum: limits.maximum };
    setrlimit(Resource::Nofile, limit).expect("a lower limit is allowed");

    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    for number in 0..KEYS {
        let position = Position { index: number + 1, term: 1, extra: vec![] };
        let mut run = store.begin_run(position).expect("begins");
        // Written here and there, so that every table of the end is merged.
        let number = number * 199 % KEYS;
        let (key, value) = (key(number), value(number));
        let put = Op::Put { key: &key, value: &value };
        let sequence = SequenceNumber(store.last_sequence(DATA).0 + 1);
        run.apply(DATA, sequence, &[put]).expect("applies");
        run.publish().expect("publishes");
        if number % 100 == 99 {
            store.flush().expect("flushes");
        }
    }
    store.flush().expect("flushes");
    store.compact_all().expect("compacts");
    store.close().expect("closes");

    let store = open(dir.path());
    let tables: usize =
        store.metrics().partitions.iter().flat_map(|p| &p.levels).map(|l| l.tables).sum();
    assert!(tables as u64 > 6 * DESCRIPTORS, "{tables} tables");
    let view = store.view();
    for number in (0..KEYS).map(|n| n * 177 % KEYS) {
        let found = view.get(DATA, &key(number)).expect("reads").expect("is there");
        assert_eq!(found.value, value(number), "key {number}");
    }
    let mut rows = view.iter(DATA, Unbounded, Unbounded).expect("an iterator");
    let mut count = 0;
    while rows.next().expect("reads") {
        assert_eq!(rows.key(), key(count), "in order");
        count += 1;
    }
    assert_eq!(count, KEYS, "every key once");
    store.verify().expect("verifies");
    let open = store.metrics().open_tables;
    assert!((1..=16).contains(&open), "{open} tables are open");
}
