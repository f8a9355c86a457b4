//! What is asked: who calls what, read from the command line and found in the mesh.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, bail};
use http::{HeaderMap, HeaderName, HeaderValue};
use tropis_crds::Kind;
use tropis_model::{service::Service, workload::Workload};

use super::Arguments;
use crate::{mesh::Mesh, names};

/// A question that can be answered.
#[derive(Debug)]
pub(super) struct Question {
    /// Who calls.
    pub(super) caller: Arc<Workload>,
    /// What it dials.
    pub(super) destination: SocketAddr,
    /// What was asked for, by name.
    pub(super) named: String,
    /// The request that it sends, if HTTP is spoken.
    pub(super) request: Request,
    /// The server name that its TLS begins with, if it speaks TLS.
    pub(super) server_name: Option<String>,
}

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) authority: String,
    /// Path and query as sent.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
}

/// Reads the arguments.
pub(super) fn read(mesh: &Mesh, arguments: &Arguments, namespace: &str) -> anyhow::Result<Question> {
    let caller = caller(mesh, &arguments.source, namespace)?;
    let asked = Asked::read(&arguments.destination)?;
    let (destination, named) = destination(mesh, &asked, &caller, arguments.ipv6)?;
    let authority = arguments.authority.clone().unwrap_or_else(|| match asked.port {
        Some(_) => asked.authority(),
        None => format!("{}:{}", asked.host, destination.port()),
    });
    let request =
        Request { method: arguments.method.clone(), authority, target: asked.path.clone(), headers: headers(&arguments.headers)? };
    let server_name = arguments.server_name.as_ref().map(|name| name.to_ascii_lowercase());
    Ok(Question { caller, destination, named, request, server_name })
}

fn caller(mesh: &Mesh, text: &str, namespace: &str) -> anyhow::Result<Arc<Workload>> {
    let name = names::name(text, namespace)?;
    let key = (name.namespace.clone(), name.name.clone());
    let pod = match name.kind.as_str() {
        "" => Some(key.clone()),
        kind => match names::kind(kind)? {
            Kind::Pod => Some(key.clone()),
            kind => mesh.pod_of(kind, &key).map(|pod| (pod.metadata.namespace.clone(), pod.metadata.name.clone())),
        },
    };
    let workload = pod.and_then(|(namespace, name)| mesh.workload(&namespace, &name)).or_else(|| {
        // `sleep` means a pod of the Deployment `sleep`, as kubectl's users expect who never see a pod's whole name.
        let pod = mesh.pod_of(Kind::Deployment, &key).filter(|_| name.kind.is_empty())?;
        mesh.workload(&pod.metadata.namespace, &pod.metadata.name)
    });
    workload.cloned().with_context(|| {
        format!("{text:?} is no pod in namespace {} that has an address\n`tropis get pods -A` lists the pods", name.namespace)
    })
}

/// `[SCHEME://][TYPE/]HOST[:PORT][/PATH]`, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    kind: String,
    host: String,
    port: Option<u16>,
    path: String,
}

