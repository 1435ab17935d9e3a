//! Retries: when a request is sent again, to whom, with which body, for how long, and how many at one
//! moment.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use xtask::lab::{Lab, Pod};

use crate::support;
use crate::traffic::{self, curl, statuses};

/// A server that answers as it is told by each request.
fn web() -> Option<(Lab, Pod, Pod)> {
    let servers = [traffic::service("web"), traffic::server("web", "node2", ("web", "one"), &[])];
    let lab = traffic::shop_logged(&servers)?;
    let [client, server] = ["shop/client", "shop/web"].map(|name| lab.pod(name).unwrap());
    Some((lab, client, server))
}

/// A route to `web` with more fields.
fn route(fields: &str) -> String {
    traffic::route("web", &format!("route: [{{ destination: {{ host: web }} }}]\n{fields}"))
}

/// The attempts that reached a server, of requests with this query.
fn attempts(server: &Pod, query: &str) -> Vec<Value> {
    traffic::logged(server).into_iter().filter(|seen| seen["query"] == query).collect()
}

fn header<'a>(seen: &'a Value, name: &str) -> &'a str {
    seen["headers"][name][0].as_str().unwrap_or_default()
}

#[test]
fn a_server_that_fails_every_other_request_is_asked_again() {
    let Some((lab, client, server)) = web() else { return };
    let query = "turns=503,200";
    let url = format!("http://web/?{query}");
    let ask = || statuses(&traffic::lines(&client, &["-n", "40", &url]));
    let half = BTreeMap::from([(200, 20), (503, 20)]);
    // The default retries what has not reached the application.
    assert_eq!(ask(), half);
    traffic::apply(&lab, &route("retries: { attempts: 0 }"));
    assert_eq!(ask(), half);
    traffic::apply(&lab, &route("retries: { attempts: 1, retryOn: 5xx }"));
    assert_eq!(ask(), BTreeMap::from([(200, 40)]));
    let seen = attempts(&server, query);
    assert_eq!(seen.len(), 40 + 40 + 80);
    let counts: Vec<&str> =
        seen[80..].iter().map(|seen| header(seen, "x-envoy-attempt-count")).collect();
    assert_eq!(counts, ["1", "2"].repeat(40));
    let ids = |from: usize| seen[from..].iter().map(|seen| header(seen, "x-request-id"));
    assert!(ids(80).step_by(2).eq(ids(81).step_by(2)), "a request keeps its id");
    for conditions in ["gateway-error", "'503'", "'retriable-4xx,503'"] {
        let retries = format!("retries: {{ attempts: 1, retryOn: {conditions} }}");
        traffic::apply(&lab, &route(&retries));
        assert_eq!(ask(), BTreeMap::from([(200, 40)]), "{conditions}");
    }
    traffic::apply(&lab, &route("retries: { attempts: 1, retryOn: 'retriable-4xx,502,reset' }"));
    assert_eq!(ask(), half);
}

#[test]
fn attempts_end_and_the_last_answer_counts() {
    let Some((lab, client, server)) = web() else { return };
    traffic::apply(&lab, &route("retries: { attempts: 3, retryOn: 'gateway-error,reset' }"));
    let answer = curl(&client, &["http://web/?turns=503,503,502,504,200"]);
    assert_eq!(answer.status, 504, "{answer:?}");
    assert_eq!(attempts(&server, "turns=503,503,502,504,200").len(), 4);
    support::eventually("the access log has the flag", || {
        let lines = traffic::access(&lab, "node1", &["URX", "response_code=504"]);
        (lines.len() == 1).then_some(())
    });
    let answer = curl(&client, &["http://web/?turns=abort,abort,200"]);
    assert_eq!(answer.status, 200, "no answer at all is tried again: {answer:?}");
    assert_eq!(attempts(&server, "turns=abort,abort,200").len(), 3);
    let answer = curl(&client, &["http://web/?turns=abort"]);
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.body,
        "upstream connect error or disconnect/reset before headers. retried and the latest reset \
         reason: connection termination"
    );
}

