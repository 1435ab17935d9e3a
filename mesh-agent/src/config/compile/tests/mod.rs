//! Data-driven tests: YAML in, text out. Here are the helpers; the cases are by subject.

mod delegates;
mod destinations;
mod direct;
mod external;
mod filters;
mod l4_routes;
mod localities;
mod mesh;
mod origination;
mod policies;
mod rate_limits;
mod reading;
mod references;
mod retries;
mod routes;
mod services;
mod sharing;
mod workloads;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use expect_test::Expect;

use super::*;
use crate::config::{Kind, Settings, parse};
use crate::model::{
    Action, ConnectionPool, Forward, HeaderOps, HttpMatch, HttpRule, KeyMatch, L4Match,
    PathRewrite, Readiness, Resolution, RetryPolicy, StringMatch, TlsOrigination, TrafficPolicy,
    VirtualService, Visibility, Workload,
};

/// A service `cart` in `shop` with two pods, v1 and v2, for tests of routes.
const CART: &str = "
kind: Service
metadata: { name: cart, namespace: shop }
spec: { clusterIP: 10.1.0.1, ports: [{ name: http, port: 80 }] }
---
kind: DestinationRule
metadata: { name: cart, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z' }
spec:
  host: cart
  subsets:
  - { name: v1, labels: { version: v1 } }
  - { name: v2, labels: { version: v2 } }
---
";

/// A store, compiled again and again as in an agent.
struct Bench {
    objects: Objects,
    snapshot: Snapshot,
}

impl Bench {
    fn new() -> Self {
        Self { objects: Objects::new(Settings::default()), snapshot: Snapshot::default() }
    }

    /// Replaces the content of a file and compiles; gives the findings.
    fn apply(&mut self, file: &str, yaml: &str, now: i64) -> String {
        let mesh = self.objects.settings().mesh.clone();
        self.objects.apply(file, parse(&with_versions(yaml), None, &mesh), now);
        self.compile()
    }

    fn compile(&mut self) -> String {
        self.objects.settle();
        let compiled = compile(&self.objects, &self.snapshot);
        self.snapshot = compiled.snapshot;
        compiled.diagnostics.iter().fold(String::new(), |text, found| format!("{text}{found}\n"))
    }
}

/// Compiles `yaml` and compares the findings with what `show` makes of the snapshot.
fn check(yaml: &str, show: fn(&Snapshot) -> String, expected: Expect) {
    let mut bench = Bench::new();
    let mut text = bench.apply("", yaml, 1000);
    text.push_str(&show(&bench.snapshot));
    expected.assert_eq(&text);
}

/// Fills in the `apiVersion` of documents that have none.
fn with_versions(yaml: &str) -> String {
    let documents = yaml.split("\n---").map(|document| {
        let kind = document.lines().find_map(|line| line.strip_prefix("kind: "));
        let kind = Kind::ALL.into_iter().find(|known| kind == Some(known.name()));
        match kind {
            Some(kind) if !document.contains("apiVersion") => {
                format!("\napiVersion: {}{document}", kind.versions()[0])
            }
            _ => document.to_owned(),
        }
    });
    documents.collect::<Vec<_>>().join("\n---")
}

/// For tests that look at the findings alone.
fn nothing(_: &Snapshot) -> String {
    String::new()
}

// === What a snapshot says, as text ===

fn services(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let services: BTreeMap<_, _> = snapshot.services.iter().collect();
    for (key, service) in services {
        let kind = &service.kind;
        writeln!(text, "{key} {} {kind:?} {:?}", service.hostname, service.addresses).unwrap();
        for port in &service.ports {
            writeln!(text, "  {} {:?} {:?}", port.port, port.name, port.protocol).unwrap();
            for endpoint in port.endpoints.iter() {
                let pod = endpoint.workload.as_ref().map(|pod| pod.name.to_string());
                let ready = match endpoint.readiness {
                    Readiness::Ready => "",
                    Readiness::Terminating => " terminating",
                    Readiness::NotReady => " not ready",
                };
                let pod = pod.unwrap_or_default();
                writeln!(text, "    {} {pod}{ready}", endpoint.address).unwrap();
            }
        }
    }
    let headless: BTreeMap<_, _> = snapshot.headless_by_endpoint.iter().collect();
    for (address, (key, port)) in headless {
        writeln!(text, "headless {address} -> {key}:{port}").unwrap();
    }
    text
}

fn workloads(snapshot: &Snapshot) -> String {
    let mut found: Vec<&Arc<Workload>> = snapshot.workloads_by_uid.values().collect();
    found.sort_by_key(|workload| &workload.name);
    let mut text = String::new();
    for pod in found {
        write!(text, "{} {} {:?}", pod.name, pod.identity, pod.ips).unwrap();
        let unprotected = snapshot.unprotected(&pod.name.namespace, &pod.labels);
        for (is, word) in [
            (pod.selected, "selected"),
            (pod.enrolled, "enrolled"),
            (pod.host_network, "host-network"),
            (pod.finished, "finished"),
            (pod.terminating, "terminating"),
            (pod.selected && unprotected.is_some(), "held-back"),
        ] {
            if is {
                write!(text, " {word}").unwrap();
            }
        }
        if let Some(why) = pod.unfit {
            write!(text, " unfit: {why};").unwrap();
        }
        writeln!(text, " {:?} {:?}", pod.peer_policy.mode, pod.peer_policy.ports).unwrap();
    }
    text
}

fn rules(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let sorted: BTreeMap<_, _> = snapshot.destination_rules.iter().collect();
    for rule in sorted.into_values().flatten() {
        write!(text, "{} {:?} {:?}", rule.object, rule.host, rule.visibility).unwrap();
        if !rule.workload_selector.is_empty() {
            write!(text, " for {:?}", rule.workload_selector).unwrap();
        }
        text.push('\n');
        let mut policy = |name: &str, policy: &TrafficPolicy| {
            writeln!(text, "  {name}: {}", policy_text(policy)).unwrap();
        };
        policy("any", &rule.policy);
        for (port, found) in &rule.port_policies {
            policy(&format!("port {port}"), found);
        }
        for subset in &rule.subsets {
            let name = format!("{} {:?}", subset.name, subset.labels);
            policy(&name, &subset.policy);
            for (port, found) in &subset.port_policies {
                policy(&format!("{} port {port}", subset.name), found);
            }
        }
    }
    text
}

/// Algorithm and connect timeout, then what differs from the defaults.
fn policy_text(policy: &TrafficPolicy) -> String {
    let mut text = format!("{:?} {:?}", policy.load_balancer, policy.pool.connect_timeout);
    if let Some(key) = &policy.hash_key {
        write!(text, " by {key:?}").unwrap();
    }
    if let Some(warmup) = policy.warmup {
        write!(text, " {warmup:?}").unwrap();
    }
    let usual =
        ConnectionPool { connect_timeout: policy.pool.connect_timeout, ..Default::default() };
    if policy.pool != usual {
        // Only the fields that differ, of the two lists of fields.
        let (found, usual) = (format!("{:?}", policy.pool), format!("{usual:?}"));
        let parts = |text: &str| {
            let inner = text.trim_start_matches("ConnectionPool { ").trim_end_matches(" }");
            inner.split(", ").map(str::to_owned).collect::<Vec<_>>()
        };
        let usual = parts(&usual);
        let differing = parts(&found).into_iter().filter(|part| !usual.contains(part));
        write!(text, " pool {}", differing.collect::<Vec<_>>().join(", ")).unwrap();
    }
    if let Some(outlier) = &policy.outlier {
        write!(text, " {outlier:?}").unwrap();
    }
    if let Some(budget) = policy.retry_budget {
        write!(text, " {budget:?}").unwrap();
    }
    if let Some(tls) = &policy.tls {
        write!(text, " {}", tls_text(tls)).unwrap();
    }
    text
}

/// What differs from the defaults.
fn tls_text(tls: &TlsOrigination) -> String {
    let mut text = "tls".to_owned();
    for (name, value) in [
        ("sni", &tls.sni),
        ("roots", &tls.roots),
        ("revoked", &tls.revoked),
        ("certificate", &tls.client.as_ref().map(|files| files.certificate.clone())),
        ("key", &tls.client.as_ref().map(|files| files.key.clone())),
        ("secret", &tls.secret),
    ] {
        if let Some(value) = value {
            write!(text, " {name}={value}").unwrap();
        }
    }
    if !tls.names.is_empty() {
        write!(text, " names={:?}", tls.names).unwrap();
    }
    text.push_str(if tls.skip_verify { " unverified" } else { "" });
    text
}

fn routes(snapshot: &Snapshot) -> String {
    snapshot.virtual_services.iter().fold(String::new(), |text, found| text + &route_text(found))
}

fn route_text(found: &VirtualService) -> String {
    let mut text = format!("{} {:?}", found.object, found.hosts);
    if found.visibility != Visibility::Everyone {
        write!(text, " {:?}", found.visibility).unwrap();
    }
    text.push('\n');
    for rule in found.http.iter() {
        let matches: Vec<String> = rule.matches.iter().map(match_text).collect();
        writeln!(text, "  {} [{}] {}", rule.name, matches.join(" | "), action_text(rule)).unwrap();
    }
    text
}

fn match_text(found: &HttpMatch) -> String {
    let mut parts = Vec::new();
    if !found.name.is_empty() {
        parts.push(format!("name={}", found.name));
    }
    let single = [
        ("uri", &found.uri),
        ("scheme", &found.scheme),
        ("method", &found.method),
        ("authority", &found.authority),
    ];
    for (name, condition) in single {
        if let Some(condition) = condition {
            parts.push(format!("{name} {}", condition_text(condition)));
        }
    }
    if found.ignore_uri_case {
        parts.push("ignore-case".to_owned());
    }
    let keyed = [("", &found.headers), ("without ", &found.without_headers), ("?", &found.query)];
    for (prefix, list) in keyed {
        for KeyMatch { key, value } in list {
            parts.push(format!("{prefix}{key} {}", condition_text(value)));
        }
    }
    parts.extend(found.port.map(|port| format!("port {port}")));
    if !found.source_labels.is_empty() {
        parts.push(format!("from {:?}", found.source_labels));
    }
    parts.extend(found.source_namespace.as_ref().map(|name| format!("from namespace {name}")));
    parts.join(", ")
}

fn condition_text(condition: &StringMatch) -> String {
    match condition {
        StringMatch::Exact(text) => format!("={text}"),
        StringMatch::Prefix(text) => format!("^{text}"),
        StringMatch::Regex(regex) => format!("~{}", regex.as_str()),
        StringMatch::Present => "present".to_owned(),
    }
}

fn action_text(rule: &HttpRule) -> String {
    let mut text = match &rule.action {
        Action::Forward(forward) => forward_text(forward),
        Action::Redirect(redirect) => format!("{redirect:?}"),
        Action::Direct(direct) => format!("{} {:?}", direct.status, direct.body),
    };
    text.push_str(&ops_text("request", &rule.request_headers));
    text.push_str(&ops_text("response", &rule.response_headers));
    if let Some(fault) = &rule.fault {
        if let Some((time, share)) = &fault.delay {
            write!(text, " delay {time:?} of {}%", share.as_percent()).unwrap();
        }
        if let Some((abort, share)) = &fault.abort {
            write!(text, " abort {abort:?} of {}%", share.as_percent()).unwrap();
        }
    }
    if let Some(cors) = &rule.cors {
        let origins: Vec<String> = cors.allow_origins.iter().map(condition_text).collect();
        write!(text, " cors [{}]", origins.join(" | ")).unwrap();
        let lists = [
            ("methods", &cors.allow_methods),
            ("headers", &cors.allow_headers),
            ("expose", &cors.expose_headers),
            ("age", &cors.max_age),
        ];
        for (name, value) in lists {
            if let Some(value) = value {
                write!(text, " {name} {value:?}").unwrap();
            }
        }
        for (is, word) in
            [(cors.allow_credentials, "credentials"), (!cors.forward_unmatched, "alone")]
        {
            text.push_str(if is { " " } else { "" });
            text.push_str(if is { word } else { "" });
        }
    }
    text
}

fn forward_text(forward: &Forward) -> String {
    let mut text = format!("/{}", forward.total_weight);
    for destination in &forward.destinations {
        let subset = destination.subset.as_deref().unwrap_or("*");
        let port = destination.port.map(|port| format!(":{port}")).unwrap_or_default();
        let lost = if destination.service.is_none() { " (no service)" } else { "" };
        write!(text, " {}{port}/{subset} {}{lost}", destination.host, destination.weight).unwrap();
        text.push_str(&ops_text("request", &destination.request_headers));
        text.push_str(&ops_text("response", &destination.response_headers));
        if let Some(authority) = &destination.authority {
            write!(text, " authority {authority:?}").unwrap();
        }
    }
    match &forward.rewrite.path {
        Some(PathRewrite::Uri(uri)) => write!(text, " rewrite {uri}").unwrap(),
        Some(PathRewrite::Regex { pattern, replacement }) => {
            write!(text, " rewrite {}>{replacement}", pattern.as_str()).unwrap();
        }
        None => {}
    }
    if let Some(authority) = &forward.rewrite.authority {
        write!(text, " authority {authority:?}").unwrap();
    }
    if let Some(timeout) = forward.timeout {
        write!(text, " timeout {timeout:?}").unwrap();
    }
    text.push_str(&retry_text(&forward.retries));
    for mirror in &forward.mirrors {
        let subset = mirror.subset.as_deref().unwrap_or("*");
        let port = mirror.port.map(|port| format!(":{port}")).unwrap_or_default();
        let lost = if mirror.service.is_none() { " (no service)" } else { "" };
        let share = mirror.share.as_percent();
        write!(text, " mirror {}{port}/{subset} {share}%{lost}", mirror.host).unwrap();
    }
    text
}

/// What differs from the defaults.
fn retry_text(found: &RetryPolicy) -> String {
    let usual = RetryPolicy::default();
    let mut text = String::new();
    if found.attempts != usual.attempts {
        write!(text, " retries {}", found.attempts).unwrap();
    }
    if let Some(time) = found.per_try_timeout {
        write!(text, " per try {time:?}").unwrap();
    }
    if found.on != usual.on || !found.statuses.is_empty() {
        write!(text, " on {:?} {:?}", found.on, found.statuses).unwrap();
    }
    if found.back_off != usual.back_off {
        write!(text, " back-off {:?}", found.back_off).unwrap();
    }
    text.push_str(if found.remote_localities { " remote" } else { "" });
    text.push_str(if found.ignore_previous_hosts { "" } else { " any-host" });
    text
}

fn ops_text(name: &str, ops: &HeaderOps) -> String {
    let mut text = String::new();
    for edit in &ops.set {
        write!(text, " {name} {}={:?}", edit.name, edit.value).unwrap();
    }
    for edit in &ops.add {
        write!(text, " {name} {}+={:?}", edit.name, edit.value).unwrap();
    }
    for removed in &ops.remove {
        write!(text, " {name} -{removed}").unwrap();
    }
    text
}

fn l4_routes(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    for found in &snapshot.virtual_services {
        writeln!(text, "{} {:?}", found.object, found.hosts).unwrap();
        let tls = found.l4.tls.iter().map(|rule| ("tls", rule));
        for (kind, rule) in tls.chain(found.l4.tcp.iter().map(|rule| ("tcp", rule))) {
            let matches: Vec<String> = rule.matches.iter().map(l4_match_text).collect();
            write!(text, "  {kind} [{}] /{}", matches.join(" | "), rule.total_weight).unwrap();
            for to in &rule.destinations {
                let subset = to.subset.as_deref().unwrap_or("*");
                let port = to.port.map(|port| format!(":{port}")).unwrap_or_default();
                let lost = if to.service.is_none() { " (no service)" } else { "" };
                write!(text, " {}{port}/{subset} {}{lost}", to.host, to.weight).unwrap();
            }
            text.push('\n');
        }
    }
    text
}

fn l4_match_text(found: &L4Match) -> String {
    let mut parts = Vec::new();
    if !found.sni_hosts.is_empty() {
        parts.push(format!("sni {:?}", found.sni_hosts));
    }
    if !found.destination_subnets.is_empty() {
        parts.push(format!("to {:?}", found.destination_subnets));
    }
    parts.extend(found.port.map(|port| format!("port {port}")));
    parts.extend(found.source_subnet.map(|net| format!("from {net}")));
    if !found.source_labels.is_empty() {
        parts.push(format!("from {:?}", found.source_labels));
    }
    parts.extend(found.source_namespace.as_ref().map(|name| format!("from namespace {name}")));
    parts.join(", ")
}

/// Services of service entries.
fn externals(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let services: BTreeMap<_, _> = snapshot.services.iter().collect();
    for (key, service) in services {
        let Some(external) = service.external() else { continue };
        let addresses = &service.addresses;
        write!(text, "{key} {} {addresses:?}", external.object).unwrap();
        if !external.ranges.is_empty() {
            write!(text, " {:?}", external.ranges).unwrap();
        }
        if !external.subject_alt_names.is_empty() {
            write!(text, " names {:?}", external.subject_alt_names).unwrap();
        }
        match &external.resolution {
            Resolution::Dialled => text.push_str(" dialled"),
            Resolution::Static => text.push_str(" static"),
            Resolution::Dns { names, pending } => {
                write!(text, " dns {names:?}{}", if *pending { " pending" } else { "" }).unwrap();
            }
        }
        if external.visibility != Visibility::Everyone {
            write!(text, " {:?}", external.visibility).unwrap();
        }
        text.push('\n');
        for port in &service.ports {
            writeln!(text, "  {} {:?} {:?}", port.port, port.name, port.protocol).unwrap();
            for endpoint in port.endpoints.iter() {
                let pod = endpoint.workload.as_ref().map(|pod| format!(" {}", pod.name));
                let labels = endpoint.labels.as_ref().map(|labels| format!(" {labels:?}"));
                let ready = if endpoint.readiness == Readiness::Ready { "" } else { " not ready" };
                let (pod, labels) = (pod.unwrap_or_default(), labels.unwrap_or_default());
                writeln!(text, "    {}{pod}{labels}{ready}", endpoint.address).unwrap();
            }
        }
    }
    text
}
