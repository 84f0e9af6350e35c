//! Replicas end to end, without threads, sockets and clocks: one voter with crashes, and four.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "the lints exempt only functions marked as tests, not what they call"
)]

mod harness;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use harness::{Cluster, DIR, config, put, register, tagged};
use kv_server::{
    identity::IdentityError,
    replica::{self, ConsensusInput, Executor, OpenError, Parts, ReplicaConfig, ReplicaFailure},
};
use lsm_store::{
    rng::SplitMix64,
    vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, MemVfs, OpSet, Vfs},
};
use raft_core::{LogIndex, Micros, RoleKind};
use raft_rpc::{Condition, Response, WireError, WriteOperation, WriteRequest};

fn written(answer: Result<Response, WireError>) -> u64 {
    match answer {
        Ok(Response::Written { revision, .. }) => revision,
        other => panic!("not written: {other:?}"),
    }
}

#[test]
fn one_voter_serves_puts_conditions_deletes_and_reads() {
    let mut cluster = Cluster::new(1, 1);
    assert_eq!(cluster.await_leader(), 1, "the only one");
    assert_eq!(written(cluster.write(1, &put("a", "1"))), 2, "a fresh store is at 1");
    assert_eq!(written(cluster.write(1, &put("a", "2"))), 3, "the next");
    let found = cluster.read(1, "a").unwrap().unwrap();
    assert_eq!(
        (&found.value[..], found.create_revision, found.mod_revision),
        (&b"2"[..], 2, 3),
        "read"
    );
    assert_eq!(found.version, 2, "written twice");
    let operation = WriteOperation::Put {
        key: Bytes::from_static(b"a"),
        value: Bytes::from_static(b"3"),
        condition: Condition::Revision(2),
        return_previous: false,
    };
    let refused = cluster.write(1, &WriteRequest { tag: None, operation });
    assert_eq!(
        refused,
        Ok(Response::Refused { revision: 3, current: Some(found.clone()) }),
        "refused"
    );
    let operation = WriteOperation::Delete {
        key: Bytes::from_static(b"a"),
        condition: Condition::Always,
        return_previous: true,
    };
    let deleted = cluster.write(1, &WriteRequest { tag: None, operation });
    let expected = Response::Deleted { revision: 4, count: 1, previous: Some(found) };
    assert_eq!(deleted, Ok(expected), "deleted");
    assert_eq!(cluster.read(1, "a").unwrap(), None, "gone");
}

/// Scenarios 27 and 57.
#[test]
fn one_voter_loses_nothing_acknowledged_wherever_it_crashes_and_reads_see_it_after_the_restart() {
    for seed in 0..60 {
        let mut rng = SplitMix64::new(seed);
        let mut cluster = Cluster::new(1, seed);
        let mut acknowledged: BTreeMap<String, String> = BTreeMap::new();
        let mut attempted: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for boot in 0..4 {
            let context = format!("seed {seed}, boot {boot}");
            cluster.await_leader();
            for (key, value) in &acknowledged {
                let found = cluster
                    .read(1, key)
                    .unwrap()
                    .unwrap_or_else(|| panic!("{key} lost, {context}"));
                let found = String::from_utf8(found.value.to_vec()).unwrap();
                let later = attempted[key].iter().rev().take_while(|tried| *tried != value);
                assert!(
                    found == *value || later.clone().any(|tried| *tried == found),
                    "{key} is {found}, acknowledged was {value}, {context}"
                );
            }
            let stop_at = cluster.node(1).vfs.mutating_calls() + rng.below(60);
            cluster.node(1).vfs.crash_at(stop_at);
            for write in 0..200 {
                let key = format!("key-{}", rng.below(8));
                let value = format!(
                    "{boot}-{write}-{}",
                    "x".repeat(usize::try_from(rng.below(300)).unwrap())
                );
                attempted.entry(key.clone()).or_default().push(value.clone());
                match cluster.write(1, &put(&key, &value)) {
                    Ok(_) => drop(acknowledged.insert(key, value)),
                    Err(error) => {
                        assert!(cluster.node(1).vfs.has_stopped(), "{error}, {context}");
                        break;
                    }
                }
                cluster.run(rng.below(3));
            }
            let policy = CrashPolicy::ALL[usize::try_from(rng.below(8)).unwrap()];
            cluster.crash(1, policy);
            cluster.start(1).unwrap_or_else(|error| panic!("{error}, {policy:?}, {context}"));
        }
    }
}

