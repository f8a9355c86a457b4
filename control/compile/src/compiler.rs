//! Compiles what a change affects, and says what became different.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use tropis_crds::{Finding, Kind, Object, ObjectRef};
use tropis_model::{
    address::NamespacedHostname,
    policy::{Policy, PolicyKey},
    service::Service,
    view::Change,
    workload::{GatewayAddress, Workload, WorkloadUid},
};

use crate::{
    Affected, Compiled, Index, Settings, authorization, destination_rule,
    index::Key,
    namespace, peer_authentication, request_policy, service, virtual_service,
    waypoint::{
        self, Attached,
        admission::{self, Admitted},
        binding::{Binding, Found},
        needed::{Need, needed},
        scope::{Served, Told},
    },
    workload,
};
use waypoints::{Of, Waypoints, Wish};

pub use waypoints::Left;

pub(crate) mod destinations;
mod places;
mod waypoints;

/// An index with what its objects mean, kept up to date at the cost of what changes.
#[derive(Debug)]
pub struct Compiler {
    index: Index,
    affected: Affected,
    pods: HashMap<Key, Arc<Workload>>,
    slices: HashMap<Key, BTreeMap<Arc<str>, Arc<Workload>>>,
    services: HashMap<Key, Arc<Service>>,
    authorizations: HashMap<Key, Arc<Policy>>,
    peers: HashMap<Key, Arc<Policy>>,
    static_strict: Option<Arc<Policy>>,
    findings: BTreeMap<ObjectRef, Vec<Finding>>,
    /// What looks at many objects, made anew when one of them may be different.
    wide_findings: BTreeMap<ObjectRef, Vec<Finding>>,
    waypoints: Waypoints,
    /// What there is to say about the waypoint of each Service that has one or wants one.
    bindings: BTreeMap<Key, Binding>,
    /// Nothing was published yet.
    opening: bool,
    needs: BTreeMap<Key, Need>,
    /// What waypoints are still to be told.
    told: Vec<Told>,
    /// Policies that may let other waypoints in now.
    readmitted: BTreeSet<Key>,
}

