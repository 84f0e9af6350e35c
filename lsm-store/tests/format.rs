//! The bytes on disk: what this build writes is exactly what `tests/fixtures/v1` holds, what is there can
//! be opened, and what a later version writes is refused by name.
//!
//! A change that makes these tests fail changes the format: it needs a new version number, a new
//! fixture, a word in `FORMAT.md`, and the old fixture must stay readable. `UPDATE_FIXTURES=1` writes
//! the files anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsm_store::checksum::{bound_hash, fold64};
use lsm_store::journal::record::kind;
use lsm_store::journal::{Journal, JournalOptions};
use lsm_store::vfs::{MemVfs, Vfs};
use lsm_store::{
    Durability, Error, Executor, Keep, Mode, Op, Options, PartitionId, PartitionOptions, Position,
    SequenceNumber, Store, WriteBatch,
};

const DATA: PartitionId = PartitionId(0);
const META: PartitionId = PartitionId(1);
const STORE_ID: u128 = 0x0123_4567_89ab_cdef_0011_2233_4455_6677;
const DIR: &str = "/db";

fn options() -> Options {
    let partition = |name: &str, keep| PartitionOptions { name: name.to_owned(), keep };
    let partitions = vec![partition("data", Keep::All), partition("meta", Keep::NewestOnly)];
    let mut options = Options::new(STORE_ID, partitions);
    options.block_bytes = 256;
    options.restart_interval = 4;
    options.index_partition_bytes = 96;
    options.l0_trigger = 2;
    options.uid_seed = 42;
    options
}

fn open(vfs: &Arc<MemVfs>) -> lsm_store::Result<Store> {
    let vfs: Arc<dyn Vfs> = Arc::<MemVfs>::clone(vfs);
    Store::open(vfs, Path::new(DIR), options(), Executor::Inline)
}

/// The same store every time: compressed tables in the last level, a run in level 0, several versions,
/// deletes, a key that is a prefix of another, an empty key, an empty value, a value above the block size.
fn written() -> Arc<MemVfs> {
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs).expect("opens");
    let long = [b'x'; 600];
    for n in 1..=60_u64 {
        let mut run = store
            .begin_run(Position { index: n, term: n / 16, extra: vec![0xEE] })
            .expect("begins");
        let key = format!("fruit/{:02}/name", n % 20).into_bytes();
        let value = format!("value {n} value {n} value {n}").into_bytes();
        let op = match n {
            7 | 33 => Op::Delete { key: &key },
            8 => Op::Put { key: b"", value: b"empty key" },
            9 => Op::Put { key: b"fruit/01", value: b"" },
            10 => Op::Put { key: b"long", value: &long },
            _ => Op::Put { key: &key, value: &value },
        };
        run.apply(DATA, SequenceNumber(n), &[op]).expect("applies");
        run.apply(META, SequenceNumber(n), &[Op::Put { key: b"applied", value: &n.to_le_bytes() }])
            .expect("applies");
        run.publish().expect("publishes");
        if n % 20 == 0 {
            store.flush().expect("flushes");
        }
        if n == 50 {
            store.set_floor(DATA, SequenceNumber(12)).expect("raises");
        }
    }
    let metrics = store.metrics();
    assert!(metrics.compactions > 0 && metrics.partitions[0].l0_runs == 1, "{metrics:?}");
    store.close().expect("closes");
    vfs
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
}

/// Name and content of everything but the lock, whose content is of the moment.
fn content(vfs: &MemVfs) -> Vec<(PathBuf, Vec<u8>)> {
    let files = vfs.files().into_iter().filter(|p| !p.ends_with("LOCK"));
    files
        .map(|path| {
            let bytes = vfs.content(&path).expect("there");
            (path.strip_prefix(DIR).expect("inside").to_path_buf(), bytes)
        })
        .collect()
}

fn fixture_vfs() -> Arc<MemVfs> {
    read_fixture(&fixtures(), &["sst"])
}

fn read_fixture(root: &Path, dirs: &[&str]) -> Arc<MemVfs> {
    let vfs = MemVfs::new(1);
    let mut names = vec![root.to_owned()];
    for dir in dirs {
        vfs.create_dir_all(&Path::new(DIR).join(dir)).expect("creates");
        names.push(root.join(dir));
    }
    while let Some(dir) = names.pop() {
        for entry in std::fs::read_dir(dir).expect("fixture is there") {
            let path = entry.expect("reads").path();
            if path.is_file() {
                let inside = path.strip_prefix(root).expect("inside");
                let file = vfs.create_new(&Path::new(DIR).join(inside)).expect("creates");
                file.write_all_at(&std::fs::read(&path).expect("reads"), 0).expect("writes");
            }
        }
    }
    Arc::new(vfs)
}

