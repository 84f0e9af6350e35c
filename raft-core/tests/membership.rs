//! Changes of the membership as scenarios: who may join, vote and leave, what a crash at any moment
//! leaves behind, and what is refused.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use raft_core::{
    Ballot, Body, ChangeError, Config, Effect, Entry, LogIndex, LogPos, Membership,
    MembershipChange, Message, NodeChange, NodeId, NodeInfo, Outcome, Reject, RoleKind, Term,
    Ticket, Voters,
};

use crate::cluster::{Cluster, Disk, End, log_of, node_id as n, voters};

/// `count` voters, led by the first, with something committed.
pub(crate) fn led(count: u64) -> Cluster {
    let mut cluster = Cluster::new(voters(count), &Config::default(), 5);
    cluster.timeout(n(1));
    run(&mut cluster, 100);
    assert_eq!(cluster.leaders(), [n(1)], "the first leads");
    cluster
}

pub(crate) fn run(cluster: &mut Cluster, millis: u64) {
    let until = cluster.now.after(Duration::from_millis(millis));
    cluster.run_until(until);
}

pub(crate) fn end(cluster: &Cluster, ticket: Ticket) -> Option<End> {
    cluster.checks.outcomes.get(&ticket).copied()
}

const DONE: Option<End> = Some(End::Reply(Outcome::Done));

fn refused(why: ChangeError) -> Option<End> {
    Some(End::Reply(Outcome::Rejected(Reject::Change(why))))
}

fn add(id: NodeId) -> NodeChange {
    NodeChange::AddLearner { id, info: NodeInfo::default() }
}

/// Another node joins, is added as a learner and catches up.
pub(crate) fn learner(cluster: &mut Cluster, leader: NodeId) -> NodeId {
    let id = cluster.join();
    let ticket = cluster.change(leader, add(id));
    run(cluster, 400);
    assert_eq!(end(cluster, ticket), DONE, "it is added");
    id
}

fn set(ids: &[u64]) -> std::collections::BTreeSet<NodeId> {
    ids.iter().copied().map(n).collect()
}

/// Links between the two groups lose everything.
fn part(cluster: &mut Cluster, one: &[u64], other: &[u64]) {
    for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (n(*a), n(*b)))) {
        cluster.cut.insert((a, b));
        cluster.cut.insert((b, a));
    }
}

fn write(cluster: &mut Cluster, leader: NodeId) -> Ticket {
    cluster.propose(leader, vec![Bytes::from_static(b"x")])
}

/// Every member has this uniform membership, and a write goes through.
fn works_with(cluster: &mut Cluster, voters: &[u64]) {
    let leaders = cluster.leaders();
    assert_eq!(leaders.len(), 1, "{leaders:?} lead");
    let ticket = write(cluster, leaders[0]);
    run(cluster, 200);
    assert_eq!(end(cluster, ticket), Some(End::Applied), "a write");
    let wanted = Voters::Uniform(set(voters));
    for id in voters {
        assert_eq!(*cluster.status(n(*id)).membership.voters(), wanted, "node {id}");
    }
    assert!(voters.contains(&leaders[0].get()), "{leaders:?} leads without a vote");
}

/// One small step of whoever has something to do: a write, an applied batch, one message.
fn small_step(cluster: &mut Cluster) -> bool {
    for id in cluster.ids() {
        if cluster.is_up(id) && !cluster.node(id).writes.is_empty() {
            cluster.persist(id, 1);
            return true;
        }
        if cluster.is_up(id) && !cluster.node(id).to_apply.is_empty() {
            cluster.apply(id);
            return true;
        }
        if cluster.is_up(id) && !cluster.node(id).fetches.is_empty() {
            cluster.fetch(id);
            return true;
        }
    }
    cluster.network.pop_front().is_some_and(|envelope| {
        cluster.deliver(envelope);
        true
    })
}

