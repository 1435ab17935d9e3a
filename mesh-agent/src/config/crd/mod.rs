//! CustomResourceDefinitions: of Istio's kinds, for clusters without Istio, in the versions, with the
//! names and columns of Istio's own; and of the mesh's own kind. Made from the types of `api`.
//!
//! What a field means is not here; whether it is honoured, `fields` tells people. Invariant: `deploy/chart/crds` is what
//! this gives; a test says so. Source: istio-surface, the CRD set.

mod fields;
mod kinds;
mod structural;

#[cfg(test)]
mod tests;

use serde_json::{Value, json};

pub use fields::table;
use kinds::{Column, Definition, KINDS};

/// Label by which our CRDs are told from Istio's.
const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "malha");

/// All CRDs, in the order of their names.
pub fn definitions() -> Vec<Value> {
    KINDS.iter().map(definition).collect()
}

/// All CRDs as one text of several YAML documents, always the same.
///
/// # Errors
///
/// If a definition cannot be written as YAML: a fault of ours.
pub fn yaml() -> Result<String, serde_saphyr::SerializeError> {
    let mut text = String::from("# Made by `mesh-agent crds`: do not edit.\n");
    for definition in definitions() {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&definition)?);
    }
    Ok(text)
}

fn definition(of: &Definition) -> Value {
    let singular = of.kind.to_lowercase();
    let group = of.group.replace('.', "-");
    let categories = match of.group.ends_with("istio.io") {
        true => vec!["istio-io".to_owned(), group],
        false => vec![group],
    };
    let schema = schema(of);
    let versions: Vec<Value> = of.versions.iter().map(|name| version(of, name, &schema)).collect();
    let mut names = json!({
        "categories": categories,
        "kind": of.kind,
        "listKind": format!("{}List", of.kind),
        "plural": of.plural,
        "singular": singular,
    });
    if let Some(short) = of.short {
        names["shortNames"] = json!([short]);
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{}", of.plural, of.group),
            "labels": { PART_OF.0: PART_OF.1 },
            // Objects are lost with their CRD: uninstalling the mesh must not take them along.
            "annotations": { "helm.sh/resource-policy": "keep" },
        },
        "spec": {
            "group": of.group,
            "names": names,
            "scope": "Namespaced",
            "conversion": { "strategy": "None" },
            "versions": versions,
        },
    })
}

/// All versions of a kind have the same schema.
fn version(of: &Definition, name: &str, schema: &Value) -> Value {
    let mut version = json!({
        "name": name,
        "served": true,
        "storage": name == of.stored,
        "schema": { "openAPIV3Schema": schema },
        "subresources": { "status": {} },
    });
    if !of.columns.is_empty() {
        version["additionalPrinterColumns"] = of.columns.iter().map(column).collect();
    }
    version
}

fn column(column: &Column) -> Value {
    let Column { name, path, description } = column;
    let kind = if *name == "Age" { "date" } else { "string" };
    json!({ "name": name, "type": kind, "jsonPath": path, "description": description })
}

fn schema(of: &Definition) -> Value {
    let mut status = (of.status)();
    // Whoever writes a status may say more in it.
    status["x-kubernetes-preserve-unknown-fields"] = true.into();
    let mut schema = json!({
        "type": "object",
        "properties": { "spec": (of.spec)(), "status": status },
    });
    if of.spec_required {
        schema["required"] = json!(["spec"]);
    }
    schema
}
