//! A cluster that is only pretended: the client service over one shared store in memory, without
//! consensus, whose nodes misbehave as a test's script says.
//!
//! Nodes hand everything on to the leader as the real ones do, so any node answers unless its
//! script says otherwise. Time is never waited for: scripts hold requests until told to go on.

#![expect(dead_code, reason = "each test binary uses its own part of it")]

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use raft_rpc::{
    CLIENT_FRAME_BYTES, ClusterId, Condition, Hello, InProcessConnector, Io, KeyRange, KeyValue,
    Kv, KvRequest, KvResponse, MemberStatus, NodeId, NodeStatus, Port, Projection, Purpose,
    Request, Response, Role, SessionTag, StorageId, StorageState, TimedRequest, WireError,
    WriteOperation, WriteRequest, handshake, serve, server_transport, tcp_io,
};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

/// What a node does with a request instead of answering it.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Answers this, and does nothing.
    Fail(WireError),
    /// Cuts the connection without doing anything.
    Cut,
    /// Does what is asked, then cuts the connection: the answer is lost.
    ApplyAndCut,
    /// Does what is asked, then answers this.
    ApplyAndFail(WireError),
    /// Waits for a permit, then goes on as if nothing had been.
    Hold(Arc<Semaphore>),
    /// Says that a put was stored, and does not store it.
    Lie,
    /// Never answers.
    Never,
}

/// One request as a node saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) node: u64,
    pub(crate) request: TimedRequest,
}

/// The pretended cluster.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    pub(crate) cluster: Arc<Cluster>,
}

#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) store: Mutex<Store>,
    pub(crate) leader: AtomicU64,
    nodes: BTreeMap<u64, Node>,
    /// How many writes and how many reads each batch had, in the order they came.
    pub(crate) batches: Mutex<Vec<(usize, usize)>>,
    pub(crate) seen: Mutex<Vec<Seen>>,
    pub(crate) value_limit: usize,
    pub(crate) page_items: usize,
}

#[derive(Debug)]
struct Node {
    address: Mutex<String>,
    /// For the next writes and reads of keys, one each; registrations of sessions pass.
    script: Mutex<VecDeque<Act>>,
    /// Does this to everything, scripts aside.
    always: Mutex<Option<Act>>,
    cut: Notify,
    down: AtomicBool,
    /// Takes connections and requests and says nothing.
    frozen: AtomicBool,
}

/// What is stored, with every version of it.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) revision: u64,
    versions: BTreeMap<Bytes, Vec<(u64, Option<KeyValue>)>>,
    sessions: BTreeMap<u64, BTreeMap<u64, Response>>,
    next_session: u64,
    /// How many writes took effect or were refused by their condition, retries not counted.
    pub(crate) applied: u64,
    pub(crate) registered: u64,
}

impl Fake {
    pub(crate) fn new(nodes: u64) -> Self {
        Self::with_limits(nodes, 1 << 20, 1000)
    }

    pub(crate) fn with_limits(nodes: u64, value_limit: usize, page_items: usize) -> Self {
        let nodes = (1..=nodes)
            .map(|id| {
                let node = Node {
                    address: Mutex::new(format!("node-{id}:3330")),
                    script: Mutex::default(),
                    always: Mutex::default(),
                    cut: Notify::new(),
                    down: AtomicBool::new(false),
                    frozen: AtomicBool::new(false),
                };
                (id, node)
            })
            .collect();
        let store = Store { revision: 1, next_session: 100, ..Store::default() };
        Self {
            cluster: Arc::new(Cluster {
                store: Mutex::new(store),
                leader: AtomicU64::new(1),
                nodes,
                batches: Mutex::default(),
                seen: Mutex::default(),
                value_limit,
                page_items,
            }),
        }
    }

    /// Serves all nodes within this process; their addresses are `node-N:3330`.
    pub(crate) async fn connector(&self) -> Arc<InProcessConnector> {
        let connector = InProcessConnector::default();
        for id in self.cluster.nodes.keys().copied() {
            let mut listener = connector.listen(&self.address(id)).await;
            let fake = self.clone();
            drop(tokio::spawn(async move {
                while let Some(io) = listener.accept().await {
                    drop(tokio::spawn(fake.clone().connection(id, io)));
                }
            }));
        }
        Arc::new(connector)
    }

