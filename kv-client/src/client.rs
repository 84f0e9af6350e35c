//! The client: what a program holds, clones and calls. Start reading here.
//!
//! It owns no task itself; each connection has one (`connection`), and a call runs in its caller's
//! own future (`retry`). When the last clone is gone the connections end.

use std::sync::Arc;
use std::time::Duration;

use raft_rpc::{KeyRange, Request, Response, WriteOperation};

use crate::builder::ClientBuilder;
use crate::cluster::Cluster;
use crate::consistency::{Consistency, SeenRevision};
use crate::directory::Directory;
use crate::error::Result;
use crate::keys::IntoBytes;
use crate::operation::{Count, DeleteTarget, Get, Put, Range};
use crate::retry::{self, Deadline};
use crate::session::Sessions;

/// A connection to the store, shared by its clones: cheap to clone, every method takes `&self`.
///
/// Calls made at the same time, from however many tasks, share connections and travel in batches.
/// Writes are applied once, whatever is lost on the way: the client repeats them with the same tag
/// until the store has said what became of them, or the call's deadline has passed.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: Arc<Directory>,
    sessions: Arc<Sessions>,
    seen: SeenRevision,
    settings: Settings,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) timeout: Duration,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) consistency: Consistency,
}

impl Inner {
    fn deadline(&self, timeout: Option<Duration>) -> Deadline {
        Deadline::after(timeout.unwrap_or(self.settings.timeout), self.settings.attempt_timeout)
    }
}

impl Client {
    /// Makes a client with the default settings and waits until one of the endpoints answers.
    /// Endpoints are client addresses of nodes, as `host:port`.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`].
    pub async fn connect<I>(endpoints: I) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self::builder().endpoints(endpoints).connect().await
    }

    /// Configures a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    pub(crate) fn new(directory: Arc<Directory>, settings: Settings) -> Self {
        let sessions = Sessions::new();
        Self {
            inner: Arc::new(Inner { directory, sessions, seen: SeenRevision::default(), settings }),
        }
    }

    /// Stores `value` under `key`. A key has 1 to 4,096 bytes, a value up to the nodes' limit,
    /// 1 MiB unless configured.
    pub fn put(&self, key: impl IntoBytes, value: impl IntoBytes) -> Put {
        Put::new(self.clone(), key.into_bytes(), value.into_bytes())
    }

    /// Reads what `key` holds.
    pub fn get(&self, key: impl IntoBytes) -> Get {
        Get::new(self.clone(), key.into_bytes())
    }

    /// Removes a key, or every key of a range, such as [`prefix("tmp/")`](crate::prefix).
    pub fn delete<T: DeleteTarget>(&self, target: T) -> T::Operation {
        target.delete_with(self.clone())
    }

    /// Reads the keys of a range, in bytewise order.
    pub fn range(&self, range: KeyRange) -> Range {
        Range::new(self.clone(), range)
    }

    /// Counts the keys of a range.
    pub fn count(&self, range: KeyRange) -> Count {
        Count::new(self.clone(), range)
    }

    /// The cluster itself: who is there, who leads.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        Cluster::new(self.clone())
    }

    pub(crate) async fn write(
        &self,
        operation: WriteOperation,
        timeout: Option<Duration>,
    ) -> Result<Response> {
        let inner = &*self.inner;
        let deadline = inner.deadline(timeout);
        let response = retry::write(&inner.directory, &inner.sessions, operation, deadline).await?;
        inner.seen.observe(revision_of(&response));
        Ok(response)
    }

    pub(crate) async fn read(
        &self,
        request: Request,
        timeout: Option<Duration>,
    ) -> Result<Response> {
        let inner = &*self.inner;
        let deadline = inner.deadline(timeout);
        let response = retry::read(&inner.directory, request, deadline).await?;
        inner.seen.observe(revision_of(&response));
        Ok(response)
    }

    /// # Errors
    /// None of the endpoints answered within the timeout.
    pub(crate) async fn wait_for_any_endpoint(&self) -> Result<()> {
        self.cluster().wait_for_any(self.inner.settings.timeout).await
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.inner.directory
    }

    pub(crate) fn has_one_endpoint(&self) -> bool {
        self.inner.directory.len() == 1
    }

    pub(crate) fn default_timeout(&self) -> Duration {
        self.inner.settings.timeout
    }

    pub(crate) fn default_consistency(&self) -> Consistency {
        self.inner.settings.consistency
    }

    /// The wire form of a read's consistency.
    pub(crate) fn resolve(&self, consistency: Option<Consistency>) -> raft_rpc::Consistency {
        self.inner.seen.resolve(consistency.unwrap_or(self.inner.settings.consistency))
    }
}

/// The revision an answer carries.
fn revision_of(response: &Response) -> u64 {
    match response {
        Response::Session { .. } => 0,
        Response::Written { revision, .. }
        | Response::Deleted { revision, .. }
        | Response::Refused { revision, .. }
        | Response::Value { revision, .. }
        | Response::Page { revision, .. }
        | Response::Count { revision, .. } => *revision,
    }
}
