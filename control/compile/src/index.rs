//! Facts by reference: which objects exist, and which of them look at one another, so that a change costs what it touches.

mod gateways;
mod labels;
mod routing;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use tropis_crds::{Kind, Object, ObjectRef, istio::WorkloadSelector};

use crate::{Settings, peer_authentication};
use labels::{Labelled, Selecting};
use routing::Routing;

pub use routing::{full_host, rule_host, virtual_hosts};

/// Namespace and name.
pub type Key = (String, String);

/// The label that ties an EndpointSlice to its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What has to be compiled again after a change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Affected {
    /// Pods.
    pub pods: BTreeSet<Key>,
    /// EndpointSlices.
    pub slices: BTreeSet<Key>,
    /// Services.
    pub services: BTreeSet<Key>,
    /// Namespaces.
    pub namespaces: BTreeSet<String>,
    /// AuthorizationPolicies.
    pub authorizations: BTreeSet<Key>,
    /// PeerAuthentications.
    pub peers: BTreeSet<Key>,
    /// VirtualServices.
    pub virtual_services: BTreeSet<Key>,
    /// DestinationRules.
    pub destination_rules: BTreeSet<Key>,
    /// Gateways of the Gateway API, or what there is to tell about them.
    pub gateways: BTreeSet<Key>,
    /// Whether a pod came, went, or carries other labels.
    pub pod_labels: bool,
    /// Whether there is any PeerAuthentication may have changed.
    pub static_strict: bool,
}

impl Affected {
    /// Takes in what else is affected.
    pub fn extend(&mut self, other: Self) {
        self.pods.extend(other.pods);
        self.slices.extend(other.slices);
        self.services.extend(other.services);
        self.namespaces.extend(other.namespaces);
        self.authorizations.extend(other.authorizations);
        self.peers.extend(other.peers);
        self.virtual_services.extend(other.virtual_services);
        self.destination_rules.extend(other.destination_rules);
        self.gateways.extend(other.gateways);
        self.pod_labels |= other.pod_labels;
        self.static_strict |= other.static_strict;
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The objects that the mesh is made of.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
    namespaces: BTreeMap<String, Arc<Object>>,
    nodes: HashMap<String, Arc<Object>>,
    pods: BTreeMap<Key, Arc<Object>>,
    pod_labels: Labelled,
    pods_on: HashMap<String, BTreeSet<Key>>,
    services: BTreeMap<Key, Arc<Object>>,
    service_selectors: Selecting,
    slices: BTreeMap<Key, Arc<Object>>,
    slices_of: HashMap<Key, BTreeSet<Key>>,
    slices_to: HashMap<Key, BTreeSet<Key>>,
    authorizations: BTreeMap<Key, Arc<Object>>,
    authorization_selectors: Selecting,
    peers: BTreeMap<Key, Arc<Object>>,
    peer_selectors: Selecting,
    routing: Routing,
    gateways: BTreeMap<Key, Arc<Object>>,
}

impl Index {
    /// An empty index.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            namespaces: BTreeMap::new(),
            nodes: HashMap::new(),
            pods: BTreeMap::new(),
            pod_labels: Labelled::default(),
            pods_on: HashMap::new(),
            services: BTreeMap::new(),
            service_selectors: Selecting::default(),
            slices: BTreeMap::new(),
            slices_of: HashMap::new(),
            slices_to: HashMap::new(),
            authorizations: BTreeMap::new(),
            authorization_selectors: Selecting::default(),
            peers: BTreeMap::new(),
            peer_selectors: Selecting::default(),
            routing: Routing::default(),
            gateways: BTreeMap::new(),
        }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes an object in, in place of an earlier version, and says what that affects.
    pub fn apply(&mut self, object: &Arc<Object>) -> Affected {
        self.replace(&object.reference(), Some(object))
    }

    /// Takes an object out and says what that affects.
    pub fn remove(&mut self, object: &ObjectRef) -> Affected {
        self.replace(object, None)
    }

