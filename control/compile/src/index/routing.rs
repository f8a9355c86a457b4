//! VirtualServices, DestinationRules and Istio's Gateways, by their keys and by the hosts that they are about.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use tropis_crds::{Object, istio::check::covers};

use super::{Affected, Index, Key, in_namespace, set};
use crate::Settings;

/// What routes, and what it routes to.
#[derive(Debug, Default)]
pub(super) struct Routing {
    virtual_services: BTreeMap<Key, Arc<Object>>,
    virtual_services_of: ByHost,
    destination_rules: BTreeMap<Key, Arc<Object>>,
    destination_rules_of: ByHost,
    istio_gateways: BTreeSet<Key>,
}

/// Objects by the hosts that they name.
#[derive(Debug, Default)]
struct ByHost {
    exact: HashMap<String, BTreeSet<Key>>,
    wildcard: HashMap<String, BTreeSet<Key>>,
}

impl ByHost {
    fn set(&mut self, host: String, key: &Key, present: bool) {
        let map = if host.starts_with('*') { &mut self.wildcard } else { &mut self.exact };
        set(map, host, key, present);
    }

    fn covering(&self, host: &str) -> BTreeSet<&Key> {
        let wild = self.wildcard.iter().filter(|(pattern, _)| covers(pattern, host)).flat_map(|(_, keys)| keys);
        self.exact.get(host).into_iter().flatten().chain(wild).collect()
    }
}

/// A host as an object of `namespace` writes it, in full and in lower case: a name without a dot is a service of that namespace.
pub fn full_host(settings: &Settings, namespace: &str, host: &str) -> String {
    let host = host.to_ascii_lowercase();
    if host.contains('.') || host.starts_with('*') || host.parse::<IpAddr>().is_ok() {
        return host;
    }
    format!("{host}.{namespace}.svc.{}", settings.cluster_domain)
}

impl Index {
    pub(super) fn replace_virtual_service(&mut self, key: Key, object: Option<&Arc<Object>>) -> Affected {
        let old = put(&mut self.routing.virtual_services, &key, object);
        for (object, present) in old.iter().map(|old| (old, false)).chain(object.map(|new| (new, true))) {
            for host in virtual_hosts(&self.settings, object) {
                self.routing.virtual_services_of.set(host, &key, present);
            }
        }
        Affected { virtual_services: [key].into(), ..Affected::default() }
    }

    pub(super) fn replace_destination_rule(&mut self, key: Key, object: Option<&Arc<Object>>) -> Affected {
        let old = put(&mut self.routing.destination_rules, &key, object);
        for (object, present) in old.iter().map(|old| (old, false)).chain(object.map(|new| (new, true))) {
            if let Some(host) = rule_host(&self.settings, object) {
                self.routing.destination_rules_of.set(host, &key, present);
            }
        }
        Affected { destination_rules: [key].into(), ..Affected::default() }
    }

    pub(super) fn replace_istio_gateway(&mut self, key: Key, object: Option<&Arc<Object>>) -> Affected {
        if object.is_some() {
            self.routing.istio_gateways.insert(key);
        } else {
            self.routing.istio_gateways.remove(&key);
        }
        Affected::default()
    }

    /// A VirtualService.
    pub fn virtual_service(&self, key: &Key) -> Option<&Arc<Object>> {
        self.routing.virtual_services.get(key)
    }

    /// Every VirtualService.
    pub fn virtual_services(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.routing.virtual_services.values()
    }

    /// The VirtualServices one of whose hosts covers a host, oldest first.
    pub fn virtual_services_for(&self, host: &str) -> Vec<&Arc<Object>> {
        let keys = self.routing.virtual_services_of.covering(host);
        oldest_first(keys.into_iter().filter_map(|key| self.virtual_service(key)))
    }

    /// A DestinationRule.
    pub fn destination_rule(&self, key: &Key) -> Option<&Arc<Object>> {
        self.routing.destination_rules.get(key)
    }

