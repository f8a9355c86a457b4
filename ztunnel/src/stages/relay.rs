//! Relay: bytes move until both directions have ended. The loop is `net::relay`'s; here its end becomes an outcome.

use tropis_model::outcome::{Outcome, Reason, Stage};
use tropis_net::relay::{RelayEnd, RelayOptions, RelayStream, relay};

use super::{Failure, authorize::LivePermit, report::Report};

/// Relays between the two sides for as long as the permit holds.
pub async fn run<D: RelayStream, U: RelayStream>(
    downstream: D,
    upstream: U,
    permit: LivePermit,
    report: &mut Report,
) -> Result<(), Failure> {
    report.relaying();
    let options = RelayOptions { control: report.control().clone() };
    let outcome = relay(downstream, upstream, &options).await;
    drop(permit);
    let (reason, side) = (outcome.end.reason(), outcome.end.side());
    let error = match &outcome.end {
        RelayEnd::Completed => return Ok(()),
        // An application may end its connection so; it is in `reason`, and nothing failed.
        RelayEnd::DownstreamReset(_) | RelayEnd::UpstreamReset(_) => None,
        RelayEnd::Stopped(_) => Some(reason.meaning().to_owned()),
    };
    // What revoked it is found where it was revoked.
    let policies = if reason == Reason::PermitRevoked { report.revoked_by() } else { Vec::new() };
    Err(Failure { outcome: Outcome { stage: Stage::Relay, reason, side }, policies, error })
}
