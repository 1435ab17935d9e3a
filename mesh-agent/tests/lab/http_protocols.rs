//! HTTP/1 as it is spoken in the wild passes between nodes and on one node as bytes that mean the
//! same, on a port that is declared and on one whose protocol is detected.

use serde_json::{Value, json};
use xtask::lab::{Lab, Pod};

use crate::support::{self, SHOP, SHOP_PODS};

const SERVER: &str = r#"
kind: ConfigMap
apiVersion: v1
metadata: { name: server, namespace: shop }
data: { server.py: CODE }
---
kind: Pod
apiVersion: v1
metadata: { name: server, namespace: shop, labels: { app: server } }
spec:
  nodeName: node2
  containers:
    - name: main
      image: debian
      command: [python3, /code/server.py]
      ports: [{ containerPort: 8080 }]
      volumeMounts: [{ name: code, mountPath: /code }]
  volumes: [{ name: code, configMap: { name: server } }]
---
kind: Service
apiVersion: v1
metadata: { name: server, namespace: shop }
spec:
  selector: { app: server }
  ports: [{ name: http, port: 80, targetPort: 8080 }]
---
kind: Service
apiVersion: v1
metadata: { name: undeclared, namespace: shop }
spec:
  selector: { app: server }
  ports: [{ port: 80, targetPort: 8080 }]
---
kind: Service
apiVersion: v1
metadata: { name: bytes, namespace: shop }
spec:
  selector: { app: echo }
  ports: [{ port: 80, targetPort: 9000 }]
"#;

/// Who asks, and the Service that is dialled. `Host` is the same for all.
#[derive(Clone, Copy)]
pub(crate) struct Client<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) dials: &'a str,
}

/// Sends bytes and returns what came back until `until` was in it; without it, until the end.
pub(crate) fn talk(client: Client<'_>, send: &str, until: Option<&str>) -> String {
    ask(client, json!({"send": send, "until": until}))
}

fn ask(client: Client<'_>, mut question: Value) -> String {
    question["host"] = client.dials.into();
    let code = include_str!("http_client.py");
    let mut talk = client.pod.converse(&["python3", "-c", code]).expect("python3 starts");
    let answer = talk.ask(&question.to_string());
    let answer = answer.unwrap_or_else(|error| panic!("{question}: {error}"));
    serde_json::from_str(&answer).expect("a JSON string")
}

