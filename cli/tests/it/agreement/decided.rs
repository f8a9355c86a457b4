//! What the programs decide: objects compiled, sent over the wire and back, and each stage's decision asked as `ztunnel` and `waypoint`
//! ask it, once for each seed of the draws that they make.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use tropis_compile::{Compiler, Settings};
use tropis_model::{
    address::OriginalDestination,
    attached::{self, Addressed},
    authorize::{
        self, ConnectionFacts,
        request::{self as policy, ServerName, StreamFacts},
    },
    identity::Identity,
    matching,
    pick::{self, Ask, Candidate, Endpoints, hash},
    pool::{Balancer, PoolKey},
    reach::{self, Found},
    request::{PathNormalization, RequestFacts, canonical, canonical_host},
    resolve::{self, Authority, Draw, Plan},
    rewrite::{self, Sent},
    route::{AbortStatus, Caller, Destination, Host, Origin, PortProtocol, RouteAction},
    view::{Change, View},
    workload::{Health, TunnelProtocol, Workload},
};
use tropis_proto::xds::Resource;
use tropis_source::dir::snapshot;
use tropis_xds::convert::{Interner, decode, encode};

use super::drawn::Question;

/// So many draws show whatever may be drawn in these meshes.
const DRAWS: u64 = 96;
const GATEWAY: &str = "shop/waypoint";

/// What proxies know.
pub(super) struct Mesh {
    nodes: View,
    waypoint: Option<View>,
    /// How often policies of another service let in what a route brought to it, and how often they did not.
    pub(super) brought: Cell<(usize, usize)>,
    /// What the waypoint is told of callers when it asks, where that is more than node proxies are told.
    callers: View,
}

/// What was decided for one draw.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Once {
    way: Option<&'static str>,
    next_hop: Option<SocketAddr>,
    route: Option<(Option<String>, String)>,
    path: Option<String>,
    answer: Option<u16>,
    location: Option<String>,
    refused_by: BTreeSet<String>,
    endpoint: Option<Endpoint>,
    empty_pool: Option<String>,
    passed: bool,
}

/// Pool, address, whether it lets the caller pass, and the policies that do not.
pub(super) type Endpoint = (Option<String>, String, bool, BTreeSet<String>);

/// What may be decided, whatever is drawn.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decided {
    pub(super) ways: BTreeSet<String>,
    pub(super) next_hops: BTreeSet<String>,
    pub(super) route: Option<(Option<String>, String)>,
    pub(super) path: Option<String>,
    pub(super) answer: Option<u16>,
    pub(super) location: Option<String>,
    pub(super) refused_by: BTreeSet<String>,
    pub(super) endpoints: BTreeSet<Endpoint>,
    pub(super) empty_pools: BTreeSet<String>,
    pub(super) outcome: String,
}

