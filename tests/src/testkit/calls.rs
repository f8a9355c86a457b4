//! What the testkit's HTTP application says ([`Told`], [`Seen`]) and what its HTTP clients print ([`Calls`], [`Transferred`],
//! [`Conversed`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{FailureKind, Latency};

/// A header field that says which request this is, for counting twins: `x-nonce`.
pub const NONCE: &str = "x-nonce";
/// A header field that tells the application what to do with this one request: `status=503,delay=100`. See [`Behaviour`].
pub const ASK: &str = "x-ask";
/// The header field of every answer of the application that names its version.
pub const VERSION: &str = "x-version";
/// The header field of every answer of the application that names its pod.
pub const POD: &str = "x-pod";

/// How the application answers: set for a pod with `PUT /-/behaviour`, or for one request with [`ASK`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// The status; 200 if not said. 204 and 304 have no body.
    pub status: Option<u16>,
    /// `grpc-status` of an answer to gRPC; 0 if not said. Anything else is told at once, without a message.
    pub grpc_status: Option<u16>,
    /// Milliseconds to wait before answering.
    pub delay: u64,
    /// Milliseconds to wait before reading the request's body.
    pub stall: u64,
    /// Bytes of a computed body to answer with, instead of JSON.
    pub body: Option<u64>,
    /// Whether the answer has trailers: `x-trailer: yes`, and `x-digest` of a computed body.
    pub trailers: bool,
    /// Whether to reset instead of answering: the connection (HTTP/1.1) or the stream (HTTP/2).
    pub reset: bool,
}

/// What the application answers with, as JSON, unless it was told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// The pod: `POD_NAME`, else the host name.
    pub pod: String,
    /// `--service-version`.
    pub version: String,
    /// The other side as `getpeername` tells it.
    pub peer: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: String,
    /// The method.
    pub method: String,
    /// Path and query, as they came.
    pub path: String,
    /// `:authority`, or `host`.
    pub authority: String,
    /// Header fields as they came; of several with one name, all, joined with a comma.
    pub headers: BTreeMap<String, String>,
    /// Trailers as they came.
    pub trailers: BTreeMap<String, String>,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// Their digest.
    pub body_sha256: String,
}

/// What a pod of the application saw since it started: `GET /-/seen`. Requests to `/-/` do not count.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Requests whose head arrived.
    pub requests: u64,
    /// The same by method.
    pub methods: BTreeMap<String, u64>,
    /// Of requests with a [`NONCE`]: how many different ones.
    pub nonces: u64,
    /// Those that came more than once, and how often (at most 100).
    pub repeated: BTreeMap<String, u64>,
    /// Those that are asked about by `?nonces=a,b` and came here.
    pub known: Vec<String>,
}

/// The line of `call`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// Whether every request got an answer, whatever its status.
    pub ok: bool,
    /// The command.
    pub command: String,
    /// What was asked for on the command line.
    pub target: String,
    /// Requests that got an answer.
    pub answered: u64,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Answers to gRPC by `grpc-status`.
    pub grpc_statuses: BTreeMap<u16, u64>,
    /// Answers with status 200 (and `grpc-status` 0) by version.
    pub versions: BTreeMap<String, u64>,
    /// Answers with status 200 (and `grpc-status` 0) by pod.
    pub pods: BTreeMap<String, u64>,
    /// Requests without an answer, by kind of failure.
    pub errors: BTreeMap<FailureKind, u64>,
    /// The words of the first of them.
    pub details: Vec<String>,
    /// The [`NONCE`]s of requests that were not served.
    pub lost: Vec<String>,
    /// Requests that went out on a second connection, because the first had ended before anything of them was sent.
    pub moved: u64,
    /// Connections made.
    pub connections: u64,
    /// The body of the last answer, as text, and its header fields.
    pub last_body: String,
    /// See [`Self::last_body`].
    pub last_headers: BTreeMap<String, String>,
    /// Trailers of the last answer.
    pub last_trailers: BTreeMap<String, String>,
    /// Each answer in order, when asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Answer>,
    /// Time of a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_microseconds: Option<Latency>,
    /// Time of the whole command.
    pub milliseconds: f64,
}

impl Calls {
    /// Requests that were served: with status 200 and, for gRPC, `grpc-status` 0, which a proxy's refusal with status 200 has not.
    pub fn served(&self) -> u64 {
        self.pods.values().sum()
    }

    /// Requests that were not: those without an answer, and those whose answer is no success.
    pub fn failed(&self) -> u64 {
        self.answered + self.errors.values().sum::<u64>() - self.served()
    }

    /// Whether there were requests, and each was served.
    pub fn all_served(&self) -> bool {
        self.answered > 0 && self.failed() == 0
    }

    /// Without the timeline, for an error's text.
    pub fn in_short(&self) -> Self {
        Self { timeline: Vec::new(), ..self.clone() }
    }
}

/// One answer in a timeline.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// When the request was sent, in milliseconds since 1970.
    pub sent: f64,
    /// When its answer was there.
    pub answered: f64,
    /// Its status; 0 if there was no answer.
    pub status: u16,
    /// Its `grpc-status`, if it had one.
    pub grpc_status: Option<u16>,
    /// Whether it counts in [`Calls::served`].
    pub served: bool,
    /// The version that answered; empty if none.
    pub version: String,
    /// The pod that answered; empty if none.
    pub pod: String,
}

/// The line of `transfer`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Transferred {
    /// Whether the bytes arrived as they were sent.
    pub ok: bool,
    /// The command.
    pub command: String,
    /// What was asked for on the command line.
    pub target: String,
    /// Status of the answer.
    pub status: Option<u16>,
    /// Payload bytes that arrived.
    pub bytes: u64,
    /// Trailers of the answer.
    pub trailers: BTreeMap<String, String>,
    /// How it failed.
    pub error: Option<FailureKind>,
    /// The error's own words.
    pub detail: Option<String>,
    /// Time of the whole command.
    pub milliseconds: f64,
}

/// The line of `converse`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conversed {
    /// Whether each message came back, in order, before the next was sent, and the end was in good order.
    pub ok: bool,
    /// The command.
    pub command: String,
    /// What was asked for on the command line.
    pub target: String,
    /// Status of the answer.
    pub status: Option<u16>,
    /// Messages that came back.
    pub messages: u64,
    /// `grpc-status` at the end, for gRPC.
    pub grpc_status: Option<u16>,
    /// How it failed.
    pub error: Option<FailureKind>,
    /// The error's own words.
    pub detail: Option<String>,
    /// Longest round trip.
    pub longest_milliseconds: f64,
    /// Time of the whole command.
    pub milliseconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_answered_is_not_yet_served() {
        let calls =
            Calls { answered: 5, statuses: [(200, 5)].into(), pods: [("a".to_owned(), 2), ("b".to_owned(), 3)].into(), ..Calls::default() };
        assert_eq!((calls.served(), calls.failed(), calls.all_served()), (5, 0, true));
        // As gRPC has it: status 200, and grpc-status 14 for one of them.
        let refused = Calls { pods: [("a".to_owned(), 4)].into(), ..calls.clone() };
        assert_eq!((refused.served(), refused.failed(), refused.all_served()), (4, 1, false));
        let lost = Calls { errors: [(FailureKind::Reset, 2)].into(), ..calls };
        assert_eq!((lost.served(), lost.failed(), lost.all_served()), (5, 2, false));
        assert!(!Calls::default().all_served());
    }
}
