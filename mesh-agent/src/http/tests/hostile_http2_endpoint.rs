//! Answers of a hostile HTTP/2 endpoint, frame by frame, to an HTTP/1 client; and what such an
//! endpoint gets from one. The next request gets its own answer.

use super::hostile::{NEXT, mesh, told};
use super::hostile_http2::{
    DATA, END_HEADERS, END_STREAM, Field, HEADERS, PREFACE, SETTINGS, block, frame, message,
    read_frame,
};
use super::*;
use crate::model::Protocol;

const OK: Field = (":status", "200");
const HI: &[&str] = &["200 2|hi|0||", "200 next"];
const REFUSED: &[&str] = &["502", "200 next"];
/// Before the first byte was written.
const CLOSED: &[&str] = &[];

/// An HTTP/2 endpoint that answers its first request with these bytes behind the number of a stream,
/// the others as it should.
fn answers_with(world: &World, answer: Vec<u8>) {
    let used = Rc::new(RefCell::new(false));
    world.listen(
        A,
        raw(move |mut io| {
            let (used, answer) = (used.clone(), answer.clone());
            async move {
                let mut preface = [0; PREFACE.len()];
                io.read_exact(&mut preface).await.unwrap();
                io.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
                while let Some((kind, _, stream, _)) = read_frame(&mut io).await {
                    if kind != HEADERS {
                        continue;
                    }
                    let next = [(":status", "200"), ("content-length", "4")];
                    let bytes = match used.replace(true) {
                        true => message(stream, &next, Some("next")),
                        false => on_stream(stream, &answer),
                    };
                    // One that has had enough is gone.
                    let _ = io.write_all(&bytes).await;
                }
            }
        }),
    );
}

/// The same frames on another stream.
fn on_stream(stream: u32, frames: &[u8]) -> Vec<u8> {
    let (mut all, mut rest) = (Vec::new(), frames);
    while let [a, b, c, kind, flags, _, _, _, _, behind @ ..] = rest {
        let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap();
        all.extend(frame(*kind, *flags, stream, &behind[..length]));
        rest = &behind[length..];
    }
    all
}

