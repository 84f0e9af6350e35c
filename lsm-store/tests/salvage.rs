//! Stores whose manifest or marker is damaged or gone: what their tables tell is saved, and it is said what
//! they do not tell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsm_store::vfs::{CrashPolicy, MemVfs, Vfs};
use lsm_store::{
    Durability, Error, Executor, Keep, Mode, Op, Options, PartitionId, PartitionOptions, Position,
    Salvaged, SequenceNumber, Store, WriteBatch,
};

const DATA: PartitionId = PartitionId(0);
const META: PartitionId = PartitionId(1);
const KEYS: u64 = 60;
const WRITES: u64 = 400;

fn options(mode: Mode) -> Options {
    let partition = |name: &str, keep| PartitionOptions { name: name.to_owned(), keep };
    let partitions = vec![partition("data", Keep::All), partition("meta", Keep::NewestOnly)];
    Options {
        mode,
        block_bytes: 200,
        index_partition_bytes: 64,
        table_bytes: 2000,
        memtable_bytes: 4096,
        wal_segment_bytes: 4096,
        l0_trigger: 2,
        base_level_bytes: 4096,
        ..Options::new(3, partitions)
    }
}

fn shared(vfs: &MemVfs) -> Arc<dyn Vfs> {
    Arc::new(vfs.clone())
}

fn open_in(vfs: &MemVfs, dir: &str, mode: Mode) -> Store {
    Store::open(shared(vfs), Path::new(dir), options(mode), Executor::Inline).expect("opens")
}

fn key(n: u64) -> Vec<u8> {
    format!("key/{:03}", n * 7 % KEYS).into_bytes()
}

/// Write `n`: some are deletes; each writes to one or both partitions.
fn write(store: &Store, mode: Mode, n: u64) {
    let (key, value) = (key(n), [n.to_le_bytes(); 6].concat());
    let deletes = n.is_multiple_of(5);
    let partitions: &[PartitionId] = if n.is_multiple_of(3) { &[DATA, META] } else { &[DATA] };
    if mode == Mode::Wal {
        let mut batch = WriteBatch::new();
        for partition in partitions {
            let op = if deletes {
                batch.delete(*partition, &key)
            } else {
                batch.put(*partition, &key, &value)
            };
            op.expect("small");
        }
        store.write(batch, Durability::Sync).expect("writes");
        return;
    }
    let mut run = store.begin_run(Position { index: n, term: 1, extra: vec![] }).expect("begins");
    for partition in partitions {
        let op =
            if deletes { Op::Delete { key: &key } } else { Op::Put { key: &key, value: &value } };
        let next = SequenceNumber(run.last_sequence(*partition).0 + 1);
        run.apply(*partition, next, &[op]).expect("applies");
    }
    run.publish().expect("publishes");
}

type Newest = BTreeMap<(PartitionId, Vec<u8>), (u64, Vec<u8>)>;

/// The newest versions of all keys.
fn newest(store: &Store) -> Newest {
    let mut all = Newest::new();
    for partition in [DATA, META] {
        for n in 0..KEYS {
            if let Some(found) = store.get(partition, &key(n)).expect("reads") {
                all.insert((partition, key(n)), (found.sequence.0, found.value.to_vec()));
            }
        }
    }
    all
}

/// A store of many writes, merged and unmerged, flushed and closed; and what it has.
fn sample(mode: Mode) -> (MemVfs, Newest) {
    let vfs = MemVfs::new(1);
    let store = open_in(&vfs, "/db", mode);
    for n in 1..=WRITES {
        write(&store, mode, n);
    }
    if mode == Mode::External {
        store.flush().expect("flushes");
    }
    let metrics = store.metrics();
    assert!(metrics.compactions > 3, "{metrics:?}");
    let newest = newest(&store);
    assert!(newest.len() > 50, "{} keys", newest.len());
    store.close().expect("closes");
    (vfs, newest)
}

fn named(vfs: &MemVfs, part: &str) -> PathBuf {
    let is_it = |path: &PathBuf| {
        path.starts_with("/db")
            && path.file_name().is_some_and(|n| n.to_string_lossy().contains(part))
    };
    vfs.files().into_iter().find(is_it).expect(part)
}

fn tables(vfs: &MemVfs) -> Vec<PathBuf> {
    let is_table = |p: &PathBuf| p.starts_with("/db") && p.extension().is_some_and(|e| e == "sst");
    vfs.files().into_iter().filter(is_table).collect()
}

