//! What the redirector does with the maps: it enrols pods, reads what was counted, and removes what a pod leaves behind.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, OwnedFd},
};

use tropis_abi::{
    Address, DNS_SLOTS, InboundCounters, ListenerKey, MAX_LISTENERS, OutboundCounters, POD_CAPTURES_OUTBOUND, POD_FOREIGN_PROXY,
    POD_HAS_IPV4, POD_HAS_IPV6, Pod, ResolverKey, listener, map,
};
pub use tropis_abi::{InboundCounters as InboundCount, OutboundCounters as OutboundCount};

use crate::{
    MapsError, Pins,
    bpf::{self, Access},
    value::{Raw, address, ip},
};

/// An enrolled pod, as user space says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEntry {
    /// The pod's UID, at most 40 bytes.
    pub uid: String,
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Where captured connections go, on the pod's loopback.
    pub outbound_port: u16,
    /// The first of [`DNS_SLOTS`] DNS listener ports; 0: DNS is not captured.
    pub dns_port: u16,
    /// Connections that the pod opens are captured.
    pub captures: bool,
    /// The node proxy does not mark its sockets: what it dials from inside the pod is known by its cgroup ([`NodeMaps::admit_proxy`]).
    pub foreign_proxy: bool,
}

impl PodEntry {
    /// The pod's addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [self.ipv4.map(IpAddr::V4), self.ipv6.map(IpAddr::V6)].into_iter().flatten()
    }

    fn to_raw(&self) -> Pod {
        let mut flags = 0;
        if self.captures {
            flags |= POD_CAPTURES_OUTBOUND;
        }
        if self.foreign_proxy {
            flags |= POD_FOREIGN_PROXY;
        }
        if self.ipv4.is_some() {
            flags |= POD_HAS_IPV4;
        }
        if self.ipv6.is_some() {
            flags |= POD_HAS_IPV6;
        }
        let mut uid = [0; 40];
        let length = self.uid.len().min(uid.len());
        uid[..length].copy_from_slice(&self.uid.as_bytes()[..length]);
        Pod {
            flags,
            outbound_port: self.outbound_port,
            dns_port: self.dns_port,
            ipv4: self.ipv4.map_or([0; 16], |ip| address(ip.into())),
            ipv6: self.ipv6.map_or([0; 16], |ip| address(ip.into())),
            uid,
        }
    }

    fn from_raw(raw: &Pod) -> Self {
        let uid = raw.uid.split(|byte| *byte == 0).next().unwrap_or_default();
        Self {
            uid: String::from_utf8_lossy(uid).into_owned(),
            ipv4: match ip(raw.ipv4) {
                IpAddr::V4(ip) if raw.flags & POD_HAS_IPV4 != 0 => Some(ip),
                _ => None,
            },
            ipv6: match ip(raw.ipv6) {
                IpAddr::V6(ip) if raw.flags & POD_HAS_IPV6 != 0 => Some(ip),
                _ => None,
            },
            outbound_port: raw.outbound_port,
            dns_port: raw.dns_port,
            captures: raw.flags & POD_CAPTURES_OUTBOUND != 0,
            foreign_proxy: raw.flags & POD_FOREIGN_PROXY != 0,
        }
    }
}

/// All maps of a node.
#[derive(Debug)]
pub struct NodeMaps {
    pods: OwnedFd,
    listeners: OwnedFd,
    resolvers: OwnedFd,
    outbound: OwnedFd,
    inbound: OwnedFd,
    proxies: OwnedFd,
    cpus: usize,
}

impl NodeMaps {
    /// Opens the pins of a node. Needs `CAP_BPF` or root.
    pub fn open(pins: &Pins) -> Result<Self, MapsError> {
        let open = |name: &str| {
            let path = pins.map(name);
            bpf::open_pin(&path, Access::ReadWrite).map_err(|source| MapsError::Open { path, source })
        };
        let possible = "/sys/devices/system/cpu/possible";
        let cpus = std::fs::read_to_string(possible).map_err(|source| MapsError::Open { path: possible.into(), source })?;
        Ok(Self {
            pods: open(map::PODS)?,
            listeners: open(map::LISTENERS)?,
            resolvers: open(map::RESOLVERS)?,
            outbound: open(map::OUTBOUND)?,
            inbound: open(map::INBOUND)?,
            proxies: open(map::PROXIES)?,
            cpus: highest_cpu(&cpus) + 1,
        })
    }

