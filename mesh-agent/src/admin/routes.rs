//! What the snapshot does with requests for a host, in words.
//!
//! What it is not: the engine. It reads the same compiled values and explains them; it chooses
//! nothing. Sources of the rules: `model::route`, `model::traffic`.

use std::net::IpAddr;
use std::sync::Arc;

use super::policies;
use super::views::endpoint;
use crate::api;
use crate::model::{
    Action, Client, DestinationRule, Forward, HeaderOps, HostPattern, HttpMatch, HttpRule,
    KeyMatch, L4Match, L4Rule, LoadBalancer, ObjectRef, PathRewrite, Redirect, RedirectPath,
    RedirectPort, Service, ServiceKind, ServicePort, Snapshot, StringMatch, Subset, TrafficPolicy,
    WeightedDestination,
};

/// Namespace of a client that names none, as in kubectl.
const DEFAULT_NAMESPACE: &str = "default";

/// The routes of `request.host`; `None` if nothing in the mesh is called so.
pub(super) fn routes(
    snapshot: &Snapshot,
    request: &api::RoutesRequest,
) -> Option<api::RoutesReply> {
    let namespace = match request.namespace.as_str() {
        "" => DEFAULT_NAMESPACE,
        namespace => namespace,
    };
    let host = full_name(snapshot, &request.host, namespace)?;
    let service = snapshot.service_by_host(&host);
    let virtual_service = snapshot.virtual_service(&host, namespace);
    let l4 = snapshot.l4_virtual_service(&host, namespace);
    let view = View { snapshot, namespace };
    let mut rules = match (virtual_service, service) {
        (Some(found), _) => found.http.iter().map(|rule| view.rule(rule)).collect(),
        (None, Some(service)) if l4.is_none() => vec![view.without_rule(service)],
        (None, _) => Vec::new(),
    };
    if let Some(found) = l4 {
        rules.extend(found.l4.tls.iter().map(|rule| view.l4_rule("tls", rule)));
        rules.extend(found.l4.tcp.iter().map(|rule| view.l4_rule("tcp", rule)));
    }
    let virtual_service = virtual_service.or(l4);
    Some(api::RoutesReply {
        host,
        namespace: namespace.to_owned(),
        service: service.map(|service| service.key.to_string()).unwrap_or_default(),
        virtual_service: virtual_service.map(|found| name(&found.object)).unwrap_or_default(),
        rules,
    })
}

/// Completes what a client in `namespace` may write, in the order of a pod's DNS search list.
fn full_name(snapshot: &Snapshot, typed: &str, namespace: &str) -> Option<String> {
    if let Ok(address) = typed.parse::<IpAddr>() {
        return Some(snapshot.services_by_ip.get(&address)?.hostname.to_string());
    }
    let typed = typed.to_ascii_lowercase();
    let typed = match typed.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => &typed,
    };
    let typed = typed.trim_end_matches('.');
    let domain = &snapshot.mesh.cluster_domain;
    let candidates = [
        typed.to_owned(),
        format!("{typed}.{namespace}.svc.{domain}"),
        format!("{typed}.svc.{domain}"),
        format!("{typed}.{domain}"),
    ];
    let known = candidates.iter().find(|host| {
        snapshot.services_by_host.contains_key(host.as_str())
            || snapshot.virtual_services_by_host.contains_key(host.as_str())
    });
    match known {
        Some(host) => Some(host.clone()),
        // A wildcard may still cover it as it stands.
        None => snapshot.virtual_service(typed, namespace).map(|_| typed.to_owned()),
    }
}

/// The mesh as clients in one namespace see it.
struct View<'a> {
    snapshot: &'a Snapshot,
    namespace: &'a str,
}

