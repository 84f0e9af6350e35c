//! Whole connections over in-process streams: handshake, refusals, limits, the request loop, the link.
//! Time is tokio's paused clock, so that waits take none.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use raft_core::{Envelope, LogIndex, Message, NodeId, Term, Ticket};
use raft_rpc::*;
use tarpc::context::Context;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Semaphore, mpsc},
};
use tokio_util::codec::Decoder as _;

const LIMIT: usize = 64 * 1024;
const CLUSTER: ClusterId = ClusterId(0xc1);

fn node(id: u64) -> NodeId {
    NodeId::new(id).expect("not zero")
}

fn hello(id: u64, purpose: Purpose) -> Hello {
    Hello::of_node(node(id), CLUSTER, 0, StorageId(id.into()), purpose)
}

fn pair() -> (Io, Io) {
    let (a, b) = tokio::io::duplex(LIMIT);
    (Box::new(a), Box::new(b))
}

/// Node 1 answers on `port`, checking what it receives.
async fn answer_on(port: Port, mut io: Io) -> Result<Hello, HandshakeError> {
    let ours = hello(1, Purpose::Raft);
    let received = handshake::receive(&mut io, &ours, port).await?;
    let refusal = received.check_received(&ours, port).err();
    handshake::answer(&mut io, &Hello { purpose: received.purpose, refusal, ..ours }).await?;
    match refusal {
        Some(refusal) => Err(refusal.into()),
        None => Ok(received),
    }
}

async fn dial_and_answer(ours: Hello, port: Port) -> (HandshakeError, HandshakeError) {
    let (mut a, b) = pair();
    let (dialled, answered) = tokio::join!(handshake::dial(&mut a, &ours), answer_on(port, b));
    (dialled.expect_err("refused"), answered.expect_err("refused"))
}

#[tokio::test(start_paused = true)]
async fn the_next_protocol_version_is_refused_by_name_on_both_sides() {
    let next = Hello { version: PROTOCOL_VERSION + 1, ..hello(2, Purpose::Raft) };
    let (dialled, answered) = dial_and_answer(next, Port::Peer).await;
    let text = format!(
        "speaks protocol version {}, supported is {PROTOCOL_VERSION}",
        PROTOCOL_VERSION + 1
    );
    assert_eq!(dialled.to_string(), text, "the dialler can print why");
    assert_eq!(answered.to_string(), text, "the listener can log why");

    // The other way round: an older node dials a newer one.
    let (mut a, mut b) = pair();
    let newer = Hello { version: PROTOCOL_VERSION + 1, ..hello(1, Purpose::Raft) };
    let ours = hello(2, Purpose::Raft);
    let (dialled, answered) =
        tokio::join!(handshake::dial(&mut a, &ours), handshake::answer(&mut b, &newer));
    answered.expect("it was written");
    assert_eq!(dialled.expect_err("refused").to_string(), text);
}

