//! Requests that a caller gives up as soon as it has made them (rapid reset, CVE-2023-44487).
//!
//! What is reset before we looked at it h2 counts. What is reset soon after has cost an endpoint a request already: a connection most of
//! whose requests end that way is ended, as by Envoy (`premature_reset_total_stream_count`).

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

/// So many requests a connection may make before it is judged: Envoy's default.
const JUDGED_FROM: u64 = 500;
/// A request that lived longer was not made in order to be given up: Envoy's default.
const SOON: Duration = Duration::from_secs(1);

/// Counts a connection's requests.
#[derive(Debug, Default)]
pub(super) struct Churn {
    begun: Cell<u64>,
    given_up: Cell<u64>,
    too_much: Notify,
}

impl Churn {
    /// A request has come.
    pub(super) fn begin(self: &Rc<Self>) -> Turn {
        self.begun.set(self.begun.get() + 1);
        Turn { churn: self.clone(), since: Instant::now(), is_over: false }
    }

    /// Waits until more than half of the requests were given up at once.
    pub(super) async fn too_much(&self) {
        self.too_much.notified().await;
    }

    fn give_up(&self) {
        self.given_up.set(self.given_up.get() + 1);
        if self.begun.get() >= JUDGED_FROM && self.given_up.get() > self.begun.get() / 2 {
            self.too_much.notify_one();
        }
    }
}

/// A request until its response has been sent; it was given up if this is dropped before.
#[derive(Debug)]
pub(super) struct Turn {
    churn: Rc<Churn>,
    since: Instant,
    is_over: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_over && self.since.elapsed() < SOON {
            self.churn.give_up();
        }
    }
}

/// A response's body, with its request's turn.
#[derive(Debug)]
pub(super) struct Answering<B: Body> {
    body: B,
    turn: Turn,
}

impl<B: Body> Answering<B> {
    /// What is left of a request when its response's head is there.
    pub(super) fn new(body: B, turn: Turn) -> Self {
        Self { body, turn }
    }
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => this.turn.is_over = frame.is_trailers() || this.body.is_end_stream(),
            // Whoever broke it off, it was not the caller.
            Poll::Ready(Some(Err(_)) | None) => this.turn.is_over = true,
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Body> Drop for Answering<B> {
    fn drop(&mut self) {
        // HTTP never asks for a body where there is none.
        self.turn.is_over |= self.body.is_end_stream();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn told(requests: u64, given_up: u64) -> bool {
        let churn = Rc::new(Churn::default());
        for number in 0..requests {
            churn.begin().is_over = number >= given_up;
        }
        churn.too_much().now_or_never().is_some()
    }

    #[test]
    fn most_requests_given_up_at_once_is_too_much() {
        assert!(told(JUDGED_FROM, JUDGED_FROM));
        assert!(!told(JUDGED_FROM - 1, JUDGED_FROM - 1), "few requests are no flood");
        assert!(!told(10 * JUDGED_FROM, JUDGED_FROM / 2), "a caller may change its mind");
    }

    #[test]
    fn a_request_that_lived_may_be_given_up() {
        let churn = Rc::new(Churn::default());
        let mut turn = churn.begin();
        turn.since -= SOON;
        drop(turn);
        assert_eq!(churn.given_up.get(), 0);
    }
}
