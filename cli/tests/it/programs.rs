//! Commands that ask programs, on sockets that answer as the programs do.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::mesh::{Mesh, shop};

/// A mesh whose waypoint and node proxies have acknowledged version 3, which is the latest, unless told otherwise.
fn running() -> Mesh {
    running_at(3, json!({}))
}

/// The waypoint acknowledged this version, and refused this.
fn running_at(acknowledged: u64, rejected: Value) -> Mesh {
    let mesh = Mesh::new();
    let ztunnel = |name: &str, node: &str, address: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: istio-system}}\nspec: {{nodeName: {node}, serviceAccountName: ztunnel, containers: [{{name: main, image: main}}]}}\nstatus: {{phase: Running, podIP: {address}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
        )
    };
    mesh.write("objects/shop.yaml", &format!("{}{}", shop(), ztunnel("ztunnel-x7k2p", "a", "10.88.0.11")));
    let dump = json!({
        "workloads": [{"uid": "u", "name": "sleep", "namespace": "shop", "node": "a", "workloadIps": ["10.244.1.2"], "protocol": "HBONE", "waypoint": null},
            {"uid": "z", "name": "ztunnel-x7k2p", "namespace": "istio-system", "node": "a", "serviceAccount": "ztunnel", "workloadIps": ["10.88.0.11"], "protocol": "TCP", "waypoint": null}],
        "services": [], "policies": [],
        "certificates": [{"identity": "spiffe://cluster.local/ns/shop/sa/sleep", "state": "Available", "certChain": [], "rootCerts": []}],
        "workloadState": {"u1": {"info": {"name": "sleep", "namespace": "shop", "serviceAccount": "sleep"}, "connections": {"inbound": [], "outbound": []}}},
    });
    mesh.serve(
        "ztunnel.a.sock",
        &[
            ("GET /version", r#"{"version":"0.1.0"}"#),
            ("GET /config_dump", &dump.to_string()),
            ("POST /logging", "current log level is info\n"),
            ("POST /logging?level=info%2Caccess%3Doff", "current log level is info,access=off\n"),
        ],
    );
    let state = json!({"subscribed": true, "acknowledged": 3, "inFlight": null, "rejected": {}});
    let of_waypoint = json!({"subscribed": true, "acknowledged": acknowledged, "inFlight": null, "rejected": rejected});
    let clients = json!([{"client": "istio-system/ztunnel", "audience": "node proxies", "node": "ztunnel~10.88.0.11~ztunnel-x7k2p.istio-system~x", "subscriptions": {"address": state, "authorization": state}},
        {"client": "shop/waypoint", "audience": "waypoint shop/waypoint", "node": "waypoint~10.244.1.7~waypoint-1.shop~x", "subscriptions": {"host": of_waypoint}}]);
    mesh.serve(
        "tropisd.control.sock",
        &[
            ("GET /version", r#"{"version":"0.1.0"}"#),
            ("GET /debug/clients", &clients.to_string()),
            ("GET /debug/live", r#"{"generation":3,"live":true,"clients":1,"lagging":[]}"#),
        ],
    );
    let pools = json!([{"pool": "shop/reviews.shop.svc.cluster.local:9080/v1", "endpoints": [{"address": "10.244.2.3:8080", "workload": "Kubernetes//Pod/shop/reviews-v1", "weight": 1, "active": 0, "ejected": true}]}]);
    let own = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/config_dump.json")).unwrap();
    mesh.serve("waypoint.shop.waypoint-1.sock", &[("GET /config_dump", &own), ("GET /clusters", &pools.to_string())]);
    mesh
}

#[test]
fn versions_of_all_programs_are_asked() {
    let told = running().done(&["version"]);
    assert!(told.contains("control plane version: 0.1.0\n") && told.contains("data plane version: 0.1.0 (2 programs)"), "{told}");
    assert!(Mesh::new().done(&["version", "--client"]).starts_with("client version: "));
}

#[test]
fn a_status_has_a_row_for_every_pod() {
    let told = running().done(&["proxy-status"]);
    let row = |name: &str| told.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {told}")).to_owned();
    assert!(row("sleep.shop").contains("ztunnel-x7k2p.istio-system") && row("sleep.shop").contains("SYNCED"));
    assert!(row("ztunnel-x7k2p.istio-system").contains("2 (address,authorization)"));
    assert!(running().done(&["proxy-status", "waypoint.shop"]).contains("waypoint-1.shop"), "a waypoint by its Gateway's name");
}

#[test]
fn node_proxies_are_shown() {
    let mesh = running();
    assert!(mesh.done(&["ztunnel-config", "workloads"]).contains("10.244.1.2"));
    assert!(mesh.done(&["zc", "all", "-o", "json"]).contains("\"workloadState\""));
    let told = mesh.done(&["zc", "log", "--level", "info,access=off"]);
    assert_eq!(told, "ztunnel.a: current log level is info,access=off\n");
    let wrong = mesh.tropis(&["zc", "workloads", "--node", "z"]);
    assert!(wrong.code == 1 && wrong.error.contains("Nodes with one: a"), "{wrong:?}");
}

#[test]
fn endpoints_are_shown_with_what_the_running_waypoint_ejected() {
    let mesh = running();
    let told = mesh.done(&["proxy-config", "endpoints", "waypoint.shop"]);
    let ejected = told.lines().find(|line| line.contains("10.244.2.3:8080")).unwrap();
    assert!(ejected.contains("waypoint-1.shop") && ejected.contains("UNHEALTHY") && ejected.contains("FAILED"), "{told}");
    assert!(told.contains("10.244.2.4:8080"), "a pool that is not in use yet: {told}");
    assert_eq!(mesh.done(&["pc", "endpoints", "sleep.shop", "--status", "ejected"]).lines().count(), 2);
}

#[test]
fn routes_are_those_that_the_running_waypoint_has_in_force() {
    let mesh = running();
    let routes = mesh.done(&["pc", "routes", "waypoint.shop"]);
    assert!(routes.contains("waypoint-1.shop") && routes.contains("reviews.shop:9080/v1 75%"), "not the objects' 90%: {routes}");
    assert_eq!(mesh.done(&["pc", "routes", "sleep.shop"]), routes);
    assert!(mesh.done(&["pc", "clusters", "waypoint.shop", "--subset", "v2"]).contains("RANDOM"));
    assert!(mesh.done(&["pc", "listeners", "sleep.shop", "--port", "15008"]).contains("tunnel to reviews.shop.svc.cluster.local:9443"));
}

#[test]
fn explain_says_which_proxy_on_the_way_goes_by_something_older() {
    let ask = ["explain", "sleep.shop", "reviews:9080/x"];
    let proxies = |mesh: &Mesh| {
        let told: Value = serde_json::from_str(&mesh.done(&[&ask[..], &["-o", "json"]].concat())).unwrap();
        let part = |proxy: &Value, name: &str| proxy[name].as_str().unwrap().to_owned();
        told["proxies"].as_array().unwrap().iter().map(|proxy| [part(proxy, "place"), part(proxy, "status")].join(" ")).collect::<Vec<_>>()
    };
    let behind = running_at(2, json!({}));
    assert_eq!(proxies(&behind), ["node a SYNCED", "node b NOT CONNECTED", "waypoint shop/waypoint STALE"]);
    let told = behind.done(&ask);
    let (_, notes) = told.split_once("\nNot everywhere in force:\n").unwrap();
    assert_eq!(
        notes,
        "  node b is not connected to tropisd and goes by what it had\n  waypoint-1.shop (waypoint shop/waypoint) has not confirmed the latest yet\n\nAllowed.\n"
    );
    let refused = running_at(3, json!({"shop/reviews": "too many routes"})).done(&ask);
    assert!(refused.contains("refused host shop/reviews: too many routes; an older version is in force there"), "{refused}");
    assert_eq!(proxies(&running())[2], "waypoint shop/waypoint SYNCED");
    // A way that does not lead through the waypoint does not depend on it.
    let direct = behind.done(&["explain", "sleep.shop", "pod/old.legacy:80"]);
    assert!(!direct.contains("Not everywhere"), "{direct}");
}

#[test]
fn a_pod_leads_to_its_node_proxy() {
    let mesh = running();
    assert!(mesh.done(&["pc", "secret", "sleep.shop"]).contains("spiffe://cluster.local/ns/shop/sa/sleep"));
    assert!(mesh.done(&["pc", "secret", "waypoint.shop"]).contains("spiffe://cluster.local/ns/shop/sa/waypoint"));
    assert!(mesh.done(&["pc", "log", "sleep.shop"]).contains("The level is the proxy's"));
    let outside = mesh.tropis(&["pc", "secret", "old.legacy"]);
    assert!(outside.code == 1 && outside.error.contains("tropis label namespace legacy"), "{outside:?}");
}

#[test]
fn logs_of_a_pod_come_from_every_proxy() {
    let mesh = running();
    let line = |time: &str, pod: &str| {
        format!(
            "{{\"level\":\"info\",\"time\":\"{time}\",\"scope\":\"access\",\"message\":\"connection complete\",\"src.workload\":\"{pod}\",\"src.namespace\":\"shop\"}}\n"
        )
    };
    mesh.write("logs/ztunnel.a.log", &(line("2026-01-01T00:00:02Z", "sleep") + &line("2026-01-01T00:00:03Z", "other")));
    mesh.write("logs/ztunnel.b.log", &line("2026-01-01T00:00:01Z", "sleep"));
    let told = mesh.done(&["logs", "sleep.shop"]);
    let times: Vec<&str> = told.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(times, ["2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z"]);
    assert_eq!(mesh.done(&["logs", "ztunnel", "--tail", "1"]).lines().count(), 1);
    assert!(mesh.tropis(&["logs", "nobody"]).error.contains("ztunnel.a, ztunnel.b"));
}

#[test]
fn a_program_that_is_gone_is_said_so() {
    let mesh = Mesh::new();
    let ran = mesh.tropis(&["proxy-status"]);
    assert!(ran.code == 1 && ran.error.contains("Is the mesh running?"), "{ran:?}");
}

#[test]
fn a_completion_script_knows_the_commands() {
    assert!(Mesh::new().done(&["completion", "bash"]).contains("proxy-status"));
}

#[test]
fn what_only_the_control_plane_knows_is_analyzed_too() {
    let mesh = Mesh::new();
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: all, namespace: mesh-root}\nspec: {action: DENY, rules: [{}]}\n";
    let pod = |name: &str, address: &str| {
        let metadata = format!("{{name: {name}, namespace: shop, annotations: {{ambient.istio.io/redirection: enabled}}}}");
        let status = format!("{{phase: Running, podIP: {address}, conditions: [{{type: Ready, status: 'True'}}]}}");
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {metadata}\nspec: {{nodeName: a, containers: [{{name: main, image: main}}]}}\nstatus: {status}\n"
        )
    };
    mesh.write("objects/shop.yaml", &format!("{policy}{}{}", pod("one", "10.244.0.2"), pod("two", "10.244.0.3")));
    let ask = ["explain", "one.shop", "pod/two.shop:80"];
    let alone = mesh.tropis(&ask);
    assert!(alone.out.contains("Allowed") && alone.error.contains("are taken to be the usual ones"), "{alone:?}");

    let settings = json!({ "rootNamespace": "mesh-root" }).to_string();
    let finding = json!([{ "finding": {
        "code": "TRP0019", "level": "Info", "kind": "Namespace", "name": "shop", "origin": "Namespace shop", "message": "",
        "problem": "needs a waypoint for VirtualService shop/own", "effect": "waypoint shop/waypoint was made",
    }}]);
    mesh.serve("tropisd.control.sock", &[("GET /debug/settings", &settings), ("GET /debug/findings", &finding.to_string())]);
    let asked = mesh.tropis(&ask);
    assert!(asked.out.contains("Refused") && asked.error.is_empty(), "{asked:?}");
    let told = mesh.done(&["analyze", "live"]);
    assert!(told.contains("TRP0019") && told.contains("waypoint shop/waypoint was made"), "{told}");
}

