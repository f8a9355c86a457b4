//! The stages of a connection, in running order; a stage's word is its file, its `Stage` and its field in logs.
//!
//! Each takes the value that the one before made. What a stage may fail with is an error of its own, which becomes a [`Failure`] here;
//! [`travel`] runs a journey through them and sees to it that it is reported, however it ends.

pub mod accept;
pub mod authorize;
pub mod connect;
pub mod identify;
pub mod relay;
pub mod report;
pub mod resolve;

use std::{pin::pin, time::Duration};

use tropis_model::{
    authorize::Denied,
    outcome::{Outcome, Reason, Side, Stage},
    policy::PolicyKey,
    resolve::ResolveError,
};
use tropis_net::{drain::DrainSignal, relay::StopReason};
use tropis_telemetry::chain;

use self::{accept::AcceptError, connect::ConnectError, identify::IdentifyError, report::Report};

/// Why a journey ended early.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Stage, reason and side.
    pub outcome: Outcome,
    /// The policies that decided.
    pub policies: Vec<PolicyKey>,
    /// What to log; `None` when an application ended it, which is no error of anybody's.
    pub error: Option<String>,
}

impl Failure {
    fn new(stage: Stage, (reason, side): (Reason, Side), error: &(dyn std::error::Error + 'static)) -> Self {
        Self { outcome: Outcome { stage, reason, side }, policies: Vec::new(), error: Some(chain(error)) }
    }

    /// The HTTP status that tells a tunnel's sender about it (Istio's: 401 denied, 400 malformed, 503 otherwise).
    pub fn status(&self) -> u16 {
        match self.outcome.reason {
            Reason::PolicyDenied | Reason::PolicyMissing => 401,
            Reason::BadRequest => 400,
            _ => 503,
        }
    }
}

impl From<AcceptError> for Failure {
    fn from(error: AcceptError) -> Self {
        Self::new(Stage::Accept, error.reason(), &error)
    }
}

impl From<IdentifyError> for Failure {
    fn from(error: IdentifyError) -> Self {
        Self::new(Stage::Identify, error.reason(), &error)
    }
}

impl From<ResolveError> for Failure {
    fn from(error: ResolveError) -> Self {
        Self::new(Stage::Resolve, error.reason(), &error)
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        let reason = match denied {
            Denied::ByPolicy(_) | Denied::ByNone(_) => (Reason::PolicyDenied, Side::Downstream),
            Denied::Missing(_) => (Reason::PolicyMissing, Side::Mesh),
        };
        Self { policies: denied.policies().to_vec(), ..Self::new(Stage::Authorize, reason, &denied) }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::new(Stage::Connect, error.reason(), &error)
    }
}

/// After the time to finish ran out: how long a journey may take to end by itself, so that it ends in order and with a reset.
const CUT_GRACE: Duration = Duration::from_millis(500);

/// Runs a journey until it ends, or its pod or the proxy is drained and the time to finish runs out. The report is written in any case.
pub async fn travel(mut report: Report, mut drain: DrainSignal, journey: impl AsyncFnOnce(&mut Report) -> Result<(), Failure>) {
    let control = report.control().clone();
    let result = {
        let mut running = pin!(journey(&mut report));
        tokio::select! {
            biased;
            result = &mut running => Some(result),
            () = drain.cut() => {
                control.stop(StopReason::Drained);
                tokio::time::timeout(CUT_GRACE, running).await.ok()
            }
        }
    };
    if let Some(result) = result {
        report.finish(result);
    }
}
