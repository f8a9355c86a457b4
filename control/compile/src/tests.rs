//! Golden cases: `testdata/CASE/input.yaml` in, `expected.yaml` out (`UPDATE_EXPECT=1` rewrites it), tables, and properties of any input.

mod shown;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use serde_json::{Value, json};
use tropis_crds::{Object, ObjectRef, decode};
use tropis_model::{
    authorize::{self, ConnectionFacts},
    identity::Identity,
    view::{Change, View},
};

use super::*;

fn object(value: Value) -> Arc<Object> {
    Arc::new(decode(value).unwrap().0)
}

fn objects(yaml: &str) -> Vec<Arc<Object>> {
    let documents = yaml.split("\n---\n").filter(|text| !text.trim().is_empty());
    documents.map(|text| object(serde_saphyr::from_str::<Value>(text).unwrap())).collect()
}

fn compiled(objects: &[Arc<Object>]) -> Compiled {
    let mut index = Index::new(Settings::default());
    for object in objects {
        index.apply(object);
    }
    compile(&index)
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    // Others belong to `routing_tests`.
    let mut cases: Vec<_> = entries.filter(|case| case.join("input.yaml").exists()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

#[test]
fn golden_cases() {
    for case in cases() {
        let shown = shown::shown(&compiled(&objects(&fs::read_to_string(case.join("input.yaml")).unwrap())));
        let expected = case.join("expected.yaml");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&expected, &shown).unwrap();
        }
        assert_eq!(shown, fs::read_to_string(&expected).unwrap_or_default(), "{}", case.display());
    }
}

/// What a view knows after changes, to compare with what was compiled.
#[derive(Default)]
struct Told {
    workloads: HashMap<String, Workload>,
    services: HashMap<String, Service>,
    policies: HashMap<String, Policy>,
}

impl Told {
    fn take(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Workload(own) => drop(self.workloads.insert(own.uid.to_string(), (*own).clone())),
                Change::Service(own) => drop(self.services.insert(own.hostname.to_string(), (*own).clone())),
                Change::Policy(own) => drop(self.policies.insert(own.key.to_string(), (*own).clone())),
                Change::RemoveAddress(name) => {
                    let known = self.workloads.remove(&*name).is_some() || self.services.remove(&*name).is_some();
                    assert!(known, "{name} was never told");
                }
                Change::RemovePolicy(key) => assert!(self.policies.remove(&*key.0).is_some(), "{key} was never told"),
                Change::Host(_) | Change::RemoveHost(_) | Change::Waypoint(_) | Change::RemoveWaypoint(_) => {}
            }
        }
    }

    fn check(&self, compiled: &Compiled) {
        let workloads: HashMap<_, _> = compiled.workloads.iter().map(|own| (own.uid.to_string(), own.clone())).collect();
        assert_eq!(self.workloads, workloads);
        let services: HashMap<_, _> = compiled.services.iter().map(|own| (own.hostname.to_string(), own.clone())).collect();
        assert_eq!(self.services, services);
        let policies: HashMap<_, _> = compiled.policies.iter().map(|own| (own.key.to_string(), own.clone())).collect();
        assert_eq!(self.policies, policies);
    }
}

/// An edit of a small world, in which much refers to much.
#[derive(Debug, Clone)]
enum Step {
    Apply(Value),
    Remove(ObjectRef),
}

