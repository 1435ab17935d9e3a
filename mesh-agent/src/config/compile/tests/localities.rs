//! Where nodes, pods and endpoints are, and what is said about that in settings.

use expect_test::expect;

use super::*;
use crate::model::TrafficDistribution;

/// Two zones of one region with a node each, and one by its old labels.
const NODES: &str = "
kind: Node
metadata:
  name: n1
  labels:
    topology.kubernetes.io/region: eu
    topology.kubernetes.io/zone: eu-a
    topology.istio.io/subzone: rack-1
    kubernetes.io/hostname: n1
---
kind: Node
metadata: { name: n2, labels: { topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-b } }
---
kind: Node
metadata: { name: n3, labels: { failure-domain.beta.kubernetes.io/region: us, failure-domain.beta.kubernetes.io/zone: us-a } }
---
kind: Node
metadata: { name: n4 }
---
";

const WEB: &str = "
kind: Service
metadata: { name: web, namespace: shop }
spec: { clusterIP: 10.1.0.1, ports: [{ name: http, port: 80 }] }
---
kind: EndpointSlice
metadata: { name: web-1, namespace: shop, labels: { kubernetes.io/service-name: web } }
ports: [{ name: http, port: 8080 }]
endpoints:
- { addresses: [10.0.0.1], zone: ignored }
- { addresses: [10.0.0.2] }
- { addresses: [10.0.0.9], zone: eu-a }
- { addresses: [10.0.0.10], zone: moon }
- { addresses: [10.0.0.11] }
---
";

fn pod(name: &str, node: &str, ip: &str, labels: &str) -> String {
    format!(
        "
kind: Pod
metadata: {{ name: {name}, namespace: shop, uid: {name}, labels: {{ {labels} }} }}
spec: {{ nodeName: {node} }}
status: {{ podIP: {ip} }}
---"
    )
}

/// Where pods and endpoints are.
fn places(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let pods: BTreeMap<_, _> = snapshot.workloads_by_uid.iter().collect();
    for (name, pod) in pods {
        let locality = pod.locality.as_ref().map(ToString::to_string);
        writeln!(text, "{name} {}", locality.unwrap_or("-".to_owned())).unwrap();
    }
    let services: BTreeMap<_, _> = snapshot.services.iter().collect();
    for (key, service) in services {
        for endpoint in service.ports.iter().flat_map(|port| port.endpoints.iter()) {
            let locality = endpoint.locality().map(ToString::to_string);
            let locality = locality.unwrap_or("-".to_owned());
            writeln!(text, "{key} {} {locality}", endpoint.address).unwrap();
        }
    }
    text
}

