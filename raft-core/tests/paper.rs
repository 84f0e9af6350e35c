//! The rules of the Raft paper (Ongaro and Ousterhout 2014) and of the thesis (Ongaro 2014), one test
//! each, named by the rule. Sections are of the paper unless the thesis is named.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use raft_core::{
    Ballot, Body, Config, Effects, Entry, Envelope, FatalError, Input, LogIndex, LogPos,
    Membership, Message, Micros, NodeId, NodeInfo, ProbeId, Raft, ReadSeq, Recovered, RoleKind,
    Term, VoteKind, Voters,
};

use crate::cluster::{Cluster, Disk, End, Write, log_of, node_id, slot, voters};

fn n(id: u64) -> NodeId {
    node_id(id)
}

fn pos(term: u64, index: u64) -> LogPos {
    LogPos { term: Term(term), index: LogIndex(index) }
}

fn disk(terms: &[u64], term: u64) -> Disk {
    let ballot = Ballot { term: Term(term), voted_for: None };
    Disk { ballot, log: log_of(terms), ..Disk::default() }
}

fn cluster_of(disks: Vec<Disk>) -> Cluster {
    let applied = vec![0; disks.len()];
    Cluster::with_states(voters(disks.len() as u64), &Config::default(), 3, disks, &applied)
}

fn fresh(count: u64) -> Cluster {
    Cluster::new(voters(count), &Config::default(), 3)
}

fn led(count: u64) -> Cluster {
    let mut cluster = fresh(count);
    cluster.timeout(n(1));
    cluster.settle();
    assert_eq!(cluster.leaders(), [n(1)], "an undisturbed election succeeds");
    cluster
}

fn say(cluster: &mut Cluster, from: u64, to: u64, term: u64, msg: Message) {
    cluster.deliver(Envelope { from: n(from), to: n(to), term: Term(term), msg });
}

fn vote(last: LogPos) -> Message {
    Message::Vote { kind: VoteKind::Real, last }
}

fn append(prev: LogPos, entries: &[Entry], commit: u64) -> Message {
    Message::Append {
        prev,
        entries: entries.into(),
        commit: LogIndex(commit),
        probe: ProbeId(1),
        sent_at: Micros(1),
        read: ReadSeq(0),
    }
}

/// The answers to a vote request that are in flight from `from`.
fn answers(cluster: &mut Cluster, from: u64) -> Vec<bool> {
    cluster.persist(n(from), usize::MAX);
    let answers = cluster
        .network
        .iter()
        .filter(|it| it.from == n(from))
        .filter_map(|it| {
            if let Message::VoteReply { granted, .. } = it.msg { Some(granted) } else { None }
        })
        .collect();
    cluster.network.retain(|it| it.from != n(from));
    answers
}

fn commands(count: usize) -> Vec<Bytes> {
    (0..count).map(|at| Bytes::from(format!("command {at}"))).collect()
}

/// §5.1: a node starts as a follower, whatever it was before.
#[test]
fn node_starts_as_follower() {
    let mut cluster = led(3);
    cluster.crash(n(1), 0);
    cluster.restart(n(1));
    assert_eq!(cluster.status(n(1)).role, RoleKind::Follower);
    assert_eq!(cluster.status(n(1)).ballot, Ballot { term: Term(1), voted_for: Some(n(1)) });
}

/// §5.1: a leader or candidate that hears of a higher term from a leader becomes a follower in it.
#[test]
fn append_of_a_higher_term_makes_anyone_a_follower_of_it() {
    let mut cluster = led(3);
    say(&mut cluster, 2, 1, 5, append(pos(0, 0), &[], 0));
    let status = cluster.status(n(1));
    assert_eq!(
        (status.role, status.ballot.term, status.leader),
        (RoleKind::Follower, Term(5), Some(n(2)))
    );
}

/// §5.1: a message of an old term is refused, and the answer carries the current term.
#[test]
fn append_of_an_old_term_is_refused_with_the_current_one() {
    let mut cluster = cluster_of(vec![disk(&[], 4), disk(&[], 4), disk(&[], 4)]);
    say(&mut cluster, 2, 1, 3, append(pos(0, 0), &log_of(&[3]), 1));
    let answer = cluster.network.pop_back().unwrap();
    assert_eq!(answer.term, Term(4));
    assert!(matches!(answer.msg, Message::AppendReject { .. }), "{answer:?}");
    assert_eq!(cluster.status(n(1)).last, pos(0, 0));
    assert_eq!(cluster.status(n(1)).leader, None);
}

