//! The addresses at which policies may let each waypoint in: those of the workloads whose waypoint it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tropis_model::address::NamespacedHostname;

use crate::index::Key;

/// A part of what a waypoint is told, which it accepts or refuses as a whole: a host; `None` is itself, with what holds for traffic that
/// is addressed to workloads.
pub(crate) type Part = Option<NamespacedHostname>;

/// Addresses, by the namespace of their workload, each with the parts by which the waypoint may send something there.
pub(crate) type ByNamespace = BTreeMap<Arc<str>, BTreeMap<IpAddr, BTreeSet<Part>>>;

/// The destinations of every waypoint.
#[derive(Debug, Default)]
pub(super) struct Destinations(BTreeMap<Key, ByNamespace>);

impl Destinations {
    /// Takes in what a waypoint's destinations are now, and gives the namespaces in which that is something else than before.
    pub(super) fn replace(&mut self, waypoint: &Key, now: ByNamespace) -> BTreeSet<Arc<str>> {
        let before = self.0.remove(waypoint).unwrap_or_default();
        let differs = |namespace: &&Arc<str>| before.get(*namespace) != now.get(*namespace);
        let different = before.keys().chain(now.keys()).filter(differs).cloned().collect();
        if !now.is_empty() {
            self.0.insert(waypoint.clone(), now);
        }
        different
    }

    /// The destinations of a waypoint in a namespace, or in all, by whose parts they are taken.
    pub(super) fn of(&self, waypoint: &Key, namespace: Option<&str>, taken: impl Fn(&BTreeSet<Part>) -> bool) -> BTreeSet<IpAddr> {
        let all = self.0.get(waypoint).into_iter().flatten();
        let here = all.filter(|(own, _)| namespace.is_none_or(|namespace| ***own == *namespace));
        here.flat_map(|(_, addresses)| addresses).filter(|(_, parts)| taken(parts)).map(|(address, _)| *address).collect()
    }
}
