//! A manifest that is cut off exactly between two edits, and old copies of files put back: each is intact,
//! but not of now. The store gives the right answer or an error; where only the caller can know better, an
//! expected position tells.

#[path = "common/commit.rs"]
mod commit;

use std::collections::BTreeMap;
use std::ops::Bound::Unbounded;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsm_store::vfs::{MemVfs, Vfs};
use lsm_store::{
    Error, Executor, Keep, KeyRange, Mode, Op, Options, PartitionId, PartitionOptions, Position,
    Result, SequenceNumber, Store,
};

use crate::commit::commit;

const DATA: PartitionId = PartitionId(0);
const KEYS: u64 = 40;
const LAST: u64 = 300;

fn options(mode: Mode, expected: u64) -> Options {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
    Options {
        mode,
        wal_segment_bytes: 4096,
        memtable_bytes: 2000,
        block_bytes: 150,
        index_partition_bytes: 64,
        table_bytes: 1500,
        base_level_bytes: 3000,
        level_ratio: 3,
        l0_trigger: 2,
        cache_bytes: 0,
        expect_position_at_least: expected,
        ..Options::new(3, partitions)
    }
}

fn open(vfs: &MemVfs, mode: Mode, expected: u64) -> Result<Store> {
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    Store::open(vfs, Path::new("/db"), options(mode, expected), Executor::Inline)
}

fn key(n: u64) -> Vec<u8> {
    format!("key/{:03}", n * 7 % KEYS).into_bytes()
}

fn write(store: &Store, mode: Mode, n: u64) {
    let (key, value) = (key(n), [n.to_le_bytes(); 3].concat());
    let op = if n.is_multiple_of(9) {
        Op::Delete { key: &key }
    } else {
        Op::Put { key: &key, value: &value }
    };
    commit(store, mode, Position { index: n, term: 1, extra: vec![] }, &[(DATA, op)]);
}

/// The newest write of each key at a number.
fn rows(at: u64) -> BTreeMap<Vec<u8>, u64> {
    let mut rows = BTreeMap::new();
    for n in 1..=at {
        if n.is_multiple_of(9) {
            rows.remove(&key(n));
        } else {
            rows.insert(key(n), n);
        }
    }
    rows
}

/// Every kind of edit: flushes, merges and moves, floors, damage, a replaced range; then closed.
fn history(mode: Mode, vfs: &MemVfs, each: &mut dyn FnMut(u64)) {
    let store = open(vfs, mode, 0).expect("opens");
    for n in 1..=LAST {
        write(&store, mode, n);
        if n % 60 == 0 {
            store.flush().expect("flushes");
        }
        if n % 70 == 0 {
            store.set_floor(DATA, SequenceNumber(n - 30)).expect("raises");
        }
        if n == 150 || n == 250 {
            store.flush().expect("flushes");
            let range = KeyRange { partition: DATA, start: key(3), end: Some(key(5)) };
            let dir = format!("/export{n}");
            let export =
                store.export_range(&range, SequenceNumber(n), Path::new(&dir)).expect("exports");
            let mut incoming = store.receive(export.description()).expect("begins");
            for wanted in incoming.wanted() {
                let mut bytes = vec![0; usize::try_from(wanted.len).expect("small")];
                export.read(wanted.uid, 0, &mut bytes).expect("reads");
                incoming.write(wanted.uid, 0, &bytes).expect("takes");
            }
            let staged = incoming.finish().expect("complete");
            store.excise_and_ingest(&staged).expect("replaced");
            staged.remove().expect("removed");
        }
        each(n);
    }
    store.flush().expect("flushes");
    let metrics = store.metrics();
    assert!(metrics.compactions > 2 && metrics.flushes > 5, "{metrics:?}");
    store.close().expect("closes");
    each(LAST + 1);
}

