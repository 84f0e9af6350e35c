//! A running node: the thin shell around the replica's machines. Owns threads, sockets, timers.
//!
//! ```text
//!  clients ──► kv service ──┐                     ┌──► log thread     append, sync
//!  peers   ──► peer service ┼─► inbox ─► consensus ┼──► apply thread   engine, answers
//!  followers ► forward ─────┘     thread          ├──► fetch thread   old entries
//!                                                 └──► links ──► peers
//!  network: a small tokio runtime; it never waits for a disk. Reads: a small pool of threads.
//! ```
//!
//! The end, asked for or after a failure, in this order:
//! 1. the listeners close, connections answer what they were asked (at most [`WIND_DOWN`]);
//! 2. consensus ends; whoever still waits is told that the outcome is unknown;
//! 3. log, apply and fetch finish what was handed to them; apply brings everything into tables;
//! 4. the readers end; all threads are waited for (at most [`THREADS_END`]);
//! 5. the runtime ends, and with it links and forwarders.
//!
//! Nothing here is global to the process: no signal handler, no logger, no panic hook; several nodes can
//! run in one process.

mod accept;
mod failure;
mod forward;
mod inbox;
mod kv_service;
mod peer_service;
mod reads;
mod roles;
mod shared;
mod status;
mod threads;
mod waiter;

use std::{
    collections::BTreeSet,
    fmt,
    hash::{BuildHasher as _, Hasher as _},
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

pub use failure::ServerFailure;
use futures::future::BoxFuture;
use lsm_store::{
    Executor,
    vfs::{RealVfs, Vfs},
};
use raft_core::{Membership, NodeId};
use raft_rpc::{
    ClusterId, Connector, Hello, InProcessConnector, Link, LinkOptions, LinkOwner, Port, Purpose,
    Refusal, StorageId, TcpConnector, client_frame_limit, peer_frame_limit,
};
use tokio::{runtime::Runtime, sync::watch, task::JoinHandle};

use crate::{
    config::ServerConfig,
    identity,
    limits::{KEY_BYTES_MAX, Limits},
    replica::{self, OpenError, PeerPins, ReplicaConfig, StartReport, StorageConfig},
    server::{
        accept::{Acceptor, Listener},
        failure::Lifecycle,
        forward::ForwardTask,
        inbox::{Inbox, Load},
        kv_service::{KvService, Router},
        reads::ReadGate,
        shared::{Clock, Contact, NO_LEADER, RefusedLog, Shared, Work},
        status::StatusSource,
        threads::{ConsensusThread, Downstream},
    },
};

/// How long connections may take to answer what they were asked when the node stops.
const WIND_DOWN: Duration = Duration::from_secs(2);
/// How long the threads are waited for; a disk that does not answer shall not keep the process for ever.
const THREADS_END: Duration = Duration::from_secs(10);
/// Bytes of clients' requests that wait for consensus.
const CLIENT_BYTES_MAX: usize = 64 << 20;
/// Batches and bytes of peers that wait for consensus: all windows of a few peers together.
const PEER_LOAD_MAX: Load = Load { items: 65_536, bytes: 64 << 20 };
/// Bytes of a write besides its key and values, rounded up.
const REQUEST_OVERHEAD_BYTES: usize = 256;
/// Longer than a round trip of a caller that writes without a pause, so that its next write brings the
/// commit index of this one; short for a reader of a follower's stale state.
const COMMIT_DELAY: Duration = Duration::from_millis(2);

/// Why a node does not start. Each is one line that says what to do; the program's exit code is 1.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be opened.
    #[error("cannot listen for {what} on {address}: {source}{hint}")]
    Listen {
        /// `clients` or `peers`.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The node is not in the list of members.
    #[error(
        "node {node} is not in the list of members: add it to --cluster, the same on every node"
    )]
    NotAMember {
        /// Which.
        node: NodeId,
    },
    /// The list of members makes no cluster.
    #[error(transparent)]
    Membership(#[from] raft_core::MembershipError),
    /// The data directory does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The system gives no threads.
    #[error("cannot start threads: {source}")]
    Threads {
        /// What the system said.
        source: io::Error,
    },
}

/// The two listening sockets of a node.
#[derive(Debug)]
pub struct Listeners {
    /// For clients.
    pub client: TcpListener,
    /// For peers.
    pub peer: TcpListener,
}

impl Listeners {
    /// Listens where `config` says, before anything else is touched: a port in use is found at once.
    ///
    /// # Errors
    /// [`StartError::Listen`].
    pub fn bind(config: &ServerConfig) -> Result<Self, StartError> {
        let bind = |what, address| {
            TcpListener::bind(address).map_err(|source| {
                let hint = if source.kind() == io::ErrorKind::AddrInUse {
                    "; stop what uses the port, or choose another"
                } else {
                    ""
                };
                StartError::Listen { what, address, source, hint }
            })
        };
        Ok(Self {
            client: bind("clients", config.listen_client)?,
            peer: bind("peers", config.listen_peer)?,
        })
    }
}

