//! Everything down and up again, and a node that was away for a while.

use std::{fmt::Write as _, time::Instant};

use kv_client::{Client, Consistency, prefix};
use tests::{
    cluster::{CALM_ELECTION_MAX, Cluster, node},
    programs,
};

async fn put_many(client: &Client, name: &str, count: usize) {
    let puts = (0..count).map(|number| {
        let put = client.put(format!("{name}/{number:04}"), format!("{name} {number}"));
        async move { put.await.unwrap() }
    });
    futures::future::join_all(puts).await;
}

/// All keys and values as text, for comparing.
async fn content(client: &Client, consistency: Consistency) -> String {
    use futures::StreamExt as _;
    let mut items = client.range(prefix("")).consistency(consistency).stream();
    let mut text = String::new();
    while let Some(item) = items.next().await {
        let item = item.unwrap();
        writeln!(text, "{:?} {:?} {} {}", item.key, item.value, item.create_revision, item.version)
            .unwrap();
    }
    text
}

#[tokio::test]
async fn four_nodes_killed_at_once_and_started_again_keep_everything() {
    let mut cluster = Cluster::started(programs!(), 4).await;
    let client = cluster.client().await;
    put_many(&client, "kept", 500).await;
    client.delete("kept/0007").await.unwrap();
    client.put("kept/0008", "changed").await.unwrap();
    let before = content(&client, Consistency::Linearizable).await;
    let state = cluster.wait_for_equal_states().await;

    for id in cluster.ids() {
        cluster.kill(id);
    }
    cluster.start_all();
    let lead = cluster.wait_for_agreement().await;
    assert!(lead.term > state.term, "a new term after everybody's death");

    let client = cluster.client().await;
    let after = content(&client, Consistency::Linearizable).await;
    assert_eq!(after, before);
    let again = cluster.wait_for_equal_states().await;
    assert_eq!(again.revision, state.revision);
    for id in cluster.ids() {
        let alone = cluster.client_of(id).await;
        let stale = content(&alone, Consistency::Stale { max_age: None }).await;
        assert_eq!(stale, before, "node {id}");
    }
}

#[tokio::test]
async fn a_cluster_stopped_in_order_exits_with_0_and_keeps_everything() {
    let mut cluster = Cluster::started(programs!(), 4).await;
    let client = cluster.client().await;
    put_many(&client, "kept", 100).await;
    let before = content(&client, Consistency::Linearizable).await;
    for id in cluster.ids() {
        assert_eq!(cluster.stop(id), Some(0), "node {id}: {}", cluster.log(id));
    }
    cluster.start_all();
    cluster.wait_for_agreement().await;
    let client = cluster.client().await;
    assert_eq!(content(&client, Consistency::Linearizable).await, before);
    for id in cluster.ids() {
        let log = cluster.log(id);
        let started = log.lines().rfind(|line| line.contains(" replayed=")).expect("a start");
        assert!(started.contains(" formatted=false"), "node {id}, the second start: {started}");
        assert!(started.contains(" replayed=0"), "node {id} had everything in tables: {started}");
    }
}

#[tokio::test]
async fn a_follower_that_stood_still_for_a_while_catches_up() {
    let mut cluster = Cluster::started_calm(programs!(), 4).await;
    let lead = cluster.wait_for_agreement().await;
    let away = cluster.others(lead.node)[0];
    let client = cluster.client_of(lead.node).await;
    put_many(&client, "before", 100).await;
    cluster.freeze(away);
    // Long enough that it believes the leader dead when it goes on.
    let frozen = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || frozen.elapsed() < CALM_ELECTION_MAX {
        put_many(&client, &format!("while away {rounds}"), 500).await;
        rounds += 1;
    }
    let committed = cluster.status_of(lead.node).await.commit_index;
    cluster.thaw(away);
    cluster
        .wait_for_status(away, "has applied what it missed", |s| s.applied_index >= committed)
        .await;
    let state = cluster.wait_for_equal_states().await;
    assert_eq!(state.leader, Some(lead.node.get()), "nobody was disturbed by its return");
    assert_eq!(state.term, lead.term);
}

#[tokio::test]
async fn a_node_that_was_down_for_a_while_catches_up_from_the_log() {
    let mut cluster = Cluster::started(programs!(), 4).await;
    let lead = cluster.wait_for_agreement().await;
    let away = cluster.others(lead.node)[0];
    cluster.kill(away);
    let client = cluster.client_of(lead.node).await;
    put_many(&client, "while away", 3_000).await;
    cluster.start(away);
    let state = cluster.wait_for_equal_states().await;
    assert_eq!(state.revision, 3_001);
}

#[tokio::test]
async fn two_of_four_accept_nothing_and_three_do() {
    let mut cluster = Cluster::started(programs!(), 4).await;
    let client = cluster.client().await;
    client.put("with", "four").await.unwrap();
    cluster.kill(node(3));
    client.put("with", "three").await.unwrap();
    cluster.kill(node(4));
    let refused = client.put("with", "two").timeout(std::time::Duration::from_secs(2)).await;
    refused.expect_err("two of four are no quorum");
    cluster.start(node(4));
    cluster.wait_for_agreement().await;
    client.put("with", "three again").await.unwrap();
}
