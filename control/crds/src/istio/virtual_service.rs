//! `VirtualService` (`networking.istio.io` v1, v1beta1, v1alpha3): where traffic that is addressed to a host goes.
//!
//! Every field is obeyed by waypoints unless its doc says otherwise; node proxies obey none. The checks are in `validate`.

mod action;
mod validate;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::value::{Duration, Percent, PortSelector, StringMatch, StringMatches};

pub use action::{
    Abort, CorsPolicy, Delay, Delegate, DerivedPort, DirectResponse, Fault, HeaderOperations, Headers, Redirect, ResponseBody, Retry,
    Rewrite, RewriteRegex, UnmatchedPreflights, grpc_status,
};
pub(crate) use validate::validate;

/// The whole object.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualService {
    /// As written; read once more by [`crate::decode()`].
    pub api_version: String,
    /// As written.
    pub kind: String,
    /// As written; [`crate::Object::metadata`] is the typed form.
    pub metadata: Value,
    /// The routes.
    #[serde(default)]
    pub spec: Spec,
    /// Written by the control plane.
    #[serde(default)]
    pub status: Value,
}

/// The routes.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// The hosts whose traffic is routed; a name without a dot is a service of the object's namespace. Empty: only for delegation.
    pub hosts: Vec<String>,
    /// Where the routes apply; empty is `mesh`.
    pub gateways: Vec<String>,
    /// Routes of HTTP requests, in order.
    pub http: Vec<HttpRoute>,
    /// Routes of TLS connections, in order.
    pub tls: Vec<TlsRoute>,
    /// Routes of connections, in order.
    pub tcp: Vec<TcpRoute>,
    /// The namespaces that see it: `.` its own, `*` all; empty is the mesh's default.
    pub export_to: Vec<String>,
}

/// `HTTPRoute`: exactly one of `route`, `redirect`, `directResponse` and `delegate`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRoute {
    /// What logs call it.
    pub name: String,
    /// Any of them; empty matches everything.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Where to.
    pub route: Vec<HttpDestination>,
    /// Sends the caller elsewhere.
    pub redirect: Option<Redirect>,
    /// Answers at once.
    pub direct_response: Option<DirectResponse>,
    /// The VirtualService that says more.
    pub delegate: Option<Delegate>,
    /// Changes of path and authority; only with `route`.
    pub rewrite: Option<Rewrite>,
    /// For the whole request, retries included; at least 1 ms. Absent: no limit.
    pub timeout: Option<Duration>,
    /// When it is tried again; absent: the mesh's default.
    pub retries: Option<Retry>,
    /// Faults put in on purpose.
    pub fault: Option<Fault>,
    /// Who gets a copy; not beside `mirrors`.
    pub mirror: Option<Destination>,
    /// Who get a copy.
    pub mirrors: Vec<MirrorPolicy>,
    /// How much `mirror` gets; absent is all.
    pub mirror_percentage: Option<Percent>,
    /// The old form of `mirrorPercentage`, which it yields to; 0 to 100.
    #[serde(alias = "mirror_percent")]
    pub mirror_percent: Option<u32>,
    /// Cross-origin rules.
    pub cors_policy: Option<CorsPolicy>,
    /// Changes of headers.
    pub headers: Option<Headers>,
}

/// `HTTPMatchRequest`: all that is set must match.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// What logs call it, after the route's name.
    pub name: String,
    /// The path without the query.
    pub uri: Option<StringMatch>,
    /// `http` or `https`.
    pub scheme: Option<StringMatch>,
    /// The method.
    pub method: Option<StringMatch>,
    /// The authority, with its port if one was sent.
    pub authority: Option<StringMatch>,
    /// Headers; an empty match means presence.
    pub headers: StringMatches,
    /// Headers, none of which may match.
    pub without_headers: StringMatches,
    /// Query parameters; an empty match means presence.
    pub query_params: StringMatches,
    /// `uri` (exact and prefix) ignores case.
    pub ignore_uri_case: bool,
    /// The port that was addressed.
    pub port: Option<i64>,
    /// Labels of the original caller.
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the original caller.
    pub source_namespace: String,
    /// In place of the object's `gateways`.
    pub gateways: Vec<String>,
    /// A prefix of statistics. Not honoured.
    pub stat_prefix: String,
}

/// The field of a match under which a name in `headers` or `withoutHeaders` belongs, if no header is called so: Istio leaves such entries out.
pub fn pseudo_header(name: &str) -> Option<&'static str> {
    let name = name.trim_start_matches(':');
    ["uri", "scheme", "method", "authority"].into_iter().find(|field| name.eq_ignore_ascii_case(field))
}

/// `Destination`: a service, perhaps a subset and a port of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Destination {
    /// The host; a name without a dot is a service of the object's namespace.
    pub host: String,
    /// A subset of a DestinationRule.
    pub subset: String,
    /// The port; absent: the only one of the service, else the one that was addressed.
    pub port: Option<PortSelector>,
}

/// `HTTPRouteDestination`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpDestination {
    /// Where to.
    pub destination: Destination,
    /// The share of the sum of all weights; not looked at when there is only one destination.
    pub weight: i64,
    /// Changes of headers, after the route's.
    pub headers: Option<Headers>,
}

/// `RouteDestination` of `tls` and `tcp`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteDestination {
    /// Where to.
    pub destination: Destination,
    /// The share of the sum of all weights; not looked at when there is only one destination.
    pub weight: i64,
}

/// `HTTPMirrorPolicy`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MirrorPolicy {
    /// Where to.
    pub destination: Destination,
    /// How much; absent is all.
    pub percentage: Option<Percent>,
}

/// `TLSRoute`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRoute {
    /// Any of them; at least one.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatch>,
    /// Where to.
    pub route: Vec<RouteDestination>,
}

/// `TLSMatchAttributes`: all that is set must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsMatch {
    /// Server names, each one covered by the object's hosts.
    pub sni_hosts: Vec<String>,
    /// Blocks of destination addresses.
    pub destination_subnets: Vec<String>,
    /// The port that was addressed.
    pub port: Option<i64>,
    /// Labels of the original caller.
    pub source_labels: BTreeMap<String, String>,
    /// In place of the object's `gateways`.
    pub gateways: Vec<String>,
    /// Namespace of the original caller.
    pub source_namespace: String,
}

/// `TCPRoute`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRoute {
    /// Any of them; empty matches everything.
    #[serde(rename = "match")]
    pub matches: Vec<L4Match>,
    /// Where to.
    pub route: Vec<RouteDestination>,
}

/// `L4MatchAttributes`: all that is set must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L4Match {
    /// Blocks of destination addresses.
    pub destination_subnets: Vec<String>,
    /// The port that was addressed.
    pub port: Option<i64>,
    /// A block of the caller's address. Not honoured.
    pub source_subnet: String,
    /// Labels of the original caller.
    pub source_labels: BTreeMap<String, String>,
    /// In place of the object's `gateways`.
    pub gateways: Vec<String>,
    /// Namespace of the original caller.
    pub source_namespace: String,
}
