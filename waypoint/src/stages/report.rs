//! Report: one access line and the metrics of a request or a connection, on every way out.
//!
//! A [`Report`] collects what the journey finds out and writes it when it drops, so one that is cancelled reports too. For a request it
//! travels with the response's body, whose end is the request's end.

pub mod flags;
pub mod format;

use std::{
    borrow::Cow,
    cell::OnceCell,
    fmt,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderValue, Method, Response, Version, header, request::Parts, uri::PathAndQuery};
use tropis_model::{
    outcome::{Outcome, Reason, Side, Stage},
    pool::Pool,
    route::Host,
    service::Service,
    view::View,
    waypoint::{AccessLogFormat, Waypoint},
    workload::Workload,
};
use tropis_net::relay::{RelayControl, RelayEnd, RelayOutcome};
use tropis_telemetry::logs::VERBATIM_TARGET;
use tropis_xds::current::Seen;

use self::{flags::Flags, format::Line};
use super::{
    Failure,
    accept::Place,
    balance::Chosen,
    forward::head::{FORWARDED_FOR, Outgoing, REQUEST_ID},
    route::Routed,
};
use crate::{
    body::{BodyError, Upload},
    entry::Entry,
    metrics::{Protocol, Traffic},
    reply,
};

/// What is known about a request, or a connection, so far.
pub struct Report {
    entry: Rc<Entry>,
    started: Instant,
    start_time: SystemTime,
    stage: Stage,
    request: Option<Asked>,
    server_name: Option<String>,
    waypoint: Option<Arc<Waypoint>>,
    config_version: Option<Arc<String>>,
    /// Of a connection, whose counters are to have the same labels when it ends as when it opened.
    source: OnceCell<Option<Arc<Workload>>>,
    service: Option<Arc<Service>>,
    route_name: Option<RouteName>,
    pool: Option<Arc<Pool>>,
    destination: Option<Arc<Workload>>,
    upstream: Option<SocketAddr>,
    upstream_local: Option<SocketAddr>,
    attempts: u32,
    service_time: Option<Duration>,
    status: u16,
    grpc_status: Option<u16>,
    sent_bytes: u64,
    response_head_bytes: u64,
    flags: Flags,
    details: Option<Cow<'static, str>>,
    ended: Option<Ended>,
    control: Option<RelayControl>,
    _place: Option<Place>,
}

/// What a request asked for.
struct Asked {
    method: Method,
    target: Option<PathAndQuery>,
    version: Version,
    authority: Option<HeaderValue>,
    forwarded_for: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    is_grpc: bool,
    head_bytes: u64,
    upload: Option<Upload>,
    /// Kept for a user's own log format.
    headers: Option<HeaderMap>,
}

#[derive(Debug)]
struct Ended {
    outcome: Outcome,
    policy: Option<String>,
    error: Option<String>,
}

const COMPLETED: Outcome = Outcome { stage: Stage::Report, reason: Reason::Completed, side: Side::Mesh };

impl Report {
    /// Begins: a request came, about which everything is decided on the view that is `seen`.
    pub fn new(entry: &Rc<Entry>, seen: &Seen, parts: &Parts) -> Self {
        let header = |name| parts.headers.get(name).cloned();
        let authority = parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        let asked = Asked {
            method: parts.method.clone(),
            target: parts.uri.path_and_query().cloned(),
            version: parts.version,
            authority: authority.or_else(|| header(header::HOST)),
            forwarded_for: header(FORWARDED_FOR),
            user_agent: header(header::USER_AGENT),
            request_id: header(REQUEST_ID),
            is_grpc: reply::is_grpc(&parts.headers),
            head_bytes: head_bytes(&parts.headers) + parts.uri.path_and_query().map_or(1, |target| target.as_str().len() as u64),
            upload: None,
            headers: None,
        };
        let mut report = Self::begin(entry, Stage::Accept);
        report.decides_on(seen);
        report.request = Some(asked);
        if let Some(AccessLogFormat::Text(Some(_))) = report.waypoint.as_ref().and_then(|waypoint| waypoint.access_log.as_ref())
            && let Some(asked) = &mut report.request
        {
            asked.headers = Some(parts.headers.clone());
        }
        report
    }

    /// Begins: a connection came that is not HTTP.
    pub fn connection(entry: &Rc<Entry>, server_name: Option<&str>) -> Self {
        let mut report = Self::begin(entry, Stage::Resolve);
        report.server_name = server_name.map(str::to_owned);
        report
    }

