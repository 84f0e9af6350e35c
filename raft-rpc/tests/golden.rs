//! The bytes of every message, frozen. A difference means that running versions would not understand
//! each other: raise `PROTOCOL_VERSION`, say so in `PROTOCOL.md`, and write the file again with
//! `BLESS=1 cargo test -p raft-rpc --test golden`.

mod messages;

use std::{fmt::Write as _, path::Path};

use messages::{rewrite, samples};
use raft_rpc::{
    ClusterId, HandshakeError, Hello, Io, Port, Purpose, Refusal, StorageId, handshake,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[test]
fn every_message_has_the_bytes_of_protocol_version_3() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v3.txt");
    let mut found = String::new();
    for (name, bytes) in hellos() {
        writeln!(found, "{name}\n  {}", hex(&bytes)).expect("a string grows");
    }
    for sample in samples() {
        writeln!(found, "{}\n  {}", sample.name, hex(&sample.bytes)).expect("a string grows");
    }
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &found).expect("the golden file can be written");
    }
    let expected = std::fs::read_to_string(&path).expect("the golden file is there");
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected, "the wire format changed");
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "messages were added or removed");
}

#[test]
fn every_message_survives_a_round_trip() {
    for sample in samples() {
        let mut again = rewrite(sample.side, &sample.bytes)
            .unwrap_or_else(|error| panic!("{}: {error}", sample.name))
            .unwrap_or_else(|| panic!("{}: incomplete", sample.name));
        if again.get(4) == Some(&1) {
            again[13..17].copy_from_slice(&5_000_u32.to_le_bytes());
        }
        assert_eq!(hex(&again), hex(&sample.bytes), "{}", sample.name);
    }
}

#[test]
fn every_refusal_reaches_the_dialler_as_it_was_given() {
    for refusal in refusals() {
        let refused = Hello { refusal: Some(refusal), ..node_hello() };
        let runtime = runtime();
        let (mut a, b) = tokio::io::duplex(4096);
        let mut b: Io = Box::new(b);
        let found = runtime.block_on(async {
            a.write_all(&written(&refused).await).await.expect("there is room");
            handshake::dial(&mut b, &Hello::of_client(None)).await
        });
        match found {
            Err(HandshakeError::Refused(found)) => assert_eq!(found, refusal),
            other => panic!("{refusal:?} became {other:?}"),
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The bytes a `Hello` has on the wire.
async fn written(hello: &Hello) -> Vec<u8> {
    let (a, mut b) = tokio::io::duplex(4096);
    let mut a: Io = Box::new(a);
    handshake::answer(&mut a, hello).await.expect("there is room");
    drop(a);
    let mut bytes = Vec::new();
    b.read_to_end(&mut bytes).await.expect("closed");
    bytes
}

fn node_hello() -> Hello {
    let node = raft_core::NodeId::new(2).expect("not zero");
    Hello::of_node(node, ClusterId(0xc1), 3, StorageId(0x51), Purpose::Raft)
}

fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::Version { found: 2, supported: 1 },
        Refusal::Purpose { port: Port::Peer, purpose: 4 },
        Refusal::Purpose { port: Port::Client, purpose: 1 },
        Refusal::Cluster { found: 0xc2, expected: 0xc1 },
        Refusal::Generation { found: 1, expected: 3 },
        Refusal::UnknownNode { node: 9 },
        Refusal::OwnId { node: 2 },
        Refusal::Storage { found: 0x52, expected: 0x51 },
        Refusal::WrongNode { found: 3, expected: 2 },
        Refusal::Busy { limit: 1_000 },
        Refusal::Stopping,
        Refusal::Unknown { code: 200 },
    ]
}

fn hellos() -> Vec<(String, Vec<u8>)> {
    let runtime = runtime();
    let mut all = vec![("hello of a client".to_owned(), Hello::of_client(None))];
    for purpose in [Purpose::Raft, Purpose::Forward, Purpose::Snapshot] {
        all.push((format!("hello of a node, {purpose}"), Hello { purpose, ..node_hello() }));
    }
    for refusal in refusals() {
        all.push((
            format!("hello with refusal: {refusal}"),
            Hello { refusal: Some(refusal), ..node_hello() },
        ));
    }
    all.into_iter().map(|(name, hello)| (name, runtime.block_on(written(&hello)))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string grows");
        text
    })
}
