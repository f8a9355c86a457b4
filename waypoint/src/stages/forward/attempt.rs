//! One try: an endpoint is chosen and authorized, a connection to it is had, the request is sent, the response's head comes.

use std::{error::Error, rc::Rc, time::Instant};

use http::{HeaderName, HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tropis_model::{
    outlier::{self, status_of_grpc},
    pool::{Pool, UpstreamVersion},
    retry::TryOutcome,
    service::AppProtocol,
};

use super::{ForwardError, MalformedResponse, Tries, deadline, deadline::Deadline, framing, head};
use crate::{
    body::{Payload, RequestBody, download::Relayed},
    reply::grpc_status_in,
    request::Journey,
    stages::{
        Failure, authorize,
        balance::{self, BalanceError, Chosen, Wish},
        report::Report,
    },
    upstream::{
        connections::{AcquireError, Connections, HandedOver, HttpVersion, Lease},
        counts::{Held, Kind},
    },
};

/// How often a connection that turns out to be closed, with nothing sent, is replaced by another in one try.
const STALE_CONNECTIONS: usize = 3;
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// A try.
pub struct Attempt<'a, 't> {
    /// What it has in common with the others.
    pub tries: &'a Tries<'t>,
    /// Its number, from 1.
    pub number: u32,
}

/// A try that gave no response.
pub struct Failed {
    /// What the caller is told.
    pub failure: Box<Failure>,
    /// What may call for another try; `None` never does.
    pub outcome: Option<TryOutcome>,
}

impl<E: Into<Failure>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { failure: Box::new(error.into()), outcome: None }
    }
}

/// The head of a response, and what its body comes on.
pub struct Received {
    pub(super) response: Response<Incoming>,
    lease: Lease,
    pub(super) handed_over: Option<oneshot::Receiver<HandedOver>>,
    pub(super) held: Held,
    pub(super) chosen: Chosen,
    pub(super) took: std::time::Duration,
}

impl Received {
    /// What it says about another try.
    pub fn outcome(&self) -> TryOutcome {
        TryOutcome::Response { status: self.response.status().as_u16(), grpc_status: grpc_status_in(self.response.headers()) }
    }

    /// The response as the caller gets it.
    pub fn into_response(self, deadline: Option<Deadline>) -> Response<Payload> {
        let (mut parts, body) = self.response.into_parts();
        head::remove_hop_by_hop(&mut parts.headers);
        parts.headers.insert(SERVICE_TIME, HeaderValue::from(self.took.as_millis() as u64));
        parts.version = Version::HTTP_11;
        let relayed = Relayed { body, lease: Some(self.lease), held: Some((self.held, self.chosen.active)), deadline };
        Response::from_parts(parts, Payload::Upstream(Box::new(relayed)))
    }
}

impl Attempt<'_, '_> {
    /// Makes the try, unless the route's time runs out meanwhile.
    pub async fn run(&self, deadline: Option<&mut Deadline>, report: &mut Report) -> Result<Received, Failed> {
        let tries = self.tries;
        let chosen = self.choose()?;
        let permit = authorize::endpoint(tries.journey, &tries.outgoing, &chosen, tries.permit)?;
        report.chosen(&chosen, self.number);
        let mut per_try = tries.forward.retries.per_try_timeout.map(|limit| Deadline::new(limit, tries.upload.handle()));
        let limit = tries.forward.retries.per_try_timeout.unwrap_or_default();
        let ended = tokio::select! {
            biased;
            ended = self.exchange(&chosen, permit, report) => ended,
            error = deadline::expired(deadline) => Err(Ended { failed: error.into(), seen: outlier::Outcome::Timeout }),
            _ = deadline::expired(per_try.as_mut()) => {
                let failure = Box::new(ForwardError::TryTimeout { after: limit }.into());
                Err(Ended { failed: Failed { failure, outcome: Some(TryOutcome::Timeout) }, seen: outlier::Outcome::Timeout })
            }
        };
        match ended {
            Ok(exchanged) => {
                self.record(&chosen, || seen(&exchanged.response));
                let Exchanged { response, lease, handed_over, held, took } = exchanged;
                Ok(Received { response, lease, handed_over, held, chosen, took })
            }
            Err(Ended { failed, seen }) => {
                // An endpoint is not to blame for a limit of ours, nor for a caller who breaks off.
                if failed.outcome.is_some() || seen == outlier::Outcome::Timeout {
                    self.record(&chosen, || seen);
                }
                Err(failed)
            }
        }
    }

