//! Requests of a hostile HTTP/1 client: what it is told, and what its endpoint gets. Behind each
//! comes another request on the same connection, which gets its own answer or none.

use super::hostile::{NEXT, NEXT_SEEN, NEXT_TOLD, mesh, records, told};
use super::*;
use crate::model::Protocol;

/// Name, bytes, answers, and messages that the endpoint gets.
type Case = (&'static str, &'static str, &'static [&'static str], &'static [&'static str]);

/// Two answers: the request is legal.
const BOTH: &[&str] = &["200 POST /", NEXT_TOLD];
const REFUSED: &[&str] = &["400"];

/// A request with some more fields. A test's few texts may stay for good.
fn post(fields: &str, body: &str) -> &'static str {
    let end = if fields.is_empty() { "" } else { "\r\n" };
    String::leak(format!("POST / HTTP/1.1\r\nhost: web\r\n{fields}{end}\r\n{body}"))
}

/// How such a request arrives.
fn seen(fields: &str, body: &str) -> &'static [&'static str] {
    let first = format!("POST / HTTP/1.1|host: web|{fields}|{body}");
    Vec::leak(vec![String::leak(first), NEXT_SEEN])
}

fn check(cases: &[Case]) {
    let mut wrong = String::new();
    for (name, bytes, answers, seen) in cases {
        run(async {
            let world = mesh(Protocol::Http);
            let recorded = records(&world);
            let all = [bytes, NEXT].concat();
            let told = told(&world, all.as_bytes(), bytes.starts_with("HEAD")).await;
            if told != *answers || *recorded.borrow() != *seen {
                wrong += &format!("{name}\n  told {told:?}\n  seen {:?}\n", recorded.borrow());
            }
        });
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn lengths() {
    check(&[
        ("a length", post("content-length: 5", "hello"), BOTH, seen("content-length: 5|", "hello")),
        (
            "CL.TE",
            post(
                "content-length: 30\r\ntransfer-encoding: chunked",
                "0\r\n\r\nGET /evil HTTP/1.1\r\nx: ",
            ),
            &["200 POST /"],
            &["POST / HTTP/1.1|host: web|transfer-encoding: chunked||0||"],
        ),
        (
            "TE.CL",
            post(
                "transfer-encoding: chunked\r\ncontent-length: 4",
                "21\r\nGET /evil HTTP/1.1\r\nhost: web\r\n\r\n\r\n0\r\n\r\n",
            ),
            &["200 POST /"],
            &[
                "POST / HTTP/1.1|host: web|transfer-encoding: chunked||21|GET /evil HTTP/1.1|host: web|||0||",
            ],
        ),
        (
            "equal lengths",
            post("content-length: 5\r\ncontent-length: 5", "hello"),
            BOTH,
            seen("content-length: 5|", "hello"),
        ),
        (
            "different lengths",
            post("content-length: 5\r\ncontent-length: 6", "hello"),
            REFUSED,
            &[],
        ),
        ("a list of lengths", post("content-length: 5, 5", "hello"), REFUSED, &[]),
        ("a signed length", post("content-length: +5", "hello"), REFUSED, &[]),
        ("a negative length", post("content-length: -5", "hello"), REFUSED, &[]),
        ("a hexadecimal length", post("content-length: 0x5", "hello"), REFUSED, &[]),
        ("an empty length", post("content-length:", ""), REFUSED, &[]),
        ("a length with a blank", post("content-length: 1 5", "hello"), REFUSED, &[]),
        (
            "a length above 64 bits",
            post("content-length: 18446744073709551621", "hello"),
            REFUSED,
            &[],
        ),
    ]);
}

#[test]
fn codings() {
    check(&[
        ("a coding that is not chunked", post("transfer-encoding: gzip", ""), REFUSED, &[]),
        (
            "a coding that looks like chunked",
            post("transfer-encoding: xchunked", "0\r\n\r\n"),
            REFUSED,
            &[],
        ),
        (
            "chunked, then another",
            post("transfer-encoding: chunked, identity", "0\r\n\r\n"),
            REFUSED,
            &[],
        ),
        (
            "chunked, then another in its own line",
            post("transfer-encoding: chunked\r\ntransfer-encoding: identity", "0\r\n\r\n"),
            REFUSED,
            &[],
        ),
        (
            "identity, then chunked",
            post("transfer-encoding: identity\r\ntransfer-encoding: chunked", "0\r\n\r\n"),
            &["501"],
            &[],
        ),
        (
            "gzip, then chunked",
            post("transfer-encoding: gzip, chunked", "0\r\n\r\n"),
            &["501"],
            &[],
        ),
        ("chunked twice", post("transfer-encoding: chunked, chunked", "0\r\n\r\n"), REFUSED, &[]),
        (
            "chunked twice in two lines",
            post("transfer-encoding: chunked\r\ntransfer-encoding: chunked", "0\r\n\r\n"),
            REFUSED,
            &[],
        ),
        ("an empty coding", post("transfer-encoding:", ""), REFUSED, &[]),
        ("chunked in quotes", post("transfer-encoding: \"chunked\"", "0\r\n\r\n"), REFUSED, &[]),
        (
            "a vertical tab before chunked",
            post("transfer-encoding: \x0bchunked", "0\r\n\r\n"),
            REFUSED,
            &[],
        ),
        (
            "a coding's name is any case",
            post("Transfer-Encoding: Chunked", "0\r\n\r\n"),
            BOTH,
            seen("transfer-encoding: chunked|", "0||"),
        ),
        (
            "a coding in HTTP/1.0",
            "POST / HTTP/1.0\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            REFUSED,
            &[],
        ),
        (
            "a coding in HTTP/1.0 with a length",
            "POST / HTTP/1.0\r\nhost: web\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            REFUSED,
            &[],
        ),
    ]);
}

#[test]
fn content_of_get() {
    check(&[
        (
            "GET with chunks",
            "GET / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            &["200 GET /", NEXT_TOLD],
            &["GET / HTTP/1.1|host: web|transfer-encoding: chunked||2|hi|0||", NEXT_SEEN],
        ),
        (
            "GET with a length",
            "GET / HTTP/1.1\r\nhost: web\r\ncontent-length: 2\r\n\r\nhi",
            &["200 GET /", NEXT_TOLD],
            &["GET / HTTP/1.1|host: web|content-length: 2||hi", NEXT_SEEN],
        ),
    ]);
}

#[test]
fn chunks() {
    let chunked = |name, body: &str, told, seen| -> Case {
        (name, post("transfer-encoding: chunked", body), told, seen)
    };
    let passed = seen("transfer-encoding: chunked|", "2|hi|0||");
    const ONE: &[&str] = &["POST / HTTP/1.1|host: web|transfer-encoding: chunked||2|hi|0||"];
    const CUT: &[&str] = &["!cut after POST / HTTP/1.1|host: web|transfer-encoding: chunked||"];
    check(&[
        chunked("plain", "2\r\nhi\r\n0\r\n\r\n", BOTH, passed),
        chunked("an extension is dropped", "2;a=b;c=\"d\"\r\nhi\r\n0;e\r\n\r\n", BOTH, passed),
        chunked("blanks behind the size", "2 \t;a\r\nhi\r\n0 \r\n\r\n", BOTH, passed),
        chunked("leading zeros", "0002\r\nhi\r\n000\r\n\r\n", BOTH, passed),
        chunked("LF ends a size", "2\nhi\r\n0\r\n\r\n", REFUSED, &[]),
        chunked("LF ends an extension", "2;a\nhi\r\n0\r\n\r\n", REFUSED, &[]),
        chunked("CR in an extension", "2;a\rb\r\nhi\r\n0\r\n\r\n", REFUSED, &[]),
        chunked("LF ends a chunk", "2\r\nhi\n0\r\n\r\n", REFUSED, CUT),
        chunked("junk behind a chunk", "2\r\nhi!\r\n0\r\n\r\n", REFUSED, CUT),
        chunked("LF ends the last chunk", "2\r\nhi\r\n0\n\n", REFUSED, CUT),
        // What hyper takes for trailers is somebody else's next request: it gets no answer.
        chunked("LF ends the trailers", "2\r\nhi\r\n0\r\n\n", &["200 POST /"], ONE),
        chunked("a signed size", "+2\r\nhi\r\n0\r\n\r\n", REFUSED, &[]),
        chunked("a size with 0x", "0x2\r\nhi\r\n0\r\n\r\n", REFUSED, &[]),
        chunked("no size", "\r\nhi\r\n0\r\n\r\n", REFUSED, &[]),
        chunked("a blank before the size", " 2\r\nhi\r\n0\r\n\r\n", REFUSED, &[]),
        chunked("a size above 64 bits", "10000000000000002\r\nhi\r\n0\r\n\r\n", REFUSED, &[]),
    ]);
}

#[test]
fn heads() {
    check(&[
        (
            "LF ends lines",
            "POST / HTTP/1.1\nhost: web\ncontent-length: 0\n\n",
            BOTH,
            seen("content-length: 0|", ""),
        ),
        ("empty lines before", "\r\n\r\nPOST / HTTP/1.1\r\nhost: web\r\n\r\n", BOTH, seen("", "")),
        ("CR in a value", post("x: a\rb: c", ""), REFUSED, &[]),
        ("CR in a name", post("x\r: a", ""), REFUSED, &[]),
        ("CR in the first line", "POST /\r HTTP/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("CR ends a line", "POST / HTTP/1.1\rhost: web\r\n\r\n", REFUSED, &[]),
        ("CR CR LF", "POST / HTTP/1.1\r\nhost: web\r\r\n\r\n", REFUSED, &[]),
        ("NUL in a value", post("x: a\0b", ""), REFUSED, &[]),
        ("NUL in a name", post("x\0: a", ""), REFUSED, &[]),
        ("NUL in the target", "POST /\0 HTTP/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("DEL in a value", post("x: a\x7fb", ""), REFUSED, &[]),
        ("a folded line", post("x: a\r\n b", ""), REFUSED, &[]),
        ("a folded coding", post("transfer-encoding:\r\n chunked", "0\r\n\r\n"), REFUSED, &[]),
        ("a blank before the first field", "POST / HTTP/1.1\r\n host: web\r\n\r\n", REFUSED, &[]),
        ("a blank before a colon", post("content-length : 0", ""), REFUSED, &[]),
        ("no colon", post("x", ""), REFUSED, &[]),
        ("no name", post(": x", ""), REFUSED, &[]),
    ]);
}

#[test]
fn first_lines() {
    check(&[
        (
            "blanks around a value",
            "POST / HTTP/1.1\r\nhost:\tweb \t\r\nx: \t a\t \r\n\r\n",
            BOTH,
            seen("x: a|", ""),
        ),
        ("two blanks in the first line", "POST  / HTTP/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("a tab in the first line", "POST\t/ HTTP/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("a blank behind the version", "POST / HTTP/1.1 \r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("a blank in the target", "POST /a b HTTP/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("no version", "GET /\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("version 0.9", "GET / HTTP/0.9\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("version 1.2", "GET / HTTP/1.2\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("version 2.0", "GET / HTTP/2.0\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("a version in lower case", "GET / http/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("a method with a delimiter", "G(T / HTTP/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
    ]);
}

#[test]
fn hosts() {
    check(&[
        ("no host", "POST / HTTP/1.1\r\nx: a\r\n\r\n", REFUSED, &[]),
        ("two hosts", post("host: other", ""), REFUSED, &[]),
        ("two equal hosts", post("host: web", ""), REFUSED, &[]),
        (
            "two hosts in HTTP/1.0",
            "POST / HTTP/1.0\r\nhost: web\r\nhost: web\r\n\r\n",
            REFUSED,
            &[],
        ),
        (
            "two hosts, absolute form",
            "POST http://web/ HTTP/1.1\r\nhost: web\r\nhost: web\r\n\r\n",
            REFUSED,
            &[],
        ),
        ("no host, absolute form", "POST http://web/ HTTP/1.1\r\n\r\n", REFUSED, &[]),
        ("a host with a path", "POST / HTTP/1.1\r\nhost: web/x\r\n\r\n", REFUSED, &[]),
        ("a host with a user", "POST / HTTP/1.1\r\nhost: user@web\r\n\r\n", REFUSED, &[]),
        ("a host with a blank", "POST / HTTP/1.1\r\nhost: web other\r\n\r\n", REFUSED, &[]),
        ("a list of hosts", "POST / HTTP/1.1\r\nhost: web, other\r\n\r\n", REFUSED, &[]),
        ("a host with a scheme", "POST / HTTP/1.1\r\nhost: http://web\r\n\r\n", REFUSED, &[]),
        ("a host with a word for port", "POST / HTTP/1.1\r\nhost: web:http\r\n\r\n", REFUSED, &[]),
        ("a host with two ports", "POST / HTTP/1.1\r\nhost: web:80:80\r\n\r\n", REFUSED, &[]),
        (
            "a host with a port above 65535",
            "POST / HTTP/1.1\r\nhost: web:65536\r\n\r\n",
            REFUSED,
            &[],
        ),
        ("a host that is not ASCII", "POST / HTTP/1.1\r\nhost: w\u{e9}b\r\n\r\n", REFUSED, &[]),
        ("a host with a fragment", "POST / HTTP/1.1\r\nhost: web#x\r\n\r\n", REFUSED, &[]),
        ("a host with half an address", "POST / HTTP/1.1\r\nhost: [::1\r\n\r\n", REFUSED, &[]),
        (
            "a port",
            "POST / HTTP/1.1\r\nhost: web:80\r\n\r\n",
            BOTH,
            &["POST / HTTP/1.1|host: web:80||", NEXT_SEEN],
        ),
        (
            "an empty port",
            "POST / HTTP/1.1\r\nhost: web:\r\n\r\n",
            BOTH,
            &["POST / HTTP/1.1|host: web:||", NEXT_SEEN],
        ),
        (
            "an empty host is the address",
            "POST / HTTP/1.1\r\nhost:\r\n\r\n",
            BOTH,
            &["POST / HTTP/1.1|host: 10.96.0.1:80||", NEXT_SEEN],
        ),
        (
            "no host in HTTP/1.0",
            "POST / HTTP/1.0\r\n\r\n",
            &["200 POST /"],
            &["POST / HTTP/1.1|host: 10.96.0.1:80||"],
        ),
    ]);
}

#[test]
fn targets() {
    check(&[
        (
            "absolute form replaces the host",
            "POST http://web/ HTTP/1.1\r\nhost: other\r\n\r\n",
            BOTH,
            seen("", ""),
        ),
        (
            "absolute form without a path",
            "POST http://web HTTP/1.1\r\nhost: web\r\n\r\n",
            BOTH,
            seen("", ""),
        ),
        (
            "absolute form with a user",
            "POST http://user@web/ HTTP/1.1\r\nhost: web\r\n\r\n",
            REFUSED,
            &[],
        ),
        (
            "absolute form with a user and password",
            "POST http://a:b@web/ HTTP/1.1\r\nhost: web\r\n\r\n",
            REFUSED,
            &[],
        ),
        (
            "absolute form without a host",
            "POST http:///x HTTP/1.1\r\nhost: web\r\n\r\n",
            REFUSED,
            &[],
        ),
        (
            "authority form without CONNECT",
            "GET web:80 HTTP/1.1\r\nhost: web\r\n\r\n",
            REFUSED,
            &[],
        ),
        ("a word for target", "GET web HTTP/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("a star without OPTIONS", "GET * HTTP/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
        (
            "a star",
            "OPTIONS * HTTP/1.1\r\nhost: web\r\n\r\n",
            &["200 OPTIONS *", NEXT_TOLD],
            &["OPTIONS * HTTP/1.1|host: web||", NEXT_SEEN],
        ),
        ("a fragment is dropped", "POST /#x HTTP/1.1\r\nhost: web\r\n\r\n", BOTH, seen("", "")),
        (
            "an absolute target without a path",
            "POST http://web#x HTTP/1.1\r\nhost: web\r\n\r\n",
            BOTH,
            seen("", ""),
        ),
        (
            "an absolute target with a query in place of a path",
            "POST http://web?x HTTP/1.1\r\nhost: web\r\n\r\n",
            &["200 POST /?x", NEXT_TOLD],
            &["POST /?x HTTP/1.1|host: web||", NEXT_SEEN],
        ),
    ]);
}

#[test]
fn targets_of_connect() {
    check(&[
        ("CONNECT without a port", "CONNECT web HTTP/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("CONNECT with an empty port", "CONNECT web: HTTP/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("CONNECT with port 0", "CONNECT web:0 HTTP/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
        ("CONNECT with a path", "CONNECT / HTTP/1.1\r\nhost: web\r\n\r\n", REFUSED, &[]),
        (
            "CONNECT with a user",
            "CONNECT user@web:80 HTTP/1.1\r\nhost: web:80\r\n\r\n",
            REFUSED,
            &[],
        ),
        (
            "CONNECT with content",
            "CONNECT web:80 HTTP/1.1\r\nhost: web:80\r\ncontent-length: 5\r\n\r\nhello",
            REFUSED,
            &[],
        ),
    ]);
}

#[test]
fn fields_of_the_hop() {
    check(&[
        (
            "named fields",
            post(
                "connection: x-a, ,X-B\r\nconnection: x-c\r\nx-a: 1\r\nx-b: 2\r\nx-c: 3\r\nx-d: 4",
                "",
            ),
            BOTH,
            seen("x-d: 4|", ""),
        ),
        (
            "named beside what is not ASCII",
            post("connection: x-a, \u{e9}\r\nx-a: 1", ""),
            BOTH,
            seen("", ""),
        ),
        (
            "host and length named",
            post("content-length: 5\r\nconnection: host, content-length", "hello"),
            BOTH,
            seen("content-length: 5|", "hello"),
        ),
        (
            "always of the hop",
            post(
                "keep-alive: 5\r\nproxy-connection: close\r\nte: gzip, trailers;q=0.5\r\nupgrade: x",
                "",
            ),
            BOTH,
            seen("", ""),
        ),
        (
            "close is the hop's",
            post("connection: close", ""),
            &["200 POST /"],
            &["POST / HTTP/1.1|host: web||"],
        ),
    ]);
}

#[test]
fn upgrades() {
    check(&[
        (
            "h2c",
            post(
                "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk",
                "",
            ),
            BOTH,
            seen("", ""),
        ),
        (
            "h2c among others",
            post("connection: upgrade\r\nupgrade: websocket, H2C", ""),
            BOTH,
            seen("", ""),
        ),
        (
            "an upgrade in HTTP/1.0",
            "POST / HTTP/1.0\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            &["200 POST /"],
            &["POST / HTTP/1.1|host: web||"],
        ),
        (
            "an upgrade with content",
            post("connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 5", "hello"),
            BOTH,
            seen("content-length: 5|", "hello"),
        ),
        (
            "an upgrade that is declined",
            post("connection: upgrade\r\nupgrade: websocket", ""),
            BOTH,
            seen("upgrade: websocket|connection: upgrade|", ""),
        ),
        (
            "100-continue in HTTP/1.0",
            "POST / HTTP/1.0\r\nhost: web\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello",
            &["200 POST /"],
            &["POST / HTTP/1.1|host: web|content-length: 5||hello"],
        ),
    ]);
}

/// What the mesh says about a request stands, whatever `Connection` names.
#[test]
fn the_hop_cannot_remove_what_the_mesh_adds() {
    run(async {
        let world = mesh(Protocol::Http);
        let heads = world.answers(A, HttpVersion::Http1, "x");
        let named = "connection: x-request-id, x-forwarded-proto, x-envoy-attempt-count\r\n";
        let request = format!("GET / HTTP/1.1\r\nhost: web\r\n{named}x-request-id: mine\r\n\r\n");
        told(&world, request.as_bytes(), false).await;
        let head = heads.borrow_mut().pop().unwrap();
        assert_eq!(head.headers["x-request-id"].len(), 36);
        assert_eq!(head.headers["x-forwarded-proto"], "http");
        assert_eq!(head.headers["x-envoy-attempt-count"], "1");
    });
}

#[test]
fn trailers() {
    let chunked = |name, body: &str, told, seen| -> Case {
        let fields = "transfer-encoding: chunked\r\ntrailer: x-sum, host";
        (name, post(fields, body), told, seen)
    };
    const CUT: &[&str] =
        &["!cut after POST / HTTP/1.1|host: web|trailer: x-sum, host|transfer-encoding: chunked||"];
    check(&[
        chunked(
            "a declared one passes, one that frames does not",
            "2\r\nhi\r\n0\r\nx-sum: 1\r\nhost: evil\r\ncontent-length: 7\r\n\r\n",
            &["200 POST /"],
            &[
                "POST / HTTP/1.1|host: web|trailer: x-sum, host|transfer-encoding: chunked||2|hi|0|x-sum: 1||",
            ],
        ),
        // Somebody before this node may take the first LF LF for the end.
        chunked(
            "LF ends them early",
            "2\r\nhi\r\n0\r\nx-sum: 1\n\nGET /evil HTTP/1.1\r\n\r\n",
            &["200 POST /"],
            &[
                "POST / HTTP/1.1|host: web|trailer: x-sum, host|transfer-encoding: chunked||2|hi|0|x-sum: 1||",
            ],
        ),
        chunked("LF between two", "2\r\nhi\r\n0\r\nx-sum: 1\nhost: a\r\n\r\n", REFUSED, CUT),
        chunked("CR in one", "2\r\nhi\r\n0\r\nx-sum: 1\r2\r\n\r\n", REFUSED, CUT),
        chunked("a folded one", "2\r\nhi\r\n0\r\nx-sum: 1\r\n 2\r\n\r\n", REFUSED, CUT),
        chunked("NUL in one", "2\r\nhi\r\n0\r\nx-sum: \0\r\n\r\n", REFUSED, CUT),
    ]);
}

#[test]
fn refusals_are_counted() {
    for (bytes, counted) in [
        ("GET / HTTP/1.1\r\n\r\n", "400 DPE 1"),
        ("GET / HTTP/1.1\r\nx: \0\r\n\r\n", "400 DPE 1"),
        (
            "GET / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "501 DPE 1",
        ),
        (post("transfer-encoding: chunked", "2\r\nhi!"), "400 DPE 1"),
    ] {
        run(async {
            let world = mesh(Protocol::Http);
            records(&world);
            told(&world, bytes.as_bytes(), false).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(world.counted(), [counted], "{bytes}");
        });
    }
}
