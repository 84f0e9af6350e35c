//! One of every message, with fields that would show a swap. Shared by the golden and the mutation tests.

use bytes::{Bytes, BytesMut};
use raft_core::{
    Body, Entry, Envelope, LogIndex, LogPos, Membership, Message, Micros, NodeId, NodeInfo,
    ProbeId, ReadSeq, Term, Ticket, VoteKind,
};
use raft_rpc::*;
use serde::{Serialize, de::DeserializeOwned};
use tarpc::{ClientMessage, Request as RpcRequest, Response as RpcResponse, ServerError};
use tokio_util::codec::{Decoder as _, Encoder as _};

/// The frame limit of these tests, in bytes.
pub(crate) const LIMIT: usize = 1024 * 1024;

/// Which decoder reads a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    KvRequest,
    KvResponse,
    PeerRequest,
    PeerResponse,
    ForwardRequest,
    ForwardResponse,
}

/// A named frame.
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) side: Side,
    pub(crate) bytes: Vec<u8>,
}

/// Reads one frame and writes it again; `Err` holds the decoder's reason, `Ok(None)` means it waits for more.
pub(crate) fn rewrite(side: Side, bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
    match side {
        Side::KvRequest => rewrite_request::<KvRequest, KvResponse>(bytes),
        Side::PeerRequest => rewrite_request::<PeerRequest, PeerResponse>(bytes),
        Side::ForwardRequest => rewrite_request::<ForwardRequest, ForwardResponse>(bytes),
        Side::KvResponse => rewrite_response::<KvRequest, KvResponse>(bytes),
        Side::PeerResponse => rewrite_response::<PeerRequest, PeerResponse>(bytes),
        Side::ForwardResponse => rewrite_response::<ForwardRequest, ForwardResponse>(bytes),
    }
}

fn rewrite_request<Req: Serialize + DeserializeOwned, Resp: Serialize + DeserializeOwned>(
    bytes: &[u8],
) -> Result<Option<Vec<u8>>, String> {
    let mut input = BytesMut::from(bytes);
    let decoded = ServerCodec::<Req, Resp>::new(LIMIT).decode(&mut input);
    match decoded.map_err(|error| error.to_string())? {
        None => Ok(None),
        Some(message) => {
            let mut out = BytesMut::new();
            ClientCodec::<Req, Resp>::new(LIMIT)
                .encode(message, &mut out)
                .map_err(|e| e.to_string())?;
            Ok(Some(out.to_vec()))
        }
    }
}

fn rewrite_response<Req: Serialize + DeserializeOwned, Resp: Serialize + DeserializeOwned>(
    bytes: &[u8],
) -> Result<Option<Vec<u8>>, String> {
    let mut input = BytesMut::from(bytes);
    let decoded = ClientCodec::<Req, Resp>::new(LIMIT).decode(&mut input);
    match decoded.map_err(|error| error.to_string())? {
        None => Ok(None),
        Some(message) => {
            let mut out = BytesMut::new();
            ServerCodec::<Req, Resp>::new(LIMIT)
                .encode(message, &mut out)
                .map_err(|e| e.to_string())?;
            Ok(Some(out.to_vec()))
        }
    }
}

