//! The most dangerous of hostile HTTP between two nodes; the whole tables are the engine's tests
//! (`src/http/tests/hostile_*.rs`). The next request on the connection gets its own answer, or
//! none.

use crate::http_protocols::{Client, served, talk};
use crate::support;

const NEXT: &str = "GET /next HTTP/1.1\r\nhost: server\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nhost: server\r\n";

#[test]
fn hostile_http_is_not_passed_on() {
    let Some(lab) = support::lab(2) else { return };
    served(&lab);
    let pod = lab.pod("shop/client").unwrap();
    let client = Client { pod: &pod, dials: "server" };
    requests(client);
    answers(client);
}

/// The first lines of all answers, and of all requests that the server shows in them.
fn told(client: Client<'_>, send: &str) -> Vec<String> {
    let all = talk(client, send, None);
    let mut told = Vec::new();
    // A status line may follow a body directly.
    let lines = all.replace("{\"first\": \"", "\n").replace("HTTP/1.1 ", "\nHTTP/1.1 ");
    for line in lines.lines() {
        let known = ["HTTP/1.1 ", "GET ", "POST ", "PRI "];
        let words = line.split('"').next().unwrap_or(line);
        if known.iter().any(|start| words.starts_with(start)) {
            told.push(words.trim_end_matches(" HTTP/1.1").to_owned());
        }
    }
    told
}

fn requests(client: Client<'_>) {
    const ONE: &[&str] = &["HTTP/1.1 200 OK", "POST /"];
    let smuggled = "GET /evil HTTP/1.1\r\nhost: server\r\n\r\n";
    // What follows a request with both framings is not trusted.
    let cl_te = format!(
        "{POST}content-length: 50\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}{NEXT}"
    );
    assert_eq!(told(client, &cl_te), ONE, "CL.TE");
    let te_cl = format!(
        "{POST}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n{:x}\r\n{smuggled}\r\n\
         0\r\n\r\n{NEXT}",
        smuggled.len()
    );
    assert_eq!(told(client, &te_cl)[..], ONE[..], "TE.CL");
    let last = NEXT.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    let switch = "connection: upgrade, http2-settings, close\r\nupgrade: h2c\r\n\
                  http2-settings: AAMAAABk\r\n";
    let shown = talk(client, &format!("{POST}{switch}\r\n"), None);
    assert!(shown.starts_with("HTTP/1.1 200 OK\r\n"), "{shown}");
    assert!(!shown.contains("h2c") && !shown.contains("ttp2-settings"), "h2c: {shown}");
    for (name, head) in [
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nhost: server\r\nhost: near\r\n\r\n"),
        ("a user", "GET http://near@server/ HTTP/1.1\r\nhost: server\r\n\r\n"),
        ("a folded line", "GET / HTTP/1.1\r\nhost: server\r\nx: a\r\n b\r\n\r\n"),
    ] {
        assert_eq!(told(client, &[head, &last].concat()), ["HTTP/1.1 400 Bad Request"], "{name}");
    }
}

fn answers(client: Client<'_>) {
    let last = NEXT.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    let next = ["HTTP/1.1 200 OK", "GET /next"];
    for (path, status) in [
        ("/lengths", "502 Bad Gateway"),
        ("/signed", "502 Bad Gateway"),
        ("/both", "502 Bad Gateway"),
        ("/switch", "502 Bad Gateway"),
        ("/old", "502 Bad Gateway"),
        ("/twice", "200 OK"),
    ] {
        let get = format!("GET {path} HTTP/1.1\r\nhost: server\r\n\r\n");
        // More than once: the endpoint's connections are pooled.
        for _ in 0..3 {
            let told = told(client, &(get.clone() + &last));
            assert_eq!(told[..], [&format!("HTTP/1.1 {status}"), next[0], next[1]], "{path}");
        }
    }
    let ask = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n";
    let get = format!("GET /switch HTTP/1.1\r\nhost: server\r\n{ask}\r\n");
    let told = told(client, &(get + &last));
    assert_eq!(told, ["HTTP/1.1 502 Bad Gateway", next[0], next[1]], "h2c");
}
