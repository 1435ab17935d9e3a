//! HTTP connections of the load generator: to where, in which version, shared or not.
//!
//! A dropped connection takes its task with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::TargetArgs;
use super::report::{ErrorKind, Failure};

type Body = Full<Bytes>;

/// An answer, or an error that may bring the request back.
type Sent = Result<Response<Incoming>, TrySendError<Request<Body>>>;

/// How often a request that no server has begun with is sent again.
const RESENDS: u32 = 3;

/// Where to connect and the head of every request.
#[derive(Debug)]
pub(super) struct Target {
    address: String,
    http2: bool,
    uri: Uri,
    headers: HeaderMap,
}

/// A connection and the task that drives it.
pub(super) struct Connection<S> {
    sender: S,
    since: Instant,
    _driver: JoinSet<()>,
}

type Http1 = Connection<http1::SendRequest<Body>>;
type Http2 = Connection<http2::SendRequest<Body>>;

/// How a worker gets at a connection; made when first used, made again when it is broken.
pub(super) enum Link {
    Http1(Option<Http1>),
    Http2(Arc<Mutex<Option<Http2>>>),
}

impl Target {
    /// Checks and prepares what the command line says.
    ///
    /// # Errors
    /// A URL without a host, or a header that is none.
    pub(super) fn new(args: &TargetArgs) -> anyhow::Result<Self> {
        let url = args.url.clone().into_parts();
        let authority = url.authority.context("the URL names no host: write http://host/path")?;
        anyhow::ensure!(url.scheme == Some(Scheme::HTTP), "the URL must begin with http://");
        let address = match &args.connect {
            Some(address) => address.clone(),
            None => format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)),
        };
        let authority: Authority = match &args.host {
            Some(host) => host.parse().with_context(|| format!("--host {host}"))?,
            None => authority,
        };
        let mut headers = HeaderMap::new();
        for text in &args.headers {
            let (name, value) =
                text.split_once(':').with_context(|| format!("-H {text}: write `name: value`"))?;
            let name: HeaderName = name.parse().with_context(|| format!("-H {text}"))?;
            let value: HeaderValue = value.trim().parse().with_context(|| format!("-H {text}"))?;
            headers.append(name, value);
        }
        let path = url.path_and_query.unwrap_or(PathAndQuery::from_static("/"));
        let uri = if args.http2 {
            Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build()?
        } else {
            if !headers.contains_key(HOST) {
                headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
            }
            path.into()
        };
        Ok(Self { address, http2: args.http2, uri, headers })
    }

    /// A request with this target's head.
    pub(super) fn request(&self, method: Method, body: Bytes) -> Request<Body> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }

    /// A link of its own.
    pub(super) fn link(&self) -> Link {
        if self.http2 { Link::Http2(Arc::default()) } else { Link::Http1(None) }
    }

    async fn dial(&self) -> Result<TokioIo<TcpStream>, Failure> {
        let resolved = tokio::net::lookup_host(&self.address).await;
        let addresses = resolved.map_err(|error| ErrorKind::Resolve.because(&error))?;
        let mut failure = Failure { kind: ErrorKind::Resolve, text: "no address".to_owned() };
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // Without it a small request may wait for the last one's acknowledgement.
                    let _ = stream.set_nodelay(true);
                    return Ok(TokioIo::new(stream));
                }
                Err(error) => failure = ErrorKind::Connect.because(&error),
            }
        }
        Err(failure)
    }

    async fn http1(&self) -> Result<Http1, Failure> {
        let (sender, connection) = http1::handshake(self.dial().await?)
            .await
            .map_err(|error| ErrorKind::Handshake.because(&error))?;
        let mut driver = JoinSet::new();
        // Its error reaches whoever waits for an answer.
        driver.spawn(async move { drop(connection.with_upgrades().await) });
        Ok(Connection { sender, since: Instant::now(), _driver: driver })
    }

    async fn http2(&self) -> Result<Http2, Failure> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .handshake(self.dial().await?)
            .await
            .map_err(|error| ErrorKind::Handshake.because(&error))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        Ok(Connection { sender, since: Instant::now(), _driver: driver })
    }
}

