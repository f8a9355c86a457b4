//! What the proxy counts: Istio's `istio_requests_total` and its like, `istio_tcp_*`, with Istio's labels of a waypoint.
//!
//! Counters are fetched by label set and kept at hand by each worker, so that a request like one before builds no labels. Which labels it
//! has is decided by [`Traffic::labels`].

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    fmt,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
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
use tropis_telemetry::metrics::{Labels, Metrics};
use tropis_xds::client::Counters;

use crate::stages::report::flags::Flags;

/// Istio's buckets, for durations in milliseconds and sizes in bytes alike.
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// All metrics of this program.
#[derive(Debug, Clone)]
pub struct ProxyMetrics {
    requests: Family<Labels, Counter>,
    durations: Histograms,
    request_bytes: Histograms,
    response_bytes: Histograms,
    connections_opened: Family<Labels, Counter>,
    connections_closed: Family<Labels, Counter>,
    received_bytes: Family<Labels, Counter>,
    sent_bytes: Family<Labels, Counter>,
    known: Arc<Mutex<HashSet<Labels>>>,
}

/// Label sets that are told apart, of requests and connections together: an application's answers and its callers make them, and each
/// costs some 5 KB here and as much in each scrape. What is beyond counts under the labels [`OTHER`].
const MAX_LABEL_SETS: usize = 10_000;
/// The value of each label of what is not told apart any more.
const OTHER: &str = "other";

impl ProxyMetrics {
    /// Registers everything, and `istio_build`.
    pub fn register(metrics: &Metrics) -> Self {
        let histograms = || Histograms::new_with_constructor(|| Histogram::new(BUCKETS));
        let own = Self {
            requests: Family::default(),
            durations: histograms(),
            request_bytes: histograms(),
            response_bytes: histograms(),
            connections_opened: Family::default(),
            connections_closed: Family::default(),
            received_bytes: Family::default(),
            sent_bytes: Family::default(),
            known: Arc::default(),
        };
        metrics.register(|registry| {
            registry.register("istio_requests", "Requests", own.requests.clone());
            registry.register(
                "istio_request_duration_milliseconds",
                "Time from a request's first byte to its response's last",
                own.durations.clone(),
            );
            registry.register("istio_request_bytes", "Bytes of requests, headers included", own.request_bytes.clone());
            registry.register("istio_response_bytes", "Bytes of responses, headers included", own.response_bytes.clone());
            registry.register("istio_tcp_connections_opened", "TCP connections opened", own.connections_opened.clone());
            registry.register("istio_tcp_connections_closed", "TCP connections closed", own.connections_closed.clone());
            registry.register("istio_tcp_received_bytes", "Bytes from the side that opened the connection", own.received_bytes.clone());
            registry.register("istio_tcp_sent_bytes", "Bytes to the side that opened the connection", own.sent_bytes.clone());
            let build: Family<Labels, Gauge> = Family::default();
            let labels = Labels::new([("component", "waypoint".into()), ("tag", env!("CARGO_PKG_VERSION").into())]);
            build.get_or_create(&labels).set(1);
            registry.register("istio_build", "What is running", build);
        });
        own
    }

    /// The labels under which this traffic is counted.
    fn labels(&self, traffic: &Traffic) -> Labels {
        let labels = traffic.labels();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&labels) {
            return labels;
        }
        if known.len() >= MAX_LABEL_SETS {
            return labels.all(OTHER);
        }
        known.insert(labels.clone());
        labels
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
        let mut family = |name: &str, help: &str, label: &'static str, values: Vec<(&str, u64)>| -> Result<(), fmt::Error> {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (value, count) in values {
                let counter = ConstCounter::new(count);
                counter.encode(family.encode_family(&[(label, value)])?)?;
            }
            Ok(())
        };
        let ends = vec![
            ("ConnectionError", counted.ended_by_connection_error.load(Ordering::Relaxed)),
            ("Error", counted.ended_by_error.load(Ordering::Relaxed)),
            ("Reconnect", counted.ended_by_reconnect.load(Ordering::Relaxed)),
            ("Complete", counted.ended_completely.load(Ordering::Relaxed)),
        ];
        family("istio_xds_connection_terminations", "Streams to the control plane that ended", "reason", ends)?;
        let received =
            |of: fn(&tropis_xds::client::Received) -> u64| counted.received.iter().map(move |(kind, one)| (kind.url(), of(one))).collect();
        let messages = received(|received| received.messages.load(Ordering::Relaxed));
        family("istio_xds_message", "Responses of the control plane", "url", messages)?;
        let bytes = received(|received| received.bytes.load(Ordering::Relaxed));
        family("istio_xds_message_bytes", "Bytes of responses of the control plane", "url", bytes)
    }
}

