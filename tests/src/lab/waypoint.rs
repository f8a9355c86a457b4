//! Waypoints in the hands of a test: made, attached, asked, replaced pod by pod. Their pods are those that tropisd's Deployment asks for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tropis_crds::Kind;

use super::{Lab, LabError, PodHandle};
use crate::cluster::Event;
use crate::cluster::object::Key;
use crate::kubelet::admin;
use crate::observe::{self, AccessLine, Metrics};
use crate::programs::Program;
use crate::wait;

/// Ten times what a waypoint needs from its Gateway to an address in its status, or from a label until node proxies know it.
const WAYPOINT_DEADLINE: Duration = Duration::from_secs(30);
/// Ten times what the replacement of a Deployment's pods takes, each with its drain.
const ROLLOUT_DEADLINE: Duration = Duration::from_secs(120);
/// Where a waypoint counts.
const METRICS_PORT: u16 = 15020;

/// What goes through a waypoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressed<'a> {
    /// Traffic to a service's addresses.
    Service(&'a str),
    /// Traffic to a pod's own addresses.
    Workload(&'a str),
}

impl Lab {
    /// Applies a Gateway of class `istio-waypoint` with these labels, and waits until its pods are ready and its status has an address.
    pub async fn waypoint(&self, namespace: &str, name: &str, labels: &[(&str, &str)]) -> Result<Vec<PodHandle>, LabError> {
        let labels: Value =
            labels.iter().map(|(label, value)| ((*label).to_owned(), json!(value))).collect::<serde_json::Map<_, _>>().into();
        let gateway = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": { "name": name, "namespace": namespace, "labels": labels },
            "spec": { "gatewayClassName": "istio-waypoint", "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }] },
        });
        self.apply(&gateway.to_string())?;
        self.wait_waypoint(namespace, name).await
    }

    /// Waits until a waypoint's pods are ready and its status has an address.
    pub async fn wait_waypoint(&self, namespace: &str, name: &str) -> Result<Vec<PodHandle>, LabError> {
        let mut last = Value::Null;
        let what = format!("the address of waypoint {namespace}/{name}");
        let found = wait::until(WAYPOINT_DEADLINE, &what, async || {
            last = self.object(Kind::Gateway, namespace, name)?.value["status"].clone();
            let address = last["addresses"].as_array().is_some_and(|addresses| !addresses.is_empty());
            let pods = self.pods(namespace, name);
            (address && !pods.is_empty()).then_some(pods)
        });
        found.await.map_err(|cause| {
            let problems = &self.cluster.snapshot().problems;
            LabError::TimedOut { what: format!("{namespace}/{name} has status {last}; {problems:?}"), cause }
        })
    }

    /// Waits until the node proxies of every node send this traffic through a waypoint, or past any.
    pub async fn wait_attached(&self, namespace: &str, addressed: Addressed<'_>, attached: bool) -> Result<Duration, LabError> {
        let begun = Instant::now();
        for node in self.network.nodes.keys() {
            let what = format!("{addressed:?} in {namespace} to have a waypoint in the view of node {node}: {attached}");
            let done = wait::until(WAYPOINT_DEADLINE, &what, async || {
                let dump = self.node_view(node).await.ok()?;
                let (list, name) = match addressed {
                    Addressed::Service(name) => (&dump["services"], name),
                    Addressed::Workload(name) => (&dump["workloads"], name),
                };
                let mut known = list.as_array()?.iter().filter(|entry| entry["namespace"] == namespace && entry["name"] == name);
                (known.next()?["waypoint"].is_null() != attached).then_some(())
            });
            done.await.map_err(|cause| LabError::TimedOut { what: format!("{addressed:?} in {namespace}"), cause })?;
        }
        Ok(begun.elapsed())
    }

    /// What the node proxy of a node knows of the mesh.
    pub async fn node_view(&self, node: &str) -> Result<Value, LabError> {
        self.ask_socket(self.layout().socket(Program::Ztunnel.name(), node), "/config_dump").await
    }

    /// Every finding that tropisd has.
    pub async fn findings(&self) -> Result<Vec<Value>, LabError> {
        let mut found = Vec::new();
        collect_findings(&self.ask_socket(self.layout().socket(Program::Tropisd.name(), "control"), "/debug/findings").await?, &mut found);
        Ok(found)
    }

    /// What a waypoint's pod answers on its admin port.
    pub async fn ask_waypoint(&self, pod: &PodHandle, path: &str) -> Result<Value, LabError> {
        self.ask_socket(admin::socket(self.layout(), pod.key()), path).await
    }

    async fn ask_socket(&self, socket: PathBuf, path: &str) -> Result<Value, LabError> {
        let (asked, shown) = (path.to_owned(), socket.display().to_string());
        let answer = tokio::task::spawn_blocking(move || observe::get_unix(&socket, &asked)).await;
        let answer = answer.map_err(std::io::Error::other).and_then(|answer| answer);
        let (_, text) = answer.map_err(|error| LabError::File(format!("{path} of {shown}"), error))?;
        serde_json::from_str(&text).map_err(|error| LabError::File(format!("{path} of {shown}"), std::io::Error::other(error)))
    }

    /// The metrics of a waypoint's pod.
    pub async fn waypoint_metrics(&self, pod: &PodHandle) -> Result<Metrics, LabError> {
        let (namespace, key) = (pod.network_namespace(), pod.key().clone());
        let address = std::net::SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), METRICS_PORT);
        let asked = tokio::task::spawn_blocking(move || observe::get(&namespace, address, "/stats/prometheus")).await;
        let answer = asked.map_err(std::io::Error::other).and_then(|answer| answer);
        let (_, text) = answer.map_err(|error| LabError::File(format!("metrics of {key}"), error))?;
        Ok(Metrics::parse(&text))
    }

    /// Where a pod's container logs.
    pub fn container_log(&self, pod: &Key, container: &str) -> PathBuf {
        self.layout().logs().join(format!("{}.{}.{container}.log", pod.namespace, pod.name))
    }

    /// The access log of every pod that a waypoint has or had, oldest pod first.
    pub fn waypoint_access_log(&self, namespace: &str, name: &str) -> Vec<AccessLine> {
        let begins = format!("{namespace}.{name}-");
        let Ok(entries) = std::fs::read_dir(self.layout().logs()) else { return Vec::new() };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&begins)));
        files.sort_by_key(|file| std::fs::metadata(file).and_then(|metadata| metadata.created()).ok());
        files.iter().flat_map(|file| request_lines(file)).collect()
    }

    /// Gives a Deployment so many replicas, as `kubectl scale` does, and waits until they are ready.
    pub async fn scale(&self, namespace: &str, deployment: &str, replicas: usize) -> Result<(), LabError> {
        self.cluster.tell(Event::Scale(Key::new("Deployment", namespace, deployment), replicas as u64));
        let done =
            wait::until(ROLLOUT_DEADLINE, "the replicas", async || (self.pods(namespace, deployment).len() == replicas).then_some(()));
        done.await.map_err(|cause| LabError::TimedOut { what: format!("{namespace}/{deployment} has no {replicas} replicas"), cause })
    }

    /// Replaces the pods of a Deployment one after the other, as `kubectl rollout restart` does, and waits until none of the old is left.
    pub async fn rollout_restart(&self, namespace: &str, deployment: &str) -> Result<Duration, LabError> {
        let begun = Instant::now();
        let old: Vec<String> = self.pods(namespace, deployment).iter().map(|pod| pod.uid().to_owned()).collect();
        self.cluster.tell(Event::Restart(Key::new("Deployment", namespace, deployment)));
        let done = wait::until(ROLLOUT_DEADLINE, "the old pods to be gone", async || {
            let snapshot = self.cluster.snapshot();
            let left = snapshot.pods.values().any(|record| old.contains(&record.uid));
            (!left && self.pods(namespace, deployment).len() >= old.len()).then_some(())
        });
        done.await.map_err(|cause| LabError::TimedOut { what: format!("{namespace}/{deployment} was not replaced"), cause })?;
        Ok(begun.elapsed())
    }

    /// Sends a signal to every process of a pod, as a crash or the kernel would.
    pub fn signal_pod(&self, pod: &PodHandle, signal: Signal) -> Result<(), LabError> {
        pod.signal(signal).map_err(|error| LabError::File(format!("{signal} to {}", pod.key()), error))
    }
}

/// Findings wherever they stand in the answer: each has a code.
fn collect_findings(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(fields) if fields.contains_key("code") => found.push(value.clone()),
        Value::Object(fields) => fields.values().for_each(|value| collect_findings(value, found)),
        Value::Array(items) => items.iter().for_each(|value| collect_findings(value, found)),
        _ => {}
    }
}

/// The lines of requests and connections that a waypoint wrote: Istio's fields alone, without a frame.
fn request_lines(file: &Path) -> Vec<AccessLine> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line.get("response_flags").is_some()).map(AccessLine).collect()
}
