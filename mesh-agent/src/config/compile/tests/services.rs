//! Services, endpoint slices, protocol of ports.

use expect_test::expect;

use super::{check, services};

#[test]
fn slices_give_endpoints_by_port_name_in_both_families() {
    check(
        "
kind: Service
metadata: { name: cart, namespace: shop }
spec:
  clusterIP: 10.1.0.1
  clusterIPs: [10.1.0.1, 'fd00:1::1']
  externalIPs: [192.0.2.1]
  ports:
  - { name: http, port: 80, targetPort: web }
  - { name: tcp-admin, port: 90 }
  - { name: dns, port: 53, protocol: UDP }
status: { loadBalancer: { ingress: [{ ip: 192.0.2.2 }, { hostname: lb.example }] } }
---
kind: EndpointSlice
metadata: { name: cart-4, namespace: shop, labels: { kubernetes.io/service-name: cart } }
addressType: IPv4
ports: [{ name: http, port: 8080 }, { name: tcp-admin, port: 9090, protocol: TCP }, { name: x }]
endpoints:
- { addresses: [10.0.0.2], conditions: { ready: false, serving: true, terminating: true } }
- { addresses: [10.0.0.1], conditions: {}, targetRef: { kind: Pod, name: cart-1, namespace: shop } }
---
kind: EndpointSlice
metadata: { name: cart-6, namespace: shop, labels: { kubernetes.io/service-name: cart } }
addressType: IPv6
ports: [{ name: http, port: 8080 }]
endpoints: [{ addresses: ['fd00::1'], conditions: { ready: true } }]
---
kind: EndpointSlice
metadata: { name: other, namespace: shop, labels: { kubernetes.io/service-name: other } }
addressType: IPv4
ports: [{ name: http, port: 1 }]
endpoints: null
---
kind: Pod
metadata: { name: cart-1, namespace: shop, uid: u1 }
status: { podIP: 10.0.0.1, podIPs: [{ ip: 10.0.0.1 }, { ip: 'fd00::1' }] }
",
        services,
        expect![[r#"
            shop/cart cart.shop.svc.cluster.local ClusterIp [10.1.0.1, fd00:1::1, 192.0.2.1, 192.0.2.2]
              80 "http" Http
                10.0.0.1:8080 shop/cart-1
                10.0.0.2:8080  terminating
                [fd00::1]:8080 shop/cart-1
              90 "tcp-admin" Tcp
                10.0.0.1:9090 shop/cart-1
                10.0.0.2:9090  terminating
        "#]],
    );
}

#[test]
fn unready_endpoints_count_where_they_are_published() {
    check(
        "
kind: Service
metadata: { name: db }
spec: { clusterIP: None, publishNotReadyAddresses: true, ports: [{ port: 5432 }] }
---
kind: EndpointSlice
metadata: { name: db-1, labels: { kubernetes.io/service-name: db } }
ports: [{ name: '', port: 5432 }]
endpoints: [{ addresses: [10.0.0.1], conditions: { ready: false } }]
",
        services,
        expect![[r#"
            default/db db.default.svc.cluster.local Headless []
              5432 "" Detect
                10.0.0.1:5432 
            headless 10.0.0.1:5432 -> default/db:5432
        "#]],
    );
}

#[test]
fn an_endpoint_of_two_headless_services_belongs_to_neither() {
    check(
        "
kind: Service
metadata: { name: a }
spec: { clusterIP: None, ports: [{ name: x, port: 80 }, { name: y, port: 8080 }] }
---
kind: Service
metadata: { name: b }
spec: { clusterIP: None, ports: [{ name: x, port: 9090 }] }
---
kind: EndpointSlice
metadata: { name: a, labels: { kubernetes.io/service-name: a } }
ports: [{ name: x, port: 8080 }, { name: y, port: 8080 }]
endpoints: [{ addresses: [10.0.0.1] }]
---
kind: EndpointSlice
metadata: { name: a2, labels: { kubernetes.io/service-name: a } }
ports: [{ name: x, port: 9090 }]
endpoints: [{ addresses: [10.0.0.1] }]
---
kind: EndpointSlice
metadata: { name: b, labels: { kubernetes.io/service-name: b } }
ports: [{ name: x, port: 9090 }]
endpoints: [{ addresses: [10.0.0.1] }]
",
        services,
        expect![[r#"
            default/a a.default.svc.cluster.local Headless []
              80 "x" Detect
                10.0.0.1:8080 
                10.0.0.1:9090 
              8080 "y" Detect
                10.0.0.1:8080 
            default/b b.default.svc.cluster.local Headless []
              9090 "x" Detect
                10.0.0.1:9090 
            headless 10.0.0.1:8080 -> default/a:8080
        "#]],
    );
}

#[test]
fn external_names_and_shared_addresses() {
    check(
        "
kind: Service
metadata: { name: away }
spec: { type: ExternalName, externalName: API.example.com, ports: [{ port: 443, appProtocol: https }] }
---
kind: Service
metadata: { name: old, creationTimestamp: '2026-01-01T00:00:00Z' }
spec: { clusterIP: 10.1.0.9, ports: [{ port: 80 }] }
---
kind: Service
metadata: { name: new, creationTimestamp: '2026-02-01T00:00:00Z' }
spec: { clusterIP: 10.1.0.9, externalIPs: [192.0.2.8], ports: [{ port: 80 }] }
---
kind: Service
metadata: { name: newest, creationTimestamp: '2026-03-01T00:00:00Z' }
spec: { externalIPs: [192.0.2.8], ports: [{ port: 80 }] }
status: { loadBalancer: { ingress: [{ ip: 10.1.0.9 }] } }
",
        |snapshot| {
            let owner = &snapshot.services_by_ip[&"10.1.0.9".parse().unwrap()].key;
            format!("{}10.1.0.9 -> {owner}\n", services(snapshot))
        },
        expect![[r#"
            warning Service default/new spec.clusterIPs: 10.1.0.9 belongs to Service default/old, which is older
            warning Service default/newest spec.externalIPs: 192.0.2.8 belongs to Service default/new, which is older
            warning Service default/newest status.loadBalancer.ingress: 10.1.0.9 belongs to Service default/old, which is older
            default/away away.default.svc.cluster.local ExternalName("api.example.com") []
              443 "" Tls
            default/new new.default.svc.cluster.local ClusterIp [10.1.0.9, 192.0.2.8]
              80 "" Detect
            default/newest newest.default.svc.cluster.local ClusterIp [192.0.2.8, 10.1.0.9]
              80 "" Detect
            default/old old.default.svc.cluster.local ClusterIp [10.1.0.9]
              80 "" Detect
            10.1.0.9 -> default/old
        "#]],
    );
}
