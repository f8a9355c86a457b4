//! The listeners inside a pod's network namespace: fixed ports, as istio-cni's rules and our hooks expect them.
//!
//! Each worker has listeners of its own (SO_REUSEPORT), so a connection stays on the thread that accepted it. Under our redirector one
//! of each kind is put into the pinned map ([`InCapture`]).

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsFd,
    sync::Arc,
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use thiserror::Error;
use tropis_maps::{ListenerKind, MapsError};
use tropis_model::resolve::HBONE_PORT;
use tropis_net::{
    listen::{ListenError, ListenOptions, tcp_listener, udp_socket},
    namespace::{NamespaceError, NetworkNamespace},
};

use super::Pod;
use crate::{app::Shared, config::Capture};

/// Where outbound connections are captured to.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where plain inbound connections are captured to.
pub const PASSTHROUGH_PORT: u16 = 15006;
/// Where DNS is captured to; the following ports are for further resolvers of the same pod.
pub const DNS_PORT: u16 = 15053;
/// Resolvers that a pod may ask: one DNS port for each (Linux's own resolver asks three at most).
pub const DNS_SLOTS: u8 = 8;

/// What one worker serves of one pod.
#[derive(Debug)]
pub struct WorkerListeners {
    /// Captured outbound connections.
    pub outbound: TcpListener,
    /// Captured plain inbound connections.
    pub passthrough: TcpListener,
    /// Tunnels.
    pub hbone: TcpListener,
    /// Callers' addresses can be kept by binding them (istio-cni).
    pub transparent: bool,
    /// DNS, on one of the workers.
    pub dns: Vec<DnsListeners>,
}

/// The sockets of one DNS slot.
#[derive(Debug)]
pub struct DnsListeners {
    /// Which of the pod's resolvers: 0 to 7.
    pub slot: u8,
    /// One a family.
    pub udp: Vec<UdpSocket>,
    /// One a family.
    pub tcp: Vec<TcpListener>,
}

/// A pod's listeners cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Its namespace cannot be entered.
    #[error("cannot open sockets in its network namespace")]
    Namespace(#[source] NamespaceError),
    /// A port cannot be bound.
    #[error("a listener is missing")]
    Listen(#[source] ListenError),
    /// A descriptor cannot be had.
    #[error("a listener cannot be kept")]
    Duplicate(#[source] io::Error),
    /// The capture's map does not take it.
    #[error("a listener cannot be registered with the capture")]
    Register(#[source] MapsError),
}

/// Addresses of one pod that count, so that a pod with thousands on its interfaces cannot fill the capture's map for all others: three
/// hundred pods with as many fit into it.
const MAX_ADDRESSES: usize = 32;

/// The addresses of a namespace's interfaces; loopback and link-local ones identify nothing and are left out. At most
/// [`MAX_ADDRESSES`], those of the loopback interface last, because nothing puts a pod's own address there.
pub fn addresses(namespace: &NetworkNamespace) -> Result<Vec<IpAddr>, NamespaceError> {
    let interfaces = namespace.run(getifaddrs)?;
    let addresses = interfaces.into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let address = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip())).or(address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))?;
        Some((interface.flags.contains(InterfaceFlags::IFF_LOOPBACK), address))
    });
    Ok(counting(addresses))
}

/// Those of `found`, each with whether it is the loopback interface's, that count.
fn counting(found: impl Iterator<Item = (bool, IpAddr)>) -> Vec<IpAddr> {
    let identifies = |address: &IpAddr| {
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        !address.is_loopback() && !link_local
    };
    let (mut of_loopback, mut others) = (BTreeSet::new(), BTreeSet::new());
    for (on_loopback, address) in found.filter(|(_, address)| identifies(address)) {
        let kept = if on_loopback { &mut of_loopback } else { &mut others };
        if kept.len() < MAX_ADDRESSES {
            kept.insert(address);
        }
    }
    let of_loopback = of_loopback.into_iter().filter(|address| !others.contains(address)).collect::<Vec<_>>();
    others.into_iter().chain(of_loopback).take(MAX_ADDRESSES).collect()
}

/// What the capture's map holds of a pod. The sockets are kept so that they can be put there again, when the redirector has made the map
/// anew; dropped before the pod's listeners are to close, since these are the same ones.
#[derive(Debug, Default)]
pub struct InCapture {
    sockets: Vec<(ListenerKind, TcpListener)>,
    /// The addresses whose entries are this pod's.
    entries: BTreeSet<IpAddr>,
    /// The map may be another one by now.
    outdated: bool,
}

impl InCapture {
    fn of(listeners: &WorkerListeners) -> io::Result<Self> {
        // One of each kind: the kernel picks among all workers' that share its port.
        let sockets = vec![
            (ListenerKind::Inbound, listeners.passthrough.try_clone()?),
            (ListenerKind::Hbone, listeners.hbone.try_clone()?),
            (ListenerKind::Outbound, listeners.outbound.try_clone()?),
        ];
        Ok(Self { sockets, ..Self::default() })
    }

    /// The map may have been made anew: everything is to be put there again.
    pub fn refresh(&mut self) {
        self.outdated = true;
    }

    /// Takes out what is at other addresses than `addresses`. To be done for all pods before any [`InCapture::add`], so that an entry is
    /// never another pod's when it is taken out.
    pub fn retain(&mut self, shared: &Shared, addresses: &[IpAddr]) -> Result<(), OpenError> {
        let lost: Vec<_> = self.entries.iter().filter(|entry| !addresses.contains(entry)).copied().collect();
        for address in lost {
            if let Some(maps) = shared.capture.get() {
                for (kind, _) in &self.sockets {
                    maps.remove_listener(address, *kind).map_err(OpenError::Register)?;
                }
            }
            self.entries.remove(&address);
        }
        Ok(())
    }

