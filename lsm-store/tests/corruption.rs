//! Damage to any file of a closed store: the right answer, or an error that names the damaged file and an
//! offset in it; never wrong data, never silent loss, never a panic.
//!
//! Every bit is flipped, files are cut at every length, blocks, records and whole files change places, old
//! copies come back, stretches are zero, garbage follows: of more lengths with `LSM_STORE_EXHAUSTIVE=1`.

mod common;
#[path = "common/parts.rs"]
mod parts;

use std::ops::Range;
use std::path::{Path, PathBuf};

use common::{Acked, BATCHES, compare, exhaustive, open, run};
use lsm_store::vfs::{MemVfs, Vfs};
use lsm_store::{Durability, Error, Mode};
use parts::Part;

/// How a damaged store was found out.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Everything was right, and `verify` had nothing to say either.
    Whole,
    /// Everything was right when read, but `verify` noticed.
    ByVerify,
    /// Opening or reading returned an error.
    ByUse,
    /// The store is exactly as it was at an older durable position.
    Older,
}

/// A closed store with tables on several levels, and in `Wal` mode a log with batches that are in no table.
fn sample(mode: Mode) -> MemVfs {
    let vfs = MemVfs::new(1);
    run(&vfs, mode, 52, &mut |_| {}).expect("no fault");
    if mode == Mode::Wal {
        let store = open(&vfs, mode).expect("whole");
        for number in 53..=BATCHES {
            common::write(&store, mode, number, Durability::Sync).expect("written");
        }
        store.close().expect("closed");
    } else {
        run(&vfs, mode, BATCHES, &mut |_| {}).expect("no fault");
    }
    vfs
}

/// Opens the store, reads everything, verifies. Wrong data panics in `compare`; `blamed` are the files that
/// an error may name. A manifest that lost its last edits whole is an older manifest, which nothing in it
/// can tell: without a log the store is then exactly at an older position, and the caller's log goes on from
/// there; with a log of its own the batches between are missing there, and that is noticed.
#[expect(clippy::wildcard_enum_match_arm, reason = "any other error is one too many")]
fn examine(vfs: &MemVfs, mode: Mode, blamed: &[&Path], context: &str) -> Found {
    let manifest = blamed.iter().any(|path| is_manifest(path));
    let may_blame = |file: &Path| blamed.contains(&file) || (manifest && is_log(file));
    let judge = |error: Error| match &error {
        Error::Corruption { file, offset, .. } => {
            assert!(may_blame(file), "{context}: blames {}: {error}", file.display());
            let len = vfs.content(file).map_or(0, |content| content.len() as u64);
            assert!(
                *offset <= len.max(256),
                "{context}: offset {offset} is not in the file of {len} bytes"
            );
        }
        Error::UnknownVersion { file, .. } | Error::WrongStore { file, .. } => {
            assert!(may_blame(file), "{context}: blames {}: {error}", file.display());
        }
        // A name that is gone is told by the operating system.
        Error::Io { path, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            assert!(path.starts_with("/db"), "{context}: {error}");
        }
        _ => unreachable!("{context}: {error}"),
    };
    let store = match open(vfs, mode) {
        Ok(store) => store,
        Err(error) => {
            judge(error);
            return Found::ByUse;
        }
    };
    let batches = store.visible_position().index;
    let older = manifest && mode == Mode::External && batches < BATCHES;
    assert!(batches == BATCHES || older, "{context}: only {batches} batches are left, silently");
    if let Err(error) = compare(&store, batches, context) {
        judge(error);
        return Found::ByUse;
    }
    match store.verify() {
        Ok(_) if older => Found::Older,
        Ok(_) => Found::Whole,
        Err(error) => {
            judge(error);
            Found::ByVerify
        }
    }
}

/// Files with content, and how much of each was ever written.
fn files(vfs: &MemVfs) -> Vec<(PathBuf, usize)> {
    vfs.files()
        .into_iter()
        .filter(|path| !path.ends_with("LOCK"))
        .map(|path| {
            let content = vfs.content(&path).expect("there");
            let used = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            (path, used)
        })
        .filter(|(_, used)| *used > 0)
        .collect()
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wal")
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "sst")
}

fn is_manifest(path: &Path) -> bool {
    path.to_string_lossy().contains("MANIFEST")
}

fn flip_everywhere(mode: Mode) {
    let sample = sample(mode);
    let (mut noticed, mut verified, mut whole) = (0, 0, 0);
    for (path, used) in files(&sample) {
        for offset in 0..used {
            for bit in 0..8 {
                let vfs = sample.fork();
                vfs.flip(&path, offset as u64, 1 << bit).expect("flipped");
                let context =
                    format!("{mode:?}, {}, byte {offset} of {used}, bit {bit}", path.display());
                match examine(&vfs, mode, &[&path], &context) {
                    Found::ByUse => noticed += 1,
                    Found::ByVerify => verified += 1,
                    Found::Older => unreachable!("{context}: a bit is not an edit"),
                    Found::Whole => {
                        // What nothing depends on: one of two copies of a header, the note at the log's end,
                        // what lies behind a seal.
                        assert!(is_log(&path) || is_manifest(&path), "{context}: unnoticed");
                        whole += 1;
                    }
                }
            }
        }
    }
    assert!(
        noticed > 3500,
        "{mode:?}: {noticed} noticed when used, {verified} by verify, {whole} harmless"
    );
}

