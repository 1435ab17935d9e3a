//! Numbers, durations and shares with the ranges of Istio's validation. Pure.

use std::time::Duration;

use crate::config::api::Span;
use crate::config::diagnostic::Report;

/// The shortest duration that Istio takes.
const SHORTEST: Duration = Duration::from_millis(1);

/// A duration; one below a millisecond is an error.
pub(super) fn duration(found: Option<Span>, field: &str, report: &mut Report) -> Option<Duration> {
    let time = found?.0;
    if time < SHORTEST {
        report.error(field, "shorter than 1ms");
        return None;
    }
    Some(time)
}

/// A duration for which `0s` has a meaning of its own.
pub(super) fn duration_or_zero(
    found: Option<Span>,
    field: &str,
    report: &mut Report,
) -> Option<Duration> {
    match found?.0 {
        Duration::ZERO => Some(Duration::ZERO),
        time => duration(Some(Span(time)), field, report),
    }
}

/// A number that means nothing when it is 0; a negative one is an error.
pub(super) fn count(found: i32, field: &str, report: &mut Report) -> Option<u32> {
    let number = u32::try_from(found);
    if number.is_err() {
        report.error(field, format!("{found} is negative"));
    }
    number.ok().filter(|number| *number > 0)
}

/// A whole percentage; 0 is unset.
pub(super) fn whole_percent(found: i32, field: &str, report: &mut Report) -> Option<u32> {
    if !(0..=100).contains(&found) {
        report.error(field, format!("{found} is not within 0 and 100"));
        return None;
    }
    count(found, field, report)
}

/// A percentage.
pub(super) fn percent(found: f64, field: &str, report: &mut Report) -> Option<f64> {
    let valid = (0.0..=100.0).contains(&found);
    if !valid {
        report.error(field, format!("{found} is not within 0 and 100"));
    }
    valid.then_some(found)
}
