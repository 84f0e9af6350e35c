//! The store with its own log, on a real file system and in memory: what it promises to one writer and
//! to many at once.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use lsm_store::vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, MemVfs, OpSet, RealVfs, Vfs};
use lsm_store::{
    Durability, Error, Executor, Keep, MAX_BATCH_BYTES, MAX_VALUE_BYTES, Mode, Options,
    PartitionId, PartitionOptions, Position, SequenceNumber, Store, WriteBatch,
};

const P: PartitionId = PartitionId(0);
const Q: PartitionId = PartitionId(1);

fn options(mode: Mode) -> Options {
    let partitions = ["data", "meta"]
        .map(|name| PartitionOptions { name: name.to_owned(), keep: Keep::All })
        .to_vec();
    Options {
        mode,
        wal_segment_bytes: 16 << 10,
        memtable_bytes: 32 << 10,
        cache_bytes: 1 << 20,
        ..Options::new(7, partitions)
    }
}

fn open(vfs: &MemVfs, dir: &str, mode: Mode) -> Result<Store, Error> {
    Store::open(Arc::new(vfs.clone()), Path::new(dir), options(mode), Executor::Inline)
}

fn one(partition: PartitionId, key: &[u8], value: &[u8]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.put(partition, key, value).expect("small");
    batch
}

fn value(store: &Store, partition: PartitionId, key: &[u8]) -> Option<Vec<u8>> {
    store.get(partition, key).expect("readable").map(|found| found.value.to_vec())
}

#[test]
fn a_write_is_visible_at_once_and_there_after_a_crash() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, "/db", Mode::Wal).expect("a new store");
    let mut batch = one(P, b"a", b"1");
    batch.put(Q, b"b", b"2").expect("small");
    let numbers = store.write(batch, Durability::Sync).expect("written");
    assert_eq!(
        (numbers.get(P), numbers.get(Q)),
        (Some(SequenceNumber(1)), Some(SequenceNumber(1)))
    );
    let numbers = store.write(one(Q, b"b", b"3"), Durability::Sync).expect("written");
    assert_eq!(
        (numbers.get(P), numbers.get(Q)),
        (None, Some(SequenceNumber(2))),
        "only what was touched"
    );
    assert_eq!(value(&store, Q, b"b"), Some(b"3".to_vec()));
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    drop(store);
    let store = open(&vfs, "/db", Mode::Wal).expect("recovered");
    assert_eq!(value(&store, P, b"a"), Some(b"1".to_vec()));
    assert_eq!(value(&store, Q, b"b"), Some(b"3".to_vec()));
    assert_eq!(store.last_sequence(Q), SequenceNumber(2));
    let numbers = store.write(one(Q, b"c", b""), Durability::Sync).expect("written");
    assert_eq!(numbers.get(Q), Some(SequenceNumber(3)), "numbers go on");
}

#[test]
fn buffered_writes_survive_the_process_and_an_empty_synced_batch_makes_them_durable() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, "/db", Mode::Wal).expect("a new store");
    store.write(one(P, b"a", b"1"), Durability::Buffered).expect("written");
    vfs.kill();
    drop(store);
    let store = open(&vfs, "/db", Mode::Wal).expect("recovered");
    assert_eq!(value(&store, P, b"a"), Some(b"1".to_vec()), "the kernel had it");
    store.write(one(P, b"a", b"2"), Durability::Buffered).expect("written");
    store.write(WriteBatch::new(), Durability::Sync).expect("synced");
    store.write(one(P, b"a", b"3"), Durability::Buffered).expect("written");
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    drop(store);
    let store = open(&vfs, "/db", Mode::Wal).expect("recovered");
    assert_eq!(value(&store, P, b"a"), Some(b"2".to_vec()), "up to the sync, and not beyond");
}

