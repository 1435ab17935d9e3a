//! `PeerAuthentication`: which one holds for a workload (istio-surface 1.5): workload over
//! namespace over mesh, one per scope, the oldest.

use std::collections::HashMap;

use super::view::{Entry, View};
use crate::config::diagnostic::Diagnostic;
use crate::config::translate::PeerFacts;
use crate::model::{PeerPolicy, Workload};

/// Policies by scope.
pub(super) struct Peers<'a> {
    mesh: Option<Entry<'a, PeerFacts>>,
    namespaces: HashMap<&'a str, Entry<'a, PeerFacts>>,
    /// With a selector, by namespace, oldest first.
    workloads: HashMap<&'a str, Vec<&'a PeerFacts>>,
}

impl<'a> Peers<'a> {
    /// Sorts the policies into scopes.
    pub(super) fn new(view: &View<'a>, root: &str, diagnostics: &mut Vec<Diagnostic>) -> Self {
        let mut peers = Self { mesh: None, namespaces: HashMap::new(), workloads: HashMap::new() };
        for entry in &view.peers {
            let namespace = &*entry.object.key.namespace;
            let mut report = entry.report();
            let older = match (entry.facts.selector.is_empty(), namespace == root) {
                (false, true) => {
                    report.warning("spec.selector", "has no effect in the root namespace");
                    None
                }
                (false, false) => {
                    peers.workloads.entry(namespace).or_default().push(entry.facts);
                    None
                }
                (true, true) if peers.mesh.is_none() => {
                    peers.mesh = Some(entry.clone());
                    None
                }
                (true, true) => peers.mesh.as_ref(),
                (true, false) if !peers.namespaces.contains_key(namespace) => {
                    peers.namespaces.insert(namespace, entry.clone());
                    None
                }
                (true, false) => peers.namespaces.get(namespace),
            };
            if let Some(older) = older {
                let holder = older.object.key.to_ref();
                report.warning("", format!("no effect: {holder}, which is older, holds here"));
            }
            diagnostics.extend(report.into_diagnostics());
        }
        peers
    }

    /// What holds for a workload.
    pub(super) fn policy(&self, workload: &Workload) -> PeerPolicy {
        let namespace = &*workload.name.namespace;
        let selects = |peer: &&&PeerFacts| workload.has_labels(&peer.selector);
        let own = self.workloads.get(namespace).and_then(|peers| peers.iter().find(selects));
        let scopes = [
            own.map(|peer| peer.mode),
            self.namespaces.get(namespace).map(|entry| entry.facts.mode),
            self.mesh.as_ref().map(|entry| entry.facts.mode),
        ];
        let mode = scopes.into_iter().flatten().flatten().next().unwrap_or_default();
        let ports = own.map(|peer| {
            peer.ports.iter().filter_map(|(port, mode)| Some((*port, (*mode)?))).collect()
        });
        PeerPolicy { mode, ports: ports.unwrap_or_default() }
    }
}
