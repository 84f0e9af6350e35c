//! Bad input of every kind: each gives the error that says what is wrong and what to do, and the node
//! goes on, or refuses to start and names the file.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use kv_server::cli::probe::wait_until;
use raft_core::NodeId;
use raft_rpc::Role;
use tests::{
    cluster::{Cluster, WAIT_LIMIT, free_ports, node},
    process::Process,
    programs,
};

/// Starts a node that is expected to refuse, and gives back what it says.
fn refusal(cluster: &mut Cluster, id: NodeId) -> String {
    let before = cluster.log(id).len();
    cluster.start(id);
    let code = cluster.wait_for_exit(id);
    let log = cluster.log(id)[before..].to_owned();
    assert_eq!(code, Some(1), "{log}");
    log
}

/// Runs a node with arguments of the test's own until it ends, and gives back its exit code and its words.
fn run_node(cluster: &Cluster, arguments: &[String]) -> (Option<i32>, String) {
    let log = cluster.root().join("another-log");
    let mut process = Process::start(&programs!().node, arguments, &log, Stdio::null());
    let status = tests::process::wait_for("the node to refuse", || process.ended());
    let words = process.log();
    fs::remove_file(&log).unwrap();
    (status.code(), words)
}

/// `arguments` with the value of a flag changed.
fn with(mut arguments: Vec<String>, flag: &str, value: &str) -> Vec<String> {
    let at = arguments.iter().position(|argument| argument == flag).unwrap();
    arguments[at + 1] = value.to_owned();
    arguments
}

#[track_caller]
fn assert_says(words: &str, parts: &[&str]) {
    for part in parts {
        assert!(words.contains(part), "`{part}` is not in:\n{words}");
    }
}

#[tokio::test]
async fn keys_and_values_that_are_too_large_are_refused_by_name_and_nothing_else_suffers() {
    let cluster = Cluster::started(programs!(), 3).await;
    let ids = cluster.ids();
    let file = cluster.root().join("large");
    fs::write(&file, vec![b'v'; (1 << 20) + 1]).unwrap();
    let output =
        cluster.kvctl(&ids, &["-o", "json", "put", "large", "--file", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(4));
    let words = String::from_utf8(output.stderr).unwrap();
    assert_says(&words, &["\"kind\":\"too_large\"", "limits.value", "\"effect\":\"none\""]);

    let output = cluster.kvctl(&ids, &["-o", "json", "put", &"k".repeat(4097), "v"]);
    assert_eq!(output.status.code(), Some(4));
    let words = String::from_utf8(output.stderr).unwrap();
    assert_says(&words, &["\"kind\":\"too_large\"", "key is 4097 bytes", "\"effect\":\"none\""]);

    fs::write(&file, vec![b'v'; 1 << 20]).unwrap();
    let output = cluster.kvctl(&ids, &["put", "large", "--file", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "a value of exactly the limit is stored");
    let output = cluster.kvctl(&ids, &["put", &"k".repeat(4096), "v"]);
    assert_eq!(output.status.code(), Some(0), "a key of exactly the limit is stored");
}

#[tokio::test]
async fn a_malformed_line_stops_an_import_with_its_place_or_is_skipped_and_counted() {
    let cluster = Cluster::started(programs!(), 3).await;
    let ids = cluster.ids();
    let file = cluster.root().join("rows.jsonl");
    fs::write(
        &file,
        "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"2\"}\n{\"key\":\"c\",\"val\n{\"key\":\"d\",\"value\":\"4\"}\n",
    )
    .unwrap();
    let path = file.to_str().unwrap();
    let output = cluster.kvctl(&ids, &["-o", "json", "import", path]);
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8(output.stderr).unwrap();
    assert_says(&words, &["rows.jsonl", "3"]);
    let output = cluster.kvctl(&ids, &["-o", "json", "import", "--skip-bad", path]);
    assert_eq!(output.status.code(), Some(0));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let summary: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&summary["written"], &summary["skipped"]), (&3.into(), &1.into()));
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let mut cluster = Cluster::new(programs!(), 3).await;
    for address in [cluster.endpoint(node(1)), cluster.peer_address(node(1))] {
        let held = TcpListener::bind(&address).unwrap();
        let words = refusal(&mut cluster, node(1));
        assert_says(&words, &[&address, "in use"]);
        drop(held);
    }
}

