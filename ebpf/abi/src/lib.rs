//! Map keys, values and flags as the kernel programs and the user side both see them.
//!
//! Nothing here does anything: it is the contract between `ebpf/programs` and `ebpf/maps`. Every layout is `repr(C)` with its padding
//! written out, because the kernel compares keys byte by byte, and its size is asserted. A change of any layout, map name or meaning
//! raises [`SCHEMA`]: pins live in a folder that carries the number, so that programs never meet a map of another shape.
//!
//! Addresses are 16 bytes in network order, IPv4 as IPv4-mapped (`::ffff:a.b.c.d`). Ports are in host order unless a name says otherwise.

#![no_std]

/// The version of everything in this crate. Pins are kept under `schema-<SCHEMA>`.
pub const SCHEMA: u32 = 3;

/// Names of the maps, which are their pins' file names too (the kernel cuts names at 15 bytes).
pub mod map {
    /// Enrolled pods: network namespace cookie ([`u64`]) to [`super::Pod`]. One entry is one enrolment.
    pub const PODS: &str = "PODS";
    /// Socket local storage: socket to [`super::Socket`].
    pub const SOCKETS: &str = "SOCKETS";
    /// Values on their way between the two ends of a loopback connection: [`super::Connection`] to [`super::Socket`].
    pub const HANDOVER: &str = "HANDOVER";
    /// The node proxy's listeners: [`super::ListenerKey`] to a listening socket.
    pub const LISTENERS: &str = "LISTENERS";
    /// Which resolver a DNS slot of a pod stands for: [`super::ResolverKey`] to [`super::Resolver`].
    pub const RESOLVERS: &str = "RESOLVERS";
    /// What happened to the connections that pods opened: cookie to [`super::OutboundCounters`], per CPU.
    pub const OUTBOUND: &str = "OUTBOUND";
    /// What happened to the connections that pods were sent: pod address to [`super::InboundCounters`], per CPU.
    pub const INBOUND: &str = "INBOUND";
    /// Cgroups of node proxies that cannot mark their own sockets: cgroup id ([`u64`]) to a [`u32`] that says nothing.
    pub const PROXIES: &str = "PROXIES";
}

/// How many DNS listener ports a pod has, hence how many resolvers it may ask at a time.
pub const DNS_SLOTS: u16 = 8;
/// Most pods of one node.
pub const MAX_PODS: usize = 4096;
/// Most connections between their two ends at a time; the oldest gives way (the proxy then refuses it, it never guesses).
pub const MAX_HANDOVERS: usize = 65536;
/// Most listeners: two families and the kinds that are looked up, for each pod.
pub const MAX_LISTENERS: usize = MAX_PODS * 8;
/// Most resolver slots in use.
pub const MAX_RESOLVERS: usize = MAX_PODS * DNS_SLOTS as usize;
/// Most cgroups of node proxies: one, two during an upgrade, and what earlier ones left.
pub const MAX_PROXIES: usize = 16;

/// 16 bytes in network order; IPv4 as IPv4-mapped.
pub type Address = [u8; 16];

/// The address of an IPv4 address.
pub const fn mapped(ipv4: [u8; 4]) -> Address {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ipv4[0], ipv4[1], ipv4[2], ipv4[3]]
}

/// [`Pod::flags`]: connections that the pod opens are captured. Without it (a pod being un-enrolled) they pass.
pub const POD_CAPTURES_OUTBOUND: u32 = 1;
/// [`Pod::flags`]: the pod has an IPv4 address.
pub const POD_HAS_IPV4: u32 = 2;
/// [`Pod::flags`]: the pod has an IPv6 address.
pub const POD_HAS_IPV6: u32 = 4;
/// [`Pod::flags`]: what processes of a cgroup in [`map::PROXIES`] dial from inside the pod passes. Without it that map means nothing.
pub const POD_FOREIGN_PROXY: u32 = 8;

/// An enrolled pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Pod {
    /// `POD_*`.
    pub flags: u32,
    /// The node proxy's listener for captured connections, on the pod's loopback.
    pub outbound_port: u16,
    /// The first of [`DNS_SLOTS`] DNS listener ports on the pod's loopback; 0: the pod's DNS is not captured.
    pub dns_port: u16,
    /// The pod's IPv4 address, IPv4-mapped; zero without one.
    pub ipv4: Address,
    /// The pod's IPv6 address; zero without one.
    pub ipv6: Address,
    /// The pod's UID as text, filled up with zeros: what a restarted redirector knows a pod again by.
    pub uid: [u8; 40],
}
const _: () = assert!(size_of::<Pod>() == 80);