impl Link {
    /// The same HTTP/2 connection, or for HTTP/1.1 another one.
    pub(super) fn share(&self) -> Self {
        match self {
            Self::Http1(_) => Self::Http1(None),
            Self::Http2(slot) => Self::Http2(Arc::clone(slot)),
        }
    }

    /// Sends a request, on a new connection if there is none; counts those it made. A request that
    /// a connection which ends has not begun with goes out again, as with any client.
    pub(super) async fn send(
        &mut self,
        target: &Target,
        request: impl Fn() -> Request<Body>,
        connections: &mut u64,
    ) -> Result<Response<Incoming>, Failure> {
        let mut resends = 0;
        loop {
            match self.try_send(target, request(), connections).await? {
                Ok(response) => return Ok(response),
                Err(error) if resends < RESENDS && is_untouched(&error) => self.abandon(),
                Err(error) => return Err(ErrorKind::Request.because(error.error())),
            }
            resends += 1;
        }
    }

    async fn try_send(
        &mut self,
        target: &Target,
        request: Request<Body>,
        connections: &mut u64,
    ) -> Result<Sent, Failure> {
        Ok(match self {
            Self::Http1(slot) => {
                // The server may have closed it while it was idle.
                if let Some(connection) = slot
                    && connection.sender.ready().await.is_err()
                {
                    *slot = None;
                }
                let connection = match slot {
                    Some(connection) => connection,
                    None => {
                        let made = target.http1().await?;
                        *connections += 1;
                        slot.insert(made)
                    }
                };
                connection.sender.try_send_request(request).await
            }
            Self::Http2(slot) => {
                let mut slot = slot.lock().await;
                let sender = match &*slot {
                    Some(connection) if !connection.sender.is_closed() => &connection.sender,
                    _ => {
                        let made = target.http2().await?;
                        *connections += 1;
                        &slot.insert(made).sender
                    }
                };
                let mut sender = sender.clone();
                // Others may send while this one waits.
                drop(slot);
                sender.try_send_request(request).await
            }
        })
    }

    /// Drops a connection of one's own that is older than `age`.
    pub(super) fn renew(&mut self, age: Duration) {
        if let Self::Http1(slot) = self {
            slot.take_if(|connection| connection.since.elapsed() >= age);
        }
    }

    /// Drops a connection of one's own; a shared one stays, as others use it.
    pub(super) fn abandon(&mut self) {
        if let Self::Http1(slot) = self {
            *slot = None;
        }
    }
}

/// Nothing of it was sent, or the server says so (RFC 9113 section 8.7).
fn is_untouched(error: &TrySendError<Request<Body>>) -> bool {
    let source = std::error::Error::source(error.error());
    let told = source.and_then(|source| source.downcast_ref::<h2::Error>());
    error.message().is_some()
        || told.is_some_and(|error| {
            let after_last = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            error.is_remote() && (after_last || refused)
        })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        target: TargetArgs,
    }

    fn target(words: &[&str]) -> anyhow::Result<Target> {
        Target::new(&Line::parse_from([&["load"], words].concat()).target)
    }

    #[test]
    fn http1_asks_in_origin_form_with_a_host() {
        let target = target(&["http://[::1]:81/a?b=1", "-H", "x-user: 7"]).unwrap();
        assert_eq!(target.address, "[::1]:81");
        let request = target.request(Method::GET, Bytes::new());
        assert_eq!(request.uri(), "/a?b=1");
        assert_eq!(request.headers()[HOST], "[::1]:81");
        assert_eq!(request.headers()["x-user"], "7");
    }

    #[test]
    fn http2_asks_with_an_authority() {
        let words = ["http://shop", "--http2", "--host", "cart", "--connect", "10.0.0.1:81"];
        let target = target(&words).unwrap();
        assert_eq!(target.address, "10.0.0.1:81");
        assert_eq!(target.request(Method::GET, Bytes::new()).uri(), "http://cart/");
    }

    #[test]
    fn other_schemes_are_refused() {
        assert!(target(&["https://shop/"]).is_err());
        assert!(target(&["/path"]).is_err());
    }
}
