//! References to what is not there, and what stays in force.

use expect_test::expect;

use super::{Bench, CART, check, nothing, route_text, routes, rules};

fn with_subset(subset: &str) -> String {
    format!(
        "
kind: VirtualService
metadata: {{ name: cart, namespace: shop }}
spec:
  hosts: [cart]
  http: [{{ route: [{{ destination: {{ host: cart, subset: {subset} }} }}] }}]
"
    )
}

fn in_force(bench: &Bench) -> String {
    bench.snapshot.virtual_services.iter().map(|found| route_text(found)).collect()
}

#[test]
fn a_missing_subset_keeps_the_last_good_version_until_it_appears() {
    let mut bench = Bench::new();
    bench.apply("services", CART, 0);
    assert_eq!(bench.apply("routes", &with_subset("v1"), 1), "");
    let findings = bench.apply("routes", &with_subset("v3"), 2);
    expect![[r#"
        error VirtualService shop/cart spec.http[0].route[0].destination.subset: no DestinationRule of `cart.shop.svc.cluster.local` has a subset `v3`; did you mean `v1`?
        warning VirtualService shop/cart: its last good version stays in force
        VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/v1 1
    "#]].assert_eq(&(findings + &in_force(&bench)));

    let third = "
kind: DestinationRule
metadata: { name: more, namespace: shop }
spec: { host: cart, subsets: [{ name: v3, labels: { version: v3 } }] }
";
    let findings = bench.apply("more", third, 3);
    expect![[r#"
        VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/v3 1
    "#]]
    .assert_eq(&(findings + &in_force(&bench)));
}

#[test]
fn a_first_version_with_a_missing_subset_is_in_force() {
    check(
        &format!("{CART}{}", with_subset("vv1").trim_start()),
        routes,
        expect![[r#"
        error VirtualService shop/cart spec.http[0].route[0].destination.subset: no DestinationRule of `cart.shop.svc.cluster.local` has a subset `vv1`; did you mean `v1`?
        VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/vv1 1
    "#]],
    );
}

#[test]
fn a_version_that_never_was_good_is_not_kept() {
    let mut bench = Bench::new();
    bench.apply("services", CART, 0);
    bench.apply("routes", &with_subset("bad"), 1);
    let findings = bench.apply("routes", &with_subset("worse"), 2);
    expect![[r#"
        error VirtualService shop/cart spec.http[0].route[0].destination.subset: no DestinationRule of `cart.shop.svc.cluster.local` has a subset `worse`
        VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/worse 1
    "#]].assert_eq(&(findings + &in_force(&bench)));
}

#[test]
fn the_kept_version_follows_its_services() {
    let mut bench = Bench::new();
    bench.apply("services", CART, 0);
    bench.apply("routes", &with_subset("v1"), 1);
    bench.apply("routes", &with_subset("v3"), 2);
    bench.objects.remove("services");
    bench.compile();
    assert!(in_force(&bench).contains("(no service)"));
    bench.apply("services", CART, 3);
    assert!(in_force(&bench).contains("/v1 1\n"), "{}", in_force(&bench));
}

#[test]
fn an_invalid_version_leaves_the_last_good_one_in_force() {
    let mut bench = Bench::new();
    bench.apply("services", CART, 0);
    bench.apply("routes", &with_subset("v1"), 1);
    let broken = with_subset("v1").replace("route:", "rout:");
    let findings = bench.apply("routes", &broken, 2);
    expect![[r#"
        error VirtualService shop/cart spec.http[0]: must have one of `route`, `redirect` and `directResponse`
        error VirtualService shop/cart spec.http[0].rout: unknown field; did you mean `route`?
        warning VirtualService shop/cart: its last good version stays in force
        VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/v1 1
    "#]].assert_eq(&(findings + &in_force(&bench)));
    let unreadable = with_subset("v1").replace("hosts: [cart]", "hosts: [cart");
    let findings = bench.apply("routes", &unreadable, 3);
    expect![[r#"
        error: not valid YAML: illegal placement of ':' indicator
        warning VirtualService shop/cart: its last good version stays in force
        VirtualService shop/cart [Exact("cart.shop.svc.cluster.local")]
          default [] /1 cart.shop.svc.cluster.local/v1 1
    "#]]
    .assert_eq(&(findings + &in_force(&bench)));
    bench.objects.remove("routes");
    bench.compile();
    assert_eq!(in_force(&bench), "");
}

/// Whatever is wrong with the newer version, the older one stays, and the finding names the field.
#[test]
fn every_bad_version_leaves_the_last_good_one_in_force() {
    let version = |http: &str| {
        format!(
            "
kind: VirtualService
metadata: {{ name: cart, namespace: shop }}
spec: {{ hosts: [cart], http: [{{ {http} }}] }}
"
        )
    };
    let route = "route: [{ destination: { host: cart } }]";
    let two =
        "route: [{ destination: { host: cart, subset: v1 } }, { destination: { host: cart } }]";
    let lost = "route: [{ destination: { host: cart, subset: v9 } }]";
    let bad = [
        ("route", two.to_owned()),
        ("route[0].destination.subset", lost.to_owned()),
        ("match[0].uri", format!("match: [{{ uri: {{ prefix: /a, exact: /b }} }}], {route}")),
        ("match[0].uri.regex", format!("match: [{{ uri: {{ regex: '(' }} }}], {route}")),
        ("timeout", format!("timeout: -1s, {route}")),
        ("retries.retryOn", format!("retries: {{ attempts: 1, retryOn: 5xxx }}, {route}")),
        ("fault", format!("fault: {{}}, {route}")),
        ("corsPolicy.maxAge", format!("corsPolicy: {{ maxAge: 1ms }}, {route}")),
        ("mirrorPercent", format!("mirror: {{ host: cart }}, mirrorPercent: 200, {route}")),
    ];
    for (field, http) in bad {
        let mut bench = Bench::new();
        bench.apply("services", CART, 0);
        assert_eq!(bench.apply("routes", &with_subset("v1"), 1), "");
        let good = in_force(&bench);
        let findings = bench.apply("routes", &version(&http), 2);
        let named = format!("error VirtualService shop/cart spec.http[0].{field}: ");
        assert!(findings.contains(&named), "{http}:\n{findings}");
        let stays = "warning VirtualService shop/cart: its last good version stays in force\n";
        assert!(findings.contains(stays), "{http}:\n{findings}");
        assert_eq!(in_force(&bench), good, "{http}");
    }
}

/// The same of a destination rule.
#[test]
fn a_bad_policy_leaves_the_last_good_one_in_force() {
    let rule = |policy: &str| {
        format!(
            "
kind: DestinationRule
metadata: {{ name: more, namespace: shop }}
spec: {{ host: '*.shop.svc.cluster.local', trafficPolicy: {{ {policy} }} }}
"
        )
    };
    let mut bench = Bench::new();
    bench.apply("services", CART, 0);
    assert_eq!(bench.apply("more", &rule("connectionPool: { tcp: { maxConnections: 7 } }"), 1), "");
    let good = rules(&bench.snapshot);
    assert!(good.contains("max_connections: 7"), "{good}");
    for (field, policy) in [
        ("loadBalancer", "loadBalancer: { simple: RANDOM, consistentHash: { useSourceIp: true } }"),
        ("connectionPool.tcp.maxConnections", "connectionPool: { tcp: { maxConnections: -1 } }"),
        ("outlierDetection.interval", "outlierDetection: { interval: 0s }"),
        ("retryBudget.percent", "retryBudget: { percent: -1 }"),
    ] {
        let findings = bench.apply("more", &rule(policy), 2);
        let named = format!("error DestinationRule shop/more spec.trafficPolicy.{field}: ");
        assert!(findings.contains(&named), "{policy}:\n{findings}");
        assert_eq!(rules(&bench.snapshot), good, "{policy}");
    }
}

#[test]
fn hosts_and_ports_that_are_not_there_are_said() {
    check(
        &format!(
            "{CART}
kind: VirtualService
metadata: {{ name: cart, namespace: shop }}
spec:
  hosts: [cart]
  http:
  - route:
    - {{ destination: {{ host: crt }}, weight: 1 }}
    - {{ destination: {{ host: cart.shop }}, weight: 1 }}
    - {{ destination: {{ host: nothing.like.it }}, weight: 1 }}
    - {{ destination: {{ host: cart, port: {{ number: 81 }} }}, weight: 1 }}
---
kind: DestinationRule
metadata: {{ name: lost, namespace: shop }}
spec: {{ host: cart.shop }}
"
        ),
        nothing,
        expect![[r#"
            error VirtualService shop/cart spec.http[0].route[0].destination.host: no service `crt.shop.svc.cluster.local`; did you mean `cart.shop.svc.cluster.local`?
            error VirtualService shop/cart spec.http[0].route[1].destination.host: no service `cart.shop`; did you mean `cart.shop.svc.cluster.local`?
            error VirtualService shop/cart spec.http[0].route[2].destination.host: no service `nothing.like.it`
            warning DestinationRule shop/lost spec.host: no service `cart.shop`; did you mean `cart.shop.svc.cluster.local`?
            warning VirtualService shop/cart spec.http[0].route[3].destination.port.number: Service shop/cart has no port 81: requests to it get 503
        "#]],
    );
}

/// What an alias stands for is followed; where nobody but its own clients knows an address, it is said.
#[test]
fn aliases_lead_to_known_hosts_only() {
    check(
        &format!(
            "{CART}
kind: Service
metadata: {{ name: known, namespace: shop }}
spec: {{ type: ExternalName, externalName: Cart.shop.svc.cluster.local. }}
---
kind: Service
metadata: {{ name: unknown, namespace: shop }}
spec: {{ type: ExternalName, externalName: api.example.com }}
---
kind: ServiceEntry
metadata: {{ name: none, namespace: shop }}
spec: {{ hosts: [none.example.com], ports: [{{ number: 80, name: http, protocol: HTTP }}] }}
---
kind: VirtualService
metadata: {{ name: cart, namespace: shop }}
spec:
  hosts: [cart]
  http:
  - match: [{{ uri: {{ prefix: /known }} }}]
    route: [{{ destination: {{ host: known, subset: v1 }} }}]
  - match: [{{ uri: {{ prefix: /none }} }}]
    route: [{{ destination: {{ host: none.example.com }} }}]
  - route: [{{ destination: {{ host: unknown }} }}]
    mirror: {{ host: unknown }}
---
kind: VirtualService
metadata: {{ name: own, namespace: shop }}
spec:
  hosts: [unknown, api.example.com]
  http: [{{ route: [{{ destination: {{ host: unknown }} }}] }}]
"
        ),
        nothing,
        expect![[r#"
            warning VirtualService shop/cart spec.http[1].route[0].destination.host: `none.example.com` has `resolution: NONE`, so only its own clients dial an address of it: requests for others get 503
            warning VirtualService shop/cart spec.http[2].mirror.host: `unknown.shop.svc.cluster.local` is an ExternalName for `api.example.com`, which is no host of a Service or ServiceEntry, so only its own clients know an address: no copies are sent
            warning VirtualService shop/cart spec.http[2].route[0].destination.host: `unknown.shop.svc.cluster.local` is an ExternalName for `api.example.com`, which is no host of a Service or ServiceEntry, so only its own clients know an address: requests for others get 503
        "#]],
    );
}
