//! What HTTP forbids and the parsers let through: hosts, targets, codings, lengths, blanks. Pure.
//!
//! Not here: what `hyper` and `h2` refuse by themselves (`HTTP.md` lists both). Invariant: a message
//! that passes means the same to whoever reads it next. Sources: RFC 9110 §8.6, RFC 9112 §3.2 and
//! §6, RFC 9113 §8.2 and §8.3.

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};

use super::error::HttpError;
use super::serve::HttpVersion;
use crate::model::is_authority;

/// Checks a request's head; `content`: a body follows.
///
/// # Errors
/// What its client is to be told.
pub(super) fn request(parts: &Parts, client: HttpVersion, content: bool) -> Result<(), HttpError> {
    let legal = match client {
        HttpVersion::Http1 => coding(&parts.headers)? && hosts_of_http1(parts),
        HttpVersion::Http2 => {
            trimmed(&parts.headers)
                && hosts_of_http2(parts)
                && parts.headers.get(CONTENT_LENGTH).is_none_or(|length| !length.is_empty())
        }
    };
    let legal = legal && target(parts, client, content);
    if legal { Ok(()) } else { Err(HttpError::Malformed) }
}

/// Whether a response's head is one that may be forwarded.
pub(super) fn response(headers: &HeaderMap, endpoint: HttpVersion) -> bool {
    let framed = match endpoint {
        // Both together ought to be handled as an error (RFC 9112 §6.3).
        HttpVersion::Http1 if headers.contains_key(TRANSFER_ENCODING) => {
            !headers.contains_key(CONTENT_LENGTH) && coding(headers) == Ok(true)
        }
        HttpVersion::Http1 => true,
        HttpVersion::Http2 => trimmed(headers),
    };
    framed && length(headers).is_some()
}

/// One `Content-Length` in place of equal ones, and none where there can be no body. `switched`: the
/// response leaves HTTP.
pub(super) fn one_length(headers: &mut HeaderMap, status: Option<StatusCode>, switched: bool) {
    let none = status.is_some_and(|status| {
        switched || status.is_informational() || status == StatusCode::NO_CONTENT
    });
    if none {
        headers.remove(CONTENT_LENGTH);
        return;
    }
    let mut lines = headers.get_all(CONTENT_LENGTH).iter();
    let (Some(first), second) = (lines.next(), lines.next()) else { return };
    if (second.is_some() || first.as_bytes().contains(&b','))
        && let Some(Some(length)) = length(headers)
    {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// What `Content-Length` says: nothing, or the same number once or more often. `None`: it is
/// invalid.
fn length(headers: &HeaderMap) -> Option<Option<u64>> {
    let mut found = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for part in value.as_bytes().split(|byte| *byte == b',') {
            let part = part.trim_ascii();
            // The parser of numbers takes a sign.
            let digits = part.iter().all(u8::is_ascii_digit).then_some(part)?;
            let length: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
            if found.is_some_and(|before| before != length) {
                return None;
            }
            found = Some(length);
        }
    }
    Some(found)
}

/// The only transfer coding that is spoken here is `chunked`, once. `hyper` has looked at the last
/// coding only.
fn coding(headers: &HeaderMap) -> Result<bool, HttpError> {
    let is_chunked = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
    let mut lines = headers.get_all(TRANSFER_ENCODING).iter();
    match (lines.next(), lines.next()) {
        (None, _) => return Ok(true),
        (Some(line), None) if is_chunked(line.as_bytes()) => return Ok(true),
        _ => {}
    }
    let lines = headers.get_all(TRANSFER_ENCODING).iter();
    let codings = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    match codings.filter(|coding| is_chunked(coding)).count() {
        0 | 1 => Err(HttpError::Coding),
        _ => Ok(false),
    }
}

/// One `Host`, which may be empty; an absolute target has its own host. HTTP/1.0 may have none.
fn hosts_of_http1(parts: &Parts) -> bool {
    let mut hosts = parts.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => false,
        (None, None) => parts.version == Version::HTTP_10,
        (Some(host), None) => host.is_empty() || is_authority(host.as_bytes()),
    }
}

/// `:authority`, `Host` or both, which then are the same.
fn hosts_of_http2(parts: &Parts) -> bool {
    let mut hosts = parts.headers.get_all(HOST).iter();
    match (parts.uri.authority(), hosts.next(), hosts.next()) {
        (_, _, Some(_)) | (None, None, None) => false,
        (None, Some(host), None) => is_authority(host.as_bytes()),
        (Some(_), None, None) => true,
        (Some(authority), Some(host), None) => {
            let plain =
                |text: &[u8]| text.strip_suffix(b":80").unwrap_or(text).to_ascii_lowercase();
            plain(authority.as_str().as_bytes()) == plain(host.as_bytes())
        }
    }
}

/// The forms of a target that the method may have (RFC 9112 §3.2, RFC 9113 §8.3.1).
fn target(parts: &Parts, client: HttpVersion, content: bool) -> bool {
    let uri = &parts.uri;
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    if !authority.is_none_or(is_authority) {
        return false;
    }
    if parts.method == Method::CONNECT {
        let port = uri.port_u16().is_some_and(|port| port != 0);
        return port && uri.scheme().is_none() && uri.path().is_empty() && !content;
    }
    let path =
        uri.path().starts_with('/') || (uri.path() == "*" && parts.method == Method::OPTIONS);
    let whole = client == HttpVersion::Http2 || uri.scheme().is_some() == authority.is_some();
    path && whole
}

/// No value begins or ends with a blank, as RFC 9113 §8.2.1 wants; HTTP/1's parser trims.
fn trimmed(headers: &HeaderMap) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    headers
        .values()
        .map(HeaderValue::as_bytes)
        .all(|value| !blank(value.first()) && !blank(value.last()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        for (values, expected) in [
            (&[][..], Some(None)),
            (&["5"], Some(Some(5))),
            (&["5", "5"], Some(Some(5))),
            (&["5, 5", "05"], Some(Some(5))),
            (&["5", "6"], None),
            (&["5,"], None),
            (&[""], None),
            (&["+5"], None),
            (&["-5"], None),
            (&["0x5"], None),
            (&["18446744073709551616"], None),
        ] {
            let values = values.iter().map(|value| (CONTENT_LENGTH, value.parse().unwrap()));
            let mut headers = HeaderMap::new();
            for (name, value) in values {
                headers.append(name, value);
            }
            assert_eq!(length(&headers), expected, "{headers:?}");
        }
    }
}
