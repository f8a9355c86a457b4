//! PING both ways of a connection's life: the first at once, since its answer says that the peer's settings have arrived; then one
//! every now and then, since a peer whose namespace vanished says nothing.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

/// The pinger of one connection.
pub(crate) struct Keepalive {
    pings: PingPong,
    timer: Pin<Box<Sleep>>,
    is_waiting: bool,
    interval: Duration,
    limit: Duration,
}

/// What a turn of the keepalive found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// The peer answered.
    Answered,
    /// It did not answer in time: the connection is dead.
    Dead,
}

impl Keepalive {
    pub(crate) fn new(pings: PingPong, interval: Duration, limit: Duration) -> Self {
        Self { pings, timer: Box::pin(tokio::time::sleep(Duration::ZERO)), is_waiting: false, interval, limit }
    }

    /// Moves on; ready when there is something to say. To be polled again after [`Beat::Answered`].
    pub(crate) fn poll_beat(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        loop {
            if self.is_waiting {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.is_waiting = false;
                        self.timer.as_mut().reset(Instant::now() + self.interval);
                        return Poll::Ready(Beat::Answered);
                    }
                    // The connection is closing, which it reports itself.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => return self.timer.as_mut().poll(cx).map(|()| Beat::Dead),
                }
            }
            if self.timer.as_mut().poll(cx).is_pending() || self.pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Pending;
            }
            self.is_waiting = true;
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
    }
}
