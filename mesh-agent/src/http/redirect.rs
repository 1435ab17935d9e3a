//! The `Location` of a redirect. Pure. Source: Istio `HTTPRedirect`, Envoy `RedirectAction`.
//!
//! Invariant: the result is a URI, whatever the request's path is; a replaced authority stands as it
//! is written, unless a port is asked for; a default port is not written out.

use std::borrow::Cow;

use super::rewrite::replace_match;
use super::router::Head;
use crate::model::{HttpMatch, Redirect, RedirectPath, RedirectPort, path_of};

/// The absolute URL that the client is sent to. `port` is the one that it addressed; the head's
/// authority must be one.
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
    let authority = redirect.authority.as_deref().unwrap_or(head.authority);
    let (host, old_port) = split_port(authority);
    let kept = redirect.authority.is_none();
    let host = match redirect.port {
        // The old port goes if another is asked for, or if it was the old scheme's default.
        RedirectPort::Keep if kept && scheme != from && old_port == default_port(from) => host,
        RedirectPort::Keep => authority,
        _ => host,
    };
    let written = number.map_or_else(String::new, |number| format!(":{number}"));
    let mut location = format!("{scheme}://{host}{written}");
    push_target(&mut location, &target(redirect, entry, head), head.uri.query());
    location
}

/// The path, perhaps with a query and a fragment that the rule names.
fn target<'a>(redirect: &'a Redirect, entry: Option<&HttpMatch>, head: &Head<'a>) -> Cow<'a, str> {
    let path = path_of(head.uri);
    match &redirect.path {
        RedirectPath::Keep => path.into(),
        RedirectPath::Uri(uri) => (**uri).into(),
        RedirectPath::Prefix(replacement) => replace_match(path, entry, replacement).into(),
    }
}

/// Appends a path with its slash, and `query` unless it has its own, as a URI writes them: what may
/// not stand in one (RFC 3986 §2) is percent-encoded, as a `Location` must be a URI.
fn push_target(location: &mut String, target: &str, query: Option<&str>) {
    let (path, fragment) = match target.split_once('#') {
        Some((path, fragment)) => (path, Some(fragment)),
        None => (target, None),
    };
    if !path.starts_with('/') {
        location.push('/');
    }
    push_encoded(location, path);
    if let Some(query) = query.filter(|_| !path.contains('?')) {
        location.push('?');
        push_encoded(location, query);
    }
    if let Some(fragment) = fragment {
        location.push('#');
        push_encoded(location, fragment);
    }
}

fn push_encoded(location: &mut String, text: &str) {
    for octet in text.bytes() {
        if octet.is_ascii_alphanumeric() || b"-._~:/?@!$&'()*+,;=%".contains(&octet) {
            location.push(char::from(octet));
        } else {
            location.push_str(&format!("%{octet:02X}"));
        }
    }
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
    fn the_result_is_a_uri() {
        let uri = |text: &str| Redirect { path: RedirectPath::Uri(text.into()), ..keep() };
        check(&uri("new"), "web", "/old?q=1", "http://web/new?q=1");
        check(&uri("/a b#top"), "web", "/old?q=1", "http://web/a%20b?q=1#top");
        check(&keep(), "web", "/old/\u{e9}{?q={", "http://web/old/%C3%A9%7B?q=%7B");
        check(&keep(), "web", "/old/%C3%A9", "http://web/old/%C3%A9");
        let prefix = Redirect { path: RedirectPath::Prefix("n".into()), ..keep() };
        check(&prefix, "web", "/old/a", "http://web/n/a");
    }

    #[test]
    fn authorities_and_ports() {
        let authority = Redirect { authority: Some("other".into()), ..keep() };
        check(&authority, "web:8080", "/", "http://other/");
        let both =
            Redirect { port: RedirectPort::Number(81), authority: Some("o:1".into()), ..keep() };
        check(&both, "web:8080", "/", "http://o:81/");
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
