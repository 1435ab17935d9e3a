//! The client of the API server.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Time for a connection; a node that is cut off must notice.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects with a kubeconfig, or with the account of the pod that this is.
///
/// # Errors
/// The kubeconfig, or what Kubernetes puts into a pod, is not there or not readable. No request is
/// made: a server that is away is no error.
pub async fn kubernetes_client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => read_kubeconfig(path, &KubeConfigOptions::default()).await?,
        None => Config::incluster()
            .context("not in a pod of a cluster: give --config-dir or --kubeconfig")?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    client_of(config)
}

/// What a kubeconfig says of a cluster.
///
/// # Errors
/// It is not there or not readable.
pub async fn read_kubeconfig(path: &Path, options: &KubeConfigOptions) -> anyhow::Result<Config> {
    let read =
        Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Config::from_custom_kubeconfig(read, options).await?)
}

/// A client. It makes no request.
///
/// # Errors
/// Certificates or keys cannot be used.
pub fn client_of(config: Config) -> anyhow::Result<Client> {
    // kube takes the process's provider, and there are two to choose from.
    let _ =
        rustls::crypto::CryptoProvider::install_default(rustls::crypto::ring::default_provider());
    Client::try_from(config).context("cannot make a client of the API server")
}
