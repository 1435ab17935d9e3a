//! Where connections go, over small worlds.

use std::sync::Arc;

use super::*;
use crate::balance::Draws;
use crate::balance::fixture::{endpoint, object, pod, rule, service, snapshot};
use crate::model::{
    External, HeaderOps, HostPattern, L4Match, L4Routes, LoadBalancer, Resolution, ServiceKey,
    VirtualService, Visibility, WeightedDestination,
};

fn to(host: &str, key: (&str, &str), subset: Option<&str>, weight: u32) -> WeightedDestination {
    WeightedDestination {
        host: host.into(),
        service: Some(ServiceKey { namespace: key.0.into(), name: key.1.into() }),
        subset: subset.map(Into::into),
        port: None,
        weight,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        authority: None,
    }
}

fn l4_rule(matches: Vec<L4Match>, destinations: Vec<WeightedDestination>) -> L4Rule {
    let total_weight = destinations.iter().map(|to| to.weight).sum();
    L4Rule { matches, destinations, total_weight }
}

fn routes(host: &str, l4: L4Routes) -> VirtualService {
    VirtualService {
        object: object("VirtualService", host),
        hosts: vec![HostPattern::parse(host)],
        visibility: Visibility::Everyone,
        created: 0,
        http: Vec::new().into(),
        l4,
    }
}

/// A service of a `ServiceEntry` in `shop`, visible to `to`, without an address of its own.
fn external(
    host: &str,
    (port, protocol): (u16, Protocol),
    resolution: Resolution,
    endpoints: &[&str],
    to: Visibility,
) -> Arc<Service> {
    let endpoints = endpoints
        .iter()
        .map(|address| crate::model::Endpoint { workload: None, ..endpoint(address, "") });
    let mut made = service(("shop", host), "10.9.9.9", (port, protocol), endpoints.collect());
    made.hostname = host.into();
    made.addresses.clear();
    made.kind = ServiceKind::External(Box::new(External {
        object: object("ServiceEntry", host),
        visibility: to,
        is_internal: false,
        resolution,
        ranges: Vec::new(),
        subject_alt_names: Arc::default(),
    }));
    Arc::new(made)
}

/// Routes of `shop/db` by weight and of `shop/front` by server name.
fn own_routes() -> Vec<VirtualService> {
    let hosted = |name: &str| format!("{name}.shop.svc.cluster.local");
    let split = L4Routes {
        tls: Vec::new(),
        tcp: vec![
            l4_rule(
                vec![L4Match { source_namespace: Some("bank".into()), ..L4Match::default() }],
                vec![to("nobody", ("shop", "nobody"), None, 1)],
            ),
            l4_rule(
                Vec::new(),
                vec![
                    to(&hosted("db"), ("shop", "db"), Some("v1"), 90),
                    to(&hosted("db"), ("shop", "db"), Some("v2"), 10),
                ],
            ),
        ],
    };
    let sni = |name: &str| {
        vec![L4Match { sni_hosts: vec![HostPattern::parse(name)], ..L4Match::default() }]
    };
    let by_name = L4Routes {
        tls: vec![
            l4_rule(sni("one.example"), vec![to(&hosted("one"), ("shop", "one"), None, 1)]),
            l4_rule(sni("*.example"), vec![to(&hosted("two"), ("shop", "two"), None, 1)]),
        ],
        tcp: vec![l4_rule(Vec::new(), vec![to(&hosted("db"), ("shop", "db"), None, 1)])],
    };
    vec![routes(&hosted("db"), split), routes(&hosted("front"), by_name)]
}

/// Services outside, one of them of another namespace, and one whose name is not resolved yet.
fn others() -> [Arc<Service>; 6] {
    let everyone = Visibility::Everyone;
    [
        external("*.wild.net", (443, Protocol::Tls), Resolution::Dialled, &[], everyone.clone()),
        external(
            "api.net",
            (443, Protocol::Tls),
            Resolution::Static,
            &["192.0.2.1:8443"],
            everyone,
        ),
        external(
            "secret.net",
            (443, Protocol::Tls),
            Resolution::Static,
            &["192.0.2.2:443"],
            Visibility::Namespaces(vec!["bank".into()]),
        ),
        external(
            "late.net",
            (443, Protocol::Tls),
            Resolution::Dns { names: ["late.net".into()].into(), pending: true },
            &[],
            Visibility::Everyone,
        ),
        external(
            "mongo.net",
            (27017, Protocol::Tcp),
            Resolution::Static,
            &["192.0.2.3:27018"],
            Visibility::Everyone,
        ),
        external("any.net", (6379, Protocol::Tcp), Resolution::Dialled, &[], Visibility::Everyone),
    ]
}

