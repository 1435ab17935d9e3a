//! The cluster's certificate authority: signs the identities of service accounts for the agents that
//! run their pods, and for nobody else. Beside it, what a cluster needs once: the admission webhook,
//! which refuses objects with the reason that an agent would have, and the status of objects, which the
//! leader of the replicas writes.
//!
//! What it is not: it configures no agent, and keeps no list of what it signed, and no pod needs it to be up: a certificate
//! lives a day and is renewed at half of it. Any number of replicas share one root.
//!
//! Invariant: an identity is signed only for a caller whose token the API server vouches for, and
//! then only the caller's own, or one whose pod runs on the node that the caller's token is bound to.
//! A webhook that is away lets everything pass: what it would refuse, agents do not take into force.
//!
//! Sources: `istio.v1.auth.IstioCertificateService`; Kubernetes' TokenReview and bound tokens.

mod admission;
mod decide;
mod lease;
mod metrics;
mod places;
mod pods;
mod review;
mod root;
mod server;
mod service;
mod status;
mod validator;
mod webhook;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use prometheus_client::registry::Registry;
use rustls_pki_types::ServerName;
use tokio::net::TcpListener;

use admission::Rules;
use decide::Policy;
use lease::Leadership;
use metrics::Metrics;
use pods::Pods;
use review::Reviews;
use root::Root;
use webhook::Webhook;

use crate::config::Settings as ConfigSettings;
use crate::model::MeshSettings;

/// Wait of a replica that led before it tries to lead again.
const LEAD_AGAIN: Duration = Duration::from_secs(1);

/// What an authority is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it runs; its root's Secret, the ConfigMap of trusted roots and the Lease are here.
    pub namespace: String,
    /// Names of the mesh; identities of its trust domain are signed.
    pub mesh: MeshSettings,
    /// The webhook admits security objects that are not enforced, with a warning.
    pub accept_not_enforced: bool,
    /// Name of this process among the replicas, another one in each.
    pub holder: String,
    /// Audience that callers' tokens must be for.
    pub audience: String,
    /// Namespace and name of the agents' service account.
    pub agents: (String, String),
    /// Longest life of a certificate.
    pub longest: Duration,
    /// Names by which callers reach it.
    pub names: Vec<ServerName<'static>>,
}

/// The authority.
pub struct Authority {
    policy: Policy,
    longest: Duration,
    reviews: Reviews,
    pods: Pods,
    root: Root,
    metrics: Arc<Metrics>,
    webhook: Arc<Webhook>,
    leadership: Leadership,
    mesh: MeshSettings,
    client: Client,
}

/// Where an authority is reached.
#[derive(Debug)]
pub struct Listeners {
    /// The certificate service.
    pub certificates: TcpListener,
    /// The admission webhook, if there is to be one.
    pub webhook: Option<TcpListener>,
}

impl Authority {
    /// Asks nobody yet.
    pub fn new(client: &Client, settings: Settings, registry: &mut Registry) -> Self {
        let metrics = Arc::new(Metrics::register(registry));
        let mesh = settings.mesh;
        let rules = Rules { mesh: mesh.clone(), accept_not_enforced: settings.accept_not_enforced };
        let webhook = Arc::new(Webhook::new(rules, Arc::clone(&metrics)));
        let leadership = Leadership::new(client.clone(), &settings.namespace, settings.holder);
        let trust_domain = mesh.trust_domain.clone();
        Self {
            policy: Policy { trust_domain: trust_domain.clone(), agents: settings.agents },
            longest: settings.longest,
            reviews: Reviews::new(client.clone(), settings.audience),
            pods: Pods::new(client.clone()),
            root: Root::new(client.clone(), settings.namespace, trust_domain, settings.names),
            metrics,
            webhook,
            leadership,
            mesh,
            client: client.clone(),
        }
    }

    /// What keeps it from signing, by name; empty once it signs.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.root.current().is_none() {
            missing.push("root certificate".to_owned());
        }
        if !self.pods.is_listed() {
            missing.push("list of Pod".to_owned());
        }
        missing
    }

    /// Serves until dropped; then [`Self::stop`] is to be called.
    pub async fn run(self: Arc<Self>, listeners: Listeners) {
        let Listeners { certificates, webhook } = listeners;
        tokio::join!(
            self.root.follow(),
            self.pods.follow(),
            server::serve(&self, certificates),
            self.admit(webhook),
            self.lead(),
        );
    }

    /// Leaves what only one replica does to the others. Takes seconds at most.
    pub async fn stop(&self) {
        self.leadership.release().await;
    }

    async fn admit(&self, listener: Option<TcpListener>) {
        let Some(listener) = listener else { return };
        let served = self.webhook.serve(&self.root, listener);
        tokio::join!(served, validator::follow(self.client.clone(), &self.root));
    }

    /// Writes the status of objects whenever this replica leads.
    async fn lead(&self) {
        loop {
            self.leadership.won().await;
            tracing::info!("this replica writes the status of objects");
            self.metrics.leads(true);
            let settings = ConfigSettings { mesh: self.mesh.clone(), ..ConfigSettings::default() };
            tokio::select! {
                () = self.leadership.lost() => {}
                () = writer::follow(self.client.clone(), settings, &self.metrics) => {}
            }
            self.metrics.leads(false);
            tracing::warn!("another replica may write the status of objects");
            tokio::time::sleep(LEAD_AGAIN).await;
        }
    }
}
