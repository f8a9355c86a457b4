//! The journey of a plain connection that was opened to a pod on this node, from outside the mesh.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use tokio::net::TcpStream;
use tropis_telemetry::access::Direction;

use crate::{
    node::Pod,
    stages::{
        Failure,
        accept::{self, Accepted},
        authorize,
        connect::{self, Application},
        identify, relay,
        report::Report,
        resolve, travel,
    },
    worker::Node,
};

/// Serves a plain connection that was captured on its way into `pod`; `transparent` says whether its caller's address can be bound.
pub async fn serve(node: Rc<Node>, pod: Arc<Pod>, transparent: bool, stream: TcpStream, from: SocketAddr) {
    let report = Report::new(&node, &pod, Direction::Inbound, from);
    travel(report, pod.drain_signal(), async |report| {
        let accepted = accept::passthrough(&pod, &node.shared.config.capture, stream, from)?;
        passthrough(&node, transparent, report.accepted(accepted), report).await
    })
    .await;
}

/// The journey itself. Nobody proved anything, so policy sees a caller without identity.
async fn passthrough(node: &Node, transparent: bool, accepted: Accepted, report: &mut Report) -> Result<(), Failure> {
    let view = report.view(node.view_covering(&accepted.pod).await); // may wait for the control plane, bounded in time
    let callee = report.callee(identify::local(&node.shared, &view, &accepted.pod)?, &view);
    let arrival = report.arrival(resolve::passthrough(&view, &callee, accepted.original_destination)?);
    let permit = authorize::inbound(node, &view, &callee, None, arrival.to, report)?;
    report.permitted();
    let application = Application { pod: &accepted.pod, to: arrival.to, client: accepted.downstream.0, transparent, proxy_header: None };
    let upstream = connect::application(&node.shared, &application, &permit).await?;
    relay::run(accepted.stream.into_inner(), upstream, permit, report).await
}
