//! The connections of one endpoint and version: which are open, which wait for a request, which have room for another.

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use hyper::client::conn::{http1, http2};
use tokio::sync::Notify;
use tropis_model::{limits, pool::Limits};

use super::{Counts, Lease, making::Heir};
use crate::{body::RequestBody, stages::connect::ConnectError};

/// Connections of HTTP/1.1 that a slot keeps for as long as its pool allows them to be idle.
const SPARE_CONNECTIONS: usize = 4;
/// How long it keeps those beyond: a peak that is over would hold 40 KiB a connection, for an hour by default.
const SURPLUS_IDLE_LIMIT: Duration = Duration::from_secs(10);

/// The slot of one endpoint and version.
#[derive(Default)]
pub(super) struct Slot {
    /// Connections of HTTP/1.1 that wait for a request, the one used last at the end.
    idle: RefCell<Vec<Idle>>,
    /// Connections of HTTP/2 that take requests.
    shared: RefCell<Vec<Rc<Multiplexed>>>,
    open: Cell<usize>,
    next_number: Cell<u64>,
    /// Connections that are being made.
    connecting: Cell<usize>,
    /// Requests that wait for the one that they began.
    awaiting: Cell<usize>,
    /// Requests that wait here for a connection.
    waiting: Cell<usize>,
    /// Told when a connection may have become free, or could not be made.
    pub(super) news: Notify,
    /// How many connections could not be made, and why the last one could not.
    failures: Cell<u64>,
    failure: RefCell<Option<ConnectError>>,
}

struct Idle {
    one: Box<Single>,
    local: SocketAddr,
    since: Instant,
}

/// A connection of HTTP/1.1.
pub(super) struct Single {
    pub(super) sender: http1::SendRequest<RequestBody>,
    pub(super) number: u64,
    pub(super) requests: u32,
    pub(super) born: Instant,
    pub(super) limits: Limits,
    pub(super) counts: Counts,
    pub(super) heir: Heir,
}

impl Single {
    fn is_reusable(&self) -> bool {
        !self.sender.is_closed() && limits::reuse(&self.limits, self.requests) && !is_old(&self.limits, self.born)
    }
}

/// A connection of HTTP/2.
pub(super) struct Multiplexed {
    pub(super) sender: http2::SendRequest<RequestBody>,
    number: u64,
    pub(super) local: SocketAddr,
    streams: Cell<u32>,
    requests: Cell<u32>,
    born: Instant,
    idle_since: Cell<Instant>,
    /// Streams that the peer takes.
    pub(super) peer_streams: Cell<usize>,
    /// As the pool had them when it took its latest request.
    limits: RefCell<Limits>,
    counts: Counts,
}

impl Multiplexed {
    pub(super) fn new(sender: http2::SendRequest<RequestBody>, number: u64, local: SocketAddr, limits: Limits, counts: Counts) -> Self {
        let now = Instant::now();
        Self {
            sender,
            number,
            local,
            streams: Cell::new(0),
            requests: Cell::new(0),
            born: now,
            idle_since: Cell::new(now),
            peer_streams: Cell::new(usize::MAX),
            limits: RefCell::new(limits),
            counts,
        }
    }

    pub(super) fn started(&self) {
        self.streams.set(self.streams.get() + 1);
        self.requests.set(self.requests.get().saturating_add(1));
    }

    /// A stream has ended. One whose request was not sent does not count as a request of this connection.
    pub(super) fn ended(&self, was_sent: bool) {
        self.streams.set(self.streams.get() - 1);
        self.requests.set(self.requests.get().saturating_sub(u32::from(!was_sent)));
        self.idle_since.set(Instant::now());
    }

    /// Whether it may ever take another request.
    fn is_reusable(&self, limits: &Limits) -> bool {
        !self.sender.is_closed() && limits::reuse(limits, self.requests.get()) && !is_old(limits, self.born)
    }

    /// Whether it takes another request now.
    fn has_room(&self, limits: &Limits) -> bool {
        let streams = limits.max_concurrent_streams.map_or(usize::MAX, |limit| limit.max(1) as usize);
        (self.streams.get() as usize) < streams.min(self.peer_streams.get().max(1))
    }
}

fn is_old(limits: &Limits, born: Instant) -> bool {
    limits.max_connection_duration.is_some_and(|limit| born.elapsed() >= limit)
}

/// Says that a request waits, until it is dropped.
pub(super) struct Waiting<'a>(&'a Slot);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

/// Says that a request waits for the connection that it began, until it is dropped.
pub(super) struct Awaiting<'a>(&'a Slot);

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.0.awaiting.set(self.0.awaiting.get() - 1);
    }
}

/// Says that a connection is being made, until it is dropped.
pub(super) struct Connecting(Rc<Slot>);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.connecting.set(self.0.connecting.get() - 1);
        self.0.news.notify_waiters();
    }
}

impl Slot {
    /// A connection that takes a request now.
    pub(super) fn take(self: &Rc<Self>, limits: &Limits) -> Option<Lease> {
        {
            let mut shared = self.shared.borrow_mut();
            // One that takes no more ends with its last stream.
            shared.retain(|connection| connection.is_reusable(limits));
            if let Some(connection) = shared.iter().find(|connection| connection.has_room(limits)) {
                connection.limits.replace(limits.clone());
                return Some(Lease::shared(self.clone(), connection.clone()));
            }
        }
        let mut idle = self.idle.borrow_mut();
        // The one that was used last, as a rule. Those behind it that take no more go with the next sweep.
        for at in (0..idle.len()).rev() {
            if !idle[at].one.is_reusable() {
                drop(idle.remove(at));
            } else if idle[at].one.sender.is_ready() {
                let Idle { mut one, local, .. } = idle.remove(at);
                one.limits = limits.clone();
                return Some(Lease::single(self.clone(), one, local));
            }
        }
        None
    }