/// Every message there is.
pub(crate) fn samples() -> Vec<Sample> {
    let mut samples = Samples(Vec::new());
    for (name, request) in kv_requests() {
        let batch = vec![TimedRequest { timeout_ms: 4_000, request }];
        samples.request(
            Side::KvRequest,
            &format!("kv execute, {name}"),
            KvRequest::Execute { batch },
        );
    }
    samples.request(Side::KvRequest, "kv status", KvRequest::Status {});
    samples.request(Side::KvRequest, "kv ping", KvRequest::Ping {});
    samples.cancel::<KvRequest, KvResponse>(Side::KvRequest, "kv cancel");

    for (name, answer) in responses() {
        samples.response(
            Side::KvResponse,
            &format!("kv answer, {name}"),
            KvResponse::Execute(vec![answer]),
        );
    }
    samples.response(Side::KvResponse, "kv answer, status", KvResponse::Status(status()));
    samples.response(Side::KvResponse, "kv answer, ping", KvResponse::Ping(()));
    samples.failure::<KvRequest, KvResponse>(Side::KvResponse, "kv failure");

    for (name, msg) in peer_messages() {
        let envelope = Envelope { from: node(2), to: node(3), term: Term(7), msg };
        let batch = vec![envelope];
        samples.request(
            Side::PeerRequest,
            &format!("peer deliver, {name}"),
            PeerRequest::Deliver { batch },
        );
    }
    samples.response(Side::PeerResponse, "peer answer", PeerResponse::Deliver(()));

    let command = ForwardedCommand {
        timeout_ms: 900,
        command: Bytes::from_static(b"command"),
        return_previous: true,
    };
    samples.request(
        Side::ForwardRequest,
        "forward",
        ForwardRequest::Forward { batch: vec![command] },
    );
    let written = Ok(Response::Written { revision: 9, previous: None });
    samples.response(
        Side::ForwardResponse,
        "forward answer",
        ForwardResponse::Forward(vec![written, Err(WireError::NoLeader { node: 3 })]),
    );
    samples.0
}

struct Samples(Vec<Sample>);

impl Samples {
    fn push(&mut self, side: Side, name: &str, mut bytes: Vec<u8>) {
        // The time left depends on the clock; its four bytes stand behind length, kind and id.
        if bytes.get(4) == Some(&1) {
            bytes[13..17].copy_from_slice(&5_000_u32.to_le_bytes());
        }
        self.0.push(Sample { name: name.to_owned(), side, bytes });
    }

    fn request<Req: Serialize>(&mut self, side: Side, name: &str, message: Req) {
        let context = context_for(std::time::Duration::from_secs(5));
        let request = ClientMessage::Request(RpcRequest { context, id: 0x0102_0304, message });
        let mut out = BytesMut::new();
        ClientCodec::<Req, ()>::new(LIMIT).encode(request, &mut out).expect("a small message fits");
        self.push(side, name, out.to_vec());
    }

    fn cancel<Req: Serialize, Resp>(&mut self, side: Side, name: &str) {
        let cancel = ClientMessage::Cancel {
            trace_context: tarpc::trace::Context::default(),
            request_id: 0x0506,
        };
        let mut out = BytesMut::new();
        ClientCodec::<Req, Resp>::new(LIMIT)
            .encode(cancel, &mut out)
            .expect("a small message fits");
        self.push(side, name, out.to_vec());
    }

    fn response<Resp: Serialize>(&mut self, side: Side, name: &str, message: Resp) {
        let response = RpcResponse { request_id: 0x0102_0304, message: Ok(message) };
        let mut out = BytesMut::new();
        ServerCodec::<(), Resp>::new(LIMIT)
            .encode(response, &mut out)
            .expect("a small message fits");
        self.push(side, name, out.to_vec());
    }

    fn failure<Req, Resp: Serialize>(&mut self, side: Side, name: &str) {
        let error = ServerError::new(std::io::ErrorKind::Other, "too much".to_owned());
        let response = RpcResponse { request_id: 0x0102_0304, message: Err(error) };
        let mut out = BytesMut::new();
        ServerCodec::<Req, Resp>::new(LIMIT)
            .encode(response, &mut out)
            .expect("a small message fits");
        self.push(side, name, out.to_vec());
    }
}

