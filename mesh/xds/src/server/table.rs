//! The table of resources, as snapshots that share what did not change.
//!
//! Each audience has a table of its own: the node proxies share one, a waypoint has what concerns it. All of them change in one step
//! and under one generation, so that "everything up to this generation is in force" means the same for every client. Who calls a waypoint
//! from outside of its table is found by address among what the node proxies are told ([`Snapshot::callers`]).

use std::{collections::BTreeMap, fmt, sync::Arc};

use imbl::{HashMap, OrdMap, OrdSet};
use prost_types::Any;
use tokio::sync::watch;
use tropis_model::{address::NetworkAddress, policy::PolicyScope, view::Change, workload::NetworkMode};
use tropis_proto::xds::Resource;
use xxhash_rust::xxh3::xxh3_64;

use crate::{ResourceType, convert};

/// Whom a table is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Audience {
    /// The node proxies.
    NodeProxies,
    /// The pods of a waypoint, by its key `namespace/name`.
    Waypoint(Arc<str>),
}

impl Audience {
    /// The types that it is served; another one is never answered.
    pub const fn types(&self) -> &'static [ResourceType] {
        match self {
            Self::NodeProxies => &[ResourceType::Authorization, ResourceType::Address],
            Self::Waypoint(_) => &[ResourceType::Address, ResourceType::Waypoint, ResourceType::Host],
        }
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeProxies => f.write_str("node proxies"),
            Self::Waypoint(key) => write!(f, "waypoint {key}"),
        }
    }
}

/// A resource ready to be sent. Two entries are equal if their versions, the hashes of their content, are.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) resource: Arc<Resource>,
    /// A policy that applies without being named: to its namespace, or to the mesh.
    pub(super) broad: bool,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.resource, &other.resource) || self.resource.version == other.resource.version
    }
}

/// Resources of one type by name.
pub(super) type Entries = OrdMap<Arc<str>, Entry>;

/// All tables at one moment. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Counts the publications that changed something, from 1.
    pub generation: u64,
    pub(super) version: Arc<str>,
    tables: HashMap<Audience, Table>,
    /// The workloads of the node proxies' table by `network/address`.
    workloads_at: HashMap<Arc<str>, OrdSet<Arc<str>>>,
    /// Workloads of which waypoints are told more than node proxies are, when they are called by them.
    callers: Table,
}

/// Workloads that are told for one address: two while an address is given on, more only while something is wrong.
const CALLERS_AT: usize = 8;

/// One audience's resources. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub(super) struct Table(BTreeMap<ResourceType, Entries>);

impl Table {
    pub(super) fn entries(&self, r#type: ResourceType) -> Entries {
        self.0.get(&r#type).cloned().unwrap_or_default()
    }

    /// A workload or a service.
    fn entry(&self, name: &str) -> Option<&Entry> {
        self.0.get(&ResourceType::Address)?.get(name)
    }
}

impl Snapshot {
    /// What proxies log as the version of the configuration.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The resources of a type that an audience is told, by name, with their versions.
    pub fn resources<'a>(&'a self, audience: &Audience, r#type: ResourceType) -> impl Iterator<Item = (&'a str, &'a str)> {
        let entries = self.tables.get(audience).and_then(|table| table.0.get(&r#type)).into_iter().flatten();
        entries.map(|(name, entry)| (&**name, entry.resource.version.as_str()))
    }

    /// The audiences that have a table.
    pub fn audiences(&self) -> impl Iterator<Item = &Audience> {
        self.tables.keys()
    }

    /// The workloads that have an address (`network/address`), as a waypoint is told those that call it.
    pub(super) fn callers<'a>(&'a self, address: &str) -> impl Iterator<Item = (&'a Arc<str>, &'a Entry)> {
        let everybody = self.tables.get(&Audience::NodeProxies);
        let names = self.workloads_at.get(address).into_iter().flatten().take(CALLERS_AT);
        names.filter_map(move |name| Some((name, self.callers.entry(name).or_else(|| everybody?.entry(name))?)))
    }

    /// Files a workload of the node proxies by the addresses that are its own.
    fn file(&mut self, before: Option<&Entry>, change: &Change) {
        let forgotten = before.iter().flat_map(|entry| entry.resource.aliases.iter().map(|alias| (alias, &entry.resource.name)));
        for (alias, name) in forgotten {
            if let Some(names) = self.workloads_at.get_mut(alias.as_str()) {
                names.remove(name.as_str());
                if names.is_empty() {
                    self.workloads_at.remove(alias.as_str());
                }
            }
        }
        let Change::Workload(workload) = change else { return };
        if workload.network_mode == NetworkMode::HostNetwork {
            return;
        }
        for address in &workload.addresses {
            let at = NetworkAddress { network: workload.network.clone(), address: *address };
            self.workloads_at.entry(at.to_string().into()).or_default().insert(workload.uid.0.clone());
        }
    }

