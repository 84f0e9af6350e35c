//! Removing a key, with or without a condition, or every key of a range.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use raft_rpc::{Condition, KeyRange, KeyValue, Response, WriteOperation};

use super::{Conditional, mismatch};
use crate::client::Client;
use crate::error::{Effect, Result};
use crate::keys::{IntoBytes, check_key};

/// Keys were removed, possibly none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deleted {
    /// The revision of this write; the store's revision if there was nothing to remove.
    pub revision: u64,
    /// How many keys were removed.
    pub count: u64,
    /// What a single key held before, if [`previous`](Delete::previous) was asked for and it
    /// existed.
    pub previous: Option<KeyValue>,
}

/// What can be removed: a key, or a range as made by [`prefix`](crate::prefix),
/// [`between`](crate::between), [`starting_at`](crate::starting_at) or [`all`](crate::all).
pub trait DeleteTarget {
    /// The operation that removes it.
    type Operation;

    /// Makes the operation.
    fn delete_with(self, client: Client) -> Self::Operation;
}

impl<K: IntoBytes> DeleteTarget for K {
    type Operation = Delete;

    fn delete_with(self, client: Client) -> Delete {
        Delete { client, key: self.into_bytes(), return_previous: false, timeout: None }
    }
}

impl DeleteTarget for KeyRange {
    type Operation = DeleteRange;

    fn delete_with(self, client: Client) -> DeleteRange {
        DeleteRange { client, range: self, timeout: None }
    }
}

/// Removes a key when awaited. Made by [`Client::delete`].
///
/// On return the removal is durable on a majority of the nodes. Dropping the future before it was
/// polled changes nothing; dropping it afterwards leaves the effect unknown.
#[must_use = "nothing is removed before it is awaited"]
#[derive(Clone, Debug)]
pub struct Delete {
    client: Client,
    key: Bytes,
    return_previous: bool,
    timeout: Option<Duration>,
}

impl Delete {
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

    /// Remove only if the key's `mod_revision` is `revision`: nobody has changed it since.
    pub fn if_revision(self, revision: u64) -> ConditionalDelete {
        ConditionalDelete { delete: self, condition: Condition::Revision(revision) }
    }

    /// Remove only if the key holds exactly `expected`.
    pub fn if_value(self, expected: impl IntoBytes) -> ConditionalDelete {
        ConditionalDelete { delete: self, condition: Condition::Value(expected.into_bytes()) }
    }

    async fn run(self, condition: Condition) -> Result<Response> {
        check_key(&self.key)?;
        let operation = WriteOperation::Delete {
            key: self.key,
            condition,
            return_previous: self.return_previous,
        };
        self.client.write(operation, self.timeout).await
    }
}

impl IntoFuture for Delete {
    type Output = Result<Deleted>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let response = self.run(Condition::Always).await?;
            if let Response::Deleted { revision, count, previous } = response {
                Ok(Deleted { revision, count, previous })
            } else {
                Err(mismatch("a delete", &response, Effect::Unknown))
            }
        })
    }
}

/// Removes a key under a condition when awaited. Made by [`Delete::if_revision`] and
/// [`Delete::if_value`]. What dropping the future means is said at [`Delete`].
#[must_use = "nothing is removed before it is awaited"]
#[derive(Clone, Debug)]
pub struct ConditionalDelete {
    delete: Delete,
    condition: Condition,
}

impl IntoFuture for ConditionalDelete {
    type Output = Result<Conditional<Deleted>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            match self.delete.run(self.condition).await? {
                Response::Deleted { revision, count, previous } => {
                    Ok(Conditional::Applied(Deleted { revision, count, previous }))
                }
                Response::Refused { revision, current } => {
                    Ok(Conditional::Refused { revision, current })
                }
                other @ (Response::Session { .. }
                | Response::Written { .. }
                | Response::Value { .. }
                | Response::Page { .. }
                | Response::Count { .. }) => {
                    Err(mismatch("a conditional delete", &other, Effect::Unknown))
                }
            }
        })
    }
}

/// Removes every key of a range, in one revision, when awaited. Made by [`Client::delete`].
///
/// On return the removal is durable on a majority of the nodes. Dropping the future before it was
/// polled changes nothing; dropping it afterwards leaves the effect unknown.
#[must_use = "nothing is removed before it is awaited"]
#[derive(Clone, Debug)]
pub struct DeleteRange {
    client: Client,
    range: KeyRange,
    timeout: Option<Duration>,
}

impl DeleteRange {
    /// How long this call may take, over all attempts, instead of the client's timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl IntoFuture for DeleteRange {
    type Output = Result<Deleted>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let operation = WriteOperation::DeleteRange { range: self.range };
            let response = self.client.write(operation, self.timeout).await?;
            if let Response::Deleted { revision, count, previous } = response {
                Ok(Deleted { revision, count, previous })
            } else {
                Err(mismatch("a delete of a range", &response, Effect::Unknown))
            }
        })
    }
}
