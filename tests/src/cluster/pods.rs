//! Which pods there are: those of Deployments (with rolling restart), bare ones, and the agents' own; and on which node each runs.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::ids;
use super::object::{Key, strings};
use crate::network::addresses::AddressPair;

/// Everything that is known about a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct PodRecord {
    /// Why it exists.
    pub origin: Origin,
    /// Its uid.
    pub uid: String,
    /// When it was made.
    pub created: SystemTime,
    /// `metadata` and `spec` as asked for, without what is recorded here beside it.
    pub template: Value,
    /// The node that it is bound to.
    pub node: Option<String>,
    /// What the kubelet says.
    pub status: PodStatus,
    /// Since when it is on its way out.
    pub deleting: Option<SystemTime>,
}

/// Why a pod exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The user wrote it.
    Bare,
    /// A Deployment wants it.
    Deployment {
        /// The Deployment's name, in the pod's namespace.
        name: String,
        /// The Deployment's ReplicaSet for this template.
        replica_set: String,
        /// That ReplicaSet's uid.
        replica_set_uid: String,
    },
    /// A program that the harness itself starts on a node's network.
    Agent {
        /// The owning DaemonSet or ReplicaSet.
        owner_kind: &'static str,
        /// Its name.
        owner: String,
    },
}

/// What the kubelet knows of a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded` or `Failed`.
    pub phase: Phase,
    /// Its addresses, once it has a network.
    pub addresses: Option<AddressPair>,
    /// The address of its node.
    pub host: Option<AddressPair>,
    /// Since when it runs.
    pub started: Option<SystemTime>,
    /// Its containers.
    pub containers: Vec<ContainerStatus>,
    /// Why it does not get further, for people.
    pub message: Option<String>,
}

impl PodStatus {
    /// Whether traffic may be sent to it.
    pub fn ready(&self) -> bool {
        self.phase == Phase::Running && !self.containers.is_empty() && self.containers.iter().all(|container| container.ready)
    }
}

/// `status.phase`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not every container runs yet.
    #[default]
    Pending,
    /// Every container was started.
    Running,
    /// Every container ended well and none is started again.
    Succeeded,
    /// Every container ended, one of them badly, and none is started again.
    Failed,
}

/// What the kubelet knows of a container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// Whether every port that it declares is in LISTEN.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// What it does now.
    pub state: ContainerState,
}

/// What a container does now.
#[derive(Debug, Clone, PartialEq)]
pub enum ContainerState {
    /// Not started, or about to be started again.
    Waiting {
        /// One word.
        reason: String,
        /// More words.
        message: String,
    },
    /// Runs.
    Running(SystemTime),
    /// Ended for good.
    Terminated(i32),
}

/// A node as the scheduler sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeRecord {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    pub addresses: AddressPair,
    /// Whether pods of users are put here; not on the control plane's.
    pub schedulable: bool,
}

/// Every pod by key.
pub type Pods = BTreeMap<Key, PodRecord>;

/// The account of a pod that names none.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// The account that a pod of this `spec` runs as; `Object::pod_service_account` for what no object is made of yet.
pub fn service_account(spec: &Value) -> &str {
    let written = ["serviceAccountName", "serviceAccount"].into_iter().filter_map(|field| spec[field].as_str());
    written.into_iter().find(|name| !name.is_empty()).unwrap_or(DEFAULT_SERVICE_ACCOUNT)
}

/// What a Deployment asks for, as far as the harness obeys it.
pub(super) struct Wanted<'a> {
    pub(super) replicas: usize,
    surge: usize,
    unavailable: usize,
    template: &'a Value,
    pub(super) hash: String,
}

