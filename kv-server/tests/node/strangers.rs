//! What does not belong: garbage, other protocols, other clusters, mistaken ports, ports in use.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use crate::cluster::{Cluster, PATIENCE, get, node, put, revision, until, value};
use kv_server::{Server, config::ServerConfig};
use raft_core::NodeInfo;
use raft_rpc::{
    ClusterId, ConnectOptions, Consistency, Hello, Purpose, StorageId, TcpConnector,
    connect_client, connect_raft,
};
use tempfile::TempDir;

#[test]
fn garbage_and_huge_lengths_on_both_ports_disturb_nothing() {
    let cluster = Cluster::start(1);
    let client = cluster.client(1);
    revision(cluster.one(&client, put("key-01", "content 01")));
    let (client_addr, peer_addr) = cluster.addresses[&1];
    let mut hello = vec![94, 0, 0, 0];
    hello.extend_from_slice(b"raft-kv\n");
    hello.extend_from_slice(&[1, 0, 0, 0, 4]);
    hello.extend_from_slice(&[0; 81]);
    let with = |frame: &[u8]| [&hello, frame].concat();
    let inputs = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        vec![0; 64],
        with(&u32::MAX.to_le_bytes()),
        with(&[9, 0, 0, 0, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55]),
    ];
    for address in [client_addr, peer_addr] {
        for input in &inputs {
            let mut stream = TcpStream::connect(address).expect("it accepts");
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
            stream.write_all(input).expect("written");
            let mut answer = Vec::new();
            // Closed by the node, in order or by a reset because it did not read everything.
            drop(stream.read_to_end(&mut answer));
            assert!(answer.len() <= 98, "at most a hello: {answer:02x?}");
        }
    }
    let found = cluster.one(&client, get("key-01", Consistency::Linearizable));
    assert_eq!(value(found).as_deref(), Some(&b"content 01"[..]), "the old connection stands");
    cluster.one(&cluster.client(1), put("key-02", "x")).expect("new ones are accepted");
}

#[test]
fn strangers_are_refused_by_name() {
    let cluster = Cluster::start(3);
    let leader = cluster.leader(1, None);
    let client = cluster.client(leader);
    until("its peers have shown their storage", || {
        cluster.status(&client).peers.iter().all(|peer| peer.connected)
    });
    let status = cluster.status(&client);
    let ours = ClusterId(u128::from_str_radix(&status.cluster_id, 16).expect("hexadecimal"));
    let (client_addr, peer_addr) = cluster.addresses[&leader];
    let other = (1..=3).find(|id| *id != leader).expect("two follow");
    let hello = |id, cluster, storage| {
        Hello::of_node(node(id), cluster, 0, StorageId(storage), Purpose::Raft)
    };
    let refused = |address: SocketAddr, hello: Hello| {
        let (text, options) = (address.to_string(), ConnectOptions::default());
        let dialled = connect_raft(&TcpConnector, &text, &hello, node(leader), &options);
        let error = cluster.runtime.block_on(dialled).expect_err("refused").to_string();
        error.strip_prefix(&format!("{address}: ")).expect("it names the address").to_owned()
    };
    let text = refused(peer_addr, hello(other, ClusterId(1), 7));
    assert_eq!(text, format!("belongs to cluster {}, expected {ours}", ClusterId(1)));
    assert_eq!(refused(peer_addr, hello(9, ours, 7)), "node 9 is no member of this cluster");
    let text = refused(peer_addr, hello(other, ours, 7));
    assert!(
        text.starts_with("storage id is 00000000000000000000000000000007, known is "),
        "{text}"
    );
    let text = refused(client_addr, hello(other, ours, 7));
    assert_eq!(text, "the client port takes no raft connections", "a mistaken port is named");
    cluster.one(&client, put("key", "x")).expect("nothing is disturbed");
}

#[test]
fn a_connection_beyond_the_limit_is_told_so() {
    let cluster = Cluster::start_with(1, |config| config.limits.connections = 1);
    let client = cluster.client(1);
    let address = cluster.addresses[&1].0.to_string();
    let options = ConnectOptions::default();
    let second = connect_client(&TcpConnector, &address, None, &options);
    let error = cluster.runtime.block_on(second).expect_err("refused").to_string();
    assert_eq!(error, format!("{address}: has 1 connections already, the limit"));
    cluster.one(&client, put("key", "x")).expect("the first is served");
}

#[test]
fn a_port_in_use_is_named_before_the_directory_is_touched() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let dir = TempDir::new().expect("a directory");
    let data_dir = dir.path().join("node-01");
    let info = NodeInfo {
        peer_addr: "127.0.0.1:1".to_owned(),
        client_addr: address.to_string(),
        storage_id: None,
    };
    let any = "127.0.0.1:0".parse().expect("an address");
    let members = BTreeMap::from([(node(1), info)]);
    let config = ServerConfig::new(node(1), data_dir.clone(), address, any, members);
    let error = Server::start(&config).expect_err("the port is taken").to_string();
    assert!(error.starts_with(&format!("cannot listen for clients on {address}: ")), "{error}");
    assert!(error.ends_with("; stop what uses the port, or choose another"), "{error}");
    assert!(!data_dir.exists(), "nothing was made");
}