#[tokio::test(start_paused = true)]
async fn strangers_and_mistaken_ports_are_refused_by_name() {
    let stranger = Hello { cluster: Some(ClusterId(0xc2)), ..hello(2, Purpose::Raft) };
    let cases = [
        (
            stranger,
            Port::Peer,
            "belongs to cluster 000000000000000000000000000000c2, expected 000000000000000000000000000000c1",
        ),
        (
            hello(1, Purpose::Raft),
            Port::Peer,
            "node 1 is this node's own id; two nodes were started with it, or it dials itself",
        ),
        (Hello::of_client(None), Port::Peer, "the peer port takes no client connections"),
        (hello(2, Purpose::Raft), Port::Client, "the client port takes no raft connections"),
        (hello(2, Purpose::Snapshot), Port::Peer, "the peer port takes no snapshot connections"),
        (
            Hello { generation: 1, ..hello(2, Purpose::Raft) },
            Port::Peer,
            "belongs to generation 1 of the cluster, expected 0",
        ),
        (
            Hello { node: None, ..hello(2, Purpose::Raft) },
            Port::Peer,
            "node 0 is no member of this cluster",
        ),
        (
            Hello::of_client(Some(ClusterId(9))),
            Port::Client,
            "belongs to cluster 00000000000000000000000000000009, expected 000000000000000000000000000000c1",
        ),
    ];
    for (ours, port, text) in cases {
        let (dialled, answered) = dial_and_answer(ours, port).await;
        assert_eq!(dialled.to_string(), text);
        assert_eq!(answered.to_string(), text);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_needs_no_cluster_id_and_learns_it() {
    let (mut a, b) = pair();
    let client = Hello::of_client(None);
    let (dialled, answered) =
        tokio::join!(handshake::dial(&mut a, &client), answer_on(Port::Client, b));
    assert_eq!(dialled.expect("admitted").cluster, Some(CLUSTER));
    assert_eq!(answered.expect("admitted").purpose, Purpose::Client);
}

#[tokio::test(start_paused = true)]
async fn bytes_of_another_protocol_are_named_and_not_answered() {
    let cases: [(&[u8], &str); 3] = [
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "not this protocol: the first bytes announce a handshake of 542393671 bytes, limit is 4096",
        ),
        (
            &[0xff; 64],
            "not this protocol: the first bytes announce a handshake of 4294967295 bytes, limit is 4096",
        ),
        (
            &[12, 0, 0, 0, b'x', b'x', b'x', b'x', b'x', b'x', b'x', b'x', 1, 0, 0, 0],
            "not this protocol: a handshake begins with [78, 78, 78, 78, 78, 78, 78, 78]",
        ),
    ];
    for (bytes, text) in cases {
        let (mut a, b) = pair();
        a.write_all(bytes).await.expect("there is room");
        assert_eq!(answer_on(Port::Peer, b).await.expect_err("refused").to_string(), text);
        let mut answer = Vec::new();
        a.read_to_end(&mut answer).await.expect("closed");
        assert!(answer.is_empty(), "answered with {answer:02x?}");
    }
    let (_silent, b) = pair();
    let error = answer_on(Port::Peer, b).await.expect_err("refused");
    assert_eq!(error.to_string(), "no handshake within 1000 ms");
    let (mut a, b) = pair();
    a.write_all(&[8, 0]).await.expect("there is room");
    drop(a);
    let error = answer_on(Port::Peer, b).await.expect_err("refused");
    assert_eq!(error.to_string(), "the connection was closed before the handshake was answered");
}

#[test]
fn a_length_takes_no_memory_before_its_bytes_arrive() {
    let mut buffer = BytesMut::with_capacity(64);
    buffer.extend_from_slice(&32_000_000_u32.to_le_bytes());
    buffer.extend_from_slice(&[1; 20]);
    let before = buffer.capacity();
    let decoded = ServerCodec::<KvRequest, KvResponse>::new(CLIENT_FRAME_BYTES).decode(&mut buffer);
    assert!(matches!(decoded, Ok(None)), "the frame is not complete: {decoded:?}");
    assert_eq!(buffer.capacity(), before, "memory was taken for bytes that are not there");
}

/// Answers `execute` with its number of requests once `gate` lets it through; counts what it began.
#[derive(Clone)]
struct Gated {
    gate: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
    order: mpsc::Sender<u32>,
    answer_bytes: usize,
}

impl Kv for Gated {
    async fn execute(
        self,
        _: Context,
        batch: Vec<TimedRequest>,
    ) -> Vec<Result<Response, WireError>> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.order.try_send(batch[0].timeout_ms).expect("the channel is large enough");
        self.gate.acquire().await.expect("never closed").forget();
        let value = Bytes::from(vec![0; self.answer_bytes]);
        let item = KeyValue {
            key: Bytes::new(),
            value,
            create_revision: 0,
            mod_revision: 0,
            version: 0,
            lease: 0,
        };
        vec![Ok(Response::Value { revision: 1, found: Some(item) })]
    }

    async fn status(self, _: Context) -> NodeStatus {
        unreachable!("not called here")
    }

    async fn ping(self, _: Context) {}
}

fn timed(number: u32) -> Vec<TimedRequest> {
    let get = GetRequest {
        key: Bytes::from_static(b"k"),
        revision: None,
        consistency: Consistency::Linearizable,
    };
    vec![TimedRequest { timeout_ms: number, request: Request::Get(get) }]
}

fn overloaded(request: &KvRequest) -> Option<KvResponse> {
    match request {
        KvRequest::Execute { batch } => Some(KvResponse::Execute(
            batch
                .iter()
                .map(|_| Err(WireError::Overloaded { node: 1, retry_after_ms: 5 }))
                .collect(),
        )),
        KvRequest::Status {} | KvRequest::Ping {} => None,
    }
}

struct Fixture {
    client: KvClient,
    gate: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
    order: mpsc::Receiver<u32>,
    served: tokio::task::JoinHandle<Result<(), FrameError>>,
    stop: tokio::sync::oneshot::Sender<()>,
}