impl Compiler {
    /// A compiler of nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            index: Index::new(settings),
            affected: Affected::default(),
            pods: HashMap::new(),
            slices: HashMap::new(),
            services: HashMap::new(),
            authorizations: HashMap::new(),
            peers: HashMap::new(),
            static_strict: None,
            findings: BTreeMap::new(),
            wide_findings: BTreeMap::new(),
            waypoints: Waypoints::default(),
            bindings: BTreeMap::new(),
            opening: true,
            needs: BTreeMap::new(),
            told: Vec::new(),
            readmitted: BTreeSet::new(),
        }
    }

    /// The index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Takes an object in; what follows is compiled by [`Self::changes`].
    pub fn apply(&mut self, object: &Arc<Object>) {
        let affected = self.index.apply(object);
        self.affected.extend(affected);
    }

    /// Takes an object out; what follows is compiled by [`Self::changes`].
    pub fn remove(&mut self, object: &ObjectRef) {
        let affected = self.index.remove(object);
        self.affected.extend(affected);
    }

    /// Compiles what was affected since the last call. The changes come in an order in which a view that takes them one by one never
    /// allows more than it should: policies before the workloads that name them, and what goes away last.
    pub fn changes(&mut self) -> Vec<Change> {
        let mut affected = std::mem::take(&mut self.affected);
        for gateway in &affected.gateways {
            let (services, pods) = self.waypoints.concerned(gateway);
            affected.services.extend(services);
            affected.pods.extend(pods);
        }
        let mut changes = Changes::default();
        self.waypoints.touch(&affected);
        if affected.static_strict {
            let now = self.index.has_peers().then(|| peer_authentication::static_strict(self.index.settings()));
            changes.policy(&mut self.static_strict, now);
        }
        for key in affected.peers {
            self.compile_peer(key, &mut changes);
        }
        for key in affected.services {
            self.compile_service(key, &mut changes);
        }
        for key in affected.pods {
            self.compile_pod(key, &mut changes);
        }
        for key in affected.slices {
            self.compile_slice(key, &mut changes);
        }
        for name in affected.namespaces {
            let object = self.index.namespace(&name);
            let findings = object.map(|object| namespace_findings(&self.index, object)).unwrap_or_default();
            self.tell(ObjectRef::cluster(Kind::Namespace, name), findings);
        }
        self.tell_widely();
        for key in affected.gateways {
            let findings = self.index.gateway(&key).map(|object| waypoint::findings(object)).unwrap_or_default();
            self.tell(ObjectRef::new(Kind::Gateway, key.0.clone(), key.1.clone()), findings);
        }
        if self.waypoints.take_needs() {
            self.needs = self.index.namespace_names().flat_map(|name| needed(&self.index, name)).collect();
        }
        self.waypoints.workloads.extend(changes.uids());
        self.scopes();
        // Whom a policy lets in depends on what waypoints are told.
        let mut authorizations = affected.authorizations;
        authorizations.append(&mut self.readmitted);
        for key in authorizations {
            self.compile_authorization(key, &mut changes);
        }
        changes.in_order()
    }

    /// What each waypoint is to be told that is different since the last call, as of the last [`Self::changes`].
    pub fn waypoints(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    /// The waypoints, as of the last [`Self::changes`].
    pub fn waypoint_keys(&self) -> impl Iterator<Item = &Key> {
        self.waypoints.scopes().keys()
    }

    /// The VirtualServices, DestinationRules and AuthorizationPolicies of which a waypoint has in force what they made, once it has acknowledged all
    /// that it was told.
    pub fn origins(&self, gateway: &Key) -> BTreeSet<ObjectRef> {
        self.waypoints.origins(&self.index, gateway)
    }

    /// The objects that a host (named `namespace/hostname`) is made of at all waypoints that are told of it, its Service among them.
    pub fn origins_of_host(&self, name: &str) -> BTreeSet<ObjectRef> {
        let Some((namespace, hostname)) = name.split_once('/') else { return BTreeSet::new() };
        let host = NamespacedHostname { namespace: namespace.into(), hostname: hostname.into() };
        let service = self.index.service_named(hostname).map(|service| service.reference());
        let made = self.waypoints.scopes().iter().flat_map(|(gateway, scope)| scope.origins_of(&self.index, gateway, &host));
        service.into_iter().chain(made).collect()
    }

    /// Whether node proxies are told a policy.
    pub fn node_proxies_obey(&self, policy: &ObjectRef) -> bool {
        policy.kind == Kind::AuthorizationPolicy && self.authorizations.contains_key(&(policy.namespace.clone(), policy.name.clone()))
    }

    /// The workloads of which a waypoint that they call is told more than node proxies are, as they became different since the last call,
    /// as of the last [`Self::changes`]; one that is removed is still there, without that.
    pub fn callers(&mut self) -> Vec<Change> {
        self.waypoints.take_callers()
    }

    /// A workload as a waypoint is told it that knows it as a caller alone.
    pub fn as_caller<'a>(&'a self, workload: &'a Arc<Workload>) -> &'a Arc<Workload> {
        self.waypoints.callers.of(workload)
    }

    fn scopes(&mut self) {
        let workloads = self.pods.values().chain(self.slices.values().flat_map(BTreeMap::values));
        let (told, gone) = self.waypoints.differences(&self.index, &self.services, workloads);
        for gateway in gone {
            self.enforced(&gateway, &BTreeSet::new());
        }
        self.told.extend(told);
        let moved = self.waypoints.take_moved();
        self.readmitted.extend(moved.iter().filter_map(object_key));
    }

    /// What was compiled so far is published. Until then nothing is known of who has what, and what is ready is taken for what was in use.
    pub fn opened(&mut self) {
        self.opening = false;
    }

    /// A waypoint has in force what [`Self::waypoints`] gave for it so far: the policies in it may let it in. Nothing may have been
    /// compiled since that it was not given.
    pub fn acknowledged(&mut self, gateway: &Key) {
        self.acknowledged_without(gateway, &BTreeSet::new());
    }

    /// As [`Self::acknowledged`], but for hosts that the waypoint refused. Of each it has in force what it had, or nothing: what a refused
    /// host keeps back is let in no more where that host leads, and nothing else is affected.
    pub fn acknowledged_without(&mut self, gateway: &Key, refused: &BTreeSet<NamespacedHostname>) {
        let settings = self.index.settings();
        self.waypoints.know(gateway, |(namespace, name)| refused.contains(&service::hostname(settings, namespace, name)));
        self.enforced(gateway, refused);
    }

    /// What a waypoint knows and does not carry all of: to be given to [`Self::carry`] when node proxies have in force what followed from
    /// [`Self::acknowledged`].
    pub fn acquainted(&self, gateway: &Key) -> Option<Arc<Served>> {
        self.waypoints.acquainted(gateway)
    }

    /// Traffic may go through a waypoint; takes effect with [`Self::changes`].
    pub fn carry(&mut self, gateway: &Key, served: Arc<Served>) {
        let fresh = self.waypoints.carry(gateway, served);
        self.affected.services.extend(fresh.services);
        self.affected.pods.extend(fresh.pods);
    }

    /// Traffic goes through a waypoint whether it acknowledges or not: what is not known there is refused there.
    pub fn carry_all(&mut self, gateway: &Key) {
        if let Some(served) = self.served(gateway) {
            self.carry(gateway, served);
        }
    }

    /// All that a waypoint is told of, whether it knows it or not.
    pub(crate) fn served(&self, gateway: &Key) -> Option<Arc<Served>> {
        self.waypoints.served(gateway)
    }

    /// The waypoints that are ready, and not known to carry what goes through none meanwhile.
    pub fn held(&self) -> BTreeSet<Key> {
        self.waypoints.held()
    }

    /// What left a waypoint that still knows it.
    pub fn left(&self) -> impl Iterator<Item = Left> {
        self.waypoints.left()
    }

    /// Nothing is under way any more through a waypoint that was left; takes effect with [`Self::changes`]. Says whether the waypoint is to
    /// forget it: what was acknowledged about it before counts no more ([`Left::take_from`]).
    pub fn release(&mut self, left: &Left) -> bool {
        // Its binding says so.
        if let Of::Service(key) = &left.of {
            self.affected.services.extend([key.clone()]);
        }
        self.waypoints.release(left)
    }

    /// Whether something goes through a waypoint until another one, that it wants, is ready for it.
    pub fn is_kept(&self, gateway: &Key) -> bool {
        self.waypoints.is_kept(gateway)
    }

    /// What there is to say about the waypoint of each Service that has one or wants one.
    pub fn bindings(&self) -> impl Iterator<Item = (ObjectRef, &Binding)> {
        self.bindings.iter().map(|(key, binding)| (ObjectRef::new(Kind::Service, key.0.clone(), key.1.clone()), binding))
    }

    /// The waypoints that there should be of their own accord, by their Gateway, as of the last [`Self::changes`].
    pub fn needs(&self) -> &BTreeMap<Key, Need> {
        &self.needs
    }

    fn enforced(&mut self, gateway: &Key, refused: &BTreeSet<NamespacedHostname>) {
        let keys = self.waypoints.enforce(gateway, |part| part.as_ref().is_some_and(|host| refused.contains(host)));
        self.readmitted.extend(keys.iter().filter_map(object_key));
    }

    /// Whether a policy lets a waypoint in that has not acknowledged its present version yet: give it some time, then
    /// [`Self::end_grace`].
    pub fn has_grace(&self) -> bool {
        self.waypoints.has_grace()
    }

    /// Policies let only those waypoints in that have acknowledged them; takes effect with [`Self::changes`].
    pub fn end_grace(&mut self) {
        self.readmitted.extend(self.waypoints.end_grace().iter().filter_map(object_key));
    }

    fn tell_widely(&mut self) {
        if !self.waypoints.take_wide() {
            return;
        }
        let index = &self.index;
        let routes = index.virtual_services().map(|object| (object.reference(), virtual_service::findings(index, object)));
        let rules = index.destination_rules().map(|object| (object.reference(), destination_rule::findings(index, object)));
        let policies = index.authorizations().map(|object| (object.reference(), policy_findings(index, object)));
        let services = index.services().map(|object| (object.reference(), service::findings(index, object)));
        let all = routes.chain(rules).chain(policies).chain(services).chain(waypoint::pods_findings(index));
        self.wide_findings = all.filter(|(_, findings)| !findings.is_empty()).collect();
    }

    /// What is to be told now, by object.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.values().chain(self.wide_findings.values()).flatten().chain(self.waypoints.findings())
    }

    /// The workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.pods.values().chain(self.slices.values().flat_map(BTreeMap::values))
    }

    /// Everything that was compiled, in order of the keys.
    pub fn compiled(&self) -> Compiled {
        let mut workloads: Vec<Workload> = self.workloads().map(|own| (**own).clone()).collect();
        workloads.sort_by(|one, other| one.uid.cmp(&other.uid));
        let mut services: Vec<Service> = self.services.values().map(|own| (**own).clone()).collect();
        services.sort_by(|one, other| one.hostname.cmp(&other.hostname));
        let policies = self.authorizations.values().chain(self.peers.values()).chain(&self.static_strict);
        let mut policies: Vec<Policy> = policies.map(|own| (**own).clone()).collect();
        policies.sort_by(|one, other| one.key.cmp(&other.key));
        let mut findings: BTreeMap<&ObjectRef, Vec<Finding>> = BTreeMap::new();
        for (object, told) in self.findings.iter().chain(&self.wide_findings) {
            findings.entry(object).or_default().extend(told.iter().cloned());
        }
        Compiled { workloads, services, policies, findings: findings.into_values().flatten().collect() }
    }

    fn compile_authorization(&mut self, key: Key, changes: &mut Changes) {
        let (mut now, mut findings) = (None, Vec::new());
        match self.index.authorization(&key).cloned() {
            Some(object) => {
                (now, findings) = authorization::compile(self.index.settings(), &object);
                let waypoints = self.admitted(&key, &object);
                now = now.map(|policy| admission::admit(policy, &waypoints));
            }
            None => self.waypoints.forget(&PolicyKey(format!("{}/{}", key.0, key.1).into())),
        }
        self.tell(ObjectRef::new(Kind::AuthorizationPolicy, key.0.clone(), key.1.clone()), findings);
        slot(&mut self.authorizations, key, now, |old, new| changes.policy_slot(old, new));
    }

    /// The waypoints that a policy lets in, and where.
    fn admitted(&mut self, key: &Key, object: &Object) -> Admitted {
        let settings = self.index.settings();
        let Some(present) = request_policy::compile(settings, object).0 else { return Admitted::new() };
        let is_new = !self.authorizations.contains_key(key);
        // The identity of one that is deployed by hand may be anybody's of its namespace.
        let deployed = |object: &Arc<Object>| waypoint::address(settings, object).is_some() && !waypoint::is_deployed_by_hand(object);
        let in_use = |gateway: &Key| self.index.gateway(gateway).is_some_and(deployed);
        let admitted = self.waypoints.admitted(&present, is_new, in_use);
        let place = (key.0 != settings.root_namespace).then_some(key.0.as_str());
        let at = |gateway: &Key| (waypoint::identity(settings, gateway), self.waypoints.destinations(gateway, place, &present));
        admitted.iter().map(at).collect()
    }

    fn compile_peer(&mut self, key: Key, changes: &mut Changes) {
        let object = self.index.peer(&key);
        let now = object.and_then(|object| peer_authentication::compile(&self.index, object));
        let findings = object.map(|object| peer_authentication::findings(&self.index, object)).unwrap_or_default();
        self.tell(ObjectRef::new(Kind::PeerAuthentication, key.0.clone(), key.1.clone()), findings);
        slot(&mut self.peers, key, now, |old, new| changes.policy_slot(old, new));
    }

    fn compile_service(&mut self, key: Key, changes: &mut Changes) {
        let Some(object) = self.index.service(&key).cloned() else {
            self.waypoints.remove_service(&key);
            self.bindings.remove(&key);
            self.tell(ObjectRef::new(Kind::Service, key.0.clone(), key.1.clone()), Vec::new());
            slot(&mut self.services, key, None, |old, new| changes.service(old, new));
            return;
        };
        let (mut now, wanted, findings) = attached_service(&self.index, &object);
        // Whoever may write a Service's status does not choose its waypoint.
        let may_carry = |found: &Key| waypoint::may_carry(&self.index, found, &key.0);
        let Found { present: found, former } = if self.opening { Found::of(&object) } else { Found::default() };
        let (found, former) = (found.filter(may_carry), former.into_iter().filter(may_carry).collect());
        let at_once = self.at_once(wanted.as_ref(), found.as_ref(), Some(&object), self.services.contains_key(&key));
        let present = self.waypoints.service(&self.index, &key, &Wish { wanted: wanted.as_ref(), found, former, at_once });
        match Binding::of(&self.index, &object, wanted.as_ref(), present.as_ref(), self.waypoints.former(&key)) {
            Some(binding) => self.bindings.insert(key.clone(), binding),
            None => self.bindings.remove(&key),
        };
        if let Some(now) = &mut now {
            now.waypoint = self.address(present.as_ref());
        }
        self.tell(ObjectRef::new(Kind::Service, key.0.clone(), key.1.clone()), findings);
        slot(&mut self.services, key, now, |old, new| changes.service(old, new));
    }

    fn compile_pod(&mut self, key: Key, changes: &mut Changes) {
        // A label that only waypoints are told may have changed.
        self.waypoints.workloads.insert(workload::pod_uid(self.index.settings(), &key));
        let Some(object) = self.index.pod(&key).cloned() else {
            self.waypoints.remove_pod(&key);
            slot(&mut self.pods, key, None, |old, new| changes.workload(old, new));
            return;
        };
        let wanted = waypoint::of_pod(&self.index, &object);
        let at_once = self.at_once(wanted.as_ref(), None, None, self.pods.contains_key(&key));
        let present =
            self.waypoints.pod(&self.index, &key, &Wish { wanted: wanted.as_ref(), found: None, former: BTreeSet::new(), at_once });
        let mut now = workload::from_pod(&self.index, &object);
        if let Some(now) = &mut now {
            now.waypoint = self.address(present.as_ref());
        }
        slot(&mut self.pods, key, now, |old, new| changes.workload(old, new));
    }

    /// Whether something goes to its waypoint without waiting for its acknowledgement: before anything was published what is ready is
    /// taken for what was in use; and what is new, and named by a policy that only the waypoint can check, is better refused there than
    /// let by.
    fn at_once(&self, wanted: Option<&Attached>, found: Option<&Key>, service: Option<&Object>, is_known: bool) -> bool {
        let Some(wanted) = wanted else { return false };
        if self.opening {
            return found.is_none_or(|found| *found == wanted.gateway);
        }
        !is_known && request_policy::is_targeted(&self.index, &wanted.gateway, service)
    }

    fn address(&self, waypoint: Option<&Key>) -> Option<GatewayAddress> {
        waypoint::address(self.index.settings(), self.index.gateway(waypoint?)?)
    }

    fn compile_slice(&mut self, key: Key, changes: &mut Changes) {
        let now = self.index.slice(&key).map(|object| workload::from_slice(&self.index, object)).unwrap_or_default();
        let mut known = self.slices.remove(&key).unwrap_or_default();
        let mut now: BTreeMap<Arc<str>, Workload> = now.into_iter().map(|own| (own.uid.0.clone(), own)).collect();
        let uids: BTreeSet<Arc<str>> = known.keys().chain(now.keys()).cloned().collect();
        for uid in uids {
            let new = now.remove(&uid);
            match changes.workload(known.get(&uid), new) {
                Some(own) => known.insert(uid, own),
                None => known.remove(&uid),
            };
        }
        if !known.is_empty() {
            self.slices.insert(key, known);
        }
    }

    fn tell(&mut self, object: ObjectRef, findings: Vec<Finding>) {
        if findings.is_empty() {
            self.findings.remove(&object);
        } else {
            self.findings.insert(object, findings);
        }
    }
}

