//! What the API server refuses in a Gateway, and what a waypoint does not obey.

use std::collections::BTreeSet;

use super::{Address, AddressType, Gateway, Infrastructure, Listener, Spec};
use crate::{
    decode::About,
    gateway_api::{CLASS_WAYPOINT, PROTOCOL_HBONE},
    istio::check,
    names,
};

/// How many listeners a gateway may have.
const LISTENERS_MAX: usize = 64;
/// How many addresses.
const ADDRESSES_MAX: usize = 16;
/// How many labels or annotations its infrastructure may have.
const INFRASTRUCTURE_MAX: usize = 8;

pub(crate) fn validate(about: &mut About<'_>, gateway: &Gateway) {
    let spec = &gateway.spec;
    if spec.gateway_class_name.is_empty() {
        about.refuse("spec.gatewayClassName", "", "is missing", "for example istio-waypoint");
    }
    if spec.listeners.is_empty() && spec.allowed_listeners.is_none() {
        about.refuse("spec.listeners", "", "is missing or empty", "a waypoint has `{name: mesh, port: 15008, protocol: HBONE}`");
    }
    if spec.listeners.len() > LISTENERS_MAX {
        about.refuse("spec.listeners", spec.listeners.len().to_string(), "entries are too many", "at most 64");
    }
    if spec.addresses.len() > ADDRESSES_MAX {
        about.refuse("spec.addresses", spec.addresses.len().to_string(), "entries are too many", "at most 16");
    }
    let (mut named, mut bound) = (BTreeSet::new(), BTreeSet::new());
    for (index, listener) in spec.listeners.iter().enumerate() {
        let path = format!("spec.listeners[{index}]");
        validate_listener(about, listener, &path);
        if !named.insert(&listener.name) {
            about.refuse(&format!("{path}.name"), format!("{:?}", listener.name), "is the name of another listener too", "");
        }
        if !bound.insert((listener.port, &listener.protocol, listener.hostname.as_deref().unwrap_or_default())) {
            about.refuse(&path, listener.port.to_string(), "is another listener's port with the same protocol and hostname", "");
        }
    }
    for (index, address) in spec.addresses.iter().enumerate() {
        validate_address(about, address, &format!("spec.addresses[{index}]"));
    }
    if let Some(infrastructure) = &spec.infrastructure {
        validate_infrastructure(about, infrastructure);
    }
    if spec.gateway_class_name == CLASS_WAYPOINT {
        tell_unobeyed(about, spec);
    }
}

/// Tells of what is valid and means nothing to a waypoint.
fn tell_unobeyed(about: &mut About<'_>, spec: &Spec) {
    for (index, listener) in spec.listeners.iter().enumerate() {
        let path = format!("spec.listeners[{index}]");
        if listener.hostname.as_deref().is_some_and(|hostname| !hostname.is_empty()) {
            check::not_honoured(about, &format!("{path}.hostname"), "the waypoint takes requests for every host of its services");
        }
        if listener.tls.is_some() {
            check::not_honoured(about, &format!("{path}.tls"), "the waypoint shows the mesh's own certificate");
        }
        if listener.allowed_routes.as_ref().is_some_and(|routes| !routes.kinds.is_empty()) {
            check::not_honoured(about, &format!("{path}.allowedRoutes.kinds"), "routes of every kind attach to services");
        }
    }
    let settings = spec.infrastructure.as_ref().is_some_and(|infrastructure| infrastructure.parameters_ref.is_some());
    let rest = [
        (settings, "infrastructure.parametersRef", "the waypoint is made without it"),
        (spec.allowed_listeners.is_some(), "allowedListeners", "no listeners are added"),
        (spec.tls.is_some(), "tls", "the waypoint shows the mesh's own certificate"),
        (spec.default_scope.is_some(), "defaultScope", "routes attach where they say so alone"),
    ];
    for (_, field, effect) in rest.into_iter().filter(|(present, ..)| *present) {
        check::not_honoured(about, &format!("spec.{field}"), effect);
    }
}

fn validate_listener(about: &mut About<'_>, listener: &Listener, path: &str) {
    if !names::is_dns_subdomain(&listener.name) {
        about.refuse(
            &format!("{path}.name"),
            format!("{:?}", listener.name),
            "is not a listener's name",
            "at most 253 of a-z, 0-9, - and .",
        );
    }
    if !names::is_port(listener.port) {
        about.refuse(&format!("{path}.port"), listener.port.to_string(), "is not a port", "1 to 65535");
    }
    let protocols = ["HTTP", "HTTPS", "TLS", "TCP", "UDP", PROTOCOL_HBONE];
    if !protocols.contains(&listener.protocol.as_str()) && !listener.protocol.contains('/') {
        about.refuse(&format!("{path}.protocol"), format!("{:?}", listener.protocol), "is not a protocol", &protocols.join(", "));
    }
    let plain = ["HTTP", "TCP", "UDP"].contains(&listener.protocol.as_str());
    if plain && listener.tls.is_some() {
        about.refuse(&format!("{path}.tls"), "", "is not allowed with this protocol", "HTTPS or TLS");
    }
    let Some(hostname) = listener.hostname.as_deref().filter(|hostname| !hostname.is_empty()) else { return };
    if ["TCP", "UDP"].contains(&listener.protocol.as_str()) {
        about.refuse(&format!("{path}.hostname"), format!("{hostname:?}"), "is not allowed with this protocol", "HTTP, HTTPS or TLS");
    } else if !names::is_dns_subdomain(hostname.strip_prefix("*.").unwrap_or(hostname)) || hostname.parse::<std::net::IpAddr>().is_ok() {
        about.refuse(&format!("{path}.hostname"), format!("{hostname:?}"), "is not a host name", "a DNS name, or *. before one");
    }
}

fn validate_address(about: &mut About<'_>, address: &Address, path: &str) {
    let (fits, accepted) = match &address.kind {
        _ if address.value.is_empty() => (true, ""),
        AddressType::IpAddress => (address.value.parse::<std::net::IpAddr>().is_ok(), "an IPv4 or IPv6 address"),
        AddressType::Hostname => {
            (names::is_dns_subdomain(&address.value) && address.value.parse::<std::net::IpAddr>().is_err(), "a DNS name")
        }
        AddressType::Other(kind) => {
            if !kind.contains('/') {
                about.refuse(
                    &format!("{path}.type"),
                    format!("{kind:?}"),
                    "is not a type of address",
                    "IPAddress, Hostname or DOMAIN/NAME",
                );
            }
            (true, "")
        }
    };
    if !fits {
        about.refuse(&format!("{path}.value"), format!("{:?}", address.value), "is not an address of its type", accepted);
    }
}

fn validate_infrastructure(about: &mut About<'_>, infrastructure: &Infrastructure) {
    for (name, map) in [("labels", &infrastructure.labels), ("annotations", &infrastructure.annotations)] {
        let field = format!("spec.infrastructure.{name}");
        if map.len() > INFRASTRUCTURE_MAX {
            about.refuse(&field, map.len().to_string(), "entries are too many", "at most 8");
        }
        for (key, value) in map {
            if !names::is_label_key(key) {
                about.refuse(
                    &format!("{field}[{key}]"),
                    "",
                    "the key is not a label key",
                    "letters, digits, -, _ and ., with an optional DNS prefix/",
                );
            } else if name == "labels" && !names::is_label_value(value) {
                about.refuse(
                    &format!("{field}[{key}]"),
                    format!("{value:?}"),
                    "is not a label value",
                    "at most 63 letters, digits, -, _ and .",
                );
            }
        }
    }
}
