//! The journey through a waypoint: policy of what is addressed, route, endpoints with their policy, and what the destination says to the
//! waypoint.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderValue, header};
use tropis_model::{
    authorize::request::{self as policy, RequestDenied, RequestPermit, ServerName, StreamFacts, Verdict as Said},
    matching::{self, Missed},
    pool::Pool,
    request::{PathNormalization, RequestFacts, canonical, canonical_host},
    request_policy::{RequestAction, RequestPolicy},
    resolve::{Authority, Target},
    route::{Caller, Destination, Forward, Host, HttpRoute, PortProtocol, RouteAction},
    view::View,
    workload::{Health, TunnelProtocol, Workload},
};

use super::{
    connection::{address_like, admitted, gateway, shown},
    question::Question,
    story::{Story, Verdict},
};
use crate::{
    mesh::{self, Mesh},
    render,
};

/// Tells what the waypoint of `instance` does with the question.
pub(super) fn tell(mesh: &Mesh, question: &Question, instance: &Workload, target: &Target, mut story: Story) -> Story {
    let (key, named) = gateway(mesh, instance);
    let Some(view) = mesh.waypoints.get(&key) else {
        return story.ends(Verdict::Refused(format!("nothing is known of waypoint {named}; is there a Gateway of this name?")));
    };
    let waypoint = Waypoint { mesh, question, view, instance };
    let caller = waypoint.caller();
    match (&target.service, &target.workload) {
        (Some(service), _) => {
            let Some(host) = view.host(&service.hostname) else {
                return story.ends(Verdict::Refused(format!("waypoint {named} does not serve {}", service.hostname)));
            };
            let port = host.ports.get(&question.destination.port());
            match port.map(|port| port.protocol) {
                Some(PortProtocol::Tcp | PortProtocol::Tls) => waypoint.connection(host, &caller, story),
                Some(_) => waypoint.request(host, &caller, story),
                None => {
                    let reason = format!("{} has no port {}", service.hostname, question.destination.port());
                    story.ends(Verdict::Refused(reason))
                }
            }
        }
        (None, Some(workload)) => {
            let policies = view.waypoint(&named).map(|own| own.policies.clone()).unwrap_or_default();
            let address = match target.authority {
                Authority::Address(address) => address,
                Authority::Hostname { .. } => question.destination,
            };
            story.step("route", format!("{} itself was addressed: nothing is routed", shown(workload)), Vec::new());
            let verdict = waypoint.with_facts(&caller, |facts| waypoint.endpoint(&policies, facts, workload, address, &mut story));
            match verdict {
                Ok(verdict) => story.ends(verdict),
                Err(reason) => story.ends(Verdict::Refused(reason)),
            }
        }
        (None, None) => story.ends(Verdict::Refused("the waypoint cannot tell what is addressed".to_owned())),
    }
}

/// The waypoint as it decides.
struct Waypoint<'a> {
    mesh: &'a Mesh,
    question: &'a Question,
    view: &'a View,
    /// One of its pods.
    instance: &'a Workload,
}

