//! Connections that node proxies have open.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::{
    output::Listing,
    pods::{NodeProxy, text},
};

const HEADINGS: &[&str] = &["WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL", "BYTES"];

/// An open connection, seen from its pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Connection {
    workload: String,
    direction: &'static str,
    local: String,
    remote: String,
    remote_target: String,
    protocol: String,
    bytes_from_source: u64,
    bytes_to_source: u64,
}

/// The connections of all pods, of one direction if one is given; with names for addresses unless `raw`.
pub(super) fn listing(proxies: &[NodeProxy], direction: Option<&str>, raw: bool) -> Listing<Connection> {
    let names = if raw { BTreeMap::new() } else { names(proxies) };
    let mut found = Vec::new();
    for pod in proxies.iter().flat_map(NodeProxy::pods) {
        let workload = format!("{}.{}", text(pod, "/info/name"), text(pod, "/info/namespace"));
        for way in ["inbound", "outbound"].into_iter().filter(|way| direction.is_none_or(|wanted| wanted == *way)) {
            let connections = pod.pointer(&format!("/connections/{way}")).and_then(Value::as_array).into_iter().flatten();
            found.extend(connections.map(|connection| seen(&workload, way, connection, &names)));
        }
    }
    found.sort();
    Listing::new(HEADINGS, found, |own| {
        vec![
            own.workload.clone(),
            own.direction.to_owned(),
            own.local.clone(),
            own.remote.clone(),
            own.remote_target.clone(),
            own.protocol.clone(),
            format!("{}/{}", own.bytes_from_source, own.bytes_to_source),
        ]
    })
}

fn seen(workload: &str, direction: &'static str, connection: &Value, names: &BTreeMap<String, String>) -> Connection {
    let end = |field: &str| named(text(connection, field), names);
    let (local, remote) = if direction == "inbound" { ("/actualDst", "/src") } else { ("/src", "/actualDst") };
    Connection {
        workload: workload.to_owned(),
        direction,
        local: end(local),
        remote: end(remote),
        remote_target: end("/originalDst"),
        protocol: text(connection, "/protocol").to_owned(),
        bytes_from_source: connection["bytesFromSource"].as_u64().unwrap_or_default(),
        bytes_to_source: connection["bytesToSource"].as_u64().unwrap_or_default(),
    }
}

/// `NAME:PORT` for an address that is known, the same text for any other.
fn named(address: &str, names: &BTreeMap<String, String>) -> String {
    let Some((host, port)) = address.rsplit_once(':') else { return address.to_owned() };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    names.get(host).map_or_else(|| address.to_owned(), |name| format!("{name}:{port}"))
}

/// The names of addresses: services first, because a workload never has a service's.
fn names(proxies: &[NodeProxy]) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for proxy in proxies {
        for service in proxy.list("services") {
            for vip in service["vips"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let address = vip.split_once('/').map_or(vip, |(_, address)| address);
                names.insert(address.to_owned(), text(service, "/hostname").to_owned());
            }
        }
        for workload in proxy.list("workloads").filter(|workload| workload["networkMode"] != "HostNetwork") {
            for address in super::addresses(workload) {
                names.insert(address.to_owned(), format!("{}.{}", text(workload, "/name"), text(workload, "/namespace")));
            }
        }
    }
    names
}
