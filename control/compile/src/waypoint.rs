//! Waypoints: which Gateway is one, what it serves, and who goes through it.
//!
//! Traffic to a service goes by the Service's label, then by the account that all of its pods run as, then by the namespace's label,
//! then through an automatic waypoint; traffic to a pod by the pod's label, then by its account, then by the namespace's label (design.md
//! §4, ambient-protocols.md 11.2). A label whose waypoint cannot be used attaches to nothing: it never falls back to a wider one. A waypoint
//! cannot be used before its Gateway has an address in its status. [`scope`] says what a waypoint is told, [`callers`] what of those who call
//! it, [`admission`] how the policies of its destinations let it in, [`binding`] what a Service's status says, [`needed`] which are to be
//! there of their own accord and [`automatic`] what goes through those, [`refused`] what became of an object that a waypoint refuses.

pub mod admission;
pub mod automatic;
pub mod binding;
pub(crate) mod callers;
pub mod needed;
pub mod refused;
pub mod scope;
pub(crate) mod unserved;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use tropis_crds::{
    Finding, Object, ObjectRef, codes,
    gateway_api::{CLASS_WAYPOINT, PROTOCOL_HBONE, gateway::AddressType},
};
use tropis_model::{
    address::{NamespacedHostname, NetworkAddress},
    identity::Identity,
    waypoint::Serves,
    workload::{GatewayAddress, GatewayDestination},
};

use crate::{
    Index, Settings,
    index::{Key, key_of},
    service,
};

/// Label of everything that belongs to a Gateway: its name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Label of what a controller made for a Gateway.
pub const MANAGED: &str = "gateway.istio.io/managed";
/// Label or annotation of a Gateway: the account whose traffic it carries.
pub const FOR_ACCOUNT: &str = "istio.io/for-service-account";
/// Label of a Gateway that the control plane made by itself: `true`, [`LEAVING`] or [`STOPPING`]. On a namespace, whether one may be made for it.
pub const AUTOMATIC: &str = "tropis.io/automatic-waypoint";
/// Value of [`AUTOMATIC`] of a waypoint that nothing needs any more: nothing new goes through it, and it still knows what it carries, for
/// connections that are under way.
pub const LEAVING: &str = "leaving";
/// Value of [`AUTOMATIC`] of one whose pods finish what is open.
pub const STOPPING: &str = "stopping";
/// Label of a Gateway: the traffic that it takes.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// Label of a pod, a Service or a namespace: the name of its waypoint, or `none`.
const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// The namespace of that waypoint, if it is another one.
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// The value of [`USE_WAYPOINT`] that opts out.
const NO_WAYPOINT: &str = "none";
/// Where waypoints listen.
const HBONE_PORT: u16 = 15008;

/// Whether an object is a Gateway of the waypoints' class.
pub fn is_waypoint(object: &Object) -> bool {
    object.gateway().is_some_and(|gateway| gateway.spec.gateway_class_name == CLASS_WAYPOINT)
}

/// Whether somebody else deploys it: its spec names a Service that exists (traffic-api.md 3.2).
pub fn is_deployed_by_hand(object: &Object) -> bool {
    object.gateway().is_some_and(|gateway| gateway.spec.addresses.iter().any(|address| address.kind == AddressType::Hostname))
}

/// The account that a waypoint is for, if it is for one.
pub fn account(object: &Object) -> Option<&str> {
    object.annotation(FOR_ACCOUNT).or_else(|| object.label(FOR_ACCOUNT)).filter(|account| !account.is_empty())
}

/// What a waypoint takes: its label; without one, or with a value that is none, services, and for an account both.
pub fn serves(object: &Object) -> Serves {
    match object.label(WAYPOINT_FOR) {
        Some("service") => Serves::Services,
        Some("workload") => Serves::Workloads,
        Some("all") => Serves::All,
        Some("none") => Serves::Nothing,
        _ if account(object).is_some() => Serves::All,
        _ => Serves::Services,
    }
}

/// The identity of a waypoint's pods: the account is named as the Gateway.
pub fn identity(settings: &Settings, key: &Key) -> Identity {
    Identity::new(settings.trust_domain.clone(), key.0.as_str(), key.1.as_str())
}

