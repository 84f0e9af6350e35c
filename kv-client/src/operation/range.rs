//! Reading a range: a page, all of it as a stream, or only how many keys it has.
//!
//! A listing of many pages is one consistent view: the first page fixes the revision, its
//! [`Cursor`] carries it, and every further page is read as of it.

use std::future::IntoFuture;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use futures::future::BoxFuture;
use raft_rpc::{KeyRange, KeyValue, Projection, RangeRequest, Request, Response};

use super::mismatch;
use crate::client::Client;
use crate::consistency::Consistency;
use crate::error::{Effect, Error, ErrorKind, Result};

/// Where a listing goes on: behind the last item of a page, at the page's revision.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cursor {
    rest: KeyRange,
    reverse: bool,
    revision: u64,
}

impl Cursor {
    /// The revision the listing is read at.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

/// A page of a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The items, in the order asked for. Values are empty with [`Range::keys_only`].
    pub items: Vec<KeyValue>,
    /// Where the next page begins; `None` if this was the last.
    pub next: Option<Cursor>,
    /// The store's revision the page was read at.
    pub revision: u64,
}

/// Reads a page of a range when awaited, or all of it with [`stream`](Range::stream). Made by
/// [`Client::range`]; may be dropped at any time.
#[must_use = "nothing is read before it is awaited"]
#[derive(Clone, Debug)]
pub struct Range {
    client: Client,
    range: KeyRange,
    limit: Option<u64>,
    keys_only: bool,
    reverse: bool,
    revision: Option<u64>,
    cursor: Option<Cursor>,
    consistency: Option<Consistency>,
    timeout: Option<Duration>,
}

impl Range {
    pub(crate) fn new(client: Client, range: KeyRange) -> Self {
        Self {
            client,
            range,
            limit: None,
            keys_only: false,
            reverse: false,
            revision: None,
            cursor: None,
            consistency: None,
            timeout: None,
        }
    }

    /// At most this many items, in a page or in the whole stream. A page also ends at 1 MiB.
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Leave the values out.
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }

    /// From the last key to the first.
    pub fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// Read the store as it was at `revision`.
    pub fn at(mut self, revision: u64) -> Self {
        self.revision = Some(revision);
        self
    }

    /// Go on where an earlier page ended, at its revision and in its direction. It replaces the
    /// range, [`at`](Self::at) and [`reverse`](Self::reverse).
    pub fn from(mut self, cursor: Cursor) -> Self {
        self.cursor = Some(cursor);
        self
    }

    /// How fresh the first page must be, instead of the client's setting.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = Some(consistency);
        self
    }

    /// How long the call for one page may take, over all attempts, instead of the client's timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// All items, page after page, at one revision. Ends after the first error.
    #[must_use]
    pub fn stream(self) -> RangeStream {
        RangeStream {
            left: self.limit,
            state: StreamState::Fetching(Box::pin(self.clone().page())),
            range: self,
        }
    }

    async fn page(self) -> Result<Page> {
        let consistency = self.consistency.unwrap_or(self.client.default_consistency());
        let (range, reverse, revision, consistency) = match self.cursor {
            Some(Cursor { rest, reverse, revision }) => {
                // Any node that has the revision gives the same page. A stale listing stays one
                // that the node asked answers by itself.
                let consistency = match consistency {
                    Consistency::Stale { .. } if self.client.has_one_endpoint() => consistency,
                    Consistency::Stale { .. }
                    | Consistency::Linearizable
                    | Consistency::Session
                    | Consistency::AtLeast(_) => Consistency::AtLeast(revision),
                };
                (rest, reverse, Some(revision), consistency)
            }
            None => (self.range, self.reverse, self.revision, consistency),
        };
        let request = Request::Range(RangeRequest {
            range: range.clone(),
            limit: self.limit,
            reverse,
            projection: if self.keys_only { Projection::KeysOnly } else { Projection::KeyValues },
            revision,
            consistency: self.client.resolve(Some(consistency)),
        });
        let response = self.client.read(request, self.timeout).await?;
        let Response::Page { revision: read_at, items, more } = response else {
            return Err(mismatch("a range", &response, Effect::None));
        };
        // The listing goes on as of the revision that was asked for, or else as of the one the
        // first page was made at.
        let revision = revision.unwrap_or(read_at);
        let next = match (more, items.last()) {
            (false, _) => None,
            (true, Some(last)) => {
                Some(Cursor { rest: rest_behind(range, &last.key, reverse), reverse, revision })
            }
            (true, None) => {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    Effect::None,
                    "a page without items claims that more follow",
                    "ask for at least one item; if that was so, check the node's version",
                ));
            }
        };
        Ok(Page { items, next, revision })
    }
}

