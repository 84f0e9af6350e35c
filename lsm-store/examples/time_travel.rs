//! Views and time travel: a partition that keeps its versions can be read as it was at any sequence number down to
//! the retention floor.
//!
//! `cargo run -p lsm-store --example time_travel`

use std::error::Error;
use std::io::Write;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use lsm_store::vfs::RealVfs;
use lsm_store::{
    Durability, Executor, Keep, Mode, Options, PartitionId, PartitionOptions, SequenceNumber,
    Store, WriteBatch,
};

const PRICES: PartitionId = PartitionId(0);

fn main() -> Result<(), Box<dyn Error>> {
    run(&tempfile::tempdir()?.path().join("store"), &mut std::io::stdout())
}

/// The example; the tests run it as well.
pub(crate) fn run(dir: &Path, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let partitions = vec![PartitionOptions { name: "prices".to_owned(), keep: Keep::All }];
    let options = Options { mode: Mode::Wal, ..Options::new(0x7173, partitions) };
    let store = Store::open(Arc::new(RealVfs::new()), dir, options, Executor::Threads)?;

    // Each batch has one sequence number in each partition it touches: here 1, 2 and 3.
    for (bread, milk) in [("2.10", "1.05"), ("2.20", "1.05"), ("2.20", "1.15")] {
        let mut batch = WriteBatch::new();
        batch.put(PRICES, b"bread", bread.as_bytes())?;
        batch.put(PRICES, b"milk", milk.as_bytes())?;
        store.write(batch, Durability::Sync)?;
    }

    // A view sees the same for as long as it lives, whatever is written meanwhile.
    let before = store.view();
    let mut batch = WriteBatch::new();
    batch.delete(PRICES, b"milk")?;
    store.write(batch, Durability::Sync)?;
    let milk = |found: Option<lsm_store::Found>| match found {
        Some(found) => String::from_utf8_lossy(&found.value).into_owned(),
        None => "gone".to_owned(),
    };
    writeln!(out, "milk in the view: {}", milk(before.get(PRICES, b"milk")?))?;
    writeln!(out, "milk in the store: {}", milk(store.get(PRICES, b"milk")?))?;

    // Any number can be read, also one that was never taken as a view.
    for number in 1..=4 {
        let view = store.view_at(PRICES, SequenceNumber(number))?;
        let mut iter = view.iter(PRICES, Bound::Unbounded, Bound::Unbounded)?;
        write!(out, "at {number}:")?;
        while iter.next()? {
            let (key, value) = (iter.key(), iter.value());
            write!(out, " {} {}", String::from_utf8_lossy(key), String::from_utf8_lossy(value))?;
        }
        writeln!(out)?;
    }

    // What is below the floor may be forgotten, and can no longer be asked for.
    store.set_floor(PRICES, SequenceNumber(3))?;
    let refused = store.view_at(PRICES, SequenceNumber(2)).is_err();
    writeln!(out, "at 2 with the floor at 3: {}", if refused { "refused" } else { "answered" })?;
    Ok(store.close()?)
}
