//! Requests of a hostile HTTP/2 client, frame by frame, to an HTTP/1 endpoint. Behind each comes
//! another one on its own stream.

use std::collections::BTreeMap;

use super::hostile::{NEXT_SEEN, NEXT_TOLD, mesh, records};
use super::*;
use crate::model::Protocol;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const RESET: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

pub(super) type Field = (&'static str, &'static str);

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A header block of literals that are not indexed (RFC 7541 section 6.2.2).
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // One character is one byte here.
            let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(c).unwrap()).collect();
            block.push(u8::try_from(bytes.len()).unwrap());
            assert!(bytes.len() < 127);
            block.extend_from_slice(&bytes);
        }
    }
    block
}

pub(super) fn message(stream: u32, fields: &[(&str, &str)], data: Option<&str>) -> Vec<u8> {
    let end = if data.is_none() { END_STREAM } else { 0 };
    let mut all = frame(HEADERS, END_HEADERS | end, stream, &block(fields));
    if let Some(data) = data {
        all.extend(frame(DATA, END_STREAM, stream, data.as_bytes()));
    }
    all
}

pub(super) async fn read_frame(io: &mut DuplexStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    io.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], stream, payload))
}

/// The status in an answer's header block: its first field, often from the static table.
fn status(block: &[u8]) -> String {
    let rest = match block {
        // A new size of the table.
        [0x20..=0x3e, rest @ ..] => rest,
        _ => block,
    };
    let codes = ["200", "204", "206", "304", "400", "404", "500"];
    match rest {
        [index @ 0x88..=0x8e, ..] => codes[usize::from(index - 0x88)].to_owned(),
        [0x48, length, rest @ ..] if length & 0x80 == 0 => {
            String::from_utf8_lossy(&rest[..usize::from(*length)]).into_owned()
        }
        [0x48, length, rest @ ..] => huffman_digits(&rest[..usize::from(length & 0x7f)]),
        other => format!("{other:x?}"),
    }
}

/// Digits in RFC 7541's code: `0`, `1`, `2` in five bits, the others in six.
fn huffman_digits(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1)).collect();
    let value = |bits: &[u8]| bits.iter().fold(0, |all, bit| all << 1 | bit);
    let (mut at, mut digits) = (0, String::new());
    while digits.len() < 3 {
        let short = value(&bits[at..at + 5]);
        let (digit, length) = match short {
            0..=2 => (short, 5),
            _ => (value(&bits[at..at + 6]) - 0b01_1001 + 3, 6),
        };
        digits.push(char::from(b'0' + digit));
        at += length;
    }
    digits
}

/// What the client is told on each of the streams 1 and 3.
async fn told(world: &World, bytes: &[u8]) -> Vec<String> {
    let mut io = world.open(&world.client, VIP, HttpVersion::Http2);
    let next: &[_] =
        &[(":method", "GET"), (":scheme", "http"), (":path", "/next"), (":authority", "web")];
    let hello = frame(SETTINGS, 0, 0, &[]);
    let all = [PREFACE, &hello, bytes, &message(3, next, None)].concat();
    io.write_all(&all).await.unwrap();
    let mut told: BTreeMap<u32, String> = BTreeMap::new();
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let Some((kind, flags, stream, payload)) = read_frame(&mut io).await else { break };
        let text = told.entry(stream).or_default();
        match kind {
            HEADERS => *text += &status(&payload),
            DATA if !payload.starts_with(b"upstream connect") && !payload.is_empty() => {
                *text += &format!(" {}", String::from_utf8_lossy(&payload));
            }
            RESET => *text += &format!("reset {}", payload[3]),
            GO_AWAY => *text += &format!("go away {}", payload[7]),
            _ => {}
        }
        let ends = kind == RESET || matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0;
        if ends && !ended.contains(&stream) {
            ended.push(stream);
        }
    }
    told.into_values().filter(|text| !text.is_empty()).collect()
}

/// Name, fields, content, what the client is told of it, and what an HTTP/1 endpoint gets of it.
type Case = (&'static str, Vec<Field>, Option<&'static str>, &'static str, Option<&'static str>);

const RESETS: &str = "reset 1";
/// `h2` ends the whole connection over a field that it cannot keep.
const GOES: &str = "go away 1";
const REFUSED: &str = "400";

