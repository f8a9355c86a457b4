//! What the objects say there is: workloads by namespace and owner, as metrics name them, with what is known of their pods.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use tropis_compile::{Compiler, waypoint};
use tropis_crds::Object;
use tropis_model::{
    identity::Identity,
    workload::{Health, NetworkMode, TunnelProtocol, Workload},
};

/// Namespace and name: of a workload its owner's, as `source_workload` of Istio's metrics has it.
pub(crate) type Key = (String, String);

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inventory {
    /// Every object was read once.
    pub(crate) complete: bool,
    /// The workloads.
    pub(crate) workloads: BTreeMap<Key, Group>,
    /// By the uid of a pod, the workload it belongs to.
    pods: HashMap<Arc<str>, Key>,
    /// By an identity, the workloads that have it.
    by_identity: HashMap<String, BTreeSet<Key>>,
    cluster_id: String,
}

/// The pods of one workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Group {
    /// They are a waypoint's.
    pub(crate) waypoint: bool,
    /// They are the machine's or the mesh's own, and nobody's application.
    pub(crate) system: bool,
    /// How many.
    pub(crate) pods: usize,
    /// How many of them may be called.
    pub(crate) ready: usize,
    /// How many of them are reached by tunnels.
    pub(crate) enrolled: usize,
    /// The identities that they prove.
    pub(crate) identities: BTreeSet<String>,
    /// The services that they are endpoints of, as `NAME.NAMESPACE` where that is their name.
    pub(crate) services: BTreeSet<String>,
    /// Where they run.
    pub(crate) nodes: BTreeSet<Arc<str>>,
}

impl Inventory {
    /// What a compiler has compiled; `complete` once all of it was read.
    pub(crate) fn of(compiler: &Compiler, complete: bool) -> Self {
        let index = compiler.index();
        let settings = index.settings();
        let key = |gateway: &Object| (gateway.metadata.namespace.clone(), gateway.metadata.name.clone());
        let waypoints = index.waypoints().map(|gateway| (key(gateway), waypoint::identity(settings, &key(gateway)))).collect();
        let mut inventory = Self { complete, cluster_id: settings.cluster_id.to_string(), ..Self::default() };
        for workload in compiler.workloads() {
            inventory.add(workload, &format!(".svc.{}", settings.cluster_domain), &settings.root_namespace, &waypoints);
        }
        inventory
    }

    fn add(&mut self, workload: &Workload, suffix: &str, root_namespace: &str, waypoints: &BTreeMap<Key, Identity>) {
        let key = (workload.namespace.to_string(), workload.workload_name.to_string());
        self.pods.insert(workload.uid.0.clone(), key.clone());
        self.by_identity.entry(workload.identity.to_string()).or_default().insert(key.clone());
        // Anybody may call a Deployment as a Gateway is called; nobody else runs as its account.
        let waypoint = waypoints.get(&key) == Some(&workload.identity);
        let group = self.workloads.entry(key).or_default();
        group.waypoint |= waypoint;
        group.system |= workload.network_mode == NetworkMode::HostNetwork || &*workload.namespace == root_namespace;
        group.pods += 1;
        group.ready += usize::from(workload.health == Health::Healthy);
        group.enrolled += usize::from(workload.tunnel_protocol == TunnelProtocol::Hbone);
        group.identities.insert(workload.identity.to_string());
        let short = |name: &str| name.strip_suffix(suffix).unwrap_or(name).to_owned();
        group.services.extend(workload.services.keys().map(|service| short(&service.hostname)));
        group.nodes.extend(Some(workload.node.clone()).filter(|node| !node.is_empty()));
    }

    /// The workload that a pod belongs to, by its uid in the mesh.
    pub(crate) fn workload_of(&self, uid: &str) -> Option<&Key> {
        self.pods.get(uid)
    }

    /// The workloads that have an identity: those that run as one account.
    pub(crate) fn workloads_of_identity(&self, identity: &str) -> impl Iterator<Item = &Key> {
        self.by_identity.get(identity).into_iter().flatten()
    }

