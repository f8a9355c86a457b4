//! The mesh as one decision sees it: an immutable snapshot.
//!
//! [`View::apply`] makes the next snapshot and shares with this one whatever did not change, so a change costs in proportion to itself
//! and a reader never waits. Endpoints are found from the workloads' side, so the order in which a service and its workloads arrive
//! does not matter. Filling a view is `tropis-xds`'s work; deciding on it is [`crate::resolve`]'s and [`crate::authorize`]'s.

mod policies;

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use imbl::{HashMap, OrdSet};

use self::policies::Policies;
use crate::{
    address::{NamespacedHostname, Network, NetworkAddress},
    authorize::PolicySet,
    identity::Identity,
    policy::{Policy, PolicyKey},
    route::Host,
    service::{Service, Visibility},
    waypoint::Waypoint,
    workload::{NetworkMode, TunnelProtocol, Workload, WorkloadUid},
};

/// One thing that changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A workload is new or different.
    Workload(Arc<Workload>),
    /// A service is new or different.
    Service(Arc<Service>),
    /// A policy is new or different.
    Policy(Arc<Policy>),
    /// A workload (by uid) or a service (by `namespace/hostname`) is gone.
    RemoveAddress(Arc<str>),
    /// A policy is gone.
    RemovePolicy(PolicyKey),
    /// A host's routes are new or different.
    Host(Arc<Host>),
    /// A host's routes are gone.
    RemoveHost(NamespacedHostname),
    /// The waypoint's own configuration is new or different.
    Waypoint(Arc<Waypoint>),
    /// The waypoint of this key (`namespace/name`) is gone.
    RemoveWaypoint(Arc<str>),
}

/// A service on a workload.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint<'a> {
    /// The workload.
    pub workload: &'a Arc<Workload>,
    /// Service port → the workload's port, where the workload maps it itself.
    pub ports: &'a std::collections::BTreeMap<u16, u16>,
}

/// An immutable snapshot of the mesh. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct View {
    version: u64,
    workloads: HashMap<WorkloadUid, Arc<Workload>>,
    workloads_at: HashMap<NetworkAddress, OrdSet<WorkloadUid>>,
    workloads_named: HashMap<(Arc<str>, Arc<str>), OrdSet<WorkloadUid>>,
    workloads_by_hostname: HashMap<NamespacedHostname, OrdSet<WorkloadUid>>,
    services: HashMap<NamespacedHostname, Arc<Service>>,
    services_at: HashMap<NetworkAddress, OrdSet<NamespacedHostname>>,
    services_by_hostname: HashMap<Arc<str>, OrdSet<NamespacedHostname>>,
    /// Services with an address block; few, so they are searched one by one.
    services_with_blocks: OrdSet<NamespacedHostname>,
    endpoints: HashMap<NamespacedHostname, OrdSet<WorkloadUid>>,
    policies: Policies,
    hosts: HashMap<NamespacedHostname, Arc<Host>>,
    waypoints: HashMap<Arc<str>, Arc<Waypoint>>,
}