fn step() -> impl Strategy<Value = Step> {
    let namespace = prop_oneof![Just("shop"), Just("bank"), Just("istio-system")];
    let name = prop_oneof![Just("a"), Just("b"), Just("c")];
    let app = prop_oneof![Just("web"), Just("db")];
    let mode = prop_oneof![Just("UNSET"), Just("STRICT"), Just("PERMISSIVE"), Just("DISABLE")];
    let kind = 0..8u8;
    (kind, namespace, name, app, mode, any::<[bool; 4]>(), 0..3u8).prop_map(|(kind, namespace, name, app, mode, flags, number)| {
        let meta = json!({
            "name": name, "namespace": namespace, "labels": {"app": app, "version": format!("v{number}")},
            "annotations": {"ambient.istio.io/redirection": if flags[0] { "enabled" } else { "pending" }},
            "creationTimestamp": format!("2026-01-0{}T00:00:00Z", number + 1),
        });
        let selector = json!({"matchLabels": if flags[1] { json!({"app": app}) } else { json!({}) }});
        let value = match kind {
            0 | 1 => json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": meta,
                "spec": {"nodeName": format!("node{number}"), "containers": [{"name": "a", "ports": [{"name": "http", "containerPort": 8080}]}]},
                "status": {"phase": if flags[2] { "Running" } else { "Succeeded" }, "podIP": format!("10.0.0.{number}")},
            }),
            2 => json!({
                "apiVersion": "v1", "kind": "Service", "metadata": meta,
                "spec": {
                    "type": if flags[3] { "ClusterIP" } else { "ExternalName" }, "clusterIP": format!("10.96.0.{number}"),
                    "selector": if flags[1] { json!({"app": app}) } else { json!({}) }, "ports": [{"port": 80, "targetPort": "http"}],
                },
            }),
            3 => {
                let mut meta = meta;
                meta["labels"] = json!({"kubernetes.io/service-name": app.replace("web", "a").replace("db", "b")});
                json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4",
                    "ports": [{"port": 8080 + u16::from(number)}],
                    "endpoints": [{"addresses": ["10.1.1.1"]}, {"addresses": ["10.1.1.2"], "targetRef": {"kind": "Pod", "name": "a", "namespace": namespace}}],
                })
            }
            4 => json!({"apiVersion": "v1", "kind": "Node", "metadata": {
                "name": format!("node{number}"), "labels": {"topology.kubernetes.io/zone": app},
            }}),
            5 | 6 => {
                let ports = if flags[1] { json!({"8080": {"mode": if flags[2] { "PERMISSIVE" } else { "STRICT" }}}) } else { json!({}) };
                json!({
                    "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": meta,
                    "spec": {"selector": selector, "mtls": {"mode": mode}, "portLevelMtls": ports},
                })
            }
            _ => json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": meta,
                "spec": {"selector": selector, "action": if flags[2] { "DENY" } else { "ALLOW" }, "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]},
            }),
        };
        if flags[3] && number == 0 { Step::Remove(decode::reference(&value).unwrap()) } else { Step::Apply(value) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Compiling what changes gives what compiling everything gives, and the changes told add up to it; and the order of objects
    /// means nothing.
    #[test]
    fn changes_add_up_to_everything(steps in prop::collection::vec((step(), any::<bool>()), 1..40)) {
        let mut compiler = Compiler::new(Settings::default());
        let mut told = Told::default();
        let mut present: BTreeMap<ObjectRef, Arc<Object>> = BTreeMap::new();
        for (step, pause) in steps {
            match step {
                Step::Apply(value) => {
                    let object = object(value);
                    compiler.apply(&object);
                    present.insert(object.reference(), object);
                }
                Step::Remove(reference) => {
                    compiler.remove(&reference);
                    present.remove(&reference);
                }
            }
            if pause {
                told.take(compiler.changes());
                let everything = compile(compiler.index());
                prop_assert_eq!(&compiler.compiled(), &everything);
                told.check(&everything);
            }
        }
        told.take(compiler.changes());
        let forwards: Vec<_> = present.values().cloned().collect();
        let backwards: Vec<_> = present.values().rev().cloned().collect();
        prop_assert_eq!(&compiler.compiled(), &compiled(&forwards));
        prop_assert_eq!(compiled(&forwards), compiled(&backwards));
        prop_assert_eq!(compiler.changes(), []);
    }
}

#[test]
fn a_change_costs_what_it_touches() {
    let mut index = Index::new(Settings::default());
    for number in 0..500 {
        index.apply(&object(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{number}"), "namespace": "shop", "labels": {"app": format!("a{}", number % 50)}},
            "spec": {"containers": [{"name": "a"}], "nodeName": format!("n{}", number % 10)}, "status": {"podIP": "10.0.0.1"},
        })));
    }
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "a7"}}, "rules": [{}]},
    });
    let affected = index.apply(&object(policy));
    assert_eq!((affected.pods.len(), affected.authorizations.len()), (10, 1));
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "shop"},
        "spec": {"selector": {"app": "a8"}, "ports": [{"port": 80}]},
    });
    assert_eq!(index.apply(&object(service)).pods.len(), 10);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n3"}});
    assert_eq!(index.apply(&object(node)).pods.len(), 50);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "new", "namespace": "shop", "labels": {"app": "a7"}},
        "spec": {"containers": [{"name": "a"}]},
    });
    let affected = index.apply(&object(pod.clone()));
    assert_eq!((affected.pods.len(), affected.authorizations.len(), affected.peers.len()), (1, 1, 0));
    // The same labels once more: nothing that selects it sees a difference.
    assert_eq!(index.apply(&object(pod)), Affected { pods: [("shop".into(), "new".into())].into(), ..Affected::default() });
    assert!(index.remove(&ObjectRef::new(tropis_crds::Kind::ConfigMap, "shop", "x")).is_empty());
}

