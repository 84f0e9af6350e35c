//! Copies of a store: checkpoints open as stores of their own, are received piece by piece, and replace
//! another store in one step, whatever call the machine stops or fails at.

#![expect(clippy::panic, reason = "helpers of tests fail by panicking")]

#[path = "common/commit.rs"]
mod commit;

use std::collections::BTreeMap;
use std::ops::Bound::Unbounded;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsm_store::vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, MemVfs, OpSet, Vfs};
use lsm_store::{
    Checkpoint, Error, Executor, IncomingSnapshot, Keep, Mode, Op, Options, PartitionId,
    PartitionOptions, Position, Result, SequenceNumber, StagedSnapshot, Store,
};

use crate::commit::commit;

const DATA: PartitionId = PartitionId(0);
const META: PartitionId = PartitionId(1);
const KEYS: u64 = 17;

fn options(store_id: u128, mode: Mode) -> Options {
    let partition = |name: &str, keep| PartitionOptions { name: name.to_owned(), keep };
    Options {
        mode,
        memtable_bytes: 1500,
        wal_segment_bytes: 4096,
        block_bytes: 100,
        index_partition_bytes: 64,
        restart_interval: 2,
        table_bytes: 700,
        base_level_bytes: 2000,
        level_ratio: 3,
        l0_trigger: 2,
        cache_bytes: 0,
        ..Options::new(
            store_id,
            vec![partition("data", Keep::All), partition("meta", Keep::NewestOnly)],
        )
    }
}

fn open_at(vfs: &MemVfs, dir: &str, store_id: u128, mode: Mode) -> Result<Store> {
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    Store::open(vfs, Path::new(dir), options(store_id, mode), Executor::Inline)
}

fn write(store: &Store, mode: Mode, n: u64, salt: u8) {
    let (key, value) = (format!("k{:02}", n % KEYS).into_bytes(), [salt; 30]);
    let op = if n.is_multiple_of(7) {
        Op::Delete { key: &key }
    } else {
        Op::Put { key: &key, value: &value }
    };
    let applied = Op::Put { key: b"applied", value: &n.to_le_bytes() };
    let position = Position { index: n, term: 2, extra: vec![salt] };
    commit(store, mode, position, &[(DATA, op), (META, applied)]);
}

fn fill(store: &Store, mode: Mode, to: u64, salt: u8) {
    for n in store.visible_position().index + 1..=to {
        write(store, mode, n, salt);
    }
}

type Content = BTreeMap<(u8, Vec<u8>), (u64, Vec<u8>)>;

/// Everything that is visible, and the history of the data partition from its floor on.
fn content(store: &Store) -> (Position, Content, Vec<Content>) {
    let read = |view: &lsm_store::View, partition: PartitionId| -> Content {
        let mut iter = view.iter(partition, Unbounded, Unbounded).expect("opens");
        let mut rows = Content::new();
        while iter.next().expect("reads") {
            let row = (iter.sequence().0, iter.value().to_vec());
            rows.insert((partition.0, iter.key().to_vec()), row);
        }
        rows
    };
    let view = store.view();
    let mut all = read(&view, DATA);
    all.extend(read(&view, META));
    let (floor, last) = (store.floor(DATA).0, store.last_sequence(DATA).0);
    let history = (floor..=last)
        .map(|at| read(&store.view_at(DATA, SequenceNumber(at)).expect("in history"), DATA));
    (store.visible_position(), all, history.collect())
}

/// Sends what is wanted, in pieces.
fn send(from: &Checkpoint, to: &mut IncomingSnapshot, piece: usize) -> Result<u64> {
    let mut sent = 0;
    for wanted in to.wanted() {
        let mut offset = wanted.offset;
        let mut buf = vec![0; piece];
        loop {
            let len = from.read(wanted.uid, offset, &mut buf)?;
            sent += len as u64;
            let complete = to.write(wanted.uid, offset, &buf[..len])?;
            offset += len as u64;
            if complete {
                break;
            }
        }
    }
    Ok(sent)
}

/// A leader with a checkpoint in `/copy`, and what is in it.
fn leader(vfs: &MemVfs) -> (Store, Checkpoint) {
    let store = open_at(vfs, "/leader", 1, Mode::External).expect("opens");
    fill(&store, Mode::External, 60, b'l');
    store.set_floor(DATA, SequenceNumber(31)).expect("raises");
    fill(&store, Mode::External, 90, b'l');
    store.flush().expect("flushes");
    let copy = store.checkpoint(Path::new("/copy")).expect("copies");
    (store, copy)
}