impl Asked {
    fn read(text: &str) -> anyhow::Result<Self> {
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let (kind, rest) = match rest.split_once('/') {
            Some((kind, rest)) if ["pod", "po", "service", "svc"].contains(&kind) => (kind, rest),
            _ => ("", rest),
        };
        let (place, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = match place.strip_prefix('[').and_then(|inside| inside.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None if place.parse::<IpAddr>().is_ok() => (place, None),
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let port = port
            .map(|port| port.parse::<u16>().ok().filter(|port| *port != 0).with_context(|| format!("{port:?} is not a port (1 to 65535)")));
        if host.is_empty() {
            bail!(
                "{text:?} does not say what is called\nWrite SERVICE[.NAMESPACE]:PORT, pod/POD[.NAMESPACE]:PORT or IP:PORT, and a path behind it"
            );
        }
        Ok(Self { kind: kind.to_owned(), host: host.to_owned(), port: port.transpose()?, path: path.to_owned() })
    }

    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        self.port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
    }
}

/// The address that is dialled, and what it is called.
fn destination(mesh: &Mesh, asked: &Asked, caller: &Workload, ipv6: bool) -> anyhow::Result<(SocketAddr, String)> {
    if let Ok(address) = asked.host.parse::<IpAddr>() {
        let port = asked.port.with_context(|| format!("which port of {address}? Write {}", SocketAddr::new(address, 80)))?;
        let address = SocketAddr::new(address, port);
        return Ok((address, address.to_string()));
    }
    let name = names::name(&asked.host, &caller.namespace)?;
    let service = mesh.view.services().find(|service| *service.hostname.namespace == *name.namespace && *service.name == *name.name);
    let pod = mesh.workload(&name.namespace, &name.name);
    match (asked.kind.as_str(), service, pod) {
        ("" | "service" | "svc", Some(service), _) => {
            let port = match asked.port {
                Some(port) => port,
                None => only_port(service)?,
            };
            let vip = pick(service.addresses.iter().map(|own| own.block.addr()), ipv6);
            let headless = || {
                mesh.view.endpoints(&service.hostname).next().and_then(|endpoint| pick(endpoint.workload.addresses.iter().copied(), ipv6))
            };
            let address = vip.or_else(headless).with_context(|| format!("service {} has no address and no endpoint", service.hostname))?;
            Ok((SocketAddr::new(address, port), format!("{}:{port}", service.hostname.hostname)))
        }
        ("" | "pod" | "po", _, Some(pod)) => {
            let port = asked.port.with_context(|| format!("which port of pod {}? Write {}:PORT", pod.name, asked.host))?;
            let address = pick(pod.addresses.iter().copied(), ipv6).with_context(|| format!("pod {} has no address", pod.name))?;
            Ok((SocketAddr::new(address, port), format!("pod {}.{}:{port}", pod.name, pod.namespace)))
        }
        _ => bail!(
            "{:?} is neither a service nor a pod in namespace {}\n`tropis get services -A` and `tropis get pods -A` list what there is; \
             a host outside of the mesh is given by its IP",
            asked.host,
            name.namespace
        ),
    }
}

fn only_port(service: &Service) -> anyhow::Result<u16> {
    let ports: Vec<u16> = service.ports.keys().copied().collect();
    match ports.as_slice() {
        [only] => Ok(*only),
        _ => {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            bail!(
                "service {} has the ports {}\nWrite one of them behind its name: {}:PORT",
                service.hostname,
                ports.join(", "),
                service.name
            )
        }
    }
}

/// An address of the family that is wanted, else any.
fn pick(addresses: impl Iterator<Item = IpAddr>, ipv6: bool) -> Option<IpAddr> {
    let addresses: Vec<IpAddr> = addresses.collect();
    addresses.iter().find(|address| address.is_ipv6() == ipv6).or(addresses.first()).copied()
}

fn headers(given: &[String]) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for text in given {
        let (name, value) = text.split_once(':').with_context(|| format!("{text:?} is not NAME: VALUE"))?;
        let name: HeaderName = name.trim().parse().with_context(|| format!("{name:?} is not a header's name"))?;
        let value = HeaderValue::from_str(value.trim()).with_context(|| format!("{value:?} is not a header's value"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_taken_apart() {
        let asked =
            |kind: &str, host: &str, port: Option<u16>, path: &str| Asked { kind: kind.into(), host: host.into(), port, path: path.into() };
        for (text, wanted) in [
            ("reviews", asked("", "reviews", None, "/")),
            ("reviews.shop:9080/a/b?c=d", asked("", "reviews.shop", Some(9080), "/a/b?c=d")),
            ("http://reviews/x", asked("", "reviews", None, "/x")),
            ("pod/reviews-v1:80", asked("pod", "reviews-v1", Some(80), "/")),
            ("10.0.0.1:80", asked("", "10.0.0.1", Some(80), "/")),
            ("[fd00::1]:80/x", asked("", "fd00::1", Some(80), "/x")),
            ("fd00::1", asked("", "fd00::1", None, "/")),
        ] {
            assert_eq!(Asked::read(text).unwrap(), wanted, "{text}");
        }
        for text in ["", ":80", "reviews:0", "reviews:http"] {
            assert!(Asked::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn headers_may_come_twice() {
        let map = headers(&["a: 1".to_owned(), "A:2".to_owned()]).unwrap();
        assert_eq!(map.get_all("a").iter().count(), 2);
        assert!(headers(&["a".to_owned()]).is_err() && headers(&["a b: c".to_owned()]).is_err());
    }
}
