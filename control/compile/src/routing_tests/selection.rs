//! Whose VirtualServices and DestinationRules count for whom, and in which order.

use serde_json::{Value, json};
use tropis_model::{
    pool::Balancer,
    route::{Host, PortProtocol},
};

use super::{Mesh, PORT, key, routes, rule, service, shop};

fn origins(host: &Host, port: u16) -> Vec<String> {
    host.ports[&port].http.iter().map(|route| format!("{} {}", route.origin.object, route.origin.field)).collect()
}

/// A VirtualService for `reviews` with one rule for a path, that became known on a day of January.
fn dated(namespace: &str, name: &str, day: u32, more: Value) -> Value {
    let path = format!("/{name}");
    let rule = json!({"match": [{"uri": {"prefix": path}}], "route": [{"destination": {"host": "reviews.shop.svc.cluster.local"}}]});
    let mut spec = json!({"hosts": ["reviews.shop.svc.cluster.local"], "http": [rule]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut object = routes(namespace, name, spec);
    object["metadata"]["creationTimestamp"] = json!(format!("2026-01-{day:02}T00:00:00Z"));
    object
}

#[test]
fn without_a_virtual_service_the_route_is_the_service_itself() {
    let host = Mesh::new(shop()).host("reviews");
    let route = &host.ports[&PORT].http[0];
    assert_eq!((&*route.name, &*route.origin.kind, &*route.origin.object), ("default", "Service", "shop/reviews"));
    assert!(route.matches.is_empty() && host.ports[&PORT].tcp.is_empty());
    assert!(host.pools.contains_key(&key("reviews", PORT, None)));
}

#[test]
fn several_are_tried_oldest_first_whatever_their_names() {
    let host = Mesh::new(shop().into_iter().chain([dated("shop", "a", 2, json!({})), dated("shop", "b", 1, json!({}))])).host("reviews");
    assert_eq!(origins(&host, PORT), ["shop/b spec.http[0]", "shop/a spec.http[0]"]);
}

#[test]
fn export_to_orders_private_before_named_before_public_and_hides() {
    let objects = [
        dated("shop", "public", 1, json!({})),
        dated("shop", "named", 2, json!({"exportTo": ["shop"]})),
        dated("shop", "private", 3, json!({"exportTo": ["."]})),
        dated("shop", "elsewhere", 4, json!({"exportTo": ["bank"]})),
    ];
    let host = Mesh::new(shop().into_iter().chain(objects)).host("reviews");
    assert_eq!(origins(&host, PORT), ["shop/private spec.http[0]", "shop/named spec.http[0]", "shop/public spec.http[0]"]);
}

#[test]
fn only_those_of_the_services_and_the_waypoints_namespace_count() {
    let objects = [dated("shop", "own", 1, json!({})), dated("edge", "waypoints", 2, json!({})), dated("bank", "third", 3, json!({}))];
    let mut mesh = Mesh::new(shop().into_iter().chain(objects));
    mesh.waypoint = ("edge".to_owned(), "waypoint".to_owned());
    assert_eq!(origins(&mesh.host("reviews"), PORT), ["shop/own spec.http[0]", "edge/waypoints spec.http[0]"]);
}

#[test]
fn gateways_without_mesh_leave_the_mesh_alone() {
    let host = Mesh::new(shop().into_iter().chain([dated("shop", "edge", 1, json!({"gateways": ["edge"]}))])).host("reviews");
    assert_eq!(&*host.ports[&PORT].http[0].name, "default");
    let host = Mesh::new(shop().into_iter().chain([dated("shop", "both", 1, json!({"gateways": ["edge", "mesh"]}))])).host("reviews");
    assert_eq!(origins(&host, PORT), ["shop/both spec.http[0]"]);
}

#[test]
fn hosts_may_be_short_full_in_any_case_or_wild_but_not_half() {
    for (hosts, routed) in [
        (json!(["reviews"]), true),
        (json!(["Reviews"]), true),
        (json!(["reviews.shop.svc.cluster.local"]), true),
        (json!(["*.shop.svc.cluster.local"]), true),
        (json!(["*.cluster.local"]), true),
        (json!(["reviews.shop"]), false),
        (json!(["*.bank.svc.cluster.local"]), false),
        (json!(["ratings"]), false),
    ] {
        let host = Mesh::new(shop().into_iter().chain([dated("shop", "r", 1, json!({"hosts": hosts}))])).host("reviews");
        assert_eq!(origins(&host, PORT)[0] == "shop/r spec.http[0]", routed, "{hosts}");
    }
}

#[test]
fn what_takes_everything_hides_what_comes_after_it_and_no_match_is_no_route() {
    let forward = json!([{"destination": {"host": "reviews.shop.svc.cluster.local"}}]);
    let all = json!({"http": [{"match": [{"uri": {"prefix": "/"}}], "route": forward}, {"route": forward}]});
    let host = Mesh::new(shop().into_iter().chain([dated("shop", "all", 1, all), dated("shop", "late", 2, json!({}))])).host("reviews");
    assert_eq!(origins(&host, PORT), ["shop/all spec.http[0]"]);
    let other_port = json!({"http": [{"match": [{"port": 81}], "route": forward}]});
    let host = Mesh::new(shop().into_iter().chain([dated("shop", "r", 1, other_port)])).host("reviews");
    assert!(host.ports[&PORT].http.is_empty(), "404, not the service itself");
}

#[test]
fn ports_say_what_is_spoken_and_which_rules_there_are() {
    let ports = [("http-a", 1), ("http2-a", 2), ("grpc-a", 3), ("tcp-a", 4), ("tls-a", 5), ("any", 6), ("https-a", 7)];
    let host = Mesh::new([service("shop", "reviews", &ports)]).host("reviews");
    let expected = [
        (1, PortProtocol::Http, 1, 0),
        (2, PortProtocol::Http2, 1, 0),
        (3, PortProtocol::Grpc, 1, 0),
        (4, PortProtocol::Tcp, 0, 1),
        (5, PortProtocol::Tls, 0, 1),
        (6, PortProtocol::Auto, 1, 1),
        (7, PortProtocol::Tls, 0, 1),
    ];
    let found: Vec<_> = host.ports.iter().map(|(number, port)| (*number, port.protocol, port.http.len(), port.tcp.len())).collect();
    assert_eq!(found, expected);
}

/// The balancer of `reviews` for a waypoint in a namespace, by the name of the rule that says it.
fn rules(objects: Vec<Value>, waypoint: &str) -> Balancer {
    let mut mesh = Mesh::new(objects.into_iter().chain([service("shop", "reviews", &[("http", PORT)])]));
    mesh.waypoint = (waypoint.to_owned(), "waypoint".to_owned());
    mesh.host("reviews").pools[&key("reviews", PORT, None)].balancer.clone()
}

fn balancing(namespace: &str, name: &str, host: &str, simple: &str, more: Value) -> Value {
    let mut spec = json!({"host": host, "trafficPolicy": {"loadBalancer": {"simple": simple}}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    rule(namespace, name, spec)
}

const FULL: &str = "reviews.shop.svc.cluster.local";

#[test]
fn rules_of_the_waypoints_namespace_win_then_the_services_then_the_roots() {
    let own = balancing("edge", "own", FULL, "RANDOM", json!({}));
    let theirs = balancing("shop", "theirs", "reviews", "ROUND_ROBIN", json!({}));
    let root = balancing("istio-system", "root", "*.cluster.local", "PASSTHROUGH", json!({}));
    let other = balancing("bank", "other", FULL, "PASSTHROUGH", json!({}));
    assert_eq!(rules(vec![own, theirs.clone(), root.clone(), other.clone()], "edge"), Balancer::Random);
    assert_eq!(rules(vec![theirs, root.clone(), other.clone()], "edge"), Balancer::RoundRobin);
    assert_eq!(rules(vec![root, other.clone()], "edge"), Balancer::Passthrough);
    assert_eq!(rules(vec![other], "edge"), Balancer::LeastRequest);
}

#[test]
fn rules_export_to_hides_them() {
    let private = balancing("shop", "private", "reviews", "RANDOM", json!({"exportTo": ["."]}));
    assert_eq!(rules(vec![private.clone()], "shop"), Balancer::Random);
    assert_eq!(rules(vec![private], "edge"), Balancer::LeastRequest);
    let named = balancing("shop", "named", "reviews", "RANDOM", json!({"exportTo": ["edge"]}));
    assert_eq!(rules(vec![named], "edge"), Balancer::Random);
}

#[test]
fn rules_with_a_workload_selector_do_not_count_at_waypoints() {
    let selecting = balancing("shop", "s", "reviews", "RANDOM", json!({"workloadSelector": {"matchLabels": {"app": "web"}}}));
    assert_eq!(rules(vec![selecting.clone()], "shop"), Balancer::LeastRequest);
    let texts = Mesh::new(shop().into_iter().chain([selecting])).texts();
    assert!(texts.iter().any(|text| text.contains("spec.workloadSelector: selects sidecars")), "{texts:?}");
}

#[test]
fn the_most_specific_host_wins() {
    let wide = balancing("shop", "wide", "*.cluster.local", "RANDOM", json!({}));
    let narrow = balancing("shop", "narrow", "*.shop.svc.cluster.local", "ROUND_ROBIN", json!({}));
    let exact = balancing("shop", "exact", "reviews", "PASSTHROUGH", json!({}));
    assert_eq!(rules(vec![wide.clone(), narrow.clone(), exact], "shop"), Balancer::Passthrough);
    assert_eq!(rules(vec![wide, narrow], "shop"), Balancer::RoundRobin);
}

#[test]
fn rules_for_one_host_merge_oldest_first() {
    let subset = |name: &str, version: &str| json!({"name": name, "labels": {"version": version}});
    let mut old = rule("shop", "b", json!({"host": "reviews", "subsets": [subset("v1", "1"), subset("v2", "2")]}));
    old["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut new = balancing("shop", "a", FULL, "RANDOM", json!({"subsets": [subset("v2", "other"), subset("v3", "3")]}));
    new["metadata"]["creationTimestamp"] = json!("2026-01-02T00:00:00Z");
    let to = |subset: &str| json!({"destination": {"host": "reviews", "subset": subset}, "weight": 1});
    let split = routes("shop", "r", json!({"hosts": ["reviews"], "http": [{"route": [to("v1"), to("v2"), to("v3"), to("v4")]}]}));
    let mesh = Mesh::new([service("shop", "reviews", &[("http", PORT)]), old, new, split]);
    let host = mesh.host("reviews");
    let labels = |subset: &str| {
        host.pools.get(&key("reviews", PORT, Some(subset))).map(|pool| (pool.labels["version"].to_string(), pool.balancer.clone()))
    };
    assert_eq!(labels("v1"), Some(("1".to_owned(), Balancer::Random)), "the only policy is everybody's");
    assert_eq!(labels("v2"), Some(("2".to_owned(), Balancer::Random)), "the older subset stays");
    assert_eq!(labels("v3"), Some(("3".to_owned(), Balancer::Random)));
    assert_eq!(labels("v4"), None);
    let texts = mesh.texts();
    assert!(
        texts
            .iter()
            .any(|text| text.contains("(DestinationRule shop/a) spec.subsets[0].name: \"v2\" is said by the older DestinationRule shop/b")),
        "{texts:?}"
    );
}

/// The pool of a subset under policies of the rule and of the subset: balancer, largest number of connections, ejections.
fn resolved(policy: Value, of_subset: Value, port: u16) -> (Balancer, Option<u32>, bool) {
    let spec = json!({"host": "reviews", "trafficPolicy": policy, "subsets": [{"name": "v1", "labels": {"version": "v1"}, "trafficPolicy": of_subset}]});
    let split =
        routes("shop", "r", json!({"hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "reviews", "subset": "v1"}}]}]}));
    let host = Mesh::new([service("shop", "reviews", &[("http-a", 80), ("http-b", 81)]), rule("shop", "r", spec), split]).host("reviews");
    let pool = &host.pools[&key("reviews", port, Some("v1"))];
    (pool.balancer.clone(), pool.limits.max_connections, pool.outlier.is_some())
}

#[test]
fn port_level_settings_replace_the_whole_policy() {
    let policy = json!({
        "loadBalancer": {"simple": "RANDOM"}, "outlierDetection": {},
        "portLevelSettings": [{"port": {"number": 80}, "connectionPool": {"tcp": {"maxConnections": 7}}}],
    });
    assert_eq!(resolved(policy.clone(), Value::Null, 80), (Balancer::LeastRequest, Some(7), false));
    assert_eq!(resolved(policy, Value::Null, 81), (Balancer::Random, None, true));
}

#[test]
fn subsets_traffic_policy_overrides_block_by_block() {
    let policy = json!({"loadBalancer": {"simple": "RANDOM"}, "outlierDetection": {}, "connectionPool": {"tcp": {"maxConnections": 9}}});
    let own = json!({"connectionPool": {"http": {"http2MaxRequests": 1}}});
    assert_eq!(resolved(policy.clone(), own, 80), (Balancer::Random, None, true), "a block is replaced whole");
    let ported =
        json!({"loadBalancer": {"simple": "ROUND_ROBIN"}, "portLevelSettings": [{"port": {"number": 80}, "outlierDetection": {}}]});
    assert_eq!(resolved(policy.clone(), ported.clone(), 80), (Balancer::LeastRequest, None, true), "settings of the port replace all four");
    assert_eq!(resolved(policy, ported, 81), (Balancer::RoundRobin, Some(9), true));
}

#[test]
fn routes_and_rules_of_services_without_a_waypoint_are_told_of() {
    let namespace = |labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}});
    let objects = |labels: Value| {
        let vs = routes("shop", "r", json!({"hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "reviews"}}]}]}));
        let dr = balancing("shop", "d", "reviews", "RANDOM", json!({}));
        vec![namespace(labels), service("shop", "reviews", &[("http", PORT)]), vs, dr]
    };
    let told = |objects: Vec<Value>| Mesh::new(objects).texts().into_iter().filter(|text| text.contains("TRP0007")).collect::<Vec<_>>();
    let out = told(objects(json!({})));
    assert_eq!(out.len(), 2, "{out:?}");
    assert!(out[0].contains("(VirtualService shop/r) spec.hosts[0]: \"reviews\" goes through no waypoint"), "{out:?}");
    assert!(out[1].contains("(DestinationRule shop/d) spec.host: \"reviews\" goes through no waypoint"), "{out:?}");
    let ambient = |more: (&str, &str)| json!({"istio.io/dataplane-mode": "ambient", more.0: more.1});
    assert!(told(objects(ambient(("a", "b")))).is_empty(), "one is about to be made");
    for opted_out in [("tropis.io/automatic-waypoint", "false"), ("istio.io/use-waypoint", "none"), ("istio.io/use-waypoint", "wayponit")] {
        assert_eq!(told(objects(ambient(opted_out))).len(), 2, "{opted_out:?}");
    }
    let gateway = |status: Value| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "waypoint", "namespace": "shop"},
            "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]}, "status": status,
        })
    };
    let named = ("istio.io/use-waypoint", "waypoint");
    let coming = told(objects(ambient(named)).into_iter().chain([gateway(json!({}))]).collect());
    assert!(coming.len() == 2 && coming.iter().all(|text| text.starts_with("Info") && text.contains("once that is ready")), "{coming:?}");
    let ready = json!({"addresses": [{"type": "Hostname", "value": "waypoint.shop.svc.cluster.local"}]});
    assert!(told(objects(ambient(named)).into_iter().chain([gateway(ready)]).collect()).is_empty());
    let mut unknown = objects(json!({}));
    unknown.remove(0);
    assert!(told(unknown).is_empty(), "a file that is looked at alone");
}
