//! Byte streams from segments, and whether a stream is TLS.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::frame::Segment;

/// HBONE's port; TLS is expected to or from it.
pub const HBONE: u16 = 15008;
/// A TLS record's header (RFC 8446 §5.1).
const RECORD_HEADER: usize = 5;
/// The longest record that may be sent: 2^14 bytes and what encryption adds.
const RECORD_BYTES: usize = (1 << 14) + 256;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Direction {
    /// Who sends.
    pub source: SocketAddr,
    /// Who receives.
    pub destination: SocketAddr,
}

/// The bytes of every direction whose SYN was seen, and what could not be ordered.
#[derive(Debug, Default)]
pub struct Flows {
    /// By direction: the bytes, without gaps, as far as they go.
    pub streams: BTreeMap<Direction, Stream>,
}

/// The bytes of one direction.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// In order, from the first byte after SYN.
    pub bytes: Vec<u8>,
    /// Segments beyond a gap: bytes that were seen but cannot be ordered.
    pub loose: usize,
}

impl Flows {
    /// Puts segments together. Connections that began before the capture are left out. A pair of addresses that is used again
    /// later counts anew.
    pub fn assemble(segments: &[Segment]) -> Self {
        let mut flows = Self::default();
        let mut first: BTreeMap<Direction, u32> = BTreeMap::new();
        let mut waiting: BTreeMap<Direction, Vec<(u32, &[u8])>> = BTreeMap::new();
        for segment in segments {
            let direction = Direction { source: segment.source, destination: segment.destination };
            if segment.syn {
                let start = segment.sequence.wrapping_add(1);
                // Not a repeated SYN: another connection on the same ports; what it says is added to the stream.
                if first.get(&direction) != Some(&start) {
                    settle(&mut flows, &first, &mut waiting, direction);
                    first.insert(direction, start);
                }
                continue;
            }
            if first.contains_key(&direction) && !segment.payload.is_empty() {
                waiting.entry(direction).or_default().push((segment.sequence, &segment.payload));
            }
        }
        for direction in first.keys().copied().collect::<Vec<_>>() {
            settle(&mut flows, &first, &mut waiting, direction);
        }
        flows
    }

    /// The directions that carry bytes between `concerned` addresses and are not TLS of HBONE, with the reason.
    pub fn plaintext(&self, concerned: &impl Fn(SocketAddr) -> bool) -> Vec<String> {
        let between = self.streams.iter().filter(|(direction, _)| concerned(direction.source) && concerned(direction.destination));
        between
            .filter_map(|(direction, stream)| {
                Some(format!("{} -> {}: {}", direction.source, direction.destination, fault(direction, stream)?))
            })
            .collect()
    }

    /// Directions with bytes to or from HBONE's port.
    pub fn tunnels(&self) -> impl Iterator<Item = (&Direction, &Stream)> {
        self.streams.iter().filter(|(direction, stream)| is_hbone(direction) && !stream.bytes.is_empty())
    }
}

fn settle(flows: &mut Flows, first: &BTreeMap<Direction, u32>, waiting: &mut BTreeMap<Direction, Vec<(u32, &[u8])>>, direction: Direction) {
    let (Some(start), Some(mut parts)) = (first.get(&direction).copied(), waiting.remove(&direction)) else { return };
    // Distance from the first byte orders them even where the numbers wrap.
    parts.sort_by_key(|(sequence, _)| sequence.wrapping_sub(start));
    let stream = flows.streams.entry(direction).or_default();
    let mut next = 0usize;
    for (sequence, bytes) in parts {
        let at = sequence.wrapping_sub(start) as usize;
        match next.checked_sub(at) {
            Some(known) if known >= bytes.len() => {}
            Some(known) => {
                stream.bytes.extend(&bytes[known..]);
                next = at + bytes.len();
            }
            None => stream.loose += bytes.len(),
        }
    }
}

fn is_hbone(direction: &Direction) -> bool {
    direction.source.port() == HBONE || direction.destination.port() == HBONE
}