/// §5.2: a message of an old term does not put off an election.
#[test]
fn append_of_an_old_term_does_not_reset_the_election_timer() {
    let mut cluster = cluster_of(vec![disk(&[], 4), disk(&[], 4), disk(&[], 4)]);
    let before = cluster.node(n(1)).raft.as_ref().unwrap().deadline();
    cluster.now = Micros(before.0 - 1);
    say(&mut cluster, 2, 1, 3, append(pos(0, 0), &[], 0));
    assert_eq!(cluster.node(n(1)).raft.as_ref().unwrap().deadline(), before);
}

/// §5.2: a follower that hears nothing for an election timeout stands for election.
#[test]
fn follower_without_leader_stands_for_election_and_votes_for_itself() {
    let mut cluster = fresh(3);
    cluster.timeout(n(1));
    assert_eq!(cluster.status(n(1)).role, RoleKind::PreCandidate);
    assert_eq!(cluster.status(n(1)).ballot.term, Term(0), "a trial raises no term");
    cluster.settle();
    assert_eq!(cluster.status(n(1)).ballot, Ballot { term: Term(1), voted_for: Some(n(1)) });
    assert_eq!(cluster.status(n(1)).role, RoleKind::Leader);
}

/// §5.2: heartbeats keep followers followers.
#[test]
fn heartbeats_keep_the_leader_in_place() {
    let mut cluster = led(4);
    let until = cluster.now.after(Duration::from_secs(60));
    cluster.run_until(until);
    assert_eq!(cluster.leaders(), [n(1)]);
    assert!(cluster.ids().iter().all(|id| cluster.status(*id).ballot.term == Term(1)));
}

/// §5.2: a node votes for at most one candidate in a term, first come, first served; asked again by
/// the same one it answers the same.
#[test]
fn node_votes_once_in_a_term_and_repeats_its_answer() {
    let mut cluster = fresh(3);
    say(&mut cluster, 2, 1, 1, vote(pos(0, 0)));
    assert_eq!(answers(&mut cluster, 1), [true]);
    say(&mut cluster, 3, 1, 1, vote(pos(0, 0)));
    assert_eq!(answers(&mut cluster, 1), [false]);
    say(&mut cluster, 2, 1, 1, vote(pos(0, 0)));
    assert_eq!(answers(&mut cluster, 1), [true]);
    cluster.crash(n(1), 0);
    cluster.restart(n(1));
    say(&mut cluster, 3, 1, 1, vote(pos(0, 0)));
    assert_eq!(answers(&mut cluster, 1), [false], "the vote is remembered over a restart");
}

/// §5.2: becoming a follower of the leader of the same term keeps the vote.
#[test]
fn vote_is_kept_when_a_leader_of_the_term_appears() {
    let mut cluster = fresh(3);
    say(&mut cluster, 2, 1, 1, vote(pos(0, 0)));
    say(&mut cluster, 3, 1, 1, append(pos(0, 0), &[], 0));
    assert_eq!(cluster.status(n(1)).ballot.voted_for, Some(n(2)));
}

/// §5.2: a candidate that hears from the leader of its term gives in.
#[test]
fn candidate_becomes_follower_when_another_leads_its_term() {
    let mut cluster = fresh(3);
    cluster.timeout(n(1));
    while cluster.status(n(1)).role != RoleKind::Candidate {
        let envelope = cluster.network.pop_front().unwrap();
        cluster.deliver(envelope);
    }
    say(&mut cluster, 2, 1, 1, append(pos(0, 0), &[], 0));
    assert_eq!(cluster.status(n(1)).role, RoleKind::Follower);
    assert_eq!(cluster.status(n(1)).leader, Some(n(2)));
}

/// §5.2: election timeouts are random, in `[election_min, election_min + election_jitter)`.
#[test]
fn election_timeouts_are_spread_over_their_range() {
    let config = Config::default();
    let timeouts: Vec<Duration> = (0..200)
        .map(|seed| {
            let recovered = Recovered::bootstrap(voters(3));
            let raft = Raft::new(n(1), config.clone(), recovered, seed, Micros(0)).unwrap();
            raft.deadline().since(Micros(0))
        })
        .collect();
    let (low, high) = (config.election_min, config.election_min + config.election_jitter);
    assert!(timeouts.iter().all(|it| (low..high).contains(it)), "{timeouts:?}");
    let early = timeouts.iter().filter(|it| **it < low + config.election_jitter / 2).count();
    assert!((60..140).contains(&early), "{early} of 200 in the first half");
}

