//! What an `http[]` entry does with a request beside routing it: faults, CORS, mirrors
//! (istio-surface 1.1 and 1.1.1). Pure.

use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::Scope;
use super::http_action::destination;
use super::http_match::string_match;
use super::numbers::{duration, percent, whole_percent};
use super::virtual_service::Reference;
use crate::config::api::{self, UnmatchedPreflights};
use crate::config::diagnostic::Report;
use crate::config::parse::nearest;
use crate::model::{Cors, Fault, FaultAbort, Mirror, Share, StringMatch};

/// Names of gRPC's statuses, by number
/// (<https://github.com/grpc/grpc/blob/master/doc/statuscodes.md>).
const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// Said of a fault without a percentage.
const NEVER: &str = "unset, which is 0: never happens";

// === fault ===

/// `fault`.
pub(super) fn fault(found: &api::Fault, field: &str, report: &mut Report) -> Fault {
    let field = format!("{field}.fault");
    if found.delay.is_none() && found.abort.is_none() {
        report.error(field.as_str(), "must have `delay` or `abort`");
    }
    let delay = found.delay.as_ref();
    let abort = found.abort.as_ref();
    Fault {
        delay: delay.and_then(|found| self::delay(found, &format!("{field}.delay"), report)),
        abort: abort.and_then(|found| self::abort(found, &format!("{field}.abort"), report)),
    }
}

fn delay(
    found: &api::Delay,
    field: &str,
    report: &mut Report,
) -> Option<(std::time::Duration, Share)> {
    if found.fixed_delay.is_none() {
        report.error(format!("{field}.fixedDelay"), "missing");
    }
    let old = whole_percent(found.percent, &format!("{field}.percent"), report);
    let share = match (found.percentage, old) {
        (Some(written), _) => share(written, &format!("{field}.percentage"), report),
        (None, Some(old)) => Share::percent(old.into()),
        (None, None) => {
            report.warning(format!("{field}.percentage"), NEVER);
            Some(Share::NONE)
        }
    };
    let time = duration(found.fixed_delay, &format!("{field}.fixedDelay"), report);
    Some((time?, share?))
}

fn abort(found: &api::Abort, field: &str, report: &mut Report) -> Option<(FaultAbort, Share)> {
    let kind = match (found.http_status, found.grpc_status.as_str()) {
        (Some(_), text) if !text.is_empty() => {
            report.error(field, "only one of `httpStatus` and `grpcStatus` can be given");
            None
        }
        (Some(number), _) => http_status(number, &format!("{field}.httpStatus"), report),
        (None, "") => {
            report.error(field, "must have `httpStatus` or `grpcStatus`");
            None
        }
        (None, text) => grpc_status(text, &format!("{field}.grpcStatus"), report),
    };
    let share = match found.percentage {
        Some(written) => share(written, &format!("{field}.percentage"), report),
        None => {
            report.warning(format!("{field}.percentage"), NEVER);
            Some(Share::NONE)
        }
    };
    Some((kind?, share?))
}

/// From 200 to 600, as Istio takes them.
fn http_status(number: i32, field: &str, report: &mut Report) -> Option<FaultAbort> {
    let code = u16::try_from(number).ok().filter(|code| (200..=600).contains(code));
    let status = code.and_then(|code| StatusCode::from_u16(code).ok());
    if status.is_none() {
        report.error(field, format!("{number} is not a status from 200 to 600"));
    }
    status.map(FaultAbort::Http)
}

/// A name, or a number.
fn grpc_status(text: &str, field: &str, report: &mut Report) -> Option<FaultAbort> {
    let named = GRPC_STATUSES.iter().position(|name| *name == text);
    let number = named.or_else(|| text.parse().ok().filter(|n: &usize| *n < GRPC_STATUSES.len()));
    if number.is_none() {
        let hint = match nearest(text, GRPC_STATUSES) {
            Some(near) => format!("; did you mean `{near}`?"),
            None => ", such as `UNAVAILABLE` or `14`".to_owned(),
        };
        report.error(field, format!("`{text}` is not a status of gRPC{hint}"));
    }
    number.and_then(|number| u16::try_from(number).ok()).map(FaultAbort::Grpc)
}

/// A percentage that is not too small to be told from 0.
fn share(found: api::Percent, field: &str, report: &mut Report) -> Option<Share> {
    let field = format!("{field}.value");
    let value = percent(found.value, &field, report)?;
    let share = Share::percent(value)?;
    if share == Share::NONE && value > 0.0 {
        report.error(field, format!("{value} is less than 0.0001"));
    }
    Some(share)
}

// === corsPolicy ===

/// `corsPolicy`.
pub(super) fn cors(found: &api::CorsPolicy, field: &str, report: &mut Report) -> Cors {
    let field = format!("{field}.corsPolicy");
    let is_method = |text: &str| Method::from_bytes(text.as_bytes()).is_ok();
    let is_header = |text: &str| HeaderName::from_bytes(text.as_bytes()).is_ok();
    let mut list = |found: &[String], name, is_valid: &dyn Fn(&str) -> bool| {
        joined(found, &format!("{field}.{name}"), is_valid, report)
    };
    let allow_methods = list(&found.allow_methods, "allowMethods", &is_method);
    let allow_headers = list(&found.allow_headers, "allowHeaders", &is_header);
    let expose_headers = list(&found.expose_headers, "exposeHeaders", &is_header);
    let age = format!("{field}.maxAge");
    let max_age = duration(found.max_age, &age, report);
    if max_age.is_some_and(|time| time.subsec_nanos() > 0) {
        report.error(age, "must be of whole seconds");
    }
    Cors {
        allow_origins: origins(found, &field, report),
        allow_methods,
        allow_headers,
        expose_headers,
        max_age: max_age.map(|time| HeaderValue::from(time.as_secs())),
        allow_credentials: found.allow_credentials.unwrap_or(false),
        forward_unmatched: found.unmatched_preflights != Some(UnmatchedPreflights::Ignore),
    }
}