#[test]
fn new_node_joins_catches_up_and_votes() {
    let mut cluster = led(3);
    for _ in 0..20 {
        write(&mut cluster, n(1));
    }
    let id = learner(&mut cluster, n(1));
    let status = cluster.status(n(1));
    assert!(status.membership.learners().contains(&id) && !status.membership.is_voter(id));
    assert_eq!(cluster.node(id).state, cluster.node(n(1)).state, "it has all of the log");
    let promoted = cluster.change(n(1), NodeChange::Promote(id));
    let second = cluster.change(n(1), NodeChange::Remove(n(2)));
    run(&mut cluster, 200);
    assert_eq!(end(&cluster, promoted), DONE);
    let pending = Some(End::Reply(Outcome::Rejected(Reject::Change(ChangeError::Pending {
        at: LogIndex(cluster.status(n(1)).membership_at.0 - 1),
    }))));
    assert_eq!(end(&cluster, second), pending, "one change at a time");
    works_with(&mut cluster, &[1, 2, 3, 4]);
    assert_eq!(cluster.checks.tally.joint, 1, "the way led through a joint membership");
}

#[test]
fn whole_membership_is_replaced_at_once() {
    let mut cluster = led(3);
    let new: Vec<NodeId> = (0..3).map(|_| learner(&mut cluster, n(1))).collect();
    let changes = new.iter().map(|id| NodeChange::Promote(*id));
    let gone = (1..=3).map(|id| NodeChange::Remove(n(id)));
    let ticket = cluster.change(n(1), MembershipChange(changes.chain(gone).collect()));
    run(&mut cluster, 1_000);
    assert_eq!(end(&cluster, ticket), DONE);
    works_with(&mut cluster, &[4, 5, 6]);
    for id in 1..=3 {
        assert!(cluster.node(n(id)).removed.is_some(), "node {id} does not know that it is gone");
    }
}

#[test]
fn membership_is_in_force_from_its_append_on() {
    let mut cluster = led(3);
    cluster.change(n(1), NodeChange::Demote(n(3)));
    let status = cluster.status(n(1));
    assert!(status.membership.is_joint() && status.membership_at > status.commit);
    assert!(cluster.status(n(2)).membership_at == LogIndex(0));
    let envelopes = core::mem::take(&mut cluster.network);
    envelopes.into_iter().for_each(|envelope| cluster.deliver(envelope));
    assert!(cluster.status(n(2)).membership.is_joint(), "also at who received it");
}

/// etcd `campaign_learner_must_vote`: the promotion is committed, but the learner does not know.
#[test]
fn learner_must_vote() {
    let mut cluster = led(2);
    let id = learner(&mut cluster, n(1));
    part(&mut cluster, &[1, 2], &[3]);
    let ticket = cluster.change(n(1), NodeChange::Promote(id));
    run(&mut cluster, 100);
    assert_eq!(end(&cluster, ticket), DONE);
    assert!(!cluster.status(id).membership.is_voter(id), "it does not know");
    cluster.crash(n(1), usize::MAX);
    cluster.cut.clear();
    run(&mut cluster, 2_000);
    assert_eq!(cluster.leaders(), [n(2)]);
    cluster.restart(n(1));
    run(&mut cluster, 1_000);
    works_with(&mut cluster, &[1, 2, 3]);
}

#[test]
fn removed_node_returns() {
    let mut cluster = led(3);
    cluster.crash(n(3), usize::MAX);
    let ticket = cluster.change(n(1), NodeChange::Remove(n(3)));
    run(&mut cluster, 100);
    assert_eq!(end(&cluster, ticket), DONE);
    let term = cluster.status(n(1)).ballot.term;
    cluster.restart(n(3));
    run(&mut cluster, 3_000);
    assert_eq!(cluster.leaders(), [n(1)]);
    assert_eq!(cluster.status(n(1)).ballot.term, term, "it disturbs nobody");
    assert!(cluster.node(n(3)).removed.is_some(), "it is told");
    let status = cluster.status(n(3));
    assert_eq!((status.role, status.counters.elections), (RoleKind::Follower, 0));
    // Also a new leader, who never sent it anything, tells it.
    cluster.crash(n(3), usize::MAX);
    let _transfer = cluster.transfer(n(1), Some(n(2)));
    run(&mut cluster, 300);
    cluster.restart(n(3));
    run(&mut cluster, 3_000);
    assert_eq!(cluster.leaders(), [n(2)]);
    assert!(cluster.node(n(3)).removed.is_some());
}