#[test]
fn the_log_stays_small_however_much_is_written() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, "/db", Mode::Wal).expect("a new store");
    let mut most = 0;
    for n in 0..600_u32 {
        let key = (n % 50).to_le_bytes();
        // The second partition is cold: it must not pin the log.
        let partition = if n == 3 { Q } else { P };
        store.write(one(partition, &key, &[7; 1000]), Durability::Buffered).expect("written");
        let segments = vfs.list(Path::new("/db/wal")).expect("there").len() - 1;
        most = most.max(segments);
    }
    assert!(most <= 8, "{most} segments of 16 KiB for memtables of 32 KiB");
    store.close().expect("closed");
    let store = open(&vfs, "/db", Mode::Wal).expect("recovered");
    assert_eq!(value(&store, P, &49_u32.to_le_bytes()), Some(vec![7; 1000]));
    assert_eq!(value(&store, Q, &3_u32.to_le_bytes()), Some(vec![7; 1000]));
}

#[test]
fn runs_and_writes_belong_to_different_modes_and_the_mode_is_not_mixed_up() {
    let vfs = MemVfs::new(1);
    let external = open(&vfs, "/ext", Mode::External).expect("a new store");
    assert!(matches!(
        external.write(one(P, b"", b""), Durability::Sync),
        Err(Error::InvalidArgument(_))
    ));
    let own = open(&vfs, "/own", Mode::Wal).expect("a new store");
    let position = Position { index: 1, ..Position::default() };
    assert!(matches!(own.begin_run(position.clone()), Err(Error::InvalidArgument(_))));
    let unknown = own.write(one(PartitionId(9), b"", b""), Durability::Sync);
    assert!(matches!(unknown, Err(Error::InvalidArgument(_))), "{unknown:?}");
    own.write(one(P, b"", b""), Durability::Sync).expect("the refusal changed nothing");
    own.close().expect("closed");
    assert!(
        matches!(open(&vfs, "/own", Mode::External), Err(Error::InvalidArgument(_))),
        "its log would be ignored"
    );
    external.begin_run(position).expect("a run").publish().expect("published");
    external.flush().expect("flushed");
    external.close().expect("closed");
    assert!(
        matches!(open(&vfs, "/ext", Mode::Wal), Err(Error::Corruption { .. })),
        "there is no log"
    );
}

#[test]
fn a_failed_sync_poisons_the_store_before_anything_is_visible() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, "/db", Mode::Wal).expect("a new store");
    store.write(one(P, b"a", b"1"), Durability::Sync).expect("written");
    vfs.add_fault(Fault {
        ops: OpSet::SYNCS,
        when: FaultWhen::Always,
        kind: FaultKind::Io,
        path_contains: "/wal/".to_owned(),
    });
    assert!(matches!(
        store.write(one(P, b"a", b"2"), Durability::Sync),
        Err(Error::Io { op: "sync", .. })
    ));
    vfs.clear_faults();
    assert_eq!(
        value(&store, P, b"a"),
        Some(b"1".to_vec()),
        "reads go on, of what was acknowledged"
    );
    let again = store.write(one(P, b"a", b"3"), Durability::Sync);
    assert!(
        matches!(&again, Err(Error::Poisoned { reason }) if reason.contains("sync")),
        "{again:?}"
    );
    assert!(matches!(store.close(), Err(Error::Poisoned { .. })), "and the end says so");
}

#[test]
fn many_writers_share_syncs_and_every_one_of_them_gets_its_own_numbers() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let vfs: Arc<dyn Vfs> = Arc::new(RealVfs::new());
    let store = Store::open(Arc::clone(&vfs), dir.path(), options(Mode::Wal), Executor::Threads)
        .expect("a new store");
    let threads: Vec<_> = (0..8_u8)
        .map(|thread| {
            let store = store.clone();
            std::thread::spawn(move || {
                (0..40_u8)
                    .map(|n| {
                        let numbers = store
                            .write(one(P, &[thread, n], &[n; 100]), Durability::Sync)
                            .expect("written");
                        assert_eq!(
                            value(&store, P, &[thread, n]),
                            Some(vec![n; 100]),
                            "its own write"
                        );
                        numbers.get(P).expect("touched").0
                    })
                    .collect::<Vec<u64>>()
            })
        })
        .collect();
    let mut numbers = Vec::new();
    for thread in threads {
        let own = thread.join().expect("no panic");
        assert!(own.is_sorted(), "a thread's numbers rise");
        numbers.extend(own);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=320).collect::<Vec<u64>>(), "each number once");
    drop(store);
    let store =
        Store::open(vfs, dir.path(), options(Mode::Wal), Executor::Threads).expect("recovered");
    for thread in 0..8_u8 {
        for n in 0..40_u8 {
            assert_eq!(
                value(&store, P, &[thread, n]),
                Some(vec![n; 100]),
                "thread {thread}, write {n}"
            );
        }
    }
    store.close().expect("closed");
}