/// `allowOrigins`, else the deprecated `allowOrigin`. A lone `*` is any origin, as in Envoy.
fn origins(found: &api::CorsPolicy, field: &str, report: &mut Report) -> Vec<StringMatch> {
    let any = |text: &str| (text == "*").then_some(StringMatch::Present);
    if found.allow_origins.is_empty() {
        if found.allow_origin.is_empty() {
            report.warning(format!("{field}.allowOrigins"), "none: no other origin is let in");
        }
        let exact =
            |text: &String| any(text).unwrap_or_else(|| StringMatch::Exact(text.as_str().into()));
        return found.allow_origin.iter().map(exact).collect();
    }
    if !found.allow_origin.is_empty() {
        report.warning(format!("{field}.allowOrigin"), "no effect: `allowOrigins` counts");
    }
    let mut origins = Vec::with_capacity(found.allow_origins.len());
    for (index, origin) in found.allow_origins.iter().enumerate() {
        let field = format!("{field}.allowOrigins[{index}]");
        match string_match(origin.clone(), &field, report) {
            Some(StringMatch::Present) if origin.regex.is_none() => {
                report.error(field, "must have `exact`, `prefix` or `regex`");
            }
            Some(StringMatch::Exact(text)) => {
                origins.push(any(&text).unwrap_or(StringMatch::Exact(text)));
            }
            Some(other) => origins.push(other),
            None => {}
        }
    }
    origins
}

/// The entries with commas between them; `None` if there are none.
fn joined(
    entries: &[String],
    field: &str,
    is_valid: &dyn Fn(&str) -> bool,
    report: &mut Report,
) -> Option<HeaderValue> {
    for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| !is_valid(entry)) {
        let message = format!("`{entry}` cannot stand in a list of a header");
        report.error(format!("{field}[{index}]"), message);
    }
    if entries.is_empty() {
        return None;
    }
    HeaderValue::from_str(&entries.join(",")).ok()
}

// === mirrors ===

/// The fields of an entry that say where copies go.
pub(super) struct MirrorFields {
    pub(super) mirror: Option<api::Destination>,
    pub(super) percentage: Option<api::Percent>,
    /// Deprecated.
    pub(super) percent: Option<u32>,
    pub(super) mirrors: Vec<api::Mirror>,
}

/// `mirror` or `mirrors[]`; `None` if there is neither. A mirror that gets nothing is left out.
pub(super) fn mirrors(
    found: MirrorFields,
    field: &str,
    scope: &Scope<'_>,
    references: &mut Vec<Reference>,
    report: &mut Report,
) -> Option<Vec<Mirror>> {
    let MirrorFields { mirror, percentage, percent: old, mirrors } = found;
    if mirror.is_some() && !mirrors.is_empty() {
        report.error(field, "cannot have both `mirror` and `mirrors`");
    }
    if mirror.is_none() {
        for (given, name) in
            [(percentage.is_some(), "mirrorPercentage"), (old.is_some(), "mirrorPercent")]
        {
            if given {
                report.warning(format!("{field}.{name}"), "no effect without `mirror`");
            }
        }
    }
    let mut found = Vec::with_capacity(mirrors.len() + 1);
    let mut add = |destination, share, field: String, report: &mut Report| {
        let target = self::destination(destination, field, scope, report);
        let (Some((mut reference, port)), Some(share)) = (target, share) else { return };
        reference.is_mirror = true;
        let (host, subset) = (Arc::clone(&reference.host), reference.subset.clone());
        references.push(reference);
        if share != Share::NONE {
            found.push(Mirror { host, service: None, subset, port, share });
        }
    };
    if mirror.is_none() && mirrors.is_empty() {
        return None;
    }
    if let Some(mirror) = mirror {
        let share = mirror_share(percentage, old, field, report);
        add(Some(mirror), share, format!("{field}.mirror"), report);
    }
    for (index, mirror) in mirrors.into_iter().enumerate() {
        let field = format!("{field}.mirrors[{index}]");
        let share = match mirror.percentage {
            Some(written) => share(written, &format!("{field}.percentage"), report),
            None => Some(Share::ALL),
        };
        add(mirror.destination, share, format!("{field}.destination"), report);
    }
    Some(found)
}

/// `mirrorPercentage`, else the deprecated `mirrorPercent`, else all.
fn mirror_share(
    percentage: Option<api::Percent>,
    old: Option<u32>,
    field: &str,
    report: &mut Report,
) -> Option<Share> {
    match (percentage, old) {
        (Some(written), _) => share(written, &format!("{field}.mirrorPercentage"), report),
        (None, Some(old)) => {
            let value = percent(old.into(), &format!("{field}.mirrorPercent"), report)?;
            Share::percent(value)
        }
        (None, None) => Some(Share::ALL),
    }
}
