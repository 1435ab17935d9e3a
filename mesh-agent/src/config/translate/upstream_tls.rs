//! `trafficPolicy.tls`: whether the agent speaks TLS to a destination itself, and how. What Istio's
//! validation refuses is refused (istio `ValidateClientTLSSettings`); what a mode does not use is said to
//! have no effect. Pure.
//!
//! Source: istio-surface 1.2 and 1.2.1, "TLS details".

use std::sync::Arc;

use rustls_pki_types::DnsName;

use crate::config::api::{self, TlsMode};
use crate::config::diagnostic::Report;
use crate::model::{ClientFiles, TlsOrigination};

/// `credentialName` that means the roots of the system, and no Secret.
const SYSTEM: &str = "system";

/// A `tls` block, as written.
#[derive(Clone, Debug)]
pub(in crate::config) enum UpstreamTls {
    /// DISABLE or ISTIO_MUTUAL: what the mesh does by itself.
    OfMesh,
    /// SIMPLE or MUTUAL.
    Originated(Arc<TlsOrigination>),
}

impl UpstreamTls {
    /// What the agent is to speak itself.
    pub(in crate::config) fn originated(self) -> Option<Arc<TlsOrigination>> {
        match self {
            Self::OfMesh => None,
            Self::Originated(settings) => Some(settings),
        }
    }
}

/// Translates one; `policy` is the field that it is in.
pub(super) fn upstream_tls(
    found: Option<api::Tls>,
    policy: &str,
    report: &mut Report,
) -> Option<UpstreamTls> {
    let found = found?;
    let field = format!("{policy}.tls");
    Some(match found.mode {
        None | Some(TlsMode::Disable) => {
            let message =
                "DISABLE is ignored: mutual TLS is used wherever both sides are in the mesh";
            report.warning(format!("{field}.mode"), message);
            unused(&found, &ALL, "DISABLE", &field, report);
            UpstreamTls::OfMesh
        }
        Some(TlsMode::IstioMutual) => {
            unused(&found, &ALL, "ISTIO_MUTUAL", &field, report);
            UpstreamTls::OfMesh
        }
        Some(mode @ (TlsMode::Simple | TlsMode::Mutual)) => {
            UpstreamTls::Originated(Arc::new(originated(found, mode, &field, report)))
        }
    })
}

/// Fields beside `mode`.
const ALL: [&str; 8] = [
    "clientCertificate",
    "privateKey",
    "caCertificates",
    "credentialName",
    "subjectAltNames",
    "sni",
    "insecureSkipVerify",
    "caCrl",
];

fn is_written(found: &api::Tls, name: &str) -> bool {
    match name {
        "clientCertificate" => !found.client_certificate.is_empty(),
        "privateKey" => !found.private_key.is_empty(),
        "caCertificates" => !found.ca_certificates.is_empty(),
        "credentialName" => !found.credential_name.is_empty(),
        "subjectAltNames" => !found.subject_alt_names.is_empty(),
        "sni" => !found.sni.is_empty(),
        "insecureSkipVerify" => found.insecure_skip_verify == Some(true),
        _ => !found.ca_crl.is_empty(),
    }
}

/// Says which of the fields have no effect in a mode.
fn unused(found: &api::Tls, names: &[&str], mode: &str, field: &str, report: &mut Report) {
    for name in names.iter().filter(|name| is_written(found, name)) {
        report.warning(format!("{field}.{name}"), format!("no effect with `mode: {mode}`"));
    }
}

fn originated(found: api::Tls, mode: TlsMode, field: &str, report: &mut Report) -> TlsOrigination {
    check(&found, mode, field, report);
    let skip_verify = found.insecure_skip_verify == Some(true);
    if mode == TlsMode::Simple {
        unused(&found, &["clientCertificate", "privateKey"], "SIMPLE", field, report);
    }
    let secret =
        text(found.credential_name).filter(|name| mode == TlsMode::Mutual || **name != *SYSTEM);
    if secret.is_some() {
        let message = "not supported: an agent may read no Secrets, so that connections to this \
                       destination fail (503 UF); mount the files into the clients' pods and name \
                       their paths instead";
        report.warning(format!("{field}.credentialName"), message);
    }
    let client =
        ClientFiles { certificate: found.client_certificate.into(), key: found.private_key.into() };
    let names = if skip_verify { Vec::new() } else { found.subject_alt_names };
    TlsOrigination {
        sni: sni(&found.sni, field, report),
        names: names.into_iter().map(Arc::from).collect(),
        skip_verify,
        roots: text(found.ca_certificates),
        revoked: text(found.ca_crl),
        client: (mode == TlsMode::Mutual && secret.is_none()).then_some(client),
        secret,
    }
}

/// What cannot be together, or must be.
fn check(found: &api::Tls, mode: TlsMode, field: &str, report: &mut Report) {
    let is_mutual = mode == TlsMode::Mutual;
    if found.insecure_skip_verify == Some(true) {
        let beside: &[&str] = match is_mutual {
            true => &["caCertificates", "subjectAltNames"],
            false => &["caCertificates", "credentialName", "subjectAltNames"],
        };
        for name in beside.iter().filter(|name| is_written(found, name)) {
            let message = "cannot be given with `insecureSkipVerify: true`";
            report.error(format!("{field}.{name}"), message);
        }
    }
    if is_written(found, "credentialName") {
        for name in ["clientCertificate", "privateKey", "caCertificates", "caCrl"] {
            if is_written(found, name) {
                let message = "cannot be given with `credentialName`";
                report.error(format!("{field}.{name}"), message);
            }
        }
    } else if is_mutual {
        for name in ["clientCertificate", "privateKey"] {
            if !is_written(found, name) {
                report.error(format!("{field}.{name}"), "missing: `mode: MUTUAL` needs it");
            }
        }
    }
}

fn sni(found: &str, field: &str, report: &mut Report) -> Option<Arc<str>> {
    let name = text(found.to_ascii_lowercase())?;
    if DnsName::try_from(&*name).is_err() {
        report.error(format!("{field}.sni"), format!("`{found}` is not a DNS name"));
    }
    Some(name)
}

fn text(found: String) -> Option<Arc<str>> {
    (!found.is_empty()).then(|| found.into())
}
