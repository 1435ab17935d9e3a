//! The authority's root: where it is kept, what is published of it, and the authority's own
//! certificate as a server.
//!
//! It is the user's Secret `cacerts` (Istio's form) if there is one, else the Secret `malha-ca`, which
//! the first replica makes; two that start at once end up with one root, because only one of them
//! can create it. Secrets are looked at every few seconds, so a change is taken up.
//!
//! To replace the root of a running mesh: append the new certificate to `root-cert.pem` of the Secret;
//! when all agents have it (minutes: the kubelet brings it to them), put the new pair into
//! `ca-cert.pem` and `ca-key.pem`; when the last certificate of the old root has ended (a day, or
//! `--max-certificate-ttl`), take the old one out of `root-cert.pem`.
//!
//! Invariant: a root is published before anything is signed with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use rustls::ServerConfig;
use rustls_pki_types::ServerName;

use crate::identity::LocalCa;

/// The user's own root; keys as Istio has them.
const USERS: &str = "cacerts";
/// The root that the authority makes.
const OWN: &str = "malha-ca";
/// What is trusted, for agents to mount.
const PUBLISHED: &str = "malha-ca-root";
/// Keys in Secrets and in the ConfigMap.
const CERT: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const ROOTS: &str = "root-cert.pem";
const CHAIN: &str = "cert-chain.pem";

/// Who writes, as the API server records it.
const MANAGER: &str = "malha-authority";
/// How often the Secrets are looked at.
const CHECK: Duration = Duration::from_secs(10);
/// The same while there is no root yet.
const FIRST_CHECK: Duration = Duration::from_secs(1);
/// Life of the server's own certificate; replaced at half of it.
const SERVER_LIFE: Duration = Duration::from_secs(86_400);
/// Time for one round of questions to the API server.
const TIMEOUT: Duration = Duration::from_secs(10);

type Data = BTreeMap<String, ByteString>;

/// What is in force.
pub(super) struct Held {
    pub(super) ca: LocalCa,
    /// Trusted roots, PEM.
    pub(super) bundle: String,
    /// For the authority's own listener.
    pub(super) tls: Arc<ServerConfig>,
    /// The same for HTTP/1.1.
    pub(super) https: Arc<ServerConfig>,
    renew: SystemTime,
    /// What `ca` was made from.
    from: Data,
}

/// Follows the root.
pub(super) struct Root {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    trust_domain: Arc<str>,
    names: Vec<ServerName<'static>>,
    held: ArcSwapOption<Held>,
}

impl Root {
    pub(super) fn new(
        client: Client,
        namespace: String,
        trust_domain: Arc<str>,
        names: Vec<ServerName<'static>>,
    ) -> Self {
        let secrets = Api::namespaced(client.clone(), &namespace);
        let maps = Api::namespaced(client, &namespace);
        Self { secrets, maps, trust_domain, names, held: ArcSwapOption::empty() }
    }

    /// The root in force, once there is one.
    pub(super) fn current(&self) -> Option<Arc<Held>> {
        self.held.load_full()
    }

    /// Follows the Secrets; never returns.
    pub(super) async fn follow(&self) {
        let mut reported = String::new();
        loop {
            let refreshed = tokio::time::timeout(TIMEOUT, self.refresh(SystemTime::now())).await;
            let refreshed = refreshed.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time")));
            match refreshed {
                Ok(()) => reported.clear(),
                Err(error) => {
                    let error = format!("{error:#}");
                    if error != reported {
                        tracing::error!(error, "the root cannot be brought up to date");
                        reported = error;
                    }
                }
            }
            let wait = if self.held.load().is_some() { CHECK } else { FIRST_CHECK };
            tokio::time::sleep(wait).await;
        }
    }

