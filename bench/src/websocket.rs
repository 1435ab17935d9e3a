//! Just enough WebSocket (RFC 6455) for an echo and a client that tests it: no extensions, no
//! subprotocols, messages of one or more frames up to a limit.
//!
//! Generic over the stream, as both sides get theirs from an HTTP upgrade.

use std::io::{self, ErrorKind};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Largest frame: a longer one ends the connection.
const MAX_FRAME: u64 = 16 << 20;

const CONTINUATION: u8 = 0;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// One frame, unmasked.
pub(crate) struct WsFrame {
    pub(crate) last: bool,
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

/// The `sec-websocket-accept` for a request that asks for WebSocket; `None` for any other.
pub(crate) fn accept_key(headers: &HeaderMap) -> Option<String> {
    let upgrade = headers.get(header::UPGRADE)?.to_str().ok()?;
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    upgrade.eq_ignore_ascii_case("websocket").then(|| accept_for(key.as_bytes()))
}

/// The accept value that belongs to a key (RFC 6455 section 4.2.2).
pub(crate) fn accept_for(key: &[u8]) -> String {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(GUID);
    STANDARD.encode(context.finish())
}

/// Sends back each frame of data, answers pings, and closes when the client does.
pub(crate) async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    loop {
        let frame = read_frame(&mut stream).await?;
        let opcode = if frame.opcode == PING { PONG } else { frame.opcode };
        match opcode {
            // An answer to a ping of ours, and we send none: nothing to do (section 5.5.3).
            PONG if frame.opcode == PONG => continue,
            CONTINUATION..=BINARY | CLOSE | PONG => {}
            _ => return Err(ErrorKind::InvalidData.into()),
        }
        write_frame(&mut stream, &WsFrame { opcode, ..frame }, None).await?;
        if opcode == CLOSE {
            return stream.shutdown().await;
        }
    }
}

/// Reads one frame and takes its mask off.
///
/// # Errors
/// The stream's, `InvalidData` for a frame over [`MAX_FRAME`].
pub(crate) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<WsFrame> {
    let [first, second] = stream.read_u16().await?.to_be_bytes();
    let length = match second & 0x7f {
        126 => stream.read_u16().await?.into(),
        127 => stream.read_u64().await?,
        short => short.into(),
    };
    if length > MAX_FRAME {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        stream.read_exact(&mut mask).await?;
    }
    // At most MAX_FRAME.
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await?;
    apply_mask(&mut payload, mask);
    Ok(WsFrame { last: first & 0x80 != 0, opcode: first & 0x0f, payload })
}

/// Writes one frame; a client must give a mask, a server must not (section 5.1).
///
/// # Errors
/// The stream's.
pub(crate) async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    frame: &WsFrame,
    mask: Option<[u8; 4]>,
) -> io::Result<()> {
    let mut out = Vec::with_capacity(frame.payload.len() + 14);
    out.push(u8::from(frame.last) << 7 | frame.opcode);
    let masked = u8::from(mask.is_some()) << 7;
    let length = frame.payload.len();
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..126), _) => out.push(masked | short),
        (_, Ok(medium)) => {
            out.push(masked | 126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(masked | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend(mask.into_iter().flatten());
    let start = out.len();
    out.extend_from_slice(&frame.payload);
    if let Some(mask) = mask
        && let Some(payload) = out.get_mut(start..)
    {
        apply_mask(payload, mask);
    }
    stream.write_all(&out).await?;
    stream.flush().await
}

fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    for (byte, key) in payload.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_as_the_rfc_does() {
        // The example of RFC 6455 section 1.3.
        assert_eq!(accept_for(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn frames_survive_at_each_length_form() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let payload = vec![7; length];
            let frame = WsFrame { last: true, opcode: BINARY, payload: payload.clone() };
            let mut wire = Vec::new();
            write_frame(&mut wire, &frame, Some([1, 2, 3, 4])).await.unwrap();
            let read = read_frame(&mut wire.as_slice()).await.unwrap();
            assert!(read.last && read.opcode == BINARY && read.payload == payload, "{length}");
        }
    }

    #[tokio::test]
    async fn reads_the_masked_hello_of_the_rfc() {
        // RFC 6455 section 5.7.
        let wire = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let frame = read_frame(&mut wire.as_slice()).await.unwrap();
        assert_eq!((frame.opcode, frame.payload.as_slice()), (1, &b"Hello"[..]));
    }
}
