//! The CRDs on a real API server: established, stable, and as strict as they should be.

use std::path::Path;

use serde_json::{Value, json};
use xtask::kube::KubeLab;

use crate::support::api_server;

pub(crate) fn documents(folder: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kube/samples").join(folder);
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
    texts.flat_map(|text| text.split("\n---\n").map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn install(lab: &KubeLab) -> String {
    let crds = mesh_agent::config::crd::yaml().unwrap();
    lab.kubectl_stdin(&["apply", "-f", "-"], &crds).unwrap();
    let wait = ["wait", "crd", "--all", "--for=condition=Established", "--timeout=30s"];
    lab.kubectl(&wait).unwrap();
    crds
}

#[test]
fn crds_are_established_and_stable() {
    let Some(lab) = api_server("crd-apply") else { return };
    let crds = install(&lab);

    let found: Value = lab.kubectl(&["get", "crd", "-o", "json"]).unwrap().parse().unwrap();
    let found = found["items"].as_array().unwrap();
    assert_eq!(found.len(), 12);
    for crd in found {
        let conditions = crd["status"]["conditions"].as_array().unwrap();
        let bad = conditions.iter().find(|condition| condition["type"] == "NonStructuralSchema");
        assert_eq!(bad, None, "{}", crd["metadata"]["name"]);
    }
    let again = lab.kubectl_stdin(&["apply", "-f", "-"], &crds).unwrap();
    assert!(again.lines().all(|line| line.ends_with(" unchanged")), "{again}");
}

#[test]
fn crds_keep_every_field_of_samples() {
    let Some(lab) = api_server("crd-keep") else { return };
    install(&lab);

    for text in documents("accepted") {
        let wanted: Value = serde_saphyr::from_str(&text).unwrap();
        let stored = lab.kubectl_stdin(&["apply", "-o", "json", "-f", "-"], &text).unwrap();
        let stored: Value = stored.parse().unwrap();
        assert_eq!(stored["apiVersion"], wanted["apiVersion"]);
        assert_eq!(stored["spec"], wanted["spec"]);
    }
    let table = lab.kubectl(&["get", "vs,dr,rl", "--no-headers=false"]).unwrap();
    for column in ["GATEWAYS", "HOSTS", "HOST ", "ACCEPTED"] {
        assert!(table.contains(column), "{column} in {table}");
    }
}

/// As Istio's users type them.
const SHORT: [(&str, &str); 11] = [
    ("ap", "AuthorizationPolicy"),
    ("dr", "DestinationRule"),
    ("gw", "Gateway"),
    ("pa", "PeerAuthentication"),
    ("ra", "RequestAuthentication"),
    ("rl", "RateLimit"),
    ("se", "ServiceEntry"),
    ("telemetry", "Telemetry"),
    ("vs", "VirtualService"),
    ("we", "WorkloadEntry"),
    ("wg", "WorkloadGroup"),
];

#[test]
fn objects_have_short_names_and_survive_being_applied_again() {
    let Some(lab) = api_server("crd-again") else { return };
    install(&lab);
    let samples = documents("accepted");
    let all = samples.join("\n---\n");
    let apply = |text: &str| lab.kubectl_stdin(&["apply", "-f", "-"], text).unwrap();
    apply(&all);
    let again = apply(&all);
    assert_eq!(again.lines().count(), samples.len(), "{again}");
    assert!(again.lines().all(|line| line.ends_with(" unchanged")), "{again}");

    for (short, kind) in SHORT {
        let found = lab.kubectl(&["get", short, "-o", "jsonpath={.items[0].kind}"]).unwrap();
        assert_eq!(found, kind, "{short}");
    }
    let names = SHORT.map(|(short, _)| short).join(",") + ",sidecars";
    let specs = || -> Vec<Value> {
        let found: Value = lab.kubectl(&["get", &names, "-o", "json"]).unwrap().parse().unwrap();
        let of = |object: &Value| {
            let name = &object["metadata"]["name"];
            json!([object["kind"], name, object["metadata"]["generation"], object["spec"]])
        };
        found["items"].as_array().unwrap().iter().map(of).collect()
    };
    let before = specs();
    assert_eq!(before.len(), samples.len());
    // What people edit: only what `kubectl` notes of the last time differs.
    let written = lab.kubectl(&["get", &names, "-o", "yaml"]).unwrap();
    let back = apply(&written);
    let is_kept = |line: &str| line.ends_with(" configured") || line.ends_with(" unchanged");
    assert_eq!(back.lines().filter(|line| is_kept(line)).count(), samples.len(), "{back}");
    assert_eq!(specs(), before);
}

#[test]
fn crds_refuse_nonsense_and_say_why() {
    let Some(lab) = api_server("crd-refuse") else { return };
    install(&lab);

    for text in documents("refused") {
        let said = text.trim_start().lines().next().unwrap();
        let said = said.strip_prefix("# refused: ").unwrap();
        let error = lab.kubectl_stdin(&["apply", "-f", "-"], &text).unwrap_err();
        assert!(format!("{error:#}").contains(said), "{said} is not in {error:#}");
    }
}