    fn begin(entry: &Rc<Entry>, stage: Stage) -> Self {
        Self {
            entry: entry.clone(),
            started: Instant::now(),
            start_time: SystemTime::now(),
            stage,
            request: None,
            server_name: None,
            waypoint: None,
            config_version: None,
            source: OnceCell::new(),
            service: None,
            route_name: None,
            pool: None,
            destination: None,
            upstream: None,
            upstream_local: None,
            attempts: 0,
            service_time: None,
            status: 0,
            grpc_status: None,
            sent_bytes: 0,
            response_head_bytes: 0,
            flags: Flags::NONE,
            details: None,
            ended: None,
            control: None,
            _place: None,
        }
    }

    /// Whether the caller speaks gRPC.
    pub fn is_grpc(&self) -> bool {
        self.request.as_ref().is_some_and(|asked| asked.is_grpc)
    }

    /// Its body, for counting.
    pub fn uploads(&mut self, upload: &Upload) {
        if let Some(asked) = &mut self.request {
            asked.upload = Some(upload.handle());
        }
    }

    /// It was accepted, and has this place.
    pub fn places(&mut self, place: Place) {
        self._place = Some(place);
        self.stage = Stage::Identify;
    }

    /// It is known what it names.
    pub fn named(&mut self) {
        self.stage = Stage::Resolve;
    }

    /// Decisions about a connection are read from this view.
    pub fn view(&mut self, seen: Seen) -> Arc<View> {
        self.decides_on(&seen);
        seen.view
    }

    fn decides_on(&mut self, seen: &Seen) {
        self.config_version = Some(seen.version.clone()).filter(|version| !version.is_empty());
        self.waypoint = seen.view.waypoint(&self.entry.worker.shared.config.gateway).cloned();
    }

    /// It addresses this host.
    pub fn host(&mut self, host: Arc<Host>, view: &View) -> Arc<Host> {
        self.stage = Stage::Authorize;
        self.service = view.service(&host.name).cloned();
        host
    }

    /// It may look for an endpoint.
    pub fn permitted(&mut self) {
        self.stage = Stage::Route;
    }

    /// It takes this route.
    pub fn routed(&mut self, routed: Routed) -> Routed {
        self.stage = Stage::Balance;
        let of_match = routed.matched().and_then(|matched| matched.name.clone());
        self.route_name = Some(RouteName { route: routed.route.name.clone(), of_match });
        routed
    }

    /// It goes to this pool.
    pub fn pool(&mut self, pool: &Arc<Pool>) -> Arc<Pool> {
        self.stage = Stage::Balance;
        self.pool = Some(pool.clone());
        pool.clone()
    }

    /// It goes out under this name.
    pub fn request_id(&mut self, outgoing: &Outgoing) {
        if let Some(asked) = &mut self.request {
            asked.request_id = Some(outgoing.request_id.clone());
            asked.forwarded_for = Some(outgoing.forwarded_for.clone());
        }
    }

    /// Try `number` goes to this endpoint.
    pub fn chosen(&mut self, chosen: &Chosen, number: u32) {
        self.stage = Stage::Connect;
        self.destination = Some(chosen.workload.clone());
        self.upstream = Some(chosen.address);
        self.attempts = number;
    }

    /// There is a connection to it, of which this is our end.
    pub fn connected(&mut self, local: SocketAddr) {
        self.stage = Stage::Forward;
        self.upstream_local = Some(local);
    }

    /// The endpoint answered, so long after it was asked.
    pub fn forwarded(&mut self, after: Duration) {
        self.service_time = Some(after);
        self.details = Some("via_upstream".into());
    }

    /// A flag is added.
    pub fn flag(&mut self, flag: Flags) {
        self.flags = self.flags.with(flag);
    }

    /// The route's fault answers.
    pub fn fault_injected(&mut self) {
        self.ended = Some(Ended {
            outcome: Outcome { stage: Stage::Route, reason: Reason::FaultInjected, side: Side::Mesh },
            policy: None,
            error: None,
        });
    }

    /// The route or a filter answers.
    pub fn answered_here(&mut self, flags: Flags, details: &'static str) {
        self.flag(flags);
        self.details = Some(details.into());
    }

