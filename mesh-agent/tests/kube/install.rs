//! `meshctl install`, `upgrade` and `uninstall`, and `helm uninstall`, on a cluster of their own: under
//! requests, none of which may fail, and down to the last trace.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};
use xtask::kube::{KubeLab, KubeOptions, Need};

use crate::cluster::{PERMISSIVE, STRICT, deploy, pods};
use crate::support::{Mesh, NAMESPACE, api_server, eventually};

const MESHCTL: &str = env!("CARGO_BIN_EXE_meshctl");
/// Kinds of which the mesh has objects; the definitions stay.
const KINDS: &str = "all,configmaps,secrets,serviceaccounts,roles,rolebindings,clusterroles,\
                     clusterrolebindings,namespaces,poddisruptionbudgets,networkpolicies,\
                     validatingwebhookconfigurations,mutatingwebhookconfigurations";
const OURS: &str = "app.kubernetes.io/part-of=malha";

/// Runs `meshctl` beside the control plane; all that it said.
fn meshctl(lab: &KubeLab, words: &[&str]) -> Result<String, String> {
    let output = lab.command(&[&[MESHCTL], words].concat()).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("meshctl {words:?}: {}\n{err}{out}", output.status);
    let said = format!("{err}{out}");
    if output.status.success() { Ok(said) } else { Err(said) }
}

// === The manifest ===

/// Objects by kind and name, without what tells who installed them.
fn objects(yaml: &str) -> BTreeMap<String, Value> {
    let documents = format!("\n{yaml}");
    let mut found = BTreeMap::new();
    for text in documents.split("\n---\n") {
        let mut object: Value = serde_saphyr::from_str(text).unwrap();
        if !object.is_object() || object["kind"] == "CustomResourceDefinition" {
            continue;
        }
        for labels in ["/metadata/labels", "/spec/template/metadata/labels"] {
            if let Some(labels) = object.pointer_mut(labels).and_then(Value::as_object_mut) {
                labels.remove("app.kubernetes.io/managed-by");
            }
        }
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        found.insert(name, object);
    }
    found
}