    /// Serves all nodes on free ports of the loopback interface.
    pub(crate) async fn listen(&self) -> Vec<String> {
        for (id, node) in &self.cluster.nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            *node.address.lock() = listener.local_addr().expect("bound").to_string();
            let (fake, id) = (self.clone(), *id);
            drop(tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let io = tcp_io(stream).expect("a fresh socket");
                    drop(tokio::spawn(fake.clone().connection(id, io)));
                }
            }));
        }
        self.addresses()
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.cluster.nodes.keys().map(|id| self.address(*id)).collect()
    }

    pub(crate) fn address(&self, id: u64) -> String {
        self.node(id).address.lock().clone()
    }

    fn node(&self, id: u64) -> &Node {
        self.cluster.nodes.get(&id).expect("a node of this cluster")
    }

    /// The next requests to `node` meet these, one each.
    pub(crate) fn script(&self, node: u64, acts: impl IntoIterator<Item = Act>) {
        self.node(node).script.lock().extend(acts);
    }

    /// All requests to `node` meet this, until changed.
    pub(crate) fn always(&self, node: u64, act: Option<Act>) {
        *self.node(node).always.lock() = act;
    }

    /// The node dies: its connections end and new ones are refused.
    pub(crate) fn kill(&self, node: u64) {
        self.node(node).down.store(true, Ordering::SeqCst);
        self.node(node).cut.notify_waiters();
    }

    pub(crate) fn revive(&self, node: u64) {
        self.node(node).down.store(false, Ordering::SeqCst);
    }

    /// The node takes connections and requests, and answers nothing, not even a ping.
    pub(crate) fn freeze(&self, node: u64) {
        self.node(node).frozen.store(true, Ordering::SeqCst);
    }

    pub(crate) fn lead(&self, node: u64) {
        self.cluster.leader.store(node, Ordering::SeqCst);
    }

    /// The tags of all writes that carried one, in the order they came, over all nodes.
    pub(crate) fn tags(&self) -> Vec<(u64, SessionTag)> {
        self.cluster
            .seen
            .lock()
            .iter()
            .filter_map(|seen| match &seen.request.request {
                Request::Write(write) => write.tag.map(|tag| (seen.node, tag)),
                Request::Get(_) | Request::Range(_) => None,
            })
            .collect()
    }

    /// The nodes that were asked, in order, registrations of sessions left out.
    pub(crate) fn asked(&self) -> Vec<u64> {
        self.cluster
            .seen
            .lock()
            .iter()
            .filter(|seen| !is_registration(&seen.request.request))
            .map(|seen| seen.node)
            .collect()
    }

    pub(crate) fn applied(&self) -> u64 {
        self.cluster.store.lock().applied
    }

    /// Forgets all sessions, as if all had expired.
    pub(crate) fn expire_sessions(&self) {
        self.cluster.store.lock().sessions.clear();
    }

    /// What `key` holds now.
    pub(crate) fn value(&self, key: &str) -> Option<Bytes> {
        let store = self.cluster.store.lock();
        store.get(key.as_bytes(), store.revision).map(|found| found.value)
    }

    /// All live keys and values.
    pub(crate) fn contents(&self) -> BTreeMap<Bytes, Bytes> {
        let store = self.cluster.store.lock();
        store
            .versions
            .keys()
            .filter_map(|key| store.get(key, store.revision))
            .map(|item| (item.key, item.value))
            .collect()
    }

    async fn connection(self, id: u64, mut io: Io) {
        let node = self.node(id);
        if node.down.load(Ordering::SeqCst) {
            return;
        }
        let cut = node.cut.notified();
        let node_id = NodeId::new(id).expect("ids begin at 1");
        let ours =
            Hello::of_node(node_id, ClusterId(7), 0, StorageId(u128::from(id)), Purpose::Client);
        if handshake::receive(&mut io, &ours, Port::Client).await.is_err()
            || handshake::answer(&mut io, &ours).await.is_err()
        {
            return;
        }
        let transport = server_transport::<KvRequest, KvResponse>(io, CLIENT_FRAME_BYTES);
        let handler = Handler { fake: self.clone(), id };
        let overloaded = |_: &KvRequest| Some(KvResponse::Ping(()));
        let stop = std::future::pending();
        tokio::select! {
            ended = serve(transport, handler.serve(), 4096, overloaded, stop) => drop(ended),
            () = cut => {}
        }
    }
}

fn is_put(request: &Request) -> bool {
    matches!(request, Request::Write(WriteRequest { operation: WriteOperation::Put { .. }, .. }))
}

fn is_registration(request: &Request) -> bool {
    matches!(
        request,
        Request::Write(WriteRequest { operation: WriteOperation::RegisterSession, .. })
    )
}

#[derive(Clone)]
struct Handler {
    fake: Fake,
    id: u64,
}

