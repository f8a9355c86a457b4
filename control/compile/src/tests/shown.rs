//! What was compiled as YAML for a reviewer: a fact a line, defaults left out.

use serde_json::{Map, Value, json};
use tropis_model::policy::{Match, StringMatch};

use crate::Compiled;

pub(super) fn shown(compiled: &Compiled) -> String {
    let workloads = compiled.workloads.iter().map(|own| {
        let locality = [&own.locality.region, &own.locality.zone, &own.locality.subzone].map(|part| part.to_string()).join("/");
        let ports = |ports: &std::collections::BTreeMap<u16, u16>| ports.iter().map(|(port, own)| format!("{port}:{own}").into()).collect();
        let services = own.services.iter().map(|(name, own)| (name.to_string(), Value::Array(ports(own))));
        tidy(json!({
            "uid": own.uid.to_string(),
            "name": own.name.to_string(),
            "identity": own.identity.to_string(),
            "addresses": own.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "tunnel": format!("{:?}", own.tunnel_protocol),
            "health": format!("{:?}", own.health),
            "mode": format!("{:?}", own.network_mode),
            "node": own.node.to_string(),
            "locality": locality.trim_matches('/'),
            "canonical": format!("{}@{}", own.canonical_name, own.canonical_revision),
            "owner": own.workload_name.to_string(),
            "services": services.collect::<Map<_, _>>(),
            "policies": own.authorization_policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }))
    });
    let services = compiled.services.iter().map(|own| {
        let ports = own.ports.iter().map(|(port, to)| {
            let target = to.target_port.map_or("named".to_owned(), |target| target.to_string());
            format!("{port}:{target} {:?}", to.app_protocol)
        });
        let balancing = &own.load_balancing;
        tidy(json!({
            "hostname": own.hostname.to_string(),
            "addresses": own.addresses.iter().map(|own| own.block.to_string()).collect::<Vec<_>>(),
            "ports": ports.collect::<Vec<_>>(),
            "balancing": format!("{:?} {:?} {:?}", balancing.mode, balancing.routing_preference, balancing.health_policy),
            "families": format!("{:?}", own.ip_families),
        }))
    });
    let policies = compiled.policies.iter().map(|own| {
        let rules = own.rules.iter().map(|rule| {
            let clauses = rule.clauses.iter().map(|clause| clause.matches.iter().map(fields).collect::<Vec<_>>());
            json!({"all": clauses.map(|any| json!({"any": any})).collect::<Vec<_>>()})
        });
        json!({
            "key": own.key.to_string(),
            "means": format!("{:?} {:?}{}", own.scope, own.action, if own.dry_run { " dry run" } else { "" }),
            "rules": rules.collect::<Vec<_>>(),
        })
    });
    let document = json!({
        "workloads": workloads.collect::<Vec<_>>(),
        "services": services.collect::<Vec<_>>(),
        "policies": policies.collect::<Vec<_>>(),
        "findings": compiled.findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    serde_saphyr::to_string(&document).unwrap()
}

fn fields(one: &Match) -> Value {
    let strings = |list: &[StringMatch]| -> Vec<String> {
        list.iter()
            .map(|one| match one {
                StringMatch::Exact(text) => text.to_string(),
                StringMatch::Prefix(text) => format!("{text}*"),
                StringMatch::Suffix(text) => format!("*{text}"),
                StringMatch::Presence => "*".to_owned(),
            })
            .collect()
    };
    let accounts = |list: &[tropis_model::policy::ServiceAccountMatch]| -> Vec<String> {
        list.iter().map(|one| format!("{}/{}", one.namespace, one.service_account)).collect()
    };
    let blocks = |list: &[ipnet::IpNet]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
    tidy(json!({
        "namespaces": strings(&one.namespaces),
        "not_namespaces": strings(&one.not_namespaces),
        "principals": strings(&one.principals),
        "not_principals": strings(&one.not_principals),
        "service_accounts": accounts(&one.service_accounts),
        "not_service_accounts": accounts(&one.not_service_accounts),
        "source_ips": blocks(&one.source_ips),
        "not_source_ips": blocks(&one.not_source_ips),
        "destination_ips": blocks(&one.destination_ips),
        "not_destination_ips": blocks(&one.not_destination_ips),
        "destination_ports": one.destination_ports,
        "not_destination_ports": one.not_destination_ports,
    }))
}

/// Without fields that are empty.
fn tidy(value: Value) -> Value {
    let Value::Object(map) = value else { return value };
    let empty = |value: &Value| match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    Value::Object(map.into_iter().filter(|(_, value)| !empty(value)).collect())
}
