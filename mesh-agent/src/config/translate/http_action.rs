//! What an `http[]` entry does with a request: route, redirect or direct response, and rewrite
//! (istio-surface 1.1 and 1.1.1). Pure.

use std::sync::Arc;

use base64::Engine as _;
use http::StatusCode;
use http::uri::{PathAndQuery, Scheme};

use super::headers::{header_value, headers};
use super::http_match::regex;
use super::names::{expand, is_host};
use super::virtual_service::Reference;
use super::{Scope, port_number};
use crate::config::api;
use crate::config::diagnostic::Report;
use crate::model::{
    DirectResponse, PathRewrite, Redirect, RedirectPath, RedirectPort, Rewrite,
    WeightedDestination, is_authority,
};

/// Largest body of a direct response, as in Istio's validation; a larger one is an error.
const MAX_BODY: usize = 1 << 20;
/// Codes that a redirect may have.
const REDIRECT_CODES: [u16; 5] = [301, 302, 303, 307, 308];

/// `route[]`: the destinations, and what they refer to.
pub(super) fn destinations(
    entries: Vec<api::RouteDestination>,
    field: &str,
    scope: &Scope<'_>,
    references: &mut Vec<Reference>,
    report: &mut Report,
) -> Vec<WeightedDestination> {
    let count = entries.len();
    let mut found = Vec::with_capacity(count);
    for (index, entry) in entries.into_iter().enumerate() {
        let field = format!("{field}.route[{index}]");
        let Ok(mut weight) = u32::try_from(entry.weight) else {
            report.error(format!("{field}.weight"), format!("{} is negative", entry.weight));
            continue;
        };
        if count == 1 && weight == 0 {
            weight = 1;
        }
        let changes = entry.headers.unwrap_or_default();
        let (request, response) = headers(changes, &format!("{field}.headers"), report);
        let field = format!("{field}.destination");
        let Some((reference, port)) = destination(entry.destination, field, scope, report) else {
            continue;
        };
        found.push(WeightedDestination {
            host: Arc::clone(&reference.host),
            service: None,
            subset: reference.subset.clone(),
            port,
            weight,
            request_headers: request.ops,
            response_headers: response,
            authority: request.authority,
        });
        references.push(reference);
    }
    if count > 1 && found.len() == count {
        found.retain(|destination| destination.weight > 0);
        if found.is_empty() {
            let message = "the weights add up to 0, so no destination can be chosen";
            report.error(format!("{field}.route"), message);
        }
    }
    found
}

/// Sum of the destinations' weights; `None` if there is nothing to choose among, or in error.
pub(super) fn total_weight(
    destinations: &[WeightedDestination],
    field: &str,
    report: &mut Report,
) -> Option<u32> {
    let sum = destinations.iter().try_fold(0_u32, |sum, to| sum.checked_add(to.weight));
    if sum.is_none() {
        report.error(format!("{field}.route"), "the weights add up to more than 4294967295");
    }
    sum.filter(|sum| *sum > 0)
}

/// A destination, and its port.
pub(super) fn destination(
    found: Option<api::Destination>,
    field: String,
    scope: &Scope<'_>,
    report: &mut Report,
) -> Option<(Reference, Option<u16>)> {
    let found = found.unwrap_or_default();
    if found.host.is_empty() {
        report.error(format!("{field}.host"), "missing: every destination needs a host");
        return None;
    }
    if found.host.contains('*') || !is_host(&found.host) {
        report.error(format!("{field}.host"), format!("`{}` is not a host name", found.host));
        return None;
    }
    let port = match found.port {
        None => None,
        Some(selector) => match port_number(selector.number) {
            Some(port) => Some(port),
            None => {
                let message = format!("{} is not a port", selector.number);
                report.error(format!("{field}.port.number"), message);
                return None;
            }
        },
    };
    let subset = (!found.subset.is_empty()).then(|| Arc::from(found.subset.as_str()));
    let host = expand(&found.host, scope).into();
    Some((Reference { field, host, subset, port, is_mirror: false }, port))
}

/// `rewrite`.
pub(super) fn rewrite(found: &api::Rewrite, field: &str, report: &mut Report) -> Rewrite {
    let field = format!("{field}.rewrite");
    let path = match &found.uri_regex_rewrite {
        Some(_) if !found.uri.is_empty() => {
            report.error(field.as_str(), "only one of `uri` and `uriRegexRewrite` can be given");
            None
        }
        Some(rewrite) => regex_rewrite(rewrite, &format!("{field}.uriRegexRewrite"), report),
        None => {
            check_target(&found.uri, &format!("{field}.uri"), report);
            (!found.uri.is_empty()).then(|| PathRewrite::Uri(found.uri.as_str().into()))
        }
    };
    check_authority(&found.authority, &format!("{field}.authority"), report);
    let authority = (!found.authority.is_empty())
        .then(|| header_value(&found.authority, &format!("{field}.authority"), report))
        .flatten();
    if path.is_none() && authority.is_none() && !report.has_errors() {
        report.error(field, "must name `uri`, `authority` or `uriRegexRewrite`");
    }
    Rewrite { path, authority }
}

fn regex_rewrite(
    found: &api::RegexRewrite,
    field: &str,
    report: &mut Report,
) -> Option<PathRewrite> {
    if found.r#match.is_empty() {
        report.error(format!("{field}.match"), "missing");
        return None;
    }
    let pattern = regex(&found.r#match, str::to_owned, &format!("{field}.match"), report)?;
    // Each group is a part of a path, so what it brings is legal.
    check_target(&found.rewrite, &format!("{field}.rewrite"), report);
    match replacement(&found.rewrite, pattern.captures_len()) {
        Ok(replacement) => Some(PathRewrite::Regex { pattern, replacement: replacement.into() }),
        Err(message) => {
            report.error(format!("{field}.rewrite"), message);
            None
        }
    }
}

