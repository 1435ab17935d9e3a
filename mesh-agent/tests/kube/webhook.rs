//! The admission webhook and the status of objects, with a real API server: what is refused, what is
//! said about what is stored, by whom it is written. The shipped program runs under the chart's roles.

use std::time::{Duration, Instant};

use mesh_agent::model::{Snapshot, StringMatch};
use serde_json::{Value, json};

use crate::authority::{Ground, NAMESPACE, Replica, free_port, until};
use crate::support::{DEADLINE, Follower, api_server, run};

/// Its webhook listens on `port`.
fn start(ground: &Ground, name: &str, port: u16, more: &[&str]) -> Replica {
    let address = format!("127.0.0.1:{port}");
    let words = ["--server-name", "127.0.0.1", "--webhook-address", &address];
    ground.start_with(name, &[&words[..], more].concat())
}

/// The chart's configuration, asked at `port` of this machine: the API server of the lab reaches no
/// Service.
fn configure(ground: &Ground, port: u16) {
    let rendered = ground.render("templates/webhook.yaml");
    let mut config: Value = serde_saphyr::from_str(&rendered).unwrap();
    for webhook in config["webhooks"].as_array_mut().unwrap() {
        webhook["clientConfig"] = json!({ "url": format!("https://127.0.0.1:{port}/validate") });
    }
    let applied = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    ground.lab.kubectl_stdin(&applied, &config.to_string()).unwrap();
}

fn install(ground: &Ground) {
    let crds = mesh_agent::config::crd::yaml().unwrap();
    ground.lab.kubectl_stdin(&["apply", "-f", "-"], &crds).unwrap();
    ground.kubectl(&["wait", "crd", "--all", "--for=condition=Established", "--timeout=30s"]);
    let service = "{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop}, spec: \
                   {ports: [{name: http, port: 80}]}}";
    ground.lab.kubectl_stdin(&["apply", "-f", "-"], service).unwrap();
}

/// What `kubectl` says, and whether it succeeded; warnings are in what it says.
fn apply(ground: &Ground, object: &str) -> Result<String, String> {
    let applied = ground.lab.kubectl_stdin(&["apply", "--warnings-as-errors", "-f", "-"], object);
    applied.map_err(|error| format!("{error:#}"))
}

fn object(group: &str, kind: &str, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: {group}.istio.io/v1, kind: {kind}, metadata: {{name: {name}, namespace: \
         shop}}, spec: {spec}}}"
    )
}

/// A rule that the CRD's schema takes and the mesh does not.
fn route(name: &str, host: &str, regex: &str) -> String {
    let spec = format!(
        "{{hosts: [{host}], http: [{{match: [{{uri: {{regex: '{regex}'}}}}], route: \
         [{{destination: {{host: cart}}}}]}}]}}"
    );
    object("networking", "VirtualService", name, &spec)
}

const BAD: &str = "a(";
const GOOD: &str = "a.*";
const GOOD_TOO: &str = "b.*";

/// What the only route that is in force asks of a path.
fn regex_in_force(found: &Snapshot) -> String {
    let [route] = &found.virtual_services[..] else { return "not one route".to_owned() };
    match route.http.first().and_then(|rule| rule.matches.first()?.uri.as_ref()) {
        Some(StringMatch::Regex(regex)) => regex.as_str().to_owned(),
        other => format!("no regular expression: {other:?}"),
    }
}

/// Waits until the API server asks the webhook and believes it: a bad object is refused.
fn wait_until_asked(ground: &Ground) -> String {
    let mut said = String::new();
    until("the webhook is asked", || {
        let dry = ["apply", "--dry-run=server", "-f", "-"];
        let tried = ground.lab.kubectl_stdin(&dry, &route("probe", "probe", BAD));
        said = tried.map_or_else(|error| format!("{error:#}"), |_| String::new());
        said.contains("denied the request")
    });
    said
}

fn condition(ground: &Ground, what: &str, name: &str, condition: &str) -> Value {
    let found = ground.kubectl(&["-n", "shop", "get", what, name, "-o", "json"]);
    let found: Value = found.parse().unwrap();
    let generation = &found["metadata"]["generation"];
    let all = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let of_now = |one: &Value| one["type"] == condition && one["observedGeneration"] == *generation;
    all.into_iter().find(of_now).unwrap_or_default()
}

