//! What the API server checks in its own kinds beyond their types, as far as a mistake there would mislead the mesh.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Container, Pod, PodSpec, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{decode::About, names};

const PORT: &str = "1 to 65535";
const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];

pub(crate) fn pod(about: &mut About<'_>, pod: &Pod) {
    if let Some(spec) = &pod.spec {
        pod_spec(about, spec, "spec");
    }
    let status = pod.status.iter();
    for (index, ip) in status.flat_map(|status| status.pod_ips.iter().flatten()).enumerate() {
        address(about, &format!("status.podIPs[{index}].ip"), &ip.ip);
    }
}

pub(crate) fn deployment(about: &mut About<'_>, deployment: &Deployment) {
    let Some(spec) = &deployment.spec else { return };
    if let Some(template) = &spec.template.spec {
        pod_spec(about, template, "spec.template.spec");
    }
    let labels = spec.template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
    for (key, value) in spec.selector.match_labels.iter().flatten() {
        if labels.and_then(|labels| labels.get(key)) != Some(value) {
            let field = format!("spec.selector.matchLabels[{key}]");
            about.refuse(&field, format!("{value:?}"), "does not match the labels of the template", "the template's own label");
        }
    }
}

fn pod_spec(about: &mut About<'_>, spec: &PodSpec, path: &str) {
    let mut seen = BTreeSet::new();
    let init = spec.init_containers.iter().flatten().enumerate().map(|(index, container)| ("initContainers", index, container));
    let main = spec.containers.iter().enumerate().map(|(index, container)| ("containers", index, container));
    for (list, index, container) in init.chain(main) {
        let path = format!("{path}.{list}[{index}]");
        if !names::is_dns_label(&container.name) {
            let found = format!("{:?}", container.name);
            about.refuse(&format!("{path}.name"), found, "is not a container name", "at most 63 of a-z, 0-9 and -");
        } else if !seen.insert(container.name.as_str()) {
            about.refuse(&format!("{path}.name"), format!("{:?}", container.name), "is the name of another container too", "");
        }
        container_ports(about, container, &path);
    }
}

fn container_ports(about: &mut About<'_>, container: &Container, path: &str) {
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let path = format!("{path}.ports[{index}]");
        port_number(about, &format!("{path}.containerPort"), port.container_port.into());
        protocol(about, &format!("{path}.protocol"), port.protocol.as_deref());
        if let Some(name) = port.name.as_deref().filter(|name| !names::is_port_name(name)) {
            about.refuse(&format!("{path}.name"), format!("{name:?}"), "is not a port name", "at most 15 of a-z, 0-9 and -");
        }
    }
}