impl View {
    /// The next snapshot: this one with `changes` applied in order.
    #[must_use]
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) -> View {
        let mut next = self.clone();
        next.version += 1;
        for change in changes {
            match change {
                Change::Workload(workload) => {
                    next.remove_workload(&workload.uid);
                    next.insert_workload(workload);
                }
                Change::Service(service) => {
                    next.remove_service(&service.hostname);
                    next.insert_service(service);
                }
                Change::Policy(policy) => next.policies.insert(policy),
                Change::RemoveAddress(name) => next.remove_address(name),
                Change::RemovePolicy(key) => next.policies.remove(&key),
                Change::Host(host) => {
                    next.hosts.insert(host.name.clone(), host);
                }
                Change::RemoveHost(name) => {
                    next.hosts.remove(&name);
                }
                Change::Waypoint(waypoint) => {
                    next.waypoints.insert(waypoint.key.clone(), waypoint);
                }
                Change::RemoveWaypoint(key) => {
                    next.waypoints.remove(&key);
                }
            }
        }
        next
    }

    /// How many batches of changes led to this snapshot.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The workload with this uid.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that owns `address` on `network`; never a host-network one. Where two claim it (an IP that was just reused), a
    /// pod in the mesh comes first, then a pod, then another mesh member.
    pub fn workload_at(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        self.claimants(network, address).max_by_key(|workload| rank(workload))
    }

    /// The same, of those alone that run as `identity`: of two that claim an address, the one that calls from it is who it proves to be.
    pub fn caller_at(&self, network: &str, address: IpAddr, identity: &Identity) -> Option<&Arc<Workload>> {
        self.claimants(network, address).filter(|workload| workload.identity == *identity).max_by_key(|workload| rank(workload))
    }

    fn claimants(&self, network: &str, address: IpAddr) -> impl Iterator<Item = &Arc<Workload>> {
        let uids = self.workloads_at.get(&NetworkAddress { network: Network::from(network), address });
        uids.into_iter().flatten().filter_map(|uid| self.workloads.get(uid))
    }

    /// The pod of this name that runs as `service_account` on `node`; an empty `node` means any.
    pub fn local_workload(&self, node: &str, namespace: &str, name: &str, service_account: &str) -> Option<&Arc<Workload>> {
        let uids = self.workloads_named.get(&(Arc::from(namespace), Arc::from(name)))?;
        uids.iter()
            .filter_map(|uid| self.workloads.get(uid))
            .find(|workload| (node.is_empty() || &*workload.node == node) && &*workload.identity.service_account == service_account)
    }

    /// The workload that is known by a hostname (a gateway of another network).
    pub fn workload_by_hostname(&self, name: &NamespacedHostname) -> Option<&Arc<Workload>> {
        self.workloads_by_hostname.get(name)?.iter().find_map(|uid| self.workloads.get(uid))
    }

    /// The service with this key.
    pub fn service(&self, name: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The service that `address` on `network` belongs to, as a client in `client_namespace` sees it: an exact address before a block,
    /// the client's own namespace first, then the longer block, then the canonical service.
    pub fn service_at(&self, network: &str, address: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let exact = self.services_at.get(&NetworkAddress { network: Network::from(network), address });
        let exact = exact.into_iter().flatten().filter_map(|name| self.services.get(name));
        if let Some(service) = preferred(exact, client_namespace) {
            return Some(service);
        }
        let blocks = self.services_with_blocks.iter().filter_map(|name| self.services.get(name));
        blocks.filter(|service| service.has_address(network, address) && visible(service, client_namespace)).max_by_key(|service| {
            let longest = service.addresses.iter().filter(|own| own.block.contains(&address)).map(|own| own.block.prefix_len()).max();
            (&*service.hostname.namespace == client_namespace, longest, service.canonical)
        })
    }

    /// The services of this hostname, in any namespace.
    pub fn services_by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.services_by_hostname.get(hostname).into_iter().flatten().filter_map(|name| self.services.get(name))
    }

    /// The service of this hostname that a client in `client_namespace` means.
    pub fn service_for_client(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        preferred(self.services_by_hostname(hostname), client_namespace)
    }

    /// The endpoints of a service, healthy or not.
    pub fn endpoints<'a>(&'a self, service: &'a NamespacedHostname) -> impl Iterator<Item = Endpoint<'a>> {
        self.endpoints.get(service).into_iter().flatten().filter_map(move |uid| {
            let workload = self.workloads.get(uid)?;
            Some(Endpoint { workload, ports: workload.services.get(service)? })
        })
    }

    /// The policy with this key.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// The policies that apply to a workload: global ones, its namespace's, and those it names. A named one that has not arrived is an
    /// `Err` with its key: doubt denies.
    pub fn policies_for<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = Result<&'a Arc<Policy>, PolicyKey>> {
        self.policies.applying(workload)
    }

    /// The policies that apply to a workload, compiled. Cheap for a workload that is this view's own.
    pub(crate) fn policy_sets<'a>(&'a self, workload: &'a Workload) -> Vec<Cow<'a, PolicySet>> {
        let is_own = self.workloads.get(&workload.uid).is_some_and(|own| std::ptr::eq(Arc::as_ptr(own), workload));
        self.policies.compiled(workload, is_own)
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The routes of traffic addressed to this host; `None` for a host that this waypoint does not serve.
    pub fn host(&self, name: &NamespacedHostname) -> Option<&Arc<Host>> {
        self.hosts.get(name)
    }

    /// All hosts, in no order.
    pub fn hosts(&self) -> impl ExactSizeIterator<Item = &Arc<Host>> {
        self.hosts.values()
    }

    /// The waypoint of this key (`namespace/name`).
    pub fn waypoint(&self, key: &str) -> Option<&Arc<Waypoint>> {
        self.waypoints.get(key)
    }

    /// All waypoints, in no order.
    pub fn waypoints(&self) -> impl Iterator<Item = &Arc<Waypoint>> {
        self.waypoints.values()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    fn insert_workload(&mut self, workload: Arc<Workload>) {
        let uid = &workload.uid;
        for key in addresses_of(&workload) {
            self.workloads_at.entry(key).or_default().insert(uid.clone());
        }
        self.workloads_named.entry((workload.namespace.clone(), workload.name.clone())).or_default().insert(uid.clone());
        if let Some(key) = hostname_of(&workload) {
            self.workloads_by_hostname.entry(key).or_default().insert(uid.clone());
        }
        for service in workload.services.keys() {
            self.endpoints.entry(service.clone()).or_default().insert(uid.clone());
        }
        self.policies.attach(&workload);
        self.workloads.insert(uid.clone(), workload);
    }

    fn remove_workload(&mut self, uid: &WorkloadUid) {
        let Some(workload) = self.workloads.remove(uid) else { return };
        self.policies.detach(&workload);
        for key in addresses_of(&workload) {
            forget(&mut self.workloads_at, &key, uid);
        }
        forget(&mut self.workloads_named, &(workload.namespace.clone(), workload.name.clone()), uid);
        if let Some(key) = hostname_of(&workload) {
            forget(&mut self.workloads_by_hostname, &key, uid);
        }
        for service in workload.services.keys() {
            forget(&mut self.endpoints, service, uid);
        }
    }

    fn insert_service(&mut self, service: Arc<Service>) {
        let name = &service.hostname;
        for key in single_addresses_of(&service) {
            self.services_at.entry(key).or_default().insert(name.clone());
        }
        if service.addresses.iter().any(|own| own.block.prefix_len() < own.block.max_prefix_len()) {
            self.services_with_blocks.insert(name.clone());
        }
        self.services_by_hostname.entry(name.hostname.clone()).or_default().insert(name.clone());
        self.services.insert(name.clone(), service);
    }

    fn remove_service(&mut self, name: &NamespacedHostname) {
        let Some(service) = self.services.remove(name) else { return };
        for key in single_addresses_of(&service) {
            forget(&mut self.services_at, &key, name);
        }
        self.services_with_blocks.remove(name);
        forget(&mut self.services_by_hostname, &name.hostname, name);
    }

    /// A removed name is a workload's uid or, failing that, a service's `namespace/hostname`.
    fn remove_address(&mut self, name: Arc<str>) {
        let uid = WorkloadUid(name);
        if self.workloads.contains_key(&uid) {
            return self.remove_workload(&uid);
        }
        if let Some((namespace, hostname)) = uid.0.split_once('/').filter(|(_, hostname)| !hostname.contains('/')) {
            self.remove_service(&NamespacedHostname { namespace: namespace.into(), hostname: hostname.into() });
        }
    }
}

/// Which of those that claim an address comes first.
fn rank(workload: &Workload) -> (bool, bool, bool) {
    let pod = workload.uid.0.contains("//Pod/");
    let hbone = workload.tunnel_protocol == TunnelProtocol::Hbone;
    (pod && hbone, pod, hbone)
}

/// The addresses that identify a workload: none for a host-network one.
fn addresses_of(workload: &Workload) -> impl Iterator<Item = NetworkAddress> {
    let own = workload.network_mode == NetworkMode::Standard;
    let addresses = workload.addresses.iter().filter(move |_| own);
    addresses.map(|address| NetworkAddress { network: workload.network.clone(), address: *address })
}

fn hostname_of(workload: &Workload) -> Option<NamespacedHostname> {
    let hostname = workload.hostname.clone();
    (!hostname.is_empty()).then(|| NamespacedHostname { namespace: workload.namespace.clone(), hostname })
}

fn single_addresses_of(service: &Service) -> impl Iterator<Item = NetworkAddress> {
    let single = service.addresses.iter().filter(|own| own.block.prefix_len() == own.block.max_prefix_len());
    single.map(|own| NetworkAddress { network: own.network.clone(), address: own.block.addr() })
}

fn visible(service: &Service, client_namespace: &str) -> bool {
    service.visibility == Visibility::Public || &*service.hostname.namespace == client_namespace
}

/// Among services of one name or address: the client's namespace, then the canonical one, then the first by name.
fn preferred<'a>(services: impl Iterator<Item = &'a Arc<Service>>, client_namespace: &str) -> Option<&'a Arc<Service>> {
    services
        .filter(|service| visible(service, client_namespace))
        .min_by_key(|service| (&*service.hostname.namespace != client_namespace, !service.canonical))
}

fn forget<K: std::hash::Hash + Eq + Clone, V: Ord + Clone>(index: &mut HashMap<K, OrdSet<V>>, key: &K, value: &V) {
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
