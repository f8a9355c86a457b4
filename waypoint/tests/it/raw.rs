//! Callers that write by hand, byte by byte or frame by frame, on real sockets.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tropis_model::{route::Host, service::AppProtocol};

use crate::{
    witness::{Answers, Witness},
    world::{App, World, plain_host},
};

/// Whoever has not answered or closed by then never will.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A waypoint with a plain socket, before a witness.
pub(crate) async fn before_witness(host: Host, settings: &[(&str, &str)]) -> (World, Witness) {
    let world = plain_world(host, settings);
    let witness = Witness::new(Answers::InTheEnd).await;
    world.endpoint("reviews", "v1", &App::elsewhere(witness.address));
    (world, witness)
}

/// The same for the plain host.
pub(crate) async fn before_plain_witness(settings: &[(&str, &str)]) -> (World, Witness) {
    before_witness(plain_host("reviews"), settings).await
}

/// A waypoint with a plain socket for `reviews`, which has no endpoint yet.
pub(crate) fn plain_world(host: Host, settings: &[(&str, &str)]) -> World {
    let listeners = ("TROPIS_PLAIN_LISTENERS", "127.0.0.1:0=reviews.shop.svc.cluster.local:9080");
    let settings: Vec<_> = settings.iter().copied().chain([listeners]).collect();
    let world = World::at("127.0.0.1:0", &settings);
    world.service("reviews", "10.96.0.1", AppProtocol::Http11, host);
    world
}

/// Sends bytes on a connection of its own; the answers' statuses, when the waypoint has closed it.
pub(crate) async fn statuses(world: &World, bytes: &[u8]) -> Vec<u16> {
    answers(&until_closed(world, bytes).await)
}

/// Sends bytes on a connection of its own, and reads until the waypoint closes it.
pub(crate) async fn until_closed(world: &World, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(world.bound.plain[0]).await.unwrap();
    // It may be closed before all is written.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "not closed after {:?}: {:?}", String::from_utf8_lossy(bytes), String::from_utf8_lossy(&answer));
    answer
}

/// The statuses of answers that have a length.
pub(crate) fn answers(mut bytes: &[u8]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        statuses.push(head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap());
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
        bytes = bytes.get(end + 4 + length..).unwrap_or_default();
    }
    statuses
}

/// Frames of HTTP/2 (RFC 9113 §6).
pub(crate) mod frame {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;

    /// A frame.
    pub(crate) fn new(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// A header block whose fields are neither indexed nor compressed (RFC 7541 §6.2.2).
    pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                integer(&mut block, text.len());
                block.extend(text.as_bytes());
            }
        }
        block
    }

    /// A length of seven bits and more (RFC 7541 §5.1).
    fn integer(block: &mut Vec<u8>, number: usize) {
        let Some(mut rest) = number.checked_sub(127) else { return block.push(number as u8) };
        block.push(127);
        while rest >= 128 {
            block.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        block.push(rest as u8);
    }
}

/// What became of a stream, or of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A response.
    Status(u16),
    /// `RST_STREAM` with this error.
    Reset(u32),
    /// `GOAWAY` with this error.
    GoAway(u32),
    /// The connection was closed without a word.
    Closed,
}

pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// A connection of HTTP/2 whose frames are made by hand.
pub(crate) struct RawHttp2 {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

impl RawHttp2 {
    /// Opens a connection, with the preface and empty settings.
    pub(crate) async fn open(at: SocketAddr) -> Self {
        Self::begin(TcpStream::connect(at).await.unwrap()).await
    }

    /// Begins with the preface and empty settings.
    pub(crate) async fn begin(stream: TcpStream) -> Self {
        let mut connection = Self { stream, read: Vec::new() };
        connection.stream.set_nodelay(true).unwrap();
        connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        connection.send(&frame::new(frame::SETTINGS, 0, 0, &[])).await;
        connection
    }

    /// The other side of a connection, which takes so many streams at once.
    pub(crate) async fn accept(listener: &TcpListener, streams: u32) -> Self {
        let mut connection = Self { stream: listener.accept().await.unwrap().0, read: Vec::new() };
        connection.takes(streams).await;
        connection.stream.read_exact(&mut [0; 24]).await.unwrap();
        connection
    }

    /// Says that so many streams are taken at once.
    pub(crate) async fn takes(&mut self, streams: u32) {
        let setting = [&3_u16.to_be_bytes()[..], &streams.to_be_bytes()].concat();
        self.send(&frame::new(frame::SETTINGS, 0, 0, &setting)).await;
    }

    /// The stream of the next request.
    pub(crate) async fn request(&mut self) -> u32 {
        loop {
            let (kind, _, stream, _) = self.next().await.expect("a request comes");
            if kind == frame::HEADERS {
                return stream;
            }
        }
    }

    /// Sends bytes. The waypoint may have closed already.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next frame: kind, flags, stream, payload.
    pub(crate) async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        loop {
            if self.read.len() >= 9 {
                let length = usize::from(self.read[0]) << 16 | usize::from(self.read[1]) << 8 | usize::from(self.read[2]);
                if self.read.len() >= 9 + length {
                    let frame: Vec<u8> = self.read.drain(..9 + length).collect();
                    let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]);
                    return Some((frame[3], frame[4], stream, frame[9..].to_vec()));
                }
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await.expect("the waypoint says nothing");
            if !matches!(read, Ok(1..)) {
                return None;
            }
        }
    }

    /// What becomes of a stream.
    pub(crate) async fn answer(&mut self, wanted: u32) -> Answer {
        let error = |payload: &[u8]| u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]]);
        while let Some((kind, _, stream, payload)) = self.next().await {
            match kind {
                frame::HEADERS if stream == wanted => return Answer::Status(status(&payload)),
                frame::RST_STREAM if stream == wanted => return Answer::Reset(error(&payload)),
                frame::GOAWAY => return Answer::GoAway(error(&payload[4..])),
                _ => {}
            }
        }
        Answer::Closed
    }
}

/// The status in a response's header block: it is the first field, and its name is in the static table (RFC 7541 Appendix A).
fn status(block: &[u8]) -> u16 {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match block[0] {
        indexed @ 0x88..=0x8e => INDEXED[usize::from(indexed - 0x88)],
        _ => {
            let text = &block[2..2 + usize::from(block[1] & 127)];
            let digits = if block[1] & 128 == 0 { String::from_utf8(text.to_vec()).unwrap() } else { digits(text) };
            digits.parse().unwrap()
        }
    }
}

/// Three digits in the code of RFC 7541 Appendix B: `0` to `2` have five bits, the others six.
fn digits(text: &[u8]) -> String {
    let mut bits: Vec<u8> = text.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let mut digits = String::new();
    while digits.len() < 3 {
        let number = |bits: &[u8]| bits.iter().fold(0, |number, bit| number << 1 | u32::from(*bit));
        let (digit, length) = match number(&bits[..5]) {
            digit @ 0..=2 => (digit, 5),
            _ => (number(&bits[..6]) - 0b01_1001 + 3, 6),
        };
        digits.push(char::from_digit(digit, 10).unwrap());
        bits.drain(..length);
    }
    digits
}
