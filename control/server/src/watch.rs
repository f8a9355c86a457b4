//! Objects in, configuration out: takes events of the source, keeps the index, and publishes what compiling makes of it.
//!
//! Facts that decide over identities reach [`Scope`] at once. Configuration is compiled when the source has been quiet for a moment,
//! so that a rollout is one change and not a hundred, and never before everything was told once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use tropis_compile::{Compiled, Index, Settings};
use tropis_crds::{Finding, Kind, Level, Object, ObjectRef};
use tropis_model::{
    policy::{Policy, PolicyKey},
    service::Service,
    view::Change,
    workload::Workload,
};
use tropis_source::{SourceEvent, Watch as Events};
use tropis_telemetry::readiness::ReadinessTask;
use tropis_xds::server::Resources;

use crate::{
    metrics::Metrics,
    report::{self, Condition, Reports},
    scope::{Fact, Key, PodFacts, Scope},
};

/// How long the source must be quiet before its changes are compiled.
const QUIET: Duration = Duration::from_millis(20);
/// How long a change waits at most when the source is never quiet.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

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

/// Follows the source.
pub(crate) struct Watch {
    index: Index,
    scope: Arc<Scope>,
    resources: Resources,
    findings: Findings,
    reports: watch::Sender<Option<Arc<Reports>>>,
    ready: ReadinessTask,
    metrics: Metrics,
    synced: bool,
    served: Served,
    file_findings: BTreeMap<String, Vec<Finding>>,
    /// `metadata.generation` of every object; its size is the number of objects.
    generations: HashMap<ObjectRef, Option<i64>>,
    /// Conditions of ours that objects carried when they were told first.
    found: BTreeMap<ObjectRef, Condition>,
}

/// When the pending events are due.
#[derive(Debug, Clone, Copy)]
struct Pending {
    first: Instant,
    last: Instant,
}

impl Pending {
    fn due(self) -> Instant {
        (self.last + QUIET).min(self.first + LONGEST_WAIT)
    }
}

impl Watch {
    /// Compiles for `settings`; tells `scope`, `resources`, `findings`, `reports` and `ready`.
    pub(crate) fn new(
        settings: Settings,
        scope: Arc<Scope>,
        resources: Resources,
        findings: Findings,
        reports: watch::Sender<Option<Arc<Reports>>>,
        ready: ReadinessTask,
        metrics: Metrics,
    ) -> Self {
        Self {
            index: Index::new(settings),
            scope,
            resources,
            findings,
            reports,
            ready,
            metrics,
            synced: false,
            served: Served::default(),
            file_findings: BTreeMap::new(),
            generations: HashMap::new(),
            found: BTreeMap::new(),
        }
    }

