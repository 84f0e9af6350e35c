//! What the world itself checks, broken once by hand: bounds, answers, and the return of a quiet cluster.

use raft_core::LogIndex;

use super::network::LinkQuality;
use super::node::Token;
use super::plan::Plan;
use super::random::Random;
use super::world::{Call, Waiting, World};
use super::{Options, check_equal, check_steady, converge, get, put};

const SECOND: u64 = 1_000_000;

/// Three nodes, one of which leads.
fn led() -> (World, usize) {
    let mut world = World::new(Plan::calm(3), Random::new(1), &Options::default());
    world.start_all();
    assert!(world.run_until(5 * SECOND, |world| world.leader().is_some()), "nobody leads");
    let leader = world.leader().unwrap();
    world.run_for(SECOND);
    (world, leader)
}

#[track_caller]
fn assert_failed(world: &World, by: &str) {
    let what = world.failure.as_deref().expect("the check does not fire");
    assert!(what.starts_with(by), "fires as {what}");
}

#[test]
fn nothing_fires_in_a_cluster_that_is_well() {
    let (mut world, _) = led();
    converge(&mut world);
    assert_eq!(world.failure, None);
}

#[test]
fn l1_fires_when_nobody_leads() {
    let (mut world, _) = led();
    for node in 0..3 {
        world.network_mut().partition(&[node]);
    }
    world.run_for(2 * SECOND);
    converge(&mut world);
    assert_failed(&world, "L1:");
}

#[test]
fn l2_fires_when_no_write_is_answered() {
    let (mut world, _) = led();
    world.network_mut().set_all(LinkQuality { lost: 1_000, ..LinkQuality::CALM });
    converge(&mut world);
    assert_failed(&world, "L2:");
}

#[test]
fn l3_fires_when_a_member_stays_behind() {
    let (mut world, leader) = led();
    world.set_disk_slowness((leader + 1) % 3, 1_000_000);
    assert!(world.execute(leader, &put("key", "value"), SECOND).is_some());
    check_equal(&mut world);
    assert_failed(&world, "L3:");
}

#[test]
fn l5_fires_when_a_member_does_not_hold_what_was_written() {
    let (mut world, leader) = led();
    assert!(world.execute(leader, &put("key", "value"), SECOND).is_some());
    world.run_for(SECOND);
    world.check_contents();
    assert_eq!(world.failure, None);
    world.checkers.model = crate::model::Model::new();
    world.check_contents();
    assert_failed(&world, "L5:");
}

#[test]
fn l6_fires_when_an_idle_node_keeps_something() {
    let (mut world, leader) = led();
    let machine = world.nodes[leader].machine.as_mut().unwrap();
    machine.reads.push((LogIndex(1 << 40), Token(1 << 40)));
    world.check_nobody_waits();
    assert_failed(&world, "L6:");
}

#[test]
fn l7_fires_when_a_quiet_cluster_elects() {
    let (mut world, leader) = led();
    world.pause(leader);
    check_steady(&mut world);
    assert_failed(&world, "L7:");
}

#[test]
fn i26_fires_when_someone_is_answered_twice_or_never() {
    let (mut world, leader) = led();
    let call = Call { client: 0, lane: 0, attempt: 1, request: get("key"), floor: 0 };
    let waiting = Waiting { node: leader, call, via: None, applying: None };
    world.waiting.insert(Token(77), waiting);
    world.check_nobody_waits();
    assert_failed(&world, "I26:");

    let (mut world, leader) = led();
    let unknown = raft_rpc::WireError::NoLeader { node: 1 };
    world.answer(leader, Token(78), Err(unknown));
    assert_failed(&world, "I26:");
}
