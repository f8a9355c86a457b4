//! Who goes through which waypoint, what each is told, and when policies let it in.

use serde_json::{Value, json};
use tropis_crds::{Kind, ObjectRef, decode};
use tropis_model::{
    policy::{Action, Policy, StringMatch},
    view::{Change, View},
    workload::Workload,
};

use super::{
    needed::{AutomaticWaypoints, needed},
    *,
};
use crate::{Compiler, Settings};

mod by_account;

/// A mesh that is put together object by object.
struct Mesh {
    compiler: Compiler,
}

impl Mesh {
    /// Namespace `shop` with `labels`, Service `web` over pods `web-1` and `web-2` of account `web`.
    fn new(labels: Value) -> Self {
        let mut mesh = Self { compiler: Compiler::new(Settings::default()) };
        mesh.namespace("shop", labels);
        mesh.service("web", json!({}));
        mesh.pod("web-1", "web", "web", json!({}));
        mesh.pod("web-2", "web", "web", json!({}));
        mesh
    }

    fn apply(&mut self, value: Value) {
        self.compiler.apply(&Arc::new(decode(value).unwrap().0));
    }

    fn namespace(&mut self, name: &str, labels: Value) {
        self.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}));
    }

    fn service(&mut self, app: &str, labels: Value) {
        self.apply(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": app, "namespace": "shop", "labels": labels},
            "spec": {"selector": {"app": app}, "clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }));
    }

    fn pod(&mut self, name: &str, app: &str, account: &str, labels: Value) {
        let mut all = json!({"app": app});
        all.as_object_mut().unwrap().extend(labels.as_object().unwrap().clone());
        let octet = name.bytes().map(u32::from).sum::<u32>() % 250;
        self.apply(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": all, "annotations": {"ambient.istio.io/redirection": "enabled"}},
            "spec": {"nodeName": "n", "serviceAccountName": account, "containers": []},
            "status": {"phase": "Running", "podIP": format!("10.1.0.{octet}"), "conditions": [{"type": "Ready", "status": "True"}]},
        }));
    }

    /// A waypoint; `ready` gives it an address.
    fn gateway(&mut self, namespace: &str, name: &str, labels: Value, allowed: &str, ready: bool) {
        let addresses =
            if ready { json!([{"type": "Hostname", "value": format!("{name}.{namespace}.svc.cluster.local")}]) } else { json!([]) };
        self.apply(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"gatewayClassName": "istio-waypoint", "listeners": [
                {"name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": {"namespaces": {"from": allowed}}},
            ]},
            "status": {"addresses": addresses},
        }));
    }

    fn policy(&mut self, action: &str, rules: Value) {
        self.apply(json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "namespace": "shop"}, "spec": {"action": action, "rules": rules},
        }));
    }

    /// The waypoints of Service `web` and of the pods, as `host` of each, after compiling.
    fn waypoints(&mut self) -> (Option<String>, Vec<Option<String>>) {
        self.compiler.changes();
        self.compiler.waypoints();
        let compiled = self.compiler.compiled();
        assert_eq!(compiled, crate::compile(self.compiler.index()), "step by step as from nothing");
        let shown = |waypoint: &Option<GatewayAddress>| waypoint.as_ref().map(|address| address.destination.to_string());
        let web = compiled.services.iter().find(|service| &*service.name == "web").unwrap();
        let pods = compiled.workloads.iter().map(|workload| shown(&workload.waypoint)).collect();
        (shown(&web.waypoint), pods)
    }

    fn findings(&self) -> Vec<String> {
        self.compiler.findings().map(|finding| format!("{} {}", finding.code, finding.object)).collect()
    }

    fn l4(&mut self) -> Policy {
        self.compiler.changes();
        self.compiler.compiled().policies.into_iter().find(|policy| &*policy.key.0 == "shop/p").unwrap()
    }
}

