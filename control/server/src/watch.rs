//! Objects in, configuration out: takes events of the source, keeps the index, and publishes what compiling makes of it.
//!
//! Facts that decide over identities reach [`Scope`] at once. Configuration is compiled when the source has been quiet for a moment,
//! so that a rollout is one change and not a hundred, and never before everything was told once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use tropis_compile::{
    Compiler, Settings,
    waypoint::{binding::Binding, needed::Need, refused},
};
use tropis_crds::{Finding, Kind, Level, Object, ObjectRef, OwnerReference};
use tropis_source::{SourceEvent, Watch as Events};
use tropis_telemetry::readiness::ReadinessTask;
use tropis_xds::{
    ResourceType,
    server::{Audience, Clients, Resources},
};

use crate::{
    attach::{Attach, audience},
    automatic::{Automatic, Stand},
    deploy::{self, Existing},
    graph::{inventory::Inventory, look::InventoryAsk},
    in_force::InForce,
    metrics::Metrics,
    report::{self, Condition, Refused, Reports},
    scope::{Fact, GATEWAY_LABEL, Key, PodFacts, Scope},
};

/// How long the source must be quiet before its changes are compiled.
const QUIET: Duration = Duration::from_millis(20);
/// How long a change waits at most when the source is never quiet.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// How long a waypoint may take to acknowledge a policy that has changed, before the policy's destinations let it in no more.
const GRACE: Duration = Duration::from_secs(10);

/// The findings that stand now. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings(Arc<RwLock<Arc<[Finding]>>>);

impl Findings {
    /// All of them, the object's first.
    pub(crate) fn list(&self) -> Arc<[Finding]> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts others in their place and logs what is new.
    fn replace(&self, mut findings: Vec<Finding>) {
        findings.sort();
        findings.dedup();
        let before = self.list();
        for finding in &findings {
            if before.binary_search(finding).is_err() {
                log(finding);
            }
        }
        for finding in before.iter().filter(|finding| findings.binary_search(finding).is_err()) {
            info!(code = finding.code, object = %finding.object, field = finding.field, "finding resolved");
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = findings.into();
    }
}

fn log(finding: &Finding) {
    let (code, object, field) = (finding.code, &finding.object, &finding.field);
    match finding.level {
        Level::Error => error!(code, %object, field, "{finding}"),
        Level::Warning => warn!(code, %object, field, "{finding}"),
        Level::Info => info!(code, %object, field, "{finding}"),
    }
}

/// Who is told of changes.
pub(crate) struct Told {
    /// Pods and namespaces, at once.
    pub(crate) scope: Arc<Scope>,
    /// The configuration.
    pub(crate) resources: Resources,
    /// Who takes the configuration, and what of it was refused: that is told on.
    pub(crate) clients: Clients,
    /// What stands now.
    pub(crate) findings: Findings,
    /// What should stand in statuses.
    pub(crate) reports: watch::Sender<Option<Arc<Reports>>>,
    /// Done when everything was read once.
    pub(crate) ready: ReadinessTask,
    /// What is counted.
    pub(crate) metrics: Metrics,
}

/// Follows the source.
pub(crate) struct Watch {
    compiler: Compiler,
    told: Told,
    automatic: Automatic,
    attach: Attach,
    /// What the last decision was.
    stands: BTreeMap<Key, Stand>,
    /// What it was made of.
    needs: BTreeMap<Key, Need>,
    synced: bool,
    /// The generation that is published.
    generation: u64,
    file_findings: BTreeMap<String, Vec<Finding>>,
    compiled_findings: Vec<Finding>,
    /// The policies, whose status says that they are in force.
    policies: BTreeSet<ObjectRef>,
    /// Policies that some proxy refused.
    refused: Refused,
    /// What there is to tell about objects of which a waypoint refused what they became.
    refusals: Vec<Finding>,
    /// What there is to tell about the waypoints of Services.
    bindings: Vec<Binding>,
    /// Where objects are in force.
    in_force: InForce,
    /// Something besides the findings of compiling changed what is to be told.
    untold: bool,
    /// `metadata.generation` of every object; its size is the number of objects.
    generations: HashMap<ObjectRef, Option<i64>>,
    /// Conditions of ours that objects carried when they were told first.
    found: BTreeMap<ObjectRef, Condition>,
    /// Objects for waypoints that an earlier process left.
    found_made: BTreeSet<ObjectRef>,
    existing: Existing,
    /// Waypoints that the control plane deploys.
    deployed: BTreeSet<Key>,
    /// When waypoints are let in no more by policies that they have not acknowledged.
    grace_ends: Option<Instant>,
}

/// When the pending events are due.
#[derive(Debug, Clone, Copy)]
struct Pending {
    first: Instant,
    last: Instant,
}

impl Pending {
    /// One more event now.
    fn another(pending: Option<Self>) -> Self {
        let now = Instant::now();
        Self { first: pending.map_or(now, |pending| pending.first), last: now }
    }

