//! `http[].match[]` and Istio's `StringMatch` (istio-surface 1.1). Pure.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};

use super::port_number;
use super::re2::ascii_classes;
use crate::config::api;
use crate::config::diagnostic::Report;
use crate::model::{HttpMatch, KeyMatch, StringMatch};

/// Longest expression, as in Istio's validation; a longer one is an error.
const MAX_REGEX_CHARS: usize = 1024;
/// Bytes of a compiled expression; a larger one is an error.
const MAX_REGEX_BYTES: usize = 2 << 20;
/// The gateway that stands for clients in the mesh.
pub(super) const MESH: &str = "mesh";
/// Header keys that Istio passes over, because `uri` and its siblings are there for them.
const NOT_HEADERS: [&str; 4] = ["uri", "scheme", "method", "authority"];

/// One `match[]` entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::config) struct MatchFacts {
    /// What it asks for.
    pub(in crate::config) conditions: HttpMatch,
    /// `gateways`, as written: a delegate's must be among its root's.
    pub(in crate::config) gateways: Vec<String>,
}

/// The entries that can apply to clients in the mesh. `None`: there were some, and none can, so the
/// rule is not for them.
pub(super) fn matches(
    entries: Vec<api::HttpMatch>,
    field: &str,
    report: &mut Report,
) -> Option<Vec<MatchFacts>> {
    let all = entries.is_empty();
    let mut kept = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let field = format!("{field}.match[{index}]");
        let in_mesh = entry.gateways.is_empty() || entry.gateways.iter().any(|name| name == MESH);
        let gateways = entry.gateways.clone();
        let conditions = http_match(entry, &field, report);
        if in_mesh {
            kept.push(MatchFacts { conditions, gateways });
        }
    }
    (all || !kept.is_empty()).then_some(kept)
}

fn http_match(entry: api::HttpMatch, field: &str, report: &mut Report) -> HttpMatch {
    let port = entry.port.and_then(|number| {
        let port = port_number(number);
        if port.is_none() {
            report.error(format!("{field}.port"), format!("{number} is not a port"));
        }
        port
    });
    let mut compiled = HttpMatch {
        name: entry.name.as_str().into(),
        uri: part(entry.uri, &format!("{field}.uri"), report),
        ignore_uri_case: entry.ignore_uri_case,
        scheme: part(entry.scheme, &format!("{field}.scheme"), report),
        method: part(entry.method, &format!("{field}.method"), report),
        authority: part(entry.authority, &format!("{field}.authority"), report),
        headers: headers(entry.headers, &format!("{field}.headers"), report),
        without_headers: headers(entry.without_headers, &format!("{field}.withoutHeaders"), report),
        query: query(entry.query_params, &format!("{field}.queryParams"), report),
        port,
        ..HttpMatch::default()
    };
    // `match.gateways` decides alone: the source is then not looked at (istio-surface 7.2, 5).
    if entry.gateways.is_empty() {
        compiled.source_labels = entry.source_labels;
        let namespace = Some(entry.source_namespace).filter(|name| !name.is_empty());
        compiled.source_namespace = namespace.map(|name| name.as_str().into());
    }
    compiled
}

/// Whether nothing that can be named is asked for: later rules are unreachable.
pub(in crate::config) fn is_catch_all(found: &HttpMatch) -> bool {
    let uri = match &found.uri {
        None => true,
        Some(StringMatch::Prefix(prefix)) => &**prefix == "/",
        Some(StringMatch::Regex(regex)) => regex.as_str() == anchored(".*"),
        Some(StringMatch::Exact(_) | StringMatch::Present) => false,
    };
    let rest = HttpMatch { uri: None, ignore_uri_case: false, ..found.clone() };
    uri && rest == HttpMatch { name: found.name.clone(), ..HttpMatch::default() }
}

/// A condition on a part that every request has.
pub(super) fn part(
    found: Option<api::StringMatch>,
    field: &str,
    report: &mut Report,
) -> Option<StringMatch> {
    match string_match(found?, field, report)? {
        StringMatch::Present => {
            report.warning(field, "asks for nothing, ignored");
            None
        }
        condition => Some(condition),
    }
}

