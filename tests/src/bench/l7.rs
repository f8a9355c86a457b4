//! What L7 costs, in figures: a waypoint within the mesh beside the same path without one (`l7/hbone.rs`), and the waypoint's plain HTTP
//! path beside another L7 proxy with the same routes (`l7/plain.rs`). Each figure is measured twice: with callers that ask again as soon
//! as they are answered, for what a request costs, and at one rate for all, for how long it takes. Start at [`measure`].

pub mod envoy;
mod hbone;
mod plain;
pub mod report;

pub(super) use hbone::through_the_mesh;
pub(super) use plain::beside_peers;

use std::fmt;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::measure::WARM_UP;
use super::processes::{self, Memory};
use super::{Options, SLACK, turn};
use crate::lab::PodHandle;
use crate::progress::Progress;
use crate::testkit::{Load, read};
use report::{Comparison, Footprint, L7, Sample};

/// Client, servers, services and routes; `MODE` is filled in.
const PODS: &str = include_str!("l7/pods.yaml");
const NAMESPACE: &str = "bench";
/// The waypoint's name.
const WAYPOINT: &str = "waypoint";
/// The service that has a waypoint and routes.
const THROUGH: &str = "through";
/// The service with the same endpoints and without.
const DIRECT: &str = "direct";
/// Port of the services for HTTP/1.1, and for HTTP/2.
const PORTS: [u16; 2] = [8080, 8081];
/// What the route of a user's own asks for in every request, and whom it leads to.
const HEADER: (&str, &str, &str) = ("end-user", "jason", "server-v2");
/// The rate at which latencies are compared, as a share of what the slowest reached: none is near its limit.
const RATE_SHARE: f64 = 0.5;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figure {
    /// HTTP/2 on both sides of the proxy, instead of HTTP/1.1.
    pub http2: bool,
    /// Connections from the client.
    pub connections: usize,
    /// Requests at once on each of them.
    pub streams: usize,
    /// Length of each answer's body.
    pub body_bytes: usize,
}

/// The figures, in their order.
const FIGURES: [Figure; 6] = [
    Figure { http2: false, connections: 16, streams: 1, body_bytes: 64 },
    Figure { http2: false, connections: 64, streams: 1, body_bytes: 64 },
    Figure { http2: false, connections: 16, streams: 1, body_bytes: 16 * 1024 },
    Figure { http2: true, connections: 16, streams: 4, body_bytes: 64 },
    Figure { http2: true, connections: 4, streams: 32, body_bytes: 64 },
    Figure { http2: true, connections: 16, streams: 4, body_bytes: 16 * 1024 },
];

/// One way from the client to the servers.
struct Subject {
    name: String,
    /// `HOST:PORT` for HTTP/1.1, and for HTTP/2.
    targets: [String; 2],
    /// All proxies on the way, by process id.
    proxies: Vec<u32>,
    /// The L7 proxy among them.
    l7: Option<u32>,
}

/// The ways that are compared, the baseline first.
struct Course {
    way: report::Way,
    client: PodHandle,
    subjects: Vec<Subject>,
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { http2, connections, streams, body_bytes } = *self;
        match http2 {
            true => write!(f, "HTTP/2, {connections} × {streams} streams")?,
            false => write!(f, "HTTP/1.1, {connections} connections")?,
        }
        if body_bytes < 1024 { write!(f, ", {body_bytes} B") } else { write!(f, ", {} KiB", body_bytes / 1024) }
    }
}

impl Figure {
    /// Arguments of the testkit for this load. Each of the three routes gets a third of the requests.
    fn arguments(self, target: &str, family: &str, duration: Duration, rate: Option<f64>) -> Vec<String> {
        let (name, value, _) = HEADER;
        let bytes = self.body_bytes;
        let asks =
            [format!("/ratings/7?bytes={bytes} {name}:{value}"), format!("/reviews/7?bytes={bytes}"), format!("/details/7?bytes={bytes}")];
        let words = ["load", "requests", target, family, "-c", &self.connections.to_string(), "-d", &duration.as_secs_f64().to_string()];
        let mut words = words.map(str::to_owned).to_vec();
        words.extend(["--warm-up".to_owned(), WARM_UP.as_secs_f64().to_string()]);
        words.extend(asks.into_iter().flat_map(|ask| ["--ask".to_owned(), ask]));
        if self.http2 {
            words.extend(["--http2".to_owned(), "--streams".to_owned(), self.streams.to_string()]);
        }
        words.extend(rate.into_iter().flat_map(|rate| ["--rate".to_owned(), rate.to_string()]));
        words
    }
}

impl Subject {
    fn target(&self, figure: Figure) -> &str {
        &self.targets[usize::from(figure.http2)]
    }

    fn memory(&self) -> Option<Memory> {
        processes::memory(self.l7?)
    }
}

/// A load, and the processor time that it took the proxies.
struct Run {
    load: Load,
    proxies: Duration,
    l7: Option<Duration>,
}

