//! The store against a model: a map from (partition, key, sequence number) to values, with a floor and
//! views. Steps are drawn and shrunk by proptest; options are tiny and drawn too, so that memtables,
//! blocks, index partitions, tables and levels all have boundaries within a few dozen keys.
//!
//! `PROPTEST_CASES` makes it longer; a failure prints the shrunk steps and is kept in
//! `proptest-regressions`.

#![expect(clippy::panic, reason = "helpers of tests fail by panicking")]

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lsm_store::vfs::{MemVfs, Vfs};
use lsm_store::{
    Compression, Error, Executor, Iter, Keep, Op, Options, PartitionId, PartitionOptions, Position,
    SequenceNumber, Store, View,
};
use proptest::prelude::*;
use proptest::sample::Index;

const PARTITIONS: [Keep; 2] = [Keep::All, Keep::NewestOnly];

type Key = Vec<u8>;
type Row = (Key, Vec<u8>, u64);
type Rows = Vec<Row>;
type Versions = BTreeMap<(Key, Reverse<u64>), Option<Vec<u8>>>;
/// Puts and deletes of one batch.
type Ops = Vec<(Key, Option<Vec<u8>>)>;
/// A batch: partition, sequence number, operations.
type Numbered = (usize, u64, Ops);

// ---------------------------------------------------------------- the model

#[derive(Clone, Default)]
struct Model {
    versions: [Versions; 2],
    last: [u64; 2],
    floor: u64,
    position: u64,
}

impl Model {
    fn get(&self, partition: usize, key: &[u8], at: u64) -> Option<(Vec<u8>, u64)> {
        let range = (key.to_vec(), Reverse(at))..=(key.to_vec(), Reverse(0));
        let ((_, Reverse(sequence)), value) = self.versions[partition].range(range).next()?;
        value.clone().map(|value| (value, *sequence))
    }

    fn rows(&self, partition: usize, at: u64) -> Rows {
        let mut keys: Vec<&Key> = self.versions[partition].keys().map(|(key, _)| key).collect();
        keys.dedup();
        keys.into_iter()
            .filter_map(|k| {
                self.get(partition, k, at).map(|(value, sequence)| (k.clone(), value, sequence))
            })
            .collect()
    }
}

// ---------------------------------------------------------------- steps

#[derive(Clone, Debug)]
struct Batch {
    partition: usize,
    gap: u64,
    ops: Ops,
}

#[derive(Clone, Debug)]
enum Move {
    Next,
    Prev,
    First,
    Last,
    Seek(Key),
    SeekForPrev(Key),
    SetBounds(Bound<Key>, Bound<Key>),
}

#[derive(Clone, Debug)]
enum Step {
    Run { batches: Vec<Batch>, read: Vec<Key> },
    Flush,
    StartFlush,
    Reopen,
    SetFloor(Index),
    TakeView,
    TakeViewAt(Index),
    DropView(Index),
    Read { view: Index, partition: usize, keys: Vec<Key> },
    Scan { view: Index, partition: usize },
    Walk { view: Index, partition: usize, moves: Vec<Move> },
    Verify,
}

fn key() -> impl Strategy<Value = Key> {
    let byte = || prop_oneof![Just(0_u8), Just(b'a'), Just(b'b'), Just(0xFF)];
    prop_oneof![
        8 => proptest::collection::vec(byte(), 0..4),
        1 => proptest::collection::vec(byte(), 8..11),
        1 => proptest::collection::vec(byte(), 0..2).prop_map(|tail| [vec![b'p'; 300], tail].concat()),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => Just(Vec::new()),
        8 => proptest::collection::vec(any::<u8>(), 1..12),
        1 => (any::<u8>(), 100..400_usize).prop_map(|(b, n)| vec![b; n]),
    ]
}