/// What decides the labels of a request or a connection.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// The original caller's workload.
    pub source: Option<Arc<Workload>>,
    /// The identity that it proved.
    pub source_identity: Option<Identity>,
    /// The endpoint that was chosen; `None` if none was.
    pub destination: Option<Arc<Workload>>,
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
    /// How it was spoken to.
    pub protocol: Protocol,
    /// Envoy's flags.
    pub flags: Flags,
}

/// What was spoken, with how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP: the status, 0 for none.
    Http(u16),
    /// gRPC: the status, and gRPC's.
    Grpc(u16, Option<u16>),
    /// Anything else.
    Tcp,
}

impl Protocol {
    /// The same, with statuses that exist: an application answers with what it likes, and each would be a series of its own.
    fn told(self) -> Self {
        let told = |status: u16| if status < 600 { status } else { UNKNOWN_HTTP_STATUS };
        match self {
            Self::Http(status) => Self::Http(told(status)),
            Self::Grpc(status, grpc) => Self::Grpc(told(status), grpc.map(|grpc| if grpc <= 16 { grpc } else { UNKNOWN_GRPC_STATUS })),
            Self::Tcp => Self::Tcp,
        }
    }
}

/// What statuses from 600 to 999 count as: clients treat them as 5xx (RFC 9110 §15).
const UNKNOWN_HTTP_STATUS: u16 = 599;
/// What gRPC statuses above 16 count as: UNKNOWN, as clients read them.
const UNKNOWN_GRPC_STATUS: u16 = 2;

impl Traffic {
    /// Istio's labels, in Istio's order.
    pub fn labels(&self) -> Labels {
        let text = |value: Option<Arc<str>>| value.filter(|value| !value.is_empty()).unwrap_or_else(|| "unknown".into());
        let (source, destination, service) = (self.source.as_deref(), self.destination.as_deref(), self.service.as_deref());
        let of = |workload: Option<&Workload>, part: fn(&Workload) -> Arc<str>| text(workload.map(part));
        let revision = source.map(|it| it.canonical_revision.clone()).filter(|it| !it.is_empty()).unwrap_or_else(|| "latest".into());
        let principal = |identity: Option<&Identity>| text(identity.map(|identity| identity.to_string().into()));
        let source_namespace = self.source_identity.as_ref().map(|identity| identity.namespace.clone());
        let mut labels = vec![
            ("reporter", "waypoint".into()),
            ("source_workload", of(source, |it| it.workload_name.clone())),
            ("source_canonical_service", of(source, |it| it.canonical_name.clone())),
            ("source_canonical_revision", revision),
            ("source_workload_namespace", text(source_namespace.or_else(|| source.map(|it| it.namespace.clone())))),
            ("source_principal", principal(self.source_identity.as_ref())),
            ("source_app", of(source, |it| it.canonical_name.clone())),
            ("source_version", of(source, |it| it.canonical_revision.clone())),
            ("source_cluster", of(source, |it| it.cluster_id.clone())),
            ("destination_workload", of(destination, |it| it.workload_name.clone())),
            ("destination_workload_namespace", of(destination, |it| it.namespace.clone())),
            ("destination_principal", principal(destination.map(|it| &it.identity))),
            ("destination_app", of(destination, |it| it.canonical_name.clone())),
            ("destination_version", of(destination, |it| it.canonical_revision.clone())),
            ("destination_service", text(service.map(|it| it.hostname.hostname.clone()))),
            ("destination_canonical_service", of(destination, |it| it.canonical_name.clone())),
            ("destination_canonical_revision", of(destination, |it| it.canonical_revision.clone())),
            ("destination_service_name", text(service.map(|it| it.name.clone()))),
            ("destination_service_namespace", text(service.map(|it| it.hostname.namespace.clone()))),
            ("destination_cluster", of(destination, |it| it.cluster_id.clone())),
        ];
        let (protocol, ended) = match self.protocol {
            Protocol::Tcp => ("tcp", None),
            Protocol::Http(status) => ("http", Some((status, None))),
            Protocol::Grpc(status, grpc) => ("grpc", Some((status, grpc))),
        };
        labels.push(("request_protocol", protocol.into()));
        if let Some((status, grpc)) = ended {
            labels.push(("response_code", status.to_string().into()));
            labels.push(("grpc_response_status", grpc.map(|status| status.to_string()).unwrap_or_default().into()));
        }
        labels.push(("response_flags", self.flags.word().map_or_else(|| self.flags.to_string().into(), Into::into)));
        labels.push(("connection_security_policy", if self.source_identity.is_some() { "mutual_tls" } else { "none" }.into()));
        Labels::new(labels)
    }
}