/// Where a waypoint is, by its Gateway's status; `None` before it has an address.
pub fn address(settings: &Settings, object: &Object) -> Option<GatewayAddress> {
    let gateway = object.gateway()?;
    let destination = gateway.status.addresses.iter().find_map(|address| match address.kind {
        AddressType::Hostname => {
            let namespace = address.value.split('.').nth(1).unwrap_or(&object.metadata.namespace);
            Some(GatewayDestination::Service(NamespacedHostname { namespace: namespace.into(), hostname: address.value.as_str().into() }))
        }
        AddressType::IpAddress => {
            let address = address.value.parse::<IpAddr>().ok()?.to_canonical();
            Some(GatewayDestination::Address(NetworkAddress { network: settings.network.clone(), address }))
        }
        AddressType::Other(_) => None,
    })?;
    Some(GatewayAddress { destination, hbone_port: HBONE_PORT })
}

/// The name of a waypoint's own service.
pub fn own_service(settings: &Settings, key: &Key) -> NamespacedHostname {
    service::hostname(settings, &key.0, &key.1)
}

/// The waypoint that an object's labels name; `None` without a label or with `none`.
pub(crate) fn named(object: &Object) -> Option<Key> {
    match wish(object) {
        Wish::Named(key) => Some(key),
        Wish::Nothing | Wish::OptedOut => None,
    }
}

/// What an object's labels say about its waypoint.
enum Wish {
    Nothing,
    OptedOut,
    Named(Key),
}

fn wish(object: &Object) -> Wish {
    match object.label(USE_WAYPOINT).filter(|name| !name.is_empty()) {
        None => Wish::Nothing,
        Some(NO_WAYPOINT) => Wish::OptedOut,
        Some(name) => {
            // A namespace's own namespace is itself.
            let own = if object.namespace().is_some() { &object.metadata.name } else { &object.metadata.namespace };
            let namespace = object.label(USE_WAYPOINT_NAMESPACE).filter(|namespace| !namespace.is_empty()).unwrap_or(own);
            Wish::Named((namespace.to_owned(), name.to_owned()))
        }
    }
}

/// A waypoint that traffic should go through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its Gateway. It is told of what it will carry before anything comes.
    pub gateway: Key,
    /// Where it is; `None` while its status has no address or it is leaving: traffic does not go through it.
    pub address: Option<GatewayAddress>,
}

/// Which traffic is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Traffic {
    Services,
    Workloads,
}

/// Why a waypoint that is named cannot be used.
#[derive(Clone, Copy)]
enum Obstacle {
    Missing,
    OtherClass,
    NotAllowed,
    OtherTraffic,
    NotReady,
}

fn usable(index: &Index, key: &Key, namespace: &str, traffic: Traffic) -> Result<Attached, Obstacle> {
    let object = index.gateway(key).ok_or(Obstacle::Missing)?;
    let gateway = object.gateway().filter(|_| is_waypoint(object)).ok_or(Obstacle::OtherClass)?;
    let labels = index.namespace(namespace).map(|namespace| namespace.metadata.labels.clone()).unwrap_or_default();
    let mut listeners = gateway.spec.listeners.iter().filter(|listener| listener.protocol == PROTOCOL_HBONE);
    if !listeners.any(|listener| listener.allowed_routes.clone().unwrap_or_default().allows(&key.0, namespace, &labels)) {
        return Err(Obstacle::NotAllowed);
    }
    let takes = match traffic {
        Traffic::Services => serves(object).services(),
        Traffic::Workloads => serves(object).workloads(),
    };
    if !takes {
        return Err(Obstacle::OtherTraffic);
    }
    let address = address(index.settings(), object).filter(|_| !is_leaving(object));
    Ok(Attached { gateway: key.clone(), address })
}

/// Whether a waypoint, were it named, would take a namespace's Services.
pub(crate) fn may_carry(index: &Index, key: &Key, namespace: &str) -> bool {
    usable(index, key, namespace, Traffic::Services).is_ok()
}

/// Why nothing goes through a waypoint that is named.
fn obstacle(found: &Result<Attached, Obstacle>) -> Option<Obstacle> {
    match found {
        Ok(attached) => attached.address.is_none().then_some(Obstacle::NotReady),
        Err(obstacle) => Some(*obstacle),
    }
}