/// Whether everything that can be read is what it is at the store's number; an error is not wrong.
fn check(store: &Store, context: &str) -> Result<()> {
    let at = store.last_sequence(DATA).0;
    let mut failure = None;
    for past in [store.floor(DATA).0, store.floor(DATA).0.midpoint(at), at] {
        if past > at {
            continue;
        }
        let expected = rows(past);
        let view = store.view_at(DATA, SequenceNumber(past))?;
        for n in 1..=KEYS {
            match view.get(DATA, &key(n)) {
                Ok(found) => {
                    let found = found.map(|f| f.sequence.0);
                    assert_eq!(found, expected.get(&key(n)).copied(), "{context}: at {past}");
                }
                Err(e) => failure = Some(e),
            }
        }
        let mut iter = view.iter(DATA, Unbounded, Unbounded)?;
        let mut found = BTreeMap::new();
        loop {
            match iter.next() {
                Ok(true) => {
                    found.insert(iter.key().to_vec(), iter.sequence().0);
                }
                Ok(false) => {
                    assert_eq!(found, expected, "{context}: all rows at {past}");
                    break;
                }
                Err(e) => {
                    failure = Some(e);
                    break;
                }
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

fn manifest(vfs: &MemVfs) -> PathBuf {
    let named = |p: &PathBuf| p.starts_with("/db") && p.to_string_lossy().contains("MANIFEST");
    vfs.files().into_iter().find(named).expect("there is one")
}

/// Ends of the records behind the snapshot.
fn boundaries(content: &[u8]) -> Vec<usize> {
    let mut at = 256;
    let mut ends = Vec::new();
    let mut complete = false;
    while at + 32 <= content.len() {
        let len = u32::from_le_bytes(content[at..at + 4].try_into().expect("4 bytes")) as usize;
        complete |= content[at + 4] == 17;
        at += (32 + len).next_multiple_of(8);
        if complete {
            ends.push(at);
        }
    }
    ends
}

#[test]
fn a_manifest_cut_between_two_edits_is_refused_or_tells_its_position_or_changes_nothing() {
    for mode in [Mode::External, Mode::Wal] {
        let good = MemVfs::new(1);
        history(mode, &good, &mut |_| {});
        let manifest = manifest(&good);
        let content = good.content(&manifest).expect("there");
        let ends = boundaries(&content);
        assert!(ends.len() > 30, "{mode:?}: {} records", ends.len());
        let (mut refused, mut behind, mut same) = (0, 0, 0);
        for end in ends {
            let context = format!("{mode:?}: cut to {end} of {}", content.len());
            let vfs = good.fork();
            vfs.replace(&manifest, &content[..end]).expect("replaces");
            let before = vfs.files();
            match open(&vfs.fork(), mode, 0) {
                Err(_) => refused += 1,
                Ok(store) => {
                    let at = store.last_sequence(DATA).0;
                    // Whatever it holds is a state that was, and reads of it are right or errors.
                    let read = check(&store, &context);
                    if mode == Mode::Wal {
                        assert!(read.is_err() || at == LAST, "{context}: the log knows, but {at}");
                    }
                    behind += usize::from(at < LAST);
                    same += usize::from(at == LAST);
                }
            }
            // A caller that knows where it was is not told anything else.
            match open(&vfs, mode, LAST) {
                Err(error) => {
                    let named = matches!(&error, Error::Corruption { .. });
                    assert!(named, "{context}: {error}");
                    assert_eq!(vfs.files(), before, "{context}: a refused open removes nothing");
                }
                Ok(store) => assert_eq!(store.last_sequence(DATA).0, LAST, "{context}"),
            }
        }
        assert!(refused > 3 && same > 0, "{mode:?}: {refused} refused, {same} as before");
        assert_eq!(behind > 0, mode == Mode::External, "{mode:?}: {behind} behind");
    }
}

#[test]
fn a_store_that_is_gone_or_empty_is_not_taken_for_a_new_one_by_who_expects_more() {
    let vfs = MemVfs::new(1);
    let error = open(&vfs, Mode::External, 1).expect_err("nothing is there");
    assert!(
        matches!(&error, Error::Corruption { detail, .. } if detail.contains("position 0")),
        "{error}"
    );
    open(&vfs, Mode::External, 0).expect("a new store").close().expect("closes");
    let error = open(&vfs, Mode::External, 1).expect_err("nothing is in it");
    assert!(matches!(error, Error::Corruption { .. }), "{error}");
}

#[test]
fn old_copies_of_files_give_the_right_answer_or_an_error() {
    for mode in [Mode::External, Mode::Wal] {
        let vfs = MemVfs::new(1);
        let mut then: Vec<Vec<(PathBuf, Vec<u8>)>> = Vec::new();
        let world = vfs.clone();
        history(mode, &vfs, &mut |n| {
            if n % 37 == 0 {
                let files = world.files().into_iter().filter(|p| p.starts_with("/db"));
                let copy = |p: PathBuf| (p.clone(), world.content(&p).expect("there"));
                then.push(files.map(copy).collect());
            }
        });
        let now = vfs.files();
        // What the newest segment lacks cannot be known from anything else.
        let newest = now.iter().filter(|p| p.extension().is_some_and(|e| e == "wal")).max();
        let (mut refused, mut right) = (0, 0);
        for (path, content) in then.into_iter().flatten() {
            if path.ends_with("LOCK") || Some(&path) == newest {
                continue;
            }
            let context = format!("{mode:?}: {} of before", path.display());
            let world = vfs.fork();
            if now.contains(&path) {
                if world.content(&path).expect("there") == content {
                    continue;
                }
                world.replace(&path, &content).expect("replaces");
            } else {
                let dir = path.parent().expect("has one");
                world.create_dir_all(dir).expect("creates");
                let file = world.create_new(&path).expect("creates");
                file.write_all_at(&content, 0).expect("writes");
            }
            match open(&world, mode, LAST) {
                Err(_) => refused += 1,
                Ok(store) => {
                    assert_eq!(store.last_sequence(DATA).0, LAST, "{context}");
                    if check(&store, &context).is_ok() {
                        right += 1;
                    }
                }
            }
        }
        assert!(right > 5, "{mode:?}: {right} right, {refused} refused");
    }
}
