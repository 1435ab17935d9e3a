//! Connections of enrolled pods that the mesh does not carry: they were open when the pod was
//! enrolled, and stay as they were.
//!
//! Read from the kernel's tables (proc(5), `/proc/<pid>/net/tcp`): an established connection of the
//! pod that is not the agent's own, not captured, and not the far end of one that the agent made.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// State `TCP_ESTABLISHED` in the kernel's tables (include/net/tcp_states.h).
const ESTABLISHED: &str = "01";

/// One connection as its pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Older {
    /// The pod's end.
    pub(super) local: SocketAddr,
    /// The other end.
    pub(super) remote: SocketAddr,
    /// The pod listens on its end's port, so the other side opened it.
    pub(super) inbound: bool,
}

#[derive(Debug)]
struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    state: String,
    inode: u64,
}

/// The connections of the pod that process `pid` belongs to; `own` are this process's sockets, by
/// [`own_sockets`].
pub(super) fn of_pod(pid: u32, own: &HashSet<u64>) -> Vec<Older> {
    let tables = ["tcp", "tcp6"].map(|table| {
        std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default()
    });
    find(&tables.concat(), own)
}

/// Inodes of this process's sockets.
pub(super) fn own_sockets() -> HashSet<u64> {
    let Ok(files) = std::fs::read_dir("/proc/self/fd") else { return HashSet::new() };
    files
        .flatten()
        .filter_map(|file| std::fs::read_link(file.path()).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
        .collect()
}

/// Pure part: tables in, connections out.
fn find(tables: &str, own: &HashSet<u64>) -> Vec<Older> {
    let rows: Vec<Row> = tables.lines().filter_map(row).collect();
    let carried: HashSet<(SocketAddr, SocketAddr)> = rows
        .iter()
        .filter(|row| own.contains(&row.inode))
        .map(|row| (row.remote, row.local))
        .collect();
    let listening: HashSet<u16> =
        rows.iter().filter(|row| row.state == "0A").map(|row| row.local.port()).collect();
    rows.iter()
        .filter(|row| row.state == ESTABLISHED && !own.contains(&row.inode))
        .filter(|row| !carried.contains(&(row.local, row.remote)))
        .filter(|row| !local_only(row.remote.ip()))
        .map(|row| Older {
            local: row.local,
            remote: row.remote,
            inbound: listening.contains(&row.local.port()),
        })
        .collect()
}

/// Loopback, or an address that captured connections are redirected to.
fn local_only(ip: IpAddr) -> bool {
    let (prefix, length) = mesh_common::address::Ip::capture_prefix_v6();
    let captured = match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => {
            let shift = 128 - u32::from(length);
            u128::from(ip) >> shift == u128::from(prefix) >> shift
        }
    };
    ip.is_loopback() || captured
}

fn row(line: &str) -> Option<Row> {
    let words: Vec<&str> = line.split_whitespace().collect();
    Some(Row {
        local: address(words.get(1)?)?,
        remote: address(words.get(2)?)?,
        state: (*words.get(3)?).to_owned(),
        inode: words.get(9)?.parse().ok()?,
    })
}

/// `0100007F:1F90`: words of the address in host byte order, port in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Vec<[u8; 4]> = (0..ip.len() / 8)
        .map(|index| u32::from_str_radix(ip.get(index * 8..index * 8 + 8)?, 16).ok())
        .map(|word| word.map(u32::to_ne_bytes))
        .collect::<Option<_>>()?;
    let ip: IpAddr = match words.as_slice() {
        [word] => Ipv4Addr::from(*word).into(),
        [_, _, _, _] => {
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
sl local_address rem_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode
0: 00000000:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1 0
1: 0100410A:C001 0100420A:2328 01 00000000:00000000 00:00000000 00000000 0 0 2 1 0
2: 0100410A:C002 0100807F:3A99 01 00000000:00000000 00:00000000 00000000 0 0 3 1 0
3: 0100410A:C003 0100420A:3AA0 01 00000000:00000000 00:00000000 00000000 0 0 4 1 0
4: 0100410A:2328 0900420A:1111 01 00000000:00000000 00:00000000 00000000 0 0 5 1 0
5: 0900420A:1111 0100410A:2328 01 00000000:00000000 00:00000000 00000000 0 0 6 1 0
6: 0100410A:2328 0900420A:2222 01 00000000:00000000 00:00000000 00000000 0 0 7 1 0
";

    #[test]
    fn only_what_the_agent_does_not_carry_is_older() {
        let found = find(TABLE, &HashSet::from([4, 6]));
        let text: Vec<String> = found
            .iter()
            .map(|older| format!("{} {} {}", older.local, older.remote, older.inbound))
            .collect();
        assert_eq!(
            text,
            ["10.65.0.1:49153 10.66.0.1:9000 false", "10.65.0.1:9000 10.66.0.9:8738 true"]
        );
    }
}