/// Whether traffic goes through a waypoint: it has an address, and is not leaving.
pub(crate) fn is_in_use(index: &Index, key: &Key) -> bool {
    let gateway = index.gateway(key).filter(|gateway| is_waypoint(gateway) && !is_leaving(gateway));
    gateway.is_some_and(|gateway| address(index.settings(), gateway).is_some())
}

/// Whether a waypoint that the control plane made by itself is on its way out.
fn is_leaving(object: &Object) -> bool {
    matches!(object.label(AUTOMATIC), Some(LEAVING | STOPPING))
}

/// Why nothing goes through the waypoint that is named for a service, as Istio's condition has it: the waypoint, the reason and a word on it.
pub fn refusal(index: &Index, object: &Object) -> Option<(Key, &'static str, &'static str)> {
    let namespace = object.metadata.namespace.as_str();
    let wished = match wish(object) {
        Wish::Nothing => index.namespace(namespace).map_or(Wish::Nothing, |namespace| wish(namespace)),
        wish => wish,
    };
    let Wish::Named(key) = wished else { return None };
    let (reason, word) = match obstacle(&usable(index, &key, namespace, Traffic::Services))? {
        Obstacle::Missing => ("WaypointIsNotReady", "it does not exist"),
        Obstacle::NotReady => ("WaypointIsNotReady", "it has no address yet"),
        Obstacle::OtherClass => ("AttachmentDenied", "it is not a waypoint"),
        Obstacle::NotAllowed => ("AttachmentDenied", "it does not let this namespace in"),
        Obstacle::OtherTraffic => ("UnsupportedTrafficType", "it does not take traffic to Services"),
    };
    Some((key, reason, word))
}

/// What users chose for a Service.
enum Choice {
    /// A waypoint that cannot be used is a choice, too, and so is none.
    Made(Option<Attached>),
    /// Nothing.
    Open,
}

/// The waypoint of traffic addressed to a service, and what there is to tell about it.
pub fn of_service(index: &Index, object: &Object) -> (Option<Attached>, Vec<Finding>) {
    let (choice, findings) = choice(index, object);
    let attached = match choice {
        Choice::Made(attached) => attached,
        Choice::Open => automatic::of_service(index, object),
    };
    (attached, findings)
}

/// What users chose for a Service, and what there is to tell about that. What belongs to a waypoint is no user's to choose for.
fn choice(index: &Index, object: &Object) -> (Choice, Vec<Finding>) {
    let namespace = object.metadata.namespace.as_str();
    let mut findings = Vec::new();
    if object.label(MANAGED).is_some() {
        return (Choice::Made(None), findings);
    }
    match wish(object) {
        Wish::OptedOut => return (Choice::Made(None), findings),
        Wish::Named(key) => {
            let found = usable(index, &key, namespace, Traffic::Services);
            findings.extend(obstacle(&found).map(|obstacle| unusable(object, &key, obstacle)));
            return (Choice::Made(found.ok()), findings);
        }
        Wish::Nothing => {}
    }
    let mut for_accounts = users_for_accounts(index, namespace).filter(|(_, gateway)| serves(gateway).services()).peekable();
    if for_accounts.peek().is_some() {
        let accounts = index.accounts_of(object);
        for (account, gateway) in for_accounts.filter(|(account, _)| accounts.contains(account)) {
            if accounts.len() == 1 {
                return (Choice::Made(usable(index, &key_of(gateway), namespace, Traffic::Services).ok()), findings);
            }
            findings.push(mixed(object, gateway, account, &accounts));
        }
    }
    (of_namespace(index, namespace, Traffic::Services), findings)
}

/// The waypoints of a namespace that users made for an account, with that.
fn users_for_accounts<'a>(index: &'a Index, namespace: &str) -> impl Iterator<Item = (&'a str, &'a Arc<Object>)> + use<'a> {
    let gateways = index.gateways_in(namespace).filter(|gateway| !automatic::is_automatic(gateway));
    gateways.filter_map(|gateway| Some((account(gateway)?, gateway)))
}

