//! Meshes in files by a seed: the pods and services that [`super::drawn`] is about, in any state, and what is drawn about them.

use tropis_model::resolve::Draw;

use super::drawn::{Drawn, PODS, PORTS, Places, Pod, Question, document, of, often};

/// A mesh.
pub(super) struct World {
    /// Its objects.
    pub(super) yaml: String,
    /// What is asked about it.
    pub(super) questions: Vec<Question>,
}

/// The last part of the first pod's addresses; the others follow.
const FIRST: usize = 2;

impl World {
    /// The mesh of a seed.
    pub(super) fn new(seed: u64) -> Self {
        let draw = &mut Draw::new(seed);
        let mut yaml = String::new();
        for namespace in ["shop", "bank", "istio-system"] {
            document(&mut yaml, "v1", "Namespace", &format!("{{name: {namespace}}}"), "");
        }
        let addressed = often(draw, 30);
        for (number, pod) in PODS.iter().enumerate() {
            write_pod(&mut yaml, draw, pod, FIRST + number, addressed);
        }
        services(&mut yaml, draw);
        waypoint(&mut yaml, draw);
        let places = Places { client: [10, 244, 0, 2].into(), app: [10, 96, 0, 9].into() };
        let drawn = Drawn::new(draw, &places);
        Self { yaml: yaml + &drawn.yaml, questions: drawn.questions }
    }
}

fn write_pod(yaml: &mut String, draw: &mut Draw, pod: &Pod, number: usize, addressed: bool) {
    let Pod { name, namespace, account, app, version, node } = pod;
    let enrolled = if often(draw, 85) { "annotations: {ambient.istio.io/redirection: enabled}, " } else { "" };
    let waypoint = if addressed && *app == "app" { ", istio.io/use-waypoint: waypoint" } else { "" };
    let ready = if often(draw, 85) { "True" } else { "False" };
    let metadata = format!("{{name: {name}, namespace: {namespace}, {enrolled}labels: {{app: {app}, version: {version}{waypoint}}}}}");
    let addresses = format!("podIP: 10.244.0.{number}, podIPs: [{{ip: 10.244.0.{number}}}, {{ip: 'fd00:10:244::{number}'}}]");
    let rest = format!(
        "spec: {{nodeName: {node}, serviceAccountName: {account}, containers: [{{name: main, image: main}}]}}\n\
         status: {{phase: Running, {addresses}, conditions: [{{type: Ready, status: '{ready}'}}]}}"
    );
    document(yaml, "v1", "Pod", &metadata, &rest);
}

fn services(yaml: &mut String, draw: &mut Draw) {
    let mut through = |percent: u64| if often(draw, percent) { ", labels: {istio.io/use-waypoint: waypoint}" } else { "" };
    let (of_app, of_plain) = (through(90), through(50));
    let local = if often(draw, 20) { ", internalTrafficPolicy: Local" } else { "" };
    let (app, plain) = (PORTS.join(", "), PORTS[0].to_owned());
    for (name, number, ports, labels, more) in [("app", 9, app, of_app, ""), ("plain", 10, plain, of_plain, local)] {
        let rest = format!(
            "spec: {{selector: {{app: {name}}}, clusterIP: 10.96.0.{number}, clusterIPs: [10.96.0.{number}, 'fd00:10:96::{number}'], ports: [{ports}]{more}}}"
        );
        document(yaml, "v1", "Service", &format!("{{name: {name}, namespace: shop{labels}}}"), &rest);
    }
}

fn waypoint(yaml: &mut String, draw: &mut Draw) {
    let serves = of(draw, &["all", "service", "all", "service", "workload"]);
    let replicas = 1 + draw.below(2);
    for number in 0..replicas {
        let metadata = format!(
            "{{name: waypoint-{number}, namespace: shop, labels: {{gateway.networking.k8s.io/gateway-name: waypoint, istio.io/dataplane-mode: none}}}}"
        );
        let address = 20 + number;
        let rest = format!(
            "spec: {{nodeName: a, serviceAccountName: waypoint, containers: [{{name: istio-proxy, image: tropis/waypoint}}]}}\n\
             status: {{phase: Running, podIP: 10.244.0.{address}, podIPs: [{{ip: 10.244.0.{address}}}, {{ip: 'fd00:10:244::{address}'}}], conditions: [{{type: Ready, status: 'True'}}]}}"
        );
        document(yaml, "v1", "Pod", &metadata, &rest);
    }
    let selector = "{gateway.networking.k8s.io/gateway-name: waypoint}";
    let rest = format!(
        "spec: {{selector: {selector}, clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00:10:96::7'], ports: [{{name: mesh, port: 15008}}]}}"
    );
    document(
        yaml,
        "v1",
        "Service",
        "{name: waypoint, namespace: shop, labels: {gateway.istio.io/managed: istio.io-mesh-controller}}",
        &rest,
    );
    document(
        yaml,
        "gateway.networking.k8s.io/v1",
        "Gateway",
        &format!("{{name: waypoint, namespace: shop, labels: {{istio.io/waypoint-for: {serves}}}}}"),
        "spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n\
         status: {addresses: [{type: Hostname, value: waypoint.shop.svc.cluster.local}], conditions: [{type: Programmed, status: 'True', reason: Programmed}]}",
    );
}
