//! Gateways of the Gateway API: what is read, what is refused.

use serde_json::json;

use super::{
    tests::{accepted, refused},
    *,
};
use crate::gateway_api::gateway::{AddressType, FromNamespaces};

fn gateway(spec: Value) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "w", "namespace": "shop"}, "spec": spec})
}

fn listener(more: Value) -> Value {
    let mut listener = json!({"name": "mesh", "port": 15008, "protocol": "HBONE"});
    listener.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    gateway(json!({"gatewayClassName": "istio-waypoint", "listeners": [listener]}))
}

#[test]
fn a_waypoint_is_read_with_its_labels_listener_infrastructure_and_addresses() {
    let mut value = gateway(json!({
        "gatewayClassName": "istio-waypoint",
        "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": {"namespaces": {"from": "All"}}}],
        "addresses": [{"type": "Hostname", "value": "w.shop.svc.cluster.local"}],
        "infrastructure": {"labels": {"team": "a"}, "annotations": {"note": "b c"}, "parametersRef": {"group": "", "kind": "ConfigMap", "name": "p"}},
    }));
    value["metadata"]["labels"] = json!({"istio.io/waypoint-for": "all"});
    value["status"] = json!({
        "addresses": [{"value": "10.96.0.7"}, {"type": "IPAddress", "value": "fd00::7"}],
        "conditions": [{"type": "Programmed", "status": "True"}], "listeners": [{"name": "mesh"}],
    });
    let (object, findings) = accepted(value);
    assert_eq!(findings.len(), 1, "of parametersRef alone: {findings:?}");
    assert_eq!(object.label("istio.io/waypoint-for"), Some("all"));
    let gateway = object.gateway().unwrap();
    assert_eq!(gateway.spec.gateway_class_name, "istio-waypoint");
    assert_eq!((gateway.spec.listeners[0].port, gateway.spec.listeners[0].protocol.as_str()), (15008, "HBONE"));
    let namespaces = gateway.spec.listeners[0].allowed_routes.as_ref().unwrap().namespaces.as_ref().unwrap();
    assert_eq!(namespaces.from, FromNamespaces::All);
    assert_eq!(gateway.spec.addresses[0].kind, AddressType::Hostname);
    assert_eq!(gateway.spec.infrastructure.as_ref().unwrap().labels["team"], "a");
    let addresses: Vec<_> = gateway.status.addresses.iter().map(|address| (&address.kind, address.value.as_str())).collect();
    assert_eq!(addresses, [(&AddressType::IpAddress, "10.96.0.7"), (&AddressType::IpAddress, "fd00::7")]);
}

#[test]
fn gateways_that_the_api_server_refuses_are_refused() {
    let cases = [
        (gateway(json!({"listeners": [{"name": "a", "port": 80, "protocol": "HTTP"}]})), "spec.gatewayClassName"),
        (gateway(json!({"gatewayClassName": "istio-waypoint"})), "spec.listeners"),
        (
            gateway(
                json!({"gatewayClassName": "a", "listeners": [{"name": "a", "port": 80, "protocol": "HTTP"}, {"name": "a", "port": 81, "protocol": "HTTP"}]}),
            ),
            "spec.listeners[1].name",
        ),
        (
            gateway(
                json!({"gatewayClassName": "a", "listeners": [{"name": "a", "port": 80, "protocol": "HTTP"}, {"name": "b", "port": 80, "protocol": "HTTP"}]}),
            ),
            "spec.listeners[1]",
        ),
        (listener(json!({"name": "Mesh"})), "spec.listeners[0].name"),
        (listener(json!({"port": 0})), "spec.listeners[0].port"),
        (listener(json!({"port": "15008"})), "spec.listeners[0].port"),
        (listener(json!({"protocol": "hbone"})), "spec.listeners[0].protocol"),
        (listener(json!({"protocol": "HTTP", "tls": {"mode": "Terminate"}})), "spec.listeners[0].tls"),
        (listener(json!({"protocol": "TCP", "hostname": "a.b"})), "spec.listeners[0].hostname"),
        (listener(json!({"protocol": "HTTP", "hostname": "10.0.0.1"})), "spec.listeners[0].hostname"),
        (listener(json!({"allowedRoutes": {"namespaces": {"from": "Some"}}})), "spec.listeners[0].allowedRoutes.namespaces.from"),
        (listener(json!({"tls": {"mode": "terminate"}})), "spec.listeners[0].tls.mode"),
        (listener(json!({"hostnames": []})), "spec.listeners[0].hostnames"),
        (
            gateway(
                json!({"gatewayClassName": "a", "listeners": [{"name": "a", "port": 80, "protocol": "HTTP"}], "addresses": [{"value": "a.b"}]}),
            ),
            "spec.addresses[0].value",
        ),
        (
            gateway(
                json!({"gatewayClassName": "a", "listeners": [{"name": "a", "port": 80, "protocol": "HTTP"}], "infrastructure": {"labels": {"a": "b c"}}}),
            ),
            "spec.infrastructure.labels[a]",
        ),
    ];
    for (value, field) in cases {
        let findings = refused(value.clone());
        assert!(findings.iter().any(|finding| finding.contains(&format!(" {field}:"))), "{value}: {findings:?}");
    }
}

