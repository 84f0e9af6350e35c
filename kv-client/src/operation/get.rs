//! Reading one key.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use raft_rpc::{GetRequest, KeyValue, Request, Response};

use super::mismatch;
use crate::client::Client;
use crate::consistency::Consistency;
use crate::error::{Effect, Result};
use crate::keys::check_key;

/// Reads one key when awaited. Made by [`Client::get`]; may be dropped at any time.
#[must_use = "nothing is read before it is awaited"]
#[derive(Clone, Debug)]
pub struct Get {
    client: Client,
    key: Bytes,
    revision: Option<u64>,
    consistency: Option<Consistency>,
    timeout: Option<Duration>,
}

/// What was found, and when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadAt {
    /// The store's revision the read was made at.
    pub revision: u64,
    /// What the key held; `None` if it did not exist.
    pub found: Option<KeyValue>,
}

impl Get {
    pub(crate) fn new(client: Client, key: Bytes) -> Self {
        Self { client, key, revision: None, consistency: None, timeout: None }
    }

    /// Read the store as it was at `revision`.
    pub fn at(mut self, revision: u64) -> Self {
        self.revision = Some(revision);
        self
    }

    /// How fresh the answer must be, instead of the client's setting.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = Some(consistency);
        self
    }

    /// How long this call may take, over all attempts, instead of the client's timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Answer also with the revision the read was made at.
    pub fn with_revision(self) -> GetWithRevision {
        GetWithRevision { get: self }
    }

    async fn run(self) -> Result<ReadAt> {
        check_key(&self.key)?;
        let request = Request::Get(GetRequest {
            key: self.key,
            revision: self.revision,
            consistency: self.client.resolve(self.consistency),
        });
        let response = self.client.read(request, self.timeout).await?;
        if let Response::Value { revision, found } = response {
            Ok(ReadAt { revision, found })
        } else {
            Err(mismatch("a get", &response, Effect::None))
        }
    }
}

impl IntoFuture for Get {
    type Output = Result<Option<KeyValue>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(self.run().await?.found) })
    }
}

/// Reads one key, and says at which revision, when awaited. Made by [`Get::with_revision`].
#[must_use = "nothing is read before it is awaited"]
#[derive(Clone, Debug)]
pub struct GetWithRevision {
    get: Get,
}

impl IntoFuture for GetWithRevision {
    type Output = Result<ReadAt>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.get.run())
    }
}