/// Name, the endpoint's frames, and what the client is told.
type Case = (&'static str, Vec<u8>, &'static [&'static str]);

fn check(cases: Vec<Case>) {
    let mut wrong = String::new();
    for (name, bytes, expected) in cases {
        run(async {
            let world = mesh(Protocol::Http2);
            answers_with(&world, bytes);
            let both = ["GET / HTTP/1.1\r\nhost: web\r\n\r\n", NEXT].concat();
            let told = told(&world, both.as_bytes(), false).await;
            if told != expected {
                wrong += &format!("{name}\n  told {told:?}\n");
            }
        });
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// What an HTTP/1 client is told of an HTTP/2 endpoint's answer.
#[test]
fn answers_of_an_endpoint() {
    let told = |fields: &[Field], data| message(1, fields, data);
    let cases: Vec<Case> = vec![
        ("plain", told(&[OK], Some("hi")), HI),
        ("a length", told(&[OK, ("content-length", "2")], Some("hi")), &["200 hi", "200 next"]),
        (
            "equal lengths",
            told(&[OK, ("content-length", "2"), ("content-length", "2")], Some("hi")),
            &["200 hi", "200 next"],
        ),
        (
            "different lengths",
            told(&[OK, ("content-length", "2"), ("content-length", "3")], Some("hi")),
            REFUSED,
        ),
        ("a list of lengths", told(&[OK, ("content-length", "2, 2")], Some("hi")), REFUSED),
        ("a signed length", told(&[OK, ("content-length", "+2")], Some("hi")), REFUSED),
        ("an empty length", told(&[OK, ("content-length", "")], None), REFUSED),
        ("less than its length", told(&[OK, ("content-length", "3")], Some("hi")), CLOSED),
        ("more than its length", told(&[OK, ("content-length", "1")], Some("hi")), CLOSED),
        ("a length without content", told(&[OK, ("content-length", "2")], None), REFUSED),
        ("no status", told(&[("x", "y")], Some("hi")), REFUSED),
        ("two statuses", told(&[OK, (":status", "204")], Some("hi")), REFUSED),
        ("a signed status", told(&[(":status", "+20")], Some("hi")), REFUSED),
        ("a status behind a field", told(&[("x", "y"), OK], Some("hi")), REFUSED),
        ("an unasked switch", told(&[(":status", "101")], None), REFUSED),
        ("connection", told(&[OK, ("connection", "close")], Some("hi")), REFUSED),
        ("transfer-encoding", told(&[OK, ("transfer-encoding", "chunked")], Some("hi")), REFUSED),
        ("upper case", told(&[OK, ("X", "y")], Some("hi")), REFUSED),
        ("CR LF in a value", told(&[OK, ("x", "y\r\nevil: z")], Some("hi")), REFUSED),
        ("NUL in a value", told(&[OK, ("x", "y\0")], Some("hi")), REFUSED),
        ("a blank before a value", told(&[OK, ("x", " y")], Some("hi")), REFUSED),
    ];
    check(cases);
}

/// The same of answers in more than one head.
#[test]
fn several_heads_of_an_endpoint() {
    let hints = |fields: &[Field]| {
        let early = [&[(":status", "103")], fields].concat();
        [frame(HEADERS, END_HEADERS, 1, &block(&early)), message(1, &[OK], Some("hi"))].concat()
    };
    let trailed = |fields: &[Field]| {
        let head = frame(HEADERS, END_HEADERS, 1, &block(&[OK]));
        let data = frame(DATA, 0, 1, b"hi");
        [head, data, frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields))].concat()
    };
    let switch = frame(HEADERS, END_HEADERS, 1, &block(&[(":status", "101")]));
    let cases: Vec<Case> = vec![
        ("a length in hints", hints(&[("content-length", "5")]), &["103"]),
        ("a switch, then an answer", [switch, message(1, &[OK], Some("hi"))].concat(), REFUSED),
        ("trailers are dropped", trailed(&[("x", "y")]), HI),
        ("trailers of the hop", trailed(&[("connection", "close")]), CLOSED),
    ];
    check(cases);
}

/// What an HTTP/2 endpoint gets of an HTTP/1 request.
#[test]
fn nothing_of_the_hop_goes_from_http1_to_http2() {
    run(async {
        let world = mesh(Protocol::Http2);
        let heads = Heads::default();
        let (seen, trailers) = (heads.clone(), Rc::new(RefCell::new(None)));
        let trailed = trailers.clone();
        world.listen(
            A,
            hyper(HttpVersion::Http2, move |request| {
                let (head, body) = request.into_parts();
                seen.borrow_mut().push(head);
                let trailed = trailed.clone();
                async move {
                    let all = body.collect().await.unwrap();
                    *trailed.borrow_mut() = all.trailers().cloned();
                    Response::new(full(all.to_bytes()))
                }
            }),
        );
        let request = "POST http://web/a HTTP/1.1\r\nhost: other\r\nConnection: x-hop, upgrade\r\n\
            x-hop: 1\r\nupgrade: h2c\r\nkeep-alive: 5\r\ntransfer-encoding: chunked\r\n\r\n\
            2;x=y\r\nhi\r\n0\r\nx-sum: 1\r\nconnection: x\r\nhost: evil\r\ncontent-length: 9\r\n\r\n";
        assert_eq!(told(&world, request.as_bytes(), false).await, ["200 hi"]);
        let head = heads.borrow_mut().pop().unwrap();
        assert_eq!(head.uri.to_string(), "http://web/a");
        let mut names: Vec<&str> = head.headers.keys().map(http::HeaderName::as_str).collect();
        names.retain(|name| !name.starts_with("x-"));
        assert!(names.is_empty(), "{names:?}");
        assert!(!head.headers.contains_key("x-hop"));
        let trailers = trailers.borrow_mut().take().unwrap();
        assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &http::HeaderValue::from_static("1")));
    });
}