    /// Puts the listeners into the map at `addresses`, where there is a map and they are not there yet.
    pub fn add(&mut self, shared: &Shared, addresses: &[IpAddr]) -> Result<(), OpenError> {
        if shared.capture.wanted() && shared.capture.get().is_none() {
            shared.capture.reopen().map_err(OpenError::Register)?;
        }
        let Some(maps) = shared.capture.get() else { return Ok(()) };
        for address in addresses {
            if self.outdated || !self.entries.contains(address) {
                for (kind, listener) in &self.sockets {
                    maps.add_listener(*address, *kind, listener.as_fd()).map_err(OpenError::Register)?;
                }
                self.entries.insert(*address);
            }
        }
        self.outdated = false;
        Ok(())
    }
}

/// Opens a pod's listeners for `workers` workers. They are not in the capture yet.
pub fn open(shared: &Shared, pod: &Arc<Pod>, workers: usize) -> Result<(Vec<WorkerListeners>, InCapture), OpenError> {
    let mut opened = pod.run(|| open_here(shared, workers)).map_err(OpenError::Namespace)?.map_err(OpenError::Listen)?;
    let in_capture = match opened.first().filter(|_| shared.capture.wanted()) {
        Some(first) => InCapture::of(first).map_err(OpenError::Duplicate)?,
        None => InCapture::default(),
    };
    if shared.config.dns {
        // Spread over the workers by pod, since one pod's DNS needs one thread at most.
        let at = pod.uid.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % workers.max(1);
        if let Some(worker) = opened.get_mut(at) {
            worker.dns = pod.run(|| open_dns(shared)).map_err(OpenError::Namespace)?.map_err(OpenError::Listen)?;
        }
    }
    Ok((opened, in_capture))
}

fn open_here(shared: &Shared, workers: usize) -> Result<Vec<WorkerListeners>, ListenError> {
    let config = &shared.config;
    let any = |port| SocketAddr::new(if config.ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }, port);
    let options = ListenOptions {
        mark: config.capture.mark(),
        transparent: config.capture.transparent(),
        keepalive: config.keepalive,
        ..ListenOptions::default()
    };
    // HTTP/2 PING keeps tunnels alive.
    let hbone_options = ListenOptions { keepalive: None, ..options.clone() };
    let one = |_| {
        let outbound = tcp_listener(any(OUTBOUND_PORT), &options)?;
        let passthrough = tcp_listener(any(PASSTHROUGH_PORT), &options)?;
        let hbone = tcp_listener(any(HBONE_PORT), &hbone_options)?;
        let transparent = passthrough.transparent && hbone.transparent;
        Ok(WorkerListeners {
            outbound: outbound.listener,
            passthrough: passthrough.listener,
            hbone: hbone.listener,
            transparent,
            dns: Vec::new(),
        })
    };
    (0..workers).map(one).collect()
}

fn open_dns(shared: &Shared) -> Result<Vec<DnsListeners>, ListenError> {
    let config = &shared.config;
    let options = ListenOptions { mark: config.capture.mark(), only_v6: true, ..ListenOptions::default() };
    let slots = match config.capture {
        Capture::Hooks { .. } => DNS_SLOTS,
        // Netfilter cannot tell us which resolver was asked.
        Capture::Netfilter { .. } => 1,
    };
    let mut opened = Vec::new();
    for slot in 0..slots {
        let mut listeners = DnsListeners { slot, udp: Vec::new(), tcp: Vec::new() };
        let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        for loopback in loopbacks.into_iter().filter(|loopback| loopback.is_ipv4() || config.ipv6) {
            let address = SocketAddr::new(loopback, DNS_PORT + u16::from(slot));
            let bound = udp_socket(address, &options).and_then(|udp| Ok((udp, tcp_listener(address, &options)?.listener)));
            match bound {
                Ok((udp, tcp)) => {
                    listeners.udp.push(udp);
                    listeners.tcp.push(tcp);
                }
                // The pod has no IPv6.
                Err(error) if loopback.is_ipv6() && is_absent(&error.source) => {}
                Err(error) => return Err(error),
            }
        }
        opened.push(listeners);
    }
    Ok(opened)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(place: u16) -> IpAddr {
        let [high, low] = place.to_be_bytes();
        IpAddr::from([10, 9, high, low])
    }

    #[test]
    fn thousands_on_the_loopback_interface_do_not_push_out_the_pods_own() {
        let own: [IpAddr; 2] = ["10.244.1.6".parse().unwrap(), "fd00:10:244:1::6".parse().unwrap()];
        let junk = (0..10_000).map(|place| (true, v4(place)));
        let found = counting(junk.chain(own.map(|address| (false, address))));
        assert_eq!(found.len(), MAX_ADDRESSES);
        assert_eq!(found[..2], own);
    }

    #[test]
    fn no_interface_gives_more_than_the_limit() {
        assert_eq!(counting((0..10_000).map(|place| (false, v4(place)))).len(), MAX_ADDRESSES);
    }

    #[test]
    fn addresses_that_identify_nothing_are_left_out_and_none_is_told_twice() {
        let found = ["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "10.0.0.1"].map(|text| text.parse().unwrap());
        assert_eq!(counting(found.iter().flat_map(|address| [(true, *address), (false, *address)])), [found[4]]);
    }
}