    fn choose(&self) -> Result<Chosen, BalanceError> {
        let tries = self.tries;
        let worker = &tries.journey.entry.worker;
        let current = worker.shared.pools.current(tries.journey.view, tries.pool, tries.own.as_deref());
        let retries = &tries.forward.retries;
        let tried = tries.tried.borrow();
        let wish = Wish {
            hash: tries.key.hash,
            tried: if retries.ignore_previous || retries.remote_localities { &tried } else { &[] },
            other_priorities: retries.remote_localities,
            addressed: addressed(tries.journey),
        };
        let chosen = balance::choose(worker, current, &wish)?;
        tries.trying.set(Some(chosen.member.id));
        Ok(chosen)
    }

    async fn exchange(&self, chosen: &Chosen, _permit: authorize::EndpointPermit, report: &mut Report) -> Result<Exchanged, Ended> {
        let tries = self.tries;
        let worker = &tries.journey.entry.worker;
        let (version, mut request) = self.request();
        let mut stale = 0;
        loop {
            let acquired = Connections::acquire(worker, &chosen.current, &chosen.member, version).await;
            let mut lease = acquired.map_err(Ended::of_connection)?;
            let held = chosen.current.state.counts.take(Kind::Request, &tries.pool.limits);
            let held = match held {
                Ok(held) => held,
                Err(overflow) => {
                    lease.give_back();
                    return Err(Ended::of_connection(AcquireError::Full(overflow)));
                }
            };
            report.connected(lease.local());
            let handed_over = tries.upgrades.then(|| lease.hand_over());
            let sent_at = Instant::now();
            match lease.send(request).await {
                Ok(response) => {
                    let took = sent_at.elapsed();
                    framing::check(&response, tries.upgrades).map_err(Ended::of_malformed)?;
                    return Ok(Exchanged { response, lease, handed_over, held, took });
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if stale < STALE_CONNECTIONS => {
                        stale += 1;
                        request = unsent;
                    }
                    unsent => return Err(self.broken(error.into_error(), unsent)),
                },
            }
        }
    }

    /// The request, and the version of HTTP that it is sent by.
    fn request(&self) -> (HttpVersion, Request<RequestBody>) {
        let Tries { journey, outgoing, upload, pool, .. } = self.tries;
        if self.tries.upgrades {
            return (HttpVersion::Http1, outgoing.upgrade_request(journey.facts.headers, upload.body()));
        }
        let version = version(journey, pool);
        (version, outgoing.request(journey.facts.headers, self.number, version, upload.body()))
    }

    /// What a broken exchange means; `unsent` is the request where nothing of it went out.
    fn broken(&self, error: hyper::Error, unsent: Option<Request<RequestBody>>) -> Ended {
        let cause = Rc::new(error);
        if self.tries.upload.is_broken() {
            return Ended { failed: ForwardError::Caller(cause).into(), seen: outlier::Outcome::Reset };
        }
        if cause.is_parse() || cause.is_parse_too_large() || cause.is_parse_status() {
            return Ended::of_malformed(MalformedResponse::Unreadable(cause));
        }
        let outcome = match is_refused_stream(&cause) {
            true => TryOutcome::RefusedStream,
            false => TryOutcome::Reset { request_sent: unsent.is_none() },
        };
        let closed = cause.is_closed() || cause.is_canceled() || cause.is_incomplete_message();
        let failed = Failed { failure: Box::new(ForwardError::Reset { closed, cause }.into()), outcome: Some(outcome) };
        Ended { failed, seen: outlier::Outcome::Reset }
    }

