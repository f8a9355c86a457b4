//! The table of resources, as snapshots that share what did not change.

use std::sync::Arc;

use imbl::OrdMap;
use prost_types::Any;
use tokio::sync::watch;
use tropis_model::{policy::PolicyScope, view::Change};
use tropis_proto::{ADDRESS_TYPE, xds::Resource};
use xxhash_rust::xxh3::xxh3_64;

use crate::convert;

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

/// The table at one moment. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Counts the publications that changed something, from 1.
    pub generation: u64,
    pub(super) version: Arc<str>,
    pub(super) addresses: Entries,
    pub(super) policies: Entries,
}

impl Snapshot {
    /// What proxies log as the version of the configuration.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Workloads and services, by resource name, with their versions.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, &str)> {
        self.addresses.iter().map(|(name, entry)| (&**name, entry.resource.version.as_str()))
    }

    /// Policies, by resource name, with their versions.
    pub fn policies(&self) -> impl Iterator<Item = (&str, &str)> {
        self.policies.iter().map(|(name, entry)| (&**name, entry.resource.version.as_str()))
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

    /// Applies changes as one step. The first call opens the table: it must carry everything, because a client is told that whatever
    /// it holds beyond the table is gone.
    pub fn publish<'a>(&self, changes: impl IntoIterator<Item = &'a Change>) -> Published {
        let before = self.snapshots.borrow().clone();
        let mut next = before.as_deref().cloned().unwrap_or_default();
        let mut changed = 0;
        for change in changes {
            changed += usize::from(apply(&mut next, change));
        }
        if changed == 0 && before.is_some() {
            return Published { generation: next.generation, changed };
        }
        next.generation += 1;
        next.version = format!("{}.{}", self.instance, next.generation).into();
        let generation = next.generation;
        self.snapshots.send_replace(Some(Arc::new(next)));
        Published { generation, changed }
    }

    /// The present snapshot; `None` before the first publication.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.snapshots.subscribe()
    }
}

/// Whether the snapshot is different afterwards.
fn apply(snapshot: &mut Snapshot, change: &Change) -> bool {
    let encoded = convert::encode(change);
    let entries = if encoded.type_url == ADDRESS_TYPE { &mut snapshot.addresses } else { &mut snapshot.policies };
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
        resource: Some(Any { type_url: encoded.type_url.to_owned(), value }),
    };
    let broad = matches!(change, Change::Policy(policy) if policy.scope != PolicyScope::WorkloadSelector);
    entries.insert(encoded.name, Entry { resource: Arc::new(resource), broad });
    true
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
        let version = |table: &Resources| table.snapshot().unwrap().addresses().next().unwrap().1.to_owned();
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
}
