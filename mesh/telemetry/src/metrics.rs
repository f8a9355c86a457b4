//! The registry of a program's metrics and the two text formats that scrapers ask for.
//!
//! Metrics live beside the code that counts; the binary registers them here. Names and labels of the standard ones are Istio's.

use std::{
    fmt::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder, text},
    metrics::gauge::ConstGauge,
    registry::Registry,
};

/// Content type of OpenMetrics text.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of the older Prometheus text.
pub const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A program's metrics. Cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        Self { registry: Arc::new(Mutex::new(registry)) }
    }
}

impl Metrics {
    /// Registers metrics; counters without their `_total`, which the format adds.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The content type and the text that answer a scrape with this `Accept` header.
    pub fn render(&self, accept: &str) -> (&'static str, String) {
        let mut encoded = String::with_capacity(64 * 1024);
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String fails only if a metric of ours refuses to be encoded, which its type rules out.
        if text::encode(&mut encoded, &registry).is_err() {
            tracing::error!("a metric could not be encoded");
        }
        match accept.contains("application/openmetrics-text") {
            true => (OPEN_METRICS, encoded),
            false => (PROMETHEUS_TEXT, prometheus_text(&encoded)),
        }
    }
}

/// A label set in the order in which it is printed. Cloning shares it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Labels(Arc<[(&'static str, Arc<str>)]>);

impl Labels {
    /// Names and values.
    pub fn new(labels: impl IntoIterator<Item = (&'static str, Arc<str>)>) -> Self {
        Self(labels.into_iter().collect())
    }

    /// The first name and value.
    pub fn first(&self) -> Option<&(&'static str, Arc<str>)> {
        self.0.first()
    }

    /// The same names, all with this value.
    pub fn all(&self, value: &str) -> Self {
        let value: Arc<str> = value.into();
        Self(self.0.iter().map(|(name, _)| (*name, value.clone())).collect())
    }

    /// The same labels, one of them with another value.
    pub fn with(&self, name: &str, value: &str) -> Self {
        Self(self.0.iter().map(|(own, old)| (*own, if *own == name { value.into() } else { old.clone() })).collect())
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, value) in self.0.iter() {
            let mut label = encoder.encode_label();
            let mut key = label.encode_label_key()?;
            key.write_str(name)?;
            let mut text = key.encode_label_value()?;
            text.write_str(value)?;
            text.finish()?;
        }
        Ok(())
    }
}

/// Rewrites OpenMetrics text into the older text format, where a counter's family carries the `_total` of its sample.
fn prometheus_text(open_metrics: &str) -> String {
    let mut output = String::with_capacity(open_metrics.len() + 1024);
    // HELP precedes TYPE, and only TYPE says whether the name needs its suffix.
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF" | "UNIT"), ..) => continue,
            (Some("#"), Some("HELP"), Some(name), text) => help = Some((name, text.unwrap_or_default())),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    other => ("", other),
                };
                if let Some((_, text)) = help.take().filter(|(helped, _)| *helped == name) {
                    output.push_str(&format!("# HELP {name}{suffix} {text}\n"));
                }
                output.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            }
            _ => {
                output.push_str(line);
                output.push('\n');
            }
        }
    }
    output
}

/// What every program says about its process, read at each scrape.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<i64>| -> Result<(), fmt::Error> {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("process_open_fds", "Open file descriptors", open_files())?;
        gauge("process_max_fds", "File descriptors that may be open", max_files())?;
        gauge("process_resident_memory_bytes", "Resident memory", resident_bytes())
    }
}

fn open_files() -> Option<i64> {
    // The directory is open itself while it is counted.
    std::fs::read_dir("/proc/self/fd").ok().and_then(|entries| i64::try_from(entries.count().saturating_sub(1)).ok())
}

fn max_files() -> Option<i64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<i64>().ok().map(|kibibytes| kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, family::Family};

    use super::*;

    #[test]
    fn each_format_is_what_its_scraper_reads() {
        let metrics = Metrics::default();
        let opened = Family::<Vec<(&'static str, &'static str)>, Counter>::default();
        opened.get_or_create(&vec![("reporter", "source")]).inc();
        metrics.register(|registry| registry.register("istio_tcp_connections_opened", "Connections opened", opened));
        let (kind, text) = metrics.render("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
        assert_eq!(kind, OPEN_METRICS);
        assert!(text.contains("# TYPE istio_tcp_connections_opened counter\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
        let (kind, text) = metrics.render("*/*");
        assert_eq!(kind, PROMETHEUS_TEXT);
        assert!(text.contains("# TYPE istio_tcp_connections_opened_total counter\n"), "{text}");
        assert!(text.contains("# HELP istio_tcp_connections_opened_total Connections opened"), "{text}");
        assert!(text.contains("istio_tcp_connections_opened_total{reporter=\"source\"} 1\n"), "{text}");
        assert!(!text.contains("# EOF"));
        assert!(text.contains("process_open_fds "), "{text}");
    }
}
