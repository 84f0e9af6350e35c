//! The old leader comes back, in two ways: from the dead, and from a standstill.

use std::collections::BTreeSet;

use kv_client::{Consistency, Effect};
use raft_rpc::{Condition, Request, Role, TimedRequest, WireError, WriteOperation, WriteRequest};
use tests::{
    cluster::{Cluster, Lead, WAIT_LIMIT},
    programs,
};

#[tokio::test]
async fn a_leader_killed_and_started_again_follows_and_catches_up() {
    let mut cluster = Cluster::started(programs!(), 4).await;
    let old = cluster.wait_for_agreement().await;
    let client = cluster.client().await;
    for number in 0..50 {
        client.put(format!("before/{number:02}"), "x").await.unwrap();
    }

    cluster.kill(old.node);
    let others = cluster.others(old.node);
    let new = cluster.wait_for_leader_above(old.term, &others).await;
    for number in 0..50 {
        client.put(format!("after/{number:02}"), "y").await.unwrap();
    }
    cluster.start(old.node);

    let status = cluster
        .wait_for_status(old.node, "follows the new leader", |status| {
            status.role == Role::Follower && status.leader == Some(new.node.get())
        })
        .await;
    assert!(status.term >= new.term, "{status:?}");
    let state = cluster.wait_for_equal_states().await;
    assert_eq!(state.revision, 101, "100 writes after revision 1");
    let alone = cluster.client_of(old.node).await;
    let stale = Consistency::Stale { max_age: None };
    for key in ["before/49", "after/49"] {
        assert!(alone.get(key).consistency(stale).await.unwrap().is_some(), "{key}");
    }
}

/// SIGSTOP is the worst a scheduler, a hypervisor or a debugger can do: on SIGCONT the old leader is
/// still sure that it leads, and its clock says that no time has passed for its threads.
#[tokio::test]
async fn a_frozen_leader_steps_down_when_it_goes_on_and_tells_nobody_anything_old() {
    let mut cluster = Cluster::started_calm(programs!(), 4).await;
    let old = cluster.wait_for_agreement().await;
    let through_old = cluster.client_of(old.node).await;
    let reader = cluster.client_of(old.node).await;
    through_old.put("led-by", "old").await.unwrap();
    reader.get("led-by").await.unwrap();
    let before = cluster.status_of(old.node).await;
    let logged = role_lines(&cluster, old).len();

    cluster.freeze(old.node);
    let waiting = tokio::spawn(async move {
        through_old.put("waiting", "sent to a frozen node").timeout(WAIT_LIMIT).await
    });
    let others = cluster.others(old.node);
    let new = cluster.wait_for_leader_above(old.term, &others).await;
    let through_new = cluster.client_of(new.node).await;
    through_new.put("led-by", "new").await.unwrap();
    assert!(!waiting.is_finished(), "the put waits on the frozen node");

    cluster.thaw(old.node);
    let read = reader.get("led-by").await.unwrap().unwrap();
    assert_eq!(read.value, "new", "a linearizable read right after SIGCONT");

    let after = cluster
        .wait_for_status(old.node, "follows at the higher term", |status| {
            status.role == Role::Follower && status.term >= new.term
        })
        .await;
    assert!(after.role_changes > before.role_changes, "{after:?}");
    let lines = role_lines(&cluster, old).split_off(logged);
    assert!(!lines.is_empty(), "the log says that it leads no more");
    let distinct: BTreeSet<&String> = lines.iter().collect();
    assert_eq!(distinct.len(), lines.len(), "each change is logged once: {lines:#?}");

    let ended = waiting.await.unwrap();
    let found = through_new.get("waiting").await.unwrap();
    match ended {
        Ok(written) => {
            assert_eq!(found.map(|found| found.mod_revision), Some(written.revision));
        }
        Err(error) if error.effect() == Effect::None => assert_eq!(found, None, "{error}"),
        Err(error) => assert_eq!(error.effect(), Effect::Unknown, "{error}"),
    }
    cluster.wait_for_equal_states().await;
}

/// The follower knows of the new leader long before the frozen one could answer: its caller is told at
/// once that the outcome is unknown, and can repeat the write under the same tag.
#[tokio::test]
async fn a_write_handed_to_a_leader_that_froze_is_answered_once_another_leads() {
    let mut cluster = Cluster::started_calm(programs!(), 4).await;
    let old = cluster.wait_for_agreement().await;
    let through = cluster.others(old.node)[0];
    // The connection from there to the leader stands, so that the write is sent and then waits.
    cluster.client_of(through).await.put("handed", "on").await.unwrap();
    let (address, options) = (cluster.endpoint(through), raft_rpc::ConnectOptions::default());
    let connected =
        raft_rpc::connect_client(&raft_rpc::TcpConnector, &address, None, &options).await.unwrap();
    let raft_rpc::Connection { client, dispatch, .. } = connected;
    let dispatch = tokio::spawn(dispatch);
    // Longer than the test may take: only the change of leader can end the wait.
    let patience = WAIT_LIMIT * 10;
    let put = TimedRequest {
        timeout_ms: u32::try_from(patience.as_millis()).unwrap(),
        request: Request::Write(WriteRequest {
            tag: None,
            operation: WriteOperation::Put {
                key: "waiting".into(),
                value: "sent to a frozen node".into(),
                condition: Condition::Always,
                return_previous: false,
            },
        }),
    };

    cluster.freeze(old.node);
    let answer = client.execute(raft_rpc::context_for(patience), vec![put]);
    let answer =
        tokio::time::timeout(WAIT_LIMIT, answer).await.expect("an answer while it is frozen");
    cluster.thaw(old.node);
    dispatch.abort();

    match answer.unwrap().remove(0) {
        Err(WireError::OutcomeUnknown { node, .. }) => assert_eq!(node, through.get()),
        other => panic!("{other:?}"),
    }
    cluster.wait_for_equal_states().await;
}

/// The lines in which the old leader says that it follows, without their times.
fn role_lines(cluster: &Cluster, old: Lead) -> Vec<String> {
    let log = cluster.log(old.node);
    let about = |line: &&str| line.contains(" term=") && line.contains("follow");
    let text = |line: &str| line.split_once(' ').map_or(line, |(_, text)| text).to_owned();
    log.lines().filter(about).map(text).collect()
}
