//! Istio's objects and the mesh's own as the API server has them, beside what is wrong with them: for whoever writes their
//! status.
//!
//! Invariant: objects and findings of one value are of the same moment: a finding is about the
//! generation that stands beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::api::DynamicObject;
use serde_json::Value;

use super::super::api::Kind;
use super::super::diagnostic::Diagnostic;
use super::super::objects::Key;

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Objects of Istio's kinds and the mesh's own, also those that are refused.
    pub objects: BTreeMap<Key, Arc<Seen>>,
    /// Everything that is wrong, also with other objects.
    pub diagnostics: Arc<[Diagnostic]>,
}

/// One object, without what it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `apiVersion` in which the API server gave it.
    pub version: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `status`; null without one.
    pub status: Value,
}

impl Seen {
    /// What is kept of an object; `None` for kinds whose status is not the mesh's.
    pub(super) fn of(kind: Kind, object: &DynamicObject) -> Option<Self> {
        let given = object.types.as_ref().map(|types| &*types.api_version);
        let usual = kind.versions().first().copied().unwrap_or_default();
        kind.is_custom().then(|| Self {
            version: given.filter(|given| !given.is_empty()).unwrap_or(usual).to_owned(),
            generation: object.metadata.generation.unwrap_or_default(),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            status: object.data.get("status").cloned().unwrap_or_default(),
        })
    }
}
