//! Making a connection and opening a stream on it.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode, Uri, uri};
use tokio::{net::TcpStream, sync::Notify};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tropis_model::identity::Identity;
use tropis_net::dial::DialError;
use tropis_tls::{peer::peer_identity, store::Certificates};

use super::{Opened, PoolOptions, TunnelError, TunnelKey, TunnelRequest, error::BadPeer};
use crate::{
    connection::{Beat, Keepalive, Load, Output, StreamGuard, TunnelSocket},
    headers, settings,
    stream::TunnelStream,
};

/// A connection, as the pool sees it. Its driver is a task of its own and ends when the connection is retired and its last stream has
/// ended.
pub(super) struct Connection {
    /// Gone when it takes no more tunnels.
    send: RefCell<Option<SendRequest<Bytes>>>,
    load: Rc<Load>,
    address: SocketAddr,
    peer: Identity,
    local: SocketAddr,
    expires: SystemTime,
    /// The peer's settings have arrived.
    is_settled: Cell<bool>,
    is_used: Cell<bool>,
}

/// A stream was not opened.
pub(super) enum StreamFailure {
    /// The peer has not acted on it: another connection may be tried.
    Unharmed(TunnelError),
    /// It may have, or it said no.
    Final(TunnelError),
}

impl Connection {
    pub(super) fn load(&self) -> &Rc<Load> {
        &self.load
    }

    /// Neither retired nor older than the certificate that it was opened with: what a peer once checked does not outlive its proof.
    pub(super) fn takes_tunnels(&self) -> bool {
        if self.send.borrow().is_some() && SystemTime::now() >= self.expires {
            self.retire();
        }
        self.send.borrow().is_some()
    }

    /// The peer's limit on streams; `None` until its settings have arrived.
    pub(super) fn peer_limit(&self) -> Option<usize> {
        let send = self.send.borrow();
        send.as_ref().filter(|_| self.is_settled.get()).map(SendRequest::current_max_send_streams)
    }

    /// Something came from the peer that it can only send after its settings: who waits may know how many streams there are.
    fn settle(&self) {
        if !self.is_settled.replace(true) {
            self.load.tell();
        }
    }

    /// Takes no more tunnels. GOAWAY is sent, and the connection closed, when the last one has ended.
    pub(super) fn retire(&self) {
        self.send.borrow_mut().take();
    }

    /// Opens a tunnel and waits for the peer's answer.
    pub(super) async fn open(&self, request: &TunnelRequest, guard: StreamGuard, limit: Duration) -> Result<Opened, StreamFailure> {
        let address = self.address;
        let is_reused = self.is_used.replace(true);
        let connect = connect_request(request).map_err(StreamFailure::Final)?;
        let Some(mut send) = self.send.borrow().clone() else {
            return Err(StreamFailure::Unharmed(TunnelError::of_connection(address, h2::Reason::REFUSED_STREAM.into())));
        };
        let unharmed = |error| StreamFailure::Unharmed(TunnelError::of_connection(address, error));
        poll_fn(|cx| send.poll_ready(cx)).await.map_err(unharmed)?;
        let (response, stream) = send.send_request(connect, false).map_err(unharmed)?;
        drop(send);
        let response = match tokio::time::timeout(limit, response).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if is_unharmed(&error, is_reused) => return Err(unharmed(error)),
            Ok(Err(error)) => return Err(StreamFailure::Final(TunnelError::of_connection(address, error))),
            Err(_) => return Err(StreamFailure::Final(TunnelError::Timeout { address, doing: "opening the tunnel", after: limit })),
        };
        self.settle();
        let (parts, receive) = response.into_parts();
        match parts.status {
            StatusCode::OK => Ok(Opened {
                stream: TunnelStream::new(stream, receive, guard),
                peer: self.peer.clone(),
                local: self.local,
                baggage: headers::read_baggage(&parts.headers),
                is_reused,
            }),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(StreamFailure::Final(TunnelError::Denied { address, peer: self.peer.clone(), status }))
            }
            status => Err(StreamFailure::Final(TunnelError::Refused { address, peer: self.peer.clone(), status })),
        }
    }
}

/// Whether the peer has certainly done nothing: it refused the stream (RFC 9113 §8.7), said in GOAWAY that it will not look at it, or
/// the connection turned out to be dead, which a reused one may have been before we asked.
fn is_unharmed(error: &h2::Error, is_reused: bool) -> bool {
    error.reason() == Some(h2::Reason::REFUSED_STREAM) || error.is_go_away() || (is_reused && error.is_io())
}

fn connect_request(request: &TunnelRequest) -> Result<Request<()>, TunnelError> {
    let text = request.authority.to_string();
    let invalid = || TunnelError::Authority { authority: text.clone() };
    let authority: uri::Authority = text.parse().map_err(|_| invalid())?;
    let mut parts = uri::Parts::default();
    parts.authority = Some(authority);
    let mut connect = Request::new(());
    *connect.method_mut() = Method::CONNECT;
    *connect.uri_mut() = Uri::from_parts(parts).map_err(|_| invalid())?;
    *connect.version_mut() = http::Version::HTTP_2;
    request.headers.write(connect.headers_mut());
    Ok(connect)
}

