//! One document: which kind it is, its metadata, its body. `kind: List` is unfolded.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::suggest::nearest;
use super::typed::{FieldError, Note, read};
use super::{Parsed, Report, yaml};
use crate::config::api::{self, Kind, Metadata};
use crate::config::diagnostic::Place;
use crate::config::objects::{Body, Key, Object};
use crate::config::translate::{self, MeshFacts, Scope};
use crate::model::{MeshSettings, ObjectRef};

/// Fields of an object itself.
const TOP_LEVEL: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// Kinds that people keep beside those of the mesh; nothing to say about them.
const PASSED_OVER: [&str; 21] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "CronJob",
    "CustomResourceDefinition",
    "DaemonSet",
    "Deployment",
    "Endpoints",
    "Event",
    "HorizontalPodAutoscaler",
    "Ingress",
    "Job",
    "Lease",
    "NetworkPolicy",
    "Node",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "ReplicaSet",
    "Role",
    "RoleBinding",
    "Secret",
    "StatefulSet",
];

/// Kinds of Istio and Gateway API that this version does not honour, said aloud.
const NOT_YET: [&str; 10] = [
    "GRPCRoute",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "ProxyConfig",
    "Sidecar",
    "Telemetry",
    "WasmPlugin",
    "WorkloadEntry",
    "WorkloadGroup",
];

/// Kind of Istio's that this version does not read for a reason.
const ENVOY_FILTER: &str = "EnvoyFilter";
const NO_ENVOY: &str = "not supported, ignored: it is configuration of Envoy's, of which there is \
     none here; for local rate limits write a RateLimit of malha.dev/v1alpha1";

/// Of a security object: that it protects nothing.
pub(in crate::config) const NOT_ENFORCED: &str = "not supported yet: nothing of it is enforced";
/// Of a field that is known, but not honoured.
pub(in crate::config) const UNSUPPORTED_FIELD: &str = "not supported yet, ignored";
/// Of a field that is not known, perhaps of a newer version.
pub(in crate::config) const UNKNOWN_FIELD: &str = "unknown field, ignored";

/// Takes the objects of one document.
pub(super) fn admit(value: Value, place: Option<Place>, mesh: &MeshSettings, parsed: &mut Parsed) {
    let mut report = Report::new(None, place);
    let mut map = match value {
        Value::Null => return,
        Value::Object(map) => map,
        _ => {
            report.error("", "not an object: a mapping with `apiVersion` and `kind` was expected");
            return parsed.refuse(None, report);
        }
    };
    let Some(Value::String(kind)) = map.remove("kind") else {
        report.error("kind", "missing: every object must say what it is");
        return parsed.refuse(None, report);
    };
    if let (true, Some(Value::Array(items))) = (kind.ends_with("List"), map.get_mut("items")) {
        // A List inside a List is not a thing; the recursion is bounded by the parser's depth.
        for item in std::mem::take(items) {
            admit(item, report.place.clone(), mesh, parsed);
        }
        return;
    }
    match Kind::of_name(&kind) {
        Some(kind) => admit_object(kind, map, report, mesh, parsed),
        None => foreign(&kind, &map, report, parsed),
    }
}

/// A kind that the mesh does not read.
fn foreign(kind: &str, map: &Map<String, Value>, mut report: Report, parsed: &mut Parsed) {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let metadata = map.get("metadata");
    report.object = Some(ObjectRef {
        kind: kind.into(),
        namespace: text(metadata.and_then(|found| found.get("namespace"))).into(),
        name: text(metadata.and_then(|found| found.get("name"))).into(),
    });
    if PASSED_OVER.contains(&kind) {
        return;
    }
    if NOT_YET.contains(&kind) {
        report.warning("", UNSUPPORTED_FIELD);
    } else if kind == ENVOY_FILTER {
        report.warning("", NO_ENVOY);
    } else if let Some(near) = nearest(kind, Kind::ALL.map(Kind::name)) {
        report.error("kind", format!("`{kind}` is not known; did you mean `{near}`?"));
        // The last version of the object may have been spelt right.
        parsed.unreadable = true;
    } else {
        report.warning("kind", format!("`{kind}` is not read by the mesh, ignored"));
    }
    parsed.diagnostics.extend(report.into_diagnostics());
}

