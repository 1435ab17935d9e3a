//! The form in which a request's head goes to its endpoint: path, authority, and the target as the
//! endpoint's version of HTTP writes it. Pure.
//!
//! Invariant: authority precedence is the rewrite's, then the destination's, then the client's
//! (istio-surface 1.1.1). Sources: RFC 9112 §3.2 (forms of the target), RFC 9113 §8.3.1.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Uri, Version};

use super::plan::Plan;
use super::serve::HttpVersion;
use super::{headers, strict};
use crate::model::{Alpn, ServiceTarget, TlsTarget};

/// Where a request comes from.
pub(super) struct Origin {
    /// What the client speaks.
    pub(super) version: HttpVersion,
    /// The address that it dialled.
    pub(super) dialled: SocketAddr,
}

/// Brings a head into the form that goes to the endpoint. `None`: it has no legal form.
pub(super) fn prepare(
    parts: &mut Parts,
    plan: &Plan<'_>,
    authority: Option<HeaderValue>,
    from: &Origin,
) -> Option<()> {
    if let Some(path) = &plan.path {
        let before = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned();
        headers::original_path(&mut parts.headers, &before);
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.path_and_query = Some(path.clone());
        parts.uri = Uri::from_parts(uri).ok()?;
    }
    for ops in plan.request_ops.into_iter().flatten() {
        headers::apply(ops, &mut parts.headers);
    }
    let authority = plan.authority.cloned().or(authority);
    match plan.version {
        HttpVersion::Http1 => {
            // To a forward proxy outside the mesh the absolute form means something.
            let absolute = plan.untouched && from.version == HttpVersion::Http1;
            http1(parts, authority, from.dialled, absolute)
        }
        HttpVersion::Http2 => http2(parts, authority, from.dialled),
    }
}

fn http1(
    parts: &mut Parts,
    authority: Option<HeaderValue>,
    dialled: SocketAddr,
    absolute: bool,
) -> Option<()> {
    headers::join_cookies(&mut parts.headers);
    headers::keep_te_on_the_hop(&mut parts.headers);
    strict::one_length(&mut parts.headers, None, false);
    let fallback = || HeaderValue::from_str(&dialled.to_string()).ok();
    parts.headers.insert(HOST, authority.or_else(fallback)?);
    if !absolute && parts.method != Method::CONNECT && parts.uri.authority().is_some() {
        parts.uri = Uri::from(origin_form(parts.uri.path_and_query())?);
    }
    parts.version = Version::HTTP_11;
    Some(())
}

/// TLS that a destination's policy has the agent speak, for the host that a prepared head names
/// (Envoy's `auto_sni`).
pub(super) fn tls(
    parts: &Parts,
    target: &ServiceTarget<'_>,
    version: HttpVersion,
) -> Option<Arc<TlsTarget>> {
    target.policy.tls.as_ref()?;
    let of_header = || Authority::try_from(parts.headers.get(HOST)?.as_bytes()).ok();
    let authority = parts.uri.authority().cloned().or_else(of_header);
    let host = authority.as_ref().map(|authority| authority.host().trim_matches(['[', ']']));
    let alpn = match version {
        HttpVersion::Http1 => Alpn::Http1,
        HttpVersion::Http2 => Alpn::Http2,
    };
    TlsTarget::of(target.policy, Some(target.service), host, alpn).map(Arc::new)
}

/// Says in an HTTP/2 request that it goes over TLS (RFC 9113 §8.3.1); HTTP/1 has no place for it.
pub(super) fn over_tls<B>(request: &mut Request<B>) {
    let mut uri = request.uri().clone().into_parts();
    if uri.authority.is_some() && uri.path_and_query.is_some() {
        uri.scheme = Some(Scheme::HTTPS);
    }
    if let Ok(uri) = Uri::from_parts(uri) {
        *request.uri_mut() = uri;
    }
}

/// A copy of a head. Without extensions: those are for the original's connection.
pub(super) fn copied(parts: &Parts) -> Parts {
    let (mut copy, ()) = Request::new(()).into_parts();
    copy.method.clone_from(&parts.method);
    copy.uri.clone_from(&parts.uri);
    copy.headers.clone_from(&parts.headers);
    copy.version = parts.version;
    copy
}

/// Brings a head that was prepared for one version of HTTP into the form of another.
pub(super) fn revise(
    parts: &mut Parts,
    (from, to): (HttpVersion, HttpVersion),
    dialled: SocketAddr,
) -> Option<()> {
    match (from, to) {
        (HttpVersion::Http1, HttpVersion::Http2) => {
            let authority = parts.headers.get(HOST).cloned();
            parts.headers.remove(TRANSFER_ENCODING);
            http2(parts, authority, dialled)
        }
        (HttpVersion::Http2, HttpVersion::Http1) => {
            let authority = parts.uri.authority().map(Authority::as_str);
            let authority = authority.and_then(|text| HeaderValue::from_str(text).ok());
            http1(parts, authority, dialled, false)
        }
        _ => Some(()),
    }
}

/// The target without scheme and authority, behind which the path may have been left out (RFC 9112
/// §3.2.1): then its text begins with a query, or is empty, which reads as `/`.
fn origin_form(target: Option<&PathAndQuery>) -> Option<PathAndQuery> {
    match target.map_or("/", PathAndQuery::as_str) {
        "/" => Some(PathAndQuery::from_static("/")),
        text if text.starts_with(['/', '*']) => target.cloned(),
        text => format!("/{text}").parse().ok(),
    }
}

fn http2(parts: &mut Parts, authority: Option<HeaderValue>, dialled: SocketAddr) -> Option<()> {
    let authority = authority.and_then(|value| value.to_str().ok().map(str::to_owned));
    let authority: Authority = authority.unwrap_or_else(|| dialled.to_string()).parse().ok()?;
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.authority = Some(authority);
    uri.scheme.get_or_insert(Scheme::HTTP);
    uri.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    parts.uri = Uri::from_parts(uri).ok()?;
    for name in [HOST, CONNECTION, UPGRADE] {
        parts.headers.remove(name);
    }
    parts.version = Version::HTTP_2;
    Some(())
}