#[test]
fn each_attempt_has_its_time_and_all_have_the_routes() {
    let Some((lab, client, server)) = web() else { return };
    let retries = "retries: { attempts: 2, perTryTimeout: 0.5s, retryOn: 5xx }";
    traffic::apply(&lab, &route(retries));
    let answer = curl(&client, &["http://web/?turns=200/30000,200"]);
    assert_eq!(answer.status, 200, "the second attempt: {answer:?}");
    assert!(answer.took >= Duration::from_millis(500), "{answer:?}");
    let answer = curl(&client, &["http://web/?delay-ms=30000"]);
    assert_eq!((answer.status, answer.body.as_str()), (504, "upstream request timeout"));
    assert!(answer.took >= Duration::from_millis(1500), "three attempts: {answer:?}");
    support::eventually("the access log says which time-out", || {
        let words = ["response_flags=UT", "upstream_per_try_timeout", "response_code=504"];
        let lines = traffic::access(&lab, "node1", &words);
        (!lines.is_empty()).then_some(())
    });
    // A hundred attempts would take ten seconds.
    let retries = "retries: { attempts: 100, perTryTimeout: 0.1s, retryOn: 5xx, backoff: 1ms }";
    traffic::apply(&lab, &route(&format!("timeout: 2s\n{retries}")));
    let answer = curl(&client, &["http://web/?delay-ms=3000"]);
    assert_eq!((answer.status, answer.body.as_str()), (504, "upstream request timeout"));
    let took = answer.took.as_secs_f64();
    assert!((1.9..6.0).contains(&took), "{answer:?}");
    // Attempts are given up, not left behind: none of them gets to its end, while another request
    // (to the pod itself, past the rule) does.
    let url = format!("http://{}:8080/?delay-ms=3001", server.v4().unwrap());
    assert_eq!(curl(&client, &[&url]).status, 200);
    assert_eq!(attempts(&server, "delay-ms=3000").len(), 0);
    assert_eq!(attempts(&server, "delay-ms=3001").len(), 1);
}

#[test]
fn bodies_are_sent_again_whole() {
    let Some((lab, client, server)) = web() else { return };
    traffic::apply(&lab, &route("retries: { attempts: 2, retryOn: 5xx }"));
    for (size, more) in [(1, "a"), (20_000, "b"), (60_000, "c")] {
        let query = format!("turns=503,503,200&size-is={more}");
        let url = format!("http://web/?{query}");
        let load = ["-n", "1", "--body-size", &size.to_string(), &url];
        let lines = traffic::lines(&client, &load);
        assert_eq!(statuses(&lines), BTreeMap::from([(200, 1)]), "{size} bytes");
        let seen = attempts(&server, &query);
        assert_eq!(seen.len(), 3);
        for attempt in &seen {
            assert_eq!(attempt["method"], "POST");
            assert_eq!(attempt["body_length"], size);
            assert_eq!(attempt["body_sha256"], seen[0]["body_sha256"]);
        }
    }
    // What is longer than anybody keeps is not: its first answer is the client's.
    let url = "http://web/?turns=503,200";
    let lines = traffic::lines(&client, &["-n", "1", "--body-size", "20000000", url]);
    assert_eq!(statuses(&lines), BTreeMap::from([(503, 1)]));
}

#[test]
fn another_endpoint_is_preferred() {
    let servers = [
        traffic::service("web"),
        traffic::server("good", "node1", ("web", "good"), &[]),
        traffic::server("bad", "node2", ("web", "bad"), &["--default", "status=503"]),
    ];
    let Some(lab) = traffic::shop(2, &servers) else { return };
    let client = lab.pod("shop/client").unwrap();
    traffic::apply(&lab, &route("retries: { attempts: 1, retryOn: 5xx }"));
    let lines = traffic::lines(&client, &["-n", "400", "--concurrency", "4", "http://web/"]);
    assert_eq!(statuses(&lines), BTreeMap::from([(200, 400)]), "one more attempt is enough");
    let asked = traffic::logged(&lab.pod("shop/bad").unwrap()).len();
    assert!(asked > 50, "it was asked only {asked} times");
    assert_eq!(traffic::logged(&lab.pod("shop/good").unwrap()).len(), 400);
}

#[test]
fn retries_at_one_moment_are_limited() {
    let Some((lab, client, server)) = web() else { return };
    traffic::apply(&lab, &route("retries: { attempts: 1, retryOn: 5xx }"));
    // All requests are first answered at the same moment, and would be tried again at once.
    let ask = |query: &str| {
        let url = format!("http://web/?{query}");
        let lines = traffic::lines(&client, &["-n", "40", "--concurrency", "40", &url]);
        assert_eq!(statuses(&lines), BTreeMap::from([(503, 40)]));
        attempts(&server, query).len() - 40
    };
    assert_eq!(ask("status=503&delay-ms=1000&try=1"), 40);
    let limits = "{ connectionPool: { http: { maxRetries: 5 } } }";
    traffic::apply(&lab, &traffic::policy("web", limits));
    let retried = ask("status=503&delay-ms=1000&try=2");
    assert!((5..30).contains(&retried), "{retried} of 40 were tried again");
    let budget = "{ retryBudget: { percent: 10, minRetryConcurrency: 2 } }";
    traffic::apply(&lab, &traffic::policy("web", budget));
    let retried = ask("status=503&delay-ms=1000&try=3");
    assert!((2..30).contains(&retried), "{retried} of 40 were tried again");
}