fn wait_condition(ground: &Ground, what: &str, name: &str, status: &str, message: &str) {
    let mut seen = Value::Null;
    let begun = Instant::now();
    while !(seen["status"] == status
        && seen["message"].as_str().unwrap_or_default().contains(message))
    {
        let is_late = begun.elapsed() >= DEADLINE;
        assert!(!is_late, "{what} {name}: not {status}, {message}: {seen}");
        seen = condition(ground, what, name, "Accepted");
    }
}

fn version(ground: &Ground, what: &str, name: &str) -> String {
    let path = "jsonpath={.metadata.resourceVersion}";
    ground.kubectl(&["-n", "shop", "get", what, name, "-o", path])
}

fn holder(ground: &Ground) -> String {
    let path = "jsonpath={.spec.holderIdentity}";
    ground.kubectl(&["-n", NAMESPACE, "get", "lease", "malha-authority", "-o", path])
}

#[test]
fn bad_objects_are_refused_and_good_ones_are_not() {
    let Some(lab) = api_server("webhook") else { return };
    let ground = Ground::new(lab);
    install(&ground);
    let port = free_port();
    configure(&ground, port);
    let strict = start(&ground, "strict.log", port, &[]);
    strict.wait_ready();
    let said = wait_until_asked(&ground);
    let field = "VirtualService shop/probe spec.http[0].match[0].uri.regex: `a(` is not a regular";
    assert!(said.contains(field), "{said}");

    apply(&ground, &route("cart", "cart", GOOD)).unwrap();
    let refused = apply(&ground, &route("cart", "cart", BAD)).unwrap_err();
    assert!(refused.contains("shop/cart spec.http[0].match[0].uri.regex"), "{refused}");
    let gateway = object("networking", "Gateway", "gate", "{servers: []}");
    let warned = apply(&ground, &gateway).unwrap_err();
    assert!(warned.contains("Warning: Gateway shop/gate: ") && warned.contains("not in force"));

    for kind in ["AuthorizationPolicy", "RequestAuthentication"] {
        let refused = apply(&ground, &object("security", kind, "deny", "{}")).unwrap_err();
        let words = [&*format!("{kind} shop/deny: "), "enforced", "acceptNotEnforced=true"];
        assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    }
    let strict_mtls = object("security", "PeerAuthentication", "default", "{mtls: {mode: STRICT}}");
    apply(&ground, &strict_mtls).unwrap();

    drop(strict);
    let accepting = start(&ground, "accepting.log", port, &["--accept-not-enforced"]);
    accepting.wait_ready();
    wait_until_asked(&ground);
    let warned = apply(&ground, &object("security", "AuthorizationPolicy", "deny", "{}"));
    let warned = warned.unwrap_err();
    assert!(warned.contains("Warning: AuthorizationPolicy shop/deny: "), "{warned}");
    assert!(!warned.contains("denied"), "{warned}");
    wait_condition(&ground, "authorizationpolicy", "deny", "False", "nothing of it is enforced");
    let open = condition(&ground, "authorizationpolicy", "deny", "NotEnforced");
    assert_eq!((&open["status"], &open["reason"]), (&json!("True"), &json!("NotSupported")));
    wait_condition(&ground, "peerauthentication", "default", "True", "");
    ground.kubectl(&["-n", "shop", "delete", "authorizationpolicy", "deny"]);
    let metrics = accepting.get("/metrics");
    assert!(metrics.contains("reviews_total{answer=\"refused\"}"), "{metrics}");
}

