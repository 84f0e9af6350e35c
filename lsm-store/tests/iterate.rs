//! Iterators beside writes, flushes and compactions: what they hold, how they go on, what they cost.

use std::ops::Bound::{Excluded, Included, Unbounded};
use std::path::Path;
use std::sync::Arc;

use lsm_store::vfs::{MemVfs, Vfs};
use lsm_store::{
    Compression, Error, Executor, FillCache, IterOptions, Keep, Op, Options, PartitionId,
    PartitionOptions, Position, SequenceNumber, Store,
};

const DATA: PartitionId = PartitionId(0);

fn open(vfs: &Arc<MemVfs>) -> Store {
    let mut options =
        Options::new(7, vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }]);
    options.block_bytes = 256;
    options.index_partition_bytes = 128;
    options.restart_interval = 4;
    options.table_bytes = 4096;
    options.cache_bytes = 0;
    let vfs: Arc<dyn Vfs> = Arc::<MemVfs>::clone(vfs);
    Store::open(vfs, Path::new("/store"), options, Executor::Inline).expect("opens")
}

/// One run with one batch per number, from the one after the last on.
fn write(store: &Store, batches: &[&[Op<'_>]]) {
    let index = store.visible_position().index + 1;
    let mut run = store.begin_run(Position { index, term: 1, extra: vec![] }).expect("begins");
    for ops in batches {
        let next = run.last_sequence(DATA).0 + 1;
        run.apply(DATA, SequenceNumber(next), ops).expect("applies");
    }
    run.publish().expect("publishes");
}

fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Op<'a> {
    Op::Put { key, value }
}

fn key(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

#[test]
fn an_iterator_goes_on_with_the_tables_of_now_after_a_refresh() {
    let store = open(&Arc::new(MemVfs::new(1)));
    write(&store, &[&[put(b"a", b"1"), put(b"b", b"1"), put(b"c", b"1"), put(b"d", b"1")]]);
    let old = store.view();
    let mut iter = old.iter(DATA, Excluded(b"a"), Unbounded).expect("opens");
    assert!(iter.next().expect("moves"), "there is a first");
    assert_eq!((iter.key(), iter.age(&old)), (&b"b"[..], 0), "nothing changed yet");
    write(&store, &[&[Op::Delete { key: b"b" }, put(b"c", b"2")]]);
    assert_eq!(iter.age(&old), 0, "a write alone leaves nothing behind");
    store.flush().expect("flushes");
    assert!(iter.age(&old) > 0, "the memtable it reads was replaced by a table");
    assert!(iter.refresh(&old).expect("moves"), "still there");
    assert_eq!((iter.key(), iter.value(), iter.age(&old)), (&b"b"[..], &b"1"[..], 0));
    let new = store.view();
    assert!(iter.refresh(&new).expect("moves"), "there is one after it");
    assert_eq!((iter.key(), iter.value()), (&b"c"[..], &b"2"[..]), "b is gone, c is newer");
    assert!(!iter.prev().expect("moves"), "the bounds stay");
    assert!(!iter.refresh(&new).expect("moves"), "on no key it stays on none");
    assert!(!iter.seek_for_prev(b"b").expect("moves"), "b is gone");
    assert!(iter.seek_to_last().expect("moves"), "d");
    write(&store, &[&[Op::Delete { key: b"d" }]]);
    assert!(iter.refresh(&store.view()).expect("moves"), "there is one before it");
    assert_eq!(iter.key(), b"c", "after a move backward it goes on backward");
}

/// Two versions of each key, so that backward an iterator is past the entry it stands on.
#[test]
fn a_refresh_goes_on_backward_from_a_key_that_is_gone_in_memory_as_in_tables() {
    for flushed in [false, true] {
        let store = open(&Arc::new(MemVfs::new(1)));
        for value in [b"1", b"2"] {
            write(&store, &[&[put(b"a", value), put(b"b", value), put(b"c", value)]]);
        }
        if flushed {
            store.flush().expect("flushes");
        }
        let context = format!("flushed: {flushed}");
        let mut iter = store.view().iter(DATA, Unbounded, Unbounded).expect("opens");
        assert!(iter.prev().expect("moves") && iter.prev().expect("moves"), "{context}: two");
        assert_eq!((iter.key(), iter.value()), (&b"b"[..], &b"2"[..]), "{context}");
        write(&store, &[&[Op::Delete { key: b"b" }]]);
        assert!(iter.refresh(&store.view()).expect("moves"), "{context}: one before it");
        assert_eq!((iter.key(), iter.value()), (&b"a"[..], &b"2"[..]), "{context}: backward");
        assert!(iter.next().expect("moves"), "{context}: one after it");
        assert_eq!(iter.key(), b"c", "{context}: and forward again");
    }
}

#[test]
fn changes_come_by_key_with_deletes_and_only_above_the_floor() {
    let store = open(&Arc::new(MemVfs::new(1)));
    write(&store, &[&[put(b"a", b"1"), put(b"b", b"1")], &[put(b"b", b"2")]]);
    store.flush().expect("flushes");
    write(&store, &[&[Op::Delete { key: b"a" }], &[put(b"c", b"4"), put(b"b", b"4")]]);
    let view = store.view();
    let changes = |from| {
        let mut iter = view.changes(DATA, SequenceNumber(from), Unbounded, Unbounded)?;
        let mut all = Vec::new();
        while iter.next()? {
            all.push((iter.key().to_vec(), iter.sequence().0, iter.value().map(<[u8]>::to_vec)));
        }
        Ok::<_, Error>(all)
    };
    let row = |key: &[u8], sequence, value: Option<&[u8]>| {
        (key.to_vec(), sequence, value.map(<[u8]>::to_vec))
    };
    let expected = vec![
        row(b"a", 3, None),
        row(b"b", 4, Some(b"4")),
        row(b"b", 2, Some(b"2")),
        row(b"c", 4, Some(b"4")),
    ];
    assert_eq!(changes(2).expect("reads"), expected, "since 2");
    assert_eq!(changes(5).expect("reads"), vec![], "nothing since");
    store.set_floor(DATA, SequenceNumber(2)).expect("raises");
    let refused = changes(2);
    assert!(matches!(refused, Err(Error::Compacted { asked: 2, floor: 3 })), "{refused:?}");
    assert_eq!(changes(3).expect("reads").len(), 3, "above the floor");
}

/// More versions than are stepped over one by one, above, within and below what is wanted.
#[test]
fn wanted_versions_are_found_among_many_that_are_not() {
    let store = open(&Arc::new(MemVfs::new(1)));
    for n in 1..=60_u8 {
        write(&store, &[&[put(b"a", &[n]), put(b"b", &[n])]]);
    }
    let view = store.view_at(DATA, SequenceNumber(40)).expect("all is history");
    let mut changes =
        view.changes(DATA, SequenceNumber(21), Included(b"a"), Unbounded).expect("above the floor");
    for key in [b"a", b"b"] {
        for n in (21..=40).rev() {
            assert!(changes.next().expect("moves"), "{n} is wanted");
            assert_eq!((changes.key(), changes.sequence().0), (&key[..], n), "newest first");
            assert_eq!(changes.value(), Some(&[u8::try_from(n).expect("small")][..]), "{n}");
        }
    }
    assert!(!changes.next().expect("moves"), "none is left");
    assert!(changes.seek(b"").expect("moves"), "from the lower bound");
    assert_eq!((changes.key(), changes.sequence().0), (&b"a"[..], 40), "the newest wanted");
    assert!(changes.next_key().expect("moves"), "there is another key");
    assert_eq!((changes.key(), changes.sequence().0), (&b"b"[..], 40), "all of a is passed");
    let mut above = view.versions(DATA, Excluded(b"a"), Unbounded).expect("opens");
    assert!(above.seek(b"a").expect("moves"), "from the lower bound");
    assert_eq!(above.key(), b"b", "a is out of bounds");
}

/// Counts calls of the file system: what is passed over is not read.
#[test]
fn parts_of_tables_outside_the_bounds_or_without_changes_are_not_read() {
    const KEYS: u32 = 4000;
    let vfs = Arc::new(MemVfs::new(1));
    let store = open(&vfs);
    let keys: Vec<[u8; 4]> = (0..KEYS).map(key).collect();
    let ops: Vec<Op<'_>> = keys.iter().map(|k| put(k, b"a value of some length")).collect();
    write(&store, &[&ops]);
    store.flush().expect("flushes");
    let last_sequence = store.view().sequence(DATA).0;
    write(&store, &[&[put(&key(1000), b"new")]]);
    store.flush().expect("flushes");
    let view = store.view();
    let before = vfs.calls();
    let mut iter = view.iter(DATA, Included(&key(500)), Excluded(&key(510))).expect("opens");
    let mut rows = 0;
    while iter.next().expect("moves") {
        rows += 1;
    }
    let range = vfs.calls() - before;
    assert_eq!(rows, 10, "the range");
    assert!(range <= 6, "10 neighbours took {range} reads");
    let before = vfs.calls();
    let mut iter = view.iter(DATA, Included(&key(500)), Excluded(&key(510))).expect("opens");
    while iter.prev().expect("moves") {
        rows += 1;
    }
    let range = vfs.calls() - before;
    assert_eq!(rows, 20, "the range, backward");
    assert!(range <= 6, "10 neighbours backward took {range} reads");
    let before = vfs.calls();
    let from = SequenceNumber(last_sequence + 1);
    let mut changes = view.changes(DATA, from, Unbounded, Unbounded).expect("opens");
    assert!(changes.next().expect("moves"), "one change");
    assert_eq!(changes.key(), key(1000), "the change");
    assert!(!changes.next().expect("moves"), "no other");
    let took = vfs.calls() - before;
    assert!(took <= 2, "one change took {took} reads");
}

/// A table of about 1 MiB and a cache of `cache_bytes`.
fn large(vfs: &Arc<MemVfs>, cache_bytes: usize) -> Store {
    let mut options =
        Options::new(7, vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }]);
    options.block_bytes = 4096;
    options.cache_bytes = cache_bytes;
    options.compression = Compression::None;
    let shared: Arc<dyn Vfs> = Arc::<MemVfs>::clone(vfs);
    let store = Store::open(shared, Path::new("/store"), options, Executor::Inline).expect("opens");
    let keys: Vec<[u8; 4]> = (0..10_000).map(key).collect();
    let ops: Vec<Op<'_>> = keys.iter().map(|k| put(k, &[7; 100])).collect();
    write(&store, &[&ops]);
    store.flush().expect("flushes");
    store
}

