//! Automatic waypoints whose scope is the account: which there should be, and what goes through which.

use super::{
    super::{
        automatic::{NAME, SCOPE, Scope, name},
        needed::{MOST_OF_ACCOUNTS, Reason},
    },
    *,
};

/// A namespace whose automatic waypoints have this scope.
fn labels(scope: &str) -> Value {
    json!({"istio.io/dataplane-mode": "ambient", SCOPE: scope})
}

/// Services `web` and `api` in such a namespace, each with pods of the account of its name and a route.
fn shop() -> Mesh {
    let mut mesh = Mesh::new(labels("service-account"));
    app(&mut mesh, "api");
    route(&mut mesh, "web");
    mesh
}

fn app(mesh: &mut Mesh, name: &str) {
    mesh.service(name, json!({}));
    mesh.pod(&format!("{name}-1"), name, name, json!({}));
    route(mesh, name);
}

fn route(mesh: &mut Mesh, host: &str) {
    mesh.apply(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": host, "namespace": "shop"},
        "spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": host}}]}]},
    }));
}

fn without_pods(mesh: &mut Mesh) {
    for pod in ["web-1", "web-2"] {
        mesh.compiler.remove(&ObjectRef::new(Kind::Pod, "shop", pod));
    }
}

/// The Gateway of an automatic waypoint.
fn stand(mesh: &mut Mesh, account: Option<&str>, mark: &str, ready: bool) {
    let mut labels = json!({AUTOMATIC: mark, WAYPOINT_FOR: "service"});
    if let Some(account) = account {
        labels[FOR_ACCOUNT] = account.into();
    }
    mesh.gateway("shop", &name(account), labels, "Same", ready);
}

/// A Service whose status says that it goes through the automatic waypoint of an account, or of the namespace.
fn bound(mesh: &mut Mesh, app: &str, account: Option<&str>) {
    let message = format!("Successfully attached to waypoint shop/{}", name(account));
    mesh.apply(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": app, "namespace": "shop"},
        "spec": {"selector": {"app": app}, "clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        "status": {"conditions": [{
            "type": "istio.io/WaypointBound", "status": "True", "reason": "WaypointAccepted", "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    }));
}

/// The automatic waypoints that there should be, by name, and why each.
fn needs(mesh: &mut Mesh) -> Vec<(String, Reason)> {
    mesh.compiler.changes();
    let needs: Vec<_> = mesh.compiler.needs().iter().map(|(key, need)| (key.1.clone(), need.reason.clone())).collect();
    for ((namespace, name), need) in mesh.compiler.needs() {
        assert_eq!((namespace.as_str(), name), ("shop", &automatic::name(need.account.as_deref())));
    }
    needs
}

fn own(account: &str) -> (String, Reason) {
    (name(Some(account)), Reason::ByScope)
}

fn mixed(accounts: &[&str]) -> (String, Reason) {
    (NAME.to_owned(), Reason::Mixed(accounts.iter().map(ToString::to_string).collect()))
}

#[test]
fn by_account_each_gets_a_waypoint_whose_services_need_one() {
    let mut mesh = shop();
    mesh.service("idle", json!({}));
    mesh.pod("idle-1", "idle", "idle", json!({}));
    mesh.apply(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "api-2", "namespace": "shop", "labels": {"app": "api"}},
        "spec": {"nodeName": "n", "serviceAccount": "api", "containers": []},
    }));
    assert_eq!(needs(&mut mesh), [own("api"), own("web")], "nothing asks for one at idle");
    stand(&mut mesh, Some("web"), "true", true);
    stand(&mut mesh, Some("api"), "true", false);
    let web = at("shop", "automatic-waypoint-web");
    assert_eq!(mesh.waypoints(), (web, vec![None; 4]), "nothing that is addressed to pods goes through one");
    assert_eq!((present(&mut mesh, "api"), present(&mut mesh, "idle")), (None, None));
    assert_eq!(needs(&mut mesh), [own("api"), own("web")]);
    mesh.compiler.remove(&ObjectRef::new(Kind::VirtualService, "shop", "api"));
    assert_eq!(needs(&mut mesh), [own("web")]);
}

