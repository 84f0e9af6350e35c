//! Snapshots and the cutting of the log as scenarios: who gets one, what it replaces, what a crash at any
//! moment leaves, and what comes too late.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use raft_core::{
    Ballot, Body, Compaction, Config, Effect, Effects, Entry, FlowKind, Input, LogIndex, LogPos,
    Membership, Message, NodeChange, NodeId, NodeInfo, Outcome, RoleKind, Term, Ticket,
};

use crate::cluster::{Cluster, Disk, End, Write, log_of, node_id as n, slot, voters};

/// Two entries stay, and a peer that lacks more than nothing gets a snapshot.
fn config() -> Config {
    let compaction = Compaction { trailing_entries: 2, trailing_bytes: 1 << 20, lag_bytes_max: 1 };
    Config { compaction: Some(compaction), ..Config::default() }
}

fn run(cluster: &mut Cluster, millis: u64) {
    let until = cluster.now.after(Duration::from_millis(millis));
    cluster.run_until(until);
}

fn led(config: &Config) -> Cluster {
    let mut cluster = Cluster::new(voters(3), config, 11);
    cluster.timeout(n(1));
    run(&mut cluster, 100);
    assert_eq!(cluster.leaders(), [n(1)], "the first leads");
    cluster
}

fn isolate(cluster: &mut Cluster, id: NodeId) {
    for other in cluster.ids() {
        cluster.cut.insert((id, other));
        cluster.cut.insert((other, id));
    }
}

fn write(cluster: &mut Cluster, leader: NodeId, count: usize) {
    for at in 0..count {
        cluster.propose(leader, vec![Bytes::from(format!("write {at}"))]);
    }
    run(cluster, 20);
}

/// The state machine of a node keeps all it has, and its log goes as far as it may.
fn keep_all(cluster: &mut Cluster, id: NodeId) {
    let held = cluster.node(id).state.len();
    cluster.keep(id, held);
    cluster.persist(id, usize::MAX);
}

/// Node 3 lacks twenty entries of which the others' logs have two.
fn behind(config: &Config) -> Cluster {
    let mut cluster = led(config);
    isolate(&mut cluster, n(3));
    write(&mut cluster, n(1), 20);
    keep_all(&mut cluster, n(1));
    keep_all(&mut cluster, n(2));
    cluster
}

/// The same, and node 3 knows what the snapshot is that it fetches.
fn fetching() -> Cluster {
    let mut cluster = behind(&config());
    cluster.cut.clear();
    step_until(&mut cluster, n(3), |cluster| {
        cluster.node(n(3)).fetching.as_ref().is_some_and(|it| it.meta.is_some())
    });
    cluster
}

fn works(cluster: &mut Cluster, leader: NodeId) {
    let ticket: Ticket = cluster.propose(leader, vec![Bytes::from_static(b"after")]);
    run(cluster, 300);
    assert_eq!(cluster.checks.outcomes.get(&ticket), Some(&End::Applied), "a write goes through");
    let first = cluster.node(leader).state.clone();
    for id in cluster.ids() {
        assert_eq!(cluster.node(id).state, first, "node {id}");
    }
}

fn flow(cluster: &Cluster, leader: NodeId, id: NodeId) -> FlowKind {
    let peers = cluster.status(leader).peers;
    peers.iter().find(|peer| peer.id == id).expect("a peer").flow
}

/// Until `done`, one message, write or other thing at a time.
fn step_until(cluster: &mut Cluster, id: NodeId, mut done: impl FnMut(&Cluster) -> bool) {
    for _ in 0..1_000 {
        if done(cluster) {
            return;
        }
        if let Some(envelope) = cluster.network.pop_front() {
            cluster.deliver(envelope);
        } else if matches!(cluster.node(id).writes.front(), Some(Write::Unit(_))) {
            cluster.persist(id, 1);
        } else if cluster.node(id).fetching.is_some() && cluster.fetch_snapshot(id) {
        } else {
            let now = cluster.now.after(Duration::from_millis(10));
            cluster.now = now;
            for leader in cluster.leaders() {
                cluster.input(leader, Input::Timer);
            }
        }
    }
    assert!(done(cluster), "it never comes to that");
}