/// Calls of the file system that a walk over everything takes.
fn walk_all(vfs: &MemVfs, store: &Store, options: IterOptions) -> u64 {
    let before = vfs.calls();
    let view = store.view();
    let mut iter = view.iter_with(DATA, Unbounded, Unbounded, options).expect("opens");
    let mut rows = 0;
    while iter.next().expect("moves") {
        rows += 1;
    }
    assert_eq!(rows, 10_000, "all rows");
    vfs.calls() - before
}

#[test]
fn a_long_walk_reads_many_blocks_at_once_and_pushes_nothing_out_of_the_cache() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = large(&vfs, 600_000);
    let hot = || {
        let before = vfs.calls();
        for n in 9000..9500 {
            store.get(DATA, &key(n)).expect("reads").expect("is there");
        }
        vfs.calls() - before
    };
    hot();
    assert_eq!(hot(), 0, "about 14 blocks are cached");
    let walk = walk_all(&vfs, &store, IterOptions::default());
    assert!(walk < 120, "about 290 blocks took {walk} reads");
    assert_eq!(hot(), 0, "they are still cached");
}

#[test]
fn walks_are_cached_while_there_is_room_or_when_asked() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = large(&vfs, 8 << 20);
    let never = IterOptions::default().fill_cache(FillCache::Never);
    walk_all(&vfs, &store, never);
    assert!(walk_all(&vfs, &store, never) > 5, "nothing was kept");
    walk_all(&vfs, &store, IterOptions::default());
    assert_eq!(walk_all(&vfs, &store, never), 0, "all was kept: there is room");
}

#[test]
fn a_field_of_deletes_beside_a_range_is_not_walked_through() {
    let vfs = Arc::new(MemVfs::new(1));
    let store = large(&vfs, 0);
    let keys: Vec<[u8; 4]> = (0..10_000).map(key).collect();
    let deletes = |range: &[[u8; 4]]| {
        let ops: Vec<Op<'_>> = range.iter().map(|key| Op::Delete { key }).collect();
        write(&store, &[&ops]);
    };
    deletes(&keys[..5000]);
    deletes(&keys[5010..]);
    store.flush().expect("flushes");
    let view = store.view();
    for backward in [false, true] {
        let before = vfs.calls();
        let bounds = (Included(&keys[4990][..]), Excluded(&keys[5020][..]));
        let mut iter = view.iter(DATA, bounds.0, bounds.1).expect("opens");
        let mut rows = 0;
        while if backward { iter.prev() } else { iter.next() }.expect("moves") {
            rows += 1;
        }
        assert_eq!(rows, 10, "what is left");
        let took = vfs.calls() - before;
        assert!(took <= 12, "a range beside 9990 deletes took {took} reads");
    }
}
