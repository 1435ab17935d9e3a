//! `corsPolicy`: preflights are answered here, and other answers say who may read them.

use xtask::lab::{Lab, Pod};

use crate::traffic::{self, Answer, curl};

const POLICY: &str = "
allowOrigins: [{ exact: 'https://shop.example' }, { regex: 'https://[a-z]+[.]example[.]org' }]
allowMethods: [GET, POST]
allowHeaders: [x-mine, content-type]
exposeHeaders: [x-echo-pod]
allowCredentials: true
maxAge: 24h
";

fn web() -> Option<(Lab, Pod, Pod)> {
    let servers = [traffic::service("web"), traffic::server("web", "node2", ("web", "one"), &[])];
    let lab = traffic::shop(2, &servers)?;
    let [client, server] = ["shop/client", "shop/web"].map(|name| lab.pod(name).unwrap());
    Some((lab, client, server))
}

fn rule(more: &str) -> String {
    let policy = format!("{}\n{more}", POLICY.trim()).replace('\n', "\n  ");
    traffic::route(
        "web",
        &format!(
            "corsPolicy:\n  {}\nroute: [{{ destination: {{ host: web }} }}]",
            policy.trim_end()
        ),
    )
}

fn preflight(client: &Pod, origin: &str) -> Answer {
    let origin = format!("origin: {origin}");
    let method = "access-control-request-method: POST";
    curl(client, &["-X", "OPTIONS", "-H", &origin, "-H", method, "http://web/"])
}

#[test]
fn a_preflight_of_an_allowed_origin_is_answered_here() {
    let Some((lab, client, server)) = web() else { return };
    traffic::apply(&lab, &rule(""));
    for origin in ["https://shop.example", "https://any.example.org"] {
        let answer = preflight(&client, origin);
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), origin);
        assert_eq!(answer.header("access-control-allow-methods"), "GET,POST");
        assert_eq!(answer.header("access-control-allow-headers"), "x-mine,content-type");
        assert_eq!(answer.header("access-control-max-age"), "86400");
        assert_eq!(answer.header("access-control-allow-credentials"), "true");
        assert_eq!(answer.header("x-echo-pod"), "");
    }
    assert_eq!(traffic::logged(&server).len(), 0);
}

#[test]
fn other_preflights_go_on_or_are_ignored() {
    let Some((lab, client, server)) = web() else { return };
    traffic::apply(&lab, &rule(""));
    for origin in ["https://evil.example", "https://any.example.org.evil.example"] {
        let answer = preflight(&client, origin);
        assert_eq!(answer.header("x-echo-pod"), "web", "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), "");
    }
    // No preflight: it asks for nothing.
    let words = ["-X", "OPTIONS", "-H", "origin: https://shop.example", "http://web/"];
    assert_eq!(curl(&client, &words).header("x-echo-pod"), "web");
    assert_eq!(traffic::logged(&server).len(), 3);
    traffic::apply(&lab, &rule("unmatchedPreflights: IGNORE"));
    let answer = preflight(&client, "https://evil.example");
    assert_eq!((answer.status, answer.header("x-echo-pod")), (200, ""), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), "");
    assert_eq!(traffic::logged(&server).len(), 3);
}

#[test]
fn answers_say_who_may_read_them() {
    let Some((lab, client, server)) = web() else { return };
    traffic::apply(&lab, &rule(""));
    let answer = curl(&client, &["-H", "origin: https://shop.example", "http://web/"]);
    assert_eq!((answer.status, answer.header("x-echo-pod")), (200, "web"));
    assert_eq!(answer.header("access-control-allow-origin"), "https://shop.example");
    assert_eq!(answer.header("access-control-expose-headers"), "x-echo-pod");
    assert_eq!(answer.header("access-control-allow-credentials"), "true");
    assert_eq!(answer.header("access-control-allow-methods"), "");
    for words in [&["-H", "origin: https://evil.example"][..], &[]] {
        let answer = curl(&client, &[words, &["http://web/"]].concat());
        assert_eq!((answer.status, answer.header("x-echo-pod")), (200, "web"));
        assert_eq!(answer.header("access-control-allow-origin"), "", "{answer:?}");
    }
    assert_eq!(traffic::logged(&server).len(), 3);
}
