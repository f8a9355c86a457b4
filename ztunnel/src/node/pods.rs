//! Which pods are served, by what the node agent said: starts them, keeps them over a lost agent, ends them.
//!
//! Ending differs by capture. Under our redirector a pod that is taken out of the mesh loses its listeners and keeps its open
//! connections, until they end or the pod is gone; under istio-cni everything ends at once, because the packet rules that carry the
//! open connections are gone too.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::sync::watch;
use tropis_net::namespace::{NamespaceError, NetworkNamespace};
use tropis_telemetry::{chain, readiness::ReadinessTask};

use super::{
    Pod, PodInfo, claims,
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
    view_changed: watch::Receiver<u64>,
    ready: ReadinessTask,
}

struct Running {
    pod: Arc<Pod>,
    in_capture: InCapture,
}

impl Pods {
    /// No pods yet.
    pub fn new(shared: Arc<Shared>, workers: Vec<WorkerHandle>, ready: ReadinessTask) -> Self {
        let (view_changed, snapshot) = (shared.view.subscribe(), Some(HashSet::new()));
        Self { shared, workers, running: HashMap::new(), pending: HashMap::new(), snapshot, view_changed, ready }
    }

    /// The agent is there; it starts with a snapshot of all pods.
    pub fn connected(&mut self) {
        self.pending.clear();
        self.snapshot = Some(HashSet::new());
        // The agent may have made the maps just now, or anew.
        if let Err(error) = self.shared.capture.reopen() {
            tracing::warn!(error = chain(&error), "the capture's maps cannot be opened; tried again with each pod");
        }
        self.running.values_mut().for_each(|running| running.in_capture.refresh());
        self.settle();
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
        if let Some(Running { pod, in_capture }) = self.running.get_mut(&uid) {
            if pod.namespace.as_ref() == Some(&namespace) && pod.info == info {
                let name = pod.to_string();
                // An address may have come to an interface after the pod was first handed over.
                match listeners::addresses(&namespace) {
                    Ok(addresses) => pod.claims(addresses),
                    Err(cause) => return Err(StartError::Namespace { pod: name, cause }),
                }
                // The agent may have made the capture's maps anew.
                in_capture.refresh();
                return self.settle_with(&uid).map_err(|cause| StartError::Listen { pod: name, cause });
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
            self.settle();
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
        self.settle();
        self.say();
    }

    /// Waits for a change of the view and settles again whose each address is. Nothing is lost when it is given up.
    pub async fn follow_view(&mut self) {
        if self.view_changed.changed().await.is_err() {
            // The view is gone, so the process is ending.
            std::future::pending::<()>().await;
        }
        self.settle();
    }

    /// Gives each pod that runs the addresses that are its own, in the capture too. What fails is tried again with the next change.
    fn settle(&mut self) {
        for (pod, error) in self.settle_all() {
            tracing::warn!(%pod, error = chain(&error), "the capture does not lead to the pod as it should; tried again");
        }
    }

    /// As [`Pods::settle`], where failing is an error for the pod `uid`.
    fn settle_with(&mut self, uid: &str) -> Result<(), OpenError> {
        let mut own = Ok(());
        for (pod, error) in self.settle_all() {
            match &*pod.uid == uid {
                true => own = Err(error),
                false => tracing::warn!(%pod, error = chain(&error), "the capture does not lead to the pod as it should; tried again"),
            }
        }
        own
    }

    fn settle_all(&mut self) -> Vec<(Arc<Pod>, OpenError)> {
        self.share_out();
        let mut failed = Vec::new();
        // What one has lost goes before another gets it.
        for step in [InCapture::retain, InCapture::add] {
            for Running { pod, in_capture } in self.running.values_mut() {
                if let Err(error) = step(in_capture, &self.shared, &pod.addresses()) {
                    failed.push((pod.clone(), error));
                }
            }
        }
        failed
    }

    /// Says of each claimed address whose it is.
    fn share_out(&self) {
        let (view, config) = (self.shared.view.load(), &self.shared.config);
        let mut claimants: HashMap<IpAddr, Vec<&Arc<Pod>>> = HashMap::new();
        let claims: Vec<_> = self.running.values().map(|Running { pod, .. }| (pod, pod.claimed())).collect();
        for (pod, claimed) in &claims {
            for address in &**claimed {
                claimants.entry(*address).or_default().push(pod);
            }
        }
        for (pod, claimed) in claims {
            let is_own = |address: &IpAddr| {
                let claimants = claimants.get(address).map_or(&[][..], Vec::as_slice);
                claims::owner(&view, config, *address, claimants).is_some_and(|owner| Arc::ptr_eq(owner, pod))
            };
            let own: Vec<_> = claimed.iter().filter(|address| is_own(address)).copied().collect();
            if own == *pod.addresses() {
                continue;
            }
            let withheld: Vec<_> = claimed.iter().filter(|address| !own.contains(address)).collect();
            if !withheld.is_empty() {
                tracing::warn!(%pod, ?withheld, "the pod is not served at addresses that its interfaces have: they are another's, or contested");
            }
            pod.served_at(own);
        }
    }

    async fn start(&mut self, uid: Arc<str>, info: PodInfo, namespace: NetworkNamespace) -> Result<(), StartError> {
        let name = format!("{}/{}", info.namespace, info.name);
        let addresses = listeners::addresses(&namespace).map_err(|cause| StartError::Namespace { pod: name.clone(), cause })?;
        let pod = Arc::new(Pod::new(uid.clone(), info, Some(namespace), addresses));
        let opened = listeners::open(&self.shared, &pod, self.workers.len());
        let (opened, in_capture) = opened.map_err(|cause| StartError::Listen { pod: name.clone(), cause })?;
        self.running.insert(uid.clone(), Running { pod: pod.clone(), in_capture });
        if let Err(cause) = self.settle_with(&uid) {
            self.running.remove(&uid);
            return Err(StartError::Listen { pod: name, cause });
        }
        for (worker, listeners) in self.workers.iter().zip(opened) {
            let command = Command::Serve { pod: pod.clone(), listeners: Box::new(listeners) };
            worker.send(command).await.map_err(|_| StartError::Stopping { pod: name.clone() })?;
        }
        tracing::info!(pod = %name, uid = %uid, addresses = ?pod.addresses(), "pod served");
        self.shared.metrics.pods.started.inc();
        self.shared.pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(uid.clone(), pod.clone());
        tokio::spawn(prefetch(self.shared.clone(), pod));
        Ok(())
    }

    fn retire(&self, running: Running) {
        if matches!(self.shared.config.capture, Capture::Netfilter { .. }) {
            return self.end_now(running);
        }
        let pod = self.withdraw(running);
        tracing::info!(pod = %pod, open = pod.open_connections(), "pod no longer served; open connections live on");
        pod.drain().start();
        pod.release_certificate();
        tokio::spawn(outlive(self.shared.clone(), pod));
    }

    fn end_now(&self, running: Running) {
        let pod = self.withdraw(running);
        tracing::info!(pod = %pod, open = pod.open_connections(), "pod no longer served; open connections end");
        pod.drain().start();
        pod.release_certificate();
        tokio::spawn(async move { pod.drain().finish(Duration::ZERO).await });
    }

    /// Nothing new is led to the pod.
    fn withdraw(&self, Running { pod, mut in_capture }: Running) -> Arc<Pod> {
        if let Err(error) = in_capture.retain(&self.shared, &[]) {
            // They leave it when the sockets close.
            tracing::warn!(%pod, error = chain(&error), "listeners cannot be taken out of the capture");
        }
        self.forget(&pod);
        pod
    }

    fn forget(&self, pod: &Pod) {
        self.shared.metrics.pods.stopped.inc();
        self.shared.pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&pod.uid);
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
            pod.is_known_as(workload, &shared.certificates);
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
