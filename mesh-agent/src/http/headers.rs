//! Header rules: what a proxy removes, what it adds, and what a route asks for. Pure.
//!
//! Invariant: end-to-end headers pass as they came. Sources: RFC 9110 §7.6.1 (hop-by-hop),
//! RFC 9113 §8.2.2 and §8.2.3 (HTTP/2), Envoy's `x-envoy-*`, Istio `Headers`.

use std::time::Duration;

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, MAX_FORWARDS, SERVER,
    SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

use crate::model::HeaderOps;

/// Name of the request id.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Whether the head asks for a change of protocol (`Connection: upgrade`). To another version of
/// HTTP nobody changes here: its requests would pass unseen (RFC 9110 §7.8 leaves it to the server).
pub(super) fn asks_upgrade(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(UPGRADE).iter();
    let (Some(protocols), None) = (lines.next(), lines.next()) else { return false };
    let named = connection_options(headers).any(|name| name.eq_ignore_ascii_case(b"upgrade"));
    let of_http = |protocol: &[u8]| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
        [&b"h2c"[..], b"h2", b"http"].iter().any(|http| name.eq_ignore_ascii_case(http))
    };
    named && !list(protocols).any(of_http)
}

/// Whether an answer switches to what was asked for, and to nothing else.
pub(super) fn switches_to(asked: &HeaderValue, answer: &HeaderMap) -> bool {
    let mut lines = answer.get_all(UPGRADE).iter();
    let (Some(protocols), None) = (lines.next(), lines.next()) else { return false };
    let mut protocols = list(protocols).filter(|protocol| !protocol.is_empty()).peekable();
    let was_asked = |to: &[u8]| list(asked).any(|protocol| protocol.eq_ignore_ascii_case(to));
    protocols.peek().is_some() && protocols.all(was_asked)
}

/// The elements of a comma-separated value. Bytes: one that is not ASCII must not hide the others.
fn list(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Whether the content type is gRPC's.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    match kind.strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';' | b' ')),
        None => false,
    }
}

/// Removes what is meant for one connection only. `Upgrade` and its `Connection` stay if `upgrade`;
/// `TE: trailers` stays always, or gRPC and trailers would break.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    let trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"));
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> =
            connection_options(headers).filter_map(|name| name.try_into().ok()).collect();
        for name in named {
            if !(upgrade && name == UPGRADE) {
                headers.remove(name);
            }
        }
    }
    for name in [&CONNECTION, &KEEP_ALIVE, &PROXY_CONNECTION, &TRANSFER_ENCODING, &TE] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(CONNECTION).iter().flat_map(list)
}

