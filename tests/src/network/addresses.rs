//! Who has which address: the ranges of docs/guide/embedded.md, moved by the run's offset so that runs side by side differ.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IPv4 and an IPv6 address of the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressPair {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl AddressPair {
    /// Both, IPv4 first.
    pub fn both(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }

    /// The one of `family`.
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The option that testkit commands take.
    pub fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The ranges of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPlan {
    offset: u8,
}

/// The pods of one node never get more addresses than this.
pub const PODS_PER_NODE: u8 = 253;
/// The cluster DNS is the tenth address of the service range.
const DNS_INDEX: u16 = 10;
/// The API server's service is the first.
const KUBERNETES_INDEX: u16 = 1;
/// Where addresses for the user's services begin.
pub const FIRST_SERVICE_INDEX: u16 = 20;

impl AddressPlan {
    /// The plan of the run that holds slot `offset`. 0 gives exactly the addresses of docs/guide/embedded.md.
    pub fn new(offset: u8) -> Self {
        debug_assert!(offset < crate::lock::ADDRESS_SLOTS);
        Self { offset }
    }

    /// The router's address, on each of its links.
    pub fn router(&self) -> AddressPair {
        self.on_node_network(1)
    }

    /// Where the control plane and the cluster DNS listen.
    pub fn control(&self) -> AddressPair {
        self.on_node_network(2)
    }

    /// Node `number`, from 1.
    pub fn node(&self, number: u8) -> AddressPair {
        AddressPair { v4: Ipv4Addr::new(10, 88 - self.offset, 0, 10 + number), v6: v6(&format!("fd00:10:{}::1{number}", 88 - self.offset)) }
    }

    fn on_node_network(&self, host: u8) -> AddressPair {
        AddressPair { v4: Ipv4Addr::new(10, 88 - self.offset, 0, host), v6: v6(&format!("fd00:10:{}::{host}", 88 - self.offset)) }
    }

    /// The node's own address on its pods' links: host number 1 of the pod range.
    pub fn pod_gateway(&self, node: u8) -> AddressPair {
        self.pod(node, 1)
    }

    /// Pod `host` (from 2) of node `node` (from 1).
    pub fn pod(&self, node: u8, host: u8) -> AddressPair {
        AddressPair {
            v4: Ipv4Addr::new(10, 244 - self.offset, node, host),
            v6: v6(&format!("fd00:10:{}:{node}::{host:x}", 244 - self.offset)),
        }
    }

    /// The pod ranges of a node, as routes are written.
    pub fn pod_ranges(&self, node: u8) -> [String; 2] {
        [format!("10.{}.{node}.0/24", 244 - self.offset), format!("fd00:10:{}:{node}::/64", 244 - self.offset)]
    }

    /// Whether `address` belongs to a pod of this run.
    pub fn is_pod(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4.octets()[..2] == [10, 244 - self.offset],
            IpAddr::V6(v6) => v6.segments()[..3] == self::v6(&format!("fd00:10:{}::", 244 - self.offset)).segments()[..3],
        }
    }

    /// Service `index` of the service ranges.
    pub fn service(&self, index: u16) -> AddressPair {
        let [high, low] = index.to_be_bytes();
        AddressPair { v4: Ipv4Addr::new(10, 96 + self.offset, high, low), v6: v6(&format!("fd00:10:{}::{index:x}", 96 + self.offset)) }
    }

    /// The cluster DNS.
    pub fn dns(&self) -> AddressPair {
        self.service(DNS_INDEX)
    }

    /// The `kubernetes` service.
    pub fn kubernetes(&self) -> AddressPair {
        self.service(KUBERNETES_INDEX)
    }

    /// Where the control plane's service `port` listens, both families.
    pub fn control_sockets(&self, port: u16) -> [SocketAddr; 2] {
        self.control().both().map(|address| SocketAddr::new(address, port))
    }
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("written by this file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_has_the_documented_addresses() {
        let plan = AddressPlan::new(0);
        assert_eq!(plan.control().both().map(|a| a.to_string()), ["10.88.0.2", "fd00:10:88::2"]);
        assert_eq!(plan.node(1).both().map(|a| a.to_string()), ["10.88.0.11", "fd00:10:88::11"]);
        assert_eq!(plan.pod(2, 17).both().map(|a| a.to_string()), ["10.244.2.17", "fd00:10:244:2::11"]);
        assert_eq!(plan.dns().both().map(|a| a.to_string()), ["10.96.0.10", "fd00:10:96::a"]);
        assert_eq!(plan.pod_ranges(1), ["10.244.1.0/24", "fd00:10:244:1::/64"]);
    }

    #[test]
    fn runs_do_not_share_addresses() {
        let all = |offset| {
            let plan = AddressPlan::new(offset);
            [plan.router(), plan.control(), plan.node(1), plan.pod(1, 2), plan.service(20)]
        };
        let mut seen = std::collections::BTreeSet::new();
        for offset in 0..crate::lock::ADDRESS_SLOTS {
            for pair in all(offset) {
                assert!(seen.insert(pair.v4) && pair.both().iter().all(|a| !a.is_loopback()), "{pair:?} twice");
            }
        }
    }

    #[test]
    fn pods_are_told_from_services() {
        let plan = AddressPlan::new(3);
        assert!(plan.pod(1, 9).both().into_iter().all(|address| plan.is_pod(address)));
        assert!(!plan.service(9).both().into_iter().any(|address| plan.is_pod(address)));
    }
}
