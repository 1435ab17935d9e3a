//! Heads of a CONNECT and of its answer: from and to header blocks.
//!
//! Only what HBONE needs is kept: `:authority`, `baggage`, `traceparent`, `:status`. Every other
//! field is checked for form (RFC 9113 section 8.2) and forgotten. Plain CONNECT (ztunnel) and
//! extended CONNECT with `:protocol: bytes` (Envoy) mean the same here.

use super::hpack;
use super::limits::{MAX_AUTHORITY, MAX_CONTEXT, MAX_HEADER_LIST};

/// Index of `:authority` in HPACK's static table.
const AUTHORITY: u8 = 1;
/// Index of `:method`.
const METHOD: u8 = 2;
/// Index of `:status: 200`, whose name also serves other codes.
const STATUS_200: u8 = 8;

/// Fields that belong to one HTTP/1.1 connection (RFC 9113 section 8.2.2).
const CONNECTION_FIELDS: [&[u8]; 5] =
    [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"];

/// What a CONNECT asks for and carries along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectHead {
    /// The application's `ip:port`.
    pub authority: String,
    /// W3C baggage: who the source is, in Istio's words.
    pub baggage: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

/// Why a request cannot be handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not HTTP: the stream is reset.
    Malformed,
    /// HTTP, but not for us: the stream is answered.
    Status(u16),
}

// === impl ConnectHead ===

impl ConnectHead {
    /// Appends the header block of a plain CONNECT.
    pub(super) fn encode(&self, output: &mut Vec<u8>) {
        hpack::encode_indexed_name(METHOD, b"CONNECT", output);
        hpack::encode_indexed_name(AUTHORITY, self.authority.as_bytes(), output);
        if let Some(baggage) = &self.baggage {
            hpack::encode_literal(b"baggage", baggage.as_bytes(), output);
        }
        if let Some(traceparent) = &self.traceparent {
            hpack::encode_literal(b"traceparent", traceparent.as_bytes(), output);
        }
    }
}

/// Appends the header block of an answer; `status` has three digits.
pub(super) fn encode_status(status: u16, output: &mut Vec<u8>) {
    if status == 200 {
        hpack::encode_indexed(STATUS_200, output);
    } else {
        hpack::encode_indexed_name(STATUS_200, status.to_string().as_bytes(), output);
    }
}

/// What the fields of any block are checked for.
#[derive(Default)]
struct Form {
    size: usize,
    regular: bool,
    malformed: bool,
}

impl Form {
    /// True for a pseudo-field, false for a well-formed regular one; sets `malformed` otherwise.
    fn is_pseudo(&mut self, name: &[u8], value: &[u8]) -> bool {
        self.size += name.len() + value.len() + hpack::ENTRY_OVERHEAD;
        let pseudo = name.first() == Some(&b':');
        let name_is_bad = name.is_empty()
            || name
                .iter()
                .any(|octet| octet.is_ascii_uppercase() || *octet <= b' ' || *octet > 126)
            || CONNECTION_FIELDS.contains(&name)
            || (name == b"te" && value != b"trailers");
        let value_is_bad = value.iter().any(|octet| matches!(octet, 0 | b'\r' | b'\n'));
        self.malformed |=
            name_is_bad || value_is_bad || (pseudo && self.regular) || self.size > MAX_HEADER_LIST;
        self.regular |= !pseudo;
        pseudo
    }
}

/// Collects the fields of a request.
#[derive(Default)]
pub(super) struct Request {
    form: Form,
    connect: Option<bool>,
    authority: Option<String>,
    protocol: Option<bool>,
    /// There is one that is not empty.
    scheme: Option<bool>,
    path: Option<bool>,
    baggage: Option<String>,
    traceparent: Option<String>,
}

impl Request {
    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) {
        let pseudo = self.form.is_pseudo(name, value);
        if self.form.malformed {
            return;
        }
        match (pseudo, name) {
            (true, b":method") => once(&mut self.connect, value == b"CONNECT", &mut self.form),
            (true, b":authority") => {
                let text = text(value, MAX_AUTHORITY).unwrap_or_default();
                once(&mut self.authority, text, &mut self.form);
            }
            (true, b":protocol") => once(&mut self.protocol, value == b"bytes", &mut self.form),
            (true, b":scheme") => once(&mut self.scheme, !value.is_empty(), &mut self.form),
            (true, b":path") => once(&mut self.path, !value.is_empty(), &mut self.form),
            (true, _) => self.form.malformed = true,
            (false, b"baggage") => join(&mut self.baggage, value),
            (false, b"traceparent") => self.traceparent = text(value, MAX_CONTEXT),
            (false, _) => {}
        }
    }

    pub(super) fn finish(self) -> Result<ConnectHead, Refusal> {
        if self.form.malformed {
            return Err(Refusal::Malformed);
        }
        let target = self.scheme == Some(true) && self.path == Some(true);
        match (self.connect, self.authority, self.protocol) {
            (None, _, _) | (Some(true), None, _) => Err(Refusal::Malformed),
            (Some(false), _, _) if !target => Err(Refusal::Malformed),
            (Some(false), _, _) => Err(Refusal::Status(405)),
            (_, _, Some(false)) => Err(Refusal::Status(501)),
            (_, Some(authority), _) if authority.is_empty() => Err(Refusal::Status(400)),
            (_, Some(authority), _) => {
                Ok(ConnectHead { authority, baggage: self.baggage, traceparent: self.traceparent })
            }
        }
    }
}

