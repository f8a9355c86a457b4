//! Report: one access line and the metrics of a connection, on every way out.
//!
//! A [`Report`] collects what the journey finds out and writes it when it drops, so a task that is cancelled reports too. While bytes
//! move, its [`Live`] part is in the worker's table of connections, from where they are counted.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use tropis_hbone::server::IncomingTunnel;
use tropis_model::{
    identity::Identity,
    outcome::{Outcome, Reason, Side, Stage},
    policy::PolicyKey,
    resolve::{Arrival, Authority, Plan},
    service::Service,
    view::View,
    workload::Workload,
};
use tropis_net::relay::RelayControl;
use tropis_telemetry::access::{Access, AuthorityText, Direction, End};
use tropis_xds::current::Seen;

use super::{Failure, accept::Accepted};
use crate::{
    connections::{ConnectionInfo, Revocation},
    metrics::{Traffic, TrafficCounters},
    node::Pod,
    worker::Node,
};

/// What is known about a connection so far.
#[derive(Debug)]
pub struct Report {
    node: Rc<Node>,
    live: Rc<Live>,
    direction: Direction,
    started: Instant,
    stage: Stage,
    source_address: Option<SocketAddr>,
    source: Option<Arc<Workload>>,
    source_identity: Option<Identity>,
    destination_address: Option<SocketAddr>,
    destination: Option<Arc<Workload>>,
    destination_identity: Option<Identity>,
    authority: Option<Authority>,
    service: Option<Arc<Service>>,
    mutual_tls: bool,
    config_version: Option<Arc<String>>,
    traceparent: Option<String>,
    ended: Option<Failure>,
    discarded: bool,
}

/// The part that others look at while the connection lives.
#[derive(Debug)]
pub struct Live {
    pod: Arc<str>,
    inbound: bool,
    control: RelayControl,
    counters: RefCell<Option<Rc<TrafficCounters>>>,
    counted: Cell<(u64, u64)>,
    revocation: Revocation,
    source: Cell<Option<SocketAddr>>,
    original: RefCell<Option<String>>,
    actual: Cell<Option<SocketAddr>>,
    protocol: Cell<&'static str>,
}

impl Live {
    /// Counts its bytes and stops it.
    pub fn control(&self) -> &RelayControl {
        &self.control
    }

    /// These policies revoked its permit.
    pub fn revoked_by(&self, policies: Vec<PolicyKey>) {
        self.revocation.set(policies);
    }

    /// Adds to the metrics what moved since the last time.
    pub fn count(&self) {
        let counters = self.counters.borrow();
        let Some(counters) = &*counters else { return };
        let now = (self.control.sent(), self.control.received());
        let before = self.counted.replace(now);
        counters.moved(now.0 - before.0, now.1 - before.1);
    }

    /// For the dump.
    pub fn info(&self) -> ConnectionInfo {
        ConnectionInfo {
            pod: self.pod.clone(),
            inbound: self.inbound,
            src: self.source.get(),
            original_dst: self.original.borrow().clone(),
            actual_dst: self.actual.get(),
            protocol: self.protocol.get(),
            bytes_from_source: self.control.sent(),
            bytes_to_source: self.control.received(),
        }
    }
}

impl Report {
    /// Begins: a listener of `pod` gave a connection.
    pub fn new(node: &Rc<Node>, pod: &Pod, direction: Direction, from: SocketAddr) -> Self {
        let live = Live {
            pod: pod.uid.clone(),
            inbound: direction == Direction::Inbound,
            control: RelayControl::new(),
            counters: RefCell::default(),
            counted: Cell::default(),
            revocation: Revocation::default(),
            source: Cell::new(Some(from)),
            original: RefCell::default(),
            actual: Cell::default(),
            protocol: Cell::new("TCP"),
        };
        Self {
            node: node.clone(),
            live: Rc::new(live),
            direction,
            started: Instant::now(),
            stage: Stage::Accept,
            source_address: Some(from),
            source: None,
            source_identity: None,
            destination_address: None,
            destination: None,
            destination_identity: None,
            authority: None,
            service: None,
            mutual_tls: false,
            config_version: None,
            traceparent: None,
            ended: None,
            discarded: false,
        }
    }