/// The goal is 10 ms of CPU for one pod among 100 000; this holds the line at a tenth of the size, where anything that looks at all
/// pods would stand out.
#[test]
fn one_pod_among_many_is_cheap() {
    let pod = |number: usize, version: &str| {
        object(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("p{number}"), "namespace": "shop", "labels": {"app": format!("a{}", number % 100), "version": version, "team": "all"}},
            "spec": {"containers": [{"name": "a"}], "nodeName": format!("n{}", number % 50)}, "status": {"podIP": "10.0.0.1"},
        }))
    };
    let mut compiler = Compiler::new(Settings::default());
    for number in 0..10_000 {
        compiler.apply(&pod(number, "v1"));
    }
    for number in 0..100 {
        let metadata = json!({"name": format!("s{number}"), "namespace": "shop"});
        let selector = json!({"matchLabels": {"app": format!("a{number}")}});
        compiler.apply(&object(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"selector": {"app": format!("a{number}")}, "ports": [{"port": 80}]},
        })));
        compiler.apply(&object(json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": {"selector": selector, "rules": [{}]},
        })));
    }
    for kind in ["AuthorizationPolicy", "PeerAuthentication"] {
        compiler.apply(&object(json!({
            "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": "all", "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {"team": "all"}}},
        })));
    }
    assert_eq!(compiler.changes().len(), 10_000 + 100 + 101 + 1);
    let started = std::time::Instant::now();
    let rounds = 100;
    for number in 0..rounds {
        compiler.apply(&pod(number, "v2"));
        assert_eq!(compiler.changes().len(), 1);
    }
    let each = started.elapsed() / u32::try_from(rounds).unwrap();
    println!("one pod among 10 000 costs {each:?}");
    assert!(each < std::time::Duration::from_millis(10), "{each:?}");
}

/// A view of what was compiled, and the first workload.
fn view(compiled: &Compiled) -> View {
    View::default().apply(compiled.policies.iter().cloned().map(|policy| Change::Policy(Arc::new(policy))))
}

fn web() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web"}]}, "status": {"phase": "Running", "podIP": "10.0.0.1"},
    })
}

/// A connection to the pod; the peer is written `namespace.account`.
fn facts(peer: Option<&str>, port: u16) -> ConnectionFacts {
    let identity = |(namespace, account): (&str, &str)| Identity::new("cluster.local", namespace, account);
    ConnectionFacts {
        peer: peer.map(|peer| identity(peer.split_once('.').unwrap())),
        source: "10.0.0.9".parse().unwrap(),
        destination: SocketAddr::new("10.0.0.1".parse().unwrap(), port),
    }
}

/// Whether a connection gets through when these policies hold for the workload.
fn passes(policies: &[Value], peer: Option<&str>, port: u16) -> bool {
    let mut all = vec![object(web())];
    for (number, spec) in policies.iter().enumerate() {
        all.push(object(json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": format!("p{number}"), "namespace": "shop"}, "spec": spec,
        })));
    }
    let compiled = compiled(&all);
    authorize::inbound(&view(&compiled), &compiled.workloads[0], &facts(peer, port)).is_ok()
}

