//! Which services pods of one node may reach past the agent.

use super::view::{Entry, View};
use crate::config::diagnostic::Diagnostic;
use crate::config::translate::ServiceFacts;
use crate::model::{ServiceKey, ServiceKind, Snapshot};

/// On a namespace: how pods of one node reach the `tcp` ports of its services.
const SAME_NODE: &str = "malha.dev/same-node";
/// Value: without a pass through the agent.
const DIRECT: &str = "direct";
/// Value, and the default: through the agent.
const PROXIED: &str = "proxied";

/// Adds to `snapshot` the services whose namespace asks for it and on which no object has a say
/// that the kernel could not follow. Whatever else comes to decide about TCP connections (a route, an
/// authorization policy) has to be asked here, too.
pub(super) fn compile(view: &View<'_>, snapshot: &mut Snapshot, diagnostics: &mut Vec<Diagnostic>) {
    for namespace in view.namespaces.values() {
        let mut report = namespace.report();
        if let Some(other) = namespace.facts.get(SAME_NODE)
            && ![DIRECT, PROXIED].contains(&&**other)
        {
            let expected = format!("`{other}` is neither `{DIRECT}` nor `{PROXIED}`");
            report.error(format!("metadata.labels[{SAME_NODE}]"), expected);
        }
        diagnostics.extend(report.into_diagnostics());
    }
    let asks = |entry: &&Entry<'_, ServiceFacts>| {
        let namespace = view.namespaces.get(&*entry.object.key.namespace);
        namespace
            .and_then(|namespace| namespace.facts.get(SAME_NODE))
            .is_some_and(|v| **v == *DIRECT)
    };
    let direct = view.services.iter().filter(asks).filter(|entry| {
        let facts = entry.facts;
        facts.kind == ServiceKind::ClusterIp
            && !facts.has_affinity
            && !is_ruled(&facts.host, snapshot)
    });
    let direct = direct.map(|entry| {
        let key = &entry.object.key;
        ServiceKey { namespace: key.namespace.clone(), name: key.name.clone() }
    });
    snapshot.direct = direct.collect();
}

/// Whether a virtual service or destination rule is about this host, for whatever client.
fn is_ruled(host: &str, snapshot: &Snapshot) -> bool {
    let mut hosts = snapshot.virtual_services.iter().flat_map(|service| &service.hosts);
    let mut rules = snapshot.destination_rules.values().flatten();
    hosts.any(|pattern| pattern.matches(host)) || rules.any(|rule| rule.host.matches(host))
}