/// A running node. Dropping it ends it in order.
///
/// Starting, waiting, stopping and dropping block: not from within an asynchronous task.
pub struct Server {
    lifecycle: Arc<Lifecycle>,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    acceptors: Vec<JoinHandle<()>>,
    in_process: InProcessConnector,
    client_addr: SocketAddr,
    peer_addr: SocketAddr,
    report: StartReport,
}

/// Asks a [`Server`] to stop. Cheap to clone; may outlive it.
#[derive(Clone, Debug)]
pub struct StopHandle(Arc<Lifecycle>);

impl StopHandle {
    /// Asks. Returns at once; [`Server::wait`] returns when it is done.
    pub fn stop(&self) {
        self.0.stop();
    }
}

impl Server {
    /// Starts a node over TCP and the real file system.
    ///
    /// Blocks while the data directory opens: the log is read once and what is not in tables applied.
    ///
    /// # Errors
    /// [`StartError`]: every reason not to start, by name.
    pub fn start(config: &ServerConfig) -> Result<Self, StartError> {
        let listeners = Listeners::bind(config)?;
        Self::start_on(config, listeners, Arc::new(TcpConnector), Arc::new(RealVfs))
    }

    /// Starts a node on sockets that listen already, dialling peers through `connector` and keeping
    /// everything on `vfs`. For tests and for those who embed a node.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_on(
        config: &ServerConfig,
        listeners: Listeners,
        connector: Arc<dyn Connector>,
        vfs: Arc<dyn Vfs>,
    ) -> Result<Self, StartError> {
        if !config.initial_cluster.contains_key(&config.node_id) {
            return Err(StartError::NotAMember { node: config.node_id });
        }
        let (client_listener, client_addr) =
            prepare(listeners.client, "clients", config.listen_client)?;
        let (peer_listener, peer_addr) = prepare(listeners.peer, "peers", config.listen_peer)?;

        let clock = Clock::start();
        let replica_config = replica_config(config)?;
        let parts = replica::open(
            Arc::clone(&vfs),
            &config.data_dir,
            &replica_config,
            Executor::Threads,
            entropy(),
            clock.now(),
        )?;
        let lifecycle = Lifecycle::new();
        let (gate, read_jobs) = ReadGate::new(
            config.node_id.get(),
            replica_config.limits.waiting_reads_max,
            parts.state_reader.applied(),
        );
        let hello = Hello::of_node(
            config.node_id,
            ClusterId(parts.identity.cluster_id),
            parts.identity.generation,
            StorageId(parts.identity.storage_id),
            Purpose::Raft,
        );
        let first_status = parts.consensus.status();
        let peers: BTreeSet<NodeId> = first_status
            .membership
            .nodes()
            .keys()
            .copied()
            .filter(|id| *id != config.node_id)
            .collect();
        let client_limit = Load { items: config.limits.queue, bytes: CLIENT_BYTES_MAX };
        let (leadership, _receiver) = watch::channel(NO_LEADER);
        let shared = Arc::new(Shared {
            id: config.node_id,
            hello,
            peers,
            limits: replica_config.limits.clone(),
            inbox: Inbox::new(client_limit, PEER_LOAD_MAX),
            gate,
            leadership,
            contact: Contact::default(),
            clock,
            lifecycle: Arc::clone(&lifecycle),
            forwarded: AtomicU64::new(0),
            dropped_batches: AtomicU64::new(0),
            refused: RefusedLog::default(),
        });

        let largest_request =
            2 * config.limits.value_bytes + KEY_BYTES_MAX + REQUEST_OVERHEAD_BYTES;
        let client_frame_bytes = client_frame_limit(largest_request);
        let peer_frame_bytes = peer_frame_limit(largest_request.max(config.raft.append_bytes_max));

        let threads = |source| StartError::Threads { source };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.network_threads.max(1))
            .thread_name("kv-net")
            .enable_all()
            .build()
            .map_err(threads)?;
        let owner: Arc<dyn LinkOwner> =
            Arc::new(Owner { shared: Arc::clone(&shared), pins: parts.peer_pins.clone() });
        let mut links = Vec::new();
        let mut forwarders = Vec::new();
        for (peer, info) in first_status.membership.nodes() {
            if *peer == config.node_id {
                continue;
            }
            let (link, task) = Link::new(
                *peer,
                info.peer_addr.clone(),
                shared.hello(Purpose::Raft),
                Arc::clone(&connector),
                Arc::clone(&owner),
                LinkOptions::new(peer_frame_bytes),
                entropy(),
            );
            drop(runtime.spawn(task.run()));
            links.push((*peer, link));
            let (forwarder, task) = ForwardTask::new(
                Arc::clone(&shared),
                *peer,
                info.peer_addr.clone(),
                Arc::clone(&connector),
                peer_frame_bytes,
            );
            drop(runtime.spawn(task.run()));
            forwarders.push((*peer, forwarder));
        }

        // From here on, `Drop` ends what was started.
        let mut server = Self {
            lifecycle,
            shared: Arc::clone(&shared),
            runtime: Some(runtime),
            acceptors: Vec::new(),
            in_process: InProcessConnector::default(),
            client_addr,
            peer_addr,
            report: parts.report.clone(),
        };
        let (log, apply, fetch) = (
            Arc::new(Inbox::new(Load::NONE, Load::NONE)),
            Arc::new(Inbox::new(Load::NONE, Load::NONE)),
            Arc::new(Inbox::new(Load::NONE, Load::NONE)),
        );
        let downstream = Downstream {
            log: Arc::clone(&log),
            apply: Arc::clone(&apply),
            fetch: Arc::clone(&fetch),
            links: links.clone(),
        };
        let (log_writer, applier, log_reader) = (parts.log_writer, parts.applier, parts.log_reader);
        let state_reader = parts.state_reader;
        let spawn = |name, body: Box<dyn FnOnce(&Shared) + Send>| {
            let shared = Arc::clone(&shared);
            shared.lifecycle.clone().spawn(name, move || body(&shared)).map_err(threads)
        };
        spawn("kv-log", Box::new(move |shared| threads::run_log(shared, &log, log_writer)))?;
        spawn("kv-apply", Box::new(move |shared| threads::run_apply(shared, &apply, applier)))?;
        spawn("kv-fetch", Box::new(move |shared| threads::run_fetch(shared, &fetch, &log_reader)))?;
        for _ in 0..config.storage.reader_threads.max(1) {
            let (jobs, state) = (read_jobs.clone(), state_reader.clone());
            let body = move |shared: &Shared| {
                reads::run_reader(shared.node(), &jobs, &state, client_frame_bytes / 2);
            };
            spawn("kv-read", Box::new(body))?;
        }
        let consensus = ConsensusThread::new(Arc::clone(&shared), parts.consensus, downstream);
        spawn("kv-consensus", Box::new(move |_shared| consensus.run()))?;

        let router = Arc::new(Router::new(Arc::clone(&shared), forwarders));
        let status = Arc::new(StatusSource::new(Arc::clone(&shared), links.clone(), first_status));
        let acceptor = Arc::new(Acceptor {
            shared: Arc::clone(&shared),
            router: Arc::clone(&router),
            kv: KvService::new(router, status),
            pins: parts.peer_pins,
            links,
            client_frame_bytes,
            peer_frame_bytes,
            client_connections_max: config.limits.connections,
            requests_per_connection: config.limits.requests_per_connection,
        });
        server.accept_tcp(&acceptor, client_listener, Port::Client, config.listen_client)?;
        server.accept_tcp(&acceptor, peer_listener, Port::Peer, config.listen_peer)?;
        server.accept_in_process(&acceptor);
        let report = &server.report;
        tracing::info!(
            node = shared.node(),
            cluster = %ClusterId(parts.identity.cluster_id),
            clients = %client_addr,
            peers = %peer_addr,
            formatted = report.formatted,
            last_index = report.last.index.0,
            last_term = report.last.term.0,
            durable_index = report.durable.0,
            replayed = report.replayed,
            torn_tail = report.torn_tail,
            "started"
        );
        Ok(server)
    }

    fn accept_tcp(
        &mut self,
        acceptor: &Arc<Acceptor>,
        listener: TcpListener,
        port: Port,
        address: SocketAddr,
    ) -> Result<(), StartError> {
        let Some(runtime) = &self.runtime else { return Ok(()) };
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener)
        };
        let what = match port {
            Port::Client => "clients",
            Port::Peer => "peers",
        };
        let failed = |source| StartError::Listen { what, address, source, hint: "" };
        let listener = Listener::Tcp(listener.map_err(failed)?);
        self.acceptors.push(runtime.spawn(Arc::clone(acceptor).run(listener, port)));
        Ok(())
    }

    fn accept_in_process(&mut self, acceptor: &Arc<Acceptor>) {
        let Some(runtime) = &self.runtime else { return };
        let address = self.client_addr.to_string();
        let listener = Listener::InProcess(runtime.block_on(self.in_process.listen(&address)));
        self.acceptors.push(runtime.spawn(Arc::clone(acceptor).run(listener, Port::Client)));
    }

    /// Connects clients within the process, past the network: dial [`Server::client_addr`] with it.
    #[must_use]
    pub fn in_process(&self) -> Arc<dyn Connector> {
        Arc::new(self.in_process.clone())
    }

    /// Where clients connect; the port that the system chose, if it was asked to.
    #[must_use]
    pub const fn client_addr(&self) -> SocketAddr {
        self.client_addr
    }

    /// Where peers connect.
    #[must_use]
    pub const fn peer_addr(&self) -> SocketAddr {
        self.peer_addr
    }

    /// What the start found on disk.
    #[must_use]
    pub const fn report(&self) -> &StartReport {
        &self.report
    }

    /// Asks the node to stop, from anywhere.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(Arc::clone(&self.lifecycle))
    }

    /// Blocks until the node was asked to stop, or fails; then ends it in order.
    ///
    /// # Errors
    /// Why the node stopped by itself.
    pub fn wait(mut self) -> Result<(), ServerFailure> {
        self.lifecycle.wait_for_end();
        self.end();
        match self.lifecycle.failure() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Asks the node to stop, and waits until it has.
    ///
    /// # Errors
    /// Why the node had stopped by itself, or failed while stopping.
    pub fn stop(self) -> Result<(), ServerFailure> {
        self.lifecycle.stop();
        self.wait()
    }

    fn end(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        self.lifecycle.wind_down();
        let acceptors = std::mem::take(&mut self.acceptors);
        let wound_down = runtime.block_on(async {
            tokio::time::timeout(WIND_DOWN, futures::future::join_all(acceptors)).await.is_ok()
        });
        if !wound_down {
            tracing::warn!("some connections were cut: their requests took too long");
        }
        self.shared.inbox.push(Work::Stop);
        self.shared.gate.close();
        if !self.lifecycle.join(THREADS_END) {
            tracing::error!("some threads did not end in time; the disk may not answer");
        }
        runtime.shutdown_timeout(Duration::from_secs(1));
        tracing::info!(node = self.shared.node(), "stopped");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("node", &self.shared.id)
            .field("client_addr", &self.client_addr)
            .field("peer_addr", &self.peer_addr)
            .finish_non_exhaustive()
    }
}

