//! What one waypoint is told: itself, the hosts that it serves, the services and workloads that their routes lead to, with labels.
//!
//! Nothing else: a waypoint that is taken over knows its own part of the mesh. Labels go as far as the waypoint's configuration names
//! them. Who calls from elsewhere it asks when they call; what it is told of them then is [`super::callers`]'s.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use tropis_crds::{Finding, Kind, Object, ObjectRef};
use tropis_model::{
    address::NamespacedHostname,
    bounds,
    pool::LocalityPreference,
    request_policy::{Attachment, RequestPolicy},
    route::{Host, HostPort},
    service::Service,
    view::Change,
    waypoint::Waypoint,
    workload::{GatewayAddress, GatewayDestination, NetworkMode, Workload, WorkloadUid},
};

use super::{HBONE_PORT, own_service};
use crate::{
    Index,
    compiler::destinations::{ByNamespace, Part},
    destination_rule, host,
    index::{Key, key_of},
    request_policy, virtual_service,
};

/// What a waypoint is told that is different now.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The waypoint's Gateway.
    pub gateway: Key,
    /// The differences, in order; `None`: there is no such waypoint any more.
    pub changes: Option<Vec<Change>>,
}

/// All that a waypoint knows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scope {
    waypoint: Option<Arc<Waypoint>>,
    hosts: BTreeMap<NamespacedHostname, Arc<Host>>,
    services: BTreeMap<NamespacedHostname, Arc<Service>>,
    workloads: BTreeMap<WorkloadUid, Arc<Workload>>,
    /// The services whose endpoints it knows.
    reached: BTreeSet<NamespacedHostname>,
    /// The keys of labels that its configuration names.
    label_keys: BTreeSet<Arc<str>>,
    /// Those besides that the waypoint may still have in force, and is told.
    kept_keys: BTreeSet<Arc<str>>,
    /// The waypoint has acknowledged all of it, and refused nothing.
    in_force: bool,
    findings: Vec<Finding>,
    served: Arc<Served>,
}

/// What is addressed through a waypoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Served {
    /// Services.
    pub(crate) services: BTreeSet<Key>,
    /// Pods.
    pub(crate) pods: BTreeSet<Key>,
}

/// Of the pods that a waypoint is told of those that go through another one, or through none. It serves them, which is why they are told
/// it as theirs.
fn elsewhere(parts: &Parts<'_>, pods: &BTreeSet<Key>, own: Option<&GatewayAddress>) -> BTreeSet<WorkloadUid> {
    if pods.is_empty() {
        return BTreeSet::new();
    }
    let goes = |workload: &&Arc<Workload>| own.is_some() && workload.waypoint.as_ref() == own;
    let told = |workload: &&Arc<Workload>| pods.contains(&(workload.namespace.to_string(), workload.name.to_string()));
    let elsewhere = parts.workloads.iter().filter(|workload| !goes(workload) && told(workload));
    elsewhere.map(|workload| workload.uid.clone()).take(bounds::ELSEWHERE).collect()
}

/// The service of the waypoint that a service goes through: where a route leads there, its instances are called.
fn waypoint_of(parts: &Parts<'_>, service: &Service) -> Option<NamespacedHostname> {
    match &service.waypoint.as_ref()?.destination {
        GatewayDestination::Service(name) => Some(name.clone()),
        GatewayDestination::Address(at) => {
            let named = parts.services.values().find(|service| service.has_address(&at.network, at.address));
            named.map(|service| service.hostname.clone())
        }
    }
}

/// What is told to a waypoint of a kind.
fn told_of(through: &HashMap<Key, BTreeSet<Key>>, gateway: &Key) -> BTreeSet<Key> {
    through.iter().filter(|(_, told)| told.contains(gateway)).map(|(own, _)| own.clone()).collect()
}

/// What a scope is made of.
pub(crate) struct Parts<'a> {
    pub(crate) index: &'a Index,
    /// Which waypoints are told of each Service.
    pub(crate) services_through: &'a HashMap<Key, BTreeSet<Key>>,
    /// Which waypoints are told of each pod.
    pub(crate) pods_through: &'a HashMap<Key, BTreeSet<Key>>,
    /// Every service that was compiled.
    pub(crate) services: &'a HashMap<Key, Arc<Service>>,
    /// Every workload that was compiled.
    pub(crate) workloads: &'a [Arc<Workload>],
}