fn at(namespace: &str, name: &str) -> Option<String> {
    Some(format!("{namespace}/{name}.{namespace}.svc.cluster.local"))
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

#[test]
fn a_namespace_label_attaches_its_services_and_not_the_traffic_to_pods_by_default() {
    let mut mesh = Mesh::new(json!({"istio.io/use-waypoint": "gw"}));
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    assert_eq!(mesh.waypoints(), (at("shop", "gw"), vec![None, None]));
    mesh.gateway("shop", "gw", json!({"istio.io/waypoint-for": "all"}), "Same", true);
    assert_eq!(mesh.waypoints(), (at("shop", "gw"), vec![at("shop", "gw"); 2]));
    mesh.gateway("shop", "gw", json!({"istio.io/waypoint-for": "workload"}), "Same", true);
    assert_eq!(mesh.waypoints(), (None, vec![at("shop", "gw"); 2]));
    mesh.gateway("shop", "gw", json!({"istio.io/waypoint-for": "none"}), "Same", true);
    assert_eq!(mesh.waypoints(), (None, vec![None, None]));
    mesh.compiler.remove(&ObjectRef::new(Kind::Gateway, "shop", "gw"));
    assert_eq!(mesh.waypoints(), (None, vec![None, None]));
    assert_eq!(mesh.findings(), ["IST0101 Namespace shop"]);
}

#[test]
fn a_narrower_label_wins_and_none_opts_out() {
    let mut mesh = Mesh::new(json!({"istio.io/use-waypoint": "gw"}));
    for name in ["gw", "own"] {
        mesh.gateway("shop", name, json!({"istio.io/waypoint-for": "all"}), "Same", true);
    }
    mesh.service("web", json!({"istio.io/use-waypoint": "own"}));
    mesh.pod("web-1", "web", "web", json!({"istio.io/use-waypoint": "own"}));
    assert_eq!(mesh.waypoints(), (at("shop", "own"), vec![at("shop", "own"), at("shop", "gw")]));
    mesh.service("web", json!({"istio.io/use-waypoint": "none"}));
    mesh.pod("web-1", "web", "web", json!({"istio.io/use-waypoint": "none"}));
    assert_eq!(mesh.waypoints(), (None, vec![None, at("shop", "gw")]));
}

#[test]
fn a_named_waypoint_that_cannot_be_used_never_falls_back() {
    let mut mesh = Mesh::new(json!({"istio.io/use-waypoint": "gw"}));
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    mesh.service("web", json!({"istio.io/use-waypoint": "own"}));
    assert_eq!(mesh.waypoints().0, None);
    assert_eq!(mesh.findings(), ["IST0101 Service shop/web"]);
    mesh.gateway("shop", "own", json!({}), "Same", false);
    assert_eq!(mesh.waypoints().0, None, "it has no address yet");
    assert_eq!(mesh.findings(), ["TRP0020 Service shop/web"]);
    mesh.gateway("shop", "own", json!({}), "Same", true);
    assert_eq!(mesh.waypoints().0, at("shop", "own"));
    assert!(mesh.findings().is_empty(), "{:?}", mesh.findings());
}

#[test]
fn another_namespaces_waypoint_must_let_this_one_in() {
    let labels = json!({"istio.io/use-waypoint": "gw", "istio.io/use-waypoint-namespace": "infra"});
    let mut mesh = Mesh::new(labels);
    mesh.namespace("infra", json!({}));
    mesh.gateway("infra", "gw", json!({}), "Same", true);
    assert_eq!(mesh.waypoints().0, None);
    assert_eq!(mesh.findings(), ["TRP0020 Namespace shop"]);
    mesh.gateway("infra", "gw", json!({}), "All", true);
    assert_eq!(mesh.waypoints().0, at("infra", "gw"));
    assert!(mesh.findings().is_empty(), "{:?}", mesh.findings());
}

#[test]
fn a_listener_that_no_waypoint_has_is_told_of() {
    let with = |port: u16, protocol: &str| {
        decode(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "gw", "namespace": "shop"},
            "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": port, "protocol": protocol}]},
        }))
        .unwrap()
        .0
    };
    assert_eq!(findings(&with(15008, "HBONE")), []);
    for (port, protocol) in [(15009, "HBONE"), (15008, "HTTP")] {
        let told = findings(&with(port, protocol));
        let expected = format!("spec.listeners[0]: {protocol} on {port} is no listener of a waypoint");
        assert!(told.len() == 1 && told[0].to_string().contains(&expected), "{told:?}");
    }
}

#[test]
fn a_waypoint_for_an_account_takes_its_pods_and_the_services_that_are_all_its() {
    let mut mesh = Mesh::new(json!({"istio.io/use-waypoint": "gw"}));
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    mesh.gateway("shop", "for-web", json!({"istio.io/for-service-account": "web"}), "Same", true);
    mesh.pod("other", "other", "other", json!({}));
    mesh.service("other", json!({}));
    let mine = at("shop", "for-web");
    assert_eq!(mesh.waypoints(), (mine.clone(), vec![None, mine.clone(), mine.clone()]), "before the namespace's");
    // One pod of another account behind the Service: traffic to the Service falls to the namespace's waypoint, with a finding.
    mesh.pod("web-2", "web", "canary", json!({}));
    assert_eq!(mesh.waypoints(), (at("shop", "gw"), vec![None, mine.clone(), None]));
    assert_eq!(mesh.findings(), ["TRP0017 Service shop/web"]);
    let finding = mesh.compiler.findings().next().unwrap().to_string();
    assert!(finding.contains("canary, web") && finding.contains("for-web is for web alone"), "{finding}");
    mesh.compiler.remove(&ObjectRef::new(Kind::Pod, "shop", "web-2"));
    assert_eq!(mesh.waypoints(), (mine.clone(), vec![None, mine]));
    mesh.service("web", json!({"istio.io/use-waypoint": "gw"}));
    assert_eq!(mesh.waypoints().0, at("shop", "gw"), "the Service's label comes first");
}

#[test]
fn what_belongs_to_a_gateway_has_no_waypoint() {
    let mut mesh = Mesh::new(json!({"istio.io/use-waypoint": "gw"}));
    mesh.gateway("shop", "gw", json!({"istio.io/waypoint-for": "all"}), "Same", true);
    mesh.service("web", json!({MANAGED: "istio.io-mesh-controller"}));
    mesh.pod("web-1", "web", "gw", json!({GATEWAY_NAME: "gw"}));
    mesh.pod("web-2", "web", "gw", json!({GATEWAY_NAME: "gw"}));
    assert_eq!(mesh.waypoints(), (None, vec![None, None]));
}

/// A view of what a waypoint was told.
fn told(mesh: &mut Mesh, gateway: &str, view: &View) -> (View, usize) {
    mesh.compiler.changes();
    let changes: Vec<Change> = (mesh.compiler.waypoints().into_iter())
        .filter(|told| told.gateway == key("shop", gateway))
        .flat_map(|told| told.changes.unwrap_or_default())
        .collect();
    let count = changes.len();
    (view.apply(changes), count)
}