#[test]
fn a_full_disk_refuses_writes_before_the_log_is_touched_and_they_work_again_once_there_is_room() {
    for op in [OpSet::NAMES, OpSet::WRITES, OpSet::SYNCS] {
        let vfs = MemVfs::new(1);
        let store = open(&vfs, "/db", Mode::Wal).expect("a new store");
        store.write(one(P, b"k", b"before"), Durability::Sync).expect("written");
        // Whatever is done to the file of the next segment fails, until there is room.
        vfs.add_fault(Fault {
            ops: op,
            when: FaultWhen::Always,
            kind: FaultKind::NoSpace,
            path_contains: "/wal/tmp/0000000000000002".to_owned(),
        });
        let mut written = 0_u32;
        let refusal = loop {
            match store.write(one(P, &written.to_le_bytes(), &[7; 1000]), Durability::Buffered) {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(&refusal, Error::NoSpace { needed: 16384, .. }), "{refusal:?}");
        assert!(
            (10..17).contains(&written),
            "{written} batches of 1000 bytes in a segment of 16 KiB"
        );
        assert_eq!(store.metrics().poisoned, None, "the store goes on");
        let again = store.write(one(P, b"k", &[7; 1000]), Durability::Sync);
        assert!(matches!(again, Err(Error::NoSpace { .. })), "{again:?}");
        assert_eq!(value(&store, P, b"k"), Some(b"before".to_vec()), "reads go on, of what was");
        vfs.clear_faults();
        let numbers = store.write(one(P, b"k", &[8; 1000]), Durability::Sync).expect("room");
        let expected = SequenceNumber(u64::from(written) + 2);
        assert_eq!(numbers.get(P), Some(expected), "the refused took no number");
        vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
        drop(store);
        let store = open(&vfs, "/db", Mode::Wal).expect("recovered");
        assert_eq!(value(&store, P, b"k"), Some(vec![8; 1000]), "and it is durable");
        assert_eq!(store.last_sequence(P), expected, "nothing of the refused is there");
    }
}

#[test]
fn a_log_above_its_budget_freezes_memtables_that_are_not_full() {
    let vfs = MemVfs::new(1);
    let dir = Path::new("/db");
    let budget =
        Options { memtable_bytes: 64 << 20, wal_max_bytes: 48 << 10, ..options(Mode::Wal) };
    let open = || Store::open(Arc::new(vfs.clone()), dir, budget.clone(), Executor::Inline);
    let store = open().expect("a new store");
    store.write(one(Q, b"cold", b"1"), Durability::Buffered).expect("written");
    let mut most = 0;
    for n in 0..400_u32 {
        store.write(one(P, &n.to_le_bytes(), &[7; 1000]), Durability::Buffered).expect("written");
        most = most.max(vfs.list(Path::new("/db/wal")).expect("there").len() - 1);
    }
    assert!(most <= 6, "{most} segments of 16 KiB where 48 KiB are allowed");
    let flushes = store.metrics().flushes;
    assert!((5..30).contains(&flushes), "{flushes} flushes for 400 KiB");
    drop(store);
    let store = open().expect("recovered");
    assert_eq!(value(&store, Q, b"cold"), Some(b"1".to_vec()), "the cold partition's");
    assert_eq!(value(&store, P, &399_u32.to_le_bytes()), Some(vec![7; 1000]), "the last");
}

#[test]
fn a_log_of_batches_far_larger_than_the_memtables_replays_within_their_limit() {
    for executor in [Executor::Inline, Executor::Threads] {
        let vfs = MemVfs::new(1);
        let open =
            || Store::open(Arc::new(vfs.clone()), Path::new("/db"), options(Mode::Wal), executor);
        let store = open().expect("a new store");
        for round in 0..12_u32 {
            let mut batch = WriteBatch::new();
            for n in 0..300_u32 {
                batch.put(P, &(round * 300 + n).to_be_bytes(), &[7; 400]).expect("small");
            }
            store.write(batch, Durability::Sync).expect("four times a memtable");
        }
        vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
        drop(store);
        let store = open().expect("recovered");
        let metrics = store.metrics();
        let one_batch = 300 * 600;
        assert!(
            metrics.active_memtable_bytes <= 2 * one_batch && metrics.frozen_memtables <= 2,
            "{} bytes and {} frozen memtables",
            metrics.active_memtable_bytes,
            metrics.frozen_memtables
        );
        for key in 0..3600_u32 {
            assert_eq!(value(&store, P, &key.to_be_bytes()), Some(vec![7; 400]), "key {key}");
        }
    }
}

/// Every version in a partition: key, sequence number, value or none for a delete.
fn versions(store: &Store) -> Vec<(Vec<u8>, u64, Option<Vec<u8>>)> {
    let view = store.view();
    let mut versions = view.versions(P, Bound::Unbounded, Bound::Unbounded).expect("a partition");
    let mut all = Vec::new();
    let mut there = versions.seek_to_first().expect("readable");
    while there {
        let value = versions.value().map(<[u8]>::to_vec);
        all.push((versions.key().to_vec(), versions.sequence().0, value));
        there = versions.next().expect("readable");
    }
    all
}

#[test]
fn of_several_operations_of_a_batch_on_one_key_only_the_last_is_ever_seen() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, "/db", Mode::Wal).expect("a new store");
    store.write(one(P, b"deleted", b"before"), Durability::Sync).expect("written");
    let mut batch = WriteBatch::new();
    // More operations than are handed on at once, and another partition's in between.
    for n in 0..40_u8 {
        batch.put(P, b"put", &[n]).expect("small");
        batch.put(P, b"deleted", &[n]).expect("small");
        batch.delete(P, if n < 39 { b"put" } else { b"deleted" }).expect("small");
        batch.put(Q, b"put", b"of another partition").expect("small");
    }
    assert_eq!(batch.len(), 160, "all of them stand in the log");
    let numbers = store.write(batch, Durability::Sync).expect("written");
    assert_eq!(numbers.get(P), Some(SequenceNumber(2)), "one number for all");
    let expected = vec![
        (b"deleted".to_vec(), 2, None),
        (b"deleted".to_vec(), 1, Some(b"before".to_vec())),
        (b"put".to_vec(), 2, Some(vec![39])),
    ];
    assert_eq!(versions(&store), expected, "in memory");
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    drop(store);
    let store = open(&vfs, "/db", Mode::Wal).expect("recovered");
    assert_eq!(versions(&store), expected, "replayed");
    store.flush().expect("flushed");
    assert_eq!(versions(&store), expected, "in a table");
    store.close().expect("closed");
}

