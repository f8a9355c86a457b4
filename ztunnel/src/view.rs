//! The pods of this node in the view that decisions read ([`tropis_xds::current`]).

use std::{sync::Arc, time::Duration};

use tropis_model::{view::View, workload::Workload};
use tropis_xds::current::{CurrentView, Seen};

use crate::node::Pod;

/// How long a connection may wait for the control plane to tell us about the pod that it belongs to.
pub const WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// The view in force once it holds `pod`'s workload; waits for that at most [`WORKLOAD_WAIT`], then gives what there is.
pub async fn covering(current: &CurrentView, node: &str, pod: &Pod) -> Seen {
    let mut changed = current.subscribe();
    let covered = async {
        loop {
            let seen = current.seen();
            if local_workload(&seen.view, node, pod).is_some() {
                return seen;
            }
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::time::timeout(WORKLOAD_WAIT, covered).await.unwrap_or_else(|_| current.seen())
}

/// The workload that `view` holds for a pod that was handed to us: name, namespace and service account must all agree.
pub fn local_workload<'a>(view: &'a View, node: &str, pod: &Pod) -> Option<&'a Arc<Workload>> {
    view.local_workload(node, &pod.info.namespace, &pod.info.name, &pod.info.service_account)
}

#[cfg(test)]
mod tests {
    use tropis_model::{identity::Identity, view::Change};

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
        let Seen { view, .. } = covering(&current, "n1", &pod()).await;
        assert!(local_workload(&view, "n1", &pod()).is_none());
        let feeder = current.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            feeder.apply(vec![workload()]);
        });
        let Seen { view, .. } = covering(&current, "n1", &pod()).await;
        assert!(local_workload(&view, "n1", &pod()).is_some());
        assert!(local_workload(&view, "n2", &pod()).is_none());
    }
}
