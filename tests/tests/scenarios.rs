//! Named scenarios of the whole replica (RAFT.md D.4): what once went wrong elsewhere, with a pinned schedule.
//!
//! Each runs a simulated cluster, does to it what the scenario says, and ends with the quiet phase of the
//! simulation, which demands that the cluster comes back, that the members are equal, that nothing
//! acknowledged is lost, and that the history is linearizable. The number is the scenario's.

use lsm_store::vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, OpSet};
use raft_core::RoleKind;
use raft_rpc::{Condition, Request, Response, SessionTag, WireError, WriteOperation, WriteRequest};
use tests::history::ClientId;
use tests::sim::plan::{Plan, Span};
use tests::sim::random::Random;
use tests::sim::world::World;
use tests::sim::{Options, Report, finish, get, put, settle};

const SECOND: u64 = 1_000_000;

fn world(plan: Plan, seed: u64) -> World {
    let options = Options { lines: true, ..Options::default() };
    let mut world = World::new(plan, Random::new(seed), &options);
    world.start_all();
    world
}

/// Runs until somebody leads.
fn elect(world: &mut World) -> usize {
    world.run_until(5 * SECOND, |world| world.leader().is_some());
    let tail = world.trace.tail();
    world.leader().unwrap_or_else(|| panic!("no leader within 5 s: {tail:#?}"))
}

/// The quiet phase and all checks.
fn conclude(mut world: World, context: &str) -> Report {
    settle(&mut world);
    finish(world)
        .unwrap_or_else(|failed| panic!("{context}: {}\n{}", failed.what, failed.tail.join("\n")))
}

fn assert_value(response: Option<Response>, value: &str) {
    let Some(Response::Value { found: Some(found), .. }) = &response else {
        panic!("expected the value {value}, got {response:?}");
    };
    assert_eq!(found.value, value, "in {response:?}");
}

/// 28 `kill_all_lossy_fs` (etcd#14143).
#[test]
fn nothing_acknowledged_is_lost_when_all_nodes_lose_power_at_once() {
    for (seed, policy) in (0..).zip(CrashPolicy::ALL) {
        let mut world = world(Plan { operations: 200, ..Plan::calm(3) }, seed);
        world.add_clients();
        for _ in 0..3 {
            elect(&mut world);
            world.run_for(700_000);
            for node in 0..3 {
                world.crash(node, policy);
            }
            world.start_all();
        }
        let report = conclude(world, &format!("{policy:?}"));
        assert_eq!(report.counts.crashes, 9, "{policy:?}");
        assert!(report.counts.answered > 50, "{policy:?}: {} answered", report.counts.answered);
    }
}

/// 32 `fsync_error`.
#[test]
fn a_node_whose_sync_fails_stops_and_comes_back_consistent() {
    for seed in 0..5 {
        let mut world = world(Plan { operations: 300, ..Plan::calm(3) }, seed);
        world.add_clients();
        let leader = elect(&mut world);
        world.run_for(300_000);
        let fault = Fault {
            ops: OpSet::SYNCS,
            when: FaultWhen::Always,
            kind: FaultKind::Io,
            path_contains: String::new(),
        };
        world.disk(leader).add_fault(fault);
        let stopped = world.run_until(2 * SECOND, |world| world.status(leader).is_none());
        assert!(stopped, "seed {seed}: the leader goes on with a disk that fails");
        assert_eq!(world.disk(leader).faults_fired(), 1, "a failed sync is never tried again");
        let moved =
            world.run_until(3 * SECOND, |world| world.leader().is_some_and(|next| next != leader));
        assert!(moved, "seed {seed}: nobody took over");
        conclude(world, &format!("seed {seed}"));
    }
}

/// 33 `apply_crash_replay`.
#[test]
fn a_crash_at_any_write_of_a_single_node_doubles_and_loses_nothing() {
    let mut crashed = 0;
    for call in 0..120 {
        let plan = Plan {
            operations: 60,
            memtable_bytes: 4 << 10,
            log_segment_bytes: 16 << 10,
            flush_log_bytes: 4 << 10,
            value_bytes_max: 300,
            think: Span { min: 100, max: 2_000 },
            ..Plan::calm(1)
        };
        let mut world = world(plan, 7);
        world.add_clients();
        elect(&mut world);
        let disk = world.disk(0);
        disk.crash_at(disk.mutating_calls() + call);
        world.run_until(3 * SECOND, World::clients_are_done);
        let report = conclude(world, &format!("stopped at call {call}"));
        crashed += report.counts.crashes_in_write;
    }
    assert!(crashed > 100, "{crashed} of 120 runs crashed in a write");
}

