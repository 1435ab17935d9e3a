//! What is to become of a request: routing and the destination's resolution. Pure but for the
//! record, which it tells the service and the route.
//!
//! Invariant: everything in a plan is borrowed from the one snapshot that the request holds.
//! Source: istio-surface 1.1 and 1.2.1. Not here: doing it (`outbound`).

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, StatusCode};

use super::engine::ConnectionFacts;
use super::error::HttpError;
use super::router::{self, Head, Route, VirtualHost};
use super::serve::{Connection, HttpVersion};
use super::{headers, redirect, rewrite};
use crate::model::{
    Action, DirectResponse, Forward, HeaderOps, HttpMatch, HttpRule, LoadBalancer, Protocol,
    Service, ServiceKind, ServicePort, Snapshot, Subset, TrafficPolicy, WeightedDestination,
};
use crate::telemetry::RequestRecord;

/// Where a request goes, after routing.
#[derive(Clone, Copy)]
pub(super) enum Destination<'a> {
    /// One of a service port's endpoints.
    Service(ServiceTarget<'a>),
    /// The address that the client dialled.
    Dialled,
}

#[derive(Clone, Copy)]
pub(super) struct ServiceTarget<'a> {
    pub(super) service: &'a Arc<Service>,
    pub(super) port: &'a ServicePort,
    pub(super) subset: Option<&'a Subset>,
    pub(super) policy: LoadBalancer,
    pub(super) connect_timeout: Duration,
}

/// Everything that the rule says about a request that goes on.
pub(super) struct Plan<'a> {
    pub(super) destination: Destination<'a>,
    /// The route's, then the destination's.
    pub(super) request_ops: [Option<&'a HeaderOps>; 2],
    pub(super) response_ops: [Option<&'a HeaderOps>; 2],
    pub(super) path: Option<PathAndQuery>,
    pub(super) authority: Option<&'a HeaderValue>,
    pub(super) timeout: Option<Duration>,
    pub(super) version: HttpVersion,
    /// No rule and no service: the request's target stays in the form that it has.
    pub(super) untouched: bool,
}

/// What was decided about a request's head.
pub(super) enum Decision<'a> {
    Forward(Box<Plan<'a>>),
    Redirect(String, StatusCode, &'a HeaderOps),
    Direct(&'a DirectResponse, &'a HeaderOps),
    Fail(HttpError),
}

/// Routes a request and resolves its destination. Pure but for the record.
pub(super) fn decide<'a>(
    snapshot: &'a Snapshot,
    connection: &Connection,
    head: &Head<'_>,
    (upgrade, draw): (bool, u64),
    record: &mut RequestRecord,
) -> Decision<'a> {
    let facts = &connection.facts;
    let found = router::virtual_host(snapshot, &facts.source, facts.destination, head.authority);
    let Some(host) = found else {
        return Decision::Forward(Box::new(Plan {
            untouched: true,
            ..Plan::to(Destination::Dialled, connection.version)
        }));
    };
    if let Some(service) = host.service {
        record.service(service);
    }
    let resolved = match router::route(&host, &facts.source, head) {
        Route::NoRule => return Decision::Fail(HttpError::NoRoute),
        Route::Service(service) => own_service(snapshot, facts, service, &host)
            .map(|destination| Plan::to(destination, connection.version)),
        Route::Rule(rule, entry) => {
            record.route(&rule.name, entry.map(|entry| &*entry.name));
            match &rule.action {
                Action::Redirect(redirect) => {
                    // A client that names no host (HTTP/1.0) knows the address.
                    let dialled = facts.destination.to_string();
                    let authority = Some(head.authority).filter(|named| !named.is_empty());
                    let head = Head { authority: authority.unwrap_or(&dialled), ..*head };
                    let location = redirect::location(redirect, entry, &head, host.port);
                    return Decision::Redirect(location, redirect.code, &rule.response_headers);
                }
                Action::Direct(direct) => {
                    return Decision::Direct(direct, &rule.response_headers);
                }
                Action::Forward(forward) => {
                    let to = Matched { rule, forward, entry, draw };
                    planned(snapshot, connection, head, &host, &to)
                }
            }
        }
    };
    match resolved {
        Ok(mut plan) => {
            if let Destination::Service(target) = &plan.destination {
                record.service(target.service);
                plan.version = upstream_version(target.port.protocol, connection.version, upgrade);
            }
            Decision::Forward(Box::new(plan))
        }
        Err(error) => Decision::Fail(error),
    }
}

