//! Frames: how requests and answers become bytes. The only place that does.
//!
//! ```text
//! frame     length u32 | kind u8 | request id u64 | rest        little-endian; length counts what follows it
//! request   kind 1     | time left u32, milliseconds | message  postcard
//! cancel    kind 2     |                                        the caller no longer waits
//! response  kind 3     | message                                postcard
//! failure   kind 4     | UTF-8 text                             the request could not be answered
//! ```
//!
//! The header is written by hand instead of deriving it from tarpc's own types for three reasons: the
//! wire does not change with a version of tarpc; a hostile deadline cannot overflow `Instant` arithmetic
//! (tarpc's derived one adds it to the clock unchecked); and a request is some 40 bytes shorter.
//! tarpc's `serde_transport` is not used, because it demands `LengthDelimitedCodec`, which reserves
//! memory for a frame as soon as its length is known, and because it copies every message twice.
//!
//! Invariants
//! 1. Nothing is allocated from a length before its bytes arrive: the read buffer grows with what is read.
//! 2. An incoming length above the limit ends the connection with [`FrameError::TooLong`].
//! 3. A message that does not fit the limit leaves no bytes behind: it fails alone, the connection goes on.
//!
//! Not here: what a message means, timeouts, reconnecting.

use std::{
    fmt, io,
    marker::PhantomData,
    time::{Duration, Instant},
};

use bytes::{Buf as _, BufMut as _, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use tarpc::{ClientMessage, Request as RpcRequest, Response as RpcResponse, ServerError};
use tokio_util::codec::{Decoder, Encoder, Framed};

use crate::Io;

/// The largest frame on a client port unless a configured request needs more, in bytes.
pub const CLIENT_FRAME_BYTES: usize = 32 * 1024 * 1024;
/// The largest frame on a peer port unless a single entry needs more, in bytes.
pub const PEER_FRAME_BYTES: usize = 4 * 1024 * 1024;
/// Room beside one entry in a frame of a peer port, in bytes.
pub const PEER_FRAME_SLACK_BYTES: usize = 64 * 1024;

/// Bytes of the length in front of a frame.
const LENGTH_BYTES: usize = 4;
/// Kind and request id: the least a frame holds.
const HEADER_BYTES: usize = 1 + 8;
const KIND_REQUEST: u8 = 1;
const KIND_CANCEL: u8 = 2;
const KIND_RESPONSE: u8 = 3;
const KIND_FAILURE: u8 = 4;

/// Read and write buffers begin with this capacity: a batch of some hundred small requests.
const BUFFER_BYTES: usize = 64 * 1024;
/// A write buffer above this is flushed before the next message is encoded. tokio's default of 8 KiB
/// would cut a batch into many small writes.
const BACKPRESSURE_BYTES: usize = 256 * 1024;
/// An empty buffer above this is given back, so that one large message does not cost its memory for
/// as long as the connection lives.
const KEPT_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Deadlines beyond a day mean none; tarpc's timer wheel takes no more than about two years.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// The frame limit of a client port: the larger of [`CLIENT_FRAME_BYTES`] and twice the largest request.
#[must_use]
pub fn client_frame_limit(largest_request_bytes: usize) -> usize {
    CLIENT_FRAME_BYTES.max(largest_request_bytes.saturating_mul(2)).min(u32::MAX as usize)
}

/// The frame limit of a peer port: the larger of [`PEER_FRAME_BYTES`] and one entry with some room.
#[must_use]
pub fn peer_frame_limit(largest_entry_bytes: usize) -> usize {
    PEER_FRAME_BYTES
        .max(largest_entry_bytes.saturating_add(PEER_FRAME_SLACK_BYTES))
        .min(u32::MAX as usize)
}

/// A tarpc context whose caller waits for `timeout`.
#[must_use]
pub fn context_for(timeout: Duration) -> tarpc::context::Context {
    let mut context = tarpc::context::current();
    context.deadline = Instant::now() + timeout.min(LONGEST_TIMEOUT);
    context
}

/// Why a connection cannot go on, or, for [`FrameError::DoesNotFit`], why one message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side announced a frame above the limit; what follows cannot be read as frames.
    #[error(
        "a frame of {length} bytes is announced, limit is {limit}; not this protocol, or a message beyond the configured sizes"
    )]
    TooLong {
        /// The announced length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Our own message is above the limit. It was not sent; the connection is as it was.
    #[error("a message does not fit a frame of {limit} bytes")]
    DoesNotFit {
        /// The limit in bytes.
        limit: usize,
    },
    /// The frame's bytes mean nothing.
    #[error("a frame of {length} bytes cannot be read: {reason}")]
    Malformed {
        /// The frame's length in bytes.
        length: usize,
        /// What is wrong.
        reason: String,
    },
}

/// The dialling side of a connection: requests out, answers in.
pub type ClientTransport<Req, Resp> = Framed<Io, ClientCodec<Req, Resp>>;
/// The answering side of a connection: requests in, answers out.
pub type ServerTransport<Req, Resp> = Framed<Io, ServerCodec<Req, Resp>>;

