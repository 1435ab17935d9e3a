//! The key of a request under consistent hashing, and the cookie that gives one to a client that has
//! none. Pure.
//!
//! Source: Istio `loadBalancer.consistentHash` (istio-surface 1.2, 1.2.1). Not here: what a key
//! chooses (`balance`).

use std::net::IpAddr;

use http::header::{COOKIE, HeaderMap, HeaderValue};

use super::router::query_value;
use crate::balance::hash_of;
use crate::model::HashKey;

/// What a request is told apart by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Key {
    /// Hash of the key; `None`: it has none, and any endpoint will do.
    pub(super) hash: Option<u64>,
    /// `set-cookie` for the answer, where the key was made here.
    pub(super) cookie: Option<HeaderValue>,
}

/// The parts of a request that a key may come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender<'a> {
    pub(super) headers: &'a HeaderMap,
    /// Query of the target, as sent.
    pub(super) query: Option<&'a str>,
    /// The client's address.
    pub(super) ip: IpAddr,
}

/// Finds the key, or makes a cookie of 128 random bits.
pub(super) fn key(by: &HashKey, sender: &Sender<'_>, draws: impl FnOnce() -> (u64, u64)) -> Key {
    let of = |bytes: &[u8]| Key { hash: Some(hash_of(bytes)), cookie: None };
    match by {
        HashKey::Header(name) => header(sender.headers, name).map(|key| of(&key)),
        HashKey::SourceIp => Some(Key { hash: Some(hash_of_ip(sender.ip)), cookie: None }),
        HashKey::Query(name) => {
            query_value(sender.query.unwrap_or_default(), name).map(|value| of(value.as_bytes()))
        }
        HashKey::Cookie(cookie) => match sent(sender.headers, &cookie.name) {
            Some(value) => Some(of(value)),
            None => cookie.made.as_ref().map(|suffix| {
                let (high, low) = draws();
                let value = format!("{high:016x}{low:016x}");
                let line = format!("{}=\"{value}\"{suffix}", cookie.name);
                Key { cookie: HeaderValue::from_str(&line).ok(), ..of(value.as_bytes()) }
            }),
        },
    }
    .unwrap_or_default()
}

/// The key that an address is.
pub fn hash_of_ip(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => hash_of(&ip.octets()),
        IpAddr::V6(ip) => hash_of(&ip.octets()),
    }
}

/// All values of a header; Envoy sorts several, so that their order does not matter.
fn header(headers: &HeaderMap, name: &http::HeaderName) -> Option<Vec<u8>> {
    let mut values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    values.sort_unstable();
    (!values.is_empty()).then(|| values.concat())
}

/// The value of a cookie, without quotes (RFC 6265 §4.2.1). One that is empty is none.
fn sent<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs =
        headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|b| *b == b';'));
    let mut values = pairs.filter_map(|pair| {
        let pair = pair.trim_ascii();
        let at = pair.iter().position(|b| *b == b'=')?;
        let (found, value) = pair.split_at(at);
        (found == name.as_bytes()).then(|| value.get(1..).unwrap_or_default())
    });
    let value = values.next()?;
    let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    Some(quoted.unwrap_or(value)).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HashCookie;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn found(by: &HashKey, pairs: &[(&'static str, &'static str)], query: &str) -> Key {
        let (headers, ip) = (headers(pairs), "10.0.0.9".parse().unwrap());
        let sender = Sender { headers: &headers, query: Some(query), ip };
        key(by, &sender, || (1, 2))
    }

    fn hashed(text: &str) -> Key {
        Key { hash: Some(hash_of(text.as_bytes())), cookie: None }
    }

    #[test]
    fn keys_come_from_where_the_policy_says() {
        let header = HashKey::Header("x-user".parse().unwrap());
        assert_eq!(found(&header, &[("x-user", "ann")], ""), hashed("ann"));
        assert_eq!(found(&header, &[("x-users", "ann")], ""), Key::default());
        let twice = found(&header, &[("x-user", "a"), ("x-user", "b")], "");
        assert_eq!(twice, found(&header, &[("x-user", "b"), ("x-user", "a")], ""));
        let query = HashKey::Query("user".into());
        assert_eq!(found(&query, &[], "a=b&user=ann%20b&user=c"), hashed("ann%20b"));
        assert_eq!(found(&query, &[], "users=ann"), Key::default());
        let ip = found(&HashKey::SourceIp, &[], "");
        assert_eq!(ip.hash, Some(hash_of(&[10, 0, 0, 9])));
    }

    #[test]
    fn cookies_are_read_and_made() {
        let cookie = |made: Option<&str>| {
            HashKey::Cookie(HashCookie { name: "session".into(), made: made.map(Into::into) })
        };
        let reading = cookie(None);
        for line in
            ["session=abc", "a=b; session=abc", "session=\"abc\"; session=d", " session=abc;"]
        {
            assert_eq!(found(&reading, &[("cookie", line)], ""), hashed("abc"), "{line}");
        }
        for line in ["xsession=abc", "session", "session=", "session=\"\"", ""] {
            assert_eq!(found(&reading, &[("cookie", line)], ""), Key::default(), "{line}");
        }
        let made = found(&cookie(Some("; Max-Age=60; HttpOnly")), &[], "");
        let value = "00000000000000010000000000000002";
        assert_eq!(made.hash, hashed(value).hash, "it comes back as the same key");
        let line = format!("session=\"{value}\"; Max-Age=60; HttpOnly");
        assert_eq!(made.cookie.unwrap(), line);
    }
}