/// The object that a policy was compiled from.
fn object_key(policy: &PolicyKey) -> Option<Key> {
    policy.0.split_once('/').map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
}

/// Everything that the objects of an index mean, from nothing.
pub fn compile(index: &Index) -> Compiled {
    let settings = index.settings();
    let everything = index.everything();
    let mut compiled = Compiled::default();
    let mut findings: BTreeMap<ObjectRef, Vec<Finding>> = BTreeMap::new();
    for name in &everything.namespaces {
        if let Some(object) = index.namespace(name) {
            findings.entry(object.reference()).or_default().extend(namespace_findings(index, object));
        }
    }
    for object in everything.services.iter().filter_map(|key| index.service(key)) {
        let (service, _, told) = attached_service(index, object);
        compiled.services.extend(service);
        let told = told.into_iter().chain(service::findings(index, object));
        findings.entry(object.reference()).or_default().extend(told);
    }
    for object in everything.authorizations.iter().filter_map(|key| index.authorization(key)) {
        let (policy, told) = authorization::compile(settings, object);
        compiled.policies.extend(policy);
        let told = told.into_iter().chain(policy_findings(index, object));
        findings.entry(object.reference()).or_default().extend(told);
    }
    for object in everything.peers.iter().filter_map(|key| index.peer(key)) {
        compiled.policies.extend(peer_authentication::compile(index, object));
        findings.entry(object.reference()).or_default().extend(peer_authentication::findings(index, object));
    }
    for object in everything.virtual_services.iter().filter_map(|key| index.virtual_service(key)) {
        findings.entry(object.reference()).or_default().extend(virtual_service::findings(index, object));
    }
    for object in everything.destination_rules.iter().filter_map(|key| index.destination_rule(key)) {
        findings.entry(object.reference()).or_default().extend(destination_rule::findings(index, object));
    }
    for object in everything.gateways.iter().filter_map(|key| index.gateway(key)) {
        findings.entry(object.reference()).or_default().extend(waypoint::findings(object));
    }
    findings.extend(waypoint::pods_findings(index));
    compiled.policies.extend(index.has_peers().then(|| peer_authentication::static_strict(settings)));
    let pods = everything.pods.iter().filter_map(|key| index.pod(key));
    compiled.workloads.extend(pods.filter_map(|object| workload::from_pod(index, object)));
    let slices = everything.slices.iter().filter_map(|key| index.slice(key));
    compiled.workloads.extend(slices.flat_map(|object| workload::from_slice(index, object)));
    compiled.workloads.sort_by(|one, other| one.uid.cmp(&other.uid));
    compiled.services.sort_by(|one, other| one.hostname.cmp(&other.hostname));
    compiled.policies.sort_by(|one, other| one.key.cmp(&other.key));
    compiled.findings = findings.into_values().flatten().collect();
    compiled
}

