//! WebSocket client: upgrade, messages that must come back, close handshake.

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::client::Target;
use super::report::Counts;
use super::{WebsocketArgs, print};
use crate::digest::pattern;
use crate::websocket::{BINARY, CLOSE, WsFrame, accept_for, read_frame, write_frame};

/// Any 16 bytes will do: the key proves that the peer speaks WebSocket, and is no secret.
const KEY: &[u8; 16] = b"malha-load--key-";

/// Masks must differ between messages so that a missing unmasking shows, not be secret here.
fn mask(number: u64) -> [u8; 4] {
    (number as u32).wrapping_mul(0x9e37_79b9).to_be_bytes()
}

pub(super) async fn run(args: WebsocketArgs) -> anyhow::Result<()> {
    ensure!(!args.target.http2, "WebSocket here is HTTP/1.1 only");
    let target = Target::new(&args.target)?;
    let start = Instant::now();
    let mut counts = Counts::new();
    let key = STANDARD.encode(KEY);
    let mut request = target.request(Method::GET, Bytes::new());
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key)?);
    let mut link = target.link();
    let answer = link
        .send(&target, || request.clone(), &mut counts.connections)
        .await
        .map_err(|failure| anyhow::anyhow!("{}", failure.text))?;
    *counts.statuses.entry(answer.status().as_u16()).or_default() += 1;
    ensure!(answer.status() == StatusCode::SWITCHING_PROTOCOLS, "status {}", answer.status());
    let accept = answer.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    let right = accept.is_some_and(|value| *value == accept_for(key.as_bytes()));
    ensure!(right, "sec-websocket-accept is {accept:?}");
    let mut stream = TokioIo::new(hyper::upgrade::on(answer).await.context("upgrade")?);
    let mut payload = vec![0; args.size];
    for number in 0..args.messages {
        pattern(number, &mut payload);
        let sent = Instant::now();
        counts.requests += 1;
        let frame = WsFrame { last: true, opcode: BINARY, payload: payload.clone() };
        write_frame(&mut stream, &frame, Some(mask(number))).await?;
        let back = read_frame(&mut stream).await?;
        ensure!(back.opcode == BINARY && back.payload == payload, "message {number} has changed");
        counts.latencies.record(sent.elapsed());
        counts.succeeded += 1;
        counts.bytes += payload.len() as u64;
    }
    // 1000: normal closure (RFC 6455 section 7.4.1).
    let close = WsFrame { last: true, opcode: CLOSE, payload: 1000u16.to_be_bytes().to_vec() };
    write_frame(&mut stream, &close, Some(mask(args.messages))).await?;
    ensure!(read_frame(&mut stream).await?.opcode == CLOSE, "the close was not answered");
    print(&counts.report(start.elapsed()))
}