/// Compares what both make of the same settings.
#[track_caller]
fn same(namespace: &str, words: &[&str], values: &[&str]) {
    let words = [&["install", "--dry-run", "-n", namespace], words].concat();
    let output = Command::new(MESHCTL).args(&words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut ours = objects(&String::from_utf8_lossy(&output.stdout));
    // Helm makes namespaces by a flag of its own.
    let made = ours.remove(&format!("\"Namespace\" \"{namespace}\""));
    assert!(made.is_some(), "{:?}", ours.keys());
    let helms = objects(&xtask::manifest::render(namespace, values).unwrap());
    assert_eq!(ours.keys().collect::<Vec<_>>(), helms.keys().collect::<Vec<_>>());
    for (name, object) in &ours {
        assert_eq!(Some(object), helms.get(name), "{name}");
    }
}

#[test]
fn meshctl_installs_what_helm_would() {
    if let Some(obstacle) = xtask::kube::obstacle(Need::Controllers) {
        xtask::test::skipped(&format!("kube: {obstacle}"));
        return;
    }
    same(NAMESPACE, &[], &[]);
    same(
        "mesh",
        &["--image=here/agent:v7", "--image-pull-policy=Always", "--image-pull-secret=pull"],
        &[
            "image.name=here/agent",
            "image.tag=v7",
            "image.pullPolicy=Always",
            "image.pullSecrets[0].name=pull",
        ],
    );
    same(
        NAMESPACE,
        &[
            "--trust-domain=corp",
            "--cluster-domain=k8s",
            "--root-namespace=r",
            "--istio-labels=false",
            "--accept-not-enforced=true",
        ],
        &[
            "trustDomain=corp",
            "clusterDomain=k8s",
            "rootNamespace=r",
            "istioLabels=false",
            "acceptNotEnforced=true",
        ],
    );
    same(
        NAMESPACE,
        &[
            "--log-level=debug",
            "--log-format=text",
            "--drain-seconds=60",
            "--workers=3",
            "--authority-replicas=1",
            "--cgroup-path=/sys/fs/cgroup/unified",
        ],
        &[
            "agent.logLevel=debug",
            "authority.logLevel=debug",
            "agent.logFormat=text",
            "authority.logFormat=text",
            "agent.drainSeconds=60",
            "agent.workers=3",
            "authority.replicas=1",
            "agent.paths.cgroup=/sys/fs/cgroup/unified",
        ],
    );
}

// === Where Istio's definitions are ===

/// One of Istio's definitions, as `istio-base` installs it.
fn istios() -> Value {
    let all = mesh_agent::config::crd::definitions();
    let found = all.into_iter().find(|crd| crd["spec"]["names"]["kind"] == "VirtualService");
    let mut crd = found.unwrap();
    crd["metadata"]["labels"] = json!({
        "app": "istio-pilot",
        "app.kubernetes.io/managed-by": "Helm",
        "app.kubernetes.io/part-of": "istio",
        "chart": "istio",
        "heritage": "Tiller",
        "release": "istio",
    });
    crd["metadata"]["annotations"] = json!({
        "helm.sh/resource-policy": "keep",
        "meta.helm.sh/release-name": "istio-base",
        "meta.helm.sh/release-namespace": "istio-system",
    });
    crd["spec"]["names"]["shortNames"] = json!(["vs", "theirs"]);
    crd
}

#[test]
fn istios_own_definitions_are_left_alone() {
    let Some(lab) = api_server("install-istio") else { return };
    let (crd, name) = (istios(), "virtualservices.networking.istio.io");
    lab.kubectl_stdin(&["create", "-f", "-"], &crd.to_string()).unwrap();
    lab.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", name]).unwrap();
    let found =
        || -> Value { lab.kubectl(&["get", "crd", name, "-o", "json"]).unwrap().parse().unwrap() };
    let before = found();

    let said = meshctl(&lab, &["install", "--skip-check", "--wait=false"]).unwrap();
    assert!(said.contains(&format!("left CustomResourceDefinition {name} as it is")), "{said}");
    assert_eq!(said.matches("as it is").count(), 1, "{said}");
    assert_eq!(found(), before);
    assert_eq!(staying(&lab).len(), mesh_agent::config::crd::definitions().len() - 1);

    meshctl(&lab, &["upgrade", "--skip-check", "--wait=false", "--log-level=debug"]).unwrap();
    assert_eq!(found(), before);
    meshctl(&lab, &["uninstall", "--purge"]).unwrap();
    assert_eq!(found(), before);
    assert_eq!(staying(&lab), [""; 0]);
}

/// Definitions of ours that nobody has removed. A removed one may stay for minutes: the API server first
/// looks for objects of it, tries again less and less often, and fails while it sets their storage up
/// anew ("storage is (re)initializing").
fn staying(lab: &KubeLab) -> Vec<String> {
    let found = lab.kubectl(&["get", "crds", "-l", OURS, "-o", "json"]).unwrap();
    let found: Value = found.parse().unwrap();
    let all = found["items"].as_array().unwrap().iter().map(|crd| &crd["metadata"]);
    let stay = all.filter(|metadata| metadata["deletionTimestamp"].is_null());
    stay.map(|metadata| metadata["name"].as_str().unwrap().to_owned()).collect()
}

/// The README's kustomization for such a cluster.
#[test]
fn a_kustomization_leaves_istios_definitions_out() {
    let kubectl = match xtask::kube::program("kubectl") {
        Ok(kubectl) => kubectl,
        Err(obstacle) => return xtask::test::skipped(&format!("kube: {obstacle}")),
    };
    let workspace = xtask::tool::workspace();
    let readme = std::fs::read_to_string(workspace.join("README.md")).unwrap();
    let (_, text) = readme.split_once("```yaml\n# kustomization.yaml").unwrap();
    let (text, _) = text.split_once("```").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(workspace, folder.path().join("malha")).unwrap();
    std::fs::write(folder.path().join("kustomization.yaml"), format!("#{text}")).unwrap();
    let output = Command::new(kubectl).arg("kustomize").arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let kinds = |yaml: &str| -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for kind in yaml.lines().filter_map(|line| line.strip_prefix("kind: ")) {
            *found.entry(kind.to_owned()).or_default() += 1;
        }
        found
    };
    let manifest = std::fs::read_to_string(xtask::manifest::path()).unwrap();
    let mut wanted = kinds(&manifest);
    // Of our own kind.
    wanted.insert("CustomResourceDefinition".to_owned(), 1);
    assert_eq!(kinds(&String::from_utf8_lossy(&output.stdout)), wanted);
}

