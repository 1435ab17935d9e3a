//! Outlier detection: an endpoint that fails is left out, by the clients that it has failed and by no
//! others, for longer each time; what a client gives up itself is nobody's failure.

use std::collections::BTreeMap;

use xtask::lab::{Lab, Pod};

use crate::support;
use crate::traffic::{self, Line, statuses};

/// The endpoint that fails.
const FAILS: &[&str] = &["--default", "status=504"];

/// In turn, so that it is known who is asked.
const IN_TURN: &str = "loadBalancer: { simple: ROUND_ROBIN }";

/// A server that answers on each node, of which the second fails; clients beside `shop/client`.
fn one_fails(clients: &[(&str, &str)]) -> Option<Lab> {
    let servers = [
        traffic::service("web"),
        traffic::server("good", "node1", ("web", "good"), &[]),
        traffic::server("bad", "node2", ("web", "bad"), FAILS),
    ];
    let clients = clients.iter().map(|(name, node)| support::client(name, node));
    traffic::shop(2, &servers.into_iter().chain(clients).collect::<Vec<_>>())
}

/// `outlierDetection` of `web`; every endpoint may be left out.
fn detection(fields: &str) -> String {
    traffic::policy(
        "web",
        &format!("{{ {IN_TURN}, outlierDetection: {{ maxEjectionPercent: 100, {fields} }} }}"),
    )
}

/// Statuses of so many requests, at most `at_once` at a time.
fn ask(client: &Pod, requests: usize, at_once: usize, more: &[&str]) -> BTreeMap<u16, usize> {
    let (requests, at_once) = (requests.to_string(), at_once.to_string());
    let words = ["-n", &requests, "--concurrency", &at_once];
    statuses(&traffic::lines(client, &[&words, more, &["http://web/"]].concat()))
}

#[test]
fn an_endpoint_that_fails_is_left_out_by_those_whom_it_failed() {
    let Some(lab) = one_fails(&[("client2", "node1"), ("client3", "node2")]) else { return };
    let [first, second, third] =
        ["shop/client", "shop/client2", "shop/client3"].map(|name| lab.pod(name).unwrap());
    let without = ask(&first, 100, 1, &[]);
    // At random without a rule: six standard deviations of a binomial(100, 0.5) are 30.
    assert!(without[&200] >= 20 && without[&504] >= 20, "without a rule: {without:?}");
    traffic::apply(&lab, &detection("consecutiveGatewayErrors: 5, baseEjectionTime: 300s"));
    let all = BTreeMap::from([(200, 200)]);
    let with_five = BTreeMap::from([(200, 195), (504, 5)]);
    assert_eq!(ask(&first, 200, 1, &[]), with_five);
    assert_eq!(ask(&first, 200, 1, &["--new-connections"]), all, "on every worker");
    // On the same node, and on another one.
    assert_eq!(ask(&second, 200, 1, &["--new-connections"]), with_five, "its own experience");
    let seen = ask(&third, 400, 8, &[]);
    let failed = seen.get(&504).copied().unwrap_or(0);
    assert!((5..=5 + 7).contains(&failed), "five, and those in flight: {seen:?}");
    for client in [&first, &second, &third] {
        assert_eq!(ask(client, 200, 4, &[]), all, "{}", client.name);
    }
    // Another rule's change is no reason to forget.
    traffic::apply(&lab, &traffic::policy("elsewhere", &format!("{{ {IN_TURN} }}")));
    assert_eq!(ask(&first, 200, 1, &[]), all);
}

/// Failures that follow each other within half a second.
fn bursts(lines: &[Line]) -> Vec<Vec<u64>> {
    let mut bursts: Vec<Vec<u64>> = Vec::new();
    for line in lines.iter().filter(|line| line.status == 504) {
        match bursts.last_mut() {
            Some(burst) if burst.last().is_some_and(|last| line.at - last < 500) => {
                burst.push(line.at);
            }
            _ => bursts.push(vec![line.at]),
        }
    }
    bursts
}

#[test]
fn it_is_tried_again_and_left_out_for_longer() {
    let Some(lab) = one_fails(&[]) else { return };
    let client = lab.pod("shop/client").unwrap();
    traffic::apply(
        &lab,
        &detection("consecutiveGatewayErrors: 5, interval: 1s, baseEjectionTime: 2s"),
    );
    let load = traffic::watched(&client, &["--rate", "40", "http://web/"]);
    support::eventually("it is left out three times", || {
        let bursts = bursts(&load.seen());
        (bursts.len() >= 3 && bursts[2].len() >= 5).then_some(())
    });
    let lines = load.finish().unwrap();
    let bursts = bursts(&lines);
    for burst in &bursts[..3] {
        assert_eq!(burst.len(), 5, "{bursts:?}");
    }
    let gap = |from: usize| bursts[from + 1][0] - bursts[from][4];
    // At a tick of a second after two seconds, then after four; the rest is a slow machine's.
    assert!((1_500..6_000).contains(&gap(0)), "{} ms: {bursts:?}", gap(0));
    assert!(gap(1) >= 3_500 && gap(1) > gap(0) + 500, "{} ms: {bursts:?}", gap(1));
    assert_eq!(statuses(&lines).keys().collect::<Vec<_>>(), [&200, &504]);
}

