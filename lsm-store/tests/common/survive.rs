//! What must hold after a crash or a failure, whichever it was: shared by `crash.rs` and `faults.rs`.

use std::path::PathBuf;

use lsm_store::vfs::MemVfs;
use lsm_store::{Durability, Error, Mode, Store};

use crate::common::{Acked, BATCHES, check, compare, open, run, write};

impl Acked {
    /// What both acknowledge.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { batches: self.batches.max(other.batches), floor: self.floor.max(other.floor) }
    }
}

/// How far a survivor works on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkOn {
    /// For one batch and a flush.
    OneBatch,
    /// Through the rest of the workload, and is opened again.
    ToTheEnd,
}

/// Opens the store, which must hold what was acknowledged and be in a state that it was in; works on, and
/// checks again.
pub(crate) fn survive(vfs: &MemVfs, mode: Mode, acked: Acked, work_on: WorkOn, context: &str) {
    let finish = || -> Result<(), Error> {
        let mut store = open(vfs, mode)?;
        let number = check(&store, mode, acked, context)?;
        no_orphans(vfs, &store, context);
        if work_on == WorkOn::ToTheEnd {
            drop(store);
            run(vfs, mode, BATCHES, &mut |_| {})?;
            store = open(vfs, mode)?;
            check(&store, mode, Acked { batches: BATCHES, ..acked }, context)?;
            no_orphans(vfs, &store, context);
        } else if number < BATCHES {
            write(&store, mode, number + 1, Durability::Sync)?;
            store.flush()?;
            compare(&store, number + 1, context)?;
        }
        store.verify()?;
        Ok(())
    };
    if let Err(failure) = finish() {
        unreachable!("{context}: {failure}");
    }
}

/// There are as many table files as tables in use: nothing is left behind. A compaction under way may
/// have written some of its own.
pub(crate) fn no_orphans(vfs: &MemVfs, store: &Store, context: &str) {
    let metrics = store.metrics();
    let tables: usize = metrics.partitions.iter().flat_map(|p| &p.levels).map(|l| l.tables).sum();
    let is_table = |path: &PathBuf| path.extension().is_some_and(|e| e == "sst");
    let files = vfs.files().into_iter().filter(is_table).count();
    let started = metrics.compactions_running > 0 && files > tables;
    assert!(
        files == tables || started,
        "{context}: {files} table files for {tables} tables in use"
    );
}
