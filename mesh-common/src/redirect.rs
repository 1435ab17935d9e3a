//! The capture decision: what happens to one connection of an enrolled pod.
//!
//! Pure: the kernel programs read the context and the maps, ask here, and act. Lookups that are
//! not always needed are closures. The invariant: a connection that the mesh cannot serve is
//! refused, never let through by mistake.

use crate::address::Ip;
use crate::counter::Counter;
use crate::maps::{
    CLIENT, DIRECT_CLIENT, DirectService, ELSEWHERE, Inbound, OriginalDestination, Pod, Target,
};
use crate::ports;

/// What happens to an outbound connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// It connects as if the mesh were not there.
    Pass,
    /// It connects to the agent instead, at this address and [`ports::OUTBOUND`].
    Capture {
        /// The agent's address.
        to: Ip,
        /// [`OriginalDestination::flags`].
        flags: u32,
    },
    /// It connects to this pod of the node, past the agent.
    Direct(Target),
    /// `connect` fails; counted under the reason.
    Refuse(Counter),
}

/// What happens to an inbound connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The kernel looks for the application's listener as ever.
    Pass,
    /// As `Pass`, counted.
    PassCounted(Counter),
    /// It goes to the agent's listener of this port.
    Steer(u16),
    /// It is answered by a reset; counted under the reason.
    Refuse(Counter),
}

/// Decides on `connect` to `destination:port` by a process of an enrolled pod.
///
/// `pending` is the number of the pod's connections that wait for the agent. It falls below zero
/// when connections from before an earlier withdrawal go.
#[inline(always)]
pub fn outbound(
    pod: &Pod,
    destination: &Ip,
    port: u16,
    excluded: impl FnOnce() -> bool,
    direct: impl FnOnce() -> Draw,
    pending: impl FnOnce() -> i64,
) -> Outbound {
    if ports::is_mesh(port) {
        return Outbound::Refuse(Counter::OutboundRefusedMeshPort);
    }
    if destination.is_loopback() || destination.is_link_local_v6() || is_own(pod, destination) {
        return Outbound::Pass;
    }
    // Without a global address of the family the kernel answers ENETUNREACH at once, and clients
    // that try IPv6 first (RFC 8305) rely on it to fall back.
    let has_family = if destination.is_v4() { pod.ipv4 != 0 } else { !pod.ipv6.is_zero() };
    if !has_family || excluded() {
        return Outbound::Pass;
    }
    let flags = match direct() {
        Draw::Local(target) => return Outbound::Direct(target),
        Draw::Elsewhere => ELSEWHERE,
        Draw::None => 0,
    };
    if pending() >= i64::from(pod.pending_limit) {
        return Outbound::Refuse(Counter::OutboundRefusedPending);
    }
    Outbound::Capture { to: destination.capture_for(port), flags }
}

/// What a draw among the endpoints of a service port gave, if the service is direct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// It is not, or its endpoints are just being replaced.
    None,
    /// A pod of this node.
    Local(Target),
    /// An endpoint that the agent is to choose, among those that are no pods of this node.
    Elsewhere,
}

/// Draws one of the endpoints of a direct service, all alike; `random` is uniform.
#[inline(always)]
pub fn draw(
    service: &DirectService,
    random: u32,
    slot: impl FnOnce(u32) -> Option<Target>,
) -> Draw {
    if service.endpoints == 0 {
        return Draw::None;
    }
    let number = random % service.endpoints;
    if number >= service.local {
        return Draw::Elsewhere;
    }
    match slot(number) {
        Some(target) => Draw::Local(target),
        None => Draw::None,
    }
}

/// Decides on a SYN for `local:port` from `remote` in the network namespace of an enrolled pod.
///
/// `ingress_ifindex` would not tell loopback: for local routes the kernel reports the device that
/// owns the address.
#[inline(always)]
pub fn inbound(
    local: &Ip,
    port: u16,
    remote: &Ip,
    admitted: impl FnOnce() -> bool,
    settings: impl FnOnce() -> Option<Inbound>,
    excluded: impl FnOnce(&Inbound) -> bool,
) -> Arrival {
    // A source that is local cannot be forged from outside: the kernel drops such packets when
    // they come in through a device.
    if local.is_loopback() || local.is_capture() || local == remote {
        return Arrival::Pass;
    }
    if port == ports::TUNNEL {
        return Arrival::Steer(ports::TUNNEL);
    }
    if ports::is_mesh(port) {
        return Arrival::Refuse(Counter::InboundRefusedMeshPort);
    }
    if admitted() {
        return Arrival::PassCounted(Counter::InboundAdmitted);
    }
    match settings() {
        None => Arrival::Refuse(Counter::InboundRefusedAddress),
        Some(pod) if excluded(&pod) => Arrival::PassCounted(Counter::InboundExcluded),
        Some(_) => Arrival::Steer(ports::PLAINTEXT),
    }
}

