//! Configuration from a real API server: objects come, change and go; kinds that are not there yet;
//! bad objects; a server that is away; an agent that starts without it.

use std::fmt::Write as _;
use std::sync::Arc;

use mesh_agent::model::{Snapshot, WorkloadName};
use xtask::kube::KubeLab;

use crate::support::{Follower, api_server, run};

/// Istio's kinds as far as a test of the watch needs them: without a schema.
fn crd(plural: &str, kind: &str, group: &str, versions: &[&str]) -> String {
    let mut text = format!(
        "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {plural}.{group}}}
spec:
  group: {group}
  scope: Namespaced
  names: {{plural: {plural}, kind: {kind}}}
  versions:
"
    );
    for (index, version) in versions.iter().enumerate() {
        let stored = index == 0;
        writeln!(
            text,
            "  - {{name: {version}, served: true, storage: {stored}, schema: {{openAPIV3Schema: \
             {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}}}"
        )
        .unwrap();
    }
    text
}

fn apply(lab: &KubeLab, manifest: &str) {
    lab.kubectl_stdin(&["apply", "-f", "-"], manifest).unwrap();
}

fn install_crd(lab: &KubeLab, plural: &str, kind: &str, versions: &[&str]) {
    apply(lab, &crd(plural, kind, "networking.istio.io", versions));
    let name = format!("crd/{plural}.networking.istio.io");
    lab.kubectl(&["wait", "--for=condition=Established", &name, "--timeout=30s"]).unwrap();
}

/// A pod that a node has, as the kubelet would report it.
fn pod(lab: &KubeLab, name: &str, ip: &str) {
    apply(
        lab,
        &format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web, version: v1}}}}
spec:
  nodeName: node-a
  serviceAccountName: web
  automountServiceAccountToken: false
  containers: [{{name: c, image: none}}]
"
        ),
    );
    let status =
        format!(r#"{{"status":{{"phase":"Running","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}]}}}}"#);
    lab.kubectl(&["patch", "pod", name, "--subresource=status", "--type=merge", "-p", &status])
        .unwrap();
}

const WEB: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: web}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.1.0.5], conditions: {ready: true}, targetRef: {kind: Pod, name: web-1, namespace: default}}
ports: [{name: http, port: 8080, protocol: TCP}]
";

fn split(first: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {{name: web, namespace: default}}
spec:
  hosts: [web]
  http:
  - route:
    - {{destination: {{host: web}}, weight: {first}}}
    - {{destination: {{host: other}}, weight: {}}}
",
        100 - first
    )
}

fn has_pod(snapshot: &Snapshot, name: &str) -> bool {
    let name = WorkloadName { namespace: "default".into(), name: name.into() };
    snapshot.workloads_by_uid.values().any(|pod| pod.name == name)
}

fn first_weight(snapshot: &Snapshot) -> Option<u32> {
    let found = snapshot.virtual_services.iter().find(|found| &*found.object.name == "web")?;
    let text = format!("{found:?}");
    let at = text.find("weight: ")? + "weight: ".len();
    text[at..].split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[test]
fn objects_come_change_and_go() {
    let Some(lab) = api_server("config-objects") else { return };
    run(async {
        let mut follower = Follower::new(&lab, None).await;
        follower.until("every kind listed", |snapshot| snapshot.generation > 0).await;
        follower.until_ready().await;
        lab.kubectl(&["label", "namespace", "default", "istio-injection=enabled"]).unwrap();
        apply(&lab, WEB);
        pod(&lab, "web-1", "10.1.0.5");
        let snapshot = follower
            .until("the pod is selected", |snapshot| {
                snapshot.workloads_by_ip.values().any(|pod| pod.selected)
            })
            .await;
        let pod = snapshot.workloads_by_ip.get(&"10.1.0.5".parse().unwrap()).unwrap();
        assert_eq!(pod.identity.to_string(), "spiffe://cluster.local/ns/default/sa/web");
        assert_eq!(&*pod.node, "node-a");
        assert!(!pod.enrolled);
        // What an agent writes, with no more than `pods/status`.
        let change = r#"{"metadata":{"annotations":{"malha.dev/enrolled":"true"}}}"#;
        lab.kubectl(&[
            "patch",
            "pod",
            "web-1",
            "--subresource=status",
            "--type=merge",
            "-p",
            change,
        ])
        .unwrap();
        let enrolled =
            |snapshot: &Snapshot| snapshot.workloads_by_ip.values().any(|pod| pod.enrolled);
        follower.until("the pod is enrolled", |snapshot| enrolled(snapshot)).await;
        node_labels_say_where_pods_are(&lab, &mut follower).await;
        lab.kubectl(&["delete", "endpointslice/web-1", "service/web"]).unwrap();
        lab.kubectl(&["delete", "pod/web-1", "--grace-period=0", "--force"]).unwrap();
        follower.until("the pod is gone", |snapshot| !has_pod(snapshot, "web-1")).await;
    });
}

async fn node_labels_say_where_pods_are(lab: &KubeLab, follower: &mut Follower) {
    let place = |snapshot: &Snapshot| {
        let pod = snapshot.workloads_by_ip.get(&"10.1.0.5".parse().unwrap())?;
        pod.locality.as_ref().map(ToString::to_string)
    };
    let node = "apiVersion: v1
kind: Node
metadata:
  name: node-a
  labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-a}
";
    apply(lab, node);
    let is_there = |snapshot: &Arc<Snapshot>| place(snapshot).as_deref() == Some("eu/eu-a");
    let before = follower.until("the pod is where its node is", is_there).await.generation;
    // What a kubelet reports every few minutes, and labels that say nothing of places.
    let status = r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;
    let status = ["--subresource=status", "--type=merge", "-p", status];
    lab.kubectl(&[&["patch", "node", "node-a"], &status[..]].concat()).unwrap();
    lab.kubectl(&["label", "node", "node-a", "pool=blue"]).unwrap();
    lab.kubectl(&["label", "node", "node-a", "--overwrite", "topology.kubernetes.io/zone=eu-b"])
        .unwrap();
    let has_moved = |snapshot: &Arc<Snapshot>| place(snapshot).as_deref() == Some("eu/eu-b");
    let after = follower.until("the node is elsewhere", has_moved).await.generation;
    assert_eq!(after, before + 1, "nothing else was news");
    lab.kubectl(&["delete", "node", "node-a"]).unwrap();
    follower.until("the node is gone", |snapshot| place(snapshot).is_none()).await;
}

