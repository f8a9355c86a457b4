//! Hosts as YAML for a reviewer: a fact a line, defaults left out.

use serde_json::{Map, Value, json};
use tropis_model::{
    pool::{Limits, Pool},
    request_policy::RequestPolicy,
    route::{Destination, Host, HttpRoute, RequestMatch, RouteAction, TextMatch, ValueMatch},
};

pub(super) fn shown(hosts: &[Host], findings: &[String]) -> String {
    let hosts: Vec<Value> = hosts.iter().map(host).collect();
    serde_saphyr::to_string(&json!({"hosts": hosts, "findings": findings})).unwrap()
}

fn host(host: &Host) -> Value {
    let ports = host.ports.iter().map(|(number, port)| {
        let tls = port.tls.iter().map(|route| json!({"from": &*route.origin.field, "to": shares(&route.destinations)}));
        let tcp = port.tcp.iter().map(|route| json!({"from": &*route.origin.object, "to": shares(&route.destinations)}));
        let shown = json!({
            "speaks": format!("{:?}", port.protocol),
            "http": port.http.iter().map(|route| http(route)).collect::<Vec<_>>(),
            "tls": tls.collect::<Vec<_>>(),
            "tcp": tcp.collect::<Vec<_>>(),
        });
        (number.to_string(), tidy(shown))
    });
    tidy(json!({
        "name": host.name.to_string(),
        "ports": ports.collect::<Map<_, _>>(),
        "pools": host.pools.iter().map(|(key, own)| (key.to_string(), pool(own))).collect::<Map<_, _>>(),
        "policies": host.policies.iter().map(|own| policy(own)).collect::<Vec<_>>(),
    }))
}

fn http(route: &HttpRoute) -> Value {
    let origin = &route.origin;
    let mut shown = json!({
        "name": &*route.name,
        "from": format!("{} {} {}", origin.kind, origin.object, origin.field).trim_end(),
        "matches": route.matches.iter().map(request_match).collect::<Vec<_>>(),
        "fault": route.fault.as_ref().map_or(String::new(), |fault| format!("{fault:?}")),
        "cors": route.cors.as_ref().map_or(String::new(), |cors| format!("{cors:?}")),
        "headers": if route.headers == Default::default() { String::new() } else { format!("{:?}", route.headers) },
    });
    let action = match &route.action {
        RouteAction::Forward(forward) => json!({
            "to": shares(&forward.destinations),
            "rewrite": forward.rewrite.as_ref().map_or(String::new(), |rewrite| format!("{rewrite:?}")),
            "timeout": forward.timeout.map_or(String::new(), |timeout| format!("{timeout:?}")),
            "retries": if forward.retries == crate::virtual_service::default_retries() { String::new() } else { format!("{:?}", forward.retries) },
            "mirrors": forward.mirrors.iter().map(|mirror| format!("{} {}", mirror.pool, mirror.share_ppm)).collect::<Vec<_>>(),
        }),
        other => json!({"does": format!("{other:?}")}),
    };
    shown.as_object_mut().unwrap().extend(action.as_object().unwrap().clone());
    tidy(shown)
}

fn shares(list: &[Destination]) -> Vec<String> {
    let headers = |share: &Destination| if share.headers == Default::default() { String::new() } else { format!(" {:?}", share.headers) };
    list.iter().map(|share| format!("{} {}{}", share.weight, share.pool, headers(share))).collect()
}

fn request_match(entry: &RequestMatch) -> String {
    let mut parts = Vec::new();
    for (name, wanted) in [("uri", &entry.uri), ("scheme", &entry.scheme), ("method", &entry.method), ("authority", &entry.authority)] {
        parts.extend(wanted.as_ref().map(|wanted| format!("{name} {}", text(wanted))));
    }
    for (list, values) in [("header", &entry.headers), ("not header", &entry.without_headers), ("query", &entry.query)] {
        for (name, value) in values {
            parts.push(match value {
                ValueMatch::Present => format!("{list} {name}"),
                ValueMatch::Text(wanted) => format!("{list} {name} {}", text(wanted)),
            });
        }
    }
    parts.extend(entry.source_labels.iter().map(|(key, value)| format!("caller {key}={value}")));
    parts.extend(entry.source_namespace.as_ref().map(|namespace| format!("caller of {namespace}")));
    if parts.is_empty() { "everything".to_owned() } else { parts.join(", ") }
}

fn text(wanted: &TextMatch) -> String {
    match wanted {
        TextMatch::Exact(text) => format!("= {text}"),
        TextMatch::Prefix(text) => format!("{text}…"),
        TextMatch::PathPrefix(text) => format!("{text}/…"),
        TextMatch::Regex(pattern) => format!("~ {}", pattern.source),
    }
}

fn pool(pool: &Pool) -> Value {
    let labels: Vec<String> = pool.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let named = |differs: bool, text: String| if differs { text } else { String::new() };
    tidy(json!({
        "labels": labels.join(","),
        "balancer": format!("{:?}", pool.balancer),
        "locality": named(pool.locality != Default::default(), format!("{:?}", pool.locality)),
        "limits": named(pool.limits != Limits::default(), format!("{:?}", pool.limits)),
        "outlier": pool.outlier.as_ref().map_or(String::new(), |outlier| format!("{outlier:?}")),
        "panic": pool.panic_threshold_percent,
    }))
}

fn policy(policy: &RequestPolicy) -> Value {
    json!({"key": policy.key.to_string(), "means": format!("{:?} {:?}", policy.action, policy.attachment), "rules": policy.rules.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>()})
}

/// Without what is empty.
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