// === A cluster ===

/// Requests without an end: one client with a connection for each, one that keeps its connection.
struct Load<'a> {
    mesh: &'a Mesh,
    namespace: &'static str,
}

impl<'a> Load<'a> {
    fn start(mesh: &'a Mesh, namespace: &'static str) -> Self {
        let script = "rm -f /tmp/*; exec >/dev/null 2>&1; \
            (while [ ! -e /tmp/stop ]; do \
                if curl -sS -i --fail-with-body -m 10 http://web >/tmp/one 2>&1; \
                then echo >> /tmp/good; \
                else date >> /tmp/bad; cat /tmp/one >> /tmp/bad; fi; done) & \
            (while [ ! -e /tmp/stop ]; do \
                if ! curl -sS -i --fail-with-body -m 60 --rate 20/s 'http://web/?[1-100]' >/tmp/many 2>&1; \
                then echo kept >> /tmp/bad; date >> /tmp/bad; tail -20 /tmp/many >> /tmp/bad; fi; done) &";
        mesh.exec(namespace, "client", &["sh", "-c", script]).unwrap();
        Self { mesh, namespace }
    }

    fn count(&self, file: &str) -> usize {
        let script = format!("cat /tmp/{file} 2>/dev/null | wc -l");
        let count = self.mesh.exec(self.namespace, "client", &["sh", "-c", &script]).unwrap();
        count.trim().parse().unwrap()
    }

    /// Waits for more requests; none may have failed so far.
    fn check(&self, when: &str) {
        let before = self.count("good");
        eventually("requests go on", || self.count("good") > before + 20);
        let script = "cat /tmp/bad 2>/dev/null";
        let bad = self.mesh.exec(self.namespace, "client", &["sh", "-c", script]);
        assert_eq!(bad.unwrap_or_default(), "", "{when}: {} succeeded", self.count("good"));
    }

    fn stop(self) {
        self.mesh.exec(self.namespace, "client", &["touch", "/tmp/stop"]).unwrap();
    }
}

/// Everything that is left of the mesh on nodes and in the API server, but for definitions.
fn traces(mesh: &Mesh) -> String {
    let mut found = mesh.kubectl(&["get", KINDS, "-A", "-l", OURS, "-o", "name"]);
    found += &mesh.kubectl(&[
        "get",
        "pods",
        "-A",
        "-o",
        "jsonpath={.items[*].metadata.annotations.malha\\.dev/enrolled}",
    ]);
    let own = ["-n", NAMESPACE, "get", "secrets,configmaps", "-o", "name", "--ignore-not-found"];
    let left = mesh.kubectl(&own);
    found
        .extend(left.lines().filter(|line| line.contains("malha")).map(|line| format!("{line}\n")));
    // Pins, files, and rules in whatever network namespace there is on the node.
    let script = "ls -d /sys/fs/bpf/malha 2>/dev/null; \
        find /run/malha /var/lib/malha -type f -o -type s 2>/dev/null; \
        for p in /proc/[0-9]*; do readlink $p/ns/net; done | sort -u | while read n; do \
            for p in /proc/[0-9]*; do \
                [ \"$(readlink $p/ns/net)\" = \"$n\" ] || continue; \
                nsenter --net=$p/ns/net ip rule | grep 0x111; \
                nsenter --net=$p/ns/net ip -6 rule | grep 0x111; break; \
            done; done; true";
    for node in mesh.lab.nodes() {
        let output = node.exec(&["sh", "-c", script]).unwrap();
        found += &String::from_utf8_lossy(&output.stdout);
    }
    found
}

