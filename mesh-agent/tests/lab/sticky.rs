//! Consistent hashing: the same key goes to the same endpoint, whoever asks and on whichever node;
//! and with weights to the same version, of which a change of weights moves as few as it must.

use std::collections::{BTreeMap, BTreeSet};

use xtask::lab::{Lab, Pod};

use crate::support;
use crate::traffic::{self, Answer, curl};

/// Key -> pod.
type Places = BTreeMap<u64, String>;

/// Three servers of each of these versions behind `web`, spread over both nodes.
fn servers(versions: &[&str]) -> Vec<String> {
    let mut manifests = vec![traffic::service("web")];
    for version in versions {
        for number in 1..=3 {
            let node = if number % 2 == 0 { "node1" } else { "node2" };
            let name = format!("{version}-{number}");
            manifests.push(traffic::server(&name, node, ("web", version), &[]));
        }
    }
    manifests
}

fn up(versions: &[&str], hash: &str, clients: &[(&str, &str)]) -> Option<Lab> {
    let clients = clients.iter().map(|(name, node)| support::client(name, node));
    let manifests: Vec<String> = servers(versions).into_iter().chain(clients).collect();
    let lab = traffic::shop(2, &manifests)?;
    traffic::apply(&lab, &hashed(hash));
    Some(lab)
}

/// Consistent hashing by this, with the subsets that routes may name.
fn hashed(hash: &str) -> String {
    let policy = format!("{{ loadBalancer: {{ consistentHash: {hash} }} }}");
    let subsets = "subsets: [{ name: v1, labels: { version: v1 } }, \
                   { name: v2, labels: { version: v2 } }]";
    traffic::policy("web", &format!("{policy}, {subsets}"))
}

/// Where requests of so many users go, each asking as often; each user must always go to one pod.
fn places(client: &Pod, users: u64, times: u64) -> Places {
    let (vary, count) = (format!("x-user={users}"), (users * times).to_string());
    let load = ["-n", &count, "--concurrency", "8", "--new-connections"];
    let load = [&load[..], &["--vary", &vary, "--count-header", "x-echo-pod", "http://web/"]];
    let lines = traffic::lines(client, &load.concat());
    let mut places: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for line in lines {
        assert_eq!(line.status, 200, "{line:?}");
        places.entry(line.number % users).or_default().insert(line.header);
    }
    let one = |(user, pods): (u64, BTreeSet<String>)| {
        assert_eq!(pods.len(), 1, "user {user} went to {pods:?}");
        (user, pods.into_iter().next().unwrap_or_default())
    };
    places.into_iter().map(one).collect()
}

fn pods(places: &Places) -> BTreeSet<&str> {
    places.values().map(String::as_str).collect()
}

#[test]
fn a_user_always_goes_to_the_same_pod() {
    let clients = [("client2", "node1"), ("client3", "node2")];
    let Some(lab) = up(&["v1"], "{ httpHeaderName: x-other }", &clients) else { return };
    let client = lab.pod("shop/client").unwrap();
    let manifest = &servers(&["v1"])[2];
    for hash in [
        "{ httpHeaderName: x-user }",
        "{ httpHeaderName: x-user, ringHash: { minimumRingSize: 2048 } }",
        "{ httpHeaderName: x-user, maglev: { tableSize: 251 } }",
    ] {
        traffic::apply(&lab, &hashed(hash));
        let first = places(&client, 100, 5);
        assert_eq!(pods(&first).len(), 3, "{hash}: {first:?}");
        for other in ["shop/client2", "shop/client3"] {
            assert_eq!(places(&lab.pod(other).unwrap(), 100, 1), first, "{hash}: {other}");
        }
        // Without a key anybody may answer.
        let load = ["-n", "100", "--count-header", "x-echo-pod", "http://web/"];
        let lines = traffic::lines(&client, &load);
        assert_eq!(traffic::by_header(&lines).len(), 3, "{hash}");
        // A pod goes: its users find others, and with a ring nobody else notices.
        let gone = lab.pod("shop/v1-2").unwrap();
        traffic::delete(&lab, manifest);
        lab.wait_gone(&gone).unwrap();
        let without = places(&client, 100, 2);
        assert_eq!(pods(&without).len(), 2, "{hash}: {without:?}");
        let moved = first.iter().filter(|(user, pod)| *pod != "v1-2" && without[user] != **pod);
        let moved = moved.count();
        let most = if hash.contains("maglev") { 20 } else { 0 };
        assert!(moved <= most, "{hash}: {moved} users of other pods went elsewhere");
        traffic::apply(&lab, manifest);
        traffic::enrolled(&lab);
    }
}

#[test]
fn the_tutorials_consistent_hash_holds_over_restarts_of_agents() {
    let Some(lab) = up(&["v1"], "{ httpHeaderName: x-user }", &[]) else { return };
    let client = lab.pod("shop/client").unwrap();
    let first = places(&client, 100, 2);
    lab.replace_agent("node1").unwrap();
    assert_eq!(places(&client, 100, 2), first);
}

