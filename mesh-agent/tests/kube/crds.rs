//! The CRDs on a real API server: established, stable, and as strict as they should be.

use std::path::Path;

use serde_json::Value;
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
