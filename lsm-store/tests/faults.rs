//! Calls that fail: each one once, many at random, a device that is full for a while, a sync that lies.
//!
//! Rules: a call of the store gives the right result or an error, never something wrong; after an error the
//! store is usable, or it is poisoned and says so until it is opened again; nothing that was acknowledged
//! is lost, not even if the power goes after a failed sync was followed by one that succeeded. An error is
//! never absence.
//!
//! `LSM_STORE_EXHAUSTIVE=1` fails each call in both ways; `LSM_STORE_SEEDS` draws more random failures.

mod common;
#[path = "common/seeds.rs"]
mod seeds;
#[path = "common/survive.rs"]
mod survive;

use std::ops::Bound::Unbounded;

use common::{
    Acked, BATCHES, DATA, META, check, compare, exhaustive, model, open, run, work, write,
};
use lsm_store::rng::SplitMix64;
use lsm_store::vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, MemVfs, OpSet};
use lsm_store::{Durability, Error, Mode, Position, Store};
use seeds::{index, replay, seeds};
use survive::{WorkOn, no_orphans, survive};

/// Errors that a failing disk may give; any other is one too many.
fn is_honest(error: &Error) -> bool {
    matches!(
        error,
        Error::Io { .. } | Error::NoSpace { .. } | Error::Poisoned { .. } | Error::Stalled { .. }
    )
}

/// Acknowledgements after a failure that are put to the test at once.
const SUSPECT_ACKS: u64 = 2;

/// Works until something fails, then as long as the store takes writes; `failed` is told of each error.
/// What is acknowledged right after a failure must survive a loss of power: a sync that failed has lost
/// bytes that still read back, and a second one that succeeds does not bring them back.
///
/// Returns whether the end was reached.
fn work_while_usable(
    vfs: &MemVfs,
    slot: &mut Option<Store>,
    mode: Mode,
    acked: &mut Acked,
    context: &str,
    failed: &mut dyn FnMut(&Error),
) -> bool {
    let mut suspect = 0;
    for _ in 0..50 {
        let mut ack = |newer| {
            *acked = acked.and(newer);
            if vfs.faults_fired() > 0 && suspect < SUSPECT_ACKS {
                suspect += 1;
                let vfs = vfs.fork();
                vfs.crash(CrashPolicy::LOSE_UNSYNCED, suspect);
                let context = format!("{context}, acknowledged {acked:?} and lost power");
                survive(&vfs, mode, *acked, WorkOn::OneBatch, &context);
            }
        };
        let Err(error) = work(vfs, slot, mode, BATCHES, &mut ack) else {
            return true;
        };
        assert!(is_honest(&error), "{context}: {error}");
        failed(&error);
        let Some(store) = slot.as_ref() else { return false };
        if store.metrics().poisoned.is_some() {
            check_poisoned(store, mode, context);
            return false;
        }
    }
    false
}

/// A poisoned store refuses writes, and says why.
fn check_poisoned(store: &Store, mode: Mode, context: &str) {
    let next = store.visible_position().index + 1;
    let refused = if mode == Mode::Wal {
        write(store, mode, next, Durability::Sync)
    } else {
        store.begin_run(Position { index: next, ..Position::default() }).map(drop)
    };
    assert!(matches!(refused, Err(Error::Poisoned { .. })), "{context}: {refused:?}");
    assert!(matches!(store.flush(), Err(Error::Poisoned { .. })), "{context}: no flush either");
}

fn fail_everywhere(mode: Mode) {
    let calls = {
        let vfs = MemVfs::new(1);
        run(&vfs, mode, BATCHES, &mut |_| {}).expect("no fault");
        vfs.calls()
    };
    let mut poisoned = 0;
    for call in 0..calls {
        for (nth, kind) in (0..).zip([FaultKind::Io, FaultKind::NoSpace]) {
            if !exhaustive() && call % 2 != nth {
                continue;
            }
            let context = format!("{mode:?}, {kind:?} at call {call} of {calls}");
            let vfs = MemVfs::new(call);
            vfs.add_fault(Fault::at_call(call, kind));
            let mut acked = Acked::default();
            let mut slot = match open(&vfs, mode) {
                Ok(store) => Some(store),
                Err(error) => {
                    assert!(is_honest(&error), "{context}: {error}");
                    None
                }
            };
            if slot.is_some()
                && !work_while_usable(&vfs, &mut slot, mode, &mut acked, &context, &mut |_| {})
            {
                poisoned += 1;
            }
            drop(slot);
            // Not every call is reached after an early failure.
            vfs.clear_faults();
            // The machine stops: what a failed sync left in memory is not on disk.
            let crashed = vfs.fork();
            crashed.crash(CrashPolicy::LOSE_UNSYNCED, call);
            survive(&crashed, mode, acked, WorkOn::OneBatch, &format!("{context}, crash"));
            // Or goes on for long, and stops later.
            if exhaustive() || call % 3 == 0 {
                survive(&vfs, mode, acked, WorkOn::ToTheEnd, &format!("{context}, reopened"));
                vfs.crash(CrashPolicy::LOSE_UNSYNCED, call);
                let whole = Acked { batches: BATCHES, ..acked };
                survive(&vfs, mode, whole, WorkOn::OneBatch, &format!("{context}, late crash"));
            }
        }
    }
    assert!(poisoned > 10, "{mode:?}: {poisoned} of {calls} failures poisoned the store");
}