/// A database `shop/db` with two versions and routes, a TLS front, and services outside.
fn world() -> Snapshot {
    let db = service(
        ("shop", "db"),
        "10.96.0.1",
        (5432, Protocol::Tcp),
        vec![endpoint("10.0.0.1:5432", "v1"), endpoint("10.0.0.2:5432", "v2")],
    );
    let front = service(("shop", "front"), "10.96.0.2", (443, Protocol::Tls), vec![]);
    let one = service(("shop", "one"), "10.96.0.3", (443, Protocol::Tls), vec![]);
    let two = service(("shop", "two"), "10.96.0.4", (443, Protocol::Tls), vec![]);
    let rules = vec![rule("db.shop.svc.cluster.local", &["v1", "v2"], LoadBalancer::Random)];
    let client = pod("client", &["10.0.9.9"], "");
    let world = snapshot(&[client], vec![db, front, one, two], own_routes(), rules);
    let mut world = Arc::unwrap_or_clone(world);
    for one in others() {
        world.external.insert(&one);
        world.services.insert(one.key.clone(), one);
    }
    world.external.sort();
    world
}

/// Where a connection goes, in words.
fn went(world: &Snapshot, dialled: &str, sni: Option<&str>) -> String {
    went_by(world, dialled, sni, 0)
}

