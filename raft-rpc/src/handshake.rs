//! The handshake: one `Hello` each way before anything else, so that strangers are refused by name.
//!
//! ```text
//! hello     length u32 (at most 4,096) | magic 8 bytes | version u32 | purpose u8 | generation u64 |
//!           node id u64 | cluster id u128 | storage id u128 | refusal code u8 | found u128 | expected u128
//! ```
//!
//! Little-endian; 0 stands for "none" in ids; more bytes may follow and are ignored. Magic and version
//! keep their place for ever, the rest belongs to the version. The dialler speaks first; the answer is
//! the other side's own `Hello`, with a refusal in it if there is one, so that the dialler can say why.
//! Bytes that do not begin with the magic are not answered.
//!
//! Not here: whom a node admits (the server decides), what follows the handshake.

use std::{fmt, io, time::Duration};

use bytes::{Buf, BufMut as _};
use raft_core::NodeId;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::Io;

/// The version of everything after the handshake. It rises with every change of the wire.
pub const PROTOCOL_VERSION: u32 = 3;
/// The longest `Hello`, in bytes without its length.
pub const HELLO_BYTES_MAX: usize = 4096;
/// How long each side waits for the other's `Hello`.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

const MAGIC: [u8; 8] = *b"raft-kv\n";
/// Magic and version: what every version has in common.
const HEAD_BYTES: usize = 8 + 4;
/// A `Hello` of this version.
const HELLO_BYTES: usize = HEAD_BYTES + 1 + 8 + 8 + 16 + 16 + 1 + 16 + 16;

/// Names a cluster: a hash of its initial members.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterId(pub u128);

/// Names a data directory: drawn at random when it was formatted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StorageId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What a connection is for. The numbers never change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Purpose {
    /// Consensus messages, on a peer port.
    Raft = 1,
    /// Client writes on their way to the leader, on a peer port.
    Forward = 2,
    /// Reserved: state transfer, on a peer port.
    Snapshot = 3,
    /// Requests of clients, on a client port.
    Client = 4,
}

impl Purpose {
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Raft),
            2 => Some(Self::Forward),
            3 => Some(Self::Snapshot),
            4 => Some(Self::Client),
            _ => None,
        }
    }

    /// The port that takes connections of this purpose.
    #[must_use]
    pub const fn port(self) -> Port {
        match self {
            Self::Raft | Self::Forward | Self::Snapshot => Port::Peer,
            Self::Client => Port::Client,
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raft => "raft",
            Self::Forward => "forward",
            Self::Snapshot => "snapshot",
            Self::Client => "client",
        })
    }
}

/// The two listeners of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// For other nodes.
    Peer,
    /// For clients.
    Client,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "peer port",
            Self::Client => "client port",
        })
    }
}

/// Who speaks, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The speaker's protocol version; [`PROTOCOL_VERSION`] in ours.
    pub version: u32,
    /// What the connection is for; the answer repeats it.
    pub purpose: Purpose,
    /// The cluster's generation, 0 until it was ever rebuilt from a backup.
    pub generation: u64,
    /// The speaker; `None` for a client.
    pub node: Option<NodeId>,
    /// The speaker's cluster; a client need not name one.
    pub cluster: Option<ClusterId>,
    /// The speaker's storage; `None` for a client.
    pub storage: Option<StorageId>,
    /// In an answer: why there will be no connection.
    pub refusal: Option<Refusal>,
}