fn batch() -> impl Strategy<Value = Batch> {
    let op = (key(), proptest::option::weighted(0.75, value()));
    (prop_oneof![3 => Just(0_usize), 1 => Just(1)], 1..3_u64, proptest::collection::vec(op, 0..8))
        .prop_map(|(partition, gap, ops)| Batch { partition, gap, ops })
}

fn bound() -> impl Strategy<Value = Bound<Key>> {
    prop_oneof![
        Just(Bound::Unbounded),
        key().prop_map(Bound::Included),
        key().prop_map(Bound::Excluded)
    ]
}

fn movement() -> impl Strategy<Value = Move> {
    prop_oneof![
        6 => Just(Move::Next),
        6 => Just(Move::Prev),
        1 => Just(Move::First),
        1 => Just(Move::Last),
        2 => key().prop_map(Move::Seek),
        2 => key().prop_map(Move::SeekForPrev),
        1 => (bound(), bound()).prop_map(|(lower, upper)| Move::SetBounds(lower, upper)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let partition = || 0..2_usize;
    let keys = || proptest::collection::vec(key(), 0..6);
    prop_oneof![
        20 => (proptest::collection::vec(batch(), 0..5), keys()).prop_map(|(batches, read)| Step::Run { batches, read }),
        2 => Just(Step::Flush),
        2 => Just(Step::StartFlush),
        1 => Just(Step::Reopen),
        2 => any::<Index>().prop_map(Step::SetFloor),
        2 => Just(Step::TakeView),
        3 => any::<Index>().prop_map(Step::TakeViewAt),
        2 => any::<Index>().prop_map(Step::DropView),
        5 => (any::<Index>(), partition(), keys()).prop_map(|(view, partition, keys)| Step::Read { view, partition, keys }),
        3 => (any::<Index>(), partition()).prop_map(|(view, partition)| Step::Scan { view, partition }),
        5 => (any::<Index>(), partition(), proptest::collection::vec(movement(), 1..30))
            .prop_map(|(view, partition, moves)| Step::Walk { view, partition, moves }),
        1 => Just(Step::Verify),
    ]
}

fn options() -> impl Strategy<Value = Options> {
    let layout =
        (1..200_usize, 1..6_usize, 1..150_usize, 64..600_u64, any::<bool>(), any::<bool>());
    let tree = (64..2000_usize, 1..5_usize, 64..2000_u64, 2..5_u64, 1..3_usize);
    (layout, tree).prop_map(
        |((block, restart, index, table, lz4, cache), (memtable, l0, base, ratio, frozen))| {
            let partitions = PARTITIONS.iter().enumerate();
            let partitions = partitions
                .map(|(i, keep)| PartitionOptions { name: format!("p{i}"), keep: *keep })
                .collect();
            let mut options = Options::new(11, partitions);
            options.block_bytes = block;
            options.restart_interval = restart;
            options.index_partition_bytes = index;
            options.table_bytes = table;
            options.compression = if lz4 { Compression::Lz4 } else { Compression::None };
            options.cache_bytes = if cache { 20_000 } else { 0 };
            options.memtable_bytes = memtable;
            options.l0_trigger = l0;
            options.base_level_bytes = base;
            options.level_ratio = ratio;
            options.frozen_max = frozen;
            options
        },
    )
}

// ---------------------------------------------------------------- the harness

struct Harness {
    vfs: Arc<MemVfs>,
    options: Options,
    executor: Executor,
    store: Option<Store>,
    model: Model,
    /// Every run, so that what was not flushed can be applied again after a reopening.
    log: Vec<(u64, Vec<Numbered>)>,
    views: Vec<(View, [u64; 2])>,
}

fn partition_id(partition: usize) -> PartitionId {
    PartitionId(u8::try_from(partition).expect("small"))
}

fn as_refs(bounds: &(Bound<Key>, Bound<Key>)) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (bounds.0.as_ref().map(Vec::as_slice), bounds.1.as_ref().map(Vec::as_slice))
}

fn position(index: u64) -> Position {
    Position { index, term: index / 7, extra: index.to_le_bytes().to_vec() }
}

fn current(iter: &Iter) -> Option<Row> {
    assert_eq!(iter.value(), &iter.value_bytes()[..], "both forms of the value");
    iter.valid().then(|| (iter.key().to_vec(), iter.value().to_vec(), iter.sequence().0))
}

impl Harness {
    fn new(options: Options, executor: Executor) -> Self {
        let vfs = Arc::new(MemVfs::new(3));
        let mut harness = Self {
            vfs,
            options,
            executor,
            store: None,
            model: Model::default(),
            log: Vec::new(),
            views: Vec::new(),
        };
        harness.open();
        harness
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("open")
    }

    fn open(&mut self) {
        let vfs: Arc<dyn Vfs> = Arc::<MemVfs>::clone(&self.vfs);
        let store =
            Store::open(vfs, Path::new("/db"), self.options.clone(), self.executor).expect("opens");
        let durable = store.durable_position();
        assert_eq!(store.visible_position(), durable, "nothing but what is flushed is visible");
        if durable.index > 0 {
            assert_eq!(durable, position(durable.index), "term and extra come back");
        }
        self.store = Some(store);
        let log = std::mem::take(&mut self.log);
        for (index, batches) in &log {
            if *index > durable.index {
                self.apply(*index, batches, &[]);
            }
        }
        self.log = log;
        assert_eq!(self.store().floor(partition_id(0)).0, self.model.floor, "floor is durable");
    }

    fn apply(&self, index: u64, batches: &[Numbered], read: &[Key]) {
        let mut run = self.store().begin_run(position(index)).expect("begins");
        for (partition, sequence, ops) in batches {
            let ops: Vec<Op<'_>> = ops
                .iter()
                .map(|(key, value)| match value {
                    Some(value) => Op::Put { key, value },
                    None => Op::Delete { key },
                })
                .collect();
            run.apply(partition_id(*partition), SequenceNumber(*sequence), &ops).expect("applies");
        }
        let keys: Vec<&[u8]> = read.iter().map(Vec::as_slice).collect();
        for partition in 0..2 {
            let found = run.multi_get(partition_id(partition), &keys).expect("reads");
            for (key, found) in read.iter().zip(found) {
                let found = found.map(|f| (f.value.to_vec(), f.sequence.0));
                assert_eq!(
                    found,
                    self.model.get(partition, key, u64::MAX),
                    "run reads {key:?} of {partition}"
                );
            }
        }
        run.publish().expect("publishes");
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Run { batches, read } => {
                let index = self.model.position + 1;
                let mut numbered = Vec::new();
                for batch in batches {
                    let last = &mut self.model.last[batch.partition];
                    *last += batch.gap;
                    for (key, value) in &batch.ops {
                        let versions = &mut self.model.versions[batch.partition];
                        versions.insert((key.clone(), Reverse(*last)), value.clone());
                    }
                    numbered.push((batch.partition, *last, batch.ops.clone()));
                }
                self.model.position = index;
                self.apply(index, &numbered, read);
                self.log.push((index, numbered));
                assert_eq!(self.store().visible_position(), position(index), "visible");
            }
            Step::Flush => {
                let reached = self.store().flush().expect("flushes");
                assert_eq!(reached.index, self.model.position, "everything is flushed");
            }
            Step::StartFlush => self.store().start_flush().expect("starts"),
            Step::Reopen => {
                self.views.clear();
                let store = self.store.take().expect("open");
                store.close().expect("closes");
                self.open();
            }
            Step::SetFloor(at) => {
                let to = u64::try_from(
                    at.index(usize::try_from(self.model.last[0]).expect("small") + 1),
                )
                .expect("small");
                self.store().set_floor(partition_id(0), SequenceNumber(to)).expect("raises");
                self.model.floor = self.model.floor.max(to);
                assert_eq!(self.store().floor(partition_id(0)).0, self.model.floor, "floor");
            }
            Step::TakeView => {
                let view = self.store().view();
                self.views.push((view, self.model.last));
            }
            Step::TakeViewAt(at) => {
                let last = self.model.last[0];
                let to = u64::try_from(at.index(usize::try_from(last).expect("small") + 2))
                    .expect("small");
                match self.store().view_at(partition_id(0), SequenceNumber(to)) {
                    Ok(view) => {
                        assert!((self.model.floor..=last).contains(&to), "granted at {to}");
                        self.views.push((view, [to, self.model.last[1]]));
                    }
                    Err(Error::FutureSequence { .. }) => assert!(to > last, "refused at {to}"),
                    Err(Error::Compacted { floor, .. }) => {
                        assert_eq!(
                            (floor, to < floor),
                            (self.model.floor, true),
                            "refused at {to}"
                        );
                    }
                    Err(e) => panic!("{e}"),
                }
            }
            Step::DropView(at) => {
                if !self.views.is_empty() {
                    self.views.swap_remove(at.index(self.views.len()));
                }
            }
            Step::Read { view, partition, keys } => {
                let (view, at) = self.view(*view);
                let refs: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
                let many = view.multi_get(partition_id(*partition), &refs).expect("reads");
                for (key, found) in keys.iter().zip(many) {
                    let expected = self.model.get(*partition, key, at[*partition]);
                    assert_eq!(
                        found.map(|f| (f.value.to_vec(), f.sequence.0)),
                        expected,
                        "view reads {key:?}"
                    );
                    let newest = self.store().get(partition_id(*partition), key).expect("reads");
                    let expected = self.model.get(*partition, key, u64::MAX);
                    assert_eq!(
                        newest.map(|f| (f.value.to_vec(), f.sequence.0)),
                        expected,
                        "newest of {key:?}"
                    );
                }
            }
            Step::Scan { view, partition } => {
                let (view, at) = self.view(*view);
                let rows = self.model.rows(*partition, at[*partition]);
                let open = || {
                    view.iter(partition_id(*partition), Bound::Unbounded, Bound::Unbounded)
                        .expect("opens")
                };
                let mut iter = open();
                let mut seen = Vec::new();
                while iter.next().expect("moves") {
                    seen.extend(current(&iter));
                }
                assert_eq!(seen, rows, "forward");
                let mut iter = open();
                let mut seen = Vec::new();
                while iter.prev().expect("moves") {
                    seen.extend(current(&iter));
                }
                seen.reverse();
                assert_eq!(seen, rows, "backward");
            }
            Step::Walk { view, partition, moves } => {
                let (view, at) = self.view(*view);
                let iter = view
                    .iter(partition_id(*partition), Bound::Unbounded, Bound::Unbounded)
                    .expect("opens");
                walk(iter, &self.model.rows(*partition, at[*partition]), moves);
            }
            Step::Verify => {
                self.store().verify().expect("sound");
            }
        }
    }

    /// A view taken before, or one of now.
    fn view(&self, at: Index) -> (View, [u64; 2]) {
        match at.index(self.views.len() + 1).checked_sub(1) {
            Some(i) => self.views[i].clone(),
            None => (self.store().view(), self.model.last),
        }
    }

    fn finish(mut self) {
        self.views.clear();
        self.step(&Step::Reopen);
        for partition in 0..2 {
            let rows = self.model.rows(partition, u64::MAX);
            for (key, value, sequence) in rows {
                let found =
                    self.store().get(partition_id(partition), &key).expect("reads").expect("there");
                assert_eq!(
                    (found.value.to_vec(), found.sequence.0),
                    (value, sequence),
                    "at the end: {key:?}"
                );
            }
        }
        self.store().verify().expect("sound");
        assert_eq!(self.store().metrics().views, 0, "no pin is left behind");
    }
}