fn start(in_flight_max: usize, answer_bytes: usize) -> Fixture {
    let (a, b) = pair();
    let (order_sender, order) = mpsc::channel(64);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = Gated {
        gate: Arc::clone(&gate),
        begun: Arc::clone(&begun),
        order: order_sender,
        answer_bytes,
    };
    let served = tokio::spawn(async move {
        let stop = async { drop(stopped.await) };
        serve(server_transport(b, LIMIT), handler.serve(), in_flight_max, overloaded, stop).await
    });
    let client =
        KvClient::new(tarpc::client::Config::default(), client_transport(a, LIMIT)).spawn();
    Fixture { client, gate, begun, order, served, stop }
}

fn soon() -> Context {
    context_for(Duration::from_secs(5))
}

#[tokio::test(start_paused = true)]
async fn handlers_begin_in_the_order_of_their_requests_and_too_many_are_answered_overloaded() {
    let mut fixture = start(4, 1);
    let calls: Vec<_> = (0..6)
        .map(|number| {
            let client = fixture.client.clone();
            async move { client.execute(soon(), timed(number)).await }
        })
        .collect();
    let answers = tokio::spawn(futures::future::join_all(calls));
    for number in 0..4 {
        assert_eq!(fixture.order.recv().await, Some(number), "in order");
    }
    fixture.gate.add_permits(4);
    let answers = answers.await.expect("no panic");
    let refused = answers
        .iter()
        .filter(|answer| {
            matches!(answer.as_deref(), Ok([Err(WireError::Overloaded { retry_after_ms: 5, .. })]))
        })
        .count();
    assert_eq!(refused, 2, "four wait, two are refused: {answers:?}");
    assert_eq!(fixture.begun.load(Ordering::Relaxed), 4, "what is refused was never begun");
}

#[tokio::test(start_paused = true)]
async fn no_deadline_aborts_a_handler_and_a_stop_waits_for_it() {
    let mut fixture = start(4, 1);
    let context = context_for(Duration::from_millis(10));
    let client = fixture.client.clone();
    let late = tokio::spawn(async move { client.execute(context, timed(1)).await });
    assert_eq!(fixture.order.recv().await, Some(1));
    let answer = late.await.expect("no panic");
    assert!(matches!(answer, Err(tarpc::client::RpcError::DeadlineExceeded)), "{answer:?}");
    fixture.stop.send(()).expect("it serves");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!fixture.served.is_finished(), "the handler is waited for");
    fixture.gate.add_permits(1);
    fixture.served.await.expect("no panic").expect("a clean end");
    assert_eq!(fixture.gate.available_permits(), 0, "the handler ran to its end");
}

#[tokio::test(start_paused = true)]
async fn an_answer_beyond_the_frame_limit_fails_alone() {
    let fixture = start(4, LIMIT);
    fixture.gate.add_permits(1);
    let answer = fixture.client.execute(soon(), timed(1)).await;
    let Err(tarpc::client::RpcError::Server(error)) = &answer else {
        panic!("expected a failure: {answer:?}")
    };
    assert!(error.detail.contains("does not fit a frame of 65536 bytes"), "{error}");
    fixture.client.ping(soon()).await.expect("the connection goes on");
}

#[tokio::test(start_paused = true)]
async fn a_request_beyond_the_frame_limit_fails_alone() {
    let fixture = start(4, 1);
    let mut batch = timed(1);
    if let Request::Get(get) = &mut batch[0].request {
        get.key = Bytes::from(vec![0; LIMIT]);
    }
    let answer = fixture.client.execute(soon(), batch).await;
    assert!(matches!(answer, Err(tarpc::client::RpcError::Send(_))), "{answer:?}");
    fixture.client.ping(soon()).await.expect("the connection goes on");
}