    /// Enrols a pod, or changes its entry: one write. Its counters begin at zero unless they are there already.
    pub fn enrol(&self, netns_cookie: u64, pod: &PodEntry) -> Result<(), MapsError> {
        self.begin_counting::<_, OutboundCounters>(&self.outbound, map::OUTBOUND, &netns_cookie)?;
        for ip in pod.addresses() {
            self.begin_counting::<_, InboundCounters>(&self.inbound, map::INBOUND, &address(ip))?;
        }
        bpf::update(self.pods.as_fd(), netns_cookie.bytes(), pod.to_raw().bytes()).map_err(element("BPF_MAP_UPDATE_ELEM", map::PODS))
    }

    /// The entry of a namespace.
    pub fn pod(&self, netns_cookie: u64) -> Result<Option<PodEntry>, MapsError> {
        let mut raw = Pod::zeroed();
        let found =
            bpf::lookup(self.pods.as_fd(), netns_cookie.bytes(), raw.bytes_mut()).map_err(element("BPF_MAP_LOOKUP_ELEM", map::PODS))?;
        Ok(found.then(|| PodEntry::from_raw(&raw)))
    }

    /// All enrolled pods, with the cookies of their namespaces.
    pub fn pods(&self) -> Result<Vec<(u64, PodEntry)>, MapsError> {
        let mut pods = Vec::new();
        for cookie in numbers(&self.pods, map::PODS)? {
            if let Some(pod) = self.pod(cookie)? {
                pods.push((cookie, pod));
            }
        }
        Ok(pods)
    }

    /// Lets pass what processes of a cgroup (not of those below it) dial from inside pods whose entry says [`PodEntry::foreign_proxy`].
    pub fn admit_proxy(&self, cgroup: u64) -> Result<(), MapsError> {
        bpf::update(self.proxies.as_fd(), cgroup.bytes(), 1_u32.bytes()).map_err(element("BPF_MAP_UPDATE_ELEM", map::PROXIES))
    }

    /// The opposite. No error when it was not admitted.
    pub fn dismiss_proxy(&self, cgroup: u64) -> Result<(), MapsError> {
        bpf::delete(self.proxies.as_fd(), cgroup.bytes()).map(drop).map_err(element("BPF_MAP_DELETE_ELEM", map::PROXIES))
    }

    /// The cgroups that are admitted.
    pub fn proxies(&self) -> Result<Vec<u64>, MapsError> {
        numbers(&self.proxies, map::PROXIES)
    }

    /// Removes a pod with all that belongs to it: its entry, its counters, its resolver slots and its listeners. `addresses` are those
    /// that no other enrolled pod has taken over meanwhile.
    pub fn remove(&self, netns_cookie: u64, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), MapsError> {
        bpf::delete(self.pods.as_fd(), netns_cookie.bytes()).map_err(element("BPF_MAP_DELETE_ELEM", map::PODS))?;
        bpf::delete(self.outbound.as_fd(), netns_cookie.bytes()).map_err(element("BPF_MAP_DELETE_ELEM", map::OUTBOUND))?;
        for slot in 0..u32::from(DNS_SLOTS) {
            let key = ResolverKey { netns_cookie, slot, padding: 0 };
            bpf::delete(self.resolvers.as_fd(), key.bytes()).map_err(element("BPF_MAP_DELETE_ELEM", map::RESOLVERS))?;
        }
        for ip in addresses {
            bpf::delete(self.inbound.as_fd(), address(ip).bytes()).map_err(element("BPF_MAP_DELETE_ELEM", map::INBOUND))?;
            for kind in [listener::OUTBOUND, listener::INBOUND, listener::HBONE, listener::DNS] {
                let key = ListenerKey { pod: address(ip), kind };
                bpf::delete(self.listeners.as_fd(), key.bytes()).map_err(element("BPF_MAP_DELETE_ELEM", map::LISTENERS))?;
            }
        }
        Ok(())
    }

    /// Whether the node proxy has its outbound listener in the map for one of these addresses. Walks the map: not for every day.
    pub fn has_listeners(&self, pod: &[IpAddr]) -> Result<bool, MapsError> {
        let mut key = None::<ListenerKey>;
        let mut next = ListenerKey::zeroed();
        for _ in 0..MAX_LISTENERS {
            let more = bpf::next_key(self.listeners.as_fd(), key.as_ref().map(Raw::bytes), next.bytes_mut());
            if !more.map_err(element("BPF_MAP_GET_NEXT_KEY", map::LISTENERS))? {
                break;
            }
            if next.kind == listener::OUTBOUND && pod.contains(&ip(next.pod)) {
                return Ok(true);
            }
            key = Some(next);
        }
        Ok(false)
    }