fn node(id: u64) -> NodeId {
    NodeId::new(id).expect("not zero")
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn key_value() -> KeyValue {
    KeyValue {
        key: bytes("key"),
        value: bytes("value"),
        create_revision: 3,
        mod_revision: 5,
        version: 2,
        lease: 0,
    }
}

fn kv_requests() -> Vec<(&'static str, Request)> {
    let tag = Some(SessionTag { session: 300, sequence: 17, lowest_unacknowledged: 16 });
    let write = |operation| Request::Write(WriteRequest { tag, operation });
    let put = |condition| WriteOperation::Put {
        key: bytes("key"),
        value: bytes("value"),
        condition,
        return_previous: true,
    };
    let range = |projection, limit, reverse, end, revision| {
        Request::Range(RangeRequest {
            range: KeyRange { start: bytes("a"), end },
            limit,
            reverse,
            projection,
            revision,
            consistency: Consistency::AtLeast(40),
        })
    };
    vec![
        (
            "register session",
            Request::Write(WriteRequest { tag: None, operation: WriteOperation::RegisterSession }),
        ),
        ("put", write(put(Condition::Always))),
        ("put if absent", write(put(Condition::Absent))),
        ("put if value", write(put(Condition::Value(bytes("old"))))),
        ("put if revision", write(put(Condition::Revision(5)))),
        (
            "delete",
            write(WriteOperation::Delete {
                key: bytes("key"),
                condition: Condition::Always,
                return_previous: false,
            }),
        ),
        (
            "delete range",
            write(WriteOperation::DeleteRange {
                range: KeyRange { start: bytes("a"), end: Some(bytes("b")) },
            }),
        ),
        (
            "get",
            Request::Get(GetRequest {
                key: bytes("key"),
                revision: None,
                consistency: Consistency::Linearizable,
            }),
        ),
        (
            "get stale",
            Request::Get(GetRequest {
                key: bytes("key"),
                revision: Some(12),
                consistency: Consistency::Stale { max_age_ms: Some(10_000) },
            }),
        ),
        ("range", range(Projection::KeyValues, Some(100), false, Some(bytes("b")), None)),
        ("range keys", range(Projection::KeysOnly, None, true, None, Some(8))),
        ("range count", range(Projection::Count, None, false, None, None)),
    ]
}

fn responses() -> Vec<(&'static str, Result<Response, WireError>)> {
    vec![
        ("session", Ok(Response::Session { id: 300 })),
        ("written", Ok(Response::Written { revision: 6, previous: Some(key_value()) })),
        ("deleted", Ok(Response::Deleted { revision: 7, count: 2, previous: None })),
        ("refused", Ok(Response::Refused { revision: 7, current: Some(key_value()) })),
        ("value", Ok(Response::Value { revision: 7, found: Some(key_value()) })),
        ("page", Ok(Response::Page { revision: 7, items: vec![key_value()], more: true })),
        ("count", Ok(Response::Count { revision: 7, count: 34_006 })),
        (
            "not leader",
            Err(WireError::NotLeader {
                node: 2,
                hint: Some(1),
                hint_addr: Some("127.0.0.1:3331".to_owned()),
            }),
        ),
        ("no leader", Err(WireError::NoLeader { node: 2 })),
        ("overloaded", Err(WireError::Overloaded { node: 2, retry_after_ms: 50 })),
        ("timeout", Err(WireError::Timeout { node: 2 })),
        (
            "outcome unknown",
            Err(WireError::OutcomeUnknown { node: 2, reason: "connection lost".to_owned() }),
        ),
        (
            "too large",
            Err(WireError::TooLarge {
                node: 2,
                what: "value".to_owned(),
                size: 5_452_595,
                limit: 1_048_576,
                setting: "limits.value".to_owned(),
            }),
        ),
        ("bad input", Err(WireError::BadInput { reason: "a key is empty".to_owned() })),
        ("compacted", Err(WireError::Compacted { requested: 812, oldest: 40_211 })),
        ("future revision", Err(WireError::FutureRevision { node: 2, requested: 9, current: 8 })),
        ("session expired", Err(WireError::SessionExpired { session: 300 })),
        (
            "bad sequence",
            Err(WireError::BadSequence {
                session: 300,
                sequence: 4,
                reason: "acknowledged before".to_owned(),
            }),
        ),
        ("too stale", Err(WireError::TooStale { node: 2, age_ms: 900, max_age_ms: 500 })),
        ("shutting down", Err(WireError::ShuttingDown { node: 2 })),
        ("storage", Err(WireError::Storage { node: 2, reason: "no space".to_owned() })),
    ]
}

fn status() -> NodeStatus {
    NodeStatus {
        id: 2,
        cluster_id: "00112233445566778899aabbccddeeff".to_owned(),
        version: "0.1.0".to_owned(),
        role: Role::Follower,
        voter: true,
        term: 5,
        leader: Some(1),
        revision: 812,
        last_index: 903,
        commit_index: 902,
        applied_index: 901,
        state_hash: "0123456789abcdef".to_owned(),
        storage: StorageState::Ok,
        alarms: vec!["an alarm".to_owned()],
        elections: 1,
        role_changes: 2,
        connection_changes: 6,
        forwarded: 4,
        members: vec![MemberStatus {
            id: 2,
            peer_addr: "127.0.0.1:4332".to_owned(),
            client_addr: "127.0.0.1:3332".to_owned(),
            voter: true,
        }],
        peers: vec![PeerStatus { id: 1, connected: true, changes: 3 }],
    }
}

fn peer_messages() -> Vec<(&'static str, Message)> {
    let pos = |term, index| LogPos { term: Term(term), index: LogIndex(index) };
    let info = |id: u64| NodeInfo {
        peer_addr: format!("127.0.0.1:{}", 4330 + id),
        client_addr: format!("127.0.0.1:{}", 3330 + id),
        storage_id: (id == 1).then_some(0xfeed),
    };
    let nodes = (1..=3).map(|id| (node(id), info(id))).collect();
    let membership = Membership::of_voters(nodes).expect("three voters are a membership");
    let entries = [
        Entry { pos: pos(6, 41), body: Body::Noop },
        Entry { pos: pos(7, 42), body: Body::Command(bytes("command")) },
        Entry { pos: pos(7, 43), body: Body::Config(membership.into()) },
    ];
    let append = |entries: &[Entry]| Message::Append {
        prev: pos(6, 40),
        entries: entries.into(),
        commit: LogIndex(39),
        probe: ProbeId(11),
        sent_at: Micros(1_000_000),
        read: ReadSeq(13),
    };
    vec![
        ("heartbeat", append(&[])),
        ("append", append(&entries)),
        (
            "append ok",
            Message::AppendOk {
                matched: LogIndex(43),
                probe: ProbeId(11),
                echo: Micros(1_000_000),
                read: ReadSeq(13),
            },
        ),
        (
            "append reject",
            Message::AppendReject {
                probe: ProbeId(11),
                hint: pos(5, 37),
                echo: Micros(1_000_000),
                read: ReadSeq(13),
            },
        ),
        ("pre-vote", Message::Vote { kind: VoteKind::Pre, last: pos(7, 43) }),
        ("vote", Message::Vote { kind: VoteKind::Real, last: pos(7, 43) }),
        ("vote reply", Message::VoteReply { kind: VoteKind::Real, granted: true, asked: Term(8) }),
        ("read index", Message::ReadIndex { id: Ticket(99) }),
        ("read index reply", Message::ReadIndexReply { id: Ticket(99), index: LogIndex(43) }),
        ("transfer vote", Message::Vote { kind: VoteKind::Transfer, last: pos(7, 43) }),
        ("timeout now", Message::TimeoutNow { at: pos(7, 43) }),
        ("removed", Message::Removed { at: LogIndex(43) }),
        ("snapshot offer", Message::SnapshotOffer { at: pos(7, 43) }),
        ("regressed", Message::Regressed { had: LogIndex(43) }),
        ("snapshot under way", Message::SnapshotUnderWay { at: LogIndex(44) }),
    ]
}