fn check(cases: &[Case]) {
    let mut wrong = String::new();
    for (name, fields, content, answer, request) in cases {
        run(async {
            let world = mesh(Protocol::Http);
            let seen = records(&world);
            let told = told(&world, &message(1, fields, *content)).await;
            let mut seen = seen.borrow().clone();
            seen.sort_by_key(|request| request.starts_with(NEXT_SEEN));
            let next = *answer != GOES;
            let requests = request.iter().chain(next.then_some(&NEXT_SEEN));
            let answers = [*answer].into_iter().chain(next.then_some(NEXT_TOLD));
            if !told.iter().eq(answers) || !seen.iter().eq(requests) {
                wrong += &format!("{name}\n  told {told:?}\n  seen {seen:?}\n");
            }
        });
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

const PLAIN: [Field; 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "web")];

/// A plain request with more fields.
fn with(more: &[Field]) -> Vec<Field> {
    [&PLAIN, more].concat()
}

/// A plain request without a field.
fn without(name: &str) -> Vec<Field> {
    PLAIN.into_iter().filter(|field| field.0 != name).collect()
}

/// A plain request with another value of a field.
fn but(name: &str, value: &'static str) -> Vec<Field> {
    PLAIN.map(|field| if field.0 == name { (field.0, value) } else { field }).to_vec()
}

#[test]
fn pseudo_fields() {
    const OK: &str = "200 POST /";
    const SEEN: Option<&str> = Some("POST / HTTP/1.1|host: web||");
    check(&[
        ("plain", with(&[]), None, OK, SEEN),
        (
            "behind a field",
            vec![
                (":method", "POST"),
                (":scheme", "http"),
                ("x", "y"),
                (":path", "/"),
                (":authority", "web"),
            ],
            None,
            RESETS,
            None,
        ),
        (
            "two methods",
            vec![
                (":method", "POST"),
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "web"),
            ],
            None,
            RESETS,
            None,
        ),
        (
            "two paths",
            vec![
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/"),
                (":path", "/evil"),
                (":authority", "web"),
            ],
            None,
            RESETS,
            None,
        ),
        ("two authorities", with(&[(":authority", "evil")]), None, RESETS, None),
        (
            "two schemes",
            vec![
                (":method", "POST"),
                (":scheme", "http"),
                (":scheme", "https"),
                (":path", "/"),
                (":authority", "web"),
            ],
            None,
            RESETS,
            None,
        ),
        ("no method", without(":method"), None, RESETS, None),
        ("no scheme", without(":scheme"), None, RESETS, None),
        ("no path", without(":path"), None, RESETS, None),
        ("an empty path", but(":path", ""), None, RESETS, None),
    ]);
}

#[test]
fn authorities() {
    const OK: &str = "200 POST /";
    const SEEN: Option<&str> = Some("POST / HTTP/1.1|host: web||");
    check(&[
        ("no authority", without(":authority"), None, REFUSED, None),
        (
            "no authority, but a host",
            [without(":authority"), vec![("host", "web")]].concat(),
            None,
            OK,
            SEEN,
        ),
        (
            "no authority, but two hosts",
            [without(":authority"), vec![("host", "web"), ("host", "evil")]].concat(),
            None,
            REFUSED,
            None,
        ),
        (
            "no authority, but an empty host",
            [without(":authority"), vec![("host", "")]].concat(),
            None,
            REFUSED,
            None,
        ),
        ("an empty authority", but(":authority", ""), None, RESETS, None),
        ("an authority with a user", but(":authority", "user@web"), None, REFUSED, None),
        ("an authority with a path", but(":authority", "web/x"), None, RESETS, None),
        ("an authority with a blank", but(":authority", "web x"), None, RESETS, None),
        ("an authority with CR LF", but(":authority", "web\r\nx: y"), None, RESETS, None),
    ]);
}

#[test]
fn paths_and_methods() {
    check(&[
        ("a path with a blank", but(":path", "/ HTTP/1.1"), None, RESETS, None),
        ("a path with CR LF", but(":path", "/ HTTP/1.1\r\nhost: evil\r\n\r\n"), None, RESETS, None),
        ("a path with a tab", but(":path", "/\tx"), None, RESETS, None),
        ("a path that is a URI", but(":path", "http://evil/"), None, RESETS, None),
        ("a path without a slash", but(":path", "x"), None, RESETS, None),
        (
            "a path that is a query",
            but(":path", "?x"),
            None,
            "200 POST /?x",
            Some("POST /?x HTTP/1.1|host: web||"),
        ),
        ("a star without OPTIONS", but(":path", "*"), None, REFUSED, None),
        (
            "a star",
            vec![
                (":method", "OPTIONS"),
                (":scheme", "http"),
                (":path", "*"),
                (":authority", "web"),
            ],
            None,
            "200 OPTIONS *",
            Some("OPTIONS * HTTP/1.1|host: web||"),
        ),
        ("a method with a blank", but(":method", "GET /evil HTTP/1.1"), None, GOES, None),
        ("a method with CR LF", but(":method", "GET\r\nx"), None, GOES, None),
        ("a scheme with a blank", but(":scheme", "http /"), None, RESETS, None),
        ("an answer's", with(&[(":status", "200")]), None, RESETS, None),
        ("an unknown one", with(&[(":x", "y")]), None, GOES, None),
        ("a protocol without CONNECT", with(&[(":protocol", "websocket")]), None, RESETS, None),
        (
            "a protocol",
            vec![
                (":method", "CONNECT"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "web"),
                (":protocol", "websocket"),
            ],
            None,
            RESETS,
            None,
        ),
    ]);
}

