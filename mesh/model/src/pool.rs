//! Pools: the endpoints that a route may use, how one is chosen, how many requests they take, when one is left out.
//!
//! Nouns only; `pick` chooses, `outlier` ejects, `limits` counts. A pool is one service port and subset: its counters and its ejections
//! are its own (Istio DestinationRule; defaults already filled in).

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use crate::{address::NamespacedHostname, workload::Locality};

/// The name of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    /// The service.
    pub host: NamespacedHostname,
    /// Its port.
    pub port: u16,
    /// Its subset; `None` is all endpoints.
    pub subset: Option<Arc<str>>,
}

impl fmt::Display for PoolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)?;
        match &self.subset {
            Some(subset) => write!(f, "/{subset}"),
            None => Ok(()),
        }
    }
}

/// A pool. Its endpoints are those of the service in the view that carry its labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Its name.
    pub key: PoolKey,
    /// Labels that an endpoint must carry; none is all endpoints.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// How an endpoint is chosen.
    pub balancer: Balancer,
    /// What near and far mean.
    pub locality: LocalityPreference,
    /// New endpoints start slowly.
    pub warmup: Option<Warmup>,
    /// How much it takes.
    pub limits: Limits,
    /// When an endpoint is left out; `None` never.
    pub outlier: Option<OutlierDetection>,
    /// Below this share of healthy endpoints all are used again, in percent; 0 is never.
    pub panic_threshold_percent: u8,
    /// HTTP's version towards the endpoints.
    pub upstream_version: UpstreamVersion,
    /// TLS towards the endpoints, inside the mesh's own.
    pub tls: UpstreamTls,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Balancer {
    /// Two are drawn; the one with fewer active requests is taken. By weight if weights differ.
    #[default]
    LeastRequest,
    /// In turn, by weight.
    RoundRobin,
    /// Drawn.
    Random,
    /// The same key gives the same endpoint while it is there.
    ConsistentHash {
        /// What is hashed.
        key: HashKey,
        /// How it leads to an endpoint.
        algorithm: HashAlgorithm,
    },
    /// The address that was called.
    Passthrough,
}

/// What is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// A header, by lower-case name.
    Header(Arc<str>),
    /// A cookie.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// Its path.
        path: Option<Arc<str>>,
        /// Its life; `None`: none is made; zero: a session's.
        ttl: Option<Duration>,
        /// More attributes.
        attributes: Vec<(Arc<str>, Arc<str>)>,
    },
    /// The caller's address.
    SourceAddress,
    /// A query parameter.
    QueryParameter(Arc<str>),
}

/// How a hash leads to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// A ring with at least so many points.
    Ring {
        /// Least number of points.
        minimum_size: u32,
    },
    /// Maglev's table.
    Maglev {
        /// Entries, a prime.
        table_size: u32,
    },
}

/// New endpoints start slowly: their weight grows from a minimum (Istio `warmup`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Warmup {
    /// Until the full weight.
    pub duration: Duration,
    /// The weight at first, in percent.
    pub minimum_percent: f64,
    /// 1.0 is linear; larger starts faster.
    pub aggression: f64,
}

/// What near and far mean for a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LocalityPreference {
    /// Nothing.
    #[default]
    None,
    /// By priority: the nearest, and the next one for the share that it cannot take (a priority is full with 5/7 of it healthy).
    Failover {
        /// From region to the region that takes over.
        regions: Vec<(Arc<str>, Arc<str>)>,
        /// Labels compared in order, `key` with the caller's own or `key=value`; when empty, region, zone and subzone are.
        labels: Vec<(Arc<str>, Option<Arc<str>>)>,
    },
    /// By share: the first rule that holds for the caller's locality. A locality that it does not name gets nothing.
    Distribute(Vec<Distribution>),
}

/// A rule of [`LocalityPreference::Distribute`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// The caller's locality.
    pub from: LocalityMatch,
    /// Shares in percent.
    pub to: Vec<(LocalityMatch, u32)>,
}