    /// It failed.
    pub fn failed(&mut self, failure: Failure) {
        self.flag(failure.flags);
        self.details = Some(failure.details);
        let keys: Vec<&str> = failure.policies.iter().map(|key| &*key.0).collect();
        let policy = (!keys.is_empty()).then(|| keys.join(","));
        self.ended = Some(Ended { outcome: failure.outcome, policy, error: failure.error });
    }

    /// It ended in this way after its answer.
    pub fn ended(&mut self, stage: Stage, reason: Reason, side: Side) {
        self.ended = Some(Ended { outcome: Outcome { stage, reason, side }, policy: None, error: None });
    }

    /// This is the answer; its body follows.
    pub fn answered<T>(&mut self, response: &Response<T>) {
        self.status = response.status().as_u16();
        self.grpc_status = reply::grpc_status_in(response.headers());
        self.response_head_bytes = head_bytes(response.headers());
    }

    /// So much of the body went out.
    pub fn sent(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
    }

    /// gRPC's status came in the trailers.
    pub fn grpc_status(&mut self, status: u16) {
        self.grpc_status = Some(status);
    }

    /// The answer has gone out as a whole.
    pub fn completed(&mut self) {
        self.ended.get_or_insert(Ended { outcome: COMPLETED, policy: None, error: None });
    }

    /// The answer's body broke off.
    pub fn broke_off(&mut self, error: &BodyError) {
        let (reason, flag, details) = match error {
            BodyError::Timeout => (Reason::RequestTimeout, Flags::UPSTREAM_TIMEOUT, "response_timeout"),
            BodyError::Broken(_) | BodyError::Gone => {
                (Reason::UpstreamReset, Flags::UPSTREAM_RESET, "upstream_reset_after_response_started{remote_reset}")
            }
        };
        self.flag(flag);
        self.details = Some(details.into());
        let outcome = Outcome { stage: Stage::Forward, reason, side: Side::Upstream };
        self.ended = Some(Ended { outcome, policy: None, error: Some(tropis_telemetry::chain(error)) });
    }

    /// Stops the relay that it has become, or becomes, and counts its bytes.
    pub fn control(&mut self) -> RelayControl {
        self.control.get_or_insert_with(RelayControl::new).clone()
    }

    /// Bytes move.
    pub fn relaying(&mut self) {
        self.stage = Stage::Relay;
        if self.request.is_none() {
            let entry = &self.entry;
            entry.worker.counters.connection(&entry.worker.shared.metrics, self.traffic()).opened();
        }
    }

    /// The relay has ended.
    pub fn relayed(&mut self, outcome: &RelayOutcome) {
        self.stage = Stage::Relay;
        let error = match &outcome.end {
            RelayEnd::Completed | RelayEnd::DownstreamReset(_) | RelayEnd::UpstreamReset(_) => None,
            RelayEnd::Stopped(_) => Some(outcome.end.reason().meaning().to_owned()),
        };
        let outcome = Outcome { stage: Stage::Relay, reason: outcome.end.reason(), side: outcome.end.side() };
        self.ended = Some(Ended { outcome, policy: None, error });
    }

    fn traffic(&self) -> Traffic {
        let protocol = match &self.request {
            None => Protocol::Tcp,
            Some(asked) if asked.is_grpc => Protocol::Grpc(self.status, self.grpc_status),
            Some(_) => Protocol::Http(self.status),
        };
        let source = match &self.request {
            Some(_) => self.entry.source(),
            None => self.source.get_or_init(|| self.entry.source()).clone(),
        };
        Traffic {
            source,
            source_identity: self.entry.identity.clone(),
            destination: self.destination.clone(),
            service: self.service.clone(),
            protocol,
            // As in Istio, a connection's flags are known too late for its first counter.
            flags: if self.request.is_none() { Flags::NONE } else { self.flags },
        }
    }

    /// Nobody said how it ended: whoever asked went away, or the time to finish ran out.
    fn abandoned(&mut self) -> Ended {
        let is_drained = self.entry.worker.shared.drain.signal().phase() == tropis_net::drain::Phase::Cut;
        let (reason, side) = match is_drained {
            true => (Reason::Drained, Side::Mesh),
            false => (Reason::DownstreamReset, Side::Downstream),
        };
        self.flag(Flags::DOWNSTREAM_CLOSED);
        self.details = Some("downstream_remote_disconnect".into());
        Ended { outcome: Outcome { stage: self.stage, reason, side }, policy: None, error: None }
    }