/// Whether `getpeername` must answer with the original destination: the socket is a captured
/// application's, and the kernel is about to name the agent or the pod that was drawn.
#[inline(always)]
pub fn hides_peer(origin: &OriginalDestination, reported: &Ip, port: u16) -> bool {
    origin.kind == DIRECT_CLIENT
        || (origin.kind == CLIENT && port == ports::OUTBOUND && reported.is_capture())
}

/// Whether `getsockname` must answer with the pod's address: the socket is a captured
/// application's that was bound to a port only, and the kernel is about to name the address by
/// which it reaches the agent.
#[inline(always)]
pub fn hides_loopback(origin: &OriginalDestination, reported: &Ip) -> bool {
    origin.kind == CLIENT
        && (reported.is_loopback() || reported.is_capture())
        && !is_unspecified(reported)
}

/// A socket that is bound to no address, and not connected.
#[inline(always)]
fn is_unspecified(ip: &Ip) -> bool {
    ip.is_zero() || ip.v4() == Some(0)
}

#[inline(always)]
fn is_own(pod: &Pod, destination: &Ip) -> bool {
    match destination.v4() {
        Some(word) => word == pod.ipv4,
        None => *destination == pod.ipv6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn pod() -> Pod {
        Pod {
            ipv4: ip("10.1.0.5").v4().unwrap(),
            ipv6: ip("2001:db8::5"),
            pending_limit: 10,
            ..Pod::default()
        }
    }

    fn connect(pod: &Pod, to: &str, port: u16) -> Outbound {
        outbound(pod, &ip(to), port, || false, || Draw::None, || 0)
    }

    fn arrive(local: &str, port: u16, remote: &str, admitted: bool) -> Arrival {
        let settings = || (local == "10.1.0.5").then(Inbound::default);
        inbound(&ip(local), port, &ip(remote), || admitted, settings, |_| port == 9000)
    }

    #[test]
    fn ordinary_destinations_are_captured() {
        for to in ["10.96.0.1", "169.254.169.254", "93.184.216.34", "2001:db8::9"] {
            let expected = Outbound::Capture { to: ip(to).capture_for(80), flags: 0 };
            assert_eq!(connect(&pod(), to, 80), expected, "{to}");
        }
    }

    #[test]
    fn what_stays_in_the_pod_passes() {
        for to in ["127.0.0.1", "::1", "0.0.0.0", "::", "fe80::3", "10.1.0.5", "2001:db8::5"] {
            assert_eq!(connect(&pod(), to, 80), Outbound::Pass, "{to}");
        }
    }

    #[test]
    fn the_mesh_ports_are_refused_everywhere() {
        for port in [15001, 15006, 15008] {
            for to in ["10.96.0.1", "127.0.0.1", "10.1.0.5", "2001:db8::9"] {
                let refused = Outbound::Refuse(Counter::OutboundRefusedMeshPort);
                assert_eq!(connect(&pod(), to, port), refused, "{to} {port}");
            }
        }
    }

    #[test]
    fn a_missing_family_passes() {
        let v4_only = Pod { ipv6: Ip::default(), ..pod() };
        assert_eq!(connect(&v4_only, "2001:db8::9", 80), Outbound::Pass);
        assert!(matches!(connect(&v4_only, "10.96.0.1", 80), Outbound::Capture { .. }));
        let v6_only = Pod { ipv4: 0, ..pod() };
        assert_eq!(connect(&v6_only, "10.96.0.1", 80), Outbound::Pass);
        assert!(matches!(connect(&v6_only, "2001:db8::9", 80), Outbound::Capture { .. }));
    }

    #[test]
    fn exclusions_pass_and_the_limit_refuses() {
        let none = || Draw::None;
        assert_eq!(outbound(&pod(), &ip("10.2.0.1"), 80, || true, none, || 99), Outbound::Pass);
        let at = |n| outbound(&pod(), &ip("10.2.0.1"), 80, || false, none, || n);
        assert!(matches!(at(9), Outbound::Capture { .. }));
        assert!(matches!(at(-3), Outbound::Capture { .. }));
        assert_eq!(at(10), Outbound::Refuse(Counter::OutboundRefusedPending));
    }

    #[test]
    fn a_draw_gives_each_endpoint_its_share() {
        let service = DirectService { endpoints: 5, local: 2 };
        let target = |slot| Target { ip: ip("10.1.0.9"), port: slot };
        let drawn = |n| draw(&service, n, |slot| Some(target(slot)));
        assert_eq!([drawn(0), drawn(6)], [Draw::Local(target(0)), Draw::Local(target(1))]);
        assert_eq!([2, 3, 4, 9].map(drawn), [Draw::Elsewhere; 4]);
        assert_eq!(draw(&service, 0, |_| None), Draw::None, "is just being replaced");
        assert_eq!(draw(&DirectService::default(), 0, |_| None), Draw::None);
    }

    #[test]
    fn what_is_drawn_is_connected_to() {
        let target = Target { ip: ip("10.1.0.9"), port: 8080 };
        let to = |draw| outbound(&pod(), &ip("10.96.0.1"), 80, || false, || draw, || 0);
        assert_eq!(to(Draw::Local(target)), Outbound::Direct(target));
        let elsewhere = Outbound::Capture { to: ip("10.96.0.1").capture_for(80), flags: ELSEWHERE };
        assert_eq!(to(Draw::Elsewhere), elsewhere);
        // What is excluded is not the mesh's at all.
        let excluded =
            outbound(&pod(), &ip("10.96.0.1"), 80, || true, || Draw::Local(target), || 0);
        assert_eq!(excluded, Outbound::Pass);
        let direct = OriginalDestination { kind: DIRECT_CLIENT, ..Default::default() };
        assert!(hides_peer(&direct, &ip("10.1.0.9"), 8080));
        assert!(!hides_loopback(&direct, &ip("127.0.0.1")));
    }

    #[test]
    fn inbound_goes_to_the_agent() {
        let steered = Arrival::Steer(ports::PLAINTEXT);
        assert_eq!(arrive("10.1.0.5", 8080, "10.1.0.9", false), steered);
        // The node's own address is no exception: NodePort traffic is masked with it.
        assert_eq!(arrive("10.1.0.5", 8080, "10.1.0.1", false), steered);
        let tunnel = Arrival::Steer(ports::TUNNEL);
        assert_eq!(arrive("10.1.0.5", 15008, "10.1.0.9", false), tunnel);
    }

    #[test]
    fn inbound_exceptions() {
        let admitted = Arrival::PassCounted(Counter::InboundAdmitted);
        assert_eq!(arrive("10.1.0.5", 8080, "10.1.0.9", true), admitted);
        let excluded = Arrival::PassCounted(Counter::InboundExcluded);
        assert_eq!(arrive("10.1.0.5", 9000, "10.1.0.9", false), excluded);
        for (local, remote) in [
            ("127.0.0.1", "127.0.0.1"),
            ("127.200.1.1", "10.1.0.5"),
            ("fd4d:616c:6861::7", "2001:db8::5"),
            ("::1", "::1"),
            ("10.1.0.5", "10.1.0.5"),
        ] {
            assert_eq!(arrive(local, 8080, remote, false), Arrival::Pass, "{local}");
        }
    }

    #[test]
    fn inbound_refusals() {
        for port in [15001, 15006] {
            let refused = Arrival::Refuse(Counter::InboundRefusedMeshPort);
            assert_eq!(arrive("10.1.0.5", port, "10.1.0.9", true), refused);
        }
        // An address that the mesh does not know must not lead around its policy.
        let refused = Arrival::Refuse(Counter::InboundRefusedAddress);
        assert_eq!(arrive("fe80::5", 8080, "fe80::9", false), refused);
    }

    #[test]
    fn only_captured_sockets_hide_their_way_to_the_agent() {
        let client = OriginalDestination { kind: CLIENT, ..Default::default() };
        for local in ["127.0.0.1", "::1", "fd4d:616c:6861::1"] {
            assert!(hides_loopback(&client, &ip(local)), "{local}");
            let accepted = OriginalDestination { kind: crate::maps::ACCEPTED, ..client };
            assert!(!hides_loopback(&accepted, &ip(local)), "{local}");
        }
        // Disconnected since, or bound to the pod's address.
        for local in ["0.0.0.0", "::", "10.1.0.5", "2001:db8::5"] {
            assert!(!hides_loopback(&client, &ip(local)), "{local}");
        }
    }

    #[test]
    fn only_captured_sockets_hide_the_agent() {
        let client = OriginalDestination { kind: CLIENT, ..Default::default() };
        assert!(hides_peer(&client, &ip("127.200.0.1"), 15001));
        assert!(hides_peer(&client, &ip("fd4d:616c:6861::1"), 15001));
        // The same socket, disconnected and connected elsewhere.
        assert!(!hides_peer(&client, &ip("10.0.0.1"), 15001));
        assert!(!hides_peer(&client, &ip("127.200.0.1"), 80));
        let accepted = OriginalDestination { kind: crate::maps::ACCEPTED, ..client };
        assert!(!hides_peer(&accepted, &ip("127.200.0.1"), 15001));
    }
}
