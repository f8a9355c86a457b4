//! The journey of a connection that a pod on this node opened.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use tokio::net::TcpStream;
use tropis_telemetry::access::Direction;

use crate::{
    node::Pod,
    stages::{
        Failure,
        accept::{self, Accepted},
        authorize,
        connect::{self, Call, Upstream},
        identify, relay,
        report::Report,
        resolve, travel,
    },
    worker::Node,
};

/// Serves a connection that was captured on its way out of `pod`.
pub async fn serve(node: Rc<Node>, pod: Arc<Pod>, stream: TcpStream, from: SocketAddr) {
    let report = Report::new(&node, &pod, Direction::Outbound, from);
    travel(report, pod.drain_signal(), async |report| {
        let accepted = accept::outbound(&pod, stream, from)?;
        outbound(&node, report.accepted(accepted), report).await
    })
    .await;
}

/// The journey itself. `report` is written when it drops, however this ends.
async fn outbound(node: &Node, accepted: Accepted, report: &mut Report) -> Result<(), Failure> {
    let view = report.view(node.view_covering(&accepted.pod).await); // may wait for the control plane, bounded in time
    let caller = report.caller(identify::local(&node.shared, &view, &accepted.pod)?);
    let plan = report.plan(resolve::outbound(node, &view, &caller, accepted.original_destination, &[])?);
    let permit = authorize::outbound(node, &plan, report);
    report.permitted();
    let call = Call { node, view: &view, caller: &caller, accepted: &accepted };
    let upstream = connect::open(&call, plan, &permit, report).await?;
    let downstream = accepted.stream.into_inner();
    match upstream {
        Upstream::Direct(stream) => relay::run(downstream, stream, permit, report).await,
        Upstream::Tunnel(stream) => relay::run(downstream, *stream, permit, report).await,
    }
}
