//! Which pods labels ask to be in the mesh (DESIGN, section 3).
//!
//! A value of its own, since a pod is asked for by the container runtime before its object is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

/// Selects pods, on a namespace or on a pod.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Selects pods, on a namespace.
const INJECTION: &str = "istio-injection";

/// What namespaces ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    istio_labels: bool,
    /// Namespaces that have one of the labels.
    namespaces: FxHashMap<Arc<str>, Asked>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asked {
    mode: Option<Arc<str>>,
    injection: bool,
}

impl Selection {
    /// Without a namespace. `istio_labels`: whether Istio's labels select, beside Malha's own.
    pub fn new(istio_labels: bool) -> Self {
        Self { istio_labels, namespaces: FxHashMap::default() }
    }

    /// Adds a namespace with its labels.
    pub fn insert(&mut self, namespace: &str, labels: &BTreeMap<Arc<str>, Arc<str>>) {
        let mode = labels.get(DATAPLANE_MODE).cloned();
        let injection = labels.get(INJECTION).is_some_and(|value| &**value == "enabled");
        if mode.is_some() || injection {
            self.namespaces.insert(namespace.into(), Asked { mode, injection });
        }
    }

    /// Whether labels ask for a pod of a namespace to be in the mesh; its own win.
    pub fn wants(&self, namespace: &str, labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
        let asked = self.namespaces.get(namespace);
        let of_namespace = asked.and_then(|asked| asked.mode.as_deref());
        match labels.get(DATAPLANE_MODE).map(|mode| &**mode).or(of_namespace) {
            Some("malha") => true,
            Some("ambient") if self.istio_labels => true,
            Some("none") => false,
            _ => self.istio_labels && asked.is_some_and(|asked| asked.injection),
        }
    }
}