/// The waypoint of traffic addressed to a pod. That goes through no automatic one: what needs those are Services.
pub fn of_pod(index: &Index, object: &Object) -> Option<Attached> {
    let namespace = object.metadata.namespace.as_str();
    if object.label(GATEWAY_NAME).is_some() || object.label(MANAGED).is_some() {
        return None;
    }
    match wish(object) {
        Wish::OptedOut => return None,
        Wish::Named(key) => return usable(index, &key, namespace, Traffic::Workloads).ok(),
        Wish::Nothing => {}
    }
    let own = object.pod_service_account();
    let by_account = users_for_accounts(index, namespace).find(|(account, gateway)| own == Some(*account) && serves(gateway).workloads());
    match by_account {
        Some((_, gateway)) => usable(index, &key_of(gateway), namespace, Traffic::Workloads).ok(),
        None => match of_namespace(index, namespace, Traffic::Workloads) {
            Choice::Made(attached) => attached,
            Choice::Open => None,
        },
    }
}

fn of_namespace(index: &Index, namespace: &str, traffic: Traffic) -> Choice {
    match index.namespace(namespace).map_or(Wish::Nothing, |namespace| wish(namespace)) {
        Wish::OptedOut => Choice::Made(None),
        Wish::Named(key) => Choice::Made(usable(index, &key, namespace, traffic).ok()),
        Wish::Nothing => Choice::Open,
    }
}

/// What there is to tell about what a namespace's labels say of waypoints.
pub fn namespace_findings(index: &Index, object: &Object) -> Vec<Finding> {
    let mut findings = automatic::label_findings(object);
    let Wish::Named(key) = wish(object) else { return findings };
    let name = &object.metadata.name;
    let obstacles = [Traffic::Services, Traffic::Workloads].map(|traffic| obstacle(&usable(index, &key, name, traffic)));
    // Taking one kind of traffic and not the other is what `istio.io/waypoint-for` is for.
    if let [Some(first), Some(second)] = obstacles {
        let obstacle = if matches!(first, Obstacle::OtherTraffic) { second } else { first };
        findings.push(unusable(object, &key, obstacle));
    }
    findings
}

/// What there is to tell about waypoints that labels of pods name: about one pod of each controller.
pub(crate) fn pods_findings(index: &Index) -> Vec<(ObjectRef, Vec<Finding>)> {
    let mut told = BTreeSet::new();
    let mut all = Vec::new();
    for object in index.pods() {
        let Wish::Named(key) = wish(object) else { continue };
        if object.label(GATEWAY_NAME).is_some() || object.label(MANAGED).is_some() || has_ended(object) {
            continue;
        }
        let Some(obstacle) = obstacle(&usable(index, &key, &object.metadata.namespace, Traffic::Workloads)) else { continue };
        let owner = object.metadata.owner_references.iter().find(|owner| owner.controller == Some(true));
        let group = owner.map_or(&object.metadata.name, |owner| &owner.name);
        if told.insert((object.metadata.namespace.as_str(), owner.is_some(), group.as_str(), key.clone())) {
            all.push((object.reference(), vec![unusable(object, &key, obstacle)]));
        }
    }
    all
}

