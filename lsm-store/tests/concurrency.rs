//! Many threads on one store, with its own background threads: what each of them sees is right by itself,
//! since values follow from keys and numbers, and never goes back.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lsm_store::vfs::{MemVfs, Vfs};
use lsm_store::{
    Durability, Executor, Keep, Mode, Op, Options, PartitionId, PartitionOptions, Position,
    SequenceNumber, Store, View, WriteBatch,
};

/// Tiny, so that flushes and compactions never rest.
fn options(partitions: &[(&str, Keep)]) -> Options {
    let partitions = partitions
        .iter()
        .map(|(name, keep)| PartitionOptions { name: (*name).to_owned(), keep: *keep })
        .collect();
    Options {
        memtable_bytes: 8 * 1024,
        block_bytes: 128,
        index_partition_bytes: 128,
        table_bytes: 2048,
        base_level_bytes: 4096,
        level_ratio: 3,
        cache_bytes: 64 * 1024,
        ..Options::new(11, partitions)
    }
}

/// Readers beside a writer, flushes and compactions. Run `n` puts key `n % KEYS` with value `n`, so what
/// any view must find follows from its sequence number alone.
#[test]
fn readers_beside_a_writer_see_exactly_their_sequence_number() {
    const KEYS: u64 = 97;
    const RUNS: u64 = 4000;
    let options = options(&[("data", Keep::All)]);
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new(5));
    let store = Store::open(vfs, Path::new("/db"), options, Executor::Threads).expect("opens");
    let data = PartitionId(0);
    let key = |n: u64| (n % KEYS).to_be_bytes();
    let done = AtomicBool::new(false);
    let checked = AtomicU64::new(0);
    // What the newest write of a key is at a sequence number.
    let newest = |k: u64, at: u64| {
        (at + 1..=at + KEYS)
            .find(|n| n % KEYS == k)
            .and_then(|n| n.checked_sub(KEYS))
            .filter(|n| *n > 0)
    };
    std::thread::scope(|scope| {
        for reader in 0..2_u64 {
            let (store, done, checked) = (&store, &done, &checked);
            scope.spawn(move || {
                let mut seen = 0;
                let mut turn = reader;
                while !done.load(Ordering::Acquire) || turn < 50 {
                    let view = store.view();
                    let at = view.sequence(data).0;
                    assert!(at >= seen, "visible numbers do not fall: {at} after {seen}");
                    assert_eq!(view.position().index, at, "position and number change together");
                    seen = at;
                    let floor = store.floor(data).0;
                    let past = floor + (at - floor.min(at)) / 2;
                    let older = store.view_at(data, SequenceNumber(past));
                    for k in (0..KEYS).filter(|k| (k + turn) % 8 == 0) {
                        let found =
                            view.get(data, &k.to_be_bytes()).expect("reads").map(|f| f.sequence.0);
                        assert_eq!(found, newest(k, at), "key {k} at {at}");
                        if let Ok(older) = &older {
                            let found = older
                                .get(data, &k.to_be_bytes())
                                .expect("reads")
                                .map(|f| f.sequence.0);
                            assert_eq!(found, newest(k, past), "key {k} at {past}");
                        }
                        let now =
                            store.get(data, &k.to_be_bytes()).expect("reads").map(|f| f.sequence.0);
                        assert!(now >= newest(k, at), "key {k} falls back from {at}");
                        checked.fetch_add(1, Ordering::Relaxed);
                    }
                    let mut iter =
                        view.iter(data, Bound::Unbounded, Bound::Unbounded).expect("opens");
                    let mut keys = 0;
                    while if turn % 2 == 0 { iter.next() } else { iter.prev() }.expect("moves") {
                        let k = u64::from_be_bytes(iter.key().try_into().expect("8 bytes"));
                        assert_eq!(
                            Some(iter.sequence().0),
                            newest(k, at),
                            "key {k} scanned at {at}"
                        );
                        keys += 1;
                    }
                    assert_eq!(keys, at.min(KEYS), "all keys at {at}");
                    turn += 1;
                }
            });
        }
        for n in 1..=RUNS {
            let mut run =
                store.begin_run(Position { index: n, ..Position::default() }).expect("begins");
            run.apply(
                data,
                SequenceNumber(n),
                &[Op::Put { key: &key(n), value: &n.to_le_bytes() }],
            )
            .expect("applies");
            run.publish().expect("publishes");
            if n % 500 == 0 {
                store.set_floor(data, SequenceNumber(n - 300)).expect("raises");
            }
        }
        done.store(true, Ordering::Release);
    });
    assert!(checked.load(Ordering::Relaxed) > 100, "readers read");
    store.flush().expect("flushes");
    store.verify().expect("sound");
    let metrics = store.metrics();
    assert!(metrics.compactions > 0 && metrics.flushes > 3, "background work ran: {metrics:?}");
    assert_eq!(metrics.job_failures, 0, "without failures: {}", metrics.last_job_failure);
    store.close().expect("closes");
}

const DATA: PartitionId = PartitionId(0);
const META: PartitionId = PartitionId(1);
const WRITERS: u64 = 3;
/// Keys of each writer.
const KEYS: u64 = 40;
/// Batches of each writer.
const BATCHES: u64 = 1200;

fn key(writer: u64, k: u64) -> Vec<u8> {
    [writer.to_be_bytes(), k.to_be_bytes()].concat()
}

