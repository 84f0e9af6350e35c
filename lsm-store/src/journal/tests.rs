//! The journal against a disk that crashes, fails and is damaged.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::kind;
use super::{Journal, JournalOptions, Record, RecordAddress, Recovery};
use crate::error::{Error, Result};
use crate::rng::SplitMix64;
use crate::vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, MemVfs, OpSet, Vfs};

const ENTRY: u8 = kind::APPLICATION;
const STORE: u128 = 0xfeed_beef;

pub(super) fn dir() -> &'static Path {
    Path::new("/log")
}

fn segment_path(number: u64) -> PathBuf {
    dir().join(super::segment::file_name(number))
}

pub(super) fn options(segment_bytes: u64) -> JournalOptions {
    JournalOptions { segment_bytes, preallocate: true, ..JournalOptions::new(STORE, 99) }
}

pub(super) fn open(vfs: &MemVfs, options: JournalOptions) -> Result<(Journal, Recovery)> {
    Journal::open(Arc::new(vfs.clone()), dir(), options)
}

/// Opens and reads everything.
pub(super) fn reopen(vfs: &MemVfs) -> Result<(Journal, Vec<(RecordAddress, Record)>)> {
    let (journal, recovery) = open(vfs, options(4096))?;
    Ok((journal, recovery.collect::<Result<Vec<_>>>()?))
}

/// The payload of the record with this sequence number: its length and bytes depend on nothing else.
fn payload(sequence: u64) -> Vec<u8> {
    let mut rng = SplitMix64::new(sequence);
    let len = match rng.below(8) {
        0 => 0,
        1 => 700 + rng.below(900),
        _ => 1 + rng.below(200),
    };
    (0..len).map(|_| rng.next_u64().to_le_bytes()[0]).collect()
}

pub(super) fn append(journal: &mut Journal, sequence: u64) -> Result<RecordAddress> {
    let payload = payload(sequence);
    let (first, second) = payload.split_at(payload.len() / 3);
    journal.append(ENTRY, sequence, &[first, second], &mut |head| {
        head.extend_from_slice(&(sequence - 1).to_le_bytes());
    })
}

/// Checks that the entries are 1, 2, 3, … with their payloads, that each head says what came before
/// it, and returns the last entry's number.
pub(super) fn check_records(records: &[(RecordAddress, Record)], context: &str) -> u64 {
    let mut last = 0_u64;
    let mut before = RecordAddress { segment: 0, offset: 0 };
    for (address, record) in records {
        assert!(*address > before, "{context}: {address:?} after {before:?}");
        before = *address;
        if record.kind == kind::HEAD {
            assert_eq!(record.payload[..], last.to_le_bytes(), "{context}: head at {address:?}");
            continue;
        }
        assert_eq!(record.kind, ENTRY, "{context}: kind at {address:?}");
        assert_eq!(record.sequence, last + 1, "{context}: a hole or a repetition at {address:?}");
        assert_eq!(
            record.payload,
            payload(record.sequence),
            "{context}: payload of {}",
            record.sequence
        );
        last = record.sequence;
    }
    last
}

/// Appends until `to`, syncing after every third record; returns the last synced one through `acked`
/// even if it fails.
fn work(vfs: &MemVfs, to: u64, acked: &mut u64) -> Result<()> {
    let (mut journal, records) = reopen(vfs)?;
    let mut last = check_records(&records, "at the start of the work");
    assert!(last >= *acked, "synced records are gone: {last} of {acked}");
    *acked = last;
    while last < to {
        append(&mut journal, last + 1)?;
        last += 1;
        if last.is_multiple_of(3) {
            journal.sync()?;
            *acked = last;
            if last.is_multiple_of(5) {
                journal.note_durable()?;
            }
        }
    }
    journal.close()?;
    *acked = last;
    Ok(())
}