/// Ongaro, raft-dev, 10 July 2015: a leader appends a change and is cut off; the next one, before it
/// has committed anything of its own term, must not begin another. Adding and removing, two
/// additions, two removals.
#[test]
fn one_add_one_remove_bug() {
    let promote = || NodeChange::Promote(n(5));
    let remove = |id| NodeChange::Remove(n(id));
    for (first, second) in [
        (promote(), remove(4)),
        (remove(4), promote()),
        (promote(), promote()),
        (remove(4), remove(3)),
    ] {
        let mut cluster = led(4);
        learner(&mut cluster, n(1));
        part(&mut cluster, &[1], &[2, 3, 4, 5]);
        let lost = cluster.change(n(1), first);
        // A new leader that has committed nothing yet.
        for _ in 0..200 {
            if cluster.status(n(2)).role == RoleKind::Leader {
                break;
            }
            if !small_step(&mut cluster) {
                cluster.timeout(n(2));
            }
        }
        assert_eq!(cluster.status(n(2)).role, RoleKind::Leader);
        let early = cluster.change(n(2), second.clone());
        assert_eq!(end(&cluster, early), refused(ChangeError::TooEarly));
        run(&mut cluster, 500);
        cluster.cut.clear();
        let ticket = cluster.change(n(2), second);
        run(&mut cluster, 1_000);
        assert_eq!(end(&cluster, ticket), DONE);
        assert_eq!(end(&cluster, lost), Some(End::Reply(Outcome::Unknown)));
        let members = cluster.status(n(2)).membership.clone();
        for id in cluster.ids().into_iter().filter(|id| members.contains(*id)) {
            assert_eq!(*cluster.status(id).membership, members, "{id}");
        }
    }
}

/// camunda#60086: the leader inherits a joint membership that is not committed.
#[test]
fn recovered_joint() {
    let nodes = (1..=5).map(|id| (n(id), NodeInfo::default())).collect();
    let old = Voters::Uniform(set(&[1, 2, 3]));
    let base = Membership::from_parts(old, set(&[4, 5]), [].into(), nodes, n(5)).unwrap();
    let change = [
        NodeChange::Replace { remove: n(2), promote: n(4) },
        NodeChange::Replace { remove: n(3), promote: n(5) },
    ];
    let joint = base.changed_by(&MembershipChange(change.into())).unwrap();
    let plain = Disk { log: log_of(&[1]), ballot: ballot(1), ..Disk::default() };
    let mut first = plain.clone();
    first.log.push(config_entry(1, 2, &joint));
    let disks = vec![first, plain.clone(), plain.clone(), plain.clone(), plain];
    let mut cluster = Cluster::with_states(Arc::new(base), &Config::default(), 5, disks, &[0; 5]);
    cluster.timeout(n(1));
    while cluster.status(n(1)).role != RoleKind::Leader {
        assert!(small_step(&mut cluster), "it is elected by both halves");
    }
    // Now only the new half is reached.
    part(&mut cluster, &[1], &[2, 3]);
    cluster.network.retain(|it| it.to.get() > 3 || it.from.get() > 3);
    for _ in 0..200 {
        small_step(&mut cluster);
    }
    let status = cluster.status(n(1));
    assert_eq!((status.commit, status.membership_at), (LogIndex(0), LogIndex(2)));
    assert_eq!(status.last.index, LogIndex(3), "its own first entry, and not the second step");
    cluster.cut.clear();
    run(&mut cluster, 1_000);
    works_with(&mut cluster, &[1, 4, 5]);
}

fn ballot(term: u64) -> Ballot {
    Ballot { term: Term(term), voted_for: None }
}

fn config_entry(term: u64, index: u64, membership: &Membership) -> Entry {
    let pos = LogPos { term: Term(term), index: LogIndex(index) };
    Entry { pos, body: Body::Config(Arc::new(membership.clone())) }
}

