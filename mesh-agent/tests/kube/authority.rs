//! The certificate authority against a real API server: whom it signs, and whom it does not. The
//! shipped program runs under the chart's own roles; nodes and pods are objects without machines.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use mesh_agent::identity::{AuthorityClient, Identities, Issuer, KeyDir, LocalCa, Settings};
use mesh_agent::model::SpiffeId;
use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::kube::KubeLab;

use crate::support::{DEADLINE, api_server, run};

pub(crate) const NAMESPACE: &str = "malha-system";

/// How a request is refused: the code of gRPC, the metric's reason, words of the sentence.
type Refusal = (&'static str, &'static str, &'static str);

const NO_POD: Refusal = ("PermissionDenied", "no_pod_on_node", "no running pod of this identity");
const NOT_BOUND: Refusal = ("PermissionDenied", "not_bound_to_node", "not bound to a pod");
const NOT_AN_AGENT: Refusal = ("PermissionDenied", "not_an_agent", "only the agents'");
const NO_TOKEN: Refusal = ("Unauthenticated", "no_token", "no bearer token");
/// The API server says what it has against a token.
const WRONG_AUDIENCE: Refusal = invalid("invalid for the target audiences");
const EXPIRED: Refusal = invalid("expired");
const NO_ACCOUNT: Refusal = invalid("\"gone\" not found");
const INVALIDATED: Refusal = invalid("invalidated");
const FORGED: Refusal = invalid("cryptographic primitive");
const RUBBISH: Refusal = invalid("not valid");

const fn invalid(words: &'static str) -> Refusal {
    ("Unauthenticated", "invalid_token", words)
}

/// A replica, ended with the value.
pub(crate) struct Replica {
    child: Child,
    port: u16,
    probes: u16,
    log: PathBuf,
}

pub(crate) struct Ground {
    pub(crate) lab: KubeLab,
    dir: TempDir,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "not in time: {what}");
        #[expect(clippy::disallowed_methods, reason = "a test's own thread waits for processes")]
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn identity(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

impl Ground {
    pub(crate) fn new(lab: KubeLab) -> Self {
        let ground = Self { lab, dir: tempfile::tempdir().unwrap() };
        let rendered = ground.render("templates/authority.yaml");
        for namespace in [NAMESPACE, "shop"] {
            ground.kubectl(&["create", "namespace", namespace]);
        }
        ground.lab.kubectl_stdin(&["apply", "-f", "-"], &rendered).unwrap();
        ground.kubectl(&["-n", NAMESPACE, "create", "serviceaccount", "malha-agent"]);
        for account in ["cart", "front", "other", "late", "gone"] {
            ground.kubectl(&["-n", "shop", "create", "serviceaccount", account]);
        }
        for node in ["node-a", "node-b"] {
            let node = format!("{{apiVersion: v1, kind: Node, metadata: {{name: {node}}}}}");
            ground.lab.kubectl_stdin(&["apply", "-f", "-"], &node).unwrap();
        }
        ground.pod(NAMESPACE, "agent-a", "malha-agent", "node-a");
        ground.pod("shop", "cart-1", "cart", "node-a");
        ground.pod("shop", "other-1", "other", "node-a");
        ground.pod("shop", "front-1", "front", "node-b");
        ground
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        self.lab.kubectl(arguments).unwrap()
    }

    fn pod(&self, namespace: &str, name: &str, account: &str, node: &str) {
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: {namespace}, name: {name}}}, spec: \
             {{serviceAccountName: {account}, nodeName: {node}, automountServiceAccountToken: \
             false, containers: [{{name: c, image: none}}]}}}}"
        );
        self.lab.kubectl_stdin(&["apply", "-f", "-"], &pod).unwrap();
        self.phase(namespace, name, "Running");
    }

    fn phase(&self, namespace: &str, name: &str, phase: &str) {
        let status = format!("{{\"status\":{{\"phase\":\"{phase}\"}}}}");
        let patch = ["patch", "pod", name, "--subresource=status", "--type=merge", "-p", &status];
        self.kubectl(&[&["-n", namespace][..], &patch].concat());
    }

    /// A token, bound to a pod if one is named.
    fn token(&self, namespace: &str, account: &str, audience: &str, pod: Option<&str>) -> String {
        let create = ["-n", namespace, "create", "token", account, "--audience", audience];
        let Some(pod) = pod else { return self.kubectl(&create) };
        let uid = ["-n", namespace, "get", "pod", pod, "-o", "jsonpath={.metadata.uid}"];
        let uid = self.kubectl(&uid);
        let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod];
        let bound = [&create[..], &bound, &["--bound-object-uid", uid.trim()]].concat();
        self.kubectl(&bound)
    }

    /// A kubeconfig of the authority's own account: its roles must do.
    fn kubeconfig(&self) -> PathBuf {
        let path = self.dir.path().join("kubeconfig");
        let token = self.kubectl(&["-n", NAMESPACE, "create", "token", "malha-authority"]);
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: \
             {{server: '{}', certificate-authority: '{}'}}}}], users: [{{name: u, user: {{token: \
             {}}}}}], contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}",
            self.lab.server_url(),
            self.lab.pki().join("ca.crt").display(),
            token.trim()
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A template of the chart, rendered.
    pub(crate) fn render(&self, template: &str) -> String {
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart");
        let words = ["template", "malha", chart, "-n", NAMESPACE, "-s", template];
        self.lab.helm(&words).unwrap()
    }

    fn start(&self, name: &str) -> Replica {
        self.start_with(name, &[])
    }

    /// A replica with more options.
    pub(crate) fn start_with(&self, name: &str, more: &[&str]) -> Replica {
        let (port, probes) = (free_port(), free_port());
        let log = self.dir.path().join(name);
        let child = Command::new(env!("CARGO_BIN_EXE_mesh-agent"))
            .args(["authority", "--server-name", "localhost", "--kubeconfig"])
            .arg(self.kubeconfig())
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--probe-address", &format!("127.0.0.1:{probes}")])
            .args(more)
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Replica { child, port, probes, log }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// An agent's identities, from a replica, with a token.
    fn agent(&self, replica: &Replica, token: &str) -> Identities {
        let address = format!("https://localhost:{}", replica.port);
        let token = self.file("token", token);
        let roots = self.dir.path().join("root-cert.pem");
        let client =
            AuthorityClient::new(&address, roots, token, ["cluster.local".into()]).unwrap();
        let trust = client.trust().unwrap();
        Identities::new(Issuer::Authority(client), trust, Settings::default())
    }

    /// What the authority says to a token that asks for an identity of the shop.
    async fn ask(&self, replica: &Replica, token: &str, account: &str) -> Result<(), String> {
        let agent = self.agent(replica, token);
        let asked = agent.ensure(&identity(account)).await;
        asked.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Refused with this code, counted once and under this reason alone, and written down.
    async fn refused(
        &self,
        replica: &Replica,
        token: &str,
        account: &str,
        (code, reason, words): Refusal,
    ) {
        let (before, written) = (replica.refusals(reason), replica.log().len());
        let error = self.ask(replica, token, account).await.unwrap_err();
        assert!(error.ends_with(&format!("({code})")) && error.contains(words), "{error}");
        assert_eq!(replica.refusals(reason), before.map(|count| count + 1), "{reason}, and all");
        let mut log = String::new();
        until(&format!("a line of {reason}, {words}, in the log"), || {
            log = replica.log();
            let mut new = log[written..].lines().filter(|line| line.contains("request refused"));
            new.any(|line| line.contains(&format!("reason=\"{reason}\"")) && line.contains(words))
        });
    }

    /// A token's claims at other times, signed by the key whose tokens the API server takes.
    fn signed_anew(&self, token: &str, seconds: i64) -> String {
        let claims = token.split('.').nth(1).unwrap();
        let mut claims: Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        for time in ["iat", "nbf", "exp"] {
            claims[time] = (claims[time].as_i64().unwrap() + seconds).into();
        }
        let parts = [json!({ "alg": "ES256", "typ": "JWT" }), claims];
        let text = parts.map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let pem = std::fs::read_to_string(self.lab.pki().join("sa.key")).unwrap();
        let key: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let key = STANDARD.decode(key).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key).unwrap();
        let signature = key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

impl Replica {
    pub(crate) fn get(&self, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.probes)) else {
            return String::new();
        };
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Ends it as the kubelet does, and waits for that.
    pub(crate) fn terminate(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn wait_ready(&self) {
        until(&format!("ready: {}", self.get("/readyz")), || {
            self.get("/readyz").starts_with("HTTP/1.1 200")
        });
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Requests that it has refused: for a reason, and in all.
    fn refusals(&self, reason: &str) -> [u64; 2] {
        let metrics = self.get("/metrics");
        let refused = |what: &str| {
            let lines = metrics.lines().filter(|line| {
                line.starts_with("malha_authority_refused_total{") && line.contains(what)
            });
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
        };
        [refused(&format!("\"{reason}\"")), refused("")]
    }
}

/// Two that start at once have one root, and publish it.
fn start_two(ground: &Ground) -> (Replica, Replica) {
    let (a, b) = (ground.start("a.log"), ground.start("b.log"));
    a.wait_ready();
    b.wait_ready();
    let made = [&a, &b].iter().filter(|one| one.log().contains("made a root")).count();
    assert_eq!(made, 1, "one of them made the root");
    let published = ["-n", NAMESPACE, "get", "configmap", "malha-ca-root", "-o"];
    let roots = ground.kubectl(&[&published[..], &["jsonpath={.data.root-cert\\.pem}"]].concat());
    assert_eq!(roots.matches("BEGIN CERTIFICATE").count(), 1);
    ground.file("root-cert.pem", &roots);
    (a, b)
}

#[test]
fn certificates_are_for_the_pods_of_the_agents_node() {
    let Some(lab) = api_server("authority") else { return };
    let ground = Ground::new(lab);
    let (first, second) = start_two(&ground);
    run(async {
        let agent = ground.token(NAMESPACE, "malha-agent", "malha-ca", Some("agent-a"));
        for replica in [&first, &second] {
            ground.ask(replica, &agent, "cart").await.unwrap();
        }
        ground.refused(&first, &agent, "front", NO_POD).await;
        // Its pod may be younger than what the watch has told.
        ground.pod("shop", "late-1", "late", "node-a");
        ground.ask(&first, &agent, "late").await.unwrap();
        ground.phase("shop", "late-1", "Succeeded");
        let begun = Instant::now();
        while ground.ask(&first, &agent, "late").await.is_ok() {
            assert!(begun.elapsed() < DEADLINE, "a finished pod has an identity");
        }
        ground.refused(&first, &agent, "late", NO_POD).await;
        let unbound = ground.token(NAMESPACE, "malha-agent", "malha-ca", None);
        ground.refused(&first, &unbound, "cart", NOT_BOUND).await;

        let cart = ground.token("shop", "cart", "malha-ca", Some("cart-1"));
        ground.ask(&first, &cart, "cart").await.unwrap();
        ground.refused(&first, &cart, "other", NOT_AN_AGENT).await;
    });
    let metrics = first.get("/metrics");
    for (series, least) in
        [("signed_total{caller=\"agent\"}", 2), ("signed_total{caller=\"own\"}", 1)]
    {
        let line = metrics.lines().find(|line| line.contains(series));
        let count: u64 = line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0);
        assert!(count >= least, "{series} {count}: {metrics}");
    }
    let log = first.log();
    assert!(log.contains("account=\"shop/cart\"") && log.contains("sa/other"), "{log}");
}

#[test]
fn tokens_that_are_not_for_the_authority_get_nothing() {
    let Some(lab) = api_server("authority-tokens") else { return };
    let ground = Ground::new(lab);
    let (first, _second) = start_two(&ground);
    run(async {
        let good = ground.token("shop", "cart", "malha-ca", Some("cart-1"));
        let wrong = ground.token("shop", "cart", "https://kubernetes.default.svc", None);
        let gone = ground.token("shop", "gone", "malha-ca", None);
        let dead = ground.token("shop", "other", "malha-ca", Some("other-1"));
        let asked = Instant::now();
        ground.ask(&first, &dead, "other").await.unwrap();
        // What is wrong with the second is its time alone.
        ground.ask(&first, &ground.signed_anew(&good, -60), "cart").await.unwrap();
        let expired = ground.signed_anew(&good, -86_400);
        ground.kubectl(&["-n", "shop", "delete", "serviceaccount", "gone"]);
        ground.kubectl(&["-n", "shop", "delete", "pod", "other-1", "--force", "--grace-period=0"]);
        // The verdict is remembered for five seconds, and the API server's own for ten.
        let begun = Instant::now();
        while ground.ask(&first, &dead, "other").await.is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(30), "a dead pod's token is good");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert!(asked.elapsed() >= Duration::from_secs(5), "every request asks the API server");
        ground.refused(&first, &dead, "other", INVALIDATED).await;
        let forged = forged(&good);
        for (token, refusal) in [
            (wrong.as_str(), WRONG_AUDIENCE),
            (expired.as_str(), EXPIRED),
            (gone.as_str(), NO_ACCOUNT),
            ("rubbish", RUBBISH),
            (forged.as_str(), FORGED),
            ("", NO_TOKEN),
        ] {
            ground.refused(&first, token, "cart", refusal).await;
            // By what is remembered of it, too.
            ground.refused(&first, token, "cart", refusal).await;
        }
    });
}

/// The same claims under another's signature.
fn forged(token: &str) -> String {
    let (signed, signature) = token.trim().rsplit_once('.').unwrap();
    let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    signature[40] ^= 1;
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn an_agent_that_starts_anew_needs_no_authority() {
    let Some(lab) = api_server("authority-away") else { return };
    let ground = Ground::new(lab);
    let (first, second) = start_two(&ground);
    let keys = |path: &Path| KeyDir::open(path).unwrap();
    let dir = ground.dir.path().join("keys");
    run(async {
        let token = ground.token(NAMESPACE, "malha-agent", "malha-ca", Some("agent-a"));
        let agent = ground.agent(&first, &token).with_keys(keys(&dir));
        let before = agent.ensure(&identity("cart")).await.unwrap();
        ground.lab.stop_api_server().unwrap();
        // The authority remembers whose token it is for five seconds.
        tokio::time::sleep(Duration::from_secs(6)).await;
        ground.file("token", &token);
        let error = agent.ensure(&identity("other")).await.unwrap_err().to_string();
        assert!(error.contains("certificate authority localhost"), "away, not a refusal: {error}");
        let next = ground.agent(&second, &token).with_keys(keys(&dir));
        drop((first, second));
        let after = next.ensure(&identity("cart")).await.unwrap();
        assert_eq!(after.serial(), before.serial());
        assert!(next.ensure(&identity("other")).await.is_err());
    });
}

/// Changes keys of the root's Secret, and waits until agents could read the trusted roots.
fn change_root(ground: &Ground, keys: &[(&str, &str)], trusted: usize) {
    let keys: serde_json::Map<String, serde_json::Value> =
        keys.iter().map(|(key, text)| ((*key).to_owned(), (*text).into())).collect();
    let patch = serde_json::json!({ "stringData": keys }).to_string();
    ground.kubectl(&["-n", NAMESPACE, "patch", "secret", "malha-ca", "--type=merge", "-p", &patch]);
    until("trusted roots are published", || {
        let published = ["-n", NAMESPACE, "get", "configmap", "malha-ca-root", "-o"];
        let path = "jsonpath={.data.root-cert\\.pem}";
        let roots = ground.kubectl(&[&published[..], &[path]].concat());
        let is_there = roots.matches("BEGIN CERTIFICATE").count() == trusted;
        if is_there {
            ground.file("root-cert.pem", &roots);
        }
        is_there
    });
}

#[test]
fn a_root_is_replaced_while_both_are_trusted() {
    let Some(lab) = api_server("authority-root") else { return };
    let ground = Ground::new(lab);
    let (first, second) = start_two(&ground);
    let old = std::fs::read_to_string(ground.dir.path().join("root-cert.pem")).unwrap();
    let new = LocalCa::generate("cluster.local").unwrap();
    run(async {
        let token = ground.token(NAMESPACE, "malha-agent", "malha-ca", Some("agent-a"));
        let agent = ground.agent(&first, &token);
        let before = agent.ensure(&identity("cart")).await.unwrap();
        let serial = || agent.current(&identity("cart")).unwrap().serial().to_owned();
        let background = async { tokio::join!(agent.run_trust(), agent.run_rotation()) };
        let steps = async {
            change_root(
                &ground,
                &[("root-cert.pem", &format!("{old}{}", new.certificate_pem()))],
                2,
            );
            while Arc::ptr_eq(&before, &agent.current(&identity("cart")).unwrap()) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert_eq!(serial(), before.serial(), "both are trusted, nothing is renewed");
            let keys = [("ca-cert.pem", new.certificate_pem()), ("ca-key.pem", &new.key_pem())];
            change_root(&ground, &keys, 2);
            for replica in [&first, &second] {
                until("the new root is in force", || {
                    replica.log().matches("root certificate in force").count() == 3
                });
                ground.ask(replica, &token, "other").await.unwrap();
            }
            change_root(&ground, &[("root-cert.pem", new.certificate_pem())], 1);
            while serial() == before.serial() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            _ = background => {}
            ended = tokio::time::timeout(DEADLINE, steps) => ended.unwrap(),
        }
    });
}
