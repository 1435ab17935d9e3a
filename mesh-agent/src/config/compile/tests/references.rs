//! References to what is not there, and what stays in force.

use expect_test::expect;

use super::{Bench, CART, check, nothing, route_text, routes};

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
