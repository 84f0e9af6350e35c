//! What the nodes and the clients of the store say to each other, and how the bytes travel.
//!
//! * [`kv`](Kv) and [`peer`](Peer): the services and their wire types.
//! * `codec`: frames; the only place that turns messages into bytes.
//! * `handshake`: the one `Hello` each way that begins every connection.
//! * `transport`: [`Connector`] and the dialling side of a connection.
//! * [`serve`]: the request loop of the answering side.
//! * [`Link`]: one reconnecting connection per peer.
//!
//! `PROTOCOL.md` beside this crate describes the bytes. Nothing here knows what a request means.

#![deny(clippy::indexing_slicing)]

mod codec;
mod error;
pub mod handshake;
mod kv;
mod link;
mod peer;
mod serve;
mod transport;

pub use codec::*;
pub use error::*;
pub use handshake::{
    ClusterId, HELLO_BYTES_MAX, HELLO_TIMEOUT, HandshakeError, Hello, PROTOCOL_VERSION, Port,
    Purpose, Refusal, StorageId,
};
pub use kv::*;
pub use link::*;
pub use peer::*;
pub use raft_core::NodeId;
pub use serve::serve;
pub use transport::*;
