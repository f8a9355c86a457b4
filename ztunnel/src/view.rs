//! The view that decisions read: fed by xDS on the control thread, read by every worker without a lock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tropis_model::{
    view::{Change, View},
    workload::Workload,
};

use crate::node::Pod;

/// How long a connection may wait for the control plane to tell us about the pod that it belongs to.
pub const WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// A view, and the name of the configuration that it came of.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Decide on this.
    pub view: Arc<View>,
    /// The control plane's name for the last configuration that is in it; empty before the first.
    pub version: Arc<String>,
}

/// The view in force, and word of each change.
#[derive(Debug)]
pub struct CurrentView {
    view: ArcSwap<View>,
    version: ArcSwap<String>,
    policy_version: AtomicU64,
    changed: watch::Sender<u64>,
}

impl Default for CurrentView {
    fn default() -> Self {
        Self {
            view: ArcSwap::from_pointee(View::default()),
            version: ArcSwap::default(),
            policy_version: AtomicU64::new(0),
            changed: watch::Sender::new(0),
        }
    }
}

impl CurrentView {
    /// The view in force. Decide everything about one step on one of these.
    pub fn load(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// The view in force with the name of its configuration.
    pub fn seen(&self) -> Seen {
        // The name first: it may lag behind what decides, and never runs ahead of it.
        let version = self.version.load_full();
        Seen { view: self.load(), version }
    }

    /// What was applied last is the configuration of this name.
    pub fn name_version(&self, version: &str) {
        if **self.version.load() != version {
            self.version.store(Arc::new(version.to_owned()));
        }
    }

    /// Puts changes in force. Called by one thread only, the one that reads from the control plane.
    pub fn apply(&self, changes: Vec<Change>) {
        let touches_policies = changes.iter().any(|change| matches!(change, Change::Policy(_) | Change::RemovePolicy(_)));
        let next = self.view.load().apply(changes);
        let version = next.version();
        self.view.store(Arc::new(next));
        if touches_policies {
            // After the view: who sees the number sees the policies.
            self.policy_version.fetch_add(1, Ordering::Release);
        }
        self.changed.send_replace(version);
    }

    /// Counts the changes of policies.
    pub fn policy_version(&self) -> u64 {
        self.policy_version.load(Ordering::Acquire)
    }

    /// Hears of each change: the version now in force.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The view in force once it holds `pod`'s workload; waits for that at most [`WORKLOAD_WAIT`], then gives what there is.
    pub async fn covering(&self, node: &str, pod: &Pod) -> Seen {
        let mut changed = self.changed.subscribe();
        let covered = async {
            loop {
                let seen = self.seen();
                if local_workload(&seen.view, node, pod).is_some() {
                    return seen;
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(WORKLOAD_WAIT, covered).await.unwrap_or_else(|_| self.seen())
    }
}

/// The workload that `view` holds for a pod that was handed to us: name, namespace and service account must all agree.
pub fn local_workload<'a>(view: &'a View, node: &str, pod: &Pod) -> Option<&'a Arc<Workload>> {
    view.local_workload(node, &pod.info.namespace, &pod.info.name, &pod.info.service_account)
}

#[cfg(test)]
mod tests {
    use tropis_model::identity::Identity;

    use super::*;
    use crate::node::PodInfo;

    fn pod() -> Pod {
        let info = PodInfo { name: "a-1".into(), namespace: "shop".into(), service_account: "a".into() };
        Pod::new("uid".into(), info, None, Vec::new())
    }

    fn workload() -> Change {
        let mut workload = Workload::new("Kubernetes//Pod/shop/a-1", "a-1", Identity::new("cluster.local", "shop", "a"));
        workload.node = "n1".into();
        Change::Workload(Arc::new(workload))
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_pod_and_no_longer_than_allowed() {
        let current = Arc::new(CurrentView::default());
        let Seen { view, .. } = current.covering("n1", &pod()).await;
        assert!(local_workload(&view, "n1", &pod()).is_none());
        let feeder = current.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            feeder.apply(vec![workload()]);
        });
        let Seen { view, .. } = current.covering("n1", &pod()).await;
        assert!(local_workload(&view, "n1", &pod()).is_some());
        assert!(local_workload(&view, "n2", &pod()).is_none());
    }

    #[test]
    fn only_policies_count_as_policies() {
        let current = CurrentView::default();
        current.apply(vec![workload()]);
        assert_eq!(current.policy_version(), 0);
        current.apply(vec![Change::RemovePolicy(tropis_model::policy::PolicyKey("a/b".into()))]);
        assert_eq!(current.policy_version(), 1);
    }
}