/// 57 `read_single_node_restart` (raft#105).
#[test]
fn a_single_node_reads_everything_acknowledged_right_after_its_restart() {
    for (seed, policy) in (0..).zip(CrashPolicy::ALL) {
        let mut world = world(Plan::calm(1), seed);
        elect(&mut world);
        for round in 0..5 {
            let value = format!("value-{round}");
            let written = world.execute(0, &put("key", &value), SECOND);
            assert!(matches!(written, Some(Response::Written { .. })), "{written:?}");
            world.crash(0, policy);
            world.start(0);
            assert_value(world.execute(0, &get("key"), 5 * SECOND), &value);
        }
        conclude(world, &format!("{policy:?}"));
    }
}

/// 64 `ambiguous_commit_retry`.
#[test]
fn a_write_whose_answer_was_lost_with_the_leader_takes_effect_once_when_repeated() {
    for seed in 0..5 {
        let mut world = world(Plan::calm(3), seed);
        let old = elect(&mut world);
        let register =
            Request::Write(WriteRequest { tag: None, operation: WriteOperation::RegisterSession });
        let Some(Response::Session { id: session }) = world.execute(old, &register, SECOND) else {
            panic!("seed {seed}: no session");
        };
        let tag = SessionTag { session, sequence: 1, lowest_unacknowledged: 1 };
        let write = Request::Write(WriteRequest {
            tag: Some(tag),
            operation: WriteOperation::Put {
                key: "key".into(),
                value: "once".into(),
                condition: Condition::Absent,
                return_previous: true,
            },
        });
        let operation = world.history.invoke(ClientId(0), write.clone());
        // The leader is not heard and does not hear, except that its entries still get out.
        let others: Vec<_> = (0..3).filter(|&node| node != old).collect();
        for &other in &others {
            world.network_mut().set_cut(other, old, true);
        }
        let lost = world.ask(old, &write, 200_000);
        assert!(lost.is_none(), "seed {seed}: the leader answers without a quorum: {lost:?}");
        world.run_until(5 * SECOND, |world| world.leader().is_some_and(|next| next != old));
        let next = world.leader().expect("one of the others leads");
        assert_ne!(next, old, "seed {seed}: the others elected nobody");
        let first = loop {
            match world.ask(next, &write, SECOND) {
                Some(Ok(response)) => break response,
                other => assert!(world.now() < 10 * SECOND, "seed {seed}: {other:?}"),
            }
        };
        assert!(matches!(first, Response::Written { previous: None, .. }), "{first:?}");
        world.history.answer(operation, first.clone());
        world.network_mut().heal();
        world.run_for(SECOND);
        for node in 0..3 {
            let again = world.ask(node, &write, SECOND);
            assert_eq!(again, Some(Ok(first.clone())), "seed {seed}: repeated at node {node}");
        }
        assert_eq!(world.checkers.model.times_put(b"once"), 1, "seed {seed}");
        conclude(world, &format!("seed {seed}"));
    }
}

/// 66 `overload`.
#[test]
fn ten_times_the_load_is_refused_in_part_and_changes_no_leader() {
    let plan = Plan {
        clients: 8,
        lanes: 24,
        operations: 1_000,
        keys: 20,
        value_bytes_max: 500,
        think: Span { min: 100, max: 1_000 },
        log_latency: Span { min: 10_000, max: 25_000 },
        apply_latency: Span { min: 2_000, max: 10_000 },
        raft: raft_core::Config { max_unapplied_bytes: 8 << 10, ..raft_core::Config::default() },
        ..Plan::calm(3)
    };
    let mut world = world(plan, 1);
    let leader = elect(&mut world);
    let term = world.status(leader).expect("it leads").term;
    world.add_clients();
    world.run_for(5 * SECOND);
    let status = world.status(leader).expect("nobody crashed");
    assert_eq!((status.role, status.term), (RoleKind::Leader, term), "the leader stays");
    // Eight kilobytes of entries are a few dozen; the callers of a batch or two wait beside them.
    let most = world.waiting_writes_max;
    assert!(most < 192, "{most} writes waited at once of 192 lanes");
    world.stop_clients();
    let report = conclude(world, "overload");
    assert!(report.counts.overloaded > 500, "{} were refused", report.counts.overloaded);
    assert!(report.counts.answered > 300, "{} were answered", report.counts.answered);
    assert_eq!(report.terms_led, 1, "no election but the first");
}

