//! The journey of a connection: what the caller's node proxy decides, then the destination's.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tropis_compile::waypoint::GATEWAY_NAME;
use tropis_model::{
    address::OriginalDestination,
    authorize::{self, ConnectionFacts, Verdict as Said},
    identity::Identity,
    policy::{Action, Policy},
    resolve::{self, Authority, Draw, Plan, Target},
    service::HealthPolicy,
    workload::{Health, TunnelProtocol, Workload},
};

use super::{
    question::Question,
    request,
    story::{Ending, Story, Verdict, Way},
};
use crate::{mesh::Mesh, render};

/// More ways than this are not told: each is one endpoint or instance.
const PLANS_MAX: usize = 64;
/// A way that is as likely as its neighbours is drawn in so many draws for each.
pub(super) const DRAWS_EACH: usize = 32;

/// Tells what becomes of a connection, or of a request on it.
pub(super) fn tell(mesh: &Mesh, question: &Question) -> Story {
    let caller = &question.caller;
    let mut story = Story::new(shown(caller), format!("{} ({})", question.named, question.destination));
    if caller.tunnel_protocol == TunnelProtocol::None {
        let says = format!("{} is not in the mesh: it calls in plain TCP, and proves nobody", shown(caller));
        story.step("identify", says, vec![enrol_hint(caller)]);
        story.decided.ways.insert(Way::Uncaptured);
        return plain(mesh, question, story);
    }
    story.step(
        "identify",
        format!("{} is in the mesh as {}", shown(caller), caller.identity),
        vec![format!("captured on node {}", caller.node)],
    );
    if caller.addresses.contains(&question.destination.ip()) {
        let says =
            format!("{} is its own address: what a pod says to itself is not captured, and no policy is asked", question.destination.ip());
        story.step("resolve", says, Vec::new());
        story.decided.ways.insert(Way::Uncaptured);
        let verdict = story.end(None, question.destination, Ending::allowed());
        return story.ends(verdict);
    }
    let plans = match plans(mesh, question) {
        Ok(plans) => plans,
        Err(error) => {
            let reason = format!("{error} ({:?})", error.reason().0);
            story.step("resolve", error.to_string(), Vec::new());
            return story.ends(Verdict::Refused(reason));
        }
    };
    note(&plans, &mut story);
    match plans.first() {
        Some(Plan::Tunnel { via, target, waypoint: true }) => {
            let says = format!("{} goes through waypoint {}", addressed(target), gateway(mesh, &via.workload).1);
            story.step("resolve", says, plans.iter().map(way).collect());
            request::tell(mesh, question, &via.workload, target, story)
        }
        Some(Plan::Direct { to }) if to.workload.is_none() => {
            let says = format!("{} is not of the mesh: it is passed on as it is, in plain TCP", to.authority);
            story.step("resolve", says, Vec::new());
            let verdict = story.end(None, &to.authority, Ending::allowed());
            story.ends(verdict)
        }
        Some(first) => {
            let says = format!("{}, of {} one is drawn", addressed(first.target()), render::counted(plans.len(), "way", "ways"));
            story.step("resolve", says, plans.iter().map(way).collect());
            let arrive = |plan: &Plan, story: &mut Story| {
                let ending = arrive(mesh, caller, plan, story);
                story.end(None, &plan.target().authority, ending)
            };
            let verdicts: Vec<Verdict> = plans.iter().map(|plan| arrive(plan, &mut story)).collect();
            story.ends(Verdict::of_any(&verdicts, "no endpoint"))
        }
        None => story.ends(Verdict::Refused("no way was found".to_owned())),
    }
}

/// Every plan that the node proxy may make while nothing has failed: it is asked until it says nothing new for long.
fn plans(mesh: &Mesh, question: &Question) -> Result<Vec<Plan>, resolve::ResolveError> {
    let (mut plans, mut seen) = (Vec::new(), BTreeSet::new());
    let mut draw = Draw::new(1);
    let asked = resolve::Question {
        caller: &question.caller,
        destination: OriginalDestination(question.destination),
        network: &question.caller.network,
        tried: &[],
    };
    let mut repeated = 0;
    while plans.len() < PLANS_MAX && repeated < DRAWS_EACH * (plans.len() + 1) {
        let plan = resolve::outbound(&mesh.view, &asked, &mut draw)?;
        if seen.insert(plan.next().map(|workload| workload.uid.clone())) {
            plans.push(plan);
            repeated = 0;
        }
        repeated += 1;
    }
    plans.sort_by_cached_key(|plan| plan.next().map(|workload| workload.uid.clone()));
    Ok(plans)
}

