//! Reads a capture file: which TCP ports, which bytes, which version of TLS. Pure.
//!
//! Enough of Ethernet, IP and TCP for what passes between the nodes of a lab. A stream with a gap
//! ends at the gap. Sources: the pcap file format (draft-ietf-opsawg-pcap), RFC 791, RFC 8200,
//! RFC 9293, RFC 8446.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, bail, ensure};

const MAGIC: [u8; 4] = [0xd4, 0xc3, 0xb2, 0xa1];
const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;
const LINK_ETHERNET: u32 = 1;
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// TLS record and handshake types (RFC 8446 5.1, 4).
const RECORD_HANDSHAKE: u8 = 22;
const RECORD_TYPES: [u8; 4] = [20, 21, RECORD_HANDSHAKE, 23];
const SERVER_HELLO: u8 = 2;
const SUPPORTED_VERSIONS: u16 = 43;
/// The version number of TLS 1.3.
pub const TLS13: u16 = 0x0304;

/// One direction of a connection: from, to.
type Direction = (SocketAddr, SocketAddr);

/// What a capture has seen.
#[derive(Debug, Default)]
pub struct WireReport {
    packets: usize,
    /// Bytes of each direction by sequence number relative to the first one seen.
    streams: BTreeMap<Direction, Stream>,
    /// Addresses and ports that connections were opened to.
    servers: BTreeSet<SocketAddr>,
    /// Payloads that are not TCP's.
    others: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Stream {
    first: u32,
    parts: BTreeMap<u32, Vec<u8>>,
}

impl Stream {
    fn length(&self) -> usize {
        self.parts.values().map(Vec::len).sum()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::new();
        for (at, part) in &self.parts {
            let at = *at as usize;
            if at > bytes.len() {
                break;
            }
            // A retransmission repeats what is there.
            if let Some(new) = part.get(bytes.len() - at..) {
                bytes.extend(new);
            }
        }
        bytes
    }
}

impl WireReport {
    /// Reads the bytes of a capture file; a last packet that is not whole is left out.
    ///
    /// # Errors
    /// It is no pcap file of Ethernet packets.
    pub fn parse(file: &[u8]) -> anyhow::Result<Self> {
        ensure!(file.starts_with(&MAGIC), "not a little-endian pcap file");
        ensure!(word(file, 20)? & 0xffff == LINK_ETHERNET, "not a capture of Ethernet");
        let mut wire = Self::default();
        let mut rest = file.get(FILE_HEADER..).unwrap_or_default();
        while rest.len() >= PACKET_HEADER {
            let length = word(rest, 8)? as usize;
            let Some(packet) = rest.get(PACKET_HEADER..PACKET_HEADER + length) else { break };
            wire.packets += 1;
            // Too short for its own headers: nothing to learn.
            let _ = wire.ethernet(packet);
            rest = &rest[PACKET_HEADER + length..];
        }
        Ok(wire)
    }

    fn ethernet(&mut self, packet: &[u8]) -> Option<()> {
        match packet.get(12..14)? {
            [0x08, 0x00] => {
                let ip = packet.get(14..)?;
                let header = usize::from(ip.first()? & 0x0f) * 4;
                let total = usize::from(short(ip, 2)?);
                let address =
                    |at| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
                // Segments that the card would split have no length here.
                let payload = if total == 0 { ip.get(header..)? } else { ip.get(header..total)? };
                self.transport(*ip.get(9)?, address(12)?.into(), address(16)?.into(), payload)
            }
            [0x86, 0xdd] => {
                let ip = packet.get(14..)?;
                let length = usize::from(short(ip, 4)?);
                let address =
                    |at| Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
                let payload = if length == 0 { ip.get(40..)? } else { ip.get(40..40 + length)? };
                self.transport(*ip.get(6)?, address(8)?.into(), address(24)?.into(), payload)
            }
            _ => None,
        }
    }