/// scylladb PR#30936: see also `membership_follows_the_log_forward_and_back` in `paper.rs`. Here the
/// node has none below those that are taken back, since it joined.
#[test]
fn two_configs_truncated() {
    let mut cluster = led(3);
    let id = cluster.join();
    let say = |cluster: &mut Cluster, from: u64, prev: LogPos, entries: &[Entry]| {
        let term = Term(from);
        let msg = Message::Append {
            prev,
            entries: entries.into(),
            commit: LogIndex(0),
            probe: raft_core::ProbeId(1),
            sent_at: raft_core::Micros(0),
            read: raft_core::ReadSeq(0),
        };
        let envelope = raft_core::Envelope { from: n(from), to: id, term, msg };
        cluster.input(id, raft_core::Input::Message(envelope));
    };
    let memberships = [config_entry(2, 1, &voters(4)), config_entry(2, 2, &voters(5))];
    // These messages are made up: whom they name as leaders never led, and nobody checks acks.
    cluster.cut.extend((1..=3).map(|to| (id, n(to))));
    say(&mut cluster, 2, LogPos::default(), &memberships);
    assert_eq!(*cluster.status(id).membership, *voters(5));
    let noop = Entry { pos: LogPos { term: Term(3), index: LogIndex(1) }, body: Body::Noop };
    say(&mut cluster, 3, LogPos::default(), &[noop]);
    assert_eq!(*cluster.status(id).membership, Membership::unknown(), "as before it received any");
    run(&mut cluster, 2_000);
    assert_eq!(cluster.status(id).counters.pre_elections, 0, "so it never stands");
}

/// With writes under way; the leader is removed, or replaced by a learner.
#[test]
fn self_removal_and_replace_leader() {
    for replace in [false, true] {
        let mut cluster = led(3);
        let change = if replace {
            NodeChange::Replace { remove: n(1), promote: learner(&mut cluster, n(1)) }
        } else {
            NodeChange::Remove(n(1))
        };
        cluster.keep_journal = true;
        let before: Vec<Ticket> = (0..3).map(|_| write(&mut cluster, n(1))).collect();
        let ticket = cluster.change(n(1), change);
        let after: Vec<Ticket> = (0..3).map(|_| write(&mut cluster, n(1))).collect();
        let hands_over = |it: &raft_core::Envelope| matches!(it.msg, Message::TimeoutNow { .. });
        while !cluster.network.iter().any(hands_over) {
            assert!(small_step(&mut cluster), "it hands over");
        }
        assert_eq!(cluster.node(n(1)).removed, None, "a driver that stops must not swallow that");
        run(&mut cluster, 1_000);
        assert_eq!(end(&cluster, ticket), DONE);
        for write in before.into_iter().chain(after) {
            assert_eq!(end(&cluster, write), Some(End::Applied), "no write is lost");
        }
        // The word that it may stop comes after what others still need of it.
        let journal = &cluster.journal;
        let place = |wanted: fn(&Effect) -> bool| {
            journal.iter().rposition(|(id, effect)| *id == n(1) && wanted(effect))
        };
        let told = place(|effect| matches!(effect, Effect::Removed { .. }));
        let applied = place(|effect| matches!(effect, Effect::Apply(_)));
        assert!(told.is_some() && applied < told, "{applied:?} {told:?}");
        let elections: u64 =
            cluster.ids().iter().map(|id| cluster.status(*id).counters.elections).sum();
        assert_eq!(elections, 2, "the first, and one hand-over");
        assert!(cluster.node(n(1)).removed.is_some());
        works_with(&mut cluster, if replace { &[2, 3, 4] } else { &[2, 3] });
    }
}

/// scylladb#10618: {1} becomes {2}; the leader is cut off with the joint membership, stands for
/// election when it is back, and the change finishes.
#[test]
fn leader_demotes_self_partitioned() {
    let mut cluster = led(1);
    let id = learner(&mut cluster, n(1));
    part(&mut cluster, &[1], &[2]);
    let change = MembershipChange(vec![NodeChange::Demote(n(1)), NodeChange::Promote(id)]);
    let ticket = cluster.change(n(1), change);
    run(&mut cluster, 2_000);
    assert_eq!(cluster.leaders(), [], "neither half alone");
    assert_eq!(end(&cluster, ticket), Some(End::Reply(Outcome::Unknown)));
    cluster.cut.clear();
    run(&mut cluster, 2_000);
    works_with(&mut cluster, &[2]);
    assert!(cluster.status(id).membership.learners().contains(&n(1)));
    assert_eq!(cluster.node(n(1)).removed, None, "it was not removed");
}