/// What the server has seen of a request that it shows.
fn seen(client: Client<'_>, request: &str) -> Value {
    let answer = talk(client, request, Some("}"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

fn field<'a>(seen: &'a Value, name: &str) -> Vec<&'a str> {
    let fields = seen["fields"].as_array().expect("fields");
    let named = fields.iter().filter(|field| field[0] == name);
    named.filter_map(|field| field[1].as_str()).collect()
}

#[test]
fn http1_passes_as_it_is_spoken() {
    let Some(lab) = support::lab(2) else { return };
    served(&lab);
    // On the other node, and on the server's own.
    for pod in ["shop/client", "shop/far"].map(|name| lab.pod(name).unwrap()) {
        for dials in ["server", "undeclared"] {
            let client = Client { pod: &pod, dials };
            requests(client);
            answers(client);
            exchanges(client);
            both_ways(client);
        }
        not_http(Client { pod: &pod, dials: "bytes" });
    }
}

/// Starts the server and its clients.
pub(crate) fn served(lab: &Lab) {
    let code = json!(include_str!("http_server.py")).to_string();
    let manifests = [SHOP, "---", &SERVER.replace("CODE", &code)].join("\n");
    support::apply(lab, &manifests, &[SHOP_PODS, &["shop/server"]].concat());
}

fn requests(client: Client<'_>) {
    let host = "host: server\r\n";
    // Forms of the target, methods, names and values that are unusual and legal.
    for (line, expected) in [
        ("GET http://server/a?b=c HTTP/1.1", "GET /a?b=c HTTP/1.1"),
        ("OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.1"),
        ("PROPFIND /a HTTP/1.1", "PROPFIND /a HTTP/1.1"),
        ("x-own-method /a HTTP/1.1", "x-own-method /a HTTP/1.1"),
        (
            "GET /a%2Fb//c/../d;e=f?x=%00&y=[] HTTP/1.1",
            "GET /a%2Fb//c/../d;e=f?x=%00&y=[] HTTP/1.1",
        ),
    ] {
        let seen = seen(client, &format!("{line}\r\n{host}\r\n"));
        assert_eq!(seen["first"], expected);
        assert_eq!(field(&seen, "host"), ["server"], "{line}");
    }
    let odd = "x-empty: \r\nx!#$%&'*+-.^_`|~9: 1\r\nx-twice: a\r\nx-twice: b\r\nx-high: \u{e9}\r\n";
    let seen_odd = seen(client, &format!("GET / HTTP/1.1\r\n{host}{odd}\r\n"));
    assert_eq!(field(&seen_odd, "x!#$%&'*+-.^_`|~9"), ["1"]);
    assert_eq!(field(&seen_odd, "x-twice"), ["a", "b"]);
    assert_eq!(field(&seen_odd, "x-high"), ["\u{e9}"], "obs-text");
    // 60 KB of fields.
    let many: String =
        (0..60).map(|number| format!("x-{number}: {}\r\n", "v".repeat(1000))).collect();
    let seen_many = seen(client, &format!("GET / HTTP/1.1\r\n{host}{many}\r\n"));
    assert_eq!(field(&seen_many, "x-59")[0].len(), 1000);
    // Bodies: chunked with trailers, chunk extensions, and with a length.
    let chunked = "transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3;e=1\r\nabc\r\n2\r\nde\r\n\
                   0\r\nx-sum: 5\r\n\r\n";
    let seen_chunked = seen(client, &format!("POST / HTTP/1.1\r\n{host}{chunked}"));
    assert_eq!(seen_chunked["body"], "abcde");
    assert_eq!(seen_chunked["trailers"], json!(["x-sum: 5"]));
    let old = talk(client, &format!("POST / HTTP/1.0\r\n{host}content-length: 2\r\n\r\nhi"), None);
    assert!(old.contains("\"body\": \"hi\""), "HTTP/1.0 ends with its answer: {old}");
}

fn answers(client: Client<'_>) {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: server\r\n\r\n");
    let next = get("/next");
    let hints = talk(client, &get("/hints"), Some("\r\n\r\nok"));
    let told: Vec<&str> = hints.lines().filter(|line| line.starts_with("HTTP/1.1 ")).collect();
    let expected = ["HTTP/1.1 103 Early Hints", "HTTP/1.1 102 Processing", "HTTP/1.1 200 OK"];
    assert_eq!(told, expected, "{hints}");
    assert!(hints.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n"), "{hints}");
    // Answers without a body; the next answer on the connection is the next request's.
    for path in ["/204", "/304"] {
        let both = talk(client, &[get(path), next.clone()].concat(), Some("}"));
        assert!(both.starts_with(&format!("HTTP/1.1 {} ", &path[1..])), "{both}");
        assert!(both.contains("x-own: 1\r\n") && both.contains("GET /next"), "{both}");
    }
    let head = "HEAD / HTTP/1.1\r\nhost: server\r\n\r\n";
    let both = talk(client, &[head, &next].concat(), Some("}"));
    assert!(both.contains("content-length: 12345\r\n") && both.contains("GET /next"), "{both}");
    // Trailers go to a client that says it takes them (RFC 9110 section 6.5.1).
    let takes = get("/trailers").replace("\r\n\r\n", "\r\nte: trailers\r\nconnection: te\r\n\r\n");
    let trailers = talk(client, &takes, Some("\r\n0\r\nx-sum: 7\r\n\r\n"));
    assert!(trailers.contains("3\r\nabc\r\n"), "{trailers}");
    let cookies = talk(client, &get("/cookies"), Some("b=2"));
    assert!(cookies.contains("set-cookie: a=1\r\nset-cookie: b=2"), "{cookies}");
    let end = talk(client, &get("/until-close"), Some("until the end"));
    assert!(end.starts_with("HTTP/1.1 200 OK"), "{end}");
    // Cut off: it must not look whole.
    let cut = talk(client, &get("/cut"), None);
    assert!(cut.contains("content-length: 100\r\n") && cut.ends_with("only this"), "{cut}");
}

fn exchanges(client: Client<'_>) {
    let host = "host: server\r\n";
    let pipelined: String =
        (0..5).map(|number| format!("GET /{number} HTTP/1.1\r\n{host}\r\n")).collect();
    let last = format!("GET /last HTTP/1.1\r\n{host}connection: close\r\n\r\n");
    let all = talk(client, &[pipelined, last].concat(), None);
    let order: Vec<usize> = (0..5)
        .map(|number| format!("GET /{number} "))
        .chain(["GET /last ".to_owned()])
        .map(|first| all.find(&first).unwrap_or_else(|| panic!("{first}: {all}")))
        .collect();
    assert!(order.is_sorted(), "answers come in order: {all}");
    // A client that ends its half has gone, as for Envoy.
    let half = json!({"until": null, "half_close": true,
        "send": format!("GET /half HTTP/1.1\r\n{host}\r\n")});
    assert_eq!(ask(client, half), "");
    // 100-continue: granted by the server, or refused before the body is sent.
    let head =
        format!("POST / HTTP/1.1\r\n{host}expect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    let granted = json!({"send": head, "until": "}",
        "then": [["100 Continue\r\n\r\n", "body"]]});
    let answer = ask(client, granted);
    assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("\"body\": \"body\""), "{answer}");
    let refused = talk(client, &head.replace("POST /", "POST /refuse"), Some("no!"));
    assert!(refused.starts_with("HTTP/1.1 417 "), "{refused}");
}

