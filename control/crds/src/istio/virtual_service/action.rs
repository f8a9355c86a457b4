//! What a VirtualService does with a request: redirect, answer, rewrite, retries, faults, cross-origin rules, headers.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::{Duration, Percent, StringMatch};
use crate::reader;

/// `HTTPRedirect`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    /// The whole path.
    pub uri: String,
    /// In place of the prefix that matched; not beside `uri`, and only with prefix matches.
    pub prefix_rewrite: String,
    /// The host.
    pub authority: String,
    /// The port; not beside `derivePort`.
    pub port: Option<i64>,
    /// Where the port comes from.
    pub derive_port: Option<DerivedPort>,
    /// `http` or `https`.
    pub scheme: String,
    /// 301 (default), 302, 303, 307 or 308.
    pub redirect_code: Option<i64>,
}

/// `RedirectPortSelection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DerivedPort {
    /// 80 or 443, by the scheme.
    #[serde(rename = "FROM_PROTOCOL_DEFAULT")]
    Protocol,
    /// The port that the request came to.
    #[serde(rename = "FROM_REQUEST_PORT")]
    Request,
}

/// `HTTPDirectResponse`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: i64,
    /// The body; absent is none.
    pub body: Option<ResponseBody>,
}

/// `HTTPBody`: one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ResponseBody {
    /// As text.
    pub string: Option<String>,
    /// As base64.
    pub bytes: Option<Bytes>,
}

impl ResponseBody {
    /// The body's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match (&self.string, &self.bytes) {
            (Some(text), _) => text.as_bytes(),
            (None, Some(bytes)) => &bytes.0,
            (None, None) => &[],
        }
    }
}

/// Bytes, written as base64.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine;
        let text = String::deserialize(deserializer)?;
        let decoded = base64::engine::general_purpose::STANDARD.decode(text);
        decoded.map(Self).map_err(|_| reader::unreadable("base64", "for example \"aGVsbG8=\""))
    }
}

/// `Delegate`: the VirtualService that says more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace; empty is the root's own.
    pub namespace: String,
}

/// `HTTPRewrite`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rewrite {
    /// In place of what `uri` matched; not beside `uriRegexRewrite`.
    pub uri: String,
    /// The authority.
    pub authority: String,
    /// Every match in the path becomes something else.
    pub uri_regex_rewrite: Option<RewriteRegex>,
}

/// `RegexRewrite`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct RewriteRegex {
    /// RE2.
    #[serde(rename = "match")]
    pub pattern: String,
    /// With `\1` to `\9` for the groups.
    pub rewrite: String,
}

/// `HTTPRetry`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retry {
    /// Tries after the first; 0 turns retries off.
    pub attempts: i64,
    /// For one try; absent: the route's timeout alone.
    pub per_try_timeout: Option<Duration>,
    /// Conditions, with commas between them; empty is the default list.
    pub retry_on: String,
    /// A retry prefers endpoints of other localities.
    pub retry_remote_localities: Option<bool>,
    /// A retry avoids endpoints already tried; absent is true.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// Base of the waits between tries; absent is 25 ms.
    pub backoff: Option<Duration>,
}

/// `HTTPFaultInjection`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Fault {
    /// A wait.
    pub delay: Option<Delay>,
    /// An answer in place of the upstream's.
    pub abort: Option<Abort>,
}

/// `HTTPFaultInjection.Delay`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delay {
    /// How long; at least 1 ms.
    pub fixed_delay: Option<Duration>,
    /// Never implemented by Istio. Not honoured.
    pub exponential_delay: Option<Duration>,
    /// How many requests; absent is none.
    pub percentage: Option<Percent>,
    /// The old form of `percentage`, which it yields to; 0 to 100.
    pub percent: Option<i64>,
}

/// `HTTPFaultInjection.Abort`: one of the statuses.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Abort {
    /// An HTTP status, 200 to 599; Istio takes 600 too.
    pub http_status: Option<i64>,
    /// A gRPC status, by name or number.
    pub grpc_status: Option<String>,
    /// Never implemented by Istio. Not honoured.
    pub http2_error: Option<String>,
    /// How many requests; absent is none.
    pub percentage: Option<Percent>,
}

/// `CorsPolicy`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CorsPolicy {
    /// The old form of `allowOrigins`: exact, or `*`.
    pub allow_origin: Vec<String>,
    /// Origins that are let in.
    pub allow_origins: Vec<StringMatch>,
    /// Methods.
    pub allow_methods: Vec<String>,
    /// Request headers.
    pub allow_headers: Vec<String>,
    /// Response headers that the page may read.
    pub expose_headers: Vec<String>,
    /// How long the answer holds; whole seconds.
    pub max_age: Option<Duration>,
    /// Whether credentials are let in; absent says nothing.
    pub allow_credentials: Option<bool>,
    /// What happens to a preflight from elsewhere.
    pub unmatched_preflights: UnmatchedPreflights,
}

/// `CorsPolicy.UnmatchedPreflights`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum UnmatchedPreflights {
    /// As `FORWARD`.
    #[default]
    Unspecified,
    /// It is sent on.
    Forward,
    /// It is answered here, without permission.
    Ignore,
}

/// `Headers`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Headers {
    /// Of the request.
    pub request: HeaderOperations,
    /// Of the response.
    pub response: HeaderOperations,
}

/// `Headers.HeaderOperations`: removed first, then set, then added.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct HeaderOperations {
    /// Overwritten, or added if missing.
    pub set: BTreeMap<String, String>,
    /// Appended.
    pub add: BTreeMap<String, String>,
    /// Deleted.
    pub remove: Vec<String>,
}

/// The names of gRPC's statuses, in the order of their numbers.
const GRPC_STATUSES: &[&str] = &[
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The number of a gRPC status, written by name or number.
pub fn grpc_status(text: &str) -> Option<u16> {
    let named = GRPC_STATUSES.iter().position(|name| *name == text);
    let number = named.or_else(|| text.parse::<usize>().ok()).filter(|number| *number < GRPC_STATUSES.len())?;
    u16::try_from(number).ok()
}