#[test]
fn what_is_known_to_be_committed_is_applied_before_a_start_is_complete() {
    let mut cluster = Cluster::with(1, 1, |config| config.storage.memtable_bytes = 1 << 20);
    cluster.await_leader();
    for write in 0..30 {
        written(cluster.write(1, &put(&format!("k{write}"), "v")));
    }
    cluster.crash(1, CrashPolicy::LOSE_UNSYNCED);
    cluster.start(1).unwrap();
    let report = cluster.parts(1).report.clone();
    assert_eq!(report.durable, LogIndex(0), "nothing is in tables");
    assert!(report.replayed >= 29, "the log was replayed: {report:?}");
    assert!(cluster.content(1).len() >= 28, "and can be read at once, without a leader");
}

#[test]
fn a_crash_during_a_start_does_not_hinder_the_next() {
    for seed in 0..40 {
        let mut rng = SplitMix64::new(seed);
        let mut cluster = Cluster::new(1, seed);
        cluster.await_leader();
        for write in 0..30 {
            written(cluster.write(1, &put(&format!("k{write}"), &"v".repeat(200))));
        }
        let hash = cluster.status(1).applied;
        for attempt in 0..4 {
            cluster.crash(1, CrashPolicy::ALL[usize::try_from(rng.below(8)).unwrap()]);
            let stop_at = cluster.node(1).vfs.mutating_calls() + rng.below(12);
            cluster.node(1).vfs.crash_at(stop_at);
            if cluster.start(1).is_err() {
                assert!(cluster.node(1).vfs.has_stopped(), "seed {seed}, attempt {attempt}");
            }
        }
        cluster.crash(1, CrashPolicy::LOSE_UNSYNCED);
        cluster.start(1).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        cluster.await_leader();
        cluster.run(50);
        let applied = cluster.status(1).applied;
        assert_eq!(applied.state_hash, hash.state_hash, "seed {seed}: the state differs");
        assert_eq!(applied.revision, 31, "seed {seed}");
    }
}

#[test]
fn a_crash_during_the_first_start_does_not_hinder_the_next() {
    for call in 0..60 {
        for policy in CrashPolicy::ALL {
            let vfs = MemVfs::new(1);
            let start = |seed| -> Result<Parts<u64>, OpenError> {
                let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
                replica::open(vfs, Path::new(DIR), &config(1, 1), Executor::Inline, seed, Micros(0))
            };
            vfs.crash_at(call);
            let first = start(1).map(|parts| parts.identity);
            vfs.crash(policy, call);
            let second =
                start(2).unwrap_or_else(|error| panic!("call {call}, {policy:?}: {error}"));
            if let Ok(first) = first {
                assert_eq!(second.identity, first, "call {call}, {policy:?}");
            }
        }
    }
}

#[test]
fn four_replicas_agree_and_a_killed_leader_comes_back_and_catches_up() {
    for seed in 0..6 {
        let mut cluster = Cluster::new(4, seed);
        let first = cluster.await_leader();
        for write in 0..40 {
            written(cluster.write(first, &put(&format!("key-{write:02}"), "before")));
        }
        cluster.crash(first, CrashPolicy::LOSE_UNSYNCED);
        let second = cluster.await_leader();
        for write in 20..60 {
            written(cluster.write(second, &put(&format!("key-{write:02}"), "after")));
        }
        cluster.start(first).unwrap();
        cluster.run(1_000);
        let expected = cluster.content(second);
        assert_eq!(expected.len(), 60, "seed {seed}");
        let applied = cluster.status(second).applied;
        for id in 1..=4 {
            let found = cluster.status(id).applied;
            assert_eq!(found.index, applied.index, "seed {seed}, node {id}: behind");
            assert_eq!(found.state_hash, applied.state_hash, "seed {seed}, node {id}: diverged");
            assert_eq!(found.cluster_time_ms, applied.cluster_time_ms, "seed {seed}, node {id}");
            assert_eq!(cluster.content(id), expected, "seed {seed}, node {id}");
        }
        assert_eq!(cluster.status(first).role, RoleKind::Follower, "seed {seed}: it follows");
    }
}

