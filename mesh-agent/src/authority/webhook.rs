//! The admission webhook's listener: HTTPS under the authority's certificate, one path.
//!
//! The API server asks; but anybody in the cluster can connect, and is answered too: an answer changes
//! nothing. Invariant: what callers can make it hold is bounded (connections, octets, time, objects
//! that are looked at), and whatever they send, they get an answer or are cut off.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::admission::{BadReview, Outcome, Rules, answer};
use super::metrics::Metrics;
use super::places::{BoxError, Places, accept, bounded, held, secured};
use super::root::Root;

/// Where the API server asks.
const PATH: &str = "/validate";
/// Connections in all, and of one address; at the limit a further one is closed at once.
const CONNECTIONS: usize = 256;
const CONNECTIONS_PER_ADDRESS: usize = 64;
/// Time for the head of a request, the wait for it on an open connection included: the API server
/// keeps its connections for the next review.
const HEAD: Duration = Duration::from_secs(60);
/// Octets of a review: two versions of an object of etcd's largest (1.5 MiB), and what is around
/// them. A larger one is answered 413.
const LARGEST: usize = 4 << 20;
/// Time for a request, from its head to the answer; the API server waits for five seconds.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Reviews that are read at a time; further ones wait.
const READS: usize = 16;
/// Reviews that are looked at, at a time: as JSON one takes up to twenty times its octets.
const LOOKS: usize = 2;
/// Time for what is under way on a connection that takes no new requests.
const LAST_REQUEST: Duration = Duration::from_secs(5);

/// Answers reviews.
pub(super) struct Webhook {
    rules: Arc<Rules>,
    reads: Semaphore,
    looks: Semaphore,
    metrics: Arc<Metrics>,
}

/// Why a request gets no verdict.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("larger than {max} bytes", max = LARGEST)]
    TooLarge,
    #[error("the request cannot be read: {0}")]
    Body(String),
    #[error(transparent)]
    Review(#[from] BadReview),
    #[error("not in time")]
    Late,
    #[error("a fault of the authority's own")]
    Own,
}

impl Webhook {
    /// Listens nowhere yet.
    pub(super) fn new(rules: Rules, metrics: Arc<Metrics>) -> Self {
        let (reads, looks) = (Semaphore::new(READS), Semaphore::new(LOOKS));
        Self { rules: Arc::new(rules), reads, looks, metrics }
    }

    /// Serves until dropped, under the certificate that `root` has at the time.
    pub(super) async fn serve(self: &Arc<Self>, root: &Root, listener: TcpListener) {
        let places = Arc::new(Places::new(CONNECTIONS_PER_ADDRESS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let (stream, peer) = accept(&listener).await;
            let place = places.take(peer.ip()).filter(|_| connections.len() < CONNECTIONS);
            let (Some(place), Some(root)) = (place, root.current()) else {
                tracing::debug!(%peer, "no place or no certificate for a connection, closed");
                continue;
            };
            let webhook = Arc::clone(self);
            connections.spawn(held(place, connection(webhook, root.https.clone(), stream)));
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return reply(StatusCode::NOT_FOUND, TEXT, format!("try {PATH}\n"));
        }
        if request.method() != Method::POST {
            return reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only POST\n".to_owned());
        }
        let judged = tokio::time::timeout(TIMEOUT, self.judge(request)).await;
        match judged.unwrap_or(Err(Failure::Late)) {
            Ok(body) => reply(StatusCode::OK, "application/json", body),
            Err(failure) => {
                self.metrics.unanswered();
                tracing::debug!(error = %failure, "a review cannot be answered");
                reply(failure.status(), TEXT, format!("{failure}\n"))
            }
        }
    }

    async fn judge(&self, request: Request<Incoming>) -> Result<String, Failure> {
        let body = {
            let _place = self.reads.acquire().await;
            let body = Limited::new(request.into_body(), LARGEST).collect().await;
            body.map_err(|error| Failure::of_body(&*error))?.to_bytes()
        };
        let _place = self.looks.acquire().await;
        let rules = Arc::clone(&self.rules);
        // Megabytes of JSON take longer than others should wait on this thread.
        let answered = tokio::task::spawn_blocking(move || answer(&body, &rules)).await;
        let (outcome, body) = answered.map_err(|_| Failure::Own)??;
        self.metrics.reviewed(outcome);
        if outcome == Outcome::Refused {
            let message = body.pointer("/response/status/message");
            let reason = message.and_then(serde_json::Value::as_str).unwrap_or_default();
            tracing::info!(reason, "object refused");
        }
        Ok(body.to_string())
    }
}

impl Failure {
    fn of_body(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Self {
        match error.is::<LengthLimitError>() {
            true => Self::TooLarge,
            false => Self::Body(error.to_string()),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(_) | Self::Review(_) => StatusCode::BAD_REQUEST,
            Self::Late => StatusCode::REQUEST_TIMEOUT,
            Self::Own => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

async fn connection(
    webhook: Arc<Webhook>,
    tls: Arc<ServerConfig>,
    stream: TcpStream,
) -> Result<(), BoxError> {
    let stream = secured(&tls, stream).await?;
    let service = service_fn(move |request| {
        let webhook = Arc::clone(&webhook);
        async move { Ok::<_, Infallible>(webhook.respond(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    bounded(connection, |open| open.graceful_shutdown(), LAST_REQUEST).await
}

const TEXT: &str = "text/plain; charset=utf-8";

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(Bytes::from(text)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}
