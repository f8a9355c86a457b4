//! The HTTP connections of a worker to endpoints: reused, bounded by the pool's limits, closed when idle, old or wanted elsewhere.
//!
//! A connection of HTTP/1.1 carries a request at a time and waits in its slot in between; one of HTTP/2 is shared while it has room. A
//! request that must wait for a connection counts as pending.

mod making;
mod slot;

use std::{cell::RefCell, collections::HashMap, fmt, rc::Rc, sync::Arc, time::Instant};

use http::{Request, Response};
use hyper::{body::Incoming, client::conn::TrySendError};
use thiserror::Error;
use tokio::sync::oneshot;
use tropis_model::{limits::Overflow, pool::Limits};

pub use self::making::HandedOver;
use self::{
    making::Making,
    slot::{Multiplexed, Slot},
};
use super::{
    counts::{Held, Kind},
    members::Member,
    pools::Current,
};
use crate::{
    body::RequestBody,
    stages::connect::{self, ConnectError},
    worker::Worker,
};

/// The version of HTTP on a connection to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

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

impl Connections {
    /// A connection to `member` that takes a request: one that is open and has room, or a new one.
    pub async fn acquire(
        worker: &Rc<Worker>,
        current: &Current,
        member: &Arc<Member>,
        version: HttpVersion,
    ) -> Result<Lease, AcquireError> {
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
        let making = Making { worker: worker.clone(), current: current.clone(), member: member.clone(), version, slot };
        Ok(making.begin(held).await?)
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
        loop {
            let news = slot.news.notified();
            if let Some(lease) = slot.take(limits) {
                return Ok(Turn::Free(lease));
            }
            if let Some(error) = slot.failed_since(failures) {
                return Err(error);
            }
            let is_made_already = match version {
                HttpVersion::Http1 => slot.orphans() >= slot.waiting(),
                HttpVersion::Http2 => slot.is_connecting(),
            };
            if is_made_already {
                // It comes, or fails, within its own time; each that comes ends the wait of somebody.
                news.await;
                continue;
            }
            // Connections of other endpoints and workers carry streams all the time: to wait for one of them may be to wait for ever.
            if version == HttpVersion::Http2 && !slot.shares() {
                return Ok(Turn::Connect(counts.take_first_connection(limits)));
            }
            tokio::select! {
                biased;
                () = news => {}
                held = counts.take_connection(limits) => return Ok(Turn::Connect(held)),
            }
        }
    }
}

/// A connection while a request is on it. Dropped, it closes what cannot carry another; [`Lease::give_back`] keeps it.
pub struct Lease {
    slot: Rc<Slot>,
    carrier: Carrier,
    local: std::net::SocketAddr,
    /// Whether a request of HTTP/2 was sent.
    sent: bool,
}

enum Carrier {
    Single(Option<Box<slot::Single>>),
    Shared(Rc<Multiplexed>),
}

impl Lease {
    fn single(slot: Rc<Slot>, one: Box<slot::Single>, local: std::net::SocketAddr) -> Self {
        Self { slot, carrier: Carrier::Single(Some(one)), local, sent: false }
    }

    fn shared(slot: Rc<Slot>, shared: Rc<Multiplexed>) -> Self {
        shared.started();
        let local = shared.local;
        Self { slot, carrier: Carrier::Shared(shared), local, sent: false }
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
            Carrier::Single(Some(one)) => {
                one.requests += 1;
                one.sender.try_send_request(request).await
            }
            Carrier::Single(None) => unreachable_lease(),
            Carrier::Shared(shared) => {
                self.sent = true;
                shared.sender.clone().try_send_request(request).await
            }
        }
    }

    /// Says that the next request asks to change the protocol: if it is, the connection is the caller's once HTTP/1.1 has let go of it. One of
    /// HTTP/2 never is.
    pub fn hand_over(&self) -> oneshot::Receiver<HandedOver> {
        let (heir, handed_over) = oneshot::channel();
        if let Carrier::Single(Some(one)) = &self.carrier {
            one.heir.set(Some(heir));
        }
        handed_over
    }

    /// The response has ended, or nothing was sent: others may have the connection.
    pub fn give_back(mut self) {
        if let Carrier::Single(one) = &mut self.carrier
            && let Some(one) = one.take()
        {
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
            shared.ended(self.sent);
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