/// A rule that forwards, with what else its plan is made from.
struct Matched<'a> {
    rule: &'a HttpRule,
    forward: &'a Forward,
    entry: Option<&'a HttpMatch>,
    draw: u64,
}

fn planned<'a>(
    snapshot: &'a Snapshot,
    connection: &Connection,
    head: &Head<'_>,
    host: &VirtualHost<'a>,
    to: &Matched<'a>,
) -> Result<Plan<'a>, HttpError> {
    let forward = to.forward;
    let chosen = router::destination(forward, to.draw).ok_or(HttpError::NoCluster)?;
    let destination = named_service(snapshot, &connection.facts, chosen, host.port)?;
    let path = match &forward.rewrite.path {
        Some(path) => Some(rewrite::rewritten(path, to.entry, head.uri).ok_or(HttpError::Local)?),
        None => None,
    };
    Ok(Plan {
        request_ops: [Some(&to.rule.request_headers), Some(&chosen.request_headers)],
        response_ops: [Some(&to.rule.response_headers), Some(&chosen.response_headers)],
        path,
        authority: forward.rewrite.authority.as_ref().or(chosen.authority.as_ref()),
        timeout: headers::timeout(forward.timeout, head.headers),
        ..Plan::to(destination, connection.version)
    })
}

/// The service that a rule names.
fn named_service<'a>(
    snapshot: &'a Snapshot,
    facts: &ConnectionFacts,
    chosen: &'a WeightedDestination,
    addressed: u16,
) -> Result<Destination<'a>, HttpError> {
    let key = chosen.service.as_ref().ok_or(HttpError::NoCluster)?;
    let service = snapshot.services.get(key).ok_or(HttpError::NoCluster)?;
    let port = match (chosen.port, &*service.ports) {
        (Some(port), _) => port,
        (None, [only]) => only.port,
        (None, _) => addressed,
    };
    let namespace = &*facts.source.name.namespace;
    let subset = match &chosen.subset {
        Some(name) => Some(snapshot.subset(service, namespace, name).ok_or(HttpError::NoCluster)?),
        None => None,
    };
    to_service(snapshot, facts, (service, port), subset)
}

/// The service that was addressed, where no VirtualService says otherwise.
fn own_service<'a>(
    snapshot: &'a Snapshot,
    facts: &ConnectionFacts,
    service: &'a Arc<Service>,
    host: &VirtualHost<'a>,
) -> Result<Destination<'a>, HttpError> {
    to_service(snapshot, facts, (service, host.port), None)
}

fn to_service<'a>(
    snapshot: &'a Snapshot,
    facts: &ConnectionFacts,
    (service, port): (&'a Arc<Service>, u16),
    subset: Option<&'a Subset>,
) -> Result<Destination<'a>, HttpError> {
    if matches!(service.kind, ServiceKind::ExternalName(_)) {
        // Resolved by the client, who dialled the address.
        return Ok(Destination::Dialled);
    }
    let port = service.port(port).ok_or(HttpError::NoCluster)?;
    let rule = snapshot.destination_rule(service, &facts.source.name.namespace);
    let default = TrafficPolicy::default();
    let policy = rule.map_or(&default, |rule| rule.policy(subset, port.port));
    Ok(Destination::Service(ServiceTarget {
        service,
        port,
        subset,
        policy: policy.load_balancer,
        connect_timeout: policy.connect_timeout,
    }))
}

/// What is spoken to an endpoint: what its port declares; on an undeclared port what the client
/// speaks. An upgrade is HTTP/1.1's.
fn upstream_version(protocol: Protocol, client: HttpVersion, upgrade: bool) -> HttpVersion {
    match protocol {
        Protocol::Http => HttpVersion::Http1,
        Protocol::Http2 | Protocol::Grpc if upgrade => HttpVersion::Http1,
        Protocol::Http2 | Protocol::Grpc => HttpVersion::Http2,
        Protocol::Detect | Protocol::Tcp | Protocol::Tls => client,
    }
}

impl<'a> Plan<'a> {
    fn to(destination: Destination<'a>, version: HttpVersion) -> Self {
        Self {
            destination,
            request_ops: [None; 2],
            response_ops: [None; 2],
            path: None,
            authority: None,
            timeout: None,
            version,
            untouched: false,
        }
    }
}
