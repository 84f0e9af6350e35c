//! The answering side: the request loop of one connection.
//!
//! Differs from tarpc's own loop in what `deliver` and a store need:
//!
//! 1. Handlers run on the connection's task, never spawned: a hand-over costs no wake-up, and the first,
//!    synchronous part of the handlers runs in the order of the requests.
//! 2. No deadline aborts a handler: whoever waits inside keeps its own. A cancelled request is answered
//!    like any other, because what a handler handed over cannot be taken back.
//! 3. Requests under way are bounded; beyond that each gets the answer of `overloaded`, or fails if that has none.
//! 4. While the other side does not read its answers, no more requests are read.
//! 5. An answer that does not fit a frame becomes a failure of that request, not of the connection.
//!
//! 6. Answers that nobody needs at once may be held back a little ([`AnswerDelay`]), so that several
//!    share a packet: the answer to `deliver` says only "queued".
//!
//! When the connection ends, waiting handlers are dropped; nothing they handed over is cancelled by that.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use futures::{Sink as _, Stream as _, StreamExt as _, stream::FuturesUnordered};
use serde::{Serialize, de::DeserializeOwned};
use tarpc::{ClientMessage, RequestName, Response as RpcResponse, ServerError, server::Serve};

use crate::{FrameError, ServerTransport};

/// How long answers may be held back. The dialler's window has to be larger than `count`, and its
/// patience longer than `time`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnswerDelay {
    /// So many answers leave at once.
    pub count: usize,
    /// The first of them waits no longer than this.
    pub time: Duration,
}

/// For `deliver`: a third of a link's window, and a small part of its patience. Without it every batch of
/// messages would cost a packet and a wake-up on the way back.
pub const DELIVER_ANSWER_DELAY: AnswerDelay =
    AnswerDelay { count: 12, time: Duration::from_millis(25) };

/// Serves one connection until the other side closes it, or until `stop` is done and every request
/// under way is answered.
///
/// At most `in_flight_max` requests wait at once; what is beyond gets the answer of `overloaded`, which
/// must be of the request's own kind, or fails.
///
/// # Errors
/// What broke the connection.
pub async fn serve<Req, Resp, S>(
    transport: ServerTransport<Req, Resp>,
    handler: S,
    in_flight_max: usize,
    overloaded: impl Fn(&Req) -> Option<Resp>,
    stop: impl Future<Output = ()>,
) -> Result<(), FrameError>
where
    Req: DeserializeOwned + RequestName,
    Resp: Serialize,
    S: Serve<Req = Req, Resp = Resp> + Clone,
{
    serve_with_delay(transport, handler, in_flight_max, overloaded, None, stop).await
}

/// As [`serve`], holding answers back as `delay` says.
///
/// # Errors
/// What broke the connection.
pub async fn serve_with_delay<Req, Resp, S>(
    transport: ServerTransport<Req, Resp>,
    handler: S,
    in_flight_max: usize,
    overloaded: impl Fn(&Req) -> Option<Resp>,
    delay: Option<AnswerDelay>,
    stop: impl Future<Output = ()>,
) -> Result<(), FrameError>
where
    Req: DeserializeOwned + RequestName,
    Resp: Serialize,
    S: Serve<Req = Req, Resp = Resp> + Clone,
{
    let mut transport = pin!(transport);
    let mut stop = pin!(stop);
    let mut stopping = false;
    let mut unflushed = Unflushed::new(delay);
    let mut running = FuturesUnordered::new();
    poll_fn(|cx| {
        stopping = stopping || stop.as_mut().poll(cx).is_ready();
        loop {
            let mut progressed = false;
            let mut writable = false;
            while let Poll::Ready(ready) = transport.as_mut().poll_ready(cx) {
                ready?;
                writable = true;
                let Poll::Ready(Some((request_id, message))) = running.poll_next_unpin(cx) else {
                    break;
                };
                send(transport.as_mut(), RpcResponse { request_id, message })?;
                unflushed.count += 1;
                (progressed, writable) = (true, false);
            }
            if writable && !stopping {
                match transport.as_mut().poll_next(cx) {
                    Poll::Ready(Some(Ok(ClientMessage::Request(request)))) => {
                        progressed = true;
                        if running.len() >= in_flight_max {
                            let message = overloaded(&request.message).ok_or_else(|| {
                                let detail = format!("{in_flight_max} requests are under way on this connection, the limit");
                                ServerError::new(io::ErrorKind::WouldBlock, detail)
                            });
                            let response = RpcResponse { request_id: request.id, message };
                            send(transport.as_mut(), response)?;
                            unflushed.count += 1;
                        } else {
                            let answer = handler.clone().serve(request.context, request.message);
                            running.push(async move { (request.id, answer.await) });
                        }
                    }
                    // A cancel: see rule 2.
                    Poll::Ready(Some(Ok(_))) => progressed = true,
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => {}
                }
            }
            if progressed {
                continue;
            }
            if unflushed.is_due(stopping, cx)
                && let Poll::Ready(flushed) = transport.as_mut().poll_flush(cx)
            {
                flushed?;
                unflushed.clear();
            }
            if stopping && running.is_empty() && unflushed.count == 0 {
                return Poll::Ready(Ok(()));
            }
            return Poll::Pending;
        }
    })
    .await
}

/// Answers that are encoded but have not left.
struct Unflushed {
    count: usize,
    delay: Option<AnswerDelay>,
    /// Runs since the first of them.
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Unflushed {
    const fn new(delay: Option<AnswerDelay>) -> Self {
        Self { count: 0, delay, timer: None }
    }

    /// Whether they have to leave now; if not, the task is woken when they have to.
    fn is_due(&mut self, stopping: bool, cx: &mut Context<'_>) -> bool {
        match self.delay {
            _ if self.count == 0 => false,
            Some(delay) if !stopping && self.count < delay.count => {
                let timer =
                    self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(delay.time)));
                timer.as_mut().poll(cx).is_ready()
            }
            Some(_) | None => true,
        }
    }

    fn clear(&mut self) {
        self.count = 0;
        self.timer = None;
    }
}

/// Encodes an answer; if that is impossible, a failure in its place.
fn send<Req, Resp>(
    mut transport: Pin<&mut ServerTransport<Req, Resp>>,
    response: RpcResponse<Resp>,
) -> Result<(), FrameError>
where
    Req: DeserializeOwned,
    Resp: Serialize,
{
    let request_id = response.request_id;
    match transport.as_mut().start_send(response) {
        Err(error @ (FrameError::DoesNotFit { .. } | FrameError::Malformed { .. })) => {
            tracing::warn!(request_id, %error, "an answer could not be encoded");
            let error = ServerError::new(io::ErrorKind::InvalidData, error.to_string());
            transport.as_mut().start_send(RpcResponse { request_id, message: Err(error) })
        }
        result @ (Ok(()) | Err(FrameError::Io(_) | FrameError::TooLong { .. })) => result,
    }
}