/// Certificate, TCP, TLS, HTTP/2; then the driver runs by itself.
pub(super) async fn connect<D>(
    certificates: &Certificates,
    key: &TunnelKey,
    options: &PoolOptions,
    news: &Rc<Notify>,
    dial: &D,
) -> Result<Rc<Connection>, TunnelError>
where
    D: AsyncFn() -> Result<TcpStream, DialError>,
{
    let address = key.address;
    let certificate = certificates.get(&key.source_identity).await.map_err(TunnelError::Certificate)?;
    let stream = dial().await.map_err(|source| TunnelError::Dial { address, source: Arc::new(source) })?;
    let untrusted = |source: io::Error| TunnelError::Tls { address, source: Arc::new(source) };
    let local = stream.local_addr().map_err(untrusted)?;
    let config = certificate.client_config(&key.expected).map_err(|error| untrusted(io::Error::other(error)))?;
    let after = settings::HANDSHAKE_LIMIT;
    let late = |doing| move |_| TunnelError::Timeout { address, doing, after };

    let socket = TunnelSocket::new(stream);
    let output = socket.output();
    let shaking = TlsConnector::from(config).connect(address.ip().into(), socket);
    let mut tls = tokio::time::timeout(after, shaking).await.map_err(late("shaking hands (TLS)"))?.map_err(untrusted)?;
    let session = tls.get_mut().1;
    session.set_buffer_limit(Some(settings::SEND_BUFFER_BYTES));
    let peer = peer_identity(session).ok_or_else(|| untrusted(BadPeer::NoIdentity.into()))?;
    if session.alpn_protocol() != Some(b"h2") {
        return Err(untrusted(BadPeer::NotHttp2.into()));
    }

    let shaking = builder(options).handshake::<_, Bytes>(tls);
    let shaken = tokio::time::timeout(after, shaking).await.map_err(late("shaking hands (HTTP/2)"))?;
    let (send, mut http) = shaken.map_err(|error| TunnelError::of_connection(address, error))?;
    let load = Load::new(Rc::clone(news), options.windows);
    let pings = http.ping_pong().expect("taken only here");
    let connection = Rc::new(Connection {
        send: RefCell::new(Some(send)),
        load: Rc::clone(&load),
        address,
        peer,
        local,
        expires: certificate.not_after(),
        is_settled: Cell::new(false),
        is_used: Cell::new(false),
    });
    let keepalive = Keepalive::new(pings, options.ping_interval, options.ping_limit);
    output.gather();
    tokio::task::spawn_local(drive(http, keepalive, output, load, Rc::downgrade(&connection)));
    Ok(connection)
}

fn builder(options: &PoolOptions) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(options.windows.stream)
        .initial_connection_window_size(options.windows.connection)
        .max_frame_size(options.windows.frame)
        .max_header_list_size(settings::RESPONSE_HEADERS_BYTES)
        .max_send_buffer_size(settings::SEND_BUFFER_BYTES)
        .initial_max_send_streams(options.streams_per_connection)
        .max_concurrent_reset_streams(settings::REMEMBERED_RESETS)
        .max_local_error_reset_streams(Some(settings::ERROR_RESETS))
        .data_frame_budget(settings::SMALL_FRAMES_BUDGET_BYTES)
        .enable_push(false);
    builder
}

/// Runs a connection until it ends; then nobody gets it any more. It does not keep the pool's handle alive: an abandoned connection
/// ends with its last stream.
async fn drive(
    mut http: h2::client::Connection<TlsStream<TunnelSocket>, Bytes>,
    mut keepalive: Keepalive,
    output: Output,
    load: Rc<Load>,
    connection: Weak<Connection>,
) {
    let end = poll_fn(|cx| {
        load.register_driver(cx);
        if let Some(window) = load.take_window_change() {
            http.set_target_window_size(window);
        }
        while let Poll::Ready(beat) = keepalive.poll_beat(cx) {
            if beat == Beat::Dead {
                return Poll::Ready(Err("the peer did not answer a PING".to_owned()));
            }
            if let Some(connection) = connection.upgrade() {
                connection.settle();
            }
        }
        let end = Pin::new(&mut http).poll(cx);
        if let Poll::Ready(Err(error)) = output.poll_send(cx) {
            return Poll::Ready(Err(error.to_string()));
        }
        end.map_err(|error| error.to_string())
    })
    .await;
    if let Err(error) = end {
        tracing::debug!(error, "tunnel connection ended");
    }
    if let Some(connection) = connection.upgrade() {
        connection.retire();
    }
    load.tell();
}

#[cfg(test)]
mod tests {
    use tropis_model::resolve::Authority;

    use super::*;
    use crate::headers::TunnelHeaders;

    #[test]
    fn a_connect_request_has_an_authority_and_nothing_else() {
        for text in ["10.0.0.1:80", "[fd00::1]:80", "reviews.shop.svc.cluster.local:9080"] {
            let request = TunnelRequest { authority: text.parse().unwrap(), headers: TunnelHeaders::default() };
            let connect = connect_request(&request).unwrap();
            assert_eq!(connect.method(), Method::CONNECT);
            assert_eq!((connect.uri().authority().unwrap().as_str(), connect.uri().path_and_query()), (text, None));
            assert!(connect.uri().scheme().is_none());
        }
        let odd = TunnelRequest { authority: Authority::Hostname { hostname: "a b".into(), port: 1 }, headers: TunnelHeaders::default() };
        assert!(matches!(connect_request(&odd), Err(TunnelError::Authority { .. })));
    }

    #[test]
    fn only_what_certainly_had_no_effect_is_tried_again() {
        assert!(is_unharmed(&h2::Reason::REFUSED_STREAM.into(), false));
        for reason in [h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR, h2::Reason::NO_ERROR] {
            assert!(!is_unharmed(&reason.into(), true), "{reason}");
        }
    }
}
