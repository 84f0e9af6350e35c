//! Named scenarios of the whole replica (RAFT.md D.4): what once went wrong elsewhere, with a pinned schedule.
//!
//! Each runs a simulated cluster, does to it what the scenario says, and ends with the quiet phase of the
//! simulation, which demands that the cluster comes back, that the members are equal, that nothing
//! acknowledged is lost, and that the history is linearizable. The number is the scenario's.

use std::fs;
use std::path::{Path, PathBuf};

use lsm_store::vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, MemVfs, OpSet, Vfs as _};
use raft_core::RoleKind;
use raft_rpc::{Condition, Request, Response, SessionTag, WireError, WriteOperation, WriteRequest};
use tests::history::ClientId;
use tests::sim::plan::{Plan, Span};
use tests::sim::random::Random;
use tests::sim::world::World;
use tests::sim::{Options, Report, finish, get, put, settle};

const SECOND: u64 = 1_000_000;

/// Where each scenario is: its number and name, and the tests that hold it. `core:` is a transcript of
/// raft-core, `membership:` and `transfer:` are tests in its files of these names, the others are tests of
/// this file. Those that are not here need what the cluster cannot do yet: snapshots and leases.
const SCENARIOS: &[(u32, &str, &[&str])] = &[
    (1, "elect_basic", &["core:elect_basic_3", "core:elect_basic_5", "core:elect_basic_even4"]),
    (2, "split_vote_storm", &["core:split_vote_storm"]),
    (3, "vote_crash_before_persist", &["core:vote_crash_before_persist"]),
    (4, "self_vote_crash", &["core:self_vote_crash"]),
    (5, "prevote_isolated_rejoin", &["core:prevote_isolated_rejoin"]),
    (6, "partial_5_nodes_howard", &["core:partial_5_nodes_howard"]),
    (7, "bridge_old_leader", &["core:bridge_old_leader"]),
    (8, "one_way", &["core:one_way_out", "core:one_way_in"]),
    (9, "long_low_short_high", &["core:long_low_short_high"]),
    (10, "learner_must_vote", &["membership:learner_must_vote"]),
    (11, "leader_known_prevote", &["core:leader_known_prevote"]),
    (
        12,
        "pause_resume_leader",
        &[
            "core:pause_resume_leader",
            "a_leader_that_was_stopped_serves_nothing_old_and_acknowledges_nothing_when_it_goes_on",
        ],
    ),
    (
        13,
        "vm_pause_all",
        &[
            "core:vm_pause_all",
            "an_hour_in_which_every_node_stood_still_costs_one_election_at_most",
        ],
    ),
    (14, "removed_node_returns", &["membership:removed_node_returns"]),
    (15, "fig7_logs", &["core:fig7_logs"]),
    (16, "fig8_old_term_commit", &["core:fig8_old_term_commit"]),
    (17, "delayed_append_no_truncate", &["core:delayed_append_no_truncate"]),
    (18, "commit_min_prev", &["core:commit_min_prev"]),
    (19, "all_inflight_lost", &["core:all_inflight_lost"]),
    (20, "unreachable_caught_up", &["core:unreachable_caught_up"]),
    (21, "stale_reject", &["core:stale_reject"]),
    (22, "reorder_reject_not_regression", &["core:reorder_reject_not_regression"]),
    (23, "aba_overlapping_writes", &["core:aba_overlapping_writes"]),
    (24, "fetch_race_truncate", &["core:fetch_race_truncate"]),
    (25, "huge_divergent_tail", &["core:huge_divergent_tail"]),
    (26, "uncommitted_cap_across_terms", &["core:uncommitted_cap_across_terms"]),
    (27, "single_node_power_loss", &["core:single_node_power_loss"]),
    (28, "kill_all_lossy_fs", &["nothing_acknowledged_is_lost_when_all_nodes_lose_power_at_once"]),
    (
        29,
        "torn_tail and mid_corruption",
        &[
            "a_torn_end_of_the_log_is_cut_off_and_the_node_comes_back",
            "damage_in_the_middle_of_the_log_keeps_a_node_out_and_the_others_go_on",
        ],
    ),
    (
        30,
        "lost_suffix_election_guard",
        &["a_damaged_log_and_an_outdated_one_elect_nobody_rather_than_lose_a_write"],
    ),
    (
        31,
        "ballot_slots_lost",
        &["a_node_whose_log_is_gone_does_not_start_as_if_it_had_never_voted"],
    ),
    (
        32,
        "fsync_error",
        &["core:fsync_error", "a_node_whose_sync_fails_stops_and_comes_back_consistent"],
    ),
    (
        33,
        "apply_crash_replay",
        &[
            "core:apply_crash_replay",
            "a_crash_at_any_write_of_a_single_node_doubles_and_loses_nothing",
        ],
    ),
    (34, "commit_hint_ahead", &["core:commit_hint_ahead"]),
    (
        35,
        "leader_disk_stall",
        &[
            "core:leader_disk_stall",
            "a_disk_that_stalls_costs_its_leader_the_lead_and_a_follower_nothing",
        ],
    ),
    (
        36,
        "follower_disk_stall",
        &["a_disk_that_stalls_costs_its_leader_the_lead_and_a_follower_nothing"],
    ),
    (45, "one_add_one_remove_bug", &["membership:one_add_one_remove_bug"]),
    (46, "recovered_joint", &["membership:recovered_joint"]),
    (47, "two_configs_truncated", &["membership:two_configs_truncated"]),
    (48, "self_removal and replace_leader", &["membership:self_removal_and_replace_leader"]),
    (49, "leader_demotes_self_partitioned", &["membership:leader_demotes_self_partitioned"]),
    (50, "two_member_shrink", &["membership:two_member_shrink"]),
    (51, "dead_learner_never_promoted", &["membership:dead_learner_never_promoted"]),
    (52, "id_reuse_refused", &["membership:id_reuse_refused"]),
    (53, "joint_partition_either_half", &["membership:joint_partition_either_half"]),
    (54, "crash_every_step_of_change", &["membership:crash_every_step_of_change"]),
    (55, "read_before_noop", &["core:read_before_noop"]),
    (56, "read_duplicate_id_late_acks", &["core:read_duplicate_id_late_acks"]),
    (
        57,
        "read_single_node_restart",
        &[
            "core:read_single_node_restart",
            "a_single_node_reads_everything_acknowledged_right_after_its_restart",
        ],
    ),
    (61, "follower_read_leader_change", &["core:follower_read_leader_change"]),
    (62, "transfer_under_load", &["transfer:transfer_under_load"]),
    (63, "transfer_prevote", &["transfer:transfer_prevote"]),
    (
        64,
        "ambiguous_commit_retry",
        &["a_write_whose_answer_was_lost_with_the_leader_takes_effect_once_when_repeated"],
    ),
    (
        66,
        "overload",
        &["core:overload", "ten_times_the_load_is_refused_in_part_and_changes_no_leader"],
    ),
];

