//! What the simulated disk promises to the tests that stand on it.

use std::io;
use std::path::Path;

use super::{CrashPolicy, DataLoss, Fault, FaultKind, FaultWhen, MemVfs, NameLoss, OpSet};
use crate::vfs::{Vfs, create_dir_durable};

fn path(text: &str) -> &Path {
    Path::new(text)
}

fn durable_file(vfs: &MemVfs, name: &str, content: &[u8]) {
    let file = vfs.create_new(path(name)).expect("created");
    file.write_all_at(content, 0).expect("written");
    file.sync_all().expect("synced");
    vfs.sync_dir(path("/")).expect("synced");
}

#[test]
fn only_what_was_synced_survives_the_harshest_crash() {
    let vfs = MemVfs::new(1);
    durable_file(&vfs, "/a", b"synced");
    let file = vfs.open_rw(path("/a")).expect("open");
    file.write_all_at(b" and not", 6).expect("written");
    let unnamed = vfs.create_new(path("/b")).expect("created");
    unnamed.write_all_at(b"x", 0).expect("written");
    unnamed.sync_all().expect("synced");
    assert_eq!(vfs.content(path("/a")).expect("there"), b"synced and not", "before the crash");
    assert!(!vfs.is_durable(path("/a")).expect("there"), "unsynced bytes");
    assert!(!vfs.is_durable(path("/b")).expect("there"), "unsynced name");

    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 7);
    assert_eq!(vfs.content(path("/a")).expect("there"), b"synced", "after the crash");
    assert_eq!(vfs.files(), [path("/a")], "a name without a directory sync is gone");
    assert!(file.write_all_at(b"?", 0).is_err(), "handles from before are dead");
}

#[test]
fn a_killed_process_leaves_its_unsynced_bytes_with_the_kernel() {
    let vfs = MemVfs::new(1);
    durable_file(&vfs, "/a", b"one");
    vfs.open_rw(path("/a")).expect("open").write_all_at(b"two", 0).expect("written");
    let _guard = vfs.lock(path("/LOCK"), b"").expect("free");
    vfs.kill();
    assert_eq!(vfs.content(path("/a")).expect("there"), b"two", "still readable");
    let _again = vfs.lock(path("/LOCK"), b"").expect("free after the kill");
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    assert_eq!(vfs.content(path("/a")).expect("there"), b"one", "but not durable");
}

#[test]
fn bytes_after_a_failed_sync_read_back_and_are_lost_even_if_a_later_sync_succeeds() {
    let vfs = MemVfs::new(1);
    durable_file(&vfs, "/a", b"old");
    let file = vfs.open_rw(path("/a")).expect("open");
    file.write_all_at(b"new", 0).expect("written");
    let fault = Fault {
        ops: OpSet::SYNCS,
        when: FaultWhen::Always,
        kind: FaultKind::Io,
        path_contains: "a".into(),
    };
    vfs.add_fault(fault);
    assert!(file.sync_data().is_err(), "injected");
    vfs.clear_faults();
    file.sync_data().expect("the second sync lies");
    assert_eq!(vfs.content(path("/a")).expect("there"), b"new", "in memory");
    vfs.crash(CrashPolicy::KEEP_ALL, 1);
    assert_eq!(vfs.content(path("/a")).expect("there"), b"old", "on disk");
}

#[test]
fn a_rename_never_loses_the_file_and_lasts_after_both_directories_are_synced() {
    for seed in 0..64 {
        for synced in 0..4 {
            let vfs = MemVfs::new(seed);
            create_dir_durable(&vfs, path("/x")).expect("created");
            create_dir_durable(&vfs, path("/y")).expect("created");
            let file = vfs.create_new(path("/x/a")).expect("created");
            file.sync_all().expect("synced");
            vfs.sync_dir(path("/x")).expect("synced");
            vfs.rename(path("/x/a"), path("/y/a")).expect("renamed");
            if synced & 1 != 0 {
                vfs.sync_dir(path("/x")).expect("synced");
            }
            if synced & 2 != 0 {
                vfs.sync_dir(path("/y")).expect("synced");
            }
            vfs.crash(CrashPolicy { data: DataLoss::LoseAll, names: NameLoss::Random }, seed);
            let files = vfs.files();
            assert!(!files.is_empty(), "seed {seed}: the file is nowhere");
            assert!(
                synced != 3 || files == [path("/y/a")],
                "seed {seed}: both were synced, found {files:?}"
            );
            assert!(
                synced & 2 == 0 || files.contains(&path("/y/a").into()),
                "seed {seed}: the new name was synced"
            );
        }
    }
}

#[test]
fn every_policy_keeps_synced_bytes_and_invents_none_but_zeros_and_garbage() {
    for seed in 0..200 {
        for policy in CrashPolicy::ALL {
            let vfs = MemVfs::new(seed);
            let old: Vec<u8> = (0..9000_u32).map(|i| if i % 2 == 0 { 1 } else { 2 }).collect();
            durable_file(&vfs, "/a", &old);
            let file = vfs.open_rw(path("/a")).expect("open");
            file.write_all_at(&[3; 5000], 9000).expect("written");
            vfs.crash(policy, seed);
            let now = vfs.content(path("/a")).expect("there");
            assert!(now.starts_with(&old), "seed {seed}, {policy:?}: synced bytes were harmed");
            assert!(now.len() <= 14_000, "seed {seed}, {policy:?}: {} bytes", now.len());
            let foreign = now[9000..].iter().filter(|byte| **byte != 3 && **byte != 0).count();
            assert!(
                policy.data == DataLoss::Garbage || foreign == 0,
                "seed {seed}, {policy:?}: invented bytes"
            );
            assert!(foreign <= 512, "seed {seed}, {policy:?}: garbage beyond a sector");
        }
    }
}

