//! The `Location` of a redirect. Pure. Source: Istio `HTTPRedirect`, Envoy `RedirectAction`.
//!
//! Invariant: a replaced authority stands as it is written; a default port is not written out.

use super::rewrite::replace_match;
use super::router::Head;
use crate::model::{HttpMatch, Redirect, RedirectPath, RedirectPort, path_of};

/// The absolute URL that the client is sent to. `port` is the one that it addressed.
pub(super) fn location(
    redirect: &Redirect,
    entry: Option<&HttpMatch>,
    head: &Head<'_>,
    port: u16,
) -> String {
    let from = head.uri.scheme_str().unwrap_or("http");
    let scheme = redirect.scheme.as_deref().unwrap_or(from);
    let number = match redirect.port {
        RedirectPort::Keep | RedirectPort::ProtocolDefault => None,
        RedirectPort::Number(number) => Some(number),
        RedirectPort::RequestPort => Some(port),
    }
    .filter(|number| Some(*number) != default_port(scheme));
    let (host, old_port) = split_port(head.authority);
    let host = match &redirect.authority {
        Some(authority) => authority,
        // The old port goes if another is asked for, or if it was the old scheme's default.
        None if redirect.port != RedirectPort::Keep => host,
        None if scheme != from && old_port.is_some() && old_port == default_port(from) => host,
        None => head.authority,
    };
    let written = number.map_or_else(String::new, |number| format!(":{number}"));
    let path = path_of(head.uri);
    let path = match &redirect.path {
        RedirectPath::Keep => path.to_owned(),
        RedirectPath::Uri(uri) => (**uri).to_owned(),
        RedirectPath::Prefix(replacement) => replace_match(path, entry, replacement),
    };
    let query = match head.uri.query() {
        Some(query) if !path.contains('?') => format!("?{query}"),
        _ => String::new(),
    };
    format!("{scheme}://{host}{written}{path}{query}")
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        // A colon inside brackets belongs to an IPv6 address.
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, StatusCode};

    use super::*;
    use crate::model::StringMatch;

    fn check(redirect: &Redirect, authority: &str, uri: &str, expected: &str) {
        let entry =
            HttpMatch { uri: Some(StringMatch::Prefix("/old".into())), ..HttpMatch::default() };
        let head = Head {
            method: &Method::GET,
            uri: &uri.parse().unwrap(),
            headers: &HeaderMap::new(),
            authority,
        };
        assert_eq!(location(redirect, Some(&entry), &head, 8_080), expected);
    }

    fn keep() -> Redirect {
        Redirect {
            path: RedirectPath::Keep,
            authority: None,
            port: RedirectPort::Keep,
            scheme: None,
            code: StatusCode::MOVED_PERMANENTLY,
        }
    }

    #[test]
    fn paths() {
        let uri = Redirect { path: RedirectPath::Uri("/new".into()), ..keep() };
        check(&uri, "web:8080", "/old/a?q=1", "http://web:8080/new?q=1");
        let own_query = Redirect { path: RedirectPath::Uri("/new?x".into()), ..keep() };
        check(&own_query, "web", "/old?q=1", "http://web/new?x");
        let prefix = Redirect { path: RedirectPath::Prefix("/n".into()), ..keep() };
        check(&prefix, "web", "/old/a?q", "http://web/n/a?q");
    }

    #[test]
    fn authorities_and_ports() {
        let authority = Redirect { authority: Some("other".into()), ..keep() };
        check(&authority, "web:8080", "/", "http://other/");
        let port = |port| Redirect { port, ..keep() };
        check(&port(RedirectPort::Number(9_000)), "web:8080", "/", "http://web:9000/");
        check(&port(RedirectPort::Number(80)), "web:8080", "/", "http://web/");
        check(&port(RedirectPort::ProtocolDefault), "web:8080", "/", "http://web/");
        check(&port(RedirectPort::RequestPort), "web", "/", "http://web:8080/");
        check(&port(RedirectPort::Number(81)), "[fd00::1]:80", "/", "http://[fd00::1]:81/");
    }

    #[test]
    fn schemes() {
        let https = Redirect { scheme: Some("https".into()), ..keep() };
        check(&https, "web:80", "/a", "https://web/a");
        check(&https, "web:8080", "/a", "https://web:8080/a");
        check(&https, "[fd00::1]", "/a", "https://[fd00::1]/a");
        let default = Redirect { port: RedirectPort::Number(443), ..https };
        check(&default, "web:80", "/", "https://web/");
    }
}
