//! Whose an address is, when listeners are put into the capture's map by address.
//!
//! What a pod's interfaces have is only a claim: a pod that may configure its network (`NET_ADMIN`) can give itself the address of
//! another, and would take over what arrives there. The control plane's word decides, which comes from the pods' status; where it has
//! said nothing, an address that two pods claim is nobody's, and what arrives there is refused until it has.

use std::{net::IpAddr, sync::Arc};

use tropis_model::{view::View, workload::Workload};

use super::Pod;
use crate::{config::Config, view::local_workload};

/// The one of `claimants`, pods of this node whose interfaces have `address`, that is served at it.
pub fn owner<'a>(view: &View, config: &Config, address: IpAddr, claimants: &[&'a Arc<Pod>]) -> Option<&'a Arc<Pod>> {
    let listed = |pod: &&&Arc<Pod>| local_workload(view, &config.node, pod).is_some_and(|own| own.addresses.contains(&address));
    let entitled: Vec<_> = claimants.iter().filter(listed).copied().collect();
    let known = view.workload_at(&config.network, address);
    match (&*entitled, known) {
        (&[only], _) => Some(only),
        // An address that was just reused: the view's choice, as everywhere.
        (&[_, ..], Some(chosen)) => entitled.into_iter().find(|pod| is(view, config, pod, chosen)),
        (&[_, ..], None) | (&[], Some(_)) => None,
        // A pod that is newer than the view, or an address of a second network, which no pod's status has.
        (&[], None) => match claimants {
            &[only] => Some(only),
            _ => None,
        },
    }
}

fn is(view: &View, config: &Config, pod: &Pod, workload: &Arc<Workload>) -> bool {
    local_workload(view, &config.node, pod).is_some_and(|own| own.uid == workload.uid)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tropis_model::{identity::Identity, view::Change};

    use super::*;
    use crate::node::PodInfo;

    fn config() -> Config {
        Config::read(&BTreeMap::from([("NODE_NAME".to_owned(), "n1".to_owned())])).unwrap()
    }

    fn pod(name: &str) -> Arc<Pod> {
        let info = PodInfo { name: name.into(), namespace: "shop".into(), service_account: name.into() };
        Arc::new(Pod::new(name.into(), info, None, Vec::new()))
    }

    fn workload(name: &str, node: &str, addresses: &[&str]) -> Change {
        let mut workload = Workload::new(format!("c//Pod/shop/{name}"), name, Identity::new("cluster.local", "shop", name));
        workload.node = node.into();
        workload.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Change::Workload(Arc::new(workload))
    }

    fn owner_of(changes: Vec<Change>, address: &str, claimants: &[&Arc<Pod>]) -> Option<String> {
        let view = View::default().apply(changes);
        owner(&view, &config(), address.parse().unwrap(), claimants).map(|pod| pod.info.name.to_string())
    }

    #[test]
    fn the_control_planes_word_decides_for_both_families() {
        let (victim, thief) = (pod("victim"), pod("thief"));
        for address in ["10.0.0.1", "fd00::1"] {
            let told = || vec![workload("victim", "n1", &["10.0.0.1", "fd00::1"]), workload("thief", "n1", &["10.0.0.2", "fd00::2"])];
            for claimants in [[&thief, &victim], [&victim, &thief]] {
                assert_eq!(owner_of(told(), address, &claimants).as_deref(), Some("victim"));
            }
            assert_eq!(owner_of(told(), address, &[&thief]), None, "also while the victim is not enrolled");
            let elsewhere = vec![workload("victim", "n2", &[address])];
            assert_eq!(owner_of(elsewhere, address, &[&thief]), None, "also while the thief is unknown, and on another node");
        }
    }

    #[test]
    fn without_a_word_a_single_claim_holds_and_a_contested_one_does_not() {
        let (one, other) = (pod("one"), pod("other"));
        assert_eq!(owner_of(vec![], "10.0.0.1", &[&one]).as_deref(), Some("one"), "a pod newer than the view");
        assert_eq!(owner_of(vec![], "10.0.0.1", &[&one, &other]), None);
        let one_known = vec![workload("one", "n1", &["10.0.0.1"])];
        assert_eq!(owner_of(one_known.clone(), "192.168.0.1", &[&one]).as_deref(), Some("one"), "a second network");
        assert_eq!(owner_of(one_known, "192.168.0.1", &[&one, &other]), None);
    }

    #[test]
    fn an_address_that_was_reused_is_one_pods() {
        let (old, new) = (pod("old"), pod("new"));
        let both = vec![workload("old", "n1", &["10.0.0.1"]), workload("new", "n1", &["10.0.0.1"])];
        assert!(owner_of(both.clone(), "10.0.0.1", &[&old, &new]).is_some());
        assert_eq!(owner_of(both, "10.0.0.1", &[&new]).as_deref(), Some("new"));
    }
}
