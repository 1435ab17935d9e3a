//! What one decision of the data path costs, and a compile: `cargo bench -p mesh-agent`.
//!
//! Not a load test (`cargo xtask bench` is that): one thread, no sockets, everything in the caches.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method, Uri};
use mesh_agent::balance::{Ask, Choice, Draws, Live, choose_version, hash_of};
use mesh_agent::config::{Objects, Settings, compile, parse};
use mesh_agent::http::{Head, Route, route, virtual_host};
use mesh_agent::model::{
    LoadBalancer, OutlierDetection, Service, Snapshot, TrafficPolicy, Workload,
};

const ENDPOINTS: usize = 5_000;
const ROUTES: usize = 10_000;
const HOSTS: usize = 5_000;
const WILDCARDS: usize = 100;

fn address(at: usize) -> String {
    format!("10.1.{}.{}", at / 250, at % 250 + 1)
}

fn client() -> String {
    "apiVersion: v1\nkind: Pod\nmetadata: { name: client, namespace: shop, uid: client }\n\
     spec: { nodeName: n1, serviceAccountName: client, containers: [] }\n\
     status: { phase: Running, podIPs: [{ ip: 10.9.0.1 }] }\n"
        .to_owned()
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec: {{ clusterIPs: [{ip}], ports: [{{ port: 80, name: http, targetPort: 8080 }}] }}\n"
    )
}

fn slice(service: &str, endpoints: std::ops::Range<usize>) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{ name: {service}-{}, namespace: shop, \
         labels: {{ kubernetes.io/service-name: {service} }} }}\n\
         ports: [{{ name: http, port: 8080 }}]\nendpoints:\n",
        endpoints.start
    );
    for at in endpoints {
        let _ =
            writeln!(text, "- {{ addresses: [{}], conditions: {{ ready: true }} }}", address(at));
    }
    text
}

fn virtual_service(name: &str, routes: usize) -> String {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{ name: {name}, namespace: shop }}\nspec:\n  hosts: [{name}]\n  http:\n"
    );
    for at in 0..routes {
        let _ = writeln!(
            text,
            "  - {{ match: [{{ uri: {{ prefix: /api/{at}/ }} }}], \
             route: [{{ destination: {{ host: {name} }} }}] }}"
        );
    }
    text
}

/// Each text is a file, as in a folder of manifests.
fn objects(texts: impl Iterator<Item = String>) -> Objects {
    let settings = Settings::default();
    let mesh = settings.mesh.clone();
    let mut objects = Objects::new(settings);
    for (at, text) in texts.enumerate() {
        objects.apply(&format!("{at}.yaml"), parse(&text, None, &mesh), 0);
    }
    objects
}

fn snapshot(objects: &Objects) -> Arc<Snapshot> {
    Arc::new(compile(objects, &Snapshot::default()).snapshot)
}

fn pod_and_service(snapshot: &Snapshot) -> (Arc<Workload>, Arc<Service>) {
    let service = snapshot.services_by_host.get("web.shop.svc.cluster.local").expect("web");
    (Arc::clone(snapshot.workloads_by_uid.get("client").expect("client")), Arc::clone(service))
}

fn routes(criterion: &mut Criterion) {
    let texts = [client(), service("web", "10.96.0.1"), virtual_service("web", ROUTES)];
    let snapshot = snapshot(&objects(texts.into_iter()));
    let (client, _) = pod_and_service(&snapshot);
    let dialled: SocketAddr = ([10, 96, 0, 1], 80).into();
    let mut group = criterion.benchmark_group("route");
    for at in [0, ROUTES / 2, ROUTES - 1] {
        let uri: Uri = format!("/api/{at}/x").parse().expect("a path");
        let headers = HeaderMap::new();
        let head = Head { method: &Method::GET, uri: &uri, headers: &headers, authority: "web" };
        group.bench_function(format!("{at} of {ROUTES}"), |bencher| {
            bencher.iter(|| {
                let host = virtual_host(&snapshot, &client, dialled, "web").expect("a host");
                assert!(matches!(route(&host, &client, &head), Route::Rule(..)));
            });
        });
    }
}

