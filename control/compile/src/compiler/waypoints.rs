//! What the compiler remembers of waypoints: what goes through which, what each was told, what each carries, and what each enforces.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use tropis_crds::{Finding, ObjectRef};
use tropis_model::{
    address::NamespacedHostname,
    policy::PolicyKey,
    request_policy::RequestPolicy,
    service::Service,
    view::Change,
    workload::{Workload, WorkloadUid},
};

use super::{
    destinations::{Destinations, Part},
    places::{Places, Question},
};
use crate::{
    Affected, Index,
    index::{Key, key_of},
    waypoint::{
        self, Attached,
        callers::Callers,
        scope::{Parts, Scope, Served, Told},
    },
};

/// Policies that a waypoint enforces, by key.
pub(super) type Enforced = HashMap<PolicyKey, Arc<RequestPolicy>>;

/// Something that left a waypoint for another one, or for none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Left {
    pub(super) waypoint: Key,
    pub(super) of: Of,
}

impl Left {
    /// The waypoint.
    pub fn waypoint(&self) -> &Key {
        &self.waypoint
    }

    /// Takes it from what the waypoint may carry.
    pub fn take_from(&self, served: &mut Arc<Served>) {
        let served = Arc::make_mut(served);
        _ = match &self.of {
            Of::Service(key) => served.services.remove(key),
            Of::Pod(key) => served.pods.remove(key),
        };
    }
}

/// What left it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Of {
    Service(Key),
    Pod(Key),
}

/// What is wished for a Service or a pod.
pub(super) struct Wish<'a> {
    pub(super) wanted: Option<&'a Attached>,
    /// Where it went in the time of an earlier process.
    pub(super) found: Option<Key>,
    /// What it had left then, and not ended.
    pub(super) former: BTreeSet<Key>,
    /// It need not wait for acknowledgements.
    pub(super) at_once: bool,
}

