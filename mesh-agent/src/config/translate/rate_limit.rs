//! `RateLimit` of malha.dev. Pure.

use std::sync::Arc;
use std::time::Duration;

use super::Scope;
use super::http_match::{headers, part};
use super::names::{expand, is_host};
use crate::config::api;
use crate::config::diagnostic::Report;
use crate::model::{Callers, HttpMatch, ObjectRef, Rate, RateLimit, RateMatch};

/// Limits of one object: all are looked at for each request.
const MAX_LIMITS: usize = 32;
/// Entries of one `match`.
const MAX_MATCHES: usize = 16;
/// Longest name: it stands in metrics.
const MAX_NAME: usize = 63;
/// Most requests, at once or in each `per`.
const MAX_REQUESTS: u32 = 1_000_000;
/// Most requests of one pod in a second: beyond it a limit is no limit, and nanoseconds are too coarse.
const MAX_RATE: u128 = 1_000_000;
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(3600);

/// One `RateLimit`.
#[derive(Debug)]
pub(in crate::config) struct RateLimitFacts {
    /// Expanded.
    pub(in crate::config) host: Arc<str>,
    /// `limits[]`.
    pub(in crate::config) limits: Vec<Arc<RateLimit>>,
}

/// Translates one.
pub(in crate::config) fn rate_limit(
    spec: api::RateLimit,
    object: &ObjectRef,
    scope: &Scope<'_>,
    report: &mut Report,
) -> RateLimitFacts {
    if spec.host.is_empty() {
        report.error("spec.host", "missing");
    } else if spec.host.contains('*') {
        report.error("spec.host", "wildcards are not supported: name a service");
    } else if !is_host(&spec.host) {
        report.error("spec.host", format!("`{}` is not a host name", spec.host));
    }
    if spec.limits.is_empty() {
        report.error("spec.limits", "missing: at least one is needed");
    }
    at_most(MAX_LIMITS, spec.limits.len(), "spec.limits", report);
    let mut limits: Vec<Arc<RateLimit>> = Vec::with_capacity(spec.limits.len());
    for (index, found) in spec.limits.into_iter().enumerate() {
        let field = format!("spec.limits[{index}]");
        let name = name(&found.name, index, &field, report);
        if limits.iter().any(|other| other.name == name) {
            report.error(format!("{field}.name"), format!("`{name}` is there twice"));
        }
        if let Some(rate) = rate(&found, &field, report) {
            let callers = callers(found.from, &format!("{field}.from"), report);
            let matches = matches(found.r#match, &field, report);
            let object = object.clone();
            limits.push(Arc::new(RateLimit { object, name, callers, matches, rate }));
        }
    }
    RateLimitFacts { host: expand(&spec.host, scope).into(), limits }
}

fn at_most(most: usize, found: usize, field: &str, report: &mut Report) {
    if found > most {
        report.error(field, format!("{found} entries: at most {most} can be given"));
    }
}

/// The name, or in place of one the index.
fn name(name: &str, index: usize, field: &str, report: &mut Report) -> Arc<str> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.len() > MAX_NAME || !name.bytes().all(inner) {
        let message = format!(
            "`{name}` is not a name of at most {MAX_NAME} letters, digits, `-`, `_` and `.`"
        );
        report.error(format!("{field}.name"), message);
    }
    match name {
        "" => index.to_string().into(),
        name => name.into(),
    }
}

fn rate(found: &api::Limit, field: &str, report: &mut Report) -> Option<Rate> {
    let (Some(requests), Some(per)) = (found.requests, found.per) else {
        for (name, is_there) in
            [("requests", found.requests.is_some()), ("per", found.per.is_some())]
        {
            if !is_there {
                report.error(format!("{field}.{name}"), "missing");
            }
        }
        return None;
    };
    let per = per.0;
    for (name, count) in [("requests", requests), ("burst", found.burst.unwrap_or(1))] {
        if count > MAX_REQUESTS {
            report.error(format!("{field}.{name}"), format!("more than {MAX_REQUESTS}"));
        }
    }
    if per < SHORTEST || per > LONGEST {
        report.error(format!("{field}.per"), "must be from 1ms to 1h");
    } else if u128::from(requests) * 1_000_000_000 > MAX_RATE * per.as_nanos() {
        let message = format!("with this `per` more than {MAX_RATE} requests a second");
        report.error(format!("{field}.requests"), message);
    }
    match found.burst {
        Some(0) => report.error(format!("{field}.burst"), "must be at least 1"),
        Some(_) if requests == 0 => {
            report.warning(format!("{field}.burst"), "no effect: `requests: 0` lets none in");
        }
        _ => {}
    }
    Some(Rate::new(requests, per, found.burst))
}

fn callers(found: Option<api::From>, field: &str, report: &mut Report) -> Callers {
    let Some(found) = found else { return Callers::default() };
    if found.namespace.is_empty() && found.labels.is_empty() {
        report.error(field, "asks for nothing: give a namespace or labels, or leave it out");
    }
    let namespace = Some(found.namespace).filter(|name| !name.is_empty());
    Callers { namespace: namespace.map(Arc::from), labels: found.labels }
}

fn matches(entries: Vec<api::LimitMatch>, field: &str, report: &mut Report) -> Vec<RateMatch> {
    at_most(MAX_MATCHES, entries.len(), &format!("{field}.match"), report);
    let one = |(index, entry): (usize, api::LimitMatch)| {
        let field = format!("{field}.match[{index}]");
        let api::LimitMatch { uri, method, headers: wanted, route } = entry;
        if uri.is_none() && method.is_none() && wanted.is_empty() && route.is_empty() {
            report.error(&field, "asks for nothing: every request would match");
        }
        RateMatch {
            route: Some(route).filter(|name| !name.is_empty()).map(Arc::from),
            request: HttpMatch {
                uri: part(uri, &format!("{field}.uri"), report),
                method: part(method, &format!("{field}.method"), report),
                headers: headers(wanted, &format!("{field}.headers"), report),
                ..HttpMatch::default()
            },
        }
    };
    entries.into_iter().enumerate().map(one).collect()
}