/// The table above speaks of tests that exist, and no scenario is held by nothing.
#[test]
fn every_scenario_of_the_table_has_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = fs::read_to_string(root.join("tests/scenarios.rs")).unwrap();
    let core = root.join("../raft-core/tests");
    for (number, name, tests) in SCENARIOS {
        assert!(!tests.is_empty(), "{number} {name} is held by nothing");
        for test in *tests {
            let exists = match test.split_once(':') {
                Some(("core", script)) => core.join(format!("transcripts/{script}.txt")).is_file(),
                Some((file, test)) => {
                    let text = fs::read_to_string(core.join(file).with_extension("rs")).unwrap();
                    text.contains(&format!("#[test]\nfn {test}()"))
                }
                None => here.contains(&format!("#[test]\nfn {test}()")),
            };
            assert!(exists, "{number} {name}: there is no test {test}");
        }
    }
    assert!(SCENARIOS.is_sorted_by_key(|(number, ..)| *number), "in the order of their numbers");
}

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

/// A node's files of the log, in order.
fn segments(disk: &MemVfs) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|found| found == "wal");
    disk.files().into_iter().filter(is_segment).collect()
}

/// A cluster of three that keeps its whole log, in small segments, after some writes.
fn with_a_long_log(seed: u64) -> World {
    let plan = Plan { log_segment_bytes: 16 << 10, value_bytes_max: 600, ..Plan::calm(3) };
    let mut world = world(Plan { operations: 400, ..plan }, seed);
    world.add_clients();
    elect(&mut world);
    world.run_until(30 * SECOND, |world| {
        world.clients_are_done() || (0..3).all(|node| segments(world.disk(node)).len() > 3)
    });
    assert!((0..3).all(|node| segments(world.disk(node)).len() > 3), "seed {seed}: a short log");
    world
}