/// A follower with content of its own.
fn follower(vfs: &MemVfs) -> Store {
    let store = open_at(vfs, "/follower", 2, Mode::External).expect("opens");
    fill(&store, Mode::External, 40, b'f');
    store.flush().expect("flushes");
    store
}

fn stage(vfs: &MemVfs, store: &Store, copy: &Checkpoint) -> StagedSnapshot {
    let mut incoming = store.receive(copy.description()).expect("begins");
    send(copy, &mut incoming, 500).unwrap_or_else(|e| panic!("{vfs:?}: {e}"));
    incoming.finish().expect("complete")
}

#[test]
fn a_checkpoint_opens_as_a_store_of_its_own_and_the_original_goes_on() {
    for mode in [Mode::External, Mode::Wal] {
        let vfs = MemVfs::new(1);
        let store = open_at(&vfs, "/db", 1, mode).expect("opens");
        fill(&store, mode, 70, b'a');
        if mode == Mode::External {
            store.flush().expect("flushes");
        }
        let then = content(&store);
        let copy = store.checkpoint(Path::new("/copies/one")).expect("copies");
        copy.verify().expect("whole");
        assert_eq!(copy.position().index, 70, "{mode:?}: where it was");
        assert_eq!(copy.last_sequence(DATA), store.last_sequence(DATA), "{mode:?}");
        assert!(vfs.files().iter().all(|f| !f.starts_with("/copies/one/wal")), "no log");
        fill(&store, mode, 200, b'b');
        store.flush().expect("flushes");
        // Everything of the copy is durable on its own.
        vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
        for table in copy.tables() {
            let count = copy.tables().iter().filter(|t| t.uid == table.uid).count();
            assert_eq!(count, 1, "{mode:?}: listed once");
        }
        let copied = open_at(&vfs, "/copies/one", 1, mode).expect("opens");
        assert_eq!(content(&copied), then, "{mode:?}: what was there then");
        copied.verify().expect("sound");
        fill(&copied, mode, 300, b'c');
        copied.flush().expect("flushes");
        copied.verify().expect("sound");
        if mode == Mode::Wal {
            // Once it has a log of its own, losing that is not taken for never having had one.
            let world = vfs.fork();
            let inside = |p: &PathBuf| p.starts_with("/copies/one/wal");
            for segment in vfs.files().into_iter().filter(inside) {
                world.unlink(&segment).expect("unlinks");
            }
            let lost = open_at(&world, "/copies/one", 1, mode).expect_err("the log is lost");
            assert!(matches!(lost, Error::Corruption { .. }), "{lost}");
        }
        let original = open_at(&vfs, "/db", 1, mode).expect("opens");
        assert_eq!(original.visible_position().index, 200, "{mode:?}: the original went on");
        original.verify().expect("sound");
        let used = Checkpoint::open(Arc::new(vfs.clone()), Path::new("/copies/one"));
        assert!(
            matches!(used, Err(Error::InvalidArgument(_))),
            "a store lives in it now: {used:?}"
        );
        let refused = copy.remove().expect_err("a store is open in it");
        assert!(matches!(refused, Error::Locked { .. }), "{refused}");
        let copy = original.checkpoint(Path::new("/copies/two")).expect("copies");
        copy.remove().expect("removed");
        assert!(vfs.files().iter().all(|f| !f.starts_with("/copies/two")), "nothing is left");
    }
}

#[test]
fn a_copy_across_file_systems_has_files_of_its_own() {
    let vfs = MemVfs::new(1);
    let store = open_at(&vfs, "/db", 1, Mode::External).expect("opens");
    fill(&store, Mode::External, 70, b'a');
    store.flush().expect("flushes");
    let far = Fault {
        ops: OpSet::LINKS,
        when: FaultWhen::Always,
        kind: FaultKind::CrossesDevices,
        path_contains: String::new(),
    };
    vfs.add_fault(far);
    let copy = store.checkpoint(Path::new("/far")).expect("copies");
    // The last note of a manifest is not synced: losing it loses nothing.
    let far = |p: &&PathBuf| p.starts_with("/far") && !p.to_string_lossy().contains("MANIFEST");
    for path in vfs.files().iter().filter(far) {
        assert!(vfs.is_durable(path).expect("there"), "{}", path.display());
    }
    let table = vfs.files().into_iter().find(|p| p.starts_with("/db/sst")).expect("a table");
    vfs.flip(&table, 9, 1).expect("flips");
    copy.verify().expect("shares nothing");
    // A damaged table is not copied.
    let error = store.checkpoint(Path::new("/far2")).expect_err("damaged");
    assert!(matches!(&error, Error::Corruption { file, .. } if *file == table), "{error}");
    assert!(vfs.files().iter().all(|p| !p.starts_with("/far2")), "nothing is left of it");
}