/// Where the model's iterator stands.
#[derive(Clone, Copy)]
enum Place {
    Fresh,
    At(usize),
    End,
}

fn walk(mut iter: Iter, rows: &Rows, moves: &[Move]) {
    let mut bounds = (Bound::Unbounded, Bound::Unbounded);
    let mut place = Place::Fresh;
    for (n, movement) in moves.iter().enumerate() {
        let inside: Vec<&Row> = rows
            .iter()
            .filter(|(k, _, _)| match &bounds.0 {
                Bound::Unbounded => true,
                Bound::Included(b) => k >= b,
                Bound::Excluded(b) => k > b,
            })
            .filter(|(k, _, _)| match &bounds.1 {
                Bound::Unbounded => true,
                Bound::Included(b) => k <= b,
                Bound::Excluded(b) => k < b,
            })
            .collect();
        let at = |i: Option<usize>| i.filter(|i| *i < inside.len()).map_or(Place::End, Place::At);
        let first = at(Some(0));
        let last = at(inside.len().checked_sub(1));
        let moved = match movement {
            Move::First => {
                place = first;
                iter.seek_to_first()
            }
            Move::Last => {
                place = last;
                iter.seek_to_last()
            }
            Move::Next => {
                place = match place {
                    Place::Fresh => first,
                    Place::At(i) => at(Some(i + 1)),
                    Place::End => Place::End,
                };
                iter.next()
            }
            Move::Prev => {
                place = match place {
                    Place::Fresh => last,
                    Place::At(i) => at(i.checked_sub(1)),
                    Place::End => Place::End,
                };
                iter.prev()
            }
            Move::Seek(key) => {
                place = at(Some(inside.partition_point(|row| row.0 < *key)));
                iter.seek(key)
            }
            Move::SeekForPrev(key) => {
                place = at(inside.partition_point(|row| row.0 <= *key).checked_sub(1));
                iter.seek_for_prev(key)
            }
            Move::SetBounds(lower, upper) => {
                place = Place::Fresh;
                bounds = (lower.clone(), upper.clone());
                let (lower, upper) = as_refs(&bounds);
                iter.set_bounds(lower, upper);
                Ok(false)
            }
        };
        let expected = if let Place::At(i) = place { Some(inside[i].clone()) } else { None };
        assert_eq!(moved.expect("moves"), expected.is_some(), "move {n} of {moves:?}");
        assert_eq!(current(&iter), expected, "move {n} of {moves:?}");
    }
}

