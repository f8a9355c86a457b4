//! A service: a name with ports and, mostly, addresses (WDS `Service`).

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    address::{NamespacedHostname, Network},
    workload::GatewayAddress,
};

/// What a port speaks, as far as anyone said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AppProtocol {
    /// Nobody said.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// TCP.
    Tcp,
    /// TLS.
    Tls,
}

/// A service's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// The endpoint's port; `None` for a named port, which each endpoint maps itself.
    pub target_port: Option<u16>,
    /// What it speaks.
    pub app_protocol: AppProtocol,
}

/// A virtual address, or a block of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceAddress {
    /// The network that it is valid in.
    pub network: Network,
    /// The block; a single address is a full-length block.
    pub block: IpNet,
}

/// What an endpoint is compared by, most important first (WDS `LoadBalancing.Scope`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Same region.
    Region,
    /// Same zone.
    Zone,
    /// Same subzone.
    Subzone,
    /// Same node.
    Node,
    /// Same cluster.
    Cluster,
    /// Same network.
    Network,
}

/// What `routing_preference` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BalancingMode {
    /// All endpoints are equal.
    #[default]
    Any,
    /// Only endpoints that match every scope.
    Strict,
    /// The endpoints that match most scopes.
    Failover,
    /// The connection goes where it was addressed.
    Passthrough,
}

/// Which endpoints count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum HealthPolicy {
    /// Only healthy ones.
    #[default]
    OnlyHealthy,
    /// All (`publishNotReadyAddresses`).
    AllowAll,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadBalancing {
    /// Scopes, most important first.
    pub routing_preference: Vec<Scope>,
    /// What they mean.
    pub mode: BalancingMode,
    /// Which endpoints count.
    pub health_policy: HealthPolicy,
}

/// The address families a service offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum IpFamilies {
    /// Whatever its endpoints have.
    #[default]
    Automatic,
    /// IPv4 only.
    Ipv4Only,
    /// IPv6 only.
    Ipv6Only,
    /// Both.
    Dual,
}

/// Who may see a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its key.
    pub hostname: NamespacedHostname,
    /// Its short name.
    pub name: Arc<str>,
    /// Its virtual addresses; none for a headless service.
    pub addresses: Vec<ServiceAddress>,
    /// Its ports.
    pub ports: BTreeMap<u16, ServicePort>,
    /// Identities accepted from its endpoints besides their own.
    pub subject_alt_names: Vec<Arc<str>>,
    /// The waypoint for traffic addressed to it.
    pub waypoint: Option<GatewayAddress>,
    /// A weighted choice of waypoints; beats `waypoint` when it has weight.
    pub weighted_waypoints: Vec<(GatewayAddress, u32)>,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// Which families its endpoints may be reached by.
    pub ip_families: IpFamilies,
    /// Preferred among services of the same hostname.
    pub canonical: bool,
    /// Who may see it.
    pub visibility: Visibility,
}

impl Service {
    /// A service with everything else at its default.
    pub fn new(name: impl Into<Arc<str>>, hostname: NamespacedHostname) -> Self {
        Self {
            hostname,
            name: name.into(),
            addresses: Vec::new(),
            ports: BTreeMap::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancing: LoadBalancing::default(),
            ip_families: IpFamilies::Automatic,
            canonical: false,
            visibility: Visibility::Public,
        }
    }

    /// Whether one of its address blocks on `network` holds `address`.
    pub fn has_address(&self, network: &str, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| &*own.network == network && own.block.contains(&address))
    }
}
