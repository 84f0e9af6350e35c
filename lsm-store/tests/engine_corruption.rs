//! Damage on disk: whatever byte changes, the store gives the right answer or an error that names the
//! file, never wrong data, never a panic.

use std::collections::BTreeMap;
use std::ops::Bound::Unbounded;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lsm_store::vfs::{MemVfs, Vfs};
use lsm_store::{
    Error, Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position, Result,
    SequenceNumber, Store,
};

const DATA: PartitionId = PartitionId(0);
const KEYS: u64 = 60;

fn options() -> Options {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
    let mut options = Options::new(3, partitions);
    options.block_bytes = 200;
    options.index_partition_bytes = 64;
    options.restart_interval = 3;
    options.table_bytes = 1200;
    options.l0_trigger = 2;
    options.base_level_bytes = 1 << 20;
    options
}

fn open(vfs: &MemVfs) -> Result<Store> {
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    Store::open(vfs, Path::new("/db"), options(), Executor::Inline)
}

fn key(n: u64) -> Vec<u8> {
    format!("a/common/prefix/{:04}", n * 37 % KEYS).into_bytes()
}

/// A store with compressed tables in the last level and an uncompressed run in level 0, closed.
fn sample() -> MemVfs {
    let vfs = MemVfs::new(1);
    let store = open(&vfs).expect("opens");
    for n in 1..=3 * KEYS {
        let mut run =
            store.begin_run(Position { index: n, term: 1, extra: vec![] }).expect("begins");
        let (key, value) =
            (key(n), [b"the same words again and again ".as_slice(), &n.to_le_bytes()].concat());
        run.apply(DATA, SequenceNumber(n), &[Op::Put { key: &key, value: &value }])
            .expect("applies");
        run.publish().expect("publishes");
        if n % KEYS == 0 {
            store.flush().expect("flushes");
        }
    }
    let metrics = store.metrics();
    assert!(metrics.partitions[0].l0_runs == 1 && metrics.compactions >= 1, "{metrics:?}");
    store.verify().expect("sound");
    store.close().expect("closes");
    vfs
}

/// Sequence numbers that everything is read at.
const READ_AT: [u64; 3] = [KEYS, 2 * KEYS + 7, 3 * KEYS];

/// The newest write of each key at one of [`READ_AT`].
fn newest_at(at: u64) -> &'static BTreeMap<Vec<u8>, u64> {
    static NEWEST: OnceLock<Vec<BTreeMap<Vec<u8>, u64>>> = OnceLock::new();
    let all = NEWEST.get_or_init(|| {
        READ_AT.iter().map(|at| (1..=*at).map(|n| (key(n), n)).collect()).collect()
    });
    let place = READ_AT.iter().position(|a| *a == at).expect("one of them");
    &all[place]
}

/// Opens and reads everything there is. Whatever is returned without an error must be right.
fn read_all(vfs: &MemVfs, context: &str) -> Result<()> {
    let store = open(vfs)?;
    assert_eq!(
        store.last_sequence(DATA),
        SequenceNumber(3 * KEYS),
        "{context}: nothing is silently lost"
    );
    let mut failure = None;
    for n in 2 * KEYS + 1..=3 * KEYS {
        match store.get(DATA, &key(n)) {
            Ok(found) => assert_eq!(found.map(|f| f.sequence.0), Some(n), "{context}: key of {n}"),
            Err(e) => failure = Some(e),
        }
    }
    for at in READ_AT {
        let view = store.view_at(DATA, SequenceNumber(at))?;
        let mut iter = view.iter(DATA, Unbounded, Unbounded)?;
        let mut rows = 0;
        loop {
            match iter.next() {
                Ok(true) => {
                    let newest = newest_at(at).get(iter.key());
                    assert_eq!(Some(&iter.sequence().0), newest, "{context}: row at {at}");
                    assert!(
                        iter.value().ends_with(&iter.sequence().0.to_le_bytes()),
                        "{context}: value"
                    );
                    rows += 1;
                }
                Ok(false) => {
                    assert_eq!(rows, KEYS, "{context}: all rows at {at}");
                    break;
                }
                Err(e) => {
                    failure = Some(e);
                    break;
                }
            }
        }
    }
    let verified = store.verify();
    match failure {
        Some(e) => {
            assert!(verified.is_err(), "{context}: verification overlooks what a read met: {e}");
            Err(e)
        }
        None => verified.map(|_| ()),
    }
}

fn named_file(error: &Error) -> Option<&Path> {
    if let Error::Corruption { file, .. }
    | Error::UnknownVersion { file, .. }
    | Error::WrongStore { file, .. } = error
    {
        return Some(file);
    }
    None
}

fn files(vfs: &MemVfs, part: &str) -> Vec<PathBuf> {
    vfs.files().into_iter().filter(|p| p.to_string_lossy().contains(part)).collect()
}

#[test]
fn every_flipped_byte_of_a_table_is_found_and_the_table_named() {
    let good = sample();
    read_all(&good.fork(), "unharmed").expect("sound");
    let tables = files(&good, ".sst");
    assert!(tables.len() >= 3, "{tables:?}");
    for table in &tables {
        let len = good.content(table).expect("there").len() as u64;
        // `corruption.rs` flips every bit; here the tables are compressed, and history is read.
        for offset in (0..len).step_by(3) {
            let vfs = good.fork();
            vfs.flip(table, offset, 1 << (offset % 8)).expect("flips");
            let context = format!("{} byte {offset} of {len}", table.display());
            let error = read_all(&vfs, &context).expect_err(&context);
            assert_eq!(named_file(&error), Some(table.as_path()), "{context}: {error}");
        }
    }
}

