//! Segments that are written before the one before is synced, with a helper and without.

use std::path::Path;
use std::sync::Arc;

use super::record::kind;
use super::tests::{append, check_records, dir, open, options, reopen};
use super::{Journal, JournalOptions};
use crate::error::{Error, Result};
use crate::vfs::{CrashPolicy, MemVfs, RealVfs, Vfs};

fn segment(number: u64) -> std::path::PathBuf {
    dir().join(super::segment::file_name(number))
}

/// Appends 1 to `to`, handed to the operating system one by one and never synced by the writer.
fn buffered(vfs: &MemVfs, to: u64) -> Result<()> {
    let (mut journal, _) = open(vfs, options(4096))?;
    for n in 1..=to {
        append(&mut journal, n)?;
        journal.write_out()?;
    }
    Ok(())
}

#[test]
fn a_torn_segment_ends_the_log_though_a_newer_one_was_written() {
    let calls = {
        let vfs = MemVfs::new(1);
        buffered(&vfs, 80).expect("written");
        vfs.mutating_calls()
    };
    let mut torn_before_the_newest = 0;
    for stop in 0..calls {
        for (seed, policy) in (0..).zip(CrashPolicy::ALL) {
            let context = format!("{policy:?} at {stop}");
            let vfs = MemVfs::new(stop);
            vfs.crash_at(stop);
            assert!(buffered(&vfs, 80).is_err(), "{context}: stopped");
            vfs.crash(policy, seed);
            let newest = vfs.files().iter().filter(|path| path.parent() == Some(dir())).count();
            let (journal, recovery) =
                open(&vfs, options(4096)).unwrap_or_else(|error| panic!("{context}: {error}"));
            let torn = recovery.torn_tail().map_or(u64::MAX, |torn| torn.segment);
            torn_before_the_newest += u64::from(torn < newest as u64);
            let records = recovery.collect::<Result<Vec<_>>>().expect(&context);
            let last = check_records(&records, &context);
            drop(journal);
            vfs.crash(CrashPolicy::LOSE_UNSYNCED, seed);
            let (mut journal, records) = reopen(&vfs).expect(&context);
            assert_eq!(check_records(&records, &context), last, "{context}: what was read stays");
            append(&mut journal, last + 1).expect("appended");
            journal.close().expect("closed");
            let (_, records) = reopen(&vfs).expect(&context);
            assert_eq!(check_records(&records, &context), last + 1, "{context}: and goes on");
        }
    }
    assert!(torn_before_the_newest > 3, "{torn_before_the_newest} times");
}

#[test]
fn damage_below_the_end_of_a_segment_is_refused_once_a_newer_one_promises_anything() {
    let vfs = MemVfs::new(1);
    let (mut journal, _) = open(&vfs, options(4096)).expect("a new journal");
    let mut last = 0;
    while journal.newest_segment() < 2 {
        last += 1;
        append(&mut journal, last).expect("appended");
    }
    journal.sync().expect("synced");
    append(&mut journal, last + 1).expect("appended: it promises what is before");
    journal.write_out().expect("written");
    drop(journal);
    let whole = vfs.content(&segment(1)).expect("there");
    let (_, records) = reopen(&vfs.fork()).expect("whole");
    assert_eq!(check_records(&records, "unharmed"), last + 1);
    for offset in (256..whole.len()).step_by(64) {
        let mut damaged = whole.clone();
        damaged[offset] ^= 1;
        let vfs = vfs.fork();
        vfs.replace(&segment(1), &damaged).expect("replaced");
        match reopen(&vfs) {
            Err(Error::Corruption { file, .. }) => assert_eq!(file, segment(1), "at {offset}"),
            Err(error) => panic!("at {offset}: {error}"),
            Ok((_, records)) => {
                assert_eq!(check_records(&records, "harmless"), last + 1, "at {offset}");
                assert!(offset > 3000, "{offset} is behind the end");
            }
        }
    }
}

#[test]
fn the_log_does_not_go_on_behind_another_copy_of_the_segment_that_a_joint_is_for() {
    // Two histories from one beginning: their first segments have the same epoch and the same length. The first
    // records of the second segment promise nothing, so nothing but the joint's checksum tells.
    let [one, other] = [b'a', b'b'].map(|byte| {
        let vfs = MemVfs::new(1);
        let (mut journal, _) = open(&vfs, options(4096)).expect("a new journal");
        let mut n = 0;
        while journal.newest_segment() < 2 {
            n += 1;
            journal.append(kind::APPLICATION, n, &[&[byte; 500]], &mut |_| {}).expect("appended");
        }
        journal.write_out().expect("written");
        vfs
    });
    let entries = |vfs: &MemVfs| {
        let (_, records) = reopen(vfs).expect("nothing that was promised is gone");
        let entries = records.into_iter().filter(|(_, record)| record.kind == kind::APPLICATION);
        entries.map(|(_, record)| record.payload[0]).collect::<Vec<u8>>()
    };
    let whole = entries(&one.fork()).len();
    let copy = other.content(&segment(1)).expect("there");
    one.replace(&segment(1), &copy).expect("replaced");
    assert_eq!(entries(&one), vec![b'b'; whole - 1], "all of the copy and nothing behind it");
}

