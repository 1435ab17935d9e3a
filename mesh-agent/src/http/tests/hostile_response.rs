//! Answers of a hostile endpoint: what the client is told. The next request gets its own answer.

use super::hostile::{NEXT, mesh, told};
use super::*;
use crate::model::Protocol;

/// Name, the endpoint's bytes, whether it then closes, and what the client is told.
type Case = (&'static str, &'static str, bool, &'static [&'static str]);

const NEXT_TOLD: &str = "200 next";
const REFUSED: &[&str] = &["502", NEXT_TOLD];
const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
/// Keeps or closes its connection.
const KEEPS: bool = false;
const CLOSES: bool = true;

/// An answer. A test's few texts may stay for good.
fn ok(fields: &str, body: &str) -> &'static str {
    String::leak(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}"))
}

/// An endpoint that answers `/next` as it should, and all else with `bytes`.
fn answers_with(world: &World, bytes: &'static str, closes: bool) {
    world.listen(
        A,
        raw(move |mut io| async move {
            let mut head = Vec::new();
            let mut byte = [0];
            while io.read(&mut byte).await.unwrap_or(0) == 1 {
                head.push(byte[0]);
                if !head.ends_with(b"\r\n\r\n") {
                    continue;
                }
                if head.windows(5).any(|part| part == b"/next") {
                    write(&mut io, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnext").await;
                } else {
                    // A client that has had enough is gone.
                    let _ = io.write_all(bytes.as_bytes()).await;
                    if closes {
                        return;
                    }
                }
                head.clear();
            }
        }),
    );
}

async fn told_to(world: &World, request: &str) -> Vec<String> {
    told(world, [request, NEXT].concat().as_bytes(), request.starts_with("HEAD")).await
}

fn check(request: &str, cases: &[Case]) {
    let mut wrong = String::new();
    for (name, bytes, closes, expected) in cases {
        run(async {
            let world = mesh(Protocol::Http);
            answers_with(&world, bytes, *closes);
            let told = told_to(&world, request).await;
            let counted = world.counted();
            let flagged = expected != &REFUSED || counted.contains(&"502 UPE 1".to_owned());
            if told != *expected || !flagged {
                wrong += &format!("{name}\n  told {told:?}\n  counted {counted:?}\n");
            }
        });
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn lengths() {
    const HI: &[&str] = &["200 hi", NEXT_TOLD];
    check(
        GET,
        &[
            ("a length", ok("content-length: 2", "hi"), KEEPS, HI),
            ("until the end", "HTTP/1.1 200 OK\r\n\r\nhi", CLOSES, &["200 2|hi|0||", NEXT_TOLD]),
            (
                "chunks",
                ok("transfer-encoding: chunked", "2\r\nhi\r\n0\r\n\r\n"),
                KEEPS,
                &["200 2|hi|0||", NEXT_TOLD],
            ),
            ("equal lengths", ok("content-length: 2\r\ncontent-length: 2", "hi"), KEEPS, HI),
            ("a list of equal lengths", ok("content-length: 2, 2", "hi"), KEEPS, HI),
            (
                "different lengths",
                ok("content-length: 2\r\ncontent-length: 3", "hi"),
                KEEPS,
                REFUSED,
            ),
            ("a list of different lengths", ok("content-length: 2, 3", "hi"), KEEPS, REFUSED),
            ("a signed length", ok("content-length: +2", "hi"), KEEPS, REFUSED),
            ("a negative length", ok("content-length: -2", "hi"), KEEPS, REFUSED),
            ("a hexadecimal length", ok("content-length: 0x2", "hi"), KEEPS, REFUSED),
            ("an empty length", ok("content-length:", "hi"), KEEPS, REFUSED),
            ("an empty length in a list", ok("content-length: 2,", "hi"), KEEPS, REFUSED),
            (
                "a length above 64 bits",
                ok("content-length: 18446744073709551618", "hi"),
                KEEPS,
                REFUSED,
            ),
        ],
    );
}

#[test]
fn codings() {
    check(
        GET,
        &[
            (
                "a length and chunks",
                ok("content-length: 3\r\ntransfer-encoding: chunked", "2\r\nhi\r\n0\r\n\r\n"),
                KEEPS,
                REFUSED,
            ),
            (
                "chunks and a length",
                ok("transfer-encoding: chunked\r\ncontent-length: 3", "2\r\nhi\r\n0\r\n\r\n"),
                KEEPS,
                REFUSED,
            ),
            ("another coding", ok("transfer-encoding: gzip", "hi"), CLOSES, REFUSED),
            (
                "another coding in chunks",
                ok("transfer-encoding: gzip, chunked", "2\r\nhi\r\n0\r\n\r\n"),
                KEEPS,
                REFUSED,
            ),
            (
                "chunked twice",
                ok(
                    "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
                    "2\r\nhi\r\n0\r\n\r\n",
                ),
                KEEPS,
                REFUSED,
            ),
            ("identity", ok("transfer-encoding: identity", "hi"), CLOSES, REFUSED),
            (
                "a coding that looks like chunked",
                ok("transfer-encoding: xchunked", "2\r\nhi\r\n0\r\n\r\n"),
                CLOSES,
                REFUSED,
            ),
            (
                "chunks in HTTP/1.0",
                "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                CLOSES,
                REFUSED,
            ),
            ("shorter than its length", ok("content-length: 3", "hi"), CLOSES, &["!cut 200 hi"]),
        ],
    );
}

#[test]
fn answers_to_head() {
    check(
        "HEAD / HTTP/1.1\r\nhost: web\r\n\r\n",
        &[
            ("a length", ok("content-length: 5", ""), KEEPS, &["200", NEXT_TOLD]),
            (
                "equal lengths",
                ok("content-length: 5\r\ncontent-length: 5", ""),
                KEEPS,
                &["200", NEXT_TOLD],
            ),
            ("different lengths", ok("content-length: 5\r\ncontent-length: 6", ""), KEEPS, REFUSED),
            ("a signed length", ok("content-length: +5", ""), KEEPS, REFUSED),
            (
                "a length and chunks",
                ok("content-length: 5\r\ntransfer-encoding: chunked", ""),
                KEEPS,
                REFUSED,
            ),
            ("a body", ok("content-length: 2", "hi"), KEEPS, &["200", NEXT_TOLD]),
        ],
    );
}

#[test]
fn chunks() {
    let chunked = |name, body: &str, told| -> Case {
        let head = ok("transfer-encoding: chunked", "");
        (name, String::leak(format!("{head}{body}")), KEEPS, told)
    };
    const HI: &[&str] = &["200 2|hi|0||", NEXT_TOLD];
    const CUT: &[&str] = &["!cut 200"];
    // Before the first byte was written.
    const CLOSED: &[&str] = &[];
    check(
        GET,
        &[
            chunked("an extension is dropped", "2;a=b\r\nhi\r\n0\r\n\r\n", HI),
            chunked("undeclared trailers are dropped", "2\r\nhi\r\n0\r\nx: 1\r\n\r\n", HI),
            chunked("LF ends a size", "2\nhi\r\n0\r\n\r\n", CLOSED),
            chunked("a signed size", "+2\r\nhi\r\n0\r\n\r\n", CLOSED),
            chunked("a size above 64 bits", "10000000000000002\r\nhi\r\n0\r\n\r\n", CLOSED),
            chunked("junk behind a chunk", "2\r\nhi!\r\n0\r\n\r\n", CUT),
            chunked("LF ends a chunk", "2\r\nhi\n0\r\n\r\n", CUT),
            chunked("a folded trailer", "2\r\nhi\r\n0\r\nx: 1\r\n 2\r\n\r\n", CUT),
        ],
    );
}

#[test]
fn heads() {
    const HI: &[&str] = &["200 hi", NEXT_TOLD];
    check(
        GET,
        &[
            ("LF ends lines", "HTTP/1.1 200 OK\ncontent-length: 2\n\nhi", KEEPS, HI),
            ("no reason", "HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nhi", KEEPS, HI),
            ("CR in a value", ok("x: a\rb\r\ncontent-length: 2", "hi"), KEEPS, REFUSED),
            (
                "CR in the reason",
                "HTTP/1.1 200 O\rK\r\ncontent-length: 2\r\n\r\nhi",
                KEEPS,
                REFUSED,
            ),
            ("NUL in a value", ok("x: a\0b\r\ncontent-length: 2", "hi"), KEEPS, REFUSED),
            (
                "NUL in the reason",
                "HTTP/1.1 200 O\0K\r\ncontent-length: 2\r\n\r\nhi",
                KEEPS,
                REFUSED,
            ),
            ("a folded line", ok("x: a\r\n b\r\ncontent-length: 2", "hi"), KEEPS, REFUSED),
            ("a blank before a colon", ok("content-length : 2", "hi"), KEEPS, REFUSED),
            (
                "a blank before the first field",
                ok(" x: a\r\ncontent-length: 2", "hi"),
                KEEPS,
                REFUSED,
            ),
            ("a name that is no token", ok("x(y: a\r\ncontent-length: 2", "hi"), KEEPS, REFUSED),
            ("two digits", "HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nhi", KEEPS, REFUSED),
            ("four digits", "HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\nhi", KEEPS, REFUSED),
            ("status 000", "HTTP/1.1 000 OK\r\ncontent-length: 2\r\n\r\nhi", KEEPS, REFUSED),
            ("a signed status", "HTTP/1.1 +20 OK\r\ncontent-length: 2\r\n\r\nhi", KEEPS, REFUSED),
        ],
    );
}

#[test]
fn other_protocols() {
    check(
        GET,
        &[
            ("HTTP/0.9", "hello, this is no head\r\n\r\n", CLOSES, REFUSED),
            ("version 2.0", "HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", KEEPS, REFUSED),
            ("version 1.2", "HTTP/1.2 200 OK\r\ncontent-length: 2\r\n\r\nhi", KEEPS, REFUSED),
            ("another protocol", "SSH-2.0-OpenSSH_9.2\r\n", KEEPS, REFUSED),
            (
                "an unasked switch",
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
                KEEPS,
                REFUSED,
            ),
            (
                "an unasked switch, then an answer",
                "HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
                KEEPS,
                REFUSED,
            ),
        ],
    );
}

#[test]
fn more_than_was_asked_for() {
    const TWO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    check(
        GET,
        &[
            ("two answers", TWO, KEEPS, &["200 hi", NEXT_TOLD]),
            (
                "bytes behind the body",
                ok("content-length: 2", "hi!"),
                KEEPS,
                &["200 hi", NEXT_TOLD],
            ),
            (
                "an answer behind the chunks",
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
                KEEPS,
                &["200 2|hi|0||", NEXT_TOLD],
            ),
            (
                "204 with a body",
                "HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\nevil",
                KEEPS,
                &["204", NEXT_TOLD],
            ),
            (
                "204 with chunks",
                "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
                KEEPS,
                &["204", NEXT_TOLD],
            ),
            (
                "304 with a body",
                "HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\nevil",
                KEEPS,
                &["304", NEXT_TOLD],
            ),
            (
                "304 with different lengths",
                "HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\n",
                KEEPS,
                REFUSED,
            ),
            (
                "103 with a body",
                "HTTP/1.1 103 Early Hints\r\ncontent-length: 4\r\n\r\nevil",
                KEEPS,
                &["103", "502", NEXT_TOLD],
            ),
            (
                "103 with a length",
                "HTTP/1.1 103 Early Hints\r\ncontent-length: 41\r\ntransfer-encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
                KEEPS,
                &["103", "200 hi", NEXT_TOLD],
            ),
        ],
    );
}

/// What must not be said about a body where there can be none.
#[test]
fn no_length_without_a_body() {
    for bytes in [
        "HTTP/1.1 204 No Content\r\ncontent-length: 4\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\ncontent-length: 4\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    ] {
        run(async {
            let world = mesh(Protocol::Http);
            answers_with(&world, bytes, false);
            let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
            write(&mut io, "GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await;
            let mut all = String::new();
            io.read_to_string(&mut all).await.unwrap();
            assert!(all.contains("HTTP/1.1 204 No Content\r\n"), "{all}");
            assert!(!all.contains("content-length") && !all.contains("x-hop"), "{all}");
        });
    }
}

#[test]
fn a_switch_is_to_what_was_asked_for() {
    let ask = "GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket, x\r\n\r\n";
    // Bytes behind a switch that happened belong to it.
    const SWITCHED: &[&str] = &["101", "!not one host: freeHTTP/1.1 200 OK|content-length: 4||"];
    check(
        ask,
        &[
            (
                "the first",
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: WebSocket\r\n\r\nfree",
                KEEPS,
                SWITCHED,
            ),
            (
                "the second",
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nfree",
                KEEPS,
                SWITCHED,
            ),
            (
                "another",
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: y\r\n\r\nfree",
                CLOSES,
                REFUSED,
            ),
            (
                "none",
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\r\nfree",
                CLOSES,
                REFUSED,
            ),
            (
                "one of two",
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x, h2c\r\n\r\nfree",
                CLOSES,
                REFUSED,
            ),
        ],
    );
    let h2c = "GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n";
    check(
        h2c,
        &[(
            "h2c",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nfree",
            KEEPS,
            REFUSED,
        )],
    );
}

/// A tunnel that a forward proxy opens has no length, whatever the proxy says.
#[test]
fn a_tunnel_has_no_length() {
    run(async {
        let world = mesh(Protocol::Http);
        let proxy = "93.184.216.34:3128";
        world.listen(
            proxy,
            raw(|mut io| async move {
                read_until(&mut io, "\r\n\r\n").await;
                write(&mut io, ok("content-length: 4", "free")).await;
            }),
        );
        let mut io = world.open(&world.client, proxy, HttpVersion::Http1);
        write(&mut io, "CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n").await;
        let all = read_until(&mut io, "free").await;
        assert!(all.starts_with("HTTP/1.1 200 ") && !all.contains("content-length"), "{all}");
    });
}
