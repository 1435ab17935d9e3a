//! What the record on an accepted socket says: where the application meant to connect. Pure.
//!
//! The kernel programs write these records, perhaps those of an older or newer agent. The
//! invariant: a destination is one that `mesh_common::redirect::outbound` captures; a record that
//! names another was not written for this connection, and to dial it would leave the mesh.
//! Reserved words are not looked at: a newer agent's programs may use them.

use std::net::SocketAddr;

use mesh_common::maps::{ACCEPTED, OriginalDestination};
use mesh_common::ports;

/// The destination, unless the record cannot be one of an accepted socket.
pub(super) fn destination(origin: &OriginalDestination) -> Option<SocketAddr> {
    let ip = &origin.ip;
    let possible = !(ip.is_loopback() || ip.is_link_local_v6() || ports::is_mesh(origin.port));
    (origin.kind == ACCEPTED && possible).then(|| SocketAddr::new(origin.ip.into(), origin.port))
}

#[cfg(test)]
mod tests {
    use mesh_common::maps::CLIENT;

    use super::*;

    fn record(address: &str, kind: u16) -> OriginalDestination {
        let address: SocketAddr = address.parse().unwrap();
        OriginalDestination {
            ip: address.ip().into(),
            port: address.port(),
            kind,
            ..OriginalDestination::default()
        }
    }

    #[test]
    fn both_families_are_read() {
        for address in ["10.96.0.1:80", "[2001:db8::1]:443", "169.254.169.254:80", "8.8.8.8:0"] {
            let expected = Some(address.parse().unwrap());
            assert_eq!(destination(&record(address, ACCEPTED)), expected, "{address}");
        }
    }

    #[test]
    fn a_record_of_another_socket_is_refused() {
        assert_eq!(destination(&record("10.96.0.1:80", CLIENT)), None);
        assert_eq!(destination(&record("10.96.0.1:80", 0)), None);
        assert_eq!(destination(&OriginalDestination::default()), None);
    }

    #[test]
    fn what_is_never_captured_is_refused() {
        let never = ["127.0.0.1:80", "[::1]:80", "[::]:80", "0.0.0.0:80", "[fe80::1]:80"];
        let own = ["127.128.0.1:15001", "10.96.0.1:15001", "10.96.0.1:15006", "10.96.0.1:15008"];
        for address in never.iter().chain(&own) {
            assert_eq!(destination(&record(address, ACCEPTED)), None, "{address}");
        }
    }
}