#[test]
fn a_waypoint_is_told_its_hosts_and_where_they_lead_and_nothing_else() {
    let mut mesh = Mesh::new(json!({}));
    mesh.service("web", json!({"istio.io/use-waypoint": "gw"}));
    mesh.service("api", json!({}));
    mesh.pod("api-1", "api", "api", json!({"version": "v1", "secret": "x"}));
    mesh.service("else", json!({}));
    mesh.pod("else-1", "else", "else", json!({}));
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    let (view, _) = told(&mut mesh, "gw", &View::default());
    let names = |view: &View| {
        let mut names: Vec<String> = view.workloads().map(|workload| workload.name.to_string()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&view), ["web-1", "web-2"]);
    assert_eq!(view.hosts().map(|host| host.name.to_string()).collect::<Vec<_>>(), ["shop/web.shop.svc.cluster.local"]);
    assert_eq!(view.waypoint("shop/gw").map(|own| own.service.to_string()).as_deref(), Some("shop/gw.shop.svc.cluster.local"));

    // A route to a subset of another service brings its service, its pods, and the one label that the subset names.
    mesh.apply(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"hosts": ["web"], "http": [{"route": [{"destination": {"host": "api", "subset": "v1"}}]}]},
    }));
    mesh.apply(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "api", "namespace": "shop"},
        "spec": {"host": "api", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]},
    }));
    let (view, _) = told(&mut mesh, "gw", &view);
    assert!(names(&view).contains(&"api-1".to_owned()) && !names(&view).contains(&"else-1".to_owned()), "{:?}", names(&view));
    let api = view.workloads().find(|workload| &*workload.name == "api-1").unwrap();
    assert_eq!(api.labels, [("version".into(), "v1".into())].into());
    let (view, count) = told(&mut mesh, "gw", &view);
    assert_eq!(count, 0, "nothing changed");

    // One pod is one change, though the node proxies see no difference in a label.
    mesh.pod("api-1", "api", "api", json!({"version": "v2"}));
    let (view, count) = told(&mut mesh, "gw", &view);
    assert_eq!(count, 1);
    assert_eq!(view.workloads().find(|workload| &*workload.name == "api-1").unwrap().labels["version"], "v2".into());
    mesh.pod("else-1", "else", "else", json!({"version": "v2"}));
    assert_eq!(told(&mut mesh, "gw", &view).1, 0, "what does not concern it is not told");
    mesh.compiler.remove(&ObjectRef::new(Kind::Pod, "shop", "api-1"));
    let (view, count) = told(&mut mesh, "gw", &view);
    assert_eq!((count, names(&view)), (1, vec!["web-1".to_owned(), "web-2".to_owned()]));

    mesh.compiler.remove(&ObjectRef::new(Kind::Gateway, "shop", "gw"));
    mesh.compiler.changes();
    let gone = mesh.compiler.waypoints();
    assert_eq!(gone, [scope::Told { gateway: key("shop", "gw"), changes: None }]);
}

#[test]
fn a_route_that_asks_callers_for_labels_brings_the_labels_of_callers_and_not_the_mesh() {
    let mut mesh = Mesh::new(json!({}));
    mesh.service("web", json!({"istio.io/use-waypoint": "gw"}));
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    mesh.pod("caller-1", "caller", "caller", json!({"team": "sales", "secret": "x"}));
    mesh.pod("caller-2", "caller", "caller", json!({}));
    let (view, _) = told(&mut mesh, "gw", &View::default());
    assert_eq!(mesh.compiler.callers(), [], "nobody asks for labels");
    let route = |found: Value| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"hosts": ["web"], "http": [{"match": [found], "route": [{"destination": {"host": "web"}}]}]},
        })
    };
    mesh.apply(route(json!({"sourceLabels": {"team": "sales"}})));
    let (view, count) = told(&mut mesh, "gw", &view);
    let mut names: Vec<&str> = view.workloads().map(|workload| &*workload.name).collect();
    names.sort_unstable();
    assert_eq!((count, names), (1, vec!["web-1", "web-2"]), "the host alone is different");
    let changes = mesh.compiler.callers();
    let labelled = |changes: &[Change]| -> Vec<(String, Vec<String>)> {
        let workload = |change: &Change| match change {
            Change::Workload(found) => (found.name.to_string(), found.labels.iter().map(|(key, value)| format!("{key}={value}")).collect()),
            other => (format!("{other:?}"), Vec::new()),
        };
        changes.iter().map(workload).collect()
    };
    assert_eq!(labelled(&changes), [("caller-1".to_owned(), vec!["team=sales".to_owned()])], "only who has the label");
    let Change::Workload(caller) = &changes[0] else { unreachable!() };
    let mut plain = Workload::clone(caller);
    plain.labels.clear();
    assert_eq!(mesh.compiler.as_caller(&Arc::new(plain)), caller);

    // A label that node proxies are not told is a change for who asks for it; one that nobody asks for is none.
    mesh.pod("caller-2", "caller", "caller", json!({"team": "stock"}));
    mesh.pod("caller-1", "caller", "caller", json!({"team": "sales", "secret": "y"}));
    assert_eq!(told(&mut mesh, "gw", &view).1, 0);
    assert_eq!(labelled(&mesh.compiler.callers()), [("caller-2".to_owned(), vec!["team=stock".to_owned()])]);
    mesh.compiler.remove(&ObjectRef::new(Kind::Pod, "shop", "caller-2"));
    mesh.compiler.changes();
    assert_eq!(mesh.compiler.callers(), [Change::RemoveAddress("Kubernetes//Pod/shop/caller-2".into())]);
    mesh.apply(route(json!({"sourceNamespace": "shop"})));
    mesh.compiler.changes();
    assert_eq!(mesh.compiler.callers(), [Change::RemoveAddress("Kubernetes//Pod/shop/caller-1".into())], "nobody asks any more");
}

#[test]
fn a_waypoint_is_told_of_what_it_will_carry_before_it_carries_it() {
    let mut mesh = Mesh::new(json!({"istio.io/use-waypoint": "gw"}));
    mesh.gateway("shop", "gw", json!({}), "Same", false);
    let (view, _) = told(&mut mesh, "gw", &View::default());
    assert_eq!(view.hosts().len(), 1);
    assert_eq!(mesh.waypoints().0, None);
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    assert_eq!(mesh.waypoints().0, at("shop", "gw"));
}

