//! What the API server and Istio's webhook refuse in a VirtualService.

mod http;

use super::{Destination, L4Match, RouteDestination, Spec, TcpRoute, TlsRoute, VirtualService};
use crate::{
    decode::About,
    istio::{bounds, check},
    names,
};

/// Hosts of one VirtualService: each is compared with all others.
const HOSTS_MAX: usize = 1024;
/// Patterns of one VirtualService: each may take 256 KiB in every waypoint that uses it.
const PATTERNS_MAX: usize = 256;
/// The gateway that stands for all traffic inside the mesh.
const MESH: &str = "mesh";

pub(crate) fn validate(about: &mut About<'_>, service: &VirtualService) {
    let spec = &service.spec;
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        about.refuse("spec", "", "has no routes", "at least one of http, tls and tcp");
    }
    if spec.hosts.len() > HOSTS_MAX {
        about.refuse("spec.hosts", format!("{} hosts", spec.hosts.len()), "are too many for one object", "at most 1024");
    } else {
        validate_hosts(about, spec);
    }
    let patterns = http::patterns(&spec.http);
    if patterns > PATTERNS_MAX {
        about.refuse("spec.http", format!("{patterns} patterns"), "are too many for one object", "at most 256 uses of regex");
    }
    bounds::virtual_service(about, spec);
    check::gateways(about, &spec.gateways, "spec.gateways");
    check::export_to(about, &spec.export_to);
    for (index, route) in spec.http.iter().enumerate() {
        http::validate(about, spec, route, &format!("spec.http[{index}]"));
    }
    for (index, route) in spec.tls.iter().enumerate() {
        validate_tls(about, spec, route, &format!("spec.tls[{index}]"));
    }
    for (index, route) in spec.tcp.iter().enumerate() {
        validate_tcp(about, route, &format!("spec.tcp[{index}]"));
    }
}

fn validate_hosts(about: &mut About<'_>, spec: &Spec) {
    if spec.hosts.is_empty() {
        let rest = [("spec.gateways", !spec.gateways.is_empty()), ("spec.tls", !spec.tls.is_empty()), ("spec.tcp", !spec.tcp.is_empty())];
        for (field, _) in rest.iter().filter(|(_, present)| *present) {
            about.refuse(
                field,
                "",
                "is not allowed without spec.hosts",
                "hosts; without them an object only says more for a delegating one",
            );
        }
    }
    let in_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == MESH);
    let hosts: Vec<String> = spec.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
    for (index, host) in hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        let found = format!("{:?}", spec.hosts[index]);
        let others = hosts.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, other)| other);
        if !check::is_host(host) {
            about.refuse(&field, found, "is not a host", "a service's name, a DNS name, \"*.\" before one, or an IP address");
        } else if host == "*" && in_mesh {
            about.refuse(&field, found, "is every host of the mesh", "name the hosts, or a gateway in spec.gateways");
        } else if hosts[..index].contains(host) {
            about.refuse(&field, found, "is written twice", "");
        } else if let Some(wider) = others.clone().find(|other| *other != host && check::covers(other, host)) {
            about.refuse(&field, found, &format!("is covered by {wider:?} too"), "hosts that do not overlap");
        }
    }
}

pub(super) fn validate_destination(about: &mut About<'_>, destination: &Destination, path: &str) {
    let host = destination.host.as_str();
    if host.is_empty() {
        about.refuse(&format!("{path}.host"), "", "is missing", "a service's name");
    } else if host.starts_with('*') || !check::is_host(host) {
        about.refuse(&format!("{path}.host"), format!("{host:?}"), "is not a host", "a service's name or a DNS name, without wildcards");
    }
    if !destination.subset.is_empty() && !names::is_dns_label(&destination.subset) {
        let found = format!("{:?}", destination.subset);
        about.refuse(&format!("{path}.subset"), found, "is not a subset's name", "at most 63 of a-z, 0-9 and -");
    }
    check::port_selector(about, &format!("{path}.port"), destination.port);
}

/// Weights: none negative, and with several destinations not all zero.
pub(super) fn validate_weights(about: &mut About<'_>, weights: impl Iterator<Item = i64>, path: &str) {
    let (mut sum, mut entries) = (0_i64, 0);
    for (index, weight) in weights.enumerate() {
        check::within(about, &format!("{path}[{index}].weight"), Some(weight), 0, i64::from(i32::MAX));
        sum = sum.saturating_add(weight.max(0));
        entries += 1;
    }
    if entries > 1 && sum == 0 {
        about.refuse(path, "a sum of 0", "leaves every destination without traffic", "at least one weight above 0");
    } else if sum > i64::from(u32::MAX) {
        about.refuse(path, sum.to_string(), "is too large a sum of weights", "at most 4294967295");
    }
}

fn validate_route(about: &mut About<'_>, route: &[RouteDestination], path: &str) {
    if route.is_empty() {
        about.refuse(path, "", "is missing or empty", "at least one destination");
    }
    for (index, entry) in route.iter().enumerate() {
        validate_destination(about, &entry.destination, &format!("{path}[{index}].destination"));
    }
    validate_weights(about, route.iter().map(|entry| entry.weight), path);
}

fn validate_tls(about: &mut About<'_>, spec: &Spec, route: &TlsRoute, path: &str) {
    if route.matches.is_empty() {
        about.refuse(&format!("{path}.match"), "", "is missing or empty", "sniHosts to match");
    }
    for (index, entry) in route.matches.iter().enumerate() {
        let path = format!("{path}.match[{index}]");
        if entry.sni_hosts.is_empty() {
            about.refuse(&format!("{path}.sniHosts"), "", "is missing or empty", "at least one server name");
        }
        for (position, name) in entry.sni_hosts.iter().enumerate() {
            let lower = name.to_ascii_lowercase();
            let field = format!("{path}.sniHosts[{position}]");
            if !check::is_host(name) {
                about.refuse(&field, format!("{name:?}"), "is not a server name", "a DNS name, or \"*.\" before one");
            } else if !spec.hosts.iter().any(|host| check::covers(&host.to_ascii_lowercase(), &lower)) {
                about.refuse(&field, format!("{name:?}"), "is not covered by spec.hosts", &spec.hosts.join(", "));
            }
        }
        check::blocks(about, &entry.destination_subnets, &format!("{path}.destinationSubnets"));
        check::port(about, &format!("{path}.port"), entry.port);
        check::labels(about, &entry.source_labels, &format!("{path}.sourceLabels"));
        check::gateways(about, &entry.gateways, &format!("{path}.gateways"));
    }
    validate_route(about, &route.route, &format!("{path}.route"));
}

fn validate_tcp(about: &mut About<'_>, route: &TcpRoute, path: &str) {
    for (index, entry) in route.matches.iter().enumerate() {
        validate_l4(about, entry, &format!("{path}.match[{index}]"));
    }
    validate_route(about, &route.route, &format!("{path}.route"));
}

fn validate_l4(about: &mut About<'_>, entry: &L4Match, path: &str) {
    check::blocks(about, &entry.destination_subnets, &format!("{path}.destinationSubnets"));
    check::port(about, &format!("{path}.port"), entry.port);
    check::labels(about, &entry.source_labels, &format!("{path}.sourceLabels"));
    check::gateways(about, &entry.gateways, &format!("{path}.gateways"));
    if !entry.source_subnet.is_empty() {
        check::not_honoured(about, &format!("{path}.sourceSubnet"), "the block matches callers of any address");
    }
}
