//! Rules of the engine that have no better place: each is held by a test of its own. `PITFALLS.md` says
//! what each is good for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::Unbounded;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsm_store::checksum::{bind, fold64, hash_pair};
use lsm_store::rng::SplitMix64;
use lsm_store::vfs::{CrashPolicy, MemVfs};
use lsm_store::{
    Durability, Error, Executor, Keep, Mode, Op, Options, PartitionId, PartitionOptions, Position,
    SequenceNumber, Store, WriteBatch,
};

const DATA: PartitionId = PartitionId(0);
const META: PartitionId = PartitionId(1);

fn options() -> Options {
    let partition = |name: &str, keep| PartitionOptions { name: name.to_owned(), keep };
    let partitions = vec![partition("data", Keep::All), partition("meta", Keep::NewestOnly)];
    Options {
        memtable_bytes: 2048,
        block_bytes: 128,
        index_partition_bytes: 128,
        restart_interval: 3,
        table_bytes: 1024,
        base_level_bytes: 2048,
        level_ratio: 3,
        l0_trigger: 2,
        ..Options::new(5, partitions)
    }
}

fn open_with(vfs: &MemVfs, options: Options) -> Result<Store, Error> {
    Store::open(Arc::new(vfs.clone()), Path::new("/db"), options, Executor::Inline)
}

fn open(vfs: &MemVfs) -> Store {
    open_with(vfs, options()).expect("opens")
}

/// Run `n`: one put, or a delete in every fifth.
fn write(store: &Store, n: u64) {
    let mut run = store.begin_run(Position { index: n, ..Position::default() }).expect("begins");
    let key = (n % 37).to_be_bytes();
    let op = if n.is_multiple_of(5) {
        Op::Delete { key: &key }
    } else {
        Op::Put { key: &key, value: &n.to_le_bytes() }
    };
    run.apply(DATA, SequenceNumber(n), &[op]).expect("applies");
    run.apply(META, SequenceNumber(n), &[Op::Put { key: b"n", value: &n.to_le_bytes() }])
        .expect("applies");
    run.publish().expect("publishes");
}

fn files(vfs: &MemVfs, part: &str) -> Vec<PathBuf> {
    vfs.files().into_iter().filter(|path| path.to_string_lossy().contains(part)).collect()
}

#[test]
fn the_manifest_in_force_is_named_by_an_empty_file() {
    let vfs = MemVfs::new(1);
    drop(open(&vfs));
    let markers = files(&vfs, "CURRENT");
    assert_eq!(markers.len(), 1, "{markers:?}");
    assert!(vfs.content(&markers[0]).expect("there").is_empty(), "nothing in it could be torn");
    let name = markers[0].to_string_lossy();
    let number = name.rsplit('.').next().expect("a number");
    assert_eq!(
        files(&vfs, "MANIFEST"),
        [PathBuf::from(format!("/db/MANIFEST-{number}"))],
        "{name}"
    );
}

#[test]
fn whatever_a_manifest_names_is_durable_before_it_is_named() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs);
    for n in 1..=300 {
        write(&store, n);
        if n % 10 == 0 {
            store.flush().expect("flushes");
        }
        // Between two runs no job is under way with this executor: what is there is in force. The manifest
        // itself ends with a note that need not be on disk.
        for path in ["sst/", "CURRENT"].iter().flat_map(|part| files(&vfs, part)) {
            assert!(vfs.is_durable(&path).expect("there"), "{} after run {n}", path.display());
        }
    }
    assert!(store.metrics().compactions > 5, "{:?}", store.metrics());
}

#[test]
fn a_log_segment_is_reserved_before_it_is_written() {
    let vfs = MemVfs::new(1);
    let segment = 64 << 10;
    let options = Options { mode: Mode::Wal, wal_segment_bytes: segment, ..options() };
    let store = open_with(&vfs, options).expect("opens");
    let mut batch = WriteBatch::new();
    batch.put(DATA, b"key", b"value").expect("fits");
    store.write(batch, Durability::Sync).expect("writes");
    let newest = files(&vfs, ".wal").pop().expect("a segment");
    let len = vfs.content(&newest).expect("there").len() as u64;
    assert!(len >= segment, "{} has {len} bytes of {segment}", newest.display());
}

