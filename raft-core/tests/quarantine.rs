//! Lost ends of logs as scenarios: who notices, who does not vote, and when that ends.

use std::time::Duration;

use bytes::Bytes;
use raft_core::{
    Config, Envelope, Input, LogIndex, Message, NodeId, Quarantine, RoleKind, Term, Ticket,
};

use crate::cluster::{Cluster, End, node_id as n, slot, voters};

fn config() -> Config {
    Config { quarantine: true, ..Config::default() }
}

fn run(cluster: &mut Cluster, millis: u64) {
    let until = cluster.now.after(Duration::from_millis(millis));
    cluster.run_until(until);
}

/// `count` voters, led by the first, with `writes` writes everywhere.
fn led(config: &Config, count: u64, writes: usize) -> Cluster {
    let mut cluster = Cluster::new(voters(count), config, 17);
    cluster.timeout(n(1));
    run(&mut cluster, 100);
    assert_eq!(cluster.leaders(), [n(1)], "the first leads");
    for _ in 0..writes {
        write(&mut cluster, n(1));
    }
    run(&mut cluster, 300);
    cluster
}

fn write(cluster: &mut Cluster, leader: NodeId) -> Ticket {
    cluster.propose(leader, vec![Bytes::from_static(b"x")])
}

fn isolate(cluster: &mut Cluster, id: NodeId) {
    for other in cluster.ids() {
        cluster.cut.insert((id, other));
        cluster.cut.insert((other, id));
    }
}

/// A node goes down, loses what is after its first `left` entries, and starts again.
fn lose(cluster: &mut Cluster, id: NodeId, left: usize, quarantine: Option<Quarantine>) {
    cluster.crash(id, usize::MAX);
    cluster.lose(id, left, quarantine);
    cluster.restart(id);
}

fn votes_of(cluster: &Cluster, id: NodeId) -> usize {
    let is_grant = |it: &&Envelope| {
        it.from == id && matches!(it.msg, Message::VoteReply { granted: true, .. })
    };
    cluster.network.iter().filter(is_grant).count()
}

/// Two of three have a write; one of them loses it. With the third, which never had it, it must not elect
/// anybody: rather nobody leads than somebody without the write.
#[test]
fn lost_suffix_election_guard() {
    for (quarantine, safe) in [
        (Some(Quarantine::Until(LogIndex(6))), true),
        (Some(Quarantine::After(Term(1))), true),
        (None, false),
    ] {
        let mut cluster = led(&Config::default(), 3, 1);
        isolate(&mut cluster, n(3));
        let ticket = write(&mut cluster, n(1));
        for _ in 0..3 {
            write(&mut cluster, n(1));
        }
        run(&mut cluster, 100);
        assert_eq!(cluster.checks.outcomes.get(&ticket), Some(&End::Applied), "two have it");
        assert_eq!(cluster.status(n(2)).last.index, LogIndex(6), "what it had");
        cluster.crash(n(1), usize::MAX);
        lose(&mut cluster, n(2), 2, quarantine);
        cluster.cut.clear();
        let last = cluster.status(n(3)).last.index;
        assert_eq!(last, LogIndex(2), "it never had the write");
        // Not through the checks: without quarantine they would rightly stop the test.
        let term = Term(cluster.status(n(2)).ballot.term.0 + 1);
        let last = cluster.status(n(3)).last;
        let msg = Message::Vote { kind: raft_core::VoteKind::Real, last };
        cluster.input(n(2), Input::Message(Envelope { from: n(3), to: n(2), term, msg }));
        cluster.persist(n(2), usize::MAX);
        assert_eq!(votes_of(&cluster, n(2)), usize::from(!safe), "{quarantine:?}");
        if safe {
            cluster.network.clear();
            run(&mut cluster, 5_000);
            assert!(cluster.leaders().is_empty(), "nobody may lead");
            assert_eq!(cluster.status(n(2)).counters.pre_elections, 0, "nor does it ask");
            cluster.restart(n(1));
            run(&mut cluster, 3_000);
            assert_eq!(cluster.leaders(), [n(1)], "who has everything leads");
            assert_eq!(cluster.status(n(2)).quarantine, None, "and the other has it again");
            assert_eq!(cluster.node(n(2)).disk.quarantine, None, "on disk too");
            assert_eq!(cluster.node(n(2)).state, cluster.node(n(1)).state, "all of it");
        }
    }
}

