//! Opens a byte stream from a local pod to where an endpoint is: straight into a pod of this node,
//! through a tunnel to a pod that is in the mesh elsewhere, or as it is to everything else; and inside of
//! any of them, in TLS where the destination's policy has the agent speak it.
//!
//! Invariant: to a destination that is known to be in the mesh nothing is sent in plaintext because
//! a tunnel failed, nor to any because its TLS did; and a tunnel carries one source's identity only.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_common::ports;
use rustc_hash::FxHashMap;

use super::carrier::{Carrier, UpstreamIo};
use super::quota::Quota;
use super::{ClientTls, ConnectHead, Pool, PoolKey, TunnelError};
use crate::balance::{Draws, LiveHandle};
use crate::capture::{Capture, PodNet};
use crate::identity::{Credentials, Identities};
use crate::model::{SpiffeId, TlsTarget, Workload};
use crate::origination::{Origination, OriginationError, handshake};

/// A pod of this node whose sockets are captured.
#[derive(Debug)]
pub struct LocalPod {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `namespace/name`, for logs.
    pub name: Arc<str>,
    /// Who it is.
    pub identity: SpiffeId,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its network namespace.
    pub net: PodNet,
    /// What it may hold of this agent.
    pub quota: Arc<Quota>,
}

impl LocalPod {
    /// The pod's address of the same family as `other`.
    pub fn ip_like(&self, other: IpAddr) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| ip.is_ipv4() == other.is_ipv4())
    }
}

/// The pods of this node, by UID and by address.
#[derive(Debug, Default)]
pub struct LocalPods {
    /// By UID, also those that have left the mesh and still have connections in it.
    pub by_uid: FxHashMap<Arc<str>, Arc<LocalPod>>,
    /// By address: those in the mesh.
    pub by_ip: FxHashMap<IpAddr, Arc<LocalPod>>,
}

impl LocalPods {
    /// Pods whose new connections are captured; the others of `by_uid` are draining.
    pub fn captured(&self) -> impl Iterator<Item = &Arc<LocalPod>> {
        self.by_uid.values().filter(|pod| self.is_captured(pod))
    }

    /// The pod with that UID, if its new connections are captured.
    pub fn captured_by_uid(&self, uid: &str) -> Option<&Arc<LocalPod>> {
        self.by_uid.get(uid).filter(|pod| self.is_captured(pod))
    }

    fn is_captured(&self, pod: &LocalPod) -> bool {
        pod.ips.iter().any(|ip| self.by_ip.contains_key(ip))
    }
}

/// Shared, replaced as a whole when a pod comes or goes.
pub type LocalPodsHandle = Arc<ArcSwap<LocalPods>>;