#[test]
fn a_damaged_store_is_not_copied() {
    let vfs = MemVfs::new(1);
    let store = open_at(&vfs, "/db", 1, Mode::External).expect("opens");
    fill(&store, Mode::External, 70, b'a');
    store.flush().expect("flushes");
    let table = vfs.files().into_iter().find(|p| p.starts_with("/db/sst")).expect("a table");
    vfs.flip(&table, 9, 1).expect("flips");
    store.verify().expect_err("damaged");
    let error = store.checkpoint(Path::new("/copy")).expect_err("refused");
    assert!(matches!(&error, Error::Corruption { file, .. } if *file == table), "{error}");
}

#[test]
fn a_copy_is_received_in_pieces_resumed_after_crashes_and_adopted() {
    let vfs = MemVfs::new(1);
    let (store, copy) = leader(&vfs);
    let then = content(&store);
    let old = follower(&vfs);
    let (old_view, old_rows) = (old.view(), content(&old).1);
    let total: u64 = copy.tables().iter().map(|t| t.len).sum();
    // Pieces of every size, a crash after each few, the sender's answer at what is wanted.
    let mut follower = Some(old);
    let mut sent = 0;
    for round in 0.. {
        let store = follower
            .take()
            .unwrap_or_else(|| open_at(&vfs, "/follower", 2, Mode::External).expect("opens"));
        let mut incoming = store.receive(copy.description()).expect("begins or goes on");
        let Some(wanted) = incoming.wanted().first().copied() else { break };
        let mut buf = vec![0; 300 + 50 * round];
        let len = copy.read(wanted.uid, wanted.offset, &mut buf).expect("reads");
        incoming.write(wanted.uid, wanted.offset, &buf[..len]).expect("takes");
        sent += len as u64;
        let again = incoming.write(wanted.uid, wanted.offset + 1_000_000, b"x");
        assert!(matches!(again, Err(Error::InvalidArgument(_))), "out of order: {again:?}");
        if round % 3 == 2 {
            drop((incoming, store));
            vfs.crash(CrashPolicy::KEEP_ALL, round as u64);
        } else {
            drop(incoming);
            follower = Some(store);
        }
    }
    assert_eq!(sent, total, "nothing was sent twice");
    let _pinned = (old_view, old_rows);
    let store = open_at(&vfs, "/follower", 2, Mode::External).expect("opens");
    let incoming = store.receive(copy.description()).expect("goes on");
    let staged = incoming.finish().expect("complete");
    assert_eq!(staged.position().index, 90, "where the leader was");
    let view = store.view();
    let before = content(&store).1;
    let adopted = store.adopt(staged).expect("adopts");
    assert_eq!(content(&adopted), then, "what the leader had");
    assert_eq!(adopted.floor(DATA), SequenceNumber(31), "its floor");
    adopted.verify().expect("sound");
    // A view of the old store still sees what it saw.
    let mut iter = view.iter(DATA, Unbounded, Unbounded).expect("opens");
    let mut rows = 0;
    while iter.next().expect("reads") {
        rows += 1;
    }
    assert_eq!(rows, before.keys().filter(|(p, _)| *p == DATA.0).count(), "the old view");
    assert!(vfs.files().iter().all(|f| !f.starts_with("/follower/incoming")), "nothing is left");
    fill(&adopted, Mode::External, 150, b'n');
    adopted.flush().expect("flushes");
    adopted.verify().expect("sound");
    let last = content(&adopted);
    adopted.close().expect("closes");
    let again = open_at(&vfs, "/follower", 2, Mode::External).expect("opens");
    assert_eq!(content(&again), last, "after opening again");
}

