//! `load`: what the bench measures. `requests` keeps connections alive and asks again and again, as fast as answers come or at a rate,
//! `connections` makes a new one each time, `bulk` writes as fast as it can. What is asked is in `load/ask.rs`, when in `load/pace.rs`.

mod ask;
mod http1;
mod http2;
mod pace;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use tokio::task::JoinSet;
use tropis_tests::testkit::{self, FailureKind, Step};

use super::To;
use super::histogram::Histogram;
use crate::connection::{Connection, Dial, Failure, seconds};
use crate::print_line;
use ask::Ask;
use pace::Pace;

/// Bytes of one write in bulk mode.
const BULK_BYTES: usize = 128 * 1024;
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
    /// What to ask for: a path and header fields, for example "/reviews/1 end-user:jason"; several are asked for in turn
    #[arg(long, value_name = "PATH [NAME:VALUE]…", default_value = "/ping")]
    ask: Vec<Ask>,
    /// Speak HTTP/2 with prior knowledge (requests only)
    #[arg(long)]
    http2: bool,
    /// Requests at once on each connection of HTTP/2
    #[arg(long, default_value_t = 1, requires = "http2")]
    streams: usize,
    /// Requests a second, all connections together, whether or not answers come (requests only); without, one after the other
    #[arg(long, value_name = "NUMBER")]
    rate: Option<f64>,
}

/// What one worker did in the time measured.
#[derive(Debug, Default)]
struct Done {
    latency: Histogram,
    /// Requests of the warm-up that finished.
    warming: u64,
    bytes: u64,
    streams: u64,
    errors: BTreeMap<FailureKind, u64>,
}

impl Done {
    /// Nothing was done for this reason.
    fn nothing(failure: &Failure) -> Self {
        let mut done = Self::default();
        done.failed(failure);
        done
    }

    fn failed(&mut self, failure: &Failure) {
        *self.errors.entry(failure.kind).or_default() += 1;
    }

    fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency);
        self.warming += other.warming;
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
    authority: String,
    asks: Arc<[Ask]>,
    rate: Option<f64>,
    started: Instant,
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
            Err(failure) => (Done::nothing(&failure), Duration::ZERO),
        };
        report.seconds = elapsed.as_secs_f64();
        report.finished = if self.mode == Mode::Bulk { done.streams } else { done.latency.count() };
        report.finished_in_all = report.finished + done.warming;
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
        let warm_up = if self.mode == Mode::Bulk { Duration::ZERO } else { self.warm_up };
        let measure_from = started + warm_up;
        let work = Work {
            dial: self.to.dial.clone(),
            address,
            authority: self.to.target.to_string(),
            asks: self.ask.clone().into(),
            rate: self.rate,
            started,
            measure_from,
            until: measure_from + self.duration,
        };
        let mut workers = JoinSet::new();
        for number in 0..self.connections {
            let work = work.clone();
            let (connections, streams) = (self.connections, self.streams);
            match self.mode {
                Mode::Requests if self.http2 => workers.spawn(async move { work.streams(number, connections, streams).await }),
                Mode::Requests => workers.spawn(async move { work.requests(number, connections).await }),
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

    fn pace(&self, number: usize, callers: usize) -> Result<Pace, Failure> {
        let pace = Pace::new(self.rate, number, callers, self.started);
        pace.map_err(|error| Failure::new(FailureKind::Other, Step::Send, error.to_string()))
    }

    fn note(&self, done: &mut Done, began: Instant, outcome: Result<usize, Failure>) {
        match outcome {
            Ok(_) if began < self.measure_from => done.warming += 1,
            Ok(bytes) => {
                done.latency.record(began.elapsed());
                done.bytes += bytes as u64;
            }
            Err(failure) if began >= self.measure_from => done.failed(&failure),
            Err(_) => {}
        }
    }

    async fn requests(&self, number: usize, callers: usize) -> Done {
        let mut done = Done::default();
        let requests: Vec<Vec<u8>> = self.asks.iter().map(|ask| http1::request(ask, &self.authority, true)).collect();
        let mut pace = match self.pace(number, callers) {
            Ok(pace) => pace,
            Err(failure) => return Done::nothing(&failure),
        };
        let mut open: Option<(Connection, Vec<u8>)> = None;
        // Not all callers ask for the same at the same time.
        let mut next = number;
        while self.running() {
            let Some((connection, buffer)) = open.as_mut() else {
                match self.dial.connect_to(self.address).await {
                    Ok(connection) => open = Some((connection, Vec::new())),
                    Err(failure) => {
                        self.note(&mut done, Instant::now(), Err(failure));
                        tokio::time::sleep(FAILURE_PAUSE).await;
                    }
                }
                continue;
            };
            let Ok(began) = pace.due().await else { return done };
            let outcome = http1::ask(connection, buffer, &requests[next % requests.len()]).await;
            next += 1;
            let failed = outcome.is_err();
            self.note(&mut done, began, outcome);
            if failed {
                open = None;
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
        }
        done
    }

    /// A connection of HTTP/2 and its callers. A caller ends with its first failure: what goes wrong is to be seen, not measured.
    async fn streams(&self, number: usize, connections: usize, streams: usize) -> Done {
        let opened = match self.dial.connect_to(self.address).await {
            Ok(connection) => http2::open(connection).await,
            Err(failure) => Err(failure),
        };
        let caller = match opened {
            Ok(caller) => caller,
            Err(failure) => return Done::nothing(&failure),
        };
        // Neighbours in time are on different connections.
        let callers = (0..streams).map(|stream| self.stream(caller.clone(), stream * connections + number, connections * streams));
        let callers: Vec<Done> = futures_util::future::join_all(callers).await;
        callers.iter().fold(Done::default(), |mut all, one| {
            all.add(one);
            all
        })
    }

    async fn stream(&self, mut caller: http2::Caller, number: usize, callers: usize) -> Done {
        let prepared = self.asks.iter().map(|ask| http2::request(ask, &self.authority)).collect::<Result<Vec<_>, _>>();
        let (requests, mut pace) = match prepared.and_then(|requests| Ok((requests, self.pace(number, callers)?))) {
            Ok(prepared) => prepared,
            Err(failure) => return Done::nothing(&failure),
        };
        let mut done = Done::default();
        let mut next = number;
        while self.running() {
            let Ok(began) = pace.due().await else { return done };
            let request = requests[next % requests.len()].clone();
            next += 1;
            let outcome = tokio::time::timeout(self.dial.timeout, http2::ask(&mut caller, request)).await;
            match outcome.unwrap_or_else(|_| Err(Failure::new(FailureKind::Timeout, Step::Receive, "no answer"))) {
                Ok(bytes) => self.note(&mut done, began, Ok(bytes)),
                Err(failure) => {
                    done.failed(&failure);
                    return done;
                }
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
        let mut buffer = Vec::new();
        let request = self.asks.first().map(|ask| http1::request(ask, &self.authority, false)).unwrap_or_default();
        let bytes = http1::ask(&mut connection, &mut buffer, &request).await?;
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
