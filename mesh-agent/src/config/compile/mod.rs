//! From the accepted objects to the snapshot that the data path reads.
//!
//! Pure: same objects and same previous snapshot, same result. It never fails: an object that
//! cannot be honoured yields a [`Diagnostic`] naming the field, and what stood before stays. What
//! did not change is shared with the previous snapshot, and a snapshot in which nothing changed
//! keeps its generation.

mod delegates;
mod destinations;
mod direct;
mod external;
mod no_effect;
mod peers;
mod rate_limits;
mod routes;
mod services;
#[cfg(test)]
mod tests;
mod unenforced;
mod view;
mod workloads;

use std::sync::Arc;

use super::diagnostic::Diagnostic;
use super::objects::Objects;
use crate::model::{Snapshot, VirtualService};
use view::View;

/// What a compilation gives.
#[derive(Debug)]
pub struct Compiled {
    /// The configuration in force.
    pub snapshot: Snapshot,
    /// Everything that is wrong, sorted, each once.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether the snapshot differs from the previous one. The first always does.
    pub changed: bool,
}

/// Turns the accepted objects into what the data path reads.
pub fn compile(objects: &Objects, previous: &Snapshot) -> Compiled {
    let (in_force, mut diagnostics) = objects.in_force();
    let view = View::new(&in_force);
    let mut snapshot = Snapshot {
        generation: previous.generation,
        mesh: objects.settings().mesh.clone(),
        outbound: view.mesh.outbound,
        locality: share(view.mesh.locality.clone(), Some(&previous.locality)),
        selection: workloads::selection(&view, objects.settings().istio_labels),
        ..Snapshot::default()
    };
    let pods =
        workloads::compile(&view, objects, (&snapshot.selection, previous), &mut diagnostics);
    services::compile(&view, &pods, previous, &mut snapshot, &mut diagnostics);
    let sources = external::Sources { view: &view, pods: &pods, answers: objects.answers() };
    external::compile(&sources, previous, &mut snapshot, &mut diagnostics);
    snapshot.workloads_by_ip = pods.by_ip;
    snapshot.workloads_by_uid = pods.by_uid;
    destinations::compile(&view, previous, &mut snapshot, &mut diagnostics);
    routes::compile(&view, previous, &mut snapshot, &mut diagnostics);
    rate_limits::compile(&view, previous, &mut snapshot, &mut diagnostics);
    direct::compile(&view, &mut snapshot, &mut diagnostics);
    unenforced::compile(&view, &mut snapshot, &mut diagnostics);
    diagnostics.sort();
    diagnostics.dedup();
    let changed = previous.generation == 0 || !same(&snapshot, previous);
    snapshot.generation += u64::from(changed);
    Compiled { snapshot, diagnostics, changed }
}

/// Whether two snapshots say the same. Equal parts are shared, so pointers tell; indexes follow
/// from the parts, but for pod addresses, which depend on the pods' ages.
fn same(a: &Snapshot, b: &Snapshot) -> bool {
    let lists = |a: &[Arc<VirtualService>], b: &[Arc<VirtualService>]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
    };
    a.mesh == b.mesh
        && a.outbound == b.outbound
        && a.locality == b.locality
        && a.selection == b.selection
        && same_map(&a.workloads_by_uid, &b.workloads_by_uid)
        && same_map(&a.workloads_by_ip, &b.workloads_by_ip)
        && same_map(&a.services, &b.services)
        && same_map(&a.services_by_ip, &b.services_by_ip)
        && lists(&a.virtual_services, &b.virtual_services)
        && a.sound_virtual_services == b.sound_virtual_services
        && a.destination_rules == b.destination_rules
        && a.rate_limits == b.rate_limits
        && a.direct == b.direct
        && a.unenforced == b.unenforced
}

fn same_map<K: std::hash::Hash + Eq, T>(
    a: &rustc_hash::FxHashMap<K, Arc<T>>,
    b: &rustc_hash::FxHashMap<K, Arc<T>>,
) -> bool {
    a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| Arc::ptr_eq(a, b)))
}

/// The value of before, if it is equal: then everything that holds it is unchanged too.
fn share<T: PartialEq>(new: T, before: Option<&Arc<T>>) -> Arc<T> {
    match before {
        Some(before) if **before == new => Arc::clone(before),
        _ => Arc::new(new),
    }
}