fn updating() -> bool {
    std::env::var_os("UPDATE_FIXTURES").is_some()
}

fn write_fixture(root: &Path, files: &[(PathBuf, Vec<u8>)]) {
    for (path, bytes) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("inside")).expect("creates");
        std::fs::write(path, bytes).expect("writes");
    }
}

#[test]
fn this_build_writes_exactly_the_bytes_of_version_1() {
    let written = content(&written());
    if updating() {
        write_fixture(&fixtures(), &written);
    }
    let fixture = content(&fixture_vfs());
    let names =
        |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&written), names(&fixture), "the same files");
    for ((path, ours), (_, theirs)) in written.iter().zip(&fixture) {
        let differs = ours.iter().zip(theirs).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{} differs at this byte", path.display());
        assert_eq!(ours.len(), theirs.len(), "length of {}", path.display());
    }
}

#[test]
fn a_store_of_version_1_opens_with_everything_in_it() {
    let store = open(&fixture_vfs()).expect("opens");
    assert_eq!(
        store.durable_position(),
        Position { index: 60, term: 3, extra: vec![0xEE] },
        "position"
    );
    assert_eq!(store.floor(DATA), SequenceNumber(12), "floor");
    store.verify().expect("sound");
    let get =
        |key: &[u8]| store.get(DATA, key).expect("reads").map(|f| (f.value.to_vec(), f.sequence.0));
    assert_eq!(get(b""), Some((b"empty key".to_vec(), 8)), "empty key");
    assert_eq!(get(b"fruit/01"), Some((vec![], 9)), "empty value");
    assert_eq!(get(b"long"), Some((vec![b'x'; 600], 10)), "long value");
    assert_eq!(get(b"fruit/13/name").map(|f| f.1), Some(53), "overwritten");
    let then = store.view_at(DATA, SequenceNumber(34)).expect("history");
    assert_eq!(then.get(DATA, b"fruit/13/name").expect("reads"), None, "deleted at 33");
    let meta = store.get(META, b"applied").expect("reads").expect("there");
    assert_eq!(meta.value, 60_u64.to_le_bytes().as_slice(), "the other partition");
}

/// Batches of the store with its own log: the first of them are in tables, the rest in the log alone.
const LOGGED: u64 = 30;

fn open_logged(vfs: &Arc<MemVfs>) -> lsm_store::Result<Store> {
    let vfs: Arc<dyn Vfs> = Arc::<MemVfs>::clone(vfs);
    let options = Options { mode: Mode::Wal, wal_segment_bytes: 4096, ..options() };
    Store::open(vfs, Path::new(DIR), options, Executor::Inline)
}

fn logged_row(n: u64) -> (Vec<u8>, Vec<u8>) {
    (format!("key/{:02}", n % 12).into_bytes(), vec![n.to_le_bytes()[0]; 150])
}

/// The fixture was written by the first version that had a log; how a log is cut into records and notes
/// may change, but not that this one is read.
#[test]
fn a_store_of_version_1_with_its_own_log_opens_with_everything_in_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1-log");
    if updating() {
        let vfs = Arc::new(MemVfs::new(1));
        let store = open_logged(&vfs).expect("opens");
        for n in 1..=LOGGED {
            let mut batch = WriteBatch::new();
            let (key, value) = logged_row(n);
            if n % 10 == 7 {
                batch.delete(DATA, &key).expect("fits");
            } else {
                batch.put(DATA, &key, &value).expect("fits");
            }
            batch.put(META, b"n", &n.to_le_bytes()).expect("fits");
            let durability = if n % 4 == 0 { Durability::Sync } else { Durability::Buffered };
            store.write(batch, durability).expect("writes");
            if n == LOGGED / 2 {
                store.flush().expect("flushes");
            }
        }
        // Not closed: the log ends as it was written.
        vfs.kill();
        write_fixture(&root, &content(&vfs));
    }
    let vfs = read_fixture(&root, &["sst", "wal"]);
    let store = open_logged(&vfs).expect("opens");
    assert_eq!(store.visible_position().index, LOGGED, "batches");
    assert_eq!(store.last_sequence(DATA), SequenceNumber(LOGGED), "numbers");
    let newest = |k: u64, at: u64| (1..=at).rev().find(|n| n % 12 == k);
    for at in [1, LOGGED / 2, LOGGED] {
        let view = store.view_at(DATA, SequenceNumber(at)).expect("history");
        for k in 0..12 {
            let expected = newest(k, at).filter(|n| n % 10 != 7).map(|n| (logged_row(n).1, n));
            let found = view.get(DATA, format!("key/{k:02}").as_bytes()).expect("reads");
            let found = found.map(|found| (found.value.to_vec(), found.sequence.0));
            assert_eq!(found, expected, "key {k} at {at}");
        }
    }
    let meta = store.get(META, b"n").expect("reads").expect("there");
    assert_eq!(meta.value, LOGGED.to_le_bytes().as_slice(), "the other partition");
    store.verify().expect("sound");
}

