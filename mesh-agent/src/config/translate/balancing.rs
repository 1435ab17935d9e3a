//! `trafficPolicy.loadBalancer`: algorithm, key of consistent hashing, warm-up (istio-surface 1.2);
//! localities are in a file of their own. Pure.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};

use super::locality::locality;
use super::numbers::{duration, percent};
use crate::config::api::{self, SimpleLb};
use crate::config::diagnostic::Report;
use crate::model::{HashCookie, HashKey, LoadBalancer, LocalitySetting, Warmup};

/// `minimumRingSize`, if unset.
const RING_SIZE: u32 = 1024;
/// Largest `minimumRingSize` that is no error, as Envoy's `maximum_ring_size`.
const MAX_RING_SIZE: u32 = 8 << 20;
/// `tableSize`, if unset.
const TABLE_SIZE: u32 = 65_537;
/// Maglev tables are smaller than this, as in Istio's validation.
const TABLE_LIMIT: u32 = 5_000_011;
/// `warmup.minimumPercent`, if unset.
const MINIMUM_PERCENT: f64 = 10.0;

/// `loadBalancer`, which is inherited or replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::config) struct Balancing {
    /// Algorithm.
    pub(in crate::config) load_balancer: LoadBalancer,
    /// Its key, if it hashes.
    pub(in crate::config) hash_key: Option<HashKey>,
    /// `localityLbSetting`.
    pub(in crate::config) locality: Option<Arc<LocalitySetting>>,
    /// `warmup`.
    pub(in crate::config) warmup: Option<Warmup>,
}

/// Translates one.
pub(super) fn balancing(found: api::LoadBalancer, field: &str, report: &mut Report) -> Balancing {
    if found.simple.is_some() && found.consistent_hash.is_some() {
        report.error(field, "only one of `simple` and `consistentHash` can be given");
    }
    let (load_balancer, hash_key) = match found.consistent_hash {
        Some(hash) => consistent_hash(hash, &format!("{field}.consistentHash"), report),
        None => (simple(found.simple), None),
    };
    let mut warmup = warmup(found.warmup, found.warmup_duration_secs, field, report);
    let warms = matches!(load_balancer, LoadBalancer::RoundRobin | LoadBalancer::LeastRequest);
    if warmup.is_some() && !warms {
        let message = "no effect: only ROUND_ROBIN and LEAST_REQUEST warm endpoints up";
        report.warning(format!("{field}.warmup"), message);
        warmup = None;
    }
    let of_locality = found.locality_lb_setting;
    let locality = of_locality
        .map(|found| Arc::new(locality(found, &format!("{field}.localityLbSetting"), report)));
    Balancing { load_balancer, hash_key, locality, warmup }
}

fn simple(found: Option<SimpleLb>) -> LoadBalancer {
    match found {
        None | Some(SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest) => {
            LoadBalancer::LeastRequest
        }
        Some(SimpleLb::RoundRobin) => LoadBalancer::RoundRobin,
        Some(SimpleLb::Random) => LoadBalancer::Random,
        Some(SimpleLb::Passthrough) => LoadBalancer::Passthrough,
    }
}

/// `consistentHash`; without a key every request goes to any endpoint.
fn consistent_hash(
    found: api::ConsistentHash,
    field: &str,
    report: &mut Report,
) -> (LoadBalancer, Option<HashKey>) {
    let algorithm = algorithm(&found, field, report);
    let given: Vec<&str> = [
        (!found.http_header_name.is_empty(), "httpHeaderName"),
        (found.http_cookie.is_some(), "httpCookie"),
        (found.use_source_ip, "useSourceIp"),
        (!found.http_query_parameter_name.is_empty(), "httpQueryParameterName"),
    ]
    .into_iter()
    .filter_map(|(given, name)| given.then_some(name))
    .collect();
    match given.as_slice() {
        [] => {
            let message = "names no key, such as `httpHeaderName`: any endpoint is chosen";
            report.warning(field, message);
            return (LoadBalancer::Random, None);
        }
        [_] => {}
        [first, second, ..] => {
            let message = format!("only one of `{first}` and `{second}` can be given");
            report.error(field, message);
        }
    }
    let key = if let Some(cookie) = found.http_cookie {
        hash_cookie(cookie, &format!("{field}.httpCookie"), report).map(HashKey::Cookie)
    } else if found.use_source_ip {
        Some(HashKey::SourceIp)
    } else if found.http_header_name.is_empty() {
        Some(HashKey::Query(found.http_query_parameter_name.into()))
    } else {
        let name = HeaderName::from_bytes(found.http_header_name.as_bytes()).ok();
        if name.is_none() {
            let message = format!("`{}` is not a header name", found.http_header_name);
            report.error(format!("{field}.httpHeaderName"), message);
        }
        name.map(HashKey::Header)
    };
    (algorithm, key)
}

