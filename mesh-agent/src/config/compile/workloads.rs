//! Pods to workloads: which are selected (DESIGN, section 3), enrolled, and what they ask of peers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::peers::Peers;
use super::share;
use super::view::View;
use crate::config::api::Labels;
use crate::config::diagnostic::Diagnostic;
use crate::config::objects::Objects;
use crate::config::translate::PodFacts;
use crate::model::{Snapshot, Workload, WorkloadName};

/// Selects pods, on a namespace or on a pod.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Selects pods, on a namespace.
const INJECTION: &str = "istio-injection";

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

/// Compiles every pod.
pub(super) fn compile(
    view: &View<'_>,
    objects: &Objects,
    previous: &Snapshot,
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
        let namespace = view.namespaces.get(&*workload.name.namespace).map(|entry| entry.facts);
        let wanted = wanted(pod, namespace, settings.istio_labels) && !workload.host_network;
        if let (true, Some(reason)) = (wanted, pod.unfit) {
            report.warning("", format!("selected by its labels, but not enrolled: it {reason}"));
        }
        workload.selected = wanted && pod.unfit.is_none();
        workload.enrolled |= objects.is_announced(&workload.uid);
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

/// Whether labels ask for the pod to be in the mesh.
fn wanted(pod: &PodFacts, namespace: Option<&Labels>, istio_labels: bool) -> bool {
    if pod.opted_out {
        return false;
    }
    let of_namespace = |key: &str| namespace.and_then(|labels| labels.get(key)).map(|text| &**text);
    let own = pod.workload.labels.get(DATAPLANE_MODE).map(|text| &**text);
    match own.or_else(|| of_namespace(DATAPLANE_MODE)) {
        Some("malha") => true,
        Some("ambient") if istio_labels => true,
        Some("none") => false,
        _ => istio_labels && of_namespace(INJECTION) == Some("enabled"),
    }
}
