//! `localityLbSetting` of a `DestinationRule` and of `meshConfig` (istio-surface 1.2). Pure.
//!
//! Refused is what Istio's validation refuses (`validateLocalityLbSetting`).

use crate::config::api::{self, LocalityLb};
use crate::config::diagnostic::Report;
use crate::model::{
    Distribute, LocalityPattern, LocalitySetting, PriorityLabel, REGION, RegionFailover, SUBZONE,
    ZONE,
};

/// Translates one.
pub(super) fn locality(found: LocalityLb, field: &str, report: &mut Report) -> LocalitySetting {
    if !found.distribute.is_empty() {
        if !found.failover.is_empty() {
            report.error(field, "only one of `distribute` and `failover` can be given");
        } else if !found.failover_priority.is_empty() {
            let message = "no effect: `distribute` counts";
            report.warning(format!("{field}.failoverPriority"), message);
        }
    }
    let failover_priority = labels(&found.failover_priority);
    if !found.failover.is_empty() {
        let places = [REGION, ZONE, SUBZONE];
        let mut keys = failover_priority.iter().map(|label| &*label.key);
        if let Some(key) = keys.find(|key| places.contains(key)) {
            let message = format!("`{key}` cannot be given beside `failover`");
            report.error(format!("{field}.failoverPriority"), message);
        }
    }
    for (index, label) in failover_priority.iter().enumerate() {
        if label.key.is_empty() {
            report.error(format!("{field}.failoverPriority[{index}]"), "names no label");
        }
    }
    LocalitySetting {
        enabled: found.enabled.unwrap_or(true),
        distribute: distribute(found.distribute, &format!("{field}.distribute"), report),
        failover: failover(found.failover, &format!("{field}.failover"), report),
        failover_priority,
    }
}

fn distribute(found: Vec<api::Distribute>, field: &str, report: &mut Report) -> Vec<Distribute> {
    let mut all: Vec<Distribute> = Vec::with_capacity(found.len());
    for (index, entry) in found.into_iter().enumerate() {
        let field = format!("{field}[{index}]");
        let from = pattern(&entry.from, &format!("{field}.from"), report);
        if all.iter().any(|other| other.from.overlaps(&from)) {
            let message = format!("`{}` overlaps with one before", entry.from);
            report.error(format!("{field}.from"), message);
        }
        let mut to: Vec<(LocalityPattern, u32)> = Vec::with_capacity(entry.to.len());
        for (text, share) in &entry.to {
            let field = format!("{field}.to[{text}]");
            if !(1..=100).contains(share) {
                report.error(&field, format!("{share} is not within 1 and 100"));
            }
            let place = pattern(text, &field, report);
            if to.iter().any(|(other, _)| other.overlaps(&place)) {
                report.error(&field, "overlaps with another one");
            }
            to.push((place, *share));
        }
        let sum: u64 = to.iter().map(|(_, share)| u64::from(*share)).sum();
        if sum != 100 {
            report.error(format!("{field}.to"), format!("the shares add up to {sum}, not to 100"));
        }
        all.push(Distribute { from, to });
    }
    all
}

/// `region/zone/subzone`, with `*` for all that follows.
fn pattern(text: &str, field: &str, report: &mut Report) -> LocalityPattern {
    if text.splitn(3, '/').any(str::is_empty) {
        report.error(field, format!("`{text}` has an empty region, zone or subzone"));
    } else if text.matches('*').count() > 1 || text.contains('*') && !text.ends_with('*') {
        report.error(field, format!("`{text}`: one `*` can stand at the end, and nowhere else"));
    } else if text.len() > 1 && text.ends_with('*') && !text.ends_with("/*") {
        let message = format!("`{text}` covers nothing: `*` stands for a whole name");
        report.warning(field, message);
    }
    LocalityPattern::parse(text)
}

fn failover(found: Vec<api::Failover>, field: &str, report: &mut Report) -> Vec<RegionFailover> {
    for (index, entry) in found.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if entry.from == entry.to {
            report.error(&field, format!("`from` and `to` are both `{}`", entry.from));
        }
        for (name, region) in [("from", &entry.from), ("to", &entry.to)] {
            if region.contains(['*', '/']) {
                let message = format!("`{region}` is not the name of a region alone");
                report.error(format!("{field}.{name}"), message);
            }
        }
    }
    let regions = found.into_iter();
    regions.map(|of| RegionFailover { from: of.from.into(), to: of.to.into() }).collect()
}

/// `key` or `key=value`.
fn labels(found: &[String]) -> Vec<PriorityLabel> {
    let split = |text: &String| match text.split_once('=') {
        Some((key, value)) => PriorityLabel { key: key.into(), value: Some(value.into()) },
        None => PriorityLabel { key: text.as_str().into(), value: None },
    };
    found.iter().map(split).collect()
}
