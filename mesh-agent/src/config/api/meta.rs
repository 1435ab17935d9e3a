//! `metadata`, and label selectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::{JsonSchema, Schema};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::scalar::Timestamp;
use super::schema::{each, required, rules};

/// Labels or annotations.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

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

/// Istio's `WorkloadSelector` of `istio.type.v1beta1`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct LabelSelector {
    /// Labels that a pod must have, in the object's namespace.
    #[schemars(
        extend("maxProperties" = 4096),
        transform = rules([
            ("wildcard not allowed in label key match", "self.all(key, !key.contains(\"*\"))"),
            ("key must not be empty", "self.all(key, key.size() != 0)"),
        ]),
        transform = each(label_value("wildcard not allowed in label value match")),
    )]
    pub(in crate::config) match_labels: Labels,
}

/// Istio's `WorkloadSelector` of `istio.networking.v1alpha3`: the same under another name.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct WorkloadSelector {
    /// Labels that a pod must have, in the object's namespace.
    #[schemars(
        extend("maxProperties" = 256),
        transform = each(label_value("wildcard is not supported in selector")),
    )]
    pub(in crate::config) labels: Labels,
}

fn label_value(message: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| {
        schema.insert("maxLength".to_owned(), 63.into());
        rules([(message, "!self.contains(\"*\")")])(schema);
    }
}

/// `targetRef` and `targetRefs[]`: what a policy is attached to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["kind", "name"]))]
pub(in crate::config) struct TargetRef {
    /// Group of the target; empty for Service.
    #[schemars(length(max = 253), regex(pattern = DNS_OR_EMPTY))]
    pub(in crate::config) group: String,
    /// `Gateway`, `GatewayClass`, `Service` or `ServiceEntry`.
    #[schemars(length(min = 1, max = 63), regex(pattern = KIND))]
    pub(in crate::config) kind: String,
    #[schemars(length(min = 1, max = 253))]
    pub(in crate::config) name: String,
    /// The policy's own, if any.
    #[schemars(transform = rules([
        ("cross namespace referencing is not currently supported", "self.size() == 0"),
    ]))]
    pub(in crate::config) namespace: String,
}

const DNS_OR_EMPTY: &str = "^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
const KIND: &str = "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$";