/// What is left of `range` behind `last`.
fn rest_behind(range: KeyRange, last: &Bytes, reverse: bool) -> KeyRange {
    if reverse {
        return KeyRange { start: range.start, end: Some(last.clone()) };
    }
    // The smallest key above `last`.
    let mut start = BytesMut::with_capacity(last.len() + 1);
    start.put_slice(last);
    start.put_u8(0);
    KeyRange { start: start.freeze(), end: range.end }
}

impl IntoFuture for Range {
    type Output = Result<Page>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.page())
    }
}

/// The items of a range, read page by page at one revision. Made by [`Range::stream`].
pub struct RangeStream {
    range: Range,
    /// How many items may still come, if there is a limit.
    left: Option<u64>,
    state: StreamState,
}

enum StreamState {
    Fetching(BoxFuture<'static, Result<Page>>),
    Yielding { items: std::vec::IntoIter<KeyValue>, next: Option<Cursor> },
    Ended,
}

impl RangeStream {
    /// The revision the listing is read at, once the first item has come.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.range.cursor.as_ref().map(Cursor::revision).or(self.range.revision)
    }
}

impl std::fmt::Debug for RangeStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RangeStream")
            .field("range", &self.range)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Stream for RangeStream {
    type Item = Result<KeyValue>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                StreamState::Ended => return Poll::Ready(None),
                StreamState::Fetching(future) => match future.as_mut().poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(error)) => {
                        this.state = StreamState::Ended;
                        return Poll::Ready(Some(Err(error)));
                    }
                    Poll::Ready(Ok(page)) => {
                        this.range.revision.get_or_insert(page.revision);
                        this.state = StreamState::Yielding {
                            items: page.items.into_iter(),
                            next: page.next,
                        };
                    }
                },
                StreamState::Yielding { items, next } => {
                    if let Some(item) = items.next() {
                        this.left = this.left.map(|left| left.saturating_sub(1));
                        return Poll::Ready(Some(Ok(item)));
                    }
                    match next.take() {
                        Some(cursor) if this.left != Some(0) => {
                            this.range.cursor = Some(cursor);
                            this.range.limit = this.left;
                            let page = this.range.clone().page();
                            this.state = StreamState::Fetching(Box::pin(page));
                        }
                        Some(_) | None => this.state = StreamState::Ended,
                    }
                }
            }
        }
    }
}

/// How many keys a range has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// The number of keys.
    pub count: u64,
    /// The store's revision the count was made at.
    pub revision: u64,
}

/// Counts the keys of a range when awaited. Made by [`Client::count`]; may be dropped at any time.
#[must_use = "nothing is counted before it is awaited"]
#[derive(Clone, Debug)]
pub struct Count {
    client: Client,
    range: KeyRange,
    revision: Option<u64>,
    consistency: Option<Consistency>,
    timeout: Option<Duration>,
}

impl Count {
    pub(crate) fn new(client: Client, range: KeyRange) -> Self {
        Self { client, range, revision: None, consistency: None, timeout: None }
    }

    /// Count in the store as it was at `revision`.
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
}

impl IntoFuture for Count {
    type Output = Result<Counted>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let request = Request::Range(RangeRequest {
                range: self.range,
                limit: None,
                reverse: false,
                projection: Projection::Count,
                revision: self.revision,
                consistency: self.client.resolve(self.consistency),
            });
            let response = self.client.read(request, self.timeout).await?;
            if let Response::Count { count, revision } = response {
                Ok(Counted { count, revision })
            } else {
                Err(mismatch("a count", &response, Effect::None))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_goes_on_right_behind_its_last_key_in_both_directions() {
        let range = crate::between("a", "z");
        let last = Bytes::from_static(b"m");
        assert_eq!(rest_behind(range.clone(), &last, false), crate::between(b"m\0", "z"));
        assert_eq!(rest_behind(range, &last, true), crate::between("a", "m"));
    }
}
