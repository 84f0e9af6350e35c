//! The dialling side: a [`Connector`] yields a byte stream for an address; on it the handshake is done
//! and a tarpc client placed.
//!
//! The connector is the seam for everything that is not plain TCP: in-process streams for tests and
//! for those who embed a node, a relay that cuts links, encryption.
//!
//! Limits set here: time to connect, time for the handshake, requests in flight, requests waiting in
//! front of the dispatch, bytes of a frame. tarpc sets neither nodelay nor useful limits by itself.

use std::{collections::BTreeMap, fmt, future::Future, io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use raft_core::NodeId;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::TcpStream,
    sync::{Mutex, mpsc},
    time::timeout,
};

use crate::{
    CLIENT_FRAME_BYTES, ClusterId, ForwardClient, FrameError, HandshakeError, Hello, KvClient,
    PeerClient, Purpose, Refusal, client_transport, handshake,
};

/// A byte stream in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for T {}

/// Any byte stream.
pub type Io = Box<dyn ByteStream>;

/// Yields a byte stream for an address.
pub trait Connector: fmt::Debug + Send + Sync + 'static {
    /// Connects to `address`. The caller sets the time limit by dropping the future.
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Io>>;
}

/// Connects over TCP, without Nagle's delay. Addresses are `host:port`; names are resolved at every call.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Io>> {
        let address = address.to_owned();
        Box::pin(async move { tcp_io(TcpStream::connect(address).await?) })
    }
}

/// A TCP stream, dialled or accepted, made ready: no delay of small writes.
///
/// # Errors
/// The socket's.
pub fn tcp_io(stream: TcpStream) -> io::Result<Io> {
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

/// Connects within the process: listeners register an address, diallers find it. Clones share the addresses.
#[derive(Clone, Debug, Default)]
pub struct InProcessConnector {
    listeners: Arc<Mutex<BTreeMap<String, mpsc::Sender<DuplexStream>>>>,
}

/// Receives the streams that were dialled to one in-process address.
#[derive(Debug)]
pub struct InProcessListener {
    streams: mpsc::Receiver<DuplexStream>,
}

/// Bytes under way in each direction of an in-process stream, like a socket's buffer.
const IN_PROCESS_BUFFER_BYTES: usize = 256 * 1024;
/// Streams that wait to be accepted, like a listener's backlog.
const IN_PROCESS_BACKLOG: usize = 128;

impl InProcessConnector {
    /// Listens on `address`, which is any text. A later listener of the same address takes its place.
    pub async fn listen(&self, address: &str) -> InProcessListener {
        let (sender, streams) = mpsc::channel(IN_PROCESS_BACKLOG);
        self.listeners.lock().await.insert(address.to_owned(), sender);
        InProcessListener { streams }
    }
}

impl Connector for InProcessConnector {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Io>> {
        let (listeners, address) = (Arc::clone(&self.listeners), address.to_owned());
        Box::pin(async move {
            let refused = || {
                io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens in this process")
            };
            let listener = listeners.lock().await.get(&address).cloned().ok_or_else(refused)?;
            let (ours, theirs) = tokio::io::duplex(IN_PROCESS_BUFFER_BYTES);
            listener.send(theirs).await.map_err(|_closed| refused())?;
            Ok(Box::new(ours) as Io)
        })
    }
}

impl InProcessListener {
    /// The next dialled stream; `None` once another listener took the address and all connectors are gone.
    pub async fn accept(&mut self) -> Option<Io> {
        self.streams.recv().await.map(|stream| Box::new(stream) as Io)
    }
}

/// Limits of a dialled connection.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Time for the transport to connect; the handshake has its own second.
    pub connect_timeout: Duration,
    /// Requests without an answer; more wait.
    pub in_flight_max: usize,
    /// Requests that wait in front of those; more make the caller wait.
    pub waiting_max: usize,
    /// The largest frame, in both directions, in bytes.
    pub max_frame_bytes: usize,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            in_flight_max: 256,
            waiting_max: 256,
            max_frame_bytes: CLIENT_FRAME_BYTES,
        }
    }
}

/// Why there is no connection. Nothing was sent but the handshake.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The transport did not connect.
    #[error("cannot connect to {address}: {source}")]
    Io {
        /// Where to.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The transport did not connect in time.
    #[error("cannot connect to {address}: no answer within {} ms", waited.as_millis())]
    Timeout {
        /// Where to.
        address: String,
        /// The time limit.
        waited: Duration,
    },
    /// The handshake failed, or one of the two sides refused.
    #[error("{address}: {source}")]
    Handshake {
        /// Where to.
        address: String,
        /// Why.
        source: HandshakeError,
    },
}