#[test]
fn all_four_crash_at_once_and_everything_acknowledged_is_there_again() {
    for seed in 0..6 {
        let mut cluster = Cluster::new(4, seed);
        let leader = cluster.await_leader();
        for write in 0..50 {
            written(cluster.write(leader, &put(&format!("key-{write:02}"), &"v".repeat(300))));
        }
        for id in 1..=4 {
            cluster.crash(id, CrashPolicy::ALL[usize::try_from((seed + id) % 8).unwrap()]);
        }
        for id in 1..=4 {
            cluster.start(id).unwrap();
        }
        let leader = cluster.await_leader();
        for follower in 1..=4 {
            let found = cluster.read(follower, "key-49").unwrap();
            assert!(found.is_some(), "seed {seed}: lost at node {follower}");
        }
        assert_eq!(cluster.content(leader).len(), 50, "seed {seed}");
    }
}

#[test]
fn a_follower_serves_a_linearizable_read_and_refuses_a_write_with_a_hint() {
    let mut cluster = Cluster::new(4, 3);
    let leader = cluster.await_leader();
    cluster.run(200);
    let follower = leader % 4 + 1;
    written(cluster.write(leader, &put("a", "1")));
    let found = cluster.read(follower, "a").unwrap().unwrap();
    assert_eq!(&found.value[..], b"1", "the newest value");
    let refused = cluster.write(follower, &put("a", "2"));
    let expected = WireError::NotLeader {
        node: follower,
        hint: Some(leader),
        hint_addr: Some(format!("127.0.0.1:{}", 3330 + leader)),
    };
    assert_eq!(refused, Err(expected), "the hint");
}

/// Scenario 64.
#[test]
fn a_write_whose_answer_was_lost_with_the_leader_applies_once_and_a_retry_gets_the_same_reply() {
    for seed in 0..8 {
        let mut cluster = Cluster::new(4, seed);
        let first = cluster.await_leader();
        let Ok(Response::Session { id: session }) = cluster.write(first, &register()) else {
            panic!("no session")
        };
        written(cluster.write(first, &tagged(put("counter", "0"), session, 1)));
        let token = cluster.propose(first, &tagged(put("counter", "1"), session, 2));
        // It is replicated, but its leader is cut off before it hears so.
        for other in (1..=4).filter(|id| *id != first) {
            cluster.cut.insert((other, first));
        }
        cluster.run(5);
        for other in (1..=4).filter(|id| *id != first) {
            cluster.cut.insert((first, other));
        }
        let answered = cluster.run_until(3_000, |cluster| cluster.answers.contains_key(&token));
        assert!(answered, "seed {seed}: its caller waits forever");
        let answer = cluster.answers.remove(&token).unwrap();
        assert!(matches!(answer, Err(WireError::OutcomeUnknown { .. })), "seed {seed}: {answer:?}");

        let second = cluster.await_leader();
        assert_ne!(second, first, "seed {seed}: another one leads");
        let retry = cluster.write(second, &tagged(put("counter", "1"), session, 2));
        let Ok(Response::Written { revision: 3, previous: Some(previous) }) = &retry else {
            panic!("seed {seed}: {retry:?}")
        };
        assert_eq!(&previous.value[..], b"0", "seed {seed}: what was there before");
        written(cluster.write(second, &tagged(put("counter", "2"), session, 3)));
        let again = cluster.write(second, &tagged(put("counter", "1"), session, 2));
        assert_eq!(again, retry, "seed {seed}: the same reply, read from history");
        let found = cluster.read(second, "counter").unwrap().unwrap();
        assert_eq!((&found.value[..], found.version), (&b"2"[..], 3), "seed {seed}: applied once");

        cluster.cut.clear();
        cluster.run(1_000);
        let hashes: Vec<u64> = (1..=4).map(|id| cluster.status(id).applied.state_hash).collect();
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "seed {seed}: {hashes:?}");
    }
}

