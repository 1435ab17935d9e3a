//! Rate limits: what is refused, whose they are, what stays the same.

use expect_test::expect;

use super::*;

const SERVICES: &str = "
kind: Service
metadata: { name: b, namespace: shop }
spec: { clusterIP: 10.1.0.1, ports: [{ name: http, port: 80 }] }
---
kind: Service
metadata: { name: db, namespace: shop }
spec: { clusterIP: 10.1.0.2, ports: [{ name: tcp-db, port: 5432 }] }
---
kind: Service
metadata: { name: c, namespace: other }
spec: { clusterIP: 10.1.0.3, ports: [{ name: http, port: 80 }] }
---
kind: VirtualService
metadata: { name: b, namespace: shop }
spec: { hosts: [b], http: [{ name: slow, route: [{ destination: { host: b } }] }] }
---
";

fn limits(snapshot: &Snapshot) -> String {
    let by_service: BTreeMap<_, _> = snapshot.rate_limits.iter().collect();
    let mut text = String::new();
    for (service, limits) in by_service {
        writeln!(text, "{service}").unwrap();
        for limit in limits {
            let (object, name, rate) = (&limit.object, &limit.name, &limit.rate);
            let from = match (&limit.callers.namespace, &limit.callers.labels) {
                (None, labels) if labels.is_empty() => "all".to_owned(),
                (namespace, labels) => format!("{namespace:?} {labels:?}"),
            };
            let interval = rate.interval.map_or(0, std::num::NonZeroU64::get);
            writeln!(text, "  {object} {name}: {from}, {interval} ns, {}", rate.burst).unwrap();
            for found in &limit.matches {
                let HttpMatch { uri, method, headers, .. } = &found.request;
                writeln!(text, "    {:?} {uri:?} {method:?} {headers:?}", found.route).unwrap();
            }
        }
    }
    text
}

