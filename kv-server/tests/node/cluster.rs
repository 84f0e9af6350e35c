//! Whole nodes in one process, over loopback and real directories.
//!
//! Ports are chosen by the system before the nodes start, so that tests run beside each other. Nothing
//! sleeps: waiting means asking again until a deadline.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kv_server::{Listeners, Server, config::ServerConfig};
use lsm_store::vfs::{RealVfs, Vfs};
use raft_core::{NodeId, NodeInfo};
use raft_rpc::{
    Condition, ConnectOptions, Connection, Connector, Consistency, GetRequest, KvClient,
    NodeStatus, Request, Response, TcpConnector, TimedRequest, WireError, WriteOperation,
    WriteRequest, connect_client, context_for,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub(crate) type Outcome = Result<Response, WireError>;

/// Longer than anything here takes, so that a machine under load fails nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Whatever the node has.
pub(crate) const STALE: Consistency = Consistency::Stale { max_age_ms: None };

/// Nodes of one cluster, and a runtime for their clients.
pub(crate) struct Cluster {
    nodes: BTreeMap<u64, Server>,
    pub(crate) addresses: BTreeMap<u64, (SocketAddr, SocketAddr)>,
    adjust: fn(&mut ServerConfig),
    vfs: Arc<dyn Vfs>,
    pub(crate) runtime: Runtime,
    dir: TempDir,
}

impl Cluster {
    pub(crate) fn start(size: u64) -> Self {
        Self::start_with(size, |_config| {})
    }

    pub(crate) fn start_with(size: u64, adjust: fn(&mut ServerConfig)) -> Self {
        Self::start_on(size, Arc::new(RealVfs), adjust)
    }

    pub(crate) fn start_on(size: u64, vfs: Arc<dyn Vfs>, adjust: fn(&mut ServerConfig)) -> Self {
        let dir = TempDir::new().expect("a directory");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let bind = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let sockets: BTreeMap<u64, Listeners> =
            (1..=size).map(|id| (id, Listeners { client: bind(), peer: bind() })).collect();
        let addresses = sockets
            .iter()
            .map(|(id, sockets)| {
                let client = sockets.client.local_addr().expect("bound");
                (*id, (client, sockets.peer.local_addr().expect("bound")))
            })
            .collect();
        let mut cluster = Self { nodes: BTreeMap::new(), addresses, adjust, vfs, runtime, dir };
        for (id, sockets) in sockets {
            cluster.start_node(id, sockets);
        }
        cluster
    }

    fn config(&self, id: u64) -> ServerConfig {
        let members = self.addresses.iter().map(|(id, (client, peer))| {
            let info = NodeInfo {
                peer_addr: peer.to_string(),
                client_addr: client.to_string(),
                storage_id: None,
            };
            (node(*id), info)
        });
        let (client, peer) = self.addresses[&id];
        let data_dir = self.dir.path().join(format!("node-{id:02}"));
        let mut config = ServerConfig::new(node(id), data_dir, client, peer, members.collect());
        (self.adjust)(&mut config);
        config
    }

    fn start_node(&mut self, id: u64, sockets: Listeners) {
        let config = self.config(id);
        let server =
            Server::start_on(&config, sockets, Arc::new(TcpConnector), Arc::clone(&self.vfs));
        self.nodes.insert(id, server.expect("the node starts"));
    }

    pub(crate) fn restart(&mut self, id: u64) {
        let sockets = Listeners::bind(&self.config(id)).expect("the ports are free again");
        self.start_node(id, sockets);
    }

    /// The node itself, which the cluster then forgets.
    pub(crate) fn take(&mut self, id: u64) -> Server {
        self.nodes.remove(&id).expect("it runs")
    }

    pub(crate) fn stop(&mut self, id: u64) {
        self.take(id).stop().expect("it stops in order");
    }

    pub(crate) fn client(&self, id: u64) -> KvClient {
        self.client_through(&TcpConnector, id)
    }

    pub(crate) fn client_through(&self, connector: &dyn Connector, id: u64) -> KvClient {
        let address = self.addresses[&id].0.to_string();
        self.runtime.block_on(async {
            let options = ConnectOptions { connect_timeout: PATIENCE, ..ConnectOptions::default() };
            let connected = connect_client(connector, &address, None, &options).await;
            let Connection { client, dispatch, .. } = connected.expect("the node answers");
            drop(tokio::spawn(dispatch));
            client
        })
    }

    /// Sends one call; every request in it has `timeout`.
    pub(crate) fn batch(
        &self,
        client: &KvClient,
        requests: Vec<Request>,
        timeout: Duration,
    ) -> Vec<Outcome> {
        let timeout_ms = u32::try_from(timeout.as_millis()).expect("short");
        let batch =
            requests.into_iter().map(|request| TimedRequest { timeout_ms, request }).collect();
        self.runtime
            .block_on(client.execute(context_for(timeout + PATIENCE), batch))
            .expect("the connection stands")
    }

    pub(crate) fn one(&self, client: &KvClient, request: Request) -> Outcome {
        let mut answers = self.batch(client, vec![request], PATIENCE);
        assert_eq!(answers.len(), 1, "one answer to one request");
        answers.remove(0)
    }

    pub(crate) fn status(&self, client: &KvClient) -> NodeStatus {
        self.runtime.block_on(client.status(context_for(PATIENCE))).expect("the connection stands")
    }

    /// The leader that `id` knows of, once it knows one that is not `not`.
    pub(crate) fn leader(&self, id: u64, not: Option<u64>) -> u64 {
        let client = self.client(id);
        let mut found = None;
        until("a leader", || {
            found = self.status(&client).leader.filter(|leader| Some(*leader) != not);
            found.is_some()
        });
        found.expect("found")
    }
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

pub(crate) fn node(id: u64) -> NodeId {
    NodeId::new(id).expect("not zero")
}

pub(crate) fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Request {
    Request::Write(WriteRequest {
        tag: None,
        operation: WriteOperation::Put {
            key: key.into(),
            value: value.into(),
            condition: Condition::Always,
            return_previous: false,
        },
    })
}

pub(crate) fn get(key: &'static str, consistency: Consistency) -> Request {
    Request::Get(GetRequest { key: key.into(), revision: None, consistency })
}

/// The revision of a write that was done.
pub(crate) fn revision(outcome: Outcome) -> u64 {
    let Ok(Response::Written { revision, .. }) = outcome else {
        unreachable!("expected a revision: {outcome:?}")
    };
    revision
}

/// What a read found.
pub(crate) fn value(outcome: Outcome) -> Option<Bytes> {
    let Ok(Response::Value { found, .. }) = outcome else {
        unreachable!("expected a value: {outcome:?}")
    };
    found.map(|found| found.value)
}
