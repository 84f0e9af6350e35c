//! A workload that is a pure function of the batch's number, its model, and the comparison of a store with
//! the model: shared by the crash tests and the corruption tests.

use std::collections::BTreeMap;
use std::ops::Bound::Unbounded;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use lsm_store::rng::SplitMix64;
use lsm_store::vfs::MemVfs;
use lsm_store::{
    Durability, Error, Executor, Iter, Keep, Mode, Op, Options, PartitionId, PartitionOptions,
    Position, SequenceNumber, Store, View, WriteBatch,
};

/// The partition that keeps history.
pub(crate) const DATA: PartitionId = PartitionId(0);
/// The partition that keeps the newest versions only.
pub(crate) const META: PartitionId = PartitionId(1);

/// Batches in the whole workload.
pub(crate) const BATCHES: u64 = 60;

/// Whether everything is to be run instead of a fixed sample.
pub(crate) fn exhaustive() -> bool {
    std::env::var_os("LSM_STORE_EXHAUSTIVE").is_some()
}

/// What was acknowledged as durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Acked {
    /// Batches up to this number.
    pub(crate) batches: u64,
    /// The retention floor of the data partition.
    pub(crate) floor: u64,
}

/// The content of a partition: key to sequence number and value.
pub(crate) type Content = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

/// What a number of batches leaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// Per partition its content.
    pub(crate) maps: [Content; 2],
    /// Per partition the last sequence number.
    pub(crate) last: [u64; 2],
}

/// One operation: partition, key, value (none: delete).
type Operation = (PartitionId, Vec<u8>, Option<Vec<u8>>);

/// Keys that are prefixes of keys, the empty one, and runs of the largest byte.
fn key(n: u64) -> Vec<u8> {
    const KEYS: [&[u8]; 12] = [
        b"",
        b"a",
        b"aa",
        b"aaa",
        b"ab",
        b"b",
        b"key-0",
        b"key-00",
        b"key-1",
        b"z",
        b"\xff",
        b"\xff\xff",
    ];
    KEYS[usize::try_from(n).unwrap_or(0) % KEYS.len()].to_vec()
}

/// The operations of batch `number`.
pub(crate) fn batch(number: u64) -> Vec<Operation> {
    let mut rng = SplitMix64::new(number);
    (0..1 + rng.below(4))
        .map(|_| {
            let partition = if rng.chance(1, 4) { META } else { DATA };
            let key = key(rng.below(12));
            let value = (!rng.chance(1, 4)).then(|| {
                let len = if rng.chance(1, 8) { 300 } else { rng.below(40) };
                let tag = rng.next_u64().to_le_bytes();
                (0..len).map(|i| tag[usize::try_from(i % 3).unwrap_or(0)]).collect()
            });
            (partition, key, value)
        })
        .collect()
}

/// The state after the first `number` batches.
pub(crate) fn model(number: u64) -> &'static State {
    static STATES: OnceLock<Vec<State>> = OnceLock::new();
    let states = STATES.get_or_init(|| {
        let mut states = vec![State::default()];
        for number in 1..=BATCHES {
            let mut state = states.last().cloned().unwrap_or_default();
            let ops = batch(number);
            for partition in [DATA, META] {
                let slot = usize::from(partition.0);
                if ops.iter().any(|(other, ..)| *other == partition) {
                    state.last[slot] += 1;
                }
                let sequence = state.last[slot];
                for (_, key, value) in ops.iter().filter(|(other, ..)| *other == partition) {
                    match value {
                        Some(value) => {
                            state.maps[slot].insert(key.clone(), (sequence, value.clone()))
                        }
                        None => state.maps[slot].remove(key),
                    };
                }
            }
            states.push(state);
        }
        states
    });
    &states[usize::try_from(number).unwrap_or(usize::MAX)]
}

/// Small enough that a few batches make tables and compactions.
pub(crate) fn options(mode: Mode) -> Options {
    let partition = |name: &str, keep| PartitionOptions { name: name.to_owned(), keep };
    let partitions = vec![partition("data", Keep::All), partition("meta", Keep::NewestOnly)];
    Options {
        mode,
        wal_segment_bytes: 4096,
        memtable_bytes: 1000,
        block_bytes: 128,
        index_partition_bytes: 128,
        restart_interval: 3,
        table_bytes: 1024,
        base_level_bytes: 2048,
        level_ratio: 3,
        l0_trigger: 2,
        l0_stop: 6,
        cache_bytes: 16 << 10,
        // The device is to be met when it is full, not before.
        space_reserve_bytes: Some(0),
        ..Options::new(0xfeed, partitions)
    }
}

