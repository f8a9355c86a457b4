//! `tropis.waypoint.v1.Host` and `tropis.waypoint.v1.Waypoint`.

use std::{collections::BTreeMap, sync::Arc};

use tropis_model::{
    address::NamespacedHostname,
    bounds,
    request_policy::RequestPolicy,
    route::{Host, HostPort, PortProtocol},
    waypoint::{AccessLogFormat, Serves, Waypoint},
    workload::WorkloadUid,
};
use tropis_proto::waypoint::{self as wire, access_log};

use super::{Interner, InvalidResource, parts, pool, request_policy, route};

pub(super) fn host(wire: wire::Host, strings: &mut Interner) -> Result<Host, InvalidResource> {
    let name = NamespacedHostname {
        namespace: parts::name("namespace", &wire.namespace, strings)?,
        hostname: parts::name("hostname", &wire.hostname, strings)?,
    };
    let mut ports = BTreeMap::new();
    for (number, port) in parts::list("ports", bounds::PORTS, wire.ports, |found| host_port(found, strings))? {
        if ports.insert(number, port).is_some() {
            return Err(InvalidResource::Duplicate { field: "ports", key: number.to_string() });
        }
    }
    let mut pools = BTreeMap::new();
    for pool in parts::list("pools", bounds::POOLS, wire.pools, |found| pool::from_wire(found, strings))? {
        let key = pool.key.to_string();
        if pools.insert(pool.key.clone(), Arc::new(pool)).is_some() {
            return Err(InvalidResource::Duplicate { field: "pools", key });
        }
    }
    Ok(Host { name, ports, policies: policies(wire.policies, strings)?, pools })
}

fn host_port(wire: wire::HostPort, strings: &mut Interner) -> Result<(u16, HostPort), InvalidResource> {
    let number = parts::port("ports.port", wire.port)?;
    let port = HostPort {
        protocol: match wire::PortProtocol::try_from(wire.protocol) {
            Ok(wire::PortProtocol::Auto) => PortProtocol::Auto,
            Ok(wire::PortProtocol::Http) => PortProtocol::Http,
            Ok(wire::PortProtocol::Http2) => PortProtocol::Http2,
            Ok(wire::PortProtocol::Grpc) => PortProtocol::Grpc,
            Ok(wire::PortProtocol::Tcp) => PortProtocol::Tcp,
            Ok(wire::PortProtocol::Tls) => PortProtocol::Tls,
            Err(_) => return Err(InvalidResource::UnknownValue { field: "ports.protocol", found: wire.protocol }),
        },
        http: parts::list("ports.http", bounds::ROUTES, wire.http, |found| Ok(Arc::new(route::http(found, strings)?)))?,
        tls: parts::list("ports.tls", bounds::ROUTES, wire.tls, |found| Ok(Arc::new(route::tls(found, strings)?)))?,
        tcp: parts::list("ports.tcp", bounds::ROUTES, wire.tcp, |found| Ok(Arc::new(route::tcp(found, strings)?)))?,
    };
    Ok((number, port))
}

fn policies(wire: Vec<wire::RequestPolicy>, strings: &mut Interner) -> Result<Vec<Arc<RequestPolicy>>, InvalidResource> {
    parts::list("policies", bounds::POLICIES, wire, |found| Ok(Arc::new(request_policy::from_wire(found, strings)?)))
}