#[test]
fn log_is_cut_below_what_the_state_machine_keeps_and_a_window_stays() {
    let mut cluster = led(&config());
    write(&mut cluster, n(1), 20);
    assert_eq!(cluster.status(n(1)).base, LogPos::default(), "nothing is kept without the log");
    cluster.keep(n(1), 12);
    assert_eq!(cluster.status(n(1)).base.index, LogIndex(12));
    let all = cluster.node(n(1)).state.len();
    cluster.keep(n(1), all);
    let (base, last) = (cluster.status(n(1)).base.index, cluster.status(n(1)).last.index);
    assert_eq!((base, last), (LogIndex(all as u64 - 2), LogIndex(all as u64)), "two entries stay");
    cluster.persist(n(1), usize::MAX);
    cluster.crash(n(1), usize::MAX);
    cluster.restart(n(1));
    assert_eq!(cluster.status(n(1)).base.index, base, "it starts with the rest");
    run(&mut cluster, 2_000);
    let leader = cluster.leaders()[0];
    works(&mut cluster, leader);
}

#[test]
fn window_of_bytes_is_enough_although_it_has_few_entries() {
    let compaction = Compaction { trailing_entries: 1_000, trailing_bytes: 400, lag_bytes_max: 1 };
    let mut cluster = led(&Config { compaction: Some(compaction), ..Config::default() });
    write(&mut cluster, n(1), 100);
    keep_all(&mut cluster, n(1));
    let status = cluster.status(n(1));
    let left = status.last.index.0 - status.base.index.0;
    // 28 bytes each: 15 are enough, and sizes are noted at every sixth byte.
    assert!((14..=17).contains(&left), "{left} entries stay");
}

#[test]
fn leader_keeps_what_a_peer_lacks_unless_that_is_much() {
    let compaction =
        Compaction { trailing_entries: 2, trailing_bytes: 1 << 20, lag_bytes_max: 600 };
    let mut cluster = led(&Config { compaction: Some(compaction), ..Config::default() });
    isolate(&mut cluster, n(3));
    write(&mut cluster, n(1), 10);
    keep_all(&mut cluster, n(1));
    keep_all(&mut cluster, n(2));
    let has = LogIndex(cluster.node(n(3)).disk.log.len() as u64);
    assert!(cluster.status(n(1)).base.index <= has, "ten entries are kept for it");
    assert!(cluster.status(n(2)).base.index > has, "a follower knows nothing of it");
    write(&mut cluster, n(1), 30);
    keep_all(&mut cluster, n(1));
    assert!(cluster.status(n(1)).base.index > has, "forty are too much");
    cluster.cut.clear();
    run(&mut cluster, 300);
    assert_eq!(cluster.checks.tally.installed, 1);
    works(&mut cluster, n(1));
}

#[test]
fn nothing_is_cut_and_no_snapshot_fetched_unless_the_settings_say_so() {
    let mut cluster = led(&Config::default());
    write(&mut cluster, n(1), 20);
    keep_all(&mut cluster, n(1));
    assert_eq!(cluster.status(n(1)).base, LogPos::default());
    // A peer with other settings offers one all the same.
    let mut cluster = behind(&config());
    cluster.crash(n(3), usize::MAX);
    cluster.nodes[slot(n(3))].config = Config::default();
    cluster.restart(n(3));
    cluster.cut.clear();
    run(&mut cluster, 300);
    assert!(cluster.node(n(3)).fetching.is_none() && cluster.checks.tally.installed == 0);
    assert_eq!(cluster.leaders(), [n(1)], "it follows all the same");
}

/// hashicorp/raft#697: the follower's log parts from the leader's and reaches as far as the snapshot.
#[test]
fn snapshot_conflicting_tail() {
    let ballot = |term| Ballot { term: Term(term), voted_for: None };
    let mut cut_off: Vec<Entry> = log_of(&[1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]);
    for entry in &mut cut_off[1..] {
        entry.body = Body::Command(Bytes::from_static(b"never committed"));
    }
    let long = Disk { log: cut_off, ballot: ballot(2), ..Disk::default() };
    let short = Disk { log: log_of(&[1]), ballot: ballot(2), ..Disk::default() };
    let disks = vec![short.clone(), short, long];
    let mut cluster = Cluster::with_states(voters(3), &config(), 3, disks, &[0, 0, 0]);
    isolate(&mut cluster, n(3));
    cluster.timeout(n(1));
    run(&mut cluster, 100);
    assert_eq!(cluster.leaders(), [n(1)]);
    write(&mut cluster, n(1), 9);
    keep_all(&mut cluster, n(1));
    assert!(cluster.status(n(1)).last.index < LogIndex(12), "the divergent log is longer");
    cluster.cut.clear();
    run(&mut cluster, 500);
    assert_eq!(cluster.checks.tally.installed, 1, "once, and the log goes as a whole");
    works(&mut cluster, n(1));
}