fn fault(direction: &Direction, stream: &Stream) -> Option<String> {
    if stream.bytes.is_empty() && stream.loose == 0 {
        return None;
    }
    if !is_hbone(direction) {
        let start = String::from_utf8_lossy(&stream.bytes[..stream.bytes.len().min(40)]).into_owned();
        return Some(format!("{} bytes that are not to or from port {HBONE}, beginning {start:?}", stream.bytes.len() + stream.loose));
    }
    if stream.loose > 0 {
        return Some(format!("{} bytes beyond a gap cannot be read as TLS", stream.loose));
    }
    not_tls(&stream.bytes)
}

/// Why `bytes` are not a sequence of TLS records (the last one may be cut off by the end of the capture).
pub fn not_tls(bytes: &[u8]) -> Option<String> {
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        // ChangeCipherSpec, alert, handshake, application data.
        if !(20..=23).contains(&rest[0]) {
            return Some(format!("byte {at} is {:#04x}, which begins no TLS record", rest[0]));
        }
        if rest.len() < RECORD_HEADER {
            return None;
        }
        if rest[1] != 3 || !(1..=3).contains(&rest[2]) {
            return Some(format!("the record at byte {at} has version {:#04x}{:02x}", rest[1], rest[2]));
        }
        let length = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
        if length > RECORD_BYTES {
            return Some(format!("the record at byte {at} claims {length} bytes"));
        }
        at += RECORD_HEADER + length;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::frame::{parse, tests::build};

    const CLIENT: &str = "10.244.1.2:40000";

    fn segments(server: &str, parts: &[(u32, u8, &[u8])]) -> Vec<Segment> {
        let (from, to) = (CLIENT.parse().expect("an address"), server.parse().expect("an address"));
        parts.iter().map(|(sequence, flags, bytes)| parse(&build(from, to, *sequence, *flags, bytes)).expect("a segment")).collect()
    }

    fn record(bytes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
        [&[23, 3, 3, length[0], length[1]], bytes].concat()
    }

    #[test]
    fn orders_and_drops_what_came_twice() {
        let start = u32::MAX - 1;
        let parts: [(u32, u8, &[u8]); 5] =
            [(start, 2, b""), (2, 16, b"defg"), (u32::MAX, 16, b"abc"), (u32::MAX, 16, b"abc"), (4, 16, b"fgh")];
        let flows = Flows::assemble(&segments("10.244.2.2:80", &parts));
        let stream = flows.streams.values().next().expect("one");
        assert_eq!(String::from_utf8_lossy(&stream.bytes), "abcdefgh");
        assert_eq!(stream.loose, 0);
    }

    #[test]
    fn connections_from_before_are_left_out() {
        assert!(Flows::assemble(&segments("10.244.2.2:80", &[(1, 16, b"old")])).streams.is_empty());
    }

    #[test]
    fn tells_tls_to_hbone_from_everything_else() {
        let all = |_| true;
        let verdict = |server: &str, bytes: &[u8]| Flows::assemble(&segments(server, &[(1, 2, b""), (2, 16, bytes)])).plaintext(&all);
        assert_eq!(verdict("10.244.2.2:15008", &[record(b"secret"), record(b"more")].concat()), Vec::<String>::new());
        assert_eq!(verdict("10.244.2.2:15008", b"PRI * HTTP/2.0").len(), 1);
        assert_eq!(verdict("10.244.2.2:80", &record(b"TLS, but beside the tunnel")).len(), 1);
        assert_eq!(verdict("10.244.2.2:80", b"").len(), 0, "a connection without payload");
    }

    #[test]
    fn a_gap_proves_nothing() {
        let flows = Flows::assemble(&segments("10.244.2.2:15008", &[(1, 2, b""), (9, 16, &record(b"x"))]));
        assert!(flows.plaintext(&|_| true)[0].contains("gap"));
    }

    #[test]
    fn records_must_chain() {
        assert_eq!(not_tls(&[record(b"a"), record(b"b")].concat()), None);
        assert_eq!(not_tls(&record(b"abc")[..6]), None, "cut off at the end");
        assert!(not_tls(&[record(b"a"), b"plain".to_vec()].concat()).is_some());
        assert!(not_tls(&[22, 2, 0, 0, 1, 0]).is_some());
    }
}