/// Notes the next hops of all plans.
fn note(plans: &[Plan], story: &mut Story) {
    for plan in plans {
        let (way, hop) = match plan {
            Plan::Direct { to: Target { authority: Authority::Address(address), .. } } => (Way::Direct, Some(*address)),
            Plan::Direct { .. } => (Way::Direct, None),
            Plan::Tunnel { via, waypoint, .. } => (if *waypoint { Way::Waypoint } else { Way::Tunnel }, Some(via.address)),
            Plan::Nested { gateway, .. } => (Way::Gateway, Some(gateway.address)),
        };
        story.decided.ways.insert(way);
        story.decided.next_hops.extend(hop);
    }
}

/// What the destination says to one plan.
fn arrive(mesh: &Mesh, caller: &Workload, plan: &Plan, story: &mut Story) -> Ending {
    match plan {
        Plan::Direct { to } => {
            let name = to.workload.as_deref().map_or_else(|| to.authority.to_string(), shown);
            story.step("authorize", format!("{name} is not in the mesh: no policy protects it"), Vec::new());
            Ending::allowed()
        }
        Plan::Tunnel { via, target, .. } => {
            let Authority::Address(destination) = target.authority else {
                return Ending::refused(format!("{} cannot be checked from here", target.authority), []);
            };
            let source = address_like(caller, via.address.ip());
            admitted(mesh, &via.workload, Peer { identity: Some(caller.identity.clone()), source }, destination, story)
        }
        Plan::Nested { gateway, target, .. } => {
            let says = format!("{} is on another network, behind {}; its own proxies decide", target.authority, gateway.address);
            story.step("authorize", says, Vec::new());
            Ending::allowed()
        }
    }
}

/// Plain traffic: Kubernetes chooses the endpoint; a destination in the mesh still decides.
fn plain(mesh: &Mesh, question: &Question, mut story: Story) -> Story {
    let (caller, destination) = (&question.caller, question.destination);
    let service = mesh.view.service_at(&caller.network, destination.ip(), &caller.namespace);
    let endpoints: Vec<(Arc<Workload>, SocketAddr)> = match (mesh.view.workload_at(&caller.network, destination.ip()), service) {
        (Some(workload), _) => vec![(workload.clone(), destination)],
        (None, Some(service)) => {
            let port = service.ports.get(&destination.port()).copied();
            let all = service.load_balancing.health_policy == HealthPolicy::AllowAll;
            let ready = mesh.view.endpoints(&service.hostname).filter(|endpoint| all || endpoint.workload.health == Health::Healthy);
            let endpoints = ready.filter_map(|endpoint| {
                let own = endpoint.ports.get(&destination.port()).copied().or(port?.target_port)?;
                let address = endpoint.workload.addresses.iter().find(|address| address.is_ipv4() == destination.is_ipv4())?;
                Some((endpoint.workload.clone(), SocketAddr::new(*address, own)))
            });
            endpoints.collect()
        }
        (None, None) => {
            story.step("resolve", format!("{destination} is not of the mesh either"), Vec::new());
            let verdict = story.end(None, destination, Ending::allowed());
            return story.ends(verdict);
        }
    };
    let ways = endpoints.iter().map(|(workload, address)| format!("{} at {address}", shown(workload))).collect();
    let waypoint = service.is_some_and(|service| service.waypoint.is_some());
    let passes = if waypoint { "; it does not pass the waypoint" } else { "" };
    story.step("resolve", format!("Kubernetes chooses one of {}{passes}", render::counted(endpoints.len(), "endpoint", "endpoints")), ways);
    let verdicts: Vec<Verdict> = endpoints
        .iter()
        .map(|(workload, address)| {
            let ending = match workload.tunnel_protocol {
                TunnelProtocol::Hbone => {
                    let source = address_like(caller, address.ip());
                    admitted(mesh, workload, Peer { identity: None, source }, *address, &mut story)
                }
                TunnelProtocol::None => {
                    story.step("authorize", format!("{} is not in the mesh: no policy protects it", shown(workload)), Vec::new());
                    Ending::allowed()
                }
            };
            story.end(None, address, ending)
        })
        .collect();
    story.ends(Verdict::of_any(&verdicts, "the service has no endpoint for this port"))
}

/// Who calls a destination's node proxy.
pub(super) struct Peer {
    /// What it proves, in a tunnel; `None` is plain traffic.
    pub(super) identity: Option<Identity>,
    /// The address that it calls from.
    pub(super) source: IpAddr,
}

