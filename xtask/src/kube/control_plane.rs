//! etcd, the API server, the controllers and the scheduler: how they are started.
//!
//! Alone they listen on loopback; with nodes, in a network namespace. Flags:
//! <https://kubernetes.io/docs/reference/command-line-tools-reference/>.

use std::net::TcpListener;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::network::{SERVICES, control};

/// One process of the control plane.
pub(super) const ETCD: &str = "etcd";
/// One process of the control plane.
pub(super) const API_SERVER: &str = "kube-apiserver";
/// One process of the control plane.
pub(super) const CONTROLLERS: &str = "kube-controller-manager";
/// One process of the control plane.
pub(super) const SCHEDULER: &str = "kube-scheduler";

/// Ports that the control plane listens on.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Ports {
    pub(super) api: u16,
    etcd: u16,
    etcd_peer: u16,
    controllers: u16,
    scheduler: u16,
}

/// Where the control plane listens.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Place {
    /// The API server's address; everything else listens on loopback.
    pub(super) address: String,
    pub(super) ports: Ports,
    /// Seconds after which a silent node counts as not ready.
    pub(super) grace: u64,
    /// It has no nodes and stands in the machine's own network namespace.
    pub(super) alone: bool,
}

// === impl Ports ===

impl Ports {
    /// The usual ones, for a network namespace of one's own.
    pub(super) fn usual() -> Self {
        Self { api: 6443, etcd: 2379, etcd_peer: 2380, controllers: 10257, scheduler: 10259 }
    }

    /// Ones that are free now; somebody else may still take them first.
    ///
    /// # Errors
    /// No port is free.
    pub(super) fn free() -> anyhow::Result<Self> {
        let listeners = (0..5).map(|_| TcpListener::bind("127.0.0.1:0"));
        let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
        let ports = listeners.iter().map(|listener| Ok(listener.local_addr()?.port()));
        let ports = ports.collect::<std::io::Result<Vec<u16>>>()?;
        let [api, etcd, etcd_peer, controllers, scheduler] = ports[..] else {
            anyhow::bail!("five ports were asked for")
        };
        Ok(Self { api, etcd, etcd_peer, controllers, scheduler })
    }
}

// === impl Place ===

impl Place {
    /// The API server's URL.
    pub(super) fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.ports.api)
    }

    /// The network namespace, if it is not the machine's.
    pub(super) fn netns(&self, prefix: &str) -> Option<String> {
        (!self.alone).then(|| control(prefix))
    }

    /// Arguments of one of the processes.
    pub(super) fn arguments(&self, process: &str, lab: &Path) -> Vec<String> {
        let lab = lab.display();
        let text = match process {
            ETCD => self.etcd(),
            API_SERVER => self.api_server(),
            CONTROLLERS => self.controllers(),
            _ => self.scheduler(),
        };
        text.split_whitespace().map(|word| word.replace("@LAB@", &lab.to_string())).collect()
    }

    /// Data that is thrown away need not reach the disk.
    /// Where etcd takes requests, from beside it.
    pub(super) fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.etcd)
    }

    fn etcd(&self) -> String {
        let client = self.etcd_url();
        let peer = format!("http://127.0.0.1:{}", self.ports.etcd_peer);
        format!(
            "--name lab --data-dir @LAB@/etcd --unsafe-no-fsync --log-level warn
             --listen-client-urls {client} --advertise-client-urls {client}
             --listen-peer-urls {peer} --initial-advertise-peer-urls {peer}
             --initial-cluster lab={peer}"
        )
    }

    /// Endpoints of the Service `kubernetes` may not be on loopback: alone it writes none.
    fn api_server(&self) -> String {
        let Self { address, ports, .. } = self;
        let reconciler = if self.alone { "none" } else { "lease" };
        let (api, etcd) = (ports.api, ports.etcd);
        format!(
            "--etcd-servers http://127.0.0.1:{etcd} --bind-address {address} --secure-port {api}
             --advertise-address {address} --service-cluster-ip-range {SERVICES}
             --tls-cert-file @LAB@/pki/apiserver.crt --tls-private-key-file @LAB@/pki/apiserver.key
             --client-ca-file @LAB@/pki/ca.crt --authorization-mode Node,RBAC
             --enable-admission-plugins NodeRestriction --allow-privileged
             --service-account-issuer https://kubernetes.default.svc
             --service-account-key-file @LAB@/pki/sa.pub
             --service-account-signing-key-file @LAB@/pki/sa.key
             --api-audiences https://kubernetes.default.svc
             --kubelet-client-certificate @LAB@/pki/apiserver-kubelet-client.crt
             --kubelet-client-key @LAB@/pki/apiserver-kubelet-client.key
             --kubelet-certificate-authority @LAB@/pki/ca.crt
             --kubelet-preferred-address-types InternalIP
             --requestheader-client-ca-file @LAB@/pki/ca.crt
             --requestheader-allowed-names front-proxy-client
             --requestheader-username-headers X-Remote-User
             --requestheader-group-headers X-Remote-Group
             --requestheader-extra-headers-prefix X-Remote-Extra-
             --proxy-client-cert-file @LAB@/pki/front-proxy-client.crt
             --proxy-client-key-file @LAB@/pki/front-proxy-client.key --enable-aggregator-routing
             --endpoint-reconciler-type {reconciler} --profiling=false"
        )
    }

    /// With the default of 20 requests a second its first seconds are spent waiting.
    fn controllers(&self) -> String {
        let (port, grace) = (self.ports.controllers, self.grace);
        format!(
            "--kubeconfig @LAB@/kube-controller-manager.kubeconfig --leader-elect=false
             --use-service-account-credentials
             --service-account-private-key-file @LAB@/pki/sa.key --root-ca-file @LAB@/pki/ca.crt
             --cluster-signing-cert-file @LAB@/pki/ca.crt
             --cluster-signing-key-file @LAB@/pki/ca.key --cluster-name lab
             --kube-api-qps 200 --kube-api-burst 400 --bind-address 127.0.0.1 --secure-port {port}
             --allocate-node-cidrs=false --profiling=false --node-monitor-grace-period {grace}s"
        )
    }

    fn scheduler(&self) -> String {
        let port = self.ports.scheduler;
        format!(
            "--kubeconfig @LAB@/kube-scheduler.kubeconfig --leader-elect=false --kube-api-qps 200
             --kube-api-burst 400 --bind-address 127.0.0.1 --secure-port {port} --profiling=false"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_the_labs_folder() {
        let place =
            Place { address: "127.0.0.1".into(), ports: Ports::usual(), grace: 40, alone: true };
        for process in [ETCD, API_SERVER, CONTROLLERS, SCHEDULER] {
            let arguments = place.arguments(process, Path::new("/a b"));
            // By this the guardian knows them.
            assert!(arguments.iter().any(|word| word.starts_with("/a b/")), "{arguments:?}");
            assert!(!arguments.iter().any(|word| word.contains('@')), "{arguments:?}");
        }
    }
}
