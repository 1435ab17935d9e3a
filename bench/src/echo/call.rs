//! Servers that the echo server asks before it answers: what makes it one service among several.
//!
//! One connection for each call: the mesh has its own pools. Headers that name a request's user are
//! passed on, as applications do that are traced.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Passed on with each call.
const PASSED_ON: [&str; 3] = ["end-user", "x-user", "x-request-id"];

/// As patient as many an HTTP client.
const PATIENCE: Duration = Duration::from_secs(15);

/// Longest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// A server to ask.
#[derive(Debug)]
pub(super) struct Call {
    url: String,
    address: String,
    host: HeaderValue,
    target: Uri,
}

/// How a call has ended.
#[derive(Debug, Serialize)]
pub(super) struct Called {
    url: String,
    /// 0: no answer.
    status: u16,
    milliseconds: u64,
    /// The answer's body, as JSON if it is, or why there is none.
    answer: Value,
}

impl Call {
    /// # Errors
    /// A URL without a host.
    pub(super) fn new(url: Uri) -> anyhow::Result<Self> {
        let authority = url.authority().context("--call: write http://host[:port]/path")?;
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            url: url.to_string(),
            address: format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)),
            host: HeaderValue::from_str(authority.as_str())?,
            target: path.parse()?,
        })
    }

    /// Asks, for a request with these headers.
    pub(super) async fn ask(&self, headers: &HeaderMap) -> Called {
        let start = Instant::now();
        let asked = timeout(PATIENCE, self.exchange(headers)).await;
        let (status, answer) = match asked {
            Ok(Ok((status, body))) => (status.as_u16(), parsed(&body)),
            Ok(Err(error)) => (0, Value::String(format!("{error:#}"))),
            Err(_) => (0, Value::String(format!("no answer in {} s", PATIENCE.as_secs()))),
        };
        let milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Called { url: self.url.clone(), status, milliseconds, answer }
    }

    async fn exchange(&self, headers: &HeaderMap) -> anyhow::Result<(StatusCode, Bytes)> {
        let stream = TcpStream::connect(&self.address).await.context("connect")?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Dropped with this call, and so is the connection.
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = self.target.clone();
        let own = request.headers_mut();
        own.insert(HOST, self.host.clone());
        own.insert(CONNECTION, HeaderValue::from_static("close"));
        for name in PASSED_ON {
            if let Some(value) = headers.get(name) {
                own.insert(name, value.clone());
            }
        }
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the answer's body: {error}"))?;
        Ok((status, body.to_bytes()))
    }
}

impl Called {
    /// The status that an application answers with whose call ended so: it passes a failure on.
    pub(super) fn failure(&self) -> Option<StatusCode> {
        match self.status {
            0 => Some(StatusCode::BAD_GATEWAY),
            500.. => StatusCode::from_u16(self.status).ok(),
            _ => None,
        }
    }
}

fn parsed(body: &Bytes) -> Value {
    serde_json::from_slice(body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(body).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_what() {
        let call = Call::new("http://reviews:9080/reviews/0?a=1".parse().unwrap()).unwrap();
        assert_eq!((call.address.as_str(), call.target.path()), ("reviews:9080", "/reviews/0"));
        assert_eq!(call.host, "reviews:9080");
        assert_eq!(call.target.query(), Some("a=1"));
        assert!(Call::new("/reviews".parse().unwrap()).is_err());
    }

    #[test]
    fn failures_are_passed_on() {
        let called = |status| Called {
            url: String::new(),
            status,
            milliseconds: 0,
            answer: parsed(&Bytes::from_static(b"no healthy upstream")),
        };
        assert_eq!(called(0).failure(), Some(StatusCode::BAD_GATEWAY));
        assert_eq!(called(503).failure(), Some(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!((called(200).failure(), called(404).failure()), (None, None));
        assert_eq!(called(503).answer, "no healthy upstream");
    }
}