    /// The workload that a pod belongs to, by its name.
    pub(crate) fn workload_of_pod(&self, namespace: &str, name: &str) -> Option<&Key> {
        self.workload_of(&format!("{}//Pod/{namespace}/{name}", self.cluster_id))
    }

    /// An inventory for tests: workloads with one enrolled pod each, of the workload's name.
    #[cfg(test)]
    pub(crate) fn with(workloads: &[(&str, &str)]) -> Self {
        let mut inventory = Self { complete: true, cluster_id: "c".to_owned(), ..Self::default() };
        for (namespace, name) in workloads {
            let identity = Identity::new("cluster.local", *namespace, *name);
            let mut workload = Workload::new(format!("c//Pod/{namespace}/{name}"), *name, identity);
            workload.tunnel_protocol = TunnelProtocol::Hbone;
            let own = Identity::new("cluster.local", *namespace, "waypoint");
            let waypoints = [(((*namespace).to_owned(), "waypoint".to_owned()), own)].into();
            inventory.add(&workload, ".svc.cluster.local", "istio-system", &waypoints);
        }
        inventory
    }

    /// The same with workloads of namespace `shop` that all run as the account `shared`.
    #[cfg(test)]
    pub(crate) fn and_sharing_an_account(mut self, names: &[&str]) -> Self {
        for name in names {
            let workload = Workload::new(format!("c//Pod/shop/{name}"), *name, Identity::new("cluster.local", "shop", "shared"));
            self.add(&workload, ".svc.cluster.local", "istio-system", &BTreeMap::new());
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waypoint_is_what_runs_as_its_account_and_not_what_is_called_like_it() {
        let mut inventory = Inventory::with(&[("shop", "waypoint"), ("shop", "web")]);
        let key = ("shop".to_owned(), "waypoint".to_owned());
        assert!(inventory.workloads[&key].waypoint);
        assert!(!inventory.workloads[&("shop".to_owned(), "web".to_owned())].waypoint);
        let waypoints = [(("plain".to_owned(), "gate".to_owned()), Identity::new("cluster.local", "plain", "gate"))].into();
        let other = Workload::new("c//Pod/plain/gate", "gate", Identity::new("cluster.local", "plain", "somebody"));
        inventory.add(&other, ".svc.cluster.local", "istio-system", &waypoints);
        assert!(!inventory.workloads[&("plain".to_owned(), "gate".to_owned())].waypoint);
    }

    #[test]
    fn pods_of_one_owner_are_one_workload() {
        let mut inventory = Inventory::default();
        for (pod, ready) in [("web-1", true), ("web-2", false)] {
            let identity = Identity::new("cluster.local", "shop", "web");
            let mut workload = Workload::new(format!("c//Pod/shop/{pod}"), pod, identity);
            workload.workload_name = "web".into();
            workload.health = if ready { Health::Healthy } else { Health::Unhealthy };
            workload.node = "a".into();
            let service =
                tropis_model::address::NamespacedHostname { namespace: "shop".into(), hostname: "web.shop.svc.cluster.local".into() };
            workload.services.insert(service, BTreeMap::new());
            inventory.add(&workload, ".svc.cluster.local", "istio-system", &BTreeMap::new());
        }
        let key = ("shop".to_owned(), "web".to_owned());
        let group = &inventory.workloads[&key];
        assert_eq!((group.pods, group.ready, group.enrolled, group.waypoint, group.system), (2, 1, 0, false, false));
        assert_eq!(group.services.iter().collect::<Vec<_>>(), ["web.shop"]);
        assert_eq!(group.identities.iter().collect::<Vec<_>>(), ["spiffe://cluster.local/ns/shop/sa/web"]);
        assert_eq!(inventory.workload_of("c//Pod/shop/web-2"), Some(&key));
        let identity = "spiffe://cluster.local/ns/shop/sa/web";
        assert_eq!(inventory.workloads_of_identity(identity).collect::<Vec<_>>(), [&key]);
        let other = Workload::new("c//Pod/shop/other", "other", Identity::new("cluster.local", "shop", "web"));
        inventory.add(&other, ".svc.cluster.local", "istio-system", &BTreeMap::new());
        assert_eq!(inventory.workloads_of_identity(identity).count(), 2, "two workloads share an account");
    }
}