/// §5.3: a follower refuses entries whose predecessor it lacks or has with another term.
#[test]
fn follower_rejects_append_when_previous_term_differs() {
    let mut cluster = cluster_of(vec![disk(&[1, 1, 2], 3), disk(&[], 3), disk(&[], 3)]);
    for (prev, hint) in [(pos(3, 3), pos(2, 3)), (pos(1, 3), pos(1, 2)), (pos(3, 9), pos(2, 3))] {
        say(&mut cluster, 2, 1, 3, append(prev, &[], 0));
        let answer = cluster.network.pop_back().unwrap().msg;
        let Message::AppendReject { hint: got, .. } = answer else {
            unreachable!("{answer:?}");
        };
        assert_eq!(got, hint, "after {prev:?}");
    }
    assert_eq!(cluster.status(n(1)).last, pos(2, 3), "a refusal removes nothing");
}

/// §5.3: a conflicting entry and all that follow it are removed, matching ones stay.
#[test]
fn follower_cuts_its_log_at_the_first_conflict_only() {
    let mut cluster = cluster_of(vec![disk(&[1, 1, 2, 2], 3), disk(&[1, 1, 3], 3), disk(&[], 3)]);
    let entries = log_of(&[1, 1, 3]);
    say(&mut cluster, 2, 1, 3, append(pos(0, 0), &entries[..2], 0));
    assert_eq!(cluster.status(n(1)).last, pos(2, 4), "matching entries cut nothing");
    say(&mut cluster, 2, 1, 3, append(pos(1, 1), &entries[1..], 0));
    assert_eq!(cluster.status(n(1)).last, pos(3, 3));
    let Some(Write::Unit(op)) = cluster.node(n(1)).writes.back() else { panic!("no write") };
    assert_eq!((op.truncate_from, op.append.len()), (Some(LogIndex(3)), 1), "one unit does both");
}

/// §5.3: the commit index follows the leader's, but only as far as the message shows the logs to match.
#[test]
fn follower_commits_no_further_than_the_message_reaches() {
    let mut cluster = cluster_of(vec![disk(&[1, 1, 2, 2], 3), disk(&[1, 1], 3), disk(&[1, 1], 3)]);
    say(&mut cluster, 2, 1, 3, append(pos(1, 1), &log_of(&[1, 1])[1..], 2));
    assert_eq!(cluster.status(n(1)).commit, LogIndex(2));
    let mut cluster = cluster_of(vec![disk(&[1, 1, 2, 2], 3), disk(&[1, 1], 3), disk(&[1, 1], 3)]);
    say(&mut cluster, 2, 1, 3, append(pos(1, 1), &[], 4));
    assert_eq!(cluster.status(n(1)).commit, LogIndex(1));
}

/// §5.3: a leader that asks to overwrite what is committed has forked the log: the node stops.
#[test]
fn committed_entry_is_never_removed_and_the_node_stops_instead() {
    let mut cluster = led(3);
    let entry = Entry { pos: pos(2, 1), body: Body::Noop };
    let raft = cluster.nodes[slot(n(2))].raft.as_mut().unwrap();
    let mut out = Effects::new();
    let msg = append(pos(0, 0), &[entry], 0);
    raft.step(
        Micros(u64::MAX / 2),
        Input::Message(Envelope { from: n(3), to: n(2), term: Term(2), msg }),
    );
    raft.flush(Micros(u64::MAX / 2), &mut out);
    let fatal = out.iter().any(|effect| {
        matches!(effect, raft_core::Effect::Fatal(FatalError::CommittedConflict { index, .. }) if *index == LogIndex(1))
    });
    assert!(fatal, "{out:?}");
    assert_eq!(raft.status().role, RoleKind::Halted);
}

/// §5.3: replication is repeated until every follower has everything.
#[test]
fn follower_that_was_away_catches_up() {
    let mut cluster = led(3);
    cluster.crash(n(3), 0);
    for _ in 0..20 {
        cluster.propose(n(1), commands(5));
        cluster.settle();
    }
    cluster.restart(n(3));
    let until = cluster.now.after(Duration::from_millis(200));
    cluster.run_until(until);
    assert_eq!(cluster.status(n(3)).applied, LogIndex(101));
    assert_eq!(cluster.node(n(3)).state, cluster.node(n(1)).state);
}

