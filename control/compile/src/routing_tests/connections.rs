//! `tls` and `tcp` rules, a test a field.

use serde_json::{Value, json};
use tropis_model::route::Host;

use super::{Mesh, key, refused, routes, service};

const HOST: &str = "db.shop.svc.cluster.local";

fn db(spec: Value) -> Mesh {
    let ports = [("tcp", 5432), ("tls", 5433)];
    Mesh::new([service("shop", "db", &ports), service("shop", "standby", &ports), routes("shop", "db", spec)])
}

fn to(host: &str, weight: u32) -> Value {
    json!({"destination": {"host": host}, "weight": weight})
}

fn tcp(host: &Host, port: u16) -> Vec<String> {
    host.ports[&port].tcp.iter().map(|route| format!("{} {}", route.origin.field, route.destinations[0].pool.host.hostname)).collect()
}

#[test]
fn tcp_route_shares_by_weight() {
    let host = db(json!({"hosts": ["db"], "tcp": [{"route": [to("db", 3), to("standby", 1), to("absent", 0)]}]})).host("db");
    let shares: Vec<_> = host.ports[&5432].tcp[0].destinations.iter().map(|share| (share.pool.clone(), share.weight)).collect();
    assert_eq!(shares, [(key("db", 5432, None), 3), (key("standby", 5432, None), 1)]);
    assert_eq!(host.ports[&5432].tcp.len(), 1, "it takes every connection");
    assert!(
        refused(routes("shop", "r", json!({"hosts": ["db"], "tcp": [{"route": []}]}))).contains("spec.tcp[0].route: is missing or empty")
    );
}

#[test]
fn tcp_match_port_leaves_other_ports_to_the_service() {
    let host = db(json!({"hosts": ["db"], "tcp": [{"match": [{"port": 5432}], "route": [to("standby", 1)]}]})).host("db");
    assert_eq!(tcp(&host, 5432), ["spec.tcp[0] standby.shop.svc.cluster.local"]);
    assert_eq!(tcp(&host, 5433), [" db.shop.svc.cluster.local"]);
}

#[test]
fn tcp_match_destination_subnets_source_labels_and_source_namespace_are_asked() {
    let entry = json!({"destinationSubnets": ["10.0.0.0/8", "fd00::1"], "sourceLabels": {"app": "web"}, "sourceNamespace": "bank"});
    let host = db(json!({"hosts": ["db"], "tcp": [{"match": [entry], "route": [to("standby", 1)]}]})).host("db");
    let route = &host.ports[&5432].tcp[0];
    assert_eq!(route.destination_blocks.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "fd00::1/128"]);
    assert_eq!((&*route.source_labels["app"], route.source_namespace.as_deref()), ("web", Some("bank")));
    assert_eq!(tcp(&host, 5432)[1], " db.shop.svc.cluster.local", "what it does not take goes to the service");
}

#[test]
fn tcp_match_gateways_leave_out_what_is_not_for_the_mesh() {
    let host = db(
        json!({"hosts": ["db"], "gateways": ["mesh", "edge"], "tcp": [{"match": [{"gateways": ["edge"]}], "route": [to("standby", 1)]}]}),
    )
    .host("db");
    assert_eq!(tcp(&host, 5432), [" db.shop.svc.cluster.local"]);
}

#[test]
fn tls_match_sni_hosts_count_when_they_name_the_service() {
    let spec = json!({"hosts": [HOST], "tls": [{"match": [{"sniHosts": [HOST], "port": 5433}], "route": [to("standby", 1)]}]});
    let host = db(spec).host("db");
    let route = &host.ports[&5433].tls[0];
    assert_eq!((route.server_names.as_slice(), &route.destinations[0].pool), ([HOST.into()].as_slice(), &key("standby", 5433, None)));
    assert!(host.ports[&5432].tls.is_empty());
    let overlapping = json!({"hosts": [HOST, "*.shop.svc.cluster.local"], "tcp": [{"route": [to("standby", 1)]}]});
    assert!(refused(routes("shop", "r", overlapping)).contains("spec.hosts[0]: \"db.shop.svc.cluster.local\" is covered by"));
    let stranger = json!({"hosts": ["db"], "tls": [{"match": [{"sniHosts": ["a.example.com"]}], "route": [to("standby", 1)]}]});
    assert!(refused(routes("shop", "r", stranger)).contains("sniHosts[0]: \"a.example.com\" is not covered by spec.hosts (db)"));
    let none = json!({"hosts": ["db"], "tls": [{"route": [to("standby", 1)]}]});
    assert!(refused(routes("shop", "r", none)).contains("spec.tls[0].match: is missing or empty"));
}

#[test]
fn tls_match_destination_subnets_source_labels_and_source_namespace_are_asked() {
    let subnets = json!(["10.0.0.0/8", "fd00::1"]);
    let entry = json!({"sniHosts": [HOST], "destinationSubnets": subnets, "sourceLabels": {"app": "web"}, "sourceNamespace": "bank"});
    let mesh = db(json!({"hosts": [HOST], "tls": [{"match": [entry], "route": [to("standby", 1)]}]}));
    let host = mesh.host("db");
    let route = &host.ports[&5433].tls[0];
    assert_eq!(route.destination_blocks.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "fd00::1/128"]);
    assert_eq!((&*route.source_labels["app"], route.source_namespace.as_deref()), ("web", Some("bank")));
    assert!(mesh.texts().iter().all(|text| !text.contains("spec.tls[0].match")), "{:?}", mesh.texts());
}

#[test]
fn tls_match_gateways_leave_out_what_is_not_for_the_mesh() {
    let entry = |gateways: Value| json!({"sniHosts": [HOST], "gateways": gateways});
    let rule = |gateways: Value| json!({"match": [entry(gateways)], "route": [to("standby", 1)]});
    let spec = json!({"hosts": [HOST], "gateways": ["mesh", "edge"], "tls": [rule(json!(["edge"])), rule(json!(["edge", "mesh"]))]});
    let host = db(spec).host("db");
    let fields: Vec<_> = host.ports[&5433].tls.iter().map(|route| &*route.origin.field).collect();
    assert_eq!(fields, ["spec.tls[1]"]);
}

#[test]
fn tls_route_shares_by_weight() {
    let route = json!([to("db", 3), to("standby", 1), to("absent", 0)]);
    let host = db(json!({"hosts": [HOST], "tls": [{"match": [{"sniHosts": [HOST]}], "route": route}]})).host("db");
    let shares: Vec<_> = host.ports[&5433].tls[0].destinations.iter().map(|share| (share.pool.clone(), share.weight)).collect();
    assert_eq!(shares, [(key("db", 5433, None), 3), (key("standby", 5433, None), 1)]);
}

#[test]
fn tcp_match_source_subnet_is_told_of() {
    let spec = json!({"hosts": ["db"], "tcp": [{"match": [{"sourceSubnet": "10.0.0.0/8"}], "route": [to("standby", 1)]}]});
    let (_, findings) = tropis_crds::decode(routes("shop", "db", spec)).unwrap();
    let text = findings[0].to_string();
    assert!(text.contains("spec.tcp[0].match[0].sourceSubnet: is not obeyed here; the block matches callers of any address"), "{text}");
}
