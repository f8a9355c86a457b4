//! The pool: tunnels to other workloads, as many streams on a connection as it takes, one pool per worker.
//!
//! A connection belongs to one source pod, one destination workload and the identities expected there, and leaves from the pod's own
//! namespace: the caller dials, the pool does TLS and HTTP/2. What to do for a caller is decided in `client/decide.rs`.

mod connect;
mod decide;
mod error;
mod slot;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use tokio::net::TcpStream;
use tropis_model::{address::Network, identity::Identity, resolve::Authority, workload::WorkloadUid};
use tropis_net::dial::DialError;
use tropis_tls::store::Certificates;

use self::{
    connect::{Connection, StreamFailure},
    decide::Decision,
    slot::Slot,
};
pub use self::{decide::CONNECTIONS_LIMIT, error::TunnelError};
use crate::{
    connection::StreamGuard,
    headers::TunnelHeaders,
    settings::{self, Windows},
    stream::TunnelStream,
};

/// Which connections may be shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// The pod that the tunnel leaves from, with its address.
    pub source: WorkloadUid,
    /// Whom the tunnel speaks for.
    pub source_identity: Identity,
    /// The workload that the tunnel ends at.
    pub destination: WorkloadUid,
    /// Its HBONE listener.
    pub address: SocketAddr,
    /// The network that the address is on.
    pub network: Network,
    /// The identities, one of which the peer must prove, in a fixed order.
    pub expected: Arc<[Identity]>,
}

/// What a tunnel is asked for.
#[derive(Debug, Clone)]
pub struct TunnelRequest {
    /// The CONNECT target.
    pub authority: Authority,
    /// What it says besides.
    pub headers: TunnelHeaders,
}

/// A tunnel that was opened.
pub struct Opened {
    /// The bytes.
    pub stream: TunnelStream,
    /// Who the peer proved to be.
    pub peer: Identity,
    /// Our end of the TCP connection that carries it.
    pub local: SocketAddr,
    /// What the peer says about the destination.
    pub baggage: Option<String>,
    /// Whether the connection had carried tunnels before.
    pub is_reused: bool,
}

/// Settings of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolOptions {
    /// Streams on one connection at most; the peer may say less (`POOL_MAX_STREAMS_PER_CONNECTION`).
    pub streams_per_connection: usize,
    /// A connection without streams is closed after this (`POOL_UNUSED_RELEASE_TIMEOUT`).
    pub unused_release: Duration,
    /// How often a silent peer is asked whether it lives.
    pub ping_interval: Duration,
    /// How long it may take to answer.
    pub ping_limit: Duration,
    /// How long the peer may take to answer a CONNECT.
    pub response_limit: Duration,
    /// What a peer may send ahead.
    pub windows: Windows,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            streams_per_connection: 100,
            unused_release: Duration::from_secs(5 * 60),
            ping_interval: settings::PING_INTERVAL,
            ping_limit: settings::PING_LIMIT,
            response_limit: settings::RESPONSE_LIMIT,
            windows: Windows::NODE,
        }
    }
}

/// The pool of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    certificates: Certificates,
    options: PoolOptions,
    slots: RefCell<HashMap<TunnelKey, Rc<Slot>>>,
    /// There is a task that lets unused connections go.
    is_swept: Cell<bool>,
}

/// How often a CONNECT that certainly had no effect is tried again on another connection.
const ATTEMPTS: usize = 3;
/// How often unused connections are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

impl Pool {
    /// A pool that proves identities with `certificates`. To be used within a `LocalSet` or `LocalRuntime`.
    pub fn new(certificates: Certificates, options: PoolOptions) -> Self {
        Self { inner: Rc::new(Inner { certificates, options, slots: RefCell::default(), is_swept: Cell::new(false) }) }
    }

