//! gRPC echo, made by hand on HTTP/2: each message comes back as it arrives, status in trailers.
//!
//! Every method of every service answers (unary is a stream of one). Metadata asks for more:
//! `x-echo-repeat: N` sends each message N times, `x-echo-grpc-status: N` fails with that code after
//! the messages, `x-echo-delay-ms` waits before the first. At most one message is held at a time.
//! Source: gRPC over HTTP/2 (`PROTOCOL-HTTP2.md` of grpc/grpc).

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};

use super::Server;
use super::body::Answer;
use super::control::Control;
use crate::wait;

/// One byte of flags, four of length.
const PREFIX: usize = 5;

/// Largest message, as in most gRPC servers; a larger one ends with `RESOURCE_EXHAUSTED`.
const MAX_MESSAGE: usize = 4 << 20;

/// Most copies of one message.
const MAX_REPEAT: u32 = 1_000_000;

const OK: u32 = 0;
const INVALID_ARGUMENT: u32 = 3;
const RESOURCE_EXHAUSTED: u32 = 8;

/// Whether a request speaks gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|text| text.starts_with("application/grpc"))
}

/// Answers at once; messages follow while the request's arrive.
pub(super) async fn respond(
    request: Request<Incoming>,
    control: &Control,
    server: &Server,
) -> Response<Answer> {
    wait(control.delay).await;
    let number = |name| request.headers().get(name)?.to_str().ok()?.parse::<u32>().ok();
    let state = Exchange {
        repeat: number("x-echo-repeat").unwrap_or(1).min(MAX_REPEAT),
        status: number("x-echo-grpc-status").unwrap_or(OK),
        body: request.into_body(),
        buffer: BytesMut::new(),
        pending: None,
        messages: 0,
        done: false,
    };
    let frames = stream::unfold(state, |mut state| async move {
        let frame = state.next().await?;
        Some((frame, state))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    super::http::sign(headers, server);
    response
}

/// One call: what has arrived and not yet gone back.
struct Exchange {
    body: Incoming,
    buffer: BytesMut,
    /// A message, and how often it still has to go out.
    pending: Option<(Bytes, u32)>,
    repeat: u32,
    status: u32,
    messages: u64,
    done: bool,
}

impl Exchange {
    /// The next frame of the answer; `None` after the trailers.
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        if self.done {
            return None;
        }
        loop {
            if let Some((message, left)) = self.pending.take()
                && left > 0
            {
                self.pending = Some((message.clone(), left - 1));
                return Some(Ok(Frame::data(message)));
            }
            match take_message(&mut self.buffer) {
                Ok(Some(message)) => {
                    self.messages += 1;
                    self.pending = Some((message, self.repeat));
                    continue;
                }
                Ok(None) => {}
                Err(TooLarge) => return Some(Ok(self.trailers(RESOURCE_EXHAUSTED))),
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => {
                    self.done = true;
                    return Some(Err(error));
                }
                None if self.buffer.is_empty() => return Some(Ok(self.trailers(self.status))),
                None => return Some(Ok(self.trailers(INVALID_ARGUMENT))),
            }
        }
    }

    fn trailers(&mut self, status: u32) -> Frame<Bytes> {
        self.done = true;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.into());
        trailers.insert("x-echo-messages", self.messages.into());
        Frame::trailers(trailers)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct TooLarge;

/// Takes one whole message, prefix included, off the front of `buffer`, if it is there.
fn take_message(buffer: &mut BytesMut) -> Result<Option<Bytes>, TooLarge> {
    let Some(mut prefix) = buffer.get(1..PREFIX) else { return Ok(None) };
    let length = prefix.get_u32() as usize;
    if length > MAX_MESSAGE {
        return Err(TooLarge);
    }
    let whole = PREFIX + length;
    Ok((buffer.len() >= whole).then(|| buffer.split_to(whole).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_whole() {
        let mut buffer = BytesMut::from(&b"\0\0\0\0\x02hi\0\0\0\0\0\0\0\0"[..]);
        assert_eq!(take_message(&mut buffer).unwrap().unwrap(), &b"\0\0\0\0\x02hi"[..]);
        assert_eq!(take_message(&mut buffer).unwrap().unwrap(), &b"\0\0\0\0\0"[..]);
        assert_eq!(take_message(&mut buffer), Ok(None));
        assert_eq!(buffer.len(), 3);
    }

    #[test]
    fn a_message_over_the_limit_is_refused() {
        let mut buffer = BytesMut::from(&b"\0\xff\0\0\0"[..]);
        assert_eq!(take_message(&mut buffer), Err(TooLarge));
    }
}
