//! `kv-server dev`: the contract of its standard output, held by a script that reads it.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{ChildStdout, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use kv_server::cli::probe::{Probe, wait_until};
use rustix::process::Signal;
use tests::{
    cluster::{Cluster, WAIT_LIMIT, free_ports},
    process::{Process, run, signal_process},
    programs,
};

/// The lines of a program's standard output, each waited for with a deadline.
struct Lines(mpsc::Receiver<String>);

impl Lines {
    fn of(stdout: ChildStdout) -> Self {
        let (lines, receiver) = mpsc::sync_channel(1_000);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                if line.is_err() || lines.send(line.unwrap()).is_err() {
                    return;
                }
            }
        });
        Self(receiver)
    }

    fn next(&self) -> String {
        self.0.recv_timeout(WAIT_LIMIT).expect("another line")
    }

    /// The next line, which must begin with `start`; gives back the rest of it.
    fn expect(&self, start: &str) -> String {
        let line = self.next();
        let rest = line.strip_prefix(start);
        rest.unwrap_or_else(|| panic!("expected `{start}…`, found `{line}`")).to_owned()
    }
}

/// A node as `dev` lists it at the start.
struct Listed {
    id: String,
    pid: u32,
    restart: String,
}

fn start_dev(directory: &Path, base_port: u16) -> (Process, Lines) {
    let arguments: Vec<String> =
        ["dev", "--data-dir", directory.to_str().unwrap(), "--base-port", &base_port.to_string()]
            .map(str::to_owned)
            .into();
    let log = directory.with_extension("dev-log");
    let mut process = Process::start(&programs!().node, &arguments, &log, Stdio::piped());
    let lines = Lines::of(process.take_stdout().unwrap());
    (process, lines)
}

fn listed(lines: &Lines) -> Vec<Listed> {
    (1..=4)
        .map(|number| {
            let rest = lines.expect(&format!("node: id={number} pid="));
            let (pid, rest) = rest.split_once(' ').unwrap();
            let (_, restart) = rest.split_once(" restart: ").unwrap();
            Listed {
                id: number.to_string(),
                pid: pid.parse().unwrap(),
                restart: restart.to_owned(),
            }
        })
        .collect()
}

/// The leader named by `leader: node=3 term=5` without its first word, and the term.
fn leader_and_term(rest: &str) -> (String, u64) {
    let (node, term) = rest.split_once(" term=").unwrap();
    (node.to_owned(), term.parse().unwrap())
}