#[test]
fn a_flipped_byte_of_the_manifest_gives_an_error_or_the_whole_truth() {
    let good = sample();
    let manifests = files(&good, "MANIFEST");
    assert_eq!(manifests.len(), 1, "{manifests:?}");
    let manifest = &manifests[0];
    let len = good.content(manifest).expect("there").len() as u64;
    let mut errors = 0;
    for offset in 0..len {
        let vfs = good.fork();
        vfs.flip(manifest, offset, 1 << (offset % 8)).expect("flips");
        let context = format!("manifest byte {offset} of {len}");
        if let Err(error) = read_all(&vfs, &context) {
            assert_eq!(named_file(&error), Some(manifest.as_path()), "{context}: {error}");
            errors += 1;
        }
    }
    // Only the header, which is there twice, and the last note may be damaged without harm.
    assert_eq!(errors, len - 256 - 32, "of {len} bytes");
}

#[test]
fn truncated_and_lengthened_tables_are_refused() {
    let good = sample();
    for file in files(&good, ".sst") {
        let content = good.content(&file).expect("there");
        let shorter = (0..content.len()).step_by(5).map(|len| content[..len].to_vec());
        for damaged in shorter.chain([[content.as_slice(), b"x"].concat()]) {
            let vfs = good.fork();
            vfs.replace(&file, &damaged).expect("replaces");
            let context = format!(
                "{} of {} bytes where {} were",
                file.display(),
                damaged.len(),
                content.len()
            );
            let error = read_all(&vfs, &context).expect_err(&context);
            assert_eq!(named_file(&error), Some(file.as_path()), "{context}: {error}");
        }
    }
}

/// An end that is missing cannot be told from one that was never written; but what is left must be a
/// state that the store was in.
#[test]
fn a_truncated_manifest_is_refused_or_an_earlier_state() {
    let good = sample();
    let manifest = files(&good, "MANIFEST").remove(0);
    let content = good.content(&manifest).expect("there");
    for len in 0..content.len() {
        let vfs = good.fork();
        vfs.replace(&manifest, &content[..len]).expect("replaces");
        match open(&vfs) {
            Ok(store) => {
                let at = store.last_sequence(DATA).0;
                assert!(at.is_multiple_of(KEYS), "cut to {len}: after a flush: {at}");
                store.verify().expect("sound");
                let whole = content.len() - 32;
                assert!(
                    len < whole || at == 3 * KEYS,
                    "cut to {len}: only the note is missing, but {at}"
                );
            }
            // The tables of an earlier state may be gone.
            Err(Error::Io { op: "open", path, .. }) => {
                assert!(
                    path.extension().is_some_and(|e| e == "sst"),
                    "cut to {len}: {}",
                    path.display()
                );
            }
            Err(error) => {
                assert_eq!(named_file(&error), Some(manifest.as_path()), "cut to {len}: {error}")
            }
        }
    }
}

#[test]
fn intact_bytes_at_a_wrong_place_are_refused() {
    let good = sample();
    let tables = files(&good, ".sst");
    let contents: Vec<_> = tables.iter().map(|t| good.content(t).expect("there")).collect();
    // One table under another's name.
    for (i, table) in tables.iter().enumerate() {
        let vfs = good.fork();
        vfs.replace(table, &contents[(i + 1) % contents.len()]).expect("replaces");
        let error = read_all(&vfs, "swapped tables").expect_err("another table");
        assert_eq!(named_file(&error), Some(table.as_path()), "{error}");
    }
    // Two stretches of equal length within one table, exchanged: each is intact, neither belongs there.
    for (table, content) in tables.iter().zip(&contents) {
        for len in [64, 128] {
            for start in (0..content.len().saturating_sub(2 * len)).step_by(len) {
                let mut swapped = content.clone();
                let (first, second) = swapped[start..start + 2 * len].split_at_mut(len);
                if first == second {
                    continue;
                }
                first.swap_with_slice(second);
                let vfs = good.fork();
                vfs.replace(table, &swapped).expect("replaces");
                let error = read_all(&vfs, "swapped stretches").expect_err("exchanged");
                assert_eq!(named_file(&error), Some(table.as_path()), "{error}");
            }
        }
    }
}

#[test]
fn missing_files_are_named() {
    let good = sample();
    for table in files(&good, ".sst") {
        let vfs = good.fork();
        vfs.unlink(&table).expect("unlinks");
        let error = read_all(&vfs, "missing table").expect_err("missing");
        assert_eq!(named_file(&error), Some(table.as_path()), "{error}");
    }
    let vfs = good.fork();
    for marker in files(&good, "CURRENT") {
        vfs.unlink(&marker).expect("unlinks");
    }
    let error = read_all(&vfs, "missing marker").expect_err("missing");
    assert!(error.to_string().contains("no marker names a manifest"), "{error}");
    assert_eq!(files(&vfs, ".sst").len(), files(&good, ".sst").len(), "nothing was removed");
}

#[test]
fn files_of_others_are_left_alone_and_orphans_go() {
    let good = sample();
    let table = files(&good, ".sst").remove(0);
    let content = good.content(&table).expect("there");
    let put = |name: &str| {
        let path = Path::new("/db/sst").join(name);
        let file = good.create_new(&path).expect("creates");
        file.write_all_at(&content, 0).expect("writes");
        path
    };
    let orphan = put("0000000000000001.sst");
    let foreign =
        [put("notes.txt"), put("1.sst"), put("00000000000000AB.sst"), put("ffffffffffffff00.sst")];
    read_all(&good, "with strangers").expect("sound");
    assert!(!good.files().contains(&orphan), "a number that was given out and is not in use");
    for path in &foreign {
        assert!(good.files().contains(path), "{} is not the store's to remove", path.display());
    }
}