/// A service with the waypoint that it should go through.
fn attached_service(index: &Index, object: &Object) -> (Option<Service>, Option<Attached>, Vec<Finding>) {
    let (service, mut findings) = service::compile(index.settings(), object);
    let Some(mut service) = service else { return (None, None, findings) };
    let (attached, told) = waypoint::of_service(index, object);
    findings.extend(told);
    service.waypoint = attached.as_ref().and_then(|attached| attached.address.clone());
    (Some(service), attached, findings)
}

fn namespace_findings(index: &Index, object: &Object) -> Vec<Finding> {
    let mut findings = namespace::findings(index.settings(), object);
    findings.extend(waypoint::namespace_findings(index, object));
    findings
}

/// What there is to tell about a policy's targets and selector.
fn policy_findings(index: &Index, object: &Object) -> Vec<Finding> {
    let gateway = |namespace: &str, name: &str| index.gateway(&(namespace.to_owned(), name.to_owned())).is_some();
    let mut findings = request_policy::findings(index, object, gateway);
    findings.extend(authorization::selection_findings(index, object));
    findings.extend(waypoint::policy_findings(index, object));
    // What node proxies cannot read of it is told once, in their words.
    let told = authorization::compile(index.settings(), object).1;
    let known = |finding: &Finding| told.iter().any(|own| own.code == finding.code && own.field == finding.field);
    findings.extend(request_policy::compile(index.settings(), object).1.into_iter().filter(|finding| !known(finding)));
    findings
}

