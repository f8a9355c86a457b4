//! The stages of a request and of a connection, in running order; a stage's word is its file, its `Stage` and its field in logs.
//!
//! Each takes the value that the one before made. What a stage may fail with is an error of its own, which becomes a [`Failure`] here:
//! outcome, Envoy's response flag and details, and the answer that the caller gets.

pub mod accept;
pub mod authorize;
pub mod balance;
pub mod connect;
pub mod forward;
pub mod identify;
pub mod report;
pub mod resolve;
pub mod route;

use std::borrow::Cow;

use tropis_model::{
    authorize::request::{DENIED_BODY, RequestDenied},
    outcome::{Outcome, Reason, Side, Stage},
    policy::PolicyKey,
};
use tropis_telemetry::chain;

use self::{
    accept::AcceptError,
    balance::BalanceError,
    connect::ConnectError,
    forward::ForwardError,
    identify::{IdentifyError, Unreadable},
    report::flags::Flags,
    resolve::ResolveError,
    route::RouteError,
};
use crate::reply::Reply;

/// Why a journey ended early.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Stage, reason and side.
    pub outcome: Outcome,
    /// Envoy's response flags.
    pub flags: Flags,
    /// Envoy's `response_code_details`.
    pub details: Cow<'static, str>,
    /// The policies that decided.
    pub policies: Vec<PolicyKey>,
    /// What to log.
    pub error: Option<String>,
    /// What a caller of HTTP is answered.
    pub reply: Box<Reply>,
}

impl Failure {
    fn new(stage: Stage, (reason, side): (Reason, Side), error: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            outcome: Outcome { stage, reason, side },
            flags: Flags::NONE,
            details: Cow::Borrowed(reason.word()),
            policies: Vec::new(),
            error: Some(chain(error)),
            reply: Box::new(Reply::text(503, "")),
        }
    }

    fn flagged(self, flags: Flags, details: impl Into<Cow<'static, str>>, reply: Reply) -> Self {
        Self { flags, details: details.into(), reply: Box::new(reply), ..self }
    }
}

impl From<AcceptError> for Failure {
    fn from(error: AcceptError) -> Self {
        let failure = Self::new(Stage::Accept, error.reason(), &error);
        match error {
            AcceptError::LimitReached { .. } => failure.flagged(Flags::OVERFLOW, "overload", Reply::overloaded("overload")),
            // Nobody is answered: the connection ends.
            AcceptError::Flood(_) | AcceptError::GivenUp => failure,
        }
    }
}

impl From<IdentifyError> for Failure {
    fn from(error: IdentifyError) -> Self {
        let failure = Self::new(Stage::Identify, error.reason(), &error);
        match &error {
            IdentifyError::Certificate { .. } | IdentifyError::Peer(_) => failure,
            IdentifyError::Unreadable(Unreadable::Encoding) => unreadable(failure, &error, 501, "Not Implemented"),
            IdentifyError::Unreadable(Unreadable::Headers { .. }) => unreadable(failure, &error, 431, "Request Header Fields Too Large"),
            IdentifyError::Malformed(_)
            | IdentifyError::Path(_)
            | IdentifyError::Host(_)
            | IdentifyError::Ambiguous { .. }
            | IdentifyError::Unreadable(Unreadable::Ambiguous(_)) => unreadable(failure, &error, 400, "Bad Request"),
        }
    }
}

fn unreadable(failure: Failure, error: &IdentifyError, status: u16, body: &'static str) -> Failure {
    let details = format!("bad_request{{{}}}", error.to_string().replace(' ', "_"));
    failure.flagged(Flags::DOWNSTREAM_PROTOCOL_ERROR, details, Reply::text(status, body))
}

impl From<ResolveError> for Failure {
    fn from(error: ResolveError) -> Self {
        let failure = Self::new(Stage::Resolve, error.reason(), &error);
        failure.flagged(Flags::NO_ROUTE, "route_not_found", Reply::text(404, ""))
    }
}

