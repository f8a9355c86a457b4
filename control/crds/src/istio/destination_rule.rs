//! `DestinationRule` (`networking.istio.io` v1, v1beta1, v1alpha3): how traffic goes to the endpoints of a host, and its subsets.
//!
//! Every field is obeyed by waypoints unless its doc says otherwise; node proxies obey none. The checks are in `validate`.

mod load_balancer;
mod validate;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    WorkloadSelector,
    value::{Duration, PortSelector},
};

pub use load_balancer::{
    ConsistentHash, CookieAttribute, Distribute, Failover, HttpCookie, LoadBalancer, LocalitySetting, Maglev, RingHash, SimpleBalancer,
    Warmup,
};
pub(crate) use validate::validate;

/// The whole object.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationRule {
    /// As written; read once more by [`crate::decode()`].
    pub api_version: String,
    /// As written.
    pub kind: String,
    /// As written; [`crate::Object::metadata`] is the typed form.
    pub metadata: Value,
    /// The rule.
    #[serde(default)]
    pub spec: Spec,
    /// Written by the control plane.
    #[serde(default)]
    pub status: Value,
}

/// The rule.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// The host; a name without a dot is a service of the object's namespace; `*.` before a name for all below it.
    pub host: String,
    /// For all endpoints, and for subsets that say nothing else.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named parts of the endpoints.
    pub subsets: Vec<Subset>,
    /// The namespaces that see it: `.` its own, `*` all; empty is the mesh's default.
    pub export_to: Vec<String>,
    /// The calling proxies. A rule that has one is not used at waypoints.
    pub workload_selector: Option<WorkloadSelector>,
}

/// A named part of the endpoints.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// Its name.
    pub name: String,
    /// Labels of its endpoints; empty is all of them.
    pub labels: BTreeMap<String, String>,
    /// Block by block in place of the rule's.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// `TrafficPolicy`: at least one field.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// How an endpoint is chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// How much the pool takes.
    pub connection_pool: Option<ConnectionPool>,
    /// When an endpoint is left out.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the endpoints.
    pub tls: Option<ClientTls>,
    /// For one port, in place of all of the above.
    pub port_level_settings: Vec<PortPolicy>,
    /// A tunnel through another proxy. Not honoured.
    pub tunnel: Option<Tunnel>,
    /// The PROXY header. Not honoured.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Retries as a share of what is under way.
    pub retry_budget: Option<RetryBudget>,
}

/// `PortTrafficPolicy`: the policy of one service port, all of it.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortPolicy {
    /// The service's port.
    pub port: PortSelector,
    /// How an endpoint is chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// How much the pool takes.
    pub connection_pool: Option<ConnectionPool>,
    /// When an endpoint is left out.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the endpoints.
    pub tls: Option<ClientTls>,
}

/// `ConnectionPoolSettings`: at least one of the two.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ConnectionPool {
    /// Of connections.
    pub tcp: Option<TcpSettings>,
    /// Of requests.
    pub http: Option<HttpSettings>,
}

/// `TCPSettings`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpSettings {
    /// Connections to all endpoints; 0 and absent: no limit.
    pub max_connections: Option<i64>,
    /// Time to connect; absent: the mesh's, 10 s.
    pub connect_timeout: Option<Duration>,
    /// TCP keep-alive.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// A connection is closed after this.
    pub max_connection_duration: Option<Duration>,
    /// A connection without traffic is closed after this; 0 is never, absent 1 h.
    pub idle_timeout: Option<Duration>,
}

/// `TcpKeepalive`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct TcpKeepalive {
    /// Probes until the connection is dead; 0 and absent: the system's.
    pub probes: Option<i64>,
    /// Quiet time before the first; absent: the system's.
    pub time: Option<Duration>,
    /// Between two; absent: the system's.
    pub interval: Option<Duration>,
}