#[tokio::test]
async fn a_data_directory_of_another_node_or_cluster_is_refused() {
    let mut cluster = Cluster::started(programs!(), 3).await;
    cluster.stop(node(1));
    let directory = cluster.directory(node(1)).to_str().unwrap().to_owned();

    let as_another_node = with(cluster.arguments(node(1)), "--id", "2");
    let (code, words) = run_node(&cluster, &as_another_node);
    assert_eq!(code, Some(1), "{words}");
    assert_says(&words, &["node-01", "belongs to cluster", "node 1", "2"]);

    let list = cluster.member_list().replace("127.0.0.1", "localhost");
    let as_another_cluster = with(cluster.arguments(node(1)), "--cluster", &list);
    let (code, words) = run_node(&cluster, &as_another_cluster);
    assert_eq!(code, Some(1), "{words}");
    assert_says(&words, &[&directory, "belongs to cluster"]);

    cluster.start(node(1));
    cluster.wait_for_agreement().await;
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused_and_its_user_undisturbed() {
    let mut cluster = Cluster::started(programs!(), 3).await;
    let arguments = with(cluster.arguments(node(1)), "--listen-client", "127.0.0.1:0");
    let arguments = with(arguments, "--listen-peer", "127.0.0.1:0");
    let (code, words) = run_node(&cluster, &arguments);
    assert_eq!(code, Some(1), "{words}");
    assert_says(&words, &["node-01", "in use by another process"]);
    cluster.status_of(node(1)).await;
}

/// Sends bytes that are no handshake and waits until the node hangs up.
fn send_and_wait_for_the_end(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The node may hang up before it has read everything.
    drop(stream.write_all(bytes));
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    assert!(answer.len() <= 4096 + 4, "{} bytes came back", answer.len());
}

#[tokio::test]
async fn garbage_and_huge_lengths_on_both_ports_close_that_connection_only() {
    let mut cluster = Cluster::started_calm(programs!(), 3).await;
    let before = cluster.status_of(node(1)).await;
    let mut garbage = vec![0_u8; 64 << 10];
    let mut state = 0x9e37_79b9_u32;
    for byte in &mut garbage {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        *byte = state.to_le_bytes()[0];
    }
    let huge = [u32::MAX.to_be_bytes(), u32::MAX.to_le_bytes()].concat();
    for address in [cluster.endpoint(node(1)), cluster.peer_address(node(1))] {
        for bytes in [&garbage[..], &huge[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0"] {
            let (address, bytes) = (address.clone(), bytes.to_vec());
            tokio::task::spawn_blocking(move || send_and_wait_for_the_end(&address, &bytes))
                .await
                .unwrap();
        }
    }
    let client = cluster.client_of(node(1)).await;
    client.put("still", "here").await.unwrap();
    let after = cluster.status_of(node(1)).await;
    assert_eq!((after.term, after.role), (before.term, before.role), "nothing was disturbed");
    assert_says(&cluster.log(node(1)), &["handshake"]);
}

/// A stranger configured into this cluster's addresses, but of another cluster, is refused by every
/// node, which says so; it gets nobody's vote and disturbs nobody.
#[tokio::test]
async fn a_node_of_another_cluster_is_refused_with_a_reason() {
    let mut cluster = Cluster::started_calm(programs!(), 4).await;
    let lead = cluster.wait_for_agreement().await;
    let base = free_ports(1);
    let own = format!("127.0.0.1:{}/127.0.0.1:{base}", base + 1000);
    // The same members, but node 4 lives elsewhere: another list, so another cluster id.
    let theirs = format!("{}/{}", cluster.peer_address(node(4)), cluster.endpoint(node(4)));
    let list = cluster.member_list().replace(&theirs, &own);
    let directory = cluster.root().join("stranger");
    let mut arguments = with(cluster.arguments(node(4)), "--cluster", &list);
    arguments = with(arguments, "--data-dir", directory.to_str().unwrap());
    arguments = with(arguments, "--listen-client", &format!("127.0.0.1:{base}"));
    arguments = with(arguments, "--listen-peer", &format!("127.0.0.1:{}", base + 1000));
    let log = cluster.root().join("stranger-log");
    let stranger = Process::start(&programs!().node, &arguments, &log, Stdio::null());

    for id in [node(1), node(2), node(3)] {
        let told = wait_until(WAIT_LIMIT, async || {
            let log = cluster.log(id);
            if log.contains("belongs to cluster") { Ok(()) } else { Err(log) }
        });
        told.await.unwrap();
    }
    assert_says(&stranger.log(), &["belongs to cluster"]);
    let now = cluster.wait_for_agreement().await;
    assert_eq!(now, lead, "nobody was disturbed");
}

/// `kv-server run 2>&1 | head`: whoever reads the log goes away, and the node stays.
#[tokio::test]
async fn a_node_does_not_die_of_its_log() {
    let mut cluster = Cluster::new(programs!(), 1).await;
    let mut process = Command::new(&cluster.programs().node)
        .args(cluster.arguments(node(1)))
        .args(["--log", "debug"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(process.stderr.take());
    let status = wait_until(WAIT_LIMIT, async || {
        let status = cluster.status(node(1)).await?;
        if status.role == Role::Leader { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    drop(process.stdin.take());
    let code = process.wait().unwrap().code();
    assert_eq!(status, Ok(()));
    assert_eq!(code, Some(0), "it stops in order when its standard input ends");
}

#[tokio::test]
async fn a_node_is_configured_by_a_file_alone_and_check_config_agrees_with_it() {
    let mut cluster = Cluster::new(programs!(), 1).await;
    let file = cluster.root().join("kv.toml");
    let text = format!(
        "[node]\nid = 1\ndata-dir = {:?}\nlisten-client = {:?}\nlisten-peer = {:?}\ncluster = {:?}\n",
        cluster.directory(node(1)),
        cluster.endpoint(node(1)),
        cluster.peer_address(node(1)),
        cluster.member_list()
    );
    fs::write(&file, text).unwrap();
    let path = file.to_str().unwrap();
    let checked = tests::process::run(&cluster.programs().node, &["check-config", path]);
    assert_eq!(checked.status.code(), Some(0));
    assert_eq!(String::from_utf8(checked.stdout).unwrap(), format!("{path}: ok\n"));

    let arguments = ["run", "--exit-on-stdin-close", "--config", path].map(str::to_owned);
    let log = cluster.root().join("file-log");
    let process = Process::start(&cluster.programs().node, &arguments, &log, Stdio::null());
    let status = cluster.wait_for_status(node(1), "leads", |s| s.role == Role::Leader).await;
    assert_eq!(status.id, 1);
    process.terminate();
    assert_eq!(process.wait().code(), Some(0));

    fs::write(&file, "[raft]\nelectoin = \"1s\"\nheartbeat = 50\n").unwrap();
    let checked = tests::process::run(&cluster.programs().node, &["check-config", path]);
    assert_eq!(checked.status.code(), Some(2));
    let words = String::from_utf8(checked.stderr).unwrap();
    assert_says(&words, &["kv.toml:2: unknown key \"electoin\"", "\"election\"", "kv.toml:3: "]);
}

#[tokio::test]
async fn a_log_in_json_holds_one_object_a_line_with_its_numbers_as_fields() {
    let mut cluster = Cluster::new(programs!(), 1).await;
    cluster.set_extra_arguments(&["--log-format", "json"]);
    cluster.start_all();
    cluster.wait_for_agreement().await;
    assert_eq!(cluster.stop(node(1)), Some(0));
    let log = cluster.log(node(1));
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let about_the_role: Vec<_> = lines.iter().filter(|line| line["term"] == 1).collect();
    assert!(!about_the_role.is_empty(), "{log}");
    for line in about_the_role {
        assert_eq!((&line["level"], &line["node"]), (&"INFO".into(), &1.into()), "{line}");
    }
}

/// Every file below `directory` whose name ends with `ending`.
fn files_ending_with(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_ending_with(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn a_truncated_table_is_named_and_the_others_go_on() {
    let mut cluster = Cluster::new(programs!(), 3).await;
    // So small that a few writes make a table.
    cluster.set_extra_arguments(&["--storage-memtable", "64KiB"]);
    cluster.start_all();
    let client = cluster.client().await;
    for number in 0..400 {
        client.put(format!("key/{number}"), "value".repeat(100)).await.unwrap();
    }
    let tables = wait_until(WAIT_LIMIT, async || {
        let tables = files_ending_with(&cluster.directory(node(3)).join("store"), ".sst");
        if tables.is_empty() { Err("there is no table".to_owned()) } else { Ok(tables) }
    })
    .await
    .unwrap();
    cluster.kill(node(3));
    let table = &tables[0];
    let size = fs::metadata(table).unwrap().len();
    File::options().write(true).open(table).unwrap().set_len(size / 2).unwrap();

    let words = refusal(&mut cluster, node(3));
    assert_says(&words, &[table.file_name().unwrap().to_str().unwrap()]);
    client.put("others", "go on").await.unwrap();
}

#[tokio::test]
async fn a_data_directory_of_a_newer_version_is_refused_by_number() {
    let mut cluster = Cluster::started(programs!(), 3).await;
    cluster.stop(node(3));
    let file = cluster.directory(node(3)).join("IDENTITY");
    let text = fs::read_to_string(&file).unwrap();
    let newer = text.replacen("version 1", "version 2", 1);
    assert_ne!(newer, text, "the file begins with its version: {text}");
    fs::write(&file, newer).unwrap();
    let words = refusal(&mut cluster, node(3));
    assert_says(&words, &["IDENTITY", "version 2", "newer"]);
}

#[tokio::test]
async fn settings_that_make_no_sense_exit_with_2_and_are_all_named() {
    let cluster = Cluster::new(programs!(), 3).await;
    let mut arguments = with(cluster.arguments(node(1)), "--id", "7");
    arguments.extend(["--raft-heartbeat", "50"].map(str::to_owned));
    let (code, words) = run_node(&cluster, &arguments);
    assert_eq!(code, Some(2), "{words}");
    assert_says(&words, &["node.id is 7", "--raft-heartbeat", "no unit"]);
    assert!(!cluster.directory(node(1)).exists(), "nothing was made");
}
