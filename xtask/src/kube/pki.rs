//! A throw-away PKI for one cluster, and the kubeconfigs made of it.
//!
//! Names of subjects are those that Kubernetes' authorizers know
//! (<https://kubernetes.io/docs/setup/best-practices/certificates/>). All keys are ECDSA P-256:
//! making them takes no time.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

/// Names under which the API server is reached.
const SERVER_NAMES: [&str; 4] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
/// Clients: file, organisation, common name.
const CLIENTS: [(&str, Option<&str>, &str); 6] = [
    ("admin", Some("system:masters"), "admin"),
    ("apiserver-kubelet-client", Some("system:masters"), "apiserver-kubelet"),
    ("kube-controller-manager", None, "system:kube-controller-manager"),
    ("kube-scheduler", None, "system:kube-scheduler"),
    ("kube-proxy", None, "system:kube-proxy"),
    ("front-proxy-client", None, "front-proxy-client"),
];
/// Those that read a kubeconfig.
const WITH_KUBECONFIG: [&str; 4] =
    ["admin", "kube-controller-manager", "kube-scheduler", "kube-proxy"];

/// Whom the certificates are for.
pub(super) struct Names<'a> {
    /// Addresses of the API server.
    pub(super) server: &'a [IpAddr],
    /// Its URL.
    pub(super) url: &'a str,
    /// Nodes and their addresses.
    pub(super) nodes: &'a [(String, Vec<IpAddr>)],
}

/// A subject that signs others.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// Writes keys and certificates to `<lab>/pki`, and `<name>.kubeconfig` to the lab's folder.
pub(super) fn write(lab: &Path, names: &Names<'_>) -> anyhow::Result<()> {
    let pki = lab.join("pki");
    fs::create_dir_all(&pki)?;
    let authority = Authority::new(&pki)?;
    let mut server = CertificateParams::new(SERVER_NAMES.map(str::to_owned))?;
    server.subject_alt_names.extend(names.server.iter().map(|ip| SanType::IpAddress(*ip)));
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    authority.sign(&pki, "apiserver", (None, "kube-apiserver"), server)?;
    for (file, organisation, name) in CLIENTS {
        let mut client = CertificateParams::default();
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, key) = authority.sign(&pki, file, (organisation, name), client)?;
        if WITH_KUBECONFIG.contains(&file) {
            authority.kubeconfig(lab, file, names.url, [&certificate, &key])?;
        }
    }
    for (node, addresses) in names.nodes {
        let mut params = CertificateParams::new([node.clone()])?;
        params.subject_alt_names.extend(addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let file = format!("kubelet-{node}");
        let subject = (Some("system:nodes"), &*format!("system:node:{node}"));
        let (certificate, key) = authority.sign(&pki, &file, subject, params)?;
        authority.kubeconfig(lab, &file, names.url, [&certificate, &key])?;
    }
    // Signs and checks tokens of service accounts.
    let key = KeyPair::generate()?;
    save(&pki, "sa.key", &key.serialize_pem())?;
    save(&pki, "sa.pub", &key.public_key_pem())
}

impl Authority {
    fn new(pki: &Path) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished(None, "lab-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        save(pki, "ca.crt", &certificate)?;
        save(pki, "ca.key", &key.serialize_pem())?;
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Makes `<file>.crt` and `<file>.key` for a subject (organisation, common name); their text.
    fn sign(
        &self,
        pki: &Path,
        file: &str,
        subject: (Option<&str>, &str),
        mut params: CertificateParams,
    ) -> anyhow::Result<(String, String)> {
        params.distinguished_name = distinguished(subject.0, subject.1);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        save(pki, &format!("{file}.crt"), &certificate)?;
        save(pki, &format!("{file}.key"), &key.serialize_pem())?;
        Ok((certificate, key.serialize_pem()))
    }

    fn kubeconfig(
        &self,
        lab: &Path,
        name: &str,
        url: &str,
        [certificate, key]: [&str; 2],
    ) -> anyhow::Result<()> {
        let authority = STANDARD.encode(&self.certificate);
        let cluster = json!({ "server": url, "certificate-authority-data": authority });
        let user = json!({
            "client-certificate-data": STANDARD.encode(certificate),
            "client-key-data": STANDARD.encode(key),
        });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "lab", "cluster": cluster }],
            "users": [{ "name": name, "user": user }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": name } }],
            "current-context": "lab",
        });
        save(lab, &format!("{name}.kubeconfig"), &format!("{config:#}\n"))
    }
}

fn distinguished(organisation: Option<&str>, name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if let Some(organisation) = organisation {
        subject.push(DnType::OrganizationName, organisation);
    }
    subject.push(DnType::CommonName, name);
    subject
}

/// Only its owner may read it.
fn save(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let path = folder.join(name);
    let mut options = fs::OpenOptions::new();
    let file = options.create(true).truncate(true).write(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}