fn went_by(world: &Snapshot, dialled: &str, sni: Option<&str>, draw: u64) -> String {
    let source = pod("client", &["10.0.9.9"], "");
    let dialled = dialled.parse().unwrap();
    let asked = Asked {
        source: &source,
        peer: "10.0.9.9".parse().unwrap(),
        dialled,
        addressed: world.dialled_service(dialled, "shop"),
        sni,
    };
    match target(world, &asked, draw) {
        Ok(Target::Service(to)) => {
            let subset = to.subset.map_or("", |subset| &subset.name);
            format!("{}:{} {subset}", to.service.key, to.port.port).trim_end().to_owned()
        }
        Ok(Target::Dialled(to)) => {
            let of = to.map_or(String::new(), |to| format!(" of {}", to.service.key));
            format!("dialled{of}")
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn tcp_is_split_by_weight_for_each_connection() {
    let (world, draws) = (world(), Draws::seeded(7));
    let mut counts = [0_u32; 2];
    for _ in 0..10_000 {
        match &*went_by(&world, "10.96.0.1:5432", None, draws.next()) {
            "shop/db:5432 v1" => counts[0] += 1,
            "shop/db:5432 v2" => counts[1] += 1,
            other => panic!("{other}"),
        }
    }
    // Five standard deviations of a binomial(10000, 0.1) are 150.
    assert!(counts[1].abs_diff(1_000) < 150, "{counts:?}");
}

#[test]
fn the_server_name_comes_before_tcp_routes() {
    let world = world();
    for (sni, expected) in [
        (Some("one.example"), "shop/one:443"),
        (Some("other.example"), "shop/two:443"),
        // No TLS route: those for TCP hold, and their destination's only port.
        (Some("example"), "shop/db:5432"),
        (None, "shop/db:5432"),
    ] {
        assert_eq!(went(&world, "10.96.0.2:443", sni), expected, "{sni:?}");
    }
}

#[test]
fn a_rule_for_other_clients_is_passed_over() {
    let mut world = world();
    let draws = |world: &Snapshot| went(world, "10.96.0.1:5432", None);
    assert_eq!(draws(&world), "shop/db:5432 v1");
    let mut routes = VirtualService::clone(&world.virtual_services[0]);
    routes.l4.tcp[0].matches[0].source_namespace = Some("shop".into());
    world.virtual_services[0] = Arc::new(routes);
    let missing = "its route names `nobody`, of which no such service or subset is known";
    assert_eq!(draws(&world), missing);
}

/// The client has chosen the pod; how it gets there is the rule's to say.
#[test]
fn a_headless_pod_is_dialled_by_its_services_policy() {
    let mut world = world();
    let mut pods = service(
        ("shop", "pods"),
        "10.9.9.9",
        (6379, Protocol::Tcp),
        vec![endpoint("10.0.0.7:6379", "")],
    );
    pods.addresses.clear();
    pods.kind = ServiceKind::Headless;
    let pods = Arc::new(pods);
    let dialled = "10.0.0.7:6379".parse().unwrap();
    world.headless_by_endpoint.insert(dialled, (pods.key.clone(), 6379));
    let mut limited = rule("pods.shop.svc.cluster.local", &[], LoadBalancer::Random);
    limited.policy.pool.max_connections = 7;
    world.services.insert(pods.key.clone(), pods);
    world.destination_rules.insert("shop".into(), vec![Arc::new(limited)]);
    let source = pod("client", &["10.0.9.9"], "");
    let addressed = world.dialled_service(dialled, "shop");
    let peer = "10.0.9.9".parse().unwrap();
    let asked = Asked { source: &source, peer, dialled, addressed, sni: None };
    let found = target(&world, &asked, 0);
    let Ok(Target::Dialled(Some(to))) = found else { panic!("{found:?}") };
    assert_eq!(to.policy.pool.max_connections, 7);
}

/// Whoever dialled the database must not be sent there when the route says otherwise.
#[test]
fn a_route_follows_an_alias_or_leads_nowhere() {
    let mut world = world();
    let aliases = [("known", "one.shop.svc.cluster.local"), ("unknown", "elsewhere.net")];
    for (name, host) in aliases {
        let mut alias = service(("shop", name), "10.9.9.9", (443, Protocol::Tcp), vec![]);
        alias.addresses.clear();
        alias.kind = ServiceKind::ExternalName(host.into());
        let alias = Arc::new(alias);
        world.services_by_host.insert(alias.hostname.clone(), alias.clone());
        world.services.insert(alias.key.clone(), alias);
    }
    let nowhere = |name: &str| NoTarget::NoAddress(name.into()).to_string();
    for (name, expected) in [
        ("known", "shop/one:443".to_owned()),
        ("unknown", nowhere("unknown")),
        // Its endpoint is what was dialled, which is the database's address.
        ("any.net", nowhere("any.net")),
    ] {
        let mut routes = VirtualService::clone(&world.virtual_services[0]);
        routes.l4.tcp = vec![l4_rule(Vec::new(), vec![to(name, ("shop", name), None, 1)])];
        world.virtual_services[0] = Arc::new(routes);
        assert_eq!(went(&world, "10.96.0.1:5432", None), expected, "{name}");
    }
}

#[test]
fn services_outside_are_found_by_name_endpoint_or_port() {
    let mut world = world();
    for (dialled, sni, expected) in [
        ("198.51.100.1:443", Some("api.net"), "shop/api.net:443"),
        ("198.51.100.1:443", Some("a.wild.net"), "dialled of shop/*.wild.net"),
        // Not so: the wildcard itself, another port, one of another namespace, one not resolved yet.
        ("198.51.100.1:443", Some("wild.net"), "dialled"),
        ("198.51.100.1:8443", Some("api.net"), "dialled"),
        ("198.51.100.1:443", Some("secret.net"), "dialled"),
        ("198.51.100.1:443", Some("late.net"), "dialled"),
        // Without a name, by an endpoint's address; with one that is another's, not.
        ("192.0.2.1:443", None, "shop/api.net:443"),
        ("192.0.2.1:443", Some("elsewhere.net"), "dialled"),
        ("192.0.2.3:27017", None, "shop/mongo.net:27017"),
        // The port alone is enough for a service that has no endpoints of its own.
        ("198.51.100.1:6379", None, "dialled of shop/any.net"),
        ("198.51.100.1:27017", None, "dialled"),
    ] {
        assert_eq!(went(&world, dialled, sni), expected, "{dialled} {sni:?}");
    }
    world.outbound = OutboundPolicy::RegistryOnly;
    let refused = "the mesh does not know it, and outboundTrafficPolicy is REGISTRY_ONLY";
    for (dialled, sni, expected) in [
        ("198.51.100.1:443", Some("api.net"), "shop/api.net:443"),
        ("198.51.100.1:443", Some("a.wild.net"), "dialled of shop/*.wild.net"),
        ("198.51.100.1:443", Some("secret.net"), refused),
        ("198.51.100.1:443", None, refused),
        // Istio's listener of the port: otherwise a name that resolves anew would be cut off.
        ("198.51.100.1:27017", None, "shop/mongo.net:27017"),
        ("198.51.100.1:1234", None, refused),
    ] {
        assert_eq!(went(&world, dialled, sni), expected, "{dialled} {sni:?}");
    }
}

#[test]
fn unreached_endpoints_stay_with_the_agent() {
    let world = world();
    for (address, left) in [
        ("192.0.2.1:443", false),
        ("192.0.2.1:8443", false),
        ("192.0.2.1:9", true),
        ("198.51.100.1:443", true),
    ] {
        assert_eq!(world.leaves_alone(address.parse().unwrap()), left, "{address}");
    }
}