fn salvage(vfs: &MemVfs, mode: Mode) -> lsm_store::Result<Salvaged> {
    Store::salvage(shared(vfs), Path::new("/db"), &options(mode), Path::new("/saved"))
}

/// Opens what was salvaged, checks that it is sound and can be written to, and returns what it had.
fn opened(vfs: &MemVfs, mode: Mode, context: &str) -> Newest {
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    let store = open_in(vfs, "/saved", mode);
    store.verify().expect(context);
    let had = newest(&store);
    let next = store.visible_position().index + 1;
    write(&store, mode, next + u64::from(next.is_multiple_of(5)));
    store.compact_all().expect(context);
    store.verify().expect(context);
    had
}

#[test]
fn a_manifest_damaged_anywhere_or_gone_costs_no_key_that_is_in_a_table_or_the_log() {
    for mode in [Mode::External, Mode::Wal] {
        let (good, had) = sample(mode);
        let manifest = named(&good, "MANIFEST-");
        let len = good.content(&manifest).expect("there").len() as u64;
        let mut rebuilt = 0;
        let places = (0..len).step_by(41).map(Some).chain([None]);
        for place in places {
            let context = format!("{mode:?}, manifest of {len} bytes damaged at {place:?}");
            let vfs = good.fork();
            match place {
                // Both copies of the header.
                Some(place @ 0..256) => {
                    vfs.flip(&manifest, place % 128, 0x10).expect("flips");
                    vfs.flip(&manifest, place % 128 + 128, 0x10).expect("flips");
                }
                Some(place) => vfs.flip(&manifest, place, 0x10).expect("flips"),
                None => vfs.unlink(&manifest).expect("unlinks"),
            }
            let before: Vec<_> = vfs.files();
            let salvaged = salvage(&vfs, mode).expect(&context);
            let untouched = vfs.files().into_iter().filter(|p| !p.starts_with("/saved"));
            assert_eq!(untouched.collect::<Vec<_>>(), before, "{context}: the source is as it was");
            assert_eq!(salvaged.lost, [], "{context}: nothing of a table is lost");
            if salvaged.manifest.is_some() {
                rebuilt += 1;
                assert_eq!(salvaged.repeated, 0, "{context}: every table was in force");
            }
            assert_eq!(opened(&vfs, mode, &context), had, "{context}: every key as it was");
        }
        assert!(rebuilt > len / 41 / 2, "{mode:?}: {rebuilt} of {len} bytes in steps of 41");
    }
}

#[test]
fn a_lost_marker_costs_nothing_if_the_manifest_is_whole() {
    for mode in [Mode::External, Mode::Wal] {
        let (vfs, had) = sample(mode);
        vfs.unlink(&named(&vfs, "CURRENT")).expect("unlinks");
        let refused = Store::open(shared(&vfs), Path::new("/db"), options(mode), Executor::Inline);
        assert!(matches!(refused, Err(Error::Corruption { .. })), "an opening makes nothing up");
        let salvaged = salvage(&vfs, mode).expect("salvages");
        assert_eq!((salvaged.manifest, salvaged.lost), (None, vec![]), "all is known");
        let position = open_in(&vfs.fork(), "/saved", mode).visible_position().index;
        assert_eq!(position, WRITES, "{mode:?}: even the position");
        assert_eq!(opened(&vfs, mode, "marker lost"), had, "{mode:?}: and every key");
    }
}

#[test]
fn history_and_position_are_not_made_up() {
    let (vfs, _) = sample(Mode::External);
    vfs.unlink(&named(&vfs, "MANIFEST-")).expect("unlinks");
    salvage(&vfs, Mode::External).expect("salvages");
    let store = open_in(&vfs, "/saved", Mode::External);
    assert_eq!(store.visible_position().index, 0, "what the tables hold of the log is not known");
    assert_eq!(store.last_sequence(DATA).0, WRITES, "the tables' newest number");
    assert_eq!(store.floor(DATA).0, WRITES, "older states are not vouched for");
    let mut run = store.begin_run(Position { index: 1, term: 1, extra: vec![] }).expect("begins");
    let again = run.apply(DATA, SequenceNumber(1), &[Op::Put { key: b"k", value: b"" }]);
    assert!(matches!(again, Err(Error::AlreadyApplied { .. })), "no number twice: {again:?}");
}

