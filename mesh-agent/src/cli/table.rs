//! Answers as text: columns without lines, as kubectl prints them. Pure.

use std::fmt::Write as _;

use comfy_table::{Table, presets};

use crate::api::{
    CertificatesReply, ConnectionsReply, Destination, DiagnosticsReply, EjectionsReply, Endpoint,
    RoutesReply, ServicePort, ServicesReply, StatusReply, WorkloadsReply,
};

/// Spaces between columns.
const GAP: u16 = 3;
/// Endpoints named in one cell; the rest is counted.
const NAMED_ENDPOINTS: usize = 3;
/// A cell without a value.
const NONE: &str = "-";

pub(super) fn status(reply: &StatusReply) -> String {
    let capture = reply.capture.clone().unwrap_or_default();
    let findings = match (reply.config_errors, reply.config_warnings) {
        (0, 0) => "no findings".to_owned(),
        (errors, warnings) => format!("errors: {errors}, warnings: {warnings}"),
    };
    let mut rows = vec![
        ("Node", reply.node.clone()),
        ("Version", reply.version.clone()),
        ("Uptime", span(reply.now - reply.started)),
        ("Trust domain", reply.trust_domain.clone()),
        ("Configuration", format!("generation {}, {findings}", reply.generation)),
        ("Workloads", reply.workloads.to_string()),
        ("Services", reply.services.to_string()),
        ("Virtual services", reply.virtual_services.to_string()),
        ("Destination rules", reply.destination_rules.to_string()),
        ("Certificates", reply.certificates.to_string()),
        ("Capture", or_none(&capture.state).to_owned()),
        ("Captured pods", capture.pods.len().to_string()),
        ("Pinned at", or_none(&capture.pin_dir).to_owned()),
    ];
    let counters: Vec<(String, String)> = capture
        .counters
        .iter()
        .map(|(name, value)| (format!("  {name}"), value.to_string()))
        .collect();
    if !counters.is_empty() {
        rows.push(("Counters", String::new()));
    }
    let mut table = empty();
    for (key, value) in rows {
        table.add_row([format!("{key}:"), value]);
    }
    for (key, value) in counters {
        table.add_row([format!("{key}:"), value]);
    }
    finish(table)
}

pub(super) fn workloads(reply: &WorkloadsReply) -> String {
    let header = ["NAMESPACE", "NAME", "NODE", "LOCALITY", "IP", "STATE", "MODE", "IDENTITY"];
    let rows = reply.workloads.iter().map(|row| {
        let ports = row.port_modes.iter().map(|(port, mode)| format!("{port}={mode}"));
        let modes: Vec<String> = std::iter::once(row.mode.clone()).chain(ports).collect();
        [
            row.namespace.clone(),
            row.name.clone(),
            or_none(&row.node).to_owned(),
            or_none(&row.locality).to_owned(),
            or_none(&row.ips.join(",")).to_owned(),
            row.state.clone(),
            modes.join(","),
            row.identity.clone(),
        ]
    });
    list(header, rows, "No workloads.")
}

pub(super) fn services(reply: &ServicesReply) -> String {
    let header = ["NAMESPACE", "NAME", "TYPE", "ADDRESSES", "PORTS", "READY"];
    let rows = reply.services.iter().map(|row| {
        let ports: Vec<String> =
            row.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
        let ready: Vec<String> = row.ports.iter().map(ready).collect();
        [
            row.namespace.clone(),
            row.name.clone(),
            row.kind.clone(),
            or_none(&row.addresses.join(",")).to_owned(),
            or_none(&ports.join(",")).to_owned(),
            or_none(&ready.join(",")).to_owned(),
        ]
    });
    list(header, rows, "No services.")
}

pub(super) fn routes(reply: &RoutesReply) -> String {
    let head = [
        ("Host", reply.host.as_str()),
        ("Client namespace", reply.namespace.as_str()),
        ("Service", or_none(&reply.service)),
        ("VirtualService", or_none(&reply.virtual_service)),
    ];
    let mut table = empty();
    for (key, value) in head {
        table.add_row([format!("{key}:"), value.to_owned()]);
    }
    let mut text = finish(table);
    for (number, rule) in reply.rules.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(text, "\nRule {}: {} ({})\n", number + 1, rule.name, rule.action);
        for (index, condition) in rule.matches.iter().enumerate() {
            let _ = writeln!(text, "  {} {condition}", if index == 0 { "if" } else { "or" });
        }
        for detail in &rule.details {
            let _ = writeln!(text, "  {detail}");
        }
        if !rule.destinations.is_empty() {
            destinations(&rule.destinations).lines().for_each(|line| {
                let _ = writeln!(text, "  {line}");
            });
            policies(&rule.destinations, &mut text);
        }
    }
    text
}

/// Those that all destinations share are said once.
fn policies(destinations: &[Destination], text: &mut String) {
    let Some(first) = destinations.first() else { return };
    let shared = destinations.iter().all(|to| to.policies == first.policies);
    for to in if shared { &destinations[..1] } else { destinations } {
        if !to.policies.is_empty() {
            let of = if shared { "destination" } else { or_none(&to.subset) };
            let _ = writeln!(text, "  {of}: {}", to.policies.join("; "));
        }
    }
}

fn destinations(destinations: &[Destination]) -> String {
    let header = ["SHARE", "HOST", "PORT", "SUBSET", "BALANCER", "DESTINATIONRULE", "ENDPOINTS"];
    let rows = destinations.iter().map(|row| {
        let port = match row.port {
            0 => "as asked".to_owned(),
            port => port.to_string(),
        };
        [
            share(row.weight, row.total_weight),
            row.host.clone(),
            port,
            or_none(&row.subset).to_owned(),
            or_none(&row.load_balancer).to_owned(),
            or_none(&row.destination_rule).to_owned(),
            if row.problem.is_empty() { endpoints(&row.endpoints) } else { row.problem.clone() },
        ]
    });
    list(header, rows, "")
}