#[test]
fn records_come_back_in_order_over_many_segments_and_by_address() {
    let vfs = MemVfs::new(1);
    let (mut journal, recovery) = open(&vfs, options(4096)).expect("a new journal");
    assert_eq!(recovery.segments(), 0, "nothing there");
    let addresses: Vec<_> = (1..=100).map(|n| append(&mut journal, n).expect("appended")).collect();
    journal.sync().expect("synced");
    assert!(journal.newest_segment() > 3, "several segments");
    let reader = journal.reader();
    for (address, sequence) in addresses.iter().zip(1..) {
        let record = reader.read(*address).expect("readable");
        assert_eq!((record.sequence, &record.payload[..]), (sequence, &payload(sequence)[..]));
    }
    journal.close().expect("closed");
    let (journal, records) = reopen(&vfs).expect("whole");
    assert_eq!(check_records(&records, "reopened"), 100);
    for (address, record) in &records {
        assert_eq!(journal.reader().read(*address).expect("readable"), *record, "at {address:?}");
    }
}

#[test]
fn a_reader_refuses_what_is_not_written_yet_and_what_was_removed() {
    let vfs = MemVfs::new(1);
    let (mut journal, _) = open(&vfs, options(4096)).expect("a new journal");
    let first = append(&mut journal, 1).expect("appended");
    let reader = journal.reader();
    assert!(matches!(reader.read(first), Err(Error::InvalidArgument(_))), "only in the buffer");
    journal.sync().expect("synced");
    assert!(reader.read(first).is_ok(), "now it is there");
    for n in 2..60 {
        append(&mut journal, n).expect("appended");
    }
    journal.sync().expect("synced");
    let newest = journal.newest_segment();
    assert_eq!(
        journal.remove_segments_below(u64::MAX).expect("removed"),
        newest - 1,
        "all but the newest"
    );
    assert!(matches!(reader.read(first), Err(Error::InvalidArgument(_))), "removed");
    drop(journal);
    let (_, records) = reopen(&vfs).expect("the rest is a journal of its own");
    assert_eq!(records[0].1.kind, kind::HEAD, "it begins with a head");
    assert!(records[0].0.segment >= newest, "the one that was kept, or a copy of it");
}

#[test]
fn sizes_and_kinds_are_checked_and_a_refusal_changes_nothing() {
    let vfs = MemVfs::new(1);
    let limits = JournalOptions { max_record_bytes: 100, ..options(4096) };
    let (mut journal, _) = open(&vfs, limits).expect("a new journal");
    let big = journal.append(ENTRY, 1, &[&[0; 60], &[0; 41]], &mut |_| {});
    assert!(matches!(big, Err(Error::TooLarge { size: 101, limit: 100, .. })), "{big:?}");
    assert!(matches!(
        journal.append(kind::HEAD, 1, &[], &mut |_| {}),
        Err(Error::InvalidArgument(_))
    ));
    assert!(matches!(journal.append(0, 1, &[], &mut |_| {}), Err(Error::InvalidArgument(_))));
    journal.append(ENTRY, 1, &[&[0; 100]], &mut |_| {}).expect("still usable");
    assert!(
        open(&vfs, JournalOptions { segment_bytes: 100, ..options(4096) }).is_err(),
        "tiny segments"
    );
}

#[test]
fn a_new_segment_never_replaces_a_file_that_is_there() {
    let vfs = MemVfs::new(1);
    let (mut journal, _) = open(&vfs, options(4096)).expect("a new journal");
    vfs.create_new(&segment_path(1))
        .expect("somebody else's")
        .write_all_at(b"precious", 0)
        .expect("written");
    assert!(matches!(append(&mut journal, 1), Err(Error::Corruption { .. })), "the name is taken");
    assert_eq!(vfs.content(&segment_path(1)).expect("there"), b"precious");
}

#[test]
fn a_batch_costs_one_write_and_one_sync() {
    let vfs = MemVfs::new(1);
    let (mut journal, _) = open(&vfs, options(1 << 20)).expect("a new journal");
    append(&mut journal, 1).expect("appended");
    journal.sync().expect("synced");
    let before = vfs.calls();
    for n in 2..200 {
        append(&mut journal, n).expect("appended");
    }
    assert_eq!(vfs.calls(), before, "appending only fills the buffer");
    journal.sync().expect("synced");
    assert_eq!(vfs.calls(), before + 2, "one write, one sync");
    journal.sync().expect("nothing to do");
    assert_eq!(vfs.calls(), before + 2, "nothing new, nothing done");
}

