//! Sends one request to one endpoint, over a pooled connection or a new one.
//!
//! Invariant: a request whose bytes may have reached an endpoint is sent again here only if it has no
//! body, its method is idempotent, and the connection was an old one (it may have been closed while
//! the request was on its way: RFC 9110 §9.2.2), or if the endpoint says that it has not begun with it
//! (RFC 9113 §8.7). Choice of endpoint, and what a route retries beyond that: `attempts`.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use http::{Method, Request, Response};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connect::{Connect, ConnectError};
use super::early::Early;
use super::error::HttpError;
use super::form;
use super::headers::asks_upgrade;
use super::http2::{self, INITIAL_STREAMS, StreamError};
use super::incoming::Incoming;
use super::pool::{
    Http1, Http2, Lease, Load, Place, Pool, PoolKey, Shared, StreamGuard, Terms, Upgraded,
};
use super::request_body::RequestBody;
use super::serve::HttpVersion;
use crate::balance::{Connections, OpenPermit, PendingPermit};
use crate::model::{ConnectionPool, Endpoint, TlsTarget, Workload};

/// Old connections that are tried for one request before a new one is opened.
const OLD_CONNECTIONS: u32 = 3;

/// Sends requests for all connections of a worker.
pub(super) struct Client<C> {
    connect: C,
    pool: Rc<Pool>,
    tasks: TaskTracker,
}

/// Where a request is to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) source: &'a Arc<Workload>,
    pub(super) endpoint: &'a Endpoint,
    pub(super) version: HttpVersion,
    pub(super) pool: &'a ConnectionPool,
    /// Limits on connections, if the policy has some.
    pub(super) limits: Option<&'a Connections>,
    /// TLS that the policy has the agent speak.
    pub(super) tls: Option<&'a Arc<TlsTarget>>,
}

/// Why there is no response.
pub(super) enum SendError {
    /// No connection: the request comes back whole.
    Connect(ConnectError, Box<Request<RequestBody>>),
    /// The endpoint says that it has not begun with the request (RFC 9113 §8.7), which comes back if it
    /// has no body.
    Refused(HttpError, Option<Box<Request<RequestBody>>>),
    /// The request was sent, at least in part.
    Failed(HttpError),
}

/// Where an HTTP/1 request is sent.
enum Seat {
    /// A connection that has served others.
    Old(Http1),
    /// One to be opened, at this place, which counts as pending until it is open.
    New(Option<(Place, PendingPermit)>),
}

/// How an HTTP/2 request comes to a connection.
enum Way {
    /// It opens one, at this place.
    Open(Place),
    There(Box<(Http2, StreamGuard)>),
}

/// A response's head with its body to come, and what it holds.
type Answer = (Response<Incoming>, Lease);

impl<C: Connect> Client<C> {
    pub(super) fn new(connect: C, tasks: TaskTracker) -> Self {
        Self { connect, pool: Rc::default(), tasks }
    }

    pub(super) fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    pub(super) fn mutual_tls(&self, endpoint: &Endpoint) -> bool {
        self.connect.mutual_tls(endpoint)
    }

    /// Sends `request`, which is in the form that `target.version` wants.
    pub(super) async fn send(
        &self,
        target: &Target<'_>,
        request: Request<RequestBody>,
        early: &Early,
    ) -> Result<Answer, SendError> {
        let key = PoolKey::new(target);
        match target.version {
            HttpVersion::Http1 => self.send_http1(target, key, request, early).await,
            HttpVersion::Http2 => self.send_http2(target, &key, request, early).await,
        }
    }

    async fn send_http1(
        &self,
        target: &Target<'_>,
        key: PoolKey,
        mut request: Request<RequestBody>,
        early: &Early,
    ) -> Result<Answer, SendError> {
        listen(&mut request, early);
        let mut tries = 0;
        loop {
            let (connection, old) = match self.seat(target, &key, tries < OLD_CONNECTIONS).await {
                Ok(Seat::Old(connection)) => (Ok(connection), true),
                // In a box: what is seldom done would make the future of each request large, which is
                // moved, or allocated, for each.
                Ok(Seat::New(place)) => {
                    (Box::pin(self.open_http1(target, &key, place)).await, false)
                }
                Err(error) => (Err(error), false),
            };
            let connection = match connection {
                Ok(connection) => connection,
                Err(error) => return Err(SendError::Connect(error, Box::new(request))),
            };
            let copy = if old { copy_of(&request) } else { None };
            match exchange(connection, request).await {
                Ok((response, connection)) => {
                    return Ok((response, Lease::Http1(Rc::clone(&self.pool), key, connection)));
                }
                Err((error, unsent)) => {
                    let unsent = unsent.filter(|_| old);
                    match unsent.or_else(|| copy.filter(|_| closed(&error))) {
                        Some(again) => request = again,
                        None => return Err(SendError::Failed(HttpError::from(&error))),
                    }
                }
            }
            tries += 1;
        }
    }

