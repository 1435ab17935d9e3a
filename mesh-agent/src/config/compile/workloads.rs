//! Pods to workloads: which are selected (DESIGN, section 3), enrolled, and what they ask of peers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::peers::Peers;
use super::share;
use super::view::View;
use crate::config::diagnostic::Diagnostic;
use crate::config::objects::Objects;
use crate::model::{Selection, Snapshot, Workload, WorkloadName};

/// The workloads, by what others look them up by.
#[derive(Default)]
pub(super) struct Workloads {
    /// By pod UID.
    pub(super) by_uid: FxHashMap<Arc<str>, Arc<Workload>>,
    /// By address; without finished and host-network pods.
    pub(super) by_ip: FxHashMap<IpAddr, Arc<Workload>>,
    /// By name.
    pub(super) by_name: HashMap<WorkloadName, Arc<Workload>>,
}

/// What namespaces ask for.
pub(super) fn selection(view: &View<'_>, istio_labels: bool) -> Selection {
    let mut selection = Selection::new(istio_labels);
    for (name, entry) in &view.namespaces {
        selection.insert(name, entry.facts);
    }
    selection
}

/// Compiles every pod.
pub(super) fn compile(
    view: &View<'_>,
    objects: &Objects,
    (selection, previous): (&Selection, &Snapshot),
    diagnostics: &mut Vec<Diagnostic>,
) -> Workloads {
    let settings = objects.settings();
    let peers = Peers::new(view, &settings.mesh.root_namespace, diagnostics);
    let mut found = Workloads::default();
    for entry in &view.pods {
        let pod = entry.facts;
        let mut report = entry.report();
        let mut workload = pod.workload.clone();
        if let Some(other) = found.by_uid.get(&workload.uid) {
            report.error("metadata.uid", format!("is that of Pod {} too", other.name));
            diagnostics.extend(report.into_diagnostics());
            continue;
        }
        let wanted = pod.mark.opted_in(selection, &workload.name.namespace, &workload.labels)
            && !workload.host_network;
        if let (true, Some((field, reason))) = (wanted, pod.mark.unfit) {
            report.warning(field, format!("selected by its labels, but not enrolled: it {reason}"));
            workload.unfit = Some(reason);
        }
        workload.selected = wanted && pod.mark.unfit.is_none();
        workload.enrolled |= objects.is_announced(&workload.uid);
        if workload.locality.is_none() {
            workload.locality = view.nodes.get(&*workload.node).map(|found| Arc::clone(found));
        }
        workload.peer_policy = peers.policy(&workload);
        let before = previous.workloads_by_uid.get(&workload.uid);
        let workload = share(workload, before);
        found.by_uid.insert(Arc::clone(&workload.uid), Arc::clone(&workload));
        found.by_name.insert(workload.name.clone(), Arc::clone(&workload));
        if !workload.finished && !workload.host_network {
            found.claim(&workload);
        }
        diagnostics.extend(report.into_diagnostics());
    }
    found
}

impl Workloads {
    /// Pods come oldest first: an address goes to the newest pod that is not on its way out, since
    /// a pod's address is given away again while its object still stands.
    fn claim(&mut self, workload: &Arc<Workload>) {
        for ip in &workload.ips {
            match self.by_ip.get(ip) {
                Some(holder) if workload.terminating && !holder.terminating => {}
                _ => {
                    self.by_ip.insert(*ip, Arc::clone(workload));
                }
            }
        }
    }

    /// The pod behind an endpoint: the one it names, if the address is its own, else by address.
    pub(super) fn behind(
        &self,
        ip: IpAddr,
        named: Option<&WorkloadName>,
    ) -> Option<&Arc<Workload>> {
        let named = named.and_then(|name| self.by_name.get(name));
        named
            .filter(|workload| workload.ips.contains(&ip) && !workload.finished)
            .or_else(|| self.by_ip.get(&ip))
    }
}