    /// `None` for an audience that was told nothing yet: it waits.
    pub(super) fn table(&self, audience: &Audience) -> Option<&Table> {
        self.tables.get(audience)
    }
}

/// What a publication did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The table's generation after it.
    pub generation: u64,
    /// How many resources are different now.
    pub changed: usize,
}

/// The table. Clones are handles to one table.
#[derive(Debug, Clone)]
pub struct Resources {
    instance: Arc<str>,
    snapshots: Arc<watch::Sender<Option<Arc<Snapshot>>>>,
}

impl Resources {
    /// A table without a snapshot: clients wait. `instance` tells the versions of this process from those of the one before it.
    pub fn new(instance: impl Into<Arc<str>>) -> Self {
        Self { instance: instance.into(), snapshots: Arc::new(watch::Sender::new(None)) }
    }

    /// Applies changes to the node proxies' table as one step. The first call opens it: it must carry everything, because a client is
    /// told that whatever it holds beyond the table is gone.
    pub fn publish<'a>(&self, changes: impl IntoIterator<Item = &'a Change>) -> Published {
        let mut step = self.step();
        step.apply(&Audience::NodeProxies, changes);
        step.publish()
    }

    /// Starts a change of several tables at once. Only one may be under way: who changes the tables is one task.
    pub fn step(&self) -> Step<'_> {
        let before = self.snapshots.borrow().clone();
        Step { resources: self, opened: before.is_none(), next: before.as_deref().cloned().unwrap_or_default(), changed: 0 }
    }

    /// The present snapshot; `None` before the first publication.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.snapshots.subscribe()
    }
}

/// A change of several tables that becomes visible at once.
#[derive(Debug)]
#[must_use]
pub struct Step<'a> {
    resources: &'a Resources,
    next: Snapshot,
    opened: bool,
    changed: usize,
}

impl Step<'_> {
    /// Applies changes to an audience's table. The first time opens it, even without changes, and must carry everything.
    pub fn apply<'a>(&mut self, audience: &Audience, changes: impl IntoIterator<Item = &'a Change>) {
        if !self.next.tables.contains_key(audience) {
            self.next.tables.insert(audience.clone(), Table::default());
            self.opened = true;
        }
        for change in changes {
            let Some(table) = self.next.tables.get_mut(audience) else { return };
            let before = addressed(change).and_then(|name| table.entry(name)).cloned();
            let is_different = table.apply(change);
            if is_different && *audience == Audience::NodeProxies {
                self.next.file(before.as_ref(), change);
            }
            self.changed += usize::from(is_different);
        }
    }

    /// Workloads of the node proxies' table as waypoints are told them that are called by them, where that is more than the node proxies
    /// are told; removed: it is no more than that.
    pub fn callers<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>) {
        for change in changes {
            self.changed += usize::from(self.next.callers.apply(change));
        }
    }

    /// Forgets an audience: who still belongs to it is told nothing more.
    pub fn close(&mut self, audience: &Audience) {
        self.changed += usize::from(self.next.tables.remove(audience).is_some());
    }

    /// Makes it visible, if anything is different.
    pub fn publish(self) -> Published {
        let Self { resources, mut next, opened, changed } = self;
        if changed == 0 && !opened {
            return Published { generation: next.generation, changed };
        }
        next.generation += 1;
        next.version = format!("{}.{}", resources.instance, next.generation).into();
        let generation = next.generation;
        resources.snapshots.send_replace(Some(Arc::new(next)));
        Published { generation, changed }
    }
}

/// The name of the workload or service that a change is about.
fn addressed(change: &Change) -> Option<&str> {
    match change {
        Change::Workload(workload) => Some(&workload.uid.0),
        Change::RemoveAddress(name) => Some(name),
        _ => None,
    }
}