/// RAFT B33: what was appended by a leader without a quorum and replaced by another entry.
#[test]
fn a_write_that_was_replaced_is_never_applied() {
    let mut cluster = Cluster::new(4, 5);
    let first = cluster.await_leader();
    written(cluster.write(first, &put("a", "1")));
    for other in (1..=4).filter(|id| *id != first) {
        cluster.cut.extend([(first, other), (other, first)]);
    }
    let token = cluster.propose(first, &put("a", "lost"));
    cluster.run(2_000);
    let answer = cluster.answers.remove(&token).unwrap();
    assert!(matches!(answer, Err(WireError::OutcomeUnknown { .. })), "{answer:?}");
    let second = cluster.await_leader();
    written(cluster.write(second, &put("b", "2")));
    cluster.cut.clear();
    cluster.run(1_000);
    let found = cluster.read(first, "a").unwrap().unwrap();
    assert_eq!(&found.value[..], b"1", "the lost write came back");
    assert_eq!(cluster.status(first).applied, cluster.status(second).applied, "the same state");
}

/// Scenario 65, the part without snapshots.
#[test]
fn a_session_ends_after_an_hour_of_cluster_time_on_every_node_alike() {
    let mut cluster = Cluster::new(3, 9);
    let leader = cluster.await_leader();
    let Ok(Response::Session { id: session }) = cluster.write(leader, &register()) else {
        panic!("no session")
    };
    written(cluster.write(leader, &tagged(put("a", "1"), session, 1)));
    for id in 1..=3 {
        cluster.crash(id, CrashPolicy::KEEP_ALL);
    }
    cluster.now_ms += 3 * 60 * 60 * 1000;
    for id in 1..=3 {
        cluster.start(id).unwrap();
    }
    let leader = cluster.await_leader();
    written(cluster.write(leader, &tagged(put("a", "2"), session, 2)));
    cluster.idle(59 * 60);
    assert_eq!(cluster.status(leader).applied.sessions, 1, "time without a leader does not count");
    cluster.idle(2 * 60);
    for id in 1..=3 {
        assert_eq!(cluster.status(id).applied.sessions, 0, "node {id}: ended by ticks alone");
    }
    let leader = cluster.await_leader();
    let late = cluster.write(leader, &tagged(put("a", "3"), session, 3));
    assert_eq!(late, Err(WireError::SessionExpired { session }), "never created silently");
}

#[test]
fn an_idle_store_is_flushed_so_that_the_next_start_replays_nothing() {
    let mut cluster = Cluster::new(1, 2);
    cluster.await_leader();
    for write in 0..5 {
        written(cluster.write(1, &put(&format!("k{write}"), "v")));
    }
    cluster.idle(29);
    assert_eq!(cluster.parts(1).applier.applied().durable, LogIndex(0), "nothing yet");
    cluster.idle(2);
    let applied = cluster.parts(1).applier.applied();
    assert_eq!(applied.durable, applied.index, "everything is in tables");
    cluster.crash(1, CrashPolicy::LOSE_UNSYNCED);
    cluster.start(1).unwrap();
    assert_eq!(cluster.parts(1).report.replayed, 0, "nothing to replay");
    assert_eq!(cluster.content(1).len(), 5, "everything is there");
}

