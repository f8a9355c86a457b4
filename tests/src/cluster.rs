//! The stand-in for the API server and its controllers: completes what the user wrote and keeps `cluster/` true to it.
//!
//! One task owns everything. Each event (an object, a word of a kubelet) changes the state; then the whole wanted content of
//! `cluster/` is computed anew, differences are written, and a [`Snapshot`] tells kubelets, DNS and kube-proxy. Start with
//! [`State::reconcile`].

pub mod ids;
pub mod memory;
pub mod object;
pub mod owned;
pub mod pods;
pub mod render;
pub mod seed;
pub mod services;
pub mod store;
pub mod user;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::network::addresses::AddressPlan;
use crate::progress::Progress;
use memory::Memory;
use object::Key;
use pods::{NodeRecord, PodRecord, PodStatus, Pods};
use render::Assigned;
use services::{ServiceAddresses, ServiceView};
use store::{Content, Store};

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// The user wrote an object, or changed it.
    Applied(Key, Value),
    /// The user took it away.
    Deleted(Key),
    /// A program of the mesh made an object of its own (a waypoint's Deployment), or changed it.
    Owned(Key, Value),
    /// The program took it away.
    Disowned(Key),
    /// The pods of a Deployment are to be replaced one after the other, as by `kubectl rollout restart`.
    Restart(Key),
    /// A Deployment whose maker leaves it open is to have so many replicas, as by `kubectl scale`.
    Scale(Key, u64),
    /// A pod of the harness's own programs.
    Agent(Key, PodRecord),
    /// A kubelet says how a pod is; the text is the pod's uid.
    Status(Key, String, PodStatus),
    /// A kubelet is done with a pod; the text is the pod's uid.
    Gone(Key, String),
}

/// The state of the cluster at a moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Every pod.
    pub pods: Pods,
    /// Every service with addresses or endpoints of ours.
    pub services: Vec<ServiceView>,
    /// Every object that the user wrote or the cluster itself has, but pods and slices.
    pub objects: BTreeMap<Key, Value>,
    /// Their uids.
    pub uids: BTreeMap<Key, String>,
    /// Every node.
    pub nodes: Vec<NodeRecord>,
    /// What keeps an object from having its effect, for people.
    pub problems: BTreeMap<Key, String>,
}

/// Everything that the controllers know.
#[derive(Debug)]
pub struct State {
    plan: AddressPlan,
    nodes: Vec<NodeRecord>,
    /// How node objects show their pod ranges, by node.
    ranges: BTreeMap<String, Vec<String>>,
    system: BTreeMap<Key, Value>,
    user: BTreeMap<Key, Value>,
    owned: owned::Owned,
    assigned: BTreeMap<Key, Assigned>,
    places: ServiceAddresses,
    memory: Memory,
    pods: Pods,
    started: SystemTime,
}

/// Talks to the task that runs the cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    events: mpsc::UnboundedSender<Event>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

impl Cluster {
    /// Starts the task. Changes go to `store`.
    pub fn start(state: State, store: Store, progress: Progress) -> (Self, JoinHandle<()>) {
        let (events, received) = mpsc::unbounded_channel();
        let (publish, snapshot) = watch::channel(Arc::default());
        let task = tokio::spawn(run(state, store, received, publish, progress));
        (Self { events, snapshot }, task)
    }

    /// Tells what happened.
    pub fn tell(&self, event: Event) {
        // The task ends only with the lab; what is told after that matters to nobody.
        let _ = self.events.send(event);
    }

    /// The state now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Hears of each new state.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }
}

async fn run(
    mut state: State,
    mut store: Store,
    mut events: mpsc::UnboundedReceiver<Event>,
    publish: watch::Sender<Arc<Snapshot>>,
    progress: Progress,
) {
    let mut told = BTreeMap::new();
    loop {
        // A step of a rolling change may enable the next one.
        let mut before = state.pods.clone();
        let (wanted, snapshot) = loop {
            let step = state.reconcile(SystemTime::now());
            if state.pods == before {
                break step;
            }
            before = state.pods.clone();
        };
        for (key, problem) in &snapshot.problems {
            if told.get(key) != Some(problem) {
                progress.step(format!("{key}: {problem}"));
            }
        }
        told = snapshot.problems.clone();
        if let Err(error) = state.remember(SystemTime::now()) {
            progress.step(format!("what is assigned cannot be kept for the next run: {error}"));
        }
        if let Err(error) = store.set(wanted) {
            progress.step(format!("cannot write to cluster/: {error}"));
        }
        publish.send_replace(Arc::new(snapshot));
        let Some(event) = events.recv().await else { return };
        state.take_in(event);
        while let Ok(event) = events.try_recv() {
            state.take_in(event);
        }
    }
}

