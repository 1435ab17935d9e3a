//! Destinations outside the mesh: a captured pod finds each as an uncaptured pod on the same node
//! does, with the same source address.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use xtask::lab::{Conversation, Lab, Pod};

use crate::support::{self, SHOP, SHOP_PODS, STRICT, of_family};

/// Servers that are not in the mesh, and every kind of Service that leads to some server.
const OUTSIDE: &str = r#"
kind: Pod
apiVersion: v1
metadata: { name: plain, namespace: outside, labels: { app: plain } }
spec:
  nodeName: node2
  containers: [{ name: main, image: malha/echo, args: ["--http", "8080"] }]
---
kind: Service
apiVersion: v1
metadata: { name: plain, namespace: outside }
spec:
  type: NodePort
  selector: { app: plain }
  ipFamilyPolicy: PreferDualStack
  externalIPs: [203.0.113.7]
  ports: [{ name: http, port: 80, targetPort: 8080, nodePort: 30080 }]
status: { loadBalancer: { ingress: [{ ip: 203.0.113.8 }] } }
---
kind: Service
apiVersion: v1
metadata: { name: headless, namespace: outside }
spec:
  clusterIP: None
  selector: { app: plain }
  ipFamilyPolicy: PreferDualStack
  ports: [{ name: http, port: 8080 }]
---
kind: Service
apiVersion: v1
metadata: { name: alias, namespace: outside }
spec: { type: ExternalName, externalName: plain.outside.svc.cluster.local }
---
kind: Service
apiVersion: v1
metadata: { name: far-exposed, namespace: shop }
spec:
  type: NodePort
  selector: { app: echo, version: far }
  ports: [{ name: http, port: 80, targetPort: 8080, nodePort: 30081 }]
---
kind: Pod
apiVersion: v1
metadata: { name: hosted, namespace: shop, labels: { app: hosted } }
spec:
  nodeName: node2
  hostNetwork: true
  containers: [{ name: main, image: malha/echo, args: ["--http", "7080"] }]
---
kind: Service
apiVersion: v1
metadata: { name: hosted, namespace: shop }
spec:
  selector: { app: hosted }
  ipFamilyPolicy: PreferDualStack
  ports: [{ name: http, port: 80, targetPort: 7080 }]
"#;

/// HTTPS that answers with the client's address and the name it asked for (SNI).
const TLS_SERVER: &str = r#"
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
def name(connection, wanted, _):
    connection.wanted = wanted
context.sni_callback = name
listener = socket.create_server(("::", 8443), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
def serve(raw, peer):
    try:
        with context.wrap_socket(raw, server_side=True) as connection:
            connection.recv(65536)
            body = f"{peer[0].removeprefix('::ffff:')} {getattr(connection, 'wanted', None)}".encode()
            head = f"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
    except (OSError, ssl.SSLError):
        pass
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=listener.accept(), daemon=True).start()
"#;

/// A TLS server outside the cluster. Dropped, it ends.
struct External {
    _server: Conversation,
    addresses: Vec<IpAddr>,
    certificate: String,
}

impl External {
    fn start(lab: &Lab) -> Self {
        let addresses = support::outside_addresses(lab);
        let path = |name: &str| lab.shared_dir().join(name).to_str().unwrap().to_owned();
        let (certificate, key) = (path("external.crt"), path("external.key"));
        let names = "subjectAltName=DNS:external.example,DNS:kubernetes.default.svc";
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", "2", "-subj", "/CN=external", "-addext", names])
            .args(["-keyout", &key, "-out", &certificate])
            .output()
            .expect("openssl starts");
        assert!(made.status.success(), "{made:?}");
        let mut command = lab.outside(&["python3", "-c", TLS_SERVER, &certificate, &key]).unwrap();
        let mut server = Conversation::start(&mut command).expect("python starts");
        assert_eq!(server.line().unwrap(), "ready");
        Self { _server: server, addresses, certificate }
    }

    fn address(&self, v4: bool) -> IpAddr {
        let global = |ip: &&IpAddr| ip.is_ipv4() == v4;
        *self.addresses.iter().find(global).expect("both families")
    }
}

/// What `curl ARGUMENTS` in the pod gives: its own address as `own`, exit status at the end. Of an
/// echo's answer only the client's address without its port.
fn outcome(pod: &Pod, arguments: &[&str]) -> String {
    let command = [&["curl", "-sS", "--max-time", "30"], arguments].concat();
    let output = pod.exec(&command).expect("curl starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let remote = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|answer| {
        Some(answer["remote"].as_str()?.parse::<SocketAddr>().ok()?.ip().to_canonical().to_string())
    });
    let mut text = remote.unwrap_or(text);
    for ip in &pod.ips {
        text = text.replace(&ip.to_string(), "own");
    }
    format!("{text} {}", output.status.code().unwrap_or(-1))
}

