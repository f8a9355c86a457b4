//! The journey of a connection that arrives in a tunnel for a pod on this node.
//!
//! A tunnel connection is accepted once: TLS proves both ends. Each tunnel on it then makes a journey of its own.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use http::StatusCode;
use tokio::{net::TcpStream, task::spawn_local};
use tropis_hbone::{
    headers::{Forwarded, baggage_of},
    server::{IncomingTunnel, Session, SessionEnd},
};
use tropis_model::{address::canonical, resolve::Authority, service::Service, workload::Workload};
use tropis_telemetry::access::Direction;

use crate::{
    node::{ConnectionSlot, Pod},
    stages::{
        Failure, accept,
        authorize::{self, LivePermit},
        connect::{self, Application, ConnectError, ProxyHeader},
        identify, relay,
        report::Report,
        resolve, travel,
    },
    worker::Node,
};

/// Serves a tunnel connection to `pod`, and every tunnel on it; `transparent` says whether a caller's address can be bound.
pub async fn serve(node: Rc<Node>, pod: Arc<Pod>, transparent: bool, stream: TcpStream, from: SocketAddr) {
    let mut drain = pod.drain_signal();
    let mut report = Report::new(&node, &pod, Direction::Inbound, from);
    let session = tokio::select! {
        session = session(&node, &pod, stream, &mut report) => session,
        () = drain.cut() => return report.discard(),
    };
    let (session, _place) = match session {
        // Each tunnel has a line of its own.
        Ok(session) => {
            report.discard();
            session
        }
        // No tunnel was asked for, so this is all there is to report.
        Err(failure) => return report.finish(Err(failure)),
    };
    tracing::debug!(pod = %pod, peer = %session.peer(), remote = %session.remote(), "tunnel connection open");
    let remote = session.remote();
    let end = session.serve(drain, {
        let (node, pod) = (node.clone(), pod.clone());
        move |tunnel| drop(spawn_local(serve_tunnel(node.clone(), pod.clone(), transparent, tunnel)))
    });
    match end.await {
        SessionEnd::Closed | SessionEnd::Cut | SessionEnd::Unused => tracing::debug!(pod = %pod, %remote, "tunnel connection closed"),
        SessionEnd::Flooded(excess) => tracing::warn!(pod = %pod, %remote, error = %excess, "a tunnel connection was ended"),
        end @ (SessionEnd::Dead | SessionEnd::Broken(_) | SessionEnd::Lost(_)) => {
            tracing::debug!(pod = %pod, %remote, ?end, "tunnel connection broke");
        }
    }
}

/// Who is called, and who calls: the part of the journey that all tunnels of a connection share.
async fn session(node: &Node, pod: &Arc<Pod>, stream: TcpStream, report: &mut Report) -> Result<(Session, ConnectionSlot), Failure> {
    report.dialled(stream.local_addr().ok().map(canonical));
    let place = accept::place(pod)?;
    let view = report.view(node.view_covering(pod).await); // may wait for the control plane, bounded in time
    let callee = report.callee(identify::local(&node.shared, &view, pod)?, &view);
    Ok((identify::peer(&node.shared, &callee, stream).await?, place))
}

async fn serve_tunnel(node: Rc<Node>, pod: Arc<Pod>, transparent: bool, mut tunnel: IncomingTunnel) {
    let client = shown_client(tunnel.remote(), tunnel.headers().forwarded.as_ref());
    let report = Report::new(&node, &pod, Direction::Inbound, client);
    travel(report, pod.drain_signal(), async |report| {
        let arrived = Arrived { pod: &pod, transparent, client };
        match inbound(&node, &arrived, &mut tunnel, report).await {
            Ok(Reached { upstream, permit, callee, _place }) => {
                let baggage = node.shared.config.response_baggage.then(|| baggage_of(&callee));
                let stream = tunnel.accept(baggage.as_deref()).map_err(|_| ConnectError::Abandoned)?;
                relay::run(stream, upstream, permit, report).await
            }
            Err(failure) => {
                tunnel.refuse(StatusCode::from_u16(failure.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE));
                Err(failure)
            }
        }
    })
    .await;
}

