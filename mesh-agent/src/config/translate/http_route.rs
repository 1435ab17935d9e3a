//! One `http[]` entry of a `VirtualService`, as written (istio-surface 1.1). Pure.

use std::sync::Arc;
use std::time::Duration;

use super::Scope;
use super::headers::{Changes, headers};
use super::http_action::{destinations, direct, redirect, rewrite, total_weight};
use super::http_filter::{MirrorFields, cors, fault, mirrors};
use super::http_match::{MatchFacts, matches};
use super::numbers::duration_or_zero;
use super::retries::retries;
use super::virtual_service::Reference;
use crate::config::api;
use crate::config::diagnostic::Report;
use crate::model::{
    Action, Cors, DirectResponse, Fault, Forward, HeaderOps, HttpRule, Mirror, Redirect,
    RetryPolicy, Rewrite, WeightedDestination,
};

/// One `http[]` entry.
#[derive(Clone, Debug)]
pub(in crate::config) struct RouteFacts {
    /// Where it stands, e.g. `spec.http[0]`.
    pub(in crate::config) field: String,
    /// `name`; empty if it has none.
    pub(in crate::config) name: String,
    /// `match[]`; empty matches all. Entries that cannot apply in the mesh are gone.
    pub(in crate::config) matches: Vec<MatchFacts>,
    /// What becomes of a request.
    pub(in crate::config) target: Target,
    /// All the rest.
    pub(in crate::config) options: Options,
}

/// What becomes of a request that an entry matches.
#[derive(Clone, Debug)]
pub(in crate::config) enum Target {
    /// `route[]`.
    Forward {
        /// At least one; their services are not looked up yet.
        destinations: Vec<WeightedDestination>,
        /// Sum of the weights; at least 1.
        total_weight: u32,
    },
    /// `redirect`.
    Redirect(Redirect),
    /// `directResponse`.
    Direct(DirectResponse),
    /// `delegate`: another object goes on.
    Delegate {
        /// `delegate.namespace`, or the object's own.
        namespace: Arc<str>,
        /// `delegate.name`.
        name: Arc<str>,
    },
}

/// What an entry says beside its target: a delegate's takes from its root's what it does not write.
#[derive(Clone, Debug, Default)]
pub(in crate::config) struct Options {
    /// `rewrite`.
    pub(in crate::config) rewrite: Option<Rewrite>,
    /// `headers`: of the request and of the response.
    pub(in crate::config) headers: Option<(Changes, HeaderOps)>,
    /// `timeout`; 0 switches it off.
    pub(in crate::config) timeout: Option<Duration>,
    /// `retries`.
    pub(in crate::config) retries: Option<RetryPolicy>,
    /// `fault`.
    pub(in crate::config) fault: Option<Fault>,
    /// `mirror` and `mirrors[]`.
    pub(in crate::config) mirrors: Option<Vec<Mirror>>,
    /// `corsPolicy`.
    pub(in crate::config) cors: Option<Cors>,
}

// === impl RouteFacts ===

impl RouteFacts {
    /// The rule that it stands for; `None` if it delegates.
    pub(in crate::config) fn rule(self) -> Option<HttpRule> {
        let Self { name, matches, target, options, .. } = self;
        let (request, response_headers) = options.headers.unwrap_or_default();
        let action = match target {
            Target::Forward { destinations, total_weight } => {
                let Rewrite { path, authority } = options.rewrite.unwrap_or_default();
                Action::Forward(Forward {
                    destinations,
                    total_weight,
                    rewrite: Rewrite { path, authority: authority.or(request.authority) },
                    timeout: options.timeout.filter(|time| !time.is_zero()),
                    retries: options.retries.unwrap_or_default(),
                    mirrors: options.mirrors.unwrap_or_default(),
                })
            }
            Target::Redirect(redirect) => Action::Redirect(redirect),
            Target::Direct(direct) => Action::Direct(direct),
            Target::Delegate { .. } => return None,
        };
        Some(HttpRule {
            name: if name.is_empty() { "default".into() } else { name.into() },
            matches: matches.into_iter().map(|found| found.conditions).collect(),
            action,
            request_headers: request.ops,
            response_headers,
            fault: options.fault.map(Box::new),
            cors: options.cors.map(Box::new),
        })
    }
}

impl Options {
    /// With what is not written taken from `root`.
    pub(in crate::config) fn or(self, root: &Self) -> Self {
        Self {
            rewrite: self.rewrite.or_else(|| root.rewrite.clone()),
            headers: self.headers.or_else(|| root.headers.clone()),
            timeout: self.timeout.or(root.timeout),
            retries: self.retries.or_else(|| root.retries.clone()),
            fault: self.fault.or_else(|| root.fault.clone()),
            mirrors: self.mirrors.or_else(|| root.mirrors.clone()),
            cors: self.cors.or_else(|| root.cors.clone()),
        }
    }
}

