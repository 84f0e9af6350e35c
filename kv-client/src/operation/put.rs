//! Storing a value, with or without a condition.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use raft_rpc::{Condition, KeyValue, Response, WriteOperation};

use super::{Conditional, mismatch};
use crate::client::Client;
use crate::error::{Effect, Result};
use crate::keys::{IntoBytes, check_key, check_value};

/// A value was stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// The revision of this write.
    pub revision: u64,
    /// What the key held before, if [`previous`](Put::previous) was asked for and it existed.
    pub previous: Option<KeyValue>,
}

/// Stores a value when awaited. Made by [`Client::put`].
///
/// On return the write is durable on a majority of the nodes. Dropping the future before it was
/// polled changes nothing; dropping it afterwards leaves the effect unknown: the write may take
/// effect, once, or not at all.
#[must_use = "nothing is written before it is awaited"]
#[derive(Clone, Debug)]
pub struct Put {
    client: Client,
    key: Bytes,
    value: Bytes,
    return_previous: bool,
    timeout: Option<Duration>,
}

impl Put {
    pub(crate) fn new(client: Client, key: Bytes, value: Bytes) -> Self {
        Self { client, key, value, return_previous: false, timeout: None }
    }

    /// Answer also with what the key held before.
    pub fn previous(mut self) -> Self {
        self.return_previous = true;
        self
    }

    /// How long this call may take, over all attempts, instead of the client's timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Store only if the key does not exist.
    pub fn if_absent(self) -> ConditionalPut {
        ConditionalPut { put: self, condition: Condition::Absent }
    }

    /// Store only if the key's `mod_revision` is `revision`: nobody has changed it since.
    pub fn if_revision(self, revision: u64) -> ConditionalPut {
        ConditionalPut { put: self, condition: Condition::Revision(revision) }
    }

    /// Store only if the key holds exactly `expected`.
    pub fn if_value(self, expected: impl IntoBytes) -> ConditionalPut {
        ConditionalPut { put: self, condition: Condition::Value(expected.into_bytes()) }
    }

    async fn run(self, condition: Condition) -> Result<Response> {
        check_key(&self.key)?;
        check_value(&self.value)?;
        let operation = WriteOperation::Put {
            key: self.key,
            value: self.value,
            condition,
            return_previous: self.return_previous,
        };
        self.client.write(operation, self.timeout).await
    }
}

impl IntoFuture for Put {
    type Output = Result<Written>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let response = self.run(Condition::Always).await?;
            if let Response::Written { revision, previous } = response {
                Ok(Written { revision, previous })
            } else {
                Err(mismatch("a put", &response, Effect::Unknown))
            }
        })
    }
}

/// Stores a value under a condition when awaited. Made by [`Put::if_absent`], [`Put::if_revision`]
/// and [`Put::if_value`].
///
/// Condition and write are one atomic step. What dropping the future means is said at [`Put`].
#[must_use = "nothing is written before it is awaited"]
#[derive(Clone, Debug)]
pub struct ConditionalPut {
    put: Put,
    condition: Condition,
}

impl ConditionalPut {
    /// Answer also with what the key held before.
    pub fn previous(mut self) -> Self {
        self.put = self.put.previous();
        self
    }

    /// How long this call may take, over all attempts, instead of the client's timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.put = self.put.timeout(timeout);
        self
    }
}

impl IntoFuture for ConditionalPut {
    type Output = Result<Conditional<Written>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            match self.put.run(self.condition).await? {
                Response::Written { revision, previous } => {
                    Ok(Conditional::Applied(Written { revision, previous }))
                }
                Response::Refused { revision, current } => {
                    Ok(Conditional::Refused { revision, current })
                }
                other @ (Response::Session { .. }
                | Response::Deleted { .. }
                | Response::Value { .. }
                | Response::Page { .. }
                | Response::Count { .. }) => {
                    Err(mismatch("a conditional put", &other, Effect::Unknown))
                }
            }
        })
    }
}