/// The follower has the snapshot's last entry and ten more: they stay, and nothing is replaced.
#[test]
fn snapshot_matching_prefix() {
    let mut cluster = fetching();
    let fetching = cluster.node(n(3)).fetching.clone().expect("under way");
    let (meta, _) = fetching.meta.expect("it is known");
    // All of it comes as a log meanwhile, from a leader that has it still; not committed as far as is known.
    cluster.network.clear();
    let entries = cluster.node(n(1)).written.clone();
    let have = cluster.status(n(3)).last;
    let msg = Message::Append {
        prev: have,
        entries: entries[usize::try_from(have.index.0).unwrap()..].into(),
        commit: have.index,
        probe: raft_core::ProbeId(1_000),
        sent_at: cluster.now,
        read: raft_core::ReadSeq(0),
    };
    let term = cluster.status(n(1)).ballot.term;
    cluster.input(n(3), Input::Message(raft_core::Envelope { from: n(1), to: n(3), term, msg }));
    let last = cluster.status(n(3)).last;
    assert!(last.index >= meta.pos.index && cluster.status(n(3)).commit < meta.pos.index);
    cluster.input(n(3), Input::SnapshotStaged { id: fetching.id, meta: meta.clone() });
    let status = cluster.status(n(3));
    assert_eq!((status.last, status.commit), (last, meta.pos.index), "the log stays");
    assert_eq!((cluster.checks.tally.installed, cluster.checks.tally.discarded), (0, 1));
    cluster.network.clear();
    run(&mut cluster, 300);
    works(&mut cluster, n(1));
}

/// Batches are being applied when the snapshot comes: it takes its turn after them, and nothing goes back.
#[test]
fn snapshot_while_applying() {
    let mut cluster = led(&config());
    write(&mut cluster, n(1), 6);
    // Two more are committed and handed over at node 3, whose state machine is slow.
    cluster.propose(n(1), vec![Bytes::from_static(b"slow")]);
    for _ in 0..40 {
        for id in [n(1), n(2), n(3)] {
            cluster.persist(id, usize::MAX);
        }
        for id in [n(1), n(2)] {
            cluster.apply(id);
        }
        for envelope in core::mem::take(&mut cluster.network) {
            cluster.deliver(envelope);
        }
        cluster.now = cluster.now.after(Duration::from_millis(10));
        cluster.input(n(1), Input::Timer);
    }
    assert!(!cluster.node(n(3)).to_apply.is_empty(), "a batch waits");
    let applied = cluster.status(n(3)).applied;
    isolate(&mut cluster, n(3));
    for at in 0..20 {
        cluster.propose(n(1), vec![Bytes::from(format!("{at}"))]);
        for _ in 0..4 {
            for id in [n(1), n(2)] {
                cluster.persist(id, usize::MAX);
                cluster.apply(id);
            }
            for envelope in core::mem::take(&mut cluster.network) {
                cluster.deliver(envelope);
            }
        }
    }
    keep_all(&mut cluster, n(1));
    keep_all(&mut cluster, n(2));
    cluster.cut.clear();
    step_until(&mut cluster, n(3), |cluster| cluster.checks.tally.installed == 1);
    cluster.persist(n(3), usize::MAX);
    let status = cluster.status(n(3));
    assert_eq!(status.applied, applied, "what waits comes first");
    assert!(status.commit > applied);
    // Now the batch, then the snapshot, each once; the checks see that nothing goes back.
    while !cluster.node(n(3)).to_apply.is_empty() {
        cluster.apply(n(3));
    }
    assert_eq!(cluster.status(n(3)).applied, cluster.status(n(3)).base.index);
    run(&mut cluster, 300);
    works(&mut cluster, n(1));
}

