//! The view that decisions read: fed by [`crate::client`] on the control thread, read by every worker without a lock.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tropis_model::view::{Change, View};

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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_policies_count_as_policies() {
        let current = CurrentView::default();
        current.apply(vec![Change::RemoveAddress("a".into())]);
        assert_eq!(current.policy_version(), 0);
        current.apply(vec![Change::RemovePolicy(tropis_model::policy::PolicyKey("a/b".into()))]);
        assert_eq!(current.policy_version(), 1);
    }
}
