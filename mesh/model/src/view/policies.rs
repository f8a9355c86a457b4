//! The policies of a view, by whom they apply to, and what is compiled of them.
//!
//! Compiling waits until somebody decides, and is done once for all snapshots that share the policies: a change replaces the compiled
//! sets of the scopes that it touches by empty places, nothing else. Policies that workloads name are compiled once for all workloads
//! that name the same.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use imbl::{HashMap, OrdSet};

use super::forget;
use crate::{
    authorize::PolicySet,
    policy::{Policy, PolicyKey, PolicyScope},
    workload::{Workload, WorkloadUid},
};

/// A place for what is compiled when it is first needed.
type Place = Arc<OnceLock<PolicySet>>;

#[derive(Debug, Clone, Default)]
pub(super) struct Policies {
    by_key: HashMap<PolicyKey, Arc<Policy>>,
    global: Scope,
    namespaces: HashMap<Arc<str>, Scope>,
    lists: HashMap<u64, List>,
    list_ids: HashMap<Arc<[Arc<str>]>, u64>,
    lists_naming: HashMap<PolicyKey, OrdSet<u64>>,
    list_of: HashMap<WorkloadUid, u64>,
    next_list: u64,
}

/// Policies that apply by where a workload is.
#[derive(Debug, Clone, Default)]
struct Scope {
    keys: OrdSet<PolicyKey>,
    compiled: Place,
}

/// Policies that workloads name.
#[derive(Debug, Clone)]
struct List {
    keys: Arc<[Arc<str>]>,
    users: usize,
    compiled: Place,
}

impl Policies {
    pub(super) fn get(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.by_key.get(key)
    }

    pub(super) fn values(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.by_key.values()
    }

    pub(super) fn insert(&mut self, policy: Arc<Policy>) {
        self.remove(&policy.key);
        let scope = match policy.scope {
            PolicyScope::Global => Some(&mut self.global),
            PolicyScope::Namespace => Some(self.namespaces.entry(policy.namespace.clone()).or_default()),
            PolicyScope::WorkloadSelector => None,
        };
        if let Some(scope) = scope {
            scope.keys.insert(policy.key.clone());
            scope.compiled = Place::default();
        }
        self.changed(&policy.key);
        self.by_key.insert(policy.key.clone(), policy);
    }

    pub(super) fn remove(&mut self, key: &PolicyKey) {
        let Some(policy) = self.by_key.remove(key) else { return };
        let scope = match policy.scope {
            PolicyScope::Global => Some(&mut self.global),
            PolicyScope::Namespace => self.namespaces.get_mut(&policy.namespace),
            PolicyScope::WorkloadSelector => None,
        };
        if let Some(scope) = scope {
            scope.keys.remove(key);
            scope.compiled = Place::default();
        }
        if self.namespaces.get(&policy.namespace).is_some_and(|scope| scope.keys.is_empty()) {
            self.namespaces.remove(&policy.namespace);
        }
        self.changed(key);
    }

    /// The policy of this name is another one: what was compiled for those who name it is out of date.
    fn changed(&mut self, key: &PolicyKey) {
        for id in self.lists_naming.get(key).into_iter().flatten() {
            if let Some(list) = self.lists.get_mut(id) {
                list.compiled = Place::default();
            }
        }
    }

    /// A workload is new.
    pub(super) fn attach(&mut self, workload: &Workload) {
        if workload.authorization_policies.is_empty() {
            return;
        }
        let id = self.list_ids.get(&*workload.authorization_policies).copied().unwrap_or_else(|| self.add_list(workload));
        if let Some(list) = self.lists.get_mut(&id) {
            list.users += 1;
        }
        self.list_of.insert(workload.uid.clone(), id);
    }

    fn add_list(&mut self, workload: &Workload) -> u64 {
        let (id, keys) = (self.next_list, Arc::<[_]>::from(&*workload.authorization_policies));
        self.next_list += 1;
        for key in keys.iter() {
            self.lists_naming.entry(PolicyKey(key.clone())).or_default().insert(id);
        }
        self.list_ids.insert(keys.clone(), id);
        self.lists.insert(id, List { keys, users: 0, compiled: Place::default() });
        id
    }

    /// A workload is gone.
    pub(super) fn detach(&mut self, workload: &Workload) {
        let Some(id) = self.list_of.remove(&workload.uid) else { return };
        let Some(list) = self.lists.get_mut(&id) else { return };
        list.users -= 1;
        if list.users > 0 {
            return;
        }
        if let Some(list) = self.lists.remove(&id) {
            for key in list.keys.iter() {
                forget(&mut self.lists_naming, &PolicyKey(key.clone()), &id);
            }
            self.list_ids.remove(&list.keys);
        }
    }

    /// The policies that apply to a workload: global ones, its namespace's, and those that it names (`Err` when one has not arrived).
    pub(super) fn applying<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = Result<&'a Arc<Policy>, PolicyKey>> {
        let namespace = self.namespaces.get(&workload.namespace);
        let broad = std::iter::once(&self.global).chain(namespace).flat_map(|scope| self.within(scope));
        broad.map(Ok).chain(self.named(&workload.authorization_policies))
    }

    /// The same, compiled, in the same order; `is_own` says whether the workload is the view's own.
    pub(super) fn compiled<'a>(&'a self, workload: &'a Workload, is_own: bool) -> Vec<Cow<'a, PolicySet>> {
        let namespace = self.namespaces.get(&workload.namespace);
        let broad = std::iter::once(&self.global).chain(namespace).filter(|scope| !scope.keys.is_empty());
        let broad = broad.map(|scope| Cow::Borrowed(scope.compiled.get_or_init(|| PolicySet::compile(self.within(scope).map(Ok)))));
        let list = self.list_of.get(&workload.uid).filter(|_| is_own).and_then(|id| self.lists.get(id));
        let named = match list {
            _ if workload.authorization_policies.is_empty() => None,
            Some(list) => Some(Cow::Borrowed(list.compiled.get_or_init(|| PolicySet::compile(self.named(&list.keys))))),
            None => Some(Cow::Owned(PolicySet::compile(self.named(&workload.authorization_policies)))),
        };
        broad.chain(named).collect()
    }

    fn within<'a>(&'a self, scope: &'a Scope) -> impl Iterator<Item = &'a Arc<Policy>> {
        scope.keys.iter().filter_map(|key| self.by_key.get(key))
    }

    fn named<'a>(&'a self, keys: &'a [Arc<str>]) -> impl Iterator<Item = Result<&'a Arc<Policy>, PolicyKey>> {
        keys.iter().map(|key| {
            let key = PolicyKey(key.clone());
            self.by_key.get(&key).ok_or(key)
        })
    }
}
