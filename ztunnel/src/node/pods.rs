//! Which pods are served, by what the node agent said: starts them, keeps them over a lost agent, ends them.
//!
//! Ending differs by capture. Under our redirector a pod that is taken out of the mesh loses its listeners and keeps its open
//! connections, until they end or the pod is gone; under istio-cni everything ends at once, because the packet rules that carry the
//! open connections are gone too.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tropis_net::namespace::{NamespaceError, NetworkNamespace};
use tropis_telemetry::{chain, readiness::ReadinessTask};

use super::{
    Pod, PodInfo,
    listeners::{self, InCapture, OpenError},
};
use crate::{
    app::Shared,
    config::Capture,
    view,
    worker::{Command, WorkerHandle},
};

/// How long the connections of a pod live on after the control plane has forgotten the pod too. Its processes are gone by then; what
/// remains are connections whose other end nobody told.
const GONE_LIMIT: Duration = Duration::from_secs(30);

/// A pod cannot be served. The node agent tries again, and so do we.
#[derive(Debug, Error)]
pub enum StartError {
    /// Its namespace cannot be entered.
    #[error("pod {pod} cannot be served")]
    Namespace {
        /// The pod.
        pod: String,
        /// Why.
        #[source]
        cause: NamespaceError,
    },
    /// A listener cannot be opened in it.
    #[error("pod {pod} cannot be served")]
    Listen {
        /// The pod.
        pod: String,
        /// Why.
        #[source]
        cause: OpenError,
    },
    /// A worker has ended, so the process is ending.
    #[error("pod {pod} cannot be served: the proxy is stopping")]
    Stopping {
        /// The pod.
        pod: String,
    },
}

/// The pods that are served, and those that could not be started.
pub struct Pods {
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    running: HashMap<Arc<str>, Running>,
    pending: HashMap<Arc<str>, (PodInfo, NetworkNamespace)>,
    /// Pods named since the agent connected; `None` once its snapshot is complete.
    snapshot: Option<HashSet<Arc<str>>>,
    ready: ReadinessTask,
}

struct Running {
    pod: Arc<Pod>,
    in_capture: InCapture,
}

impl Pods {
    /// No pods yet.
    pub fn new(shared: Arc<Shared>, workers: Vec<WorkerHandle>, ready: ReadinessTask) -> Self {
        Self { shared, workers, running: HashMap::new(), pending: HashMap::new(), snapshot: Some(HashSet::new()), ready }
    }

    /// The agent is there; it starts with a snapshot of all pods.
    pub fn connected(&mut self) {
        self.pending.clear();
        self.snapshot = Some(HashSet::new());
        // The agent may have made the maps just now, or anew.
        if let Err(error) = self.shared.capture.reopen() {
            tracing::warn!(error = chain(&error), "the capture's maps cannot be opened; tried again with each pod");
        }
        self.say();
    }

    /// The agent is gone; what runs keeps running.
    pub fn disconnected(&mut self) {
        self.snapshot = Some(HashSet::new());
        self.say();
    }

