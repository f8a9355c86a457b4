//! Dialling: a socket made in the right namespace, prepared before it connects, with a limit on how long that may take.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream};
use tropis_model::outcome::Reason;

use crate::{
    namespace::{NamespaceError, NetworkNamespace},
    sockets::{self, Keepalive},
};

/// How to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialOptions {
    /// How long connecting may take. 10 s: Linux has then sent four SYNs.
    pub timeout: Duration,
    /// Keepalive; off for tunnels, where HTTP/2 PING does it.
    pub keepalive: Option<Keepalive>,
    /// `SO_MARK` ([`sockets::PACKET_MARK`]) where netfilter captures.
    pub mark: Option<u32>,
}

impl Default for DialOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), keepalive: Some(Keepalive::default()), mark: None }
    }
}

/// The local address of a dialled socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DialFrom {
    /// Whatever the kernel picks.
    #[default]
    Any,
    /// An address of this namespace.
    Own(IpAddr),
    /// Somebody else's address (`IP_TRANSPARENT` and `IP_FREEBIND`): the original source, where netfilter captures. When the kernel
    /// refuses, a warning is logged and the kernel picks. Not used when it equals the destination, which would be a call to itself.
    Original(IpAddr),
}

/// Dialling failed.
#[derive(Debug, Error)]
pub enum DialError {
    /// The socket cannot be made in the namespace.
    #[error("cannot make a socket for {to}")]
    Namespace {
        /// The destination.
        to: SocketAddr,
        /// Why.
        #[source]
        source: NamespaceError,
    },
    /// The socket cannot be made or prepared.
    #[error("cannot prepare a socket for {to}: {call}")]
    Prepare {
        /// The destination.
        to: SocketAddr,
        /// The call that failed.
        call: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The other side refused, or the network did.
    #[error("cannot connect to {to}")]
    Connect {
        /// The destination.
        to: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody answered in time.
    #[error("no answer from {to} within {after:?}")]
    Timeout {
        /// The destination.
        to: SocketAddr,
        /// The limit.
        after: Duration,
    },
}

impl DialError {
    /// The reason in the closed set of outcomes.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Timeout { .. } => Reason::ConnectTimeout,
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::ConnectionRefused => Reason::ConnectRefused,
                io::ErrorKind::TimedOut => Reason::ConnectTimeout,
                _ => Reason::ConnectFailed,
            },
            Self::Namespace { .. } | Self::Prepare { .. } => Reason::ConnectFailed,
        }
    }
}

/// Connects to `to` with a socket of `namespace` (the thread's own when `None`). `before_connect` sees the socket after it is bound
/// and before it connects: the place to mark it in the capture's maps. `TCP_NODELAY` is always on.
///
/// # Errors
/// See [`DialError`]; [`DialError::reason`] gives the outcome.
pub async fn connect(
    namespace: Option<&NetworkNamespace>,
    from: DialFrom,
    to: SocketAddr,
    options: &DialOptions,
    before_connect: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> Result<TcpStream, DialError> {
    let make = || prepare(from, to, options);
    let socket = match namespace {
        Some(namespace) => namespace.run(make).map_err(|source| DialError::Namespace { to, source })?,
        None => make(),
    }?;
    before_connect(socket.as_fd()).map_err(|source| DialError::Prepare { to, call: "marking it for the capture", source })?;
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
    match tokio::time::timeout(options.timeout, connecting).await {
        Ok(connected) => connected.map_err(|source| DialError::Connect { to, source }),
        Err(_) => Err(DialError::Timeout { to, after: options.timeout }),
    }
}

fn prepare(from: DialFrom, to: SocketAddr, options: &DialOptions) -> Result<Socket, DialError> {
    let failed = |call| move |source| DialError::Prepare { to, call, source };
    let domain = Domain::for_address(to);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP)).map_err(failed("socket"))?;
    socket.set_tcp_nodelay(true).map_err(failed("TCP_NODELAY"))?;
    if let Some(keepalive) = options.keepalive {
        sockets::set_keepalive(&socket, keepalive).map_err(failed("SO_KEEPALIVE"))?;
    }
    if let Some(mark) = options.mark {
        socket.set_mark(mark).map_err(failed("SO_MARK, which needs CAP_NET_ADMIN"))?;
    }
    match from {
        DialFrom::Own(address) => socket.bind(&SocketAddr::new(address, 0).into()).map_err(failed("bind"))?,
        DialFrom::Original(address) if address != to.ip() => {
            if let Err(error) = bind_original(&socket, domain, address) {
                tracing::warn!(%error, source = %address, destination = %to, "cannot keep the caller's address: the application sees ours");
            }
        }
        DialFrom::Any | DialFrom::Original(_) => {}
    }
    Ok(socket)
}

fn bind_original(socket: &Socket, domain: Domain, address: IpAddr) -> io::Result<()> {
    sockets::set_transparent(socket, domain)?;
    sockets::set_freebind(socket, domain)?;
    socket.bind(&SocketAddr::new(address, 0).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connects_prepared_and_bound_on_both_families() {
        for (listen, own) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
            let listener = tokio::net::TcpListener::bind(listen).await.unwrap();
            let to = listener.local_addr().unwrap();
            let mut seen = false;
            let own: IpAddr = own.parse().unwrap();
            let stream = connect(None, DialFrom::Own(own), to, &DialOptions::default(), |_| {
                seen = true;
                Ok(())
            })
            .await
            .unwrap();
            assert!(seen);
            assert_eq!(stream.local_addr().unwrap().ip(), own);
            assert!(stream.nodelay().unwrap());
            assert!(socket2::SockRef::from(&stream).keepalive().unwrap());
        }
    }

    #[tokio::test]
    async fn refusal_and_a_failing_hook_are_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        drop(listener);
        let refused = connect(None, DialFrom::Any, to, &DialOptions::default(), |_| Ok(())).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::ConnectRefused);
        let hook = connect(None, DialFrom::Any, to, &DialOptions::default(), |_| Err(io::Error::other("full"))).await.unwrap_err();
        assert!(matches!(hook, DialError::Prepare { .. }));
    }
}
