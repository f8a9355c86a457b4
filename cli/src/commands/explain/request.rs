//! The journey through a waypoint: policy of what is addressed, route, endpoints with their policy, and what the destination says to the
//! waypoint.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use http::{HeaderValue, header};
use tropis_model::{
    attached::{self, Addressed},
    authorize::request::{self as policy, RequestDenied, RequestPermit, ServerName, StreamFacts, Verdict as Said},
    matching::{self, Matched, Missed},
    pick::{Ask, Candidate, Endpoints, hash},
    pool::{Balancer, Pool},
    reach::{self, Found},
    request::{PathNormalization, RequestFacts, canonical, canonical_host},
    request_policy::RequestAction,
    resolve::{Draw, Target},
    rewrite::{self, Sent},
    route::{AbortStatus, Caller, Destination, Fault, Forward, Host, HttpRoute, PortProtocol, RouteAction},
    view::View,
    workload::{Health, Workload},
};

use super::{
    connection::{DRAWS_EACH, Peer, address_like, admitted, gateway, shown},
    question::Question,
    story::{Ending, Route, Story, Verdict},
};
use crate::{mesh::Mesh, render};

/// A larger pool is not asked for each of its endpoints.
const DRAWS_MAX: usize = 4096;
/// What a caller gets for a request that policy refuses, for one that nobody serves, and for a connection that ends in either way.
const FORBIDDEN: &str = "403";
const UNAVAILABLE: &str = "503";
const RESET: &str = "reset";
/// All requests.
const ALL_PPM: u32 = 1_000_000;

/// Tells what the waypoint of `instance` does with the question.
pub(super) fn tell(mesh: &Mesh, question: &Question, instance: &Workload, target: &Target, mut story: Story) -> Story {
    let (key, named) = gateway(mesh, instance);
    let Some(view) = mesh.waypoints.get(&key) else {
        return story.ends(Verdict::Refused(format!("nothing is known of waypoint {named}; is there a Gateway of this name?")));
    };
    let (gateway, network): (Arc<str>, &str) = (named.into(), &question.caller.network);
    let found = attached::addressed(view, &gateway, network, &target.authority).and_then(|addressed| {
        let host = match &addressed {
            Addressed::Service { name, port, .. } => attached::service(view, &gateway, name, *port)?,
            Addressed::Workload { uid, address } => Arc::new(attached::workload(view, &gateway, network, uid, *address)?),
        };
        Ok((addressed, host))
    });
    let (addressed, host) = match found {
        Ok(found) => found,
        Err(error) => {
            story.step("resolve", format!("waypoint {gateway}: {error}"), Vec::new());
            return story.ends(Verdict::Refused(error.to_string()));
        }
    };
    let waypoint = Waypoint { mesh, question, view, gateway, instance, addressed: &addressed, host: &host };
    let caller = waypoint.caller();
    match host.ports.get(&addressed.port()).map(|port| port.protocol).unwrap_or_default() {
        // Nobody looks for TLS on a port that is declared to be TCP.
        PortProtocol::Tcp => waypoint.connection(&caller, ServerName::Unknown, story),
        protocol => match &question.server_name {
            Some(name) => waypoint.connection(&caller, ServerName::Named(name), story),
            None if protocol == PortProtocol::Tls => waypoint.connection(&caller, ServerName::Absent, story),
            None => waypoint.request(&caller, story),
        },
    }
}

/// The waypoint as it decides.
struct Waypoint<'a> {
    mesh: &'a Mesh,
    question: &'a Question,
    view: &'a View,
    gateway: Arc<str>,
    /// One of its pods.
    instance: &'a Workload,
    addressed: &'a Addressed,
    host: &'a Host,
}