impl Table {
    /// Whether it is different afterwards.
    fn apply(&mut self, change: &Change) -> bool {
        let encoded = convert::encode(change);
        let entries = self.0.entry(encoded.r#type).or_default();
        let Some(value) = encoded.body else {
            return entries.remove(&encoded.name).is_some();
        };
        let version = format!("{:016x}", xxh3_64(&value));
        if entries.get(&encoded.name).is_some_and(|entry| entry.resource.version == version) {
            return false;
        }
        let resource = Resource {
            version,
            name: encoded.name.to_string(),
            aliases: encoded.aliases,
            resource: Some(Any { type_url: encoded.r#type.url().to_owned(), value }),
        };
        let broad = matches!(change, Change::Policy(policy) if policy.scope != PolicyScope::WorkloadSelector);
        entries.insert(encoded.name, Entry { resource: Arc::new(resource), broad });
        true
    }
}

#[cfg(test)]
mod tests {
    use tropis_model::{identity::Identity, workload::Workload};

    use super::*;

    fn pod(name: &str, node: &str) -> Change {
        let mut workload = Workload::new(format!("k//Pod/ns/{name}"), name, Identity::new("cluster.local", "ns", "sa"));
        workload.node = node.into();
        Change::Workload(Arc::new(workload))
    }

    #[test]
    fn a_table_is_closed_until_the_first_publication_even_of_nothing() {
        let table = Resources::new("i");
        assert!(table.snapshot().is_none());
        assert_eq!(table.publish([]), Published { generation: 1, changed: 0 });
        assert_eq!(table.snapshot().unwrap().version(), "i.1");
        assert_eq!(table.publish([]), Published { generation: 1, changed: 0 }, "nothing changed, so nobody wakes");
    }

    #[test]
    fn versions_are_of_the_content() {
        let table = Resources::new("i");
        table.publish(&[pod("a", "n1")]);
        let version = |table: &Resources| {
            table.snapshot().unwrap().resources(&Audience::NodeProxies, ResourceType::Address).next().unwrap().1.to_owned()
        };
        let first = version(&table);
        assert_eq!(table.publish(&[pod("a", "n1")]).changed, 0);
        assert_eq!(table.publish(&[pod("a", "n2")]), Published { generation: 2, changed: 1 });
        assert_ne!(version(&table), first);
        table.publish(&[pod("a", "n1")]);
        assert_eq!(version(&table), first);
        let other = Resources::new("another process");
        other.publish(&[pod("a", "n1")]);
        assert_eq!(version(&other), first);
        assert_eq!(table.publish(&[Change::RemoveAddress("k//Pod/ns/a".into())]).changed, 1);
        assert_eq!(table.publish(&[Change::RemoveAddress("k//Pod/ns/a".into())]).changed, 0);
    }

    #[test]
    fn audiences_change_in_one_step_and_see_their_own_only() {
        let table = Resources::new("i");
        let waypoint = Audience::Waypoint("shop/waypoint".into());
        let mut step = table.step();
        step.apply(&Audience::NodeProxies, &[pod("a", "n1")]);
        step.apply(&waypoint, &[]);
        assert_eq!(step.publish(), Published { generation: 1, changed: 1 });
        let names = |audience: &Audience| table.snapshot().unwrap().resources(audience, ResourceType::Address).count();
        assert_eq!((names(&Audience::NodeProxies), names(&waypoint)), (1, 0));
        let mut step = table.step();
        step.apply(&waypoint, &[pod("a", "n1"), pod("b", "n1")]);
        assert_eq!(step.publish(), Published { generation: 2, changed: 2 });
        assert_eq!((names(&Audience::NodeProxies), names(&waypoint)), (1, 2));
        let mut step = table.step();
        step.close(&waypoint);
        assert_eq!(step.publish(), Published { generation: 3, changed: 1 });
        assert_eq!(table.snapshot().unwrap().audiences().collect::<Vec<_>>(), [&Audience::NodeProxies]);
        assert_eq!(table.step().publish(), Published { generation: 3, changed: 0 });
    }

    #[test]
    fn a_caller_is_found_by_the_addresses_that_it_has_now() {
        let table = Resources::new("i");
        let pod = |name: &str, addresses: &[&str]| {
            let mut workload = Workload::new(format!("k//Pod/ns/{name}"), name, Identity::new("cluster.local", "ns", "sa"));
            workload.network = "n".into();
            workload.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            workload
        };
        let at = |address: &str| -> Vec<String> {
            let snapshot = table.snapshot().unwrap();
            snapshot.callers(address).map(|(name, _)| name.to_string()).collect()
        };
        let host = Workload { network_mode: NetworkMode::HostNetwork, ..pod("node", &["10.0.0.1"]) };
        table.publish(&[Change::Workload(Arc::new(pod("a", &["10.0.0.1", "fd00::1"]))), Change::Workload(Arc::new(host))]);
        assert_eq!([at("n/10.0.0.1"), at("n/fd00::1"), at("/10.0.0.1")], [vec!["k//Pod/ns/a"], vec!["k//Pod/ns/a"], vec![]]);
        table.publish(&[Change::Workload(Arc::new(pod("a", &["10.0.0.2"]))), Change::Workload(Arc::new(pod("b", &["10.0.0.2"])))]);
        assert_eq!((at("n/10.0.0.1").len(), at("n/10.0.0.2").len()), (0, 2));

        // Labels that only waypoints are told are another version of it, and it is gone whether it has them or not.
        let version = || table.snapshot().unwrap().callers("n/10.0.0.2").next().unwrap().1.resource.version.clone();
        let plain = version();
        let labelled = Workload { labels: [("app".into(), "a".into())].into(), ..pod("a", &["10.0.0.2"]) };
        let mut step = table.step();
        step.callers(&[Change::Workload(Arc::new(labelled))]);
        assert_eq!(step.publish().changed, 1);
        assert_ne!(version(), plain);
        table.publish(&[Change::RemoveAddress("k//Pod/ns/a".into())]);
        assert_eq!(at("n/10.0.0.2"), ["k//Pod/ns/b"]);
        table.publish(&[Change::RemoveAddress("k//Pod/ns/b".into())]);
        assert!(at("n/10.0.0.2").is_empty() && table.snapshot().unwrap().workloads_at.is_empty());
    }
}
