//! `call`: many requests by HTTP/1.1, HTTP/2 or gRPC, and who answered what. A connection a worker, made again when it ended.
//! Start at [`Call::run`]; one request on one connection is in `call/sender.rs`.

pub(super) mod sender;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use tokio::task::JoinSet;
use tropis_tests::testkit::calls::{Answer, Calls, NONCE, POD, VERSION};

use super::histogram::Histogram;
use super::milliseconds;
use crate::connection::{Dial, Failure, seconds};
use crate::print_line;
use sender::{Answered, Order, Sender};

/// Failures that are quoted.
const DETAILS: usize = 5;
/// Rest after a failure, so that a dead server does not make a busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(5);

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// HTTP/1.1
    H1,
    /// HTTP/2 with prior knowledge
    H2,
    /// gRPC over that, a message each way
    Grpc,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Call {
    /// For example http://reviews:9080/reviews/0
    #[arg(value_name = "URL")]
    pub(super) url: http::Uri,
    #[command(flatten)]
    pub(super) dial: Dial,
    #[arg(long, value_enum, default_value = "h1")]
    pub(super) protocol: Protocol,
    /// The method
    #[arg(long, short = 'X', default_value = "GET")]
    pub(super) method: http::Method,
    /// A header field to send, for example `end-user: jason`; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub(super) headers: Vec<String>,
    /// Another authority than the URL's
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(super) authority: Option<http::uri::Authority>,
    /// Bytes of each request's body
    #[arg(long, value_name = "BYTES", default_value_t = 0, conflicts_with = "text")]
    pub(super) body: usize,
    /// The body of each request
    #[arg(long, value_name = "TEXT")]
    pub(super) text: Option<String>,
    /// How many requests; without, until the time is over
    #[arg(long, short = 'n', value_name = "COUNT")]
    count: Option<u64>,
    /// How long
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Requests at once
    #[arg(long, short = 'c', default_value_t = 1)]
    concurrency: usize,
    /// Requests a second, all workers together; without, one after the other as fast as they go
    #[arg(long, value_name = "NUMBER")]
    rate: Option<f64>,
    /// A new connection for each request
    #[arg(long)]
    fresh: bool,
    /// Number the requests in `x-nonce`, after this text
    #[arg(long, value_name = "TEXT")]
    nonce: Option<String>,
    /// Tell each answer
    #[arg(long)]
    timeline: bool,
}

impl Call {
    pub(crate) async fn run(self) -> bool {
        let started = Instant::now();
        let mut report = Calls { command: "call".to_owned(), target: self.url.to_string(), ..Calls::default() };
        match Order::new(&self) {
            Ok(order) => self.all(Arc::new(order), &mut report, started).await,
            Err(failure) => note_failure(&mut report, &failure, None),
        }
        report.timeline.sort_by(|one, other| one.answered.total_cmp(&other.answered));
        report.ok = report.errors.is_empty() && report.answered > 0;
        report.milliseconds = milliseconds(started.elapsed());
        print_line(&report);
        report.ok
    }

    async fn all(&self, order: Arc<Order>, report: &mut Calls, started: Instant) {
        let shared = Arc::new(Shared {
            order,
            call: self.clone(),
            started,
            // One request, unless a number or a time is given.
            count: self.count.unwrap_or(if self.duration.is_some() { u64::MAX } else { 1 }),
            next: AtomicU64::new(0),
        });
        let mut workers: JoinSet<Worker> = (0..self.concurrency.max(1)).map(|_| Worker::new(shared.clone()).run()).collect();
        let mut latency = Histogram::default();
        while let Some(worker) = workers.join_next().await {
            let worker = worker.expect("workers are not cancelled");
            latency.add(&worker.latency);
            add(report, worker.report);
        }
        report.latency_microseconds = latency.latency();
    }
}

struct Shared {
    order: Arc<Order>,
    call: Call,
    started: Instant,
    count: u64,
    next: AtomicU64,
}

/// One of the callers at once, and what it saw.
struct Worker {
    shared: Arc<Shared>,
    open: Option<Sender>,
    report: Calls,
    latency: Histogram,
}

impl Worker {
    fn new(shared: Arc<Shared>) -> Self {
        Self { shared, open: None, report: Calls::default(), latency: Histogram::default() }
    }