/// §5.4.1: a vote is refused to a candidate whose log is less up to date: by the last term, then by
/// the length.
#[test]
fn vote_goes_only_to_a_log_at_least_as_up_to_date() {
    for (last, granted) in [
        (pos(2, 3), true),
        (pos(2, 4), true),
        (pos(3, 1), true),
        (pos(2, 2), false),
        (pos(1, 9), false),
    ] {
        let mut cluster = cluster_of(vec![disk(&[1, 2, 2], 3), disk(&[], 3), disk(&[], 3)]);
        say(&mut cluster, 2, 1, 4, vote(last));
        assert_eq!(answers(&mut cluster, 1), [granted], "{last:?}");
        assert_eq!(cluster.status(n(1)).ballot.term, Term(4));
    }
}

/// §5.4.2: an entry of an older term is not committed by counting its copies.
#[test]
fn leader_commits_old_entries_only_under_one_of_its_own_term() {
    let mut cluster = cluster_of(vec![disk(&[1, 1], 1), disk(&[1, 1], 1), disk(&[1, 1], 1)]);
    cluster.timeout(n(1));
    while cluster.leaders().is_empty() {
        cluster.settle_once();
    }
    // All three have both old entries on disk; the leader's own entry is on its disk only.
    cluster.persist(n(1), usize::MAX);
    cluster.network.clear();
    cluster.timeout(n(1));
    let until = cluster.now;
    while let Some(envelope) = cluster.network.pop_front() {
        let heartbeat =
            matches!(&envelope.msg, Message::Append { entries, .. } if !entries.is_empty());
        if !heartbeat {
            cluster.deliver(envelope);
        }
    }
    assert_eq!(cluster.now, until);
    assert_eq!(cluster.status(n(1)).commit, LogIndex(0));
    cluster.timeout(n(1));
    cluster.settle();
    assert_eq!(cluster.status(n(1)).commit, LogIndex(3));
}

/// §5.4.3, thesis §10.2.1: the leader counts itself only as far as its own disk has it, but the
/// others can commit without it; nothing is applied before it is durable here.
#[test]
fn entry_can_commit_before_the_leader_has_it_on_disk_but_is_not_applied_there() {
    let mut cluster = led(3);
    cluster.propose(n(1), commands(1));
    for id in [2, 3] {
        let at = cluster.network.iter().position(|it| it.to == n(id)).unwrap();
        let envelope = cluster.network.remove(at).unwrap();
        cluster.deliver(envelope);
        cluster.persist(n(id), usize::MAX);
    }
    while let Some(envelope) = cluster.network.pop_front() {
        cluster.deliver(envelope);
    }
    assert_eq!(cluster.status(n(1)).commit, LogIndex(2));
    assert!(cluster.node(n(1)).to_apply.is_empty());
    cluster.persist(n(1), usize::MAX);
    assert_eq!(cluster.node(n(1)).to_apply.len(), 1);
}

/// §5.4.3: alone, a leader commits only what is on its disk.
#[test]
fn single_node_commits_nothing_before_its_own_disk_has_it() {
    let mut cluster = led(1);
    let ticket = cluster.propose(n(1), commands(3));
    assert_eq!(cluster.status(n(1)).commit, LogIndex(1));
    cluster.persist(n(1), usize::MAX);
    assert_eq!(cluster.status(n(1)).commit, LogIndex(4));
    assert_eq!(cluster.checks.outcomes.get(&ticket), Some(&End::Applied));
}

/// §5.5: a lost message is sent again; repeated ones do no harm.
#[test]
fn every_message_may_come_twice() {
    let mut cluster = fresh(3);
    cluster.timeout(n(1));
    for _ in 0..12 {
        cluster.persist(n(1), usize::MAX);
        cluster.persist(n(2), usize::MAX);
        cluster.persist(n(3), usize::MAX);
        for envelope in core::mem::take(&mut cluster.network) {
            cluster.deliver(envelope.clone());
            cluster.deliver(envelope);
        }
    }
    cluster.settle();
    assert_eq!(cluster.leaders(), [n(1)]);
    assert_eq!(cluster.status(n(1)).commit, LogIndex(1));
}

/// §6, thesis §4.2.3: who has heard from a leader within the election timeout ignores requests for
/// votes, even of a higher term; and so does the leader.
#[test]
fn requests_for_votes_are_ignored_while_a_leader_is_heard() {
    let mut cluster = led(3);
    for id in [1, 2] {
        say(&mut cluster, 3, id, 9, vote(pos(9, 9)));
        assert_eq!(answers(&mut cluster, id), [false; 0]);
        assert_eq!(cluster.status(n(id)).ballot.term, Term(1));
    }
    cluster.now = cluster.now.after(Config::default().election_min);
    say(&mut cluster, 3, 2, 9, vote(pos(9, 9)));
    assert_eq!(answers(&mut cluster, 2), [true]);
}