impl Hello {
    /// What a client says.
    #[must_use]
    pub const fn of_client(cluster: Option<ClusterId>) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            purpose: Purpose::Client,
            generation: 0,
            node: None,
            cluster,
            storage: None,
            refusal: None,
        }
    }

    /// What a node says.
    #[must_use]
    pub const fn of_node(
        node: NodeId,
        cluster: ClusterId,
        generation: u64,
        storage: StorageId,
        purpose: Purpose,
    ) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            purpose,
            generation,
            node: Some(node),
            cluster: Some(cluster),
            storage: Some(storage),
            refusal: None,
        }
    }

    /// Whether this `Hello`, received on `port` by a node that would say `ours`, may go on: purpose and
    /// port fit, cluster and generation agree, and the speaker does not carry the listener's own id.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn check_received(&self, ours: &Self, port: Port) -> Result<(), Refusal> {
        if self.purpose.port() != port || self.purpose == Purpose::Snapshot {
            return Err(Refusal::Purpose { port, purpose: self.purpose as u8 });
        }
        self.check_cluster(ours, port == Port::Client)?;
        match (port, self.node) {
            (Port::Client, _) => Ok(()),
            (Port::Peer, None) => Err(Refusal::UnknownNode { node: 0 }),
            (Port::Peer, Some(node)) if Some(node) == ours.node => {
                Err(Refusal::OwnId { node: node.get() })
            }
            (Port::Peer, Some(_)) => Ok(()),
        }
    }

    /// Whether this answer comes from the node meant: its cluster and generation agree with `ours`, and
    /// it is `expected`.
    ///
    /// # Errors
    /// What does not agree.
    pub fn check_answer(&self, ours: &Self, expected: Option<NodeId>) -> Result<(), Refusal> {
        self.check_cluster(ours, ours.purpose == Purpose::Client)?;
        match expected {
            Some(expected) if self.node != Some(expected) => Err(Refusal::WrongNode {
                found: self.node.map_or(0, NodeId::get),
                expected: expected.get(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    fn check_cluster(&self, ours: &Self, client: bool) -> Result<(), Refusal> {
        // A client may leave the cluster open; a node may not.
        let found = self.cluster.map_or(0, |cluster| cluster.0);
        let expected = ours.cluster.map_or(0, |cluster| cluster.0);
        if found != expected && !(client && (found == 0 || expected == 0)) {
            return Err(Refusal::Cluster { found, expected });
        }
        if !client && self.generation != ours.generation {
            return Err(Refusal::Generation { found: self.generation, expected: ours.generation });
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + HELLO_BYTES);
        #[expect(clippy::cast_possible_truncation, reason = "a constant below 4,096")]
        out.put_u32_le(HELLO_BYTES as u32);
        out.put_slice(&MAGIC);
        out.put_u32_le(self.version);
        out.put_u8(self.purpose as u8);
        out.put_u64_le(self.generation);
        out.put_u64_le(self.node.map_or(0, NodeId::get));
        out.put_u128_le(self.cluster.map_or(0, |cluster| cluster.0));
        out.put_u128_le(self.storage.map_or(0, |storage| storage.0));
        let (code, found, expected) = self.refusal.map_or((0, 0, 0), Refusal::numbers);
        out.put_u8(code);
        out.put_u128_le(found);
        out.put_u128_le(expected);
        out
    }

    fn decode(mut body: &[u8]) -> Result<Self, HandshakeError> {
        let length = body.len();
        if body.first_chunk() != Some(&MAGIC) {
            return Err(HandshakeError::NotThisProtocol {
                first: body.iter().take(8).copied().collect(),
            });
        }
        body.advance(MAGIC.len());
        let short = |_short| HandshakeError::Short { length };
        let version = body.try_get_u32_le().map_err(short)?;
        if version != PROTOCOL_VERSION {
            return Err(HandshakeError::Version { found: version });
        }
        let purpose = body.try_get_u8().map_err(short)?;
        let generation = body.try_get_u64_le().map_err(short)?;
        let node = body.try_get_u64_le().map_err(short)?;
        let cluster = body.try_get_u128_le().map_err(short)?;
        let storage = body.try_get_u128_le().map_err(short)?;
        let code = body.try_get_u8().map_err(short)?;
        let found = body.try_get_u128_le().map_err(short)?;
        let expected = body.try_get_u128_le().map_err(short)?;
        let purpose =
            Purpose::from_number(purpose).ok_or(HandshakeError::Purpose { found: purpose })?;
        Ok(Self {
            version,
            purpose,
            generation,
            node: NodeId::new(node),
            cluster: (cluster != 0).then_some(ClusterId(cluster)),
            storage: (storage != 0).then_some(StorageId(storage)),
            refusal: Refusal::from_numbers(code, found, expected),
        })
    }
}

/// Why a connection is refused. The codes on the wire never change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Another protocol version.
    #[error("speaks protocol version {found}, supported is {supported}")]
    Version {
        /// The dialler's.
        found: u32,
        /// The listener's.
        supported: u32,
    },
    /// The port does not take connections of this purpose.
    #[error(
        "the {port} takes no {} connections",
        Purpose::from_number(*purpose).map_or_else(|| format!("purpose {purpose}"), |known| known.to_string())
    )]
    Purpose {
        /// Which port answered.
        port: Port,
        /// What was asked for.
        purpose: u8,
    },
    /// Another cluster.
    #[error("belongs to cluster {}, expected {}", ClusterId(*found), ClusterId(*expected))]
    Cluster {
        /// The other side's; 0 if it named none.
        found: u128,
        /// Ours.
        expected: u128,
    },
    /// Another generation of the cluster: one of the two was rebuilt from a backup.
    #[error("belongs to generation {found} of the cluster, expected {expected}")]
    Generation {
        /// The other side's.
        found: u64,
        /// Ours.
        expected: u64,
    },
    /// The dialler is no member.
    #[error("node {node} is no member of this cluster")]
    UnknownNode {
        /// Who it says it is; 0 if it did not.
        node: u64,
    },
    /// The dialler has the listener's own id.
    #[error(
        "node {node} is this node's own id; two nodes were started with it, or it dials itself"
    )]
    OwnId {
        /// The id.
        node: u64,
    },
    /// The node was known with another data directory.
    #[error(
        "storage id is {}, known is {}; a node whose data was lost needs a new id",
        StorageId(*found), StorageId(*expected)
    )]
    Storage {
        /// The one it came with.
        found: u128,
        /// The one it is known by.
        expected: u128,
    },
    /// Another node answers at this address.
    #[error("node {found} answers, expected node {expected}")]
    WrongNode {
        /// Who answers.
        found: u64,
        /// Who was meant.
        expected: u64,
    },
    /// Too many connections.
    #[error("has {limit} connections already, the limit")]
    Busy {
        /// The limit.
        limit: u64,
    },
    /// The node is stopping.
    #[error("is shutting down")]
    Stopping,
    /// A reason that this version does not know.
    #[error("refused with code {code}, which this version does not know")]
    Unknown {
        /// The code.
        code: u8,
    },
}

