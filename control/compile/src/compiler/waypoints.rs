//! What the compiler remembers of waypoints: who goes through which, what each was told, and what each enforces.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use tropis_crds::Finding;
use tropis_model::{
    policy::PolicyKey,
    request_policy::RequestPolicy,
    service::Service,
    workload::{Workload, WorkloadUid},
};

use crate::{
    Affected, Index,
    index::{Key, key_of},
    waypoint::scope::{Parts, Scope, Told},
};

/// Policies that a waypoint enforces, by key.
pub(super) type Enforced = HashMap<PolicyKey, Arc<RequestPolicy>>;

/// A version of a policy that waypoints in use were told and have not acknowledged.
#[derive(Debug)]
struct Grace {
    policy: RequestPolicy,
    /// Those that are let in all the same.
    waypoints: BTreeSet<Key>,
    /// They took too long, and are let in no more.
    over: bool,
}

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct Waypoints {
    services_through: HashMap<Key, Key>,
    pods_through: HashMap<Key, Key>,
    scopes: BTreeMap<Key, Scope>,
    enforced: BTreeMap<Key, Enforced>,
    grace: BTreeMap<PolicyKey, Grace>,
    /// Something besides workloads changed: scopes are made anew.
    anew: bool,
    /// Findings that look at many objects may be different.
    wide: bool,
    /// Which namespaces need a waypoint may be different.
    needs: bool,
    /// Workloads that changed.
    pub(super) workloads: HashSet<WorkloadUid>,
}

impl Waypoints {
    /// Notes what a change affects.
    pub(super) fn touch(&mut self, affected: &Affected) {
        let routing = !(affected.virtual_services.is_empty() && affected.destination_rules.is_empty() && affected.services.is_empty());
        self.anew |= routing || !(affected.authorizations.is_empty() && affected.gateways.is_empty() && affected.namespaces.is_empty());
        self.wide |= self.anew || affected.pod_labels;
        self.needs |= self.anew;
    }

    /// Whether which namespaces need a waypoint may be different, once.
    pub(super) fn take_needs(&mut self) -> bool {
        std::mem::take(&mut self.needs)
    }

    /// Whether findings that look at many objects may be different, once.
    pub(super) fn take_wide(&mut self) -> bool {
        std::mem::take(&mut self.wide)
    }

    /// Traffic to a service goes through this now.
    pub(super) fn service(&mut self, key: &Key, gateway: Option<Key>) {
        self.anew |= set(&mut self.services_through, key, gateway);
        self.needs |= self.anew;
    }

    /// Traffic to a pod goes through this now.
    pub(super) fn pod(&mut self, key: &Key, gateway: Option<Key>) {
        self.anew |= set(&mut self.pods_through, key, gateway);
    }