#[test]
fn with_the_webhook_away_a_bad_object_does_no_harm() {
    let Some(lab) = api_server("webhook-away") else { return };
    let ground = Ground::new(lab);
    install(&ground);
    let port = free_port();
    configure(&ground, port);
    run(async {
        let mut follower = Follower::new(&ground.lab, None).await;
        let first = start(&ground, "first.log", port, &[]);
        first.wait_ready();
        wait_until_asked(&ground);
        apply(&ground, &route("cart", "cart", GOOD)).unwrap();
        wait_condition(&ground, "virtualservice", "cart", "True", "");
        follower.until("the route", |found| regex_in_force(found).contains(GOOD)).await;

        // Killed: it releases nothing, and its lease has to run out.
        drop(first);
        apply(&ground, &route("cart", "cart", BAD)).unwrap();
        follower.until_said("shop/cart spec.http[0].match[0].uri.regex").await;
        follower.until_said("its last good version stays in force").await;
        let in_force = regex_in_force(&follower.snapshot.borrow());
        assert!(in_force.contains(GOOD), "{in_force}");

        let second = start(&ground, "second.log", port, &[]);
        second.wait_ready();
        wait_condition(&ground, "virtualservice", "cart", "False", "match[0].uri.regex: `a(`");
        wait_until_asked(&ground);
        // What is there may be annotated and taken away.
        ground.kubectl(&["-n", "shop", "annotate", "virtualservice", "cart", "a=b"]);

        // A leader that has seen the good version says that it stays.
        apply(&ground, &route("cart", "cart", GOOD_TOO)).unwrap();
        wait_condition(&ground, "virtualservice", "cart", "True", "");
        follower.until("the next", |found| regex_in_force(found).contains(GOOD_TOO)).await;
        ground.kubectl(&["delete", "validatingwebhookconfiguration", "malha-validator"]);
        until("the webhook is not asked", || apply(&ground, &route("cart", "cart", BAD)).is_ok());
        wait_condition(&ground, "virtualservice", "cart", "False", "last good version stays");
        follower.until_said("its last good version stays in force").await;
        let in_force = regex_in_force(&follower.snapshot.borrow());
        assert!(in_force.contains(GOOD_TOO), "{in_force}");
        ground.kubectl(&["-n", "shop", "delete", "virtualservice", "cart"]);
        follower.until("the route is gone", |found| found.virtual_services.is_empty()).await;
    });
}

#[test]
fn one_of_two_replicas_writes_and_writes_once() {
    let Some(lab) = api_server("webhook-lead") else { return };
    let ground = Ground::new(lab);
    install(&ground);
    let ports = [free_port(), free_port()];
    configure(&ground, ports[0]);
    let a = start(&ground, "a.log", ports[0], &[]);
    let b = start(&ground, "b.log", ports[1], &[]);
    a.wait_ready();
    b.wait_ready();
    wait_until_asked(&ground);
    apply(&ground, &route("cart", "cart", GOOD)).unwrap();
    let other = object("networking", "DestinationRule", "cart", "{host: cart}");
    apply(&ground, &other).unwrap();
    wait_condition(&ground, "virtualservice", "cart", "True", "");
    wait_condition(&ground, "destinationrule", "cart", "True", "");

    // Another's condition stays, and the mesh's is not written over and over.
    let foreign = json!({ "status": { "conditions": [
        { "type": "Other", "status": "True" },
    ] } });
    let patch = ["patch", "virtualservice", "cart", "--subresource=status", "--type=merge", "-p"];
    let foreign = foreign.to_string();
    let patch = [&["-n", "shop"][..], &patch, &[&*foreign]].concat();
    ground.kubectl(&patch);
    wait_condition(&ground, "virtualservice", "cart", "True", "");
    let path = "jsonpath={.status.conditions[*].type}";
    let types = ground.kubectl(&["-n", "shop", "get", "virtualservice", "cart", "-o", path]);
    assert_eq!(types, "Other Accepted");
    let versions =
        || ["virtualservice", "destinationrule"].map(|what| version(&ground, what, "cart"));
    let before = versions();
    #[expect(clippy::disallowed_methods, reason = "a test's own thread waits for processes")]
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(versions(), before, "written again without need");

    let leads = |one: &Replica| one.get("/metrics").contains("malha_authority_leader 1");
    assert_eq!([&a, &b].map(leads).iter().filter(|leads| **leads).count(), 1);
    let (leader, other) = if leads(&a) { (a, b) } else { (b, a) };
    // Ended cleanly, it leaves the Lease to the other at once.
    let (begun, before) = (Instant::now(), holder(&ground));
    leader.terminate();
    until("the other leads", || leads(&other));
    assert!(begun.elapsed() < Duration::from_secs(12), "it waited for the lease to run out");
    assert_ne!(holder(&ground), before);
    let patch = "{\"spec\":{\"host\":\"nowhere.example.com\"}}";
    let words = ["patch", "destinationrule", "cart", "--type=merge", "-p", patch];
    ground.kubectl(&[&["-n", "shop"][..], &words].concat());
    until("the other writes", || {
        condition(&ground, "destinationrule", "cart", "Accepted") != Value::Null
    });
}

