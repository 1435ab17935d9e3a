//! The body of the fuzz target `original_destination`; its corpus also runs as a plain test.
//!
//! The input is records as they lie in the kernel's socket storage, one after the other. What the
//! agent makes of them is compared with what the kernel programs may write: the pure decision
//! that they ask, `mesh_common::redirect::outbound`.

use std::net::{IpAddr, SocketAddr};

use mesh_common::address::Ip;
use mesh_common::maps::{ACCEPTED, CLIENT, OriginalDestination, Pod};
use mesh_common::redirect::{self, Draw, Outbound};

use super::origin::destination;

/// Octets of a record.
const SIZE: usize = size_of::<OriginalDestination>();

/// Reads `data` as records; a rest that is too short is left.
///
/// # Panics
/// If a record is taken that no kernel program writes, refused though one does, or misread.
pub fn run(data: &[u8]) {
    for record in data.as_chunks::<SIZE>().0 {
        check(&parse(record));
    }
}

/// The record as the kernel's memory holds it: words in the machine's order.
fn parse(record: &[u8; SIZE]) -> OriginalDestination {
    let mut words = record.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word));
    let mut word = || words.next().unwrap_or_default();
    let ip = Ip([word(), word(), word(), word()]);
    let [a, b, c, d] = word().to_ne_bytes();
    let (port, kind) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
    OriginalDestination { ip, port, kind, flags: word(), reserved: [word(), word()] }
}

fn check(origin: &OriginalDestination) {
    address(&origin.ip);
    let found = destination(origin);
    if let Some(address) = found {
        assert_eq!(Ip::from(address.ip()), origin.ip, "another address");
        assert_eq!(address.port(), origin.port, "another port");
        assert_eq!(origin.kind, ACCEPTED, "a record of another socket");
        if let SocketAddr::V6(v6) = address {
            assert!(v6.ip().to_ipv4_mapped().is_none(), "{v6} is IPv4");
        }
    }
    let reserved = OriginalDestination { flags: 0, reserved: [0; 2], ..*origin };
    assert_eq!(destination(&reserved), found, "the other words do not count");
    let client = OriginalDestination { kind: CLIENT, ..*origin };
    assert_eq!(destination(&client), None, "the application's own socket");
    captured(origin);
}

/// On the agent's socket exactly what is captured is a destination.
fn captured(origin: &OriginalDestination) {
    let accepted = OriginalDestination { kind: ACCEPTED, ..*origin };
    // A pod of both families with other addresses, which are never captured.
    let word = origin.ip.0[3].wrapping_add(1);
    let pod = Pod {
        ipv4: if word == 0 { 1 } else { word },
        ipv6: Ip([1, 2, 3, word]),
        pending_limit: 1,
        ..Pod::default()
    };
    match redirect::outbound(&pod, &origin.ip, origin.port, || false, || Draw::None, || 0) {
        Outbound::Capture { to, flags } => {
            assert_eq!(flags, 0, "nothing was drawn");
            assert!(destination(&accepted).is_some(), "{origin:?} is captured, and then lost");
            assert!(to.is_capture() && to.is_v4() == origin.ip.is_v4(), "{origin:?} to {to:?}");
            let client = OriginalDestination { kind: CLIENT, ..*origin };
            let agent = mesh_common::ports::OUTBOUND;
            assert!(redirect::hides_peer(&client, &to, agent), "the application sees {to:?}");
        }
        other => assert_eq!(destination(&accepted), None, "{origin:?} is taken, but {other:?}"),
    }
}

/// What the programs say of an address is what the standard library says.
fn address(ip: &Ip) {
    let standard = IpAddr::from(*ip);
    assert_eq!(Ip::from(standard), *ip);
    assert_eq!(ip.is_v4(), standard.is_ipv4());
    assert_eq!(ip.v4().map(u32::from_be), v4(standard).map(u32::from));
    assert_eq!(ip.is_loopback(), standard.is_loopback() || standard.is_unspecified());
    let link_local = matches!(standard, IpAddr::V6(v6) if v6.is_unicast_link_local());
    assert_eq!(ip.is_link_local_v6(), link_local);
}

fn v4(ip: IpAddr) -> Option<std::net::Ipv4Addr> {
    match ip {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn corpus() {
        xtask::corpus::run("original_destination", 20_000, super::run);
    }
}