impl Scope {
    /// What the waypoint of this Gateway is told. The keys in `kept` are those that an earlier version named ([`Self::keys_in_force`]).
    pub(crate) fn compile(parts: &Parts<'_>, gateway: &Object, kept: BTreeSet<Arc<str>>) -> Self {
        let (index, key) = (parts.index, key_of(gateway));
        let mut scope = Self::default();
        let served = told_of(parts.services_through, &key);
        for object in served.iter().filter_map(|own| index.service(own)) {
            let (host, findings) = host::compile(index, &key, object);
            scope.findings.extend(findings);
            scope.hosts.insert(host.name.clone(), Arc::new(host));
        }
        let own = own_service(index.settings(), &key);
        let own_address = super::address(index.settings(), gateway);
        scope.reached = [own.clone()].into();
        for host in scope.hosts.values() {
            scope.reached.insert(host.name.clone());
            scope.reached.extend(host.pools.keys().map(|pool| pool.host.clone()));
        }
        let service = |name: &NamespacedHostname| parts.services.get(&key_of(index.service_named(&name.hostname)?));
        let others: BTreeSet<_> = scope.reached.iter().filter_map(service).filter_map(|service| waypoint_of(parts, service)).collect();
        scope.reached.extend(others);
        scope.services.extend(scope.reached.iter().filter_map(|name| Some((name.clone(), service(name)?.clone()))));
        let pods = told_of(parts.pods_through, &key);
        let namespaces = pods.iter().map(|pod| pod.0.clone()).collect();
        scope.waypoint = Some(Arc::new(Waypoint {
            key: format!("{}/{}", key.0, key.1).into(),
            service: own,
            serves: super::serves(gateway),
            policies: request_policy::bounded(request_policy::of_workloads(index, &key, &namespaces)),
            access_log: index.settings().access_log.clone(),
            elsewhere: elsewhere(parts, &pods, own_address.as_ref()),
        }));
        scope.served = Arc::new(Served { services: served, pods });
        scope.label_keys = scope.named_labels();
        scope.kept_keys = kept.into_iter().filter(|key| !scope.label_keys.contains(key)).take(bounds::KEPT_LABELS).collect();
        for workload in parts.workloads {
            scope.workloads.extend(scope.told(parts, &key, workload).map(|told| (told.uid.clone(), told)));
        }
        scope
    }

    /// A workload as this waypoint is told it; `None` if it is not.
    pub(crate) fn told(&self, parts: &Parts<'_>, gateway: &Key, workload: &Arc<Workload>) -> Option<Arc<Workload>> {
        let pod = (workload.namespace.to_string(), workload.name.to_string());
        let through = parts.pods_through.get(&pod).is_some_and(|told| told.contains(gateway));
        if !(through || workload.services.keys().any(|service| self.reached.contains(service))) {
            return None;
        }
        let labels = named(parts.index, &pod, self.label_keys.iter().chain(&self.kept_keys));
        // What comes or goes is addressed through it before node proxies know, and after.
        let own = || GatewayAddress {
            destination: GatewayDestination::Service(own_service(parts.index.settings(), gateway)),
            hbone_port: HBONE_PORT,
        };
        let waypoint = if through { Some(own()) } else { workload.waypoint.clone() };
        if labels == workload.labels && waypoint == workload.waypoint {
            return Some(workload.clone());
        }
        Some(Arc::new(Workload { labels, waypoint, ..Workload::clone(workload) }))
    }