#[test]
fn policies_let_a_waypoint_in_once_it_enforces_this_very_version() {
    let mut mesh = Mesh::new(json!({"istio.io/use-waypoint": "gw"}));
    let allow = |principal: &str| json!([{"from": [{"source": {"principals": [principal]}}]}]);
    mesh.policy("ALLOW", allow("cluster.local/ns/shop/sa/a"));
    let waypoint = StringMatch::Exact("cluster.local/ns/shop/sa/gw".into());
    let admitted = |policy: &Policy| {
        let matches = policy.rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches);
        matches.clone().any(|one| one.principals.contains(&waypoint) || one.not_principals.contains(&waypoint))
    };
    assert!(!admitted(&mesh.l4()), "there is no waypoint");
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    assert!(!admitted(&mesh.l4()), "it has not acknowledged a policy that was there before it");
    mesh.compiler.acknowledged(&key("shop", "gw"));
    assert!(admitted(&mesh.l4()));

    // A new version: it goes on while the waypoint takes it in, which it has to do in time.
    mesh.policy("ALLOW", allow("cluster.local/ns/shop/sa/b"));
    assert!(admitted(&mesh.l4()) && mesh.compiler.has_grace(), "it still enforces the version before");
    mesh.compiler.end_grace();
    assert!(!admitted(&mesh.l4()) && !mesh.compiler.has_grace(), "this version it does not know");
    mesh.compiler.apply(&mesh.compiler.index().authorization(&key("shop", "p")).unwrap().clone());
    assert!(!admitted(&mesh.l4()), "and it gets no more time for the same version");
    mesh.compiler.acknowledged(&key("shop", "gw"));
    assert!(admitted(&mesh.l4()));
    mesh.policy("DENY", allow("cluster.local/ns/shop/sa/b"));
    assert!(admitted(&mesh.l4()));
    mesh.compiler.acknowledged(&key("shop", "gw"));
    let deny = mesh.l4();
    assert_eq!((deny.action, admitted(&deny), mesh.compiler.has_grace()), (Action::Deny, true, false));

    // One that is new altogether says nothing about a waypoint yet, and has the same time.
    mesh.compiler.remove(&ObjectRef::new(Kind::AuthorizationPolicy, "shop", "p"));
    mesh.compiler.changes();
    mesh.compiler.acknowledged(&key("shop", "gw"));
    mesh.policy("ALLOW", allow("cluster.local/ns/shop/sa/a"));
    assert!(admitted(&mesh.l4()));
    mesh.compiler.end_grace();
    assert!(!admitted(&mesh.l4()));
    mesh.compiler.acknowledged(&key("shop", "gw"));
    assert!(admitted(&mesh.l4()));
    mesh.compiler.remove(&ObjectRef::new(Kind::Gateway, "shop", "gw"));
    mesh.compiler.changes();
    mesh.compiler.waypoints();
    assert!(!admitted(&mesh.l4()), "a waypoint that is gone is let in no more");
}

#[test]
fn what_a_waypoint_refuses_is_told_of_all_that_it_was_made_of() {
    let mut mesh = Mesh::new(json!({"istio.io/use-waypoint": "gw"}));
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    mesh.apply(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "route", "namespace": "shop"},
        "spec": {"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web"}}]}]},
    }));
    mesh.apply(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "rule", "namespace": "shop"},
        "spec": {"host": "web"},
    }));
    mesh.apply(json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "target", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Service", "group": "", "name": "web"}], "rules": []},
    }));
    mesh.compiler.changes();
    let of = |kind, name| ObjectRef::new(kind, "shop", name);
    let made = [of(Kind::VirtualService, "route"), of(Kind::DestinationRule, "rule"), of(Kind::AuthorizationPolicy, "target")];
    let name = "shop/web.shop.svc.cluster.local";
    assert_eq!(mesh.compiler.origins_of_host(name), made.iter().cloned().chain([of(Kind::Service, "web")]).collect());
    assert!(["shop/gone.shop.svc.cluster.local", "nonsense"].iter().all(|name| mesh.compiler.origins_of_host(name).is_empty()));
    mesh.compiler.acknowledged(&key("shop", "gw"));
    assert_eq!(mesh.compiler.origins(&key("shop", "gw")), made.into());
    mesh.compiler.acknowledged_without(&key("shop", "gw"), &[own_service(&Settings::default(), &key("shop", "web"))].into());
    assert_eq!(mesh.compiler.origins(&key("shop", "gw")), [].into(), "of what it refused it has nothing in force");
    assert_eq!(refused::waypoint_origin("shop/gw"), Some(of(Kind::Gateway, "gw")));
    let finding = refused::finding(of(Kind::Service, "web"), "shop/web", "shop/gw-1", "an unknown balancer");
    assert!(finding.to_string().contains("shop/gw-1 refuses: an unknown balancer"), "{finding}");
}