    fn due(self) -> Instant {
        (self.last + QUIET).min(self.first + LONGEST_WAIT)
    }
}

impl Watch {
    /// Compiles for `settings`. What is open through a waypoint that nothing goes through any more has `drain` to end.
    pub(crate) fn new(settings: Settings, drain: Duration, told: Told) -> Self {
        Self {
            compiler: Compiler::new(settings),
            told,
            automatic: Automatic::new(drain),
            attach: Attach::new(drain),
            stands: BTreeMap::new(),
            needs: BTreeMap::new(),
            synced: false,
            generation: 0,
            file_findings: BTreeMap::new(),
            compiled_findings: Vec::new(),
            policies: BTreeSet::new(),
            refused: Refused::new(),
            refusals: Vec::new(),
            bindings: Vec::new(),
            in_force: InForce::default(),
            untold: true,
            generations: HashMap::new(),
            found: BTreeMap::new(),
            found_made: BTreeSet::new(),
            existing: Existing::default(),
            deployed: BTreeSet::new(),
            grace_ends: None,
        }
    }

    /// Runs until `stop`, or until the source ends, which it should not; answers who asks what there is.
    pub(crate) async fn run(mut self, mut events: Events, mut asks: mpsc::Receiver<InventoryAsk>, stop: CancellationToken) {
        let mut pending: Option<Pending> = None;
        let mut acknowledgements = self.told.clients.watch();
        loop {
            let now = Instant::now();
            let later = self.automatic.due(now).into_iter().chain(self.attach.due(now)).chain(self.grace_ends).min();
            let due = pending.map(Pending::due).or(later);
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => {
                        self.take(event);
                        pending = Some(Pending::another(pending));
                    }
                    None => {
                        error!("the source ended; the configuration stays as it is");
                        return;
                    }
                },
                // Who asked may have gone.
                Some(ask) = asks.recv() => {
                    let _ = ask.send(Inventory::of(&self.compiler, self.synced));
                }
                // The register lives as long as this does.
                Ok(()) = acknowledgements.changed() => pending = Some(Pending::another(pending)),
                () = due => {
                    pending = None;
                    self.publish();
                }
                () = stop.cancelled() => return,
            }
        }
    }

    fn take(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Applied(object) => {
                let reference = object.reference();
                if !self.synced
                    && let Some(condition) = report::found(&object)
                {
                    self.found.insert(reference.clone(), condition);
                }
                if !self.synced && deploy::is_ours(&object) {
                    self.found_made.insert(reference.clone());
                }
                self.existing.note(&reference, Some(&object));
                self.untold |= matches!(object.kind, Kind::Gateway | Kind::Deployment | Kind::ServiceAccount);
                let is_waypoints = || object.label(GATEWAY_LABEL).is_some();
                self.untold |= object.kind == Kind::Pod && (self.existing.has_strangers() || is_waypoints());
                self.told.scope.apply(fact(&object));
                if object.kind == Kind::AuthorizationPolicy {
                    self.policies.insert(reference.clone());
                    self.untold = true;
                }
                self.in_force.touch(&reference);
                self.generations.insert(reference, object.metadata.generation);
                self.compiler.apply(&object);
            }
            SourceEvent::Deleted(reference) => {
                self.existing.note(&reference, None);
                self.untold |= matches!(reference.kind, Kind::Gateway | Kind::Deployment | Kind::ServiceAccount);
                self.untold |= reference.kind == Kind::Pod && self.existing.has_strangers();
                self.told.scope.apply(gone(&reference));
                self.untold |= self.policies.remove(&reference);
                self.in_force.touch(&reference);
                self.generations.remove(&reference);
                self.compiler.remove(&reference);
            }
            SourceEvent::Findings { file, findings } => {
                self.untold = true;
                if findings.is_empty() {
                    self.file_findings.remove(&file);
                } else {
                    self.file_findings.insert(file, findings);
                }
            }
            SourceEvent::Synced => {
                self.synced = true;
            }
        }
    }

    fn publish(&mut self) {
        if !self.synced {
            return;
        }
        let started = Instant::now();
        self.untold |= self.attach.acknowledge(&mut self.compiler, &self.told.clients, started);
        if self.grace_ends.take_if(|end| *end <= started).is_some() {
            self.compiler.end_grace();
        }
        let changes = self.compiler.changes();
        let told = self.compiler.waypoints();
        let grace = self.grace_ends.unwrap_or(started + GRACE);
        self.grace_ends = self.compiler.has_grace().then_some(grace);
        let mut step = self.told.resources.step();
        step.apply(&Audience::NodeProxies, &changes);
        step.callers(&self.compiler.callers());
        for told in &told {
            match &told.changes {
                Some(changes) => step.apply(&audience(&told.gateway), changes),
                None => step.close(&audience(&told.gateway)),
            }
        }
        let published = step.publish();
        self.compiler.opened();
        for told in told {
            self.attach.published(told.gateway, told.changes.map(|_| published.generation));
        }
        self.attach.follow(&mut self.compiler, &self.told.clients, published.generation, started);
        let seconds = started.elapsed().as_secs_f64();
        self.told.metrics.objects(self.generations.len());
        if published.generation != self.generation {
            self.generation = published.generation;
            self.told.metrics.published(published.generation, published.changed, seconds);
            info!(generation = published.generation, changed = published.changed, seconds, "configuration published");
        }
        self.decide();
        self.tell();
        // Which accounts are waypoints' is decided now, and before nobody gets a certificate.
        self.told.scope.synced();
        self.told.ready.ready();
    }

    /// Decides over the waypoints that nobody made.
    fn decide(&mut self) {
        let clients = &self.told.clients;
        let acknowledged = |generation| clients.everywhere(&Audience::NodeProxies, generation) == Some(true);
        let (index, needs) = (self.compiler.index(), self.compiler.needs());
        let kept = |gateway: &Key| self.compiler.is_kept(gateway);
        let stands = self.automatic.decide(index, needs, kept, (self.generation, &acknowledged), Instant::now());
        self.untold |= stands != self.stands;
        self.stands = stands;
        if self.needs != *needs {
            self.needs.clone_from(needs);
            self.untold = true;
        }
    }

    /// Tells the findings that stand, if they are not the ones that stood before.
    fn tell(&mut self) {
        let compiled: Vec<Finding> = self.compiler.findings().cloned().collect();
        let (refused, refusals) = (self.refused(), self.refusals());
        let bindings: Vec<Binding> = self.compiler.bindings().map(|(_, binding)| binding.clone()).collect();
        self.untold |= bindings != self.bindings;
        self.untold |= self.in_force.look(&self.compiler, |gateway| self.attach.in_force(gateway));
        if compiled == self.compiled_findings && refused == self.refused && refusals == self.refusals && !self.untold {
            return;
        }
        self.compiled_findings = compiled;
        self.refusals = refusals;
        self.refused = refused;
        self.bindings = bindings;
        self.untold = false;
        let mut all: Vec<Finding> = self.file_findings.values().flatten().cloned().collect();
        all.extend(self.compiled_findings.iter().chain(&self.refusals).cloned());
        let gateways = self.compiler.index().waypoints().map(|object| key(&object.reference()));
        self.existing.look(gateways.chain(self.stands.keys().cloned()), |account| self.told.scope.stranger(account));
        let automatic = deploy::Automatic { stands: &self.stands, needs: &self.needs };
        let is_live = |gateway: &Key| self.attach.is_live(gateway) && self.compiler.index().has_ready_pod(gateway);
        let (made, told) = deploy::desired(self.compiler.index(), &self.existing, &automatic, &all, is_live);
        all.extend(told);
        self.deploy(made.keys().filter(|object| object.kind == Kind::ServiceAccount).map(key).collect());
        let places = self.in_force.places(&self.compiler);
        let generation = |object: &ObjectRef| self.generations.get(object).copied().flatten();
        let mut desired = report::conditions(&all, &self.policies, &places, &self.refused, generation);
        desired.extend(self.compiler.bindings().map(|(service, binding)| (service, Condition::of(binding))));
        // A waypoint's Gateway has a status of its own.
        desired.retain(|object, _| !made.contains_key(object));
        self.told.metrics.findings(all.len());
        self.told.findings.replace(all);
        let reports = Arc::new(Reports { desired, found: self.found.clone(), made, found_made: self.found_made.clone() });
        self.told.reports.send_if_modified(|present| {
            let different = present.as_ref() != Some(&reports);
            if different {
                *present = Some(reports);
            }
            different
        });
    }

    /// Accounts of these names are waypoints' now, and no others: one that somebody else made stays whose it is.
    fn deploy(&mut self, waypoints: BTreeSet<Key>) {
        let fresh = waypoints.difference(&self.deployed).cloned().map(Fact::Waypoint);
        self.told.scope.apply(fresh.chain(self.deployed.difference(&waypoints).cloned().map(Fact::WaypointGone)));
        self.deployed = waypoints;
    }

    /// The policies, as objects, that some proxy refused.
    fn refused(&self) -> Refused {
        let object = |name: &str| name.split_once('/').map(|(namespace, name)| ObjectRef::new(Kind::AuthorizationPolicy, namespace, name));
        let refused = self.told.clients.refused(ResourceType::Authorization).into_iter();
        refused.filter_map(|(name, why)| Some((object(&name)?, why))).collect()
    }

    /// What there is to tell about the objects that went into resources which some waypoint refused.
    fn refusals(&self) -> Vec<Finding> {
        let clients = &self.told.clients;
        let mut told = Vec::new();
        for (name, (client, reason)) in clients.refused(ResourceType::Host) {
            let origins = self.compiler.origins_of_host(&name).into_iter();
            told.extend(origins.map(|object| refused::finding(object, &name, &client, &reason)));
        }
        for (name, (client, reason)) in clients.refused(ResourceType::Waypoint) {
            told.extend(refused::waypoint_origin(&name).map(|object| refused::finding(object, &name, &client, &reason)));
        }
        told
    }
}

