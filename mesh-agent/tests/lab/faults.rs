//! Faults: delays and aborts hit their share of requests, before anything else that a route does.

use std::time::Duration;

use xtask::lab::{Lab, Pod};

use crate::support;
use crate::traffic::{self, Line, assert_share, curl, statuses};

/// Body of an answer that is a fault.
const ABORTED: &str = "fault filter abort";

fn web() -> Option<(Lab, Pod)> {
    let servers = [traffic::service("web"), traffic::server("web", "node2", ("web", "one"), &[])];
    let lab = traffic::shop_logged(&servers)?;
    let client = lab.pod("shop/client").unwrap();
    Some((lab, client))
}

/// A route to `web` with this fault, and more.
fn fault(fault: &str, more: &str) -> String {
    traffic::route(
        "web",
        &format!("fault: {fault}\n{more}\nroute: [{{ destination: {{ host: web }} }}]"),
    )
}

/// Requests that took at least so long.
fn slow(lines: &[Line], millis: u64) -> usize {
    lines.iter().filter(|line| line.took >= millis).count()
}

#[test]
fn a_delay_hits_its_share() {
    let Some((lab, client)) = web() else { return };
    let ask = |requests: &str| {
        traffic::lines(&client, &["-n", requests, "--concurrency", "100", "http://web/"])
    };
    let delay = |percent: f64| {
        fault(&format!("{{ delay: {{ percentage: {{ value: {percent} }}, fixedDelay: 2s }} }}"), "")
    };
    traffic::apply(&lab, &delay(100.0));
    let lines = ask("20");
    assert_eq!((slow(&lines, 2_000), statuses(&lines)[&200]), (20, 20));
    traffic::apply(&lab, &delay(50.0));
    let lines = ask("400");
    assert_share(slow(&lines, 2_000), 400, 0.5);
    assert_eq!(statuses(&lines)[&200], 400);
    traffic::apply(&lab, &delay(0.0));
    let lines = ask("400");
    assert_eq!((slow(&lines, 2_000), statuses(&lines)[&200]), (0, 400));
    let delayed = traffic::access(&lab, "node1", &["response_flags=DI"]).len();
    assert!((20 + 150..=20 + 250).contains(&delayed), "{delayed} with the flag");
}

#[test]
fn an_abort_hits_its_share_and_reaches_no_server() {
    let Some((lab, client)) = web() else { return };
    let server = lab.pod("shop/web").unwrap();
    let abort = |percent: f64| {
        // Ten attempts would find one that is not aborted.
        let abort =
            format!("{{ abort: {{ percentage: {{ value: {percent} }}, httpStatus: 503 }} }}");
        fault(&abort, "retries: { attempts: 10, retryOn: '5xx,gateway-error,503' }")
    };
    traffic::apply(&lab, &abort(100.0));
    let answer = curl(&client, &["http://web/"]);
    assert_eq!((answer.status, answer.body.as_str()), (503, ABORTED));
    assert_eq!(answer.header("content-type"), "text/plain");
    assert_eq!(answer.header("server"), "envoy");
    assert_eq!(traffic::logged(&server).len(), 0);
    traffic::apply(&lab, &abort(50.0));
    let lines = traffic::lines(&client, &["-n", "1000", "--concurrency", "8", "http://web/"]);
    let aborted = lines.iter().filter(|line| line.body == ABORTED).count();
    assert_share(aborted, 1000, 0.5);
    assert_eq!(statuses(&lines)[&200], 1000 - aborted);
    assert_eq!(traffic::logged(&server).len(), 1000 - aborted, "once each");
    support::eventually("the access log has the flag", || {
        let lines = traffic::access(&lab, "node1", &["response_flags=FI", "fault_filter_abort"]);
        (lines.len() == 1 + aborted).then_some(())
    });
}

#[test]
fn a_delay_comes_first_and_is_not_of_the_time_out() {
    let Some((lab, client)) = web() else { return };
    let always = "percentage: { value: 100 }";
    let delay = format!("delay: {{ {always}, fixedDelay: 1s }}");
    traffic::apply(&lab, &fault(&format!("{{ {delay} }}"), "timeout: 0.5s"));
    let answer = curl(&client, &["http://web/"]);
    assert_eq!(answer.status, 200);
    assert!(answer.took >= Duration::from_secs(1), "{answer:?}");
    let abort = format!("abort: {{ {always}, httpStatus: 555 }}");
    traffic::apply(&lab, &fault(&format!("{{ {delay}, {abort} }}"), "timeout: 0.5s"));
    let answer = curl(&client, &["http://web/"]);
    assert_eq!((answer.status, answer.body.as_str()), (555, ABORTED));
    assert!(answer.took >= Duration::from_secs(1), "{answer:?}");
}

#[test]
fn a_grpc_call_is_aborted_in_grpc() {
    let grpc = r#"
kind: Service
apiVersion: v1
metadata: { name: web, namespace: shop }
spec: { selector: { app: web }, ports: [{ name: grpc, port: 80, targetPort: 8080 }] }
"#;
    let servers = [grpc.to_owned(), traffic::server("web", "node2", ("web", "one"), &[])];
    let Some(lab) = traffic::shop(2, &servers) else { return };
    let client = lab.pod("shop/client").unwrap();
    let call = ["malha-load", "http", "--grpc", "-n", "20", "--body", "hello", "http://web/a.B/C"];
    let before = support::json(&client, &call);
    assert_eq!(before["grpc_statuses"]["0"], 20, "{before}");
    let abort = "{ abort: { percentage: { value: 100 }, grpcStatus: UNAVAILABLE } }";
    traffic::apply(&lab, &fault(abort, ""));
    let report = support::json(&client, &call);
    assert_eq!(report["grpc_statuses"]["14"], 20, "{report}");
    assert_eq!(report["statuses"]["200"], 20, "{report}");
}

#[test]
fn a_fault_is_for_those_whom_the_rule_matches() {
    let Some((lab, client)) = web() else { return };
    let rules = "
match: [{ headers: { end-user: { exact: jason } } }]
fault: { abort: { percentage: { value: 100 }, httpStatus: 500 } }
route: [{ destination: { host: web } }]";
    let other = "\n  - route: [{ destination: { host: web } }]\n";
    traffic::apply(&lab, &(traffic::route("web", rules) + other));
    for _ in 0..20 {
        assert_eq!(curl(&client, &["-H", "end-user: jason", "http://web/"]).status, 500);
        assert_eq!(curl(&client, &["-H", "end-user: jane", "http://web/"]).status, 200);
    }
}
