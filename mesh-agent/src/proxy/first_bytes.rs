//! Waits for a captured client's first bytes, and leaves them in its socket.
//!
//! Invariant: a client that has said something is not waited for endlessly, because what it has said
//! may be whole (one byte, in a protocol that happens to begin like a method).

use std::time::Duration;

use tokio::net::TcpStream;

use super::sni::{HELLO_LIMIT, Hello, hello};
use crate::http::{Detected, HttpVersion, PREFIX_LIMIT};

/// First pause between two looks at a beginning that tells nothing yet; doubles up to
/// [`LAST_PAUSE`], so that a client that stops in the middle of a word costs nothing.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// How long a beginning may stay undecided without a further byte: then it is opaque. Whoever types
/// a request by hand sends lines.
const UNDECIDED: Duration = Duration::from_millis(500);

/// What the client's first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Http(HttpVersion),
    Tls,
    Opaque,
}

/// Waits until `look` can tell from the client's first bytes.
pub(super) async fn first_bytes(client: &TcpStream, look: fn(&[u8]) -> Detected) -> Seen {
    let mut buffer = [0; PREFIX_LIMIT];
    let seen = peeked(client, &mut buffer, |bytes| match look(bytes) {
        Detected::Http1 => Some(Seen::Http(HttpVersion::Http1)),
        Detected::Http2 => Some(Seen::Http(HttpVersion::Http2)),
        Detected::Tls => Some(Seen::Tls),
        Detected::Opaque => Some(Seen::Opaque),
        Detected::NeedMore => None,
    });
    seen.await.unwrap_or(Seen::Opaque)
}

/// The server name that a client of TLS asks for, in lower case; its hello stays in the socket.
pub(super) async fn server_name(client: &TcpStream) -> Option<String> {
    let mut buffer = vec![0; HELLO_LIMIT];
    let seen = peeked(client, &mut buffer, |bytes| match hello(bytes) {
        Hello::Name(name) => Some(Some(name)),
        Hello::NoName => Some(None),
        Hello::NeedMore => None,
    });
    seen.await.flatten()
}

/// Waits until `look` has something to say; `None` if the client has no more to show.
async fn peeked<T>(
    client: &TcpStream,
    buffer: &mut [u8],
    look: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    let mut before = 0;
    let mut pause = FIRST_PAUSE;
    let mut waited = Duration::ZERO;
    // Ends: each round has more bytes, up to the limit, or has waited longer.
    while waited < UNDECIDED {
        let length = match client.peek(buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(length) => length,
        };
        if let Some(found) = look(buffer.get(..length)?) {
            return Some(found);
        }
        if length == before {
            // peek(2) is ready at once while bytes wait: give the rest time to arrive.
            tokio::time::sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(LAST_PAUSE);
        } else {
            before = length;
            waited = Duration::ZERO;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::http::detect;

    /// What is seen of a client that writes these pieces, and ends its side or not.
    async fn seen(pieces: &[&[u8]], end: bool) -> Seen {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let write = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if end {
                client.shutdown().await.unwrap();
            }
        };
        let limit = Duration::from_secs(10);
        let look = tokio::time::timeout(limit, first_bytes(&server, detect));
        tokio::join!(look, write).0.expect("decided")
    }

    #[tokio::test]
    async fn pieces_are_put_together() {
        let seen = seen(&[b"GE", b"T /a", b" HTTP/1.1\r\n"], false).await;
        assert_eq!(seen, Seen::Http(HttpVersion::Http1));
    }

    #[tokio::test]
    async fn a_beginning_that_goes_no_further_is_opaque() {
        assert_eq!(seen(&[b"P"], false).await, Seen::Opaque, "waits for its answer");
        assert_eq!(seen(&[b"GET key"], true).await, Seen::Opaque, "has said all");
        assert_eq!(seen(&[], true).await, Seen::Opaque, "says nothing");
    }
}
