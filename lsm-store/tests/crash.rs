//! The whole store against crashes at every call that changes the disk, in both modes, with every policy
//! of what a crash takes, and again inside the recovery that follows; and against errors at every call.
//!
//! The workload is a pure function of the batch's number, so the model is too: state `n` is what the first
//! `n` batches leave. After a crash the store must be exactly in some state `n`, at or above everything
//! acknowledged as durable; in external mode exactly at its durable position.
//!
//! By default a fixed sample is run; `LSM_STORE_EXHAUSTIVE=1` runs everything.

mod common;

use common::{Acked, BATCHES, check, exhaustive, model, open, run};
use lsm_store::vfs::{CrashPolicy, Fault, FaultKind, MemVfs};
use lsm_store::{Error, Mode};

/// Runs the workload once and returns a copy of the disk before each mutating call, with what was
/// acknowledged by then.
fn record(mode: Mode) -> Vec<(MemVfs, Acked)> {
    let vfs = MemVfs::new(1);
    vfs.record();
    let mut acks = Vec::new();
    run(&vfs, mode, BATCHES, &mut |acked| acks.push((vfs.mutating_calls(), acked)))
        .expect("no fault");
    let worlds = vfs.take_recorded();
    let mut acked = Acked::default();
    let mut acks = acks.into_iter().peekable();
    (0..)
        .zip(worlds)
        .map(|(call, world)| {
            while let Some((_, newer)) = acks.next_if(|(at, _)| *at <= call) {
                acked = newer;
            }
            (world, acked)
        })
        .collect()
}

/// Crashes, opens, checks, works on to the end, and checks again.
fn survive(vfs: &MemVfs, mode: Mode, acked: Acked, context: &str) {
    let finish = || -> Result<(), Error> {
        let store = open(vfs, mode)?;
        check(&store, mode, acked, context)?;
        drop(store);
        run(vfs, mode, BATCHES, &mut |_| {})?;
        let store = open(vfs, mode)?;
        let whole = Acked { batches: BATCHES, ..acked };
        check(&store, mode, whole, context)?;
        store.verify()?;
        Ok(())
    };
    if let Err(failure) = finish() {
        unreachable!("{context}: {failure}");
    }
}

fn crash_everywhere(mode: Mode) {
    let worlds = record(mode);
    assert!(worlds.len() > 300, "{} places to crash at", worlds.len());
    let mut crashes = 0_u64;
    for (call, (world, acked)) in (0_u64..).zip(&worlds) {
        for (index, policy) in (0_u64..).zip(CrashPolicy::ALL) {
            // Two policies at each call, all of them within any four calls.
            if !exhaustive() && (call + index * 3) % 4 != 0 {
                continue;
            }
            let seed = call * 8 + index;
            let context =
                format!("{mode:?}, crash before mutating call {call}, {policy:?}, seed {seed}");
            let vfs = world.fork();
            vfs.crash(policy, seed);
            crashes += 1;
            survive(&vfs, mode, *acked, &context);
        }
    }
    assert!(crashes >= worlds.len() as u64, "{crashes} crashes for {} places", worlds.len());
}

#[test]
fn a_store_with_its_own_log_survives_a_crash_at_every_call() {
    crash_everywhere(Mode::Wal);
}

#[test]
fn a_store_without_a_log_is_exactly_at_its_durable_position_after_a_crash_at_every_call() {
    crash_everywhere(Mode::External);
}

