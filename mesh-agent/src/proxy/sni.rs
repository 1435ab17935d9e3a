//! The server name that a TLS client asks for, from its first bytes. Pure; the bytes stay where they
//! are, and nothing here judges whether the rest of the handshake is sound.
//!
//! Invariant: what is decided stays decided with more bytes; [`Hello::NeedMore`] only while the bytes
//! are the beginning of a ClientHello. Sources: RFC 8446 §4.1.2 and §5.1 (ClientHello, records),
//! RFC 6066 §3 (server_name).

/// Bytes that are looked at; a ClientHello that is longer has no name. One with post-quantum key
/// shares has about 2 KiB.
pub(super) const HELLO_LIMIT: usize = 16 * 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What the bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// A name, in lower case.
    Name(String),
    /// A ClientHello without one, or no ClientHello.
    NoName,
    /// Not all of it is here.
    NeedMore,
}

/// Looks at the first bytes of a connection that may speak TLS.
pub(super) fn hello(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut rest = Reader(bytes);
    // Ends: each round takes a record, or returns.
    loop {
        if let Some(found) = client_hello(&message) {
            return found;
        }
        if rest.0.len() < 5 && bytes.len() < HELLO_LIMIT && begins_record(rest.0) {
            return Hello::NeedMore;
        }
        let Some((kind, fragment, is_whole)) = rest.record() else { return Hello::NoName };
        if kind != HANDSHAKE {
            return Hello::NoName;
        }
        message.extend_from_slice(fragment);
        if !is_whole {
            return client_hello(&message).unwrap_or(match bytes.len() < HELLO_LIMIT {
                true => Hello::NeedMore,
                false => Hello::NoName,
            });
        }
    }
}

/// Whether these few bytes may begin a record of a handshake.
fn begins_record(bytes: &[u8]) -> bool {
    let wanted = [HANDSHAKE, 3];
    bytes.iter().zip(wanted).all(|(byte, wanted)| *byte == wanted)
}

/// What the beginning of a handshake's bytes says; `None`: more are needed.
fn client_hello(message: &[u8]) -> Option<Hello> {
    let mut reader = Reader(message);
    if reader.u8()? != CLIENT_HELLO {
        return Some(Hello::NoName);
    }
    let length = (usize::from(reader.u8()?) << 16) | usize::from(reader.u16()?);
    if length > HELLO_LIMIT {
        return Some(Hello::NoName);
    }
    let body = reader.take(length)?;
    Some(name(body).map_or(Hello::NoName, Hello::Name))
}

/// The name in a ClientHello's body.
fn name(body: &[u8]) -> Option<String> {
    let mut reader = Reader(body);
    // Version and random.
    reader.take(2 + 32)?;
    let session = reader.u8()?;
    reader.take(session.into())?;
    let suites = reader.u16()?;
    reader.take(suites.into())?;
    let compressions = reader.u8()?;
    reader.take(compressions.into())?;
    let length = reader.u16()?;
    let mut extensions = Reader(reader.take(length.into())?);
    loop {
        let kind = extensions.u16()?;
        let length = extensions.u16()?;
        let content = extensions.take(length.into())?;
        if kind == SERVER_NAME {
            return host_name(content);
        }
    }
}

fn host_name(extension: &[u8]) -> Option<String> {
    let mut reader = Reader(extension);
    let length = reader.u16()?;
    let mut names = Reader(reader.take(length.into())?);
    loop {
        let kind = names.u8()?;
        let length = names.u16()?;
        let name = names.take(length.into())?;
        if kind == HOST_NAME {
            let text = std::str::from_utf8(name).ok().filter(|text| text.is_ascii())?;
            let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
            return (!text.is_empty()).then_some(text);
        }
    }
}

/// Bytes that are left.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// A record's kind, what is here of its content, and whether that is all. `None`: it is no record.
    fn record(&mut self) -> Option<(u8, &'a [u8], bool)> {
        let kind = self.u8()?;
        let major = self.u8()?;
        self.u8()?;
        let length = usize::from(self.u16()?);
        if major != 3 || length == 0 {
            return None;
        }
        match self.take(length) {
            Some(content) => Some((kind, content, true)),
            None => Some((kind, std::mem::take(&mut self.0), false)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// A ClientHello as rustls writes it.
    fn rustls_hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same in records of at most `size` bytes.
    fn cut(bytes: &[u8], size: usize) -> Vec<u8> {
        let parts = bytes[5..].chunks(size).map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[HANDSHAKE, 3, 1], &length[..], part].concat()
        });
        parts.collect::<Vec<_>>().concat()
    }

    #[test]
    fn the_name_that_a_client_asks_for() {
        let bytes = rustls_hello("API.Example.com");
        let name = Hello::Name("api.example.com".to_owned());
        assert_eq!(hello(&bytes), name);
        assert_eq!(hello(&cut(&bytes, 7)), name, "in many records");
        assert_eq!(hello(&[&bytes[..], b"more"].concat()), name);
        assert_eq!(hello(&rustls_hello("10.0.0.1")), Hello::NoName, "an address is none");
    }

    #[test]
    fn what_is_no_client_hello_has_no_name() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            &[HANDSHAKE, 2],
            &[23, 3, 3, 0, 1, 1],
            &[HANDSHAKE, 3, 1, 0, 0],
            // A ServerHello.
            &[HANDSHAKE, 3, 1, 0, 4, 2, 0, 0, 0],
            // Longer than is looked at.
            &[HANDSHAKE, 3, 1, 0, 4, 1, 1, 0, 0],
        ] {
            assert_eq!(hello(bytes), Hello::NoName, "{bytes:?}");
        }
        assert_eq!(hello(&[]), Hello::NeedMore);
    }

    #[test]
    fn there_is_an_end_to_waiting() {
        let mut endless = Vec::new();
        while endless.len() < HELLO_LIMIT {
            endless.extend_from_slice(&[HANDSHAKE, 3, 1, 0, 1, 1]);
        }
        assert_eq!(hello(&endless[..HELLO_LIMIT]), Hello::NoName);
        let head = [HANDSHAKE, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xf0];
        let long = [&head[..], &vec![0; HELLO_LIMIT - head.len()]].concat();
        assert_eq!(hello(&long), Hello::NoName);
    }

    proptest! {
        /// A beginning is undecided, and whatever is cut off or added, nothing panics.
        #[test]
        fn a_beginning_needs_more(at in 0_usize..10_000, size in 1_usize..600) {
            let bytes = cut(&rustls_hello("a.example"), size);
            let at = at % bytes.len();
            let name = Hello::Name("a.example".to_owned());
            // Only what is behind the name may be missing in the last record's end: none is.
            prop_assert_eq!(hello(&bytes[..at]), Hello::NeedMore);
            prop_assert_eq!(hello(&bytes), name);
        }

        /// Once decided, more bytes change nothing.
        #[test]
        fn decisions_stand(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0_usize..200,
            as_record in any::<bool>(),
        ) {
            if as_record && bytes.len() > 5 {
                bytes[..5].copy_from_slice(&[HANDSHAKE, 3, 1, 0, 90]);
                bytes.get_mut(5).into_iter().for_each(|kind| *kind = CLIENT_HELLO);
            }
            let early = hello(&bytes[..cut.min(bytes.len())]);
            prop_assert!(early == Hello::NeedMore || early == hello(&bytes));
        }
    }
}
