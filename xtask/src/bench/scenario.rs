//! What is measured: the traffic, over which ways, and which ratios are aims.

use anyhow::{Context, ensure};

use super::ground::{Ground, Sample, Server, Setting, Way};
use crate::lab::Conversation;

/// Service ports of the pods: how the mesh takes the same server.
const HTTP: u16 = 8080;
const TCP: u16 = 8081;
const GRPC: u16 = 8082;
const HTTP2: u16 = 8083;

/// Bytes of a bulk answer: long enough that a connection's start does not count.
const BULK: &str = "http://TARGET/?size=268435456";
const SMALL: &str = "http://TARGET/?size=1024";

/// 64 connections that are kept.
const KEPT: &[&str] = &["http", SMALL, "--discard", "--concurrency", "64", "--duration", "SECONDS"];
/// A connection for each request, 16 at once.
const NEW: &[&str] = &[
    "http",
    SMALL,
    "--discard",
    "--new-connections",
    "--concurrency",
    "16",
    "--duration",
    "SECONDS",
];
/// 1,000 requests a second over 32 connections.
const RATED: &[&str] =
    &["http", SMALL, "--discard", "--rate", "1000", "--concurrency", "32", "--duration", "SECONDS"];
/// One small request after the other.
const PING: &[&str] = &["http", "http://TARGET/?size=64", "--discard", "--duration", "SECONDS"];

/// What a figure is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Microseconds a request.
    Request,
    /// Seconds a GB (10^9 bytes).
    Gigabyte,
}

/// A ratio to reach: processor time of the mesh by that of a peer in the same round; beside no mesh,
/// which has no proxies, of the whole path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Aim {
    pub(super) of: Way,
    pub(super) to: Way,
    pub(super) at_most: f64,
}

/// A kind of traffic and the ways that it is sent over.
pub(super) struct Scenario {
    /// As `--scenario` takes it.
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) server: Server,
    pub(super) port: u16,
    /// Words for the load generator; `SECONDS` and `COUNT` are filled in.
    pub(super) words: &'static [&'static str],
    /// Requests of a full run where the load is counted and not timed.
    pub(super) count: u64,
    pub(super) unit: Unit,
    pub(super) ways: &'static [Way],
    pub(super) aims: &'static [Aim],
    /// Clients beside the measured one that ask for large answers and do not read them.
    pub(super) stalled: usize,
    /// How it is run if the command line does not say.
    pub(super) setting: Setting,
}

const PLAIN: Scenario = Scenario {
    name: "",
    about: "",
    server: Server::Far,
    port: HTTP,
    words: &[],
    count: 0,
    unit: Unit::Request,
    ways: &[],
    aims: &[],
    stalled: 0,
    setting: Setting::PINNED,
};

const fn aim(to: Way, at_most: f64) -> Aim {
    Aim { of: Way::Mesh, to, at_most }
}

/// What a feature that no route uses may cost, beside the build before it.
pub(super) const TO_OTHER: Aim = aim(Way::OtherMesh, 1.1);

const NGINX_HOP: Way = Way::Rival("nginx hop");
const HAPROXY_HOP: Way = Way::Rival("haproxy hop");
const NGINX: Way = Way::Rival("nginx pair");
const HAPROXY: Way = Way::Rival("haproxy pair");
const HAPROXY_H2: Way = Way::Rival("haproxy h2 pair");
const ENVOY: Way = Way::Rival("envoy http pair");
const ENVOY_TCP: Way = Way::Rival("envoy tcp pair");
const ENVOY_HBONE: Way = Way::Rival("envoy hbone pair");
const L7_PAIRS: &[Way] = &[Way::Direct, Way::Mesh, HAPROXY, NGINX, ENVOY];
const H2_PAIRS: &[Way] = &[Way::Direct, Way::Mesh, HAPROXY_H2, ENVOY];
const L4_PAIRS: &[Way] = &[Way::Direct, Way::Mesh, ENVOY_TCP, ENVOY_HBONE];

