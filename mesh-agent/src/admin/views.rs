//! From the agent's values to the rows that are shown. Pure: time is a parameter.

use std::collections::HashSet;
use std::time::SystemTime;

use super::AdminState;
use crate::api;
use crate::identity::Identities;
use crate::model::{
    Endpoint, MtlsMode, Protocol, Readiness, Service, ServiceKind, Snapshot, Workload,
};

/// How `config` calls a finding that keeps an object out of force.
pub(super) const SEVERITY_ERROR: &str = "error";

/// Seconds since 1970.
pub(super) fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

pub(super) fn status(state: &AdminState, now: SystemTime) -> api::StatusReply {
    let snapshot = (state.snapshot)();
    let diagnostics = (state.diagnostics)();
    let errors = diagnostics.iter().filter(|finding| finding.severity == SEVERITY_ERROR).count();
    let rules = snapshot.destination_rules.values().map(Vec::len).sum();
    api::StatusReply {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: state.node.to_string(),
        trust_domain: snapshot.mesh.trust_domain.to_string(),
        started: unix(state.started),
        now: unix(now),
        generation: snapshot.generation,
        workloads: count(snapshot.workloads_by_uid.len()),
        services: count(snapshot.services.len()),
        virtual_services: count(snapshot.virtual_services.len()),
        destination_rules: count(rules),
        certificates: count(state.identities.list().len()),
        config_errors: count(errors),
        config_warnings: count(diagnostics.len() - errors),
        capture: Some((state.capture)()),
    }
}

pub(super) fn workloads(
    snapshot: &Snapshot,
    node: &str,
    capture: &api::Capture,
) -> Vec<api::Workload> {
    let captured: HashSet<&str> = capture.pods.iter().map(|pod| pod.uid.as_str()).collect();
    let mut all: Vec<_> = snapshot.workloads_by_uid.values().collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all.into_iter().map(|found| workload(found, node, captured.contains(&*found.uid))).collect()
}

fn workload(found: &Workload, node: &str, captured: bool) -> api::Workload {
    let ports = found.peer_policy.ports.iter();
    api::Workload {
        namespace: found.name.namespace.to_string(),
        name: found.name.name.to_string(),
        uid: found.uid.to_string(),
        node: found.node.to_string(),
        ips: found.ips.iter().map(ToString::to_string).collect(),
        identity: found.identity.to_string(),
        selected: found.selected,
        captured,
        enrolled: found.enrolled,
        state: workload_state(found, &*found.node == node, captured).to_owned(),
        mode: mode(found.peer_policy.mode).to_owned(),
        port_modes: ports.map(|(port, of)| (u32::from(*port), mode(*of).to_owned())).collect(),
        locality: found.locality.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// One word or two for what a pod's flags add up to. `local`: it is on this agent's node.
fn workload_state(found: &Workload, local: bool, captured: bool) -> &'static str {
    match (found.selected, found.enrolled) {
        _ if found.finished => "finished",
        _ if found.host_network => "host network",
        (_, true) if local && !captured => "announced, not captured",
        (false, _) if captured => "leaving",
        (true, false) if captured => "captured, not announced",
        (true, true) => "in mesh",
        (true, false) => "pending",
        (false, true) => "leaving",
        (false, false) => "not selected",
    }
}

fn mode(mode: MtlsMode) -> &'static str {
    match mode {
        MtlsMode::Strict => "STRICT",
        MtlsMode::Permissive => "PERMISSIVE",
    }
}

pub(super) fn services(snapshot: &Snapshot) -> Vec<api::Service> {
    let mut all: Vec<_> = snapshot.services.values().collect();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all.into_iter().map(|found| service(found)).collect()
}

fn service(found: &Service) -> api::Service {
    let (kind, target) = match &found.kind {
        ServiceKind::ClusterIp => ("ClusterIP", None),
        ServiceKind::Headless => ("Headless", None),
        ServiceKind::ExternalName(target) => ("ExternalName", Some(target.to_string())),
        ServiceKind::External(_) => ("ServiceEntry", None),
    };
    let addresses = found.addresses.iter().map(ToString::to_string);
    let ports = found.ports.iter().map(|port| api::ServicePort {
        port: u32::from(port.port),
        name: port.name.to_string(),
        protocol: protocol(port.protocol).to_owned(),
        endpoints: port.endpoints.iter().map(endpoint).collect(),
    });
    api::Service {
        namespace: found.key.namespace.to_string(),
        name: found.key.name.to_string(),
        hostname: found.hostname.to_string(),
        kind: kind.to_owned(),
        addresses: addresses.chain(target).collect(),
        ports: ports.collect(),
    }
}

pub(super) fn endpoint(found: &Endpoint) -> api::Endpoint {
    let workload = found.workload.as_ref();
    api::Endpoint {
        address: found.address.to_string(),
        workload: workload.map(|workload| workload.name.to_string()).unwrap_or_default(),
        ready: found.readiness == Readiness::Ready,
        enrolled: workload.is_some_and(|workload| workload.enrolled),
        locality: found.locality().map(ToString::to_string).unwrap_or_default(),
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Detect => "detect",
        Protocol::Http => "http",
        Protocol::Http2 => "http2",
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
        Protocol::Tls => "tls",
    }
}

pub(super) fn certificates(identities: &Identities, now: SystemTime) -> Vec<api::Certificate> {
    let rows = identities.list().into_iter().map(|(credentials, renewal)| api::Certificate {
        identity: credentials.identity().to_string(),
        serial: credentials.serial().to_owned(),
        state: match renewal.failures() {
            _ if credentials.not_after() <= now => "expired",
            0 => "valid",
            _ => "renewal failing",
        }
        .to_owned(),
        not_before: unix(credentials.not_before()),
        not_after: unix(credentials.not_after()),
        renewal: unix(renewal.due()),
        failures: renewal.failures(),
    });
    rows.collect()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