impl Run {
    /// Requests for each second of processor time.
    fn per_processor_second(&self, spent: Duration) -> f64 {
        let seconds = spent.as_secs_f64();
        if seconds > 0.0 { self.load.finished_in_all as f64 / seconds } else { 0.0 }
    }
}

/// Runs all loads, in rounds.
async fn measure(options: &Options, course: &Course, progress: &Progress) -> anyhow::Result<L7> {
    let figures: Vec<Figure> = FIGURES.into_iter().filter(|figure| options.wants(figure)).collect();
    let idle: Vec<Option<Memory>> = course.subjects.iter().map(Subject::memory).collect();
    let mut rates: Vec<f64> = Vec::new();
    let mut samples = vec![vec![Vec::new(); course.subjects.len()]; figures.len()];
    for round in 0..options.rounds {
        for (row, figure) in figures.iter().enumerate() {
            progress.step(format!("round {} of {}: {figure}, {}", round + 1, options.rounds, course.way));
            let mut full = Vec::new();
            for index in turn(round, course.subjects.len()) {
                full.push((index, run(options, course, index, *figure, None).await?));
            }
            if rates.len() == row {
                let slowest = full.iter().map(|(_, run)| run.load.rate_per_second).fold(f64::INFINITY, f64::min);
                rates.push((slowest * RATE_SHARE).round());
            }
            for (index, full) in full {
                let steady = run(options, course, index, *figure, Some(rates[row])).await?;
                samples[row][index].push(sample(&full, &steady));
            }
        }
    }
    let footprints = course.subjects.iter().zip(idle).filter_map(|(subject, idle)| {
        let (idle, loaded) = (idle?, subject.memory()?);
        Some(Footprint::new(&subject.name, idle.resident_kib, loaded.resident_kib, loaded.peak_kib))
    });
    let names = || course.subjects.iter().map(|subject| subject.name.clone());
    let comparisons = figures.iter().zip(samples).zip(&rates);
    Ok(L7 {
        way: course.way,
        workers: options.workers,
        comparisons: comparisons.map(|((figure, samples), rate)| Comparison::new(*figure, *rate, names().zip(samples).collect())).collect(),
        footprints: Footprint::compared(footprints.collect()),
    })
}

async fn run(options: &Options, course: &Course, index: usize, figure: Figure, rate: Option<f64>) -> anyhow::Result<Run> {
    let subject = &course.subjects[index];
    let arguments = figure.arguments(subject.target(figure), options.family().flag(), options.duration, rate);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let spent = || -> Duration { subject.proxies.iter().filter_map(|process| processes::processor_time(*process)).sum() };
    let spent_by_l7 = || subject.l7.and_then(processes::processor_time);
    let (before, l7_before) = (spent(), spent_by_l7());
    let said = course.client.exec_for(&arguments, options.duration + SLACK).await?;
    let load: Load = read(&said.stdout).with_context(|| format!("{figure}, {}: {}", subject.name, said.stderr.trim()))?;
    ensure!(load.ok, "{figure}, {}: the load failed: {}", subject.name, said.stdout.trim());
    let l7 = l7_before.zip(spent_by_l7()).map(|(before, after)| after.saturating_sub(before));
    Ok(Run { load, proxies: spent().saturating_sub(before), l7 })
}

fn sample(full: &Run, steady: &Run) -> Sample {
    Sample {
        per_second: full.load.rate_per_second,
        per_processor_second: full.per_processor_second(full.proxies),
        l7_per_processor_second: full.l7.map(|spent| full.per_processor_second(spent)),
        latency_microseconds: full.load.latency_microseconds.unwrap_or_default(),
        steady_per_second: steady.load.rate_per_second,
        steady_per_processor_second: steady.per_processor_second(steady.proxies),
        steady_latency_microseconds: steady.load.latency_microseconds.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_is_asked_for() {
        let figure = Figure { http2: true, connections: 4, streams: 32, body_bytes: 64 };
        let words = figure.arguments("server:1", "-4", Duration::from_secs(2), Some(500.0)).join(" ");
        let asks = "--ask /ratings/7?bytes=64 end-user:jason --ask /reviews/7?bytes=64 --ask /details/7?bytes=64";
        assert_eq!(words, format!("load requests server:1 -4 -c 4 -d 2 --warm-up 0.5 {asks} --http2 --streams 32 --rate 500"));
        let figure = Figure { http2: false, ..figure };
        assert!(!figure.arguments("x", "-6", Duration::from_secs(2), None).iter().any(|word| word == "--http2" || word == "--rate"));
    }

    #[test]
    fn figures_have_names_of_their_own() {
        let names: std::collections::BTreeSet<String> = FIGURES.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), FIGURES.len());
        assert!(names.contains("HTTP/2, 4 × 32 streams, 64 B") && names.contains("HTTP/1.1, 16 connections, 16 KiB"), "{names:?}");
    }
}