// === Mutations ===

/// Reproducible, and no more: xorshift64.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    /// Changes one leaf below `value`, so that much of it still fits the schema.
    fn mutate(&mut self, value: &mut Value) {
        let texts = ["", "*", "a.b", "~", "\u{7}", "ü", "a(", "65536"];
        match value {
            Value::Object(map) if !map.is_empty() => {
                let key = map.keys().nth(self.below(map.len())).unwrap().clone();
                match self.below(8) {
                    0 => drop(map.remove(&key)),
                    _ => self.mutate(map.get_mut(&key).unwrap()),
                }
            }
            Value::Array(list) if !list.is_empty() => {
                let index = self.below(list.len());
                match self.below(8) {
                    0 => drop(list.remove(index)),
                    1 => list.push(list[index].clone()),
                    _ => self.mutate(&mut list[index]),
                }
            }
            Value::String(text) => *text = texts[self.below(texts.len())].to_owned(),
            Value::Number(number) => *number = self.below(70_000).into(),
            Value::Bool(is) => *is = !*is,
            _ => *value = json!({}),
        }
    }
}

/// The kinds whose status is written.
const KINDS: [&str; 7] = [
    "VirtualService",
    "DestinationRule",
    "ServiceEntry",
    "PeerAuthentication",
    "AuthorizationPolicy",
    "RequestAuthentication",
    "RateLimit",
];

/// 200 objects of these, each changed in a few places.
fn mutated() -> Vec<Value> {
    let mut samples = crate::crds::documents("accepted")
        .iter()
        .map(|text| serde_saphyr::from_str::<Value>(text).unwrap())
        .collect::<Vec<_>>();
    samples.retain(|sample| KINDS.iter().any(|kind| sample["kind"] == *kind));
    let mut draw = Draw(0x6d61_6c68_6103);
    let mut one = |number: usize| {
        let mut object = samples[draw.below(samples.len())].clone();
        for _ in 0..=draw.below(3) {
            draw.mutate(&mut object["spec"]);
        }
        object["metadata"] = json!({ "namespace": "shop", "name": format!("m-{number}") });
        object
    };
    (0..200).map(&mut one).collect()
}

#[test]
fn mutated_objects_stop_neither_the_writer_nor_a_follower() {
    let Some(lab) = api_server("webhook-mutated") else { return };
    let ground = Ground::new(lab);
    install(&ground);
    let replica = start(&ground, "a.log", free_port(), &[]);
    replica.wait_ready();
    run(async {
        let mut follower = Follower::new(&ground.lab, None).await;
        let all = json!({ "apiVersion": "v1", "kind": "List", "items": mutated() });
        // The schema refuses some of them; there is no webhook.
        let create = ["create", "--validate=ignore", "-f", "-"];
        let _ = ground.lab.kubectl_stdin(&create, &all.to_string());
        let kinds = "vs,dr,se,rl,pa,ap,ra";
        let stored = || -> Vec<Value> {
            let found = ground.kubectl(&["-n", "shop", "get", kinds, "-o", "json"]);
            let mut found: Value = found.parse().unwrap();
            serde_json::from_value(found["items"].take()).unwrap()
        };
        let is_told = |object: &Value| {
            let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            all.iter().any(|one| one["type"] == "Accepted")
        };
        until("every stored object has a status", || stored().iter().all(is_told));
        let stored = stored();
        for kind in KINDS {
            assert!(stored.iter().any(|object| object["kind"] == kind), "no {kind} was stored");
        }
        let is_accepted = |object: &&Value| object["status"]["conditions"][0]["status"] == "True";
        let accepted = stored.iter().filter(is_accepted).count();
        assert!(stored.len() >= 50 && accepted >= 10, "{accepted} of {} accepted", stored.len());
        apply(&ground, &route("sound", "sound", GOOD)).unwrap();
        follower
            .until("the sound one", |found| {
                found.virtual_services.iter().any(|one| &*one.object.name == "sound")
            })
            .await;
        wait_condition(&ground, "virtualservice", "sound", "True", "");
        replica.wait_ready();
        assert!(!replica.log().contains("panicked"), "{}", replica.log());
    });
}