/// Thesis §4.2.3: the known leader itself is not refused: if it asks, it has given up its place, and
/// nobody needs to wait out its last heartbeat.
#[test]
fn leader_that_lost_its_place_is_granted_a_trial_at_once() {
    let mut cluster = led(3);
    cluster.timeout(n(1));
    cluster.settle();
    let (heard, hint) = (cluster.now, pos(0, 0));
    let refusal =
        Message::AppendReject { probe: ProbeId(0), hint, echo: Micros(0), read: ReadSeq(0) };
    say(&mut cluster, 3, 1, 5, refusal);
    assert_eq!(cluster.status(n(1)).role, RoleKind::Follower);
    cluster.timeout(n(1));
    assert!(cluster.now < heard.after(Config::default().election_min), "it asks in time");
    cluster.network.retain(|it| it.to == n(2));
    let asked = cluster.network.pop_front().unwrap();
    cluster.deliver(asked);
    assert_eq!(answers(&mut cluster, 2), [true]);
}

/// §5.2: a candidacy that ended while its ballot was being written asks nobody any more.
#[test]
fn candidacy_that_is_over_asks_for_no_votes() {
    let mut cluster = fresh(3);
    cluster.timeout(n(1));
    while cluster.status(n(1)).role != RoleKind::Candidate {
        let envelope = cluster.network.pop_front().unwrap();
        cluster.deliver(envelope);
    }
    cluster.timeout(n(1));
    assert_eq!(cluster.status(n(1)).role, RoleKind::PreCandidate);
    cluster.network.clear();
    cluster.persist(n(1), usize::MAX);
    assert!(cluster.network.is_empty(), "{:?}", cluster.network);
}

/// §5.2: a candidate's own vote counts once its ballot is on disk, also when it is alone.
#[test]
fn own_vote_counts_only_when_it_is_durable() {
    let mut cluster = fresh(1);
    // An earlier write is unfinished when the candidacy begins: its end proves nothing for the vote.
    say(&mut cluster, 2, 1, 1, vote(pos(0, 0)));
    cluster.timeout(n(1));
    cluster.persist(n(1), 1);
    assert_eq!(cluster.status(n(1)).role, RoleKind::Candidate);
    cluster.persist(n(1), usize::MAX);
    assert_eq!(cluster.status(n(1)).role, RoleKind::Leader);
}

/// Thesis §6.4: the answer to a question of an earlier boot answers none of this one.
#[test]
fn late_answer_to_an_earlier_boot_serves_no_read() {
    let mut cluster = led(3);
    cluster.read(n(2));
    let question = cluster.network.pop_front().unwrap();
    cluster.deliver(question);
    while let Some(at) = cluster.network.iter().position(|it| it.to == n(3) || it.from == n(3)) {
        let envelope = cluster.network.remove(at).unwrap();
        cluster.deliver(envelope);
    }
    let of_reply = |it: &Envelope| matches!(it.msg, Message::ReadIndexReply { .. });
    let at = cluster.network.iter().position(of_reply).unwrap();
    let late = cluster.network.remove(at).unwrap();
    cluster.crash(n(2), 0);
    cluster.restart(n(2));
    cluster.propose(n(1), commands(1));
    cluster.settle();
    cluster.timeout(n(1));
    cluster.settle();
    assert_eq!(cluster.status(n(2)).leader, Some(n(1)));
    let read = cluster.read(n(2));
    cluster.deliver(late);
    assert_eq!(cluster.checks.outcomes.get(&read), None, "it was asked after the commit of 2");
    cluster.settle();
    assert_eq!(cluster.checks.outcomes.get(&read), Some(&End::Ready(LogIndex(2))));
}

