//! Peers of the mesh's own ports that break rules: refused or cut, bounded in memory and
//! descriptors, and nobody else notices.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use xtask::lab::{Lab, Pod};

use crate::support::{self, Load, SHOP, SHOP_PODS};

const PEER: &str = include_str!("hostile_peers.py");

/// What a peer may leave behind in the agent's resident memory: what its allocator keeps.
const MEMORY_BOUND_KIB: u64 = 96 * 1024;

/// Runs cases against the tunnel port of `far`; what came of each.
fn run(lab: &Lab, name: &str, cases: &[&str]) -> BTreeMap<String, String> {
    let far = lab.pod("shop/far").unwrap().ip().to_string();
    let shared = lab.shared_dir();
    let file = |suffix: &str| {
        let path = shared.join(format!("{name}.{suffix}"));
        if path.exists() { path.display().to_string() } else { "none".to_owned() }
    };
    let root = shared.join("root-cert.pem").display().to_string();
    let (certificate, key) = (file("crt"), file("key"));
    let words = ["python3", "-c", PEER, &far, &root, &certificate, &key];
    let stranger = lab.pod("outside/stranger").unwrap();
    let text = support::ok(&stranger, &[&words, cases].concat());
    let rows = text.lines().filter_map(|line| line.split_once('\t'));
    rows.map(|(case, came)| (case.to_owned(), came.to_owned())).collect()
}

/// Writes a certificate that the lab's root has signed, or that `root` has.
fn write(dir: &Path, name: &str, root: (&str, &str), change: impl FnOnce(&mut CertificateParams)) {
    let issuer_key = KeyPair::from_pem(root.1).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(root.0, issuer_key).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/outside/sa/default")];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(7200)).into();
    params.not_after = (now + Duration::from_secs(7200)).into();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    fs::write(dir.join(format!("{name}.crt")), certificate.pem()).unwrap();
    fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.to_owned().try_into().unwrap())
}

