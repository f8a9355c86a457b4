//! What the bench found: samples, medians, ratios to the baseline, as a table for people and as JSON for machines. Pure.

use std::fmt::Write;

use comfy_table::{Cell, CellAlignment, LineStyle, Table, TableStyle};
use serde::{Deserialize, Serialize};

use super::l7::report::L7;
use super::measure::{Figure, Placement};
use crate::testkit::Latency;

/// One measurement of one figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Bits, requests or connections per second.
    pub per_second: f64,
    /// How long one of them took; not for bulk.
    pub latency_microseconds: Option<Latency>,
    /// Processor seconds that the variant's proxies took, for each second measured.
    pub proxy_processors: f64,
}

/// All rounds of one figure for one variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Name of the variant.
    pub variant: String,
    /// One sample a round, in order.
    pub samples: Vec<Sample>,
    /// Median of the rates.
    pub median_per_second: f64,
    /// Lowest and highest rate, as shares of the median: how noisy the machine was.
    pub spread: (f64, f64),
    /// Median rate divided by the baseline's; absent for the baseline.
    pub ratio: Option<f64>,
    /// Median, over the rounds, of each percentile.
    pub latency_microseconds: Option<Latency>,
    /// Median of the proxies' processors.
    pub proxy_processors: f64,
}

/// One figure, compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// What was measured.
    pub figure: Figure,
    /// Between which pods.
    pub placement: Placement,
    /// The baseline first.
    pub series: Vec<Series>,
}

/// Memory of one process of a variant, in KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resident {
    /// Name of the variant.
    pub variant: String,
    /// The program, and its node where there is one a node.
    pub program: String,
    /// Resident set before the first load.
    pub idle_kib: u64,
    /// Resident set after the last one.
    pub loaded_kib: u64,
    /// Largest resident set of its life.
    pub peak_kib: u64,
}

/// The machine that the figures belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// Processor model.
    pub processor: String,
    /// Processors that can be used.
    pub processors: usize,
    /// Cargo's profile of the programs, as far as their folder tells.
    pub profile: String,
}

/// Everything that `cargo xtask bench` found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Rounds, each of all variants.
    pub rounds: usize,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// The figures.
    pub comparisons: Vec<Comparison>,
    /// Memory.
    pub resident: Vec<Resident>,
    /// What L7 costs; one for each way that was measured.
    #[serde(default)]
    pub l7: Vec<L7>,
    /// What could not be measured, and why.
    pub missing: Vec<String>,
}

impl Comparison {
    /// Compares variants by their samples; the first is the baseline. A variant without samples is left out.
    pub fn new(figure: Figure, placement: Placement, variants: Vec<(String, Vec<Sample>)>) -> Self {
        let mut series: Vec<Series> = Vec::new();
        for (variant, samples) in variants.into_iter().filter(|(_, samples)| !samples.is_empty()) {
            let baseline = series.first().map(|first| first.median_per_second);
            series.push(Series::new(variant, samples, baseline));
        }
        Self { figure, placement, series }
    }
}

impl Series {
    fn new(variant: String, samples: Vec<Sample>, baseline: Option<f64>) -> Self {
        let rates: Vec<f64> = samples.iter().map(|sample| sample.per_second).collect();
        let middle = median(&rates);
        let latencies: Vec<Latency> = samples.iter().filter_map(|sample| sample.latency_microseconds).collect();
        Self {
            variant,
            median_per_second: middle,
            spread: spread(&rates),
            ratio: baseline.map(|baseline| share(middle, baseline)),
            latency_microseconds: median_latency(&latencies),
            proxy_processors: median(&samples.iter().map(|sample| sample.proxy_processors).collect::<Vec<_>>()),
            samples,
        }
    }
}

pub(super) fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Lowest and highest value, as shares of the median.
pub(super) fn spread(values: &[f64]) -> (f64, f64) {
    let middle = median(values);
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(0.0, f64::max);
    (share(lowest, middle), share(highest, middle))
}

/// The middle value; between the two middle ones when their number is even; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

pub(super) fn median_latency(latencies: &[Latency]) -> Option<Latency> {
    let of = |part: fn(&Latency) -> f64| median(&latencies.iter().map(part).collect::<Vec<_>>());
    (!latencies.is_empty()).then(|| Latency {
        min: of(|latency| latency.min),
        mean: of(|latency| latency.mean),
        p50: of(|latency| latency.p50),
        p90: of(|latency| latency.p90),
        p99: of(|latency| latency.p99),
        p999: of(|latency| latency.p999),
        max: of(|latency| latency.max),
    })
}