    fn record(&self, chosen: &Chosen, outcome: impl FnOnce() -> outlier::Outcome) {
        let pools = &self.tries.journey.entry.worker.shared.pools;
        if chosen.current.state.has_detector() {
            chosen.current.state.record(&chosen.member, outcome(), pools.now(), self.tries.own.as_deref());
        }
    }
}

struct Exchanged {
    response: Response<Incoming>,
    lease: Lease,
    handed_over: Option<oneshot::Receiver<HandedOver>>,
    held: Held,
    took: std::time::Duration,
}

/// How an exchange failed, for the caller and for the detector of outliers.
struct Ended {
    failed: Failed,
    seen: outlier::Outcome,
}

impl Ended {
    fn of_malformed(malformed: MalformedResponse) -> Self {
        let failure = Box::new(ForwardError::Malformed(malformed).into());
        let failed = Failed { failure, outcome: Some(TryOutcome::Reset { request_sent: true }) };
        Self { failed, seen: outlier::Outcome::Broken }
    }

    fn of_connection(error: AcquireError) -> Self {
        let seen = seen_of_connection(&error);
        match error {
            AcquireError::Full(overflow) => Self { failed: BalanceError::Full(overflow).into(), seen },
            AcquireError::Connect(error) => {
                let failed = Failed { failure: Box::new(error.into()), outcome: Some(TryOutcome::ConnectFailure) };
                Self { failed, seen }
            }
        }
    }
}

/// What it tells about an endpoint that no connection to it was got: an endpoint is not to blame for a limit of ours.
pub(super) fn seen_of_connection(error: &AcquireError) -> outlier::Outcome {
    match error {
        AcquireError::Full(_) => outlier::Outcome::Connected,
        AcquireError::Connect(_) => outlier::Outcome::ConnectFailure,
    }
}

/// What a response tells about its endpoint: the HTTP status, or what a gRPC status in its headers counts as.
fn seen(response: &Response<Incoming>) -> outlier::Outcome {
    let status = grpc_status_in(response.headers()).map_or_else(|| response.status().as_u16(), status_of_grpc);
    outlier::Outcome::Response(status)
}

/// Whether the endpoint has certainly not looked at the stream: it refused it (RFC 9113 §8.7), or its GOAWAY named an earlier one as its
/// last (§6.8; h2 gives that error to no other streams).
fn is_refused_stream(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.reason() == Some(h2::Reason::REFUSED_STREAM) || (cause.is_go_away() && cause.is_remote()))
}

/// The address and port that were called.
pub(super) fn addressed(journey: &Journey<'_>) -> Option<std::net::SocketAddr> {
    Some(std::net::SocketAddr::new(journey.facts.destination?, journey.facts.port))
}

/// The version of HTTP to speak to the pool's endpoints.
pub(super) fn version(journey: &Journey<'_>, pool: &Pool) -> HttpVersion {
    let of_caller = match journey.version {
        Version::HTTP_2 => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    };
    match pool.upstream_version {
        UpstreamVersion::Http2 => HttpVersion::Http2,
        UpstreamVersion::FromCaller => of_caller,
        UpstreamVersion::FromPort => {
            let port = journey.view.service(&pool.key.host).and_then(|service| service.ports.get(&pool.key.port));
            match port.map(|port| port.app_protocol).unwrap_or_default() {
                AppProtocol::Http2 | AppProtocol::Grpc => HttpVersion::Http2,
                AppProtocol::Http11 => HttpVersion::Http1,
                AppProtocol::Unknown | AppProtocol::Tcp | AppProtocol::Tls => of_caller,
            }
        }
    }
}