/// Through crashes of every kind: a name that was seen stands for the same bytes for ever.
#[test]
fn a_file_number_is_never_used_twice_whatever_is_lost() {
    for seed in 0..40 {
        let mut rng = SplitMix64::new(seed);
        let vfs = MemVfs::new(seed);
        let mut seen: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        for life in 0..12_u64 {
            let calls = vfs.mutating_calls();
            vfs.crash_at(calls + rng.below(150));
            if let Ok(store) = open_with(&vfs, options()) {
                let last = store.visible_position().index;
                for n in last + 1..last + 60 {
                    let position = Position { index: n, ..Position::default() };
                    let Ok(mut run) = store.begin_run(position) else { break };
                    let op = Op::Put { key: &n.to_be_bytes(), value: &[7; 40] };
                    let sequence = SequenceNumber(run.last_sequence(DATA).0 + 1);
                    run.apply(DATA, sequence, &[op]).expect("applies");
                    run.publish().expect("publishes");
                    for path in files(&vfs, "sst/") {
                        // What is being written grows; a finished table is durable and does not change.
                        if vfs.is_durable(&path).expect("listed") {
                            let content = vfs.content(&path).expect("listed");
                            let before =
                                seen.entry(path.clone()).or_insert_with(|| content.clone());
                            assert_eq!(
                                *before,
                                content,
                                "seed {seed}, life {life}: {}",
                                path.display()
                            );
                        }
                    }
                }
            }
            let policies = CrashPolicy::ALL;
            let policy = usize::try_from(rng.below(policies.len() as u64)).expect("small");
            vfs.crash(policies[policy], rng.next_u64());
        }
        assert!(seen.len() > 5, "seed {seed}: {} tables", seen.len());
    }
}

fn uids(vfs: &MemVfs) -> Vec<Vec<u8>> {
    let uid = |path: &PathBuf| {
        let content = vfs.content(path).expect("listed");
        content[content.len() - 96..content.len() - 80].to_vec()
    };
    files(vfs, "sst/").iter().map(uid).collect()
}

#[test]
fn no_two_tables_ever_have_the_same_id() {
    let mut seen = BTreeSet::new();
    // Stores of one id and seed, as a generator that repeats itself would give; and another store.
    for (store_id, executor) in
        [(5, Executor::Threads), (5, Executor::Threads), (6, Executor::Inline)]
    {
        let vfs = MemVfs::new(1);
        let options = Options { store_id, l0_trigger: 100, l0_stop: 200, ..options() };
        let store = Store::open(Arc::new(vfs.clone()), Path::new("/db"), options, executor);
        let store = store.expect("opens");
        for n in 1..=8 {
            write(&store, n);
            store.flush().expect("flushes");
        }
        let uids = uids(&vfs);
        assert!(uids.len() >= 16, "{} tables", uids.len());
        for uid in uids {
            assert!(seen.insert(uid), "an id is there twice");
        }
    }
}

#[test]
fn no_file_is_mapped_into_memory() {
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut read = 0;
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("sources") {
            let path = entry.expect("sources").path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("text").to_lowercase();
            assert!(!text.contains("mmap"), "{} maps a file", path.display());
            read += 1;
        }
    }
    assert!(read > 40, "{read} files");
}

/// A reference counted by every lookup would pass from processor to processor; nothing that a lookup returns tells
/// whether it is, so the sources do.
#[test]
fn point_reads_borrow_the_present_tables_and_count_no_reference() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for file in ["store/mod.rs", "store/view.rs", "store/run.rs", "store/superversion.rs"] {
        let text = std::fs::read_to_string(src.join(file)).expect("text");
        for lookup in ["fn get(", "fn multi_get(", "fn get_in_memory("] {
            let Some((_, behind)) = text.split_once(lookup) else { continue };
            let (body, _) = behind.split_once("\n    }\n").expect("a method has an end");
            for counted in ["load_full", "Arc::clone", "to_owned()", ".clone()"] {
                assert!(!body.contains(counted), "{file}: {lookup}..) has {counted}");
            }
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen} lookups");
}

/// No single delete with a contract of its own, no range delete, no pointer to elsewhere.
#[test]
fn an_operation_puts_or_deletes_and_nothing_else() {
    // A third kind would not compile here, and needs a word in `PITFALLS.md`.
    let kind = |op: &Op<'_>| match op {
        Op::Put { .. } => 0,
        Op::Delete { .. } => 1,
    };
    assert_eq!(kind(&Op::Put { key: b"", value: b"" }) + kind(&Op::Delete { key: b"" }), 1);
}