#[test]
fn the_mesh_decides_over_the_scope_unless_the_namespace_does() {
    let settings = Settings { automatic_waypoint_scope: Scope::ServiceAccount, ..Settings::default() };
    let mut mesh = Mesh { compiler: Compiler::new(settings) };
    app(&mut mesh, "web");
    let mut needed = |labels: Value| {
        mesh.namespace("shop", labels);
        let needs = needs(&mut mesh);
        (needs.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), mesh.findings())
    };
    let of = |name: &str, findings: &[&str]| (vec![name.to_owned()], findings.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(needed(json!({"istio.io/dataplane-mode": "ambient"})), of("automatic-waypoint-web", &[]));
    assert_eq!(needed(labels("namespace")), of("automatic-waypoint", &[]));
    assert_eq!(needed(labels("account")), of("automatic-waypoint-web", &["TRP0004 Namespace shop"]));
    let opted_out = needed(json!({"istio.io/dataplane-mode": "ambient", AUTOMATIC: "maybe"}));
    assert_eq!(opted_out, of("automatic-waypoint-web", &["TRP0004 Namespace shop"]));
}

#[test]
fn what_users_chose_comes_before_every_automatic_waypoint() {
    let mut mesh = shop();
    for account in [None, Some("web"), Some("api")] {
        stand(&mut mesh, account, "true", true);
    }
    assert_eq!(mesh.waypoints().0, at("shop", "automatic-waypoint-web"));
    mesh.gateway("shop", "for-web", json!({FOR_ACCOUNT: "web"}), "Same", true);
    let mine = at("shop", "for-web");
    assert_eq!(mesh.waypoints(), (mine.clone(), vec![None, mine.clone(), mine.clone()]));
    assert_eq!(needs(&mut mesh), [own("api")]);
    mesh.gateway("shop", "for-web", json!({FOR_ACCOUNT: "web"}), "Same", false);
    assert_eq!(mesh.waypoints().0, None, "also one that is not ready");
    assert_eq!(needs(&mut mesh), [own("api")]);
    mesh.gateway("shop", "for-web", json!({FOR_ACCOUNT: "web", WAYPOINT_FOR: "workload"}), "Same", true);
    assert_eq!(mesh.waypoints().0, at("shop", "automatic-waypoint-web"), "that one is not for Services");
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    let mut chosen = labels("service-account");
    chosen["istio.io/use-waypoint"] = "gw".into();
    mesh.namespace("shop", chosen.clone());
    assert_eq!(mesh.waypoints().0, at("shop", "gw"));
    assert_eq!(needs(&mut mesh), []);
    mesh.service("web", json!({"istio.io/use-waypoint": "none"}));
    assert_eq!(mesh.waypoints().0, None);
    mesh.namespace("shop", labels("service-account"));
    assert_eq!((mesh.waypoints().0, needs(&mut mesh)), (None, vec![own("api")]));
}

#[test]
fn a_gateway_of_a_users_is_taken_for_no_automatic_one() {
    let mut mesh = shop();
    mesh.gateway("shop", &name(Some("web")), json!({WAYPOINT_FOR: "service"}), "Same", true);
    assert_eq!(mesh.waypoints().0, None, "it does not say that it is one");
    mesh.gateway("shop", &name(Some("api")), json!({AUTOMATIC: "true", FOR_ACCOUNT: "web"}), "Same", true);
    assert_eq!(mesh.waypoints().0, at("shop", "automatic-waypoint-api"), "it is a user's for that account, whatever its name");
    assert_eq!(needs(&mut mesh), [own("api")]);
}

