//! The controllers together, with a kubelet played by the test.

use serde_json::json;

use super::*;
use crate::cluster::pods::{ContainerState, ContainerStatus, Phase};

fn state() -> State {
    let plan = AddressPlan::new(0);
    let node = |name: &str, number| NodeRecord {
        name: name.into(),
        uid: ids::random_uid(),
        labels: seed::node_labels(name, true),
        addresses: plan.node(number),
        schedulable: true,
    };
    State::new(plan, vec![node("a", 1), node("b", 2)], BTreeMap::new(), SystemTime::UNIX_EPOCH)
}

fn apply(state: &mut State, object: Value) {
    let key = object::key_of(&object).expect("a key");
    state.take_in(Event::Applied(key, object));
}

fn web() -> [Value; 2] {
    [
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"}, "spec": {"replicas": 2, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
    ]
}

fn play_kubelet(state: &mut State) {
    let pods = state.pods.clone();
    for (number, (key, record)) in pods.iter().enumerate() {
        let status = PodStatus {
            phase: Phase::Running,
            addresses: Some(AddressPlan::new(0).pod(1, 2 + u8::try_from(number).expect("few"))),
            containers: vec![ContainerStatus {
                name: "c".into(),
                image: "i".into(),
                ready: true,
                restarts: 0,
                state: ContainerState::Running(SystemTime::UNIX_EPOCH),
            }],
            ..PodStatus::default()
        };
        state.take_in(Event::Status(key.clone(), record.uid.clone(), status));
    }
}

#[test]
fn a_deployment_becomes_pods_and_a_service_with_endpoints() {
    let mut state = state();
    for object in web() {
        apply(&mut state, object);
    }
    let (wanted, snapshot) = state.reconcile(SystemTime::UNIX_EPOCH);
    assert_eq!(snapshot.pods.len(), 2);
    let service = wanted[&Key::new("Service", "shop", "web")].value();
    assert_eq!(service["spec"]["clusterIPs"], json!(["10.96.0.20", "fd00:10:96::14"]));
    assert!(service["spec"].get("ports").is_none(), "the user's fields stay the user's");
    assert!(wanted.contains_key(&Key::new("Namespace", "", "shop")), "made because an object lives there");
    play_kubelet(&mut state);
    let (wanted, _) = state.reconcile(SystemTime::UNIX_EPOCH);
    let slice = wanted[&Key::new("EndpointSlice", "shop", "web-ipv4")].value();
    assert_eq!(slice["endpoints"].as_array().map(Vec::len), Some(2));
    assert_eq!(slice["endpoints"][0]["conditions"]["ready"], true);
}

#[test]
fn well_known_services_have_their_well_known_addresses() {
    let (wanted, _) = state().reconcile(SystemTime::UNIX_EPOCH);
    let addresses = |namespace: &str, name: &str| wanted[&Key::new("Service", namespace, name)].value()["spec"]["clusterIPs"].clone();
    assert_eq!(addresses("kube-system", "kube-dns"), json!(["10.96.0.10", "fd00:10:96::a"]));
    assert_eq!(addresses("default", "kubernetes"), json!(["10.96.0.1", "fd00:10:96::1"]));
    let istiod = wanted[&Key::new("Service", "istio-system", "istiod")].value();
    assert!(istiod["spec"]["ports"].is_array(), "nobody else writes it, so it is whole");
}

#[test]
fn what_is_assigned_stays_while_the_object_changes_and_goes_with_it() {
    let mut state = state();
    let [_, service] = web();
    apply(&mut state, service.clone());
    let uid = |state: &mut State| state.reconcile(SystemTime::UNIX_EPOCH).1.uids.get(&Key::new("Service", "shop", "web")).cloned();
    let first = uid(&mut state);
    let mut changed = service.clone();
    changed["spec"]["ports"][0]["port"] = json!(81);
    apply(&mut state, changed);
    assert_eq!(uid(&mut state), first);
    state.take_in(Event::Deleted(Key::new("Service", "shop", "web")));
    assert_eq!(uid(&mut state), None);
    apply(&mut state, service);
    assert_ne!(uid(&mut state), first, "another object of the same name");
}

#[test]
fn pods_of_an_unknown_account_are_not_made_and_the_reason_is_told() {
    let mut state = state();
    apply(&mut state, json!({"kind": "Pod", "metadata": {"name": "x"}, "spec": {"serviceAccountName": "nobody"}}));
    let (_, snapshot) = state.reconcile(SystemTime::UNIX_EPOCH);
    assert!(snapshot.pods.is_empty());
    assert!(snapshot.problems[&Key::pod("default", "x")].contains("default/nobody"));
    apply(&mut state, json!({"kind": "ServiceAccount", "metadata": {"name": "nobody"}}));
    let (_, snapshot) = state.reconcile(SystemTime::UNIX_EPOCH);
    assert_eq!((snapshot.pods.len(), snapshot.problems.len()), (1, 0));
}

#[test]
fn a_deleted_pod_stays_until_its_kubelet_is_done() {
    let mut state = state();
    apply(&mut state, json!({"kind": "Pod", "metadata": {"name": "x"}, "spec": {}}));
    state.reconcile(SystemTime::UNIX_EPOCH);
    let key = Key::pod("default", "x");
    state.take_in(Event::Deleted(key.clone()));
    let (wanted, snapshot) = state.reconcile(SystemTime::UNIX_EPOCH);
    assert!(wanted[&key].value()["metadata"]["deletionTimestamp"].is_string());
    state.take_in(Event::Gone(key.clone(), snapshot.pods[&key].uid.clone()));
    assert!(!state.reconcile(SystemTime::UNIX_EPOCH).0.contains_key(&key));
}

#[test]
fn uids_and_service_addresses_outlive_the_harness() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("assigned.json");
    let started = |now| state().remembering(Memory::open(file.clone(), now));
    let key = Key::new("Service", "shop", "web");
    let seen = |state: &mut State| {
        let (wanted, snapshot) = state.reconcile(SystemTime::UNIX_EPOCH);
        let service = snapshot.services.iter().find(|service| service.key == key).expect("a service");
        (snapshot.uids[&key].clone(), service.addresses.clone(), wanted[&key].value()["metadata"]["creationTimestamp"].clone())
    };
    let mut first = started(SystemTime::UNIX_EPOCH);
    let earlier = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "another", "namespace": "shop"}, "spec": {"ports": [{"port": 1}]}});
    apply(&mut first, earlier);
    first.reconcile(SystemTime::UNIX_EPOCH);
    apply(&mut first, web()[1].clone());
    let before = seen(&mut first);
    first.remember(SystemTime::UNIX_EPOCH).expect("written");

    // The other service is gone and its place is free, yet this one keeps its own.
    let mut second = started(SystemTime::UNIX_EPOCH);
    second.reconcile(SystemTime::UNIX_EPOCH);
    second.remember(SystemTime::UNIX_EPOCH).expect("nothing lost before objects are read");
    apply(&mut second, web()[1].clone());
    assert_eq!(seen(&mut second), before);
    // Taken away and made again, it is another object.
    second.take_in(Event::Deleted(key.clone()));
    second.reconcile(SystemTime::UNIX_EPOCH);
    apply(&mut second, web()[1].clone());
    assert_ne!(seen(&mut second).0, before.0);
}
