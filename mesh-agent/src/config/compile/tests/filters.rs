//! Faults, CORS and mirrors.

use expect_test::{Expect, expect};

use super::{Bench, CART, check, route_text, routes};

/// Routes `/0`, `/1`, ... with these fields, `; ` between them, beside their destination.
fn check_entries(entries: &[&str], expected: Expect) {
    let routes: String = (0..)
        .zip(entries)
        .map(|(index, of): (usize, _)| {
            let of = of.replace("; ", "\n    ");
            format!(
                "  - match: [{{ uri: {{ exact: /{index} }} }}]\n    {of}\n    route: [{{ \
                 destination: {{ host: cart }} }}]\n"
            )
        })
        .collect();
    let head = "kind: VirtualService\nmetadata: { name: cart, namespace: shop }\n";
    let spec = format!("spec:\n  hosts: [cart]\n  http:\n{routes}");
    check(&format!("{CART}{head}{spec}"), self::routes, expected);
}

#[test]
fn faults() {
    check_entries(
        &[
            "fault: { delay: { fixedDelay: 5s, percentage: { value: 0.1 } } }",
            "fault: { abort: { httpStatus: 555, percentage: { value: 100 } }, delay: { fixedDelay: 1ms, percent: 50 } }",
            "fault: { abort: { grpcStatus: UNAVAILABLE, percentage: { value: 12.5 } } }",
            "fault: { abort: { grpcStatus: '0', percentage: { value: 0 } } }",
            "fault: { abort: { httpStatus: 600 }, delay: { fixedDelay: 1s } }",
        ],
        expect![[r#"
            warning VirtualService shop/cart spec.http[4].fault.abort.percentage: unset, which is 0: never happens
            warning VirtualService shop/cart spec.http[4].fault.delay.percentage: unset, which is 0: never happens
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              default [uri =/0] /1 cart.shop.svc.cluster.local/* 1 delay 5s of 0.1%
              default [uri =/1] /1 cart.shop.svc.cluster.local/* 1 delay 1ms of 50% abort Http(555) of 100%
              default [uri =/2] /1 cart.shop.svc.cluster.local/* 1 abort Grpc(14) of 12.5%
              default [uri =/3] /1 cart.shop.svc.cluster.local/* 1 abort Grpc(0) of 0%
              default [uri =/4] /1 cart.shop.svc.cluster.local/* 1 delay 1s of 0% abort Http(600) of 0%
        "#]],
    );
}

#[test]
fn mistakes_in_faults_are_named() {
    check_entries(
        &[
            "fault: {}",
            "fault: { delay: { percent: 101 } }",
            "fault: { delay: { fixedDelay: 0s, percentage: { value: 100.1 } } }",
            "fault: { delay: { exponentialDelay: 1s, percent: 1 } }",
            "fault: { abort: { percentage: { value: 0.00001 }, httpStatus: 199 } }",
            "fault: { abort: { percentage: { value: 1 }, httpStatus: 601 } }",
            "fault: { abort: { percentage: { value: 1 }, httpStatus: 500, grpcStatus: OK } }",
            "fault: { abort: { percentage: { value: 1 }, grpcStatus: UNAVAILBLE } }",
            "fault: { abort: { percentage: { value: 1 }, grpcStatus: '17' } }",
            "fault: { abort: { percentage: { value: 1 }, http2Error: X } }",
        ],
        expect![[r#"
            error VirtualService shop/cart spec.http[0].fault: must have `delay` or `abort`
            error VirtualService shop/cart spec.http[1].fault.delay.fixedDelay: missing
            error VirtualService shop/cart spec.http[1].fault.delay.percent: 101 is not within 0 and 100
            error VirtualService shop/cart spec.http[2].fault.delay.fixedDelay: shorter than 1ms
            error VirtualService shop/cart spec.http[2].fault.delay.percentage.value: 100.1 is not within 0 and 100
            error VirtualService shop/cart spec.http[3].fault.delay.fixedDelay: missing
            error VirtualService shop/cart spec.http[4].fault.abort.httpStatus: 199 is not a status from 200 to 600
            error VirtualService shop/cart spec.http[4].fault.abort.percentage.value: 0.00001 is less than 0.0001
            error VirtualService shop/cart spec.http[5].fault.abort.httpStatus: 601 is not a status from 200 to 600
            error VirtualService shop/cart spec.http[6].fault.abort: only one of `httpStatus` and `grpcStatus` can be given
            error VirtualService shop/cart spec.http[7].fault.abort.grpcStatus: `UNAVAILBLE` is not a status of gRPC; did you mean `UNAVAILABLE`?
            error VirtualService shop/cart spec.http[8].fault.abort.grpcStatus: `17` is not a status of gRPC, such as `UNAVAILABLE` or `14`
            error VirtualService shop/cart spec.http[9].fault.abort: must have `httpStatus` or `grpcStatus`
            warning VirtualService shop/cart spec.http[1].fault.delay.percentage: unset, which is 0: never happens
            warning VirtualService shop/cart spec.http[3].fault.delay.exponentialDelay: not supported yet, ignored
            warning VirtualService shop/cart spec.http[9].fault.abort.http2Error: not supported yet, ignored
        "#]],
    );
}

#[test]
fn cors_policies() {
    check_entries(
        &[
            "corsPolicy: { allowOrigins: [{ exact: 'https://a.example' }, { prefix: 'https://b' }, { regex: 'https://[a-z]+' }], allowMethods: [GET, POST], allowHeaders: [x-a, X-B], exposeHeaders: ['*'], maxAge: 24h, allowCredentials: true, unmatchedPreflights: IGNORE }",
            "corsPolicy: { allowOrigins: [{ exact: '*' }, { regex: '*' }], unmatchedPreflights: FORWARD }",
            "corsPolicy: { allowOrigin: ['*', 'http://c.example'] }",
            "corsPolicy: { allowOrigin: [a], allowOrigins: [{ exact: b }], maxAge: 1s }",
            "corsPolicy: { allowCredentials: false }",
        ],
        expect![[r#"
            warning VirtualService shop/cart spec.http[3].corsPolicy.allowOrigin: no effect: `allowOrigins` counts
            warning VirtualService shop/cart spec.http[4].corsPolicy.allowOrigins: none: no other origin is let in
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              default [uri =/0] /1 cart.shop.svc.cluster.local/* 1 cors [=https://a.example | ^https://b | ~\A(?:https://[a-z]+)\z] methods "GET,POST" headers "x-a,X-B" expose "*" age "86400" credentials alone
              default [uri =/1] /1 cart.shop.svc.cluster.local/* 1 cors [present | present]
              default [uri =/2] /1 cart.shop.svc.cluster.local/* 1 cors [present | =http://c.example]
              default [uri =/3] /1 cart.shop.svc.cluster.local/* 1 cors [=b] age "1"
              default [uri =/4] /1 cart.shop.svc.cluster.local/* 1 cors []
        "#]],
    );
}

#[test]
fn mistakes_in_cors_are_named() {
    check_entries(
        &[
            "corsPolicy: { allowOrigins: [{}, { exact: a, prefix: b }, { regex: '(' }] }",
            "corsPolicy: { allowOrigins: [{ exact: a }], allowMethods: ['G T', ''], allowHeaders: ['a b'], exposeHeaders: ['a,b'], maxAge: 1.5s }",
            "corsPolicy: { allowOrigins: [{ exact: a }], maxAge: 0s }",
        ],
        expect![[r#"
            error VirtualService shop/cart spec.http[0].corsPolicy.allowOrigins[0]: must have `exact`, `prefix` or `regex`
            error VirtualService shop/cart spec.http[0].corsPolicy.allowOrigins[1]: only one of `exact`, `prefix` and `regex` can be given
            error VirtualService shop/cart spec.http[0].corsPolicy.allowOrigins[2].regex: `(` is not a regular expression: unclosed group
            error VirtualService shop/cart spec.http[1].corsPolicy.allowHeaders[0]: `a b` cannot stand in a list of a header
            error VirtualService shop/cart spec.http[1].corsPolicy.allowMethods[0]: `G T` cannot stand in a list of a header
            error VirtualService shop/cart spec.http[1].corsPolicy.allowMethods[1]: `` cannot stand in a list of a header
            error VirtualService shop/cart spec.http[1].corsPolicy.exposeHeaders[0]: `a,b` cannot stand in a list of a header
            error VirtualService shop/cart spec.http[1].corsPolicy.maxAge: must be of whole seconds
            error VirtualService shop/cart spec.http[2].corsPolicy.maxAge: shorter than 1ms
        "#]],
    );
}

#[test]
fn mirrors() {
    check_entries(
        &[
            "mirror: { host: cart, subset: v2, port: { number: 80 } }",
            "mirror: { host: cart }; mirrorPercentage: { value: 0.5 }; mirrorPercent: 7",
            "mirror: { host: cart }; mirror_percent: 50",
            "mirrors: [{ destination: { host: cart, subset: v1 } }, { destination: { host: cart.shop.svc.cluster.local }, percentage: { value: 25 } }]",
            "mirror: { host: cart }; mirrorPercentage: { value: 0 }",
            "mirrorPercent: 7",
        ],
        expect![[r#"
            warning VirtualService shop/cart spec.http[5].mirrorPercent: no effect without `mirror`
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              default [uri =/0] /1 cart.shop.svc.cluster.local/* 1 mirror cart.shop.svc.cluster.local:80/v2 100%
              default [uri =/1] /1 cart.shop.svc.cluster.local/* 1 mirror cart.shop.svc.cluster.local/* 0.5%
              default [uri =/2] /1 cart.shop.svc.cluster.local/* 1 mirror cart.shop.svc.cluster.local/* 50%
              default [uri =/3] /1 cart.shop.svc.cluster.local/* 1 mirror cart.shop.svc.cluster.local/v1 100% mirror cart.shop.svc.cluster.local/* 25%
              default [uri =/4] /1 cart.shop.svc.cluster.local/* 1
              default [uri =/5] /1 cart.shop.svc.cluster.local/* 1
        "#]],
    );
}

#[test]
fn mistakes_in_mirrors_are_named() {
    check_entries(
        &[
            "mirror: { host: cart }; mirrors: [{ destination: { host: cart } }]",
            "mirror: { host: '*.x' }; mirrorPercentage: { value: 101 }",
            "mirror: { host: cart }; mirrorPercent: 101",
            "mirrors: [{ percentage: { value: -1 } }, { destination: { host: cart, port: { number: 70000 } } }]",
        ],
        expect![[r#"
            error VirtualService shop/cart spec.http[0]: cannot have both `mirror` and `mirrors`
            error VirtualService shop/cart spec.http[1].mirror.host: `*.x` is not a host name
            error VirtualService shop/cart spec.http[1].mirrorPercentage.value: 101 is not within 0 and 100
            error VirtualService shop/cart spec.http[2].mirrorPercent: 101 is not within 0 and 100
            error VirtualService shop/cart spec.http[3].mirrors[0].destination.host: missing: every destination needs a host
            error VirtualService shop/cart spec.http[3].mirrors[0].percentage.value: -1 is not within 0 and 100
            error VirtualService shop/cart spec.http[3].mirrors[1].destination.port.number: 70000 is not a port
        "#]],
    );
}

/// Requests do not depend on a mirror: the newer version comes into force.
#[test]
fn a_mirror_that_is_not_there_is_said_and_spoils_nothing() {
    let spec = |mirror: &str| {
        format!(
            "
kind: VirtualService
metadata: {{ name: cart, namespace: shop }}
spec:
  hosts: [cart]
  http: [{{ mirror: {{ {mirror} }}, route: [{{ destination: {{ host: cart }} }}] }}]
"
        )
    };
    let mut bench = Bench::new();
    bench.apply("services", CART, 0);
    assert_eq!(bench.apply("routes", &spec("host: cart, subset: v1"), 1), "");
    let mut text = String::new();
    for mirror in ["host: crt", "host: cart, subset: v3", "host: cart, port: { number: 81 }"] {
        text += &bench.apply("routes", &spec(mirror), 2);
        text += &route_text(&bench.snapshot.virtual_services[0]);
    }
    expect![[r#"
        warning VirtualService shop/cart spec.http[0].mirror.host: no copies are sent: no service `crt.shop.svc.cluster.local`; did you mean `cart.shop.svc.cluster.local`?
        VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/* 1 mirror crt.shop.svc.cluster.local/* 100% (no service)
        warning VirtualService shop/cart spec.http[0].mirror.subset: no copies are sent: no DestinationRule of `cart.shop.svc.cluster.local` has a subset `v3`; did you mean `v1`?
        VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/* 1 mirror cart.shop.svc.cluster.local/v3 100%
        warning VirtualService shop/cart spec.http[0].mirror.port.number: Service shop/cart has no port 81: no copies are sent
        VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/* 1 mirror cart.shop.svc.cluster.local:81/* 100%
    "#]].assert_eq(&text);
}

#[test]
fn what_needs_a_route_is_said() {
    check(
        &format!(
            "{CART}
kind: VirtualService
metadata: {{ name: cart, namespace: shop }}
spec:
  hosts: [cart]
  http:
  - match: [{{ uri: {{ exact: /a }} }}]
    redirect: {{ uri: /b }}
    timeout: 1s
    retries: {{ attempts: 1 }}
    mirror: {{ host: cart }}
    corsPolicy: {{ allowOrigins: [{{ exact: a }}] }}
---
kind: VirtualService
metadata: {{ name: faulty, namespace: shop }}
spec:
  hosts: [x.example]
  http: [{{ directResponse: {{ status: 200 }}, fault: {{ abort: {{ httpStatus: 500, percentage: {{ value: 1 }} }} }} }}]
"
        ),
        routes,
        expect![[r#"
            error VirtualService shop/faulty spec.http[0].fault: has no meaning without `route`
            warning VirtualService shop/cart spec.http[0].mirror: no effect without `route`
            warning VirtualService shop/cart spec.http[0].retries: no effect without `route`
            warning VirtualService shop/cart spec.http[0].timeout: no effect without `route`
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              default [uri =/a] Redirect { path: Uri("/b"), authority: None, port: Keep, scheme: None, code: 301 } cors [=a]
        "#]],
    );
}

/// As Kiali's wizards write them: full names, every block at once.
#[test]
fn objects_of_kialis_wizards() {
    check(
        &format!(
            "{CART}
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{ name: cart, namespace: shop, labels: {{ kiali_wizard: request_routing }} }}
spec:
  hosts: [cart.shop.svc.cluster.local]
  gateways: [mesh]
  http:
  - match: [{{ headers: {{ cookie: {{ regex: '^(.*?;)?(user=jason)(;.*)?$' }} }} }}]
    route:
    - {{ destination: {{ host: cart.shop.svc.cluster.local, subset: v1 }}, weight: 60 }}
    - {{ destination: {{ host: cart.shop.svc.cluster.local, subset: v2 }}, weight: 40 }}
    mirror: {{ host: cart.shop.svc.cluster.local, subset: v2 }}
    mirrorPercentage: {{ value: 20 }}
    fault:
      delay: {{ percentage: {{ value: 100 }}, fixedDelay: 5s }}
      abort: {{ percentage: {{ value: 50 }}, httpStatus: 503 }}
    timeout: 2s
    retries: {{ attempts: 3, perTryTimeout: 2s, retryOn: 'gateway-error,connect-failure,refused-stream' }}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: circuit, namespace: shop, labels: {{ kiali_wizard: request_routing }} }}
spec:
  host: cart.shop.svc.cluster.local
  trafficPolicy:
    loadBalancer: {{ simple: ROUND_ROBIN }}
    connectionPool: {{ tcp: {{ maxConnections: 1 }}, http: {{ http1MaxPendingRequests: 1 }} }}
    outlierDetection: {{ consecutive5xxErrors: 1 }}
"
        ),
        |snapshot| routes(snapshot) + &super::rules(snapshot),
        expect![[r#"
            VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
              default [cookie ~\A(?:^(.*?;)?(user=jason)(;.*)?$)\z] /100 cart.shop.svc.cluster.local/v1 60 cart.shop.svc.cluster.local/v2 40 timeout 2s retries 3 per try 2s on RetryOn(146) [] mirror cart.shop.svc.cluster.local/v2 20% delay 5s of 100% abort Http(503) of 50%
            DestinationRule shop/circuit Exact("cart.shop.svc.cluster.local") Everyone
              any: RoundRobin 10s pool max_connections: 1, max_pending: 1 OutlierDetection { consecutive_5xx: 1, consecutive_gateway: 0, consecutive_local: 5, split: false, interval: 10s, base_ejection: 30s, max_ejection_percent: 10, min_health_percent: 0, error_codes: [] }
              v1 {"version": "v1"}: RoundRobin 10s pool max_connections: 1, max_pending: 1 OutlierDetection { consecutive_5xx: 1, consecutive_gateway: 0, consecutive_local: 5, split: false, interval: 10s, base_ejection: 30s, max_ejection_percent: 10, min_health_percent: 0, error_codes: [] }
              v2 {"version": "v2"}: RoundRobin 10s pool max_connections: 1, max_pending: 1 OutlierDetection { consecutive_5xx: 1, consecutive_gateway: 0, consecutive_local: 5, split: false, interval: 10s, base_ejection: 30s, max_ejection_percent: 10, min_health_percent: 0, error_codes: [] }
        "#]],
    );
}
