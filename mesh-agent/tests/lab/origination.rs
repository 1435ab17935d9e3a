//! TLS origination: pods speak plain HTTP, or plain bytes, and what leaves the mesh is TLS, for a server
//! that is who the DestinationRule wants it to be.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::Value;
use xtask::lab::{Conversation, Lab, Pod};

use crate::l4_routes::serve;
use crate::support::{self, SHOP, SHOP_PODS};

/// Takes TLS, from clients with a certificate if it is given a root for them, and answers each request
/// with what it has seen of it.
const SERVER: &str = r#"
import http.server, json, ssl, sys
port, certificate, key, clients = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
context.set_alpn_protocols(["h2", "http/1.1"])
def wanted(connection, name, _):
    connection.wanted = name
context.sni_callback = wanted
if clients:
    context.load_verify_locations(clients)
    context.verify_mode = ssl.CERT_REQUIRED
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        subject = dict(part[0] for part in self.connection.getpeercert().get("subject", ())) \
            if clients else {}
        seen = {
            "sni": getattr(self.connection, "wanted", None),
            "alpn": self.connection.selected_alpn_protocol(),
            "host": self.headers["host"],
            "client": subject.get("commonName"),
        }
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    def finish_request(self, request, address):
        try:
            with context.wrap_socket(request, server_side=True) as connection:
                super().finish_request(connection, address)
        except (OSError, ssl.SSLError):
            pass
server = Server(("0.0.0.0", int(port)), Handler)
print("ready", flush=True)
server.serve_forever()
"#;

/// What a TCP server says first.
const FIRST_LINE: &str = r#"
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as s:
    try:
        print(s.makefile().readline().strip())
    except ConnectionError:
        print("reset")
"#;

/// A server in the mesh that speaks TLS itself.
const INNER: &str = "
kind: Service
apiVersion: v1
metadata: { name: inner, namespace: shop }
spec:
  selector: { app: echo, version: far }
  ports: [{ name: tcp, port: 9002, targetPort: 8444 }]
---
";
const INNER_HOST: &str = "inner.shop.svc.cluster.local";

/// Certificates and keys in files that pods see.
struct Files<'a>(&'a Lab);

type Root = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn root(name: &str) -> Root {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Files<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.0.shared_dir().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// `<name>.crt` and `<name>.key`.
    fn leaf(&self, root: &Root, name: &str, hosts: &[&str]) -> (String, String) {
        let mut params = params(name);
        params.subject_alt_names =
            hosts.iter().map(|host| SanType::DnsName((*host).try_into().unwrap())).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, root).unwrap();
        let (at, key_at) = (format!("{name}.crt"), format!("{name}.key"));
        std::fs::write(self.path(&at), certificate.pem()).unwrap();
        std::fs::write(self.path(&key_at), key.serialize_pem()).unwrap();
        (self.text(&at), self.text(&key_at))
    }

    fn root(&self, root: &Root, name: &str) -> String {
        std::fs::write(self.path(name), root.pem()).unwrap();
        self.text(name)
    }
}

fn start(lab: &Lab, port: u16, files: &(String, String), clients: &str) -> Conversation {
    let words = ["python3", "-c", SERVER, &port.to_string(), &files.0, &files.1, clients];
    let mut server = Conversation::start(&mut lab.outside(&words).unwrap()).unwrap();
    assert_eq!(server.line().unwrap(), "ready");
    server
}

/// Status and body of a plain HTTP request.
fn get(pod: &Pod, host: &str) -> (String, Value) {
    let url = format!("http://{host}/");
    let words = ["curl", "-s", "-m", "30", "-w", "\n%{http_code}", &url];
    let text = String::from_utf8(pod.exec(&words).unwrap().stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    let body = serde_json::from_str(body).unwrap_or_else(|_| Value::from(body));
    (status.to_owned(), body)
}

/// The address of the servers.
fn address_of(lab: &Lab) -> IpAddr {
    let outside = support::outside_addresses(lab);
    outside.into_iter().find(IpAddr::is_ipv4).expect("an IPv4 address")
}

/// An entry for these hosts, with a port as given.
fn entry(hosts: &str, port: &str, lab: &Lab) -> String {
    let name = hosts.split(',').next().unwrap_or_default().replace('.', "-");
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{ name: {name}, namespace: shop }}
spec:
  hosts: [{hosts}]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{ number: {port} }}]
  endpoints: [{{ address: {} }}]