/// The counters of one label set of requests.
#[derive(Debug)]
pub struct RequestCounters {
    requests: Counter,
    durations: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

impl RequestCounters {
    /// A request of these labels ended.
    pub fn ended(&self, took: Duration, request_bytes: u64, response_bytes: u64) {
        self.requests.inc();
        self.durations.observe(took.as_secs_f64() * 1000.0);
        self.request_bytes.observe(request_bytes as f64);
        self.response_bytes.observe(response_bytes as f64);
    }
}

/// The counters of one label set of connections.
#[derive(Debug)]
pub struct ConnectionCounters {
    opened: Counter,
    closed: Counter,
    received_bytes: Counter,
    sent_bytes: Counter,
}

impl ConnectionCounters {
    /// A connection of these labels opened.
    pub fn opened(&self) {
        self.opened.inc();
    }

    /// A connection of these labels closed, after so many bytes from, and to, the side that opened it.
    pub fn closed(&self, from_source: u64, to_source: u64) {
        self.closed.inc();
        self.received_bytes.inc_by(from_source);
        self.sent_bytes.inc_by(to_source);
    }
}

/// The counters that a worker fetched lately.
#[derive(Debug, Default)]
pub struct CounterCache {
    requests: RefCell<HashMap<Key, (Traffic, Rc<RequestCounters>)>>,
    connections: RefCell<HashMap<Key, (Traffic, Rc<ConnectionCounters>)>>,
}

/// Label sets of either kind that a worker keeps at hand; when there are more, it starts again.
const MAX_CACHED: usize = 4096;

/// Tells label sets apart by the addresses of what they are of; the cache holds that, so that the addresses stay theirs.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    source: usize,
    destination: usize,
    service: usize,
    source_identity: Option<Identity>,
    protocol: Protocol,
    flags: Flags,
}

impl Key {
    fn of(traffic: &Traffic) -> Self {
        fn place<T>(of: Option<&Arc<T>>) -> usize {
            of.map_or(0, |it| Arc::as_ptr(it) as usize)
        }
        Self {
            source: place(traffic.source.as_ref()),
            destination: place(traffic.destination.as_ref()),
            service: place(traffic.service.as_ref()),
            source_identity: traffic.source_identity.clone(),
            protocol: traffic.protocol,
            flags: traffic.flags,
        }
    }
}

impl CounterCache {
    /// The counters of a request.
    pub fn request(&self, metrics: &ProxyMetrics, traffic: Traffic) -> Rc<RequestCounters> {
        let traffic = Traffic { protocol: traffic.protocol.told(), ..traffic };
        fetch(&self.requests, metrics, traffic, |labels| RequestCounters {
            requests: metrics.requests.get_or_create_owned(labels),
            durations: metrics.durations.get_or_create_owned(labels),
            request_bytes: metrics.request_bytes.get_or_create_owned(labels),
            response_bytes: metrics.response_bytes.get_or_create_owned(labels),
        })
    }

    /// The counters of a connection.
    pub fn connection(&self, metrics: &ProxyMetrics, traffic: Traffic) -> Rc<ConnectionCounters> {
        fetch(&self.connections, metrics, traffic, |labels| ConnectionCounters {
            opened: metrics.connections_opened.get_or_create_owned(labels),
            closed: metrics.connections_closed.get_or_create_owned(labels),
            received_bytes: metrics.received_bytes.get_or_create_owned(labels),
            sent_bytes: metrics.sent_bytes.get_or_create_owned(labels),
        })
    }
}