pub(crate) fn open(vfs: &MemVfs, mode: Mode) -> Result<Store, Error> {
    Store::open(Arc::new(vfs.clone()), Path::new("/db"), options(mode), Executor::Inline)
}

/// Compares the store with the model and returns the number of batches it holds. Wrong data panics; what
/// the store reports is returned.
pub(crate) fn check(store: &Store, mode: Mode, acked: Acked, context: &str) -> Result<u64, Error> {
    let position = store.visible_position();
    let batches = position.index;
    assert!(
        batches >= acked.batches,
        "{context}: {batches} batches, {} were acknowledged",
        acked.batches
    );
    assert!(batches <= BATCHES, "{context}: {batches} batches, more than were ever written");
    if mode == Mode::External {
        assert_eq!(
            store.durable_position(),
            position,
            "{context}: nothing above the durable position"
        );
        if batches > 0 {
            assert_eq!(
                position.extra,
                extra(batches),
                "{context}: what was recorded with the position"
            );
        }
    }
    let floor = store.floor(DATA).0;
    assert!(floor >= acked.floor, "{context}: floor {floor}, {} was acknowledged", acked.floor);
    compare(store, batches, context)?;
    Ok(batches)
}

/// Compares everything readable with the model after `batches`.
pub(crate) fn compare(store: &Store, batches: u64, context: &str) -> Result<(), Error> {
    let state = model(batches);
    let view = store.view();
    for (partition, slot) in [(DATA, 0), (META, 1)] {
        assert_eq!(
            store.last_sequence(partition).0,
            state.last[slot],
            "{context}: last number of {partition}"
        );
        compare_view(&view, partition, &state.maps[slot], context)?;
        for n in 0..12 {
            let found = store
                .get(partition, &key(n))?
                .map(|found| (found.sequence.0, found.value.to_vec()));
            assert_eq!(
                found,
                state.maps[slot].get(&key(n)).cloned(),
                "{context}: {partition}, key {:?}",
                key(n)
            );
        }
    }
    let (floor, last) = (store.floor(DATA).0, state.last[0]);
    // A floor is durable at once, the batches it was computed from perhaps not: after a crash without a
    // log it may be above what is there, until the caller has applied its log again.
    let readable = if floor <= last { vec![floor, floor.midpoint(last), last] } else { Vec::new() };
    for sequence in readable {
        let view = store.view_at(DATA, SequenceNumber(sequence))?;
        let then = (0..=batches).map(model).find(|state| state.last[0] == sequence);
        let then = then.unwrap_or_else(|| unreachable!("{context}: number {sequence} was given"));
        compare_view(&view, DATA, &then.maps[0], &format!("{context}, history at {sequence}"))?;
    }
    if floor > 0 && floor <= last {
        let below = store.view_at(DATA, SequenceNumber(floor - 1));
        assert!(
            matches!(below, Err(Error::Compacted { .. })),
            "{context}: below the floor: {below:?}"
        );
    }
    Ok(())
}

fn compare_view(
    view: &View,
    partition: PartitionId,
    expected: &Content,
    context: &str,
) -> Result<(), Error> {
    let mut iter = view.iter(partition, Unbounded, Unbounded)?;
    let forward = collect(&mut iter, Iter::next)?;
    let wanted: Vec<_> = expected.iter().map(|(k, (s, v))| (k.clone(), *s, v.clone())).collect();
    assert_eq!(forward, wanted, "{context}: {partition}, forward");
    let mut iter = view.iter(partition, Unbounded, Unbounded)?;
    let mut backward = collect(&mut iter, Iter::prev)?;
    backward.reverse();
    assert_eq!(backward, wanted, "{context}: {partition}, backward");
    Ok(())
}

type Row = (Vec<u8>, u64, Vec<u8>);

fn collect(iter: &mut Iter, step: fn(&mut Iter) -> Result<bool, Error>) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    while step(iter)? {
        rows.push((iter.key().to_vec(), iter.sequence().0, iter.value().to_vec()));
    }
    Ok(rows)
}