    fn transport(&mut self, protocol: u8, from: IpAddr, to: IpAddr, segment: &[u8]) -> Option<()> {
        if protocol != TCP {
            self.others.push(segment.to_vec());
            return Some(());
        }
        let from = SocketAddr::new(from, short(segment, 0)?);
        let to = SocketAddr::new(to, short(segment, 2)?);
        let sequence = u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?);
        let header = usize::from(segment.get(12)? >> 4) * 4;
        let flags = *segment.get(13)?;
        let payload = segment.get(header..)?;
        if flags & SYN != 0 {
            if flags & ACK == 0 {
                self.servers.insert(to);
            }
            // A port used again is a new stream.
            let first = sequence.wrapping_add(1);
            self.streams.insert((from, to), Stream { first, parts: BTreeMap::new() });
            return Some(());
        }
        let stream = self
            .streams
            .entry((from, to))
            .or_insert_with(|| Stream { first: sequence, parts: BTreeMap::new() });
        if !payload.is_empty() {
            let at = sequence.wrapping_sub(stream.first);
            let known = stream.parts.get(&at).map_or(0, Vec::len);
            if payload.len() > known {
                stream.parts.insert(at, payload.to_vec());
            }
        }
        Some(())
    }

    /// Number of packets.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.packets
    }

    /// Where connections were opened to.
    #[must_use]
    pub fn servers(&self) -> &BTreeSet<SocketAddr> {
        &self.servers
    }

    /// TCP ports that connections were opened to, each once, in order.
    #[must_use]
    pub fn tcp_server_ports(&self) -> Vec<u16> {
        let ports: BTreeSet<u16> = self.servers.iter().map(SocketAddr::port).collect();
        ports.into_iter().collect()
    }

    /// Bytes of TCP payload in all.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.streams.values().map(Stream::length).sum()
    }

    /// Directions of connections from or to this port that are not TLS records throughout.
    #[must_use]
    pub fn not_tls(&self, port: u16) -> usize {
        let on =
            self.streams.iter().filter(|((from, to), _)| from.port() == port || to.port() == port);
        on.map(|(_, stream)| stream.bytes()).filter(|bytes| records(bytes).is_err()).count()
    }

    /// Bytes of TCP payload in streams whose either end has this port.
    #[must_use]
    pub fn bytes_on_port(&self, port: u16) -> usize {
        let on =
            self.streams.iter().filter(|((from, to), _)| from.port() == port || to.port() == port);
        on.map(|(_, stream)| stream.length()).sum()
    }

    /// Whether these bytes passed as they are, over TCP or not.
    #[must_use]
    pub fn contains(&self, bytes: &[u8]) -> bool {
        let inside = |text: &[u8]| text.windows(bytes.len()).any(|window| window == bytes);
        // By packet too: behind a gap a stream is not put together.
        self.streams
            .values()
            .any(|stream| stream.parts.values().any(|part| inside(part)) || inside(&stream.bytes()))
            || self.others.iter().any(|payload| inside(payload))
    }

    /// Versions of TLS that servers chose on any port, each once.
    #[must_use]
    pub fn tls_versions(&self) -> Vec<&'static str> {
        let streams = self.streams.values().map(Stream::bytes);
        let versions: BTreeSet<&'static str> = streams
            .filter_map(|bytes| {
                let records = records(&bytes).ok()?;
                let (_, hello) = records.into_iter().find(|(kind, _)| *kind == RECORD_HANDSHAKE)?;
                chosen_version(hello)
            })
            .map(|version| match version {
                TLS13 => "TLS 1.3",
                0x0303 => "TLS 1.2",
                _ => "another TLS version",
            })
            .collect();
        versions.into_iter().collect()
    }

    /// Versions that servers on this port chose, by connection, after checking that these streams
    /// hold nothing but TLS records.
    ///
    /// # Errors
    /// A stream from or to the port is not TLS.
    pub fn tls_on_port(&self, port: u16) -> anyhow::Result<BTreeMap<SocketAddr, u16>> {
        let mut versions = BTreeMap::new();
        for ((from, to), stream) in &self.streams {
            let bytes = stream.bytes();
            if (from.port() != port && to.port() != port) || bytes.is_empty() {
                continue;
            }
            let records = records(&bytes).with_context(|| format!("{from} to {to}"))?;
            if from.port() != port {
                continue;
            }
            let chosen = records
                .iter()
                .filter(|(kind, _)| *kind == RECORD_HANDSHAKE)
                .find_map(|(_, body)| chosen_version(body));
            if let Some(version) = chosen {
                versions.insert(*to, version);
            }
        }
        Ok(versions)
    }
}