    /// Nothing is to be written: whatever happens on this connection has reports of its own.
    pub fn discard(mut self) {
        self.discarded = true;
    }

    /// Where the connection came from.
    pub fn source_address(&self) -> SocketAddr {
        self.source_address.unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))
    }

    /// Counts its bytes and stops it.
    pub fn control(&self) -> &RelayControl {
        &self.live.control
    }

    /// The part that others look at.
    pub fn live(&self) -> Rc<Live> {
        self.live.clone()
    }

    /// The policies that revoked its permit.
    pub fn revoked_by(&self) -> Vec<PolicyKey> {
        self.live.revocation.take()
    }

    /// It was accepted.
    pub fn accepted(&mut self, accepted: Accepted) -> Accepted {
        self.stage = Stage::Identify;
        let destination = accepted.original_destination.0;
        self.came_from(accepted.downstream.0);
        self.destination_address = Some(destination);
        self.live.actual.set(Some(destination));
        if self.direction == Direction::Outbound {
            *self.live.original.borrow_mut() = Some(destination.to_string());
        }
        accepted
    }

    /// Decisions are read from this view.
    pub fn view(&mut self, seen: Seen) -> Arc<View> {
        self.config_version = Some(seen.version).filter(|version| !version.is_empty());
        seen.view
    }

    /// The local pod opened it.
    pub fn caller(&mut self, caller: Arc<Workload>) -> Arc<Workload> {
        self.stage = Stage::Resolve;
        self.source = Some(caller.clone());
        caller
    }

    /// It was opened to the local pod, by the owner of the address that it came from.
    pub fn callee(&mut self, callee: Arc<Workload>, view: &View) -> Arc<Workload> {
        self.stage = Stage::Resolve;
        self.destination = Some(callee.clone());
        self.destination_identity = self.mutual_tls.then(|| callee.identity.clone());
        self.source = view.workload_at(&self.node.shared.config.network, self.source_address().ip()).cloned();
        callee
    }

    /// It is to carry tunnels, and was opened to this address.
    pub fn dialled(&mut self, address: Option<SocketAddr>) {
        self.stage = Stage::Identify;
        self.destination_address = address;
    }

    /// A tunnel carries it: its caller proved who it is, and says that it came from `client`.
    pub fn tunnelled(&mut self, tunnel: &IncomingTunnel, client: SocketAddr) {
        self.stage = Stage::Identify;
        self.mutual_tls = true;
        self.source_identity = Some(tunnel.peer().clone());
        self.destination_address = Some(tunnel.local());
        self.authority = Some(tunnel.authority().clone());
        self.traceparent = tunnel.headers().traceparent.clone();
        self.came_from(client);
        self.live.protocol.set("HBONE");
        *self.live.original.borrow_mut() = tunnel.headers().forwarded.as_ref().and_then(|forwarded| forwarded.host.clone());
    }

    fn came_from(&mut self, address: SocketAddr) {
        self.source_address = Some(address);
        self.live.source.set(Some(address));
    }

    /// It goes there.
    pub fn plan(&mut self, plan: Plan) -> Plan {
        self.stage = Stage::Authorize;
        self.service = plan.target().service.clone();
        self.destination = plan.next().cloned();
        // What an endpoint proved that was tried before is not what this one proves.
        (self.mutual_tls, self.source_identity, self.destination_identity) = (false, None, None);
        match &plan {
            Plan::Direct { to } => {
                if let Authority::Address(address) = to.authority {
                    self.destination_address = Some(address);
                }
                self.live.protocol.set("TCP");
            }
            Plan::Tunnel { via: hop, .. } | Plan::Nested { gateway: hop, .. } => {
                self.destination_address = Some(hop.address);
                self.authority = Some(plan.target().authority.clone());
                self.live.protocol.set(if matches!(plan, Plan::Nested { .. }) { "DOUBLEHBONE" } else { "HBONE" });
            }
        }
        self.live.actual.set(self.destination_address);
        plan
    }

    /// It ends there, in the local pod.
    pub fn arrival(&mut self, arrival: Arrival) -> Arrival {
        self.stage = Stage::Authorize;
        self.service = arrival.service.clone();
        self.live.actual.set(Some(arrival.to));
        if !self.mutual_tls {
            self.destination_address = Some(arrival.to);
        }
        arrival
    }

    /// It may.
    pub fn permitted(&mut self) {
        self.stage = Stage::Connect;
    }

    /// The other end proved this identity, and we proved the caller's.
    pub fn proved(&mut self, destination: Identity) {
        self.mutual_tls = true;
        self.source_identity = self.source.as_ref().map(|caller| caller.identity.clone());
        self.destination_identity = Some(destination);
    }

    /// The trace that it belongs to.
    pub fn trace(&mut self, traceparent: &str) {
        self.traceparent = Some(traceparent.to_owned());
    }

    /// Both sides are open.
    pub fn relaying(&mut self) {
        self.stage = Stage::Relay;
        self.open_counters();
        tracing::event!(
            target: "access",
            tracing::Level::DEBUG,
            src.addr = ?self.source_address,
            dst.addr = ?self.destination_address,
            "connection opened"
        );
    }

    /// How it ended.
    pub fn finish(&mut self, result: Result<(), Failure>) {
        self.ended = Some(result.err().unwrap_or(Failure {
            outcome: Outcome { stage: Stage::Relay, reason: Reason::Completed, side: Side::Mesh },
            policies: Vec::new(),
            error: None,
        }));
    }

    fn open_counters(&self) {
        let mut counters = self.live.counters.borrow_mut();
        if counters.is_some() {
            return;
        }
        let traffic = Traffic {
            direction: self.direction,
            source: self.source.clone(),
            source_identity: self.source_identity.clone(),
            destination: self.destination.clone(),
            service: self.service.clone(),
            mutual_tls: self.mutual_tls,
        };
        let opened = self.node.counters.counters(&self.node.shared.metrics.traffic, traffic);
        opened.opened();
        *counters = Some(opened);
    }

    fn access<'a>(&'a self, outcome: Outcome, policies: &'a [PolicyKey], error: Option<&'a str>) -> Access<'a> {
        Access {
            direction: self.direction,
            source: End { address: self.source_address, workload: self.source.as_deref(), identity: self.source_identity.as_ref() },
            destination: End {
                address: self.destination_address,
                workload: self.destination.as_deref(),
                identity: self.destination_identity.as_ref(),
            },
            hbone_authority: self.authority.as_ref().map(|authority| authority as &dyn AuthorityText),
            service: self.service.as_ref().map(|service| &*service.hostname.hostname),
            bytes_from_source: self.live.control.sent(),
            bytes_to_source: self.live.control.received(),
            duration: self.started.elapsed(),
            outcome,
            policies,
            error,
            config_version: self.config_version.as_deref().map(String::as_str),
            traceparent: self.traceparent.as_deref(),
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if self.discarded {
            return;
        }
        // Nobody said how it ended: its task was cancelled.
        let ended = self.ended.take().unwrap_or_else(|| Failure {
            outcome: Outcome { stage: self.stage, reason: Reason::Drained, side: Side::Mesh },
            policies: Vec::new(),
            error: Some(Reason::Drained.meaning().to_owned()),
        });
        self.access(ended.outcome, &ended.policies, ended.error.as_deref()).write();
        // As Istio has it, what fails before it is known who talks to whom has a line and no metrics.
        if ended.outcome.stage >= Stage::Authorize {
            self.open_counters();
            self.live.count();
            if let Some(counters) = &*self.live.counters.borrow() {
                counters.closed(ended.outcome.reason.response_flags());
            }
        }
    }
}
