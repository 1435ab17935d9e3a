//! Mistakes in the text itself, and Istio's leniencies; nothing makes the reader panic.

use std::sync::Arc;

use expect_test::expect;
use proptest::prelude::*;

use super::{CART, check, nothing, routes, workloads};
use crate::config::{parse, yaml_compile};
use crate::model::MeshSettings;

#[test]
fn a_bad_document_does_not_spoil_the_others() {
    let text = "
apiVersion: v1
kind: Pod
metadata: { name: good, uid: good }
---
apiVersion: v1
kind: Pod
metadata:
\tname: tab
---
apiVersion: v1
kind: Pod
metadata: { name: twice, name: twice }
---
just words
---
kind: [not, text]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: x }
spec:
  hosts: [a]
  http:
  - retries: {}
    route:
    - destination: { host: b }
      wieght: 1
---
# nothing but a comment
---
apiVersion: v1
kind: Pod
metadata: { name: also-good, uid: also-good }
";
    let file = Arc::from("pods.yaml");
    let parsed = parse(text, Some(&file), &MeshSettings::default());
    let names: Vec<&str> = parsed.accepted.iter().map(|object| &*object.key.name).collect();
    assert_eq!(names, ["good", "also-good"]);
    assert!(parsed.unreadable);
    let text: String = parsed.diagnostics.iter().map(|found| format!("{found}\n")).collect();
    expect![[r#"
        error: indented with a tab, which YAML does not allow: use spaces (file pods.yaml, document 2, line 9)
        error: not valid YAML: the key `name` is there twice (file pods.yaml, document 3, line 13)
        error: not an object: a mapping with `apiVersion` and `kind` was expected (file pods.yaml, document 4, line 15)
        error kind: missing: every object must say what it is (file pods.yaml, document 5, line 17)
        error VirtualService default/x spec.http[0].route[0].wieght: unknown field; did you mean `weight`? (file pods.yaml, document 6, line 28)
    "#]].assert_eq(&text);
}

#[test]
fn what_an_object_lacks_is_named() {
    check(
        "
apiVersion: networking.istio.io/v1alpha1
kind: VirtualService
metadata: { name: a }
---
kind: Pod
apiVersion:
metadata: { name: b }
---
apiVersion: v1
kind: Pod
metadata: { namespace: x }
---
apiVersion: v1
kind: Pod
metadata: { name: 1 }
---
apiVersion: v1
kind: Pod
metadata: { name: c, labels: { app: on, on: no, version: 1 } }
---
apiVersion: v1
kind: Pod
metadata: { name: d, labels: [a] }
---
apiVersion: v1
kind: Pod
metadata: { name: e }
status: { podIPs: [{ ip: 10.0.0.300 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: f, creationTimestamp: yesterday }
",
        nothing,
        expect![[r#"
            error Pod default/ metadata.name: must be text, but YAML reads it as 1: put it in quotes
            error Pod default/b apiVersion: missing; write `apiVersion: v1`
            error Pod default/c metadata.labels.version: must be text, but YAML reads it as 1: put it in quotes
            error Pod default/d metadata.labels: must be a mapping, not a list
            error Pod default/e status.podIPs[0].ip: invalid IP address syntax
            error Pod default/f metadata.creationTimestamp: `yesterday` is not a time such as `2026-01-31T12:00:00Z`
            error Pod x/ metadata.name: missing: every object needs a name
            error VirtualService default/a apiVersion: `networking.istio.io/v1alpha1` is not a version of VirtualService that the mesh reads; write `apiVersion: networking.istio.io/v1`
        "#]],
    );
}

#[test]
fn kinds_that_are_not_read_are_said_unless_they_are_usual() {
    check(
        "
kind: VirtualSerivce
metadata: { name: g, namespace: x }
---
kind: AuthorizationPolicy
metadata: { name: h }
---
kind: Gateway
metadata: { name: i }
---
kind: Deployment
metadata: { name: j }
---
kind: Mystery
metadata: { name: k }
",
        nothing,
        expect![[r#"
            error AuthorizationPolicy default/h spec: not supported yet: nothing of it is enforced
            error VirtualSerivce x/g kind: `VirtualSerivce` is not known; did you mean `VirtualService`?
            warning Gateway i: not supported yet, ignored
            warning Mystery k kind: `Mystery` is not read by the mesh, ignored
        "#]],
    );
}

#[test]
fn what_a_service_lacks_is_named() {
    check(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: l }
---
apiVersion: v1
kind: Service
metadata: { name: m }
spec: { clusterIP: '10.1', ports: [{ port: 80 }, { port: 80 }, { name: x }, { port: 53, protocol: UDP }] }
---
apiVersion: v1
kind: Service
metadata: { name: n }
spec: { ports: [{ port: 70000 }] }
",
        nothing,
        expect![[r#"
            error EndpointSlice default/l metadata.labels[kubernetes.io/service-name]: missing: it ties the slice to its service
            error Service default/m spec.clusterIPs: `10.1` is not an address
            error Service default/m spec.ports[1].port: 80 is there twice
            error Service default/m spec.ports[2].port: missing, or not a port
            error Service default/n spec.ports[0].port: must be a whole number from 0 to 65535, not the number 70000
        "#]],
    );
}

#[test]
fn misspelt_fields_are_refused_and_unknown_ones_said() {
    check(
        &format!(
            "{CART}
kind: VirtualService
metadata: {{ name: a, namespace: shop, lables: {{ x: y }} }}
spec: {{ hosts: [a.example], http: [{{ directResponse: {{ status: 200 }} }}] }}
---
kind: VirtualService
metadata: {{ name: b, namespace: shop }}
spec: {{ hosts: [b.example], http: [{{ route: [{{ destination: {{ host: cart }}, wieght: 1 }}] }}] }}
---
kind: VirtualService
metadata: {{ name: c, namespace: shop }}
spec: {{ hosts: [c.example], http: [{{ directResponse: {{ status: 200 }}, brandNewThing: 1 }}] }}
sepc: {{}}
---
kind: VirtualService
metadata: {{ name: d, namespace: shop }}
spec: {{ hosts: [d.example], http: [{{ directResponse: {{ status: 200 }}, brandNewThing: 1 }}] }}
---
kind: VirtualService
metadata: {{ name: e, namespace: shop }}
spec: {{ hosts: e.example }}
---
kind: VirtualService
metadata: {{ name: f, namespace: shop }}
spec: {{ hosts: [f.example], http: [{{ timeout: 5, directResponse: {{ status: 2.5 }} }}] }}
"
        ),
        routes,
        expect![[r#"
            error VirtualService shop/a metadata.lables: unknown field; did you mean `labels`?
            error VirtualService shop/b spec.http[0].route[0].wieght: unknown field; did you mean `weight`?
            error VirtualService shop/c sepc: unknown field; did you mean `spec`?
            error VirtualService shop/e spec.hosts: must be a list, not the text "e.example"
            error VirtualService shop/f spec.http[0].directResponse.status: must be a whole number from 0 to 4294967295, not the number 2.5
            warning VirtualService shop/c spec.http[0].brandNewThing: unknown field, ignored
            warning VirtualService shop/d spec.http[0].brandNewThing: unknown field, ignored
            VirtualService shop/d [Exact("d.example")]
              default [] 200 OK b""
        "#]],
    );
}

#[test]
fn protobuf_spelling_and_lists_are_taken() {
    check(
        &format!(
            "{CART}
apiVersion: v1
kind: List
items:
- apiVersion: networking.istio.io/v1alpha3
  kind: VirtualService
  metadata: {{ name: a, namespace: shop, creationTimestamp: null }}
  spec:
    hosts: [cart]
    export_to: null
    http:
    - match: [{{ query_params: {{ q: {{ exact: a }} }}, port: '80', uri: null }}]
      timeout: 1m1.5s
      route: [{{ destination: {{ host: cart, port: {{ number: 80.0 }} }}, weight: '5' }}]
"
        ),
        routes,
        expect![[r#"
            VirtualService shop/a [Exact("cart.shop.svc.cluster.local")]
              default [?q =a, port 80] /5 cart.shop.svc.cluster.local:80/* 5 timeout 61.5s
        "#]],
    );
}

#[test]
fn json_is_read_too() {
    let file = Arc::from("a.json");
    let text = "{\n\t\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"a\"}}";
    let parsed = parse(text, Some(&file), &MeshSettings::default());
    assert_eq!(parsed.accepted.len(), 1, "{parsed:?}");
    assert!(parse("{", Some(&file), &MeshSettings::default()).unreadable);
}

#[test]
fn pods_need_no_uid_and_booleans_may_be_words() {
    check(
        "
kind: Pod
metadata: { name: a }
spec: { hostNetwork: yes }
---
kind: Pod
metadata: { name: b, uid: u }
spec: { hostNetwork: off }
---
kind: Pod
metadata: { name: c, uid: u }
",
        workloads,
        expect![[r#"
            error Pod default/c metadata.uid: is that of Pod default/b too
            default/a spiffe://cluster.local/ns/default/sa/default [] host-network Permissive {}
            default/b spiffe://cluster.local/ns/default/sa/default [] Permissive {}
        "#]],
    );
}

/// Valid text to break.
const SEED: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: cart, namespace: shop, labels: { a: '1' } }
spec:
  hosts: [cart, '*.example.com']
  http:
  - match: [{ uri: { regex: '/a(.*)' }, headers: { x: { prefix: y } }, port: 80 }]
    rewrite: { uriRegexRewrite: { match: '/(.)', rewrite: '/\\1' } }
    route:
    - { destination: { host: cart, subset: v1, port: { number: 80 } }, weight: 90 }
    - { destination: { host: cart, subset: v2 }, weight: 10 }
    headers: { request: { set: { a: b }, remove: [c] } }
    timeout: 1.5s
    retries: { attempts: 3, perTryTimeout: 1s, retryOn: '5xx,503' }
    fault: { delay: { fixedDelay: 1s, percentage: { value: 0.5 } }, abort: { grpcStatus: OK, percentage: { value: 1 } } }
    mirror: { host: cart }
    mirrorPercentage: { value: 10 }
    corsPolicy: { allowOrigins: [{ prefix: a }], allowMethods: [GET], maxAge: 1h }
  - match: [{ uri: { prefix: /d } }]
    delegate: { name: more }
  - redirect: { uri: /x, redirectCode: 302 }
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: more, namespace: shop }
spec: { http: [{ match: [{ uri: { exact: /d/e } }], route: [{ destination: { host: cart } }] }] }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: cart, namespace: shop }
spec:
  host: cart
  workloadSelector: { matchLabels: { a: b } }
  subsets: [{ name: v1, labels: { version: v1 } }]
  trafficPolicy:
    loadBalancer: { consistentHash: { httpCookie: { name: c, ttl: 1h }, maglev: { tableSize: 7 } } }
    connectionPool: { tcp: { maxConnections: 1, idleTimeout: 0s }, http: { maxRetries: 2 } }
    outlierDetection: { interval: 1s, maxEjectionPercent: 50 }
    retryBudget: { percent: 12.5 }
---
apiVersion: v1
kind: Pod
metadata: { name: p, uid: u, annotations: { traffic.sidecar.istio.io/excludeOutboundPorts: '80,x' } }
status: { podIP: 10.0.0.1 }
---
apiVersion: v1
kind: Service
metadata: { name: cart, namespace: shop }
spec: { clusterIP: 10.1.0.1, ports: [{ name: http, port: 80 }] }
";

proptest! {
    /// Bytes replaced, cut out or put in anywhere: findings, never a panic.
    #[test]
    fn broken_text_never_panics(
        changes in prop::collection::vec((0..SEED.len(), any::<Option<u8>>(), 0..3_u8), 1..12),
    ) {
        let mut text = SEED.as_bytes().to_vec();
        for (at, byte, how) in changes {
            let at = at.min(text.len().saturating_sub(1));
            match (how, byte) {
                (0, Some(byte)) => text[at] = byte,
                (1, Some(byte)) => text.insert(at, byte),
                (_, _) => { text.remove(at); }
            }
        }
        yaml_compile(&text);
    }

    /// Pieces of YAML and of this schema in any order.
    #[test]
    fn shuffled_words_never_panic(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "kind: ", "VirtualService", "\n", "  ", "- ", ": ", "{", "}", "[", "]", "'", "\"",
                "---\n", "metadata: ", "name: a", "spec:\n", "apiVersion: v1\n", "hosts", "http",
                "route", "&a ", "*a", "!!str ", "|\n", ">\n", "? ", "<<: ", "\t", "#", "%", "é",
            ]),
            0..60,
        ),
    ) {
        yaml_compile(words.concat().as_bytes());
    }
}