fn admit_object(
    kind: Kind,
    mut map: Map<String, Value>,
    mut report: Report,
    mesh: &MeshSettings,
    parsed: &mut Parsed,
) {
    let metadata = match metadata(kind, &mut map, &mut report) {
        Ok(metadata) => metadata,
        Err(key) => return parsed.refuse(key, report),
    };
    let key = key_of(kind, metadata.namespace.as_deref(), &metadata.name);
    if kind
        .only_name()
        .is_some_and(|name| *key.name != *name || key.namespace != mesh.root_namespace)
    {
        return;
    }
    report.object = Some(key.to_ref());
    check_version(kind, map.get("apiVersion"), &mut report);
    if kind.is_custom() {
        check_top_level(&map, &mut report);
    }
    let scope = Scope { namespace: &key.namespace, mesh };
    let body = body(kind, map, &metadata, &scope, &mut report);
    match body {
        Some(body) if !report.has_errors() => parsed.accepted.push(Object {
            key,
            created: metadata.creation_timestamp.map(|time| time.0),
            body,
            place: report.place.clone(),
            notes: report.into_diagnostics(),
        }),
        _ => parsed.refuse(Some(key), report),
    }
}

/// Metadata, or the key if at least that can be told.
fn metadata(
    kind: Kind,
    map: &mut Map<String, Value>,
    report: &mut Report,
) -> Result<Metadata, Option<Key>> {
    let value = map.remove("metadata").unwrap_or(Value::Null);
    let text = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let rough = key_of(kind, text("namespace").as_deref(), &text("name").unwrap_or_default());
    report.object = Some(rough.to_ref());
    let key = (!rough.name.is_empty()).then_some(rough);
    let unquoted = matches!(value.get("name"), Some(Value::Number(_) | Value::Bool(_)));
    if key.is_none() && !unquoted {
        report.error("metadata.name", "missing: every object needs a name");
        return Err(None);
    }
    match read(value, "metadata", kind.is_custom()) {
        Ok((metadata, notes)) => {
            say(notes, report);
            Ok(metadata)
        }
        Err(error) => {
            refused(error, report);
            Err(key)
        }
    }
}

/// The key of an object; without a namespace it is in `default`.
pub(in crate::config) fn key_of(kind: Kind, namespace: Option<&str>, name: &str) -> Key {
    let namespace = match kind {
        kind if kind.is_cluster_scoped() => "",
        _ => namespace.filter(|name| !name.is_empty()).unwrap_or("default"),
    };
    Key { kind, namespace: namespace.into(), name: name.into() }
}

fn check_version(kind: Kind, value: Option<&Value>, report: &mut Report) {
    let known = kind.versions();
    let hint = format!("write `apiVersion: {}`", known.first().copied().unwrap_or_default());
    match value.and_then(Value::as_str) {
        Some(version) if known.contains(&version) => {}
        Some(version) => report.error(
            "apiVersion",
            format!("`{version}` is not a version of {} that the mesh reads; {hint}", kind.name()),
        ),
        None => report.error("apiVersion", format!("missing; {hint}")),
    }
}

fn check_top_level(map: &Map<String, Value>, report: &mut Report) {
    for field in map.keys().filter(|field| !TOP_LEVEL.contains(&field.as_str())) {
        unknown(field, nearest(field, TOP_LEVEL), report);
    }
}

/// Decodes an object of one of Istio's kinds that the mesh does not read; `false` if the kind is none
/// of those.
pub(super) fn decode_unread(kind: &str, mut map: Map<String, Value>, report: &mut Report) -> bool {
    let spec = map.remove("spec").unwrap_or_else(|| Value::Object(Map::new()));
    let decode = match kind {
        ENVOY_FILTER => {
            report.warning("", NO_ENVOY);
            return true;
        }
        "Gateway" => decode::<api::Gateway>,
        "Sidecar" => decode::<api::Sidecar>,
        "Telemetry" => decode::<api::Telemetry>,
        "WorkloadEntry" => decode::<api::WorkloadEntry>,
        "WorkloadGroup" => decode::<api::WorkloadGroup>,
        _ => return false,
    };
    check_top_level(&map, report);
    decode(spec, report);
    true
}

fn decode<T: for<'de> Deserialize<'de>>(spec: Value, report: &mut Report) {
    drop(typed::<T>(spec, "spec", true, report));
}

