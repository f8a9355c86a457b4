//! The port that proxies connect to (15012): TLS, and over it delta xDS and the certificate endpoint.
//!
//! Handshakes run beside each other, bounded in time and in number (`handshakes.rs`), so that one that stalls holds up nobody; what
//! connections may take altogether is decided in `connections.rs`. The server certificate is asked for at each handshake, hence it can
//! be replaced while connections go on. A client certificate is asked for and not required.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Extensions, Status,
    service::interceptor::InterceptedService,
    transport::{Server, server::Router},
};
use tracing::{debug, warn};
use tropis_telemetry::chain;
use tropis_xds::server::{Admitted, Clients, Discovery, Resources};

use crate::{
    ca::authority::Authority,
    caller::{Authenticator, Caller},
    certify::{self, Certify},
    connections::{Place, Placed, Places},
    handshakes::{Handshakes, Room},
    scope::Scope,
};

/// Connections that may wait in the kernel: all proxies of a mesh come back at once after a restart.
const BACKLOG: i32 = 4096;
/// Wait for a handshake to end where no room can be made for another.
const ROOM_PAUSE: Duration = Duration::from_millis(10);
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Accepted connections that may wait for the HTTP/2 server.
const ACCEPTED_QUEUE: usize = 64;
/// Pings find proxies that are gone without a word (what Istio's control plane uses too).
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long a ping may stay without an answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait after accept(2) failed, for want of file descriptors most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A connection carries one xDS stream and some certificate requests.
const MAX_STREAMS: u32 = 128;
/// How long the last answers may take when a connection is closed for its age; xDS streams have ended of themselves by then.
const AGE_GRACE: Duration = Duration::from_secs(5);
/// Connections without a stream last a little longer than streams, which end at their age or a tenth later.
const CONNECTION_OVER_STREAM: f64 = 1.2;

/// The port cannot be served.
#[derive(Debug, Error)]
pub(crate) enum ServeError {
    /// Another process holds it, or the address is not this host's.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The TLS library refuses the settings.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The authority's root cannot be used to check client certificates.
    #[error("cannot check client certificates")]
    Clients(#[source] rustls::server::VerifierBuilderError),
}

/// TLS 1.3 only, HTTP/2 only; clients may show a certificate of the authority.
pub(crate) fn tls(
    authority: &Authority,
    provider: &Arc<CryptoProvider>,
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, ServeError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.root().clone()).map_err(ServeError::Tls)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(ServeError::Clients)?;
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ServeError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would carry the client's certificate over its end.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Binds; an IPv6 address takes IPv6 only, so that `0.0.0.0` and `[::]` can be served side by side.
pub(crate) fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let bind = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    bind().map_err(|cause| ServeError::Listen { address, cause })
}

/// The gRPC services, behind authentication.
pub(crate) struct Services {
    /// Who calls.
    pub(crate) authenticator: Authenticator,
    /// Who may have what.
    pub(crate) scope: Arc<Scope>,
    /// The configuration.
    pub(crate) resources: Resources,
    /// Who has how much of it.
    pub(crate) clients: Clients,
    /// The certificate endpoint.
    pub(crate) certify: Certify,
    /// The age at which proxies are asked to come again.
    pub(crate) longest_connection: Option<Duration>,
}

/// A connection that the HTTP/2 server takes.
type Accepted = Placed<TlsStream<TcpStream>>;

impl Services {
    fn router(self, stop: CancellationToken) -> Router {
        let Self { authenticator, scope, resources, clients, certify, longest_connection } = self;
        let admit = move |extensions: &Extensions| -> Result<Admitted, Status> {
            let caller = extensions.get::<Caller>().ok_or_else(|| Status::unauthenticated("the caller was not authenticated"))?;
            scope.configuration(caller).map_err(|refused| certify::refusal(&refused))
        };
        let discovery = Discovery::new(resources, clients, admit, stop).longest_stream(longest_connection).into_service();
        let mut server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(MAX_STREAMS);
        if let Some(age) = longest_connection {
            server = server.max_connection_age(age.mul_f64(CONNECTION_OVER_STREAM)).max_connection_age_grace(AGE_GRACE);
        }
        server
            .add_service(InterceptedService::new(discovery, authenticator.clone()))
            .add_service(InterceptedService::new(certify.into_service(), authenticator))
    }
}

/// Serves on all listeners until `stop`.
pub(crate) async fn run(listeners: Vec<TcpListener>, tls: ServerConfig, places: Places, services: Services, stop: CancellationToken) {
    let (ready, accepted) = mpsc::channel(ACCEPTED_QUEUE);
    let door = Door { acceptor: TlsAcceptor::from(Arc::new(tls)), places, handshakes: Handshakes::default(), ready };
    for listener in listeners {
        tokio::spawn(door.clone().accept(listener, stop.clone()));
    }
    drop(door);
    let connections = ReceiverStream::new(accepted);
    if let Err(error) = services.router(stop.clone()).serve_with_incoming_shutdown(connections, stop.cancelled_owned()).await {
        warn!(error = chain(&error), "serving ended");
    }
}

/// Lets connections in.
#[derive(Clone)]
struct Door {
    acceptor: TlsAcceptor,
    places: Places,
    handshakes: Handshakes,
    ready: mpsc::Sender<io::Result<Accepted>>,
}

impl Door {
    async fn accept(self, listener: TcpListener, stop: CancellationToken) {
        loop {
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        warn!(error = chain(&error), "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
                () = stop.cancelled() => return,
            };
            let Some(place) = self.places.take(peer) else { continue };
            tokio::select! {
                () = self.room() => self.handshakes.start(peer, self.clone().shake_hands(stream, place)),
                () = stop.cancelled() => return,
            }
        }
    }

    /// Waits for room for a handshake. Meanwhile further connections stay in the kernel's queue.
    async fn room(&self) {
        loop {
            match self.handshakes.room() {
                Room::Made(None) => return,
                Room::Made(Some(ended)) => return self.places.handshake_failed(ended),
                Room::None => tokio::time::sleep(ROOM_PAUSE).await,
            }
        }
    }

    async fn shake_hands(self, stream: TcpStream, place: Arc<Place>) {
        let peer = place.peer();
        // Small messages should not wait for each other; without it they only do.
        let _ = stream.set_nodelay(true);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                // The server has stopped if nobody takes it.
                let _ = self.ready.send(Ok(Placed::new(stream, place))).await;
            }
            Ok(Err(error)) => {
                debug!(%peer, error = chain(&error), "TLS handshake failed");
                self.places.handshake_failed(peer);
            }
            Err(_) => {
                debug!(%peer, "TLS handshake timed out");
                self.places.handshake_failed(peer);
            }
        }
    }
}