    fn replace(&mut self, reference: &ObjectRef, object: Option<&Arc<Object>>) -> Affected {
        let key = (reference.namespace.clone(), reference.name.clone());
        match reference.kind {
            Kind::Pod => self.replace_pod(key, object),
            Kind::Service => self.replace_service(key, object),
            Kind::EndpointSlice => self.replace_slice(key, object),
            Kind::AuthorizationPolicy => self.replace_authorization(key, object),
            Kind::PeerAuthentication => self.replace_peer(key, object),
            Kind::VirtualService => self.replace_virtual_service(key, object),
            Kind::DestinationRule => self.replace_destination_rule(key, object),
            Kind::IstioGateway => self.replace_istio_gateway(key, object),
            Kind::Gateway => self.replace_gateway(key, object),
            Kind::Node => {
                put(&mut self.nodes, reference.name.clone(), object);
                Affected { pods: self.pods_on.get(&reference.name).cloned().unwrap_or_default(), ..Affected::default() }
            }
            Kind::Namespace => {
                let old = match object {
                    Some(object) => self.namespaces.insert(reference.name.clone(), object.clone()),
                    None => self.namespaces.remove(&reference.name),
                };
                let relabelled = old.as_ref().map(|old| &old.metadata.labels) != object.map(|new| &new.metadata.labels);
                let mut affected = Affected { namespaces: [reference.name.clone()].into(), ..Affected::default() };
                if relabelled {
                    affected.extend(self.relabelled_namespace(&reference.name));
                }
                affected
            }
            _ => Affected::default(),
        }
    }

    fn replace_pod(&mut self, key: Key, object: Option<&Arc<Object>>) -> Affected {
        let mut affected = Affected { pods: [key.clone()].into(), ..Affected::default() };
        let old = match object {
            Some(object) => self.pods.insert(key.clone(), object.clone()),
            None => self.pods.remove(&key),
        };
        let relabelled = old.as_ref().map(|old| &old.metadata.labels) != object.map(|new| &new.metadata.labels);
        affected.pod_labels = relabelled;
        for (pod, present) in old.iter().map(|old| (old, false)).chain(object.map(|new| (new, true))) {
            if relabelled {
                // A policy that selects it selects one workload more or fewer, and may have selected none.
                affected.authorizations.extend(self.authorizations_selecting(&key.0, &pod.metadata.labels));
                affected.peers.extend(self.peer_selectors.selecting(&key.0, &pod.metadata.labels));
                self.pod_labels.set(&key, &pod.metadata.labels, present);
            }
            affected.extend(self.attached_by(pod));
            if let Some(node) = pod.pod().and_then(|pod| pod.spec.as_ref()?.node_name.clone()) {
                set(&mut self.pods_on, node, &key, present);
            }
        }
        affected
    }

    fn replace_service(&mut self, key: Key, object: Option<&Arc<Object>>) -> Affected {
        let mut affected = Affected { services: [key.clone()].into(), ..Affected::default() };
        let old = match object {
            Some(object) => self.services.insert(key.clone(), object.clone()),
            None => self.services.remove(&key),
        };
        for (service, present) in old.iter().map(|old| (old, false)).chain(object.map(|new| (new, true))) {
            match service_selector(service) {
                Some(selector) => {
                    self.service_selectors.set(&key, selector, present);
                    affected.pods.extend(self.pod_labels.selected(&key.0, selector));
                }
                None => affected.pods.extend(self.slices_of(&key).flat_map(|slice| slice_pods(slice))),
            }
        }
        affected.slices.extend(self.slices_of.get(&key).cloned().unwrap_or_default());
        affected
    }

    fn replace_slice(&mut self, key: Key, object: Option<&Arc<Object>>) -> Affected {
        let mut affected = Affected { slices: [key.clone()].into(), ..Affected::default() };
        let old = match object {
            Some(object) => self.slices.insert(key.clone(), object.clone()),
            None => self.slices.remove(&key),
        };
        for (slice, present) in old.iter().map(|old| (old, false)).chain(object.map(|new| (new, true))) {
            let Some(service) = slice_service(slice) else { continue };
            let selecting = self.services.get(&service).is_some_and(|service| service_selector(service).is_some());
            // Whose pods are behind a service without a selector may decide about its waypoint.
            if !selecting && self.accounts_decide(&service.0) {
                affected.services.insert(service.clone());
            }
            set(&mut self.slices_of, service, &key, present);
            for pod in slice_pods(slice) {
                set(&mut self.slices_to, pod.clone(), &key, present);
                // Pods of a service with a selector are found by their labels; its slices say nothing new about them.
                if !selecting {
                    affected.pods.insert(pod);
                }
            }
        }
        affected
    }

