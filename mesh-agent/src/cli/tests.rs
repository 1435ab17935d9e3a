//! The tables, as a person sees them.

use std::collections::BTreeMap;

use clap::CommandFactory as _;
use expect_test::{Expect, expect};

use super::*;
use crate::api::{
    Capture, CapturedPod, Certificate, CertificatesReply, Connection, ConnectionsReply,
    Destination, Diagnostic, DiagnosticsReply, Endpoint, RoutesReply, Rule, Service, ServicePort,
    ServicesReply, StatusReply, Workload, WorkloadsReply,
};

fn check(text: String, expected: Expect) {
    expected.assert_eq(&text);
}

fn text(of: &str) -> String {
    of.to_owned()
}

fn endpoint(address: &str, ready: bool) -> Endpoint {
    Endpoint {
        address: text(address),
        workload: text("shop/cart-1"),
        ready,
        enrolled: true,
        locality: text("eu/a"),
    }
}

#[test]
fn arguments_are_consistent() {
    Args::command().debug_assert();
    let args = Args::try_parse_from(["meshctl", "routes", "cart", "-o", "json", "-n", "shop"]);
    let args = args.unwrap();
    assert_eq!(args.output, Format::Json);
    let Command::Agent(AgentCommand::Routes { namespace, .. }) = args.command else { panic!() };
    assert_eq!(namespace, "shop");
    assert!(Args::try_parse_from(["meshctl", "config", "diagnostics"]).is_ok());
    assert!(Args::try_parse_from(["meshctl", "routes"]).is_err());
}