impl Waypoint<'_> {
    /// The original caller, with the labels that this waypoint is told.
    fn caller(&self) -> Caller {
        let caller = &self.question.caller;
        let labels = self.view.workload(&caller.uid).map(|own| own.labels.clone()).unwrap_or_default();
        let address = address_like(caller, self.question.destination.ip());
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
            port: self.question.destination.port(),
            caller,
            remote_address: None,
            destination: Some(self.question.destination.ip()),
            server_name: None,
            token: None,
        }))
    }

    fn request(&self, host: &Host, caller: &Caller, mut story: Story) -> Story {
        let verdict = self.with_facts(caller, |facts| {
            let request = &self.question.request;
            let said = policy::explain_target(&host.policies, facts);
            let what = format!("{} {} at {}", request.method, facts.path, host.name.hostname);
            if let Some(refused) = asked(&what, &said, policy::target(&host.policies, facts), &mut story) {
                return refused;
            }
            let found = matching::explain(host, facts.port, facts);
            let missed: Vec<String> = found.missed.iter().map(missed).collect();
            let Some(matched) = found.matched else {
                story.step("route", "no route matches", missed);
                return Verdict::Refused("404, no route matches (flag NR)".to_owned());
            };
            let mut because = missed;
            because.push(format!("{} matches: {}", render::origin(&matched.route.origin), render::matches(matched.route)));
            story.step("route", format!("{}: {}", render::origin(&matched.route.origin), render::action(matched.route)), because);
            extras(matched.route, &mut story);
            match &matched.route.action {
                RouteAction::Forward(forward) => self.forward(host, facts, forward, &mut story),
                RouteAction::Redirect(_) | RouteAction::Respond(_) => Verdict::Allowed,
            }
        });
        story.ends(verdict.unwrap_or_else(Verdict::Refused))
    }

    fn forward(&self, host: &Host, facts: &RequestFacts<'_>, forward: &Forward, story: &mut Story) -> Verdict {
        let mut verdicts = Vec::new();
        for destination in chosen(&forward.destinations) {
            verdicts.extend(self.balance(host, destination, story, |workload, address, story| {
                self.endpoint(&host.policies, facts, workload, address, story)
            }));
        }
        Verdict::of_any(&verdicts, "503, every destination has weight 0")
    }

    /// What becomes of a share of the traffic: a verdict for each endpoint of its pool, or one about the pool.
    fn balance(
        &self,
        host: &Host,
        destination: &Destination,
        story: &mut Story,
        mut endpoint: impl FnMut(&Workload, SocketAddr, &mut Story) -> Verdict,
    ) -> Vec<Verdict> {
        let name = render::pool(&destination.pool);
        let Some(pool) = host.pools.get(&destination.pool) else {
            story.step(
                "balance",
                format!("{name} does not exist"),
                vec!["no Service or no subset of a DestinationRule is called so".to_owned()],
            );
            return vec![Verdict::Refused(format!("503, {name} does not exist (flag NC)"))];
        };
        let members: Vec<_> = mesh::members(self.view, pool).collect();
        let shown: Vec<String> = members.iter().map(|(workload, address)| member(workload, *address)).collect();
        let selected = if pool.labels.is_empty() { String::new() } else { format!(" labelled {}", render::labels(&pool.labels)) };
        let says = format!(
            "{name}: {}{selected}, by {}{}",
            render::counted(members.len(), "endpoint", "endpoints"),
            render::balancer(&pool.balancer),
            limits(pool)
        );
        story.step("balance", says, shown);
        let healthy: Vec<_> = members.into_iter().filter(|(workload, _)| workload.health == Health::Healthy).collect();
        if healthy.is_empty() {
            return vec![Verdict::Refused(format!("503, {name} has no healthy endpoint (flag UH)"))];
        }
        healthy.into_iter().map(|(workload, address)| endpoint(workload, address, story)).collect()
    }

    /// What selects an endpoint, and what its own node proxy says to the waypoint.
    fn endpoint(
        &self,
        policies: &[Arc<RequestPolicy>],
        facts: &RequestFacts<'_>,
        workload: &Workload,
        address: SocketAddr,
        story: &mut Story,
    ) -> Verdict {
        let said = policy::explain_endpoint(policies, facts, workload, address);
        let what = format!("{} {} for {}", facts.method, facts.path, shown(workload));
        let decided = policy::endpoint(policies, facts, workload, address);
        asked(&what, &said, decided, story).unwrap_or_else(|| self.arrive(workload, address, story))
    }

    fn arrive(&self, workload: &Workload, address: SocketAddr, story: &mut Story) -> Verdict {
        if workload.tunnel_protocol == TunnelProtocol::None {
            story.step("authorize", format!("{} is not in the mesh: the waypoint calls it in plain TCP", shown(workload)), Vec::new());
            return Verdict::Allowed;
        }
        let source = address_like(self.instance, address.ip());
        admitted(self.mesh, workload, Some(self.instance.identity.clone()), source, address, story)
    }

    fn connection(&self, host: &Host, caller: &Caller, mut story: Story) -> Story {
        let destination = Some(self.question.destination.ip());
        let port = self.question.destination.port();
        // As at the waypoint: on a port that is declared to be TCP nobody looks for TLS.
        let is_tcp = host.ports.get(&port).is_some_and(|port| port.protocol == PortProtocol::Tcp);
        let server_name = if is_tcp { ServerName::Unknown } else { ServerName::Absent };
        let facts = StreamFacts { caller, port, destination, server_name };
        let what = format!("a connection to {}", host.name.hostname);
        if let Some(refused) = asked(&what, &[], policy::connection_target(&host.policies, &facts), &mut story) {
            return story.ends(refused);
        }
        let Some(route) = matching::tcp(host, facts.port, destination, caller) else {
            story.step("route", "no route takes connections", Vec::new());
            return story.ends(Verdict::Refused("no route matches (flag NR)".to_owned()));
        };
        story.step(
            "route",
            format!("{}: {}", render::origin(&route.origin), render::destinations(&route.destinations).join(", ")),
            Vec::new(),
        );
        let mut verdicts = Vec::new();
        for destination in chosen(&route.destinations) {
            verdicts.extend(self.balance(host, destination, &mut story, |workload, address, story| {
                let what = format!("a connection for {}", shown(workload));
                let decided = policy::connection_endpoint(&host.policies, &facts, workload, address);
                asked(&what, &[], decided, story).unwrap_or_else(|| self.arrive(workload, address, story))
            }));
        }
        story.ends(Verdict::of_any(&verdicts, "every destination has weight 0"))
    }
}

/// The destinations that traffic may go to: one alone whatever its weight, of several those that weigh something.
fn chosen(destinations: &[Destination]) -> impl Iterator<Item = &Destination> {
    let alone = destinations.len() == 1;
    destinations.iter().filter(move |destination| alone || destination.weight > 0)
}

/// Tells what policies said; a verdict only if they refuse.
fn asked(what: &str, said: &[Said<'_>], decided: Result<RequestPermit, RequestDenied>, story: &mut Story) -> Option<Verdict> {
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
            Some(Verdict::Refused(format!("403, {denied}")))
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
        told.extend(forward.rewrite.as_ref().map(|_| "path or authority are rewritten".to_owned()));
    }
    if !told.is_empty() {
        story.step("forward", "what the route adds", told);
    }
}

fn limits(pool: &Pool) -> &'static str {
    if pool.outlier.is_some() { ", failing endpoints are ejected (see `tropis proxy-config endpoints`)" } else { "" }
}

fn member(workload: &Workload, address: SocketAddr) -> String {
    let health = if workload.health == Health::Healthy { "" } else { ", not ready" };
    format!("{} at {address}{health}", shown(workload))
}