#[test]
fn an_idle_store_with_open_sessions_is_flushed_with_their_rows() {
    let mut cluster = Cluster::new(1, 2);
    cluster.await_leader();
    let Ok(Response::Session { id: session }) = cluster.write(1, &register()) else {
        panic!("no session")
    };
    let first = cluster.write(1, &tagged(put("a", "1"), session, 1));
    cluster.idle(32);
    let applied = cluster.parts(1).applier.applied();
    assert!(applied.durable > LogIndex(2), "session and write are in tables: {applied:?}");
    cluster.crash(1, CrashPolicy::LOSE_UNSYNCED);
    cluster.start(1).unwrap();
    cluster.await_leader();
    assert_eq!(cluster.write(1, &tagged(put("a", "1"), session, 1)), first, "the first reply");
    cluster.idle(300);
    let later = cluster.parts(1).applier.applied();
    assert!(later.durable < later.index, "ticks alone do not flush again and again: {later:?}");
}

/// RAFT B35, across a restart: what confirmed a read before it confirms none after it.
#[test]
fn a_read_index_for_a_read_before_the_restart_does_not_confirm_one_after_it() {
    let mut cluster = Cluster::new(3, 12);
    let leader = cluster.await_leader();
    written(cluster.write(leader, &put("a", "old")));
    cluster.run(200);
    let follower = leader % 3 + 1;
    cluster.held_read_replies = Some(Vec::new());
    cluster.ask(follower);
    cluster.run(50);
    let replies = cluster.held_read_replies.take().unwrap();
    assert_eq!(replies.len(), 1, "the leader has answered");

    cluster.crash(follower, CrashPolicy::LOSE_UNSYNCED);
    for other in (1..=3).filter(|id| *id != follower) {
        cluster.cut.extend([(other, follower), (follower, other)]);
    }
    written(cluster.write(leader, &put("a", "new")));
    cluster.start(follower).unwrap();
    cluster.cut.remove(&(leader, follower));
    cluster.run(200);
    cluster.cut.insert((leader, follower));
    let token = cluster.ask(follower);
    cluster.run(2);
    for reply in replies {
        cluster.input(follower, ConsensusInput::Message(reply));
    }
    cluster.run(100);
    assert!(!cluster.served.contains_key(&token), "an old answer confirmed a new read");
}

#[test]
fn sessions_survive_a_flush_that_cuts_their_past_off() {
    let mut cluster = Cluster::new(1, 4);
    cluster.await_leader();
    let Ok(Response::Session { id: session }) = cluster.write(1, &register()) else {
        panic!("no session")
    };
    let first = cluster.write(1, &tagged(put("a", "1"), session, 1));
    for write in 0..60 {
        written(cluster.write(1, &put(&format!("k{write}"), &"v".repeat(300))));
    }
    let applied = cluster.parts(1).applier.applied();
    assert!(applied.durable > LogIndex(3), "the memtable was frozen: {applied:?}");
    cluster.crash(1, CrashPolicy::LOSE_UNSYNCED);
    cluster.start(1).unwrap();
    cluster.await_leader();
    assert_eq!(cluster.write(1, &tagged(put("a", "1"), session, 1)), first, "the first reply");
    let found = cluster.read(1, "a").unwrap().unwrap();
    assert_eq!(found.version, 1, "applied once");
}