#[test]
fn a_namespace_needs_a_waypoint_when_something_asks_for_one_and_nobody_gave_one() {
    let route = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web"}}]}]},
    });
    let need = |mesh: &Mesh| needed(mesh.compiler.index(), "shop").remove(&key("shop", automatic::NAME)).map(|need| need.because);
    let ambient = || Mesh::new(json!({"istio.io/dataplane-mode": "ambient"}));
    let mut mesh = ambient();
    assert_eq!(need(&mesh), None, "nothing asks");
    mesh.apply(route.clone());
    assert_eq!(need(&mesh).as_deref(), Some("VirtualService shop/web"));
    mesh.service("web", json!({"istio.io/use-waypoint": "none"}));
    assert_eq!(need(&mesh), None, "the only Service opted out");

    let mut mesh = ambient();
    mesh.policy("DENY", json!([{"to": [{"operation": {"ports": ["80"]}}]}]));
    assert_eq!(need(&mesh), None, "layer 4 is enough");
    mesh.policy("DENY", json!([{"to": [{"operation": {"methods": ["POST"]}}]}]));
    assert_eq!(need(&mesh).as_deref(), Some("AuthorizationPolicy shop/p"));
    mesh.namespace("shop", json!({"istio.io/dataplane-mode": "ambient", AUTOMATIC: "false"}));
    assert_eq!(need(&mesh), None);
    mesh.namespace("shop", json!({"istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "gw"}));
    assert_eq!(need(&mesh), None, "the user chose one, ready or not");

    let mut mesh = Mesh::new(json!({}));
    mesh.apply(route);
    assert_eq!(need(&mesh), None, "not enrolled");
    let mesh = Mesh::new(json!({"istio-injection": "enabled"}));
    assert!(need(&mesh).unwrap().contains("sidecar"), "{:?}", need(&mesh));
}

#[test]
fn an_automatic_waypoint_serves_its_namespace_and_does_not_end_the_need() {
    let mut mesh = Mesh::new(json!({"istio-injection": "enabled"}));
    let auto = automatic::NAME;
    mesh.gateway("shop", auto, json!({AUTOMATIC: "true"}), "Same", true);
    let (view, _) = told(&mut mesh, auto, &View::default());
    assert_eq!(mesh.waypoints().0, at("shop", auto));
    assert_eq!(needed(mesh.compiler.index(), "shop"), *mesh.compiler.needs());
    assert!(mesh.compiler.needs().contains_key(&key("shop", auto)));
    mesh.gateway("shop", auto, json!({AUTOMATIC: LEAVING}), "Same", true);
    let (view, _) = told(&mut mesh, auto, &view);
    assert_eq!(mesh.waypoints().0, None, "nothing new goes through one that leaves");
    assert_eq!(view.hosts().len(), 1, "it still knows what it carries");
    mesh.namespace("shop", json!({"istio-injection": "enabled", "istio.io/use-waypoint": "none"}));
    assert_eq!(mesh.waypoints().0, None);
    assert!(needed(mesh.compiler.index(), "shop").is_empty());
    assert!(mesh.compiler.needs().is_empty());
}

#[test]
fn the_mesh_decides_about_automatic_waypoints_unless_the_namespace_does() {
    let settings = Settings { automatic_waypoints: AutomaticWaypoints::Off, ..Settings::default() };
    let mut mesh = Mesh { compiler: Compiler::new(settings) };
    mesh.service("web", json!({}));
    let mut needs = |labels: Value| {
        mesh.namespace("shop", labels);
        mesh.compiler.changes();
        !mesh.compiler.needs().is_empty()
    };
    assert!(!needs(json!({"istio-injection": "enabled"})));
    assert!(needs(json!({"istio-injection": "enabled", AUTOMATIC: "true"})));
    assert!(!needs(json!({"istio-injection": "enabled", AUTOMATIC: "false"})));
}

/// The waypoint that a Service goes through now, after compiling.
fn present(mesh: &mut Mesh, name: &str) -> Option<String> {
    mesh.compiler.changes();
    mesh.compiler.waypoints();
    let compiled = mesh.compiler.compiled();
    let service = compiled.services.iter().find(|service| &*service.name == name)?;
    service.waypoint.as_ref().map(|address| address.destination.to_string())
}

/// A waypoint acknowledges what it was told, and the node proxies what follows.
fn settle(mesh: &mut Mesh, gateway: &str) {
    mesh.compiler.acknowledged(&key("shop", gateway));
    mesh.compiler.changes();
    if let Some(served) = mesh.compiler.acquainted(&key("shop", gateway)) {
        mesh.compiler.carry(&key("shop", gateway), served);
    }
}

/// The hosts that a waypoint is told of.
fn hosts(mesh: &Mesh, gateway: &str) -> Vec<String> {
    let hosts = mesh.compiler.served(&key("shop", gateway));
    hosts.into_iter().flat_map(|served| served.services.iter().map(|own| own.1.clone()).collect::<Vec<_>>()).collect()
}

/// One whose Service `web` goes through `gw`, and was published.
fn published() -> Mesh {
    let mut mesh = Mesh::new(json!({}));
    mesh.service("web", json!({"istio.io/use-waypoint": "gw"}));
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    assert_eq!(present(&mut mesh, "web"), at("shop", "gw"), "what is ready at the start was in use");
    mesh.compiler.opened();
    settle(&mut mesh, "gw");
    mesh
}

#[test]
fn a_new_service_goes_through_a_waypoint_in_use_once_that_one_knows_it_and_is_let_in() {
    let mut mesh = published();
    mesh.service("young", json!({"istio.io/use-waypoint": "gw"}));
    assert_eq!((present(&mut mesh, "young"), present(&mut mesh, "web")), (None, at("shop", "gw")));
    assert_eq!((hosts(&mesh, "gw"), mesh.compiler.held().len()), (vec!["web".to_owned(), "young".to_owned()], 1));
    mesh.compiler.acknowledged(&key("shop", "gw"));
    assert_eq!(present(&mut mesh, "young"), None, "node proxies do not let it in yet");
    settle(&mut mesh, "gw");
    assert_eq!((present(&mut mesh, "young"), mesh.compiler.held().len()), (at("shop", "gw"), 0));
    assert_eq!(mesh.compiler.acquainted(&key("shop", "gw")), None);

    // One that does not acknowledge in time is not gone around for ever.
    mesh.service("other", json!({"istio.io/use-waypoint": "gw"}));
    assert_eq!(present(&mut mesh, "other"), None);
    mesh.compiler.carry_all(&key("shop", "gw"));
    assert_eq!(present(&mut mesh, "other"), at("shop", "gw"));
}

#[test]
fn a_new_service_that_only_its_waypoint_can_guard_is_refused_there_until_it_is_known() {
    let mut mesh = published();
    mesh.apply(json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Service", "group": "", "name": "young"}], "action": "ALLOW", "rules": []},
    }));
    mesh.service("young", json!({"istio.io/use-waypoint": "gw"}));
    assert_eq!(present(&mut mesh, "young"), at("shop", "gw"));
}