/// §6: the latest membership in the log is in force, committed or not, and goes when its entry goes,
/// however many are stacked.
#[test]
fn membership_follows_the_log_forward_and_back() {
    let with = |count: u64| Entry { pos: pos(1, count), body: Body::Config(voters(count)) };
    let mut log = log_of(&[1]);
    log.extend([with(2), with(3)]);
    let base = {
        let nodes = (1..=4).map(|id| (n(id), NodeInfo::default())).collect();
        let voters = Voters::Uniform([n(1)].into());
        let learners = [n(2), n(3), n(4)].into();
        Arc::new(Membership::from_parts(voters, learners, [].into(), nodes, n(4)).unwrap())
    };
    let mut first = disk(&[], 2);
    first.log = log;
    let disks = vec![first, disk(&[1], 2), disk(&[1], 2), disk(&[1], 2)];
    let mut cluster = Cluster::with_states(base.clone(), &Config::default(), 3, disks, &[0; 4]);
    assert_eq!(*cluster.status(n(1)).membership, *voters(3), "it is taken from the disk");
    let entry = Entry { pos: pos(2, 2), body: Body::Noop };
    say(&mut cluster, 2, 1, 2, append(pos(1, 1), &[entry], 0));
    assert_eq!(*cluster.status(n(1)).membership, *base, "both are rolled back at once");
    assert_eq!(cluster.status(n(1)).membership_at, LogIndex(0));
    let entry = Entry { pos: pos(2, 3), body: Body::Config(voters(4)) };
    say(&mut cluster, 2, 1, 2, append(pos(2, 2), &[entry], 0));
    assert_eq!(*cluster.status(n(1)).membership, *voters(4), "a new one holds on append");
}

/// §6: an election in a joint membership needs a majority of both halves.
#[test]
fn joint_membership_elects_only_with_both_halves() {
    let nodes = (1..=5).map(|id| (n(id), NodeInfo::default())).collect();
    let halves = Voters::Joint { old: [n(1), n(2), n(3)].into(), new: [n(3), n(4), n(5)].into() };
    let membership = Membership::from_parts(halves, [].into(), [].into(), nodes, n(5)).unwrap();
    let mut cluster = Cluster::new(Arc::new(membership), &Config::default(), 3);
    cluster.crash(n(4), 0);
    cluster.crash(n(5), 0);
    cluster.timeout(n(1));
    cluster.settle();
    assert_eq!(cluster.leaders(), [], "three of five, but one of the new half");
    cluster.restart(n(4));
    cluster.restart(n(5));
    cluster.crash(n(1), 0);
    cluster.crash(n(2), 0);
    let until = cluster.now.after(Duration::from_secs(2));
    cluster.run_until(until);
    assert_eq!(cluster.leaders(), [], "the whole new half, but one of the old");
    cluster.restart(n(2));
    let until = cluster.now.after(Duration::from_secs(2));
    cluster.run_until(until);
    assert_eq!(cluster.leaders().len(), 1, "a majority of both");
}

/// Thesis §4.2.1: a learner follows but never stands for election; asked for its vote, it answers,
/// since the asker may know a newer membership.
#[test]
fn learner_never_campaigns_but_votes_when_asked() {
    let nodes = (1..=2).map(|id| (n(id), NodeInfo::default())).collect();
    let voters = Voters::Uniform([n(1)].into());
    let membership = Membership::from_parts(voters, [n(2)].into(), [].into(), nodes, n(2)).unwrap();
    let mut cluster = Cluster::new(Arc::new(membership), &Config::default(), 3);
    cluster.crash(n(1), 0);
    let until = cluster.now.after(Duration::from_secs(5));
    cluster.run_until(until);
    assert_eq!(cluster.status(n(2)).role, RoleKind::Follower);
    say(&mut cluster, 1, 2, 1, vote(pos(0, 0)));
    assert_eq!(answers(&mut cluster, 2), [true]);
}

/// Thesis §6.2: a leader that no quorum answers for an election timeout steps down.
#[test]
fn leader_without_a_quorum_steps_down_and_falls_silent() {
    let mut cluster = led(3);
    let ticket = cluster.propose(n(1), commands(1));
    let read = cluster.read(n(1));
    cluster.network.clear();
    for id in [2, 3] {
        cluster.cut.insert((n(id), n(1)));
        cluster.cut.insert((n(1), n(id)));
    }
    let started = cluster.now;
    while cluster.status(n(1)).role == RoleKind::Leader {
        cluster.timeout(n(1));
    }
    assert!(cluster.now.since(started) <= 2 * Config::default().election_min, "it took too long");
    assert_eq!(cluster.status(n(1)).counters.quorum_lost, 1);
    assert!(matches!(
        cluster.checks.outcomes.get(&ticket),
        Some(End::Reply(raft_core::Outcome::Unknown))
    ));
    assert!(matches!(cluster.checks.outcomes.get(&read), Some(End::Reply(_))));
}