#[test]
fn tables_that_are_here_already_are_not_wanted_unless_they_are_damaged() {
    let vfs = MemVfs::new(1);
    // Without compactions, tables of before stay.
    let lazy = Options { l0_trigger: 30, ..options(1, Mode::External) };
    let store = Store::open(Arc::new(vfs.clone()), Path::new("/leader"), lazy, Executor::Inline);
    let store = store.expect("opens");
    fill(&store, Mode::External, 90, b'l');
    store.flush().expect("flushes");
    let copy = store.checkpoint(Path::new("/copy")).expect("copies");
    let lazy = Options { l0_trigger: 30, ..options(2, Mode::External) };
    let first = Store::open(Arc::new(vfs.clone()), Path::new("/follower"), lazy, Executor::Inline);
    let first = first.expect("opens");
    let staged = stage(&vfs, &first, &copy);
    let adopted = first.adopt(staged).expect("adopts");
    write(&store, Mode::External, 91, b'l');
    store.flush().expect("flushes");
    let next = store.checkpoint(Path::new("/copy2")).expect("copies");
    let had = |uid| copy.tables().iter().any(|t| t.uid == uid);
    let new: Vec<_> = next.tables().iter().map(|t| t.uid).filter(|uid| !had(*uid)).collect();
    assert!(!new.is_empty() && new.len() < next.tables().len(), "some old, some new");
    let incoming = adopted.receive(next.description()).expect("begins");
    let wanted: Vec<_> = incoming.wanted().iter().map(|w| w.uid).collect();
    assert_eq!(wanted.len(), new.len(), "only the new ones: {wanted:?}");
    incoming.abort().expect("given up");
    let table = vfs
        .files()
        .into_iter()
        .filter(|p| p.starts_with("/follower/sst"))
        .find(|p| {
            let digest = lsm_store::checksum::digest(&vfs.content(p).expect("there"));
            next.tables().iter().any(|t| t.digest == digest)
        })
        .expect("a table of both");
    // The link shares the leader's bytes here, so the damage is of both; what counts is that it is seen.
    vfs.flip(&table, 7, 1).expect("flips");
    let incoming = adopted.receive(next.description()).expect("begins");
    assert_eq!(incoming.wanted().len(), new.len() + 1, "the damaged one is wanted, too");
}

#[test]
fn a_table_that_arrives_wrong_is_refused_and_wanted_from_its_beginning() {
    let vfs = MemVfs::new(1);
    let (_store, copy) = leader(&vfs);
    let store = follower(&vfs);
    let mut incoming = store.receive(copy.description()).expect("begins");
    let wanted = incoming.wanted()[0];
    let mut bytes = vec![0; usize::try_from(wanted.len).expect("small")];
    copy.read(wanted.uid, 0, &mut bytes).expect("reads");
    bytes[5] ^= 1;
    let error = incoming.write(wanted.uid, 0, &bytes).expect_err("one bit");
    assert!(matches!(error, Error::Corruption { .. }), "{error}");
    assert_eq!(incoming.wanted()[0], wanted, "from its beginning");
    bytes[5] ^= 1;
    assert!(incoming.write(wanted.uid, 0, &bytes).expect("right"), "complete");
    let error = incoming.finish().expect_err("not all is here");
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    for bit in (0..copy.description().len() * 8).step_by(5) {
        let mut bad = copy.description().to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        let refused = store.receive(&bad).expect_err("flipped bit");
        assert!(matches!(refused, Error::Corruption { .. }), "bit {bit}: {refused}");
    }
}

#[test]
fn a_crash_while_a_checkpoint_is_made_leaves_it_complete_or_none() {
    let vfs = MemVfs::new(1);
    let store = open_at(&vfs, "/db", 1, Mode::External).expect("opens");
    fill(&store, Mode::External, 70, b'a');
    store.flush().expect("flushes");
    let then = content(&store);
    vfs.record();
    store.checkpoint(Path::new("/copies/one")).expect("copies");
    let worlds = vfs.take_recorded();
    assert!(worlds.len() > 20, "{} places to crash at", worlds.len());
    let mut complete = 0;
    for (at, world) in worlds.iter().enumerate() {
        for (seed, policy) in (0..).zip(CrashPolicy::ALL) {
            let context = format!("crash before call {at}, {policy:?}");
            let world = world.fork();
            world.crash(policy, seed);
            let copy = Checkpoint::open(Arc::new(world.clone()), Path::new("/copies/one"));
            if let Ok(copy) = copy {
                complete += 1;
                copy.verify().unwrap_or_else(|e| panic!("{context}: {e}"));
                let copied = open_at(&world, "/copies/one", 1, Mode::External);
                let copied = copied.unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(content(&copied), then, "{context}");
            }
            let original = open_at(&world, "/db", 1, Mode::External);
            let original = original.unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!(content(&original), then, "{context}: the original");
            original.verify().unwrap_or_else(|e| panic!("{context}: {e}"));
        }
    }
    assert!(complete > 0, "some crash comes after the marker");
}

