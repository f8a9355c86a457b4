//! Rules for connections become routes.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use tropis_crds::{
    Object,
    istio::{
        block,
        virtual_service::{L4Match, RouteDestination, TlsMatch},
    },
};
use tropis_model::route::{Destination, HeaderChanges, Origin, TcpRoute, TlsRoute};

use super::{Rendering, action::weight, counting, counts, origin};
use crate::index::full_host;

/// Routes of TLS connections to a port of `host`. As at Istio's waypoints, a rule counts when its only server name is the host itself.
pub(super) fn tls(rendering: &Rendering<'_>, object: &Arc<Object>, port: u16, host: &str) -> Vec<TlsRoute> {
    let Some(service) = object.virtual_service() else { return Vec::new() };
    let namespace = object.metadata.namespace.as_str();
    let names_host = |entry: &TlsMatch| match entry.sni_hosts.as_slice() {
        [name] => full_host(rendering.index.settings(), namespace, name) == host,
        _ => false,
    };
    let mut routes = Vec::new();
    for (position, rule) in service.spec.tls.iter().enumerate() {
        let matching = rule.matches.iter().filter(|entry| counts(&entry.gateways, entry.port, port) && names_host(entry));
        routes.extend(matching.map(|entry| TlsRoute {
            origin: origin(object, "tls", position),
            server_names: vec![host.into()],
            destination_blocks: blocks(&entry.destination_subnets),
            source_labels: labels(&entry.source_labels),
            source_namespace: namespace_of(&entry.source_namespace),
            destinations: destinations(rendering, object, &rule.route, port),
        }));
    }
    routes
}

/// Routes of connections to a port: one for each match.
pub(super) fn tcp(rendering: &Rendering<'_>, object: &Arc<Object>, port: u16) -> Vec<TcpRoute> {
    let Some(service) = object.virtual_service() else { return Vec::new() };
    let mut routes = Vec::new();
    for (position, rule) in service.spec.tcp.iter().enumerate() {
        let Some(matches) = counting(&rule.matches, |entry: &L4Match| counts(&entry.gateways, entry.port, port)) else { continue };
        let everything = [L4Match::default()];
        let matches = if matches.is_empty() { everything.as_slice() } else { &matches };
        routes.extend(matches.iter().map(|entry| TcpRoute {
            origin: origin(object, "tcp", position),
            destination_blocks: blocks(&entry.destination_subnets),
            source_labels: labels(&entry.source_labels),
            source_namespace: namespace_of(&entry.source_namespace),
            destinations: destinations(rendering, object, &rule.route, port),
        }));
    }
    routes
}

/// In place of a route of TLS connections: takes all of its host, and leads nowhere.
pub(super) fn refuse_tls(route: TlsRoute) -> (Origin, TlsRoute) {
    let origin = route.origin.clone();
    let refusal = TlsRoute {
        origin: route.origin,
        server_names: route.server_names,
        destination_blocks: Vec::new(),
        source_labels: Default::default(),
        source_namespace: None,
        destinations: Vec::new(),
    };
    (origin, refusal)
}

/// In place of a route of connections: takes all, and leads nowhere.
pub(super) fn refuse_tcp(route: TcpRoute) -> (Origin, TcpRoute) {
    let origin = route.origin.clone();
    let refusal = TcpRoute {
        origin: route.origin,
        destination_blocks: Vec::new(),
        source_labels: Default::default(),
        source_namespace: None,
        destinations: Vec::new(),
    };
    (origin, refusal)
}

fn destinations(rendering: &Rendering<'_>, object: &Arc<Object>, route: &[RouteDestination], port: u16) -> Vec<Destination> {
    let alone = route.len() == 1;
    let shares = route.iter().filter(|entry| alone || entry.weight > 0);
    let namespace = object.metadata.namespace.as_str();
    let destinations = shares.map(|entry| Destination {
        pool: rendering.target(namespace, &entry.destination).pool(&entry.destination, port),
        weight: weight(entry.weight, alone),
        headers: HeaderChanges::default(),
    });
    destinations.collect()
}

fn labels(list: &BTreeMap<String, String>) -> BTreeMap<Arc<str>, Arc<str>> {
    list.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
}

fn namespace_of(written: &str) -> Option<Arc<str>> {
    (!written.is_empty()).then(|| written.into())
}

fn blocks(list: &[String]) -> Vec<IpNet> {
    list.iter().filter_map(|text| block(text)).collect()
}
