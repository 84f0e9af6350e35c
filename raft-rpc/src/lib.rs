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
//!
//! ```
//! use raft_rpc::*;
//! use tarpc::context::Context;
//!
//! #[derive(Clone)]
//! struct Printer;
//!
//! impl Peer for Printer {
//!     async fn deliver(self, _: Context, batch: Vec<raft_core::Envelope>) {
//!         println!("{} messages", batch.len());
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let (one, two) = (raft_core::NodeId::new(1).unwrap(), raft_core::NodeId::new(2).unwrap());
//! let hello = |node| Hello::of_node(node, ClusterId(7), 0, StorageId(node.get().into()), Purpose::Raft);
//! let network = InProcessConnector::default();
//! let mut listener = network.listen("two").await;
//!
//! // Node 2 answers one connection.
//! tokio::spawn(async move {
//!     let mut io = listener.accept().await.unwrap();
//!     let theirs = handshake::receive(&mut io, &hello(two), Port::Peer).await.unwrap();
//!     theirs.check_received(&hello(two), Port::Peer).unwrap();
//!     handshake::answer(&mut io, &hello(two)).await.unwrap();
//!     let transport = server_transport(io, PEER_FRAME_BYTES);
//!     serve(transport, Printer.serve(), 64, |_| None, std::future::pending()).await.unwrap();
//! });
//!
//! // Node 1 dials it and hands a batch over.
//! let options = ConnectOptions::default();
//! let connection = connect_raft(&network, "two", &hello(one), two, &options).await.unwrap();
//! tokio::spawn(connection.dispatch);
//! let context = context_for(std::time::Duration::from_secs(1));
//! connection.client.deliver(context, Vec::new()).await.unwrap();
//! # });
//! ```

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
pub use serve::{AnswerDelay, DELIVER_ANSWER_DELAY, serve, serve_with_delay};
pub use transport::*;