#[test]
fn the_first_bytes_of_a_prepared_segment_are_these() {
    let vfs = MemVfs::new(1);
    buffered(&vfs, 40).expect("written");
    let first = vfs.content(&segment(1)).expect("there");
    let second = vfs.content(&segment(2)).expect("there");
    assert_eq!(second[48..56], 1_u64.to_le_bytes(), "the predecessor");
    assert_eq!(second[56..80], [0; 24], "which had not ended");
    assert_eq!(second[80..88], 256_u64.to_le_bytes(), "only the header was synced");
    assert_eq!(second[96..100], [2, 0, 0, 0], "prepared");
    assert_eq!(second[256..262], [16, 0, 0, 0, kind::JOINT, 0], "a joint of 16 bytes");
    assert_eq!(second[272..280], [0; 8], "it promises nothing");
    let end = u64::from_le_bytes(second[288..296].try_into().expect("8 bytes"));
    let end = usize::try_from(end).expect("small");
    assert_eq!(first[end + 4], kind::SEAL, "the end of the first, where its seal is");
    assert_eq!(second[308], kind::HEAD, "then the head");
}

#[test]
fn with_a_helper_nothing_is_lost_and_nothing_is_left() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let vfs: Arc<dyn Vfs> = Arc::new(RealVfs::new());
    let options = JournalOptions { helper: true, ..options(64 << 10) };
    let reopen =
        |options: &JournalOptions| Journal::open(Arc::clone(&vfs), dir.path(), options.clone());
    let (mut journal, _) = reopen(&options).expect("a new journal");
    for n in 1..=5000 {
        append(&mut journal, n).expect("appended");
        if n % 7 == 0 {
            journal.write_out().expect("written");
        }
        if n % 501 == 0 {
            journal.sync().expect("synced");
        }
    }
    let metrics = journal.metrics();
    assert!(metrics.segments > 8, "{metrics:?}");
    journal.close().expect("closed");
    let left = vfs.list(&dir.path().join("tmp")).expect("there");
    assert!(left.is_empty(), "what was prepared in vain is gone: {left:?}");
    let (mut journal, recovery) = reopen(&options).expect("whole");
    assert_eq!(recovery.copied_records(), 0, "all of it was promised");
    let records = recovery.collect::<Result<Vec<_>>>().expect("whole");
    assert_eq!(check_records(&records, "reopened"), 5000);
    append(&mut journal, 5001).expect("appended");
    let newest = journal.newest_segment();
    journal.remove_segments_below(newest).expect("removed");
    journal.close().expect("closed");
    let names = vfs.list(dir.path()).expect("there");
    assert_eq!(names.len(), 2, "one segment and tmp: {names:?}");
}

#[test]
fn a_small_log_takes_little_of_the_disk() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let vfs: Arc<dyn Vfs> = Arc::new(RealVfs::new());
    let size = |path: &Path| vfs.open_read(path).and_then(|file| file.len()).expect("there");
    let path = dir.path().join(super::segment::file_name(1));
    let large = options(64 << 20);
    let (mut journal, _) = Journal::open(Arc::clone(&vfs), dir.path(), large).expect("new");
    append(&mut journal, 1).expect("appended");
    journal.sync().expect("synced");
    assert_eq!(size(&path), 4 << 20, "one step is reserved");
    for n in 2..=600 {
        journal.append(kind::APPLICATION, n, &[&[7; 8000]], &mut |_| {}).expect("appended");
    }
    journal.sync().expect("synced");
    assert!(size(&path) > 8 << 20, "then more, ahead: {}", size(&path));
    let bytes = journal.bytes();
    journal.close().expect("closed");
    assert!(size(&path) <= bytes + 8192, "and given back: {} for {bytes}", size(&path));
}

#[test]
fn a_log_of_which_nothing_is_needed_is_closed_whatever_was_prepared_for_it() {
    let vfs = MemVfs::new(1);
    let options = JournalOptions { helper: true, ..options(64 << 10) };
    let (mut journal, _) = open(&vfs, options).expect("a new journal");
    let mut last = 0;
    // The helper prepares the next segment some time after it is due.
    while vfs.files().iter().all(|path| path.parent() != Some(&*dir().join("tmp"))) {
        last += 1;
        append(&mut journal, last).expect("appended");
        std::thread::yield_now();
        assert!(last < 1_000_000, "nothing is ever prepared");
    }
    journal.close_spent(last + 1, &mut |_| {}).expect("closed");
    let names = vfs.files();
    assert_eq!(names.len(), 1, "one segment: {names:?}");
    let (_, records) = reopen(&vfs).expect("whole");
    assert_eq!(records.len(), 1, "its head");
}