/// The leader dies half-way. The next one's offer begins another fetch as soon as the first is given up, and
/// what the first still reports means nothing.
#[test]
fn snapshot_leader_change_mid_stream() {
    let mut cluster = fetching();
    let first = cluster.node(n(3)).fetching.clone().expect("under way");
    assert_eq!(first.from, n(1));
    cluster.crash(n(1), usize::MAX);
    // Its connection is dead, which the driver has not noticed yet.
    let mut waiting = 0;
    while cluster.leaders().is_empty() {
        cluster.timeout(n(2));
        for _ in 0..6 {
            for id in [n(2), n(3)] {
                cluster.persist(id, usize::MAX);
                cluster.apply(id);
            }
            for envelope in core::mem::take(&mut cluster.network) {
                cluster.deliver(envelope);
            }
        }
        waiting += 1;
        assert!(waiting < 50, "nobody leads");
    }
    assert_eq!(cluster.leaders(), [n(2)]);
    assert_eq!(cluster.node(n(3)).fetching.as_ref().map(|it| it.id), Some(first.id), "it goes on");
    cluster.input(n(3), Input::SnapshotFailed { id: first.id });
    cluster.nodes[slot(n(3))].fetching = None;
    step_until(&mut cluster, n(3), |cluster| cluster.node(n(3)).fetching.is_some());
    let second = cluster.node(n(3)).fetching.clone().expect("another try");
    assert!(second.from == n(2) && second.id > first.id);
    let (meta, _) = first.meta.expect("it was known");
    cluster.input(n(3), Input::SnapshotStaged { id: first.id, meta });
    assert_eq!(cluster.checks.tally.installed, 0, "late, of another request");
    assert!(cluster.node(n(3)).fetching.is_some(), "the second goes on");
    run(&mut cluster, 500);
    assert_eq!(cluster.checks.tally.installed, 1);
    cluster.restart(n(1));
    run(&mut cluster, 1_000);
    works(&mut cluster, n(2));
}

/// camunda#46345: heartbeats and repeated offers go on while a snapshot is fetched, and end nothing.
#[test]
fn snapshot_interrupted_by_heartbeats() {
    let mut cluster = behind(&config());
    cluster.cut.clear();
    step_until(&mut cluster, n(3), |cluster| cluster.node(n(3)).fetching.is_some());
    let first = cluster.node(n(3)).fetching.clone().expect("under way").id;
    let offers = |cluster: &Cluster| {
        let is_offer = |it: &&raft_core::Envelope| matches!(it.msg, Message::SnapshotOffer { .. });
        cluster.network.iter().filter(is_offer).count()
    };
    let mut seen = 0;
    for _ in 0..200 {
        cluster.now = cluster.now.after(Duration::from_millis(10));
        cluster.input(n(1), Input::Timer);
        seen += offers(&cluster);
        for envelope in core::mem::take(&mut cluster.network) {
            cluster.deliver(envelope);
        }
    }
    assert!((30..=50).contains(&seen), "{seen} offers in two seconds: one with each heartbeat");
    assert_eq!(cluster.node(n(3)).fetching.as_ref().map(|it| it.id), Some(first));
    assert_eq!(cluster.leaders(), [n(1)], "a node that fetches is alive");
    assert_eq!(flow(&cluster, n(1), n(3)), FlowKind::Snapshot);
    run(&mut cluster, 300);
    assert_eq!(cluster.checks.tally.installed, 1);
    assert_eq!(flow(&cluster, n(1), n(3)), FlowKind::Replicate);
    works(&mut cluster, n(1));
}

/// The leader goes on writing and cutting while the follower fetches: what stands above the snapshot that
/// is under way is kept, so one is enough.
#[test]
fn compaction_outruns_follower() {
    let compaction =
        Compaction { trailing_entries: 2, trailing_bytes: 1 << 20, lag_bytes_max: 10_000 };
    let config = Config { compaction: Some(compaction), ..Config::default() };
    let mut cluster = led(&config);
    isolate(&mut cluster, n(3));
    for _ in 0..40 {
        write(&mut cluster, n(1), 10);
    }
    keep_all(&mut cluster, n(1));
    cluster.cut.clear();
    step_until(&mut cluster, n(3), |cluster| {
        cluster.node(n(3)).fetching.as_ref().is_some_and(|it| it.meta.is_some())
    });
    let fetching = cluster.node(n(3)).fetching.clone().expect("under way");
    let at = fetching.meta.as_ref().expect("known").0.pos.index;
    // It takes its time; meanwhile two hundred writes, each of them kept by the leader's state machine.
    cluster.nodes[slot(n(3))].fetching = None;
    for _ in 0..20 {
        write(&mut cluster, n(1), 10);
        keep_all(&mut cluster, n(1));
        run(&mut cluster, 60);
    }
    assert!(cluster.status(n(1)).base.index <= at, "what comes after the snapshot is kept");
    assert!(cluster.status(n(1)).last.index.0 > at.0 + 150);
    let (meta, content) = fetching.meta.clone().expect("known");
    cluster.nodes[slot(n(3))].staged = Some(content);
    cluster.input(n(3), Input::SnapshotStaged { id: fetching.id, meta });
    run(&mut cluster, 500);
    assert_eq!(cluster.checks.tally.installed, 1, "one snapshot, and the log does the rest");
    works(&mut cluster, n(1));
}

