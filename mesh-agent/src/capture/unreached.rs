//! Destinations outside the mesh that could not be reached: for a while a pod's own connections to
//! them are left to the kernel, whose answer the application then sees.
//!
//! A captured `connect` has succeeded before the agent has dialled. A client that tries one address
//! after the other (RFC 8305) would take each for reachable, each time; so it does once only.
//! The kernel programs prolong an entry while it is used and end it when the destination answers.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use aya::maps::{HashMap, MapData};
use mesh_common::maps::{DialKey, UNREACHED_NS};
use nix::time::{ClockId, clock_gettime};

use super::lock;

/// The kernel's table of them.
pub(super) struct Unreached(Mutex<HashMap<MapData, DialKey, u64>>);

impl Unreached {
    pub(super) fn new(map: HashMap<MapData, DialKey, u64>) -> Self {
        Self(Mutex::new(map))
    }

    /// Adds a destination of the pod's with this network namespace.
    pub(super) fn add(&self, netns: u64, destination: SocketAddr) {
        let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from) else { return };
        let until = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).saturating_add(UNREACHED_NS);
        let key = DialKey::new(netns, destination.ip().into(), destination.port());
        // The oldest makes room. If it fails all the same, the next connection is captured too.
        if let Err(error) = lock(&self.0).insert(key, until, 0) {
            tracing::debug!(%destination, %error, "cannot leave a destination to the kernel");
        }
    }

    /// Removes the destinations that are none of these, of all pods.
    pub(super) fn retain(&self, stays: impl Fn(SocketAddr) -> bool) {
        let mut map = lock(&self.0);
        let mut keys: Vec<DialKey> = map.keys().flatten().collect();
        keys.retain(|key| !stays(SocketAddr::new(key.ip.into(), key.port)));
        for key in keys {
            // Absent if it has answered since.
            let _ = map.remove(&key);
        }
    }
}