/// Every command that lists facts, with the mesh of [`running`].
const LISTINGS: [&[&str]; 26] = [
    &["version"],
    &["analyze", "live"],
    &["analyze", "-L"],
    &["get", "pods", "-A"],
    &["get", "service", "reviews", "-n", "shop"],
    &["proxy-status"],
    &["proxy-status", "waypoint.shop"],
    &["proxy-config", "listeners", "sleep.shop"],
    &["proxy-config", "routes", "waypoint.shop"],
    &["proxy-config", "clusters", "waypoint.shop"],
    &["proxy-config", "endpoints", "waypoint.shop"],
    &["proxy-config", "secret", "sleep.shop"],
    &["proxy-config", "secret", "waypoint.shop"],
    &["proxy-config", "log", "sleep.shop"],
    &["ztunnel-config", "all"],
    &["ztunnel-config", "workloads"],
    &["ztunnel-config", "services"],
    &["ztunnel-config", "policies"],
    &["ztunnel-config", "certificates"],
    &["ztunnel-config", "connections"],
    &["ztunnel-config", "log"],
    &["waypoint", "list", "-A"],
    &["waypoint", "status", "-n", "shop"],
    &["waypoint", "generate", "-n", "shop"],
    &["explain", "sleep.shop", "reviews:9080/x"],
    &["logs", "ztunnel.a", "--tail", "1"],
];

