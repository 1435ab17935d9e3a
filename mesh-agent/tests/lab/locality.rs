//! Localities: requests stay in their zone while somebody there is well, leave it when nobody is, or
//! go by fixed shares; nodes' labels say where pods are.

use std::collections::BTreeMap;

use xtask::lab::{Lab, Pod};

use crate::support;
use crate::traffic::{self, Line, by_header, statuses};

/// The first node is in one zone, the second in another one of the same region.
fn node(name: &str, zone: &str) -> String {
    format!(
        r#"
kind: Node
apiVersion: v1
metadata:
  name: {name}
  labels: {{ topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: {zone} }}
"#
    )
}

fn server(name: &str, node: &str, arguments: &[&str]) -> String {
    traffic::server(name, node, ("web", "v1"), arguments)
}

/// Both nodes, `shop/client` on the first, and these servers behind `web`.
fn two_zones(servers: &[String]) -> Option<Lab> {
    let ground = [node("node1", "eu-a"), node("node2", "eu-b"), traffic::service("web")];
    traffic::shop(2, &[&ground[..], servers].concat())
}

/// A rule of `web`, by turns.
fn policy(fields: &str, setting: &str) -> String {
    let balancer = format!("{{ simple: ROUND_ROBIN, localityLbSetting: {setting} }}");
    traffic::policy("web", &format!("{{ loadBalancer: {balancer} {fields} }}"))
}

/// Ejections after three errors in a row, for longer than a test takes.
const DETECTION: &str = ", outlierDetection: { consecutive5xxErrors: 3, baseEjectionTime: 300s, \
                         maxEjectionPercent: 100 }";

/// A route to `web` with these retries.
fn retried(retries: &str) -> String {
    let to = "route: [{ destination: { host: web } }]";
    traffic::route("web", &format!("{to}\nretries: {retries}"))
}

fn ask(client: &Pod, requests: usize) -> Vec<Line> {
    let words = ["-n", &requests.to_string(), "--concurrency", "4", "--new-connections"];
    traffic::lines(client, &[&words[..], &["--count-header", "x-echo-pod", "http://web/"]].concat())
}

/// Who has answered so many requests, all with 200.
fn answered(client: &Pod, requests: usize) -> BTreeMap<String, usize> {
    let lines = ask(client, requests);
    assert_eq!(statuses(&lines), BTreeMap::from([(200, requests)]));
    by_header(&lines).into_iter().map(|(pod, count)| (pod.to_owned(), count)).collect()
}

fn names(found: &BTreeMap<String, usize>) -> Vec<&str> {
    found.keys().map(String::as_str).collect()
}

#[test]
fn requests_stay_in_their_zone_until_it_is_empty() {
    let near = [server("near-1", "node1", &[]), server("near-2", "node1", &[])];
    let far = [server("far", "node2", &[]), support::client("client2", "node2")];
    let Some(lab) = two_zones(&[near.clone(), far].concat()) else { return };
    let [client, other] = ["shop/client", "shop/client2"].map(|name| lab.pod(name).unwrap());
    let shown = lab.meshctl("node2", &["workloads"]).unwrap();
    assert!(shown.contains("eu/eu-a") && shown.contains("eu/eu-b"), "{shown}");
    assert_eq!(names(&answered(&client, 200)), ["far", "near-1", "near-2"], "without a rule");

    // The Service asks for it, and then a rule, of which ejections are enough.
    let close = "  trafficDistribution: PreferClose\n";
    traffic::apply(&lab, &(traffic::service("web") + close));
    assert_eq!(names(&answered(&client, 200)), ["near-1", "near-2"]);
    assert_eq!(names(&answered(&other, 200)), ["far"]);
    traffic::apply(&lab, &policy(DETECTION, "{ enabled: false }"));
    assert_eq!(names(&answered(&client, 200)), ["far", "near-1", "near-2"], "switched off");
    let simple = format!("{{ loadBalancer: {{ simple: ROUND_ROBIN }} {DETECTION} }}");
    traffic::apply(&lab, &traffic::service("web"));
    traffic::apply(&lab, &traffic::policy("web", &simple));
    let found = answered(&client, 200);
    assert_eq!(found, BTreeMap::from([("near-1".into(), 100), ("near-2".into(), 100)]));
    assert_eq!(names(&answered(&other, 200)), ["far"]);

    // One goes, then the other; nobody notices but the one far away. What is on its way to a zone's
    // last server as that ends is tried again elsewhere if it may be.
    traffic::apply(&lab, &retried("{ attempts: 2, retryRemoteLocalities: true }"));
    let words = ["--rate", "50", "--count-header", "x-echo-pod", "http://web/"];
    let load = traffic::watched(&client, &words);
    for (manifest, name, left) in
        [(&near[0], "shop/near-1", "near-2"), (&near[1], "shop/near-2", "far")]
    {
        let gone = lab.pod(name).unwrap();
        traffic::delete(&lab, manifest);
        lab.wait_gone(&gone).unwrap();
        assert_eq!(names(&answered(&client, 100)), [left]);
    }
    let lines = load.finish().unwrap();
    assert_eq!(statuses(&lines).into_keys().collect::<Vec<_>>(), [200], "none was lost");

    // They come back, and then the other node comes into the zone.
    traffic::apply(&lab, &near.concat().replace("\nkind: Pod", "\n---\nkind: Pod"));
    traffic::enrolled(&lab);
    support::eventually("requests come home", || {
        (names(&answered(&client, 100)) == ["near-1", "near-2"]).then_some(())
    });
    traffic::apply(&lab, &node("node2", "eu-a"));
    assert_eq!(names(&answered(&client, 300)), ["far", "near-1", "near-2"]);
}