impl View<'_> {
    fn rule(&self, rule: &HttpRule) -> api::Rule {
        let mut details = Vec::new();
        let (action, destinations) = match &rule.action {
            Action::Forward(forward) => {
                forward_details(forward, &mut details);
                let of = forward.destinations.iter();
                ("forward", of.map(|to| self.destination(to, forward.total_weight)).collect())
            }
            Action::Redirect(redirect) => {
                details.push(redirect_text(redirect));
                ("redirect", Vec::new())
            }
            Action::Direct(direct) => {
                details.push(format!("{}, {} bytes", direct.status.as_u16(), direct.body.len()));
                ("respond", Vec::new())
            }
        };
        if let Some(fault) = &rule.fault {
            policies::of_fault(fault, &mut details);
        }
        if let Some(cors) = &rule.cors {
            policies::of_cors(cors, &mut details);
        }
        header_details("request", &rule.request_headers, &mut details);
        header_details("response", &rule.response_headers, &mut details);
        api::Rule {
            name: rule.name.to_string(),
            matches: rule.matches.iter().map(match_text).collect(),
            action: action.to_owned(),
            details,
            destinations,
        }
    }

    fn l4_rule(&self, kind: &str, rule: &L4Rule) -> api::Rule {
        let of = rule.destinations.iter();
        api::Rule {
            name: kind.to_owned(),
            matches: rule.matches.iter().map(l4_match_text).collect(),
            action: "forward".to_owned(),
            destinations: of.map(|to| self.destination(to, rule.total_weight)).collect(),
            ..api::Rule::default()
        }
    }

    /// No VirtualService: each port goes to its own endpoints.
    fn without_rule(&self, service: &Service) -> api::Rule {
        let destinations = service.ports.iter().map(|port| {
            let rule =
                self.snapshot.destination_rule(service, Client::of_namespace(self.namespace));
            let shown = Shown { service, rule: rule.map(Arc::as_ref), subset: None };
            api::Destination { weight: 1, total_weight: 1, ..shown.to(Some(port.port)) }
        });
        api::Rule {
            name: "default".to_owned(),
            action: "forward".to_owned(),
            destinations: destinations.collect(),
            ..api::Rule::default()
        }
    }

    fn destination(&self, to: &WeightedDestination, total_weight: u32) -> api::Destination {
        let row = api::Destination {
            host: to.host.to_string(),
            subset: to.subset.as_deref().unwrap_or_default().to_owned(),
            port: to.port.map(u32::from).unwrap_or_default(),
            weight: to.weight,
            total_weight,
            ..api::Destination::default()
        };
        let fails = |problem: String| api::Destination { problem, ..row.clone() };
        let Some(service) = to.service.as_ref().and_then(|key| self.snapshot.services.get(key))
        else {
            return fails("no Service of this name".to_owned());
        };
        let service = self.snapshot.unaliased(service, self.namespace);
        if let ServiceKind::ExternalName(name) = &service.kind {
            return fails(format!("an ExternalName for {name}, which the mesh does not know"));
        }
        let rule = self
            .snapshot
            .destination_rule(service, Client::of_namespace(self.namespace))
            .map(Arc::as_ref);
        let subset = match &to.subset {
            None => None,
            Some(name) => match rule.and_then(|rule| rule.subset(name)) {
                Some(subset) => Some(subset),
                None => return fails(format!("no DestinationRule defines subset {name}")),
            },
        };
        let found = Shown { service, rule, subset }.to(to.port);
        api::Destination {
            port: found.port,
            load_balancer: found.load_balancer,
            destination_rule: found.destination_rule,
            endpoints: found.endpoints,
            problem: found.problem,
            policies: found.policies,
            ..row
        }
    }
}

/// A service, or a subset of it, with the policy that holds for it.
struct Shown<'a> {
    service: &'a Service,
    rule: Option<&'a DestinationRule>,
    subset: Option<&'a Subset>,
}

impl Shown<'_> {
    /// Without a port: the only one, else any that the client may address.
    fn to(&self, port: Option<u16>) -> api::Destination {
        let ports: Vec<&ServicePort> = match port {
            Some(port) => self.service.port(port).into_iter().collect(),
            None => self.service.ports.iter().collect(),
        };
        let only = match ports.as_slice() {
            [only] => only.port,
            _ => port.unwrap_or_default(),
        };
        let defaults = TrafficPolicy::default();
        let policy = self.rule.map_or(&defaults, |rule| rule.policy(self.subset, only));
        let endpoints: Vec<api::Endpoint> = ports
            .iter()
            .flat_map(|port| port.endpoints.iter())
            .filter(|found| self.subset.is_none_or(|subset| subset.has(found)))
            .map(endpoint)
            .collect();
        let problem = match port {
            Some(port) if ports.is_empty() => format!("the Service has no port {port}"),
            _ if !endpoints.iter().any(|endpoint| endpoint.ready) => "no ready endpoint".to_owned(),
            _ => String::new(),
        };
        api::Destination {
            host: self.service.hostname.to_string(),
            port: u32::from(only),
            load_balancer: balancer(policy.load_balancer).to_owned(),
            destination_rule: self.rule.map(|rule| name(&rule.object)).unwrap_or_default(),
            endpoints,
            problem,
            policies: policies::of_destination(policy),
            ..api::Destination::default()
        }
    }
}

fn name(object: &ObjectRef) -> String {
    format!("{}/{}", object.namespace, object.name)
}

fn balancer(balancer: LoadBalancer) -> &'static str {
    match balancer {
        LoadBalancer::LeastRequest => "LEAST_REQUEST",
        LoadBalancer::RoundRobin => "ROUND_ROBIN",
        LoadBalancer::Random => "RANDOM",
        LoadBalancer::Passthrough => "PASSTHROUGH",
        LoadBalancer::RingHash { .. } => "RING_HASH",
        LoadBalancer::Maglev { .. } => "MAGLEV",
    }
}

