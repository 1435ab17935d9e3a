//! Pods: selection, enrolment, peer policy, addresses.

use std::collections::BTreeSet;
use std::sync::Arc;

use expect_test::expect;

use super::{Bench, Settings, check, nothing, workloads};
use crate::config::{Labels, Objects};

#[test]
fn labels_of_namespace_and_pod_select() {
    check(
        "
kind: Namespace
metadata: { name: in, labels: { istio.io/dataplane-mode: malha } }
---
kind: Namespace
metadata: { name: ambient, labels: { istio.io/dataplane-mode: ambient } }
---
kind: Namespace
metadata: { name: injected, labels: { istio-injection: enabled } }
---
kind: Namespace
metadata: { name: out }
---
kind: Pod
metadata: { name: a, namespace: in, uid: 1a }
spec: { serviceAccountName: cart }
status: { podIP: 10.0.0.1 }
---
kind: Pod
metadata: { name: b, namespace: in, uid: 2b, labels: { istio.io/dataplane-mode: none } }
---
kind: Pod
metadata: { name: c, namespace: in, uid: 3c, labels: { sidecar.istio.io/inject: 'false' } }
---
kind: Pod
metadata: { name: d, namespace: in, uid: 4d, annotations: { sidecar.istio.io/status: '{}' } }
---
kind: Pod
metadata: { name: e, namespace: in, uid: 5e }
spec: { runtimeClassName: gvisor }
---
kind: Pod
metadata: { name: f, namespace: in, uid: 6f }
spec: { hostNetwork: true }
---
kind: Pod
metadata: { name: g, namespace: ambient, uid: 7g }
---
kind: Pod
metadata: { name: h, namespace: injected, uid: 8h }
---
kind: Pod
metadata: { name: i, namespace: out, uid: 9i, annotations: { malha.dev/enrolled: 'true' } }
---
kind: Pod
metadata: { name: j, namespace: out, uid: 0j, labels: { istio.io/dataplane-mode: malha } }
",
        workloads,
        expect![[r#"
            warning Pod in/d metadata.annotations[sidecar.istio.io/status]: selected by its labels, but not enrolled: it has a sidecar
            warning Pod in/e spec.runtimeClassName: selected by its labels, but not enrolled: it runs in a sandbox with a kernel of its own
            ambient/g spiffe://cluster.local/ns/ambient/sa/default [] selected Permissive {}
            in/a spiffe://cluster.local/ns/in/sa/cart [10.0.0.1] selected Permissive {}
            in/b spiffe://cluster.local/ns/in/sa/default [] Permissive {}
            in/c spiffe://cluster.local/ns/in/sa/default [] Permissive {}
            in/d spiffe://cluster.local/ns/in/sa/default [] unfit: has a sidecar; Permissive {}
            in/e spiffe://cluster.local/ns/in/sa/default [] unfit: runs in a sandbox with a kernel of its own; Permissive {}
            in/f spiffe://cluster.local/ns/in/sa/default [] host-network Permissive {}
            injected/h spiffe://cluster.local/ns/injected/sa/default [] selected Permissive {}
            out/i spiffe://cluster.local/ns/out/sa/default [] enrolled Permissive {}
            out/j spiffe://cluster.local/ns/out/sa/default [] selected Permissive {}
        "#]],
    );
}

#[test]
fn istio_labels_do_not_select_where_they_are_switched_off() {
    let settings = Settings { istio_labels: false, ..Settings::default() };
    let mut bench = Bench { objects: Objects::new(settings), ..Bench::new() };
    bench.apply(
        "",
        "
kind: Namespace
metadata: { name: x, labels: { istio.io/dataplane-mode: ambient, istio-injection: enabled } }
---
kind: Pod
metadata: { name: a, namespace: x, uid: a }
---
kind: Pod
metadata: { name: b, namespace: x, uid: b, labels: { istio.io/dataplane-mode: malha } }
",
        0,
    );
    let selected = |uid: &str| bench.snapshot.workloads_by_uid[uid].selected;
    assert!(!selected("a"));
    assert!(selected("b"));
}

#[test]
fn a_pod_is_enrolled_while_some_node_announces_it() {
    let mut bench = Bench::new();
    let enrolled = |bench: &Bench| bench.snapshot.workloads_by_uid["u"].enrolled;
    bench.apply("", "\nkind: Pod\nmetadata: { name: a, uid: u }\n", 0);
    assert!(!enrolled(&bench));
    bench.objects.announce("n1", Some(BTreeSet::from([Arc::from("u")])));
    bench.compile();
    assert!(enrolled(&bench));
    bench.objects.announce("n1", None);
    bench.compile();
    assert!(!enrolled(&bench));
}

#[test]
fn peer_authentication_inherits_from_mesh_to_namespace_to_workload_to_port() {
    check(
        "
kind: PeerAuthentication
metadata: { name: mesh, namespace: istio-system, creationTimestamp: '2026-01-01T00:00:00Z' }
spec: { mtls: { mode: STRICT } }
---
kind: PeerAuthentication
metadata: { name: late, namespace: istio-system, creationTimestamp: '2026-02-01T00:00:00Z' }
spec: { mtls: { mode: PERMISSIVE } }
---
kind: PeerAuthentication
metadata: { name: sel, namespace: istio-system }
spec: { selector: { matchLabels: { app: a } }, mtls: { mode: PERMISSIVE } }
---
kind: PeerAuthentication
metadata: { name: ns, namespace: open }
spec: { mtls: { mode: DISABLE } }
---
kind: PeerAuthentication
metadata: { name: app, namespace: open }
spec:
  selector: { matchLabels: { app: a } }
  mtls: { mode: UNSET }
  portLevelMtls:
    8080: { mode: STRICT }
    '9090': { mode: UNSET }
---
kind: PeerAuthentication
metadata: { name: unset, namespace: plain }
spec: {}
---
kind: Pod
metadata: { name: a, namespace: open, uid: 1a, labels: { app: a } }
---
kind: Pod
metadata: { name: b, namespace: open, uid: 2b }
---
kind: Pod
metadata: { name: c, namespace: plain, uid: 3c, labels: { app: a } }
---
kind: Pod
metadata: { name: d, namespace: istio-system, uid: 4d, labels: { app: a } }
",
        workloads,
        expect![[r#"
            warning PeerAuthentication istio-system/late: no effect: PeerAuthentication istio-system/mesh, which is older, holds here
            warning PeerAuthentication istio-system/sel spec.selector: has no effect in the root namespace
            warning PeerAuthentication open/ns spec.mtls.mode: DISABLE is taken as PERMISSIVE: mutual TLS is always offered
            istio-system/d spiffe://cluster.local/ns/istio-system/sa/default [] Strict {}
            open/a spiffe://cluster.local/ns/open/sa/default [] Permissive {8080: Strict}
            open/b spiffe://cluster.local/ns/open/sa/default [] Permissive {}
            plain/c spiffe://cluster.local/ns/plain/sa/default [] Strict {}
        "#]],
    );
}

#[test]
fn peer_authentication_mistakes_are_named() {
    check(
        "
kind: PeerAuthentication
metadata: { name: a }
spec: { portLevelMtls: { 8080: { mode: STRICT } } }
---
kind: PeerAuthentication
metadata: { name: b }
spec: { selector: { matchLabels: { app: a } }, portLevelMtls: { 0: { mode: STRICT } } }
---
kind: PeerAuthentication
metadata: { name: c }
spec: { mtls: { mode: STRIKT } }
",
        nothing,
        expect![[r#"
            error PeerAuthentication default/a spec.portLevelMtls: needs a `selector`: ports are those of a workload
            error PeerAuthentication default/b spec.portLevelMtls.0: `0` is not a port
            error PeerAuthentication default/c spec.mtls.mode: `STRIKT` is not known; did you mean `STRICT`?
        "#]],
    );
}

#[test]
fn an_address_goes_to_the_newest_pod_that_lives() {
    check(
        "
kind: Pod
metadata: { name: finished, uid: u1, creationTimestamp: '2026-03-01T00:00:00Z' }
status: { phase: Succeeded, podIP: 10.0.0.1 }
---
kind: Pod
metadata: { name: dying, uid: u2, creationTimestamp: '2026-02-01T00:00:00Z', deletionTimestamp: '2026-02-02T00:00:00Z' }
status: { phase: Running, podIP: 10.0.0.1 }
---
kind: Pod
metadata: { name: lives, uid: u3, creationTimestamp: '2026-01-01T00:00:00Z' }
status: { phase: Running, podIP: 10.0.0.1 }
---
kind: Pod
metadata: { name: host, uid: u4 }
spec: { hostNetwork: true }
status: { phase: Running, podIP: 10.0.0.1 }
",
        |snapshot| {
            let owner = &snapshot.workloads_by_ip[&"10.0.0.1".parse().unwrap()];
            format!("{}\n", owner.name)
        },
        expect![[r#"
            default/lives
        "#]],
    );
}

#[test]
fn exclusions_from_capture_are_read_and_checked() {
    check(
        "
kind: Pod
metadata:
  name: a
  uid: a
  annotations:
    traffic.sidecar.istio.io/excludeOutboundPorts: '3306, 0,abc'
    traffic.sidecar.istio.io/excludeInboundPorts: '8081'
    traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.9.1.2/8,192.0.2.1,fd00::/64,x/8
    traffic.sidecar.istio.io/includeOutboundIPRanges: 10.0.0.0/8
    traffic.sidecar.istio.io/includeInboundPorts: '*'
",
        |snapshot| format!("{:?}\n", snapshot.workloads_by_uid["a"].capture),
        expect![[r#"
            warning Pod default/a metadata.annotations[traffic.sidecar.istio.io/excludeOutboundIPRanges]: `x/8` is not an address range such as 10.0.0.0/8, ignored
            warning Pod default/a metadata.annotations[traffic.sidecar.istio.io/excludeOutboundPorts]: `0` is not a port, ignored
            warning Pod default/a metadata.annotations[traffic.sidecar.istio.io/excludeOutboundPorts]: `abc` is not a port, ignored
            warning Pod default/a metadata.annotations[traffic.sidecar.istio.io/includeOutboundIPRanges]: not supported yet, ignored
            CaptureRules { exclude_outbound_ports: [3306], exclude_inbound_ports: [8081], exclude_outbound_ranges: [10.0.0.0/8, 192.0.2.1/32, fd00::/64], probed_ports: [] }
        "#]],
    );
}

#[test]
fn pods_wait_for_what_is_meant_to_protect_them() {
    let pods = "
kind: Namespace
metadata: { name: shop, labels: { istio.io/dataplane-mode: malha } }
---
kind: Pod
metadata: { name: cart, namespace: shop, uid: 1a, labels: { app: cart } }
---
kind: Pod
metadata: { name: front, namespace: shop, uid: 2b, labels: { app: front } }
---
kind: Pod
metadata: { name: outside, namespace: other, uid: 3c, labels: { app: cart } }
---
";
    let held_back = |policy: &str| {
        let mut bench = Bench::new();
        bench.apply("", &format!("{pods}{policy}"), 1000);
        let names = bench.snapshot.workloads_by_uid.values();
        let names = names.filter(|pod| {
            let object = bench.snapshot.unprotected(&pod.name.namespace, &pod.labels);
            pod.selected && object.is_some()
        });
        let mut names: Vec<String> = names.map(|pod| pod.name.name.to_string()).collect();
        names.sort();
        names.join(" ")
    };
    let policy = |kind: &str, namespace: &str, spec: &str| {
        held_back(&format!("kind: {kind}\nmetadata: {{ name: p, namespace: {namespace} }}\n{spec}"))
    };
    let cart = "spec: { selector: { matchLabels: { app: cart } } }";
    assert_eq!(policy("AuthorizationPolicy", "shop", ""), "cart front");
    assert_eq!(policy("AuthorizationPolicy", "shop", cart), "cart");
    assert_eq!(policy("RequestAuthentication", "istio-system", ""), "cart front");
    assert_eq!(policy("RequestAuthentication", "istio-system", cart), "cart");
    assert_eq!(policy("AuthorizationPolicy", "other", ""), "");
    assert_eq!(policy("PeerAuthentication", "shop", ""), "");
    let gateway = "spec: { targetRefs: [{ kind: Gateway, name: ingress }] }";
    assert_eq!(policy("AuthorizationPolicy", "shop", gateway), "");
    let service = "spec: { targetRef: { kind: Service, name: cart } }";
    assert_eq!(policy("AuthorizationPolicy", "shop", service), "cart front");
}

#[test]
fn what_holds_pods_back_is_part_of_the_snapshot() {
    let mut bench = Bench::new();
    let pod = "
kind: Pod
metadata: { name: cart, namespace: shop, uid: 1a, labels: { istio.io/dataplane-mode: malha } }
";
    bench.apply("a", pod, 1000);
    let policy = "\nkind: AuthorizationPolicy\nmetadata: { name: p, namespace: shop }\n";
    bench.apply("b", policy, 1000);
    assert_eq!(bench.snapshot.generation, 2);
    let object = bench.snapshot.unprotected("shop", &Labels::default()).unwrap();
    assert_eq!(object.to_string(), "AuthorizationPolicy shop/p");
    bench.objects.remove("b");
    bench.compile();
    assert_eq!(bench.snapshot.generation, 3);
    assert!(bench.snapshot.unprotected("shop", &Labels::default()).is_none());
}