/// Makes certificates, good and bad, by name.
fn certificates(lab: &Lab) {
    let read = |name: &str| fs::read_to_string(lab.run_dir().join("ca").join(name)).unwrap();
    let (certificate, key) = (read("root-cert.pem"), read("root-key.pem"));
    let root = (certificate.as_str(), key.as_str());
    let dir = lab.shared_dir();
    fs::write(dir.join("root-cert.pem"), &certificate).unwrap();
    write(&dir, "good", root, |_| {});
    write(&dir, "expired", root, |params| {
        params.not_after = (SystemTime::now() - Duration::from_secs(60)).into();
    });
    write(&dir, "not-yet", root, |params| {
        params.not_before = (SystemTime::now() + Duration::from_secs(600)).into();
    });
    write(&dir, "server-only", root, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    write(&dir, "two-names", root, |params| {
        params.subject_alt_names.push(uri("spiffe://cluster.local/ns/shop/sa/client"));
    });
    write(&dir, "no-name", root, |params| params.subject_alt_names.clear());
    write(&dir, "dns-name", root, |params| {
        params.subject_alt_names =
            vec![SanType::DnsName("far.shop".to_owned().try_into().unwrap())];
    });
    write(&dir, "other-domain", root, |params| {
        params.subject_alt_names = vec![uri("spiffe://evil.example/ns/shop/sa/client")];
    });
    let stranger = mesh_agent::identity::LocalCa::generate("cluster.local").unwrap();
    let theirs = lab.run_dir().join("other-ca");
    fs::create_dir_all(&theirs).unwrap();
    stranger.write(&theirs).unwrap();
    let key = fs::read_to_string(theirs.join("root-key.pem")).unwrap();
    write(&dir, "unknown-root", (stranger.certificate_pem(), &key), |_| {});
}

fn up() -> Option<Lab> {
    let lab = support::lab(2)?;
    support::apply(&lab, SHOP, SHOP_PODS);
    lab.wait_ready("outside/stranger").expect("the pod runs");
    certificates(&lab);
    Some(lab)
}

fn descriptors(lab: &Lab, node: &str) -> usize {
    let pid = lab.agent_pid(node).expect("the agent runs");
    fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count()
}

#[test]
fn wrong_certificates_are_refused() {
    let Some(lab) = up() else { return };
    let taken = |name: &str| run(&lab, name, &["shake"]).remove("shake").unwrap();
    assert_eq!(taken("good"), "taken");
    let wrong = ["absent", "expired", "not-yet", "server-only", "two-names", "no-name"];
    for name in wrong.iter().chain(&["dns-name", "other-domain", "unknown-root"]) {
        assert_eq!(taken(name), "refused", "{name}");
    }
}

#[test]
fn only_the_pods_own_application_is_reached_through_its_tunnel() {
    let Some(lab) = up() else { return };
    let far = lab.pod("shop/far").unwrap().ip();
    let near = lab.pod("shop/near").unwrap().ip();
    let ask = |authority: String| {
        let case = format!("asks={authority}");
        run(&lab, "good", &[&case]).remove(&case).unwrap()
    };
    assert_eq!(ask(format!("{far}:8080")), "200");
    assert_eq!(ask(format!("{far}:7")), "503", "nobody listens there");
    for port in [15001, 15006, 15008] {
        assert_eq!(ask(format!("{far}:{port}")), "400", "the mesh's own port {port}");
    }
    let foreign = [format!("{near}:8080"), "127.0.0.1:8080".into(), "[::1]:8080".into()];
    let odd = ["0.0.0.0:8080", "far.shop:8080", "169.254.169.254:80", "", ":8080", "x"];
    for authority in foreign.into_iter().chain(odd.map(str::to_owned)) {
        assert!(matches!(&*ask(authority.clone()), "400" | "reset"), "{authority}");
    }
    assert_eq!(ask(format!("{far}:0")), "400");
    assert_eq!(ask(format!("{far}:99999")), "400");
}

/// Case -> every outcome that is right.
const FLOODS: &[(&str, &[&str])] = &[
    ("header_bomb", &["ENHANCE_YOUR_CALM", "stream PROTOCOL_ERROR", "closed"]),
    ("rapid_reset", &["ENHANCE_YOUR_CALM", "closed"]),
    ("made_you_reset", &["ENHANCE_YOUR_CALM", "closed"]),
    ("continuation", &["ENHANCE_YOUR_CALM", "closed"]),
    ("empty_continuation", &["ENHANCE_YOUR_CALM", "closed"]),
    ("settings", &["ENHANCE_YOUR_CALM", "closed"]),
    ("ping", &["ENHANCE_YOUR_CALM", "closed"]),
    ("empty_data", &["ENHANCE_YOUR_CALM", "closed"]),
    ("windows", &["200"]),
    ("window_overflow", &["FLOW_CONTROL_ERROR"]),
    ("stream_window_overflow", &["stream FLOW_CONTROL_ERROR"]),
    ("huge_frame", &["FRAME_SIZE_ERROR"]),
    ("not_http2", &["PROTOCOL_ERROR", "closed"]),
    ("silent", &["closed"]),
    ("many_streams", &["ENHANCE_YOUR_CALM", "closed", "stream REFUSED_STREAM"]),
];

#[test]
fn floods_are_cut_and_nobody_else_notices() {
    let Some(lab) = up() else { return };
    let client = lab.pod("shop/client").unwrap();
    // Warm: what a first flood allocates stays with the allocator.
    run(&lab, "good", &["ping"]);
    let (memory, open) = (lab.agent_memory_kib("node2"), descriptors(&lab, "node2"));
    let words = ["--rate", "50", "--concurrency", "4", "--new-connections", "http://far/"];
    let load = Load::start("beside the floods", &client, &words);
    let names: Vec<&str> = FLOODS.iter().map(|(name, _)| *name).collect();
    let came = run(&lab, "good", &names);
    let wrong = FLOODS.iter().filter(|(name, right)| {
        !came.get(*name).is_some_and(|outcome| right.contains(&outcome.as_str()))
    });
    let wrong: Vec<_> = wrong.map(|(name, right)| (name, came.get(*name), right)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(load.finish(100), Ok(()));
    let now = lab.agent_memory_kib("node2");
    assert!(now < memory + MEMORY_BOUND_KIB, "{memory} KiB before, {now} KiB after");
    support::eventually("every descriptor is given back", || {
        (descriptors(&lab, "node2") <= open + 8).then_some(())
    });
}

/// Connects to the plaintext listener's own port, and keeps what was taken.
const TO_15006: &str = r#"
import socket, sys
held, ended = [], 0
for _ in range(500):
    try: held.append(socket.create_connection((sys.argv[1], 15006), 30))
    except ConnectionError: ended += 1
for s in held:
    s.settimeout(30)
    try: ended += not s.recv(1)
    except ConnectionError: ended += 1
print(ended)
"#;

#[test]
fn connections_to_the_agents_own_ports_leave_nothing() {
    let Some(lab) = up() else { return };
    let far = lab.pod("shop/far").unwrap();
    let stranger: Pod = lab.pod("outside/stranger").unwrap();
    let open = descriptors(&lab, "node2");
    for address in &far.ips {
        let ended = support::ok(&stranger, &["python3", "-c", TO_15006, &address.to_string()]);
        assert_eq!(ended.trim(), "500", "{address}");
    }
    support::eventually("every descriptor is given back", || {
        (descriptors(&lab, "node2") <= open + 4).then_some(())
    });
    // From inside the mesh too: the agent does not dial itself.
    let client = lab.pod("shop/client").unwrap();
    for port in [15001, 15006, 15008] {
        let url = format!("http://{}:{port}/", far.ip());
        let output = client.exec(&["curl", "-sS", "-m", "20", &url]).unwrap();
        assert!(!output.status.success(), "{url}: {output:?}");
    }
}