/// Neither side waits for the other's end.
fn both_ways(client: Client<'_>) {
    // Within one request: the answer begins before the body, and each piece answers one.
    let head = "POST /duplex HTTP/1.1\r\nhost: server\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = |number: u32| format!("6\r\nturn {number}\r\n");
    let turns = ask(
        client,
        json!({"send": head, "until": "\r\n0\r\n\r\n", "then": [
            ["\r\n\r\n", chunk(0)], [chunk(0), chunk(1)], [chunk(1), chunk(2)],
            [chunk(2), "0\r\n\r\n"],
        ]}),
    );
    assert!(turns.ends_with(&[&chunk(0), &chunk(1), &chunk(2), "0\r\n\r\n"].concat()), "{turns}");
    // After an upgrade there are two halves. The client ends its own first, then the server.
    let upgrade = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nhost: server\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\n\r\n"
        )
    };
    let halves = ask(
        client,
        json!({"send": upgrade("/upgrade"), "until": null, "then": [
            ["\r\n\r\n", "ping"], ["ping", "pong"], ["pong", null],
        ]}),
    );
    assert!(halves.starts_with("HTTP/1.1 101 ") && halves.ends_with("pingponglate"), "{halves}");
    let last = format!("{} at {} still talks", client.pod.name, client.dials);
    let first = json!({"send": upgrade("/upgrade-first"), "until": null, "after_end": last});
    let first = ask(client, first);
    assert!(first.ends_with("\r\n\r\nfirst"), "{first}");
    support::eventually("what was said after the server's end", || {
        let seen = seen(client, "GET / HTTP/1.1\r\nhost: server\r\n\r\n");
        (seen["heard"] == *last).then_some(())
    });
}

/// What only begins like HTTP, on a port where that is possible, passes as it is.
fn not_http(client: Client<'_>) {
    for text in
        ["P", "GET key", "GET key\r\n", "OPTIONS rtsp://server/a RTSP/1.0\r\nCSeq: 1\r\n\r\n"]
    {
        // The client waits for its echo, or has said all.
        let waits = json!({"send": text, "until": text});
        assert_eq!(ask(client, waits), text);
        let ended = json!({"send": text, "until": null, "half_close": true});
        assert_eq!(ask(client, ended), text);
    }
}