/// Everything that is measured, in this order.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "l7-http1",
        about: "1 KiB answers over 64 HTTP/1.1 connections, mutual TLS between two nodes",
        words: KEPT,
        ways: L7_PAIRS,
        aims: &[aim(HAPROXY, 0.75)],
        ..PLAIN
    },
    Scenario {
        name: "l7-shaped",
        about: "as l7-http1, beside a service with retries, limits, ejection and a mirror of 1 %",
        words: KEPT,
        ways: &[Way::Direct, Way::Mesh, Way::Shaped],
        ..PLAIN
    },
    Scenario {
        name: "l7-http2",
        about: "1 KiB answers, 64 at once over 4 HTTP/2 connections, mutual TLS between two nodes",
        port: HTTP2,
        words: &[
            "http",
            SMALL,
            "--discard",
            "--http2",
            "--connections",
            "4",
            "--concurrency",
            "64",
            "--duration",
            "SECONDS",
        ],
        ways: H2_PAIRS,
        ..PLAIN
    },
    Scenario {
        name: "l7-grpc",
        about: "unary gRPC calls, 64 at once over 4 connections, mutual TLS between two nodes",
        port: GRPC,
        words: &[
            "http",
            "http://TARGET/",
            "--discard",
            "--grpc",
            "--connections",
            "4",
            "--concurrency",
            "64",
            "--body-size",
            "64",
            "--duration",
            "SECONDS",
        ],
        ways: H2_PAIRS,
        aims: &[aim(HAPROXY_H2, 1.3)],
        ..PLAIN
    },
    Scenario {
        name: "l7-hop",
        about: "1 KiB answers over 64 HTTP/1.1 connections, plain, both pods on one node",
        server: Server::Near,
        words: KEPT,
        ways: &[Way::Direct, Way::Mesh, HAPROXY_HOP, NGINX_HOP],
        aims: &[aim(HAPROXY_HOP, 1.1)],
        ..PLAIN
    },
    Scenario {
        name: "l7-new",
        about: "a connection for each HTTP/1.1 request, 16 at once, mutual TLS between two nodes",
        words: NEW,
        ways: L7_PAIRS,
        ..PLAIN
    },
    Scenario {
        name: "l7-rate",
        about: "1,000 HTTP/1.1 requests a second over 32 connections: latency",
        words: RATED,
        ways: L7_PAIRS,
        ..PLAIN
    },
    Scenario {
        name: "l4-requests",
        about: "1 KiB answers over 64 TCP connections, mutual TLS between two nodes",
        port: TCP,
        words: KEPT,
        ways: L4_PAIRS,
        aims: &[aim(ENVOY_HBONE, 0.5)],
        ..PLAIN
    },
    Scenario {
        name: "l4-near",
        about: "1 KiB answers over 64 TCP connections, both pods on one node: one pass, and direct",
        server: Server::Near,
        port: TCP,
        words: KEPT,
        ways: &[Way::Direct, Way::PastAgent, Way::Mesh],
        aims: &[Aim { of: Way::PastAgent, to: Way::Direct, at_most: 1.1 }],
        ..PLAIN
    },
    Scenario {
        name: "l4-near-new",
        about: "a TCP connection for each request, 16 at once, both pods on one node",
        server: Server::Near,
        port: TCP,
        words: NEW,
        ways: &[Way::Direct, Way::PastAgent, Way::Mesh],
        ..PLAIN
    },
    Scenario {
        name: "l4-bulk-1",
        about: "one stream of 256 MiB answers over TCP, mutual TLS between two nodes",
        port: TCP,
        words: &["http", BULK, "--discard", "--requests", "COUNT"],
        count: 8,
        unit: Unit::Gigabyte,
        ways: L4_PAIRS,
        aims: &[aim(ENVOY_HBONE, 0.6), aim(ENVOY_TCP, 0.75)],
        ..PLAIN
    },
    Scenario {
        name: "l4-bulk-8",
        about: "eight streams of 256 MiB answers over TCP, mutual TLS between two nodes",
        port: TCP,
        words: &["http", BULK, "--discard", "--requests", "COUNT", "--concurrency", "8"],
        count: 16,
        unit: Unit::Gigabyte,
        ways: L4_PAIRS,
        aims: &[aim(ENVOY_HBONE, 0.6), aim(ENVOY_TCP, 0.75)],
        ..PLAIN
    },
    Scenario {
        name: "l4-new",
        about: "a TCP connection for each request, 16 at once, through a pooled tunnel",
        port: TCP,
        words: NEW,
        ways: L4_PAIRS,
        aims: &[aim(ENVOY_HBONE, 0.45)],
        ..PLAIN
    },
    Scenario {
        name: "l4-ping",
        about: "one small request after the other on one TCP connection: latency",
        port: TCP,
        words: PING,
        ways: L4_PAIRS,
        ..PLAIN
    },
    Scenario {
        name: "l4-rate",
        about: "1,000 requests a second over 32 TCP connections: latency",
        port: TCP,
        words: RATED,
        ways: L4_PAIRS,
        ..PLAIN
    },
    Scenario {
        name: "l4-stalled",
        about: "one request after the other beside 60 clients of the same pods that do not read",
        port: TCP,
        words: PING,
        ways: &[Way::Direct, Way::Mesh, ENVOY_TCP],
        stalled: 60,
        ..PLAIN
    },
    Scenario {
        name: "l4-unpinned",
        about: "as l4-requests, two workers of every proxy on any core",
        port: TCP,
        words: KEPT,
        ways: L4_PAIRS,
        aims: &[aim(ENVOY_HBONE, 0.7)],
        setting: Setting::UNPINNED,
        ..PLAIN
    },
    Scenario {
        name: "l7-unpinned",
        about: "as l7-http1, two workers of every proxy on any core",
        words: KEPT,
        ways: L7_PAIRS,
        setting: Setting::UNPINNED,
        ..PLAIN
    },
];

