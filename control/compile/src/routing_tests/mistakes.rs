//! The ten common mistakes, in the words that a tired person reads.

use serde_json::{Value, json};

use super::{Mesh, PORT, policy, refused, routes, service, shop};

fn told(more: impl IntoIterator<Item = Value>) -> Vec<String> {
    let mut texts = Mesh::new(shop().into_iter().chain(more)).texts();
    // There are no pods here, which every subset is told of.
    texts.retain(|text| !text.contains("[IST0173]"));
    texts
}

fn to(host: &str, more: Value) -> Value {
    let mut destination = json!({"host": host});
    destination.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"destination": destination, "weight": 1})
}

#[test]
fn mistake_1_a_subset_that_nobody_defines() {
    let split = json!([to("reviews", json!({"subset": "v1"})), to("reviews", json!({"subset": "v3"}))]);
    assert_eq!(
        told([routes("shop", "canary", json!({"hosts": ["reviews"], "http": [{"route": split}]}))]),
        ["Error [IST0101] (VirtualService shop/canary) spec.http[0].route[1].destination.subset: \"v3\" is not a subset of \
          reviews.shop.svc.cluster.local (DestinationRule shop/reviews) (there is v1, v2); requests that are routed to it get 503 (flag NC)"]
    );
}

#[test]
fn mistake_1_a_subset_without_any_destination_rule() {
    let split = json!([to("ratings", json!({"subset": "v1"}))]);
    assert_eq!(
        told([routes("shop", "canary", json!({"hosts": ["ratings"], "http": [{"route": split}]}))]),
        ["Error [IST0101] (VirtualService shop/canary) spec.http[0].route[0].destination.subset: \"v1\" is not a subset of \
          ratings.shop.svc.cluster.local, which has no DestinationRule (a DestinationRule for the host with this subset); requests that \
          are routed to it get 503 (flag NC)"]
    );
}

#[test]
fn mistake_1_a_subset_that_selects_no_pod() {
    let texts = Mesh::new(shop()).texts();
    assert_eq!(
        texts[0],
        "Error [IST0173] (DestinationRule shop/reviews) spec.subsets[0].labels: version=v1 matches no pod of reviews.shop.svc.cluster.local \
         (no pod there has a label version); requests that are routed to subset v1 get 503 (flag UH)"
    );
}

#[test]
fn mistake_1_a_subset_that_nobody_defines_and_nothing_goes_to() {
    let split = json!([to("reviews", json!({"subset": "v1"})), {"destination": {"host": "reviews", "subset": "v3"}, "weight": 0}]);
    let texts = told([routes("shop", "canary", json!({"hosts": ["reviews"], "http": [{"route": split}]}))]);
    assert!(
        texts[0].ends_with("(there is v1, v2); nothing while its weight is 0; with any other its requests get 503 (flag NC)"),
        "{texts:?}"
    );
}

#[test]
fn mistake_2_weights_that_sum_to_nothing() {
    let split = json!([{"destination": {"host": "reviews"}, "weight": 0}, {"destination": {"host": "ratings"}}]);
    assert_eq!(
        refused(routes("shop", "canary", json!({"hosts": ["reviews"], "http": [{"route": split}]}))),
        "Error [IST0106] (VirtualService shop/canary) spec.http[0].route: a sum of 0 leaves every destination without traffic (at least one \
         weight above 0); the document is refused"
    );
}

#[test]
fn mistake_3_a_pattern_that_cannot_be_read() {
    let rule = json!({"match": [{"uri": {"regex": "/api/v[0-9+"}}], "route": [to("reviews", json!({}))]});
    assert_eq!(
        refused(routes("shop", "api", json!({"hosts": ["reviews"], "http": [rule]}))),
        "Error [IST0106] (VirtualService shop/api) spec.http[0].match[0].uri.regex: \"/api/v[0-9+\" is not a regular expression: unclosed \
         character class (RE2 syntax, for example \"/api/v[0-9]+/.*\"); the document is refused"
    );
}

