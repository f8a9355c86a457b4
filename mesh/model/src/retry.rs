//! Whether a request is tried again, and after how long (VirtualService `retries`).
//!
//! Three things always end it: a response that the caller has begun to see, a body that cannot be sent again, and the route's own
//! timeout, which is for all tries together and never comes here as a try's outcome. The pool's limits have their own say (`limits`).

use std::time::Duration;

use crate::{
    resolve::Draw,
    route::{Retries, RetryOn},
};

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryOutcome {
    /// The response's headers came.
    Response {
        /// Its status.
        status: u16,
        /// The gRPC status, if the headers carry one (a response of trailers only).
        grpc_status: Option<u16>,
    },
    /// No connection could be made, or not in time.
    ConnectFailure,
    /// HTTP/2 REFUSED_STREAM: the peer has not looked at the request.
    RefusedStream,
    /// The peer reset or closed before its response.
    Reset {
        /// Something of the request was sent.
        request_sent: bool,
    },
    /// The time for one try ran out (`perTryTimeout`).
    Timeout,
}

/// What to do after a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Try again after [`backoff`].
    Retry,
    /// What the try gave is the answer.
    GiveUp(GiveUp),
}

/// Why there is no other try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// It is an answer, or a failure that the route does not retry.
    NotRetriable,
    /// The route's attempts are used up: flag `URX`.
    Exhausted,
    /// The body was sent and is not kept.
    NotReplayable,
    /// The caller has part of the response.
    ResponseStarted,
}

/// Decides after a try. `retries_done` are the tries after the first; `replayable` says that the whole body can be sent again, because it
/// is kept or because nothing of it was sent.
pub fn decide(retries: &Retries, outcome: &TryOutcome, retries_done: u32, replayable: bool, response_started: bool) -> Decision {
    let reason = if !calls_for_retry(&retries.on, outcome) || retries.attempts == 0 {
        GiveUp::NotRetriable
    } else if response_started {
        GiveUp::ResponseStarted
    } else if retries_done >= retries.attempts {
        GiveUp::Exhausted
    } else if !replayable {
        GiveUp::NotReplayable
    } else {
        return Decision::Retry;
    };
    Decision::GiveUp(reason)
}

/// Whether the outcome is one that calls for another try. 5xx and gateway errors include what would become one: resets, refused
/// connections and timeouts.
pub fn calls_for_retry(on: &RetryOn, outcome: &TryOutcome) -> bool {
    let any_reset = on.server_error || on.gateway_error || on.reset;
    match outcome {
        TryOutcome::Response { status, grpc_status } => {
            (on.server_error && (500..600).contains(status))
                || (on.gateway_error && matches!(status, 502..=504))
                || (on.retriable_4xx && *status == 409)
                || on.statuses.contains(status)
                || grpc_status.is_some_and(|status| on.grpc_statuses.contains(&status))
        }
        TryOutcome::ConnectFailure => any_reset || on.connect_failure || on.reset_before_request,
        TryOutcome::RefusedStream => any_reset || on.refused_stream,
        TryOutcome::Reset { request_sent } => any_reset || (on.reset_before_request && !request_sent),
        TryOutcome::Timeout => any_reset,
    }
}

/// How long to wait before retry `number` (from 1): drawn below (2^number - 1) times the base, at most ten times the base.
pub fn backoff(base: Duration, number: u32, draw: &mut Draw) -> Duration {
    let base = u64::try_from(base.as_nanos()).unwrap_or(u64::MAX / 10).min(u64::MAX / 10);
    let factor = (1u64 << number.min(4)) - 1;
    match base.saturating_mul(factor.min(10)) {
        0 => Duration::ZERO,
        limit => Duration::from_nanos(draw.below(limit)),
    }
}

#[cfg(test)]
mod tests;