impl ConnectError {
    /// The refusal, if it is one.
    #[must_use]
    pub const fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Handshake { source: HandshakeError::Refused(refusal), .. } => Some(*refusal),
            Self::Handshake { source: HandshakeError::Version { found }, .. } => {
                Some(Refusal::Version { found: *found, supported: crate::PROTOCOL_VERSION })
            }
            Self::Handshake { .. } | Self::Io { .. } | Self::Timeout { .. } => None,
        }
    }
}

/// How a connection ended: `Ok` if one side closed it.
pub type Ended = Result<(), tarpc::ChannelError<FrameError>>;

/// A connection after its handshake.
pub struct Connection<C> {
    /// Makes calls, as long as `dispatch` is polled.
    pub client: C,
    /// Who answers.
    pub server: Hello,
    /// Moves the bytes; ends with the connection, or once all clones of `client` are gone and
    /// answered. Spawn it, or poll it beside the calls.
    pub dispatch: BoxFuture<'static, Ended>,
}

impl<C: fmt::Debug> fmt::Debug for Connection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Connects to the client port at `address`. A `cluster` is checked by both sides, `None` by none.
///
/// # Errors
/// Why there is no connection.
pub async fn connect_client(
    connector: &dyn Connector,
    address: &str,
    cluster: Option<ClusterId>,
    options: &ConnectOptions,
) -> Result<Connection<KvClient>, ConnectError> {
    let ours = Hello::of_client(cluster);
    let (io, server) = connect(connector, address, &ours, None, options).await?;
    let new = KvClient::new(config(options), client_transport(io, options.max_frame_bytes));
    Ok(Connection { client: new.client, server, dispatch: Box::pin(new.dispatch) })
}

/// Connects to the peer port of node `expected` at `address` for consensus messages.
///
/// # Errors
/// Why there is no connection.
pub async fn connect_raft(
    connector: &dyn Connector,
    address: &str,
    ours: &Hello,
    expected: NodeId,
    options: &ConnectOptions,
) -> Result<Connection<PeerClient>, ConnectError> {
    let ours = Hello { purpose: Purpose::Raft, ..ours.clone() };
    let (io, server) = connect(connector, address, &ours, Some(expected), options).await?;
    let new = PeerClient::new(config(options), client_transport(io, options.max_frame_bytes));
    Ok(Connection { client: new.client, server, dispatch: Box::pin(new.dispatch) })
}

/// Connects to the peer port of node `expected` at `address` to hand client writes over.
///
/// # Errors
/// Why there is no connection.
pub async fn connect_forward(
    connector: &dyn Connector,
    address: &str,
    ours: &Hello,
    expected: NodeId,
    options: &ConnectOptions,
) -> Result<Connection<ForwardClient>, ConnectError> {
    let ours = Hello { purpose: Purpose::Forward, ..ours.clone() };
    let (io, server) = connect(connector, address, &ours, Some(expected), options).await?;
    let new = ForwardClient::new(config(options), client_transport(io, options.max_frame_bytes));
    Ok(Connection { client: new.client, server, dispatch: Box::pin(new.dispatch) })
}

fn config(options: &ConnectOptions) -> tarpc::client::Config {
    let mut config = tarpc::client::Config::default();
    config.max_in_flight_requests = options.in_flight_max;
    config.pending_request_buffer = options.waiting_max;
    config
}

async fn connect(
    connector: &dyn Connector,
    address: &str,
    ours: &Hello,
    expected: Option<NodeId>,
    options: &ConnectOptions,
) -> Result<(Io, Hello), ConnectError> {
    let waited = options.connect_timeout;
    let mut io = within(waited, connector.connect(address))
        .await
        .ok_or_else(|| ConnectError::Timeout { address: address.to_owned(), waited })?
        .map_err(|source| ConnectError::Io { address: address.to_owned(), source })?;
    let failed = |source| ConnectError::Handshake { address: address.to_owned(), source };
    let server = handshake::dial(&mut io, ours).await.map_err(failed)?;
    server.check_answer(ours, expected).map_err(|refusal| failed(refusal.into()))?;
    Ok((io, server))
}

async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    timeout(limit, future).await.ok()
}
