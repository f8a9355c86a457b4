//! What the proxy counts: Istio's `istio_tcp_*` with Istio's labels, pods, DNS.
//!
//! Counters are fetched when a connection opens and held by its report; while it lives, counting is an atomic addition. Which labels a
//! connection has is decided by [`Traffic::labels`] from what its journey found out.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::Histogram,
    },
};
use tropis_model::{identity::Identity, service::Service, workload::Workload};
use tropis_telemetry::{
    access::Direction,
    metrics::{Labels, Metrics},
};
use tropis_xds::client::{Counters, NODE_PROXY_TYPES};

/// All metrics of this program.
#[derive(Debug)]
pub struct ProxyMetrics {
    /// Connections.
    pub traffic: TrafficMetrics,
    /// Pods.
    pub pods: PodMetrics,
    /// DNS.
    pub dns: DnsMetrics,
}

/// `istio_tcp_*`.
#[derive(Debug, Clone, Default)]
pub struct TrafficMetrics {
    opened: Family<Labels, Counter>,
    closed: Family<Labels, Counter>,
    failed: Family<Labels, Counter>,
    received_bytes: Family<Labels, Counter>,
    sent_bytes: Family<Labels, Counter>,
    sockets_open: Family<Labels, Gauge>,
}

/// `workload_manager_*`.
#[derive(Debug, Clone, Default)]
pub struct PodMetrics {
    /// Pods that are served.
    pub active: Gauge,
    /// Pods that could not be started yet.
    pub pending: Gauge,
    /// Pods started.
    pub started: Counter,
    /// Pods stopped.
    pub stopped: Counter,
}

/// `istio_dns_*`.
#[derive(Debug, Clone)]
pub struct DnsMetrics {
    /// Questions that pods asked.
    pub requests: Family<Labels, Counter>,
    /// Questions passed on to the pod's resolver.
    pub upstream_requests: Family<Labels, Counter>,
    /// Those that the resolver did not answer.
    pub upstream_failures: Family<Labels, Counter>,
    /// How long the resolver took.
    pub upstream_seconds: Family<Labels, Histogram, fn() -> Histogram>,
}

impl ProxyMetrics {
    /// Registers everything, and `istio_build`.
    pub fn register(metrics: &Metrics) -> Self {
        let traffic = TrafficMetrics::default();
        let pods = PodMetrics::default();
        let dns = DnsMetrics {
            requests: Family::default(),
            upstream_requests: Family::default(),
            upstream_failures: Family::default(),
            upstream_seconds: Family::new_with_constructor(|| Histogram::new([0.0005, 0.001, 0.01, 0.1, 1.0, 5.0])),
        };
        metrics.register(|registry| {
            registry.register("istio_tcp_connections_opened", "TCP connections opened", traffic.opened.clone());
            registry.register("istio_tcp_connections_closed", "TCP connections closed", traffic.closed.clone());
            registry.register("istio_tcp_connections_failed", "TCP connections that failed", traffic.failed.clone());
            registry.register("istio_tcp_received_bytes", "Bytes from the side that opened the connection", traffic.received_bytes.clone());
            registry.register("istio_tcp_sent_bytes", "Bytes to the side that opened the connection", traffic.sent_bytes.clone());
            registry.register("istio_tcp_sockets_open", "Connections open now", traffic.sockets_open.clone());
            registry.register("workload_manager_active_proxy_count", "Pods that are served", pods.active.clone());
            registry.register("workload_manager_pending_proxy_count", "Pods that could not be started yet", pods.pending.clone());
            registry.register("workload_manager_proxies_started", "Pods started", pods.started.clone());
            registry.register("workload_manager_proxies_stopped", "Pods stopped", pods.stopped.clone());
            registry.register("istio_dns_requests", "DNS questions of pods", dns.requests.clone());
            registry.register("istio_dns_upstream_requests", "DNS questions passed on", dns.upstream_requests.clone());
            registry.register("istio_dns_upstream_failures", "DNS questions that no resolver answered", dns.upstream_failures.clone());
            registry.register("istio_dns_upstream_request_duration_seconds", "Time resolvers took", dns.upstream_seconds.clone());
            let build: Family<Labels, Gauge> = Family::default();
            let labels = Labels::new([("component", "ztunnel".into()), ("tag", env!("CARGO_PKG_VERSION").into())]);
            build.get_or_create(&labels).set(1);
            registry.register("istio_build", "What is running", build);
        });
        Self { traffic, pods, dns }
    }
}

/// Registers what the xDS client counts by itself.
pub fn register_xds(metrics: &Metrics, counters: Arc<Counters>) {
    metrics.register(|registry| registry.register_collector(Box::new(XdsCollector(counters))));
}

#[derive(Debug)]
struct XdsCollector(Arc<Counters>);

