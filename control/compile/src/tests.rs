//! Golden cases: `testdata/CASE/input.yaml` in, `expected.yaml` out (`UPDATE_EXPECT=1` rewrites it), and properties of any input.

use std::{fmt::Write, fs, path::Path};

use serde::Deserialize;
use serde_json::Value;
use tropis_crds::decode;

use super::*;

fn objects(yaml: &str) -> Vec<Arc<tropis_crds::Object>> {
    let documents = yaml.split("\n---\n").filter(|text| !text.trim().is_empty());
    let values = documents.map(|text| serde_saphyr::from_str::<Value>(text).unwrap());
    values.map(|value| Arc::new(decode(value).unwrap().0)).collect()
}

fn compiled(objects: &[Arc<tropis_crds::Object>]) -> Compiled {
    let mut index = Index::new(Settings::default());
    objects.iter().for_each(|object| index.apply(object));
    compile(&index)
}

/// What a reviewer should read: a line a fact.
fn shown(compiled: &Compiled) -> String {
    let mut text = String::new();
    for workload in &compiled.workloads {
        let _ = writeln!(text, "workload {} {} {:?} {:?}", workload.uid, workload.identity, workload.tunnel_protocol, workload.health);
        let _ = writeln!(text, "  addresses {:?} node {:?} owner {}", workload.addresses, workload.node, workload.workload_name);
        let _ = writeln!(text, "  policies {:?}", workload.authorization_policies);
        for (service, ports) in &workload.services {
            let _ = writeln!(text, "  serves {service} {ports:?}");
        }
    }
    for service in &compiled.services {
        let addresses: Vec<_> = service.addresses.iter().map(|own| own.block.addr()).collect();
        let _ = writeln!(text, "service {} {addresses:?} {:?}", service.hostname, service.ip_families);
        let _ = writeln!(text, "  {:?}", service.load_balancing);
        for (number, port) in &service.ports {
            let _ = writeln!(text, "  port {number} {port:?}");
        }
    }
    for policy in &compiled.policies {
        let _ = writeln!(text, "policy {} {:?} {:?} dry_run={}", policy.key, policy.scope, policy.action, policy.dry_run);
        for rule in &policy.rules {
            let _ = writeln!(text, "  rule");
            for clause in &rule.clauses {
                let fields = clause.matches.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>().join(" or ");
                let _ = writeln!(text, "    {}", without_empty_fields(&fields));
            }
        }
    }
    for finding in &compiled.findings {
        let _ = writeln!(text, "finding {finding}");
    }
    text
}

/// Drops `field: []` from a `Debug` text, which is most of a match.
fn without_empty_fields(text: &str) -> String {
    let mut text = text.replace("Match { ", "{").replace(" }", "}");
    for field in ["namespaces", "principals", "service_accounts", "source_ips", "destination_ips", "destination_ports"] {
        for name in [format!("not_{field}: []"), format!("{field}: []")] {
            text = text.replace(&format!("{name}, "), "").replace(&format!(", {name}"), "").replace(&name, "");
        }
    }
    text
}

#[test]
fn golden_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut cases: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    for case in cases {
        let input = fs::read_to_string(case.join("input.yaml")).unwrap();
        let shown = shown(&compiled(&objects(&input)));
        let expected = case.join("expected.txt");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&expected, &shown).unwrap();
        }
        assert_eq!(shown, fs::read_to_string(&expected).unwrap_or_default(), "{}", case.display());
    }
}

#[test]
fn the_order_of_objects_does_not_matter() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    for entry in fs::read_dir(&folder).unwrap() {
        let objects = objects(&fs::read_to_string(entry.unwrap().path().join("input.yaml")).unwrap());
        let reversed: Vec<_> = objects.iter().rev().cloned().collect();
        assert_eq!(compiled(&objects), compiled(&reversed));
        let (first, rest) = objects.split_first().unwrap();
        let mut index = Index::new(Settings::default());
        objects.iter().for_each(|object| index.apply(object));
        index.remove(&first.reference());
        assert_eq!(compile(&index), compiled(rest), "taking out {}", first.reference());
    }
}

#[derive(Deserialize)]
struct Case {
    mesh: Option<String>,
    namespace: Option<String>,
    workload: Option<String>,
    ports: std::collections::BTreeMap<String, String>,
    plain: std::collections::BTreeMap<u16, bool>,
}

/// Whether a caller without an identity gets through to each port, for every combination of scopes.
#[test]
fn peer_authentication_in_all_modes_and_scopes() {
    use tropis_model::{
        authorize,
        authorize::ConnectionFacts,
        view::{Change, View},
    };
    let cases: Vec<Case> = serde_saphyr::from_str(include_str!("tests/peer_modes.yaml")).unwrap();
    for (number, case) in cases.iter().enumerate() {
        let peer = |name: &str, namespace: &str, selector: &str, mode: &Option<String>, ports: &str| {
            let mode = mode.as_ref().map(|mode| format!("  mtls: {{mode: {mode}}}\n")).unwrap_or_default();
            format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  {selector}\n{mode}{ports}"
            )
        };
        let ports = case.ports.iter().map(|(port, mode)| format!("    \"{port}\": {{mode: {mode}}}\n")).collect::<String>();
        let ports = if ports.is_empty() { ports } else { format!("  portLevelMtls:\n{ports}") };
        let none = "selector: null";
        let mut documents = vec![
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\nspec: {containers: [{name: web}]}\nstatus: {phase: Running, podIP: 10.0.0.1}\n".to_owned(),
        ];
        documents.extend(case.mesh.as_ref().map(|_| peer("mesh", "istio-system", none, &case.mesh, "")));
        documents.extend(case.namespace.as_ref().map(|_| peer("shop", "shop", none, &case.namespace, "")));
        if case.workload.is_some() || !ports.is_empty() {
            documents.push(peer("web", "shop", "selector: {matchLabels: {app: web}}", &case.workload, &ports));
        }
        let compiled = compiled(&objects(&documents.join("\n---\n")));
        let changes = compiled.policies.iter().cloned().map(|policy| Change::Policy(Arc::new(policy)));
        let view = View::default().apply(changes);
        for (port, open) in &case.plain {
            let destination = std::net::SocketAddr::new("10.0.0.1".parse().unwrap(), *port);
            let mut facts = ConnectionFacts { peer: None, source: "10.0.0.9".parse().unwrap(), destination };
            let plain = authorize::inbound(&view, &compiled.workloads[0], &facts);
            assert_eq!(plain.is_ok(), *open, "case {number}, port {port}: {plain:?}");
            facts.peer = Some("spiffe://cluster.local/ns/shop/sa/x".parse().unwrap());
            assert!(authorize::inbound(&view, &compiled.workloads[0], &facts).is_ok(), "case {number}: an identity always passes");
        }
    }
}
