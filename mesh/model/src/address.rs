//! Addresses as newtypes, so that two of them cannot be swapped.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// A network's name; empty is the default network.
pub type Network = Arc<str>;

/// Where a captured connection was going before it was redirected: IP and port as the application dialled them (IPv4-mapped IPv6
/// addresses are made IPv4 first).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OriginalDestination(pub SocketAddr);

/// Where the connection that we accepted came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DownstreamAddress(pub SocketAddr);

/// An IP on one network; the same IP may exist on several.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network, empty for the default one.
    pub network: Network,
    /// The address, never IPv4-mapped.
    pub address: IpAddr,
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

/// `namespace/hostname`, the key of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    /// The service's namespace.
    pub namespace: Arc<str>,
    /// The service's hostname, `NAME.NAMESPACE.svc.DOMAIN` for a Kubernetes Service.
    pub hostname: Arc<str>,
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// Makes an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`) the IPv4 address that it stands for.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