#[tokio::test]
async fn a_script_can_follow_a_cluster_through_a_death_a_restart_by_hand_and_a_second_start() {
    let turn = Cluster::new(programs!(), 1).await;
    let directory = turn.root().join("it's a directory");
    let base = free_ports(4);
    let (dev, lines) = start_dev(&directory, base);
    let nodes = listed(&lines);
    let (leader, term) = leader_and_term(&lines.expect("leader: node="));
    let endpoints: Vec<String> = (base..base + 4).map(|port| format!("127.0.0.1:{port}")).collect();
    assert_eq!(
        lines.expect("ready: "),
        format!("leader={leader} endpoints={}", endpoints.join(","))
    );

    // One dies; dev says so, with the command, and who leads then. It restarts nothing.
    let killed = nodes.iter().find(|node| node.id == leader).unwrap();
    signal_process(killed.pid, Signal::KILL);
    assert_eq!(lines.expect("down: "), format!("node={leader} restart: {}", killed.restart));
    let (next, next_term) = leader_and_term(&lines.expect("leader: node="));
    assert!(next != leader && next_term > term, "{next} {next_term}");

    // Started by hand, by the printed command in a shell, it belongs to the cluster again.
    let by_hand_log = turn.root().join("by-hand-log");
    let by_hand = Process::start(
        Path::new("/bin/sh"),
        &["-c".to_owned(), format!("exec {}", killed.restart)],
        &by_hand_log,
        Stdio::null(),
    );
    let number: usize = leader.parse().unwrap();
    let mut probe = Probe::new(endpoints[number - 1].as_str());
    wait_until(WAIT_LIMIT, async || {
        let status = probe.status().await?;
        if status.leader == next.parse().ok() { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await
    .unwrap();
    wait_until(WAIT_LIMIT, async || {
        let told = dev.log();
        if told.contains(&format!("node {leader} answers again")) { Ok(()) } else { Err(told) }
    })
    .await
    .unwrap();

    // SIGTERM ends dev and its own children, not the one started by hand.
    dev.terminate();
    let log = dev.log();
    assert_eq!(dev.wait().code(), Some(0), "{log}");
    probe.status().await.expect("the node started by hand goes on");
    by_hand.terminate();
    assert_eq!(by_hand.wait().code(), Some(0));

    // A second start finds the data: a term at least as high.
    let (dev, lines) = start_dev(&directory, base);
    listed(&lines);
    let (_, term_after) = leader_and_term(&lines.expect("leader: node="));
    assert!(term_after > next_term, "{term_after} after {next_term}");
    lines.expect("ready: ");
    // Ctrl-C, this time.
    signal_process(dev.id(), Signal::INT);
    assert_eq!(dev.wait().code(), Some(0));
}

/// Data of another list of members is another cluster's: nothing is mixed, and the reason is said.
#[tokio::test]
async fn a_second_start_with_another_number_of_nodes_is_refused_by_the_nodes_with_a_hint() {
    let turn = Cluster::new(programs!(), 1).await;
    let base = free_ports(4);
    let directory = turn.root().join("data");
    let (dev, lines) = start_dev(&directory, base);
    listed(&lines);
    lines.expect("leader: ");
    dev.terminate();
    assert_eq!(dev.wait().code(), Some(0));

    let arguments: Vec<String> = ["dev", "--nodes", "3", "--data-dir", directory.to_str().unwrap()]
        .into_iter()
        .chain(["--base-port", &base.to_string()])
        .map(str::to_owned)
        .collect();
    let log = turn.root().join("three-log");
    let mut dev = Process::start(&programs!().node, &arguments, &log, Stdio::piped());
    let lines = Lines::of(dev.take_stdout().unwrap());
    for _ in 1..=3 {
        lines.expect("node: ");
    }
    for _ in 1..=3 {
        lines.expect("down: ");
    }
    let told = dev.log();
    assert!(told.contains("another --nodes or --base-port"), "{told}");
    assert!(told.contains("belongs to cluster"), "{told}");
    dev.terminate();
    assert_eq!(dev.wait().code(), Some(0));
}

#[tokio::test]
async fn nodes_end_when_dev_is_killed() {
    let turn = Cluster::new(programs!(), 1).await;
    let base = free_ports(4);
    let (dev, lines) = start_dev(&turn.root().join("data"), base);
    let nodes = listed(&lines);
    lines.expect("leader: ");
    dev.kill();
    let mut left = Vec::new();
    for node in nodes {
        let pid = rustix::process::Pid::from_raw(i32::try_from(node.pid).unwrap()).unwrap();
        let ended =
            wait_until(WAIT_LIMIT, async || match rustix::process::test_kill_process(pid) {
                Ok(()) if !is_zombie(node.pid) => Err(format!("node {} still runs", node.id)),
                Ok(()) | Err(_) => Ok(()),
            });
        if let Err(reason) = ended.await {
            // A failed test leaves nothing behind either.
            signal_process(node.pid, Signal::KILL);
            left.push(reason);
        }
    }
    assert!(left.is_empty(), "{left:?}");
}

/// An ended process whose new parent has not looked at it yet.
fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}

#[test]
fn every_port_in_use_is_named_before_anything_starts() {
    let base = free_ports(4);
    let client = std::net::TcpListener::bind(("127.0.0.1", base + 1)).unwrap();
    let peer = std::net::TcpListener::bind(("127.0.0.1", base + 1003)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let output = run(
        &programs!().node,
        &["dev", "--data-dir", data.to_str().unwrap(), "--base-port", &base.to_string()],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let message = String::from_utf8(output.stderr).unwrap();
    for listener in [&client, &peer] {
        let address = listener.local_addr().unwrap().to_string();
        assert!(message.contains(&address), "{address} is not in: {message}");
    }
    assert!(!data.exists(), "nothing was made");
}

/// Standard output of `dev` may end before `dev` does, as with `dev | head -1`.
#[tokio::test]
async fn dev_goes_on_when_nobody_reads_its_output_any_more() {
    let turn = Cluster::new(programs!(), 1).await;
    let base = free_ports(3);
    let mut dev = Command::new(&programs!().node)
        .args(["dev", "--nodes", "3", "--base-port", &base.to_string(), "--data-dir"])
        .arg(turn.root().join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(dev.stdout.take());
    let mut probe = Probe::new(format!("127.0.0.1:{base}"));
    let limit = Duration::from_secs(30);
    let led = wait_until(limit, async || {
        let status = probe.status().await?;
        if status.leader.is_some() { Ok(()) } else { Err("no leader".to_owned()) }
    })
    .await;
    let running = dev.try_wait().unwrap().is_none();
    signal_process(dev.id(), Signal::TERM);
    let code = dev.wait().unwrap().code();
    assert_eq!(led, Ok(()));
    assert!(running, "dev ended with its output");
    assert_eq!(code, Some(0));
}