    /// The addresses of the workloads whose waypoint this is, by namespace: pods that go through it, and pods behind a Service of their
    /// namespace that does. Not what a route leads to, which its namespace did not agree to; and no address that an EndpointSlice alone
    /// tells (a workload with the node's network, as here), which may be anybody's.
    pub(crate) fn destinations(&self) -> ByNamespace {
        let mut destinations = ByNamespace::new();
        for workload in self.workloads.values().filter(|workload| workload.network_mode != NetworkMode::HostNetwork) {
            let pod = (workload.namespace.to_string(), workload.name.to_string());
            let own = |service: &&NamespacedHostname| service.namespace == workload.namespace && self.hosts.contains_key(*service);
            let mut parts: BTreeSet<Part> = workload.services.keys().filter(own).cloned().map(Some).collect();
            if self.served.pods.contains(&pod) {
                parts.insert(None);
            }
            if !parts.is_empty() {
                let addresses = workload.addresses.iter().map(|address| (*address, parts.clone()));
                destinations.entry(workload.namespace.clone()).or_default().extend(addresses);
            }
        }
        destinations
    }

    /// Takes a workload in, or out if it is gone or concerns this waypoint no more, and says what changed.
    pub(crate) fn update(&mut self, uid: &WorkloadUid, told: Option<Arc<Workload>>) -> Option<Change> {
        match told {
            Some(told) if self.workloads.get(uid) == Some(&told) => None,
            Some(told) => {
                self.workloads.insert(uid.clone(), told.clone());
                Some(Change::Workload(told))
            }
            None => self.workloads.remove(uid).map(|gone| Change::RemoveAddress(gone.uid.0.clone())),
        }
    }

    /// The waypoint has acknowledged all of this.
    pub(crate) fn acknowledged(&mut self) {
        self.in_force = true;
    }

    /// It says what `before` said, and is acknowledged if that was.
    pub(crate) fn stands_as(&mut self, before: &Self) {
        self.in_force = before.in_force;
    }

    /// The keys of labels by which the waypoint may select now, whatever it is told next: a policy whose label is taken away before the
    /// policy is would select nobody, and be asked by nobody. So they go with the version after the one that names them no more.
    pub(crate) fn keys_in_force(&self) -> BTreeSet<Arc<str>> {
        let kept = self.kept_keys.iter().filter(|_| !self.in_force);
        self.label_keys.iter().chain(kept).cloned().collect()
    }

    /// What turns `before` into this, in order: what is new before what names it, what goes away last.
    pub(crate) fn differences(&self, before: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        changes.extend(new(&self.services, &before.services).map(|service| Change::Service(service.clone())));
        changes.extend(new(&self.workloads, &before.workloads).map(|workload| Change::Workload(workload.clone())));
        let own = self.waypoint.as_ref().filter(|own| before.waypoint.as_ref() != Some(own));
        changes.extend(own.map(|own| Change::Waypoint(own.clone())));
        changes.extend(new(&self.hosts, &before.hosts).map(|host| Change::Host(host.clone())));
        changes.extend(gone(&before.hosts, &self.hosts).map(|name| Change::RemoveHost(name.clone())));
        changes.extend(gone(&before.workloads, &self.workloads).map(|uid| Change::RemoveAddress(uid.0.clone())));
        changes.extend(gone(&before.services, &self.services).map(|name| Change::RemoveAddress(name.to_string().into())));
        changes
    }

    /// The policies that this waypoint enforces once it has all of this.
    pub(crate) fn policies(&self) -> impl Iterator<Item = &Arc<RequestPolicy>> {
        let own = self.waypoint.iter().flat_map(|own| &own.policies);
        own.chain(self.hosts.values().flat_map(|host| &host.policies))
    }