#[test]
fn a_failure_while_a_checkpoint_is_made_harms_nothing_and_it_can_be_made_again() {
    let good = MemVfs::new(1);
    let store = open_at(&good, "/db", 1, Mode::External).expect("opens");
    fill(&store, Mode::External, 70, b'a');
    store.flush().expect("flushes");
    let then = content(&store);
    store.close().expect("closes");
    let calls = {
        let vfs = good.fork();
        let store = open_at(&vfs, "/db", 1, Mode::External).expect("opens");
        let before = vfs.calls();
        store.checkpoint(Path::new("/copy")).expect("copies");
        vfs.calls() - before
    };
    for kind in [FaultKind::Io, FaultKind::NoSpace] {
        for call in 0..calls {
            let context = format!("call {call} of {calls} fails with {kind:?}");
            let vfs = good.fork();
            let store = open_at(&vfs, "/db", 1, Mode::External).expect("opens");
            vfs.add_fault(Fault::at_call(vfs.calls() + call, kind));
            let made = store.checkpoint(Path::new("/copy"));
            vfs.clear_faults();
            let made = match made {
                Ok(copy) => copy,
                Err(_) => match store.checkpoint(Path::new("/copy-2")) {
                    Ok(copy) => copy,
                    // The number of the snapshot is reserved in the manifest of the store.
                    Err(Error::Poisoned { .. }) => continue,
                    Err(e) => panic!("{context}: again: {e}"),
                },
            };
            made.verify().unwrap_or_else(|e| panic!("{context}: {e}"));
            let copied = open_at(&vfs, &made.dir().to_string_lossy(), 1, Mode::External);
            let copied = copied.unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!(content(&copied), then, "{context}");
            assert_eq!(content(&store), then, "{context}: the original");
        }
    }
}

/// A follower that has staged the leader's copy, closed; the content of both.
fn staged_world() -> (MemVfs, StagedContent) {
    let vfs = MemVfs::new(1);
    let (store, copy) = leader(&vfs);
    let new = content(&store);
    let old_store = follower(&vfs);
    let old = content(&old_store);
    let _staged = stage(&vfs, &old_store, &copy);
    old_store.close().expect("closes");
    (vfs, StagedContent { old, new, description: copy.description().to_vec() })
}

struct StagedContent {
    old: (Position, Content, Vec<Content>),
    new: (Position, Content, Vec<Content>),
    description: Vec<u8>,
}

fn staged_again(vfs: &MemVfs, description: &[u8]) -> Result<StagedSnapshot> {
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    IncomingSnapshot::begin(vfs, Path::new("/follower"), description)?.finish()
}

fn check_old_or_new(world: &MemVfs, staged: &StagedContent, context: &str) -> bool {
    let store = open_at(world, "/follower", 2, Mode::External);
    let store = store.unwrap_or_else(|e| panic!("{context}: {e}"));
    let found = content(&store);
    let is_new = found.0 == staged.new.0;
    assert_eq!(found, *if is_new { &staged.new } else { &staged.old }, "{context}: whole");
    store.verify().unwrap_or_else(|e| panic!("{context}: {e}"));
    let tables: usize =
        store.metrics().partitions.iter().flat_map(|p| &p.levels).map(|l| l.tables).sum();
    let files = world.files();
    let count = files.iter().filter(|p| p.starts_with("/follower/sst")).count();
    assert_eq!(count, tables, "{context}: no table file without a table");
    if is_new {
        let left = files.iter().any(|f| f.starts_with("/follower/incoming"));
        assert!(!left, "{context}: what was received is removed");
    }
    store.close().unwrap_or_else(|e| panic!("{context}: {e}"));
    is_new
}