    async fn refresh(&self, now: SystemTime) -> anyhow::Result<()> {
        let data = self.secret().await?;
        let before = self.current();
        let is_same = before.as_ref().is_some_and(|held| held.from == data && now < held.renew);
        if is_same && let Some(held) = &before {
            return self.publish(&held.bundle).await;
        }
        let (ca, bundle) = read(&data, now)?;
        let issued = ca.issue_server(&self.names, SERVER_LIFE, now)?;
        let mut tls = ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(issued.chain, issued.key)?;
        let mut https = tls.clone();
        https.alpn_protocols = vec![b"http/1.1".to_vec()];
        tls.alpn_protocols = vec![b"h2".to_vec()];
        self.publish(&bundle).await?;
        let end = ca.not_after().min(now + SERVER_LIFE);
        let renew = now + end.duration_since(now).unwrap_or_default() / 2;
        if before.is_none_or(|held| held.from != data) {
            tracing::info!("root certificate in force");
        }
        let (tls, https) = (Arc::new(tls), Arc::new(https));
        self.held.store(Some(Arc::new(Held { ca, bundle, tls, https, renew, from: data })));
        Ok(())
    }

    async fn secret(&self) -> kube::Result<Data> {
        for name in [USERS, OWN] {
            if let Some(secret) = self.secrets.get_opt(name).await? {
                return Ok(secret.data.unwrap_or_default());
            }
        }
        let secret = self.new_secret().map_err(|error| kube::Error::Service(Box::new(error)))?;
        match self.secrets.create(&PostParams::default(), &secret).await {
            Ok(made) => {
                tracing::info!(secret = OWN, "made a root certificate");
                Ok(made.data.unwrap_or_default())
            }
            // Another replica was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Ok(self.secrets.get(OWN).await?.data.unwrap_or_default())
            }
            Err(error) => Err(error),
        }
    }

    fn new_secret(&self) -> Result<Secret, crate::identity::IdentityError> {
        let ca = LocalCa::generate(&self.trust_domain)?;
        let entry = |key: &str, text: &str| (key.to_owned(), ByteString(text.as_bytes().to_vec()));
        let mut secret = Secret {
            data: Some(BTreeMap::from([
                entry(CERT, ca.certificate_pem()),
                entry(KEY, &ca.key_pem()),
                entry(ROOTS, ca.certificate_pem()),
            ])),
            ..Secret::default()
        };
        secret.metadata.name = Some(OWN.to_owned());
        Ok(secret)
    }

    /// Writes the trusted roots where agents find them, if they are not there already.
    async fn publish(&self, bundle: &str) -> anyhow::Result<()> {
        let published = self.maps.get_opt(PUBLISHED).await?.and_then(|map| map.data);
        if published.is_some_and(|data| data.get(ROOTS).is_some_and(|there| there == bundle)) {
            return Ok(());
        }
        let mut map = ConfigMap {
            data: Some(BTreeMap::from([(ROOTS.to_owned(), bundle.to_owned())])),
            ..ConfigMap::default()
        };
        map.metadata.name = Some(PUBLISHED.to_owned());
        let params = PatchParams::apply(MANAGER).force();
        self.maps.patch(PUBLISHED, &params, &Patch::Apply(&map)).await?;
        tracing::info!(config_map = PUBLISHED, "trusted roots published");
        Ok(())
    }
}

/// The certificate to sign with, and the roots to trust.
fn read(data: &Data, now: SystemTime) -> anyhow::Result<(LocalCa, String)> {
    let text = |key: &str| -> anyhow::Result<Option<&str>> {
        let found = data.get(key).map(|bytes| std::str::from_utf8(&bytes.0));
        found.transpose().map_err(|_| anyhow::anyhow!("{key} is not text"))
    };
    let need = |key: &str| {
        text(key)?.ok_or_else(|| anyhow::anyhow!("the root's Secret has no key `{key}`"))
    };
    let ca = LocalCa::load(need(CERT)?, need(KEY)?)?;
    // A Secret of a single certificate that is its own root need not say so twice.
    let roots = text(ROOTS)?.unwrap_or(ca.certificate_pem()).to_owned();
    let ca = ca.below(text(CHAIN)?.unwrap_or_default(), &roots, now)?;
    Ok((ca, roots))
}