#[test]
fn a_waypoint_is_left_for_another_when_that_one_is_ready_and_knows_until_it_is_released() {
    let mut mesh = published();
    let bound = |mesh: &Mesh| mesh.compiler.bindings().map(|(_, binding)| binding.message.clone()).collect::<Vec<_>>().join(" ");
    mesh.gateway("shop", "two", json!({}), "Same", false);
    mesh.service("web", json!({"istio.io/use-waypoint": "two"}));
    assert_eq!(present(&mut mesh, "web"), at("shop", "gw"), "two has no address");
    assert!(mesh.compiler.is_kept(&key("shop", "gw")));
    mesh.gateway("shop", "two", json!({}), "Same", true);
    assert_eq!(present(&mut mesh, "web"), at("shop", "gw"), "two has not acknowledged");
    assert!(bound(&mesh).contains("waypoint shop/gw, until the one that it wants is ready: shop/two"), "{}", bound(&mesh));
    settle(&mut mesh, "two");
    assert_eq!(present(&mut mesh, "web"), at("shop", "two"));
    assert_eq!(bound(&mesh), "Successfully attached to waypoint shop/two; what was open goes on through shop/gw");
    assert_eq!((hosts(&mesh, "gw"), hosts(&mesh, "two")), (vec!["web".to_owned()], vec!["web".to_owned()]), "for what is under way");
    // It comes back before it was released, and leaves again.
    mesh.service("web", json!({"istio.io/use-waypoint": "gw"}));
    assert_eq!(present(&mut mesh, "web"), at("shop", "gw"), "it still knows it");
    mesh.service("web", json!({"istio.io/use-waypoint": "two"}));
    assert_eq!(present(&mut mesh, "web"), at("shop", "two"));
    let left: Vec<_> = mesh.compiler.left().collect();
    assert_eq!(left.len(), 1);
    mesh.compiler.release(&left[0]);
    assert_eq!((present(&mut mesh, "web"), hosts(&mesh, "gw")), (at("shop", "two"), Vec::<String>::new()));
    assert_eq!(bound(&mesh), "Successfully attached to waypoint shop/two");
    // Now that it has forgotten, its acknowledgement counts anew.
    mesh.service("web", json!({"istio.io/use-waypoint": "gw"}));
    assert_eq!(present(&mut mesh, "web"), at("shop", "two"));
    settle(&mut mesh, "gw");
    assert_eq!(present(&mut mesh, "web"), at("shop", "gw"));
    mesh.compiler.remove(&ObjectRef::new(Kind::Gateway, "shop", "gw"));
    assert_eq!(present(&mut mesh, "web"), None);
    assert!(bound(&mesh).contains("shop/gw: it does not exist"), "{}", bound(&mesh));
}

/// Whether waypoint `gw` goes to the pods of a Service itself, or else through waypoint `two`; `None` if it finds nobody.
fn straight(view: &View, app: &str) -> Option<bool> {
    let key = tropis_model::pool::PoolKey { host: own_service(&Settings::default(), &key("shop", app)), port: 80, subset: None };
    let pool = view.hosts().find_map(|host| host.pools.get(&key)).unwrap();
    let names: Vec<String> =
        tropis_model::reach::find(view, "shop/gw", "", pool).iter().map(|found| found.workload.name.to_string()).collect();
    let of = |found: &str| names.iter().all(|name| name.starts_with(found));
    assert!(of(app) || of("two"), "{names:?}");
    (!names.is_empty()).then(|| of(app))
}

#[test]
fn a_service_that_changes_its_waypoint_keeps_its_policies_where_a_route_leads_to_it() {
    use tropis_model::request_policy::Attachment;
    let mut mesh = Mesh::new(json!({}));
    mesh.service("web", json!({"istio.io/use-waypoint": "gw"}));
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    mesh.apply(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"hosts": ["web"], "http": [{"route": [{"destination": {"host": "ratings"}}]}]},
    }));
    mesh.apply(json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Service", "group": "", "name": "ratings"}], "action": "ALLOW", "rules": []},
    }));
    mesh.pod("ratings-1", "ratings", "ratings", json!({}));
    mesh.apply(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "two", "namespace": "shop", "labels": {MANAGED: "istio.io-mesh-controller"}},
        "spec": {"selector": {"app": "two"}, "clusterIP": "10.96.0.2", "ports": [{"name": "mesh", "port": 15008}]},
    }));
    mesh.pod("two-1", "two", "two", json!({GATEWAY_NAME: "two"}));
    mesh.gateway("shop", "two", json!({}), "Same", false);
    let mut view = View::default();
    // Whoever goes straight has the policies, in each view on the way; whoever does not leaves them to the other waypoint.
    let mut follow = |mesh: &mut Mesh, step: &str, is_straight: bool| {
        mesh.compiler.changes();
        for told in mesh.compiler.waypoints().into_iter().filter(|told| told.gateway == key("shop", "gw")) {
            for change in told.changes.unwrap() {
                view = view.apply([change]);
                if view.hosts().len() == 0 {
                    continue;
                }
                let ratings = view.host(&own_service(&Settings::default(), &key("shop", "ratings")));
                let guarded = ratings.is_some_and(|host| host.policies.iter().any(|policy| policy.attachment == Attachment::Service));
                assert!(straight(&view, "ratings") != Some(true) || guarded || is_open(&view), "{step}");
            }
        }
        assert_eq!(straight(&view, "ratings"), Some(is_straight), "{step}");
    };
    mesh.service("ratings", json!({}));
    follow(&mut mesh, "ratings goes through none", true);
    mesh.compiler.opened();
    mesh.service("ratings", json!({"istio.io/use-waypoint": "gw"}));
    follow(&mut mesh, "ratings goes through gw", true);
    settle(&mut mesh, "gw");
    follow(&mut mesh, "gw has acknowledged that", true);
    mesh.service("ratings", json!({"istio.io/use-waypoint": "two"}));
    follow(&mut mesh, "it wants two, which has no address", true);
    mesh.gateway("shop", "two", json!({}), "Same", true);
    follow(&mut mesh, "two has not acknowledged", true);
    settle(&mut mesh, "two");
    follow(&mut mesh, "it goes through two, and gw has not forgotten it", true);
    let left: Vec<_> = mesh.compiler.left().collect();
    assert!(mesh.compiler.release(&left[0]));
    follow(&mut mesh, "gw has forgotten it", false);
    mesh.service("ratings", json!({"istio.io/use-waypoint": "gw"}));
    follow(&mut mesh, "it wants to come back", true);
}