#[test]
fn number_zero_is_before_everything_and_never_written() {
    let store = open(&MemVfs::new(1));
    let before = store.view();
    assert_eq!(before.sequence(DATA), SequenceNumber::ZERO, "a new store stands before everything");
    let mut run = store.begin_run(Position { index: 1, ..Position::default() }).expect("begins");
    let refused = run.apply(DATA, SequenceNumber::ZERO, &[Op::Put { key: b"k", value: b"v" }]);
    assert!(matches!(refused, Err(Error::AlreadyApplied { asked: 0, .. })), "{refused:?}");
    run.apply(DATA, SequenceNumber(1), &[Op::Put { key: b"k", value: b"v" }]).expect("applies");
    run.publish().expect("publishes");
    store.flush().expect("flushes");
    let at_zero = store.view_at(DATA, SequenceNumber::ZERO).expect("in history");
    for view in [&before, &at_zero] {
        assert_eq!(view.get(DATA, b"k").expect("reads"), None, "nothing was written at 0");
    }
    assert!(store.get(DATA, b"k").expect("reads").is_some(), "and something at 1");
}

/// One table with one data block at its beginning; `change` may touch it before its checksum is made.
fn with_changed_block(change: impl FnOnce(&mut [u8])) -> Result<(), Error> {
    let vfs = MemVfs::new(1);
    let options = Options { block_bytes: 1 << 16, ..options() };
    let store = open_with(&vfs, options.clone()).expect("opens");
    let mut run = store.begin_run(Position { index: 1, ..Position::default() }).expect("begins");
    run.apply(DATA, SequenceNumber(1), &[Op::Put { key: b"k", value: b"v" }]).expect("applies");
    run.publish().expect("publishes");
    store.flush().expect("flushes");
    store.close().expect("closes");
    let path = files(&vfs, "sst/").remove(0);
    let mut content = vfs.content(&path).expect("listed");
    let footer = content.len() - 96;
    let uid = fold64(u128::from_le_bytes(content[footer..footer + 16].try_into().expect("16")));
    let sum = |content: &[u8], len: usize| {
        hash_pair(&content[..len], &content[len..len + 8]).wrapping_add(bind(uid, 0)).to_le_bytes()
    };
    let len = (0..footer).find(|len| content[len + 8..len + 16] == sum(&content, *len));
    let len = len.expect("the block ends somewhere");
    change(&mut content[..len]);
    let sum = sum(&content, len);
    content[len + 8..len + 16].copy_from_slice(&sum);
    vfs.replace(&path, &content).expect("there");
    let store = open_with(&vfs, options)?;
    store.get(DATA, b"k").map(drop)
}

fn expect_corruption(result: Result<(), Error>, what: &str) {
    assert!(matches!(&result, Err(Error::Corruption { .. })), "{what}: {result:?}");
}

#[test]
fn reserved_kinds_of_entries_are_refused() {
    with_changed_block(|_| {}).expect("as it was written");
    // Header of 16 bytes with a common prefix of 1: then shared, unshared, sequence, length and kind.
    let kind_at = |block: &[u8]| 16 + usize::from(block[14]) + 3;
    for kind in 2..8_u8 {
        let changed = with_changed_block(|block| {
            let at = kind_at(block);
            assert_eq!(block[at], 1 << 3, "a value of one byte");
            block[at] = (1 << 3) | kind;
        });
        expect_corruption(changed, &format!("kind {kind}"));
    }
}

#[test]
fn reserved_parts_of_blocks_are_refused() {
    // Bit 2 of the flags stands for a hash index; bits 1, 3 and 4 for nothing yet.
    for bit in 1..5 {
        expect_corruption(
            with_changed_block(|block| block[15] ^= 1 << bit),
            &format!("flag {bit}"),
        );
    }
    for from_end in 1..=4 {
        let changed = with_changed_block(|block| block[block.len() - from_end] = 1);
        expect_corruption(changed, &format!("reserved byte {from_end} from the end"));
    }
}

#[test]
fn a_hundred_thousand_views_are_counted_and_let_go() {
    let store = open(&MemVfs::new(1));
    for n in 1..=200 {
        write(&store, n);
    }
    let mut views: Vec<_> = (0..100_000).map(|_| store.view()).collect();
    assert_eq!(store.metrics().views, views.len(), "all of them are counted");
    for n in 201..=400 {
        write(&store, n);
    }
    store.flush().expect("flushes");
    let old = views.pop().expect("many").get(META, b"n").expect("reads").expect("there");
    assert_eq!(old.value, 200_u64.to_le_bytes().as_slice(), "a view sees what it saw");
    drop(views);
    assert_eq!(store.metrics().views, 0, "and is let go");
    for n in 401..=500 {
        write(&store, n);
    }
    store.flush().expect("flushes");
    store.verify().expect("sound");
}