/// `ringHash`, the default, or `maglev`.
fn algorithm(found: &api::ConsistentHash, field: &str, report: &mut Report) -> LoadBalancer {
    if found.minimum_ring_size > 0 {
        let field = format!("{field}.minimumRingSize");
        if found.ring_hash.is_some() || found.maglev.is_some() {
            report.error(field, "cannot be given beside `ringHash` or `maglev`");
        } else {
            report.warning(field, "deprecated: write `ringHash.minimumRingSize`");
        }
    }
    if let Some(maglev) = &found.maglev {
        if found.ring_hash.is_some() {
            report.error(field, "only one of `ringHash` and `maglev` can be given");
        }
        let size = maglev.table_size;
        let number = if size == 0 { Some(TABLE_SIZE) } else { u32::try_from(size).ok() };
        let number = number.filter(|size| *size < TABLE_LIMIT && is_prime(*size));
        if number.is_none() {
            let message = format!("{size} is not a prime number below {TABLE_LIMIT}");
            report.error(format!("{field}.maglev.tableSize"), message);
        }
        let size = number.unwrap_or(TABLE_SIZE);
        let size =
            bounded(size, LoadBalancer::MAX_MAGLEV, || format!("{field}.maglev.tableSize"), report);
        return LoadBalancer::Maglev { size };
    }
    let (written, field) = match &found.ring_hash {
        Some(ring) => (ring.minimum_ring_size, format!("{field}.ringHash.minimumRingSize")),
        None => (found.minimum_ring_size, format!("{field}.minimumRingSize")),
    };
    let size = u32::try_from(written).ok().filter(|size| *size <= MAX_RING_SIZE);
    if size.is_none() {
        report.error(&*field, format!("{written} is more than {MAX_RING_SIZE}"));
    }
    let size = size.filter(|size| *size > 0).unwrap_or(RING_SIZE);
    LoadBalancer::RingHash { minimum: bounded(size, LoadBalancer::MAX_RING, || field, report) }
}

/// Each client's pod has a table of its own in the agent of its node.
fn bounded(size: u32, most: u32, field: impl FnOnce() -> String, report: &mut Report) -> u32 {
    if size > most {
        report.warning(field(), format!("{size} is more than {most}, which is used"));
    }
    size.min(most)
}

/// By trial division: the number is below [`TABLE_LIMIT`].
fn is_prime(number: u32) -> bool {
    let factors = (2..).take_while(|factor| factor * factor <= number);
    number > 1 && factors.into_iter().all(|factor| !number.is_multiple_of(factor))
}

/// `httpCookie`. What is written behind a cookie that is made here is as Envoy writes it.
fn hash_cookie(found: api::HttpCookie, field: &str, report: &mut Report) -> Option<HashCookie> {
    if !is_token(&found.name) {
        let message = match found.name.as_str() {
            "" => "missing: every cookie needs a name".to_owned(),
            name => format!("`{name}` is not a cookie's name"),
        };
        report.error(format!("{field}.name"), message);
        return None;
    }
    let mut made = String::new();
    // Whole seconds: a shorter cookie is one of the session.
    let seconds = found.ttl.map_or(0, |ttl| ttl.0.as_secs());
    if seconds > 0 {
        let _ = write!(made, "; Max-Age={seconds}");
    }
    if !found.path.is_empty() {
        check_attribute(&found.path, &format!("{field}.path"), report);
        let _ = write!(made, "; Path={}", found.path);
    }
    for (index, attribute) in found.attributes.iter().enumerate() {
        let field = format!("{field}.attributes[{index}]");
        if !is_token(&attribute.name) {
            let message = format!("`{}` is not an attribute's name", attribute.name);
            report.error(format!("{field}.name"), message);
        }
        let _ = write!(made, "; {}", attribute.name);
        if !attribute.value.is_empty() {
            check_attribute(&attribute.value, &format!("{field}.value"), report);
            let _ = write!(made, "={}", attribute.value);
        }
    }
    made.push_str("; HttpOnly");
    let made = found.ttl.map(|_| Arc::from(made));
    Some(HashCookie { name: found.name.into(), made })
}

/// RFC 9110 §5.6.2, which is what a header's name is made of.
fn is_token(text: &str) -> bool {
    HeaderName::from_bytes(text.as_bytes()).is_ok()
}

/// A cookie's attribute ends at a semicolon (RFC 6265 §4.1.1).
fn check_attribute(text: &str, field: &str, report: &mut Report) {
    if text.contains(';') || HeaderValue::from_str(text).is_err() {
        report.error(field, format!("`{text}` cannot stand in a cookie"));
    }
}

/// `warmup`, or the deprecated `warmupDurationSecs`.
fn warmup(
    found: Option<api::Warmup>,
    old: Option<api::Span>,
    field: &str,
    report: &mut Report,
) -> Option<Warmup> {
    let old_field = format!("{field}.warmupDurationSecs");
    let Some(found) = found else {
        let duration = duration(old, &old_field, report)?;
        return Some(Warmup { duration, minimum_percent: MINIMUM_PERCENT, aggression: 1.0 });
    };
    if old.is_some() {
        report.warning(old_field, "no effect: `warmup` counts");
    }
    let field = format!("{field}.warmup");
    if found.duration.is_none() {
        report.error(format!("{field}.duration"), "missing");
    }
    let aggression = found.aggression.unwrap_or(1.0);
    if !(aggression >= 1.0 && aggression.is_finite()) {
        report.error(format!("{field}.aggression"), format!("{aggression} is less than 1"));
    }
    let least = found.minimum_percent.unwrap_or(MINIMUM_PERCENT);
    let minimum_percent = percent(least, &format!("{field}.minimumPercent"), report)?;
    let duration: Duration = duration(found.duration, &format!("{field}.duration"), report)?;
    Some(Warmup { duration, minimum_percent, aggression })
}

#[cfg(test)]
mod tests {
    use super::is_prime;

    #[test]
    fn primes() {
        let primes: Vec<u32> = (0..30).filter(|number| is_prime(*number)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(65_537) && !is_prime(65_536) && !is_prime(65_537 * 3));
        assert!(is_prime(4_999_999) && !is_prime(2236 * 2236));
    }
}
