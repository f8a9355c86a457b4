//! Accepting tunnels for a workload that runs here: TLS, HTTP/2, and each CONNECT handed to the caller, who answers it.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Method, Request, Response, StatusCode};
use rustls::ServerConfig;
use thiserror::Error;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tropis_model::{address::canonical, identity::Identity, resolve::Authority};
use tropis_net::drain::{DrainSignal, Phase};
use tropis_tls::peer::peer_identity;

use crate::{
    connection::{Beat, Keepalive, Load, Output, StreamGuard, TunnelSocket},
    frames::{self, Conduct, Counted, Excess},
    headers::{self, TunnelHeaders},
    settings::{self, Windows},
    stream::TunnelStream,
};

/// Settings of the accepting side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// Tunnels on one connection at once; more are refused.
    pub streams_per_connection: u32,
    /// How long TLS may take, and HTTP/2's preface after it.
    pub handshake_limit: Duration,
    /// How long a connection may stay without its first CONNECT.
    pub first_tunnel_limit: Duration,
    /// How often a silent peer is asked whether it lives.
    pub ping_interval: Duration,
    /// How long it may take to answer.
    pub ping_limit: Duration,
    /// What a peer may send ahead.
    pub windows: Windows,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            streams_per_connection: settings::SERVER_STREAMS,
            handshake_limit: settings::HANDSHAKE_LIMIT,
            first_tunnel_limit: settings::FIRST_TUNNEL_LIMIT,
            ping_interval: settings::PING_INTERVAL,
            ping_limit: settings::PING_LIMIT,
            windows: Windows::NODE,
        }
    }
}

/// A connection was not accepted. It is closed.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// TLS failed: the peer showed no certificate, or not one of our trust domain, or does not trust ours.
    #[error("TLS with {remote} failed")]
    Tls {
        /// The peer.
        remote: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// HTTP/2 failed.
    #[error("HTTP/2 with {remote} failed")]
    Http {
        /// The peer.
        remote: SocketAddr,
        /// Why.
        #[source]
        source: h2::Error,
    },
    /// The peer took too long.
    #[error("{remote} did not shake hands ({doing}) within {after:?}")]
    Timeout {
        /// The peer.
        remote: SocketAddr,
        /// TLS or HTTP/2.
        doing: &'static str,
        /// The limit.
        after: Duration,
    },
    /// The socket was gone already.
    #[error("the connection was gone before it was accepted")]
    Gone(#[source] io::Error),
}

/// A connection of a peer that proved who it is. [`Self::serve`] runs it.
pub struct Session {
    http: h2::server::Connection<Counted<TlsStream<TunnelSocket>>, Bytes>,
    conduct: Rc<Conduct>,
    keepalive: Keepalive,
    output: Output,
    load: Rc<Load>,
    facts: Rc<Facts>,
    first_tunnel_limit: Duration,
}

struct Facts {
    peer: Identity,
    remote: SocketAddr,
    local: SocketAddr,
}

/// How a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// The peer closed it, or everything was finished after a drain.
    Closed,
    /// The time to finish ran out: what was open was reset.
    Cut,
    /// The peer never asked for a tunnel.
    Unused,
    /// The peer did not answer a PING.
    Dead,
    /// The peer flooded it: it was told to calm down (ENHANCE_YOUR_CALM), and what was open was reset.
    Flooded(Excess),
    /// It broke.
    Broken(h2::Error),
    /// The socket broke.
    Lost(io::Error),
}

/// Shakes hands on an accepted socket as the workload that `config` is of.
///
/// # Errors
/// See [`AcceptError`].
pub async fn accept(stream: TcpStream, config: Arc<ServerConfig>, options: &ServerOptions) -> Result<Session, AcceptError> {
    let remote = canonical(stream.peer_addr().map_err(AcceptError::Gone)?);
    let local = canonical(stream.local_addr().map_err(AcceptError::Gone)?);
    let after = options.handshake_limit;
    let late = |doing| move |_| AcceptError::Timeout { remote, doing, after };
    let untrusted = |source| AcceptError::Tls { remote, source };

    let socket = TunnelSocket::new(stream);
    let output = socket.output();
    let shaking = TlsAcceptor::from(config).accept(socket);
    let mut tls = tokio::time::timeout(after, shaking).await.map_err(late("TLS"))?.map_err(untrusted)?;
    let session = tls.get_mut().1;
    session.set_buffer_limit(Some(settings::SEND_BUFFER_BYTES));
    let peer = peer_identity(session).ok_or_else(|| untrusted(io::Error::other("the peer has no identity")))?;

    let (counted, conduct) = frames::count(tls);
    let shaking = builder(options).handshake::<_, Bytes>(counted);
    let shaken = tokio::time::timeout(after, shaking).await.map_err(late("HTTP/2"))?;
    let mut http = shaken.map_err(|source| AcceptError::Http { remote, source })?;
    let pings = http.ping_pong().expect("taken only here");
    output.gather();
    Ok(Session {
        http,
        conduct,
        keepalive: Keepalive::new(pings, options.ping_interval, options.ping_limit),
        output,
        load: Load::new(Rc::default(), options.windows),
        facts: Rc::new(Facts { peer, remote, local }),
        first_tunnel_limit: options.first_tunnel_limit,
    })
}

