//! Gateways of the Gateway API, and who may be using which as a waypoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tropis_crds::Object;

use super::{Affected, Index, Key, in_namespace, key_of, service_selector};
use crate::{
    waypoint::{self, automatic::Scope},
    workload,
};

impl Index {
    /// A Gateway changes seldom, so who names it is found by looking at every label.
    pub(super) fn replace_gateway(&mut self, key: Key, object: Option<&Arc<Object>>) -> Affected {
        match object {
            Some(object) => self.gateways.insert(key.clone(), object.clone()),
            None => self.gateways.remove(&key),
        };
        let namespaces: BTreeSet<&str> = (self.namespaces.values())
            .filter(|namespace| waypoint::named(namespace).is_some_and(|named| named == key))
            .map(|namespace| namespace.metadata.name.as_str())
            .chain([key.0.as_str()])
            .collect();
        let uses = |object: &Arc<Object>| {
            namespaces.contains(object.metadata.namespace.as_str()) || waypoint::named(object).is_some_and(|named| named == key)
        };
        let using = |map: &BTreeMap<Key, Arc<Object>>| map.iter().filter(|(_, object)| uses(object)).map(|(key, _)| key.clone()).collect();
        let (pods, services) = (using(&self.pods), using(&self.services));
        let namespaces = namespaces.into_iter().map(str::to_owned).collect();
        Affected { gateways: [key].into(), pods, services, namespaces, ..Affected::default() }
    }

    /// What uses a waypoint by a namespace's label, or may use it by another label of the namespace.
    pub(super) fn relabelled_namespace(&self, name: &str) -> Affected {
        let services = in_namespace(&self.services, name).map(|(key, _)| key.clone()).collect();
        Affected { pods: self.pods_in(name).collect(), services, ..Affected::default() }
    }

    /// The services whose waypoint a pod's account or readiness decides about, and the waypoint that it is of.
    pub(super) fn attached_by(&self, pod: &Object) -> Affected {
        let (namespace, labels) = (&pod.metadata.namespace, &pod.metadata.labels);
        let gateways: BTreeSet<Key> =
            pod.label(waypoint::GATEWAY_NAME).map(|name| (namespace.clone(), name.to_owned())).into_iter().collect();
        let mut services = BTreeSet::new();
        if self.accounts_decide(namespace) {
            services.extend(self.service_selectors.selecting(namespace, labels));
            services.extend(self.slices_to(&key_of(pod)).map(|(_, service)| key_of(service)));
            services.retain(|service| self.services.get(service).is_some_and(|service| self.is_alone(pod, service)));
        }
        Affected { gateways, services, ..Affected::default() }
    }

    /// Whether the accounts of pods may decide in a namespace through which waypoint a Service goes.
    pub(super) fn accounts_decide(&self, namespace: &str) -> bool {
        Scope::in_namespace(self, namespace) == Scope::ServiceAccount
            || self.gateways_in(namespace).any(|gateway| waypoint::account(gateway).is_some())
    }

    /// Whether no other pod of a Service runs as a pod's account: only then does that one change what accounts the Service has.
    fn is_alone(&self, pod: &Object, service: &Object) -> bool {
        let account = pod.pod_service_account();
        let same = |other: &Arc<Object>| !waypoint::has_ended(other) && other.pod_service_account() == account;
        // The first one found is enough: a Service's pods run as one account as a rule.
        !self.keys_of(service).any(|key| key != key_of(pod) && self.pods.get(&key).is_some_and(same))
    }

    /// A Gateway of the Gateway API.
    pub fn gateway(&self, key: &Key) -> Option<&Arc<Object>> {
        self.gateways.get(key)
    }

    /// Every Gateway of class `istio-waypoint`.
    pub fn waypoints(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.gateways.values().filter(|gateway| waypoint::is_waypoint(gateway))
    }

    /// The names of all namespaces.
    pub(crate) fn namespace_names(&self) -> impl Iterator<Item = &String> {
        self.namespaces.keys()
    }

    /// The waypoints that the control plane made by itself.
    pub fn automatic_waypoints(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.waypoints().filter(|gateway| waypoint::automatic::is_automatic(gateway))
    }

    /// Whether there is a pod that was made for a waypoint.
    pub fn has_pods(&self, gateway: &Key) -> bool {
        self.pods_made_for(gateway).next().is_some()
    }

    /// Whether one of a waypoint's pods is ready: node proxies go to no other.
    pub fn has_ready_pod(&self, gateway: &Key) -> bool {
        self.pods_made_for(gateway).any(|pod| pod.pod().is_some_and(workload::is_ready))
    }

    fn pods_made_for<'a>(&'a self, gateway: &'a Key) -> impl Iterator<Item = &'a Arc<Object>> {
        let pods = in_namespace(&self.pods, &gateway.0).map(|(_, pod)| pod);
        pods.filter(|pod| pod.label(waypoint::GATEWAY_NAME) == Some(&gateway.1) && pod.label(waypoint::MANAGED).is_some())
    }

    /// Every AuthorizationPolicy.
    pub(crate) fn authorizations(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.authorizations.values()
    }

    /// The waypoints of a namespace.
    pub(crate) fn gateways_in<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        in_namespace(&self.gateways, namespace).map(|(_, gateway)| gateway).filter(|gateway| waypoint::is_waypoint(gateway))
    }

    /// Every Service.
    pub(crate) fn services(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.services.values()
    }

    /// The services of a namespace.
    pub(crate) fn services_in<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        in_namespace(&self.services, namespace).map(|(_, service)| service)
    }

    /// Every pod.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.pods.values()
    }

    /// The accounts that the pods of a service run as.
    pub(crate) fn accounts_of(&self, service: &Object) -> BTreeSet<&str> {
        self.pods_of(service).into_iter().filter_map(|pod| pod.pod_service_account()).collect()
    }

    /// The pods that a service serves and that have not ended.
    pub(crate) fn pods_of(&self, service: &Object) -> Vec<&Arc<Object>> {
        let keys: BTreeSet<Key> = self.keys_of(service).collect();
        keys.iter().filter_map(|key| self.pods.get(key)).filter(|pod| !waypoint::has_ended(pod)).collect()
    }

    /// The pods that a service serves, by what is said of them; one may be there twice.
    fn keys_of<'a>(&'a self, service: &'a Object) -> impl Iterator<Item = Key> + use<'a> {
        let selector = service_selector(service);
        let selected = selector.map(|selector| self.pod_labels.selected(&service.metadata.namespace, selector));
        let told = selector.is_none().then(|| self.slices_of(&key_of(service)).flat_map(|slice| super::slice_pods(slice)));
        selected.into_iter().flatten().chain(told.into_iter().flatten())
    }
}