    /// What is different for each waypoint since the last call, and the waypoints that are gone.
    pub(super) fn differences<'a>(
        &mut self,
        index: &Index,
        services: &HashMap<Key, Arc<Service>>,
        workloads: impl Iterator<Item = &'a Arc<Workload>>,
    ) -> (Vec<Told>, Vec<Key>) {
        let (anew, changed) = (std::mem::take(&mut self.anew), std::mem::take(&mut self.workloads));
        let nobody = !anew && (changed.is_empty() || self.scopes.is_empty());
        if nobody || (self.scopes.is_empty() && index.waypoints().next().is_none()) {
            return (Vec::new(), Vec::new());
        }
        let workloads: Vec<Arc<Workload>> = workloads.filter(|workload| anew || changed.contains(&workload.uid)).cloned().collect();
        let parts =
            Parts { index, services_through: &self.services_through, pods_through: &self.pods_through, services, workloads: &workloads };
        if anew { remade(&mut self.scopes, &parts) } else { (updated(&mut self.scopes, &parts, &changed), Vec::new()) }
    }

    /// The policies in what a waypoint was told.
    pub(super) fn policies(&self, gateway: &Key) -> Enforced {
        let policies = self.scopes.get(gateway).into_iter().flat_map(Scope::policies);
        policies.map(|policy| (policy.key.clone(), policy.clone())).collect()
    }

    /// Remembers what a waypoint enforces, and gives the policies about which that is new.
    pub(super) fn enforce(&mut self, gateway: &Key, policies: Enforced) -> BTreeSet<PolicyKey> {
        let before = self.enforced.remove(gateway).unwrap_or_default();
        let differs = |key: &&PolicyKey| before.get(*key) != policies.get(*key);
        let keys = before.keys().chain(policies.keys()).filter(differs).cloned().collect();
        if !policies.is_empty() {
            self.enforced.insert(gateway.clone(), policies);
        }
        keys
    }

    /// The waypoints that enforce this version of a policy.
    pub(super) fn enforcing<'a>(&'a self, present: &'a RequestPolicy) -> impl Iterator<Item = &'a Key> {
        let enforce = |policies: &Enforced| policies.get(&present.key).is_some_and(|own| **own == *present);
        self.enforced.iter().filter(move |(_, policies)| enforce(policies)).map(|(gateway, _)| gateway)
    }

    /// The waypoints that a policy lets in: those that enforce this version of it, and for a while those that are about to, if they
    /// enforce the version before, or there was none (`is_new`). So a change is neither a moment of denial for what goes through a
    /// waypoint nor one without a policy. A waypoint that newly has to enforce an old policy is not let in before it does.
    pub(super) fn admitted(&mut self, present: &RequestPolicy, is_new: bool, in_use: impl Fn(&Key) -> bool) -> BTreeSet<Key> {
        let mut admitted: BTreeSet<Key> = self.enforcing(present).cloned().collect();
        let before = self.grace.remove(&present.key).filter(|grace| grace.policy == *present);
        let told = |scope: &Scope| scope.policies().any(|own| **own == *present);
        let mut waypoints: BTreeSet<Key> = (self.scopes.iter())
            .filter(|(gateway, scope)| !admitted.contains(*gateway) && in_use(gateway) && told(scope))
            .map(|(gateway, _)| gateway.clone())
            .collect();
        let knows = |gateway: &Key| self.enforced.get(gateway).is_some_and(|policies| policies.contains_key(&present.key));
        let was_let_in = |gateway: &Key| before.as_ref().is_some_and(|grace| grace.waypoints.contains(gateway));
        waypoints.retain(|gateway| is_new || knows(gateway) || was_let_in(gateway));
        if !waypoints.is_empty() {
            let over = before.is_some_and(|grace| grace.over);
            if !over {
                admitted.extend(waypoints.iter().cloned());
            }
            self.grace.insert(present.key.clone(), Grace { policy: present.clone(), waypoints, over });
        }
        admitted
    }

    /// A policy is gone.
    pub(super) fn forget(&mut self, policy: &PolicyKey) {
        self.grace.remove(policy);
    }

    /// Whether some waypoint is let in by a version of a policy that it has not acknowledged.
    pub(super) fn has_grace(&self) -> bool {
        self.grace.values().any(|grace| !grace.over)
    }

    /// Lets waypoints in no more that have not acknowledged, and gives the policies concerned.
    pub(super) fn end_grace(&mut self) -> Vec<PolicyKey> {
        let pending = self.grace.iter_mut().filter(|(_, grace)| !grace.over);
        pending.map(|(key, grace)| (key.clone(), std::mem::replace(&mut grace.over, true)).0).collect()
    }

    /// What there is to tell about the hosts of waypoints.
    pub(super) fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.scopes.values().flat_map(Scope::findings)
    }
}

fn remade(scopes: &mut BTreeMap<Key, Scope>, parts: &Parts<'_>) -> (Vec<Told>, Vec<Key>) {
    let mut before = std::mem::take(scopes);
    let mut told = Vec::new();
    for object in parts.index.waypoints() {
        let gateway = key_of(object);
        let scope = Scope::compile(parts, object);
        let known = before.remove(&gateway);
        let changes = scope.differences(known.as_ref().unwrap_or(&Scope::default()));
        if known.is_none() || !changes.is_empty() {
            told.push(Told { gateway: gateway.clone(), changes: Some(changes) });
        }
        scopes.insert(gateway, scope);
    }
    let gone: Vec<Key> = before.into_keys().collect();
    told.extend(gone.iter().map(|gateway| Told { gateway: gateway.clone(), changes: None }));
    (told, gone)
}

fn updated(scopes: &mut BTreeMap<Key, Scope>, parts: &Parts<'_>, changed: &HashSet<WorkloadUid>) -> Vec<Told> {
    let present: HashMap<&WorkloadUid, &Arc<Workload>> = parts.workloads.iter().map(|workload| (&workload.uid, workload)).collect();
    let mut all = Vec::new();
    for (gateway, scope) in scopes {
        let mut changes = Vec::new();
        for uid in changed {
            let told = present.get(uid).and_then(|workload| scope.told(parts, gateway, workload));
            changes.extend(scope.update(uid, told));
        }
        if !changes.is_empty() {
            all.push(Told { gateway: gateway.clone(), changes: Some(changes) });
        }
    }
    all
}

/// Whether it is different now.
fn set(map: &mut HashMap<Key, Key>, key: &Key, value: Option<Key>) -> bool {
    match value {
        Some(value) => map.insert(key.clone(), value.clone()) != Some(value),
        None => map.remove(key).is_some(),
    }
}