impl Collector for XdsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counted = &self.0;
        let mut family = |name: &str, help: &str, label: &'static str, values: &[(&str, &AtomicU64)]| -> Result<(), fmt::Error> {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (value, counter) in values {
                let counter = ConstCounter::new(counter.load(Ordering::Relaxed));
                counter.encode(family.encode_family(&[(label, *value)])?)?;
            }
            Ok(())
        };
        family(
            "istio_xds_connection_terminations",
            "Streams to the control plane that ended",
            "reason",
            &[
                ("ConnectionError", &counted.ended_by_connection_error),
                ("Error", &counted.ended_by_error),
                ("Reconnect", &counted.ended_by_reconnect),
                ("Complete", &counted.ended_completely),
            ],
        )?;
        let received = NODE_PROXY_TYPES.iter().filter_map(|known| Some((known.url(), counted.received.get(known)?)));
        let messages: Vec<_> = received.clone().map(|(url, received)| (url, &received.messages)).collect();
        family("istio_xds_message", "Responses of the control plane", "url", &messages)?;
        let bytes: Vec<_> = received.map(|(url, received)| (url, &received.bytes)).collect();
        family("istio_xds_message_bytes", "Bytes of responses of the control plane", "url", &bytes)
    }
}

/// What decides the labels of a connection.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// Who reports: the source's proxy (outbound) or the destination's.
    pub direction: Direction,
    /// The workload that called.
    pub source: Option<Arc<Workload>>,
    /// The identity that it proved.
    pub source_identity: Option<Identity>,
    /// The workload that was dialled.
    pub destination: Option<Arc<Workload>>,
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
    /// Carried in a tunnel.
    pub mutual_tls: bool,
}

impl Traffic {
    /// Istio's labels, in Istio's order.
    pub fn labels(&self) -> Labels {
        let mut labels = Vec::with_capacity(30);
        let text = |value: Option<Arc<str>>| value.filter(|value| !value.is_empty()).unwrap_or_else(|| "unknown".into());
        let service = |part: fn(&Service) -> Arc<str>| text(self.service.as_deref().map(part));
        let reporter = match self.direction {
            Direction::Outbound => "source",
            Direction::Inbound => "destination",
        };
        labels.push(("reporter", reporter.into()));
        let (source, destination) = (self.source.as_deref(), self.destination.as_deref());
        let source_principal = self.source_identity.as_ref().map(|identity| Arc::from(identity.to_string()));
        let destination_principal = destination.map(|workload| Arc::from(workload.identity.to_string()));
        let ends = [(&SOURCE, source, source_principal), (&DESTINATION, destination, destination_principal)];
        for (names, workload, principal) in ends {
            if names == &DESTINATION {
                labels.push(("destination_service", service(|it| it.hostname.hostname.clone())));
                labels.push(("destination_service_namespace", service(|it| it.hostname.namespace.clone())));
                labels.push(("destination_service_name", service(|it| it.name.clone())));
            }
            let part = |of: fn(&Workload) -> Arc<str>| text(workload.map(of));
            let values = [
                part(|it| it.workload_name.clone()),
                part(|it| it.canonical_name.clone()),
                part(|it| it.canonical_revision.clone()),
                part(|it| it.namespace.clone()),
                text(principal),
                part(|it| it.canonical_name.clone()),
                part(|it| it.canonical_revision.clone()),
                part(|it| it.cluster_id.clone()),
            ];
            labels.extend(names.iter().copied().zip(values));
        }
        labels.push(("request_protocol", "tcp".into()));
        labels.push((RESPONSE_FLAGS, "-".into()));
        labels.push(("connection_security_policy", if self.mutual_tls { "mutual_tls" } else { "unknown" }.into()));
        if source.is_some() || destination.is_some() {
            let place = |workload: Option<&Workload>, of: fn(&Workload) -> Arc<str>| text(workload.map(of));
            labels.push(("source_region", place(source, |it| it.locality.region.clone())));
            labels.push(("source_zone", place(source, |it| it.locality.zone.clone())));
            labels.push(("destination_region", place(destination, |it| it.locality.region.clone())));
            labels.push(("destination_zone", place(destination, |it| it.locality.zone.clone())));
        }
        Labels::new(labels)
    }
}

const RESPONSE_FLAGS: &str = "response_flags";
const SOURCE: [&str; 8] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
];
const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

/// The counters of one label set, fetched once.
#[derive(Debug)]
pub struct TrafficCounters {
    metrics: TrafficMetrics,
    labels: Labels,
    opened: Counter,
    closed: Counter,
    received_bytes: Counter,
    sent_bytes: Counter,
    sockets_open: Gauge,
}

impl TrafficCounters {
    fn fetch(metrics: &TrafficMetrics, traffic: &Traffic) -> Self {
        let labels = traffic.labels();
        let reporter = Labels::new(labels.first().cloned());
        Self {
            opened: metrics.opened.get_or_create_owned(&labels),
            closed: metrics.closed.get_or_create_owned(&labels),
            received_bytes: metrics.received_bytes.get_or_create_owned(&labels),
            sent_bytes: metrics.sent_bytes.get_or_create_owned(&labels),
            sockets_open: metrics.sockets_open.get_or_create_owned(&reporter),
            metrics: metrics.clone(),
            labels,
        }
    }