impl From<RequestDenied> for Failure {
    fn from(denied: RequestDenied) -> Self {
        let failure = Self::new(Stage::Authorize, (Reason::PolicyDenied, Side::Downstream), &denied);
        let failure = failure.flagged(Flags::NONE, denied.response_code_details(), Reply::text(403, DENIED_BODY));
        Self { policies: denied.policies().to_vec(), ..failure }
    }
}

impl From<RouteError> for Failure {
    fn from(error: RouteError) -> Self {
        let failure = Self::new(Stage::Route, error.reason(), &error);
        match error {
            RouteError::NotFound => failure.flagged(Flags::NO_ROUTE, "route_not_found", Reply::text(404, "")),
            RouteError::Rewrite(_) => {
                failure.flagged(Flags::DOWNSTREAM_PROTOCOL_ERROR, "ambiguous_rewritten_path", Reply::text(400, "Bad Request"))
            }
            RouteError::Header(_) | RouteError::Authority { .. } => {
                failure.flagged(Flags::NONE, "invalid_header_change", Reply::text(500, ""))
            }
        }
    }
}

impl From<BalanceError> for Failure {
    fn from(error: BalanceError) -> Self {
        let failure = Self::new(Stage::Balance, error.reason(), &error);
        match error {
            BalanceError::PoolUnknown { .. } => failure.flagged(Flags::NO_CLUSTER, "cluster_not_found", Reply::text(503, "")),
            BalanceError::NoDestination => failure.flagged(Flags::NO_CLUSTER, "cluster_not_found", Reply::text(503, "")),
            BalanceError::NoEndpoint(_) => {
                failure.flagged(Flags::NO_HEALTHY_UPSTREAM, "no_healthy_upstream", Reply::text(503, "no healthy upstream"))
            }
            BalanceError::Full(_) => failure.flagged(
                Flags::OVERFLOW,
                "upstream_reset_before_response_started{overflow}",
                Reply::overloaded("upstream connect error or disconnect/reset before headers. reset reason: overflow"),
            ),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let failure = Self::new(Stage::Connect, error.reason(), &error);
        let body = format!(
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, transport failure reason: \
             {error}"
        );
        failure.flagged(
            Flags::UPSTREAM_CONNECTION_FAILURE,
            "upstream_reset_before_response_started{remote_connection_failure}",
            Reply::text(503, body),
        )
    }
}

impl From<ForwardError> for Failure {
    fn from(error: ForwardError) -> Self {
        let failure = Self::new(Stage::Forward, error.reason(), &error);
        match error {
            ForwardError::Timeout { .. } => {
                failure.flagged(Flags::UPSTREAM_TIMEOUT, "response_timeout", Reply::text(504, "upstream request timeout"))
            }
            ForwardError::TryTimeout { .. } => {
                failure.flagged(Flags::UPSTREAM_TIMEOUT, "upstream_per_try_timeout", Reply::text(504, "upstream request timeout"))
            }
            ForwardError::Reset { closed, .. } => {
                let (flags, why, words) = match closed {
                    true => (Flags::UPSTREAM_CLOSED, "connection_termination", "connection termination"),
                    false => (Flags::UPSTREAM_RESET, "remote_reset", "remote reset"),
                };
                let body = format!("upstream connect error or disconnect/reset before headers. reset reason: {words}");
                failure.flagged(flags, format!("upstream_reset_before_response_started{{{why}}}"), Reply::text(503, body))
            }
            ForwardError::Malformed(_) => failure.flagged(
                Flags::UPSTREAM_PROTOCOL_ERROR,
                "upstream_reset_before_response_started{protocol_error}",
                Reply::text(502, "upstream connect error or disconnect/reset before headers. reset reason: protocol error"),
            ),
            ForwardError::Caller(_) => failure.flagged(Flags::DOWNSTREAM_CLOSED, "downstream_remote_disconnect", Reply::text(400, "")),
        }
    }
}
