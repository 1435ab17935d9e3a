//! Circuit breakers of `connectionPool`: what is over a limit is refused at once, with a header that
//! says so; it is no failure of the endpoint, and no other client's.

use crate::support;
use crate::traffic::{self, Fortio, by_header, statuses};

/// Of Istio's task about circuit breaking.
const ONE_OF_EACH: &str = "{ connectionPool: { tcp: { maxConnections: 1 }, \
    http: { http1MaxPendingRequests: 1, maxRequestsPerConnection: 1 } }, \
    outlierDetection: { consecutive5xxErrors: 1, consecutiveGatewayErrors: 1, \
    baseEjectionTime: 300s, maxEjectionPercent: 100 } }";

/// Of an answer that a limit has cut off.
const OVERFLOW: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: overflow";

/// Istio's client of that task.
const FORTIO: &str = r#"
kind: Pod
apiVersion: v1
metadata: { name: fortio, namespace: shop }
spec:
  nodeName: node1
  serviceAccountName: client
  containers: [{ name: main, image: fortio/fortio }]
"#;

#[test]
fn more_than_a_connection_and_one_that_waits_is_refused() {
    let servers = [
        FORTIO.to_owned(),
        support::client("client2", "node1"),
        traffic::service("web"),
        traffic::server("web", "node2", ("web", "one"), &["--default", "delay-ms=50"]),
    ];
    let Some(lab) = traffic::shop_logged(&servers) else { return };
    let [fortio, client, client2] =
        ["shop/fortio", "shop/client", "shop/client2"].map(|name| lab.pod(name).unwrap());
    let words = ["-c", "3", "-qps", "0", "-n", "60", "http://web"];
    let without = Fortio::load(&fortio, &words);
    assert_eq!(without.count(200), 60, "{without:?}");
    traffic::apply(&lab, &traffic::policy("web", ONE_OF_EACH));
    let one = Fortio::load(&fortio, &["-c", "1", "-qps", "0", "-n", "20", "http://web"]);
    assert_eq!(one.count(200), 20, "one after the other is within the limits: {one:?}");
    let three = Fortio::load(&fortio, &words);
    let (answered, refused) = (three.count(200), three.count(503));
    assert!(answered > 0 && refused > 0 && answered + refused == 60, "{three:?}");

    let words = ["-n", "200", "--concurrency", "10", "--count-header", "x-envoy-overloaded"];
    let lines = traffic::lines(&client, &[&words[..], &["http://web/"]].concat());
    let refused = statuses(&lines)[&503];
    assert_eq!(by_header(&lines)["true"], refused, "each says so");
    assert_eq!(lines.iter().filter(|line| line.body == OVERFLOW).count(), refused);
    assert_eq!(statuses(&lines)[&200] + refused, 200);
    support::eventually("the access log has the flag", || {
        let source = ["response_flags=UO", "response_code=503", "source=shop/client "];
        (traffic::access(&lab, "node1", &source).len() == refused).then_some(())
    });
    // Nothing of this was a failure of the endpoint, nor is it another client's business.
    for client in [&client, &client2] {
        let lines = traffic::lines(client, &["-n", "20", "http://web/"]);
        assert_eq!(statuses(&lines).into_iter().collect::<Vec<_>>(), [(200, 20)]);
    }
}

#[test]
fn requests_at_one_moment_are_limited() {
    let servers = [
        traffic::service("web"),
        traffic::server("web", "node2", ("web", "one"), &["--default", "delay-ms=300"]),
    ];
    let Some(lab) = traffic::shop(2, &servers) else { return };
    let client = lab.pod("shop/client").unwrap();
    let limit = "{ connectionPool: { http: { http2MaxRequests: 4 } } }";
    traffic::apply(&lab, &traffic::policy("web", limit));
    let lines = traffic::lines(&client, &["-n", "12", "--concurrency", "12", "http://web/"]);
    let seen = statuses(&lines);
    // All begin before the first has ended, on both workers.
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(200, 4), (503, 8)]);
    let lines = traffic::lines(&client, &["-n", "12", "--concurrency", "4", "http://web/"]);
    assert_eq!(statuses(&lines).into_iter().collect::<Vec<_>>(), [(200, 12)]);
}

