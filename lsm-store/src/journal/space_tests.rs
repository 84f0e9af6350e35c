//! New segments that cannot be made, syncs beside the writer, space that is filled ahead.

use super::tests::{append, check_records, open, options, reopen};
use crate::error::Error;
use crate::vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, MemVfs, OpSet};

#[test]
fn a_segment_that_cannot_be_made_ends_nothing() {
    for (ops, kind) in [
        (OpSet::NAMES, FaultKind::NoSpace),
        (OpSet::WRITES, FaultKind::NoSpace),
        (OpSet::SYNCS, FaultKind::Io),
        (OpSet::WRITES, FaultKind::Io),
    ] {
        let vfs = MemVfs::new(1);
        let (mut journal, _) = open(&vfs, options(4096)).expect("a new journal");
        append(&mut journal, 1).expect("appended");
        journal.sync().expect("synced");
        let path_contains = "/tmp/0000000000000002".to_owned();
        vfs.add_fault(Fault { ops, when: FaultWhen::Always, kind, path_contains });
        let (mut last, mut refusals) = (1, 0);
        while refusals < 3 {
            match append(&mut journal, last + 1) {
                Ok(_) => last += 1,
                Err(Error::NoSpace { needed: 4096, .. }) if kind == FaultKind::NoSpace => {
                    refusals += 1
                }
                Err(Error::Io { .. }) if kind == FaultKind::Io => refusals += 1,
                Err(error) => unreachable!("{ops:?}, {kind:?}: {error}"),
            }
        }
        assert!(!journal.is_poisoned(), "{ops:?}, {kind:?}: nothing of the log was touched");
        assert_eq!(journal.newest_segment(), 1, "{ops:?}, {kind:?}: no segment was begun");
        vfs.clear_faults();
        append(&mut journal, last + 1).expect("there is room again");
        journal.sync().expect("synced");
        assert_eq!(journal.newest_segment(), 2, "{ops:?}, {kind:?}: now it was");
        drop(journal);
        vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
        let (_, records) = reopen(&vfs).expect("whole");
        assert_eq!(check_records(&records, "reopened"), last + 1, "{ops:?}, {kind:?}");
    }
}

#[test]
fn a_sync_beside_the_writer_promises_what_it_synced_and_its_failure_ends_the_journal() {
    let vfs = MemVfs::new(1);
    let (mut journal, _) = open(&vfs, options(1 << 20)).expect("a new journal");
    append(&mut journal, 1).expect("appended");
    let pending = journal.start_sync().expect("written").expect("something to sync");
    append(&mut journal, 2).expect("appended beside it");
    journal.write_out().expect("written");
    pending.run().expect("synced");
    append(&mut journal, 3).expect("appended: its record says that 1 was synced");
    journal.write_out().expect("written");
    vfs.kill();
    let (_, recovery) = open(&vfs, options(1 << 20)).expect("whole");
    assert_eq!(recovery.copied_records(), 2, "1 was promised, 2 and 3 were not");
    let (mut journal, _) = open(&vfs, options(1 << 20)).expect("whole");
    append(&mut journal, 4).expect("appended");
    let pending = journal.start_sync().expect("written").expect("something to sync");
    vfs.add_fault(Fault {
        ops: OpSet::SYNCS,
        when: FaultWhen::Always,
        kind: FaultKind::Io,
        path_contains: String::new(),
    });
    assert!(matches!(pending.run(), Err(Error::Io { op: "sync", .. })), "injected");
    vfs.clear_faults();
    assert!(matches!(pending.run(), Err(Error::Poisoned { .. })), "never tried again");
    assert!(matches!(append(&mut journal, 5), Err(Error::Poisoned { .. })), "nothing after it");
}

#[test]
fn space_is_filled_ahead_of_syncs_and_only_of_syncs() {
    let vfs = MemVfs::new(1);
    let (mut journal, _) = open(&vfs, options(4 << 20)).expect("a new journal");
    append(&mut journal, 1).expect("appended");
    journal.write_out().expect("written");
    let filled = |vfs: &MemVfs| vfs.calls();
    let before = filled(&vfs);
    append(&mut journal, 2).expect("appended");
    journal.write_out().expect("written");
    assert_eq!(filled(&vfs) - before, 1, "a log that is not synced is written once");
    journal.sync().expect("synced");
    let before = filled(&vfs);
    for n in 3..1003 {
        append(&mut journal, n).expect("appended");
        journal.sync().expect("synced");
    }
    // 180 bytes a record: not even one filling more.
    assert!(filled(&vfs) - before <= 2001, "a write and a sync each: {}", filled(&vfs) - before);
    drop(journal);
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    let (_, records) = reopen(&vfs).expect("whole");
    assert_eq!(check_records(&records, "reopened"), 1002, "zeros are no records");
}