/// §8: a new leader begins with an empty entry of its own term.
#[test]
fn leader_begins_with_an_empty_entry() {
    let cluster = led(3);
    assert_eq!(cluster.node(n(1)).written, [Entry { pos: pos(1, 1), body: Body::Noop }]);
}

/// §8, thesis §6.4: a read is served only after a quorum has answered a message sent after it.
#[test]
fn read_waits_for_a_quorum_to_confirm_the_leader() {
    let mut cluster = led(3);
    let read = cluster.read(n(1));
    assert_eq!(cluster.checks.outcomes.get(&read), None);
    cluster.settle();
    assert_eq!(cluster.checks.outcomes.get(&read), Some(&End::Ready(LogIndex(1))));
}

/// Thesis §6.4: reads at a follower go to the leader as one question, whatever their number.
#[test]
fn reads_of_a_follower_are_asked_about_together() {
    let mut cluster = led(3);
    let tickets: Vec<_> = (0..50).map(|_| cluster.ticket(n(2), false)).collect();
    for ticket in &tickets {
        cluster.step(n(2), Input::Read { ticket: *ticket });
    }
    cluster.flush(n(2));
    assert_eq!(cluster.network.len(), 1);
    cluster.settle();
    for ticket in tickets {
        assert_eq!(cluster.checks.outcomes.get(&ticket), Some(&End::Ready(LogIndex(1))));
    }
}

/// Thesis §6.4: a question without an answer is given up, so no read waits for ever.
#[test]
fn read_of_a_follower_ends_when_no_answer_comes() {
    let mut cluster = led(3);
    let read = cluster.read(n(2));
    cluster.network.clear();
    let until = cluster.now.after(Duration::from_secs(1));
    cluster.run_until(until);
    let end = cluster.checks.outcomes.get(&read);
    let no_quorum = raft_core::Outcome::Rejected(raft_core::Reject::NoQuorum);
    assert_eq!(end, Some(&End::Reply(no_quorum)));
}

/// Thesis §9.6: a trial changes nothing at the one who is asked.
#[test]
fn pre_vote_changes_nothing_at_the_voter() {
    let mut cluster = fresh(3);
    let before = cluster.status(n(1)).ballot;
    let deadline = cluster.node(n(1)).raft.as_ref().unwrap().deadline();
    say(&mut cluster, 2, 1, 7, Message::Vote { kind: VoteKind::Pre, last: pos(0, 0) });
    assert_eq!(answers(&mut cluster, 1), [true]);
    assert_eq!(cluster.status(n(1)).ballot, before);
    assert_eq!(cluster.node(n(1)).raft.as_ref().unwrap().deadline(), deadline);
}

/// Thesis §9.6: a refusal with a higher term is adopted from a member, and from nobody else.
#[test]
fn refusal_raises_the_term_only_when_a_member_sends_it() {
    let refusal = Message::VoteReply { kind: VoteKind::Pre, granted: false, asked: Term(1) };
    for (from, term) in [(2, 8), (9, 0)] {
        let mut cluster = fresh(3);
        cluster.timeout(n(1));
        say(&mut cluster, from, 1, 8, refusal.clone());
        assert_eq!(cluster.status(n(1)).ballot.term, Term(term), "from {from}");
    }
    let granted = Message::VoteReply { kind: VoteKind::Pre, granted: true, asked: Term(1) };
    let mut cluster = fresh(5);
    cluster.timeout(n(1));
    say(&mut cluster, 2, 1, 8, granted);
    assert_eq!(cluster.status(n(1)).ballot.term, Term(0), "a granted trial never raises it");
}

/// Thesis §10.2.1: the leader sends entries before its own disk has them.
#[test]
fn leader_sends_before_its_own_disk_is_done() {
    let mut cluster = led(3);
    cluster.propose(n(1), commands(1));
    assert_eq!(cluster.node(n(1)).writes.len(), 1);
    assert_eq!(cluster.network.len(), 2);
}

/// Thesis §10.2.2: one flush gives one write and one message for each follower, however many
/// proposals came.
#[test]
fn thousand_proposals_cost_one_write_and_one_message_for_each_follower() {
    let mut cluster = led(4);
    for _ in 0..1_000 {
        let ticket = cluster.ticket(n(1), true);
        cluster.step(n(1), Input::Propose { ticket, commands: commands(1) });
    }
    cluster.flush(n(1));
    assert_eq!(cluster.node(n(1)).writes.len(), 1);
    assert_eq!(cluster.network.len(), 3);
    cluster.settle();
    assert_eq!(cluster.status(n(4)).applied, LogIndex(1_001));
}