#[test]
fn a_crash_while_a_copy_is_adopted_leaves_the_old_store_or_the_new_one_whole() {
    let (vfs, staged) = staged_world();
    vfs.record();
    let ready = staged_again(&vfs, &staged.description).expect("complete");
    ready.adopt(&options(2, Mode::External), Executor::Inline).expect("adopts");
    let worlds = vfs.take_recorded();
    assert!(worlds.len() > 30, "{} places to crash at", worlds.len());
    let mut outcomes = [0, 0];
    for (at, world) in worlds.iter().enumerate() {
        for (seed, policy) in (0..).zip(CrashPolicy::ALL) {
            let context = format!("crash before call {at}, {policy:?}");
            let world = world.fork();
            world.crash(policy, seed);
            if at % 2 == 0 {
                // The recovery crashes, too.
                world.crash_at(world.mutating_calls() + (at as u64 * 5 + seed) % 14);
                let _stopped = open_at(&world, "/follower", 2, Mode::External).is_err();
                world.crash(policy, seed + 1);
            }
            let is_new = check_old_or_new(&world, &staged, &context);
            outcomes[usize::from(is_new)] += 1;
            if !is_new {
                // What was received is still there, and can be adopted.
                let ready = staged_again(&world, &staged.description);
                let ready = ready.unwrap_or_else(|e| panic!("{context}: {e}"));
                let adopted = ready.adopt(&options(2, Mode::External), Executor::Inline);
                adopted.unwrap_or_else(|e| panic!("{context}: {e}"));
                assert!(check_old_or_new(&world, &staged, &context), "{context}: adopted");
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 20), "old and new: {outcomes:?}");
}

#[test]
fn a_failure_while_a_copy_is_adopted_leaves_the_old_store_or_the_new_one_whole() {
    let (good, staged) = staged_world();
    let calls = {
        let vfs = good.fork();
        let ready = staged_again(&vfs, &staged.description).expect("complete");
        let before = vfs.calls();
        ready.adopt(&options(2, Mode::External), Executor::Inline).expect("adopts");
        vfs.calls() - before
    };
    for call in 0..calls {
        let context = format!("call {call} of {calls} fails");
        let vfs = good.fork();
        let ready = staged_again(&vfs, &staged.description).expect("complete");
        vfs.add_fault(Fault::at_call(vfs.calls() + call, FaultKind::Io));
        let adopted = ready.adopt(&options(2, Mode::External), Executor::Inline);
        vfs.clear_faults();
        vfs.crash(CrashPolicy::LOSE_UNSYNCED, call);
        let is_new = check_old_or_new(&vfs, &staged, &context);
        assert!(is_new || adopted.is_err(), "{context}: done is done");
    }
}

#[test]
fn a_store_that_cannot_be_read_is_replaced_all_the_same() {
    let (good, staged) = staged_world();
    for harm in ["MANIFEST", "CURRENT"] {
        let vfs = good.fork();
        let harmed = |p: &PathBuf| p.starts_with("/follower") && p.to_string_lossy().contains(harm);
        for file in vfs.files().into_iter().filter(harmed).collect::<Vec<_>>() {
            if harm == "CURRENT" {
                vfs.unlink(&file).expect("removed");
            } else {
                vfs.replace(&file, b"nonsense").expect("replaced");
            }
        }
        open_at(&vfs, "/follower", 2, Mode::External).expect_err("cannot be read");
        vfs.record();
        let ready = staged_again(&vfs, &staged.description).expect("complete");
        ready.adopt(&options(2, Mode::External), Executor::Inline).expect("adopts");
        let worlds = vfs.take_recorded();
        assert!(check_old_or_new(&vfs, &staged, harm), "{harm}: the new one");
        for (at, world) in worlds.iter().enumerate() {
            for (seed, policy) in (0..).zip(CrashPolicy::ALL) {
                let context = format!("{harm}: crash before call {at}, {policy:?}");
                world.fork().crash(policy, seed);
                let world = world.fork();
                world.crash(policy, seed);
                if open_at(&world, "/follower", 2, Mode::External).is_err() {
                    let ready = staged_again(&world, &staged.description);
                    let ready = ready.unwrap_or_else(|e| panic!("{context}: {e}"));
                    let adopted = ready.adopt(&options(2, Mode::External), Executor::Inline);
                    adopted.unwrap_or_else(|e| panic!("{context}: {e}"));
                }
                assert!(check_old_or_new(&world, &staged, &context), "{context}: adopted");
            }
        }
    }
}

#[test]
fn a_copy_replaces_only_what_it_fits() {
    let (vfs, staged) = staged_world();
    let ready = || staged_again(&vfs, &staged.description).expect("complete");
    let other = Options {
        partitions: options(2, Mode::External).partitions[..1].to_vec(),
        ..options(2, Mode::External)
    };
    let error = ready().adopt(&other, Executor::Inline).expect_err("other partitions");
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    let error =
        ready().adopt(&options(3, Mode::External), Executor::Inline).expect_err("another store");
    assert!(matches!(error, Error::WrongStore { .. }), "{error}");
    let open = open_at(&vfs, "/follower", 2, Mode::External).expect("opens");
    let error = ready().adopt(&options(2, Mode::External), Executor::Inline).expect_err("open");
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    drop(open);
    assert!(!check_old_or_new(&vfs, &staged, "refused"), "nothing was changed");
}

/// Receives the copy in `/copy` for the follower, from wherever it was left.
fn receive_all(vfs: &MemVfs) -> Result<StagedSnapshot> {
    let shared: Arc<dyn Vfs> = Arc::new(vfs.clone());
    let copy = Checkpoint::open(Arc::clone(&shared), Path::new("/copy"))?;
    let mut incoming = IncomingSnapshot::begin(shared, Path::new("/follower"), copy.description())?;
    send(&copy, &mut incoming, 400)?;
    incoming.finish()
}

/// Leader, its copy, and a follower that is closed.
fn ready_to_receive() -> (MemVfs, StagedContent) {
    let vfs = MemVfs::new(1);
    let (store, copy) = leader(&vfs);
    let new = content(&store);
    let old_store = follower(&vfs);
    let old = content(&old_store);
    old_store.close().expect("closes");
    store.close().expect("closes");
    (vfs, StagedContent { old, new, description: copy.description().to_vec() })
}

#[test]
fn a_crash_while_a_copy_is_received_costs_only_what_was_not_synced() {
    let (vfs, staged) = ready_to_receive();
    vfs.record();
    receive_all(&vfs).expect("received");
    let worlds = vfs.take_recorded();
    assert!(worlds.len() > 30, "{} places to crash at", worlds.len());
    for (at, world) in worlds.iter().enumerate() {
        for (seed, policy) in (0..).zip(CrashPolicy::ALL) {
            let context = format!("crash before call {at}, {policy:?}");
            let world = world.fork();
            world.crash(policy, seed);
            if at % 3 == 0 {
                assert!(!check_old_or_new(&world, &staged, &context), "{context}: not adopted");
            }
            // Bytes that were not synced may have come back wrong: that is noticed when the table is whole.
            let mut received = receive_all(&world);
            for _ in 0..staged.new.1.len() {
                if !matches!(received, Err(Error::Corruption { .. })) {
                    break;
                }
                received = receive_all(&world);
            }
            let ready = received.unwrap_or_else(|e| panic!("{context}: {e}"));
            let adopted = ready.adopt(&options(2, Mode::External), Executor::Inline);
            adopted.unwrap_or_else(|e| panic!("{context}: {e}"));
            assert!(check_old_or_new(&world, &staged, &context), "{context}: adopted");
        }
    }
}

#[test]
fn a_failure_while_a_copy_is_received_is_made_good_by_receiving_on() {
    let (good, staged) = ready_to_receive();
    let calls = {
        let vfs = good.fork();
        let before = vfs.calls();
        receive_all(&vfs).expect("received");
        vfs.calls() - before
    };
    for kind in [FaultKind::Io, FaultKind::NoSpace] {
        for call in 0..calls {
            let context = format!("call {call} of {calls} fails with {kind:?}");
            let vfs = good.fork();
            vfs.add_fault(Fault::at_call(vfs.calls() + call, kind));
            let received = receive_all(&vfs);
            vfs.clear_faults();
            let ready = received.or_else(|_| receive_all(&vfs));
            ready.unwrap_or_else(|e| panic!("{context}: {e}"));
            // What counts as received is on disk.
            vfs.crash(CrashPolicy::LOSE_UNSYNCED, call);
            let ready = staged_again(&vfs, &staged.description);
            let ready = ready.unwrap_or_else(|e| panic!("{context}: {e}"));
            let adopted = ready.adopt(&options(2, Mode::External), Executor::Inline);
            adopted.unwrap_or_else(|e| panic!("{context}: {e}"));
            assert!(check_old_or_new(&vfs, &staged, &context), "{context}: adopted");
        }
    }
}