/// What the node proxy of a destination decides about a connection that arrives.
pub(super) fn admitted(mesh: &Mesh, workload: &Workload, peer: Peer, destination: SocketAddr, story: &mut Story) -> Ending {
    // The destination's own node proxy reads what the whole mesh is told.
    let workload = mesh.view.workload(&workload.uid).map_or(workload, |own| own);
    let arrival = match &peer.identity {
        Some(_) => resolve::inbound(&mesh.view, workload, destination.ip(), &Authority::Address(destination), None),
        None => resolve::passthrough(&mesh.view, workload, OriginalDestination(destination)),
    };
    let destination = match arrival {
        Ok(arrival) => arrival.to,
        Err(error) => {
            story.step("resolve", format!("{} refuses: {error}", shown(workload)), Vec::new());
            return Ending::refused(format!("{} refuses: {error}", shown(workload)), []);
        }
    };
    let facts = ConnectionFacts { peer: peer.identity, source: peer.source, destination };
    let because: Vec<String> = authorize::explain(&mesh.view, workload, &facts).iter().map(said).collect();
    let peer = facts.peer.as_ref().map_or_else(|| "nobody (plain TCP)".to_owned(), ToString::to_string);
    let asked = match because.len() {
        0 => "no policy applies".to_owned(),
        count => format!("{} asked", render::counted(count, "policy is", "policies are")),
    };
    let (word, ending) = match authorize::inbound(&mesh.view, workload, &facts) {
        Ok(permit) => match permit.dry_run_denial() {
            Some(denied) => (format!("allowed; a dry run says: {denied}"), Ending::allowed()),
            None => ("allowed".to_owned(), Ending::allowed()),
        },
        Err(denied) => {
            let policies = denied.policies().iter().map(ToString::to_string);
            (format!("refused, {denied}"), Ending::refused(format!("{} refuses: {denied}", shown(workload)), policies))
        }
    };
    story.step("authorize", format!("{} at {destination} is called by {peer}: {asked}, {word}", shown(workload)), because);
    ending
}

fn said(said: &Said<'_>) -> String {
    match said {
        Said::Missing(key) => format!("{key} applies and has not arrived: denied"),
        Said::Asked { policy, rule } => {
            let rule = rule.map_or_else(|| "no rule matches".to_owned(), |rule| format!("rule {rule} matches"));
            format!("{}{} {}: {rule}", action(policy), if policy.dry_run { " (dry run)" } else { "" }, policy.key)
        }
    }
}

fn action(policy: &Policy) -> &'static str {
    match policy.action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
    }
}

/// One way that the node proxy may go.
fn way(plan: &Plan) -> String {
    match plan {
        Plan::Direct { to } => format!("{} in plain TCP", end(to)),
        Plan::Tunnel { via, target, waypoint: false } => format!("{} in a tunnel to {}", end(target), via.address),
        Plan::Tunnel { via, .. } => format!("{} in a tunnel to {}", shown(&via.workload), via.address),
        Plan::Nested { gateway, target, .. } => format!("{} through the gateway {} of another network", end(target), gateway.address),
    }
}

fn end(target: &Target) -> String {
    target
        .workload
        .as_deref()
        .map_or_else(|| target.authority.to_string(), |workload| format!("{} ({})", shown(workload), target.authority))
}

/// What was addressed, as a subject of a sentence.
fn addressed(target: &Target) -> String {
    match (&target.service, &target.workload) {
        (Some(service), _) => format!("service {}", service.hostname.hostname),
        (None, Some(workload)) => format!("pod {}", shown(workload)),
        (None, None) => target.authority.to_string(),
    }
}

/// The Gateway that a waypoint's pod belongs to, and what it is called.
pub(super) fn gateway(mesh: &Mesh, instance: &Workload) -> ((String, String), String) {
    let namespace = instance.namespace.to_string();
    let pod = mesh.index().pod(&(namespace.clone(), instance.name.to_string()));
    let name = pod.and_then(|pod| pod.label(GATEWAY_NAME)).unwrap_or(&instance.workload_name).to_owned();
    let shown = format!("{namespace}/{name}");
    ((namespace, name), shown)
}

/// `sleep-1.shop`.
pub(super) fn shown(workload: &Workload) -> String {
    format!("{}.{}", workload.name, workload.namespace)
}

/// The address that a workload calls from.
pub(super) fn address_like(workload: &Workload, like: IpAddr) -> IpAddr {
    let same = workload.addresses.iter().find(|address| address.is_ipv4() == like.is_ipv4());
    same.or(workload.addresses.first()).copied().unwrap_or(like)
}

fn enrol_hint(caller: &Workload) -> String {
    format!("`tropis label namespace {} istio.io/dataplane-mode=ambient` puts it there", caller.namespace)
}