fn extra(number: u64) -> Vec<u8> {
    (number * 77).to_le_bytes().to_vec()
}

/// Writes batch `number`.
pub(crate) fn write(
    store: &Store,
    mode: Mode,
    number: u64,
    durability: Durability,
) -> Result<(), Error> {
    let ops = batch(number);
    match mode {
        Mode::Wal => {
            let mut batch = WriteBatch::new();
            for (partition, key, value) in &ops {
                match value {
                    Some(value) => batch.put(*partition, key, value)?,
                    None => batch.delete(*partition, key)?,
                }
            }
            store.write(batch, durability)?;
        }
        Mode::External => {
            let position = Position { index: number, term: 1, extra: extra(number) };
            let mut run = store.begin_run(position)?;
            for partition in [DATA, META] {
                let ops: Vec<Op<'_>> = ops
                    .iter()
                    .filter(|(other, ..)| *other == partition)
                    .map(|(_, key, value)| match value {
                        Some(value) => Op::Put { key, value },
                        None => Op::Delete { key },
                    })
                    .collect();
                if !ops.is_empty() {
                    let sequence = SequenceNumber(run.last_sequence(partition).0 + 1);
                    run.apply(partition, sequence, &ops)?;
                }
            }
            run.publish()?;
        }
    }
    Ok(())
}

/// Opens the store and does what is left of the workload up to batch `to`; see [`work`]. At the end the
/// store is closed.
pub(crate) fn run(
    vfs: &MemVfs,
    mode: Mode,
    to: u64,
    ack: &mut dyn FnMut(Acked),
) -> Result<(), Error> {
    let mut store = Some(open(vfs, mode)?);
    work(vfs, &mut store, mode, to, ack)?;
    store.map_or(Ok(()), Store::close)
}

/// Does what is left of the workload up to batch `to`: writes, flushes, floors, clean restarts; compares
/// with the model on the way; tells `ack` whenever more was acknowledged as durable. On an error `store`
/// holds the store that gave it, unless that was closed.
///
/// When a write fails, what is visible is compared once more: an error is not an excuse for wrong data.
pub(crate) fn work(
    vfs: &MemVfs,
    slot: &mut Option<Store>,
    mode: Mode,
    to: u64,
    ack: &mut dyn FnMut(Acked),
) -> Result<(), Error> {
    let mut acked = Acked::default();
    let mut store = slot.clone().unwrap_or_else(|| unreachable!("the store is open"));
    let mut number = compare_now(&store, "at the start of the workload")?;
    while number < to {
        number += 1;
        let durability =
            if number.is_multiple_of(3) { Durability::Sync } else { Durability::Buffered };
        if let Err(error) = write(&store, mode, number, durability) {
            let visible = store.visible_position().index;
            assert!(visible < number, "batch {number} failed with {error}, but is visible");
            if let Err(other) = compare(&store, visible, "after a failed write") {
                assert!(matches!(other, Error::Io { .. }), "reading after {error}: {other}");
            }
            return Err(error);
        }
        if mode == Mode::Wal && durability == Durability::Sync {
            acked.batches = number;
            ack(acked);
        }
        if number.is_multiple_of(7) {
            let position = store.flush()?;
            assert_eq!(position.index, number, "a flush reaches what is published");
            acked.batches = number;
            ack(acked);
        }
        if number.is_multiple_of(11) {
            let floor = store.last_sequence(DATA).0 - 3;
            store.set_floor(DATA, SequenceNumber(floor))?;
            acked.floor = floor;
            ack(acked);
        }
        if number.is_multiple_of(23) {
            store.flush()?;
            acked.batches = number;
            ack(acked);
            drop(slot.take());
            store.close()?;
            store = open(vfs, mode)?;
            *slot = Some(store.clone());
            let found = check(&store, mode, acked, "after a clean restart")?;
            assert_eq!(found, number, "a clean restart loses nothing");
        }
    }
    store.flush()?;
    ack(Acked { batches: to, ..acked });
    Ok(())
}

/// Compares everything readable with the model after as many batches as are visible, and returns those.
fn compare_now(store: &Store, context: &str) -> Result<u64, Error> {
    let batches = store.visible_position().index;
    compare(store, batches, context)?;
    Ok(batches)
}