    /// Keeps a connection whose response has ended, if it may carry another request: for one that waits here, before anybody elsewhere
    /// who wants it closed.
    pub(super) fn keep(&self, one: Box<Single>, local: SocketAddr) {
        if one.is_reusable() && (self.waiting.get() > 0 || !one.counts.is_wanted()) {
            self.idle.borrow_mut().push(Idle { one, local, since: Instant::now() });
            self.news.notify_one();
        }
    }

    pub(super) fn share(&self, connection: Rc<Multiplexed>) {
        self.shared.borrow_mut().push(connection);
        self.news.notify_waiters();
    }

    /// Whether there is a connection of HTTP/2 that takes requests, now or later.
    pub(super) fn shares(&self) -> bool {
        !self.shared.borrow().is_empty()
    }

    /// A stream of this connection has ended: there is room for one that waits here, or else elsewhere.
    pub(super) fn release(&self, connection: &Multiplexed) {
        if self.waiting.get() == 0 && connection.counts.is_wanted() {
            self.close_idle(connection.number);
        }
        self.news.notify_one();
    }

    pub(super) fn start_waiting(&self) -> Waiting<'_> {
        self.waiting.set(self.waiting.get() + 1);
        Waiting(self)
    }

    /// Requests that wait here.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.get()
    }

    pub(super) fn start_connecting(self: &Rc<Self>) -> Connecting {
        self.connecting.set(self.connecting.get() + 1);
        Connecting(self.clone())
    }

    pub(super) fn start_awaiting(&self) -> Awaiting<'_> {
        self.awaiting.set(self.awaiting.get() + 1);
        Awaiting(self)
    }

    /// Connections that are being made though the request that began each has given up: they are for who waits.
    pub(super) fn orphans(&self) -> usize {
        self.connecting.get().saturating_sub(self.awaiting.get())
    }

    /// Whether a connection is being made.
    pub(super) fn is_connecting(&self) -> bool {
        self.connecting.get() > 0
    }

    /// A connection could not be made: the answer of all who wait for one, before any of them tries for as long again.
    pub(super) fn failed(&self, error: &ConnectError) {
        self.failures.set(self.failures.get() + 1);
        self.failure.replace(Some(error.clone()));
    }

    /// How many connections could not be made so far, for [`Self::failed_since`].
    pub(super) fn failures(&self) -> u64 {
        self.failures.get()
    }

    /// Why a connection could not be made, if one could not since there were `before` failures.
    pub(super) fn failed_since(&self, before: u64) -> Option<ConnectError> {
        self.failure.borrow().clone().filter(|_| self.failures.get() > before)
    }

    /// Counts a connection that was opened; its number.
    pub(super) fn opened(&self) -> u64 {
        self.open.set(self.open.get() + 1);
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        number
    }

    pub(super) fn closed(&self, number: u64) {
        self.open.set(self.open.get() - 1);
        self.close_idle(number);
        self.shared.borrow_mut().retain(|connection| connection.number != number);
        self.news.notify_waiters();
    }

    /// Closes this connection if it carries nothing.
    pub(super) fn close_idle(&self, number: u64) {
        self.idle.borrow_mut().retain(|idle| idle.one.number != number);
        self.shared.borrow_mut().retain(|connection| connection.number != number || connection.streams.get() > 0);
    }

    pub(super) fn open(&self) -> usize {
        self.open.get()
    }

    pub(super) fn idle(&self) -> usize {
        self.idle.borrow().len() + self.shared.borrow().iter().filter(|connection| connection.streams.get() == 0).count()
    }

    pub(super) fn sweep(&self, now: Instant) {
        let expired =
            |limits: &Limits, since: Instant| limits.idle_timeout.is_some_and(|limit| now.saturating_duration_since(since) >= limit);
        let mut idle = self.idle.borrow_mut();
        idle.retain(|idle| idle.one.is_reusable() && !expired(&idle.one.limits, idle.since));
        // Those that were used last are at the end.
        let surplus = idle.len().saturating_sub(SPARE_CONNECTIONS);
        let unused = idle[..surplus].partition_point(|idle| now.saturating_duration_since(idle.since) >= SURPLUS_IDLE_LIMIT);
        drop(idle.drain(..unused));
        drop(idle);
        let mut shared = self.shared.borrow_mut();
        shared.retain(|connection| {
            let limits = connection.limits.borrow();
            connection.is_reusable(&limits) && !(connection.streams.get() == 0 && expired(&limits, connection.idle_since.get()))
        });
        // A connection that is reminded looks how many streams its peer takes now, of which hyper tells nobody.
        if let Some(connection) = shared.first().filter(|_| self.waiting.get() > 0) {
            connection.counts.remind();
        }
    }

    pub(super) fn is_unused(&self) -> bool {
        // What waits here would go on in a slot that nobody finds any more.
        self.open.get() == 0 && !self.is_connecting() && self.waiting.get() == 0
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("open", &self.open.get()).field("idle", &self.idle()).finish_non_exhaustive()
    }
}