/// What a socket is to us. The numbers are written by user space, too.
pub mod kind {
    /// An application's socket whose connect was captured; its value is the destination that it dialled.
    pub const CAPTURED: u32 = 1;
    /// The node proxy's end of a captured connection; the same value.
    pub const ACCEPTED: u32 = 2;
    /// The node proxy's own socket: never captured.
    pub const OWN: u32 = 3;
    /// The node proxy's own socket towards a local application; its value is the client that the application is to see.
    pub const SHOW_PEER: u32 = 4;
    /// The application's end of such a connection; the same value.
    pub const SHOWN: u32 = 5;
    /// An application's UDP socket connected to a resolver; its value is the resolver.
    pub const RESOLVING: u32 = 6;
}

/// What the kernel keeps with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Socket {
    /// The address that [`kind`] explains.
    pub address: Address,
    /// The pod's own address, which `getsockname` shows instead of the loopback address that we connected from.
    pub local: Address,
    /// The port that goes with `address`.
    pub port: u16,
    /// Zero.
    pub padding: u16,
    /// One of [`kind`].
    pub kind: u32,
}
const _: () = assert!(size_of::<Socket>() == 40);

/// A TCP connection as its one end sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Connection {
    /// The network namespace that both ends are in.
    pub netns_cookie: u64,
    /// This end's address.
    pub local: Address,
    /// The other end's address.
    pub remote: Address,
    /// This end's port.
    pub local_port: u16,
    /// The other end's port.
    pub remote_port: u16,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<Connection>() == 48);

/// The kinds of listener that a node proxy has in a pod.
pub mod listener {
    /// Takes captured connections (15001).
    pub const OUTBOUND: u32 = 1;
    /// Takes connections from outside the mesh (15006); `sk_lookup` hands them to it.
    pub const INBOUND: u32 = 2;
    /// Takes tunnels (15008).
    pub const HBONE: u32 = 3;
    /// Takes DNS over TCP (15053).
    pub const DNS: u32 = 4;
}

/// The port on which tunnels arrive: `sk_lookup` tells them apart by it.
pub const HBONE_PORT: u16 = 15008;

/// Names a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ListenerKey {
    /// The pod's address.
    pub pod: Address,
    /// One of [`listener`].
    pub kind: u32,
}
const _: () = assert!(size_of::<ListenerKey>() == 20);

/// Names a DNS slot of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ResolverKey {
    /// The pod's network namespace.
    pub netns_cookie: u64,
    /// From 0 to [`DNS_SLOTS`] - 1: the port asked, less [`Pod::dns_port`].
    pub slot: u32,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<ResolverKey>() == 16);

/// A resolver that a pod asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Resolver {
    /// Its address.
    pub address: Address,
    /// Its port.
    pub port: u32,
}
const _: () = assert!(size_of::<Resolver>() == 20);

/// What happened to the connections and questions of a pod. Each connect is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OutboundCounters {
    /// TCP connects that went to the node proxy.
    pub captured: u64,
    /// Datagrams to a resolver (or connects of UDP sockets to one) that went to the node proxy.
    pub dns_captured: u64,
    /// Refused: the pod asked more resolvers than it has slots.
    pub dns_refused: u64,
    /// Passed: to the pod itself (loopback or an address of its own).
    pub passed_self: u64,
    /// Refused: to an address of a family that the pod has no address of.
    pub refused_family: u64,
    /// Passed: the pod is being un-enrolled.
    pub passed_leaving: u64,
    /// Passed: the node proxy's own connects from inside the pod.
    pub passed_proxy: u64,
}
const _: () = assert!(size_of::<OutboundCounters>() == 56);

/// What happened to the connections that a pod was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct InboundCounters {
    /// Handed to the tunnel listener.
    pub hbone: u64,
    /// Handed to the passthrough listener.
    pub captured: u64,
    /// Refused, because the listener that should have had it is not there.
    pub refused: u64,
}
const _: () = assert!(size_of::<InboundCounters>() == 24);