/// The node does not notice its loss, the leader does: by the answer to its next heartbeat.
#[test]
fn leader_notices_a_loss_and_the_node_goes_into_quarantine() {
    let mut cluster = led(&config(), 3, 5);
    let had = cluster.status(n(1)).last.index;
    // Appends to it are lost, so that it stays behind while heartbeats come through.
    lose(&mut cluster, n(2), 3, None);
    assert_eq!(cluster.status(n(2)).quarantine, None, "it does not know");
    let told = |it: &Envelope| it.msg == Message::Regressed { had };
    let mut seen = 0;
    for _ in 0..40 {
        cluster.now = cluster.now.after(Duration::from_millis(10));
        cluster.input(n(1), Input::Timer);
        cluster.persist(n(2), usize::MAX);
        for envelope in core::mem::take(&mut cluster.network) {
            seen += usize::from(told(&envelope));
            let brings =
                matches!(&envelope.msg, Message::Append { entries, .. } if !entries.is_empty());
            if !brings {
                cluster.deliver(envelope);
            }
        }
    }
    assert!(seen >= 3, "it is told {seen} times: with every heartbeat");
    assert_eq!(cluster.status(n(2)).quarantine, Some(Quarantine::Until(had)));
    assert_eq!(cluster.node(n(2)).disk.quarantine, Some(Quarantine::Until(had)), "on disk");
    assert_eq!(cluster.status(n(1)).counters.losses, 1, "it is one loss");
    let peers = cluster.status(n(1)).peers;
    assert!(peers[0].matched < had, "the leader believes nothing of before");
    // A restart does not end it; to have everything again does.
    cluster.crash(n(2), usize::MAX);
    cluster.restart(n(2));
    assert_eq!(cluster.status(n(2)).quarantine, Some(Quarantine::Until(had)));
    run(&mut cluster, 500);
    assert_eq!(cluster.status(n(2)).quarantine, None);
    assert_eq!(cluster.node(n(2)).disk.quarantine, None, "on disk");
    assert_eq!(cluster.leaders(), [n(1)], "nobody was disturbed");
    let quiet = cluster.checks.tally.quarantined;
    run(&mut cluster, 1_000);
    assert_eq!(cluster.checks.tally.quarantined, quiet, "it is not told again");
}

#[test]
fn loss_is_neither_looked_for_nor_believed_unless_the_settings_say_so() {
    let mut cluster = led(&Config::default(), 3, 5);
    cluster.crash(n(2), usize::MAX);
    cluster.lose(n(2), 3, None);
    cluster.restart(n(2));
    run(&mut cluster, 500);
    assert_eq!(cluster.status(n(1)).counters.losses, 0);
    let term = cluster.status(n(1)).ballot.term;
    let msg = Message::Regressed { had: LogIndex(100) };
    cluster.input(n(3), Input::Message(Envelope { from: n(1), to: n(3), term, msg }));
    assert_eq!(cluster.status(n(3)).quarantine, None);
}

/// What proves nothing: rejections of messages that were sent before the follower had said anything, and
/// that overtake each other.
#[test]
fn reorder_reject_not_regression() {
    let mut cluster = led(&config(), 3, 0);
    // The second of two appends arrives first, is rejected, and the rejection comes after the success.
    for _ in 0..2 {
        write(&mut cluster, n(1));
    }
    cluster.persist(n(1), usize::MAX);
    let mut late = Vec::new();
    for envelope in core::mem::take(&mut cluster.network).into_iter().rev() {
        cluster.deliver(envelope);
        cluster.persist(n(2), usize::MAX);
        cluster.persist(n(3), usize::MAX);
    }
    for envelope in core::mem::take(&mut cluster.network) {
        if matches!(envelope.msg, Message::AppendReject { .. }) {
            late.push(envelope);
        } else {
            cluster.deliver(envelope);
        }
    }
    assert!(!late.is_empty(), "something was rejected");
    late.into_iter().for_each(|envelope| cluster.deliver(envelope));
    assert_eq!(cluster.status(n(1)).counters.losses, 0);
    run(&mut cluster, 500);
    assert_eq!(cluster.status(n(1)).counters.losses, 0);
}

