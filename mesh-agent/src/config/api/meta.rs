//! `metadata`, and label selectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::scalar::Timestamp;

/// Labels or annotations.
pub(in crate::config) type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// `ObjectMeta`. Fields that the mesh does not read are named, so that a misspelt one is noticed.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Metadata {
    pub(in crate::config) name: String,
    pub(in crate::config) namespace: Option<String>,
    pub(in crate::config) uid: Option<Arc<str>>,
    pub(in crate::config) labels: Labels,
    pub(in crate::config) annotations: Labels,
    pub(in crate::config) creation_timestamp: Option<Timestamp>,
    pub(in crate::config) deletion_timestamp: Option<IgnoredAny>,
    deletion_grace_period_seconds: Option<IgnoredAny>,
    finalizers: Option<IgnoredAny>,
    generate_name: Option<IgnoredAny>,
    generation: Option<IgnoredAny>,
    managed_fields: Option<IgnoredAny>,
    owner_references: Option<IgnoredAny>,
    resource_version: Option<IgnoredAny>,
    self_link: Option<IgnoredAny>,
}

/// Istio's `WorkloadSelector`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct LabelSelector {
    pub(in crate::config) match_labels: Labels,
}
