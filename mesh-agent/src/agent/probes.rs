//! Keeps the kubelet's probes of enrolled pods alive: which ports it may reach past the agent, and
//! where it is.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use crate::capture::{Capture, kubelet_cgroup};
use crate::model::CaptureRules;

/// How often the kubelet is looked for: it may have been started anew.
const LOOK: Duration = Duration::from_secs(5);

/// A pod's addresses, and what it says of its probes.
pub(super) type Probed<'a> = (&'a [IpAddr], &'a CaptureRules);

/// Where the kubelet may go, where it is looked for, and when again.
pub(super) struct Probes {
    root: PathBuf,
    ports: BTreeSet<SocketAddr>,
    next: Option<Instant>,
    said: Option<String>,
}

impl Probes {
    /// `root`: the node's cgroups, the kubelet's among them.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, ports: BTreeSet::new(), next: None, said: None }
    }

    /// Makes the ports of these pods those that may be probed.
    pub(super) fn admit<'a>(&mut self, capture: &Capture, pods: impl Iterator<Item = Probed<'a>>) {
        self.ports = pods.flat_map(ports).collect();
        self.update(capture);
    }

    /// Adds those of one pod, until the next time.
    pub(super) fn admit_also(&mut self, capture: &Capture, pod: Probed<'_>) {
        self.ports.extend(ports(pod));
        self.update(capture);
    }

    /// The kubelet is looked for now and then.
    fn update(&mut self, capture: &Capture) {
        if let Err(error) = capture.admit_probes(&self.ports) {
            self.say(Some(error.to_string()));
        }
        if self.next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        self.next = Some(Instant::now() + LOOK);
        let followed = match kubelet_cgroup(&self.root) {
            Ok(Some(cgroup)) => capture.follow_kubelet(&cgroup).map_err(|error| error.to_string()),
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        self.say(followed.err());
    }

    /// Once for each reason.
    fn say(&mut self, reason: Option<String>) {
        if let Some(reason) = reason.as_ref().filter(|_| self.said != reason) {
            tracing::warn!(reason, "probes of pods that take only mutual TLS will fail");
        }
        self.said = reason;
    }
}

fn ports<'a>((ips, rules): Probed<'a>) -> impl Iterator<Item = SocketAddr> + use<'a> {
    let of = move |ip: &IpAddr| {
        let ip = *ip;
        rules.probed_ports.iter().map(move |port| SocketAddr::new(ip, *port))
    };
    ips.iter().flat_map(of)
}