    /// What happened to the connections that a pod opened.
    pub fn outbound(&self, netns_cookie: u64) -> Result<OutboundCount, MapsError> {
        let mut sum = OutboundCounters::default();
        self.per_cpu::<_, OutboundCounters>(&self.outbound, map::OUTBOUND, &netns_cookie, |one| {
            sum.captured += one.captured;
            sum.dns_captured += one.dns_captured;
            sum.dns_refused += one.dns_refused;
            sum.passed_self += one.passed_self;
            sum.refused_family += one.refused_family;
            sum.passed_leaving += one.passed_leaving;
            sum.passed_proxy += one.passed_proxy;
        })?;
        Ok(sum)
    }

    /// What happened to the connections that an address of a pod was sent.
    pub fn inbound(&self, pod: IpAddr) -> Result<InboundCount, MapsError> {
        let mut sum = InboundCounters::default();
        self.per_cpu::<_, InboundCounters>(&self.inbound, map::INBOUND, &address(pod), |one| {
            sum.hbone += one.hbone;
            sum.captured += one.captured;
            sum.refused += one.refused;
        })?;
        Ok(sum)
    }

    fn begin_counting<K: Raw, V: Raw>(&self, map: &OwnedFd, name: &'static str, key: &K) -> Result<(), MapsError> {
        let mut values = vec![0; size_of::<V>() * self.cpus];
        if bpf::lookup(map.as_fd(), key.bytes(), &mut values).map_err(element("BPF_MAP_LOOKUP_ELEM", name))? {
            return Ok(());
        }
        values.fill(0);
        bpf::update(map.as_fd(), key.bytes(), &values).map_err(element("BPF_MAP_UPDATE_ELEM", name))
    }

    /// Calls `add` with each CPU's value; not at all when there is no entry.
    fn per_cpu<K: Raw, V: Raw>(&self, map: &OwnedFd, name: &'static str, key: &K, mut add: impl FnMut(V)) -> Result<(), MapsError> {
        // The kernel rounds each CPU's value up to 8 bytes; ours are multiples of that.
        let mut values = vec![0; size_of::<V>() * self.cpus];
        if bpf::lookup(map.as_fd(), key.bytes(), &mut values).map_err(element("BPF_MAP_LOOKUP_ELEM", name))? {
            for bytes in values.chunks_exact(size_of::<V>()) {
                let mut value = V::zeroed();
                value.bytes_mut().copy_from_slice(bytes);
                add(value);
            }
        }
        Ok(())
    }
}

const _: () = assert!(size_of::<OutboundCounters>().is_multiple_of(8) && size_of::<InboundCounters>().is_multiple_of(8));
const _: () = assert!(size_of::<Address>() == 16);

/// The keys of a map that are numbers.
fn numbers(map: &OwnedFd, name: &'static str) -> Result<Vec<u64>, MapsError> {
    let (mut keys, mut next) = (Vec::<u64>::new(), 0_u64);
    while bpf::next_key(map.as_fd(), keys.last().map(Raw::bytes), next.bytes_mut()).map_err(element("BPF_MAP_GET_NEXT_KEY", name))? {
        keys.push(next);
    }
    Ok(keys)
}

fn element(call: &'static str, map: &'static str) -> impl Fn(io::Error) -> MapsError {
    move |source| MapsError::Element { call, map, source }
}

/// The highest number in a list of CPUs such as `0-3` or `0,2-5`.
fn highest_cpu(list: &str) -> usize {
    list.trim().split([',', '-']).filter_map(|number| number.parse().ok()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_they_went() {
        for (ipv4, ipv6) in [(Some("10.1.2.3"), Some("fd00::3")), (Some("10.1.2.3"), None), (None, Some("fd00::3")), (None, None)] {
            let pod = PodEntry {
                uid: "0b9c6f3e-6f6f-4bcd-9a52-06a1de40f0c9".to_owned(),
                ipv4: ipv4.map(|text| text.parse().unwrap()),
                ipv6: ipv6.map(|text| text.parse().unwrap()),
                outbound_port: 15001,
                dns_port: 15053,
                captures: true,
                foreign_proxy: ipv4.is_some(),
            };
            assert_eq!(PodEntry::from_raw(&pod.to_raw()), pod);
        }
    }

    #[test]
    fn reads_lists_of_cpus() {
        for (list, highest) in [("0", 0), ("0-1\n", 1), ("0-3,8-11", 11), ("0,2", 2)] {
            assert_eq!(highest_cpu(list), highest);
        }
    }
}