// ---------------------------------------------------------------- the tests

/// So many cases, unless the environment asks for another number.
fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let default = ProptestConfig { max_shrink_iters: 500, ..ProptestConfig::default() };
    if asked { default } else { ProptestConfig { cases, ..default } }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn the_store_is_the_model_inline(options in options(), steps in proptest::collection::vec(step(), 1..120)) {
        let mut harness = Harness::new(options, Executor::Inline);
        for step in &steps {
            harness.step(step);
        }
        harness.finish();
    }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn the_store_is_the_model_with_threads(options in options(), steps in proptest::collection::vec(step(), 1..120)) {
        let mut harness = Harness::new(options, Executor::Threads);
        for step in &steps {
            harness.step(step);
        }
        harness.finish();
    }
}

/// Readers beside a writer, flushes and compactions. Run `n` puts key `n % KEYS` with value `n`, so what
/// any view must find follows from its sequence number alone.
#[test]
fn readers_beside_a_writer_see_exactly_their_sequence_number() {
    const KEYS: u64 = 97;
    const RUNS: u64 = 4000;
    let mut options =
        Options::new(11, vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }]);
    options.memtable_bytes = 8 * 1024;
    options.block_bytes = 128;
    options.index_partition_bytes = 128;
    options.table_bytes = 2048;
    options.base_level_bytes = 4096;
    options.level_ratio = 3;
    options.cache_bytes = 64 * 1024;
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
            let mut run = store.begin_run(position(n)).expect("begins");
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
