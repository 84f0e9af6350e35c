//! Range scans both ways, within bounds, from a place inside them.
//!
//! `cargo run -p lsm-store --example scans`

use std::error::Error;
use std::io::Write;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::path::Path;
use std::sync::Arc;

use lsm_store::vfs::RealVfs;
use lsm_store::{
    Durability, Executor, Iter, Keep, Mode, Options, PartitionId, PartitionOptions, Store,
    WriteBatch,
};

const EVENTS: PartitionId = PartitionId(0);

fn main() -> Result<(), Box<dyn Error>> {
    run(&tempfile::tempdir()?.path().join("store"), &mut std::io::stdout())
}

/// The example; the tests run it as well.
pub(crate) fn run(dir: &Path, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let partitions = vec![PartitionOptions { name: "events".to_owned(), keep: Keep::NewestOnly }];
    let options = Options { mode: Mode::Wal, ..Options::new(0x5ca7, partitions) };
    let store = Store::open(Arc::new(RealVfs::new()), dir, options, Executor::Threads)?;

    // Keys are ordered by their bytes, so numbers are written with leading zeros.
    let mut batch = WriteBatch::new();
    for hour in 0..24 {
        batch.put(EVENTS, format!("2026-11-24T{hour:02}").as_bytes(), b"measured")?;
    }
    store.write(batch, Durability::Sync)?;

    let view = store.view();
    // From nine to twelve. The upper bound is excluded; nothing beyond it is read.
    let (nine, noon) = (b"2026-11-24T09".as_slice(), b"2026-11-24T12".as_slice());
    let mut iter = view.iter(EVENTS, Included(nine), Excluded(noon))?;
    write!(out, "forward:")?;
    while iter.next()? {
        show(&iter, out)?;
    }

    // The same iterator turns around. At its end it stands on no entry.
    write!(out, "\nbackward:")?;
    iter.seek_to_last()?;
    while iter.valid() {
        show(&iter, out)?;
        iter.prev()?;
    }

    // The newest three at or before a key that need not exist.
    write!(out, "\nthe last three before 21:30:")?;
    let mut iter = view.iter(EVENTS, Unbounded, Unbounded)?;
    let mut there = iter.seek_for_prev(b"2026-11-24T21:30")?;
    for _ in 0..3 {
        if !there {
            break;
        }
        show(&iter, out)?;
        there = iter.prev()?;
    }
    writeln!(out)?;
    Ok(store.close()?)
}

fn show(iter: &Iter, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let hour = iter.key().get(11..).unwrap_or_default();
    Ok(write!(out, " {}", String::from_utf8_lossy(hour))?)
}