impl State {
    /// A cluster with these nodes and the objects that every cluster has.
    pub fn new(plan: AddressPlan, nodes: Vec<NodeRecord>, ranges: BTreeMap<String, Vec<String>>, now: SystemTime) -> Self {
        let mut state = Self {
            plan,
            nodes,
            ranges,
            system: seed::objects(),
            user: BTreeMap::new(),
            owned: owned::Owned::default(),
            assigned: BTreeMap::new(),
            places: ServiceAddresses::default(),
            memory: Memory::default(),
            pods: Pods::new(),
            started: now,
        };
        // The well-known services come first, at their well-known places.
        for (key, place) in seed::places() {
            state.places.place(&key, Some(place));
        }
        state
    }

    /// The same, with what an earlier run in the same state directory assigned.
    pub fn remembering(mut self, memory: Memory) -> Self {
        self.memory = memory;
        self
    }

    /// Writes down what is assigned, for the next run.
    fn remember(&mut self, now: SystemTime) -> std::io::Result<()> {
        let Self { assigned, places, memory, .. } = self;
        memory.keep(assigned.iter().map(|(key, assigned)| (key, assigned, places.of(key))), now)
    }

    /// Takes an event in.
    pub fn take_in(&mut self, event: Event) {
        match event {
            Event::Owned(key, object) => self.owned.add(key, object),
            Event::Disowned(key) => self.owned.remove(&key),
            Event::Scale(key, replicas) => self.owned.scale(key, replicas),
            Event::Restart(key) => self.owned.restart(key, SystemTime::now()),
            Event::Applied(key, object) => drop(self.user.insert(key, object)),
            Event::Deleted(key) => drop(self.user.remove(&key)),
            Event::Agent(key, record) => drop(self.pods.insert(key, record)),
            Event::Status(key, uid, status) => {
                if let Some(record) = self.pods.get_mut(&key).filter(|record| record.uid == uid) {
                    record.status = status;
                }
            }
            Event::Gone(key, uid) => {
                if self.pods.get(&key).is_some_and(|record| record.uid == uid) {
                    self.pods.remove(&key);
                }
            }
        }
    }

    /// One step towards what the user asked for: what `cluster/` must hold now, and the state for everybody else.
    pub fn reconcile(&mut self, now: SystemTime) -> (BTreeMap<Key, Content>, Snapshot) {
        let mut objects = self.system.clone();
        objects.extend(self.owned.objects());
        // What the user wrote wins over what a program made under the same name.
        objects.extend(self.user.iter().map(|(key, object)| (key.clone(), object.clone())));
        self.owned.adjust(&mut objects);
        self.add_what_namespaces_need(&mut objects);
        self.assigned.retain(|key, _| objects.contains_key(key));
        for key in objects.keys() {
            if self.assigned.contains_key(key) {
                continue;
            }
            let (assigned, place) = self.memory.recall(key).unwrap_or_else(|| (Assigned { uid: ids::random_uid(), created: now }, None));
            if place.is_some() {
                self.places.place(key, place);
            }
            self.assigned.insert(key.clone(), assigned);
        }
        let problems = self.reconcile_pods(&objects, now);
        self.places.keep(|key| objects.contains_key(key));
        let services: Vec<ServiceView> = objects
            .iter()
            .filter(|(key, _)| key.kind == "Service")
            .filter_map(|(key, service)| services::view(key, service, &mut self.places, self.plan, &self.pods))
            .collect();
        let wanted = self.render(&objects, &services);
        let uids = self.assigned.iter().map(|(key, assigned)| (key.clone(), assigned.uid.clone())).collect();
        objects.retain(|key, _| key.kind != "Pod");
        (wanted, Snapshot { pods: self.pods.clone(), services, objects, uids, nodes: self.nodes.clone(), problems })
    }

