//! The CRDs: what is checked in, Kubernetes' rules for schemas, whole kinds, samples.

use std::path::Path;
use std::sync::LazyLock;

use expect_test::expect_file;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Map, Value};

use super::yaml;
use crate::config::{Settings, api, parse};

#[test]
fn checked_in() {
    expect_file!["../../../../deploy/chart/crds/malha-crds.yaml"].assert_eq(&yaml().unwrap());
}

/// Kubernetes' own type of a CRD has every field that is written, so none is a misspelling.
#[test]
fn known_to_kubernetes() {
    for written in DEFINITIONS.iter() {
        let read: CustomResourceDefinition = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(floats(serde_json::to_value(read).unwrap()), floats(written.clone()));
    }
}

#[test]
fn structural() {
    for crd in DEFINITIONS.iter() {
        for version in crd["spec"]["versions"].as_array().unwrap() {
            let mut broken = Vec::new();
            check(&version["schema"]["openAPIV3Schema"], &crd["metadata"]["name"], &mut broken);
            assert_eq!(broken, Vec::<String>::new());
        }
    }
}

#[test]
fn one_version_is_stored() {
    for crd in DEFINITIONS.iter() {
        let versions = crd["spec"]["versions"].as_array().unwrap();
        let stored = versions.iter().filter(|version| version["storage"] == true);
        assert_eq!(stored.count(), 1, "{}", crd["metadata"]["name"]);
    }
}

/// The kinds that the parser reads are those of the CRDs, in the same versions.
#[test]
fn as_the_parser_reads() {
    for kind in api::Kind::ALL.into_iter().filter(|kind| kind.is_custom()) {
        let crd = crd(kind.name());
        assert_eq!(crd["spec"]["names"]["plural"], kind.plural());
        let group = crd["spec"]["group"].as_str().unwrap();
        let versions = crd["spec"]["versions"].as_array().unwrap().iter();
        let versions: Vec<String> =
            versions.map(|v| format!("{group}/{}", v["name"].as_str().unwrap())).collect();
        assert_eq!(versions, kind.versions());
    }
}

#[test]
fn every_field_of_the_reference() {
    let mut missing = Vec::new();
    for line in include_str!("fields.txt").lines().filter(|line| !line.starts_with('#')) {
        let (kind, path) = line.split_once(' ').unwrap();
        if field(spec(kind), path).is_none() {
            missing.push(line);
        }
    }
    assert_eq!(missing, Vec::<&str>::new());
}

/// Nothing in a sample would be pruned, and the types read it.
#[test]
fn samples() {
    let mut seen = Vec::new();
    for (text, object) in accepted() {
        let kind = object["kind"].as_str().unwrap();
        let mut pruned = Vec::new();
        prune(spec(kind), &object["spec"], kind, &mut pruned);
        assert_eq!(pruned, Vec::<String>::new(), "{text}");
        read(kind, object["spec"].clone());
        seen.push(object["apiVersion"].as_str().unwrap().to_owned() + "/" + kind);
    }
    for crd in DEFINITIONS.iter() {
        let (group, kind) = (&crd["spec"]["group"], &crd["spec"]["names"]["kind"]);
        for version in crd["spec"]["versions"].as_array().unwrap() {
            let name = [group, &version["name"], kind].map(|part| part.as_str().unwrap());
            assert!(seen.contains(&name.join("/")), "no sample of {name:?}");
        }
    }
}

/// The parser takes what it reads of the samples, and says of the rest that it does not.
#[test]
fn the_parser_reads_samples() {
    let settings = Settings::default();
    for (text, object) in accepted() {
        let kind = object["kind"].as_str().unwrap();
        let parsed = parse(&text, None, &settings.mesh);
        if api::Kind::ALL.iter().any(|known| known.name() == kind) {
            let notes = parsed.accepted.iter().flat_map(|object| &object.notes);
            let notes = notes.chain(&parsed.diagnostics);
            let unknown = notes.filter(|note| note.message.contains("unknown field"));
            assert_eq!(unknown.count(), 0, "{text}");
            assert!(!parsed.accepted.is_empty(), "{text}\n{:?}", parsed.diagnostics);
        } else {
            let message = &parsed.diagnostics.first().unwrap().message;
            assert!(message.starts_with("not supported yet"), "{message}");
        }
    }
}

// === helpers ===

/// Kubernetes' type has bounds as floating-point numbers.
fn floats(value: Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().into(),
        Value::Array(list) => list.into_iter().map(floats).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, floats(value))).collect(),
        other => other,
    }
}

static DEFINITIONS: LazyLock<Vec<Value>> = LazyLock::new(super::definitions);

fn crd(kind: &str) -> &'static Value {
    DEFINITIONS.iter().find(|crd| crd["spec"]["names"]["kind"] == kind).unwrap()
}

fn spec(kind: &str) -> &'static Value {
    &crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
}

/// The schema at a path such as `http[].match[].headers.*`.
fn field<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(schema, |schema, name| match name {
        "*" => schema.get("additionalProperties"),
        name => {
            let plain = name.trim_end_matches("[]");
            let found = schema.get("properties")?.get(plain)?;
            if name == plain { Some(found) } else { found.get("items") }
        }
    })
}