    /// The same, by the part that they stand in.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Part, &[Arc<RequestPolicy>])> {
        let own = self.waypoint.iter().map(|own| (None, own.policies.as_slice()));
        own.chain(self.hosts.iter().map(|(name, host)| (Some(name.clone()), host.policies.as_slice())))
    }

    /// The objects that it is made of besides Services, as far as the waypoint has them in force that refused these hosts.
    pub(crate) fn origins(&self, index: &Index, gateway: &Key, refused: &BTreeSet<NamespacedHostname>) -> BTreeSet<ObjectRef> {
        let mut origins: BTreeSet<ObjectRef> = self.waypoint.iter().flat_map(|own| policies_of(&own.policies)).collect();
        let (refused, taken): (Vec<_>, Vec<_>) = self.hosts.keys().partition(|host| refused.contains(*host));
        origins.extend(taken.into_iter().flat_map(|host| self.origins_of(index, gateway, host)));
        for object in refused.into_iter().flat_map(|host| self.origins_of(index, gateway, host)) {
            origins.remove(&object);
        }
        origins
    }

    /// The objects that a host is made of besides its Service: VirtualServices and what they delegate to, DestinationRules, policies.
    pub(crate) fn origins_of(&self, index: &Index, gateway: &Key, host: &NamespacedHostname) -> BTreeSet<ObjectRef> {
        let Some(host) = self.hosts.get(host) else { return BTreeSet::new() };
        let mut origins: BTreeSet<ObjectRef> = policies_of(&host.policies).collect();
        let used = virtual_service::used(index, gateway, &host.name.namespace, &host.name.hostname);
        origins.extend(used.into_iter().map(|object| object.reference()));
        let rendered = host.ports.values().flat_map(|port| &port.http).map(|route| &route.origin);
        let delegates = rendered.filter(|origin| &*origin.kind == "VirtualService");
        origins.extend(delegates.filter_map(|origin| object_named(Kind::VirtualService, &origin.object)));
        let rules =
            host.pools.keys().filter_map(|pool| destination_rule::select(index, &gateway.0, &pool.host.namespace, &pool.host.hostname));
        origins.extend(rules.flat_map(|rules| rules.objects).map(|object| object.reference()));
        origins
    }

    /// What there is to tell about its hosts.
    pub(crate) fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What is addressed through it, once it has all of this.
    pub(crate) fn served(&self) -> &Arc<Served> {
        &self.served
    }

    /// The hosts that it serves.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.hosts.values()
    }

    /// The keys of the labels that its routes ask callers for; some may come twice.
    pub(super) fn caller_labels(&self) -> impl Iterator<Item = &Arc<str>> {
        self.hosts.values().flat_map(|host| host.ports.values()).flat_map(HostPort::caller_labels)
    }

    /// The keys of labels that its configuration names.
    fn named_labels(&self) -> BTreeSet<Arc<str>> {
        let mut keys = BTreeSet::new();
        for host in self.hosts.values() {
            for pool in host.pools.values() {
                keys.extend(pool.labels.keys().cloned());
                if let LocalityPreference::Failover { labels, .. } = &pool.locality {
                    keys.extend(labels.iter().map(|(key, _)| key.clone()));
                }
            }
        }
        keys.extend(self.caller_labels().cloned());
        for policy in self.policies() {
            if let Attachment::Workloads { labels, .. } = &policy.attachment {
                keys.extend(labels.keys().cloned());
            }
        }
        keys
    }
}

fn policies_of(policies: &[Arc<RequestPolicy>]) -> impl Iterator<Item = ObjectRef> {
    policies.iter().filter_map(|policy| object_named(Kind::AuthorizationPolicy, &policy.key.0))
}

/// An object by `namespace/name`.
fn object_named(kind: Kind, name: &str) -> Option<ObjectRef> {
    name.split_once('/').map(|(namespace, name)| ObjectRef::new(kind, namespace, name))
}

/// The labels of a pod that have these keys.
pub(super) fn named<'a>(index: &Index, pod: &Key, keys: impl Iterator<Item = &'a Arc<str>>) -> BTreeMap<Arc<str>, Arc<str>> {
    let Some(object) = index.pod(pod) else { return BTreeMap::new() };
    let value = |key: &Arc<str>| Some((key.clone(), Arc::from(object.metadata.labels.get(&**key)?.as_str())));
    keys.filter_map(value).collect()
}

fn new<'a, K: Ord, V: PartialEq>(now: &'a BTreeMap<K, Arc<V>>, before: &'a BTreeMap<K, Arc<V>>) -> impl Iterator<Item = &'a Arc<V>> {
    now.iter().filter(|(key, value)| before.get(key) != Some(value)).map(|(_, value)| value)
}

fn gone<'a, K: Ord, V>(before: &'a BTreeMap<K, V>, now: &'a BTreeMap<K, V>) -> impl Iterator<Item = &'a K> {
    before.keys().filter(|key| !now.contains_key(key))
}