impl Kv for Handler {
    async fn execute(
        self,
        _context: tarpc::context::Context,
        batch: Vec<TimedRequest>,
    ) -> Vec<Result<Response, WireError>> {
        self.thaw().await;
        let writes =
            batch.iter().filter(|timed| matches!(timed.request, Request::Write(_))).count();
        self.fake.cluster.batches.lock().push((writes, batch.len() - writes));
        join_all(batch.into_iter().map(|request| self.one(request))).await
    }

    async fn status(self, _context: tarpc::context::Context) -> NodeStatus {
        self.thaw().await;
        let cluster = &self.fake.cluster;
        let leader = cluster.leader.load(Ordering::SeqCst);
        let members = cluster
            .nodes
            .iter()
            .map(|(id, node)| MemberStatus {
                id: *id,
                peer_addr: format!("peer-{id}"),
                client_addr: node.address.lock().clone(),
                voter: true,
            })
            .collect();
        NodeStatus {
            id: self.id,
            cluster_id: "00000000000000000000000000000007".to_owned(),
            version: "0.1.0".to_owned(),
            role: if leader == self.id { Role::Leader } else { Role::Follower },
            voter: true,
            term: 5,
            leader: (leader != 0).then_some(leader),
            revision: cluster.store.lock().revision,
            last_index: 9,
            commit_index: 9,
            applied_index: 9,
            state_hash: "0123456789abcdef".to_owned(),
            storage: StorageState::Ok,
            alarms: Vec::new(),
            elections: 1,
            role_changes: 2,
            connection_changes: 3,
            forwarded: 4,
            members,
            peers: Vec::new(),
        }
    }

    async fn ping(self, _context: tarpc::context::Context) {
        self.thaw().await;
    }
}

impl Handler {
    /// Never comes back if the node is frozen.
    async fn thaw(&self) {
        if self.fake.node(self.id).frozen.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    async fn one(&self, request: TimedRequest) -> Result<Response, WireError> {
        let node = self.fake.node(self.id);
        self.fake.cluster.seen.lock().push(Seen { node: self.id, request: request.clone() });
        let act =
            if is_registration(&request.request) { None } else { node.script.lock().pop_front() };
        let always = node.always.lock().clone();
        match act.or(always.filter(|act| match act {
            Act::Lie => is_put(&request.request),
            Act::Fail(WireError::SessionExpired { .. }) => !is_registration(&request.request),
            Act::Fail(_)
            | Act::Cut
            | Act::ApplyAndCut
            | Act::ApplyAndFail(_)
            | Act::Hold(_)
            | Act::Never => true,
        })) {
            None => self.perform(request.request),
            Some(Act::Fail(error)) => Err(error),
            Some(Act::Cut) => self.cut().await,
            Some(Act::ApplyAndCut) => {
                drop(self.perform(request.request));
                self.cut().await
            }
            Some(Act::ApplyAndFail(error)) => {
                drop(self.perform(request.request));
                Err(error)
            }
            Some(Act::Hold(gate)) => {
                gate.acquire().await.expect("never closed").forget();
                self.perform(request.request)
            }
            Some(Act::Lie) => Ok(Response::Written { revision: 2, previous: None }),
            Some(Act::Never) => std::future::pending().await,
        }
    }

    async fn cut(&self) -> Result<Response, WireError> {
        self.fake.node(self.id).cut.notify_waiters();
        std::future::pending().await
    }

    fn perform(&self, request: Request) -> Result<Response, WireError> {
        let cluster = &self.fake.cluster;
        let mut store = cluster.store.lock();
        match request {
            Request::Write(write) => store.write(write, self.id, cluster.value_limit),
            Request::Get(get) => {
                let revision = store.read_revision(get.revision, self.id)?;
                Ok(Response::Value {
                    revision: store.revision,
                    found: store.get(&get.key, revision),
                })
            }
            Request::Range(range) => {
                let revision = store.read_revision(range.revision, self.id)?;
                let mut items = store.range(&range.range, revision);
                if range.projection == Projection::Count {
                    return Ok(Response::Count { revision, count: items.len() as u64 });
                }
                if range.reverse {
                    items.reverse();
                }
                if range.projection == Projection::KeysOnly {
                    for item in &mut items {
                        item.value = Bytes::new();
                    }
                }
                let limit = usize::try_from(range.limit.unwrap_or(u64::MAX))
                    .unwrap_or(usize::MAX)
                    .min(cluster.page_items);
                let more = items.len() > limit;
                items.truncate(limit);
                Ok(Response::Page { revision, items, more })
            }
        }
    }
}

impl Store {
    fn read_revision(&self, asked: Option<u64>, node: u64) -> Result<u64, WireError> {
        match asked {
            Some(requested) if requested > self.revision => {
                Err(WireError::FutureRevision { node, requested, current: self.revision })
            }
            Some(requested) => Ok(requested),
            None => Ok(self.revision),
        }
    }