/// Texts and values of the samples that an API server must take.
fn accepted() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kube/samples/accepted");
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
    let documents = texts.flat_map(|text| {
        text.split("\n---\n").map(|document| format!("{document}\n")).collect::<Vec<_>>()
    });
    documents.map(|text| (text.clone(), serde_saphyr::from_str(&text).unwrap())).collect()
}

fn read(kind: &str, spec: Value) {
    let result = match kind {
        "AuthorizationPolicy" => serde_json::from_value::<api::AuthorizationPolicy>(spec).err(),
        "DestinationRule" => serde_json::from_value::<api::DestinationRule>(spec).err(),
        "Gateway" => serde_json::from_value::<api::Gateway>(spec).err(),
        "PeerAuthentication" => serde_json::from_value::<api::PeerAuthentication>(spec).err(),
        "RateLimit" => serde_json::from_value::<api::RateLimit>(spec).err(),
        "RequestAuthentication" => serde_json::from_value::<api::RequestAuthentication>(spec).err(),
        "ServiceEntry" => serde_json::from_value::<api::ServiceEntry>(spec).err(),
        "Sidecar" => serde_json::from_value::<api::Sidecar>(spec).err(),
        "Telemetry" => serde_json::from_value::<api::Telemetry>(spec).err(),
        "VirtualService" => serde_json::from_value::<api::VirtualService>(spec).err(),
        "WorkloadEntry" => serde_json::from_value::<api::WorkloadEntry>(spec).err(),
        "WorkloadGroup" => serde_json::from_value::<api::WorkloadGroup>(spec).err(),
        other => panic!("no type for {other}"),
    };
    assert!(result.is_none(), "{kind}: {result:?}");
}

/// Paths of what the API server would drop, as it does with fields that no schema names.
fn prune(schema: &Value, value: &Value, path: &str, pruned: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let named = schema.get("properties").and_then(|all| all.get(key));
                let path = format!("{path}.{key}");
                match named.or(schema.get("additionalProperties")) {
                    Some(schema) => prune(schema, value, &path, pruned),
                    None => pruned.push(path),
                }
            }
        }
        Value::Array(list) => {
            for value in list {
                prune(&schema["items"], value, path, pruned);
            }
        }
        _ => {}
    }
}

// === Kubernetes' rules ===

/// Keys that may stand in a schema; there are more, which we do not use.
const KEYS: [&str; 27] = [
    "additionalProperties",
    "allOf",
    "anyOf",
    "description",
    "enum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "not",
    "nullable",
    "oneOf",
    "pattern",
    "properties",
    "required",
    "type",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];

/// Keys that may not stand below `allOf`, `anyOf`, `oneOf` and `not`.
const NOT_IN_CHOICES: [&str; 5] =
    ["additionalProperties", "description", "nullable", "type", "x-kubernetes-validations"];

fn check(schema: &Value, path: &Value, broken: &mut Vec<String>) {
    let path = path.as_str().unwrap();
    let Value::Object(schema) = schema else {
        return broken.push(format!("{path}: not a mapping: {schema}"));
    };
    let mut say = |what: String| broken.push(format!("{path}: {what}"));
    for key in schema.keys().filter(|key| !KEYS.contains(&key.as_str())) {
        say(format!("`{key}`"));
    }
    let kind = schema.get("type").and_then(Value::as_str);
    let open = ["x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"];
    match kind {
        Some("array") if !schema.contains_key("items") => say("a list of what?".to_owned()),
        Some("array" | "object" | "string" | "boolean" | "integer" | "number") => {}
        None if open.iter().any(|key| schema.contains_key(*key)) => {}
        _ => say(format!("type {:?}", schema.get("type"))),
    }
    if schema.contains_key("properties") && schema.contains_key("additionalProperties") {
        say("both a struct and a map".to_owned());
    }
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if schema.get("properties").and_then(|all| all.get(name.as_str()?)).is_none() {
            say(format!("requires {name}, which is no field"));
        }
    }
    choices(schema, path, broken);
    for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        check(inner, &format!("{path}.{name}").into(), broken);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(key) {
            check(inner, &format!("{path}.*").into(), broken);
        }
    }
}

/// Choices narrow what the schema itself allows: they name its fields only, and no types.
fn choices(schema: &Map<String, Value>, path: &str, broken: &mut Vec<String>) {
    if schema.contains_key("x-kubernetes-int-or-string") {
        return;
    }
    let lists =
        ["allOf", "anyOf", "oneOf"].into_iter().filter_map(|key| schema.get(key)?.as_array());
    let mut open: Vec<&Value> = lists.flatten().chain(schema.get("not")).collect();
    while let Some(choice) = open.pop() {
        for (key, value) in choice.as_object().unwrap() {
            match key.as_str() {
                "allOf" | "anyOf" | "oneOf" => open.extend(value.as_array().unwrap()),
                "not" => open.push(value),
                "required" => {
                    for name in value.as_array().unwrap() {
                        if schema["properties"].get(name.as_str().unwrap()).is_none() {
                            broken.push(format!("{path}: a choice of {name}, which is no field"));
                        }
                    }
                }
                key if NOT_IN_CHOICES.contains(&key) => {
                    broken.push(format!("{path}: `{key}` in a choice"));
                }
                _ => {}
            }
        }
    }
}
