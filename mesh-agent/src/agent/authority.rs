//! `mesh-agent authority`: start and serve.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use rustls_pki_types::ServerName;

use super::node::{BoxFuture, listen, stopped};
use super::options::AuthorityOptions;
use crate::admin::{Probes, serve_probes};
use crate::authority::{Authority, Listeners, Settings};
use crate::config::kubernetes_client;
use crate::model::MeshSettings;

/// Name of the agents' service account if nobody says otherwise.
const AGENTS: &str = "malha-agent";

/// Runs the authority until it is told to stop.
///
/// # Errors
/// What keeps it from starting: an option that cannot be read, a socket in use, no account to speak
/// to the API server with. An API server that is away is waited for.
pub async fn run(options: AuthorityOptions) -> anyhow::Result<()> {
    let settings = settings(&options)?;
    let client = kubernetes_client(options.kubeconfig.as_deref()).await?;
    let mut registry = Registry::default();
    let authority = Arc::new(Authority::new(&client, settings, &mut registry));
    let certificates = listen(options.listen).await?;
    let webhook = match options.webhook_address {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let state = authority.clone();
    let probes = Arc::new(Probes { missing: Box::new(move || state.missing()), registry });
    let probes: BoxFuture = match options.probe_address {
        Some(address) => Box::pin(serve_probes(listen(address).await?, probes)),
        None => Box::pin(std::future::pending()),
    };
    tracing::info!(address = %options.listen, "authority started");
    tokio::select! {
        stopped = stopped() => stopped?,
        () = authority.clone().run(Listeners { certificates, webhook }) => {}
        () = probes => {}
    }
    tracing::info!("authority stopping");
    authority.stop().await;
    Ok(())
}

fn settings(options: &AuthorityOptions) -> anyhow::Result<Settings> {
    let agents = match &options.agent_account {
        None => (options.namespace.clone(), AGENTS.to_owned()),
        Some(account) => account
            .split_once('/')
            .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
            .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
            .with_context(|| format!("--agent-account: `{account}` is not namespace/name"))?,
    };
    let AuthorityOptions { service, namespace, cluster_domain, .. } = options;
    let own = [
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.{cluster_domain}"),
        format!("{service}.{namespace}"),
        service.clone(),
    ];
    let names = own.into_iter().chain(options.server_name.iter().cloned()).map(|name| {
        ServerName::try_from(name.clone())
            .with_context(|| format!("`{name}` is neither a DNS name nor an address"))
    });
    Ok(Settings {
        namespace: namespace.clone(),
        mesh: MeshSettings {
            trust_domain: options.trust_domain.as_str().into(),
            cluster_domain: options.cluster_domain.as_str().into(),
            root_namespace: options.root_namespace.as_str().into(),
        },
        accept_not_enforced: options.accept_not_enforced,
        holder: holder()?,
        audience: options.audience.clone(),
        agents,
        longest: Duration::from_secs(options.max_certificate_ttl),
        names: names.collect::<anyhow::Result<_>>()?,
    })
}

/// A name that no other process has: that of the pod or machine, for people, and a random part.
fn holder() -> anyhow::Result<String> {
    let host = nix::unistd::gethostname().context("cannot tell the host's name")?;
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("no random numbers"))?;
    Ok(format!("{}_{:016x}", host.to_string_lossy(), u64::from_ne_bytes(random)))
}