#[test]
fn mistake_4_hosts_that_do_not_exist() {
    let spec = json!({"hosts": ["review"], "http": [{"route": [to("accounts", json!({}))], "mirror": {"host": "reviews.shop"}}]});
    let texts = told([service("bank", "accounts", &[("http", 80)]), routes("shop", "r", spec)]);
    assert_eq!(
        texts,
        [
            "Error [IST0101] (VirtualService shop/r) spec.hosts[0]: \"review\" names no service (review.shop.svc.cluster.local does not \
             exist) (did you mean reviews); no request is routed by it",
            "Error [IST0101] (VirtualService shop/r) spec.http[0].route[0].destination.host: \"accounts\" names no service \
             (accounts.shop.svc.cluster.local does not exist) (did you mean accounts.bank.svc.cluster.local); requests that are routed to it \
             get 503 (flag NC)",
            "Error [IST0101] (VirtualService shop/r) spec.http[0].mirror.host: \"reviews.shop\" names no service (reviews.shop does not \
             exist) (did you mean reviews.shop.svc.cluster.local); requests that are routed to it get 503 (flag NC)",
        ]
    );
    let lost = super::rule("bank", "reviews", json!({"host": "reviews", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}}));
    assert_eq!(
        told([lost]),
        [
            "Warning [IST0174] (DestinationRule bank/reviews) spec.host: \"reviews\" names no service (reviews.bank.svc.cluster.local does not \
          exist) (did you mean reviews.shop.svc.cluster.local); the rule applies to nothing"
        ]
    );
}

#[test]
fn mistake_5_a_gateway_that_is_missing() {
    let spec = json!({"hosts": ["reviews"], "gateways": ["edge", "mesh"], "http": [{"route": [to("reviews", json!({}))]}]});
    assert_eq!(
        told([routes("shop", "r", spec.clone())]),
        ["Error [IST0101] (VirtualService shop/r) spec.gateways[0]: \"edge\" is no Gateway (shop/edge does not exist) (a Gateway of \
          networking.istio.io as NAME or NAMESPACE/NAME, or mesh for callers in the mesh); no traffic from outside the mesh reaches these routes by it"]
    );
    let gateway =
        json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "edge", "namespace": "shop"}, "spec": {}});
    assert_eq!(
        told([gateway, routes("shop", "r", spec)]),
        [
            "Warning [TRP0012] (VirtualService shop/r) spec.gateways[0]: \"edge\" is a gateway at the mesh's edge, and none is served yet; no \
          request from outside the mesh is routed by it; requests inside are only if mesh is named too"
        ]
    );
    let target = json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypiont"}]);
    assert_eq!(
        told([policy("shop", "p", json!({"targetRefs": target, "rules": [{}]}))]),
        ["Error [IST0101] (AuthorizationPolicy shop/p) spec.targetRefs[0].name: Gateway shop/waypiont does not exist (a Gateway of the \
          policy's namespace); the policy is not enforced anywhere"]
    );
}

#[test]
fn mistake_6_and_7_a_selector_without_a_match_because_the_policy_is_in_the_wrong_namespace() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web"}]},
    });
    let selecting = policy("bank", "p", json!({"selector": {"matchLabels": {"app": "web"}}, "rules": [{}]}));
    assert_eq!(
        told([pod, selecting]),
        [
            "Warning [IST0167] (AuthorizationPolicy bank/p) metadata.namespace: \"bank\" has no pod with app=web, but shop has (the policy in \
          namespace shop); the policy protects nothing"
        ]
    );
    let attached = policy("bank", "p", json!({"targetRefs": [{"kind": "Service", "name": "reviews"}], "rules": [{}]}));
    assert_eq!(
        told([attached]),
        [
            "Error [IST0101] (AuthorizationPolicy bank/p) spec.targetRefs[0].name: Service bank/reviews does not exist (a policy is attached \
          only within its own namespace; reviews is in shop, so put the policy there); the policy is not enforced anywhere"
        ]
    );
    let spec = json!({"hosts": ["reviews.shop.svc.cluster.local"], "http": [{"directResponse": {"status": 200}}]});
    assert_eq!(
        told([routes("bank", "r", spec)]),
        ["Warning [IST0167] (VirtualService bank/r) spec.hosts[0]: \"reviews.shop.svc.cluster.local\" is a service of another namespace \
          (shop), whose waypoints do not look into bank (a VirtualService in namespace shop); only a waypoint in namespace bank routes by it"]
    );
}