#[test]
fn a_clean_close_leaves_nothing_to_copy_or_cut() {
    let vfs = MemVfs::new(1);
    work(&vfs, 40, &mut 0).expect("done");
    let (_, recovery) = open(&vfs, options(4096)).expect("whole");
    assert_eq!((recovery.torn_tail(), recovery.copied_records()), (None, 0));
}

#[test]
fn a_journal_whose_process_was_killed_recovers_what_was_written_and_makes_it_durable() {
    let vfs = MemVfs::new(1);
    let (mut journal, _) = open(&vfs, options(4096)).expect("a new journal");
    for n in 1..=10 {
        append(&mut journal, n).expect("appended");
    }
    journal.sync().expect("synced");
    vfs.kill();
    let (journal, recovery) = open(&vfs, options(4096)).expect("whole");
    assert!(recovery.copied_records() > 0, "the last batch was not promised to be synced");
    assert_eq!(
        check_records(&recovery.map(|r| r.expect("whole")).collect::<Vec<_>>(), "killed"),
        10
    );
    drop(journal);
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    let (_, recovery) = open(&vfs, options(4096)).expect("whole");
    assert_eq!(
        recovery.copied_records(),
        0,
        "the copies are durable, there is nothing to do again"
    );
    assert_eq!(
        check_records(&recovery.map(|r| r.expect("whole")).collect::<Vec<_>>(), "crashed"),
        10
    );
}

#[test]
fn records_behind_a_failed_sync_survive_a_later_crash_once_recovery_returned_them() {
    let vfs = MemVfs::new(1);
    let (mut journal, _) = open(&vfs, options(4096)).expect("a new journal");
    append(&mut journal, 1).expect("appended");
    journal.sync().expect("synced");
    append(&mut journal, 2).expect("appended");
    vfs.add_fault(Fault {
        ops: OpSet::SYNCS,
        when: FaultWhen::Always,
        kind: FaultKind::Io,
        path_contains: String::new(),
    });
    assert!(matches!(journal.sync(), Err(Error::Io { op: "sync", .. })), "injected");
    vfs.clear_faults();
    assert!(matches!(journal.sync(), Err(Error::Poisoned { .. })), "never tried again");
    assert!(matches!(append(&mut journal, 3), Err(Error::Poisoned { .. })), "nothing after it");
    // The process starts again; the kernel still shows record 2, though it is not on disk.
    vfs.kill();
    let (_, records) = reopen(&vfs).expect("whole");
    assert_eq!(check_records(&records, "killed"), 2, "it reads back, so it is replayed");
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    let (_, records) = reopen(&vfs).expect("whole");
    assert_eq!(check_records(&records, "crashed"), 2, "what was replayed once stays");
}

#[test]
fn a_crash_at_every_call_leaves_a_prefix_with_everything_synced_and_recovery_may_crash_too() {
    let calls = {
        let vfs = MemVfs::new(1);
        work(&vfs, 60, &mut 0).expect("done");
        vfs.mutating_calls()
    };
    assert!(calls > 60, "{calls} places to crash at");
    for stop in 0..calls {
        for (index, policy) in CrashPolicy::ALL.into_iter().enumerate() {
            let seed = stop * 8 + index as u64;
            let context = format!("crash at call {stop}, {policy:?}, seed {seed}");
            let vfs = MemVfs::new(seed);
            vfs.crash_at(stop);
            let mut acked = 0;
            assert!(work(&vfs, 60, &mut acked).is_err(), "{context}: it must stop");
            vfs.crash(policy, seed);
            // Depth 2: recovery and the work after it crash at one of their first calls.
            vfs.crash_at(vfs.mutating_calls() + seed % 13);
            if work(&vfs, 60, &mut acked).is_err() {
                assert!(
                    vfs.has_stopped(),
                    "{context}: refused though only unsynced bytes were harmed"
                );
                vfs.crash(policy, seed + 1);
                work(&vfs, 60, &mut acked)
                    .unwrap_or_else(|error| unreachable_error(&context, &error));
            }
            vfs.crash_at(u64::MAX);
            let (_, records) =
                reopen(&vfs).unwrap_or_else(|error| unreachable_error(&context, &error));
            assert_eq!(check_records(&records, &context), 60, "{context}");
        }
    }
}