/// What an object says about who may have which identity.
fn fact(object: &Object) -> Option<Fact> {
    if object.namespace().is_some() {
        return Some(Fact::Namespace(object.metadata.name.clone(), object.metadata.labels.clone()));
    }
    let pod = object.pod()?;
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let facts = PodFacts {
        uid: object.metadata.uid.clone(),
        service_account: object.pod_service_account()?.to_owned(),
        node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or_default(),
        ended: matches!(phase, "Succeeded" | "Failed"),
        replica_set: replica_set(object),
        labels: object.metadata.labels.clone(),
        annotations: object.metadata.annotations.clone(),
    };
    Some(Fact::Pod(key(&object.reference()), facts))
}

fn replica_set(object: &Object) -> String {
    let controls = |owner: &&OwnerReference| owner.controller == Some(true) && owner.kind == "ReplicaSet";
    object.metadata.owner_references.iter().find(controls).map(|owner| owner.name.clone()).unwrap_or_default()
}

fn gone(object: &ObjectRef) -> Option<Fact> {
    match object.kind {
        Kind::Pod => Some(Fact::PodGone(key(object))),
        Kind::Namespace => Some(Fact::NamespaceGone(object.name.clone())),
        _ => None,
    }
}

fn key(object: &ObjectRef) -> Key {
    (object.namespace.clone(), object.name.clone())
}

#[cfg(test)]
mod tests;
