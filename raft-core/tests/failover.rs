//! How soon a leader is replaced: one whose connections break, and one whose disk stalls; and how
//! little a broken link or a slow follower disturbs.

use std::time::Duration;

use bytes::Bytes;
use raft_core::{Config, Envelope, Input, LogPos, Message, RoleKind, Term, VoteKind};

use crate::{
    cluster::{Cluster, End, node_id as n, voters},
    membership::{end, learner, led, run},
};

fn disconnect(cluster: &mut Cluster, at: u64, from: u64) {
    cluster.input(n(at), Input::PeerDisconnected(n(from)));
}

/// Whether `at` answers a trial request of `from` for the next term with its vote.
fn votes(cluster: &mut Cluster, at: u64, from: u64) -> bool {
    let status = cluster.status(n(at));
    let msg = Message::Vote { kind: VoteKind::Pre, last: status.last };
    let term = Term(status.ballot.term.0 + 1);
    cluster.network.clear();
    cluster.input(n(at), Input::Message(Envelope { from: n(from), to: n(at), term, msg }));
    let granted = |it: &Envelope| matches!(it.msg, Message::VoteReply { granted: true, .. });
    let granted = cluster.network.iter().any(granted);
    cluster.network.clear();
    granted
}

#[test]
fn leader_whose_process_ends_is_replaced_within_two_heartbeats() {
    for seed in 0..50 {
        let mut cluster = Cluster::new(voters(3), &Config::default(), seed);
        cluster.timeout(n(1));
        run(&mut cluster, 200);
        cluster.crash(n(1), 0);
        cluster.network.clear();
        disconnect(&mut cluster, 2, 1);
        disconnect(&mut cluster, 3, 1);
        run(&mut cluster, 100);
        assert_eq!(cluster.leaders().len(), 1, "seed {seed}: nobody leads 100 ms later");
    }
}

#[test]
fn single_broken_link_disturbs_nothing() {
    let mut cluster = led(3);
    run(&mut cluster, 200);
    let term = cluster.status(n(1)).ballot.term;
    cluster.cut.extend([(n(1), n(2)), (n(2), n(1))]);
    disconnect(&mut cluster, 2, 1);
    disconnect(&mut cluster, 1, 2);
    run(&mut cluster, 3_000);
    let ticket = cluster.propose(n(1), vec![Bytes::from_static(b"x")]);
    run(&mut cluster, 100);
    assert_eq!(end(&cluster, ticket), Some(End::Applied));
    assert_eq!((cluster.leaders(), cluster.status(n(1)).ballot.term), (vec![n(1)], term));
    assert_eq!(cluster.status(n(2)).role, RoleKind::PreCandidate, "it asks and is refused");
    cluster.cut.clear();
    run(&mut cluster, 200);
    assert_eq!(cluster.status(n(2)).leader, Some(n(1)));
    assert_eq!(cluster.status(n(1)).ballot.term, term);
}

#[test]
fn follower_is_loyal_again_once_it_hears_of_its_leader() {
    let mut cluster = led(3);
    run(&mut cluster, 200);
    assert!(!votes(&mut cluster, 2, 3), "it hears the leader");
    disconnect(&mut cluster, 2, 3);
    assert!(!votes(&mut cluster, 2, 3), "the connection to another does not matter");
    disconnect(&mut cluster, 2, 1);
    assert!(votes(&mut cluster, 2, 3), "it has no connection to a leader");
    let until = cluster.now.after(Duration::from_millis(200));
    while cluster.now < until {
        cluster.timeout(n(1));
        cluster.settle();
    }
    assert!(!votes(&mut cluster, 2, 3), "the leader is back");
}

#[test]
fn broken_connection_means_nothing_where_the_hint_is_off() {
    let config = Config { fast_failover: false, ..Config::default() };
    let mut cluster = Cluster::new(voters(3), &config, 5);
    cluster.timeout(n(1));
    run(&mut cluster, 200);
    let before = cluster.node(n(2)).raft.as_ref().map(raft_core::Raft::deadline);
    disconnect(&mut cluster, 2, 1);
    assert_eq!(cluster.node(n(2)).raft.as_ref().map(raft_core::Raft::deadline), before);
    assert!(!votes(&mut cluster, 2, 3), "it stays loyal");
}