pub(crate) fn service(about: &mut About<'_>, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if !["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&kind) {
        about.refuse("spec.type", format!("{kind:?}"), "is not a type of service", "ClusterIP, NodePort, LoadBalancer, ExternalName");
    }
    let ports = spec.ports.as_deref().unwrap_or_default();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    if ports.is_empty() && kind != "ExternalName" && !headless {
        about.refuse("spec.ports", "", "is missing or empty", "at least one port");
    }
    let (mut named, mut numbered) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        port_number(about, &format!("{path}.port"), port.port.into());
        protocol(about, &format!("{path}.protocol"), port.protocol.as_deref());
        match (&port.target_port, &port.name) {
            (Some(IntOrString::Int(number)), _) => port_number(about, &format!("{path}.targetPort"), (*number).into()),
            (Some(IntOrString::String(name)), _) if !names::is_port_name(name) => {
                let accepted = "a number from 1 to 65535, or a port name";
                about.refuse(&format!("{path}.targetPort"), format!("{name:?}"), "is not a port", accepted);
            }
            _ => {}
        }
        match port.name.as_deref() {
            None | Some("") if ports.len() > 1 => {
                about.refuse(&format!("{path}.name"), "", "is missing", "a name, as the service has several ports");
            }
            Some(name) if !name.is_empty() && !names::is_dns_label(name) => {
                about.refuse(&format!("{path}.name"), format!("{name:?}"), "is not a port name", "at most 63 of a-z, 0-9 and -");
            }
            Some(name) if !name.is_empty() && !named.insert(name) => {
                about.refuse(&format!("{path}.name"), format!("{name:?}"), "is the name of another port too", "");
            }
            _ => {}
        }
        if !numbered.insert((port.port, port.protocol.as_deref().unwrap_or("TCP"))) {
            about.refuse(&format!("{path}.port"), port.port.to_string(), "is the number of another port too", "");
        }
    }
    for (index, ip) in spec.cluster_ips.iter().flatten().enumerate().filter(|(_, ip)| *ip != "None") {
        address(about, &format!("spec.clusterIPs[{index}]"), ip);
    }
    let choices: [(&str, &Option<String>, &[&str]); 3] = [
        ("spec.internalTrafficPolicy", &spec.internal_traffic_policy, &["Cluster", "Local"]),
        ("spec.externalTrafficPolicy", &spec.external_traffic_policy, &["Cluster", "Local"]),
        ("spec.ipFamilyPolicy", &spec.ip_family_policy, &["SingleStack", "PreferDualStack", "RequireDualStack"]),
    ];
    for (field, value, accepted) in choices {
        if let Some(value) = value.as_deref().filter(|value| !accepted.contains(value)) {
            about.refuse(field, format!("{value:?}"), "is not one of its values", &accepted.join(", "));
        }
    }
    let distributions = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    if let Some(value) = spec.traffic_distribution.as_deref().filter(|value| !distributions.contains(value)) {
        about.refuse("spec.trafficDistribution", format!("{value:?}"), "is not one of its values", &distributions.join(", "));
    }
    for (index, family) in spec.ip_families.iter().flatten().enumerate().filter(|(_, family)| !["IPv4", "IPv6"].contains(&family.as_str()))
    {
        about.refuse(&format!("spec.ipFamilies[{index}]"), format!("{family:?}"), "is not an address family", "IPv4, IPv6");
    }
    for (key, value) in spec.selector.iter().flatten() {
        if !names::is_label_key(key) || !names::is_label_value(value) {
            about.refuse(&format!("spec.selector[{key}]"), format!("{value:?}"), "is not a label", "a label key and a label value");
        }
    }
}

pub(crate) fn endpoint_slice(about: &mut About<'_>, slice: &EndpointSlice) {
    let families = ["IPv4", "IPv6", "FQDN"];
    if !families.contains(&slice.address_type.as_str()) {
        about.refuse("addressType", format!("{:?}", slice.address_type), "is not a type of address", &families.join(", "));
    }
    if slice.address_type != "FQDN" {
        for (index, endpoint) in slice.endpoints.iter().flatten().enumerate() {
            for (position, ip) in endpoint.addresses.iter().enumerate() {
                address(about, &format!("endpoints[{index}].addresses[{position}]"), ip);
            }
        }
    }
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        if let Some(number) = port.port {
            port_number(about, &format!("ports[{index}].port"), number.into());
        }
        protocol(about, &format!("ports[{index}].protocol"), port.protocol.as_deref());
    }
}

fn port_number(about: &mut About<'_>, field: &str, number: i64) {
    if !names::is_port(number) {
        about.refuse(field, number.to_string(), "is not a port", PORT);
    }
}

fn protocol(about: &mut About<'_>, field: &str, found: Option<&str>) {
    if let Some(found) = found.filter(|found| !PROTOCOLS.contains(found)) {
        about.refuse(field, format!("{found:?}"), "is not a protocol", &PROTOCOLS.join(", "));
    }
}

fn address(about: &mut About<'_>, field: &str, text: &str) {
    if text.parse::<IpAddr>().is_err() {
        about.refuse(field, format!("{text:?}"), "is not an IP address", "an IPv4 or IPv6 address");
    }
}