// === free helpers ===

/// Translates one; `None` if it is not for clients in the mesh, or in error.
pub(super) fn route(
    mut entry: api::HttpRoute,
    field: &str,
    scope: &Scope<'_>,
    references: &mut Vec<Reference>,
    report: &mut Report,
) -> Option<RouteFacts> {
    check_action(&entry, field, report);
    check_company(&entry, field, report);
    let name = std::mem::take(&mut entry.name);
    let found = std::mem::take(&mut entry.r#match);
    let mut named = Vec::new();
    let options = options(&mut entry, field, scope, &mut named, report);
    let target = target(entry, field, scope, &mut named, report);
    let matches = matches(found, field, report)?;
    references.append(&mut named);
    Some(RouteFacts { field: field.to_owned(), name, matches, target: target?, options })
}

fn target(
    entry: api::HttpRoute,
    field: &str,
    scope: &Scope<'_>,
    references: &mut Vec<Reference>,
    report: &mut Report,
) -> Option<Target> {
    if let Some(found) = entry.redirect {
        return Some(Target::Redirect(redirect(found, field, report)));
    }
    if let Some(found) = entry.direct_response {
        return direct(found, field, report).map(Target::Direct);
    }
    if let Some(found) = entry.delegate {
        if found.name.is_empty() {
            report.error(format!("{field}.delegate.name"), "missing");
        }
        let own = || Arc::clone(scope.namespace);
        let namespace = Some(found.namespace).filter(|name| !name.is_empty());
        let namespace = namespace.map_or_else(own, Arc::from);
        return Some(Target::Delegate { namespace, name: found.name.into() });
    }
    let destinations = destinations(entry.route, field, scope, references, report);
    let total_weight = total_weight(&destinations, field, report)?;
    Some(Target::Forward { destinations, total_weight })
}

fn options(
    entry: &mut api::HttpRoute,
    field: &str,
    scope: &Scope<'_>,
    references: &mut Vec<Reference>,
    report: &mut Report,
) -> Options {
    let mirror_fields = MirrorFields {
        mirror: entry.mirror.take(),
        percentage: entry.mirror_percentage.take(),
        percent: entry.mirror_percent.take(),
        mirrors: std::mem::take(&mut entry.mirrors),
    };
    let found = entry.headers.take();
    Options {
        timeout: duration_or_zero(entry.timeout, &format!("{field}.timeout"), report),
        headers: found.map(|found| headers(found, &format!("{field}.headers"), report)),
        rewrite: entry.rewrite.as_ref().map(|found| rewrite(found, field, report)),
        retries: entry.retries.as_ref().map(|found| retries(found, field, report)),
        fault: entry.fault.as_ref().map(|found| fault(found, field, report)),
        mirrors: mirrors(mirror_fields, field, scope, references, report),
        cors: entry.cors_policy.as_ref().map(|found| cors(found, field, report)),
    }
}

/// Exactly one of the things that an entry can do.
fn check_action(entry: &api::HttpRoute, field: &str, report: &mut Report) {
    let given: Vec<&str> = [
        (!entry.route.is_empty(), "route"),
        (entry.redirect.is_some(), "redirect"),
        (entry.direct_response.is_some(), "directResponse"),
        (entry.delegate.is_some(), "delegate"),
    ]
    .into_iter()
    .filter_map(|(given, name)| given.then_some(name))
    .collect();
    match given.as_slice() {
        [_] => {}
        [] => {
            let message = "must have one of `route`, `redirect` and `directResponse`";
            report.error(field, message);
        }
        [first, second, ..] => {
            report.error(field, format!("cannot have both `{first}` and `{second}`"));
        }
    }
}

/// What has no meaning where requests are answered at once.
fn check_company(entry: &api::HttpRoute, field: &str, report: &mut Report) {
    if entry.redirect.is_none() && entry.direct_response.is_none() {
        return;
    }
    for (given, name) in [(entry.rewrite.is_some(), "rewrite"), (entry.fault.is_some(), "fault")] {
        if given {
            report.error(format!("{field}.{name}"), "has no meaning without `route`");
        }
    }
    for (given, name) in [
        (entry.timeout.is_some(), "timeout"),
        (entry.retries.is_some(), "retries"),
        (entry.mirror.is_some(), "mirror"),
        (!entry.mirrors.is_empty(), "mirrors"),
    ] {
        if given {
            report.warning(format!("{field}.{name}"), "no effect without `route`");
        }
    }
}
