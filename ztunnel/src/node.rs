//! The node's pods, as they are handed to us over ZDS.
//!
//! [`zds`] speaks the protocol, [`pods`] keeps what it says, [`listeners`] opens the sockets inside each pod's network namespace,
//! [`claims`] says at which addresses a pod is served. What then arrives on those sockets is a worker's (`worker.rs`).

pub mod claims;
pub mod listeners;
pub mod pods;
pub mod zds;

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use tropis_model::workload::{Workload, WorkloadUid};
use tropis_net::{
    drain::{Drain, DrainSignal},
    namespace::NetworkNamespace,
};
use tropis_tls::store::{Certificates, Lease};

/// Who a pod is, as the node agent says; the control plane's word must agree before anything is done in its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodInfo {
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
}

/// What the control plane calls a pod.
#[derive(Debug)]
struct Known {
    uid: WorkloadUid,
    lease: Mutex<Option<Lease>>,
}

/// A pod that we serve.
#[derive(Debug)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// Who it is.
    pub info: PodInfo,
    /// Its network namespace; `None` is our own.
    pub namespace: Option<NetworkNamespace>,
    /// The addresses that its interfaces have; loopback and link-local ones left out. A claim, see [`claims`].
    claimed: ArcSwap<Vec<IpAddr>>,
    known: OnceLock<Known>,
    addresses: ArcSwap<Vec<IpAddr>>,
    drain: Drain,
    open: AtomicUsize,
}

impl Pod {
    /// A pod that is served from now on, at no address yet.
    pub fn new(uid: Arc<str>, info: PodInfo, namespace: Option<NetworkNamespace>, claimed: Vec<IpAddr>) -> Self {
        let (claimed, known, addresses) = (ArcSwap::from_pointee(claimed), OnceLock::new(), ArcSwap::default());
        Self { uid, info, namespace, claimed, known, addresses, drain: Drain::new(), open: AtomicUsize::new(0) }
    }

    /// The control plane calls it this; its certificate is kept for as long as it is served.
    pub fn is_known_as(&self, workload: &Workload, certificates: &Certificates) {
        self.known.get_or_init(|| {
            let lease = Mutex::new(Some(certificates.lease(&workload.identity)));
            Known { uid: workload.uid.clone(), lease }
        });
        if self.drain.is_draining() {
            self.release_certificate();
        }
    }

    /// What the control plane calls it, once it has said so.
    pub fn known_as(&self) -> Option<&WorkloadUid> {
        self.known.get().map(|known| &known.uid)
    }

    /// It is served no longer: its certificate is renewed no more, unless another pod has it too.
    pub fn release_certificate(&self) {
        if let Some(known) = self.known.get() {
            drop(known.lease.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    /// The addresses that its interfaces had when they were last looked at.
    pub fn claimed(&self) -> Arc<Vec<IpAddr>> {
        self.claimed.load_full()
    }

    /// Its interfaces have these now.
    fn claims(&self, addresses: Vec<IpAddr>) {
        self.claimed.store(Arc::new(addresses));
    }

    /// The addresses at which it is served: those that it claims and that are its own.
    pub fn addresses(&self) -> Arc<Vec<IpAddr>> {
        self.addresses.load_full()
    }

    /// From now on it is served at these.
    fn served_at(&self, addresses: Vec<IpAddr>) {
        self.addresses.store(Arc::new(addresses));
    }

    /// Ends its listeners, later its connections. See [`tropis_net::drain`].
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// What a task of this pod obeys, and is counted by.
    pub fn drain_signal(&self) -> DrainSignal {
        self.drain.signal()
    }

    /// Runs `work` in its namespace, on this thread: for making sockets.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, tropis_net::namespace::NamespaceError> {
        match &self.namespace {
            Some(namespace) => namespace.run(work),
            None => Ok(work()),
        }
    }

    /// How many connections it has open.
    pub fn open_connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.info.namespace, self.info.name)
    }
}

/// A place among the connections that a pod may have open. Dropping it frees the place.
#[derive(Debug)]
pub struct ConnectionSlot {
    pod: Arc<Pod>,
}

impl ConnectionSlot {
    /// Takes a place; `None` when all `limit` are taken.
    pub fn take(pod: &Arc<Pod>, limit: usize) -> Option<Self> {
        // Counted first, so that two workers at the limit cannot both pass.
        let taken = pod.open.fetch_add(1, Ordering::AcqRel);
        let slot = Self { pod: pod.clone() };
        (taken < limit).then_some(slot)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.pod.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tropis_model::identity::Identity;
    use tropis_tls::testing::TestAuthority;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn its_certificate_is_renewed_while_it_is_served_however_late_it_becomes_known() {
        let authority = Arc::new(TestAuthority::new());
        let certificates = Certificates::new(authority.clone());
        let info = PodInfo { name: "a".into(), namespace: "b".into(), service_account: "c".into() };
        let workload = Workload::new("k//Pod/b/a", "a", Identity::new("cluster.local", "b", "c"));
        let pod = Pod::new("u".into(), info, None, Vec::new());
        pod.is_known_as(&workload, &certificates);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(certificates.snapshot().len(), 1);
        for known_first in [true, false] {
            let pod = Pod::new("u".into(), pod.info.clone(), None, Vec::new());
            if known_first {
                pod.is_known_as(&workload, &certificates);
            }
            pod.drain().start();
            pod.release_certificate();
            // A journey that was under way.
            pod.is_known_as(&workload, &certificates);
            drop(certificates.get(&workload.identity).await);
        }
        pod.drain().start();
        pod.release_certificate();
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(certificates.snapshot().is_empty());
    }

    #[test]
    fn a_pod_has_a_bounded_number_of_connections() {
        let info = PodInfo { name: "a".into(), namespace: "b".into(), service_account: "c".into() };
        let pod = Arc::new(Pod::new("u".into(), info, None, Vec::new()));
        let slots: Vec<_> = (0..2).map(|_| ConnectionSlot::take(&pod, 2)).collect();
        assert!(slots.iter().all(Option::is_some));
        assert!(ConnectionSlot::take(&pod, 2).is_none());
        assert_eq!(pod.open_connections(), 2);
        drop(slots);
        assert!(ConnectionSlot::take(&pod, 2).is_some());
    }
}