#[test]
fn the_machine_stops_at_the_numbered_call_and_its_effect_depends_on_the_crash() {
    let run = |stop: u64| {
        let vfs = MemVfs::new(3);
        vfs.crash_at(stop);
        let work = || -> io::Result<()> {
            let file = vfs.create_new(path("/a"))?;
            file.write_all_at(b"abc", 0)?;
            file.sync_data()?;
            vfs.sync_dir(path("/"))?;
            Ok(())
        };
        (work().is_ok(), vfs)
    };
    let (finished, vfs) = run(99);
    assert!(finished && !vfs.has_stopped(), "four calls are made");
    assert_eq!(vfs.mutating_calls(), 4, "create, write, sync, sync of the directory");
    for stop in 0..4 {
        let (finished, vfs) = run(stop);
        assert!(!finished && vfs.has_stopped(), "stopped at {stop}");
        assert!(vfs.open_read(path("/a")).is_err(), "nothing works after the stop");
        let kept = vfs.fork();
        kept.crash(CrashPolicy::KEEP_ALL, 0);
        vfs.crash(CrashPolicy::LOSE_UNSYNCED, 0);
        assert_eq!(vfs.files().len(), 0, "stop {stop}: the name was never synced");
        assert_eq!(kept.files().len(), 1, "stop {stop}: the name may last");
        let expected: &[u8] = if stop == 0 { b"" } else { b"abc" };
        assert_eq!(kept.content(path("/a")).expect("there"), expected, "stop {stop}");
    }
}

#[test]
fn a_fork_shares_nothing_that_changes() {
    let vfs = MemVfs::new(1);
    durable_file(&vfs, "/a", b"one");
    let fork = vfs.fork();
    vfs.open_rw(path("/a")).expect("open").write_all_at(b"two", 0).expect("written");
    fork.flip(path("/a"), 0, 1).expect("flipped");
    assert_eq!(vfs.content(path("/a")).expect("there"), b"two");
    assert_eq!(fork.content(path("/a")).expect("there"), b"nne");
}

#[test]
fn reserved_space_reads_as_zero_and_a_shortened_file_too_when_it_grows_again() {
    let vfs = MemVfs::new(1);
    let file = vfs.create_new(path("/a")).expect("created");
    file.allocate(64 << 20).expect("reserved");
    assert_eq!(file.len().expect("length"), 64 << 20);
    file.write_all_at(&[9; 100], 10).expect("written");
    file.set_len(20).expect("shortened");
    file.set_len(200).expect("grown");
    let content = vfs.content(path("/a")).expect("there");
    assert_eq!(&content[10..20], &[9; 10], "kept");
    assert_eq!(&content[20..], &[0; 180], "cut");
}

#[test]
fn an_unlinked_file_stays_readable_while_open() {
    let vfs = MemVfs::new(1);
    durable_file(&vfs, "/a", b"one");
    let file = vfs.open_read(path("/a")).expect("open");
    vfs.unlink(path("/a")).expect("removed");
    vfs.sync_dir(path("/")).expect("synced");
    let mut buf = [0; 3];
    file.read_exact_at(&mut buf, 0).expect("still there");
    assert_eq!(&buf, b"one");
    assert_eq!(vfs.open_read(path("/a")).expect_err("gone").kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_full_device_takes_the_part_that_fits_and_has_room_again_when_files_go() {
    let vfs = MemVfs::new(1);
    durable_file(&vfs, "/a", &[1; 600]);
    vfs.set_capacity(Some(1000));
    assert_eq!(vfs.free_space(path("/")).expect("asked"), 400, "what is left");
    let file = vfs.create_new(path("/b")).expect("created");
    let error = file.write_all_at(&[2; 500], 0).expect_err("full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(vfs.content(path("/b")).expect("there").len(), 400, "the part that fits");
    file.write_all_at(&[3; 400], 0).expect("what is there can be written over");
    assert_eq!(
        file.allocate(500).expect_err("full").kind(),
        io::ErrorKind::StorageFull,
        "reserving takes room, too"
    );
    vfs.unlink(path("/a")).expect("removed");
    vfs.sync_dir(path("/")).expect("synced");
    assert_eq!(vfs.free_space(path("/")).expect("asked"), 600, "room of the removed file");
    file.allocate(1000).expect("fits");
    vfs.set_capacity(None);
    file.write_all_at(&[4; 5000], 0).expect("no limit");
}

#[test]
fn a_second_name_lasts_with_its_directory_and_shares_what_the_file_has() {
    let vfs = MemVfs::new(1);
    durable_file(&vfs, "/a", b"one");
    vfs.link(path("/a"), path("/b")).expect("linked");
    vfs.unlink(path("/a")).expect("removed");
    let either = CrashPolicy { data: DataLoss::LoseAll, names: NameLoss::Random };
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let world = vfs.fork();
        world.crash(either, seed);
        for name in world.files() {
            assert_eq!(world.content(&name).expect("there"), b"one", "the file behind {name:?}");
        }
        seen.insert(world.files().len());
    }
    assert_eq!(seen, [0, 1, 2].into(), "both changes of names last or not on their own");
    vfs.sync_dir(path("/")).expect("synced");
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    assert_eq!(vfs.files(), [path("/b")], "both changes are durable");
    let crossing = Fault {
        ops: OpSet::LINKS,
        when: FaultWhen::Always,
        kind: FaultKind::CrossesDevices,
        path_contains: String::new(),
    };
    vfs.add_fault(crossing);
    let error = vfs.link(path("/b"), path("/c")).expect_err("refused");
    assert_eq!(error.kind(), io::ErrorKind::CrossesDevices);
    vfs.rename(path("/b"), path("/c")).expect("only links are refused");
}