fn crash_inside_recovery(mode: Mode) {
    let worlds = record(mode);
    let (stride, inner_stride) = if exhaustive() { (1, 1) } else { (41, 1) };
    for (call, (world, acked)) in (0_u64..).zip(&worlds).step_by(stride) {
        for (index, policy) in (0_u64..).zip(CrashPolicy::ALL) {
            if !exhaustive() && (call + index) % 3 != 0 {
                continue;
            }
            let seed = call * 8 + index;
            let context =
                format!("{mode:?}, crash before mutating call {call}, {policy:?}, seed {seed}");
            let vfs = world.fork();
            vfs.crash(policy, seed);
            vfs.record();
            // What the first recovery shows may be acted upon, so the second must not show less.
            let shown = match open(&vfs, mode) {
                Ok(store) => check(&store, mode, *acked, &context),
                Err(error) => Err(error),
            };
            let shown = shown.unwrap_or_else(|failure| unreachable!("{context}: {failure}"));
            let last = vfs.fork();
            let again = vfs.take_recorded();
            assert!(!again.is_empty(), "{context}: recovery changes the disk");
            for (inner, world) in (0_u64..).zip(again).step_by(inner_stride) {
                let context = format!("{context}, then inside recovery before its call {inner}");
                world.crash(policy, seed + inner + 1);
                survive(&world, mode, *acked, &context);
            }
            last.crash(policy, seed);
            let acked = match mode {
                Mode::Wal => Acked { batches: shown, ..*acked },
                Mode::External => *acked,
            };
            survive(&last, mode, acked, &format!("{context}, then right after recovery"));
        }
    }
}

#[test]
fn a_crash_inside_recovery_loses_nothing_with_its_own_log() {
    crash_inside_recovery(Mode::Wal);
}

#[test]
fn a_crash_inside_recovery_loses_nothing_without_a_log() {
    crash_inside_recovery(Mode::External);
}

fn fail_everywhere(mode: Mode) {
    let calls = {
        let vfs = MemVfs::new(1);
        run(&vfs, mode, BATCHES, &mut |_| {}).expect("no fault");
        vfs.calls()
    };
    let stride = if exhaustive() { 1 } else { 5 };
    for call in (0..calls).step_by(stride) {
        for kind in [FaultKind::Io, FaultKind::NoSpace] {
            let context = format!("{mode:?}, {kind:?} at call {call} of {calls}");
            let vfs = MemVfs::new(call);
            vfs.add_fault(Fault::at_call(call, kind));
            let mut acked = Acked::default();
            match run(&vfs, mode, BATCHES, &mut |newer| acked = newer) {
                // Retried or harmless; `run` has compared every read with the model.
                Ok(()) => {}
                Err(Error::Io { .. } | Error::Poisoned { .. } | Error::Stalled { .. }) => {}
                Err(failure) => unreachable!("{context}: {failure}"),
            }
            for crash in [false, true] {
                let vfs = vfs.fork();
                if crash {
                    vfs.crash(CrashPolicy::LOSE_UNSYNCED, call);
                }
                survive(&vfs, mode, acked, &format!("{context}, crash: {crash}"));
            }
        }
    }
}

#[test]
fn an_error_at_any_call_never_gives_a_wrong_answer_nor_loses_anything_with_its_own_log() {
    fail_everywhere(Mode::Wal);
}

#[test]
fn an_error_at_any_call_never_gives_a_wrong_answer_nor_loses_anything_without_a_log() {
    fail_everywhere(Mode::External);
}

#[test]
fn the_workload_flushes_compacts_and_deletes_so_that_the_tests_above_mean_something() {
    for mode in [Mode::Wal, Mode::External] {
        let vfs = MemVfs::new(1);
        run(&vfs, mode, BATCHES, &mut |_| {}).expect("no fault");
        let store = open(&vfs, mode).expect("whole");
        let tables = vfs
            .files()
            .iter()
            .filter(|path| path.extension().is_some_and(|ext| ext == "sst"))
            .count();
        assert!(tables >= 2, "{mode:?}: {tables} tables");
        let metrics = store.metrics();
        let deepest =
            metrics.partitions.iter().flat_map(|p| &p.levels).skip(1).any(|level| level.tables > 0);
        assert!(deepest, "{mode:?}: nothing was compacted");
        assert!(model(BATCHES).maps[0].len() > 3, "{mode:?}: something is there");
    }
}
