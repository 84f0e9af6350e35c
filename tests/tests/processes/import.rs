//! The main job on real input: the leader is killed in the middle of an import, and nothing is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
};

use kv_server::cli::probe::wait_until;
use raft_rpc::Role;
use serde_json::Value;
use tests::{
    cluster::{Cluster, WAIT_LIMIT},
    process::test_data,
    programs,
};

/// The revision at which the leader is killed, if no sooner look sees it: a third of the file.
const KILL_ABOVE: u64 = 10_000;

/// (key, value) of every line of the input; the last line of a key wins, as it does in the store.
fn input() -> BTreeSet<(String, String)> {
    let file = std::fs::File::open(test_data("cities.jsonl.zst")).unwrap();
    let text = zstd::decode_all(file).unwrap();
    pairs(&text).into_iter().collect()
}

fn pairs(lines: &[u8]) -> BTreeMap<String, String> {
    let text = std::str::from_utf8(lines).unwrap();
    let mut pairs = BTreeMap::new();
    for line in text.lines() {
        let item: Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| item[name].as_str().unwrap().to_owned();
        pairs.insert(field("key"), field("value"));
    }
    pairs
}

#[tokio::test]
async fn an_import_survives_the_death_of_the_leader_and_every_node_has_all_of_it() {
    let mut cluster = Cluster::started(programs!(), 4).await;
    let old = cluster.wait_for_agreement().await;
    let ids = cluster.ids();
    let expected = input();

    let import = Command::new(&cluster.programs().kvctl)
        .args(["--endpoints", &cluster.endpoints(&ids), "-o", "json", "import"])
        .arg(test_data("cities.jsonl.zst"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let at_kill = wait_until(WAIT_LIMIT, async || {
        let revision = cluster.status(old.node).await?.revision;
        if revision > KILL_ABOVE { Ok(revision) } else { Err(format!("revision {revision}")) }
    })
    .await
    .unwrap();
    cluster.kill(old.node);
    let total = u64::try_from(expected.len()).unwrap();
    assert!(at_kill < total, "the import was over before the leader was killed");

    // The test waits for the import on a thread of its own, since it has nothing else to do.
    let output =
        tokio::task::spawn_blocking(move || import.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let summary: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!(summary["written"], Value::from(total));

    cluster.start(old.node);
    cluster
        .wait_for_status(old.node, "follows again", |status| status.role == Role::Follower)
        .await;
    let state = cluster.wait_for_equal_states().await;
    assert_eq!(state.revision, total + 1, "every row took effect exactly once");
    for id in ids {
        let export = cluster.kvctl(&[id], &["export", "--stale"]);
        assert_eq!(export.status.code(), Some(0), "{}", String::from_utf8_lossy(&export.stderr));
        let found: BTreeSet<(String, String)> = pairs(&export.stdout).into_iter().collect();
        assert!(
            found == expected,
            "node {id}: {} rows, expected {}; missing {:?}",
            found.len(),
            expected.len(),
            expected.difference(&found).take(3).collect::<Vec<_>>()
        );
    }
}
