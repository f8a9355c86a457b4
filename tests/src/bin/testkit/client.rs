//! The clients: a subcommand each, one connection (or many) and one JSON line. [`run`] dispatches; what they share is
//! `connection.rs`.

mod call;
mod converse;
mod exchange;
mod flood;
mod half_close;
mod histogram;
mod hold;
mod http;
mod load;
mod raw;
mod resolve;
mod storm;
mod stream;
mod transfer;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;
use tropis_tests::testkit::Exchange;

use crate::connection::{Connection, Failure, Target};
use crate::print_line;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Connect; optionally send a text and read the answer, and stay a while to see whether the connection is reset
    Connect(exchange::Connect),
    /// Send a text to an echo server and expect it back
    Echo(exchange::Echo),
    /// Read a line before sending anything (server-first), then echo
    Banner(exchange::Banner),
    /// Send single bytes, each in a write of its own, and expect all of them back
    Drip(exchange::Drip),
    /// Move many bytes and compare digests of both sides
    Stream(stream::Stream),
    /// Finish one direction while the other still carries data
    HalfClose(half_close::HalfClose),
    /// Hold many connections open at once, then echo on each
    Storm(storm::Storm),
    /// Get an http:// URL
    Get(http::Get),
    /// Send many requests by HTTP/1.1, HTTP/2 or gRPC, and count who answers what
    Call(call::Call),
    /// Move a large body up or down by HTTP, and compare digests
    Transfer(transfer::Transfer),
    /// Send messages one after the other on one WebSocket or gRPC stream, and expect each back
    Converse(converse::Converse),
    /// Send bytes as they are and show what comes back
    Raw(raw::Raw),
    /// Send what an attacker of HTTP sends, on many connections, for a while
    Flood(flood::Flood),
    /// Ask for a name, with a DNS message of our own or through the system's resolver
    Resolve(resolve::Resolve),
    /// Measure requests, connections or bulk bytes per second
    Load(load::Load),
    /// Keep a connection and echo on it whenever standard input (or --every) says `ping`; tells how it ends
    Hold(hold::Hold),
}

pub(crate) async fn run(command: Command) -> ExitCode {
    let ok = match command {
        Command::Connect(options) => options.run().await,
        Command::Echo(options) => options.run().await,
        Command::Banner(options) => options.run().await,
        Command::Drip(options) => options.run().await,
        Command::Stream(options) => options.run().await,
        Command::HalfClose(options) => options.run().await,
        Command::Storm(options) => options.run().await,
        Command::Get(options) => options.run().await,
        Command::Call(options) => options.run().await,
        Command::Transfer(options) => options.run().await,
        Command::Converse(options) => options.run().await,
        Command::Raw(options) => options.run().await,
        Command::Flood(options) => options.run().await,
        Command::Resolve(options) => options.run().await,
        Command::Load(options) => options.run().await,
        Command::Hold(options) => options.run().await,
    };
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Collects an [`Exchange`] while its command runs, and prints it.
struct Reporter {
    report: Exchange,
    started: Instant,
}

impl Reporter {
    fn new(command: &str, target: impl ToString) -> Self {
        let report = Exchange { command: command.to_owned(), target: target.to_string(), ..Exchange::default() };
        Self { report, started: Instant::now() }
    }

    fn connected(&mut self, connection: &Connection) {
        self.report.peer = Some(connection.peer.to_string());
        self.report.local = Some(connection.local.to_string());
        self.report.connect_milliseconds = Some(milliseconds(connection.took));
    }

    /// Prints the line; true when the command succeeded.
    fn finish(mut self, result: Result<(), Failure>) -> bool {
        self.report.ok = result.is_ok();
        if let Err(failure) = result {
            self.report.error = Some(failure.kind);
            self.report.at = Some(failure.at);
            self.report.detail = Some(failure.detail);
        }
        self.report.milliseconds = milliseconds(self.started.elapsed());
        print_line(&self.report);
        self.report.ok
    }
}

/// Milliseconds with microsecond resolution.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// Parses `COUNT`, `10K`, `64M`, `1G` (powers of 1024).
fn byte_count(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let factor: u64 = match unit.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return Err(format!("{text:?} is not a number of bytes (for example 4096, 64K, 1G)")),
    };
    let count: u64 = digits.parse().map_err(|_| format!("{text:?} is not a number of bytes (for example 4096, 64K, 1G)"))?;
    count.checked_mul(factor).ok_or_else(|| format!("{text:?} is too many"))
}

/// Text for a report: at most 64 KiB, and never invalid UTF-8.
fn readable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(64 * 1024)]).into_owned()
}

/// How long to stay connected, and what a target is called in help texts, are the same for several commands.
#[derive(Debug, Clone, clap::Args)]
struct To {
    /// Whom to connect to
    #[arg(value_name = "HOST:PORT")]
    target: Target,
    #[command(flatten)]
    dial: crate::connection::Dial,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts() {
        assert_eq!(byte_count("4096"), Ok(4096));
        assert_eq!(byte_count("64k"), Ok(64 << 10));
        assert_eq!(byte_count("1GiB"), Ok(1 << 30));
        for bad in ["", "x", "1T", "-1", "99999999999G"] {
            assert!(byte_count(bad).is_err(), "{bad}");
        }
    }
}