/// Thesis §4.2.2: only the removed leader has the last step in its log. Its vote is still needed, and
/// only it can win.
#[test]
fn removed_leader_leads_again_while_its_removal_is_not_committed() {
    let base = voters(2);
    let joint = base.changed_by(&NodeChange::Remove(n(1)).into()).unwrap();
    let mut second =
        Disk { log: log_of(&[1]), ballot: ballot(1), commit_hint: LogIndex(1), ..Disk::default() };
    second.log.push(config_entry(1, 2, &joint));
    let mut first = Disk { commit_hint: LogIndex(2), ..second.clone() };
    first.log.push(config_entry(1, 3, &joint.leave_joint().unwrap()));
    let mut cluster =
        Cluster::with_states(base, &Config::default(), 5, vec![first, second], &[1, 1]);
    run(&mut cluster, 3_000);
    works_with(&mut cluster, &[2]);
    assert!(cluster.node(n(1)).removed.is_some());
}

/// The other voter is in the next term already, without a vote in it, and has the shorter log. It can
/// neither win nor refuse, so its vote in trial has to count as it is.
#[test]
fn trial_vote_of_a_node_that_is_a_term_ahead_counts() {
    let ahead = Disk { log: log_of(&[1]), ballot: ballot(2), ..Disk::default() };
    let behind = Disk { log: log_of(&[1, 1]), ballot: ballot(1), ..Disk::default() };
    let disks = vec![behind, ahead];
    let mut cluster = Cluster::with_states(voters(2), &Config::default(), 5, disks, &[0, 0]);
    run(&mut cluster, 3_000);
    assert_eq!(cluster.leaders(), [n(1)], "only it can win");
    assert_eq!(cluster.status(n(1)).ballot.term, Term(2), "in the term that it asked for");
}

/// The survivor leads; the one that leaves is alive, or dies after each small step. Then either the
/// change finishes, or nobody leads until it is back, since the old majority needs it.
#[test]
fn two_member_shrink() {
    let mut finished = 0;
    let mut stuck = 0;
    for death in 0..60 {
        let mut cluster = led(2);
        let ticket = cluster.change(n(1), NodeChange::Remove(n(2)));
        for _ in 0..death {
            small_step(&mut cluster);
        }
        cluster.crash(n(2), 0);
        run(&mut cluster, 2_000);
        if cluster.leaders().is_empty() {
            stuck += 1;
            cluster.restart(n(2));
            run(&mut cluster, 2_000);
        } else {
            finished += 1;
            assert_eq!(end(&cluster, ticket), DONE);
        }
        let kept = is_change_kept(&cluster);
        works_with(&mut cluster, if kept { &[1] } else { &[1, 2] });
    }
    assert!(finished > 10 && stuck >= 3, "{finished} finished, {stuck} got stuck");

    let mut cluster = led(2);
    cluster.crash(n(2), 0);
    cluster.now = cluster.now.after(Duration::from_millis(301));
    let ticket = cluster.change(n(1), NodeChange::Remove(n(2)));
    assert_eq!(end(&cluster, ticket), refused(ChangeError::NoQuorum), "it could not finish");
}

/// Whether the change was kept: a crash of the leaver may also have taken back nothing at all.
fn is_change_kept(cluster: &Cluster) -> bool {
    cluster.node(n(1)).written.iter().any(|entry| matches!(entry.body, Body::Config(_)))
}

