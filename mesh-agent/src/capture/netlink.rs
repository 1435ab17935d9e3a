//! The few netlink requests that are needed: local routes and rules by mark (rtnetlink), and the end
//! of a connection (sock_diag).
//!
//! Not a general client: one request, one acknowledgement, in the namespace of the calling
//! thread. Layouts: `linux/rtnetlink.h`, `linux/fib_rules.h`, `linux/inet_diag.h`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_HOST: u8 = 254;
const RTN_LOCAL: u8 = 2;

const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FR_ACT_TO_TBL: u8 = 1;

/// `lo` has this index in every network namespace (kernel: `LOOPBACK_IFINDEX`).
const LOOPBACK_INDEX: u32 = 1;

/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;

/// An address family of routes and rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    const fn number(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }
}

/// `ip route add local PREFIX dev lo table TABLE`; no prefix is everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalRoute {
    pub(super) family: Family,
    pub(super) prefix: Option<(IpAddr, u8)>,
    pub(super) table: u32,
}

/// `ip rule add fwmark MARK/MASK lookup TABLE priority PRIORITY`.
#[derive(Clone, Copy, Debug)]
pub(super) struct MarkRule {
    pub(super) family: Family,
    pub(super) mark: u32,
    pub(super) mask: u32,
    pub(super) table: u32,
    pub(super) priority: u32,
}

/// Routes and rules of the namespace it was opened in.
pub(super) struct Netlink(Channel);

/// Sockets of the namespace it was opened in.
pub(super) struct Diagnosis(Channel);

/// A connection to the kernel.
struct Channel(OwnedFd);

impl Diagnosis {
    pub(super) fn open() -> io::Result<Self> {
        Channel::open(SockProtocol::NetlinkSockDiag).map(Self)
    }

    /// Ends a TCP connection: both sides see a reset, the local one `ECONNABORTED`
    /// (`CONFIG_INET_DIAG_DESTROY`). It is no error if there is none.
    pub(super) fn destroy(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
        tolerate(self.0.request(SOCK_DESTROY, 0, &connection(local, remote)), libc::ENOENT)
    }
}

