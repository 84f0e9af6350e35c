//! The two listeners: accept, handshake, serve. Whoever is refused learns why, and the log says it once.

use std::{io, sync::Arc, time::Duration};

use raft_core::NodeId;
use raft_rpc::{
    DELIVER_ANSWER_DELAY, Forward as _, FrameError, HandshakeError, Hello, InProcessListener, Io,
    Kv as _, Link, Peer as _, Port, Purpose, Refusal, handshake, serve, serve_with_delay,
    server_transport, tcp_io,
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

use crate::{
    replica::{PeerPins, PeerRefused},
    server::{
        kv_service::{self, KvService, Router},
        peer_service::{ForwardService, PeerService, overloaded_forward, overloaded_peer},
        shared::Shared,
    },
};

/// Connections on the peer port at once: a few per peer and a reserve for strangers being refused.
const PEER_CONNECTIONS_MAX: usize = 1_024;
/// Batches of one peer between two looks at the connection. `deliver` never waits, so this is never reached.
const DELIVERIES_MAX: usize = 1_024;
/// The pause after the system refused to accept, for want of file descriptors most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from.
pub(crate) enum Listener {
    /// The network.
    Tcp(TcpListener),
    /// This process.
    InProcess(InProcessListener),
}

impl Listener {
    /// The next connection, and who made it.
    async fn accept(&mut self) -> io::Result<(Io, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                Ok((tcp_io(stream)?, from.ip().to_string()))
            }
            Self::InProcess(listener) => match listener.accept().await {
                Some(io) => Ok((io, "this process".to_owned())),
                None => std::future::pending().await,
            },
        }
    }
}

/// Everything a connection needs.
pub(crate) struct Acceptor {
    pub shared: Arc<Shared>,
    pub router: Arc<Router>,
    pub kv: KvService,
    pub pins: PeerPins,
    pub links: Vec<(NodeId, Link)>,
    pub client_frame_bytes: usize,
    pub peer_frame_bytes: usize,
    pub client_connections_max: usize,
    pub requests_per_connection: usize,
}