/// Only its leader's word counts, of this term.
#[test]
fn word_of_a_loss_is_believed_from_the_leader_alone() {
    let mut cluster = led(&config(), 3, 3);
    let term = cluster.status(n(1)).ballot.term;
    let msg = || Message::Regressed { had: LogIndex(50) };
    for (from, term) in [(n(3), term), (n(1), Term(term.0 - 1)), (n(1), Term(term.0 + 1))] {
        cluster.input(n(2), Input::Message(Envelope { from, to: n(2), term, msg: msg() }));
        assert_eq!(cluster.status(n(2)).quarantine, None, "from {from} in {term}");
    }
    let had = cluster.status(n(2)).durable;
    let msg = Message::Regressed { had };
    cluster.input(n(2), Input::Message(Envelope { from: n(1), to: n(2), term, msg }));
    assert_eq!(cluster.status(n(2)).quarantine, None, "it has that");
}

/// A node that does not know how much it had needs an entry of a later term, committed: one of the same
/// term may be of a leader that was elected without what was lost.
#[test]
fn unknown_loss_ends_with_a_committed_entry_of_a_later_term() {
    let mut cluster = led(&config(), 3, 5);
    let term = cluster.status(n(1)).ballot.term;
    lose(&mut cluster, n(2), 3, Some(Quarantine::After(term)));
    write(&mut cluster, n(1));
    run(&mut cluster, 300);
    assert_eq!(cluster.node(n(2)).state, cluster.node(n(1)).state, "it has everything, in fact");
    assert_eq!(cluster.status(n(2)).quarantine, Some(Quarantine::After(term)), "but cannot know");
    let _transfer = cluster.transfer(n(1), Some(n(2)));
    run(&mut cluster, 400);
    assert_eq!(cluster.leaders(), [n(1)], "it does not take over either");
    let _transfer = cluster.transfer(n(1), Some(n(3)));
    run(&mut cluster, 400);
    assert_eq!(cluster.leaders(), [n(3)]);
    assert_eq!(cluster.status(n(2)).quarantine, None, "the new leader's first entry is committed");
}

/// In quarantine a node still holds what it acknowledges: with it the leader commits.
#[test]
fn node_in_quarantine_acknowledges_what_it_has() {
    let mut cluster = led(&config(), 3, 5);
    lose(&mut cluster, n(2), 3, Some(Quarantine::Until(LogIndex(100))));
    isolate(&mut cluster, n(3));
    let ticket = write(&mut cluster, n(1));
    run(&mut cluster, 250);
    assert_eq!(cluster.checks.outcomes.get(&ticket), Some(&End::Applied));
    assert_eq!(cluster.status(n(2)).quarantine, Some(Quarantine::Until(LogIndex(100))));
    assert_eq!(cluster.status(n(2)).role, RoleKind::Follower);
}

/// A transfer that was begun and whose leader's first entry is no longer in the log ends as it should.
#[test]
fn transfer_ends_as_it_should_after_the_log_was_cut() {
    let compaction = raft_core::Compaction {
        trailing_entries: 1,
        trailing_bytes: 1 << 20,
        lag_bytes_max: 1 << 20,
    };
    let config = Config { compaction: Some(compaction), ..Config::default() };
    let mut cluster = led(&config, 3, 10);
    let held = cluster.node(n(1)).state.len();
    cluster.keep(n(1), held);
    assert!(cluster.status(n(1)).base.index > LogIndex(1), "its first entry is gone");
    let ticket = cluster.transfer(n(1), Some(n(2)));
    isolate(&mut cluster, n(1));
    cluster.network.clear();
    run(&mut cluster, 250);
    cluster.input(n(1), Input::PersistFailed);
    let end = cluster.checks.outcomes.get(&ticket).copied();
    assert_ne!(end, Some(End::Reply(raft_core::Outcome::Done)), "{end:?}");
    assert!(cluster.nodes[slot(n(1))].fatal.is_some());
}