/// Flips a bit in the middle of a node's first segment.
fn damage_first_segment(world: &mut World, node: usize) {
    let segment = segments(world.disk(node)).swap_remove(0);
    let middle = world.disk(node).content(&segment).unwrap().len() as u64 / 2;
    world.disk(node).flip(&segment, middle, 1).unwrap();
    world.note_damage(node);
}

/// 29 `torn_tail`.
#[test]
fn a_torn_end_of_the_log_is_cut_off_and_the_node_comes_back() {
    let mut torn = 0;
    for (seed, policy) in (0..).zip(CrashPolicy::ALL.into_iter().cycle().take(40)) {
        let mut world = world(Plan { operations: 100, ..Plan::calm(3) }, seed);
        world.add_clients();
        let leader = elect(&mut world);
        world.run_for(200_000 + seed * 1_000);
        world.crash(leader, policy);
        world.start(leader);
        assert!(world.status(leader).is_some(), "seed {seed}: it does not come back");
        torn += conclude(world, &format!("seed {seed} {policy:?}")).counts.torn_writes;
    }
    assert!(torn > 3, "{torn} of 40 ends were torn");
}

/// 29 `mid_corruption`.
#[test]
fn damage_in_the_middle_of_the_log_keeps_a_node_out_and_the_others_go_on() {
    for seed in 0..3 {
        let mut world = with_a_long_log(seed);
        let leader = world.leader().expect("nothing disturbs it");
        let follower = (leader + 1) % 3;
        world.crash(follower, CrashPolicy::LOSE_UNSYNCED);
        damage_first_segment(&mut world, follower);
        world.start(follower);
        let refusal = world.refusal(follower).expect("it starts as if nothing were missing");
        assert!(refusal.contains(".wal"), "seed {seed}: names no file: {refusal}");
        let written = world.execute(leader, &put("key", "after"), SECOND);
        assert!(written.is_some(), "seed {seed}: the others do not commit");
        conclude(world, &format!("seed {seed}"));
    }
}

/// 30 `lost_suffix_election_guard`.
#[test]
fn a_damaged_log_and_an_outdated_one_elect_nobody_rather_than_lose_a_write() {
    for seed in 0..3 {
        let mut world = with_a_long_log(seed);
        let leader = world.leader().expect("nothing disturbs it");
        let (damaged, outdated) = ((leader + 1) % 3, (leader + 2) % 3);
        world.stop_clients();
        world.run_for(SECOND);
        world.crash(outdated, CrashPolicy::LOSE_UNSYNCED);
        let written = world.execute(leader, &put("key", "kept"), SECOND);
        assert!(written.is_some(), "seed {seed}: two of three commit");
        for node in [leader, damaged] {
            world.crash(node, CrashPolicy::LOSE_UNSYNCED);
        }
        damage_first_segment(&mut world, damaged);
        world.start(damaged);
        world.start(outdated);
        world.run_for(10 * SECOND);
        assert_eq!(world.leader(), None, "seed {seed}: a write is lost");
        world.start(leader);
        let read = world.execute(leader, &get("key"), 10 * SECOND);
        assert_value(read, "kept");
        conclude(world, &format!("seed {seed}"));
    }
}

/// 31 `ballot_slots_lost`: the ballot is in the log.
#[test]
fn a_node_whose_log_is_gone_does_not_start_as_if_it_had_never_voted() {
    let mut world = with_a_long_log(1);
    let leader = world.leader().expect("nothing disturbs it");
    let follower = (leader + 1) % 3;
    world.crash(follower, CrashPolicy::LOSE_UNSYNCED);
    let disk = world.disk(follower).clone();
    for segment in segments(&disk) {
        disk.unlink(&segment).unwrap();
        disk.sync_dir(segment.parent().unwrap()).unwrap();
    }
    world.note_damage(follower);
    world.start(follower);
    let refusal = world.refusal(follower).expect("it starts without what it has voted");
    assert!(refusal.contains("new id"), "does not say how to go on: {refusal}");
    conclude(world, "the log is gone");
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
    assert_eq!(report.counts.terms_led, 1, "no election but the first");
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