fn builder(options: &ServerOptions) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(options.windows.stream)
        .initial_connection_window_size(options.windows.connection)
        .max_frame_size(options.windows.frame)
        .max_header_list_size(settings::REQUEST_HEADERS_BYTES)
        .max_send_buffer_size(settings::SEND_BUFFER_BYTES)
        .max_concurrent_streams(options.streams_per_connection)
        .max_concurrent_reset_streams(settings::REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(settings::PENDING_RESETS)
        .max_local_error_reset_streams(Some(settings::ERROR_RESETS))
        .data_frame_budget(settings::SMALL_FRAMES_BUDGET_BYTES);
    builder
}

/// How long the last words to a peer may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

enum Event {
    Tunnel(Box<(Request<RecvStream>, SendResponse<Bytes>)>),
    End(SessionEnd),
}

impl Session {
    /// Who the peer proved to be.
    pub fn peer(&self) -> &Identity {
        &self.facts.peer
    }

    /// Where the connection came from.
    pub fn remote(&self) -> SocketAddr {
        self.facts.remote
    }

    /// Where it came to: the pod's address.
    pub fn local(&self) -> SocketAddr {
        self.facts.local
    }

    /// Runs the connection until it ends, giving each tunnel that is asked for to `handler`, which is expected to spawn. Requests
    /// that make no sense are answered here (400). On a drain the peer is told (GOAWAY) and open tunnels go on until the drain cuts.
    pub async fn serve(mut self, drain: DrainSignal, mut handler: impl FnMut(IncomingTunnel)) -> SessionEnd {
        let (mut to_drain, mut to_cut) = (drain.clone(), drain);
        let mut draining = pin!(to_drain.draining());
        let mut cut = pin!(to_cut.cut());
        let mut unused = pin!(tokio::time::sleep(self.first_tunnel_limit));
        let conduct = Rc::clone(&self.conduct);
        let mut excess = pin!(conduct.excess());
        // From when it is closed for good, so that a peer who takes nothing cannot keep it.
        let mut closing = pin!(tokio::time::sleep(Duration::ZERO));
        let mut is_closing = false;
        let mut phase = Phase::Running;
        let mut is_used = false;
        let mut end_if_closed = SessionEnd::Closed;
        loop {
            let event = tokio::select! {
                biased;
                () = &mut cut, if phase < Phase::Cut => {
                    phase = Phase::Cut;
                    end_if_closed = SessionEnd::Cut;
                    self.http.abrupt_shutdown(Reason::NO_ERROR);
                    is_closing = true;
                    closing.as_mut().reset(Instant::now() + CLOSE_LIMIT);
                    continue;
                }
                () = &mut draining, if phase == Phase::Running => {
                    phase = Phase::Draining;
                    self.http.graceful_shutdown();
                    continue;
                }
                () = &mut unused, if !is_used => {
                    is_used = true;
                    end_if_closed = SessionEnd::Unused;
                    self.http.abrupt_shutdown(Reason::NO_ERROR);
                    is_closing = true;
                    closing.as_mut().reset(Instant::now() + CLOSE_LIMIT);
                    continue;
                }
                excess = &mut excess, if !is_closing => {
                    end_if_closed = SessionEnd::Flooded(excess);
                    self.http.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    is_closing = true;
                    closing.as_mut().reset(Instant::now() + CLOSE_LIMIT);
                    continue;
                }
                () = &mut closing, if is_closing => return end_if_closed,
                event = poll_fn(|cx| self.poll_event(cx)) => event,
            };
            match event {
                Event::Tunnel(asked) => {
                    is_used = true;
                    let (request, respond) = *asked;
                    if let Some(tunnel) = self.incoming(request, respond) {
                        handler(tunnel);
                    }
                }
                Event::End(SessionEnd::Closed) => return end_if_closed,
                // Our own GOAWAY with an error.
                Event::End(SessionEnd::Broken(_)) if matches!(end_if_closed, SessionEnd::Flooded(_)) => return end_if_closed,
                Event::End(end) => return end,
            }
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        self.load.register_driver(cx);
        if let Some(window) = self.load.take_window_change() {
            self.http.set_target_window_size(window);
        }
        while let Poll::Ready(beat) = self.keepalive.poll_beat(cx) {
            if beat == Beat::Dead {
                return Poll::Ready(Event::End(SessionEnd::Dead));
            }
        }
        let accepted = self.http.poll_accept(cx);
        if let Poll::Ready(Some(Ok(asked))) = accepted {
            return Poll::Ready(Event::Tunnel(Box::new(asked)));
        }
        if let Poll::Ready(Err(error)) = self.output.poll_send(cx) {
            return Poll::Ready(Event::End(SessionEnd::Lost(error)));
        }
        accepted.map(|ended| Event::End(ended.and_then(Result::err).map_or(SessionEnd::Closed, SessionEnd::Broken)))
    }

    fn incoming(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Option<IncomingTunnel> {
        let (parts, receive) = request.into_parts();
        let Some(authority) = connect_target(&parts) else {
            tracing::debug!(method = %parts.method, uri = %parts.uri, remote = %self.facts.remote, "request is not for a tunnel");
            answer(&mut respond, StatusCode::BAD_REQUEST);
            return None;
        };
        let answer = Answer { respond, receive, guard: self.load.start_stream() };
        let headers = TunnelHeaders::read(&parts.headers);
        Some(IncomingTunnel { authority, headers, facts: Rc::clone(&self.facts), answer: Some(answer) })
    }
}

/// What a CONNECT asks for; `None` for anything else, and for an authority without host or port.
fn connect_target(parts: &http::request::Parts) -> Option<Authority> {
    if parts.method != Method::CONNECT {
        return None;
    }
    parts.uri.authority()?.as_str().parse().ok()
}

fn answer(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // It fails only when the peer has given up meanwhile.
    let _ = respond.send_response(response, true);
}

/// A tunnel that a peer asks for. Dropped without an answer it is refused (503).
pub struct IncomingTunnel {
    authority: Authority,
    headers: TunnelHeaders,
    facts: Rc<Facts>,
    answer: Option<Answer>,
}

struct Answer {
    respond: SendResponse<Bytes>,
    receive: RecvStream,
    guard: StreamGuard,
}

impl IncomingTunnel {
    /// What is asked for.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What is said besides; not proven.
    pub fn headers(&self) -> &TunnelHeaders {
        &self.headers
    }

    /// Who asks, proven.
    pub fn peer(&self) -> &Identity {
        &self.facts.peer
    }

    /// Where the connection that carries it came from.
    pub fn remote(&self) -> SocketAddr {
        self.facts.remote
    }

    /// Where the connection that carries it came to.
    pub fn local(&self) -> SocketAddr {
        self.facts.local
    }

    /// Waits until the peer gives up, or its connection is gone: no use connecting any further.
    pub async fn abandoned(&mut self) {
        match &mut self.answer {
            Some(answer) => {
                let _ = poll_fn(|cx| answer.respond.poll_reset(cx)).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Opens it (200), with what may be said of the destination workload.
    ///
    /// # Errors
    /// The peer has given up meanwhile.
    pub fn accept(mut self, baggage: Option<&str>) -> io::Result<TunnelStream> {
        let Answer { mut respond, receive, guard } = self.answer.take().ok_or(io::ErrorKind::NotConnected)?;
        let mut response = Response::new(());
        if let Some(baggage) = baggage {
            headers::write_baggage(baggage, response.headers_mut());
        }
        let send = respond.send_response(response, false).map_err(|error| io::Error::new(io::ErrorKind::ConnectionReset, error))?;
        Ok(TunnelStream::new(send, receive, guard))
    }

    /// Says no: 400 for a destination that is not here, 401 for a denial, 503 when the application cannot be reached.
    pub fn refuse(mut self, status: StatusCode) {
        self.say_no(status);
    }

    fn say_no(&mut self, status: StatusCode) {
        if let Some(mut unanswered) = self.answer.take() {
            answer(&mut unanswered.respond, status);
        }
    }
}

impl Drop for IncomingTunnel {
    fn drop(&mut self) {
        self.say_no(StatusCode::SERVICE_UNAVAILABLE);
    }
}