#[test]
fn a_service_over_several_accounts_goes_through_the_namespaces() {
    let mut mesh = shop();
    stand(&mut mesh, Some("web"), "true", true);
    bound(&mut mesh, "web", Some("web"));
    mesh.pod("web-2", "web", "canary", json!({}));
    let stays = (name(Some("web")), Reason::Present);
    assert_eq!(needs(&mut mesh), [mixed(&["canary", "web"]), own("api"), stays]);
    assert_eq!(mesh.waypoints().0, at("shop", "automatic-waypoint-web"), "until the namespace's is there");
    stand(&mut mesh, None, "true", false);
    assert_eq!(needs(&mut mesh), [mixed(&["canary", "web"]), own("api")], "from then on it is kept by what goes through it");
    stand(&mut mesh, None, "true", true);
    assert_eq!(present(&mut mesh, "web"), at("shop", "automatic-waypoint-web"), "it has not acknowledged");
    settle(&mut mesh, NAME);
    assert_eq!(mesh.waypoints().0, at("shop", NAME));
    bound(&mut mesh, "web", None);
    mesh.pod("web-1", "web", "canary", json!({}));
    assert_eq!(needs(&mut mesh), [(NAME.to_owned(), Reason::Present), own("api"), own("canary")]);
    assert_eq!(mesh.waypoints().0, at("shop", NAME), "until its account's is there");
}

#[test]
fn a_service_without_pods_stays_where_it_is_and_makes_nothing() {
    let mut mesh = shop();
    without_pods(&mut mesh);
    assert_eq!(needs(&mut mesh), [own("api")], "nobody knows whose it will be");
    assert!(mesh.findings().contains(&"TRP0007 VirtualService shop/web".to_owned()), "what nobody obeys is told: {:?}", mesh.findings());
    for account in [Some("web"), None] {
        let mut mesh = shop();
        stand(&mut mesh, account, "true", true);
        bound(&mut mesh, "web", account);
        without_pods(&mut mesh);
        let mut expected = vec![own("api"), (name(account), Reason::ByScope)];
        expected.sort();
        assert_eq!((needs(&mut mesh), mesh.waypoints().0), (expected, at("shop", &name(account))));
        mesh.compiler.remove(&ObjectRef::new(Kind::VirtualService, "shop", "web"));
        assert_eq!(needs(&mut mesh), [own("api")], "it needs none any more");
        stand(&mut mesh, account, LEAVING, true);
        assert_eq!(mesh.waypoints().0, None);
    }
}

#[test]
fn a_service_that_selects_no_pods_goes_through_the_namespaces() {
    let mut mesh = shop();
    mesh.apply(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "bare", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}]},
    }));
    route(&mut mesh, "bare");
    assert!(needs(&mut mesh).contains(&(NAME.to_owned(), Reason::ByScope)), "there are no pods to come whose account it would be");

    let mut mesh = shop();
    stand(&mut mesh, Some("web"), "true", true);
    bound(&mut mesh, "web", Some("web"));
    without_pods(&mut mesh);
    let mut service = Value::clone(&mesh.compiler.index().service(&key("shop", "web")).unwrap().value);
    service["spec"].as_object_mut().unwrap().remove("selector");
    mesh.apply(service);
    assert!(needs(&mut mesh).contains(&(NAME.to_owned(), Reason::ByScope)), "it selects none any more");
    assert_eq!(mesh.waypoints().0, at("shop", &name(Some("web"))), "and stays until there is another");
}

