//! The wires: a router, a control namespace, nodes and pods, each a network namespace, joined by veth pairs.
//!
//! Nodes and the control namespace hang on the router by a link each, so what passes between nodes is seen in one place
//! (`capture`). A pod hangs on its node. Every link is made inside namespaces of the run: the host sees none.

pub mod addresses;
pub mod commands;
pub mod namespace;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use addresses::{AddressPair, AddressPlan, PODS_PER_NODE};
use commands::{CommandError, ip, settings};
use namespace::{Namespace, NamespaceError};

use crate::layout::Layout;

/// The interface by which a namespace reaches the rest of the world.
pub const UPLINK: &str = "eth0";
/// Ethernet's usual size, as on most clusters.
const MTU: u16 = 1500;

/// Wiring failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A namespace could not be made.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A link, address, route or setting was refused.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Every pod address of the node is in use.
    #[error("node {0} has no free pod address")]
    NodeFull(String),
    /// Nobody made this node.
    #[error("there is no node {0}")]
    UnknownNode(String),
}

/// A node's place in the network.
#[derive(Debug)]
pub struct NodeNetwork {
    /// Its number, from 1; decides its addresses.
    pub number: u8,
    /// Its network namespace.
    pub namespace: Arc<Namespace>,
    /// Its own addresses.
    pub addresses: AddressPair,
    /// The router's end of its link.
    pub link: String,
    pods: Mutex<PodAddresses>,
}

/// Which pod addresses of a node are taken. An address rests as long as possible before it is given again.
#[derive(Debug, Default)]
struct PodAddresses {
    taken: std::collections::BTreeSet<u8>,
    last: u8,
}

/// A pod's place in the network. Dropping it gives the address back; the namespace goes by `Network::remove_pod`.
#[derive(Debug)]
pub struct PodNetwork {
    /// Its network namespace.
    pub namespace: Arc<Namespace>,
    /// Its addresses.
    pub addresses: AddressPair,
    /// The node's end of its link.
    pub link: String,
    node: Arc<NodeNetwork>,
    host: u8,
}

/// The whole network of a run.
#[derive(Debug)]
pub struct Network {
    layout: Layout,
    /// Who has which address.
    pub plan: AddressPlan,
    /// The namespace between the nodes.
    pub router: Arc<Namespace>,
    /// Where tropisd and the cluster DNS run.
    pub control: Arc<Namespace>,
    /// The nodes by name.
    pub nodes: BTreeMap<String, Arc<NodeNetwork>>,
}

/// Settings of every namespace, before it has links.
const EVERYWHERE: &[(&str, &str)] = &[
    // Addresses are unique by construction: no waiting for duplicate detection, no router advertisements.
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];
/// Settings of namespaces that forward for others.
const FORWARDING: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];
/// Container runtimes let pods bind low ports without a capability.
const PODS: &[(&str, &str)] = &[("net/ipv4/ip_unprivileged_port_start?", "0")];

impl Network {
    /// Wires router, control namespace and `nodes`. Blocks for some tenths of a second.
    pub fn create(layout: &Layout, plan: AddressPlan, nodes: &[String]) -> Result<Self, NetworkError> {
        let make = |what: &str, extra: &[(&str, &str)]| -> Result<Arc<Namespace>, NetworkError> {
            let namespace = Namespace::create(&layout.namespace(what))?;
            settings(&namespace, EVERYWHERE)?;
            settings(&namespace, extra)?;
            ip(&namespace, &["link set lo up".to_owned()])?;
            Ok(Arc::new(namespace))
        };
        let router = make("router", FORWARDING)?;
        let control = make("control", &[])?;
        join_router(&router, &control, plan, "control", plan.control())?;
        let mut network = Self { layout: layout.clone(), plan, router, control, nodes: BTreeMap::new() };
        for (number, name) in (1u8..).zip(nodes) {
            let namespace = make(name, FORWARDING)?;
            let addresses = plan.node(number);
            let link = format!("node-{name}");
            join_router(&network.router, &namespace, plan, &link, addresses)?;
            let routes = plan.pod_ranges(number);
            ip(
                &network.router,
                &routes
                    .iter()
                    .zip(addresses.both())
                    .map(|(range, via)| format!("route add {range} via {via} dev {link} onlink"))
                    .collect::<Vec<_>>(),
            )?;
            let node = NodeNetwork { number, namespace, addresses, link, pods: Mutex::default() };
            network.nodes.insert(name.clone(), Arc::new(node));
        }
        Ok(network)
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<&Arc<NodeNetwork>, NetworkError> {
        self.nodes.get(name).ok_or_else(|| NetworkError::UnknownNode(name.to_owned()))
    }

    /// Makes a pod's namespace on `node` and joins it. `id` tells it from every other pod of the run. Blocks.
    pub fn add_pod(&self, node: &str, name: &str, id: &str) -> Result<PodNetwork, NetworkError> {
        let node_network = self.node(node)?.clone();
        let host = node_network.take_pod_address().ok_or_else(|| NetworkError::NodeFull(node.to_owned()))?;
        let addresses = self.plan.pod(node_network.number, host);
        let gateway = self.plan.pod_gateway(node_network.number);
        let made = || -> Result<(Arc<Namespace>, String), NetworkError> {
            let namespace = Namespace::create(&self.layout.namespace(&format!("{name}-{id}")))?;
            settings(&namespace, EVERYWHERE)?;
            settings(&namespace, PODS)?;
            let link = format!("pod{host}");
            let mut lines = vec![format!("link add {link} mtu {MTU} type veth peer name {UPLINK} mtu {MTU} netns {}", namespace.name())];
            lines.extend(gateway.both().map(|address| format!("addr add {}/{} dev {link} nodad", address, bits(address))));
            lines.push(format!("link set {link} up"));
            lines.extend(addresses.both().map(|address| format!("route add {address} dev {link}")));
            // IPv4 addresses take no `nodad`; duplicate detection does not exist there.
            ip(&node_network.namespace, &without_dad_on_v4(lines))?;
            ip(&namespace, &uplink(addresses, gateway))?;
            Ok((Arc::new(namespace), link))
        };
        match made() {
            Ok((namespace, link)) => Ok(PodNetwork { namespace, addresses, link, node: node_network, host }),
            Err(error) => {
                node_network.give_pod_address_back(host);
                Err(error)
            }
        }
    }

    /// Removes a pod's link and the name of its namespace. Its processes are gone already.
    pub fn remove_pod(&self, pod: &PodNetwork) -> Result<(), NetworkError> {
        ip(&pod.node.namespace, &[format!("link del {}", pod.link)])?;
        let _ = namespace::remove(&std::path::Path::new(namespace::NAMESPACES).join(pod.namespace.name()));
        Ok(())
    }
}

impl NodeNetwork {
    fn take_pod_address(&self) -> Option<u8> {
        let mut pods = self.pods.lock().expect("never poisoned: nothing panics under it");
        let free = (1..=PODS_PER_NODE).map(|step| 2 + (pods.last + step - 1) % PODS_PER_NODE).find(|host| !pods.taken.contains(host))?;
        pods.taken.insert(free);
        pods.last = free - 1;
        Some(free)
    }