/// Whether nothing goes through a waypoint yet to reach `ratings`: its policies are in force nowhere.
fn is_open(view: &View) -> bool {
    view.service(&own_service(&Settings::default(), &key("shop", "ratings"))).is_none_or(|service| service.waypoint.is_none())
}

/// The keys of the labels of pod `web-1`, as waypoint `gw` knows it once it has all that it was told.
fn label_keys(mesh: &mut Mesh, view: &mut View) -> Vec<String> {
    mesh.compiler.changes();
    for told in mesh.compiler.waypoints() {
        *view = view.apply(told.changes.unwrap());
    }
    let web = view.workloads().find(|workload| &*workload.name == "web-1").unwrap();
    web.labels.keys().map(|key| key.to_string()).collect()
}

#[test]
fn a_label_stays_told_until_the_waypoint_has_acknowledged_what_selects_by_another() {
    let mut mesh = Mesh::new(json!({}));
    mesh.service("web", json!({"istio.io/use-waypoint": "gw"}));
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    mesh.pod("web-1", "web", "web", json!({"version": "v1", "tier": "front"}));
    let select = |mesh: &mut Mesh, key: &str, value: &str| {
        mesh.apply(json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {key: value}}, "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]},
        }));
    };
    let mut view = View::default();
    select(&mut mesh, "app", "web");
    assert_eq!(label_keys(&mut mesh, &mut view), ["app"]);
    mesh.compiler.opened();
    settle(&mut mesh, "gw");
    select(&mut mesh, "version", "v1");
    assert_eq!(label_keys(&mut mesh, &mut view), ["app", "version"], "the policy before this one may still be asked");
    select(&mut mesh, "tier", "front");
    assert_eq!(label_keys(&mut mesh, &mut view), ["app", "tier", "version"], "so may each that was not acknowledged");
    let refused = [own_service(&Settings::default(), &key("shop", "web"))].into();
    mesh.compiler.acknowledged_without(&key("shop", "gw"), &refused);
    mesh.service("other", json!({}));
    assert_eq!(label_keys(&mut mesh, &mut view), ["app", "tier", "version"], "what is refused leaves the one before in force");
    settle(&mut mesh, "gw");
    mesh.service("another", json!({}));
    assert_eq!(label_keys(&mut mesh, &mut view), ["tier"]);
}