/// Frames `io` for the dialling side. `max_frame_bytes` holds in both directions.
#[must_use]
pub fn client_transport<Req, Resp>(io: Io, max_frame_bytes: usize) -> ClientTransport<Req, Resp>
where
    Req: Serialize,
    Resp: DeserializeOwned,
{
    framed(io, ClientCodec { max_frame_bytes, types: PhantomData })
}

/// Frames `io` for the answering side. `max_frame_bytes` holds in both directions.
#[must_use]
pub fn server_transport<Req, Resp>(io: Io, max_frame_bytes: usize) -> ServerTransport<Req, Resp>
where
    Req: DeserializeOwned,
    Resp: Serialize,
{
    framed(io, ServerCodec { max_frame_bytes, types: PhantomData })
}

fn framed<C>(io: Io, codec: C) -> Framed<Io, C>
where
    C: Decoder<Error = FrameError>,
{
    let mut framed = Framed::with_capacity(io, codec, BUFFER_BYTES);
    framed.set_backpressure_boundary(BACKPRESSURE_BYTES);
    framed
}

/// Encodes requests, decodes answers.
pub struct ClientCodec<Req, Resp> {
    max_frame_bytes: usize,
    types: PhantomData<fn(Req) -> Resp>,
}

/// Decodes requests, encodes answers.
pub struct ServerCodec<Req, Resp> {
    max_frame_bytes: usize,
    types: PhantomData<fn(Req) -> Resp>,
}

impl<Req, Resp> ClientCodec<Req, Resp> {
    /// A codec whose frames hold at most `max_frame_bytes`.
    #[must_use]
    pub const fn new(max_frame_bytes: usize) -> Self {
        Self { max_frame_bytes, types: PhantomData }
    }
}

impl<Req, Resp> ServerCodec<Req, Resp> {
    /// A codec whose frames hold at most `max_frame_bytes`.
    #[must_use]
    pub const fn new(max_frame_bytes: usize) -> Self {
        Self { max_frame_bytes, types: PhantomData }
    }
}

impl<Req, Resp> fmt::Debug for ClientCodec<Req, Resp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCodec").field("max_frame_bytes", &self.max_frame_bytes).finish()
    }
}

impl<Req, Resp> fmt::Debug for ServerCodec<Req, Resp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCodec").field("max_frame_bytes", &self.max_frame_bytes).finish()
    }
}

impl<Req: Serialize, Resp> Encoder<ClientMessage<Req>> for ClientCodec<Req, Resp> {
    type Error = FrameError;

    fn encode(
        &mut self,
        message: ClientMessage<Req>,
        buffer: &mut BytesMut,
    ) -> Result<(), FrameError> {
        match message {
            ClientMessage::Request(request) => {
                let left = request.context.deadline.saturating_duration_since(Instant::now());
                let left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
                write_frame(buffer, self.max_frame_bytes, |out| {
                    out.put_u8(KIND_REQUEST);
                    out.put_u64_le(request.id);
                    out.put_u32_le(left_ms);
                    Some(&request.message)
                })
            }
            ClientMessage::Cancel { request_id, .. } => {
                write_frame(buffer, self.max_frame_bytes, |out| {
                    out.put_u8(KIND_CANCEL);
                    out.put_u64_le(request_id);
                    None::<&()>
                })
            }
            _ => Err(FrameError::Malformed {
                length: 0,
                reason: "a kind of client message that this version does not know".to_owned(),
            }),
        }
    }
}

impl<Req, Resp: DeserializeOwned> Decoder for ClientCodec<Req, Resp> {
    type Item = RpcResponse<Resp>;
    type Error = FrameError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Self::Item>, FrameError> {
        let Some(frame) = take_frame(buffer, self.max_frame_bytes)? else { return Ok(None) };
        let length = frame.len();
        let mut body = &*frame;
        let (kind, request_id) = (body.get_u8(), body.get_u64_le());
        let message = match kind {
            KIND_RESPONSE => Ok(read_message(body, length)?),
            KIND_FAILURE => Err(ServerError::new(
                io::ErrorKind::Other,
                String::from_utf8_lossy(body).into_owned(),
            )),
            other => return Err(unknown_kind(other, length)),
        };
        Ok(Some(RpcResponse { request_id, message }))
    }
}

impl<Req, Resp: Serialize> Encoder<RpcResponse<Resp>> for ServerCodec<Req, Resp> {
    type Error = FrameError;

    fn encode(
        &mut self,
        response: RpcResponse<Resp>,
        buffer: &mut BytesMut,
    ) -> Result<(), FrameError> {
        match &response.message {
            Ok(message) => write_frame(buffer, self.max_frame_bytes, |out| {
                out.put_u8(KIND_RESPONSE);
                out.put_u64_le(response.request_id);
                Some(message)
            }),
            Err(error) => write_frame(buffer, self.max_frame_bytes, |out| {
                out.put_u8(KIND_FAILURE);
                out.put_u64_le(response.request_id);
                out.put_slice(error.detail.as_bytes());
                None::<&()>
            }),
        }
    }
}