pub(super) fn headers(
    map: BTreeMap<String, api::StringMatch>,
    field: &str,
    report: &mut Report,
) -> Vec<KeyMatch> {
    let mut found = Vec::with_capacity(map.len());
    for (key, condition) in map {
        let field = format!("{field}[{key}]");
        if key.starts_with('@') {
            report.error(field, "JWT claims can be matched at gateways only");
            continue;
        }
        if NOT_HEADERS.contains(&key.as_str()) {
            report.warning(field, format!("ignored: `{key}` is a condition of its own"));
            continue;
        }
        if http::HeaderName::from_bytes(key.as_bytes()).is_err() {
            report.error(field, format!("`{key}` is not a header name"));
            continue;
        }
        if let Some(value) = string_match(condition, &field, report) {
            found.push(KeyMatch { key: key.to_ascii_lowercase().into(), value });
        }
    }
    found
}

fn query(
    map: BTreeMap<String, api::StringMatch>,
    field: &str,
    report: &mut Report,
) -> Vec<KeyMatch> {
    let mut found = Vec::with_capacity(map.len());
    for (key, condition) in map {
        if let Some(value) = string_match(condition, &format!("{field}[{key}]"), report) {
            found.push(KeyMatch { key: key.into(), value });
        }
    }
    found
}

/// One of `exact`, `prefix`, `regex`; none of them, or the regex `*`, means presence.
pub(super) fn string_match(
    found: api::StringMatch,
    field: &str,
    report: &mut Report,
) -> Option<StringMatch> {
    match (found.exact, found.prefix, found.regex) {
        (None, None, None) => Some(StringMatch::Present),
        (Some(text), None, None) => Some(StringMatch::Exact(text.into())),
        (None, Some(text), None) => Some(StringMatch::Prefix(text.into())),
        (None, None, Some(text)) if text == "*" => Some(StringMatch::Present),
        (None, None, Some(text)) => {
            let field = format!("{field}.regex");
            regex(&text, anchored, &field, report).map(StringMatch::Regex)
        }
        _ => {
            report.error(field, "only one of `exact`, `prefix` and `regex` can be given");
            None
        }
    }
}

/// Istio's expressions match the whole string.
fn anchored(text: &str) -> String {
    format!(r"\A(?:{text})\z")
}

/// Compiles what the user wrote, as RE2 understands it, and as `form` makes it: anchored, or as it is.
pub(super) fn regex(
    text: &str,
    form: fn(&str) -> String,
    field: &str,
    report: &mut Report,
) -> Option<Regex> {
    if text.chars().count() > MAX_REGEX_CHARS {
        report.error(field, format!("longer than {MAX_REGEX_CHARS} characters"));
        return None;
    }
    // The text by itself first: `)(` must not become valid between the anchors.
    let build = |text: &str| RegexBuilder::new(text).size_limit(MAX_REGEX_BYTES).build();
    let ascii = ascii_classes(text);
    match build(&ascii).and_then(|_| build(&form(&ascii))) {
        Ok(regex) => Some(regex),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
            report.error(field, format!("`{text}` is not a regular expression: {reason}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(text: &str) -> Result<StringMatch, String> {
        let mut report = Report::new(None, None);
        let wanted =
            api::StringMatch { regex: Some(text.to_owned()), ..api::StringMatch::default() };
        let found = string_match(wanted, "spec.uri", &mut report);
        let findings = report.into_diagnostics();
        found.ok_or_else(|| findings.iter().map(ToString::to_string).collect())
    }

    /// An engine that tries one way after the other would need 2 to the power of 65,536 steps: this test
    /// would not end.
    #[test]
    fn an_expression_that_backtracks_elsewhere_takes_linear_time() {
        for text in ["(a+)+$", "(a|aa)*", "(a*)*b", "(.*a){12}b"] {
            let wanted = compiled(text).unwrap();
            assert!(!wanted.matches(&format!("{}!", "a".repeat(65_536)), false), "{text}");
        }
        assert!(compiled("(a+)+$").unwrap().matches(&"a".repeat(65_536), false));
    }

    #[test]
    fn an_expression_has_a_largest_size() {
        let refused = compiled("((a{1,100}){1,100}){1,100}").unwrap_err();
        assert!(refused.starts_with("error spec.uri.regex: "), "{refused}");
        assert!(refused.contains("exceeds size limit"), "{refused}");
    }

    /// Letters of all languages, of which RE2 knows nothing here, would take 4 MiB.
    #[test]
    fn a_class_repeated_is_no_large_expression() {
        let wanted = compiled(r"/users/\w{1,64}").unwrap();
        assert!(wanted.matches("/users/Ana_1", false));
        assert!(!wanted.matches("/users/Zoë", false), "as in RE2");
    }
}