/// canonical/raft#250: a membership is in the log and not committed when the snapshot is made. It is not in
/// the snapshot, and who installs that goes on with the committed one.
#[test]
fn snapshot_config_uncommitted() {
    let mut cluster = behind(&config());
    let fourth = cluster.join();
    let change = NodeChange::AddLearner { id: fourth, info: NodeInfo::default() };
    // Appended at node 1, which cannot commit it.
    cluster.cut.insert((n(1), n(2)));
    cluster.cut.insert((n(1), fourth));
    cluster.change(n(1), change);
    cluster.persist(n(1), usize::MAX);
    assert!(cluster.status(n(1)).membership.contains(fourth));
    let at = LogIndex(cluster.node(n(1)).state.len() as u64);
    let raft = cluster.node(n(1)).raft.as_ref().expect("it is up");
    let meta = raft.snapshot_meta(at).expect("it has one");
    assert!(!meta.membership.contains(fourth) && meta.membership_at == LogIndex(0));
    assert!(raft.snapshot_meta(at.next()).is_none(), "not of what is not applied");
    assert!(raft.snapshot_meta(LogIndex(1)).is_none(), "nor of what is gone");
    // Node 3 installs it, then another leader takes the change back.
    cluster.cut.retain(|(from, to)| *from != n(3) && *to != n(3));
    step_until(&mut cluster, n(3), |cluster| cluster.checks.tally.installed == 1);
    assert_eq!(*cluster.status(n(3)).membership, *voters(3));
    isolate(&mut cluster, n(1));
    cluster.cut.retain(|(from, to)| *from == n(1) || *to == n(1));
    run(&mut cluster, 3_000);
    let leader = cluster.leaders().into_iter().find(|id| *id != n(1)).expect("another leads");
    write(&mut cluster, leader, 1);
    cluster.cut.clear();
    run(&mut cluster, 1_000);
    for id in [n(1), n(2), n(3)] {
        assert_eq!(*cluster.status(id).membership, *voters(3), "node {id} has taken it back");
    }
}

/// tikv/raft-rs#472: a learner gets a snapshot of before it was added, and accepts it.
#[test]
fn snapshot_not_member() {
    let mut cluster = led(&config());
    write(&mut cluster, n(1), 20);
    keep_all(&mut cluster, n(1));
    keep_all(&mut cluster, n(2));
    let fourth = cluster.join();
    isolate(&mut cluster, fourth);
    let change = NodeChange::AddLearner { id: fourth, info: NodeInfo::default() };
    // The state machine of the leader does not come to it.
    let ticket = cluster.change(n(1), change);
    for _ in 0..4 {
        for id in [n(1), n(2), n(3)] {
            cluster.persist(id, usize::MAX);
        }
        for envelope in core::mem::take(&mut cluster.network) {
            cluster.deliver(envelope);
        }
    }
    assert_eq!(
        cluster.checks.outcomes.get(&ticket),
        Some(&End::Reply(Outcome::Done)),
        "it is added"
    );
    cluster.cut.clear();
    step_until(&mut cluster, fourth, |cluster| cluster.checks.tally.installed == 1);
    let status = cluster.status(fourth);
    assert!(!status.membership.contains(fourth), "the snapshot is older than its addition");
    assert_eq!(status.role, RoleKind::Follower);
    run(&mut cluster, 500);
    assert!(cluster.status(fourth).membership.contains(fourth), "the log tells it");
    works(&mut cluster, n(1));
}

/// A crash at every moment of an installation leaves the old log and state or the new ones, and the node
/// comes back to the cluster from there.
#[test]
fn crash_at_every_step_of_an_installation() {
    for steps in 0.. {
        let mut cluster = behind(&config());
        let old = cluster.node(n(3)).state.clone();
        cluster.keep(n(3), old.len());
        cluster.cut.clear();
        step_until(&mut cluster, n(3), |cluster| cluster.checks.tally.installed == 1);
        let mut taken = 0;
        while taken < steps {
            if !cluster.node(n(3)).writes.is_empty() {
                cluster.persist(n(3), 1);
            } else if cluster.node(n(3)).to_apply.is_empty() {
                break;
            } else {
                cluster.apply(n(3));
            }
            taken += 1;
        }
        let over = taken < steps;
        let installed = cluster.node(n(3)).disk.base.index > LogIndex(0);
        cluster.crash(n(3), 0);
        let node = cluster.node(n(3));
        assert_eq!(node.state.len() > old.len(), installed, "after {steps} steps");
        assert_eq!(node.state[..old.len()], old, "after {steps} steps");
        cluster.restart(n(3));
        run(&mut cluster, 1_000);
        works(&mut cluster, n(1));
        if over {
            assert!(steps >= 3, "there was something to interrupt");
            break;
        }
    }
}