#[test]
fn requests_leave_a_zone_of_which_all_are_ejected() {
    let fails = ["--default", "status=500"];
    let servers = [server("near", "node1", &fails), server("far", "node2", &[])];
    let Some(lab) = two_zones(&servers) else { return };
    let client = lab.pod("shop/client").unwrap();

    // Nobody is ejected yet: it depends on where another attempt may go.
    let never = ", outlierDetection: { consecutive5xxErrors: 0 }";
    traffic::apply(&lab, &policy(never, "{ enabled: true }"));
    let route = |remote: bool| {
        retried(&format!("{{ attempts: 1, retryOn: 5xx, retryRemoteLocalities: {remote} }}"))
    };
    traffic::apply(&lab, &route(false));
    assert_eq!(statuses(&ask(&client, 50)), BTreeMap::from([(500, 50)]));
    traffic::apply(&lab, &route(true));
    let found = answered(&client, 50);
    assert_eq!(found, BTreeMap::from([("far".into(), 50)]), "the second attempt is far away");

    traffic::delete(&lab, &route(true));
    traffic::apply(&lab, &policy(DETECTION, "{ enabled: true }"));
    let seen = statuses(&ask(&client, 100));
    // Three, and those that were under way; the route that tries again may still hold for the first.
    let failed = seen.get(&500).copied().unwrap_or(0);
    assert!(failed <= 3 + 3, "{seen:?}");
    assert_eq!(answered(&client, 200), BTreeMap::from([("far".into(), 200)]));
    let ejected = lab.meshctl("node1", &["ejections"]).unwrap();
    assert!(ejected.contains("shop/near"), "{ejected}");
}

#[test]
fn shares_of_zones_are_as_the_rule_says() {
    const REQUESTS: usize = 2_000;
    let servers = [
        server("near-1", "node1", &[]),
        server("near-2", "node1", &[]),
        server("far", "node2", &[]),
        support::client("client2", "node2"),
    ];
    let Some(lab) = two_zones(&servers) else { return };
    let [client, other] = ["shop/client", "shop/client2"].map(|name| lab.pod(name).unwrap());
    let setting = "{ distribute: [{ from: eu/eu-a/*, to: { eu/eu-a/*: 80, eu/eu-b: 20 } }] }";
    traffic::apply(&lab, &policy("", setting));
    let found = answered(&client, REQUESTS);
    let near = ["near-1", "near-2"].map(|name| found[name]);
    traffic::assert_share(near[0] + near[1], REQUESTS, 0.8);
    assert!(near[0].abs_diff(near[1]) <= 1, "in turn: {found:?}");
    // The rule is not for clients of the other zone.
    let found = answered(&other, 300);
    assert_eq!(found.into_values().collect::<Vec<_>>(), [100, 100, 100]);
    let all = "{ distribute: [{ from: '*', to: { eu/eu-b: 100 } }] }";
    traffic::apply(&lab, &policy("", all));
    assert_eq!(names(&answered(&client, 200)), ["far"]);
}