impl Refusal {
    /// Code, found, expected.
    fn numbers(self) -> (u8, u128, u128) {
        match self {
            Self::Version { found, supported } => (1, found.into(), supported.into()),
            Self::Purpose { port: Port::Peer, purpose } => (2, purpose.into(), 1),
            Self::Purpose { port: Port::Client, purpose } => (2, purpose.into(), 2),
            Self::Cluster { found, expected } => (3, found, expected),
            Self::Generation { found, expected } => (4, found.into(), expected.into()),
            Self::UnknownNode { node } => (5, node.into(), 0),
            Self::OwnId { node } => (6, node.into(), 0),
            Self::Storage { found, expected } => (7, found, expected),
            Self::WrongNode { found, expected } => (8, found.into(), expected.into()),
            Self::Busy { limit } => (9, 0, limit.into()),
            Self::Stopping => (10, 0, 0),
            Self::Unknown { code } => (code, 0, 0),
        }
    }

    fn from_numbers(code: u8, found: u128, expected: u128) -> Option<Self> {
        let small = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        let version = |number: u128| u32::try_from(number).unwrap_or(u32::MAX);
        Some(match code {
            0 => return None,
            1 => Self::Version { found: version(found), supported: version(expected) },
            2 => Self::Purpose {
                port: if expected == 2 { Port::Client } else { Port::Peer },
                purpose: u8::try_from(found).unwrap_or(u8::MAX),
            },
            3 => Self::Cluster { found, expected },
            4 => Self::Generation { found: small(found), expected: small(expected) },
            5 => Self::UnknownNode { node: small(found) },
            6 => Self::OwnId { node: small(found) },
            7 => Self::Storage { found, expected },
            8 => Self::WrongNode { found: small(found), expected: small(expected) },
            9 => Self::Busy { limit: small(expected) },
            10 => Self::Stopping,
            code => Self::Unknown { code },
        })
    }
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed.
    #[error("handshake: {0}")]
    Io(#[from] io::Error),
    /// No `Hello` came in time.
    #[error("no handshake within {} ms", HELLO_TIMEOUT.as_millis())]
    Timeout,
    /// The other side closed the connection instead of answering.
    #[error("the connection was closed before the handshake was answered")]
    Closed,
    /// The bytes are not a `Hello`: the announced length is beyond any.
    #[error(
        "not this protocol: the first bytes announce a handshake of {length} bytes, limit is {HELLO_BYTES_MAX}"
    )]
    TooLong {
        /// The announced length.
        length: usize,
    },
    /// The bytes are not a `Hello`.
    #[error("not this protocol: a handshake begins with {first:02x?}")]
    NotThisProtocol {
        /// Its first bytes, at most 8.
        first: Vec<u8>,
    },
    /// The `Hello` ends too early.
    #[error("a handshake of {length} bytes is too short")]
    Short {
        /// Its length.
        length: usize,
    },
    /// The other side speaks another version.
    #[error("speaks protocol version {found}, supported is {PROTOCOL_VERSION}")]
    Version {
        /// The other side's version.
        found: u32,
    },
    /// The purpose is none.
    #[error("connection purpose {found} is unknown")]
    Purpose {
        /// Its number.
        found: u8,
    },
    /// Refused, by us or by the other side.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Says `ours` and waits for the answer. A refusal in it is an error.