/// The records of a stream of TLS; a last one that is not whole is left out.
fn records(bytes: &[u8]) -> anyhow::Result<Vec<(u8, &[u8])>> {
    let mut records = Vec::new();
    let mut rest = bytes;
    while let Some((header, body)) = rest.split_at_checked(5) {
        let kind = header[0];
        if !RECORD_TYPES.contains(&kind) || header[1] != 3 {
            bail!("not a TLS record: starts with {:02x?}", &rest[..rest.len().min(16)]);
        }
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let Some((body, after)) = body.split_at_checked(length) else { break };
        records.push((kind, body));
        rest = after;
    }
    Ok(records)
}

/// The version that a ServerHello chooses: its `supported_versions`, else `legacy_version`.
fn chosen_version(handshake: &[u8]) -> Option<u16> {
    if *handshake.first()? != SERVER_HELLO {
        return None;
    }
    let hello = handshake.get(4..)?;
    let legacy = short(hello, 0)?;
    let session = usize::from(*hello.get(34)?);
    // Cipher suite and compression follow the session id.
    let mut at = 35 + session + 3;
    let end = at + 2 + usize::from(short(hello, at).unwrap_or(0));
    at += 2;
    while at + 4 <= end {
        let length = usize::from(short(hello, at + 2)?);
        if short(hello, at)? == SUPPORTED_VERSIONS {
            return short(hello, at + 4);
        }
        at += 4 + length;
    }
    Some(legacy)
}

/// A big-endian number of two bytes.
fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A little-endian number of four bytes: the file's own.
fn word(bytes: &[u8], at: usize) -> anyhow::Result<u32> {
    let bytes = bytes.get(at..at + 4).context("the file ends in a header")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(ports: (u16, u16), sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut tcp = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        tcp.extend(sequence.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        tcp.extend(payload);
        let mut packet = [[0_u8; 12].as_slice(), &[8, 0, 0x45, 0]].concat();
        packet.extend(u16::try_from(20 + tcp.len()).unwrap().to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(tcp);
        let length = u32::try_from(packet.len()).unwrap().to_le_bytes();
        [[0; 8].as_slice(), &length, &length, &packet].concat()
    }

    fn file(packets: &[Vec<u8>]) -> Vec<u8> {
        let header = [MAGIC.as_slice(), &[0; 16], &LINK_ETHERNET.to_le_bytes()].concat();
        [header, packets.concat()].concat()
    }

    fn server_hello(version: Option<u16>) -> Vec<u8> {
        let extension = version.map_or(vec![], |v| {
            [SUPPORTED_VERSIONS.to_be_bytes(), [0, 2], v.to_be_bytes()].concat()
        });
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0x13, 1, 0]);
        body.extend(u16::try_from(extension.len()).unwrap().to_be_bytes());
        body.extend(extension);
        let length = u8::try_from(body.len()).unwrap();
        let handshake = [&[SERVER_HELLO, 0, 0, length], body.as_slice()].concat();
        [&[RECORD_HANDSHAKE, 3, 3, 0, length + 4], handshake.as_slice()].concat()
    }

    #[test]
    fn streams_are_put_together_whatever_the_order() {
        let packets = [
            packet((4000, 80), 9, SYN, b""),
            packet((4000, 80), 14, ACK, b"cret"),
            packet((4000, 80), 10, ACK, b"a se"),
            packet((4000, 80), 10, ACK, b"a secr"),
        ];
        let wire = WireReport::parse(&file(&packets)).unwrap();
        assert_eq!(wire.tcp_server_ports(), [80]);
        assert!(wire.contains(b"secret"), "{wire:?}");
        assert!(!wire.contains(b"secrets"));
        assert!(wire.tls_on_port(80).is_err(), "that was no TLS");
    }

    #[test]
    fn the_version_is_the_one_that_the_server_chose() {
        for (chosen, expected) in [(Some(TLS13), TLS13), (None, 0x0303)] {
            let packets = [
                packet((4000, 15008), 0, SYN, b""),
                packet((15008, 4000), 99, SYN | ACK, b""),
                packet((15008, 4000), 100, ACK, &server_hello(chosen)),
            ];
            let wire = WireReport::parse(&file(&packets)).unwrap();
            let versions: Vec<u16> = wire.tls_on_port(15008).unwrap().into_values().collect();
            assert_eq!(versions, [expected]);
        }
    }

    #[test]
    fn a_file_cut_anywhere_does_no_harm() {
        let whole = file(&[packet((1, 2), 0, SYN, b""), packet((1, 2), 1, ACK, b"abc")]);
        for end in 0..whole.len() {
            let _ = WireReport::parse(&whole[..end]);
        }
    }
}
