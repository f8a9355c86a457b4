//! `load`: what the bench measures. `requests` keeps connections alive and asks again and again, `connections` makes a new one
//! each time, `bulk` writes as fast as it can. Requests are written by hand, so that the client costs as little as possible.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use tokio::task::JoinSet;
use tropis_tests::testkit::{self, FailureKind, Step};

use super::To;
use super::histogram::Histogram;
use crate::connection::{Connection, Dial, Failure, seconds};
use crate::print_line;

/// Bytes of one write in bulk mode.
const BULK_BYTES: usize = 128 * 1024;
/// Largest head or body of an answer.
const ANSWER_BYTES: usize = 1 << 20;
/// Rest after a failure, so that a dead server does not make a busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// HTTP requests on kept-alive connections, to `--http`
    Requests,
    /// A connection for each HTTP request, closed by the server, to `--http`
    Connections,
    /// Bytes, to `--discard`, which confirms their number
    Bulk,
}

#[derive(Debug, Args)]
pub(crate) struct Load {
    /// What to measure
    #[arg(value_enum)]
    mode: Mode,
    #[command(flatten)]
    to: To,
    /// Connections (or streams) at once
    #[arg(long, short = 'c', default_value_t = 1)]
    connections: usize,
    /// How long to measure
    #[arg(long, short = 'd', value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    duration: Duration,
    /// How long to do the same before, unmeasured
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
    warm_up: Duration,
    /// Path to ask for
    #[arg(long, default_value = "/ping")]
    path: String,
}

/// What one worker did in the time measured.
#[derive(Debug, Default)]
struct Done {
    latency: Histogram,
    bytes: u64,
    streams: u64,
    errors: BTreeMap<FailureKind, u64>,
}

impl Done {
    fn failed(&mut self, failure: &Failure) {
        *self.errors.entry(failure.kind).or_default() += 1;
    }

    fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency);
        self.bytes += other.bytes;
        self.streams += other.streams;
        for (kind, count) in &other.errors {
            *self.errors.entry(*kind).or_default() += count;
        }
    }
}

/// What each worker needs.
#[derive(Debug, Clone)]
struct Work {
    dial: Dial,
    address: SocketAddr,
    request: Vec<u8>,
    measure_from: Instant,
    until: Instant,
}

impl Load {
    pub(crate) async fn run(self) -> bool {
        let mut report = testkit::Load {
            command: "load".to_owned(),
            mode: self.mode.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default(),
            target: self.to.target.to_string(),
            connections: self.connections,
            ..testkit::Load::default()
        };
        let (done, elapsed) = match self.find_address(&mut report).await {
            Ok(address) => self.measure(address).await,
            Err(failure) => {
                let mut done = Done::default();
                done.failed(&failure);
                (done, Duration::ZERO)
            }
        };
        report.seconds = elapsed.as_secs_f64();
        report.finished = if self.mode == Mode::Bulk { done.streams } else { done.latency.count() };
        report.bytes = done.bytes;
        if report.seconds > 0.0 {
            report.rate_per_second = report.finished as f64 / report.seconds;
            report.bytes_per_second = report.bytes as f64 / report.seconds;
        }
        report.latency_microseconds = done.latency.latency();
        report.ok = done.errors.is_empty() && report.finished > 0;
        report.errors = done.errors;
        print_line(&report);
        report.ok
    }

    /// Resolves once and tries the address, so that a name costs nothing later and workers start on a server that is there.
    async fn find_address(&self, report: &mut testkit::Load) -> Result<SocketAddr, Failure> {
        let mut last = None;
        for address in self.to.dial.resolve(&self.to.target).await? {
            match self.to.dial.connect_to(address).await {
                Ok(connection) => {
                    report.peer = Some(connection.peer.to_string());
                    return Ok(address);
                }
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.expect("resolve gives at least one address"))
    }

    async fn measure(&self, address: SocketAddr) -> (Done, Duration) {
        let started = Instant::now();
        let keep_alive = if self.mode == Mode::Connections { "close" } else { "keep-alive" };
        let request = format!("GET {} HTTP/1.1\r\nhost: {}\r\nconnection: {keep_alive}\r\n\r\n", self.path, self.to.target);
        let warm_up = if self.mode == Mode::Bulk { Duration::ZERO } else { self.warm_up };
        let measure_from = started + warm_up;
        let work =
            Work { dial: self.to.dial.clone(), address, request: request.into_bytes(), measure_from, until: measure_from + self.duration };
        let mut workers = JoinSet::new();
        for _ in 0..self.connections {
            let work = work.clone();
            match self.mode {
                Mode::Requests => workers.spawn(async move { work.requests().await }),
                Mode::Connections => workers.spawn(async move { work.connections().await }),
                Mode::Bulk => workers.spawn(async move { work.bulk().await }),
            };
        }
        let mut total = Done::default();
        while let Some(done) = workers.join_next().await {
            total.add(&done.expect("workers are not cancelled"));
        }
        (total, started.elapsed().saturating_sub(warm_up))
    }
}

impl Work {
    fn running(&self) -> bool {
        Instant::now() < self.until
    }