///
/// # Errors
/// Why there is no connection.
pub async fn dial(io: &mut Io, ours: &Hello) -> Result<Hello, HandshakeError> {
    let exchange = async {
        io.write_all(&ours.encode()).await?;
        io.flush().await?;
        read(io).await
    };
    let answer =
        timeout(HELLO_TIMEOUT, exchange).await.map_err(|_late| HandshakeError::Timeout)??;
    match answer.refusal {
        Some(refusal) => Err(refusal.into()),
        None => Ok(answer),
    }
}

/// Waits for the dialler's `Hello`. If it speaks another version or has a purpose that no port of this
/// version takes, it is answered with the refusal by that name before this returns.
///
/// # Errors
/// Why there is no connection; the caller closes it.
pub async fn receive(io: &mut Io, ours: &Hello, port: Port) -> Result<Hello, HandshakeError> {
    let received =
        timeout(HELLO_TIMEOUT, read(io)).await.map_err(|_late| HandshakeError::Timeout)?;
    let refusal = match &received {
        Err(HandshakeError::Version { found }) => {
            Refusal::Version { found: *found, supported: PROTOCOL_VERSION }
        }
        Err(HandshakeError::Purpose { found }) => Refusal::Purpose { port, purpose: *found },
        Ok(_)
        | Err(
            HandshakeError::Io(_)
            | HandshakeError::Timeout
            | HandshakeError::Closed
            | HandshakeError::TooLong { .. }
            | HandshakeError::NotThisProtocol { .. }
            | HandshakeError::Short { .. }
            | HandshakeError::Refused(_),
        ) => return received,
    };
    answer(io, &Hello { refusal: Some(refusal), ..ours.clone() }).await?;
    received
}

/// Answers the dialler with `ours`, which may hold a refusal.
///
/// # Errors
/// The socket's.
pub async fn answer(io: &mut Io, ours: &Hello) -> Result<(), HandshakeError> {
    let write = async {
        io.write_all(&ours.encode()).await?;
        io.flush().await
    };
    timeout(HELLO_TIMEOUT, write).await.map_err(|_late| HandshakeError::Timeout)??;
    Ok(())
}

async fn read(io: &mut Io) -> Result<Hello, HandshakeError> {
    let closed = |error: io::Error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            HandshakeError::Closed
        } else {
            HandshakeError::Io(error)
        }
    };
    let length = io.read_u32_le().await.map_err(closed)? as usize;
    if length > HELLO_BYTES_MAX {
        return Err(HandshakeError::TooLong { length });
    }
    // At most 4 KiB: the one length that memory is taken for before its bytes arrive.
    let mut body = vec![0; length];
    io.read_exact(&mut body).await.map_err(closed)?;
    Hello::decode(&body)
}
