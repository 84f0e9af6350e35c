//! Handing leadership over: under load, to whom it cannot be, and with messages lost or late.

use std::time::Duration;

use bytes::Bytes;
use raft_core::{
    Config, Effect, Envelope, Input, LogIndex, Message, NodeChange, NodeId, Outcome, Reject,
    RoleKind, Term, Ticket, TransferError, VoteKind,
};

use crate::{
    cluster::{Cluster, End, node_id as n},
    membership::{end, learner, led, run},
};

const DONE: Option<End> = Some(End::Reply(Outcome::Done));

fn refused(why: TransferError) -> Option<End> {
    Some(End::Reply(Outcome::Rejected(Reject::Transfer(why))))
}

fn write(cluster: &mut Cluster, leader: NodeId) -> Ticket {
    cluster.propose(leader, vec![Bytes::from_static(b"x")])
}

/// Delivers what is under way now, in order, and nothing that follows from it.
fn deliver_all(cluster: &mut Cluster) {
    for envelope in core::mem::take(&mut cluster.network) {
        cluster.deliver(envelope);
    }
}

fn told(cluster: &Cluster) -> usize {
    let told = |it: &&Envelope| matches!(it.msg, Message::TimeoutNow { .. });
    cluster.network.iter().filter(told).count()
}

#[test]
fn transfer_under_load() {
    for (to, cut) in [(Some(2), false), (None, false), (Some(2), true)] {
        let mut cluster = led(3);
        run(&mut cluster, 100);
        let writes: Vec<Ticket> = (0..1_000).map(|_| write(&mut cluster, n(1))).collect();
        let began = cluster.now;
        let ticket = cluster.transfer(n(1), to.map(n));
        let blocked = write(&mut cluster, n(1));
        let to_node = to.map_or(n(2), n);
        let blocked_by = Reject::Transferring { to: to_node };
        assert_eq!(end(&cluster, blocked), Some(End::Reply(Outcome::Rejected(blocked_by))));
        let second = cluster.transfer(n(1), Some(n(3)));
        assert_eq!(end(&cluster, second), Some(End::Reply(Outcome::Rejected(blocked_by))));
        let change = cluster.change(n(1), NodeChange::Remove(n(3)));
        assert_eq!(end(&cluster, change), Some(End::Reply(Outcome::Rejected(blocked_by))));
        if cut {
            cluster.cut.insert((n(1), n(2)));
            cluster.network.retain(|it| it.to != n(2));
        }
        while end(&cluster, ticket).is_none() {
            run(&mut cluster, 10);
            let took = cluster.now.since(began);
            assert!(took <= Config::default().election_min + Duration::from_millis(10));
        }
        run(&mut cluster, 100);
        if cut {
            assert_eq!(end(&cluster, ticket), refused(TransferError::TimedOut(n(2))));
            assert_eq!(cluster.leaders(), [n(1)]);
            write(&mut cluster, n(1));
        } else {
            assert_eq!(end(&cluster, ticket), DONE);
            assert_eq!(cluster.leaders(), [n(2)]);
            let elections = cluster.status(n(2)).counters;
            assert_eq!((elections.pre_elections, elections.elections), (0, 1));
        }
        cluster.cut.clear();
        run(&mut cluster, 2_000);
        // All were in the log before the fence, so they are committed, whatever their callers heard.
        let state = cluster.node(n(2)).state.len();
        assert!(state > 1_000, "only {state} entries are applied");
        let lost = |it: &&Ticket| {
            !matches!(end(&cluster, **it), Some(End::Applied | End::Reply(Outcome::Unknown)))
        };
        assert_eq!(writes.iter().filter(lost).count(), 0);
    }
}

/// lni/dragonboat#223: a heartbeat of the old leader reaches the target while it stands.
#[test]
fn transfer_prevote() {
    let mut cluster = led(3);
    run(&mut cluster, 100);
    let ticket = cluster.transfer(n(1), Some(n(2)));
    assert_eq!(told(&cluster), 1, "it has everything already");
    deliver_all(&mut cluster);
    assert_eq!(cluster.status(n(2)).role, RoleKind::Candidate, "without a trial");
    cluster.timeout(n(1));
    let heartbeats: Vec<Envelope> =
        cluster.network.iter().filter(|it| it.from == n(1) && it.to == n(2)).cloned().collect();
    assert!(!heartbeats.is_empty());
    heartbeats.into_iter().for_each(|it| cluster.deliver(it));
    assert_eq!(cluster.status(n(2)).role, RoleKind::Candidate, "it stays one");
    cluster.persist(n(2), 1);
    let asked = |it: &&Envelope| matches!(it.msg, Message::Vote { kind: VoteKind::Transfer, .. });
    let asked: Vec<Envelope> = cluster.network.iter().filter(asked).cloned().collect();
    assert_eq!(asked.len(), 2);
    // Node 3 has just heard of the leader, and votes nevertheless.
    asked.into_iter().filter(|it| it.to == n(3)).for_each(|it| cluster.deliver(it));
    assert_eq!(cluster.status(n(3)).ballot.voted_for, Some(n(2)));
    run(&mut cluster, 100);
    assert_eq!((cluster.leaders(), end(&cluster, ticket)), (vec![n(2)], DONE));
}