fn unreachable_error(context: &str, error: &Error) -> ! {
    panic!("{context}: {error}")
}

/// A journal with a sealed segment, and a last one with promised and unpromised records.
fn damaged_sample() -> (MemVfs, u64) {
    let vfs = MemVfs::new(1);
    let (mut journal, _) = open(&vfs, options(8192)).expect("a new journal");
    let mut in_the_second = 0;
    let mut last = 0;
    while in_the_second < 15 {
        last += 1;
        let address = append(&mut journal, last).expect("appended");
        assert!(address.segment <= 2, "a sealed segment and one that is written");
        in_the_second += u64::from(address.segment == 2);
        if last.is_multiple_of(4) {
            journal.sync().expect("synced");
        }
    }
    journal.sync().expect("synced");
    vfs.kill();
    (vfs, last)
}

/// The last record that a later one promises to be synced.
fn last_promised(vfs: &MemVfs) -> u64 {
    let newest = vfs.files().last().cloned().expect("a segment");
    let bytes = vfs.content(&newest).expect("there");
    let header =
        super::segment::SegmentHeader::decode(&newest, &bytes, STORE, newest_number(&newest))
            .expect("whole");
    let file = vfs.open_read(&newest).expect("there");
    let len = bytes.len() as u64;
    let tail =
        super::scan::settle_tail(&file, &newest, header.epoch, 256, header.published_end, len)
            .expect("whole");
    tail.promised
}

fn newest_number(path: &Path) -> u64 {
    path.file_name()
        .and_then(|name| super::segment::parse_file_name(&name.to_string_lossy()))
        .expect("a segment's name")
}

#[test]
fn a_flipped_bit_below_a_promise_is_refused_by_file_and_offset_and_above_it_is_a_torn_tail() {
    let (vfs, last) = damaged_sample();
    let promised = last_promised(&vfs);
    let newest = vfs.files().last().cloned().expect("a segment");
    let end = vfs.content(&newest).expect("there").iter().rposition(|b| *b != 0).expect("written")
        as u64
        + 1;
    let (mut refused, mut cut, mut harmless) = (0, 0, 0);
    for path in vfs.files() {
        let used =
            if path == newest { end } else { vfs.content(&path).expect("there").len() as u64 };
        for offset in 0..used {
            let vfs = vfs.fork();
            vfs.flip(&path, offset, 1 << (offset % 8)).expect("flipped");
            let context = format!("{} at {offset}", path.display());
            match reopen(&vfs) {
                Ok((_, records)) => {
                    let found = check_records(&records, &context);
                    if found < last {
                        cut += 1;
                        assert!(
                            path == newest && offset >= promised,
                            "{context}: synced records were dropped"
                        );
                    } else {
                        harmless += 1;
                    }
                }
                Err(Error::Corruption { file, offset: at, .. }) => {
                    refused += 1;
                    assert_eq!(file, path, "{context}: the wrong file is blamed");
                    assert!(
                        at <= offset && offset - at < 2048,
                        "{context}: {at} is not where the damage is"
                    );
                    assert!(
                        path != newest || offset < promised,
                        "{context}: a torn tail was refused"
                    );
                }
                Err(error) => unreachable_error(&context, &error),
            }
        }
    }
    assert!(
        refused > 4000 && cut > 50 && harmless >= 512,
        "{refused} refused, {cut} cut, {harmless} harmless"
    );
}