/// Brings the pods of one Deployment nearer to what it asks for: one step of a rolling change.
pub fn reconcile_deployment(pods: &mut Pods, key: &Key, deployment: &Value, now: SystemTime) {
    let wanted = wanted(deployment);
    let replica_set = format!("{}-{}", key.name, wanted.hash);
    let mut current = Vec::new();
    let mut old = Vec::new();
    for (pod, record) in pods.iter().filter(|(pod, _)| pod.namespace == key.namespace) {
        match &record.origin {
            Origin::Deployment { name, .. } if *name != key.name => {}
            Origin::Deployment { .. } if record.deleting.is_some() => {}
            Origin::Deployment { replica_set: set, .. } if *set == replica_set => current.push((pod.clone(), record.status.ready())),
            Origin::Deployment { .. } => old.push((pod.clone(), record.status.ready())),
            Origin::Bare | Origin::Agent { .. } => {}
        }
    }
    let room = (wanted.replicas + wanted.surge).saturating_sub(current.len() + old.len());
    let missing = wanted.replicas.saturating_sub(current.len());
    let uid = replica_set_uid(pods, &key.namespace, &replica_set);
    for _ in 0..room.min(missing) {
        let (pod, record) = new_pod(key, &replica_set, &uid, &wanted, now);
        pods.insert(pod, record);
    }
    // Old pods go as the new ones become ready; what is not ready itself is no loss.
    let ready = current.iter().chain(&old).filter(|(_, ready)| *ready).count();
    let mut spare = ready.saturating_sub(wanted.replicas.saturating_sub(wanted.unavailable));
    old.sort_by_key(|(_, ready)| *ready);
    for (pod, ready) in &old {
        if *ready && spare == 0 {
            continue;
        }
        spare -= usize::from(*ready);
        mark_deleting(pods, pod, now);
    }
    if old.is_empty() {
        current.sort_by_key(|(_, ready)| *ready);
        let surplus = current.len().saturating_sub(wanted.replicas);
        for (pod, _) in &current[..surplus] {
            mark_deleting(pods, pod, now);
        }
    }
}

/// Marks the pods of Deployments that are gone, in `namespace`-and-name order.
pub fn delete_orphans(pods: &mut Pods, deployments: &BTreeMap<Key, Value>, now: SystemTime) {
    for (pod, record) in pods.iter_mut() {
        let Origin::Deployment { name, .. } = &record.origin else { continue };
        if !deployments.contains_key(&Key::new("Deployment", &pod.namespace, name)) {
            record.deleting.get_or_insert(now);
        }
    }
}

/// Takes in a bare pod as the user wrote it. Of one that exists, only labels and annotations may change, as in Kubernetes.
pub fn reconcile_bare(pods: &mut Pods, key: &Key, object: &Value, now: SystemTime) {
    let template = json!({ "metadata": object["metadata"], "spec": object["spec"] });
    match pods.get_mut(key) {
        None => {
            let node = object["spec"]["nodeName"].as_str().map(str::to_owned);
            let record = PodRecord {
                origin: Origin::Bare,
                uid: ids::random_uid(),
                created: now,
                template,
                node,
                status: PodStatus::default(),
                deleting: None,
            };
            pods.insert(key.clone(), record);
        }
        Some(record) if record.origin == Origin::Bare && record.deleting.is_none() => {
            record.template["metadata"] = template["metadata"].clone();
        }
        // The one before it is still on its way out: this one is made when it has gone.
        Some(_) => {}
    }
}

/// Marks the bare pods that the user took away.
pub fn delete_bare(pods: &mut Pods, wanted: &BTreeMap<Key, Value>, now: SystemTime) {
    for (pod, record) in pods.iter_mut() {
        if record.origin == Origin::Bare && !wanted.contains_key(pod) {
            record.deleting.get_or_insert(now);
        }
    }
}

