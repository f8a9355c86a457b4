//! The HTTP connections of a worker to endpoints: reused, bounded by the pool's limits, closed when idle, old or wanted elsewhere.
//!
//! A connection of HTTP/1.1 carries a request at a time and waits in its slot in between; one of HTTP/2 is shared while it has room. A
//! request that must wait for a connection counts as pending.

mod slot;

use std::{cell::RefCell, collections::HashMap, fmt, future::poll_fn, rc::Rc, sync::Arc, time::Instant};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::task::spawn_local;
use tropis_model::{limits::Overflow, pool::Limits};

use self::slot::{Multiplexed, Slot};
use super::{
    counts::{Held, Kind},
    members::Member,
    pools::Current,
};
use crate::{
    body::RequestBody,
    stages::connect::{self, ConnectError, Opened},
    worker::{LocalExecutor, Worker},
};

/// The version of HTTP on a connection to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Credit of a stream of HTTP/2 to an endpoint, and of a connection: as for tunnels, a quarter of it, since a response is read as it comes.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Streams that a peer is thought to take before it has said so.
const INITIAL_STREAMS: usize = 100;

/// All connections of a worker.
#[derive(Debug, Default)]
pub struct Connections {
    slots: RefCell<HashMap<(u64, HttpVersion), Rc<Slot>>>,
}

/// No connection can be had.
#[derive(Debug, Clone, Error)]
pub enum AcquireError {
    /// The pool is full.
    #[error(transparent)]
    Full(#[from] Overflow),
    /// The endpoint cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// A request that waits for a connection.
struct Waits<'a> {
    counts: &'a Counts,
    limits: &'a Limits,
    version: HttpVersion,
    slot: &'a Rc<Slot>,
}

/// What a request waited for.
enum Turn {
    /// A connection with room.
    Free(Lease),
    /// A place for a new one.
    Connect(Held),
}

/// What makes a connection.
struct Wanted<'a> {
    worker: &'a Rc<Worker>,
    current: &'a Current,
    member: &'a Member,
    version: HttpVersion,
}

impl Connections {
    /// A connection to `member` that takes a request: one that is open and has room, or a new one.
    pub async fn acquire(worker: &Rc<Worker>, current: &Current, member: &Member, version: HttpVersion) -> Result<Lease, AcquireError> {
        connect::speaks(&current.ready.pool.tls)?;
        let slot = worker.connections.slot(member, version);
        let limits = &current.ready.pool.limits;
        if let Some(lease) = slot.take(limits) {
            return Ok(lease);
        }
        let counts = &current.state.counts;
        let _pending = counts.take(Kind::PendingRequest, limits)?;
        let waiting = Waits { counts, limits, version, slot: &slot };
        let held = match waiting.turn().await? {
            Turn::Free(lease) => return Ok(lease),
            Turn::Connect(held) => held,
        };
        // What makes a connection is rare and large: boxed, so that requests do not carry room for it.
        Box::pin(Wanted { worker, current, member, version }.connect(&slot, held)).await
    }

    /// A connection of HTTP/1.1 for a request alone, which may turn it into something else.
    pub async fn exclusive(worker: &Rc<Worker>, current: &Current, member: &Member) -> Result<(Opened, Held), AcquireError> {
        let pool = &current.ready.pool;
        let counts = &current.state.counts;
        let _pending = counts.take(Kind::PendingRequest, &pool.limits)?;
        let slot = worker.connections.slot(member, HttpVersion::Http1);
        let held = tokio::select! {
            biased;
            error = slot.next_failure() => return Err(error.into()),
            held = counts.take_connection(&pool.limits) => held,
        };
        let _connecting = slot.start_connecting();
        let opened = connect::open(worker, &pool.key, member, &pool.limits, &pool.tls).await;
        Ok((opened.inspect_err(|error| slot.failed(error))?, held))
    }

    /// How many connections are open, and how many of them carry nothing.
    pub fn open(&self) -> (usize, usize) {
        let slots = self.slots.borrow();
        slots.values().fold((0, 0), |(open, idle), slot| (open + slot.open(), idle + slot.idle()))
    }

