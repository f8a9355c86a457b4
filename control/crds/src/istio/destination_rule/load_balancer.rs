//! How a DestinationRule chooses an endpoint, and what near and far mean.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::Duration;

/// `LoadBalancerSettings`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancer {
    /// Without a key; not beside `consistentHash`.
    pub simple: Option<SimpleBalancer>,
    /// The same key gives the same endpoint.
    pub consistent_hash: Option<ConsistentHash>,
    /// What near and far mean.
    pub locality_lb_setting: Option<LocalitySetting>,
    /// Near and far by zones' capacities; not beside `localityLbSetting`. Not honoured.
    pub zone_aware_lb_setting: Option<Value>,
    /// The old form of `warmup.duration`.
    pub warmup_duration_secs: Option<Duration>,
    /// New endpoints start slowly.
    pub warmup: Option<Warmup>,
}

/// `SimpleLB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleBalancer {
    /// As `LEAST_REQUEST`.
    #[default]
    Unspecified,
    /// The old name of `LEAST_REQUEST`.
    LeastConn,
    /// Drawn.
    Random,
    /// The address that was called.
    Passthrough,
    /// In turn.
    RoundRobin,
    /// The less busy of two that are drawn.
    LeastRequest,
}

/// `ConsistentHashLB`: exactly one key, at most one algorithm.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsistentHash {
    /// The key: a header.
    pub http_header_name: Option<String>,
    /// The key: a cookie.
    pub http_cookie: Option<HttpCookie>,
    /// The key: the caller's address.
    pub use_source_ip: Option<bool>,
    /// The key: a query parameter.
    pub http_query_parameter_name: Option<String>,
    /// The algorithm: a ring, the default.
    pub ring_hash: Option<RingHash>,
    /// The algorithm: Maglev's table.
    pub maglev: Option<Maglev>,
    /// The old form of `ringHash.minimumRingSize`.
    pub minimum_ring_size: Option<i64>,
}

/// `ConsistentHashLB.HTTPCookie`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct HttpCookie {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: String,
    /// Its life; absent: none is made; 0: a session's.
    pub ttl: Option<Duration>,
    /// More attributes.
    pub attributes: Vec<CookieAttribute>,
}

/// An attribute of a cookie.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct CookieAttribute {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// `ConsistentHashLB.RingHash`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RingHash {
    /// Least number of points; absent 1024.
    pub minimum_ring_size: Option<i64>,
}

/// `ConsistentHashLB.MagLev`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Maglev {
    /// Entries, a prime below 5 000 011; absent 65537.
    pub table_size: Option<i64>,
}

/// `LocalityLoadBalancerSetting`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalitySetting {
    /// By share; not beside `failover` and `failoverPriority`.
    pub distribute: Vec<Distribute>,
    /// Which region takes over from which.
    pub failover: Vec<Failover>,
    /// Labels compared in order.
    pub failover_priority: Vec<String>,
    /// Whether locality counts; absent: the mesh's, true.
    pub enabled: Option<bool>,
}

/// `LocalityLoadBalancerSetting.Distribute`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Distribute {
    /// The caller's locality, `region/zone/subzone` or with `*` at the end.
    pub from: String,
    /// Shares in percent, together 100.
    pub to: BTreeMap<String, i64>,
}

/// `LocalityLoadBalancerSetting.Failover`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Failover {
    /// A region.
    pub from: String,
    /// The region that takes over.
    pub to: String,
}

/// `WarmupConfiguration`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Warmup {
    /// Until the full weight; required.
    pub duration: Option<Duration>,
    /// The weight at first, in percent; absent 10.
    pub minimum_percent: Option<f64>,
    /// 1.0 (absent) is linear; larger starts faster.
    pub aggression: Option<f64>,
}
