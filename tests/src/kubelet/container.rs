//! A container: a process of a pod that is started again when it ends, by the pod's restart policy.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tropis_crds::{Kind, ObjectRef};

use super::readiness::Probe;
use super::{Kubelet, RunningPod, chain, images};
use crate::cluster::Snapshot;
use crate::cluster::pods::{self, ContainerState, ContainerStatus};
use crate::network::addresses::AddressPair;
use crate::process::{self, Launch, Output, Process, User};
use crate::sockets::Listening;

/// The first wait before a container is started again; doubles up to the last.
const BACKOFF: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];
/// A container that ran so long starts again without a longer wait.
const BACKOFF_FORGOTTEN: Duration = Duration::from_secs(60);

/// A container of a pod and its process.
pub(super) struct Container {
    pub(super) status: ContainerStatus,
    launch: Option<Launch>,
    ports: Vec<u16>,
    probe: Option<Probe>,
    pub(super) process: Option<Process>,
    started: Instant,
    /// Not before.
    again: Instant,
    backoff: Duration,
}

impl Container {
    pub(super) fn new(kubelet: &Kubelet, pod: &RunningPod, index: usize, spec: &Value) -> Self {
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
            probe: Probe::of(spec),
            process: None,
            started: Instant::now(),
            again: Instant::now(),
            backoff: BACKOFF[0],
        }
    }

    /// Starts it if it is time, notices its end, and says whether it is ready.
    pub(super) fn step(&mut self, pod: &RunningPod, policy: &str, listening: &Listening, passed: &BTreeSet<Probe>) {
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
        // A container without ports and probe has nothing to wait for.
        let listens = self.process.is_some() && self.ports.iter().all(|port| listening.contains(port));
        self.status.ready = listens && self.probe.as_ref().is_none_or(|probe| passed.contains(probe));
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

    /// The question that tells whether it is ready, if it runs and has one.
    pub(super) fn probe(&self) -> Option<Probe> {
        self.probe.clone().filter(|_| self.process.is_some())
    }

    /// Resolves when its process ends; never while there is none.
    pub(super) fn ended(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
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
    let image = spec["image"].as_str().unwrap_or_default();
    environment.extend(kubelet.images.environment(image));
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
    let account = record.map_or(pods::DEFAULT_SERVICE_ACCOUNT, |record| pods::service_account(&record.template["spec"]));
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