---
",
        address_of(lab)
    )
}

/// The entries: servers by many names, on ports that no client dials.
fn entries(lab: &Lab) -> String {
    let http = |target: u16| format!("80, name: http, protocol: HTTP, targetPort: {target}");
    let tcp = |port: u16| format!("{port}, name: tcp, protocol: TCP, targetPort: 8444");
    let named = entry("named.test", &http(8443), lab);
    let names = "spec:\n  subjectAltNames: [none.test, api.test]\n";
    [
        entry("api.test, other.test, listed.test, roots.test", &http(8443), lab),
        named.replace("spec:\n", names),
        entry("mutual.test, plain.test, secret.test", &http(9443), lab),
        entry("talk.test", &tcp(9000), lab),
        entry("alien.test", &tcp(9001), lab),
    ]
    .concat()
}

fn rule(host: &str, policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: {}, namespace: shop }}
spec: {{ host: {host}, trafficPolicy: {{ {policy} }} }}
---
",
        host.replace('.', "-")
    )
}

fn rules(files: &Files<'_>, ca: &str, other: &str) -> String {
    let (certificate, key) = (files.text("client.crt"), files.text("client.key"));
    let other = format!("caCertificates: {other}");
    [
        // As in Istio's task of egress: one port goes out in TLS.
        rule("api.test", "portLevelSettings: [{ port: { number: 80 }, tls: { mode: SIMPLE } }]"),
        rule("other.test", "tls: { mode: SIMPLE }"),
        rule("listed.test", "tls: { mode: SIMPLE, subjectAltNames: [none.test] }"),
        rule("named.test", "tls: { mode: SIMPLE }"),
        rule("roots.test", &format!("tls: {{ mode: SIMPLE, sni: api.test, {other} }}")),
        rule(
            "mutual.test",
            &format!(
                "tls: {{ mode: MUTUAL, clientCertificate: {certificate}, privateKey: {key}, \
                 caCertificates: {ca} }}, \
                 connectionPool: {{ http: {{ maxRequestsPerConnection: 1 }} }}"
            ),
        ),
        rule("plain.test", "tls: { mode: SIMPLE }"),
        rule("secret.test", "tls: { mode: MUTUAL, credentialName: keys }"),
        rule("talk.test", "tls: { mode: SIMPLE }"),
        rule(INNER_HOST, "tls: { mode: SIMPLE }"),
        rule("alien.test", &format!("tls: {{ mode: SIMPLE, {other} }}")),
    ]
    .concat()
}