fn fetch<C>(
    cache: &RefCell<HashMap<Key, (Traffic, Rc<C>)>>,
    metrics: &ProxyMetrics,
    traffic: Traffic,
    make: impl FnOnce(&Labels) -> C,
) -> Rc<C> {
    let key = Key::of(&traffic);
    let mut cache = cache.borrow_mut();
    if let Some((_, counters)) = cache.get(&key) {
        return counters.clone();
    }
    if cache.len() >= MAX_CACHED {
        cache.clear();
    }
    let counters = Rc::new(make(&metrics.labels(&traffic)));
    cache.insert(key, (traffic, counters.clone()));
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic() -> Traffic {
        let workload =
            |name: &str| Arc::new(Workload::new(format!("//Pod/shop/{name}"), name, Identity::new("cluster.local", "shop", name)));
        Traffic {
            source: Some(workload("cart")),
            source_identity: Some(Identity::new("cluster.local", "shop", "cart")),
            destination: Some(workload("stock")),
            service: None,
            protocol: Protocol::Http(200),
            flags: Flags::NONE,
        }
    }

    #[test]
    fn labels_are_a_waypoints_in_istios_order() {
        let metrics = Metrics::default();
        let own = ProxyMetrics::register(&metrics);
        CounterCache::default().request(&own, traffic()).ended(Duration::from_millis(3), 10, 20);
        let refused =
            Traffic { destination: None, protocol: Protocol::Grpc(200, Some(14)), flags: Flags::NO_HEALTHY_UPSTREAM, ..traffic() };
        CounterCache::default().request(&own, refused).ended(Duration::ZERO, 0, 0);
        let (_, text) = metrics.render("");
        for expected in [
            "istio_requests_total{reporter=\"waypoint\",source_workload=\"cart\",source_canonical_service=\"cart\",",
            "destination_principal=\"spiffe://cluster.local/ns/shop/sa/stock\"",
            "destination_service=\"unknown\"",
            "request_protocol=\"http\",response_code=\"200\",grpc_response_status=\"\",response_flags=\"-\",connection_security_policy=\"mutual_tls\"} 1",
            "request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"14\",response_flags=\"UH\"",
            "istio_request_duration_milliseconds_bucket{",
            "destination_workload=\"unknown\"",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }

    #[test]
    fn an_application_makes_no_series_by_its_statuses() {
        let metrics = Metrics::default();
        let (own, cache) = (ProxyMetrics::register(&metrics), CounterCache::default());
        let (first, mut counters) = (traffic(), HashSet::new());
        for status in 600..1000 {
            let one = cache.request(&own, Traffic { protocol: Protocol::Http(status), ..first.clone() });
            let two = cache.request(&own, Traffic { protocol: Protocol::Grpc(200, Some(status)), ..first.clone() });
            counters.extend([Rc::as_ptr(&one), Rc::as_ptr(&two)]);
        }
        assert_eq!(counters.len(), 2);
        let (_, text) = metrics.render("");
        assert!(text.contains("response_code=\"599\"") && text.contains("grpc_response_status=\"2\""), "{text}");
    }

    #[test]
    fn label_sets_beyond_the_limit_share_one() {
        let metrics = Metrics::default();
        let own = ProxyMetrics::register(&metrics);
        let of = |number: usize| {
            let name = format!("caller-{number}");
            Traffic { source_identity: Some(Identity::new("cluster.local", "shop", name.as_str())), ..traffic() }
        };
        for number in 0..MAX_LABEL_SETS {
            own.labels(&of(number));
        }
        let other = own.labels(&of(MAX_LABEL_SETS));
        assert_eq!(other, own.labels(&of(MAX_LABEL_SETS + 1)));
        assert!(other != own.labels(&of(0)) && other.first() == Some(&("reporter", OTHER.into())));
    }

    #[test]
    fn the_same_ends_share_counters() {
        let own = ProxyMetrics::register(&Metrics::default());
        let (cache, first) = (CounterCache::default(), traffic());
        let one = cache.request(&own, first.clone());
        assert!(Rc::ptr_eq(&one, &cache.request(&own, first.clone())));
        assert!(!Rc::ptr_eq(&one, &cache.request(&own, Traffic { protocol: Protocol::Http(503), ..first })));
    }
}
