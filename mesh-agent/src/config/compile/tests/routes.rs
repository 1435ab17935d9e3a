//! Virtual services: hosts, matches, actions, header operations, validation.

use expect_test::{Expect, expect};

use super::{CART, check, nothing, routes};

/// One `VirtualService` shop/cart with this spec, beside the service `cart`.
fn check_spec(spec: &str, expected: Expect) {
    let head = "kind: VirtualService\nmetadata: { name: cart, namespace: shop }\nspec:\n";
    check(&format!("{CART}{head}{spec}"), routes, expected);
}

#[test]
fn weights_and_subsets() {
    check_spec(
        "
  hosts: [cart]
  http:
  - route:
    - { destination: { host: cart, subset: v1 }, weight: 90 }
    - { destination: { host: cart.shop.svc.cluster.local, subset: v2, port: { number: 80 } }, weight: '10' }
    - { destination: { host: cart }, weight: 0 }
",
        expect![[r#"
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              default [] /100 cart.shop.svc.cluster.local/v1 90 cart.shop.svc.cluster.local:80/v2 10
        "#]],
    );
}

#[test]
fn all_weights_zero_is_refused() {
    check_spec(
        "
  hosts: [cart]
  http:
  - route:
    - { destination: { host: cart, subset: v1 }, weight: 0 }
    - { destination: { host: cart, subset: v2 }, weight: 0 }
",
        expect![[r#"
            error VirtualService shop/cart spec.http[0].route: the weights add up to 0, so no destination can be chosen
        "#]],
    );
}

#[test]
fn every_kind_of_match() {
    check_spec(
        "
  hosts: [cart, '*.example.com']
  http:
  - name: a
    match:
    - name: one
      uri: { prefix: /foo }
      ignoreUriCase: true
      scheme: { exact: https }
      method: { regex: 'GET|HEAD' }
      authority: { prefix: cart }
      headers: { End-User: { exact: jason }, x: {}, y: { regex: '*' }, uri: { exact: 'no' } }
      withoutHeaders: { z: {} }
      queryParams: { q: { exact: '' }, r: {} }
      port: 80
      sourceLabels: { app: web }
      sourceNamespace: shop
    - uri: { exact: /bar }
    route: [{ destination: { host: cart } }]
  - match: [{ uri: { regex: '/[0-9]+' } }]
    route: [{ destination: { host: cart } }]
",
        expect![[r#"
            warning VirtualService shop/cart spec.http[0].match[0].headers[uri]: ignored: `uri` is a condition of its own
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local"), Suffix(".example.com")]
              a [name=one, uri ^/foo, scheme =https, method ~\A(?:GET|HEAD)\z, authority ^cart, ignore-case, end-user =jason, x present, y present, without z present, ?q =, ?r present, port 80, from {"app": "web"}, from namespace shop | uri =/bar] /1 cart.shop.svc.cluster.local/* 1
              default [uri ~\A(?:/[0-9]+)\z] /1 cart.shop.svc.cluster.local/* 1
        "#]],
    );
}

#[test]
fn match_gateways_decide_alone() {
    check_spec(
        "
  hosts: [cart]
  gateways: [mesh, gw]
  http:
  - name: gateway-only
    match: [{ gateways: [gw], uri: { prefix: /a } }]
    route: [{ destination: { host: cart } }]
  - name: both
    match:
    - { gateways: [gw], uri: { prefix: /b } }
    - { gateways: [mesh], uri: { prefix: /c }, sourceLabels: { a: b }, sourceNamespace: x }
    route: [{ destination: { host: cart } }]
",
        expect![[r#"
            warning VirtualService shop/cart spec.gateways: gateways are not supported yet: in effect for `mesh` only
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              both [uri ^/c] /1 cart.shop.svc.cluster.local/* 1
        "#]],
    );
}

#[test]
fn rules_after_a_catch_all_are_gone() {
    check_spec(
        "
  hosts: [cart]
  http:
  - name: only-some
    match: [{ uri: { prefix: / }, headers: { x: { exact: y } } }, { uri: { prefix: / }, port: 80 }]
    route: [{ destination: { host: cart } }]
  - name: all
    match: [{ uri: { exact: /a } }, { uri: { regex: '.*' } }]
    route: [{ destination: { host: cart } }]
  - name: never
    route: [{ destination: { host: cart } }]
",
        expect![[r#"
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              only-some [uri ^/, x =y | uri ^/, port 80] /1 cart.shop.svc.cluster.local/* 1
              all [uri =/a | uri ~\A(?:.*)\z] /1 cart.shop.svc.cluster.local/* 1
        "#]],
    );
}

#[test]
fn a_virtual_service_for_gateways_only_has_no_effect_in_the_mesh() {
    check_spec(
        "
  hosts: ['*']
  gateways: [gw]
  http: [{ route: [{ destination: { host: nowhere } }] }]
",
        expect![[r#"
            warning VirtualService shop/cart spec.gateways: gateways are not supported yet, and `mesh` is not among them: no effect
        "#]],
    );
}

#[test]
fn rewrites_timeouts_and_authorities() {
    check_spec(
        r"
  hosts: [cart]
  http:
  - match: [{ uri: { prefix: /a } }]
    rewrite: { uri: /b, authority: c.example }
    headers: { request: { set: { Host: loses } } }
    timeout: 1.5s
    route: [{ destination: { host: cart } }]
  - match: [{ uri: { prefix: /c } }]
    rewrite: { uri_regex_rewrite: { match: '^/c/(\d+)', rewrite: '/$\1' } }
    headers: { request: { set: { ':authority': d.example, ':path': no } } }
    timeout: 0s
    route:
    - destination: { host: cart }
      headers: { request: { add: { host: e.example } } }
",
        expect![[r#"
            warning VirtualService shop/cart spec.http[1].headers.request.set[:path]: `:path` is not a header that can be changed, ignored
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              default [uri ^/a] /1 cart.shop.svc.cluster.local/* 1 rewrite /b authority "c.example" timeout 1.5s
              default [uri ^/c] /1 cart.shop.svc.cluster.local/* 1 authority "e.example" rewrite ^/c/([0-9]+)>/$$${1} authority "d.example"
        "#]],
    );
}

#[test]
fn redirects_and_direct_responses() {
    check_spec(
        "
  hosts: [cart]
  http:
  - match: [{ uri: { prefix: /a } }]
    redirect: { uri: /b, authority: c.example, port: 8443, scheme: https, redirectCode: 308 }
  - match: [{ uri: { prefix: /d } }]
    redirect: { prefixRewrite: /e, derivePort: FROM_REQUEST_PORT }
  - match: [{ uri: { prefix: /f } }]
    directResponse: { status: 503, body: { bytes: aGVsbG8= } }
    headers: { response: { set: { content-type: text/html } } }
  - directResponse: { status: 404, body: { string: gone } }
",
        expect![[r#"
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              default [uri ^/a] Redirect { path: Uri("/b"), authority: Some("c.example"), port: Number(8443), scheme: Some("https"), code: 308 }
              default [uri ^/d] Redirect { path: Prefix("/e"), authority: None, port: RequestPort, scheme: None, code: 301 }
              default [uri ^/f] 503 Service Unavailable b"hello" response content-type="text/html"
              default [] 404 Not Found b"gone"
        "#]],
    );
}

#[test]
fn header_operations_are_sorted_and_per_destination() {
    check_spec(
        "
  hosts: [cart]
  http:
  - headers:
      request: { set: { b: '1', a: '50%%' }, add: { c: x }, remove: [d] }
      response: { add: { e: '%REQ(x)%' }, remove: [server] }
    route:
    - destination: { host: cart }
      headers: { response: { set: { from: cart } } }
",
        expect![[r#"
            warning VirtualService shop/cart spec.http[0].headers.response.add[e]: `%...%` is not supported yet: sent as it is written
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              default [] /1 cart.shop.svc.cluster.local/* 1 response from="cart" request a="50%" request b="1" request c+="x" request -d response e+="%REQ(x)%" response -server
        "#]],
    );
}

#[test]
fn what_is_not_supported_yet_is_said() {
    check_spec(
        "
  hosts: [cart]
  http:
  - match: [{ uri: { prefix: /x }, statPrefix: y }]
    delegate: { name: other }
  - retries: { attempts: 3, perTryTimeout: 2s }
    fault: { delay: { fixedDelay: 1s, percentage: { value: 10 } } }
    mirror: { host: cart }
    mirror_percent: 50
    corsPolicy: { allowOrigins: [{ exact: '*' }] }
    route: [{ destination: { host: cart } }]
",
        expect![[r#"
            warning VirtualService shop/cart spec.http[0].delegate: VirtualService shop/other is not there: this route is left out
            warning VirtualService shop/cart spec.http[0].match[0].statPrefix: not supported yet, ignored
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              default [] /1 cart.shop.svc.cluster.local/* 1 retries 3 per try 2s mirror cart.shop.svc.cluster.local/* 50% delay 1s of 10% cors [present]
        "#]],
    );
}

#[test]
fn mistakes_are_named_by_field() {
    check_spec(
        r#"
  hosts: [cart, cart.shop.svc.cluster.local, 'a b', '*']
  exportTo: ['*', '.', shop, '~']
  http:
  - match: [{ uri: { prefix: /a, exact: /b }, method: { regex: '(' }, headers: { '@request.auth.claims.x': { exact: y }, 'a b': {} }, port: 70000 }]
    route: [{ destination: { host: cart }, weight: -1 }]
    redirect: { uri: /a }
  - timeout: 1us
    rewrite: { uri: /a, uriRegexRewrite: { match: a, rewrite: b } }
    route: [{ destination: { port: { number: 0 } } }, { destination: { host: '*.x' } }]
  - redirect: { uri: /a, prefixRewrite: /b, port: 1, derivePort: FROM_REQUEST_PORT, redirectCode: 333 }
    rewrite: { uri: /c }
  - directResponse: { status: 99 }
  - directResponse: { status: 200, body: { string: a, bytes: b } }
  - directResponse: { status: 200, body: { bytes: '!' } }
  - headers: { request: { set: { 'a b': c, d: "e\u0007" } } }
  - match: [{ uri: { regex: 'a)(b' } }]
    rewrite: { uriRegexRewrite: { match: a, rewrite: '\1' } }
    route: [{ destination: { host: cart } }]
"#,
        expect![[r#"
            error VirtualService shop/cart spec.exportTo[0]: `*` must stand alone
            error VirtualService shop/cart spec.exportTo[2]: `shop` and `.` name the same namespace
            error VirtualService shop/cart spec.exportTo[3]: `~` (nobody) has a meaning for ServiceEntry only
            error VirtualService shop/cart spec.hosts[1]: `cart.shop.svc.cluster.local` is there twice
            error VirtualService shop/cart spec.hosts[2]: `a b` is not a host name, `*.` with a name, or `*`
            error VirtualService shop/cart spec.hosts[3]: `*` cannot be used for clients in the mesh: name a host
            error VirtualService shop/cart spec.http[0]: cannot have both `route` and `redirect`
            error VirtualService shop/cart spec.http[0].match[0].headers[@request.auth.claims.x]: JWT claims can be matched at gateways only
            error VirtualService shop/cart spec.http[0].match[0].headers[a b]: `a b` is not a header name
            error VirtualService shop/cart spec.http[0].match[0].method.regex: `(` is not a regular expression: unclosed group
            error VirtualService shop/cart spec.http[0].match[0].port: 70000 is not a port
            error VirtualService shop/cart spec.http[0].match[0].uri: only one of `exact`, `prefix` and `regex` can be given
            error VirtualService shop/cart spec.http[1].rewrite: only one of `uri` and `uriRegexRewrite` can be given
            error VirtualService shop/cart spec.http[1].route[0].destination.host: missing: every destination needs a host
            error VirtualService shop/cart spec.http[1].route[1].destination.host: `*.x` is not a host name
            error VirtualService shop/cart spec.http[1].timeout: shorter than 1ms
            error VirtualService shop/cart spec.http[2].redirect: only one of `port` and `derivePort` can be given
            error VirtualService shop/cart spec.http[2].redirect: only one of `uri` and `prefixRewrite` can be given
            error VirtualService shop/cart spec.http[2].redirect.redirectCode: 333 is not one of 301, 302, 303, 307 and 308
            error VirtualService shop/cart spec.http[2].rewrite: has no meaning without `route`
            error VirtualService shop/cart spec.http[3].directResponse.status: 99 is not a status from 200 to 599
            error VirtualService shop/cart spec.http[4].directResponse.body: only one of `string` and `bytes` can be given
            error VirtualService shop/cart spec.http[5].directResponse.body.bytes: not base64
            error VirtualService shop/cart spec.http[6]: must have one of `route`, `redirect` and `directResponse`
            error VirtualService shop/cart spec.http[6].headers.request.set[a b]: `a b` is not a header name
            error VirtualService shop/cart spec.http[6].headers.request.set[d]: not a header value: it holds a control character
            error VirtualService shop/cart spec.http[7].match[0].uri.regex: `a)(b` is not a regular expression: unopened group
            error VirtualService shop/cart spec.http[7].rewrite.uriRegexRewrite.rewrite: `\1`: the expression has no such group
        "#]],
    );
}

#[test]
fn what_is_no_part_of_a_url_is_named() {
    check_spec(
        r#"
  hosts: [cart]
  http:
  - redirect: { uri: /a, authority: 'a b', scheme: 'ht tp' }
  - redirect: { uri: '/a b#c', authority: 'a.example:81', scheme: https }
  - rewrite: { uri: '/a b', authority: 'u@cart' }
    route: [{ destination: { host: cart } }]
  - rewrite: { uriRegexRewrite: { match: '(a)', rewrite: '/\1#' } }
    route: [{ destination: { host: cart } }]
"#,
        expect![[r#"
            error VirtualService shop/cart spec.http[0].redirect.authority: `a b` is not a host, nor a host and a port
            error VirtualService shop/cart spec.http[0].redirect.scheme: `ht tp` is not a scheme
            error VirtualService shop/cart spec.http[2].rewrite.authority: `u@cart` is not a host, nor a host and a port
            error VirtualService shop/cart spec.http[2].rewrite.uri: `/a b` cannot stand in a path: percent-encode what is not legal
            error VirtualService shop/cart spec.http[3].rewrite.uriRegexRewrite.rewrite: `/\1#` cannot stand in a path: percent-encode what is not legal
        "#]],
    );
}

#[test]
fn hosts_belong_to_the_oldest() {
    check(
        "
kind: Service
metadata: { name: cart, namespace: shop }
spec: { clusterIP: 10.1.0.1, ports: [{ name: http, port: 80 }] }
---
kind: VirtualService
metadata: { name: young, namespace: shop, creationTimestamp: '2026-02-01T00:00:00Z' }
spec: { hosts: [cart, '*.a.b'], http: [{ name: young, route: [{ destination: { host: cart } }] }] }
---
kind: VirtualService
metadata: { name: old, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z' }
spec: { hosts: [cart, '*.b', '*.a.b'], http: [{ name: old, route: [{ destination: { host: cart } }] }] }
---
kind: VirtualService
metadata: { name: elsewhere, namespace: other, creationTimestamp: '2025-01-01T00:00:00Z' }
spec:
  hosts: [cart.shop.svc.cluster.local]
  exportTo: [.]
  http: [{ name: elsewhere, route: [{ destination: { host: cart.shop.svc.cluster.local } }] }]
",
        |snapshot| {
            let owner = |host: &str, namespace: &str| {
                let found = snapshot.virtual_service(host, namespace);
                let name = found.map(|found| found.http[0].name.to_string());
                format!("{host} from {namespace}: {}\n", name.unwrap_or_default())
            };
            [
                owner("cart.shop.svc.cluster.local", "shop"),
                owner("cart.shop.svc.cluster.local", "other"),
                owner("x.a.b", "shop"),
                owner("x.b", "shop"),
                owner("b", "shop"),
            ]
            .concat()
        },
        expect![[r#"
            warning VirtualService shop/old spec.hosts[0]: shadowed: VirtualService other/elsewhere, which is older, owns this host
            warning VirtualService shop/young spec.hosts[0]: shadowed: VirtualService other/elsewhere, which is older, owns this host
            warning VirtualService shop/young spec.hosts[1]: shadowed: VirtualService shop/old, which is older, owns this host
            cart.shop.svc.cluster.local from shop: old
            cart.shop.svc.cluster.local from other: elsewhere
            x.a.b from shop: old
            x.b from shop: old
            b from shop: 
        "#]],
    );
}

#[test]
fn a_first_service_without_rules_does_not_shadow() {
    check(
        "
kind: VirtualService
metadata: { name: a }
spec: { hosts: [x.example] }
---
kind: VirtualService
metadata: { name: b }
spec: { hosts: [x.example], http: [{ directResponse: { status: 200 } }] }
",
        |snapshot| snapshot.virtual_service("x.example", "default").unwrap().object.to_string(),
        expect![[r#"VirtualService default/b"#]],
    );
}

#[test]
fn findings_alone() {
    check(
        "
kind: VirtualService
metadata: { name: a }
spec: { http: [{ directResponse: { status: 200 } }] }
",
        nothing,
        expect![[r#"
            warning VirtualService default/a spec.hosts: none, and no VirtualService delegates to it: no effect
        "#]],
    );
}
