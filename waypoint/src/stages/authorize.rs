//! Authorize: whether a request or a connection may be, against the original caller. The decisions are `model::authorize::request`'s.
//!
//! Twice: for what is addressed, with the service's port ([`target`]), before anything else looks at the request; and for the endpoint
//! that was chosen, with its own port ([`endpoint`]), again for each try and mirror. With the endpoint the policies of the service that it
//! was chosen of are asked, where a route brings the request there: about what is sent on. No endpoint is called without an
//! [`EndpointPermit`].

use std::sync::Arc;

use tropis_model::{
    authorize::request::{self, Endpoint, RequestDenied, RequestPermit, StreamFacts},
    pick::PickFailure,
    pool::PoolKey,
    request::RequestFacts,
    request_policy::RequestPolicy,
    route::Host,
    view::View,
};

use super::{
    Failure,
    balance::{BalanceError, Chosen},
    forward::head::Outgoing,
    report::Report,
    route::RouteError,
};
use crate::request::Journey;

/// The leave to look for an endpoint. Made only here.
#[derive(Debug, Clone, Copy)]
pub struct TargetPermit(());

/// The leave to call an endpoint. Made only here.
#[derive(Debug)]
#[must_use]
pub struct EndpointPermit(());

/// Where a request or a connection is to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Way<'a> {
    /// What is addressed.
    pub host: &'a Host,
    /// The pool.
    pub pool: &'a PoolKey,
    /// The host of the pool's service, if that goes through us.
    pub there: Option<&'a Arc<Host>>,
    /// The endpoint.
    pub endpoint: Endpoint<'a>,
}

impl<'a> Way<'a> {
    /// The way to what was chosen, with what its service had attached when it was found.
    pub fn to(chosen: &'a Chosen, host: &'a Host) -> Self {
        let endpoint = Endpoint { workload: &chosen.workload, address: chosen.address };
        Self { host, pool: &chosen.current.state.key, there: chosen.current.ready.host.as_ref(), endpoint }
    }

    /// The policies to ask about what a route brings to another service.
    fn brought_to(&self) -> Option<&'a [Arc<RequestPolicy>]> {
        let there = self.there.filter(|there| there.name != self.host.name)?;
        request::judges_brought(&there.policies).then_some(&there.policies)
    }

    fn decide(&self, facts: &RequestFacts<'_>, outgoing: &Outgoing) -> Result<(), Failure> {
        if let Some(policies) = self.brought_to() {
            let sent = outgoing.sent(facts, self.pool.port).map_err(RouteError::Rewrite)?;
            note(&request::brought(policies, &sent.facts(facts))?);
        }
        note(&request::endpoint(&self.host.policies, facts, self.endpoint)?);
        Ok(())
    }
}

/// Decides about a request by what is attached to the host or to us.
pub fn target(journey: &Journey<'_>, report: &mut Report) -> Result<TargetPermit, RequestDenied> {
    let permit = request::target(&journey.host.policies, &journey.facts)?;
    note(&permit);
    report.permitted();
    Ok(TargetPermit(()))
}

/// Decides about a request that goes out as `outgoing`, by what selects the endpoint that was chosen for it, and by what is attached to the
/// service to which its route brings it. An error is a denial, that what is sent has no single meaning, or that nothing is known of the
/// endpoint by which to decide.
///
/// After a delay or another try there may be a newer configuration, and the endpoint known by labels that only that one's policies select by:
/// then it decides about all of the request again. Where it knows no more what is addressed or the endpoint, the one that the request came by
/// decides, by what it knew of both; an endpoint that it did not know is not gone to. Nobody is asked by the one about the labels of the other.
pub fn endpoint(journey: &Journey<'_>, outgoing: &Outgoing, chosen: &Chosen, _target: TargetPermit) -> Result<EndpointPermit, Failure> {
    let (way, present) = (Way::to(chosen, journey.host), journey.entry.worker.shared.view.load());
    if present.version() == journey.view.version() {
        way.decide(&journey.facts, outgoing)?;
        return Ok(EndpointPermit(()));
    }
    let (pool, uid) = (way.pool, &chosen.workload.uid);
    // A service that went to another waypoint meanwhile has its last policies, as long as it is gone to from here.
    let in_view = |view, host, workload| {
        let there = View::host(view, &pool.host).or(way.there);
        Way { host, there, endpoint: Endpoint { workload, ..way.endpoint }, ..way }.decide(&journey.facts, outgoing)
    };
    match (journey.entry.host(&present), present.workload(uid)) {
        (Ok(host), Some(workload)) => {
            note(&request::target(&host.policies, &journey.facts)?);
            in_view(&present, &host, workload)?;
        }
        _ => {
            let known = journey.view.workload(uid).ok_or(BalanceError::NoEndpoint(PickFailure::NoHealthyUpstream))?;
            in_view(journey.view, journey.host, known)?;
        }
    }
    Ok(EndpointPermit(()))
}

/// Whether a request that was let in, and lasts, would be let in again.
pub fn is_still_allowed(way: &Way<'_>, facts: &RequestFacts<'_>, outgoing: &Outgoing) -> bool {
    request::target(&way.host.policies, facts).is_ok() && way.decide(facts, outgoing).is_ok()
}

/// As [`target`], for a connection.
pub fn connection_target(host: &Host, facts: &StreamFacts<'_>) -> Result<TargetPermit, RequestDenied> {
    note(&request::connection_target(&host.policies, facts)?);
    Ok(TargetPermit(()))
}

/// As [`endpoint`], for a connection.
pub fn connection_endpoint(way: &Way<'_>, facts: &StreamFacts<'_>, _target: TargetPermit) -> Result<EndpointPermit, RequestDenied> {
    if let Some(policies) = way.brought_to() {
        note(&request::connection_brought(policies, facts, way.pool.port)?);
    }
    note(&request::connection_endpoint(&way.host.policies, facts, way.endpoint)?);
    Ok(EndpointPermit(()))
}

/// What is only to be logged.
fn note(permit: &RequestPermit) {
    if let Some(denied) = permit.dry_run_denial() {
        tracing::debug!(denial = %denied, "a dry-run policy would have denied this");
    }
    for policy in permit.audited() {
        tracing::info!(target: "audit", policy = %policy, "an AUDIT policy matched");
    }
}
