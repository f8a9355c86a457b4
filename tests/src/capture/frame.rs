//! From an Ethernet frame to a TCP segment: Ethernet II, IPv4 or IPv6 (with extension headers), TCP. Fragments and other protocols
//! are no segments.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Who sent it.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// The number of its first byte.
    pub sequence: u32,
    /// SYN.
    pub syn: bool,
    /// ACK.
    pub ack: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
    /// Its bytes.
    pub payload: Vec<u8>,
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
/// Hop-by-hop options, routing, destination options: headers to step over (RFC 8200 §4).
const EXTENSIONS: [u8; 3] = [0, 43, 60];

/// Reads a frame; `None` when it holds no whole TCP segment.
pub fn parse(frame: &[u8]) -> Option<Segment> {
    let packet = frame.get(14..)?;
    match u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]) {
        ETHERTYPE_IPV4 => ipv4(packet),
        ETHERTYPE_IPV6 => ipv6(packet),
        _ => None,
    }
}

fn ipv4(packet: &[u8]) -> Option<Segment> {
    let header = packet.first().filter(|first| **first >> 4 == 4).map(|first| usize::from(first & 0x0f) * 4)?;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    // Offset or "more fragments": not a whole segment.
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff != 0;
    if fragment || *packet.get(9)? != TCP {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> { Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?).into()) };
    // Zero: a segment beyond 64 KiB that offloading will cut.
    let end = if total == 0 { packet.len() } else { total };
    tcp(address(12)?, address(16)?, packet.get(header..end.min(packet.len()))?)
}

fn ipv6(packet: &[u8]) -> Option<Segment> {
    let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
    let end = if length == 0 { packet.len() } else { (40 + length).min(packet.len()) };
    let address = |at: usize| -> Option<IpAddr> { Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?).into()) };
    let (mut next, mut at) = (*packet.get(6)?, 40);
    while EXTENSIONS.contains(&next) {
        next = *packet.get(at)?;
        at += 8 + usize::from(*packet.get(at + 1)?) * 8;
    }
    if next != TCP {
        return None;
    }
    tcp(address(8)?, address(24)?, packet.get(at..end)?)
}

fn tcp(source: IpAddr, destination: IpAddr, segment: &[u8]) -> Option<Segment> {
    let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    let sequence = u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?);
    let header = usize::from(segment.get(12)? >> 4) * 4;
    let flags = *segment.get(13)?;
    Some(Segment {
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
        sequence,
        fin: flags & 0x01 != 0,
        syn: flags & 0x02 != 0,
        rst: flags & 0x04 != 0,
        ack: flags & 0x10 != 0,
        payload: segment.get(header..)?.to_vec(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A frame with this segment inside, for tests here and in `flow`.
    pub(crate) fn build(source: SocketAddr, destination: SocketAddr, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(source.port().to_be_bytes());
        tcp.extend(destination.port().to_be_bytes());
        tcp.extend(sequence.to_be_bytes());
        tcp.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        tcp.extend(payload);
        let mut frame = vec![0; 12];
        match (source.ip(), destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend(ETHERTYPE_IPV4.to_be_bytes());
                let total = u16::try_from(20 + tcp.len()).expect("short").to_be_bytes();
                frame.extend([0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, TCP, 0, 0]);
                frame.extend(from.octets().into_iter().chain(to.octets()));
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend(ETHERTYPE_IPV6.to_be_bytes());
                // With an extension header of eight bytes in between.
                let length = u16::try_from(8 + tcp.len()).expect("short").to_be_bytes();
                frame.extend([0x60, 0, 0, 0, length[0], length[1], 60, 64]);
                frame.extend(from.octets().into_iter().chain(to.octets()));
                frame.extend([TCP, 0, 1, 4, 0, 0, 0, 0]);
            }
            _ => unreachable!("one family"),
        }
        frame.extend(tcp);
        frame
    }

    #[test]
    fn reads_both_families() {
        for (from, to) in [("10.244.1.2:40000", "10.244.2.2:80"), ("[fd00::1]:40000", "[fd00::2]:80")] {
            let (from, to) = (from.parse().expect("an address"), to.parse().expect("an address"));
            let mut frame = build(from, to, 7, 0x18, b"hello");
            // Ethernet pads short frames.
            frame.extend([0; 4]);
            let segment = parse(&frame).expect("a segment");
            assert_eq!((segment.source, segment.destination, segment.sequence), (from, to, 7));
            assert_eq!((segment.payload.as_slice(), segment.ack, segment.syn), (b"hello".as_slice(), true, false));
        }
    }

    #[test]
    fn cut_frames_are_no_segments() {
        let frame = build("10.0.0.1:1".parse().expect("an address"), "10.0.0.2:2".parse().expect("an address"), 1, 0x10, b"x");
        for length in 0..frame.len() - 1 {
            assert!(parse(&frame[..length]).is_none_or(|segment| segment.payload.is_empty()), "{length}");
        }
    }
}
