//! Tests: memory that was damaged between a write and its flush does not become a table.

use std::path::Path;
use std::sync::Arc;

use crate::vfs::MemVfs;
use crate::{
    Error, Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position, SequenceNumber,
    Store,
};

#[test]
fn a_value_that_changed_in_memory_stops_the_flush_and_the_store() {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
    let vfs = Arc::new(MemVfs::new(1));
    let store = Store::open(vfs, Path::new("/db"), Options::new(1, partitions), Executor::Inline)
        .expect("opens");
    let position = Position { index: 1, term: 1, extra: vec![] };
    let mut run = store.begin_run(position).expect("begins");
    let op = Op::Put { key: b"key", value: b"value" };
    run.apply(PartitionId(0), SequenceNumber(1), &[op]).expect("applies");
    run.publish().expect("publishes");
    let active = Arc::clone(&store.inner().state.lock().active);
    active.table(0).expect("one partition").flip_a_bit();
    let refused = store.flush().expect_err("the flush finds it");
    assert!(matches!(refused, Error::Poisoned { .. }), "refused by {refused}");
    assert!(refused.to_string().contains("memory was damaged"), "says why: {refused}");
    let position = Position { index: 2, term: 1, extra: vec![] };
    assert!(store.begin_run(position).is_err(), "no more writes");
}
