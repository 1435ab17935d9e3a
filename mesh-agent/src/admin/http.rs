//! What Kubernetes and Prometheus ask an agent over the network: `/healthz`, `/readyz`, `/metrics`.
//!
//! Read-only and without secrets; everything else is on the Unix socket.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Ask;

/// Callers at a time; further ones wait to be accepted.
const CALLERS: usize = 32;
/// A caller that has not sent a request after this long is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// OpenMetrics 1.0, section 3.1.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is asked for.
pub struct Probes {
    /// What keeps the agent from serving, by name; empty once it serves.
    pub missing: Ask<Vec<String>>,
    /// All metrics.
    pub registry: Registry,
}

/// Serves until dropped.
pub async fn serve_probes(listener: TcpListener, probes: Arc<Probes>) {
    let places = Arc::new(Semaphore::new(CALLERS));
    let mut callers = tokio::task::JoinSet::new();
    loop {
        while callers.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let probes = probes.clone();
                callers.spawn(async move {
                    serve_one(stream, probes).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "probes cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one(stream: TcpStream, probes: Arc<Probes>) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &probes);
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a probe's connection ended early");
    }
}

fn answer(method: &Method, path: &str, probes: &Probes) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if method != Method::GET && method != Method::HEAD {
        return reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n".to_owned());
    }
    match path {
        "/healthz" => reply(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => {
            let missing = (probes.missing)();
            if missing.is_empty() {
                return reply(StatusCode::OK, TEXT, "ready\n".to_owned());
            }
            let mut text = String::from("not ready, waiting for:\n");
            for name in missing {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "- {name}");
            }
            reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
        }
        "/metrics" => {
            let mut text = String::new();
            match prometheus_client::encoding::text::encode(&mut text, &probes.registry) {
                Ok(()) => reply(StatusCode::OK, OPENMETRICS, text),
                Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
            }
        }
        _ => reply(StatusCode::NOT_FOUND, TEXT, "try /healthz, /readyz or /metrics\n".to_owned()),
    }
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(Bytes::from(text)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    reply
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    async fn ask(method: Method, path: &str, missing: &[&str]) -> (u16, String) {
        let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
        let mut registry = Registry::default();
        registry.register("apples", "Apples", Counter::<u64>::default());
        let probes = Probes { missing: Box::new(move || missing.clone()), registry };
        let answer = answer(&method, path, &probes);
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_names_what_is_missing() {
        let (status, text) = ask(Method::GET, "/readyz", &["list of Pod", "list of Service"]).await;
        assert_eq!(status, 503);
        assert_eq!(text, "not ready, waiting for:\n- list of Pod\n- list of Service\n");
        assert_eq!(ask(Method::GET, "/readyz", &[]).await, (200, "ready\n".to_owned()));
        assert_eq!(ask(Method::GET, "/healthz", &["x"]).await.0, 200);
    }

    #[tokio::test]
    async fn metrics_are_open_metrics() {
        let (status, text) = ask(Method::GET, "/metrics", &[]).await;
        assert_eq!(status, 200);
        assert!(text.contains("apples_total 0") && text.ends_with("# EOF\n"), "{text}");
    }

    #[tokio::test]
    async fn nothing_else_is_answered() {
        assert_eq!(ask(Method::GET, "/", &[]).await.0, 404);
        assert_eq!(ask(Method::POST, "/readyz", &[]).await.0, 405);
    }
}