#[test]
fn a_limit_says_who_what_and_how_much() {
    check(
        &format!(
            "{SERVICES}
kind: RateLimit
metadata: {{ name: b, namespace: shop }}
spec:
  host: b
  limits:
  - name: low
    from: {{ namespace: batch, labels: {{ tier: low }} }}
    match:
    - {{ uri: {{ prefix: /api }}, method: {{ exact: GET }}, headers: {{ X-Tenant: {{ exact: a }} }} }}
    - {{ route: slow }}
    requests: 200
    per: 1s
    burst: 50
  - {{ from: {{ labels: {{ tier: none }} }}, requests: 0, per: 1s }}
  - {{ requests: 90, per: 1m }}
"
        ),
        limits,
        expect![[r#"
            shop/b
              RateLimit shop/b low: Some("batch") {"tier": "low"}, 5000000 ns, 50
                None Some(Prefix("/api")) Some(Exact("GET")) [KeyMatch { key: "x-tenant", value: Exact("a") }]
                Some("slow") None None []
              RateLimit shop/b 1: None {"tier": "none"}, 0 ns, 1
              RateLimit shop/b 2: all, 666666667 ns, 2
        "#]],
    );
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let objects = [
        "host: '*', limits: [{ requests: 1, per: 1s }]",
        "limits: []",
        "host: b, limits: [{}]",
        "host: b, limits: [{ requests: -1, per: 1s }]",
        "host: b, limits: [{ requests: 1, per: 0s }, { requests: 1, per: 61m, burst: 0 }]",
        "host: b, limits: [{ requests: 1000001, per: 1h }, { requests: 1001, per: 1ms }]",
        "host: b, limits: [{ name: a b, requests: 1, per: 1s, from: {}, match: [{}] }]",
        "host: b, limits: [{ name: a, requests: 1, per: 1s }, { name: a, requests: 2, per: 1s }]",
        "host: b, limits: [{ requests: 1, per: 1s, match: [{ uri: { regex: '(' } }] }]",
        "host: b, limits: [{ requests: 1, per: 1s, brust: 2 }]",
    ];
    let objects: Vec<String> = (0..)
        .zip(objects)
        .map(|(n, spec)| {
            format!(
                "kind: RateLimit\nmetadata: {{ name: r{n}, namespace: shop }}\nspec: {{ {spec} }}\n"
            )
        })
        .collect();
    check(
        &format!("{SERVICES}{}", objects.join("---\n")),
        limits,
        expect![[r#"
        error RateLimit shop/r0 spec.host: wildcards are not supported: name a service
        error RateLimit shop/r1 spec.host: missing
        error RateLimit shop/r1 spec.limits: missing: at least one is needed
        error RateLimit shop/r2 spec.limits[0].per: missing
        error RateLimit shop/r2 spec.limits[0].requests: missing
        error RateLimit shop/r3 spec.limits[0].requests: must be a whole number from 0 to 4294967295, not the number -1
        error RateLimit shop/r4 spec.limits[0].per: must be from 1ms to 1h
        error RateLimit shop/r4 spec.limits[1].burst: must be at least 1
        error RateLimit shop/r4 spec.limits[1].per: must be from 1ms to 1h
        error RateLimit shop/r5 spec.limits[0].requests: more than 1000000
        error RateLimit shop/r5 spec.limits[1].requests: with this `per` more than 1000000 requests a second
        error RateLimit shop/r6 spec.limits[0].from: asks for nothing: give a namespace or labels, or leave it out
        error RateLimit shop/r6 spec.limits[0].match[0]: asks for nothing: every request would match
        error RateLimit shop/r6 spec.limits[0].name: `a b` is not a name of at most 63 letters, digits, `-`, `_` and `.`
        error RateLimit shop/r7 spec.limits[1].name: `a` is there twice
        error RateLimit shop/r8 spec.limits[0].match[0].uri.regex: `(` is not a regular expression: unclosed group
        error RateLimit shop/r9 spec.limits[0].brust: unknown field; did you mean `burst`?
    "#]],
    );
}

#[test]
fn the_oldest_of_a_service_counts_in_the_services_namespace() {
    let limit = |name: &str, namespace: &str, host: &str, day: u32| {
        format!(
            "kind: RateLimit
metadata: {{ name: {name}, namespace: {namespace}, creationTimestamp: '2026-01-0{day}T00:00:00Z' }}
spec: {{ host: {host}, limits: [{{ requests: 1, per: 1s, match: [{{ route: slwo }}] }}] }}
---
"
        )
    };
    let objects = [
        limit("younger", "shop", "b.shop.svc.cluster.local", 2),
        limit("oldest", "shop", "b", 1),
        limit("foreign", "shop", "c.other.svc.cluster.local", 1),
        limit("opaque", "shop", "db", 1),
        limit("nowhere", "shop", "bb", 1),
    ];
    check(
        &format!("{SERVICES}{}", objects.concat()),
        limits,
        expect![[r#"
        error RateLimit shop/foreign spec.host: a service of the namespace `other`, where its RateLimit must be, too
        warning RateLimit shop/nowhere spec.host: no service `bb.shop.svc.cluster.local`; did you mean `b.shop.svc.cluster.local`?
        warning RateLimit shop/oldest spec.limits[0].match[0].route: no VirtualService has a rule `slwo`: nothing matches; did you mean `slow`?
        warning RateLimit shop/opaque spec.host: no effect: no port of the service speaks HTTP
        warning RateLimit shop/opaque spec.limits[0].match[0].route: no VirtualService has a rule `slwo`: nothing matches; did you mean `slow`?
        warning RateLimit shop/younger spec.host: shadowed: RateLimit shop/oldest, which is older, is for this host
        shop/b
          RateLimit shop/oldest 0: all, 1000000000 ns, 1
            Some("slwo") None None []
        shop/db
          RateLimit shop/opaque 0: all, 1000000000 ns, 1
            Some("slwo") None None []
    "#]],
    );
}

#[test]
fn envoys_configuration_is_pointed_here() {
    check(
        "
kind: EnvoyFilter
metadata: { name: a, namespace: x }
",
        nothing,
        expect![[r#"
            warning EnvoyFilter x/a: not supported, ignored: it is configuration of Envoy's, of which there is none here; for local rate limits write a RateLimit of malha.dev/v1alpha1
        "#]],
    );
}

#[test]
fn a_limit_that_did_not_change_is_the_same_one() {
    let object = |first: u32| {
        format!(
            "{SERVICES}
kind: RateLimit
metadata: {{ name: b, namespace: shop }}
spec:
  host: b
  limits:
  - {{ name: a, from: {{ labels: {{ a: b }} }}, requests: {first}, per: 1s }}
  - {{ name: b, match: [{{ uri: {{ regex: /x.* }} }}], requests: 2, per: 1s }}
"
        )
    };
    let mut bench = Bench::new();
    let mut now = |text: &str| {
        bench.apply("a", text, 1000);
        let limits = bench.snapshot.rate_limits.values().next().cloned();
        (bench.snapshot.generation, limits.unwrap_or_default())
    };
    let (first, before) = now(&object(1));
    let (second, after) = now(&object(1));
    assert_eq!(first, second);
    assert!(before.iter().zip(&after).all(|(a, b)| Arc::ptr_eq(a, b)));
    let (third, changed) = now(&object(3));
    assert_eq!(third, second + 1);
    assert!(!Arc::ptr_eq(&before[0], &changed[0]) && Arc::ptr_eq(&before[1], &changed[1]));
    // A version that is refused leaves the last one in force.
    let (fourth, kept) = now(&object(2_000_000));
    assert_eq!(fourth, third);
    assert!(changed.iter().zip(&kept).all(|(a, b)| Arc::ptr_eq(a, b)));
    assert_eq!(now(SERVICES), (third + 1, Vec::new()));
}