    /// Serves a pod; nothing changes if it is served already in this very namespace.
    pub async fn add(&mut self, uid: Arc<str>, info: PodInfo, namespace: NetworkNamespace) -> Result<(), StartError> {
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.insert(uid.clone());
        }
        if let Some(Running { pod, in_capture }) = self.running.get(&uid) {
            if pod.namespace.as_ref() == Some(&namespace) && pod.info == info {
                // A new agent may have made the capture's maps anew.
                let registered = in_capture.register(&self.shared, pod);
                return registered.map_err(|cause| StartError::Listen { pod: pod.to_string(), cause });
            }
            // The sandbox was made anew: what the old one had open can no longer carry anything.
            if let Some(old) = self.running.remove(&uid) {
                self.end_now(old);
            }
        }
        self.pending.remove(&uid);
        let started = self.start(uid.clone(), info.clone(), namespace.clone()).await;
        if let Err(error) = &started {
            tracing::warn!(%uid, name = %info.name, error = chain(error), "pod refused; it is tried again");
            self.pending.insert(uid, (info, namespace));
        }
        self.say();
        started
    }

    /// Before the snapshot ends: the pod is still enrolled, so what runs of it stays.
    pub fn keep(&mut self, uid: Arc<str>) -> Result<(), &'static str> {
        self.snapshot.as_mut().ok_or("Keep after the snapshot")?.insert(uid);
        Ok(())
    }

    /// Serves a pod no more.
    pub fn remove(&mut self, uid: &str) {
        self.pending.remove(uid);
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.remove(uid);
        }
        if let Some(running) = self.running.remove(uid) {
            self.retire(running);
        }
        self.say();
    }

    /// The snapshot is complete: whatever it did not name is gone.
    pub fn snapshot_complete(&mut self) -> Result<(), &'static str> {
        let named = self.snapshot.take().ok_or("a second SnapshotSent")?;
        let stale: Vec<_> = self.running.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        for uid in stale {
            self.remove(&uid);
        }
        tracing::info!(pods = self.running.len(), pending = self.pending.len(), "snapshot of pods complete");
        self.say();
        Ok(())
    }

    /// Tries the pods again that could not be started.
    pub async fn retry_pending(&mut self) {
        for (uid, (info, namespace)) in std::mem::take(&mut self.pending) {
            if let Err(error) = self.start(uid.clone(), info.clone(), namespace.clone()).await {
                tracing::debug!(pod = %uid, error = chain(&error), "pod still cannot be served");
                self.pending.insert(uid, (info, namespace));
            }
        }
        self.say();
    }

    async fn start(&mut self, uid: Arc<str>, info: PodInfo, namespace: NetworkNamespace) -> Result<(), StartError> {
        let name = format!("{}/{}", info.namespace, info.name);
        let addresses = listeners::addresses(&namespace).map_err(|cause| StartError::Namespace { pod: name.clone(), cause })?;
        let pod = Arc::new(Pod::new(uid.clone(), info, Some(namespace), addresses));
        let opened = listeners::open(&self.shared, &pod, self.workers.len());
        let (opened, in_capture) = opened.map_err(|cause| StartError::Listen { pod: name.clone(), cause })?;
        for (worker, listeners) in self.workers.iter().zip(opened) {
            let command = Command::Serve { pod: pod.clone(), listeners: Box::new(listeners) };
            worker.send(command).await.map_err(|_| StartError::Stopping { pod: name.clone() })?;
        }
        tracing::info!(pod = %name, uid = %uid, addresses = ?pod.addresses, "pod served");
        self.shared.metrics.pods.started.inc();
        self.shared.pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(uid.clone(), pod.clone());
        tokio::spawn(prefetch(self.shared.clone(), pod.clone()));
        self.running.insert(uid, Running { pod, in_capture });
        Ok(())
    }

    fn retire(&self, running: Running) {
        if matches!(self.shared.config.capture, Capture::Netfilter { .. }) {
            return self.end_now(running);
        }
        let Running { pod, in_capture } = running;
        drop(in_capture);
        self.forget(&pod);
        tracing::info!(pod = %pod, open = pod.open_connections(), "pod no longer served; open connections live on");
        pod.drain().start();
        tokio::spawn(outlive(self.shared.clone(), pod));
    }

    fn end_now(&self, running: Running) {
        let Running { pod, in_capture } = running;
        drop(in_capture);
        self.forget(&pod);
        tracing::info!(pod = %pod, open = pod.open_connections(), "pod no longer served; open connections end");
        tokio::spawn(async move { pod.drain().finish(Duration::ZERO).await });
    }

    fn forget(&self, pod: &Pod) {
        self.shared.metrics.pods.stopped.inc();
        let mut served = self.shared.pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        served.remove(&pod.uid);
        // Certificates are by account: the last pod of one takes it along.
        let Some((_, identity)) = pod.known_as.get() else { return };
        if !served.values().any(|other| other.known_as.get().is_some_and(|(_, other)| other == identity)) {
            self.shared.certificates.forget(identity);
        }
    }

    /// Ready is: the snapshot is complete, and every pod in it is served.
    fn say(&self) {
        let metrics = &self.shared.metrics.pods;
        metrics.active.set(i64::try_from(self.running.len()).unwrap_or(i64::MAX));
        metrics.pending.set(i64::try_from(self.pending.len()).unwrap_or(i64::MAX));
        match self.snapshot.is_none() && self.pending.is_empty() {
            true => self.ready.ready(),
            false => self.ready.pending(),
        }
    }
}

/// Has the pod's certificate ready before its first connection asks for it.
async fn prefetch(shared: Arc<Shared>, pod: Arc<Pod>) {
    let mut signal = pod.drain_signal();
    let fetched = async {
        let current = view::covering(&shared.view, &shared.config.node, &pod).await.view;
        if let Some(workload) = view::local_workload(&current, &shared.config.node, &pod) {
            pod.known_as.get_or_init(|| (workload.uid.clone(), workload.identity.clone()));
            shared.certificates.prefetch(&workload.identity);
        }
    };
    tokio::select! {
        () = fetched => {}
        () = signal.draining() => {}
    }
}

/// Waits until a retired pod's connections have ended, or the pod itself is gone for [`GONE_LIMIT`]; then ends what is left.
async fn outlive(shared: Arc<Shared>, pod: Arc<Pod>) {
    let mut changed = shared.view.subscribe();
    let gone = async {
        loop {
            if view::local_workload(&shared.view.load(), &shared.config.node, &pod).is_none() {
                tokio::time::sleep(GONE_LIMIT).await;
                if view::local_workload(&shared.view.load(), &shared.config.node, &pod).is_none() {
                    return;
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = gone => {}
        _ = pod.drain().finish(Duration::MAX) => return,
    }
    if pod.open_connections() > 0 {
        tracing::info!(pod = %pod, open = pod.open_connections(), "pod is gone; what it had open ends");
    }
    pod.drain().finish(Duration::ZERO).await;
}
