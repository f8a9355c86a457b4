//! What a VirtualService names and does not exist: hosts, subsets, ports, gateways, delegates.

use std::{collections::BTreeSet, sync::Arc};

use tropis_crds::{
    Finding, Object, codes,
    istio::virtual_service::{Destination, Spec},
    nearest,
};

use super::super::{MESH, delegate_key, is_visible};
use crate::{
    Index,
    destination_rule::{elsewhere, select, shown},
    host::Target,
    index::full_host,
    waypoint::unserved,
};

const NOT_FOUND_EFFECT: &str = "requests that are routed to it get 503 (flag NC)";
const UNUSED_EFFECT: &str = "nothing while its weight is 0; with any other its requests get 503 (flag NC)";

const GATEWAY_ACCEPTED: &str = "a Gateway of networking.istio.io as NAME or NAMESPACE/NAME, or mesh for callers in the mesh";

/// Gateways that do not exist, and those that nothing serves yet.
pub(super) fn gateways(index: &Index, object: &Object) -> Vec<Finding> {
    let Some(service) = object.virtual_service() else { return Vec::new() };
    let own = object.metadata.namespace.as_str();
    let known = index.istio_gateway_names(own);
    let mut findings = Vec::new();
    for (place, written) in service.spec.gateways.iter().enumerate().filter(|(_, written)| *written != MESH) {
        let (namespace, name) = match written.split_once('/') {
            Some((".", name)) => (own, name),
            Some((namespace, name)) => (namespace, name),
            // The old form NAME.NAMESPACE.svc.DOMAIN.
            None => match written.split_once(".svc.").and_then(|(start, _)| start.split_once('.')) {
                Some((name, namespace)) => (namespace, name),
                None => (own, written.as_str()),
            },
        };
        let field = format!("spec.gateways[{place}]");
        if index.has_istio_gateway(&(namespace.to_owned(), name.to_owned())) {
            findings.push(
                Finding::warning(codes::FIELD_NOT_HONOURED, object.reference())
                    .field(field)
                    .found(format!("{written:?}"))
                    .problem("is a gateway at the mesh's edge, and none is served yet")
                    .effect("no request from outside the mesh is routed by it; requests inside are only if mesh is named too"),
            );
        } else {
            findings.push(
                Finding::error(codes::REFERENCED_RESOURCE_NOT_FOUND, object.reference())
                    .field(field)
                    .found(format!("{written:?}"))
                    .problem(format!("is no Gateway ({namespace}/{name} does not exist)"))
                    .accepted(nearest::accepted(written, known.iter().map(String::as_str), GATEWAY_ACCEPTED))
                    .effect("no traffic from outside the mesh reaches these routes by it"),
            );
        }
    }
    findings
}

/// Hosts that no service has, and services whose waypoints do not look here.
pub(super) fn hosts(index: &Index, object: &Arc<Object>) -> Vec<Finding> {
    let Some(service) = object.virtual_service() else { return Vec::new() };
    let own = object.metadata.namespace.as_str();
    let mut findings = Vec::new();
    for (place, written) in service.spec.hosts.iter().enumerate() {
        let host = full_host(index.settings(), own, written);
        let field = format!("spec.hosts[{place}]");
        let mut services = index.services_covered(&host).peekable();
        let Some(first) = services.peek() else {
            findings.push(
                Finding::error(codes::REFERENCED_RESOURCE_NOT_FOUND, object.reference())
                    .field(field)
                    .found(format!("{written:?}"))
                    .problem(format!("names no service ({host} does not exist)"))
                    .accepted(elsewhere(index, own, written))
                    .effect("no request is routed by it"),
            );
            continue;
        };
        let namespace = first.metadata.namespace.clone();
        let about = (&**object, field.clone(), format!("{written:?}"));
        findings.extend(unserved::finding(index, index.services_covered(&host), about, "no request is routed by it"));
        if services.all(|service| service.metadata.namespace != own) {
            findings.push(
                Finding::warning(codes::INEFFECTIVE_POLICY, object.reference())
                    .field(field)
                    .found(format!("{written:?}"))
                    .problem(format!("is a service of another namespace ({namespace}), whose waypoints do not look into {own}"))
                    .accepted(format!("a VirtualService in namespace {namespace}"))
                    .effect(format!("only a waypoint in namespace {own} routes by it")),
            );
        }
    }
    findings
}

/// Destinations and mirrors whose host, port or subset does not exist.
pub(super) fn destinations(index: &Index, object: &Arc<Object>) -> Vec<Finding> {
    let Some(service) = object.virtual_service() else { return Vec::new() };
    let unused: BTreeSet<String> = weightless(&service.spec).collect();
    let all = all_destinations(&service.spec).into_iter();
    all.filter_map(|(field, destination)| {
        let effect = if unused.contains(&field) { UNUSED_EFFECT } else { NOT_FOUND_EFFECT };
        check(index, object, &field, destination, effect)
    })
    .collect()
}