#[test]
fn destinations_outside_the_mesh_are_as_without_it() {
    let Some(lab) = support::lab(2) else { return };
    let external = External::start(&lab);
    let slice = format!(
        r#"
kind: Service
apiVersion: v1
metadata: {{ name: kubernetes, namespace: default }}
spec: {{ ports: [{{ name: https, port: 443, targetPort: 8443 }}] }}
---
kind: EndpointSlice
apiVersion: discovery.k8s.io/v1
metadata: {{ name: kubernetes, namespace: default, labels: {{ kubernetes.io/service-name: kubernetes }} }}
addressType: IPv4
endpoints: [{{ addresses: [{}] }}]
ports: [{{ name: https, port: 8443, protocol: TCP }}]
"#,
        external.address(true)
    );
    support::apply(&lab, &[SHOP, OUTSIDE, &slice].join("\n---\n"), SHOP_PODS);
    lab.wait_all_ready().unwrap();
    let pods = [lab.pod("shop/client").unwrap(), lab.pod("outside/stranger").unwrap()];

    https(&pods, &external);

    let mut same: Vec<(String, &str)> = ["plain.outside", "hosted.shop", "alias.outside"]
        .iter()
        .flat_map(|name| [("-4", name), ("-6", name)])
        .map(|(family, name)| (format!("{family} http://{name}/"), "own 0"))
        .collect();
    same.push(("-4 http://headless.outside:8080/".into(), "own 0"));
    same.push(("-6 http://headless.outside:8080/".into(), "own 0"));
    let hosted = lab.pod("shop/hosted").unwrap();
    assert!(!lab.enrolled(&hosted), "a host-network pod is never in the mesh");
    same.extend(hosted.ips.iter().map(|ip| {
        let to = SocketAddr::new(*ip, 7080);
        (format!("http://{to}/"), "own 0")
    }));
    for (arguments, expected) in &same {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        for pod in &pods {
            assert_eq!(outcome(pod, &words), *expected, "{}: {arguments}", pod.name);
        }
    }
    exposed(&lab, &pods);
    // From outside, and from the host's network, into the mesh.
    let node = lab.node_addresses("node1").unwrap()[0];
    let url = format!("http://{node}:30081/");
    let output = lab.outside(&["curl", "-sS", "-m", "30", &url]).unwrap().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("remote"), "{output:?}");
    let far = lab.pod("shop/far").unwrap();
    for v4 in [true, false] {
        let url = format!("http://{}/", SocketAddr::new(of_family(&far, v4), 8080));
        assert_eq!(outcome(&hosted, &[&url]), "own 0");
    }
    itself(&lab);
    happy_eyeballs(&pods[0], &external);
    exclusions(&lab, &far);
}

fn https(pods: &[Pod; 2], external: &External) {
    // The API server, and HTTPS elsewhere: the server's certificate, the client's name for it.
    let trust = ["--cacert", &external.certificate];
    for pod in pods {
        let api = outcome(pod, &[&trust[..], &["https://kubernetes.default.svc/"]].concat());
        assert_eq!(api, "own kubernetes.default.svc 0", "{}", pod.name);
        for v4 in [true, false] {
            let to = format!("external.example:8443:{}", external.address(v4));
            let url = "https://external.example:8443/";
            let seen = outcome(pod, &[&trust[..], &["--resolve", &to, url]].concat());
            assert_eq!(seen, "own external.example 0", "{}", pod.name);
        }
    }
}

/// Node ports, external and load balancer addresses.
fn exposed(lab: &Lab, pods: &[Pod; 2]) {
    // Through a node port the server sees a node's address, whoever asks; kube-proxy's choice.
    for node in lab.nodes() {
        for ip in lab.node_addresses(&node).unwrap() {
            let url = format!("http://{}/", SocketAddr::new(ip, 30080));
            let seen = pods.each_ref().map(|pod| outcome(pod, &[&url]));
            assert!(seen[0].ends_with(" 0") && seen[0] == seen[1], "{url}: {seen:?}");
        }
    }
    for url in ["http://203.0.113.7/", "http://203.0.113.8/"] {
        let seen = pods.each_ref().map(|pod| outcome(pod, &[url]));
        assert!(seen.iter().all(|text| text.ends_with(" 0")), "{url}: {seen:?}");
    }
}

/// A pod's own loopback, own address, and own Service.
fn itself(lab: &Lab) {
    let near = lab.pod("shop/near").unwrap();
    for v4 in [true, false] {
        let loopback = if v4 { "127.0.0.1" } else { "[::1]" };
        let seen = outcome(&near, &[&format!("http://{loopback}:8080/")]);
        assert_eq!(seen, format!("{} 0", loopback.trim_matches(['[', ']'])));
        let own = SocketAddr::new(of_family(&near, v4), 8080);
        assert_eq!(outcome(&near, &[&format!("http://{own}/")]), "own 0");
        let family = if v4 { "-4" } else { "-6" };
        assert_eq!(outcome(&near, &[family, "http://near.shop/"]), "own 0", "hairpin");
    }
}

