//! The view that decisions read: fed by [`crate::client`] on the control thread, read by every worker without a lock.

mod concerns;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tropis_model::view::{Change, View};

use self::concerns::{Concerns, Touched};
use crate::ResourceType;

/// The control plane's names for what decides, by type: types come in responses of their own ([`crate::client::Status::versions`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versions(pub BTreeMap<ResourceType, Arc<str>>);

impl Versions {
    /// The name of one type's configuration; empty before the first.
    pub fn of(&self, r#type: ResourceType) -> &str {
        self.0.get(&r#type).map_or("", |version| version)
    }
}

impl fmt::Display for Versions {
    /// As the access log has it: `authorization:VERSION,address:VERSION`, without what has not come yet; empty when nothing has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (known, version)) in self.0.iter().filter(|(_, version)| !version.is_empty()).enumerate() {
            write!(f, "{}{}:{version}", if place == 0 { "" } else { "," }, known.word())?;
        }
        Ok(())
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
    concerns: Concerns,
}

impl Default for CurrentView {
    fn default() -> Self {
        Self {
            view: ArcSwap::from_pointee(View::default()),
            versions: ArcSwap::default(),
            version: ArcSwap::default(),
            policy_version: AtomicU64::new(0),
            changed: watch::Sender::new(0),
            concerns: Concerns::default(),
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
    pub fn name_versions(&self, versions: &BTreeMap<ResourceType, Arc<str>>) {
        if self.versions.load().0 != *versions {
            let versions = Versions(versions.clone());
            self.version.store(Arc::new(versions.to_string()));
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
        let before = self.view.load();
        let touched = Touched::by(&before, &changes);
        let next = before.apply(changes);
        let version = next.version();
        self.view.store(Arc::new(next));
        if touches_policies {
            // After the view: who sees the number sees the policies.
            self.policy_version.fetch_add(1, Ordering::Release);
        }
        self.changed.send_replace(version);
        self.concerns.tell(touched);
    }

    /// Counts the changes of policies.
    pub fn policy_version(&self) -> u64 {
        self.policy_version.load(Ordering::Acquire)
    }

    /// Hears of each change: the version now in force.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Hears of changes of the workload with this uid, or of the service `namespace/hostname` and its host, and of waypoints; of few others.
    /// Begin to wait, then look at the view.
    pub fn concern(&self, name: &str) -> &Notify {
        self.concerns.of(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_configuration_has_its_name() {
        let current = CurrentView::default();
        let named = |address: &str, authorization: &str| {
            let versions = [(ResourceType::Address, address.into()), (ResourceType::Authorization, authorization.into())];
            current.name_versions(&BTreeMap::from(versions));
            current.seen().version.to_string()
        };
        assert_eq!(*current.seen().version, "");
        assert_eq!(named("", "7"), "authorization:7");
        assert_eq!(named("9", "7"), "authorization:7,address:9", "a pod that came later does not rename the policies");
        assert_eq!(current.versions().of(ResourceType::Address), "9");
        assert_eq!(current.versions().of(ResourceType::Host), "");
    }

    #[test]
    fn only_policies_count_as_policies() {
        let current = CurrentView::default();
        current.apply(vec![Change::RemoveAddress("a".into())]);
        assert_eq!(current.policy_version(), 0);
        current.apply(vec![Change::RemovePolicy(tropis_model::policy::PolicyKey("a/b".into()))]);
        assert_eq!(current.policy_version(), 1);
    }
}