    fn count(&self, received: u64, sent: u64) {
        let worker = &self.entry.worker;
        match &self.request {
            Some(asked) => {
                let counters = worker.counters.request(&worker.shared.metrics, self.traffic());
                counters.ended(self.started.elapsed(), asked.head_bytes + received, self.response_head_bytes + sent);
            }
            None => {
                let counters = worker.counters.connection(&worker.shared.metrics, self.traffic());
                if self.stage != Stage::Relay {
                    counters.opened();
                }
                counters.closed(received, sent);
            }
        }
    }

    fn log(&self, ended: &Ended, received: u64, sent: u64) {
        let Some(format) = self.waypoint.as_ref().and_then(|waypoint| waypoint.access_log.as_ref()) else { return };
        if !tracing::enabled!(target: VERBATIM_TARGET, tracing::Level::INFO) {
            return;
        }
        let line = self.line(ended, received, sent);
        let text = match format {
            AccessLogFormat::Json => line.json(),
            AccessLogFormat::Text(format) => self.entry.worker.formats.of(format.as_ref()).line(&line),
        };
        tracing::info!(target: VERBATIM_TARGET, "{text}");
    }

    fn line<'l>(&'l self, ended: &'l Ended, received: u64, sent: u64) -> Line<'l> {
        let asked = self.request.as_ref();
        let text = |value: Option<&'l HeaderValue>| value.and_then(|value| value.to_str().ok());
        let called = self.entry.addressed.address().map(|address| SocketAddr::new(address, self.entry.addressed.port()));
        Line {
            started: self.start_time,
            method: asked.map(|asked| asked.method.as_str()),
            path: asked.and_then(|asked| asked.target.as_ref()).map(PathAndQuery::as_str),
            protocol: asked.map(|asked| match asked.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            }),
            status: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags,
            details: self.details.as_deref(),
            failure: ended.error.as_deref(),
            bytes_received: received,
            bytes_sent: sent,
            duration: self.started.elapsed(),
            service_time: self.service_time,
            forwarded_for: text(asked.and_then(|asked| asked.forwarded_for.as_ref())),
            user_agent: text(asked.and_then(|asked| asked.user_agent.as_ref())),
            request_id: text(asked.and_then(|asked| asked.request_id.as_ref())),
            authority: text(asked.and_then(|asked| asked.authority.as_ref())),
            upstream: self.upstream,
            cluster: self.pool.as_ref().map(|pool| cluster(pool, asked.is_some())),
            upstream_local: self.upstream_local,
            called,
            caller: self.entry.source_address,
            server_name: self.server_name.as_deref(),
            route_name: self.route_name.as_ref().map(RouteName::to_string),
            attempts: self.attempts,
            headers: asked.and_then(|asked| asked.headers.as_ref()),
            stage: ended.outcome.stage.word(),
            reason: ended.outcome.reason.word(),
            side: (ended.outcome.reason != Reason::Completed).then(|| ended.outcome.side.word()),
            policy: ended.policy.clone(),
            config_version: self.config_version.as_deref().map(String::as_str),
        }
    }
}

/// A route, with the match of it that a request took: put together where it is logged.
struct RouteName {
    route: Arc<str>,
    of_match: Option<Arc<str>>,
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.of_match {
            Some(name) => write!(f, "{}.{name}", self.route),
            None => f.write_str(&self.route),
        }
    }
}

/// A pool's name as Istio's waypoints write it.
pub fn cluster(pool: &Pool, is_http: bool) -> String {
    let kind = if is_http { "http" } else { "tcp" };
    match &pool.key.subset {
        Some(subset) => format!("inbound-vip|{}|{kind}/{subset}|{}", pool.key.port, pool.key.host.hostname),
        None => format!("inbound-vip|{}|{kind}|{}", pool.key.port, pool.key.host.hostname),
    }
}

/// About what headers take on the wire: names, values, and what is between them.
fn head_bytes(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64).sum()
}

impl Drop for Report {
    fn drop(&mut self) {
        let mut ended = match self.ended.take() {
            Some(ended) => ended,
            None => self.abandoned(),
        };
        if ended.outcome.reason == Reason::Completed {
            ended.outcome.stage = self.stage;
        }
        let (received, sent) = match &self.control {
            Some(control) => (control.sent(), control.received()),
            None => (self.request.as_ref().and_then(|asked| asked.upload.as_ref()).map_or(0, Upload::bytes), self.sent_bytes),
        };
        self.count(received, sent);
        self.log(&ended, received, sent);
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report")
            .field("stage", &self.stage)
            .field("status", &self.status)
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}
