//! What tropisd counts.

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// Why a connection was refused or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RefusedConnection {
    /// All places are taken.
    Total,
    /// All places of its address are taken.
    Address,
    /// Its TLS handshake failed or took too long.
    Handshake,
    /// It proved nothing in time.
    Idle,
    /// It made too many calls with bad credentials.
    Credentials,
}

impl RefusedConnection {
    /// The label's value.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Address => "address",
            Self::Handshake => "handshake",
            Self::Idle => "idle",
            Self::Credentials => "credentials",
        }
    }
}

/// One label: `reason`.
type ReasonLabel = [(&'static str, &'static str); 1];

/// tropisd's metrics. Cloning shares them.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    certificates_signed: Counter,
    certificates_refused: Counter,
    callers_refused: Counter,
    connections: Gauge,
    connections_refused: Family<ReasonLabel, Counter>,
    clients: Gauge,
    generation: Gauge,
    objects: Gauge,
    findings: Gauge,
    resources_changed: Counter,
    compile_seconds: Histogram,
    reports_failed: Counter,
}

impl Metrics {
    /// Registers them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            certificates_signed: Counter::default(),
            certificates_refused: Counter::default(),
            callers_refused: Counter::default(),
            connections: Gauge::default(),
            connections_refused: Family::default(),
            clients: Gauge::default(),
            generation: Gauge::default(),
            objects: Gauge::default(),
            findings: Gauge::default(),
            resources_changed: Counter::default(),
            // From a tenth of a millisecond to some three seconds.
            compile_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            reports_failed: Counter::default(),
        };
        let name = |what: &str| format!("tropis_server_{what}");
        registry.register(name("certificates_signed"), "Certificates signed", metrics.certificates_signed.clone());
        registry.register(name("certificates_refused"), "Certificate requests refused", metrics.certificates_refused.clone());
        registry.register(name("callers_refused"), "Calls without good credentials", metrics.callers_refused.clone());
        registry.register(name("connections"), "Open connections to the proxies' port", metrics.connections.clone());
        registry.register(
            name("connections_refused"),
            "Connections to the proxies' port that were refused or cut off",
            metrics.connections_refused.clone(),
        );
        registry.register(name("clients"), "Connected xDS clients", metrics.clients.clone());
        registry.register(name("configuration_generation"), "Generation of the served configuration", metrics.generation.clone());
        registry.register(name("objects"), "Objects read from the source", metrics.objects.clone());
        registry.register(name("findings"), "Findings that stand", metrics.findings.clone());
        registry.register(
            name("resources_changed"),
            "Resources that changed in the served configuration",
            metrics.resources_changed.clone(),
        );
        registry.register(name("compile_seconds"), "Time to compile and publish a change", metrics.compile_seconds.clone());
        registry.register(name("reports_failed"), "Reports that could not be written back", metrics.reports_failed.clone());
        metrics
    }

    pub(crate) fn certificate_signed(&self) {
        self.certificates_signed.inc();
    }

    pub(crate) fn certificate_refused(&self) {
        self.certificates_refused.inc();
    }

    pub(crate) fn caller_refused(&self) {
        self.callers_refused.inc();
    }

    pub(crate) fn connections(&self, count: usize) {
        self.connections.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn connection_refused(&self, reason: RefusedConnection) {
        self.connections_refused.get_or_create(&[("reason", reason.text())]).inc();
    }

    pub(crate) fn clients(&self, count: usize) {
        self.clients.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn published(&self, generation: u64, changed: usize, seconds: f64) {
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.resources_changed.inc_by(changed as u64);
        self.compile_seconds.observe(seconds);
    }

    pub(crate) fn objects(&self, count: usize) {
        self.objects.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn findings(&self, count: usize) {
        self.findings.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn report_failed(&self) {
        self.reports_failed.inc();
    }
}