#[test]
fn pods_are_where_their_node_is_and_endpoints_where_their_pod_is() {
    let pods = [
        pod("a", "n1", "10.0.0.1", ""),
        pod("b", "n2", "10.0.0.2", "istio-locality: us-west.zone-1.rack-9"),
        pod("c", "n3", "10.0.0.3", ""),
        pod("d", "n4", "10.0.0.4", ""),
        pod("e", "n5", "10.0.0.5", ""),
        pod("f", "n5", "10.0.0.6", "istio-locality: eu.north/1"),
    ];
    check(
        &format!("{NODES}{WEB}{}", pods.concat()),
        places,
        expect![[r#"
            a eu/eu-a/rack-1
            b us-west/zone-1/rack-9
            c us/us-a
            d -
            e -
            f eu.north/1
            shop/web 10.0.0.1:8080 eu/eu-a/rack-1
            shop/web 10.0.0.2:8080 us-west/zone-1/rack-9
            shop/web 10.0.0.9:8080 eu/eu-a
            shop/web 10.0.0.10:8080 /moon
            shop/web 10.0.0.11:8080 -
        "#]],
    );
}

#[test]
fn entries_say_where_their_endpoints_are() {
    check(
        &format!(
            "{NODES}{}
kind: ServiceEntry
metadata: {{ name: db, namespace: shop }}
spec:
  hosts: [db.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{ number: 5432, name: sql, protocol: TCP }}]
  endpoints:
  - {{ address: 10.0.0.1 }}
  - {{ address: 10.0.0.2, locality: us/us-b }}
  - {{ address: 10.0.0.3, locality: us/us-b/rack }}
  - {{ address: 10.0.0.4 }}
",
            [pod("a", "n1", "10.0.0.1", ""), pod("b", "n1", "10.0.0.2", "")].concat()
        ),
        places,
        expect![[r#"
            a eu/eu-a/rack-1
            b eu/eu-a/rack-1
            shop/db.example.com 10.0.0.1:5432 eu/eu-a/rack-1
            shop/db.example.com 10.0.0.2:5432 us/us-b
            shop/db.example.com 10.0.0.3:5432 us/us-b/rack
            shop/db.example.com 10.0.0.4:5432 -
        "#]],
    );
}

#[test]
fn a_node_that_moves_renews_its_pods_alone() {
    let mut bench = Bench::new();
    let pods = [pod("a", "n1", "10.0.0.1", ""), pod("b", "n2", "10.0.0.2", "")];
    bench.apply("pods", &pods.concat(), 1);
    bench.apply("nodes", NODES, 2);
    let before = bench.snapshot.clone();
    bench.apply("nodes", &NODES.replace("kubernetes.io/hostname: n1", "any: label"), 3);
    assert_eq!(bench.snapshot.generation, before.generation);
    bench.apply("nodes", &NODES.replace("rack-1", "rack-2"), 4);
    let after = &bench.snapshot;
    assert_eq!(after.generation, before.generation + 1);
    assert!(Arc::ptr_eq(&before.workloads_by_uid["b"], &after.workloads_by_uid["b"]));
    let subzone = &after.workloads_by_uid["a"].locality.as_ref().unwrap().subzone;
    assert_eq!(&**subzone, "rack-2");
}

/// The `localityLbSetting` of rules, at every level.
fn settings(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let mut say = |place: String, policy: &TrafficPolicy| {
        if let Some(locality) = &policy.locality {
            writeln!(text, "{place}: {locality:?}").unwrap();
        }
    };
    for rule in snapshot.destination_rules.values().flatten() {
        say("any".to_owned(), &rule.policy);
        for (port, policy) in &rule.port_policies {
            say(format!("port {port}"), policy);
        }
        for subset in &rule.subsets {
            say(subset.name.to_string(), &subset.policy);
            for (port, policy) in &subset.port_policies {
                say(format!("{} port {port}", subset.name), policy);
            }
        }
    }
    text
}

#[test]
fn settings_stand_wherever_a_balancer_does() {
    check(
        &format!(
            "{WEB}
kind: DestinationRule
metadata: {{ name: web, namespace: shop }}
spec:
  host: web
  trafficPolicy:
    outlierDetection: {{}}
    loadBalancer: {{ localityLbSetting: {{ failover: [{{ from: eu, to: us }}] }} }}
    portLevelSettings:
    - port: {{ number: 80 }}
      loadBalancer:
        localityLbSetting: {{ distribute: [{{ from: eu/*, to: {{ eu/eu-a/*: 80, eu/eu-b: 20 }} }}] }}
  subsets:
  - name: same
    labels: {{ a: b }}
  - name: own
    labels: {{ a: b }}
    trafficPolicy:
      loadBalancer: {{ localityLbSetting: {{ failoverPriority: [topology.istio.io/network, version=v1] }} }}
  - name: 'off'
    labels: {{ a: b }}
    trafficPolicy: {{ loadBalancer: {{ localityLbSetting: {{ enabled: false }} }} }}
"
        ),
        settings,
        expect![[r#"
            any: LocalitySetting { enabled: true, distribute: [], failover: [RegionFailover { from: "eu", to: "us" }], failover_priority: [] }
            port 80: LocalitySetting { enabled: true, distribute: [Distribute { from: LocalityPattern { region: Some("eu"), zone: None, subzone: None }, to: [(LocalityPattern { region: Some("eu"), zone: Some("eu-a"), subzone: None }, 80), (LocalityPattern { region: Some("eu"), zone: Some("eu-b"), subzone: None }, 20)] }], failover: [], failover_priority: [] }
            same: LocalitySetting { enabled: true, distribute: [], failover: [RegionFailover { from: "eu", to: "us" }], failover_priority: [] }
            same port 80: LocalitySetting { enabled: true, distribute: [Distribute { from: LocalityPattern { region: Some("eu"), zone: None, subzone: None }, to: [(LocalityPattern { region: Some("eu"), zone: Some("eu-a"), subzone: None }, 80), (LocalityPattern { region: Some("eu"), zone: Some("eu-b"), subzone: None }, 20)] }], failover: [], failover_priority: [] }
            own: LocalitySetting { enabled: true, distribute: [], failover: [], failover_priority: [PriorityLabel { key: "topology.istio.io/network", value: None }, PriorityLabel { key: "version", value: Some("v1") }] }
            own port 80: LocalitySetting { enabled: true, distribute: [], failover: [], failover_priority: [PriorityLabel { key: "topology.istio.io/network", value: None }, PriorityLabel { key: "version", value: Some("v1") }] }
            off: LocalitySetting { enabled: false, distribute: [], failover: [], failover_priority: [] }
            off port 80: LocalitySetting { enabled: false, distribute: [], failover: [], failover_priority: [] }
        "#]],
    );
}

#[test]
fn what_istio_refuses_is_refused_with_field_and_reason() {
    let mut found = String::new();
    for setting in [
        "{ distribute: [{ from: eu, to: { eu: 100 } }], failover: [{ from: eu, to: us }] }",
        "{ distribute: [{ from: eu, to: { eu/a: 80, eu/b: 10 } }] }",
        "{ distribute: [{ from: eu, to: {} }] }",
        "{ distribute: [{ from: eu, to: { eu/a: 0, eu/b: 100 } }] }",
        "{ distribute: [{ from: eu, to: { eu/a: 40, eu/a/*: 60 } }] }",
        "{ distribute: [{ from: eu/*, to: { eu: 100 } }, { from: eu/a, to: { eu: 100 } }] }",
        "{ distribute: [{ from: '*', to: { eu: 100 } }, { from: us, to: { eu: 100 } }] }",
        "{ distribute: [{ from: 'eu//r', to: { '*/a': 100 } }] }",
        "{ distribute: [{ from: '', to: { eu-*: 100 } }] }",
        "{ failover: [{ from: eu, to: eu }] }",
        "{ failover: [{ from: eu/a, to: '*' }] }",
        "{ failover: [{ from: eu, to: us }], failoverPriority: [topology.kubernetes.io/zone] }",
        "{ failoverPriority: ['=v1'] }",
        "{ distribute: [{ from: eu, to: { eu: 100 } }], failoverPriority: [app] }",
    ] {
        let mut bench = Bench::new();
        let text = bench.apply(
            "",
            &format!(
                "{WEB}
kind: DestinationRule
metadata: {{ name: web, namespace: shop }}
spec:
  host: web
  trafficPolicy: {{ outlierDetection: {{}}, loadBalancer: {{ localityLbSetting: {setting} }} }}
"
            ),
            1,
        );
        found.push_str(&text.replace("spec.trafficPolicy.loadBalancer.localityLbSetting", "…"));
    }
    expect![[r#"
        error DestinationRule shop/web …: only one of `distribute` and `failover` can be given
        error DestinationRule shop/web ….distribute[0].to: the shares add up to 90, not to 100
        error DestinationRule shop/web ….distribute[0].to: the shares add up to 0, not to 100
        error DestinationRule shop/web ….distribute[0].to[eu/a]: 0 is not within 1 and 100
        error DestinationRule shop/web ….distribute[0].to[eu/a/*]: overlaps with another one
        error DestinationRule shop/web ….distribute[1].from: `eu/a` overlaps with one before
        error DestinationRule shop/web ….distribute[1].from: `us` overlaps with one before
        error DestinationRule shop/web ….distribute[0].from: `eu//r` has an empty region, zone or subzone
        error DestinationRule shop/web ….distribute[0].to[*/a]: `*/a`: one `*` can stand at the end, and nowhere else
        error DestinationRule shop/web ….distribute[0].from: `` has an empty region, zone or subzone
        warning DestinationRule shop/web ….distribute[0].to[eu-*]: `eu-*` covers nothing: `*` stands for a whole name
        error DestinationRule shop/web ….failover[0]: `from` and `to` are both `eu`
        error DestinationRule shop/web ….failover[0].from: `eu/a` is not the name of a region alone
        error DestinationRule shop/web ….failover[0].to: `*` is not the name of a region alone
        error DestinationRule shop/web ….failoverPriority: `topology.kubernetes.io/zone` cannot be given beside `failover`
        error DestinationRule shop/web ….failoverPriority[0]: names no label
        warning DestinationRule shop/web ….failoverPriority: no effect: `distribute` counts
    "#]]
    .assert_eq(&found);
}

#[test]
fn an_order_without_ejections_is_said_to_have_no_effect() {
    check(
        &format!(
            "{WEB}
kind: DestinationRule
metadata: {{ name: web, namespace: shop }}
spec:
  host: web
  trafficPolicy:
    loadBalancer: {{ localityLbSetting: {{ failover: [{{ from: eu, to: us }}] }} }}
    portLevelSettings:
    - {{ port: {{ number: 80 }}, loadBalancer: {{ localityLbSetting: {{ failoverPriority: [app] }} }} }}
    - {{ port: {{ number: 90 }}, loadBalancer: {{ localityLbSetting: {{ enabled: true }} }} }}
  subsets:
  - name: v1
    labels: {{ version: v1 }}
    trafficPolicy: {{ outlierDetection: {{}}, loadBalancer: {{ localityLbSetting: {{ failoverPriority: [app] }} }} }}
"
        ),
        nothing,
        expect![[r#"
            warning DestinationRule shop/web spec.trafficPolicy.loadBalancer.localityLbSetting: no effect without `outlierDetection`
            warning DestinationRule shop/web spec.trafficPolicy.portLevelSettings: port 80: `localityLbSetting` has no effect without `outlierDetection`
        "#]],
    );
}

#[test]
fn services_prefer_by_field_or_annotation() {
    let mut bench = Bench::new();
    let mut of = |metadata: &str, spec: &str| {
        let text = bench.apply(
            "",
            &format!(
                "
kind: Service
metadata: {{ name: web, namespace: shop{metadata} }}
spec: {{ clusterIP: 10.1.0.1{spec} }}
"
            ),
            1,
        );
        (bench.snapshot.services.values().next().unwrap().distribution, text)
    };
    let annotation = |value: &str| {
        format!(", annotations: {{ networking.istio.io/traffic-distribution: {value} }}")
    };
    let field = |value: &str| format!(", trafficDistribution: {value}");
    let (zone, node) =
        (Some(TrafficDistribution::PreferSameZone), Some(TrafficDistribution::PreferSameNode));
    for (metadata, spec, expected) in [
        (String::new(), String::new(), None),
        (String::new(), field("PreferClose"), zone),
        (String::new(), field("PreferSameZone"), zone),
        (annotation("PreferClose"), field("PreferSameNode"), node),
        (annotation("preferclose"), String::new(), zone),
        (annotation("PreferSameNode"), String::new(), node),
        (annotation("Any"), String::new(), None),
    ] {
        assert_eq!(of(&metadata, &spec), (expected, String::new()), "{metadata} {spec}");
    }
    let (found, text) = of(&annotation("Near"), &field("SameRack"));
    assert_eq!(found, None);
    expect![[r#"
        warning Service shop/web metadata.annotations[networking.istio.io/traffic-distribution]: `Near` is not supported yet, ignored
        warning Service shop/web spec.trafficDistribution: `SameRack` is not supported yet, ignored
    "#]]
    .assert_eq(&text);
}

#[test]
fn the_mesh_has_a_setting_of_its_own() {
    let config = |mesh: &str| {
        format!(
            "
apiVersion: v1
kind: ConfigMap
metadata: {{ name: istio, namespace: istio-system }}
data: {{ mesh: '{mesh}' }}
"
        )
    };
    let mut bench = Bench::new();
    bench.compile();
    assert!(bench.snapshot.locality.enabled);
    let off = config("localityLbSetting: { enabled: false }");
    assert_eq!(bench.apply("mesh", &off, 1), "");
    assert!(!bench.snapshot.locality.enabled);
    assert_eq!(bench.snapshot.generation, 2);
    bench.apply("mesh", &off, 2);
    assert_eq!(bench.snapshot.generation, 2);
    let text = bench.apply(
        "mesh",
        &config("localityLbSetting: { distribute: [{ from: eu, to: { eu: 99 } }] }"),
        3,
    );
    assert!(!bench.snapshot.locality.enabled, "the last good one stays");
    let start = "error ConfigMap istio-system/istio data.mesh.localityLbSetting.distribute[0].to: \
                 the shares add up to 99, not to 100\n";
    assert!(text.starts_with(start), "{text}");
    bench.apply("mesh", "", 4);
    assert!(bench.snapshot.locality.enabled);
}
