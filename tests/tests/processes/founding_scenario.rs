//! The scenario everything started from: the named steps, on processes of the harness and as the demo.

use std::time::Duration;

use kv_server::cli::scenario::{self, Limits, Outcome, Step};
use tests::{
    cluster::{Cluster, free_ports},
    process::run,
    programs,
};

/// Far beyond what a healthy cluster needs; a test makes no statement about time.
const PATIENT: Limits = Limits { elect: Duration::from_secs(30), step: Duration::from_secs(30) };

#[tokio::test]
async fn every_step_of_the_founding_scenario_holds() {
    let mut cluster = Cluster::new(programs!(), 4).await;
    let mut played = Vec::new();
    let held = scenario::play(&mut cluster, PATIENT, |step, outcome| {
        eprintln!("{}", outcome.line(step));
        assert!(matches!(outcome, Outcome::Held(_)), "{}", outcome.line(step));
        played.push(step);
    })
    .await;
    assert!(held);
    assert_eq!(played, Step::ALL);
}

#[tokio::test]
async fn the_scenario_holds_on_three_nodes_and_on_five() {
    for count in [3, 5] {
        let mut cluster = Cluster::new(programs!(), count).await;
        let held = scenario::play(&mut cluster, PATIENT, |step, outcome| {
            assert!(outcome.held(), "{count} nodes: {}", outcome.line(step));
        });
        assert!(held.await);
    }
}

#[tokio::test]
async fn the_demo_prints_a_line_a_step_and_leaves_nothing_running() {
    // Holds the turn, so that no other cluster slows the demo's elections down.
    let turn = Cluster::new(programs!(), 1).await;
    let base = free_ports(4);
    let output = run(&programs!().node, &["dev", "--demo", "--base-port", &base.to_string()]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.len(), Step::ALL.len(), "{stdout}\n{stderr}");
    for (line, step) in lines.iter().zip(Step::ALL) {
        let words: Vec<&str> = line.split(' ').collect();
        let ["ok", name, millis, "ms"] = words[..] else {
            panic!("{line}\n{stdout}\n{stderr}");
        };
        assert_eq!(name, step.name());
        assert!(millis.parse::<u64>().is_ok(), "{line}");
    }
    assert_eq!(output.status.code(), Some(0));
    // Were a node left, its port would still be taken.
    for port in base..base + 4 {
        std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    }
    drop(turn);
}

#[test]
fn the_demo_refuses_fewer_than_three_nodes() {
    let output = run(&programs!().node, &["dev", "--demo", "--nodes", "2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("at least 3"));
}