impl Acceptor {
    /// Accepts on `listener` until the node winds down, then waits until every connection has answered
    /// what it was asked.
    pub(crate) async fn run(self: Arc<Self>, mut listener: Listener, port: Port) {
        let limit = match port {
            Port::Client => self.client_connections_max,
            Port::Peer => PEER_CONNECTIONS_MAX,
        };
        let places = Arc::new(Semaphore::new(limit));
        let mut connections = JoinSet::new();
        let mut pausing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shared.lifecycle.winding_down() => break,
                Some(_ended) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((io, from)) => {
                    pausing = false;
                    let place = Arc::clone(&places).try_acquire_owned().ok();
                    let this = Arc::clone(&self);
                    connections.spawn(async move {
                        let full = place.is_none().then_some(Refusal::Busy { limit: limit as u64 });
                        if let Err(error) = this.connection(io, port, full).await {
                            this.log_refused(&from, port, &error);
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    if !pausing {
                        tracing::error!(%port, %error, "cannot accept connections; trying again");
                    }
                    pausing = true;
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn connection(
        &self,
        mut io: Io,
        port: Port,
        full: Option<Refusal>,
    ) -> Result<(), ConnectionError> {
        let ours = self.shared.hello(match port {
            Port::Client => Purpose::Client,
            Port::Peer => Purpose::Raft,
        });
        let theirs = handshake::receive(&mut io, &ours, port).await?;
        let refusal = match full {
            Some(full) => Some(full),
            None => self.admit(&theirs, &ours, port).await?.err(),
        };
        let answer = Hello { purpose: theirs.purpose, refusal, ..ours };
        handshake::answer(&mut io, &answer).await?;
        if let Some(refusal) = refusal {
            return Err(HandshakeError::Refused(refusal).into());
        }
        self.serve(io, &theirs).await?;
        Ok(())
    }

    /// Whether the one who says `theirs` may come in.
    async fn admit(
        &self,
        theirs: &Hello,
        ours: &Hello,
        port: Port,
    ) -> Result<Result<(), Refusal>, ConnectionError> {
        if let Err(refusal) = theirs.check_received(ours, port) {
            return Ok(Err(refusal));
        }
        match (port, theirs.node) {
            (Port::Peer, Some(node)) if self.shared.peers.contains(&node) => {
                check_storage(&self.pins, node, theirs).await
            }
            (Port::Peer, node) => {
                Ok(Err(Refusal::UnknownNode { node: node.map_or(0, NodeId::get) }))
            }
            (Port::Client, _) => Ok(Ok(())),
        }
    }

    async fn serve(&self, io: Io, theirs: &Hello) -> Result<(), FrameError> {
        let stop = self.shared.lifecycle.winding_down();
        let node = self.shared.node();
        match (theirs.purpose, theirs.node) {
            (Purpose::Client, _) => {
                let transport = server_transport(io, self.client_frame_bytes);
                let overloaded = |request: &_| kv_service::overloaded(node, request);
                let limit = self.requests_per_connection;
                serve(transport, self.kv.clone().serve(), limit, overloaded, stop).await
            }
            (Purpose::Raft, Some(from)) => {
                // The peer lives: a link that waits to redial it need not wait.
                for (_peer, link) in self.links.iter().filter(|(peer, _link)| *peer == from) {
                    link.nudge();
                }
                let transport = server_transport(io, self.peer_frame_bytes);
                let service = PeerService::new(Arc::clone(&self.shared), from);
                let delay = Some(DELIVER_ANSWER_DELAY);
                serve_with_delay(
                    transport,
                    service.serve(),
                    DELIVERIES_MAX,
                    overloaded_peer,
                    delay,
                    stop,
                )
                .await
            }
            (Purpose::Forward, Some(_from)) => {
                let transport = server_transport(io, self.peer_frame_bytes);
                let service = ForwardService::new(Arc::clone(&self.router), node);
                let overloaded = |request: &_| overloaded_forward(node, request);
                let limit = self.requests_per_connection;
                serve(transport, service.serve(), limit, overloaded, stop).await
            }
            // Refused by `check_received`.
            (Purpose::Raft | Purpose::Forward, None) | (Purpose::Snapshot, _) => Ok(()),
        }
    }

    fn log_refused(&self, from: &str, port: Port, error: &ConnectionError) {
        let reason = error.to_string();
        let Some(kind) = error.kind(&reason) else {
            tracing::debug!(from, %port, %reason, "connection ended");
            return;
        };
        if self.shared.refused.is_new(from, &format!("{port} {kind}")) {
            let refused = self.shared.refused.count();
            tracing::warn!(from, %port, %reason, refused, "connection refused or broken off");
        }
    }
}

/// Whether the storage of `node` is the one pinned. The first time this writes and syncs a small file, so
/// it runs where blocking is allowed.
///
/// # Errors
/// [`ConnectionError::Pins`] if the pin cannot be stored.
pub(crate) async fn check_storage(
    pins: &PeerPins,
    node: NodeId,
    theirs: &Hello,
) -> Result<Result<(), Refusal>, ConnectionError> {
    let shown = theirs.storage.map_or(0, |storage| storage.0);
    let pins = pins.clone();
    let checked = tokio::task::spawn_blocking(move || pins.check_peer(node, shown)).await;
    match checked {
        Ok(Ok(())) => Ok(Ok(())),
        Ok(Err(PeerRefused::OtherStorage { shown, pinned, .. })) => {
            Ok(Err(Refusal::Storage { found: shown, expected: pinned }))
        }
        Ok(Err(error @ PeerRefused::File(_))) => Err(ConnectionError::Pins(error)),
        Err(_panicked_or_stopping) => Ok(Err(Refusal::Stopping)),
    }
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the storage id of a peer cannot be kept: {0}")]
    Pins(PeerRefused),
}

impl ConnectionError {
    /// What is the same for all errors that shall be one line in the log; `None` for what happens every
    /// day: the other side went away.
    fn kind<'a>(&self, reason: &'a str) -> Option<&'a str> {
        match self {
            Self::Socket(_)
            | Self::Frame(FrameError::Io(_))
            | Self::Handshake(HandshakeError::Io(_)) => None,
            Self::Frame(FrameError::TooLong { .. })
            | Self::Handshake(HandshakeError::TooLong { .. }) => Some("too long"),
            Self::Frame(FrameError::Malformed { .. })
            | Self::Handshake(HandshakeError::NotThisProtocol { .. }) => Some("malformed"),
            Self::Frame(FrameError::DoesNotFit { .. })
            | Self::Handshake(
                HandshakeError::Timeout
                | HandshakeError::Closed
                | HandshakeError::Short { .. }
                | HandshakeError::Version { .. }
                | HandshakeError::Purpose { .. }
                | HandshakeError::Refused(_),
            )
            | Self::Pins(_) => Some(reason),
        }
    }
}