/// A store of some 20 000 keys in one level, opened afresh.
fn large(cache_bytes: usize) -> Store {
    let vfs = MemVfs::new(1);
    let options = Options {
        memtable_bytes: 64 << 20,
        block_bytes: 1024,
        index_partition_bytes: 1024,
        table_bytes: 64 << 20,
        cache_bytes,
        ..options()
    };
    let store = open_with(&vfs, options.clone()).expect("opens");
    let keys: Vec<[u8; 8]> = (0..20_000_u64).map(u64::to_be_bytes).collect();
    let ops: Vec<Op<'_>> = keys.iter().map(|key| Op::Put { key, value: key }).collect();
    let mut run = store.begin_run(Position { index: 1, ..Position::default() }).expect("begins");
    run.apply(DATA, SequenceNumber(1), &ops).expect("applies");
    run.publish().expect("publishes");
    store.flush().expect("flushes");
    store.close().expect("closes");
    open_with(&vfs, options).expect("opens")
}

#[test]
fn a_point_read_loads_partitions_and_not_whole_filters() {
    // With bytes to spare, neighbours come along; here there are none.
    let store = large(24 << 10);
    store.get(DATA, &777_u64.to_be_bytes()).expect("reads").expect("there");
    let metrics = store.metrics();
    // 20 000 keys of 10 bits each are 25 000 bytes of filter.
    assert!(metrics.cache.misses() <= 3, "filter, index, data: {}", metrics.cache.misses());
    assert!(metrics.cache.bytes() < 10_000, "{} bytes for one key", metrics.cache.bytes());
}

#[test]
fn a_scan_does_not_push_out_what_point_reads_use() {
    let store = large(16 << 10);
    let read = || store.get(DATA, &777_u64.to_be_bytes()).expect("reads").expect("there");
    for _ in 0..3 {
        read();
    }
    let view = store.view();
    let mut iter = view.iter(DATA, Unbounded, Unbounded).expect("opens");
    let mut rows = 0;
    while iter.next().expect("moves") {
        rows += 1;
    }
    assert_eq!(rows, 20_000, "all rows");
    let before = store.metrics().cache.misses();
    read();
    assert_eq!(store.metrics().cache.misses(), before, "what a read used before is still there");
}

#[test]
fn errors_metrics_and_debug_output_show_no_keys_or_values() {
    let (key, value) = (b"SECRETKEY-0123456789".as_slice(), b"SECRETVALUE-0123456789".as_slice());
    let vfs = MemVfs::new(1);
    let store = open(&vfs);
    let mut shown = Vec::new();
    let mut run = store.begin_run(Position { index: 1, ..Position::default() }).expect("begins");
    run.apply(DATA, SequenceNumber(1), &[Op::Put { key, value }]).expect("applies");
    shown.push(format!("{run:?}"));
    run.publish().expect("publishes");
    let view = store.view();
    let mut iter = view.iter(DATA, Unbounded, Unbounded).expect("opens");
    assert!(iter.next().expect("moves"), "one row");
    shown.push(format!("{iter:?} {view:?} {store:?} {:?}", store.metrics()));
    store.flush().expect("flushes");
    assert!(store.get(DATA, key).expect("reads").is_some(), "in the cache now");
    shown.push(format!("{store:?} {:?} {:?}", store.metrics(), store.verify()));
    drop((iter, view));
    store.close().expect("closes");
    let path = files(&vfs, "sst/").remove(0);
    for offset in 0..vfs.content(&path).expect("listed").len() as u64 {
        let vfs = vfs.fork();
        vfs.flip(&path, offset, 1).expect("there");
        let used = open_with(&vfs, options()).and_then(|store| store.get(DATA, key).map(drop));
        shown.extend(used.err().map(|error| format!("{error} {error:?}")));
    }
    assert!(shown.len() > 100, "{} texts", shown.len());
    let bytes = |text: &[u8]| {
        let all = format!("{text:?}");
        all.trim_matches(['[', ']']).to_owned()
    };
    for text in &shown {
        for secret in ["SECRETKEY", "SECRETVALUE", &bytes(b"SECRETKEY"), &bytes(b"SECRETVALUE")] {
            assert!(!text.contains(secret), "shows data: {}", &text[..text.len().min(2000)]);
        }
    }
}
