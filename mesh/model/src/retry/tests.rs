//! Every token of `retryOn`, and what ends a request's tries.

use proptest::prelude::*;

use super::*;

fn response(status: u16) -> TryOutcome {
    TryOutcome::Response { status, grpc_status: None }
}

fn on(on: RetryOn) -> Retries {
    Retries { attempts: 2, on, ..Retries::default() }
}

/// What is retried, of everything that can happen.
fn retried(on: &RetryOn) -> Vec<&'static str> {
    let outcomes = [
        ("200", response(200)),
        ("404", response(404)),
        ("409", response(409)),
        ("500", response(500)),
        ("503", response(503)),
        ("grpc 14", TryOutcome::Response { status: 200, grpc_status: Some(14) }),
        ("connect", TryOutcome::ConnectFailure),
        ("refused", TryOutcome::RefusedStream),
        ("reset early", TryOutcome::Reset { request_sent: false }),
        ("reset late", TryOutcome::Reset { request_sent: true }),
        ("timeout", TryOutcome::Timeout),
    ];
    outcomes.iter().filter(|(_, outcome)| calls_for_retry(on, outcome)).map(|(name, _)| *name).collect()
}

#[test]
fn retry_on_5xx_includes_what_becomes_one() {
    let on = RetryOn { server_error: true, ..RetryOn::default() };
    assert_eq!(retried(&on), ["500", "503", "connect", "refused", "reset early", "reset late", "timeout"]);
}

#[test]
fn retry_on_gateway_error_is_502_to_504() {
    let on = RetryOn { gateway_error: true, ..RetryOn::default() };
    assert_eq!(retried(&on), ["503", "connect", "refused", "reset early", "reset late", "timeout"]);
    assert_eq!([501, 502, 503, 504, 505].map(|status| calls_for_retry(&on, &response(status))), [false, true, true, true, false]);
}

#[test]
fn retry_on_reset_is_any_end_before_the_response() {
    let on = RetryOn { reset: true, ..RetryOn::default() };
    assert_eq!(retried(&on), ["connect", "refused", "reset early", "reset late", "timeout"]);
}

#[test]
fn retry_on_reset_before_request_needs_an_unsent_request() {
    let on = RetryOn { reset_before_request: true, ..RetryOn::default() };
    assert_eq!(retried(&on), ["connect", "reset early"]);
}

#[test]
fn retry_on_connect_failure_is_nothing_else() {
    assert_eq!(retried(&RetryOn { connect_failure: true, ..RetryOn::default() }), ["connect"]);
}

#[test]
fn retry_on_refused_stream_is_nothing_else() {
    assert_eq!(retried(&RetryOn { refused_stream: true, ..RetryOn::default() }), ["refused"]);
}

#[test]
fn retry_on_retriable_4xx_is_409() {
    assert_eq!(retried(&RetryOn { retriable_4xx: true, ..RetryOn::default() }), ["409"]);
}

#[test]
fn retry_on_status_codes_are_those_listed() {
    assert_eq!(retried(&RetryOn { statuses: vec![404, 503], ..RetryOn::default() }), ["404", "503"]);
}

#[test]
fn retry_on_grpc_codes_are_those_in_the_headers() {
    assert_eq!(retried(&RetryOn { grpc_statuses: vec![14], ..RetryOn::default() }), ["grpc 14"]);
    assert!(retried(&RetryOn { grpc_statuses: vec![1], ..RetryOn::default() }).is_empty());
}

#[test]
fn the_default_policy_does_not_retry_a_plain_503() {
    let on = RetryOn { connect_failure: true, refused_stream: true, grpc_statuses: vec![14, 1], ..RetryOn::default() };
    assert_eq!(retried(&on), ["grpc 14", "connect", "refused"]);
}

#[test]
fn attempts_counts_retries_and_not_tries() {
    let retries = on(RetryOn { server_error: true, ..RetryOn::default() });
    let decided = |done| decide(&retries, &response(503), done, true, false);
    assert_eq!([0, 1, 2].map(decided), [Decision::Retry, Decision::Retry, Decision::GiveUp(GiveUp::Exhausted)]);
}

#[test]
fn attempts_0_never_retries_and_is_not_exhausted() {
    let retries = Retries { attempts: 0, ..on(RetryOn { server_error: true, ..RetryOn::default() }) };
    assert_eq!(decide(&retries, &response(503), 0, true, false), Decision::GiveUp(GiveUp::NotRetriable));
}

#[test]
fn per_try_timeout_is_retried_where_the_policy_says_so() {
    let retries = on(RetryOn { gateway_error: true, ..RetryOn::default() });
    assert_eq!(decide(&retries, &TryOutcome::Timeout, 0, true, false), Decision::Retry);
    let retries = on(RetryOn { connect_failure: true, ..RetryOn::default() });
    assert_eq!(decide(&retries, &TryOutcome::Timeout, 0, true, false), Decision::GiveUp(GiveUp::NotRetriable));
}

#[test]
fn a_body_that_is_gone_is_never_sent_twice() {
    let retries = on(RetryOn { server_error: true, ..RetryOn::default() });
    assert_eq!(decide(&retries, &response(503), 0, false, false), Decision::GiveUp(GiveUp::NotReplayable));
}

#[test]
fn a_response_that_has_begun_is_never_followed_by_another() {
    let retries = on(RetryOn { server_error: true, ..RetryOn::default() });
    assert_eq!(decide(&retries, &TryOutcome::Reset { request_sent: true }, 0, true, true), Decision::GiveUp(GiveUp::ResponseStarted));
}

proptest! {
    #[test]
    fn backoff_is_below_its_limit_and_ten_times_the_base(base in 0u64..10_000, number in 0u32..40, seed: u64) {
        let wait = backoff(Duration::from_millis(base), number, &mut Draw::new(seed));
        let factor = 2u64.saturating_pow(number) - 1;
        let limit = Duration::from_millis(base * factor.min(10));
        prop_assert!(wait < limit || limit.is_zero() && wait.is_zero(), "{wait:?} of {limit:?}");
    }

    #[test]
    fn backoff_of_any_base_does_not_overflow(base: u64, number: u32, seed: u64) {
        backoff(Duration::from_secs(base), number, &mut Draw::new(seed));
    }
}