#[test]
fn learner_without_a_leader_still_does_not_stand() {
    let mut cluster = led(3);
    let id = learner(&mut cluster, n(1));
    cluster.crash(n(1), 0);
    cluster.crash(n(2), 0);
    cluster.crash(n(3), 0);
    cluster.input(id, Input::PeerDisconnected(n(1)));
    run(&mut cluster, 2_000);
    assert_eq!(cluster.status(id).counters.pre_elections, 0);
}

/// Runs the cluster for so long while the writes of one node never end.
fn run_with_stalled_disk(cluster: &mut Cluster, stalled: u64, millis: u64) {
    let until = cluster.now.after(Duration::from_millis(millis));
    while cluster.now < until {
        for id in cluster.ids() {
            if id != n(stalled) {
                cluster.persist(id, usize::MAX);
            }
            while !cluster.node(id).to_apply.is_empty() {
                cluster.apply(id);
            }
        }
        for envelope in core::mem::take(&mut cluster.network) {
            cluster.deliver(envelope);
        }
        cluster.now = cluster.now.after(Duration::from_millis(1));
        for id in cluster.ids() {
            let due = cluster.node(id).raft.as_ref().is_some_and(|it| it.deadline() <= cluster.now);
            if due {
                cluster.input(id, Input::Timer);
            }
        }
    }
}

/// hashicorp/raft#503: the leader's process runs, its disk does not. `leader_disk_stall` of the
/// transcripts shows its silence; here it is replaced, steps down, and writes go on.
#[test]
fn leader_disk_stall_moves_leadership() {
    let mut cluster = led(3);
    run(&mut cluster, 200);
    cluster.propose(n(1), vec![Bytes::from_static(b"x")]);
    let config = Config::default();
    let bound = config.persist_stall + 2 * (config.election_min + config.election_jitter);
    let bound = u64::try_from(bound.as_millis()).expect("short");
    run_with_stalled_disk(&mut cluster, 1, bound);
    let leaders = cluster.leaders();
    assert!(leaders.len() == 1 && leaders[0] != n(1), "{leaders:?} lead");
    let ticket = cluster.propose(leaders[0], vec![Bytes::from_static(b"y")]);
    run_with_stalled_disk(&mut cluster, 1, 100);
    assert_eq!(end(&cluster, ticket), Some(End::Applied), "writes resume");
}

#[test]
fn follower_disk_stall_holds_up_nobody() {
    let config = Config { max_inflight_messages: 4, ..Config::default() };
    let mut cluster = Cluster::new(voters(3), &config, 5);
    cluster.timeout(n(1));
    run(&mut cluster, 200);
    let mut last = None;
    for _ in 0..300 {
        last = Some(cluster.propose(n(1), vec![Bytes::from_static(b"x")]));
        run_with_stalled_disk(&mut cluster, 3, 10);
    }
    let last = last.expect("300 were proposed");
    run_with_stalled_disk(&mut cluster, 3, 100);
    assert_eq!(end(&cluster, last), Some(End::Applied), "the others are a quorum");
    assert_eq!(cluster.leaders(), [n(1)], "and the slow one disturbs nobody");
    let status = cluster.status(n(1));
    let slow = status.peers.iter().find(|peer| peer.id == n(3)).expect("a peer");
    assert!(slow.inflight_messages <= 4, "{slow:?}");
    assert!(cluster.node(n(3)).writes.len() <= 10, "what it has to write is bounded");
    run(&mut cluster, 1_000);
    let end_of = |id| cluster.status(n(id)).last;
    assert_eq!((end_of(3), cluster.status(n(3)).durable), (end_of(1), end_of(1).index));
    assert_ne!(end_of(3), LogPos::default());
}