    /// Closes what has been idle or open for too long, and forgets endpoints without connections.
    pub fn sweep(&self, now: Instant) {
        self.slots.borrow_mut().retain(|_, slot| {
            slot.sweep(now);
            !slot.is_unused()
        });
    }

    fn slot(&self, member: &Member, version: HttpVersion) -> Rc<Slot> {
        self.slots.borrow_mut().entry((member.id, version)).or_default().clone()
    }
}

impl Waits<'_> {
    /// Waits until a connection has room, or one may be made. One that cannot be made meanwhile is the answer of all who wait: were they to
    /// try one after the other, each for its own time, the last would wait for the sum of it.
    async fn turn(self) -> Result<Turn, ConnectError> {
        let Self { counts, limits, version, slot } = self;
        let _waiting = slot.start_waiting();
        let failures = slot.failures();
        // Until when others may go on connecting; their connections may come, and be full, again and again.
        let mut patience = None;
        loop {
            let news = slot.news.notified();
            if let Some(lease) = slot.take(limits) {
                return Ok(Turn::Free(lease));
            }
            if let Some(error) = slot.failed_since(failures) {
                return Err(error);
            }
            if version == HttpVersion::Http2 && slot.is_connecting() {
                let after = limits.connect_timeout;
                let end = *patience.get_or_insert_with(|| tokio::time::Instant::now() + after);
                tokio::time::timeout_at(end, news).await.map_err(|_| ConnectError::Timeout { after })?;
                continue;
            }
            // Connections of other endpoints and workers carry streams all the time: to wait for one of them may be to wait for ever.
            if version == HttpVersion::Http2 && !slot.shares() {
                return Ok(Turn::Connect(counts.take_first_connection(limits)));
            }
            patience = None;
            tokio::select! {
                biased;
                () = news => {}
                held = counts.take_connection(limits) => return Ok(Turn::Connect(held)),
            }
        }
    }
}

impl Wanted<'_> {
    async fn connect(&self, slot: &Rc<Slot>, held: Held) -> Result<Lease, AcquireError> {
        let _connecting = slot.start_connecting();
        let after = self.current.ready.pool.limits.connect_timeout;
        // With HTTP's beginning, for which others wait as well.
        let made = tokio::time::timeout(after, self.make(slot, held)).await.unwrap_or(Err(ConnectError::Timeout { after }));
        Ok(made.inspect_err(|error| slot.failed(error))?)
    }

    async fn make(&self, slot: &Rc<Slot>, held: Held) -> Result<Lease, ConnectError> {
        let pool = &self.current.ready.pool;
        let opened = connect::open(self.worker, &pool.key, self.member, &pool.limits, &pool.tls).await?;
        let lease = match self.version {
            HttpVersion::Http1 => self.http1(slot, opened, held).await,
            HttpVersion::Http2 => self.http2(slot, opened, held).await,
        };
        lease.map_err(|error| ConnectError::Handshake(Rc::new(error)))
    }

    async fn http1(&self, slot: &Rc<Slot>, opened: Opened, held: Held) -> Result<Lease, hyper::Error> {
        let limits = &self.worker.shared.config.http;
        let mut builder = http1::Builder::new();
        builder.max_headers(limits.headers).max_buf_size(limits.header_bytes.max(8 * 1024));
        let (sender, connection) = builder.handshake(TokioIo::new(opened.stream)).await?;
        let number = slot.opened();
        let counts = self.current.state.counts.clone();
        spawn_local({
            let slot = slot.clone();
            async move {
                let mut connection = std::pin::pin!(connection);
                let mut heard = std::pin::pin!(counts.heard());
                let end = loop {
                    tokio::select! {
                        end = &mut connection => break end,
                        () = &mut heard => {
                            heard.set(counts.heard());
                            if counts.is_wanted() {
                                slot.close_idle(number);
                            }
                        }
                    }
                };
                if let Err(error) = end {
                    tracing::debug!(%error, "connection to an endpoint broke");
                }
                slot.closed(number);
                drop(held);
            }
        });
        let limits = self.current.ready.pool.limits.clone();
        let one = slot::Single { sender, number, requests: 0, born: Instant::now(), limits, counts: self.current.state.counts.clone() };
        Ok(Lease::single(slot.clone(), Box::new(one), opened.local))
    }

    async fn http2(&self, slot: &Rc<Slot>, opened: Opened, held: Held) -> Result<Lease, hyper::Error> {
        let pool = &self.current.ready.pool.limits;
        let limits = &self.worker.shared.config.http;
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_max_send_streams(INITIAL_STREAMS)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
        if let Some(keepalive) = pool.http2_keepalive {
            builder.keep_alive_interval(keepalive.interval).keep_alive_timeout(keepalive.timeout).keep_alive_while_idle(true);
        }
        let (sender, connection) = builder.handshake(TokioIo::new(opened.stream)).await?;
        let number = slot.opened();
        let counts = self.current.state.counts.clone();
        let shared = Rc::new(Multiplexed::new(sender, number, opened.local, pool.clone(), counts.clone()));
        shared.peer_streams.set(connection.current_max_send_streams());
        spawn_local({
            let (slot, weak) = (slot.clone(), Rc::downgrade(&shared));
            async move {
                let mut connection = std::pin::pin!(connection);
                let mut heard = std::pin::pin!(counts.heard());
                let end = poll_fn(|cx| {
                    if heard.as_mut().poll(cx).is_ready() {
                        heard.set(counts.heard());
                        // The new one is to be woken as well.
                        cx.waker().wake_by_ref();
                        if counts.is_wanted() {
                            slot.close_idle(number);
                        }
                    }
                    let end = connection.as_mut().poll(cx);
                    // What the peer takes may have changed since the last turn.
                    if let Some(shared) = weak.upgrade() {
                        let streams = connection.current_max_send_streams();
                        if shared.peer_streams.replace(streams) < streams {
                            slot.news.notify_waiters();
                        }
                    }
                    end
                });
                if let Err(error) = end.await {
                    tracing::debug!(%error, "connection to an endpoint broke");
                }
                slot.closed(number);
                drop(held);
            }
        });
        slot.share(shared.clone());
        Ok(Lease::shared(slot.clone(), shared))
    }
}