#[test]
fn an_error_at_any_call_never_gives_a_wrong_answer_nor_loses_anything_with_its_own_log() {
    fail_everywhere(Mode::Wal);
}

#[test]
fn an_error_at_any_call_never_gives_a_wrong_answer_nor_loses_anything_without_a_log() {
    fail_everywhere(Mode::External);
}

/// One call in 64 fails, for the whole life of a store: through reopenings, crashes and ends of the process.
fn fail_at_random(mode: Mode, test: &str) {
    let mut errors = 0;
    for seed in seeds(60) {
        let mut rng = SplitMix64::new(seed);
        let context = format!("{mode:?}, {}", replay(seed, "faults", test));
        let vfs = MemVfs::new(seed);
        let kind = if rng.chance(1, 2) { FaultKind::Io } else { FaultKind::NoSpace };
        let mut acked = Acked::default();
        for life in 0.. {
            vfs.clear_faults();
            if life < 30 {
                let when = FaultWhen::Chance(1_000_000 / 64);
                vfs.add_fault(Fault { ops: OpSet::ALL, when, kind, path_contains: String::new() });
            }
            let opened = open(&vfs, mode)
                .and_then(|store| check(&store, mode, acked, &context).map(|_| store));
            let mut slot = match opened {
                Ok(store) => Some(store),
                Err(error) => {
                    assert!(is_honest(&error), "{context}: {error}");
                    errors += 1;
                    None
                }
            };
            let mut failed = |_: &Error| errors += 1;
            let done = slot.is_some()
                && work_while_usable(&vfs, &mut slot, mode, &mut acked, &context, &mut failed);
            drop(slot);
            match rng.below(3) {
                0 => vfs.kill(),
                1 => vfs.crash(CrashPolicy::ALL[index(&mut rng, 8)], rng.next_u64()),
                // The process goes on, with what the kernel has in memory.
                _ => {}
            }
            if done {
                break;
            }
            assert!(life < 40, "{context}: ends without faults");
        }
        vfs.clear_faults();
        vfs.crash(CrashPolicy::LOSE_UNSYNCED, seed);
        let whole = Acked { batches: BATCHES, ..acked };
        survive(&vfs, mode, whole, WorkOn::OneBatch, &context);
    }
    assert!(errors > 0, "{mode:?}: {errors} errors were met");
}

#[test]
fn random_errors_all_life_long_lose_nothing_with_its_own_log() {
    fail_at_random(Mode::Wal, "random_errors_all_life_long_lose_nothing_with_its_own_log");
}

#[test]
fn random_errors_all_life_long_lose_nothing_without_a_log() {
    fail_at_random(Mode::External, "random_errors_all_life_long_lose_nothing_without_a_log");
}

/// The device is full at a certain size, and has room again later.
fn fill_up(mode: Mode) {
    let mut met = [0, 0];
    for capacity in (0..40_000_u64).step_by(if exhaustive() { 97 } else { 499 }) {
        let context = format!("{mode:?}, a device of {capacity} bytes");
        let vfs = MemVfs::new(capacity);
        vfs.set_capacity(Some(capacity));
        let mut acked = Acked::default();
        let Ok(store) = open(&vfs, mode) else {
            vfs.set_capacity(None);
            survive(&vfs, mode, acked, WorkOn::ToTheEnd, &context);
            continue;
        };
        let mut slot = Some(store);
        let worked = work(&vfs, &mut slot, mode, BATCHES, &mut |newer| acked = acked.and(newer));
        if let Err(error) = worked {
            assert!(is_honest(&error), "{context}: {error}");
            let no_room = matches!(&error, Error::NoSpace { .. })
                || matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull);
            let said = no_room || error.to_string().contains("full");
            assert!(said, "{context}: the error names the cause: {error}");
            vfs.set_capacity(None);
            // It may have been full when the work opened the store again.
            if let Some(store) = slot.as_ref() {
                let reason = store.metrics().poisoned;
                met[usize::from(reason.is_none())] += 1;
                assert!(reason.is_none() || mode == Mode::Wal, "{context}: ends by {reason:?}");
            }
            if slot.as_ref().is_some_and(|store| store.metrics().poisoned.is_none()) {
                let done =
                    work_while_usable(&vfs, &mut slot, mode, &mut acked, &context, &mut |_| {});
                assert!(done, "{context}: goes on by itself when there is room again");
            }
        }
        drop(slot);
        vfs.crash(CrashPolicy::LOSE_UNSYNCED, capacity);
        vfs.set_capacity(None);
        survive(&vfs, mode, acked, WorkOn::ToTheEnd, &context);
    }
    // Only a log that could not be appended to ends writing.
    let [poisoned, went_on] = met;
    assert!(went_on > 10, "{mode:?}: {poisoned} poisoned, {went_on} went on");
}