impl Report {
    /// The tables, for a terminal.
    pub fn table(&self) -> String {
        let Machine { kernel, processor, processors, profile } = &self.machine;
        let mut text = format!("{processors} × {processor}, Linux {kernel}, {profile} build; ");
        add(&mut text, format_args!("median of {} rounds of {} s, variants interleaved\n", self.rounds, self.seconds));
        if !self.comparisons.is_empty() {
            add(&mut text, format_args!("{}\n", self.figures()));
        }
        if !self.resident.is_empty() {
            add(&mut text, format_args!("\n{}\n", self.memory()));
        }
        for l7 in &self.l7 {
            add(&mut text, format_args!("\n{}", l7.tables()));
        }
        for line in &self.missing {
            add(&mut text, format_args!("not measured: {line}\n"));
        }
        text
    }

    fn figures(&self) -> Table {
        let mut table = table(&["figure", "pods", "variant", "median", "ratio", "spread", "p50", "p90", "p99", "proxy CPUs"], 3);
        for comparison in &self.comparisons {
            for (index, series) in comparison.series.iter().enumerate() {
                let once = |text: String| if index == 0 { text } else { String::new() };
                let latency = |part: fn(&Latency) -> f64| series.latency_microseconds.as_ref().map(part).map(duration).unwrap_or_default();
                table.add_row([
                    once(comparison.figure.to_string()),
                    once(comparison.placement.to_string()),
                    series.variant.clone(),
                    comparison.figure.rate(series.median_per_second),
                    series.ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default(),
                    format!("{:.0}–{:.0} %", series.spread.0 * 100.0, series.spread.1 * 100.0),
                    latency(|latency| latency.p50),
                    latency(|latency| latency.p90),
                    latency(|latency| latency.p99),
                    if series.proxy_processors > 0.0 { format!("{:.2}", series.proxy_processors) } else { String::new() },
                ]);
            }
        }
        table
    }

    fn memory(&self) -> Table {
        let mut table = table(&["resident memory", "variant", "idle", "after load", "peak"], 2);
        for process in &self.resident {
            let mebibytes = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
            table.add_row([
                process.program.clone(),
                process.variant.clone(),
                mebibytes(process.idle_kib),
                mebibytes(process.loaded_kib),
                mebibytes(process.peak_kib),
            ]);
        }
        table
    }
}

/// Lines around header and end, none between rows.
const LINES: TableStyle = TableStyle::new()
    .top_border(LineStyle::none().fill('─').junction('─'))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

/// An empty table; the columns from `first_number` on hold numbers.
pub(super) fn table(header: &[&str], first_number: usize) -> Table {
    let mut table = Table::new();
    table.load_style(LINES);
    table.set_header(header.iter().map(Cell::new));
    for index in first_number..header.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

pub(super) fn duration(microseconds: f64) -> String {
    if microseconds < 1000.0 { format!("{microseconds:.0} µs") } else { format!("{:.2} ms", microseconds / 1000.0) }
}

fn add(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("writing to a String does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(per_second: f64, p99: f64) -> Sample {
        let latency = Latency { p99, ..Latency::default() };
        Sample { per_second, latency_microseconds: Some(latency), proxy_processors: 0.5 }
    }

    fn comparison() -> Comparison {
        let plain = vec![sample(1000.0, 10.0), sample(3000.0, 30.0), sample(2000.0, 20.0)];
        let mesh = vec![sample(900.0, 100.0), sample(1100.0, 2500.0)];
        let variants = vec![("no mesh".to_owned(), plain), ("gone".to_owned(), Vec::new()), ("Tropis".to_owned(), mesh)];
        Comparison::new(Figure::Requests { connections: 16 }, Placement::AcrossNodes, variants)
    }

    #[test]
    fn medians_and_ratios() {
        let comparison = comparison();
        let [plain, mesh] = &comparison.series[..] else { panic!("{comparison:?}") };
        assert_eq!((plain.median_per_second, plain.ratio, plain.spread), (2000.0, None, (0.5, 1.5)));
        assert_eq!((mesh.median_per_second, mesh.ratio), (1000.0, Some(0.5)));
        assert_eq!(plain.latency_microseconds.unwrap().p99, 20.0);
        assert_eq!(mesh.latency_microseconds.unwrap().p99, 1300.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn the_table_says_everything_and_json_comes_back() {
        let report = Report {
            machine: Machine { kernel: "6.18".to_owned(), processor: "Some CPU".to_owned(), processors: 2, profile: "release".to_owned() },
            rounds: 3,
            seconds: 2.0,
            comparisons: vec![comparison()],
            resident: vec![Resident {
                variant: "Tropis".to_owned(),
                program: "ztunnel a".to_owned(),
                idle_kib: 1024,
                loaded_kib: 2048,
                peak_kib: 4096,
            }],
            l7: Vec::new(),
            missing: vec!["istio-ztunnel: no such file".to_owned()],
        };
        let text = report.table();
        for part in [
            "2 × Some CPU",
            "requests, 16 connections",
            "across nodes",
            "no mesh",
            "0.500",
            "50–150 %",
            "1.30 ms",
            "4.0 MiB",
            "no such file",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert_eq!(serde_json::from_str::<Report>(&serde_json::to_string(&report).unwrap()).unwrap(), report);
    }
}