#[test]
fn a_segment_cut_short_anywhere_is_refused_by_name() {
    let (vfs, last) = damaged_sample();
    for path in vfs.files() {
        let content = vfs.content(&path).expect("there");
        for len in (0..content.len()).step_by(7) {
            let vfs = vfs.fork();
            vfs.replace(&path, &content[..len]).expect("cut");
            match reopen(&vfs) {
                Err(Error::Corruption { file, .. }) => {
                    assert_eq!(file, path, "cut to {len}: the wrong file")
                }
                Err(error) => {
                    unreachable_error(&format!("{} cut to {len}", path.display()), &error)
                }
                // Behind the end of a sealed segment there is nothing.
                Ok((_, records)) => {
                    assert_eq!(check_records(&records, "cut"), last, "cut to {len}");
                    assert!(
                        path == segment_path(1) && len > 3000,
                        "{} cut to {len}",
                        path.display()
                    );
                }
            }
        }
    }
}

#[test]
fn restarts_do_not_leave_reserved_space_behind() {
    let vfs = MemVfs::new(1);
    for n in 1..=20 {
        let (mut journal, recovery) = open(&vfs, options(1 << 20)).expect("whole");
        assert_eq!(
            recovery.map(|r| r.expect("whole")).filter(|(_, r)| r.kind == ENTRY).count() as u64,
            n - 1
        );
        append(&mut journal, n).expect("appended");
        journal.sync().expect("synced");
        vfs.kill();
    }
    let sizes: Vec<u64> =
        vfs.files().iter().map(|path| vfs.content(path).expect("there").len() as u64).collect();
    assert!(sizes.len() >= 20, "{} segments", sizes.len());
    assert!(
        sizes.iter().sum::<u64>() < (1 << 20) + 100_000,
        "only the newest has reserved space: {sizes:?}"
    );
}

#[test]
fn a_page_lost_after_a_clean_end_is_refused_even_if_it_held_the_last_records() {
    let vfs = MemVfs::new(1);
    let (mut journal, _) = open(&vfs, options(64 << 10)).expect("a new journal");
    for n in 1..=40 {
        append(&mut journal, n).expect("appended");
    }
    journal.close().expect("closed");
    for path in vfs.files() {
        let content = vfs.content(&path).expect("there");
        for start in (0..content.len()).step_by(4096) {
            let mut damaged = content.clone();
            let end = (start + 4096).min(content.len());
            damaged[start..end].fill(0);
            let vfs = vfs.fork();
            vfs.replace(&path, &damaged).expect("zeroed");
            match reopen(&vfs) {
                Ok((_, records)) => {
                    // The page of the note itself, or one that was only reserved.
                    assert!(start > 0, "the header is gone");
                    assert_eq!(
                        check_records(&records, "a page is lost"),
                        40,
                        "{} from {start}",
                        path.display()
                    );
                }
                Err(Error::Corruption { file, .. }) => assert_eq!(file, path),
                Err(error) => unreachable_error("a page is lost", &error),
            }
        }
    }
}

#[test]
fn a_missing_swapped_or_foreign_segment_is_refused() {
    let (vfs, _) = damaged_sample();
    let gap = vfs.fork();
    let (mut journal, _) = reopen(&gap).expect("whole");
    for n in 100..200 {
        append(&mut journal, n).expect("appended");
    }
    journal.sync().expect("synced");
    assert!(journal.newest_segment() >= 4, "enough segments");
    drop(journal);
    gap.unlink(&segment_path(2)).expect("removed");
    match reopen(&gap) {
        Err(Error::Corruption { file, .. }) => assert_eq!(file, segment_path(2)),
        other => assert!(other.is_err(), "a gap"),
    }
    let newest = vfs.fork();
    newest.unlink(&segment_path(2)).expect("removed");
    match reopen(&newest) {
        Err(Error::Corruption { file, .. }) => {
            assert_eq!(file, segment_path(2), "the newest, of which a seal tells")
        }
        other => assert!(other.is_err(), "the newest segment is gone"),
    }
    let swapped = vfs.fork();
    let [one, two] = [1, 2].map(|n| swapped.content(&segment_path(n)).expect("there"));
    swapped.replace(&segment_path(1), &two).expect("swapped");
    swapped.replace(&segment_path(2), &one).expect("swapped");
    assert!(matches!(reopen(&swapped), Err(Error::Corruption { offset: 32, .. })), "swapped");
    let foreign = open(&vfs, JournalOptions { store_id: 1, ..options(4096) });
    assert!(matches!(foreign, Err(Error::WrongStore { found: STORE, .. })), "another store's");
    let needed = open(&vfs.fork(), JournalOptions { oldest_needed: 9, ..options(4096) });
    assert!(matches!(needed, Err(Error::Corruption { .. })), "a segment that must be there is not");
    let fewer = vfs.fork();
    let (_, recovery) =
        open(&fewer, JournalOptions { oldest_needed: 2, ..options(4096) }).expect("whole");
    let (first, _) = recovery.into_iter().next().expect("a record").expect("whole");
    assert_eq!(first.segment, 2, "older segments are not replayed");
    assert!(!fewer.files().contains(&segment_path(1)), "and removed");
}