#[derive(Default)]
struct Changes {
    policies: Vec<Change>,
    services: Vec<Change>,
    workloads: Vec<Change>,
    removed_addresses: Vec<Change>,
    removed_policies: Vec<Change>,
}

impl Changes {
    fn in_order(self) -> Vec<Change> {
        let kept = self.policies.into_iter().chain(self.services).chain(self.workloads);
        kept.chain(self.removed_addresses).chain(self.removed_policies).collect()
    }

    /// The workloads and services that are different; a name of a service is no workload's.
    fn uids(&self) -> Vec<WorkloadUid> {
        let changed = self.workloads.iter().chain(&self.removed_addresses).filter_map(|change| match change {
            Change::Workload(workload) => Some(workload.uid.clone()),
            Change::RemoveAddress(name) => Some(WorkloadUid(name.clone())),
            _ => None,
        });
        changed.collect()
    }

    fn workload(&mut self, old: Option<&Arc<Workload>>, new: Option<Workload>) -> Option<Arc<Workload>> {
        difference(
            old,
            new,
            |new| self.workloads.push(Change::Workload(new)),
            |old| {
                self.removed_addresses.push(Change::RemoveAddress(old.uid.0.clone()));
            },
        )
    }

    fn service(&mut self, old: Option<&Arc<Service>>, new: Option<Service>) -> Option<Arc<Service>> {
        difference(
            old,
            new,
            |new| self.services.push(Change::Service(new)),
            |old| {
                self.removed_addresses.push(Change::RemoveAddress(old.hostname.to_string().into()));
            },
        )
    }