    fn give_pod_address_back(&self, host: u8) {
        self.pods.lock().expect("never poisoned: nothing panics under it").taken.remove(&host);
    }
}

impl Drop for PodNetwork {
    fn drop(&mut self) {
        self.node.give_pod_address_back(self.host);
    }
}

/// Joins `namespace` to the router by a veth pair whose router end is called `link`.
fn join_router(router: &Namespace, namespace: &Namespace, plan: AddressPlan, link: &str, own: AddressPair) -> Result<(), NetworkError> {
    let gateway = plan.router();
    let mut lines = vec![format!("link add {link} mtu {MTU} type veth peer name {UPLINK} mtu {MTU} netns {}", namespace.name())];
    lines.extend(gateway.both().map(|address| format!("addr add {}/{} dev {link} nodad", address, bits(address))));
    lines.push(format!("link set {link} up"));
    lines.extend(own.both().map(|address| format!("route add {address} dev {link}")));
    ip(router, &without_dad_on_v4(lines))?;
    ip(namespace, &uplink(own, gateway))?;
    Ok(())
}

/// The commands that give a namespace its address on its uplink and its way out.
fn uplink(own: AddressPair, gateway: AddressPair) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    lines.extend(own.both().map(|address| format!("addr add {}/{} dev {UPLINK} nodad", address, bits(address))));
    lines.push(format!("link set {UPLINK} up"));
    lines.extend(gateway.both().map(|via| format!("route add default via {via} dev {UPLINK} onlink")));
    without_dad_on_v4(lines)
}

fn bits(address: std::net::IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn without_dad_on_v4(lines: Vec<String>) -> Vec<String> {
    lines.into_iter().map(|line| if line.contains("/32 ") { line.replace(" nodad", "") } else { line }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_rests_before_it_is_given_again() {
        let Ok(host) = Namespace::host() else { return };
        let node = NodeNetwork {
            number: 1,
            namespace: Arc::new(host),
            addresses: AddressPlan::new(0).node(1),
            link: String::new(),
            pods: Mutex::default(),
        };
        assert_eq!(node.take_pod_address(), Some(2));
        node.give_pod_address_back(2);
        assert_eq!(node.take_pod_address(), Some(3));
        let rest: Vec<_> = std::iter::from_fn(|| node.take_pod_address()).collect();
        assert_eq!(rest.len(), usize::from(PODS_PER_NODE) - 1, "3 is taken, 2 was free again");
        assert_eq!(node.take_pod_address(), None);
        assert!(rest.iter().all(|host| (2..=254).contains(host)));
    }

    #[test]
    fn only_ipv6_addresses_skip_duplicate_detection() {
        let lines = uplink(AddressPlan::new(0).pod(1, 2), AddressPlan::new(0).pod_gateway(1));
        assert!(lines.contains(&"addr add 10.244.1.2/32 dev eth0".to_owned()), "{lines:?}");
        assert!(lines.contains(&"addr add fd00:10:244:1::2/128 dev eth0 nodad".to_owned()));
    }
}