    async fn run(mut self) -> Self {
        while let Some(number) = self.next().await {
            let nonce = self.shared.call.nonce.as_ref().map(|prefix| format!("{prefix}{number}"));
            let (began, sent) = (Instant::now(), now());
            let outcome = tokio::time::timeout(self.shared.call.dial.timeout, self.ask(nonce.as_deref())).await;
            let outcome = outcome.unwrap_or_else(|_| Err(sender::timed_out()));
            if outcome.is_err() || self.shared.call.fresh {
                self.open = None;
            }
            self.note(outcome, nonce, began, sent).await;
        }
        self
    }

    /// The number of the next request, when it is time for it.
    async fn next(&self) -> Option<u64> {
        let shared = &self.shared;
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        if number >= shared.count {
            return None;
        }
        if let Some(rate) = shared.call.rate {
            let due = shared.started + Duration::from_secs_f64(number as f64 / rate.max(0.001));
            tokio::time::sleep_until(due.into()).await;
        }
        let over = shared.call.duration.is_some_and(|duration| shared.started.elapsed() >= duration);
        (!over).then_some(number)
    }

    /// One request, on the connection that is open or on a new one. If the open one had ended before anything was done with the
    /// request, it goes out once more; that repeats nothing.
    async fn ask(&mut self, nonce: Option<&str>) -> Result<Answered, Failure> {
        let order = self.shared.order.clone();
        if let Some(sender) = &mut self.open {
            match sender.ask(order.request(nonce)).await {
                Ok(answered) => return Ok(answered),
                Err(refused) if refused.untouched => self.report.moved += 1,
                Err(refused) => return Err(refused.failure),
            }
        }
        self.report.connections += 1;
        let sender = self.open.insert(order.open(&self.shared.call.dial).await?);
        sender.ask(order.request(nonce)).await.map_err(|refused| refused.failure)
    }

    async fn note(&mut self, outcome: Result<Answered, Failure>, nonce: Option<String>, began: Instant, sent: f64) {
        let report = &mut self.report;
        let mut answer = Answer { sent, ..Answer::default() };
        match outcome {
            Ok(answered) => {
                self.latency.record(began.elapsed());
                report.answered += 1;
                *report.statuses.entry(answered.status).or_default() += 1;
                if let Some(status) = answered.grpc_status {
                    *report.grpc_statuses.entry(status).or_default() += 1;
                }
                let field = |name: &str| answered.headers.get(name).cloned().unwrap_or_default();
                (answer.status, answer.version, answer.pod) = (answered.status, field(VERSION), field(POD));
                answer.grpc_status = answered.grpc_status;
                answer.served = answered.status == 200 && (self.shared.call.protocol != Protocol::Grpc || answered.grpc_status == Some(0));
                if answer.served {
                    *report.versions.entry(field(VERSION)).or_default() += 1;
                    *report.pods.entry(field(POD)).or_default() += 1;
                } else {
                    report.lost.extend(nonce);
                }
                report.last_body = answered.body;
                report.last_headers = answered.headers;
                report.last_trailers = answered.trailers;
            }
            Err(failure) => {
                note_failure(report, &failure, nonce);
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
        }
        if self.shared.call.timeline {
            answer.answered = now();
            report.timeline.push(answer);
        }
    }
}

fn note_failure(report: &mut Calls, failure: &Failure, nonce: Option<String>) {
    *report.errors.entry(failure.kind).or_default() += 1;
    if report.details.len() < DETAILS {
        report.details.push(failure.detail.clone());
    }
    report.lost.extend(nonce);
}

/// Milliseconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0
}

fn add(total: &mut Calls, one: Calls) {
    fn sum<K: Ord>(total: &mut std::collections::BTreeMap<K, u64>, one: std::collections::BTreeMap<K, u64>) {
        for (key, count) in one {
            *total.entry(key).or_default() += count;
        }
    }
    total.answered += one.answered;
    total.moved += one.moved;
    total.connections += one.connections;
    sum(&mut total.statuses, one.statuses);
    sum(&mut total.grpc_statuses, one.grpc_statuses);
    sum(&mut total.versions, one.versions);
    sum(&mut total.pods, one.pods);
    sum(&mut total.errors, one.errors);
    total.details.extend(one.details);
    total.details.truncate(DETAILS);
    total.lost.extend(one.lost);
    total.timeline.extend(one.timeline);
    if !one.last_headers.is_empty() {
        (total.last_body, total.last_headers, total.last_trailers) = (one.last_body, one.last_headers, one.last_trailers);
    }
}

/// The name of the header field that numbers requests.
pub(super) const fn nonce_field() -> http::HeaderName {
    http::HeaderName::from_static(NONCE)
}
