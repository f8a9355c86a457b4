//! Connect: opens a connection to an endpoint, through a tunnel of our own where it is in the mesh.
//!
//! The tunnel speaks for us, the waypoint: the endpoint's node lets us in because its policies say so, and we have checked the original
//! caller.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use thiserror::Error;
use tokio::net::TcpStream;
use tropis_hbone::{
    client::{TunnelError, TunnelKey, TunnelRequest},
    headers::{Forwarded, TunnelHeaders, baggage_of},
};
use tropis_model::{
    identity::Identity,
    outcome::{Reason, Side},
    pool::{Limits, PoolKey, UpstreamTls},
    resolve::Authority,
};
use tropis_net::{
    dial::{self, DialError, DialFrom, DialOptions},
    sockets::Keepalive,
};

use crate::{
    stream::Stream,
    upstream::members::{Member, Tunnel},
    worker::Worker,
};

/// A connection to an endpoint.
pub struct Opened {
    /// Its bytes.
    pub stream: Stream,
    /// Our end of it.
    pub local: SocketAddr,
    /// Who the endpoint proved to be.
    pub peer: Option<Identity>,
}

/// The endpoint could not be reached. Nothing was sent to it.
#[derive(Debug, Clone, Error)]
pub enum ConnectError {
    /// Plain TCP failed.
    #[error("the endpoint cannot be reached")]
    Dial(#[source] Rc<DialError>),
    /// No tunnel.
    #[error("no tunnel to the endpoint")]
    Tunnel(#[source] TunnelError),
    /// It took longer than the pool allows.
    #[error("connection timeout ({after:?})")]
    Timeout {
        /// The limit.
        after: Duration,
    },
    /// HTTP could not be begun on the connection.
    #[error("HTTP cannot be begun with the endpoint")]
    Handshake(#[source] Rc<hyper::Error>),
    /// The connection was gone at once.
    #[error("the connection was gone at once")]
    Gone(#[source] Rc<io::Error>),
    /// The pool asks for TLS towards the endpoint, which this proxy does not speak; plain would be less than was asked for.
    #[error("TLS towards endpoints is asked for and not supported")]
    TlsUnsupported,
}

impl ConnectError {
    /// The stable reason and whose fault it is.
    pub fn reason(&self) -> (Reason, Side) {
        match self {
            Self::Dial(error) => (error.reason(), Side::Upstream),
            Self::Tunnel(error) => (error.reason(), error.side()),
            Self::Timeout { .. } => (Reason::ConnectTimeout, Side::Upstream),
            Self::Handshake(_) | Self::Gone(_) => (Reason::ConnectFailed, Side::Upstream),
            Self::TlsUnsupported => (Reason::ConnectFailed, Side::Mesh),
        }
    }
}

/// Whether what a pool asks for can be spoken towards its endpoints; a connection from before it was asked for is no excuse.
pub fn speaks(tls: &UpstreamTls) -> Result<(), ConnectError> {
    if *tls == UpstreamTls::None { Ok(()) } else { Err(ConnectError::TlsUnsupported) }
}

/// Opens a connection to a member of the pool `key`.
pub async fn open(worker: &Rc<Worker>, key: &PoolKey, member: &Member, limits: &Limits, tls: &UpstreamTls) -> Result<Opened, ConnectError> {
    speaks(tls)?;
    let after = limits.connect_timeout;
    let opened = async {
        match &member.reach.tunnel {
            Some(tunnel) => open_tunnel(worker, key, member, tunnel).await,
            None => open_plain(member.reach.address, limits).await,
        }
    };
    tokio::time::timeout(after, opened).await.unwrap_or(Err(ConnectError::Timeout { after }))
}

async fn open_plain(to: SocketAddr, limits: &Limits) -> Result<Opened, ConnectError> {
    let default = Keepalive::default();
    let keepalive = limits.tcp_keepalive.map_or(default, |wanted| Keepalive {
        idle: wanted.time.unwrap_or(default.idle),
        interval: wanted.interval.unwrap_or(default.interval),
        probes: wanted.probes.unwrap_or(default.probes),
    });
    let options = DialOptions { timeout: limits.connect_timeout, keepalive: Some(keepalive), mark: None };
    let stream = dial::connect(None, DialFrom::Any, to, &options, |_| Ok(())).await.map_err(|error| ConnectError::Dial(Rc::new(error)))?;
    let local = stream.local_addr().map_err(|error| ConnectError::Gone(Rc::new(error)))?;
    Ok(Opened { stream: Stream::socket(stream), local, peer: None })
}

async fn open_tunnel(worker: &Rc<Worker>, pool: &PoolKey, member: &Member, tunnel: &Tunnel) -> Result<Opened, ConnectError> {
    let config = &worker.shared.config;
    let own = worker.own.borrow().clone();
    let key = TunnelKey {
        source: worker.shared.source.clone(),
        source_identity: config.identity.clone(),
        destination: member.reach.uid.clone(),
        address: tunnel.address,
        network: config.network.clone(),
        expected: tunnel.expected.clone(),
    };
    let headers = TunnelHeaders {
        forwarded: Some(Forwarded { source: None, host: Some(pool.host.hostname.to_string()) }),
        baggage: own.as_deref().map(baggage_of),
        traceparent: None,
    };
    let request = TunnelRequest { authority: Authority::Address(member.reach.address), headers };
    let address = tunnel.address;
    let opened = worker.tunnels.open(&key, &request, async move || dial_tunnel(address).await).await.map_err(ConnectError::Tunnel)?;
    Ok(Opened { stream: Stream::tunnel(opened.stream), local: opened.local, peer: Some(opened.peer) })
}

/// The connection that tunnels share. HTTP/2 PING keeps it alive.
async fn dial_tunnel(address: SocketAddr) -> Result<TcpStream, DialError> {
    let options = DialOptions { keepalive: None, ..DialOptions::default() };
    dial::connect(None, DialFrom::Any, address, &options, |_| Ok(())).await
}