#[test]
fn nobody_is_told_before_it_has_the_whole_log() {
    let mut cluster = led(3);
    run(&mut cluster, 100);
    write(&mut cluster, n(1));
    let fence = cluster.status(n(1)).last;
    let _ticket = cluster.transfer(n(1), Some(n(2)));
    assert_eq!(told(&cluster), 0);
    deliver_all(&mut cluster);
    assert_eq!(told(&cluster), 0, "it is not durable there");
    cluster.persist(n(2), 1);
    deliver_all(&mut cluster);
    let message = cluster.network.iter().find(|it| matches!(it.msg, Message::TimeoutNow { .. }));
    let message = message.expect("it has acknowledged everything").clone();
    assert_eq!((message.to, message.msg), (n(2), Message::TimeoutNow { at: fence }));
}

#[test]
fn lost_message_to_take_over_is_repeated_with_the_heartbeat() {
    let mut cluster = led(3);
    run(&mut cluster, 100);
    let ticket = cluster.transfer(n(1), Some(n(2)));
    cluster.network.clear();
    run(&mut cluster, 100);
    assert_eq!((cluster.leaders(), end(&cluster, ticket)), (vec![n(2)], DONE));
}

#[test]
fn transfer_that_cannot_succeed_is_refused_with_the_reason() {
    let mut cluster = led(3);
    let id = learner(&mut cluster, n(1));
    let ask = |cluster: &mut Cluster, at: u64, to: Option<NodeId>| {
        let ticket = cluster.transfer(n(at), to);
        end(cluster, ticket)
    };
    assert_eq!(ask(&mut cluster, 1, Some(id)), refused(TransferError::NotVoter(id)));
    assert_eq!(ask(&mut cluster, 1, Some(n(1))), DONE, "it leads already");
    let hint = Reject::NotLeader { hint: Some(n(1)) };
    assert_eq!(ask(&mut cluster, 2, Some(n(3))), Some(End::Reply(Outcome::Rejected(hint))));
    cluster.now = cluster.now.after(Duration::from_millis(301));
    assert_eq!(ask(&mut cluster, 1, Some(n(3))), refused(TransferError::Silent(n(3))));
    assert_eq!(ask(&mut cluster, 1, None), refused(TransferError::NoTarget));
}

#[test]
fn only_the_leader_of_the_term_can_make_a_node_stand() {
    let mut cluster = led(3);
    run(&mut cluster, 100);
    let status = cluster.status(n(2));
    let (term, at) = (status.ballot.term, status.last);
    let mut say = |from: u64, term: Term, at| {
        let envelope = Envelope { from: n(from), to: n(2), term, msg: Message::TimeoutNow { at } };
        cluster.input(n(2), Input::Message(envelope));
        cluster.status(n(2)).role
    };
    assert_eq!(say(3, term, at), RoleKind::Follower, "it does not lead");
    assert_eq!(say(1, Term(term.0 + 1), at), RoleKind::Follower, "not in this term");
    assert_eq!(say(1, Term(term.0 - 1), at), RoleKind::Follower, "not in this term");
    let beyond = raft_core::LogPos { index: LogIndex(at.index.0 + 1), ..at };
    assert_eq!(say(1, term, beyond), RoleKind::Follower, "it has not the whole log");
    assert_eq!(say(1, term, at), RoleKind::Candidate);
}

/// The second step of a change would push the log beyond what the target is known to have.
#[test]
fn joint_membership_is_not_left_during_a_transfer() {
    let mut cluster = led(3);
    run(&mut cluster, 100);
    let change = cluster.change(n(1), NodeChange::Demote(n(3)));
    let fence = cluster.status(n(1)).last.index;
    cluster.cut.insert((n(1), n(2)));
    cluster.network.retain(|it| it.to != n(2));
    // The target gets nothing; node 3 and the leader commit the joint membership only with it.
    let transfer = cluster.transfer(n(1), Some(n(2)));
    run(&mut cluster, 50);
    cluster.cut.clear();
    cluster.keep_journal = true;
    while end(&cluster, transfer).is_none() {
        assert!(
            cluster.status(n(1)).role != RoleKind::Leader
                || cluster.status(n(1)).last.index == fence,
            "the leader appends during the transfer"
        );
        if !cluster.settle_once() {
            cluster.timeout(n(1));
        }
    }
    run(&mut cluster, 1_000);
    let led = cluster.journal.iter().filter(
        |(_, effect)| matches!(effect, Effect::Role(change) if change.role == RoleKind::Leader),
    );
    assert_eq!(led.count(), 1, "one hand-over");
    assert_eq!(end(&cluster, transfer), DONE);
    assert_eq!(end(&cluster, change), Some(End::Reply(Outcome::Unknown)), "the next one ends it");
    let membership = cluster.status(n(2)).membership;
    assert!(!membership.is_joint() && membership.learners().contains(&n(3)));
}
