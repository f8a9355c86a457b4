//! Options that more than one kind of socket takes: keepalive, the packet mark, original source, reset on close.

use std::{io, os::fd::AsFd, time::Duration};

use socket2::{Domain, SockRef, Socket, TcpKeepalive};

/// `SO_MARK` on our own sockets where istio-cni captures: its rules let packets with this mark pass (0x539).
pub const PACKET_MARK: u32 = 1337;

/// TCP keepalive: finds peers that vanished without a word, since relayed connections have no idle timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without an answer before the connection counts as dead.
    pub probes: u32,
}

impl Default for Keepalive {
    /// 180 s, 180 s, 9: Istio's defaults, far below the idle limits of common NAT devices.
    fn default() -> Self {
        Self { idle: Duration::from_secs(180), interval: Duration::from_secs(180), probes: 9 }
    }
}

/// Turns keepalive on.
///
/// # Errors
/// The socket is not TCP, or a value is out of the kernel's range.
pub fn set_keepalive(socket: &impl AsFd, keepalive: Keepalive) -> io::Result<()> {
    let wanted = TcpKeepalive::new().with_time(keepalive.idle).with_interval(keepalive.interval).with_retries(keepalive.probes);
    SockRef::from(socket).set_tcp_keepalive(&wanted)
}

/// Makes the close that follows a reset (RST) instead of an orderly end (FIN), dropping what is unsent: how a denial or a broken
/// other side is told to an application.
///
/// # Errors
/// The socket is gone, in which case there is nobody left to tell.
pub fn set_linger_reset(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// `IP_TRANSPARENT` for the socket's family: lets it bind or answer as an address that is not ours. Needs `CAP_NET_ADMIN`.
pub(crate) fn set_transparent(socket: &Socket, domain: Domain) -> io::Result<()> {
    if domain == Domain::IPV6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
}

/// `IP_FREEBIND` for the socket's family: lets it bind an address that no interface has.
pub(crate) fn set_freebind(socket: &Socket, domain: Domain) -> io::Result<()> {
    if domain == Domain::IPV6 { socket.set_freebind_v6(true) } else { socket.set_freebind_v4(true) }
}
