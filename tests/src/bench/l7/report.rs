//! What the L7 bench found: samples, medians, ratios to the baseline, as a table for people and as JSON for machines. Pure.

use std::fmt;

use comfy_table::Table;
use serde::{Deserialize, Serialize};

use super::Figure;
use crate::bench::report::{duration, median, median_latency, share, spread, table};
use crate::testkit::Latency;

/// Which way requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Client, L7 proxy, server, by plain HTTP, on one node.
    Plain,
    /// Client, ztunnel, waypoint (or not), ztunnel, server, across nodes.
    Hbone,
}

/// One round of one figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Requests per second when each caller asks again as soon as it is answered.
    pub per_second: f64,
    /// Those for each second of processor time, user and system, of all proxies on the way.
    pub per_processor_second: f64,
    /// The same of the L7 proxy alone; absent where there is none.
    pub l7_per_processor_second: Option<f64>,
    /// How long each took then.
    pub latency_microseconds: Latency,
    /// Requests per second that were answered when they were made at the rate that all variants share.
    pub steady_per_second: f64,
    /// Those for each second of processor time of all proxies on the way.
    pub steady_per_processor_second: f64,
    /// How long each took then.
    pub steady_latency_microseconds: Latency,
}

/// All rounds of one figure for one variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Name of the variant.
    pub variant: String,
    /// One sample a round, in order.
    pub samples: Vec<Sample>,
    /// The median of each part over the rounds.
    pub median: Sample,
    /// Lowest and highest [`Sample::per_processor_second`], as shares of the median: how noisy the machine was.
    pub spread: (f64, f64),
    /// Median [`Sample::per_processor_second`] divided by the baseline's; absent for the baseline.
    pub ratio: Option<f64>,
    /// Median p99 at the shared rate divided by the baseline's; absent for the baseline.
    pub p99_ratio: Option<f64>,
}

/// One figure, compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// What was measured.
    pub figure: Figure,
    /// The rate that all variants share, per second: half of what the slowest of them reached in the first round.
    pub rate_per_second: f64,
    /// The baseline first.
    pub series: Vec<Series>,
}

/// Memory of a variant's L7 proxy, in KiB.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Footprint {
    /// Name of the variant.
    pub variant: String,
    /// Resident set before the first load.
    pub idle_kib: u64,
    /// Resident set after the last one.
    pub loaded_kib: u64,
    /// Largest resident set of its life.
    pub peak_kib: u64,
    /// Resident set after the last load divided by the baseline's; absent for the baseline.
    pub loaded_ratio: Option<f64>,
    /// Largest resident set divided by the baseline's; absent for the baseline.
    pub peak_ratio: Option<f64>,
}

/// All figures of one way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct L7 {
    /// Which.
    pub way: Way,
    /// Worker threads of each L7 proxy.
    pub workers: usize,
    /// The figures.
    pub comparisons: Vec<Comparison>,
    /// Memory.
    pub footprints: Vec<Footprint>,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain HTTP",
            Self::Hbone => "HBONE",
        })
    }
}

impl Sample {
    fn median(samples: &[Self]) -> Self {
        let of = |part: fn(&Self) -> f64| median(&samples.iter().map(part).collect::<Vec<_>>());
        let latency = |part: fn(&Self) -> Latency| median_latency(&samples.iter().map(part).collect::<Vec<_>>()).unwrap_or_default();
        let l7: Vec<f64> = samples.iter().filter_map(|sample| sample.l7_per_processor_second).collect();
        Self {
            per_second: of(|sample| sample.per_second),
            per_processor_second: of(|sample| sample.per_processor_second),
            l7_per_processor_second: (!l7.is_empty()).then(|| median(&l7)),
            latency_microseconds: latency(|sample| sample.latency_microseconds),
            steady_per_second: of(|sample| sample.steady_per_second),
            steady_per_processor_second: of(|sample| sample.steady_per_processor_second),
            steady_latency_microseconds: latency(|sample| sample.steady_latency_microseconds),
        }
    }
}

impl Comparison {
    /// Compares variants by their samples; the first is the baseline.
    pub fn new(figure: Figure, rate_per_second: f64, variants: Vec<(String, Vec<Sample>)>) -> Self {
        let mut series: Vec<Series> = Vec::new();
        for (variant, samples) in variants {
            let median = Sample::median(&samples);
            let costs: Vec<f64> = samples.iter().map(|sample| sample.per_processor_second).collect();
            let baseline = series.first().map(|first| first.median);
            let ratio = |part: fn(&Sample) -> f64| baseline.map(|baseline| share(part(&median), part(&baseline)));
            series.push(Series {
                variant,
                spread: spread(&costs),
                ratio: ratio(|sample| sample.per_processor_second),
                p99_ratio: ratio(|sample| sample.steady_latency_microseconds.p99),
                median,
                samples,
            });
        }
        Self { figure, rate_per_second, series }
    }
}

impl Footprint {
    /// Memory of one variant, not yet compared.
    pub fn new(variant: &str, idle_kib: u64, loaded_kib: u64, peak_kib: u64) -> Self {
        Self { variant: variant.to_owned(), idle_kib, loaded_kib, peak_kib, loaded_ratio: None, peak_ratio: None }
    }