/// Why no stream could be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The TCP connection failed.
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, #[source] io::Error),
    /// The tunnel failed: no connection, wrong identity, or the far side refused.
    #[error("no tunnel to {0}, where {1} should be: {2}")]
    Tunnel(SocketAddr, SpiffeId, #[source] TunnelError),
    /// No certificate for the source.
    #[error("no certificate for {0}")]
    NoCertificate(SpiffeId),
    /// One of the mesh's own ports, which would make the agent call itself.
    #[error("{0} is a port of the mesh itself")]
    OwnPort(SocketAddr),
    /// Took longer than allowed.
    #[error("no answer from {0} in time")]
    Timeout(SocketAddr),
    /// The source holds as much of the agent as it may.
    #[error("{0} is at its limit of what it may hold open")]
    Limit(Arc<str>),
    /// The TLS that the destination's policy asks for cannot be spoken.
    #[error("no TLS to {0}: {1}")]
    NoTls(SocketAddr, #[source] OriginationError),
    /// The server's certificate is not accepted, or it refuses the handshake.
    #[error("TLS handshake with {0}: {1}")]
    Handshake(SocketAddr, #[source] io::Error),
}

impl OpenError {
    /// Whether it is the network or the destination that refused, and not this agent.
    fn is_unreachable(&self) -> bool {
        use io::ErrorKind::{
            ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut,
        };
        let refusals =
            [ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut];
        match self {
            Self::Connect(_, error) => refusals.contains(&error.kind()),
            Self::Timeout(_) => true,
            Self::Tunnel(..)
            | Self::NoCertificate(_)
            | Self::OwnPort(_)
            | Self::Limit(_)
            | Self::NoTls(..)
            | Self::Handshake(..) => false,
        }
    }
}

/// How a stream is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Mutual TLS with this peer.
    MutualTls(SpiffeId),
    /// Stays on the node, between two pods that are both in the mesh.
    SameNode(SpiffeId),
    /// Plaintext to something outside the mesh.
    Plaintext,
}

/// How a destination is reached.
enum Way<'a> {
    /// It is a pod of this node, in the mesh.
    SameNode(Arc<LocalPod>),
    /// It is a pod of another node, in the mesh.
    Tunnel(&'a Workload),
    /// It is outside the mesh.
    Plaintext,
}

/// Opens streams for the pods of this node. One per worker: it holds the worker's tunnels.
#[derive(Clone)]
pub struct Upstream {
    capture: Arc<Capture>,
    identities: Arc<Identities>,
    pods: LocalPodsHandle,
    live: LiveHandle,
    pool: Pool,
    origination: Arc<Origination>,
    /// The certificate that each source opened its tunnels with.
    used: Rc<RefCell<FxHashMap<SpiffeId, Arc<Credentials>>>>,
    draws: Rc<Draws>,
}

impl Upstream {
    /// Tunnels are `pool`'s, and what is spoken in TLS is `origination`'s.
    pub fn new(
        capture: Arc<Capture>,
        identities: Arc<Identities>,
        pods: LocalPodsHandle,
        live: LiveHandle,
        (pool, origination): (Pool, Arc<Origination>),
    ) -> Self {
        Self {
            capture,
            identities,
            pods,
            live,
            pool,
            origination,
            used: Rc::default(),
            draws: Rc::new(Draws::unpredictable()),
        }
    }

    /// The pod of this node with that UID.
    pub fn local_pod(&self, uid: &str) -> Option<Arc<LocalPod>> {
        self.pods.load().by_uid.get(uid).cloned()
    }

    /// How the way to `destination` is protected.
    pub fn security(&self, target: SocketAddr, destination: Option<&Workload>) -> Security {
        match self.way(target, destination) {
            Way::SameNode(pod) => Security::SameNode(pod.identity.clone()),
            Way::Tunnel(workload) => Security::MutualTls(workload.identity.clone()),
            Way::Plaintext => Security::Plaintext,
        }
    }

    /// Decides how `target` is reached; what is shown and what is done both follow from it.
    fn way<'a>(&self, target: SocketAddr, destination: Option<&'a Workload>) -> Way<'a> {
        if let Some(pod) = self.pods.load().by_ip.get(&target.ip()) {
            return Way::SameNode(pod.clone());
        }
        match destination {
            Some(workload) if workload.enrolled => Way::Tunnel(workload),
            _ => Way::Plaintext,
        }
    }

    /// Opens a stream from `source` to `target`, behind which `destination` is known to be; in `tls`, if
    /// that is wanted. All of it within `timeout`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(
        &self,
        source: &LocalPod,
        target: SocketAddr,
        destination: Option<&Workload>,
        timeout: Duration,
        tls: Option<&TlsTarget>,
    ) -> Result<UpstreamIo, OpenError> {
        if ports::is_mesh(target.port()) {
            return Err(OpenError::OwnPort(target));
        }
        let way = self.way(target, destination);
        let permit = match way {
            Way::Tunnel(_) => source.quota.stream(),
            Way::SameNode(_) | Way::Plaintext => source.quota.socket(),
        };
        let permit = permit.ok_or_else(|| OpenError::Limit(source.name.clone()))?;
        // What would have to go in TLS must not find its way past the agent.
        let may_be_left = matches!(way, Way::Plaintext) && tls.is_none();
        let carrier = async {
            match way {
                Way::SameNode(pod) => self.open_same_node(source, &pod, target, timeout).await,
                Way::Tunnel(workload) => self.open_tunnel(source, target, workload, timeout).await,
                Way::Plaintext => self.open_plaintext(source, target, timeout).await,
            }
        };
        let opened = match tls {
            None => tokio::time::timeout(timeout, carrier).await,
            Some(tls) => {
                let secured = Box::pin(self.secure(source, tls, target, carrier));
                tokio::time::timeout(timeout, secured).await
            }
        };
        let opened = opened.unwrap_or(Err(OpenError::Timeout(target)));
        if may_be_left && opened.as_ref().is_err_and(OpenError::is_unreachable) {
            self.leave_to_kernel(source, target);
        }
        Ok(UpstreamIo::new(opened?, permit))
    }

    /// Shakes hands over what `carrier` opens, once it is known how.
    async fn secure(
        &self,
        source: &LocalPod,
        tls: &TlsTarget,
        target: SocketAddr,
        carrier: impl Future<Output = Result<Carrier, OpenError>>,
    ) -> Result<Carrier, OpenError> {
        let config = self.origination.config(&source.uid, tls).await;
        let config = config.map_err(|error| OpenError::NoTls(target, error))?;
        let shaken = handshake(config, tls, target.ip(), carrier.await?).await;
        let io = shaken.map_err(|error| OpenError::Handshake(target, error))?;
        Ok(Carrier::Tls(Box::new(io)))
    }

    /// The next client of the pod's sees for itself that an address outside the mesh cannot be
    /// reached, and may go on to another one.
    fn leave_to_kernel(&self, source: &LocalPod, target: SocketAddr) {
        let is_left = |target| self.live.load().snapshot.leaves_alone(target);
        if is_left(target) {
            self.capture.leave_unreached(&source.net, target);
            // It may have come to the mesh while this was written.
            if !is_left(target) {
                self.capture.keep_unreached(is_left);
            }
        }
    }

    async fn open_same_node(
        &self,
        source: &LocalPod,
        pod: &LocalPod,
        target: SocketAddr,
        timeout: Duration,
    ) -> Result<Carrier, OpenError> {
        let client = source
            .ip_like(target.ip())
            .ok_or_else(|| OpenError::Connect(target, io::ErrorKind::AddrNotAvailable.into()))?;
        self.capture
            .dial_into_pod(&pod.net, client, target, timeout)
            .await
            .map(Carrier::Tcp)
            .map_err(|error| OpenError::Connect(target, error))
    }

    async fn open_plaintext(
        &self,
        source: &LocalPod,
        target: SocketAddr,
        timeout: Duration,
    ) -> Result<Carrier, OpenError> {
        self.capture
            .dial_from_pod(&source.net, target, timeout)
            .await
            .map(Carrier::Tcp)
            .map_err(|error| OpenError::Connect(target, error))
    }

    /// Takes tunnels that were opened with an earlier certificate out of use.
    fn retire_old(&self, identity: &SpiffeId, credentials: &Arc<Credentials>) {
        let mut used = self.used.borrow_mut();
        match used.insert(identity.clone(), credentials.clone()) {
            Some(before) if !Arc::ptr_eq(&before, credentials) => {
                self.pool.retire(|key| key.source == *identity);
            }
            _ => {}
        }
    }

    async fn open_tunnel(
        &self,
        source: &LocalPod,
        target: SocketAddr,
        workload: &Workload,
        timeout: Duration,
    ) -> Result<Carrier, OpenError> {
        let credentials = self
            .identities
            .current(&source.identity)
            .ok_or_else(|| OpenError::NoCertificate(source.identity.clone()))?;
        self.retire_old(&source.identity, &credentials);
        let address = SocketAddr::new(target.ip(), ports::TUNNEL);
        let key = PoolKey {
            source_uid: source.uid.clone(),
            source: source.identity.clone(),
            destination: workload.identity.clone(),
            address,
        };
        let (config, server_name) = credentials.client(&workload.identity);
        let head = ConnectHead {
            authority: target.to_string(),
            baggage: Some(baggage(source)),
            traceparent: Some(traceparent(&self.draws)),
        };
        let dial = async || {
            let permit = source.quota.socket().ok_or(io::ErrorKind::QuotaExceeded)?;
            let socket = self.capture.dial_from_pod(&source.net, address, timeout).await?;
            Ok((socket, permit))
        };
        self.pool
            .connect(&key, &head, &ClientTls { config, server_name }, dial)
            .await
            .map(Carrier::Tunnel)
            .map_err(|error| match error {
                TunnelError::Dial(error) if error.kind() == io::ErrorKind::QuotaExceeded => {
                    OpenError::Limit(source.name.clone())
                }
                error => OpenError::Tunnel(target, workload.identity.clone(), error),
            })
    }
}

/// What the far side's telemetry wants to know about the source (ztunnel's `baggage` keys).
fn baggage(source: &LocalPod) -> String {
    let name = source.name.rsplit('/').next().unwrap_or_default();
    format!(
        "k8s.namespace.name={},k8s.pod.name={name},service.name={}",
        source.identity.namespace, source.identity.service_account
    )
}

/// A trace of its own for each stream, not sampled (W3C Trace Context, section 3.2).
fn traceparent(draws: &Draws) -> String {
    format!("00-{:016x}{:016x}-{:016x}-00", draws.next() | 1, draws.next(), draws.next() | 1)
}