/// 12 `pause_resume_leader`.
#[test]
fn a_leader_that_was_stopped_serves_nothing_old_and_acknowledges_nothing_when_it_goes_on() {
    for seed in 0..10 {
        let mut world = world(Plan::calm(3), seed);
        let old = elect(&mut world);
        let written = world.execute(old, &put("key", "old"), SECOND);
        assert!(written.is_some(), "seed {seed}: the first write");
        world.pause(old);
        let moved = world.run_until(5 * SECOND, |world| {
            (0..3).any(|node| {
                node != old
                    && world.status(node).is_some_and(|status| status.role == RoleKind::Leader)
            })
        });
        assert!(moved, "seed {seed}: nobody took over");
        let next = (0..3)
            .find(|&node| {
                node != old
                    && world.status(node).is_some_and(|status| status.role == RoleKind::Leader)
            })
            .expect("just seen");
        let written = world.execute(next, &put("key", "new"), SECOND);
        assert!(written.is_some(), "seed {seed}: a write at the new leader");
        // Both wait at the old leader when it goes on.
        let read = world.history.invoke(ClientId(0), get("key"));
        world.post(old, &get("key"));
        world.run_for(100);
        world.resume(old);
        world.run_until(2 * SECOND, |world| {
            world.status(old).is_some_and(|status| status.role == RoleKind::Follower)
        });
        let status = world.status(old).expect("it runs");
        let new_term = world.status(next).expect("it runs").term;
        assert_eq!((status.role, status.term), (RoleKind::Follower, new_term), "seed {seed}");
        world.run_for(SECOND);
        match world.take_answer() {
            Some(Ok(response)) => {
                assert_value(Some(response.clone()), "new");
                world.history.answer(read, response);
            }
            Some(Err(WireError::NoLeader { .. } | WireError::NotLeader { .. })) | None => {}
            Some(Err(error)) => panic!("seed {seed}: the read ends with {error}"),
        }
        assert_value(world.execute(old, &get("key"), SECOND), "new");
        conclude(world, &format!("seed {seed}"));
    }
}

/// 13 `vm_pause_all`.
#[test]
fn an_hour_in_which_every_node_stood_still_costs_one_election_at_most() {
    for seed in 0..5 {
        let mut world = world(Plan::calm(4), seed);
        elect(&mut world);
        world.run_for(SECOND);
        let before = world.checkers.terms_led();
        (0..4).for_each(|node| world.pause(node));
        world.run_for(3_600 * SECOND);
        (0..4).for_each(|node| world.resume(node));
        world.run_for(3 * SECOND);
        let after = world.checkers.terms_led();
        assert!(after <= before + 1, "seed {seed}: {before} terms had a leader, then {after}");
        conclude(world, &format!("seed {seed}"));
    }
}

/// 35 `leader_disk_stall`, 36 `follower_disk_stall`.
#[test]
fn a_disk_that_stalls_costs_its_leader_the_lead_and_a_follower_nothing() {
    for seed in 0..5 {
        let mut world = world(Plan::calm(3), seed);
        let leader = elect(&mut world);
        world.run_for(SECOND);
        let follower = (leader + 1) % 3;
        world.set_disk_slowness(follower, 20_000);
        for round in 0..5 {
            let written = world.execute(leader, &put("key", &format!("{round}")), SECOND);
            assert!(written.is_some(), "seed {seed}: no commit by the other quorum");
        }
        assert_eq!(world.leader(), Some(leader), "seed {seed}: a follower's disk moves nothing");
        world.set_disk_slowness(follower, 1);
        let caught_up = world.run_until(60 * SECOND, |world| {
            let durable = |node| world.status(node).map(|status| status.durable_index);
            durable(follower) == durable(leader)
        });
        assert!(caught_up, "seed {seed}: the follower does not catch up");
        assert_eq!(world.leader(), Some(leader), "seed {seed}: a follower's disk moves nothing");
        world.set_disk_slowness(leader, 20_000);
        // Something to write, so that the stall is noticed.
        world.post(leader, &put("stalled", "x"));
        let moved =
            world.run_until(5 * SECOND, |world| world.leader().is_some_and(|next| next != leader));
        assert!(moved, "seed {seed}: the lead stays with a disk that does not answer");
        world.set_disk_slowness(leader, 1);
        world.run_for(60 * SECOND);
        conclude(world, &format!("seed {seed}"));
    }
}
