//! A view gives the same answers whatever the order in which its parts arrived, and older snapshots stay as they were.

use proptest::prelude::*;

use super::*;
use crate::{
    policy::{Action, PolicyScope},
    service::ServiceAddress,
};

fn service(namespace: &str, name: &str, block: &str) -> Service {
    let hostname: Arc<str> = format!("{name}.example").into();
    let mut service = Service::new(name, NamespacedHostname { namespace: namespace.into(), hostname });
    service.addresses.push(ServiceAddress { network: "".into(), block: block.parse().unwrap() });
    service
}

fn pod(namespace: &str, name: &str, address: &str) -> Workload {
    let identity = Identity::new("cluster.local", namespace, "default");
    let mut workload = Workload::new(format!("c//Pod/{namespace}/{name}"), name, identity);
    workload.addresses.push(address.parse().unwrap());
    workload
}

fn policy(key: &str, scope: PolicyScope) -> Policy {
    let namespace = key.split('/').next().unwrap().into();
    Policy { key: PolicyKey(key.into()), namespace, scope, action: Action::Allow, rules: vec![], dry_run: false }
}

fn endpoint_of(mut workload: Workload, service: &Service) -> Workload {
    workload.services.insert(service.hostname.clone(), [(80, 8080)].into());
    workload
}

#[test]
fn endpoints_are_found_in_whatever_order_they_arrive() {
    let service = service("a", "s", "10.96.0.1/32");
    let workload = endpoint_of(pod("a", "p", "10.0.0.1"), &service);
    let changes = [Change::Service(Arc::new(service.clone())), Change::Workload(Arc::new(workload.clone()))];
    let forwards = View::default().apply(changes.clone());
    let backwards = View::default().apply(changes.into_iter().rev());
    for view in [&forwards, &backwards] {
        let names: Vec<_> = view.endpoints(&service.hostname).map(|endpoint| endpoint.workload.name.to_string()).collect();
        assert_eq!(names, ["p"]);
    }
    let removed = forwards.apply([Change::RemoveAddress(workload.uid.0.clone())]);
    assert_eq!(removed.endpoints(&service.hostname).count(), 0);
    assert!(removed.workload_at("", "10.0.0.1".parse().unwrap()).is_none());
    assert_eq!(forwards.endpoints(&service.hostname).count(), 1, "the older snapshot is as it was");
}

#[test]
fn a_service_that_is_sent_again_keeps_its_endpoints_and_loses_its_old_address() {
    let first = service("a", "s", "10.96.0.1/32");
    let view = View::default().apply([
        Change::Service(Arc::new(first.clone())),
        Change::Workload(Arc::new(endpoint_of(pod("a", "p", "10.0.0.1"), &first))),
        Change::Service(Arc::new(service("a", "s", "10.96.0.2/32"))),
    ]);
    assert_eq!(view.endpoints(&first.hostname).count(), 1);
    assert!(view.service_at("", "10.96.0.1".parse().unwrap(), "a").is_none());
    assert!(view.service_at("", "10.96.0.2".parse().unwrap(), "a").is_some());
    assert!(view.service_at("other", "10.96.0.2".parse().unwrap(), "a").is_none());
}

#[test]
fn a_reused_address_belongs_to_the_mesh_member() {
    let old = pod("a", "old", "10.0.0.1");
    let mut new = pod("a", "new", "10.0.0.1");
    new.tunnel_protocol = TunnelProtocol::Hbone;
    let view = View::default().apply([Change::Workload(Arc::new(new)), Change::Workload(Arc::new(old.clone()))]);
    assert_eq!(&*view.workload_at("", "10.0.0.1".parse().unwrap()).unwrap().name, "new");
    let view = view.apply([Change::RemoveAddress("c//Pod/a/new".into())]);
    assert_eq!(&*view.workload_at("", "10.0.0.1".parse().unwrap()).unwrap().name, "old");
}

#[test]
fn who_calls_from_a_reused_address_is_who_the_caller_proves_to_be() {
    let (old, mut new) = (pod("a", "old", "fd00::1"), pod("b", "new", "fd00::1"));
    new.tunnel_protocol = TunnelProtocol::Hbone;
    let view = View::default().apply([&old, &new].map(|workload| Change::Workload(Arc::new(workload.clone()))));
    let at = |namespace: &str| {
        let identity = Identity::new("cluster.local", namespace, "default");
        view.caller_at("", "fd00::1".parse().unwrap(), &identity).map(|found| found.name.to_string())
    };
    assert_eq!((at("a").as_deref(), at("b").as_deref(), at("c")), (Some("old"), Some("new"), None));
}

#[test]
fn a_host_network_workload_is_never_found_by_its_address() {
    let mut agent = pod("a", "agent", "10.88.0.11");
    agent.network_mode = NetworkMode::HostNetwork;
    let view = View::default().apply([Change::Workload(Arc::new(agent))]);
    assert!(view.workload_at("", "10.88.0.11".parse().unwrap()).is_none());
}