impl Waypoint<'_> {
    /// The original caller, with the labels that this waypoint is told, be it when it asks.
    fn caller(&self) -> Caller {
        let caller = &self.question.caller;
        let address = address_like(caller, self.question.destination.ip());
        let known = self.view.caller_at(&caller.network, address, &caller.identity);
        let labels = known.unwrap_or_else(|| self.mesh.as_caller(caller)).labels.clone();
        Caller { identity: Some(caller.identity.clone()), address: Some(address), labels }
    }

    /// Gives `decide` the request as routes and policies see it; an error says why nobody would look at it further.
    fn with_facts<T>(&self, caller: &Caller, decide: impl FnOnce(&RequestFacts<'_>) -> T) -> Result<T, String> {
        let request = &self.question.request;
        let refused = |error: &dyn std::fmt::Display| format!("400: {error}");
        canonical_host(&request.authority).map_err(|error| refused(&error))?;
        let path = canonical(&request.target, PathNormalization::default()).map_err(|error| refused(&error))?;
        let mut headers = request.headers.clone();
        if let (false, Ok(host)) = (headers.contains_key(header::HOST), HeaderValue::from_str(&request.authority)) {
            headers.insert(header::HOST, host);
        }
        Ok(decide(&RequestFacts {
            method: &request.method,
            scheme: "http",
            authority: &request.authority,
            path: &path.path,
            query: path.query,
            headers: &headers,
            port: self.addressed.port(),
            caller,
            remote_address: None,
            destination: self.addressed.address(),
            server_name: None,
            token: None,
        }))
    }

    fn request(&self, caller: &Caller, mut story: Story) -> Story {
        let verdict = self.with_facts(caller, |facts| {
            let said = policy::explain_target(&self.host.policies, facts);
            let what = format!("{} {} at {}", facts.method, facts.path, self.named());
            if let Some(refused) = asked(&what, &said, policy::target(&self.host.policies, facts), FORBIDDEN, &mut story) {
                story.decided.refused_by = refused.refused_by;
                return refused.verdict;
            }
            let found = matching::explain(self.host, facts.port, facts);
            let mut because: Vec<String> = found.missed.iter().map(missed).collect();
            let Some(matched) = found.matched else {
                story.step("route", "no route matches", because);
                story.decided.answer = Some(404);
                return Verdict::Refused("404, no route matches (flag NR)".to_owned());
            };
            let origin = render::origin(&matched.route.origin);
            because.push(format!("{origin} matches: {}", render::matches(matched.route)));
            story.step("route", format!("{origin}: {}", render::action(matched.route)), because);
            story.decided.route = Some(Route { name: Some(matched.route.name.to_string()), origin });
            extras(matched.route, &mut story);
            self.act(facts, &matched, &mut story)
        });
        if verdict.is_err() {
            story.decided.answer = Some(400);
        }
        story.ends(verdict.unwrap_or_else(Verdict::Refused))
    }

    /// What is addressed, as a person names it.
    fn named(&self) -> String {
        let addressed = match self.addressed {
            Addressed::Workload { uid, .. } => self.view.workload(uid).map(|workload| shown(workload)),
            Addressed::Service { .. } => None,
        };
        addressed.unwrap_or_else(|| self.host.name.hostname.to_string())
    }

    /// What the route does, faults first.
    fn act(&self, facts: &RequestFacts<'_>, matched: &Matched<'_>, story: &mut Story) -> Verdict {
        let route = matched.route;
        if let Some(status) = route.fault.as_ref().and_then(always_aborted) {
            story.decided.answer = Some(status);
            return Verdict::Refused(format!("{status}, a fault that is put in for every request (flag FI)"));
        }
        match &route.action {
            RouteAction::Forward(forward) => {
                let path = match forward.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()) {
                    Some(path) => rewrite::path(path, matched.matched, facts.path, facts.query),
                    None => Ok(facts.query.map_or_else(|| facts.path.to_owned(), |query| format!("{}?{query}", facts.path))),
                };
                match path {
                    Ok(path) => self.forward(facts, (route, forward), path, story),
                    Err(error) => {
                        story.decided.answer = Some(400);
                        Verdict::Refused(format!("400, the rewritten path is ambiguous: {error}"))
                    }
                }
            }
            RouteAction::Redirect(redirect) => match rewrite::location(redirect, matched.matched, facts) {
                Ok(location) => {
                    story.step("forward", format!("the caller is sent to {location}"), Vec::new());
                    story.decided.answer = Some(redirect.status);
                    story.decided.location = Some(location);
                    Verdict::Allowed
                }
                Err(error) => {
                    story.decided.answer = Some(400);
                    Verdict::Refused(format!("400, the rewritten path is ambiguous: {error}"))
                }
            },
            RouteAction::Respond(direct) => {
                story.decided.answer = Some(direct.status);
                Verdict::Allowed
            }
        }
    }

    fn forward(&self, facts: &RequestFacts<'_>, (route, forward): (&HttpRoute, &Forward), path: String, story: &mut Story) -> Verdict {
        if let Some(rewrite) = &forward.rewrite {
            let authority = rewrite.authority.as_deref().map(|authority| format!("to {authority}"));
            let asks = rewrite.path.as_ref().map(|_| format!("for {path}"));
            let says: Vec<String> = authority.into_iter().chain(asks).collect();
            story.step("forward", format!("it is sent on {}", says.join(" ")), Vec::new());
        }
        story.decided.path = Some(path.clone());
        let mut verdicts = Vec::new();
        for destination in chosen(&forward.destinations) {
            let (headers, authority) = match rewrite::request_headers(route, Some(destination), facts.headers) {
                Ok(changed) => changed,
                Err(error) => {
                    story.decided.answer = Some(500);
                    verdicts.push(Verdict::Refused(format!("500, {error}")));
                    continue;
                }
            };
            let there = self.brought_to(destination);
            let authority = rewrite::authority(forward, authority.as_deref()).unwrap_or(facts.authority);
            let headers = headers.as_ref().unwrap_or(facts.headers);
            let sent = there.map(|_| Sent::new(&path, authority, headers, destination.pool.port, PathNormalization::default())).transpose();
            let brought = match &sent {
                Ok(sent) => there.zip(sent.as_ref().map(|sent| sent.facts(facts))),
                Err(error) => {
                    story.decided.answer = Some(400);
                    verdicts.push(Verdict::Refused(format!("400, the rewritten path is ambiguous: {error}")));
                    continue;
                }
            };
            verdicts.extend(self.balance(destination, Some(facts), story, |found, story| {
                let refused = brought.and_then(|(there, sent)| {
                    let what = format!("{} {} at {}, where the route brings it", sent.method, sent.path, there.name.hostname);
                    let said = policy::explain_brought(&there.policies, &sent);
                    asked(&what, &said, policy::brought(&there.policies, &sent), FORBIDDEN, story)
                });
                refused.or_else(|| {
                    let said = policy::explain_endpoint(&self.host.policies, facts, endpoint(found));
                    let what = format!("{} {} for {}", facts.method, facts.path, shown(&found.workload));
                    asked(&what, &said, policy::endpoint(&self.host.policies, facts, endpoint(found)), FORBIDDEN, story)
                })
            }));
        }
        Verdict::of_any(&verdicts, "503, every destination has weight 0")
    }

    /// The host whose policies are asked about what a route brings to another service.
    fn brought_to(&self, destination: &Destination) -> Option<&Host> {
        let there = self.view.host(&destination.pool.host).filter(|there| there.name != self.host.name)?;
        policy::judges_brought(&there.policies).then_some(&**there)
    }

    /// What becomes of a share of the traffic: a verdict for each endpoint of its pool, or one about the pool. `endpoint` says what the
    /// policies that select an endpoint refuse.
    fn balance(
        &self,
        destination: &Destination,
        facts: Option<&RequestFacts<'_>>,
        story: &mut Story,
        mut endpoint: impl FnMut(&Found, &mut Story) -> Option<Ending>,
    ) -> Vec<Verdict> {
        let name = match self.addressed {
            Addressed::Service { .. } => render::pool(&destination.pool),
            Addressed::Workload { .. } => self.named(),
        };
        let gets = if facts.is_some() { UNAVAILABLE } else { RESET };
        let Some(pool) = self.host.pools.get(&destination.pool) else {
            let because = vec!["no Service or no subset of a DestinationRule is called so".to_owned()];
            story.step("balance", format!("{name} does not exist"), because);
            story.decided.empty_pools.insert(name.clone());
            return vec![Verdict::Refused(format!("{gets}, {name} does not exist (flag NC)"))];
        };
        let members = reach::find(self.view, &self.gateway, &self.question.caller.network, pool);
        let choosable = self.choosable(pool, &members, facts);
        let told: Vec<String> = members.iter().enumerate().map(|(place, found)| member(found, choosable.contains(&place))).collect();
        let selected = if pool.labels.is_empty() { String::new() } else { format!(" labelled {}", render::labels(&pool.labels)) };
        let count = render::counted(members.len(), "endpoint", "endpoints");
        story.step("balance", format!("{name}: {count}{selected}, by {}{}", render::balancer(&pool.balancer), limits(pool)), told);
        if choosable.is_empty() {
            story.decided.empty_pools.insert(name.clone());
            return vec![Verdict::Refused(format!("{gets}, {name} has no healthy endpoint (flag UH)"))];
        }
        let verdicts = choosable.into_iter().map(|place| {
            let found = &members[place];
            let ending = endpoint(found, story).unwrap_or_else(|| self.arrive(found, story));
            story.end(Some(name.clone()), found.reach.address, ending)
        });
        verdicts.collect()
    }

    /// The places of those members that the balancer may choose, while none of them failed: it is asked again and again.
    fn choosable(&self, pool: &Pool, members: &[Found], facts: Option<&RequestFacts<'_>>) -> BTreeSet<usize> {
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
                hash::Hashed::Missing | hash::Hashed::CookieToMake => None,
            },
            _ => None,
        };
        let addressed = self.addressed.address().map(|address| SocketAddr::new(address, self.addressed.port()));
        let mut draw = Draw::new(1);
        let draws = (members.len() * DRAWS_EACH).min(DRAWS_MAX);
        let asks = (0..draws).map(|turn| Ask { hash, turn: turn as u64, addressed, ..Ask::default() });
        asks.filter_map(|ask| endpoints.pick(&ask, |_| 0, &mut draw).ok()).collect()
    }

    fn arrive(&self, found: &Found, story: &mut Story) -> Ending {
        let (workload, address) = (&found.workload, found.reach.address);
        let Some(tunnel) = &found.reach.tunnel else {
            story.step("authorize", format!("{} is not in the mesh: the waypoint calls it in plain TCP", shown(workload)), Vec::new());
            return Ending::allowed();
        };
        if tunnel.address.ip() != address.ip() {
            let says = format!("{} is of another waypoint, which decides too, about a call of this one", shown(workload));
            story.step("authorize", says, Vec::new());
            let verdict = Verdict::Depends(format!("what the waypoint of {} says", shown(workload)));
            return Ending { verdict, refused_by: BTreeSet::new() };
        }
        let source = address_like(self.instance, address.ip());
        admitted(self.mesh, workload, Peer { identity: Some(self.instance.identity.clone()), source }, address, story)
    }

    fn connection(&self, caller: &Caller, server_name: ServerName<&str>, mut story: Story) -> Story {
        let (port, destination) = (self.addressed.port(), self.addressed.address());
        let facts = StreamFacts { caller, port, destination, server_name };
        let what = format!("a connection to {}", self.named());
        if let Some(refused) = asked(&what, &[], policy::connection_target(&self.host.policies, &facts), RESET, &mut story) {
            story.decided.refused_by = refused.refused_by;
            return story.ends(refused.verdict);
        }
        // As at the waypoint: routes by the server name come first.
        let by_name = server_name.known().and_then(|name| matching::tls(self.host, port, name, destination, caller));
        let found = match by_name {
            Some(route) => Some((&route.origin, &route.destinations)),
            None => matching::tcp(self.host, port, destination, caller).map(|route| (&route.origin, &route.destinations)),
        };
        let Some((origin, destinations)) = found else {
            story.step("route", "no route takes connections", Vec::new());
            return story.ends(Verdict::Refused(format!("{RESET}, no route matches (flag NR)")));
        };
        let origin = render::origin(origin);
        story.step("route", format!("{origin}: {}", render::destinations(destinations).join(", ")), Vec::new());
        story.decided.route = Some(Route { name: None, origin });
        let mut verdicts = Vec::new();
        for destination in chosen(destinations) {
            verdicts.extend(self.balance(destination, None, &mut story, |found, story| {
                let refused = self.brought_to(destination).and_then(|there| {
                    let what = format!("a connection to {}, where the route brings it", there.name.hostname);
                    asked(&what, &[], policy::connection_brought(&there.policies, &facts, destination.pool.port), RESET, story)
                });
                refused.or_else(|| {
                    let what = format!("a connection for {}", shown(&found.workload));
                    asked(&what, &[], policy::connection_endpoint(&self.host.policies, &facts, endpoint(found)), RESET, story)
                })
            }));
        }
        story.ends(Verdict::of_any(&verdicts, "reset, every destination has weight 0"))
    }
}