#[test]
fn kinds_are_awaited_and_bad_versions_of_objects_are_not_taken() {
    let Some(lab) = api_server("config-kinds") else { return };
    run(async {
        let mut follower = Follower::new(&lab, None).await;
        follower.until("ready without Istio's kinds", |snapshot| snapshot.generation > 0).await;
        apply(&lab, WEB);
        // One of an old Istio: this server does not have `v1` of it.
        install_crd(&lab, "virtualservices", "VirtualService", &["v1alpha3"]);
        apply(&lab, &split(90));
        follower.until("the route is in force", |found| first_weight(found) == Some(90)).await;
        apply(&lab, &split(90).replace("weight: 90", "weight: many"));
        follower.until_said("spec.http[0].route[0].weight").await;
        follower.until_said("its last good version stays in force").await;
        assert_eq!(first_weight(&follower.snapshot.borrow()), Some(90));
        apply(&lab, &split(70));
        follower.until("the route has changed", |found| first_weight(found) == Some(70)).await;
        assert!(!follower.diagnostics.borrow().iter().any(|found| found.field.contains("weight")));
        // With its kind its objects go.
        lab.kubectl(&["delete", "crd", "virtualservices.networking.istio.io"]).unwrap();
        follower.until("the route is gone", |found| found.virtual_services.is_empty()).await;
        install_crd(&lab, "virtualservices", "VirtualService", &["v1", "v1alpha3"]);
        apply(&lab, &split(60));
        follower.until("the kind is back", |found| first_weight(found) == Some(60)).await;
    });
}

#[test]
fn a_server_that_is_away_changes_nothing_and_an_agent_starts_without_it() {
    let Some(lab) = api_server("config-away") else { return };
    run(async {
        let cache = tempfile::tempdir().unwrap();
        let path = || Some(cache.path().to_owned());
        install_crd(&lab, "virtualservices", "VirtualService", &["v1", "v1alpha3"]);
        apply(&lab, WEB);
        apply(&lab, &split(90));
        pod(&lab, "web-1", "10.1.0.5");
        pod(&lab, "web-2", "10.1.0.6");
        let complete = |found: &Snapshot| {
            first_weight(found) == Some(90) && has_pod(found, "web-1") && has_pod(found, "web-2")
        };
        let mut first = Follower::new(&lab, path()).await;
        first.until("all of it", |found| complete(found)).await;
        lab.stop_api_server().unwrap();
        // The first agent goes on; a second one starts from its cache; a third has none.
        let mut second = Follower::new(&lab, path()).await;
        second.until("what the first had", |found| complete(found)).await;
        second.until_ready().await;
        let mut third = Follower::new(&lab, None).await;
        let says_why = |missing: &std::sync::Arc<[String]>| {
            missing.iter().any(|line| line.starts_with("list of Pod: "))
        };
        let told = tokio::time::timeout(crate::support::DEADLINE, third.missing.wait_for(says_why));
        told.await.expect("the reason is told").unwrap();
        assert_eq!(third.snapshot.borrow().generation, 0);
        assert!(complete(&first.snapshot.borrow()));
        // One watches on while the other objects change.
        lab.start_api_server().unwrap();
        lab.kubectl(&["delete", "pod/web-2", "--grace-period=0", "--force"]).unwrap();
        apply(&lab, &split(30));
        for follower in [&mut first, &mut second, &mut third] {
            follower
                .until("converged", |found| {
                    first_weight(found) == Some(30)
                        && has_pod(found, "web-1")
                        && !has_pod(found, "web-2")
                })
                .await;
        }
    });
}
