//! Opening what is there: what it costs after a clean close, and on what it relies to cost so little.

#[expect(dead_code, reason = "shared with tests that use more of it")]
mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Acked, BATCHES, DATA, check, open, options, run};
use lsm_store::vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, MemVfs, OpSet};
use lsm_store::{Durability, Executor, Mode, Store, WriteBatch};

/// Files whose path contains `part`, with their content.
fn files(vfs: &MemVfs, part: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let named = |path: &PathBuf| path.to_string_lossy().contains(part);
    let with_content = |path: PathBuf| (path.clone(), vfs.content(&path).expect("listed"));
    vfs.files().into_iter().filter(named).map(with_content).collect()
}

fn fail_syncs(vfs: &MemVfs) {
    vfs.add_fault(Fault {
        ops: OpSet::SYNCS.and(OpSet::DIR_SYNCS),
        when: FaultWhen::Always,
        kind: FaultKind::Io,
        path_contains: String::new(),
    });
}

#[test]
fn opening_what_was_closed_cleanly_syncs_nothing_and_leaves_the_manifest_alone() {
    for mode in [Mode::Wal, Mode::External] {
        let vfs = MemVfs::new(1);
        run(&vfs, mode, BATCHES, &mut |_| {}).expect("no fault");
        let before = (files(&vfs, "MANIFEST"), files(&vfs, "CURRENT"), files(&vfs, "wal"));
        fail_syncs(&vfs);
        let store = open(&vfs, mode).expect("opens without a sync");
        check(&store, mode, Acked::default(), "reopened").expect("readable");
        store.verify().expect("manifest and tables agree");
        store.close().expect("closes without a sync");
        assert_eq!(vfs.faults_fired(), 0, "{mode:?}: no sync was tried");
        let after = (files(&vfs, "MANIFEST"), files(&vfs, "CURRENT"), files(&vfs, "wal"));
        assert_eq!(before, after, "{mode:?}: nothing was written");
    }
}

#[test]
fn the_first_commit_after_opening_goes_into_a_manifest_of_its_own() {
    let vfs = MemVfs::new(1);
    run(&vfs, Mode::Wal, BATCHES, &mut |_| {}).expect("no fault");
    let before = files(&vfs, "MANIFEST");
    let store = open(&vfs, Mode::Wal).expect("opens");
    common::write(&store, Mode::Wal, BATCHES, Durability::Sync).expect("written");
    assert_eq!(files(&vfs, "MANIFEST"), before, "a write alone needs none");
    store.flush().expect("flushes");
    let after = files(&vfs, "MANIFEST");
    assert_eq!(after.len(), 1, "one at a time");
    assert_ne!(before[0].0, after[0].0, "an old manifest is not appended to");
}

#[test]
fn a_log_that_is_all_in_tables_is_empty_after_a_close() {
    let vfs = MemVfs::new(1);
    // Several segments' worth, of which the last few are still there when the store is closed.
    let store = open(&vfs, Mode::Wal).expect("new");
    for n in 0..2_000_u64 {
        let mut batch = WriteBatch::new();
        batch.put(DATA, &n.to_be_bytes(), &[7; 100]).expect("small");
        store.write(batch, Durability::Buffered).expect("written");
    }
    store.flush().expect("flushes");
    store.close().expect("closes");
    let log = files(&vfs, "wal/");
    let [(_, content)] = log.as_slice() else { panic!("{} segments", log.len()) };
    assert!(content.len() < 512, "{} bytes to read at the next opening", content.len());
    let store = open(&vfs, Mode::Wal).expect("opens");
    let mut batch = WriteBatch::new();
    batch.put(DATA, b"next", b"").expect("small");
    let numbers = store.write(batch, Durability::Sync).expect("written");
    assert_eq!(numbers.get(DATA).map(|n| n.0), Some(2_001), "numbers go on");
    // What is not in tables stays in the log.
    store.close().expect("closes");
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    let store = open(&vfs, Mode::Wal).expect("opens");
    assert!(store.get(DATA, b"next").expect("readable").is_some(), "it was only in the log");
}

#[test]
fn a_close_without_room_for_an_empty_segment_keeps_the_log() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, Mode::Wal).expect("new");
    common::write(&store, Mode::Wal, 1, Durability::Sync).expect("written");
    store.flush().expect("flushes");
    vfs.add_fault(Fault {
        ops: OpSet::WRITES,
        when: FaultWhen::Always,
        kind: FaultKind::NoSpace,
        path_contains: "wal/tmp/0000000000000002".to_owned(),
    });
    store.close().expect("closes all the same");
    assert!(vfs.faults_fired() > 0, "it was tried");
    vfs.clear_faults();
    let store = open(&vfs, Mode::Wal).expect("opens");
    assert_eq!(check(&store, Mode::Wal, Acked::default(), "reopened").expect("readable"), 1);
}

/// The process ends anywhere, the store is opened while the system still has in memory what was never
/// synced, and then the power fails: opening must not have relied on those bytes and names.
#[test]
fn power_lost_after_the_process_was_killed_anywhere_and_the_store_reopened_loses_nothing() {
    for mode in [Mode::Wal, Mode::External] {
        let vfs = MemVfs::new(1);
        vfs.record();
        let mut acks = Vec::new();
        run(&vfs, mode, BATCHES, &mut |acked| acks.push((vfs.mutating_calls(), acked)))
            .expect("no fault");
        let mut acks = acks.into_iter().peekable();
        let mut acked = Acked::default();
        for (call, killed) in (0..).zip(vfs.take_recorded()) {
            while let Some((_, newer)) = acks.next_if(|(at, _)| *at <= call) {
                acked = Acked {
                    batches: acked.batches.max(newer.batches),
                    floor: acked.floor.max(newer.floor),
                };
            }
            let context = format!("{mode:?}, killed before call {call}");
            let store = open(&killed, mode).unwrap_or_else(|e| panic!("{context}: {e}"));
            let found = check(&store, mode, acked, &context).expect("readable");
            drop(store);
            killed.crash(CrashPolicy::LOSE_UNSYNCED, call);
            let context = format!("{context}, then without power");
            let store = open(&killed, mode).unwrap_or_else(|e| panic!("{context}: {e}"));
            let again = check(&store, mode, acked, &context).expect("readable");
            assert_eq!(again, found, "{context}: what was read once is there");
        }
    }
}

/// With no entropy but the seed, openings of one store still bind their log segments differently.
#[test]
fn openings_that_write_no_manifest_draw_different_epochs() {
    let vfs = MemVfs::new(1);
    run(&vfs, Mode::Wal, BATCHES, &mut |_| {}).expect("no fault");
    let epoch = |content: &[u8]| content[40..48].to_vec();
    let mut epochs = Vec::new();
    for opening in 0..3 {
        let options = options(Mode::Wal);
        let store = Store::open(Arc::new(vfs.clone()), Path::new("/db"), options, Executor::Inline)
            .expect("opens");
        let mut batch = WriteBatch::new();
        batch.put(DATA, &[opening], b"").expect("small");
        store.write(batch, Durability::Sync).expect("written");
        vfs.kill();
        drop(store);
        let (_, newest) = files(&vfs, "wal/").pop().expect("a segment");
        epochs.push(epoch(&newest));
    }
    epochs.sort();
    epochs.dedup();
    assert_eq!(epochs.len(), 3, "each opening its own");
}