    /// Every DestinationRule.
    pub fn destination_rules(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.routing.destination_rules.values()
    }

    /// The DestinationRules whose host covers a host, oldest first.
    pub fn destination_rules_for(&self, host: &str) -> Vec<&Arc<Object>> {
        let keys = self.routing.destination_rules_of.covering(host);
        oldest_first(keys.into_iter().filter_map(|key| self.destination_rule(key)))
    }

    /// Whether there is such a Gateway of Istio's.
    pub fn has_istio_gateway(&self, key: &Key) -> bool {
        self.routing.istio_gateways.contains(key)
    }

    /// The Gateways of Istio's, as a VirtualService of `namespace` names them.
    pub(crate) fn istio_gateway_names(&self, namespace: &str) -> Vec<String> {
        let shown = |(own, name): &Key| if own == namespace { name.clone() } else { format!("{own}/{name}") };
        self.routing.istio_gateways.iter().map(shown).collect()
    }

    /// The Service that a full host names.
    pub fn service_named(&self, host: &str) -> Option<&Arc<Object>> {
        let (name, rest) = host.split_once('.')?;
        let namespace = rest.strip_suffix(&format!(".svc.{}", self.settings.cluster_domain))?;
        self.services.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Services of a name, in every namespace.
    pub(crate) fn services_called<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Arc<Object>> {
        self.services.values().filter(move |service| service.metadata.name == name)
    }

    /// Services whose full host a host covers.
    pub(crate) fn services_covered<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Arc<Object>> {
        let exact = (!host.starts_with('*')).then(|| self.service_named(host)).flatten();
        let all = host.starts_with('*').then(|| self.services.values()).into_iter().flatten();
        let wild = all.filter(|service| {
            let metadata = &service.metadata;
            covers(host, &full_host(&self.settings, &metadata.namespace, &metadata.name))
        });
        exact.into_iter().chain(wild)
    }

    /// The AuthorizationPolicies of a namespace, in order of their names.
    pub fn authorizations_in<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        in_namespace(&self.authorizations, namespace).map(|(_, policy)| policy)
    }

    /// The namespaces that have a pod with all of these labels, of which there is at least one.
    pub(crate) fn namespaces_with(&self, labels: &BTreeMap<String, String>) -> Vec<String> {
        let namespaces: BTreeSet<String> = self.pod_labels.selected_anywhere(labels).map(|(namespace, _)| namespace).collect();
        namespaces.into_iter().collect()
    }

    /// The values that pods of a namespace have for a label.
    pub(crate) fn pod_label_values<'a>(&'a self, namespace: &str, key: &str) -> impl Iterator<Item = &'a str> {
        self.pod_labels.values(namespace, key)
    }

    /// Whether a pod of a namespace carries all of these labels.
    pub(crate) fn has_pod(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        if labels.is_empty() {
            return self.pods_in(namespace).next().is_some();
        }
        self.pod_labels.selected(namespace, labels).next().is_some()
    }
}

/// The hosts of a VirtualService, in full.
pub fn virtual_hosts(settings: &Settings, object: &Object) -> Vec<String> {
    let hosts = object.virtual_service().into_iter().flat_map(|service| &service.spec.hosts);
    hosts.map(|host| full_host(settings, &object.metadata.namespace, host)).collect()
}

/// The host of a DestinationRule, in full.
pub fn rule_host(settings: &Settings, object: &Object) -> Option<String> {
    Some(full_host(settings, &object.metadata.namespace, &object.destination_rule()?.spec.host))
}

fn oldest_first<'a>(objects: impl Iterator<Item = &'a Arc<Object>>) -> Vec<&'a Arc<Object>> {
    let mut objects: Vec<_> = objects.collect();
    objects.sort_by_key(|object| object.age());
    objects
}

fn put(map: &mut BTreeMap<Key, Arc<Object>>, key: &Key, object: Option<&Arc<Object>>) -> Option<Arc<Object>> {
    match object {
        Some(object) => map.insert(key.clone(), object.clone()),
        None => map.remove(key),
    }
}
