//! What clients meet: writes and reads on any node, limits, overload, no majority, stop and start.

use std::time::Duration;

use crate::cluster::{Cluster, PATIENCE, STALE, get, put, revision, until, value};
use bytes::Bytes;
use raft_rpc::{
    Consistency, KeyRange, Projection, RangeRequest, Request, Response, Role, WireError,
};

#[test]
fn one_node_is_a_cluster() {
    let cluster = Cluster::start(1);
    let client = cluster.client(1);
    assert_eq!(revision(cluster.one(&client, put("key-01", "content 01"))), 2);
    assert_eq!(revision(cluster.one(&client, put("key-02", "content 02"))), 3);
    let found = cluster.one(&client, get("key-02", Consistency::Linearizable));
    assert_eq!(value(found).as_deref(), Some(&b"content 02"[..]));
    let range = Request::Range(RangeRequest {
        range: KeyRange { start: Bytes::new(), end: None },
        limit: None,
        reverse: true,
        projection: Projection::KeysOnly,
        revision: None,
        consistency: Consistency::Linearizable,
    });
    match cluster.one(&client, range) {
        Ok(Response::Page { items, more: false, revision: 3 }) => {
            let keys: Vec<_> = items.into_iter().map(|item| item.key).collect();
            assert_eq!(keys, ["key-02", "key-01"]);
        }
        other => panic!("expected a page: {other:?}"),
    }
    let status = cluster.status(&client);
    assert_eq!((status.role, status.leader, status.revision), (Role::Leader, Some(1), 3));
    assert_eq!((status.voter, status.members.len(), status.peers.len()), (true, 1, 0));
}

#[test]
fn a_follower_hands_writes_on_and_reads_what_was_acknowledged() {
    let cluster = Cluster::start(3);
    let leader = cluster.leader(1, None);
    let followers: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let at_leader = cluster.client(leader);
    let (at_follower, at_third) = (cluster.client(followers[0]), cluster.client(followers[1]));
    assert_eq!(cluster.leader(followers[0], None), leader);

    let first = revision(cluster.one(&at_leader, put("key-01", "content 01")));
    assert_eq!(cluster.status(&at_follower).forwarded, 0);
    let second = revision(cluster.one(&at_follower, put("key-02", "content 02")));
    assert!(second > first, "{second} after {first}");
    assert_eq!(cluster.status(&at_follower).forwarded, 1, "it really passed it on");
    assert_eq!(cluster.status(&at_leader).forwarded, 0);

    for client in [&at_leader, &at_follower, &at_third] {
        let found = cluster.one(client, get("key-02", Consistency::Linearizable));
        assert_eq!(value(found).as_deref(), Some(&b"content 02"[..]), "at once, on every node");
        let found = cluster.one(client, get("key-02", Consistency::AtLeast(second)));
        assert_eq!(value(found).as_deref(), Some(&b"content 02"[..]));
        until("a stale read sees it", || {
            value(cluster.one(client, get("key-02", STALE))).is_some()
        });
    }
    let requests = (0..200).map(|n| put(format!("batch/{n:03}"), "x")).collect();
    for answer in cluster.batch(&at_follower, requests, PATIENCE) {
        revision(answer);
    }
    assert_eq!(cluster.status(&at_follower).forwarded, 201);
    until("equal hashes at equal indexes", || {
        let states = [&at_leader, &at_follower, &at_third].map(|client| {
            let status = cluster.status(client);
            (status.applied_index, status.state_hash)
        });
        states.iter().all(|state| *state == states[0])
    });
    let status = cluster.status(&at_follower);
    assert!(status.peers.iter().all(|peer| peer.connected), "{:?}", status.peers);
    assert_eq!(status.role, Role::Follower);
}

#[test]
fn the_others_go_on_without_the_leader_and_it_catches_up() {
    let mut cluster = Cluster::start(3);
    let old = cluster.leader(1, None);
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    revision(cluster.one(&cluster.client(old), put("key-01", "content 01")));
    let client = cluster.client(others[0]);
    assert_eq!(cluster.leader(others[0], None), old);
    cluster.stop(old);
    // Sent at once: the follower waits for the election, then hands the write on or proposes it.
    revision(cluster.one(&client, put("key-02", "content 02")));
    let new = cluster.leader(others[0], Some(old));
    assert!(others.contains(&new), "node {new} leads");
    cluster.restart(old);
    let found = cluster.one(&cluster.client(old), get("key-02", Consistency::Linearizable));
    assert_eq!(value(found).as_deref(), Some(&b"content 02"[..]));
    until("connected, broken, connected again", || {
        let status = cluster.status(&client);
        status.peers.iter().any(|peer| peer.id == old && peer.connected && peer.changes >= 3)
    });
}