/// Reads and translates what the kind needs beyond its metadata.
fn body(
    kind: Kind,
    mut map: Map<String, Value>,
    metadata: &Metadata,
    scope: &Scope<'_>,
    report: &mut Report,
) -> Option<Body> {
    let spec = map.remove("spec").unwrap_or_else(|| Value::Object(Map::new()));
    match kind {
        Kind::Namespace => Some(Body::Namespace(metadata.labels.clone())),
        Kind::Node => Some(Body::Node(translate::node(&metadata.labels))),
        Kind::ServiceAccount => Some(Body::ServiceAccount),
        Kind::Pod => {
            map.insert("spec".to_owned(), spec);
            let pod: api::Pod = typed(Value::Object(map), "", false, report)?;
            Some(Body::Pod(Box::new(translate::pod(pod, metadata, scope, report))))
        }
        Kind::Service => {
            map.insert("spec".to_owned(), spec);
            let service: api::Service = typed(Value::Object(map), "", false, report)?;
            Some(Body::Service(translate::service(service, metadata, scope, report)))
        }
        Kind::EndpointSlice => {
            let slice: api::EndpointSlice = typed(Value::Object(map), "", false, report)?;
            Some(Body::EndpointSlice(translate::slice(slice, metadata, report)?))
        }
        Kind::VirtualService => {
            let spec: api::VirtualService = typed(spec, "spec", true, report)?;
            let object = report.object.clone()?;
            Some(Body::VirtualService(translate::virtual_service(spec, object, scope, report)))
        }
        Kind::DestinationRule => {
            let spec: api::DestinationRule = typed(spec, "spec", true, report)?;
            Some(Body::DestinationRule(Box::new(translate::destination_rule(spec, scope, report))))
        }
        Kind::ServiceEntry => {
            let spec: api::ServiceEntry = typed(spec, "spec", true, report)?;
            Some(Body::ServiceEntry(translate::service_entry(spec, scope, report)))
        }
        Kind::PeerAuthentication => {
            let spec: api::PeerAuthentication = typed(spec, "spec", true, report)?;
            Some(Body::PeerAuthentication(translate::peer_authentication(spec, report)))
        }
        Kind::RateLimit => {
            let spec: api::RateLimit = typed(spec, "spec", true, report)?;
            let object = report.object.clone()?;
            Some(Body::RateLimit(translate::rate_limit(spec, &object, scope, report)))
        }
        Kind::ConfigMap => Some(Body::MeshConfig(mesh_config(&map, scope, report)?)),
        Kind::AuthorizationPolicy => {
            let spec: api::AuthorizationPolicy = typed(spec, "spec", true, report)?;
            Some(Body::Unenforced(translate::authorization_policy(spec)))
        }
        Kind::RequestAuthentication => {
            let spec: api::RequestAuthentication = typed(spec, "spec", true, report)?;
            Some(Body::Unenforced(translate::request_authentication(spec)))
        }
    }
}

/// The text under the key `mesh` is YAML of its own.
fn mesh_config(
    map: &Map<String, Value>,
    scope: &Scope<'_>,
    report: &mut Report,
) -> Option<MeshFacts> {
    let text = map.get("data").and_then(|data| data.get("mesh")).and_then(Value::as_str);
    let value = match yaml::documents(text.unwrap_or_default()).into_iter().next() {
        None => Value::Null,
        Some(document) => match document.value {
            Ok(value) => value,
            Err(fault) => {
                report.error("data.mesh", format!("line {}: {}", fault.line, fault.message));
                return None;
            }
        },
    };
    let all = match value {
        Value::Null => Map::new(),
        Value::Object(all) => all,
        _ => {
            report.error("data.mesh", "not a mapping");
            return None;
        }
    };
    let known = translate::known_keys(all, report);
    let config: api::MeshConfig = typed(known, "data.mesh", true, report)?;
    Some(translate::mesh_config(config, scope, report))
}

fn typed<T: for<'de> Deserialize<'de>>(
    value: Value,
    root: &str,
    strict: bool,
    report: &mut Report,
) -> Option<T> {
    match read(value, root, strict) {
        Ok((typed, notes)) => {
            say(notes, report);
            Some(typed)
        }
        Err(error) => {
            refused(error, report);
            None
        }
    }
}

fn refused(error: FieldError, report: &mut Report) {
    report.error(error.field.unwrap_or_default(), error.message);
}

fn say(notes: Vec<Note>, report: &mut Report) {
    for note in notes {
        match note {
            Note::Unsupported { field } => report.warning(field, UNSUPPORTED_FIELD),
            Note::Unknown { field, near } => unknown(&field, near, report),
        }
    }
}

/// A field that is near a known one is a misspelling: the object would not do what its author
/// meant, so it is refused. One that is not near is perhaps of a newer version: the rest holds.
fn unknown(field: &str, near: Option<&str>, report: &mut Report) {
    match near {
        Some(near) => report.error(field, format!("unknown field; did you mean `{near}`?")),
        None => report.warning(field, UNKNOWN_FIELD),
    }
}
