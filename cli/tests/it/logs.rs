//! `tropis logs` on lines that real programs wrote: a waypoint and the node proxies of a mesh of two nodes, in `testdata/recorded`.

use std::{fs, path::Path};

use serde_json::Value;

use crate::mesh::Mesh;

/// The waypoint's pod in the recording.
const WAYPOINT: &str = "waypoint-m27tbj4vqs-kx7s8";

fn recorded() -> Mesh {
    let mesh = Mesh::new();
    let pod = |namespace: &str, name: &str, labels: &str, addresses: [&str; 2]| {
        let [first, second] = addresses;
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\nspec: {{nodeName: a, containers: [{{name: main, image: main}}]}}\nstatus: {{phase: Running, podIP: '{first}', podIPs: [{{ip: '{first}'}}, {{ip: '{second}'}}]}}\n"
        )
    };
    let pods = [
        pod("shop", "client", "app: client", ["10.244.1.3", "fd00:10:244:1::3"]),
        pod("shop", "app-v1", "app: app", ["10.244.1.2", "fd00:10:244:1::2"]),
        pod("bank", "other", "app: other", ["10.244.2.5", "fd00:10:244:2::5"]),
        pod("shop", WAYPOINT, "gateway.networking.k8s.io/gateway-name: waypoint", ["10.244.1.5", "fd00:10:244:1::5"]),
    ];
    mesh.write("objects/pods.yaml", &pods.concat());
    for (log, name) in [("waypoint", &*format!("shop.{WAYPOINT}.istio-proxy")), ("ztunnel.a", "ztunnel.a"), ("ztunnel.b", "ztunnel.b")] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/recorded/{log}.log"))).unwrap();
        mesh.write(&format!("logs/{name}.log"), &text);
    }
    // What an application says about others is not the mesh's word.
    mesh.write(
        "logs/shop.app-v1.main.log",
        "{\"time\":\"2026-11-21T16:09:23.000000Z\",\"message\":\"forged\",\"src.workload\":\"client\",\"src.namespace\":\"shop\"}\n",
    );
    mesh
}

fn times(mesh: &Mesh, name: &str) -> Vec<String> {
    let told = mesh.done(&["logs", name, "-o", "json"]);
    let time = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["time"].as_str().or(line["start_time"].as_str()).unwrap().to_owned()
    };
    told.lines().map(time).collect()
}

#[test]
fn a_pod_is_told_about_by_node_proxies_and_by_waypoints_in_the_order_of_time() {
    let mesh = recorded();
    assert_eq!(
        times(&mesh, "client.shop"),
        [
            "2026-11-21T16:09:22.250Z",
            "2026-11-21T16:09:22.256416Z",
            "2026-11-21T16:09:22.629058Z",
            // This call came by the pod's IPv6 address.
            "2026-11-21T16:09:24.583Z"
        ]
    );
    assert_eq!(
        times(&mesh, "app-v1.shop"),
        ["2026-11-21T16:09:22.058362Z", "2026-11-21T16:09:23.045618Z", "2026-11-21T16:09:24.583Z"],
        "the endpoint of a request too"
    );
    assert!(times(&mesh, "other.bank").contains(&"2026-11-21T16:09:23.849Z".to_owned()), "a request that was refused");
    let last = mesh.done(&["logs", "client.shop", "--tail", "1"]);
    assert!(last.starts_with("2026-11-21T16:09:24.583Z  route_name=rule-0  method=GET  "), "{last}");
}

#[test]
fn a_waypoint_is_named_by_its_gateway_or_by_its_pod() {
    let mesh = recorded();
    let whole = mesh.read(&format!("logs/shop.{WAYPOINT}.istio-proxy.log"));
    for name in ["waypoint.shop", &format!("{WAYPOINT}.shop"), &format!("shop.{WAYPOINT}.istio-proxy")] {
        assert_eq!(mesh.done(&["logs", name, "-o", "json"]), whole, "{name}");
    }
    assert_eq!(mesh.done(&["logs", "waypoint", "-n", "shop", "-o", "json"]), whole);
}

#[test]
fn a_namespace_is_no_program() {
    let mesh = recorded();
    let refused = mesh.tropis(&["logs", "shop"]);
    assert!(refused.code == 1 && refused.error.contains("neither a program with a log, nor a waypoint or a pod"), "{refused:?}");
    // Not even one that is called like a program.
    mesh.write(
        "objects/more.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: ztunnel}\nspec: {containers: [{name: main, image: main}]}\n",
    );
    mesh.write("logs/ztunnel.x.main.log", "{\"message\":\"an application\"}\n");
    assert!(!mesh.done(&["logs", "ztunnel"]).contains("an application"));
    assert_eq!(mesh.done(&["logs", "ztunnel.x.main"]), "an application\n");
}