    fn note(&self, done: &mut Done, began: Instant, outcome: Result<usize, Failure>) {
        if began < self.measure_from {
            return;
        }
        match outcome {
            Ok(bytes) => {
                done.latency.record(began.elapsed());
                done.bytes += bytes as u64;
            }
            Err(failure) => done.failed(&failure),
        }
    }

    async fn requests(&self) -> Done {
        let mut done = Done::default();
        let mut open: Option<(Connection, Vec<u8>)> = None;
        while self.running() {
            let began = Instant::now();
            let (connection, buffer) = match open.as_mut() {
                Some(open) => (&mut open.0, &mut open.1),
                None => match self.dial.connect_to(self.address).await {
                    Ok(connection) => {
                        open = Some((connection, Vec::with_capacity(4096)));
                        continue;
                    }
                    Err(failure) => {
                        self.note(&mut done, began, Err(failure));
                        tokio::time::sleep(FAILURE_PAUSE).await;
                        continue;
                    }
                },
            };
            let outcome = ask(connection, buffer, &self.request).await;
            let failed = outcome.is_err();
            self.note(&mut done, began, outcome);
            if failed {
                open = None;
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
        }
        done
    }

    async fn connections(&self) -> Done {
        let mut done = Done::default();
        while self.running() {
            let began = Instant::now();
            let outcome = self.one_connection().await;
            let failed = outcome.is_err();
            self.note(&mut done, began, outcome);
            if failed {
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
        }
        done
    }

    /// The server closes first, so that no local port of ours rests in TIME_WAIT and a long run does not use them up.
    async fn one_connection(&self) -> Result<usize, Failure> {
        let mut connection = self.dial.connect_to(self.address).await?;
        let mut buffer = Vec::with_capacity(1024);
        let bytes = ask(&mut connection, &mut buffer, &self.request).await?;
        connection.receive_rest(0).await?;
        Ok(bytes)
    }

    async fn bulk(&self) -> Done {
        let mut done = Done::default();
        match self.one_stream().await {
            Ok(bytes) => {
                done.bytes = bytes;
                done.streams = 1;
            }
            Err(failure) => done.failed(&failure),
        }
        done
    }

    /// Writes until the time is up, then waits until the server has confirmed all of it: only confirmed bytes count.
    async fn one_stream(&self) -> Result<u64, Failure> {
        let mut connection = self.dial.connect_to(self.address).await?;
        let block = vec![0x5a; BULK_BYTES];
        let mut sent = 0;
        while self.running() {
            connection.send(&block).await?;
            sent += BULK_BYTES as u64;
        }
        connection.finish().await?;
        let answer = connection.receive_line(32).await?;
        if answer == sent.to_string() { Ok(sent) } else { Err(Failure::mismatch(format!("sent {sent}, the server counted {answer}"))) }
    }
}

/// Writes the request and reads one answer with a `content-length`; gives the length of its body. `buffer` keeps nothing afterwards.
async fn ask(connection: &mut Connection, buffer: &mut Vec<u8>, request: &[u8]) -> Result<usize, Failure> {
    connection.send(request).await?;
    buffer.clear();
    let mut chunk = [0; 4096];
    loop {
        if let Some(head_end) = head_end(buffer) {
            let head = &buffer[..head_end];
            if !head.starts_with(b"HTTP/1.1 200") {
                return Err(Failure::mismatch(super::readable(head.split(|byte| *byte == b'\r').next().unwrap_or_default())));
            }
            let length = content_length(head).ok_or_else(|| Failure::mismatch("an answer without content-length"))?;
            match buffer.len().cmp(&(head_end + length)) {
                std::cmp::Ordering::Equal => return Ok(length),
                std::cmp::Ordering::Greater => return Err(Failure::mismatch("more bytes than the answer has")),
                std::cmp::Ordering::Less => {}
            }
        }
        match connection.receive(&mut chunk).await? {
            0 => return Err(Failure::new(FailureKind::Closed, Step::Receive, "the answer was cut")),
            length => buffer.extend_from_slice(&chunk[..length]),
        }
        if buffer.len() > ANSWER_BYTES {
            return Err(Failure::mismatch("an answer of more than 1 MiB"));
        }
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn content_length(head: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(head).ok()?;
    let field =
        |line: &str| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).map(|(_, v)| v.to_owned());
    text.lines().find_map(field)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_understood() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\ndate: x\r\n\r\npong";
        let end = head_end(answer);
        assert_eq!(end, Some(answer.len() - 4));
        assert_eq!(content_length(&answer[..answer.len() - 4]), Some(4));
        assert_eq!(head_end(b"HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(content_length(b"HTTP/1.1 200 OK\r\n\r\n"), None);
    }
}