/// Thesis §10.2.2: the window bounds what is unanswered, in messages and in bytes.
#[test]
fn window_bounds_unanswered_messages_and_bytes() {
    for (messages, bytes, expected) in [(3, 1 << 20, 3), (64, 500, 5)] {
        let config = Config {
            max_append_bytes: 1,
            max_inflight_messages: messages,
            max_inflight_bytes: bytes,
            ..Config::default()
        };
        let mut cluster = Cluster::new(voters(3), &config, 3);
        cluster.timeout(n(1));
        cluster.settle();
        let body = Bytes::from(vec![0; 100 - raft_core::codec::ENTRY_HEADER_BYTES]);
        cluster.propose(n(1), vec![body; 20]);
        assert_eq!(cluster.network.iter().filter(|it| it.to == n(2)).count(), expected);
        cluster.settle();
        assert_eq!(cluster.status(n(2)).applied, LogIndex(21));
    }
}

/// A leader whose disk stalls says nothing at all, so the others replace it; it cannot win again
/// while the disk stalls, since votes are asked for only after its ballot is durable.
#[test]
fn leader_with_a_stalled_disk_falls_silent() {
    let mut cluster = led(3);
    cluster.propose(n(1), commands(1));
    cluster.network.clear();
    cluster.now = cluster.now.after(Config::default().persist_stall + Duration::from_millis(1));
    cluster.input(n(1), Input::Timer);
    cluster.propose(n(1), commands(1));
    cluster.read(n(1));
    assert!(cluster.network.is_empty(), "{:?}", cluster.network);
}

/// A follower's slow disk delays neither the leader's reads nor its quorum check.
#[test]
fn slow_disk_of_a_follower_does_not_hold_back_reads() {
    let mut cluster = led(3);
    cluster.crash(n(3), 0);
    // Both leave in one message: its entries wait for the follower's disk, its read number does not.
    let proposal = cluster.ticket(n(1), true);
    cluster.step(n(1), Input::Propose { ticket: proposal, commands: commands(1) });
    let read = cluster.read(n(1));
    cluster.persist(n(1), usize::MAX);
    while let Some(envelope) = cluster.network.pop_front() {
        cluster.deliver(envelope);
    }
    assert_eq!(cluster.node(n(2)).writes.len(), 1, "the follower's disk is busy");
    assert_eq!(cluster.status(n(1)).commit, LogIndex(1));
    assert_eq!(cluster.checks.outcomes.get(&read), Some(&End::Ready(LogIndex(1))));
}

/// Bytes above the applied index are limited over terms: a new leader counts what it inherits.
#[test]
fn limit_of_unapplied_bytes_holds_across_terms() {
    let config = Config { max_unapplied_bytes: 1_000, ..Config::default() };
    let mut disks = vec![disk(&[1; 30], 1), disk(&[1; 30], 1), disk(&[], 1)];
    disks[2].log = log_of(&[1; 30]);
    let mut cluster = Cluster::with_states(voters(3), &config, 3, disks, &[0; 3]);
    cluster.timeout(n(1));
    while cluster.leaders().is_empty() {
        cluster.settle_once();
    }
    let ticket = cluster.propose(n(1), commands(1));
    let overloaded = raft_core::Outcome::Rejected(raft_core::Reject::Overloaded);
    assert_eq!(cluster.checks.outcomes.get(&ticket), Some(&End::Reply(overloaded)));
    cluster.settle();
    let ticket = cluster.propose(n(1), commands(1));
    cluster.settle();
    assert_eq!(cluster.checks.outcomes.get(&ticket), Some(&End::Applied));
}

/// Memory holds no more of the log than the limit, and old entries are loaded for whoever needs them.
#[test]
fn old_entries_leave_memory_and_are_loaded_for_a_late_follower() {
    let config = Config { max_tail_bytes: 2_000, max_append_bytes: 500, ..Config::default() };
    let mut cluster = Cluster::new(voters(3), &config, 3);
    cluster.timeout(n(1));
    cluster.settle();
    cluster.crash(n(3), 0);
    for _ in 0..100 {
        cluster.propose(n(1), commands(5));
        cluster.settle();
        assert!(cluster.status(n(1)).tail_bytes <= 2_000);
    }
    cluster.restart(n(3));
    let until = cluster.now.after(Duration::from_millis(500));
    cluster.run_until(until);
    assert_eq!(cluster.status(n(3)).applied, LogIndex(501));
    assert!(cluster.status(n(3)).tail_bytes <= 2_500);
}
