//! Deployments, bare pods and scheduling, without a kubelet.

use super::*;
use crate::network::addresses::AddressPlan;

fn deployment(replicas: u64, image: &str) -> Value {
    json!({"kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": replicas, "template": {
        "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}})
}

fn key() -> Key {
    Key::new("Deployment", "shop", "web")
}

fn make_ready(pods: &mut Pods) {
    for record in pods.values_mut() {
        record.status.phase = Phase::Running;
        record.status.containers = vec![ContainerStatus {
            name: "c".into(),
            image: "i".into(),
            ready: true,
            restarts: 0,
            state: ContainerState::Running(SystemTime::UNIX_EPOCH),
        }];
    }
}

fn alive(pods: &Pods) -> usize {
    pods.values().filter(|record| record.deleting.is_none()).count()
}

#[test]
fn a_deployment_gets_its_replicas_with_names_as_in_kubernetes() {
    let mut pods = Pods::new();
    reconcile_deployment(&mut pods, &key(), &deployment(2, "one"), SystemTime::UNIX_EPOCH);
    assert_eq!(pods.len(), 2);
    let (pod, record) = pods.iter().next().expect("two");
    assert_eq!(pod.name.split('-').map(str::len).collect::<Vec<_>>(), [3, 10, 5], "{pod}");
    assert_eq!(record.template["metadata"]["labels"]["app"], "web");
    reconcile_deployment(&mut pods, &key(), &deployment(2, "one"), SystemTime::UNIX_EPOCH);
    assert_eq!(pods.len(), 2, "nothing to do the second time");
}

#[test]
fn a_rolling_change_never_goes_below_the_wanted_number() {
    let mut pods = Pods::new();
    reconcile_deployment(&mut pods, &key(), &deployment(2, "one"), SystemTime::UNIX_EPOCH);
    make_ready(&mut pods);
    reconcile_deployment(&mut pods, &key(), &deployment(2, "two"), SystemTime::UNIX_EPOCH);
    assert_eq!((pods.len(), alive(&pods)), (3, 3), "one more comes first");
    for _ in 0..6 {
        make_ready(&mut pods);
        reconcile_deployment(&mut pods, &key(), &deployment(2, "two"), SystemTime::UNIX_EPOCH);
        assert!(pods.values().filter(|record| record.deleting.is_none() && record.status.ready()).count() >= 2);
    }
    assert_eq!(alive(&pods), 2);
    let images: Vec<_> =
        pods.values().filter(|record| record.deleting.is_none()).map(|r| &r.template["spec"]["containers"][0]["image"]).collect();
    assert!(images.iter().all(|image| **image == "two"), "{images:?}");
}

#[test]
fn scaling_down_and_deleting_mark_pods() {
    let mut pods = Pods::new();
    reconcile_deployment(&mut pods, &key(), &deployment(3, "one"), SystemTime::UNIX_EPOCH);
    make_ready(&mut pods);
    reconcile_deployment(&mut pods, &key(), &deployment(1, "one"), SystemTime::UNIX_EPOCH);
    assert_eq!(alive(&pods), 1);
    delete_orphans(&mut pods, &BTreeMap::new(), SystemTime::UNIX_EPOCH);
    assert_eq!(alive(&pods), 0);
}

#[test]
fn pods_spread_and_obey_selectors() {
    let plan = AddressPlan::new(0);
    let node = |name: &str, number, schedulable| NodeRecord {
        name: name.into(),
        uid: ids::random_uid(),
        labels: BTreeMap::from([("kubernetes.io/hostname".into(), name.into())]),
        addresses: plan.node(number),
        schedulable,
    };
    let nodes = [node("control", 9, false), node("a", 1, true), node("b", 2, true)];
    let mut pods = Pods::new();
    reconcile_deployment(&mut pods, &key(), &deployment(2, "one"), SystemTime::UNIX_EPOCH);
    let pinned = json!({"metadata": {}, "spec": {"nodeSelector": {"kubernetes.io/hostname": "b"}}});
    reconcile_bare(&mut pods, &Key::pod("shop", "pinned"), &pinned, SystemTime::UNIX_EPOCH);
    let lost = json!({"metadata": {}, "spec": {"nodeName": "nowhere"}});
    reconcile_bare(&mut pods, &Key::pod("shop", "lost"), &lost, SystemTime::UNIX_EPOCH);
    schedule(&mut pods, &nodes);
    let mut web: Vec<_> = pods.iter().filter(|(key, _)| key.name.starts_with("web")).filter_map(|(_, r)| r.node.clone()).collect();
    web.sort();
    assert_eq!(web, ["a", "b"]);
    assert_eq!(pods[&Key::pod("shop", "pinned")].node.as_deref(), Some("b"));
    // A node that is named but does not exist: the pod waits, as in Kubernetes.
    assert_eq!(pods[&Key::pod("shop", "lost")].node.as_deref(), Some("nowhere"));
}

#[test]
fn a_bare_pod_may_change_its_labels_only() {
    let mut pods = Pods::new();
    let pod = |label: &str, image: &str| json!({"metadata": {"labels": {"v": label}}, "spec": {"containers": [{"image": image}]}});
    let key = Key::pod("shop", "one");
    reconcile_bare(&mut pods, &key, &pod("1", "x"), SystemTime::UNIX_EPOCH);
    reconcile_bare(&mut pods, &key, &pod("2", "y"), SystemTime::UNIX_EPOCH);
    assert_eq!(pods[&key].template["metadata"]["labels"]["v"], "2");
    assert_eq!(pods[&key].template["spec"]["containers"][0]["image"], "x");
    delete_bare(&mut pods, &BTreeMap::new(), SystemTime::UNIX_EPOCH);
    assert!(pods[&key].deleting.is_some());
}

#[test]
fn a_pod_runs_as_the_account_that_the_mesh_takes_it_for() {
    for (spec, account) in [
        (json!({"serviceAccountName": "cart"}), "cart"),
        (json!({"serviceAccount": "cart"}), "cart"),
        (json!({"serviceAccountName": "cart", "serviceAccount": "other"}), "cart"),
        (json!({"serviceAccountName": "", "serviceAccount": "cart"}), "cart"),
        (json!({}), DEFAULT_SERVICE_ACCOUNT),
    ] {
        assert_eq!(service_account(&spec), account, "{spec}");
        let mut whole = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "shop"}, "spec": spec});
        whole["spec"]["containers"] = json!([]);
        let (object, _) = tropis_crds::decode(whole).expect("a pod");
        assert_eq!(object.pod_service_account(), Some(account), "the mesh reads it otherwise: {spec}");
    }
}