#[test]
fn a_client_that_gives_up_says_nothing_about_the_endpoint() {
    let servers = [
        traffic::service("web"),
        traffic::server("good", "node1", ("web", "good"), &[]),
        traffic::server("hangs", "node2", ("web", "hangs"), &["--default", "delay-ms=60000"]),
    ];
    let Some(lab) = traffic::shop(2, &servers) else { return };
    let client = lab.pod("shop/client").unwrap();
    traffic::apply(&lab, &detection("consecutive5xxErrors: 3, consecutiveGatewayErrors: 3"));
    let load = ["malha-load", "http", "-n", "40", "--timeout-ms", "300", "http://web/"];
    let report = support::json(&client, &load);
    // Every other one, to the end: were it left out, only the first three.
    assert_eq!((&report["succeeded"], &report["errors"]["timeout"]), (&20.into(), &20.into()));
    // A route's time-out is the mesh's own judgement.
    traffic::apply(&lab, &traffic::route("web", WITHIN));
    let seen = ask(&client, 40, 1, &[]);
    assert_eq!(seen, BTreeMap::from([(200, 37), (504, 3)]));
}

/// A route with a time-out and no retries.
const WITHIN: &str = "
route: [{ destination: { host: web } }]
timeout: 0.3s
retries: { attempts: 0 }
";

#[test]
fn without_an_endpoint_the_answer_is_immediate_and_says_why() {
    let servers = [traffic::service("web"), traffic::server("bad", "node2", ("web", "bad"), FAILS)];
    let Some(lab) = traffic::shop_logged(&servers) else { return };
    let client = lab.pod("shop/client").unwrap();
    traffic::apply(&lab, &detection("consecutive5xxErrors: 2, baseEjectionTime: 300s"));
    assert_eq!(ask(&client, 10, 1, &[]), BTreeMap::from([(503, 8), (504, 2)]));
    let answer = traffic::curl(&client, &["http://web/"]);
    assert_eq!((answer.status, answer.body.as_str()), (503, "no healthy upstream"));
    support::eventually("the access log has it", || {
        let lines = traffic::access(&lab, "node1", &["response_flags=UH", "no_healthy_upstream"]);
        (lines.len() == 9).then_some(())
    });
    assert_eq!(traffic::logged(&lab.pod("shop/bad").unwrap()).len(), 2, "it was left alone");
}

#[test]
fn only_a_part_of_the_endpoints_is_left_out() {
    let mut servers = vec![traffic::service("web")];
    for number in 1..=4 {
        let node = if number % 2 == 0 { "node1" } else { "node2" };
        servers.push(traffic::server(&format!("bad{number}"), node, ("web", "bad"), FAILS));
    }
    let Some(lab) = traffic::shop(2, &servers) else { return };
    let client = lab.pod("shop/client").unwrap();
    let fields = "maxEjectionPercent: 50, consecutive5xxErrors: 1, baseEjectionTime: 300s";
    let rule = format!("{{ {IN_TURN}, outlierDetection: {{ {fields} }} }}");
    traffic::apply(&lab, &traffic::policy("web", &rule));
    assert_eq!(ask(&client, 42, 1, &[]), BTreeMap::from([(504, 42)]));
    let mut asked: Vec<usize> = (1..=4)
        .map(|number| lab.pod(&format!("shop/bad{number}")).unwrap())
        .map(|pod| traffic::logged(&pod).len())
        .collect();
    asked.sort_unstable();
    assert_eq!(asked, [1, 1, 20, 20], "two of four are left out");
}

/// A port that only one of the servers of `web` listens on.
const LINE: &str = r#"
kind: Service
apiVersion: v1
metadata: { name: line, namespace: shop }
spec: { selector: { app: web }, ports: [{ name: tcp, port: 9100 }] }
"#;

#[test]
fn an_endpoint_that_takes_no_tcp_connections_is_left_out() {
    let servers = [
        LINE.to_owned(),
        traffic::server("good", "node1", ("web", "good"), &["--tcp", "9100"]),
        traffic::server("bad", "node2", ("web", "bad"), &[]),
    ];
    let Some(lab) = traffic::shop(2, &servers) else { return };
    let client = lab.pod("shop/client").unwrap();
    let fields = "maxEjectionPercent: 100, consecutive5xxErrors: 3, baseEjectionTime: 300s";
    let rule = format!("{{ {IN_TURN}, outlierDetection: {{ {fields} }} }}");
    traffic::apply(&lab, &traffic::policy("line", &rule));
    let ejected = || lab.meshctl("node1", &["ejections"]).unwrap();
    let ping = |count: usize| {
        for _ in 0..count {
            let words = ["malha-load", "tcp", "ping", "--messages", "1", "line:9100"];
            let report = support::json(&client, &words);
            assert_eq!(report["succeeded"], 1, "the other endpoint takes it: {report}");
        }
    };
    ping(2);
    assert!(!ejected().contains("shop/bad"), "not before three have failed: {}", ejected());
    // Each one that begins at the bad one goes on to the good one.
    ping(4);
    assert!(ejected().contains("shop/bad"), "{}", ejected());
    ping(4);
    assert!(ejected().contains("once"), "{}", ejected());
}
