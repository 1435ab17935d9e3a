//! Destination rules: merge, inheritance of blocks, validation.

use expect_test::expect;

use super::{check, nothing, rules};
use crate::model::{Client, Snapshot};

#[test]
fn blocks_are_inherited_whole_and_port_entries_replace_their_level() {
    check(
        "
kind: Service
metadata: { name: cart, namespace: shop }
spec: { clusterIP: 10.1.0.1, ports: [{ name: http, port: 80 }] }
---
kind: DestinationRule
metadata: { name: cart, namespace: shop }
spec:
  host: cart
  trafficPolicy:
    loadBalancer: { simple: ROUND_ROBIN }
    connectionPool: { tcp: { connectTimeout: 3s } }
    portLevelSettings:
    - { port: { number: 90 }, loadBalancer: { simple: RANDOM } }
  subsets:
  - { name: v1, labels: { version: v1 } }
  - name: v2
    labels: { version: v2 }
    trafficPolicy:
      loadBalancer: { simple: LEAST_CONN }
      portLevelSettings:
      - { port: { number: 91 }, connectionPool: { tcp: { connectTimeout: 5s } } }
  - name: v3
    trafficPolicy: { connectionPool: { http: { maxRetries: 1 } } }
",
        rules,
        expect![[r#"
            DestinationRule shop/cart Exact("cart.shop.svc.cluster.local") Everyone
              any: RoundRobin 3s
              port 90: Random 10s
              v1 {"version": "v1"}: RoundRobin 3s
              v1 port 90: Random 10s
              v2 {"version": "v2"}: LeastRequest 3s
              v2 port 90: LeastRequest 10s
              v2 port 91: LeastRequest 5s
              v3 {}: RoundRobin 10s pool max_retries: 1
              v3 port 90: Random 10s pool max_retries: 1
        "#]],
    );
}

#[test]
fn rules_of_one_host_are_merged_and_the_oldest_wins() {
    check(
        "
kind: Service
metadata: { name: cart, namespace: shop }
spec: { clusterIP: 10.1.0.1, ports: [{ name: http, port: 80 }] }
---
kind: DestinationRule
metadata: { name: a, namespace: shop, creationTimestamp: '2026-02-01T00:00:00Z' }
spec:
  host: cart
  trafficPolicy: { loadBalancer: { simple: RANDOM } }
  subsets: [{ name: v1, labels: { version: wrong } }, { name: v2, labels: { version: v2 } }]
---
kind: DestinationRule
metadata: { name: b, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z' }
spec: { host: cart.shop.svc.cluster.local, subsets: [{ name: v1, labels: { version: v1 } }] }
---
kind: DestinationRule
metadata: { name: c, namespace: shop, creationTimestamp: '2026-03-01T00:00:00Z' }
spec: { host: cart, trafficPolicy: { loadBalancer: { simple: PASSTHROUGH } } }
---
kind: DestinationRule
metadata: { name: d, namespace: shop }
spec: { host: cart, exportTo: [other, '.'] }
---
kind: DestinationRule
metadata: { name: e, namespace: shop }
spec: { host: '*.shop.svc.cluster.local' }
---
kind: DestinationRule
metadata: { name: f, namespace: shop }
spec: { host: cart, workloadSelector: { matchLabels: { app: x } }, subsets: [{ name: v9 }] }
",
        rules,
        expect![[r#"
            warning DestinationRule shop/a spec.subsets[0].name: `v1` is defined by an older rule of this host already, which counts
            warning DestinationRule shop/c spec.trafficPolicy: no effect: DestinationRule shop/a, which is older, has one for this host
            warning DestinationRule shop/c spec.trafficPolicy.loadBalancer.simple: PASSTHROUGH has no effect: a virtual address is no endpoint, so one is chosen at random
            DestinationRule shop/f Exact("cart.shop.svc.cluster.local") Everyone for {"app": "x"}
              any: LeastRequest 10s
              v9 {}: LeastRequest 10s
            DestinationRule shop/d Exact("cart.shop.svc.cluster.local") Namespaces(["other", "shop"])
              any: LeastRequest 10s
            DestinationRule shop/b Exact("cart.shop.svc.cluster.local") Everyone
              any: Random 10s
              v1 {"version": "v1"}: Random 10s
              v2 {"version": "v2"}: Random 10s
            DestinationRule shop/e Suffix(".shop.svc.cluster.local") Everyone
              any: LeastRequest 10s
        "#]],
    );
}

#[test]
fn the_rule_of_the_clients_namespace_goes_first() {
    check(
        "
kind: Service
metadata: { name: cart, namespace: shop }
spec: { clusterIP: 10.1.0.1, ports: [{ name: http, port: 80 }] }
---
kind: DestinationRule
metadata: { name: own, namespace: shop }
spec: { host: cart, exportTo: [., far] }
---
kind: DestinationRule
metadata: { name: client, namespace: web }
spec: { host: cart.shop.svc.cluster.local, exportTo: [.] }
---
kind: DestinationRule
metadata: { name: root, namespace: istio-system }
spec: { host: '*' }
",
        |snapshot| {
            let service = snapshot.services.values().next().unwrap();
            let found = ["shop", "web", "far", "away", "istio-system"].map(|client| {
                let rule = snapshot.destination_rule(service, Client::of_namespace(client));
                let name = rule.map(|rule| rule.object.to_string()).unwrap_or_default();
                format!("{client}: {name}\n")
            });
            found.concat()
        },
        expect![[r#"
            shop: DestinationRule shop/own
            web: DestinationRule web/client
            far: DestinationRule shop/own
            away: DestinationRule istio-system/root
            istio-system: DestinationRule istio-system/root
        "#]],
    );
}

#[test]
fn a_rule_for_some_clients_goes_before_one_for_all() {
    let rule = |name: &str, namespace: &str, spec: &str| {
        format!(
            "
---
kind: DestinationRule
metadata: {{ name: {name}, namespace: {namespace} }}
spec: {{ host: '{spec} }}
"
        )
    };
    let cart = "cart.shop.svc.cluster.local'";
    let rules = [
        rule("all", "web", cart),
        rule("some", "web", &format!("{cart}, workloadSelector: {{ matchLabels: {{ app: a }} }}")),
        rule(
            "second",
            "web",
            &format!("{cart}, workloadSelector: {{ matchLabels: {{ v: '1' }} }}"),
        ),
        // A host that is less specific comes later, whomever it is for.
        rule(
            "wide",
            "web",
            "*.shop.svc.cluster.local', workloadSelector: { matchLabels: { app: b } }",
        ),
        rule(
            "only-some",
            "far",
            &format!("{cart}, workloadSelector: {{ matchLabels: {{ app: a }} }}"),
        ),
        // For the clients of its own namespace, whatever it is exported to.
        rule(
            "own",
            "shop",
            &format!("{cart}, exportTo: ['*'], workloadSelector: {{ matchLabels: {{ app: a }} }}"),
        ),
        rule("everyone", "shop", &format!("{cart}, exportTo: ['*']")),
    ];
    check(
        &format!(
            "
kind: Service
metadata: {{ name: cart, namespace: shop }}
spec: {{ clusterIP: 10.1.0.1, ports: [{{ name: http, port: 80 }}] }}{}",
            rules.concat()
        ),
        rules_of_clients,
        expect![[r#"
            warning DestinationRule shop/own spec.exportTo[0]: no effect: a rule with `workloadSelector` is for its own namespace
            web {"app": "a", "other": "label"}: DestinationRule web/some
            web {"v": "1"}: DestinationRule web/second
            web {"app": "b"}: DestinationRule web/all
            web {}: DestinationRule web/all
            far {"app": "a"}: DestinationRule far/only-some
            far {"app": "b"}: DestinationRule shop/everyone
            shop {"app": "a"}: DestinationRule shop/own
            far: DestinationRule shop/everyone
        "#]],
    );
}

/// Which rule holds for pods with these labels, and for a namespace's in general.
fn rules_of_clients(snapshot: &Snapshot) -> String {
    let service = snapshot.services.values().next().unwrap();
    let clients: [(&str, &[(&str, &str)]); 7] = [
        ("web", &[("app", "a"), ("other", "label")]),
        ("web", &[("v", "1")]),
        ("web", &[("app", "b")]),
        ("web", &[]),
        ("far", &[("app", "a")]),
        ("far", &[("app", "b")]),
        ("shop", &[("app", "a")]),
    ];
    let seen = clients.map(|(namespace, labels)| {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let client = Client { namespace, labels: Some(&labels) };
        let rule = snapshot.destination_rule(service, client).unwrap();
        format!("{namespace} {labels:?}: {}\n", rule.object)
    });
    let unnamed = snapshot.destination_rule(service, Client::of_namespace("far")).unwrap();
    seen.concat() + &format!("far: {}\n", unnamed.object)
}

#[test]
fn mistakes_are_named_by_field() {
    check(
        "
kind: DestinationRule
metadata: { name: a }
spec:
  host: cart
  trafficPolicy: { loadBalancer: { simple: LEST_CONN } }
---
kind: DestinationRule
metadata: { name: b }
spec: { host: cart, trafficPolicy: { loadBalancer: { consistentHash: { httpsHeaderName: x } } } }
---
kind: DestinationRule
metadata: { name: c }
spec:
  host: cart
  trafficPolicy:
    portLevelSettings: [{ loadBalancer: { simple: RANDOM } }]
    connectionPool: { tcp: { connectTimeout: 1us } }
  subsets: [{ name: 'a b' }, { name: v1 }, { name: v1 }]
---
kind: DestinationRule
metadata: { name: d }
spec: { subsets: [{ name: v1, labels: { version: 1 } }] }
---
kind: DestinationRule
metadata: { name: e }
spec:
  host: cart
  trafficPolicy:
    tls: { mode: DISABLE }
    outlierDetection: { consecutive5xxErrors: 1 }
    connectionPool: { tcp: { maxConnections: 1 } }
    portLevelSettings: [{ port: { number: 80 }, tls: { mode: ISTIO_MUTUAL } }]
",
        nothing,
        expect![[r#"
            error DestinationRule default/a spec.trafficPolicy.loadBalancer.simple: `LEST_CONN` is not known; did you mean `LEAST_CONN`?
            error DestinationRule default/b spec.trafficPolicy.loadBalancer.consistentHash.httpsHeaderName: unknown field; did you mean `httpHeaderName`?
            error DestinationRule default/c spec.subsets[0].name: `a b` is not a name of letters, digits and `-`
            error DestinationRule default/c spec.trafficPolicy.connectionPool.tcp.connectTimeout: shorter than 1ms
            error DestinationRule default/c spec.trafficPolicy.portLevelSettings[0].port.number: missing, or not a port
            error DestinationRule default/d spec.subsets[0].labels.version: must be text, but YAML reads it as 1: put it in quotes
            warning DestinationRule default/b spec.trafficPolicy.loadBalancer.consistentHash: names no key, such as `httpHeaderName`: any endpoint is chosen
            warning DestinationRule default/c spec.subsets[2].name: `v1` is there twice: the first counts
            warning DestinationRule default/e spec.host: no service `cart.default.svc.cluster.local`
            warning DestinationRule default/e spec.trafficPolicy.tls.mode: DISABLE is ignored: mutual TLS is used wherever both sides are in the mesh
        "#]],
    );
}