#[test]
fn a_flipped_bit_anywhere_in_a_store_with_its_own_log_is_noticed_or_harmless() {
    flip_everywhere(Mode::Wal);
}

#[test]
fn a_flipped_bit_anywhere_in_a_store_without_a_log_is_noticed_or_harmless() {
    flip_everywhere(Mode::External);
}

#[test]
fn a_file_cut_anywhere_is_noticed() {
    for mode in [Mode::Wal, Mode::External] {
        let sample = sample(mode);
        for (path, _) in files(&sample) {
            let content = sample.content(&path).expect("there");
            for len in 0..content.len() {
                let vfs = sample.fork();
                vfs.replace(&path, &content[..len]).expect("cut");
                let context =
                    format!("{mode:?}, {} cut to {len} of {}", path.display(), content.len());
                let found = examine(&vfs, mode, &[&path], &context);
                // The note at the end of a log protects; nothing is lost with it alone.
                let harmless = is_manifest(&path) || (is_log(&path) && len >= 4096);
                assert!(found == Found::ByUse || harmless, "{context}: {found:?}");
            }
        }
    }
}

#[test]
fn garbage_behind_the_end_of_a_file_is_noticed_or_harmless() {
    for mode in [Mode::Wal, Mode::External] {
        let sample = sample(mode);
        for (path, _) in files(&sample) {
            let longest = if exhaustive() { 700 } else { 9 };
            let short = (1..longest).flat_map(|len| [vec![0x5a; len], vec![0; len]]);
            for garbage in short.chain([vec![0xff; 700], vec![0; 64], vec![0; 5000]]) {
                let vfs = sample.fork();
                let mut content = vfs.content(&path).expect("there");
                content.extend_from_slice(&garbage);
                vfs.replace(&path, &content).expect("longer");
                examine(
                    &vfs,
                    mode,
                    &[&path],
                    &format!("{mode:?}, garbage behind {}", path.display()),
                );
            }
        }
    }
}

#[test]
fn a_lost_zeroed_swapped_or_foreign_file_is_noticed() {
    for mode in [Mode::Wal, Mode::External] {
        let sample = sample(mode);
        let all = files(&sample);
        for (path, used) in &all {
            let vfs = sample.fork();
            vfs.unlink(path).expect("removed");
            let context = format!("{mode:?}, {} lost", path.display());
            let wal = Path::new("/db/wal");
            assert_eq!(examine(&vfs, mode, &[path, wal], &context), Found::ByUse, "{context}");
            for start in (0..*used).step_by(512) {
                let vfs = sample.fork();
                let mut content = vfs.content(path).expect("there");
                let end = (start + 512).min(content.len());
                if content[start..end].iter().all(|byte| *byte == 0) {
                    continue;
                }
                content[start..end].fill(0);
                vfs.replace(path, &content).expect("zeroed");
                let context = format!("{mode:?}, {} zeroed from {start} to {end}", path.display());
                let found = examine(&vfs, mode, &[path], &context);
                assert!(
                    found == Found::ByUse || is_log(path) || is_manifest(path),
                    "{context}: {found:?}"
                );
            }
        }
        for (one, _) in &all {
            for (two, _) in
                all.iter().filter(|(two, _)| two > one && two.extension() == one.extension())
            {
                let vfs = sample.fork();
                let [first, second] = [one, two].map(|path| vfs.content(path).expect("there"));
                vfs.replace(one, &second).expect("swapped");
                vfs.replace(two, &first).expect("swapped");
                let context = format!("{mode:?}, {} and {} swapped", one.display(), two.display());
                assert_eq!(examine(&vfs, mode, &[one, two], &context), Found::ByUse, "{context}");
            }
        }
    }
}

#[test]
fn an_undamaged_store_passes_the_examination_that_damaged_ones_fail() {
    for mode in [Mode::Wal, Mode::External] {
        let vfs = sample(mode);
        assert_eq!(examine(&vfs.fork(), mode, &[], "undamaged"), Found::Whole, "{mode:?}");
        let kinds: Vec<String> =
            files(&vfs).iter().map(|(path, used)| format!("{} {used}", path.display())).collect();
        let tables = kinds.iter().filter(|name| name.contains(".sst")).count();
        let logs = kinds.iter().filter(|name| name.contains(".wal")).count();
        assert!(tables >= 2 && (logs > 0) == (mode == Mode::Wal), "{kinds:?}");
        let store = open(&vfs, mode).expect("whole");
        common::check(&store, mode, Acked { batches: BATCHES, floor: 0 }, "undamaged")
            .expect("whole");
    }
}