#[test]
fn everything_is_there_after_a_stop_and_a_start() {
    let mut cluster = Cluster::start(1);
    let client = cluster.client(1);
    let requests = (0..100).map(|n| put(format!("{n}"), "x")).collect();
    let answers = cluster.batch(&client, requests, PATIENCE);
    let last = answers.into_iter().map(revision).max().expect("a hundred");
    cluster.stop(1);
    cluster.restart(1);
    let client = cluster.client(1);
    let found = cluster.one(&client, get("99", Consistency::Linearizable));
    assert_eq!(value(found).as_deref(), Some(&b"x"[..]));
    assert_eq!(cluster.status(&client).revision, last);
}

#[test]
fn what_is_too_large_is_refused_by_name_and_the_rest_of_the_batch_is_not() {
    let cluster = Cluster::start(1);
    let client = cluster.client(1);
    let requests = vec![
        put(vec![b'k'; 4097], "x"),
        put("fits", vec![0; 1 << 20]),
        put("key", vec![0; (1 << 20) + 1]),
        put("", "x"),
        put(vec![b'k'; 4096], "x"),
    ];
    let answers = cluster.batch(&client, requests, PATIENCE);
    let texts: Vec<String> = answers
        .iter()
        .map(|answer| answer.as_ref().map_or_else(ToString::to_string, |_| "ok".to_owned()))
        .collect();
    assert_eq!(
        texts,
        [
            "key is 4097 bytes, limit is 4096 (fixed on node 1)",
            "ok",
            "value is 1048577 bytes, limit is 1048576 (limits.value on node 1)",
            "a key has at least one byte",
            "ok",
        ]
    );
}

#[test]
fn beyond_the_queue_writes_are_answered_overloaded_and_the_others_are_applied() {
    let cluster = Cluster::start_with(1, |config| config.limits.queue = 4);
    let client = cluster.client(1);
    cluster.one(&client, put("first", "x")).expect("it leads");
    let requests = (0..10).map(|n| put(format!("{n}"), "x")).collect();
    let answers = cluster.batch(&client, requests, PATIENCE);
    let (taken, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((taken.len(), refused.len()), (4, 6));
    for answer in refused {
        assert!(matches!(answer, Err(WireError::Overloaded { node: 1, .. })), "{answer:?}");
    }
    cluster.one(&client, put("later", "x")).expect("there is room again");
}

#[test]
fn without_a_majority_writes_are_refused_and_stale_reads_are_served() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader(1, None);
    let client = cluster.client(leader);
    revision(cluster.one(&client, put("key-01", "content 01")));
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.stop(id);
    }
    until("it knows that it cannot lead", || cluster.status(&client).leader.is_none());
    let alarms = cluster.status(&client).alarms;
    assert_eq!(alarms.len(), 2, "both links are broken: {alarms:?}");
    assert!(alarms.iter().all(|alarm| alarm.starts_with("no connection to node ")), "{alarms:?}");
    let answers = cluster.batch(&client, vec![put("key-02", "x")], Duration::from_millis(200));
    assert_eq!(answers, [Err(WireError::NoLeader { node: leader })]);
    let reads = vec![get("key-01", Consistency::Linearizable)];
    let answers = cluster.batch(&client, reads, Duration::from_millis(200));
    assert_eq!(answers, [Err(WireError::NoLeader { node: leader })]);
    let found = cluster.one(&client, get("key-01", STALE));
    assert_eq!(value(found).as_deref(), Some(&b"content 01"[..]));
    until("it becomes too old", || {
        let young = get("key-01", Consistency::Stale { max_age_ms: Some(1) });
        matches!(cluster.one(&client, young), Err(WireError::TooStale { max_age_ms: 1, .. }))
    });
}

#[test]
fn a_revision_that_never_comes_ends_with_the_callers_time() {
    let cluster = Cluster::start(1);
    let client = cluster.client(1);
    let reads = vec![get("key", Consistency::AtLeast(1_000_000))];
    let answers = cluster.batch(&client, reads, Duration::from_millis(50));
    assert_eq!(answers, [Err(WireError::Timeout { node: 1 })]);
}