#[test]
fn the_largest_batch_that_can_be_built_can_be_written_and_is_replayed() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, "/db", Mode::Wal).expect("a new store");
    let mut batch = WriteBatch::new();
    let mut keys = 0_u64;
    for value_bytes in [MAX_VALUE_BYTES, 1 << 20, 1 << 10, 0] {
        let value = vec![7; value_bytes];
        loop {
            let before = batch.bytes();
            match batch.put(P, &keys.to_be_bytes(), &value) {
                Ok(()) => keys += 1,
                Err(error) => {
                    let limit = MAX_BATCH_BYTES as u64;
                    assert!(
                        matches!(error, Error::TooLarge { what: "batch", size, limit: told }
                            if size > limit && told == limit),
                        "{error:?}"
                    );
                    assert_eq!(batch.bytes(), before, "the batch is as it was");
                    break;
                }
            }
        }
    }
    assert!(batch.bytes() + 64 > MAX_BATCH_BYTES, "full: {} bytes", batch.bytes());
    store.write(batch, Durability::Sync).expect("4000 segments and 2000 memtables large");
    store.write(one(P, b"after", b"1"), Durability::Sync).expect("written");
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    drop(store);
    let store = open(&vfs, "/db", Mode::Wal).expect("recovered");
    assert_eq!(value(&store, P, &0_u64.to_be_bytes()), Some(vec![7; MAX_VALUE_BYTES]), "first");
    assert_eq!(value(&store, P, &(keys - 1).to_be_bytes()), Some(Vec::new()), "last");
    assert_eq!(value(&store, P, b"after"), Some(b"1".to_vec()), "and what follows");
}