/// `TE` is for the next hop only, and says so (RFC 9110 §10.1.4).
pub(super) fn keep_te_on_the_hop(headers: &mut HeaderMap) {
    if headers.contains_key(TE) {
        headers.append(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Removes from trailers what only means something in a head (RFC 9110 §6.5.1).
pub(super) fn strip_trailers(trailers: &mut HeaderMap) {
    while let Some(name) = trailers.keys().find(|name| is_of_head(name)).cloned() {
        trailers.remove(name);
    }
}

/// Fields that frame, route, authenticate, or say how to read the content.
fn is_of_head(name: &HeaderName) -> bool {
    let of_hop = [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, TE, UPGRADE];
    let of_message = [HOST, TRAILER, CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING, CONTENT_RANGE];
    let others = [CACHE_CONTROL, MAX_FORWARDS, AUTHORIZATION, SET_COOKIE];
    of_hop.contains(name) || of_message.contains(name) || others.contains(name)
}

/// HTTP/2 splits cookies over several fields; HTTP/1.1 knows one (RFC 9113 §8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let parts: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// `remove`, then `set`, then `add`: Envoy's `HeaderParser` removes first, so that what is put in the
/// place of a header stays.
pub(super) fn apply(ops: &HeaderOps, headers: &mut HeaderMap) {
    for name in &ops.remove {
        headers.remove(name);
    }
    for edit in &ops.set {
        headers.insert(&edit.name, edit.value.clone());
    }
    for edit in &ops.add {
        headers.append(&edit.name, edit.value.clone());
    }
}

/// What a client-side proxy adds before routing. Returns the request's id.
pub(super) fn identify(headers: &mut HeaderMap, draws: (u64, u64)) -> HeaderValue {
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    headers.entry(REQUEST_ID).or_insert_with(|| request_id(draws)).clone()
}

/// A version 4 UUID (RFC 9562) of 122 drawn bits.
fn request_id((high, low): (u64, u64)) -> HeaderValue {
    let high = (high & !0xf000) | 0x4000;
    let low = (low & !(0b11 << 62)) | (0b10 << 62);
    let text = format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    );
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// What the endpoint learns about an attempt.
pub(super) fn attempt(headers: &mut HeaderMap, number: u32, timeout: Option<Duration>) {
    headers.insert(ATTEMPT_COUNT, HeaderValue::from(number));
    if let Some(timeout) = timeout {
        headers.insert(EXPECTED_TIMEOUT, milliseconds(timeout));
    }
}

/// The path before a rewrite.
pub(super) fn original_path(headers: &mut HeaderMap, path: &str) {
    if let Ok(value) = HeaderValue::from_str(path) {
        headers.insert(ORIGINAL_PATH, value);
    }
}

/// What the client learns from a response of an endpoint that took `time`.
pub(super) fn answered(headers: &mut HeaderMap, time: Duration) {
    headers.insert(SERVICE_TIME, milliseconds(time));
    name_server(headers);
}

/// `server: envoy` unless there is one: what an Istio sidecar does on the client's side.
pub(super) fn name_server(headers: &mut HeaderMap) {
    headers.entry(SERVER).or_insert(HeaderValue::from_static("envoy"));
}

fn milliseconds(time: Duration) -> HeaderValue {
    HeaderValue::from(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// The route's time-out, shortened by a `grpc-timeout` that is less (gRPC over HTTP/2, "Timeout").
pub(super) fn timeout(route: Option<Duration>, headers: &HeaderMap) -> Option<Duration> {
    let route = route?;
    let asked = headers.get(GRPC_TIMEOUT).and_then(|value| value.to_str().ok());
    Some(asked.and_then(grpc_timeout).map_or(route, |asked| asked.min(route)))
}

fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3_600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HeaderEdit;

    fn map(entries: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in entries {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn text(map: &HeaderMap) -> String {
        let mut lines: Vec<String> = map
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines.join("\n")
    }

    #[test]
    fn hop_by_hop_headers_stay_on_their_hop() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Mine"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-mine", "1"),
            ("x-yours", "2"),
        ]);
        strip_hop_by_hop(&mut headers, false);
        assert_eq!(text(&headers), "te: trailers\nx-yours: 2");
    }

    #[test]
    fn an_upgrade_keeps_its_two_headers() {
        let mut headers = map(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "abc"),
        ]);
        assert!(asks_upgrade(&headers));
        strip_hop_by_hop(&mut headers, true);
        let expected = "connection: upgrade\nsec-websocket-key: abc\nupgrade: websocket";
        assert_eq!(text(&headers), expected);
        assert!(!asks_upgrade(&map(&[("upgrade", "websocket")])), "no connection option");
        assert!(!asks_upgrade(&map(&[("connection", "upgrade")])), "no protocol");
    }

    #[test]
    fn remove_then_set_then_add() {
        let edit = |name: &'static str, value: &'static str| HeaderEdit {
            name: HeaderName::from_static(name),
            value: HeaderValue::from_static(value),
        };
        let ops = HeaderOps {
            set: vec![edit("a", "new"), edit("d", "set")],
            add: vec![edit("a", "more"), edit("b", "first"), edit("e", "only")],
            remove: ["c", "d", "e"].map(HeaderName::from_static).into(),
        };
        let found = [("a", "1"), ("a", "2"), ("b", "0"), ("c", "gone"), ("d", "0"), ("e", "0")];
        let mut headers = map(&found);
        apply(&ops, &mut headers);
        assert_eq!(text(&headers), "a: more\na: new\nb: 0\nb: first\nd: set\ne: only");
    }

    #[test]
    fn cookies_become_one() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut headers);
        assert_eq!(text(&headers), "cookie: a=1; b=2");
    }

    #[test]
    fn request_ids_are_uuids_and_are_kept() {
        let mut headers = HeaderMap::new();
        let id = identify(&mut headers, (u64::MAX, 0));
        assert_eq!(id, "ffffffff-ffff-4fff-8000-000000000000");
        assert_eq!(identify(&mut headers, (1, 2)), id);
        assert_eq!(headers[FORWARDED_PROTO], "http");
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&map(&[("content-type", kind)])), expected, "{kind}");
        }
    }

    #[test]
    fn grpc_timeouts_only_shorten_the_routes() {
        let route = Some(Duration::from_secs(3));
        for (asked, expected) in [
            ("250m", Duration::from_millis(250)),
            ("2S", Duration::from_secs(2)),
            ("1H", Duration::from_secs(3)),
            ("99999999999S", Duration::from_secs(3)),
            ("S", Duration::from_secs(3)),
            ("+1S", Duration::from_secs(3)),
            ("5é", Duration::from_secs(3)),
        ] {
            let headers = HeaderMap::from_iter([(
                GRPC_TIMEOUT,
                HeaderValue::from_bytes(asked.as_bytes()).unwrap(),
            )]);
            assert_eq!(timeout(route, &headers), Some(expected), "{asked}");
            assert_eq!(timeout(None, &headers), None);
        }
    }

    #[test]
    fn the_endpoints_own_server_name_stays() {
        let mut headers = map(&[("server", "nginx")]);
        answered(&mut headers, Duration::from_micros(2_900));
        assert_eq!(text(&headers), "server: nginx\nx-envoy-upstream-service-time: 2");
        let mut headers = HeaderMap::new();
        name_server(&mut headers);
        assert_eq!(text(&headers), "server: envoy");
    }
}