/// Scenario 66, the part of the replica.
#[test]
fn more_proposals_and_reads_than_may_wait_are_refused_at_once_without_effect() {
    let tune = |config: &mut ReplicaConfig| {
        config.limits.waiting_proposals_max = 10;
        config.limits.waiting_reads_max = 10;
    };
    let mut cluster = Cluster::with(3, 6, tune);
    let leader = cluster.await_leader();
    cluster.run(100);
    for other in (1..=3).filter(|id| *id != leader) {
        cluster.cut.insert((other, leader));
    }
    let puts: Vec<u64> =
        (0..25).map(|write| cluster.propose(leader, &put(&format!("k{write}"), "v"))).collect();
    let reads: Vec<u64> = (0..25).map(|_| cluster.ask(leader)).collect();
    cluster.run(2);
    for (tokens, what) in [(&puts, "proposals"), (&reads, "reads")] {
        let refused = tokens.iter().filter(|token| {
            matches!(cluster.answers.get(token), Some(Err(WireError::Overloaded { .. })))
        });
        assert_eq!(refused.count(), 15, "{what}");
    }
    cluster.cut.clear();
    cluster.run(3_000);
    for token in puts.iter().chain(&reads) {
        assert!(
            cluster.answers.contains_key(token) || cluster.served.contains_key(token),
            "caller {token} waits forever"
        );
    }
    let leader = cluster.await_leader();
    assert_eq!(cluster.content(leader).len(), 10, "just those that were taken");
}

#[test]
fn a_leader_cut_off_answers_every_read_and_write_with_the_truth() {
    let mut cluster = Cluster::new(3, 8);
    let leader = cluster.await_leader();
    cluster.run(100);
    for other in (1..=3).filter(|id| *id != leader) {
        cluster.cut.extend([(other, leader), (leader, other)]);
    }
    let (write, read) = (cluster.propose(leader, &put("a", "1")), cluster.ask(leader));
    cluster.run(1_500);
    let told = cluster.answers.get(&write);
    assert!(matches!(told, Some(Err(WireError::OutcomeUnknown { .. }))), "{told:?}");
    let told = cluster.answers.get(&read);
    assert!(matches!(told, Some(Err(WireError::NoLeader { .. }))), "{told:?}");
    let told = cluster.write(leader, &put("a", "2"));
    assert!(matches!(told, Err(WireError::NoLeader { .. })), "nobody to hint at: {told:?}");
}

/// RAFT B18, scenario 32.
#[test]
fn a_failed_sync_stops_the_node_and_every_caller_is_told() {
    let mut cluster = Cluster::new(1, 3);
    cluster.await_leader();
    written(cluster.write(1, &put("a", "1")));
    cluster.node(1).vfs.add_fault(Fault {
        ops: OpSet::SYNCS,
        when: FaultWhen::Always,
        kind: FaultKind::Io,
        path_contains: "raft-log".to_owned(),
    });
    let told = cluster.write(1, &put("a", "2"));
    let Err(WireError::Storage { reason, .. } | WireError::OutcomeUnknown { reason, .. }) = told
    else {
        panic!("{told:?}")
    };
    let Some(ReplicaFailure::Log { reason: failure }) = cluster.node(1).failure.clone() else {
        panic!("the node goes on: {reason}")
    };
    assert!(failure.contains("cannot sync"), "names the operation: {failure}");
    assert_eq!(cluster.status(1).role, RoleKind::Halted, "shown in status");
    cluster.node(1).vfs.clear_faults();
    let told = cluster.write(1, &put("a", "3"));
    assert!(matches!(told, Err(WireError::Storage { .. })), "and stays stopped: {told:?}");
    cluster.crash(1, CrashPolicy::LOSE_UNSYNCED);
    cluster.start(1).unwrap();
    cluster.await_leader();
    let found = cluster.read(1, "a").unwrap().unwrap();
    assert_eq!(&found.value[..], b"1", "what was acknowledged");
}

#[test]
fn a_command_of_the_next_version_is_refused_before_it_reaches_the_log() {
    let mut cluster = Cluster::new(1, 3);
    cluster.await_leader();
    let mut command = kv_server::state_machine::command::tick().to_vec();
    command[0] += 1;
    let waiter = cluster.token();
    let proposal =
        replica::Proposal { command: Bytes::from(command), return_previous: false, waiter };
    let now = cluster.now();
    cluster.parts(1).consensus.handle(now, ConsensusInput::Propose(vec![proposal]));
    cluster.run(2);
    let told = cluster.answers.remove(&waiter);
    let Some(Err(WireError::BadInput { reason })) = told else { panic!("{told:?}") };
    assert!(reason.contains("version 2"), "{reason}");
    written(cluster.write(1, &put("a", "1")));
}