    fn replace_authorization(&mut self, key: Key, object: Option<&Arc<Object>>) -> Affected {
        let mut affected = Affected { authorizations: [key.clone()].into(), ..Affected::default() };
        let old = match object {
            Some(object) => self.authorizations.insert(key.clone(), object.clone()),
            None => self.authorizations.remove(&key),
        };
        for (policy, present) in old.iter().map(|old| (old, false)).chain(object.map(|new| (new, true))) {
            let selector = policy.authorization_policy().and_then(|policy| selects(policy.spec.selector.as_ref()));
            if let Some(selector) = selector {
                self.authorization_selectors.set(&key, &selector.match_labels, present);
                affected.pods.extend(self.selected_by_authorization(&key.0, selector));
            }
        }
        affected
    }

    fn replace_peer(&mut self, key: Key, object: Option<&Arc<Object>>) -> Affected {
        let mut affected = Affected { peers: [key.clone()].into(), static_strict: true, ..Affected::default() };
        let old = match object {
            Some(object) => self.peers.insert(key.clone(), object.clone()),
            None => self.peers.remove(&key),
        };
        for (policy, present) in old.iter().map(|old| (old, false)).chain(object.map(|new| (new, true))) {
            let selector = policy.peer_authentication().and_then(|policy| selects(policy.spec.selector.as_ref()));
            match selector {
                Some(selector) => {
                    self.peer_selectors.set(&key, &selector.match_labels, present);
                    affected.pods.extend(self.pod_labels.selected(&key.0, &selector.match_labels));
                    // Another one for the same pods may win now, or no longer.
                    affected.peers.extend(self.peers_in(&key.0).map(|policy| key_of(policy)));
                }
                None if key.0 == self.settings.root_namespace => {
                    affected.pods.extend(self.pods.keys().cloned());
                    affected.peers.extend(self.peers.keys().cloned());
                }
                None => {
                    affected.pods.extend(self.pods_in(&key.0));
                    affected.peers.extend(self.peers_in(&key.0).map(|policy| key_of(policy)));
                }
            }
        }
        affected
    }

    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<&Arc<Object>> {
        self.namespaces.get(name)
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Arc<Object>> {
        self.nodes.get(name)
    }

    /// A pod.
    pub fn pod(&self, key: &Key) -> Option<&Arc<Object>> {
        self.pods.get(key)
    }

    /// A service.
    pub fn service(&self, key: &Key) -> Option<&Arc<Object>> {
        self.services.get(key)
    }

    /// An EndpointSlice.
    pub fn slice(&self, key: &Key) -> Option<&Arc<Object>> {
        self.slices.get(key)
    }

    /// An AuthorizationPolicy.
    pub fn authorization(&self, key: &Key) -> Option<&Arc<Object>> {
        self.authorizations.get(key)
    }

    /// A PeerAuthentication.
    pub fn peer(&self, key: &Key) -> Option<&Arc<Object>> {
        self.peers.get(key)
    }

    /// Whether there is any PeerAuthentication.
    pub fn has_peers(&self) -> bool {
        !self.peers.is_empty()
    }

    /// Everything there is, as if all of it had changed.
    pub fn everything(&self) -> Affected {
        Affected {
            pods: self.pods.keys().cloned().collect(),
            slices: self.slices.keys().cloned().collect(),
            services: self.services.keys().cloned().collect(),
            namespaces: self.namespaces.keys().cloned().collect(),
            authorizations: self.authorizations.keys().cloned().collect(),
            peers: self.peers.keys().cloned().collect(),
            virtual_services: self.virtual_services().map(|object| key_of(object)).collect(),
            destination_rules: self.destination_rules().map(|object| key_of(object)).collect(),
            gateways: self.gateways.keys().cloned().collect(),
            pod_labels: true,
            static_strict: true,
        }
    }

    /// Services with a selector that selects a pod with these labels.
    pub(crate) fn services_selecting(&self, namespace: &str, labels: &BTreeMap<String, String>) -> impl Iterator<Item = &Arc<Object>> {
        self.service_selectors.selecting(namespace, labels).into_iter().filter_map(|key| self.services.get(&key))
    }

    /// EndpointSlices of services without a selector that point at a pod, with their service.
    pub(crate) fn slices_to(&self, pod: &Key) -> impl Iterator<Item = (&Arc<Object>, &Arc<Object>)> {
        self.slices_to.get(pod).into_iter().flatten().filter_map(|key| {
            let slice = self.slices.get(key)?;
            let service = self.services.get(&slice_service(slice)?)?;
            service_selector(service).is_none().then_some((slice, service))
        })
    }

    /// The service that a slice belongs to, if it exists.
    pub(crate) fn service_of(&self, slice: &Object) -> Option<&Arc<Object>> {
        self.services.get(&slice_service(slice)?)
    }

    /// AuthorizationPolicies with a selector that selects a pod: of its namespace and of the root namespace.
    pub(crate) fn authorizations_selecting(&self, namespace: &str, labels: &BTreeMap<String, String>) -> BTreeSet<Key> {
        let mut keys = self.authorization_selectors.selecting(namespace, labels);
        if namespace != self.settings.root_namespace {
            keys.extend(self.authorization_selectors.selecting(&self.settings.root_namespace, labels));
        }
        keys
    }

    /// The pods that an AuthorizationPolicy of `namespace` selects.
    pub(crate) fn selected_by_authorization<'a>(&'a self, namespace: &'a str, selector: &'a WorkloadSelector) -> impl Iterator<Item = Key> {
        let everywhere = namespace == self.settings.root_namespace;
        let anywhere = everywhere.then(|| self.pod_labels.selected_anywhere(&selector.match_labels));
        let here = (!everywhere).then(|| self.pod_labels.selected(namespace, &selector.match_labels));
        anywhere.into_iter().flatten().chain(here.into_iter().flatten())
    }

