//! How a node ends: by a failed sync, in the middle of work; and clients within the process.

use std::sync::Arc;

use kv_server::{ServerFailure, replica::ReplicaFailure};
use lsm_store::vfs::{Fault, FaultKind, FaultWhen, MemVfs, OpSet};
use raft_rpc::{Consistency, WireError, context_for};

use crate::cluster::{Cluster, PATIENCE, get, put, revision, until, value};

#[test]
fn a_failed_sync_stops_the_node_and_nothing_is_acknowledged_after_it() {
    let disk = MemVfs::new(1);
    let mut cluster = Cluster::start_on(1, Arc::new(disk.clone()), |_config| {});
    let client = cluster.client(1);
    revision(cluster.one(&client, put("key-01", "content 01")));
    disk.add_fault(Fault {
        ops: OpSet::SYNCS,
        when: FaultWhen::Always,
        kind: FaultKind::Io,
        path_contains: String::new(),
    });
    let answer = cluster.one(&client, put("key-02", "content 02"));
    assert!(
        matches!(answer, Err(WireError::OutcomeUnknown { .. } | WireError::Storage { .. })),
        "{answer:?}"
    );
    let node = cluster.take(1);
    let (sender, ended) = std::sync::mpsc::sync_channel(1);
    let waiting = std::thread::spawn(move || sender.send(node.wait()));
    let failure = ended.recv_timeout(PATIENCE).expect("it ends by itself").expect_err("it failed");
    waiting.join().expect("no panic").expect("it was received");
    assert!(matches!(failure, ServerFailure::Replica(ReplicaFailure::Log { .. })), "{failure:?}");
    assert!(failure.to_string().contains("sync"), "it says what failed: {failure}");
}

#[test]
fn what_was_acknowledged_before_a_stop_in_the_middle_of_work_is_there_after_it() {
    let mut cluster = Cluster::start(1);
    let client = cluster.client(1);
    cluster.one(&client, put("first", "x")).expect("it leads");
    let calls: Vec<_> = (0..64_u32)
        .map(|n| {
            let (client, timeout_ms) = (client.clone(), 10_000);
            cluster.runtime.spawn(async move {
                let batch = (0..16)
                    .map(|m| raft_rpc::TimedRequest {
                        timeout_ms,
                        request: put(format!("{n}/{m}"), "x"),
                    })
                    .collect();
                (n, client.execute(context_for(PATIENCE), batch).await)
            })
        })
        .collect();
    until("some are done", || cluster.status(&client).revision > 32);
    let node = cluster.take(1);
    node.stop_handle().stop();
    node.wait().expect("it stops in order");
    cluster.restart(1);
    let client = cluster.client(1);
    let mut acknowledged = 0;
    for call in calls {
        // A call that broke off has an unknown outcome.
        let (n, Ok(answers)) = cluster.runtime.block_on(call).expect("no panic") else { continue };
        for (m, answer) in answers.into_iter().enumerate() {
            if answer.is_ok() {
                acknowledged += 1;
                let key: &'static str = Box::leak(format!("{n}/{m}").into_boxed_str());
                let found = cluster.one(&client, get(key, Consistency::Linearizable));
                assert!(value(found).is_some(), "{key} was acknowledged and is lost");
            }
        }
    }
    assert!(acknowledged > 0, "the test shows something");
}

#[test]
fn clients_within_the_process_need_no_network() {
    let mut cluster = Cluster::start(1);
    let node = cluster.take(1);
    let client = cluster.client_through(&*node.in_process(), 1);
    revision(cluster.one(&client, put("key-01", "content 01")));
    let found = cluster.one(&client, get("key-01", Consistency::Linearizable));
    assert_eq!(value(found).as_deref(), Some(&b"content 01"[..]));
    node.stop().expect("it stops in order");
}
