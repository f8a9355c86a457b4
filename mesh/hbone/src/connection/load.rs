//! How loaded a connection is: streams open, streams that stall, and the credit that makes up for what stalled ones hold.
//!
//! HTTP/2 has one window for all streams of a connection: a reader that stalls holds up to a stream's window of it, and four of them
//! would leave nothing for the others. So the connection's window grows by a stream's window for each stream that stalls here, up to a
//! limit. And a connection on which a stream stalls for long takes no new streams, so that one is alone with those it started with.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    task::{Context, Waker},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::settings::Windows;

/// Stalling for this long is long: far more than a healthy application needs to come back to its socket.
const LONG_STALL: Duration = Duration::from_secs(1);

/// The load of one connection, shared by its streams and its driver.
pub(crate) struct Load {
    streams: Cell<usize>,
    next_number: Cell<u64>,
    /// Streams whose application here takes nothing while there is something to take.
    blocked: Cell<usize>,
    /// Since when streams stall, in either direction.
    stalls: RefCell<BTreeMap<u64, Instant>>,
    idle_since: Cell<Instant>,
    driver: RefCell<Option<Waker>>,
    window: Cell<u32>,
    windows: Windows,
    /// Told when there may be room for another stream, here or on another connection.
    news: Rc<Notify>,
}

impl Load {
    pub(crate) fn new(news: Rc<Notify>, windows: Windows) -> Rc<Self> {
        Rc::new(Self {
            streams: Cell::new(0),
            next_number: Cell::new(0),
            blocked: Cell::new(0),
            stalls: RefCell::default(),
            idle_since: Cell::new(Instant::now()),
            driver: RefCell::default(),
            window: Cell::new(windows.connection),
            windows,
            news,
        })
    }

    /// Counts a stream until the guard is dropped.
    pub(crate) fn start_stream(self: &Rc<Self>) -> StreamGuard {
        self.streams.set(self.streams.get() + 1);
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        StreamGuard { load: Rc::clone(self), number, is_blocked: false, is_stalled: false }
    }

    pub(crate) fn streams(&self) -> usize {
        self.streams.get()
    }

    /// How long there has been no stream; `None` when there is one.
    pub(crate) fn idle_for(&self) -> Option<Duration> {
        (self.streams.get() == 0).then(|| self.idle_since.get().elapsed())
    }

    /// Whether a stream has stalled for long.
    pub(crate) fn is_stalled(&self) -> bool {
        let stalls = self.stalls.borrow();
        !stalls.is_empty() && stalls.values().any(|since| since.elapsed() >= LONG_STALL)
    }

    /// The driver's turn: it is woken when the window should change.
    pub(crate) fn register_driver(&self, cx: &Context<'_>) {
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
    }

    /// The window that the connection should have from now on, when that differs from the last answer.
    pub(crate) fn take_window_change(&self) -> Option<u32> {
        let wanted = window_for(self.blocked.get(), self.windows);
        (self.window.replace(wanted) != wanted).then_some(wanted)
    }

    /// Tells those who wait for a connection to look again.
    pub(crate) fn tell(&self) {
        self.news.notify_waiters();
    }

    fn wake_driver(&self) {
        if let Some(driver) = &*self.driver.borrow() {
            driver.wake_by_ref();
        }
    }
}

/// The window of a connection with so many streams blocked.
fn window_for(blocked: usize, windows: Windows) -> u32 {
    let extra = u32::try_from(blocked).unwrap_or(u32::MAX).saturating_mul(windows.stream);
    windows.connection.saturating_add(extra).min(windows.connection_limit)
}

/// One stream's part in the load.
pub(crate) struct StreamGuard {
    load: Rc<Load>,
    number: u64,
    is_blocked: bool,
    is_stalled: bool,
}

impl StreamGuard {
    /// The application here takes nothing, though there is something.
    pub(crate) fn block(&mut self) {
        if !self.is_blocked {
            self.is_blocked = true;
            self.load.blocked.set(self.load.blocked.get() + 1);
            self.load.wake_driver();
        }
        self.stall();
    }

    /// The application here takes again.
    pub(crate) fn unblock(&mut self) {
        if self.is_blocked {
            self.is_blocked = false;
            self.load.blocked.set(self.load.blocked.get() - 1);
            self.load.wake_driver();
            self.go_on();
        }
    }

    /// Nothing moves though there is something to move.
    pub(crate) fn stall(&mut self) {
        if !self.is_stalled {
            self.is_stalled = true;
            self.load.stalls.borrow_mut().insert(self.number, Instant::now());
        }
    }

    /// It moves again.
    pub(crate) fn go_on(&mut self) {
        if self.is_stalled {
            self.is_stalled = false;
            self.load.stalls.borrow_mut().remove(&self.number);
        }
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.unblock();
        self.go_on();
        let load = &self.load;
        load.streams.set(load.streams.get() - 1);
        if load.streams.get() == 0 {
            load.idle_since.set(Instant::now());
            // The driver may have been waiting for the last stream to end.
            load.wake_driver();
        }
        load.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_with_what_stalls_up_to_a_limit() {
        let mib = |bytes: u32| bytes / 1024 / 1024;
        for (blocked, expected) in [(0, 16), (1, 20), (4, 32), (28, 128), (29, 128), (usize::MAX, 128)] {
            assert_eq!(mib(window_for(blocked, Windows::NODE)), expected, "{blocked}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_stall_is_seen_and_forgotten_with_the_stream() {
        let load = Load::new(Rc::default(), Windows::NODE);
        let mut one = load.start_stream();
        let mut two = load.start_stream();
        one.block();
        one.block();
        assert_eq!((load.take_window_change(), load.take_window_change()), (Some(20 * 1024 * 1024), None));
        assert!(!load.is_stalled());
        tokio::time::advance(LONG_STALL).await;
        assert!(load.is_stalled());
        two.stall();
        drop(one);
        assert!(!load.is_stalled(), "the other has only begun to");
        assert_eq!(load.take_window_change(), Some(Windows::NODE.connection));
        tokio::time::advance(LONG_STALL).await;
        assert!(load.is_stalled());
        two.go_on();
        assert!(!load.is_stalled());
        assert!(load.idle_for().is_none());
        drop(two);
        assert_eq!((load.streams(), load.idle_for()), (0, Some(Duration::ZERO)));
    }
}