#[test]
fn a_change_of_waypoints_that_was_under_way_goes_on_after_a_restart() {
    let mut mesh = Mesh::new(json!({}));
    for name in ["gw", "two"] {
        mesh.gateway("shop", name, json!({}), "Same", true);
    }
    let message = "Successfully attached to waypoint shop/gw, until the one that it wants is ready: shop/two";
    mesh.apply(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"istio.io/use-waypoint": "two"}},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]},
        "status": {"conditions": [{
            "type": "istio.io/WaypointBound", "status": "True", "reason": "WaypointAccepted", "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    }));
    assert_eq!(present(&mut mesh, "web"), at("shop", "gw"));
    mesh.compiler.opened();
    assert_eq!(present(&mut mesh, "web"), at("shop", "gw"));
    settle(&mut mesh, "two");
    assert_eq!(present(&mut mesh, "web"), at("shop", "two"));
}

/// A mesh of waypoints `gw`, and `two` if Service `web` wants that, as a control plane finds it that starts with this condition of `web`.
fn restarted(wanted: Option<&str>, condition: (&str, &str)) -> Mesh {
    let mut mesh = Mesh::new(json!({}));
    mesh.namespace("elsewhere", json!({}));
    mesh.gateway("elsewhere", "theirs", json!({}), "Same", true);
    for name in ["gw", "two"] {
        mesh.gateway("shop", name, json!({}), "Same", true);
    }
    let labels = wanted.map_or(json!({}), |wanted| json!({"istio.io/use-waypoint": wanted}));
    mesh.apply(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop", "labels": labels},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]},
        "status": {"conditions": [{
            "type": "istio.io/WaypointBound", "status": condition.0, "reason": "WaypointAccepted", "message": condition.1,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    }));
    mesh.compiler.changes();
    mesh.compiler.waypoints();
    mesh.compiler.opened();
    mesh
}

#[test]
fn a_drain_that_was_under_way_goes_on_after_a_restart() {
    for (wanted, condition, goes) in [
        (Some("two"), ("True", "Successfully attached to waypoint shop/two; what was open goes on through shop/gw"), at("shop", "two")),
        (None, ("False", "traffic goes through no waypoint; what was open goes on through shop/gw, elsewhere/theirs"), None),
    ] {
        let mut mesh = restarted(wanted, condition);
        assert_eq!(present(&mut mesh, "web"), goes);
        assert_eq!(hosts(&mesh, "gw"), ["web"], "for what is under way");
        assert!(mesh.compiler.served(&key("elsewhere", "theirs")).unwrap().services.is_empty(), "it does not take the namespace");
        let bound = |mesh: &Mesh| mesh.compiler.bindings().map(|(_, binding)| binding.message.clone()).collect::<Vec<_>>();
        assert!(bound(&mesh)[0].ends_with("; what was open goes on through shop/gw"), "{:?}", bound(&mesh));
        let left: Vec<_> = mesh.compiler.left().collect();
        assert_eq!((left.len(), left[0].waypoint()), (1, &key("shop", "gw")));
        assert!(mesh.compiler.release(&left[0]));
        assert_eq!((present(&mut mesh, "web"), hosts(&mesh, "gw")), (goes, Vec::<String>::new()));
        assert!(bound(&mesh).iter().all(|message| !message.contains("shop/gw")), "{:?}", bound(&mesh));
    }
}

#[test]
fn a_waypoint_is_told_which_of_its_pods_go_another_way() {
    let mut mesh = Mesh::new(json!({}));
    let elsewhere = |view: &View| view.waypoint("shop/gw").unwrap().elsewhere.iter().map(ToString::to_string).collect::<Vec<_>>();
    let is_told_as_own = |view: &View| {
        let mut workloads = view.workloads();
        workloads.any(|workload| {
            &*workload.name == "web-1" && workload.waypoint.as_ref().is_some_and(|own| own.destination.to_string().contains("/gw."))
        })
    };
    mesh.gateway("shop", "gw", json!({"istio.io/waypoint-for": "all"}), "Same", true);
    mesh.gateway("shop", "two", json!({"istio.io/waypoint-for": "all"}), "Same", true);
    mesh.pod("web-1", "web", "web", json!({"istio.io/use-waypoint": "gw"}));
    let (view, _) = told(&mut mesh, "gw", &View::default());
    assert_eq!((elsewhere(&view), is_told_as_own(&view)), (vec![], true));
    mesh.compiler.opened();
    mesh.pod("web-1", "web", "web", json!({"istio.io/use-waypoint": "two"}));
    let (view, _) = told(&mut mesh, "gw", &view);
    assert_eq!((elsewhere(&view), is_told_as_own(&view)), (vec![], true), "two has not acknowledged");
    settle(&mut mesh, "two");
    let (view, _) = told(&mut mesh, "gw", &view);
    assert_eq!((elsewhere(&view), is_told_as_own(&view)), (vec!["Kubernetes//Pod/shop/web-1".to_owned()], true), "for what is under way");
    let left: Vec<_> = mesh.compiler.left().collect();
    assert!(mesh.compiler.release(&left[0]));
    let (view, _) = told(&mut mesh, "gw", &view);
    assert_eq!((elsewhere(&view), is_told_as_own(&view)), (vec![], false));
}

#[test]
fn a_waypoint_that_a_status_names_and_that_does_not_take_the_namespace_is_not_believed() {
    let mut mesh = Mesh::new(json!({}));
    mesh.namespace("elsewhere", json!({}));
    mesh.gateway("elsewhere", "theirs", json!({}), "Same", true);
    mesh.gateway("shop", "two", json!({}), "Same", true);
    let forged = |mesh: &mut Mesh, ready: bool| {
        mesh.gateway("shop", "two", json!({}), "Same", ready);
        let message = "Successfully attached to waypoint elsewhere/theirs";
        mesh.apply(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop", "labels": {"istio.io/use-waypoint": "two"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]},
            "status": {"conditions": [{
                "type": "istio.io/WaypointBound", "status": "True", "reason": "WaypointAccepted", "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        }));
        present(mesh, "web")
    };
    assert_eq!(forged(&mut mesh, false), None);
    assert_eq!(forged(&mut mesh, true), at("shop", "two"));
}

#[test]
fn what_is_released_while_its_acknowledgement_is_waited_for_is_not_carried_after_that() {
    let mut mesh = published();
    mesh.gateway("shop", "two", json!({}), "Same", true);
    mesh.service("web", json!({"istio.io/use-waypoint": "two"}));
    present(&mut mesh, "web");
    settle(&mut mesh, "two");
    mesh.service("young", json!({"istio.io/use-waypoint": "gw"}));
    present(&mut mesh, "young");
    mesh.compiler.acknowledged(&key("shop", "gw"));
    // What gw knows now is waited for, and web among it is forgotten meanwhile.
    let mut waiting = mesh.compiler.acquainted(&key("shop", "gw")).unwrap();
    let left: Vec<_> = mesh.compiler.left().collect();
    assert_eq!((left.len(), left[0].waypoint()), (1, &key("shop", "gw")));
    assert!(mesh.compiler.release(&left[0]));
    left[0].take_from(&mut waiting);
    mesh.compiler.carry(&key("shop", "gw"), waiting);
    mesh.service("web", json!({"istio.io/use-waypoint": "gw"}));
    assert_eq!(present(&mut mesh, "web"), at("shop", "two"), "gw has not acknowledged it anew");
    assert_eq!(present(&mut mesh, "young"), at("shop", "gw"));
}

#[test]
fn a_namespaces_policy_lets_in_only_waypoints_that_carry_something_of_the_namespace() {
    let mut mesh = Mesh::new(json!({}));
    mesh.namespace("elsewhere", json!({}));
    mesh.gateway("elsewhere", "theirs", json!({}), "Same", true);
    mesh.apply(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "own", "namespace": "elsewhere", "labels": {"istio.io/use-waypoint": "theirs"}},
        "spec": {"selector": {"app": "own"}, "clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}]},
    }));
    mesh.apply(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "r", "namespace": "elsewhere"},
        "spec": {"hosts": ["own"], "http": [{"route": [{"destination": {"host": "web.shop.svc.cluster.local"}}]}]},
    }));
    mesh.policy("ALLOW", json!([{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/a"]}}]}]));
    mesh.compiler.changes();
    mesh.compiler.acknowledged(&key("elsewhere", "theirs"));
    assert!(!format!("{:?}", mesh.l4()).contains("theirs"), "nobody of shop agreed to that waypoint");
    mesh.gateway("elsewhere", "theirs", json!({}), "All", true);
    mesh.service("web", json!({"istio.io/use-waypoint": "theirs", "istio.io/use-waypoint-namespace": "elsewhere"}));
    mesh.compiler.changes();
    mesh.compiler.acknowledged(&key("elsewhere", "theirs"));
    assert!(format!("{:?}", mesh.l4()).contains("theirs"));
}