    /// Opens a tunnel, on a connection that is open already where there is one with room. `dial` makes the TCP connection when one is
    /// needed: from the source pod's namespace, to `key.address`. It may be called more than once, and goes on when this future is
    /// dropped, for others who wait for the same connection.
    ///
    /// A CONNECT that the peer has certainly not acted on (its connection was closing, it refused the stream) is tried again.
    ///
    /// # Errors
    /// See [`TunnelError`]. Nothing was sent to the application.
    pub async fn open<D>(&self, key: &TunnelKey, request: &TunnelRequest, dial: D) -> Result<Opened, TunnelError>
    where
        D: AsyncFn() -> Result<TcpStream, DialError> + 'static,
    {
        let dial = Rc::new(dial);
        let mut attempt = 1;
        loop {
            let (connection, guard) = self.connection(key, &dial).await?;
            match connection.open(request, guard, self.inner.options.response_limit).await {
                Ok(opened) => return Ok(opened),
                Err(StreamFailure::Unharmed(error)) => {
                    connection.retire();
                    if attempt == ATTEMPTS {
                        return Err(error);
                    }
                    tracing::debug!(%error, attempt, address = %key.address, "tunnel tried again on another connection");
                    attempt += 1;
                }
                Err(StreamFailure::Final(error)) => return Err(error),
            }
        }
    }

    /// A pod stops, or its certificate must not be used any more: its connections take no new tunnels, tell their peers (GOAWAY), and
    /// close when their tunnels have ended; those without any close now.
    pub fn drain_source(&self, source: &WorkloadUid) {
        self.inner.slots.borrow_mut().retain(|key, slot| {
            let stays = key.source != *source;
            if !stays {
                slot.retire_all();
            }
            stays
        });
    }

    /// As [`Self::drain_source`], for all sources.
    pub fn drain(&self) {
        for (_, slot) in self.inner.slots.borrow_mut().drain() {
            slot.retire_all();
        }
    }

    /// How many connections take new tunnels now.
    pub fn connections(&self) -> usize {
        self.inner.slots.borrow().values().map(|slot| slot.connections()).sum()
    }

    /// How many tunnels are open on them.
    pub fn tunnels(&self) -> usize {
        self.inner.slots.borrow().values().map(|slot| slot.tunnels()).sum()
    }

    async fn connection<D>(&self, key: &TunnelKey, dial: &Rc<D>) -> Result<(Rc<Connection>, StreamGuard), TunnelError>
    where
        D: AsyncFn() -> Result<TcpStream, DialError> + 'static,
    {
        let slot = self.slot(key);
        loop {
            let news = Rc::clone(slot.news());
            let news = news.notified();
            let failures = slot.failures();
            match slot.decide(self.inner.options.streams_per_connection) {
                Decision::Use(connection) => {
                    let guard = connection.load().start_stream();
                    return Ok((connection, guard));
                }
                Decision::Full => return Err(TunnelError::LimitReached { address: key.address }),
                Decision::Connect => self.spawn_connect(key, &slot, Rc::clone(dial)),
                Decision::Wait => {}
            }
            let _waiting = slot.wait();
            news.await;
            if slot.failures() != failures
                && let Some(error) = slot.last_failure()
                && !slot.has_room(self.inner.options.streams_per_connection)
            {
                return Err(error);
            }
        }
    }

    fn slot(&self, key: &TunnelKey) -> Rc<Slot> {
        let mut slots = self.inner.slots.borrow_mut();
        if !self.inner.is_swept.replace(true) {
            tokio::task::spawn_local(sweep(Rc::downgrade(&self.inner)));
        }
        if let Some(slot) = slots.get(key) {
            return Rc::clone(slot);
        }
        Rc::clone(slots.entry(key.clone()).or_default())
    }

    fn spawn_connect<D>(&self, key: &TunnelKey, slot: &Rc<Slot>, dial: Rc<D>)
    where
        D: AsyncFn() -> Result<TcpStream, DialError> + 'static,
    {
        slot.connect_started();
        let (inner, slot, key) = (Rc::clone(&self.inner), Rc::clone(slot), key.clone());
        tokio::task::spawn_local(async move {
            let made = connect::connect(&inner.certificates, &key, &inner.options, slot.news(), &*dial).await;
            slot.connect_ended(made);
        });
    }
}

/// Closes connections that nobody has used for a while, and forgets keys without any. Ends when nothing is left, or with the pool.
async fn sweep(pool: Weak<Inner>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(inner) = pool.upgrade() else { return };
        let mut slots = inner.slots.borrow_mut();
        slots.retain(|_, slot| {
            slot.release_unused(inner.options.unused_release);
            !slot.is_empty()
        });
        if slots.is_empty() {
            inner.is_swept.set(false);
            return;
        }
    }
}