#[test]
fn mistake_8_a_port_whose_name_says_nothing_or_that_is_not_there() {
    assert_eq!(
        told([service("shop", "web", &[("web", 80), ("http-admin", 81)])]),
        [
            "Info [IST0118] (Service shop/web) spec.ports[0].name: \"web\" does not say what is spoken on the port (appProtocol, or a name that \
          begins with http, http2, grpc, tcp or tls and goes on with \"-\"); the waypoint looks at the first bytes of each connection to tell \
          HTTP from the rest"
        ]
    );
    let spec = json!({"hosts": ["reviews"], "http": [{"route": [to("reviews", json!({"port": {"number": 80}}))]}]});
    assert_eq!(
        told([routes("shop", "r", spec)]),
        ["Error [IST0101] (VirtualService shop/r) spec.http[0].route[0].destination.port.number: 80 is not a port of \
          reviews.shop.svc.cluster.local (9080); requests that are routed to it get 503 (flag NC)"]
    );
    let spec = json!({"hosts": ["web"], "http": [{"route": [to("web", json!({}))]}]});
    assert_eq!(
        told([service("shop", "web", &[("http-a", 80), ("http-b", 81)]), routes("shop", "r", spec)]),
        [
            "Warning [IST0112] (VirtualService shop/r) spec.http[0].route[0].destination.port: is missing, and web.shop.svc.cluster.local has \
          several ports (80, 81); the port that was addressed is taken; where there is no such port, requests get 503 (flag NC)"
        ]
    );
}

#[test]
fn mistake_8_a_target_port_that_no_container_has() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "ports": [{"name": "admin", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]},
    });
    let service = |target: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": target}]},
        })
    };
    assert_eq!(
        told([pod.clone(), service(json!("admni"))]),
        ["Warning [IST0101] (Service shop/web) spec.ports[0].targetPort: \"admni\" is not the name of a TCP port of a container of the \
          service's pods (did you mean admin); port 80 of the service has no endpoint"]
    );
    for good in [json!("admin"), json!(8080)] {
        assert!(told([pod.clone(), service(good)]).is_empty());
    }
    // Without pods nobody knows.
    assert!(told([service(json!("admin"))]).is_empty());
}

#[test]
fn mistake_9_routes_that_repeat_or_hide_one_another() {
    let rule = |matches: Value| json!({"match": matches, "route": [to("reviews", json!({}))]});
    let (jason, admin) = (json!({"headers": {"end-user": {"exact": "jason"}}}), json!({"uri": {"prefix": "/admin"}}));
    let spec = json!({"hosts": ["reviews"], "http": [rule(json!([jason])), rule(json!([jason])), rule(json!([admin, jason])), rule(json!([])), rule(json!([{"uri": {"exact": "/late"}}]))]});
    assert_eq!(
        told([routes("shop", "r", spec)]),
        [
            "Warning [IST0130] (VirtualService shop/r) spec.http[1]: is never reached: spec.http[0] matches the same (rules in order, the \
             most specific first); no request is routed by this rule",
            "Info [IST0131] (VirtualService shop/r) spec.http[2].match[1]: never decides: spec.http[0] matches the same; the rule is taken by \
             its other matches only",
            "Warning [IST0130] (VirtualService shop/r) spec.http[4]: is never reached: spec.http[3] takes every request before it (rules in \
             order, the most specific first); no request is routed by this rule",
        ]
    );
    let all = |name: &str| routes("shop", name, json!({"hosts": ["reviews"], "http": [rule(json!([]))]}));
    assert_eq!(
        told([all("a"), all("b")]),
        [
            "Warning [IST0109] (VirtualService shop/b) spec.hosts[0]: \"reviews.shop.svc.cluster.local\" is routed by the older VirtualService \
          shop/a too (one VirtualService for a host); rules of the older one are tried first; this one's take what those leave over"
        ]
    );
}

#[test]
fn mistake_10_a_field_that_does_not_exist() {
    let rule = json!({"match": [{"header": {"end-user": {"exact": "jason"}}}], "route": [to("reviews", json!({}))], "timeouts": "5s"});
    assert_eq!(
        refused(routes("shop", "r", json!({"hosts": ["reviews"], "http": [rule]}))),
        "Error [IST0106] (VirtualService shop/r) spec.http[0].match[0].header: a mapping is in a field that the schema does not know (did \
         you mean headers; check its indentation too); the document is refused\n\
         Error [IST0106] (VirtualService shop/r) spec.http[0].timeouts: \"5s\" is in a field that the schema does not know (did you mean \
         timeout; check its indentation too); the document is refused"
    );
}

#[test]
fn a_virtual_service_without_hosts_is_taken_and_told_of() {
    let spec = json!({"http": [{"route": [to("reviews", json!({}))]}]});
    let mesh = Mesh::new(shop().into_iter().chain([routes("shop", "r", spec.clone())]));
    assert_eq!(&*mesh.host("reviews").ports[&PORT].http[0].name, "default");
    assert_eq!(
        told([routes("shop", "r", spec)]),
        [
            "Warning [IST0167] (VirtualService shop/r) spec.hosts: is missing, and no other VirtualService delegates to this one (the services \
          whose traffic is routed, for example \"reviews\"); no request is routed by it"
        ]
    );
}