#[test]
fn fields() {
    check(&[
        ("upper case", with(&[("X", "y")]), None, GOES, None),
        ("a blank in a name", with(&[("x y", "z")]), None, GOES, None),
        ("a colon in a name", with(&[("x:y", "z")]), None, GOES, None),
        ("CR LF in a name", with(&[("x\r\ny", "z")]), None, GOES, None),
        ("NUL in a name", with(&[("x\0", "z")]), None, GOES, None),
        ("an empty name", with(&[("", "z")]), None, GOES, None),
        ("CR LF in a value", with(&[("x", "y\r\nevil: z")]), None, GOES, None),
        ("CR in a value", with(&[("x", "y\rz")]), None, GOES, None),
        ("LF in a value", with(&[("x", "y\nz")]), None, GOES, None),
        ("NUL in a value", with(&[("x", "y\0z")]), None, GOES, None),
        ("a blank before a value", with(&[("x", " y")]), None, REFUSED, None),
        ("a blank behind a value", with(&[("x", "y ")]), None, REFUSED, None),
        ("a tab behind a value", with(&[("x", "y\t")]), None, REFUSED, None),
    ]);
}

#[test]
fn fields_of_the_hop() {
    const OK: &str = "200 POST /";
    const SEEN: Option<&str> = Some("POST / HTTP/1.1|host: web||");
    check(&[
        ("connection", with(&[("connection", "close")]), None, RESETS, None),
        ("keep-alive", with(&[("keep-alive", "5")]), None, RESETS, None),
        ("proxy-connection", with(&[("proxy-connection", "close")]), None, RESETS, None),
        ("upgrade", with(&[("upgrade", "h2c")]), None, RESETS, None),
        (
            "transfer-encoding",
            with(&[("transfer-encoding", "chunked")]),
            Some("0\r\n\r\n"),
            RESETS,
            None,
        ),
        ("te", with(&[("te", "gzip")]), None, RESETS, None),
        ("te with trailers and more", with(&[("te", "trailers, gzip")]), None, RESETS, None),
        (
            "te: trailers",
            with(&[("te", "trailers")]),
            None,
            OK,
            Some("POST / HTTP/1.1|te: trailers|connection: te|host: web||"),
        ),
        ("the same host", with(&[("host", "WEB")]), None, OK, SEEN),
        ("another host", with(&[("host", "evil")]), None, REFUSED, None),
        ("two hosts", with(&[("host", "web"), ("host", "web")]), None, REFUSED, None),
        ("an empty host", with(&[("host", "")]), None, REFUSED, None),
    ]);
}

#[test]
fn content() {
    const OK: &str = "200 POST /";
    const SEEN: Option<&str> = Some("POST / HTTP/1.1|content-length: 5|host: web||hello");
    check(&[
        ("its length", with(&[("content-length", "5")]), Some("hello"), OK, SEEN),
        (
            "no length",
            with(&[]),
            Some("hello"),
            OK,
            Some("POST / HTTP/1.1|host: web|transfer-encoding: chunked||5|hello|0||"),
        ),
        ("less", with(&[("content-length", "6")]), Some("hello"), RESETS, None),
        ("more", with(&[("content-length", "4")]), Some("hello"), RESETS, None),
        ("a length without content", with(&[("content-length", "5")]), None, RESETS, None),
        (
            "equal lengths",
            with(&[("content-length", "5"), ("content-length", "5")]),
            Some("hello"),
            OK,
            SEEN,
        ),
        (
            "different lengths",
            with(&[("content-length", "5"), ("content-length", "6")]),
            Some("hello"),
            RESETS,
            None,
        ),
        ("a list of lengths", with(&[("content-length", "5, 5")]), Some("hello"), RESETS, None),
        ("a signed length", with(&[("content-length", "+5")]), Some("hello"), RESETS, None),
        ("an empty length", with(&[("content-length", "")]), None, REFUSED, None),
    ]);
}
