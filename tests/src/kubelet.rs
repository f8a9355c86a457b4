//! The stand-in for the kubelets: turns pods that are bound to a node into processes, and says how they are.
//!
//! A task a pod ([`run_pod`]) gives it a network, files and processes, restarts what ends, looks which ports are in LISTEN, and takes
//! everything away at the end. Its processes are in `container`, names of images in [`images`], its files in [`volumes`].

pub mod admin;
mod container;
pub mod images;
pub mod readiness;
pub mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tropis_crds::Finding;

use crate::cgroup::{self, Groups};
use crate::cluster::object::Key;
use crate::cluster::pods::{ContainerState, ContainerStatus, Phase, PodRecord, PodStatus};
use crate::cluster::render::grace_seconds;
use crate::cluster::{Cluster, Event, Snapshot, seed};
use crate::layout::Layout;
use crate::network::namespace::NAMESPACES;
use crate::network::{Network, PodNetwork};
use crate::process::Sandbox;
use crate::progress::Progress;
use crate::sockets;
use crate::token_files::TokenFile;
use crate::tokens::TokenIssuer;
use container::Container;
use images::Images;
use readiness::Probe;

/// How often a pod is looked at while it is not ready, and while it is.
const LOOK: [Duration; 2] = [Duration::from_millis(40), Duration::from_millis(500)];
/// How long until a pod that could not be set up is tried again.
const SET_UP_AGAIN: Duration = Duration::from_millis(500);

/// What every kubelet of the run works with.
#[derive(Debug)]
pub struct Kubelet {
    /// The wires.
    pub network: Arc<Network>,
    /// Control groups.
    pub groups: Groups,
    /// Files of the run.
    pub layout: Layout,
    /// Image names.
    pub images: Images,
    /// Service account tokens.
    pub tokens: Arc<TokenIssuer>,
    /// Where pods are read from and reported to.
    pub cluster: Cluster,
    /// What people hear.
    pub progress: Progress,
    /// Pods that run here, for whoever wants to enter one.
    pub running: watch::Sender<BTreeMap<Key, Arc<RunningPod>>>,
}

/// A pod with its network and its group.
#[derive(Debug)]
pub struct RunningPod {
    /// Which.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// Its node.
    pub node: String,
    /// Its network namespace and addresses.
    pub network: PodNetwork,
    /// Where its processes run.
    pub group: PathBuf,
    /// What its processes see.
    pub sandbox: Sandbox,
    /// The environment that every process of it has.
    pub environment: Vec<(String, String)>,
}