/// RE2's substitution (`\1`, `\\`) in the `regex` crate's syntax (`${1}`, `$$`).
fn replacement(text: &str, groups: usize) -> Result<String, String> {
    let (mut out, mut letters) = (String::with_capacity(text.len()), text.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '$' => out.push_str("$$"),
            '\\' => match letters.next() {
                Some('\\') => out.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    if digit.to_digit(10).is_some_and(|group| group as usize >= groups) {
                        return Err(format!("`\\{digit}`: the expression has no such group"));
                    }
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                _ => return Err("a `\\` must be followed by a digit or another `\\`".to_owned()),
            },
            other => out.push(other),
        }
    }
    Ok(out)
}

/// Whether the text can stand in the target of a request.
fn check_target(text: &str, field: &str, report: &mut Report) {
    if text.contains('#') || format!("/{text}").parse::<PathAndQuery>().is_err() {
        let message = format!("`{text}` cannot stand in a path: percent-encode what is not legal");
        report.error(field, message);
    }
}

/// Whether the text is a host, perhaps with a port, if it is not empty.
fn check_authority(text: &str, field: &str, report: &mut Report) {
    if !text.is_empty() && !is_authority(text) {
        report.error(field, format!("`{text}` is not a host, nor a host and a port"));
    }
}

/// `redirect`.
pub(super) fn redirect(found: api::Redirect, field: &str, report: &mut Report) -> Redirect {
    let field = format!("{field}.redirect");
    let text = |value: &str| (!value.is_empty()).then(|| Arc::<str>::from(value));
    let path = match (text(&found.uri), text(&found.prefix_rewrite)) {
        (Some(_), Some(_)) => {
            report.error(field.as_str(), "only one of `uri` and `prefixRewrite` can be given");
            RedirectPath::Keep
        }
        (Some(uri), None) => RedirectPath::Uri(uri),
        (None, Some(prefix)) => RedirectPath::Prefix(prefix),
        (None, None) => RedirectPath::Keep,
    };
    let port = match (found.port, found.derive_port) {
        (Some(_), Some(_)) => {
            report.error(field.as_str(), "only one of `port` and `derivePort` can be given");
            RedirectPort::Keep
        }
        (Some(number), None) => match port_number(number) {
            Some(number) => RedirectPort::Number(number),
            None => {
                report.error(format!("{field}.port"), format!("{number} is not a port"));
                RedirectPort::Keep
            }
        },
        (None, Some(api::DerivePort::FromProtocolDefault)) => RedirectPort::ProtocolDefault,
        (None, Some(api::DerivePort::FromRequestPort)) => RedirectPort::RequestPort,
        (None, None) => RedirectPort::Keep,
    };
    let number = if found.redirect_code == 0 { 301 } else { found.redirect_code };
    let code = u16::try_from(number).ok().filter(|code| REDIRECT_CODES.contains(code));
    let code = code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or_else(|| {
        let message = format!("{number} is not one of 301, 302, 303, 307 and 308");
        report.error(format!("{field}.redirectCode"), message);
        StatusCode::MOVED_PERMANENTLY
    });
    check_authority(&found.authority, &format!("{field}.authority"), report);
    if !found.scheme.is_empty() && found.scheme.parse::<Scheme>().is_err() {
        report.error(format!("{field}.scheme"), format!("`{}` is not a scheme", found.scheme));
    }
    let redirect = Redirect {
        path,
        authority: text(&found.authority),
        port,
        scheme: text(&found.scheme),
        code,
    };
    let same = redirect.path == RedirectPath::Keep && redirect.port == RedirectPort::Keep;
    if same && redirect.authority.is_none() && redirect.scheme.is_none() && !report.has_errors() {
        report.error(field, "must change something: `uri`, `authority`, `scheme` or `port`");
    }
    redirect
}

/// `directResponse`.
pub(super) fn direct(
    found: api::DirectResponse,
    field: &str,
    report: &mut Report,
) -> Option<DirectResponse> {
    let field = format!("{field}.directResponse");
    let code = u16::try_from(found.status).ok().filter(|code| (200..600).contains(code));
    let Some(status) = code.and_then(|code| StatusCode::from_u16(code).ok()) else {
        let message = format!("{} is not a status from 200 to 599", found.status);
        report.error(format!("{field}.status"), message);
        return None;
    };
    let found = found.body.unwrap_or_default();
    let body = match (found.string, found.bytes) {
        (Some(_), Some(_)) => {
            report.error(format!("{field}.body"), "only one of `string` and `bytes` can be given");
            return None;
        }
        (Some(text), None) => text.into_bytes(),
        (None, Some(text)) => {
            match base64::engine::general_purpose::STANDARD.decode(text.as_bytes()) {
                Ok(bytes) => bytes,
                Err(_) => {
                    report.error(format!("{field}.body.bytes"), "not base64");
                    return None;
                }
            }
        }
        (None, None) => Vec::new(),
    };
    if body.len() > MAX_BODY {
        report.error(format!("{field}.body"), format!("larger than {MAX_BODY} bytes"));
        return None;
    }
    Some(DirectResponse { status, body: body.into() })
}

#[cfg(test)]
mod tests {
    use super::replacement;

    #[test]
    fn re2_substitution_becomes_that_of_the_crate() {
        assert_eq!(replacement(r"/\1/a$b\\", 2).unwrap(), r"/${1}/a$$b\");
        assert_eq!(replacement(r"/\10", 2).unwrap(), r"/${1}0");
        assert!(replacement(r"/\2", 2).is_err());
        assert!(replacement(r"\", 1).is_err());
    }
}
