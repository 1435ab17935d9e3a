//! `meshConfig`: what is honoured of it, and what is said of the rest.

use std::net::SocketAddr;

use expect_test::expect;

use super::{Bench, CART};
use crate::model::{Client, OutboundPolicy};

fn config(mesh: &str) -> String {
    let lines: String = mesh.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "
apiVersion: v1
kind: ConfigMap
metadata: {{ name: istio, namespace: istio-system }}
data:
  meshNetworks: 'networks: {{}}'
  mesh: |
{lines}"
    )
}

fn outside() -> SocketAddr {
    "93.184.216.34:443".parse().unwrap()
}

#[test]
fn only_what_is_known_may_be_reached_if_it_says_so() {
    let mut bench = Bench::new();
    assert_eq!(bench.apply("cart", CART, 1), "");
    assert!(!bench.snapshot.blocks(outside()) && bench.snapshot.leaves_alone(outside()));
    bench.apply("mesh", &config("outboundTrafficPolicy: { mode: REGISTRY_ONLY }"), 2);
    assert!(bench.snapshot.blocks(outside()) && !bench.snapshot.leaves_alone(outside()));
    let service = "10.1.0.1:80".parse().unwrap();
    assert!(!bench.snapshot.blocks(service) && !bench.snapshot.leaves_alone(service));
    bench.apply("mesh", &config("outboundTrafficPolicy: { mode: ALLOW_ANY }"), 3);
    assert_eq!(bench.snapshot.outbound, OutboundPolicy::AllowAny);
    // As in Istio, where the first value of the enumeration is the default.
    bench.apply("mesh", &config("outboundTrafficPolicy: {}"), 4);
    assert_eq!(bench.snapshot.outbound, OutboundPolicy::RegistryOnly);
    bench.apply("mesh", "", 5);
    assert_eq!(bench.snapshot.outbound, OutboundPolicy::AllowAny);
}

#[test]
fn the_last_good_one_stays() {
    let mut bench = Bench::new();
    bench.apply("mesh", &config("outboundTrafficPolicy: { mode: REGISTRY_ONLY }"), 1);
    for (bad, message) in [
        (
            "outboundTrafficPolicy: { mode: REGISTRY }",
            "error ConfigMap istio-system/istio data.mesh.outboundTrafficPolicy.mode: ",
        ),
        ("trustDomain: [", "error ConfigMap istio-system/istio data.mesh: line "),
        ("just words", "error ConfigMap istio-system/istio data.mesh: not a mapping"),
        (
            "defaultVirtualServiceExportTo: ['*', '.']",
            "error ConfigMap istio-system/istio data.mesh.defaultVirtualServiceExportTo: `*` must",
        ),
    ] {
        let said = bench.apply("mesh", &config(bad), 2);
        assert!(said.contains(message), "{said}");
        assert!(said.contains("its last good version stays in force"), "{said}");
        assert_eq!(bench.snapshot.outbound, OutboundPolicy::RegistryOnly, "{bad}");
    }
}

#[test]
fn what_is_not_honoured_is_said_key_by_key() {
    let said = Bench::new().apply(
        "mesh",
        &config(
            "accessLogFile: /dev/stdout
defaultConfig: { discoveryAddress: 'istiod.istio-system.svc:15012' }
enablePrometheusMerge: true
rootNamespace: elsewhere
trustDomain: example.org
defaultServiceExportTo: ['.']
outboundTrafficPolicy: { mode: ALLOW_ANY, modus: x }",
        ),
        1,
    );
    expect![[r#"
        error ConfigMap istio-system/istio data.mesh.outboundTrafficPolicy.modus: unknown field; did you mean `mode`?
        warning ConfigMap istio-system/istio data.mesh.accessLogFile: not supported yet, ignored
        warning ConfigMap istio-system/istio data.mesh.defaultConfig: not supported yet, ignored
        warning ConfigMap istio-system/istio data.mesh.defaultServiceExportTo: not supported yet, ignored
        warning ConfigMap istio-system/istio data.mesh.enablePrometheusMerge: not supported yet, ignored
        warning ConfigMap istio-system/istio data.mesh.rootNamespace: `elsewhere`, but the mesh is installed with `istio-system`, which holds: it is decided by the chart's value `rootNamespace`
        warning ConfigMap istio-system/istio data.mesh.trustDomain: `example.org`, but the mesh is installed with `cluster.local`, which holds: it is decided by the chart's value `trustDomain`
    "#]]
    .assert_eq(&said);
}

#[test]
fn only_the_one_in_the_root_namespace_counts() {
    let text = config("outboundTrafficPolicy: { mode: REGISTRY_ONLY }");
    for other in [("istio-system", "shop"), ("name: istio", "name: istio-other")] {
        let mut bench = Bench::new();
        assert_eq!(bench.apply("mesh", &text.replace(other.0, other.1), 1), "");
        assert_eq!(bench.snapshot.outbound, OutboundPolicy::AllowAny);
    }
}

#[test]
fn objects_without_export_to_are_seen_as_it_says() {
    let route = "
kind: VirtualService
metadata: { name: NAME, namespace: shop }
spec:
  EXPORT
  hosts: [cart]
  http: [{ route: [{ destination: { host: cart } }] }]
";
    let route = |name: &str, export: &str| route.replace("NAME", name).replace("EXPORT", export);
    let mesh =
        config("defaultVirtualServiceExportTo: ['.']\ndefaultDestinationRuleExportTo: [bank]");
    let text = [CART, &route("cart", ""), "---", &mesh].join("\n");
    let mut bench = Bench::new();
    bench.apply("all", &text, 1);
    let host = "cart.shop.svc.cluster.local";
    assert!(bench.snapshot.virtual_service(host, "shop").is_some());
    assert!(bench.snapshot.virtual_service(host, "bank").is_none());
    let service = bench.snapshot.service_by_host(host).unwrap().clone();
    assert!(bench.snapshot.destination_rule(&service, Client::of_namespace("bank")).is_some());
    assert!(bench.snapshot.destination_rule(&service, Client::of_namespace("other")).is_none());
    // Their own word wins.
    let text = [CART, &route("cart", "exportTo: ['*']"), "---", &mesh].join("\n");
    bench.apply("all", &text, 2);
    assert!(bench.snapshot.virtual_service(host, "bank").is_some());
}