#[test]
fn status() {
    let reply = StatusReply {
        version: text("0.1.0"),
        node: text("node-1"),
        trust_domain: text("cluster.local"),
        started: 1_000_000,
        now: 1_000_000 + 3 * 3600 + 5 * 60,
        generation: 7,
        workloads: 4,
        services: 2,
        virtual_services: 1,
        destination_rules: 1,
        certificates: 2,
        config_errors: 1,
        config_warnings: 0,
        capture: Some(Capture {
            state: text("attached"),
            pin_dir: text("/sys/fs/bpf/malha/v1"),
            pods: vec![CapturedPod { uid: text("u"), netns_cookie: 4711 }],
            counters: BTreeMap::from([(text("captured"), 12), (text("refused"), 0)]),
        }),
    };
    check(
        table::status(&reply),
        expect![[r#"
        Node:                node-1
        Version:             0.1.0
        Uptime:              3h5m
        Trust domain:        cluster.local
        Configuration:       generation 7, errors: 1, warnings: 0
        Workloads:           4
        Services:            2
        Virtual services:    1
        Destination rules:   1
        Certificates:        2
        Capture:             attached
        Captured pods:       1
        Pinned at:           /sys/fs/bpf/malha/v1
        Counters:
          captured:          12
          refused:           0
    "#]],
    );
}

#[test]
fn workloads() {
    let row = |name: &str, state: &str, ports: &[(u32, &str)]| Workload {
        namespace: text("shop"),
        name: text(name),
        node: text("node-1"),
        locality: text("eu/a"),
        ips: vec![text("10.1.0.2"), text("fd00::2")],
        identity: text("spiffe://cluster.local/ns/shop/sa/cart"),
        state: text(state),
        mode: text("STRICT"),
        port_modes: ports.iter().map(|(port, mode)| (*port, text(mode))).collect(),
        ..Workload::default()
    };
    let pending = Workload {
        node: text(""),
        locality: text(""),
        ips: Vec::new(),
        ..row("cart-2", "pending", &[])
    };
    let workloads = vec![row("cart-1", "in mesh", &[(8080, "PERMISSIVE")]), pending];
    check(
        table::workloads(&WorkloadsReply { workloads }),
        expect![[r#"
        NAMESPACE   NAME     NODE     LOCALITY   IP                 STATE     MODE                     IDENTITY
        shop        cart-1   node-1   eu/a       10.1.0.2,fd00::2   in mesh   STRICT,8080=PERMISSIVE   spiffe://cluster.local/ns/shop/sa/cart
        shop        cart-2   -        -          -                  pending   STRICT                   spiffe://cluster.local/ns/shop/sa/cart
    "#]],
    );
    check(
        table::workloads(&WorkloadsReply::default()),
        expect![[r#"
        No workloads.
    "#]],
    );
}

#[test]
fn services() {
    let port = |port: u32, protocol: &str, endpoints: Vec<Endpoint>| ServicePort {
        port,
        name: text("web"),
        protocol: text(protocol),
        endpoints,
    };
    let ready = vec![endpoint("10.1.0.2:80", true), endpoint("10.2.0.2:80", false)];
    let cart = Service {
        namespace: text("shop"),
        name: text("cart"),
        hostname: text("cart.shop.svc.cluster.local"),
        kind: text("ClusterIP"),
        addresses: vec![text("10.96.0.7")],
        ports: vec![port(80, "http", ready), port(9000, "tcp", Vec::new())],
    };
    let other = Service {
        name: text("outside"),
        kind: text("ExternalName"),
        addresses: vec![text("example.org")],
        ports: Vec::new(),
        ..cart.clone()
    };
    check(
        table::services(&ServicesReply { services: vec![cart, other] }),
        expect![[r#"
        NAMESPACE   NAME      TYPE           ADDRESSES     PORTS              READY
        shop        cart      ClusterIP      10.96.0.7     80/http,9000/tcp   1/2,0/0
        shop        outside   ExternalName   example.org   -                  -
    "#]],
    );
}

#[test]
fn routes() {
    let to = |subset: &str, weight: u32, endpoints: &[&str], problem: &str| Destination {
        host: text("cart.shop.svc.cluster.local"),
        subset: text(subset),
        port: 0,
        weight,
        total_weight: 1000,
        load_balancer: text("LEAST_REQUEST"),
        destination_rule: text("shop/cart"),
        endpoints: endpoints.iter().map(|address| endpoint(address, true)).collect(),
        problem: text(problem),
        policies: vec![text("at most 100 requests"), text("key: header x-user")],
    };
    let many = ["10.1.0.2:80", "10.1.0.3:80", "10.1.0.4:80", "10.1.0.5:80", "10.1.0.6:80"];
    let split = Rule {
        name: text("split"),
        matches: vec![text("uri prefix /api and header end-user = jason"), text("uri = /")],
        action: text("forward"),
        details: vec![text("timeout 2s")],
        destinations: vec![to("a", 995, &many, ""), to("b", 5, &[], "no ready endpoint")],
    };
    let moved = Rule {
        name: text("default"),
        action: text("redirect"),
        details: vec![text("301, path /new")],
        ..Rule::default()
    };
    let reply = RoutesReply {
        host: text("cart.shop.svc.cluster.local"),
        namespace: text("shop"),
        service: text("shop/cart"),
        virtual_service: text("shop/cart"),
        rules: vec![split, moved],
    };
    check(
        table::routes(&reply),
        expect![[r#"
            Host:               cart.shop.svc.cluster.local
            Client namespace:   shop
            Service:            shop/cart
            VirtualService:     shop/cart

            Rule 1: split (forward)
              if uri prefix /api and header end-user = jason
              or uri = /
              timeout 2s
              SHARE   HOST                          PORT       SUBSET   BALANCER        DESTINATIONRULE   ENDPOINTS
              99.5%   cart.shop.svc.cluster.local   as asked   a        LEAST_REQUEST   shop/cart         10.1.0.2:80,10.1.0.3:80,10.1.0.4:80,+2 more
              0.5%    cart.shop.svc.cluster.local   as asked   b        LEAST_REQUEST   shop/cart         no ready endpoint
              destination: at most 100 requests; key: header x-user

            Rule 2: default (redirect)
              301, path /new
        "#]],
    );
}

#[test]
fn connections() {
    let tunnel = Connection {
        direction: text("outbound"),
        workload: text("shop/front-1"),
        source: text("10.1.0.2:40000"),
        destination: text("10.96.0.7:80"),
        peer: text("spiffe://cluster.local/ns/shop/sa/cart"),
        protocol: text("http"),
        state: text("tunnel"),
        opened: 1_000_000,
        sent: 900,
        received: 5_600_000,
    };
    let old = Connection {
        peer: String::new(),
        protocol: String::new(),
        state: text("not in mesh (older than enrolment)"),
        opened: 0,
        sent: 0,
        received: 0,
        ..tunnel.clone()
    };
    let reply = ConnectionsReply { connections: vec![old, tunnel], now: 1_000_000 + 250 };
    check(
        table::connections(&reply),
        expect![[r#"
        WORKLOAD       DIRECTION   SOURCE           DESTINATION    PROTOCOL   STATE                                AGE     SENT   RECEIVED   PEER
        shop/front-1   outbound    10.1.0.2:40000   10.96.0.7:80   -          not in mesh (older than enrolment)   -       -      -          -
        shop/front-1   outbound    10.1.0.2:40000   10.96.0.7:80   http       tunnel                               4m10s   900B   5.3MiB     spiffe://cluster.local/ns/shop/sa/cart
    "#]],
    );
}

#[test]
fn certificates() {
    let row = |account: &str, state: &str, life: i64, failures: u32| Certificate {
        identity: format!("spiffe://cluster.local/ns/shop/sa/{account}"),
        serial: text("5ab000000000000000000000000000ff"),
        state: text(state),
        not_before: 0,
        not_after: 1_000_000 + life,
        renewal: 1_000_000 + 45,
        failures,
    };
    let certificates = vec![row("cart", "valid", 86_400, 0), row("old", "expired", -7300, 12)];
    check(
        table::certificates(&CertificatesReply { certificates, now: 1_000_000 }),
        expect![[r#"
            IDENTITY                                 STATE     EXPIRES    RENEWAL   FAILURES   SERIAL
            spiffe://cluster.local/ns/shop/sa/cart   valid     in 24h     in 45s    0          5ab000000000000000000000000000ff
            spiffe://cluster.local/ns/shop/sa/old    expired   2h1m ago   in 45s    12         5ab000000000000000000000000000ff
        "#]],
    );
}

#[test]
fn diagnostics() {
    let finding = Diagnostic {
        severity: text("error"),
        object: text("VirtualService shop/cart"),
        field: text("spec.http[0].route[0].weight"),
        message: text("must not be negative"),
        place: text("file cart.yaml, line 12"),
    };
    let unread = Diagnostic { object: text(""), field: text(""), ..finding.clone() };
    check(
        table::diagnostics(&DiagnosticsReply { diagnostics: vec![finding, unread] }),
        expect![[r#"
            SEVERITY   OBJECT                     FIELD                          MESSAGE                PLACE
            error      VirtualService shop/cart   spec.http[0].route[0].weight   must not be negative   file cart.yaml, line 12
            error      -                          -                              must not be negative   file cart.yaml, line 12
        "#]],
    );
    check(
        table::diagnostics(&DiagnosticsReply::default()),
        expect![[r#"
        No findings.
    "#]],
    );
}
