//! `headers.request` and `headers.response` (istio-surface 1.1.1, "Headers"). Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::{HOST, HeaderName, HeaderValue};

use crate::config::api;
use crate::config::diagnostic::Report;
use crate::model::{HeaderEdit, HeaderOps};

/// Changes to one message, and the authority they ask for.
#[derive(Clone, Debug, Default)]
pub(in crate::config) struct Changes {
    /// Changes of headers.
    pub(in crate::config) ops: HeaderOps,
    /// `Host` or `:authority` in `set` or `add` of a request.
    pub(in crate::config) authority: Option<HeaderValue>,
}

/// Changes to the request and to the response.
pub(super) fn headers(
    headers: api::Headers,
    field: &str,
    report: &mut Report,
) -> (Changes, HeaderOps) {
    let request = operations(headers.request, &format!("{field}.request"), true, report);
    let response = operations(headers.response, &format!("{field}.response"), false, report);
    (request, response.ops)
}

fn operations(
    operations: api::HeaderOperations,
    field: &str,
    request: bool,
    report: &mut Report,
) -> Changes {
    let mut changes = Changes::default();
    let set = edits(operations.set, &format!("{field}.set"), request, report);
    let add = edits(operations.add, &format!("{field}.add"), request, report);
    changes.authority = set.1.or(add.1);
    changes.ops.set = set.0;
    changes.ops.add = add.0;
    for (index, key) in operations.remove.iter().enumerate() {
        let field = format!("{field}.remove[{index}]");
        if request && is_authority(key) {
            report.warning(field, "the authority cannot be removed, ignored");
        } else if let Some(name) = header_name(key, &field, report) {
            changes.ops.remove.push(name);
        }
    }
    changes
}

/// Header edits in the order of their keys, and the authority among them.
fn edits(
    map: BTreeMap<Arc<str>, Arc<str>>,
    field: &str,
    request: bool,
    report: &mut Report,
) -> (Vec<HeaderEdit>, Option<HeaderValue>) {
    let (mut edits, mut authority) = (Vec::new(), None);
    for (key, value) in map {
        let field = format!("{field}[{key}]");
        let Some(value) = header_value(&value, &field, report) else { continue };
        if request && is_authority(&key) {
            authority = Some(value);
        } else if let Some(name) = header_name(&key, &field, report) {
            edits.push(HeaderEdit { name, value });
        }
    }
    (edits, authority)
}

fn is_authority(key: &str) -> bool {
    key == ":authority" || key.eq_ignore_ascii_case(HOST.as_str())
}

/// A header name; pseudo-headers are passed over, as in Istio.
fn header_name(key: &str, field: &str, report: &mut Report) -> Option<HeaderName> {
    if key.starts_with(':') {
        report.warning(field, format!("`{key}` is not a header that can be changed, ignored"));
        return None;
    }
    let name = HeaderName::from_bytes(key.as_bytes()).ok();
    if name.is_none() {
        report.error(field, format!("`{key}` is not a header name"));
    }
    name
}

/// A header value. `%%` is a percent sign; Envoy's `%COMMAND()%` is not evaluated.
pub(super) fn header_value(value: &str, field: &str, report: &mut Report) -> Option<HeaderValue> {
    let literal = value.replace("%%", "%");
    if value.replace("%%", "").contains('%') {
        report.warning(field, "`%...%` is not supported yet: sent as it is written");
    }
    let value = HeaderValue::from_str(&literal).ok();
    if value.is_none() {
        report.error(field, "not a header value: it holds a control character");
    }
    value
}
