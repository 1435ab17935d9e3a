//! Cross-origin resource sharing: which answers carry its headers, and preflights that are answered
//! here. Pure.
//!
//! Sources: the Fetch standard, section 3.2; Istio `http[].corsPolicy`; Envoy's CORS filter.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::{HeaderMap, HeaderValue, Method};

use crate::model::Cors;

/// What the policy says about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: it is of no other origin, or of one that is not let in (the browser keeps the answer
    /// from its page).
    Silent,
    /// Goes on; the answer names this origin.
    Allowed(HeaderValue),
    /// A preflight, to be answered here, with these headers.
    Preflight(HeaderMap),
}

/// Judges a request.
pub(super) fn judge(cors: &Cors, method: &Method, headers: &HeaderMap) -> Verdict {
    let Some(origin) = headers.get(ORIGIN).filter(|origin| !origin.is_empty()) else {
        return Verdict::Silent;
    };
    let is_preflight =
        *method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    match (is_preflight, is_allowed(cors, origin)) {
        (false, true) => Verdict::Allowed(origin.clone()),
        (true, true) => Verdict::Preflight(preflight(cors, origin)),
        (true, false) if !cors.forward_unmatched => Verdict::Preflight(HeaderMap::new()),
        (_, false) => Verdict::Silent,
    }
}

/// Marks the answer to a request that was let in.
pub(super) fn mark(cors: &Cors, origin: HeaderValue, headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if cors.allow_credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    if let Some(exposed) = &cors.expose_headers {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
    }
}

fn preflight(cors: &Cors, origin: &HeaderValue) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.allow_credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, &cors.allow_methods),
        (ACCESS_CONTROL_ALLOW_HEADERS, &cors.allow_headers),
        (ACCESS_CONTROL_MAX_AGE, &cors.max_age),
    ] {
        if let Some(value) = value {
            headers.insert(name, value.clone());
        }
    }
    headers
}

fn is_allowed(cors: &Cors, origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    cors.allow_origins.iter().any(|allowed| allowed.matches(origin, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StringMatch;

    fn cors() -> Cors {
        Cors {
            allow_origins: vec![
                StringMatch::Exact("https://a.example".into()),
                StringMatch::Prefix("https://b.".into()),
            ],
            allow_methods: Some(HeaderValue::from_static("GET,PUT")),
            allow_headers: Some(HeaderValue::from_static("x-a")),
            expose_headers: Some(HeaderValue::from_static("x-b")),
            max_age: Some(HeaderValue::from_static("600")),
            allow_credentials: true,
            forward_unmatched: true,
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    const PREFLIGHT: (&str, &str) = ("access-control-request-method", "PUT");

    #[test]
    fn requests_of_allowed_origins_go_on_and_their_answers_are_marked() {
        for origin in ["https://a.example", "https://b.example"] {
            let found = judge(&cors(), &Method::GET, &headers(&[("origin", origin)]));
            let Verdict::Allowed(origin) = found else { panic!("{found:?}") };
            let mut answer = headers(&[("access-control-allow-origin", "*")]);
            mark(&cors(), origin.clone(), &mut answer);
            assert_eq!(answer["access-control-allow-origin"], origin);
            assert_eq!(answer["access-control-allow-credentials"], "true");
            assert_eq!(answer["access-control-expose-headers"], "x-b");
            assert_eq!(answer.len(), 3, "{answer:?}");
        }
    }

    #[test]
    fn other_origins_and_none_pass_in_silence() {
        for pairs in [&[][..], &[("origin", "")], &[("origin", "https://a.example.evil")]] {
            for method in [Method::GET, Method::OPTIONS] {
                assert_eq!(judge(&cors(), &method, &headers(pairs)), Verdict::Silent);
            }
        }
        // OPTIONS without the preflight's header is an ordinary request.
        let plain = headers(&[("origin", "https://a.example")]);
        assert!(matches!(judge(&cors(), &Method::OPTIONS, &plain), Verdict::Allowed(_)));
    }

    #[test]
    fn preflights_are_answered() {
        let asked = headers(&[("origin", "https://a.example"), PREFLIGHT]);
        let Verdict::Preflight(answer) = judge(&cors(), &Method::OPTIONS, &asked) else { panic!() };
        assert_eq!(answer["access-control-allow-methods"], "GET,PUT");
        assert_eq!(answer["access-control-allow-headers"], "x-a");
        assert_eq!(answer["access-control-max-age"], "600");
        assert_eq!(answer["access-control-allow-origin"], "https://a.example");
        assert!(!answer.contains_key("access-control-expose-headers"));

        let foreign = headers(&[("origin", "https://c.example"), PREFLIGHT]);
        assert_eq!(judge(&cors(), &Method::OPTIONS, &foreign), Verdict::Silent);
        let strict = Cors { forward_unmatched: false, ..cors() };
        let found = judge(&strict, &Method::OPTIONS, &foreign);
        assert_eq!(found, Verdict::Preflight(HeaderMap::new()));
    }
}