    fn policy_slot(&mut self, old: Option<&Arc<Policy>>, new: Option<Policy>) -> Option<Arc<Policy>> {
        difference(
            old,
            new,
            |new| self.policies.push(Change::Policy(new)),
            |old| {
                self.removed_policies.push(Change::RemovePolicy(PolicyKey(old.key.0.clone())));
            },
        )
    }

    fn policy(&mut self, known: &mut Option<Arc<Policy>>, new: Option<Policy>) {
        *known = self.policy_slot(known.as_ref(), new);
    }
}

/// Says what became of something, and gives what is to be kept of it: the old one, if it is the same.
fn difference<T: PartialEq>(
    old: Option<&Arc<T>>,
    new: Option<T>,
    changed: impl FnOnce(Arc<T>),
    removed: impl FnOnce(&T),
) -> Option<Arc<T>> {
    match (old, new) {
        (None, None) => None,
        (Some(old), Some(new)) if **old == new => Some(old.clone()),
        (_, Some(new)) => {
            let new = Arc::new(new);
            changed(new.clone());
            Some(new)
        }
        (Some(old), None) => {
            removed(old);
            None
        }
    }
}

/// Replaces what a map holds under a key by what `decide` makes of old and new.
fn slot<T>(map: &mut HashMap<Key, Arc<T>>, key: Key, new: Option<T>, decide: impl FnOnce(Option<&Arc<T>>, Option<T>) -> Option<Arc<T>>) {
    match decide(map.get(&key), new) {
        Some(kept) => map.insert(key, kept),
        None => map.remove(&key),
    };
}

#[cfg(test)]
mod tests;
