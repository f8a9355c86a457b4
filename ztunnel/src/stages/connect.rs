//! Connect: opens the upstream. Outbound, a tunnel or a plain connection, on another endpoint when one refuses; inbound, the
//! application.
//!
//! Every socket is made in the pod's namespace and marked as ours before it connects. No byte of the application is sent here, so
//! trying again is always safe.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use thiserror::Error;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, lookup_host},
};
use tropis_hbone::{
    client::{TunnelError, TunnelKey, TunnelRequest},
    headers::{Forwarded, TunnelHeaders, baggage_of},
    stream::TunnelStream,
};
use tropis_model::{
    identity::Identity,
    outcome::{Reason, Side},
    resolve::{Authority, Hop, Plan, Target},
    view::View,
    workload::Workload,
};
use tropis_net::dial::{self, DialError, DialFrom, DialOptions};

use super::{accept::Accepted, authorize::LivePermit, report::Report, resolve};
use crate::{app::Shared, config::Capture, node::Pod, worker::Node};

/// Endpoints that are tried for one connection.
const ATTEMPTS: usize = 3;

/// The other side of an outbound connection.
pub enum Upstream {
    /// Plain TCP.
    Direct(TcpStream),
    /// A stream of a tunnel connection.
    Tunnel(Box<TunnelStream>),
}

/// Who calls, and what it was decided on.
pub struct Call<'a> {
    /// The worker.
    pub node: &'a Node,
    /// The view that decided.
    pub view: &'a View,
    /// The pod that opened the connection.
    pub caller: &'a Workload,
    /// The connection.
    pub accepted: &'a Accepted,
}

