//! A limit on time that is not the caller's: it does not run while more of the request is waited for, and begins anew with what comes. So a
//! slow upload is not the endpoint's fault, and an endpoint that cannot be reached, or takes nothing, is.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};
use tropis_model::request::RequestFacts;

use super::ForwardError;
use crate::body::Upload;

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// The time that a request has: the route's; for gRPC at most what its caller gives it (`grpc-timeout`).
pub fn of(route: Option<Duration>, facts: &RequestFacts<'_>, is_grpc: bool) -> Option<Duration> {
    let of_caller = facts.headers.get(GRPC_TIMEOUT).filter(|_| is_grpc).and_then(|value| grpc_timeout(value.as_bytes()));
    match (route, of_caller) {
        (Some(route), Some(of_caller)) => Some(route.min(of_caller)),
        (route, of_caller) => route.or(of_caller),
    }
}

/// At most eight digits and a unit (gRPC over HTTP/2, "Timeout"); anything else says nothing.
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(count * 3600)),
        b'M' => Some(Duration::from_secs(count * 60)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// A limit that may be running.
#[derive(Debug)]
pub struct Deadline {
    limit: Duration,
    upload: Upload,
    begun: Instant,
    running: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// A limit that begins now, and again with each part of `upload` that comes.
    pub fn new(limit: Duration, upload: Upload) -> Self {
        Self { limit, upload, begun: Instant::now(), running: None }
    }

    /// How long it is.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Ready when it is over.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let moved = ready!(self.upload.poll_waiting_for_others(cx));
            let end = moved.map_or(self.begun, |moved| moved.max(self.begun)) + self.limit;
            let running = self.running.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
            ready!(running.as_mut().poll(cx));
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            running.as_mut().reset(end);
        }
    }
}

/// Waits until the route's time is over, for ever without a limit.
pub async fn expired(deadline: Option<&mut Deadline>) -> ForwardError {
    match deadline {
        Some(deadline) => {
            poll_fn(|cx| deadline.poll(cx)).await;
            ForwardError::Timeout { after: deadline.limit }
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_has_digits_and_a_unit() {
        let cases = [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("100m", Some(Duration::from_millis(100))),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("0S", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("5", None),
            ("-5S", None),
            ("+5S", None),
            ("123456789S", None),
            ("5s", None),
            ("5 S", None),
        ];
        for (text, expected) in cases {
            assert_eq!(grpc_timeout(text.as_bytes()), expected, "{text:?}");
        }
    }
}
