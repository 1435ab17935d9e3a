//! Which services are direct.

use expect_test::expect;

use super::{Snapshot, check};

fn direct(snapshot: &Snapshot) -> String {
    let mut keys: Vec<String> = snapshot.direct.iter().map(ToString::to_string).collect();
    keys.sort();
    keys.join(" ")
}

#[test]
fn services_are_direct_where_their_namespace_asks_and_no_object_has_a_say() {
    check(
        "
kind: Namespace
metadata: { name: db, labels: { malha.dev/same-node: direct } }
---
kind: Namespace
metadata: { name: shop, labels: { malha.dev/same-node: proxied } }
---
kind: Namespace
metadata: { name: typo, labels: { malha.dev/same-node: Direct } }
---
kind: Service
metadata: { name: plain, namespace: db }
spec: { clusterIP: 10.1.0.1, ports: [{ name: tcp, port: 1 }] }
---
kind: Service
metadata: { name: sticky, namespace: db }
spec: { clusterIP: 10.1.0.2, sessionAffinity: ClientIP, ports: [{ name: tcp, port: 1 }] }
---
kind: Service
metadata: { name: headless, namespace: db }
spec: { clusterIP: None, ports: [{ name: tcp, port: 1 }] }
---
kind: Service
metadata: { name: ruled, namespace: db }
spec: { clusterIP: 10.1.0.3, ports: [{ name: tcp, port: 1 }] }
---
kind: DestinationRule
metadata: { name: ruled, namespace: shop }
spec: { host: ruled.db.svc.cluster.local }
---
kind: Service
metadata: { name: routed, namespace: db }
spec: { clusterIP: 10.1.0.4, ports: [{ name: tcp, port: 1 }] }
---
kind: VirtualService
metadata: { name: routed, namespace: db }
spec: { hosts: [routed], http: [{ route: [{ destination: { host: plain } }] }] }
---
kind: Service
metadata: { name: other, namespace: shop }
spec: { clusterIP: 10.1.0.5, ports: [{ name: tcp, port: 1 }] }
---
kind: Service
metadata: { name: mistaken, namespace: typo }
spec: { clusterIP: 10.1.0.6, ports: [{ name: tcp, port: 1 }] }
",
        direct,
        expect![[r#"
            error Namespace typo metadata.labels[malha.dev/same-node]: `Direct` is neither `direct` nor `proxied`
            db/plain"#]],
    );
}
