//! What a waypoint does with traffic that is addressed to one host: routes, policies and pools, complete in itself.
//!
//! Nouns only; `matching` decides which route a request takes, `pick` which endpoint. Field names are those of Istio's VirtualService
//! where the meaning is the same; everything that a user may leave out is filled in before it comes here, so `None` means "off".

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use regex::{Regex, RegexBuilder};

use crate::{
    address::NamespacedHostname,
    pool::{Pool, PoolKey},
    request_policy::RequestPolicy,
};

/// All that a waypoint needs to know about a host that traffic is addressed to.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// The service that is addressed.
    pub name: NamespacedHostname,
    /// Its ports; one that is missing here is not routed (404 for HTTP, closed for TCP).
    pub ports: BTreeMap<u16, HostPort>,
    /// The policies that may decide about its traffic, whatever their attachment.
    pub policies: Vec<Arc<RequestPolicy>>,
    /// The pools that its routes and mirrors name. One that is named and missing here is `NC`, cluster not found.
    pub pools: BTreeMap<PoolKey, Arc<Pool>>,
}

/// A port of a host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostPort {
    /// What is spoken on it.
    pub protocol: PortProtocol,
    /// Routes of HTTP requests in the order in which they are tried; none matching is 404 `NR`.
    pub http: Vec<Arc<HttpRoute>>,
    /// Routes of TLS connections, by server name. They are tried before `tcp`.
    pub tls: Vec<Arc<TlsRoute>>,
    /// Routes of connections.
    pub tcp: Vec<Arc<TcpRoute>>,
}

impl HostPort {
    /// The keys of the labels that its routes ask callers for (`sourceLabels`); some may come twice.
    pub fn caller_labels(&self) -> impl Iterator<Item = &Arc<str>> {
        let requests = self.http.iter().flat_map(|route| &route.matches).flat_map(|one| one.source_labels.keys());
        let connections = self.tls.iter().map(|route| &route.source_labels).chain(self.tcp.iter().map(|route| &route.source_labels));
        requests.chain(connections.flat_map(BTreeMap::keys))
    }
}

/// What a port speaks, as declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PortProtocol {
    /// Nobody said: the first bytes tell HTTP from the rest.
    #[default]
    Auto,
    /// HTTP/1.1 (an HTTP/2 preface is understood too).
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Anything: passed on as it is.
    Tcp,
    /// TLS that is not ended here.
    Tls,
}

/// Which field of which object something comes from: for the access log, findings and `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// `VirtualService`, `Service`, …
    pub kind: Arc<str>,
    /// `namespace/name`.
    pub object: Arc<str>,
    /// For example `spec.http[0]`; empty for the object as a whole.
    pub field: Arc<str>,
}

/// A rule for HTTP requests.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpRoute {
    /// What the access log shows as `route_name`: the user's name, or `default`.
    pub name: Arc<str>,
    /// Where it was written.
    pub origin: Origin,
    /// Any of them; no entry matches everything.
    pub matches: Vec<RequestMatch>,
    /// What is done.
    pub action: RouteAction,
    /// Changes to the request's and the response's headers.
    pub headers: HeaderChanges,
    /// Delay and abort.
    pub fault: Option<Fault>,
    /// Cross-origin rules.
    pub cors: Option<Cors>,
}

/// What is done with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteAction {
    /// It is sent on.
    Forward(Box<Forward>),
    /// The caller is sent elsewhere.
    Redirect(Redirect),
    /// It is answered here.
    Respond(DirectResponse),
}

/// How a request is sent on.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// Where to, by weight; at least one. With one entry the weight does not matter.
    pub destinations: Vec<Destination>,
    /// Changes of path and authority.
    pub rewrite: Option<Rewrite>,
    /// For the whole request, retries included; `None` is no limit.
    pub timeout: Option<Duration>,
    /// When it is tried again.
    pub retries: Retries,
    /// Who gets a copy.
    pub mirrors: Vec<Mirror>,
}

/// A share of a route's traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    /// The pool; may be missing in [`Host::pools`].
    pub pool: PoolKey,
    /// Its share of the sum of all weights.
    pub weight: u32,
    /// Header changes for this share, after the route's.
    pub headers: HeaderChanges,
}