/// Where the blocks and records of a file are, trailers and headers included.
fn stretches(path: &Path, content: &[u8]) -> Vec<Range<usize>> {
    let stretch = |part: &Part| match *part {
        Part::Block { offset, len } => Some(offset..offset + len + parts::TRAILER),
        Part::Record { offset, len } => {
            Some(offset..offset + parts::RECORD_HEADER + parts::record_body(len))
        }
        Part::Footer | Part::Header => None,
    };
    parts::parts(path, content).iter().filter_map(stretch).collect()
}

/// Whole blocks and records at places that are not theirs: each is intact by itself.
#[test]
fn intact_blocks_and_records_at_another_place_are_noticed() {
    for mode in [Mode::Wal, Mode::External] {
        let sample = sample(mode);
        let (mut swapped, mut doubled) = (0, 0);
        for (path, _) in files(&sample) {
            let content = sample.content(&path).expect("there");
            let stretches = stretches(&path, &content);
            for (nth, one) in stretches.iter().enumerate() {
                for two in &stretches[nth + 1..] {
                    if content[one.clone()] == content[two.clone()] {
                        continue;
                    }
                    let context = format!("{mode:?}, {} {one:?} and {two:?}", path.display());
                    // Exchanged. In a log nothing between may move: that would take all proof of what was
                    // synced, and an end without any proof is one that a crash leaves.
                    if one.len() != two.len() && !is_table(&path) {
                        continue;
                    }
                    let mut exchanged = content[..one.start].to_vec();
                    exchanged.extend_from_slice(&content[two.clone()]);
                    exchanged.extend_from_slice(&content[one.end..two.start]);
                    exchanged.extend_from_slice(&content[one.clone()]);
                    exchanged.extend_from_slice(&content[two.end..]);
                    let vfs = sample.fork();
                    vfs.replace(&path, &exchanged).expect("exchanged");
                    let found = examine(&vfs, mode, &[&path], &format!("{context} exchanged"));
                    // The two notes at a log's end say the same of the same bytes. Of a table that newer ones
                    // hide, some blocks are read by nobody but a verification.
                    assert!(found != Found::Whole || !is_table(&path), "{context}: {found:?}");
                    swapped += 1;
                    // One in the place of the other.
                    if one.len() <= two.len() {
                        let mut copied = content.clone();
                        copied.copy_within(one.clone(), two.start);
                        let vfs = sample.fork();
                        vfs.replace(&path, &copied).expect("copied");
                        let found = examine(&vfs, mode, &[&path], &format!("{context} doubled"));
                        assert!(found != Found::Whole || !is_table(&path), "{context}: {found:?}");
                        doubled += 1;
                    }
                }
            }
        }
        assert!(swapped > 50 && doubled > 30, "{mode:?}: {swapped} exchanged, {doubled} doubled");
    }
}

/// An old copy of a file, as a careless restore leaves it: the file as it was whenever something was
/// acknowledged.
#[test]
fn an_old_copy_of_a_file_is_noticed_or_harmless() {
    for mode in [Mode::Wal, Mode::External] {
        let vfs = MemVfs::new(1);
        let mut old: Vec<(u64, PathBuf, Vec<u8>)> = Vec::new();
        run(&vfs, mode, BATCHES, &mut |acked| {
            let all = vfs.files().into_iter().filter(|path| !path.ends_with("LOCK"));
            let batches = acked.batches;
            old.extend(
                all.map(|path| (batches, path.clone(), vfs.content(&path).expect("listed"))),
            );
        })
        .expect("no fault");
        let mut tried = 0;
        for (to, path, content) in &old {
            // What is gone, or has not changed, cannot be put back.
            if vfs.content(path).is_ok_and(|now| now != *content) {
                let damaged = vfs.fork();
                damaged.replace(path, content).expect("there");
                let context = format!("{mode:?}, {} as after batch {to}", path.display());
                let found = examine(&damaged, mode, &[path], &context);
                assert!(found == Found::ByUse || !is_table(path), "{context}: {found:?}");
                tried += 1;
            }
        }
        assert!(tried > 0, "{mode:?}: nothing to put back");
    }
}

#[test]
fn a_zeroed_page_is_noticed_or_harmless() {
    const PAGE: usize = 4096;
    for mode in [Mode::Wal, Mode::External] {
        let sample = sample(mode);
        for (path, used) in files(&sample) {
            for start in (0..used).step_by(PAGE) {
                let vfs = sample.fork();
                let mut content = vfs.content(&path).expect("there");
                let end = (start + PAGE).min(content.len());
                content[start..end].fill(0);
                vfs.replace(&path, &content).expect("zeroed");
                let context = format!("{mode:?}, {} zeroed from {start} to {end}", path.display());
                let found = examine(&vfs, mode, &[&path], &context);
                // The second of the notes at a log's end is alone in its page.
                assert!(found == Found::ByUse || is_log(&path), "{context}: {found:?}");
            }
        }
    }
}