#[test]
fn own_namespace_then_canonical_then_longest_block() {
    let mut canonical = service("b", "s", "10.96.0.1/32");
    canonical.canonical = true;
    let wide = service("c", "wide", "10.96.0.0/16");
    let narrow = service("d", "narrow", "10.96.1.0/24");
    let mut hidden = service("e", "hidden", "10.97.0.1/32");
    hidden.visibility = Visibility::Namespace;
    let view = View::default()
        .apply([service("a", "s", "10.96.0.1/32"), canonical, wide, narrow, hidden].map(|service| Change::Service(Arc::new(service))));
    let owner = |address: &str, client: &str| {
        view.service_at("", address.parse().unwrap(), client).map(|service| service.hostname.namespace.to_string())
    };
    assert_eq!(owner("10.96.0.1", "a").as_deref(), Some("a"));
    assert_eq!(owner("10.96.0.1", "z").as_deref(), Some("b"));
    assert_eq!(owner("10.96.1.9", "z").as_deref(), Some("d"));
    assert_eq!(owner("10.96.1.9", "c").as_deref(), Some("c"));
    assert_eq!(owner("10.97.0.1", "e").as_deref(), Some("e"));
    assert_eq!(owner("10.97.0.1", "z"), None);
    assert_eq!(view.service_for_client("s.example", "a").unwrap().hostname.namespace.as_ref(), "a");
}

#[test]
fn policies_are_global_or_of_the_namespace_or_named_and_a_named_one_may_be_missing() {
    let mut workload = pod("a", "p", "10.0.0.1");
    workload.authorization_policies = vec!["a/selected".into(), "a/absent".into()];
    let view = View::default().apply(
        [
            policy("root/everywhere", PolicyScope::Global),
            policy("a/here", PolicyScope::Namespace),
            policy("b/there", PolicyScope::Namespace),
            policy("a/selected", PolicyScope::WorkloadSelector),
            policy("a/unselected", PolicyScope::WorkloadSelector),
        ]
        .map(|policy| Change::Policy(Arc::new(policy))),
    );
    let found: Vec<_> = view.policies_for(&workload).map(|found| found.map(|policy| policy.key.to_string())).collect();
    let expected = [Ok("root/everywhere"), Ok("a/here"), Ok("a/selected"), Err("a/absent")];
    assert_eq!(found, expected.map(|one| one.map(str::to_owned).map_err(|key| PolicyKey(key.into()))));
    let view = view.apply([Change::RemovePolicy(PolicyKey("a/here".into())), Change::RemovePolicy(PolicyKey("root/everywhere".into()))]);
    assert_eq!(view.policies_for(&workload).filter(Result::is_ok).count(), 1);
}

fn change() -> impl Strategy<Value = Change> {
    let part = 0..4u8;
    (part, 0..3u8, 1..4u8, any::<bool>()).prop_map(|(kind, name, address, member)| match kind {
        0 => {
            let mut workload = pod("a", &format!("p{name}"), &format!("10.0.0.{address}"));
            if member {
                workload = endpoint_of(workload, &service("a", &format!("s{address}"), "10.96.0.1/32"));
            }
            Change::Workload(Arc::new(workload))
        }
        1 => Change::Service(Arc::new(service("a", &format!("s{name}"), &format!("10.96.0.{address}/32")))),
        2 => Change::RemoveAddress(format!("c//Pod/a/p{name}").into()),
        _ => Change::RemoveAddress(format!("a/s{name}.example").into()),
    })
}

proptest! {
    /// Applying changes one by one gives what a view made from only the last state of each thing gives.
    #[test]
    fn history_does_not_matter(changes in proptest::collection::vec(change(), 0..40)) {
        let stepwise = changes.iter().cloned().fold(View::default(), |view, change| view.apply([change]));
        let last = stepwise.services().cloned().map(Change::Service).chain(stepwise.workloads().cloned().map(Change::Workload));
        let fresh = View::default().apply(last.collect::<Vec<_>>());
        for last in 1..4 {
            let (pod, vip) = (format!("10.0.0.{last}").parse().unwrap(), format!("10.96.0.{last}").parse().unwrap());
            let at = |view: &View| view.workload_at("", pod).map(|workload| workload.addresses.clone());
            prop_assert_eq!(at(&stepwise), at(&fresh));
            let owner = |view: &View| view.service_at("", vip, "a").map(|service| service.hostname.clone());
            prop_assert_eq!(owner(&stepwise), owner(&fresh));
        }
        for service in stepwise.services() {
            prop_assert_eq!(stepwise.endpoints(&service.hostname).count(), fresh.endpoints(&service.hostname).count());
        }
    }
}