fn picks(criterion: &mut Criterion) {
    let slices = (0..ENDPOINTS).step_by(100).map(|from| slice("web", from..from + 100));
    let texts = [client(), service("web", "10.96.0.1")].into_iter().chain(slices);
    let snapshot = snapshot(&objects(texts));
    let (client, web) = pod_and_service(&snapshot);
    assert_eq!(web.ports[0].endpoints.len(), ENDPOINTS);
    let by = |load_balancer| TrafficPolicy { load_balancer, ..TrafficPolicy::default() };
    let watched = TrafficPolicy {
        outlier: Some(Arc::new(OutlierDetection::default())),
        ..by(LoadBalancer::LeastRequest)
    };
    let mut group = criterion.benchmark_group(format!("pick among {ENDPOINTS}"));
    for (name, policy) in [
        ("least request", by(LoadBalancer::LeastRequest)),
        ("round robin", by(LoadBalancer::RoundRobin)),
        ("ring", by(LoadBalancer::RingHash { minimum: 1_024 })),
        ("maglev", by(LoadBalancer::Maglev { size: 65_537 })),
        ("watched", watched),
    ] {
        let (live, draws) = (Live::new(Arc::clone(&snapshot)), Draws::seeded(1));
        let ask = Ask {
            source: &client,
            service: &web,
            port: &web.ports[0],
            subset: None,
            policy: &policy,
            dialled: ([10, 96, 0, 1], 80).into(),
        };
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let draw = draws.next();
                let choice = Choice { tried: &[], leave: &[], hash: Some(draw), draw };
                let picked = live.upstream(ask).pick(&choice).expect("an endpoint");
                picked.active.answered(200);
            });
        });
        group.bench_function(format!("{name}, the first of a generation"), |bencher| {
            bencher.iter(|| {
                let live = Live::new(Arc::clone(&snapshot));
                let choice = Choice { tried: &[], leave: &[], hash: Some(1), draw: 1 };
                live.upstream(ask).pick(&choice).expect("an endpoint").endpoint.address
            });
        });
    }
    group.finish();
    criterion.bench_function("hash of 32 bytes", |bencher| {
        bencher.iter(|| hash_of(std::hint::black_box(&[7; 32])));
    });
    criterion.bench_function("choice among 3 versions", |bencher| {
        let versions = [(1, 80), (2, 15), (3, 5)];
        bencher.iter(|| choose_version(std::hint::black_box(9), versions.into_iter()));
    });
}

/// Services with their routes.
fn hosts() -> impl Iterator<Item = String> {
    (0..HOSTS).flat_map(|at| {
        let name = format!("web-{at}");
        let ip = format!("10.{}.{}.{}", 100 + at / 62_500, at / 250 % 250, at % 250 + 1);
        [service(&name, &ip), slice(&name, at..at + 2), virtual_service(&name, 2)]
    })
}

/// A `ServiceEntry` and routes for hosts below one name.
fn wildcard(name: &str) -> [String; 2] {
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{ name: {name}, namespace: shop }}\nspec:\n  hosts: ['*.{name}.example.com']\n  \
         ports: [{{ number: 80, name: http, protocol: HTTP }}]\n"
    );
    let routes = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{ name: {name}, namespace: shop }}\nspec:\n  hosts: ['*.{name}.example.com']\n  \
         http: [{{ route: [{{ destination: {{ host: '*.{name}.example.com' }} }}] }}]\n"
    );
    [entry, routes]
}

/// The virtual host of a request, by its Host.
fn host_matches(criterion: &mut Criterion) {
    let wildcards = (0..WILDCARDS).flat_map(|at| wildcard(&format!("wild-{at}")));
    let texts = [client()].into_iter().chain(hosts()).chain(wildcards);
    let snapshot = snapshot(&objects(texts));
    let client = Arc::clone(snapshot.workloads_by_uid.get("client").expect("client"));
    let mut group = criterion.benchmark_group(format!("host among {HOSTS}"));
    let last = WILDCARDS - 1;
    for (name, authority, is_known) in [
        ("in full", "web-2500.shop.svc.cluster.local", true),
        ("short", "web-2500:80", true),
        (
            &*format!("by the last of {WILDCARDS} wildcards"),
            &*format!("a.wild-{last}.example.com"),
            true,
        ),
        ("unknown", "nobody.example.net", false),
    ] {
        let dialled: SocketAddr = ([198, 51, 100, 1], 80).into();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let found = virtual_host(&snapshot, &client, dialled, authority);
                assert_eq!(found.is_some_and(|host| host.virtual_service.is_some()), is_known);
            });
        });
    }
}

fn compiles(criterion: &mut Criterion) {
    let objects = objects(hosts());
    let compiled = compile(&objects, &Snapshot::default());
    assert_eq!(compiled.snapshot.virtual_services.len(), HOSTS);
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    group.bench_function(format!("{HOSTS} hosts"), |bencher| {
        bencher.iter(|| compile(&objects, &compiled.snapshot));
    });
}

criterion_group!(benches, routes, host_matches, picks, compiles);
criterion_main!(benches);
