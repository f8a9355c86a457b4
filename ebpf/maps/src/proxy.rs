//! What the node proxy does with the maps: it puts its listeners where `sk_lookup` finds them, marks its own sockets, tells an
//! application which client it serves, and learns which resolver a DNS slot stands for.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use tropis_abi::{ListenerKey, Resolver, ResolverKey, Socket, kind, listener, map};

use crate::{
    MapsError, Pins,
    bpf::{self, Access},
    value::{Raw as _, address, ip},
};

/// A kind of listener that the node proxy has in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerKind {
    /// Takes captured connections, port 15001.
    Outbound,
    /// Takes connections from outside the mesh, port 15006: `sk_lookup` hands them to it.
    Inbound,
    /// Takes tunnels, port 15008: `sk_lookup` hands them to it.
    Hbone,
    /// Takes DNS over TCP, port 15053.
    Dns,
}

impl ListenerKind {
    fn number(self) -> u32 {
        match self {
            Self::Outbound => listener::OUTBOUND,
            Self::Inbound => listener::INBOUND,
            Self::Hbone => listener::HBONE,
            Self::Dns => listener::DNS,
        }
    }
}

/// The maps that the node proxy may open: by file permission, without any capability (seen on 6.18). It never loads or attaches.
#[derive(Debug)]
pub struct ProxyMaps {
    listeners: OwnedFd,
    sockets: OwnedFd,
    resolvers: OwnedFd,
}

impl ProxyMaps {
    /// Opens the pins of a node (`STATE/bpf/NODE`).
    ///
    /// # Errors
    /// The redirector has not pinned them yet, has pinned another schema version, or has given them to another account: try again later.
    pub fn open(pins: &Path) -> Result<Self, MapsError> {
        let pins = Pins::new(pins);
        let open = |name: &str, access| {
            let path = pins.map(name);
            bpf::open_pin(&path, access).map_err(|source| MapsError::Open { path, source })
        };
        Ok(Self {
            listeners: open(map::LISTENERS, Access::ReadWrite)?,
            sockets: open(map::SOCKETS, Access::ReadWrite)?,
            resolvers: open(map::RESOLVERS, Access::Read)?,
        })
    }

    /// Makes `socket`, which listens, the listener of its kind for one address of a pod; a later one takes its place. It leaves the map
    /// when it closes. A dual-stack listener is added once for each of the pod's addresses.
    pub fn add_listener(&self, pod: IpAddr, kind: ListenerKind, socket: BorrowedFd<'_>) -> Result<(), MapsError> {
        let key = ListenerKey { pod: address(pod), kind: kind.number() };
        let value = socket.as_raw_fd() as u32;
        bpf::update(self.listeners.as_fd(), key.bytes(), value.bytes())
            .map_err(|source| element("BPF_MAP_UPDATE_ELEM", map::LISTENERS, source))
    }

    /// Takes a listener out before it closes. No error when it is not there.
    pub fn remove_listener(&self, pod: IpAddr, kind: ListenerKind) -> Result<(), MapsError> {
        let key = ListenerKey { pod: address(pod), kind: kind.number() };
        bpf::delete(self.listeners.as_fd(), key.bytes()).map(drop).map_err(|source| element("BPF_MAP_DELETE_ELEM", map::LISTENERS, source))
    }

    /// Marks a socket as the proxy's own, before it connects or sends: it is never captured.
    pub fn mark_own(&self, socket: BorrowedFd<'_>) -> Result<(), MapsError> {
        self.keep(socket, &Socket { address: [0; 16], local: [0; 16], port: 0, padding: 0, kind: kind::OWN })
    }

    /// Makes the application that `socket` will connect to, inside the same pod, see `client` as its peer. Before connect. The socket is
    /// marked as the proxy's own with it.
    pub fn show_peer(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> Result<(), MapsError> {
        self.keep(socket, &Socket { address: address(client.ip()), local: [0; 16], port: client.port(), padding: 0, kind: kind::SHOW_PEER })
    }

    /// The resolver that a DNS slot of a pod stands for: `slot` is the port that the question came to, less the pod's first DNS port.
    /// `None` when the pod never asked one there.
    pub fn resolver(&self, netns_cookie: u64, slot: u8) -> Option<SocketAddr> {
        let key = ResolverKey { netns_cookie, slot: u32::from(slot), padding: 0 };
        let mut value = Resolver::zeroed();
        match bpf::lookup(self.resolvers.as_fd(), key.bytes(), value.bytes_mut()) {
            Ok(true) => Some(SocketAddr::new(ip(value.address), value.port as u16)),
            Ok(false) | Err(_) => None,
        }
    }

    fn keep(&self, socket: BorrowedFd<'_>, value: &Socket) -> Result<(), MapsError> {
        let key = socket.as_raw_fd() as u32;
        bpf::update(self.sockets.as_fd(), key.bytes(), value.bytes()).map_err(|source| element("BPF_MAP_UPDATE_ELEM", map::SOCKETS, source))
    }
}

fn element(call: &'static str, map: &'static str, source: io::Error) -> MapsError {
    MapsError::Element { call, map, source }
}