#[test]
fn another_copy_of_a_sealed_segment_is_refused_though_every_record_in_it_is_whole() {
    // Two histories from one beginning: their first segments have the same epoch and the same length.
    let [one, other] = [b'a', b'b'].map(|byte| {
        let vfs = MemVfs::new(1);
        let (mut journal, _) = open(&vfs, options(4096)).expect("a new journal");
        for n in 1..20 {
            journal.append(ENTRY, n, &[&[byte; 500]], &mut |_| {}).expect("appended");
        }
        journal.close().expect("closed");
        vfs
    });
    assert!(reopen_unchecked(&one).is_ok(), "whole");
    let copy = other.content(&segment_path(1)).expect("there");
    one.replace(&segment_path(1), &copy).expect("replaced");
    match reopen_unchecked(&one) {
        Err(Error::Corruption { file, .. }) => assert_eq!(file, segment_path(1)),
        other => unreachable!("accepted: {other:?}"),
    }
}

fn reopen_unchecked(vfs: &MemVfs) -> Result<usize> {
    let (_, recovery) = open(vfs, options(4096))?;
    Ok(recovery.collect::<Result<Vec<_>>>()?.len())
}

#[test]
fn records_of_another_place_or_an_earlier_life_of_the_file_are_not_replayed() {
    let (vfs, last) = damaged_sample();
    let newest = vfs.files().last().cloned().expect("a segment");
    let content = vfs.content(&newest).expect("there");
    let end = content.iter().rposition(|b| *b != 0).expect("written").next_multiple_of(8);
    // A copy of the whole used part behind the end: every record intact, at another offset.
    let mut doubled = content.clone();
    let copy = content[256..end].to_vec();
    let room = (doubled.len() - end).min(copy.len());
    doubled[end..end + room].copy_from_slice(&copy[..room]);
    vfs.replace(&newest, &doubled).expect("replaced");
    let (_, recovery) = open(&vfs, options(4096)).expect("a torn tail at most");
    assert!(recovery.torn_tail().is_some(), "the copies are no records");
    assert_eq!(
        check_records(&recovery.map(|r| r.expect("whole")).collect::<Vec<_>>(), "doubled"),
        last
    );
}

#[test]
fn an_input_output_error_is_never_taken_for_the_end_of_the_log() {
    let (vfs, last) = damaged_sample();
    let calls = {
        let vfs = vfs.fork();
        let before = vfs.calls();
        reopen(&vfs).expect("whole");
        (before, vfs.calls())
    };
    let mut refused = 0;
    for call in calls.0..calls.1 {
        let vfs = vfs.fork();
        vfs.add_fault(Fault::at_call(call, FaultKind::Io));
        match reopen(&vfs) {
            Ok((_, records)) => {
                assert_eq!(check_records(&records, &format!("fault at {call}")), last)
            }
            Err(Error::Io { .. }) => refused += 1,
            Err(error) => unreachable_error(&format!("fault at {call}"), &error),
        }
        vfs.clear_faults();
        vfs.kill();
        let (_, records) = reopen(&vfs).expect("the fault is gone");
        assert_eq!(check_records(&records, &format!("after a fault at {call}")), last);
    }
    assert!(refused > 10, "{refused} calls refused");
}