/// Sets the version of a table's footer or of a manifest's header, with the checksum that belongs to it.
fn with_version(path: &Path, bytes: &[u8], version: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if path.extension().is_some() {
        let footer = bytes.len() - 96;
        let uid = u128::from_le_bytes(bytes[footer..footer + 16].try_into().expect("16 bytes"));
        bytes[footer + 48..footer + 52].copy_from_slice(&version.to_le_bytes());
        let sum = bound_hash(&bytes[footer..footer + 80], fold64(uid), footer as u64);
        bytes[footer + 80..footer + 88].copy_from_slice(&sum.to_le_bytes());
    } else {
        for copy in [0, 128] {
            bytes[copy + 8..copy + 12].copy_from_slice(&version.to_le_bytes());
            let number =
                u64::from_le_bytes(bytes[copy + 32..copy + 40].try_into().expect("8 bytes"));
            let sum = bound_hash(&bytes[copy..copy + 120], fold64(STORE_ID), number);
            bytes[copy + 120..copy + 128].copy_from_slice(&sum.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn tables_and_manifests_of_the_next_version_are_refused_by_name() {
    let good = fixture_vfs();
    let versioned: Vec<PathBuf> = good
        .files()
        .into_iter()
        .filter(|p| {
            p.to_string_lossy().contains("MANIFEST") || p.extension().is_some_and(|e| e == "sst")
        })
        .collect();
    assert!(versioned.len() >= 3, "{versioned:?}");
    for path in &versioned {
        let bytes = good.content(path).expect("there");
        let vfs = Arc::new(good.fork());
        vfs.replace(path, &with_version(path, &bytes, 1)).expect("replaces");
        open(&vfs).expect("version 1, so the checksum above is right");
        let vfs = Arc::new(good.fork());
        vfs.replace(path, &with_version(path, &bytes, 2)).expect("replaces");
        let error = open(&vfs).expect_err("version 2");
        assert!(
            matches!(&error, Error::UnknownVersion { file, found: 2, supported: 1 } if file == path),
            "{error}"
        );
    }
}

/// A segment that was prepared before its predecessor ended: both copies of its header say so, and its first record,
/// the joint, tells where the other one ended and with which checksum.
#[test]
fn the_bytes_of_a_prepared_segment_of_the_log_are_these() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new(1));
    let dir = Path::new("/log");
    let options = JournalOptions {
        segment_bytes: 4096,
        preallocate: false,
        ..JournalOptions::new(STORE_ID, 99)
    };
    let (mut journal, recovery) = Journal::open(Arc::clone(&vfs), dir, options).expect("opens");
    assert_eq!(recovery.count(), 0, "a new log");
    for number in 1..=2 {
        let payload: &[u8] = if number == 1 { &[0x5a; 2500] } else { b"second" };
        journal
            .append(kind::BATCH, number, &[payload], &mut |head| head.extend_from_slice(b"head"))
            .expect("appended");
        journal.end_segment();
    }
    journal.write_out().expect("written");
    let path = dir.join("0000000000000002.wal");
    let file = vfs.open_read(&path).expect("the second segment");
    let mut bytes = vec![0; usize::try_from(file.len().expect("a length")).expect("small")];
    file.read_exact_at(&mut bytes, 0).expect("readable");
    let line =
        |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    let hex: String = bytes.chunks(32).map(line).collect();
    let golden =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/journal-prepared-segment-v1.hex");
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        std::fs::write(&golden, &hex).expect("written");
    }
    let golden = std::fs::read_to_string(&golden).expect("there");
    assert_eq!(hex, golden, "the format changed: that needs a new version");
}