#[test]
fn policies_decide_as_written_and_never_wider() {
    let deny = |rules: Value| json!({"action": "DENY", "rules": rules});
    let allow = |rules: Value| json!({"rules": rules});
    let cases: &[(Value, Option<&str>, u16, bool)] = &[
        // Nothing allowed, everything allowed, everything denied.
        (json!({}), Some("shop.cart"), 80, false),
        (allow(json!([{}])), None, 80, true),
        (deny(json!([{}])), Some("shop.cart"), 80, false),
        // Principals in their forms.
        (allow(json!([{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/cart"]}}]}])), Some("shop.cart"), 80, true),
        (allow(json!([{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/cart"]}}]}])), Some("shop.other"), 80, false),
        (allow(json!([{"from": [{"source": {"principals": ["*"]}}]}])), None, 80, false),
        (allow(json!([{"from": [{"source": {"principals": ["*/sa/cart"]}}]}])), Some("bank.cart"), 80, true),
        (allow(json!([{"from": [{"source": {"principals": ["cluster.local/ns/shop/*"]}}]}])), Some("bank.cart"), 80, false),
        (allow(json!([{"from": [{"source": {"serviceAccounts": ["cart"]}}]}])), Some("bank.cart"), 80, false),
        (allow(json!([{"from": [{"source": {"serviceAccounts": ["bank/cart"]}}]}])), Some("bank.cart"), 80, true),
        (allow(json!([{"from": [{"source": {"namespaces": ["shop"]}}]}])), Some("shop.x"), 80, true),
        (deny(json!([{"from": [{"source": {"notNamespaces": ["shop"]}}]}])), None, 80, false),
        // Ports.
        (allow(json!([{"to": [{"operation": {"ports": ["80"]}}]}])), None, 81, false),
        (deny(json!([{"to": [{"operation": {"notPorts": ["80"]}}]}])), None, 80, true),
        // A rule of ALLOW with HTTP in it allows nothing; another of the policy still does.
        (allow(json!([{"to": [{"operation": {"methods": ["GET"]}}]}])), Some("shop.cart"), 80, false),
        (allow(json!([{"to": [{"operation": {"methods": ["GET"]}}]}, {"to": [{"operation": {"ports": ["80"]}}]}])), None, 80, true),
        (allow(json!([{"when": [{"key": "request.headers[a]", "values": ["b"]}]}])), Some("shop.cart"), 80, false),
        // DENY without its HTTP parts denies on what is left.
        (deny(json!([{"to": [{"operation": {"paths": ["/admin"]}}]}])), Some("shop.cart"), 80, false),
        (deny(json!([{"to": [{"operation": {"paths": ["/admin"], "ports": ["80"]}}]}])), Some("shop.cart"), 80, false),
        (deny(json!([{"to": [{"operation": {"paths": ["/admin"], "ports": ["80"]}}]}])), Some("shop.cart"), 81, true),
        // One alternative that L4 cannot see makes the whole list unseen.
        (deny(json!([{"to": [{"operation": {"paths": ["/admin"]}}, {"operation": {"ports": ["80"]}}]}])), Some("shop.cart"), 81, false),
        (
            deny(json!([{"from": [{"source": {"namespaces": ["bank"]}}], "to": [{"operation": {"methods": ["GET"]}}]}])),
            Some("bank.x"),
            80,
            false,
        ),
        (
            deny(json!([{"from": [{"source": {"namespaces": ["bank"]}}], "to": [{"operation": {"methods": ["GET"]}}]}])),
            Some("shop.x"),
            80,
            true,
        ),
        (deny(json!([{"from": [{"source": {"requestPrincipals": ["*"]}}]}])), None, 80, false),
        (
            deny(json!([{"when": [{"key": "request.headers[a]", "values": ["b"]}, {"key": "destination.port", "values": ["80"]}]}])),
            None,
            81,
            true,
        ),
        // What cannot be read is read in the way that allows less.
        (allow(json!([{"from": [{"source": {"principals": ["who is that"]}}]}])), Some("shop.cart"), 80, false),
        (allow(json!([{"from": [{"source": {"principals": ["spiffe://cluster.local/ns/shop/sa/cart"]}}]}])), Some("shop.cart"), 80, false),
        (allow(json!([{"from": [{"source": {"notPrincipals": ["who is that"]}}]}])), Some("shop.cart"), 80, false),
        (deny(json!([{"from": [{"source": {"principals": ["who is that"]}}]}])), Some("shop.cart"), 80, false),
        (deny(json!([{"from": [{"source": {"principals": ["spiffe://cluster.local/ns/shop/sa/cart"]}}]}])), Some("shop.cart"), 80, false),
        (deny(json!([{"from": [{"source": {"principals": ["spiffe://cluster.local/ns/shop/sa/cart"]}}]}])), Some("shop.other"), 80, true),
        (
            deny(json!([{"from": [{"source": {"notPrincipals": ["who is that", "cluster.local/ns/shop/sa/cart"]}}]}])),
            Some("shop.cart"),
            80,
            true,
        ),
        (deny(json!([{"from": [{"source": {"notPrincipals": ["who is that"]}}]}])), Some("shop.cart"), 80, false),
        // Neither is enforced by a node proxy.
        (json!({"action": "AUDIT", "rules": [{}]}), None, 80, true),
        (json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]}), None, 80, true),
        (json!({"targetRefs": [{"kind": "Service", "name": "a"}]}), None, 80, true),
        // Another workload's.
        (json!({"selector": {"matchLabels": {"app": "db"}}}), None, 80, true),
        (json!({"selector": {"matchLabels": {"app": "web"}}}), None, 80, false),
    ];
    for (policy, peer, port, expected) in cases {
        assert_eq!(passes(std::slice::from_ref(policy), *peer, *port), *expected, "{policy} {peer:?} {port}");
    }
    let both = [allow(json!([{}])), deny(json!([{"to": [{"operation": {"ports": ["80"]}}]}]))];
    assert!(!passes(&both, Some("shop.cart"), 80), "deny wins");
}

/// One combination of scopes: modes of mesh, namespace, workload, its ports; and which ports let in a caller without an identity.
type PeerCase<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>, &'a [(u16, &'a str)], &'a [(u16, bool)]);

#[test]
fn peer_authentication_in_all_modes_and_scopes() {
    let cases: &[PeerCase<'_>] = &[
        (None, None, None, &[], &[(80, true)]),
        (Some("STRICT"), None, None, &[], &[(80, false)]),
        (Some("PERMISSIVE"), None, None, &[], &[(80, true)]),
        (Some("DISABLE"), None, None, &[], &[(80, true)]),
        (Some("UNSET"), None, None, &[], &[(80, true)]),
        (Some("STRICT"), Some("PERMISSIVE"), None, &[], &[(80, true)]),
        (Some("STRICT"), Some("DISABLE"), None, &[], &[(80, true)]),
        (Some("STRICT"), Some("UNSET"), None, &[], &[(80, false)]),
        (Some("PERMISSIVE"), Some("STRICT"), None, &[], &[(80, false)]),
        (None, Some("STRICT"), Some("PERMISSIVE"), &[], &[(80, true)]),
        (None, Some("STRICT"), Some("UNSET"), &[], &[(80, false)]),
        (None, Some("PERMISSIVE"), Some("STRICT"), &[], &[(80, false)]),
        (Some("STRICT"), None, Some("DISABLE"), &[], &[(80, true)]),
        (None, None, Some("STRICT"), &[(8080, "PERMISSIVE")], &[(80, false), (8080, true)]),
        (
            None,
            None,
            Some("STRICT"),
            &[(8080, "DISABLE"), (8081, "PERMISSIVE"), (8082, "STRICT")],
            &[(80, false), (8080, true), (8081, true), (8082, false)],
        ),
        (None, None, Some("STRICT"), &[(8080, "STRICT")], &[(80, false), (8080, false)]),
        (None, None, Some("PERMISSIVE"), &[(8080, "STRICT"), (8081, "STRICT")], &[(80, true), (8080, false), (8081, false)]),
        (None, None, Some("PERMISSIVE"), &[(8080, "PERMISSIVE")], &[(80, true), (8080, true)]),
        (None, None, None, &[(8080, "STRICT")], &[(80, true), (8080, false)]),
        (Some("STRICT"), None, Some("UNSET"), &[(8080, "PERMISSIVE")], &[(80, false), (8080, true)]),
        (Some("STRICT"), None, Some("UNSET"), &[(8080, "DISABLE")], &[(80, false), (8080, false)]),
        (Some("STRICT"), None, Some("UNSET"), &[(8080, "UNSET")], &[(80, false), (8080, false)]),
        (Some("STRICT"), None, Some("PERMISSIVE"), &[(8080, "STRICT")], &[(80, true), (8080, false)]),
    ];
    for case @ (mesh, namespace, workload, ports, expected) in cases {
        let peer = |name: &str, namespace: &str, spec: Value| {
            object(json!({
                "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                "metadata": {"name": name, "namespace": namespace}, "spec": spec,
            }))
        };
        let mut all = vec![object(web())];
        all.extend(mesh.map(|mode| peer("mesh", "istio-system", json!({"mtls": {"mode": mode}}))));
        all.extend(namespace.map(|mode| peer("shop", "shop", json!({"mtls": {"mode": mode}}))));
        if workload.is_some() || !ports.is_empty() {
            let ports: serde_json::Map<_, _> = ports.iter().map(|(port, mode)| (port.to_string(), json!({"mode": mode}))).collect();
            let mtls = workload.map(|mode| json!({"mode": mode}));
            all.push(peer("web", "shop", json!({"selector": {"matchLabels": {"app": "web"}}, "mtls": mtls, "portLevelMtls": ports})));
        }
        let compiled = compiled(&all);
        let view = view(&compiled);
        for (port, open) in *expected {
            let plain = authorize::inbound(&view, &compiled.workloads[0], &facts(None, *port));
            assert_eq!(plain.is_ok(), *open, "{case:?}, port {port}: {plain:?}");
            let known = authorize::inbound(&view, &compiled.workloads[0], &facts(Some("shop.x"), *port));
            assert!(known.is_ok(), "{case:?}: an identity always passes");
        }
    }
}
