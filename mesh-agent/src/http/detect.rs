//! What a client speaks, from its first bytes. Pure; the caller reads, and waits only for a short
//! time, because in a server-first protocol (SMTP, MySQL) the client says nothing at first.
//!
//! A method alone is not HTTP: Redis takes `GET key` on a line, RTSP and SIP have `OPTIONS` and a
//! version of their own. So the request line is looked at to its end.
//!
//! Invariant: bytes that are decided stay decided; [`Detected::NeedMore`] only while the bytes are
//! a proper prefix of something. Sources: RFC 9112 §3 (request line), RFC 9113 §3.4 (preface),
//! RFC 8446 §5.1 (record header).

/// Read no more than this for detection. A request line that is longer is taken for HTTP: nothing
/// else that begins like it has lines of that length.
pub const PREFIX_LIMIT: usize = 1024;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A TLS record: handshake, then major version 3.
const TLS: &[u8] = &[0x16, 0x03];

/// Methods that a request line may start with. An unknown method on an undeclared port is opaque
/// bytes: a wrong guess would break a protocol that is not HTTP. `PRI ` is HTTP/2's.
const METHODS: [&[u8]; 16] = [
    b"GET ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"HEAD ",
    b"OPTIONS ",
    b"PATCH ",
    b"CONNECT ",
    b"TRACE ",
    b"PROPFIND ",
    b"PROPPATCH ",
    b"MKCOL ",
    b"COPY ",
    b"MOVE ",
    b"REPORT ",
    b"SEARCH ",
];

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS, opaque here.
    Tls,
    /// Anything else.
    Opaque,
    /// Cannot be told yet.
    NeedMore,
}

/// Looks at the first bytes of a connection that may speak anything.
pub fn detect(bytes: &[u8]) -> Detected {
    if bytes.starts_with(PREFACE) {
        Detected::Http2
    } else if METHODS.iter().any(|method| bytes.starts_with(method)) {
        request_line(bytes)
    } else if bytes.starts_with(TLS) {
        Detected::Tls
    } else if [PREFACE, TLS].iter().chain(&METHODS).any(|whole| begins(bytes, whole)) {
        Detected::NeedMore
    } else {
        Detected::Opaque
    }
}

/// Looks at the first bytes of a connection that is declared to speak HTTP: which version?
pub fn detect_version(bytes: &[u8]) -> Detected {
    if bytes.starts_with(PREFACE) {
        Detected::Http2
    } else if begins(bytes, PREFACE) {
        Detected::NeedMore
    } else {
        Detected::Http1
    }
}

/// Whether the bytes are a proper prefix of `whole`.
fn begins(bytes: &[u8], whole: &[u8]) -> bool {
    bytes.len() < whole.len() && whole.starts_with(bytes)
}

/// A method was seen: the line's end tells whose it is.
fn request_line(bytes: &[u8]) -> Detected {
    let seen = bytes.get(..PREFIX_LIMIT).unwrap_or(bytes);
    let Some(line) =
        seen.split(|byte| *byte == b'\n').next().filter(|line| line.len() < seen.len())
    else {
        return if seen.len() < PREFIX_LIMIT { Detected::NeedMore } else { Detected::Http1 };
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    if version.starts_with(b"HTTP/1.") { Detected::Http1 } else { Detected::Opaque }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_bytes() {
        let long = [b"GET /".as_slice(), &[b'a'; PREFIX_LIMIT]].concat();
        let cases: [(&[u8], Detected); 21] = [
            (b"", Detected::NeedMore),
            (b"G", Detected::NeedMore),
            (b"GET ", Detected::NeedMore),
            (b"GET / HTTP/1.1\r", Detected::NeedMore),
            (b"GET / HTTP/1.1\r\n", Detected::Http1),
            (b"GET / HTTP/1.0\nHost: a\n", Detected::Http1),
            (&long, Detected::Http1),
            (b"GET key\r\n", Detected::Opaque),
            (b"OPTIONS * RTSP/1.0\r\n", Detected::Opaque),
            (b"OPTIONS sip:a@b SIP/2.0\r\nCall-ID: HTTP/1.1\r\n", Detected::Opaque),
            (b"GET \n HTTP/1.1\n", Detected::Opaque),
            (b"GETX / HTTP/1.1\r\n", Detected::Opaque),
            (b"get / HTTP/1.1\r\n", Detected::Opaque),
            (b"PROPFIND /dav HTTP/1.1\r\n", Detected::Http1),
            (b"PRI * HTTP/2.0\r\n", Detected::NeedMore),
            (PREFACE, Detected::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Detected::Opaque),
            (&[0x16], Detected::NeedMore),
            (&[0x16, 0x03, 0x01, 0x02], Detected::Tls),
            (&[0x16, 0x02], Detected::Opaque),
            (b"SSH-2.0-OpenSSH\r\n", Detected::Opaque),
        ];
        for (bytes, expected) in cases {
            assert_eq!(detect(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_declared_port_has_one_question() {
        let cases: [(&[u8], Detected); 6] = [
            (b"", Detected::NeedMore),
            (b"P", Detected::NeedMore),
            (b"PO", Detected::Http1),
            (b"G", Detected::Http1),
            (&[0x16, 0x03], Detected::Http1),
            (PREFACE, Detected::Http2),
        ];
        for (bytes, expected) in cases {
            assert_eq!(detect_version(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        /// Once decided, more bytes change nothing; at the limit it is always decided.
        #[test]
        fn decisions_stand(bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in 0_usize..40) {
            let cut = cut.min(bytes.len());
            let early = detect(&bytes[..cut]);
            if early != Detected::NeedMore {
                prop_assert_eq!(early, detect(&bytes));
            }
            if bytes.len() >= PREFIX_LIMIT {
                prop_assert_ne!(detect(&bytes), Detected::NeedMore);
            }
        }

        /// The same, with bytes that nearly are a method or the preface.
        #[test]
        fn decisions_stand_near_the_border(at in 0_usize..16, cut in 0_usize..11, tail in "[ A-Z]{0,4}") {
            let mut bytes = METHODS[at][..cut.min(METHODS[at].len())].to_vec();
            let early = detect(&bytes);
            bytes.extend_from_slice(tail.as_bytes());
            prop_assert!(early == Detected::NeedMore || early == detect(&bytes));
        }

        /// The same, with request lines that end before, at or behind the limit.
        #[test]
        fn decisions_stand_along_a_line(length in 0_usize..1100, end in "( HTTP/1.1)?\r?\n?[a ]{0,3}", cut in 0_usize..1100) {
            let bytes = [b"GET /", vec![b'a'; length].as_slice(), end.as_bytes()].concat();
            let early = detect(&bytes[..cut.min(bytes.len())]);
            prop_assert!(early == Detected::NeedMore || early == detect(&bytes));
        }
    }
}