#[test]
fn the_mesh_comes_and_goes_under_requests() {
    let Some(mesh) = Mesh::without_mesh(KubeOptions::new("inst", 2)) else { return };
    let namespace = "shop";
    deploy(&mesh, namespace, 30091);
    let before = pods(&mesh, namespace);
    let load = Load::start(&mesh, namespace);
    let printed = meshctl(&mesh.lab, &["check", "--pre"]).unwrap();
    assert!(printed.contains("Kubernetes"), "{printed}");

    let printed = meshctl(&mesh.lab, &["install"]).unwrap_or_else(|error| {
        panic!("{error}\n{}", mesh.why());
    });
    assert!(!printed.contains("FAILED"), "{printed}");
    let again = meshctl(&mesh.lab, &["install"]).unwrap_err();
    assert!(again.contains("installed already"), "{again}");
    mesh.kubectl(&["label", "namespace", namespace, "istio.io/dataplane-mode=malha"]);
    mesh.wait_enrolled(namespace, 3);
    mesh.apply(namespace, STRICT);
    load.check("enrolled");
    assert_ne!(traces(&mesh), "", "the search itself");

    upgraded(&mesh);
    load.check("upgraded");
    policies_and_unenforced_kinds_are_found(&mesh, namespace);

    meshctl(&mesh.lab, &["uninstall"]).unwrap_or_else(|error| panic!("{error}\n{}", mesh.why()));
    load.check("uninstalled");
    assert_eq!(pods(&mesh, namespace), before, "no pod was restarted");
    eventually("nothing is left", || traces(&mesh).is_empty());
    assert_eq!(staying(&mesh.lab).len(), mesh_agent::config::crd::definitions().len());
    let kept = mesh.kubectl(&["-n", namespace, "get", "peerauthentications", "-o", "name"]);
    assert!(kept.contains("default"), "people's objects stay: {kept}");

    helm_leaves_nothing_either(&mesh, &load, namespace);
    load.stop();
    meshctl(&mesh.lab, &["uninstall", "--purge"]).unwrap();
    assert_eq!(staying(&mesh.lab), [""; 0]);
}

/// An upgrade changes what it is told to, keeps the rest, and removes what is no longer in the manifest.
fn upgraded(mesh: &Mesh) {
    // As if an earlier version had had one more object.
    mesh.apply(
        NAMESPACE,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: of-before, labels: \
         {app.kubernetes.io/part-of: malha}}\n",
    );
    let path = "jsonpath={.data.objects}";
    let listed = mesh.kubectl(&["-n", NAMESPACE, "get", "cm", "malha-install", "-o", path]);
    let mut listed: Value = serde_json::from_str(&listed).unwrap();
    listed.as_array_mut().unwrap().push(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "namespace": NAMESPACE, "name": "of-before",
    }));
    let change = json!({"data": {"objects": listed.to_string()}}).to_string();
    mesh.kubectl(&["-n", NAMESPACE, "patch", "cm", "malha-install", "--type=merge", "-p", &change]);

    meshctl(&mesh.lab, &["upgrade", "--log-level=debug", "--drain-seconds=3"]).unwrap();
    let path = "jsonpath={.spec.template.spec.containers[0].args}";
    let args = || mesh.kubectl(&["-n", NAMESPACE, "get", "daemonset", "malha-agent", "-o", path]);
    assert!(args().contains("--log-level=debug"), "{}", args());
    let names = mesh.kubectl(&["-n", NAMESPACE, "get", "configmaps", "-o", "name"]);
    assert!(!names.contains("of-before"), "{names}");
    meshctl(&mesh.lab, &["upgrade", "--drain-seconds=5", "--accept-not-enforced=true"]).unwrap();
    assert!(args().contains("--log-level=debug"), "the setting is kept: {}", args());
    let refused = meshctl(&mesh.lab, &["upgrade", "--trust-domain=other"]).unwrap_err();
    assert!(refused.contains("cannot take another trust domain"), "{refused}");
}