/// `HTTPSettings`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpSettings {
    /// Requests that wait for a connection, of every version; 0 and absent: no limit.
    pub http1_max_pending_requests: Option<i64>,
    /// Requests under way, of every version; 0 and absent: no limit.
    pub http2_max_requests: Option<i64>,
    /// Requests on one connection; 0 and absent: no limit.
    pub max_requests_per_connection: Option<i64>,
    /// Retries under way; 0 and absent: no limit.
    pub max_retries: Option<i64>,
    /// A connection without requests is closed after this; absent: `tcp.idleTimeout`.
    pub idle_timeout: Option<Duration>,
    /// Whether HTTP/1.1 goes on as HTTP/2.
    pub h2_upgrade_policy: H2Upgrade,
    /// The caller's version is kept; not with `UPGRADE`.
    pub use_client_protocol: bool,
    /// Streams on one HTTP/2 connection; 0 and absent: no limit.
    pub max_concurrent_streams: Option<i64>,
    /// HTTP/2 PING.
    pub http2_keep_alive: Option<Http2KeepAlive>,
}

/// `H2UpgradePolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2Upgrade {
    /// As the mesh says: not.
    #[default]
    Default,
    /// Not.
    DoNotUpgrade,
    /// It does.
    Upgrade,
}

/// `HTTPSettings.Http2KeepAlive`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Http2KeepAlive {
    /// Between two; required.
    pub interval: Option<Duration>,
    /// Time to answer; required.
    pub timeout: Option<Duration>,
    /// Spread of the interval. Not honoured.
    pub interval_jitter: Option<super::value::Percent>,
    /// Only after so long without traffic. Not honoured.
    pub connection_idle_interval: Option<Duration>,
}

/// `OutlierDetection`; its defaults hold as soon as the block is there.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// 5xx in a row; absent 5, 0 never.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<i64>,
    /// 502, 503, 504 in a row; absent and 0: never.
    pub consecutive_gateway_errors: Option<i64>,
    /// Replaced by the two above. Not honoured.
    pub consecutive_errors: Option<i64>,
    /// Failures of our side count by themselves.
    pub split_external_local_origin_errors: bool,
    /// Failures of our side in a row; only with the split; absent 5, 0 never.
    pub consecutive_local_origin_failures: Option<i64>,
    /// Between two sweeps; absent 10 s.
    pub interval: Option<Duration>,
    /// The first ejection's length; absent 30 s.
    pub base_ejection_time: Option<Duration>,
    /// Share of endpoints that may be ejected; absent and 0: 10.
    pub max_ejection_percent: i64,
    /// Below this share of healthy endpoints all are used; absent and 0: never.
    pub min_health_percent: i64,
    /// Statuses that count in place of all 5xx.
    pub outlier_detection_http_error_codes: Vec<i64>,
}

/// `ClientTLSSettings`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTls {
    /// Which.
    pub mode: TlsMode,
    /// A file with our certificate. Not honoured.
    pub client_certificate: String,
    /// A file with its key. Not honoured.
    pub private_key: String,
    /// A file with authorities. Not honoured.
    pub ca_certificates: String,
    /// A Secret in the proxy's namespace. Not honoured.
    pub credential_name: String,
    /// Names, one of which the server's certificate must carry.
    pub subject_alt_names: Vec<String>,
    /// The name that the server is asked for; absent: the request's host.
    pub sni: String,
    /// The server is not verified.
    pub insecure_skip_verify: bool,
    /// A file with revocations. Not honoured.
    pub ca_crl: String,
}

/// `ClientTLSSettings.TLSmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// None of its own; the mesh's tunnel stays.
    #[default]
    Disable,
    /// The server is verified.
    Simple,
    /// And we are. Not honoured.
    Mutual,
    /// The mesh's own, hence as `DISABLE`.
    IstioMutual,
}

/// `TunnelSettings`. Not honoured.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tunnel {
    /// `CONNECT` or `POST`. Not honoured.
    pub protocol: String,
    /// Where to. Not honoured.
    pub target_host: String,
    /// Which port. Not honoured.
    pub target_port: i64,
}

/// `ProxyProtocol`. Not honoured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ProxyProtocol {
    /// Which. Not honoured.
    pub version: ProxyProtocolVersion,
}

/// `ProxyProtocol.VERSION`. Not honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum ProxyProtocolVersion {
    /// As text.
    #[default]
    V1,
    /// Binary.
    V2,
}

/// `RetryBudget`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Share of active and pending requests; absent 20.
    pub percent: Option<super::value::Percent>,
    /// Never fewer than these; absent 3.
    pub min_retry_concurrency: Option<i64>,
    /// What counts as under way. Not honoured: what is, now.
    pub budget_interval: Option<Duration>,
}