pub(super) fn host_to_wire(host: &Host) -> wire::Host {
    let port = |(number, port): (&u16, &HostPort)| wire::HostPort {
        port: (*number).into(),
        protocol: match port.protocol {
            PortProtocol::Auto => wire::PortProtocol::Auto,
            PortProtocol::Http => wire::PortProtocol::Http,
            PortProtocol::Http2 => wire::PortProtocol::Http2,
            PortProtocol::Grpc => wire::PortProtocol::Grpc,
            PortProtocol::Tcp => wire::PortProtocol::Tcp,
            PortProtocol::Tls => wire::PortProtocol::Tls,
        }
        .into(),
        http: port.http.iter().map(|found| route::http_to_wire(found)).collect(),
        tls: port.tls.iter().map(|found| route::tls_to_wire(found)).collect(),
        tcp: port.tcp.iter().map(|found| route::tcp_to_wire(found)).collect(),
    };
    wire::Host {
        namespace: host.name.namespace.to_string(),
        hostname: host.name.hostname.to_string(),
        ports: host.ports.iter().map(port).collect(),
        policies: host.policies.iter().map(|found| request_policy::to_wire(found)).collect(),
        pools: host.pools.values().map(|found| pool::to_wire(found)).collect(),
    }
}

pub(super) fn waypoint(wire: wire::Waypoint, strings: &mut Interner) -> Result<Waypoint, InvalidResource> {
    let namespace = parts::name("namespace", &wire.namespace, strings)?;
    let gateway = parts::name("gateway", &wire.gateway, strings)?;
    Ok(Waypoint {
        key: strings.get(&format!("{namespace}/{gateway}")),
        service: NamespacedHostname {
            namespace: parts::name("service_namespace", &wire.service_namespace, strings)?,
            hostname: parts::name("service_hostname", &wire.service_hostname, strings)?,
        },
        serves: match wire::Serves::try_from(wire.serves) {
            Ok(wire::Serves::Services) => Serves::Services,
            Ok(wire::Serves::Workloads) => Serves::Workloads,
            Ok(wire::Serves::All) => Serves::All,
            Ok(wire::Serves::Nothing) => Serves::Nothing,
            Err(_) => return Err(InvalidResource::UnknownValue { field: "serves", found: wire.serves }),
        },
        policies: policies(wire.policies, strings)?,
        access_log: wire.access_log.map(|found| access_log(found, strings)).transpose()?,
        elsewhere: (parts::list("elsewhere", bounds::ELSEWHERE, wire.elsewhere, |uid| parts::name("elsewhere", &uid, strings))?
            .into_iter())
        .map(WorkloadUid)
        .collect(),
    })
}

fn access_log(wire: wire::AccessLog, strings: &mut Interner) -> Result<AccessLogFormat, InvalidResource> {
    match parts::required("access_log", wire.format)? {
        access_log::Format::Json(true) => Ok(AccessLogFormat::Json),
        access_log::Format::Json(false) => Err(InvalidResource::Unsupported { field: "access_log.json", found: "false" }),
        access_log::Format::Text(text) => Ok(AccessLogFormat::Text((!text.is_empty()).then(|| strings.get(&text)))),
    }
}

pub(super) fn waypoint_to_wire(waypoint: &Waypoint) -> wire::Waypoint {
    let (namespace, gateway) = waypoint.key.split_once('/').unwrap_or(("", &waypoint.key));
    let format = |format: &AccessLogFormat| match format {
        AccessLogFormat::Json => access_log::Format::Json(true),
        AccessLogFormat::Text(text) => access_log::Format::Text(text.as_deref().unwrap_or_default().to_owned()),
    };
    wire::Waypoint {
        namespace: namespace.to_owned(),
        gateway: gateway.to_owned(),
        service_namespace: waypoint.service.namespace.to_string(),
        service_hostname: waypoint.service.hostname.to_string(),
        serves: match waypoint.serves {
            Serves::Services => wire::Serves::Services,
            Serves::Workloads => wire::Serves::Workloads,
            Serves::All => wire::Serves::All,
            Serves::Nothing => wire::Serves::Nothing,
        }
        .into(),
        policies: waypoint.policies.iter().map(|found| request_policy::to_wire(found)).collect(),
        access_log: waypoint.access_log.as_ref().map(|found| wire::AccessLog { format: Some(format(found)) }),
        elsewhere: waypoint.elsewhere.iter().map(|uid| uid.0.to_string()).collect(),
    }
}