    /// Namespaces that objects name, and the default account of each namespace.
    fn add_what_namespaces_need(&self, objects: &mut BTreeMap<Key, Value>) {
        let named: BTreeSet<String> = objects
            .keys()
            .map(|key| if key.kind == "Namespace" { key.name.clone() } else { key.namespace.clone() })
            .filter(|namespace| !namespace.is_empty())
            .collect();
        for namespace in named {
            let key = Key::new("Namespace", "", &namespace);
            objects.entry(key).or_insert_with(|| seed::namespace(&namespace));
            let account = Key::new("ServiceAccount", &namespace, pods::DEFAULT_SERVICE_ACCOUNT);
            objects.entry(account).or_insert_with(|| seed::service_account(&namespace, pods::DEFAULT_SERVICE_ACCOUNT));
        }
    }

    fn reconcile_pods(&mut self, objects: &BTreeMap<Key, Value>, now: SystemTime) -> BTreeMap<Key, String> {
        let mut problems = BTreeMap::new();
        let of_kind = |kind: &str| -> BTreeMap<Key, Value> {
            objects.iter().filter(|(key, _)| key.kind == kind).map(|(key, object)| (key.clone(), object.clone())).collect()
        };
        let (deployments, bare) = (of_kind("Deployment"), of_kind("Pod"));
        let lacks_account = |key: &Key, spec: &Value| {
            let account = pods::service_account(spec);
            let exists = objects.contains_key(&Key::new("ServiceAccount", &key.namespace, account));
            (!exists).then(|| format!("there is no service account {}/{account}, so none of its pods can be made", key.namespace))
        };
        for (key, deployment) in &deployments {
            match lacks_account(key, &deployment["spec"]["template"]["spec"]) {
                Some(problem) => drop(problems.insert(key.clone(), problem)),
                None => pods::reconcile_deployment(&mut self.pods, key, deployment, now),
            }
        }
        for (key, pod) in &bare {
            match lacks_account(key, &pod["spec"]) {
                Some(problem) => drop(problems.insert(key.clone(), problem)),
                None => pods::reconcile_bare(&mut self.pods, key, pod, now),
            }
        }
        pods::delete_orphans(&mut self.pods, &deployments, now);
        pods::delete_bare(&mut self.pods, &bare, now);
        pods::schedule(&mut self.pods, &self.nodes);
        // No kubelet ever saw these.
        self.pods.retain(|_, record| record.deleting.is_none() || record.node.is_some());
        for (key, record) in &self.pods {
            if let Some(message) = &record.status.message {
                problems.insert(key.clone(), message.clone());
            }
        }
        problems
    }

    fn render(&self, objects: &BTreeMap<Key, Value>, services: &[ServiceView]) -> BTreeMap<Key, Content> {
        let mut wanted = BTreeMap::new();
        for (key, object) in objects.iter().filter(|(key, _)| key.kind != "Pod") {
            let mut fields = render::assigned(key, object, &self.assigned[key]);
            if let Some(service) = services.iter().find(|service| service.key == *key) {
                render::service_fields(&mut fields, service);
            }
            if key.kind == "Deployment" {
                fields["status"] = owned::deployment_status(key, object, &self.pods);
            }
            let content = if self.user.contains_key(key) || self.owned.contains(key) {
                Content::Assigned(fields)
            } else {
                let mut whole = object.clone();
                merge(&mut whole, fields);
                Content::Whole(whole)
            };
            wanted.insert(key.clone(), content);
        }
        for record in &self.nodes {
            let ranges = self.ranges.get(&record.name).map(Vec::as_slice).unwrap_or_default();
            wanted.insert(Key::new("Node", "", &record.name), Content::Whole(render::node(record, self.started, ranges)));
        }
        for (key, record) in &self.pods {
            // The user's own pod is the user's until they take it away; then it is ours until its processes are gone.
            let content = match self.user.contains_key(key) && record.deleting.is_none() {
                true => Content::Assigned(render::pod_assigned(key, record)),
                false => Content::Whole(render::pod(key, record)),
            };
            wanted.insert(key.clone(), content);
        }
        let zones = self.zones();
        let slices = services.iter().flat_map(|service| render::endpoint_slices(service, &zones));
        wanted.extend(slices.map(|(key, slice)| (key, Content::Whole(slice))));
        wanted
    }

    fn zones(&self) -> BTreeMap<String, String> {
        let zone = |node: &NodeRecord| Some((node.name.clone(), node.labels.get("topology.kubernetes.io/zone")?.clone()));
        self.nodes.iter().filter_map(zone).collect()
    }
}

/// Lays `above` over `below`, map by map; lists and values are replaced.
fn merge(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                merge(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

#[cfg(test)]
mod tests;