#[test]
fn a_connection_is_used_for_so_many_requests() {
    let servers = [traffic::service("web"), traffic::server("web", "node2", ("web", "one"), &[])];
    let Some(lab) = traffic::shop(2, &servers) else { return };
    let client = lab.pod("shop/client").unwrap();
    let web = lab.pod("shop/web").unwrap();
    // Ports of the connections that requests came on, from the one numbered `from` on.
    let connections = |from: usize| {
        let seen = traffic::logged(&web);
        let ports: std::collections::BTreeSet<String> =
            seen[from..].iter().map(|seen| seen["remote"].as_str().unwrap().to_owned()).collect();
        (seen.len(), ports.len())
    };
    traffic::lines(&client, &["-n", "12", "http://web/"]);
    assert_eq!(connections(0), (12, 1));
    let limit = "{ connectionPool: { http: { maxRequestsPerConnection: 3 } } }";
    traffic::apply(&lab, &traffic::policy("web", limit));
    traffic::lines(&client, &["-n", "12", "http://web/"]);
    let (all, used) = connections(12);
    // The one that was there may have been used up already.
    assert!(all == 24 && (4..=5).contains(&used), "{all} requests, {used} connections");
}

#[test]
fn tcp_connections_over_the_limit_are_closed() {
    let servers = [
        traffic::service("web"),
        traffic::server("web", "node2", ("web", "one"), &[]),
        support::client("client2", "node1"),
    ];
    let Some(lab) = traffic::shop(2, &servers) else { return };
    let [client, client2] = ["shop/client", "shop/client2"].map(|name| lab.pod(name).unwrap());
    traffic::apply(
        &lab,
        &traffic::policy("web", "{ connectionPool: { tcp: { maxConnections: 3 } } }"),
    );
    let idle = ["malha-load", "tcp", "idle", "--connections", "8", "--hold", "600", "web:9000"];
    let mut held = client.converse(&idle).expect("the load starts");
    let opened = held.line().unwrap();
    let ping = |pod: &xtask::lab::Pod| {
        let words = ["malha-load", "tcp", "ping", "--messages", "1", "--timeout-ms", "3000"];
        let report = support::json(pod, &[&words[..], &["web:9000"]].concat());
        report["succeeded"] == 1
    };
    let full = format!("its connections are at the limit: {opened}");
    support::eventually(&full, || (!ping(&client)).then_some(()));
    assert!(ping(&client2), "another client has its own");
    drop(held);
    support::eventually("the connections are given back", || ping(&client).then_some(()));
    let ping = ["malha-load", "tcp", "ping", "--connections", "8", "--messages", "5"];
    let ping = [&ping[..], &["--interval-ms", "200", "--timeout-ms", "3000", "web:9000"]].concat();
    let report = support::json(&client, &ping);
    assert_eq!(report["succeeded"], 15, "three connections with five messages each: {report}");
}

/// Outside the cluster, behind what drops all that is sent to its port.
#[test]
fn a_connection_that_is_not_made_in_its_time_is_given_up() {
    let Some(lab) = traffic::shop_logged(&[]) else { return };
    let drop = "table inet hole { chain input { type filter hook input priority 0; \
                tcp dport 10 drop; }; }";
    let dropped = lab.outside(&["nft", drop]).unwrap().output().unwrap();
    assert!(dropped.status.success(), "{dropped:?}");
    let addresses = support::outside_addresses(&lab);
    let address = addresses.iter().find(|address| address.is_ipv4()).expect("an IPv4 address");
    let entry = format!(
        r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{ name: hole, namespace: shop }}
spec:
  hosts: [hole.example]
  addresses: [198.51.100.9]
  resolution: STATIC
  ports: [{{ number: 80, name: http, protocol: HTTP, targetPort: 10 }}]
  endpoints: [{{ address: {address} }}]
"#
    );
    let once = "route: [{ destination: { host: hole.example } }]\nretries: { attempts: 0 }";
    let limit = "{ connectionPool: { tcp: { connectTimeout: 300ms } } }";
    let policy = traffic::policy("hole.example", limit);
    let rules = [entry, traffic::route("hole.example", once), policy].join("\n---\n");
    traffic::apply(&lab, &rules);
    let client = lab.pod("shop/client").unwrap();
    let words = ["--resolve", "hole.example:80:198.51.100.9", "http://hole.example/"];
    let answer = traffic::curl(&client, &words);
    assert_eq!(answer.status, 503);
    assert!(answer.body.ends_with("reset reason: connection timeout"), "{answer:?}");
    // The default is 10 s.
    let took = answer.took.as_secs_f64();
    assert!((0.3..5.0).contains(&took), "{took} s");
    support::eventually("the access log has the flag", || {
        let lines = traffic::access(&lab, "node1", &["response_flags=UF ", "response_code=503"]);
        (lines.len() == 1).then_some(())
    });
}