#[test]
fn a_query_parameter_and_an_address_are_keys_too() {
    let clients = ["client2", "client3", "client4", "client5", "client6", "client7", "client8"];
    let clients = clients.map(|name| (name, "node1"));
    let hash = "{ httpQueryParameterName: user }";
    let Some(lab) = up(&["v1"], hash, &clients) else { return };
    let client = lab.pod("shop/client").unwrap();
    let ask = || {
        let words = ["curl", "-sS", "-o", "/dev/null", "-w", "%header{x-echo-pod}\n"];
        support::ok(&client, &[&words[..], &["http://web/a?x=1&user=[1-60]&y=2"]].concat())
    };
    let first = ask();
    assert_eq!(first.lines().collect::<BTreeSet<_>>().len(), 3, "{first}");
    assert_eq!(ask(), first);
    traffic::apply(&lab, &hashed("{ useSourceIp: true }"));
    let mut used = BTreeSet::new();
    for pod in lab.pods().into_iter().filter(|pod| pod.name.starts_with("shop/client")) {
        let load = ["-n", "20", "--new-connections", "--count-header", "x-echo-pod"];
        let lines = traffic::lines(&pod, &[&load[..], &["http://web/"]].concat());
        let seen = traffic::by_header(&lines);
        assert_eq!(seen.len(), 1, "{}: {seen:?}", pod.name);
        used.extend(seen.into_keys().map(str::to_owned));
    }
    assert!(used.len() > 1, "eight clients, one server: {used:?}");
}

/// What the pod that answered calls itself.
fn pod(answer: &Answer) -> String {
    answer.header("x-echo-pod").to_owned()
}

#[test]
fn a_cookie_is_made_for_those_who_have_none() {
    let hash = "{ httpCookie: { name: session, ttl: 3600s, path: / } }";
    let Some(lab) = up(&["v1"], hash, &[]) else { return };
    let client = lab.pod("shop/client").unwrap();
    let mut used = BTreeSet::new();
    for _ in 0..20 {
        let first = curl(&client, &["http://web/"]);
        let (cookie, attributes) = first.header("set-cookie").split_once("; ").expect("a cookie");
        assert!(cookie.starts_with("session=") && cookie.len() > 12, "{first:?}");
        let attributes: BTreeSet<&str> = attributes.split("; ").collect();
        assert_eq!(attributes, BTreeSet::from(["Max-Age=3600", "Path=/", "HttpOnly"]), "{first:?}");
        for _ in 0..3 {
            let next = curl(&client, &["-H", &format!("cookie: a=b; {cookie}"), "http://web/"]);
            assert_eq!(pod(&next), pod(&first));
            assert_eq!(next.header("set-cookie"), "", "it has one already");
        }
        used.insert(pod(&first));
    }
    assert!(used.len() > 1, "twenty new clients, one server: {used:?}");
    // A session's cookie, and none.
    traffic::apply(&lab, &hashed("{ httpCookie: { name: session, ttl: 0s } }"));
    let answer = curl(&client, &["http://web/"]);
    assert!(!answer.header("set-cookie").contains("Max-Age"), "{answer:?}");
    assert!(answer.header("set-cookie").starts_with("session="), "{answer:?}");
    traffic::apply(&lab, &hashed("{ httpCookie: { name: session } }"));
    assert_eq!(curl(&client, &["http://web/"]).header("set-cookie"), "");
    let ask = || pod(&curl(&client, &["-H", "cookie: session=mine", "http://web/"]));
    let first = ask();
    assert!((0..10).all(|_| ask() == first));
}

/// A canary with these weights.
fn canary(v1: u32, v2: u32) -> String {
    let to = |version, weight| {
        format!("{{ destination: {{ host: web, subset: {version} }}, weight: {weight} }}")
    };
    traffic::route("web", &format!("route: [{}, {}]", to("v1", v1), to("v2", v2)))
}

/// Users of version 2.
fn second(places: &Places) -> BTreeSet<u64> {
    places.iter().filter(|(_, pod)| pod.starts_with("v2-")).map(|(user, _)| *user).collect()
}

#[test]
fn a_canary_keeps_its_users() {
    let hash = "{ httpHeaderName: x-user }";
    let Some(lab) = up(&["v1", "v2"], hash, &[("client2", "node2")]) else { return };
    let [client, other] = ["shop/client", "shop/client2"].map(|name| lab.pod(name).unwrap());
    traffic::apply(&lab, &canary(90, 10));
    let before = places(&client, 300, 5);
    assert_eq!(places(&other, 300, 1), before, "from another node");
    let few = second(&before);
    traffic::assert_share(few.len(), 300, 0.1);
    traffic::apply(&lab, &canary(80, 20));
    let after = places(&client, 300, 5);
    let more = second(&after);
    traffic::assert_share(more.len(), 300, 0.2);
    println!("{} of 300 users at 90/10, {} at 80/20", few.len(), more.len());
    assert!(more.is_superset(&few) && more.len() > few.len(), "only from v1 to v2");
    let stay = after.iter().filter(|(user, _)| !more.contains(user) || few.contains(user));
    for (user, pod) in stay {
        assert_eq!(before[user], *pod, "user {user} stays where it was");
    }
    traffic::apply(&lab, &canary(90, 10));
    assert_eq!(places(&client, 300, 2), before, "and back");
    // A user whose pod is gone keeps the version.
    traffic::delete(&lab, &servers(&["v1", "v2"])[1]);
    let without = places(&client, 300, 2);
    assert_eq!(second(&without), few);
}