/// How long and how much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// How often each scenario takes each way.
    pub(super) rounds: usize,
    /// Seconds of a timed run.
    pub(super) seconds: f64,
    /// Whether counts are as small as possible.
    pub(super) tiny: bool,
}

/// What one run has come to, in the scenario's units.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Outcome {
    /// Units a second: requests, or Gbit.
    pub(super) rate: f64,
    /// Processor time a unit of what lies between: microseconds a request, or seconds a GB.
    pub(super) proxies: f64,
    /// The same of the whole path.
    pub(super) path: f64,
    /// Latency in microseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    /// Resident memory of what lies between, KiB.
    pub(super) memory: u64,
}

impl Scenario {
    /// Runs it once over one way.
    pub(super) fn run(&self, ground: &Ground, way: Way, extent: Extent) -> anyhow::Result<Outcome> {
        let _stalled = self.stall(ground, way)?;
        let count = if extent.tiny { self.count.min(2) } else { self.count };
        let (seconds, count) = (extent.seconds.to_string(), count.to_string());
        let fill = |word: &'static str| match word {
            "SECONDS" => seconds.clone(),
            "COUNT" => count.clone(),
            BULK if extent.tiny => BULK.replace("268435456", "16777216"),
            other => other.to_owned(),
        };
        let words: Vec<String> = self.words.iter().copied().map(fill).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let sample = ground.run(way, self.server, (self.port, &words))?;
        self.outcome(&sample)
    }

    /// Starts the clients that do not read; they end when the value is dropped.
    fn stall(&self, ground: &Ground, way: Way) -> anyhow::Result<Option<Conversation>> {
        if self.stalled == 0 {
            return Ok(None);
        }
        let target = ground.target(way, self.server, self.port)?;
        let (url, count) = (format!("http://{target}/?size=67108864"), self.stalled.to_string());
        let words = ["no-read", &url, "--requests", &count, "--hold", "600"];
        let mut stalled = ground.beside(way, &words)?;
        // It says so once all are open.
        stalled.line().context("start clients that do not read")?;
        Ok(Some(stalled))
    }

    fn outcome(&self, sample: &Sample) -> anyhow::Result<Outcome> {
        let number = |field: &str| sample.report.pointer(field).and_then(serde_json::Value::as_f64);
        let failed = number("/failed").unwrap_or(0.0);
        ensure!(failed == 0.0, "{failed} requests failed: {}", sample.report["error_examples"]);
        let requests = number("/requests").unwrap_or(0.0);
        let seconds = number("/seconds").unwrap_or(f64::NAN);
        let (amount, micro, per_second) = match self.unit {
            Unit::Request => (requests, 1e6, 1.0),
            Unit::Gigabyte => (number("/bytes").context("no bytes")? / 1e9, 1.0, 8.0),
        };
        let latency = |quantile: &str| number(&format!("/latency_us/{quantile}")).unwrap_or(0.0);
        Ok(Outcome {
            rate: amount * per_second / seconds,
            proxies: sample.proxies * micro / amount,
            path: sample.path * micro / amount,
            p50: latency("p50"),
            p99: latency("p99"),
            p999: latency("p999"),
            memory: sample.memory,
        })
    }
}

impl Unit {
    /// What tables call rate and cost.
    pub(super) fn heads(self) -> [&'static str; 2] {
        match self {
            Self::Request => ["req/s", "us/req"],
            Self::Gigabyte => ["Gbit/s", "s/GB"],
        }
    }
}

impl Way {
    /// As tables name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "no mesh",
            Self::Mesh => "malha",
            Self::OtherMesh => "other malha",
            Self::Shaped => "malha shaped",
            Self::PastAgent => "malha direct",
            Self::Rival(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rivals::RIVALS;

    #[test]
    fn every_way_and_aim_is_there() {
        for scenario in SCENARIOS {
            let known = |way: &Way| match way {
                Way::Rival(name) => RIVALS.iter().any(|rival| rival.name == *name),
                Way::Direct | Way::Mesh | Way::Shaped | Way::PastAgent => true,
                Way::OtherMesh => false,
            };
            assert!(scenario.ways.iter().all(known), "{}", scenario.name);
            assert!(scenario.ways.contains(&Way::Mesh), "{}", scenario.name);
            let compared = |aim: &Aim| scenario.ways.contains(&aim.to);
            assert!(scenario.aims.iter().all(compared), "{}", scenario.name);
        }
    }

    #[test]
    fn no_load_is_spent_on_hashing_answers() {
        for scenario in SCENARIOS {
            assert!(scenario.words.contains(&"--discard"), "{}", scenario.name);
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = SCENARIOS.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
    }
}