    /// Compares them with the first.
    pub fn compared(mut all: Vec<Self>) -> Vec<Self> {
        if let Some((baseline, others)) = all.split_first_mut() {
            for other in others {
                other.loaded_ratio = Some(share(other.loaded_kib as f64, baseline.loaded_kib as f64));
                other.peak_ratio = Some(share(other.peak_kib as f64, baseline.peak_kib as f64));
            }
        }
        all
    }
}

impl L7 {
    /// The tables, for a terminal.
    pub fn tables(&self) -> String {
        let what = match self.way {
            Way::Plain => "client → L7 proxy → server on one node, plain HTTP",
            Way::Hbone => "client → ztunnel → waypoint → ztunnel → server across nodes, HBONE",
        };
        let threads = if self.workers == 1 { "1 worker thread".to_owned() } else { format!("{} worker threads", self.workers) };
        let mut text = format!("{what}; {threads} an L7 proxy, statistics on, access log off\n{}\n", self.figures());
        if !self.footprints.is_empty() {
            text.push_str(&format!("{}\n", self.memory()));
        }
        text
    }

    fn figures(&self) -> Table {
        let (all, alone) = ("per CPU s", "waypoint alone");
        let header =
            ["figure", "variant", "full load", all, "ratio", "spread", alone, "at", "per CPU s ", "p50", "p99", "p99.9", "p99 ratio"];
        let mut table = table(&header, 2);
        for Comparison { figure, rate_per_second, series } in &self.comparisons {
            for (index, Series { variant, median, spread, ratio, p99_ratio, .. }) in series.iter().enumerate() {
                let ratio_text = |ratio: &Option<f64>| ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
                let alone = median.l7_per_processor_second.filter(|_| self.way == Way::Hbone);
                let latency = median.steady_latency_microseconds;
                table.add_row([
                    if index == 0 { figure.to_string() } else { String::new() },
                    variant.clone(),
                    format!("{:.0} /s", median.per_second),
                    format!("{:.0}", median.per_processor_second),
                    ratio_text(ratio),
                    format!("{:.0}–{:.0} %", spread.0 * 100.0, spread.1 * 100.0),
                    alone.map(|alone| format!("{alone:.0}")).unwrap_or_default(),
                    format!("{rate_per_second:.0} /s"),
                    format!("{:.0}", median.steady_per_processor_second),
                    duration(latency.p50),
                    duration(latency.p99),
                    duration(latency.p999),
                    ratio_text(p99_ratio),
                ]);
            }
        }
        table
    }

    fn memory(&self) -> Table {
        let mut table = table(&["resident memory", "idle", "after load", "ratio", "peak", "ratio"], 1);
        for Footprint { variant, idle_kib, loaded_kib, peak_kib, loaded_ratio, peak_ratio } in &self.footprints {
            let mebibytes = |kib: &u64| format!("{:.1} MiB", *kib as f64 / 1024.0);
            let ratio = |ratio: &Option<f64>| ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
            table.add_row([
                variant.clone(),
                mebibytes(idle_kib),
                mebibytes(loaded_kib),
                ratio(loaded_ratio),
                mebibytes(peak_kib),
                ratio(peak_ratio),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(per_processor_second: f64, p99: f64) -> Sample {
        let latency = Latency { p99, ..Latency::default() };
        Sample {
            per_second: 1000.0,
            per_processor_second,
            l7_per_processor_second: Some(per_processor_second),
            latency_microseconds: latency,
            steady_per_second: 500.0,
            steady_per_processor_second: per_processor_second / 2.0,
            steady_latency_microseconds: latency,
        }
    }

    fn l7() -> L7 {
        let figure = Figure { http2: true, connections: 4, streams: 32, body_bytes: 64 };
        let envoy = vec![sample(900.0, 200.0), sample(1000.0, 400.0), sample(1500.0, 300.0)];
        let ours = vec![sample(2500.0, 150.0)];
        let comparison = Comparison::new(figure, 500.0, vec![("envoy".to_owned(), envoy), ("Tropis".to_owned(), ours)]);
        let footprints = vec![Footprint::new("envoy", 1024, 2048, 40_960), Footprint::new("Tropis", 512, 1024, 10_240)];
        L7 { way: Way::Plain, workers: 1, comparisons: vec![comparison], footprints: Footprint::compared(footprints) }
    }

    #[test]
    fn ratios_are_to_the_baseline() {
        let L7 { comparisons, footprints, .. } = l7();
        let [envoy, ours] = &comparisons[0].series[..] else { panic!("{comparisons:?}") };
        assert_eq!((envoy.median.per_processor_second, envoy.spread, envoy.ratio), (1000.0, (0.9, 1.5), None));
        assert_eq!((ours.ratio, ours.p99_ratio), (Some(2.5), Some(0.5)));
        assert_eq!((footprints[0].peak_ratio, footprints[1].peak_ratio, footprints[1].loaded_ratio), (None, Some(0.25), Some(0.5)));
    }

    #[test]
    fn the_tables_say_everything_and_json_comes_back() {
        let l7 = l7();
        let text = l7.tables();
        for part in
            ["1 worker thread", "HTTP/2, 4 × 32 streams, 64 B", "envoy", "2500", "2.50", "90–150 %", "500 /s", "300 µs", "40.0 MiB", "0.25"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert_eq!(serde_json::from_str::<L7>(&serde_json::to_string(&l7).unwrap()).unwrap(), l7);
    }
}