/// Says which key it belongs to, and the how-manieth write of it this is.
fn value(key: &[u8], turn: u64) -> Vec<u8> {
    [key, &turn.to_be_bytes(), &vec![7; usize::try_from(turn % 50).expect("small")]].concat()
}

/// The turn of a value, which must belong to `key`.
fn turn_of(key: &[u8], value: &[u8]) -> u64 {
    assert!(value.starts_with(key), "a value of another key");
    let turn = value[key.len()..][..8].try_into().expect("8 bytes");
    let turn = u64::from_be_bytes(turn);
    assert_eq!(value.len() as u64, key.len() as u64 + 8 + turn % 50, "whole");
    turn
}

/// All keys of a partition in a view, with their turns.
fn turns(view: &View, partition: PartitionId, backward: bool) -> Turns {
    let mut iter = view.iter(partition, Bound::Unbounded, Bound::Unbounded).expect("opens");
    let mut rows = Vec::new();
    while if backward { iter.prev() } else { iter.next() }.expect("moves") {
        rows.push((iter.key().to_vec(), turn_of(iter.key(), iter.value())));
    }
    if backward {
        rows.reverse();
    }
    rows
}

/// Keys in order, with their turns.
type Turns = Vec<(Vec<u8>, u64)>;

/// One reader: newest reads, views of both partitions, and a view that is kept for long.
fn read_until(done: &AtomicBool, store: &Store, reader: u64) -> u64 {
    let mut seen = std::collections::BTreeMap::new();
    let mut old: Option<(View, Turns)> = None;
    let mut rounds = 0;
    while !done.load(Ordering::Acquire) || rounds < 20 {
        for k in (0..KEYS).filter(|k| (k + rounds) % 5 == 0) {
            let key = key((reader + rounds) % WRITERS, k);
            for partition in [DATA, META] {
                let found = store.get(partition, &key).expect("reads");
                let turn = found.map_or(0, |found| turn_of(&key, &found.value));
                let last = seen.entry((partition, key.clone())).or_insert(0);
                assert!(*last <= turn, "{key:?} of {partition} went back from {last} to {turn}");
                *last = turn;
            }
        }
        let view = store.view();
        let rows = turns(&view, DATA, rounds % 2 == 0);
        // Every batch writes both, so a view that sees half of one is wrong.
        assert_eq!(rows, turns(&view, META, rounds % 3 == 0), "both partitions in one view");
        if let Some((view, rows)) = &old {
            assert_eq!(turns(view, DATA, rounds % 2 == 1), *rows, "a view never changes");
        }
        if rounds % 16 == 0 {
            old = Some((view, rows));
        }
        rounds += 1;
    }
    rounds
}

fn write_all(store: &Store, writer: u64) {
    for n in 0..BATCHES {
        let key = key(writer, n % KEYS);
        let value = value(&key, n / KEYS + 1);
        let mut batch = WriteBatch::new();
        batch.put(DATA, &key, &value).expect("fits");
        batch.put(META, &key, &value).expect("fits");
        let durability = if n % 7 == writer { Durability::Sync } else { Durability::Buffered };
        let numbers = store.write(batch, durability).expect("writes");
        let mine = numbers.get(DATA).expect("touched");
        // What was written is visible to its writer at once, and history has it under its number.
        let found = store.get(DATA, &key).expect("reads").expect("just written");
        assert_eq!((found.value.to_vec(), found.sequence), (value, mine), "reads its own write");
        if n % 300 == 299 {
            let floor = store.last_sequence(DATA).0.saturating_sub(500);
            store.set_floor(DATA, SequenceNumber(floor)).expect("raises");
        }
    }
}

#[test]
fn newest_reads_never_go_back() {
    let vfs = MemVfs::new(5);
    let options = Options {
        mode: Mode::Wal,
        wal_segment_bytes: 16 << 10,
        ..options(&[("data", Keep::All), ("meta", Keep::NewestOnly)])
    };
    let open = || {
        let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
        Store::open(vfs, Path::new("/db"), options.clone(), Executor::Threads).expect("opens")
    };
    let store = open();
    let done = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let (done, store) = (&done, &store);
                scope.spawn(move || read_until(done, store, reader))
            })
            .collect();
        let flusher = scope.spawn(|| {
            let mut flushes = 0;
            while !done.load(Ordering::Acquire) {
                store.flush().expect("flushes, whatever is written meanwhile");
                flushes += 1;
            }
            flushes
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || write_all(store, writer))
            })
            .collect();
        let written: Vec<_> =
            writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Release);
        assert!(written.iter().all(Result::is_ok), "a writer failed");
        assert!(flusher.join().expect("no panic") > 0, "flushed beside the writers");
        readers.into_iter().map(|reader| reader.join().expect("no panic")).sum::<u64>()
    });
    assert!(rounds >= 40, "{rounds} rounds of reading");
    let check = |store: &Store| {
        let rows = turns(&store.view(), DATA, false);
        assert_eq!(rows.len() as u64, WRITERS * KEYS, "all keys");
        assert!(rows.iter().all(|(_, turn)| *turn == BATCHES / KEYS), "the last turn of each");
        assert_eq!(store.last_sequence(DATA).0, WRITERS * BATCHES, "one number for each batch");
        store.verify().expect("sound");
    };
    check(&store);
    let metrics = store.metrics();
    assert!(metrics.compactions > 0 && metrics.views == 0, "{metrics:?}");
    assert_eq!(metrics.job_failures, 0, "{}", metrics.last_job_failure);
    store.close().expect("closes");
    check(&open());
}
