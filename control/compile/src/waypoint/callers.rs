//! What waypoints are told of who calls them from outside of their scope, when they ask.
//!
//! It is what node proxies are told, and the labels that routes of some waypoint ask callers for: of most workloads nothing more, so only
//! those are kept here that have such a label.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use tropis_model::{
    view::Change,
    workload::{Workload, WorkloadUid},
};

use super::scope::{Scope, named};
use crate::Index;

/// The workloads that have labels which routes ask callers for, with those labels.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    keys: BTreeSet<Arc<str>>,
    workloads: BTreeMap<WorkloadUid, Arc<Workload>>,
}

impl Callers {
    /// A workload as it is told to a waypoint that it calls.
    pub(crate) fn of<'a>(&'a self, workload: &'a Arc<Workload>) -> &'a Arc<Workload> {
        self.workloads.get(&workload.uid).unwrap_or(workload)
    }

    /// Makes all of it anew, for these waypoints and workloads, and says what changed.
    pub(crate) fn remake<'a>(
        &mut self,
        index: &Index,
        scopes: impl Iterator<Item = &'a Scope>,
        workloads: &[Arc<Workload>],
    ) -> Vec<Change> {
        self.keys = scopes.flat_map(Scope::caller_labels).cloned().collect();
        if self.keys.is_empty() && self.workloads.is_empty() {
            return Vec::new();
        }
        let mut all: HashSet<WorkloadUid> = self.workloads.keys().cloned().collect();
        all.extend(workloads.iter().map(|workload| workload.uid.clone()));
        self.update(index, &all, workloads)
    }

    /// Takes in the workloads that changed, of which `workloads` has those that are still there, and says what changed.
    pub(crate) fn update(&mut self, index: &Index, changed: &HashSet<WorkloadUid>, workloads: &[Arc<Workload>]) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut present = BTreeMap::new();
        for workload in workloads.iter().filter(|workload| changed.contains(&workload.uid)) {
            let labels = named(index, &(workload.namespace.to_string(), workload.name.to_string()), self.keys.iter());
            if !labels.is_empty() {
                present.insert(workload.uid.clone(), Workload { labels, ..Workload::clone(workload) });
            }
        }
        let before = changed.iter().filter(|uid| !present.contains_key(*uid)).filter_map(|uid| self.workloads.remove(uid));
        changes.extend(before.map(|gone| Change::RemoveAddress(gone.uid.0.clone())));
        for (uid, workload) in present {
            if self.workloads.get(&uid).is_none_or(|known| **known != workload) {
                let workload = Arc::new(workload);
                changes.push(Change::Workload(workload.clone()));
                self.workloads.insert(uid, workload);
            }
        }
        changes
    }
}