/// A tunnel as it arrived.
struct Arrived<'a> {
    pod: &'a Arc<Pod>,
    transparent: bool,
    client: SocketAddr,
}

/// What it takes to relay.
struct Reached {
    upstream: TcpStream,
    permit: LivePermit,
    callee: Arc<Workload>,
    _place: ConnectionSlot,
}

/// The journey itself, up to where the tunnel is answered: 200 is said only when the application has been reached.
async fn inbound(node: &Node, arrived: &Arrived<'_>, tunnel: &mut IncomingTunnel, report: &mut Report) -> Result<Reached, Failure> {
    let place = accept::place(arrived.pod)?;
    report.tunnelled(tunnel, arrived.client);
    let view = report.view(node.view_covering(arrived.pod).await);
    let callee = report.callee(identify::local(&node.shared, &view, arrived.pod)?, &view);
    let named = tunnel.headers().forwarded.as_ref().and_then(|forwarded| forwarded.host.as_deref());
    let arrival = report.arrival(resolve::inbound(&view, &callee, tunnel.local().ip(), tunnel.authority(), named)?);
    let permit = authorize::inbound(node, &view, &callee, Some(tunnel.peer()), arrival.to, report)?;
    report.permitted();
    let proxy_header = arrival.proxy_header.then(|| ProxyHeader {
        destination: asked_for(tunnel.authority(), arrival.service.as_deref(), arrival.to),
        identity: Some(tunnel.peer().clone()),
    });
    let (pod, transparent, client) = (arrived.pod, arrived.transparent, arrived.client);
    let application = Application { pod, to: arrival.to, client, transparent, proxy_header };
    let upstream = tokio::select! {
        connected = connect::application(&node.shared, &application, &permit) => connected?,
        () = tunnel.abandoned() => return Err(ConnectError::Abandoned.into()),
    };
    Ok(Reached { upstream, permit, callee, _place: place })
}

/// The client that the application is shown: the address and port that the caller's proxy names, if the address is that of the
/// tunnel's own peer (so it can lie about no more than its port); else the tunnel's peer.
fn shown_client(peer: SocketAddr, forwarded: Option<&Forwarded>) -> SocketAddr {
    let named = forwarded.and_then(|forwarded| forwarded.source).map(canonical);
    named.filter(|named| named.ip() == peer.ip()).unwrap_or(peer)
}

/// What the caller asked for, as an address: for a name, an address of the service that it means, like the application's if it can be.
fn asked_for(authority: &Authority, service: Option<&Service>, application: SocketAddr) -> SocketAddr {
    match authority {
        Authority::Address(address) => *address,
        Authority::Hostname { port, .. } => {
            let addresses = || service.into_iter().flat_map(|service| service.addresses.iter().map(|own| own.block.addr()));
            let same_family = addresses().find(|address| address.is_ipv4() == application.is_ipv4());
            let address = same_family.or_else(|| addresses().next()).unwrap_or(application.ip());
            SocketAddr::new(address, *port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_cannot_lie_about_its_address() {
        let peer: SocketAddr = "10.0.0.1:5000".parse().unwrap();
        let client = |source: &str| shown_client(peer, Some(&Forwarded { source: source.parse().ok(), host: None })).to_string();
        assert_eq!(client("10.0.0.1:4000"), "10.0.0.1:4000");
        assert_eq!(client("[::ffff:10.0.0.1]:4000"), "10.0.0.1:4000");
        assert_eq!(client("10.9.9.9:4000"), "10.0.0.1:5000");
        assert_eq!(client("unknown"), "10.0.0.1:5000");
        assert_eq!(shown_client(peer, None), peer);
    }
}
