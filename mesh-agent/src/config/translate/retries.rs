//! `http[].retries` (istio-surface 1.1.2). Pure.

use http::StatusCode;

use super::numbers::{count, duration};
use crate::config::api;
use crate::config::diagnostic::Report;
use crate::config::parse::nearest;
use crate::model::{RetryOn, RetryPolicy};

/// The word for the numbers in the list; they hold without it.
const STATUSES: &str = "retriable-status-codes";
/// Words that Istio takes and that say nothing here: no header is named for the one, and there is no
/// HTTP/3 for the other.
const WITHOUT_EFFECT: [&str; 2] = ["retriable-headers", "http3-post-connect-failure"];

/// Translates one. Without `attempts`, or with 0, nothing is tried again.
pub(super) fn retries(found: &api::Retries, field: &str, report: &mut Report) -> RetryPolicy {
    let field = format!("{field}.retries");
    let attempts = count(found.attempts, &format!("{field}.attempts"), report);
    let per_try = format!("{field}.perTryTimeout");
    let per_try_timeout = duration(found.per_try_timeout, &per_try, report);
    let back_off = duration(found.backoff, &format!("{field}.backoff"), report);
    let mut policy = RetryPolicy { per_try_timeout, ..RetryPolicy::default() };
    policy.back_off = back_off.unwrap_or(policy.back_off);
    policy.remote_localities = found.retry_remote_localities.unwrap_or(false);
    policy.ignore_previous_hosts = found.retry_ignore_previous_hosts.unwrap_or(true);
    if !found.retry_on.is_empty() {
        retry_on(&found.retry_on, &mut policy, &format!("{field}.retryOn"), report);
    }
    if let Some(attempts) = attempts {
        return RetryPolicy { attempts, ..policy };
    }
    let configured = [
        (found.per_try_timeout.is_some(), "perTryTimeout"),
        (!found.retry_on.is_empty(), "retryOn"),
        (found.retry_remote_localities.is_some(), "retryRemoteLocalities"),
    ];
    if let Some((_, name)) = configured.iter().find(|(given, _)| *given && found.attempts == 0) {
        let message = format!("0, or unset, switches retries off: `{name}` has no meaning then");
        report.error(format!("{field}.attempts"), message);
    }
    RetryPolicy::never()
}

/// `retryOn`: names and statuses between commas, without spaces.
fn retry_on(text: &str, policy: &mut RetryPolicy, field: &str, report: &mut Report) {
    let (mut on, mut statuses, mut named) = (RetryOn::default(), Vec::new(), false);
    for word in text.split(',') {
        if let Some((_, condition)) = RetryOn::NAMED.iter().find(|(name, _)| *name == word) {
            on = on.with(*condition);
        } else if let Some(status) = status(word) {
            statuses.push(status);
        } else if word == STATUSES {
            named = true;
        } else if WITHOUT_EFFECT.contains(&word) {
            report.warning(field, format!("`{word}` has no effect"));
        } else {
            report.error(field, unknown(word));
        }
    }
    if named && statuses.is_empty() {
        report.warning(field, format!("`{STATUSES}` has no effect: no status is in the list"));
    }
    statuses.sort_unstable();
    statuses.dedup();
    (policy.on, policy.statuses) = (on, statuses.into());
}

/// A status that has a reason phrase of its own, as Istio asks.
fn status(word: &str) -> Option<u16> {
    let number = word.parse().ok()?;
    let known = StatusCode::from_u16(number).ok()?.canonical_reason().is_some();
    // RFC 8297 and RFC 8470: Go knows them in every version, the `http` crate does not.
    (known || matches!(number, 103 | 425)).then_some(number)
}

fn unknown(word: &str) -> String {
    if word.is_empty() {
        return "a condition is missing between two commas, or at an end".to_owned();
    }
    if word.bytes().all(|byte| byte.is_ascii_digit()) {
        return format!("{word} is not a status that HTTP defines");
    }
    let names =
        RetryOn::NAMED.iter().map(|(name, _)| *name).chain([STATUSES]).chain(WITHOUT_EFFECT);
    match nearest(word, names) {
        Some(near) => format!("`{word}` is not a condition; did you mean `{near}`?"),
        None => format!("`{word}` is not a condition, such as `5xx` or `connect-failure`"),
    }
}
