//! Group commit: many threads write at once, each waits until its batch is on disk, and those that wait together
//! share one sync.
//!
//! `cargo run -p lsm-store --example threads`

use std::error::Error;
use std::io::Write;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use lsm_store::vfs::RealVfs;
use lsm_store::{
    Durability, Executor, Keep, Mode, Options, PartitionId, PartitionOptions, Store, WriteBatch,
};

const ORDERS: PartitionId = PartitionId(0);
const THREADS: u32 = 8;
const ORDERS_EACH: u32 = 50;

fn main() -> Result<(), Box<dyn Error>> {
    run(&tempfile::tempdir()?.path().join("store"), &mut std::io::stdout())
}

/// The example; the tests run it as well.
pub(crate) fn run(dir: &Path, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let partitions = vec![PartitionOptions { name: "orders".to_owned(), keep: Keep::NewestOnly }];
    let options = Options { mode: Mode::Wal, ..Options::new(0x7457, partitions) };
    let vfs = Arc::new(RealVfs::new());
    let store = Store::open(vfs.clone(), dir, options.clone(), Executor::Threads)?;

    // A handle is cheap to clone, and a reference will do as well.
    std::thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn({
                    let store = &store;
                    move || write_orders(store, thread)
                })
            })
            .collect();
        for writer in writers {
            writer.join().map_err(|_panic| "a writer panicked")??;
        }
        Ok(())
    })?;

    // Every batch has its own number, and they have no gaps.
    let last = store.last_sequence(ORDERS);
    writeln!(out, "{} writes, the last has number {last}", THREADS * ORDERS_EACH)?;

    // Each was on disk when its write returned: nothing is missing after a reopening.
    store.close()?;
    let store = Store::open(vfs, dir, options, Executor::Threads)?;
    let mut iter = store.view().iter(ORDERS, Bound::Unbounded, Bound::Unbounded)?;
    let mut found = 0;
    while iter.next()? {
        found += 1;
    }
    writeln!(out, "{found} orders after reopening")?;
    Ok(store.close()?)
}

fn write_orders(store: &Store, thread: u32) -> lsm_store::Result<()> {
    for order in 0..ORDERS_EACH {
        let mut batch = WriteBatch::new();
        batch.put(ORDERS, format!("{thread}-{order:04}").as_bytes(), b"one bread")?;
        store.write(batch, Durability::Sync)?;
    }
    Ok(())
}
