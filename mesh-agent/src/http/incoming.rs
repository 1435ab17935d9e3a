//! A body as it comes from a connection, of either version of HTTP.

use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::{Body, Frame, SizeHint};

use super::headers;

/// A request's body from a client, or a response's from an endpoint.
#[derive(Debug)]
pub(super) enum Incoming {
    Http1(hyper::body::Incoming),
    Http2(StreamBody),
}

/// What an HTTP/2 stream still brings.
#[derive(Debug)]
pub(super) struct StreamBody {
    stream: RecvStream,
    /// What `content-length` leaves; `h2` has checked it against the frames.
    left: Option<u64>,
    data_ended: bool,
}

/// A body that broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum IncomingError {
    #[error(transparent)]
    Http1(#[from] hyper::Error),
    #[error(transparent)]
    Http2(#[from] h2::Error),
}

impl IncomingError {
    /// Whether an HTTP/1 connection ended in the middle of the body. A body that is not legal leaves it
    /// open.
    pub(super) fn is_end_of_connection(&self) -> bool {
        let Self::Http1(error) = self else { return false };
        let cause = std::error::Error::source(error);
        let cause = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>());
        // What is wrong with chunks is `InvalidInput` or `InvalidData` to hyper.
        cause.is_some_and(|cause| {
            !matches!(cause.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData)
        })
    }

    /// How the other side's stream is to be reset: with what this side was told, but never with
    /// "no error", which would make a broken body look whole.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Http1(_) => Reason::INTERNAL_ERROR,
            Self::Http2(error) => error
                .reason()
                .filter(|reason| *reason != Reason::NO_ERROR)
                .unwrap_or(Reason::INTERNAL_ERROR),
        }
    }
}

impl Incoming {
    /// The body of an HTTP/2 stream behind a head with these headers.
    pub(super) fn of_stream(stream: RecvStream, headers: &http::HeaderMap) -> Self {
        let length = headers.get(http::header::CONTENT_LENGTH);
        let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Self::Http2(StreamBody { stream, left, data_ended: false })
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Credit for what is handed on: who does not read holds up only this stream.
                    let _closed = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() {
            return SizeHint::with_exact(0);
        }
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = IncomingError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, IncomingError>>> {
        let frame = match &mut *self {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(IncomingError::from),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(IncomingError::from),
        };
        frame.map_ok(|mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                headers::strip_trailers(trailers);
            }
            frame
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}