fn refusal(vfs: &MemVfs, config: &ReplicaConfig) -> OpenError {
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    let result: Result<Parts<u64>, OpenError> =
        replica::open(vfs, Path::new(DIR), config, Executor::Inline, 9, Micros(0));
    match result {
        Ok(parts) => panic!("started: {:?}", parts.report),
        Err(error) => error,
    }
}

#[test]
fn a_directory_in_use_of_another_node_or_cluster_or_with_parts_missing_is_refused_by_name() {
    let mut cluster = Cluster::new(3, 1);
    let leader = cluster.await_leader();
    written(cluster.write(leader, &put("a", "1")));
    cluster.run(200);
    let mine = cluster.node(1).config.clone();
    let vfs = cluster.node(1).vfs.clone();
    assert!(matches!(refusal(&vfs, &mine), OpenError::InUse { .. }), "in use");
    let disk = || vfs.fork();
    let error = refusal(&disk(), &config(2, 3));
    assert!(matches!(error, OpenError::Identity(IdentityError::OtherNode { .. })), "{error}");
    let error = refusal(&disk(), &config(1, 4));
    assert!(matches!(error, OpenError::Identity(IdentityError::OtherCluster { .. })), "{error}");

    let lost = disk();
    lost.unlink(Path::new("/data/IDENTITY")).unwrap();
    let error = refusal(&lost, &mine);
    assert!(matches!(error, OpenError::Identity(IdentityError::Missing { .. })), "{error}");

    let lost = disk();
    for file in lost.files() {
        if file.starts_with("/data/raft-log") {
            lost.unlink(&file).unwrap();
        }
    }
    let error = refusal(&lost, &mine);
    assert!(matches!(error, OpenError::Identity(IdentityError::LogLost { .. })), "{error}");

    let mixed = disk();
    for file in mixed.files().into_iter().filter(|file| file.starts_with("/data/raft-log")) {
        let other = cluster.node(2).vfs.content(&file);
        if let Ok(content) = other {
            mixed.replace(&file, &content).unwrap();
        }
    }
    let error = refusal(&mixed, &mine);
    assert!(
        matches!(error, OpenError::Storage(lsm_store::Error::WrongStore { .. })),
        "another node's log: {error}"
    );
}

#[test]
fn a_log_that_ends_before_the_engine_does_is_refused() {
    let mut cluster = Cluster::new(1, 1);
    cluster.await_leader();
    written(cluster.write(1, &put("a", "1")));
    let old_log = cluster.node(1).vfs.fork();
    for write in 0..60 {
        written(cluster.write(1, &put(&format!("k{write}"), &"v".repeat(300))));
    }
    let mine = cluster.node(1).config.clone();
    let vfs = cluster.node(1).vfs.fork();
    for file in vfs.files().into_iter().filter(|file| file.starts_with("/data/raft-log")) {
        match old_log.content(&file) {
            Ok(content) => vfs.replace(&file, &content).unwrap(),
            Err(_) => vfs.unlink(&file).unwrap(),
        }
    }
    let error = refusal(&vfs, &mine);
    assert!(
        matches!(error, OpenError::Consensus(raft_core::StartError::AppliedBeyondLog { .. })),
        "{error}"
    );
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_disk() {
    let run = || {
        let mut cluster = Cluster::new(3, 77);
        let leader = cluster.await_leader();
        for write in 0..50 {
            written(cluster.write(leader, &put(&format!("k{write}"), &"v".repeat(300))));
        }
        cluster.run(300);
        let disks = (1..=3).map(|id| {
            let vfs = cluster.node(id).vfs.clone();
            let files = vfs.files();
            files
                .into_iter()
                .map(|file| (file.clone(), vfs.content(&file).unwrap()))
                .collect::<Vec<_>>()
        });
        disks.collect::<Vec<_>>()
    };
    assert!(run() == run(), "two runs from one seed differ");
}
