//! Retries, faults, mirrors, CORS and destinations' policies in words. What is at its default is not
//! said.

use crate::model::{
    ConnectionPool, Cors, Fault, FaultAbort, Forward, HashKey, LocalitySetting, Mirror,
    OutlierDetection, RetryOn, RetryPolicy, TlsOrigination, TrafficPolicy,
};

/// What a rule does to requests that it forwards.
pub(super) fn of_forward(forward: &Forward, details: &mut Vec<String>) {
    if forward.retries != RetryPolicy::default() {
        details.push(retries(&forward.retries));
    }
    details.extend(forward.mirrors.iter().map(mirror));
}

fn retries(policy: &RetryPolicy) -> String {
    if policy.attempts == 0 {
        return "no retries".to_owned();
    }
    let names = RetryOn::NAMED.iter().filter(|(_, one)| policy.on.has(*one)).map(|(name, _)| *name);
    let statuses = policy.statuses.iter().map(u16::to_string);
    let on: Vec<String> = names.map(str::to_owned).chain(statuses).collect();
    let mut text = format!("up to {} retries on {}", policy.attempts, on.join(","));
    if let Some(timeout) = policy.per_try_timeout {
        text.push_str(&format!(", {timeout:?} each"));
    }
    text
}

fn mirror(mirror: &Mirror) -> String {
    let subset = mirror.subset.as_deref().map(|name| format!(" subset {name}")).unwrap_or_default();
    let port = mirror.port.map(|port| format!(":{port}")).unwrap_or_default();
    let problem =
        if mirror.service.is_none() { " (no Service of this name: no copies)" } else { "" };
    let share = mirror.share.as_percent();
    format!("copy {share} % to {}{port}{subset}{problem}", mirror.host)
}

/// A rule's fault.
pub(super) fn of_fault(fault: &Fault, details: &mut Vec<String>) {
    if let Some((delay, share)) = fault.delay {
        details.push(format!("delay {} % by {delay:?}", share.as_percent()));
    }
    if let Some((abort, share)) = fault.abort {
        let with = match abort {
            FaultAbort::Http(status) => status.as_u16().to_string(),
            FaultAbort::Grpc(code) => format!("grpc-status {code}"),
        };
        details.push(format!("abort {} % with {with}", share.as_percent()));
    }
}

/// A rule's CORS policy.
pub(super) fn of_cors(cors: &Cors, details: &mut Vec<String>) {
    let origins: Vec<String> = cors.allow_origins.iter().map(super::routes::string_text).collect();
    details.push(format!("CORS for origin {}", origins.join(" or ")));
}

/// A destination's policy, beside how it balances.
pub(super) fn of_destination(policy: &TrafficPolicy) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(policy.hash_key.as_ref().map(|key| match key {
        HashKey::Header(name) => format!("key: header {name}"),
        HashKey::Cookie(cookie) => format!("key: cookie {}", cookie.name),
        HashKey::SourceIp => "key: source IP".to_owned(),
        HashKey::Query(name) => format!("key: query parameter {name}"),
    }));
    found.extend(policy.locality.as_deref().map(|setting| locality(setting).to_owned()));
    found.extend(policy.warmup.map(|warmup| format!("warm-up {:?}", warmup.duration)));
    pool(&policy.pool, &mut found);
    found.extend(policy.outlier.as_deref().map(outlier));
    found.extend(policy.retry_budget.map(|budget| {
        format!("retry budget {} %, at least {}", budget.percent, budget.min_concurrency)
    }));
    found.extend(policy.tls.as_deref().map(tls));
    found
}

fn locality(setting: &LocalitySetting) -> &'static str {
    match (setting.enabled, &*setting.distribute, &*setting.failover_priority) {
        (false, ..) => "localities do not count",
        (true, [], []) => "nearer localities first",
        (true, [], _) => "nearer endpoints first, by labels",
        (true, ..) => "shares by locality",
    }
}

fn tls(settings: &TlsOrigination) -> String {
    let mode = if settings.client.is_some() { "MUTUAL" } else { "SIMPLE" };
    let mut text = match &settings.secret {
        Some(secret) => format!("TLS not to be had: credentialName {secret}"),
        None => format!("TLS {mode}"),
    };
    if let Some(sni) = &settings.sni {
        text.push_str(&format!(", sni {sni}"));
    }
    if !settings.names.is_empty() {
        text.push_str(&format!(", certificate for {}", settings.names.join(" or ")));
    }
    if settings.skip_verify {
        text.push_str(", certificate not verified");
    }
    text
}

fn pool(pool: &ConnectionPool, found: &mut Vec<String>) {
    let default = ConnectionPool::default();
    for (name, value, unset) in [
        ("connections", pool.max_connections, default.max_connections),
        ("pending requests", pool.max_pending, default.max_pending),
        ("requests", pool.max_requests, default.max_requests),
        ("retries", pool.max_retries, default.max_retries),
        ("requests per connection", pool.max_requests_per_connection, 0),
    ] {
        if value != unset {
            found.push(format!("at most {value} {name}"));
        }
    }
    if pool.connect_timeout != default.connect_timeout {
        found.push(format!("connect time-out {:?}", pool.connect_timeout));
    }
    if pool.upgrade_to_http2 {
        found.push("upgraded to HTTP/2".to_owned());
    }
}

fn outlier(policy: &OutlierDetection) -> String {
    let counts = [
        (policy.consecutive_5xx, "5xx"),
        (policy.consecutive_gateway, "gateway errors"),
        (if policy.split { policy.consecutive_local } else { 0 }, "failures without an answer"),
    ];
    let after: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    let (base, most) = (policy.base_ejection, policy.max_ejection_percent);
    format!("ejected after {} for {base:?}, at most {most} %", or(&after))
}

fn or(parts: &[String]) -> String {
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(" or ") }
}