#[test]
fn dead_learner_never_promoted() {
    let mut cluster = led(3);
    let id = n(4);
    cluster.join();
    let added = cluster.change(n(1), add(id));
    part(&mut cluster, &[1, 2, 3], &[4]);
    run(&mut cluster, 400);
    assert_eq!(end(&cluster, added), DONE);
    let ticket = cluster.change(n(1), NodeChange::Promote(id));
    assert_eq!(end(&cluster, ticket), refused(ChangeError::LearnerSilent(id)));
    cluster.cut.clear();
    // It answers, but has had no time to show that it keeps up.
    let mut behind = None;
    for _ in 0..500 {
        let ticket = cluster.change(n(1), NodeChange::Promote(id));
        match end(&cluster, ticket) {
            Some(End::Reply(Outcome::Rejected(Reject::Change(ChangeError::LearnerSilent(_))))) => {}
            other => {
                behind = other;
                break;
            }
        }
        if !small_step(&mut cluster) {
            cluster.timeout(n(1));
        }
    }
    let why = match behind {
        Some(End::Reply(Outcome::Rejected(Reject::Change(why)))) => why.to_string(),
        other => format!("{other:?}"),
    };
    assert!(why.starts_with("learner 4 has the log up to index "), "{why}");
    run(&mut cluster, 400);
    let ticket = cluster.change(n(1), NodeChange::Promote(id));
    run(&mut cluster, 400);
    assert_eq!(end(&cluster, ticket), DONE);
    works_with(&mut cluster, &[1, 2, 3, 4]);
}

#[test]
fn learner_that_stops_keeping_up_is_not_promoted() {
    let mut cluster = led(3);
    let id = learner(&mut cluster, n(1));
    assert!(cluster.status(n(1)).peers.iter().any(|peer| peer.id == id && peer.is_caught_up));
    // It answers heartbeats, but none of its writes ends.
    for round in 0..40 {
        if round % 8 == 0 {
            write(&mut cluster, n(1));
        }
        for other in [1, 2, 3] {
            cluster.persist(n(other), usize::MAX);
        }
        for envelope in core::mem::take(&mut cluster.network) {
            cluster.deliver(envelope);
        }
        cluster.now = cluster.now.after(Duration::from_millis(25));
        for other in cluster.ids() {
            cluster.input(other, raft_core::Input::Timer);
        }
    }
    let ticket = cluster.change(n(1), NodeChange::Promote(id));
    let end = end(&cluster, ticket);
    let Some(End::Reply(Outcome::Rejected(Reject::Change(ChangeError::LearnerBehind {
        matched,
        last,
        ..
    })))) = end
    else {
        panic!("{end:?}")
    };
    assert!(matched < last);
}

#[test]
fn id_reuse_refused() {
    let mut cluster = led(3);
    let id = learner(&mut cluster, n(1));
    for ticket in [NodeChange::Remove(id), NodeChange::Remove(n(3))] {
        let ticket = cluster.change(n(1), ticket);
        run(&mut cluster, 200);
        assert_eq!(end(&cluster, ticket), DONE);
    }
    for id in [id, n(3)] {
        let ticket = cluster.change(n(1), add(id));
        assert_eq!(end(&cluster, ticket), refused(ChangeError::IdUsed { id, highest: n(4) }));
    }
    cluster.join();
    let ticket = cluster.change(n(1), add(n(5)));
    run(&mut cluster, 200);
    assert_eq!(end(&cluster, ticket), DONE);
}

/// A joint membership of {1, 2, 3} and {4, 5, 6}; either half is cut off before it is committed.
#[test]
fn joint_partition_either_half() {
    for delivered_first in [false, true] {
        let mut cluster = led(3);
        for _ in 0..3 {
            learner(&mut cluster, n(1));
        }
        let commit = cluster.status(n(1)).commit;
        let changes = (1..=3).map(|id| NodeChange::Replace { remove: n(id), promote: n(id + 3) });
        let ticket = cluster.change(n(1), MembershipChange(changes.collect()));
        if delivered_first {
            for envelope in core::mem::take(&mut cluster.network) {
                cluster.deliver(envelope);
            }
            cluster.network.clear();
        }
        part(&mut cluster, &[1, 2, 3], &[4, 5, 6]);
        run(&mut cluster, 3_000);
        assert_eq!(cluster.leaders(), [], "half a majority elects nobody");
        assert_eq!(end(&cluster, ticket), Some(End::Reply(Outcome::Unknown)));
        for id in cluster.ids() {
            assert!(cluster.status(id).commit <= commit, "{id} commits with one half");
        }
        cluster.cut.clear();
        run(&mut cluster, 3_000);
        works_with(&mut cluster, &[4, 5, 6]);
    }
}

