//! What does not change is shared, and the generation says whether anything did.

use super::*;

const WORLD: &str = "
kind: Service
metadata: { name: cart, namespace: shop }
spec: { clusterIP: 10.1.0.1, ports: [{ name: http, port: 80 }] }
---
kind: EndpointSlice
metadata: { name: cart-1, namespace: shop, labels: { kubernetes.io/service-name: cart } }
ports: [{ name: http, port: 8080 }]
endpoints: [{ addresses: [10.0.0.1] }]
---
kind: Service
metadata: { name: other, namespace: shop }
spec: { clusterIP: 10.1.0.2, ports: [{ name: http, port: 80 }] }
---
kind: Pod
metadata: { name: a, namespace: shop, uid: a }
status: { podIP: 10.0.0.1 }
---
kind: Pod
metadata: { name: b, namespace: shop, uid: b }
status: { podIP: 10.0.0.2 }
---
kind: VirtualService
metadata: { name: cart, namespace: shop }
spec: { hosts: [cart], http: [{ match: [{ uri: { regex: /a.* } }], route: [{ destination: { host: cart } }] }] }
---
kind: DestinationRule
metadata: { name: cart, namespace: shop }
spec: { host: cart }
";

fn service<'a>(snapshot: &'a Snapshot, host: &str) -> &'a Arc<crate::model::Service> {
    &snapshot.services_by_host[format!("{host}.shop.svc.cluster.local").as_str()]
}

#[test]
fn nothing_new_is_no_new_generation() {
    let mut bench = Bench::new();
    bench.apply("a", WORLD, 5);
    assert_eq!(bench.snapshot.generation, 1);
    let before = bench.snapshot.clone();
    bench.apply("a", WORLD, 99);
    assert_eq!(bench.snapshot.generation, 1);
    assert!(same(&before, &bench.snapshot));
}

#[test]
fn an_empty_world_is_a_first_generation() {
    let mut bench = Bench::new();
    bench.compile();
    bench.compile();
    assert_eq!(bench.snapshot.generation, 1);
}

#[test]
fn a_change_renews_only_what_it_touches() {
    let mut bench = Bench::new();
    bench.apply("a", WORLD, 5);
    let before = bench.snapshot.clone();
    // Pod b's node speaks for it: nothing but pod b changes.
    bench.objects.announce("n", Some(["b".into()].into()));
    bench.compile();
    let after = &bench.snapshot;
    assert_eq!(after.generation, 2);
    assert!(Arc::ptr_eq(&before.workloads_by_uid["a"], &after.workloads_by_uid["a"]));
    assert!(!Arc::ptr_eq(&before.workloads_by_uid["b"], &after.workloads_by_uid["b"]));
    assert!(Arc::ptr_eq(service(&before, "cart"), service(after, "cart")));
    assert!(Arc::ptr_eq(&before.virtual_services[0], &after.virtual_services[0]));
    assert!(Arc::ptr_eq(&before.destination_rules["shop"][0], &after.destination_rules["shop"][0]));

    // Pod a is behind cart: cart changes with it, the other service does not.
    let before = bench.snapshot.clone();
    bench.objects.announce("n", Some(["a".into(), "b".into()].into()));
    bench.compile();
    let after = &bench.snapshot;
    assert_eq!(after.generation, 3);
    assert!(!Arc::ptr_eq(service(&before, "cart"), service(after, "cart")));
    assert!(Arc::ptr_eq(service(&before, "other"), service(after, "other")));
    let endpoint = &service(after, "cart").ports[0].endpoints[0];
    assert!(endpoint.workload.as_ref().unwrap().enrolled);
}

#[test]
fn objects_without_an_age_keep_the_order_in_which_they_were_seen() {
    let route = |name: &str| {
        format!(
            "
kind: VirtualService
metadata: {{ name: {name} }}
spec: {{ hosts: [x.example], http: [{{ directResponse: {{ status: 200 }} }}] }}
"
        )
    };
    let mut bench = Bench::new();
    let owner = |bench: &Bench| {
        let found = bench.snapshot.virtual_service("x.example", "default").unwrap();
        found.object.name.to_string()
    };
    bench.apply("z", &route("z"), 10);
    bench.apply("a", &route("a"), 10);
    assert_eq!(owner(&bench), "z");
    // Read again, later, and moved to another file within one batch: still the oldest.
    bench.objects.remove("z");
    bench.apply("0", &route("z"), 20);
    assert_eq!(owner(&bench), "z");
    // Gone and back: the other one has become older.
    bench.objects.remove("0");
    bench.compile();
    bench.apply("0", &route("z"), 30);
    assert_eq!(owner(&bench), "a");
}

#[test]
fn one_object_in_two_files_counts_once() {
    let mut bench = Bench::new();
    bench.apply("a", "\nkind: Pod\nmetadata: { name: p, uid: one }\n", 0);
    let findings = bench.apply("b", "\nkind: Pod\nmetadata: { name: p, uid: two }\n", 0);
    assert!(findings.contains("warning Pod default/p: also in file"), "{findings}");
    assert!(bench.snapshot.workloads_by_uid.contains_key("one"));
    assert!(!bench.snapshot.workloads_by_uid.contains_key("two"));
}
