//! How many connections callers may have, and how long one may stay that has proved nothing.
//!
//! Everybody in the cluster reaches the port, so a stranger may cost only a bounded share of it: of the places altogether, of those for
//! one address, and of time. A connection is proved by its first call with good credentials; one that is not ends by itself.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};
use tonic::transport::server::Connected;
use tracing::warn;

use crate::{
    metrics::{Metrics, RefusedConnection},
    sparing::Sparing,
};

/// How long a connection may stay without a call that proves its caller. Proxies call as soon as they are connected.
const PROVE_WITHIN: Duration = Duration::from_secs(10);
/// Of the places for one address, the share that connections may have which have proved nothing yet.
const UNPROVED_SHARE: usize = 8;
/// A connection ends after so many calls with bad credentials: each costs the check of a signature.
const MAX_REFUSED_CALLS: u32 = 32;

/// What callers may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections altogether.
    pub(crate) total: usize,
    /// Connections of one address.
    pub(crate) per_address: usize,
    /// Connections of one address that have proved nothing yet.
    pub(crate) unproved: usize,
    /// How long they may stay so.
    pub(crate) prove_within: Duration,
}

impl Limits {
    /// `per_address` of zero is no limit, for a control plane that sees its callers behind one address.
    pub(crate) fn new(total: usize, per_address: usize) -> Self {
        let per_address = if per_address == 0 { total } else { per_address.min(total) };
        Self { total, per_address, unproved: per_address.div_ceil(UNPROVED_SHARE), prove_within: PROVE_WITHIN }
    }
}

/// The places for connections. Clones share them.
#[derive(Clone)]
pub(crate) struct Places(Arc<Shared>);

struct Shared {
    limits: Limits,
    open: Mutex<Open>,
    metrics: Metrics,
    log: Sparing,
}

#[derive(Default)]
struct Open {
    total: usize,
    /// Only addresses that have a connection.
    by_address: HashMap<IpAddr, OfAddress>,
}

#[derive(Default, Clone, Copy)]
struct OfAddress {
    all: usize,
    unproved: usize,
}

impl Places {
    /// As many as `limits` says.
    pub(crate) fn new(limits: Limits, metrics: Metrics) -> Self {
        Self(Arc::new(Shared { limits, open: Mutex::default(), metrics, log: Sparing::default() }))
    }

    /// A place for a connection of `peer`, until the last clone is dropped; `None` if there is none.
    pub(crate) fn take(&self, peer: SocketAddr) -> Option<Arc<Place>> {
        let address = peer.ip().to_canonical();
        let taken = {
            let (mut open, limits) = (self.0.open(), &self.0.limits);
            let of_address = open.by_address.get(&address).copied().unwrap_or_default();
            if open.total >= limits.total {
                Err(RefusedConnection::Total)
            } else if of_address.all >= limits.per_address || of_address.unproved >= limits.unproved {
                Err(RefusedConnection::Address)
            } else {
                open.total += 1;
                open.by_address.insert(address, OfAddress { all: of_address.all + 1, unproved: of_address.unproved + 1 });
                Ok(open.total)
            }
        };
        match taken {
            Ok(total) => {
                self.0.metrics.connections(total);
                let (proved, refused) = (AtomicBool::new(false), AtomicU32::new(0));
                Some(Arc::new(Place { shared: self.0.clone(), peer, address, proved, refused }))
            }
            Err(reason) => {
                self.0.refused(peer, reason);
                None
            }
        }
    }

    /// A handshake came to nothing.
    pub(crate) fn handshake_failed(&self, peer: SocketAddr) {
        self.0.refused(peer, RefusedConnection::Handshake);
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        // Counts are changed together, by code that cannot panic in between.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, peer: SocketAddr, reason: RefusedConnection) {
        self.metrics.connection_refused(reason);
        if let Some(unsaid) = self.log.say() {
            warn!(%peer, reason = reason.text(), unsaid, "connection refused");
        }
    }
}

/// One connection's place, and what its caller has shown so far.
pub(crate) struct Place {
    shared: Arc<Shared>,
    peer: SocketAddr,
    address: IpAddr,
    proved: AtomicBool,
    refused: AtomicU32,
}

impl Place {
    /// Where the connection comes from.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// A call came with good credentials.
    pub(crate) fn prove(&self) {
        if !self.proved.swap(true, Ordering::Relaxed)
            && let Some(of_address) = self.shared.open().by_address.get_mut(&self.address)
        {
            of_address.unproved -= 1;
        }
    }

    /// A call came without.
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn is_proved(&self) -> bool {
        self.proved.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let total = {
            let mut open = self.shared.open();
            open.total -= 1;
            if let Some(of_address) = open.by_address.get_mut(&self.address) {
                of_address.all -= 1;
                of_address.unproved -= usize::from(!*self.proved.get_mut());
                if of_address.all == 0 {
                    open.by_address.remove(&self.address);
                }
            }
            open.total
        };
        self.shared.metrics.connections(total);
    }
}

