//! Authorize: whether a request or a connection may be, against the original caller. The decisions are `model::authorize::request`'s.
//!
//! Twice: for what is addressed, with the service's port ([`target`]), before anything else looks at the request; and for the endpoint
//! that was chosen and the service that it was chosen of, with their own ports ([`endpoint`]), again for each try and mirror. No endpoint is called without an [`EndpointPermit`].

use tropis_model::{
    authorize::request::{self, Endpoint, RequestDenied, RequestPermit, StreamFacts},
    request::RequestFacts,
    route::Host,
};

use super::{balance::Chosen, report::Report};
use crate::request::Journey;

/// The leave to look for an endpoint. Made only here.
#[derive(Debug, Clone, Copy)]
pub struct TargetPermit(());

/// The leave to call an endpoint. Made only here.
#[derive(Debug)]
#[must_use]
pub struct EndpointPermit(());

/// Decides about a request by what is attached to the host or to us.
pub fn target(journey: &Journey<'_>, report: &mut Report) -> Result<TargetPermit, RequestDenied> {
    let permit = request::target(&journey.host.policies, &journey.facts)?;
    note(&permit);
    report.permitted();
    Ok(TargetPermit(()))
}

/// Decides about a request by what selects the endpoint that was chosen for it.
pub fn endpoint(journey: &Journey<'_>, chosen: &Chosen, _target: TargetPermit) -> Result<EndpointPermit, RequestDenied> {
    let permit = request::endpoint(&journey.host.policies, &journey.facts, of(chosen))?;
    note(&permit);
    Ok(EndpointPermit(()))
}

/// Whether a request that was let in, and lasts, would be let in again.
pub fn is_still_allowed(host: &Host, facts: &RequestFacts<'_>, endpoint: Endpoint<'_>) -> bool {
    request::target(&host.policies, facts).is_ok() && request::endpoint(&host.policies, facts, endpoint).is_ok()
}

/// As [`target`], for a connection.
pub fn connection_target(host: &Host, facts: &StreamFacts<'_>) -> Result<TargetPermit, RequestDenied> {
    note(&request::connection_target(&host.policies, facts)?);
    Ok(TargetPermit(()))
}

/// As [`endpoint`], for a connection.
pub fn connection_endpoint(
    host: &Host,
    facts: &StreamFacts<'_>,
    endpoint: Endpoint<'_>,
    _target: TargetPermit,
) -> Result<EndpointPermit, RequestDenied> {
    note(&request::connection_endpoint(&host.policies, facts, endpoint)?);
    Ok(EndpointPermit(()))
}

/// What was chosen, as policies look at it.
pub fn of(chosen: &Chosen) -> Endpoint<'_> {
    Endpoint { pool: &chosen.current.state.key, workload: &chosen.workload, address: chosen.address }
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
