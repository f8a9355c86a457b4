//! Authorize: whether a connection may be. The decision is `model::authorize`'s; here it is kept true while the connection lives.
//!
//! A permit enters the worker's table before it is used. Every change of the view that touches policies or the workload decides it
//! again; one that no longer holds stops its relay ([`crate::connections`]).

use std::{net::SocketAddr, sync::Arc};

use tropis_model::{
    authorize::{self, ConnectionFacts, Denied, Permit},
    identity::Identity,
    resolve::Plan,
    view::View,
    workload::Workload,
};

use crate::{
    connections::{Entry, Registered},
    stages::report::Report,
    worker::Node,
};

/// A permit that is revoked when policy changes. Keep it as long as the connection.
#[derive(Debug)]
pub struct LivePermit {
    _permit: Permit,
    _registered: Registered,
}

/// The leave for a connection that a local pod opened: policy is the destination's business, so this holds whatever comes.
pub fn outbound(node: &Node, plan: &Plan, report: &Report) -> LivePermit {
    let permit = authorize::outbound(plan);
    let registered = node.connections.register(Entry::new(report, permit.clone(), None, node.shared.view.policy_version()));
    LivePermit { _permit: permit, _registered: registered }
}

/// Decides about a connection to `callee`; `peer` is the identity that its caller proved, `None` for plain traffic.
pub fn inbound(
    node: &Node,
    view: &View,
    callee: &Arc<Workload>,
    peer: Option<&Identity>,
    destination: SocketAddr,
    report: &Report,
) -> Result<LivePermit, Denied> {
    let source = report.source_address().ip();
    let facts = ConnectionFacts { peer: peer.cloned(), source, destination };
    let permit = authorize::inbound(view, callee, &facts)?;
    if let Some(denied) = permit.dry_run_denial() {
        tracing::debug!(%source, %destination, denial = %denied, "a dry-run policy would have denied this");
    }
    let registered = node.connections.register(Entry::new(report, permit.clone(), Some(callee.clone()), node.shared.view.policy_version()));
    // The view may have changed since `view` was read; from here on the table hears of every change.
    permit.check(&node.shared.view.load())?;
    Ok(LivePermit { _permit: permit, _registered: registered })
}