/// A change as it is sent, received and understood.
fn over_the_wire(change: &Change, strings: &mut Interner) -> Change {
    let encoded = encode(change);
    let body = encoded.body.expect("only what exists is told at first");
    let any = prost_types::Any { type_url: encoded.r#type.url().to_owned(), value: body };
    let resource = Resource { name: encoded.name.to_string(), aliases: encoded.aliases, resource: Some(any), ..Resource::default() };
    decode(encoded.r#type, &resource, strings).unwrap()
}

fn view(changes: &[Change]) -> View {
    let mut strings = Interner::default();
    View::default().apply(changes.iter().map(|change| over_the_wire(change, &mut strings)).collect::<Vec<_>>())
}

impl Mesh {
    /// What proxies know of these objects once all of them have caught up.
    pub(super) fn new(yaml: &str) -> Self {
        let snapshot = snapshot::of_text("world.yaml", yaml.to_owned());
        assert!(snapshot.findings.is_empty(), "{:?}", snapshot.findings);
        let mut compiler = Compiler::new(Settings::default());
        for object in &snapshot.objects {
            compiler.apply(object);
        }
        // The last word about each resource counts.
        let mut told: BTreeMap<String, Change> = BTreeMap::new();
        let mut learn = |changes: Vec<Change>| {
            for change in changes {
                let encoded = encode(&change);
                let key = format!("{:?} {}", encoded.r#type, encoded.name);
                match encoded.body {
                    Some(_) => told.insert(key, change),
                    None => told.remove(&key),
                };
            }
        };
        learn(compiler.changes());
        let mut waypoint = None;
        for told in compiler.waypoints() {
            compiler.acknowledged(&told.gateway);
            waypoint = told.changes.map(|changes| view(&changes));
        }
        learn(compiler.changes());
        let callers = view(&compiler.callers());
        Self { nodes: view(&told.into_values().collect::<Vec<_>>()), waypoint, brought: Cell::default(), callers }
    }

    fn pod(&self, (name, namespace): (&str, &str)) -> Arc<Workload> {
        let mut pods = self.nodes.workloads().filter(|pod| &*pod.name == name && &*pod.namespace == namespace);
        pods.next().expect("every world has its pods").clone()
    }

    /// The address that the question dials.
    fn destination(&self, question: &Question) -> SocketAddr {
        let (host, port) = question.destination.rsplit_once(':').unwrap();
        let address = |v4: &str, v6: &str| if question.ipv6 { v6.parse().unwrap() } else { v4.parse().unwrap() };
        let address: IpAddr = match host.strip_prefix("pod/") {
            Some(pod) => {
                let (name, namespace) = pod.split_once('.').unwrap();
                *self.pod((name, namespace)).addresses.iter().find(|address| address.is_ipv6() == question.ipv6).unwrap()
            }
            None if host == "app.shop" => address("10.96.0.9", "fd00:10:96::9"),
            None if host == "plain.shop" => address("10.96.0.10", "fd00:10:96::10"),
            None => host.parse().unwrap(),
        };
        SocketAddr::new(address, port.parse().unwrap())
    }

    /// What may be decided about a question.
    pub(super) fn decided(&self, question: &Question) -> Decided {
        let (caller, destination) = (self.pod(question.source), self.destination(question));
        let all: BTreeSet<Once> = match caller.tunnel_protocol {
            TunnelProtocol::None => self.uncaptured(&caller, destination),
            // Hooks pass what a pod says to itself.
            TunnelProtocol::Hbone if caller.addresses.contains(&destination.ip()) => {
                let endpoint = Some((None, destination.to_string(), true, BTreeSet::new()));
                [Once { way: Some("uncaptured"), endpoint, passed: true, ..Once::default() }].into()
            }
            TunnelProtocol::Hbone => (0..DRAWS).map(|seed| self.once(question, &caller, destination, seed)).collect(),
        };
        let mut decided = Decided::default();
        for one in &all {
            decided.ways.extend(one.way.map(ToOwned::to_owned));
            decided.next_hops.extend(one.next_hop.map(|hop| hop.to_string()));
            decided.route.clone_from(&one.route);
            decided.path.clone_from(&one.path);
            decided.answer = one.answer;
            decided.location.clone_from(&one.location);
            decided.refused_by.clone_from(&one.refused_by);
            decided.endpoints.extend(one.endpoint.clone());
            decided.empty_pools.extend(one.empty_pool.clone());
        }
        let passed = all.iter().filter(|one| one.passed).count();
        decided.outcome = if passed == 0 {
            "refused"
        } else if passed == all.len() {
            "allowed"
        } else {
            "depends"
        }
        .to_owned();
        decided
    }

    /// A caller outside of the mesh: Kubernetes sends it to any ready endpoint; there is no proxy but the destination's.
    fn uncaptured(&self, caller: &Workload, destination: SocketAddr) -> BTreeSet<Once> {
        let of_pod = self.nodes.workload_at("", destination.ip()).map(|pod| vec![(pod.clone(), destination)]);
        let service = self.nodes.service_at("", destination.ip(), &caller.namespace);
        let ends = of_pod.or_else(|| {
            let service = service?;
            let ready = self.nodes.endpoints(&service.hostname).filter(|endpoint| endpoint.workload.health == Health::Healthy);
            let ends = ready.filter_map(|endpoint| {
                let port = service.ports.get(&destination.port())?.target_port?;
                let address = endpoint.workload.addresses.iter().find(|address| address.is_ipv4() == destination.is_ipv4())?;
                Some((endpoint.workload.clone(), SocketAddr::new(*address, port)))
            });
            Some(ends.collect())
        });
        let base = Once { way: Some("uncaptured"), ..Once::default() };
        let Some(ends) = ends else {
            return [Once { endpoint: Some((None, destination.to_string(), true, BTreeSet::new())), passed: true, ..base }].into();
        };
        let one = |(callee, address): (Arc<Workload>, SocketAddr)| {
            let mut once = base.clone();
            self.arrive(&mut once, None, (&callee, address), (None, caller));
            once
        };
        let all: BTreeSet<Once> = ends.into_iter().map(one).collect();
        if all.is_empty() { [base].into() } else { all }
    }

    /// `ztunnel/src/outbound.rs`, then whoever it reaches.
    fn once(&self, question: &Question, caller: &Arc<Workload>, destination: SocketAddr, seed: u64) -> Once {
        let mut once = Once::default();
        let asked = resolve::Question { caller, destination: OriginalDestination(destination), network: "", tried: &[] };
        let mut draw = Draw::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let Ok(plan) = resolve::outbound(&self.nodes, &asked, &mut draw) else { return once };
        let _permit = authorize::outbound(&plan);
        match &plan {
            Plan::Direct { to } => {
                once.way = Some("direct");
                if let Authority::Address(address) = to.authority {
                    once.next_hop = Some(address);
                }
                once.endpoint = Some((None, to.authority.to_string(), true, BTreeSet::new()));
                once.passed = true;
            }
            Plan::Tunnel { via, target, waypoint: false } => {
                once.way = Some("tunnel");
                once.next_hop = Some(via.address);
                let Authority::Address(address) = target.authority else { panic!("pods have addresses") };
                self.arrive(&mut once, None, (&via.workload, address), (Some(caller.identity.clone()), caller));
            }
            Plan::Tunnel { via, target, waypoint: true } => {
                once.way = Some("waypoint");
                once.next_hop = Some(via.address);
                self.at_waypoint(&mut once, question, caller, &via.workload, &target.authority, &mut draw, seed);
            }
            Plan::Nested { .. } => panic!("there is one network"),
        }
        once
    }

    /// `ztunnel/src/inbound.rs` with an identity, `ztunnel/src/passthrough.rs` without.
    fn arrive(
        &self,
        once: &mut Once,
        pool: Option<String>,
        (callee, address): (&Arc<Workload>, SocketAddr),
        (peer, from): (Option<Identity>, &Workload),
    ) {
        let mut refused_by = BTreeSet::new();
        once.passed = callee.tunnel_protocol == TunnelProtocol::None || {
            let callee = self.nodes.workload(&callee.uid).unwrap();
            let arrival = match &peer {
                Some(_) => resolve::inbound(&self.nodes, callee, address.ip(), &Authority::Address(address), None),
                None => resolve::passthrough(&self.nodes, callee, OriginalDestination(address)),
            };
            let source = from.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4()).copied().unwrap();
            arrival.is_ok_and(|arrival| {
                let facts = ConnectionFacts { peer, source, destination: arrival.to };
                let denied = authorize::inbound(&self.nodes, callee, &facts).err();
                refused_by.extend(denied.iter().flat_map(|denied| denied.policies()).map(ToString::to_string));
                denied.is_none()
            })
        };
        once.endpoint = Some((pool, address.to_string(), once.passed, refused_by));
    }

    /// `waypoint/src/tunnel.rs`: what is addressed, and what is spoken there.
    #[allow(clippy::too_many_arguments, reason = "all that a request is about")]
    fn at_waypoint(
        &self,
        once: &mut Once,
        question: &Question,
        from: &Arc<Workload>,
        instance: &Arc<Workload>,
        authority: &Authority,
        draw: &mut Draw,
        turn: u64,
    ) {
        let gateway: Arc<str> = GATEWAY.into();
        let Some(view) = self.waypoint.as_ref() else { return };
        let Ok(addressed) = attached::addressed(view, &gateway, "", authority) else { return };
        let host = match &addressed {
            Addressed::Service { name, port, .. } => attached::service(view, &gateway, name, *port).unwrap(),
            Addressed::Workload { uid, address } => Arc::new(attached::workload(view, &gateway, "", uid, *address).unwrap()),
        };
        // As `waypoint/src/entry.rs`, once it knows who calls.
        let address = from.addresses.iter().find(|own| own.is_ipv4() == instance_family(authority)).copied();
        let at = |view: &'_ View| address.and_then(|address| view.caller_at("", address, &from.identity)).cloned();
        let known = at(view).or_else(|| at(&self.callers));
        let labels = known.map(|known| known.labels.clone()).unwrap_or_default();
        let caller = Caller { identity: Some(from.identity.clone()), address, labels };
        let here = Here { mesh: self, view, instance, host: &host, addressed: &addressed, caller: &caller, question, turn };
        match host.ports[&addressed.port()].protocol {
            PortProtocol::Tcp => here.connection(once, ServerName::Unknown, draw),
            PortProtocol::Tls => here.connection(once, question.server_name.map_or(ServerName::Absent, ServerName::Named), draw),
            _ => here.request(once, draw),
        }
    }
}

fn instance_family(authority: &Authority) -> bool {
    matches!(authority, Authority::Address(address) if address.is_ipv4())
}

/// A request or a connection at the waypoint.
struct Here<'a> {
    mesh: &'a Mesh,
    view: &'a View,
    instance: &'a Arc<Workload>,
    host: &'a Host,
    addressed: &'a Addressed,
    caller: &'a Caller,
    question: &'a Question,
    turn: u64,
}

impl Here<'_> {
    /// `waypoint/src/request.rs`.
    fn request(&self, once: &mut Once, draw: &mut Draw) {
        let question = self.question;
        let authority = question.authority();
        let path = canonical(question.target, PathNormalization::default());
        let (Ok(_), Ok(path)) = (canonical_host(&authority), path) else { return once.answer = Some(400) };
        let mut headers = HeaderMap::new();
        for (name, value) in &question.headers {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers.insert(header::HOST, HeaderValue::from_str(&authority).unwrap());
        let facts = RequestFacts {
            method: question.method,
            scheme: "http",
            authority: &authority,
            path: &path.path,
            query: path.query,
            headers: &headers,
            port: self.addressed.port(),
            caller: self.caller,
            remote_address: None,
            destination: self.addressed.address(),
            server_name: None,
            token: None,
        };
        if let Err(denied) = policy::target(&self.host.policies, &facts) {
            once.refused_by = denied.policies().iter().map(ToString::to_string).collect();
            return;
        }
        let Some(found) = matching::route(self.host, facts.port, &facts) else { return once.answer = Some(404) };
        once.route = Some((Some(found.route.name.to_string()), written(&found.route.origin)));
        if let Some(abort) = found.route.fault.as_ref().and_then(|fault| fault.abort.as_ref()).filter(|abort| draw.happens(abort.share_ppm))
        {
            return once.answer = Some(if let AbortStatus::Http(status) = abort.status { status } else { 200 });
        }
        match &found.route.action {
            RouteAction::Redirect(redirect) => {
                once.location = rewrite::location(redirect, found.matched, &facts).ok();
                once.passed = once.location.is_some();
                once.answer = Some(if once.passed { redirect.status } else { 400 });
            }
            RouteAction::Respond(direct) => {
                once.answer = Some(direct.status);
                once.passed = true;
            }
            RouteAction::Forward(forward) => {
                let path = match forward.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()) {
                    Some(path) => rewrite::path(path, found.matched, facts.path, facts.query),
                    None => Ok(facts.query.map_or_else(|| facts.path.to_owned(), |query| format!("{}?{query}", facts.path))),
                };
                let Ok(path) = path else { return once.answer = Some(400) };
                once.path = Some(path.clone());
                self.balance(once, &forward.destinations, Some(&facts), draw, |destination, endpoint| {
                    // As `waypoint/src/stages/authorize.rs`: the other service's policies see what is sent.
                    if let Some(there) = self.there(destination) {
                        let (changed, named) = rewrite::request_headers(found.route, Some(destination), &headers).unwrap();
                        let authority = rewrite::authority(forward, named.as_deref()).unwrap_or(&authority);
                        let headers = changed.as_ref().unwrap_or(&headers);
                        let sent = Sent::new(&path, authority, headers, destination.pool.port, PathNormalization::default()).unwrap();
                        self.brought(policy::brought(&there.policies, &sent.facts(&facts)))?;
                    }
                    policy::endpoint(&self.host.policies, &facts, endpoint)
                });
            }
        }
    }

    /// `waypoint/src/connection.rs`.
    fn connection(&self, once: &mut Once, server_name: ServerName<&str>, draw: &mut Draw) {
        let (port, destination) = (self.addressed.port(), self.addressed.address());
        let facts = StreamFacts { caller: self.caller, port, destination, server_name };
        if let Err(denied) = policy::connection_target(&self.host.policies, &facts) {
            once.refused_by = denied.policies().iter().map(ToString::to_string).collect();
            return;
        }
        let tls = server_name.known().and_then(|name| matching::tls(self.host, port, name, destination, self.caller));
        let found = tls.map(|route| (&route.origin, &route.destinations));
        let tcp = || matching::tcp(self.host, port, destination, self.caller).map(|route| (&route.origin, &route.destinations));
        let Some((origin, destinations)) = found.or_else(tcp) else { return };
        once.route = Some((None, written(origin)));
        self.balance(once, destinations, None, draw, |destination, endpoint| {
            if let Some(there) = self.there(destination) {
                self.brought(policy::connection_brought(&there.policies, &facts, destination.pool.port))?;
            }
            policy::connection_endpoint(&self.host.policies, &facts, endpoint)
        });
    }

    /// The other service to which a route leads, if policies of it are to be asked.
    fn there(&self, destination: &Destination) -> Option<&Host> {
        let there = self.view.host(&destination.pool.host).filter(|there| there.name != self.host.name)?;
        policy::judges_brought(&there.policies).then_some(&**there)
    }

    /// Counts what they say.
    fn brought(&self, decided: Result<policy::RequestPermit, policy::RequestDenied>) -> Result<(), policy::RequestDenied> {
        let (allowed, denied) = self.mesh.brought.get();
        self.mesh.brought.set(if decided.is_ok() { (allowed + 1, denied) } else { (allowed, denied + 1) });
        decided.map(drop)
    }

    /// `waypoint/src/stages/balance.rs`, then the endpoint's policies, then its own node proxy.
    fn balance(
        &self,
        once: &mut Once,
        destinations: &[Destination],
        facts: Option<&RequestFacts<'_>>,
        draw: &mut Draw,
        decide: impl Fn(&Destination, policy::Endpoint<'_>) -> Result<policy::RequestPermit, policy::RequestDenied>,
    ) {
        let Some(destination) = pick::destination(destinations, draw) else { return };
        let name = self.pool(&destination.pool);
        let Some(pool) = self.host.pools.get(&destination.pool) else { return once.empty_pool = Some(name) };
        let members = reach::find(self.view, GATEWAY, "", pool);
        let candidate = |found: &Found| Candidate {
            workload: found.workload.clone(),
            address: found.own_address(),
            weight: found.workload.capacity,
            healthy: true,
            since: None,
        };
        let endpoints = Endpoints::new(pool, Some(self.instance), members.iter().map(candidate).collect());
        let hash = match (&pool.balancer, facts) {
            (Balancer::ConsistentHash { key, .. }, Some(facts)) => match hash::key(key, facts) {
                hash::Hashed::Known(hash) => Some(hash),
                _ => None,
            },
            _ => None,
        };
        let addressed = self.addressed.address().map(|address| SocketAddr::new(address, self.addressed.port()));
        let ask = Ask { hash, turn: self.turn, addressed, ..Ask::default() };
        let Ok(place) = endpoints.pick(&ask, |_| 0, draw) else { return once.empty_pool = Some(name) };
        let found = &members[place];
        if let Err(denied) = decide(destination, policy::Endpoint { workload: &found.workload, address: found.reach.address }) {
            let policies = denied.policies().iter().map(ToString::to_string).collect();
            once.endpoint = Some((Some(name), found.reach.address.to_string(), false, policies));
            return;
        }
        let peer = found.reach.tunnel.as_ref().map(|_| self.instance.identity.clone());
        self.mesh.arrive(once, Some(name), (&found.workload, found.reach.address), (peer, self.instance));
    }

    fn pool(&self, key: &PoolKey) -> String {
        if let Addressed::Workload { uid, .. } = self.addressed {
            let workload = self.view.workload(uid).unwrap();
            return format!("{}.{}", workload.name, workload.namespace);
        }
        let host = key.host.hostname.trim_end_matches(".svc.cluster.local");
        let subset = key.subset.as_ref().map(|subset| format!("/{subset}")).unwrap_or_default();
        format!("{host}:{}{subset}", key.port)
    }
}

fn written(origin: &Origin) -> String {
    format!("{} {} {}", origin.kind, origin.object, origin.field).trim_end().to_owned()
}