/// A store with a delete in one table and, below it, what it deletes; the tables before and after their merge.
fn merged() -> (MemVfs, Vec<(PathBuf, Vec<u8>)>, PathBuf) {
    let vfs = MemVfs::new(1);
    // Nothing is merged before it is asked for.
    let calm = Options { l0_trigger: 8, ..options(Mode::External) };
    let store = Store::open(shared(&vfs), Path::new("/db"), calm, Executor::Inline).expect("opens");
    let apply = |n: u64, ops: &[Op<'_>]| {
        let mut run =
            store.begin_run(Position { index: n, term: 1, extra: vec![] }).expect("begins");
        run.apply(DATA, SequenceNumber(n), ops).expect("applies");
        run.publish().expect("publishes");
        store.flush().expect("flushes");
    };
    let put = |key, value| Op::Put { key, value };
    apply(1, &[put(b"a", b"old"), put(b"deleted", b"old"), put(b"z", b"only")]);
    let of_first = tables(&vfs);
    apply(2, &[put(b"a", b"new"), Op::Delete { key: b"deleted" }, put(b"b", b"only")]);
    let inputs: Vec<_> =
        tables(&vfs).into_iter().map(|p| (p.clone(), vfs.content(&p).expect("there"))).collect();
    assert_eq!(inputs.len(), 2, "two inputs");
    store.set_floor(DATA, SequenceNumber(2)).expect("raises");
    store.compact_all().expect("compacts");
    store.close().expect("closes");
    let left = tables(&vfs);
    assert!(left.len() == 1 && inputs.iter().all(|(path, _)| *path != left[0]), "{left:?}");
    (vfs, inputs, of_first[0].clone())
}

#[test]
fn tables_that_were_replaced_but_not_removed_hide_nothing_newer() {
    let (good, inputs, first) = merged();
    for (which, comes_back) in [("both", false), ("the newer", false), ("the older", true)] {
        let vfs = good.fork();
        for (path, content) in &inputs {
            let wanted = match which {
                "both" => true,
                "the newer" => *path != first,
                _ => *path == first,
            };
            if wanted {
                vfs.create_new(path).expect("creates").write_all_at(content, 0).expect("writes");
            }
        }
        vfs.unlink(&named(&vfs, "MANIFEST-")).expect("unlinks");
        let salvaged = salvage(&vfs, Mode::External).expect("salvages");
        assert!(
            salvaged.manifest.is_some() && salvaged.repeated > 0,
            "{which}: told: {salvaged:?}"
        );
        let store = open_in(&vfs, "/saved", Mode::External);
        store.verify().expect("sound");
        let get = |key: &[u8]| store.get(DATA, key).expect("reads").map(|f| f.value.to_vec());
        assert_eq!(get(b"a").as_deref(), Some(&b"new"[..]), "{which}: the newest version");
        assert_eq!(get(b"b").as_deref(), Some(&b"only"[..]), "{which}");
        assert_eq!(get(b"z").as_deref(), Some(&b"only"[..]), "{which}");
        // The delete is in the newer one alone: what the documentation warns of, and nothing more.
        assert_eq!(get(b"deleted").is_some(), comes_back, "{which}: a deleted key");
    }
}

#[test]
fn without_a_manifest_damaged_tables_cost_what_is_said_to_be_lost() {
    let (good, had) = sample(Mode::External);
    good.unlink(&named(&good, "MANIFEST-")).expect("unlinks");
    let (mut in_part, mut unreadable) = (0, 0);
    for table in tables(&good) {
        let len = good.content(&table).expect("there").len() as u64;
        for place in [10, len / 2, len - 60] {
            let context = format!("{} of {len} bytes damaged at {place}", table.display());
            let vfs = good.fork();
            vfs.flip(&table, place, 0x10).expect("flips");
            let salvaged = salvage(&vfs, Mode::External).expect(&context);
            in_part += salvaged.tables_in_part;
            unreadable += salvaged.tables_lost;
            let saved = opened(&vfs, Mode::External, &context);
            for (at, value) in &had {
                let covered = salvaged.lost.iter().any(|damage| {
                    damage.partition == at.0 && damage.smallest <= at.1 && at.1 <= damage.largest
                });
                let same = saved.get(at) == Some(value);
                assert!(same || covered, "{context}: {at:?} is lost and not said to be");
            }
        }
    }
    assert!(in_part > 3 && unreadable > 3, "in part {in_part}, not at all {unreadable}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let (vfs, _) = sample(Mode::External);
    vfs.unlink(&named(&vfs, "MANIFEST-")).expect("unlinks");
    let mut one = options(Mode::External);
    one.partitions.truncate(1);
    let to = Path::new("/one");
    let refused = Store::salvage(shared(&vfs), Path::new("/db"), &one, to);
    assert!(matches!(refused, Err(Error::InvalidArgument(_))), "a partition too few: {refused:?}");
}