    /// Runs until `stop`, or until the source ends, which it should not.
    pub(crate) async fn run(mut self, mut events: Events, stop: CancellationToken) {
        let mut pending: Option<Pending> = None;
        loop {
            let due = async {
                match pending {
                    Some(pending) => tokio::time::sleep_until(pending.due()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => {
                        self.take(event);
                        let now = Instant::now();
                        pending = Some(Pending { first: pending.map_or(now, |pending| pending.first), last: now });
                    }
                    None => {
                        error!("the source ended; the configuration stays as it is");
                        return;
                    }
                },
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
                self.scope.apply(fact(&object));
                self.generations.insert(reference, object.metadata.generation);
                self.index.apply(&object);
            }
            SourceEvent::Deleted(reference) => {
                self.scope.apply(gone(&reference));
                self.generations.remove(&reference);
                self.index.remove(&reference);
            }
            SourceEvent::Findings { file, findings } => {
                if findings.is_empty() {
                    self.file_findings.remove(&file);
                } else {
                    self.file_findings.insert(file, findings);
                }
            }
            SourceEvent::Synced => {
                self.synced = true;
                self.scope.synced();
            }
        }
    }

    fn publish(&mut self) {
        if !self.synced {
            return;
        }
        let started = Instant::now();
        let compiled = tropis_compile::compile(&self.index);
        let Compiled { workloads, services, policies, findings } = compiled;
        let changes = self.served.update(workloads, services, policies);
        let published = self.resources.publish(&changes);
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.published(published.generation, published.changed, seconds);
        self.metrics.objects(self.generations.len());
        if published.changed > 0 {
            info!(generation = published.generation, changed = published.changed, seconds, "configuration published");
        }
        self.ready.ready();
        self.tell(findings);
    }

    fn tell(&mut self, compiled: Vec<Finding>) {
        let mut all: Vec<Finding> = self.file_findings.values().flatten().cloned().collect();
        all.extend(compiled);
        let policies = self.generations.keys().filter(|object| object.kind == Kind::AuthorizationPolicy);
        let desired = report::conditions(&all, policies, |object| self.generations.get(object).copied().flatten());
        self.metrics.findings(all.len());
        self.findings.replace(all);
        let reports = Arc::new(Reports { desired, found: self.found.clone() });
        self.reports.send_if_modified(|present| {
            let different = present.as_ref() != Some(&reports);
            if different {
                *present = Some(reports);
            }
            different
        });
    }
}

/// What was compiled last, to see what differs.
#[derive(Debug, Default)]
struct Served {
    workloads: HashMap<Arc<str>, Arc<Workload>>,
    services: HashMap<Arc<str>, Arc<Service>>,
    policies: HashMap<Arc<str>, Arc<Policy>>,
}

impl Served {
    /// The changes from what was compiled before to what is compiled now.
    fn update(&mut self, workloads: Vec<Workload>, services: Vec<Service>, policies: Vec<Policy>) -> Vec<Change> {
        let mut changes = Vec::new();
        let workloads = workloads.into_iter().map(|workload| (workload.uid.0.clone(), workload));
        difference(&mut self.workloads, workloads, &mut changes, Change::Workload, Change::RemoveAddress);
        let services = services.into_iter().map(|service| (service.hostname.to_string().into(), service));
        difference(&mut self.services, services, &mut changes, Change::Service, Change::RemoveAddress);
        let policies = policies.into_iter().map(|policy| (policy.key.0.clone(), policy));
        difference(&mut self.policies, policies, &mut changes, Change::Policy, |key| Change::RemovePolicy(PolicyKey(key)));
        changes
    }
}

fn difference<T: PartialEq>(
    before: &mut HashMap<Arc<str>, Arc<T>>,
    now: impl Iterator<Item = (Arc<str>, T)>,
    changes: &mut Vec<Change>,
    changed: impl Fn(Arc<T>) -> Change,
    removed: impl Fn(Arc<str>) -> Change,
) {
    let mut next = HashMap::with_capacity(before.len());
    for (name, value) in now {
        let value = match before.remove(&name) {
            Some(same) if *same == value => same,
            _ => {
                let value = Arc::new(value);
                changes.push(changed(value.clone()));
                value
            }
        };
        next.insert(name, value);
    }
    changes.extend(before.drain().map(|(name, _)| removed(name)));
    *before = next;
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
        service_account: spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".to_owned()),
        node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or_default(),
        ended: matches!(phase, "Succeeded" | "Failed"),
        labels: object.metadata.labels.clone(),
        annotations: object.metadata.annotations.clone(),
    };
    Some(Fact::Pod(key(&object.reference()), facts))
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
mod tests {
    use tropis_crds::codes;
    use tropis_model::identity::Identity;

    use super::*;

    fn workload(name: &str, node: &str) -> Workload {
        let mut workload = Workload::new(name, name, Identity::new("cluster.local", "ns", "sa"));
        workload.node = node.into();
        workload
    }

    #[test]
    fn only_what_differs_is_a_change() {
        let mut served = Served::default();
        assert_eq!(served.update(vec![workload("a", "1"), workload("b", "1")], Vec::new(), Vec::new()).len(), 2);
        assert_eq!(served.update(vec![workload("b", "1"), workload("a", "1")], Vec::new(), Vec::new()), []);
        let changes = served.update(vec![workload("b", "2")], Vec::new(), Vec::new());
        assert_eq!(changes, [Change::Workload(Arc::new(workload("b", "2"))), Change::RemoveAddress("a".into())]);
    }

    #[test]
    fn a_change_waits_for_quiet_but_not_for_ever() {
        let first = Instant::now();
        let at = |milliseconds| first + Duration::from_millis(milliseconds);
        assert_eq!(Pending { first, last: first }.due(), at(20));
        assert_eq!(Pending { first, last: at(50) }.due(), at(70));
        assert_eq!(Pending { first, last: at(95) }.due(), at(100));
    }

    #[test]
    fn findings_stand_once_each() {
        let findings = Findings::default();
        let finding = |name: &str| Finding::error(codes::UNREADABLE_VALUE, ObjectRef::new(Kind::Service, "ns", name));
        findings.replace(vec![finding("b"), finding("a"), finding("b")]);
        assert_eq!(findings.list().len(), 2);
        findings.replace(vec![finding("a")]);
        assert_eq!(*findings.list(), [finding("a")]);
    }
}
