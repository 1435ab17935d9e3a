//! An object from the API server, cut down on receipt to what the mesh reads. Pure.
//!
//! A pod of the API server's is 5 to 20 KB of JSON, of which the mesh reads a few hundred bytes. What
//! is cut here neither takes memory nor comes to the disk; whole are only Istio's kinds and
//! the mesh's own, whose unknown fields are to be reported.

use kube::api::DynamicObject;
use serde_json::{Map, Value, json};

use super::super::api::Kind;
use super::super::translate::NODE_LABELS;

/// `kubectl apply` keeps the whole object in it once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

const POD_SPEC: [&str; 7] = [
    "nodeName",
    "serviceAccountName",
    "serviceAccount",
    "hostNetwork",
    "runtimeClassName",
    "containers",
    "initContainers",
];
const CONTAINER: [&str; 5] =
    ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"];
const POD_STATUS: [&str; 4] = ["phase", "podIP", "podIPs", "conditions"];
const CONDITION: [&str; 2] = ["type", "status"];

/// The object as the parser takes it.
pub(super) fn trim(kind: Kind, object: DynamicObject) -> Value {
    let DynamicObject { metadata, data, .. } = object;
    let mut kept = Map::new();
    let version = kind.versions().first().copied().unwrap_or_default();
    kept.insert("apiVersion".to_owned(), version.into());
    kept.insert("kind".to_owned(), kind.name().into());
    kept.insert("metadata".to_owned(), trim_metadata(kind, metadata));
    if let Value::Object(data) = data {
        for (field, value) in data {
            match (kind, field.as_str()) {
                (_, "apiVersion" | "kind")
                | (Kind::Namespace | Kind::Node | Kind::ServiceAccount, _) => {}
                (Kind::Pod, "spec") => {
                    kept.insert(field, pod_spec(value));
                }
                (Kind::Pod, "status") => {
                    kept.insert(field, pod_status(value));
                }
                (Kind::ConfigMap, field) if field != "data" => {}
                (kind, "status") if kind.is_custom() => {}
                _ => {
                    kept.insert(field, value);
                }
            }
        }
    }
    Value::Object(kept)
}

fn trim_metadata(
    kind: Kind,
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Value {
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    if matches!(kind, Kind::EndpointSlice | Kind::Namespace | Kind::Node) {
        annotations.clear();
    }
    let mut labels = metadata.labels.unwrap_or_default();
    if kind == Kind::Node {
        labels.retain(|key, _| NODE_LABELS.contains(&key.as_str()));
    }
    let mut kept = json!({
        "name": metadata.name.unwrap_or_default(),
        "labels": labels,
        "annotations": annotations,
    });
    let namespace = metadata.namespace.map(Value::from);
    let created = metadata.creation_timestamp.map(|time| time.0.to_string().into());
    let deleted = metadata.deletion_timestamp.map(|time| time.0.to_string().into());
    for (field, value) in [
        ("namespace", namespace),
        ("uid", metadata.uid.map(Value::from)),
        ("creationTimestamp", created),
        ("deletionTimestamp", deleted),
    ] {
        if let Some(value) = value {
            kept[field] = value;
        }
    }
    kept
}

fn pod_spec(value: Value) -> Value {
    let mut spec = pick(value, &POD_SPEC);
    for field in ["containers", "initContainers"] {
        if let Some(Value::Array(containers)) = spec.get_mut(field) {
            for container in containers {
                *container = pick(container.take(), &CONTAINER);
            }
        }
    }
    spec
}

/// Of the conditions only `Ready`, without its times: those change and mean nothing here.
fn pod_status(value: Value) -> Value {
    let mut status = pick(value, &POD_STATUS);
    if let Some(Value::Array(conditions)) = status.get_mut("conditions") {
        conditions.retain(|condition| condition["type"] == "Ready");
        for condition in conditions {
            *condition = pick(condition.take(), &CONDITION);
        }
    }
    status
}

fn pick(value: Value, fields: &[&str]) -> Value {
    let Value::Object(map) = value else { return value };
    map.into_iter()
        .filter(|(field, _)| fields.contains(&field.as_str()))
        .collect::<Map<_, _>>()
        .into()
}
