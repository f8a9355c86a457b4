//! The tables, from a dump in the shape that the node proxy gives.

use serde_json::json;

use super::*;

fn dump() -> Vec<NodeProxy> {
    let dump = json!({
        "workloads": [
            {"uid": "Kubernetes//Pod/shop/sleep", "name": "sleep", "namespace": "shop", "node": "a", "workloadIps": ["10.244.1.2", "fd00:10:244:1::2"], "protocol": "HBONE", "waypoint": null, "networkMode": "Standard"},
            {"uid": "Kubernetes//Pod/shop/reviews", "name": "reviews", "namespace": "shop", "node": "b", "workloadIps": ["10.244.2.3"], "protocol": "HBONE", "networkMode": "Standard",
             "waypoint": {"destination": "shop/waypoint.shop.svc.cluster.local", "hboneMtlsPort": 15008}},
            {"uid": "Kubernetes//Pod/legacy/old", "name": "old", "namespace": "legacy", "node": "b", "workloadIps": ["10.244.2.4"], "protocol": "TCP", "networkMode": "Standard",
             "waypoint": {"destination": "shop/waypoint.shop.svc.cluster.local", "hboneMtlsPort": 15008}},
        ],
        "services": [{
            "name": "reviews", "namespace": "shop", "hostname": "reviews.shop.svc.cluster.local", "vips": ["/10.96.0.9", "/fd00:10:96::9"], "waypoint": null,
            "endpoints": {"x": {"status": "Healthy"}, "y": {"status": "Unhealthy"}},
        }],
        "policies": [
            {"name": "allow-sleep", "namespace": "shop", "action": "Allow", "scope": "WorkloadSelector", "dryRun": false},
            {"name": "maybe", "namespace": "shop", "action": "Deny", "scope": "Namespace", "dryRun": true},
        ],
        "certificates": [{"identity": "spiffe://cluster.local/ns/shop/sa/sleep", "state": "Initializing", "certChain": [], "rootCerts": []}],
        "workloadState": {"u1": {
            "info": {"name": "sleep", "namespace": "shop"},
            "connections": {"inbound": [], "outbound": [{
                "src": "10.244.1.2:40000", "originalDst": "10.96.0.9:9080", "actualDst": "[fd00::99]:15008", "protocol": "HBONE", "bytesFromSource": 12, "bytesToSource": 34,
            }]},
        }},
    });
    vec![NodeProxy { socket: Socket { program: "ztunnel".into(), node: "a".into(), path: "a".into() }, dump }]
}

fn shown(what: &What) -> String {
    one(&dump(), what, Format::Table).unwrap()
}

#[test]
fn workloads_have_istioctls_columns() {
    insta::assert_snapshot!(shown(&What::Workloads { address: None, workload_namespace: None, workload_node: None }));
}

#[test]
fn workloads_are_found_by_address_namespace_and_node() {
    let count = |address: Option<&str>, namespace: Option<&str>, node: Option<&str>| {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let what = What::Workloads { address: owned(address), workload_namespace: owned(namespace), workload_node: owned(node) };
        shown(&what).lines().count() - 1
    };
    assert_eq!(count(Some("fd00:10:244:1::2"), None, None), 1);
    assert_eq!(count(Some("reviews"), None, None), 1);
    assert_eq!(count(None, Some("shop"), None), 2);
    assert_eq!(count(None, Some("shop"), Some("b")), 1);
    assert_eq!(count(Some("10.9.9.9"), None, None), 0, "only the sentence that there is none");
}

#[test]
fn services_count_their_healthy_endpoints() {
    insta::assert_snapshot!(shown(&What::Services { service_namespace: None }));
}

#[test]
fn policies_say_when_they_are_tried_only() {
    insta::assert_snapshot!(shown(&What::Policies { policy_namespace: None }));
}

#[test]
fn a_certificate_that_is_awaited_is_shown_as_such() {
    insta::assert_snapshot!(shown(&What::Certificates));
}

#[test]
fn connections_are_named_unless_raw() {
    insta::assert_snapshot!(shown(&What::Connections { direction: None, raw: false }));
    assert!(shown(&What::Connections { direction: None, raw: true }).contains("10.96.0.9:9080"));
    assert_eq!(shown(&What::Connections { direction: Some("inbound".to_owned()), raw: false }), "No connection is open.\n");
}