/// A pod could not be set up; it is tried again.
#[derive(Debug, thiserror::Error)]
enum SetUpError {
    #[error("network")]
    Network(#[from] crate::network::NetworkError),
    #[error("files")]
    Volumes(#[source] volumes::VolumeError),
    #[error("{0}")]
    Refused(Box<Finding>),
    #[error("control group")]
    Group(#[from] std::io::Error),
}

impl Kubelet {
    /// Runs pods as the cluster binds them, until the lab ends.
    pub fn start(self: Arc<Self>) -> JoinHandle<()> {
        let mut snapshots = self.cluster.watch();
        tokio::spawn(async move {
            let mut tasks: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
            loop {
                let snapshot = snapshots.borrow_and_update().clone();
                tasks.retain(|_, task| !task.is_finished());
                for (key, record) in &snapshot.pods {
                    let ours = record.node.as_ref().is_some_and(|node| self.network.nodes.contains_key(node));
                    if ours && !is_agent(record) && !tasks.contains_key(&record.uid) {
                        let task = run_pod(self.clone(), key.clone(), record.clone(), self.cluster.watch());
                        tasks.insert(record.uid.clone(), tokio::spawn(task));
                    }
                }
                if snapshots.changed().await.is_err() {
                    return;
                }
            }
        })
    }
}

fn is_agent(record: &PodRecord) -> bool {
    matches!(record.origin, crate::cluster::pods::Origin::Agent { .. })
}

/// The life of a pod, from its network to its removal.
async fn run_pod(kubelet: Arc<Kubelet>, key: Key, record: PodRecord, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut status = PodStatus { phase: Phase::Pending, started: Some(SystemTime::now()), ..PodStatus::default() };
    let (pod, mut tokens) = loop {
        if leaving(&snapshots, &key, &record.uid).is_some() {
            kubelet.cluster.tell(Event::Gone(key, record.uid));
            return;
        }
        let (setting_up, for_key, for_record) = (kubelet.clone(), key.clone(), record.clone());
        match tokio::task::spawn_blocking(move || set_up(&setting_up, &for_key, &for_record)).await {
            Ok(Ok((pod, tokens))) => break (Arc::new(pod), tokens),
            Ok(Err(SetUpError::Refused(finding))) => status.message = Some(finding.to_string()),
            Ok(Err(error)) => status.message = Some(format!("cannot be set up: {}", chain(&error))),
            Err(_) => return,
        }
        kubelet.cluster.tell(Event::Status(key.clone(), record.uid.clone(), status.clone()));
        tokio::time::sleep(SET_UP_AGAIN).await;
    };
    status.message = None;
    status.addresses = Some(pod.network.addresses);
    status.host = kubelet.network.node(&pod.node).ok().map(|node| node.addresses);
    kubelet.running.send_modify(|running| drop(running.insert(key.clone(), pod.clone())));

    // Ends with the pod.
    let _admin = admin::publish(&kubelet, &pod, &record.template);
    let mut containers: Vec<Container> =
        spec_containers(&record.template).enumerate().map(|(index, spec)| Container::new(&kubelet, &pod, index, spec)).collect();
    let mut reported = None;
    let grace = loop {
        let always = record.template["spec"]["restartPolicy"].as_str().unwrap_or("Always").to_owned();
        let listening = sockets::listening(&pod.network.namespace);
        let passed = ask(&pod, &containers).await;
        for container in &mut containers {
            container.step(&pod, &always, &listening, &passed);
        }
        status.containers = containers.iter().map(|container| container.status.clone()).collect();
        status.phase = phase(&status.containers);
        if reported.as_ref() != Some(&status) {
            kubelet.cluster.tell(Event::Status(key.clone(), record.uid.clone(), status.clone()));
            reported = Some(status.clone());
        }
        if let Err(error) = volumes::refresh_tokens(&kubelet, &pod.key, &record, &mut tokens) {
            kubelet.progress.step(format!("{key}: {}", chain(&error)));
        }
        if let Some(grace) = leaving(&snapshots, &key, &record.uid) {
            break grace;
        }
        let look = LOOK[usize::from(status.ready())];
        let ended =
            futures_util::future::select_all(containers.iter().map(Container::ended).chain([Box::pin(std::future::pending()) as _]));
        tokio::select! {
            () = tokio::time::sleep(look) => {}
            _ = ended => {}
            changed = snapshots.changed() => if changed.is_err() { return },
        }
    };
    take_down(&kubelet, &pod, &containers, grace).await;
    kubelet.running.send_modify(|running| drop(running.remove(&key)));
    kubelet.cluster.tell(Event::Gone(key, record.uid));
}

/// Asks the containers that have a probe; gives those probes that pass.
async fn ask(pod: &Arc<RunningPod>, containers: &[Container]) -> BTreeSet<Probe> {
    let probes: Vec<Probe> = containers.iter().filter_map(Container::probe).collect();
    if probes.is_empty() {
        return BTreeSet::new();
    }
    let pod = pod.clone();
    let asked = tokio::task::spawn_blocking(move || probes.into_iter().filter(|probe| probe.passes(&pod.network.namespace)).collect());
    asked.await.unwrap_or_default()
}

/// The grace of a pod on its way out; `None` while it stays.
fn leaving(snapshots: &watch::Receiver<Arc<Snapshot>>, key: &Key, uid: &str) -> Option<Duration> {
    match snapshots.borrow().pods.get(key) {
        Some(record) if record.uid == uid => record.deleting.map(|_| Duration::from_secs(grace_seconds(&record.template))),
        _ => Some(Duration::ZERO),
    }
}

/// Files, group and network of a pod; and its tokens, to be kept fresh. Blocks.
fn set_up(kubelet: &Kubelet, key: &Key, record: &PodRecord) -> Result<(RunningPod, Vec<TokenFile>), SetUpError> {
    let (binds, tokens) = volumes::create(kubelet, key, record).map_err(|error| match error {
        volumes::VolumeError::Refused(finding) => SetUpError::Refused(finding),
        error => SetUpError::Volumes(error),
    })?;
    let node = record.node.clone().unwrap_or_default();
    let group = kubelet.groups.pod(&node, &record.uid);
    cgroup::create(&group)?;
    let network = kubelet.network.add_pod(&node, &key.name, &record.uid[..8])?;
    let sandbox = Sandbox {
        hostname: record.template["spec"]["hostname"].as_str().unwrap_or(&key.name).chars().take(63).collect(),
        binds,
        hidden: vec![kubelet.layout.state().to_path_buf(), PathBuf::from(NAMESPACES)],
    };
    let environment = vec![
        ("PATH".to_owned(), format!("{}:/usr/local/bin:/usr/bin:/bin", kubelet.images.folder().display())),
        ("HOSTNAME".to_owned(), sandbox.hostname.clone()),
        ("HOME".to_owned(), "/tmp".to_owned()),
        // As the kubelet does; nobody answers there.
        ("KUBERNETES_SERVICE_HOST".to_owned(), kubelet.network.plan.service(seed::KUBERNETES_SERVICE).v4.to_string()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), "443".to_owned()),
    ];
    Ok((RunningPod { key: key.clone(), uid: record.uid.clone(), node, network, group, sandbox, environment }, tokens))
}

async fn take_down(kubelet: &Arc<Kubelet>, pod: &Arc<RunningPod>, containers: &[Container], grace: Duration) {
    for process in containers.iter().filter_map(|container| container.process.as_ref()) {
        let _ = process.signal(Signal::SIGTERM);
    }
    let ended = futures_util::future::join_all(containers.iter().map(Container::ended));
    let _ = tokio::time::timeout(grace, ended).await;
    let (taking_down, gone) = (kubelet.clone(), pod.clone());
    let work = move || {
        if let Err(error) = cgroup::remove(&gone.group) {
            taking_down.progress.step(format!("{}: {error}", gone.key));
        }
        if let Err(error) = taking_down.network.remove_pod(&gone.network) {
            taking_down.progress.step(format!("{}: {error}", gone.key));
        }
        volumes::remove(&taking_down.layout, &gone.uid);
    };
    let _ = tokio::task::spawn_blocking(work).await;
}

fn spec_containers(template: &Value) -> impl Iterator<Item = &Value> {
    template["spec"]["containers"].as_array().into_iter().flatten()
}

fn phase(containers: &[ContainerStatus]) -> Phase {
    let ended = |container: &ContainerStatus| match container.state {
        ContainerState::Terminated(code) => Some(code),
        ContainerState::Waiting { .. } | ContainerState::Running(_) => None,
    };
    let codes: Vec<_> = containers.iter().filter_map(ended).collect();
    if !codes.is_empty() && codes.len() == containers.len() {
        return if codes.iter().all(|code| *code == 0) { Phase::Succeeded } else { Phase::Failed };
    }
    let started = |container: &ContainerStatus| container.restarts > 0 || !matches!(container.state, ContainerState::Waiting { .. });
    if containers.iter().all(started) { Phase::Running } else { Phase::Pending }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(state: ContainerState) -> ContainerStatus {
        ContainerStatus { name: "c".into(), image: "i".into(), ready: false, restarts: 0, state }
    }

    #[test]
    fn the_phase_follows_the_containers() {
        let running = container(ContainerState::Running(SystemTime::UNIX_EPOCH));
        let waiting = container(ContainerState::Waiting { reason: String::new(), message: String::new() });
        let ended = |code| container(ContainerState::Terminated(code));
        assert_eq!(phase(&[running.clone(), waiting.clone()]), Phase::Pending);
        assert_eq!(phase(std::slice::from_ref(&running)), Phase::Running);
        assert_eq!(phase(&[ContainerStatus { restarts: 1, ..waiting }]), Phase::Running, "it ran already");
        assert_eq!(phase(&[ended(0)]), Phase::Succeeded);
        assert_eq!(phase(&[ended(0), ended(3)]), Phase::Failed);
        assert_eq!(phase(&[ended(0), running]), Phase::Running);
    }
}