/// A connection in its place: reading from it fails once its time to prove itself is over.
pub(crate) struct Placed<S> {
    stream: S,
    place: Arc<Place>,
    due: Option<Pin<Box<Sleep>>>,
}

impl<S> Placed<S> {
    /// Time counts from here.
    pub(crate) fn new(stream: S, place: Arc<Place>) -> Self {
        let due = Some(Box::pin(tokio::time::sleep(place.shared.limits.prove_within)));
        Self { stream, place, due }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let place = &self.place;
        if place.refused.load(Ordering::Relaxed) >= MAX_REFUSED_CALLS {
            place.shared.refused(place.peer, RefusedConnection::Credentials);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "too many calls with bad credentials"));
        }
        let Some(due) = &mut self.due else { return Ok(()) };
        if place.is_proved() {
            self.due = None;
        } else if due.as_mut().poll(cx).is_ready() {
            place.shared.refused(place.peer, RefusedConnection::Idle);
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no call with good credentials in time"));
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Placed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(cx)?;
        Pin::new(&mut this.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Placed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// What a call knows about its connection.
#[derive(Clone)]
pub(crate) struct CallerConnection<I> {
    /// What the stream itself tells: the certificates.
    pub(crate) stream: I,
    /// Its place.
    pub(crate) place: Arc<Place>,
}

impl<S: Connected> Connected for Placed<S> {
    type ConnectInfo = CallerConnection<S::ConnectInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        CallerConnection { stream: self.stream.connect_info(), place: self.place.clone() }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };
    use tropis_telemetry::metrics::Metrics as Registry;

    use super::*;

    fn places(limits: Limits) -> (Places, Registry) {
        let registry = Registry::default();
        let metrics = registry.register(Metrics::new);
        (Places::new(limits, metrics), registry)
    }

    fn peer(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 1)
    }

    #[test]
    fn places_are_bounded_altogether_by_address_and_without_proof() {
        let (places, registry) = places(Limits { total: 5, per_address: 3, unproved: 2, prove_within: PROVE_WITHIN });
        let (a, mapped, b) = (peer("10.0.0.1"), peer("::ffff:10.0.0.1"), peer("fd00::1"));
        let first = places.take(a).unwrap();
        let second = places.take(mapped).unwrap();
        assert!(places.take(a).is_none(), "two have proved nothing");
        first.prove();
        first.prove();
        let third = places.take(a).unwrap();
        third.prove();
        assert!(places.take(a).is_none(), "three of one address");
        let others = [places.take(b).unwrap(), places.take(b).unwrap()];
        assert!(places.take(peer("fd00::2")).is_none(), "five altogether");
        drop((second, others));
        assert!(places.take(a).is_some());
        drop((first, third));
        assert!(places.0.open().by_address.is_empty() && places.0.open().total == 0);
        let (_, text) = registry.render("");
        assert!(text.contains("tropis_server_connections_refused_total{reason=\"address\"} 2"), "{text}");
        assert!(text.contains("tropis_server_connections_refused_total{reason=\"total\"} 1"), "{text}");
    }

    #[test]
    fn one_address_for_everybody_can_be_allowed() {
        let limits = Limits::new(100, 0);
        assert_eq!((limits.per_address, limits.unproved), (100, 13));
        assert_eq!(Limits::new(10, 512).per_address, 10);
    }

    /// Both ends of a connection, this one's in its place.
    async fn connection(limits: Limits) -> (Placed<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        (Placed::new(stream, places(limits).0.take(peer).unwrap()), caller)
    }

    #[tokio::test]
    async fn who_proves_nothing_in_time_is_cut_off_however_busy() {
        let limits = Limits { prove_within: Duration::from_millis(100), ..Limits::new(10, 10) };
        let (mut idle, _caller) = connection(limits).await;
        assert_eq!(idle.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);

        let (mut busy, mut caller) = connection(limits).await;
        let writing = tokio::spawn(async move { while caller.write_all(b"x").await.is_ok() {} });
        let cut = async {
            loop {
                if let Err(error) = busy.read_u8().await {
                    return error.kind();
                }
            }
        };
        assert_eq!(cut.await, io::ErrorKind::TimedOut);
        drop(busy);
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn who_proved_itself_may_be_silent_until_it_shows_bad_credentials() {
        let limits = Limits { prove_within: Duration::from_millis(100), ..Limits::new(10, 10) };
        let (mut proved, mut caller) = connection(limits).await;
        proved.place.prove();
        assert!(tokio::time::timeout(limits.prove_within * 3, proved.read_u8()).await.is_err(), "it waits");
        for _ in 0..MAX_REFUSED_CALLS {
            proved.place.refuse();
        }
        caller.write_all(b"x").await.unwrap();
        assert_eq!(proved.read_u8().await.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
