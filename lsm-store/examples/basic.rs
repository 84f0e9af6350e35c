//! A store whose write-ahead log is somebody else's: runs in, reads at any sequence number, flush, reopen.
//!
//! `cargo run -p lsm-store --example basic`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::ops::Bound;
use std::sync::Arc;

use lsm_store::vfs::RealVfs;
use lsm_store::{
    Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position, SequenceNumber, Store,
};

const FRUIT: PartitionId = PartitionId(0);

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("lsm-store-basic-{}", std::process::id()));
    let partitions = vec![PartitionOptions { name: "fruit".to_owned(), keep: Keep::All }];
    let options = Options::new(0x1234, partitions);
    let vfs = Arc::new(RealVfs::new());
    let store = Store::open(vfs.clone(), &dir, options.clone(), Executor::Threads)?;

    // A run is what the log's entry at `index` did. Its batches become visible together.
    let mut run = store.begin_run(Position { index: 1, term: 1, extra: vec![] })?;
    run.apply(FRUIT, SequenceNumber(1), &[Op::Put { key: b"apple", value: b"red" }])?;
    run.apply(FRUIT, SequenceNumber(2), &[Op::Put { key: b"pear", value: b"green" }])?;
    run.publish()?;

    let mut run = store.begin_run(Position { index: 2, term: 1, extra: vec![] })?;
    run.apply(FRUIT, SequenceNumber(3), &[Op::Put { key: b"apple", value: b"yellow" }])?;
    run.publish()?;

    // Any number at or above the retention floor can be read.
    for at in [2, 3] {
        let view = store.view_at(FRUIT, SequenceNumber(at))?;
        let mut iter = view.iter(FRUIT, Bound::Unbounded, Bound::Unbounded)?;
        while iter.next()? {
            let (key, value) =
                (String::from_utf8_lossy(iter.key()), String::from_utf8_lossy(iter.value()));
            println!("at {at}: {key} is {value}, since {}", iter.sequence());
        }
    }

    // After a flush the log is needed only above this position.
    println!("flushed up to index {}", store.flush()?.index);
    store.close()?;
    let store = Store::open(vfs, &dir, options, Executor::Threads)?;
    println!("opened again at index {}", store.durable_position().index);
    println!("checked {:?}", store.verify()?);
    store.close()?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