#[test]
fn yaml_and_json_are_the_same_facts_for_every_listing() {
    let mesh = running();
    mesh.write("logs/ztunnel.a.log", "{\"time\":\"2026-01-01T00:00:01Z\",\"message\":\"yes: no\",\"bytes\":12,\"policy\":null}\n");
    for listing in LISTINGS {
        same(&mesh, listing);
    }
}

#[test]
fn what_is_done_is_told_to_programs_too() {
    let json = running();
    let yaml = running();
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n";
    for mesh in [&json, &yaml] {
        mesh.write("other.yaml", namespace);
    }
    let both = |arguments: &[&str]| {
        let told = [(&json, "json"), (&yaml, "yaml")].map(|(mesh, format)| {
            let file = mesh.path("other.yaml");
            let with_file = arguments.iter().map(|argument| if *argument == "FILE" { file.to_str().unwrap() } else { *argument });
            value(&mesh.done(&with_file.chain(["-o", format]).collect::<Vec<_>>()))
        });
        assert_eq!(told[0], told[1], "{arguments:?}");
        told[0].clone()
    };
    assert_eq!(both(&["apply", "-f", "FILE"]), json!([{"kind": "Namespace", "name": "other", "done": "created"}]));
    assert_eq!(both(&["label", "namespace", "other", "a=b"])[0]["done"], "labeled");
    assert_eq!(both(&["delete", "-f", "FILE"])[0]["done"], "deleted");
    let applied = both(&["waypoint", "apply", "-n", "legacy", "--enroll-namespace"]);
    assert_eq!(applied[0], json!({"kind": "Gateway", "namespace": "legacy", "name": "waypoint", "done": "applied"}));
    assert_eq!(applied[1]["done"], "labeled");
    assert_eq!(both(&["waypoint", "delete", "waypoint", "-n", "legacy"])[0]["done"], "deleted");
}

/// What was printed as JSON or YAML: one document.
fn value(text: &str) -> Value {
    let mut documents = tropis_source::yaml::documents(text);
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0).content.unwrap()
}

/// Both formats say the same, and something. YAML is read by the parser that reads the users' own files.
fn same(mesh: &Mesh, listing: &[&str]) {
    let told = |format: &str| mesh.done(&[listing, &["-o", format]].concat());
    let json: Value = serde_json::from_str(&told("json")).unwrap_or_else(|error| panic!("{listing:?}: {error}"));
    assert_eq!(value(&told("yaml")), json, "{listing:?}");
}