#[test]
fn plain_requests_and_bytes_go_out_in_tls() {
    let (ca, clients) = (root("servers"), root("clients"));
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), ca.pem()).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let Some(lab) = support::lab_with(2, &["--tls-roots", &path(roots.path())]) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let files = Files(&lab);
    let (ca_file, other_file) =
        (files.root(&ca, "ca.pem"), files.root(&root("other"), "other.pem"));
    let clients_file = files.root(&clients, "clients.pem");
    files.leaf(&clients, "client", &[]);
    let hosts = ["api.test", "mutual.test", "plain.test", "secret.test", "talk.test", INNER_HOST];
    let server = files.leaf(&ca, "server", &hosts);
    let address = address_of(&lab);
    let servers = [start(&lab, 8443, &server, ""), start(&lab, 9443, &server, &clients_file)];
    let talk = serve(|words| lab.outside(words), ("talk", 8444), Some(&server));
    let far = lab.pod("shop/far").unwrap();
    let inner = serve(|words| far.command(words), ("inner", 8444), Some(&server));
    let all = ["api", "other", "listed", "named", "roots", "mutual", "plain", "secret", "talk"];
    for name in all.iter().chain(&["alien"]) {
        lab.set_name(&format!("{name}.test"), &[address]).unwrap();
    }
    let client = lab.pod("shop/client").unwrap();
    let rules = rules(&files, &ca_file, &other_file);
    lab.apply(&[&entries(&lab), INNER, &rules].concat()).unwrap();
    support::eventually("the entry is in force", || {
        (get(&client, "api.test").0 == "200").then_some(())
    });

    // Objects come into force one after the other.
    let seen = |host: &str| {
        support::eventually(&format!("{host} answers"), || {
            let (status, body) = get(&client, host);
            (status == "200").then_some(body)
        })
    };
    let refused = |host: &str, why: &str| {
        support::eventually(&format!("{host}: {why}"), || {
            let (status, body) = get(&client, host);
            (status == "503" && body.as_str()?.contains(why)).then_some(())
        });
    };
    for _ in 0..3 {
        let expected = serde_json::json!(
            { "sni": "api.test", "alpn": "http/1.1", "host": "api.test", "client": null }
        );
        assert_eq!(seen("api.test"), expected);
    }
    assert_eq!(seen("named.test")["sni"], "named.test");
    refused("other.test", "not valid for name");
    refused("listed.test", "has none of the names");
    refused("roots.test", "UnknownIssuer");
    let mutual = seen("mutual.test");
    assert_eq!((&mutual["client"], &mutual["sni"]), (&"client".into(), &"mutual.test".into()));
    // The server hangs up: with TLS 1.3 only after the client's handshake.
    refused("plain.test", "upstream connect error");
    refused("secret.test", "credentialName `keys`");

    let address = address.to_string();
    let says = |host: &str, port: &str| {
        support::ok(&client, &["python3", "-c", FIRST_LINE, host, port]).trim().to_owned()
    };
    support::eventually("bytes go out in TLS", || {
        (says(&address, "9000") == "talk talk.test").then_some(())
    });
    let alien = says(&address, "9001");
    assert!(["", "reset"].contains(&&*alien), "a server that nobody vouches for: {alien}");
    // Inside of the tunnel.
    support::eventually("so do they within the mesh", || {
        (says("inner.shop", "9002") == format!("inner {INNER_HOST}")).then_some(())
    });
    a_new_certificate_is_used(&files, &clients, &client);
    a_pod_has_its_own_files(&lab, &files);
    drop((servers, talk, inner));
}

/// A changed file is seen at the next connection, some seconds later.
fn a_new_certificate_is_used(files: &Files<'_>, clients: &Root, client: &Pod) {
    files.leaf(clients, "next", &[]);
    for end in ["crt", "key"] {
        let [from, to] = ["next", "client"].map(|name| files.path(&format!("{name}.{end}")));
        std::fs::rename(from, to).unwrap();
    }
    support::eventually("the new certificate is shown", || {
        (get(client, "mutual.test").1["client"] == "next").then_some(())
    });
}

/// A file that only the client's pod has, and a link to one that only its node has.
fn a_pod_has_its_own_files(lab: &Lab, files: &Files<'_>) {
    let pod = lab.pod("shop/client").unwrap();
    let of_node = lab.run_dir().join("ca/root-cert.pem");
    assert!(of_node.exists() && !Path::new("/tmp/own-ca.pem").exists());
    support::ok(&pod, &["cp", &files.text("ca.pem"), "/tmp/own-ca.pem"]);
    support::ok(&pod, &["ln", "-s", of_node.to_str().unwrap(), "/tmp/link-ca.pem"]);
    let missing = "of the client's pod: No such file";
    for (path, expected) in [
        ("/tmp/own-ca.pem", "not valid for name"),
        ("/tmp/link-ca.pem", missing),
        (of_node.to_str().unwrap(), missing),
    ] {
        let tls = format!("tls: {{ mode: SIMPLE, caCertificates: {path} }}");
        // So that what the one before has said is told apart.
        let host = format!("{}.test", path.trim_start_matches('/').replace(['/', '.', '_'], "-"));
        lab.set_name(&host, &[address_of(lab)]).unwrap();
        let entry = entry(&host, "80, name: http, protocol: HTTP, targetPort: 8443", lab);
        lab.apply(&[entry, rule(&host, &tls)].concat()).unwrap();
        support::eventually(path, || {
            let (_, body) = get(&pod, &host);
            body.as_str()?.contains(expected).then_some(())
        });
    }
}