fn policies_and_unenforced_kinds_are_found(mesh: &Mesh, namespace: &str) {
    meshctl(&mesh.lab, &["check"]).unwrap();
    mesh.apply(
        namespace,
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\nspec: \
         {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny}\n\
         spec: {}\n",
    );
    let found = meshctl(&mesh.lab, &["check"]).unwrap_err();
    assert!(found.contains("shop: web let TCP 15008 not into web-"), "{found}");
    assert!(found.contains("do not obey AuthorizationPolicy shop/deny"), "{found}");
    let json = meshctl(&mesh.lab, &["check", "-o", "json"]).unwrap_err();
    assert!(json.contains("\"state\": \"failed\""), "{json}");
    mesh.kubectl(&["-n", namespace, "delete", "networkpolicy/web", "authorizationpolicy/deny"]);
    let pod =
        mesh.kubectl(&["-n", NAMESPACE, "get", "pods", "-l", "app=malha-agent", "-o", "name"]);
    let pod = pod.lines().next().unwrap();
    let words = ["-n", NAMESPACE, "exec", pod, "--", "/usr/local/bin/meshctl", "check", "--node"];
    let node = mesh.kubectl(&words);
    assert!(node.contains("all that capture needs"), "{node}");
}

/// To another value and to another image: the same one by another name.
fn helm_upgrades(mesh: &Mesh) {
    for node in mesh.lab.nodes() {
        let ctr = |words: &[&str]| {
            let output = node.exec(&[&["ctr", "-n", "k8s.io", "images"], words].concat()).unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let suffix = xtask::image::default_name();
        let all = ctr(&["ls", "-q"]);
        let image = all.lines().find(|name| name.ends_with(&suffix)).unwrap();
        let (name, _) = image.rsplit_once(':').unwrap();
        ctr(&["tag", image, &format!("{name}:next")]);
    }
    let chart = xtask::tool::workspace().join("deploy/chart");
    let upgrade = ["upgrade", "malha", chart.to_str().unwrap(), "-n", NAMESPACE, "--wait"];
    let values = ["--set", "image.tag=next", "--set", "agent.logLevel=debug"];
    let upgraded = mesh.lab.helm(&[&upgrade[..], &values].concat());
    upgraded.unwrap_or_else(|error| panic!("{error:#}\n{}", mesh.why()));
    for what in ["deployment/malha-authority", "daemonset/malha-agent"] {
        mesh.kubectl(&["-n", NAMESPACE, "rollout", "status", what, "--timeout=180s"]);
    }
    let path = "jsonpath={.spec.template.spec.containers[0]['image', 'args']}";
    let agents = mesh.kubectl(&["-n", NAMESPACE, "get", "daemonset", "malha-agent", "-o", path]);
    assert!(agents.contains(":next") && agents.contains("--log-level=debug"), "{agents}");
}

/// The chart's hook does the same.
fn helm_leaves_nothing_either(mesh: &Mesh, load: &Load<'_>, namespace: &str) {
    // The one that `meshctl` has removed may still be on its way out.
    eventually("the namespace is gone", || mesh.lab.kubectl(&["get", "ns", NAMESPACE]).is_err());
    // Under STRICT a server that is in the mesh refuses a client that is about to be.
    mesh.apply(namespace, PERMISSIVE);
    let chart = xtask::tool::workspace().join("deploy/chart");
    let install = ["install", "malha", chart.to_str().unwrap(), "-n", NAMESPACE];
    mesh.lab.helm(&[&install[..], &["--create-namespace", "--wait"]].concat()).unwrap();
    mesh.wait_enrolled(namespace, 3);
    load.check("enrolled by Helm's");
    mesh.apply(namespace, STRICT);
    let refused = meshctl(&mesh.lab, &["upgrade"]).unwrap_err();
    assert!(refused.contains("helm upgrade malha"), "{refused}");
    helm_upgrades(mesh);
    load.check("upgraded by Helm");
    let refused = meshctl(&mesh.lab, &["uninstall"]).unwrap_err();
    assert!(refused.contains("helm uninstall malha -n malha-system"), "{refused}");
    mesh.lab
        .helm(&["uninstall", "malha", "-n", NAMESPACE, "--wait"])
        .unwrap_or_else(|error| panic!("{error:#}\n{}", mesh.why()));
    load.check("uninstalled by Helm");
    eventually("Helm has left nothing", || traces(mesh).is_empty());
}