    /// The pods that a PeerAuthentication of `namespace` selects.
    pub(crate) fn selected_by_peer<'a>(&'a self, namespace: &'a str, selector: &WorkloadSelector) -> impl Iterator<Item = Key> + use<'a> {
        self.pod_labels.selected(namespace, &selector.match_labels)
    }

    /// PeerAuthentications with a selector that selects a pod, in no order.
    pub(crate) fn peers_selecting(&self, namespace: &str, labels: &BTreeMap<String, String>) -> impl Iterator<Item = &Arc<Object>> {
        self.peer_selectors.selecting(namespace, labels).into_iter().filter_map(|key| self.peers.get(&key))
    }

    /// The PeerAuthentications of a namespace.
    pub(crate) fn peers_in<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        in_namespace(&self.peers, namespace).map(|(_, policy)| policy)
    }

    /// The PeerAuthentication without selector that counts in a namespace: the oldest.
    pub(crate) fn peer_of_namespace(&self, namespace: &str) -> Option<&Arc<Object>> {
        self.peers_in(namespace).filter(|policy| peer_authentication::is_for_namespace(policy)).min_by_key(|policy| policy.age())
    }

    fn pods_in<'a>(&'a self, namespace: &str) -> impl Iterator<Item = Key> + use<'a> {
        in_namespace(&self.pods, namespace).map(|(key, _)| key.clone())
    }

    fn slices_of<'a>(&'a self, service: &Key) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key))
    }
}

fn in_namespace<'a>(map: &'a BTreeMap<Key, Arc<Object>>, namespace: &str) -> impl Iterator<Item = (&'a Key, &'a Arc<Object>)> + use<'a> {
    let namespace = namespace.to_owned();
    map.range((namespace.clone(), String::new())..).take_while(move |((own, _), _)| *own == namespace)
}

/// A selector that is there and not empty; an empty one selects everything in scope, as none does.
pub(crate) fn selects(selector: Option<&WorkloadSelector>) -> Option<&WorkloadSelector> {
    selector.filter(|selector| !selector.is_empty())
}

/// The selector of a service, unless it has none.
pub(crate) fn service_selector(service: &Object) -> Option<&BTreeMap<String, String>> {
    service.service()?.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())
}

/// An object's namespace and name.
pub(crate) fn key_of(object: &Object) -> Key {
    (object.metadata.namespace.clone(), object.metadata.name.clone())
}

fn slice_service(slice: &Object) -> Option<Key> {
    Some((slice.metadata.namespace.clone(), slice.label(SERVICE_NAME)?.to_owned()))
}

fn slice_pods(slice: &Object) -> impl Iterator<Item = Key> {
    let endpoints = slice.endpoint_slice().into_iter().flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints.filter_map(|endpoint| {
        let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"))?;
        Some((target.namespace.clone().unwrap_or_else(|| slice.metadata.namespace.clone()), target.name.clone()?))
    })
}

fn put(map: &mut HashMap<String, Arc<Object>>, name: String, object: Option<&Arc<Object>>) {
    match object {
        Some(object) => map.insert(name, object.clone()),
        None => map.remove(&name),
    };
}

fn set<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<Key>>, at: K, key: &Key, present: bool) {
    if present {
        map.entry(at).or_default().insert(key.clone());
    } else if let Some(keys) = map.get_mut(&at) {
        keys.remove(key);
        if keys.is_empty() {
            map.remove(&at);
        }
    }
}