impl<Req: DeserializeOwned, Resp> Decoder for ServerCodec<Req, Resp> {
    type Item = ClientMessage<Req>;
    type Error = FrameError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Self::Item>, FrameError> {
        let Some(frame) = take_frame(buffer, self.max_frame_bytes)? else { return Ok(None) };
        let length = frame.len();
        let mut body = &*frame;
        let (kind, id) = (body.get_u8(), body.get_u64_le());
        Ok(Some(match kind {
            KIND_REQUEST => {
                let left_ms = body.try_get_u32_le().map_err(|_short| FrameError::Malformed {
                    length,
                    reason: "it ends inside the time left".to_owned(),
                })?;
                let context = context_for(Duration::from_millis(left_ms.into()));
                let message = read_message(body, length)?;
                ClientMessage::Request(RpcRequest { context, id, message })
            }
            KIND_CANCEL => ClientMessage::Cancel {
                trace_context: tarpc::trace::Context::default(),
                request_id: id,
            },
            other => return Err(unknown_kind(other, length)),
        }))
    }
}

/// Appends a frame: what `header` writes, then the message it returns. On an error nothing is left of it.
fn write_frame<'a, M: Serialize + 'a>(
    buffer: &mut BytesMut,
    max_frame_bytes: usize,
    header: impl FnOnce(&mut BytesMut) -> Option<&'a M>,
) -> Result<(), FrameError> {
    if buffer.is_empty() && buffer.capacity() > KEPT_BUFFER_BYTES {
        *buffer = BytesMut::with_capacity(BUFFER_BYTES);
    }
    let start = buffer.len();
    buffer.put_u32_le(0);
    let message = header(buffer);
    let end_max = start.saturating_add(LENGTH_BYTES).saturating_add(max_frame_bytes);
    let written = match message {
        Some(message) => {
            postcard::serialize_with_flavor(message, BufferFlavor { buffer: &mut *buffer, end_max })
        }
        None if buffer.len() > end_max => Err(postcard::Error::SerializeBufferFull),
        None => Ok(()),
    };
    let result = match written {
        Ok(()) => match u32::try_from(buffer.len().saturating_sub(start + LENGTH_BYTES)) {
            Ok(length) => match buffer.get_mut(start..start + LENGTH_BYTES) {
                Some(slot) => {
                    slot.copy_from_slice(&length.to_le_bytes());
                    Ok(())
                }
                None => Err(FrameError::DoesNotFit { limit: max_frame_bytes }),
            },
            Err(_wide) => Err(FrameError::DoesNotFit { limit: max_frame_bytes }),
        },
        Err(postcard::Error::SerializeBufferFull) => {
            Err(FrameError::DoesNotFit { limit: max_frame_bytes })
        }
        Err(error) => Err(FrameError::Malformed { length: 0, reason: error.to_string() }),
    };
    if result.is_err() {
        buffer.truncate(start);
    }
    result
}

/// Takes a whole frame, without its length, off the front of `buffer`; `None` until it is there.
fn take_frame(
    buffer: &mut BytesMut,
    max_frame_bytes: usize,
) -> Result<Option<BytesMut>, FrameError> {
    let Some(length) = buffer.first_chunk::<LENGTH_BYTES>() else {
        if buffer.is_empty() && buffer.capacity() > KEPT_BUFFER_BYTES {
            *buffer = BytesMut::with_capacity(BUFFER_BYTES);
        }
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > max_frame_bytes {
        return Err(FrameError::TooLong { length, limit: max_frame_bytes });
    }
    if length < HEADER_BYTES {
        return Err(FrameError::Malformed {
            length,
            reason: format!("a frame holds at least {HEADER_BYTES} bytes"),
        });
    }
    if buffer.len() < LENGTH_BYTES + length {
        return Ok(None);
    }
    buffer.advance(LENGTH_BYTES);
    Ok(Some(buffer.split_to(length)))
}

fn read_message<M: DeserializeOwned>(body: &[u8], length: usize) -> Result<M, FrameError> {
    let malformed = |reason| FrameError::Malformed { length, reason };
    let (message, rest) =
        postcard::take_from_bytes(body).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes are left after its message", rest.len())));
    }
    Ok(message)
}

fn unknown_kind(kind: u8, length: usize) -> FrameError {
    FrameError::Malformed { length, reason: format!("{kind} is no kind of frame here") }
}

/// Lets postcard write straight behind what the buffer holds, slices at once, up to a limit.
struct BufferFlavor<'a> {
    buffer: &'a mut BytesMut,
    end_max: usize,
}

impl postcard::ser_flavors::Flavor for BufferFlavor<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        if bytes.len() > self.end_max.saturating_sub(self.buffer.len()) {
            return Err(postcard::Error::SerializeBufferFull);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}