#[test]
fn a_device_that_is_full_for_a_while_loses_nothing_with_its_own_log() {
    fill_up(Mode::Wal);
}

#[test]
fn a_device_that_is_full_for_a_while_loses_nothing_without_a_log() {
    fill_up(Mode::External);
}

#[test]
fn tables_that_cannot_be_written_stall_writers_until_there_is_room() {
    let vfs = MemVfs::new(1);
    let store = open(&vfs, Mode::External).expect("a new store");
    vfs.add_fault(Fault {
        ops: OpSet::WRITES,
        when: FaultWhen::Always,
        kind: FaultKind::NoSpace,
        path_contains: "sst".to_owned(),
    });
    let mut number = 0;
    let stalled = loop {
        number += 1;
        match write(&store, Mode::External, number, Durability::Sync) {
            Ok(()) => assert!(number < BATCHES, "memory is bounded"),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&stalled, Error::Stalled { frozen: 2, last, .. } if last.contains("write")),
        "{stalled}"
    );
    assert!(store.flush().is_err(), "flushes fail");
    compare(&store, number - 1, "while nothing can be written").expect("reads go on");
    vfs.clear_faults();
    let mut slot = Some(store);
    work(&vfs, &mut slot, Mode::External, BATCHES, &mut |_| {}).expect("goes on");
    no_orphans(&vfs, slot.as_ref().expect("open"), "half-written tables are removed");
    drop(slot);
    let whole = Acked { batches: BATCHES, floor: 0 };
    survive(&vfs, Mode::External, whole, WorkOn::OneBatch, "after the disk has room again");
}

#[test]
fn a_read_error_is_an_error_and_never_absence() {
    for mode in [Mode::Wal, Mode::External] {
        let vfs = MemVfs::new(1);
        run(&vfs, mode, BATCHES, &mut |_| {}).expect("no fault");
        let state = model(BATCHES);
        let mut errors = 0;
        for turn in 0..60_u64 {
            // A new store has nothing in its cache.
            let store = open(&vfs, mode).expect("whole");
            vfs.add_fault(Fault {
                ops: OpSet::READS,
                when: FaultWhen::Chance(200_000),
                kind: FaultKind::Io,
                path_contains: "sst".to_owned(),
            });
            let view = store.view();
            for (partition, content) in [DATA, META].into_iter().zip(&state.maps) {
                let keys: Vec<&[u8]> = content.keys().map(Vec::as_slice).collect();
                for (key, (sequence, value)) in content {
                    match view.get(partition, key) {
                        Ok(found) => {
                            let found = found.map(|f| (f.sequence.0, f.value.to_vec()));
                            assert_eq!(found, Some((*sequence, value.clone())), "key {key:?}");
                        }
                        Err(error) => {
                            assert!(matches!(error, Error::Io { op: "read", .. }), "{error}");
                            errors += 1;
                        }
                    }
                }
                match view.multi_get(partition, &keys) {
                    Ok(found) => assert!(found.iter().all(Option::is_some), "all keys are there"),
                    Err(_) => errors += 1,
                }
                let mut iter = view.iter(partition, Unbounded, Unbounded).expect("opens");
                let mut rows = 0;
                loop {
                    match if turn % 2 == 0 { iter.next() } else { iter.prev() } {
                        Ok(true) => rows += 1,
                        Ok(false) => {
                            assert_eq!(rows, content.len(), "an end that is one");
                            break;
                        }
                        Err(_) => {
                            errors += 1;
                            assert!(!iter.valid(), "stands nowhere");
                            assert!(iter.next().is_err(), "goes nowhere without a seek");
                            break;
                        }
                    }
                }
            }
            vfs.clear_faults();
        }
        assert!(errors > 50, "{mode:?}: {errors} errors were met");
    }
}
