//! `http[].delegate`.

use expect_test::{Expect, expect};

use super::{Bench, CART, check, route_text, routes};

/// A root shop/root with these `http[]` entries, and a delegate shop/leaf with those.
fn world(root: &str, leaf: &str) -> String {
    format!(
        "{CART}kind: VirtualService
metadata: {{ name: root, namespace: shop }}
spec:
  hosts: [cart]
  http:
{root}
---
kind: VirtualService
metadata: {{ name: leaf, namespace: shop }}
spec:
  http:
{leaf}
"
    )
}

fn check_world(root: &str, leaf: &str, expected: Expect) {
    check(&world(root, leaf), routes, expected);
}

/// A delegate's entry for the service.
const ANY: &str = "  - { route: [{ destination: { host: cart } }] }";

#[test]
fn entries_stand_in_the_place_of_the_one_that_delegates() {
    check_world(
        "
  - name: root
    match: [{ name: m, uri: { prefix: /a }, headers: { x: {} } }]
    delegate: { name: leaf }
  - { name: last, route: [{ destination: { host: cart } }] }
",
        "
  - name: one
    match: [{ name: n, uri: { prefix: /a/b }, headers: { x: { exact: y }, z: { exact: w } } }]
    route: [{ destination: { host: cart, subset: v1 } }]
  - name: two
    match: [{ method: { exact: GET } }, { uri: { exact: /a/c } }]
    route: [{ destination: { host: cart, subset: v2 } }]
  - route: [{ destination: { host: cart } }]
",
        expect![[r#"
            VirtualService shop/root [Exact("cart.shop.svc.cluster.local")]
              root-one [name=m-n, uri ^/a/b, x =y, z =w] /1 cart.shop.svc.cluster.local/v1 1
              root-two [name=m, uri ^/a, method =GET, x present | name=m, uri =/a/c, x present] /1 cart.shop.svc.cluster.local/v2 1
              root [name=m, uri ^/a, x present] /1 cart.shop.svc.cluster.local/* 1
              last [] /1 cart.shop.svc.cluster.local/* 1
        "#]],
    );
}

#[test]
fn what_a_delegate_does_not_write_comes_from_its_root() {
    check_world(
        "
  - match: [{ uri: { prefix: /a } }]
    delegate: { name: leaf, namespace: shop }
    rewrite: { uri: /r }
    timeout: 1s
    retries: { attempts: 7 }
    fault: { abort: { httpStatus: 500, percentage: { value: 1 } } }
    mirror: { host: cart }
    corsPolicy: { allowOrigins: [{ exact: a }] }
    headers: { request: { set: { from: root, host: root.example } } }
",
        "
  - match: [{ uri: { exact: /a/own } }]
    rewrite: { uri: /l }
    timeout: 0s
    retries: {}
    fault: { delay: { fixedDelay: 1s, percentage: { value: 2 } } }
    mirrors: [{ destination: { host: cart, subset: v1 } }]
    corsPolicy: { allowOrigins: [{ exact: b }] }
    headers: { response: { set: { from: leaf } } }
    route: [{ destination: { host: cart } }]
  - match: [{ uri: { exact: /a/root } }]
    route: [{ destination: { host: cart } }]
",
        expect![[r#"
            VirtualService shop/root [Exact("cart.shop.svc.cluster.local")]
              default [uri =/a/own] /1 cart.shop.svc.cluster.local/* 1 rewrite /l retries 0 mirror cart.shop.svc.cluster.local/v1 100% response from="leaf" delay 1s of 2% cors [=b]
              default [uri =/a/root] /1 cart.shop.svc.cluster.local/* 1 rewrite /r authority "root.example" timeout 1s retries 7 mirror cart.shop.svc.cluster.local/* 100% request from="root" abort Http(500) of 1% cors [=a]
        "#]],
    );
}

#[test]
fn a_delegate_must_narrow_its_root() {
    check_world(
        "
  - match:
    - uri: { prefix: /a }
      method: { regex: 'GET|HEAD' }
      headers: { x: { exact: y } }
      withoutHeaders: { w: { exact: v } }
      port: 80
      sourceLabels: { app: web }
      sourceNamespace: shop
    delegate: { name: leaf }
",
        &[
            "{ name: narrower, uri: { exact: /a/b }, withoutHeaders: { w: { exact: u } }, sourceLabels: { v: '1' } }",
            "{ name: same, port: 80, sourceNamespace: shop, sourceLabels: { app: web }, headers: { x: { exact: y } } }",
            "{ name: other-prefix, uri: { prefix: /b } }",
            "{ name: shorter-prefix, uri: { prefix: / } }",
            "{ name: regex, uri: { regex: /a.* } }",
            "{ name: root-has-a-regex, method: { exact: GET } }",
            "{ name: header, headers: { x: { prefix: y } } }",
            "{ name: port, port: 81 }",
            "{ name: labels, sourceLabels: { app: other } }",
            "{ name: namespace, sourceNamespace: other }",
            "{ name: case, uri: { prefix: /a }, ignoreUriCase: true }",
        ]
        .map(|found| format!("  - {{ match: [{found}], route: [{{ destination: {{ host: cart }} }}] }}"))
        .join("\n"),
        expect![[r#"
            warning VirtualService shop/root spec.http[0].delegate: spec.http[10] of VirtualService shop/leaf is left out: no `match` of it narrows one of this route
            warning VirtualService shop/root spec.http[0].delegate: spec.http[2] of VirtualService shop/leaf is left out: no `match` of it narrows one of this route
            warning VirtualService shop/root spec.http[0].delegate: spec.http[3] of VirtualService shop/leaf is left out: no `match` of it narrows one of this route
            warning VirtualService shop/root spec.http[0].delegate: spec.http[4] of VirtualService shop/leaf is left out: no `match` of it narrows one of this route
            warning VirtualService shop/root spec.http[0].delegate: spec.http[5] of VirtualService shop/leaf is left out: no `match` of it narrows one of this route
            warning VirtualService shop/root spec.http[0].delegate: spec.http[6] of VirtualService shop/leaf is left out: no `match` of it narrows one of this route
            warning VirtualService shop/root spec.http[0].delegate: spec.http[7] of VirtualService shop/leaf is left out: no `match` of it narrows one of this route
            warning VirtualService shop/root spec.http[0].delegate: spec.http[8] of VirtualService shop/leaf is left out: no `match` of it narrows one of this route
            warning VirtualService shop/root spec.http[0].delegate: spec.http[9] of VirtualService shop/leaf is left out: no `match` of it narrows one of this route
            VirtualService shop/root [Exact("cart.shop.svc.cluster.local")]
              default [name=narrower, uri =/a/b, method ~\A(?:GET|HEAD)\z, x =y, without w =v, without w =u, port 80, from {"app": "web", "v": "1"}, from namespace shop] /1 cart.shop.svc.cluster.local/* 1
              default [name=same, uri ^/a, method ~\A(?:GET|HEAD)\z, x =y, without w =v, port 80, from {"app": "web"}, from namespace shop] /1 cart.shop.svc.cluster.local/* 1
        "#]],
    );
}

#[test]
fn gateways_of_a_delegate_are_among_those_of_its_root() {
    check_world(
        "
  - match: [{ gateways: [mesh] }]
    delegate: { name: leaf }
",
        "
  - { name: inherits, match: [{ uri: { exact: /a }, sourceNamespace: ignored }], route: [{ destination: { host: cart } }] }
  - { name: same, match: [{ uri: { exact: /b }, gateways: [mesh] }], route: [{ destination: { host: cart } }] }
  - { name: more, match: [{ uri: { exact: /c }, gateways: [mesh, gw] }], route: [{ destination: { host: cart } }] }
",
        expect![[r#"
            warning VirtualService shop/root spec.http[0].delegate: spec.http[2] of VirtualService shop/leaf is left out: no `match` of it narrows one of this route
            VirtualService shop/root [Exact("cart.shop.svc.cluster.local")]
              inherits [uri =/a] /1 cart.shop.svc.cluster.local/* 1
              same [uri =/b] /1 cart.shop.svc.cluster.local/* 1
        "#]],
    );
}

#[test]
fn only_the_entry_without_its_delegate_is_left_out() {
    let root = "
  - { match: [{ uri: { prefix: /a } }], delegate: { name: nowhere } }
  - { match: [{ uri: { prefix: /b } }], delegate: { name: root } }
  - { match: [{ uri: { prefix: /c } }], delegate: { name: hidden, namespace: other } }
  - { match: [{ uri: { prefix: /d } }], delegate: { name: leaf } }
";
    let hidden = "---
kind: VirtualService
metadata: { name: hidden, namespace: other }
spec:
  exportTo: [.]
  http: [{ route: [{ destination: { host: cart.shop.svc.cluster.local } }] }]
";
    check(
        &(world(root, ANY) + hidden),
        routes,
        expect![[r#"
        warning VirtualService shop/root spec.http[0].delegate: VirtualService shop/nowhere is not there: this route is left out
        warning VirtualService shop/root spec.http[1].delegate: VirtualService shop/root has hosts, so nothing can be delegated to it: this route is left out
        warning VirtualService shop/root spec.http[2].delegate: VirtualService other/hidden is not exported to this namespace: this route is left out
        VirtualService shop/root [Exact("cart.shop.svc.cluster.local")]
          default [uri ^/d] /1 cart.shop.svc.cluster.local/* 1
    "#]],
    );
}

#[test]
fn a_delegate_is_seen_from_where_it_is_exported_to() {
    let root = "  - { delegate: { name: far, namespace: other } }";
    let far = "---
kind: VirtualService
metadata: { name: far, namespace: other }
spec:
  exportTo: [shop]
  http: [{ route: [{ destination: { host: cart.shop.svc.cluster.local } }] }]
";
    check(
        &(world(root, ANY) + far),
        routes,
        expect![[r#"
        warning VirtualService shop/leaf spec.hosts: none, and no VirtualService delegates to it: no effect
        VirtualService shop/root [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/* 1
    "#]],
    );
}

#[test]
fn a_root_follows_its_delegate() {
    let mut bench = Bench::new();
    let root = "
kind: VirtualService
metadata: { name: root, namespace: shop }
spec: { hosts: [cart], http: [{ delegate: { name: leaf } }] }
";
    let leaf = |subset: &str| {
        format!(
            "
kind: VirtualService
metadata: {{ name: leaf, namespace: shop }}
spec: {{ http: [{{ route: [{{ destination: {{ host: cart, subset: {subset} }} }}] }}] }}
"
        )
    };
    let in_force = |bench: &Bench| -> String {
        bench.snapshot.virtual_services.iter().map(|found| route_text(found)).collect()
    };
    bench.apply("services", CART, 0);
    let mut text = bench.apply("root", root, 1);
    for subset in ["v1", "v2", "v3"] {
        text += &bench.apply("leaf", &leaf(subset), 2);
        text += &in_force(&bench);
    }
    bench.objects.remove("leaf");
    text += &bench.compile();
    text += &in_force(&bench);
    expect![[r#"
        warning VirtualService shop/root spec.http[0].delegate: VirtualService shop/leaf is not there: this route is left out
        VirtualService shop/root [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/v1 1
        VirtualService shop/root [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/v2 1
        error VirtualService shop/leaf spec.http[0].route[0].destination.subset: no DestinationRule of `cart.shop.svc.cluster.local` has a subset `v3`; did you mean `v1`?
        warning VirtualService shop/root: its last good version stays in force
        VirtualService shop/root [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/v2 1
        warning VirtualService shop/root spec.http[0].delegate: VirtualService shop/leaf is not there: this route is left out
    "#]].assert_eq(&text);
}

#[test]
fn mistakes_are_named() {
    check(
        "
kind: VirtualService
metadata: { name: a }
spec:
  gateways: [mesh]
  tls: [{}]
  tcp: [{}]
  http:
  - delegate: { name: b }
  - {}
---
kind: VirtualService
metadata: { name: c }
spec:
  hosts: [x.example]
  http:
  - { delegate: { namespace: x } }
  - { delegate: { name: x }, route: [{ destination: { host: cart } }] }
  - { delegate: { name: x }, redirect: { uri: / } }
---
kind: VirtualService
metadata: { name: d }
spec: { http: [{ directResponse: { status: 200 } }] }
",
        routes,
        expect![[r#"
            error VirtualService default/a spec.gateways: cannot be given without `hosts`
            error VirtualService default/a spec.http[0].delegate: cannot be given without `hosts`: what is delegated is not delegated again
            error VirtualService default/a spec.http[1]: must have one of `route`, `redirect` and `directResponse`
            error VirtualService default/a spec.tcp: cannot be given without `hosts`
            error VirtualService default/a spec.tls: cannot be given without `hosts`
            error VirtualService default/c spec.http[0].delegate.name: missing
            error VirtualService default/c spec.http[1]: cannot have both `route` and `delegate`
            error VirtualService default/c spec.http[2]: cannot have both `redirect` and `delegate`
            warning VirtualService default/d spec.hosts: none, and no VirtualService delegates to it: no effect
        "#]],
    );
}
