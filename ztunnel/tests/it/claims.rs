//! A pod that gives itself the address of another is not served there, whoever comes first.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tropis_model::view::Change;

use crate::{
    mesh::{Mesh, MeshPod},
    network,
};

/// The addresses at which a node's proxy serves a pod.
fn served(mesh: &Mesh, pod: &MeshPod) -> BTreeSet<IpAddr> {
    let pods = mesh.nodes[0].shared.served_pods();
    let found = pods.iter().find(|served| *served.uid == pod.uid).unwrap();
    found.addresses().iter().copied().collect()
}

/// Waits until a pod is served at `expected`.
fn becomes(mesh: &Mesh, pod: &MeshPod, expected: &[IpAddr]) {
    let expected: BTreeSet<_> = expected.iter().copied().collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    while served(mesh, pod) != expected {
        assert!(Instant::now() < deadline, "{}: {:?} is not {expected:?}", pod.name, served(mesh, pod));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_pod_cannot_take_over_the_address_of_another() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("claims");
    let (victim, thief) = (mesh.unserved_pod(0, "victim", 1), mesh.unserved_pod(0, "thief", 2));
    let (stolen, own) = ([victim.network.v4, victim.network.v6], [thief.network.v4, thief.network.v6]);
    for address in stolen {
        mesh.network.claim(2, address);
    }
    // It may come before its victim, and before the control plane's word: then the address is its own until somebody else is there.
    mesh.serve(0, &thief);
    mesh.serve(0, &victim);
    becomes(&mesh, &thief, &own);
    becomes(&mesh, &victim, &[]);
    mesh.apply([&victim, &thief].map(|pod| Change::Workload(Arc::new(pod.workload.clone()))));
    becomes(&mesh, &thief, &own);
    becomes(&mesh, &victim, &stolen);
    // Nor does it inherit while its victim is known.
    assert_eq!(mesh.nodes[0].agent.remove(&victim.uid), "");
    becomes(&mesh, &thief, &own);
    mesh.serve(0, &victim);
    becomes(&mesh, &victim, &stolen);
}