/// The upstream could not be opened.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Plain TCP failed.
    #[error("the upstream cannot be reached")]
    Dial(#[source] DialError),
    /// No tunnel.
    #[error("no tunnel")]
    Tunnel(#[source] TunnelError),
    /// The workload is known by a name that does not resolve.
    #[error("{hostname} does not resolve to an address")]
    Lookup {
        /// The name.
        hostname: Arc<str>,
        /// Why, if anything failed.
        #[source]
        cause: Option<io::Error>,
    },
    /// It is on another network.
    #[error("network {network:?} can be reached through a tunnel in a tunnel only, which this proxy does not open")]
    OtherNetwork {
        /// The network.
        network: Arc<str>,
    },
    /// The application does not take the header that should precede the bytes.
    #[error("the application closed the connection before it began")]
    ProxyHeader(#[source] io::Error),
    /// Whoever asked has given up.
    #[error("the peer gave up before the application was reached")]
    Abandoned,
}

impl ConnectError {
    /// The stable reason and whose fault it is.
    pub fn reason(&self) -> (Reason, Side) {
        match self {
            Self::Dial(error) => (error.reason(), Side::Upstream),
            Self::Tunnel(error) => (error.reason(), error.side()),
            Self::Lookup { .. } | Self::ProxyHeader(_) => (Reason::ConnectFailed, Side::Upstream),
            Self::OtherNetwork { .. } => (Reason::NoGateway, Side::Mesh),
            Self::Abandoned => (Reason::DownstreamReset, Side::Downstream),
        }
    }

    fn may_try_elsewhere(&self) -> bool {
        match self {
            Self::Dial(_) | Self::Lookup { .. } => true,
            Self::Tunnel(error) => error.may_try_elsewhere(),
            Self::OtherNetwork { .. } | Self::ProxyHeader(_) | Self::Abandoned => false,
        }
    }
}

/// Opens what `plan` says, or what another plan says for an endpoint that was not tried yet. The permit is the leave to do so.
pub async fn open(call: &Call<'_>, plan: Plan, _permit: &LivePermit, report: &mut Report) -> Result<Upstream, ConnectError> {
    let mut plan = plan;
    let mut failed = Vec::new();
    loop {
        let error = match attempt(call, &plan, report).await {
            Ok(upstream) => {
                if let Some(workload) = plan.next() {
                    call.node.ejected.forgive(&workload.uid);
                }
                return Ok(upstream);
            }
            Err(error) => error,
        };
        let Some(workload) = plan.next().filter(|_| error.may_try_elsewhere()) else { return Err(error) };
        tracing::debug!(workload = %workload.uid, error = tropis_telemetry::chain(&error), "endpoint failed");
        call.node.ejected.add(workload.uid.clone());
        failed.push(workload.uid.clone());
        let destination = call.accepted.original_destination;
        let other = resolve::outbound(call.node, call.view, call.caller, destination, &failed).ok();
        let untried = |plan: &Plan| plan.next().is_some_and(|next| !failed.contains(&next.uid));
        let Some(other) = other.filter(untried).filter(|_| failed.len() < ATTEMPTS) else { return Err(error) };
        plan = report.plan(other);
        report.permitted();
    }
}

async fn attempt(call: &Call<'_>, plan: &Plan, report: &mut Report) -> Result<Upstream, ConnectError> {
    match plan {
        Plan::Direct { to } => direct(call, to).await.map(Upstream::Direct),
        Plan::Tunnel { via, target, .. } => tunnel(call, via, target, report).await.map(|stream| Upstream::Tunnel(Box::new(stream))),
        Plan::Nested { gateway, target, .. } => {
            let end = target.workload.as_ref().unwrap_or(&gateway.workload);
            Err(ConnectError::OtherNetwork { network: end.network.clone() })
        }
    }
}

async fn direct(call: &Call<'_>, to: &Target) -> Result<TcpStream, ConnectError> {
    let shared = &call.node.shared;
    let address = match &to.authority {
        Authority::Address(address) => *address,
        Authority::Hostname { hostname, port } => look_up(hostname, *port, call.accepted.original_destination.0.ip()).await?,
    };
    let options = DialOptions { keepalive: shared.config.keepalive, mark: shared.config.capture.mark(), ..DialOptions::default() };
    let namespace = call.accepted.pod.namespace.as_ref();
    let dialled = dial::connect(namespace, DialFrom::Any, address, &options, |socket| shared.capture.mark_own(socket));
    dialled.await.map_err(ConnectError::Dial)
}

/// An address of a workload that is known by name only: one like the application dialled, if there is one.
async fn look_up(hostname: &Arc<str>, port: u16, like: IpAddr) -> Result<SocketAddr, ConnectError> {
    let failed = |cause| ConnectError::Lookup { hostname: hostname.clone(), cause };
    let found: Vec<_> = lookup_host((&**hostname, port)).await.map_err(|cause| failed(Some(cause)))?.collect();
    let same_family = found.iter().find(|found| found.is_ipv4() == like.is_ipv4());
    same_family.or(found.first()).copied().ok_or_else(|| failed(None))
}

async fn tunnel(call: &Call<'_>, via: &Hop, target: &Target, report: &mut Report) -> Result<TunnelStream, ConnectError> {
    let node = call.node;
    let mut expected = via.expected.clone();
    expected.sort();
    let key = TunnelKey {
        source: call.caller.uid.clone(),
        source_identity: call.caller.identity.clone(),
        destination: via.workload.uid.clone(),
        address: via.address,
        network: via.workload.network.clone(),
        expected: expected.into(),
    };
    let traceparent = traceparent();
    report.trace(&traceparent);
    let host = target.service.as_ref().map(|service| service.hostname.hostname.to_string());
    let headers = TunnelHeaders {
        forwarded: Some(Forwarded { source: Some(call.accepted.downstream.0), host }),
        baggage: Some(baggage_of(call.caller)),
        traceparent: Some(traceparent),
    };
    let request = TunnelRequest { authority: target.authority.clone(), headers };
    let (shared, pod, address) = (node.shared.clone(), call.accepted.pod.clone(), via.address);
    let opened = node.pool.open(&key, &request, async move || dial_tunnel(&shared, &pod, address).await).await;
    match opened {
        Ok(opened) => {
            report.proved(opened.peer);
            Ok(opened.stream)
        }
        Err(error) => {
            if let Some(peer) = error.peer() {
                report.proved(peer.clone());
            }
            Err(ConnectError::Tunnel(error))
        }
    }
}

/// The connection that tunnels share: from the pod, with its address. HTTP/2 PING keeps it alive.
async fn dial_tunnel(shared: &Shared, pod: &Pod, address: SocketAddr) -> Result<TcpStream, DialError> {
    let options = DialOptions { keepalive: None, mark: shared.config.capture.mark(), ..DialOptions::default() };
    dial::connect(pod.namespace.as_ref(), DialFrom::Any, address, &options, |socket| shared.capture.mark_own(socket)).await
}

/// A new `traceparent` (W3C Trace Context), not sampled.
fn traceparent() -> String {
    format!("00-{:032x}-{:016x}-00", rand::random::<u128>(), rand::random::<u64>())
}

/// The application that an inbound connection is for.
pub struct Application<'a> {
    /// Its pod.
    pub pod: &'a Pod,
    /// Its address.
    pub to: SocketAddr,
    /// The client that it is to see.
    pub client: SocketAddr,
    /// Whether the client's address can be bound, where netfilter captures.
    pub transparent: bool,
    /// What precedes the bytes.
    pub proxy_header: Option<ProxyHeader>,
}

/// A PROXY protocol header.
pub struct ProxyHeader {
    /// What the client asked for.
    pub destination: SocketAddr,
    /// Who it is.
    pub identity: Option<Identity>,
}

/// Connects to the application. It sees the true client: our hooks show it, or its address is bound where netfilter captures.
pub async fn application(shared: &Shared, application: &Application<'_>, _permit: &LivePermit) -> Result<TcpStream, ConnectError> {
    let options = DialOptions { keepalive: shared.config.keepalive, mark: shared.config.capture.mark(), ..DialOptions::default() };
    let (to, from) = match (&application.proxy_header, &shared.config.capture) {
        // What takes the header reads the client from it, and listens where only the pod itself reaches it.
        (Some(_), _) => (SocketAddr::new(loopback(application.to), application.to.port()), DialFrom::Any),
        (None, Capture::Netfilter { .. }) if application.transparent => (application.to, DialFrom::Original(application.client.ip())),
        (None, Capture::Netfilter { .. } | Capture::Hooks { .. }) => (application.to, DialFrom::Any),
    };
    let namespace = application.pod.namespace.as_ref();
    let dialled = dial::connect(namespace, from, to, &options, |socket| match &application.proxy_header {
        Some(_) => shared.capture.mark_own(socket),
        None => shared.capture.show_peer(socket, application.client),
    });
    let mut stream = dialled.await.map_err(ConnectError::Dial)?;
    if let Some(header) = &application.proxy_header {
        stream.write_all(&proxy_header(application.client, header)).await.map_err(ConnectError::ProxyHeader)?;
    }
    Ok(stream)
}

fn loopback(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

/// TLV type of the client's identity.
const IDENTITY_TLV: u8 = 0xd0;

/// A header of the PROXY protocol, version 2: command PROXY, TCP, both addresses, the client's identity.
fn proxy_header(client: SocketAddr, header: &ProxyHeader) -> Vec<u8> {
    let mut body = Vec::with_capacity(128);
    let family = match (client.ip(), header.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            body.extend_from_slice(&source.octets());
            body.extend_from_slice(&destination.octets());
            0x11
        }
        (source, destination) => {
            for address in [source, destination] {
                let address = match address {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                body.extend_from_slice(&address.octets());
            }
            0x21
        }
    };
    body.extend_from_slice(&client.port().to_be_bytes());
    body.extend_from_slice(&header.destination.port().to_be_bytes());
    if let Some(identity) = &header.identity {
        let text = identity.to_string();
        if let Ok(length) = u16::try_from(text.len()) {
            body.push(IDENTITY_TLV);
            body.extend_from_slice(&length.to_be_bytes());
            body.extend_from_slice(text.as_bytes());
        }
    }
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend_from_slice(&[0x21, family]);
    bytes.extend_from_slice(&u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_header_is_version_2() {
        let header = ProxyHeader { destination: "10.0.0.2:80".parse().unwrap(), identity: Some(Identity::new("td", "a", "b")) };
        let bytes = proxy_header("10.0.0.1:4000".parse().unwrap(), &header);
        assert_eq!(&bytes[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x24");
        assert_eq!(&bytes[16..28], &[10, 0, 0, 1, 10, 0, 0, 2, 0x0f, 0xa0, 0, 80]);
        assert_eq!(&bytes[28..31], &[0xd0, 0, 21]);
        assert_eq!(&bytes[31..], b"spiffe://td/ns/a/sa/b");
    }

    #[test]
    fn proxy_header_of_mixed_families_is_ipv6() {
        let header = ProxyHeader { destination: "[fd00::2]:80".parse().unwrap(), identity: None };
        let bytes = proxy_header("10.0.0.1:4000".parse().unwrap(), &header);
        assert_eq!(&bytes[12..16], &[0x21, 0x21, 0, 36]);
        assert_eq!(&bytes[16..32], &"::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets());
    }

    #[test]
    fn a_trace_has_the_right_shape() {
        assert_eq!(traceparent().len(), 55);
    }
}