/// The node's side of its links.
struct Owner {
    shared: Arc<Shared>,
    pins: PeerPins,
}

impl LinkOwner for Owner {
    fn admit<'a>(&'a self, answer: &'a Hello) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move {
            let Some(peer) = answer.node else { return Err(Refusal::UnknownNode { node: 0 }) };
            match accept::check_storage(&self.pins, peer, answer).await {
                Ok(admitted) => admitted,
                Err(error) => {
                    tracing::error!(peer = peer.get(), %error, "peer not admitted");
                    Err(Refusal::Stopping)
                }
            }
        })
    }

    fn broken(&self, peer: NodeId) {
        self.shared.inbox.push(Work::Unreachable(peer));
    }
}

fn prepare(
    listener: TcpListener,
    what: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { what, address, source, hint: "" };
    listener.set_nonblocking(true).map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((listener, local))
}

/// What the replica is told, from what the node was told.
fn replica_config(config: &ServerConfig) -> Result<ReplicaConfig, StartError> {
    let membership = Membership::of_voters(config.initial_cluster.clone())?;
    let raft = &config.raft;
    Ok(ReplicaConfig {
        node_id: config.node_id,
        cluster_id: identity::cluster_id(&membership),
        initial_membership: membership,
        raft: raft_core::Config {
            heartbeat: raft.heartbeat,
            election_min: raft.election,
            election_jitter: raft.election_jitter,
            persist_stall: raft.disk_stall,
            commit_delay: COMMIT_DELAY,
            max_append_bytes: raft.append_bytes_max,
            max_inflight_messages: raft.inflight_messages_max,
            max_inflight_bytes: raft.inflight_bytes_max,
            max_unapplied_bytes: raft.uncommitted_bytes_max,
            max_apply_bytes: raft.apply_bytes_max,
            max_waiting_reads: raft.waiting_reads_max,
            ..raft_core::Config::default()
        },
        limits: Limits {
            value_bytes_max: config.limits.value_bytes,
            waiting_proposals_max: config.limits.queue,
            waiting_reads_max: raft.waiting_reads_max,
            page_bytes_max: config.limits.page_bytes,
            ..Limits::default()
        },
        storage: StorageConfig {
            log_segment_bytes: config.storage.log_segment_bytes,
            memtable_bytes: config.storage.memtable_bytes,
            block_cache_bytes: config.storage.block_cache_bytes,
            flush_log_bytes: config.storage.flush_log_bytes,
            flush_idle: config.storage.flush_idle,
            ..StorageConfig::default()
        },
    })
}

/// A number nobody can guess: the standard library seeds its hash maps from the operating system.
fn entropy() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}