/// `struct inet_diag_req_v2` for one connection.
fn connection(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { Family::V4 } else { Family::V6 };
    // Extensions and padding are zero; the states do not count when a socket is named.
    let mut body = vec![family.number(), libc::IPPROTO_TCP as u8, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(remote.port().to_be_bytes());
    for address in [local, remote] {
        let at = body.len();
        match address.ip() {
            IpAddr::V4(ip) => body.extend(ip.octets()),
            IpAddr::V6(ip) => body.extend(ip.octets()),
        }
        body.resize(at + 16, 0);
    }
    // Any interface, any cookie (INET_DIAG_NOCOOKIE).
    body.extend(0_u32.to_ne_bytes());
    body.extend(u64::MAX.to_ne_bytes());
    body
}

impl Channel {
    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let family = AddressFamily::Netlink;
        Ok(Self(socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?))
    }

    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let message = message(kind, flags | NLM_F_REQUEST | NLM_F_ACK, body);
        let fd = self.0.as_raw_fd();
        sendto(fd, &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0; 1024];
        let length = recv(fd, &mut answer, MsgFlags::empty())?;
        acknowledgement(answer.get(..length).unwrap_or_default())
    }
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        Channel::open(SockProtocol::NetlinkRoute).map(Self)
    }

    /// Adds a route; it is no error if it is there.
    pub(super) fn add_route(&self, route: &LocalRoute) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        tolerate(self.0.request(RTM_NEWROUTE, flags, &route.body()), libc::EEXIST)
    }

    /// Removes a route; it is no error if it is absent.
    pub(super) fn remove_route(&self, route: &LocalRoute) -> io::Result<()> {
        tolerate(self.0.request(RTM_DELROUTE, 0, &route.body()), libc::ESRCH)
    }

    /// Adds a rule; it is no error if it is there.
    pub(super) fn add_rule(&self, rule: &MarkRule) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        tolerate(self.0.request(RTM_NEWRULE, flags, &rule.body()), libc::EEXIST)
    }

    /// Removes a rule; whether it was there.
    pub(super) fn remove_rule(&self, rule: &MarkRule) -> io::Result<bool> {
        match self.0.request(RTM_DELRULE, 0, &rule.body()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl LocalRoute {
    fn body(&self) -> Vec<u8> {
        let length = self.prefix.map_or(0, |(_, length)| length);
        // struct rtmsg; the table stands in an attribute, since it may not fit into a byte.
        let family = self.family.number();
        let mut body = vec![family, length, 0, 0, 0, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL];
        body.extend(0_u32.to_ne_bytes());
        match self.prefix {
            Some((IpAddr::V4(ip), _)) => attribute(&mut body, RTA_DST, &ip.octets()),
            Some((IpAddr::V6(ip), _)) => attribute(&mut body, RTA_DST, &ip.octets()),
            None => {}
        }
        attribute(&mut body, RTA_OIF, &LOOPBACK_INDEX.to_ne_bytes());
        attribute(&mut body, RTA_TABLE, &self.table.to_ne_bytes());
        body
    }
}

impl MarkRule {
    fn body(&self) -> Vec<u8> {
        // struct fib_rule_hdr.
        let mut body = vec![self.family.number(), 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL];
        body.extend(0_u32.to_ne_bytes());
        attribute(&mut body, FRA_PRIORITY, &self.priority.to_ne_bytes());
        attribute(&mut body, FRA_FWMARK, &self.mark.to_ne_bytes());
        attribute(&mut body, FRA_FWMASK, &self.mask.to_ne_bytes());
        attribute(&mut body, FRA_TABLE, &self.table.to_ne_bytes());
        body
    }
}

/// Appends a `struct rtattr`. All values used here are multiples of four bytes, so no padding.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence and port: one request at a time, so there is nothing to match.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Reads `struct nlmsgerr`: a negative errno, or 0.
fn acknowledgement(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected answer by the kernel")),
    }
}

fn tolerate(result: io::Result<()>, errno: i32) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_laid_out_as_the_kernel_reads_it() {
        let prefix = Some(("fd00::".parse().unwrap(), 64));
        let body = LocalRoute { family: Family::V6, prefix, table: 255 }.body();
        assert_eq!(body[..8], [10, 64, 0, 0, 0, 4, 254, 2]);
        assert_eq!(body.len(), 12 + 20 + 8 + 8);
        let message = message(RTM_NEWROUTE, NLM_F_REQUEST, &body);
        assert_eq!(message.len(), 64);
        assert_eq!(message[..4], 64_u32.to_ne_bytes());
    }

    #[test]
    fn a_connection_is_laid_out_as_the_kernel_reads_it() {
        let (local, remote) = ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:443".parse().unwrap());
        let body = connection(local, remote);
        assert_eq!(body.len(), 56);
        assert_eq!(body[..4], [2, 6, 0, 0]);
        assert_eq!(body[8..16], [0, 80, 1, 187, 10, 0, 0, 1]);
        assert_eq!(body[28..32], [10, 0, 0, 2]);
        assert_eq!(body[44..], [[0; 4], [255; 4], [255; 4]].concat());
    }

    #[test]
    fn answers_become_errors() {
        let mut answer = message(NLMSG_ERROR, 0, &0_i32.to_ne_bytes());
        acknowledgement(&answer).unwrap();
        answer[16..20].copy_from_slice(&(-libc::EEXIST).to_ne_bytes());
        let error = acknowledgement(&answer).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        assert!(tolerate(Err(error), libc::EEXIST).is_ok());
        assert!(acknowledgement(&answer[..18]).is_err());
        assert!(acknowledgement(&[]).is_err());
    }
}
