//! A request that asks to change the protocol: it gets a connection to the endpoint for itself, and one try.

use http::{Response, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::{rc::Rc, time::Duration};
use tokio::{sync::oneshot, task::spawn_local};
use tropis_model::outlier;

use super::{ForwardError, Tries, attempt, deadline, deadline::Deadline, framing, head};
use crate::{
    body::{Payload, download::Relayed},
    request::Answered,
    stages::{
        Failure, authorize,
        balance::{self, BalanceError, Chosen, Wish},
        connect::ConnectError,
        report::Report,
    },
    stream::Stream,
    upgrade::{Asked, Upgrade},
    upstream::{
        connections::{AcquireError, Connections},
        counts::{Held, Kind},
        pools::Active,
    },
};

/// An endpoint that agreed to change the protocol.
pub struct Upgrading {
    upstream: oneshot::Receiver<Stream>,
    asked: Box<Asked>,
    held: (Held, Held, Active),
}

impl Upgrading {
    /// With the report of its request, this is what the caller's connection goes on with.
    pub fn with(self, report: Box<Report>) -> Upgrade {
        Upgrade { upstream: self.upstream, asked: self.asked, report, held: self.held }
    }
}

/// Sends the request; 101 hands the connection over, anything else is an ordinary answer.
pub(super) async fn run(tries: &Tries<'_>, timeout: Option<Duration>, report: &mut Report) -> Result<Answered, Failure> {
    let journey = tries.journey;
    let worker = &journey.entry.worker;
    let current = worker.shared.pools.current(journey.view, tries.pool, tries.own.as_deref());
    let wish = Wish { hash: tries.key.hash, addressed: attempt::addressed(journey), ..Wish::default() };
    let chosen = balance::choose(worker, current, &wish)?;
    let permit = authorize::endpoint(journey, &chosen, tries.permit)?;
    report.chosen(&chosen, 1);
    let mut deadline = timeout.map(|limit| Deadline::new(limit, tries.upload.handle()));
    let answered = tokio::select! {
        biased;
        answered = exchange(tries, &chosen, permit, report) => answered,
        error = deadline::expired(deadline.as_mut()) => Err((error.into(), outlier::Outcome::Timeout)),
    };
    let record = |outcome| chosen.current.state.record(&chosen.member, outcome, worker.shared.pools.now(), tries.own.as_deref());
    match answered {
        Ok(exchanged) => {
            record(outlier::Outcome::Response(exchanged.response.status().as_u16()));
            report.forwarded();
            let asked = Asked::of(journey, &chosen);
            Ok(exchanged.answered(asked, chosen.active, deadline))
        }
        Err((failure, outcome)) => {
            record(outcome);
            Err(failure)
        }
    }
}

struct Exchanged {
    response: Response<hyper::body::Incoming>,
    upstream: oneshot::Receiver<Stream>,
    held_connection: Held,
    held_request: Held,
}

impl Exchanged {
    fn answered(self, asked: Box<Asked>, active: Active, deadline: Option<Deadline>) -> Answered {
        let (mut parts, body) = self.response.into_parts();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let upgrading = Upgrading { upstream: self.upstream, asked, held: (self.held_connection, self.held_request, active) };
            return Answered::Upgraded(Response::from_parts(parts, ()), upgrading);
        }
        head::remove_hop_by_hop(&mut parts.headers);
        let relayed = Relayed { body, lease: None, held: Some((self.held_request, active)), deadline };
        Answered::Response(Response::from_parts(parts, Payload::Upstream(Box::new(relayed))))
    }
}

async fn exchange(
    tries: &Tries<'_>,
    chosen: &Chosen,
    _permit: authorize::EndpointPermit,
    report: &mut Report,
) -> Result<Exchanged, (Failure, outlier::Outcome)> {
    let worker = &tries.journey.entry.worker;
    let acquired = Connections::exclusive(worker, &chosen.current, &chosen.member).await;
    let (opened, held_connection) = acquired.map_err(|error| match error {
        AcquireError::Full(overflow) => (BalanceError::Full(overflow).into(), outlier::Outcome::Connected),
        AcquireError::Connect(error) => (error.into(), outlier::Outcome::ConnectFailure),
    })?;
    let held_request = chosen.current.state.counts.take(Kind::Request, &tries.pool.limits);
    let held_request = held_request.map_err(|overflow| (BalanceError::Full(overflow).into(), outlier::Outcome::Connected))?;
    report.connected(opened.local);
    let shaken = http1::handshake(TokioIo::new(opened.stream)).await;
    let (mut sender, connection) =
        shaken.map_err(|error| (ConnectError::Handshake(Rc::new(error)).into(), outlier::Outcome::ConnectFailure))?;
    let (give, upstream) = oneshot::channel();
    spawn_local(async move {
        match connection.without_shutdown().await {
            // Nobody waits for it when the endpoint did not agree.
            Ok(parts) => drop(give.send(parts.io.into_inner().with_ahead(parts.read_buf))),
            Err(error) => tracing::debug!(%error, "connection to an endpoint broke"),
        }
    });
    let sent = sender.send_request(tries.outgoing.upgrade_request(tries.journey.facts.headers, tries.upload.body())).await;
    let response = sent.map_err(|error| {
        let closed = error.is_closed() || error.is_canceled() || error.is_incomplete_message();
        (ForwardError::Reset { closed, cause: Rc::new(error) }.into(), outlier::Outcome::Reset)
    })?;
    framing::check(&response, true).map_err(|malformed| (ForwardError::Malformed(malformed).into(), outlier::Outcome::Broken))?;
    Ok(Exchanged { response, upstream, held_connection, held_request })
}