    /// A connection for a request: an idle one (if `old` ones are wanted), else a new one. Where the
    /// upstream is limited, who may neither have one nor open one waits for one that is let go.
    async fn seat(
        &self,
        target: &Target<'_>,
        key: &PoolKey,
        old: bool,
    ) -> Result<Seat, ConnectError> {
        if old && let Some(connection) = self.pool.take(key, Terms::of(target.pool)).await {
            return Ok(Seat::Old(connection));
        }
        let Some(limits) = target.limits else { return Ok(Seat::New(None)) };
        let limited = self.pool.limited(key);
        let pending = limits.wait().ok_or(ConnectError::Limit)?;
        loop {
            if let Some(permit) = open_permit(limits, limited.is_empty()) {
                return Ok(Seat::New(Some((Place::new(limited, permit), pending))));
            }
            limited.freed.notified().await;
            if let Some(connection) = self.pool.take(key, Terms::of(target.pool)).await {
                return Ok(Seat::Old(connection));
            }
        }
    }

    async fn send_http2(
        &self,
        target: &Target<'_>,
        key: &PoolKey,
        mut request: Request<RequestBody>,
        early: &Early,
    ) -> Result<Answer, SendError> {
        if target.tls.is_some() {
            form::over_tls(&mut request);
        }
        let shared = self.pool.shared(key);
        let mut tries = 0;
        loop {
            let (connection, guard) = match self.http2(target, key, &shared).await {
                Ok(found) => found,
                Err(error) => return Err(SendError::Connect(error, Box::new(request))),
            };
            let Http2 { sender, load, .. } = &connection;
            let copy = twin(&request);
            let exchange =
                http2::exchange(sender, request, &self.tasks, &guard.abandoned, early).await;
            match exchange {
                Ok(response) => return Ok((response, Lease::Http2(guard))),
                // It was closed in the meantime, and nothing was sent.
                Err(StreamError::Unsent(unsent)) if tries < OLD_CONNECTIONS => {
                    load.closed.set(true);
                    request = *unsent;
                }
                Err(StreamError::Unsent(_)) => return Err(SendError::Failed(HttpError::Closed)),
                Err(StreamError::Failed(error)) => match copy {
                    Some(copy) if tries < OLD_CONNECTIONS && http2::untouched(&error) => {
                        load.closed.set(load.closed.get() || error.is_go_away());
                        request = copy;
                    }
                    copy if http2::untouched(&error) => {
                        let error = HttpError::from(&error);
                        return Err(SendError::Refused(error, copy.map(Box::new)));
                    }
                    _ => return Err(SendError::Failed(HttpError::from(&error))),
                },
            }
            tries += 1;
        }
    }

    /// A stream's place on a connection. One request opens a connection, the others wait for it.
    async fn http2(
        &self,
        target: &Target<'_>,
        key: &PoolKey,
        shared: &Rc<Shared>,
    ) -> Result<(Http2, StreamGuard), ConnectError> {
        if let Some(found) = shared.take(Terms::of(target.pool)) {
            return Ok(found);
        }
        let _pending = match target.limits {
            Some(limits) => Some(limits.wait().ok_or(ConnectError::Limit)?),
            None => None,
        };
        let failures = shared.failures();
        let _opening = shared.opening.lock().await;
        if let Some(found) = shared.take(Terms::of(target.pool)) {
            return Ok(found);
        }
        if let Some(error) = shared.failed_since(failures) {
            return Err(error);
        }
        let place = match target.limits {
            None => None,
            Some(limits) => match self.http2_place(target, key, (shared, limits)).await {
                Way::Open(place) => Some(place),
                Way::There(found) => return Ok(*found),
            },
        };
        // In a box as with HTTP/1.
        match Box::pin(self.open_http2(target, place, Rc::downgrade(shared))).await {
            Ok(connection) => Ok(shared.add(connection)),
            Err(error) => {
                shared.fail(&error);
                Err(error)
            }
        }
    }

    /// Under a limit: leave for one more connection, or a stream on one that is there. Where all that
    /// count take no more streams, it waits until one of them has gone.
    async fn http2_place(
        &self,
        target: &Target<'_>,
        key: &PoolKey,
        (shared, limits): (&Rc<Shared>, &Connections),
    ) -> Way {
        let limited = self.pool.limited(key);
        loop {
            if let Some(permit) = open_permit(limits, limited.is_empty()) {
                return Way::Open(Place::new(limited, permit));
            }
            if let Some(found) = shared.queue(Terms::of(target.pool)) {
                return Way::There(Box::new(found));
            }
            limited.freed.notified().await;
        }
    }

    async fn dial(&self, target: &Target<'_>) -> Result<C::Io, ConnectError> {
        let timeout = target.pool.connect_timeout;
        let (source, tls) = (target.source, target.tls.map(Arc::as_ref));
        let connecting = self.connect.connect(source, target.endpoint, target.pool, tls);
        match tokio::time::timeout(timeout, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(ConnectError::Timeout),
        }
    }

