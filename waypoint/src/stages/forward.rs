//! Forward: a request is sent on, again if the route says so, and its response comes back.
//!
//! A try is balance → authorize (the endpoint) → connect → send ([`attempt`]); what it gave decides whether there is another
//! (`model::retry`). The route's time is for all tries together and for the response's body too ([`deadline`]).

pub mod attempt;
pub mod deadline;
mod framing;
pub(crate) mod head;
mod mirror;
mod upgrading;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, Response, header};
use thiserror::Error;
use tropis_model::{
    outcome::{Reason, Side},
    pool::Pool,
    retry::{self, Decision, GiveUp},
    route::Forward,
    workload::Workload,
};

use self::{
    attempt::{Attempt, Failed},
    deadline::Deadline,
    head::Outgoing,
};
pub use self::{framing::MalformedResponse, upgrading::Upgrading};
use super::{
    Failure,
    authorize::TargetPermit,
    balance::{self, BalanceError},
    report::{Report, flags::Flags},
    route::{Head, Routed},
};
use crate::{
    body::{Payload, Upload},
    request::{Answered, Journey},
    upstream::counts::{Held, Kind},
};

/// A request could not be forwarded, though an endpoint was reached.
#[derive(Debug, Clone, Error)]
pub enum ForwardError {
    /// The route's time ran out.
    #[error("no response within the route's timeout of {after:?}")]
    Timeout {
        /// The limit.
        after: Duration,
    },
    /// A try's time ran out.
    #[error("no response within the timeout of {after:?} for one try")]
    TryTimeout {
        /// The limit.
        after: Duration,
    },
    /// The endpoint reset the request, or closed the connection.
    #[error("the endpoint broke off before its response")]
    Reset {
        /// It closed the connection.
        closed: bool,
        /// What was seen.
        #[source]
        cause: Rc<hyper::Error>,
    },
    /// The endpoint's response is none.
    #[error("the endpoint's response is malformed")]
    Malformed(#[source] MalformedResponse),
    /// The caller broke off while it sent its body.
    #[error("the caller broke off while it sent its body")]
    Caller(#[source] Rc<hyper::Error>),
}

impl ForwardError {
    /// The stable reason and whose fault it is.
    pub fn reason(&self) -> (Reason, Side) {
        match self {
            Self::Timeout { .. } | Self::TryTimeout { .. } => (Reason::RequestTimeout, Side::Upstream),
            Self::Reset { .. } | Self::Malformed(_) => (Reason::UpstreamReset, Side::Upstream),
            Self::Caller(_) => (Reason::DownstreamReset, Side::Downstream),
        }
    }
}

/// What all tries of a request have in common.
pub struct Tries<'t> {
    /// The request.
    pub journey: &'t Journey<'t>,
    /// What the route says.
    pub forward: &'t Forward,
    /// The leave to look for endpoints.
    pub permit: TargetPermit,
    /// Its head.
    pub outgoing: Outgoing,
    /// Its body.
    pub upload: &'t Upload,
    /// The pool that was drawn.
    pub pool: &'t Arc<Pool>,
    /// It asks to change the protocol.
    pub upgrades: bool,
    /// The workload that we are.
    pub own: Option<Arc<Workload>>,
    /// The hash of its key.
    pub key: balance::Key,
    /// The endpoint of this try.
    pub trying: Cell<Option<u64>>,
    /// Those of the tries before it.
    pub tried: RefCell<Vec<u64>>,
}

/// Sends a request on, by the destination that was drawn.
pub async fn run(
    journey: &Journey<'_>,
    forward: &Forward,
    routed: &Routed,
    permit: TargetPermit,
    head: Head,
    upload: &Upload,
    report: &mut Report,
) -> Result<Answered, Failure> {
    let worker = &journey.entry.worker;
    let destination = routed.destination().ok_or(BalanceError::NoDestination)?;
    let pool = report.pool(balance::pool(journey.host, &destination.pool)?);
    if forward.retries.attempts == 0 && forward.mirrors.is_empty() {
        upload.keep_nothing();
    }
    let outgoing = Outgoing::new(journey, head);
    report.request_id(&outgoing);
    let timeout = deadline::of(forward.timeout, &journey.facts, report.is_grpc());
    let own = worker.own(journey.view);
    let key = worker.draw(|draw| balance::key(&pool, &journey.facts, draw));
    let upgrades = outgoing.wants_upgrade() && journey.upgrades.is_some();
    let (trying, tried) = (Cell::default(), RefCell::default());
    let tries = Tries { journey, forward, permit, outgoing, upload, pool: &pool, upgrades, own, key, trying, tried };
    let answered = match upgrades {
        true => Box::pin(upgrading::run(&tries, timeout, report)).await,
        false => tries.run(timeout, report).await.map(Answered::Response),
    };
    mirror::send(&tries);
    upload.keep_nothing();
    answered
}

impl Tries<'_> {
    async fn run(&self, timeout: Option<Duration>, report: &mut Report) -> Result<Response<Payload>, Failure> {
        let mut deadline = timeout.map(|limit| Deadline::new(limit, self.upload.handle()));
        let mut retries = 0;
        // A retry counts until the next one is decided about, or the request's head is answered.
        let mut retrying: Option<Held> = None;
        loop {
            let attempt = Attempt { tries: self, number: retries + 1 };
            let ended = attempt.run(deadline.as_mut(), report).await;
            let outcome = match &ended {
                Ok(received) => Some(received.outcome()),
                Err(Failed { outcome, .. }) => *outcome,
            };
            let decision =
                outcome.map(|outcome| retry::decide(&self.forward.retries, &outcome, retries, self.upload.is_replayable(), false));
            match decision {
                Some(Decision::Retry) => {
                    // Its place is free for the next one, which may be its own.
                    drop(retrying.take());
                    retrying = self.may_retry();
                    if retrying.is_none() {
                        return self.end(ended, deadline, report);
                    }
                }
                Some(Decision::GiveUp(GiveUp::Exhausted)) => {
                    report.flag(Flags::RETRIES_EXHAUSTED);
                    return self.end(ended, deadline, report);
                }
                Some(Decision::GiveUp(GiveUp::NotRetriable | GiveUp::NotReplayable | GiveUp::ResponseStarted)) | None => {
                    return self.end(ended, deadline, report);
                }
            }
            // What the try gave is of no use any more; its connection goes with it.
            drop(ended);
            retries += 1;
            self.tried.borrow_mut().extend(self.trying.take());
            let wait = self.journey.entry.worker.draw(|draw| retry::backoff(self.forward.retries.backoff, retries, draw));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                error = deadline::expired(deadline.as_mut()) => return Err(error.into()),
            }
        }
    }

    /// A place among the pool's retries. A retry that finds none is dropped without a flag.
    fn may_retry(&self) -> Option<Held> {
        let worker = &self.journey.entry.worker;
        let current = worker.shared.pools.current(self.journey.view, self.pool, self.own.as_deref());
        current.state.counts.take(Kind::Retry, &self.pool.limits).ok()
    }

    fn end(
        &self,
        ended: Result<attempt::Received, Failed>,
        deadline: Option<Deadline>,
        report: &mut Report,
    ) -> Result<Response<Payload>, Failure> {
        let received = ended.map_err(|failed| *failed.failure)?;
        report.forwarded(received.took);
        let mut response = received.into_response(deadline);
        if let Some(cookie) = self.key.set_cookie.as_deref().and_then(|cookie| HeaderValue::from_str(cookie).ok()) {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        Ok(response)
    }
}