impl Wish<'_> {
    fn question(&self, carried: impl Fn(&Key) -> bool) -> Question<'_> {
        let carried = self.wanted.is_some_and(|wanted| carried(&wanted.gateway));
        Question { wanted: self.wanted, found: self.found.clone(), former: self.former.clone(), at_once: carried || self.at_once }
    }
}

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
    services: Places,
    pods: Places,
    /// What each was told when it acknowledged last.
    known: BTreeMap<Key, Arc<Served>>,
    /// What may go through each.
    carried: BTreeMap<Key, Arc<Served>>,
    scopes: BTreeMap<Key, Scope>,
    /// What they are told of who calls them.
    pub(super) callers: Callers,
    /// What of that is new.
    told_of_callers: Vec<Change>,
    /// Where policies may let each in.
    destinations: Destinations,
    /// Policies whose waypoints have other destinations now.
    moved: BTreeSet<PolicyKey>,
    /// What each has in force, part by part.
    enforced: BTreeMap<Key, BTreeMap<Part, Enforced>>,
    grace: BTreeMap<PolicyKey, Grace>,
    /// Hosts that a waypoint refused when it acknowledged last.
    refused: BTreeMap<Key, BTreeSet<NamespacedHostname>>,
    /// Something besides workloads changed: scopes are made anew.
    anew: bool,
    /// Findings that look at many objects may be different.
    wide: bool,
    /// Which waypoints there should be of their own accord may be different.
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

    /// Whether which waypoints there should be of their own accord may be different, once.
    pub(super) fn take_needs(&mut self) -> bool {
        std::mem::take(&mut self.needs)
    }

    /// Whether findings that look at many objects may be different, once.
    pub(super) fn take_wide(&mut self) -> bool {
        std::mem::take(&mut self.wide)
    }

    /// The waypoint that traffic to a service goes through now.
    pub(super) fn service(&mut self, index: &Index, key: &Key, wish: &Wish<'_>) -> Option<Key> {
        let carried = |waypoint: &Key| self.carried.get(waypoint).is_some_and(|carried| carried.services.contains(key));
        let (present, told) = self.services.decide(key, &wish.question(carried), |waypoint| waypoint::is_in_use(index, waypoint));
        self.anew |= told;
        self.needs |= self.anew;
        present
    }

    /// The waypoints that still serve what was opened through them to a service, before it left them.
    pub(super) fn former(&self, key: &Key) -> &BTreeSet<Key> {
        self.services.former(key)
    }

    /// A service is gone.
    pub(super) fn remove_service(&mut self, key: &Key) {
        self.anew |= self.services.remove(key);
        self.needs |= self.anew;
    }

    /// The waypoint that traffic to a pod goes through now.
    pub(super) fn pod(&mut self, index: &Index, key: &Key, wish: &Wish<'_>) -> Option<Key> {
        let carried = |waypoint: &Key| self.carried.get(waypoint).is_some_and(|carried| carried.pods.contains(key));
        let (present, told) = self.pods.decide(key, &wish.question(carried), |waypoint| waypoint::is_in_use(index, waypoint));
        self.anew |= told;
        present
    }

    /// A pod is gone.
    pub(super) fn remove_pod(&mut self, key: &Key) {
        self.anew |= self.pods.remove(key);
    }

    /// The services and pods that go, went or want to go through a waypoint.
    pub(super) fn concerned(&self, gateway: &Key) -> (Vec<Key>, Vec<Key>) {
        let all = |places: &Places| places.concerned(gateway).cloned().collect();
        (all(&self.services), all(&self.pods))
    }

    /// A waypoint has acknowledged what it was told, but for what it refused: of a refused Service it knows what it knew.
    pub(super) fn know(&mut self, gateway: &Key, refused: impl Fn(&Key) -> bool) {
        let Some(scope) = self.scopes.get(gateway) else { return };
        let before = self.known.get(gateway);
        let knows = |service: &Key| !refused(service) || before.is_some_and(|known| known.services.contains(service));
        let mut served = scope.served().clone();
        if !served.services.iter().all(knows) {
            let services = served.services.iter().filter(|service| knows(service)).cloned().collect();
            served = Arc::new(Served { services, pods: served.pods.clone() });
        }
        self.known.insert(gateway.clone(), served);
    }

    /// What a waypoint knows, if that is not what goes through it.
    pub(super) fn acquainted(&self, gateway: &Key) -> Option<Arc<Served>> {
        let known = self.known.get(gateway)?;
        self.carried.get(gateway).is_none_or(|carried| !Arc::ptr_eq(carried, known) && carried != known).then(|| known.clone())
    }

    /// All that a waypoint is told of, whether it knows it or not.
    pub(super) fn served(&self, gateway: &Key) -> Option<Arc<Served>> {
        self.scopes.get(gateway).map(|scope| scope.served().clone())
    }

    /// Traffic may go through a waypoint. Gives what that is new for.
    pub(super) fn carry(&mut self, gateway: &Key, served: Arc<Served>) -> Served {
        let before = self.carried.insert(gateway.clone(), served.clone()).unwrap_or_default();
        let fresh = |now: &BTreeSet<Key>, before: &BTreeSet<Key>| now.difference(before).cloned().collect();
        Served { services: fresh(&served.services, &before.services), pods: fresh(&served.pods, &before.pods) }
    }

    /// What left a waypoint that still knows it.
    pub(super) fn left(&self) -> impl Iterator<Item = Left> {
        let services = self.services.left().iter().map(|(waypoint, key)| (waypoint, Of::Service(key.clone())));
        let pods = self.pods.left().iter().map(|(waypoint, key)| (waypoint, Of::Pod(key.clone())));
        services.chain(pods).map(|(waypoint, of)| Left { waypoint: waypoint.clone(), of })
    }

    /// Nothing of it is under way through the waypoint that it left. Says whether that one is to forget it.
    pub(super) fn release(&mut self, left: &Left) -> bool {
        let (places, key) = match &left.of {
            Of::Service(key) => (&mut self.services, key),
            Of::Pod(key) => (&mut self.pods, key),
        };
        self.anew |= places.release(key, &left.waypoint);
        if places.told().get(key).is_some_and(|told| told.contains(&left.waypoint)) {
            return false;
        }
        // It is told to forget it: should it come back, its acknowledgement counts anew.
        for served in [&mut self.known, &mut self.carried].into_iter().filter_map(|all| all.get_mut(&left.waypoint)) {
            left.take_from(served);
        }
        true
    }

    /// Waypoints that are waited for by what goes through none meanwhile.
    pub(super) fn held(&self) -> BTreeSet<Key> {
        self.services.held().chain(self.pods.held()).cloned().collect()
    }

    /// Whether something goes through a waypoint until another one is ready for it.
    pub(super) fn is_kept(&self, gateway: &Key) -> bool {
        self.services.is_kept(gateway) || self.pods.is_kept(gateway)
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
            Parts { index, services_through: self.services.told(), pods_through: self.pods.told(), services, workloads: &workloads };
        let (told, gone) = if anew { remade(&mut self.scopes, &parts) } else { (updated(&mut self.scopes, &parts, &changed), Vec::new()) };
        self.told_of_callers.extend(match anew {
            true => self.callers.remake(index, self.scopes.values(), &workloads),
            false => self.callers.update(index, &changed, &workloads),
        });
        for gateway in &gone {
            self.known.remove(gateway);
            self.carried.remove(gateway);
            self.refused.remove(gateway);
        }
        let touched: Vec<Key> =
            if anew { self.scopes.keys().cloned().collect() } else { told.iter().map(|told| told.gateway.clone()).collect() };
        for gateway in touched.iter().chain(&gone) {
            self.measure(gateway, &index.settings().root_namespace);
        }
        (told, gone)
    }

    /// The objects that a waypoint has in force, once it has acknowledged all that it was told.
    pub(super) fn origins(&self, index: &Index, gateway: &Key) -> BTreeSet<ObjectRef> {
        let (nothing, refused) = (BTreeSet::new(), self.refused.get(gateway));
        self.scopes.get(gateway).map(|scope| scope.origins(index, gateway, refused.unwrap_or(&nothing))).unwrap_or_default()
    }

    /// The waypoints that are told something, with what.
    pub(super) fn scopes(&self) -> &BTreeMap<Key, Scope> {
        &self.scopes
    }

    /// What waypoints are told of callers that is new, once.
    pub(super) fn take_callers(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.told_of_callers)
    }

    /// Looks what a waypoint's destinations are now, and notes the policies that are about those which were not.
    fn measure(&mut self, gateway: &Key, root: &str) {
        let scope = self.scopes.get(gateway);
        let different = self.destinations.replace(gateway, scope.map(Scope::destinations).unwrap_or_default());
        if different.is_empty() {
            return;
        }
        let told = scope.into_iter().flat_map(Scope::policies).map(|policy| &policy.key);
        let enforced = self.enforced.get(gateway).into_iter().flat_map(BTreeMap::values).flat_map(HashMap::keys);
        let about = |policy: &&PolicyKey| policy.0.split_once('/').is_some_and(|(own, _)| own == root || different.contains(own));
        self.moved.extend(told.chain(enforced).filter(about).cloned());
    }

    /// The policies whose waypoints have other destinations than when this was asked last.
    pub(super) fn take_moved(&mut self) -> BTreeSet<PolicyKey> {
        std::mem::take(&mut self.moved)
    }

    /// The addresses of a namespace, or of all, at which this version of a policy may let a waypoint in that it lets in. Of a waypoint
    /// that enforces it these are those to which no part leads that has another version in force; a part that the waypoint never
    /// accepted leads nowhere.
    pub(super) fn destinations(&self, gateway: &Key, namespace: Option<&str>, present: &RequestPolicy) -> BTreeSet<IpAddr> {
        let in_force = self.enforced.get(gateway);
        let enforces = |part: &Part| Some(is_in(in_force?.get(part)?, present));
        let has_grace = !in_force.is_some_and(|parts| parts.values().any(|policies| is_in(policies, present)));
        self.destinations.of(gateway, namespace, |parts| {
            let mut known = parts.iter().filter_map(enforces).peekable();
            has_grace || (known.peek().is_some() && known.all(|enforces| enforces))
        })
    }

    /// Remembers what a waypoint enforces, which is what it was told, and of what it refused what it enforced before. Gives the policies
    /// about which that is new.
    pub(super) fn enforce(&mut self, gateway: &Key, refused: impl Fn(&Part) -> bool) -> BTreeSet<PolicyKey> {
        let before = self.enforced.remove(gateway).unwrap_or_default();
        let mut now = BTreeMap::new();
        let mut of_refused = BTreeSet::new();
        for (part, policies) in self.scopes.get(gateway).into_iter().flat_map(Scope::parts) {
            let present = || policies.iter().map(|policy| (policy.key.clone(), policy.clone())).collect();
            of_refused.extend(part.iter().filter(|_| refused(&part)).cloned());
            let in_force = if refused(&part) { before.get(&part).cloned() } else { Some(present()) };
            now.extend(in_force.map(|policies: Enforced| (part, policies)));
        }
        if let Some(scope) = self.scopes.get_mut(gateway) {
            if of_refused.is_empty() {
                scope.acknowledged();
            }
            self.refused.insert(gateway.clone(), of_refused);
        }
        let parts: BTreeSet<&Part> = before.keys().chain(now.keys()).collect();
        let nothing = Enforced::new();
        let mut different = BTreeSet::new();
        for part in parts {
            let (before, now) = (before.get(part).unwrap_or(&nothing), now.get(part).unwrap_or(&nothing));
            let differs = |key: &&PolicyKey| before.get(*key) != now.get(*key);
            different.extend(before.keys().chain(now.keys()).filter(differs).cloned());
        }
        if !now.is_empty() {
            self.enforced.insert(gateway.clone(), now);
        }
        different
    }

    /// The waypoints some part of which enforces this version of a policy.
    pub(super) fn enforcing<'a>(&'a self, present: &'a RequestPolicy) -> impl Iterator<Item = &'a Key> {
        let enforcing = self.enforced.iter().filter(|(_, parts)| parts.values().any(|policies| is_in(policies, present)));
        enforcing.map(|(gateway, _)| gateway)
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
        let knows = |gateway: &Key| {
            let mut parts = self.enforced.get(gateway).into_iter().flat_map(BTreeMap::values);
            parts.any(|policies| policies.contains_key(&present.key))
        };
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

/// Whether this version of a policy is among them.
fn is_in(policies: &Enforced, present: &RequestPolicy) -> bool {
    policies.get(&present.key).is_some_and(|own| **own == *present)
}

fn remade(scopes: &mut BTreeMap<Key, Scope>, parts: &Parts<'_>) -> (Vec<Told>, Vec<Key>) {
    let mut before = std::mem::take(scopes);
    let mut told = Vec::new();
    for object in parts.index.waypoints() {
        let gateway = key_of(object);
        let known = before.remove(&gateway);
        let mut scope = Scope::compile(parts, object, known.as_ref().map(Scope::keys_in_force).unwrap_or_default());
        let changes = scope.differences(known.as_ref().unwrap_or(&Scope::default()));
        match &known {
            Some(known) if changes.is_empty() => scope.stands_as(known),
            _ => told.push(Told { gateway: gateway.clone(), changes: Some(changes) }),
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