#[test]
fn what_a_waypoint_does_not_obey_is_told() {
    let mut value = listener(json!({
        "hostname": "a.b", "tls": {"mode": "Terminate"}, "allowedRoutes": {"kinds": [{"kind": "HTTPRoute"}]},
    }));
    let more = json!({
        "infrastructure": {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "p"}}, "allowedListeners": {}, "tls": {"backend": {}},
        "defaultScope": "All",
    });
    value["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let fields = |value: Value| -> Vec<String> {
        let (_, findings) = accepted(value);
        assert!(findings.iter().all(|finding| finding.contains("[TRP0012]")), "{findings:?}");
        findings.iter().filter_map(|finding| Some(finding.split_once("shop/w) spec.")?.1.split_once(':')?.0.to_owned())).collect()
    };
    assert_eq!(
        fields(value.clone()),
        [
            "listeners[0].hostname",
            "listeners[0].tls",
            "listeners[0].allowedRoutes.kinds",
            "infrastructure.parametersRef",
            "allowedListeners",
            "tls",
            "defaultScope"
        ]
    );
    value["spec"]["gatewayClassName"] = json!("other");
    assert!(fields(value).is_empty(), "another class may obey them");
}

#[test]
fn allowed_routes_say_who_may_use_a_waypoint() {
    let allows = |routes: Value, namespace: &str, label: &str| {
        let (object, _) = accepted(listener(json!({"allowedRoutes": routes})));
        let routes = object.gateway().unwrap().spec.listeners[0].allowed_routes.clone().unwrap();
        routes.allows("shop", namespace, &[("team".to_owned(), label.to_owned())].into())
    };
    assert!(allows(json!({}), "shop", "a") && !allows(json!({}), "bank", "a"));
    assert!(allows(json!({"namespaces": {"from": "Same"}}), "shop", "a") && !allows(json!({"namespaces": {}}), "bank", "a"));
    assert!(allows(json!({"namespaces": {"from": "All"}}), "bank", "a") && !allows(json!({"namespaces": {"from": "None"}}), "shop", "a"));
    let selector = |selector: Value| json!({"namespaces": {"from": "Selector", "selector": selector}});
    assert!(allows(selector(json!({"matchLabels": {"team": "a"}})), "bank", "a"));
    assert!(!allows(selector(json!({"matchLabels": {"team": "a"}})), "bank", "b"));
    let expression =
        |operator: &str, values: Value| selector(json!({"matchExpressions": [{"key": "team", "operator": operator, "values": values}]}));
    assert!(allows(expression("In", json!(["a"])), "bank", "a") && !allows(expression("NotIn", json!(["a"])), "bank", "a"));
    assert!(allows(expression("Exists", json!([])), "bank", "a") && !allows(expression("DoesNotExist", json!([])), "bank", "a"));
}
