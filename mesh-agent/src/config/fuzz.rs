//! The body of the fuzz target `yaml_compile`; its corpus also runs as a plain test.
//!
//! The input is a file of manifests. Nothing in it may make the reader fail as a whole, spoil an
//! object that stands beside it, or be complained about without saying where.

use std::sync::Arc;

use super::{Compiled, Diagnostic, Kind, Objects, Parsed, Settings, compile, parse};
use crate::model::{Action, Snapshot};

/// Stands beside the input, as a document of its own.
const GOOD: &str = "
apiVersion: v1
kind: Pod
metadata: { name: good, namespace: beside, uid: good-pod }
status: { podIP: 198.51.100.7 }
";

/// Reads, translates and compiles `data` as a file.
///
/// # Panics
/// If a finding names no place, a good object beside the input is lost, the same objects compile
/// to something else the second time, or the snapshot contradicts itself.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let alone = read(&text);
    // As YAML counts them: a carriage return alone ends a line too.
    let lines = text.replace("\r\n", "\n").split(['\n', '\r']).count();
    for found in alone.diagnostics.iter().chain(alone.accepted.iter().flat_map(|o| &o.notes)) {
        names_a_place(found, lines);
    }
    let accepted = alone.accepted.len();
    let after = read(&format!("{text}\n---{GOOD}"));
    assert!(after.accepted.last().is_some_and(is_good), "lost behind {text:?}");
    assert_eq!(after.accepted.len(), accepted + 1, "spoilt by what follows: {text:?}");
    let before = read(&format!("{GOOD}---\n{text}"));
    assert!(before.accepted.first().is_some_and(is_good), "lost before {text:?}");

    let mut objects = Objects::new(Settings::default());
    objects.apply("f.yaml", before, 1);
    in_force(&objects);
    let stays = alone.unreadable || alone.rejected.iter().any(|key| key.kind == Kind::Pod);
    let good_in_file = alone.accepted.iter().any(is_good);
    let named = alone.rejected.iter().any(|key| is_good_name(&key.namespace, &key.name));
    objects.apply("f.yaml", alone, 2);
    objects.settle();
    if stays && (good_in_file || named) {
        // The last good version, or a newer one.
        assert!(objects.has_any_of("f.yaml"));
    }
    in_force(&objects);
}

fn read(text: &str) -> Parsed {
    parse(text, Some(&Arc::from("f.yaml")), &Settings::default().mesh)
}

fn is_good(object: &super::Object) -> bool {
    object.key.kind == Kind::Pod && is_good_name(&object.key.namespace, &object.key.name)
}

fn is_good_name(namespace: &str, name: &str) -> bool {
    namespace == "beside" && name == "good"
}

/// A finding about a file says in which document and line of it.
fn names_a_place(found: &Diagnostic, lines: usize) {
    assert!(!found.message.is_empty(), "{found}: nothing is said");
    let place = found.place.as_ref();
    let place = place.unwrap_or_else(|| panic!("{found}: it came from a file"));
    assert_eq!(&*place.file, "f.yaml");
    assert!(place.document >= 1, "{found}: no document");
    assert!((1..=lines).contains(&place.line), "{found}: there are {lines} lines");
}

/// Compiles what is in force, twice.
fn in_force(objects: &Objects) -> Compiled {
    let first = compile(objects, &Snapshot::default());
    assert!(first.changed, "the first always is");
    for found in &first.diagnostics {
        let named = found.object.is_some() || !found.field.is_empty() || found.place.is_some();
        assert!(named && !found.message.is_empty(), "{found}: about what?");
    }
    consistent(&first.snapshot);
    let again = compile(objects, &first.snapshot);
    assert!(!again.changed, "the same objects, another snapshot");
    assert_eq!(again.diagnostics, first.diagnostics);
    first
}

/// What the data path relies on.
fn consistent(snapshot: &Snapshot) {
    for service in snapshot.services_by_ip.values().chain(snapshot.services_by_host.values()) {
        assert!(snapshot.services.get(&service.key).is_some_and(|own| Arc::ptr_eq(own, service)));
    }
    for (key, port) in snapshot.headless_by_endpoint.values() {
        let service = snapshot.services.get(key);
        assert!(service.is_some_and(|service| service.port(*port).is_some()), "{key}:{port}");
    }
    for (ip, workload) in &snapshot.workloads_by_ip {
        assert!(workload.ips.contains(ip), "{}", workload.name);
        assert!(!workload.finished && !workload.host_network, "{}", workload.name);
    }
    let by_host = snapshot.virtual_services_by_host.values().flatten();
    let by_wildcard = snapshot.virtual_services_by_wildcard.iter().map(|(_, index)| index);
    for index in by_host.chain(by_wildcard) {
        assert!(snapshot.virtual_services.get(*index).is_some(), "{index} is no index");
    }
    for rule in snapshot.virtual_services.iter().flat_map(|found| found.http.iter()) {
        let Action::Forward(forward) = &rule.action else { continue };
        let sum: u32 = forward.destinations.iter().map(|to| to.weight).sum();
        assert!(sum >= 1 && sum == forward.total_weight, "{}", rule.name);
        let mirrors = forward.mirrors.iter().filter_map(|mirror| mirror.service.as_ref());
        assert!(
            mirrors.into_iter().all(|key| snapshot.services.contains_key(key)),
            "{}",
            rule.name
        );
    }
    for rule in snapshot.destination_rules.values().flatten() {
        let subsets =
            rule.subsets.iter().flat_map(|of| of.port_policies.values().chain([&of.policy]));
        for policy in rule.port_policies.values().chain([&rule.policy]).chain(subsets) {
            let hashes = policy.load_balancer.is_hash();
            assert_eq!(hashes, policy.hash_key.is_some(), "{}: a key without use", rule.object);
            assert!(!policy.pool.connect_timeout.is_zero(), "{}", rule.object);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn corpus() {
        xtask::corpus::run("yaml_compile", 500, super::run);
    }
}
