//! A backup while the store goes on: a checkpoint shares its tables with the store, opens as a store of its own, and
//! can be checked and removed.
//!
//! `cargo run -p lsm-store --example backup`

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use lsm_store::vfs::RealVfs;
use lsm_store::{
    Durability, Executor, Keep, Mode, Options, PartitionId, PartitionOptions, Store, WriteBatch,
};

const ACCOUNTS: PartitionId = PartitionId(0);

fn main() -> Result<(), Box<dyn Error>> {
    run(tempfile::tempdir()?.path(), &mut std::io::stdout())
}

/// The example; the tests run it as well.
pub(crate) fn run(dir: &Path, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let partitions = vec![PartitionOptions { name: "accounts".to_owned(), keep: Keep::NewestOnly }];
    let options = Options { mode: Mode::Wal, ..Options::new(0xbac0, partitions) };
    let vfs = Arc::new(RealVfs::new());
    let store = Store::open(vfs.clone(), &dir.join("store"), options.clone(), Executor::Threads)?;
    set(&store, "100")?;

    // On the same file system this costs hard links, not copies. The directory must not be there yet.
    let backup = store.checkpoint(&dir.join("backup"))?;
    backup.verify()?;
    writeln!(out, "the backup has everything up to write {}", backup.position().index)?;

    set(&store, "0")?;
    store.close()?;
    drop(backup);

    // The backup is a store. What is written to one of the two is not in the other.
    let restored =
        Store::open(vfs.clone(), &dir.join("backup"), options.clone(), Executor::Threads)?;
    writeln!(out, "alice in the backup: {}", balance(&restored)?)?;
    restored.close()?;
    let store = Store::open(vfs, &dir.join("store"), options, Executor::Threads)?;
    writeln!(out, "alice in the store: {}", balance(&store)?)?;

    // A copy that was not opened is removed as one; opened, it is a store like any other. Until then its tables take
    // space, also those that the store itself has compacted away.
    let unused = store.checkpoint(&dir.join("unused"))?;
    unused.remove()?;
    writeln!(out, "the unused backup is there: {}", dir.join("unused").exists())?;
    Ok(store.close()?)
}

fn set(store: &Store, balance: &str) -> Result<(), Box<dyn Error>> {
    let mut batch = WriteBatch::new();
    batch.put(ACCOUNTS, b"alice", balance.as_bytes())?;
    store.write(batch, Durability::Sync)?;
    Ok(())
}

fn balance(store: &Store) -> Result<String, Box<dyn Error>> {
    let found = store.get(ACCOUNTS, b"alice")?.ok_or("alice has no account")?;
    Ok(String::from_utf8_lossy(&found.value).into_owned())
}