    fn get(&self, key: &[u8], revision: u64) -> Option<KeyValue> {
        let versions = self.versions.get(key)?;
        versions.iter().rev().find(|(at, _)| *at <= revision)?.1.clone()
    }

    fn range(&self, range: &KeyRange, revision: u64) -> Vec<KeyValue> {
        let end = match &range.end {
            Some(end) if *end <= range.start => return Vec::new(),
            Some(end) => Bound::Excluded(end.clone()),
            None => Bound::Unbounded,
        };
        self.versions
            .range((Bound::Included(range.start.clone()), end))
            .filter_map(|(key, _)| self.get(key, revision))
            .collect()
    }

    fn write(
        &mut self,
        write: WriteRequest,
        node: u64,
        value_limit: usize,
    ) -> Result<Response, WireError> {
        if write.operation == WriteOperation::RegisterSession {
            self.next_session += 1;
            self.registered += 1;
            self.sessions.insert(self.next_session, BTreeMap::new());
            return Ok(Response::Session { id: self.next_session });
        }
        if let WriteOperation::Put { value, .. } = &write.operation
            && value.len() > value_limit
        {
            return Err(WireError::TooLarge {
                node,
                what: "value".to_owned(),
                size: value.len() as u64,
                limit: value_limit as u64,
                setting: "limits.value".to_owned(),
            });
        }
        let Some(tag) = write.tag else { return Ok(self.apply(write.operation)) };
        let Some(session) = self.sessions.get_mut(&tag.session) else {
            return Err(WireError::SessionExpired { session: tag.session });
        };
        session.retain(|sequence, _| *sequence >= tag.lowest_unacknowledged);
        if let Some(first) = session.get(&tag.sequence) {
            return Ok(first.clone());
        }
        let response = self.apply(write.operation);
        if let Some(session) = self.sessions.get_mut(&tag.session) {
            session.insert(tag.sequence, response.clone());
        }
        Ok(response)
    }

    fn apply(&mut self, operation: WriteOperation) -> Response {
        self.applied += 1;
        match operation {
            WriteOperation::RegisterSession => unreachable!("handled by the caller"),
            WriteOperation::Put { key, value, condition, return_previous } => {
                let current = self.get(&key, self.revision);
                if !holds(&condition, current.as_ref()) {
                    return Response::Refused { revision: self.revision, current };
                }
                self.revision += 1;
                let revision = self.revision;
                let item = KeyValue {
                    key: key.clone(),
                    value,
                    create_revision: current.as_ref().map_or(revision, |old| old.create_revision),
                    mod_revision: revision,
                    version: current.as_ref().map_or(1, |old| old.version + 1),
                    lease: 0,
                };
                self.versions.entry(key).or_default().push((revision, Some(item)));
                Response::Written { revision, previous: current.filter(|_| return_previous) }
            }
            WriteOperation::Delete { key, condition, return_previous } => {
                let current = self.get(&key, self.revision);
                if !holds(&condition, current.as_ref()) {
                    return Response::Refused { revision: self.revision, current };
                }
                let count = self.remove(current.iter().map(|item| item.key.clone()).collect());
                let previous = current.filter(|_| return_previous);
                Response::Deleted { revision: self.revision, count, previous }
            }
            WriteOperation::DeleteRange { range } => {
                let keys = self.range(&range, self.revision);
                let count = self.remove(keys.into_iter().map(|item| item.key).collect());
                Response::Deleted { revision: self.revision, count, previous: None }
            }
        }
    }

    fn remove(&mut self, keys: Vec<Bytes>) -> u64 {
        if !keys.is_empty() {
            self.revision += 1;
        }
        for key in &keys {
            self.versions.entry(key.clone()).or_default().push((self.revision, None));
        }
        keys.len() as u64
    }
}

fn holds(condition: &Condition, current: Option<&KeyValue>) -> bool {
    match condition {
        Condition::Always => true,
        Condition::Absent => current.is_none(),
        Condition::Value(value) => current.is_some_and(|current| current.value == *value),
        Condition::Revision(revision) => {
            current.is_some_and(|current| current.mod_revision == *revision)
        }
    }
}
