//! The handle on a running relay: byte counts to read, and a way to stop it from any thread.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures_util::task::AtomicWaker;

/// Counts and stops one relay. Cheap to clone; all clones are of the same relay.
#[derive(Debug, Clone, Default)]
pub struct RelayControl {
    shared: Arc<Shared>,
}

/// Why a relay was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// Policy no longer allows the connection.
    PermitRevoked,
    /// The time to finish ran out.
    Drained,
    /// Nothing was moved for too long, or it has lasted as long as it may.
    TimeLimit,
}

#[derive(Debug, Default)]
struct Shared {
    sent: AtomicU64,
    received: AtomicU64,
    stop: AtomicU8,
    waker: AtomicWaker,
}

const RUNNING: u8 = 0;
const REVOKED: u8 = 1;
const DRAINED: u8 = 2;
const TIME_LIMIT: u8 = 3;

impl RelayControl {
    /// A control for a relay that is yet to start. Stopping it before is remembered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops the relay: both sides are reset. The first reason stays.
    pub fn stop(&self, reason: StopReason) {
        let value = match reason {
            StopReason::PermitRevoked => REVOKED,
            StopReason::Drained => DRAINED,
            StopReason::TimeLimit => TIME_LIMIT,
        };
        if self.shared.stop.compare_exchange(RUNNING, value, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.shared.waker.wake();
        }
    }

    /// The reason it was stopped for, if it was.
    pub fn stopped(&self) -> Option<StopReason> {
        match self.shared.stop.load(Ordering::Acquire) {
            REVOKED => Some(StopReason::PermitRevoked),
            DRAINED => Some(StopReason::Drained),
            TIME_LIMIT => Some(StopReason::TimeLimit),
            _ => None,
        }
    }

    /// Bytes moved so far from downstream to upstream.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Bytes moved so far from upstream to downstream.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    pub(super) fn count_sent(&self, total: u64) {
        self.shared.sent.store(total, Ordering::Relaxed);
    }

    pub(super) fn count_received(&self, total: u64) {
        self.shared.received.store(total, Ordering::Relaxed);
    }

    pub(super) fn watch(&self) -> StopWatch<'_> {
        StopWatch { control: self, registered: None }
    }
}

/// The relay's view of being stopped: one relaxed load a turn, since the waker is registered only when it changes.
pub(super) struct StopWatch<'a> {
    control: &'a RelayControl,
    registered: Option<Waker>,
}

impl StopWatch<'_> {
    pub(super) fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StopReason> {
        if !self.registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.control.shared.waker.register(cx.waker());
            self.registered = Some(cx.waker().clone());
        }
        self.control.stopped().map_or(Poll::Pending, Poll::Ready)
    }
}
