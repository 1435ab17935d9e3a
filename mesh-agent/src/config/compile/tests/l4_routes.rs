//! Routes of connections that are not HTTP: `tls` and `tcp` of a VirtualService.

use expect_test::expect;

use super::{Bench, CART, check, l4_routes, routes};

#[test]
fn every_field_of_a_route() {
    check(
        &format!(
            "{CART}
kind: VirtualService
metadata: {{ name: cart, namespace: shop }}
spec:
  hosts: [cart, secure.example, '*.Wild.example']
  tls:
  - match:
    - sniHosts: [Secure.example, a.wild.example]
      port: 443
      destinationSubnets: [10.0.0.0/8, 192.0.2.1]
      sourceLabels: {{ app: client }}
      sourceNamespace: bank
    - sniHosts: ['*.b.wild.example']
      gateways: [ingress]
    route: [{{ destination: {{ host: cart, subset: v1, port: {{ number: 80 }} }} }}]
  - match: [{{ sniHosts: [secure.example], gateways: [ingress] }}]
    route: [{{ destination: {{ host: cart }} }}]
  tcp:
  - match: [{{ port: 9000, sourceSubnet: 10.1.0.0/16 }}]
    route:
    - {{ destination: {{ host: cart, subset: v1 }}, weight: 90 }}
    - {{ destination: {{ host: cart, subset: v2 }}, weight: 10 }}
    - {{ destination: {{ host: cart }}, weight: 0 }}
  - route: [{{ destination: {{ host: cart }} }}]
"
        ),
        l4_routes,
        expect![[r#"
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local"), Exact("secure.example"), Suffix(".wild.example")]
              tls [sni [Exact("secure.example"), Exact("a.wild.example")], to [10.0.0.0/8, 192.0.2.1/32], port 443, from {"app": "client"}, from namespace bank] /1 cart.shop.svc.cluster.local:80/v1 1
              tcp [port 9000, from 10.1.0.0/16] /100 cart.shop.svc.cluster.local/v1 90 cart.shop.svc.cluster.local/v2 10
              tcp [] /1 cart.shop.svc.cluster.local/* 1
        "#]],
    );
}

#[test]
fn bad_routes_name_their_fields() {
    check(
        &format!(
            "{CART}
kind: VirtualService
metadata: {{ name: cart, namespace: shop }}
spec:
  hosts: [cart, '*.example']
  tls:
  - route: [{{ destination: {{ host: cart }} }}]
  - match: [{{ port: 443 }}]
    route: [{{ destination: {{ host: cart }} }}]
  - match: [{{ sniHosts: [other.org, a_b..c, '*.a.example', example] }}]
  tcp:
  - match:
    - {{ port: 70000, destinationSubnets: [10.0.0.0/33], sourceSubnet: here }}
    route:
    - {{ destination: {{ host: cart }}, weight: 0 }}
    - {{ destination: {{ host: cart }}, weight: 0 }}
  - route: [{{ weight: -1 }}]
"
        ),
        l4_routes,
        expect![[r#"
            error VirtualService shop/cart spec.tcp[0].match[0].destinationSubnets[0]: `10.0.0.0/33` is neither an address nor a range of addresses
            error VirtualService shop/cart spec.tcp[0].match[0].port: 70000 is not a port
            error VirtualService shop/cart spec.tcp[0].match[0].sourceSubnet: `here` is neither an address nor a range of addresses
            error VirtualService shop/cart spec.tcp[0].route: the weights add up to 0, so no destination can be chosen
            error VirtualService shop/cart spec.tcp[1].route[0].weight: -1 is negative
            error VirtualService shop/cart spec.tls[0].match: missing: a TLS route is chosen by `sniHosts`
            error VirtualService shop/cart spec.tls[1].match[0].sniHosts: missing: name at least one
            error VirtualService shop/cart spec.tls[2].match[0].sniHosts[0]: `other.org` is not among the object's `hosts`
            error VirtualService shop/cart spec.tls[2].match[0].sniHosts[1]: `a_b..c` is not a host name, or `*.` with a name
            error VirtualService shop/cart spec.tls[2].match[0].sniHosts[3]: `example` is not among the object's `hosts`
            error VirtualService shop/cart spec.tls[2].route: missing: name at least one destination
        "#]],
    );
}

#[test]
fn references_are_checked_and_the_last_good_version_stays() {
    let route = |subset: &str| {
        format!(
            "{CART}
kind: VirtualService
metadata: {{ name: cart, namespace: shop }}
spec:
  hosts: [cart]
  tcp: [{{ route: [{{ destination: {{ host: cart, subset: {subset} }} }}] }}]
"
        )
    };
    let mut bench = Bench::new();
    assert_eq!(bench.apply("", &route("v1"), 1000), "");
    let found = bench.apply("", &route("v3"), 1001);
    let text = found + &l4_routes(&bench.snapshot);
    expect![[r#"
        error VirtualService shop/cart spec.tcp[0].route[0].destination.subset: no DestinationRule of `cart.shop.svc.cluster.local` has a subset `v3`; did you mean `v1`?
        warning VirtualService shop/cart: its last good version stays in force
        VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
          tcp [] /1 cart.shop.svc.cluster.local/v1 1
    "#]].assert_eq(&text);
}

#[test]
fn hosts_are_owned_by_kind_of_rule() {
    let of = |name: &str, day: u32, rule: &str| {
        format!(
            "
kind: VirtualService
metadata: {{ name: {name}, namespace: shop, creationTimestamp: '2026-01-0{day}T00:00:00Z' }}
spec:
  hosts: [cart]
  {rule}: [{{ route: [{{ destination: {{ host: cart }} }}] }}]
"
        )
    };
    let all = [of("tcp", 1, "tcp"), of("http", 2, "http"), of("late", 3, "tcp")].join("---");
    let mut bench = Bench::new();
    let found = bench.apply("", &format!("{CART}{all}"), 1000);
    expect![[r#"
        warning VirtualService shop/late spec.hosts[0]: shadowed: VirtualService shop/tcp, which is older, owns this host
    "#]].assert_eq(&found);
    let host = "cart.shop.svc.cluster.local";
    let owner = bench.snapshot.virtual_service(host, "shop").unwrap();
    assert_eq!(&*owner.object.name, "http");
    let owner = bench.snapshot.l4_virtual_service(host, "shop").unwrap();
    assert_eq!(&*owner.object.name, "tcp");
}

#[test]
fn they_stand_beside_delegated_http_routes_and_without_them() {
    let root = format!(
        "{CART}
kind: VirtualService
metadata: {{ name: root, namespace: shop }}
spec:
  hosts: [cart]
  http: [{{ delegate: {{ name: leaf }} }}]
  tcp: [{{ route: [{{ destination: {{ host: cart, subset: v1 }} }}] }}]
"
    );
    let leaf = "---
kind: VirtualService
metadata: { name: leaf, namespace: shop }
spec: { http: [{ route: [{ destination: { host: cart, subset: v2 } }] }] }
";
    let both = |snapshot: &_| routes(snapshot) + &l4_routes(snapshot);
    check(
        &format!("{root}{leaf}"),
        both,
        expect![[r#"
        VirtualService shop/root [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/v2 1
        VirtualService shop/root [Exact("cart.shop.svc.cluster.local")]
          tcp [] /1 cart.shop.svc.cluster.local/v1 1
    "#]],
    );
    let mut bench = Bench::new();
    let found = bench.apply("", &root, 1000);
    expect![[r#"
        warning VirtualService shop/root spec.http[0].delegate: VirtualService shop/leaf is not there: this route is left out
    "#]].assert_eq(&found);
    let host = "cart.shop.svc.cluster.local";
    assert!(bench.snapshot.virtual_service(host, "shop").is_none(), "no HTTP rule is left");
    assert_eq!(bench.snapshot.l4_virtual_service(host, "shop").unwrap().l4.tcp.len(), 1);
}
