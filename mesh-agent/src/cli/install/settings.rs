//! What one may choose of the mesh when it is installed, and what was chosen before.
//!
//! These are the chart's values that differ from cluster to cluster; for the others there are Helm and
//! Kustomize. Invariant: a setting that is not given keeps what it was, at install the chart's default.

use clap::Args;
use serde::{Deserialize, Serialize};

/// Settings of the mesh, kept on the cluster for the next upgrade.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// Image of every part of the mesh, with its tag or digest.
    #[arg(long, value_name = "NAME:TAG")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// When to pull it: Always, IfNotPresent or Never.
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// Secret with which to pull it; may be given several times.
    #[arg(long, value_name = "SECRET")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secret: Vec<String>,
    /// Trust domain of the mesh's identities; never to be changed once pods are in it.
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// DNS suffix of services.
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_domain: Option<String>,
    /// Namespace whose policies hold for the whole mesh.
    #[arg(long, value_name = "NAMESPACE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_namespace: Option<String>,
    /// Whether to select pods by Istio's labels too: not where Istio runs.
    #[arg(long, value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub istio_labels: Option<bool>,
    /// Whether to take objects and pods although an `AuthorizationPolicy` or `RequestAuthentication` for
    /// them is not enforced yet.
    #[arg(long, value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_not_enforced: Option<bool>,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,access=debug`.
    #[arg(long, value_name = "LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
    /// `text` or `json`.
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<String>,
    /// Seconds that connections get to end when an agent stops.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=3600))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u32>,
    /// Worker threads of each agent; as many as the node has cores, if 0.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(0..=256))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// Replicas of the certificate authority.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority_replicas: Option<u32>,
    /// Root of the cgroup v2 hierarchy on the nodes: /sys/fs/cgroup, or /sys/fs/cgroup/unified where
    /// version 1 is mounted too.
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
}

impl Settings {
    /// Whether pods are selected by Istio's labels too.
    pub(super) fn selects_by_istio_labels(&self) -> bool {
        self.istio_labels.unwrap_or(true)
    }

    /// What is given here, else what was kept.
    pub(super) fn over(self, kept: Self) -> Self {
        let secrets = match self.image_pull_secret.is_empty() {
            true => kept.image_pull_secret,
            false => self.image_pull_secret,
        };
        Self {
            image: self.image.or(kept.image),
            image_pull_policy: self.image_pull_policy.or(kept.image_pull_policy),
            image_pull_secret: secrets,
            trust_domain: self.trust_domain.or(kept.trust_domain),
            cluster_domain: self.cluster_domain.or(kept.cluster_domain),
            root_namespace: self.root_namespace.or(kept.root_namespace),
            istio_labels: self.istio_labels.or(kept.istio_labels),
            accept_not_enforced: self.accept_not_enforced.or(kept.accept_not_enforced),
            log_level: self.log_level.or(kept.log_level),
            log_format: self.log_format.or(kept.log_format),
            drain_seconds: self.drain_seconds.or(kept.drain_seconds),
            workers: self.workers.or(kept.workers),
            authority_replicas: self.authority_replicas.or(kept.authority_replicas),
            cgroup_path: self.cgroup_path.or(kept.cgroup_path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_is_kept() {
        let kept = Settings {
            trust_domain: Some("corp".to_owned()),
            log_level: Some("debug".to_owned()),
            image_pull_secret: vec!["pull".to_owned()],
            ..Settings::default()
        };
        let given = Settings { log_level: Some("info".to_owned()), ..Settings::default() };
        let both = given.over(kept.clone());
        assert_eq!(both, Settings { log_level: Some("info".to_owned()), ..kept });
        // As it is kept on the cluster: only what was chosen.
        let text = serde_json::to_string(&both).unwrap();
        let wanted = r#"{"imagePullSecret":["pull"],"trustDomain":"corp","logLevel":"info"}"#;
        assert_eq!(text, wanted);
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), both);
    }
}