/// Destinations of HTTP rules that get nothing of a split.
fn weightless(spec: &Spec) -> impl Iterator<Item = String> {
    spec.http.iter().enumerate().flat_map(|(index, rule)| {
        let zero = rule.route.iter().enumerate().filter(|(_, entry)| entry.weight == 0 && rule.route.len() > 1);
        zero.map(move |(place, _)| format!("spec.http[{index}].route[{place}].destination"))
    })
}

fn all_destinations(spec: &Spec) -> Vec<(String, &Destination)> {
    let mut all = Vec::new();
    for (index, rule) in spec.http.iter().enumerate() {
        let path = format!("spec.http[{index}]");
        all.extend(rule.route.iter().enumerate().map(|(place, entry)| (format!("{path}.route[{place}].destination"), &entry.destination)));
        all.extend(rule.mirror.iter().map(|destination| (format!("{path}.mirror"), destination)));
        all.extend(
            rule.mirrors.iter().enumerate().map(|(place, entry)| (format!("{path}.mirrors[{place}].destination"), &entry.destination)),
        );
    }
    let tls = spec.tls.iter().enumerate().map(|(index, rule)| (format!("spec.tls[{index}]"), &rule.route));
    let tcp = spec.tcp.iter().enumerate().map(|(index, rule)| (format!("spec.tcp[{index}]"), &rule.route));
    for (path, route) in tls.chain(tcp) {
        all.extend(route.iter().enumerate().map(|(place, entry)| (format!("{path}.route[{place}].destination"), &entry.destination)));
    }
    all
}

fn check(index: &Index, object: &Object, field: &str, destination: &Destination, effect: &str) -> Option<Finding> {
    let own = object.metadata.namespace.as_str();
    let host = full_host(index.settings(), own, &destination.host);
    let target = Target::find(index, own, &host);
    let missing = |part: &str, found: String| {
        Finding::error(codes::REFERENCED_RESOURCE_NOT_FOUND, object.reference())
            .field(format!("{field}.{part}"))
            .found(found)
            .effect(effect)
    };
    if target.service.is_none() {
        let problem = format!("names no service ({} does not exist)", target.host.hostname);
        let finding = missing("host", format!("{:?}", destination.host)).problem(problem);
        return Some(finding.accepted(elsewhere(index, own, &destination.host)));
    }
    let ports = target.ports();
    let listed = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    match destination.port {
        Some(port) if !ports.iter().any(|own| i64::from(*own) == port.number) => {
            let problem = format!("is not a port of {}", target.host.hostname);
            return Some(missing("port.number", port.number.to_string()).problem(problem).accepted(listed));
        }
        None if ports.len() > 1 => {
            let finding = Finding::warning(codes::PORT_SELECTOR_REQUIRED, object.reference())
                .field(format!("{field}.port"))
                .problem(format!("is missing, and {} has several ports", target.host.hostname))
                .accepted(listed)
                .effect("the port that was addressed is taken; where there is no such port, requests get 503 (flag NC)");
            return Some(finding);
        }
        _ => {}
    }
    if destination.subset.is_empty() {
        return None;
    }
    let selected = select(index, &target.host.namespace, &target.host.namespace, &target.host.hostname)
        .or_else(|| select(index, own, &target.host.namespace, &target.host.hostname));
    let known: Vec<&str> = selected.iter().flat_map(|selected| &selected.subsets).map(|(_, _, subset)| subset.name.as_str()).collect();
    if known.contains(&destination.subset.as_str()) {
        return None;
    }
    let problem = match &selected {
        Some(selected) => {
            let rules: Vec<String> = selected.objects.iter().map(|rule| shown(rule)).collect();
            format!("is not a subset of {} (DestinationRule {})", target.host.hostname, rules.join(" and "))
        }
        None => format!("is not a subset of {}, which has no DestinationRule", target.host.hostname),
    };
    let accepted = nearest::accepted(&destination.subset, known, "a DestinationRule for the host with this subset");
    Some(missing("subset", format!("{:?}", destination.subset)).problem(problem).accepted(accepted))
}

/// Delegates that do not exist, are not seen, or have hosts of their own.
pub(super) fn delegates(index: &Index, object: &Object) -> Vec<Finding> {
    let Some(service) = object.virtual_service() else { return Vec::new() };
    let mut findings = Vec::new();
    for (place, route) in service.spec.http.iter().enumerate() {
        let Some(key) = delegate_key(object, route) else { continue };
        let found = index.virtual_service(&key);
        let spec = found.and_then(|found| found.virtual_service()).map(|service| &service.spec);
        let problem = match spec {
            None => "does not exist",
            Some(spec) if !spec.hosts.is_empty() => "has hosts of its own, so nothing can delegate to it",
            Some(spec) if !is_visible(&spec.export_to, &key.0, &object.metadata.namespace) => "is not exported to this namespace",
            Some(_) => continue,
        };
        findings.push(
            Finding::error(codes::REFERENCED_RESOURCE_NOT_FOUND, object.reference())
                .field(format!("spec.http[{place}].delegate"))
                .found(format!("{:?}", format!("{}/{}", key.0, key.1)))
                .problem(problem)
                .accepted("a VirtualService without hosts that this namespace sees")
                .effect("the rule is left out"),
        );
    }
    findings
}