    async fn open_http1(
        &self,
        target: &Target<'_>,
        key: &PoolKey,
        place: Option<(Place, PendingPermit)>,
    ) -> Result<Http1, ConnectError> {
        let io = self.dial(target).await?;
        let retired = self.connect.retired(&io);
        let (sender, mut connection) = http1::Builder::new()
            .max_buf_size(http2::MAX_BUFFER)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| remote(&error))?;
        let (give, upgraded) = oneshot::channel();
        let wanted = Rc::new(Cell::new(false));
        let asked = Rc::clone(&wanted);
        let (pool, key, retiring) = (Rc::downgrade(&self.pool), key.clone(), retired.clone());
        self.tasks.spawn_local(async move {
            let leave = || {
                if let Some(pool) = pool.upgrade() {
                    pool.close_retired(&key);
                }
            };
            match drive(&mut connection, retiring, leave).await {
                Ok(()) if asked.get() => {
                    let parts = connection.into_parts();
                    let io = Box::new(parts.io.into_inner());
                    // Nobody there: the client has gone, and the stream is closed.
                    let _ = give.send(Upgraded { io, read: parts.read_buf });
                }
                Ok(()) => {}
                Err(error) => tracing::trace!(%error, "upstream connection ended"),
            }
        });
        let (terms, place) = (Terms::of(target.pool), place.map(|(place, _)| place));
        let opened = Instant::now();
        Ok(Http1 { sender, upgraded, wanted, retired, terms, place, served: 0, opened })
    }

    async fn open_http2(
        &self,
        target: &Target<'_>,
        place: Option<Place>,
        shared: Weak<Shared>,
    ) -> Result<Http2, ConnectError> {
        let io = self.dial(target).await?;
        let retired = self.connect.retired(&io);
        let (sender, mut connection) = http2::connect(io).await.map_err(|error| remote(&error))?;
        let most = usize::try_from(target.pool.max_concurrent_streams).unwrap_or(usize::MAX).max(1);
        let load = Load::new(INITIAL_STREAMS.min(most), Terms::of(target.pool));
        let watched = Rc::clone(&load);
        self.tasks.spawn_local(async move {
            let ended = poll_fn(|cx| {
                let polled = Pin::new(&mut connection).poll(cx);
                watched.most.set(connection.max_concurrent_send_streams().clamp(1, most));
                polled
            });
            let leave = || {
                watched.closed.set(true);
                if let Some(shared) = shared.upgrade() {
                    shared.forget_closed();
                }
            };
            if let Err(error) = drive(ended, retired, leave).await {
                tracing::trace!(%error, "upstream connection ended");
            }
            watched.closed.set(true);
        });
        Ok(Http2 { sender, load, place: place.map(Rc::new) })
    }
}

/// Leave to open a connection; `none`: there is none yet.
fn open_permit(limits: &Connections, none: bool) -> Option<OpenPermit> {
    limits.open().or_else(|| none.then(|| limits.open_above()))
}

/// Drives a connection to its end; `leave` is called when what carries it is to end.
async fn drive<T>(
    mut connection: impl Future<Output = T> + Unpin,
    retired: Option<CancellationToken>,
    leave: impl FnOnce(),
) -> T {
    let Some(retired) = retired else { return connection.await };
    tokio::select! {
        biased;
        ended = &mut connection => return ended,
        () = retired.cancelled() => leave(),
    }
    connection.await
}

fn remote(error: &impl std::error::Error) -> ConnectError {
    ConnectError::Remote(error.to_string())
}

/// One request on a connection that nobody else uses. An error brings the request back if nothing
/// of it was sent.
async fn exchange(
    mut connection: Http1,
    request: Request<RequestBody>,
) -> Result<(Response<Incoming>, Http1), (hyper::Error, Option<Request<RequestBody>>)> {
    let leaves = request.method() == Method::CONNECT || asks_upgrade(request.headers());
    connection.wanted.set(leaves);
    connection.served = connection.served.saturating_add(1);
    match connection.sender.try_send_request(request).await {
        Ok(response) => Ok((response.map(Incoming::Http1), connection)),
        Err(mut error) => {
            let unsent = error.take_message();
            Err((error.into_error(), unsent))
        }
    }
}

/// Takes the informational responses of an HTTP/1 endpoint.
fn listen(request: &mut Request<RequestBody>, early: &Early) {
    let (gate, early) = (request.body().gate(), early.clone());
    hyper::ext::on_informational(request, move |informational| {
        early.pass(informational.status(), informational.headers(), gate.as_deref());
    });
}

/// A copy to send once more, if that does no harm.
fn copy_of(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if request.method().is_idempotent() { twin(request) } else { None }
}

/// The same request again, if it has no body.
fn twin(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let mut copy = Request::new(request.body().again()?);
    request.method().clone_into(copy.method_mut());
    request.uri().clone_into(copy.uri_mut());
    request.headers().clone_into(copy.headers_mut());
    *copy.version_mut() = request.version();
    request.extensions().clone_into(copy.extensions_mut());
    Some(copy)
}

/// Whether the connection ended before the first byte of an answer.
fn closed(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || error.is_canceled() || is_io(error)
}

fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}