/// Whether nothing of a pod runs any more.
pub(crate) fn has_ended(pod: &Object) -> bool {
    let phase = pod.pod().and_then(|pod| pod.status.as_ref()?.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What there is to tell about a waypoint itself.
pub fn findings(object: &Object) -> Vec<Finding> {
    let Some(gateway) = object.gateway().filter(|_| is_waypoint(object)) else { return Vec::new() };
    let mut findings = Vec::new();
    let is_good = |listener: &tropis_crds::gateway_api::gateway::Listener| {
        listener.protocol == PROTOCOL_HBONE && listener.port == i64::from(HBONE_PORT)
    };
    for (place, listener) in gateway.spec.listeners.iter().enumerate().filter(|(_, listener)| !is_good(listener)) {
        findings.push(
            Finding::error(codes::UNREADABLE_VALUE, object.reference())
                .field(format!("spec.listeners[{place}]"))
                .found(format!("{} on {}", listener.protocol, listener.port))
                .problem("is no listener of a waypoint")
                .accepted("{name: mesh, port: 15008, protocol: HBONE}")
                .effect("nothing listens there"),
        );
    }
    if let Some(value) = object.label(WAYPOINT_FOR).filter(|value| !["service", "workload", "all", "none"].contains(value)) {
        findings.push(
            Finding::error(codes::UNREADABLE_VALUE, object.reference())
                .field(format!("metadata.labels[{WAYPOINT_FOR}]"))
                .found(format!("{value:?}"))
                .problem("is not a kind of traffic")
                .accepted("service, workload, all or none")
                .effect("the waypoint takes what it would without the label"),
        );
    }
    findings
}

/// What there is to tell about a policy that is attached to Services through which no waypoint carries.
pub(crate) fn policy_findings(index: &Index, object: &Object) -> Vec<Finding> {
    let Some(policy) = object.authorization_policy() else { return Vec::new() };
    let spec = &policy.spec;
    let targets = spec.target_ref.iter().chain(&spec.target_refs).enumerate().filter(|(_, target)| target.kind == "Service");
    let told = targets.filter_map(|(place, target)| {
        let service = index.service(&(object.metadata.namespace.clone(), target.name.clone()))?;
        let field = if spec.target_ref.is_some() { "spec.targetRef".to_owned() } else { format!("spec.targetRefs[{place}]") };
        let finding = match of_service(index, service).0 {
            Some(attached) if attached.address.is_some() => return None,
            Some(attached) => Finding::info(codes::NEEDS_WAYPOINT, object.reference())
                .problem(format!("has a waypoint that is not in use: {}/{}", attached.gateway.0, attached.gateway.1))
                .accepted("a waypoint that runs")
                .effect("the policy is not enforced for it until then, unless the waypoint before goes on"),
            None => Finding::warning(codes::NEEDS_WAYPOINT, object.reference())
                .problem("goes through no waypoint")
                .accepted(
                    "a Service with a waypoint (label istio.io/use-waypoint), or spec.selector for a policy that node proxies enforce",
                )
                .effect("the policy is not enforced for it"),
        };
        Some(finding.field(field).found(format!("Service {}/{}", object.metadata.namespace, target.name)))
    });
    told.collect()
}

fn unusable(object: &Object, key: &Key, obstacle: Obstacle) -> Finding {
    let finding = match obstacle {
        Obstacle::Missing => Finding::error(codes::REFERENCED_RESOURCE_NOT_FOUND, object.reference())
            .problem("does not exist")
            .accepted("a Gateway of class istio-waypoint"),
        Obstacle::OtherClass => Finding::error(codes::WAYPOINT_NOT_USABLE, object.reference())
            .problem("is not a waypoint")
            .accepted("a Gateway of class istio-waypoint"),
        Obstacle::NotAllowed => Finding::error(codes::WAYPOINT_NOT_USABLE, object.reference())
            .problem("does not let this namespace in")
            .accepted("a waypoint whose listener has allowedRoutes.namespaces.from: All, or a Selector that selects the namespace"),
        Obstacle::OtherTraffic => Finding::error(codes::WAYPOINT_NOT_USABLE, object.reference())
            .problem("does not take this traffic, by its label istio.io/waypoint-for")
            .accepted(if object.pod().is_some() { "a waypoint for workload or all" } else { "a waypoint for service or all" }),
        Obstacle::NotReady => Finding::info(codes::WAYPOINT_NOT_USABLE, object.reference())
            .problem("is not ready yet: its status has no address")
            .accepted("a waypoint that runs"),
    };
    finding
        .field(format!("metadata.labels[{USE_WAYPOINT}]"))
        .found(format!("{}/{}", key.0, key.1))
        .effect("traffic goes without a waypoint, and the rules of layer 4 hold")
}

fn mixed(object: &Object, gateway: &Arc<Object>, account: &str, accounts: &BTreeSet<&str>) -> Finding {
    let all: Vec<&str> = accounts.iter().copied().collect();
    Finding::warning(codes::MIXED_ACCOUNTS, object.reference())
        .field("spec.selector")
        .found(all.join(", "))
        .problem(format!("are the accounts of its pods, and waypoint {} is for {account} alone", gateway.metadata.name))
        .accepted("a Service all of whose pods run as one account, or the label istio.io/use-waypoint")
        .effect("traffic to this Service does not go through that waypoint; traffic to the account's pods by their addresses does")
}

#[cfg(test)]
mod tests;
