//! Service entries.

use std::sync::Arc;

use expect_test::expect;

use super::{Bench, check, externals, l4_routes, nothing, routes};
use crate::config::Answers;

/// One entry in `shop` with this in its spec.
fn entry(name: &str, day: u32, spec: &str) -> String {
    format!(
        "
kind: ServiceEntry
metadata: {{ name: {name}, namespace: shop, creationTimestamp: '2026-01-0{day}T00:00:00Z' }}
spec:
{spec}
---"
    )
}

const WEB: &str = "  ports: [{ number: 80, name: http, protocol: HTTP }]";

fn answers(all: &[(&str, &[&str])]) -> Arc<Answers> {
    let all = all.iter().map(|(name, ips)| {
        ((*name).into(), ips.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<_>>())
    });
    Arc::new(all.collect())
}

#[test]
fn static_endpoints_with_their_ports_and_labels() {
    check(
        &entry(
            "db",
            1,
            "  hosts: [DB.example.com, other.example.com]
  addresses: [192.0.2.7, 198.51.100.0/24, 192.0.2.7/32]
  location: MESH_EXTERNAL
  resolution: STATIC
  exportTo: ['.']
  ports:
  - { number: 5432, name: sql, protocol: TCP, targetPort: 15432 }
  - { number: 443, name: web, protocol: HTTPS }
  - { number: 53, name: dns, protocol: UDP }
  - { number: 8080, name: any }
  endpoints:
  - { address: 203.0.113.2, ports: { sql: 25432 }, labels: { version: v2 } }
  - { address: 203.0.113.1 }
  - { address: 'fd00::1', weight: 5, locality: us-east }
  - { address: unix:///var/run/db.sock }",
        ),
        externals,
        expect![[r#"
            warning ServiceEntry shop/db spec.endpoints[2].weight: not supported yet, ignored
            warning ServiceEntry shop/db spec.endpoints[3].address: not supported yet, ignored
            shop/db.example.com ServiceEntry shop/db [192.0.2.7] [198.51.100.0/24] static Namespaces(["shop"])
              5432 "sql" Tcp
                203.0.113.1:15432
                203.0.113.2:25432 {"version": "v2"}
                [fd00::1]:15432
              443 "web" Tls
                203.0.113.1:443
                203.0.113.2:443 {"version": "v2"}
                [fd00::1]:443
              8080 "any" Detect
                203.0.113.1:8080
                203.0.113.2:8080 {"version": "v2"}
                [fd00::1]:8080
            shop/other.example.com ServiceEntry shop/db [192.0.2.7] [198.51.100.0/24] static Namespaces(["shop"])
              5432 "sql" Tcp
                203.0.113.1:15432
                203.0.113.2:25432 {"version": "v2"}
                [fd00::1]:15432
              443 "web" Tls
                203.0.113.1:443
                203.0.113.2:443 {"version": "v2"}
                [fd00::1]:443
              8080 "any" Detect
                203.0.113.1:8080
                203.0.113.2:8080 {"version": "v2"}
                [fd00::1]:8080
        "#]],
    );
}

#[test]
fn only_inside_the_mesh_an_endpoint_is_a_pod() {
    let pods = "
kind: Pod
metadata: { name: db-1, namespace: shop, labels: { app: db, version: v1 } }
spec: { nodeName: n1 }
status: { phase: Running, podIP: 10.0.0.1 }
---
kind: Pod
metadata: { name: db-2, namespace: shop, labels: { app: db } }
spec: { nodeName: n1 }
status: { phase: Running, podIP: 10.0.0.2, conditions: [{ type: Ready, status: 'False' }] }
---
kind: Pod
metadata: { name: db-3, namespace: bank, labels: { app: db } }
spec: { nodeName: n1 }
status: { phase: Running, podIP: 10.0.0.3 }
---";
    let inside = |location: &str| {
        format!(
            "  hosts: [{location}.example]
  location: MESH_{}
  resolution: STATIC
  ports: [{{ number: 80, name: http, protocol: HTTP, targetPort: 8080 }}]
  endpoints: [{{ address: 10.0.0.1, labels: {{ version: own }} }}, {{ address: 10.0.0.9 }}]",
            location.to_uppercase()
        )
    };
    let selected = "  hosts: [selected.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{ number: 80, name: http, protocol: HTTP, targetPort: 8080 }]
  workloadSelector: { labels: { app: db } }";
    check(
        &[
            pods,
            &entry("internal", 1, &inside("internal")),
            &entry("external", 2, &inside("external")),
            &entry("selected", 3, selected),
        ]
        .concat(),
        externals,
        expect![[r#"
            shop/external.example ServiceEntry shop/external [] static
              80 "http" Http
                10.0.0.1:8080 {"version": "own"}
                10.0.0.9:8080
            shop/internal.example ServiceEntry shop/internal [] static
              80 "http" Http
                10.0.0.1:8080 shop/db-1 {"version": "own"}
                10.0.0.9:8080
            shop/selected.example ServiceEntry shop/selected [] static
              80 "http" Http
                10.0.0.1:8080 shop/db-1
                10.0.0.2:8080 shop/db-2 not ready
        "#]],
    );
}

#[test]
fn names_are_asked_for_and_answers_become_endpoints() {
    let yaml = [
        entry("own", 1, &format!("  hosts: [a.example, b.example]\n  resolution: DNS\n{WEB}")),
        entry(
            "named",
            2,
            &format!(
                "  hosts: [c.example]
  resolution: DNS
{WEB}
  endpoints:
  - {{ address: One.example., ports: {{ http: 8080 }}, labels: {{ version: v1 }} }}
  - {{ address: two.example }}
  - {{ address: 192.0.2.9 }}"
            ),
        ),
        entry("turns", 3, &format!("  hosts: [d.example]\n  resolution: DNS_ROUND_ROBIN\n{WEB}")),
    ]
    .concat();
    let mut bench = Bench::new();
    assert_eq!(bench.apply("", &yaml, 1000), "");
    let names: Vec<String> = bench.snapshot.names().iter().map(ToString::to_string).collect();
    assert_eq!(names.join(" "), "a.example b.example d.example one.example two.example");
    assert!(bench.snapshot.service_for("a.example", "shop").is_none(), "not asked for yet");
    // In vain is an answer, too: the service is there, and has nowhere to go.
    bench.objects.resolve(answers(&[
        ("a.example", &["192.0.2.2", "192.0.2.1", "fd00::1"]),
        ("b.example", &[]),
        ("d.example", &["192.0.2.4", "192.0.2.3", "fd00::2"]),
        ("one.example", &["192.0.2.5", "192.0.2.6"]),
    ]));
    bench.compile();
    expect![[r#"
        shop/a.example ServiceEntry shop/own [] dns ["a.example"]
          80 "http" Http
            192.0.2.1:80
            192.0.2.2:80
            [fd00::1]:80
        shop/b.example ServiceEntry shop/own [] dns ["b.example"]
          80 "http" Http
        shop/c.example ServiceEntry shop/named [] dns ["one.example", "two.example"] pending
          80 "http" Http
            192.0.2.5:8080 {"version": "v1"}
            192.0.2.6:8080 {"version": "v1"}
            192.0.2.9:80
        shop/d.example ServiceEntry shop/turns [] dns ["d.example"]
          80 "http" Http
            192.0.2.4:80
            [fd00::2]:80
    "#]]
    .assert_eq(&externals(&bench.snapshot));
    assert!(bench.snapshot.service_for("a.example", "shop").is_some());
    // The one in use stays as long as it is an answer, in whatever order they come.
    let of_turns = |bench: &Bench| {
        let service = bench.snapshot.service_for("d.example", "shop").unwrap();
        let endpoints = service.ports[0].endpoints.iter();
        endpoints.map(|one| one.address.ip().to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of_turns(&bench), "192.0.2.4 fd00::2");
    bench.objects.resolve(answers(&[("d.example", &["192.0.2.3", "192.0.2.4"])]));
    bench.compile();
    assert_eq!(of_turns(&bench), "192.0.2.4");
    bench.objects.resolve(answers(&[("d.example", &["192.0.2.3", "192.0.2.8"])]));
    bench.compile();
    assert_eq!(of_turns(&bench), "192.0.2.3");
}

#[test]
fn answers_that_say_the_same_change_nothing() {
    let mut bench = Bench::new();
    bench.objects.resolve(answers(&[("a.example", &["192.0.2.1", "192.0.2.2"])]));
    bench.apply("", &entry("a", 1, &format!("  hosts: [a.example]\n  resolution: DNS\n{WEB}")), 1);
    let before = bench.snapshot.generation;
    bench.objects.resolve(answers(&[("a.example", &["192.0.2.2", "192.0.2.1"])]));
    bench.compile();
    assert_eq!(bench.snapshot.generation, before);
    bench.objects.resolve(answers(&[("a.example", &["192.0.2.2"])]));
    bench.compile();
    assert_eq!(bench.snapshot.generation, before + 1);
}

#[test]
fn the_oldest_has_the_host_and_a_service_beats_all() {
    let hosts = |hosts: &str, more: &str| format!("  hosts: [{hosts}]\n{WEB}{more}");
    let yaml = [
        "
kind: Service
metadata: { name: web, namespace: shop }
spec: { clusterIP: 10.1.0.1, ports: [{ name: http, port: 80 }] }
---",
        &entry("young", 5, &hosts("a.example, '*.wild.example'", "")),
        &entry("old", 1, &hosts("a.example, '*.example'", "\n  addresses: [10.1.0.1, 192.0.2.1]")),
        &entry("clash", 2, &hosts("web.shop.svc.cluster.local", "")),
        &entry("address", 3, &hosts("b.example", "\n  addresses: [192.0.2.1]")),
        &entry("wild", 6, &hosts("'*.wild.example'", "")),
        // Each namespace may have its own.
        &entry("mine", 7, &hosts("p.example", "\n  exportTo: ['.']")),
        &entry("theirs", 8, &hosts("p.example", "\n  exportTo: ['.']"))
            .replace("namespace: shop", "namespace: bank"),
        &entry("nobodys", 9, &hosts("n.example", "\n  exportTo: ['~']")),
    ]
    .concat();
    let mut bench = Bench::new();
    let found = bench.apply("", &yaml, 1000);
    expect![[r#"
        warning ServiceEntry shop/address spec.addresses: 192.0.2.1:80 belongs to ServiceEntry shop/old, which is older
        warning ServiceEntry shop/clash spec.hosts[0]: no effect: `web.shop.svc.cluster.local` is the host of Service shop/web
        warning ServiceEntry shop/old spec.addresses: 10.1.0.1 belongs to Service shop/web
        warning ServiceEntry shop/wild spec.hosts[0]: no effect: ServiceEntry shop/young, which is older, has this host
        warning ServiceEntry shop/young spec.hosts[0]: no effect: ServiceEntry shop/old, which is older, has this host
    "#]].assert_eq(&found);
    let of = |host: &str, namespace: &str| {
        let named = bench.snapshot.service_for(host, namespace);
        let found = named.or_else(|| bench.snapshot.external.covering(host, namespace));
        found.map_or("-".to_owned(), |service| service.key.to_string())
    };
    assert_eq!(of("a.example", "bank"), "shop/a.example");
    assert_eq!(of("p.example", "shop"), "shop/p.example");
    assert_eq!(of("p.example", "bank"), "bank/p.example");
    // Covered by the wildcard, as whose it is private is not seen.
    assert_eq!(of("p.example", "other"), "shop/*.example");
    assert_eq!(of("n.example", "shop"), "shop/*.example");
    assert_eq!(of("x.wild.example", "shop"), "shop/*.wild.example");
    let owner =
        |host: &str| bench.snapshot.services_by_host[host].external().unwrap().object.clone();
    assert_eq!(&*owner("a.example").name, "old");
}

#[test]
fn routes_and_rules_name_them() {
    let yaml = [
        entry(
            "api",
            1,
            &format!(
                "  hosts: [api.example]\n  resolution: STATIC\n{WEB}
  endpoints: [{{ address: 192.0.2.1, labels: {{ version: v1 }} }}]"
            ),
        ),
        entry("wild", 2, &format!("  hosts: ['*.wild.example']\n{WEB}")),
    ]
    .concat()
        + "
kind: VirtualService
metadata: { name: api, namespace: shop }
spec:
  hosts: [api.example, a.wild.example]
  http:
  - match: [{ uri: { prefix: /a } }]
    timeout: 1s
    route: [{ destination: { host: api.example, subset: v1 } }]
  - route: [{ destination: { host: a.wild.example, port: { number: 80 } } }]
  tcp:
  - route: [{ destination: { host: apu.example } }]
---
kind: DestinationRule
metadata: { name: api, namespace: shop }
spec: { host: api.example, subsets: [{ name: v1, labels: { version: v1 } }] }
";
    let mut bench = Bench::new();
    let found = bench.apply("", &yaml, 1000);
    let text = found + &routes(&bench.snapshot) + &l4_routes(&bench.snapshot);
    expect![[r#"
        error VirtualService shop/api spec.tcp[0].route[0].destination.host: no service `apu.example`; did you mean `api.example`?
        VirtualService shop/api [Exact("api.example"), Exact("a.wild.example")]
          default [uri ^/a] /1 api.example/v1 1 timeout 1s
          default [] /1 a.wild.example:80/* 1
        VirtualService shop/api [Exact("api.example"), Exact("a.wild.example")]
          tcp [] /1 apu.example/* 1 (no service)
    "#]].assert_eq(&text);
}

fn bad_entries() -> String {
    [
        entry("hosts", 1, "  hosts: ['*', a..b, c.d, C.d]\n  ports: []"),
        entry("none", 1, "  hosts: []\n  resolution: DYNAMIC_DNS"),
        entry(
            "dns",
            1,
            &format!("  hosts: ['*.a.b']\n  resolution: DNS\n  addresses: [10.0.0.0/8, x]\n{WEB}"),
        ),
        entry(
            "ports",
            1,
            "  hosts: [a.b]
  ports:
  - { number: 0, name: a }
  - { number: 80 }
  - { number: 80, name: b, targetPort: 70000 }
  - { number: 81, name: b, targetPort: 70000 }
  - { number: 82, name: b }
  - { number: 83, name: b }",
        ),
        entry(
            "endpoints",
            1,
            &format!(
                "  hosts: [a.b]\n  resolution: STATIC\n{WEB}
  workloadSelector: {{ labels: {{ app: db }} }}
  endpoints:
  - {{ address: db.example }}
  - {{ ports: {{ http: 0, sql: 5432 }} }}"
            ),
        ),
        entry(
            "dialled",
            1,
            &format!("  hosts: [b.c]\n{WEB}\n  endpoints: [{{ address: 10.0.0.1 }}]"),
        ),
        entry(
            "turns",
            1,
            &format!(
                "  hosts: [c.d]\n  resolution: DNS_ROUND_ROBIN\n{WEB}
  exportTo: ['~', shop]
  endpoints: [{{ address: a.b }}, {{ address: '*.b' }}]"
            ),
        ),
        entry("nowhere", 1, &format!("  hosts: [d.e]\n  resolution: STATIC\n{WEB}")),
        entry("misspelt", 1, &format!("  hosts: [e.f]\n  resolutoin: STATIC\n{WEB}")),
    ]
    .concat()
}

#[test]
fn bad_entries_name_their_fields() {
    check(
        &bad_entries(),
        nothing,
        expect![[r#"
        error ServiceEntry shop/dialled spec.endpoints: have no meaning with `resolution: NONE`
        error ServiceEntry shop/dns spec.addresses[0]: a range can be given with `resolution` NONE or STATIC only
        error ServiceEntry shop/dns spec.addresses[1]: `x` is neither an address nor a range of addresses
        error ServiceEntry shop/dns spec.hosts[0]: `*.a.b` cannot be resolved: name `endpoints`, or a host
        error ServiceEntry shop/endpoints spec: only one of `endpoints` and `workloadSelector` can be given
        error ServiceEntry shop/endpoints spec.endpoints[0].address: `db.example` is not an address: names need `resolution: DNS`
        error ServiceEntry shop/endpoints spec.endpoints[1].address: missing
        error ServiceEntry shop/endpoints spec.endpoints[1].ports[http]: 0 is not a port
        error ServiceEntry shop/endpoints spec.endpoints[1].ports[sql]: the service has no port `sql`
        error ServiceEntry shop/hosts spec.hosts[0]: `*` is not a host name, or `*.` with a name
        error ServiceEntry shop/hosts spec.hosts[1]: `a..b` is not a host name, or `*.` with a name
        error ServiceEntry shop/hosts spec.hosts[3]: `c.d` is there twice
        error ServiceEntry shop/misspelt spec.resolutoin: unknown field; did you mean `resolution`?
        error ServiceEntry shop/none spec.hosts: missing: name at least one
        error ServiceEntry shop/none spec.resolution: DYNAMIC_DNS is not supported yet
        error ServiceEntry shop/ports spec.ports[0].number: missing, or not a port
        error ServiceEntry shop/ports spec.ports[1].name: missing
        error ServiceEntry shop/ports spec.ports[2].number: 80 is there twice
        error ServiceEntry shop/ports spec.ports[3].targetPort: 70000 is not a port
        error ServiceEntry shop/ports spec.ports[5].name: `b` is there twice
        error ServiceEntry shop/turns spec.endpoints: DNS_ROUND_ROBIN takes one
        error ServiceEntry shop/turns spec.endpoints[1].address: `*.b` is neither an address nor a host name
        error ServiceEntry shop/turns spec.exportTo[0]: `~` (nobody) must stand alone
        warning ServiceEntry shop/hosts spec.ports: none: no effect
        warning ServiceEntry shop/none spec.ports: none: no effect
        warning ServiceEntry shop/nowhere spec.endpoints: none: the service has nowhere to go
    "#]],
    );
}