/// `region/zone/subzone` with `*` at the end for "any".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalityMatch {
    /// `None` is any.
    pub region: Option<Arc<str>>,
    /// `None` is any.
    pub zone: Option<Arc<str>>,
    /// `None` is any.
    pub subzone: Option<Arc<str>>,
}

impl LocalityMatch {
    /// Whether `locality` is one of these.
    pub fn holds(&self, locality: &Locality) -> bool {
        [(&self.region, &locality.region), (&self.zone, &locality.zone), (&self.subzone, &locality.subzone)]
            .into_iter()
            .all(|(wanted, found)| wanted.as_ref().is_none_or(|wanted| wanted == found))
    }
}

/// How much a pool takes, at one proxy process. `None` is no limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Connections to all its endpoints.
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection, whatever the version.
    pub max_pending_requests: Option<u32>,
    /// Requests under way, whatever the version.
    pub max_requests: Option<u32>,
    /// Retries under way.
    pub max_retries: Option<u32>,
    /// Retries as a share of what is under way; replaces `max_retries`.
    pub retry_budget: Option<RetryBudget>,
    /// Requests on one connection; 1 ends keep-alive.
    pub max_requests_per_connection: Option<u32>,
    /// Streams on one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// A connection without traffic or requests is closed after this.
    pub idle_timeout: Option<Duration>,
    /// A connection is closed after this.
    pub max_connection_duration: Option<Duration>,
    /// TCP keep-alive: `None` is the mesh's own.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// HTTP/2 PING.
    pub http2_keepalive: Option<Http2Keepalive>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: None,
            max_pending_requests: None,
            max_requests: None,
            max_retries: None,
            retry_budget: None,
            max_requests_per_connection: None,
            max_concurrent_streams: None,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            tcp_keepalive: None,
            http2_keepalive: None,
        }
    }
}

/// Retries as a share of what is under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Percent of active and pending requests.
    pub percent: f64,
    /// Never fewer than these.
    pub minimum_concurrency: u32,
}

/// TCP keep-alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Probes until the connection is dead.
    pub probes: Option<u32>,
    /// Quiet time before the first.
    pub time: Option<Duration>,
    /// Between two.
    pub interval: Option<Duration>,
}

/// HTTP/2 PING.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// Between two.
    pub interval: Duration,
    /// Time to answer.
    pub timeout: Duration,
}

/// When an endpoint is left out (Istio `outlierDetection`, all defaults filled in).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// 5xx in a row, local failures included unless split; 0 is never.
    pub consecutive_5xx: u32,
    /// 502, 503, 504 in a row; 0 is never.
    pub consecutive_gateway_errors: u32,
    /// Local failures in a row, only when `split_local_origin`; 0 is never.
    pub consecutive_local_origin_failures: u32,
    /// Local failures (connect, reset, timeout) count by themselves.
    pub split_local_origin: bool,
    /// Which statuses count as 5xx; empty is 500 to 599.
    pub error_statuses: Vec<u16>,
    /// Between two sweeps that let endpoints back.
    pub interval: Duration,
    /// The first ejection's length; the n-th in a row is n times as long, at most max(300 s, this).
    pub base_ejection_time: Duration,
    /// `(ejected + 1) * 100 / all` may not be more.
    pub max_ejection_percent: u8,
}

/// HTTP's version towards the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum UpstreamVersion {
    /// As the port says: HTTP/2 for `http2` and `grpc`, otherwise HTTP/1.1; for an undeclared port what the caller speaks.
    #[default]
    FromPort,
    /// What the caller speaks (`useClientProtocol`).
    FromCaller,
    /// HTTP/2 (`h2UpgradePolicy: UPGRADE`).
    Http2,
}

/// TLS towards the endpoints, inside the mesh's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum UpstreamTls {
    /// None: the mesh's own is enough.
    #[default]
    None,
    /// The server is verified.
    Simple {
        /// The server's name; `None` takes the request's host.
        server_name: Option<Arc<str>>,
        /// Names, one of which its certificate must carry; none takes the server's name.
        subject_alt_names: Vec<Arc<str>>,
        /// Not verified at all.
        insecure_skip_verify: bool,
    },
}
