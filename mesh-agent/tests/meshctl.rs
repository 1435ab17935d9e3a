//! The shipped `meshctl` against the agent's administrative socket: every command, and every way of
//! being refused. The server runs in this process on a snapshot made by hand; the mesh itself is
//! tested in the lab.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests, too")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use expect_test::{Expect, expect};
use mesh_agent::admin::{AdminSocket, AdminState, serve};
use mesh_agent::api;
use mesh_agent::identity::{Identities, Issuer, LocalCa, Settings, Trust};
use mesh_agent::model::*;
use tokio::task::JoinSet;

struct Agent {
    dir: tempfile::TempDir,
    /// Aborted when dropped.
    _server: JoinSet<()>,
}

impl Agent {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = AdminSocket::bind(&dir.path().join("admin.sock")).unwrap();
        let state = Arc::new(state().await);
        let run = async move { serve(socket, state, std::future::pending()).await.unwrap() };
        let mut server = JoinSet::new();
        server.spawn(run);
        Self { dir, _server: server }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    /// Standard output, or what went to standard error after `meshctl: `.
    async fn meshctl(&self, args: &[&str]) -> Result<String, String> {
        meshctl(Path::new(env!("CARGO_BIN_EXE_meshctl")), &self.socket(), args, None).await
    }

    async fn check(&self, args: &[&str], expected: Expect) {
        expected.assert_eq(&self.meshctl(args).await.unwrap());
    }
}

async fn meshctl(
    program: &Path,
    socket: &Path,
    args: &[&str],
    user: Option<u32>,
) -> Result<String, String> {
    let mut command = tokio::process::Command::new(program);
    command.arg("--socket").arg(socket).args(args);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let output = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        assert!(output.stdout.is_empty());
        Err(text(output.stderr).strip_prefix("meshctl: ").unwrap().trim_end().to_owned())
    }
}

async fn state() -> AdminState {
    let ca = LocalCa::generate("cluster.local").unwrap();
    let trust = Trust::new([ca.certificate().clone()], ["cluster.local".into()]).unwrap();
    let identities = Identities::new(Issuer::Local(ca), trust, Settings::default());
    identities.ensure(&identity("front")).await.unwrap();
    AdminState {
        node: "node-1".into(),
        started: SystemTime::now(),
        snapshot: Box::new({
            let snapshot = Arc::new(snapshot());
            move || snapshot.clone()
        }),
        identities: Arc::new(identities),
        diagnostics: Box::new(|| {
            let finding = |severity: &str, message: &str| api::Diagnostic {
                severity: severity.into(),
                object: "VirtualService shop/cart".into(),
                message: message.into(),
                ..api::Diagnostic::default()
            };
            vec![finding("warning", "retries are not there yet"), finding("error", "no route")]
        }),
        connections: Box::new(|| {
            vec![api::Connection {
                direction: "outbound".into(),
                workload: "shop/front-1".into(),
                source: "10.1.0.2:40000".into(),
                destination: "10.96.0.7:80".into(),
                state: "not in mesh (older than enrolment)".into(),
                ..api::Connection::default()
            }]
        }),
        ejections: Box::new(|| {
            vec![api::Ejection {
                client: "shop/front-1".into(),
                service: "shop/cart".into(),
                port: 80,
                subset: "v2".into(),
                address: "10.1.1.3:8080".into(),
                workload: "shop/cart-2".into(),
                remaining: 29_400,
                times: 2,
            }]
        }),
        capture: Box::new(|| api::Capture {
            state: "attached".into(),
            pods: vec![api::CapturedPod { uid: "uid-front-1".into(), netns_cookie: 7 }],
            ..api::Capture::default()
        }),
    }
}

fn identity(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn pod(name: &str, node: &str, ip: &str, version: &str) -> Arc<Workload> {
    let account = name.split('-').next().unwrap();
    Arc::new(Workload {
        uid: format!("uid-{name}").into(),
        name: WorkloadName { namespace: "shop".into(), name: name.into() },
        node: node.into(),
        locality: (node == "node-2").then(|| Arc::new(Locality::parse("eu/b"))),
        identity: identity(account),
        ips: vec![ip.parse().unwrap()],
        labels: BTreeMap::from([("version".into(), version.into())]),
        host_network: false,
        selected: true,
        unfit: None,
        enrolled: name != "cart-2",
        finished: false,
        terminating: false,
        capture: CaptureRules::default(),
        peer_policy: PeerPolicy { mode: MtlsMode::Strict, ..PeerPolicy::default() },
    })
}

/// Three pods, one service with subsets, one virtual service that splits it.
fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot { generation: 3, ..Snapshot::default() };
    let pods = [
        pod("front-1", "node-1", "10.1.0.2", ""),
        pod("cart-1", "node-2", "10.2.0.2", "a"),
        pod("cart-2", "node-2", "10.2.0.3", "b"),
    ];
    let endpoints = pods[1..].iter().map(|workload| Endpoint {
        address: SocketAddr::new(workload.ips[0], 8080),
        workload: Some(Arc::clone(workload)),
        labels: None,
        locality: None,
        readiness: Readiness::Ready,
    });
    let key = ServiceKey { namespace: "shop".into(), name: "cart".into() };
    let service = Arc::new(Service {
        key: key.clone(),
        hostname: "cart.shop.svc.cluster.local".into(),
        addresses: vec!["10.96.0.7".parse().unwrap()],
        kind: ServiceKind::ClusterIp,
        distribution: None,
        created: 0,
        ports: vec![ServicePort {
            port: 80,
            name: "http".into(),
            protocol: Protocol::Http,
            endpoints: endpoints.collect(),
        }],
    });
    for workload in pods {
        snapshot.workloads_by_uid.insert(Arc::clone(&workload.uid), workload);
    }
    snapshot.services_by_ip.insert(service.addresses[0], Arc::clone(&service));
    snapshot.services_by_host.insert(Arc::clone(&service.hostname), Arc::clone(&service));
    snapshot.services.insert(key.clone(), service);
    snapshot.destination_rules.insert("shop".into(), vec![Arc::new(destination_rule())]);
    snapshot.virtual_services.push(Arc::new(virtual_service(&key)));
    snapshot.virtual_services_by_host.insert("cart.shop.svc.cluster.local".into(), vec![0]);
    snapshot
}