/// Three become five become three; the leader crashes after each small step, and comes back.
#[test]
fn crash_every_step_of_change() {
    let mut whole = false;
    let mut steps = 0;
    while !whole {
        let mut cluster = led(3);
        learner(&mut cluster, n(1));
        learner(&mut cluster, n(1));
        let grow = [NodeChange::Promote(n(4)), NodeChange::Promote(n(5))];
        let shrink = [NodeChange::Remove(n(2)), NodeChange::Demote(n(1))];
        let mut plan = [grow, shrink].into_iter();
        let mut ticket = None;
        let mut left = steps;
        loop {
            if ticket.is_none_or(|ticket| end(&cluster, ticket) == DONE) {
                let Some(change) = plan.next() else {
                    whole = true;
                    break;
                };
                ticket = Some(cluster.change(n(1), MembershipChange(change.into())));
            }
            if left == 0 {
                break;
            }
            left -= 1;
            if !small_step(&mut cluster) {
                let next = cluster.now.after(Duration::from_millis(50));
                cluster.now = next;
                cluster.input(n(1), raft_core::Input::Timer);
            }
        }
        let leader = cluster.leaders().first().copied().unwrap_or(n(1));
        cluster.crash(leader, 0);
        run(&mut cluster, 1_500);
        cluster.restart(leader);
        run(&mut cluster, 2_000);
        let leaders = cluster.leaders();
        assert_eq!(leaders.len(), 1, "after {steps} steps");
        let Voters::Uniform(voters) = cluster.status(leaders[0]).membership.voters().clone() else {
            panic!("after {steps} steps the membership stays joint")
        };
        let voters: Vec<u64> = voters.iter().map(|id| id.get()).collect();
        assert!(
            [&[1, 2, 3][..], &[1, 2, 3, 4, 5], &[3, 4, 5]].contains(&voters.as_slice()),
            "{voters:?}"
        );
        works_with(&mut cluster, &voters);
        steps += 1;
    }
    assert!(steps > 60, "the whole change took {steps} steps");
}

/// camunda#57386: the one that is removed may be needed again if its removal is taken back.
#[test]
fn removed_node_receives_the_log_until_its_removal_commits() {
    let mut cluster = led(3);
    let ticket = cluster.change(n(1), NodeChange::Remove(n(3)));
    while cluster.status(n(1)).membership.is_joint() {
        assert!(small_step(&mut cluster));
    }
    cluster.keep_journal = true;
    write(&mut cluster, n(1));
    let sent = cluster.journal.iter().any(|(_, effect)| {
        let Effect::Send(envelope) = effect else { return false };
        let Message::Append { entries, .. } = &envelope.msg else { return false };
        envelope.to == n(3) && !entries.is_empty()
    });
    assert!(sent, "the removal is in the log but not committed");
    run(&mut cluster, 200);
    assert_eq!(end(&cluster, ticket), DONE);
    assert!(cluster.status(n(1)).peers.iter().all(|peer| peer.id != n(3)));
    assert!(cluster.node(n(3)).removed.is_some(), "it is told at once");
}

/// etcd#4246: with the last other voter gone, what waited for it is committed.
#[test]
fn commit_is_looked_at_again_when_the_voters_become_fewer() {
    let mut cluster = led(2);
    let ticket = cluster.change(n(1), NodeChange::Remove(n(2)));
    while cluster.status(n(1)).membership.is_joint() {
        assert!(small_step(&mut cluster));
    }
    let waits = write(&mut cluster, n(1));
    let read = cluster.read(n(1));
    cluster.crash(n(2), 0);
    cluster.network.clear();
    while small_step(&mut cluster) {}
    assert_eq!(end(&cluster, ticket), DONE);
    assert_eq!(end(&cluster, waits), Some(End::Applied));
    assert!(matches!(end(&cluster, read), Some(End::Ready(_))));
}