#[test]
fn a_status_chooses_no_waypoint_that_is_not_the_namespaces_own() {
    let mut mesh = shop();
    mesh.gateway("shop", "gw", json!({}), "Same", true);
    mesh.gateway("elsewhere", NAME, json!({AUTOMATIC: "true"}), "All", true);
    without_pods(&mut mesh);
    for forged in ["shop/gw", "elsewhere/automatic-waypoint", "shop/automatic-waypoint-web"] {
        let mut service = Value::clone(&mesh.compiler.index().service(&key("shop", "web")).unwrap().value);
        service["status"]["conditions"] = json!([{
            "type": "istio.io/WaypointBound", "status": "True", "reason": "WaypointAccepted",
            "message": format!("Successfully attached to waypoint {forged}"), "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]);
        mesh.apply(service);
        assert_eq!((mesh.waypoints().0, needs(&mut mesh)), (None, vec![own("api")]), "{forged}");
    }
}

#[test]
fn so_many_accounts_have_their_own_and_the_others_go_through_the_namespaces() {
    let mut mesh = Mesh::new(labels("service-account"));
    let names: Vec<String> = (0..MOST_OF_ACCOUNTS + 2).map(|number| format!("app-{number:02}")).collect();
    for name in &names {
        app(&mut mesh, name);
    }
    let expected = |with_own: &[String]| {
        let own = with_own.iter().map(|account| own(account));
        [(NAME.to_owned(), Reason::Beyond(2))].into_iter().chain(own).collect::<Vec<_>>()
    };
    assert_eq!(needs(&mut mesh), expected(&names[..MOST_OF_ACCOUNTS]));
    // Who has one keeps it, whoever comes.
    for name in &names[2..] {
        stand(&mut mesh, Some(name), "true", true);
    }
    stand(&mut mesh, None, "true", true);
    assert_eq!(needs(&mut mesh), expected(&names[2..]));
    assert_eq!(present(&mut mesh, "app-00"), at("shop", NAME));
    assert_eq!(present(&mut mesh, "app-02"), at("shop", "automatic-waypoint-app-02"));
}

#[test]
fn a_change_of_the_scope_moves_a_service_when_the_other_waypoint_carries_it() {
    let mut mesh = Mesh::new(labels("namespace"));
    route(&mut mesh, "web");
    stand(&mut mesh, None, "true", true);
    let (all, web) = (at("shop", NAME), at("shop", "automatic-waypoint-web"));
    assert_eq!(present(&mut mesh, "web"), all);
    mesh.compiler.opened();
    settle(&mut mesh, NAME);
    bound(&mut mesh, "web", None);

    mesh.namespace("shop", labels("service-account"));
    assert_eq!((present(&mut mesh, "web"), needs(&mut mesh)), (all.clone(), vec![(NAME.to_owned(), Reason::Present), own("web")]));
    for ready in [false, true] {
        stand(&mut mesh, Some("web"), "true", ready);
        assert_eq!((present(&mut mesh, "web"), needs(&mut mesh)), (all.clone(), vec![own("web")]), "it has not acknowledged");
        assert!(mesh.compiler.is_kept(&key("shop", NAME)));
    }
    settle(&mut mesh, "automatic-waypoint-web");
    assert_eq!(present(&mut mesh, "web"), web);
    assert!(!mesh.compiler.is_kept(&key("shop", NAME)));
    bound(&mut mesh, "web", Some("web"));
    stand(&mut mesh, None, LEAVING, true);
    assert_eq!(present(&mut mesh, "web"), web);

    // And back, while the one that it left is on its way out.
    mesh.namespace("shop", labels("namespace"));
    let stays = (name(Some("web")), Reason::Present);
    assert_eq!((present(&mut mesh, "web"), needs(&mut mesh)), (web, vec![(NAME.to_owned(), Reason::ByScope), stays]));
    stand(&mut mesh, None, "true", true);
    assert_eq!(present(&mut mesh, "web"), all, "it still knows it");
    assert_eq!(needs(&mut mesh), [(NAME.to_owned(), Reason::ByScope)]);
}

#[test]
fn only_a_pod_that_changes_the_accounts_of_a_service_makes_it_compiled_again() {
    let mesh = shop();
    let mut index = Index::new(Settings::default());
    let known = mesh.compiler.index();
    let pod = |name: &str| known.pod(&key("shop", name)).unwrap();
    for object in [known.namespace("shop").unwrap(), known.service(&key("shop", "web")).unwrap()] {
        index.apply(object);
    }
    let web = BTreeSet::from([key("shop", "web")]);
    assert_eq!(index.apply(pod("web-1")).services, web, "the first of its account");
    assert_eq!(index.apply(pod("web-2")).services, BTreeSet::new());
    assert_eq!(index.remove(&pod("web-1").reference()).services, BTreeSet::new());
    let mut canary = Value::clone(&pod("web-1").value);
    canary["spec"]["serviceAccountName"] = "canary".into();
    assert_eq!(index.apply(&Arc::new(decode(canary).unwrap().0)).services, web);
    assert_eq!(index.remove(&pod("web-2").reference()).services, web, "the last of its account");
}