pub(super) fn string_text(value: &StringMatch) -> String {
    match value {
        StringMatch::Exact(text) => format!("= {text}"),
        StringMatch::Prefix(text) => format!("prefix {text}"),
        StringMatch::Regex(regex) => format!("~ {}", regex.as_str()),
        StringMatch::Present => "present".to_owned(),
    }
}

/// All conditions of one entry of `match[]`, joined by `and`.
fn match_text(entry: &HttpMatch) -> String {
    let mut parts = Vec::new();
    let fields = [
        ("uri", &entry.uri),
        ("scheme", &entry.scheme),
        ("method", &entry.method),
        ("authority", &entry.authority),
    ];
    for (field, value) in fields {
        if let Some(value) = value {
            parts.push(format!("{field} {}", string_text(value)));
        }
    }
    if entry.ignore_uri_case {
        parts.push("uri in any case".to_owned());
    }
    let mut keys = |what: &str, list: &[KeyMatch]| {
        parts.extend(
            list.iter().map(|key| format!("{what} {} {}", key.key, string_text(&key.value))),
        );
    };
    keys("header", &entry.headers);
    keys("without header", &entry.without_headers);
    keys("query", &entry.query);
    parts.extend(entry.port.map(|port| format!("port {port}")));
    let labels = entry.source_labels.iter();
    parts.extend(labels.map(|(key, value)| format!("client label {key}={value}")));
    parts.extend(entry.source_namespace.as_ref().map(|name| format!("client namespace {name}")));
    parts.join(" and ")
}

/// The same of a connection that is no HTTP.
fn l4_match_text(entry: &L4Match) -> String {
    let mut parts = Vec::new();
    if !entry.sni_hosts.is_empty() {
        let names: Vec<String> = entry.sni_hosts.iter().map(pattern_text).collect();
        parts.push(format!("server name {}", names.join(" or ")));
    }
    if !entry.destination_subnets.is_empty() {
        let nets: Vec<String> = entry.destination_subnets.iter().map(ToString::to_string).collect();
        parts.push(format!("destination {}", nets.join(" or ")));
    }
    parts.extend(entry.port.map(|port| format!("port {port}")));
    parts.extend(entry.source_subnet.map(|net| format!("client {net}")));
    let labels = entry.source_labels.iter();
    parts.extend(labels.map(|(key, value)| format!("client label {key}={value}")));
    parts.extend(entry.source_namespace.as_ref().map(|name| format!("client namespace {name}")));
    parts.join(" and ")
}

fn pattern_text(pattern: &HostPattern) -> String {
    match pattern {
        HostPattern::Exact(name) => name.to_string(),
        HostPattern::Suffix(suffix) => format!("*{suffix}"),
        HostPattern::Any => "*".to_owned(),
    }
}

fn forward_details(forward: &Forward, details: &mut Vec<String>) {
    match &forward.rewrite.path {
        Some(PathRewrite::Uri(path)) => details.push(format!("rewrite uri to {path}")),
        Some(PathRewrite::Regex { pattern, replacement }) => {
            details.push(format!("rewrite uri {} to {replacement}", pattern.as_str()));
        }
        None => {}
    }
    if let Some(authority) = &forward.rewrite.authority {
        details.push(format!("rewrite authority to {}", header(authority)));
    }
    if let Some(timeout) = forward.timeout {
        details.push(format!("timeout {timeout:?}"));
    }
    policies::of_forward(forward, details);
}

fn header_details(of: &str, ops: &HeaderOps, details: &mut Vec<String>) {
    for (verb, edits) in [("set", &ops.set), ("add", &ops.add)] {
        let text = |edit: &crate::model::HeaderEdit| {
            format!("{verb} {of} header {}: {}", edit.name, header(&edit.value))
        };
        details.extend(edits.iter().map(text));
    }
    details.extend(ops.remove.iter().map(|name| format!("remove {of} header {name}")));
}

fn header(value: &http::HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn redirect_text(redirect: &Redirect) -> String {
    let mut text = redirect.code.as_u16().to_string();
    let mut add = |part: String| {
        text.push_str(", ");
        text.push_str(&part);
    };
    if let Some(scheme) = &redirect.scheme {
        add(format!("scheme {scheme}"));
    }
    if let Some(authority) = &redirect.authority {
        add(format!("authority {authority}"));
    }
    match redirect.port {
        RedirectPort::Keep => {}
        RedirectPort::Number(port) => add(format!("port {port}")),
        RedirectPort::ProtocolDefault => add("the scheme's port".to_owned()),
        RedirectPort::RequestPort => add("the request's port".to_owned()),
    }
    match &redirect.path {
        RedirectPath::Keep => {}
        RedirectPath::Uri(path) => add(format!("path {path}")),
        RedirectPath::Prefix(prefix) => add(format!("prefix {prefix}")),
    }
    text
}
