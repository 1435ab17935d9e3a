//! `Gateway` of networking.istio.io, whole (istio-surface 1.3). Not honoured yet: here for its CRD.

use schemars::JsonSchema;
use serde::Deserialize;

use super::meta::Labels;
use super::schema::{required, rules};

/// `Gateway.spec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct Gateway {
    /// Labels of the pods that serve it.
    selector: Labels,
    servers: Vec<Server>,
}

/// `servers[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = required(["port", "hosts"]))]
struct Server {
    #[schemars(transform = required(["number", "protocol", "name"]))]
    port: Port,
    /// `[namespace/]dnsName`: hosts that VirtualServices may bind.
    hosts: Vec<String>,
    /// IP or Unix socket; all, if unset.
    bind: String,
    name: String,
    default_endpoint: String,
    tls: Option<ServerTls>,
}

/// A port with its protocol; of a Sidecar too.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Port {
    number: u32,
    /// `HTTP`, `HTTPS`, `GRPC`, `GRPC-WEB`, `HTTP2`, `MONGO`, `TCP` or `TLS`.
    protocol: String,
    name: String,
    /// Deprecated.
    target_port: u32,
}

/// `servers[].tls`; of a Sidecar too.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = rules([
    (
        "only one of credentialNames or tlsCertificates can be set",
        "(has(self.tlsCertificates) ? 1 : 0) + (has(self.credentialNames) ? 1 : 0) <= 1",
    ),
    (
        "only one of credentialName or credentialNames can be set",
        "(has(self.credentialName) ? 1 : 0) + (has(self.credentialNames) ? 1 : 0) <= 1",
    ),
]))]
pub(in crate::config) struct ServerTls {
    /// Requests without TLS are redirected to HTTPS.
    https_redirect: bool,
    /// `PASSTHROUGH`, if unset.
    mode: Option<ServerTlsMode>,
    /// Path.
    server_certificate: String,
    /// Path.
    private_key: String,
    /// Path of what clients' certificates are checked against.
    ca_certificates: String,
    /// Path of revoked certificates.
    ca_crl: String,
    /// Secret, in place of the paths.
    credential_name: String,
    /// Secrets with certificates of different key types.
    #[schemars(length(min = 1, max = 2))]
    credential_names: Vec<String>,
    /// Secret or ConfigMap of what clients' certificates are checked against.
    ca_cert_credential_name: String,
    /// Paths of certificates of different key types.
    #[schemars(length(min = 1, max = 2))]
    tls_certificates: Vec<TlsCertificate>,
    /// Names of which a client's certificate must have one.
    subject_alt_names: Vec<String>,
    verify_certificate_spki: Vec<String>,
    verify_certificate_hash: Vec<String>,
    min_protocol_version: Option<TlsVersion>,
    max_protocol_version: Option<TlsVersion>,
    cipher_suites: Vec<String>,
    /// Clients' certificates are not checked.
    insecure_skip_verify: Option<bool>,
}

/// `servers[].tls.mode`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum ServerTlsMode {
    Passthrough,
    Simple,
    Mutual,
    AutoPassthrough,
    IstioMutual,
    OptionalMutual,
}

/// `servers[].tls.tlsCertificates[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct TlsCertificate {
    server_certificate: String,
    private_key: String,
    ca_certificates: String,
}

/// `servers[].tls.minProtocolVersion` and `maxProtocolVersion`.
#[derive(Debug, Deserialize, JsonSchema)]
enum TlsVersion {
    #[serde(rename = "TLS_AUTO")]
    Auto,
    #[serde(rename = "TLSV1_0")]
    V1_0,
    #[serde(rename = "TLSV1_1")]
    V1_1,
    #[serde(rename = "TLSV1_2")]
    V1_2,
    #[serde(rename = "TLSV1_3")]
    V1_3,
}
