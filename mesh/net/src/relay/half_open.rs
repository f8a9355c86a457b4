//! A connection of which one direction has ended: nothing is read from that side any more, so its reset would go unnoticed until
//! something is written to it, which may be never. So it is asked now and then.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use super::RelayStream;

/// How often. One system call and one timer, for half-open connections only; most are whole again, or gone, before the first.
const INTERVAL: Duration = Duration::from_secs(2);

/// The timer, from when it is first needed.
#[derive(Default)]
pub(super) struct HalfOpen {
    timer: Option<Pin<Box<Sleep>>>,
}

impl HalfOpen {
    /// Ready when the side whose FIN has been passed on was reset since.
    pub(super) fn poll_reset<S: RelayStream>(&mut self, cx: &mut Context<'_>, ended: &mut S) -> Poll<io::Error> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(INTERVAL)));
        while timer.as_mut().poll(cx).is_ready() {
            if let Poll::Ready(error) = ended.poll_error(cx) {
                return Poll::Ready(error);
            }
            timer.as_mut().reset(Instant::now() + INTERVAL);
        }
        Poll::Pending
    }
}
