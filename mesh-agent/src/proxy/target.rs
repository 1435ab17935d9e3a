//! Where a connection that is not HTTP goes: the service that it addressed, what that service's
//! `tls` and `tcp` routes say, or the very address that it dialled. Pure.
//!
//! Source: istio-surface 1.1.1 (TLS/TCP) and 1.4. Not here: the choice of an endpoint, and opening it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::balance::{Live, by_weight};
use crate::model::{
    Alpn, FoundDestination, L4Facts, L4Rule, OutboundPolicy, Protocol, Service, ServiceKind,
    ServiceTarget, Snapshot, TlsTarget, Workload,
};

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// The client's pod.
    pub(super) source: &'a Workload,
    /// The client's address.
    pub(super) peer: IpAddr,
    /// The address that it dialled.
    pub(super) dialled: SocketAddr,
    /// The service and port that this stands for.
    pub(super) addressed: Option<(&'a Arc<Service>, u16)>,
    /// The server name of its TLS, in lower case.
    pub(super) sni: Option<&'a str>,
}

/// Where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// To one of a service port's endpoints.
    Service(ServiceTarget<'a>),
    /// To the address that was dialled, by what holds for the service that it is of, if for any.
    Dialled(Option<ServiceTarget<'a>>),
}

/// Why it goes nowhere.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoTarget {
    /// The service has no such port.
    #[error("the service has no port {0}")]
    NoPort(u16),
    /// Istio's BlackHoleCluster.
    #[error("the mesh does not know it, and outboundTrafficPolicy is REGISTRY_ONLY")]
    Blocked,
    /// The route names a service or subset that does not exist.
    #[error("its route names `{0}`, of which no such service or subset is known")]
    NoCluster(Arc<str>),
    /// Only clients that ask for it know an address of what the route names.
    #[error(
        "its route names `{0}`, whose address is known to those alone that dial it by themselves"
    )]
    NoAddress(Arc<str>),
}

impl<'a> Target<'a> {
    /// TLS that the policy has the agent speak to it.
    pub(super) fn tls(&self) -> Option<TlsTarget> {
        let (Self::Service(to) | Self::Dialled(Some(to))) = self else { return None };
        // A wildcard is no server's name.
        let host = Some(&*to.service.hostname).filter(|host| !host.starts_with('*'));
        TlsTarget::of(to.policy, Some(to.service), host, Alpn::None)
    }

    /// The service that it is of.
    pub(super) fn service(&self) -> Option<&'a Arc<Service>> {
        match self {
            Self::Service(to) | Self::Dialled(Some(to)) => Some(to.service),
            Self::Dialled(None) => None,
        }
    }
}

/// Decides. `draw`: 64 random bits.
pub(super) fn target<'a>(
    snapshot: &'a Snapshot,
    asked: &Asked<'a>,
    draw: u64,
) -> Result<Target<'a>, NoTarget> {
    let Some((service, port)) = asked.addressed.or_else(|| unaddressed(snapshot, asked)) else {
        if snapshot.blocks(asked.dialled) {
            return Err(NoTarget::Blocked);
        }
        return Ok(Target::Dialled(None));
    };
    let namespace = &*asked.source.name.namespace;
    let name = service.name_for(asked.sni.unwrap_or_default());
    let facts = L4Facts {
        source: asked.source,
        peer: asked.peer,
        dialled: asked.dialled,
        port,
        sni: asked.sni,
    };
    let owner = snapshot.l4_virtual_service(name, namespace);
    if let Some(rule) = owner.and_then(|owner| owner.l4.route(&facts)) {
        return routed(snapshot, asked, rule, (port, draw));
    }
    to_service(snapshot, asked, (service, port, None))
}

/// Whether the server name may decide where the connection goes.
pub(super) fn wants_sni(snapshot: &Snapshot, asked: &Asked<'_>) -> bool {
    let Some((service, _)) = asked.addressed else {
        return snapshot.external.has_sni(asked.dialled.port());
    };
    let namespace = &*asked.source.name.namespace;
    let owner = snapshot.l4_virtual_service(&service.hostname, namespace);
    service.hostname.starts_with('*') || owner.is_some_and(|owner| !owner.l4.tls.is_empty())
}

/// The service of a connection whose address stands for none: by the server name; without one, by an
/// endpoint that the client has found by itself, or by the port.
fn unaddressed<'a>(snapshot: &'a Snapshot, asked: &Asked<'a>) -> Option<(&'a Arc<Service>, u16)> {
    let (external, namespace) = (&snapshot.external, &*asked.source.name.namespace);
    let port = asked.dialled.port();
    let protocol = |service: &Service| service.port(port).map(|port| port.protocol);
    let named = asked.sni.and_then(|sni| {
        let named = external.named(sni, namespace).or_else(|| external.covering(sni, namespace));
        named.filter(|service| matches!(protocol(service), Some(Protocol::Tls | Protocol::Detect)))
    });
    let endpoint = || external.with_endpoint(asked.dialled, namespace);
    let endpoint = || endpoint().filter(|_| asked.sni.is_none());
    // Under ALLOW_ANY the client gets the address that it asked for, and no endpoint of a service that
    // happens to have the port.
    let any = snapshot.outbound == OutboundPolicy::RegistryOnly;
    let by_port = || {
        external.on_port(port, namespace, |service| {
            let is_told_apart = asked.sni.is_some() && protocol(service) != Some(Protocol::Tcp);
            !is_told_apart && (any || service.is_dialled())
        })
    };
    named.or_else(endpoint).or_else(by_port).map(|service| (service, port))
}

/// Chooses a destination of a rule by weight, and looks it up. `port`: the one that was addressed.
fn routed<'a>(
    snapshot: &'a Snapshot,
    asked: &Asked<'a>,
    rule: &'a L4Rule,
    (port, draw): (u16, u64),
) -> Result<Target<'a>, NoTarget> {
    let to = by_weight(&rule.destinations, rule.total_weight, draw);
    let to = to.ok_or(NoTarget::NoPort(port))?;
    let missing = || NoTarget::NoCluster(Arc::clone(&to.host));
    let client = asked.source.client();
    let found = snapshot.named(&to.into(), client, port).ok_or_else(missing)?;
    let addressed = asked.addressed.map(|(service, _)| &**service);
    if snapshot.misleads(found, client, addressed, asked.dialled) {
        return Err(NoTarget::NoAddress(Arc::clone(&to.host)));
    }
    to_service(snapshot, asked, found)
}

fn to_service<'a>(
    snapshot: &'a Snapshot,
    asked: &Asked<'a>,
    found: FoundDestination<'a>,
) -> Result<Target<'a>, NoTarget> {
    let (service, number, subset) = found;
    let target = snapshot.target(found, asked.source.client());
    let target = target.ok_or(NoTarget::NoPort(number))?;
    // A headless endpoint was chosen by the client.
    let is_own = || {
        service.kind == ServiceKind::Headless
            && Live::endpoint_at(target.port, subset, asked.dialled).is_some()
    };
    if target.is_dialled() || is_own() {
        return Ok(Target::Dialled(Some(target)));
    }
    Ok(Target::Service(target))
}

#[cfg(test)]
mod tests;