/// Collects the fields of an answer.
#[derive(Default)]
pub(super) struct Answer {
    form: Form,
    status: Option<u16>,
}

impl Answer {
    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) {
        let pseudo = self.form.is_pseudo(name, value);
        if !pseudo || self.form.malformed {
            return;
        }
        let status = text(value, 3).and_then(|text| text.parse().ok());
        match status.filter(|status| name == b":status" && (100..=999).contains(status)) {
            Some(status) => once(&mut self.status, status, &mut self.form),
            None => self.form.malformed = true,
        }
    }

    /// The status, if the answer is well formed.
    pub(super) fn finish(self) -> Option<u16> {
        self.status.filter(|_| !self.form.malformed)
    }
}

// === free helpers ===

/// Sets a pseudo-field, which may come only once.
fn once<T>(slot: &mut Option<T>, value: T, form: &mut Form) {
    form.malformed |= slot.is_some();
    *slot = Some(value);
}

/// Several `baggage` fields are one list.
fn join(slot: &mut Option<String>, value: &[u8]) {
    let room = MAX_CONTEXT - slot.as_ref().map_or(0, |held| held.len() + 1).min(MAX_CONTEXT);
    match (slot.as_mut(), text(value, room)) {
        (Some(held), Some(more)) => {
            held.push(',');
            held.push_str(&more);
        }
        (None, Some(first)) => *slot = Some(first),
        (_, None) => {}
    }
}

/// A value of printable ASCII of at most `max` octets.
fn text(value: &[u8], max: usize) -> Option<String> {
    let printable = value.len() <= max && value.iter().all(|octet| (b' '..=b'~').contains(octet));
    printable.then(|| String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&str, &str)]) -> Result<ConnectHead, Refusal> {
        let mut request = Request::default();
        for (name, value) in fields {
            request.field(name.as_bytes(), value.as_bytes());
        }
        request.finish()
    }

    const PLAIN: [(&str, &str); 2] = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];

    #[test]
    fn plain_and_extended_connect() {
        let expected = ConnectHead { authority: "10.0.0.1:80".into(), ..Default::default() };
        assert_eq!(request(&PLAIN), Ok(expected.clone()));
        let envoy = [(":protocol", "bytes"), (":scheme", "http"), (":path", "/")];
        assert_eq!(request(&[PLAIN.as_slice(), &envoy].concat()), Ok(expected));
        let websocket = [PLAIN.as_slice(), &[(":protocol", "websocket")]].concat();
        assert_eq!(request(&websocket), Err(Refusal::Status(501)));
    }

    #[test]
    fn baggage_is_joined_and_bounded() {
        let long = "x".repeat(MAX_CONTEXT);
        let fields = [("baggage", "a=1"), ("baggage", "b=2"), ("baggage", &long)];
        let head = request(&[PLAIN.as_slice(), &fields].concat()).unwrap();
        assert_eq!(head.baggage.as_deref(), Some("a=1,b=2"));
    }

    #[test]
    fn bad_requests_are_told_apart() {
        let with = |field| request(&[PLAIN.as_slice(), &[field]].concat());
        assert_eq!(request(&[]), Err(Refusal::Malformed));
        assert_eq!(request(&[(":method", "CONNECT")]), Err(Refusal::Malformed));
        assert_eq!(with((":method", "CONNECT")), Err(Refusal::Malformed), "twice");
        assert_eq!(with((":status", "200")), Err(Refusal::Malformed));
        assert_eq!(with(("Upper", "")), Err(Refusal::Malformed));
        assert_eq!(with(("connection", "close")), Err(Refusal::Malformed));
        assert_eq!(with(("x", "a\r\nb")), Err(Refusal::Malformed));
        let late = [("x", "y"), PLAIN[0], PLAIN[1]];
        assert_eq!(request(&late), Err(Refusal::Malformed), "pseudo after regular");
        let get = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
        assert_eq!(request(&get), Err(Refusal::Status(405)));
        assert_eq!(request(&get[..2]), Err(Refusal::Malformed));
        assert_eq!(request(&[get[0], get[1], (":path", "")]), Err(Refusal::Malformed));
        let long = "1".repeat(MAX_AUTHORITY + 1);
        assert_eq!(request(&[PLAIN[0], (":authority", &long)]), Err(Refusal::Status(400)));
    }

    #[test]
    fn a_header_list_has_a_limit() {
        let value = "v".repeat(8 * 1024 - 1024);
        let mut fields = PLAIN.to_vec();
        fields.extend([("x", value.as_str()); 2]);
        assert!(request(&fields).is_ok());
        fields.push(("x", &value));
        assert_eq!(request(&fields), Err(Refusal::Malformed));
    }

    #[test]
    fn answers() {
        let status = |fields: &[(&str, &str)]| {
            let mut answer = Answer::default();
            for (name, value) in fields {
                answer.field(name.as_bytes(), value.as_bytes());
            }
            answer.finish()
        };
        assert_eq!(status(&[(":status", "200"), ("server", "x")]), Some(200));
        for bad in ["99", "1000", "2x0", "+20", ""] {
            assert_eq!(status(&[(":status", bad)]), None, "{bad}");
        }
        assert_eq!(status(&[("server", "x")]), None);
        assert_eq!(status(&[(":status", "200"), (":status", "200")]), None);
    }
}