fn object(kind: &str) -> ObjectRef {
    ObjectRef { kind: kind.into(), namespace: "shop".into(), name: "cart".into() }
}

fn destination_rule() -> DestinationRule {
    let subset = |name: &str| Subset {
        name: name.into(),
        labels: BTreeMap::from([("version".into(), name.into())]),
        policy: TrafficPolicy { load_balancer: LoadBalancer::RoundRobin, ..Default::default() },
        port_policies: BTreeMap::new(),
    };
    DestinationRule {
        object: object("DestinationRule"),
        host: HostPattern::parse("cart.shop.svc.cluster.local"),
        visibility: Visibility::Everyone,
        workload_selector: BTreeMap::new(),
        policy: TrafficPolicy::default(),
        port_policies: BTreeMap::new(),
        subsets: vec![subset("a"), subset("b")],
    }
}

fn virtual_service(service: &ServiceKey) -> VirtualService {
    let to = |subset: Option<&str>, weight: u32| WeightedDestination {
        host: "cart.shop.svc.cluster.local".into(),
        service: Some(service.clone()),
        subset: subset.map(Into::into),
        port: None,
        weight,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        authority: None,
    };
    let rule = |name: &str, matches: Vec<HttpMatch>, destinations: Vec<WeightedDestination>| {
        let total_weight = destinations.iter().map(|to| to.weight).sum();
        let forward = Forward {
            destinations,
            total_weight,
            rewrite: Rewrite::default(),
            timeout: None,
            retries: RetryPolicy::default(),
            mirrors: vec![],
        };
        HttpRule {
            name: name.into(),
            matches,
            action: Action::Forward(forward),
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            fault: None,
            cors: None,
        }
    };
    let api = HttpMatch {
        uri: Some(StringMatch::Prefix("/api".into())),
        headers: vec![KeyMatch {
            key: "end-user".into(),
            value: StringMatch::Exact("jason".into()),
        }],
        ..HttpMatch::default()
    };
    VirtualService {
        object: object("VirtualService"),
        hosts: vec![HostPattern::parse("cart.shop.svc.cluster.local")],
        visibility: Visibility::Everyone,
        created: 0,
        http: vec![
            rule("wrong", vec![api], vec![to(Some("c"), 1)]),
            rule("split", Vec::new(), vec![to(Some("a"), 90), to(Some("b"), 10)]),
        ]
        .into(),
        l4: L4Routes::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_shows_what_the_agent_has() {
    let agent = Agent::start().await;
    agent.check(&["workloads"], expect![[r#"
        NAMESPACE   NAME      NODE     LOCALITY   IP         STATE     MODE     IDENTITY
        shop        cart-1    node-2   eu/b       10.2.0.2   in mesh   STRICT   spiffe://cluster.local/ns/shop/sa/cart
        shop        cart-2    node-2   eu/b       10.2.0.3   pending   STRICT   spiffe://cluster.local/ns/shop/sa/cart
        shop        front-1   node-1   -          10.1.0.2   in mesh   STRICT   spiffe://cluster.local/ns/shop/sa/front
    "#]]).await;
    agent
        .check(
            &["services"],
            expect![[r#"
        NAMESPACE   NAME   TYPE        ADDRESSES   PORTS     READY
        shop        cart   ClusterIP   10.96.0.7   80/http   2/2
    "#]],
        )
        .await;
    agent.check(&["routes", "cart", "-n", "shop"], expect![[r#"
        Host:               cart.shop.svc.cluster.local
        Client namespace:   shop
        Service:            shop/cart
        VirtualService:     shop/cart

        Rule 1: wrong (forward)
          if uri prefix /api and header end-user = jason
          SHARE   HOST                          PORT       SUBSET   BALANCER   DESTINATIONRULE   ENDPOINTS
          100%    cart.shop.svc.cluster.local   as asked   c        -          -                 no DestinationRule defines subset c

        Rule 2: split (forward)
          SHARE   HOST                          PORT   SUBSET   BALANCER      DESTINATIONRULE   ENDPOINTS
          90%     cart.shop.svc.cluster.local   80     a        ROUND_ROBIN   shop/cart         10.2.0.2:8080
          10%     cart.shop.svc.cluster.local   80     b        ROUND_ROBIN   shop/cart         10.2.0.3:8080
    "#]]).await;
    agent.check(&["ejections"], expect![[r#"
        CLIENT         SERVICE        SUBSET   ENDPOINT        POD           EJECTED            BACK IN
        shop/front-1   shop/cart:80   v2       10.1.1.3:8080   shop/cart-2   2 times in a row   30s
    "#]]).await;
    agent.check(&["connections"], expect![[r#"
        WORKLOAD       DIRECTION   SOURCE           DESTINATION    PROTOCOL   STATE                                AGE   SENT   RECEIVED   PEER
        shop/front-1   outbound    10.1.0.2:40000   10.96.0.7:80   -          not in mesh (older than enrolment)   -     -      -          -
    "#]]).await;
    agent
        .check(
            &["config", "diagnostics"],
            expect![[r#"
        SEVERITY   OBJECT                     FIELD   MESSAGE                     PLACE
        error      VirtualService shop/cart   -       no route                    -
        warning    VirtualService shop/cart   -       retries are not there yet   -
    "#]],
        )
        .await;
    let status = agent.meshctl(&["status"]).await.unwrap();
    assert!(status.contains("generation 3, errors: 1, warnings: 1"), "{status}");
    let certificates = agent.meshctl(&["certificates"]).await.unwrap();
    assert!(certificates.contains("spiffe://cluster.local/ns/shop/sa/front   valid   in 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn json_has_all_values() {
    let agent = Agent::start().await;
    let json = agent.meshctl(&["-o", "json", "certificates"]).await.unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let certificate = &json["certificates"][0];
    assert_eq!(certificate["identity"], "spiffe://cluster.local/ns/shop/sa/front");
    assert_eq!(certificate["serial"].as_str().unwrap().len(), 32);
    let left = certificate["not_after"].as_i64().unwrap() - json["now"].as_i64().unwrap();
    assert!((86_390..=86_400).contains(&left), "{left}");
    let json = agent.meshctl(&["routes", "10.96.0.7", "-o", "json"]).await.unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["rules"][1]["destinations"][1]["endpoints"][0]["workload"], "shop/cart-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_completed_as_in_a_pod() {
    let agent = Agent::start().await;
    for (host, namespace) in [
        ("cart", "shop"),
        ("cart.shop", "else"),
        ("CART.shop.svc:80", "else"),
        ("cart.shop.svc.cluster.local.", "else"),
    ] {
        let text = agent.meshctl(&["routes", host, "-n", namespace]).await.unwrap();
        assert!(text.contains("cart.shop.svc.cluster.local\n"), "{host}: {text}");
    }
    let error = agent.meshctl(&["routes", "cart", "-n", "else"]).await.unwrap_err();
    assert_eq!(error, "no Service and no VirtualService of the mesh is called `cart`");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_agent_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let program = Path::new(env!("CARGO_BIN_EXE_meshctl"));
    let error = meshctl(program, &socket, &["status"], None).await.unwrap_err();
    assert!(error.starts_with(&format!("there is no agent at {}", socket.display())), "{error}");
    assert!(error.contains("--socket PATH or MALHA_SOCKET"), "{error}");

    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let error = meshctl(program, &socket, &["status"], None).await.unwrap_err();
    assert!(error.ends_with("is gone: nobody listens there"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_root_is_answered() {
    const NOBODY: u32 = 65_534;
    let agent = Agent::start().await;
    let mode = agent.socket().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    if agent.socket().metadata().unwrap().uid() != 0 {
        eprintln!("SKIPPED only_root_is_answered: needs root, to run meshctl as another user");
        return;
    }
    // Where anybody can run it.
    let program = agent.dir.path().join("meshctl");
    std::fs::copy(env!("CARGO_BIN_EXE_meshctl"), &program).unwrap();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(agent.dir.path(), 0o755);
    let error = meshctl(&program, &agent.socket(), &["status"], Some(NOBODY)).await.unwrap_err();
    assert!(error.ends_with("permission denied: only root may ask the agent"), "{error}");
    // Even if someone opens the file up, the agent looks at the caller.
    open(&agent.socket(), 0o666);
    let error = meshctl(&program, &agent.socket(), &["status"], Some(NOBODY)).await.unwrap_err();
    assert_eq!(error, "user 65534 is not root");
}

#[tokio::test]
async fn the_socket_comes_and_goes_with_its_agent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("below/admin.sock");
    let first = AdminSocket::bind(&path).unwrap();
    let second = AdminSocket::bind(&path).unwrap();
    drop(first);
    assert!(path.exists(), "the next agent's socket is left alone");
    drop(second);
    assert!(!path.exists());
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    std::fs::write(&path, "precious").unwrap();
    assert!(AdminSocket::bind(&path).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
