//! The relay: bytes between two streams until both directions have ended, with nothing added and nothing lost.
//!
//! Each direction ends by itself: a FIN is passed on at once and the other direction goes on. A reset is passed on as a reset. There
//! is no idle timeout; who wants one watches the control and stops it. The loop allocates nothing, locks nothing and logs nothing
//! (buffers: `block.rs`; what a side of the relay has to offer: [`RelayStream`]). Where to start: [`relay`].

mod control;
mod direction;
mod half_open;
mod stream;

use std::{fmt, future::poll_fn, io, task::Poll};

use tropis_model::outcome::{Reason, Side};

pub use self::{
    control::{RelayControl, StopReason},
    stream::{Plain, RelayStream},
};
use self::{
    direction::{Broken, Direction},
    half_open::HalfOpen,
};

/// What a relay needs besides its two sides.
#[derive(Debug, Clone, Default)]
pub struct RelayOptions {
    /// Watches and stops the relay while it runs; keep a clone.
    pub control: RelayControl,
}

/// How a relay went.
#[derive(Debug)]
pub struct RelayOutcome {
    /// From downstream to upstream.
    pub sent: Transfer,
    /// From upstream to downstream.
    pub received: Transfer,
    /// Why it ended.
    pub end: RelayEnd,
}

/// One direction of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes handed to the receiving side.
    pub bytes: u64,
    /// Whether it ended with a FIN that was passed on; otherwise it was cut.
    pub finished: bool,
}

/// Why a relay ended.
#[derive(Debug)]
pub enum RelayEnd {
    /// Both directions ended as the applications wished.
    Completed,
    /// The downstream reset the connection, or vanished.
    DownstreamReset(io::Error),
    /// The upstream reset the connection, or vanished.
    UpstreamReset(io::Error),
    /// [`RelayControl::stop`] was called; both sides were reset.
    Stopped(StopReason),
}

impl RelayEnd {
    /// The reason in the closed set of outcomes.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Completed => Reason::Completed,
            Self::DownstreamReset(_) => Reason::DownstreamReset,
            Self::UpstreamReset(_) => Reason::UpstreamReset,
            Self::Stopped(StopReason::PermitRevoked) => Reason::PermitRevoked,
            Self::Stopped(StopReason::Drained) => Reason::Drained,
            Self::Stopped(StopReason::TimeLimit) => Reason::TimeLimit,
        }
    }

    /// Whose doing it was.
    pub fn side(&self) -> Side {
        match self {
            Self::DownstreamReset(_) => Side::Downstream,
            Self::UpstreamReset(_) => Side::Upstream,
            Self::Completed | Self::Stopped(_) => Side::Mesh,
        }
    }
}

impl fmt::Display for RelayEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DownstreamReset(error) | Self::UpstreamReset(error) => write!(f, "{}: {error}", self.reason()),
            Self::Completed | Self::Stopped(_) => self.reason().fmt(f),
        }
    }
}

/// Moves bytes both ways until both directions have ended, or one side is reset, or it is stopped. Both streams are closed (or
/// reset) when it returns; dropping the future closes them too.
///
/// When a side takes no more (a write to it fails), what it had sent before is still delivered, then the other side is reset: an
/// application that answers and closes without reading everything is heard through the relay just as without it.
pub async fn relay<D: RelayStream, U: RelayStream>(mut downstream: D, mut upstream: U, options: &RelayOptions) -> RelayOutcome {
    let control = &options.control;
    let mut sending = Direction::new();
    let mut receiving = Direction::new();
    let mut watch = control.watch();
    let mut half_open = HalfOpen::default();
    let end = poll_fn(|cx| {
        if let Poll::Ready(reason) = watch.poll_stopped(cx) {
            return Poll::Ready(RelayEnd::Stopped(reason));
        }
        let sent = sending.poll(cx, &mut downstream, &mut upstream, receiving.has_broken_sink(), |total| control.count_sent(total));
        if let Poll::Ready(Err(Broken::Source(error))) = sent {
            return Poll::Ready(RelayEnd::DownstreamReset(error));
        }
        let received = receiving.poll(cx, &mut upstream, &mut downstream, sending.has_broken_sink(), |total| control.count_received(total));
        if let Poll::Ready(Err(Broken::Source(error))) = received {
            return Poll::Ready(RelayEnd::UpstreamReset(error));
        }
        match (sending.is_over(), receiving.is_over()) {
            (true, true) => Poll::Ready(end_of(&mut sending, &mut receiving)),
            (true, false) => half_open.poll_reset(cx, &mut downstream).map(RelayEnd::DownstreamReset),
            (false, true) => half_open.poll_reset(cx, &mut upstream).map(RelayEnd::UpstreamReset),
            (false, false) => Poll::Pending,
        }
    })
    .await;
    if !matches!(end, RelayEnd::Completed) {
        downstream.reset();
        upstream.reset();
    }
    RelayOutcome { sent: sending.transfer(), received: receiving.transfer(), end }
}

/// The end, now that neither direction has anything left to do. A side that took no more counts as reset by it.
fn end_of(sending: &mut Direction, receiving: &mut Direction) -> RelayEnd {
    match (sending.take_sink_error(), receiving.take_sink_error()) {
        (Some(error), _) => RelayEnd::UpstreamReset(error),
        (None, Some(error)) => RelayEnd::DownstreamReset(error),
        (None, None) => RelayEnd::Completed,
    }
}