/// Conditions on a request, all of which must hold; an empty field always holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RequestMatch {
    /// The user's name for it.
    pub name: Option<Arc<str>>,
    /// The path, without the query.
    pub uri: Option<TextMatch>,
    /// `uri` (exact and prefix) ignores case.
    pub ignore_uri_case: bool,
    /// `http` or `https`.
    pub scheme: Option<TextMatch>,
    /// The method.
    pub method: Option<TextMatch>,
    /// The authority as sent, with its port if one was sent.
    pub authority: Option<TextMatch>,
    /// Headers by lower-case name.
    pub headers: Vec<(Arc<str>, ValueMatch)>,
    /// Headers, none of which may match; one that is absent does not match.
    pub without_headers: Vec<(Arc<str>, ValueMatch)>,
    /// Query parameters: the first value of a name.
    pub query: Vec<(Arc<str>, ValueMatch)>,
    /// Labels of the original caller (at a waypoint, Istio drops the block: ADR in `docs/adr`).
    pub source_labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Namespace of the original caller.
    pub source_namespace: Option<Arc<str>>,
}

/// How a text is matched.
#[derive(Debug, Clone)]
pub enum TextMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Starts with these bytes.
    Prefix(Arc<str>),
    /// Starts with these segments: `/a` matches `/a` and `/a/b`, not `/ab` (Gateway API).
    PathPrefix(Arc<str>),
    /// All of it matches (RE2 syntax). Made by [`TextMatch::regex`], which anchors it.
    Regex(Arc<Pattern>),
}

/// A regular expression with its source.
#[derive(Debug)]
pub struct Pattern {
    /// As the user wrote it.
    pub source: Arc<str>,
    /// Compiled, anchored at both ends.
    pub whole: Regex,
}

/// How a header's or a parameter's value is matched.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueMatch {
    /// It is there.
    Present,
    /// It is there, and matches.
    Text(TextMatch),
}

/// Changes to headers: removed first, then set, then added.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeaderChanges {
    /// Of the request.
    pub request: HeaderOperations,
    /// Of the response.
    pub response: HeaderOperations,
}

/// Changes to one message's headers; names are lower case. `host` and `:authority` in `set` rewrite the authority.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeaderOperations {
    /// Deleted.
    pub remove: Vec<Arc<str>>,
    /// Overwritten, or added if missing.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// Appended.
    pub add: Vec<(Arc<str>, Arc<str>)>,
}

impl HeaderOperations {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// Changes of path and authority.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rewrite {
    /// The path.
    pub path: Option<PathRewrite>,
    /// The authority.
    pub authority: Option<Arc<str>>,
}

/// A change of the path; the query stays.
#[derive(Debug, Clone, PartialEq)]
pub enum PathRewrite {
    /// What the route's `uri` matched (all of it for exact and regex, the prefix otherwise) becomes this.
    Matched(Arc<str>),
    /// Every match of the pattern becomes this, with `\1` to `\9` for its groups.
    Pattern {
        /// Not anchored.
        pattern: UnanchoredPattern,
        /// With groups.
        replacement: Arc<str>,
    },
    /// The whole path becomes this (Gateway API `ReplaceFullPath`).
    Full(Arc<str>),
}

/// A regular expression that may match a part.
#[derive(Debug, Clone)]
pub struct UnanchoredPattern {
    /// As the user wrote it.
    pub source: Arc<str>,
    /// Compiled.
    pub regex: Regex,
}

/// A redirect.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirect {
    /// The new path.
    pub path: Option<PathRewrite>,
    /// The new host.
    pub authority: Option<Arc<str>>,
    /// The new scheme.
    pub scheme: Option<Arc<str>>,
    /// The new port.
    pub port: Option<RedirectPort>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// The port of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectPort {
    /// This one; left out of the text when it is the scheme's default.
    Number(u16),
    /// The scheme's default.
    FromScheme,
    /// The port that the request came to.
    FromRequest,
}

/// An answer given here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// The body.
    pub body: Arc<[u8]>,
}

/// When a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retries {
    /// Tries after the first; 0 is never.
    pub attempts: u32,
    /// For one try; `None` is the route's timeout alone.
    pub per_try_timeout: Option<Duration>,
    /// What calls for another try.
    pub on: RetryOn,
    /// Base of the waits between tries.
    pub backoff: Duration,
    /// Endpoints already tried are avoided.
    pub ignore_previous: bool,
    /// A retry prefers endpoints of other localities.
    pub remote_localities: bool,
}

/// What calls for another try.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetryOn {
    /// Any 5xx, reset, disconnect or timeout of a try.
    pub server_error: bool,
    /// 502, 503, 504.
    pub gateway_error: bool,
    /// The upstream reset, disconnected or timed out before its response.
    pub reset: bool,
    /// The same, and nothing of the request was sent.
    pub reset_before_request: bool,
    /// No connection could be made.
    pub connect_failure: bool,
    /// 409.
    pub retriable_4xx: bool,
    /// HTTP/2 REFUSED_STREAM.
    pub refused_stream: bool,
    /// These codes.
    pub statuses: Vec<u16>,
    /// These gRPC codes, seen in the headers.
    pub grpc_statuses: Vec<u16>,
}