/// A connection while a request is on it. Dropped, it closes what cannot carry another; [`Lease::give_back`] keeps it.
pub struct Lease {
    slot: Rc<Slot>,
    carrier: Carrier,
    local: std::net::SocketAddr,
}

enum Carrier {
    Single(Option<Box<slot::Single>>),
    Shared(Rc<Multiplexed>),
}

impl Lease {
    fn single(slot: Rc<Slot>, one: Box<slot::Single>, local: std::net::SocketAddr) -> Self {
        Self { slot, carrier: Carrier::Single(Some(one)), local }
    }

    fn shared(slot: Rc<Slot>, shared: Rc<Multiplexed>) -> Self {
        shared.started();
        let local = shared.local;
        Self { slot, carrier: Carrier::Shared(shared), local }
    }

    /// Our end of the connection.
    pub fn local(&self) -> std::net::SocketAddr {
        self.local
    }

    /// Which version it speaks.
    pub fn version(&self) -> HttpVersion {
        match self.carrier {
            Carrier::Single(_) => HttpVersion::Http1,
            Carrier::Shared(_) => HttpVersion::Http2,
        }
    }

    /// Sends a request. The error holds the request where nothing of it was sent.
    pub async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match &mut self.carrier {
            Carrier::Single(Some(one)) => one.sender.try_send_request(request).await,
            Carrier::Single(None) => unreachable_lease(),
            Carrier::Shared(shared) => shared.sender.clone().try_send_request(request).await,
        }
    }

    /// The response has ended: others may have the connection.
    pub fn give_back(mut self) {
        if let Carrier::Single(one) = &mut self.carrier
            && let Some(mut one) = one.take()
        {
            one.requests += 1;
            self.slot.keep(one, self.local);
        }
    }
}

/// A lease has its connection until it is given back, which consumes the lease.
fn unreachable_lease() -> ! {
    unreachable!("a lease that was given back is gone")
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Carrier::Shared(shared) = &self.carrier {
            shared.ended();
            self.slot.release(shared);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("version", &self.version()).field("local", &self.local).finish_non_exhaustive()
    }
}

/// What a slot's connections count against.
type Counts = Arc<super::counts::Counts>;
