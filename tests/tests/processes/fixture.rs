//! A data directory written once and kept: every later version has to open it.
//!
//! `data/format-1` holds the files of one node, each compressed by itself, and `expected.jsonl` what the
//! node held then, with its revisions. The node had a small memtable, so there are tables, was stopped in
//! order, written to again and killed, so there is a log above them. Its cluster is of one node whose
//! addresses nobody has to reach.
//!
//! A new format gets a new directory beside the old one:
//! `cargo test -p tests --test processes -- --ignored writes_a_data_directory`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use kv_client::{Client, prefix};
use kv_server::cli::probe::{Probe, wait_until};
use raft_rpc::Role;
use tempfile::TempDir;
use tests::{
    cluster::{WAIT_LIMIT, free_ports},
    process::{Process, test_data},
    programs,
};

const DIRECTORY: &str = "format-1";
const EXPECTED: &str = "expected.jsonl";
const CLUSTER: &str = "1=node-1.fixture:4331/node-1.fixture:3331";

/// The node of the fixture, running on a directory.
struct OneNode {
    process: Process,
    endpoint: String,
}

impl OneNode {
    async fn start(directory: &Path, scratch: &Path) -> Self {
        let port = free_ports(1);
        let endpoint = format!("127.0.0.1:{port}");
        let arguments = [
            "run",
            "--exit-on-stdin-close",
            "--id",
            "1",
            "--data-dir",
            directory.to_str().unwrap(),
            "--listen-client",
            &endpoint,
            "--listen-peer",
            &format!("127.0.0.1:{}", port + 1000),
            "--cluster",
            CLUSTER,
            "--storage-log-segment",
            "1MiB",
            // So small that a few writes make a table.
            "--storage-memtable",
            "64KiB",
        ]
        .map(str::to_owned);
        let log = scratch.join("log");
        let process = Process::start(&programs!().node, &arguments, &log, Stdio::null());
        let mut probe = Probe::new(endpoint.as_str());
        let leads = wait_until(WAIT_LIMIT, async || {
            let status = probe.status().await?;
            if status.role == Role::Leader { Ok(()) } else { Err(format!("{status:?}")) }
        });
        if let Err(last) = leads.await {
            panic!("{last}\n{}", process.log());
        }
        Self { process, endpoint }
    }

    async fn client(&self) -> Client {
        Client::connect([self.endpoint.as_str()]).await.unwrap()
    }
}

/// Everything in the store, with its history in numbers, a line a key.
async fn content(client: &Client) -> String {
    let page = client.range(prefix("")).await.unwrap();
    assert!(page.next.is_none(), "one page holds it");
    let lines = page.items.iter().map(|item| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let line = serde_json::json!({
            "key": text(&item.key),
            "value": text(&item.value),
            "create_revision": item.create_revision,
            "mod_revision": item.mod_revision,
            "version": item.version,
        });
        format!("{line}\n")
    });
    lines.chain([format!("{}\n", serde_json::json!({"revision": page.revision}))]).collect()
}

/// Every file below `directory`, relative to it, in order.
fn files(directory: &Path) -> Vec<PathBuf> {
    fn collect(directory: &Path, root: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, root, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    collect(directory, directory, &mut found);
    found.sort();
    found
}

fn unpack(to: &Path) {
    let from = test_data(DIRECTORY);
    for file in files(&from) {
        let name = file.to_str().unwrap();
        let Some(name) = name.strip_suffix(".zst") else { continue };
        let target = to.join(name);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let packed = fs::File::open(from.join(&file)).unwrap();
        fs::write(target, zstd::decode_all(packed).unwrap()).unwrap();
    }
}

#[tokio::test]
async fn a_data_directory_of_format_1_opens_with_everything_in_it() {
    let scratch = TempDir::new().unwrap();
    let directory = scratch.path().join("node-01");
    unpack(&directory);
    let node = OneNode::start(&directory, scratch.path()).await;
    let client = node.client().await;
    let expected = fs::read_to_string(test_data(DIRECTORY).join(EXPECTED)).unwrap();
    assert_eq!(content(&client).await, expected);
    // And it goes on from there.
    let written = client.put("written", "by this version").await.unwrap();
    assert_eq!(
        client.get("written").await.unwrap().map(|item| item.mod_revision),
        Some(written.revision)
    );
}

#[tokio::test]
#[ignore = "writes into the source tree; run by hand when a format changes"]
async fn writes_a_data_directory() {
    let scratch = TempDir::new().unwrap();
    let directory = scratch.path().join("node-01");
    let node = OneNode::start(&directory, scratch.path()).await;
    let client = node.client().await;
    for round in 0..15 {
        for number in 0..40 {
            let value = format!("value {number} of round {round} ").repeat(20);
            client.put(format!("city/{number:02}"), value).await.unwrap();
        }
    }
    wait_until(WAIT_LIMIT, async || {
        let is_table = |file: &PathBuf| file.extension().is_some_and(|name| name == "sst");
        if files(&directory).iter().any(is_table) { Ok(()) } else { Err("no table".to_owned()) }
    })
    .await
    .unwrap();
    for number in (0..40).step_by(5) {
        client.delete(format!("city/{number:02}")).await.unwrap();
    }
    node.process.terminate();
    assert_eq!(node.process.wait().code(), Some(0));

    let node = OneNode::start(&directory, scratch.path()).await;
    let client = node.client().await;
    client.put("city/01", "changed in the log").await.unwrap();
    client.put("only/in/the/log", "above the tables").await.unwrap();
    client.put("city/00", "created again").if_absent().await.unwrap().applied().unwrap();
    client.delete("city/02").await.unwrap();
    let expected = content(&client).await;
    node.process.kill();

    let target = test_data(DIRECTORY);
    if target.exists() {
        fs::remove_dir_all(&target).unwrap();
    }
    for file in files(&directory) {
        let text = fs::read(directory.join(&file)).unwrap();
        let packed = zstd::encode_all(&text[..], 19).unwrap();
        let path = target.join(format!("{}.zst", file.display()));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, packed).unwrap();
    }
    fs::write(target.join(EXPECTED), expected).unwrap();
}