/// A node with a log to be replaced asks for votes with it; the snapshot ends the candidacy.
#[test]
fn candidate_that_installs_a_snapshot_gives_up_its_candidacy() {
    let mut cluster = fetching();
    isolate(&mut cluster, n(3));
    cluster.timeout(n(3));
    assert_eq!(cluster.status(n(3)).role, RoleKind::PreCandidate);
    cluster.cut.clear();
    assert!(cluster.fetch_snapshot(n(3)));
    assert_eq!(cluster.status(n(3)).role, RoleKind::Follower);
    run(&mut cluster, 500);
    assert_eq!(cluster.checks.tally.installed, 1);
    works(&mut cluster, n(1));
}

/// Whoever made the snapshot may have heard of a later term: it is on disk before the log begins there.
#[test]
fn term_of_a_snapshot_is_promised_before_it_is_installed() {
    let mut cluster = fetching();
    let fetching = cluster.node(n(3)).fetching.clone().expect("under way");
    let (mut meta, _) = fetching.meta.expect("known");
    let term = Term(cluster.status(n(3)).ballot.term.0 + 3);
    meta.pos.term = term;
    // The checks know no entry of that term: the core alone.
    let now = cluster.now;
    let raft = cluster.nodes[slot(n(3))].raft.as_mut().expect("it is up");
    raft.step(now, Input::SnapshotStaged { id: fetching.id, meta });
    let mut out = Effects::new();
    raft.flush(now, &mut out);
    let ballots = out.iter().filter_map(|effect| {
        if let Effect::InstallSnapshot { ballot, .. } = effect { Some(*ballot) } else { None }
    });
    let ballots: Vec<_> = ballots.collect();
    assert_eq!(ballots, [Some(Ballot { term, voted_for: None })]);
    raft.check_invariants();
}

/// What cannot be a snapshot is discarded, without a panic.
#[test]
fn malformed_snapshots_are_discarded() {
    let unknown = Arc::new(Membership::unknown());
    let damage: [&dyn Fn(&mut raft_core::SnapshotMeta); 4] = [
        &|meta| meta.pos = LogPos::default(),
        &|meta| meta.pos.term = Term(0),
        &|meta| meta.membership_at = meta.pos.index.next(),
        &|meta| meta.membership = Arc::clone(&unknown),
    ];
    for damage in damage {
        let mut cluster = behind(&config());
        cluster.cut.clear();
        step_until(&mut cluster, n(3), |cluster| {
            cluster.node(n(3)).fetching.as_ref().is_some_and(|it| it.meta.is_some())
        });
        let fetching = cluster.node(n(3)).fetching.clone().expect("under way");
        let (mut meta, _) = fetching.meta.expect("known");
        damage(&mut meta);
        cluster.input(n(3), Input::SnapshotStaged { id: fetching.id, meta });
        assert_eq!((cluster.checks.tally.installed, cluster.checks.tally.discarded), (0, 1));
        assert_eq!(cluster.status(n(3)).counters.invalid_messages, 1);
        run(&mut cluster, 1_000);
        works(&mut cluster, n(1));
    }
}

/// A failed fetch is tried again after a pause, not with every heartbeat.
#[test]
fn failed_fetch_is_tried_again_after_a_pause() {
    let mut cluster = behind(&config());
    cluster.cut.clear();
    let mut tries = 0;
    for _ in 0..200 {
        cluster.now = cluster.now.after(Duration::from_millis(10));
        cluster.input(n(1), Input::Timer);
        for envelope in core::mem::take(&mut cluster.network) {
            cluster.deliver(envelope);
        }
        if let Some(fetching) = cluster.nodes[slot(n(3))].fetching.take() {
            tries += 1;
            cluster.input(n(3), Input::SnapshotFailed { id: fetching.id });
        }
    }
    assert!((4..=7).contains(&tries), "{tries} tries in two seconds");
}
