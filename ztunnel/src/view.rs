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

/// The control plane's names for what decides. Workloads and services come in responses of their own, policies in others, and a change
/// of the one says nothing about the other; so one name would not do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versions {
    /// Of workloads and services; empty before the first.
    pub address: Arc<str>,
    /// Of policies; empty before the first.
    pub authorization: Arc<str>,
}

impl Versions {
    /// As the access log has it: `address:VERSION,authorization:VERSION`, without what has not come yet; empty when nothing has.
    fn text(&self) -> String {
        let named = [("address", &self.address), ("authorization", &self.authorization)];
        let named: Vec<_> =
            named.iter().filter(|(_, version)| !version.is_empty()).map(|(name, version)| format!("{name}:{version}")).collect();
        named.join(",")
    }
}

/// A view, and the names of the configuration that it came of.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Decide on this.
    pub view: Arc<View>,
    /// [`Versions`] as text; empty before the first.
    pub version: Arc<String>,
}

/// The view in force, and word of each change.
#[derive(Debug)]
pub struct CurrentView {
    view: ArcSwap<View>,
    versions: ArcSwap<Versions>,
    version: ArcSwap<String>,
    policy_version: AtomicU64,
    changed: watch::Sender<u64>,
}

impl Default for CurrentView {
    fn default() -> Self {
        Self {
            view: ArcSwap::from_pointee(View::default()),
            versions: ArcSwap::default(),
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

    /// What is in force is the configuration of these names.
    pub fn name_versions(&self, versions: Versions) {
        if **self.versions.load() != versions {
            self.version.store(Arc::new(versions.text()));
            self.versions.store(Arc::new(versions));
        }
    }

    /// The names of what is in force.
    pub fn versions(&self) -> Arc<Versions> {
        self.versions.load_full()
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
    fn each_kind_of_configuration_has_its_name() {
        let current = CurrentView::default();
        let named = |address: &str, authorization: &str| {
            current.name_versions(Versions { address: address.into(), authorization: authorization.into() });
            current.seen().version.to_string()
        };
        assert_eq!(*current.seen().version, "");
        assert_eq!(named("", "7"), "authorization:7");
        assert_eq!(named("9", "7"), "address:9,authorization:7", "a pod that came later does not rename the policies");
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
