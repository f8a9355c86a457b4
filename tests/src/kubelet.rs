//! The stand-in for the kubelets: turns pods that are bound to a node into processes, and says how they are.
//!
//! A task a pod ([`run_pod`]) gives it a network, files and processes, restarts what ends, looks which ports are in LISTEN, and takes
//! everything away at the end. Names of images are resolved in [`images`], files of pods are made in [`volumes`].

pub mod images;
pub mod readiness;
pub mod volumes;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tropis_crds::{Kind, ObjectRef};

use crate::cgroup::{self, Groups};
use crate::cluster::object::Key;
use crate::cluster::pods::{ContainerState, ContainerStatus, Phase, PodRecord, PodStatus};
use crate::cluster::render::grace_seconds;
use crate::cluster::{Cluster, Event, Snapshot};
use crate::layout::Layout;
use crate::network::addresses::AddressPair;
use crate::network::namespace::NAMESPACES;
use crate::network::{Network, PodNetwork};
use crate::process::{self, Launch, Output, Process, Sandbox, User};
use crate::progress::Progress;
use crate::tokens::TokenIssuer;
use images::Images;

/// How often a pod is looked at while it is not ready, and while it is.
const LOOK: [Duration; 2] = [Duration::from_millis(40), Duration::from_millis(500)];
/// The first wait before a container is started again; doubles up to the last.
const BACKOFF: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];
/// A container that ran so long starts again without a longer wait.
const BACKOFF_FORGOTTEN: Duration = Duration::from_secs(60);
/// Tokens are renewed this often; their shortest lifetime is ten minutes (Kubernetes' own limit).
const TOKEN_RENEWAL: Duration = Duration::from_secs(8 * 60);

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
    pub tokens: TokenIssuer,
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
    Volumes(#[from] volumes::VolumeError),
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
    let pod = loop {
        if leaving(&snapshots, &key, &record.uid).is_some() {
            kubelet.cluster.tell(Event::Gone(key, record.uid));
            return;
        }
        let (setting_up, for_key, for_record) = (kubelet.clone(), key.clone(), record.clone());
        match tokio::task::spawn_blocking(move || set_up(&setting_up, &for_key, &for_record)).await {
            Ok(Ok(pod)) => break Arc::new(pod),
            Ok(Err(error)) => status.message = Some(format!("cannot be set up: {}", chain(&error))),
            Err(_) => return,
        }
        kubelet.cluster.tell(Event::Status(key.clone(), record.uid.clone(), status.clone()));
        tokio::time::sleep(BACKOFF[0]).await;
    };
    status.message = None;
    status.addresses = Some(pod.network.addresses);
    status.host = kubelet.network.node(&pod.node).ok().map(|node| node.addresses);
    kubelet.running.send_modify(|running| drop(running.insert(key.clone(), pod.clone())));

    let mut containers: Vec<Container> =
        spec_containers(&record.template).enumerate().map(|(index, spec)| Container::new(&kubelet, &pod, index, spec)).collect();
    let mut reported = None;
    let mut tokens_renewed = Instant::now();
    let grace = loop {
        let always = record.template["spec"]["restartPolicy"].as_str().unwrap_or("Always").to_owned();
        let listening = readiness::listening(&pod.network.namespace);
        for container in &mut containers {
            container.step(&pod, &always, &listening);
        }
        status.containers = containers.iter().map(|container| container.status.clone()).collect();
        status.phase = phase(&status.containers);
        if reported.as_ref() != Some(&status) {
            kubelet.cluster.tell(Event::Status(key.clone(), record.uid.clone(), status.clone()));
            reported = Some(status.clone());
        }
        if tokens_renewed.elapsed() > TOKEN_RENEWAL {
            tokens_renewed = Instant::now();
            if let Err(error) = volumes::write_tokens(&kubelet, &pod.key, &record) {
                kubelet.progress.step(format!("{key}: {error}"));
            }
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

/// The grace of a pod on its way out; `None` while it stays.
fn leaving(snapshots: &watch::Receiver<Arc<Snapshot>>, key: &Key, uid: &str) -> Option<Duration> {
    match snapshots.borrow().pods.get(key) {
        Some(record) if record.uid == uid => record.deleting.map(|_| Duration::from_secs(grace_seconds(&record.template))),
        _ => Some(Duration::ZERO),
    }
}

/// Network, group and files of a pod. Blocks.
fn set_up(kubelet: &Kubelet, key: &Key, record: &PodRecord) -> Result<RunningPod, SetUpError> {
    let node = record.node.clone().unwrap_or_default();
    let group = kubelet.groups.pod(&node, &record.uid);
    cgroup::create(&group)?;
    let network = kubelet.network.add_pod(&node, &key.name, &record.uid[..8])?;
    let binds = volumes::create(kubelet, key, record)?;
    let sandbox = Sandbox {
        hostname: record.template["spec"]["hostname"].as_str().unwrap_or(&key.name).chars().take(63).collect(),
        binds,
        hidden: vec![kubelet.layout.state().to_path_buf(), PathBuf::from(NAMESPACES)],
    };
    let environment = vec![
        ("PATH".to_owned(), format!("{}:/usr/local/bin:/usr/bin:/bin", kubelet.images.folder().display())),
        ("HOSTNAME".to_owned(), sandbox.hostname.clone()),
        ("HOME".to_owned(), "/tmp".to_owned()),
    ];
    Ok(RunningPod { key: key.clone(), uid: record.uid.clone(), node, network, group, sandbox, environment })
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

/// A container of a pod and its process.
struct Container {
    status: ContainerStatus,
    launch: Option<Launch>,
    ports: Vec<u16>,
    process: Option<Process>,
    started: Instant,
    /// Not before.
    again: Instant,
    backoff: Duration,
}

impl Container {
    fn new(kubelet: &Kubelet, pod: &RunningPod, index: usize, spec: &Value) -> Self {
        let image = spec["image"].as_str().unwrap_or_default().to_owned();
        let name = spec["name"].as_str().unwrap_or_default().to_owned();
        let ports = spec["ports"].as_array().into_iter().flatten();
        let tcp = ports.filter(|port| port["protocol"].as_str().unwrap_or("TCP") == "TCP");
        let waiting = |reason: &str, message: String| ContainerState::Waiting { reason: reason.to_owned(), message };
        let (launch, state) = match kubelet.images.resolve(&image, spec) {
            Ok(entry) => (Some(launch(kubelet, pod, spec, &name, entry)), waiting("ContainerCreating", String::new())),
            Err(unknown) => {
                let object = ObjectRef::new(Kind::Pod, &*pod.key.namespace, &*pod.key.name);
                let finding = unknown.finding(object, index).to_string();
                kubelet.progress.step(&finding);
                (None, waiting("ErrImagePull", finding))
            }
        };
        Self {
            status: ContainerStatus { name, image, ready: false, restarts: 0, state },
            launch,
            ports: tcp.filter_map(|port| u16::try_from(port["containerPort"].as_u64()?).ok()).collect(),
            process: None,
            started: Instant::now(),
            again: Instant::now(),
            backoff: BACKOFF[0],
        }
    }

    /// Starts it if it is time, notices its end, and says whether it is ready.
    fn step(&mut self, pod: &RunningPod, policy: &str, listening: &readiness::Listening) {
        if let Some(status) = self.process.as_ref().and_then(Process::status) {
            self.process = None;
            self.status.ready = false;
            let code = status.code().unwrap_or(137);
            if policy == "Never" || (policy == "OnFailure" && status.success()) {
                self.launch = None;
                self.status.state = ContainerState::Terminated(code);
            } else {
                if self.started.elapsed() > BACKOFF_FORGOTTEN {
                    self.backoff = BACKOFF[0];
                }
                self.again = Instant::now() + self.backoff;
                self.backoff = (self.backoff * 2).min(BACKOFF[1]);
                self.status.restarts += 1;
                self.status.state = ContainerState::Waiting { reason: "CrashLoopBackOff".into(), message: format!("it ended: {status}") };
            }
        }
        if self.process.is_none() && Instant::now() >= self.again {
            self.launch_now(pod);
        }
        // A container without ports has nothing to wait for.
        self.status.ready = self.process.is_some() && self.ports.iter().all(|port| listening.contains(port));
    }

    fn launch_now(&mut self, pod: &RunningPod) {
        let Some(launch) = self.launch.clone() else { return };
        match process::start(launch) {
            Ok(process) => {
                self.process = Some(process);
                self.started = Instant::now();
                self.status.state = ContainerState::Running(SystemTime::now());
            }
            Err(error) => {
                self.again = Instant::now() + self.backoff;
                self.backoff = (self.backoff * 2).min(BACKOFF[1]);
                let message = format!("{}: {}", pod.key, chain(&error));
                self.status.state = ContainerState::Waiting { reason: "RunContainerError".into(), message };
            }
        }
    }

    /// Resolves when its process ends; never while there is none.
    fn ended(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        match self.process.clone() {
            Some(process) => Box::pin(async move {
                process.ended().await;
            }),
            None => Box::pin(std::future::pending()),
        }
    }
}

fn launch(kubelet: &Kubelet, pod: &RunningPod, spec: &Value, name: &str, entry: images::Entry) -> Launch {
    let mut environment = pod.environment.clone();
    environment.extend(environment_of(spec, pod, &kubelet.cluster.snapshot()));
    Launch {
        program: entry.program,
        arguments: entry.arguments.into_iter().map(OsString::from).collect(),
        environment,
        namespace: pod.network.namespace.clone(),
        group: pod.group.clone(),
        user: User::Root,
        sandbox: Some(pod.sandbox.clone()),
        output: Output::File(kubelet.layout.logs().join(format!("{}.{}.{name}.log", pod.key.namespace, pod.key.name))),
    }
}

/// `env` of a container: values, and fields of the pod.
fn environment_of(spec: &Value, pod: &RunningPod, snapshot: &Snapshot) -> Vec<(String, String)> {
    let record = snapshot.pods.get(&pod.key);
    let account = record.and_then(|record| record.template["spec"]["serviceAccountName"].as_str()).unwrap_or("default");
    let AddressPair { v4, v6 } = pod.network.addresses;
    let field = |path: &str| -> Option<String> {
        Some(match path {
            "metadata.name" => pod.key.name.clone(),
            "metadata.namespace" => pod.key.namespace.clone(),
            "metadata.uid" => pod.uid.clone(),
            "spec.nodeName" => pod.node.clone(),
            "spec.serviceAccountName" => account.to_owned(),
            "status.podIP" => v4.to_string(),
            "status.podIPs" => format!("{v4},{v6}"),
            _ => {
                let label = path.strip_prefix("metadata.labels['")?.strip_suffix("']")?;
                record?.template["metadata"]["labels"][label].as_str()?.to_owned()
            }
        })
    };
    let entries = spec["env"].as_array().into_iter().flatten();
    entries
        .filter_map(|entry| {
            let value = match entry["value"].as_str() {
                Some(value) => value.to_owned(),
                None => field(entry["valueFrom"]["fieldRef"]["fieldPath"].as_str()?)?,
            };
            Some((entry["name"].as_str()?.to_owned(), value))
        })
        .collect()
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