#[tokio::test(start_paused = true)]
async fn a_huge_length_and_garbage_end_the_connection_with_a_reason() {
    let cases: [(Vec<u8>, &str); 3] = [
        (
            u32::MAX.to_le_bytes().to_vec(),
            "a frame of 4294967295 bytes is announced, limit is 65536",
        ),
        ([&9_u32.to_le_bytes()[..], &[77; 9]].concat(), "77 is no kind of frame here"),
        ([&16_u32.to_le_bytes()[..], &[1; 8], &[0xff; 8]].concat(), "cannot be read"),
    ];
    for (bytes, text) in cases {
        let (mut a, b) = pair();
        let (order, _kept) = mpsc::channel(1);
        let handler = Gated {
            gate: Arc::new(Semaphore::new(0)),
            begun: Arc::default(),
            order,
            answer_bytes: 0,
        };
        let served = serve(
            server_transport(b, LIMIT),
            handler.serve(),
            4,
            overloaded,
            std::future::pending(),
        );
        a.write_all(&bytes).await.expect("there is room");
        let error = served.await.expect_err("refused").to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn held_back_answers_leave_together_or_when_their_time_has_come() {
    let (mut a, b) = pair();
    let (sink, _delivered) = mpsc::channel(64);
    let delay = Some(AnswerDelay { count: 3, time: Duration::from_millis(25) });
    let overloaded = |_: &PeerRequest| None;
    let served = tokio::spawn(async move {
        let transport = server_transport(b, LIMIT);
        let never = std::future::pending();
        drop(
            serve_with_delay(transport, Recorder(sink).serve(), 64, overloaded, delay, never).await,
        );
    });
    // An empty batch: kind, id, time left, variant 0, no messages.
    let request = [15, 0, 0, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    const ANSWER_BYTES: usize = 4 + 9 + 1;
    let begun = tokio::time::Instant::now();
    let mut answers = [0; 3 * ANSWER_BYTES];
    for _ in 0..3 {
        a.write_all(&request).await.expect("there is room");
    }
    a.read_exact(&mut answers).await.expect("answered");
    assert_eq!(begun.elapsed(), Duration::ZERO, "the third takes the others with it");
    a.write_all(&request).await.expect("there is room");
    a.read_exact(&mut answers[..ANSWER_BYTES]).await.expect("answered");
    let waited = begun.elapsed().as_millis();
    assert!((25..=27).contains(&waited), "held back for {waited} ms");
    served.abort();
}

/// A peer that records what is delivered.
#[derive(Clone)]
struct Recorder(mpsc::Sender<Vec<Envelope>>);

impl Peer for Recorder {
    async fn deliver(self, _: Context, batch: Vec<Envelope>) {
        self.0.send(batch).await.expect("the test reads");
    }
}

struct Owner {
    broken: mpsc::Sender<NodeId>,
    known: StorageId,
}

impl LinkOwner for Owner {
    fn admit<'a>(&'a self, answer: &'a Hello) -> BoxFuture<'a, Result<(), Refusal>> {
        let found = answer.storage;
        Box::pin(async move {
            match found {
                Some(found) if found != self.known => {
                    Err(Refusal::Storage { found: found.0, expected: self.known.0 })
                }
                Some(_) | None => Ok(()),
            }
        })
    }

    fn broken(&self, peer: NodeId) {
        self.broken.try_send(peer).expect("the test reads");
    }
}

fn message(number: u64) -> Envelope {
    let msg = Message::ReadIndexReply { id: Ticket(number), index: LogIndex(number) };
    Envelope { from: node(1), to: node(2), term: Term(1), msg }
}

/// Accepts one connection as `id` and serves it until dropped.
async fn accept_as(
    id: u64,
    listener: &mut InProcessListener,
    sink: mpsc::Sender<Vec<Envelope>>,
) -> tokio::task::JoinHandle<()> {
    let mut io = listener.accept().await.expect("the connector lives");
    let ours = hello(id, Purpose::Raft);
    let received = handshake::receive(&mut io, &ours, Port::Peer).await.expect("a hello");
    handshake::answer(&mut io, &Hello { purpose: received.purpose, ..ours }).await.expect("sent");
    tokio::spawn(async move {
        let transport = server_transport(io, LIMIT);
        let overloaded = |_: &PeerRequest| Some(PeerResponse::Deliver(()));
        drop(
            serve(transport, Recorder(sink).serve(), 64, overloaded, std::future::pending()).await,
        );
    })
}

async fn until(
    watch: &mut tokio::sync::watch::Receiver<LinkStatus>,
    connected: bool,
) -> LinkStatus {
    watch
        .wait_for(|status| {
            status.connected == connected && (connected || status.last_error.is_some())
        })
        .await
        .expect("the link lives")
        .clone()
}

#[tokio::test(start_paused = true)]
async fn a_link_redials_counts_its_changes_and_keeps_order() {
    let connector = InProcessConnector::default();
    let (broken_sender, mut broken) = mpsc::channel(8);
    let owner = Arc::new(Owner { broken: broken_sender, known: StorageId(2) });
    let (link, task) = Link::new(
        node(2),
        "peer-2".to_owned(),
        hello(1, Purpose::Raft),
        Arc::new(connector.clone()),
        owner,
        LinkOptions::new(LIMIT),
        7,
    );
    let running = tokio::spawn(task.run());
    let mut watch = link.watch();

    let status = until(&mut watch, false).await;
    assert_eq!(
        status.last_error.as_deref(),
        Some("cannot connect to peer-2: nobody listens in this process")
    );
    assert_eq!(
        (status.changes, link.send(vec![message(0)])),
        (0, Err(Dropped)),
        "broken links take nothing"
    );

    let mut listener = connector.listen("peer-2").await;
    let (sink, mut delivered) = mpsc::channel(64);
    let server = accept_as(2, &mut listener, sink.clone()).await;
    assert_eq!(until(&mut watch, true).await.changes, 1);
    for number in 1..=20 {
        link.send(vec![message(number)]).expect("connected");
    }
    let mut got = Vec::new();
    while got.len() < 20 {
        got.extend(delivered.recv().await.expect("delivered"));
    }
    assert_eq!(got, (1..=20).map(message).collect::<Vec<_>>());

    server.abort();
    let status = until(&mut watch, false).await;
    assert_eq!(status.changes, 2);
    assert_eq!(broken.recv().await, Some(node(2)), "the owner is told");

    let _server = accept_as(2, &mut listener, sink).await;
    assert_eq!(until(&mut watch, true).await.changes, 3);
    link.send(vec![message(21)]).expect("connected");
    assert_eq!(
        delivered.recv().await,
        Some(vec![message(21)]),
        "nothing of the old connection is left"
    );
    drop(link);
    running.await.expect("the task ends with its last link");
}

#[tokio::test(start_paused = true)]
async fn a_link_refuses_another_node_and_another_storage() {
    for (answers_as, known, text) in [
        (3, 3, "peer-2: node 3 answers, expected node 2"),
        (
            2,
            0xbad,
            "peer-2: storage id is 00000000000000000000000000000002, known is 00000000000000000000000000000bad; a node whose data was lost needs a new id",
        ),
    ] {
        let connector = InProcessConnector::default();
        let mut listener = connector.listen("peer-2").await;
        let (broken, _kept) = mpsc::channel(8);
        let owner = Arc::new(Owner { broken, known: StorageId(known) });
        let (link, task) = Link::new(
            node(2),
            "peer-2".to_owned(),
            hello(1, Purpose::Raft),
            Arc::new(connector),
            owner,
            LinkOptions::new(LIMIT),
            7,
        );
        let running = tokio::spawn(task.run());
        let (sink, _kept_too) = mpsc::channel(1);
        let _server = accept_as(answers_as, &mut listener, sink).await;
        let status = until(&mut link.watch(), false).await;
        assert_eq!(status.last_error.as_deref(), Some(text));
        assert_eq!(status.changes, 0, "it never counted as connected");
        running.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_breaks_the_link_and_a_full_queue_drops() {
    let connector = InProcessConnector::default();
    let mut listener = connector.listen("peer-2").await;
    let (broken_sender, mut broken) = mpsc::channel(8);
    let owner = Arc::new(Owner { broken: broken_sender, known: StorageId(2) });
    let mut options = LinkOptions::new(LIMIT);
    (options.queue_batches, options.in_flight_max) = (2, 1);
    let (link, task) = Link::new(
        node(2),
        "peer-2".to_owned(),
        hello(1, Purpose::Raft),
        Arc::new(connector),
        owner,
        options,
        7,
    );
    let _running = tokio::spawn(task.run());
    // The handshake is answered, then nothing is read any more.
    let mut io = listener.accept().await.expect("dialled");
    let ours = hello(2, Purpose::Raft);
    handshake::receive(&mut io, &ours, Port::Peer).await.expect("a hello");
    handshake::answer(&mut io, &ours).await.expect("sent");
    let mut watch = link.watch();
    until(&mut watch, true).await;
    link.send(vec![message(0)]).expect("connected");
    tokio::time::sleep(Duration::from_millis(1)).await; // the one call under way takes it
    let taken = (1..10).take_while(|number| link.send(vec![message(*number)]).is_ok()).count();
    assert_eq!(taken, 2, "the queue has two places");
    let status = until(&mut watch, false).await;
    assert_eq!(status.last_error.as_deref(), Some("no answer within 2000 ms"));
    assert_eq!(broken.recv().await, Some(node(2)));

    let (sink, mut delivered) = mpsc::channel(64);
    let _server = accept_as(2, &mut listener, sink).await;
    until(&mut watch, true).await;
    link.send(vec![message(99)]).expect("connected");
    let first = delivered.recv().await.expect("delivered");
    assert_eq!(
        first,
        vec![message(99)],
        "what waited for the old connection is not sent on the new"
    );
}
