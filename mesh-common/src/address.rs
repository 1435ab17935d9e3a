//! IP addresses as the kernel hands them to a program, and the address that captured
//! connections are sent to.
//!
//! One form for both families: IPv4 is IPv4-mapped (RFC 4291 section 2.5.5.2). The invariant:
//! words are in network byte order, exactly as `bpf_sock_addr` and its relatives hold them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Third word of an IPv4-mapped address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();
/// `::1`, last word.
const ONE: u32 = 1_u32.to_be();

/// First two words of the /64 that captured IPv6 connections are sent to, made local on `lo`
/// at enrolment. A unique local address (RFC 4193) whose 40-bit global id reads "Malha".
const CAPTURE_V6: [u32; 2] = [0xfd4d_616c_u32.to_be(), 0x6861_0000_u32.to_be()];

/// An IPv6 or IPv4-mapped address; network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Ip(pub [u32; 4]);

impl Ip {
    /// From an IPv4 address as the kernel holds it.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// The IPv4 address, as the kernel holds it, if this is one.
    #[inline(always)]
    pub const fn v4(&self) -> Option<u32> {
        if self.is_v4() { Some(self.0[3]) } else { None }
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// The unset address (`::`), which stands for "the pod has none of this family".
    #[inline(always)]
    pub const fn is_zero(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 0
    }

    /// Addresses that never leave the host: 127.0.0.0/8 and ::1, and the unspecified addresses,
    /// which `connect(2)` takes for loopback.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            let host = u32::from_be(self.0[3]);
            return host >> 24 == 127 || host == 0;
        }
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && (self.0[3] == ONE || self.0[3] == 0)
    }

    /// IPv6 link-local (fe80::/10): needs an interface, so it cannot be redirected.
    #[inline(always)]
    pub const fn is_link_local_v6(&self) -> bool {
        u32::from_be(self.0[0]) & 0xffc0_0000 == 0xfe80_0000
    }

    /// Whether captured connections are sent here: 127.128.0.0/9 or the capture /64.
    #[inline(always)]
    pub const fn is_capture(&self) -> bool {
        if self.is_v4() {
            return u32::from_be(self.0[3]) >> 23 == 0xff;
        }
        self.0[0] == CAPTURE_V6[0] && self.0[1] == CAPTURE_V6[1]
    }

    /// The address that a connection to `self:port` is sent to when captured.
    ///
    /// Spread over 2^23 (IPv4) or 2^32 (IPv6) addresses by the destination: with one single
    /// address a pod could hold only as many connections as it has local ports.
    #[inline(always)]
    pub const fn capture_for(&self, port: u16) -> Self {
        let mixed = (self.0[0] ^ self.0[1].rotate_left(7) ^ self.0[2].rotate_left(14))
            ^ u32::from_be(self.0[3])
            ^ ((port as u32) << 9);
        // Fibonacci hashing: the high bits of the product depend on all bits of the input.
        let hash = mixed.wrapping_mul(0x9e37_79b1);
        if self.is_v4() {
            Self::from_v4((0x7f80_0000 | (hash >> 9)).to_be())
        } else {
            Self([CAPTURE_V6[0], CAPTURE_V6[1], 0, hash.to_be()])
        }
    }

    /// The prefix that must be local on `lo` for captured IPv6 connections, and its length.
    pub const fn capture_prefix_v6() -> (Ipv6Addr, u8) {
        (Ipv6Addr::new(0xfd4d, 0x616c, 0x6861, 0, 0, 0, 0, 0), 64)
    }
}

impl From<IpAddr> for Ip {
    fn from(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let (words, _) = octets.as_chunks::<4>();
        let mut ip = Self::default();
        for (to, from) in ip.0.iter_mut().zip(words) {
            *to = u32::from_ne_bytes(*from);
        }
        ip
    }
}

impl From<Ipv4Addr> for Ip {
    fn from(ip: Ipv4Addr) -> Self {
        IpAddr::V4(ip).into()
    }
}

impl From<Ipv6Addr> for Ip {
    fn from(ip: Ipv6Addr) -> Self {
        IpAddr::V6(ip).into()
    }
}

impl From<Ip> for IpAddr {
    fn from(ip: Ip) -> Self {
        let mut octets = [0; 16];
        let (words, _) = octets.as_chunks_mut::<4>();
        for (to, from) in words.iter_mut().zip(ip.0) {
            *to = from.to_ne_bytes();
        }
        Ipv6Addr::from(octets).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn both_families_round_trip() {
        for text in ["10.1.2.3", "127.0.0.1", "2001:db8::17", "::1", "fe80::1"] {
            assert_eq!(IpAddr::from(ip(text)), text.parse::<IpAddr>().unwrap());
        }
        assert_eq!(ip("::ffff:10.1.2.3"), ip("10.1.2.3"));
        assert_eq!(ip("10.1.2.3").v4(), Some(u32::from_ne_bytes([10, 1, 2, 3])));
        assert_eq!(ip("2001:db8::1").v4(), None);
    }

    #[test]
    fn loopback_is_what_connect_takes_for_it() {
        for text in ["127.0.0.1", "127.200.3.4", "0.0.0.0", "::1", "::"] {
            assert!(ip(text).is_loopback(), "{text}");
        }
        for text in ["128.0.0.1", "126.255.255.255", "::2", "1::1", "10.0.0.1", "0.0.0.1"] {
            assert!(!ip(text).is_loopback(), "{text}");
        }
    }

    #[test]
    fn link_local_ends_at_febf() {
        assert!(ip("fe80::1").is_link_local_v6());
        assert!(ip("febf::1").is_link_local_v6());
        assert!(!ip("fec0::1").is_link_local_v6());
        assert!(!ip("169.254.1.1").is_link_local_v6());
    }

    #[test]
    fn captured_connections_stay_in_the_capture_range() {
        for n in 0..5000_u32 {
            let v4 = Ip::from(Ipv4Addr::from(n.wrapping_mul(858_599_503)));
            let v6 = Ip::from(Ipv6Addr::from(u128::from(n) << 64 | u128::from(n)));
            for ip in [v4, v6] {
                let to = ip.capture_for((n % 65536) as u16);
                assert!(to.is_capture(), "{:?}", IpAddr::from(to));
                assert_eq!(to.is_v4(), ip.is_v4());
            }
        }
        assert!(!ip("127.0.0.1").is_capture());
        assert!(!ip("127.127.255.255").is_capture());
        let (prefix, length) = Ip::capture_prefix_v6();
        assert!(Ip::from(prefix).is_capture());
        assert_eq!(length, 64);
        assert!(!ip("fd4d:616c:6861:1::1").is_capture());
    }

    #[test]
    fn neighbours_and_ports_are_spread() {
        let mut seen = std::collections::BTreeSet::new();
        for host in 0..256_u32 {
            for port in [80, 81, 443, 8080] {
                let from = Ip::from(Ipv4Addr::from(0x0a00_0000 | host));
                seen.insert(IpAddr::from(from.capture_for(port)));
            }
        }
        // 1024 destinations in 2^23 addresses: a handful of collisions at most.
        assert!(seen.len() > 1000, "{}", seen.len());
    }
}