    /// A connection of these labels opened.
    pub fn opened(&self) {
        self.opened.inc();
        self.sockets_open.inc();
    }

    /// So many more bytes came from, and went to, the side that opened it.
    pub fn moved(&self, from_source: u64, to_source: u64) {
        if from_source > 0 {
            self.received_bytes.inc_by(from_source);
        }
        if to_source > 0 {
            self.sent_bytes.inc_by(to_source);
        }
    }

    /// It closed; `response_flags` is `-` unless it failed.
    pub fn closed(&self, response_flags: &str) {
        self.sockets_open.dec();
        if response_flags == "-" {
            self.closed.inc();
            return;
        }
        let labels = self.labels.with(RESPONSE_FLAGS, response_flags);
        self.metrics.closed.get_or_create(&labels).inc();
        self.metrics.failed.get_or_create(&labels).inc();
    }
}

/// The counters that a worker fetched lately, so that opening a connection like one before builds no labels.
#[derive(Debug, Default)]
pub struct CounterCache {
    entries: RefCell<HashMap<CacheKey, Cached>>,
}

/// Label sets that a worker keeps at hand; when there are more, it starts again.
const MAX_CACHED: usize = 4096;

#[derive(Debug, PartialEq, Eq, Hash)]
struct CacheKey {
    outbound: bool,
    mutual_tls: bool,
    source: usize,
    destination: usize,
    service: usize,
    source_identity: Option<Identity>,
}

#[derive(Debug)]
struct Cached {
    /// Held so that the addresses in the key stay theirs.
    _traffic: Traffic,
    counters: Rc<TrafficCounters>,
}

impl CounterCache {
    /// The counters for `traffic`.
    pub fn counters(&self, metrics: &TrafficMetrics, traffic: Traffic) -> Rc<TrafficCounters> {
        fn place<T>(of: Option<&Arc<T>>) -> usize {
            of.map_or(0, |it| Arc::as_ptr(it) as usize)
        }
        let key = CacheKey {
            outbound: traffic.direction == Direction::Outbound,
            mutual_tls: traffic.mutual_tls,
            source: place(traffic.source.as_ref()),
            destination: place(traffic.destination.as_ref()),
            service: place(traffic.service.as_ref()),
            source_identity: traffic.source_identity.clone(),
        };
        let mut entries = self.entries.borrow_mut();
        if let Some(cached) = entries.get(&key) {
            return cached.counters.clone();
        }
        if entries.len() >= MAX_CACHED {
            entries.clear();
        }
        let counters = Rc::new(TrafficCounters::fetch(metrics, &traffic));
        entries.insert(key, Cached { _traffic: traffic, counters: counters.clone() });
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic() -> Traffic {
        let workload =
            |name: &str| Arc::new(Workload::new(format!("//Pod/shop/{name}"), name, Identity::new("cluster.local", "shop", name)));
        Traffic {
            direction: Direction::Inbound,
            source: Some(workload("cart")),
            source_identity: Some(Identity::new("cluster.local", "shop", "cart")),
            destination: Some(workload("stock")),
            service: None,
            mutual_tls: true,
        }
    }

    #[test]
    fn labels_are_istios_and_say_unknown() {
        let metrics = Metrics::default();
        let own = ProxyMetrics::register(&metrics);
        let cache = CounterCache::default();
        let counters = cache.counters(&own.traffic, traffic());
        counters.opened();
        counters.moved(3, 4);
        counters.closed("DENY");
        let (_, text) = metrics.render("");
        for expected in [
            "istio_tcp_connections_opened_total{reporter=\"destination\",source_workload=\"cart\",",
            "source_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"",
            "destination_service=\"unknown\"",
            "connection_security_policy=\"mutual_tls\",source_region=\"unknown\"",
            "response_flags=\"DENY\"",
            "istio_tcp_sockets_open{reporter=\"destination\"} 0",
            "istio_build{component=\"ztunnel\"",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        let bytes =
            |name: &str| text.lines().find(|line| line.starts_with(name)).and_then(|line| line.rsplit(' ').next()).unwrap().to_owned();
        assert_eq!((bytes("istio_tcp_received_bytes_total{"), bytes("istio_tcp_sent_bytes_total{")), ("3".into(), "4".into()));
    }

    #[test]
    fn the_same_workloads_share_counters() {
        let own = ProxyMetrics::register(&Metrics::default());
        let (cache, first) = (CounterCache::default(), traffic());
        let one = cache.counters(&own.traffic, first.clone());
        assert!(Rc::ptr_eq(&one, &cache.counters(&own.traffic, first.clone())));
        assert!(!Rc::ptr_eq(&one, &cache.counters(&own.traffic, Traffic { mutual_tls: false, ..first })));
    }
}