pub(super) fn ejections(reply: &EjectionsReply) -> String {
    let header = ["CLIENT", "SERVICE", "SUBSET", "ENDPOINT", "POD", "EJECTED", "BACK IN"];
    let rows = reply.ejections.iter().map(|row| {
        [
            row.client.clone(),
            format!("{}:{}", row.service, row.port),
            or_none(&row.subset).to_owned(),
            row.address.clone(),
            or_none(&row.workload).to_owned(),
            match row.times {
                1 => "once".to_owned(),
                times => format!("{times} times in a row"),
            },
            // Rounded up: what is out is not shown as back.
            span(i64::try_from(row.remaining.div_ceil(1000)).unwrap_or(i64::MAX)),
        ]
    });
    list(header, rows, "No endpoint is ejected.")
}

pub(super) fn connections(reply: &ConnectionsReply) -> String {
    let header = [
        "WORKLOAD",
        "DIRECTION",
        "SOURCE",
        "DESTINATION",
        "PROTOCOL",
        "STATE",
        "AGE",
        "SENT",
        "RECEIVED",
        "PEER",
    ];
    let rows = reply.connections.iter().map(|row| {
        // A connection that is older than the agent was not measured.
        let (age, sent, received) = match row.opened {
            0 => (NONE.to_owned(), NONE.to_owned(), NONE.to_owned()),
            opened => (span(reply.now - opened), bytes(row.sent), bytes(row.received)),
        };
        [
            row.workload.clone(),
            row.direction.clone(),
            row.source.clone(),
            row.destination.clone(),
            or_none(&row.protocol).to_owned(),
            row.state.clone(),
            age,
            sent,
            received,
            or_none(&row.peer).to_owned(),
        ]
    });
    list(header, rows, "No connections.")
}

pub(super) fn certificates(reply: &CertificatesReply) -> String {
    let header = ["IDENTITY", "STATE", "EXPIRES", "RENEWAL", "FAILURES", "SERIAL"];
    let rows = reply.certificates.iter().map(|row| {
        [
            row.identity.clone(),
            row.state.clone(),
            until(row.not_after - reply.now),
            until(row.renewal - reply.now),
            row.failures.to_string(),
            row.serial.clone(),
        ]
    });
    list(header, rows, "No certificates.")
}

pub(super) fn diagnostics(reply: &DiagnosticsReply) -> String {
    let header = ["SEVERITY", "OBJECT", "FIELD", "MESSAGE", "PLACE"];
    let rows = reply.diagnostics.iter().map(|row| {
        [
            row.severity.clone(),
            or_none(&row.object).to_owned(),
            or_none(&row.field).to_owned(),
            row.message.clone(),
            or_none(&row.place).to_owned(),
        ]
    });
    list(header, rows, "No findings.")
}

// === Tables ===

fn empty() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

pub(super) fn list<const N: usize>(
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
    none: &str,
) -> String {
    let mut table = empty();
    table.set_header(header);
    table.add_rows(rows);
    if table.is_empty() { format!("{none}\n") } else { finish(table) }
}

fn finish(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
    table.trim_fmt() + "\n"
}

// === Cells ===

fn or_none(text: &str) -> &str {
    if text.is_empty() { NONE } else { text }
}

fn ready(port: &ServicePort) -> String {
    let ready = port.endpoints.iter().filter(|endpoint| endpoint.ready).count();
    format!("{ready}/{}", port.endpoints.len())
}

fn endpoints(endpoints: &[Endpoint]) -> String {
    let named = endpoints.iter().take(NAMED_ENDPOINTS).map(|endpoint| match endpoint.ready {
        true => endpoint.address.clone(),
        false => format!("{} (not ready)", endpoint.address),
    });
    let mut cell: Vec<String> = named.collect();
    if endpoints.len() > NAMED_ENDPOINTS {
        cell.push(format!("+{} more", endpoints.len() - NAMED_ENDPOINTS));
    }
    cell.join(",")
}

/// `90%`; with one decimal where there is one.
fn share(weight: u32, total: u32) -> String {
    let permille = u64::from(weight) * 1000 / u64::from(total.max(1));
    match permille % 10 {
        0 => format!("{}%", permille / 10),
        tenth => format!("{}.{tenth}%", permille / 10),
    }
}

/// Two units at most, as kubectl writes ages.
fn span(seconds: i64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match seconds {
        ..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..7200 if rest == 0 => format!("{}m", seconds / 60),
        120..7200 => format!("{}m{rest}s", seconds / 60),
        7200..172_800 if minutes == 0 => format!("{}h", seconds / 3600),
        7200..172_800 => format!("{}h{minutes}m", seconds / 3600),
        _ if hours == 0 => format!("{days}d"),
        _ => format!("{days}d{hours}h"),
    }
}

fn until(seconds: i64) -> String {
    if seconds < 0 { format!("{} ago", span(-seconds)) } else { format!("in {}", span(seconds)) }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut unit = "B";
    let (mut whole, mut tenths) = (count, 0);
    for next in UNITS {
        if whole < 1024 {
            break;
        }
        (whole, tenths, unit) = (whole / 1024, whole % 1024 * 10 / 1024, next);
    }
    if unit == "B" { format!("{whole}B") } else { format!("{whole}.{tenths}{unit}") }
}