/// A copy of requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// Where to.
    pub pool: PoolKey,
    /// How many, of 1 000 000.
    pub share_ppm: u32,
}

/// Faults put in on purpose.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fault {
    /// A wait before the request goes on.
    pub delay: Option<FaultDelay>,
    /// An answer in place of the upstream's.
    pub abort: Option<FaultAbort>,
}

/// A wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultDelay {
    /// How long.
    pub duration: Duration,
    /// How many requests, of 1 000 000.
    pub share_ppm: u32,
}

/// An answer in place of the upstream's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultAbort {
    /// With which status.
    pub status: AbortStatus,
    /// How many requests, of 1 000 000.
    pub share_ppm: u32,
}

/// The status of an abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortStatus {
    /// An HTTP status.
    Http(u16),
    /// A gRPC code, in a response of trailers only.
    Grpc(u16),
}

/// Cross-origin rules.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cors {
    /// Origins that are let in.
    pub allow_origins: Vec<TextMatch>,
    /// `access-control-allow-methods`.
    pub allow_methods: Vec<Arc<str>>,
    /// `access-control-allow-headers`.
    pub allow_headers: Vec<Arc<str>>,
    /// `access-control-expose-headers`.
    pub expose_headers: Vec<Arc<str>>,
    /// `access-control-max-age`.
    pub max_age: Option<Duration>,
    /// `access-control-allow-credentials`; `None` says nothing.
    pub allow_credentials: Option<bool>,
    /// A preflight from an origin that does not match is answered here without permission, in place of being sent on.
    pub ignore_unmatched_preflights: bool,
}

/// A rule for TLS connections.
#[derive(Debug, Clone, PartialEq)]
pub struct TlsRoute {
    /// Where it was written.
    pub origin: Origin,
    /// Server names (exact, or `*.suffix`).
    pub server_names: Vec<Arc<str>>,
    /// Blocks of destination addresses; none is all.
    pub destination_blocks: Vec<IpNet>,
    /// Labels of the original caller.
    pub source_labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Namespace of the original caller.
    pub source_namespace: Option<Arc<str>>,
    /// Where to.
    pub destinations: Vec<Destination>,
}

/// A rule for connections.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpRoute {
    /// Where it was written.
    pub origin: Origin,
    /// Blocks of destination addresses; none is all.
    pub destination_blocks: Vec<IpNet>,
    /// Labels of the original caller.
    pub source_labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Namespace of the original caller.
    pub source_namespace: Option<Arc<str>>,
    /// Where to.
    pub destinations: Vec<Destination>,
}

/// The most memory that a pattern may take once it is compiled: far more than routes need, and little enough for many of them.
pub const PATTERN_MAX_BYTES: usize = 256 * 1024;

/// A regular expression that is not too large when it is compiled, and while it is used.
fn bounded(source: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(source).size_limit(PATTERN_MAX_BYTES).dfa_size_limit(PATTERN_MAX_BYTES).build()
}

impl TextMatch {
    /// A pattern that must match all of the text. Errors with the regular expression's own complaint.
    pub fn regex(source: &str) -> Result<Self, regex::Error> {
        // On its own first: `a)|(?:b` must be an error, not a way out of the anchors.
        bounded(source)?;
        Ok(Self::Regex(Arc::new(Pattern { source: source.into(), whole: bounded(&format!("^(?:{source})$"))? })))
    }
}

impl PartialEq for TextMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) | (Self::Prefix(a), Self::Prefix(b)) | (Self::PathPrefix(a), Self::PathPrefix(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.source == b.source,
            _ => false,
        }
    }
}

impl UnanchoredPattern {
    /// A pattern that may match a part. Errors with the regular expression's own complaint.
    pub fn new(source: &str) -> Result<Self, regex::Error> {
        Ok(Self { source: source.into(), regex: bounded(source)? })
    }
}

impl PartialEq for UnanchoredPattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// The original caller of a request or connection, as routes and policies may ask about it.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// The identity of the tunnel that brought it; `None` for plain traffic.
    pub identity: Option<crate::identity::Identity>,
    /// The address that it called from.
    pub address: Option<IpAddr>,
    /// Its labels, as far as configuration names them.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}
