//! What can be said of one object alone, before it is anywhere: for the admission webhook. Pure.
//!
//! Invariant: an object of a kind that the mesh reads is judged by the very code that takes it into
//! force, so that nothing is admitted which the agents then refuse for its own sake. What depends on
//! other objects (a host that is not there yet) is not said here.

use serde_json::Value;

use super::api::Kind;
use super::diagnostic::{Diagnostic, Severity};
use super::parse::{UNKNOWN_FIELD, UNSUPPORTED_FIELD, object, unread};
use crate::model::{MeshSettings, ObjectRef};

/// What becomes of an object that has no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is put in force.
    InForce,
    /// It is passed over: the mesh does not read the kind.
    NotRead,
    /// It is meant to protect and does not.
    NotEnforced,
    /// It is put in force, but for a part of what is meant to protect.
    PartlyEnforced,
}

/// Findings about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Which one, as far as it says.
    pub object: ObjectRef,
    /// What becomes of it.
    pub standing: Standing,
    /// What is wrong with it.
    pub findings: Vec<Diagnostic>,
}

impl Checked {
    /// Findings that keep the object from being taken.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.findings.iter().filter(|found| found.severity == Severity::Error)
    }

    /// Findings with which it is taken all the same.
    pub fn warnings(&self) -> impl Iterator<Item = &Diagnostic> {
        self.findings.iter().filter(|found| found.severity == Severity::Warning)
    }
}

/// Judges an object as the API server would store it.
pub fn check(value: Value, mesh: &MeshSettings) -> Checked {
    let name = named(&value);
    let Some(kind) = Kind::of_name(&name.kind) else { return check_unread(name, value) };
    let parsed = object(value, mesh);
    let notes = parsed.accepted.into_iter().flat_map(|object| object.notes);
    let findings: Vec<Diagnostic> = parsed.diagnostics.into_iter().chain(notes).collect();
    let is_ignored =
        |found: &Diagnostic| [UNKNOWN_FIELD, UNSUPPORTED_FIELD].contains(&&*found.message);
    let is_partial = kind.protects() && findings.iter().any(is_ignored);
    let standing = match (kind.is_enforced(), is_partial) {
        (false, _) => Standing::NotEnforced,
        (true, true) => Standing::PartlyEnforced,
        (true, false) => Standing::InForce,
    };
    Checked { object: name, standing, findings }
}

fn check_unread(name: ObjectRef, value: Value) -> Checked {
    let map = match value {
        Value::Object(map) => map,
        _ => serde_json::Map::new(),
    };
    let findings =
        unread(&name.kind, map, name.clone()).map(super::diagnostic::Report::into_diagnostics);
    Checked { object: name, standing: Standing::NotRead, findings: findings.unwrap_or_default() }
}

fn named(value: &Value) -> ObjectRef {
    let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default().into();
    ObjectRef {
        kind: text("/kind"),
        namespace: text("/metadata/namespace"),
        name: text("/metadata/name"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(kind: &str, group: &str, spec: &Value) -> (Standing, Vec<String>) {
        let object = json!({
            "apiVersion": format!("{group}.istio.io/v1"),
            "kind": kind,
            "metadata": { "namespace": "shop", "name": "cart" },
            "spec": spec,
        });
        let checked = check(object, &MeshSettings::default());
        (checked.standing, checked.findings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_error_names_its_field() {
        let spec = json!({
            "hosts": ["cart"],
            "http": [
                {
                    "match": [{ "uri": { "prefix": "/a" } }],
                    "route": [{ "destination": { "host": "cart" }, "weight": -1 }],
                },
                {},
            ],
        });
        let (standing, found) = said("VirtualService", "networking", &spec);
        assert_eq!(standing, Standing::InForce);
        assert_eq!(
            found,
            [
                "error VirtualService shop/cart spec.http[0].route[0].weight: -1 is negative",
                "error VirtualService shop/cart spec.http[1]: must have one of `route`, \
                 `redirect` and `directResponse`",
            ]
        );
    }

    #[test]
    fn kinds_that_are_not_read_are_decoded() {
        let (standing, found) = said("Gateway", "networking", &json!({ "servers": [] }));
        assert_eq!((standing, found), (Standing::NotRead, Vec::new()));
        let (_, found) = said("Gateway", "networking", &json!({ "servers": "none" }));
        let wrong = "error Gateway shop/cart spec.servers: must be a list, not the text \"none\"";
        assert_eq!(found, [wrong]);
        let (_, found) = said("Sidecar", "networking", &json!({ "egres": [] }));
        let near = "error Sidecar shop/cart spec.egres: unknown field; did you mean `egress`?";
        assert_eq!(found, [near]);
    }

    #[test]
    fn what_protects_nothing_is_not_in_force() {
        let (standing, found) = said("AuthorizationPolicy", "security", &json!({}));
        assert_eq!((standing, found), (Standing::NotEnforced, Vec::new()));
        let mode = json!({ "mtls": { "mode": "STRICT" } });
        assert_eq!(said("PeerAuthentication", "security", &mode).0, Standing::InForce);
        let newer = json!({ "mtls": { "mode": "STRICT" }, "postQuantumOnly": true });
        assert_eq!(said("PeerAuthentication", "security", &newer).0, Standing::PartlyEnforced);
    }
}
