//! The typed async client of the store.
//!
//! ```no_run
//! use kv_client::{Client, Conditional, prefix};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> kv_client::Result<()> {
//! let kv = Client::connect(["127.0.0.1:3331", "127.0.0.1:3332", "127.0.0.1:3333"]).await?;
//!
//! kv.put("city/NL/Delft", "103163").await?;
//! let found = kv.get("city/NL/Delft").await?.expect("just written");
//!
//! // A condition that does not hold is an answer, not an error.
//! match kv.put("city/NL/Delft", "103164").if_revision(found.mod_revision).await? {
//!     Conditional::Applied(written) => println!("written at {}", written.revision),
//!     Conditional::Refused { current, .. } => println!("somebody was faster: {current:?}"),
//! }
//!
//! let page = kv.range(prefix("city/NL/")).limit(100).keys_only().await?;
//! println!("{} keys at revision {}", page.items.len(), page.revision);
//! # Ok(())
//! # }
//! ```
//!
//! * [`Client`] is what a program holds; [`operation`] has what its methods return: values that
//!   are configured and then awaited.
//! * Every call has one deadline over all its attempts; within it the client finds the leader,
//!   follows hints, reconnects and repeats. A write takes effect once, however often it is sent.
//! * [`Error`] says what happened, whether the call took effect, and what to do now.
//! * All futures are `Send`. Dropping a read is free. Dropping a write after it was polled leaves
//!   its effect unknown.
//!
//! In reading order: `client`, `operation`, `retry` (the attempts of a call), `directory` (who
//! leads), `connection` with `job` and `batch` (batches on the wire), `session` (once, not twice), `cluster` (status).

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

mod backoff;
mod batch;
mod builder;
mod client;
mod cluster;
mod connection;
mod consistency;
mod directory;
mod error;
mod job;
mod keys;
#[cfg(feature = "cli")]
pub mod kvctl;
pub mod operation;
mod retry;
mod session;

pub use builder::{ClientBuilder, DEFAULT_TIMEOUT};
pub use client::Client;
pub use cluster::{Cluster, ClusterStatus, NodeReport};
pub use consistency::Consistency;
pub use error::{Effect, Error, ErrorKind, Result};
pub use keys::{IntoBytes, KEY_BYTES_MAX, VALUE_BYTES_MAX, all, between, prefix, starting_at};
pub use operation::{Conditional, Counted, Cursor, Deleted, Page, ReadAt, Written};
pub use raft_rpc::{
    Connector, KeyRange, KeyValue, MemberStatus, NodeStatus, PeerStatus, Role, StorageState,
    TcpConnector,
};