/// A name with two families, of which one leads nowhere, or has nobody listening.
fn happy_eyeballs(client: &Pod, external: &External) {
    let v4 = external.address(true);
    // Refused by whoever has the address: the client is told at once, and so may try the next one.
    let script = format!(
        r#"
import socket
with socket.socket() as s:
    s.settimeout(30)
    try:
        s.connect(("{v4}", 9))
        print("connected", s.recv(1))
    except ConnectionError as error:
        print("refused")
"#
    );
    assert_eq!(support::ok(client, &["python3", "-c", &script]).trim(), "refused");
    // One family only: the other's absence in the name is no obstacle.
    for v4 in [true, false] {
        let to = format!("external.example:8443:{}", external.address(v4));
        let arguments = ["--resolve", &to, "-k", "https://external.example:8443/"];
        assert_eq!(outcome(client, &arguments), "own external.example 0");
    }
}

/// Exclusions by annotation, also changed while the pod runs: with STRICT, what is excluded is
/// plaintext and refused.
fn exclusions(lab: &Lab, far: &Pod) {
    lab.apply(STRICT).unwrap();
    let client = lab.pod("shop/client").unwrap();
    let url = format!("http://{}/", SocketAddr::new(of_family(far, true), 8080));
    let asks = || outcome(&client, &[&url]) == "own 0";
    let annotate = |text: &str| {
        let from = "metadata: { name: client, namespace: shop, labels: { app: client } }";
        let with = from.replace(" } }", &format!(" }}, annotations: {{ {text} }} }}"));
        let changed = SHOP.replace(from, &with);
        assert_ne!(changed, SHOP);
        lab.apply(&changed).unwrap();
    };
    assert!(asks(), "captured");
    let key = "traffic.sidecar.istio.io";
    for annotation in [
        format!("{key}/excludeOutboundPorts: '8080'"),
        format!("{key}/excludeOutboundIPRanges: '{}/32'", of_family(far, true)),
    ] {
        annotate(&annotation);
        support::eventually(&annotation, || (!asks()).then_some(()));
        lab.apply(SHOP).unwrap();
        support::eventually("captured again", || asks().then_some(()));
    }
    let stranger = lab.pod("outside/stranger").unwrap();
    assert_ne!(outcome(&stranger, &[&url]), "own 0", "STRICT refuses plaintext");
    let from = "metadata: { name: far, namespace: shop, labels: { app: echo, version: far } }";
    let with = from
        .replace(" } }", &format!(" }}, annotations: {{ {key}/excludeInboundPorts: '8080' }} }}"));
    let changed = SHOP.replace(from, &with);
    assert_ne!(changed, SHOP);
    lab.apply(&changed).unwrap();
    support::eventually("plaintext to an excluded port", || {
        (outcome(&stranger, &[&url]) == "own 0").then_some(())
    });
}

/// As Istio's installations have it.
const REGISTRY_ONLY: &str = "
apiVersion: v1
kind: ConfigMap
metadata: { name: istio, namespace: istio-system }
data:
  mesh: |
    outboundTrafficPolicy: { mode: REGISTRY_ONLY }
";

#[test]
fn only_what_is_known_is_reached_where_the_mesh_says_so() {
    let Some(lab) = support::lab(2) else { return };
    let external = External::start(&lab);
    support::apply(&lab, &[SHOP, OUTSIDE].join("\n---\n"), SHOP_PODS);
    lab.wait_all_ready().unwrap();
    let (client, stranger) =
        (lab.pod("shop/client").unwrap(), lab.pod("outside/stranger").unwrap());
    let tls = format!("https://{}/", SocketAddr::new(external.address(true), 8443));
    let plain = format!("http://{}/", external.address(true));
    let status = ["-o", "/dev/null", "-w", "%{http_code}", &plain];
    let reaches = |pod: &Pod| outcome(pod, &["-k", &tls]).ends_with(" 0");
    assert!(reaches(&client) && reaches(&stranger));
    // Nobody listens, so that the kernel is left to say it to the next client.
    support::eventually("the kernel's own refusal", || {
        (outcome(&client, &status) == "000 7").then_some(())
    });
    support::apply(&lab, REGISTRY_ONLY, &[]);
    support::eventually("what is outside is refused", || (!reaches(&client)).then_some(()));
    assert_eq!(outcome(&client, &status), "502 0");
    assert!(reaches(&stranger), "it is not in the mesh");
    for name in ["plain.outside", "echo.shop", "alias.outside"] {
        let url = format!("http://{name}/");
        assert!(outcome(&client, &[&url]).ends_with(" 0"), "{name}");
    }
    lab.delete_manifests(REGISTRY_ONLY).unwrap();
    support::eventually("it is reached again", || reaches(&client).then_some(()));
}