/// An endpoint, as policies look at it.
fn endpoint(found: &Found) -> policy::Endpoint<'_> {
    policy::Endpoint { workload: &found.workload, address: found.reach.address }
}

/// The status of a fault that takes every request.
fn always_aborted(fault: &Fault) -> Option<u16> {
    let abort = fault.abort.as_ref().filter(|abort| abort.share_ppm >= ALL_PPM)?;
    Some(match abort.status {
        AbortStatus::Http(status) => status,
        AbortStatus::Grpc(_) => 200,
    })
}

/// The destinations that traffic may go to: one alone whatever its weight, of several those that weigh something.
fn chosen(destinations: &[Destination]) -> impl Iterator<Item = &Destination> {
    let alone = destinations.len() == 1;
    destinations.iter().filter(move |destination| alone || destination.weight > 0)
}

/// Tells what policies said; an ending only if they refuse, with what the caller gets then.
fn asked(what: &str, said: &[Said<'_>], decided: Result<RequestPermit, RequestDenied>, gets: &str, story: &mut Story) -> Option<Ending> {
    let because: Vec<String> = said.iter().map(verdict).collect();
    match decided {
        Ok(permit) => {
            let word = match permit.dry_run_denial() {
                Some(denied) => format!("allowed; a dry run says: {denied}"),
                None if because.is_empty() => "no policy refuses it".to_owned(),
                None => "allowed".to_owned(),
            };
            story.step("authorize", format!("{what}: {word}"), because);
            None
        }
        Err(denied) => {
            story.step("authorize", format!("{what}: refused, {denied}"), because);
            Some(Ending::refused(format!("{gets}, {denied}"), denied.policies().iter().map(ToString::to_string)))
        }
    }
}

fn verdict(said: &Said<'_>) -> String {
    let action = match said.policy.action {
        RequestAction::Allow => "ALLOW",
        RequestAction::Deny => "DENY",
        RequestAction::Audit => "AUDIT",
    };
    let rule = said.rule.map_or_else(|| "no rule matches".to_owned(), |rule| format!("rule {rule} matches"));
    format!("{action}{} {}: {rule}", if said.policy.dry_run { " (dry run)" } else { "" }, said.policy.key)
}

fn missed(missed: &Missed<'_>) -> String {
    let fields: Vec<String> = missed.fields.iter().map(ToString::to_string).collect();
    format!("{} does not match: {}", render::origin(&missed.route.origin), fields.join(", or "))
}

/// What else the route does to a request.
fn extras(route: &HttpRoute, story: &mut Story) {
    let mut told = Vec::new();
    if let Some(delay) = route.fault.as_ref().and_then(|fault| fault.delay.as_ref()) {
        told.push(format!("a delay of {:?} for {} of requests", delay.duration, render::percent(u64::from(delay.share_ppm), 1_000_000)));
    }
    if let Some(abort) = route.fault.as_ref().and_then(|fault| fault.abort.as_ref()) {
        told.push(format!(
            "{:?} in place of an answer for {} of requests",
            abort.status,
            render::percent(u64::from(abort.share_ppm), 1_000_000)
        ));
    }
    if let RouteAction::Forward(forward) = &route.action {
        told.extend(forward.timeout.map(|timeout| format!("a timeout of {timeout:?} for all tries together")));
        if forward.retries.attempts > 0 {
            told.push(format!("up to {} more tries", forward.retries.attempts));
        }
    }
    if !told.is_empty() {
        story.step("forward", "what the route adds", told);
    }
}

fn limits(pool: &Pool) -> &'static str {
    if pool.outlier.is_some() { ", failing endpoints are ejected (see `tropis proxy-config endpoints`)" } else { "" }
}

fn member(found: &Found, is_choosable: bool) -> String {
    let health = if found.workload.health == Health::Healthy { "" } else { ", not ready" };
    let chosen = if is_choosable { "" } else { ", not chosen while others serve" };
    format!("{} at {}{health}{chosen}", shown(&found.workload), found.reach.address)
}