#[test]
fn an_error_at_any_call_ends_the_journal_and_loses_nothing_that_was_synced() {
    let calls = {
        let vfs = MemVfs::new(1);
        work(&vfs, 60, &mut 0).expect("done");
        vfs.calls()
    };
    for call in 0..calls {
        for kind in [FaultKind::Io, FaultKind::NoSpace] {
            let context = format!("{kind:?} at call {call}");
            let vfs = MemVfs::new(call);
            vfs.add_fault(Fault::at_call(call, kind));
            let mut acked = 0;
            assert!(work(&vfs, 60, &mut acked).is_err(), "{context}: not noticed");
            assert_eq!(vfs.faults_fired(), 1, "{context}");
            for crash in [false, true] {
                let vfs = vfs.fork();
                if crash {
                    vfs.crash(CrashPolicy::LOSE_UNSYNCED, call);
                }
                let mut acked = acked;
                work(&vfs, 60, &mut acked)
                    .unwrap_or_else(|error| unreachable_error(&context, &error));
            }
        }
    }
}

#[test]
fn removing_segments_can_crash_at_every_call_and_leaves_no_gap() {
    let prepared = || {
        let vfs = MemVfs::new(1);
        work(&vfs, 120, &mut 0).expect("done");
        vfs
    };
    let calls = {
        let vfs = prepared();
        let (mut journal, _) = reopen(&vfs).expect("whole");
        let before = vfs.mutating_calls();
        journal.remove_segments_below(3).expect("removed");
        (before, vfs.mutating_calls())
    };
    assert_eq!(calls.1 - calls.0, 4, "two segments, each removed and made durable");
    for stop in calls.0..calls.1 {
        for (seed, policy) in (0..).zip(CrashPolicy::ALL) {
            let vfs = prepared();
            let (mut journal, _) = reopen(&vfs).expect("whole");
            vfs.crash_at(stop);
            assert!(journal.remove_segments_below(3).is_err(), "stopped");
            vfs.crash(policy, seed);
            let (_, recovery) = open(&vfs, options(4096)).expect("no gap");
            let records: Vec<_> = recovery.map(|r| r.expect("whole")).collect();
            assert_eq!(records.last().expect("some").1.sequence, 120, "{policy:?} at {stop}");
        }
    }
}

#[test]
fn a_segment_of_copies_is_kept_with_the_head_before_it() {
    let (vfs, last) = damaged_sample();
    let (mut journal, records) = reopen(&vfs).expect("whole");
    let copies = records.last().expect("some").0.segment;
    let mut n = last;
    while journal.newest_segment() < copies + 2 {
        n += 1;
        append(&mut journal, n).expect("appended");
    }
    journal.sync().expect("synced");
    journal.remove_segments_below(copies).expect("removed");
    assert_eq!(journal.oldest_segment(), copies - 1, "the copies need the head before them");
    journal.remove_segments_below(copies + 1).expect("removed");
    assert_eq!(journal.oldest_segment(), copies + 1, "the next one has its own head");
}

#[test]
fn the_bytes_of_a_segment_are_these() {
    let vfs = MemVfs::new(1);
    let options = JournalOptions { preallocate: false, ..options(4096) };
    let (mut journal, _) = open(&vfs, options).expect("a new journal");
    journal
        .append(ENTRY, 7, &[b"first"], &mut |head| head.extend_from_slice(b"head"))
        .expect("appended");
    journal.sync().expect("synced");
    journal.append(ENTRY + 1, 8, &[b"sec", b"ond"], &mut |_| {}).expect("appended");
    journal.sync().expect("synced");
    journal.note_durable().expect("noted");
    let bytes = vfs.content(&segment_path(1)).expect("there");
    let hex: Vec<String> = bytes
        .chunks(32)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    let golden: Vec<&str> =
        include_str!("../../tests/golden/journal-segment-v1.hex").lines().collect();
    assert_eq!(hex, golden, "the format changed: that needs a new version");
}
