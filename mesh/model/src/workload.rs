//! A workload: a pod or a machine, as the mesh knows it (WDS `Workload`).

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use crate::{
    address::{NamespacedHostname, Network, NetworkAddress},
    identity::Identity,
};

/// A workload's unique name: `CLUSTER//Pod/NAMESPACE/NAME` for a pod (WDS `Workload.uid`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(pub Arc<str>);

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How to reach a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TunnelProtocol {
    /// Plain TCP: it is not in the mesh.
    #[default]
    None,
    /// HBONE on port 15008.
    Hbone,
}

/// Whether the control plane counts the workload as able to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready, or being deleted.
    Unhealthy,
}

/// Whether the workload's addresses are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NetworkMode {
    /// A network namespace and addresses of its own.
    #[default]
    Standard,
    /// The node's: the address does not identify the workload, so it is never found by it.
    HostNetwork,
}

/// The kind of owner, as it appears in `baggage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WorkloadKind {
    /// A Deployment.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare Pod.
    Pod,
    /// A Job.
    Job,
}

/// Where a workload runs; empty parts are unknown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// `topology.kubernetes.io/region` of the node.
    pub region: Arc<str>,
    /// `topology.kubernetes.io/zone` of the node.
    pub zone: Arc<str>,
    /// `topology.istio.io/subzone` of the node.
    pub subzone: Arc<str>,
}

/// Where a gateway (waypoint or network gateway) is, with its HBONE port (15008 for a waypoint).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    /// The service or the address.
    pub destination: GatewayDestination,
    /// The port of its HBONE listener as addressed (a service port for [`GatewayDestination::Service`]).
    pub hbone_port: u16,
}

/// How a gateway is named.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    /// By a service, whose endpoints are balanced over.
    Service(NamespacedHostname),
    /// By an address: a VIP (balanced) or a pod IP (direct).
    Address(NetworkAddress),
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// How bytes enter an application that terminates a tunnel itself (a waypoint's pod, WDS `ApplicationTunnel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// What precedes the bytes.
    pub protocol: ApplicationTunnelProtocol,
    /// Connect to this port instead of the addressed one; `None` keeps the addressed one.
    pub port: Option<u16>,
}

/// What precedes the bytes in an [`ApplicationTunnel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApplicationTunnelProtocol {
    /// Nothing; only the port is changed.
    None,
    /// A PROXY protocol v2 header.
    Proxy,
}

/// A pod or a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The unique key.
    pub uid: WorkloadUid,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// The identity that its certificate must prove.
    pub identity: Identity,
    /// Its addresses, never IPv4-mapped; may be empty if `hostname` or `network_gateway` is set.
    pub addresses: Vec<IpAddr>,
    /// Its network.
    pub network: Network,
    /// How to reach it.
    pub tunnel_protocol: TunnelProtocol,
    /// It terminates HBONE itself.
    pub native_tunnel: bool,
    /// The waypoint for traffic addressed to this workload by its own address.
    pub waypoint: Option<GatewayAddress>,
    /// How other networks reach it.
    pub network_gateway: Option<GatewayAddress>,
    /// The node it runs on.
    pub node: Arc<str>,
    /// For metrics: `service.istio.io/canonical-name`.
    pub canonical_name: Arc<str>,
    /// For metrics: `service.istio.io/canonical-revision`.
    pub canonical_revision: Arc<str>,
    /// For metrics: the owner's kind.
    pub workload_kind: WorkloadKind,
    /// For metrics: the owner's name.
    pub workload_name: Arc<str>,
    /// Keys (`namespace/name`) of the selector policies that apply to it. One that is missing from the view denies.
    pub authorization_policies: Vec<Arc<str>>,
    /// Whether it may be chosen as an endpoint.
    pub health: Health,
    /// The cluster it runs in.
    pub cluster_id: Arc<str>,
    /// A DNS name to resolve when `addresses` is empty.
    pub hostname: Arc<str>,
    /// The services it is an endpoint of, each with service port → its own port.
    pub services: BTreeMap<NamespacedHostname, BTreeMap<u16, u16>>,
    /// How bytes enter it, for tunnels that end in its application.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Where it runs.
    pub locality: Locality,
    /// Whether its addresses are its own.
    pub network_mode: NetworkMode,
    /// Weight among endpoints: 1 unless set; 0 is never chosen.
    pub capacity: u32,
    /// Its labels, as far as a waypoint's configuration names them; empty everywhere else.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

impl Workload {
    /// A workload with everything else at its default: one Pod in the default network, not in the mesh. Meant for tests and for
    /// decoders that fill in the rest.
    pub fn new(uid: impl Into<Arc<str>>, name: impl Into<Arc<str>>, identity: Identity) -> Self {
        let name = name.into();
        Self {
            uid: WorkloadUid(uid.into()),
            namespace: identity.namespace.clone(),
            identity,
            addresses: Vec::new(),
            network: "".into(),
            tunnel_protocol: TunnelProtocol::None,
            native_tunnel: false,
            waypoint: None,
            network_gateway: None,
            node: "".into(),
            canonical_name: name.clone(),
            canonical_revision: "latest".into(),
            workload_kind: WorkloadKind::Pod,
            workload_name: name.clone(),
            name,
            authorization_policies: Vec::new(),
            health: Health::Healthy,
            cluster_id: "Kubernetes".into(),
            hostname: "".into(),
            services: BTreeMap::new(),
            application_tunnel: None,
            locality: Locality::default(),
            network_mode: NetworkMode::Standard,
            capacity: 1,
            labels: BTreeMap::new(),
        }
    }
}
