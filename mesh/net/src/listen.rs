//! Listening sockets. They are made in a pod's namespace with [`crate::namespace::NetworkNamespace::run`] around these functions.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use crate::sockets::{self, Keepalive};

/// How a listener behaves. Accepted sockets inherit `TCP_NODELAY` (always on) and the keepalive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenOptions {
    /// Connections that may wait to be accepted, at most `net.core.somaxconn`. 1024: a burst of 500 must not be dropped.
    pub backlog: u32,
    /// `SO_REUSEPORT`: each worker, and the next process during an upgrade, binds the same port. Needs one effective user id.
    pub reuse_port: bool,
    /// For a wildcard or IPv6 address: take IPv6 only, so that an IPv4 twin can be bound beside it. Off: one socket takes both.
    pub only_v6: bool,
    /// `SO_MARK` ([`sockets::PACKET_MARK`]) where netfilter captures.
    pub mark: Option<u32>,
    /// `IP_TRANSPARENT`, which the return path of original-source connections needs where netfilter captures.
    pub transparent: Transparent,
    /// Keepalive of accepted sockets. Off for 15008, where HTTP/2 PING does it.
    pub keepalive: Option<Keepalive>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            backlog: 1024,
            reuse_port: true,
            only_v6: false,
            mark: None,
            transparent: Transparent::Off,
            keepalive: Some(Keepalive::default()),
        }
    }
}

/// Whether to ask for `IP_TRANSPARENT` (Istio's `ENABLE_ORIG_SRC`: false, unset, true).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transparent {
    /// Do not ask. The capture by BPF needs no such thing.
    #[default]
    Off,
    /// Ask; go on without when refused.
    Try,
    /// Refused is an error.
    Require,
}

/// A listener, not yet registered with a runtime: `tokio::net::TcpListener::from_std` on the worker that serves it does that.
#[derive(Debug)]
pub struct Listening {
    /// The non-blocking listener.
    pub listener: TcpListener,
    /// Whether `IP_TRANSPARENT` was granted, so original-source dialling can work.
    pub transparent: bool,
}

/// A listener cannot be had.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {call}")]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// The call that failed.
    pub call: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Binds a TCP listener on `address` in the namespace that the thread is in. `[::]` with `only_v6` off takes both families.
///
/// # Errors
/// The address is taken or not here, or an option was refused; the error names the call.
pub fn tcp_listener(address: SocketAddr, options: &ListenOptions) -> Result<Listening, ListenError> {
    let failed = |call| move |source| ListenError { address, call, source };
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP)).map_err(failed("socket"))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(options.only_v6).map_err(failed("IPV6_V6ONLY"))?;
    }
    socket.set_reuse_address(true).map_err(failed("SO_REUSEADDR"))?;
    if options.reuse_port {
        socket.set_reuse_port(true).map_err(failed("SO_REUSEPORT"))?;
    }
    if let Some(mark) = options.mark {
        socket.set_mark(mark).map_err(failed("SO_MARK, which needs CAP_NET_ADMIN"))?;
    }
    let transparent = match options.transparent {
        Transparent::Off => false,
        Transparent::Try => sockets::set_transparent(&socket, domain).is_ok(),
        Transparent::Require => {
            sockets::set_transparent(&socket, domain).map_err(failed("IP_TRANSPARENT, which needs CAP_NET_ADMIN"))?;
            true
        }
    };
    socket.set_tcp_nodelay(true).map_err(failed("TCP_NODELAY"))?;
    if let Some(keepalive) = options.keepalive {
        sockets::set_keepalive(&socket, keepalive).map_err(failed("SO_KEEPALIVE"))?;
    }
    socket.bind(&address.into()).map_err(failed("bind"))?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX)).map_err(failed("listen"))?;
    Ok(Listening { listener: socket.into(), transparent })
}

/// Binds a UDP socket on `address` in the namespace that the thread is in; only reuse, family and mark of the options apply.
///
/// # Errors
/// As [`tcp_listener`].
pub fn udp_socket(address: SocketAddr, options: &ListenOptions) -> Result<UdpSocket, ListenError> {
    let failed = |call| move |source| ListenError { address, call, source };
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP)).map_err(failed("socket"))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(options.only_v6).map_err(failed("IPV6_V6ONLY"))?;
    }
    if options.reuse_port {
        socket.set_reuse_port(true).map_err(failed("SO_REUSEPORT"))?;
    }
    if let Some(mark) = options.mark {
        socket.set_mark(mark).map_err(failed("SO_MARK, which needs CAP_NET_ADMIN"))?;
    }
    socket.bind(&address.into()).map_err(failed("bind"))?;
    Ok(socket.into())
}