/// Binds every pod without a node to one: where its selector points, else where fewest pods of its kind are.
pub fn schedule(pods: &mut Pods, nodes: &[NodeRecord]) {
    let unbound: Vec<Key> = pods.iter().filter(|(_, record)| record.node.is_none()).map(|(key, _)| key.clone()).collect();
    for key in unbound {
        let record = &pods[&key];
        let named = record.template["spec"]["nodeName"].as_str();
        let selector = strings(&record.template, "/spec/nodeSelector");
        let owner = owner_of(&key, record);
        let crowd = |node: &NodeRecord| {
            let here = pods.iter().filter(|(_, other)| other.node.as_deref() == Some(&node.name) && other.deleting.is_none());
            let (mut same, mut all) = (0, 0);
            for (other, record) in here {
                all += 1;
                same += usize::from(owner_of(other, record) == owner);
            }
            (same, all)
        };
        let chosen = match named {
            Some(name) => nodes.iter().find(|node| node.name == name),
            None => nodes
                .iter()
                .filter(|node| node.schedulable && selector.iter().all(|(label, value)| node.labels.get(label) == Some(value)))
                .min_by_key(|node| crowd(node)),
        };
        let reason = match (chosen, named) {
            (Some(_), _) => None,
            (None, Some(name)) => Some(format!("there is no node {name}")),
            (None, None) => Some(format!("no node has the labels of its nodeSelector {selector:?}")),
        };
        let chosen = chosen.map(|node| node.name.clone());
        let record = pods.get_mut(&key).expect("taken from it above");
        record.status.message = reason;
        record.node = chosen;
    }
}

fn owner_of(key: &Key, record: &PodRecord) -> (String, String) {
    let name = match &record.origin {
        Origin::Deployment { name, .. } => name.clone(),
        Origin::Bare => key.name.clone(),
        Origin::Agent { owner, .. } => owner.clone(),
    };
    (key.namespace.clone(), name)
}

fn mark_deleting(pods: &mut Pods, key: &Key, now: SystemTime) {
    if let Some(record) = pods.get_mut(key) {
        record.deleting.get_or_insert(now);
    }
}

pub(super) fn wanted(deployment: &Value) -> Wanted<'_> {
    let spec = &deployment["spec"];
    let replicas = spec["replicas"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(1);
    let rolling = &spec["strategy"]["rollingUpdate"];
    let recreate = spec["strategy"]["type"] == "Recreate";
    // Kubernetes' defaults: a quarter more (rounded up), a quarter less (rounded down).
    let surge = share(&rolling["maxSurge"], replicas, true).unwrap_or(replicas.div_ceil(4));
    let unavailable = share(&rolling["maxUnavailable"], replicas, false).unwrap_or(replicas / 4);
    let (surge, unavailable) = match (recreate, surge, unavailable) {
        (true, ..) => (0, replicas),
        // Neither more nor less would never get anywhere.
        (false, 0, 0) => (0, 1),
        (false, surge, unavailable) => (surge, unavailable),
    };
    Wanted { replicas, surge, unavailable, template: &spec["template"], hash: ids::template_hash(&spec["template"]) }
}

/// A count or a percentage of `replicas`.
fn share(value: &Value, replicas: usize, round_up: bool) -> Option<usize> {
    if let Some(count) = value.as_u64() {
        return usize::try_from(count).ok();
    }
    let percent: usize = value.as_str()?.strip_suffix('%')?.parse().ok()?;
    Some(if round_up { (replicas * percent).div_ceil(100) } else { replicas * percent / 100 })
}

fn replica_set_uid(pods: &Pods, namespace: &str, set: &str) -> String {
    let known = pods.iter().filter(|(key, _)| key.namespace == namespace).find_map(|(_, record)| match &record.origin {
        Origin::Deployment { replica_set, replica_set_uid, .. } if replica_set == set => Some(replica_set_uid.clone()),
        _ => None,
    });
    known.unwrap_or_else(ids::random_uid)
}

fn new_pod(key: &Key, replica_set: &str, uid: &str, wanted: &Wanted<'_>, now: SystemTime) -> (Key, PodRecord) {
    let mut template = json!({ "metadata": {}, "spec": wanted.template["spec"] });
    for field in ["labels", "annotations"] {
        if let Some(entries) = wanted.template["metadata"].get(field) {
            template["metadata"][field] = entries.clone();
        }
    }
    template["metadata"]["labels"]["pod-template-hash"] = json!(wanted.hash);
    let origin = Origin::Deployment { name: key.name.clone(), replica_set: replica_set.to_owned(), replica_set_uid: uid.to_owned() };
    let record =
        PodRecord { origin, uid: ids::random_uid(), created: now, template, node: None, status: PodStatus::default(), deleting: None };
    (Key::pod(&key.namespace, &format!("{replica_set}-{}", ids::suffix())), record)
}

#[cfg(test)]
mod tests;
